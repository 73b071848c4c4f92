//! The layers from outside, in virtual time: tokio's clock stands still until everything waits.

#[cfg(feature = "etcd")]
mod cluster;
mod dropped;
mod parity;
mod policies;
mod server;
mod support;
