//! The binary as a user meets it: real processes on loopback, real files, and what is left of both when things go wrong.

mod cluster;
mod input;
mod support;
