//! What the `buttress` binary is made of.

pub mod demo;
