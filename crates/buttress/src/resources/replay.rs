//! Records of a proxy, judged again by other routes, in virtual time.
//!
//! Every request comes when it came, is matched by the gateway's own matcher, and driven through the policies of its
//! backend as a gateway drives them. What came of an attempt is taken from the record: its endpoint, how long it took,
//! how it ended. Where a record does not say it (another attempt than those that were made, another endpoint, more
//! patience than there was), the request's fate is unknown, and counted as that.
//!
//! | | |
//! |---|---|
//! | exact | matching by host, path, method, listener, and by fields that the record holds; the backend that weights choose, by the point that was drawn then; retries, their budget, breaker and ejection over what is recorded; what an attempt shorter than the recorded one would have been |
//! | estimate | arrivals between samples; so also concurrency, queues, rate limits, and a breaker's share of failures |
//! | not replayed | credentials, faults on purpose, mirrors, answers of a fallback that are fixed or old |
//!
//! **Fields.** A record holds those by which the table of its time decided, and no credentials. Where these routes ask for
//! another one, the request stays with the route that took it, if that may still be, and the report names the field; else nobody
//! knows.
//!
//! **Samples.** A success that is kept stands for [`SAMPLE`](buttress_gateway::record::SAMPLE) requests. All of them are
//! played, spread evenly until the next sample, and not denser than samples came on the whole: two cores may keep theirs
//! in the same moment. Where there is one sample only, nobody knows how fast they came; it is played once, and counted
//! with its weight.
//!
//! **Begin.** Policies begin as after a start: what they knew before the oldest record is not in the records.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap, HashMap},
    time::Duration,
};

use buttress_core::{Code, Error};
use buttress_gateway::{
    compile::{endpoint_of, policies},
    rules::{Key, Point},
};
use buttress_policy::{
    Admit, Attempt, Call, EndpointSet, GaveUp, Next, Outcome, Priority, Request, Rng, RoutePolicy, Ticket, Time, Why,
    Woken, breaker, hash, outcome::Kind, rate, retry,
};
use buttress_resources::{
    matcher::{self, Fields, Found, Matcher, Miss, Pattern},
    route::{self as spec, Level, OneOrMany, Route, Switch},
};

use super::past::{Field, Past};

/// Keys of a limit for each caller.
const KEYS: u32 = 100_000;
/// Ids that are told of a code.
const EXAMPLES: usize = 3;
/// A timer does not fire to the microsecond.
const SLACK: Duration = Duration::from_millis(5);
/// The same arithmetic each time.
const SEED: u64 = 1;

/// What would have become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Answered,
    /// It was sent, and its last attempt failed.
    Failed,
    /// A policy did not let it through.
    Refused,
    NoRoute,
    /// The record does not say.
    Unknown,
}

impl Fate {
    pub const ALL: [Fate; 5] = [Fate::Answered, Fate::Failed, Fate::Refused, Fate::NoRoute, Fate::Unknown];

    pub const fn word(self) -> &'static str {
        match self {
            Fate::Answered => "answered",
            Fate::Failed => "failed",
            Fate::Refused => "refused",
            Fate::NoRoute => "no route",
            Fate::Unknown => "unknown",
        }
    }
}

/// How often, and who.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub requests: u64,
    pub examples: Vec<String>,
}

/// The requests that one route took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub answered: u64,
    pub failed: u64,
    pub retries: u64,
    /// Failures of then, by code.
    pub codes: BTreeMap<String, Told>,
    pub fates: BTreeMap<Fate, u64>,
    pub retries_now: u64,
    /// Of all fates: those that another route would have taken.
    pub other_route: u64,
    /// Requests of the same route that went to a backend, by its name: then, and now.
    pub backends: BTreeMap<String, (u64, u64)>,
    /// What is told of fates that are no answer: a code, or why nobody knows.
    pub why: BTreeMap<(Fate, String), Told>,
}

impl Row {
    pub fn of(&self, fate: Fate) -> u64 {
        self.fates.get(&fate).copied().unwrap_or(0)
    }

    pub fn fails(&self) -> u64 {
        self.of(Fate::Failed) + self.of(Fate::Refused) + self.of(Fate::NoRoute)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// By the route that took them then; empty: none did.
    pub rows: BTreeMap<String, Row>,
    pub records: u64,
    pub samples: u64,
    /// From the first request to the last one's begin.
    pub span: Duration,
    /// What has to be known with the figures: a sentence, and how many requests it is about.
    pub notes: BTreeMap<String, u64>,
}

impl Report {
    pub fn failed(&self) -> u64 {
        self.rows.values().map(|row| row.failed).sum()
    }

    pub fn fails(&self) -> u64 {
        self.rows.values().map(Row::fails).sum()
    }
}

const PATH_CUT: &str = "the path is longer than a record holds: matched by what there is of it";
const CREDENTIALS: &str = "the route asks for credentials, which records do not hold: taken to be judged as then";
const LIMIT_BY: &str = "a rate is limited by what these records do not hold; that limit is left out";
const LIMIT_CLUSTER: &str = "a rate of the cluster is taken as if this proxy had all of it";
const ONE_SAMPLE: &str = "a single sample of successes, or all in one moment: played once, and counted with its weight";
const FAULTS: &str = "faults on purpose are not replayed";
const FALLBACKS: &str =
    "the route has a fixed or an old answer to give: those who get it count as failed, then and now";
const HEDGED: &str = "another attempt was sent beside the first; hedges are played as they were recorded";
const SPLIT: &str = "the record does not say which number was drawn: taken to stay with the backend that it went to, whatever the weights say now";
const WHEN: &str = "a backend's `when` asks for a field that the record does not hold: taken not to hold";

/// The fields of a record; of what it does not hold, all that is asked for is taken to be there, or not to be.
struct Held<'p> {
    past: &'p Past,
    unknown: bool,
}

impl Fields for Held<'_> {
    fn any(&self, name: &str, fits: impl Fn(&[u8]) -> bool) -> bool {
        match self.past.fields.get(name) {
            Some(Field::Known(values)) => values.iter().any(|value| fits(value.as_bytes())),
            Some(Field::Withheld) | None => self.unknown,
        }
    }
}

fn request<'p>(past: &'p Past, fields: &'p Held<'p>) -> matcher::Request<'p, Held<'p>> {
    let (host, path, method) = (past.host.as_bytes(), past.path.as_bytes(), past.method.as_bytes());
    matcher::Request { host, path, method, fields, listener: past.listener.as_deref() }
}

/// Says why a field of a record cannot be looked at.
fn lacks(past: &Past, name: &str) -> String {
    match past.fields.get(name) {
        Some(_) => format!("a match asks for the field \"{name}\", which is a credential or too long for a record"),
        None => format!(
            "a match asks for the field \"{name}\", which the record does not hold: it has those by which a route of then decided"
        ),
    }
}

enum Counts {
    One(rate::Limit),
    Each(Key, Box<rate::Keyed>),
}

struct Backend {
    name: String,
    when: Option<spec::Match>,
    weight: u64,
    policy: RoutePolicy,
    set: EndpointSet,
    /// How long its attempts took in the mean; for those whose end nobody knows.
    usual: Duration,
    hedges: bool,
    waiting: HashMap<u64, usize>,
}

struct Candidate<'r> {
    name: &'r str,
    spec: &'r Route,
    backends: Vec<Backend>,
    limits: Vec<Counts>,
}

enum Event {
    /// A request of this record; so many more follow it, one after each gap.
    Comes {
        record: usize,
        more: u64,
        gap: u64,
    },
    Ends(usize),
    Again(usize),
    /// It has waited for as long as it may.
    Over {
        route: usize,
        backend: usize,
        ticket: u64,
    },
}

/// When something happens; what was made first goes first.
struct Due {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// A request on its way.
struct Flight {
    record: usize,
    weight: u64,
    route: usize,
    backend: usize,
    call: Option<Call>,
    /// Attempts begun.
    begun: usize,
    /// The one under way, and how it will end; nothing where nobody knows.
    running: Option<(Attempt, Option<Outcome>)>,
    /// Why nobody knows.
    doubt: &'static str,
    /// How the last one ended.
    last: Option<Outcome>,
}

struct Replay<'r> {
    past: &'r [Past],
    routes: Vec<Candidate<'r>>,
    rng: Rng,
    events: BinaryHeap<Reverse<Due>>,
    events_made: u64,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    report: Report,
}

/// # Errors
/// `ROUTES_INVALID` with what a gateway would refuse.
pub fn replay(routes: &[(&str, &Route)], past: &[Past]) -> Result<Report, Error> {
    let matcher = Matcher::new(routes.iter().map(|(_, route)| *route)).map_err(|flaws| {
        let told: Vec<String> =
            flaws.iter().map(|(at, flaw)| format!("route \"{}\": {}", routes[*at].0, flaw.says)).collect();
        Error::new(Code::ROUTES_INVALID, told.join("\n"))
    })?;
    let candidates = routes.iter().map(|(name, route)| Candidate::new(name, route, past)).collect::<Result<_, _>>()?;
    let mut replay = Replay {
        past,
        routes: candidates,
        rng: Rng::new(SEED),
        events: BinaryHeap::new(),
        events_made: 0,
        flights: Vec::new(),
        free: Vec::new(),
        report: Report::default(),
    };
    replay.arrivals();
    while let Some(Reverse(Due { at, event, .. })) = replay.events.pop() {
        let now = Time::from_nanos(at);
        match event {
            Event::Comes { record, more, gap } => {
                if more > 0 {
                    replay.at(at + gap, Event::Comes { record, more: more - 1, gap });
                }
                let alone = past[record].weight > 1 && gap == 0;
                let weight = if alone { past[record].weight } else { 1 };
                replay.comes(now, &matcher, record, weight);
            }
            Event::Ends(flight) => replay.ended(now, flight),
            Event::Again(flight) => replay.attempt(now, flight),
            Event::Over { route, backend, ticket } => replay.over(now, route, backend, ticket),
        }
    }
    Ok(replay.report)
}

impl<'r> Candidate<'r> {
    fn new(name: &'r str, route: &'r Route, past: &[Past]) -> Result<Self, Error> {
        let refused = |says: String| {
            Error::new(Code::ROUTES_INVALID, format!("route \"{name}\": {says}"))
                .hint("buttress route lint -f FILE says more")
        };
        let config = policies(&route.policies).map_err(|(field, says)| refused(format!("{field}: {says}")))?;
        let forced = route.policies.breaker.as_ref().and_then(Switch::on).and_then(|breaker| breaker.force);
        let mut backends = Vec::new();
        for (at, backend) in route.to.iter().enumerate() {
            let own = backend.name.clone().unwrap_or_else(|| (at + 1).to_string());
            let policy = RoutePolicy::new(config)
                .map_err(|all| refused(all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
            if let (Some(force), Some(breaker)) = (forced, policy.breaker()) {
                breaker.force(Some(match force {
                    spec::Force::Open => breaker::State::ForcedOpen,
                    spec::Force::Closed => breaker::State::ForcedClosed,
                }));
            }
            let tried = || past.iter().flat_map(|past| past.attempts.iter().map(move |tried| (past, tried)));
            let mut list: Vec<(String, u32)> = Vec::new();
            for endpoint in backend.endpoints.iter().flat_map(OneOrMany::as_slice) {
                let parsed = endpoint_of(endpoint.address(), backend).map_err(refused)?;
                list.push((parsed.address, endpoint.weight()));
            }
            if backend.endpoints.is_none() {
                // What DNS or the registry gave is what was asked then.
                let asked = tried().filter(|(past, tried)| past.route == name && tried.backend == own);
                list.extend(asked.map(|(_, tried)| (tried.endpoint.clone(), 1)));
                list.sort_unstable();
                list.dedup();
            }
            if list.is_empty() {
                // Somebody is behind the name, and nobody knows who.
                list.push((backend.dns.clone().or_else(|| backend.service.clone()).unwrap_or_default(), 1));
            }
            let (mut sum, mut count) = (Duration::ZERO, 0);
            for (_, tried) in tried().filter(|(_, tried)| list.iter().any(|(known, _)| *known == tried.endpoint)) {
                (sum, count) = (sum + tried.took, count + 1);
            }
            backends.push(Backend {
                name: own,
                when: backend.when.clone(),
                weight: u64::from(backend.weight.unwrap_or(1)),
                policy,
                set: EndpointSet::new(list.iter().map(|(name, weight)| (name.as_str(), *weight))),
                usual: sum.checked_div(count).unwrap_or(Duration::ZERO),
                hedges: config.hedge.is_some(),
                waiting: HashMap::new(),
            });
        }
        let limits = route.rate.iter().map(|limit| {
            let burst = limit.burst.unwrap_or_else(|| limit.per_second.ceil().clamp(1.0, f64::from(u32::MAX)) as u32);
            let config = rate::Config { per_second: limit.per_second, burst };
            use buttress_policy::Validate as _;
            config.validate("rate").map_err(|all| refused(all[0].to_string()))?;
            Ok(match limit.by.as_deref().map(Key::parse) {
                None => Counts::One(rate::Limit::new(config)),
                Some(Ok(key)) => Counts::Each(key, Box::new(rate::Keyed::new(config, KEYS))),
                Some(Err(says)) => return Err(refused(says)),
            })
        });
        let limits = limits.collect::<Result<_, Error>>()?;
        Ok(Self { name, spec: route, backends, limits })
    }

    /// The backend that a request goes to, as a gateway chooses it; and what has to be known with it.
    fn choose(&self, past: &Past, random: u64) -> (usize, Option<&'static str>) {
        let mut note = None;
        for (at, backend) in self.backends.iter().enumerate() {
            let Some(Ok(when)) = backend.when.as_ref().map(Pattern::read) else { continue };
            let holds = |unknown| when.holds(&request(past, &Held { past, unknown }));
            match (holds(false), holds(true)) {
                (true, _) => return (at, note),
                (false, true) if backend.name == past.backend && self.name == past.route => return (at, Some(WHEN)),
                (false, true) => note = Some(WHEN),
                (false, false) => {}
            }
        }
        if self.backends.len() == 1 {
            return (0, note);
        }
        let point = match past.point {
            Some(point) => point,
            None => {
                let stays = self.backends.iter().position(|backend| backend.name == past.backend);
                if let Some(at) = stays.filter(|at| self.backends[*at].weight > 0 || self.backends[*at].when.is_some())
                {
                    return (at, Some(SPLIT));
                }
                note = Some(SPLIT);
                Point::of(random)
            }
        };
        let weights: Vec<u64> = self.backends.iter().map(|backend| backend.weight).collect();
        (point.among(&weights).unwrap_or(0), note)
    }

    fn asked(&self, past: &Past) -> Request {
        let retry = self.spec.policies.retry.as_ref().and_then(Switch::on);
        let idempotent =
            retry::idempotent(&past.method) || past.keyed || retry.and_then(|retry| retry.idempotent) == Some(true);
        let wanted = self.spec.policies.priority.as_ref();
        let by_itself = match wanted.and_then(|wanted| wanted.default) {
            Some(Level::Critical) => Priority::CRITICAL,
            Some(Level::Normal) | None => Priority::NORMAL,
            Some(Level::Low) => Priority::LOW,
            Some(Level::Bulk) => Priority::BULK,
        };
        let told = wanted.and_then(|wanted| wanted.header.as_deref()).and_then(|name| match past.field(name) {
            Some(value) => value?.trim().parse().ok(),
            None => past.priority,
        });
        let key = self.spec.policies.balance.as_ref().and_then(|balance| balance.key.as_deref());
        Request {
            left: past.left,
            attempt: past.attempt,
            idempotent: idempotent && !past.upgrade,
            replayable: past.replayable,
            priority: told.map_or(by_itself, Priority::new),
            ring_key: key.and_then(|key| Key::parse(key).ok()).and_then(|key| key_of(&key, past)).unwrap_or(0),
            ..Request::default()
        }
    }
}

/// As [`Key::of`]; none where the record does not hold it.
fn key_of(key: &Key, past: &Past) -> Option<u64> {
    let text = match key {
        Key::Nothing => return Some(0),
        Key::Client => &past.client,
        Key::Path => &past.path,
        Key::Caller => past.caller.as_deref()?,
        Key::Header(name) => past.field(name)?.unwrap_or_default(),
    };
    Some(hash(text.as_bytes()).max(1))
}

impl Replay<'_> {
    fn at(&mut self, at: u64, event: Event) {
        self.events_made += 1;
        self.events.push(Reverse(Due { at, number: self.events_made, event }));
    }

    /// Every request when it came, and those that samples stand for.
    fn arrivals(&mut self) {
        let past = self.past;
        let first = past.first().map_or(0, |past| past.began);
        let samples: Vec<u64> = past.iter().filter(|past| past.weight > 1).map(|past| past.began).collect();
        let mean = match samples.len() {
            0 | 1 => 0,
            many => (samples[many - 1] - samples[0]) / (many as u64 - 1),
        };
        let mut later = samples.iter().skip(1);
        self.report.records = past.len() as u64;
        self.report.samples = samples.len() as u64;
        self.report.span = Duration::from_nanos(past.last().map_or(0, |last| last.began - first));
        for (at, one) in past.iter().enumerate() {
            let (mut more, mut gap) = (0, 0);
            if one.weight > 1 {
                let until = later.next().map_or(mean, |next| (next - one.began).max(mean));
                gap = until / one.weight;
                if gap > 0 {
                    more = one.weight - 1;
                } else {
                    self.note(ONE_SAMPLE, one.weight);
                }
            }
            self.at(one.began - first, Event::Comes { record: at, more, gap });
            let row = self.report.rows.entry(one.route.clone()).or_default();
            if one.answered {
                row.answered += one.weight;
            } else {
                row.failed += one.weight;
                tell(row.codes.entry(one.code.clone()).or_default(), one.weight, &one.id);
            }
            row.retries += one.retries();
        }
    }

    fn note(&mut self, says: impl Into<String>, weight: u64) {
        *self.report.notes.entry(says.into()).or_default() += weight;
    }

    fn fate(&mut self, record: usize, weight: u64, route: Option<usize>, fate: Fate, why: &str) {
        let past = &self.past[record];
        let other = route.is_some_and(|at| self.routes[at].name != past.route);
        let row = self.report.rows.get_mut(&past.route).expect("its row was made when it was counted");
        *row.fates.entry(fate).or_default() += weight;
        row.other_route += if other { weight } else { 0 };
        if fate != Fate::Answered {
            tell(row.why.entry((fate, why.to_owned())).or_default(), weight, &past.id);
        }
    }

    /// The route that takes a request; an error where only a field could tell that the record does not hold.
    fn find(&mut self, matcher: &Matcher, record: usize, weight: u64) -> Result<Option<Found>, String> {
        let past = &self.past[record];
        let (bare, all) = (Held { past, unknown: false }, Held { past, unknown: true });
        let (found, with_all) = (matcher.find(&request(past, &bare)), matcher.find(&request(past, &all)));
        let found = if found == with_all {
            found
        } else {
            // Those that hold if what is not known is as they want it.
            let may: Vec<Found> = matcher
                .explain(&request(past, &all))
                .iter()
                .filter(|(_, miss)| miss.is_none())
                .map(|(at, _)| *at)
                .collect();
            let asked = matcher.explain(&request(past, &bare)).into_iter();
            let mut asked = asked.filter_map(|(at, miss)| match miss {
                Some(Miss::Field(name)) if may.contains(&at) => Some(lacks(past, name)),
                _ => None,
            });
            let why = asked.next().unwrap_or_default();
            let named = |at: &&Found| self.routes[at.route].name == past.route;
            let stays =
                found.as_ref().filter(named).or_else(|| may.iter().find(named)).copied().ok_or_else(|| why.clone())?;
            self.note(format!("{why}; taken to stay with the route that took it"), weight);
            Some(stays)
        };
        if past.cut {
            self.note(PATH_CUT, weight);
        }
        Ok(found)
    }

    fn comes(&mut self, now: Time, matcher: &Matcher, record: usize, weight: u64) {
        let past = &self.past[record];
        let found = match self.find(matcher, record, weight) {
            Ok(found) => found,
            Err(why) => return self.fate(record, weight, None, Fate::Unknown, &why),
        };
        let Some(Found { route, .. }) = found else {
            return self.fate(record, weight, None, Fate::NoRoute, Code::ROUTE_NONE.0);
        };
        let to = Some(route);
        let spec = self.routes[route].spec;
        if spec.fault.is_some() {
            self.note(FAULTS, weight);
        }
        if spec.fallback.as_ref().is_some_and(|fallback| fallback.answer.is_some() || fallback.stale.is_some()) {
            self.note(FALLBACKS, weight);
        }
        if past.attempts.iter().any(|tried| tried.hedge) {
            self.note(HEDGED, weight);
        }
        if spec.auth.is_some() {
            let denials = [Code::CALLER_UNKNOWN, Code::CREDENTIALS_REFUSED, Code::CALLER_FORBIDDEN, Code::KEYS_UNREAD]
                .map(|code| code.0);
            if self.routes[route].name != past.route {
                return self.fate(record, weight, to, Fate::Unknown, "another route, which asks for credentials");
            }
            self.note(CREDENTIALS, weight);
            if denials.contains(&past.code.as_str()) {
                return self.fate(record, weight, to, Fate::Refused, &past.code);
            }
        }
        for at in 0..spec.rate.len() {
            if spec.rate[at].cluster.is_some() {
                self.note(LIMIT_CLUSTER, weight);
            }
            let taken = match &self.routes[route].limits[at] {
                Counts::One(limit) => limit.take(now, 1).map(drop),
                Counts::Each(key, limit) => match key_of(key, past) {
                    Some(key) => limit.take(now, key, 1).map(drop),
                    None => {
                        self.note(LIMIT_BY, weight);
                        Ok(())
                    }
                },
            };
            if let Err(why) = taken {
                return self.fate(record, weight, to, Fate::Refused, why.code());
            }
        }
        let candidate = &self.routes[route];
        if candidate.backends.is_empty() {
            return self.fate(record, weight, to, Fate::Answered, "");
        }
        let random = self.rng.draw();
        let (backend, note) = candidate.choose(past, random);
        if let Some(says) = note {
            self.note(says, weight);
        }
        let candidate = &self.routes[route];
        if candidate.backends.len() > 1 && candidate.name == past.route && !past.backend.is_empty() {
            let row = self.report.rows.get_mut(&past.route).expect("its row was made when it was counted");
            row.backends.entry(past.backend.clone()).or_default().0 += weight;
            row.backends.entry(candidate.backends[backend].name.clone()).or_default().1 += weight;
        }
        let asked = candidate.asked(past);
        let flight = |call| Flight {
            record,
            weight,
            route,
            backend,
            call: Some(call),
            begun: 0,
            running: None,
            doubt: "",
            last: None,
        };
        match candidate.backends[backend].policy.admit(now, &asked) {
            Admit::Refuse(why) => self.fallback(record, weight, route, backend, Fate::Refused, why.code()),
            Admit::Go(call, _) => {
                let at = self.fly(flight(call));
                self.attempt(now, at);
            }
            Admit::Wait { call, ticket, until, .. } => {
                let at = self.fly(flight(call));
                self.routes[route].backends[backend].waiting.insert(ticket.0, at);
                self.at(until.nanos(), Event::Over { route, backend, ticket: ticket.0 });
            }
        }
    }

    fn fly(&mut self, flight: Flight) -> usize {
        match self.free.pop() {
            Some(at) => {
                self.flights[at] = Some(flight);
                at
            }
            None => {
                self.flights.push(Some(flight));
                self.flights.len() - 1
            }
        }
    }

    fn take(&mut self, at: usize) -> Flight {
        self.free.push(at);
        self.flights[at].take().expect("a request on its way ends once")
    }

    fn over(&mut self, now: Time, route: usize, backend: usize, ticket: u64) {
        let target = &mut self.routes[route].backends[backend];
        let Some(at) = target.waiting.remove(&ticket) else { return };
        match target.policy.give_up(now, Ticket(ticket)) {
            GaveUp::Left(why) => {
                let flight = self.take(at);
                self.fallback(flight.record, flight.weight, route, backend, Fate::Refused, why.code());
            }
            GaveUp::HasPlace => unreachable!("who is woken is taken from those who wait at once"),
        }
    }

    /// Sends it once more, or for the first time.
    fn attempt(&mut self, now: Time, at: usize) {
        let draws = [self.rng.draw(), self.rng.draw()];
        let flight = self.flights[at].as_mut().expect("it is on its way");
        let target = &self.routes[flight.route].backends[flight.backend];
        let tried = self.past[flight.record].attempts.get(flight.begun);
        let call = flight.call.as_mut().expect("a request on its way has its call");
        let picked = target.policy.pick(now, draws[0], &target.set, call);
        let known = tried.and_then(|tried| {
            let at = target.set.iter().position(|endpoint| endpoint.name() == tried.endpoint)?;
            Some((tried, at))
        });
        let begun = picked.and_then(|pick| {
            // The draw of then, unless nobody would be sent there now.
            let known = known.filter(|(_, at)| target.set.get(*at).available(now) || pick.at == *at);
            let to = known.map_or(pick.at, |(_, at)| at);
            Ok((target.policy.attempt_started(now, draws[1], call, &target.set, to)?, known.map(|(tried, _)| tried)))
        });
        let (attempt, known) = match begun {
            Ok(begun) => begun,
            Err(why) => {
                let fate = if flight.last.is_some() { Fate::Failed } else { Fate::Refused };
                return self.end(now, at, fate, why.code());
            }
        };
        let recorded = self.past[flight.record].attempts.len();
        let (took, outcome, doubt) = match known {
            None if recorded == 0 => (target.usual, None, "it was not sent then, and would be"),
            None if flight.begun >= recorded => (target.usual, None, "it would be sent once more than it was"),
            None => (target.usual, None, "it would go to an endpoint that was not asked"),
            Some(tried) if tried.hedge && !target.hedges => {
                (target.usual, None, "a hedge was the first to answer, and there would be none")
            }
            // As long as it took then, it would not have been waited for.
            Some(tried) if tried.took > attempt.timeout + SLACK => (attempt.timeout, Some(Outcome::timeout()), ""),
            // It was broken off then, and would go on now.
            Some(tried) if tried.ran_out() && attempt.timeout > tried.took + SLACK => {
                (target.usual.max(tried.took), None, "it would be waited for longer than it was")
            }
            Some(tried) => (tried.took, tried.outcome, "the record does not say how the attempt ended"),
        };
        let took = took.min(attempt.timeout);
        flight.doubt = doubt;
        flight.begun += 1;
        let again = flight.begun > 1;
        flight.running = Some((attempt, outcome));
        let (record, weight) = (flight.record, flight.weight);
        if again {
            let row = self.report.rows.get_mut(&self.past[record].route).expect("its row was made when it was counted");
            row.retries_now += weight;
        }
        self.at(now.plus(took).nanos(), Event::Ends(at));
    }

    fn ended(&mut self, now: Time, at: usize) {
        let draws = [self.rng.draw(), self.rng.draw()];
        let flight = self.flights[at].as_mut().expect("it is on its way");
        let target = &self.routes[flight.route].backends[flight.backend];
        let (attempt, outcome) = flight.running.take().expect("an attempt ends once");
        // What nobody knows says nothing to a policy.
        let told = outcome.unwrap_or_else(Outcome::cancelled);
        target.policy.attempt_ended(now, draws[0], &target.set, attempt, &told, |_| {});
        let Some(outcome) = outcome.filter(|outcome| outcome.kind != Kind::Cancelled) else {
            let doubt = if outcome.is_some() { "its client left" } else { flight.doubt };
            return self.end(now, at, Fate::Unknown, doubt);
        };
        if outcome.succeeded() == Some(true) {
            let past = &self.past[flight.record];
            // Its head was good, and what followed broke off, which nothing can be done about.
            let cut = past.code == Code::UPSTREAM_CUT.0 && flight.begun == past.attempts.len();
            let (fate, why) = if cut { (Fate::Failed, Code::UPSTREAM_CUT.0) } else { (Fate::Answered, "") };
            return self.end(now, at, fate, why);
        }
        flight.last = Some(outcome);
        let call = flight.call.as_mut().expect("a request on its way has its call");
        match target.policy.next(now, draws[1], call, &outcome) {
            Next::Retry { after, .. } => self.at(now.plus(after).nanos(), Event::Again(at)),
            Next::GiveUp(why) => self.end(now, at, Fate::Failed, why.code()),
        }
    }

    fn end(&mut self, now: Time, at: usize, fate: Fate, why: &str) {
        let mut flight = self.take(at);
        let call = flight.call.take().expect("a request on its way has its call");
        let (route, backend) = (flight.route, flight.backend);
        let mut woken = Vec::new();
        self.routes[route].backends[backend].policy.done(now, call, |one| woken.push(one));
        self.fallback(flight.record, flight.weight, route, backend, fate, why);
        for one in woken {
            self.woken(now, route, backend, one);
        }
    }

    fn woken(&mut self, now: Time, route: usize, backend: usize, woken: Woken) {
        let target = &mut self.routes[route].backends[backend];
        let (Woken::In(ticket) | Woken::Out(ticket, _)) = &woken;
        let Some(at) = target.waiting.remove(&ticket.0) else { return };
        let resumed: Result<Why, Why> = match woken {
            Woken::Out(_, why) => {
                let flight = self.take(at);
                return self.fallback(flight.record, flight.weight, route, backend, Fate::Refused, why.code());
            }
            Woken::In(_) => {
                let flight = self.flights[at].as_ref().expect("it waits");
                target.policy.resume(now, flight.call.as_ref().expect("it waits with its call"))
            }
        };
        match resumed {
            Ok(_) => self.attempt(now, at),
            Err(why) => self.end(now, at, Fate::Refused, why.code()),
        }
    }

    /// The fate of a request, after the fallback was asked where the route has one.
    fn fallback(&mut self, record: usize, weight: u64, route: usize, backend: usize, fate: Fate, why: &str) {
        let to = Some(route);
        let name = self.routes[route].spec.fallback.as_ref().and_then(|fallback| fallback.backend.as_deref());
        let fails = matches!(fate, Fate::Failed | Fate::Refused);
        let Some(name) = name.filter(|name| fails && *name != self.routes[route].backends[backend].name) else {
            return self.fate(record, weight, to, fate, why);
        };
        let asked = self.past[record].attempts.iter().rev().find(|tried| tried.backend == name);
        match asked.and_then(|tried| tried.outcome).and_then(|outcome| outcome.succeeded()) {
            Some(true) => self.fate(record, weight, to, Fate::Answered, ""),
            Some(false) => self.fate(record, weight, to, fate, why),
            None => self.fate(record, weight, to, Fate::Unknown, "the fallback would be asked, and was not"),
        }
    }
}

fn tell(told: &mut Told, weight: u64, id: &str) {
    told.requests += weight;
    if told.examples.len() < EXAMPLES && !told.examples.iter().any(|known| known == id) {
        told.examples.push(id.to_owned());
    }
}
