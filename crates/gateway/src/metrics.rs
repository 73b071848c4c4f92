//! Figures of the data path. Each core counts for itself; whoever asks adds them up.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::auth::Why;

/// Upper bounds of the buckets of durations, in microseconds.
pub const BOUNDS_US: [u64; 16] = [
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    u64::MAX,
];

/// Written by one core only, so an addition needs no locked instruction.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(more), Relaxed);
    }

    pub fn take(&self, less: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(less), Relaxed);
    }

    /// Of what is counted elsewhere on the same core.
    pub fn set(&self, to: u64) {
        self.0.store(to, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Of a route or of an endpoint.
#[derive(Debug, Default)]
pub struct Golden {
    /// By the hundreds of their status: 1xx to 5xx.
    pub by_class: [Count; 5],
    pub durations: [Count; BOUNDS_US.len()],
    pub micros: Count,
    pub running: Count,
}

impl Golden {
    pub fn done(&self, status: u16, micros: u64) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.by_class[class].add(1);
        self.micros.add(micros);
        let bucket = BOUNDS_US.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS_US.len() - 1);
        self.durations[bucket].add(1);
    }
}

#[derive(Debug, Default)]
pub struct EndpointFigures {
    pub golden: Golden,
    pub connects: Count,
    pub failures: Count,
}

/// Of a route that asks who calls.
#[derive(Debug, Default)]
pub struct AuthFigures {
    pub passed: Count,
    pub anonymous: Count,
    pub refused: Count,
    pub forbidden: Count,
    /// Keys were not there yet.
    pub unready: Count,
}

impl AuthFigures {
    pub fn denied(&self, why: Why) -> &Count {
        match why {
            Why::Anonymous => &self.anonymous,
            Why::Refused => &self.refused,
            Why::Forbidden => &self.forbidden,
            Why::Unready => &self.unready,
        }
    }
}

/// Figures of one core that belong to no route.
#[derive(Debug, Default)]
pub struct Shard {
    pub connections: Count,
    pub connections_total: Count,
    /// Requests that were not taken, because they were no HTTP.
    pub refused: Count,
    /// Requests that no route takes.
    pub unmatched: Count,
    pub attempts: Count,
    pub retries: Count,
    pub hedges: Count,
    pub mirrored: Count,
    pub tunnels: Count,
    /// Of answers that were no success, by their code. Locked when one is given and when all are added up.
    pub codes: Mutex<BTreeMap<&'static str, u64>>,
}

impl Shard {
    pub fn coded(&self, code: &'static str) {
        *self.codes.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }
}

/// The same figure of all cores.
#[derive(Clone, Debug, Default)]
pub struct GoldenSum {
    pub by_class: [u64; 5],
    pub durations: [u64; BOUNDS_US.len()],
    pub micros: u64,
    pub running: u64,
}

impl GoldenSum {
    pub fn of<'a>(all: impl Iterator<Item = &'a Golden>) -> Self {
        all.fold(Self::default(), |mut sum, golden| {
            let pairs = sum.by_class.iter_mut().zip(&golden.by_class);
            pairs.chain(sum.durations.iter_mut().zip(&golden.durations)).for_each(|(sum, count)| *sum += count.get());
            sum.micros += golden.micros.get();
            sum.running = sum.running.wrapping_add(golden.running.get());
            sum
        })
    }

    pub fn count(&self) -> u64 {
        self.durations.iter().sum()
    }

    /// The bound of the bucket in which this share of requests ends, in milliseconds.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        let at = self.durations.iter().position(|count| {
            seen += count;
            seen >= wanted && wanted > 0
        })?;
        // The last bucket has no bound.
        Some(BOUNDS_US[at.min(BOUNDS_US.len() - 2)] as f64 / 1000.0)
    }
}
