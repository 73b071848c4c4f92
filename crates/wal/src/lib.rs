//! The write-ahead log: what makes an acknowledgement true.
//!
//! One log per node, shared by all shards. Everything that queued while the last sync ran goes to disk in one write and
//! one `fdatasync`; there is no timer. [`Wal`] is the log itself, without threads; [`Writer`] is the thread around
//! it. Bytes: [`format`]. Files: segments `wal-<epoch>.seg`, and `spare-<epoch>.seg` that wait to be used again.
//!
//! The log never repairs itself into silence. A torn tail, that is, a last frame of the last segment that is not whole
//! and has nothing whole behind it, was never acknowledged and is left out. Anything else that fails its checksum
//! is `CORRUPT` and stops the node. A failed write or sync is final: nothing is retried and nothing is acknowledged
//! after it, because what the kernel did with the dirty pages is not known.
//!
//! The first thing an opened log does is to start a new segment. So a torn tail is never written over, and its remains
//! can never be mistaken for anything: the new segment's header says which frame it begins with.
//!
//! The log knows nothing of consensus: entries are opaque and have an index and a term. [`recovery`] joins the two.

pub mod disk;
pub mod faulty;
pub mod format;
pub mod fuzz;
mod log;
mod reader;
pub mod recovery;
mod stats;
mod writer;

#[cfg(test)]
mod tests;

use buttress_core::{Index, NodeId, Term};
use bytes::Bytes;

pub use disk::{DirDisk, Disk, DiskFile};
pub use format::{Batch, Identity};
pub use log::{Options, Recovered, ShardLog, Wal};
pub use reader::Reader;
pub use recovery::{Stored, restore};
pub use stats::{Histogram, WalStats};
pub use writer::{COMMIT_BYTES_MAX, Event, Job, Writer};

/// One entry as the log keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    pub index: Index,
    pub term: Term,
    /// Meaning is the caller's: normal entry, configuration change.
    pub kind: u8,
    pub data: Bytes,
}

/// What a voter must never forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: Term,
    /// Zero for nobody.
    pub vote: NodeId,
    pub commit: Index,
}

/// A snapshot took the place of the log up to `index`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    pub index: Index,
    pub term: Term,
    /// The caller's, such as the members at `index`.
    pub meta: Bytes,
}
