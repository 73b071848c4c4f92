//! One set of policies, with what a driver needs beside them: a clock, random numbers, whom to wake, and whom to tell.

use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use buttress_policy::{self as policy, Call, GaveUp, Outcome, RouteConfig, RoutePolicy, Time, View, Why, Woken};
use http::{HeaderName, request::Parts};
use tokio::sync::oneshot;

use crate::{
    clock::{Clock, Numbers},
    record::Record,
};

/// The policies of calls to one thing: breaker, budget, limits, and who waits. Cheap to clone; every clone is the same set, so
/// ten concurrent calls are ten, whoever makes them.
///
/// ```
/// # use buttress_tower::{Policy, RouteConfig, policy::retry};
/// # use std::time::Duration;
/// let config = RouteConfig {
///     retry: retry::Config { attempts: 4, base: Duration::from_millis(10), ..Default::default() },
///     ..RouteConfig::default()
/// };
/// let policy = Policy::builder(config).on_decision(|record| eprintln!("{record}")).build()?;
/// assert_eq!(policy.view().inflight, 0);
/// # Ok::<(), buttress_tower::Invalid>(())
/// ```
#[derive(Clone)]
pub struct Policy(Arc<Inner>);

struct Inner {
    route: RoutePolicy,
    clock: Clock,
    numbers: Numbers,
    waiting: Mutex<HashMap<u64, Waiter>>,
    hooks: Hooks,
}

type Describe = dyn Fn(&Parts, &mut policy::Request) + Send + Sync;
type Classify = dyn Fn(&(dyn StdError + 'static)) -> Option<Outcome> + Send + Sync;
type OnDecision = dyn Fn(&Record) + Send + Sync;
type OnEvent = dyn Fn(&policy::Event<'_>) + Send + Sync;

#[derive(Default)]
pub(crate) struct Hooks {
    pub idempotent: bool,
    pub priority_header: Option<HeaderName>,
    pub describe: Option<Box<Describe>>,
    pub classify: Option<Box<Classify>>,
    pub on_decision: Option<Box<OnDecision>>,
    pub on_event: Option<Box<OnEvent>>,
    #[cfg(feature = "cluster")]
    pub cluster: Vec<crate::cluster::ClusterLimit>,
}

impl Hooks {
    /// Burns a token of each limit of the cluster. What the first ones gave when a later one has none is spent, as in the proxy.
    pub fn cluster_limits(&self) -> Result<(), Why> {
        #[cfg(feature = "cluster")]
        for limit in &self.cluster {
            limit.take()?;
        }
        Ok(())
    }
}

enum Waiter {
    Waits(oneshot::Sender<Woken>),
    /// It was woken before it had told where it waits.
    Woken(Woken),
}

/// Everything that is wrong with the settings, so that it is mended in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<policy::Invalid>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join("; "))
    }
}

impl StdError for Invalid {}

impl Policy {
    /// # Errors
    /// Everything that is wrong with the settings.
    pub fn new(config: RouteConfig) -> Result<Self, Invalid> {
        Self::builder(config).build()
    }

    pub fn builder(config: RouteConfig) -> Builder {
        Builder { config, seed: None, hooks: Hooks::default() }
    }

    /// Every policy's state now, for a page or a metric.
    pub fn view(&self) -> View {
        self.0.route.view(self.now())
    }

    pub fn config(&self) -> &RouteConfig {
        self.0.route.config()
    }

    /// The breaker, for an operator who holds it open or closed.
    pub fn breaker(&self) -> Option<&policy::breaker::Breaker> {
        self.0.route.breaker()
    }

    pub(crate) fn route(&self) -> &RoutePolicy {
        &self.0.route
    }

    pub(crate) fn hooks(&self) -> &Hooks {
        &self.0.hooks
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    pub(crate) fn now(&self) -> Time {
        self.0.clock.now()
    }

    pub(crate) fn draw(&self) -> u64 {
        self.0.numbers.draw()
    }

    /// Who is told of changes beside calls.
    pub(crate) fn event(&self, event: &policy::Event<'_>) {
        if let Some(told) = &self.0.hooks.on_event {
            told(event);
        }
    }

    /// Where the word of a call that waits will come.
    pub(crate) fn wait(&self, ticket: u64) -> oneshot::Receiver<Woken> {
        let (waiter, heard) = oneshot::channel();
        let mut waiting = self.waiting();
        match waiting.remove(&ticket) {
            Some(Waiter::Woken(woken)) => drop(waiter.send(woken)),
            _ => drop(waiting.insert(ticket, Waiter::Waits(waiter))),
        }
        heard
    }

    /// A call waits no longer. An error is why; else it has got a place meanwhile.
    ///
    /// A ticket leaves the queue under the queue's lock and together with its word, so where it is not found any more, the word
    /// is there: whether it has a place, or was told to go.
    pub(crate) fn give_up(&self, ticket: policy::Ticket, heard: &mut oneshot::Receiver<Woken>) -> Result<(), Why> {
        match self.0.route.give_up(self.now(), ticket) {
            GaveUp::Left(why) => {
                self.waiting().remove(&ticket.0);
                Err(why)
            }
            GaveUp::HasPlace => match heard.try_recv() {
                Ok(Woken::Out(_, why)) => Err(why),
                word => {
                    debug_assert!(word.is_ok(), "who left the queue was told");
                    Ok(())
                }
            },
        }
    }

    pub(crate) fn done(&self, call: Call) {
        self.0.route.done(self.now(), call, |woken| self.wake(woken));
    }

    /// Tells a call that it has a place, or has none any more.
    fn wake(&self, woken: Woken) {
        let (Woken::In(ticket) | Woken::Out(ticket, _)) = woken;
        let mut waiting = self.waiting();
        match waiting.remove(&ticket.0) {
            Some(Waiter::Waits(waiter)) => drop(waiter.send(woken)),
            _ => drop(waiting.insert(ticket.0, Waiter::Woken(woken))),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiter>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("config", self.config()).field("view", &self.view()).finish_non_exhaustive()
    }
}

/// What a set of policies is told beside its settings.
#[must_use = "a builder makes nothing until build"]
pub struct Builder {
    config: RouteConfig,
    seed: Option<u64>,
    hooks: Hooks,
}

impl Builder {
    /// Draws the same numbers again; without it the seed is the operating system's.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Every request here may be sent twice without harm, whatever its method. Without it: GET, HEAD, OPTIONS, TRACE, PUT, DELETE, and
    /// whatever carries an `Idempotency-Key`.
    pub fn idempotent(mut self) -> Self {
        self.hooks.idempotent = true;
        self
    }

    /// The field that says how much a request matters: 0 (critical) to 3 (can wait). Believe it only of callers that you trust.
    pub fn priority_header(mut self, name: HeaderName) -> Self {
        self.hooks.priority_header = Some(name);
        self
    }

    /// Has the last word about what the policies are told of a request: priority, keys of limits and rings, cost, whether it may be
    /// repeated.
    pub fn describe(mut self, describe: impl Fn(&Parts, &mut policy::Request) + Send + Sync + 'static) -> Self {
        self.hooks.describe = Some(Box::new(describe));
        self
    }

    /// Tells what an error of the service means, where that is known better than by its chain of sources: a connection that was
    /// refused never delivered the request, anything else may have.
    pub fn classify(
        mut self,
        classify: impl Fn(&(dyn StdError + 'static)) -> Option<Outcome> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.classify = Some(Box::new(classify));
        self
    }

    /// Is told once of every call, when its answer begins, it fails, or whoever made it left. [`Record::plain`] says whether there is
    /// anything to tell. It runs on the call's task, so it must not block.
    pub fn on_decision(mut self, told: impl Fn(&Record) + Send + Sync + 'static) -> Self {
        self.hooks.on_decision = Some(Box::new(told));
        self
    }

    /// Is told when a breaker changes or an endpoint is ejected.
    pub fn on_event(mut self, told: impl Fn(&policy::Event<'_>) + Send + Sync + 'static) -> Self {
        self.hooks.on_event = Some(Box::new(told));
        self
    }

    /// Each call costs a token of this limit, which a whole cluster shares, before anything else is asked. Without one it is refused:
    /// 429 from [`crate::ShedLayer`], [`crate::Error`] for clients, `BT-LSE-EMPTY`. More than once for more limits.
    #[cfg(feature = "cluster")]
    pub fn cluster_limit(mut self, limit: crate::cluster::ClusterLimit) -> Self {
        self.hooks.cluster.push(limit);
        self
    }

    /// # Errors
    /// Everything that is wrong with the settings.
    pub fn build(self) -> Result<Policy, Invalid> {
        let route = RoutePolicy::new(self.config).map_err(Invalid)?;
        Ok(Policy(Arc::new(Inner {
            route,
            clock: Clock::new(),
            numbers: Numbers::new(self.seed),
            waiting: Mutex::default(),
            hooks: self.hooks,
        })))
    }
}
