//! What the cores of a proxy share, and what an onlooker may read: figures, records, the state of the policies.

use std::{fmt::Write, net::SocketAddr, sync::Arc, time::Instant};

use buttress_core::{Code, Error};
use buttress_policy::{EndpointSet, RouteConfig, RoutePolicy, Time, deadline};
use serde_json::{Value, json};

use crate::{
    call::Route,
    config::Options,
    metrics::{BOUNDS_US, Count, EndpointFigures, GoldenSum, Shard},
    record::Records,
    tcp, tls,
};

/// The one route that `buttress proxy` has.
pub const ROUTE: &str = "everything";

pub struct Shared {
    pub options: Options,
    /// Where traffic comes in.
    pub address: SocketAddr,
    pub shards: Vec<Arc<Shard>>,
    pub records: Records,
    pub route: Route,
    pub tls: tls::State,
    pub tcp: Vec<tcp::Listener>,
    pub started: Instant,
}

impl Shared {
    /// # Errors
    /// `CONFIG` where the policies cannot be as they are asked to be.
    pub fn new(options: Options, address: SocketAddr) -> Result<Self, Error> {
        let shards = (0..options.threads.max(1)).map(|_| Arc::new(Shard::new(options.endpoints.len()))).collect();
        let deadline = deadline::Config { total: Some(options.timeouts.request), ..Default::default() };
        let policy = RoutePolicy::new(RouteConfig { deadline, ..RouteConfig::default() }).map_err(|wrong| {
            let all: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            Error::new(Code::CONFIG, all.join("; ")).hint("see --deadline")
        })?;
        let endpoints = EndpointSet::new(options.endpoints.iter().map(|endpoint| (endpoint.address.as_str(), 1)));
        if endpoints.len() != options.endpoints.len() {
            return Err(Error::new(Code::CONFIG, "an endpoint is named twice").hint("name each once with --to"));
        }
        let route = Route::new(policy, endpoints);
        let wanted = options.endpoints.iter().any(|endpoint| endpoint.tls);
        let client = wanted.then_some(&options.edge.upstream_tls);
        let tls = tls::State::new(options.edge.tls.as_ref(), client)?;
        Ok(Self {
            options,
            address,
            shards,
            records: Records::default(),
            route,
            tls,
            tcp: Vec::new(),
            started: Instant::now(),
        })
    }

    /// The policies' clock: the time since the start.
    pub fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// How the policies stand, a sentence each.
    pub fn state(&self, now: Time) -> Vec<String> {
        let view = self.route.policy.view(now);
        let mut state = Vec::with_capacity(4);
        if let Some(breaker) = view.breaker {
            let (word, rate, calls) = (breaker.state.word(), breaker.failure_rate, breaker.calls);
            state.push(format!("breaker {word}: {rate} of {calls} calls failed lately"));
        }
        let (extras, requests, allowed) = (view.budget.extras, view.budget.requests, view.budget.allowed);
        state.push(format!("retry budget: {extras} retries for {requests} requests lately, {allowed} are allowed"));
        state.push(format!("{} calls run, {} wait, {} may run at once", view.inflight, view.queued, view.limit));
        let count = self.route.endpoints.count(now);
        state.push(format!("endpoints: {} available, {} ejected, {} down", count.available, count.ejected, count.down));
        state
    }

    fn sum(&self, pick: impl Fn(&Shard) -> &Count) -> u64 {
        self.shards.iter().map(|shard| pick(shard).get()).fold(0, u64::wrapping_add)
    }

    fn route(&self) -> GoldenSum {
        GoldenSum::of(self.shards.iter().map(|shard| &shard.route))
    }

    fn endpoint(&self, at: usize) -> (GoldenSum, u64, u64) {
        let of = |pick: fn(&EndpointFigures) -> &Count| {
            self.shards.iter().map(|shard| pick(&shard.endpoints[at]).get()).fold(0, u64::wrapping_add)
        };
        let golden = GoldenSum::of(self.shards.iter().map(|shard| &shard.endpoints[at].golden));
        (golden, of(|figures| &figures.failures), of(|figures| &figures.connects))
    }

    /// Everything that the live page draws, but for the records.
    pub fn snapshot(&self) -> Value {
        let now = self.now();
        let view = self.route.policy.view(now);
        let endpoints: Vec<Value> = (0..self.options.endpoints.len())
            .map(|at| {
                let (golden, failures, connects) = self.endpoint(at);
                let endpoint = &self.options.endpoints[at].address;
                let known = self.route.endpoints.get(at);
                let state = match (known.is_down(), known.ejected(now)) {
                    (true, _) => "down",
                    (false, Some(_)) => "ejected",
                    (false, None) => "in",
                };
                json!({
                    "endpoint": endpoint, "golden": golden_json(&golden), "failures": failures, "connects": connects,
                    "state": state,
                })
            })
            .collect();
        json!({
            "listen": self.address.to_string(), "uptime_ms": self.started.elapsed().as_millis() as u64,
            "bare": self.options.bare, "route": golden_json(&self.route()), "endpoints": endpoints,
            "connections": self.sum(|shard| &shard.connections), "attempts": self.sum(|shard| &shard.attempts),
            "breaker": view.breaker.map(|breaker| breaker.state.word()), "limit": view.limit, "waiting": view.queued,
            "budget": {"retries": view.budget.extras, "requests": view.budget.requests, "allowed": view.budget.allowed},
            "tcp": self.tcp.iter().map(|listener| listener.json(now)).collect::<Vec<_>>(),
            "retries": self.sum(|shard| &shard.retries), "refused": self.sum(|shard| &shard.refused),
        })
    }

    /// The same in Prometheus' text form.
    pub fn prometheus(&self, out: &mut String) {
        let _ = writeln!(out, "# TYPE buttress_traffic_requests_total counter");
        let route = self.route();
        for (class, count) in route.by_class.iter().enumerate() {
            let class = class + 1;
            let _ = writeln!(out, "buttress_traffic_requests_total{{route=\"{ROUTE}\",status=\"{class}xx\"}} {count}");
        }
        histogram(out, "buttress_traffic_request_seconds", &[(format!("route=\"{ROUTE}\""), &route)]);
        let _ = writeln!(out, "# TYPE buttress_traffic_running gauge");
        let _ = writeln!(out, "buttress_traffic_running{{route=\"{ROUTE}\"}} {}", route.running);
        let endpoints: Vec<_> = (0..self.options.endpoints.len())
            .map(|at| (format!("endpoint=\"{}\"", self.options.endpoints[at].address), self.endpoint(at)))
            .collect();
        let _ = writeln!(out, "# TYPE buttress_traffic_endpoint_requests_total counter");
        for (label, (golden, ..)) in &endpoints {
            for (class, count) in golden.by_class.iter().enumerate() {
                let class = class + 1;
                let _ =
                    writeln!(out, "buttress_traffic_endpoint_requests_total{{{label},status=\"{class}xx\"}} {count}");
            }
        }
        let labelled: Vec<(String, &GoldenSum)> =
            endpoints.iter().map(|(label, sums)| (label.clone(), &sums.0)).collect();
        histogram(out, "buttress_traffic_endpoint_seconds", &labelled);
        let mut each = |name: &str, kind: &str, pick: &dyn Fn(&(GoldenSum, u64, u64)) -> u64| {
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for (label, sums) in &endpoints {
                let _ = writeln!(out, "{name}{{{label}}} {}", pick(sums));
            }
        };
        each("buttress_traffic_endpoint_running", "gauge", &|sums| sums.0.running);
        each("buttress_traffic_endpoint_failures_total", "counter", &|sums| sums.1);
        each("buttress_traffic_endpoint_connects_total", "counter", &|sums| sums.2);
        let now = self.now();
        let view = self.route.policy.view(now);
        let mut gauge = |name: &str, value: u64| {
            let _ = writeln!(out, "# TYPE {name} gauge\n{name}{{route=\"{ROUTE}\"}} {value}");
        };
        let open = view.breaker.is_some_and(|breaker| breaker.state.word().contains("open"));
        gauge("buttress_traffic_breaker_open", open.into());
        gauge("buttress_traffic_concurrency_limit", view.limit.into());
        gauge("buttress_traffic_waiting", view.queued.into());
        gauge("buttress_traffic_retry_budget_left", view.budget.left().into());
        gauge("buttress_traffic_endpoints_ejected", self.route.endpoints.count(now).ejected.into());
        let mut one = |name: &str, kind: &str, pick: fn(&Shard) -> &Count| {
            let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {}", self.sum(pick));
        };
        one("buttress_traffic_connections", "gauge", |shard| &shard.connections);
        one("buttress_traffic_connections_total", "counter", |shard| &shard.connections_total);
        one("buttress_traffic_refused_total", "counter", |shard| &shard.refused);
        one("buttress_traffic_attempts_total", "counter", |shard| &shard.attempts);
        one("buttress_traffic_retries_total", "counter", |shard| &shard.retries);
        one("buttress_traffic_tunnels_total", "counter", |shard| &shard.tunnels);
        self.tls.prometheus(out);
        tcp::prometheus(&self.tcp, out);
    }
}

fn golden_json(sum: &GoldenSum) -> Value {
    let durations: Vec<Value> = BOUNDS_US
        .iter()
        .zip(&sum.durations)
        .map(|(bound, count)| {
            let bound = if *bound == u64::MAX { Value::Null } else { json!(*bound as f64 / 1000.0) };
            json!({"le_ms": bound, "count": count})
        })
        .collect();
    json!({"by_class": sum.by_class, "durations": durations, "running": sum.running})
}

fn histogram(out: &mut String, name: &str, series: &[(String, &GoldenSum)]) {
    let _ = writeln!(out, "# TYPE {name} histogram");
    for (label, sum) in series {
        let mut below = 0;
        for (bound, count) in BOUNDS_US.iter().zip(&sum.durations) {
            below += count;
            let bound = if *bound == u64::MAX { "+Inf".to_owned() } else { format!("{}", *bound as f64 / 1e6) };
            let _ = writeln!(out, "{name}_bucket{{{label},le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(out, "{name}_sum{{{label}}} {}", sum.micros as f64 / 1e6);
        let _ = writeln!(out, "{name}_count{{{label}}} {below}");
    }
}
