//! Bytes to typed messages and back, for the protocols that the planes speak.
//!
//! This crate never performs IO and never trusts a count: every decoder reads from bounded input, allocates only for
//! bytes that have arrived, and answers malformed input with an error.

mod compression;
pub mod fuzz;
pub mod kafka;
pub mod mqtt;
pub mod records;
