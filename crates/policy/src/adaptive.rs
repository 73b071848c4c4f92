//! Adaptive concurrency: how many calls at once an upstream serves without slowing down, found out while it works.
//!
//! **Why.** Any upstream has a number of concurrent calls above which more only queue: answers slow down until callers give up,
//! and the upstream works for nobody. Nobody knows the number beforehand, and it changes with every release. The limit here is
//! moved by what latency does.
//!
//! `Gradient2` (default), after every window of at least ten calls (half the limit, where that is less) and 20 ms, where `short` is the window's mean latency:
//!
//! | | |
//! |---|---|
//! | `long` | mean of about 600 windows; lowered by 5 % while it is twice the short one |
//! | `base` | latency without load: the lowest short one. It rises only on evidence: while the limit is not used (or cannot go lower), by a twentieth of the difference per window |
//! | `gradient` | clamp(max(tolerance × usual, usual + slack) ÷ short, ½, 1), usual = min(long, drift × base); ½ where a tenth of the window was lost to timeouts, 503 or 504 |
//! | less than half of the limit in use | the limit stays: nothing was learnt about it |
//! | otherwise | limit ← (1 − smoothing) × limit + smoothing × (limit × gradient + growth), growth 4 where gradient is 1, else 0 |
//!
//! `slack` (5 ms, what CoDel calls an acceptable delay) is for upstreams that answer in less than a few milliseconds. There, a turn
//! of the scheduler is several times the latency without load; taken for a queue, it would cost requests at half of what the
//! upstream can do.
//!
//! Three things differ from Netflix's. That is one. There `long` follows a lasting overload until the gradient is 1 again and the limit grows to
//! its maximum (their issue 137): `drift × base` bounds that. And growth is added at any gradient, so that a modest overload
//! grows the limit for ever (their pull request 134): here only without a sign of queueing. Unlike Envoy's, it never cuts live traffic to
//! measure.
//!
//! `Aimd`: + 1 per window in which the limit was used, × `backoff` where a call was lost or slower than `slow_after`. For
//! upstreams whose latency says nothing.
//!
//! **First start.** `initial`. **Recovery.** A limit at its minimum after a brown-out grows by 20 % of four per window, fifty times a second
//! at most: from 10 to 100 within three seconds where a call takes 100 ms. A new process starts from `initial`.
//!
//! Source: Netflix concurrency-limits `Gradient2Limit.java`, `AIMDLimit.java`, issue 137 and pull request 134; Envoy adaptive concurrency filter.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    config::{Checks, Invalid, Validate},
    time::{Time, nanos},
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Algorithm {
    Gradient2 { tolerance: f32, drift: f32, smoothing: f32 },
    Aimd { backoff: f32, slow_after: Duration },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    pub algorithm: Algorithm,
    pub initial: u32,
    pub min: u32,
    pub max: u32,
    /// The shortest window of a measurement.
    pub window: Duration,
    /// The fewest calls of one.
    pub calls_min: u32,
    /// Latency above the usual that is no sign of queueing.
    pub slack: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Gradient2 { tolerance: 1.5, drift: 2.0, smoothing: 0.2 },
            initial: 100,
            min: 10,
            max: 1000,
            window: Duration::from_millis(20),
            calls_min: 10,
            slack: Duration::from_millis(5),
        }
    }
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut checks = Checks::default();
        let field = |name: &str| format!("{prefix}.{name}");
        checks.must(self.min > 0, &field("min"), self.min, "above 0");
        checks.must(self.max >= self.min, &field("max"), self.max, "at least the minimum");
        let fits = (self.min..=self.max).contains(&self.initial);
        checks.must(fits, &field("initial"), self.initial, "between the minimum and the maximum");
        checks.must(self.max <= 1_000_000, &field("max"), self.max, "at most 1000000");
        checks.span(&field("window"), self.window);
        checks.must(self.calls_min > 0, &field("calls_min"), self.calls_min, "above 0");
        let slack = self.slack <= Duration::from_secs(10);
        checks.must(slack, &field("slack"), self.slack, "at most 10 s");
        match self.algorithm {
            Algorithm::Gradient2 { tolerance, drift, smoothing } => {
                checks.must((1.0..=10.0).contains(&tolerance), &field("tolerance"), tolerance, "from 1 to 10");
                checks.must((1.0..=100.0).contains(&drift), &field("drift"), drift, "from 1 to 100");
                checks.rate(&field("smoothing"), smoothing);
            }
            Algorithm::Aimd { backoff, slow_after } => {
                checks.must((0.1..1.0).contains(&backoff), &field("backoff"), backoff, "from 0.1 to below 1");
                checks.span(&field("slow_after"), slow_after);
            }
        }
        checks.all()
    }
}

/// The limit, and what it was found out from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    pub limit: u32,
    /// Mean latency of the last window.
    pub short: Duration,
    /// Latency without load.
    pub base: Duration,
}

#[derive(Debug)]
pub struct Limiter {
    config: Config,
    /// As whole calls, for those who only read it.
    limit: AtomicU32,
    // The window that runs. Sums are shared; whoever finds it full takes them all and starts the next one.
    begun: AtomicU64,
    calls: AtomicU32,
    lost: AtomicU32,
    sum: AtomicU64,
    peak: AtomicU32,
    // Of the last window, for explanations.
    short: AtomicU64,
    base: AtomicU64,
    inner: Mutex<Inner>,
}

/// Nanoseconds and calls as numbers with fractions.
#[derive(Debug)]
struct Inner {
    limit: f64,
    long: f64,
    base: f64,
    windows: u32,
}

/// Windows that the long mean is made of, and those whose plain mean it starts with.
const LONG_WINDOWS: f64 = 600.0;
const WARM_WINDOWS: u32 = 10;
/// How the latency without load follows when there is no load.
const BASE_FOLLOWS: f64 = 0.05;
const GROWTH: f64 = 4.0;

impl Limiter {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            limit: AtomicU32::new(config.initial),
            begun: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            lost: AtomicU32::new(0),
            sum: AtomicU64::new(0),
            peak: AtomicU32::new(0),
            short: AtomicU64::new(0),
            base: AtomicU64::new(0),
            inner: Mutex::new(Inner { limit: config.initial.into(), long: 0.0, base: 0.0, windows: 0 }),
        }
    }

    pub fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    pub fn view(&self) -> View {
        let span = |nanos: &AtomicU64| Duration::from_nanos(nanos.load(Relaxed));
        View { limit: self.limit(), short: span(&self.short), base: span(&self.base) }
    }

    /// An attempt ended. `inflight` counts the calls that ran when it began, with it.
    pub fn sample(&self, now: Time, latency: Duration, inflight: u32, lost: bool) {
        self.sum.fetch_add(nanos(latency), Relaxed);
        self.peak.fetch_max(inflight, Relaxed);
        if lost {
            self.lost.fetch_add(1, Relaxed);
        }
        let calls = self.calls.fetch_add(1, Relaxed) + 1;
        // A small limit measures with fewer calls, or it would learn slowest when it has most to learn.
        if calls < self.config.calls_min.min((self.limit() / 2).max(1)) {
            return;
        }
        let begun = self.begun.load(Relaxed);
        if now.nanos().saturating_sub(begun) < nanos(self.config.window) {
            return;
        }
        // One core closes the window; the others go on with the next.
        let Ok(mut inner) = self.inner.try_lock() else { return };
        if self.begun.load(Relaxed) != begun {
            return;
        }
        self.begun.store(now.nanos(), Relaxed);
        let calls = self.calls.swap(0, Relaxed).max(1);
        let (lost, peak) = (self.lost.swap(0, Relaxed), self.peak.swap(0, Relaxed));
        let short = (self.sum.swap(0, Relaxed) as f64 / f64::from(calls)).max(1.0);
        inner.learn(&self.config, short, peak, calls, lost);
        self.short.store(short as u64, Relaxed);
        self.base.store(inner.base as u64, Relaxed);
        self.limit.store(inner.limit as u32, Relaxed);
    }
}

impl Inner {
    fn learn(&mut self, config: &Config, short: f64, peak: u32, calls: u32, lost: u32) {
        let (min, max) = (f64::from(config.min), f64::from(config.max));
        let used = f64::from(peak) >= self.limit / 2.0;
        match config.algorithm {
            Algorithm::Aimd { backoff, slow_after } => {
                if lost > 0 || short > nanos(slow_after) as f64 {
                    self.limit *= f64::from(backoff);
                } else if used {
                    self.limit += 1.0;
                }
                self.base = short;
            }
            Algorithm::Gradient2 { tolerance, drift, smoothing } => {
                self.windows = self.windows.saturating_add(1);
                let part =
                    if self.windows <= WARM_WINDOWS { 1.0 / f64::from(self.windows) } else { 1.0 / LONG_WINDOWS };
                self.long += (short - self.long) * part;
                if self.long > 2.0 * short {
                    self.long *= 0.95;
                }
                if self.windows == 1 || short < self.base {
                    self.base = short;
                } else if !used || self.limit <= min {
                    self.base += (short - self.base) * BASE_FOLLOWS;
                }
                if !used && lost == 0 {
                    return;
                }
                let usual = self.long.min(f64::from(drift) * self.base);
                let patience = (f64::from(tolerance) * usual).max(usual + nanos(config.slack) as f64);
                let mut gradient = (patience / short).clamp(0.5, 1.0);
                if lost.saturating_mul(10) >= calls {
                    gradient = 0.5;
                }
                let growth = if gradient >= 1.0 && used { GROWTH } else { 0.0 };
                let smoothing = f64::from(smoothing);
                self.limit = self.limit * (1.0 - smoothing) + smoothing * (self.limit * gradient + growth);
            }
        }
        self.limit = self.limit.clamp(min, max);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An upstream that serves `workers` calls at once, each in `service`, and queues the others; callers keep `load` calls
    /// under way, or as many as the limit lets them. Runs for `seconds` of virtual time, and answers with the limit.
    fn serve(limiter: &Limiter, from: &mut u64, seconds: u64, load: u32, workers: u32, service: f64) -> u32 {
        let end = *from + seconds * 1_000_000_000;
        while *from < end {
            let inflight = load.min(limiter.limit());
            let latency = service * (f64::from(inflight) / f64::from(workers)).max(1.0);
            let per_call = (latency * 1e9 / f64::from(inflight.max(1))) as u64;
            *from += per_call.max(1);
            limiter.sample(Time::from_nanos(*from), Duration::from_secs_f64(latency), inflight, false);
        }
        limiter.limit()
    }

    #[test]
    fn it_grows_while_there_is_room_and_stops_where_calls_queue() {
        let (limiter, mut now) = (Limiter::new(Config::default()), 0);
        let limit = serve(&limiter, &mut now, 60, 5_000, 200, 0.02);
        assert!((200..=700).contains(&limit), "200 workers, at most three times that in the system: {limit}");
    }

    #[test]
    fn a_fast_upstream_that_is_now_and_then_slower_by_a_millisecond_keeps_its_limit() {
        let (limiter, mut now) = (Limiter::new(Config::default()), 0);
        for round in 0..2_000 {
            // A fifth of a millisecond, and in every fourth window five times that: the machine was busy elsewhere.
            let latency = if round % 4 == 0 { 0.001 } else { 0.0002 };
            for _ in 0..20 {
                now += 2_000_000;
                limiter.sample(Time::from_nanos(now), Duration::from_secs_f64(latency), 64, false);
            }
        }
        assert!(limiter.limit() >= 100, "{}", limiter.limit());
        // What queues for longer is still found out: two at once, and a fifth of a millisecond each.
        let limit = serve(&limiter, &mut now, 10, 5_000, 2, 0.0002);
        assert!((10..=80).contains(&limit), "{limit}");
    }

    /// Netflix's drifts to its maximum here (their issue 137).
    #[test]
    fn a_lasting_overload_does_not_teach_it_to_be_patient() {
        let (limiter, mut now) = (Limiter::new(Config::default()), 0);
        serve(&limiter, &mut now, 10, 10, 50, 0.02);
        for _ in 0..20 {
            let limit = serve(&limiter, &mut now, 60, 5_000, 50, 0.02);
            assert!(limit <= 160, "{limit}");
        }
    }

    #[test]
    fn it_shrinks_in_a_brown_out_and_is_back_within_seconds() {
        let (limiter, mut now) = (Limiter::new(Config::default()), 0);
        let before = serve(&limiter, &mut now, 30, 5_000, 100, 0.02);
        let within = serve(&limiter, &mut now, 10, 5_000, 10, 0.02);
        assert!(within <= 60, "{within}");
        let after = serve(&limiter, &mut now, 5, 5_000, 100, 0.02);
        assert!(before >= 100 && after >= 100, "{before} {within} {after}");
    }

    #[test]
    fn an_upstream_that_has_become_slower_for_good_is_learnt_anew() {
        let (limiter, mut now) = (Limiter::new(Config::default()), 0);
        serve(&limiter, &mut now, 30, 80, 1_000, 0.01);
        let limit = serve(&limiter, &mut now, 120, 80, 1_000, 0.1);
        assert!(limit >= 80, "ten times slower, and it serves as many at once as before: {limit}");
    }

    #[test]
    fn a_limit_that_is_not_used_does_not_move() {
        let (limiter, mut now) = (Limiter::new(Config::default()), 0);
        assert_eq!(serve(&limiter, &mut now, 30, 40, 1_000, 0.01), 100);
    }

    #[test]
    fn lost_calls_halve_the_gradient() {
        let limiter = Limiter::new(Config::default());
        for n in 0..100u64 {
            limiter.sample(Time::from_millis(30 * n), Duration::from_millis(10), 100, n % 5 == 0);
        }
        assert!(limiter.limit() < 50, "{}", limiter.limit());
    }

    #[test]
    fn aimd_adds_one_and_falls_by_its_factor() {
        let algorithm = Algorithm::Aimd { backoff: 0.5, slow_after: Duration::from_secs(1) };
        let limiter = Limiter::new(Config { algorithm, calls_min: 1, ..Config::default() });
        let fast = Duration::from_millis(1);
        (1..=10).for_each(|n| limiter.sample(Time::from_millis(20 * n), fast, 100, false));
        assert_eq!(limiter.limit(), 110);
        limiter.sample(Time::from_millis(220), fast, 100, true);
        assert_eq!(limiter.limit(), 55);
        limiter.sample(Time::from_millis(240), Duration::from_secs(2), 100, false);
        assert_eq!(limiter.limit(), 27);
    }

    proptest! {
        #[test]
        fn whatever_comes_the_limit_stays_between_its_ends(
            aimd: bool,
            samples in prop::collection::vec((0u64..1 << 40, 0u64..1 << 40, 0u32..100_000, any::<bool>()), 1..300),
        ) {
            let algorithm = if aimd {
                Algorithm::Aimd { backoff: 0.9, slow_after: Duration::from_secs(1) }
            } else {
                Config::default().algorithm
            };
            let limiter = Limiter::new(Config { algorithm, calls_min: 1, ..Config::default() });
            let mut now = Time::ZERO;
            for (later, latency, inflight, lost) in samples {
                now = now.plus(Duration::from_nanos(later));
                limiter.sample(now, Duration::from_nanos(latency), inflight, lost);
                prop_assert!((10..=1000).contains(&limiter.limit()));
            }
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        let config = Config { min: 50, max: 20, ..Config::default() };
        let fields: Vec<_> = config.wrong("limiter").into_iter().map(|invalid| invalid.field).collect();
        assert_eq!(fields, ["limiter.max", "limiter.initial"]);
        assert!(Config::default().validate("limiter").is_ok());
    }
}
