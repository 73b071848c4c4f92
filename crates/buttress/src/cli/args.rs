//! What can be typed. One definition carries flag, help and default.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::{demo::cli::FleetArgs, logging};

#[derive(Debug, Parser)]
#[command(
    name = "buttress",
    version,
    about = "Keeps fleets of microservices standing: one replicated log, six planes, one binary.",
    after_help = "Start with:\n  buttress demo                         a plant of 10,000 machines on three nodes, with a failover\n  buttress dev                          a cluster on this machine until Ctrl-C\n  buttress explain BT0301               what an error code means"
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

// Parsed once per process, so its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a demonstration and check what it promises.
    Demo(DemoArgs),
    /// Run a cluster of real processes on this machine until Ctrl-C.
    Dev(DevArgs),
    /// Run one node.
    Serve(ServeArgs),
    /// Create, list and describe topics.
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Send records to a topic, one per line.
    Produce(ProduceArgs),
    /// Print records of a topic.
    Consume(ConsumeArgs),
    /// Deploy, list, watch and call functions.
    #[command(subcommand, name = "fn")]
    Fn(FnCommand),
    /// Push and list models.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Look at the cluster.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Explain an error code.
    Explain {
        /// For example BT0301.
        code: String,
    },
}

#[derive(Debug, ClapArgs)]
pub struct DemoArgs {
    #[command(subcommand)]
    kind: Option<DemoKind>,
    #[command(flatten)]
    fleet: FleetArgs,
}

impl DemoArgs {
    /// `demo` alone is `demo fleet`.
    pub fn kind(self) -> DemoKind {
        self.kind.unwrap_or(DemoKind::Fleet(self.fleet))
    }
}

#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
pub enum DemoKind {
    /// A plant of CNC machines, judged by a function, through a failover (the default).
    Fleet(FleetArgs),
}

#[derive(Debug, ClapArgs)]
pub struct DevArgs {
    /// Voters, each a process of its own.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7))]
    pub nodes: u8,
    /// Where the nodes keep their data; a temporary directory when not given.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub struct ServeArgs {
    /// The node's configuration file.
    #[arg(long, env = "BUTTRESS_CONFIG")]
    pub config: PathBuf,
    #[arg(long, value_enum, default_value_t = logging::Format::Text)]
    pub log: logging::Format,
    /// Stop when standard input ends: the parent process holds the other end.
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs; its shape is stable.
    Json,
}

#[derive(Debug, ClapArgs)]
pub struct Server {
    /// A node's HTTP address.
    #[arg(long, env = "BUTTRESS_SERVER", default_value = "http://127.0.0.1:7380")]
    pub server: String,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Create a topic.
    #[command(
        after_help = "Example:\n  buttress topic create telemetry --partitions 8 --retention-ms 2592000000 --sequence machine,seq"
    )]
    Create {
        name: String,
        #[arg(long, default_value_t = 1)]
        partitions: u32,
        /// Forget records older than this many milliseconds.
        #[arg(long)]
        retention_ms: Option<u64>,
        /// Forget the oldest records when a partition is larger than this many bytes.
        #[arg(long)]
        retention_bytes: Option<u64>,
        /// JSON fields that hold a record's producer and its sequence number, so that a retry is never a duplicate.
        #[arg(long, value_name = "PRODUCER,NUMBER")]
        sequence: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// List topics.
    List {
        #[command(flatten)]
        server: Server,
    },
    /// Show a topic's settings and partitions.
    Describe {
        name: String,
        #[command(flatten)]
        server: Server,
    },
    /// Delete a topic with all its records.
    Delete {
        name: String,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  echo '{\"machine\":\"m-1\",\"seq\":1}' | buttress produce telemetry\n  buttress produce notes --key k lines.txt"
)]
pub struct ProduceArgs {
    pub topic: String,
    /// A file with one record per line; standard input when not given.
    pub file: Option<PathBuf>,
    /// The key of every record.
    #[arg(long)]
    pub key: Option<String>,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  buttress consume machine-anomalies --follow\n  buttress consume telemetry --partition 0 --from 100 --max 10 --output json"
)]
pub struct ConsumeArgs {
    pub topic: String,
    /// One partition; all of them when not given.
    #[arg(long)]
    pub partition: Option<u32>,
    /// `earliest`, `latest` or an offset.
    #[arg(long, default_value = "earliest")]
    pub from: String,
    /// Stop after this many records.
    #[arg(long)]
    pub max: Option<u64>,
    /// Wait for new records until Ctrl-C.
    #[arg(long)]
    pub follow: bool,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Subcommand)]
pub enum FnCommand {
    /// Deploy a WebAssembly component.
    #[command(
        after_help = "Example:\n  buttress fn deploy anomaly guests/built/anomaly.wasm --topic telemetry --output-topic machine-anomalies --model anomaly --state --route /infer"
    )]
    Deploy {
        name: String,
        component: PathBuf,
        /// Call it with batches of this topic.
        #[arg(long)]
        topic: Option<String>,
        /// Topics it may produce to.
        #[arg(long = "output-topic")]
        outputs: Vec<String>,
        /// Models it may ask.
        #[arg(long = "model")]
        models: Vec<String>,
        /// Let it keep state.
        #[arg(long)]
        state: bool,
        /// Paths on which it answers HTTP besides /fn/NAME/.
        #[arg(long = "route")]
        routes: Vec<String>,
        #[command(flatten)]
        server: Server,
    },
    /// List functions.
    List {
        #[command(flatten)]
        server: Server,
    },
    /// Print a function's latest log lines.
    Logs {
        name: String,
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        server: Server,
    },
    /// Call a function's HTTP handler.
    #[command(
        after_help = "Example:\n  buttress fn invoke anomaly /infer --data '{\"samples\":[[91.5,6.1]],\"ts\":1}'"
    )]
    Invoke {
        name: String,
        #[arg(default_value = "/")]
        path: String,
        /// The request's body; the request is then a POST.
        #[arg(long)]
        data: Option<String>,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Push a model; functions that use it score with it from the next batch on.
    Push {
        name: String,
        file: PathBuf,
        #[command(flatten)]
        server: Server,
    },
    /// List models.
    List {
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show members, leader and positions.
    Status {
        #[command(flatten)]
        server: Server,
    },
}
