//! `buttress`: see [`buttress::cli`].

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    buttress::cli::run(buttress::cli::args::Args::parse())
}
