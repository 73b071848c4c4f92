//! All policies of one route, in the order in which a call meets them. A gateway and a tower layer both drive this.
//!
//! **Why.** The policies are known; what goes wrong is how they are put together: retries outside the budget, a breaker that counts
//! what was never sent, a place that is not given back. So the order is fixed here, and a driver only asks and tells.
//!
//! ```text
//!  admit ──▶ deadline ▸ breaker (look) ▸ rate ▸ rate of the key ▸ bulkhead, adaptive limit, priority
//!    │ Go                    │ Wait: woken by another call's done, or give_up      │ Refuse
//!    ▼                       ▼ resume
//!  pick ──▶ attempt_started: deadline ▸ breaker (permit) ▸ throttle
//!                │ └──▶ (the driver sends) ──▶ attempt_ended ──▶ next ──▶ Retry: after a pause, pick
//!                │                                                        │ GiveUp: the last answer stands
//!                └ hedge: after a while, hedge_now, pick, attempt_started ▼
//!                                                                       done  (always, once, for every call that was let in)
//! ```
//!
//! | a driver must | else |
//! |---|---|
//! | end every started attempt, with `Outcome::cancelled()` where the client left | the endpoint looks busy for ever, a probe's place stays taken |
//! | call [`done`](RoutePolicy::done) once for every call that was let in, and wake whom it names | a place is lost |
//! | forget a call that waited and was told [`Woken::Out`] or [`GaveUp::Left`]: it never had a place; also where it gives up and the word is still unread | one place too many |
//! | call [`give_up`](RoutePolicy::give_up) when a ticket's time is over or its client left, and [`done`](RoutePolicy::done) where that says `HasPlace` | the same |
//! | call [`next`](RoutePolicy::next) only when no attempt of the call runs any more | a retry beside a hedge |
//!
//! Guards that do so when they are dropped belong to the driver, which has the clock.
//!
//! **Cores.** One `RoutePolicy` and one [`EndpointSet`] serve all cores of a process; every method takes `&self`. What each call touches are
//! atomics (no lock is taken while a route is well and has no queue), so a decision costs tens of nanoseconds, and means
//! the process: ten concurrent calls are ten and not ten a core, a breaker that one core opened is open for all, and an explanation shows what
//! counted. A generator of random numbers is each core's own. A set changes by building the next one and swapping a pointer.
//!
//! **First start.** Every policy's own. **Recovery.** Nothing is kept.

use std::{sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use crate::{
    adaptive::{self, Limiter},
    balance::{self, Pick, Tried},
    breaker::{self, Breaker, Permit},
    budget::{self, Budget, Standing},
    bulkhead::{self, Bulkhead, Entered, GaveUp, Ticket, Woken},
    config::{Checks, Invalid, Validate},
    deadline,
    decision::Why,
    endpoint::{Endpoint, EndpointSet},
    hedge,
    latency::Latencies,
    outcome::{Kind, Outcome},
    outlier, rate, retry,
    shed::{self, Priority},
    throttle::{self, Throttle},
    time::Time,
};

/// A limit for each key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeyRate {
    pub rate: rate::Config,
    /// Keys that there is room for; 16 bytes each.
    pub keys: u32,
}

/// Everything that a route can be told. The default is safe in front of anything: nothing is sent twice that may have had an effect, and
/// nothing is limited but by what the upstream bears.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteConfig {
    pub deadline: deadline::Config,
    pub retry: retry::Config,
    pub budget: budget::Config,
    pub hedge: Option<hedge::Config>,
    pub breaker: Option<breaker::Config>,
    pub bulkhead: bulkhead::Config,
    pub limiter: Option<adaptive::Config>,
    pub shed: shed::Config,
    pub outlier: Option<outlier::Config>,
    pub balance: balance::Config,
    pub rate: Option<rate::Config>,
    pub key_rate: Option<KeyRate>,
    pub throttle: Option<throttle::Config>,
}

impl Default for RouteConfig {
    fn default() -> Self {
        Self {
            deadline: deadline::Config::default(),
            retry: retry::Config::default(),
            budget: budget::Config::default(),
            hedge: None,
            breaker: Some(breaker::Config::default()),
            bulkhead: bulkhead::Config::default(),
            limiter: Some(adaptive::Config::default()),
            shed: shed::Config::default(),
            outlier: Some(outlier::Config::default()),
            balance: balance::Config::default(),
            rate: None,
            key_rate: None,
            throttle: None,
        }
    }
}

impl Validate for RouteConfig {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let at = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        let mut keys = Checks::default();
        if let Some(limit) = self.key_rate {
            let fits = (1..=10_000_000).contains(&limit.keys);
            keys.must(fits, &at("key_rate.keys"), limit.keys, "from 1 to 10000000");
        }
        [
            self.deadline.wrong(&at("deadline")),
            self.retry.wrong(&at("retry")),
            self.budget.wrong(&at("budget")),
            self.hedge.wrong(&at("hedge")),
            self.breaker.wrong(&at("breaker")),
            self.bulkhead.wrong(&at("bulkhead")),
            self.limiter.wrong(&at("limiter")),
            self.shed.wrong(&at("shed")),
            self.outlier.wrong(&at("outlier")),
            self.balance.wrong(&at("balance")),
            self.rate.wrong(&at("rate")),
            self.key_rate.map(|limit| limit.rate).wrong(&at("key_rate")),
            keys.all(),
            self.throttle.wrong(&at("throttle")),
        ]
        .concat()
    }
}

impl RouteConfig {
    /// The most requests that one call can make of its upstream.
    pub fn attempts_max(&self) -> u32 {
        u32::from(self.retry.attempts) + self.hedge.map_or(0, |hedge| u32::from(hedge.extra))
    }

    /// Requests per call when everything fails for long: what the budgets let through.
    pub fn amplification(&self) -> f64 {
        let retries = if self.retry.attempts > 1 { f64::from(self.budget.share) } else { 0.0 };
        let hedges = self.hedge.map_or(0.0, |hedge| f64::from(hedge.share));
        (1.0 + retries + hedges).min(f64::from(self.attempts_max()))
    }
}

/// What is known of a request when it comes.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What the caller's deadline leaves, where it sent one.
    pub left: Option<Duration>,
    /// Which attempt of its caller it is; 1 for the first, and where nothing is said.
    pub attempt: u32,
    /// By its method, an `Idempotency-Key`, or the route: [`retry::idempotent`].
    pub idempotent: bool,
    /// The body is kept for another attempt, or there is none.
    pub replayable: bool,
    pub priority: Priority,
    /// Hash of what the route limits by; 0 where it limits by nothing.
    pub rate_key: u64,
    /// Hash of what the ring balances by.
    pub ring_key: u64,
    /// Tokens of rate limits.
    pub cost: u32,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            left: None,
            attempt: 1,
            idempotent: false,
            replayable: true,
            priority: Priority::NORMAL,
            rate_key: 0,
            ring_key: 0,
            cost: 1,
        }
    }
}

/// A call that was let in, or waits for it. It ends with [`RoutePolicy::done`].
#[must_use = "a call that was let in has a place, which must be given back"]
#[derive(Debug)]
pub struct Call {
    request: Request,
    began: Time,
    deadline: Time,
    made: u8,
    hedges: u8,
    paused: Duration,
    tried: Tried,
}

impl Call {
    pub const fn began(&self) -> Time {
        self.began
    }

    pub const fn deadline(&self) -> Time {
        self.deadline
    }

    /// What to send on as the time that is left; nothing where there is no deadline.
    pub fn left(&self, now: Time) -> Option<Duration> {
        (self.deadline != Time::NEVER).then(|| self.deadline.since(now))
    }

    /// Attempts started so far, hedges among them.
    pub const fn attempts(&self) -> u8 {
        self.made
    }

    /// What to send on as `buttress-attempt`: a retry stays one for every hop behind.
    pub fn attempt_to_send(&self) -> u32 {
        self.request.attempt.max(self.made.into())
    }

    /// Whether the failure that is answered must be marked as one that was retried here, so that hops before do not retry it again.
    pub const fn mark_retried(&self) -> bool {
        self.made > 1
    }
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Admit {
    Go(Call, Why),
    /// It waits until it is woken, at most until the moment given.
    Wait {
        call: Call,
        ticket: Ticket,
        until: Time,
        why: Why,
    },
    Refuse(Why),
}

/// An attempt under way.
#[must_use = "an attempt must be ended, also when it is cancelled"]
#[derive(Debug)]
pub struct Attempt {
    endpoint: Arc<Endpoint>,
    permit: Option<Permit>,
    began: Time,
    inflight: u32,
    /// How long it may take.
    pub timeout: Duration,
    /// 1 for the first of its call.
    pub number: u8,
    /// A hedge is not a sample of how fast the upstream is: its twin had begun before.
    hedged: bool,
}

impl Attempt {
    pub const fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    pub const fn began(&self) -> Time {
        self.began
    }
}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    Retry { after: Duration, why: Why },
    GiveUp(Why),
}

/// Something that changed beside the call, for the log and metrics.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    Breaker(breaker::State),
    Endpoint(&'a Endpoint, Why),
}

/// The state of every policy at one moment, for records and pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    pub breaker: Option<breaker::View>,
    pub budget: Standing,
    pub hedges: Option<Standing>,
    pub inflight: u32,
    pub queued: u32,
    /// The limit of concurrency that counts now.
    pub limit: u32,
    pub limiter: Option<adaptive::View>,
    pub rate_left: Option<u32>,
    /// The fastest tenth of calls, and the slowest part that hedges look at.
    pub fast: Option<Duration>,
    pub slow: Option<Duration>,
}

#[derive(Debug)]
pub struct RoutePolicy {
    config: RouteConfig,
    latencies: Latencies,
    budget: Budget,
    hedges: Option<(hedge::Config, Budget)>,
    breaker: Option<Breaker>,
    bulkhead: Bulkhead,
    limiter: Option<Limiter>,
    rate: Option<rate::Limit>,
    key_rate: Option<rate::Keyed>,
    throttle: Option<Throttle>,
}

/// Latencies are those of this time.
const LATENCY_WINDOW: Duration = Duration::from_secs(10);
/// The fastest part of calls, which a deadline must leave time for.
const FASTEST: f64 = 0.1;
const LATENCY_CALLS_MIN: u32 = 100;

impl RoutePolicy {
    /// # Errors
    /// Everything that is wrong with the settings.
    pub fn new(config: RouteConfig) -> Result<Self, Vec<Invalid>> {
        config.validate("")?;
        let (calls_min, quantile) =
            config.hedge.map_or((LATENCY_CALLS_MIN, 0.95), |hedge| (hedge.samples_min, hedge.quantile));
        Ok(Self {
            latencies: Latencies::new(LATENCY_WINDOW, calls_min, FASTEST, quantile.into()),
            budget: Budget::new(config.budget),
            hedges: config.hedge.map(|hedge| (hedge, hedge.budget())),
            breaker: config.breaker.map(Breaker::new),
            bulkhead: Bulkhead::new(config.bulkhead, config.shed),
            limiter: config.limiter.map(Limiter::new),
            rate: config.rate.map(rate::Limit::new),
            key_rate: config.key_rate.map(|limit| rate::Keyed::new(limit.rate, limit.keys)),
            throttle: config.throttle.map(Throttle::new),
            config,
        })
    }

    pub const fn config(&self) -> &RouteConfig {
        &self.config
    }

    /// For an operator who holds it open or closed.
    pub const fn breaker(&self) -> Option<&Breaker> {
        self.breaker.as_ref()
    }

    /// A request has come.
    pub fn admit(&self, now: Time, request: &Request) -> Admit {
        let deadline = deadline::begin(&self.config.deadline, now, request.left);
        let mut paid = false;
        match self.judge(now, request, deadline, &mut paid) {
            Err(why) => {
                if let (Some(rate), true) = (&self.rate, paid) {
                    rate.put_back(request.cost);
                }
                Admit::Refuse(why)
            }
            Ok(entered) => {
                let call = Call {
                    request: *request,
                    began: now,
                    deadline,
                    made: 0,
                    hedges: 0,
                    paused: Duration::ZERO,
                    tried: Tried::default(),
                };
                match entered {
                    Entered::In { inflight, limit } => {
                        let left = deadline.since(now).into();
                        Admit::Go(call, Why::Admitted { left, inflight, limit })
                    }
                    Entered::Queued { ticket, until, why } => Admit::Wait { call, ticket, until, why },
                }
            }
        }
    }

    fn judge(&self, now: Time, request: &Request, deadline: Time, paid: &mut bool) -> Result<Entered, Why> {
        self.may_begin(now, deadline)?;
        if let Some(rate) = &self.rate {
            rate.take(now, request.cost)?;
            *paid = true;
        }
        if let (Some(keyed), true) = (&self.key_rate, request.rate_key != 0) {
            keyed.take(now, request.rate_key, request.cost)?;
        }
        let minimum = self.config.deadline.minimum;
        let asked = bulkhead::Asked { priority: request.priority, deadline, minimum };
        self.bulkhead.enter(now, &asked, self.limit())
    }

    fn may_begin(&self, now: Time, deadline: Time) -> Result<(), Why> {
        deadline::check(&self.config.deadline, now, deadline, self.latencies.lower(now))?;
        self.breaker.as_ref().map_or(Ok(()), |breaker| breaker.look(now))
    }

    /// The limiter's numbers, read without a lock.
    fn limit(&self) -> Option<adaptive::View> {
        self.limiter.as_ref().map(Limiter::view)
    }

    /// A call that waited has its place. Where the answer is an error it must be [`done`](Self::done) like any other.
    ///
    /// # Errors
    /// It may not begin any more.
    pub fn resume(&self, now: Time, call: &Call) -> Result<Why, Why> {
        self.may_begin(now, call.deadline)?;
        let left = call.deadline.since(now).into();
        let limit = self.bulkhead.limit(self.limit());
        Ok(Why::Admitted { left, inflight: self.bulkhead.inflight(), limit })
    }

    /// A call that waits no longer.
    pub fn give_up(&self, now: Time, ticket: Ticket) -> GaveUp {
        self.bulkhead.give_up(now, ticket)
    }

    /// Which endpoint takes the next attempt of the call.
    ///
    /// # Errors
    /// There is none.
    pub fn pick(&self, now: Time, random: u64, set: &EndpointSet, call: &Call) -> Result<Pick, Why> {
        balance::pick(&self.config.balance, set, now, random, call.request.ring_key, &call.tried)
    }

    /// An attempt begins on the endpoint that was picked.
    ///
    /// # Errors
    /// It must not begin; nothing was counted.
    pub fn attempt_started(
        &self,
        now: Time,
        random: u64,
        call: &mut Call,
        set: &EndpointSet,
        at: usize,
    ) -> Result<Attempt, Why> {
        let hedged = call.hedges > 0 && call.made > 0;
        deadline::check(&self.config.deadline, now, call.deadline, None)?;
        let permit = self.breaker.as_ref().map(|breaker| breaker.acquire(now)).transpose()?;
        if let Some(throttle) = &self.throttle
            && let Err(why) = throttle.request(now, random)
        {
            if let (Some(breaker), Some(permit)) = (&self.breaker, permit) {
                breaker.record(now, random, permit, &Outcome::cancelled(), Duration::ZERO);
            }
            return Err(why);
        }
        if call.made == 0 {
            self.budget.request(now);
            if let Some((_, budget)) = &self.hedges {
                budget.request(now);
            }
        }
        let endpoint = Arc::clone(set.get(at));
        endpoint.began();
        set.shared.inflight.fetch_add(1, Relaxed);
        call.made = call.made.saturating_add(1);
        call.tried.add(endpoint.id());
        let last = call.made >= self.config.retry.attempts || !call.request.idempotent;
        Ok(Attempt {
            endpoint,
            permit,
            began: now,
            inflight: self.bulkhead.inflight(),
            timeout: deadline::attempt(&self.config.deadline, now, call.deadline, last),
            number: call.made,
            hedged,
        })
    }

    /// Why the breaker let the attempt through, for a record.
    pub fn explain_permit(&self, now: Time, attempt: &Attempt) -> Option<Why> {
        Some(self.breaker.as_ref()?.explain(now, attempt.permit.as_ref()?))
    }

    /// An attempt has ended. `set` is any set of the route; the newest is best.
    pub fn attempt_ended(
        &self,
        now: Time,
        random: u64,
        set: &EndpointSet,
        attempt: Attempt,
        outcome: &Outcome,
        mut event: impl FnMut(Event<'_>),
    ) {
        let latency = now.since(attempt.began);
        attempt.endpoint.ended(now, outcome, latency, self.config.balance.decay);
        set.shared.inflight.fetch_sub(1, Relaxed);
        if let (Some(breaker), Some(permit)) = (&self.breaker, attempt.permit)
            && let Some(state) = breaker.record(now, random, permit, outcome, latency)
        {
            event(Event::Breaker(state));
        }
        if let Some(outlier) = &self.config.outlier {
            let told = |endpoint: &Endpoint, why| event(Event::Endpoint(endpoint, why));
            outlier::ended(outlier, set, &attempt.endpoint, now, random, outcome, told);
        }
        if outcome.kind == Kind::Answered {
            self.latencies.record(now, latency);
        }
        if let Some(limiter) = &self.limiter
            && !matches!(outcome.kind, Kind::Cancelled | Kind::Unreached | Kind::Reset)
            && !attempt.hedged
        {
            limiter.sample(now, latency, attempt.inflight, outcome.is_drop());
        }
        if let Some(throttle) = &self.throttle
            && outcome.is_accepted()
        {
            throttle.accepted(now);
        }
    }

    /// What follows when the last attempt that ran has ended.
    pub fn next(&self, now: Time, random: u64, call: &mut Call, outcome: &Outcome) -> Next {
        let asked = retry::Asked {
            made: call.made,
            inbound: call.request.attempt,
            idempotent: call.request.idempotent,
            replayable: call.request.replayable,
            deadline: call.deadline,
            minimum: self.config.deadline.minimum,
            paused: call.paused,
        };
        let after = match retry::pause(&self.config.retry, now, random, &asked, outcome) {
            Ok(after) => after,
            Err(why) => return Next::GiveUp(why),
        };
        if let Some(breaker) = &self.breaker
            && let Err(why) = breaker.look(now.plus(after))
        {
            return Next::GiveUp(why);
        }
        match self.budget.take(now) {
            Ok(standing) => {
                call.paused = after;
                let (attempt, attempts) = (u32::from(call.made) + 1, u32::from(self.config.retry.attempts));
                let budget_left = standing.left();
                Next::Retry { after, why: Why::RetryNow { attempt, attempts, after: after.into(), budget_left } }
            }
            Err(Standing { requests, extras, allowed }) => {
                Next::GiveUp(Why::RetryBudget { retries: extras, requests, allowed })
            }
        }
    }

    /// After how long without an answer a second attempt starts; asked when an attempt has begun.
    ///
    /// # Errors
    /// Why there will be none.
    pub fn hedge(&self, now: Time, call: &Call) -> Result<Duration, Why> {
        let Some((config, _)) = &self.hedges else {
            return Err(Why::HedgeOff { attempts: call.made.into() });
        };
        let asked = hedge::Asked {
            hedges: call.hedges,
            repeatable: call.request.idempotent && call.request.replayable && call.request.attempt <= 1,
            attempts: call.made,
            deadline: call.deadline,
        };
        hedge::when(config, &self.latencies, now, &asked)
    }

    /// That time is over, and no answer has come: a second attempt may begin now.
    ///
    /// # Errors
    /// Why not.
    pub fn hedge_now(&self, now: Time, call: &mut Call, waited: Duration) -> Result<Why, Why> {
        let Some((config, budget)) = &self.hedges else {
            return Err(Why::HedgeOff { attempts: call.made.into() });
        };
        if let Some(breaker) = &self.breaker {
            breaker.look(now)?;
        }
        let why = hedge::now(config, budget, now, waited)?;
        call.hedges += 1;
        Ok(why)
    }

    /// The call is over: its place is given back, and those who are named are to be woken.
    pub fn done(&self, now: Time, call: Call, wake: impl FnMut(Woken)) {
        drop(call);
        self.bulkhead.leave(now, self.limit(), wake);
    }

    pub fn view(&self, now: Time) -> View {
        View {
            breaker: self.breaker.as_ref().map(|breaker| breaker.view(now)),
            budget: self.budget.standing(now),
            hedges: self.hedges.as_ref().map(|(_, budget)| budget.standing(now)),
            inflight: self.bulkhead.inflight(),
            queued: self.bulkhead.queued(),
            limit: self.bulkhead.limit(self.limit()),
            limiter: self.limit(),
            rate_left: self.rate.as_ref().map(|rate| rate.left(now)),
            fast: self.latencies.lower(now),
            slow: self.latencies.upper(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Rng;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    fn get() -> Request {
        Request { idempotent: true, ..Request::default() }
    }

    fn go(route: &RoutePolicy, ms: u64, request: &Request) -> Call {
        match route.admit(at(ms), request) {
            Admit::Go(call, _) => call,
            other => panic!("{other:?}"),
        }
    }

    /// One attempt that takes no time, and what follows it.
    fn attempt(route: &RoutePolicy, set: &EndpointSet, call: &mut Call, ms: u64, outcome: Outcome) -> Next {
        let pick = route.pick(at(ms), 0, set, call).unwrap();
        let attempt = route.attempt_started(at(ms), 0, call, set, pick.at).unwrap();
        route.attempt_ended(at(ms), 0, set, attempt, &outcome, |_| {});
        route.next(at(ms), 1 << 62, call, &outcome)
    }

    fn code(next: Next) -> &'static str {
        match next {
            Next::Retry { why, .. } | Next::GiveUp(why) => why.code(),
        }
    }

    #[test]
    fn a_call_is_retried_elsewhere_and_its_place_given_back() {
        let (route, set) = (RoutePolicy::new(RouteConfig::default()).unwrap(), EndpointSet::new([("a", 1), ("b", 1)]));
        let mut call = go(&route, 0, &get());
        assert_eq!(call.left(at(5_000)), Some(10_000 * MS));
        let first = route.pick(at(0), 7, &set, &call).unwrap().at;
        let started = route.attempt_started(at(0), 0, &mut call, &set, first).unwrap();
        assert_eq!((call.attempt_to_send(), call.mark_retried()), (1, false));
        route.attempt_ended(at(3), 0, &set, started, &Outcome::http(503), |_| {});
        let Next::Retry { after, .. } = route.next(at(3), u64::MAX / 2, &mut call, &Outcome::http(503)) else {
            panic!()
        };
        assert!(after < 25 * MS);
        let second = route.pick(at(20), 7, &set, &call).unwrap().at;
        assert_ne!(first, second);
        let started = route.attempt_started(at(20), 0, &mut call, &set, second).unwrap();
        assert_eq!((call.attempt_to_send(), call.mark_retried(), started.number), (2, true, 2));
        route.attempt_ended(at(22), 0, &set, started, &Outcome::http(200), |_| {});
        assert_eq!(code(route.next(at(22), 0, &mut call, &Outcome::http(200))), "BT-RTY-DONE");
        assert_eq!(route.view(at(22)).inflight, 1);
        route.done(at(22), call, |_| panic!("nobody waits"));
        let view = route.view(at(22));
        assert_eq!((view.inflight, view.budget.requests, view.budget.extras), (0, 1, 1));
    }

    #[test]
    fn a_post_is_sent_again_only_when_it_never_arrived() {
        let (route, set) = (RoutePolicy::new(RouteConfig::default()).unwrap(), EndpointSet::new([("a", 1), ("b", 1)]));
        let mut call = go(&route, 0, &Request::default());
        assert_eq!(code(attempt(&route, &set, &mut call, 0, Outcome::unreached())), "BT-RTY-GO");
        assert_eq!(code(attempt(&route, &set, &mut call, 1, Outcome::reset())), "BT-RTY-EFFECT");
        route.done(at(1), call, |_| {});
    }

    /// MISSION: 2 s; 50 % of 20 calls open it for 30 s; 10 concurrent calls; 0.5 s to 10 s, 5 attempts.
    #[test]
    fn the_figures_of_the_mission_are_valid_settings() {
        let config = RouteConfig {
            deadline: deadline::Config { total: Some(2_000 * MS), ..Default::default() },
            breaker: Some(breaker::Config {
                window: breaker::Window::Calls(20),
                open_for: 30_000 * MS,
                open_for_max: 30_000 * MS,
                ..Default::default()
            }),
            bulkhead: bulkhead::Config { concurrent: 10, queue: 0 },
            retry: retry::Config { attempts: 5, base: 500 * MS, cap: 10_000 * MS, ..Default::default() },
            ..Default::default()
        };
        let (route, set) = (RoutePolicy::new(config).unwrap(), EndpointSet::new([("inventory", 1)]));
        let calls: Vec<Call> = (0..10).map(|_| go(&route, 0, &get())).collect();
        let Admit::Refuse(why) = route.admit(at(0), &get()) else { panic!("ten are the most") };
        assert_eq!(why.code(), "BT-BLK-FULL");
        calls.into_iter().for_each(|call| route.done(at(0), call, |_| {}));
        for n in 0..20 {
            let mut call = go(&route, n, &Request::default());
            attempt(&route, &set, &mut call, n, Outcome::http(500));
            route.done(at(n), call, |_| {});
        }
        let Admit::Refuse(why) = route.admit(at(100), &get()) else { panic!("twenty of twenty failed") };
        assert_eq!(why.code(), "BT-BRK-OPEN");
    }

    #[test]
    fn a_retry_that_the_breaker_would_refuse_is_not_made() {
        let breaker = breaker::Config { consecutive: 1, ..Default::default() };
        let config = RouteConfig { breaker: Some(breaker), ..Default::default() };
        let (route, set) = (RoutePolicy::new(config).unwrap(), EndpointSet::new([("a", 1)]));
        let mut call = go(&route, 0, &get());
        assert_eq!(code(attempt(&route, &set, &mut call, 0, Outcome::http(503))), "BT-BRK-CONSECUTIVE");
        assert_eq!(route.budget.standing(at(0)).extras, 0, "and costs nothing of the budget");
        route.done(at(0), call, |_| {});
    }

    #[test]
    fn whoever_waits_is_woken_and_looks_again() {
        let config = RouteConfig { bulkhead: bulkhead::Config { concurrent: 1, queue: 2 }, ..Default::default() };
        let route = RoutePolicy::new(config).unwrap();
        let first = go(&route, 0, &get());
        let hurried = Request { left: Some(50 * MS), ..get() };
        let Admit::Wait { call, ticket, until, why } = route.admit(at(0), &hurried) else { panic!() };
        assert_eq!((until, why.code()), (at(49), "BT-BLK-QUEUED"));
        let mut woken = Vec::new();
        route.done(at(20), first, |one| woken.push(one));
        assert_eq!(woken, [Woken::In(ticket)]);
        assert!(route.resume(at(20), &call).is_ok());
        assert_eq!(route.resume(at(50), &call).unwrap_err().code(), "BT-DLN-PAST");
        route.done(at(50), call, |_| {});
        assert_eq!(route.view(at(50)).inflight, 0);
    }

    #[test]
    fn a_token_is_given_back_when_another_policy_refuses() {
        let config = RouteConfig {
            rate: Some(rate::Config { per_second: 1.0, burst: 5 }),
            key_rate: Some(KeyRate { rate: rate::Config { per_second: 1.0, burst: 2 }, keys: 100 }),
            bulkhead: bulkhead::Config { concurrent: 1, queue: 0 },
            ..Default::default()
        };
        let route = RoutePolicy::new(config).unwrap();
        let call = go(&route, 0, &get());
        assert!(matches!(route.admit(at(0), &get()), Admit::Refuse(Why::BulkheadFull { .. })));
        assert_eq!(route.view(at(0)).rate_left, Some(4));
        route.done(at(0), call, |_| {});
        let keyed = Request { rate_key: 77, ..get() };
        for _ in 0..2 {
            route.done(at(0), go(&route, 0, &keyed), |_| {});
        }
        let Admit::Refuse(why) = route.admit(at(0), &keyed) else { panic!() };
        assert_eq!((why.code(), route.view(at(0)).rate_left), ("BT-RAT-LIMIT", Some(2)));
    }

    #[test]
    fn a_slow_call_is_hedged_within_its_budget_and_a_retry_is_not() {
        let config = RouteConfig { hedge: Some(hedge::Config::default()), ..Default::default() };
        let (route, set) = (RoutePolicy::new(config).unwrap(), EndpointSet::new([("a", 1), ("b", 1)]));
        let mut rng = Rng::new(5);
        for n in 0..200 {
            let mut call = go(&route, n, &get());
            let pick = route.pick(at(n), rng.draw(), &set, &call).unwrap();
            let attempt = route.attempt_started(at(n), 0, &mut call, &set, pick.at).unwrap();
            route.attempt_ended(at(n + 10), 0, &set, attempt, &Outcome::http(200), |_| {});
            route.done(at(n + 10), call, |_| {});
        }
        let mut call = go(&route, 300, &get());
        let first = route.pick(at(300), rng.draw(), &set, &call).unwrap().at;
        let slow = route.attempt_started(at(300), 0, &mut call, &set, first).unwrap();
        let after = route.hedge(at(300), &call).unwrap();
        assert!((10 * MS..13 * MS).contains(&after), "{after:?}");
        let later = at(300).plus(after);
        assert_eq!(route.hedge_now(later, &mut call, after).unwrap().code(), "BT-HDG-GO");
        let second = route.pick(later, rng.draw(), &set, &call).unwrap().at;
        assert_ne!(first, second);
        let fast = route.attempt_started(later, 0, &mut call, &set, second).unwrap();
        assert_eq!(route.hedge(later, &call).unwrap_err().code(), "BT-HDG-ATTEMPTS");
        route.attempt_ended(at(320), 0, &set, fast, &Outcome::http(200), |_| {});
        route.attempt_ended(at(320), 0, &set, slow, &Outcome::cancelled(), |_| {});
        route.done(at(320), call, |_| {});
        assert_eq!((set.get(0).inflight(), set.get(1).inflight(), route.view(at(320)).inflight), (0, 0, 0));
        let retried = go(&route, 321, &Request { attempt: 2, ..get() });
        assert_eq!(route.hedge(at(321), &retried).unwrap_err().code(), "BT-HDG-EFFECT");
        route.done(at(321), retried, |_| {});
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let mut config = RouteConfig::default();
        config.retry.attempts = 0;
        config.breaker = Some(breaker::Config { failure_rate: 2.0, ..Default::default() });
        config.key_rate = Some(KeyRate { rate: rate::Config { per_second: 0.0, burst: 1 }, keys: 0 });
        let wrong = RoutePolicy::new(config).unwrap_err();
        let fields: Vec<_> = wrong.iter().map(|wrong| wrong.field.as_str()).collect();
        assert_eq!(fields, ["retry.attempts", "breaker.failure_rate", "key_rate.per_second", "key_rate.keys"]);
    }

    #[test]
    fn amplification_is_what_the_budgets_let_through() {
        let mut config = RouteConfig::default();
        assert!((config.amplification() - 1.2).abs() < 1e-6);
        config.hedge = Some(hedge::Config::default());
        assert!((config.amplification() - 1.25).abs() < 1e-6);
        assert_eq!(config.attempts_max(), 4);
        config.retry.attempts = 1;
        config.hedge = None;
        assert!((config.amplification() - 1.0).abs() < 1e-6);
    }

    /// Shared by all cores of a process.
    #[test]
    fn it_can_be_shared() {
        fn shared<T: Send + Sync>() {}
        shared::<RoutePolicy>();
        shared::<EndpointSet>();
    }
}
