//! The functions plane: WebAssembly components that are triggered by HTTP requests and by batches of a topic.
//!
//! What it never does: it never changes anything but through [`buttress_core::Ledger::submit`], never relies on being
//! the only runner of a partition, never runs a guest on the thread that drives the log, and never knows how a component
//! is executed (that is [`buttress_core::Engine`]).
//!
//! The way of one batch. The [`catalogue`] follows the key space and keeps compiled components and loaded models warm.
//! On the leader, a [`runner`] per function and partition reads whole record batches from the group's cursor on, loads
//! the state rows that their keys name, and calls the guest on a worker thread. What the guest gave becomes **one
//! entry** ([`plan`]): guards on the cursor, on the function and on every model that was asked; the state changes; the
//! outputs; one audit record; and the cursor's move. So a batch is judged once, by one version and one generation of the
//! model, whatever else happens: a second runner, a new model or a new version makes a guard fail, and then nothing of
//! the entry happened.
//!
//! Where records lie in the user's own Kafka, one transaction of it holds records, state and cursor, and no keys: there a
//! partition is claimed before functions and models are read, and fenced after they were changed ([`home`]).
//!
//! | invariant | sentence |
//! |---|---|
//! | FN-1 | the ranges `[from, to)` of a function's audit records for one partition tile the topic: no hole, no overlap |
//! | FN-2 | no audit record names a generation of a model after the marker by which a later one was pushed |
//! | FN-3 | outputs and state of a batch exist exactly if its audit record does |
//! | FN-4 | a record that the function cannot handle moves to the dead-letter topic in the entry that skips it |

pub mod resource;

pub mod blob;
pub mod catalogue;
pub mod deploy;
pub mod home;
pub mod topics;

mod partitioner;
pub mod plan;
pub mod retry;
pub mod runner;
pub mod state_cache;

pub mod fuzz;
pub mod http;
pub mod stats;

mod plane;

pub use home::{Home, Homes};
pub use http::FunctionsHttp;
pub use plane::{Deps, FunctionsPlane};
