//! How long calls took lately: two quantiles of a window of time, cheap enough for every call.
//!
//! **Why.** A hedge needs "slower than 95 % of calls", and a deadline "what even the fastest need". Both must be about now, and
//! must run dry when calls stop coming, so that nothing is decided for ever by what was measured in a bad minute.
//!
//! Buckets grow by an eighth of their power of two from a microsecond to two minutes, so a quantile is at most 12.5 % too long.
//! There are two generations of half a window each; when a new half begins, the older one is emptied. Quantiles are made anew
//! every 64 calls, and when a half begins.
//!
//! | event | |
//! |---|---|
//! | call in the half that runs | counted; every 64th makes the quantiles anew |
//! | first call of a new half | the older half is emptied, the quantiles made anew |
//! | asked, no call for a whole window | nothing is known |
//!
//! **First start.** Nothing is known until `calls_min` calls. **Recovery.** Nothing is kept.
//!
//! Source: Dean, Barroso, "The tail at scale", CACM 2013; HdrHistogram for the buckets.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::time::{Time, nanos};

/// (27 - 2) powers of two with 8 buckets each, and 8 below: up to 2^28 × 1.024 µs.
const BUCKETS: usize = 26 * 8;

#[derive(Debug)]
pub struct Latencies {
    half_nanos: u64,
    calls_min: u32,
    quantiles: [f64; 2],
    /// The half of time that the newer generation is of.
    turn: AtomicU64,
    generations: [Generation; 2],
    /// Nanoseconds; 0 where nothing is known.
    known: [AtomicU64; 2],
    since: AtomicU32,
}

#[derive(Debug)]
struct Generation {
    calls: AtomicU32,
    buckets: Box<[AtomicU32]>,
}

impl Latencies {
    /// Keeps a lower and an upper quantile, as 0.1 and 0.95.
    pub fn new(window: Duration, calls_min: u32, lower: f64, upper: f64) -> Self {
        let generation =
            || Generation { calls: AtomicU32::new(0), buckets: (0..BUCKETS).map(|_| AtomicU32::new(0)).collect() };
        Self {
            half_nanos: (nanos(window) / 2).max(1),
            calls_min: calls_min.max(1),
            quantiles: [lower, upper],
            turn: AtomicU64::new(0),
            generations: [generation(), generation()],
            known: Default::default(),
            since: AtomicU32::new(0),
        }
    }

    pub fn record(&self, now: Time, latency: Duration) {
        let turn = now.nanos() / self.half_nanos;
        let mut fresh = false;
        let had = self.turn.load(Relaxed);
        if turn > had && self.turn.compare_exchange(had, turn, Relaxed, Relaxed).is_ok() {
            self.generations[turn as usize % 2].clear();
            if turn - had > 1 {
                self.generations[(turn as usize + 1) % 2].clear();
            }
            fresh = true;
        }
        let generation = &self.generations[turn as usize % 2];
        generation.buckets[bucket(nanos(latency))].fetch_add(1, Relaxed);
        generation.calls.fetch_add(1, Relaxed);
        if fresh || self.since.fetch_add(1, Relaxed) % 64 == 63 || self.samples() == self.calls_min {
            self.refresh();
        }
    }

    /// The lower quantile, where enough calls were seen.
    pub fn lower(&self, now: Time) -> Option<Duration> {
        self.quantile(now, 0)
    }

    /// The upper quantile, where enough calls were seen.
    pub fn upper(&self, now: Time) -> Option<Duration> {
        self.quantile(now, 1)
    }

    /// Calls that the quantiles are made of.
    pub fn samples(&self) -> u32 {
        self.generations.iter().map(|generation| generation.calls.load(Relaxed)).fold(0, u32::saturating_add)
    }

    fn quantile(&self, now: Time, which: usize) -> Option<Duration> {
        let known = self.known[which].load(Relaxed);
        let stale = now.nanos() / self.half_nanos > self.turn.load(Relaxed) + 1;
        (known != 0 && !stale).then(|| Duration::from_nanos(known))
    }

    fn refresh(&self) {
        let calls = self.samples();
        if calls < self.calls_min {
            self.known.iter().for_each(|known| known.store(0, Relaxed));
            return;
        }
        let ranks = self.quantiles.map(|quantile| (f64::from(calls) * quantile).ceil().max(1.0) as u64);
        let (mut seen, mut found) = (0u64, [0u64; 2]);
        for at in 0..BUCKETS {
            seen += self.generations.iter().map(|one| u64::from(one.buckets[at].load(Relaxed))).sum::<u64>();
            for (found, rank) in found.iter_mut().zip(ranks) {
                if *found == 0 && seen >= rank {
                    *found = upper_end(at);
                }
            }
        }
        for (known, found) in self.known.iter().zip(found) {
            known.store(found, Relaxed);
        }
    }
}

impl Generation {
    fn clear(&self) {
        self.calls.store(0, Relaxed);
        self.buckets.iter().for_each(|bucket| bucket.store(0, Relaxed));
    }
}

fn bucket(nanos: u64) -> usize {
    let micros = nanos >> 10;
    if micros < 8 {
        return micros as usize;
    }
    let power = 63 - micros.leading_zeros() as usize;
    let eighth = (micros >> (power - 3)) as usize & 7;
    ((power - 2) * 8 + eighth).min(BUCKETS - 1)
}

/// The longest latency of a bucket.
fn upper_end(bucket: usize) -> u64 {
    if bucket < 8 {
        return (bucket as u64 + 1) << 10;
    }
    let (power, eighth) = (bucket / 8 + 2, bucket as u64 % 8);
    ((9 + eighth) << (power - 3)) << 10
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bucket_holds_what_is_at_most_an_eighth_shorter_than_its_end(nanos in 1u64..(1 << 37)) {
            let end = upper_end(bucket(nanos));
            prop_assert!(nanos <= end, "{nanos} {end}");
            prop_assert!(nanos < 8192 || end as f64 <= nanos as f64 * 1.126, "{nanos} {end}");
        }

        #[test]
        fn quantiles_are_those_of_a_sorted_list(latencies in prop::collection::vec(10u64..1_000_000, 64..65)) {
            let known = Latencies::new(Duration::from_secs(10), 10, 0.1, 0.95);
            for latency in &latencies {
                known.record(Time::ZERO, Duration::from_micros(*latency));
            }
            let mut sorted = latencies;
            sorted.sort_unstable();
            for (found, rank) in [(known.lower(Time::ZERO), 7), (known.upper(Time::ZERO), 61)] {
                let exact = Duration::from_micros(sorted[rank - 1]).as_secs_f64();
                let found = found.expect("64 calls are enough").as_secs_f64();
                prop_assert!(found >= exact && found <= exact * 1.13 + 2e-6, "{found} {exact}");
            }
        }
    }

    #[test]
    fn what_is_known_runs_dry_when_calls_stop() {
        let known = Latencies::new(Duration::from_secs(10), 10, 0.1, 0.95);
        for n in 0..9 {
            known.record(Time::from_millis(n), Duration::from_millis(5));
            assert_eq!(known.upper(Time::from_millis(n)), None);
        }
        known.record(Time::from_millis(9), Duration::from_millis(5));
        assert!(known.upper(Time::from_millis(9_999)).is_some());
        assert_eq!(known.upper(Time::from_millis(10_000)), None);
        known.record(Time::from_millis(20_000), Duration::from_millis(1));
        assert_eq!((known.samples(), known.upper(Time::from_millis(20_000))), (1, None));
    }
}
