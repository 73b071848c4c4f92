//! Decoders as plain functions over any bytes, for the fuzzer and for proptest. None may panic, and what decodes must
//! come out the same after a round trip.

use buttress_core::{Index, Machine, NodeId, Term};
use bytes::Bytes;

use crate::{Config, Input, MemberStep, Message, Replica, Restored, SnapshotMeta, types::Change};

pub fn fuzz_message(data: &[u8]) {
    if let Ok(message) = Message::decode(Bytes::copy_from_slice(data)) {
        let again = Message::decode(message.encode()).expect("what was decoded can be encoded and decoded");
        assert_eq!(message, again, "a round trip changes nothing");
        let _ = message.check();
        let _ = format!("{message:?}");
    }
}

pub fn fuzz_snapshot_meta(data: &[u8]) {
    if let Ok(meta) = SnapshotMeta::decode(Bytes::copy_from_slice(data)) {
        assert_eq!(SnapshotMeta::decode(meta.encode()).as_ref(), Ok(&meta), "a round trip changes nothing");
        let _ = meta.members.is_valid();
    }
}

pub fn fuzz_change(data: &[u8]) {
    if let Ok(change) = Change::decode(Bytes::copy_from_slice(data)) {
        assert_eq!(Change::decode(change.encode()).as_ref(), Ok(&change), "a round trip changes nothing");
    }
}

/// Logged changes of members, for a fuzzer to start from.
pub fn encoded_changes(founders: &[NodeId], steps: &[MemberStep]) -> Vec<Vec<u8>> {
    let changes = [
        Change::Found(founders.to_vec()),
        Change::Steps { steps: steps.to_vec(), contacts: Vec::new() },
        Change::Leave,
    ];
    changes.iter().map(|change| change.encode().to_vec()).collect()
}

/// A machine that only counts.
struct Counts((Index, Term));

impl Machine for Counts {
    type Effects = ();

    fn applied(&self) -> (Index, Term) {
        self.0
    }

    fn apply(&mut self, index: Index, term: Term, _: Bytes) {
        self.0 = (index, term);
    }
}

/// A replica among messages that no correct member would send: each has its length in two bytes before it; a length of
/// zero is ten ticks, which is how it comes to campaign and to lead.
///
/// # Panics
/// Where a member can make another one panic.
pub fn fuzz_step(data: &[u8]) {
    let founders = [NodeId(1), NodeId(2), NodeId(3)];
    let mut replica =
        Replica::new(Config::new(NodeId(1), 1), Restored::founding(&founders), Counts(Default::default()))
            .expect("a founder starts");
    let mut rest = data;
    while let [high, low, tail @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (message, tail) = tail.split_at(length.min(tail.len()));
        rest = tail;
        let mut inputs = match Message::decode(Bytes::copy_from_slice(message)) {
            _ if length == 0 => (0..10).map(|_| Input::Tick).collect(),
            Ok(message) => vec![Input::Receive { from: message.from, message }],
            Err(_) => continue,
        };
        loop {
            let out = replica.step(0, inputs);
            inputs = Vec::new();
            inputs.extend(out.persist.map(|persist| Input::Persisted { ticket: persist.ticket }));
            if let Some(snapshot) = out.install {
                let machine = Counts((snapshot.index, snapshot.term));
                inputs.push(Input::Installed { snapshot, machine: Box::new(machine) });
            }
            if inputs.is_empty() && !out.more {
                break;
            }
        }
    }
}
