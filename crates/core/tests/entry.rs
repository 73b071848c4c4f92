//! The entry's codec: what is encoded decodes to itself, and what is not an entry is refused without a panic.

use buttress_core::{
    Append, Cursor, DecodeError, Entry, Guard, LeaseChange, LeaseId, LogId, Offset, Put, RequestId, Revision, Sequence,
    StatePut, TimeMs, Timer, TopicChange,
    codec::Writer,
    entry::{ENTRY_FORMAT, TopicSettings},
    fuzz::fuzz_entry,
    limits::{ENTRY_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX},
};
use bytes::Bytes;
use proptest::{collection::vec, option, prelude::*};

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,40}"
}

fn log() -> impl Strategy<Value = LogId> {
    any::<u32>().prop_map(LogId)
}

fn offset() -> impl Strategy<Value = Offset> {
    any::<i64>().prop_map(Offset)
}

fn lease() -> impl Strategy<Value = LeaseId> {
    any::<i64>().prop_map(LeaseId)
}

fn guard() -> impl Strategy<Value = Guard> {
    let revision = || any::<u64>().prop_map(Revision);
    prop_oneof![
        (bytes(), revision()).prop_map(|(key, revision)| Guard::ModRevision { key, revision }),
        (bytes(), revision()).prop_map(|(key, revision)| Guard::CreateRevision { key, revision }),
        (bytes(), any::<u64>()).prop_map(|(key, version)| Guard::Version { key, version }),
        (bytes(), bytes()).prop_map(|(key, value)| Guard::Value { key, value }),
        lease().prop_map(|lease| Guard::LeaseAlive { lease }),
        (text(), log(), option::of(offset())).prop_map(|(group, log, expected)| Guard::Cursor { group, log, expected }),
        (log(), offset()).prop_map(|(log, expected)| Guard::LogEnd { log, expected }),
    ]
}

fn topic_change() -> impl Strategy<Value = TopicChange> {
    let settings = (option::of(any::<u64>()), option::of(any::<u64>()), option::of((text(), text()))).prop_map(
        |(retention_bytes, retention_ms, sequence_fields)| TopicSettings {
            retention_bytes,
            retention_ms,
            sequence_fields,
        },
    );
    prop_oneof![
        (text(), any::<[u8; 16]>(), any::<u32>(), settings)
            .prop_map(|(name, id, partitions, settings)| TopicChange::Create { name, id, partitions, settings }),
        text().prop_map(|name| TopicChange::Delete { name }),
        (log(), offset()).prop_map(|(log, before)| TopicChange::Trim { log, before }),
    ]
}

fn lease_change() -> impl Strategy<Value = LeaseChange> {
    prop_oneof![
        (lease(), any::<u64>()).prop_map(|(lease, ttl_ms)| LeaseChange::Grant { lease, ttl_ms }),
        lease().prop_map(|lease| LeaseChange::KeepAlive { lease }),
        lease().prop_map(|lease| LeaseChange::Revoke { lease }),
    ]
}

fn append() -> impl Strategy<Value = Append> {
    let sequence =
        (text(), any::<i32>(), any::<i64>()).prop_map(|(producer, epoch, number)| Sequence { producer, epoch, number });
    (log(), any::<u32>(), any::<i64>(), option::of(sequence), bytes()).prop_map(
        |(log, records, max_timestamp_ms, sequence, batch)| Append { log, records, max_timestamp_ms, sequence, batch },
    )
}

fn timer() -> impl Strategy<Value = Timer> {
    prop_oneof![
        (text(), any::<u64>().prop_map(TimeMs), bytes(), bytes()).prop_map(|(id, due, key, value)| Timer::Set {
            id,
            due,
            key,
            value
        }),
        text().prop_map(|id| Timer::Cancel { id }),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let request = option::of((any::<u64>(), any::<u64>(), any::<u64>())).prop_map(|request| {
        request.map(|(client, number, acknowledged_below)| RequestId { client, number, acknowledged_below })
    });
    let put =
        (bytes(), option::of(bytes()), option::of(lease())).prop_map(|(key, value, lease)| Put { key, value, lease });
    let state = (text(), bytes(), option::of(bytes())).prop_map(|(space, key, value)| StatePut { space, key, value });
    let cursor = (text(), log(), offset(), text()).prop_map(|(group, log, next, metadata)| Cursor {
        group,
        log,
        next,
        metadata,
    });
    let head = (request, any::<u64>().prop_map(TimeMs), any::<bool>());
    let lists = (
        vec(guard(), 0..4),
        vec(topic_change(), 0..4),
        vec(lease_change(), 0..4),
        vec(put, 0..4),
        vec(state, 0..4),
        vec(append(), 0..4),
        vec(cursor, 0..4),
        vec(timer(), 0..4),
    );
    (head, lists).prop_map(
        |((request, time, expire), (guards, topics, leases, puts, state, appends, cursors, timers))| Entry {
            request,
            time,
            guards,
            topics,
            leases,
            puts,
            state,
            appends,
            cursors,
            timers,
            expire,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_decodes_to_itself(entry in entry()) {
        let encoded = entry.encode();
        prop_assert!(encoded.len() <= entry.size_hint());
        prop_assert_eq!(Entry::decode(encoded).unwrap(), entry);
    }

    #[test]
    fn a_stamped_entry_differs_in_its_time_only(entry in entry(), time in any::<u64>()) {
        let time = TimeMs(time);
        let stamped = Entry::stamp(&entry.encode(), time).unwrap();
        prop_assert_eq!(Entry::decode(stamped).unwrap(), Entry { time, ..entry });
    }

    #[test]
    fn a_cut_entry_is_refused_wherever_it_is_cut(entry in entry(), at in any::<prop::sample::Index>()) {
        let encoded = entry.encode();
        let cut = encoded.slice(..at.index(encoded.len()));
        prop_assert!(Entry::decode(cut).is_err());
    }

    #[test]
    fn a_longer_entry_is_refused(entry in entry(), more in vec(any::<u8>(), 1..9)) {
        let longer = [&entry.encode()[..], &more].concat();
        prop_assert_eq!(Entry::decode(longer.into()), Err(DecodeError::Trailing(more.len())));
    }

    #[test]
    fn bytes_that_were_changed_never_panic(
        entry in entry(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut encoded = entry.encode().to_vec();
        for (at, byte) in changes {
            let at = at.index(encoded.len());
            encoded[at] = byte;
        }
        fuzz_entry(&encoded);
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut data in vec(any::<u8>(), 0..300), format in any::<bool>()) {
        // Half of the inputs get past the version byte.
        if let (true, Some(first)) = (format, data.first_mut()) {
            *first = ENTRY_FORMAT;
        }
        fuzz_entry(&data);
    }
}

#[test]
fn an_unknown_format_is_named() {
    let mut encoded = Entry::default().encode().to_vec();
    encoded[0] = ENTRY_FORMAT + 1;
    let known = ENTRY_FORMAT;
    assert_eq!(Entry::decode(encoded.into()), Err(DecodeError::Version { got: known + 1, known }));
    assert_eq!(Entry::decode(Bytes::new()), Err(DecodeError::Short("entry format")));
}

#[test]
fn counts_and_lengths_that_lie_are_refused() {
    // A list of guards that claims 16,000 items in an entry of a few bytes.
    let mut w = Writer::default();
    w.u8(ENTRY_FORMAT);
    w.raw(&[0; 8]);
    w.u8(0);
    w.varint(16_000);
    let got = Entry::decode(w.finish());
    assert_eq!(got, Err(DecodeError::TooLarge { what: "guards", got: 16_000, limit: 0 }));

    let too_long = |entry: Entry| match Entry::decode(entry.encode()) {
        Err(DecodeError::TooLarge { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let put =
        |key: usize, value: usize| Put { key: vec![0; key].into(), value: Some(vec![0; value].into()), lease: None };
    assert_eq!(too_long(Entry { puts: vec![put(KEY_BYTES_MAX + 1, 0)], ..Entry::default() }), "key");
    assert_eq!(too_long(Entry { puts: vec![put(1, VALUE_BYTES_MAX + 1)], ..Entry::default() }), "value");
    let six = vec![put(1, VALUE_BYTES_MAX); ENTRY_BYTES_MAX / VALUE_BYTES_MAX + 1];
    assert_eq!(too_long(Entry { puts: six, ..Entry::default() }), "entry");
}
