//! Runs functions on topics: one task per function and partition, on the leader.
//!
//! The problem: every record is judged exactly once, in order, soon; whatever dies, is swapped or breaks meanwhile.
//!
//! The design. Exactly-once is not this file's burden: the entry of a batch ([`crate::plan`]) is guarded by the cursor,
//! so that two runners of one partition, or a commit whose outcome was lost, cannot do harm. That only the leader runs
//! functions saves work and a hop, nothing else. What this file owes is liveness and speed:
//!
//! - a [`Feed`] reads and decodes ahead while a batch is judged or committed (not more: the next batch's state depends
//!   on this one's);
//! - guests run on worker threads, at most [`WORKERS_MAX`] at a time and [`WORKERS_PER_FUNCTION_MAX`] of one function,
//!   so that a function that hangs until its deadline does not keep the others waiting;
//! - nobody polls: records wake the feed, revisions wake the catalogue, and a commit wakes its runner.
//!
//! A runner's turn: wait until function and models are loaded → take what is there, up to `max_records` → load the state
//! rows of the keys → call the guest → commit. What ends a turn otherwise:
//!
//! | what happened | what follows |
//! |---|---|
//! | the model's guard refused | wait for the new generation, judge the same records again |
//! | the function's guard refused | wait for the new version, judge the same records again |
//! | the cursor's guard refused, or the outcome is unknown | read the position again after a barrier |
//! | the guest failed, or gave what cannot be committed | [`crate::retry`] |
//! | records were taken by retention | one entry with a gap record moves the cursor |
//!
//! On a stream with claims ([`crate::home`]) a partition is run by whoever has its seat, every turn begins with a claim, and
//! the guards on function and models are left out of the entry: the order of claims and fences stands for them.
//!
//! After anything but a success the instance is dropped (its memory has seen what was not committed) and the state cache
//! is forgotten.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, atomic::Ordering::Relaxed, mpsc as std_mpsc},
    time::Duration,
};

use buttress_core::{
    Claims, Cluster, Code, Consistency, Entry, Error, Guard, Guest, KeyRange, Ledger, LogId, Offset, Refusal, Revision,
    Stream, SubmitError,
    guest::{BatchCall, BatchInstance, BatchOutcome, GuestRecord, NamedModel, StateReader},
    ledger::Batch as Stored,
    tenure::Tenure,
};
use buttress_wire::records::{BatchView, Codec};
use bytes::Bytes;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    catalogue::{Receiver, Serving, Snapshot},
    home::{Home, Homes},
    plan::{self, JudgedBy, Place, Poison, Targets},
    resource::{AUDIT_TOPIC, FunctionSpec, dead_letter_topic, function_key, group, model_key, state_space},
    retry::{Failure, Next, Retry},
    state_cache::StateCache,
    stats::{FunctionStats, RunnerState, Stats},
};

/// Guests that run at the same time on one node. More than cores, since some wait for state; few enough to be bounded
/// in memory (64 MiB each by default).
pub const WORKERS_MAX: usize = 8;
pub const WORKERS_PER_FUNCTION_MAX: usize = 4;
/// One fetch. A batch of 512 readings of 200 bytes is 100 KiB.
const FETCH_BYTES_MAX: usize = 256 * 1024;
/// A fetch without records comes back after this; it only bounds how long an abandoned feed lingers.
const FETCH_WAIT_MS: u64 = 5_000;
/// A fetch that comes back empty before this did not wait.
const FETCH_EARLY: Duration = Duration::from_millis(20);
/// Fetches decoded ahead, beyond the one that is being judged: 8 partitions hold at most 6 MiB.
const FETCHES_AHEAD: usize = 2;
/// Batches above this size, and compressed ones, are decoded on a worker thread.
const DECODE_INLINE_BYTES_MAX: usize = 64 * 1024;
/// How often partitions of topics that may have been created or deleted are looked for.
const RECONCILE_EVERY: Duration = Duration::from_secs(1);
/// An instance that has grown this near to its limit is replaced before it fails.
const RECYCLE_MEMORY_PERCENT: usize = 90;

/// What every runner needs.
pub struct Context {
    pub ledger: Arc<dyn Ledger>,
    pub homes: Homes,
    pub cluster: Arc<dyn Cluster>,
    pub stats: Arc<Stats>,
    workers: Arc<Semaphore>,
    function_workers: std::sync::Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

impl Context {
    pub fn new(ledger: Arc<dyn Ledger>, homes: Homes, cluster: Arc<dyn Cluster>, stats: Arc<Stats>) -> Self {
        Self {
            ledger,
            homes,
            cluster,
            stats,
            workers: Arc::new(Semaphore::new(WORKERS_MAX)),
            function_workers: std::sync::Mutex::default(),
        }
    }

    fn function_workers(&self, function: &str) -> Arc<Semaphore> {
        let mut all = crate::stats::lock(&self.function_workers);
        match all.get(function) {
            Some(workers) => workers.clone(),
            None => {
                let workers = Arc::new(Semaphore::new(WORKERS_PER_FUNCTION_MAX));
                all.insert(function.to_owned(), workers.clone());
                workers
            }
        }
    }
}

/// A task that ends when its handle is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts and stops runners: all partitions of all triggers on the leader, none elsewhere; on a stream with claims, all
/// partitions everywhere, for whoever has a partition's seat.
pub async fn supervise(context: Arc<Context>, mut catalogue: Receiver, mut shutdown: watch::Receiver<bool>) {
    let mut running: BTreeMap<(String, i32), (String, LogId, Task)> = BTreeMap::new();
    let mut view = context.cluster.view();
    loop {
        let mut wanted: BTreeMap<(String, i32), (String, LogId, Home)> = BTreeMap::new();
        let snapshot = catalogue.borrow_and_update().clone();
        for (name, slot) in &snapshot.functions {
            let Some(trigger) = &slot.wanted.spec.trigger else { continue };
            if !view.is_leader() && context.homes.all().iter().all(|home| home.claims.is_none()) {
                continue;
            }
            let unknown = || Error::new(Code::TOPIC_UNKNOWN, format!("topic '{}' does not exist", trigger.topic));
            let found = context.homes.find(&trigger.topic).await;
            let (home, topic) = match found.and_then(|found| found.ok_or_else(unknown)) {
                Ok(found) => found,
                Err(error) => {
                    context.stats.function(name).failed(0, &error, context.cluster.now().0);
                    continue;
                }
            };
            if !view.is_leader() && home.claims.is_none() {
                continue;
            }
            for (partition, p) in topic.partitions.iter().enumerate() {
                wanted.insert((name.clone(), partition as i32), (trigger.topic.clone(), p.log, home.clone()));
            }
        }
        let mut stopped = Vec::new();
        running.retain(|key, (topic, log, task)| {
            let keep = wanted.get(key).is_some_and(|w| w.0 == *topic && w.1 == *log) && !task.0.is_finished();
            if !keep {
                task.0.abort();
                stopped.push(key.clone());
            }
            keep
        });
        for (name, partition) in &stopped {
            context.stats.function(name).partition(*partition, |p| p.state = RunnerState::Stopped);
        }
        if snapshot.read {
            for (name, _) in context.stats.all() {
                if !snapshot.functions.contains_key(&name) {
                    context.stats.forget(&name);
                    crate::stats::lock(&context.function_workers).remove(&name);
                }
            }
        }
        for ((name, partition), (topic, log, home)) in wanted {
            running.entry((name.clone(), partition)).or_insert_with(|| {
                let runner = Runner::new(context.clone(), home, catalogue.clone(), name, topic.clone(), partition, log);
                (topic, log, Task(tokio::spawn(runner.run())))
            });
        }
        tokio::select! {
            changed = context.cluster.changed(&view) => view = changed,
            changed = catalogue.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RECONCILE_EVERY) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
    }
}

/// What a fetched batch holds for us.
#[derive(Debug)]
enum Piece {
    Record(GuestRecord),
    /// A batch, or the rest of one, that cannot be read.
    Unreadable {
        from: Offset,
        to: Offset,
        bytes: Bytes,
        error: Error,
    },
}

/// Reads and decodes ahead.
struct Feed {
    pieces: mpsc::Receiver<Result<Vec<Piece>, Error>>,
    _task: Task,
}

impl Feed {
    fn start(stream: Arc<dyn Stream>, log: LogId, partition: i32, from: Offset) -> Self {
        let (send, pieces) = mpsc::channel(FETCHES_AHEAD);
        let task = tokio::spawn(async move {
            let mut next = from;
            loop {
                let asked = Instant::now();
                let fetched = match stream.fetch(log, next, FETCH_BYTES_MAX, FETCH_WAIT_MS).await {
                    Ok(fetched) => fetched,
                    Err(error) => {
                        // The receiver decides what follows, with a new feed.
                        let _ = send.send(Err(error)).await;
                        return;
                    }
                };
                let Some(last) = fetched.batches.last() else {
                    // A stream that answers at once instead of waiting (its node is stopping) must not turn this into a
                    // busy loop.
                    if asked.elapsed() < FETCH_EARLY {
                        tokio::time::sleep(FETCH_EARLY).await;
                    }
                    continue;
                };
                let from = next;
                next = Offset(last.last_offset.0 + 1);
                let pieces = decode_batches(fetched.batches, partition, from).await;
                if send.send(pieces).await.is_err() {
                    return;
                }
            }
        });
        Self { pieces, _task: Task(task) }
    }
}

async fn decode_batches(batches: Vec<Stored>, partition: i32, from: Offset) -> Result<Vec<Piece>, Error> {
    let large = batches.iter().map(|b| b.bytes.len()).sum::<usize>() > DECODE_INLINE_BYTES_MAX;
    let compressed = || {
        batches.iter().any(|b| BatchView::parse_stored(b.bytes.clone()).is_ok_and(|view| view.codec() != Codec::None))
    };
    if large || compressed() {
        return crate::catalogue::blocking(move || Ok(decode(&batches, partition, from))).await;
    }
    Ok(decode(&batches, partition, from))
}

/// The records from `from` on. What cannot be read becomes one piece that says so.
fn decode(batches: &[Stored], partition: i32, from: Offset) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut next = from.0;
    for Stored { bytes, last_offset, .. } in batches {
        let end = last_offset.0 + 1;
        if end <= next {
            continue;
        }
        let mut failed = None;
        match BatchView::parse_stored(bytes.clone())
            .and_then(|view| if view.is_control() { Ok(None) } else { view.records().map(Some) })
        {
            Ok(records) => {
                for record in records.into_iter().flatten() {
                    match record {
                        Ok(record) if record.offset < next => {}
                        Ok(record) if record.offset < end => {
                            next = record.offset + 1;
                            pieces.push(Piece::Record(GuestRecord {
                                key: record.key.unwrap_or_default(),
                                value: record.value.unwrap_or_default(),
                                timestamp_ms: record.timestamp_ms,
                                partition,
                                offset: record.offset,
                            }));
                        }
                        Ok(record) => {
                            let message =
                                format!("record {} lies behind its batch, which ends at {end}", record.offset);
                            failed = Some(Error::new(Code::BATCH_INVALID, message));
                            break;
                        }
                        Err(error) => {
                            failed = Some(Error::new(error.code(), error.to_string()));
                            break;
                        }
                    }
                }
            }
            // Edges check batches before they are proposed, so this is content that is not of its codec, a bomb, or rot.
            Err(error) => failed = Some(Error::new(error.code(), error.to_string())),
        }
        if let Some(error) = failed
            && next < end
        {
            pieces.push(Piece::Unreadable { from: Offset(next), to: Offset(end), bytes: bytes.clone(), error });
        }
        next = end;
    }
    pieces
}

/// Asserts what a runner relies on: pieces follow each other and end where the batch does.
pub(crate) fn check_pieces(batches: &[Stored], end: i64) {
    let mut next = 0;
    for piece in decode(batches, 0, Offset(0)) {
        let (from, to) = match &piece {
            Piece::Record(record) => (record.offset, record.offset + 1),
            Piece::Unreadable { from, to, .. } => (from.0, to.0),
        };
        assert!(from >= next && to > from && to <= end, "a piece [{from}, {to}) after {next}, before {end}");
        next = to;
    }
}

/// A running instance and the version it is of.
struct Instance {
    revision: Revision,
    guest: Box<dyn BatchInstance>,
}

/// A batch that was judged.
struct Judged {
    records: Vec<GuestRecord>,
    instance: Option<Instance>,
    result: Result<BatchOutcome, CallError>,
    rows: HashMap<Bytes, Option<Bytes>>,
    elapsed: Duration,
}

enum CallError {
    /// The guest's fault.
    Guest(Error),
    /// The node's: no instance can be made, state cannot be read.
    Node(Error),
}

/// Why a runner leaves its turn.
enum Leave {
    /// The function or its trigger is gone.
    Stop,
    /// Read the position again.
    Resync,
}

/// Rows of the state, as the worker thread reads them.
struct Rows {
    known: HashMap<Bytes, Option<Bytes>>,
    ask: mpsc::UnboundedSender<Ask>,
    granted: bool,
    failed: Option<Error>,
}

/// A row that the guest wants and that was not loaded in advance.
struct Ask {
    key: Bytes,
    answer: std_mpsc::SyncSender<Result<Option<Bytes>, Error>>,
}

impl StateReader for Rows {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, String> {
        if !self.granted {
            return Err("state is not granted to this function".into());
        }
        if let Some(value) = self.known.get(key) {
            return Ok(value.clone());
        }
        let key = Bytes::copy_from_slice(key);
        let (answer, wait) = std_mpsc::sync_channel(1);
        let stopped = || Error::new(Code::STOPPED, "the runner was stopped");
        let row = match self.ask.send(Ask { key: key.clone(), answer }) {
            Ok(()) => wait.recv().unwrap_or_else(|_| Err(stopped())),
            Err(_) => Err(stopped()),
        };
        match row {
            Ok(row) => {
                self.known.insert(key, row.clone());
                Ok(row)
            }
            Err(error) => {
                let message = error.to_string();
                self.failed = Some(error);
                Err(message)
            }
        }
    }
}

type ServingFunction = Arc<Serving<FunctionSpec, dyn Guest>>;

/// What a batch is judged with.
struct Judges {
    function: ServingFunction,
    named: Arc<Vec<NamedModel>>,
    judged_by: Vec<JudgedBy>,
}

struct Runner {
    context: Arc<Context>,
    home: Home,
    catalogue: Receiver,
    stats: Arc<FunctionStats>,
    workers: Arc<Semaphore>,
    name: String,
    topic: String,
    partition: i32,
    log: LogId,
    /// The cursor as far as is known.
    cursor: Option<Offset>,
    /// Where the next batch begins: the cursor, or the partition's start before the first batch.
    position: Offset,
    retry: Retry,
    /// The version that `retry` is set for.
    configured: Option<Revision>,
    cache: StateCache,
    instance: Option<Instance>,
    /// Revisions of resources that a refusal has shown to be outdated.
    outdated: HashMap<Bytes, Revision>,
    /// What is known under a claim, where there are claims.
    tenure: Tenure,
}

impl Runner {
    fn new(
        context: Arc<Context>,
        home: Home,
        catalogue: Receiver,
        name: String,
        topic: String,
        partition: i32,
        log: LogId,
    ) -> Self {
        Self {
            stats: context.stats.function(&name),
            workers: context.function_workers(&name),
            context,
            home,
            catalogue,
            name,
            topic,
            partition,
            log,
            cursor: None,
            position: Offset(0),
            retry: Retry::new(1, 1),
            configured: None,
            cache: StateCache::default(),
            instance: None,
            outdated: HashMap::new(),
            tenure: Tenure::default(),
        }
    }

    async fn run(mut self) {
        let Some(claims) = self.home.claims.clone() else {
            while let Leave::Resync = self.turns().await {
                self.resynced();
            }
            return;
        };
        loop {
            let group = group(&self.name);
            let mut seat = match claims.seat(&group, &self.topic, self.partition).await {
                Ok(seat) => seat,
                Err(error) => {
                    self.node_failed(&error).await;
                    continue;
                }
            };
            loop {
                // What is given up in the middle of a commit is ended by the next claim, here or elsewhere.
                let leave = tokio::select! {
                    leave = self.turns() => leave,
                    () = seat.lost() => break,
                };
                match leave {
                    Leave::Stop => return,
                    Leave::Resync => self.resynced(),
                }
            }
            self.forget();
            self.status(|p| p.state = RunnerState::Stopped);
        }
    }

    fn resynced(&self) {
        self.stats.resyncs.fetch_add(1, Relaxed);
        self.status(|p| p.resyncs += 1);
    }

    fn status(&self, change: impl FnOnce(&mut crate::stats::PartitionStatus)) {
        self.stats.partition(self.partition, change);
    }

    /// Forgets everything that the next commit might contradict.
    fn forget(&mut self) {
        self.cache.clear();
        self.instance = None;
    }

    fn moved(&mut self, to: Offset) {
        self.cursor = Some(to);
        self.position = to;
        self.tenure.moved(to);
    }

    async fn pause(&mut self, ms: u64) {
        if ms > 0 {
            self.status(|p| p.state = RunnerState::BackingOff);
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    async fn node_failed(&mut self, error: &Error) {
        let now_ms = self.context.cluster.now().0;
        self.stats.failed(self.partition, error, now_ms);
        let after_ms = self.retry.node_failed();
        tracing::warn!(
            plane = "functions", function = self.name, topic = self.topic, partition = self.partition, %error, after_ms,
            "the node could not do its part"
        );
        self.forget();
        self.pause(after_ms).await;
    }

    /// Claims the partition, and then reads what may judge it: function and models at least as new as the claim. `None` where
    /// the function is gone.
    async fn claim(&mut self, claims: &dyn Claims) -> Result<Option<(Offset, Offset)>, Error> {
        let snapshot = self.catalogue.borrow().clone();
        let mut state = snapshot.functions.get(&self.name).is_some_and(|slot| slot.wanted.spec.grants.state);
        loop {
            let claimed = claims.claim(&group(&self.name), self.log, state).await?;
            self.tenure.claimed(claimed.position);
            let ledger = &self.context.ledger;
            let key = function_key(&self.name);
            let read = ledger.read(KeyRange::key(key.clone()), 1, Consistency::Linearizable).await?;
            let Some(kv) = read.kvs.first() else { return Ok(None) };
            self.tenure.read(key, kv.mod_revision);
            let spec: FunctionSpec = serde_json::from_slice(&kv.value).map_err(|e| {
                Error::new(Code::CORRUPT, format!("the resource of function '{}' cannot be read: {e}", self.name))
            })?;
            for model in &spec.grants.models {
                let key = model_key(model);
                let read = ledger.read(KeyRange::key(key.clone()), 1, Consistency::Linearizable).await?;
                if let Some(kv) = read.kvs.first() {
                    self.tenure.read(key, kv.mod_revision);
                }
            }
            if spec.grants.state && !state {
                state = true;
                continue;
            }
            for topic in
                spec.grants.topics.iter().map(String::as_str).chain([AUDIT_TOPIC, &dead_letter_topic(&self.name)])
            {
                claims.follow(topic).await?;
            }
            self.cursor = self.tenure.position();
            return Ok(Some((claimed.start, claimed.end)));
        }
    }

    /// Reads the position behind everything that was acknowledged, and the bounds of the partition.
    async fn read_position(&mut self) -> Result<Option<(Offset, Offset)>, Error> {
        // The barrier makes this node apply everything that was acknowledged anywhere. An entry of ours whose outcome is
        // unknown may still come later: then the cursor's guard refuses whatever is judged until then.
        let barrier = KeyRange::key(function_key(&self.name));
        self.context.ledger.read(barrier, 1, Consistency::Linearizable).await?;
        self.cursor = self.home.stream.cursor(&group(&self.name), self.log);
        let topic = self.home.stream.topic(&self.topic);
        Ok(topic.and_then(|t| t.partitions.iter().find(|p| p.log == self.log).map(|p| (p.start, p.end))))
    }

    /// Reads the position, then works until it must be read again.
    async fn turns(&mut self) -> Leave {
        self.forget();
        let found = match self.home.claims.clone() {
            Some(claims) => self.claim(&*claims).await,
            None => self.read_position().await,
        };
        let (start, end) = match found {
            Ok(Some(bounds)) => bounds,
            Ok(None) => return Leave::Stop,
            Err(error) => {
                self.node_failed(&error).await;
                return Leave::Resync;
            }
        };
        if let Some(cursor) = self.cursor
            && cursor > end
        {
            let error = Error::new(
                Code::OFFSET_OUT_OF_RANGE,
                format!("the cursor is at {cursor}, the partition ends at {end}"),
            )
            .hint(format!("someone has moved the group '{}'", group(&self.name)));
            self.node_failed(&error).await;
            return Leave::Resync;
        }
        if let Some(cursor) = self.cursor
            && cursor < start
        {
            return self.gap(cursor, start).await;
        }
        self.position = self.cursor.unwrap_or(start);
        let mut feed = Feed::start(self.home.stream.clone(), self.log, self.partition, self.position);
        let mut pending: VecDeque<Piece> = VecDeque::new();
        let mut begun: Option<Instant> = None;
        loop {
            let Some(judges) = self.judges().await else { return Leave::Stop };
            if self.tenure.is_outdated_by(&function_key(&self.name), judges.function.revision) {
                // A version that came after the claim may ask models that were not read after it.
                return Leave::Resync;
            }
            let trigger = judges.function.spec.trigger.as_ref().expect("judges have a trigger");
            if self.configured != Some(judges.function.revision) {
                self.configured = Some(judges.function.revision);
                self.retry.configure(trigger.attempts, trigger.max_records);
            }
            let full = trigger.max_records;
            let max_wait = Duration::from_millis(trigger.max_wait_ms);
            self.status(|p| p.state = RunnerState::Running);

            if pending.is_empty() {
                let received = tokio::select! {
                    received = feed.pieces.recv() => received,
                    // A new version may have another trigger, and its settings count for the next batch.
                    changed = self.catalogue.changed() => {
                        if changed.is_err() {
                            return Leave::Stop;
                        }
                        continue;
                    }
                };
                if let Err(leave) = self.take(received, &mut pending).await {
                    return leave;
                }
                if pending.is_empty() {
                    continue;
                }
            }
            // While busy, wait a little for a fuller batch; not after a pause, and not while isolating a record.
            let due = begun.filter(|_| self.retry.is_calm()).map(|begun| begun + max_wait);
            while pending.len() < full {
                let received = match due {
                    Some(due) if due > Instant::now() => match tokio::time::timeout_at(due, feed.pieces.recv()).await {
                        Ok(received) => received,
                        Err(_) => break,
                    },
                    _ => match feed.pieces.try_recv() {
                        Ok(received) => Some(received),
                        Err(_) => break,
                    },
                };
                if let Err(leave) = self.take(received, &mut pending).await {
                    return leave;
                }
            }
            begun = Some(Instant::now());

            let batch = match take_batch(&mut pending, self.retry.limit(self.position)) {
                Batch::Records(records) => records,
                Batch::Unreadable(poison, error) => {
                    let now_ms = self.context.cluster.now().0;
                    self.stats.failed(self.partition, &error, now_ms);
                    match self.set_aside(&judges, poison, &error, 0).await {
                        Ok(()) => continue,
                        Err(leave) => return leave,
                    }
                }
            };
            if let Err(leave) = self.work(&judges, batch, &mut pending).await {
                return leave;
            }
        }
    }

    /// Takes what the feed gave.
    async fn take(
        &mut self,
        received: Option<Result<Vec<Piece>, Error>>,
        pending: &mut VecDeque<Piece>,
    ) -> Result<(), Leave> {
        match received {
            Some(Ok(pieces)) => {
                pending.extend(pieces);
                Ok(())
            }
            // Retention has passed us: the position tells, and makes a gap of it.
            Some(Err(error)) if error.code == Code::OFFSET_OUT_OF_RANGE => Err(Leave::Resync),
            Some(Err(error)) => {
                self.node_failed(&error).await;
                Err(Leave::Resync)
            }
            None => {
                self.node_failed(&Error::new(Code::STOPPED, "reading ahead has stopped")).await;
                Err(Leave::Resync)
            }
        }
    }

    /// Waits until the wanted version of the function and the wanted generations of its models are loaded.
    async fn judges(&mut self) -> Option<Judges> {
        loop {
            let snapshot = self.catalogue.borrow_and_update().clone();
            match self.judges_in(&snapshot) {
                Ok(judges) => return judges,
                Err(waits_for) => self.status(|p| {
                    p.state = RunnerState::Loading;
                    p.waits_for = Some(waits_for);
                }),
            }
            self.catalogue.changed().await.ok()?;
        }
    }

    /// `Ok(None)`: there is nothing to run any more. `Err`: what is not ready yet.
    fn judges_in(&mut self, snapshot: &Snapshot) -> Result<Option<Judges>, String> {
        let Some(slot) = snapshot.functions.get(&self.name) else {
            return if snapshot.read { Ok(None) } else { Err("the catalogue".into()) };
        };
        if slot.wanted.spec.trigger.as_ref().is_none_or(|trigger| trigger.topic != self.topic) {
            return Ok(None);
        }
        let fresh = |key: Bytes, revision: Revision| {
            self.outdated.get(&key) != Some(&revision) && self.tenure.may_judge(&key, revision)
        };
        let function =
            slot.current().filter(|serving| fresh(function_key(&self.name), serving.revision)).ok_or_else(|| {
                match &slot.error {
                    Some(error) => format!("version {} cannot be loaded: {error}", slot.wanted.spec.version),
                    None => format!("version {} is being loaded", slot.wanted.spec.version),
                }
            })?;
        let mut named = Vec::new();
        let mut judged_by = Vec::new();
        for name in &function.spec.grants.models {
            let slot = snapshot.models.get(name).ok_or_else(|| format!("model '{name}' does not exist"))?;
            let model =
                slot.current().filter(|serving| fresh(model_key(name), serving.revision)).ok_or_else(|| match &slot
                    .error
                {
                    Some(error) => format!("model '{name}' cannot be loaded: {error}"),
                    None => format!("model '{name}' is being loaded"),
                })?;
            named.push(NamedModel {
                name: name.clone(),
                generation: model.spec.generation,
                model: model.loaded.clone(),
            });
            judged_by.push(JudgedBy {
                name: name.clone(),
                generation: model.spec.generation,
                revision: model.revision,
                digest: model.spec.digest.clone(),
            });
        }
        self.outdated.clear();
        self.stats.partition(self.partition, |p| p.waits_for = None);
        Ok(Some(Judges { function: function.clone(), named: Arc::new(named), judged_by }))
    }

    /// Judges a batch and commits it.
    async fn work(
        &mut self,
        judges: &Judges,
        records: Vec<GuestRecord>,
        pending: &mut VecDeque<Piece>,
    ) -> Result<(), Leave> {
        let from = self.position;
        let to = Offset(records.last().expect("a batch has records").offset + 1);
        let judged = match self.call(judges, records).await {
            Ok(judged) => judged,
            Err(error) => {
                self.node_failed(&error).await;
                return Err(Leave::Resync);
            }
        };
        let now_ms = self.context.cluster.now().0;
        let guest_us = judged.elapsed.as_micros() as u64;
        self.stats.guest_us.fetch_add(guest_us, Relaxed);
        self.stats.guest_call_ms.observe(guest_us / 1_000);
        self.status(|p| p.guest_ms += guest_us as f64 / 1_000.0);
        let Judged { records, instance, result, rows, .. } = judged;
        self.instance = instance;
        let spec = &judges.function.spec;

        let mut outcome = match result {
            Ok(outcome) => outcome,
            Err(CallError::Node(error)) => {
                self.node_failed(&error).await;
                return Err(Leave::Resync);
            }
            Err(CallError::Guest(error)) => {
                return self.failed(judges, records, to, error, Failure::Guest, pending).await;
            }
        };
        self.stats.log(now_ms, spec.version, Some(self.partition), std::mem::take(&mut outcome.logs));
        let place = self.place(judges, now_ms);
        let targets = self.targets(spec);
        let planned = match plan::batch(&place, from, to, records.len(), &outcome, &judges.judged_by, &targets) {
            Ok(planned) => planned,
            Err(error) if error.code == Code::TOPIC_UNKNOWN => {
                // Somebody deleted an output topic: it is created again, as at deploy.
                let created = self.create_targets(spec).await;
                self.node_failed(created.as_ref().err().unwrap_or(&error)).await;
                return Err(Leave::Resync);
            }
            Err(error) => {
                return self.failed(judges, records, to, error, Failure::Outcome, pending).await;
            }
        };
        match self.commit(planned.entry).await {
            Ok(()) => {}
            Err(Refused::Again(model)) => {
                if model {
                    self.stats.rescored.fetch_add(1, Relaxed);
                    self.status(|p| p.rescored += 1);
                }
                self.forget();
                put_back(pending, records);
                return Ok(());
            }
            Err(Refused::Leave(leave)) => return Err(leave),
        }
        self.moved(to);
        let committed_ms = self.context.cluster.now().0 as i64;
        for record in &records {
            self.stats.latency_ms.observe((committed_ms - record.timestamp_ms).max(0) as u64);
        }
        self.stats.batches.fetch_add(1, Relaxed);
        self.stats.records.fetch_add(records.len() as u64, Relaxed);
        self.stats.outputs.fetch_add(planned.outputs as u64, Relaxed);
        self.status(|p| {
            p.attempts = 0;
            p.batches += 1;
            p.records += records.len() as u64;
            p.outputs += planned.outputs as u64;
            p.memory_bytes = outcome.memory_bytes;
        });
        self.retry.committed(to);
        for (key, row) in rows {
            self.cache.put(key, row);
        }
        for (key, row) in planned.rows {
            self.cache.put(key, row);
        }
        let limit = spec.limits.memory_bytes_max;
        if outcome.memory_bytes > limit / 100 * RECYCLE_MEMORY_PERCENT {
            self.instance = None;
        }
        Ok(())
    }

    /// Loads the rows that the records' keys name, and calls the guest on a worker thread.
    async fn call(&mut self, judges: &Judges, records: Vec<GuestRecord>) -> Result<Judged, Error> {
        let spec = &judges.function.spec;
        let space = state_space(&self.name, self.partition);
        let mut known = HashMap::new();
        if spec.grants.state {
            let mut missing: Vec<Bytes> = Vec::new();
            for record in &records {
                if record.key.is_empty() || known.contains_key(&record.key) {
                    continue;
                }
                let row = self.cache.get(&record.key);
                if row.is_none() {
                    missing.push(record.key.clone());
                }
                known.insert(record.key.clone(), row.flatten());
            }
            if !missing.is_empty() {
                let rows = self.home.rows(&group(&self.name), self.log, &space, missing.clone()).await?;
                assert_eq!(rows.len(), missing.len(), "the ledger answers every row");
                known.extend(missing.into_iter().zip(rows));
            }
        }
        let instance = self.instance.take().filter(|i| i.revision == judges.function.revision);
        let (ask, mut asks) = mpsc::unbounded_channel();
        let mut rows = Rows { known, ask, granted: spec.grants.state, failed: None };
        let function = judges.function.clone();
        let models = judges.named.clone();
        let now_ms = self.context.cluster.now().0;
        let own = self.workers.clone().acquire_owned().await.expect("workers are never closed");
        let any = self.context.workers.clone().acquire_owned().await.expect("workers are never closed");
        let call = move || {
            let _permits = (own, any);
            let mut instance = match instance {
                Some(instance) => instance,
                None => match function.loaded.instance() {
                    Ok(guest) => Instance { revision: function.revision, guest },
                    Err(error) => {
                        let result = Err(CallError::Node(error));
                        return Ok(Judged {
                            records,
                            instance: None,
                            result,
                            rows: rows.known,
                            elapsed: Duration::ZERO,
                        });
                    }
                },
            };
            let begun = std::time::Instant::now();
            // A panic is a bug of the engine, but one that these records bring out: it is contained as a trap is.
            let handle =
                || instance.guest.handle(BatchCall { records: &records, models: &models, state: &mut rows, now_ms });
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(handle))
                .unwrap_or_else(|panic| Err(crate::catalogue::panicked(&*panic)));
            let elapsed = begun.elapsed();
            let (instance, result) = match (result, rows.failed) {
                // Whatever the guest made of it: it has seen a state that is not there.
                (_, Some(error)) => (None, Err(CallError::Node(error))),
                (Ok(outcome), None) => (Some(instance), Ok(outcome)),
                (Err(error), None) => (None, Err(CallError::Guest(error))),
            };
            Ok(Judged { records, instance, result, rows: rows.known, elapsed })
        };
        let mut call = std::pin::pin!(crate::catalogue::blocking(call));
        let (home, group, log) = (&self.home, group(&self.name), self.log);
        loop {
            tokio::select! {
                judged = &mut call => return judged,
                Some(Ask { key, answer }) = asks.recv() => {
                    let row = home.rows(&group, log, &space, vec![key]).await.map(|mut rows| rows.pop().flatten());
                    // A guest past its deadline no longer waits.
                    let _ = answer.send(row);
                }
            }
        }
    }

    /// What follows a failed call.
    async fn failed(
        &mut self,
        judges: &Judges,
        records: Vec<GuestRecord>,
        to: Offset,
        error: Error,
        failure: Failure,
        pending: &mut VecDeque<Piece>,
    ) -> Result<(), Leave> {
        let now_ms = self.context.cluster.now().0;
        self.stats.failed(self.partition, &error, now_ms);
        self.forget();
        let decided = self.retry.failed(records.len(), to, failure);
        let attempts = self.retry.attempts();
        self.status(|p| p.attempts = attempts);
        let version = judges.function.spec.version;
        let line = format!("records {}..{to} attempt {attempts}: {}", records[0].offset, error.message);
        let log = buttress_core::guest::GuestLog { level: "error", message: line };
        self.stats.log(now_ms, version, Some(self.partition), vec![log]);
        tracing::warn!(
            plane = "functions",
            function = self.name,
            version,
            topic = self.topic,
            partition = self.partition,
            attempt = attempts,
            code = error.code.0,
            records = records.len(),
            "a call failed"
        );
        match decided {
            Next::Again { after_ms } => {
                put_back(pending, records);
                self.pause(after_ms).await;
                Ok(())
            }
            Next::DeadLetter { after_ms } => {
                let record = &records[0];
                let poison = Poison {
                    from: Offset(record.offset),
                    to,
                    key: (!record.key.is_empty()).then(|| record.key.clone()),
                    value: record.value.clone(),
                    timestamp_ms: record.timestamp_ms,
                    whole_batch: false,
                };
                self.set_aside(judges, poison, &error, after_ms).await
            }
        }
    }

    /// Commits a dead letter. Where that does not work out, the position is read again and the record comes back.
    async fn set_aside(
        &mut self,
        judges: &Judges,
        mut poison: Poison,
        error: &Error,
        after_ms: u64,
    ) -> Result<(), Leave> {
        // Offsets that hold no record for us (markers) belong to the range, so that ranges tile.
        poison.from = self.position;
        let topic = dead_letter_topic(&self.name);
        let settings = buttress_core::entry::TopicSettings::default();
        let target = match self.home.ensure(&topic, 1, settings).await {
            Ok(view) => view.partitions[0].log,
            Err(error) => {
                self.node_failed(&error).await;
                return Err(Leave::Resync);
            }
        };
        let place = self.place(judges, self.context.cluster.now().0);
        match self.commit(plan::dead_letter(&place, &poison, error, target)).await {
            Ok(()) => {}
            // The record comes again and is judged by the new version.
            Err(Refused::Again(_)) => return Err(Leave::Resync),
            Err(Refused::Leave(leave)) => return Err(leave),
        }
        self.moved(poison.to);
        self.retry.dead_lettered(poison.to);
        self.stats.dead_letters.fetch_add(1, Relaxed);
        self.status(|p| {
            p.attempts = 0;
            p.dead_letters += 1;
        });
        self.pause(after_ms).await;
        Ok(())
    }

    /// Steps over what retention took.
    async fn gap(&mut self, from: Offset, to: Offset) -> Leave {
        let Some(judges) = self.judges().await else { return Leave::Stop };
        let place = self.place(&judges, self.context.cluster.now().0);
        match self.commit(plan::gap(&place, from, to)).await {
            Ok(()) => {
                tracing::error!(
                    plane = "functions",
                    function = self.name,
                    topic = self.topic,
                    partition = self.partition,
                    from = from.0,
                    to = to.0,
                    "retention took records that were not judged"
                );
                self.stats.gaps.fetch_add(1, Relaxed);
                self.status(|p| {
                    p.gaps += 1;
                    p.lost += (to.0 - from.0) as u64;
                });
                Leave::Resync
            }
            Err(Refused::Again(_)) => Leave::Resync,
            Err(Refused::Leave(leave)) => leave,
        }
    }

    fn place<'a>(&'a self, judges: &'a Judges, now_ms: u64) -> Place<'a> {
        let spec = &judges.function.spec;
        let audit = spec.audit.then(|| self.home.stream.topic(AUDIT_TOPIC)).flatten();
        Place {
            spec,
            revision: judges.function.revision,
            topic: &self.topic,
            partition: self.partition,
            log: self.log,
            cursor: self.cursor,
            audit: audit.and_then(|t| t.partitions.first().map(|p| p.log)),
            now_ms,
        }
    }

    fn targets(&self, spec: &FunctionSpec) -> Targets {
        let mut targets = Targets::new();
        for topic in &spec.grants.topics {
            if let Some(view) = self.home.stream.topic(topic) {
                targets.insert(topic.clone(), view.partitions.iter().map(|p| p.log).collect());
            }
        }
        targets
    }

    async fn create_targets(&mut self, spec: &FunctionSpec) -> Result<(), Error> {
        for topic in &spec.grants.topics {
            let settings = buttress_core::entry::TopicSettings::default();
            self.home.ensure(topic, spec.output_partitions, settings).await?;
        }
        Ok(())
    }

    async fn commit(&mut self, mut entry: Entry) -> Result<(), Refused> {
        if self.home.claims.is_some() {
            // What judged is at least as new as the claim, and whoever changed it since has fenced the claim.
            entry.guards.retain(|guard| matches!(guard, Guard::Cursor { .. }));
        }
        match self.home.records.submit(entry).await {
            Ok(_) => Ok(()),
            Err(SubmitError::Failed(error)) if self.home.claims.is_some() && error.code == Code::EPOCH_STALE => {
                tracing::debug!(
                    plane = "functions", function = self.name, topic = self.topic, partition = self.partition, %error,
                    "the claim was fenced"
                );
                self.forget();
                Err(Refused::Leave(Leave::Resync))
            }
            Err(SubmitError::Refused(Refusal::Guard { guard: Guard::ModRevision { key, revision }, .. })) => {
                let model = key != function_key(&self.name);
                self.outdated.insert(key, revision);
                Err(Refused::Again(model))
            }
            Err(SubmitError::Refused(Refusal::Guard { .. })) => {
                self.forget();
                Err(Refused::Leave(Leave::Resync))
            }
            Err(error) => {
                let error = error.into_error();
                self.node_failed(&error).await;
                Err(Refused::Leave(Leave::Resync))
            }
        }
    }
}

/// An entry that was not applied, or of which that is not known.
enum Refused {
    /// A new function version (`false`) or model generation (`true`): judge the same records again.
    Again(bool),
    Leave(Leave),
}

enum Batch {
    Records(Vec<GuestRecord>),
    Unreadable(Poison, Error),
}

/// Takes up to `limit` records, or the unreadable piece that comes next.
fn take_batch(pending: &mut VecDeque<Piece>, limit: usize) -> Batch {
    assert!(!pending.is_empty() && limit > 0, "there is something to take");
    let records = pending.iter().take(limit).take_while(|piece| matches!(piece, Piece::Record(_))).count();
    if records == 0 {
        let Some(Piece::Unreadable { from, to, bytes, error }) = pending.pop_front() else {
            unreachable!("the first piece is not a record");
        };
        let poison = Poison { from, to, key: None, value: bytes, timestamp_ms: 0, whole_batch: true };
        return Batch::Unreadable(poison, error);
    }
    let records = pending
        .drain(..records)
        .map(|piece| match piece {
            Piece::Record(record) => record,
            Piece::Unreadable { .. } => unreachable!("only records were counted"),
        })
        .collect();
    Batch::Records(records)
}

fn put_back(pending: &mut VecDeque<Piece>, records: Vec<GuestRecord>) {
    for record in records.into_iter().rev() {
        pending.push_front(Piece::Record(record));
    }
}
