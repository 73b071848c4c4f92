//! The client throttle: when an upstream refuses most calls, most are refused before they are sent.
//!
//! **Why.** Refusing costs the upstream work too. A client that sees its calls refused stops sending most of them by itself, and
//! sends more as they are accepted again: softer than a breaker, which is all or nothing.
//!
//! | lately | refused here |
//! |---|---|
//! | requests ≤ K × accepts | none |
//! | above that | with probability (requests − K × accepts) ÷ (requests + 1) |
//!
//! Requests that are refused here count as requests, so the probability rises until as many get through as the upstream takes,
//! K times over. Requests count when they are sent and accepts when they are answered: the window must be longer than a call takes
//! (go-zero issue 5011), or slow answers look like refusals.
//!
//! **First start.** Everything passes. **Recovery.** A K-th of what is accepted is always tried in addition, so it finds a recovery by itself; after the
//! window it has forgotten everything.
//!
//! Source: SRE book, chapter 21 "Handling overload", client-side throttling (K = 2, two minutes; here ten seconds, so that it recovers within them).

use std::time::Duration;

use crate::{
    config::{Checks, Invalid, Validate},
    decision::{Share, Why},
    random::unit,
    time::Time,
    window::Recent,
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// How many calls are sent for one that is accepted.
    pub k: f32,
    pub window: Duration,
    /// Fewer calls in the window refuse nothing.
    pub calls_min: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { k: 2.0, window: Duration::from_secs(10), calls_min: 20 }
    }
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut checks = Checks::default();
        checks.must((1.0..=100.0).contains(&self.k), &format!("{prefix}.k"), self.k, "from 1 to 100");
        checks.window(&format!("{prefix}.window"), self.window);
        checks.all()
    }
}

#[derive(Debug)]
pub struct Throttle {
    config: Config,
    requests: Recent,
    accepts: Recent,
}

impl Throttle {
    pub fn new(config: Config) -> Self {
        Self { config, requests: Recent::new(config.window), accepts: Recent::new(config.window) }
    }

    /// A call wants to be sent. It counts as one whatever the answer is.
    ///
    /// # Errors
    /// It is refused here.
    pub fn request(&self, now: Time, random: u64) -> Result<(), Why> {
        self.requests.add(now, 1);
        let requests = self.requests.sum(now) - 1;
        if requests < u64::from(self.config.calls_min) {
            return Ok(());
        }
        let accepted = self.accepts.sum(now);
        let excess = requests as f64 - f64::from(self.config.k) * accepted as f64;
        let probability = excess / (requests as f64 + 1.0);
        if probability <= 0.0 || unit(random) >= probability {
            return Ok(());
        }
        let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Err(Why::Throttled {
            requests: count(requests),
            accepted: count(accepted),
            probability: Share(probability as f32),
        })
    }

    /// The upstream took a call on.
    pub fn accepted(&self, now: Time) {
        self.accepts.add(now, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Rng;

    /// A thousand calls a second at an upstream that accepts `capacity` a second; how many were sent in each second.
    fn run(throttle: &Throttle, from: u64, seconds: u64, capacity: u64, rng: &mut Rng) -> Vec<u64> {
        (from..from + seconds)
            .map(|second| {
                let (mut sent, mut accepted) = (0, 0);
                for ms in 0..1000 {
                    let now = Time::from_millis(second * 1000 + ms);
                    if throttle.request(now, rng.draw()).is_ok() {
                        sent += 1;
                        if accepted < capacity * (ms + 1) / 1000 {
                            accepted += 1;
                            throttle.accepted(now);
                        }
                    }
                }
                sent
            })
            .collect()
    }

    #[test]
    fn an_upstream_gets_twice_what_it_accepts_and_everything_again_afterwards() {
        let (throttle, mut rng) = (Throttle::new(Config::default()), Rng::new(4));
        assert_eq!(run(&throttle, 0, 20, 1000, &mut rng), [1000; 20]);
        let overloaded = run(&throttle, 20, 30, 100, &mut rng);
        assert!(overloaded[15..].iter().all(|sent| (120..=320).contains(sent)), "{overloaded:?}");
        let after = run(&throttle, 50, 20, 1000, &mut rng);
        assert!(after[15..].iter().all(|sent| *sent >= 990), "{after:?}");
    }

    #[test]
    fn a_few_calls_are_no_reason() {
        let throttle = Throttle::new(Config::default());
        assert!((0..20).all(|n| throttle.request(Time::from_millis(n), 0).is_ok()));
        let why = throttle.request(Time::from_millis(20), 0).unwrap_err();
        assert_eq!(why.code(), "BT-THR-CLIENT");
        assert!(throttle.request(Time::from_millis(20), u64::MAX).is_ok(), "a few always pass");
    }
}
