//! The circuit breaker: an upstream that fails is left alone for a while.
//!
//! **Why.** Calls to an upstream that is down cost their callers a timeout each, and keep it down. After enough failures the
//! breaker answers at once, and lets a few probes find out when the upstream is back.
//!
//! ```text
//!            rate of failures or slow calls, or failures in a row
//!   CLOSED ─────────────────────────────────────────────────────▶ OPEN ◀──────────┐
//!     ▲                                                            │              │
//!     │                                         open_for, jittered │              │ probes failed
//!     │ enough probes succeeded                                    ▼              │
//!     └──────────────────────────────────────────────────────── HALF-OPEN ────────┘
//!                 an operator: FORCED OPEN, FORCED CLOSED, and back to CLOSED
//! ```
//!
//! | state | asked for a permit | told an outcome |
//! |---|---|---|
//! | closed | granted | counted; a failing or slow call looks whether that was enough. At least `calls_min` calls are needed for a rate |
//! | open | refused until the time is over; then half-open | ignored: it began before |
//! | half-open | granted to `probes` at once | a failure too many: open, for longer (`open_growth`). Enough successes: closed, everything forgotten. Fewer than enough either way: wait for the rest |
//! | half-open, all probes out, none came back for `probe_patience` | granted to `probes` new ones: a driver may have lost them | |
//! | forced open | refused | ignored |
//! | forced closed | granted | counted, never opens |
//!
//! Permits carry the generation that they were given in, and an outcome of an earlier generation counts for nothing: a slow
//! failure from before must not open a breaker that has just closed. A cancelled probe gives its permit back.
//!
//! A 429 lowers the rate and fails a probe, but is no failure in a row: the upstream lives, and asks for less. The time open is
//! spread by ±`jitter`, so that many clients do not probe at the same moment, and grows while probes fail.
//!
//! All cores share a breaker. While it is closed, a permit costs one atomic load, and an outcome one or two additions; everything
//! else happens under a lock that is taken only while something is wrong.
//!
//! **First start.** Closed and empty. **Recovery.** Nothing is kept: a restarted gateway finds out anew, with `calls_min` calls.
//!
//! Source: Nygard, "Release It!", ch. 5; resilience4j `CircuitBreakerConfig` (windows, slow calls, 10 probes, 60 s); linkerd2-proxy
//! `breaker/unified.rs` (rates or failures in a row, the part of 429).

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use crate::{
    config::{Checks, Invalid, Validate},
    decision::{Share, Why},
    outcome::{Kind, Outcome},
    random::unit,
    time::Time,
    window::{LastCalls, Recent, Sums},
};

/// What is looked back on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Window {
    Calls(u32),
    Time(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    pub window: Window,
    /// Fewer calls in the window give no rate.
    pub calls_min: u32,
    /// The part of calls that may not fail, above 0 to 1.
    pub failure_rate: f32,
    /// Calls that take longer are slow; none are where this is absent.
    pub slow_after: Option<Duration>,
    pub slow_rate: f32,
    /// Failures one after the other that open it whatever the rate is; 0: never.
    pub consecutive: u32,
    /// How long it stays open the first time.
    pub open_for: Duration,
    /// Factor of the time open after probes that failed.
    pub open_growth: f32,
    pub open_for_max: Duration,
    /// The time open is spread by this part of it, up and down.
    pub jitter: f32,
    /// Calls that are let through while half-open.
    pub probes: u32,
    pub probe_patience: Duration,
}

/// Short and often: probes are few, so looking every second or two costs nothing and finds a recovery at once.
impl Default for Config {
    fn default() -> Self {
        Self {
            window: Window::Time(Duration::from_secs(10)),
            calls_min: 20,
            failure_rate: 0.5,
            slow_after: None,
            slow_rate: 1.0,
            consecutive: 0,
            open_for: Duration::from_secs(1),
            open_growth: 2.0,
            open_for_max: Duration::from_secs(2),
            jitter: 0.2,
            probes: 3,
            probe_patience: Duration::from_secs(10),
        }
    }
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut checks = Checks::default();
        let field = |name: &str| format!("{prefix}.{name}");
        match self.window {
            Window::Calls(calls) => {
                checks.must((1..=100_000).contains(&calls), &field("window_calls"), calls, "from 1 to 100000");
                let fits = self.calls_min <= calls;
                checks.must(fits, &field("calls_min"), self.calls_min, "at most the window of calls");
            }
            Window::Time(span) => checks.window(&field("window"), span),
        }
        checks.must(self.calls_min > 0, &field("calls_min"), self.calls_min, "above 0");
        checks.rate(&field("failure_rate"), self.failure_rate);
        checks.rate(&field("slow_rate"), self.slow_rate);
        if let Some(slow) = self.slow_after {
            checks.span(&field("slow_after"), slow);
        }
        checks.span(&field("open_for"), self.open_for);
        let fits = self.open_for_max >= self.open_for;
        checks.must(fits, &field("open_for_max"), self.open_for_max, "at least open_for");
        let fits = (1.0..=100.0).contains(&self.open_growth);
        checks.must(fits, &field("open_growth"), self.open_growth, "from 1 to 100");
        checks.must((0.0..=0.9).contains(&self.jitter), &field("jitter"), self.jitter, "from 0 to 0.9");
        checks.must((1..=1000).contains(&self.probes), &field("probes"), self.probes, "from 1 to 1000");
        checks.span(&field("probe_patience"), self.probe_patience);
        checks.all()
    }
}

/// Where the breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Closed,
    Open,
    HalfOpen,
    ForcedOpen,
    ForcedClosed,
}

impl State {
    pub const fn word(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half-open",
            State::ForcedOpen => "forced open",
            State::ForcedClosed => "forced closed",
        }
    }

    const fn from_low(word: u64) -> Self {
        match word & 7 {
            0 => State::Closed,
            1 => State::Open,
            2 => State::HalfOpen,
            3 => State::ForcedOpen,
            _ => State::ForcedClosed,
        }
    }
}

/// The right to make one call. It must come back through [`Breaker::record`], cancelled calls too.
#[must_use = "a permit that is not given back keeps a probe's place taken"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Generation and state in which it was given.
    word: u64,
}

/// Why it opened last.
#[derive(Clone, Copy, Debug)]
enum Trip {
    Failures(Sums),
    Slow(Sums),
    Consecutive(u32),
    Probes { failed: u32, probes: u32 },
}

/// What is touched only while something is wrong.
#[derive(Debug)]
struct Rare {
    trip: Trip,
    open_until: Time,
    /// Times it opened without having closed in between.
    streak: u32,
    issued: u32,
    succeeded: u32,
    failed: u32,
    last_issued: Time,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per route, and looked into at every call")]
enum Counts {
    Calls(LastCalls),
    Time { calls: Recent, failed: Recent, slow: Recent },
}

#[derive(Debug)]
pub struct Breaker {
    config: Config,
    /// Generation << 3 | state.
    word: AtomicU64,
    counts: Counts,
    in_a_row: AtomicU32,
    opened: AtomicU64,
    rare: Mutex<Rare>,
}

/// A breaker as a record or a page shows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    pub state: State,
    pub calls: u32,
    pub failure_rate: Share,
    pub slow_rate: Share,
    pub in_a_row: u32,
    /// Until the next probe; zero where calls pass.
    pub probes_in: Duration,
    /// How often it has opened since it was made.
    pub opened: u64,
}

impl Breaker {
    pub fn new(config: Config) -> Self {
        let counts = match config.window {
            Window::Calls(calls) => Counts::Calls(LastCalls::new(calls)),
            Window::Time(span) => {
                Counts::Time { calls: Recent::new(span), failed: Recent::new(span), slow: Recent::new(span) }
            }
        };
        let rare = Rare {
            trip: Trip::Consecutive(0),
            open_until: Time::ZERO,
            streak: 0,
            issued: 0,
            succeeded: 0,
            failed: 0,
            last_issued: Time::ZERO,
        };
        Self {
            config,
            word: AtomicU64::new(0),
            counts,
            in_a_row: AtomicU32::new(0),
            opened: AtomicU64::new(0),
            rare: Mutex::new(rare),
        }
    }

    pub fn state(&self) -> State {
        State::from_low(self.word.load(Acquire))
    }

    /// Whether a call would get a permit now. Takes none, so that a call that cannot pass does not wait in a queue first.
    ///
    /// # Errors
    /// Why not.
    pub fn look(&self, now: Time) -> Result<(), Why> {
        if matches!(self.state(), State::Closed | State::ForcedClosed) {
            return Ok(());
        }
        self.rarely(now, false).map(|_| ())
    }

    /// Asks for a permit to make one call.
    ///
    /// # Errors
    /// Why there is none.
    pub fn acquire(&self, now: Time) -> Result<Permit, Why> {
        let word = self.word.load(Acquire);
        if matches!(State::from_low(word), State::Closed | State::ForcedClosed) {
            return Ok(Permit { word });
        }
        self.rarely(now, true)
    }

    /// Why a permit was granted, for a record.
    pub fn explain(&self, now: Time, permit: &Permit) -> Why {
        if State::from_low(permit.word) == State::HalfOpen {
            let rare = self.rare();
            return Why::BreakerProbe { probe: rare.issued, probes: self.config.probes };
        }
        let sums = self.sums(now);
        Why::BreakerClosed {
            failure_rate: Share::of(sums.failed.into(), sums.calls.into()),
            threshold: Share(self.config.failure_rate),
            calls: sums.calls,
        }
    }

    /// Tells how a call ended. Says why the breaker changed, where it did.
    pub fn record(
        &self,
        now: Time,
        random: u64,
        permit: Permit,
        outcome: &Outcome,
        latency: Duration,
    ) -> Option<State> {
        let word = self.word.load(Acquire);
        // A call of an earlier generation says nothing of this one.
        if word != permit.word {
            return None;
        }
        let failed = !outcome.succeeded().unwrap_or(true);
        let slow = self.config.slow_after.is_some_and(|slow| latency >= slow);
        match State::from_low(word) {
            State::Closed | State::ForcedClosed if outcome.kind == Kind::Cancelled => None,
            state @ (State::Closed | State::ForcedClosed) => {
                self.count(now, failed, slow);
                if outcome.is_failure() {
                    self.in_a_row.fetch_add(1, Relaxed);
                } else if outcome.kind == Kind::Answered && self.in_a_row.load(Relaxed) != 0 {
                    self.in_a_row.store(0, Relaxed);
                }
                if state == State::ForcedClosed || !(failed || slow) {
                    return None;
                }
                let trip = self.trip(now)?;
                let mut rare = self.rare();
                // Another core may have opened it meanwhile.
                (self.word.load(Acquire) == word).then(|| self.open(&mut rare, now, random, trip))
            }
            State::HalfOpen => {
                let mut rare = self.rare();
                if self.word.load(Acquire) != word {
                    return None;
                }
                if outcome.kind == Kind::Cancelled {
                    rare.issued = rare.issued.saturating_sub(1);
                    return None;
                }
                self.probed(&mut rare, now, random, failed || slow)
            }
            State::Open | State::ForcedOpen => None,
        }
    }

    /// An operator holds it open or closed, or lets it go (then it is closed, and has forgotten everything).
    pub fn force(&self, to: Option<State>) {
        let mut rare = self.rare();
        let state = match to {
            Some(State::ForcedOpen | State::Open) => State::ForcedOpen,
            Some(State::ForcedClosed | State::Closed) => State::ForcedClosed,
            Some(State::HalfOpen) | None => State::Closed,
        };
        rare.streak = 0;
        self.forget();
        self.enter(&mut rare, state);
    }

    pub fn view(&self, now: Time) -> View {
        let (sums, state) = (self.sums(now), self.state());
        let probes_in = if state == State::Open { self.rare().open_until.since(now) } else { Duration::ZERO };
        View {
            state,
            calls: sums.calls,
            failure_rate: Share::of(sums.failed.into(), sums.calls.into()),
            slow_rate: Share::of(sums.slow.into(), sums.calls.into()),
            in_a_row: self.in_a_row.load(Relaxed),
            probes_in,
            opened: self.opened.load(Relaxed),
        }
    }

    /// Open, half-open or forced: with the lock.
    #[cold]
    fn rarely(&self, now: Time, take: bool) -> Result<Permit, Why> {
        let mut rare = self.rare();
        loop {
            let word = self.word.load(Acquire);
            match State::from_low(word) {
                State::Closed | State::ForcedClosed => return Ok(Permit { word }),
                State::ForcedOpen => return Err(Why::BreakerForced { calls: self.sums(now).calls }),
                State::Open if now < rare.open_until => return Err(self.refusal(&rare, now)),
                State::Open if !take => return Ok(Permit { word }),
                State::Open => {
                    self.enter(&mut rare, State::HalfOpen);
                }
                State::HalfOpen => {
                    let probes = self.config.probes;
                    if rare.issued >= probes && now.since(rare.last_issued) >= self.config.probe_patience {
                        // Whoever had them will not come back; should they after all, they are of an earlier generation.
                        if !take {
                            return Ok(Permit { word });
                        }
                        self.enter(&mut rare, State::HalfOpen);
                        continue;
                    }
                    if rare.issued >= probes {
                        return Err(Why::BreakerHalfOpen { probes, succeeded: rare.succeeded });
                    }
                    if take {
                        rare.issued += 1;
                        rare.last_issued = now;
                    }
                    return Ok(Permit { word });
                }
            }
        }
    }

    fn refusal(&self, rare: &Rare, now: Time) -> Why {
        let probes_in = rare.open_until.since(now).into();
        let failures = Share(self.config.failure_rate);
        let (because, rate, threshold, calls) = match rare.trip {
            Trip::Failures(sums) => {
                ("failures", Share::of(sums.failed.into(), sums.calls.into()), failures, sums.calls)
            }
            Trip::Slow(sums) => {
                ("slow calls", Share::of(sums.slow.into(), sums.calls.into()), Share(self.config.slow_rate), sums.calls)
            }
            Trip::Probes { failed, probes } => {
                ("failed probes", Share::of(failed.into(), probes.into()), failures, probes)
            }
            Trip::Consecutive(failures) => {
                return Why::BreakerConsecutive { failures, threshold: self.config.consecutive, probes_in };
            }
        };
        Why::BreakerOpen { because, rate, threshold, calls, probes_in }
    }

    /// Whether what was counted is enough to open it.
    fn trip(&self, now: Time) -> Option<Trip> {
        let in_a_row = self.in_a_row.load(Relaxed);
        if self.config.consecutive > 0 && in_a_row >= self.config.consecutive {
            return Some(Trip::Consecutive(in_a_row));
        }
        let sums = self.sums(now);
        if sums.calls < self.config.calls_min {
            return None;
        }
        let reached = |part: u32, rate: f32| reaches(part, rate, sums.calls);
        if reached(sums.failed, self.config.failure_rate) {
            return Some(Trip::Failures(sums));
        }
        (self.config.slow_after.is_some() && reached(sums.slow, self.config.slow_rate)).then_some(Trip::Slow(sums))
    }

    /// A probe came back.
    fn probed(&self, rare: &mut Rare, now: Time, random: u64, failed: bool) -> Option<State> {
        if failed {
            rare.failed += 1;
        } else {
            rare.succeeded += 1;
        }
        let probes = self.config.probes;
        let rate = self.config.failure_rate;
        if reaches(rare.failed, rate, probes) {
            let failed = rare.failed;
            return Some(self.open(rare, now, random, Trip::Probes { failed, probes }));
        }
        // Closed as soon as the probes that are still out could all fail.
        if reaches(probes.saturating_sub(rare.succeeded), rate, probes) {
            return None;
        }
        rare.streak = 0;
        self.forget();
        Some(self.enter(rare, State::Closed))
    }

    fn open(&self, rare: &mut Rare, now: Time, random: u64, trip: Trip) -> State {
        let grown = self.config.open_growth.powi(rare.streak.min(64) as i32);
        let most = self.config.open_for_max.as_secs_f64();
        let span = (self.config.open_for.as_secs_f64() * f64::from(grown)).min(most);
        let spread = 1.0 + f64::from(self.config.jitter) * (2.0 * unit(random) - 1.0);
        rare.open_until = now.plus(Duration::from_secs_f64(span * spread));
        rare.streak = rare.streak.saturating_add(1);
        rare.trip = trip;
        self.opened.fetch_add(1, Relaxed);
        self.enter(rare, State::Open)
    }

    /// A new generation.
    fn enter(&self, rare: &mut Rare, state: State) -> State {
        (rare.issued, rare.succeeded, rare.failed) = (0, 0, 0);
        let generation = (self.word.load(Relaxed) >> 3) + 1;
        let low = match state {
            State::Closed => 0,
            State::Open => 1,
            State::HalfOpen => 2,
            State::ForcedOpen => 3,
            State::ForcedClosed => 4,
        };
        self.word.store(generation << 3 | low, Release);
        state
    }

    fn count(&self, now: Time, is_failed: bool, is_slow: bool) {
        match &self.counts {
            Counts::Calls(last) => last.add(is_failed, is_slow),
            Counts::Time { calls, failed, slow } => {
                calls.add(now, 1);
                if is_failed {
                    failed.add(now, 1);
                }
                if is_slow {
                    slow.add(now, 1);
                }
            }
        }
    }

    fn sums(&self, now: Time) -> Sums {
        let sum = |recent: &Recent| u32::try_from(recent.sum(now)).unwrap_or(u32::MAX);
        match &self.counts {
            Counts::Calls(last) => last.sums(),
            Counts::Time { calls, failed, slow } => Sums { calls: sum(calls), failed: sum(failed), slow: sum(slow) },
        }
    }

    fn forget(&self) {
        match &self.counts {
            Counts::Calls(last) => last.clear(),
            Counts::Time { calls, failed, slow } => [calls, failed, slow].into_iter().for_each(Recent::clear),
        }
        self.in_a_row.store(0, Relaxed);
    }

    /// A panic of another thread leaves plain numbers behind, so the lock is used on.
    fn rare(&self) -> MutexGuard<'_, Rare> {
        self.rare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `part` is the rate's part of `whole`. A rate such as 0.8 is not exact as a float: a millionth is forgiven.
fn reaches(part: u32, rate: f32, whole: u32) -> bool {
    f64::from(part) >= (f64::from(rate) - 1e-6) * f64::from(whole)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const GOOD: Outcome = Outcome::http(200);
    const BAD: Outcome = Outcome::http(500);

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    /// A call that begins and ends at one moment.
    fn call(breaker: &Breaker, ms: u64, outcome: Outcome) -> Result<Option<State>, &'static str> {
        let permit = breaker.acquire(at(ms)).map_err(|why| why.code())?;
        Ok(breaker.record(at(ms), 1 << 63, permit, &outcome, MS))
    }

    /// MISSION: 50 % failures over the last 20 calls opens it for 30 s, then half-open probes.
    fn mission() -> Breaker {
        let config = Config {
            window: Window::Calls(20),
            calls_min: 20,
            open_for: 30_000 * MS,
            open_for_max: 120_000 * MS,
            jitter: 0.0,
            ..Config::default()
        };
        assert_eq!(config.wrong("breaker"), []);
        Breaker::new(config)
    }

    #[test]
    fn half_of_the_last_twenty_calls_open_it_for_thirty_seconds() {
        let breaker = mission();
        for n in 0..19 {
            assert_eq!(call(&breaker, n, if n % 2 == 0 { BAD } else { GOOD }), Ok(None), "call {n}");
        }
        assert_eq!(call(&breaker, 19, GOOD), Ok(None), "a call that succeeds never opens it");
        assert_eq!(call(&breaker, 20, BAD), Ok(Some(State::Open)));
        assert_eq!(call(&breaker, 30_019, GOOD), Err("BT-BRK-OPEN"));
        let why = breaker.look(at(1_020)).unwrap_err();
        assert_eq!(
            why.to_string(),
            "the breaker is open because of failures: 50 % of the last 20 calls, and 50 % opens it"
        );
        assert_eq!(why.would_pass().to_string(), "a call 29 s later, as a probe; an upstream that answers");
        assert_eq!(call(&breaker, 30_020, GOOD), Ok(None));
        assert_eq!(breaker.state(), State::HalfOpen);
        assert_eq!(call(&breaker, 30_021, GOOD), Ok(Some(State::Closed)), "two of three probes are enough");
        assert_eq!(breaker.view(at(30_021)).calls, 0, "and everything is forgotten");
    }

    #[test]
    fn probes_are_limited_and_failed_ones_open_it_for_longer() {
        let breaker = mission();
        (0..20).for_each(|n| _ = call(&breaker, n, BAD));
        let now = at(30_019);
        let permits: Vec<_> = (0..3).map(|_| breaker.acquire(now).unwrap()).collect();
        assert_eq!(breaker.acquire(now).unwrap_err().code(), "BT-BRK-HALF");
        assert_eq!(breaker.record(now, 0, permits[0], &BAD, MS), None, "one of three is not half of them");
        assert_eq!(breaker.record(now, 0, permits[1], &BAD, MS), Some(State::Open));
        assert_eq!(breaker.record(now, 0, permits[2], &GOOD, MS), None, "the last probe comes too late to count");
        assert_eq!(breaker.view(now).probes_in, 60_000 * MS);
    }

    #[test]
    fn a_cancelled_probe_gives_its_place_back_and_a_lost_one_is_replaced() {
        let breaker = mission();
        (0..20).for_each(|n| _ = call(&breaker, n, BAD));
        let permits: Vec<_> = (0..3).map(|_| breaker.acquire(at(31_000)).unwrap()).collect();
        breaker.record(at(31_000), 0, permits[0], &Outcome::cancelled(), MS);
        assert!(breaker.acquire(at(31_001)).is_ok());
        assert!(breaker.acquire(at(41_000)).is_err());
        assert!(breaker.acquire(at(41_001)).is_ok(), "ten seconds after the last was given out");
        assert_eq!(breaker.record(at(41_001), 0, permits[1], &BAD, MS), None, "those that were given up count no more");
        assert_eq!(breaker.state(), State::HalfOpen);
    }

    #[test]
    fn a_failure_that_began_before_it_closed_does_not_count() {
        let breaker = mission();
        let old = breaker.acquire(at(0)).unwrap();
        (0..20).for_each(|n| _ = call(&breaker, n, BAD));
        (0..2).for_each(|_| _ = call(&breaker, 31_000, GOOD));
        assert_eq!(breaker.state(), State::Closed);
        breaker.record(at(31_001), 0, old, &BAD, MS);
        assert_eq!(breaker.view(at(31_001)).calls, 0);
    }

    #[test]
    fn failures_in_a_row_open_it_but_too_many_requests_do_not() {
        let config = Config { consecutive: 3, calls_min: 1000, ..Config::default() };
        let breaker = Breaker::new(config);
        for outcome in [BAD, BAD, GOOD, BAD, Outcome::http(429), BAD] {
            assert_eq!(call(&breaker, 1, outcome), Ok(None));
        }
        assert_eq!(call(&breaker, 1, BAD), Ok(Some(State::Open)));
        assert_eq!(breaker.look(at(1)).unwrap_err().code(), "BT-BRK-CONSECUTIVE");
        let by_rate = Breaker::new(Config { calls_min: 4, ..Config::default() });
        (0..3).for_each(|_| _ = call(&by_rate, 1, Outcome::http(429)));
        assert_eq!(call(&by_rate, 1, Outcome::http(429)), Ok(Some(State::Open)), "they do lower the rate");
    }

    #[test]
    fn slow_calls_open_it_as_failures_do() {
        let config = Config { slow_after: Some(100 * MS), slow_rate: 0.8, calls_min: 5, ..Config::default() };
        let breaker = Breaker::new(config);
        let mut states = Vec::new();
        for latency in [10, 200, 200, 200, 200] {
            let permit = breaker.acquire(at(1)).unwrap();
            states.push(breaker.record(at(1), 0, permit, &GOOD, latency * MS));
        }
        assert_eq!(states[3..], [None, Some(State::Open)]);
        assert!(breaker.look(at(1)).unwrap_err().to_string().contains("slow calls: 80 % of the last 5 calls"));
    }

    #[test]
    fn an_operator_holds_it_and_lets_it_go() {
        let breaker = mission();
        breaker.force(Some(State::ForcedOpen));
        assert_eq!(call(&breaker, 1, GOOD), Err("BT-BRK-FORCED"));
        breaker.force(Some(State::ForcedClosed));
        (0..50).for_each(|n| assert_eq!(call(&breaker, n, BAD), Ok(None)));
        breaker.force(None);
        assert_eq!((breaker.state(), breaker.view(at(50)).calls), (State::Closed, 0));
    }

    #[test]
    fn the_time_open_is_spread_between_clients() {
        let opened = |random: u64| {
            let breaker = Breaker::new(Config { consecutive: 1, ..Config::default() });
            let permit = breaker.acquire(at(0)).unwrap();
            breaker.record(at(0), random, permit, &BAD, MS);
            (breaker.view(at(0)).probes_in.as_secs_f64() * 1000.0).round()
        };
        assert_eq!([0, 1 << 63, u64::MAX].map(opened), [800.0, 1000.0, 1200.0]);
    }

    /// The same machine without atomics, windows as plain lists.
    struct Model {
        calls: VecDeque<(u64, bool)>,
        state: State,
        until: u64,
        streak: i32,
        issued: u32,
        good: u32,
        bad: u32,
    }

    proptest! {
        #[test]
        fn it_does_what_a_plain_model_does(
            by_calls: bool,
            steps in prop::collection::vec((0u64..700, 0u8..10), 1..400),
            health in prop::collection::vec(0u8..10, 4),
        ) {
            let config = Config {
                window: if by_calls { Window::Calls(8) } else { Window::Time(10_000 * MS) },
                calls_min: 5,
                jitter: 0.0,
                ..Config::default()
            };
            let breaker = Breaker::new(config);
            let mut model =
                Model { calls: VecDeque::new(), state: State::Closed, until: 0, streak: 0, issued: 0, good: 0, bad: 0 };
            let (mut now, length) = (0u64, steps.len());
            for (n, (later, luck)) in steps.into_iter().enumerate() {
                now += later;
                let failed = luck < health[n * 4 / length];
                // The model asks.
                if model.state == State::Open && now >= model.until {
                    (model.state, model.issued, model.good, model.bad) = (State::HalfOpen, 0, 0, 0);
                }
                let passes = model.state != State::Open;
                let permit = breaker.acquire(at(now));
                prop_assert_eq!(permit.is_ok(), passes, "step {} at {}", n, now);
                let Ok(permit) = permit else { continue };
                breaker.record(at(now), 0, permit, if failed { &BAD } else { &GOOD }, MS);
                // The model learns.
                let open;
                match model.state {
                    State::Closed => {
                        model.calls.push_back((now, failed));
                        if by_calls && model.calls.len() > 8 {
                            model.calls.pop_front();
                        }
                        if !by_calls {
                            model.calls.retain(|(at, _)| now / 1000 - at / 1000 < 10);
                        }
                        let bad = model.calls.iter().filter(|(_, failed)| *failed).count();
                        open = failed && model.calls.len() >= 5 && bad * 2 >= model.calls.len();
                    }
                    _ => {
                        if failed { model.bad += 1 } else { model.good += 1 }
                        open = model.bad == 2;
                        if model.good == 2 {
                            (model.state, model.streak) = (State::Closed, 0);
                            model.calls.clear();
                        }
                    }
                }
                if open {
                    model.until = now + (1000 << model.streak.min(1));
                    model.streak += 1;
                    model.state = State::Open;
                }
                prop_assert_eq!(breaker.state(), model.state, "step {} at {}", n, now);
            }
        }
    }

    #[test]
    fn no_more_probes_pass_than_are_allowed_when_cores_ask_together() {
        for round in 0..20 {
            let breaker = Breaker::new(Config { consecutive: 1, probes: 5, ..Config::default() });
            let permit = breaker.acquire(at(0)).unwrap();
            breaker.record(at(0), round, permit, &BAD, MS);
            let passed: usize = std::thread::scope(|scope| {
                let ask = || (0..100).filter(|_| breaker.acquire(at(2_000)).is_ok()).count();
                let cores: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
                cores.into_iter().map(|core| core.join().expect("asking does not panic")).sum()
            });
            assert_eq!(passed, 5);
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        let config =
            Config { window: Window::Calls(10), failure_rate: 0.0, jitter: 2.0, probes: 0, ..Config::default() };
        let fields: Vec<_> = config.wrong("breaker").into_iter().map(|invalid| invalid.field).collect();
        assert_eq!(fields, ["breaker.calls_min", "breaker.failure_rate", "breaker.jitter", "breaker.probes"]);
        assert!(Config::default().validate("breaker").is_ok());
    }
}
