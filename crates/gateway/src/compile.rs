//! From routes as users write them to a table that requests are routed by, or to everything that is wrong with them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use buttress_policy::{
    self as policy, RouteConfig, RoutePolicy, Time, Validate, adaptive, balance, breaker, hedge, lease, outlier, rate,
    throttle,
};
use buttress_resources::{
    flaw::Flaw,
    matcher::Matcher,
    route::{self as spec, Switch},
    units::{Part, Span},
};

use crate::{
    auth::{Gate, source::Sources},
    cluster_rate::Leased,
    config::{Endpoint, Protocol},
    discover::{Found, Source},
    mirror::Mirror,
    noted::Names,
    rules::{Condition, Counts, Fault, Key, Limit, Rewrite},
    stale::Stale,
    table::{Backend, Member, Place, Route, RouteFigures, Table},
    tls,
};

/// A route, and where it was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    pub name: String,
    pub spec: spec::Route,
    pub place: Place,
    /// The line of each match; empty where there are no lines.
    pub match_lines: Vec<u32>,
}

/// Something that a route must not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub route: String,
    pub place: Place,
    /// Where in the spec: `to.0.endpoints`.
    pub field: String,
    pub says: String,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: route \"{}\": {}: {}", self.place, self.route, self.field, self.says)
    }
}

/// Keys that a limit for each caller has room for; 16 bytes each.
const KEYS: u32 = 100_000;
/// Routes of one table; more are a mistake, or need another gateway.
pub const ROUTES_MAX: usize = 10_000;
/// A delay on purpose is no longer than this, so that a mistake does not fill the gateway with waiting requests.
const FAULT_DELAY_MAX: Duration = Duration::from_secs(60);

/// Builds the next table. `old` is the one that holds now.
///
/// # Errors
/// Everything that is wrong; the old table stays as it is.
pub fn compile(declared: &[Declared], old: Option<&Table>, world: &World<'_>) -> Result<Compiled, Vec<Wrong>> {
    let (mut wrong, mut changes) = (Vec::new(), Vec::new());
    let sources = old.map_or_else(Arc::default, |old| old.sources.clone());
    let mut routes: Vec<Arc<Route>> = Vec::with_capacity(declared.len());
    let known: HashMap<&str, &Arc<Route>> =
        old.into_iter().flat_map(|table| &table.routes).map(|route| (&*route.name, route)).collect();
    if declared.len() > ROUTES_MAX {
        let says = format!("there are {} routes, {ROUTES_MAX} at most are taken", declared.len());
        return Err(vec![Wrong { route: String::new(), place: Place::default(), field: "routes".into(), says }]);
    }
    for (at, one) in declared.iter().enumerate() {
        if let Some(twin) = declared[..at].iter().find(|other| other.name == one.name) {
            let says = format!("the name stands at {} too", twin.place);
            wrong.push(Wrong { route: one.name.clone(), place: one.place.clone(), field: "name".into(), says });
            continue;
        }
        let mut compiling = Compiling { one, wrong: &mut wrong, changes: &mut changes, sources: &sources, world };
        if let Some(route) = compiling.route(known.get(one.name.as_str()).copied()) {
            routes.push(Arc::new(route));
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let matcher = Matcher::new(declared.iter().map(|one| &one.spec)).map_err(|flaws| {
        let wrong = |(at, flaw): (usize, Flaw)| flawed(&declared[at], flaw);
        flaws.into_iter().map(wrong).collect::<Vec<_>>()
    })?;
    let (generation, noted) = (old.map_or(1, |old| old.generation + 1), Names::of(&routes));
    let table = Table { generation, routes, matcher, sources, noted };
    Ok(Compiled { table, changes })
}

fn flawed(one: &Declared, flaw: Flaw) -> Wrong {
    let field = flaw.at.trim_start_matches('/').replace('/', ".");
    Wrong { route: one.name.clone(), place: one.place.clone(), field, says: format!("{}; {}", flaw.says, flaw.hint) }
}

/// A backend that stays, and its new endpoints.
type Change = (Arc<Backend>, Vec<(Endpoint, u32)>);

/// A table that holds as soon as it is put in place.
pub struct Compiled {
    table: Table,
    changes: Vec<Change>,
}

impl Compiled {
    /// Gives backends that stay their new endpoints, and the table to route by from now on.
    pub fn install(self, now: Time) -> Table {
        for (backend, list) in &self.changes {
            backend.change(now, list);
        }
        self.table.sources.follow();
        self.table
    }
}

/// What a table is built with beside what is written.
pub struct World<'a> {
    /// What DNS and the registry gave.
    pub found: &'a Found,
    pub tls: &'a tls::State,
    pub cores: usize,
}

struct Compiling<'a> {
    one: &'a Declared,
    wrong: &'a mut Vec<Wrong>,
    changes: &'a mut Vec<Change>,
    sources: &'a Sources,
    world: &'a World<'a>,
}

impl Compiling<'_> {
    fn wrong(&mut self, field: impl Into<String>, says: impl Into<String>) {
        let (route, place) = (self.one.name.clone(), self.one.place.clone());
        self.wrong.push(Wrong { route, place, field: field.into(), says: says.into() });
    }

    fn route(&mut self, old: Option<&Arc<Route>>) -> Option<Route> {
        let (before, spec) = (self.wrong.len(), &self.one.spec);
        let config = self.policies();
        if spec.to.is_empty() && spec.fallback.as_ref().is_none_or(|fallback| fallback.answer.is_none()) {
            self.wrong("to", "names no backend; give endpoints, or a fallback.answer");
        }
        let mut backends = Vec::with_capacity(spec.to.len());
        let mut always = Vec::new();
        for (at, backend) in spec.to.iter().enumerate() {
            let name = backend.name.clone().unwrap_or_else(|| (at + 1).to_string());
            if spec.to[..at].iter().any(|other| other.name.is_some() && other.name == backend.name) {
                self.wrong(format!("to.{at}.name"), format!("two backends are called \"{name}\""));
            }
            if let Some(when) = &backend.when
                && let Some(condition) = self.condition(&format!("/to/{at}/when"), when)
            {
                always.push((condition, at));
            }
            let kept = old.and_then(|old| old.backends.iter().find(|known| *known.name == *name));
            if let Some(backend) = self.backend(at, &name, backend, config.as_ref(), kept) {
                backends.push(backend);
            }
        }
        let weight_sum: u64 = spec.to.iter().map(|backend| u64::from(backend.weight.unwrap_or(1))).sum();
        if !spec.to.is_empty() && weight_sum == 0 && always.len() < spec.to.len() {
            self.wrong("to", "every weight is 0, so no backend would be taken");
        }
        let fallback = spec.fallback.as_ref().and_then(|fallback| fallback.backend.as_ref()).and_then(|name| {
            let at = spec.to.iter().position(|backend| backend.name.as_ref() == Some(name));
            if at.is_none() {
                self.wrong("fallback.backend", format!("no backend is called \"{name}\""));
            }
            at
        });
        let (rewrite, limits, fault, mirror) = (self.rewrite(), self.limits(old), self.fault(), self.mirror(old));
        let gate = self.gate(old);
        if self.wrong.len() > before {
            return None;
        }
        let idempotent = self
            .one
            .spec
            .policies
            .retry
            .as_ref()
            .and_then(Switch::on)
            .and_then(|retry| retry.idempotent)
            .unwrap_or(false);
        let weights: Vec<u64> = spec.to.iter().map(|backend| u64::from(backend.weight.unwrap_or(1))).collect();
        Some(Route {
            name: self.one.name.as_str().into(),
            spec: spec.clone(),
            place: self.one.place.clone(),
            match_lines: self.one.match_lines.clone(),
            backends,
            always,
            weights,
            rewrite,
            gate,
            limits,
            fault,
            fallback,
            priority: self.one.spec.policies.priority.clone().unwrap_or_default(),
            ring_key: self.ring_key(),
            idempotent,
            mirror,
            stale: self.stale(old),
            figures: old.map_or_else(|| RouteFigures::new(self.world.cores), |old| old.figures.clone()),
        })
    }

    fn backend(
        &mut self,
        at: usize,
        name: &str,
        spec: &spec::Backend,
        config: Option<&RouteConfig>,
        old: Option<&Arc<Backend>>,
    ) -> Option<Arc<Backend>> {
        let ways = [spec.endpoints.is_some(), spec.dns.is_some(), spec.service.is_some()];
        if ways.iter().filter(|given| **given).count() != 1 {
            self.wrong(format!("to.{at}"), "give one of endpoints, dns and service");
            return None;
        }
        let mut list = Vec::new();
        for (number, endpoint) in spec.endpoints.iter().flat_map(|list| list.as_slice()).enumerate() {
            match endpoint_of(endpoint.address(), spec) {
                Ok(parsed) if list.iter().any(|(other, _): &(Endpoint, u32)| other.address == parsed.address) => {
                    self.wrong(format!("to.{at}.endpoints.{number}"), format!("{} is named twice", parsed.address));
                }
                Ok(parsed) => list.push((parsed, endpoint.weight())),
                Err(says) => self.wrong(format!("to.{at}.endpoints.{number}"), says),
            }
        }
        if let Some(health) = &spec.health
            && let Some(path) = &health.path
            && !(path.starts_with('/') && path.bytes().all(|b| (b'!'..=b'~').contains(&b)))
        {
            self.wrong(format!("to.{at}.health.path"), format!("\"{path}\" is no path; begin it with a slash"));
        }
        if let Some(dns) = &spec.dns
            && let Err(says) = endpoint_of(dns, spec)
        {
            self.wrong(format!("to.{at}.dns"), says);
        }
        if spec.endpoints.as_ref().is_some_and(|list| list.as_slice().is_empty()) {
            self.wrong(format!("to.{at}.endpoints"), "is empty");
        }
        let config = config?;
        let forced = self.one.spec.policies.breaker.as_ref().and_then(Switch::on).and_then(|breaker| breaker.force);
        // What is learnt stays as long as it means the same.
        let identity = spec::Backend { endpoints: None, weight: None, when: None, ..spec.clone() };
        if let Some(old) = old
            && old.policy.config() == config
            && old.forced == forced
            && old.identity == identity
        {
            if spec.endpoints.is_some() {
                self.changes.push((old.clone(), list));
            }
            return Some(old.clone());
        }
        let source = spec.dns.clone().map(Source::Dns).or_else(|| spec.service.clone().map(Source::Service));
        if let Some(known) = source.and_then(|source| self.world.found.get(&source)) {
            list = endpoints_of(spec, known);
        }
        let secure = spec.tls.is_some()
            || spec.protocol == Some(spec::Protocol::Https)
            || spec.dns.as_deref().is_some_and(|dns| dns.starts_with("https://") || dns.starts_with("h2s://"))
            || list.iter().any(|(endpoint, _)| endpoint.tls);
        let connector = match secure.then(|| self.world.tls.connector(spec)).transpose() {
            Ok(connector) => connector,
            Err(error) => {
                self.wrong(format!("to.{at}.tls"), error.message);
                return None;
            }
        };
        let policy = match RoutePolicy::new(*config) {
            Ok(policy) => policy,
            Err(all) => {
                all.iter().for_each(|invalid| self.wrong(&invalid.field, invalid.to_string()));
                return None;
            }
        };
        if let (Some(force), Some(breaker)) = (forced, policy.breaker()) {
            breaker.force(Some(match force {
                spec::Force::Open => breaker::State::ForcedOpen,
                spec::Force::Closed => breaker::State::ForcedClosed,
            }));
        }
        Some(Arc::new(Backend::new(name, identity, policy, forced, list, connector, self.world.cores)))
    }

    fn condition(&mut self, at: &str, spec: &spec::Match) -> Option<Condition> {
        match Condition::read(spec) {
            Ok(condition) => Some(condition),
            Err(flaws) => {
                self.wrong.extend(flaws.into_iter().map(|flaw| flawed(self.one, flaw.below(at))));
                None
            }
        }
    }

    fn rewrite(&mut self) -> Option<Rewrite> {
        let rewrite = self.one.spec.rewrite.as_ref()?;
        let prefix = rewrite.prefix.as_ref().map(|stands| {
            if !stands.starts_with('/') || !stands.bytes().all(|b| (b'!'..=b'~').contains(&b)) {
                self.wrong("rewrite.prefix", format!("\"{stands}\" is no path; begin it with a slash"));
            }
            let lengths = self
                .one
                .spec
                .matches
                .iter()
                .map(|one| one.path.as_ref().map_or(0, |path| path.strip_suffix("/*").unwrap_or(path).len()));
            (lengths.collect(), stands.as_str().into())
        });
        if let Some(host) = &rewrite.host
            && !crate::parse::authority_ok(host.as_bytes())
        {
            self.wrong("rewrite.host", format!("\"{host}\" is not a host"));
        }
        for (name, value) in &rewrite.set {
            let names = http::HeaderName::from_bytes(name.as_bytes());
            if names.is_err() || HELD.contains(&name.to_ascii_lowercase().as_str()) {
                self.wrong(format!("rewrite.set.{name}"), "is no field that can be set here");
            }
            if http::HeaderValue::from_str(value).is_err() {
                self.wrong(format!("rewrite.set.{name}"), "holds bytes that a field must not hold");
            }
        }
        Some(Rewrite {
            prefix,
            host: rewrite.host.as_deref().map(Into::into),
            set: rewrite
                .set
                .iter()
                .map(|(name, value)| (name.to_ascii_lowercase().into(), value.as_str().into()))
                .collect(),
            remove: rewrite.remove.iter().map(|name| name.as_str().into()).collect(),
        })
    }

    /// Who may call. A gate that is as it was stays, and with it what was read and remembered.
    fn gate(&mut self, old: Option<&Arc<Route>>) -> Option<Arc<Gate>> {
        let by_caller = |key: &Option<String>| key.as_deref() == Some("caller");
        let Some(spec) = &self.one.spec.auth else {
            for (at, rate) in self.one.spec.rate.iter().enumerate() {
                if by_caller(&rate.by) {
                    self.wrong(format!("rate.{at}.by"), "needs to know who calls; give auth");
                }
            }
            if self.one.spec.policies.balance.as_ref().is_some_and(|balance| by_caller(&balance.key)) {
                self.wrong("balance.key", "needs to know who calls; give auth");
            }
            return None;
        };
        if let Some(kept) = old.and_then(|old| old.gate.as_ref()).filter(|gate| gate.spec == *spec) {
            return Some(kept.clone());
        }
        match Gate::new(spec, self.sources) {
            Ok(gate) => Some(Arc::new(gate)),
            Err(flaws) => {
                flaws.into_iter().for_each(|(field, says)| self.wrong(field, says));
                None
            }
        }
    }

    fn limits(&mut self, old: Option<&Arc<Route>>) -> Vec<Arc<Limit>> {
        let mut limits = Vec::with_capacity(self.one.spec.rate.len());
        for (at, spec) in self.one.spec.rate.iter().enumerate() {
            if let Some(kept) =
                old.and_then(|old| old.limits.iter().find(|known| known.spec == *spec && known.at == at))
            {
                limits.push(kept.clone());
                continue;
            }
            let burst = spec.burst.unwrap_or_else(|| spec.per_second.ceil().clamp(1.0, f64::from(u32::MAX)) as u32);
            let rate = rate::Config { per_second: spec.per_second, burst };
            let mut invalid = rate.wrong(&format!("rate.{at}"));
            let key = match spec.by.as_deref().map(Key::parse) {
                None => Key::Nothing,
                Some(Ok(key)) => key,
                Some(Err(says)) => {
                    self.wrong(format!("rate.{at}.by"), says);
                    continue;
                }
            };
            let counts = match &spec.cluster {
                Some(_) if key != Key::Nothing => {
                    self.wrong(format!("rate.{at}"), "a limit of the cluster is one for all; leave out by, or cluster");
                    continue;
                }
                Some(cluster) => {
                    let default = lease::Config::new(spec.per_second, burst);
                    let config = lease::Config {
                        slice: cluster.slice.unwrap_or(default.slice),
                        cut_off_per_second: cluster.cut_off_per_second.unwrap_or(0.0),
                        ..default
                    };
                    invalid.extend(config.wrong(&format!("rate.{at}.cluster")));
                    if !invalid.is_empty() {
                        invalid.iter().for_each(|one| self.wrong(&one.field, one.to_string()));
                        continue;
                    }
                    Counts::Cluster(Arc::new(Leased::new(format!("/buttress/limits/{}/{at}", self.one.name), config)))
                }
                None if !invalid.is_empty() => {
                    invalid.iter().for_each(|one| self.wrong(&one.field, one.to_string()));
                    continue;
                }
                None if key == Key::Nothing => Counts::One(rate::Limit::new(rate)),
                None => Counts::Each(Box::new(rate::Keyed::new(rate, KEYS))),
            };
            limits.push(Arc::new(Limit { at, spec: spec.clone(), key, counts }));
        }
        limits
    }

    fn fault(&mut self) -> Option<Fault> {
        let fault = self.one.spec.fault.as_ref()?;
        let share = |part: &Option<Part>| part.map_or(1.0, |part| part.0);
        if fault.delay.is_some_and(|delay| delay.0 > FAULT_DELAY_MAX) {
            self.wrong("fault.delay", "is longer than a minute");
        }
        if fault.abort.is_some_and(|status| !(400..=599).contains(&status)) {
            self.wrong("fault.abort", "is no status of a failure, 400 to 599");
        }
        if fault.delay.is_none() && fault.abort.is_none() {
            self.wrong("fault", "does nothing; give delay or abort");
        }
        Some(Fault {
            when: fault.when.as_ref().and_then(|when| self.condition("/fault/when", when)),
            delay: fault.delay.map(|delay| (delay.0, share(&fault.delay_share))),
            abort: fault.abort.map(|status| (status, share(&fault.abort_share))),
        })
    }

    /// Answers stay as long as they would come from the same backends.
    fn stale(&self, old: Option<&Arc<Route>>) -> Option<Arc<Stale>> {
        let age_max = self.one.spec.fallback.as_ref()?.stale?.0;
        let same = |old: &&Arc<Route>| old.spec.to == self.one.spec.to && old.spec.rewrite == self.one.spec.rewrite;
        let kept = old.filter(same).and_then(|old| old.stale.clone()).filter(|stale| stale.age_max == age_max);
        Some(kept.unwrap_or_else(|| Arc::new(Stale::new(age_max))))
    }

    fn mirror(&mut self, old: Option<&Arc<Route>>) -> Option<Mirror> {
        let spec = self.one.spec.mirror.as_ref()?;
        match Endpoint::parse(&spec.to) {
            Ok(endpoint) if endpoint.tls => {
                self.wrong("mirror.to", "asks for TLS; a mirror is asked in clear");
                None
            }
            Ok(endpoint) => {
                let kept = old.and_then(|old| old.mirror.as_ref()).filter(|mirror| mirror.member.endpoint == endpoint);
                let member =
                    kept.map_or_else(|| Member::new(endpoint, None, self.world.cores), |mirror| mirror.member.clone());
                Some(Mirror { member, share: spec.share.map_or(1.0, |part| part.0) })
            }
            Err(error) => {
                self.wrong("mirror.to", error.message);
                None
            }
        }
    }

    fn ring_key(&self) -> Key {
        let key = self.one.spec.policies.balance.as_ref().and_then(|balance| balance.key.as_deref());
        key.and_then(|key| Key::parse(key).ok()).unwrap_or(Key::Nothing)
    }

    /// The policies of every backend of the route.
    fn policies(&mut self) -> Option<RouteConfig> {
        let config = policies(&self.one.spec.policies);
        let (config, mut invalid) = match config {
            Ok(config) => (config, Vec::new()),
            Err((field, says)) => {
                self.wrong(field, says);
                return None;
            }
        };
        if let Err(all) = config.validate("") {
            invalid = all;
        }
        invalid.iter().for_each(|one| self.wrong(&one.field, one.to_string()));
        invalid.is_empty().then_some(config)
    }
}

/// Fields that the gateway writes itself, whatever a route says.
const HELD: [&str; 9] =
    ["buttress-caller", "connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade", "via"];

/// An endpoint of a backend, with what the backend says about all of its own.
///
/// # Errors
/// What is wrong with it.
pub fn endpoint_of(text: &str, backend: &spec::Backend) -> Result<Endpoint, String> {
    let endpoint = Endpoint::parse(text).map_err(|error| match error.hint {
        Some(hint) => format!("{}; {hint}", error.message),
        None => error.message,
    })?;
    let protocol = match (text.contains("://"), backend.protocol) {
        (false, Some(spec::Protocol::Http)) => Protocol::Http1,
        (false, Some(spec::Protocol::H2c)) => Protocol::Http2,
        _ => endpoint.protocol,
    };
    let tls = endpoint.tls
        || (!text.contains("://")
            && (backend.protocol == Some(spec::Protocol::Https)
                || (backend.protocol.is_none() && backend.tls.is_some())));
    Ok(Endpoint { protocol, tls, ..endpoint })
}

/// Endpoints of addresses that DNS or the registry gave. What is no address is left out.
pub fn endpoints_of(backend: &spec::Backend, addresses: &[String]) -> Vec<(Endpoint, u32)> {
    let scheme = backend.dns.as_deref().and_then(|dns| dns.split_once("://")).map(|(scheme, _)| scheme);
    let parsed = addresses.iter().filter_map(|address| {
        let text = scheme.map_or_else(|| address.clone(), |scheme| format!("{scheme}://{address}"));
        endpoint_of(&text, backend).ok()
    });
    parsed.map(|endpoint| (endpoint, 1)).collect()
}

/// The policies' own settings.
///
/// # Errors
/// A field, and what is wrong with it.
pub fn policies(spec: &spec::Policies) -> Result<RouteConfig, (&'static str, String)> {
    let mut config = RouteConfig::default();
    let set = |to: &mut Duration, from: Option<Span>| {
        if let Some(Span(span)) = from {
            *to = span;
        }
    };
    fn put<T>(to: &mut T, from: Option<T>) {
        if let Some(value) = from {
            *to = value;
        }
    }
    let part = |part: Option<Part>| part.map(|part| part.0);
    match &spec.deadline {
        Some(Switch::Off(_)) => config.deadline.total = None,
        Some(Switch::On(Span(total))) => config.deadline.total = Some(*total),
        None => {}
    }
    config.deadline.attempt = spec.attempt_timeout.map(|span| span.0).or(config.deadline.attempt);
    match &spec.retry {
        Some(Switch::Off(_)) => config.retry.attempts = 1,
        Some(Switch::On(retry)) => {
            put(&mut config.retry.attempts, retry.attempts);
            set(&mut config.retry.base, retry.base);
            set(&mut config.retry.cap, retry.cap);
            put(
                &mut config.retry.jitter,
                retry.jitter.map(|jitter| match jitter {
                    spec::Jitter::Full => policy::retry::Jitter::Full,
                    spec::Jitter::Decorrelated => policy::retry::Jitter::Decorrelated,
                }),
            );
            put(&mut config.retry.body_bytes_max, retry.body_bytes_max);
            put(&mut config.budget.share, part(retry.budget));
            put(&mut config.budget.per_second_min, retry.budget_per_second_min);
            let statuses = retry.statuses.as_ref().map_or(&[][..], |statuses| statuses.as_slice());
            if statuses.len() > policy::retry::STATUSES_MAX {
                return Err(("retry.statuses", format!("{} at most can be named", policy::retry::STATUSES_MAX)));
            }
            config.retry.statuses[..statuses.len()].copy_from_slice(statuses);
        }
        None => {}
    }
    if let Some(Switch::On(wanted)) = &spec.hedge {
        let mut hedge = hedge::Config::default();
        put(&mut hedge.quantile, part(wanted.quantile));
        put(&mut hedge.share, part(wanted.budget));
        set(&mut hedge.delay_min, wanted.delay_min);
        config.hedge = Some(hedge);
    }
    match &spec.breaker {
        Some(Switch::Off(_)) => config.breaker = None,
        Some(Switch::On(wanted)) => config.breaker = Some(breaker_of(wanted)?),
        None => {}
    }
    if let Some(wanted) = &spec.concurrency {
        put(&mut config.bulkhead.concurrent, wanted.limit);
        put(&mut config.bulkhead.queue, wanted.queue);
        let mut limiter = adaptive::Config::default();
        put(&mut limiter.min, wanted.adaptive_min);
        put(&mut limiter.max, wanted.adaptive_max);
        limiter.initial = limiter.initial.clamp(limiter.min, limiter.max.max(limiter.min));
        match wanted.adaptive {
            Some(spec::Adaptive::Off) => config.limiter = None,
            Some(spec::Adaptive::Aimd) => {
                let slow_after = wanted.slow_after.map_or(Duration::from_millis(500), |span| span.0);
                limiter.algorithm = adaptive::Algorithm::Aimd { backoff: 0.9, slow_after };
                config.limiter = Some(limiter);
            }
            Some(spec::Adaptive::Gradient2) | None => config.limiter = Some(limiter),
        }
    }
    match &spec.outlier {
        Some(Switch::Off(_)) => config.outlier = None,
        Some(Switch::On(wanted)) => {
            let mut outlier = outlier::Config::default();
            put(&mut outlier.consecutive, wanted.consecutive);
            set(&mut outlier.base, wanted.base);
            put(&mut outlier.ejected_max, part(wanted.ejected_max));
            config.outlier = Some(outlier);
        }
        None => {}
    }
    if let Some(wanted) = &spec.balance {
        put(
            &mut config.balance.balancer,
            wanted.by.map(|by| match by {
                spec::Balancer::PeakEwma => balance::Balancer::PeakEwma,
                spec::Balancer::LeastRequest => balance::Balancer::LeastRequest,
                spec::Balancer::RoundRobin => balance::Balancer::Turn,
                spec::Balancer::Ring => balance::Balancer::Ring,
            }),
        );
        set(&mut config.balance.slow_start, wanted.slow_start);
        match (wanted.by, wanted.key.as_deref()) {
            (Some(spec::Balancer::Ring), None) => {
                return Err(("balance.key", "a ring needs one: client, caller, path or header:NAME".into()));
            }
            (_, Some(key)) => drop(Key::parse(key).map_err(|says| ("balance.key", says))?),
            _ => {}
        }
    }
    if let Some(Switch::On(wanted)) = &spec.throttle {
        let mut throttle = throttle::Config::default();
        put(&mut throttle.k, wanted.k);
        set(&mut throttle.window, wanted.window);
        config.throttle = Some(throttle);
    }
    Ok(config)
}

fn breaker_of(wanted: &spec::Breaker) -> Result<breaker::Config, (&'static str, String)> {
    let mut breaker = breaker::Config::default();
    breaker.window = match (wanted.window, wanted.calls) {
        (Some(_), Some(_)) => return Err(("breaker", "has window and calls; give one of them".into())),
        (Some(Span(window)), None) => breaker::Window::Time(window),
        (None, Some(calls)) => breaker::Window::Calls(calls),
        (None, None) => breaker.window,
    };
    breaker.failure_rate = wanted.failure_rate.map_or(breaker.failure_rate, |part| part.0);
    breaker.calls_min = wanted
        .calls_min
        .unwrap_or_else(|| wanted.calls.map_or(breaker.calls_min, |calls| calls.min(breaker.calls_min)));
    breaker.slow_after = wanted.slow_after.map(|span| span.0);
    breaker.slow_rate = wanted.slow_rate.map_or(breaker.slow_rate, |part| part.0);
    breaker.consecutive = wanted.consecutive.unwrap_or(breaker.consecutive);
    if let Some(Span(open_for)) = wanted.open_for {
        (breaker.open_for, breaker.open_for_max) = (open_for, open_for * 2);
    }
    breaker.open_for_max = wanted.open_for_max.map_or(breaker.open_for_max, |span| span.0);
    breaker.probes = wanted.probes.unwrap_or(breaker.probes);
    Ok(breaker)
}

/// The one route of a proxy that was told nothing but where to send requests: everything, to these.
///
/// `deadline` of none is the default one.
pub fn everything(endpoints: &[String], deadline: Option<Duration>) -> Declared {
    let list = endpoints.iter().map(|endpoint| spec::EndpointSpec::Address(endpoint.clone())).collect();
    let backend = spec::Backend { endpoints: Some(spec::OneOrMany::Many(list)), ..Default::default() };
    let policies = spec::Policies { deadline: deadline.map(|span| Switch::On(Span(span))), ..Default::default() };
    let spec = spec::Route { to: vec![backend], policies, ..Default::default() };
    let place = Place { file: "the command line".into(), line: 0 };
    Declared { name: "everything".into(), spec, place, match_lines: Vec::new() }
}
