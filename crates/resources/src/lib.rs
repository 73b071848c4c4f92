//! Resources: what users write in YAML, one document each, with `kind`, `name` and `spec`.
//!
//! This crate knows the kinds and their fields and reads documents. It never opens a file, asks a network or changes
//! anything: whoever applies resources does.
//!
//! A text becomes trees that know where everything stands ([`document`]); each tree is walked along the schema of its
//! kind ([`kinds`]) and then held against what no schema says ([`rules`]); what is left is a [`Resource`], and what is
//! wrong is told with file, line and what would be right ([`check`], [`finding`]). Which route takes a request is
//! decided by the [`matcher`], here and in the gateway alike.

pub mod document;
pub mod finding;
pub mod flaw;
pub mod nearest;
pub mod units;

pub mod function;
pub mod listener;
pub mod model;
pub mod route;
pub mod topic;

pub mod kinds;

pub mod matcher;
pub mod rules;

pub mod check;

pub mod kept;

pub mod diff;
pub mod yaml;

pub mod fuzz;

#[cfg(test)]
mod tests;

pub use check::{Resource, read};
