//! Bytes to typed messages and back.
//!
//! Everything in here is a pure function over buffers that the caller owns: no socket, no clock, no task. A decoder
//! never panics on what the network sends, and never allocates by a count or a length that the bytes do not bear out.

pub mod mqtt;
