//! Deadlines: how long a call may take, decided once and carried through every hop.
//!
//! **Why.** A call without an end holds a connection, a place and somebody's patience. A timeout per hop is no better: the
//! outer hop gives up while the inner ones work on for nobody. So the first hop turns its timeout into a moment, every hop
//! sends on what is left (`grpc-timeout`, or `buttress-timeout-ms` over plain HTTP), and nobody begins what cannot end in time.
//!
//! | inbound | route's total | the call's deadline |
//! |---|---|---|
//! | none | T | now + T |
//! | left L | T | now + min(L, T) |
//! | none | none (streams) | never |
//! | left L | none | now + L |
//!
//! | asked | answer |
//! |---|---|
//! | begin with less left than `minimum`, or than the fastest tenth of calls lately took | BT-DLN-SHORT: the work would be thrown away |
//! | begin at or after the deadline | BT-DLN-PAST |
//! | time of one attempt | min(left, `attempt`), so that one slow attempt leaves room for another; the last attempt may use what is left |
//!
//! The estimate of the fastest tenth comes from a window of time: when nothing is admitted it runs empty and stops deciding, so a
//! brown-out cannot lock callers out for longer than that window.
//!
//! **First start.** No estimate; only `minimum` counts. **Recovery.** Nothing is kept.
//!
//! Source: gRPC "Deadlines"; SRE book, chapter 22 "Addressing cascading failures", latency and deadlines; linkerd2-proxy, whose
//! last attempt drops its own timeout.

use std::time::Duration;

use crate::{
    config::{Checks, Invalid, Validate},
    decision::Why,
    time::Time,
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// The most that a call may take, over all attempts. None: as long as the caller says, and for ever where it says nothing.
    pub total: Option<Duration>,
    /// The most that one attempt may take while others could follow. None: what is left.
    pub attempt: Option<Duration>,
    /// With less than this left, no attempt begins.
    pub minimum: Duration,
    /// Refuse calls with less left than the fastest tenth of calls take.
    pub foresee: bool,
}

/// 15 s is what Envoy gives a route that says nothing.
impl Default for Config {
    fn default() -> Self {
        Self { total: Some(Duration::from_secs(15)), attempt: None, minimum: Duration::from_millis(1), foresee: true }
    }
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut checks = Checks::default();
        if let Some(total) = self.total {
            checks.span(&format!("{prefix}.total"), total);
            let fits = self.minimum < total;
            checks.must(fits, &format!("{prefix}.minimum"), self.minimum, "shorter than the total");
        }
        if let Some(attempt) = self.attempt {
            checks.span(&format!("{prefix}.attempt"), attempt);
            let fits = self.total.is_none_or(|total| attempt <= total);
            checks.must(fits, &format!("{prefix}.attempt"), attempt, "at most the total");
        }
        checks.all()
    }
}

/// The moment at which the call is over. `inbound` is what the caller says is left.
pub fn begin(config: &Config, now: Time, inbound: Option<Duration>) -> Time {
    match (config.total, inbound) {
        (Some(total), Some(left)) => now.plus(total.min(left)),
        (Some(span), None) | (None, Some(span)) => now.plus(span),
        (None, None) => Time::NEVER,
    }
}

/// Whether an attempt may begin. `fastest` is what the fastest calls take, where that is known.
///
/// # Errors
/// Why not.
pub fn check(config: &Config, now: Time, deadline: Time, fastest: Option<Duration>) -> Result<Duration, Why> {
    if deadline <= now {
        return Err(Why::DeadlinePast { late: now.since(deadline).into() });
    }
    let left = deadline.since(now);
    let needed = fastest.filter(|_| config.foresee).unwrap_or_default().max(config.minimum);
    if left < needed {
        return Err(Why::DeadlineShort { left: left.into(), needed: needed.into() });
    }
    Ok(left)
}

/// How long one attempt may take. The last one takes what is left.
pub fn attempt(config: &Config, now: Time, deadline: Time, last: bool) -> Duration {
    let left = deadline.since(now);
    config.attempt.filter(|_| !last).map_or(left, |most| most.min(left))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_shorter_of_what_the_caller_and_the_route_say_counts() {
        let config = Config { total: Some(2000 * MS), ..Config::default() };
        let now = Time::from_millis(100);
        assert_eq!(begin(&config, now, None), Time::from_millis(2_100));
        assert_eq!(begin(&config, now, Some(500 * MS)), Time::from_millis(600));
        assert_eq!(begin(&config, now, Some(Duration::MAX)), Time::from_millis(2_100));
        let stream = Config { total: None, ..config };
        assert_eq!(begin(&stream, now, None), Time::NEVER);
        assert_eq!(begin(&stream, now, Some(MS)), Time::from_millis(101));
    }

    #[test]
    fn what_cannot_end_in_time_does_not_begin() {
        let config = Config { minimum: 5 * MS, ..Config::default() };
        let at = Time::from_millis;
        assert_eq!(check(&config, at(10), at(10), None).unwrap_err().code(), "BT-DLN-PAST");
        assert_eq!(check(&config, at(10), at(14), None).unwrap_err().code(), "BT-DLN-SHORT");
        assert_eq!(check(&config, at(10), at(15), None), Ok(5 * MS));
        let why = check(&config, at(10), at(30), Some(40 * MS)).unwrap_err();
        assert_eq!(why.to_string(), "20 ms of the deadline were left, and a call needs 40 ms");
        let blind = Config { foresee: false, ..config };
        assert!(check(&blind, at(10), at(30), Some(40 * MS)).is_ok());
    }

    #[test]
    fn only_the_last_attempt_may_use_all_that_is_left() {
        let config = Config { attempt: Some(300 * MS), ..Config::default() };
        let (now, deadline) = (Time::ZERO, Time::from_millis(1000));
        assert_eq!(attempt(&config, now, deadline, false), 300 * MS);
        assert_eq!(attempt(&config, now, deadline, true), 1000 * MS);
        assert_eq!(attempt(&config, Time::from_millis(900), deadline, false), 100 * MS);
        assert_eq!(attempt(&config, Time::from_millis(1100), deadline, true), Duration::ZERO);
    }

    proptest! {
        /// Whatever hops a call takes, none has more time than the one before it.
        #[test]
        fn no_hop_has_more_time_than_its_caller(hops in prop::collection::vec((1u64..5000, 0u64..500), 1..8)) {
            let (mut now, mut left) = (Time::from_millis(1), None);
            let mut ends = Time::NEVER;
            for (total, takes) in hops {
                let config = Config { total: Some(total as u32 * MS), ..Config::default() };
                let deadline = begin(&config, now, left);
                prop_assert!(deadline <= ends.max(now), "one whose time is over has none");
                ends = deadline;
                now = now.plus(takes as u32 * MS);
                left = Some(attempt(&config, now, deadline, true));
            }
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        let config = Config { total: Some(10 * MS), attempt: Some(20 * MS), minimum: 10 * MS, foresee: true };
        let fields: Vec<_> = config.wrong("deadline").into_iter().map(|invalid| invalid.field).collect();
        assert_eq!(fields, ["deadline.minimum", "deadline.attempt"]);
        assert!(Config::default().validate("deadline").is_ok());
    }
}
