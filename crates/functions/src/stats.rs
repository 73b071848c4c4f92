//! What the plane counts: figures for `/metrics`, the state of every partition for people, and each function's last log
//! lines. Nothing here decides anything.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use buttress_core::{Error, Offset, guest::GuestLog};
use serde::Serialize;

/// Log lines kept per function, and their bytes: a trap's backtrace is about 2 KiB.
pub const LOG_LINES_MAX: usize = 1_000;
pub const LOG_BYTES_MAX: usize = 256 * 1024;
const LOG_LINE_BYTES_MAX: usize = 8 * 1024;

/// Upper bounds of the latency buckets in milliseconds; the promise to watch is 100.
pub const LATENCY_BUCKETS_MS: [u64; 14] = [1, 2, 5, 10, 20, 35, 50, 75, 100, 200, 500, 1_000, 2_000, 10_000];

/// A lock whose holder cannot leave half a change behind, so that a panic elsewhere need not spread.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts of values by bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; LATENCY_BUCKETS_MS.len() + 1],
    sum: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, value: u64) {
        let bucket = LATENCY_BUCKETS_MS.partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// Upper bound (`None`: unbounded) and number of values at most that large, per bucket.
    pub fn cumulative(&self) -> Vec<(Option<u64>, u64)> {
        let bounds = LATENCY_BUCKETS_MS.iter().copied().map(Some).chain([None]);
        let mut total = 0;
        bounds
            .zip(&self.buckets)
            .map(|(bound, count)| {
                total += count.load(Relaxed);
                (bound, total)
            })
            .collect()
    }

    pub fn sum(&self) -> u64 {
        self.sum.load(Relaxed)
    }
}

/// Where a partition's runner is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunnerState {
    /// Not run by this node.
    #[default]
    Stopped,
    /// Waits for a component or model to be loaded.
    Loading,
    /// Waits for records, or works on them.
    Running,
    /// Pauses after a failure.
    BackingOff,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastError {
    pub code: &'static str,
    pub message: String,
    pub at_ms: u64,
}

/// One partition, as this node's runner has seen it since the node started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PartitionStatus {
    pub state: RunnerState,
    /// What a loading runner waits for.
    pub waits_for: Option<String>,
    /// Failed attempts at the batch that begins at the cursor.
    pub attempts: u32,
    pub batches: u64,
    pub records: u64,
    pub outputs: u64,
    pub rescored: u64,
    pub dead_letters: u64,
    pub gaps: u64,
    /// Records that retention took before they were judged.
    pub lost: u64,
    /// Commits whose outcome was unknown or refused, so that the runner read its position again.
    pub resyncs: u64,
    /// Time inside the guest.
    pub guest_ms: f64,
    pub memory_bytes: usize,
    pub last_error: Option<LastError>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogLine {
    pub at_ms: u64,
    pub version: u64,
    /// `None` for lines of HTTP calls.
    pub partition: Option<i32>,
    pub level: &'static str,
    pub message: String,
}

#[derive(Debug, Default)]
struct LogRing {
    lines: VecDeque<LogLine>,
    bytes: usize,
    dropped: u64,
}

/// Counters of one function on this node.
#[derive(Debug, Default)]
pub struct FunctionStats {
    pub records: AtomicU64,
    pub batches: AtomicU64,
    pub outputs: AtomicU64,
    pub errors: AtomicU64,
    pub rescored: AtomicU64,
    pub dead_letters: AtomicU64,
    pub gaps: AtomicU64,
    pub resyncs: AtomicU64,
    pub guest_us: AtomicU64,
    pub http_requests: AtomicU64,
    pub http_errors: AtomicU64,
    /// Turned away with 429 or 503.
    pub http_refused: AtomicU64,
    /// From a record's timestamp to the commit of its batch, in milliseconds.
    pub latency_ms: Histogram,
    /// Size of batches is `records / batches`; this is the time one call took, in milliseconds.
    pub guest_call_ms: Histogram,
    partitions: Mutex<BTreeMap<i32, PartitionStatus>>,
    logs: Mutex<LogRing>,
}

impl FunctionStats {
    pub fn partition(&self, partition: i32, change: impl FnOnce(&mut PartitionStatus)) {
        change(lock(&self.partitions).entry(partition).or_default());
    }

    pub fn partitions(&self) -> BTreeMap<i32, PartitionStatus> {
        lock(&self.partitions).clone()
    }

    pub fn failed(&self, partition: i32, error: &Error, at_ms: u64) {
        self.errors.fetch_add(1, Relaxed);
        self.partition(partition, |p| {
            p.last_error = Some(LastError { code: error.code.0, message: error.message.clone(), at_ms });
        });
    }

    pub fn log(&self, at_ms: u64, version: u64, partition: Option<i32>, logs: Vec<GuestLog>) {
        if logs.is_empty() {
            return;
        }
        let mut ring = lock(&self.logs);
        for log in logs {
            let mut message = log.message;
            if message.len() > LOG_LINE_BYTES_MAX {
                let mut end = LOG_LINE_BYTES_MAX;
                while !message.is_char_boundary(end) {
                    end -= 1;
                }
                message.truncate(end);
            }
            ring.bytes += message.len();
            ring.lines.push_back(LogLine { at_ms, version, partition, level: log.level, message });
            while ring.lines.len() > LOG_LINES_MAX || ring.bytes > LOG_BYTES_MAX {
                let line = ring.lines.pop_front().expect("a ring beyond its limit has lines");
                ring.bytes -= line.message.len();
                ring.dropped += 1;
            }
        }
    }

    /// The last `limit` lines, oldest first, and how many lines are forgotten.
    pub fn logs(&self, limit: usize) -> (Vec<LogLine>, u64) {
        let ring = lock(&self.logs);
        (ring.lines.iter().skip(ring.lines.len().saturating_sub(limit)).cloned().collect(), ring.dropped)
    }
}

/// All functions that this node has met since it started.
#[derive(Debug, Default)]
pub struct Stats {
    functions: Mutex<BTreeMap<String, Arc<FunctionStats>>>,
}

impl Stats {
    pub fn function(&self, name: &str) -> Arc<FunctionStats> {
        let mut functions = lock(&self.functions);
        match functions.get(name) {
            Some(stats) => stats.clone(),
            None => functions.entry(name.to_owned()).or_default().clone(),
        }
    }

    /// Forgets a deleted function, so that labels stay bounded by what is deployed.
    pub fn forget(&self, name: &str) {
        lock(&self.functions).remove(name);
    }

    pub fn all(&self) -> Vec<(String, Arc<FunctionStats>)> {
        lock(&self.functions).iter().map(|(name, stats)| (name.clone(), stats.clone())).collect()
    }

    /// Appends everything in Prometheus' text form.
    pub fn render(&self, out: &mut String) {
        type Read = fn(&FunctionStats) -> &AtomicU64;
        const COUNTERS: [(&str, &str, Read); 11] = [
            ("records", "records judged in committed batches", |s| &s.records),
            ("batches", "batches committed", |s| &s.batches),
            ("outputs", "records produced", |s| &s.outputs),
            ("errors", "failed calls and commits", |s| &s.errors),
            ("rescored", "batches judged again because the model had changed", |s| &s.rescored),
            ("dead_letters", "records set aside", |s| &s.dead_letters),
            ("gaps", "ranges taken by retention before they were judged", |s| &s.gaps),
            ("resyncs", "commits refused or of unknown outcome", |s| &s.resyncs),
            ("http_requests", "HTTP calls answered by the function", |s| &s.http_requests),
            ("http_errors", "HTTP calls that failed in the function", |s| &s.http_errors),
            ("http_refused", "HTTP calls turned away because the function was busy", |s| &s.http_refused),
        ];
        let all = self.all();
        if all.is_empty() {
            return;
        }
        // Writing to a string cannot fail.
        for (name, help, read) in COUNTERS {
            let _ = writeln!(out, "# HELP buttress_functions_{name}_total Number of {help}.");
            let _ = writeln!(out, "# TYPE buttress_functions_{name}_total counter");
            for (function, stats) in &all {
                let value = read(stats).load(Relaxed);
                let _ = writeln!(out, "buttress_functions_{name}_total{{function=\"{function}\"}} {value}");
            }
        }
        let _ = writeln!(out, "# HELP buttress_functions_guest_seconds_total Time inside guests.");
        let _ = writeln!(out, "# TYPE buttress_functions_guest_seconds_total counter");
        for (function, stats) in &all {
            let seconds = stats.guest_us.load(Relaxed) as f64 / 1e6;
            let _ = writeln!(out, "buttress_functions_guest_seconds_total{{function=\"{function}\"}} {seconds}");
        }
        histogram(out, &all, "latency", "From a record's timestamp to the commit of its batch.", |s| &s.latency_ms);
        histogram(out, &all, "call", "Time of one call of a guest.", |s| &s.guest_call_ms);
    }
}

fn histogram(
    out: &mut String,
    all: &[(String, Arc<FunctionStats>)],
    name: &str,
    help: &str,
    read: fn(&FunctionStats) -> &Histogram,
) {
    let _ = writeln!(out, "# HELP buttress_functions_{name}_milliseconds {help}");
    let _ = writeln!(out, "# TYPE buttress_functions_{name}_milliseconds histogram");
    for (function, stats) in all {
        let histogram = read(stats);
        let mut count = 0;
        for (bound, total) in histogram.cumulative() {
            let bound = bound.map_or("+Inf".into(), |b| b.to_string());
            let _ = writeln!(
                out,
                "buttress_functions_{name}_milliseconds_bucket{{function=\"{function}\",le=\"{bound}\"}} {total}"
            );
            count = total;
        }
        let _ =
            writeln!(out, "buttress_functions_{name}_milliseconds_sum{{function=\"{function}\"}} {}", histogram.sum());
        let _ = writeln!(out, "buttress_functions_{name}_milliseconds_count{{function=\"{function}\"}} {count}");
    }
}

/// Lag of a partition: records between cursor and end.
pub fn lag(start: Offset, end: Offset, cursor: Option<Offset>) -> i64 {
    (end.0 - cursor.unwrap_or(start).0).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_ring_forgets_the_oldest_lines() {
        let stats = FunctionStats::default();
        for n in 0..LOG_LINES_MAX + 5 {
            stats.log(n as u64, 1, None, vec![GuestLog { level: "info", message: format!("line {n}") }]);
        }
        let (lines, dropped) = stats.logs(2);
        assert_eq!(dropped, 5);
        assert_eq!(lines.iter().map(|l| l.at_ms).collect::<Vec<_>>(), [1003, 1004]);
        let long = "ä".repeat(LOG_LINE_BYTES_MAX);
        stats.log(0, 1, Some(0), (0..100).map(|_| GuestLog { level: "stdout", message: long.clone() }).collect());
        assert!(lock(&stats.logs).bytes <= LOG_BYTES_MAX);
    }

    #[test]
    fn metrics_are_prometheus_text() {
        let stats = Stats::default();
        let f = stats.function("f");
        f.records.fetch_add(3, Relaxed);
        for ms in [0, 1, 99, 100, 101, 60_000] {
            f.latency_ms.observe(ms);
        }
        let mut text = String::new();
        stats.render(&mut text);
        expect_test::expect_file!["../testdata/metrics.txt"].assert_eq(&text);
    }
}
