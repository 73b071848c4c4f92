//! The options that the benchmarks of whole clusters share.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};

pub struct Options {
    /// How often each side is measured, in turn.
    pub rounds: usize,
    /// One measurement.
    pub seconds: f64,
    /// Clients, each with a connection of its own and one request at a time.
    pub clients: Vec<usize>,
    /// Keys that are loaded to see what they take in memory; none where it is 0.
    pub keys: usize,
    /// Partitions of the topics that `log` measures, a case each.
    pub partitions: Vec<i32>,
    /// Clients speak to the leader alone, and not to all nodes evenly.
    pub leader_only: bool,
    /// The binary of Buttress.
    pub binary: PathBuf,
    pub json: bool,
    /// The one side that is measured, as when a profiler looks at it; both where it is `None`.
    pub only: Option<Only>,
    /// Who makes the load of `half-load`.
    pub generator: Generator,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Generator {
    Oha,
    Own,
}

impl Generator {
    pub const fn name(self) -> &'static str {
        match self {
            Generator::Oha => "oha",
            Generator::Own => "own",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Only {
    Original,
    Buttress,
}

impl Options {
    pub fn parse(args: &[String], rounds: usize, seconds: f64, clients: &[usize]) -> Result<Self> {
        let mut options = Self {
            rounds,
            seconds,
            clients: clients.to_vec(),
            keys: 0,
            partitions: vec![1, 64],
            leader_only: false,
            binary: PathBuf::new(),
            json: false,
            only: None,
            generator: Generator::Oha,
        };
        let mut args = args.iter();
        while let Some(flag) = args.next() {
            let value = args.next().with_context(|| format!("`{flag}` needs a value"))?;
            let number = || value.parse::<usize>().with_context(|| format!("{flag} takes a number, not \"{value}\""));
            match flag.as_str() {
                "--rounds" => options.rounds = number()?,
                "--seconds" => {
                    options.seconds =
                        value.parse().with_context(|| format!("--seconds takes a number, not \"{value}\""))?;
                }
                "--clients" => {
                    let list = value.split(',').map(str::parse).collect::<Result<_, _>>();
                    options.clients =
                        list.with_context(|| format!("--clients takes numbers like 1,16,128, not \"{value}\""))?;
                }
                "--partitions" => {
                    let list = value.split(',').map(str::parse).collect::<Result<_, _>>();
                    options.partitions =
                        list.with_context(|| format!("--partitions takes numbers like 1,64, not \"{value}\""))?;
                }
                "--keys" => options.keys = number()?,
                "--to" if value == "all" => options.leader_only = false,
                "--to" if value == "leader" => options.leader_only = true,
                "--to" => bail!("--to takes all or leader, not \"{value}\""),
                "--only" if value == "original" => options.only = Some(Only::Original),
                "--only" if value == "buttress" => options.only = Some(Only::Buttress),
                "--only" => bail!("--only takes original or buttress, not \"{value}\""),
                "--generator" if value == "oha" => options.generator = Generator::Oha,
                "--generator" if value == "own" => options.generator = Generator::Own,
                "--generator" => bail!("--generator takes oha or own, not \"{value}\""),
                "--binary" => options.binary = value.into(),
                "--output" if value == "json" => options.json = true,
                "--output" if value == "table" => options.json = false,
                _ => bail!("no such option: {flag} {value}"),
            }
        }
        ensure!(
            options.seconds > 0.0 && options.seconds <= 600.0,
            "--seconds is {}, and must be above 0 and at most 600",
            options.seconds
        );
        ensure!(options.clients.iter().all(|n| (1..=4096).contains(n)), "--clients takes numbers from 1 to 4096");
        ensure!(options.partitions.iter().all(|n| (1..=1024).contains(n)), "--partitions takes numbers from 1 to 1024");
        ensure!(
            options.binary.is_file(),
            "\"{}\" is not the binary of Buttress\n\nhint: cargo build --release, then --binary target/release/buttress; `cargo xtask bench` does both",
            options.binary.display()
        );
        Ok(options)
    }

    pub fn measures(&self, side: Only) -> bool {
        self.only.is_none_or(|only| only == side)
    }

    pub fn round(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}
