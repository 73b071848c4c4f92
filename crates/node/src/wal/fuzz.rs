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

/// A whole directory with one segment of these bytes behind a good header: opening it recovers, cuts, or refuses.
pub fn fuzz_open(data: &[u8]) {
    use super::{Identity, Options, Wal, disk::Disk, faulty::MemDisk};
    let identity = Identity { cluster_id: "fuzz".into(), node: buttress_core::NodeId(1) };
    let disk = std::sync::Arc::new(MemDisk::new(0));
    let mut bytes = Header { epoch: 1, first_seq: 1, identity: identity.clone() }.encode();
    bytes.extend_from_slice(data);
    let file = disk.open("wal-0000000000000001.seg", super::disk::Open::Create).expect("memory takes it");
    file.write_all_at(&bytes, 0).expect("memory takes it");
    if let Ok((_, recovered)) = Wal::open(disk, identity, Options::default()) {
        let total: usize = recovered.shards.values().flat_map(|s| &s.entries).map(|e| e.data.len()).sum();
        assert!(total <= data.len());
    }
}
