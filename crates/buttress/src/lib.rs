//! The product: composes the node and the planes into one binary, and holds its command line and its demonstrations.
//!
//! [`serve`] is the composition root: it opens the listeners, starts the node, and hands every plane the same three
//! traits. [`dev`], [`demo`] and [`chaos`] start several such processes on one machine ([`cluster`]).

mod backups;

pub mod chaos;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod dev;
pub mod doctor;
pub mod engines;
mod etcd;
mod http;
pub mod locks;
pub mod logging;
mod members;
mod metrics;
pub mod mock;
pub mod orders;
mod page;
pub mod ports;
pub mod proxy;
pub mod resources;
pub mod serve;
pub mod uplink;
pub mod vitals;

// What is wrong on purpose is for the simulator alone: cargo can build the product without it only.
const _: () = assert!(!buttress_core::mutant::BUILT_IN, "the product must be built without the feature mutants");
