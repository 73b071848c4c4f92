//! `buttress`: see [`buttress::cli`].

use std::process::ExitCode;

use clap::Parser;

/// A node makes and drops a few dozen small values for every request; this allocator takes a fifth of the processor time
/// off a put (docs/internals/measurements.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    buttress::cli::run(buttress::cli::args::Args::parse())
}
