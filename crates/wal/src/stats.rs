//! Plain counters that the composition root prints.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Durations in microseconds, in buckets that double: bucket `i` counts what took less than `2^i` µs.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; Histogram::BUCKETS],
    sum_us: AtomicU64,
}

impl Histogram {
    /// The last bucket takes everything from 2^24 µs (16.8 s) on.
    pub const BUCKETS: usize = 26;

    pub fn record_us(&self, us: u64) {
        let bucket = (64 - us.leading_zeros() as usize).min(Self::BUCKETS - 1);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Relaxed)).sum()
    }

    pub fn sum_us(&self) -> u64 {
        self.sum_us.load(Relaxed)
    }

    /// Upper bounds in µs with the number of observations below each, cumulative as Prometheus wants it. The last
    /// bound is `u64::MAX`.
    pub fn cumulative(&self) -> Vec<(u64, u64)> {
        let mut below = 0;
        (0..Self::BUCKETS)
            .map(|i| {
                below += self.buckets[i].load(Relaxed);
                (if i + 1 == Self::BUCKETS { u64::MAX } else { 1 << i }, below)
            })
            .collect()
    }

    /// An upper bound of the quantile in µs; zero without observations.
    pub fn quantile_us(&self, q: f64) -> u64 {
        let all = self.cumulative();
        let total = all.last().map_or(0, |l| l.1);
        let wanted = (q * total as f64).ceil() as u64;
        if total == 0 { 0 } else { all.iter().find(|(_, n)| *n >= wanted).map_or(0, |(bound, _)| *bound) }
    }
}

/// What the log did since it was opened.
#[derive(Debug, Default)]
pub struct WalStats {
    /// One write and one sync each.
    pub commits: AtomicU64,
    pub jobs: AtomicU64,
    pub entries: AtomicU64,
    /// Frame bytes, without zeros written ahead.
    pub bytes: AtomicU64,
    /// Handed to the writer and not yet on disk.
    pub queued_bytes: AtomicU64,
    pub segments: AtomicU64,
    pub segments_recycled: AtomicU64,
    /// `fdatasync` alone.
    pub sync_us: Histogram,
    /// Write and sync.
    pub commit_us: Histogram,
}
