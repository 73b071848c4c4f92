//! Backups: the exact state at one index as one file, and a cluster begun from such a file.
//!
//! **Taking one.** A read barrier (or, for a stale one, what this node has applied) gives the index that the backup must
//! reach. The node begins a checkpoint if its last one is older, and the file is made from that checkpoint: rows, record
//! logs and everything that a function needs, which lies in the key space. The node's task does nothing but begin the
//! checkpoint. A checkpoint that is being read stays readable while the node goes on; it costs the disk what retention
//! and compaction would have freed, so whoever streams it away bounds how long that may take.
//!
//! **The file** ([`format`]) says what it is, and every byte of it lies under a checksum: frames for the place of a
//! mistake, a SHA-256 at the end for the whole. [`verify`] reads it as deeply as can be without building a store.
//!
//! **Restoring one** ([`restore()`]) builds the data directory of one node of a new cluster: the store from the file, and a
//! write-ahead log that says "a snapshot at this index, with these members", which is what a node's log says after it
//! has installed a snapshot. The node's first start is then an ordinary one; there is no second way in. A restored
//! cluster is the old one that slept since that index: terms, revisions, offsets, remembered results and deadlines of
//! leases go on from there. What a deadline has passed while it slept ends when it wakes.

pub mod format;
pub mod fuzz;
mod restore;
mod stream;
mod verify;

pub use format::{Decoder, Header, Part, Trailer};
pub use restore::{Progress, RestoreOptions, refuse_unfinished, restore};
pub use stream::BackupStream;
pub use verify::{Verified, Verifier, verify};
