//! What a live page shows of a running fleet, and the buttons it has.
//!
//! The page's server needs three things: [`Feed::snapshot`] for the first picture, [`Feed::subscribe`] for what follows
//! (each item is one JSON text, ready for a server-sent event), and [`Feed::command`] for the buttons.
//!
//! # The JSON
//!
//! `snapshot` (and the `tick` update, which is the same without `events`, `timeline`, `stories`, `series`):
//!
//! ```json
//! {"type":"tick","phase":"playing","elapsed_s":12.4,"duration_s":60.0,"seed":1,"machines":10000,"columns":100,
//!  "health":"<base64: one byte per machine, row by row>",
//!  "counters":{"sent":123,"acked":120,"verdicts":118,"anomalies":2,"retries":0},
//!  "rates":{"sent":10000,"acked":9990,"verdicts":9991,"anomalies":80},
//!  "latency_ms":{"window_s":5,"count":400,"p50":18.2,"p99":41.0,"max":52.3,"alert_p50":20.1,"alert_p99":44.0},
//!  "cluster":{"leader":"n1","leader_id":1,"term":2,
//!    "nodes":[{"name":"n1","id":1,"http":"127.0.0.1:8080","alive":true,"leader":true,"term":2,"committed":10,"applied":10}]},
//!  "model":{"name":"anomaly","generation":1,"version":"v1"},
//!  "promises":[{"id":"P3","text":"…","state":"holding"}],
//!  "events":[{"at_s":21.0,"kind":"kill","text":"SIGKILL to n1, the leader of term 2"}],
//!  "timeline":[{"at_s":0.1,"leader":"n1","term":2}],
//!  "stories":[…],
//!  "series":[{"at_s":12.0,"acked":9990,"verdicts":9991,"anomalies":80,"p50":18.2,"p99":41.0}],
//!  "report":null}
//! ```
//!
//! A byte of `health` is 0 (calm) to 199 (strained): what the machine's last reading shows of vibration and
//! temperature; 255 is an alert of the function in the last [`ALERT_SHOWN_MS`]; 254 is a machine that has not sent yet.
//! `phase` is `starting`, `deploying`, `connecting`, `playing`, `draining`, `checking`, `done` or `failed`. A promise's
//! `state` is `holding`, `broken`, `pending` (judged at the end only) and at the end `held` or `broken`. Rates are per
//! second. `leader` is `null` while there is none. `report` is the report once there is one, as `--output json` prints
//! it.
//!
//! Further updates, each sent once:
//!
//! ```json
//! {"type":"event","at_s":21.0,"kind":"kill","text":"…"}
//! {"type":"leader","at_s":21.4,"leader":"n2","term":3}
//! {"type":"story","at_s":12.3,"machine":"m-00042","number":42,"seq":12,"score":0.93,"temperature":71.2,"vibration":5.9,
//!  "reason":"…","by":"model","sensor_ms":0,"arrived_ms":0,"alert_ms":0,
//!  "source":{"topic":"telemetry","partition":3,"offset":4711,"entry":991,"committed_ms":0},
//!  "alert":{"topic":"machine-anomalies","partition":1,"offset":17,"entry":993,"committed_ms":0},
//!  "verdict":{"from":4700,"to":4750},"model":{"generation":1,"digest":"sha256:…"}}
//! {"type":"report","report":{…}}
//! ```
//!
//! Kinds of events: `start`, `deploy`, `kill`, `election`, `restart`, `caught-up`, `swap`, `trap`, `contained`,
//! `wear-out`, `stop`, `check`. All times with `_ms` are milliseconds since the Unix epoch, `at_s` counts from the start
//! of the play. `entry` is the index of the log's entry that holds the record.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use buttress_core::{Code, Error};
use serde::Serialize;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{reading::Values, report::Report};

/// How long a machine is shown as alerting after an anomaly.
pub const ALERT_SHOWN_MS: u64 = 4_000;
/// Updates that a slow page may lag behind before it must take a new snapshot.
const UPDATES_MAX: usize = 256;
const EVENTS_MAX: usize = 200;
const STORIES_MAX: usize = 20;
const SERIES_MAX: usize = 600;
const COMMANDS_MAX: usize = 16;
const HEALTH_SILENT: u8 = 254;
const HEALTH_ALERT: u8 = 255;

/// Milliseconds since the Unix epoch, with the fraction.
pub fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1_000.0)
}

/// What a button does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    KillLeader,
    /// Restarts the node that has been down longest.
    Restart,
    SwapModel,
    WearOut(u32),
}

/// A command with the way back for its answer.
pub struct Asked {
    pub command: Command,
    pub answer: oneshot::Sender<Result<String, Error>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    #[default]
    Starting,
    Deploying,
    Connecting,
    Playing,
    Draining,
    Checking,
    Done,
    Failed,
}

impl Phase {
    pub fn text(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Deploying => "deploying",
            Self::Connecting => "connecting",
            Self::Playing => "playing",
            Self::Draining => "draining",
            Self::Checking => "checking",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Counters {
    pub sent: u64,
    pub acked: u64,
    pub verdicts: u64,
    pub anomalies: u64,
    /// Readings sent more than once.
    pub retries: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Rates {
    pub sent: u64,
    pub acked: u64,
    pub verdicts: u64,
    pub anomalies: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct LiveLatency {
    pub window_s: u32,
    pub count: usize,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub max: Option<f64>,
    pub alert_p50: Option<f64>,
    pub alert_p99: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct NodeView {
    pub name: String,
    pub id: u64,
    pub http: String,
    pub alive: bool,
    pub leader: bool,
    pub term: u64,
    pub committed: u64,
    pub applied: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct ClusterViewed {
    pub leader: Option<String>,
    pub leader_id: Option<u64>,
    /// The nodes are hosts of functions, and none of them leads.
    #[serde(skip)]
    pub hosts: bool,
    pub term: u64,
    pub nodes: Vec<NodeView>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelView {
    pub name: String,
    pub generation: u64,
    pub version: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct PromiseView {
    pub id: &'static str,
    pub text: String,
    pub state: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub struct EventView {
    pub at_s: f64,
    pub kind: &'static str,
    pub text: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct LeaderView {
    pub at_s: f64,
    pub leader: Option<String>,
    pub term: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Place {
    pub topic: &'static str,
    pub partition: i32,
    pub offset: i64,
    pub entry: Option<u64>,
    pub committed_ms: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct VerdictView {
    pub from: i64,
    pub to: i64,
}

#[derive(Clone, Debug, Serialize)]
pub struct JudgedBy {
    pub generation: u64,
    pub digest: String,
}

/// One anomaly from reading to alert.
#[derive(Clone, Debug, Serialize)]
pub struct Story {
    pub at_s: f64,
    pub machine: String,
    pub number: u32,
    pub seq: u32,
    pub score: f32,
    pub temperature: Option<f32>,
    pub vibration: Option<f32>,
    pub reason: String,
    pub by: String,
    pub sensor_ms: u64,
    pub arrived_ms: u64,
    pub alert_ms: u64,
    pub source: Place,
    pub alert: Place,
    pub verdict: Option<VerdictView>,
    pub model: Option<JudgedBy>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Point {
    pub at_s: f64,
    pub acked: u64,
    pub verdicts: u64,
    pub anomalies: u64,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
}

/// What changes all the time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tick {
    pub phase: Phase,
    pub elapsed_s: f64,
    pub duration_s: f64,
    pub seed: u64,
    pub machines: u32,
    pub columns: u32,
    pub health: String,
    pub counters: Counters,
    pub rates: Rates,
    pub latency_ms: LiveLatency,
    pub cluster: ClusterViewed,
    pub model: ModelView,
    pub promises: Vec<PromiseView>,
}

/// The whole picture.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    #[serde(flatten)]
    pub tick: Tick,
    pub events: VecDeque<EventView>,
    pub timeline: Vec<LeaderView>,
    pub stories: VecDeque<Story>,
    pub series: VecDeque<Point>,
    pub report: Option<Report>,
}

/// `{"type":…, …the item's fields}`.
#[derive(Serialize)]
struct Update<'a, T> {
    r#type: &'static str,
    #[serde(flatten)]
    item: &'a T,
}

struct Machines {
    strain: Vec<AtomicU8>,
    alert_ms: Vec<AtomicU64>,
}

/// See the module's documentation.
pub struct Feed {
    snapshot: Mutex<Snapshot>,
    machines: OnceLock<Machines>,
    /// `at_s` counts from here, in milliseconds since the epoch, as bits of an `f64`.
    started: AtomicU64,
    updates: broadcast::Sender<Arc<str>>,
    commands: mpsc::Sender<Asked>,
    asked: Mutex<Option<mpsc::Receiver<Asked>>>,
}

impl Default for Feed {
    fn default() -> Self {
        let (commands, asked) = mpsc::channel(COMMANDS_MAX);
        Self {
            snapshot: Mutex::default(),
            machines: OnceLock::new(),
            started: AtomicU64::new(now_ms().to_bits()),
            updates: broadcast::Sender::new(UPDATES_MAX),
            commands,
            asked: Mutex::new(Some(asked)),
        }
    }
}

impl Feed {
    /// The whole picture as JSON.
    pub fn snapshot(&self) -> String {
        let snapshot = self.lock();
        to_json("snapshot", &*snapshot)
    }

    /// What follows the snapshot. A receiver that lags must take a new snapshot.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<str>> {
        self.updates.subscribe()
    }

    /// Carries out a command; the answer is one sentence for the person who pressed the button.
    ///
    /// # Errors
    /// Why it cannot be done now, with a hint.
    pub async fn command(&self, command: Command) -> Result<String, Error> {
        let gone = || Error::new(Code::STOPPED, "the fleet is not playing").hint("start it again with `buttress demo`");
        let (answer, answered) = oneshot::channel();
        match self.commands.try_send(Asked { command, answer }) {
            Ok(()) => answered.await.unwrap_or_else(|_| Err(gone())),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(Error::new(Code::OVERLOADED, "too many commands wait already").hint("wait a second").retryable())
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(gone()),
        }
    }

    /// A copy of what changes all the time, for the terminal.
    pub fn tick(&self) -> Tick {
        self.lock().tick.clone()
    }

    pub fn events(&self) -> Vec<EventView> {
        self.lock().events.iter().cloned().collect()
    }

    // What follows is for the demo itself.

    pub(super) fn take_commands(&self) -> Option<mpsc::Receiver<Asked>> {
        self.asked.lock().expect("no panic under this lock").take()
    }

    pub(super) fn configure(&self, machines: usize, duration_s: f64, seed: u64) {
        let _ = self.machines.set(Machines {
            strain: (0..machines).map(|_| AtomicU8::new(HEALTH_SILENT)).collect(),
            alert_ms: (0..machines).map(|_| AtomicU64::new(0)).collect(),
        });
        let mut snapshot = self.lock();
        snapshot.tick.duration_s = duration_s;
        snapshot.tick.seed = seed;
        snapshot.tick.machines = machines as u32;
        snapshot.tick.columns = (machines as f64).sqrt().ceil() as u32;
    }

    /// The play begins now.
    pub(super) fn start_clock(&self) {
        self.started.store(now_ms().to_bits(), Ordering::Relaxed);
    }

    pub(super) fn at_s(&self) -> f64 {
        let seconds = (now_ms() - f64::from_bits(self.started.load(Ordering::Relaxed))) / 1_000.0;
        (seconds * 1_000.0).round() / 1_000.0
    }

    pub(super) fn phase(&self, phase: Phase) {
        self.lock().tick.phase = phase;
    }

    pub(super) fn event(&self, kind: &'static str, text: impl Into<String>) {
        let event = EventView { at_s: self.at_s(), kind, text: text.into() };
        self.send("event", &event);
        let mut snapshot = self.lock();
        if snapshot.events.len() == EVENTS_MAX {
            snapshot.events.pop_front();
        }
        snapshot.events.push_back(event);
    }

    pub(super) fn reading(&self, machine: u32, values: &Values) {
        if let Some(strain) = self.machines.get().and_then(|m| m.strain.get(machine as usize)) {
            strain.store(strain_of(values), Ordering::Relaxed);
        }
    }

    pub(super) fn alerted(&self, machine: u32) {
        if let Some(alert) = self.machines.get().and_then(|m| m.alert_ms.get(machine as usize)) {
            alert.store(now_ms() as u64, Ordering::Relaxed);
        }
    }

    pub(super) fn leader(&self, leader: Option<String>, term: u64) {
        let view = LeaderView { at_s: self.at_s(), leader, term };
        let mut snapshot = self.lock();
        if snapshot.timeline.last().is_some_and(|last| last.leader == view.leader && last.term == view.term) {
            return;
        }
        self.send("leader", &view);
        snapshot.timeline.push(view);
    }

    pub(super) fn story(&self, story: Story) {
        self.send("story", &story);
        let mut snapshot = self.lock();
        if snapshot.stories.len() == STORIES_MAX {
            snapshot.stories.pop_front();
        }
        snapshot.stories.push_back(story);
    }

    /// Replaces the running figures and tells everybody. `change` sees the last ones.
    pub(super) fn update(&self, change: impl FnOnce(&mut Tick)) {
        let health = self.health();
        let mut snapshot = self.lock();
        let elapsed = self.at_s();
        let tick = &mut snapshot.tick;
        if matches!(tick.phase, Phase::Playing | Phase::Draining) {
            tick.elapsed_s = elapsed;
        }
        tick.health = health;
        change(tick);
        if tick.phase == Phase::Playing {
            let point = Point {
                at_s: elapsed,
                acked: tick.rates.acked,
                verdicts: tick.rates.verdicts,
                anomalies: tick.rates.anomalies,
                p50: tick.latency_ms.p50,
                p99: tick.latency_ms.p99,
            };
            if snapshot.series.len() == SERIES_MAX {
                snapshot.series.pop_front();
            }
            snapshot.series.push_back(point);
        }
        self.send("tick", &snapshot.tick);
    }

    pub(super) fn finish(&self, report: &Report) {
        let mut snapshot = self.lock();
        snapshot.tick.phase = Phase::Done;
        snapshot.tick.promises = report
            .promises
            .iter()
            .map(|p| PromiseView { id: p.id, text: p.text.clone(), state: if p.held { "held" } else { "broken" } })
            .collect();
        snapshot.report = Some(report.clone());
        self.send("tick", &snapshot.tick);
        #[derive(Serialize)]
        struct Reported<'a> {
            report: &'a Report,
        }
        self.send("report", &Reported { report });
    }

    fn health(&self) -> String {
        let Some(machines) = self.machines.get() else { return String::new() };
        let since = (now_ms() as u64).saturating_sub(ALERT_SHOWN_MS);
        let bytes: Vec<u8> = machines
            .strain
            .iter()
            .zip(&machines.alert_ms)
            .map(|(strain, alert)| match alert.load(Ordering::Relaxed) > since {
                true => HEALTH_ALERT,
                false => strain.load(Ordering::Relaxed),
            })
            .collect();
        base64(&bytes)
    }

    fn send<T: Serialize>(&self, kind: &'static str, item: &T) {
        // Without a page there is nobody to serialise for.
        if self.updates.receiver_count() > 0 {
            let _ = self.updates.send(to_json(kind, item).into());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Snapshot> {
        self.snapshot.lock().expect("no panic under this lock")
    }
}

fn to_json<T: Serialize>(kind: &'static str, item: &T) -> String {
    serde_json::to_string(&Update { r#type: kind, item }).expect("structs of plain fields serialise")
}

/// 0 at rest, 199 at 90 °C or 7 mm/s, whichever is nearer.
fn strain_of(values: &Values) -> u8 {
    let share = |value: f32, calm: f32, limit: f32| match value.is_nan() {
        true => 0.0,
        false => ((value - calm) / (limit - calm)).clamp(0.0, 1.0),
    };
    (share(values.temperature, 40.0, 90.0).max(share(values.vibration, 1.0, 7.0)) * 199.0) as u8
}

/// Base64 as in RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            if at <= chunk.len() {
                out.push(ALPHABET[(word >> (18 - 6 * at)) as usize & 63].into());
            } else {
                out.push('=');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[tokio::test]
    async fn a_page_gets_a_snapshot_then_updates_and_its_buttons_are_answered() {
        let feed = Arc::new(Feed::default());
        feed.configure(4, 60.0, 7);
        feed.event("start", "the fleet starts");
        let mut updates = feed.subscribe();
        let snapshot: serde_json::Value = serde_json::from_str(&feed.snapshot()).unwrap();
        assert_eq!(snapshot["type"], "snapshot");
        assert_eq!(snapshot["columns"], 2);
        assert_eq!(snapshot["events"][0]["kind"], "start");

        feed.phase(Phase::Playing);
        feed.reading(0, &Values { temperature: 90.0, ..Values::NONE });
        feed.alerted(1);
        feed.update(|tick| tick.counters.sent = 5);
        let tick: serde_json::Value = serde_json::from_str(&updates.recv().await.unwrap()).unwrap();
        assert_eq!((&tick["type"], &tick["counters"]["sent"]), (&"tick".into(), &5.into()));
        assert_eq!(tick["health"], base64(&[199, 255, 254, 254]));
        feed.leader(Some("n1".into()), 2);
        feed.leader(Some("n1".into()), 2);
        feed.leader(None, 2);
        assert!(updates.recv().await.unwrap().contains(r#""leader":"n1""#));
        assert!(updates.recv().await.unwrap().contains(r#""leader":null"#));

        let mut asked = feed.take_commands().unwrap();
        let button = tokio::spawn({
            let feed = Arc::clone(&feed);
            async move { feed.command(Command::WearOut(3)).await }
        });
        let Asked { command, answer } = asked.recv().await.unwrap();
        assert_eq!(command, Command::WearOut(3));
        answer.send(Ok("m-00003 will fail".into())).unwrap();
        assert_eq!(button.await.unwrap().unwrap(), "m-00003 will fail");
        drop(asked);
        assert_eq!(feed.command(Command::Restart).await.unwrap_err().code, Code::STOPPED);
    }
}
