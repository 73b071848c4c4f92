//! Decoders under arbitrary bytes: no panic, and no allocation that the input does not pay for.

use bytes::Bytes;

use super::{
    frames::{self, FRAME_HEADER_BYTES, Frame},
    root, rows,
    snapshot::{Item, decode_chunk, encode_chunk},
};
use crate::wal::Identity;
use buttress_core::{LogId, NodeId, Offset};

/// Frames of a record segment.
pub fn fuzz_frame(data: &[u8]) {
    let _ = frames::check_header("fuzz", data, LogId(1), Offset(0));
    if let Some(frame) = Frame::decode(data) {
        assert!(frame.total() >= FRAME_HEADER_BYTES);
        let _ = frame.verify(LogId(1), data);
    }
}

/// A chunk of a snapshot, and an item of its stream.
pub fn fuzz_snapshot(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let _ = decode_chunk(0, bytes.clone());
    if let Some((kind, body)) = data.split_first() {
        let _ = Item::decode(*kind, Bytes::copy_from_slice(body));
    }
}

/// A chunk whose checksum holds, around any payload.
pub fn chunk(number: u32, payload: &[u8]) -> Bytes {
    encode_chunk(number, payload)
}

/// What a checkpoint says of itself, and the file that names the store.
pub fn fuzz_checkpoint(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(segment) = rows::decode_segment(Offset(0), bytes.clone()) {
        let _ = (segment.data_bytes(), segment.position_of(Offset(5)), segment.position_of_time(5));
        assert_eq!(rows::decode_segment(Offset(0), rows::encode_segment(&segment)), Ok(segment));
    }
    if let Ok(row) = rows::decode_log(bytes.clone()) {
        assert_eq!(rows::decode_log(rows::encode_log(row)), Ok(row));
    }
    let _ = rows::Head::decode(bytes);
    let _ = root::decode(data, &Identity { cluster_id: "fuzz".into(), node: NodeId(1) });
}
