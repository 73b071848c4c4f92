//! Retries: whether a failed attempt is followed by another, and after what pause.
//!
//! **Why.** Most failures are brief, and a second attempt hides them. But an attempt may have had its effect before it failed;
//! attempts at every hop multiply (three hops with three attempts make 27); and attempts of all callers at once keep an upstream
//! down. So every condition below must hold, and the answer names the first that does not.
//!
//! | # | condition | otherwise |
//! |---|---|---|
//! | 1 | the attempt failed | BT-RTY-DONE |
//! | 2 | the outcome is one that may go away: unreached, reset, timeout, 502, 503, 504; others where the route lists the status | BT-RTY-STATUS |
//! | 3 | the request did not come as somebody's second attempt | BT-RTY-HOP |
//! | 4 | the method is idempotent, or the request is known not to have reached the upstream | BT-RTY-EFFECT |
//! | 5 | the body was kept | BT-RTY-BODY |
//! | 6 | attempts are left | BT-RTY-OFF, BT-RTY-ATTEMPTS |
//! | 7 | the upstream did not ask for longer than `after_max`, or not to be tried again | BT-RTY-PUSHBACK |
//! | 8 | the pause ends before the deadline does, with `minimum` to spare | BT-RTY-DEADLINE |
//! | 9 | the budget has room ([`crate::budget`]) | BT-RTY-BUDGET |
//!
//! **Hops.** A caller that makes attempt n sends `buttress-attempt: n`. A hop that sees n above 1 makes one attempt only. With a
//! attempts at each of h hops the last upstream then sees at most 1 + h × (a − 1) requests instead of aʰ: 7 instead of 27. A hop
//! that has given up after retries of its own marks its answer (`Pushback::Never`), and then hops before it do not retry either: 3.
//!
//! **Pauses.** `Full`: a random part of min(cap, base × 2ⁿ). `Decorrelated`: between base and three times the pause before, at
//! most cap. Both spread callers that failed together. The pause is at least what the upstream asked for; that much again at
//! most is added, so that callers who were told the same moment do not come back in one.
//!
//! **First start, recovery.** No state but the pause before, which lives in the call.
//!
//! Source: Brooker, "Exponential backoff and jitter", AWS Architecture Blog 2015; RFC 9110 §9.2.2 (idempotent methods), §10.2.3
//! (Retry-After); gRFC A6 (pushback, previous attempts); SRE book, chapter 22.

use std::time::Duration;

use crate::{
    config::{Checks, Invalid, Validate},
    decision::Why,
    outcome::{Kind, Outcome, Pushback},
    random::unit,
    time::{Time, nanos},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    Full,
    Decorrelated,
}

/// Statuses that a route can list.
pub const STATUSES_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Attempts in all; 1 means no retries.
    pub attempts: u8,
    pub base: Duration,
    pub cap: Duration,
    pub jitter: Jitter,
    /// Statuses beyond 502, 503, 504 that may go away, as `429` or `500`; 0 where there is none.
    pub statuses: [u16; STATUSES_MAX],
    /// The longest wait that an upstream may ask for.
    pub after_max: Duration,
    /// Bodies up to this size are kept for another attempt. The driver keeps them; here so that all of it stands in one place.
    pub body_bytes_max: u32,
}

/// Safe in front of anything: one retry for a brief failure, one more for a long one; never of what may have had an effect.
impl Default for Config {
    fn default() -> Self {
        Self {
            attempts: 3,
            base: Duration::from_millis(25),
            cap: Duration::from_secs(1),
            jitter: Jitter::Full,
            statuses: [0; STATUSES_MAX],
            after_max: Duration::from_secs(2),
            body_bytes_max: 64 * 1024,
        }
    }
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut checks = Checks::default();
        checks.must((1..=10).contains(&self.attempts), &format!("{prefix}.attempts"), self.attempts, "from 1 to 10");
        checks.span(&format!("{prefix}.base"), self.base);
        checks.span(&format!("{prefix}.cap"), self.cap);
        checks.must(self.base <= self.cap, &format!("{prefix}.base"), self.base, "at most the cap");
        for status in self.statuses.into_iter().filter(|status| *status != 0) {
            let fits = (1..=599).contains(&status);
            checks.must(fits, &format!("{prefix}.statuses"), status, "a status of HTTP (400 to 599) or gRPC (1 to 16)");
        }
        checks.all()
    }
}

/// What a retry asks of a call.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Attempts made so far.
    pub made: u8,
    /// The attempt that the request was for whoever sent it: 1 where it is nobody's retry.
    pub inbound: u32,
    pub idempotent: bool,
    /// The body is kept, or there is none.
    pub replayable: bool,
    pub deadline: Time,
    /// The least that an attempt needs.
    pub minimum: Duration,
    /// The pause before the attempt that has just failed; zero for the first.
    pub paused: Duration,
}

/// Conditions 1 to 8: the pause before the next attempt.
///
/// # Errors
/// Why there is no next attempt.
pub fn pause(config: &Config, now: Time, random: u64, asked: &Asked, outcome: &Outcome) -> Result<Duration, Why> {
    let attempt = u32::from(asked.made);
    if matches!(outcome.kind, Kind::Cancelled) {
        return Err(Why::RetryNeedless { attempt });
    }
    let listed = outcome.status != 0 && config.statuses.contains(&outcome.status);
    let answered = matches!(outcome.kind, Kind::Answered);
    if answered && !listed && (outcome.status < 400 || outcome.status == 0) {
        return Err(Why::RetryNeedless { attempt });
    }
    let pushed = matches!(outcome.pushback, Pushback::After(_)) && matches!(outcome.kind, Kind::Overloaded);
    if !(outcome.is_gateway() || listed || pushed) {
        return Err(Why::RetryStatus { status: outcome.status.into() });
    }
    if asked.inbound > 1 {
        return Err(Why::RetryHop { inbound: asked.inbound });
    }
    if !asked.idempotent && !outcome.undelivered {
        return Err(Why::RetryEffect { attempt });
    }
    if !asked.replayable {
        return Err(Why::RetryBody { attempt });
    }
    if config.attempts <= 1 {
        return Err(Why::RetryOff { attempt });
    }
    if asked.made >= config.attempts {
        return Err(Why::RetryAttempts { attempt, attempts: config.attempts.into() });
    }
    let own = backoff(config, random, asked.made, asked.paused);
    let after = match outcome.pushback {
        Pushback::None => own,
        Pushback::Never => {
            return Err(Why::RetryPushback { asked: Duration::MAX.into(), accepted: config.after_max.into() });
        }
        Pushback::After(span) if span > config.after_max => {
            return Err(Why::RetryPushback { asked: span.into(), accepted: config.after_max.into() });
        }
        Pushback::After(span) => span.saturating_add(own.min(span)),
    };
    let left = asked.deadline.since(now);
    if left <= after.saturating_add(asked.minimum) {
        return Err(Why::RetryDeadline { left: left.into(), after: after.into() });
    }
    Ok(after)
}

/// The pause before attempt `made + 1`. `before` is the pause before attempt `made`.
pub fn backoff(config: &Config, random: u64, made: u8, before: Duration) -> Duration {
    let (base, cap) = (nanos(config.base), nanos(config.cap));
    let part = unit(random);
    let pause = match config.jitter {
        Jitter::Full => {
            let doublings = u32::from(made.saturating_sub(1)).min(32);
            let most = base.saturating_mul(1 << doublings).min(cap);
            (most as f64 * part) as u64
        }
        Jitter::Decorrelated => {
            let most = nanos(before).max(base).saturating_mul(3);
            (base + ((most - base) as f64 * part) as u64).min(cap)
        }
    };
    Duration::from_nanos(pause)
}

/// Whether a method may be repeated: RFC 9110 §9.2.2. An `Idempotency-Key` makes any method one that may.
pub fn idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::Rng;

    const MS: Duration = Duration::from_millis(1);

    fn asked() -> Asked {
        Asked {
            made: 1,
            inbound: 1,
            idempotent: true,
            replayable: true,
            deadline: Time::from_millis(10_000),
            minimum: MS,
            paused: Duration::ZERO,
        }
    }

    fn code(config: &Config, asked: &Asked, outcome: Outcome) -> &'static str {
        pause(config, Time::ZERO, u64::MAX / 2, asked, &outcome).map_or_else(|why| why.code(), |_| "BT-RTY-GO")
    }

    #[test]
    fn each_condition_has_its_code() {
        let config = Config::default();
        let all = asked();
        let bad = Outcome::http(503);
        assert_eq!(code(&config, &all, bad), "BT-RTY-GO");
        assert_eq!(code(&config, &all, Outcome::http(200)), "BT-RTY-DONE");
        assert_eq!(code(&config, &all, Outcome::cancelled()), "BT-RTY-DONE");
        assert_eq!(code(&config, &all, Outcome::http(404)), "BT-RTY-STATUS");
        assert_eq!(code(&config, &all, Outcome::http(500)), "BT-RTY-STATUS");
        assert_eq!(code(&config, &all, Outcome::http(429)), "BT-RTY-STATUS");
        assert_eq!(code(&config, &Asked { inbound: 2, ..all }, bad), "BT-RTY-HOP");
        assert_eq!(code(&config, &Asked { idempotent: false, ..all }, bad), "BT-RTY-EFFECT");
        assert_eq!(code(&config, &Asked { replayable: false, ..all }, bad), "BT-RTY-BODY");
        assert_eq!(code(&Config { attempts: 1, ..config }, &all, bad), "BT-RTY-OFF");
        assert_eq!(code(&config, &Asked { made: 3, ..all }, bad), "BT-RTY-ATTEMPTS");
        assert_eq!(code(&config, &all, bad.pushed_back(Pushback::Never)), "BT-RTY-PUSHBACK");
        assert_eq!(code(&config, &all, bad.pushed_back(Pushback::After(3000 * MS))), "BT-RTY-PUSHBACK");
        assert_eq!(code(&config, &Asked { deadline: Time::from_millis(5), ..all }, bad), "BT-RTY-DEADLINE");
    }

    #[test]
    fn what_never_reached_the_upstream_may_be_sent_again_whatever_it_is() {
        let config = Config::default();
        let post = Asked { idempotent: false, ..asked() };
        assert_eq!(code(&config, &post, Outcome::unreached()), "BT-RTY-GO");
        assert_eq!(code(&config, &post, Outcome::http(503).not_delivered()), "BT-RTY-GO");
        assert_eq!(code(&config, &post, Outcome::timeout()), "BT-RTY-EFFECT");
        assert_eq!(code(&config, &post, Outcome::reset()), "BT-RTY-EFFECT");
    }

    #[test]
    fn routes_can_list_statuses_and_a_429_with_a_time_is_retried() {
        let mut config = Config::default();
        config.statuses[0] = 500;
        assert_eq!(code(&config, &asked(), Outcome::http(500)), "BT-RTY-GO");
        let told = Outcome::http(429).pushed_back(Pushback::After(100 * MS));
        assert_eq!(code(&config, &asked(), told), "BT-RTY-GO");
    }

    #[test]
    fn the_pause_is_at_least_what_the_upstream_asked_for_and_at_most_twice() {
        let mut rng = Rng::new(1);
        let outcome = Outcome::http(503).pushed_back(Pushback::After(200 * MS));
        for _ in 0..1000 {
            let after = pause(&Config::default(), Time::ZERO, rng.draw(), &asked(), &outcome).unwrap();
            assert!((200 * MS..=400 * MS).contains(&after), "{after:?}");
        }
    }

    /// MISSION: exponential with jitter, 0.5 s to 10 s, 5 attempts.
    #[test]
    fn pauses_grow_to_the_cap() {
        let config = Config { attempts: 5, base: 500 * MS, cap: 10_000 * MS, ..Config::default() };
        let most = |made| backoff(&config, u64::MAX, made, Duration::ZERO).as_secs_f64();
        assert_eq!([1, 2, 3, 4, 5, 6].map(|made| (most(made) * 10.0).round() / 10.0), [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]);
        assert_eq!(most(255).round(), 10.0);
        assert!(config.validate("retry").is_ok());
    }

    proptest! {
        #[test]
        fn pauses_stay_within_their_bounds(
            base in 1u64..10_000, cap in 1u64..100_000, made in 1u8..=255, before in 0u64..1_000_000,
            random: u64, decorrelated: bool,
        ) {
            let jitter = if decorrelated { Jitter::Decorrelated } else { Jitter::Full };
            let cap = cap.max(base);
            let config = Config { base: base as u32 * MS, cap: cap as u32 * MS, jitter, ..Config::default() };
            let pause = backoff(&config, random, made, before as u32 * MS);
            prop_assert!(pause <= config.cap);
            if decorrelated {
                prop_assert!(pause >= config.base.min(config.cap));
                prop_assert!(pause <= 3 * config.base.max(before as u32 * MS));
            }
        }
    }

    /// Requests that the last upstream sees when it always fails and every hop makes `attempts`.
    fn requests(hops: u32, attempts: u8, marks: bool) -> (u64, Outcome) {
        fn hop(left: u32, inbound: u32, config: &Config, marks: bool, seen: &mut u64) -> Outcome {
            if left == 0 {
                *seen += 1;
                return Outcome::http(503);
            }
            let mut made = 0;
            loop {
                made += 1;
                // What is sent on: a retry stays one for every hop behind.
                let outcome = hop(left - 1, inbound.max(made.into()), config, marks, seen);
                let asked = Asked { made, inbound, ..asked() };
                if pause(config, Time::ZERO, 0, &asked, &outcome).is_err() {
                    let gave_up = made > 1 && marks;
                    return if gave_up { outcome.pushed_back(Pushback::Never) } else { outcome };
                }
            }
        }
        let (mut seen, config) = (0, Config { attempts, ..Config::default() });
        let outcome = hop(hops, 1, &config, marks, &mut seen);
        (seen, outcome)
    }

    #[test]
    fn three_hops_with_three_attempts_make_seven_requests_and_not_27() {
        assert_eq!(requests(3, 3, false).0, 7);
        for (hops, attempts) in [(1u32, 3u8), (2, 3), (4, 3), (3, 5), (6, 10)] {
            assert_eq!(requests(hops, attempts, false).0, 1 + u64::from(hops) * (u64::from(attempts) - 1));
        }
        assert_eq!(requests(3, 3, true).0, 3, "and three where answers say that retries were made");
    }

    #[test]
    fn wrong_settings_are_named() {
        let config = Config { attempts: 0, base: 2000 * MS, ..Config::default() };
        let wrong = config.wrong("retry");
        assert_eq!(wrong[0].to_string(), "retry.attempts is 0, and must be from 1 to 10");
        assert_eq!(wrong[1].field, "retry.base");
    }
}
