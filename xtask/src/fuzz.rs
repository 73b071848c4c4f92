//! `cargo xtask fuzz`: every decoder under inputs that somebody with bad intentions, or a bad disk, might send.
//!
//! | command | needs | does |
//! |---|---|---|
//! | `fuzz --list` | | names every target |
//! | `fuzz --short [TARGET…]` | the pinned toolchain | a fixed number of seeded mutations, the same on every machine |
//! | `fuzz [TARGET…] [--seconds N] [--keep]` | a C++ compiler | libFuzzer, guided by coverage; 60 s per target where nothing else is said |
//!
//! Coverage on a stable toolchain: `-Cpasses=sancov-module` and `-Cllvm-args=-sanitizer-coverage-…` are stable flags of
//! rustc, and libFuzzer needs nothing more. What only nightly has is the address sanitizer; we deny `unsafe`, so it would
//! look at dependencies only. The counters go into our own crates and `raft`: this program is put before rustc
//! (`RUSTC_WRAPPER`) and adds the flags for them alone, which keeps wasmtime's compiler fast and the fuzzer's attention on
//! what is ours. cargo does not know of those flags, so the build has a directory of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: cargo xtask fuzz --list | --short [TARGET…] | [TARGET…] [--seconds N] [--keep]";
const SECONDS_DEFAULT: u64 = 60;
/// An input that takes longer is a finding.
const TIMEOUT_SECONDS: u64 = 10;
/// A run that needs more memory is a finding. An engine for components alone takes some hundred megabytes.
const MEMORY_MB_MAX: u64 = 2048;
/// Targets that need wasmtime.
const ENGINE: &[&str] = &["model", "component"];
/// Set where this program is started in the place of rustc.
const WRAPPED: &str = "BUTTRESS_FUZZ_RUSTC";
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Runs rustc, with counters for the crates that are to have them, where this program was started for that.
pub fn as_compiler() -> Option<ExitCode> {
    std::env::var_os(WRAPPED)?;
    let mut words = std::env::args_os().skip(1);
    let mut rustc = Command::new(words.next()?);
    let words: Vec<_> = words.collect();
    rustc.args(&words);
    let name = words.iter().position(|word| word == "--crate-name").and_then(|at| words.get(at + 1)?.to_str());
    if name.is_some_and(|name| name.starts_with("buttress") || name == "raft") {
        rustc.args(COVERAGE);
    }
    let code = rustc.status().ok().and_then(|status| status.code()).unwrap_or(1);
    Some(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

pub fn run(words: &[&str]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the repository")?;
    match words {
        ["--list"] => targets(root, &["list"]),
        ["--short", names @ ..] => targets(root, &[&["short"], names].concat()),
        words => {
            let mut options = Long { names: Vec::new(), seconds: SECONDS_DEFAULT, keep: false };
            let mut words = words.iter();
            while let Some(word) = words.next() {
                match *word {
                    "--seconds" => {
                        let text = words.next().context(USAGE)?;
                        options.seconds = text.parse().with_context(|| format!("--seconds {text}"))?;
                    }
                    "--keep" => options.keep = true,
                    word if word.starts_with('-') => bail!(USAGE),
                    name => options.names.push(name.to_owned()),
                }
            }
            long(root, options)
        }
    }
}

/// Runs the plain driver, built as tests are.
fn targets(root: &Path, words: &[&str]) -> Result<()> {
    let status = plain(root).args(words).status().context("cannot start cargo")?;
    if status.success() { Ok(()) } else { bail!("fuzzing found something (above)") }
}

struct Long {
    /// None: all of them.
    names: Vec<String>,
    seconds: u64,
    /// Whether new inputs go into the repository's corpus.
    keep: bool,
}

fn long(root: &Path, options: Long) -> Result<()> {
    if !Command::new("c++").arg("--version").output().is_ok_and(|output| output.status.success()) {
        bail!(
            "libFuzzer is C++, and there is no C++ compiler here\n\nhint: apt-get install g++; or cargo xtask fuzz --short, \
             which needs none"
        );
    }
    let target_dir = root.join("target").join("fuzz");
    let engine = options.names.is_empty() || options.names.iter().any(|name| ENGINE.contains(&name.as_str()));
    let guided = build(root, &target_dir, engine)?;
    let listed = plain(root).arg("list").output().context("cannot list the targets")?;
    let listed = String::from_utf8(listed.stdout)?;
    let known: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    if let Some(name) = options.names.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no target {name:?}\n\nhint: cargo xtask fuzz --list");
    }
    let chosen: Vec<String> =
        if options.names.is_empty() { known.iter().map(|name| (*name).to_owned()).collect() } else { options.names };
    let mut found = Vec::new();
    println!("{:<18} {:>12} {:>8} {:>8} {:>8}", "target", "inputs", "edges", "corpus", "seconds");
    for name in &chosen {
        let place = target_dir.join("runs").join(name);
        let (corpus, start, crashes) = (place.join("corpus"), place.join("start"), place.join("crashes"));
        let _ = fs::remove_dir_all(&start);
        for dir in [&corpus, &crashes] {
            fs::create_dir_all(dir)?;
        }
        let before = files(&crashes)?;
        run_quietly(plain(root).args(["export", name]).arg(&start), "export")?;
        let began = Instant::now();
        let output = Command::new(&guided)
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-timeout={TIMEOUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MB_MAX}"))
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            .args(["-max_len=8192", "-print_final_stats=1", "-seed=1", "-use_value_profile=1"])
            .arg(&corpus)
            .arg(&start)
            .env("BUTTRESS_FUZZ_TARGET", name)
            .output()
            .with_context(|| format!("cannot start {}", guided.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let last = |label: &str| {
            let found = said
                .lines()
                .rev()
                .find_map(|line| Some(line.split_once(label)?.1.split_whitespace().next()?.to_owned()));
            found.unwrap_or_else(|| "?".to_owned())
        };
        println!(
            "{name:<18} {:>12} {:>8} {:>8} {:>8}",
            last("stat::number_of_executed_units:"),
            last(" cov: "),
            files(&corpus)?.len(),
            began.elapsed().as_secs()
        );
        let new: Vec<PathBuf> = files(&crashes)?.into_iter().filter(|file| !before.contains(file)).collect();
        if new.is_empty() && !output.status.success() {
            bail!("{name}: the fuzzer failed without leaving an input:\n{said}");
        }
        for file in new {
            println!("    {}", file.display());
            let small = plain(root).args(["shrink", name]).arg(&file).output()?;
            print!("{}{}", String::from_utf8_lossy(&small.stdout), String::from_utf8_lossy(&small.stderr));
            found.push(file);
        }
        if options.keep {
            fs::create_dir_all(place.join("small"))?;
            run_quietly(
                Command::new(&guided)
                    .args(["-merge=1", "-max_len=256"])
                    .args([&place.join("small"), &corpus])
                    .env("BUTTRESS_FUZZ_TARGET", name),
                "merge",
            )?;
            run_quietly(plain(root).args(["keep", name]).arg(place.join("small")), "keep")?;
        }
    }
    if found.is_empty() {
        println!("{} targets, nothing found", chosen.len());
        return Ok(());
    }
    bail!("{} inputs found (above)", found.len())
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    Ok(files)
}

fn run_quietly(command: &mut Command, what: &str) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot {what}"))?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{what} failed: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Builds the fuzzer, with wasmtime where a target needs it, and says where it is.
fn build(root: &Path, target_dir: &Path, engine: bool) -> Result<PathBuf> {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked"])
        .args(if engine { &[][..] } else { &["--no-default-features"] })
        .current_dir(root.join("fuzz").join("libfuzzer"))
        .env("CARGO_TARGET_DIR", target_dir)
        .env("RUSTC_WRAPPER", std::env::current_exe()?)
        .env(WRAPPED, "1")
        .env_remove("RUSTFLAGS")
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the fuzzer does not build");
    }
    Ok(target_dir.join("release").join("buttress-libfuzzer"))
}

/// The driver without coverage, built as tests are.
fn plain(root: &Path) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--locked", "--package", "buttress-fuzz", "--"]).current_dir(root);
    cargo
}
