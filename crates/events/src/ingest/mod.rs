//! Records in: one batcher for every connection of the node.
//!
//! The problem: ten thousand devices publish a small record each, and each wants an answer that means "on a quorum's
//! disks". An entry per record would be ten thousand trips through the log per second. The design packs whatever is
//! queued while earlier entries are in flight into the next one, so the batch grows with the load and a lone
//! record does not wait for company: there is no timer.
//!
//! * Each connection (or HTTP request) owns a [`Lane`]. Items go in at its tail; outcomes come back in the same order.
//! * A lane has items in at most one entry at a time (**INGEST-1**), so the log holds one connection's records in the order
//!   they were sent even when the ledger retries an entry across a leader change and another one overtakes it.
//! * With nothing in flight an entry starts at once; with some in flight another one starts only when enough is ready
//!   ([`Options::entry_bytes_target`], [`Options::entry_records_target`]), up to [`Options::entries_in_flight_max`].
//! * Topics with sequence fields get a record batch per record, because the sequence guards the whole append; other
//!   topics share one batch per partition and entry.
//!
//! First start: nothing to recover, a lane lives no longer than its connection. When an entry fails, every one of
//! its items hears so and the client decides; with sequence fields its resend cannot become a duplicate.

mod lane;
mod partition;
pub(crate) mod sequence;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt::Write as _,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use buttress_core::{
    Append, AppendOutcome, Cluster, Code, Entry, Error, Ledger, LogId, Offset, Receipt, Sequence, Stream, SubmitError,
    limits::{ENTRY_BYTES_MAX, ENTRY_PARTS_MAX, RECORD_BATCH_BYTES_MAX},
};
use buttress_wire::records::{Builder, HEADER_BYTES};
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::Notify,
    time::{Duration, Instant},
};

pub use lane::{Lane, Outcome, Placed};
pub use partition::{murmur2, partition_for_key};
pub use sequence::{DEVICE_NAME_BYTES_MAX, fuzz_sequence_of, sequence_of};

/// What the edges are written against.
#[derive(Clone)]
pub struct Deps {
    pub ledger: Arc<dyn Ledger>,
    pub stream: Arc<dyn Stream>,
    pub cluster: Arc<dyn Cluster>,
}

/// Limits of the batcher.
#[derive(Clone, Debug)]
pub struct Options {
    /// Entries submitted and not yet answered.
    pub entries_in_flight_max: usize,
    /// While entries are in flight, this much must be ready before another one starts. 64 KiB is about 300 readings of 150
    /// bytes with their batch headers.
    pub entry_bytes_target: usize,
    pub entry_records_target: usize,
    /// While busy, an entry below these targets starts at most once in this time: on a fast disk an entry for every few
    /// records would cost more processor time in fsyncs and messages than the records themselves. The first record after
    /// a pause never waits.
    pub entry_pause_ms: u64,
    /// One entry takes no more than this, so that a burst does not hold up the log's other users. At least one record
    /// batch, at most [`ENTRY_BYTES_MAX`].
    pub entry_bytes_max: usize,
    /// Bytes queued or in flight in all lanes, beyond which [`Ingest::overloaded`] says so.
    pub queued_bytes_max: usize,
    /// How long a topic's settings are taken from memory.
    pub topic_cache_ms: u64,
    /// Sequences are checked here and held against each other behind the ledger ([`crate::intake`]), so that records of
    /// different devices share a batch.
    pub sequences_behind: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            entries_in_flight_max: 8,
            entry_bytes_target: 64 * 1024,
            entry_records_target: 256,
            entry_pause_ms: 5,
            entry_bytes_max: 2 * 1024 * 1024,
            queued_bytes_max: 64 * 1024 * 1024,
            topic_cache_ms: 1_000,
            sequences_behind: false,
        }
    }
}

/// What the edges need to know about a topic, taken from the stream once per [`Options::topic_cache_ms`].
#[derive(Debug)]
pub struct Route {
    pub name: String,
    pub logs: Vec<LogId>,
    pub sequence_fields: Option<(String, String)>,
    /// Spreads records without a key.
    keyless: AtomicU32,
}

/// A record as an edge received it.
#[derive(Clone, Debug, Default)]
pub struct Incoming {
    /// `None`: chosen by the key, else by the device, else in turn.
    pub partition: Option<u32>,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<(Bytes, Bytes)>,
    /// The arrival at the edge.
    pub timestamp_ms: i64,
}

/// A checked record, ready to be queued.
#[derive(Debug)]
pub struct Item {
    tag: u64,
    route: Arc<Route>,
    partition: u32,
    /// Upper bound of what the item adds to an entry.
    size: usize,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// Its own record batch, because it has a sequence of its own.
    Batch { batch: Bytes, sequence: Sequence, timestamp_ms: i64 },
    /// May share a batch with others.
    Record { key: Option<Bytes>, value: Option<Bytes>, headers: Vec<(Bytes, Bytes)>, timestamp_ms: i64 },
}

/// Bytes that an append adds to an entry beside its batch: log, counts, timestamp and lengths as varints.
const APPEND_OVERHEAD: usize = 64;
/// Records without key and device stay on one partition for this many, so that batches form.
const KEYLESS_RUN: u32 = 64;
/// Topics remembered in the route cache; more are looked up each time.
const ROUTES_MAX: usize = 4096;

/// Plain counters; [`Counters::prometheus`] prints them.
#[derive(Debug, Default)]
pub struct Counters {
    pub entries: AtomicU64,
    pub entries_failed: AtomicU64,
    pub records: AtomicU64,
    pub bytes: AtomicU64,
    pub appended: AtomicU64,
    pub duplicates: AtomicU64,
    pub gaps: AtomicU64,
    pub stale_epochs: AtomicU64,
    pub failed: AtomicU64,
    /// Entries by number of records: bucket `i` counts those with up to `2^i`.
    pub entry_records: [AtomicU64; 15],
}

/// The shared way in. Create it, run [`Ingest::run`] for as long as the edges live.
pub struct Ingest {
    deps: Deps,
    /// Topics that take records.
    ways_in: Arc<dyn Stream>,
    options: Options,
    routes: RwLock<HashMap<String, (Arc<Route>, u64)>>,
    queue: Mutex<Queue>,
    wake: Notify,
    queued_bytes: AtomicUsize,
    counters: Counters,
}

/// Lanes with items that may go now.
#[derive(Default)]
struct Queue {
    ready: VecDeque<Arc<Lane>>,
    /// What lies in the ready lanes. Signed, because a lane may be emptied before its last arrival is counted.
    ready_bytes: i64,
    ready_records: i64,
    in_flight: usize,
}

/// Where the outcome of one item goes.
struct Slot {
    tag: u64,
    partition: u32,
    append: usize,
    /// Position in the append's batch.
    record: u32,
    size: usize,
}

/// One entry under way.
struct Packed {
    lanes: Vec<(Arc<Lane>, Vec<Slot>)>,
    entry: Option<Entry>,
    topics: Vec<(String, LogId)>,
    sequences: Vec<Option<Sequence>>,
}

impl Ingest {
    pub fn new(deps: Deps, options: Options) -> Arc<Self> {
        let ways_in = deps.stream.clone();
        Self::with_ways_in(deps, ways_in, options)
    }

    /// As [`Ingest::new`], where some topics of the stream take no records.
    pub fn with_ways_in(deps: Deps, ways_in: Arc<dyn Stream>, options: Options) -> Arc<Self> {
        assert!(options.entries_in_flight_max > 0, "no entry could ever start");
        assert!(
            (RECORD_BATCH_BYTES_MAX + 64 * 1024..=ENTRY_BYTES_MAX - 64 * 1024).contains(&options.entry_bytes_max),
            "an entry holds at least one record batch and at most what the log takes"
        );
        Arc::new(Self {
            deps,
            ways_in,
            options,
            routes: RwLock::default(),
            queue: Mutex::default(),
            wake: Notify::new(),
            queued_bytes: AtomicUsize::new(0),
            counters: Counters::default(),
        })
    }

    pub fn deps(&self) -> &Deps {
        &self.deps
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether more is queued than the node wants to hold in memory.
    pub fn overloaded(&self) -> bool {
        self.queued_bytes.load(Relaxed) > self.options.queued_bytes_max
    }

    /// The node's clock, for the arrival time of records.
    pub fn now_ms(&self) -> i64 {
        self.deps.cluster.now().0 as i64
    }

    /// Finds a topic.
    ///
    /// # Errors
    /// `TOPIC_UNKNOWN`.
    pub fn route(&self, topic: &str) -> Result<Arc<Route>, Error> {
        let now = self.deps.cluster.now().0;
        if let Some((route, at)) = self.routes.read().expect("no panic holds the lock").get(topic)
            && now.abs_diff(*at) < self.options.topic_cache_ms
        {
            return Ok(route.clone());
        }
        let Some(view) = self.ways_in.topic(topic) else {
            self.routes.write().expect("no panic holds the lock").remove(topic);
            return Err(unknown_topic(topic));
        };
        let logs: Vec<LogId> = view.partitions.iter().map(|p| p.log).collect();
        let mut routes = self.routes.write().expect("no panic holds the lock");
        if let Some((route, at)) = routes.get_mut(topic)
            && route.logs == logs
            && route.sequence_fields == view.settings.sequence_fields
        {
            *at = now;
            return Ok(route.clone());
        }
        let sequence_fields = view.settings.sequence_fields;
        let route = Arc::new(Route { name: view.name, logs, sequence_fields, keyless: AtomicU32::new(0) });
        if routes.len() < ROUTES_MAX || routes.contains_key(topic) {
            routes.insert(topic.to_owned(), (route.clone(), now));
        }
        Ok(route)
    }

    /// Checks a record and gives it its partition and, where the topic asks for one, its sequence.
    ///
    /// # Errors
    /// `RECORD_INVALID`, `TOO_LARGE`, `BAD_REQUEST` (a partition that the topic does not have).
    pub fn prepare(&self, route: &Arc<Route>, incoming: Incoming, tag: u64) -> Result<Item, Error> {
        let Incoming { partition, mut key, value, headers, timestamp_ms } = incoming;
        let sequence = match &route.sequence_fields {
            None => None,
            Some(fields) => {
                let body = value.as_deref().ok_or_else(|| {
                    Error::new(Code::RECORD_INVALID, format!("topic {:?} takes no records without a body", route.name))
                })?;
                Some(sequence_of(body, fields).map_err(|mut error| {
                    error.message = format!("{} (topic {:?})", error.message, route.name);
                    error
                })?)
            }
        };
        if let (None, Some(sequence)) = (&key, &sequence) {
            let device = sequence.producer.strip_prefix(sequence::DEVICE_PREFIX).expect("sequence_of adds it");
            key = Some(Bytes::copy_from_slice(device.as_bytes()));
        }
        let partitions = route.logs.len() as u32;
        let partition = match (partition, &key) {
            (Some(partition), _) if partition < partitions => partition,
            (Some(partition), _) => {
                return Err(Error::new(
                    Code::BAD_REQUEST,
                    format!("topic {:?} has no partition {partition}, only 0 to {}", route.name, partitions - 1),
                ));
            }
            (None, Some(key)) => partition_for_key(key, partitions),
            (None, None) => route.keyless.fetch_add(1, Relaxed) / KEYLESS_RUN % partitions,
        };
        let mut record_size = 0;
        let body = {
            let headers_ref: Vec<(&[u8], Option<&[u8]>)> =
                headers.iter().map(|(k, v)| (&k[..], Some(&v[..]))).collect();
            record_size += Builder::record_size_max(key.as_deref(), value.as_deref(), &headers_ref);
            if HEADER_BYTES + record_size > RECORD_BATCH_BYTES_MAX {
                return Err(Error::new(
                    Code::TOO_LARGE,
                    format!("a record of {record_size} bytes is larger than the limit of {RECORD_BATCH_BYTES_MAX}"),
                ));
            }
            sequence.filter(|_| !self.options.sequences_behind).map(|sequence| {
                let mut builder = Builder::with_capacity(record_size);
                builder.push(timestamp_ms, key.as_deref(), value.as_deref(), &headers_ref);
                let batch = builder.build().expect("a record was pushed");
                Body::Batch { batch, sequence, timestamp_ms }
            })
        };
        let body = body.unwrap_or(Body::Record { key, value, headers, timestamp_ms });
        let size = match &body {
            Body::Batch { batch, sequence, .. } => batch.len() + sequence.producer.len() + APPEND_OVERHEAD,
            Body::Record { .. } => record_size + HEADER_BYTES + APPEND_OVERHEAD,
        };
        Ok(Item { tag, route: route.clone(), partition, size, body })
    }

    /// Queues items in order, leaving `items` empty. Outcomes come back through the lane.
    pub fn enqueue(&self, lane: &Arc<Lane>, items: &mut Vec<Item>) {
        if items.is_empty() {
            return;
        }
        let bytes: usize = items.iter().map(|item| item.size).sum();
        let records = items.len();
        self.queued_bytes.fetch_add(bytes, Relaxed);
        let arrival = lane.push(items);
        match arrival {
            lane::Arrival::Waits => return,
            lane::Arrival::Failed => {
                self.queued_bytes.fetch_sub(bytes, Relaxed);
                self.counters.failed.fetch_add(records as u64, Relaxed);
                return;
            }
            lane::Arrival::AlreadyReady | lane::Arrival::BecameReady => {}
        }
        let mut queue = self.queue.lock().expect("no panic holds the lock");
        queue.ready_bytes += bytes as i64;
        queue.ready_records += records as i64;
        if let lane::Arrival::BecameReady = arrival {
            queue.ready.push_back(lane.clone());
        }
        if self.may_start(&queue) {
            drop(queue);
            self.wake.notify_one();
        }
    }

    fn may_start(&self, queue: &Queue) -> bool {
        !queue.ready.is_empty()
            && queue.in_flight < self.options.entries_in_flight_max
            && (queue.in_flight == 0 || self.enough(queue))
    }

    fn enough(&self, queue: &Queue) -> bool {
        queue.ready_bytes >= self.options.entry_bytes_target as i64
            || queue.ready_records >= self.options.entry_records_target as i64
    }

    /// Packs and submits for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let mut in_flight = FuturesUnordered::new();
        let pause = Duration::from_millis(self.options.entry_pause_ms);
        // When the next small entry may start.
        let mut paused_until = Instant::now();
        loop {
            let paused = loop {
                let small = !self.enough(&self.queue.lock().expect("no panic holds the lock"));
                if small && paused_until > Instant::now() {
                    break true;
                }
                let Some(mut packed) = self.pack() else { break false };
                paused_until = Instant::now() + pause;
                let ledger = self.deps.ledger.clone();
                let entry = packed.entry.take().expect("pack made one");
                in_flight.push(async move {
                    let result = ledger.submit(entry).await;
                    (packed, result)
                });
            };
            tokio::select! {
                Some((packed, result)) = in_flight.next(), if !in_flight.is_empty() => self.settle(packed, result),
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(paused_until), if paused => {}
            }
        }
    }

    fn pack(&self) -> Option<Packed> {
        let mut queue = self.queue.lock().expect("no panic holds the lock");
        if !self.may_start(&queue) {
            return None;
        }
        let mut packing = Packing::new(self.options.entry_bytes_max);
        while let Some(lane) = queue.ready.pop_front() {
            let mut slots = Vec::new();
            let taken = lane.take(|item| {
                if !packing.fits(&item) {
                    return Some(item);
                }
                slots.push(packing.add(item));
                None
            });
            queue.ready_bytes -= taken.bytes as i64;
            queue.ready_records -= slots.len() as i64;
            if slots.is_empty() {
                if taken.left_records > 0 {
                    // The entry is full before this lane's first item: it stays at the head.
                    lane.keep_ready();
                    queue.ready.push_front(lane);
                    break;
                }
                continue;
            }
            // What is left waits until this entry is answered (INGEST-1).
            queue.ready_bytes -= taken.left_bytes as i64;
            queue.ready_records -= taken.left_records as i64;
            packing.lanes.push((lane, slots));
        }
        if packing.lanes.is_empty() {
            return None;
        }
        queue.in_flight += 1;
        drop(queue);
        let packed = packing.finish();
        let entry = packed.entry.as_ref().expect("just packed");
        let records: usize = packed.lanes.iter().map(|(_, slots)| slots.len()).sum();
        let bytes: usize = entry.appends.iter().map(|a| a.batch.len()).sum();
        self.counters.entries.fetch_add(1, Relaxed);
        self.counters.records.fetch_add(records as u64, Relaxed);
        self.counters.bytes.fetch_add(bytes as u64, Relaxed);
        let bucket = (records.next_power_of_two().trailing_zeros() as usize).min(self.counters.entry_records.len() - 1);
        self.counters.entry_records[bucket].fetch_add(1, Relaxed);
        Some(packed)
    }

    fn settle(&self, packed: Packed, result: Result<Receipt, SubmitError>) {
        let result = result.map_err(SubmitError::into_error);
        match &result {
            Ok(receipt) => assert_eq!(receipt.appends.len(), packed.sequences.len(), "one outcome per append"),
            Err(error) => {
                self.counters.entries_failed.fetch_add(1, Relaxed);
                tracing::warn!(code = %error.code, error = %error.message, "entry of records failed");
            }
        }
        let mut ready: Vec<(Arc<Lane>, lane::Left)> = Vec::new();
        let mut freed = 0;
        for (lane, slots) in packed.lanes {
            freed += slots.iter().map(|slot| slot.size).sum::<usize>();
            let outcomes = slots.into_iter().map(|slot| Outcome {
                tag: slot.tag,
                result: match &result {
                    Err(error) => {
                        self.counters.failed.fetch_add(1, Relaxed);
                        Err(error.clone())
                    }
                    Ok(receipt) => self.outcome(
                        &slot,
                        &receipt.appends[slot.append],
                        packed.sequences[slot.append].as_ref(),
                        &packed.topics[slot.append],
                    ),
                },
            });
            match &result {
                // Behind the ledger a record that was left out is not missed, so its sender must not get past it.
                Err(error) if self.options.sequences_behind => freed += lane.break_off(outcomes, error),
                _ => ready.extend(lane.settle(outcomes).map(|left| (lane, left))),
            }
        }
        self.queued_bytes.fetch_sub(freed, Relaxed);
        let mut queue = self.queue.lock().expect("no panic holds the lock");
        queue.in_flight -= 1;
        for (lane, left) in ready {
            queue.ready_bytes += left.bytes as i64;
            queue.ready_records += left.records as i64;
            queue.ready.push_back(lane);
        }
    }

    fn outcome(
        &self,
        slot: &Slot,
        outcome: &AppendOutcome,
        sequence: Option<&Sequence>,
        topic: &(String, LogId),
    ) -> Result<Placed, Error> {
        let partition = slot.partition;
        let device = || {
            let s = sequence.expect("only an append with a sequence is refused for it");
            (s.producer.strip_prefix(sequence::DEVICE_PREFIX).unwrap_or(&s.producer), s)
        };
        match outcome {
            AppendOutcome::Appended { base_offset } => {
                self.counters.appended.fetch_add(1, Relaxed);
                // Negative where the ledger cannot say yet where the record will lie.
                let offset = (base_offset.0 >= 0).then(|| Offset(base_offset.0 + i64::from(slot.record)));
                Ok(Placed { partition, offset, duplicate: false })
            }
            AppendOutcome::Duplicate { base_offset } => {
                self.counters.duplicates.fetch_add(1, Relaxed);
                let offset = base_offset.map(|base| Offset(base.0 + i64::from(slot.record)));
                Ok(Placed { partition, offset, duplicate: true })
            }
            AppendOutcome::Gap { expected } => {
                self.counters.gaps.fetch_add(1, Relaxed);
                let (name, s) = device();
                let message = if s.number < *expected {
                    format!("sequence number {} of {name:?} was overtaken, expected {expected}", s.number)
                } else {
                    format!("sequence number {} of {name:?} skips ahead, expected {expected}", s.number)
                };
                let hint = format!("resend from {expected}, or raise the record's \"epoch\" to start anew");
                Err(Error::new(Code::SEQUENCE_GAP, message).hint(hint))
            }
            AppendOutcome::StaleEpoch { current } => {
                self.counters.stale_epochs.fetch_add(1, Relaxed);
                let (name, s) = device();
                let message = format!("epoch {} of {name:?} is over, the current one is {current}", s.epoch);
                let hint = "two senders use this name: stop the older one, or give it a name of its own";
                Err(Error::new(Code::EPOCH_STALE, message).hint(hint))
            }
            AppendOutcome::UnknownLog => {
                self.counters.failed.fetch_add(1, Relaxed);
                self.routes.write().expect("no panic holds the lock").remove(&topic.0);
                Err(unknown_topic(&topic.0))
            }
        }
    }

    /// Drops what a lane still has queued; what is in flight is answered to nobody.
    pub fn abandon(&self, lane: &Lane) {
        let dropped = lane.abandon();
        self.queued_bytes.fetch_sub(dropped.bytes, Relaxed);
        if dropped.was_ready {
            let mut queue = self.queue.lock().expect("no panic holds the lock");
            queue.ready_bytes -= dropped.bytes as i64;
            queue.ready_records -= dropped.records as i64;
        }
    }
}

pub(crate) fn unknown_topic(topic: &str) -> Error {
    let error = Error::new(Code::TOPIC_UNKNOWN, format!("there is no topic {topic:?}"));
    match crate::http::check_topic_name(topic) {
        Ok(()) => error.hint(format!("create it first: buttress topic create {topic} --partitions 8")),
        Err(_) => error.hint("and there cannot be one: topic names have letters, digits, '.', '_' and '-'"),
    }
}

/// An entry being filled.
struct Packing {
    bytes_max: usize,
    bytes: usize,
    lanes: Vec<(Arc<Lane>, Vec<Slot>)>,
    appends: Vec<Pending>,
    /// The append that still takes records, per partition.
    open: BTreeMap<LogId, usize>,
}

struct Pending {
    topic: String,
    log: LogId,
    sequence: Option<Sequence>,
    content: Content,
}

enum Content {
    Done { batch: Bytes, timestamp_ms: i64 },
    Open(Builder),
}

impl Packing {
    fn new(bytes_max: usize) -> Self {
        // Guards, topics and the entry's own header are empty or a few bytes.
        Self { bytes_max, bytes: 64, lanes: Vec::new(), appends: Vec::new(), open: BTreeMap::new() }
    }

    fn fits(&self, item: &Item) -> bool {
        self.appends.len() < ENTRY_PARTS_MAX && self.bytes + item.size <= self.bytes_max
    }

    fn add(&mut self, item: Item) -> Slot {
        self.bytes += item.size;
        let Item { tag, route, partition, size, body } = item;
        let log = route.logs[partition as usize];
        let slot = |append: usize, record: u32| Slot { tag, partition, append, record, size };
        match body {
            Body::Batch { batch, sequence, timestamp_ms } => {
                self.appends.push(Pending {
                    topic: route.name.clone(),
                    log,
                    sequence: Some(sequence),
                    content: Content::Done { batch, timestamp_ms },
                });
                slot(self.appends.len() - 1, 0)
            }
            Body::Record { key, value, headers, timestamp_ms } => {
                let headers: Vec<(&[u8], Option<&[u8]>)> =
                    headers.iter().map(|(k, v)| (&k[..], Some(&v[..]))).collect();
                let append = match self.open.get(&log).copied() {
                    Some(at) if self.builder(at).size() + size <= RECORD_BATCH_BYTES_MAX => at,
                    _ => {
                        self.appends.push(Pending {
                            topic: route.name.clone(),
                            log,
                            sequence: None,
                            content: Content::Open(Builder::with_capacity(size)),
                        });
                        self.open.insert(log, self.appends.len() - 1);
                        self.appends.len() - 1
                    }
                };
                let builder = self.builder(append);
                builder.push(timestamp_ms, key.as_deref(), value.as_deref(), &headers);
                slot(append, builder.count() - 1)
            }
        }
    }

    fn builder(&mut self, at: usize) -> &mut Builder {
        match &mut self.appends[at].content {
            Content::Open(builder) => builder,
            Content::Done { .. } => unreachable!("only open appends are remembered as open"),
        }
    }

    fn finish(self) -> Packed {
        let mut entry = Entry::default();
        let mut topics = Vec::with_capacity(self.appends.len());
        let mut sequences = Vec::with_capacity(self.appends.len());
        for Pending { topic, log, sequence, content } in self.appends {
            let (records, max_timestamp_ms, batch) = match content {
                Content::Done { batch, timestamp_ms } => (1, timestamp_ms, batch),
                Content::Open(builder) => {
                    let (count, max) = (builder.count(), builder.max_timestamp_ms());
                    (count, max, builder.build().expect("an append is opened for a record"))
                }
            };
            topics.push((topic, log));
            sequences.push(sequence.clone());
            entry.appends.push(Append { log, records, max_timestamp_ms, sequence, batch });
        }
        Packed { lanes: self.lanes, entry: Some(entry), topics, sequences }
    }
}

impl Counters {
    /// Appends the counters in Prometheus' text form.
    pub fn prometheus(&self, out: &mut String) {
        for (name, counter) in [
            ("entries_total", &self.entries),
            ("entries_failed_total", &self.entries_failed),
            ("records_total", &self.records),
            ("bytes_total", &self.bytes),
            ("appended_total", &self.appended),
            ("duplicates_total", &self.duplicates),
            ("gaps_total", &self.gaps),
            ("stale_epochs_total", &self.stale_epochs),
            ("failed_total", &self.failed),
        ] {
            counter_line(out, &format!("buttress_events_ingest_{name}"), counter.load(Relaxed));
        }
        let name = "buttress_events_ingest_entry_records";
        let _ = writeln!(out, "# TYPE {name} histogram");
        let mut total = 0;
        let last = self.entry_records.len() - 1;
        for (i, bucket) in self.entry_records.iter().enumerate() {
            total += bucket.load(Relaxed);
            if i < last {
                let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {total}", 1u64 << i);
            }
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "{name}_sum {}", self.records.load(Relaxed));
        let _ = writeln!(out, "{name}_count {total}");
    }
}

pub(crate) fn counter_line(out: &mut String, name: &str, value: u64) {
    let _ = writeln!(out, "# TYPE {name} counter\n{name} {value}");
}
