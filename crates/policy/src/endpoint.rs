//! Endpoints: what is known of each, and the set that balancers draw from.
//!
//! **Why.** Which endpoint is taken next depends on how many calls it has, how fast it answers, and whether it may be taken. All
//! cores see the same numbers: they are atomics of an [`Endpoint`] that lives as long as its name stays in the list, while sets
//! come and go. A set is built when the list changes, away from calls, and swapped in whole.
//!
//! | number | changed by |
//! |---|---|
//! | calls under way | an attempt that begins or ends |
//! | peak-EWMA of latency | an attempt that ends: a longer latency counts at once, a shorter one slowly (10 s); a failure doubles it, so that whoever fails fast does not look fast |
//! | down | active health checks, the registry |
//! | ejected until | [`crate::outlier`] |
//! | new since | first in a list, or back from ejection: slow start |
//!
//! The EWMA is read and written without a lock: when two attempts end together one of them may be lost, which moves the mean no
//! more than the order of their ends does.
//!
//! **First start.** An endpoint of which nothing is known counts as fast as the one that it is compared with, so it is judged by
//! its calls under way alone. **Recovery.** A name that comes back after it was dropped begins anew.
//!
//! Source: Finagle `PeakEwma`; linkerd2-proxy `proxy/balance`; Envoy "Slow start mode".

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    outcome::Outcome,
    outlier,
    random::{hash, mix},
    time::{Time, nanos},
};

/// Points of an endpoint with weight 1 on a ring, and the most in all: 16 bytes each, so at most 1 MiB a set.
const RING_POINTS: u32 = 64;
const RING_POINTS_MAX: usize = 65_536;
/// Turns of a weighted round robin.
const TURNS_MAX: usize = 4_096;
/// A failure cannot make an endpoint look slower than this.
const COST_MAX_NANOS: f64 = 10e9;

#[derive(Debug)]
pub struct Endpoint {
    name: Box<str>,
    /// Hash of the name: what calls remember of endpoints that they have tried.
    id: u64,
    inflight: AtomicU32,
    /// Bits of an f64, in nanoseconds; 0 where nothing is known.
    cost: AtomicU64,
    cost_at: AtomicU64,
    down: AtomicBool,
    /// When it was first seen, or came back.
    since: AtomicU64,
    pub(crate) outlier: outlier::Record,
}

impl Endpoint {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub const fn id(&self) -> u64 {
        self.id
    }

    pub fn inflight(&self) -> u32 {
        self.inflight.load(Relaxed)
    }

    pub fn is_down(&self) -> bool {
        self.down.load(Relaxed)
    }

    /// Until when it is ejected, where it is.
    pub fn ejected(&self, now: Time) -> Option<Time> {
        let until = self.outlier.until();
        (until > now).then_some(until)
    }

    pub fn available(&self, now: Time) -> bool {
        !self.is_down() && self.outlier.until() <= now
    }

    /// The EWMA as it stands now: it falls while nothing is measured, so that an idle endpoint is tried again.
    pub fn cost(&self, now: Time, decay: Duration) -> f64 {
        let cost = f64::from_bits(self.cost.load(Relaxed));
        if cost == 0.0 {
            return 0.0;
        }
        let idle = now.nanos().saturating_sub(self.cost_at.load(Relaxed)) as f64;
        // A new sample is a moment old at most in a busy endpoint: no need for an exponential.
        if idle < nanos(decay) as f64 / 1024.0 { cost } else { cost * (-idle / nanos(decay) as f64).exp() }
    }

    pub(crate) fn began(&self) {
        self.inflight.fetch_add(1, Relaxed);
    }

    pub(crate) fn ended(&self, now: Time, outcome: &Outcome, latency: Duration, decay: Duration) {
        self.inflight.fetch_sub(1, Relaxed);
        let Some(good) = outcome.succeeded() else { return };
        let cost = f64::from_bits(self.cost.load(Relaxed));
        let measured = (nanos(latency) as f64).max(1.0);
        let sample = if good { measured } else { measured.max(2.0 * cost).min(measured.max(COST_MAX_NANOS)) };
        let next = if sample >= cost {
            sample
        } else {
            let idle = now.nanos().saturating_sub(self.cost_at.load(Relaxed)) as f64;
            let kept = (-idle / nanos(decay) as f64).exp();
            cost * kept + sample * (1.0 - kept)
        };
        self.cost.store(next.to_bits(), Relaxed);
        self.cost_at.store(now.nanos(), Relaxed);
    }

    /// 1 for an endpoint that is warm; from `least` on for one that has just come.
    pub(crate) fn warmth(&self, now: Time, slow_start: Duration, least: f64) -> f64 {
        let since = self.since.load(Relaxed).max(self.outlier.until().nanos());
        let age = now.nanos().saturating_sub(since);
        // Those of the first list are all new, so none is: `since` is 0 for them.
        if since == 0 || age >= nanos(slow_start) {
            return 1.0;
        }
        (age as f64 / nanos(slow_start) as f64).max(least)
    }
}

/// What sets of one route share while the list changes.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Until when some endpoint cannot be taken; `u64::MAX` while one is down. Before that, every one must be looked at.
    troubled: AtomicU64,
    pub(crate) turn: AtomicU64,
    /// Calls under way on all endpoints.
    pub(crate) inflight: AtomicU32,
    pub(crate) next_sweep: AtomicU64,
    /// Held by whoever ejects, so that the count of the ejected is right.
    pub(crate) ejecting: Mutex<()>,
}

/// A list of endpoints as balancers use it. Never changed but for what its endpoints count.
#[derive(Debug)]
pub struct EndpointSet {
    endpoints: Vec<Arc<Endpoint>>,
    weights: Vec<f64>,
    pub(crate) weight_sum: f64,
    /// Hashes and endpoints, sorted.
    pub(crate) ring: Vec<(u64, u32)>,
    /// Whose turn it is, one after the other.
    pub(crate) turns: Vec<u32>,
    pub(crate) shared: Arc<Shared>,
}

impl EndpointSet {
    /// The first list of a route. Endpoints are told apart by name; of two with one name the first counts.
    pub fn new<'a>(list: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let shared = Shared {
            troubled: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            inflight: AtomicU32::new(0),
            next_sweep: AtomicU64::new(0),
            ejecting: Mutex::new(()),
        };
        Self::build(Time::ZERO, &[], Arc::new(shared), list)
    }

    /// The next list. Who was in the old one keeps what is known of it; who is new begins with a slow start.
    pub fn change<'a>(&self, now: Time, list: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        Self::build(now, &self.endpoints, Arc::clone(&self.shared), list)
    }

    fn build<'a>(
        now: Time,
        old: &[Arc<Endpoint>],
        shared: Arc<Shared>,
        list: impl IntoIterator<Item = (&'a str, u32)>,
    ) -> Self {
        let (mut endpoints, mut weights): (Vec<Arc<Endpoint>>, Vec<f64>) = (Vec::new(), Vec::new());
        for (name, weight) in list {
            let id = hash(name.as_bytes());
            if endpoints.iter().any(|one| one.id == id) {
                continue;
            }
            let known = old.iter().find(|one| one.id == id).map(Arc::clone);
            endpoints.push(known.unwrap_or_else(|| {
                Arc::new(Endpoint {
                    name: name.into(),
                    id,
                    inflight: AtomicU32::new(0),
                    cost: AtomicU64::new(0),
                    cost_at: AtomicU64::new(0),
                    down: AtomicBool::new(false),
                    since: AtomicU64::new(now.nanos()),
                    outlier: outlier::Record::new(),
                })
            }));
            weights.push(f64::from(weight.clamp(1, 1_000)));
        }
        let weight_sum = weights.iter().sum();
        let (ring, turns) = (ring(&endpoints, &weights), turns(&weights));
        let set = Self { endpoints, weights, weight_sum, ring, turns, shared };
        set.look_for_trouble();
        set
    }

    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    pub fn get(&self, at: usize) -> &Arc<Endpoint> {
        &self.endpoints[at]
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.iter()
    }

    pub fn weight(&self, at: usize) -> f64 {
        self.weights[at]
    }

    /// What a health check or the registry says. An endpoint that is found healthy is ejected no longer.
    pub fn set_down(&self, now: Time, at: usize, down: bool) {
        let endpoint = &self.endpoints[at];
        let was = endpoint.down.swap(down, Relaxed);
        if was && !down {
            endpoint.since.store(now.nanos(), Relaxed);
            endpoint.outlier.forgive(now);
        }
        self.look_for_trouble();
    }

    fn look_for_trouble(&self) {
        let _nobody_is_ejected_meanwhile = self.eject();
        self.note_trouble();
    }

    /// With the lock of [`eject`](Self::eject).
    pub(crate) fn note_trouble(&self) {
        let any_down = self.endpoints.iter().any(|one| one.is_down());
        let until = self.endpoints.iter().map(|one| one.outlier.until().nanos()).max().unwrap_or(0);
        self.shared.troubled.store(if any_down { u64::MAX } else { until }, Relaxed);
    }

    /// Whether any endpoint may not be taken now. Cheap where none is.
    pub(crate) fn troubled(&self, now: Time) -> bool {
        self.shared.troubled.load(Relaxed) > now.nanos()
    }

    pub(crate) fn trouble(&self, until: Time) {
        self.shared.troubled.fetch_max(until.nanos(), Relaxed);
    }

    /// Endpoints that may be taken, that are ejected, and that are down.
    pub fn count(&self, now: Time) -> Count {
        let mut count = Count::default();
        for endpoint in &self.endpoints {
            if endpoint.is_down() {
                count.down += 1;
            } else if endpoint.ejected(now).is_some() {
                count.ejected += 1;
            } else {
                count.available += 1;
            }
        }
        count
    }

    pub(crate) fn eject(&self) -> MutexGuard<'_, ()> {
        self.shared.ejecting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub available: u32,
    pub ejected: u32,
    pub down: u32,
}

fn ring(endpoints: &[Arc<Endpoint>], weights: &[f64]) -> Vec<(u64, u32)> {
    let sum: f64 = weights.iter().sum();
    let scale = (RING_POINTS_MAX as f64 / (sum * f64::from(RING_POINTS))).min(1.0);
    let mut ring = Vec::new();
    for (at, endpoint) in endpoints.iter().enumerate() {
        let points = ((weights[at] * f64::from(RING_POINTS) * scale) as u64).max(1);
        ring.extend((0..points).map(|point| (mix(endpoint.id ^ mix(point + 1)), at as u32)));
    }
    ring.sort_unstable();
    ring
}

/// Smooth weighted round robin, as nginx has it: 5:1:1 gives a a b a c a a, and not a a a a a b c.
fn turns(weights: &[f64]) -> Vec<u32> {
    let divisor = weights.iter().fold(0, |a, b| gcd(a, *b as u64)).max(1);
    let weights: Vec<i64> = weights.iter().map(|weight| (*weight as u64 / divisor) as i64).collect();
    let sum: i64 = weights.iter().sum();
    let mut current = vec![0i64; weights.len()];
    let mut turns = Vec::new();
    for _ in 0..(sum as usize).min(TURNS_MAX) {
        for (now, weight) in current.iter_mut().zip(&weights) {
            *now += weight;
        }
        let Some(at) = (0..current.len()).max_by_key(|at| (current[*at], usize::MAX - at)) else { break };
        current[at] -= sum;
        turns.push(at as u32);
    }
    turns
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAU: Duration = Duration::from_secs(10);

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    fn measure(endpoint: &Endpoint, ms: u64, outcome: Outcome, latency_ms: u64) -> u64 {
        endpoint.began();
        endpoint.ended(at(ms), &outcome, Duration::from_millis(latency_ms), TAU);
        (endpoint.cost(at(ms), TAU) / 1e6).round() as u64
    }

    #[test]
    fn a_peak_counts_at_once_and_is_forgotten_slowly() {
        let set = EndpointSet::new([("a", 1)]);
        let a = set.get(0);
        let good = Outcome::http(200);
        assert_eq!(measure(a, 0, good, 10), 10);
        assert_eq!(measure(a, 1_000, good, 200), 200);
        assert_eq!(measure(a, 11_000, good, 10), 80, "after ten seconds an e-th of the difference is left");
        assert_eq!((a.cost(at(21_000), TAU) / 1e6).round(), 29.0, "and it falls while nothing is measured");
        assert_eq!(measure(a, 11_000, Outcome::http(503), 1), 160, "a failure that comes fast is not fast");
        assert_eq!(measure(a, 11_000, Outcome::cancelled(), 9_999), 160);
        assert_eq!(a.inflight(), 0);
    }

    #[test]
    fn a_change_keeps_what_is_known_and_new_ones_start_slowly() {
        let set = EndpointSet::new([("a", 1), ("b", 1), ("a", 7)]);
        assert_eq!(set.len(), 2, "one name, one endpoint");
        set.get(0).began();
        set.set_down(at(5), 1, true);
        let next = set.change(at(10_000), [("c", 2), ("a", 1)]);
        assert_eq!((next.get(1).inflight(), next.get(1).name()), (1, "a"));
        let warmth = |set: &EndpointSet, n: usize, ms| set.get(n).warmth(at(ms), Duration::from_secs(10), 0.1);
        assert_eq!([10_000, 15_000, 20_000].map(|ms| warmth(&next, 0, ms)), [0.1, 0.5, 1.0]);
        assert_eq!(warmth(&next, 1, 10_000), 1.0);
        assert!(!next.troubled(at(11_000)), "the one that was down is gone");
        next.set_down(at(11_000), 0, true);
        assert!(next.troubled(at(11_000)));
    }

    #[test]
    fn turns_follow_weights_and_are_spread() {
        let set = EndpointSet::new([("a", 50), ("b", 10), ("c", 10)]);
        assert_eq!(set.turns, [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(EndpointSet::new([]).turns, [0u32; 0]);
    }

    #[test]
    fn a_ring_gives_each_endpoint_its_weight() {
        let set = EndpointSet::new([("a", 1), ("b", 1), ("c", 2)]);
        let points = |at| set.ring.iter().filter(|(_, its)| *its == at).count();
        assert_eq!([0, 1, 2].map(points), [64, 64, 128]);
        let many: Vec<String> = (0..2000).map(|n| format!("e{n}")).collect();
        let set = EndpointSet::new(many.iter().map(|name| (name.as_str(), 1_000)));
        assert!(set.ring.len() <= RING_POINTS_MAX && set.ring.len() >= 2000, "{}", set.ring.len());
    }
}
