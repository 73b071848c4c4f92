//! Hedging: a second attempt beside one that is slow.
//!
//! **Why.** A call that takes longer than 95 % of calls usually met one slow endpoint. Asking another one then, and taking
//! whichever answers first, cuts the tail for a few percent more load. It is for calls that may happen twice, and is itself load: so it
//! has a budget, and stops when latency rises for everybody (then the quantile rises too).
//!
//! | moment | asked | answer |
//! |---|---|---|
//! | an attempt begins | [`when`] | BT-HDG-LATER with the time to wait; or why there is no hedge: OFF, EFFECT, ATTEMPTS, COLD, DEADLINE |
//! | that time is over, no answer yet | [`now`] | BT-HDG-GO, and the budget is charged; or BT-HDG-BUDGET |
//! | one of them answers | | the other is cancelled by the driver; a cancelled attempt counts for nothing |
//!
//! A retry follows when all attempts that run have failed, so hedges and retries do not multiply: both count as attempts.
//!
//! **First start.** BT-HDG-COLD until `samples_min` calls were seen. **Recovery.** As [`crate::latency`]: after ten seconds without calls it is
//! cold again.
//!
//! Source: Dean, Barroso, "The tail at scale", CACM 2013; gRFC A6, hedging (which gives a fixed delay, and pushback stops it).

use std::time::Duration;

use crate::{
    budget::{self, Budget},
    config::{Checks, Invalid, Validate},
    decision::{Share, Why},
    latency::Latencies,
    time::Time,
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// The part of calls that answer faster than a hedge starts.
    pub quantile: f32,
    /// Hedged attempts of one call.
    pub extra: u8,
    /// Hedges as a part of requests.
    pub share: f32,
    pub samples_min: u32,
    /// A hedge starts no sooner.
    pub delay_min: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { quantile: 0.95, extra: 1, share: 0.05, samples_min: 100, delay_min: Duration::from_millis(1) }
    }
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut checks = Checks::default();
        let fits = (0.5..1.0).contains(&self.quantile);
        checks.must(fits, &format!("{prefix}.quantile"), self.quantile, "from 0.5 to below 1");
        checks.must((1..=4).contains(&self.extra), &format!("{prefix}.extra"), self.extra, "from 1 to 4");
        checks.rate(&format!("{prefix}.share"), self.share);
        checks.must(self.samples_min > 0, &format!("{prefix}.samples_min"), self.samples_min, "above 0");
        checks.all()
    }
}

impl Config {
    /// Hedges have a budget of their own, without a floor.
    pub fn budget(&self) -> Budget {
        Budget::new(budget::Config { share: self.share, per_second_min: 0.0, window: Duration::from_secs(10) })
    }
}

/// What a hedge asks of a call.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Hedges started so far.
    pub hedges: u8,
    pub repeatable: bool,
    pub attempts: u8,
    pub deadline: Time,
}

/// How long to wait before a second attempt.
///
/// # Errors
/// Why there will be none.
pub fn when(config: &Config, latencies: &Latencies, now: Time, asked: &Asked) -> Result<Duration, Why> {
    if !asked.repeatable {
        return Err(Why::HedgeEffect { attempts: asked.attempts.into() });
    }
    if asked.hedges >= config.extra {
        return Err(Why::HedgeAttempts { hedges: asked.hedges.into(), allowed: config.extra.into() });
    }
    let Some(quantile) = latencies.upper(now) else {
        return Err(Why::HedgeCold { samples: latencies.samples(), needed: config.samples_min });
    };
    let after = quantile.max(config.delay_min);
    let left = asked.deadline.since(now);
    if left <= after {
        return Err(Why::HedgeDeadline { left: left.into(), after: after.into() });
    }
    Ok(after)
}

/// Charges the budget for a hedge that starts now.
///
/// # Errors
/// The budget is spent.
pub fn now(config: &Config, budget: &Budget, now: Time, waited: Duration) -> Result<Why, Why> {
    match budget.take(now) {
        Ok(_) => Ok(Why::HedgeNow { waited: waited.into(), quantile: Share(config.quantile) }),
        Err(standing) => {
            let (hedges, allowed) = (standing.extras, standing.allowed);
            Err(Why::HedgeBudget { hedges, requests: standing.requests, allowed })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn each_condition_has_its_code() {
        let config = Config::default();
        let latencies = Latencies::new(Duration::from_secs(10), config.samples_min, 0.1, 0.95);
        let asked = Asked { hedges: 0, repeatable: true, attempts: 1, deadline: Time::from_millis(1_000) };
        let code = |asked: &Asked| when(&config, &latencies, Time::ZERO, asked).map_err(|why| why.code());
        assert_eq!(code(&asked), Err("BT-HDG-COLD"));
        for n in 0..200 {
            latencies.record(Time::ZERO, if n % 10 == 0 { 300 * MS } else { 10 * MS });
        }
        let after = code(&asked).unwrap();
        assert!(
            (300 * MS..340 * MS).contains(&after),
            "a tenth of calls is slow, so the quantile lies there: {after:?}"
        );
        assert_eq!(code(&Asked { repeatable: false, ..asked }), Err("BT-HDG-EFFECT"));
        assert_eq!(code(&Asked { hedges: 1, ..asked }), Err("BT-HDG-ATTEMPTS"));
        assert_eq!(code(&Asked { deadline: Time::from_millis(100), ..asked }), Err("BT-HDG-DEADLINE"));
    }

    #[test]
    fn hedges_are_a_twentieth_of_requests_at_most() {
        let config = Config::default();
        let budget = config.budget();
        let mut hedges = 0;
        for n in 0..1000 {
            budget.request(Time::from_millis(n));
            hedges += u32::from(now(&config, &budget, Time::from_millis(n), MS).is_ok());
        }
        assert_eq!(hedges, 50);
        let why = now(&config, &budget, Time::from_millis(999), MS).unwrap_err();
        assert_eq!(why, Why::HedgeBudget { hedges: 50, requests: 1000, allowed: 50 });
    }
}
