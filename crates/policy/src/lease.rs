//! Rate limits of a whole cluster: each node leases tokens from one pool and burns them by itself.
//!
//! **Why.** A limit "1,000 a second over all nodes" needs one count, and a consensus write per request would cost more than most
//! requests. So a node takes a slice of tokens from the pool with one write, and decides alone until half of it is used. What
//! that gives away is bounded and written down.
//!
//! This is the pure part: [`Pool`] is what the store keeps and one compare-and-swap changes, [`Lease`] is a node's side. Reading, writing and
//! trying again are the driver's, in the background; a request never waits for it.
//!
//! | node's side | tokens | asked for more |
//! |---|---|---|
//! | tokens left | one less per call | at half a slice, once at a time |
//! | none left | BT-LSE-EMPTY | yes |
//! | granted | + granted, for `ttl` | |
//! | refused by an empty pool | as before | after the time that the pool gives, and a draw |
//! | `ttl` over | what is left is lost | |
//! | store does not answer | as before, until `ttl` is over | after a second |
//! | … for longer than `patience` | `cut_off_per_second` by this node alone, BT-LSE-CUT above that | |
//!
//! **Overshoot.** In any time t the nodes together let pass at most `burst + rate × t + nodes × 1.5 × slice`: the pool grants no more than
//! `burst + rate × t`, and what was granted before and not burnt yet is at most a slice and a half per node. It is also at most
//! `burst + rate × (t + ttl)`, since nothing is burnt later than that. In the long run it is the rate exactly, or less by what expires.
//! Cut off from the store, `cut_off_per_second × nodes cut off` comes on top.
//!
//! **Shares.** When all together want more than the rate, each gets about as much of it as its calls are of all calls, as if one place counted.
//! Nobody knows the others. A node that was refused waits until the pool has what it grants at least (three eighths of a slice), less the
//! time that an answer took, so that its next question is there at that moment; and then a time drawn from an exponential distribution
//! whose mean is the time in which its calls want half a slice ([`Lease::refused`]). Of several such clocks each is the first
//! to ring with a probability in proportion to its calls, and which one rang before says nothing of who is next. Who waits exactly as
//! long as the pool says is always first, or always second. What was weighed (`tests/shares.rs`; two nodes, the share of each in percent, slices of a tenth of a second):
//!
//! | beside the pool's time a node waits | equal calls | one has a longer way | 3 to 1 |
//! |---|---|---|---|
//! | nothing | 50 50 | 98 2 | 50 50 |
//! | up to a slice's time, at random | 50 50 | 52 48 | 49 51 |
//! | half a slice's time where it was the last to be granted, which the store remembers | 50 50 | 52 48 | 51 49 |
//! | by its calls | 50 50 | 56 44 | 74 26 |
//!
//! It stays out of the store: the pool is the 16 bytes that it was, and gateways of an older release share it (they take even a single token, so
//! more than their share: 60 of 100 beside a newer one). What bounds it: calls above sixteen times the limit count as that many; the mean is a second at most, or a
//! slice's time; and a node whose way to the store takes a good part of the time in which a slice fills comes late, and gets less: then make
//! slices larger. (Where one fills in 100 ms, and the ways take 1 and 10 ms, two equal ones get 71 and 29; where in a second, 56 and 44.)
//!
//! **Writes.** One for each grant, and a grant is three eighths of a slice or more: `8/3 × rate / slice` a second for the whole cluster, 27 where a
//! slice is a tenth of a second, however many calls and nodes. Refused questions are reads: a node asks about once between two grants
//! (eight nodes of the simulation 71 times a second together).
//!
//! **Clocks.** The pool's time begins as the wall clock of whoever writes, and never goes back. A clock that is ahead by d gives at most
//! `rate × d` tokens early, once, and no more than a burst. A writer whose clock lags, or was set back, goes on from the latest time that
//! the pool has seen, by a clock of its own that nobody sets ([`Lease::take_from`]): after a jump there and back the pool fills as before,
//! and not only when the wall clock has caught up.
//!
//! **First start.** A node has nothing, asks, and refuses until it is answered; [`Lease::ask`] may be called before the first request. The pool
//! begins full. **Recovery.** Tokens of a node that died are lost with it, never given twice.
//!
//! Source: Doorman (YouTube's distributed client-side limiter) for leases of capacity; SRE book, chapter 21; GCRA as in [`crate::rate`].

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    config::{Checks, Invalid, Validate},
    decision::{Number, Why},
    random::unit,
    rate,
    time::{Time, nanos},
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Of the whole cluster.
    pub per_second: f64,
    pub burst: u32,
    /// Tokens that a node takes at once.
    pub slice: u32,
    /// How long they are good for.
    pub ttl: Duration,
    /// How long a store may be silent before a node goes on by itself.
    pub patience: Duration,
    /// What a node lets pass while it is cut off; 0: nothing.
    pub cut_off_per_second: f64,
}

impl Config {
    /// A limit with slices of a tenth of a second's tokens.
    pub fn new(per_second: f64, burst: u32) -> Self {
        Self {
            per_second,
            burst,
            slice: ((per_second / 10.0) as u32).clamp(1, burst.max(1)),
            ttl: Duration::from_secs(5),
            patience: Duration::from_secs(2),
            cut_off_per_second: 0.0,
        }
    }

    /// Tokens that a pool must have to grant anything but a smaller wish.
    fn least(&self) -> u32 {
        let (part, of) = LEAST;
        u32::try_from((u64::from(self.slice) * part).div_ceil(of)).unwrap_or(u32::MAX)
    }

    const fn pool(&self) -> rate::Config {
        rate::Config { per_second: self.per_second, burst: self.burst }
    }
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut wrong = self.pool().wrong(prefix);
        let mut checks = Checks::default();
        let fits = (1..=self.burst).contains(&self.slice);
        checks.must(fits, &format!("{prefix}.slice"), self.slice, "from 1 to the burst");
        checks.span(&format!("{prefix}.ttl"), self.ttl);
        checks.span(&format!("{prefix}.patience"), self.patience);
        let fits = (0.0..=self.per_second).contains(&self.cut_off_per_second);
        let field = format!("{prefix}.cut_off_per_second");
        checks.must(fits, &field, self.cut_off_per_second, "from 0 to the rate of the cluster");
        wrong.extend(checks.all());
        wrong
    }
}

/// What the store keeps of a limit: 16 bytes under one key, changed by compare-and-swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// As in [`crate::rate`], in nanoseconds of the wall clock.
    pub tat: u64,
    /// The latest time that any writer had.
    pub seen: u64,
}

impl Pool {
    /// Takes up to `wanted` tokens at the wall clock `now`; the pool after that is to be written.
    ///
    /// # Errors
    /// It is as good as empty; how long until there is enough to be granted.
    pub fn grant(&mut self, config: &Config, now: Time, wanted: u32) -> Result<u32, Duration> {
        self.seen = self.seen.max(now.nanos());
        let token = ((1e9 / config.per_second) as u64).max(1);
        let most = token.saturating_mul(config.burst.into());
        let ahead = self.tat.saturating_sub(self.seen);
        let free = u32::try_from(most.saturating_sub(ahead) / token).unwrap_or(u32::MAX);
        let granted = free.min(wanted).min(config.slice);
        let least = wanted.min(config.least()).max(1);
        if granted < least {
            let until = ahead.saturating_add(token.saturating_mul(least.into()));
            return Err(Duration::from_nanos(until.saturating_sub(most).max(1)));
        }
        self.tat = self.tat.max(self.seen).saturating_add(token.saturating_mul(granted.into()));
        Ok(granted)
    }

    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.tat.to_be_bytes());
        bytes[8..].copy_from_slice(&self.seen.to_be_bytes());
        bytes
    }

    /// Nothing where the bytes are no pool.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (tat, seen) = bytes.split_at_checked(8)?;
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_be_bytes);
        Some(Self { tat: number(tat)?, seen: number(seen)? })
    }
}

/// A node's side, shared by its cores.
#[derive(Debug)]
pub struct Lease {
    config: Config,
    held: AtomicU32,
    until: AtomicU64,
    /// Tokens that calls wanted, whether they were here or not.
    wanted: AtomicU64,
    /// When the store has first not answered since it last did; 0 while it answers.
    silent_since: AtomicU64,
    alone: Option<rate::Limit>,
    asking: Mutex<Asking>,
    /// The pool's time as this node last knew it, in nanoseconds, and when that was.
    latest: Mutex<(u64, Time)>,
}

#[derive(Debug, Default)]
struct Asking {
    under_way: bool,
    /// When that was.
    asked: Time,
    not_before: Time,
    /// How long an answer takes.
    answer: Option<Duration>,
    demand: Demand,
}

/// What calls of late wanted.
#[derive(Debug, Default)]
struct Demand {
    /// Counted from here on, and what the count was; nothing before the first question.
    since: Option<(Time, u64)>,
    per_second: f64,
}

impl Demand {
    /// `wanted` counts on; what came more than `span` ago counts no more, what came before half of it only on average.
    fn counted(&mut self, now: Time, wanted: u64, span: f64) {
        let (since, before) = *self.since.get_or_insert((now, wanted));
        let window = now.since(since).as_secs_f64();
        if window > 0.0 {
            self.per_second = wanted.saturating_sub(before) as f64 / window;
        }
        if window > span {
            let kept = Duration::from_secs_f64(span / 2.0);
            let since = Time::from_nanos(now.nanos().saturating_sub(nanos(kept)));
            self.since = Some((since, wanted.saturating_sub((self.per_second * span / 2.0) as u64)));
        }
    }
}

impl Asking {
    /// An answer that came now, and what is to be expected of the next: the shortest of late, since a way takes no less.
    fn answers_in(&mut self, now: Time) -> Duration {
        let took = now.since(self.asked);
        let known = self.answer.unwrap_or(took);
        let answer = if took < known { took } else { known + (took - known) / 8 };
        self.answer = Some(answer);
        answer
    }
}

/// The part of a slice that a pool must have to grant anything. A half is what gateways of older releases wait for: whoever waits longer
/// than they do would never get anything beside them.
const LEAST: (u64, u64) = (3, 8);
/// How long a node waits after the store did not answer.
const AFTER_SILENCE: Duration = Duration::from_secs(1);
/// On average a refused node asks as often while a slice is called for here. More often, and the ways to the store decide more than the
/// draw; less often, and it is asked too seldom to give all that it has. Twice as often where a pool holds less than two slices, lest it run
/// over.
const ASKS_PER_SLICE: f64 = 2.0;
/// The shortest mean, as a part of the time in which a slice fills: drivers' timers have milliseconds.
const MEAN_PARTS: f64 = 32.0;
/// The longest, and for how long calls count; a slice's time where that is longer, four for the calls.
const SPAN_S: f64 = 1.0;
/// Of the time in which a slice fills, as a guard of the arithmetic.
const FILL_S_MAX: f64 = 3600.0;
/// Of the mean, what is drawn at most: one draw of fifty-five.
const DRAW_MAX: f64 = 4.0;

impl Lease {
    pub fn new(config: Config) -> Self {
        let alone = (config.cut_off_per_second > 0.0).then(|| {
            let per_second = config.cut_off_per_second;
            rate::Limit::new(rate::Config { per_second, burst: (per_second as u32).max(1) })
        });
        Self {
            config,
            held: AtomicU32::new(0),
            until: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            silent_since: AtomicU64::new(0),
            alone,
            asking: Mutex::default(),
            latest: Mutex::new((0, Time::ZERO)),
        }
    }

    /// Takes up to `wanted` tokens from the pool as it was just read; the pool after that is to be written. `now` is of a clock that
    /// nobody sets, `wall` of the one that all nodes share more or less.
    ///
    /// # Errors
    /// It is as good as empty; how long until there is enough to be granted.
    pub fn take_from(&self, pool: &mut Pool, now: Time, wall: Time, wanted: u32) -> Result<u32, Duration> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, at) = *latest;
        // Never faster than time goes by: what is known was written no later than it was read.
        let known = if known == 0 { 0 } else { known.saturating_add(nanos(now.since(at))) };
        let time = known.max(wall.nanos()).max(pool.seen);
        *latest = (time, now);
        pool.grant(&self.config, Time::from_nanos(time), wanted)
    }

    /// Burns `cost` tokens.
    ///
    /// # Errors
    /// There are not enough here.
    pub fn take(&self, now: Time, cost: u32) -> Result<Why, Why> {
        self.wanted.fetch_add(cost.into(), Relaxed);
        if now.nanos() >= self.until.load(Relaxed) {
            self.held.store(0, Relaxed);
        }
        let held = self.held.fetch_update(Relaxed, Relaxed, |held| held.checked_sub(cost));
        match held {
            Ok(had) => Ok(Why::RatePassed { left: had - cost, burst: self.config.slice }),
            Err(held) => {
                let silent = self.silent_since.load(Relaxed);
                let cut_off = silent != 0 && now.since(Time::from_nanos(silent)) >= self.config.patience;
                if !cut_off {
                    let expires_in = Time::from_nanos(self.until.load(Relaxed)).since(now).into();
                    return Err(Why::LeaseEmpty { asked: cost, held, expires_in });
                }
                let per_second = Number(self.config.cut_off_per_second as f32);
                let refused = Why::LeaseCutOff { asked: cost, held, per_second };
                self.alone.as_ref().ok_or(refused)?.take(now, cost).map_err(|_| refused)
            }
        }
    }

    /// How many tokens to ask the pool for at this moment; nothing while an answer is awaited, or there is enough. Whoever
    /// gets a number must tell [`granted`](Self::granted), [`refused`](Self::refused) or [`silent`](Self::silent).
    pub fn ask(&self, now: Time) -> Option<u32> {
        let expired = now.nanos() >= self.until.load(Relaxed);
        if !expired && self.held.load(Relaxed) > self.config.slice / 2 {
            return None;
        }
        let mut asking = self.asking();
        if asking.under_way || now < asking.not_before {
            return None;
        }
        (asking.under_way, asking.asked) = (true, now);
        asking.demand.since.get_or_insert_with(|| (now, self.wanted.load(Relaxed)));
        Some(self.config.slice)
    }

    /// How long until there may be something to [`ask`](Self::ask) for that no call tells of: the tokens end, or the pool
    /// said to come again.
    pub fn ask_again_in(&self, now: Time) -> Duration {
        let not_before = self.asking().not_before;
        if not_before > now {
            return not_before.since(now);
        }
        Time::from_nanos(self.until.load(Relaxed)).since(now)
    }

    /// The pool gave tokens; `asked` is when they were asked for, so that they are not good for longer than the pool thinks.
    pub fn granted(&self, asked: Time, tokens: u32) {
        // What is left of an earlier lease lives on with the new one; it is at most half a slice.
        let until = asked.plus(self.config.ttl).nanos();
        if asked.nanos() >= self.until.swap(until, Relaxed) {
            self.held.store(0, Relaxed);
        }
        self.held.fetch_add(tokens.min(self.config.slice), Relaxed);
        self.silent_since.store(0, Relaxed);
        drop(self.answered(asked, Time::ZERO));
    }

    /// The pool is as good as empty for so long. This node comes again after that and a time drawn with `random`: short where many calls
    /// came here of late, long where few did, so that nodes share by their calls.
    pub fn refused(&self, now: Time, retry_in: Duration, random: u64) {
        self.silent_since.store(0, Relaxed);
        let mut asking = self.answered(now, Time::ZERO);
        let (slice, fill) = (f64::from(self.config.slice), self.fill_s());
        let asks = if self.config.burst / 2 >= self.config.slice { ASKS_PER_SLICE } else { 2.0 * ASKS_PER_SLICE };
        let mean = (slice / (asks * asking.demand.per_second)).clamp(fill / MEAN_PARTS, fill.max(SPAN_S));
        let drawn = mean * (-(1.0 - unit(random)).ln()).min(DRAW_MAX);
        let answer = asking.answers_in(now);
        asking.not_before = now.plus(retry_in.saturating_sub(answer)).plus(Duration::from_secs_f64(drawn));
    }

    /// The store did not answer.
    pub fn silent(&self, now: Time) {
        let _ = self.silent_since.compare_exchange(0, nanos(now.since(Time::ZERO)).max(1), Relaxed, Relaxed);
        drop(self.answered(now, now.plus(AFTER_SILENCE)));
    }

    pub fn held(&self) -> u32 {
        self.held.load(Relaxed)
    }

    /// In which time the pool fills by a slice, in seconds.
    fn fill_s(&self) -> f64 {
        (f64::from(self.config.slice.max(1)) / self.config.per_second).min(FILL_S_MAX)
    }

    fn asking(&self) -> MutexGuard<'_, Asking> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, now: Time, not_before: Time) -> MutexGuard<'_, Asking> {
        let mut asking = self.asking();
        (asking.under_way, asking.not_before) = (false, not_before);
        asking.demand.counted(now, self.wanted.load(Relaxed), SPAN_S.max(4.0 * self.fill_s()));
        asking
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::Rng;

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    proptest! {
        /// The bound of the documentation, for every stretch of time of a random run with clocks that differ.
        #[test]
        fn nodes_together_overshoot_by_no_more_than_is_documented(
            per_second in 1u32..200,
            burst in 5u32..50,
            slice in 1u32..20,
            nodes in 1usize..5,
            steps in prop::collection::vec((0u64..150, 0usize..5, 1u32..3, any::<bool>(), any::<u64>()), 1..300),
        ) {
            // Whole nanoseconds per token, as in the pool.
            let rate = 1e9 / (1e9 / f64::from(per_second)).floor();
            let config = Config { slice: slice.min(burst), ..Config::new(rate, burst) };
            let (mut pool, leases) = (Pool::default(), (0..nodes).map(|_| Lease::new(config)).collect::<Vec<_>>());
            let (mut now, mut passed) = (0, Vec::new());
            for (later, who, cost, dies, random) in steps {
                now += later;
                let lease = &leases[who % nodes];
                if let Some(wanted) = lease.ask(at(now)) {
                    match pool.grant(&config, at(now), wanted) {
                        // An answer that gets lost takes its tokens with it.
                        Ok(_) if dies => lease.silent(at(now)),
                        Ok(tokens) => lease.granted(at(now), tokens),
                        Err(retry_in) => lease.refused(at(now), retry_in, random),
                    }
                }
                if lease.take(at(now), cost).is_ok() {
                    passed.push((now, cost));
                }
                prop_assert!(lease.held() <= config.slice + config.slice / 2);
            }
            for (first, (from, _)) in passed.iter().enumerate() {
                let mut sum = 0;
                for (to, cost) in &passed[first..] {
                    sum += cost;
                    let seconds = (to - from) as f64 / 1e3;
                    let granted = f64::from(burst) + rate * seconds;
                    let held = nodes as f64 * f64::from(config.slice + config.slice / 2);
                    prop_assert!(f64::from(sum) <= granted + held + 1e-3, "{} in {} s", sum, seconds);
                    prop_assert!(f64::from(sum) <= granted + rate * config.ttl.as_secs_f64() + 1e-3);
                }
            }
        }

        #[test]
        fn a_pool_is_read_as_it_was_written(tat: u64, seen: u64) {
            prop_assert_eq!(Pool::from_bytes(&Pool { tat, seen }.to_bytes()), Some(Pool { tat, seen }));
        }
    }

    #[test]
    fn the_whole_rate_is_used_when_there_is_demand() {
        let config = Config::new(100.0, 100);
        let (mut pool, leases) = (Pool::default(), [Lease::new(config), Lease::new(config)]);
        let (mut passed, mut rng) = (0, Rng::new(1));
        for ms in 0..20_000 {
            let lease = &leases[ms as usize % 2];
            if let Some(wanted) = lease.ask(at(ms)) {
                match pool.grant(&config, at(ms), wanted) {
                    Ok(tokens) => lease.granted(at(ms), tokens),
                    Err(retry_in) => lease.refused(at(ms), retry_in, rng.draw()),
                }
            }
            passed += u32::from(lease.take(at(ms), 1).is_ok());
        }
        assert!((2_050..=2_100).contains(&passed), "a burst of 100, and 100 a second for 20 s: {passed}");
    }

    #[test]
    fn a_clock_that_is_ahead_gives_its_tokens_once() {
        let (config, mut pool) = (Config { slice: 10, ..Config::new(10.0, 10) }, Pool::default());
        assert_eq!(pool.grant(&config, at(10_000), 10), Ok(10));
        assert_eq!(pool.grant(&config, at(10_500), 10), Ok(5));
        assert_eq!(pool.grant(&config, at(11_500), 10), Ok(10), "this writer is a second ahead");
        assert!(pool.grant(&config, at(10_600), 10).is_err());
        assert!(pool.grant(&config, at(11_600), 10).is_err(), "until the others have caught up");
        assert_eq!(
            pool.grant(&config, at(11_890), 10),
            Err(Duration::from_millis(10)),
            "one token is not worth a write"
        );
        assert_eq!(pool.grant(&config, at(11_900), 10), Ok(4));
        assert_eq!(Pool::from_bytes(&[0; 15]), None);
    }

    #[test]
    fn a_wall_clock_that_jumps_an_hour_ahead_and_back_gives_one_burst_and_starves_nobody() {
        const HOUR: u64 = 3_600_000;
        let config = Config { slice: 10, ..Config::new(10.0, 10) };
        let (mut pool, leases) = (Pool::default(), [Lease::new(config), Lease::new(config)]);
        // What both nodes get in the second that begins at `from`, with the walls so far ahead.
        let mut second = |from: u64, ahead: [u64; 2]| -> u32 {
            let mut got = 0;
            for ms in (from..from + 1_000).step_by(10) {
                for (lease, ahead) in leases.iter().zip(ahead) {
                    got += lease.take_from(&mut pool, at(ms), at(50 * HOUR + ms + ahead), 1).unwrap_or(0);
                }
            }
            got
        };
        let mut within = |from, ahead, range: std::ops::RangeInclusive<u32>, what: &str| {
            let got = second(from, ahead);
            assert!(range.contains(&got), "{what}: {got}");
        };
        within(0, [0, 0], 18..=20, "the burst, and what came while it was used");
        within(1_000, [0, 0], 9..=11, "the rate");
        within(2_000, [HOUR, 0], 18..=20, "a burst at most, once");
        within(3_000, [HOUR, 0], 9..=11, "one ahead, one behind");
        within(4_000, [0, 0], 9..=11, "set back, and the pool fills as before");
        within(5_000, [HOUR, HOUR], 9..=11, "the same jump again gives nothing");
        // Somebody who was never there before goes on from what the pool has seen.
        let fresh = Lease::new(config);
        let got: u32 = (0..100)
            .map(|step| fresh.take_from(&mut pool, at(step * 10), at(50 * HOUR + 6_000 + step * 10), 1).unwrap_or(0))
            .sum();
        assert!((8..=11).contains(&got), "{got}");
    }

    #[test]
    fn a_node_that_is_cut_off_uses_its_lease_and_then_its_own_share() {
        let config = Config { cut_off_per_second: 2.0, ..Config::new(100.0, 100) };
        let lease = Lease::new(config);
        assert_eq!(lease.take(at(0), 1).unwrap_err().code(), "BT-LSE-EMPTY");
        assert_eq!(lease.ask(at(0)), Some(10));
        assert_eq!(lease.ask(at(0)), None, "one question at a time");
        lease.granted(at(0), 10);
        assert_eq!(lease.ask(at(1)), None);
        assert!((0..5).all(|_| lease.take(at(1_000), 1).is_ok()));
        assert_eq!(lease.ask(at(1_000)), Some(10));
        lease.silent(at(1_000));
        assert_eq!((lease.ask(at(1_999)), lease.ask(at(2_000))), (None, Some(10)));
        lease.silent(at(2_000));
        assert_eq!(lease.take(at(5_000), 1).map_err(|why| why.code()), Ok(Why::RatePassed { left: 1, burst: 2 }));
        assert!(lease.take(at(5_000), 1).is_ok());
        assert_eq!(lease.take(at(5_000), 1).unwrap_err().code(), "BT-LSE-CUT");
        lease.granted(at(6_000), 10);
        assert_eq!(lease.held(), 10, "what was left of the old lease had expired");
    }

    #[test]
    fn who_was_refused_waits_for_the_pool_less_an_answers_way_and_for_a_draw_that_is_shorter_where_more_calls_come() {
        // What a node waits whose pool fills by a slice in 100 ms, and has enough in 40; in microseconds.
        let waits = |calls_per_second: u64, answer_ms: u64, draw: f64| {
            let lease = Lease::new(Config::new(100.0, 100));
            assert_eq!(lease.ask(at(0)), Some(10));
            lease.granted(at(0), 0);
            for _ in 0..calls_per_second {
                let _ = lease.take(at(500), 1);
            }
            assert_eq!(lease.ask(at(1_000 - answer_ms)), Some(10));
            let random = (1.0 - (-draw).exp()) * u64::MAX as f64;
            lease.refused(at(1_000), Duration::from_millis(40), random as u64);
            if lease.ask(at(1_000)).is_some() {
                return 0;
            }
            let waits = lease.ask_again_in(at(1_000));
            assert_eq!(lease.ask(at(1_000).plus(waits - Duration::from_nanos(1))), None);
            assert_eq!(lease.ask(at(1_000).plus(waits)), Some(10));
            (waits.as_secs_f64() * 1e6).round() as u64
        };
        assert_eq!(waits(100, 0, 0.0), 40_000, "the least that is drawn is nothing");
        assert_eq!(waits(100, 30, 0.0), 10_000, "what is asked then is answered in time");
        assert_eq!(waits(100, 70, 0.0), 0);
        // The mean is 50 ms for 100 calls a second.
        assert_eq!([100, 200, 400].map(|calls| waits(calls, 0, 1.0)), [90_000, 65_000, 52_500]);
        assert_eq!(
            [1_600, 16_000].map(|calls| waits(calls, 0, 1.0)),
            [43_125, 43_125],
            "from sixteen times the limit on"
        );
        assert_eq!([0, 1].map(|calls| waits(calls, 0, 1.0)), [1_040_000, 1_040_000], "a second at most");
        assert_eq!((waits(100, 0, 4.0), waits(100, 0, 20.0)), (240_000, 240_000), "four times the mean at most");
    }

    #[test]
    fn calls_of_long_ago_count_no_more() {
        let (mut demand, mut wanted) = (Demand::default(), 0);
        for second in 0..10 {
            wanted += 1_000;
            demand.counted(at(second * 1_000), wanted, 1.0);
        }
        assert_eq!(demand.per_second, 1_000.0);
        demand.counted(at(3_600_000), wanted, 1.0);
        assert!(demand.per_second < 1.0);
        for step in 1..=10 {
            wanted += 50;
            demand.counted(at(3_600_000 + step * 100), wanted, 1.0);
        }
        assert!((300.0..=500.0).contains(&demand.per_second), "{}", demand.per_second);
    }

    #[test]
    fn wrong_settings_are_named() {
        let config = Config { slice: 0, cut_off_per_second: 500.0, ..Config::new(100.0, 100) };
        let fields: Vec<_> = config.wrong("cluster_rate").into_iter().map(|wrong| wrong.field).collect();
        assert_eq!(fields, ["cluster_rate.slice", "cluster_rate.cut_off_per_second"]);
        assert!(Config::new(1000.0, 100).validate("cluster_rate").is_ok());
    }
}
