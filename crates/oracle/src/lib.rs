//! Judges what clients saw: a history goes in, and out comes whether the promises were kept.
//!
//! It never looks inside a node and never runs one; it performs no IO and reads no clock. The simulator, tests and the
//! checked chaos run record the same [`History`] and are judged by the same code. It knows nothing of how the system works,
//! only what it promises ([`buttress_core::invariants`]).
//!
//! The way of an operation. A client records its call ([`History::invoke`]) before it leaves, and its answer
//! ([`History::complete`]) when it has come: done, with the receipt; refused; failed, where certainly nothing will come of
//! it; or **unknown**. Unknown is not failed: what timed out may take effect at any time after its call, once, or never.
//! When the run is over, what the partitions hold and, where somebody saw them, all changes of keys are added. Then
//! [`judge()`] asks each oracle:
//!
//! | oracle | id | how |
//! |---|---|---|
//! | [`keys`] | LIN-1 | searches an order of each key's operations ([`linear`]) |
//! | [`revisions`] | LIN-2, GUARD-1 | holds the order that receipts tell against what was asked and seen |
//! | [`leases`] | LEASE-3 | nothing of a lease is seen after its end was acknowledged |
//! | [`locks`] | LOCK-1 | no older token is used once a newer one was |
//! | [`records`] | RECORD-1, OFFSET-1 | each serial is where it was acknowledged, once |
//! | [`pipeline`] | PIPE-1 | folds the inputs below the cursor and compares |
//! | [`txns`] | TXN-1, LIN-2 | plays all changes, and every transaction on the state before it |
//! | [`watches`] | WATCH-1 | connections put together show every change once |
//!
//! An oracle never cries wolf: what it calls a violation is one, whatever the outcome of the operations that nobody knows
//! about. What it cannot decide it counts and says. A history is text as well ([`text`]), so that one that failed can be kept
//! and judged again.

pub mod history;
pub mod text;

pub mod linear;

pub mod keys;
pub mod revisions;

pub mod leases;
pub mod locks;
pub mod pipeline;
pub mod records;
pub mod txns;
pub mod watches;

pub mod judge;

pub use history::{
    Appended, Commit, Done, History, LogContent, OpId, Operation, Outcome, Records, Serial, Session, SessionEnd,
    Watcher, What,
};
pub use judge::{Options, Report, judge};
