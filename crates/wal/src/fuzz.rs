//! Decoders under arbitrary bytes: no panic, and no allocation that the input does not pay for.

use super::format::{FrameHeader, HEADER_BYTES, Header, records};

/// A segment's header block, a frame's header, and a frame's body.
pub fn fuzz_segment(data: &[u8]) {
    let _ = Header::decode("fuzz", data);
    if data.len() >= HEADER_BYTES {
        let _ = Header::decode("fuzz", &data[..HEADER_BYTES]);
    }
    if let Some(frame) = FrameHeader::decode(data) {
        let _ = frame.matches(1, data);
    }
    if let Ok(parts) = records(data) {
        // Re-encoding what was understood takes exactly as many bytes.
        let bytes: usize = parts.iter().map(|(_, r)| record_bytes(r)).sum();
        assert_eq!(bytes, data.len());
    }
}

fn record_bytes(record: &super::format::Record) -> usize {
    use super::format::{RECORD_HEADER_BYTES, Record};
    RECORD_HEADER_BYTES
        + match record {
            Record::Entry(entry) => 1 + entry.data.len(),
            Record::HardState(_) => 8,
            Record::Marker(marker) | Record::CarriedMarker(marker) => marker.meta.len(),
        }
}

/// Nothing is zeroed ahead, which would be all that a run does.
fn options() -> super::Options {
    super::Options { fill_bytes: 0, ..super::Options::default() }
}

/// A whole directory with one segment of these bytes behind a good header: opening it recovers, cuts, or refuses.
pub fn fuzz_open(data: &[u8]) {
    use super::{Identity, Wal, disk::Disk, faulty::MemDisk};
    let identity = Identity { cluster_id: "fuzz".into(), node: buttress_core::NodeId(1) };
    let disk = std::sync::Arc::new(MemDisk::new(0));
    let mut bytes = Header { epoch: 1, first_seq: 1, identity: identity.clone() }.encode();
    bytes.extend_from_slice(data);
    let file = disk.open("wal-0000000000000001.seg", super::disk::Open::Create).expect("memory takes it");
    file.write_all_at(&bytes, 0).expect("memory takes it");
    if let Ok((_, recovered)) = Wal::open(disk, identity, options()) {
        let total: usize = recovered.shards.values().flat_map(|s| &s.entries).map(|e| e.data.len()).sum();
        assert!(total <= data.len());
    }
}

/// A log whose frames all have good checksums, and a store that stands anywhere: what a node with a bug, or a hand with a
/// hex editor, could leave. The first three bytes are the store's index and term and how many voters it knows; then come
/// the frames' bodies, each with its length in two bytes. It is refused, or a replica starts from it and runs.
///
/// # Panics
/// Where it is neither.
pub fn fuzz_restore(data: &[u8]) {
    use std::sync::Arc;

    use buttress_consensus::{Config, Input, Members, Replica, SnapshotMeta};
    use buttress_core::{Index, Machine, NodeId, Term};
    use bytes::Bytes;

    use super::{
        Identity, Wal,
        disk::{Disk, Open},
        faulty::MemDisk,
        format::{FRAME_MAGIC, frame_bytes},
        recovery::{Stored, job, restore},
    };

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

    let [index, term, voters, rest @ ..] = data else { return };
    let stands = match index {
        0 => (Index(0), Term(0)),
        _ => (Index((*index).into()), Term((*term).into())),
    };
    let identity = Identity { cluster_id: "fuzz".into(), node: NodeId(1) };
    let mut bytes = Header { epoch: 1, first_seq: 1, identity: identity.clone() }.encode();
    let (mut rest, mut seq) = (rest, 1u64);
    while let [high, low, tail @ ..] = rest {
        let (body, tail) = tail.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(tail.len()));
        rest = tail;
        let start = bytes.len();
        let len = body.len() as u32;
        let covered = [&1u64.to_le_bytes()[..], &len.to_le_bytes(), &seq.to_le_bytes(), body].concat();
        bytes.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&covered[8..20]);
        bytes.extend_from_slice(&crc32c::crc32c(&covered).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body);
        bytes.resize(start + frame_bytes(body.len()), 0);
        seq += 1;
    }
    let disk = Arc::new(MemDisk::new(0));
    let file = disk.open("wal-0000000000000001.seg", Open::Create).expect("memory takes it");
    file.write_all_at(&bytes, 0).expect("memory takes it");
    let Ok((mut log, mut recovered)) = Wal::open(disk, identity, options()) else { return };
    let members = Members::voters(1..=u64::from(voters % 3) + 1);
    let meta = SnapshotMeta { index: stands.0, term: stands.1, members };
    let stored = Stored { index: stands.0, term: stands.1, meta: meta.encode() };
    let founders = [NodeId(1), NodeId(2), NodeId(3)];
    let Ok(restored) = restore(&founders, 1000, 0, &mut log, recovered.take(0), &stored) else { return };
    let Ok(mut replica) = Replica::new(Config::new(NodeId(1), 1), restored, Counts(stands)) else { return };
    let mut batch = crate::Batch::default();
    for _ in 0..50 {
        let mut inputs = vec![Input::Tick];
        loop {
            let mut out = replica.step(0, inputs);
            inputs = Vec::new();
            if let Some(persist) = &mut out.persist {
                let ticket = persist.ticket;
                job(0, persist).add_to(&mut batch);
                log.commit(&mut batch).expect("memory takes it");
                batch.clear();
                inputs.push(Input::Persisted { ticket });
            } else if !out.more {
                break;
            }
        }
    }
}
