//! The report: from what the clients were told and what a stock Kafka client read back, whether every promise held.
//!
//! This file is pure: [`judge`] takes [`Evidence`] and asks nobody. The product's own counters are not evidence; only
//! acknowledgements, records as read from offset 0 after everything, and times taken by the demo's clocks are.
//!
//! | promise | sentence |
//! |---|---|
//! | P1 | every acknowledged reading is in the log exactly once |
//! | P2 | offsets have no gap, and each machine's sequence grows by one |
//! | P3 | the verdicts' ranges tile each partition: every reading was judged exactly once |
//! | P4 | nothing was judged by an older model after the swap was committed |
//! | P5 | the anomalies are exactly the readings that the model of their verdict scores above 0.7 |
//! | P6 | a function that traps is contained: its poison is set aside, and the other function's verdicts go on |
//! | P7 | after the kill another node led, and the killed node came back and caught up |
//! | P8 | on the user's engines, where the broker was restarted: it came back, and verdicts went on |
//! | L1, L2 | with `--assert-latency` only: the latencies |
//!
//! On the user's own Kafka offsets count the markers of transactions and the records of aborted ones too. There every offset
//! is first replaced by its rank among the committed readings ([`ranked`]), and the rest of this file is the same.
//!
//! A promise that the run did not exercise (no kill, no swap, stopped early) is not listed, rather than listed as held.
//!
//! **Failover window.** From the kill to [`FAILOVER_SETTLE_MS`] after a new leader was seen. A reading is *across* it
//! when it arrived before the window's end and its verdict came after the window's begin; all others are outside.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::Arc,
};

use serde::{Serialize, Serializer};

use super::{
    engines::Engines,
    journal::{MachineJournal, SeqSet},
    reading::Values,
};

/// A score above this is an anomaly.
pub const SCORE_MAX: f32 = 0.7;
/// Two evaluators may sum the same leaves in another order.
const SCORE_TOLERANCE: f32 = 1e-4;
/// Time after the election in which the backlog of the leaderless time is worked off.
pub const FAILOVER_SETTLE_MS: f64 = 2_000.0;
pub const LATENCY_P99_MS_MAX: f64 = 100.0;
pub const LATENCY_P99_ACROSS_FAILOVER_MS_MAX: f64 = 2_000.0;
/// A record that is not a reading of a machine of this plant.
pub const FOREIGN: u32 = u32::MAX;

/// The function whose verdicts are judged, its input and its model.
pub const FUNCTION: &str = "anomaly";
pub const TELEMETRY: &str = "telemetry";
pub const MODEL: &str = "anomaly";
/// The function that traps on purpose.
pub const FAULTY: &str = "faulty";

/// An independent evaluation of a model.
pub type Scorer = Arc<dyn Fn(&Values) -> f32 + Send + Sync>;

/// A reading as read back.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRecord {
    pub offset: i64,
    /// [`FOREIGN`] where it is not a reading of this plant.
    pub machine: u32,
    pub seq: u32,
    pub sensor_ms: u64,
    /// The record's timestamp: when the edge took it.
    pub arrived_ms: i64,
    pub values: Values,
}

/// One partition of `telemetry` as read back, from its first to its end offset.
#[derive(Clone, Debug, Default)]
pub struct PartitionLog {
    pub start: i64,
    pub end: i64,
    pub records: Vec<LogRecord>,
}

/// One record of the audit topic.
#[derive(Clone, Debug, PartialEq)]
pub enum AuditEvent {
    Batch { function: String, topic: String, partition: i32, from: i64, to: i64, generation: Option<u64> },
    DeadLetter { function: String, topic: String, partition: i32, from: i64, to: i64, error: String },
    Gap { function: String, topic: String, partition: i32, from: i64, to: i64 },
    ModelPushed { model: String, generation: u64, digest: String },
    Other,
}

/// One record of `machine-anomalies`.
#[derive(Clone, Debug, PartialEq)]
pub struct AnomalyRecord {
    pub machine: u32,
    pub seq: u32,
    pub score: f32,
    /// The model's verdict; `false` where the function fell back to its rules.
    pub by_model: bool,
    pub source_partition: i32,
    pub source_offset: i64,
}

/// When the live consumer saw a batch's audit record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VerdictSeen {
    pub partition: i32,
    pub from: i64,
    pub to: i64,
    pub at_ms: f64,
}

/// A kill and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Failover {
    pub node: String,
    pub node_id: u64,
    /// Whether it led when it was killed.
    pub was_leader: bool,
    pub term_before: u64,
    pub killed_ms: f64,
    /// Leader and term that a survivor named first after the kill.
    pub elected: Option<(u64, u64)>,
    pub leaderless_ms: Option<f64>,
    pub restarted: bool,
    /// After the restart it had applied what was committed when it came back.
    pub caught_up: bool,
}

/// A model swap as its acknowledgement named it.
#[derive(Clone, Debug, PartialEq)]
pub struct Swap {
    pub from: u64,
    pub to: u64,
    pub acked_ms: f64,
}

/// What the trap experiment did.
/// The user's broker, restarted by the user's command.
#[derive(Clone, Debug, PartialEq)]
pub struct BrokerRestart {
    pub begun_ms: f64,
    pub ended_ms: f64,
    pub failed: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trap {
    /// Poisoned records given to the function.
    pub poison: u64,
    pub deployed_ms: f64,
}

/// Everything the verdict rests on.
#[derive(Clone, Default)]
pub struct Evidence {
    pub nodes: usize,
    pub seed: u64,
    pub duration_s: f64,
    pub interrupted: bool,
    pub machines: Vec<MachineJournal>,
    /// Whether true anomalies are known.
    pub labelled: bool,
    pub telemetry: Vec<PartitionLog>,
    /// In the order of the audit topic.
    pub audit: Vec<AuditEvent>,
    pub anomalies: Vec<AnomalyRecord>,
    pub verdicts_seen: Vec<VerdictSeen>,
    /// Sensor to alert, in ms, with the moment of the alert.
    pub alerts_seen: Vec<(f64, f64)>,
    pub failovers: Vec<Failover>,
    pub swaps: Vec<Swap>,
    pub trap: Option<Trap>,
    /// Generation that the first push was acknowledged with.
    pub first_generation: u64,
    /// By generation; empty where the model cannot be evaluated here.
    pub models: BTreeMap<u64, Scorer>,
    pub assert_latency: bool,
    /// The user's own Kafka and etcd stood for nodes.
    pub on_engines: Option<Engines>,
    pub broker_restart: Option<BrokerRestart>,
}

/// One promise and whether it held.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Promise {
    pub id: &'static str,
    pub text: String,
    pub held: bool,
    /// What was counted; for people, not part of the stable output.
    #[serde(skip)]
    pub detail: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Anomalies {
    pub reported: u64,
    /// True anomalies among the readings in the log; `null` where no labels are known.
    #[serde(rename = "true")]
    pub actual: Option<u64>,
    #[serde(serialize_with = "rounded_4")]
    pub precision: Option<f64>,
    #[serde(serialize_with = "rounded_4")]
    pub recall: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    #[serde(serialize_with = "rounded_1")]
    pub p50: Option<f64>,
    #[serde(serialize_with = "rounded_1")]
    pub p99: Option<f64>,
    #[serde(serialize_with = "rounded_1")]
    pub max: Option<f64>,
    #[serde(serialize_with = "rounded_1")]
    pub alert_p99: Option<f64>,
    #[serde(serialize_with = "rounded_1")]
    pub p99_across_failover: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FailoverReport {
    pub killed: Option<String>,
    #[serde(serialize_with = "rounded_1")]
    pub leaderless_ms: Option<f64>,
    pub restarted: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SwapReport {
    pub from: Option<u64>,
    pub to: Option<u64>,
}

/// The one object of `--output json`; its fields are stable.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub nodes: usize,
    pub machines: usize,
    pub seed: u64,
    #[serde(serialize_with = "rounded_1_plain")]
    pub duration_s: f64,
    pub readings_sent: u64,
    pub readings_acked: u64,
    pub verdicts: u64,
    pub lost: u64,
    pub duplicates: u64,
    pub stale_after_swap: u64,
    pub anomalies: Anomalies,
    pub latency_ms: Latency,
    pub failover: FailoverReport,
    pub swap: SwapReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engines: Option<EnginesReport>,
    pub promises: Vec<Promise>,
    pub ok: bool,
    /// The run was ended before its time; the promises are judged for what was played.
    #[serde(skip)]
    pub interrupted: bool,
}

fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

fn rounded_4<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(|v| round(v, 10_000.0)).serialize(serializer)
}

fn rounded_1<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(|v| round(v, 10.0)).serialize(serializer)
}

fn rounded_1_plain<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    round(*value, 10.0).serialize(serializer)
}

/// What a run on the user's own engines did to them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EnginesReport {
    pub kafka: Vec<String>,
    pub etcd: Vec<String>,
    pub namespace: String,
    pub broker_restarted: bool,
    #[serde(serialize_with = "rounded_1")]
    pub broker_restart_ms: Option<f64>,
}

impl Report {
    /// 0: every promise held. 1: one did not.
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.ok)
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report has no map with keys that are not text")
    }
}

/// The value below which `share` of the values lie (nearest rank); reorders the values.
pub fn percentile(values: &mut [f64], share: f64) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let rank = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len()) - 1;
    let (_, value, _) = values.select_nth_unstable_by(rank, f64::total_cmp);
    Some(*value)
}

/// A judged range of one partition.
#[derive(Clone, Copy, Debug)]
struct Range {
    from: i64,
    to: i64,
    generation: Option<u64>,
    /// Judged, rather than set aside or missing.
    judged: bool,
}

/// Judges the run.
pub fn judge(evidence: &Evidence) -> Report {
    let ranked = evidence.on_engines.is_some().then(|| ranked(evidence.clone()));
    let evidence = ranked.as_ref().unwrap_or(evidence);
    let placed = place(evidence);
    let ranges = ranges(evidence);
    let mut promises = vec![exactly_once(&placed), in_order(evidence, &placed), tiled(evidence, &ranges)];
    let (stale, no_stale) = models_in_order(evidence);
    promises.extend(no_stale);
    let (anomalies, matched) = anomalies(evidence, &ranges);
    promises.push(matched);
    promises.extend(contained(evidence));
    promises.extend(failed_over(evidence));
    promises.extend(broker_back(evidence));
    let latency_ms = latency(evidence);
    if evidence.assert_latency {
        promises.extend(fast(&latency_ms));
    }
    let ok = promises.iter().all(|promise| promise.held);
    let killed = evidence.failovers.first();
    Report {
        nodes: evidence.nodes,
        machines: evidence.machines.len(),
        seed: evidence.seed,
        duration_s: evidence.duration_s,
        readings_sent: evidence.machines.iter().map(|m| u64::from(m.sent)).sum(),
        readings_acked: evidence.machines.iter().map(|m| m.acked.len() as u64).sum(),
        verdicts: ranges.values().flatten().filter(|r| r.judged).map(|r| (r.to - r.from).max(0) as u64).sum(),
        lost: placed.lost,
        duplicates: placed.duplicates,
        stale_after_swap: stale,
        anomalies,
        latency_ms,
        failover: FailoverReport {
            killed: killed.map(|f| f.node.clone()),
            leaderless_ms: killed.and_then(|f| f.leaderless_ms),
            restarted: killed.is_some_and(|f| f.restarted),
        },
        swap: SwapReport { from: evidence.swaps.first().map(|s| s.from), to: evidence.swaps.first().map(|s| s.to) },
        engines: evidence.on_engines.as_ref().map(|engines| {
            let restart = evidence.broker_restart.as_ref().filter(|restart| restart.failed.is_none());
            EnginesReport {
                kafka: engines.kafka.clone(),
                etcd: engines.etcd.clone(),
                namespace: engines.namespace.clone(),
                broker_restarted: restart.is_some(),
                broker_restart_ms: restart.map(|restart| restart.ended_ms - restart.begun_ms),
            }
        }),
        promises,
        ok,
        interrupted: evidence.interrupted,
    }
}

/// Where the readings are in the log.
/// Replaces offsets by ranks among the committed readings of their partition. A range of offsets becomes the range of the
/// readings in it, and a source that is no committed reading one that nothing has.
fn ranked(mut evidence: Evidence) -> Evidence {
    let offsets: Vec<Vec<i64>> =
        evidence.telemetry.iter().map(|log| log.records.iter().map(|record| record.offset).collect()).collect();
    let rank = |partition: i32, offset: i64| -> i64 {
        let of = usize::try_from(partition).ok().and_then(|partition| offsets.get(partition));
        of.map_or(offset, |of| of.partition_point(|known| *known < offset) as i64)
    };
    for event in &mut evidence.audit {
        if let AuditEvent::Batch { function, topic, partition, from, to, .. }
        | AuditEvent::DeadLetter { function, topic, partition, from, to, .. }
        | AuditEvent::Gap { function, topic, partition, from, to } = event
            && function == FUNCTION
            && topic == TELEMETRY
        {
            (*from, *to) = (rank(*partition, *from), rank(*partition, *to));
        }
    }
    for seen in &mut evidence.verdicts_seen {
        (seen.from, seen.to) = (rank(seen.partition, seen.from), rank(seen.partition, seen.to));
    }
    for anomaly in &mut evidence.anomalies {
        let of = usize::try_from(anomaly.source_partition).ok().and_then(|partition| offsets.get(partition));
        let at = of.and_then(|of| of.binary_search(&anomaly.source_offset).ok());
        anomaly.source_offset = at.map_or(-1 - anomaly.source_offset, |at| at as i64);
    }
    for log in &mut evidence.telemetry {
        for (rank, record) in (0..).zip(&mut log.records) {
            record.offset = rank;
        }
        (log.start, log.end) = (0, log.records.len() as i64);
    }
    evidence
}

/// Whether the user's broker came back, and verdicts with it.
fn broker_back(evidence: &Evidence) -> Option<Promise> {
    let restart = evidence.broker_restart.as_ref()?;
    let after = evidence.verdicts_seen.iter().filter(|seen| seen.at_ms > restart.ended_ms).count();
    Some(Promise {
        id: "P8",
        text: "after the broker's restart verdicts went on".into(),
        held: restart.failed.is_none() && after > 0,
        detail: match &restart.failed {
            Some(why) => why.clone(),
            None => {
                let seconds = (restart.ended_ms - restart.begun_ms) / 1_000.0;
                format!("it served again after {seconds:.1} s, {after} batches were judged after that")
            }
        },
    })
}

struct Placed {
    lost: u64,
    duplicates: u64,
    /// Records that no client sent.
    foreign: u64,
    out_of_order: u64,
    in_two_partitions: u64,
}

fn place(evidence: &Evidence) -> Placed {
    let count = evidence.machines.len();
    let mut seen = vec![SeqSet::default(); count];
    let mut last = vec![0u32; count];
    let mut home = vec![usize::MAX; count];
    let mut placed = Placed { lost: 0, duplicates: 0, foreign: 0, out_of_order: 0, in_two_partitions: 0 };
    for (partition, log) in evidence.telemetry.iter().enumerate() {
        for record in &log.records {
            let machine = record.machine as usize;
            if machine >= count || record.seq == 0 || record.seq > evidence.machines[machine].sent {
                placed.foreign += 1;
                continue;
            }
            if !seen[machine].insert(record.seq) {
                placed.duplicates += 1;
                continue;
            }
            if record.seq != last[machine] + 1 {
                placed.out_of_order += 1;
            }
            last[machine] = record.seq;
            if home[machine] == usize::MAX {
                home[machine] = partition;
            } else if home[machine] != partition {
                placed.in_two_partitions += 1;
            }
        }
    }
    placed.lost = evidence
        .machines
        .iter()
        .zip(&seen)
        .map(|(machine, seen)| machine.acked.iter().filter(|seq| !seen.contains(*seq)).count() as u64)
        .sum();
    placed
}

fn exactly_once(placed: &Placed) -> Promise {
    Promise {
        id: "P1",
        text: "every acknowledged reading is in the log exactly once".into(),
        held: placed.lost == 0 && placed.duplicates == 0 && placed.foreign == 0,
        detail: format!("{} lost, {} twice, {} that nobody sent", placed.lost, placed.duplicates, placed.foreign),
    }
}

fn in_order(evidence: &Evidence, placed: &Placed) -> Promise {
    let mut gaps = 0u64;
    for log in &evidence.telemetry {
        let mut next = log.start;
        for record in &log.records {
            gaps += u64::from(record.offset != next);
            next = record.offset + 1;
        }
        gaps += u64::from(next != log.end);
    }
    Promise {
        id: "P2",
        text: match &evidence.on_engines {
            None => "offsets have no gap, and each machine's sequence grows by one".into(),
            // Markers take offsets, so gaps say nothing there.
            Some(_) => "each machine's sequence grows by one, in one partition".into(),
        },
        held: gaps == 0 && placed.out_of_order == 0 && placed.in_two_partitions == 0,
        detail: format!("{gaps} offset gaps, {} sequence breaks", placed.out_of_order + placed.in_two_partitions),
    }
}

/// The verdict ranges of each partition in the order in which they were committed.
fn ranges(evidence: &Evidence) -> BTreeMap<i32, Vec<Range>> {
    let mut ranges: BTreeMap<i32, Vec<Range>> = BTreeMap::new();
    for event in &evidence.audit {
        let (function, topic, partition, range) = match event {
            AuditEvent::Batch { function, topic, partition, from, to, generation } => {
                (function, topic, partition, Range { from: *from, to: *to, generation: *generation, judged: true })
            }
            AuditEvent::DeadLetter { function, topic, partition, from, to, .. }
            | AuditEvent::Gap { function, topic, partition, from, to } => {
                (function, topic, partition, Range { from: *from, to: *to, generation: None, judged: false })
            }
            AuditEvent::ModelPushed { .. } | AuditEvent::Other => continue,
        };
        if function == FUNCTION && topic == TELEMETRY {
            ranges.entry(*partition).or_default().push(range);
        }
    }
    ranges
}

fn tiled(evidence: &Evidence, ranges: &BTreeMap<i32, Vec<Range>>) -> Promise {
    let (mut holes, mut overlaps, mut aside) = (0i64, 0i64, 0i64);
    for (partition, log) in evidence.telemetry.iter().enumerate() {
        let mut next = log.start;
        for range in ranges.get(&(partition as i32)).map_or(&[][..], Vec::as_slice) {
            if range.from > next {
                holes += range.from - next;
            }
            overlaps += (next.min(range.to) - range.from).max(0);
            if !range.judged {
                aside += range.to - range.from;
            }
            next = next.max(range.to);
        }
        holes += (log.end - next).max(0);
        overlaps += (next - log.end).max(0);
    }
    let known = evidence.telemetry.len() as i32;
    let unknown = ranges.keys().filter(|partition| !(0..known).contains(*partition)).count();
    Promise {
        id: "P3",
        text: "the verdicts' ranges tile each partition: every reading was judged exactly once".into(),
        held: holes == 0 && overlaps == 0 && aside == 0 && unknown == 0,
        detail: format!("{holes} not judged, {overlaps} judged twice, {aside} set aside"),
    }
}

/// Verdicts by an older model after the swap, and P4 where there was a swap.
fn models_in_order(evidence: &Evidence) -> (u64, Option<Promise>) {
    let mut current = evidence.first_generation;
    let (mut stale, mut early) = (0u64, 0u64);
    let mut markers = Vec::new();
    for event in &evidence.audit {
        match event {
            AuditEvent::ModelPushed { model, generation, .. } if model == MODEL => {
                markers.push(*generation);
                current = *generation;
            }
            AuditEvent::Batch { function, topic, from, to, generation: Some(generation), .. }
                if function == FUNCTION && topic == TELEMETRY =>
            {
                let readings = (to - from).max(0) as u64;
                match generation.cmp(&current) {
                    std::cmp::Ordering::Less => stale += readings,
                    std::cmp::Ordering::Greater => early += readings,
                    std::cmp::Ordering::Equal => {}
                }
            }
            _ => {}
        }
    }
    if evidence.swaps.is_empty() {
        return (stale, None);
    }
    let missing = evidence.swaps.iter().filter(|swap| !markers.contains(&swap.to)).count();
    // One entry of the embedded log holds model and marker. On the user's engines the marker comes last, once the partitions
    // are fenced, and whoever claims one before that judges by the new model already.
    let order = early == 0 || evidence.on_engines.is_some();
    let promise = Promise {
        id: "P4",
        text: "nothing was judged by an older model after the swap was committed".into(),
        held: stale == 0 && order && missing == 0,
        detail: format!(
            "{stale} by the old model after the swap, {early} by the new one before it, {missing} swaps without a marker"
        ),
    };
    (stale, Some(promise))
}

fn anomalies(evidence: &Evidence, ranges: &BTreeMap<i32, Vec<Range>>) -> (Anomalies, Promise) {
    let mut by_source: HashMap<(i32, i64), &AnomalyRecord> = HashMap::with_capacity(evidence.anomalies.len());
    let (mut twice, mut by_rules) = (0u64, 0u64);
    for anomaly in &evidence.anomalies {
        by_rules += u64::from(!anomaly.by_model);
        if by_source.insert((anomaly.source_partition, anomaly.source_offset), anomaly).is_some() {
            twice += 1;
        }
    }
    // Scoring is what costs, so the partitions are worked on side by side.
    let checks: Vec<Check> = std::thread::scope(|scope| {
        let by_source = &by_source;
        let workers: Vec<_> = evidence
            .telemetry
            .iter()
            .enumerate()
            .map(|(partition, log)| {
                let ranges = ranges.get(&(partition as i32)).map_or(&[][..], Vec::as_slice);
                scope.spawn(move || check(evidence, partition as i32, log, ranges, by_source))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("checking a partition does not panic")).collect()
    });
    let sum = |field: fn(&Check) -> u64| checks.iter().map(field).sum::<u64>();
    let found = sum(|c| c.found);
    let dangling = by_source.len() as u64 - found;
    let (wrong, missing, unasked) = (sum(|c| c.wrong), sum(|c| c.missing), sum(|c| c.unasked));
    let reported = evidence.anomalies.len() as u64;
    let (hits, actual) = (sum(|c| c.hits), sum(|c| c.actual));
    let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let anomalies = Anomalies {
        reported,
        actual: evidence.labelled.then_some(actual),
        precision: if evidence.labelled { share(hits, reported) } else { None },
        recall: if evidence.labelled { share(hits, actual) } else { None },
    };
    let text = if evidence.models.is_empty() {
        "every anomaly refers to one reading, and no reading to two anomalies"
    } else {
        "the anomalies are exactly the readings that the model of their verdict scores above 0.7"
    };
    let promise = Promise {
        id: "P5",
        text: text.into(),
        held: twice == 0 && dangling == 0 && wrong == 0 && missing == 0 && unasked == 0 && by_rules == 0,
        detail: format!(
            "{missing} missing, {unasked} too many, {twice} twice, {dangling} without a reading, {wrong} that differ, \
             {by_rules} without the model"
        ),
    };
    (anomalies, promise)
}

#[derive(Default)]
struct Check {
    found: u64,
    /// Machine, sequence or score differ from what is read back and evaluated here.
    wrong: u64,
    missing: u64,
    unasked: u64,
    hits: u64,
    actual: u64,
}

fn check(
    evidence: &Evidence,
    partition: i32,
    log: &PartitionLog,
    ranges: &[Range],
    by_source: &HashMap<(i32, i64), &AnomalyRecord>,
) -> Check {
    let mut check = Check::default();
    let mut at = 0;
    for record in &log.records {
        let truth =
            evidence.machines.get(record.machine as usize).is_some_and(|machine| machine.truth.contains(record.seq));
        check.actual += u64::from(truth);
        let anomaly = by_source.get(&(partition, record.offset));
        if let Some(anomaly) = anomaly {
            check.found += 1;
            check.hits += u64::from(truth);
            check.wrong += u64::from(anomaly.machine != record.machine || anomaly.seq != record.seq);
        }
        while ranges.get(at).is_some_and(|range| range.to <= record.offset) {
            at += 1;
        }
        let generation = ranges.get(at).filter(|range| range.from <= record.offset).and_then(|range| range.generation);
        let Some(score) = generation.and_then(|g| evidence.models.get(&g)) else { continue };
        let score = score(&record.values);
        match anomaly {
            Some(anomaly) => {
                check.unasked += u64::from(score < SCORE_MAX - SCORE_TOLERANCE);
                check.wrong += u64::from((anomaly.score - score).abs() > SCORE_TOLERANCE);
            }
            None => check.missing += u64::from(score > SCORE_MAX + SCORE_TOLERANCE),
        }
    }
    check
}

fn contained(evidence: &Evidence) -> Option<Promise> {
    let trap = evidence.trap?;
    let aside = evidence
        .audit
        .iter()
        .filter_map(|event| match event {
            AuditEvent::DeadLetter { function, from, to, .. } if function == FAULTY => Some((to - from).max(0) as u64),
            _ => None,
        })
        .sum::<u64>();
    let went_on = evidence.verdicts_seen.iter().any(|seen| seen.at_ms > trap.deployed_ms);
    Some(Promise {
        id: "P6",
        text: "a function that traps is contained: its poison is set aside, and the other function's verdicts go on"
            .into(),
        held: aside >= trap.poison.max(1) && went_on,
        detail: format!("{} poisoned records, {aside} set aside after traps", trap.poison),
    })
}

fn failed_over(evidence: &Evidence) -> Option<Promise> {
    if evidence.failovers.is_empty() {
        return None;
    }
    let elected = |f: &Failover| {
        !f.was_leader || f.elected.is_some_and(|(leader, term)| leader != f.node_id && term > f.term_before)
    };
    let back = |f: &Failover| f.restarted && f.caught_up;
    // A run that was interrupted between kill and restart cannot know the second half.
    let held = evidence.failovers.iter().all(|f| elected(f) && (back(f) || (evidence.interrupted && !f.restarted)));
    let details: Vec<String> = evidence
        .failovers
        .iter()
        .map(|f| {
            let led = match (f.elected, f.leaderless_ms) {
                (Some((host, _)), Some(ms)) if evidence.on_engines.is_some() => {
                    format!("host {host} took over after {ms:.0} ms")
                }
                (Some((leader, term)), Some(ms)) => format!("node {leader} led after {ms:.0} ms in term {term}"),
                _ if !f.was_leader => "was a follower".to_owned(),
                _ => "nobody led".to_owned(),
            };
            let back = match (f.restarted, f.caught_up) {
                (true, true) => "back and caught up",
                (true, false) => "back, not caught up",
                _ => "not restarted",
            };
            format!("{}: {led}, {back}", f.node)
        })
        .collect();
    Some(Promise {
        id: "P7",
        text: match &evidence.on_engines {
            None => "after the kill another node led, and the killed node came back and caught up".into(),
            Some(_) => "after the kill another host took the partitions over, and the killed host came back".into(),
        },
        held,
        detail: details.join("; "),
    })
}

/// Begin and end of the failover windows.
fn windows(failovers: &[Failover]) -> Vec<(f64, f64)> {
    failovers
        .iter()
        .filter(|f| f.was_leader)
        .map(|f| (f.killed_ms, f.leaderless_ms.map_or(f64::INFINITY, |ms| f.killed_ms + ms + FAILOVER_SETTLE_MS)))
        .collect()
}

fn latency(evidence: &Evidence) -> Latency {
    let windows = windows(&evidence.failovers);
    let (mut outside, mut across) = (Vec::new(), Vec::new());
    for seen in &evidence.verdicts_seen {
        let Some(log) = usize::try_from(seen.partition).ok().and_then(|p| evidence.telemetry.get(p)) else { continue };
        let from = log.records.partition_point(|record| record.offset < seen.from);
        for record in log.records[from..].iter().take_while(|record| record.offset < seen.to) {
            let arrived = record.arrived_ms as f64;
            // A record's timestamp is cut to the millisecond, so no latency is reported smaller than it was.
            let took = (seen.at_ms - arrived).max(0.0);
            if windows.iter().any(|(begin, end)| arrived < *end && seen.at_ms > *begin) {
                across.push(took);
            } else {
                outside.push(took);
            }
        }
    }
    let mut alerts: Vec<f64> = evidence
        .alerts_seen
        .iter()
        .filter(|(took, at)| !windows.iter().any(|(begin, end)| at - took < *end && at > begin))
        .map(|(took, _)| *took)
        .collect();
    Latency {
        p50: percentile(&mut outside, 0.5),
        p99: percentile(&mut outside, 0.99),
        max: percentile(&mut outside, 1.0),
        alert_p99: percentile(&mut alerts, 0.99),
        p99_across_failover: percentile(&mut across, 0.99),
    }
}

fn fast(latency: &Latency) -> Vec<Promise> {
    let mut promises = vec![Promise {
        id: "L1",
        text: format!("99 % of the verdicts came within {LATENCY_P99_MS_MAX} ms of the reading's arrival"),
        held: latency.p99.is_some_and(|p99| p99 < LATENCY_P99_MS_MAX),
        detail: latency.p99.map_or("no verdict was seen".into(), |p99| format!("{p99:.1} ms")),
    }];
    if let Some(p99) = latency.p99_across_failover {
        promises.push(Promise {
            id: "L2",
            text: format!("across the failover, within {LATENCY_P99_ACROSS_FAILOVER_MS_MAX} ms"),
            held: p99 < LATENCY_P99_ACROSS_FAILOVER_MS_MAX,
            detail: format!("{p99:.0} ms"),
        });
    }
    promises
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// How the report is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    pub color: bool,
}

impl Style {
    pub(crate) fn paint(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Report {
    /// The report for people. Colour repeats what the words say and can be left away.
    pub fn render(&self, style: Style) -> String {
        let mut out = String::new();
        let title = if self.interrupted { "Report (ended early; judged for what was played)" } else { "Report" };
        // Writing to a String does not fail.
        let _ = writeln!(out, "{}\n", style.paint("1", title));
        let mut line = |name: &str, value: &str, note: &str| {
            let note = if note.is_empty() { String::new() } else { format!("   {}", style.paint("2", note)) };
            let _ = writeln!(out, "  {name:<22}{value:>12}{note}");
        };
        let ms = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.1} ms"));
        let percent = |value: Option<f64>| value.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0));
        let nodes = if self.engines.is_some() { "function hosts" } else { "nodes" };
        let machines =
            format!("{} machines on {} {nodes}, {:.1} s", grouped(self.machines as u64), self.nodes, self.duration_s);
        line("readings sent", &grouped(self.readings_sent), &machines);
        line("acknowledged", &grouped(self.readings_acked), "");
        line("verdicts", &grouped(self.verdicts), "");
        line("lost", &grouped(self.lost), "");
        line("duplicates", &grouped(self.duplicates), "");
        line(
            "stale after swap",
            &grouped(self.stale_after_swap),
            &match (self.swap.from, self.swap.to) {
                (Some(from), Some(to)) => format!("model generation {from} to {to}"),
                _ => "no swap".to_owned(),
            },
        );
        let actual = self.anomalies.actual.map(|actual| format!("{} true ones played", grouped(actual)));
        line("anomalies reported", &grouped(self.anomalies.reported), &actual.unwrap_or_default());
        line("precision", &percent(self.anomalies.precision), "reported ones that are true");
        line("recall", &percent(self.anomalies.recall), "true ones that are reported");
        line("arrival to verdict", &ms(self.latency_ms.p50), "p50");
        line("", &ms(self.latency_ms.p99), "p99");
        line("", &ms(self.latency_ms.max), "max, outside the failover window");
        line("sensor to alert", &ms(self.latency_ms.alert_p99), "p99");
        if let Some(killed) = &self.failover.killed {
            let name = if self.engines.is_some() { "until taken over" } else { "without a leader" };
            line(name, &ms(self.failover.leaderless_ms), &format!("after SIGKILL to {killed}"));
            line("across the failover", &ms(self.latency_ms.p99_across_failover), "p99, arrival to verdict");
        }
        if let Some(engines) = &self.engines {
            let restarted = if engines.broker_restarted { "restarted" } else { "not restarted" };
            let note = format!("Kafka at {}, etcd at {}", engines.kafka.join(","), engines.etcd.join(","));
            line("broker", restarted, &note);
        }
        let title = match &self.engines {
            None => "Promises, checked from acknowledgements and a stock Kafka client's read-back",
            Some(_) => "Promises, checked from acknowledgements and what is committed in the Kafka",
        };
        let _ = writeln!(out, "\n{}\n", style.paint("1", title));
        for promise in &self.promises {
            let mark = if promise.held { style.paint("32", "held  ") } else { style.paint("1;31", "BROKEN") };
            let _ = writeln!(out, "  {}  {mark}  {}", promise.id, promise.text);
            if !promise.detail.is_empty() {
                let _ = writeln!(out, "              {}", style.paint("2", &promise.detail));
            }
        }
        let broken = self.promises.iter().filter(|promise| !promise.held).count();
        let verdict = match broken {
            0 => style.paint("1;32", "Every promise held."),
            1 => style.paint("1;31", "One promise was broken."),
            _ => style.paint("1;31", &format!("{broken} promises were broken.")),
        };
        let _ = writeln!(out, "\n{verdict}");
        out
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const ARRIVED: i64 = 1_000_000;

    fn values(vibration: f32) -> Values {
        Values { vibration, ..Values::NONE }
    }

    /// Two partitions, two machines each, ten readings per machine; machine 3 is anomalous from its sixth reading on;
    /// each partition is judged in four batches, the last two by generation 2.
    fn sound() -> Evidence {
        let mut evidence = Evidence {
            nodes: 3,
            seed: 1,
            duration_s: 60.0,
            labelled: true,
            machines: vec![MachineJournal::default(); 4],
            telemetry: vec![PartitionLog::default(); 2],
            first_generation: 1,
            ..Evidence::default()
        };
        let score: Scorer = Arc::new(|values| if values.vibration > 5.0 { 0.9 } else { 0.1 });
        evidence.models = BTreeMap::from([(1, Arc::clone(&score)), (2, score)]);
        for seq in 1..=10 {
            for machine in 0..4u32 {
                let journal = &mut evidence.machines[machine as usize];
                journal.sent = seq;
                journal.acked.insert(seq);
                let bad = machine == 3 && seq > 5;
                if bad {
                    journal.truth.insert(seq);
                }
                let partition = machine as usize / 2;
                let log = &mut evidence.telemetry[partition];
                let offset = log.records.len() as i64;
                log.records.push(LogRecord {
                    offset,
                    machine,
                    seq,
                    sensor_ms: (ARRIVED + offset * 100) as u64,
                    arrived_ms: ARRIVED + offset * 100,
                    values: values(if bad { 9.0 } else { 2.0 }),
                });
                log.end = offset + 1;
                if bad {
                    evidence.anomalies.push(AnomalyRecord {
                        machine,
                        seq,
                        score: 0.9,
                        by_model: true,
                        source_partition: partition as i32,
                        source_offset: offset,
                    });
                    evidence.alerts_seen.push((50.0, (ARRIVED + offset * 100) as f64 + 50.0));
                }
            }
        }
        evidence.audit.push(pushed(1));
        for quarter in 0..4 {
            if quarter == 2 {
                evidence.audit.push(pushed(2));
            }
            for partition in 0..2 {
                let (from, to) = (quarter * 5, quarter * 5 + 5);
                evidence.audit.push(batch(partition, from, to, if quarter < 2 { 1 } else { 2 }));
                let at_ms = (ARRIVED + to * 100) as f64;
                evidence.verdicts_seen.push(VerdictSeen { partition, from, to, at_ms });
            }
        }
        evidence.audit.push(AuditEvent::DeadLetter {
            function: FAULTY.into(),
            topic: "calibration".into(),
            partition: 0,
            from: 3,
            to: 4,
            error: "BT0405".into(),
        });
        evidence.trap = Some(Trap { poison: 1, deployed_ms: ARRIVED as f64 });
        evidence.swaps.push(Swap { from: 1, to: 2, acked_ms: ARRIVED as f64 + 1_000.0 });
        evidence.failovers.push(Failover {
            node: "n1".into(),
            node_id: 1,
            was_leader: true,
            term_before: 4,
            killed_ms: ARRIVED as f64 + 1_700.0,
            elected: Some((2, 5)),
            leaderless_ms: Some(420.0),
            restarted: true,
            caught_up: true,
        });
        evidence
    }

    fn pushed(generation: u64) -> AuditEvent {
        AuditEvent::ModelPushed { model: MODEL.into(), generation, digest: String::new() }
    }

    fn batch(partition: i32, from: i64, to: i64, generation: u64) -> AuditEvent {
        AuditEvent::Batch {
            function: FUNCTION.into(),
            topic: TELEMETRY.into(),
            partition,
            from,
            to,
            generation: Some(generation),
        }
    }

    fn check(change: impl FnOnce(&mut Evidence), expected: Expect) {
        let mut evidence = sound();
        change(&mut evidence);
        let report = judge(&evidence);
        assert_eq!(report.ok, report.promises.iter().all(|p| p.held));
        assert_eq!(report.exit_code(), u8::from(!report.ok));
        let broken: Vec<String> =
            report.promises.iter().filter(|p| !p.held).map(|p| format!("{}: {}", p.id, p.detail)).collect();
        expected.assert_eq(&broken.join("\n"));
    }

    /// The same run on a Kafka: every fourth offset is a marker or was aborted.
    fn sparse() -> Evidence {
        let spread = |offset: i64| offset + offset / 3;
        let mut evidence = sound();
        evidence.on_engines = Some(Engines::default());
        for log in &mut evidence.telemetry {
            log.records.iter_mut().for_each(|record| record.offset = spread(record.offset));
            log.end = spread(log.end) + 1;
        }
        for event in &mut evidence.audit {
            if let AuditEvent::Batch { from, to, .. } = event {
                (*from, *to) = (spread(*from), spread(*to - 1) + 1);
            }
        }
        for seen in &mut evidence.verdicts_seen {
            (seen.from, seen.to) = (spread(seen.from), spread(seen.to - 1) + 1);
        }
        for anomaly in &mut evidence.anomalies {
            anomaly.source_offset = spread(anomaly.source_offset);
        }
        evidence
    }

    #[test]
    fn offsets_of_a_kafka_are_judged_by_their_rank() {
        let report = judge(&sparse());
        assert!(report.ok, "{}", report.render(Style { color: false }));
        assert_eq!(report.verdicts, judge(&sound()).verdicts);
        assert!(report.engines.is_some_and(|engines| !engines.broker_restarted));

        let broken = |change: fn(&mut Evidence)| {
            let mut evidence = sparse();
            change(&mut evidence);
            let promises = judge(&evidence).promises;
            promises.iter().filter(|promise| !promise.held).map(|promise| promise.id).collect::<Vec<_>>()
        };
        assert_eq!(broken(|e| drop(e.audit.remove(1))), ["P3"], "a range is missing");
        assert_eq!(
            broken(|e| e.anomalies[0].source_offset += 1),
            ["P5"],
            "its source is a marker, or another's reading"
        );
        let lost = broken(|e| {
            e.telemetry[0].records.remove(4);
        });
        assert!(lost.contains(&"P1"), "{lost:?}");
        let failed = |failed| Some(BrokerRestart { begun_ms: 1.0, ended_ms: 2.0, failed });
        let mut evidence = sparse();
        evidence.broker_restart = failed(None);
        assert!(judge(&evidence).ok);
        evidence.broker_restart = failed(Some("it did not come up".into()));
        assert!(!judge(&evidence).ok);
    }

    #[test]
    fn a_sound_run_holds_and_reads_well() {
        let report = judge(&sound());
        assert!(report.ok, "{report:?}");
        expect![[r#"{"nodes":3,"machines":4,"seed":1,"duration_s":60.0,"readings_sent":40,"readings_acked":40,"verdicts":40,"lost":0,"duplicates":0,"stale_after_swap":0,"anomalies":{"reported":5,"true":5,"precision":1.0,"recall":1.0},"latency_ms":{"p50":300.0,"p99":500.0,"max":500.0,"alert_p99":50.0,"p99_across_failover":500.0},"failover":{"killed":"n1","leaderless_ms":420.0,"restarted":true},"swap":{"from":1,"to":2},"promises":[{"id":"P1","text":"every acknowledged reading is in the log exactly once","held":true},{"id":"P2","text":"offsets have no gap, and each machine's sequence grows by one","held":true},{"id":"P3","text":"the verdicts' ranges tile each partition: every reading was judged exactly once","held":true},{"id":"P4","text":"nothing was judged by an older model after the swap was committed","held":true},{"id":"P5","text":"the anomalies are exactly the readings that the model of their verdict scores above 0.7","held":true},{"id":"P6","text":"a function that traps is contained: its poison is set aside, and the other function's verdicts go on","held":true},{"id":"P7","text":"after the kill another node led, and the killed node came back and caught up","held":true}],"ok":true}"#]].assert_eq(&report.to_json());
        expect![[r#"
            Report

              readings sent                   40   4 machines on 3 nodes, 60.0 s
              acknowledged                    40
              verdicts                        40
              lost                             0
              duplicates                       0
              stale after swap                 0   model generation 1 to 2
              anomalies reported               5   5 true ones played
              precision                  100.0 %   reported ones that are true
              recall                     100.0 %   true ones that are reported
              arrival to verdict        300.0 ms   p50
                                        500.0 ms   p99
                                        500.0 ms   max, outside the failover window
              sensor to alert            50.0 ms   p99
              without a leader          420.0 ms   after SIGKILL to n1
              across the failover       500.0 ms   p99, arrival to verdict

            Promises, checked from acknowledgements and a stock Kafka client's read-back

              P1  held    every acknowledged reading is in the log exactly once
                          0 lost, 0 twice, 0 that nobody sent
              P2  held    offsets have no gap, and each machine's sequence grows by one
                          0 offset gaps, 0 sequence breaks
              P3  held    the verdicts' ranges tile each partition: every reading was judged exactly once
                          0 not judged, 0 judged twice, 0 set aside
              P4  held    nothing was judged by an older model after the swap was committed
                          0 by the old model after the swap, 0 by the new one before it, 0 swaps without a marker
              P5  held    the anomalies are exactly the readings that the model of their verdict scores above 0.7
                          0 missing, 0 too many, 0 twice, 0 without a reading, 0 that differ, 0 without the model
              P6  held    a function that traps is contained: its poison is set aside, and the other function's verdicts go on
                          1 poisoned records, 1 set aside after traps
              P7  held    after the kill another node led, and the killed node came back and caught up
                          n1: node 2 led after 420 ms in term 5, back and caught up

            Every promise held.
        "#]].assert_eq(&report.render(Style { color: false }));
    }

    #[test]
    fn every_way_to_break_the_log_is_found() {
        // An acknowledged reading is not there.
        check(
            |e| {
                e.machines[0].sent += 1;
                e.machines[0].acked.insert(11);
            },
            expect!["P1: 1 lost, 0 twice, 0 that nobody sent"],
        );
        // One that was sent and never acknowledged may be missing.
        check(|e| e.machines[0].sent += 1, expect![[r#""#]]);
        // A reading is there twice.
        check(
            |e| {
                let mut again = e.telemetry[0].records[0].clone();
                again.offset = 20;
                e.telemetry[0].records.push(again);
                e.telemetry[0].end = 21;
                e.audit.push(batch(0, 20, 21, 2));
            },
            expect!["P1: 0 lost, 1 twice, 0 that nobody sent"],
        );
        // Two readings of a machine changed places.
        check(
            |e| {
                let log = &mut e.telemetry[0].records;
                let (a, b) = (log[0].seq, log[2].seq);
                log[0].seq = b;
                log[2].seq = a;
            },
            expect!["P2: 0 offset gaps, 3 sequence breaks"],
        );
        // A record that nobody sent.
        check(
            |e| {
                e.telemetry[1].records[0].machine = FOREIGN;
                e.machines[2].acked = SeqSet::default();
            },
            expect![[r#"
            P1: 0 lost, 0 twice, 1 that nobody sent
            P2: 0 offset gaps, 1 sequence breaks"#]],
        );
        // An offset is missing, and the end is not reached.
        check(
            |e| {
                e.telemetry[0].records.remove(7);
                e.telemetry[0].end = 21;
            },
            expect![[r#"
            P1: 1 lost, 0 twice, 0 that nobody sent
            P2: 2 offset gaps, 1 sequence breaks
            P3: 1 not judged, 0 judged twice, 0 set aside"#]],
        );
    }

    #[test]
    fn every_way_to_break_the_verdicts_is_found() {
        let find = |e: &Evidence, wanted: AuditEvent| e.audit.iter().position(|a| *a == wanted).expect("it is there");
        // A range is missing.
        check(
            |e| {
                let at = find(e, batch(0, 5, 10, 1));
                e.audit.remove(at);
            },
            expect!["P3: 5 not judged, 0 judged twice, 0 set aside"],
        );
        // A range is judged twice.
        check(
            |e| {
                let at = find(e, batch(0, 5, 10, 1));
                let again = e.audit[at].clone();
                e.audit.insert(at, again);
            },
            expect!["P3: 0 not judged, 5 judged twice, 0 set aside"],
        );
        // Ranges overlap.
        check(
            |e| {
                let at = find(e, batch(1, 5, 10, 1));
                e.audit[at] = batch(1, 4, 10, 1);
            },
            expect!["P3: 0 not judged, 1 judged twice, 0 set aside"],
        );
        // The last readings are not judged.
        check(
            |e| {
                let at = find(e, batch(1, 15, 20, 2));
                e.audit.remove(at);
            },
            expect!["P3: 5 not judged, 0 judged twice, 0 set aside"],
        );
        // Readings were set aside instead of judged.
        check(
            |e| {
                let at = find(e, batch(0, 5, 10, 1));
                e.audit[at] = AuditEvent::DeadLetter {
                    function: FUNCTION.into(),
                    topic: TELEMETRY.into(),
                    partition: 0,
                    from: 5,
                    to: 10,
                    error: "BT0405".into(),
                };
            },
            expect!["P3: 0 not judged, 0 judged twice, 5 set aside"],
        );
        // The old model judged after the swap.
        check(
            |e| {
                let at = find(e, batch(0, 10, 15, 2));
                e.audit[at] = batch(0, 10, 15, 1);
            },
            expect!["P4: 5 by the old model after the swap, 0 by the new one before it, 0 swaps without a marker"],
        );
        // The new model judged before its marker.
        check(
            |e| {
                let at = find(e, batch(0, 5, 10, 1));
                e.audit[at] = batch(0, 5, 10, 2);
            },
            expect!["P4: 0 by the old model after the swap, 5 by the new one before it, 0 swaps without a marker"],
        );
        // The swap left no marker.
        check(
            |e| {
                let at = find(e, pushed(2));
                e.audit.remove(at);
            },
            expect!["P4: 0 by the old model after the swap, 20 by the new one before it, 1 swaps without a marker"],
        );
    }

    #[test]
    fn every_way_to_break_the_anomalies_is_found() {
        check(
            |e| {
                e.anomalies.pop();
            },
            expect!["P5: 1 missing, 0 too many, 0 twice, 0 without a reading, 0 that differ, 0 without the model"],
        );
        check(
            |e| {
                let again = e.anomalies[0].clone();
                e.anomalies.push(again);
            },
            expect!["P5: 0 missing, 0 too many, 1 twice, 0 without a reading, 0 that differ, 0 without the model"],
        );
        check(
            |e| e.anomalies[0].source_offset = 77,
            expect!["P5: 1 missing, 0 too many, 0 twice, 1 without a reading, 0 that differ, 0 without the model"],
        );
        check(
            |e| e.anomalies[0].source_offset = 0,
            expect!["P5: 1 missing, 1 too many, 0 twice, 0 without a reading, 2 that differ, 0 without the model"],
        );
        check(
            |e| e.anomalies[0].score = 0.8,
            expect!["P5: 0 missing, 0 too many, 0 twice, 0 without a reading, 1 that differ, 0 without the model"],
        );
        check(
            |e| e.anomalies[0].by_model = false,
            expect!["P5: 0 missing, 0 too many, 0 twice, 0 without a reading, 0 that differ, 1 without the model"],
        );
    }

    #[test]
    fn every_way_to_break_the_failover_and_the_containment_is_found() {
        check(|e| e.failovers[0].elected = None, expect!["P7: n1: nobody led, back and caught up"]);
        check(
            |e| e.failovers[0].elected = Some((1, 9)),
            expect!["P7: n1: node 1 led after 420 ms in term 9, back and caught up"],
        );
        check(
            |e| e.failovers[0].caught_up = false,
            expect!["P7: n1: node 2 led after 420 ms in term 5, back, not caught up"],
        );
        check(
            |e| e.failovers[0].restarted = false,
            expect!["P7: n1: node 2 led after 420 ms in term 5, not restarted"],
        );
        check(
            |e| {
                e.failovers[0].restarted = false;
                e.interrupted = true;
            },
            expect![[r#""#]],
        );
        check(
            |e| e.trap = Some(Trap { poison: 2, deployed_ms: 0.0 }),
            expect!["P6: 2 poisoned records, 1 set aside after traps"],
        );
        check(
            |e| e.trap = Some(Trap { poison: 1, deployed_ms: f64::MAX }),
            expect!["P6: 1 poisoned records, 1 set aside after traps"],
        );
    }

    #[test]
    fn what_was_not_exercised_is_not_listed() {
        let mut evidence = sound();
        evidence.failovers.clear();
        evidence.swaps.clear();
        evidence.trap = None;
        evidence.audit.retain(|event| *event != pushed(2));
        for event in &mut evidence.audit {
            if let AuditEvent::Batch { generation, .. } = event {
                *generation = Some(1);
            }
        }
        let report = judge(&evidence);
        assert!(report.ok);
        assert_eq!(report.promises.iter().map(|p| p.id).collect::<Vec<_>>(), ["P1", "P2", "P3", "P5"]);
        assert_eq!(report.latency_ms.p99_across_failover, None);
    }

    #[test]
    fn latency_is_judged_only_when_asked_and_only_by_the_fast_promises() {
        let mut evidence = sound();
        evidence.verdicts_seen[0].at_ms += 10_000.0;
        assert!(judge(&evidence).ok);
        evidence.assert_latency = true;
        let report = judge(&evidence);
        let broken: Vec<_> = report.promises.iter().filter(|p| !p.held).map(|p| p.id).collect();
        assert_eq!(broken, ["L1", "L2"]);
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 0.5), Some(100.0));
        assert_eq!(percentile(&mut values, 0.99), Some(198.0));
        assert_eq!(percentile(&mut values, 1.0), Some(200.0));
        assert_eq!(percentile(&mut [], 0.5), None);
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(7), "7");
    }
}
