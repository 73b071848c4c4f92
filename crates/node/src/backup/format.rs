//! The bytes of a backup.
//!
//! ```text
//! file    preamble · frame(Header) · frame(Chunk)* · frame(Trailer)
//! preamble  16 bytes: magic 8 · format u32 · crc32c u32 of the twelve before
//! frame     16 bytes: kind u8 · zero 3 · length u32 · number u32 · crc32c u32; then the body
//! ```
//! Integers are little endian. A frame's checksum covers its head up to the checksum, and its body; the number counts
//! frames from 0, so none is lost, doubled or swapped unnoticed. A chunk's body is a chunk of the snapshot's stream as
//! nodes send it to each other. The trailer counts frames and bytes and holds the SHA-256 of everything before it. A
//! fourth kind, `Failed`, ends a stream that the node could not complete; it never ends a file.

use buttress_core::{Code, DecodeError, Error, Index, NodeId, Reader, Term, TimeMs, Writer, ledger::Member};
use bytes::{Buf, Bytes, BytesMut};
use sha2::{Digest, Sha256};

use crate::{store::CHUNK_BYTES_MAX, wal::format::CLUSTER_ID_BYTES_MAX};

pub const FORMAT: u32 = 1;
pub const PREAMBLE_BYTES: usize = 16;
pub const FRAME_HEAD_BYTES: usize = 16;
/// A chunk is the largest body. A header with 64 members of five texts is below 164 KiB.
pub const FRAME_BODY_BYTES_MAX: usize = CHUNK_BYTES_MAX;
const MAGIC: &[u8; 8] = b"BUTTRBTB";
const MEMBERS_MAX: usize = buttress_consensus::MEMBERS_MAX;
/// Names and addresses of members. What is longer is cut off: a header is for people, a restore takes no member from it.
const TEXT_BYTES_MAX: usize = 512;
const MESSAGE_BYTES_MAX: usize = 4096;

const HEADER: u8 = 1;
const CHUNK: u8 = 2;
const TRAILER: u8 = 3;
const FAILED: u8 = 4;

/// What a backup is the state of, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The program that wrote it.
    pub version: String,
    pub cluster_id: String,
    /// Who was asked.
    pub node: NodeId,
    pub index: Index,
    pub term: Term,
    /// The node's wall clock when it began.
    pub taken_at: TimeMs,
    /// Whether it holds everything that was acknowledged before it was asked for, on any node.
    pub linearizable: bool,
    pub members: Vec<Member>,
    /// The members that voted at the index.
    pub voters: Vec<NodeId>,
}

impl Header {
    fn encode(&self) -> Bytes {
        let mut w = Writer::default();
        w.bytes(self.version.as_bytes());
        w.bytes(self.cluster_id.as_bytes());
        w.varint(self.node.0);
        w.varint(self.index.0);
        w.varint(self.term.0);
        w.varint(self.taken_at.0);
        w.u8(self.linearizable.into());
        w.list(&self.members[..self.members.len().min(MEMBERS_MAX)], |w, m| {
            w.varint(m.id.0);
            for text in [&m.name, &m.peer, &m.kafka, &m.mqtt, &m.http] {
                w.bytes(clip(text, TEXT_BYTES_MAX).as_bytes());
            }
        });
        w.list(&self.voters, |w, id| w.varint(id.0));
        w.finish()
    }

    fn decode(body: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        let header = Self {
            version: r.string("version", TEXT_BYTES_MAX)?,
            cluster_id: r.string("cluster id", CLUSTER_ID_BYTES_MAX)?,
            node: NodeId(r.varint("node")?),
            index: Index(r.varint("index")?),
            term: Term(r.varint("term")?),
            taken_at: TimeMs(r.varint("time")?),
            linearizable: match r.u8("linearizable")? {
                0 => false,
                1 => true,
                tag => return Err(DecodeError::Tag { what: "linearizable", tag: tag.into() }),
            },
            members: r.list("members", MEMBERS_MAX, |r| {
                let id = NodeId(r.varint("member")?);
                let mut text = |what| r.string(what, TEXT_BYTES_MAX);
                Ok(Member {
                    id,
                    name: text("name")?,
                    peer: text("peer address")?,
                    kafka: text("kafka address")?,
                    mqtt: text("mqtt address")?,
                    http: text("http address")?,
                    ..Member::default()
                })
            })?,
            voters: r.list("voters", MEMBERS_MAX, |r| Ok(NodeId(r.varint("voter")?)))?,
        };
        r.end()?;
        Ok(header)
    }
}

/// What came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    pub chunks: u64,
    /// Bytes of the chunks' bodies.
    pub chunk_bytes: u64,
    /// Of every byte of the file before this frame.
    pub sha256: [u8; 32],
}

impl Trailer {
    fn encode(&self) -> Bytes {
        let mut w = Writer::default();
        w.varint(self.chunks);
        w.varint(self.chunk_bytes);
        w.raw(&self.sha256);
        w.finish()
    }

    fn decode(body: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        let trailer = Self {
            chunks: r.varint("chunks")?,
            chunk_bytes: r.varint("bytes")?,
            sha256: r.take(32, "digest")?[..].try_into().expect("as many bytes were taken"),
        };
        r.end()?;
        Ok(trailer)
    }

    /// The digest in hex, as `sha256sum` prints one.
    pub fn sha256_hex(&self) -> String {
        self.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// One part of a backup, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Header(Header),
    Chunk(Bytes),
    Trailer(Trailer),
}

/// As much of a text as fits.
fn clip(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), body)
}

/// Writes the frames of one backup.
pub struct Encoder {
    number: u32,
    hash: Sha256,
    chunks: u64,
    chunk_bytes: u64,
}

impl Encoder {
    /// The encoder, and the file's first bytes.
    pub fn begin(header: &Header) -> (Self, Bytes) {
        let mut out = BytesMut::new();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        let mut encoder = Self { number: 0, hash: Sha256::new(), chunks: 0, chunk_bytes: 0 };
        encoder.hash.update(&out);
        out.extend_from_slice(&encoder.frame(HEADER, &header.encode()));
        (encoder, out.freeze())
    }

    pub fn chunk(&mut self, chunk: &Bytes) -> Bytes {
        self.chunks += 1;
        self.chunk_bytes += chunk.len() as u64;
        self.frame(CHUNK, chunk)
    }

    pub fn end(mut self) -> Bytes {
        let sha256 = self.hash.clone().finalize().into();
        let trailer = Trailer { chunks: self.chunks, chunk_bytes: self.chunk_bytes, sha256 };
        self.frame(TRAILER, &trailer.encode())
    }

    /// Says why there will be no end.
    pub fn failed(mut self, error: &Error) -> Bytes {
        let mut w = Writer::default();
        w.bytes(error.code.0.as_bytes());
        w.bytes(clip(&error.message, MESSAGE_BYTES_MAX).as_bytes());
        self.frame(FAILED, &w.finish())
    }

    fn frame(&mut self, kind: u8, body: &[u8]) -> Bytes {
        assert!(body.len() <= FRAME_BODY_BYTES_MAX, "a frame of {} bytes", body.len());
        let mut out = BytesMut::with_capacity(FRAME_HEAD_BYTES + body.len());
        out.extend_from_slice(&[kind, 0, 0, 0]);
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        let crc = checksum(&out, body);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(body);
        self.hash.update(&out);
        self.number += 1;
        out.freeze()
    }
}

/// Takes a backup's bytes in pieces of any size, and gives its parts once each is verified.
pub struct Decoder {
    input: BytesMut,
    /// Where in the file `input` begins.
    at: u64,
    /// The file's format was looked at.
    begun: bool,
    number: u32,
    hash: Sha256,
    chunks: u64,
    chunk_bytes: u64,
    header: bool,
    trailer: Option<Trailer>,
}

fn damaged(at: u64, what: impl std::fmt::Display) -> Error {
    Error::new(Code::BACKUP_DAMAGED, format!("the backup is damaged at byte {at}: {what}"))
        .hint("take another copy or another backup; nothing was written")
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            input: BytesMut::new(),
            at: 0,
            begun: false,
            number: 0,
            hash: Sha256::new(),
            chunks: 0,
            chunk_bytes: 0,
            header: false,
            trailer: None,
        }
    }
}

impl Decoder {
    /// Bytes that follow what came so far. The caller takes all parts before it pushes more, so no more than a frame and a
    /// piece are ever kept.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The next part; `None` where more bytes are needed.
    ///
    /// # Errors
    /// `BACKUP_DAMAGED` with the place, `FORMAT` for one that a newer version wrote; what the node said where the stream
    /// ends because the node could not go on.
    pub fn next_part(&mut self) -> Result<Option<Part>, Error> {
        if !self.begun {
            if self.input.len() < PREAMBLE_BYTES {
                // Another kind of file is named as such, however short.
                let known = self.input.len().min(MAGIC.len());
                return if self.input[..known] == MAGIC[..known] { Ok(None) } else { Err(self.no_backup()) };
            }
            self.begin()?;
        }
        if self.trailer.is_some() {
            return match self.input.len() {
                0 => Ok(None),
                left => Err(damaged(self.at, format_args!("{left} bytes or more follow its end"))),
            };
        }
        let Some((head, _)) = self.input.split_first_chunk::<FRAME_HEAD_BYTES>() else { return Ok(None) };
        let field = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let (kind, len, number, crc) = (head[0], field(4) as usize, field(8), field(12));
        if len > FRAME_BODY_BYTES_MAX {
            return Err(damaged(self.at, format_args!("frame {} says it has {len} bytes", self.number)));
        }
        let total = FRAME_HEAD_BYTES + len;
        if self.input.len() < total {
            return Ok(None);
        }
        if checksum(&self.input[..FRAME_HEAD_BYTES - 4], &self.input[FRAME_HEAD_BYTES..total]) != crc {
            return Err(damaged(self.at, format_args!("frame {} fails its checksum", self.number)));
        }
        if number != self.number {
            return Err(damaged(self.at, format_args!("frame {number} stands where {} belongs", self.number)));
        }
        if self.header == (kind == HEADER) {
            return Err(damaged(self.at, "its header is not where it belongs"));
        }
        let place = self.at;
        let malformed = |error: DecodeError| damaged(place, format_args!("frame {number}: {error}"));
        let frame = self.input.split_to(total).freeze();
        let body = frame.slice(FRAME_HEAD_BYTES..);
        let part = match kind {
            HEADER => {
                self.header = true;
                Part::Header(Header::decode(body).map_err(malformed)?)
            }
            CHUNK => {
                self.chunks += 1;
                self.chunk_bytes += len as u64;
                Part::Chunk(body)
            }
            TRAILER => {
                let trailer = Trailer::decode(body).map_err(malformed)?;
                let came = Trailer {
                    chunks: self.chunks,
                    chunk_bytes: self.chunk_bytes,
                    sha256: self.hash.clone().finalize().into(),
                };
                if trailer != came {
                    return Err(damaged(place, "what came is not what its trailer counts"));
                }
                self.trailer = Some(trailer);
                Part::Trailer(trailer)
            }
            FAILED => return Err(said(body).unwrap_or_else(malformed)),
            kind => return Err(damaged(place, format_args!("frame {number} is of the unknown kind {kind}"))),
        };
        self.hash.update(&frame);
        self.number = self.number.wrapping_add(1);
        self.at += total as u64;
        Ok(Some(part))
    }

    fn no_backup(&self) -> Error {
        Error::new(Code::BACKUP_DAMAGED, "the file is not a backup: it does not begin as one")
            .hint("backups are written by: buttress backup --to FILE.btb")
    }

    fn begin(&mut self) -> Result<(), Error> {
        let field = |at: usize| u32::from_le_bytes(self.input[at..at + 4].try_into().expect("four bytes"));
        if self.input[..MAGIC.len()] != MAGIC[..] {
            return Err(self.no_backup());
        }
        if crc32c::crc32c(&self.input[..12]) != field(12) {
            return Err(damaged(0, "its first 16 bytes fail their checksum"));
        }
        let format = field(8);
        if format != FORMAT {
            return Err(Error::new(
                Code::FORMAT,
                format!("the backup has format {format}, this version knows {FORMAT}"),
            )
            .hint("use the version of buttress that wrote it, or a later one"));
        }
        self.hash.update(&self.input[..PREAMBLE_BYTES]);
        self.input.advance(PREAMBLE_BYTES);
        self.at = PREAMBLE_BYTES as u64;
        self.begun = true;
        Ok(())
    }

    /// How many bytes were taken as good.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// To be called when no more bytes come.
    ///
    /// # Errors
    /// `BACKUP_DAMAGED` if it ends before its trailer.
    pub fn finish(&self) -> Result<Trailer, Error> {
        self.trailer.ok_or_else(|| {
            let ends = self.at + self.input.len() as u64;
            let what =
                if ends == 0 { "it is empty".into() } else { format!("it ends at byte {ends}, before its trailer") };
            Error::new(Code::BACKUP_DAMAGED, format!("the backup is not complete: {what}"))
                .hint("take another copy or another backup; nothing was written")
        })
    }
}

/// What the node said, with its own code.
fn said(body: Bytes) -> Result<Error, DecodeError> {
    let mut r = Reader::new(body);
    let code = r.string("code", 16)?;
    let message = r.string("message", MESSAGE_BYTES_MAX)?;
    r.end()?;
    let known = Code::ALL.iter().map(|(known, _)| *known).find(|known| known.0 == code);
    Ok(Error::new(known.unwrap_or(Code::BACKUP_DAMAGED), format!("the node could not go on: {message}"))
        .hint("see its log; another node may be asked with --server"))
}
