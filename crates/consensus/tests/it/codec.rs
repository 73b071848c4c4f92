//! The codecs under random input: what is encoded comes back, and nothing panics.

use std::{collections::BTreeMap, sync::Arc};

use buttress_consensus::{
    Body, Book, Contact, EntryKind, LogEntry, Members, Message, NUMBER_MAX, SnapshotMeta,
    fuzz::{fuzz_change, fuzz_message, fuzz_snapshot_meta},
};
use buttress_core::{DecodeError, Index, NodeId, Term};
use bytes::Bytes;
use proptest::prelude::*;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..300u64, Just(NUMBER_MAX), 0..=NUMBER_MAX]
}

fn bytes(limit: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..limit).prop_map(Bytes::from)
}

fn ids() -> impl Strategy<Value = Vec<NodeId>> {
    prop::collection::vec((0..9u64).prop_map(NodeId), 0..4)
}

prop_compose! {
    fn contact()(name in "[a-z-]{0,9}", peer in ".{0,12}", kafka in ".{0,5}", mqtt in ".{0,5}", http in ".{0,5}",
                 etcd in ".{0,5}", promote: bool) -> Contact {
        Contact { name, peer, kafka, mqtt, http, etcd, promote }
    }
}

prop_compose! {
    fn book()(retired in 0..9u64, contacts in prop::collection::btree_map((0..9u64).prop_map(NodeId), contact(), 0..4))
             -> Arc<Book> {
        Arc::new(Book { retired: NodeId(retired), contacts })
    }
}

prop_compose! {
    fn members()(voters in ids(), learners in ids(), voters_outgoing in ids(), learners_next in ids(),
                 auto_leave: bool, book in prop_oneof![Just(Arc::default()), book()]) -> Members {
        Members { voters, learners, voters_outgoing, learners_next, auto_leave, book }
    }
}

prop_compose! {
    fn meta()(index in number(), term in number(), members in members()) -> SnapshotMeta {
        SnapshotMeta { index: Index(index), term: Term(term), members }
    }
}

prop_compose! {
    fn entry()(index in number(), term in number(), data in bytes(80)) -> LogEntry {
        LogEntry { index: Index(index), term: Term(term), kind: EntryKind::Normal, data }
    }
}

fn body() -> impl Strategy<Value = Body> {
    let index = || number().prop_map(Index);
    let term = || number().prop_map(Term);
    prop_oneof![
        (index(), term(), index(), prop::collection::vec(entry(), 0..6)).prop_map(
            |(prev_index, prev_term, commit, entries)| Body::Append { prev_index, prev_term, commit, entries }
        ),
        (index(), index()).prop_map(|(index, commit)| Body::Accepted { index, commit }),
        (index(), index(), term(), index()).prop_map(|(index, hint_index, hint_term, commit)| Body::Rejected {
            index,
            hint_index,
            hint_term,
            commit
        }),
        (index(), bytes(64)).prop_map(|(commit, context)| Body::Heartbeat { commit, context }),
        (index(), bytes(64)).prop_map(|(commit, context)| Body::HeartbeatReply { commit, context }),
        (any::<bool>(), index(), term(), index(), term(), any::<bool>()).prop_map(
            |(pre, last_index, last_term, commit, commit_term, transfer)| Body::Vote {
                pre,
                last_index,
                last_term,
                commit,
                commit_term,
                transfer
            }
        ),
        (any::<bool>(), any::<bool>(), index(), term())
            .prop_map(|(pre, granted, commit, commit_term)| Body::VoteReply { pre, granted, commit, commit_term }),
        meta().prop_map(|meta| Body::Snapshot { meta }),
        Just(Body::TimeoutNow),
        bytes(64).prop_map(|context| Body::ReadIndex { context }),
        (index(), bytes(64)).prop_map(|(index, context)| Body::ReadIndexReply { index, context }),
    ]
}

prop_compose! {
    fn message()(from in 0..9u64, to in any::<u64>(), term in number(), body in body()) -> Message {
        Message { from: NodeId(from), to: NodeId(to), term: Term(term), body }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_come_back(message in message()) {
        let encoded = message.encode();
        prop_assert!(encoded.len() <= message.size_hint());
        prop_assert_eq!(Message::decode(encoded), Ok(message));
    }

    #[test]
    fn snapshot_descriptions_come_back(meta in meta()) {
        prop_assert_eq!(SnapshotMeta::decode(meta.encode()), Ok(meta));
    }

    #[test]
    fn a_cut_or_lengthened_message_is_refused(message in message(), at in any::<prop::sample::Index>()) {
        let encoded = message.encode();
        prop_assert!(Message::decode(encoded.slice(..at.index(encoded.len()))).is_err());
        let mut longer = encoded.to_vec();
        longer.push(0);
        prop_assert_eq!(Message::decode(longer.into()), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn decoders_take_anything(data in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz_message(&data);
        fuzz_snapshot_meta(&data);
        fuzz_change(&data);
    }

    #[test]
    fn decoders_take_damaged_messages(message in message(), flips in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..4)) {
        let mut data = message.encode().to_vec();
        for (at, value) in flips {
            let at = at.index(data.len());
            data[at] = value;
        }
        fuzz_message(&data);
    }
}

#[test]
fn without_a_book_everything_is_written_as_before_there_was_one() {
    let plain = SnapshotMeta { index: Index(300), term: Term(2), members: Members::voters([1, 2, 3]) };
    assert_eq!(&plain.encode()[..], [1, 172, 2, 2, 3, 1, 2, 3, 0, 0, 0, 0]);
    let message = |meta| Message { from: NodeId(1), to: NodeId(2), term: Term(3), body: Body::Snapshot { meta } };
    assert_eq!(message(plain.clone()).encode()[..5], [1, 1, 2, 3, 8]);
    // A directory or a member that knows nothing of books says so instead of reading one without it.
    let book = Book { retired: NodeId(7), contacts: BTreeMap::new() };
    let with = SnapshotMeta { members: Members { book: Arc::new(book), ..plain.members.clone() }, ..plain };
    assert_eq!(with.encode()[0], 2);
    assert_eq!(message(with).encode()[..5], [1, 1, 2, 3, 12]);
    let newer = SnapshotMeta::decode(Bytes::from_static(&[3]));
    assert_eq!(newer, Err(DecodeError::Version { got: 3, known: 2 }));
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let mut data = Message { from: NodeId(1), to: NodeId(2), term: Term(3), body: Body::TimeoutNow }.encode().to_vec();
    data[0] = 2;
    assert_eq!(Message::decode(data.into()), Err(DecodeError::Version { got: 2, known: 1 }));
}

#[test]
fn a_count_that_lies_allocates_nothing() {
    // An append that claims 2^40 entries, and an entry that claims 2^40 bytes.
    let lie = |tail: &[u8]| {
        let mut data = vec![1, 1, 2, 3, 1, 0, 0, 0];
        data.extend_from_slice(tail);
        Message::decode(data.into())
    };
    assert!(matches!(lie(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x20]), Err(DecodeError::TooLarge { what: "entries", .. })));
    assert!(matches!(
        lie(&[1, 1, 1, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20]),
        Err(DecodeError::TooLarge { what: "entry data", .. })
    ));
}

#[test]
fn an_entry_does_not_pin_the_buffer_it_arrived_in() {
    let entry =
        LogEntry { index: Index(2), term: Term(1), kind: EntryKind::Normal, data: Bytes::from_static(b"small") };
    let body = Body::Append { prev_index: Index(1), prev_term: Term(1), commit: Index(1), entries: vec![entry] };
    let buffer = Message { from: NodeId(1), to: NodeId(2), term: Term(1), body }.encode();
    let decoded = Message::decode(buffer.clone()).expect("it was encoded just now");
    let Body::Append { entries, .. } = decoded.body else { panic!("it was an append") };
    assert!(!buffer.as_ptr_range().contains(&entries[0].data.as_ptr()), "the data is a copy");
}
