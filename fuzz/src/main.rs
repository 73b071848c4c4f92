//! `buttress-fuzz`: what `cargo xtask fuzz` runs.
//!
//!     buttress-fuzz list                      every target
//!     buttress-fuzz short [TARGET…]           the short deterministic run
//!     buttress-fuzz run TARGET FILE           one input, as it is
//!     buttress-fuzz hex TARGET HEX            the same, given in hexadecimal
//!     buttress-fuzz export TARGET DIR         writes what a run starts from, one file per input
//!     buttress-fuzz shrink TARGET FILE        makes a failing input small and prints it in hexadecimal
//!     buttress-fuzz keep TARGET DIR           replaces the corpus by the small inputs of a directory

use std::{collections::BTreeSet, fs, process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use buttress_fuzz::{TARGETS, Target, from_hex, short, target, to_hex};

/// The seed of the short run.
const SEED: u64 = 1;
/// What of a long run's corpus is kept in the repository: a target's smallest inputs, that many and no larger ones.
const KEEP_INPUTS_MAX: usize = 40;
const KEEP_BYTES_MAX: usize = 256;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(words: &[&str]) -> Result<bool> {
    match words {
        ["list"] => {
            for target in TARGETS {
                println!("{:<18} {}", target.name, target.reads);
            }
            Ok(true)
        }
        ["short", names @ ..] => short_run(names),
        ["run", name, file] => one(target(name)?, &fs::read(file).with_context(|| (*file).to_owned())?),
        ["hex", name, hex] => one(target(name)?, &from_hex(hex)?),
        ["export", name, dir] => {
            fs::create_dir_all(dir)?;
            for (at, input) in target(name)?.inputs()?.iter().enumerate() {
                fs::write(format!("{dir}/start-{at:04}"), input)?;
            }
            Ok(true)
        }
        ["shrink", name, file] => {
            let target = target(name)?;
            short::quiet();
            let input = fs::read(file).with_context(|| (*file).to_owned())?;
            let Some(says) = short::fails(target, &input) else { bail!("the input does not fail") };
            told(target, &short::shrink(target, short::Failure { input, says }));
            Ok(false)
        }
        ["keep", name, dir] => keep(target(name)?, dir),
        _ => bail!(
            "usage: buttress-fuzz list | short [TARGET…] | run|shrink TARGET FILE | hex TARGET HEX | export|keep TARGET DIR"
        ),
    }
}

fn one(target: &Target, input: &[u8]) -> Result<bool> {
    (target.run)(input);
    println!("{}: {} bytes, nothing to report", target.name, input.len());
    Ok(true)
}

fn told(target: &Target, failure: &short::Failure) {
    let hex = to_hex(&failure.input);
    println!("{}: {}", target.name, failure.says);
    println!("    input ({} bytes): {hex}", failure.input.len());
    println!("    replay: cargo run -p buttress-fuzz -- hex {} {hex}", target.name);
    println!("    keep:   as a line of fuzz/regressions/{}.txt, below one that says what it was", target.name);
}

fn short_run(names: &[&str]) -> Result<bool> {
    let chosen: Vec<&Target> = if names.is_empty() {
        TARGETS.iter().collect()
    } else {
        names.iter().map(|n| target(n)).collect::<Result<_>>()?
    };
    short::quiet();
    let started = Instant::now();
    let mut failed = 0;
    for target in &chosen {
        let began = Instant::now();
        match short::run(target, SEED, target.short_inputs)? {
            None => {
                println!("{:<18} {:>6} inputs {:>6} ms", target.name, target.short_inputs, began.elapsed().as_millis())
            }
            Some(failure) => {
                failed += 1;
                told(target, &failure);
            }
        }
    }
    println!("{} targets, {failed} failed, {:.1} s", chosen.len(), started.elapsed().as_secs_f64());
    Ok(failed == 0)
}

fn keep(target: &Target, dir: &str) -> Result<bool> {
    let seeds: BTreeSet<Vec<u8>> = (target.seeds)().into_iter().collect();
    let mut inputs = Vec::new();
    for entry in fs::read_dir(dir)? {
        let input = fs::read(entry?.path())?;
        if !input.is_empty() && input.len() <= KEEP_BYTES_MAX && !seeds.contains(&input) {
            inputs.push(input);
        }
    }
    inputs.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    inputs.dedup();
    // Evenly over all sizes, so that not only the shortest stay.
    let step = inputs.len().div_ceil(KEEP_INPUTS_MAX).max(1);
    let kept: Vec<String> = inputs.iter().rev().step_by(step).rev().map(|input| to_hex(input)).collect();
    if !kept.is_empty() {
        fs::write(target.file("corpus"), kept.join("\n") + "\n")?;
    }
    println!("{}: {} of {} inputs kept", target.name, kept.len(), inputs.len());
    Ok(true)
}
