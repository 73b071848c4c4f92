//! Starts and stops lanes, and keeps what can be said of them.
//!
//! On the leader every second, and whenever something changed: the uplinks as they lie in the key space are held against what
//! runs. An uplink that is new is started, one that has changed is started anew, one that is gone or no longer ours is
//! stopped. Stopping is an abort: the lane may be in the middle of a commit, and whoever starts next claims.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use buttress_core::{
    Cluster, Code, Consistency, Entry, Error, KeyRange, Ledger, LogId, Offset, Put, Stream, TimeMs,
    ledger::PartitionView,
};
use buttress_uplink::{Action, Bounds, Lane, Lineage, LocalBatch, Phase, Priority, Settings, Source, Tally, Trouble};
use bytes::Bytes;
use tokio::{sync::Notify, sync::watch, task::JoinHandle};

use super::{
    gate::Gate,
    resource::{KNOWN_PREFIX, PREFIX, Spec},
    secrets::Secrets,
    target::{Port, Target},
    telling::{Line, Telling},
};

const RECONCILE_EVERY: Duration = Duration::from_secs(1);
const MONITOR_EVERY: Duration = Duration::from_secs(1);
/// A read waits this long for new records.
const READ_WAIT_MS: u64 = 500;
/// How often a lane notes where it is.
const NOTE_EVERY_MS: u64 = 60_000;
/// The rate at which records come is an average over about this many seconds.
const RATE_OVER: f64 = 10.0;

pub struct Deps {
    pub ledger: Arc<dyn Ledger>,
    pub stream: Arc<dyn Stream>,
    pub cluster: Arc<dyn Cluster>,
    /// This gateway's name, where an uplink is given none.
    pub edge: String,
    /// What of this node's secrets an uplink may name.
    pub secrets: Secrets,
    /// Becomes true when the node stops.
    pub shutdown: watch::Receiver<bool>,
}

/// What a lane is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    route: usize,
    partition: u32,
    partitions: u32,
    log: LogId,
    id: [u8; 16],
}

/// What is known of a lane, for status and metrics.
#[derive(Clone, Debug)]
pub struct LaneView {
    pub topic: String,
    pub target: String,
    pub partition: u32,
    pub priority: Priority,
    pub phase: Phase,
    pub next: Option<Offset>,
    pub trouble: Option<Trouble>,
    pub retry_at: Option<TimeMs>,
    pub tally: Tally,
    pub last_sent_at: Option<TimeMs>,
    pub lag: Lag,
}

/// What waits here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lag {
    pub start: Offset,
    pub end: Offset,
    pub records: i64,
    /// By the mean size of what the partition holds.
    pub bytes: u64,
    pub oldest: Option<TimeMs>,
    /// Bytes a second that come in.
    pub rate: f64,
    /// Bytes that the partition may hold.
    pub bound: Option<u64>,
}

impl Lag {
    /// Milliseconds until retention overtakes the lane, if nothing is sent and records come as they do.
    pub fn full_in_ms(&self) -> Option<u64> {
        let left = self.bound?.saturating_sub(self.bytes);
        (self.rate > 0.5).then(|| (left as f64 / self.rate * 1000.0) as u64)
    }
}

struct LaneShared {
    view: Mutex<LaneView>,
    paused: AtomicBool,
    retry: AtomicBool,
    nudge: Notify,
}

/// An uplink that runs here.
struct Running {
    spec: Spec,
    plans: Vec<Plan>,
    lanes: Vec<Arc<LaneShared>>,
    /// Why it does not run, as a whole.
    trouble: Option<Error>,
    _tasks: Vec<Task>,
}

/// A task that ends when its handle is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All uplinks of this node.
pub struct Uplinks {
    pub(super) deps: Deps,
    running: Mutex<BTreeMap<String, Running>>,
    nudge: Notify,
}

/// The spec without what may change while it runs.
fn shape(spec: &Spec) -> Spec {
    Spec { paused: false, ..spec.clone() }
}

impl Uplinks {
    /// Starts the supervisor on the current runtime; it ends with `shutdown`.
    pub fn start(deps: Deps) -> Arc<Self> {
        let this = Arc::new(Self { deps, running: Mutex::default(), nudge: Notify::new() });
        tokio::spawn(this.clone().supervise());
        this
    }

    /// Looks at the key space now.
    pub(super) fn changed(&self) {
        self.nudge.notify_one();
    }

    /// Lets the lanes of an uplink try again at once.
    pub(super) fn retry(&self, name: &str) {
        if let Some(running) = lock(&self.running).get(name) {
            for lane in &running.lanes {
                lane.retry.store(true, Relaxed);
                lane.nudge.notify_one();
            }
        }
    }

    /// The lanes of an uplink as they run here, and why it does not run as a whole; `None` where it does not run here.
    pub fn lanes(&self, name: &str) -> Option<(Vec<LaneView>, Option<Error>)> {
        let running = lock(&self.running);
        let found = running.get(name)?;
        Some((found.lanes.iter().map(|lane| lock(&lane.view).clone()).collect(), found.trouble.clone()))
    }

    /// The uplinks in the key space.
    ///
    /// # Errors
    /// Those of the ledger.
    pub async fn specs(&self, consistency: Consistency) -> Result<Vec<(Spec, buttress_core::Revision)>, Error> {
        let found = self.deps.ledger.read(KeyRange::prefix(PREFIX), usize::MAX, consistency).await?;
        let read = |kv: &buttress_core::ledger::KeyValue| match serde_json::from_slice(&kv.value) {
            Ok(spec) => Some((spec, kv.mod_revision)),
            Err(error) => {
                tracing::warn!(plane = "uplink", key = %String::from_utf8_lossy(&kv.key), %error, "this is no uplink");
                None
            }
        };
        Ok(found.kvs.iter().filter_map(read).collect())
    }

    async fn supervise(self: Arc<Self>) {
        let mut shutdown = self.deps.shutdown.clone();
        let mut view = self.deps.cluster.view();
        loop {
            if view.is_leader() {
                match self.specs(Consistency::Serializable).await {
                    Ok(specs) => self.reconcile(specs.into_iter().map(|(spec, _)| spec).collect()).await,
                    Err(error) => tracing::warn!(plane = "uplink", %error, "the uplinks cannot be read"),
                }
            } else {
                lock(&self.running).clear();
            }
            tokio::select! {
                changed = self.deps.cluster.changed(&view) => view = changed,
                () = self.nudge.notified() => {}
                () = tokio::time::sleep(RECONCILE_EVERY) => {}
                _ = shutdown.wait_for(|stop| *stop) => {
                    lock(&self.running).clear();
                    return;
                }
            }
        }
    }

    async fn reconcile(self: &Arc<Self>, specs: Vec<Spec>) {
        lock(&self.running).retain(|name, _| specs.iter().any(|spec| spec.name == *name));
        for spec in specs {
            let plans = self.plan(&spec);
            let same = {
                let mut running = lock(&self.running);
                let found = running.get_mut(&spec.name);
                let same = found.as_ref().is_some_and(|found| {
                    shape(&found.spec) == shape(&spec)
                        && plans.as_ref().map_or(found.trouble.is_some(), |plans| *plans == found.plans)
                });
                if let Some(found) = found.filter(|_| same) {
                    for lane in &found.lanes {
                        if lane.paused.swap(spec.paused, Relaxed) != spec.paused {
                            lane.nudge.notify_one();
                        }
                    }
                    found.spec.paused = spec.paused;
                }
                same
            };
            if !same {
                // The old lanes end before the new ones begin.
                lock(&self.running).remove(&spec.name);
                let started = self.launch(spec.clone(), plans).await;
                lock(&self.running).insert(spec.name, started);
            }
        }
    }

    fn plan(&self, spec: &Spec) -> Result<Vec<Plan>, Error> {
        let mut plans = Vec::new();
        for (at, route) in spec.topics.iter().enumerate() {
            let topic = self.deps.stream.topic(&route.topic).ok_or_else(|| {
                Error::new(Code::TOPIC_UNKNOWN, format!("there is no topic \"{}\" here any more", route.topic))
                    .hint("make it again and `buttress uplink adopt` it, or delete the uplink")
            })?;
            let partitions = topic.partitions.len() as u32;
            plans.extend(topic.partitions.iter().zip(0..).map(|(view, partition)| Plan {
                route: at,
                partition,
                partitions,
                log: view.log,
                id: topic.id,
            }));
        }
        Ok(plans)
    }

    /// What was noted of an uplink's lanes.
    async fn known(&self, name: &str) -> BTreeMap<(String, u32), Offset> {
        let prefix = format!("{KNOWN_PREFIX}{name}/");
        let range = KeyRange::prefix(prefix.clone());
        let Ok(found) = self.deps.ledger.read(range, usize::MAX, Consistency::Serializable).await else {
            return BTreeMap::new();
        };
        let read = |kv: &buttress_core::ledger::KeyValue| {
            let (topic, partition) = std::str::from_utf8(&kv.key).ok()?.strip_prefix(&prefix)?.rsplit_once('/')?;
            let offset = std::str::from_utf8(&kv.value).ok()?.parse().ok()?;
            Some(((topic.to_owned(), partition.parse().ok()?), Offset(offset)))
        };
        found.kvs.iter().filter_map(read).collect()
    }

    async fn launch(self: &Arc<Self>, spec: Spec, plans: Result<Vec<Plan>, Error>) -> Running {
        let (plans, target) =
            match plans.and_then(|plans| Ok((plans, Arc::new(Target::new(&spec.to, &self.deps.secrets)?)))) {
                Ok(found) => found,
                Err(error) => {
                    return Running { spec, plans: vec![], lanes: vec![], trouble: Some(error), _tasks: vec![] };
                }
            };
        let known = self.known(&spec.name).await;
        let gate = Arc::new(Gate::new(spec.rate, self.deps.cluster.clone()));
        let mut lanes = Vec::new();
        let mut tasks = Vec::new();
        for (number, plan) in plans.iter().enumerate() {
            let route = &spec.topics[plan.route];
            let key = (route.topic.clone(), plan.partition);
            let mut seed = 0xcbf2_9ce4_8422_2325u64;
            for byte in format!("{}/{}/{}", spec.edge, route.topic, plan.partition).bytes() {
                seed = (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
            let settings = Settings {
                source: Source { edge: spec.edge.clone(), topic: route.topic.clone(), partition: plan.partition },
                lineage: Lineage { topic: plan.id, adopted: route.adopted },
                origin: route.origin(plan.partition as usize),
                parcel_bytes: spec.parcel_bytes,
                oversized: spec.oversized.policy(),
                known: known.get(&key).copied(),
                seed,
            };
            let shared = Arc::new(LaneShared {
                view: Mutex::new(LaneView {
                    topic: route.topic.clone(),
                    target: route.target.clone(),
                    partition: plan.partition,
                    priority: route.priority.class(),
                    phase: Phase::Claiming,
                    next: None,
                    trouble: None,
                    retry_at: None,
                    tally: Tally::default(),
                    last_sent_at: None,
                    lag: Lag::default(),
                }),
                paused: AtomicBool::new(spec.paused),
                retry: AtomicBool::new(false),
                nudge: Notify::new(),
            });
            let runner = Runner {
                uplinks: self.clone(),
                gate: gate.clone(),
                shared: shared.clone(),
                port: Port::new(target.clone(), &spec, route, settings.clone(), plan.partitions),
                lane: Lane::new(settings),
                log: plan.log,
                number: number as u64,
                note: format!("{KNOWN_PREFIX}{}/{}/{}", spec.name, route.topic, plan.partition),
                noted: None,
            };
            tasks.push(Task(tokio::spawn(runner.run())));
            lanes.push(shared);
        }
        tasks.push(Task(tokio::spawn(monitor(self.clone(), plans.clone(), lanes.clone()))));
        Running { spec, plans, lanes, trouble: None, _tasks: tasks }
    }

    fn partition(&self, topic: &str, log: LogId) -> Result<PartitionView, Error> {
        let found = self.deps.stream.topic(topic).and_then(|view| view.partitions.into_iter().find(|p| p.log == log));
        found.ok_or_else(|| Error::new(Code::TOPIC_UNKNOWN, format!("topic \"{topic}\" is not here any more")))
    }

    /// Appends the figures in Prometheus' text form.
    pub fn metrics(&self, out: &mut String) {
        let now = self.deps.cluster.now();
        let running = lock(&self.running);
        let mut lanes = Vec::new();
        for (name, found) in running.iter() {
            for lane in &found.lanes {
                let view = lock(&lane.view).clone();
                let labels = format!("uplink={name:?},topic={:?},partition=\"{}\"", view.topic, view.partition);
                lanes.push((labels, view));
            }
        }
        if lanes.is_empty() {
            return;
        }
        let mut family = |name: &str, kind: &str, value: &dyn Fn(&LaneView) -> Option<u64>| {
            let _ = writeln!(out, "# TYPE buttress_uplink_{name} {kind}");
            for (labels, view) in &lanes {
                if let Some(value) = value(view) {
                    let _ = writeln!(out, "buttress_uplink_{name}{{{labels}}} {value}");
                }
            }
        };
        family("lag_records", "gauge", &|view| Some(view.lag.records.max(0) as u64));
        family("lag_bytes", "gauge", &|view| Some(view.lag.bytes));
        family("oldest_age_ms", "gauge", &|view| {
            Some(view.lag.oldest.map_or(0, |oldest| now.0.saturating_sub(oldest.0)))
        });
        family("bound_bytes", "gauge", &|view| view.lag.bound);
        family("sent_records_total", "counter", &|view| Some(view.tally.records));
        family("sent_bytes_total", "counter", &|view| Some(view.tally.bytes));
        family("parcels_total", "counter", &|view| Some(view.tally.parcels));
        family("claims_total", "counter", &|view| Some(view.tally.claims));
        family("gaps_total", "counter", &|view| Some(view.tally.gaps));
        family("gap_records_total", "counter", &|view| Some(view.tally.gap_records));
        family("link_up", "gauge", &|view| {
            Some(u64::from(view.trouble.is_none() && matches!(view.phase, Phase::Reading | Phase::Sending)))
        });
    }
}

/// Looks at what waits.
async fn monitor(uplinks: Arc<Uplinks>, plans: Vec<Plan>, lanes: Vec<Arc<LaneShared>>) {
    let mut before: Vec<Option<(TimeMs, Offset)>> = vec![None; lanes.len()];
    loop {
        for ((plan, lane), before) in plans.iter().zip(&lanes).zip(&mut before) {
            let (topic, next, rate) = {
                let view = lock(&lane.view);
                (view.topic.clone(), view.next, view.lag.rate)
            };
            let Some(settings) = uplinks.deps.stream.topic(&topic).map(|view| view.settings) else { continue };
            let Ok(partition) = uplinks.partition(&topic, plan.log) else { continue };
            let now = uplinks.deps.cluster.now();
            let held = (partition.end.0 - partition.start.0).max(0);
            let mean = if held > 0 { partition.bytes as f64 / held as f64 } else { 0.0 };
            let next = next.unwrap_or(partition.start).max(partition.start);
            let records = (partition.end.0 - next.0).max(0);
            let mut oldest = None;
            if records > 0
                && let Ok(found) = uplinks.deps.stream.fetch(plan.log, next, 1, 0).await
            {
                oldest = found.batches.first().map(|batch| batch.committed_at);
            }
            let came = before.map_or(0.0, |(at, end)| {
                let seconds = (now.0.saturating_sub(at.0) as f64 / 1000.0).max(0.001);
                (partition.end.0 - end.0).max(0) as f64 * mean / seconds
            });
            let share = if before.is_some() { 1.0 / RATE_OVER } else { 1.0 };
            *before = Some((now, partition.end));
            lock(&lane.view).lag = Lag {
                start: partition.start,
                end: partition.end,
                records,
                bytes: (records as f64 * mean) as u64,
                oldest,
                rate: rate * (1.0 - share) + came * share,
                bound: settings.retention_bytes,
            };
        }
        tokio::time::sleep(MONITOR_EVERY).await;
    }
}

/// Does what one lane asks for.
struct Runner {
    uplinks: Arc<Uplinks>,
    gate: Arc<Gate>,
    shared: Arc<LaneShared>,
    lane: Lane,
    port: Port,
    log: LogId,
    number: u64,
    note: String,
    noted: Option<(TimeMs, Offset)>,
}

fn local(batch: buttress_core::ledger::Batch) -> LocalBatch {
    LocalBatch {
        base: batch.base_offset,
        last: batch.last_offset,
        max_timestamp_ms: batch.max_timestamp_ms,
        bytes: batch.bytes,
    }
}

impl Runner {
    fn now(&self) -> TimeMs {
        self.uplinks.deps.cluster.now()
    }

    async fn run(mut self) {
        let topic = self.lane.settings().source.topic.clone();
        let priority = lock(&self.shared.view).priority;
        let mut telling = Telling::default();
        loop {
            let now = self.now();
            self.lane.pause(self.shared.paused.load(Relaxed));
            if self.shared.retry.swap(false, Relaxed) {
                self.lane.retry();
            }
            let action = self.lane.poll(now);
            self.publish(&action);
            let trouble = self.lane.trouble().map(|trouble| trouble.error.code);
            match telling.next(now, trouble) {
                Some(Line::Trouble) => {
                    let trouble = self.lane.trouble().expect("it was told of one");
                    tracing::warn!(plane = "uplink", topic, partition = self.lane.settings().source.partition,
                        code = trouble.error.code.0, error = %trouble.error.message, "an uplink does not get on");
                }
                Some(Line::GetsOn) => {
                    tracing::info!(
                        plane = "uplink",
                        topic,
                        partition = self.lane.settings().source.partition,
                        "an uplink gets on again"
                    );
                }
                None => {}
            }
            match action {
                Action::Claim => {
                    let found = self.port.claim().await;
                    self.lane.claimed(self.now(), found);
                }
                Action::Look { mark } => {
                    let found = self.look(&topic, mark).await;
                    self.lane.looked(self.now(), found);
                }
                Action::Read { from, bytes_max } => {
                    let nudge = self.shared.clone();
                    let read = self.uplinks.deps.stream.fetch(self.log, from, bytes_max, READ_WAIT_MS);
                    let found = tokio::select! {
                        found = read => found,
                        // Paused in the middle of a wait.
                        () = nudge.nudge.notified() => continue,
                    };
                    let found = found.map(|found| {
                        let bounds = Bounds { start: found.start, end: found.end };
                        (bounds, found.batches.into_iter().map(local).collect())
                    });
                    self.lane.read(self.now(), found);
                    self.remember(false).await;
                }
                Action::Send(parcel) => {
                    let gate = self.gate.clone();
                    let pass = gate.pass(self.number, priority, parcel.bytes).await;
                    let outcome = self.port.commit(&parcel, self.now()).await;
                    drop(pass);
                    let now = self.now();
                    if outcome.is_ok() {
                        lock(&self.shared.view).last_sent_at = Some(now);
                    }
                    let sent = outcome.is_ok();
                    self.lane.sent(now, outcome);
                    if sent {
                        self.remember(self.noted.is_none()).await;
                    }
                }
                Action::Wait { until } => {
                    let pause = until.map(|until| Duration::from_millis(until.0.saturating_sub(now.0).max(1)));
                    tokio::select! {
                        () = self.shared.nudge.notified() => {}
                        () = tokio::time::sleep(pause.unwrap_or(Duration::from_secs(3600))) => {}
                    }
                }
            }
        }
    }

    fn publish(&self, action: &Action) {
        let mut view = lock(&self.shared.view);
        view.phase = self.lane.phase();
        view.next = self.lane.next().or(view.next);
        view.trouble = self.lane.trouble().cloned();
        view.retry_at = match action {
            Action::Wait { until } => *until,
            _ => None,
        };
        view.tally = self.lane.tally();
    }

    /// The local log as it is now, and not as it was on some replica: what the target has was committed here before.
    async fn look(&self, topic: &str, mark: Option<Offset>) -> Result<(Bounds, Option<LocalBatch>), Error> {
        let deps = &self.uplinks.deps;
        deps.ledger.read(KeyRange::key(PREFIX), 1, Consistency::Linearizable).await?;
        let partition = self.uplinks.partition(topic, self.log)?;
        let bounds = Bounds { start: partition.start, end: partition.end };
        let Some(mark) = mark.filter(|mark| *mark >= bounds.start && *mark < bounds.end) else {
            return Ok((bounds, None));
        };
        let found = match deps.stream.fetch(self.log, mark, 1, 0).await {
            Ok(found) => found,
            // Retention was quicker.
            Err(error) if error.code == Code::OFFSET_OUT_OF_RANGE => return Ok((bounds, None)),
            Err(error) => return Err(error),
        };
        let holds = |batch: &LocalBatch| batch.base <= mark && mark <= batch.last;
        Ok((bounds, found.batches.into_iter().map(local).find(holds)))
    }

    /// Notes in the key space that the lane has been here; only a hint, so it is done now and then.
    async fn remember(&mut self, at_once: bool) {
        let (Some(next), now) = (self.lane.next(), self.now()) else { return };
        let due = match self.noted {
            None => at_once,
            Some((at, noted)) => noted != next && now.0.saturating_sub(at.0) >= NOTE_EVERY_MS,
        };
        if !due {
            return;
        }
        let put = Put { key: Bytes::from(self.note.clone()), value: Some(next.to_string().into()), lease: None };
        match self.uplinks.deps.ledger.submit(Entry { puts: vec![put], ..Entry::default() }).await {
            Ok(_) => self.noted = Some((now, next)),
            Err(error) => tracing::debug!(plane = "uplink", %error, "an uplink's place cannot be noted"),
        }
    }
}
