//! `buttress demo fleet` on the command line: starts the cluster, the page and the run, prints the report.

use std::{path::PathBuf, sync::Arc, time::Duration};

use buttress_core::{BoxFuture, Code, Error};
use bytes::Bytes;
use clap::Args;

use super::{
    Assets, ClusterControl, DataOptions, FleetOptions, NodeAddress, Progress, Sessions,
    engines::{self, Engines, LocalHosts},
    page, raise_limits,
    report::Style,
    training,
};
use crate::{
    cli::{Answer, args::Output},
    cluster::LocalCluster,
    dev::{scratch_dir, seed},
    logging,
};

/// The components as built from `guests/`; `cargo xtask guests` rebuilds them.
const ANOMALY: &[u8] = include_bytes!("../../../../guests/built/anomaly.wasm");
const FAULTY: &[u8] = include_bytes!("../../../../guests/built/faulty.wasm");

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  buttress demo\n  buttress demo --duration 20s --rate 2000 --machines 2000 --output json\n  buttress demo --kafka 127.0.0.1:9092 --etcd http://127.0.0.1:2379\n  buttress demo --edge --kafka 127.0.0.1:9092\n  buttress demo --data ai4i2020.csv --map temperature=\"Process temperature [K]\" --map speed=\"Rotational speed [rpm]\" \\\n    --map torque=\"Torque [Nm]\" --map wear=\"Tool wear [min]\" --label \"Machine failure\""
)]
pub struct FleetArgs {
    /// Machines of the plant.
    #[arg(long, default_value_t = super::MACHINES_DEFAULT)]
    pub machines: u32,
    /// Readings a second [default: 10000; for a file, what plays it once within the duration].
    #[arg(long)]
    pub rate: Option<f64>,
    /// How long the plant plays.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub duration: Duration,
    /// Nodes of the cluster, each a process of its own.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7))]
    pub nodes: u8,
    /// Plays the same plant again.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// MQTT sessions, or `machine` for one per machine.
    #[arg(long, default_value = "1000")]
    pub sessions: Sessions,
    /// Keep the nodes' data and logs.
    #[arg(long)]
    pub keep: bool,
    /// Kill nothing, swap nothing, deploy nothing that traps; the page's buttons still do.
    #[arg(long)]
    pub no_chaos: bool,
    /// Where the nodes keep their data; a temporary directory when not given.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Open the page in a browser.
    #[arg(long)]
    pub open: bool,
    /// Fail when a verdict takes longer than promised (p99 100 ms, 2 s across the failover).
    #[arg(long)]
    pub assert_latency: bool,
    /// Run on this Kafka, with function hosts instead of nodes; wants --etcd too. With --edge: forward to it.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub kafka: Vec<String>,
    /// The etcd of such a run.
    #[arg(long, value_name = "URL", value_delimiter = ',', requires = "kafka", conflicts_with = "edge")]
    pub etcd: Vec<String>,
    /// Restarts the Kafka in the middle of the run: a command that returns when it serves again.
    #[arg(long, value_name = "CMD", requires = "etcd")]
    pub restart_broker: Option<String>,
    /// A gateway at the edge with its own log and an uplink to the cluster, whose link is cut for 10 s.
    #[arg(long, conflicts_with_all = ["data", "assert_latency", "open"])]
    pub edge: bool,
    /// Play the rows of a CSV file instead of the plant.
    #[arg(long, value_name = "FILE.csv")]
    pub data: Option<PathBuf>,
    /// Which column is which field of a reading; may be given several times or with commas.
    #[arg(long, value_name = "FIELD=COLUMN", requires = "data")]
    pub map: Vec<String>,
    /// The column that says whether a row is a failure.
    #[arg(long, value_name = "COLUMN", requires = "data")]
    pub label: Option<String>,
    /// The model to judge with: a tree ensemble as JSON or ONNX.
    #[arg(long, value_name = "FILE", requires = "data")]
    pub model: Option<PathBuf>,
    /// Write readings of the plant for training a model, and do nothing else.
    #[arg(long, value_name = "FILE.csv", hide = true)]
    pub dump_training: Option<PathBuf>,
    /// Readings per machine in the training file.
    #[arg(long, default_value_t = 100, hide = true)]
    pub dump_rounds: u32,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Reads `90s`, `2m`, `500ms` or a bare number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("\"{unit}\" is not a unit of time; use ms, s, m or h")),
    };
    let seconds = number.parse::<f64>().map_err(|_| format!("\"{text}\" is not a duration; for example 60s"))? * scale;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

pub fn run(args: FleetArgs) -> Answer {
    if let Some(path) = &args.dump_training {
        training::dump_training(path, args.machines, args.dump_rounds, args.seed)?;
        eprintln!("wrote {}", path.display());
        return Ok(true);
    }
    if !args.kafka.is_empty() && args.etcd.is_empty() && !args.edge {
        return Err(Error::new(Code::BAD_REQUEST, "--kafka needs the etcd of the run")
            .hint("add --etcd URL, or --edge")
            .into());
    }
    if args.edge {
        return super::edge::run(&args, Bytes::from_static(ANOMALY));
    }
    logging::init(logging::Format::Text, "error");
    let mut options =
        FleetOptions::new(Assets { anomaly: Bytes::from_static(ANOMALY), faulty: Bytes::from_static(FAULTY) });
    options.machines = args.machines;
    options.rate = args.rate;
    options.duration = args.duration;
    options.seed = args.seed;
    options.sessions = args.sessions;
    options.chaos = !args.no_chaos;
    options.assert_latency = args.assert_latency;
    options.data = args.data.clone().map(|file| DataOptions {
        file,
        map: args.map.clone(),
        label: args.label.clone(),
        model: args.model.clone(),
    });
    if !args.kafka.is_empty() {
        options.engines = Some(Engines {
            kafka: args.kafka.clone(),
            etcd: args.etcd.clone(),
            namespace: format!("demo-{:08x}.", seed()? as u32),
            restart_broker: args.restart_broker.clone(),
        });
    }
    options.progress = Progress::Auto;
    // Whatever is wrong with the options or the file is said before anything is started.
    super::check(&options)?;
    raise_limits(options.sessions, options.machines)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(play(args, options));
    runtime.shutdown_background();
    result
}

async fn play(args: FleetArgs, options: FleetOptions) -> Answer {
    let (dir, temporary) = match &args.data_dir {
        Some(dir) => (dir.clone(), false),
        None => (scratch_dir("demo")?, !args.keep),
    };
    if let Some(engines) = options.engines.clone() {
        return play_on(args, options, engines, &dir, temporary).await;
    }
    let cluster_id = format!("demo-{:08x}", seed()? as u32);
    let cluster = Arc::new(LocalCluster::lay_out(&dir, args.nodes.into(), &cluster_id, seed()?)?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}/", listener.local_addr()?);
    let page = tokio::spawn(page::serve(listener, options.feed.clone()));
    eprintln!("page: {address}");
    if args.open {
        open(&address);
    }
    let outcome = tokio::select! {
        outcome = fleet(options, cluster.clone()) => outcome,
        () = terminated() => Err(Error::new(Code::STOPPED, "stopped by SIGTERM; there is no report").into()),
    };
    cluster.stop_all().await;
    page.abort();
    let failed = outcome.is_err();
    if temporary && !failed {
        let _ = std::fs::remove_dir_all(&dir);
    } else {
        eprintln!("the nodes' data and logs are in {}", dir.display());
        if !failed {
            eprintln!("next: buttress dev --nodes {} --data-dir {}", args.nodes, dir.display());
        }
    }
    tell(&outcome?, args.output)
}

fn tell(report: &super::Report, output: Output) -> Answer {
    match output {
        Output::Json => println!("{}", report.to_json()),
        Output::Table => {
            let color = std::io::IsTerminal::is_terminal(&std::io::stdout())
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            print!("{}", report.render(Style { color }));
        }
    }
    Ok(report.exit_code() == 0)
}

/// The same on the user's own engines.
async fn play_on(
    args: FleetArgs,
    options: FleetOptions,
    engines: Engines,
    dir: &std::path::Path,
    temporary: bool,
) -> Answer {
    engines.check().await?;
    let hosts = LocalHosts::lay_out(dir, args.nodes.into(), engines.clone(), seed()?)?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}/", listener.local_addr()?);
    let page = tokio::spawn(page::serve(listener, options.feed.clone()));
    eprintln!("page: {address}\nnames in your engines begin with {}", engines.namespace);
    if args.open {
        open(&address);
    }
    let run = async {
        hosts.start_all().await?;
        super::run(options, Arc::new(engines::Control(hosts.clone()))).await
    };
    let outcome = tokio::select! {
        outcome = run => outcome,
        () = terminated() => Err(Error::new(Code::STOPPED, "stopped by SIGTERM; there is no report").into()),
    };
    hosts.stop_all().await;
    page.abort();
    if args.keep {
        eprintln!(
            "left behind: the topics and keys that begin with {}, and the hosts' logs in {}",
            engines.namespace,
            dir.display()
        );
    } else {
        match engines.clean().await {
            Ok(topics) => eprintln!(
                "{topics} topics and all keys of the run were deleted; what Kafka remembers of its groups and transactional ids \
                 under {} it forgets by itself, after a week unless told otherwise",
                engines.namespace
            ),
            Err(error) => eprintln!(
                "left behind: the topics and keys that begin with {}, for they cannot be deleted: {error:#}",
                engines.namespace
            ),
        }
        if temporary && outcome.is_ok() {
            let _ = std::fs::remove_dir_all(dir);
        } else {
            eprintln!("the hosts' logs are in {}", dir.display());
        }
    }
    tell(&outcome?, args.output)
}

async fn fleet(options: FleetOptions, cluster: Arc<LocalCluster>) -> anyhow::Result<super::Report> {
    tokio::select! {
        started = cluster.start_all() => started?,
        _ = tokio::signal::ctrl_c() => return Err(Error::new(Code::STOPPED, "stopped before the cluster was up").into()),
    }
    super::run(options, Arc::new(Control(cluster))).await
}

pub(crate) async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => drop(terminate.recv().await),
        Err(_) => std::future::pending().await,
    }
}

/// Hands the address to the desktop; where there is none, it stands in the terminal anyway.
pub(crate) fn open(address: &str) {
    let opened = std::process::Command::new("xdg-open")
        .arg(address)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    if let Err(error) = opened {
        eprintln!("cannot open a browser: {error}; open {address} yourself");
    }
}

struct Control(Arc<LocalCluster>);

impl ClusterControl for Control {
    fn nodes(&self) -> Vec<NodeAddress> {
        let address = |m: &crate::config::MemberConfig| NodeAddress {
            name: m.name.clone(),
            id: m.id,
            kafka: m.kafka.clone(),
            mqtt: m.mqtt.clone(),
            http: m.http.clone(),
        };
        self.0.members().iter().map(address).collect()
    }

    fn kill<'a>(&'a self, name: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move { Ok(self.0.kill(name).await?) })
    }

    fn restart<'a>(&'a self, name: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move { Ok(self.0.start(name).await?) })
    }
}
