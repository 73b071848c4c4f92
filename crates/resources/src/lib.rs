//! Resources: what users write in YAML, one document each, with `kind`, `name` and `spec`.
//!
//! This crate knows the kinds and their fields and reads documents. It never opens a file, asks a network or changes
//! anything: whoever applies resources does.

pub mod flaw;
pub mod units;

pub mod listener;
pub mod route;

pub mod matcher;
