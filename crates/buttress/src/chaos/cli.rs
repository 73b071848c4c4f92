//! `buttress chaos consensus` on the command line.

use std::{path::PathBuf, sync::Arc, time::Duration};

use buttress_core::{Code, Error};
use clap::{Args, Subcommand};

use super::{Options, network::Mode, run, schedule::Kind};
use crate::{
    cli::{Answer, args::Output},
    demo::report::Style,
    dev::{interrupted, scratch_dir, seed},
    logging,
};

#[derive(Debug, Subcommand)]
pub enum ChaosCommand {
    /// Hurt a cluster of its own in every way it knows, and check what clients saw of it.
    Consensus(ConsensusArgs),
}

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  buttress chaos consensus --minutes 5 --report chaos.html --open\n  buttress chaos consensus --only kill-leader,split --nodes 3 --output json\n\nFaults: kill-leader, kill-follower, split, isolate, cut-out, cut-in, delay, pause-leader, pause-follower, disk-full,\nkill-all, transfer. Exit code 0: everything held; 1: a violation, or an expectation that was not met; 2: it could not run."
)]
pub struct ConsensusArgs {
    /// How long faults are played; starting, settling and judging come on top.
    #[arg(long, default_value_t = 5.0, value_parser = minutes)]
    pub minutes: f64,
    /// Nodes of the cluster, each a process of its own.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(3..=7))]
    pub nodes: u8,
    /// The order of the faults and what the clients do; drawn when not given. Processes are not replayed bit for bit.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Only these faults.
    #[arg(long, value_delimiter = ',', value_name = "FAULT,…")]
    pub only: Vec<String>,
    /// How links are cut.
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub network: Mode,
    /// Write the report as a page that needs nothing else.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Open the page in a browser.
    #[arg(long)]
    pub open: bool,
    /// Keep the nodes' data and logs.
    #[arg(long)]
    pub keep: bool,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if minutes > 0.0 && minutes <= 24.0 * 60.0 => Ok(minutes),
        _ => Err("minutes are a number above 0 and at most 1440".into()),
    }
}

pub fn consensus(args: &ConsensusArgs) -> Answer {
    logging::init(logging::Format::Text, "error");
    let mut kinds = args.only.iter().map(|name| Kind::parse(name)).collect::<Result<Vec<_>, _>>()?;
    if kinds.is_empty() {
        kinds = Kind::ALL.to_vec();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(play(args, kinds));
    runtime.shutdown_background();
    result
}

async fn play(args: &ConsensusArgs, kinds: Vec<Kind>) -> Answer {
    let seed = args.seed.map_or_else(|| seed().map(|seed| seed >> 32), Ok)?;
    let dir = scratch_dir("chaos")?;
    let options = Options {
        duration: Duration::from_secs_f64(args.minutes * 60.0),
        nodes: args.nodes.into(),
        seed,
        kinds,
        network: args.network,
        dir: dir.clone(),
    };
    let stop = Arc::new(tokio::sync::Notify::new());
    let outcome = tokio::select! {
        outcome = run(options, stop.clone()) => outcome,
        () = twice(&stop) => Err(Error::new(Code::STOPPED, "stopped before there was a report").into()),
    };
    let failed = !outcome.as_ref().is_ok_and(|report| report.ok);
    if failed || args.keep {
        eprintln!("the nodes' data and logs are in {}", dir.display());
    } else {
        let _ = std::fs::remove_dir_all(&dir);
    }
    let report = outcome?;
    let page = match (&args.report, args.open) {
        (Some(path), _) => Some(path.clone()),
        (None, true) => Some(std::env::temp_dir().join(format!("buttress-chaos-{seed}.html"))),
        (None, false) => None,
    };
    if let Some(path) = &page {
        std::fs::write(path, report.page()).map_err(|error| {
            Error::new(Code::DISK, format!("cannot write \"{}\": {error}", path.display()))
                .hint("name another --report")
        })?;
        eprintln!("page: {}", path.display());
        if args.open {
            crate::demo::cli::open(&path.display().to_string());
        }
    }
    match args.output {
        Output::Json => println!("{}", report.to_json()),
        Output::Table => {
            let color = std::io::IsTerminal::is_terminal(&std::io::stdout())
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            print!("{}", report.render(Style { color }));
        }
    }
    if page.is_none() && args.output == Output::Table {
        eprintln!("next: buttress chaos consensus --seed {seed} --report chaos.html");
    }
    Ok(report.ok)
}

/// The first Ctrl-C ends the faults and has the run judged; the second one ends everything.
async fn twice(stop: &tokio::sync::Notify) {
    interrupted().await;
    eprintln!("\nstopping: what was played is judged; Ctrl-C again ends without a report");
    stop.notify_one();
    interrupted().await;
}
