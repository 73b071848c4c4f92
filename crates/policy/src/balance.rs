//! Balancers: which endpoint takes the next attempt.
//!
//! **Why.** Round robin gives a slow endpoint as much as a fast one. Taking the least loaded of all makes every core run to the same
//! one at the same moment. Two drawn at random and the better one taken is nearly as good as looking at all, costs two looks,
//! and does not herd.
//!
//! | balancer | takes | for |
//! |---|---|---|
//! | `PeakEwma` (default) | of two drawn at random, the one with less latency × (calls + 1) ÷ weight | nearly everything |
//! | `LeastRequest` | the one with the fewest calls ÷ weight | few endpoints, long calls |
//! | `Turn` | smooth weighted round robin | even calls, exact shares |
//! | `Ring` | the first on a ring of hashes after the key's, that has not reached its bound | caches, sessions |
//!
//! | situation | what is done |
//! |---|---|
//! | all may be taken | the balancer draws from all, without looking further |
//! | some are down or ejected | it draws from the others |
//! | less than `panic` are healthy | it draws from all (BT-BAL-PANIC): the few must not carry the load of all, and probably it is not the endpoints |
//! | an attempt of this call failed there | another is taken, where there is one |
//! | just come, or back | its weight grows from `slow_start_least` to 1 over `slow_start` |
//!
//! The ring's bound: no endpoint has more than `ring_bound` times its share of the calls under way, rounded up; what would be more goes to
//! the next on the ring, so a hot key cannot overload one endpoint.
//!
//! **First start.** Nothing is known of latencies: calls under way decide. **Recovery.** See [`crate::endpoint`].
//!
//! Source: Mitzenmacher, "The power of two choices", IEEE TPDS 2001; Finagle `P2C`, `PeakEwma`; Mirrokni, Thorup,
//! Zadimoghaddam, "Consistent hashing with bounded loads", SODA 2018; Envoy "Panic threshold" (50 %), "Slow start".

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use crate::{
    config::{Checks, Invalid, Validate},
    decision::{Number, Share, Why},
    endpoint::EndpointSet,
    random::{below, mix},
    time::Time,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancer {
    PeakEwma,
    LeastRequest,
    Turn,
    Ring,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    pub balancer: Balancer,
    /// In this time a peak of latency falls to an e-th.
    pub decay: Duration,
    pub slow_start: Duration,
    /// The part of its weight that a new endpoint begins with.
    pub slow_start_least: f32,
    /// The part of endpoints that must be healthy for health to be looked at; 0: always.
    pub panic: f32,
    /// How much of its share an endpoint of a ring may take.
    pub ring_bound: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            balancer: Balancer::PeakEwma,
            decay: Duration::from_secs(10),
            slow_start: Duration::from_secs(10),
            slow_start_least: 0.1,
            panic: 0.5,
            ring_bound: 1.25,
        }
    }
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut checks = Checks::default();
        let field = |name: &str| format!("{prefix}.{name}");
        checks.span(&field("decay"), self.decay);
        let fits = self.slow_start <= Duration::from_secs(3600);
        checks.must(fits, &field("slow_start"), self.slow_start, "at most an hour");
        checks.rate(&field("slow_start_least"), self.slow_start_least);
        checks.must((0.0..=1.0).contains(&self.panic), &field("panic"), self.panic, "from 0 to 1");
        let fits = (1.0..=100.0).contains(&self.ring_bound);
        checks.must(fits, &field("ring_bound"), self.ring_bound, "from 1 to 100");
        checks.all()
    }
}

/// The endpoint that takes the attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// Its place in the set.
    pub at: usize,
    pub why: Why,
}

/// Endpoints that a call has tried. Later ones push out the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    ids: [u64; 3],
}

impl Tried {
    pub fn add(&mut self, id: u64) {
        self.ids.rotate_right(1);
        self.ids[0] = id;
    }

    pub fn is_empty(&self) -> bool {
        self.ids[0] == 0
    }

    fn has(&self, id: u64) -> bool {
        self.ids.contains(&id)
    }
}

/// Who may be drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Among {
    All,
    Untried,
    Available,
    AvailableUntried,
}

/// Picks an endpoint. `key` counts for rings only.
///
/// # Errors
/// There is none that could be taken.
pub fn pick(config: &Config, set: &EndpointSet, now: Time, random: u64, key: u64, tried: &Tried) -> Result<Pick, Why> {
    let draw = Draw { config, set, now, tried };
    // Nearly always: everybody is well, and this is the first attempt.
    if !set.troubled(now) && tried.is_empty() && set.len() > 1 {
        return Ok(draw.from(Among::All, set.len(), random, key));
    }
    draw.carefully(random, key)
}

struct Draw<'a> {
    config: &'a Config,
    set: &'a EndpointSet,
    now: Time,
    tried: &'a Tried,
}

impl Draw<'_> {
    #[cold]
    fn carefully(&self, random: u64, key: u64) -> Result<Pick, Why> {
        let endpoints = self.set.len();
        let count = self.set.count(self.now);
        let healthy = count.available;
        if endpoints == 0 {
            return Err(Why::NoEndpoint { endpoints: 0, ejected: 0, down: 0 });
        }
        let panics = f64::from(healthy) < f64::from(self.config.panic) * endpoints as f64;
        if !panics && healthy == 0 {
            return Err(Why::NoEndpoint { endpoints: endpoints as u32, ejected: count.ejected, down: count.down });
        }
        let (fresh, any) =
            if panics { (Among::Untried, Among::All) } else { (Among::AvailableUntried, Among::Available) };
        let size = |among| (0..endpoints).filter(|at| self.may(among, *at)).count();
        let (mut among, mut many) = (fresh, size(fresh));
        if many == 0 {
            (among, many) = (any, size(any));
        }
        let mut pick = self.from(among, many, random, key);
        if panics {
            let threshold = Share(self.config.panic);
            pick.why = Why::PickedPanic { healthy, endpoints: endpoints as u32, threshold };
        } else if many == 1 {
            let tried = size(Among::Available) - size(Among::AvailableUntried);
            pick.why = Why::PickedOnly { available: healthy, endpoints: endpoints as u32, tried: tried as u32 };
        }
        Ok(pick)
    }

    fn may(&self, among: Among, at: usize) -> bool {
        let endpoint = self.set.get(at);
        match among {
            Among::All => true,
            Among::Untried => !self.tried.has(endpoint.id()),
            Among::Available => endpoint.available(self.now),
            Among::AvailableUntried => endpoint.available(self.now) && !self.tried.has(endpoint.id()),
        }
    }

    /// The `nth` of those that may be drawn.
    fn nth(&self, among: Among, nth: usize) -> usize {
        if among == Among::All {
            return nth;
        }
        let mut all = (0..self.set.len()).filter(|at| self.may(among, *at));
        // Fewer than were counted: another core has taken one out at this moment.
        all.nth(nth).unwrap_or(nth)
    }

    fn from(&self, among: Among, many: usize, random: u64, key: u64) -> Pick {
        match self.config.balancer {
            Balancer::PeakEwma => self.two(among, many, random),
            Balancer::LeastRequest => self.least(among, random),
            Balancer::Turn => self.turn(among),
            Balancer::Ring => self.ring(among, key),
        }
    }

    fn weight(&self, at: usize) -> f64 {
        let least = f64::from(self.config.slow_start_least);
        self.set.weight(at) * self.set.get(at).warmth(self.now, self.config.slow_start, least)
    }

    fn two(&self, among: Among, many: usize, random: u64) -> Pick {
        if many == 1 {
            let at = self.nth(among, 0);
            return Pick { at, why: Why::PickedOnly { available: 1, endpoints: self.set.len() as u32, tried: 0 } };
        }
        // Two that differ: the second is drawn from one less, and steps over the first.
        let first = below(random, many as u64) as usize;
        let second = below(mix(random), many as u64 - 1) as usize;
        let second = second + usize::from(second >= first);
        let (a, b) = (self.nth(among, first), self.nth(among, second));
        let (mut cost_a, mut cost_b) = (self.cost(a), self.cost(b));
        // Of whom nothing is known is as fast as the other.
        if cost_a == 0.0 || cost_b == 0.0 {
            let known = cost_a.max(cost_b);
            (cost_a, cost_b) = if known == 0.0 { (1e6, 1e6) } else { (known, known) };
        }
        let load = |at: usize, cost: f64| cost * f64::from(self.set.get(at).inflight() + 1) / self.weight(at);
        let (load_a, load_b) = (load(a, cost_a), load(b, cost_b));
        // As milliseconds of work, which a reader can compare.
        let shown = |load: f64| Number((load / 1e6) as f32);
        if load_a <= load_b {
            Pick { at: a, why: Why::PickedP2c { first: shown(load_a), second: shown(load_b) } }
        } else {
            Pick { at: b, why: Why::PickedP2c { first: shown(load_b), second: shown(load_a) } }
        }
    }

    fn cost(&self, at: usize) -> f64 {
        self.set.get(at).cost(self.now, self.config.decay)
    }

    /// Begins at a random place, so that equals take turns.
    fn least(&self, among: Among, random: u64) -> Pick {
        let (many, mut best) = (self.set.len(), None);
        let start = below(random, many as u64) as usize;
        let mut next = f64::INFINITY;
        for at in (start..many).chain(0..start).filter(|at| self.may(among, *at)) {
            let load = f64::from(self.set.get(at).inflight() + 1) / self.weight(at);
            match best {
                Some((_, least)) if load >= least => next = next.min(load),
                _ => {
                    next = best.map_or(next, |(_, least)| least);
                    best = Some((at, load));
                }
            }
        }
        let (at, load) = best.unwrap_or((start, 0.0));
        Pick { at, why: Why::PickedLeast { load: Number(load as f32), next: Number(next as f32) } }
    }

    fn turn(&self, among: Among) -> Pick {
        let turns = &self.set.turns;
        let turn = self.set.shared.turn.fetch_add(1, Relaxed) as usize % turns.len();
        // Whoever cannot be taken gives its turn to the next in the list that can.
        let skipped = (0..turns.len()).find(|skip| self.may(among, turns[(turn + skip) % turns.len()] as usize));
        let skipped = skipped.unwrap_or(0);
        let at = turns[(turn + skipped) % turns.len()] as usize;
        Pick { at, why: Why::PickedTurn { turn: turn as u32, skipped: skipped as u32 } }
    }

    fn ring(&self, among: Among, key: u64) -> Pick {
        let ring = &self.set.ring;
        let start = ring.partition_point(|(hash, _)| *hash < key);
        let total = f64::from(self.set.shared.inflight.load(Relaxed)) + 1.0;
        let (mut skipped, mut fallback, mut last) = (0, None, u32::MAX);
        for (_, at) in ring[start..].iter().chain(&ring[..start]) {
            // Points of one endpoint beside each other are one.
            if *at == last {
                continue;
            }
            last = *at;
            if !self.may(among, *at as usize) {
                skipped += 1;
                continue;
            }
            let endpoint = self.set.get(*at as usize);
            let share = self.set.weight(*at as usize) / self.set.weight_sum;
            let bound = (f64::from(self.config.ring_bound) * total * share).ceil() as u32;
            let inflight = endpoint.inflight();
            let pick = Pick { at: *at as usize, why: Why::PickedRing { skipped, inflight, bound } };
            if inflight < bound {
                return pick;
            }
            fallback = fallback.or(Some(pick));
            skipped += 1;
        }
        // All have reached their bounds, which happens while some are out: the key's own, then.
        let bound = total as u32;
        fallback.unwrap_or(Pick { at: 0, why: Why::PickedRing { skipped, inflight: 0, bound } })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        outcome::Outcome,
        random::{Rng, hash},
    };

    const GOOD: Outcome = Outcome::http(200);

    fn set(weights: &[u32]) -> EndpointSet {
        let names: Vec<String> = (0..weights.len()).map(|n| format!("10.0.0.{n}:80")).collect();
        EndpointSet::new(names.iter().map(String::as_str).zip(weights.iter().copied()))
    }

    fn with(balancer: Balancer) -> Config {
        Config { balancer, ..Config::default() }
    }

    fn take(config: &Config, set: &EndpointSet, ms: u64, random: u64, key: u64) -> Pick {
        pick(config, set, Time::from_millis(ms), random, key, &Tried::default()).unwrap()
    }

    /// An upstream in virtual time: calls come `every` µs, and endpoint n answers after `latency[n]` µs. How many each got.
    fn run(config: &Config, set: &EndpointSet, every: u64, calls: usize, latency: &[u64]) -> Vec<usize> {
        let (mut rng, mut got, mut under_way) = (Rng::new(1), vec![0; set.len()], Vec::new());
        for n in 0..calls as u64 {
            let now = n * every;
            under_way.retain(|(end, at): &(u64, usize)| {
                if *end <= now {
                    let latency = Duration::from_micros(latency[*at]);
                    set.get(*at).ended(Time::from_nanos(end * 1000), &GOOD, latency, config.decay);
                }
                *end > now
            });
            let at =
                pick(config, set, Time::from_nanos(now * 1000), rng.draw(), rng.draw(), &Tried::default()).unwrap().at;
            got[at] += 1;
            set.get(at).began();
            under_way.push((now + latency[at], at));
        }
        got
    }

    #[test]
    fn a_slow_endpoint_gets_little() {
        let got = run(&Config::default(), &set(&[1, 1, 1, 1]), 500, 20_000, &[2_000, 2_000, 2_000, 20_000]);
        assert!(got[3] < 1_000 && got[..3].iter().all(|n| *n > 5_000), "{got:?}");
    }

    #[test]
    fn weights_count_for_every_balancer() {
        for balancer in [Balancer::PeakEwma, Balancer::LeastRequest, Balancer::Turn, Balancer::Ring] {
            let got = run(&with(balancer), &set(&[1, 3]), 100, 20_000, &[5_000, 5_000]);
            let share = got[1] as f64 / 20_000.0;
            assert!((0.6..0.85).contains(&share), "{balancer:?} {got:?}");
        }
    }

    #[test]
    fn the_pick_says_both_loads() {
        let set = set(&[1, 1]);
        for (at, ms) in [(0, 10), (1, 30)] {
            set.get(at).began();
            set.get(at).ended(Time::ZERO, &GOOD, Duration::from_millis(ms), Duration::from_secs(10));
        }
        let pick = take(&Config::default(), &set, 0, 5, 0);
        assert_eq!(
            (pick.at, pick.why.to_string().as_str()),
            (0, "of two endpoints drawn at random the one with load 10 was taken, not the one with load 30")
        );
    }

    #[test]
    fn who_is_down_is_not_taken_until_too_few_are_left() {
        for balancer in [Balancer::PeakEwma, Balancer::LeastRequest, Balancer::Turn, Balancer::Ring] {
            let (set, config, mut rng) = (set(&[1; 4]), with(balancer), Rng::new(3));
            set.set_down(Time::ZERO, 0, true);
            set.set_down(Time::ZERO, 1, true);
            for _ in 0..200 {
                assert!(take(&config, &set, 1, rng.draw(), rng.draw()).at >= 2, "{balancer:?}");
            }
            set.set_down(Time::ZERO, 2, true);
            let mut seen = [false; 4];
            for _ in 0..200 {
                let pick = take(&config, &set, 1, rng.draw(), rng.draw());
                assert_eq!(pick.why.code(), "BT-BAL-PANIC");
                seen[pick.at] = true;
            }
            assert_eq!(seen, [true; 4], "{balancer:?}");
            let strict = Config { panic: 0.0, ..config };
            assert_eq!(take(&strict, &set, 1, rng.draw(), 0).at, 3);
            set.set_down(Time::ZERO, 3, true);
            let why = pick(&strict, &set, Time::ZERO, 0, 0, &Tried::default()).unwrap_err();
            assert_eq!(why.to_string(), "none of 4 endpoints can be taken: 0 are ejected, 4 are down");
        }
    }

    #[test]
    fn a_second_attempt_goes_elsewhere_where_there_is_somewhere_else() {
        let (pair, mut rng) = (set(&[1, 1]), Rng::new(9));
        let mut tried = Tried::default();
        tried.add(pair.get(0).id());
        for _ in 0..50 {
            assert_eq!(pick(&Config::default(), &pair, Time::ZERO, rng.draw(), 0, &tried).unwrap().at, 1);
        }
        tried.add(pair.get(1).id());
        assert!(pick(&Config::default(), &pair, Time::ZERO, rng.draw(), 0, &tried).is_ok(), "both were tried");
        assert!(pick(&Config::default(), &set(&[1]), Time::ZERO, 0, 0, &tried).is_ok());
        assert_eq!(pick(&Config::default(), &set(&[]), Time::ZERO, 0, 0, &tried).unwrap_err().code(), "BT-BAL-NONE");
    }

    #[test]
    fn a_key_stays_with_its_endpoint_and_few_keys_move_when_one_goes() {
        let (before, config) = (set(&[1; 10]), with(Balancer::Ring));
        let list: Vec<String> = (0..9).map(|n| format!("10.0.0.{n}:80")).collect();
        let after = before.change(Time::ZERO, list.iter().map(|name| (name.as_str(), 1)));
        let keys: Vec<u64> = (0..2000u32).map(|n| hash(&n.to_le_bytes())).collect();
        let at = |set: &EndpointSet, key| take(&config, set, 0, 0, key).at;
        let moved =
            keys.iter().filter(|key| at(&before, **key) != 9 && at(&before, **key) != at(&after, **key)).count();
        assert_eq!(moved, 0, "only the keys of the one that went have moved");
        let mut shares = [0; 10];
        keys.iter().for_each(|key| shares[at(&before, *key)] += 1);
        assert!(shares.iter().all(|share| (100..=320).contains(share)), "{shares:?}");
    }

    proptest! {
        /// Bounded loads: whatever keys come, no endpoint has more than its bound.
        #[test]
        fn a_hot_key_overloads_nobody(keys in prop::collection::vec(0u64..4, 1..200), many in 2usize..8) {
            let (set, config) = (set(&vec![1; many]), with(Balancer::Ring));
            for (n, key) in keys.into_iter().enumerate() {
                let pick = take(&config, &set, 0, 0, hash(&key.to_le_bytes()));
                set.get(pick.at).began();
                set.shared.inflight.fetch_add(1, Relaxed);
                let bound = (f64::from(config.ring_bound) * (n as f64 + 1.0) / many as f64).ceil() as u32;
                prop_assert!(set.get(pick.at).inflight() <= bound);
            }
        }

        /// No state of the world makes it panic, or take somebody who is out while others are well.
        #[test]
        fn whoever_is_picked_may_be(
            weights in prop::collection::vec(1u32..20, 1..9),
            down in any::<u16>(), tried in any::<u16>(), which in 0usize..4, random: u64, key: u64,
        ) {
            let set = set(&weights);
            let config = with([Balancer::PeakEwma, Balancer::LeastRequest, Balancer::Turn, Balancer::Ring][which]);
            let bit = |word: u16, at: usize| word >> at & 1 == 1;
            (0..set.len()).filter(|at| bit(down, *at)).for_each(|at| set.set_down(Time::ZERO, at, true));
            let mut before = Tried::default();
            (0..set.len()).filter(|at| bit(tried, *at)).take(3).for_each(|at| before.add(set.get(at).id()));
            let pick = pick(&config, &set, Time::from_millis(1), random, key, &before).unwrap();
            let well: Vec<usize> = (0..set.len()).filter(|at| !bit(down, *at)).collect();
            if well.len() * 2 >= set.len() && !well.is_empty() {
                prop_assert!(well.contains(&pick.at));
                if well.iter().any(|at| !before.has(set.get(*at).id())) {
                    prop_assert!(!before.has(set.get(pick.at).id()));
                }
            }
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        let config = Config { ring_bound: 0.5, panic: 2.0, ..Config::default() };
        let fields: Vec<_> = config.wrong("balance").into_iter().map(|invalid| invalid.field).collect();
        assert_eq!(fields, ["balance.panic", "balance.ring_bound"]);
        assert!(Config::default().validate("balance").is_ok());
    }
}
