//! The bytes of a record segment: a header, then one frame per record batch.
//!
//! ```text
//! header  32 bytes: magic 8 · format u32 · log u32 · base offset i64 · crc32c u32 · zero u32
//! frame   48 bytes: crc32c u32 · length u32 · index u64 · committed_at u64 · base offset i64 · last offset i64 ·
//!         max timestamp i64; then the batch
//! ```
//! Integers are little endian. A frame's checksum also covers the log's number, so that a block of another log that a
//! disk returns by mistake fails it.

use buttress_core::{
    Code, Error, Index, LogId, Offset, TimeMs, ledger::Batch, limits::ENTRY_BYTES_MAX, store::StoredBatch,
};
use bytes::Bytes;

use crate::wal::disk::{DiskFile, corrupt, disk_error, read_full};

pub const FORMAT: u32 = 1;
pub const HEADER_BYTES: usize = 32;
pub const FRAME_HEADER_BYTES: usize = 48;
const MAGIC: &[u8; 8] = b"BUTTRREC";

pub fn encode_header(log: LogId, base: Offset) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    out[12..16].copy_from_slice(&log.0.to_le_bytes());
    out[16..24].copy_from_slice(&base.0.to_le_bytes());
    let crc = crc32c::crc32c(&out[..24]);
    out[24..28].copy_from_slice(&crc.to_le_bytes());
    out
}

/// # Errors
/// `CORRUPT` or `FORMAT`, with `name` in the message.
pub fn check_header(name: &str, bytes: &[u8], log: LogId, base: Offset) -> Result<(), Error> {
    if bytes.len() < HEADER_BYTES || &bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..24]) != u32_at(bytes, 24) {
        return Err(corrupt(format_args!("record segment \"{name}\" does not begin with a good header")));
    }
    let format = u32_at(bytes, 8);
    if format != FORMAT {
        return Err(Error::new(
            Code::FORMAT,
            format!("record segment \"{name}\" has format {format}, this version knows {FORMAT}"),
        )
        .hint("run the version of buttress that wrote this directory, or a later one"));
    }
    if u32_at(bytes, 12) != log.0 || u64_at(bytes, 16) as i64 != base.0 {
        return Err(corrupt(format_args!("record segment \"{name}\" says it is another log's")));
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A frame without its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub crc: u32,
    pub len: u32,
    pub index: Index,
    pub committed_at: TimeMs,
    pub base_offset: Offset,
    pub last_offset: Offset,
    pub max_timestamp_ms: i64,
}

impl Frame {
    /// Bytes of the frame with its batch.
    pub fn total(&self) -> usize {
        FRAME_HEADER_BYTES + self.len as usize
    }

    /// `None` where these bytes cannot be a frame's head.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < FRAME_HEADER_BYTES {
            return None;
        }
        let frame = Self {
            crc: u32_at(bytes, 0),
            len: u32_at(bytes, 4),
            index: Index(u64_at(bytes, 8)),
            committed_at: TimeMs(u64_at(bytes, 16)),
            base_offset: Offset(u64_at(bytes, 24) as i64),
            last_offset: Offset(u64_at(bytes, 32) as i64),
            max_timestamp_ms: u64_at(bytes, 40) as i64,
        };
        let sane =
            frame.len as usize <= ENTRY_BYTES_MAX && frame.base_offset.0 >= 0 && frame.last_offset >= frame.base_offset;
        sane.then_some(frame)
    }

    /// Whether head and batch, which follow each other in `bytes`, are what was written.
    pub fn verify(&self, log: LogId, bytes: &[u8]) -> bool {
        bytes.len() >= self.total() && checksum(log, &bytes[4..self.total()]) == self.crc
    }

    pub fn batch(&self, bytes: Bytes) -> Batch {
        Batch {
            base_offset: self.base_offset,
            last_offset: self.last_offset,
            max_timestamp_ms: self.max_timestamp_ms,
            index: self.index,
            committed_at: self.committed_at,
            bytes,
        }
    }
}

fn checksum(log: LogId, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&log.0.to_le_bytes()), bytes)
}

/// Appends the batch's frame.
pub fn encode(batch: &StoredBatch, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(
        &u32::try_from(batch.bytes.len()).expect("batches are bounded far below 4 GiB").to_le_bytes(),
    );
    out.extend_from_slice(&batch.index.0.to_le_bytes());
    out.extend_from_slice(&batch.committed_at.0.to_le_bytes());
    out.extend_from_slice(&batch.base_offset.0.to_le_bytes());
    out.extend_from_slice(&batch.last_offset.0.to_le_bytes());
    out.extend_from_slice(&batch.max_timestamp_ms.to_le_bytes());
    out.extend_from_slice(&batch.bytes);
    let crc = checksum(batch.log, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Bytes between two entries of a segment's sparse index. A cold read scans this much at most; the index of 100 GB
/// takes 19 MB of memory.
pub const SPARSE_BYTES: u64 = 128 * 1024;

/// One entry of the sparse index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sparse {
    pub base: Offset,
    /// Where the batch's frame begins in the file.
    pub at: u64,
    /// The largest timestamp in the segment before this batch.
    pub max_timestamp_before: i64,
}

/// What is known of a segment without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub base: Offset,
    /// Offset of the last record in it.
    pub last: Offset,
    /// Length of the file as far as it counts.
    pub bytes: u64,
    pub max_timestamp_ms: i64,
    pub first_committed_at: TimeMs,
    pub last_committed_at: TimeMs,
    pub sparse: Vec<Sparse>,
}

impl Segment {
    pub fn new(base: Offset, committed_at: TimeMs) -> Self {
        Self {
            base,
            last: Offset(base.0 - 1),
            bytes: HEADER_BYTES as u64,
            max_timestamp_ms: i64::MIN,
            first_committed_at: committed_at,
            last_committed_at: committed_at,
            sparse: Vec::new(),
        }
    }

    /// Takes note of a frame that was written at the segment's end.
    pub fn push(&mut self, frame: &Frame) {
        if self.sparse.last().is_none_or(|s| self.bytes - s.at >= SPARSE_BYTES) {
            self.sparse.push(Sparse {
                base: frame.base_offset,
                at: self.bytes,
                max_timestamp_before: self.max_timestamp_ms,
            });
        }
        self.bytes += frame.total() as u64;
        self.last = frame.last_offset;
        self.max_timestamp_ms = self.max_timestamp_ms.max(frame.max_timestamp_ms);
        self.last_committed_at = self.last_committed_at.max(frame.committed_at);
    }

    /// Where to begin to look for the batch with this offset.
    pub fn position_of(&self, offset: Offset) -> u64 {
        let at = self.sparse.partition_point(|s| s.base <= offset);
        self.sparse.get(at.saturating_sub(1)).map_or(HEADER_BYTES as u64, |s| s.at)
    }

    /// Where to begin to look for the first batch with a timestamp of at least this.
    pub fn position_of_time(&self, timestamp_ms: i64) -> u64 {
        let at = self.sparse.partition_point(|s| s.max_timestamp_before < timestamp_ms);
        self.sparse.get(at.saturating_sub(1)).map_or(HEADER_BYTES as u64, |s| s.at)
    }

    /// Record bytes, without the file's header.
    pub fn data_bytes(&self) -> u64 {
        self.bytes - HEADER_BYTES as u64
    }
}

/// Walks the frames of a segment file from `at` to `end`, in windows, and hands each verified frame to `visit` until it
/// answers false.
///
/// # Errors
/// `CORRUPT` at the first frame that is not whole or not good, `DISK` where reading fails.
pub fn walk(
    file: &dyn DiskFile,
    name: &str,
    log: LogId,
    mut at: u64,
    end: u64,
    mut visit: impl FnMut(&Frame, Bytes) -> bool,
) -> Result<(), Error> {
    const WINDOW: usize = SPARSE_BYTES as usize + 64 * 1024;
    let bad = |at| corrupt(format_args!("record segment \"{name}\" fails its checksum at byte {at}"));
    let mut want = WINDOW;
    while at < end {
        let len = (want as u64).min(end - at) as usize;
        let mut window = vec![0; len];
        let got =
            read_full(file, &mut window, at).map_err(|e| disk_error(format_args!("cannot read \"{name}\""), &e))?;
        if got < len {
            return Err(corrupt(format_args!(
                "record segment \"{name}\" ends at byte {}, not at {end}",
                at + got as u64
            )));
        }
        let window = Bytes::from(window);
        let mut used = 0;
        want = WINDOW;
        while window.len() - used >= FRAME_HEADER_BYTES {
            let frame = Frame::decode(&window[used..]).ok_or_else(|| bad(at + used as u64))?;
            if at + (used + frame.total()) as u64 > end {
                return Err(bad(at + used as u64));
            }
            if window.len() - used < frame.total() {
                want = want.max(frame.total());
                break;
            }
            if !frame.verify(log, &window[used..]) {
                return Err(bad(at + used as u64));
            }
            if !visit(&frame, window.slice(used + FRAME_HEADER_BYTES..used + frame.total())) {
                return Ok(());
            }
            used += frame.total();
        }
        if used == 0 && at + FRAME_HEADER_BYTES as u64 > end {
            return Err(bad(at));
        }
        at += used as u64;
    }
    Ok(())
}
