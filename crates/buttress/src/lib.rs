//! The product: composes the node and the planes into one binary, and holds its command line and its demonstrations.
//!
//! [`serve`] is the composition root: it opens the listeners, starts the node, and hands every plane the same three
//! traits. [`dev`] and [`demo`] start several such processes on one machine ([`cluster`]).

pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod dev;
mod http;
pub mod logging;
mod metrics;
pub mod ports;
pub mod serve;
