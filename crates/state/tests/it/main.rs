//! One binary: text transcripts of every guard and part, and the machine against a naive model.

mod local;
mod model;
mod store;
mod transcripts;
