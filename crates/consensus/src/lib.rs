//! Consensus for one shard: a replicated log behind a sans-IO trait, and the [`Replica`] that applies it to a machine.

mod config;
mod consensus;
mod engine;
pub mod fuzz;
mod log;
mod message;
mod replica;
mod rng;
#[cfg(test)]
mod traps;
mod types;

pub use config::{Config, Restored};
pub use consensus::{Consensus, EngineStatus, PeerStatus, Ready, StepError};
pub use engine::RaftEngine;
pub use message::{Body, CONTEXT_BYTES_MAX, MESSAGE_ENTRIES_MAX, MESSAGE_FORMAT, Message};
pub use replica::{Applied, Input, Outputs, Persist, Replica, Status};
pub use types::{
    ENTRY_OVERHEAD_BYTES, EntryKind, HardState, LogEntry, MEMBERS_MAX, MemberChange, MemberStep, Members, NUMBER_MAX,
    ProposalError, Role, SnapshotMeta,
};
