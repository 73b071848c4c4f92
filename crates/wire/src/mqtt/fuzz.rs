//! What must hold for any bytes whatsoever.

use bytes::BytesMut;

use super::{Packet, decode};

/// Feeds `data` whole and byte by byte: both must give the same packets and the same end, nothing may panic, and
/// every packet must survive being encoded and decoded again.
pub fn fuzz_mqtt_decode(data: &[u8]) {
    const LIMIT: usize = 64 * 1024;
    let mut whole = BytesMut::from(data);
    let mut packets = Vec::new();
    let end = loop {
        match decode(&mut whole, LIMIT) {
            Ok(Some(packet)) => packets.push(packet),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };

    let mut slow = BytesMut::new();
    let mut slow_packets = Vec::new();
    let mut slow_end = None;
    'bytes: for byte in data {
        slow.extend_from_slice(&[*byte]);
        loop {
            match decode(&mut slow, LIMIT) {
                Ok(Some(packet)) => slow_packets.push(packet),
                Ok(None) => break,
                Err(error) => {
                    slow_end = Some(error);
                    break 'bytes;
                }
            }
        }
    }
    assert_eq!(packets, slow_packets, "packets depend on how the bytes were cut");
    assert_eq!(end, slow_end, "the end depends on how the bytes were cut");

    for packet in packets {
        let mut out = BytesMut::new();
        packet.encode(&mut out);
        let again: Packet = decode(&mut out, LIMIT + 8).expect("our own packet").expect("our own packet is whole");
        assert_eq!(again, packet);
        assert!(out.is_empty(), "encoding wrote more than one packet");
    }
}
