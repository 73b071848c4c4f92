//! The events plane: protocols in, entries out.
//!
//! Edges turn what devices and clients send into entries and acknowledge only what is committed. None of them keeps
//! state that a failover could lose.

pub mod kafka;
