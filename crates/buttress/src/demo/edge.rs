//! `buttress demo --edge`: a gateway at the edge with a log of its own, beside the demo's cluster, which is its centre; with
//! `--kafka` the centre is a Kafka that the user has.
//!
//! Machines send to the gateway. A function there judges them by its local rules, for the model is at the centre; an uplink
//! forwards alerts (first) and readings to the centre, through a fault proxy. In the middle the link is cut, and later the
//! gateway is killed. A stock Kafka client reads both logs back from their beginning to their end, and [`judge`] holds the one
//! against the other: what the gateway has, the centre has, once and in its order, and nothing else.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use buttress_core::{Code, Error};
use bytes::{Bytes, BytesMut};
use http::Method;
use rskafka::client::partition::{OffsetAt, UnknownTopicHandling};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    cli::FleetArgs,
    cluster::NodeAddress,
    edge_kafka::{KafkaCentre, Values, relay},
    feed,
    gateway::Gateway,
    http::{Ask, HttpClient},
    journal::Journal,
    plant::{Plant, machine_name},
    reader,
    reading::{LoggedReading, write_reading},
    report::{Promise, Style, TELEMETRY, grouped},
};
use crate::{
    chaos::link::{Links, carry},
    cli::{Answer, args::Output},
    cluster::LocalCluster,
    dev::{scratch_dir, seed},
    logging,
};

const ALERTS: &str = reader::ANOMALIES;
const FUNCTION: &str = "anomaly";
const SPARE_MODEL: &str = "spare";
const UPLINK: &str = "centre";
const PARTITIONS: usize = 2;
const CUT: Duration = Duration::from_secs(10);
/// When things happen, as shares of the duration.
const CUT_AT: f64 = 0.25;
const KILL_AT: f64 = 0.75;
/// What was on its way when the link was cut may still come.
const SETTLE: Duration = Duration::from_millis(500);
/// Compiling the function takes a while on a busy machine.
const ASK_WAIT: Duration = Duration::from_secs(60);
/// Without progress for this long the wait for the uplink is given up, and the report shows what is missing.
const DRAIN_WAIT: Duration = Duration::from_secs(40);
const GATEWAYS: usize = 5;
const RATE_MAX: f64 = 20_000.0;
const TICK: Duration = Duration::from_millis(50);
const FETCH_BYTES: i32 = 4 * 1024 * 1024;
/// One machine wears out this often, so that there is something to warn of.
const WEAR_EVERY: Duration = Duration::from_millis(500);

/// The link from the edge to the centre, as the fault proxy numbers its ends.
const EDGE: u64 = 1;
const CENTRE: u64 = 2;

/// What was seen.
#[derive(Debug, Default)]
pub struct Evidence {
    pub acked: u64,
    /// Acknowledged readings that the gateway's log does not hold exactly once.
    pub acked_missing: u64,
    pub acked_twice: u64,
    pub cut_s: f64,
    pub killed: bool,
    /// Alerts and judged batches that came while the link was cut, at the gateway; records that came at the centre.
    pub cut_alerts: u64,
    pub cut_batches: u64,
    pub cut_arrived: u64,
    /// By topic: each partition at the gateway and at the centre.
    pub logs: BTreeMap<&'static str, Vec<(Values, Values)>>,
    pub by_model: u64,
    pub gap_records: u64,
    pub drained: bool,
}

/// How one log is in the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    pub edge: u64,
    pub centre: u64,
    pub lost: u64,
    pub duplicates: u64,
    /// Records at the centre that the gateway never had.
    pub foreign: u64,
    pub out_of_order: u64,
}

/// Holds the centre's partition against the gateway's.
fn compare(edge: &Values, centre: &Values) -> Compared {
    let mut left: BTreeMap<&[u8], i64> = BTreeMap::new();
    for value in edge {
        *left.entry(value).or_default() += 1;
    }
    let mut compared = Compared { edge: edge.len() as u64, centre: centre.len() as u64, ..Compared::default() };
    for value in centre {
        match left.get_mut(&value[..]) {
            Some(count) => {
                *count -= 1;
                compared.duplicates += u64::from(*count < 0);
            }
            None => compared.foreign += 1,
        }
    }
    compared.lost = left.values().filter(|count| **count > 0).sum::<i64>() as u64;
    if compared.lost + compared.duplicates + compared.foreign == 0 {
        compared.out_of_order = edge.iter().zip(centre).filter(|(edge, centre)| edge != centre).count() as u64;
    }
    compared
}

/// The one object of `demo --edge --output json`; its fields are stable.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EdgeReport {
    /// Of the centre; 0 where it is a Kafka.
    pub nodes: usize,
    /// The Kafka that is the centre.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kafka: Vec<String>,
    pub machines: u32,
    pub seed: u64,
    pub duration_s: f64,
    pub readings_sent: u64,
    pub readings_acked: u64,
    pub cut_s: f64,
    pub edge_killed: bool,
    pub alerts_during_cut: u64,
    pub batches_during_cut: u64,
    pub arrived_during_cut: u64,
    pub alerts: Compared,
    pub readings: Compared,
    pub gap_records: u64,
    /// From the end of the play until the centre had everything.
    pub drain_ms: Option<u64>,
    pub promises: Vec<Promise>,
    pub ok: bool,
}

/// Judges the run.
pub fn judge(evidence: &Evidence, mut report: EdgeReport) -> EdgeReport {
    let sum = |topic: &str| {
        let parts = evidence.logs.get(topic).map_or(&[][..], Vec::as_slice);
        parts.iter().fold(Compared::default(), |sum, (edge, centre)| {
            let one = compare(edge, centre);
            Compared {
                edge: sum.edge + one.edge,
                centre: sum.centre + one.centre,
                lost: sum.lost + one.lost,
                duplicates: sum.duplicates + one.duplicates,
                foreign: sum.foreign + one.foreign,
                out_of_order: sum.out_of_order + one.out_of_order,
            }
        })
    };
    let (alerts, readings) = (sum(ALERTS), sum(TELEMETRY));
    let whole =
        |c: &Compared| c.edge > 0 && c.edge == c.centre && c.lost + c.duplicates + c.foreign + c.out_of_order == 0;
    let counted = |c: &Compared| {
        format!(
            "{} at the edge, {} at the centre: {} lost, {} twice, {} foreign, {} out of order",
            grouped(c.edge),
            grouped(c.centre),
            c.lost,
            c.duplicates,
            c.foreign,
            c.out_of_order
        )
    };
    let mut promises = vec![
        Promise {
            id: "EDGE-1",
            text: "every acknowledged reading is in the gateway's log exactly once".into(),
            held: evidence.acked > 0 && evidence.acked_missing == 0 && evidence.acked_twice == 0,
            detail: format!(
                "{} acknowledged, {} missing, {} twice",
                grouped(evidence.acked),
                evidence.acked_missing,
                evidence.acked_twice
            ),
        },
        Promise {
            id: "EDGE-2",
            text: format!("while the link was cut for {:.0} s, verdicts went on by local rules", evidence.cut_s),
            held: evidence.cut_batches > 0
                && evidence.cut_alerts > 0
                && evidence.cut_arrived == 0
                && evidence.by_model == 0,
            detail: format!(
                "{} batches judged and {} alerts at the edge, {} records arrived at the centre, {} verdicts by a model",
                grouped(evidence.cut_batches),
                grouped(evidence.cut_alerts),
                evidence.cut_arrived,
                evidence.by_model
            ),
        },
        Promise {
            id: "EDGE-3",
            text: "every alert of the gateway is at the centre exactly once, in its order".into(),
            held: whole(&alerts),
            detail: counted(&alerts),
        },
        Promise {
            id: "EDGE-4",
            text: "every reading of the gateway is at the centre exactly once, in its order".into(),
            held: whole(&readings),
            detail: counted(&readings),
        },
        Promise {
            id: "EDGE-5",
            text: "nothing was given up: no gap record, and the uplink has nothing left".into(),
            held: evidence.gap_records == 0 && evidence.drained,
            detail: format!(
                "{} gap records, {}",
                evidence.gap_records,
                if evidence.drained { "nothing waits" } else { "records still wait" }
            ),
        },
    ];
    // Without chaos there is no cut to be judged.
    promises.retain(|promise| promise.id != "EDGE-2" || evidence.cut_s > 0.0);
    if evidence.killed {
        promises[0].text += ", through a kill -9";
    }
    report.readings_acked = evidence.acked;
    report.cut_s = (evidence.cut_s * 10.0).round() / 10.0;
    report.edge_killed = evidence.killed;
    report.alerts_during_cut = evidence.cut_alerts;
    report.batches_during_cut = evidence.cut_batches;
    report.arrived_during_cut = evidence.cut_arrived;
    report.alerts = alerts;
    report.readings = readings;
    report.gap_records = evidence.gap_records;
    report.ok = promises.iter().all(|promise| promise.held);
    report.promises = promises;
    report
}

impl EdgeReport {
    /// The report for people.
    pub fn render(&self, style: Style) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{}\n", style.paint("1", "Report of the edge"));
        let mut line = |name: &str, value: String, note: &str| {
            let _ = writeln!(out, "  {name:<22}{value:>12}   {}", style.paint("2", note));
        };
        let centre = match &self.kafka[..] {
            [] => format!("a centre of {} nodes", self.nodes),
            kafka => format!("the Kafka at {}", kafka.join(",")),
        };
        let machines = format!("{} machines at one gateway, {centre}", grouped(self.machines.into()));
        line("readings sent", grouped(self.readings_sent), &machines);
        line("acknowledged", grouped(self.readings_acked), "");
        line(
            "link cut",
            format!("{:.1} s", self.cut_s),
            if self.edge_killed { "and the gateway killed later" } else { "" },
        );
        line("alerts in the cut", grouped(self.alerts_during_cut), "raised at the gateway by its local rules");
        line(
            "alerts at the centre",
            grouped(self.alerts.centre),
            &format!("{} at the edge", grouped(self.alerts.edge)),
        );
        line(
            "readings at the centre",
            grouped(self.readings.centre),
            &format!("{} at the edge", grouped(self.readings.edge)),
        );
        line("lost", grouped(self.alerts.lost + self.readings.lost), "");
        line("duplicates", grouped(self.alerts.duplicates + self.readings.duplicates), "");
        let drained = self.drain_ms.map_or("-".into(), |ms| format!("{ms} ms"));
        line("caught up after", drained, "from the last reading on");
        let _ = writeln!(
            out,
            "\n{}\n",
            style.paint("1", "Promises, checked by reading both logs back as a Kafka's consumer does")
        );
        for promise in &self.promises {
            let mark = if promise.held { style.paint("32", "held  ") } else { style.paint("1;31", "BROKEN") };
            let _ = writeln!(out, "  {}  {mark}  {}", promise.id, promise.text);
            let _ = writeln!(out, "                  {}", style.paint("2", &promise.detail));
        }
        let verdict = if self.ok {
            style.paint("1;32", "Every promise held.")
        } else {
            style.paint("1;31", "A promise was broken.")
        };
        let _ = writeln!(out, "\n{verdict}");
        out
    }
}

/// Runs it from the command line.
pub fn run(args: &FleetArgs, component: Bytes) -> Answer {
    logging::init(logging::Format::Text, "error");
    let config = |message: String, hint: &str| Err(Error::new(Code::CONFIG, message).hint(hint).into());
    if args.duration < Duration::from_secs(4) {
        return config(format!("--duration is {:?}", args.duration), "the edge needs 4s at least");
    }
    let rate = args.rate.unwrap_or(1_000.0);
    if !(1.0..=RATE_MAX).contains(&rate) {
        return config(format!("--rate is {rate}"), "give the gateway 1 to 20000 readings a second");
    }
    if !(1..=super::MACHINES_MAX).contains(&args.machines) {
        return config(format!("--machines is {}", args.machines), "give a number from 1 to 100000");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(play(args, rate, component));
    runtime.shutdown_background();
    result
}

async fn play(args: &FleetArgs, rate: f64, component: Bytes) -> Answer {
    let (dir, temporary) = match &args.data_dir {
        Some(dir) => (dir.clone(), false),
        None => (scratch_dir("demo-edge")?, !args.keep),
    };
    let id = seed()? as u32;
    let centre = match &args.kafka[..] {
        [] => {
            let name = format!("centre-{id:08x}");
            Centre::Nodes(Box::new(LocalCluster::lay_out(&dir.join("centre"), args.nodes.into(), &name, seed()?)?))
        }
        kafka => Centre::Kafka(KafkaCentre::open(kafka, format!("edge-{id:08x}.")).await?),
    };
    let edge = LocalCluster::lay_out(&dir.join("edge"), 1, &format!("edge-{id:08x}"), seed()?)?;
    let outcome = tokio::select! {
        outcome = fleet(args, rate, component, &centre, &edge) => outcome,
        () = super::cli::terminated() => Err(Error::new(Code::STOPPED, "stopped by SIGTERM; there is no report").into()),
        _ = tokio::signal::ctrl_c() => Err(Error::new(Code::STOPPED, "stopped by Ctrl-C; there is no report").into()),
    };
    tokio::join!(edge.stop_all(), centre.stop());
    if let Centre::Kafka(kafka) = &centre {
        let left = format!("left behind: the topics that begin with {}", kafka.prefix);
        match if args.keep { None } else { Some(kafka.clean().await) } {
            None => eprintln!("{left}"),
            Some(Ok(topics)) => eprintln!("{topics} topics of the run were deleted"),
            Some(Err(error)) => eprintln!("{left}, for they cannot be deleted: {error:#}"),
        }
    }
    if temporary && outcome.is_ok() {
        let _ = std::fs::remove_dir_all(&dir);
    } else {
        eprintln!("the nodes' data and logs are in {}", dir.display());
    }
    let report = outcome?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string(&report)?),
        Output::Table => {
            let color = std::io::IsTerminal::is_terminal(&std::io::stdout())
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            print!("{}", report.render(Style { color }));
        }
    }
    Ok(report.ok)
}

/// Where the uplink leads.
enum Centre {
    Nodes(Box<LocalCluster>),
    Kafka(KafkaCentre),
}

impl Centre {
    async fn stop(&self) {
        if let Self::Nodes(cluster) = self {
            cluster.stop_all().await;
        }
    }

    async fn count(&self, topic: &str) -> anyhow::Result<u64> {
        match self {
            Self::Nodes(cluster) => Side::of(cluster).count(topic).await,
            Self::Kafka(kafka) => kafka.count(topic, PARTITIONS).await,
        }
    }

    async fn values(&self, topic: &'static str) -> anyhow::Result<Vec<Values>> {
        match self {
            Self::Nodes(cluster) => values(&Side::of(cluster).kafka(), topic).await,
            Self::Kafka(kafka) => kafka.values(topic, PARTITIONS).await,
        }
    }

    async fn gaps(&self, edge: &str) -> anyhow::Result<u64> {
        match self {
            Self::Nodes(_) => self.count(buttress_uplink::gap::TOPIC).await,
            Self::Kafka(kafka) => kafka.gaps(edge).await,
        }
    }
}

/// One of the two sides, over HTTP.
struct Side {
    http: HttpClient,
    nodes: Vec<NodeAddress>,
}

impl Side {
    fn of(cluster: &LocalCluster) -> Self {
        let address = |m: &crate::config::MemberConfig| NodeAddress {
            name: m.name.clone(),
            id: m.id,
            kafka: m.kafka.clone(),
            mqtt: m.mqtt.clone(),
            http: m.http.clone(),
        };
        Self { http: HttpClient::default(), nodes: cluster.members().iter().map(address).collect() }
    }

    fn kafka(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.kafka.clone()).collect()
    }

    /// Asks until it is answered: the gateway may just start again.
    async fn ask(&self, ask: &Ask<'_>) -> anyhow::Result<Value> {
        let end = Instant::now() + ASK_WAIT;
        loop {
            let problem = match self.http.ask(&self.nodes[0].http, ask, ASK_WAIT).await {
                Ok(answer) if answer.ok() => return Ok(answer.json()),
                Ok(answer) if !answer.status.is_server_error() => {
                    anyhow::bail!("{} {}: {}", ask.method, ask.path, answer.problem())
                }
                Ok(answer) => answer.problem(),
                Err(error) => error.to_string(),
            };
            anyhow::ensure!(Instant::now() < end, "{} {}: {problem}", ask.method, ask.path);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Records that a topic has had, over all partitions; 0 where there is none.
    async fn count(&self, topic: &str) -> anyhow::Result<u64> {
        let all = self.ask(&Ask::get("/v1/topics")).await?;
        let topics = all["topics"].as_array().cloned().unwrap_or_default();
        let found = topics.iter().find(|found| found["name"] == json!(topic));
        let partitions = found.and_then(|topic| topic["partitions"].as_array().cloned()).unwrap_or_default();
        Ok(partitions.iter().filter_map(|partition| partition["end"].as_u64()).sum())
    }
}

async fn fleet(
    args: &FleetArgs,
    rate: f64,
    component: Bytes,
    centre: &Centre,
    edge_cluster: &LocalCluster,
) -> anyhow::Result<EdgeReport> {
    let say = |text: String| eprintln!("{text}");
    let links = Arc::new(Links::default());
    let mut proxies = Vec::new();
    // What the uplink is told, and who serves there.
    let (to, target, centre_nodes) = match centre {
        Centre::Nodes(cluster) => {
            let (started, also) = tokio::join!(cluster.start_all(), edge_cluster.start_all());
            started?;
            also?;
            let mut places = Vec::new();
            let side = Side::of(cluster);
            for node in &side.nodes {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
                places.push(listener.local_addr()?.to_string());
                let way = carry(listener, EDGE, CENTRE, node.http.parse()?, links.clone());
                proxies.push(super::Task(tokio::spawn(way)));
            }
            say(format!("start    a gateway at the edge, and a centre of {} nodes", side.nodes.len()));
            (format!("buttress://{}", places.join(",")), None, side.nodes.len())
        }
        Centre::Kafka(kafka) => {
            edge_cluster.start_all().await?;
            say(format!("start    a gateway at the edge; the centre is the Kafka at {}", kafka.kafka.join(",")));
            let relay = relay(&kafka.kafka, &links, EDGE, CENTRE).await?;
            let to = format!("kafka://{}", relay.bootstrap.join(","));
            (to, Some((kafka, relay)), 0)
        }
    };
    let named = |topic: &str| target.as_ref().map_or(topic.to_owned(), |(kafka, _)| kafka.physical(topic));
    let edge = Side::of(edge_cluster);
    let name = edge_cluster.cluster_id();

    let topic = json!({"name": TELEMETRY, "partitions": PARTITIONS, "sequence_fields": ["machine", "seq"]});
    edge.ask(&Ask::json(Method::POST, "/v1/topics", topic.to_string())).await?;
    // The component can ask a model, so it is granted one; but not the one by which the centre judges, so its rules decide.
    let model = Bytes::from_static(super::MODEL_V1);
    edge.ask(&Ask::bytes(Method::PUT, &format!("/v1/models/{SPARE_MODEL}"), model)).await?;
    let uploaded = edge.ask(&Ask::bytes(Method::PUT, "/v1/blobs", component)).await?;
    let manifest = json!({
        "component": uploaded["digest"],
        "trigger": {"topic": TELEMETRY, "max_wait_ms": 20},
        "grants": {"models": [SPARE_MODEL], "topics": [ALERTS], "state": true},
        "output_partitions": PARTITIONS,
    });
    edge.ask(&Ask::json(Method::PUT, &format!("/v1/functions/{FUNCTION}"), manifest.to_string())).await?;
    let end = Instant::now() + ASK_WAIT;
    while edge.ask(&Ask::get(&format!("/v1/topics/{ALERTS}"))).await.is_err() {
        anyhow::ensure!(Instant::now() < end, "the topic of the function's alerts does not appear");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let uplink = json!({
        "name": UPLINK,
        "to": to,
        "edge": name,
        "topics": [
            {"topic": ALERTS, "target": named(ALERTS), "priority": "high"},
            {"topic": TELEMETRY, "target": named(TELEMETRY), "priority": "low"},
        ],
        "bound_bytes": 1u64 << 30,
        "create_topics": true,
    });
    edge.ask(&Ask::json(Method::POST, "/v1/uplinks", uplink.to_string())).await?;
    say(format!("uplink   {ALERTS} (high) and {TELEMETRY} (low) to the centre, through a fault proxy"));

    // The machines.
    let names: Arc<Vec<String>> = Arc::new((0..args.machines).map(machine_name).collect());
    let journal = Arc::new(Journal::new(names.len()));
    let gateways: Vec<Arc<Gateway>> =
        (0..GATEWAYS).map(|number| Arc::new(Gateway::new(number, names.clone(), journal.clone()))).collect();
    let nodes = Arc::new(edge.nodes.clone());
    let _posting: Vec<_> =
        gateways.iter().map(|gateway| super::Task(tokio::spawn(gateway.clone().run(nodes.clone())))).collect();
    let players = super::Task(tokio::spawn(machines(args.clone(), rate, gateways, journal.clone(), names.clone())));

    // The deeds.
    let mut evidence = Evidence::default();
    let started = Instant::now();
    let wait_until = |share: f64| tokio::time::sleep_until((started + args.duration.mul_f64(share)).into());
    if !args.no_chaos {
        wait_until(CUT_AT).await;
        let cut_for = CUT.min(args.duration.mul_f64(0.4));
        for (from, to) in [(EDGE, CENTRE), (CENTRE, EDGE)] {
            links.change(from, to, |link| link.cut = true);
        }
        let cut_at = Instant::now();
        say(format!("cut      the link, for {:.0} s", cut_for.as_secs_f64()));
        tokio::time::sleep(SETTLE).await;
        let before = counts(&edge, centre).await?;
        tokio::time::sleep_until((cut_at + cut_for).into()).await;
        let after = counts(&edge, centre).await?;
        links.heal();
        evidence.cut_s = cut_at.elapsed().as_secs_f64();
        evidence.cut_alerts = after.0 - before.0;
        evidence.cut_batches = after.1 - before.1;
        evidence.cut_arrived = after.2 - before.2;
        let status = edge.ask(&Ask::get(&format!("/v1/uplinks/{UPLINK}"))).await?;
        let waiting: i64 =
            status["lanes"].as_array().into_iter().flatten().filter_map(|l| l["lag_records"].as_i64()).sum();
        say(format!("heal     {} alerts were raised meanwhile; {waiting} records wait", evidence.cut_alerts));
        wait_until(KILL_AT).await;
        let name = edge.nodes[0].name.clone();
        edge_cluster.kill(&name).await?;
        say("kill     the gateway, with SIGKILL".into());
        edge_cluster.start(&name).await?;
        evidence.killed = true;
        say("restart  the gateway is back on its own log".into());
    }
    let mut players = players;
    let _ = (&mut players.0).await;

    // Everything that was sent is acknowledged, judged and forwarded, or nothing gets on any more.
    let played = Instant::now();
    let mut progress = (Instant::now(), (0, 0));
    let mut drain_ms = None;
    while progress.0.elapsed() < DRAIN_WAIT {
        let status = edge.ask(&Ask::get(&format!("/v1/uplinks/{UPLINK}"))).await?;
        let lanes = status["lanes"].as_array().cloned().unwrap_or_default();
        let idle = |lane: &Value| lane["state"] == json!("following") && lane["lag_records"] == json!(0);
        let acked = journal.acked();
        let there = centre.count(ALERTS).await? + centre.count(TELEMETRY).await?;
        let judged = edge.ask(&Ask::get(&format!("/v1/functions/{FUNCTION}"))).await?;
        let lag: i64 = judged["partitions"].as_array().into_iter().flatten().filter_map(|p| p["lag"].as_i64()).sum();
        if acked == journal.sent() && lag == 0 && !lanes.is_empty() && lanes.iter().all(idle) {
            let here = edge.count(ALERTS).await? + edge.count(TELEMETRY).await?;
            if here == there {
                drain_ms = Some(played.elapsed().as_millis() as u64);
                break;
            }
        }
        if progress.1 != (acked, there) {
            progress = (Instant::now(), (acked, there));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    evidence.drained = drain_ms.is_some();

    say("check    both logs are read back, as a consumer of Kafka does".into());
    for topic in [ALERTS, TELEMETRY] {
        let (here, there) = (values(&edge.kafka(), topic).await?, centre.values(topic).await?);
        evidence.logs.insert(topic, here.into_iter().zip(there).collect());
    }
    evidence.gap_records = centre.gaps(name).await?;
    evidence.acked = journal.acked();
    count_acked(&mut evidence, &journal, &names);
    let by_model =
        |value: &Vec<u8>| serde_json::from_slice::<Value>(value).is_ok_and(|alert| alert["by"] != json!("rules"));
    evidence.by_model = evidence.logs[ALERTS].iter().flat_map(|(edge, _)| edge).filter(|v| by_model(v)).count() as u64;
    let report = EdgeReport {
        nodes: centre_nodes,
        kafka: args.kafka.clone(),
        machines: args.machines,
        seed: args.seed,
        duration_s: (started.elapsed().as_secs_f64() * 10.0).round() / 10.0,
        readings_sent: journal.sent(),
        drain_ms,
        ..EdgeReport::default()
    };
    Ok(judge(&evidence, report))
}

/// Alerts and judged batches at the edge, records at the centre.
async fn counts(edge: &Side, centre: &Centre) -> anyhow::Result<(u64, u64, u64)> {
    let there = centre.count(ALERTS).await? + centre.count(TELEMETRY).await?;
    Ok((edge.count(ALERTS).await?, edge.count(reader::AUDIT).await?, there))
}

/// Plays the machines for the duration.
async fn machines(
    args: FleetArgs,
    rate: f64,
    gateways: Vec<Arc<Gateway>>,
    journal: Arc<Journal>,
    names: Arc<Vec<String>>,
) {
    let mut plant = Plant::new(args.machines, args.seed);
    let started = Instant::now();
    let (mut next, mut played, mut worn) = (0u32, 0u64, 0u32);
    while started.elapsed() < args.duration {
        let due = (started.elapsed().as_secs_f64() * rate) as u64;
        let wear = (started.elapsed().as_millis() / WEAR_EVERY.as_millis()) as u32;
        while worn < wear {
            plant.wear_out((worn * 7) % args.machines);
            worn += 1;
        }
        while played < due {
            let sample = plant.read(next);
            let seq = journal.send(next, sample.failed);
            let mut payload = BytesMut::with_capacity(200);
            write_reading(&mut payload, &names[next as usize], seq, feed::now_ms() as u64, &sample.values);
            gateways[next as usize % gateways.len()].push(next, seq, payload.freeze());
            next = (next + 1) % args.machines;
            played += 1;
        }
        gateways.iter().for_each(|gateway| gateway.flush());
        tokio::time::sleep(TICK).await;
    }
}

/// Holds the acknowledgements against the gateway's log.
fn count_acked(evidence: &mut Evidence, journal: &Journal, names: &[String]) {
    let mut found: BTreeMap<(String, u32), u64> = BTreeMap::new();
    for value in evidence.logs[TELEMETRY].iter().flat_map(|(edge, _)| edge) {
        if let Ok(reading) = serde_json::from_slice::<LoggedReading<'_>>(value) {
            *found.entry((reading.machine.into_owned(), reading.seq)).or_default() += 1;
        }
    }
    for (machine, name) in journal.snapshot().iter().zip(names) {
        for seq in machine.acked.iter() {
            match found.get(&(name.clone(), seq)) {
                None => evidence.acked_missing += 1,
                Some(1) => {}
                Some(_) => evidence.acked_twice += 1,
            }
        }
    }
}

/// Every partition of a topic, from its first to its last record, as a stock client reads it.
async fn values(kafka: &[String], topic: &'static str) -> anyhow::Result<Vec<Values>> {
    let client = reader::connect(kafka).await?;
    let mut all = Vec::new();
    for number in 0..PARTITIONS as i32 {
        let partition = client.partition_client(topic, number, UnknownTopicHandling::Retry);
        let partition = tokio::time::timeout(ASK_WAIT, partition).await.context("no leader in time")??;
        let mut next = partition.get_offset(OffsetAt::Earliest).await?;
        let end = partition.get_offset(OffsetAt::Latest).await?;
        let mut values = Values::new();
        let mut progress = Instant::now();
        while next < end {
            let (records, _) = partition.fetch_records(next, 1..FETCH_BYTES, 500).await?;
            for record in records.into_iter().filter(|record| record.offset < end) {
                next = record.offset + 1;
                values.push(record.record.value.unwrap_or_default());
                progress = Instant::now();
            }
            anyhow::ensure!(progress.elapsed() < ASK_WAIT, "nothing comes at offset {next} of {topic}/{number}");
        }
        all.push(values);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(texts: &[&str]) -> Values {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    #[test]
    fn what_is_lost_twice_foreign_or_out_of_order_is_told_apart() {
        let edge = values(&["a", "b", "c", "c"]);
        let told = |centre: &[&str]| {
            let c = compare(&edge, &values(centre));
            (c.lost, c.duplicates, c.foreign, c.out_of_order)
        };
        assert_eq!(told(&["a", "b", "c", "c"]), (0, 0, 0, 0));
        assert_eq!(told(&["a", "b", "c"]), (1, 0, 0, 0));
        assert_eq!(told(&["a", "b", "c", "c", "c"]), (0, 1, 0, 0));
        assert_eq!(told(&["a", "x", "c", "c"]), (1, 0, 1, 0));
        assert_eq!(told(&["b", "a", "c", "c"]), (0, 0, 0, 2));
    }

    fn good() -> Evidence {
        let pair = |texts: &[&str]| vec![(values(texts), values(texts))];
        Evidence {
            acked: 3,
            cut_s: 10.0,
            cut_alerts: 1,
            cut_batches: 5,
            logs: [(ALERTS, pair(&["alert"])), (TELEMETRY, pair(&["r1", "r2", "r3"]))].into(),
            drained: true,
            ..Evidence::default()
        }
    }

    #[test]
    fn every_promise_can_be_broken() {
        let broken = |change: &dyn Fn(&mut Evidence)| {
            let mut evidence = good();
            change(&mut evidence);
            let report = judge(&evidence, EdgeReport::default());
            assert_eq!(report.ok, report.promises.iter().all(|promise| promise.held));
            report.promises.iter().filter(|promise| !promise.held).map(|promise| promise.id).collect::<Vec<_>>()
        };
        assert_eq!(broken(&|_| {}), Vec::<&str>::new());
        assert_eq!(broken(&|e| e.acked_missing = 1), ["EDGE-1"]);
        assert_eq!(broken(&|e| e.acked_twice = 1), ["EDGE-1"]);
        assert_eq!(broken(&|e| e.acked = 0), ["EDGE-1"]);
        assert_eq!(broken(&|e| e.cut_alerts = 0), ["EDGE-2"]);
        assert_eq!(broken(&|e| e.cut_arrived = 1), ["EDGE-2"]);
        assert_eq!(broken(&|e| e.by_model = 1), ["EDGE-2"]);
        let at = |e: &mut Evidence, topic: &str, change: &dyn Fn(&mut Values)| {
            change(&mut e.logs.get_mut(topic).expect("it is there")[0].1);
        };
        assert_eq!(broken(&|e| at(e, ALERTS, &|v| v.push(b"alert".to_vec()))), ["EDGE-3"]);
        assert_eq!(broken(&|e| at(e, ALERTS, &|v| v.clear())), ["EDGE-3"]);
        assert_eq!(broken(&|e| at(e, TELEMETRY, &|v| v.swap(0, 1))), ["EDGE-4"]);
        assert_eq!(broken(&|e| e.gap_records = 1), ["EDGE-5"]);
        assert_eq!(broken(&|e| e.drained = false), ["EDGE-5"]);
    }
}
