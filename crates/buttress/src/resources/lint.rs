//! What can be carried out and still is not wise: `buttress route lint`. The codes stand in docs/reference/lints.md.
//!
//! **Amplification.** A route with `a` attempts makes up to `a` requests of one. Where its backend is another listener
//! of the same files, the route behind that makes `b` of each: the numbers multiply, 3 x 3 x 3 = 27. Two things hold it
//! down, and both are told: hops that see `buttress-attempt` above 1 make one attempt only, so `h` hops of `a` attempts
//! make at most 1 + h × (a − 1); and the budgets bound what is made when everything fails for long. Which route is
//! behind a listener is found as a gateway finds it, by the matcher, with an example of each match.

use std::collections::{BTreeMap, BTreeSet};

use buttress_gateway::compile::policies;
use buttress_policy::{RouteConfig, Validate as _};
use buttress_resources::{
    Resource,
    finding::{Finding, Level},
    kinds::Spec,
    listener::Listener,
    matcher::{Found, Matcher, Request},
    nearest::nearest,
    route::{Backend, Match, OneOrMany, Route, Switch},
};
use serde_json::{Value, json};

/// What one request becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct Amplification {
    /// The route that takes it first, then those behind.
    pub chain: Vec<String>,
    /// Of each, in that order.
    pub attempts: Vec<u32>,
    /// If nobody counted hops: the product.
    pub most: u64,
    /// With `buttress-attempt`, through gateways that read it.
    pub with_hops: u64,
    /// Requests per request when everything fails for long, by the budgets.
    pub budgeted: f64,
}

impl Amplification {
    /// `3 x 3 x 3 = 27x`.
    pub fn arithmetic(&self) -> String {
        match &self.attempts[..] {
            [only] => format!("{only}x"),
            all => format!("{} = {}x", all.iter().map(u32::to_string).collect::<Vec<_>>().join(" x "), self.most),
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "chain": self.chain, "attempts": self.attempts, "arithmetic": self.arithmetic(), "most": self.most,
            "with_hops": self.with_hops, "budgeted": (self.budgeted * 1000.0).round() / 1000.0,
        })
    }
}

pub struct Linted {
    /// By file and line.
    pub findings: Vec<Finding>,
    /// The longest chain of each route.
    pub amplification: Vec<Amplification>,
}

/// Requests of one request that are worth a warning: a fourth of an outage's load is a multiple of what a service is
/// built for.
const AMPLIFICATION_WARN: u64 = 9;
/// Endpoints from which on nobody looks after each by hand.
const ENDPOINTS_MANY: usize = 4;
/// Rounds of waiting after which the caller has left.
const QUEUE_ROUNDS_MAX: u32 = 10;

struct One<'r> {
    resource: &'r Resource,
    route: &'r Route,
    config: RouteConfig,
}

/// Lints routes, beside the listeners that stand with them.
pub fn lint(resources: &[Resource]) -> Linted {
    let mut refused = Vec::new();
    let routes: Vec<One<'_>> = resources
        .iter()
        .filter_map(|resource| {
            let route = resource.route()?;
            match policies(&route.policies).map_err(|(field, says)| vec![(field.to_owned(), says)]).and_then(checked) {
                Ok(config) => Some(One { resource, route, config }),
                Err(all) => {
                    refused.extend(all.into_iter().map(|(field, says)| {
                        let pointer = format!("/spec/{}", field.replace('.', "/"));
                        let hint = "mend it: a gateway keeps the routes that it has".to_owned();
                        resource.finding(Level::Error, "BT-LINT-REFUSED", &pointer, says, hint)
                    }));
                    None
                }
            }
        })
        .collect();
    let listeners: Vec<(&Resource, &Listener)> = resources
        .iter()
        .filter_map(|resource| match &resource.typed {
            Spec::Listener(listener) => Some((resource, &**listener)),
            _ => None,
        })
        .collect();
    let mut findings = refused;
    for one in &routes {
        let mut tell = |level: Level, code: &'static str, pointer: &str, says: String, hint: String| {
            findings.push(one.resource.finding(level, code, &format!("/spec{pointer}"), says, hint));
        };
        deadlines(one, &mut tell);
        breaker(one, &mut tell);
        retries(one, &mut tell);
        queue(one, &mut tell);
        health(one, &mut tell);
        backends(one, &mut tell);
        keys(one, &listeners, &mut tell);
        nobody(one, &listeners, &mut tell);
        if one.route.fault.is_some() {
            let says = "requests fail or wait on purpose".to_owned();
            tell(Level::Note, "BT-LINT-FAULT", "/fault", says, "take `fault` out when the experiment is over".into());
        }
    }
    let mut amplification = Vec::new();
    if let Ok(matcher) = Matcher::new(routes.iter().map(|one| one.route)) {
        shadows(&matcher, &routes, &mut findings);
        let behind = behind(&matcher, &routes, &listeners);
        let (best, way, circles) = (vec![None; routes.len()], Vec::new(), Vec::new());
        let mut chains = Chains { routes: &routes, behind: &behind, best, way, circles };
        for at in 0..routes.len() {
            chains.visit(at);
        }
        findings.append(&mut chains.circles);
        amplification.extend((0..routes.len()).map(|at| chains.of(at)));
        // A chain is told once, where it begins.
        let inner: BTreeSet<usize> = behind.iter().flatten().map(|(next, _)| *next).collect();
        for (at, chain) in amplification.iter().enumerate() {
            if !inner.contains(&at) || chain.chain.len() == 1 {
                multiplied(&routes[at], chain, &mut findings);
            }
        }
    }
    let place = |finding: &Finding| (finding.file.clone(), finding.mark, finding.code);
    findings.sort_by_key(place);
    findings.dedup();
    Linted { findings, amplification }
}

/// Settings that a gateway takes, or what it says of them.
fn checked(config: RouteConfig) -> Result<RouteConfig, Vec<(String, String)>> {
    match config.validate("") {
        Ok(()) => Ok(config),
        Err(all) => Err(all.into_iter().map(|wrong| (wrong.field.clone(), wrong.to_string())).collect()),
    }
}

type Tell<'t> = dyn FnMut(Level, &'static str, &str, String, String) + 't;

fn span(of: std::time::Duration) -> String {
    buttress_resources::units::Span(of).to_string()
}

fn deadlines(one: &One<'_>, tell: &mut Tell<'_>) {
    let (config, policies) = (&one.config, &one.route.policies);
    let Some(total) = config.deadline.total else {
        let says = "a request may take for ever, and its place with it".to_owned();
        let hint =
            "give a deadline, as long as the slowest good answer takes; streams are bounded by silence, not by it";
        return tell(Level::Warning, "BT-LINT-DEADLINE", "/deadline", says, hint.into());
    };
    let attempts = u32::from(config.retry.attempts);
    if let Some(attempt) = config.deadline.attempt
        && attempts > 1
    {
        // The longest that full jitter draws.
        let pauses: std::time::Duration =
            (0..attempts - 1).map(|n| (config.retry.base * (1 << n.min(16))).min(config.retry.cap)).sum();
        let needed = attempt * attempts + pauses;
        if needed > total {
            let fit = (1..=attempts).rev().find(|n| attempt * *n <= total).unwrap_or(0);
            let says = format!(
                "{attempts} attempts of {} and pauses of up to {} need {}, and the deadline is {}: {fit} of them fit",
                span(attempt),
                span(pauses),
                span(needed),
                span(total)
            );
            let hint = format!(
                "attempt_timeout: {} lets all of them fit",
                span(whole_ms((total.saturating_sub(pauses)) / attempts))
            );
            tell(Level::Warning, "BT-LINT-DEADLINE", "/attempt_timeout", says, hint);
        }
    }
    if let Some(slow) = policies.breaker.as_ref().and_then(Switch::on).and_then(|breaker| breaker.slow_after)
        && slow.0 >= config.deadline.attempt.unwrap_or(total)
    {
        let says = format!(
            "no call is slow before it has failed: it fails after {}",
            span(config.deadline.attempt.unwrap_or(total))
        );
        tell(
            Level::Warning,
            "BT-LINT-BREAKER",
            "/breaker/slow_after",
            says,
            "make slow_after shorter than that".into(),
        );
    }
}

fn whole_ms(of: std::time::Duration) -> std::time::Duration {
    std::time::Duration::from_millis(of.as_millis() as u64)
}

fn breaker(one: &One<'_>, tell: &mut Tell<'_>) {
    let Some(breaker) = one.route.policies.breaker.as_ref().and_then(Switch::on) else { return };
    match breaker.force {
        Some(buttress_resources::route::Force::Open) => {
            let says = "the breaker is held open: every request is refused".to_owned();
            tell(
                Level::Warning,
                "BT-LINT-BREAKER",
                "/breaker/force",
                says,
                "take `force` out when the repair is done".into(),
            );
        }
        Some(buttress_resources::route::Force::Closed) => {
            let says = "the breaker is held closed: it protects nothing".to_owned();
            tell(
                Level::Warning,
                "BT-LINT-BREAKER",
                "/breaker/force",
                says,
                "take `force` out, or write breaker: off".into(),
            );
        }
        None => {}
    }
    if breaker.consecutive.is_some() {
        return;
    }
    let asks = breaker.calls_min.unwrap_or(20);
    if let (Some(calls), Some(_)) = (breaker.calls, breaker.calls_min)
        && calls < asks
    {
        let says = format!("the breaker never opens: it looks at the last {calls} calls and asks for {asks}");
        let hint = format!("make calls_min {calls} or less");
        return tell(Level::Warning, "BT-LINT-BREAKER", "/breaker/calls_min", says, hint);
    }
    if breaker.calls.is_none() {
        // What a limit lets pass is the most that a window can see.
        let seconds = breaker.window.map_or(10.0, |window| window.0.as_secs_f64());
        let limits = one.route.rate.iter().filter(|rate| rate.by.is_none());
        let least = limits.map(|rate| rate.per_second).fold(f64::INFINITY, f64::min);
        if least * seconds < f64::from(asks) {
            let says = format!(
                "the breaker never opens: {least} requests a second for {seconds} s are {}, and it asks for {asks} calls",
                least * seconds
            );
            let hint = format!("make calls_min at most {}, or the window longer", (least * seconds).floor().max(1.0));
            let at = if breaker.calls_min.is_some() { "/breaker/calls_min" } else { "/breaker" };
            tell(Level::Warning, "BT-LINT-BREAKER", at, says, hint);
        }
    }
}

fn retries(one: &One<'_>, tell: &mut Tell<'_>) {
    let Some(retry) = one.route.policies.retry.as_ref().and_then(Switch::on) else { return };
    if one.config.retry.attempts > 1 && retry.idempotent == Some(true) {
        let unsafe_of = |one: &Match| {
            let keyed = one.headers.keys().any(|name| name.eq_ignore_ascii_case("idempotency-key"));
            let effect =
                |method: &String| !["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"].contains(&method.as_str());
            !keyed && one.method.as_ref().is_none_or(|methods| methods.as_slice().iter().any(effect))
        };
        if one.route.matches.is_empty() || one.route.matches.iter().any(unsafe_of) {
            let says = "POST is sent again, and nothing says to the backend that it has seen it before".to_owned();
            let hint = "take requests with a key only: match headers {idempotency-key: \"*\"}; those are repeated without `idempotent` too";
            tell(Level::Warning, "BT-LINT-EFFECT", "/retry/idempotent", says, hint.into());
        }
    }
    if one.config.retry.attempts > 1 && one.config.budget.share >= 0.5 {
        let says = format!(
            "retries may be {} of requests, so that an outage is met with {:.1} times the load",
            buttress_resources::units::Part(one.config.budget.share),
            1.0 + one.config.budget.share
        );
        tell(Level::Warning, "BT-LINT-BUDGET", "/retry/budget", says, "10% to 20% hides brief failures".into());
    }
}

fn queue(one: &One<'_>, tell: &mut Tell<'_>) {
    let Some(concurrency) = &one.route.policies.concurrency else { return };
    let (limit, queue) = (one.config.bulkhead.concurrent, one.config.bulkhead.queue);
    if concurrency.queue.is_some() && one.config.deadline.total.is_none() {
        let says = format!("{queue} requests may wait, and none of them ever gives up");
        return tell(Level::Warning, "BT-LINT-QUEUE", "/concurrency/queue", says, "give a deadline".into());
    }
    if concurrency.queue.is_some() && queue > limit.saturating_mul(QUEUE_ROUNDS_MAX) {
        let says =
            format!("{queue} requests may wait for {limit} places: the last one waits for {} rounds", queue / limit);
        let hint =
            "a queue evens out bursts; make it about as long as `limit`, and let what comes beyond be refused at once";
        tell(Level::Warning, "BT-LINT-QUEUE", "/concurrency/queue", says, hint.into());
    }
}

fn health(one: &One<'_>, tell: &mut Tell<'_>) {
    let outlier_off = matches!(one.route.policies.outlier, Some(Switch::Off(_)));
    for (at, backend) in one.route.to.iter().enumerate() {
        let count = backend.endpoints.as_ref().map_or(0, |list| list.as_slice().len());
        let many = count >= ENDPOINTS_MANY || backend.dns.is_some() && outlier_off;
        if backend.health.is_some() || !many {
            continue;
        }
        let hint = "give health: {path: /healthz}".to_owned();
        if outlier_off {
            let says = "nothing takes a dead endpoint out: it has no health check, and `outlier` is off".to_owned();
            tell(Level::Warning, "BT-LINT-HEALTH", &format!("/to/{at}"), says, hint);
        } else {
            let says =
                format!("{count} endpoints and no health check: a dead one is found by the requests that it fails");
            tell(Level::Note, "BT-LINT-HEALTH", &format!("/to/{at}"), says, hint);
        }
    }
}

fn backends(one: &One<'_>, tell: &mut Tell<'_>) {
    let fallback = one.route.fallback.as_ref().and_then(|fallback| fallback.backend.as_ref());
    for (at, backend) in one.route.to.iter().enumerate() {
        let named = backend.name.is_some() && backend.name.as_ref() == fallback;
        if backend.weight == Some(0) && backend.when.is_none() && !named {
            let says = "no request goes here: its weight is 0, and neither `when` nor `fallback` names it".to_owned();
            tell(
                Level::Warning,
                "BT-LINT-UNUSED",
                &format!("/to/{at}/weight"),
                says,
                "give it a weight, or take it out".into(),
            );
        }
    }
}

/// A route for listeners of which none is here. Without any beside it, they are elsewhere.
fn nobody(one: &One<'_>, listeners: &[(&Resource, &Listener)], tell: &mut Tell<'_>) {
    let named = one.route.listeners.as_ref().map_or(&[][..], |named| named.as_slice());
    if listeners.is_empty() {
        return;
    }
    let http = || listeners.iter().filter(|(_, listener)| listener.tcp.is_none()).map(|(one, _)| one.name.as_str());
    for name in named.iter().filter(|name| !http().any(|known| known == name.as_str())) {
        let says = format!("no listener for HTTP beside it is called \"{name}\"");
        let hint = match nearest(name, http()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "a gateway refuses a route for a listener that it does not have".to_owned(),
        };
        tell(Level::Warning, "BT-LINT-LISTENER", "/listeners", says, hint);
    }
}

fn keys(one: &One<'_>, listeners: &[(&Resource, &Listener)], tell: &mut Tell<'_>) {
    let Some(auth) = &one.route.auth else { return };
    let (what, at) = match (&auth.api_keys, &auth.jwt) {
        (Some(_), _) => ("keys", "/auth/api_keys"),
        (None, Some(_)) => ("tokens", "/auth/jwt"),
        (None, None) => return,
    };
    let local = |address: &str| address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    let in_clear = listeners.iter().find(|(resource, listener)| {
        let its = one.route.listeners.as_ref().is_none_or(|named| named.as_slice().contains(&resource.name));
        its && listener.tls.is_none() && listener.tcp.is_none() && !local(&listener.address)
    });
    if let Some((listener, _)) = in_clear {
        let says = format!(
            "{what} can be read on the way: listener \"{}\" ({}:{}) takes connections without TLS",
            listener.name,
            listener.origin.file,
            listener.lines.of("/spec/address")
        );
        tell(
            Level::Warning,
            "BT-LINT-CLEAR",
            at,
            says,
            "give that listener `tls`, or let it listen on 127.0.0.1".into(),
        );
    }
}

fn shadows(matcher: &Matcher, routes: &[One<'_>], findings: &mut Vec<Finding>) {
    let conflicts: BTreeSet<Found> = matcher.conflicts().into_iter().map(|(_, second)| second).collect();
    for (first, second) in matcher.shadowed() {
        if conflicts.contains(&second) {
            continue;
        }
        let (earlier, later) = (&routes[first.route], &routes[second.route]);
        let pointer = |at: Option<usize>| at.map_or("/spec".to_owned(), |at| format!("/spec/match/{at}"));
        let line = earlier.resource.lines.of(&pointer(first.at));
        let says = format!("no request ever comes here: route \"{}\" takes all of them", earlier.resource.name);
        let hint = format!(
            "see {}:{line}; order decides between matches that are alike otherwise",
            earlier.resource.origin.file
        );
        findings.push(later.resource.finding(Level::Warning, "BT-LINT-SHADOWED", &pointer(second.at), says, hint));
    }
}

/// Of each route, the routes behind its backends, and which backend leads there.
fn behind(matcher: &Matcher, routes: &[One<'_>], listeners: &[(&Resource, &Listener)]) -> Vec<BTreeMap<usize, usize>> {
    let mut all = Vec::with_capacity(routes.len());
    for one in routes {
        let mut behind = BTreeMap::new();
        for (at, backend) in one.route.to.iter().enumerate() {
            let leads = |(_, listener): &&(&Resource, &Listener)| {
                listener.tcp.is_none() && leads_to(backend, &listener.address)
            };
            let Some((arrives, _)) = listeners.iter().find(leads) else { continue };
            for (host, path, method, fields) in examples(one.route) {
                let request = Request {
                    host: host.as_bytes(),
                    path: path.as_bytes(),
                    method: method.as_bytes(),
                    fields: &fields[..],
                    listener: Some(&arrives.name),
                };
                if let Some(found) = matcher.find(&request) {
                    behind.entry(found.route).or_insert(at);
                }
            }
        }
        all.push(behind);
    }
    all
}

/// Whether an endpoint of the backend is what the listener listens at. An address for all of a machine's own is met by
/// its loopback ones: which others it has is not known here.
fn leads_to(backend: &Backend, listens: &str) -> bool {
    let Some((listen_host, listen_port)) = listens.rsplit_once(':') else { return false };
    let addresses = backend.endpoints.iter().flat_map(OneOrMany::as_slice).map(|endpoint| endpoint.address());
    addresses.chain(backend.dns.as_deref()).any(|address| {
        let bare = address.split_once("://").map_or(address, |(_, rest)| rest).trim_end_matches('/');
        let Some((host, port)) = bare.rsplit_once(':') else { return false };
        let same = host.eq_ignore_ascii_case(listen_host);
        let loopback = matches!(host, "localhost" | "[::1]") || host.starts_with("127.");
        port == listen_port && (same || loopback && matches!(listen_host, "" | "0.0.0.0" | "[::]" | "localhost"))
    })
}

type Example = (String, String, String, Vec<(String, String)>);

/// A request that each match takes, as it goes on to the backend.
fn examples(route: &Route) -> Vec<Example> {
    let any = [Match::default()];
    let matches = if route.matches.is_empty() { &any[..] } else { &route.matches };
    let rewrite = route.rewrite.clone().unwrap_or_default();
    let example = |one: &Match| {
        let host = one.host.as_deref().unwrap_or_default();
        let host = rewrite.host.clone().unwrap_or_else(|| host.replacen('*', "x", 1));
        let matched = one.path.as_deref().unwrap_or("/*");
        let (prefix, rest) = matched.strip_suffix("/*").map_or((matched, ""), |prefix| (prefix, "/x"));
        let path = match &rewrite.prefix {
            Some(stands) => format!("{}{rest}", stands.trim_end_matches('/')),
            None => format!("{prefix}{rest}"),
        };
        let method = one.method.as_ref().and_then(|methods| methods.as_slice().first());
        let kept =
            one.headers.iter().filter(|(name, _)| !rewrite.remove.iter().any(|gone| gone.eq_ignore_ascii_case(name)));
        let mut fields: Vec<(String, String)> = rewrite.set.clone().into_iter().collect();
        fields.extend(kept.map(|(name, value)| (name.clone(), value.trim_end_matches('*').to_owned())));
        let path = if path.is_empty() { "/".to_owned() } else { path };
        (host, path, method.map_or("GET", String::as_str).to_owned(), fields)
    };
    matches.iter().map(example).collect()
}

/// From each route on, the chain that makes the most of one request; and the circles, which are left out of it.
struct Chains<'r> {
    routes: &'r [One<'r>],
    behind: &'r [BTreeMap<usize, usize>],
    /// The next route of the best chain and what the chain makes, where it is known.
    best: Vec<Option<(Option<usize>, u64)>>,
    /// The routes that lead to the one that is looked at.
    way: Vec<usize>,
    circles: Vec<Finding>,
}

impl Chains<'_> {
    /// Visits each route once: a route on the way closes a circle, a route with a best chain is done.
    fn visit(&mut self, at: usize) -> u64 {
        if let Some((_, most)) = self.best[at] {
            return most;
        }
        self.way.push(at);
        let behind = self.behind;
        let mut best: (Option<usize>, u64) = (None, 1);
        for (next, backend) in &behind[at] {
            if let Some(from) = self.way.iter().position(|seen| seen == next) {
                self.circle(from, *backend);
                continue;
            }
            let most = self.visit(*next);
            if best.0.is_none() || most > best.1 {
                best = (Some(*next), most);
            }
        }
        self.way.pop();
        let most = u64::from(self.routes[at].config.attempts_max()).saturating_mul(best.1);
        self.best[at] = Some((best.0, most));
        most
    }

    fn circle(&mut self, from: usize, backend: usize) {
        let circle = &self.way[from..];
        let names: Vec<&str> =
            circle.iter().chain(&circle[..1]).map(|at| self.routes[*at].resource.name.as_str()).collect();
        let says = format!("requests go round in a circle: {}", names.join(" -> "));
        let hint = "name the service behind, not the gateway's own address, or rewrite host or prefix so that another route takes it";
        let last = &self.routes[*self.way.last().expect("a circle has a route")];
        let pointer = format!("/spec/to/{backend}");
        self.circles.push(last.resource.finding(Level::Error, "BT-LINT-CIRCLE", &pointer, says, hint));
    }

    fn of(&self, start: usize) -> Amplification {
        let next = |at: &usize| self.best[*at].and_then(|(next, _)| next);
        let chain: Vec<usize> = std::iter::successors(Some(start), next).collect();
        let attempts: Vec<u32> = chain.iter().map(|at| self.routes[*at].config.attempts_max()).collect();
        Amplification {
            chain: chain.iter().map(|at| self.routes[*at].resource.name.clone()).collect(),
            most: attempts.iter().map(|attempts| u64::from(*attempts)).fold(1, u64::saturating_mul),
            with_hops: 1 + attempts.iter().map(|attempts| u64::from(attempts - 1)).sum::<u64>(),
            budgeted: chain.iter().map(|at| self.routes[*at].config.amplification()).product(),
            attempts,
        }
    }
}

fn multiplied(one: &One<'_>, chain: &Amplification, findings: &mut Vec<Finding>) {
    if chain.chain.len() < 2 && chain.most < AMPLIFICATION_WARN || chain.most < 2 {
        return;
    }
    let level = if chain.most >= AMPLIFICATION_WARN { Level::Warning } else { Level::Note };
    let way = if chain.chain.len() > 1 { format!(" through {}", chain.chain.join(" -> ")) } else { String::new() };
    let says = format!("one request can become {}{way}", chain.arithmetic());
    let hint = if chain.chain.len() > 1 {
        format!(
            "{} where every hop passes buttress-attempt on, {:.2}x by the budgets when everything fails for long; retry in one place, where the user waits, and write retry: off behind it",
            chain.with_hops, chain.budgeted
        )
    } else {
        format!(
            "{:.2}x by the budgets when everything fails for long; 2 or 3 attempts hide brief failures",
            chain.budgeted
        )
    };
    let pointer = if one.route.policies.retry.is_some() { "/spec/retry" } else { "/spec" };
    findings.push(one.resource.finding(level, "BT-LINT-AMPLIFICATION", pointer, says, hint));
}

#[cfg(test)]
mod tests {
    use super::*;
    use buttress_resources::{check, finding::Source};
    use expect_test::{Expect, expect};

    fn linted(text: &str) -> Linted {
        let reading = check::read(&[Source { file: "f.yaml".into(), text: text.into() }]);
        assert!(reading.is_ok(), "{:?}", reading.findings);
        lint(&reading.resources)
    }

    fn told(text: &str, expect: &Expect) {
        let lines: Vec<String> = linted(text).findings.iter().map(Finding::line).collect();
        expect.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn attempts_multiply_along_a_chain_of_hops() {
        let text = "
kind: Listener
name: web
spec: {address: ':8080'}
---
kind: Route
name: edge
spec:
  match: [{host: shop.example}]
  rewrite: {host: orders.internal}
  to: [{endpoints: 127.0.0.1:8080}]
---
kind: Route
name: orders
spec:
  match: [{host: orders.internal}]
  rewrite: {host: stock.internal}
  to: [{endpoints: 'http://localhost:8080/'}]
---
kind: Route
name: stock
spec:
  match: [{host: stock.internal}]
  to: [{endpoints: 10.0.0.1:80}]
";
        told(
            text,
            &expect![
                "f.yaml:9:3: warning[BT-LINT-AMPLIFICATION]: one request can become 3 x 3 x 3 = 27x through edge -> orders -> stock"
            ],
        );
        let chain = &linted(text).amplification[0];
        assert_eq!((chain.arithmetic().as_str(), chain.with_hops), ("3 x 3 x 3 = 27x", 7));
        assert!((chain.budgeted - 1.728).abs() < 1e-6);
        // Retries in one place only.
        let calm = text.replace("  to: [{endpoints: 10", "  retry: off\n  to: [{endpoints: 10");
        let calm = calm.replace("  to: [{endpoints: 'http", "  retry: off\n  to: [{endpoints: 'http");
        let linted = linted(&calm);
        assert_eq!(linted.amplification[0].arithmetic(), "3 x 1 x 1 = 3x");
        assert!(linted.findings.iter().all(|finding| finding.level == Level::Note), "{:?}", linted.findings);
    }

    #[test]
    fn a_circle_is_an_error_and_no_endless_walk() {
        let text = "
kind: Listener
name: web
spec: {address: '127.0.0.1:8080'}
---
kind: Route
name: a
spec: {match: [{path: /a/*}], rewrite: {prefix: /b}, retry: off, to: [{endpoints: 127.0.0.1:8080}]}
---
kind: Route
name: b
spec: {match: [{path: /b/*}], rewrite: {prefix: /a}, retry: off, to: [{endpoints: 10.0.0.1:1}, {endpoints: 127.0.0.1:8080}]}
";
        told(text, &expect!["f.yaml:12:96: error[BT-LINT-CIRCLE]: requests go round in a circle: a -> b -> a"]);
    }

    #[test]
    fn what_cannot_work_is_told_with_its_arithmetic() {
        told(
            "
kind: Listener
name: web
spec: {address: ':80'}
---
kind: Route
name: a
spec:
  match: [{path: /a/*}, {path: /a/*, method: [GET, POST]}, {path: /a/*, method: GET}]
  to:
    - {endpoints: [a:1, b:1, c:1, d:1]}
    - {name: old, weight: 0, endpoints: e:1}
  deadline: 2s
  attempt_timeout: 1s
  retry: {attempts: 3, idempotent: true, budget: 100%}
  breaker: {calls: 10, calls_min: 20, slow_after: 1s}
  concurrency: {limit: 10, queue: 200}
  auth: {api_keys: {file: keys}}
---
kind: Route
name: b
spec:
  match: [{path: /b}]
  to: [{dns: 'x:1'}]
  deadline: off
  retry: {attempts: 10}
  rate: [{per_second: 1}]
  breaker: {window: 10s}
  outlier: off
  concurrency: {queue: 5}
  fault: {abort: 503}
---
kind: Route
name: c
spec:
  match: [{path: /c, headers: {idempotency-key: '*'}}, {path: /c, method: [PUT]}]
  retry: {idempotent: true}
  to: [{endpoints: x:1}]
",
            &expect![[r#"
                f.yaml:16:35: error[BT-LINT-REFUSED]: breaker.calls_min is 20, and must be at most the window of calls
                f.yaml:24:8: warning[BT-LINT-HEALTH]: nothing takes a dead endpoint out: it has no health check, and `outlier` is off
                f.yaml:25:13: warning[BT-LINT-DEADLINE]: a request may take for ever, and its place with it
                f.yaml:26:10: warning[BT-LINT-AMPLIFICATION]: one request can become 10x
                f.yaml:28:12: warning[BT-LINT-BREAKER]: the breaker never opens: 1 requests a second for 10 s are 10, and it asks for 20 calls
                f.yaml:30:24: warning[BT-LINT-QUEUE]: 5 requests may wait, and none of them ever gives up
                f.yaml:31:10: note[BT-LINT-FAULT]: requests fail or wait on purpose"#]],
        );
    }
}
