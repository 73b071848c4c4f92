//! Drives a replica for real: the write-ahead log, the store, the connections between nodes, and the task that owns them.
//!
//! This crate never knows a plane or a protocol of users: it takes entries and gives receipts. A request goes through it
//! like this: [`runtime::Handle`] hands an entry to the node's task ([`runtime`]), which steps the replica; what must be
//! durable goes to the [write-ahead log](buttress_wal), what other nodes must hear to the [`transport`]; what was applied is already in the
//! [`store`], and the submitter gets its receipt.

pub mod backup;
pub mod metrics;
pub mod runtime;
pub mod store;
pub mod transport;

pub use buttress_wal as wal;

/// The arithmetic of members, for tools that look ahead.
pub mod quorum {
    pub use buttress_consensus::{MemberStep, Members, quorum::*};
}
