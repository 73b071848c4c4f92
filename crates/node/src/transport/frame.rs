//! The bytes between two nodes.
//!
//! A connection opens with a hello that names protocol version, cluster, sender, receiver and lane, and in version 2 the
//! address at which the sender is reached, for a receiver whose log does not name it yet; then come frames:
//! length (u32), CRC32C of kind and payload (u32), kind (u8), payload. All integers are little endian. A frame that is
//! too long, fails its checksum or has an unknown kind closes the connection: the sender reconnects and Raft resends.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use buttress_core::{DecodeError, NodeId, Reader, Writer, limits::ENTRY_BYTES_MAX};

/// A hello without an address, which every version reads, and one with it. A receiver closes on any other.
const PROTOCOL: u8 = 1;
const PROTOCOL_ADDRESS: u8 = 2;
const MAGIC: &[u8; 4] = b"BTRS";
const HEADER_BYTES: usize = 9;
/// A message holds one of the largest entries, or several up to what [`super::APPEND_BYTES_MAX`] lets into one; twice the
/// largest entry is never reached.
pub const FRAME_BYTES_MAX: usize = 2 * ENTRY_BYTES_MAX;
/// Two texts of at most 260 bytes and a few numbers.
const HELLO_BYTES_MAX: usize = 640;
const HELLO_TEXT_BYTES_MAX: usize = 260;

/// What a connection carries. Control never waits behind data, and a snapshot never delays either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    Control,
    Data,
    Snapshot,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub cluster_id: String,
    pub from: NodeId,
    pub to: NodeId,
    pub lane: Lane,
    /// Where the sender takes its peers' connections. Founders leave it out, for everybody's configuration has it.
    pub address: Option<String>,
}

impl Hello {
    /// Length-prefixed (u16) hello.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::default();
        w.raw(MAGIC);
        w.u8(if self.address.is_some() { PROTOCOL_ADDRESS } else { PROTOCOL });
        w.bytes(self.cluster_id.as_bytes());
        w.varint(self.from.0);
        w.varint(self.to.0);
        w.u8(self.lane as u8);
        if let Some(address) = &self.address {
            w.bytes(address.as_bytes());
        }
        let body = w.finish();
        let mut out = BytesMut::with_capacity(2 + body.len());
        out.put_u16_le(u16::try_from(body.len()).expect("a hello is short"));
        out.put_slice(&body);
        out.freeze()
    }

    pub fn decode(body: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        if r.take(4, "magic")? != MAGIC[..] {
            return Err(DecodeError::Tag { what: "magic", tag: 0 });
        }
        let got = r.u8("protocol")?;
        if got != PROTOCOL && got != PROTOCOL_ADDRESS {
            return Err(DecodeError::Version { got, known: PROTOCOL_ADDRESS });
        }
        let mut hello = Self {
            cluster_id: r.string("cluster id", HELLO_TEXT_BYTES_MAX)?,
            from: NodeId(r.varint("from")?),
            to: NodeId(r.varint("to")?),
            lane: match r.u8("lane")? {
                0 => Lane::Control,
                1 => Lane::Data,
                2 => Lane::Snapshot,
                tag => return Err(DecodeError::Tag { what: "lane", tag: tag.into() }),
            },
            address: None,
        };
        if got == PROTOCOL_ADDRESS {
            hello.address = Some(r.string("peer address", HELLO_TEXT_BYTES_MAX)?);
        }
        r.end()?;
        Ok(hello)
    }

    /// Length of the hello that `prefix` announces.
    pub fn length(prefix: [u8; 2]) -> Result<usize, DecodeError> {
        let got = usize::from(u16::from_le_bytes(prefix));
        if got > HELLO_BYTES_MAX {
            return Err(DecodeError::TooLarge { what: "hello", got: got as u64, limit: HELLO_BYTES_MAX as u64 });
        }
        Ok(got)
    }
}

/// One thing that a node tells another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A consensus message.
    Raft(Bytes),
    /// An encoded entry that the sender wants proposed. Its outcome is not answered: the sender sees it applied.
    Propose {
        number: u64,
        entry: Bytes,
    },
    /// The proposal was not taken, for example because the receiver does not lead.
    NotTaken {
        number: u64,
        overloaded: bool,
    },
    /// A piece of a snapshot.
    SnapshotChunk(Bytes),
    /// All pieces were sent; the message makes the receiver install them.
    SnapshotEnd(Bytes),
    /// A request that only the leader carries out, such as a change of members, and its answer.
    Ask {
        number: u64,
        request: Bytes,
    },
    Answer {
        number: u64,
        answer: Bytes,
    },
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Self::Raft(_) => 1,
            Self::Propose { .. } => 2,
            Self::NotTaken { .. } => 3,
            Self::SnapshotChunk(_) => 4,
            Self::SnapshotEnd(_) => 5,
            Self::Ask { .. } => 6,
            Self::Answer { .. } => 7,
        }
    }

    /// Bytes of the payload; what the queues count.
    pub fn size(&self) -> usize {
        HEADER_BYTES
            + match self {
                Self::Raft(b) | Self::SnapshotChunk(b) | Self::SnapshotEnd(b) => b.len(),
                Self::Propose { entry: bytes, .. }
                | Self::Ask { request: bytes, .. }
                | Self::Answer { answer: bytes, .. } => 8 + bytes.len(),
                Self::NotTaken { .. } => 9,
            }
    }

    pub fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.size());
        out.put_u32_le((self.size() - HEADER_BYTES) as u32);
        let crc_at = out.len();
        out.put_u32_le(0);
        out.put_u8(self.kind());
        match self {
            Self::Raft(b) | Self::SnapshotChunk(b) | Self::SnapshotEnd(b) => out.put_slice(b),
            Self::Propose { number, entry: bytes }
            | Self::Ask { number, request: bytes }
            | Self::Answer { number, answer: bytes } => {
                out.put_u64_le(*number);
                out.put_slice(bytes);
            }
            Self::NotTaken { number, overloaded } => {
                out.put_u64_le(*number);
                out.put_u8((*overloaded).into());
            }
        }
        let crc = crc32c::crc32c(&out[crc_at + 4..]);
        out[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Takes the first whole frame out of `buffer`; `None` when more bytes are needed. The payload is copied, so that a
    /// small frame does not keep a large receive buffer alive.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, DecodeError> {
        if buffer.len() < HEADER_BYTES {
            return Ok(None);
        }
        let len = u32::from_le_bytes(buffer[..4].try_into().expect("four bytes")) as usize;
        if len > FRAME_BYTES_MAX {
            return Err(DecodeError::TooLarge { what: "frame", got: len as u64, limit: FRAME_BYTES_MAX as u64 });
        }
        if buffer.len() < HEADER_BYTES + len {
            // Room grows with what has really come, not with what the length claims.
            buffer.reserve((HEADER_BYTES + len - buffer.len()).min(256 * 1024));
            return Ok(None);
        }
        let crc = u32::from_le_bytes(buffer[4..8].try_into().expect("four bytes"));
        if crc32c::crc32c(&buffer[8..HEADER_BYTES + len]) != crc {
            return Err(DecodeError::Tag { what: "frame checksum", tag: crc.into() });
        }
        let kind = buffer[8];
        let mut payload = Bytes::copy_from_slice(&buffer[HEADER_BYTES..HEADER_BYTES + len]);
        buffer.advance(HEADER_BYTES + len);
        Ok(Some(match kind {
            1 => Self::Raft(payload),
            2 if len >= 8 => Self::Propose { number: payload.get_u64_le(), entry: payload },
            3 if len == 9 => Self::NotTaken { number: payload.get_u64_le(), overloaded: payload.get_u8() != 0 },
            4 => Self::SnapshotChunk(payload),
            5 => Self::SnapshotEnd(payload),
            6 if len >= 8 => Self::Ask { number: payload.get_u64_le(), request: payload },
            7 if len >= 8 => Self::Answer { number: payload.get_u64_le(), answer: payload },
            tag => return Err(DecodeError::Tag { what: "frame", tag: tag.into() }),
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame() -> impl Strategy<Value = Frame> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            bytes.clone().prop_map(Frame::Raft),
            (any::<u64>(), bytes.clone()).prop_map(|(number, entry)| Frame::Propose { number, entry }),
            (any::<u64>(), any::<bool>()).prop_map(|(number, overloaded)| Frame::NotTaken { number, overloaded }),
            bytes.clone().prop_map(Frame::SnapshotChunk),
            (any::<u64>(), bytes.clone()).prop_map(|(number, request)| Frame::Ask { number, request }),
            (any::<u64>(), bytes.clone()).prop_map(|(number, answer)| Frame::Answer { number, answer }),
            bytes.prop_map(Frame::SnapshotEnd),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_back_however_they_are_cut(frames in proptest::collection::vec(frame(), 0..8), cut in 1usize..64) {
            let mut wire = BytesMut::new();
            frames.iter().for_each(|f| f.encode(&mut wire));
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = Frame::decode(&mut buffer).unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn a_changed_bit_is_noticed(frame in frame(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut wire = BytesMut::new();
            frame.encode(&mut wire);
            let at = 4 + at.index(wire.len() - 4);
            wire[at] ^= 1 << bit;
            prop_assert!(Frame::decode(&mut wire).is_err());
        }

        #[test]
        fn garbage_is_refused(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            super::super::fuzz::fuzz_frames(&data);
        }
    }

    #[test]
    fn a_hello_comes_back_and_a_newer_one_is_refused() {
        for (address, version) in [(None, 1), (Some("127.0.0.1:7000".to_owned()), 2)] {
            let hello = Hello { cluster_id: "c1".into(), from: NodeId(1), to: NodeId(2), lane: Lane::Data, address };
            let wire = hello.encode();
            assert_eq!(Hello::length([wire[0], wire[1]]).unwrap(), wire.len() - 2);
            assert_eq!(wire[6], version, "the oldest version that says everything");
            assert_eq!(Hello::decode(wire.slice(2..)).unwrap(), hello);
            let mut newer = wire[2..].to_vec();
            newer[4] = 9;
            assert_eq!(Hello::decode(newer.into()), Err(DecodeError::Version { got: 9, known: 2 }));
        }
    }
}
