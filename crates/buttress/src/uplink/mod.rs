//! Uplinks: records of local topics, stored here and forwarded to a Kafka or a Buttress somewhere else. What is decided is
//! decided by `buttress_uplink`; here it is carried out.
//!
//! An uplink is a resource in the key space ([`resource`]), so it survives whichever node made it. On the leader, and only
//! there, [`plane`] runs a task per partition of its topics: it asks the lane what to do, reads the local log through
//! [`Stream`](buttress_core::Stream), and hands parcels to the [`target`]. That only the leader does so saves work; that
//! nothing is sent twice does not rest on it, but on the position in the target. [`http`] serves `/v1/uplinks`.

pub mod resource;

pub mod target;

pub mod secrets;

mod gate;
mod telling;

pub mod plane;

pub mod http;

pub use plane::{Deps, Uplinks};
