//! Sagas: work that several services do step by step, and that is undone step by step where it cannot be finished. This
//! crate decides; it sends nothing, stores nothing and has no clock. A driver in the binary carries out what a [`Saga`]
//! asks for, and the tests do the same with replies that are lost, repeated and late.
//!
//! What it promises is the most that can be promised: transitions exactly once, because each is one entry of the log;
//! effects at least once, because a service may have done what nobody heard of. So every call carries the key `saga/step`,
//! under which a service does its part once ([`book`]), and undoing is asked for by the same key.
//!
//! The way of a saga: whoever starts it commits [`Record::Started`] together with what it is about → [`Saga::next`] says
//! what to write ([`Record::StepScheduled`]), and only what is written is sent ([`Next::Call`]): the journal is the outbox →
//! [`Saga::answered`] turns the reply into the next records → … → [`Record::Ended`]. A coordinator that starts anew folds
//! the journal ([`Saga::fold`]) and goes on: what was scheduled and has no reply is sent again under its key.
//!
//! A step's undoing is registered by scheduling the step, so before it is sent: a step of which no reply came is undone
//! too, for it may have happened. What was refused is not undone, because a refusal is a promise that nothing happened and
//! nothing will. Undoing goes backwards, one step after the other, and is tried until its attempts are spent; only then is
//! a saga [`Outcome::Stuck`], and a person must look.
//!
//! It never sends what is not in the journal, never undoes out of order, and never ends twice (SAGA-1, SAGA-2).

mod definition;
mod record;
mod saga;

pub mod book;
pub mod fuzz;

pub use definition::{ATTEMPTS_MAX, Definition, STEPS_MAX, Step};
pub use record::{Effect, Outcome, Record, decode, encode};
pub use saga::{Call, Next, Phase, Reply, Saga};
