//! The entry's codec: what is encoded decodes to itself, and what is not an entry is refused without a panic.

use buttress_core::{
    Append, Compare, Cursor, DecodeError, DeleteOp, Entry, Forget, Guard, KeyRange, LeaseChange, LeaseId, LogId,
    Offset, Operand, Put, PutOp, RangeOp, Relation, RequestId, Revision, Sequence, StatePut, TimeMs, Timer,
    TopicChange, Txn, TxnOp,
    codec::Writer,
    entry::{ENTRY_FORMAT, ENTRY_FORMAT_MAX, TopicSettings},
    fuzz::fuzz_entry,
    limits::{ENTRY_BYTES_MAX, ENTRY_PARTS_MAX, KEY_BYTES_MAX, TXN_DEPTH_MAX, VALUE_BYTES_MAX},
    txn::{SortOrder, SortTarget, TxnFault},
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
    let limits = (option::of(any::<u64>()), option::of(any::<u64>()), option::of(any::<u32>()));
    let settings = move || {
        (limits.clone(), option::of((text(), text()))).prop_map(
            |((retention_bytes, retention_ms, batch_bytes_max), sequence_fields)| TopicSettings {
                retention_bytes,
                retention_ms,
                sequence_fields,
                batch_bytes_max,
            },
        )
    };
    prop_oneof![
        (text(), any::<[u8; 16]>(), any::<u32>(), settings())
            .prop_map(|(name, id, partitions, settings)| TopicChange::Create { name, id, partitions, settings }),
        text().prop_map(|name| TopicChange::Delete { name }),
        (text(), settings(), settings()).prop_map(|(name, from, to)| TopicChange::Configure { name, from, to }),
        (text(), any::<u32>()).prop_map(|(name, partitions)| TopicChange::Extend { name, partitions }),
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

fn key_range() -> impl Strategy<Value = KeyRange> {
    (bytes(), option::of(bytes())).prop_map(|(from, to)| KeyRange { from, to })
}

fn revision() -> impl Strategy<Value = Option<Revision>> {
    option::of(any::<u64>().prop_map(Revision))
}

fn compare() -> impl Strategy<Value = Compare> {
    let relation =
        prop_oneof![Just(Relation::Equal), Just(Relation::Greater), Just(Relation::Less), Just(Relation::NotEqual)];
    let operand = prop_oneof![
        any::<i64>().prop_map(Operand::Version),
        any::<i64>().prop_map(Operand::CreateRevision),
        any::<i64>().prop_map(Operand::ModRevision),
        bytes().prop_map(Operand::Value),
        any::<i64>().prop_map(Operand::Lease),
    ];
    (key_range(), relation, operand).prop_map(|(range, relation, operand)| Compare { range, relation, operand })
}

fn range_op() -> impl Strategy<Value = RangeOp> {
    let order = prop_oneof![Just(SortOrder::None), Just(SortOrder::Ascending), Just(SortOrder::Descending)];
    let target = prop_oneof![
        Just(SortTarget::Key),
        Just(SortTarget::Version),
        Just(SortTarget::CreateRevision),
        Just(SortTarget::ModRevision),
        Just(SortTarget::Value),
    ];
    let bounds = (revision(), revision(), revision(), revision());
    (key_range(), revision(), any::<u64>(), any::<(bool, bool)>(), bounds, order, target).prop_map(
        |(range, revision, limit, (count_only, keys_only), bounds, order, target)| RangeOp {
            range,
            revision,
            limit,
            count_only,
            keys_only,
            min_mod_revision: bounds.0,
            max_mod_revision: bounds.1,
            min_create_revision: bounds.2,
            max_create_revision: bounds.3,
            order,
            target,
        },
    )
}

fn txn() -> impl Strategy<Value = Txn> {
    let put =
        (bytes(), bytes(), option::of(lease()), any::<(bool, bool, bool)>()).prop_map(|(key, value, lease, f)| PutOp {
            key,
            value,
            lease,
            prev_kv: f.0,
            ignore_value: f.1,
            ignore_lease: f.2,
        });
    let op = prop_oneof![
        range_op().prop_map(TxnOp::Range),
        put.prop_map(TxnOp::Put),
        (key_range(), any::<bool>()).prop_map(|(range, prev_kv)| TxnOp::Delete(DeleteOp { range, prev_kv })),
    ];
    let op = op.prop_recursive(2, 6, 3, |op| {
        (vec(compare(), 0..3), vec(op.clone(), 0..3), vec(op, 0..3))
            .prop_map(|(compares, success, failure)| TxnOp::Txn(Box::new(Txn { compares, success, failure })))
    });
    (vec(compare(), 0..3), vec(op.clone(), 0..3), vec(op, 0..3)).prop_map(|(compares, success, failure)| Txn {
        compares,
        success,
        failure,
    })
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
    let compact = option::of(any::<u64>().prop_map(Revision));
    let head = (request, any::<u64>().prop_map(TimeMs), any::<bool>(), compact, option::of(txn()));
    let lists = (
        vec(guard(), 0..4),
        vec(topic_change(), 0..4),
        vec(lease_change(), 0..4),
        vec(put, 0..4),
        vec(state, 0..4),
        vec(append(), 0..4),
        vec(cursor, 0..4),
        (vec(timer(), 0..4), vec((text(), log()).prop_map(|(group, log)| Forget { group, log }), 0..3)),
    );
    (head, lists).prop_map(
        |(
            (request, time, expire, compact, txn),
            (guards, topics, leases, puts, state, appends, cursors, (timers, forgets)),
        )| Entry {
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
            compact,
            forgets,
            txn,
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
            *first = ENTRY_FORMAT + *first % ENTRY_FORMAT_MAX;
        }
        fuzz_entry(&data);
    }
}

/// What older nodes wrote is read, and what has no newer part is written as they read it.
#[test]
fn a_newer_part_makes_a_newer_format() {
    let plain = Entry { time: TimeMs(258), expire: true, ..Entry::default() };
    let first = [1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    assert_eq!(plain.encode()[..], first);
    assert_eq!(Entry::decode(Bytes::copy_from_slice(&first)), Ok(plain.clone()));
    let compacts = Entry { compact: Some(Revision(300)), ..plain };
    let second = [&[2], &first[1..], &[0xac, 2]].concat();
    assert_eq!(compacts.encode(), second);
    assert_eq!(Entry::decode(second.into()), Ok(compacts.clone()));
    let put = PutOp { key: "k".into(), value: "v".into(), ..PutOp::default() };
    let txn = Some(Txn { success: vec![TxnOp::Put(put)], ..Txn::default() });
    let transaction = [0, 1, 1, 1, b'k', 1, b'v', 0, 0, 0, 0, 0];
    let third = [&[3], &first[1..], &[0, 0, 1], &transaction[..]].concat();
    let transacts = Entry { txn, compact: None, ..compacts };
    assert_eq!(transacts.encode(), third);
    assert_eq!(Entry::decode(third.into()), Ok(transacts.clone()));
    let both = Entry { compact: Some(Revision(300)), ..transacts };
    let third = [&[3], &first[1..], &[1, 0xac, 2, 0, 1], &transaction[..]].concat();
    assert_eq!(both.encode(), third);
    assert_eq!(Entry::decode(third.into()), Ok(both));
}

#[test]
fn transactions_are_bounded_in_depth_and_in_parts() {
    let nested = |levels: usize| {
        let mut txn = Txn::default();
        for _ in 1..levels {
            txn = Txn { success: vec![TxnOp::Txn(Box::new(txn))], ..Txn::default() };
        }
        txn
    };
    let entry = |txn: Txn| Entry { txn: Some(txn), ..Entry::default() };
    let deepest = nested(TXN_DEPTH_MAX);
    assert_eq!(deepest.check(), Ok(()));
    assert_eq!(Entry::decode(entry(deepest.clone()).encode()), Ok(entry(deepest)));
    let deeper = nested(TXN_DEPTH_MAX + 1);
    assert_eq!(deeper.check(), Err(TxnFault::TooDeep));
    let limit = TXN_DEPTH_MAX as u64;
    let refused = DecodeError::TooLarge { what: "depth of transactions", got: limit + 1, limit };
    assert_eq!(Entry::decode(entry(deeper).encode()), Err(refused));

    // Each list is within its limit, all together are not.
    let range = TxnOp::Range(RangeOp::new(KeyRange::key("k")));
    let half = vec![range; ENTRY_PARTS_MAX / 2];
    let full = Txn { success: half.clone(), failure: half.clone(), ..Txn::default() };
    assert!(Entry::decode(entry(full.clone()).encode()).is_ok());
    let compare = Compare { range: KeyRange::key("k"), relation: Relation::Equal, operand: Operand::Version(0) };
    let more = Txn { compares: vec![compare], ..full };
    match Entry::decode(entry(more).encode()) {
        Err(DecodeError::TooLarge { what, .. }) => assert_eq!(what, "parts of a transaction"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn transactions_that_change_a_key_twice_are_found() {
    let put = |key: &'static str| TxnOp::Put(PutOp { key: key.into(), ..PutOp::default() });
    let delete = |from: &'static str, to: Option<&'static str>| {
        TxnOp::Delete(DeleteOp { range: KeyRange { from: from.into(), to: to.map(Bytes::from) }, prev_kv: false })
    };
    let txn = |success: Vec<TxnOp>, failure: Vec<TxnOp>| Txn { success, failure, ..Txn::default() };
    let inner = |success, failure| TxnOp::Txn(Box::new(txn(success, failure)));
    let check = |success: Vec<TxnOp>| match txn(success.clone(), vec![]).check() {
        Ok(()) => {
            assert_eq!(txn(vec![], success).check(), Ok(()), "either branch is checked");
            true
        }
        Err(TxnFault::DuplicateKey(_)) => false,
        Err(other) => panic!("{other}"),
    };
    assert!(check(vec![put("a"), put("b"), delete("c", None), delete("d", Some("f")), delete("d", Some(""))]));
    assert!(!check(vec![put("a"), put("a")]));
    assert!(!check(vec![put("a"), delete("a", None)]) && !check(vec![delete("a", None), put("a")]));
    assert!(!check(vec![delete("a", Some("c")), put("b")]) && check(vec![delete("a", Some("c")), put("c")]));
    assert!(!check(vec![put("z"), delete("a", Some(""))]) && check(vec![put("0"), delete("a", Some(""))]));
    assert!(check(vec![delete("c", Some("a")), put("b")]), "an empty range deletes nothing");
    // Ranges that touch or overlap become one.
    assert!(!check(vec![delete("a", Some("c")), delete("c", Some("e")), delete("b", Some("d")), put("d")]));
    // Only one of two branches is taken; but each may be, beside what is around it.
    assert!(check(vec![inner(vec![put("a")], vec![put("a")])]));
    assert!(check(vec![inner(vec![put("a")], vec![delete("a", None)])]));
    assert!(!check(vec![inner(vec![put("a")], vec![]), put("a")]));
    assert!(!check(vec![inner(vec![], vec![delete("a", Some("c"))]), put("b")]));
    assert!(!check(vec![inner(vec![put("a")], vec![]), inner(vec![], vec![put("a")])]));
    assert!(!check(vec![delete("a", None), inner(vec![put("a")], vec![])]));
}

#[test]
fn faults_of_a_transaction_are_named() {
    let one = |op: TxnOp| Txn { failure: vec![op], ..Txn::default() }.check();
    let put = || PutOp { key: "k".into(), ..PutOp::default() };
    assert_eq!(one(TxnOp::Put(PutOp::default())), Err(TxnFault::EmptyKey));
    assert_eq!(one(TxnOp::Range(RangeOp::new(KeyRange::key("")))), Err(TxnFault::EmptyKey));
    let kept = PutOp { ignore_value: true, value: "v".into(), ..put() };
    assert_eq!(one(TxnOp::Put(kept)), Err(TxnFault::ValueProvided));
    let kept = PutOp { ignore_lease: true, lease: Some(LeaseId(1)), ..put() };
    assert_eq!(one(TxnOp::Put(kept)), Err(TxnFault::LeaseProvided));
    let compare = Compare { range: KeyRange::key(""), relation: Relation::Less, operand: Operand::Lease(1) };
    assert_eq!(Txn { compares: vec![compare], ..Txn::default() }.check(), Err(TxnFault::EmptyKey));
}

#[test]
fn only_what_changes_topics_or_forgets_cursors_is_of_the_third_format() {
    let topics = |change| Entry { topics: vec![change], ..Entry::default() };
    let large = TopicSettings { batch_bytes_max: Some(300), ..TopicSettings::default() };
    let create = |settings| topics(TopicChange::Create { name: "t".into(), id: [0; 16], partitions: 1, settings });
    let compact = Some(Revision(4));
    let forgets = vec![Forget { group: "g".into(), log: LogId(1) }];
    for (entry, format) in [
        (create(TopicSettings::default()), 1),
        (create(large.clone()), 3),
        (topics(TopicChange::Configure { name: "t".into(), from: large, to: TopicSettings::default() }), 3),
        (topics(TopicChange::Extend { name: "t".into(), partitions: 3 }), 3),
        (Entry { forgets: forgets.clone(), ..Entry::default() }, 3),
        (Entry { forgets, compact, ..Entry::default() }, 3),
        (Entry { compact, ..Entry::default() }, 2),
    ] {
        let mut encoded = entry.encode().to_vec();
        assert_eq!(encoded[0], format, "{entry:?}");
        assert_eq!(Entry::decode(encoded.clone().into()), Ok(entry.clone()));
        // In an older format it is refused, as an older node would refuse it.
        if format == 3 {
            encoded[0] = 1;
            assert!(Entry::decode(encoded.into()).is_err(), "{entry:?}");
        }
    }
}

#[test]
fn an_unknown_format_is_named() {
    let mut encoded = Entry::default().encode().to_vec();
    let known = ENTRY_FORMAT_MAX;
    for got in [0, known + 1] {
        encoded[0] = got;
        assert_eq!(Entry::decode(encoded.clone().into()), Err(DecodeError::Version { got, known }));
    }
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
