//! The bytes of a segment: a header block, then frames.
//!
//! ```text
//! header  4096 bytes: magic 8 · format u32 · epoch u64 · first_seq u64 · node u64 · cluster (u16 + bytes) · zeros · crc32c u32
//! frame   magic u32 · body length u32 · seq u64 · crc32c u32 · zero u32 · body · zeros up to a multiple of 8
//! body    records: kind u8 · shard u32 · index u64 · term u64 · length u32 · payload
//! ```
//! Integers are little endian. One frame is one sync: its records were acknowledged together or not at all, and the
//! frame after it was written only once this one was on disk. So a bad frame with a good one behind it is never a torn
//! write. The frame's checksum also covers the segment's epoch, which is never used twice; so a recycled segment's old
//! frames fail it. Sequence numbers run through all segments without gaps.
//!
//! The header's checksum sits in the block's last four bytes in every format to come, so that a newer format can be
//! told from rot.

use buttress_core::{Code, Error, Index, NodeId, Term};
use bytes::Bytes;

use super::{HardState, LogEntry, Marker, disk::corrupt};

pub const FORMAT: u32 = 1;
pub const HEADER_BYTES: usize = 4096;
pub const FRAME_HEADER_BYTES: usize = 24;
/// Bytes of a record before its payload.
pub const RECORD_HEADER_BYTES: usize = 25;
/// A cluster id longer than this does not fit the header block.
pub const CLUSTER_ID_BYTES_MAX: usize = 255;
const MAGIC: &[u8; 8] = b"BUTTRWAL";
pub const FRAME_MAGIC: u32 = 0x464c_4157;
const ALIGN: usize = 8;

const ENTRY: u8 = 1;
const HARD_STATE: u8 = 2;
const MARKER: u8 = 3;
const CARRIED_MARKER: u8 = 4;

/// Whose log a directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: String,
    pub node: NodeId,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub epoch: u64,
    pub first_seq: u64,
    pub identity: Identity,
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let cluster = self.identity.cluster_id.as_bytes();
        assert!(cluster.len() <= CLUSTER_ID_BYTES_MAX, "cluster id is checked when the log is opened");
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.first_seq.to_le_bytes());
        out.extend_from_slice(&self.identity.node.0.to_le_bytes());
        out.extend_from_slice(&(cluster.len() as u16).to_le_bytes());
        out.extend_from_slice(cluster);
        out.resize(HEADER_BYTES - 4, 0);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// # Errors
    /// `CORRUPT` where the block is not a header, `FORMAT` where it is one of a newer version.
    pub fn decode(name: &str, block: &[u8]) -> Result<Self, Error> {
        let bad = |what: &str| corrupt(format_args!("log segment \"{name}\": {what}"));
        if block.len() != HEADER_BYTES || &block[..8] != MAGIC {
            return Err(bad("it does not begin with a segment header"));
        }
        let (covered, crc) = block.split_at(HEADER_BYTES - 4);
        if crc32c::crc32c(covered) != u32::from_le_bytes(crc.try_into().expect("split four bytes off")) {
            return Err(bad("the header fails its checksum"));
        }
        let format = u32_at(block, 8);
        if format != FORMAT {
            return Err(Error::new(
                Code::FORMAT,
                format!("log segment \"{name}\" has format {format}, this version knows {FORMAT}"),
            )
            .hint("run the version of buttress that wrote this directory, or a later one"));
        }
        let len = usize::from(u16::from_le_bytes([block[36], block[37]]));
        if len > CLUSTER_ID_BYTES_MAX {
            return Err(bad("the header's cluster id is too long"));
        }
        let cluster_id = std::str::from_utf8(&block[38..38 + len]).map_err(|_| bad("the cluster id is not UTF-8"))?;
        Ok(Self {
            epoch: u64_at(block, 12),
            first_seq: u64_at(block, 20),
            identity: Identity { cluster_id: cluster_id.to_owned(), node: NodeId(u64_at(block, 28)) },
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// What the 24 bytes before a frame's body say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub len: u32,
    pub seq: u64,
    pub crc: u32,
}

impl FrameHeader {
    /// `None` where no frame can begin.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < FRAME_HEADER_BYTES || u32_at(bytes, 0) != FRAME_MAGIC || u32_at(bytes, 20) != 0 {
            return None;
        }
        Some(Self { len: u32_at(bytes, 4), seq: u64_at(bytes, 8), crc: u32_at(bytes, 16) })
    }

    pub fn matches(&self, epoch: u64, body: &[u8]) -> bool {
        self.crc == checksum(epoch, self.len, self.seq, body)
    }
}

fn checksum(epoch: u64, len: u32, seq: u64, body: &[u8]) -> u32 {
    let mut head = [0u8; 20];
    head[..8].copy_from_slice(&epoch.to_le_bytes());
    head[8..12].copy_from_slice(&len.to_le_bytes());
    head[12..].copy_from_slice(&seq.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), body)
}

/// Bytes that a frame with this body takes in a segment.
pub fn frame_bytes(body: usize) -> usize {
    (FRAME_HEADER_BYTES + body).next_multiple_of(ALIGN)
}

/// The records of one commit, encoded as they are added.
#[derive(Debug)]
pub struct Batch {
    /// A frame whose header is filled in last.
    frame: Vec<u8>,
    pub(super) notes: Vec<(u32, Note)>,
}

/// What the log must remember of a record once it is on disk.
#[derive(Clone, Debug)]
pub(super) enum Note {
    Entry { index: u64 },
    HardState(HardState),
    Marker(Marker),
}

impl Default for Batch {
    fn default() -> Self {
        Self { frame: vec![0; FRAME_HEADER_BYTES], notes: Vec::new() }
    }
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }

    /// Bytes of the frame so far.
    pub fn bytes(&self) -> usize {
        self.frame.len()
    }

    /// Makes room for a commit of about so many bytes at once: a buffer that doubles as it fills ends up to twice as large and
    /// is copied on the way.
    pub fn reserve(&mut self, bytes: usize) {
        self.frame.reserve_exact(frame_bytes(bytes));
    }

    pub fn hard_state(&mut self, shard: u32, state: HardState) {
        self.record(HARD_STATE, shard, state.commit.0, state.term.0, &[&state.vote.0.to_le_bytes()]);
        self.notes.push((shard, Note::HardState(state)));
    }

    /// Adds an entry. Whatever the log has from the entry's index on is replaced.
    pub fn entry(&mut self, shard: u32, entry: &LogEntry) {
        self.record(ENTRY, shard, entry.index.0, entry.term.0, &[&[entry.kind], &entry.data]);
        self.notes.push((shard, Note::Entry { index: entry.index.0 }));
    }

    /// Says that a snapshot was put in place: the log restarts behind it.
    pub fn marker(&mut self, shard: u32, marker: &Marker) {
        self.record(MARKER, shard, marker.index.0, marker.term.0, &[&marker.meta]);
        self.notes.push((shard, Note::Marker(marker.clone())));
    }

    /// Repeats what still counts at the head of a new segment, so that older ones may go.
    pub(super) fn carry(&mut self, shard: u32, state: Option<HardState>, marker: Option<&Marker>) {
        if let Some(state) = state {
            self.record(HARD_STATE, shard, state.commit.0, state.term.0, &[&state.vote.0.to_le_bytes()]);
        }
        if let Some(marker) = marker {
            self.record(CARRIED_MARKER, shard, marker.index.0, marker.term.0, &[&marker.meta]);
        }
    }

    fn record(&mut self, kind: u8, shard: u32, index: u64, term: u64, payload: &[&[u8]]) {
        let len: usize = payload.iter().map(|p| p.len()).sum();
        self.frame.reserve(RECORD_HEADER_BYTES + len);
        self.frame.push(kind);
        self.frame.extend_from_slice(&shard.to_le_bytes());
        self.frame.extend_from_slice(&index.to_le_bytes());
        self.frame.extend_from_slice(&term.to_le_bytes());
        self.frame.extend_from_slice(&u32::try_from(len).expect("entries are bounded far below 4 GiB").to_le_bytes());
        for part in payload {
            self.frame.extend_from_slice(part);
        }
    }

    /// Fills in the header, pads, and gives the frame; more zeros may be appended to it.
    pub(super) fn seal(&mut self, epoch: u64, seq: u64) -> &mut Vec<u8> {
        let body = self.frame.len() - FRAME_HEADER_BYTES;
        let len = u32::try_from(body).expect("commits are bounded far below 4 GiB");
        let crc = checksum(epoch, len, seq, &self.frame[FRAME_HEADER_BYTES..]);
        self.frame[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        self.frame[4..8].copy_from_slice(&len.to_le_bytes());
        self.frame[8..16].copy_from_slice(&seq.to_le_bytes());
        self.frame[16..20].copy_from_slice(&crc.to_le_bytes());
        self.frame.resize(frame_bytes(body), 0);
        &mut self.frame
    }

    /// Empties the batch, and gives memory back that only an unusually large commit needed.
    pub fn clear(&mut self) {
        self.frame.clear();
        self.frame.shrink_to(BATCH_KEEP_BYTES);
        self.frame.resize(FRAME_HEADER_BYTES, 0);
        self.notes.clear();
    }
}

/// Buffer that a writer keeps between commits: a hundred requests of 4 KiB. What a larger commit needs it asks for again.
const BATCH_KEEP_BYTES: usize = 512 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Entry(LogEntry),
    HardState(HardState),
    Marker(Marker),
    /// A marker repeated at the head of a segment; the log does not restart at it again.
    CarriedMarker(Marker),
}

impl Record {
    /// What the log must remember of it. A marker that was carried over counts for nothing that comes behind it.
    pub(super) fn note(&self) -> Option<Note> {
        Some(match self {
            Record::Entry(entry) => Note::Entry { index: entry.index.0 },
            Record::HardState(state) => Note::HardState(*state),
            Record::Marker(marker) => Note::Marker(marker.clone()),
            Record::CarriedMarker(_) => return None,
        })
    }
}

/// A record as the frame has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'a> {
    kind: u8,
    pub shard: u32,
    pub index: u64,
    term: u64,
    payload: &'a [u8],
}

impl Raw<'_> {
    pub fn is_entry(&self) -> bool {
        self.kind == ENTRY
    }

    pub fn is_marker(&self) -> bool {
        self.kind == MARKER
    }

    /// The entry that it is.
    pub fn to_entry(self) -> Result<LogEntry, &'static str> {
        let (kind, data) = self.payload.split_first().ok_or("an entry has no kind")?;
        let data = Bytes::copy_from_slice(data);
        Ok(LogEntry { index: Index(self.index), term: Term(self.term), kind: *kind, data })
    }

    fn to_record(self) -> Result<Record, &'static str> {
        let (index, term) = (Index(self.index), Term(self.term));
        let marker = || Marker { index, term, meta: Bytes::copy_from_slice(self.payload) };
        Ok(match self.kind {
            ENTRY => Record::Entry(self.to_entry()?),
            HARD_STATE => {
                let vote = self.payload.try_into().map_err(|_| "a hard state has the wrong length")?;
                Record::HardState(HardState { term, vote: NodeId(u64::from_le_bytes(vote)), commit: index })
            }
            MARKER => Record::Marker(marker()),
            CARRIED_MARKER => Record::CarriedMarker(marker()),
            _ => return Err("a record has an unknown kind"),
        })
    }
}

/// The records of a verified frame's body, in order; nothing behind a bad one.
pub(super) fn raw_records(body: &[u8]) -> impl Iterator<Item = Result<Raw<'_>, &'static str>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let cut = std::mem::take(&mut rest);
        if cut.len() < RECORD_HEADER_BYTES {
            return Some(Err("a record's header is cut"));
        }
        let (head, tail) = cut.split_at(RECORD_HEADER_BYTES);
        let len = u32_at(head, 21) as usize;
        if tail.len() < len {
            return Some(Err("a record is longer than its frame"));
        }
        let (payload, tail) = tail.split_at(len);
        rest = tail;
        Some(Ok(Raw { kind: head[0], shard: u32_at(head, 1), index: u64_at(head, 5), term: u64_at(head, 13), payload }))
    })
}

/// Takes a verified frame's body apart.
///
/// # Errors
/// What is wrong with it, without a place.
pub fn records(body: &[u8]) -> Result<Vec<(u32, Record)>, &'static str> {
    raw_records(body).map(|raw| raw.and_then(|raw| Ok((raw.shard, raw.to_record()?)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many entries of this size as a job of the writer has, and the job.
    fn job(entries: u64, bytes: usize) -> crate::Job {
        let entry = |index| LogEntry { index: Index(index), term: Term(1), kind: 0, data: Bytes::from(vec![7; bytes]) };
        crate::Job { entries: (1..=entries).map(entry).collect(), ..crate::Job::default() }
    }

    #[test]
    fn a_commit_takes_the_memory_that_its_jobs_stated_and_gives_a_large_one_back() {
        let mut batch = Batch::default();
        for (entries, bytes) in [(1, 100), (4000, 64), (40, 100_000), (1, 3_000_000)] {
            let job = job(entries, bytes);
            batch.reserve(job.bytes() as usize);
            let reserved = batch.frame.capacity();
            job.add_to(&mut batch);
            batch.seal(1, 1);
            assert_eq!(batch.frame.capacity(), reserved, "{entries} entries of {bytes} made the buffer grow");
            batch.clear();
            assert!(batch.frame.capacity() <= BATCH_KEEP_BYTES, "{} are kept", batch.frame.capacity());
        }
    }
}
