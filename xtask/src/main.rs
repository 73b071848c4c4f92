//! The repository's own chores.
//!
//!     cargo xtask tidy                     the rules of the tree, as checks
//!     cargo xtask guests [--check]         rebuild the example functions' components
//!     cargo xtask protos                   generate the code of the gRPC services from crates/coordination/proto
//!     cargo xtask bench kv|watch|log|fn-kafka|gateway|overload|half-load|fn|append|policy [--output json]   side by side; --help says more
//!     cargo xtask sim --seeds N | SEED | --minimise SEED | --regressions
//!     cargo xtask sim --mutants [--seeds N] [--fixed N] [--only a,b] [--first-only] [--output json]
//!     cargo xtask fuzz --list | --short | [TARGET…] [--seconds N] [--keep]
//!     cargo xtask model [--small] [--only MODEL] [--output json]   explores every model to its full bounds
//!     cargo xtask conformance [--server buttress|original|both] [--only a,b] [--output json]   real clients of etcd and Kafka

mod conformance;
mod fuzz;
mod guests;
mod proof;
#[cfg(feature = "protos")]
mod protos;
mod tidy;

use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

fn main() -> ExitCode {
    if let Some(code) = fuzz::as_compiler() {
        return code;
    }
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
        ["protos"] => protos(),
        ["bench", rest @ ..] if !rest.is_empty() => bench(rest),
        ["sim", rest @ ..] if !rest.is_empty() => sim(rest),
        ["fuzz", rest @ ..] => fuzz::run(rest),
        ["model", rest @ ..] => model(rest),
        ["conformance", rest @ ..] => conformance::run(rest),
        _ => bail!(
            "usage: cargo xtask tidy | guests [--check] | protos | bench kv|watch|log|fn-kafka|gateway|overload|half-load|fn|append|policy [--output json] | sim … | fuzz … | model [--output json] | conformance …"
        ),
    }
}

#[cfg(feature = "protos")]
fn protos() -> anyhow::Result<()> {
    protos::run()
}

/// The generators are built only for those who ask for them, so that the other chores start at once.
#[cfg(not(feature = "protos"))]
fn protos() -> anyhow::Result<()> {
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "xtask", "--features", "protos", "--", "protos"])
        .status()
        .context("cannot start cargo")?;
    if status.success() { Ok(()) } else { bail!("the code was not generated") }
}

/// Benchmarks of whole processes: they start the binary, and need no part of it in their own process.
const CLUSTER_BENCHES: [&str; 7] = ["kv", "watch", "log", "fn-kafka", "gateway", "overload", "half-load"];

/// Benchmarks live in a package of their own, so that nothing else builds what they compare with.
fn bench(args: &[&str]) -> anyhow::Result<()> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--release", "--locked", "--package", "buttress-bench"]);
    let clusters = CLUSTER_BENCHES.contains(&args[0]);
    // Neither they nor the policies need wasmtime.
    if clusters || args[0] == "policy" {
        cargo.arg("--no-default-features");
    }
    cargo.arg("--").args(args);
    if clusters && !args.contains(&"--binary") {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        cargo.arg("--binary").arg(conformance::build(&root)?);
    }
    let status = cargo.status().context("cannot start cargo")?;
    if status.success() { Ok(()) } else { bail!("the benchmark failed") }
}

/// The simulator has a profile of its own: optimised, with every assertion on. With mutants it is built so that it can be
/// wrong on purpose, in a directory of its own, so that it replaces no other build.
fn sim(args: &[&str]) -> anyhow::Result<()> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--locked", "--profile", "sim", "--package", "buttress-sim"]);
    if args.iter().any(|arg| ["--mutants", "--mutant"].contains(arg)) {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), std::path::PathBuf::from);
        cargo.args(["--features", "mutants"]).env("CARGO_TARGET_DIR", target.join("mutants"));
    }
    let status = cargo.arg("--").args(args).status().context("cannot start cargo")?;
    if status.success() { Ok(()) } else { bail!("the simulator found something") }
}

/// Models live in a package of their own too, so that nothing else builds the model checker.
fn model(args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--release", "--package", "buttress-model", "--"])
        .args(args)
        .status()
        .context("cannot start cargo")?;
    if status.success() { Ok(()) } else { bail!("a model does not hold, or a seeded bug was not found") }
}
