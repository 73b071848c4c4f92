//! Consensus for one shard: a replicated log behind a sans-IO trait, and the [`Replica`] that applies it to a machine.
//!
//! This crate never performs IO, never reads a clock, never draws a random number that its seed does not determine,
//! and never parses protobuf from bytes that another process wrote. A replica is stepped: it takes what happened
//! ([`Input`]) and gives what follows ([`Outputs`]). The same replica runs in a node and in the seeded world of the
//! tests; nothing in it knows which.
//!
//! # The way of a proposal
//!
//! ```text
//!  Propose{tag} ─▶ one append for all proposals of the step ─┬─▶ messages   (may go before the local sync)
//!                                                            └─▶ persist ─▶ sync ─▶ Persisted{ticket}
//!  Receive{accepted} from a quorum, and durable here ─▶ Machine::apply ─▶ applied{tag, effects}
//! ```
//!
//! # The host's loop
//!
//! A host drains its inbox, steps once, and carries out what came out. Its duties are listed at the head of
//! `replica.rs`; the order of [`Outputs`]' fields is a good order to work in. It ticks all its replicas at a fixed pace
//! (50 to 100 ms), and draws a fresh [`Config::seed`] at every start.
//!
//! - A new group: every founder starts from [`Restored::founding`], made durable first.
//! - A newcomer starts from `Restored::default()` under an id that was never used, and is added as a learner. It is
//!   ready to vote when the leader's [`PeerStatus::matched`] of it is near [`EngineStatus::last`].
//! - A restart: the last durable [`HardState`], the store's [`SnapshotMeta`] (kept with every checkpoint, from
//!   [`Replica::snapshot_meta`]), and the log as the write-ahead log holds it. An error then, or [`Outputs::fatal`]
//!   later, means that something acknowledged was lost; the machine may come back under a new id only.
//!
//! # A machine of your own
//!
//! ```
//! use buttress_consensus::{Config, Input, Replica, Restored};
//! use buttress_core::{Index, Machine, NodeId, Term};
//! use bytes::Bytes;
//!
//! /// A machine: adds up what is committed.
//! #[derive(Default)]
//! struct Sum {
//!     applied: (Index, Term),
//!     sum: u64,
//! }
//!
//! impl Machine for Sum {
//!     type Effects = u64;
//!
//!     fn applied(&self) -> (Index, Term) {
//!         self.applied
//!     }
//!
//!     fn apply(&mut self, index: Index, term: Term, entry: Bytes) -> u64 {
//!         self.sum += entry.iter().map(|byte| u64::from(*byte)).sum::<u64>();
//!         self.applied = (index, term);
//!         self.sum
//!     }
//! }
//!
//! // A group of one. A real host keeps `restored` on disk before the first step.
//! let restored = Restored::founding(&[NodeId(1)]);
//! let mut replica = Replica::new(Config::new(NodeId(1), 42), restored, Sum::default())?;
//!
//! let mut inbox = Vec::new();
//! let mut answer = None;
//! for turn in 0.. {
//!     inbox.push(Input::Tick);
//!     let mut out = replica.step(turn * 50, std::mem::take(&mut inbox));
//!     for (to, message) in out.messages.drain(..) {
//!         unreachable!("nobody else is here: {to} {message:?}"); // a host sends message.encode()
//!     }
//!     if let Some(persist) = out.persist {
//!         // A host writes and syncs hard state and entries here, then sends `persist.then_send`.
//!         inbox.push(Input::Persisted { ticket: persist.ticket });
//!     }
//!     if out.role.is_some_and(|role| role.is_leader) {
//!         inbox.push(Input::Propose { tag: 7, data: Bytes::from_static(&[1, 2, 39]) });
//!     }
//!     if let Some(done) = out.applied.iter().find(|applied| applied.tag == Some(7)) {
//!         answer = Some(done.effects);
//!         break;
//!     }
//! }
//! assert_eq!(answer, Some(42));
//! # Ok::<(), buttress_core::Error>(())
//! ```

mod types;

mod message;

mod consensus;

mod config;
mod log;
mod rng;

mod engine;

pub mod quorum;
mod replica;

pub mod fuzz;
#[cfg(test)]
mod traps;

pub use config::{Config, Restored};
pub use consensus::{Consensus, EngineStatus, PeerStatus, Ready, StepError};
pub use engine::RaftEngine;
pub use message::{Body, CONTEXT_BYTES_MAX, MESSAGE_ENTRIES_MAX, MESSAGE_FORMAT, Message};
pub use replica::{Applied, Input, Outputs, Persist, Replica, Status};
pub use types::{
    Book, CONTACT_TEXT_BYTES_MAX, Contact, ENTRY_OVERHEAD_BYTES, EntryKind, Fetch, HardState, LogEntry, MEMBERS_MAX,
    MemberChange, MemberStep, Members, NUMBER_MAX, ProposalError, Role, SnapshotMeta,
};
