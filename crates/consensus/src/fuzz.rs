//! Decoders as plain functions over any bytes, for the fuzzer and for proptest. None may panic, and what decodes must
//! come out the same after a round trip.

use bytes::Bytes;

use crate::{Message, SnapshotMeta, types::Change};

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
