//! What requests are routed by: one table of routes, their backends, and the endpoints of those.
//!
//! A table never changes; a change of configuration builds the next one and swaps a pointer, so a request that began under
//! the old one ends under it. What is learnt lives on where it still means the same:
//!
//! | stays when | |
//! |---|---|
//! | a route keeps its name | its figures |
//! | a backend keeps its name and its policies | breaker, limits, budget, who waits |
//! | an endpoint keeps its address and how it is spoken to | latency, ejection, figures, connections |
//!
//! Lists of endpoints change by themselves too (DNS, the registry): those are swapped inside their backend.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use buttress_policy::{self as policy, Call, EndpointSet, RoutePolicy, Time, Woken};
use buttress_resources::{
    matcher::{Matcher, Request},
    route as spec,
};
use tokio::sync::oneshot;

use crate::{
    auth::{Gate, source::Sources},
    cluster_rate::Leased,
    config::Endpoint,
    discover::Source,
    metrics::{AuthFigures, EndpointFigures, Golden},
    mirror::Mirror,
    noted::Names,
    parse::RequestHead,
    rules::{self, Condition, Counts, Fault, Key, Limit, Point, Rewrite},
    stale::Stale,
    tls::Connector,
};

/// Where something was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// A file, `the command line`, or a key of the store.
    pub file: String,
    /// From 1 on; 0 where there are no lines.
    pub line: u32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

pub struct Table {
    /// Rises with every table of a process.
    pub generation: u64,
    pub routes: Vec<Arc<Route>>,
    pub matcher: Matcher,
    /// Where its gates have their keys from.
    pub sources: Arc<Sources>,
    /// Fields of requests that records hold.
    pub noted: Names,
}

/// A route as it is carried out.
pub struct Route {
    pub name: Arc<str>,
    pub spec: spec::Route,
    pub place: Place,
    /// Of each of its matches.
    pub match_lines: Vec<u32>,
    pub backends: Vec<Arc<Backend>>,
    /// Conditions under which a backend is taken whatever the weights say, and which.
    pub always: Vec<(Condition, usize)>,
    /// In the order of the backends.
    pub weights: Vec<u64>,
    pub rewrite: Option<Rewrite>,
    /// Who may call; none where everybody may.
    pub gate: Option<Arc<Gate>>,
    pub limits: Vec<Arc<Limit>>,
    pub fault: Option<Fault>,
    /// Index of the backend that answers when the others do not.
    pub fallback: Option<usize>,
    pub priority: spec::Priority,
    /// What a ring balances by.
    pub ring_key: Key,
    /// Every method may be repeated without harm.
    pub idempotent: bool,
    pub mirror: Option<Mirror>,
    /// Answers for when there is none.
    pub stale: Option<Arc<Stale>>,
    pub figures: Arc<RouteFigures>,
}

/// One for each core.
#[derive(Debug)]
pub struct RouteFigures {
    pub golden: Vec<Golden>,
    pub auth: Vec<AuthFigures>,
}

/// A version of a service, with the policies of calls to it.
pub struct Backend {
    pub name: Arc<str>,
    pub policy: RoutePolicy,
    /// What it is, beside its list of endpoints and its share.
    pub identity: spec::Backend,
    /// Somebody holds its breaker.
    pub forced: Option<spec::Force>,
    pub endpoints: ArcSwap<Endpoints>,
    /// TLS to its endpoints; those that ask for it are left out where there is none.
    pub connector: Option<Arc<Connector>>,
    cores: usize,
    waiting: Mutex<HashMap<u64, Waiter>>,
}

/// The endpoints of a backend at one moment.
pub struct Endpoints {
    pub set: EndpointSet,
    /// In the order of the set.
    pub members: Vec<Arc<Member>>,
}

/// One endpoint of one backend.
pub struct Member {
    /// Of this process; never given twice.
    pub id: u64,
    pub endpoint: Endpoint,
    /// Makes TLS, where the endpoint asks for it.
    pub connector: Option<Arc<Connector>>,
    /// One for each core.
    pub figures: Vec<EndpointFigures>,
}

static MEMBERS: AtomicU64 = AtomicU64::new(1);

impl Member {
    pub fn new(endpoint: Endpoint, connector: Option<&Arc<Connector>>, cores: usize) -> Arc<Self> {
        let figures = (0..cores).map(|_| EndpointFigures::default()).collect();
        let connector = connector.filter(|_| endpoint.tls).cloned();
        Arc::new(Self { id: MEMBERS.fetch_add(1, Relaxed), endpoint, connector, figures })
    }
}

enum Waiter {
    Waits(oneshot::Sender<Woken>),
    /// It was woken before it had told where it waits.
    Woken(Woken),
}

impl Table {
    /// Limits of the cluster.
    pub fn leased(&self) -> impl Iterator<Item = &Arc<Leased>> {
        let limits = self.routes.iter().flat_map(|route| &route.limits);
        limits.filter_map(|limit| match &limit.counts {
            Counts::Cluster(leased) => Some(leased),
            _ => None,
        })
    }

    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.routes.iter().flat_map(|route| &route.backends)
    }

    /// The route of a request at a listener, and which of its matches it was; none where the route takes all that is left.
    pub fn find(&self, request: &RequestHead, listener: Option<&str>) -> Option<(&Arc<Route>, Option<usize>)> {
        let request = Request { listener, ..rules::looked_at(request) };
        let found = self.matcher.find(&request)?;
        Some((&self.routes[found.route], found.at))
    }
}

impl Route {
    /// The backend that a request goes to.
    pub fn choose(&self, request: &RequestHead, point: Point) -> usize {
        if let Some((_, at)) = self.always.iter().find(|(condition, _)| condition.holds(request)) {
            return *at;
        }
        if self.backends.len() == 1 {
            return 0;
        }
        point.among(&self.weights).unwrap_or(0)
    }
}

impl RouteFigures {
    pub fn new(cores: usize) -> Arc<Self> {
        let golden = (0..cores).map(|_| Golden::default()).collect();
        Arc::new(Self { golden, auth: (0..cores).map(|_| AuthFigures::default()).collect() })
    }
}

impl Backend {
    pub fn new(
        name: &str,
        identity: spec::Backend,
        policy: RoutePolicy,
        forced: Option<spec::Force>,
        list: Vec<(Endpoint, u32)>,
        connector: Option<Arc<Connector>>,
        cores: usize,
    ) -> Self {
        let list = reachable(&list, connector.is_some());
        let set = EndpointSet::new(list.iter().map(|(endpoint, weight)| (endpoint.address.as_str(), *weight)));
        let members = in_order(&set, &list, &[], connector.as_ref(), cores);
        Self {
            name: name.into(),
            policy,
            identity,
            forced,
            endpoints: ArcSwap::from_pointee(Endpoints { set, members }),
            connector,
            cores,
            waiting: Mutex::default(),
        }
    }

    /// Where its endpoints come from, unless they are written down.
    pub fn source(&self) -> Option<Source> {
        let dns = self.identity.dns.clone().map(Source::Dns);
        dns.or_else(|| self.identity.service.clone().map(Source::Service))
    }

    /// Takes up a list of endpoints. Tells whether it differs from the last one.
    pub fn change(&self, now: Time, list: &[(Endpoint, u32)]) -> bool {
        let list = &reachable(list, self.connector.is_some());
        let old = self.endpoints.load_full();
        let same = old.members.len() == list.len()
            && old.members.iter().enumerate().all(|(at, member)| {
                list[at].0 == member.endpoint && f64::from(list[at].1.clamp(1, 1_000)) == old.set.weight(at)
            });
        if same {
            return false;
        }
        let set = old.set.change(now, list.iter().map(|(endpoint, weight)| (endpoint.address.as_str(), *weight)));
        let members = in_order(&set, list, &old.members, self.connector.as_ref(), self.cores);
        self.endpoints.store(Arc::new(Endpoints { set, members }));
        true
    }

    /// Tells a call that it has a place, or has none any more.
    pub fn wake(&self, woken: Woken) {
        let (Woken::In(ticket) | Woken::Out(ticket, _)) = woken;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.remove(&ticket.0) {
            Some(Waiter::Waits(waiter)) => drop(waiter.send(woken)),
            _ => drop(waiting.insert(ticket.0, Waiter::Woken(woken))),
        }
    }

    /// Waits to be woken; where that has happened already, the word.
    pub fn wait(&self, ticket: u64) -> Result<oneshot::Receiver<Woken>, Woken> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Waiter::Woken(woken)) = waiting.remove(&ticket) {
            return Err(woken);
        }
        let (waiter, woken) = oneshot::channel();
        waiting.insert(ticket, Waiter::Waits(waiter));
        Ok(woken)
    }

    /// A call waits no longer. An error is why; else it has got a place meanwhile.
    ///
    /// A ticket leaves the queue under the queue's lock and together with its word, so where it is not found there, the word has been
    /// sent: that it has a place, or that it was to go, which it need not have heard yet.
    pub fn give_up(
        &self,
        now: Time,
        ticket: policy::Ticket,
        heard: Option<&mut oneshot::Receiver<Woken>>,
    ) -> Result<(), policy::Why> {
        let id = ticket.0;
        let gave_up = self.policy.give_up(now, ticket);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        match (gave_up, heard.map(oneshot::Receiver::try_recv)) {
            (policy::GaveUp::Left(why), _) | (_, Some(Ok(Woken::Out(_, why)))) => Err(why),
            (policy::GaveUp::HasPlace, _) => Ok(()),
        }
    }

    pub fn done(&self, now: Time, call: Call) {
        self.policy.done(now, call, |woken| self.wake(woken));
    }
}

/// Without those that ask for TLS where nothing was said about TLS: they are never asked in clear.
fn reachable(list: &[(Endpoint, u32)], tls: bool) -> Vec<(Endpoint, u32)> {
    list.iter().filter(|(endpoint, _)| tls || !endpoint.tls).cloned().collect()
}

/// Members for a set. Who was there before keeps its figures and its connections.
fn in_order(
    set: &EndpointSet,
    list: &[(Endpoint, u32)],
    old: &[Arc<Member>],
    connector: Option<&Arc<Connector>>,
    cores: usize,
) -> Vec<Arc<Member>> {
    set.iter()
        .map(|known| {
            let (endpoint, _) =
                list.iter().find(|(endpoint, _)| endpoint.address == known.name()).expect("it is of the list");
            let kept = old.iter().find(|member| member.endpoint == *endpoint);
            kept.cloned().unwrap_or_else(|| Member::new(endpoint.clone(), connector, cores))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use buttress_policy::{Admit, RouteConfig, bulkhead};

    use super::*;

    /// One that holds the only place, and one that waits for it until 100 ms.
    fn queued() -> (Backend, Call, policy::Ticket, Call, oneshot::Receiver<Woken>) {
        let bulkhead = bulkhead::Config { concurrent: 1, queue: 1 };
        let policy = RoutePolicy::new(RouteConfig { bulkhead, ..RouteConfig::default() }).unwrap();
        let backend = Backend::new("b", spec::Backend::default(), policy, None, Vec::new(), None, 1);
        let Admit::Go(first, _) = backend.policy.admit(Time::ZERO, &policy::Request::default()) else {
            panic!("it is idle")
        };
        let Admit::Wait { call, ticket, .. } = backend.policy.admit(Time::ZERO, &policy::Request::default()) else {
            panic!("its place is taken")
        };
        let heard = backend.wait(ticket.0).unwrap();
        (backend, first, ticket, call, heard)
    }

    #[test]
    fn a_call_that_was_told_to_go_and_has_not_heard_it_gives_no_place_back() {
        let (backend, first, ticket, _second, mut heard) = queued();
        let late = Time::from_millis(500);
        backend.done(late, first);
        assert_eq!(backend.policy.view(late).inflight, 0);
        let why = backend.give_up(late, ticket, Some(&mut heard)).unwrap_err();
        assert_eq!(why.code(), "BT-BLK-WAITED");
    }

    #[test]
    fn a_call_that_has_a_place_and_has_not_heard_it_gives_it_back() {
        let (backend, first, ticket, second, mut heard) = queued();
        let soon = Time::from_millis(5);
        backend.done(soon, first);
        assert!(backend.give_up(soon, ticket, Some(&mut heard)).is_ok());
        backend.done(soon, second);
        assert_eq!((backend.policy.view(soon).inflight, backend.waiting.lock().unwrap().len()), (0, 0));
    }
}
