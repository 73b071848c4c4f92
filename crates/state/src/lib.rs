//! What the log applies: keys, topics, cursors, leases, timers, function state and remembered results.
//!
//! This crate never performs IO, never reads a clock and never draws a random number. It is handed committed entries in
//! the order of their index and a [`Store`](buttress_core::Store) to write to, and two machines that were handed the
//! same entries are equal byte for byte.
//!
//! One entry goes through it like this: [`Machine::apply`](buttress_core::Machine::apply) decodes it, looks whether its
//! request was answered before (`requests`), holds every guard and every part against the state (`check`), evaluates its transaction
//! (`keys::txn`), and only when nothing stands against it changes anything: topics, leases, keys, function state, appends, cursors, timers, and what
//! is due. Everything that changed leaves as exactly one [`WriteBatch`](buttress_core::WriteBatch), from whose rows
//! [`Machine::open`] builds the same machine again, and the host gets [`Effects`]: the answer, and whom to wake.
//!
//! What must always hold is listed, with ids, in [`invariants`].

pub mod machine;

mod changes;
mod check;
mod effects;

pub mod cursors;
pub mod keys;
pub mod leases;
pub mod requests;
pub mod timers;
pub mod topics;

pub mod census;
pub mod fuzz;
pub mod image;
pub mod invariants;
pub mod local;
mod mem_store;

pub use effects::{Effects, TopicEvent};
pub use keys::{Changed, KeyEvents, Page, PageLimits, ReadError};
pub use machine::{Limits, Machine};
pub use mem_store::MemStore;
