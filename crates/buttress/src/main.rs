//! `buttress`: see [`buttress::cli`].

mod allocator;

use std::process::ExitCode;

use buttress::cli::args::{Args, Command};
use clap::Parser;

fn main() -> ExitCode {
    let args = Args::parse();
    if matches!(args.command, Command::Serve(_)) {
        allocator::give_back_at_once();
    }
    buttress::cli::run(args)
}
