//! Outlier ejection: an endpoint that fails where others do not is left out for a while.
//!
//! **Why.** One bad endpoint of ten fails a tenth of all calls, for as long as it takes until somebody looks. What calls tell is
//! known at once, and knows more than a health check: the check asks another question.
//!
//! | seen | then |
//! |---|---|
//! | `consecutive` failures one after the other | ejected (BT-OUT-CONSECUTIVE) |
//! | `gateway` times not reached, 502, 503, 504 or timeout one after the other | ejected (BT-OUT-GATEWAY) |
//! | every `interval`, over endpoints with enough calls: success rate below mean − `sigma` × deviation | ejected (BT-OUT-RATE) |
//! | … : failure rate at least `failure_rate` | ejected (BT-OUT-FAILURES) |
//! | not by BT-OUT-RATE, and its latest calls fail less than 2 × the others' median + 20 % | spared (BT-OUT-COMMON), and those that are out come back (BT-OUT-BACK): it was not they |
//! | `ejected_max` of the endpoints are out already | spared (BT-OUT-SPARED) |
//! | the time is over | back, with a slow start |
//! | a health check finds it healthy | back at once |
//! | an interval without ejection | the streak is one shorter |
//!
//! The time out is `base`, doubled with every ejection in the streak, at most `max`, and up to a tenth longer at random, so that those who went together do not
//! come back together.
//!
//! The rule about the others is ours. A brown-out of what all endpoints depend on makes all of them fail in a row; those that
//! happened to be ejected then stay out for half a minute after it is over, and what is left is too small for the load: the ejection
//! keeps the outage alive (`tests/overload.rs` shows it). How an endpoint does is a mean over its latest calls (each counts a tenth), so it
//! is known within five calls; and the median of the others is compared, so that two bad ones do not excuse each other. Half of the endpoints stay in whatever happens, and when less than `panic` of them are healthy, balancers
//! do not look at health at all ([`crate::balance`]): then it is not the endpoints.
//!
//! There is no timer: whoever ends an attempt after an interval is over does the sweep.
//!
//! **First start.** Nobody is ejected, counts are empty. **Recovery.** Nothing is kept.
//!
//! Source: Envoy "Outlier detection" (5 in a row, 10 s, 30 s, 300 s, 1.9 deviations over 5 hosts with 100 calls, 85 % over 50
//! calls). Envoy ejects 10 % and at least one; here half, because small sets are usual, and never the only one. Envoy's times are
//! 30 s, 60 s, 90 s; here 5 s, 10 s, 20 s: whoever was unlucky is back soon, and whoever stays bad is soon out for long.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    config::{Checks, Invalid, Validate},
    decision::{Share, Why},
    endpoint::{Endpoint, EndpointSet},
    outcome::{Kind, Outcome},
    random::unit,
    time::{Time, nanos},
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Failures one after the other; 0: never.
    pub consecutive: u32,
    /// Failures to reach it one after the other; 0: never.
    pub gateway: u32,
    pub interval: Duration,
    pub base: Duration,
    pub max: Duration,
    /// The part of endpoints that may be out.
    pub ejected_max: f32,
    /// Whether an endpoint that fails is spared where the others do too.
    pub compare: bool,
    /// Deviations below the mean; 0: success rates are not compared.
    pub sigma: f32,
    /// Calls per interval that an endpoint needs to be compared, and endpoints that need them.
    pub calls_min: u32,
    pub endpoints_min: u32,
    /// Failing part of calls that ejects whatever the others do; 0: never.
    pub failure_rate: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            consecutive: 5,
            gateway: 5,
            interval: Duration::from_secs(10),
            base: Duration::from_secs(5),
            max: Duration::from_secs(300),
            ejected_max: 0.5,
            compare: true,
            sigma: 1.9,
            calls_min: 100,
            endpoints_min: 5,
            failure_rate: 0.85,
        }
    }
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut checks = Checks::default();
        let field = |name: &str| format!("{prefix}.{name}");
        checks.window(&field("interval"), self.interval);
        checks.span(&field("base"), self.base);
        checks.must(self.max >= self.base, &field("max"), self.max, "at least the base");
        checks.must((0.0..=1.0).contains(&self.ejected_max), &field("ejected_max"), self.ejected_max, "from 0 to 1");
        checks.must((0.0..=10.0).contains(&self.sigma), &field("sigma"), self.sigma, "from 0 to 10");
        checks.must(self.calls_min > 0, &field("calls_min"), self.calls_min, "above 0");
        checks.must(self.endpoints_min > 1, &field("endpoints_min"), self.endpoints_min, "above 1");
        let fits = (0.0..=1.0).contains(&self.failure_rate);
        checks.must(fits, &field("failure_rate"), self.failure_rate, "from 0 to 1");
        checks.all()
    }
}

/// What is counted of one endpoint.
#[derive(Debug)]
pub(crate) struct Record {
    in_a_row: AtomicU32,
    gateway: AtomicU32,
    calls: AtomicU32,
    failed: AtomicU32,
    until: AtomicU64,
    streak: AtomicU32,
    /// Failing part of the latest calls, of `WHOLE`.
    failing: AtomicU32,
}

const WHOLE: u32 = 1 << 16;

impl Record {
    pub const fn new() -> Self {
        Self {
            in_a_row: AtomicU32::new(0),
            gateway: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            until: AtomicU64::new(0),
            streak: AtomicU32::new(0),
            failing: AtomicU32::new(0),
        }
    }

    pub fn until(&self) -> Time {
        Time::from_nanos(self.until.load(Relaxed))
    }

    /// One more call in the mean of the latest. Two that end together may count as one.
    fn learn(&self, failed: bool) {
        let failing = self.failing.load(Relaxed);
        let next = if failed { failing + (WHOLE - failing).div_ceil(10) } else { failing - failing.div_ceil(10) };
        if next != failing {
            self.failing.store(next, Relaxed);
        }
    }

    /// Back at once.
    pub fn forgive(&self, now: Time) {
        self.until.fetch_min(now.nanos(), Relaxed);
        self.in_a_row.store(0, Relaxed);
        self.gateway.store(0, Relaxed);
    }
}

/// An attempt on an endpoint ended. Says who was ejected or spared by that, and why: the endpoint itself or, at the end of an
/// interval, any.
pub fn ended(
    config: &Config,
    set: &EndpointSet,
    endpoint: &Endpoint,
    now: Time,
    random: u64,
    outcome: &Outcome,
    mut event: impl FnMut(&Endpoint, Why),
) {
    let record = &endpoint.outlier;
    match outcome.kind {
        Kind::Cancelled | Kind::Overloaded => {}
        Kind::Answered => {
            record.calls.fetch_add(1, Relaxed);
            record.learn(false);
            // Written only where it changes something, so that cores do not fight for a line that stays 0.
            if record.in_a_row.load(Relaxed) != 0 {
                record.in_a_row.store(0, Relaxed);
            }
            if record.gateway.load(Relaxed) != 0 {
                record.gateway.store(0, Relaxed);
            }
        }
        _ => {
            record.calls.fetch_add(1, Relaxed);
            record.failed.fetch_add(1, Relaxed);
            record.learn(true);
            let in_a_row = record.in_a_row.fetch_add(1, Relaxed) + 1;
            let gateway = if outcome.is_gateway() { record.gateway.fetch_add(1, Relaxed) + 1 } else { 0 };
            if !outcome.is_gateway() {
                record.gateway.store(0, Relaxed);
            }
            let why = if config.consecutive > 0 && in_a_row >= config.consecutive {
                let threshold = config.consecutive;
                Some(Why::EjectedConsecutive { failures: in_a_row, threshold, ejected_for: Default::default() })
            } else if config.gateway > 0 && gateway >= config.gateway {
                let threshold = config.gateway;
                Some(Why::EjectedGateway { failures: gateway, threshold, ejected_for: Default::default() })
            } else {
                None
            };
            if let Some(why) = why {
                eject(config, set, endpoint, now, random, why, &mut event);
            }
        }
    }
    sweep(config, set, now, random, event);
}

/// Puts it out, where enough others stay in.
fn eject(
    config: &Config,
    set: &EndpointSet,
    endpoint: &Endpoint,
    now: Time,
    random: u64,
    mut why: Why,
    event: &mut impl FnMut(&Endpoint, Why),
) {
    let _one_at_a_time = set.eject();
    let record = &endpoint.outlier;
    if record.until() > now {
        return;
    }
    record.in_a_row.store(0, Relaxed);
    record.gateway.store(0, Relaxed);
    if config.compare && !matches!(why, Why::EjectedRate { .. }) {
        let part = |one: &Endpoint| one.outlier.failing.load(Relaxed) as f32 / WHOLE as f32;
        // Those that would have to carry its load.
        let others = set.iter().filter(|one| one.id() != endpoint.id() && one.available(now));
        let mut others: Vec<f32> = others.map(|one| part(one)).collect();
        others.sort_unstable_by(f32::total_cmp);
        // Of an even number the lower: in doubt the endpoint is the one that fails.
        let median = others.get(others.len().saturating_sub(1) / 2).copied().unwrap_or_default();
        let bound = 2.0 * median + 0.2;
        if part(endpoint) < bound {
            let (failing, others, bound) = (Share(part(endpoint)), Share(median), Share(bound.min(1.0)));
            event(endpoint, Why::EjectionCommon { failing, others, bound });
            for (one, until) in set.iter().filter_map(|one| Some((one, one.ejected(now)?))) {
                one.outlier.until.store(0, Relaxed);
                event(one, Why::EjectionEnded { others, left: until.since(now).into() });
            }
            return set.note_trouble();
        }
    }
    let endpoints = set.len() as u32;
    let ejected = set.iter().filter(|one| one.ejected(now).is_some()).count() as u32;
    let share = (f64::from(config.ejected_max) + 1e-6) * f64::from(endpoints);
    let allowed = if config.ejected_max > 0.0 { (share as u32).max(1).min(endpoints.saturating_sub(1)) } else { 0 };
    if ejected >= allowed {
        return event(endpoint, Why::EjectionSpared { ejected, endpoints, allowed });
    }
    let streak = record.streak.fetch_add(1, Relaxed).saturating_add(1);
    let doubled = nanos(config.base).saturating_mul(1 << (streak - 1).min(32));
    let time = doubled.min(nanos(config.max));
    let time = Duration::from_nanos(time + (time as f64 * 0.1 * unit(random)) as u64);
    let until = now.plus(time);
    record.until.store(until.nanos(), Relaxed);
    set.trouble(until);
    match &mut why {
        Why::EjectedConsecutive { ejected_for, .. }
        | Why::EjectedGateway { ejected_for, .. }
        | Why::EjectedRate { ejected_for, .. }
        | Why::EjectedFailures { ejected_for, .. } => *ejected_for = time.into(),
        _ => {}
    }
    event(endpoint, why);
}

/// Compares endpoints when an interval is over.
fn sweep(config: &Config, set: &EndpointSet, now: Time, random: u64, mut event: impl FnMut(&Endpoint, Why)) {
    let due = set.shared.next_sweep.load(Relaxed);
    if now.nanos() < due {
        return;
    }
    let next = now.plus(config.interval).nanos();
    if set.shared.next_sweep.compare_exchange(due, next, Relaxed, Relaxed).is_err() || due == 0 {
        // Another core does it; or this is the first call ever, and the first interval begins.
        return;
    }
    // What the interval has seen of each, taken so that the next begins at zero.
    let counts: Vec<(u32, u32)> = set
        .iter()
        .map(|one| {
            let record = &one.outlier;
            if record.until() <= now {
                let _ = record.streak.fetch_update(Relaxed, Relaxed, |streak| streak.checked_sub(1));
            }
            (record.calls.swap(0, Relaxed), record.failed.swap(0, Relaxed))
        })
        .collect();
    let rate = |(calls, failed): (u32, u32)| 1.0 - f64::from(failed.min(calls)) / f64::from(calls);
    let compared = || counts.iter().filter(|(calls, _)| *calls >= config.calls_min);
    let many = compared().count() as f64;
    if many < f64::from(config.endpoints_min) {
        return;
    }
    let mean = compared().map(|count| rate(*count)).sum::<f64>() / many;
    let variance = compared().map(|count| (rate(*count) - mean).powi(2)).sum::<f64>() / many;
    let bound = mean - f64::from(config.sigma) * variance.sqrt();
    for (at, count) in counts.iter().enumerate().filter(|(_, (calls, _))| *calls >= config.calls_min) {
        let (rate, endpoint) = (rate(*count), set.get(at));
        let ejected_for = Default::default();
        let share = |part: f64| Share(part as f32);
        let why = if config.failure_rate > 0.0 && 1.0 - rate >= f64::from(config.failure_rate) - 1e-6 {
            Why::EjectedFailures { failed: share(1.0 - rate), threshold: Share(config.failure_rate), ejected_for }
        } else if config.sigma > 0.0 && rate < bound - 1e-9 {
            Why::EjectedRate { success: share(rate), bound: share(bound), mean: share(mean), ejected_for }
        } else {
            continue;
        };
        eject(config, set, endpoint, now, crate::random::mix(random ^ at as u64), why, &mut event);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: Outcome = Outcome::http(200);
    const BAD: Outcome = Outcome::http(500);

    fn set(many: usize) -> EndpointSet {
        let names: Vec<String> = (0..many).map(|n| format!("10.0.0.{n}:80")).collect();
        EndpointSet::new(names.iter().map(|name| (name.as_str(), 1)))
    }

    /// Attempts that end one after the other, and what that led to.
    fn tell(set: &EndpointSet, who: usize, ms: u64, outcome: Outcome, times: usize) -> Vec<&'static str> {
        let (mut codes, config) = (Vec::new(), Config::default());
        for _ in 0..times {
            ended(&config, set, set.get(who), Time::from_millis(ms), 0, &outcome, |_, why| codes.push(why.code()));
        }
        codes
    }

    fn out(set: &EndpointSet, ms: u64) -> Vec<usize> {
        (0..set.len()).filter(|n| set.get(*n).ejected(Time::from_millis(ms)).is_some()).collect()
    }

    #[test]
    fn five_failures_in_a_row_eject_for_five_seconds_and_then_for_ten() {
        let set = set(4);
        assert_eq!(tell(&set, 1, 1, BAD, 4), [""; 0]);
        tell(&set, 1, 1, GOOD, 1);
        assert_eq!(tell(&set, 1, 2, BAD, 5), ["BT-OUT-CONSECUTIVE"]);
        assert_eq!((out(&set, 5_001), out(&set, 5_002)), (vec![1], vec![]));
        assert_eq!(tell(&set, 1, 5_000, BAD, 5), [""; 0], "it is out already");
        // No sweep here, which would make the streak of a quiet interval shorter.
        let again = super::tests::set(4);
        again.shared.next_sweep.store(u64::MAX, Relaxed);
        tell(&again, 0, 0, BAD, 5);
        tell(&again, 0, 5_000, BAD, 5);
        assert_eq!((out(&again, 14_999), out(&again, 15_000)), (vec![0], vec![]));
    }

    #[test]
    fn half_of_the_endpoints_stay_whatever_happens_and_the_only_one_too() {
        let four = set(4);
        let codes: Vec<_> = (0..4).flat_map(|n| tell(&four, n, 1, Outcome::unreached(), 5)).collect();
        let expected = [
            "BT-OUT-CONSECUTIVE",
            "BT-OUT-CONSECUTIVE",
            "BT-OUT-SPARED",
            "BT-OUT-COMMON",
            "BT-OUT-BACK",
            "BT-OUT-BACK",
        ];
        assert_eq!(codes, expected, "and when the last one fails too, it was none of them");
        assert_eq!(tell(&set(1), 0, 1, BAD, 10), ["BT-OUT-SPARED", "BT-OUT-SPARED"]);
        assert_eq!(tell(&set(2), 0, 1, BAD, 5), ["BT-OUT-CONSECUTIVE"]);
    }

    #[test]
    fn nobody_is_ejected_while_all_fail_and_the_one_that_goes_on_failing_is() {
        let set = set(4);
        let codes: Vec<_> = (0..40).flat_map(|n| tell(&set, n % 4, n as u64, Outcome::timeout(), 1)).collect();
        assert_eq!((codes, out(&set, 40)), (vec!["BT-OUT-COMMON"; 8], vec![]));
        assert_eq!(tell(&set, 0, 45, GOOD, 40), [""; 0]);
        for n in 0..60 {
            tell(&set, n % 4, 50, if n % 4 == 2 { BAD } else { GOOD }, 1);
        }
        assert_eq!(out(&set, 50), [2]);
    }

    #[test]
    fn too_many_requests_and_clients_that_left_eject_nobody() {
        let set = set(3);
        assert_eq!(tell(&set, 0, 1, Outcome::http(429), 50), [""; 0]);
        assert_eq!(tell(&set, 0, 1, Outcome::cancelled(), 50), [""; 0]);
    }

    #[test]
    fn one_that_succeeds_less_than_the_others_is_found_at_the_end_of_an_interval() {
        let set = set(10);
        tell(&set, 0, 1, GOOD, 1);
        for n in 0..10 {
            for call in 0..200 {
                // Every fourth call of endpoint 7 fails, every fiftieth of the others.
                let fails = call % if n == 7 { 4 } else { 50 } == 1;
                tell(&set, n, 5_000, if fails { BAD } else { GOOD }, 1);
            }
        }
        assert_eq!(out(&set, 5_000), [0usize; 0]);
        assert_eq!(tell(&set, 0, 10_001, GOOD, 1), ["BT-OUT-RATE"]);
        assert_eq!(out(&set, 10_001), [7]);
    }

    #[test]
    fn a_healthy_check_brings_it_back() {
        let set = set(3);
        tell(&set, 2, 1, BAD, 5);
        set.set_down(Time::from_millis(10), 2, true);
        set.set_down(Time::from_millis(20), 2, false);
        assert!(set.get(2).available(Time::from_millis(20)) && !set.troubled(Time::from_millis(20)));
    }

    proptest! {
        /// However calls end: never more are out than allowed, none for longer than the longest time, and `troubled` never
        /// says that all is well while somebody is out.
        #[test]
        fn ejections_stay_within_their_bounds(
            many in 1usize..8,
            steps in prop::collection::vec((0u64..3_000, 0usize..8, 0u8..4, any::<u64>()), 1..400),
        ) {
            let (set, config) = (set(many), Config { calls_min: 3, endpoints_min: 2, ..Config::default() });
            let mut now = 0;
            for (later, who, kind, random) in steps {
                now += later;
                let outcome = [GOOD, BAD, Outcome::timeout(), Outcome::http(429)][usize::from(kind)];
                let time = Time::from_millis(now);
                ended(&config, &set, set.get(who % many), time, random, &outcome, |_, _| {});
                let out = out(&set, now);
                prop_assert!(out.len() <= (many / 2).max(1).min(many - 1));
                prop_assert!(out.is_empty() || set.troubled(time));
                for n in out {
                    let left = set.get(n).ejected(time).unwrap().since(time);
                    prop_assert!(left <= config.max.mul_f64(1.1));
                }
            }
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        let config = Config { ejected_max: 1.5, max: Duration::from_secs(1), ..Config::default() };
        let fields: Vec<_> = config.wrong("outlier").into_iter().map(|invalid| invalid.field).collect();
        assert_eq!(fields, ["outlier.max", "outlier.ejected_max"]);
        assert!(Config::default().validate("outlier").is_ok());
    }
}
