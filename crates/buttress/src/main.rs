//! `buttress`: see [`buttress::cli`].

use std::process::ExitCode;

use clap::Parser;

/// A node allocates for every record it takes and every message it sends; in one profile of a
/// loaded leader about a fifth of the samples lay in glibc's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    buttress::cli::run(buttress::cli::args::Args::parse())
}
