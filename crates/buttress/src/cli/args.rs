//! What can be typed. One definition carries flag, help and default.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::{
    chaos::cli::ChaosCommand,
    demo::cli::FleetArgs,
    logging,
    mock::fate,
    resources::{cli as resources, route::RouteCommand},
};

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
    /// Hurt a cluster on purpose and check that its promises hold.
    #[command(subcommand)]
    Chaos(ChaosCommand),
    /// Run a cluster of real processes on this machine until Ctrl-C.
    Dev(DevArgs),
    /// Run one node.
    Serve(ServeArgs),
    /// Run functions on the Kafka and the etcd that you have, without a log of our own.
    Host(crate::engines::host::HostArgs),
    /// Bring routes, listeners, functions, models and topics to what files say.
    Apply(resources::ApplyArgs),
    /// List resources of a kind, or show one.
    Get(resources::GetArgs),
    /// Show a resource with its state, and what gateways say of it.
    Describe(resources::DescribeArgs),
    /// Show how files differ from what is there; exit code 1 if they do.
    Diff(resources::DiffArgs),
    /// Delete a resource, or all that stand in files.
    Delete(resources::DeleteArgs),
    /// Change a route or a listener in your editor.
    Edit(resources::EditArgs),
    /// Print the JSON Schema of a kind, for editors.
    Schema(resources::SchemaArgs),
    /// Try a request on routes, and say what of them is not wise.
    #[command(subcommand)]
    Route(RouteCommand),
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
    /// Read and write keys, and commit whole entries.
    #[command(subcommand)]
    Kv(KvCommand),
    /// Store records here and forward them to a Kafka or a Buttress somewhere else.
    #[command(subcommand)]
    Uplink(UplinkCommand),
    /// Run commands while a lock is held, on Buttress or on an etcd
    #[command(subcommand)]
    Lock(LockCommand),
    /// Look at the cluster, and change who its members are.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Take a backup of a running cluster, or verify one.
    Backup(BackupArgs),
    /// Build a node's data directory from a backup.
    Restore(RestoreArgs),
    /// Examine a cluster: what is wrong, or soon will be, and what mends it.
    Doctor(DoctorArgs),
    /// Put a proxy before a service: deadlines, budgeted retries, a breaker, metrics, and a reason for every failure.
    Proxy(ProxyArgs),
    /// One process of `demo orders`, which starts it.
    #[command(hide = true)]
    OrdersPart(crate::orders::part::PartArgs),
    /// Run an upstream that is as slow and as unreliable as you say, for tests.
    Mock(MockArgs),
    /// Explain an error code, or why a request through `buttress proxy` was answered as it was.
    Explain(ExplainArgs),
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  buttress explain BT0301\n  buttress explain 4f0c2a9be11d7c35 --admin 127.0.0.1:7390\n  buttress explain 4f0c2a9be11d7c35 --store http://127.0.0.1:2379"
)]
pub struct ExplainArgs {
    /// For example BT0301, BT-BRK-OPEN, or the x-request-id of an answer.
    #[arg(value_name = "CODE|REQUEST-ID")]
    pub what: String,
    /// The admin address that the proxy printed; several with commas, or more than once [default: 127.0.0.1:7390].
    #[arg(long, env = "BUTTRESS_ADMIN", value_delimiter = ',', value_name = "ADDRESS")]
    pub admin: Vec<String>,
    /// Ask every gateway that has its routes from this store.
    #[arg(long, value_name = "URL", conflicts_with = "admin")]
    pub store: Option<String>,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Where a proxy's page, metrics and records are by themselves.
pub const PROXY_ADMIN: &str = "127.0.0.1:7390";
/// Where a proxy listens, unless it is told.
pub const PROXY_LISTEN: &str = "127.0.0.1:8080";

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  buttress proxy --to 127.0.0.1:3000\n  buttress proxy --to 10.0.0.1:80 --to 10.0.0.2:80 --listen 0.0.0.0:8080\n  buttress proxy --to h2c://127.0.0.1:50051\n  buttress proxy --to 127.0.0.1:3000 --tls-cert cert.pem --tls-key key.pem --listen 0.0.0.0:8443\n  buttress proxy --to https://orders.internal:8443 --upstream-ca ca.pem\n  buttress proxy --tcp 127.0.0.1:5432=10.0.0.1:5432,10.0.0.2:5432\n  buttress proxy --config routes.yaml --access-log access.log\n  buttress proxy --store etcd://127.0.0.1:2379"
)]
pub struct ProxyArgs {
    /// An endpoint of the service: HOST:PORT; https://HOST:PORT for TLS (h2s:// for HTTP/2 only); h2c://HOST:PORT for HTTP/2
    /// without TLS. gRPC is always sent as HTTP/2.
    #[arg(long = "to", required_unless_present_any = ["config", "store", "tcp"], value_name = "HOST:PORT")]
    pub to: Vec<String>,
    /// A file, or a folder of files, with routes in YAML; changes are taken up within a second. Where --to is given too, it takes what no route takes.
    #[arg(long, value_name = "FILE|DIR")]
    pub config: Vec<PathBuf>,
    /// Routes, services and limits from a store: etcd://HOST:PORT, or http://HOST:PORT of a node's etcd port.
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    pub store: Option<String>,
    /// How this gateway is called in the store [default: host name and process id].
    #[arg(long, value_name = "NAME", requires = "store")]
    pub name: Option<String>,
    /// Where clients connect; port 0 takes a free one [default: 127.0.0.1:8080, or as a Listener of the configuration says].
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where the live page, metrics and records are [default: 127.0.0.1:7390, or a free port where that is taken].
    #[arg(long, value_name = "ADDR:PORT")]
    pub admin: Option<SocketAddr>,
    /// The most that a request may take until its answer begins, all attempts together.
    #[arg(long, default_value = "15s", value_parser = duration)]
    pub deadline: Duration,
    /// How long requests may go on after SIGTERM.
    #[arg(long, default_value = "25s", value_parser = duration)]
    pub drain: Duration,
    /// Threads that carry traffic [default: one for each core].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    #[command(flatten)]
    pub edge: EdgeArgs,
    /// A line of JSON for each request goes to this file, or to stdout: -. SIGUSR1 opens the file anew.
    #[arg(long, value_name = "FILE|-", conflicts_with = "bare")]
    pub access_log: Option<String>,
    /// Decision records are kept in this directory too, so that requests can be explained after a restart. One proxy for each.
    #[arg(long, value_name = "DIR", conflicts_with = "bare")]
    pub records: Option<PathBuf>,
    /// The most that they take there; the oldest go.
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = records_size)]
    pub records_size: u64,
    /// Spans go to this collector, http://HOST:PORT or https://HOST: OTLP over HTTP, as JSON. OTEL_SERVICE_NAME names the service.
    #[arg(long, value_name = "URL", conflicts_with = "bare")]
    pub otlp: Option<String>,
    /// Decision records go to the collector too, as log records: what failed, was refused or tried again, and few of the others.
    #[arg(long, requires = "otlp")]
    pub otlp_logs: bool,
    /// A field that the collector asks for, its key for example; VALUE or @FILE. More than once for more.
    #[arg(long, value_name = "NAME=VALUE", requires = "otlp")]
    pub otlp_header: Vec<String>,
    /// Believe a collector at https:// that has a certificate of an authority in this file [default: those that this machine trusts].
    #[arg(long, value_name = "FILE", requires = "otlp")]
    pub otlp_ca: Option<PathBuf>,
    /// The share of the traces that begin here that is exported; failures are, whatever it is.
    #[arg(long, default_value = "1%", value_name = "SHARE", value_parser = fate::share)]
    pub trace_sample: f64,
    /// Forward in turn and do nothing else: no policies, no metrics, no records.
    #[arg(long)]
    pub bare: bool,
    /// End when standard input ends: for whoever starts proxies as child processes.
    #[arg(long, hide = true)]
    pub with_parent: bool,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    #[arg(long, value_enum, default_value_t = logging::Format::Text)]
    pub log: logging::Format,
}

/// Connections of `buttress proxy`: TLS, TCP, and how long they may be silent.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Connections")]
pub struct EdgeArgs {
    /// Speak TLS to clients: a certificate and those between it and the authority, as PEM. More than once for more names.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Vec<PathBuf>,
    /// The key of the certificate, once for each.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Vec<PathBuf>,
    /// Clients must show a certificate of an authority in this file.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// They need not, but what they show must be right.
    #[arg(long, requires = "tls_client_ca")]
    pub tls_client_optional: bool,
    /// Believe upstreams with TLS that have a certificate of an authority in this file [default: those that this machine trusts].
    #[arg(long, value_name = "FILE")]
    pub upstream_ca: Option<PathBuf>,
    /// Show this certificate to upstreams that ask for one.
    #[arg(long, value_name = "FILE", requires = "upstream_key")]
    pub upstream_cert: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE", requires = "upstream_cert")]
    pub upstream_key: Option<PathBuf>,
    /// The name that certificates of upstreams must have [default: the host of the address].
    #[arg(long, value_name = "NAME")]
    pub upstream_name: Option<String>,
    /// Keep an X-Forwarded-Client-Cert that comes in, because a proxy that you trust wrote it.
    #[arg(long)]
    pub keep_client_cert: bool,
    /// Take the end of what a client sends as its leaving, and cancel its request.
    #[arg(long)]
    pub half_close_leaves: bool,
    /// How long an answer that has begun, a WebSocket or a TCP connection may be silent.
    #[arg(long, default_value = "1h", value_parser = duration)]
    pub silence: Duration,
    /// Join TCP connections at LISTEN to the endpoint with the fewest, whatever is spoken on them. More than once for more ports.
    #[arg(long, value_name = "LISTEN=HOST:PORT[,HOST:PORT]")]
    pub tcp: Vec<String>,
    /// Tell the endpoints of --tcp where clients come from (PROXY protocol, version 2).
    #[arg(long, requires = "tcp")]
    pub tcp_send_proxy: bool,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  buttress mock --fail 30%\n  buttress mock --latency p50=20ms,p99=2s --brownout 10s/60s --seed 1\n  buttress mock --fail 5% --fail-with reset"
)]
pub struct MockArgs {
    /// Where it listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// The share of requests that fail, for example 30%.
    #[arg(long, default_value = "0%", value_parser = fate::share)]
    pub fail: f64,
    /// How they fail: a status from 400 to 599, or reset. gRPC answers UNAVAILABLE to a status.
    #[arg(long, default_value = "503", value_name = "STATUS|reset", value_parser = fate::FailWith::parse)]
    pub fail_with: fate::FailWith,
    /// How long answers take: log-normal through these two, or one time for all.
    #[arg(long, default_value = "0ms", value_name = "p50=D,p99=D", value_parser = fate::Latency::parse)]
    pub latency: fate::Latency,
    /// A time in which every answer takes the p99 and fails, at the end of each period: 10s/60s.
    #[arg(long, value_name = "LASTS/EVERY", value_parser = fate::Brownout::parse)]
    pub brownout: Option<fate::Brownout>,
    /// Draws the same fates again [default: printed].
    #[arg(long)]
    pub seed: Option<u64>,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// What decision records may take of a disk.
fn records_size(text: &str) -> Result<u64, String> {
    use buttress_gateway::archive::BYTES_MIN;
    let bytes = size(text)?;
    if bytes < BYTES_MIN { Err(format!("records need {} MiB at least", BYTES_MIN >> 20)) } else { Ok(bytes) }
}

fn duration(text: &str) -> Result<Duration, String> {
    match fate::duration(text)? {
        Duration::ZERO => Err("it must be longer than nothing".into()),
        duration => Ok(duration),
    }
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
    /// Orders through five services, with and without the traffic plane, through faults; every order ends in a saga.
    Orders(crate::orders::cli::OrdersArgs),
}

#[derive(Debug, ClapArgs)]
pub struct DevArgs {
    /// Voters, each a process of its own.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7))]
    pub nodes: u8,
    /// Where the nodes keep their data; a temporary directory when not given.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Begin with the state of a backup, on nodes that have none yet.
    #[arg(long, value_name = "FILE.btb")]
    pub restore: Option<PathBuf>,
    /// Let topics lie in this Kafka too: buttress topic create NAME --engine kafka.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub kafka: Vec<String>,
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
        /// Where it lies: "embedded" or "kafka", the user's own; left out, where topics lie by themselves.
        #[arg(long)]
        engine: Option<String>,
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
pub enum UplinkCommand {
    /// Make an uplink.
    #[command(
        after_help = "Examples:\n  buttress uplink create hq --topic alerts:high --topic telemetry:low --to kafka://10.0.0.1:9092 --bound 2GiB --rate 1MiB\n  buttress uplink create hq --topic telemetry --to 'kafka://press-7@10.0.0.1:9093?tls=/etc/kafka/ca.pem&password-file=/run/secrets/kafka' --bound 2GiB\n  buttress uplink create hq --topic telemetry=plant7-telemetry --to buttress://10.0.0.1:7380 --bound 2GiB --create-topics"
    )]
    Create {
        name: String,
        /// What is forwarded: NAME, with :PRIORITY (high, normal, low) and =TARGET where they differ.
        #[arg(long = "topic", required = true, value_name = "NAME[:PRIORITY][=TARGET]")]
        topics: Vec<String>,
        /// kafka://[USER@]HOST:PORT[,…][?tls=…], with paths and variables of the node, or buttress://HOST:PORT with a node's HTTP
        /// address.
        #[arg(long)]
        to: String,
        /// This gateway's name at the target [default: the cluster's id].
        #[arg(long)]
        edge: Option<String>,
        /// The priority of topics that name none.
        #[arg(long, default_value = "normal")]
        priority: String,
        /// Bytes a second at most, for example 256KiB.
        #[arg(long, value_parser = size)]
        rate: Option<u64>,
        /// What the records of each topic may take on this disk, for example 2GiB; it becomes the topic's retention.
        #[arg(long, value_parser = size)]
        bound: Option<u64>,
        /// Begin with what is there (start), or with what comes (end).
        #[arg(long, default_value = "start")]
        from: String,
        /// What becomes of a record that is too large for the target: stop, or gap.
        #[arg(long, default_value = "stop")]
        oversized: String,
        /// Make the topics at the target where they are missing.
        #[arg(long)]
        create_topics: bool,
        /// Bytes of records in one commit.
        #[arg(long, value_parser = size)]
        parcel: Option<u64>,
        #[command(flatten)]
        server: Server,
    },
    /// List uplinks.
    List {
        #[command(flatten)]
        server: Server,
    },
    /// Show what an uplink does, and what is in its way.
    Status {
        name: String,
        #[command(flatten)]
        server: Server,
    },
    /// Stop forwarding; records wait here.
    Pause {
        name: String,
        #[command(flatten)]
        server: Server,
    },
    /// Go on, and try again at once.
    Resume {
        name: String,
        #[command(flatten)]
        server: Server,
    },
    /// Go on with this log where the target's position speaks of another one.
    #[command(after_help = "Example:\n  buttress uplink adopt hq --topic telemetry --from 1200")]
    Adopt {
        name: String,
        /// One topic; all of the uplink's when not given.
        #[arg(long)]
        topic: Option<String>,
        /// start, end or an offset of the local topic: what lies before it is not sent.
        #[arg(long)]
        from: String,
        #[command(flatten)]
        server: Server,
    },
    /// Delete an uplink. Records stay here and at the target.
    Delete {
        name: String,
        #[command(flatten)]
        server: Server,
    },
}

/// Reads `64KiB`, `2GiB`, `1MB` or a bare number of bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(format!("\"{unit}\" is not a unit of size; use KiB, MiB or GiB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("\"{text}\" is not a size; for example 64MiB"))?;
    number.checked_mul(scale).ok_or_else(|| format!("\"{text}\" is too large"))
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
        /// Most records of one batch, 1 to 4096; 512 where it is left out.
        #[arg(long, requires = "topic")]
        max_records: Option<usize>,
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
pub enum KvCommand {
    /// Print a key's value, or every key below a prefix.
    #[command(
        after_help = "Examples:\n  buttress kv get config/limit\n  buttress kv get config/ --prefix\n  buttress kv get config/limit --revision 7"
    )]
    Get {
        key: String,
        /// Every key that starts with KEY.
        #[arg(long)]
        prefix: bool,
        /// As it was at this revision.
        #[arg(long)]
        revision: Option<u64>,
        /// What the asked node has applied, without asking the others.
        #[arg(long)]
        serializable: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Set a key.
    Put {
        key: String,
        value: String,
        #[command(flatten)]
        server: Server,
    },
    /// Delete a key.
    Del {
        key: String,
        #[command(flatten)]
        server: Server,
    },
    /// Follow the changes of a key, or of every key below a prefix, until Ctrl-C.
    #[command(
        after_help = "Examples:\n  buttress kv watch config/limit\n  buttress kv watch config/ --prefix --from 7\n  buttress kv watch config/ --prefix --output json | jq .revision"
    )]
    Watch {
        key: String,
        /// Every key that starts with KEY.
        #[arg(long)]
        prefix: bool,
        /// The first revision whose changes are shown; what comes from now on when not given.
        #[arg(long, value_name = "REVISION")]
        from: Option<u64>,
        #[command(flatten)]
        server: Server,
    },
    /// Commit one entry: guards, keys, records, cursors, leases and timers, together or not at all.
    #[command(
        after_help = "Example:\n  echo '{\"guards\":[{\"key\":\"a\",\"mod_revision\":0}],\"puts\":[{\"key\":\"a\",\"value\":\"1\"}]}' | buttress kv txn"
    )]
    Txn {
        /// The entry as JSON; standard input when not given.
        file: Option<PathBuf>,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, Subcommand)]
pub enum LockCommand {
    /// Run a command while nobody else holds the lock
    ///
    /// The command finds the fencing token in BUTTRESS_LOCK_TOKEN. It is stopped when the lock is lost. Its exit code is
    /// ours; 1 says that the lock was not free within --wait, 2 that something failed or the lock was lost.
    ///
    /// Example: buttress lock run nightly --ttl 10s -- ./backup.sh
    Run {
        name: String,
        #[command(flatten)]
        options: LockOptions,
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Wait until this process leads, then run a command, or print name and token and lead until it is stopped
    Elect {
        name: String,
        /// What others see of the leader; host and process id if not given.
        #[arg(long)]
        value: Option<String>,
        #[command(flatten)]
        options: LockOptions,
        #[arg(last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Run a command while fewer than --limit others do
    Semaphore {
        name: String,
        /// How many may run at once.
        #[arg(long)]
        limit: usize,
        #[command(flatten)]
        options: LockOptions,
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Show who holds a lock and who waits; exit code 1 if nobody does
    Who {
        name: String,
        /// The limit of a semaphore.
        #[arg(long, default_value_t = 1)]
        limit: usize,
        /// An etcd to ask instead.
        #[arg(long, env = "BUTTRESS_ETCD", value_delimiter = ',', value_name = "URL,…")]
        etcd: Vec<String>,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, ClapArgs)]
pub struct LockOptions {
    /// The lock is lost when the cluster could not be reached for two thirds of this time; whole seconds, at least 2.
    #[arg(long, default_value = "10s", value_parser = crate::demo::cli::duration)]
    pub ttl: Duration,
    /// Give up after waiting so long.
    #[arg(long, value_parser = crate::demo::cli::duration)]
    pub wait: Option<Duration>,
    /// An etcd to lock in, instead of the cluster of --server.
    #[arg(long, env = "BUTTRESS_ETCD", value_delimiter = ',', value_name = "URL,…")]
    pub etcd: Vec<String>,
    /// A node's HTTP address; its cluster's etcd edges are used.
    #[arg(long, env = "BUTTRESS_SERVER", default_value = "http://127.0.0.1:7380")]
    pub server: String,
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show members, leader and positions.
    Status {
        #[command(flatten)]
        server: Server,
    },
    /// Add a node: ask the cluster for an id, write the node's configuration, and say or run the command that starts it.
    #[command(
        after_help = "Examples:\n  buttress cluster join --name node-4 --data-dir /var/lib/buttress --config node-4.toml\n  buttress cluster join --name node-4 --data-dir d4 --serve\n\nRepeating it is safe: the same name gets the same id until the node has started, and afterwards its own\nconfiguration tells that it has joined. It becomes a voter by itself once it has caught up."
    )]
    Join(JoinArgs),
    /// Take a member out of the cluster; its node stops.
    #[command(after_help = "Example:\n  buttress cluster remove node-2")]
    Remove {
        /// Name or id.
        member: String,
        #[command(flatten)]
        server: Server,
    },
    /// Make a learner a voter.
    #[command(after_help = "Example:\n  buttress cluster promote node-4")]
    Promote {
        /// Name or id.
        member: String,
        /// Even if it has not caught up, as long as the other voters are a quorum.
        #[arg(long)]
        force: bool,
        /// Wait for it to catch up for at most this many seconds.
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        wait: u64,
        #[command(flatten)]
        server: Server,
    },
    /// Let a member that has joined take the place of another, in one step.
    #[command(
        after_help = "Example, for node-2 whose machine is lost:\n  buttress cluster join --name node-4 --learner --data-dir d4 --serve &\n  buttress cluster replace node-2 --with node-4"
    )]
    Replace {
        /// Name or id of the member that goes.
        member: String,
        /// Name or id of the member that comes.
        #[arg(long)]
        with: String,
        /// Even if it has not caught up, as long as the other voters are a quorum.
        #[arg(long)]
        force: bool,
        /// Wait for it to catch up for at most this many seconds.
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        wait: u64,
        #[command(flatten)]
        server: Server,
    },
    /// Hand leadership over, to the most suitable voter where none is named.
    #[command(after_help = "Examples:\n  buttress cluster transfer\n  buttress cluster transfer node-2")]
    Transfer {
        /// Name or id.
        member: Option<String>,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, ClapArgs)]
pub struct JoinArgs {
    /// What the new member is called.
    #[arg(long)]
    pub name: String,
    /// Where the new node keeps its data; must be its own.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// The configuration file that is written; NAME.toml when not given.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Addresses of the new node, `IP:PORT`; free ports on loopback when not given.
    #[arg(long)]
    pub peer: Option<String>,
    #[arg(long)]
    pub kafka: Option<String>,
    #[arg(long)]
    pub mqtt: Option<String>,
    #[arg(long)]
    pub http: Option<String>,
    #[arg(long)]
    pub etcd: Option<String>,
    /// Serve addresses other than loopback in the clear.
    #[arg(long)]
    pub insecure: bool,
    /// Stay a learner until it is promoted by hand.
    #[arg(long)]
    pub learner: bool,
    /// Run the node until Ctrl-C.
    #[arg(long)]
    pub serve: bool,
    #[arg(long, value_enum, default_value_t = logging::Format::Text)]
    pub log: logging::Format,
    /// Stop when standard input ends: the parent process holds the other end.
    #[arg(long, hide = true)]
    pub with_parent: bool,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, ClapArgs)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  buttress backup --to monday.btb\n  buttress backup verify monday.btb\n  buttress restore monday.btb --config node-1.toml"
)]
pub struct BackupArgs {
    #[command(subcommand)]
    pub command: Option<BackupCommand>,
    /// The file that is written; it appears when the backup is whole.
    #[arg(long, required = true, value_name = "FILE.btb")]
    pub to: Option<PathBuf>,
    /// Take what the asked node has applied, also where it has lost the others, instead of everything that was acknowledged.
    #[arg(long)]
    pub stale: bool,
    /// Replace the file if it exists.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Check every byte of a backup and show what is inside; exit code 1 if it is damaged.
    Verify {
        file: PathBuf,
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Run it once for every node of the new cluster, with the same file and each node's own configuration:\n  buttress restore monday.btb --config node-1.toml\n  buttress restore monday.btb --config node-2.toml\n  buttress restore monday.btb --config node-3.toml"
)]
pub struct RestoreArgs {
    pub file: PathBuf,
    /// The configuration of the node; its data directory must be empty.
    #[arg(long, env = "BUTTRESS_CONFIG")]
    pub config: PathBuf,
    /// Let the new cluster have the id of the old one, of which no member may ever run again.
    #[arg(long)]
    pub same_cluster_id: bool,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  buttress doctor\n  buttress doctor --config node-1.toml --output json\n  buttress doctor --what-if remove=node-2\n\nExit codes: 0 nothing that must be mended, 1 a finding of level warning or critical, 2 it failed."
)]
pub struct DoctorArgs {
    /// A node's HTTP address, several with commas; the first that answers names the others. Default http://127.0.0.1:7380.
    #[arg(long = "server", env = "BUTTRESS_SERVER", value_delimiter = ',', value_name = "URL")]
    pub servers: Vec<String>,
    /// A node's configuration file: its members are asked, and held against the cluster's.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Show the arithmetic of a change of members, and do not do it: remove=NAME, promote=NAME, demote=NAME, add=NAME.
    #[arg(long, value_delimiter = ',', value_name = "STEP")]
    pub what_if: Vec<String>,
    /// Show the checks without a finding too.
    #[arg(long)]
    pub all: bool,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}
