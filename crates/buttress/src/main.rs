//! `buttress`: see [`buttress::cli`].

use std::process::ExitCode;

use clap::Parser;

/// A node allocates for every record it takes and every message it sends; glibc's allocator took a fifth of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    buttress::cli::run(buttress::cli::args::Args::parse())
}
