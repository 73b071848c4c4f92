//! The repository's own chores.
//!
//!     cargo xtask tidy                     the rules of the tree, as checks
//!     cargo xtask guests [--check]         rebuild the example functions' components
//!     cargo xtask bench log|fn [--output json]

mod guests;
mod tidy;

use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> anyhow::Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["tidy"] => tidy::run(),
        ["guests"] => guests::run(false),
        ["guests", "--check"] => guests::run(true),
        ["bench", rest @ ..] if !rest.is_empty() => bench(rest),
        _ => bail!("usage: cargo xtask tidy | guests [--check] | bench log|fn [--output json]"),
    }
}

/// Benchmarks live in a package of their own, so that nothing else builds what they compare with.
fn bench(args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--release", "--package", "buttress-bench", "--"])
        .args(args)
        .status()
        .context("cannot start cargo")?;
    if status.success() { Ok(()) } else { bail!("the benchmark failed") }
}
