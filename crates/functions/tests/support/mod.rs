//! A plane on an in-memory ledger, with an engine of plain Rust: a component is a line of JSON that says what it does,
//! and a model is a threshold.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use buttress_core::{
    Append, BoxFuture, Cluster, Code, Consistency, Engine, Entry, Error, Guest, KeyRange, Ledger, LogId, Model, Offset,
    Receipt, Revision, Scope, Stream, SubmitError,
    entry::TopicSettings,
    guest::{BatchCall, BatchInstance, BatchOutcome, Grants, GuestLimits, GuestLog, GuestOutput, HttpAnswer, HttpCall},
    ledger::{KeyValues, Watch},
    model::ModelInfo,
};
use buttress_functions::{
    Deps, FunctionsPlane, Home, blob,
    catalogue::{Snapshot, wait_for},
    deploy::Deployed,
    resource::Manifest,
};
use buttress_state::local::Local;
use buttress_wire::records::{BatchView, Builder};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Holds guests back, so that a test can do something in the middle of a call.
#[derive(Default)]
pub struct Gate {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    pub fn close(&self) {
        self.state.lock().unwrap().0 = true;
    }

    pub fn open(&self) {
        self.state.lock().unwrap().0 = false;
        self.changed.notify_all();
    }

    pub fn waiting(&self) -> usize {
        self.state.lock().unwrap().1
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        while state.0 {
            state = self.changed.wait(state).unwrap();
        }
        state.1 -= 1;
    }
}

/// The engine. What a component does:
///
/// - it counts each key in its state, and gives `key=count` to `out` for every record whose model score is above 0.7
///   (or for every record without a model);
/// - value `boom` traps, `slow` runs into its deadline, `stray` produces to a topic that is not granted, `peek:K` reads
///   the state of key K.
#[derive(Default)]
pub struct FakeEngine {
    pub gate: Arc<Gate>,
    /// Fails that many instantiations.
    pub broken_instances: Arc<Mutex<usize>>,
    pub calls: Arc<Mutex<Vec<String>>>,
}

pub fn component(settings: Value) -> Bytes {
    format!("\0fake{settings}").into()
}

struct FakeGuest {
    digest: String,
    settings: Value,
    gate: Arc<Gate>,
    broken_instances: Arc<Mutex<usize>>,
    calls: Arc<Mutex<Vec<String>>>,
    grants: Grants,
}

impl Engine for FakeEngine {
    fn compile(&self, component: &[u8], grants: &Grants, _: GuestLimits) -> Result<Arc<dyn Guest>, Error> {
        let text = component
            .strip_prefix(b"\0fake")
            .ok_or_else(|| Error::new(Code::COMPONENT_INVALID, "not a component").hint("build a component"))?;
        let settings: Value =
            serde_json::from_slice(text).map_err(|e| Error::new(Code::COMPONENT_INVALID, e.to_string()))?;
        if settings["imports"].as_array().is_some_and(|i| i.contains(&json!("state"))) && !grants.state {
            return Err(Error::new(Code::IMPORT_NOT_GRANTED, "the component imports 'buttress:function/state'"));
        }
        if settings["panics"] == json!(true) {
            panic!("the compiler has a bug");
        }
        Ok(Arc::new(FakeGuest {
            digest: blob::digest(component),
            settings,
            gate: self.gate.clone(),
            broken_instances: self.broken_instances.clone(),
            calls: self.calls.clone(),
            grants: grants.clone(),
        }))
    }

    fn load_model(&self, bytes: &[u8]) -> Result<Arc<dyn Model>, Error> {
        let threshold = std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Error::new(Code::MODEL_INVALID, "the model is not a number"))?;
        let info = ModelInfo {
            digest: blob::digest(bytes),
            kind: "threshold".into(),
            features: vec!["value".into()],
            width: 1,
            outputs: 1,
        };
        Ok(Arc::new(Threshold { info, threshold }))
    }
}

struct Threshold {
    info: ModelInfo,
    threshold: f32,
}

impl Model for Threshold {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn predict(&self, rows: &[f32], scores: &mut Vec<f32>) -> Result<(), Error> {
        scores.extend(rows.iter().map(|row| if *row > self.threshold { 1.0 } else { 0.0 }));
        Ok(())
    }
}

impl Guest for FakeGuest {
    fn digest(&self) -> &str {
        &self.digest
    }

    fn handles_batches(&self) -> bool {
        self.settings["batches"] != json!(false)
    }

    fn handles_http(&self) -> bool {
        self.settings["http"] == json!(true)
    }

    fn instance(&self) -> Result<Box<dyn BatchInstance>, Error> {
        let mut broken = self.broken_instances.lock().unwrap();
        if *broken > 0 {
            *broken -= 1;
            return Err(Error::new(Code::OVERLOADED, "no memory is left for an instance"));
        }
        Ok(Box::new(FakeInstance {
            settings: self.settings.clone(),
            gate: self.gate.clone(),
            calls: self.calls.clone(),
            model: self.grants.models.first().cloned(),
            state: self.grants.state,
        }))
    }

    fn call_http(&self, call: HttpCall) -> BoxFuture<'_, Result<HttpAnswer, Error>> {
        Box::pin(async move {
            if &call.body[..] == b"boom" {
                return Err(Error::new(Code::TRAPPED, "wasm trap: unreachable"));
            }
            if &call.body[..] == b"hang" {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            let models: Vec<String> = call.models.iter().map(|m| format!("{}@{}", m.name, m.generation)).collect();
            let body = format!("{} {} {} {}", call.method, call.uri, call.body.escape_ascii(), models.join(","));
            Ok(HttpAnswer {
                status: 200,
                headers: vec![("content-type".into(), "text/plain".into()), ("connection".into(), "close".into())],
                body: body.into(),
                logs: vec![GuestLog { level: "info", message: "called".into() }],
            })
        })
    }
}

struct FakeInstance {
    settings: Value,
    gate: Arc<Gate>,
    calls: Arc<Mutex<Vec<String>>>,
    model: Option<String>,
    state: bool,
}

impl BatchInstance for FakeInstance {
    fn handle(&mut self, call: BatchCall<'_>) -> Result<BatchOutcome, Error> {
        self.gate.pass();
        let first = &call.records[0];
        let model =
            self.model.as_ref().map(|name| call.models.iter().find(|m| m.name == *name).expect("models are loaded"));
        self.calls.lock().unwrap().push(format!(
            "p{} {}..{} {}",
            first.partition,
            first.offset,
            first.offset + call.records.len() as i64,
            model.map_or("-".into(), |m| format!("{}@{}", m.name, m.generation)),
        ));
        let mut outcome = BatchOutcome { memory_bytes: 65_536, ..BatchOutcome::default() };
        let mut counts: BTreeMap<Bytes, u64> = BTreeMap::new();
        let tag = self.settings["tag"].as_str().unwrap_or("");
        for record in call.records {
            let value = std::str::from_utf8(&record.value).unwrap_or("");
            match value {
                "boom" => return Err(Error::new(Code::TRAPPED, "wasm trap: unreachable executed")),
                "slow" => return Err(Error::new(Code::DEADLINE, "the call ran longer than 1000 ms")),
                "stray" => outcome.outputs.push(GuestOutput {
                    topic: "elsewhere".into(),
                    key: record.key.clone(),
                    value: "x".into(),
                }),
                "panic" => panic!("the engine has a bug"),
                _ => {}
            }
            if let Some(key) = value.strip_prefix("peek:") {
                let row = call.state.get(key.as_bytes()).map_err(|e| Error::new(Code::FUNCTION_FAILED, e))?;
                let row = row.unwrap_or("nothing".into());
                outcome.logs.push(GuestLog { level: "info", message: format!("{key} is {}", row.escape_ascii()) });
            }
            let mut suffix = String::new();
            if self.state {
                let count = match counts.get(&record.key) {
                    Some(count) => *count,
                    None => call
                        .state
                        .get(&record.key)
                        .map_err(|e| Error::new(Code::FUNCTION_FAILED, e))?
                        .map_or(0, |row| std::str::from_utf8(&row).unwrap().parse().unwrap()),
                };
                counts.insert(record.key.clone(), count + 1);
                outcome.state.push((record.key.clone(), Some((count + 1).to_string().into())));
                suffix = format!("={}", count + 1);
            }
            let mut scores = Vec::new();
            if let Some(model) = model {
                model.model.predict(&[value.parse().unwrap_or(0.0)], &mut scores)?;
            }
            if scores.first().is_none_or(|score| *score > 0.7) {
                outcome.outputs.push(GuestOutput {
                    topic: "out".into(),
                    key: record.key.clone(),
                    value: format!("{tag}{}{suffix}", record.key.escape_ascii()).into(),
                });
            }
        }
        outcome.models_used = self.model.iter().cloned().collect();
        Ok(outcome)
    }
}

/// Small, seeded, good enough to choose faults.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

/// A ledger that loses requests, loses answers, and applies requests long after their submitter was told "unknown".
pub struct Flaky {
    pub local: Arc<Local>,
    rng: Mutex<Rng>,
    late: Mutex<VecDeque<Entry>>,
    /// Of 100 submissions, about that many go wrong; 0 stops the faults.
    pub percent: Mutex<u64>,
    pub told: Mutex<BTreeMap<&'static str, usize>>,
}

impl Flaky {
    pub fn new(local: Arc<Local>, seed: u64, percent: u64) -> Arc<Self> {
        Arc::new(Self {
            local,
            rng: Mutex::new(Rng::new(seed)),
            late: Mutex::default(),
            percent: Mutex::new(percent),
            told: Mutex::default(),
        })
    }

    fn draw(&self, n: u64) -> u64 {
        self.rng.lock().unwrap().below(n)
    }
}

impl Ledger for Flaky {
    fn submit(&self, entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(async move {
            let tell = |what| *self.told.lock().unwrap().entry(what).or_default() += 1;
            for _ in 0..self.draw(4) {
                tokio::task::yield_now().await;
            }
            let late = if self.draw(3) == 0 { self.late.lock().unwrap().pop_front() } else { None };
            if let Some(late) = late {
                let result = self.local.submit(late).await;
                tell(if result.is_ok() { "late and applied" } else { "late and refused" });
            }
            let unknown = || Err(SubmitError::Failed(Error::new(Code::TIMEOUT, "no answer came").retryable()));
            if self.draw(100) >= *self.percent.lock().unwrap() {
                let result = self.local.submit(entry).await;
                tell(if result.is_ok() { "applied" } else { "refused" });
                return result;
            }
            match self.draw(4) {
                0 => {
                    tell("lost");
                    unknown()
                }
                1 => {
                    let _ = self.local.submit(entry).await;
                    tell("answer lost");
                    unknown()
                }
                2 => {
                    self.late.lock().unwrap().push_back(entry);
                    unknown()
                }
                _ => {
                    tell("no leader");
                    Err(SubmitError::Failed(Error::new(Code::NO_LEADER, "no leader is known").retryable()))
                }
            }
        })
    }

    fn read(&self, range: KeyRange, limit: usize, consistency: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>> {
        self.local.read(range, limit, consistency)
    }

    fn state(&self, space: &str, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, Error>> {
        let space = space.to_owned();
        Box::pin(async move {
            if self.draw(200) < *self.percent.lock().unwrap() {
                return Err(Error::new(Code::TIMEOUT, "the store is busy").retryable());
            }
            self.local.state(&space, keys).await
        })
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        self.local.watch(range, from)
    }

    fn scope(&self) -> Scope {
        Scope::Entry
    }
}

/// A running plane.
pub struct World {
    pub local: Arc<Local>,
    pub engine: Arc<FakeEngine>,
    pub plane: FunctionsPlane,
    pub shutdown: watch::Sender<bool>,
}

impl World {
    pub fn new() -> Self {
        let local = Local::new();
        Self::on(local.clone(), local)
    }

    pub fn on(local: Arc<Local>, ledger: Arc<dyn Ledger>) -> Self {
        let engine = Arc::new(FakeEngine::default());
        let (shutdown, receiver) = watch::channel(false);
        let plane = FunctionsPlane::start(Deps {
            homes: vec![Home { records: ledger.clone(), stream: local.clone(), claims: None }],
            ledger,
            cluster: local.clone(),
            engine: engine.clone(),
            shutdown: receiver,
        })
        .unwrap();
        Self { local, engine, plane, shutdown }
    }

    pub async fn stop(self) {
        self.shutdown.send_replace(true);
        self.plane.stopped().await;
    }

    /// Deploys over HTTP and waits until it serves.
    pub async fn deploy(&self, name: &str, manifest: Value, component: Bytes) -> Deployed {
        let manifest = Manifest::parse(manifest.to_string().as_bytes()).unwrap();
        let deployed = self.plane.deployer().function(name, manifest, Some(component)).await.unwrap();
        let mut catalogue = self.plane.catalogue();
        let serves = |snapshot: &Snapshot| {
            snapshot.functions.get(name)?.current().filter(|s| s.revision.0 == deployed.revision).map(drop)
        };
        wait_for(&mut catalogue, Duration::from_secs(60), serves).await.expect("what was deployed serves");
        deployed
    }

    /// Waits until a guest stands before the closed gate. Virtual time stands still as long as one does.
    pub async fn held(&self) {
        while self.engine.gate.waiting() == 0 {
            std::thread::yield_now();
            tokio::task::yield_now().await;
        }
    }

    /// Waits in virtual time.
    pub async fn until(&self, mut done: impl FnMut() -> bool) {
        until(&mut done).await;
    }

    /// Waits until the function has come to the end of every partition of the topic.
    pub async fn caught_up(&self, function: &str, topic: &str) {
        self.until(|| caught_up(&self.local, function, topic)).await;
    }

    pub fn counter(&self, function: &str, read: impl Fn(&buttress_functions::stats::FunctionStats) -> u64) -> u64 {
        read(&self.plane.stats().function(function))
    }
}

pub async fn until(done: &mut impl FnMut() -> bool) {
    // Virtual time: a minute of back-offs passes at once, and a test that waits for what never comes ends.
    for _ in 0..600_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("what the test waits for did not happen in ten minutes of virtual time");
}

pub fn caught_up(local: &Local, function: &str, topic: &str) -> bool {
    let group = format!("fn:{function}");
    local.topic(topic).unwrap().partitions.iter().all(|p| local.cursor(&group, p.log).unwrap_or(Offset(0)) == p.end)
}

pub fn create(local: &Local, topic: &str, partitions: u32) -> Vec<LogId> {
    local.create_topic(topic, partitions, TopicSettings::default())
}

/// Appends one batch of records.
pub fn produce(local: &Local, log: LogId, records: &[(&str, &str)]) {
    let mut builder = Builder::new();
    for (key, value) in records {
        builder.push(local.now().0 as i64, Some(key.as_bytes()), Some(value.as_bytes()), &[]);
    }
    append(local, log, records.len() as u32, builder.build().unwrap());
}

pub fn append(local: &Local, log: LogId, records: u32, batch: Bytes) {
    let append = Append { log, records, max_timestamp_ms: local.now().0 as i64, sequence: None, batch };
    local.apply(Entry { appends: vec![append], ..Entry::default() }).result.unwrap();
}

/// A record as a reader sees it.
pub struct Read {
    pub offset: i64,
    pub key: String,
    pub value: String,
    pub headers: Vec<(String, String)>,
}

/// Everything that is in a partition, as an independent reader gets it.
pub async fn read_log(local: &Local, log: LogId) -> Vec<Read> {
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    };
    let mut all: Vec<Read> = Vec::new();
    let bounds = local.topics().into_iter().flat_map(|t| t.partitions).find(|p| p.log == log).unwrap();
    let mut next = bounds.start;
    while next < bounds.end {
        let fetched = local.fetch(log, next, 1 << 20, 0).await.unwrap();
        for batch in fetched.batches {
            next = Offset(batch.last_offset.0 + 1);
            for record in BatchView::parse(batch.bytes).unwrap().records().unwrap() {
                let record = record.unwrap();
                all.push(Read {
                    offset: record.offset,
                    key: text(&record.key.unwrap_or_default()),
                    value: text(&record.value.unwrap_or_default()),
                    headers: record
                        .headers
                        .iter()
                        .map(|h| (text(&h.key), text(h.value.as_deref().unwrap_or_default())))
                        .collect(),
                });
            }
        }
    }
    all
}

pub async fn read_topic(local: &Local, topic: &str) -> Vec<Read> {
    let mut all = Vec::new();
    for partition in local.topic(topic).unwrap().partitions {
        all.extend(read_log(local, partition.log).await);
    }
    all
}

/// The audit topic's events, in order.
pub async fn audit(local: &Local) -> Vec<Value> {
    read_topic(local, "buttress-audit").await.iter().map(|r| serde_json::from_str(&r.value).unwrap()).collect()
}

/// Checks FN-1 for a function and a topic: the ranges tile every partition from its first judged offset to its cursor.
pub async fn assert_tiled(local: &Local, function: &str, topic: &str) {
    let events = audit(local).await;
    for (n, partition) in local.topic(topic).unwrap().partitions.iter().enumerate() {
        let mut next = None;
        for event in &events {
            if event["function"] != json!(function) || event["topic"] != json!(topic) || event["partition"] != json!(n)
            {
                continue;
            }
            let (from, to) = (event["from"].as_i64().unwrap(), event["to"].as_i64().unwrap());
            assert!(next.is_none_or(|next| next == from), "partition {n}: {event} does not begin at {next:?}");
            next = Some(to);
        }
        let cursor = local.cursor(&format!("fn:{function}"), partition.log).map(|c| c.0);
        assert_eq!(next, cursor, "partition {n}: the last range ends at the cursor");
    }
}

/// Checks FN-2: behind a model's marker, no batch names an earlier generation.
pub async fn assert_no_stale_verdict(local: &Local) {
    let mut generations: BTreeMap<String, u64> = BTreeMap::new();
    for event in audit(local).await {
        let Some(model) = event["model"].as_str() else { continue };
        let generation = event["generation"].as_u64().unwrap();
        match event["event"].as_str().unwrap() {
            "model-pushed" => {
                let before = generations.insert(model.to_owned(), generation);
                assert_eq!(before, event["from_generation"].as_u64(), "generations follow each other");
            }
            _ => assert_eq!(Some(&generation), generations.get(model), "stale verdict: {event}"),
        }
    }
}

/// One line per audit event.
pub async fn audit_text(local: &Local) -> String {
    let mut text = String::new();
    for event in audit(local).await {
        text += &match event["event"].as_str().unwrap() {
            "model-pushed" => format!("model {} generation {}\n", event["model"], event["generation"]),
            what => {
                format!(
                    "{what} {} v{} p{} [{},{}) records {} outputs {} model {}@{}{}\n",
                    event["function"],
                    event["version"],
                    event["partition"],
                    event["from"],
                    event["to"],
                    event["records"],
                    event["outputs"],
                    event["model"],
                    event["generation"],
                    event["error"].as_str().map_or(String::new(), |e| format!(" error {e}")),
                )
            }
        };
    }
    text
}
