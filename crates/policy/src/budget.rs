//! Budgets: extra attempts as a share of first attempts, so that retries cannot become a storm.
//!
//! **Why.** When an upstream fails, every client retries, and three attempts each make a threefold load exactly when the
//! upstream can bear least. A limit per call does not help; a limit over all calls does. With a share of 20 %, the upstream never
//! sees more than 1.2 times the requests, plus the floor, whatever fails.
//!
//! | event | budget |
//! |---|---|
//! | request admitted | one more request in the window |
//! | extra attempt asked for, extras + 1 ≤ share × requests + floor × window | granted, counted |
//! | … above that | refused with the numbers |
//! | time | requests and extras leave the window after 10 s, in steps of a tenth |
//!
//! The floor (`per_second_min`) lets a route with little traffic retry at all. It is a sum over the window: at first start
//! `per_second_min × window` retries may be made at once.
//!
//! Shared by all cores: an extra attempt is counted first and taken back if that was one too many, so the bound holds at every
//! moment; two cores that ask at once for the last place may both be refused.
//!
//! **First start.** Only the floor. **Recovery.** Nothing is kept. Hedges have a budget of their own.
//!
//! Source: Finagle `RetryBudget` (20 %, 10 a second, 10 s); SRE book, chapter 22, "Retries"; gRPC A6 throttles by failures
//! instead, which also stops retries when only a few calls are made.

use std::time::Duration;

use crate::{
    config::{Checks, Invalid, Validate},
    time::Time,
    window::Recent,
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Extra attempts as a part of requests, 0 to 1.
    pub share: f32,
    /// Extra attempts a second that are always allowed.
    pub per_second_min: f32,
    /// Over what time both are counted.
    pub window: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { share: 0.2, per_second_min: 3.0, window: Duration::from_secs(10) }
    }
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut checks = Checks::default();
        checks.must((0.0..=1.0).contains(&self.share), &format!("{prefix}.share"), self.share, "from 0 to 1");
        let floor = (0.0..=10_000.0).contains(&self.per_second_min);
        checks.must(floor, &format!("{prefix}.per_second_min"), self.per_second_min, "from 0 to 10000");
        checks.window(&format!("{prefix}.window"), self.window);
        checks.all()
    }
}

#[derive(Debug)]
pub struct Budget {
    config: Config,
    requests: Recent,
    extras: Recent,
}

/// The numbers behind an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub requests: u32,
    pub extras: u32,
    pub allowed: u32,
}

impl Standing {
    pub fn left(&self) -> u32 {
        self.allowed.saturating_sub(self.extras)
    }
}

impl Budget {
    pub fn new(config: Config) -> Self {
        Self { config, requests: Recent::new(config.window), extras: Recent::new(config.window) }
    }

    /// A request was let in.
    pub fn request(&self, now: Time) {
        self.requests.add(now, 1);
    }

    /// Takes one extra attempt out of the budget.
    ///
    /// # Errors
    /// The budget is spent; nothing was taken.
    pub fn take(&self, now: Time) -> Result<Standing, Standing> {
        self.extras.add(now, 1);
        let standing = self.standing(now);
        if standing.extras <= standing.allowed {
            return Ok(standing);
        }
        self.extras.take_back(now, 1);
        Err(Standing { extras: standing.extras.saturating_sub(1), ..standing })
    }

    /// What was taken and not used.
    pub fn put_back(&self, taken: Time) {
        self.extras.take_back(taken, 1);
    }

    pub fn standing(&self, now: Time) -> Standing {
        let count = |recent: &Recent| u32::try_from(recent.sum(now)).unwrap_or(u32::MAX);
        let (requests, extras) = (count(&self.requests), count(&self.extras));
        let floor = self.config.per_second_min * self.config.window.as_secs_f32();
        // Floats saturate when they become integers.
        let allowed = (f64::from(self.config.share) * f64::from(requests) + f64::from(floor)) as u32;
        Standing { requests, extras, allowed }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The bound that the documentation gives: extras in the window never exceed the share and the floor, and nothing
        /// within them is refused.
        #[test]
        fn extras_are_a_share_of_requests(
            share in 0u32..=100,
            floor in 0u32..5,
            steps in prop::collection::vec((0u64..800, any::<bool>()), 1..300),
        ) {
            let config = Config {
                share: share as f32 / 100.0, per_second_min: floor as f32, window: Duration::from_secs(10),
            };
            let budget = Budget::new(config);
            let (mut now, mut requests, mut extras) = (0u64, Vec::new(), Vec::new());
            for (later, extra) in steps {
                now += later;
                let recent = |all: &[u64]| all.iter().filter(|at| now / 1000 - **at / 1000 < 10).count();
                if !extra {
                    budget.request(Time::from_millis(now));
                    requests.push(now);
                    continue;
                }
                let allowed = (f64::from(config.share) * recent(&requests) as f64 + f64::from(floor) * 10.0) as usize;
                let granted = budget.take(Time::from_millis(now)).is_ok();
                prop_assert_eq!(granted, recent(&extras) < allowed);
                if granted {
                    extras.push(now);
                }
            }
        }
    }

    #[test]
    fn the_bound_holds_when_cores_ask_together() {
        let budget = Budget::new(Config { share: 0.1, per_second_min: 0.0, window: Duration::from_secs(10) });
        let now = Time::from_millis(1);
        for _ in 0..1000 {
            budget.request(now);
        }
        let granted: usize = std::thread::scope(|scope| {
            let ask = || (0..500).filter(|_| budget.take(now).is_ok()).count();
            let cores: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            cores.into_iter().map(|core| core.join().expect("asking does not panic")).sum()
        });
        assert!(granted <= 100, "{granted}");
        // Refusals that were one core's luck leave nothing behind: what is left can still be had.
        let rest = (0..200).filter(|_| budget.take(now).is_ok()).count();
        assert_eq!(granted + rest, 100);
    }

    #[test]
    fn wrong_settings_are_named() {
        let config = Config { share: 1.5, per_second_min: -1.0, window: Duration::ZERO };
        let fields: Vec<_> = config.wrong("budget").into_iter().map(|invalid| invalid.field).collect();
        assert_eq!(fields, ["budget.share", "budget.per_second_min", "budget.window"]);
    }
}
