//! The decoder under arbitrary bytes: no panic, no allocation that the input does not pay for, and nothing that is not a
//! whole backup is ever taken for one.

use bytes::Bytes;

use super::{
    format::{Encoder, Header},
    verify::Verifier,
};
use buttress_core::{Index, NodeId, Term, TimeMs};

/// Arbitrary bytes as a backup: as they are, and as the body of frames whose checksums hold, so that what lies behind the
/// checksums is reached too.
///
/// # Panics
/// Where anything of it is taken for a whole backup that it is not.
pub fn fuzz_backup(data: &[u8]) {
    let mut verifier = Verifier::new(&["/"]);
    if verifier.push(data).is_ok() {
        let _ = verifier.finish();
    }
    let header = Header {
        version: "fuzz".into(),
        cluster_id: "fuzz".into(),
        node: NodeId(1),
        index: Index(1),
        term: Term(1),
        taken_at: TimeMs(0),
        linearizable: true,
        members: Vec::new(),
        voters: Vec::new(),
    };
    let (mut encoder, mut file) = Encoder::begin(&header);
    let mut bytes = file.to_vec();
    for (number, body) in data.chunks(512).enumerate() {
        bytes.extend_from_slice(&encoder.chunk(&crate::store::fuzz::chunk(number as u32, body)));
    }
    bytes.extend_from_slice(&encoder.end());
    file = Bytes::from(bytes);
    let mut verifier = Verifier::new(&["/"]);
    // In uneven pieces, as a network gives them.
    let whole = file.chunks(97).try_for_each(|piece| verifier.push(piece)).is_ok();
    if whole && let Ok(verified) = verifier.finish() {
        assert_eq!(verified.bytes, file.len() as u64);
    }
    // Whatever it is, without its last byte it is not whole.
    let mut verifier = Verifier::new(&["/"]);
    if verifier.push(&file[..file.len() - 1]).is_ok() {
        assert!(verifier.finish().is_err(), "a part was taken for the whole");
    }
}
