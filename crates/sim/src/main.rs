//! The simulator's command line.
//!
//! ```text
//! buttress-sim --seeds N [--first-seed S] [--minutes M] [--jobs J] [--output json]
//! buttress-sim SEED [--without 3,7,9] [--ops N] [--until-us T] [--workloads a,b]   one seed, with its event log
//! buttress-sim --minimise SEED                                                     shrinks a failing seed
//! buttress-sim --regressions                                                       every seed that once found something
//! buttress-sim --mutants [--seeds N] [--fixed N] [--only a,b] [--first-only] [--jobs J] [--output json]
//! buttress-sim SEED --mutant NAME …                                                a seed with a mutant
//! ```

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use buttress_core::{Mutant, mutant};
use buttress_sim::{Counts, Lines, Options, Outcome, minimise::minimise, run_seed, schedule::Kind};

/// A sixth of a run is spent on small allocations, which this one does faster than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seeds that once found something, with what it was.
const REGRESSIONS: &str = include_str!("../regressions.txt");
/// From so many seeds on, a kind of fault that never happened is an error of the harness.
const COVERED_FROM: u64 = 500;
/// Runs that one minimisation may take.
const MINIMISE_RUNS_MAX: u64 = 600;
/// Failures after which a run of many seeds ends.
const FAILURES_MAX: usize = 10;

/// What must happen now and then in many seeds, besides every kind of fault.
const COVERAGE: &[&str] = &[
    "acknowledged",
    "checkpoints",
    "client_retries",
    "commits_cut_short",
    "converged",
    "crashes_after_install",
    "crashes_before_install",
    "damage_found",
    "disk_failures",
    "elections",
    "expiries",
    "group_commits",
    "group_commits_fenced",
    "linearizable_reads",
    "leases_kept",
    "log_reads_found",
    "log_reads_too_late",
    "member_changes_applied",
    "messages_cut",
    "messages_dropped",
    "messages_repeated",
    "nodes_removed",
    "nodes_replaced",
    "refused",
    "renewals",
    "replayed",
    "restarts",
    "snapshots_installed",
    "torn_tails",
    "unknown_outcomes",
];

/// Seeds after which a mutant has survived.
#[cfg(feature = "mutants")]
const MUTANT_SEEDS_MAX: u64 = 2_000;
/// Seeds over which it is counted how many catch a mutant.
#[cfg(feature = "mutants")]
const MUTANT_SEEDS_FIXED: u64 = 200;

#[derive(Default)]
struct Arguments {
    seed: Option<u64>,
    seeds: Option<u64>,
    first_seed: Option<u64>,
    minutes: Option<f64>,
    jobs: Option<usize>,
    json: bool,
    minimise: Option<u64>,
    regressions: bool,
    mutants: bool,
    only: Vec<Mutant>,
    fixed: Option<u64>,
    first_only: bool,
    options: Options,
}

fn parse() -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} wants a value"));
        match word.as_str() {
            "--seeds" => arguments.seeds = Some(number(&value()?)?),
            "--first-seed" => arguments.first_seed = Some(number(&value()?)?),
            "--minutes" => arguments.minutes = Some(value()?.parse().map_err(|_| "--minutes wants a number")?),
            "--jobs" => arguments.jobs = Some(number(&value()?)? as usize),
            "--output" => arguments.json = value()? == "json",
            "--minimise" => arguments.minimise = Some(number(&value()?)?),
            "--regressions" => arguments.regressions = true,
            "--mutants" => arguments.mutants = true,
            "--first-only" => arguments.first_only = true,
            "--fixed" => arguments.fixed = Some(number(&value()?)?),
            "--only" | "--mutant" => {
                for name in value()?.split(',') {
                    arguments.only.push(Mutant::find(name).ok_or(format!("there is no mutant {name:?}"))?);
                }
            }
            "--without" => {
                for part in value()?.split(',').filter(|part| !part.is_empty()) {
                    let (from, to) = part.split_once('-').unwrap_or((part, part));
                    arguments.options.without.extend(number(from)? as usize..=number(to)? as usize);
                }
            }
            "--ops" => arguments.options.ops_max = Some(number(&value()?)?),
            "--until-us" => arguments.options.heal_at = Some(number(&value()?)?),
            "--workloads" => arguments.options.workloads = value()?.split(',').map(str::to_owned).collect(),
            _ => match number(&word) {
                Ok(seed) => arguments.seed = Some(seed),
                Err(_) => return Err(format!("unknown argument {word:?}")),
            },
        }
    }
    Ok(arguments)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(what) => {
            eprintln!("error: {what}");
            eprintln!("usage: sim --seeds N [--first-seed S] [--minutes M] [--jobs J] [--output json]");
            eprintln!("       sim SEED [--without 3,7-9] [--ops N] [--until-us T] [--workloads a,b]");
            eprintln!("       sim --minimise SEED | --regressions");
            eprintln!(
                "       sim --mutants [--seeds N] [--fixed N] [--only a,b] [--first-only] [--jobs J] [--output json]"
            );
            return ExitCode::from(2);
        }
    };
    if (arguments.mutants || !arguments.only.is_empty()) && !mutant::BUILT_IN {
        eprintln!("error: this build cannot be wrong on purpose\n\nhint: cargo xtask sim --mutants");
        return ExitCode::from(2);
    }
    let passed = if arguments.mutants {
        mutants(&arguments)
    } else if let Some(seed) = arguments.minimise {
        shrink(seed, &arguments.options)
    } else if arguments.regressions {
        regressions()
    } else if let Some(seed) = arguments.seed {
        #[cfg(feature = "mutants")]
        mutant::set(arguments.only.first().copied());
        replay(seed, &arguments.options)
    } else if arguments.seeds.is_some() || arguments.minutes.is_some() {
        many(&arguments)
    } else {
        eprintln!("error: which seeds? for example --seeds 500, or a seed");
        return ExitCode::from(2);
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The words that repeat a run.
fn words(seed: u64, options: &Options) -> String {
    let mut words = format!("cargo xtask sim {seed}");
    if !options.without.is_empty() {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for number in &options.without {
            match ranges.last_mut() {
                Some((_, to)) if *to + 1 == *number => *to = *number,
                _ => ranges.push((*number, *number)),
            }
        }
        let ranges: Vec<String> = ranges
            .into_iter()
            .map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") })
            .collect();
        words += &format!(" --without {}", ranges.join(","));
    }
    if let Some(ops) = options.ops_max {
        words += &format!(" --ops {ops}");
    }
    if let Some(at) = options.heal_at {
        words += &format!(" --until-us {at}");
    }
    if !options.workloads.is_empty() {
        words += &format!(" --workloads {}", options.workloads.join(","));
    }
    words
}

fn replay(seed: u64, options: &Options) -> bool {
    let outcome = run_seed(seed, &Options { lines: Lines::All, ..options.clone() });
    let mut out = std::io::stdout().lock();
    for line in &outcome.lines {
        if writeln!(out, "{line}").is_err() {
            return outcome.failure.is_none();
        }
    }
    let _ = writeln!(
        out,
        "{:>3}.{:06} seed {seed} hash {:016x}",
        outcome.virtual_us / 1_000_000,
        outcome.virtual_us % 1_000_000,
        outcome.trace_hash
    );
    if let Some(failure) = &outcome.failure {
        let _ = writeln!(out, "FAILED {}: {}", failure.id, failure.found);
    }
    outcome.failure.is_none()
}

fn shrink(seed: u64, options: &Options) -> bool {
    let started = Instant::now();
    let Some(minimal) = minimise(seed, options, MINIMISE_RUNS_MAX, |what| eprintln!("  {what}")) else {
        println!("seed {seed} does not fail");
        return true;
    };
    let schedule = buttress_sim::schedule::Schedule::draw(seed);
    println!("{}: {}", minimal.failure.id, minimal.failure.found);
    println!("what is left after {} runs in {:.1} s:", minimal.runs, started.elapsed().as_secs_f64());
    println!("  {:?}", schedule.settings);
    for (number, (at, fault)) in schedule.faults.iter().enumerate() {
        if !minimal.options.without.contains(&number) {
            println!("  #{number} at {}.{:06}: {fault:?}", at / 1_000_000, at % 1_000_000);
        }
    }
    println!("replay: {}", words(seed, &minimal.options));
    false
}

fn report(outcome: &Outcome, options: &Options) {
    let Some(failure) = &outcome.failure else { return };
    // The same run, with its last lines.
    let again = run_seed(outcome.seed, &Options { lines: Lines::Last(100), ..options.clone() });
    println!("seed {} FAILED at {} us: {}: {}", outcome.seed, failure.at_us, failure.id, failure.found);
    for line in again.lines.iter().rev().take(12).rev() {
        println!("    {line}");
    }
    println!("    replay:   {}", words(outcome.seed, options));
    println!("    minimise: cargo xtask sim --minimise {}", outcome.seed);
}

#[cfg(not(feature = "mutants"))]
fn mutants(_: &Arguments) -> bool {
    false
}

#[cfg(feature = "mutants")]
fn mutants(arguments: &Arguments) -> bool {
    use buttress_sim::mutants::{Hunt, TABLE_HEAD, hunt, json, line, passed};
    let hunted = Hunt {
        fixed: arguments.fixed.unwrap_or(MUTANT_SEEDS_FIXED),
        seeds_max: arguments.seeds.unwrap_or(MUTANT_SEEDS_MAX),
        jobs: arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |jobs| jobs.get())),
        mutants: if arguments.only.is_empty() { Mutant::ALL.to_vec() } else { arguments.only.clone() },
        first_only: arguments.first_only,
    };
    if !arguments.json {
        println!("{TABLE_HEAD}");
    }
    let all = hunt(&hunted, |one| {
        if !arguments.json {
            println!("{}", line(one, hunted.fixed));
        }
    });
    if arguments.json {
        println!("{}", json(&all, hunted.fixed));
    } else {
        let survivors: Vec<&str> =
            all.iter().filter(|one| one.first.is_none()).filter_map(|one| Some(one.mutant?.name())).collect();
        for one in all.iter().filter(|one| one.mutant.is_none()) {
            if let Some((seed, id, found)) = &one.first {
                println!("seed {seed} fails without any mutant: {id}: {found}");
            }
        }
        println!("{} mutants, {} survive {}", all.len() - 1, survivors.len(), survivors.join(" "));
    }
    passed(&all)
}

fn regressions() -> bool {
    let mut passed = true;
    let mut seeds = 0;
    for line in REGRESSIONS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut place = line.split_whitespace().next().unwrap_or_default().split(['/', ',']);
        let seed = place.next().and_then(|seed| seed.parse().ok());
        let seed = seed.expect("a line of regressions.txt begins with a seed");
        let options = Options { workloads: place.map(str::to_owned).collect(), ..Options::default() };
        let outcome = run_seed(seed, &options);
        seeds += 1;
        passed &= outcome.failure.is_none();
        report(&outcome, &options);
    }
    println!("{seeds} regression seeds, {}", if passed { "all pass" } else { "NOT all pass" });
    passed
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    virtual_us: u64,
    cpu: Duration,
    counts: Counts,
    failures: Vec<Outcome>,
}

fn many(arguments: &Arguments) -> bool {
    let first = arguments.first_seed.unwrap_or(1);
    let seeds = arguments.seeds.unwrap_or(u64::MAX);
    let end = arguments.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let jobs = arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |jobs| jobs.get()));
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let sum = Mutex::new(Sum::default());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= seeds || stop.load(Relaxed) || end.is_some_and(|end| started.elapsed() > end) {
                        return;
                    }
                    let begun = (cpu_time(), Instant::now());
                    let outcome = run_seed(first + number, &arguments.options);
                    let took = match (begun.0, cpu_time()) {
                        (Some(begun), Some(now)) => now - begun,
                        _ => begun.1.elapsed(),
                    };
                    let mut sum = sum.lock().expect("nobody panics with the sum");
                    sum.seeds += 1;
                    sum.virtual_us += outcome.virtual_us;
                    sum.cpu += took;
                    for (what, count) in &outcome.counts {
                        *sum.counts.entry(what).or_default() += count;
                    }
                    if outcome.failure.is_some() {
                        if !arguments.json {
                            report(&outcome, &arguments.options);
                        }
                        sum.failures.push(outcome);
                        if sum.failures.len() >= FAILURES_MAX {
                            stop.store(true, Relaxed);
                        }
                    }
                    if !arguments.json && std::io::stderr().is_terminal() && sum.seeds.is_multiple_of(64) {
                        eprint!("\r{}   ", progress(&sum, started));
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().expect("nobody panicked");
    let full = arguments.options.workloads.is_empty() && arguments.options.without.is_empty();
    let missing = if full && sum.seeds >= COVERED_FROM { uncovered(&sum.counts) } else { Vec::new() };
    if arguments.json {
        println!("{}", json(&sum, started, &missing));
    } else {
        println!("{}", progress(&sum, started));
        println!("{}", table(&sum));
        for what in &missing {
            println!("NOT COVERED: {what} never happened in {} seeds; the harness is wrong", sum.seeds);
        }
    }
    sum.failures.is_empty() && missing.is_empty()
}

/// What this thread has used of a CPU, where the system tells.
fn cpu_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

fn uncovered(counts: &Counts) -> Vec<&'static str> {
    let kinds = Kind::ALL.iter().map(|kind| kind.name());
    kinds.chain(COVERAGE.iter().copied()).filter(|what| counts.get(what).copied().unwrap_or(0) == 0).collect()
}

fn hours_per_cpu_second(sum: &Sum) -> f64 {
    sum.virtual_us as f64 / 3.6e9 / sum.cpu.as_secs_f64().max(1e-9)
}

fn progress(sum: &Sum, started: Instant) -> String {
    let faults: u64 = Kind::ALL.iter().filter_map(|kind| sum.counts.get(kind.name())).sum();
    format!(
        "{} seeds, {} failed, {:.1} seeds/s, {:.3} simulated hours per CPU second ({:.0} times real time), {faults} faults",
        sum.seeds,
        sum.failures.len(),
        sum.seeds as f64 / started.elapsed().as_secs_f64(),
        hours_per_cpu_second(sum),
        hours_per_cpu_second(sum) * 3600.0,
    )
}

fn table(sum: &Sum) -> String {
    let mut lines = Vec::new();
    let mut counts: BTreeMap<&str, u64> = sum.counts.iter().map(|(what, count)| (*what, *count)).collect();
    lines.push("faults".to_owned());
    for kind in Kind::ALL {
        lines.push(format!("  {:<26}{}", kind.name(), counts.remove(kind.name()).unwrap_or(0)));
    }
    lines.push("what happened".to_owned());
    for (what, count) in counts {
        lines.push(format!("  {what:<26}{count}"));
    }
    lines.join("\n")
}

fn json(sum: &Sum, started: Instant, missing: &[&str]) -> String {
    let text = |text: &str| format!("\"{}\"", text.escape_default().to_string().replace("\\'", "'"));
    let counts: Vec<String> = sum.counts.iter().map(|(what, count)| format!("{}: {count}", text(what))).collect();
    let failures: Vec<String> = sum
        .failures
        .iter()
        .filter_map(|outcome| {
            let failure = outcome.failure.as_ref()?;
            Some(format!(
                "{{\"seed\": {}, \"id\": {}, \"found\": {}}}",
                outcome.seed,
                text(&failure.id),
                text(&failure.found)
            ))
        })
        .collect();
    let missing: Vec<String> = missing.iter().map(|what| text(what)).collect();
    format!(
        "{{\"seeds\": {}, \"ok\": {}, \"seconds\": {:.1}, \"cpu_seconds\": {:.1}, \"simulated_hours\": {:.3}, \
         \"simulated_hours_per_cpu_second\": {:.4}, \"times_real_time\": {:.0}, \"counts\": {{{}}}, \"failures\": [{}], \
         \"not_covered\": [{}]}}",
        sum.seeds,
        sum.failures.is_empty() && missing.is_empty(),
        started.elapsed().as_secs_f64(),
        sum.cpu.as_secs_f64(),
        sum.virtual_us as f64 / 3.6e9,
        hours_per_cpu_second(sum),
        hours_per_cpu_second(sum) * 3600.0,
        counts.join(", "),
        failures.join(", "),
        missing.join(", "),
    )
}
