//! Rate limits: so many calls a second, with bursts, for a route or for each key.
//!
//! **Why.** GCRA keeps one number per limit, the time at which the last token will be back (TAT), and needs neither a timer nor a queue. It
//! lets exactly the same calls pass as a bucket of `burst` tokens that fills at `per_second`.
//!
//! | call of cost n at `now`, T = time of one token | |
//! |---|---|
//! | max(TAT, now) + n × T − now ≤ burst × T | passes; that is the new TAT |
//! | otherwise | refused, and TAT stays; it would pass when the excess has gone by |
//! | n above burst | refused for ever |
//!
//! One atomic step per call, so cores cannot overdraw a limit together.
//!
//! **Keys.** [`Keyed`] has a limit of its own for every key (an API key, an address, hashed by the driver) in a table of fixed size: sets of eight
//! places. A key whose bucket is full again is as good as unknown, so its place is taken first, which changes no decision. If all
//! eight are in use, the one that will be full soonest is dropped, and may pass up to a burst more than its rate. So a flood of
//! keys costs no memory, and can at most loosen limits, never tighten them.
//!
//! **First start.** Full buckets. **Recovery.** Nothing is kept: a restart gives every key a burst.
//!
//! Source: ITU-T I.371 (GCRA); Brandur Leach, "Rate limiting, cells, and GCRA"; `governor`.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::{
    config::{Checks, Invalid, Validate},
    decision::{Number, Why},
    random::mix,
    time::{Span, Time},
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    pub per_second: f64,
    pub burst: u32,
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut checks = Checks::default();
        let fits = (0.000_1..=1e9).contains(&self.per_second);
        checks.must(fits, &format!("{prefix}.per_second"), self.per_second, "from 0.0001 to 1000000000");
        let fits = (1..=10_000_000).contains(&self.burst);
        checks.must(fits, &format!("{prefix}.burst"), self.burst, "from 1 to 10000000");
        checks.all()
    }
}

impl Config {
    /// Time of one token, in nanoseconds.
    fn token(&self) -> u64 {
        ((1e9 / self.per_second) as u64).max(1)
    }

    /// The TAT after a call of `cost`.
    fn pass(&self, tat: u64, now: Time, cost: u32) -> Result<u64, Why> {
        if cost > self.burst {
            return Err(Why::RateCost { cost, burst: self.burst });
        }
        let token = self.token();
        let next = tat.max(now.nanos()).saturating_add(token.saturating_mul(cost.into()));
        let ahead = next - now.nanos().min(next);
        let most = token.saturating_mul(self.burst.into());
        if ahead <= most {
            return Ok(next);
        }
        let (per_second, retry_in) = (Number(self.per_second as f32), Span(ahead - most));
        Err(Why::RateLimited { burst: self.burst, per_second, retry_in })
    }

    fn passed(&self, tat: u64, now: Time) -> Why {
        let used = tat.saturating_sub(now.nanos()).div_ceil(self.token());
        Why::RatePassed {
            left: self.burst - u32::try_from(used).unwrap_or(u32::MAX).min(self.burst),
            burst: self.burst,
        }
    }
}

/// One limit.
#[derive(Debug)]
pub struct Limit {
    config: Config,
    tat: AtomicU64,
}

impl Limit {
    pub const fn new(config: Config) -> Self {
        Self { config, tat: AtomicU64::new(0) }
    }

    /// Takes `cost` tokens.
    ///
    /// # Errors
    /// Why not, and when it would pass.
    pub fn take(&self, now: Time, cost: u32) -> Result<Why, Why> {
        let mut tat = self.tat.load(Relaxed);
        loop {
            let next = self.config.pass(tat, now, cost)?;
            match self.tat.compare_exchange_weak(tat, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(self.config.passed(next, now)),
                Err(changed) => tat = changed,
            }
        }
    }

    /// Gives tokens back that were taken for a call that another policy refused.
    pub fn put_back(&self, cost: u32) {
        let tokens = self.config.token().saturating_mul(cost.into());
        let _ = self.tat.fetch_update(Relaxed, Relaxed, |tat| Some(tat.saturating_sub(tokens)));
    }

    /// Tokens left now.
    pub fn left(&self, now: Time) -> u32 {
        match self.config.passed(self.tat.load(Relaxed), now) {
            Why::RatePassed { left, .. } => left,
            _ => 0,
        }
    }
}

/// Places of a set, and locks of a table.
const WAYS: usize = 8;
const SHARDS: usize = 16;

/// A limit for every key, in bounded memory: 16 bytes a key.
#[derive(Debug)]
pub struct Keyed {
    config: Config,
    /// Each holds every sixteenth set.
    shards: [Mutex<Box<[[Place; WAYS]]>>; SHARDS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Never 0 for a key.
    key: u64,
    tat: u64,
}

impl Keyed {
    /// Room for at least `keys` keys, in steps of 128.
    pub fn new(config: Config, keys: u32) -> Self {
        let sets = (keys as usize).div_ceil(WAYS * SHARDS).max(1);
        let shard = || Mutex::new(vec![[Place::default(); WAYS]; sets].into_boxed_slice());
        Self { config, shards: std::array::from_fn(|_| shard()) }
    }

    /// Takes `cost` tokens of a key, which is a hash.
    ///
    /// # Errors
    /// Why not, and when it would pass.
    pub fn take(&self, now: Time, key: u64, cost: u32) -> Result<Why, Why> {
        // Mixed, so that keys which somebody chose do not choose their set.
        let (key, at) = (key.max(1), mix(key ^ 0x6b65_7973));
        let mut shard = self.shards[at as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        let sets = shard.len();
        let set = &mut shard[(at >> 32) as usize % sets];
        if let Some(place) = set.iter_mut().find(|place| place.key == key) {
            place.tat = self.config.pass(place.tat, now, cost)?;
            return Ok(self.config.passed(place.tat, now));
        }
        let tat = self.config.pass(0, now, cost)?;
        // Full buckets (and empty places) have the lowest TAT.
        let place = set.iter_mut().min_by_key(|place| place.tat).expect("a set has places");
        *place = Place { key, tat };
        Ok(self.config.passed(tat, now))
    }

    /// Keys that have less than a full bucket.
    pub fn keys(&self, now: Time) -> usize {
        let of = |shard: &Mutex<Box<[[Place; WAYS]]>>| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.iter().flatten().filter(|place| place.tat > now.nanos()).count()
        };
        self.shards.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// A bucket of tokens that fills.
    struct Bucket {
        tokens: f64,
        at: u64,
    }

    impl Bucket {
        fn take(&mut self, config: &Config, now: u64, cost: u32) -> bool {
            let filled = (now - self.at) as f64 * config.per_second / 1e3;
            (self.tokens, self.at) = ((self.tokens + filled).min(config.burst.into()), now);
            let passes = self.tokens + 1e-6 >= f64::from(cost);
            if passes {
                self.tokens -= f64::from(cost);
            }
            passes
        }
    }

    proptest! {
        #[test]
        fn it_passes_what_a_bucket_of_tokens_passes(
            per_second in 1u32..500,
            burst in 1u32..50,
            steps in prop::collection::vec((0u64..300, 1u32..4), 1..300),
        ) {
            // Times of a token in whole nanoseconds, so that the model has no other rounding.
            let per_second = 1e9 / (1e9 / f64::from(per_second)).floor();
            let config = Config { per_second, burst };
            let (limit, mut bucket, mut now) = (Limit::new(config), Bucket { tokens: burst.into(), at: 0 }, 0);
            for (later, cost) in steps {
                now += later;
                let passes = limit.take(Time::from_millis(now), cost).is_ok();
                prop_assert_eq!(passes, bucket.take(&config, now, cost), "{} tokens at {}", bucket.tokens, now);
            }
        }

        /// As long as keys have room, each has exactly its own limit. When they have not, nobody is refused who would have
        /// passed with a limit of its own.
        #[test]
        fn keys_are_limited_apart_and_a_full_table_only_loosens(
            keys in 1u64..400, steps in prop::collection::vec((0u64..20, any::<u64>()), 1..500),
        ) {
            let config = Config { per_second: 10.0, burst: 3 };
            let (table, mut own, mut now) = (Keyed::new(config, 1), HashMap::new(), 0);
            for (later, key) in steps {
                now += later;
                let (key, time) = (mix(key % keys), Time::from_millis(now));
                let alone = own.entry(key).or_insert_with(|| Limit::new(config)).take(time, 1).is_ok();
                let passes = table.take(time, key, 1).is_ok();
                prop_assert!(passes || !alone);
                if keys <= 8 {
                    prop_assert_eq!(passes, alone);
                }
            }
        }
    }

    #[test]
    fn a_refusal_says_when_it_would_pass() {
        let limit = Limit::new(Config { per_second: 10.0, burst: 2 });
        let now = Time::from_millis(500);
        assert_eq!(limit.take(now, 1), Ok(Why::RatePassed { left: 1, burst: 2 }));
        limit.take(now, 1).unwrap();
        let why = limit.take(now, 2).unwrap_err();
        assert_eq!(why.to_string(), "the rate of 10 a second with bursts of 2 is used up");
        assert_eq!(why.would_pass().to_string(), "the same call 200 ms later");
        assert_eq!(why.retry_after(), Some(1));
        assert!(limit.take(Time::from_millis(699), 2).is_err());
        assert!(limit.take(Time::from_millis(700), 2).is_ok());
        assert_eq!(limit.take(now, 3).unwrap_err().code(), "BT-RAT-COST");
        limit.put_back(1);
        assert_eq!(limit.left(Time::from_millis(700)), 1);
    }

    #[test]
    fn cores_together_get_no_more_than_the_burst() {
        let limit = Limit::new(Config { per_second: 1.0, burst: 100 });
        let passed: usize = std::thread::scope(|scope| {
            let ask = || (0..100).filter(|_| limit.take(Time::from_millis(1), 1).is_ok()).count();
            let cores: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            cores.into_iter().map(|core| core.join().expect("asking does not panic")).sum()
        });
        assert_eq!(passed, 100);
    }

    #[test]
    fn a_flood_of_keys_takes_no_more_room() {
        let table = Keyed::new(Config { per_second: 1.0, burst: 1 }, 1000);
        for key in 0..100_000u64 {
            assert!(table.take(Time::from_millis(1), mix(key), 1).is_ok());
        }
        assert!(table.keys(Time::from_millis(1)) <= 1024);
        assert_eq!(table.keys(Time::from_millis(2_000)), 0);
    }

    #[test]
    fn wrong_settings_are_named() {
        let fields: Vec<_> =
            Config { per_second: f64::NAN, burst: 0 }.wrong("rate").into_iter().map(|wrong| wrong.field).collect();
        assert_eq!(fields, ["rate.per_second", "rate.burst"]);
    }
}
