//! `buttress demo orders` on the command line: starts the log, the parts, the page and the run, and prints the report.

use std::{path::PathBuf, sync::Arc, time::Duration};

use buttress_core::{Code, Error};
use clap::Args;

use super::{Options, RATE_DEFAULT, feed::Feed, page, stage::Stage};
use crate::{
    cli::{Answer, args::Output},
    cluster::LocalCluster,
    demo::{
        cli::{duration, open, terminated},
        report::Style,
    },
    dev::{scratch_dir, seed},
    logging,
};

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  buttress demo orders\n  buttress demo orders --duration 30s --rate 10 --output json\n  buttress demo orders --no-chaos"
)]
pub struct OrdersArgs {
    /// How long customers order.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub duration: Duration,
    /// Orders a second, on each side.
    #[arg(long, default_value_t = RATE_DEFAULT)]
    pub rate: f64,
    /// Nodes of the log, each a process of its own; with one or two none is killed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7))]
    pub nodes: u8,
    /// Sends the same orders, with the same fates, again.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Hurt and kill nothing.
    #[arg(long)]
    pub no_chaos: bool,
    /// Where the log and the parts keep their files; a temporary directory when not given.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Keep them.
    #[arg(long)]
    pub keep: bool,
    /// Open the page in a browser.
    #[arg(long)]
    pub open: bool,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

fn check(args: &OrdersArgs) -> Result<(), Error> {
    let config = |message: String, hint: &str| Err(Error::new(Code::CONFIG, message).hint(hint));
    if !(0.5..=1_000.0).contains(&args.rate) {
        return config(format!("--rate is {}", args.rate), "give 0.5 to 1000 orders a second");
    }
    if !(5.0..=3_600.0).contains(&args.duration.as_secs_f64()) {
        return config(format!("--duration is {:?}", args.duration), "give 5s to 1h");
    }
    Ok(())
}

pub fn run(args: OrdersArgs) -> Answer {
    logging::init(logging::Format::Text, "error");
    check(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(play(args));
    runtime.shutdown_background();
    result
}

async fn play(args: OrdersArgs) -> Answer {
    let (dir, temporary) = match &args.data_dir {
        Some(dir) => (dir.clone(), false),
        None => (scratch_dir("orders")?, !args.keep),
    };
    let options = Options { rate: args.rate, duration: args.duration, seed: args.seed, chaos: !args.no_chaos };
    let cluster_id = format!("orders-{:08x}", seed()? as u32);
    let cluster = Arc::new(LocalCluster::lay_out(&dir, args.nodes.into(), &cluster_id, seed()?)?);
    let nodes = cluster.members().iter().map(|member| member.http.clone()).collect();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}/", listener.local_addr()?);
    let feed: Arc<Feed> = Arc::default();
    let page = tokio::spawn(page::serve(listener, feed.clone()));
    eprintln!("page: {address}");
    if args.open {
        open(&address);
    }
    // The cluster's ports are taken before the parts look for theirs.
    let started = tokio::select! {
        started = cluster.start_all() => started,
        _ = tokio::signal::ctrl_c() => Err(Error::new(Code::STOPPED, "stopped before the log was up")),
    };
    let stage = started.and_then(|()| Stage::new(&dir, nodes, args.seed, options.room()));
    let outcome = match stage {
        Ok(stage) => {
            let stage = Arc::new(stage);
            let outcome = tokio::select! {
                outcome = super::run(options, cluster.clone(), stage.clone(), feed) => outcome,
                () = terminated() => Err(Error::new(Code::STOPPED, "stopped by SIGTERM; there is no report").into()),
            };
            stage.stop_all().await;
            outcome
        }
        Err(error) => Err(error.into()),
    };
    cluster.stop_all().await;
    page.abort();
    if temporary && outcome.is_ok() {
        let _ = std::fs::remove_dir_all(&dir);
    } else {
        eprintln!("data and logs are in {}", dir.display());
    }
    let report = outcome?;
    match args.output {
        Output::Json => println!("{}", report.to_json()),
        Output::Table => {
            let color = std::io::IsTerminal::is_terminal(&std::io::stdout())
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            print!("{}", report.render(Style { color }));
            if !temporary {
                let (nodes, dir) = (args.nodes, dir.display());
                eprintln!("next: buttress dev --nodes {nodes} --data-dir {dir}, and buttress kv get sagas/ --prefix");
            }
        }
    }
    Ok(report.ok)
}
