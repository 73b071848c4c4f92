//! The fleet demo: a plant of machines plays against a real cluster, the cluster is hurt in the middle of it, and a
//! report says whether every promise held.
//!
//! What it never does: it never looks inside a node. It talks to the nodes as anybody would (MQTT, HTTP, Kafka), kills
//! them by signal, and judges by acknowledgements and by what a stock Kafka client reads back.
//!
//! The way of a run ([`run`]): wait for a leader; create the topic, push the model, deploy the function
//! ([`director`]); connect the sessions and gateways and play the schedule ([`players`], with [`mqtt`] and [`gateway`],
//! reading from the [`plant`] or from a [`data_file`]); kill, restart, swap and trap on the way; follow the verdicts live
//! ([`reader`], shown by [`feed`] and [`terminal`]); wait until everything sent is acknowledged and judged; read
//! everything back; judge ([`report`]).

pub mod cluster;
pub mod data_file;
pub mod plant;
pub mod reading;
pub mod training;

pub mod gateway;
pub mod http;
pub mod journal;
pub mod mqtt;
pub mod players;

pub mod committed;
pub mod director;
pub mod engines;
pub mod model;
pub mod reader;
pub mod report;

pub mod feed;
pub mod page;
pub mod terminal;

pub mod cli;
pub mod edge;
mod edge_kafka;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use buttress_core::{Code, Error};
use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

pub use cluster::{ClusterControl, NodeAddress};
pub use engines::Engines;
pub use feed::Feed;
pub use players::{Sessions, raise_limits};
pub use report::Report;
pub use terminal::Progress;

use cluster::Nodes;
use data_file::{DataFile, Mapping};
use director::{Candidate, Deeds, Director};
use feed::{Asked, Command, Phase, PromiseView, Tick};
use journal::Journal;
use plant::{Plant, machine_name};
use players::{Control, Play, Players, Source};
use reader::{Live, Names, Seen};
use report::{Evidence, FUNCTION, MODEL, TELEMETRY};
use terminal::Terminal;

/// The model that the run begins with, and the better one that it is swapped for; see `examples/fleet-model`.
pub const MODEL_V1: &[u8] = include_bytes!("../../../../examples/fleet-model/anomaly-v1.json");
pub const MODEL_V2: &[u8] = include_bytes!("../../../../examples/fleet-model/anomaly-v2.json");
/// For the AI4I 2020 file, which has no vibration; its temperature is in kelvin, as in the file.
pub const MODEL_AI4I: &[u8] = include_bytes!("../../../../examples/fleet-model/ai4i.json");

pub const MACHINES_DEFAULT: u32 = 10_000;
pub const MACHINES_MAX: u32 = 100_000;
pub const RATE_DEFAULT: f64 = 10_000.0;
pub const DURATION_DEFAULT: Duration = Duration::from_secs(60);
pub const SESSIONS_DEFAULT: Sessions = Sessions::Count(1_000);

const TELEMETRY_PARTITIONS: usize = 4;
/// A batch of each partition begins at most this often: on two cores fewer, larger commits leave room for all else.
const BATCH_PAUSE_MS: u64 = 20;
const ANOMALY_PARTITIONS: i32 = 2;

/// When things happen, as shares of the duration.
const TRAP_AT: f64 = 0.20;
const KILL_AT: f64 = 0.35;
/// After the killed host is back.
const BROKER_AT: f64 = 0.50;
const SWAP_AT: f64 = 0.65;
/// The killed node stays away this long, or a tenth of a short run.
const AWAY_MAX: Duration = Duration::from_secs(6);

const LEADER_WAIT: Duration = Duration::from_secs(30);
/// Without progress for this long the drain is given up, and the report shows what is missing.
const DRAIN_WAIT: Duration = Duration::from_secs(20);
const REFRESH: Duration = Duration::from_millis(500);
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// The components that the run deploys, as built from `guests/`.
#[derive(Clone)]
pub struct Assets {
    pub anomaly: Bytes,
    pub faulty: Bytes,
}

/// A file of the user's own readings.
#[derive(Clone, Debug)]
pub struct DataOptions {
    pub file: PathBuf,
    /// The values of `--map`.
    pub map: Vec<String>,
    pub label: Option<String>,
    pub model: Option<PathBuf>,
}

pub struct FleetOptions {
    pub machines: u32,
    /// Readings a second; `None`: [`RATE_DEFAULT`], and for a file, what plays it once within the duration.
    pub rate: Option<f64>,
    pub duration: Duration,
    pub seed: u64,
    pub sessions: Sessions,
    /// Kill, restart, swap and trap on the way.
    pub chaos: bool,
    pub assert_latency: bool,
    pub data: Option<DataOptions>,
    /// The user's own Kafka and etcd, instead of nodes with a log of their own.
    pub engines: Option<Engines>,
    pub assets: Assets,
    /// Shared with the page's server.
    pub feed: Arc<Feed>,
    pub progress: Progress,
}

impl FleetOptions {
    pub fn new(assets: Assets) -> Self {
        Self {
            machines: MACHINES_DEFAULT,
            rate: None,
            duration: DURATION_DEFAULT,
            seed: 1,
            sessions: SESSIONS_DEFAULT,
            chaos: true,
            assert_latency: false,
            data: None,
            engines: None,
            assets,
            feed: Arc::default(),
            progress: Progress::Auto,
        }
    }
}

/// What will be played, checked before anything starts.
struct Prepared {
    source: Source,
    names: Arc<Vec<String>>,
    rate: f64,
    total: u64,
    labelled: bool,
    candidates: Vec<Candidate>,
}

/// Checks the options and reads the user's file, without touching the cluster: call it before starting nodes, so that a
/// mistake in a file costs no start-up. [`run`] does it again.
///
/// # Errors
/// `CONFIG`, `DATA_FILE`, `LIMITS`, each with a hint.
pub fn check(options: &FleetOptions) -> Result<(), Error> {
    prepare(options).map(drop)
}

fn prepare(options: &FleetOptions) -> Result<Prepared, Error> {
    let config = |message: String, hint: &str| Err(Error::new(Code::CONFIG, message).hint(hint));
    if !(1..=MACHINES_MAX).contains(&options.machines) {
        return config(format!("--machines is {}", options.machines), "give a number from 1 to 100000");
    }
    if options.rate.is_some_and(|rate| !(0.1..=1_000_000.0).contains(&rate)) {
        return config(format!("--rate is {}", options.rate.unwrap_or(0.0)), "give 0.1 to 1000000 readings a second");
    }
    if !(1.0..=86_400.0).contains(&options.duration.as_secs_f64()) {
        return config(format!("--duration is {:?}", options.duration), "give 1s to 24h");
    }
    let prepared = match &options.data {
        None => {
            let rate = options.rate.unwrap_or(RATE_DEFAULT);
            Prepared {
                source: Source::Plant { plant: Plant::new(options.machines, options.seed), next: 0 },
                names: Arc::new((0..options.machines).map(machine_name).collect()),
                rate,
                total: (rate * options.duration.as_secs_f64()).ceil() as u64,
                labelled: true,
                candidates: vec![candidate("v1", MODEL_V1), candidate("v2", MODEL_V2)],
            }
        }
        Some(data) => {
            let mapping = Mapping::parse(&data.map)?;
            let candidates = models_for(data, &mapping)?;
            let file = DataFile::read(&data.file, &mapping, data.label.as_deref(), options.machines)?;
            let total = file.rows.len() as u64;
            Prepared {
                rate: options.rate.unwrap_or((total as f64 / options.duration.as_secs_f64()).max(0.1)),
                total,
                labelled: data.label.is_some(),
                names: Arc::new(file.machines),
                source: Source::File { rows: file.rows, next: 0 },
                candidates,
            }
        }
    };
    raise_limits(options.sessions, prepared.names.len() as u32)?;
    Ok(prepared)
}

fn candidate(version: &str, bytes: &'static [u8]) -> Candidate {
    Candidate { version: version.to_owned(), bytes: Bytes::from_static(bytes), scorer: model::scorer(bytes).ok() }
}

fn models_for(data: &DataOptions, mapping: &Mapping) -> Result<Vec<Candidate>, Error> {
    if let Some(path) = &data.model {
        let bytes = std::fs::read(path).map_err(|e| {
            Error::new(Code::DATA_FILE, format!("cannot read the model '{}': {e}", path.display()))
                .hint("give the path of a tree ensemble as JSON or ONNX")
        })?;
        // What a node would refuse is refused before one is started.
        buttress_engine::model::load(&bytes)
            .map_err(|e| Error { message: format!("'{}': {}", path.display(), e.message), ..e })?;
        let version = path.file_stem().map_or("model".into(), |stem| stem.to_string_lossy().into_owned());
        let scorer = model::scorer(&bytes).ok();
        return Ok(vec![Candidate { version, bytes: bytes.into(), scorer }]);
    }
    let features = mapping.features();
    match features.as_slice() {
        ["temperature", "speed", "torque", "wear"] => Ok(vec![candidate("ai4i", MODEL_AI4I)]),
        all if all == reading::FEATURES => Ok(vec![candidate("v1", MODEL_V1), candidate("v2", MODEL_V2)]),
        _ => Err(Error::new(Code::DATA_FILE, format!("there is no model for {} alone", features.join(", ")))
            .hint("give one with --model, or map temperature, speed, torque and wear (and vibration)")),
    }
}

/// Plays the fleet against the cluster and reports. Ctrl-C ends the play early, with a report of what was played; a
/// second Ctrl-C gives up.
///
/// # Errors
/// When the run cannot be carried out: no leader, a refused deployment, a cluster that stops answering. Broken promises are
/// no error but part of the report.
pub async fn run(options: FleetOptions, cluster: Arc<dyn ClusterControl>) -> anyhow::Result<Report> {
    let feed = Arc::clone(&options.feed);
    let prepared = prepare(&options)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let outcome = tokio::select! {
        outcome = play(options, prepared, cluster, Arc::clone(&interrupted)) => outcome,
        () = second_interrupt(Arc::clone(&interrupted), Arc::clone(&feed)) => {
            Err(Error::new(Code::STOPPED, "given up after a second Ctrl-C; there is no report").into())
        }
    };
    if outcome.is_err() {
        feed.phase(Phase::Failed);
        feed.update(|_| ());
    }
    outcome
}

/// The first Ctrl-C sets the flag; the second one returns.
async fn second_interrupt(interrupted: Arc<AtomicBool>, feed: Arc<Feed>) {
    for _ in 0..2 {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without a handler the default action ends the process, and nothing is to be done here.
            std::future::pending::<()>().await;
        }
        if !interrupted.swap(true, Ordering::Relaxed) {
            feed.event("stop", "Ctrl-C: no more readings; what was sent is checked (again to give up)");
        }
    }
}

/// Aborts its task when dropped, so that an early end leaves nothing running.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the director's task is asked.
enum Step {
    Button(Asked),
    Scheduled(Command),
    Trap,
    Broker,
}

async fn play(
    options: FleetOptions,
    prepared: Prepared,
    cluster: Arc<dyn ClusterControl>,
    interrupted: Arc<AtomicBool>,
) -> anyhow::Result<Report> {
    let feed = Arc::clone(&options.feed);
    let engines = options.engines.clone();
    let nodes = Arc::new(Nodes::new(cluster));
    anyhow::ensure!(!nodes.list.is_empty(), "the cluster has no nodes");
    let names = Arc::clone(&prepared.names);
    let duration_s = prepared.total as f64 / prepared.rate;
    feed.configure(names.len(), duration_s, options.seed);
    let journal = Arc::new(Journal::new(names.len()));
    let deeds = Arc::new(Mutex::new(Deeds::default()));
    let statuses = Arc::new(Mutex::new(vec![None; nodes.list.len()]));
    let _watch = Task(tokio::spawn(watch(Arc::clone(&nodes), Arc::clone(&feed), Arc::clone(&statuses))));

    let kind = if engines.is_some() { "function hosts" } else { "nodes" };
    feed.event("start", format!("{} {kind}, {} machines, seed {}", nodes.list.len(), names.len(), options.seed));
    wait_for_leader(&nodes).await?;

    feed.phase(Phase::Deploying);
    let mut director = Director {
        nodes: Arc::clone(&nodes),
        feed: Arc::clone(&feed),
        deeds: Arc::clone(&deeds),
        candidates: prepared.candidates,
        current: 0,
        generation: 0,
        machines: Arc::clone(&names),
        faulty: options.assets.faulty.clone(),
        engines: engines.clone(),
    };
    nodes
        .create_topic(
            &json!({"name": TELEMETRY, "partitions": TELEMETRY_PARTITIONS, "sequence_fields": ["machine", "seq"]}),
        )
        .await?;
    let first_generation = director.push(0).await?;
    let manifest = json!({
        "trigger": {"topic": TELEMETRY, "max_wait_ms": BATCH_PAUSE_MS},
        "routes": ["/infer"],
        "grants": {"models": [MODEL], "topics": [reader::ANOMALIES], "state": true},
        "output_partitions": ANOMALY_PARTITIONS,
    });
    director.deploy(FUNCTION, options.assets.anomaly.clone(), manifest).await?;
    feed.event(
        "deploy",
        format!("function {FUNCTION} with model {}, generation {first_generation}", director.candidates[0].version),
    );
    let candidates = director.candidates.clone();

    feed.phase(Phase::Connecting);
    let kafka = Arc::new(match &engines {
        None => reader::Kafka::Nodes(nodes.list.iter().map(|node| node.kafka.clone()).collect()),
        Some(engines) => reader::Kafka::Engine(engines.clone()),
    });
    let lookup = Arc::new(Names::new(&names));
    let live = Live::start(
        Arc::clone(&kafka),
        TELEMETRY_PARTITIONS,
        ANOMALY_PARTITIONS,
        Arc::clone(&lookup),
        Arc::clone(&feed),
    );
    let play = Play {
        source: prepared.source,
        names: Arc::clone(&names),
        rate: prepared.rate,
        total: prepared.total,
        sessions: options.sessions,
        nodes: Arc::new(nodes.list.clone()),
    };
    let mut players = Players::start(play, Arc::clone(&journal), Arc::clone(&feed))?;
    let display = Display {
        feed: Arc::clone(&feed),
        journal: Arc::clone(&journal),
        seen: Arc::clone(&live.seen),
        nodes: Arc::clone(&nodes),
        statuses,
        deeds: Arc::clone(&deeds),
        versions: candidates.iter().map(|candidate| candidate.version.clone()).collect(),
    };
    let mut display = Task(tokio::spawn(display.run(Terminal::new(options.progress))));
    let connected = players.connected().await;
    if connected == 0 {
        return Err(Error::new(Code::UNREACHABLE, "no MQTT session could connect to any node")
            .hint("look at the nodes' logs")
            .into());
    }
    feed.event("start", format!("{connected} MQTT sessions and {} HTTP gateways play", players.gateways));

    feed.start_clock();
    feed.phase(Phase::Playing);
    let started = Instant::now();
    players.begin();
    let (steps, steps_rx) = mpsc::channel(64);
    let directing = Task(tokio::spawn(direct(director, steps_rx, players.control())));
    let broker = engines.as_ref().is_some_and(|engines| engines.restart_broker.is_some());
    let chaos = options.chaos.then(|| schedule(duration_s, nodes.can_lose_one(), broker, candidates.len() > 1));
    let scheduled = Task(tokio::spawn(follow(started, chaos.unwrap_or_default(), steps.clone())));
    let buttons = Task(tokio::spawn(pass_buttons(feed.take_commands(), steps.clone())));
    while !interrupted.load(Ordering::Relaxed) {
        tokio::select! {
            () = players.played() => break,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
    players.stop();
    let played_s = started.elapsed().as_secs_f64().min(duration_s);
    let early = interrupted.load(Ordering::Relaxed);
    drop(scheduled);
    drop(buttons);

    feed.phase(Phase::Draining);
    if !early && lock(&deeds).failovers.iter().any(|failover| !failover.restarted) {
        // Whoever is still away comes back, so that its catching up can be judged.
        let _ = steps.send(Step::Scheduled(Command::Restart)).await;
    }
    drop(steps);
    // A step that was begun is ended; the channel is closed, so the task ends then.
    let mut directing = directing;
    let _ = tokio::time::timeout(DRAIN_WAIT, &mut directing.0).await;
    drain(&journal, &live, &kafka, &deeds).await?;
    live.stop();
    players.finish().await;

    feed.phase(Phase::Checking);
    feed.event(
        "check",
        match engines {
            None => "a stock Kafka client reads everything back",
            Some(_) => "what is committed in the Kafka is read back",
        },
    );
    let back = reader::read_back(&kafka, TELEMETRY_PARTITIONS, ANOMALY_PARTITIONS, &lookup).await?;
    let mut evidence = Evidence {
        nodes: nodes.list.len(),
        seed: options.seed,
        duration_s: played_s,
        interrupted: early,
        machines: journal.snapshot(),
        labelled: prepared.labelled,
        telemetry: back.telemetry,
        audit: back.audit,
        anomalies: back.anomalies,
        first_generation,
        assert_latency: options.assert_latency,
        on_engines: engines.clone(),
        ..Evidence::default()
    };
    {
        let mut seen = live.seen.lock().expect("no panic under this lock");
        evidence.verdicts_seen = std::mem::take(&mut seen.verdicts);
        evidence.alerts_seen = std::mem::take(&mut seen.alerts);
        let deeds = lock(&deeds);
        evidence.failovers.clone_from(&deeds.failovers);
        evidence.swaps.clone_from(&deeds.swaps);
        evidence.trap = deeds.trap;
        evidence.broker_restart.clone_from(&deeds.broker_restart);
        let scorers: Option<BTreeMap<_, _>> = deeds
            .pushed
            .iter()
            .map(|(generation, candidate)| candidates[*candidate].scorer.clone().map(|scorer| (*generation, scorer)))
            .collect();
        evidence.models = scorers.unwrap_or_default();
    }
    let report = tokio::task::spawn_blocking(move || report::judge(&evidence)).await.context("judging the run")?;
    feed.finish(&report);
    // One last look, then the line that is redrawn goes.
    display.0.abort();
    let _ = (&mut display.0).await;
    Ok(report)
}

fn lock(deeds: &Mutex<Deeds>) -> std::sync::MutexGuard<'_, Deeds> {
    deeds.lock().expect("no panic under this lock")
}

async fn wait_for_leader(nodes: &Nodes) -> Result<(), Error> {
    let until = Instant::now() + LEADER_WAIT;
    while Instant::now() < until {
        if nodes.leader().await.is_some() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(Error::new(Code::NO_LEADER, format!("no leader within {} s", LEADER_WAIT.as_secs()))
        .hint("look at the nodes' logs; `--keep` keeps them"))
}

/// What happens when, in seconds from the start.
fn schedule(duration_s: f64, kill: bool, broker: bool, swap: bool) -> Vec<(f64, Step)> {
    let away = (duration_s / 10.0).min(AWAY_MAX.as_secs_f64());
    let mut steps = vec![(duration_s * TRAP_AT, Step::Trap)];
    if kill {
        steps.push((duration_s * KILL_AT, Step::Scheduled(Command::KillLeader)));
        steps.push((duration_s * KILL_AT + away, Step::Scheduled(Command::Restart)));
    }
    if broker {
        steps.push((duration_s * BROKER_AT, Step::Broker));
    }
    if swap {
        steps.push((duration_s * SWAP_AT, Step::Scheduled(Command::SwapModel)));
    }
    steps
}

async fn follow(started: Instant, chaos: Vec<(f64, Step)>, steps: mpsc::Sender<Step>) {
    for (at_s, step) in chaos {
        let due = started + Duration::from_secs_f64(at_s);
        tokio::time::sleep_until(due.into()).await;
        if steps.send(step).await.is_err() {
            return;
        }
    }
}

async fn pass_buttons(asked: Option<mpsc::Receiver<Asked>>, steps: mpsc::Sender<Step>) {
    let Some(mut asked) = asked else { return };
    while let Some(asked) = asked.recv().await {
        if steps.send(Step::Button(asked)).await.is_err() {
            return;
        }
    }
}

/// Carries out the steps one after the other.
async fn direct(mut director: Director, mut steps: mpsc::Receiver<Step>, control: Arc<Control>) {
    while let Some(step) = steps.recv().await {
        match step {
            Step::Button(Asked { command, answer }) => {
                let outcome = director.execute(command, &control).await;
                let _ = answer.send(outcome);
            }
            Step::Scheduled(command) => {
                if let Err(error) = director.execute(command, &control).await {
                    // Somebody's button came first, or the cluster is not ready for it: told, and not judged.
                    director.feed.event("check", format!("not done on schedule: {}", error.message));
                }
            }
            Step::Broker => {
                if let Err(error) = director.restart_broker().await {
                    director.feed.event("check", format!("the broker was not restarted: {error}"));
                }
            }
            Step::Trap => {
                if let Err(error) = director.trap().await {
                    director.feed.event("check", format!("the trap could not be set: {}", error.message));
                }
            }
        }
    }
}

/// Waits until everything sent is acknowledged, everything in the log judged, and every restarted node has caught up.
async fn drain(journal: &Journal, live: &Live, kafka: &reader::Kafka, deeds: &Mutex<Deeds>) -> anyhow::Result<()> {
    let mut progress = (Instant::now(), journal.acked());
    while journal.acked() < journal.sent() && progress.0.elapsed() < DRAIN_WAIT {
        if journal.acked() > progress.1 {
            progress = (Instant::now(), journal.acked());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Where offsets count markers, and readings lie in the intake first, the number of verdicts says how far it is.
    let ends = match kafka {
        reader::Kafka::Nodes(nodes) => Some(reader::telemetry_ends(nodes, TELEMETRY_PARTITIONS).await?),
        reader::Kafka::Engine(_) => None,
    };
    let mut progress = (Instant::now(), 0);
    loop {
        let (judged, count) = {
            let seen = live.seen.lock().expect("no panic under this lock");
            let poison = lock(deeds).trap.map_or(0, |trap| trap.poison);
            let reached = match &ends {
                Some(ends) => seen.judged_to.iter().zip(ends).all(|(to, end)| to >= end),
                None => seen.verdict_count >= journal.acked(),
            };
            (reached && seen.set_aside >= poison, seen.verdict_count + seen.set_aside)
        };
        let caught_up = lock(deeds).failovers.iter().all(|failover| !failover.restarted || failover.caught_up);
        if judged && caught_up {
            break;
        }
        if count > progress.1 {
            progress = (Instant::now(), count);
        }
        if progress.0.elapsed() > DRAIN_WAIT {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Alerts of the last verdicts are on their way to the live consumer.
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(())
}

type Statuses = Arc<Mutex<Vec<Option<cluster::ClusterStatus>>>>;

/// Asks every node how it stands, a few times a second.
async fn watch(nodes: Arc<Nodes>, feed: Arc<Feed>, statuses: Statuses) {
    loop {
        let asked = (0..nodes.list.len()).map(|node| {
            let nodes = Arc::clone(&nodes);
            async move {
                match nodes.is_down(node) {
                    true => None,
                    false => nodes.status(node, Duration::from_secs(1)).await.ok(),
                }
            }
        });
        let answers = futures::future::join_all(asked).await;
        if let Some((leader, term)) = leader_of(&answers)
            && let Some(node) = nodes.by_id(leader)
            && !nodes.is_down(node)
        {
            feed.leader(Some(nodes.list[node].name.clone()), term);
        }
        *statuses.lock().expect("no panic under this lock") = answers;
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// The leader as the answer with the highest term names it.
fn leader_of(answers: &[Option<cluster::ClusterStatus>]) -> Option<(u64, u64)> {
    let newest = answers.iter().flatten().filter(|status| status.leader.is_some()).max_by_key(|status| status.term)?;
    Some((newest.leader?, newest.term))
}

/// Keeps the feed and the terminal fresh.
struct Display {
    feed: Arc<Feed>,
    journal: Arc<Journal>,
    seen: Arc<Mutex<Seen>>,
    nodes: Arc<Nodes>,
    statuses: Statuses,
    deeds: Arc<Mutex<Deeds>>,
    versions: Vec<String>,
}

/// Removes the redrawn line also when the task is aborted.
struct Cleared(Terminal);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.clear();
    }
}

impl Display {
    async fn run(self, terminal: Terminal) {
        let mut terminal = Cleared(terminal);
        let mut last: Option<(Instant, feed::Counters)> = None;
        let mut rounds = 0u32;
        let mut contained = false;
        let stories = http::HttpClient::default();
        loop {
            let now = Instant::now();
            let tick = self.measure(&mut last, now);
            if !contained && self.trap_is_contained() {
                contained = true;
                self.feed.event("contained", "the poisoned records were set aside; verdicts went on");
            }
            self.feed.update(|shown| {
                shown.counters = tick.counters;
                shown.rates = tick.rates;
                shown.latency_ms = tick.latency_ms;
                shown.cluster = tick.cluster;
                shown.model = tick.model;
                if shown.phase != Phase::Done {
                    shown.promises = tick.promises;
                }
            });
            terminal.0.show(&self.feed.tick(), &self.feed.events());
            if rounds.is_multiple_of(2) {
                self.tell_story(&stories).await;
            }
            rounds += 1;
            tokio::time::sleep_until((now + REFRESH).into()).await;
        }
    }

    fn trap_is_contained(&self) -> bool {
        let Some(trap) = lock(&self.deeds).trap else { return false };
        self.seen.lock().expect("no panic under this lock").set_aside >= trap.poison
    }

    fn measure(&self, last: &mut Option<(Instant, feed::Counters)>, now: Instant) -> Tick {
        let mut tick = Tick::default();
        let mut seen = self.seen.lock().expect("no panic under this lock");
        tick.counters = feed::Counters {
            sent: self.journal.sent(),
            acked: self.journal.acked(),
            verdicts: seen.verdict_count,
            anomalies: seen.anomaly_count,
            retries: self.journal.retries(),
        };
        if let Some((then, before)) = last {
            let seconds = (now - *then).as_secs_f64().max(0.001);
            let rate = |now: u64, before: u64| ((now - before) as f64 / seconds).round() as u64;
            tick.rates = feed::Rates {
                sent: rate(tick.counters.sent, before.sent),
                acked: rate(tick.counters.acked, before.acked),
                verdicts: rate(tick.counters.verdicts, before.verdicts),
                anomalies: rate(tick.counters.anomalies, before.anomalies),
            };
        }
        *last = Some((now, tick.counters.clone()));
        let since = feed::now_ms() - f64::from(reader::LATENCY_WINDOW_S) * 1_000.0;
        while seen.recent.front().is_some_and(|(at, _, _)| *at < since) {
            seen.recent.pop_front();
        }
        let mut verdicts: Vec<f64> = seen.recent.iter().map(|(_, verdict, _)| *verdict).collect();
        let mut alerts: Vec<f64> = seen.recent.iter().map(|(_, _, alert)| *alert).collect();
        tick.latency_ms = feed::LiveLatency {
            window_s: reader::LATENCY_WINDOW_S,
            count: verdicts.len(),
            p50: report::percentile(&mut verdicts, 0.5),
            p99: report::percentile(&mut verdicts, 0.99),
            max: report::percentile(&mut verdicts, 1.0),
            alert_p50: report::percentile(&mut alerts, 0.5),
            alert_p99: report::percentile(&mut alerts, 0.99),
        };
        let state = |sound: bool| if sound { "holding" } else { "broken" };
        tick.promises = [
            ("P1", "every acknowledged reading is in the log exactly once", "pending"),
            ("P2", "offsets have no gap, and each machine's sequence grows by one", "pending"),
            ("P3", "every reading is judged exactly once", state(seen.untiled == 0)),
            ("P4", "nothing is judged by an older model after a swap", state(seen.stale == 0)),
            ("P5", "the anomalies are exactly those that the model finds", "pending"),
        ]
        .map(|(id, text, state)| PromiseView { id, text: text.to_owned(), state })
        .into();
        drop(seen);
        tick.cluster = self.cluster();
        let deeds = lock(&self.deeds);
        if let Some((generation, candidate)) = deeds.pushed.last() {
            tick.model = feed::ModelView {
                name: MODEL.to_owned(),
                generation: *generation,
                version: self.versions[*candidate].clone(),
            };
        }
        tick
    }

    fn cluster(&self) -> feed::ClusterViewed {
        let statuses = self.statuses.lock().expect("no panic under this lock");
        let leader =
            leader_of(&statuses).filter(|(id, _)| self.nodes.by_id(*id).is_some_and(|n| !self.nodes.is_down(n)));
        let nodes = self.nodes.list.iter().zip(statuses.iter()).enumerate().map(|(at, (node, status))| {
            let alive = !self.nodes.is_down(at) && status.is_some();
            let status = status.clone().unwrap_or_default();
            feed::NodeView {
                name: node.name.clone(),
                id: node.id,
                http: node.http.clone(),
                alive,
                leader: alive && leader.is_some_and(|(id, _)| id == node.id),
                term: status.term,
                committed: status.committed,
                applied: status.applied,
            }
        });
        feed::ClusterViewed {
            leader: leader.and_then(|(id, _)| self.nodes.by_id(id)).map(|node| self.nodes.list[node].name.clone()),
            leader_id: leader.map(|(id, _)| id),
            hosts: self.nodes.are_hosts(),
            term: statuses.iter().flatten().map(|status| status.term).max().unwrap_or(0),
            nodes: nodes.collect(),
        }
    }

    /// The newest anomaly, with the entries of the log that hold its reading and its alert.
    async fn tell_story(&self, client: &http::HttpClient) {
        let Some(mut story) = self.seen.lock().expect("no panic under this lock").take_story() else { return };
        let up = (0..self.nodes.list.len()).find(|node| !self.nodes.is_down(*node));
        if let Some(node) = up {
            let address = &self.nodes.list[node].http;
            for place in [&mut story.source, &mut story.alert] {
                let path = format!(
                    "/v1/topics/{}/partitions/{}/records?offset={}&max=1",
                    place.topic, place.partition, place.offset
                );
                let asked = client.ask(address, &http::Ask::get(&path), Duration::from_millis(300)).await;
                if let Ok(answer) = asked
                    && answer.ok()
                {
                    let record = &answer.json()["records"][0];
                    place.entry = record["index"].as_u64();
                    place.committed_ms = record["committed_at"].as_u64();
                }
            }
        }
        self.feed.story(story);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> FleetOptions {
        FleetOptions::new(Assets { anomaly: Bytes::new(), faulty: Bytes::new() })
    }

    #[test]
    fn options_are_checked_before_anything_starts() {
        assert!(check(&options()).is_ok());
        let code = |change: fn(&mut FleetOptions)| {
            let mut options = options();
            change(&mut options);
            check(&options).unwrap_err().code
        };
        assert_eq!(code(|o| o.machines = 0), Code::CONFIG);
        assert_eq!(code(|o| o.rate = Some(f64::NAN)), Code::CONFIG);
        assert_eq!(code(|o| o.duration = Duration::ZERO), Code::CONFIG);
    }

    #[test]
    fn a_file_is_played_with_the_model_for_its_features() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("readings.csv");
        std::fs::write(&file, "t,v,s,q,w,bad\n300,2,1500,40,3,0\n310,9,1500,60,200,1\n").unwrap();
        let data = |map: &str| DataOptions {
            file: file.clone(),
            map: vec![map.to_owned()],
            label: Some("bad".into()),
            model: None,
        };
        let prepare_with = |map: &str| {
            let mut options = options();
            options.data = Some(data(map));
            options.duration = Duration::from_secs(4);
            prepare(&options)
        };
        let prepared = prepare_with("temperature=t:k,speed=s,torque=q,wear=w").unwrap();
        assert_eq!((prepared.total, prepared.rate, prepared.labelled), (2, 0.5, true));
        assert_eq!(prepared.candidates[0].version, "ai4i");
        let prepared = prepare_with("temperature=t:k,vibration=v,speed=s,torque=q,wear=w").unwrap();
        assert_eq!(prepared.candidates.len(), 2);
        let error = prepare_with("temperature=t").err().expect("no such model");
        assert_eq!(error.code, Code::DATA_FILE);
        assert!(error.hint.unwrap().contains("--model"));
    }

    #[test]
    fn the_schedule_fits_short_runs_and_leaves_out_what_cannot_be_done() {
        let kinds = |steps: &[(f64, Step)]| steps.iter().map(|(at, _)| *at).collect::<Vec<_>>();
        assert_eq!(kinds(&schedule(60.0, true, false, true)), [12.0, 21.0, 27.0, 39.0]);
        assert_eq!(kinds(&schedule(60.0, true, true, true)), [12.0, 21.0, 27.0, 30.0, 39.0]);
        assert_eq!(kinds(&schedule(10.0, true, false, false)), [2.0, 3.5, 4.5]);
        assert_eq!(schedule(60.0, false, false, false).len(), 1);
    }

    #[test]
    fn the_leader_is_whom_the_highest_term_names() {
        let status = |leader, term| Some(cluster::ClusterStatus { leader, term, ..Default::default() });
        assert_eq!(leader_of(&[status(Some(1), 2), status(Some(2), 3), None]), Some((2, 3)));
        assert_eq!(leader_of(&[status(None, 9), None]), None);
    }
}
