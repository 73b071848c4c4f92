//! The independent reader: a stock Kafka client (`rskafka`) that follows the verdicts and alerts as they come, and reads
//! everything back at the end.
//!
//! On the user's own engines the records of aborted transactions have to be told apart, which the stock client does not do:
//! there [`super::committed`] reads.
//!
//! It trusts nothing that the product says about itself. The live part only takes times, which can be taken but once;
//! what the promises are judged by is read again from offset 0 when the run is over.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rskafka::{
    BackoffConfig,
    client::{
        Client, ClientBuilder,
        partition::{OffsetAt, PartitionClient, UnknownTopicHandling},
    },
    record::RecordAndOffset,
};
use serde::Deserialize;

use super::{
    committed::Log,
    engines::Engines,
    feed::{self, Feed, JudgedBy, Place, Story, VerdictView},
    reading::LoggedReading,
    report::{
        AnomalyRecord, AuditEvent, FAULTY, FOREIGN, FUNCTION, LogRecord, MODEL, PartitionLog, TELEMETRY, VerdictSeen,
    },
};

pub const AUDIT: &str = "buttress-audit";
pub const ANOMALIES: &str = "machine-anomalies";
/// One fetch answer; about 5,000 readings.
const FETCH_BYTES_MAX: i32 = 1024 * 1024;
const FETCH_WAIT_MS: i32 = 500;
/// Between two fetches of a busy partition: bounds the fetches at 250 a second, and adds at most this to a latency.
const TAIL_PAUSE: Duration = Duration::from_millis(4);
/// No request of a healthy cluster takes longer, a failover included.
const STEP_WAIT: Duration = Duration::from_secs(15);
/// Latencies shown on the page are those of the last seconds.
pub const LATENCY_WINDOW_S: u32 = 5;
const RECENT_MAX: usize = 20_000;

/// What is read from.
#[derive(Clone, Debug)]
pub enum Kafka {
    /// The nodes' own.
    Nodes(Vec<String>),
    /// The user's.
    Engine(Engines),
}

/// Numbers of machines by their names.
pub struct Names {
    by_name: HashMap<String, u32>,
}

impl Names {
    pub fn new(names: &[String]) -> Self {
        Self { by_name: names.iter().cloned().zip(0..).collect() }
    }

    pub fn number(&self, name: &str) -> u32 {
        self.by_name.get(name).copied().unwrap_or(FOREIGN)
    }
}

/// Connects to whichever node answers.
///
/// # Errors
/// When none does in time.
pub async fn connect(kafka: &[String]) -> anyhow::Result<Client> {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(20),
        max_backoff: Duration::from_millis(200),
        base: 2.0,
        deadline: Some(STEP_WAIT),
    };
    let client = ClientBuilder::new(kafka.to_vec()).client_id("fleet-reader").backoff_config(backoff).build();
    tokio::time::timeout(STEP_WAIT, client)
        .await
        .context("no node answers the Kafka client")?
        .context("the Kafka client cannot connect")
}

async fn partition(client: &Client, topic: &str, partition: i32) -> anyhow::Result<PartitionClient> {
    tokio::time::timeout(STEP_WAIT, client.partition_client(topic, partition, UnknownTopicHandling::Retry))
        .await
        .with_context(|| format!("partition {partition} of '{topic}' has no leader"))?
        .with_context(|| format!("partition {partition} of '{topic}' cannot be read"))
}

/// Follows one partition from its first offset until it is aborted.
async fn tail(kafka: Arc<Kafka>, topic: &'static str, number: i32, mut take: impl FnMut(RecordAndOffset, f64)) {
    let kafka = match &*kafka {
        Kafka::Nodes(nodes) => nodes,
        Kafka::Engine(engines) => {
            let mut log = Log::new(&engines.kafka, engines.physical(topic), number);
            loop {
                match log.more(Duration::from_millis(FETCH_WAIT_MS as u64)).await {
                    Ok(records) => {
                        let at_ms = feed::now_ms();
                        records.into_iter().for_each(|record| take(record, at_ms));
                        tokio::time::sleep(TAIL_PAUSE).await;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        }
    };
    let mut next = 0;
    loop {
        // Whatever goes wrong, a new client finds the new leader.
        let _ = async {
            let client = connect(kafka).await?;
            let partition = partition(&client, topic, number).await?;
            loop {
                let fetch = partition.fetch_records(next, 1..FETCH_BYTES_MAX, FETCH_WAIT_MS);
                let (records, _) = tokio::time::timeout(STEP_WAIT, fetch).await??;
                let at_ms = feed::now_ms();
                for record in records {
                    next = record.offset + 1;
                    take(record, at_ms);
                }
                tokio::time::sleep(TAIL_PAUSE).await;
            }
            #[allow(unreachable_code, reason = "gives the block its type; it ends by `?` only")]
            anyhow::Ok(())
        }
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What the live consumers have seen so far.
#[derive(Default)]
pub struct Seen {
    pub verdicts: Vec<VerdictSeen>,
    pub verdict_count: u64,
    /// Per partition of `telemetry`, up to where verdicts have come.
    pub judged_to: Vec<i64>,
    /// Readings judged twice or not at all, as far as the live order shows.
    pub untiled: u64,
    pub stale: u64,
    pub generation: u64,
    pub digests: HashMap<u64, String>,
    /// Poisoned records that were set aside after a trap.
    pub set_aside: u64,
    pub alerts: Vec<(f64, f64)>,
    pub anomaly_count: u64,
    /// The newest anomaly, for its story.
    pub newest: Option<Story>,
    /// (moment, arrival to verdict, sensor to alert) of the anomalies of the last seconds.
    pub recent: VecDeque<(f64, f64, f64)>,
    /// The last verdict ranges with their generation, for stories.
    ranges: VecDeque<(i32, i64, i64, u64)>,
}

impl Seen {
    fn audit(&mut self, event: AuditEvent, at_ms: f64) {
        match event {
            AuditEvent::Batch { function, topic, partition, from, to, generation }
                if function == FUNCTION && topic == TELEMETRY =>
            {
                self.verdicts.push(VerdictSeen { partition, from, to, at_ms });
                self.verdict_count += (to - from).max(0) as u64;
                if let Some(judged_to) = self.judged_to.get_mut(partition as usize) {
                    self.untiled += from.abs_diff(*judged_to);
                    *judged_to = to;
                }
                if let Some(generation) = generation {
                    if generation < self.generation {
                        self.stale += (to - from).max(0) as u64;
                    }
                    if self.ranges.len() == 512 {
                        self.ranges.pop_front();
                    }
                    self.ranges.push_back((partition, from, to, generation));
                }
            }
            AuditEvent::ModelPushed { model, generation, digest } if model == MODEL => {
                self.generation = generation;
                self.digests.insert(generation, digest);
            }
            AuditEvent::DeadLetter { function, from, to, .. } if function == FAULTY => {
                self.set_aside += (to - from).max(0) as u64;
            }
            _ => {}
        }
    }

    /// The newest anomaly with what is known of its verdict meanwhile.
    pub fn take_story(&mut self) -> Option<Story> {
        let mut story = self.newest.take()?;
        let range = self
            .ranges
            .iter()
            .rev()
            .find(|(p, from, to, _)| *p == story.source.partition && (*from..*to).contains(&story.source.offset));
        if let Some((_, from, to, generation)) = range {
            story.verdict = Some(VerdictView { from: *from, to: *to });
            let digest = self.digests.get(generation).cloned().unwrap_or_default();
            story.model = Some(JudgedBy { generation: *generation, digest });
        }
        Some(story)
    }
}

/// The live consumers.
pub struct Live {
    pub seen: Arc<Mutex<Seen>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Live {
    pub fn start(kafka: Arc<Kafka>, telemetry: usize, anomalies: i32, names: Arc<Names>, feed: Arc<Feed>) -> Self {
        let seen = Arc::new(Mutex::new(Seen { judged_to: vec![0; telemetry], ..Seen::default() }));
        let mut tasks = Vec::new();
        let audit = Arc::clone(&seen);
        let markers = matches!(&*kafka, Kafka::Engine(_));
        tasks.push(tokio::spawn(tail(Arc::clone(&kafka), AUDIT, 0, move |record, at_ms| {
            let event = parse_audit(&record);
            let mut seen = audit.lock().expect("no panic under this lock");
            let before = seen.verdict_count;
            seen.audit(event, at_ms);
            if markers && seen.verdict_count > before {
                // Offsets count the transactions' markers as well.
                seen.verdict_count = before + records_of(&record);
            }
        })));
        for number in 0..anomalies {
            let (seen, names, feed) = (Arc::clone(&seen), Arc::clone(&names), Arc::clone(&feed));
            tasks.push(tokio::spawn(tail(Arc::clone(&kafka), ANOMALIES, number, move |record, at_ms| {
                let Some(story) = parse_story(&record, number, &names, at_ms, feed.at_s()) else { return };
                feed.alerted(story.number);
                let mut seen = seen.lock().expect("no panic under this lock");
                let to_alert = (at_ms - story.sensor_ms as f64).max(0.0);
                seen.anomaly_count += 1;
                seen.alerts.push((to_alert, at_ms));
                if seen.recent.len() == RECENT_MAX {
                    seen.recent.pop_front();
                }
                seen.recent.push_back((at_ms, (at_ms - story.arrived_ms as f64).max(0.0), to_alert));
                seen.newest = Some(story);
            })));
        }
        Self { seen, tasks }
    }

    pub fn stop(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Deserialize)]
struct AuditJson {
    event: String,
    #[serde(default)]
    function: String,
    #[serde(default)]
    topic: String,
    #[serde(default)]
    partition: i32,
    #[serde(default)]
    from: i64,
    #[serde(default)]
    to: i64,
    #[serde(default)]
    generation: Option<u64>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    error: Option<String>,
}

fn records_of(record: &RecordAndOffset) -> u64 {
    #[derive(Deserialize)]
    struct Counted {
        records: u64,
    }
    let counted = serde_json::from_slice::<Counted>(record.record.value.as_deref().unwrap_or_default());
    counted.map_or(0, |counted| counted.records)
}

fn parse_audit(record: &RecordAndOffset) -> AuditEvent {
    let value = record.record.value.as_deref().unwrap_or_default();
    let Ok(json) = serde_json::from_slice::<AuditJson>(value) else { return AuditEvent::Other };
    let AuditJson { event, function, topic, partition, from, to, generation, model, digest, error } = json;
    match (event.as_str(), generation) {
        ("batch", generation) => {
            let generation = generation.filter(|_| model.as_deref() == Some(MODEL));
            AuditEvent::Batch { function, topic, partition, from, to, generation }
        }
        ("dead-letter", _) => {
            AuditEvent::DeadLetter { function, topic, partition, from, to, error: error.unwrap_or_default() }
        }
        ("gap", _) => AuditEvent::Gap { function, topic, partition, from, to },
        ("model-pushed", Some(generation)) => {
            AuditEvent::ModelPushed { model: model.unwrap_or_default(), generation, digest: digest.unwrap_or_default() }
        }
        _ => AuditEvent::Other,
    }
}

#[derive(Deserialize)]
struct Source {
    partition: i32,
    offset: i64,
}

#[derive(Deserialize)]
struct AnomalyJson {
    machine: String,
    seq: u32,
    ts: u64,
    score: f32,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    vibration: Option<f32>,
    source: Source,
    #[serde(default)]
    arrived_ms: u64,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    by: String,
}

fn parse_anomaly(record: &RecordAndOffset) -> Option<AnomalyJson> {
    serde_json::from_slice(record.record.value.as_deref()?).ok()
}

fn parse_story(record: &RecordAndOffset, partition: i32, names: &Names, at_ms: f64, at_s: f64) -> Option<Story> {
    let json = parse_anomaly(record)?;
    let place = |topic, partition, offset| Place { topic, partition, offset, entry: None, committed_ms: None };
    Some(Story {
        at_s,
        number: names.number(&json.machine),
        machine: json.machine,
        seq: json.seq,
        score: json.score,
        temperature: json.temperature,
        vibration: json.vibration,
        reason: json.reason,
        by: json.by,
        sensor_ms: json.ts,
        arrived_ms: json.arrived_ms,
        alert_ms: at_ms as u64,
        source: place(TELEMETRY, json.source.partition, json.source.offset),
        alert: place(ANOMALIES, partition, record.offset),
        verdict: None,
        model: None,
    })
}

/// The end offset of every partition of `telemetry` on the nodes' own Kafka.
///
/// # Errors
/// When the cluster does not answer.
pub async fn telemetry_ends(kafka: &[String], partitions: usize) -> anyhow::Result<Vec<i64>> {
    let client = connect(kafka).await?;
    let mut ends = Vec::new();
    for number in 0..partitions as i32 {
        let partition = partition(&client, TELEMETRY, number).await?;
        ends.push(tokio::time::timeout(STEP_WAIT, partition.get_offset(OffsetAt::Latest)).await??);
    }
    Ok(ends)
}

/// Everything that was read back.
#[derive(Default)]
pub struct ReadBack {
    pub telemetry: Vec<PartitionLog>,
    pub audit: Vec<AuditEvent>,
    pub anomalies: Vec<AnomalyRecord>,
}

/// Reads the three topics from their first to their end offset.
///
/// # Errors
/// When the cluster stops answering, or a fetch brings nothing although the end is not reached.
pub async fn read_back(kafka: &Kafka, telemetry: usize, anomalies: i32, names: &Names) -> anyhow::Result<ReadBack> {
    let client = match kafka {
        Kafka::Nodes(nodes) => Reading::Nodes(connect(nodes).await?),
        Kafka::Engine(engines) => Reading::Engine(engines),
    };
    let mut back = ReadBack::default();
    read_partition(&client, AUDIT, 0, |record| back.audit.push(parse_audit(&record))).await?;
    for number in 0..anomalies {
        read_partition(&client, ANOMALIES, number, |record| {
            // What is not an anomaly record refers to nothing, which the report finds.
            back.anomalies.push(match parse_anomaly(&record) {
                Some(json) => AnomalyRecord {
                    machine: names.number(&json.machine),
                    seq: json.seq,
                    score: json.score,
                    by_model: json.by != "rules",
                    source_partition: json.source.partition,
                    source_offset: json.source.offset,
                },
                None => AnomalyRecord {
                    machine: FOREIGN,
                    seq: 0,
                    score: f32::NAN,
                    by_model: false,
                    source_partition: -1 - number,
                    source_offset: record.offset,
                },
            });
        })
        .await?;
    }
    for number in 0..telemetry as i32 {
        let mut records = Vec::new();
        let (start, end) = read_partition(&client, TELEMETRY, number, |record| {
            let value = record.record.value.as_deref().unwrap_or_default();
            let reading = serde_json::from_slice::<LoggedReading<'_>>(value).ok();
            records.push(LogRecord {
                offset: record.offset,
                machine: reading.as_ref().map_or(FOREIGN, |reading| names.number(&reading.machine)),
                seq: reading.as_ref().map_or(0, |reading| reading.seq),
                sensor_ms: reading.as_ref().map_or(0, |reading| reading.ts),
                arrived_ms: record.record.timestamp.timestamp_millis(),
                values: reading.as_ref().map_or(super::reading::Values::NONE, LoggedReading::values),
            });
        })
        .await?;
        back.telemetry.push(PartitionLog { start, end, records });
    }
    Ok(back)
}

/// Reads a partition of the nodes' log from its first to its end offset, and hands over the value of each record.
///
/// # Errors
/// As [`read_back`].
pub async fn read_all(
    nodes: &[String],
    topic: &'static str,
    number: i32,
    mut take: impl FnMut(&[u8]),
) -> anyhow::Result<()> {
    let client = Reading::Nodes(connect(nodes).await?);
    read_partition(&client, topic, number, |record| take(record.record.value.as_deref().unwrap_or_default())).await?;
    Ok(())
}

enum Reading<'a> {
    Nodes(Client),
    Engine(&'a Engines),
}

async fn read_partition(
    client: &Reading<'_>,
    topic: &'static str,
    number: i32,
    mut take: impl FnMut(RecordAndOffset),
) -> anyhow::Result<(i64, i64)> {
    let what = || format!("reading back partition {number} of '{topic}'");
    let client = match client {
        Reading::Nodes(client) => client,
        Reading::Engine(engines) => {
            let mut log = Log::new(&engines.kafka, engines.physical(topic), number);
            let (start, end) = log.bounds().await.with_context(what)?;
            let mut progress = Instant::now();
            while !log.has_read(end) {
                let records = log.more(Duration::from_millis(FETCH_WAIT_MS as u64)).await.with_context(what)?;
                if !records.is_empty() {
                    progress = Instant::now();
                }
                for record in records {
                    take(record);
                }
                if progress.elapsed() > STEP_WAIT {
                    anyhow::bail!("{}: a transaction stays open before offset {end}", what());
                }
            }
            return Ok((start, end));
        }
    };
    let partition = partition(client, topic, number).await?;
    let start =
        tokio::time::timeout(STEP_WAIT, partition.get_offset(OffsetAt::Earliest)).await.with_context(what)??;
    let end = tokio::time::timeout(STEP_WAIT, partition.get_offset(OffsetAt::Latest)).await.with_context(what)??;
    let mut next = start;
    let mut progress = Instant::now();
    while next < end {
        let fetch = partition.fetch_records(next, 1..FETCH_BYTES_MAX, FETCH_WAIT_MS);
        let (records, _) = tokio::time::timeout(STEP_WAIT, fetch).await.with_context(what)?.with_context(what)?;
        for record in records {
            if record.offset >= end {
                break;
            }
            next = record.offset + 1;
            progress = Instant::now();
            take(record);
        }
        if progress.elapsed() > STEP_WAIT {
            anyhow::bail!("{}: nothing comes at offset {next} although the end is {end}", what());
        }
    }
    Ok((start, end))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rskafka::record::Record;

    use super::*;

    fn record(offset: i64, value: &str) -> RecordAndOffset {
        RecordAndOffset {
            record: Record {
                key: None,
                value: Some(value.as_bytes().to_vec()),
                headers: BTreeMap::new(),
                timestamp: Default::default(),
            },
            offset,
        }
    }

    #[test]
    fn audit_records_are_understood_and_tell_tiling_and_staleness_live() {
        let mut seen = Seen { judged_to: vec![0; 2], ..Seen::default() };
        let lines = [
            r#"{"event":"model-pushed","model":"anomaly","generation":1,"digest":"sha256:aa","from_generation":null,"at_ms":1}"#,
            r#"{"event":"batch","function":"anomaly","version":1,"topic":"telemetry","partition":1,"from":0,"to":5,"records":5,"outputs":1,"model":"anomaly","generation":1,"digest":"sha256:aa"}"#,
            r#"{"event":"model-pushed","model":"anomaly","generation":2,"digest":"sha256:bb"}"#,
            r#"{"event":"batch","function":"anomaly","version":1,"topic":"telemetry","partition":1,"from":7,"to":9,"records":2,"outputs":0,"model":"anomaly","generation":1,"digest":"sha256:aa"}"#,
            r#"{"event":"dead-letter","function":"faulty","version":1,"topic":"calibration","partition":0,"from":3,"to":4,"error":"BT0405","message":"m"}"#,
            r#"{"event":"batch","function":"faulty","topic":"calibration","partition":0,"from":0,"to":3,"model":null,"generation":null}"#,
            "garbage",
        ];
        for (offset, line) in lines.iter().enumerate() {
            seen.audit(parse_audit(&record(offset as i64, line)), 1.0);
        }
        assert_eq!((seen.verdict_count, seen.untiled, seen.stale, seen.set_aside), (7, 2, 2, 1));
        assert_eq!((seen.generation, seen.judged_to.as_slice()), (2, &[0, 9][..]));
    }

    #[test]
    fn an_anomaly_becomes_a_story_with_the_verdict_that_covers_it() {
        let names = Names::new(&["m-00000".into(), "m-00001".into()]);
        let value = r#"{"anomaly":true,"machine":"m-00001","seq":7,"ts":1000,"score":0.93,"temperature":71.5,"vibration":null,"source":{"partition":1,"offset":3},"arrived_ms":1010,"by":"model","reason":"why"}"#;
        let mut seen = Seen { judged_to: vec![0; 2], ..Seen::default() };
        seen.audit(
            parse_audit(&record(0, r#"{"event":"batch","function":"anomaly","topic":"telemetry","partition":1,"from":0,"to":5,"model":"anomaly","generation":4}"#)),
            1.0,
        );
        seen.newest = parse_story(&record(9, value), 0, &names, 1050.4, 2.0);
        let story = seen.take_story().expect("there is one");
        assert_eq!((story.number, story.seq, story.alert_ms, story.alert.offset), (1, 7, 1050, 9));
        assert_eq!(story.model.expect("covered").generation, 4);
        assert_eq!(story.vibration, None);
        assert!(seen.take_story().is_none());
    }
}
