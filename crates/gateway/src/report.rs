//! What an onlooker may read of a proxy: figures for Prometheus, a snapshot for the live page, the policies' state in words.

use std::fmt::Write;

use buttress_policy::Time;
use serde_json::{Value, json};

use crate::{
    metrics::{AuthFigures, BOUNDS_US, Count, GoldenSum, Shard},
    shared::Shared,
    table::{Backend, Endpoints, Member, Route, Table},
    tcp,
};

/// Of an endpoint: its requests, its failures, connections made.
type Sums = (GoldenSum, u64, u64);

impl Route {
    fn sum(&self) -> GoldenSum {
        GoldenSum::of(self.figures.golden.iter())
    }
}

impl Member {
    fn sum(&self) -> Sums {
        let of = |pick: fn(&crate::metrics::EndpointFigures) -> &Count| {
            self.figures.iter().map(|figures| pick(figures).get()).fold(0, u64::wrapping_add)
        };
        let golden = GoldenSum::of(self.figures.iter().map(|figures| &figures.golden));
        (golden, of(|figures| &figures.failures), of(|figures| &figures.connects))
    }
}

impl Backend {
    /// How its policies stand, a sentence each.
    pub fn state(&self, now: Time) -> Vec<String> {
        let view = self.policy.view(now);
        let mut state = Vec::with_capacity(4);
        if let Some(breaker) = view.breaker {
            let (word, rate, calls) = (breaker.state.word(), breaker.failure_rate, breaker.calls);
            state.push(format!("breaker {word}: {rate} of {calls} calls failed lately"));
        }
        let (extras, requests, allowed) = (view.budget.extras, view.budget.requests, view.budget.allowed);
        state.push(format!("retry budget: {extras} retries for {requests} requests lately, {allowed} are allowed"));
        state.push(format!("{} calls run, {} wait, {} may run at once", view.inflight, view.queued, view.limit));
        let count = self.endpoints.load().set.count(now);
        state.push(format!("endpoints: {} available, {} ejected, {} down", count.available, count.ejected, count.down));
        state
    }

    fn snapshot(&self, now: Time, weight: u64) -> Value {
        let view = self.policy.view(now);
        let endpoints = self.endpoints.load_full();
        let rows: Vec<Value> = endpoints
            .members
            .iter()
            .enumerate()
            .map(|(at, member)| {
                let (golden, failures, connects) = member.sum();
                json!({
                    "endpoint": member.endpoint.address, "golden": golden_json(&golden), "failures": failures,
                    "connects": connects, "state": endpoint_state(&endpoints, at, now),
                })
            })
            .collect();
        json!({
            "backend": &*self.name, "weight": weight, "endpoints": rows,
            "breaker": view.breaker.map(|breaker| breaker.state.word()), "limit": view.limit, "running": view.inflight,
            "waiting": view.queued,
            "budget": {"retries": view.budget.extras, "requests": view.budget.requests, "allowed": view.budget.allowed},
        })
    }
}

fn endpoint_state(endpoints: &Endpoints, at: usize, now: Time) -> &'static str {
    let known = endpoints.set.get(at);
    match (known.is_down(), known.ejected(now)) {
        (true, _) => "down",
        (false, Some(_)) => "ejected",
        (false, None) => "in",
    }
}

impl Shared {
    fn sum(&self, pick: impl Fn(&Shard) -> &Count) -> u64 {
        self.shards.iter().map(|shard| pick(shard).get()).fold(0, u64::wrapping_add)
    }

    /// Everything that the live page draws, but for the records.
    pub fn snapshot(&self) -> Value {
        let (now, table) = (self.now(), self.table.load_full());
        let routes: Vec<Value> = table
            .routes
            .iter()
            .map(|route| {
                let backends = route.backends.iter().zip(&route.weights);
                let backends: Vec<Value> = backends.map(|(backend, weight)| backend.snapshot(now, *weight)).collect();
                json!({
                    "route": &*route.name, "place": route.place.to_string(), "golden": golden_json(&route.sum()),
                    "backends": backends,
                })
            })
            .collect();
        json!({
            "listen": self.address.to_string(), "uptime_ms": self.started.elapsed().as_millis() as u64,
            "bare": self.options.bare, "generation": table.generation, "routes": routes,
            "connections": self.sum(|shard| &shard.connections), "attempts": self.sum(|shard| &shard.attempts),
            "retries": self.sum(|shard| &shard.retries), "hedges": self.sum(|shard| &shard.hedges),
            "refused": self.sum(|shard| &shard.refused), "unmatched": self.sum(|shard| &shard.unmatched),
            "tunnels": self.sum(|shard| &shard.tunnels),
            "tcp": self.tcp.iter().map(|listener| listener.json(now)).collect::<Vec<_>>(),
        })
    }

    /// Figures in the text form of Prometheus.
    pub fn prometheus(&self, out: &mut String) {
        let (now, table) = (self.now(), self.table.load_full());
        let routes: Vec<(String, GoldenSum)> =
            table.routes.iter().map(|route| (format!("route=\"{}\"", route.name), route.sum())).collect();
        let _ = writeln!(out, "# TYPE buttress_traffic_requests_total counter");
        classes(out, "buttress_traffic_requests_total", &routes);
        histogram(out, "buttress_traffic_request_seconds", &routes);
        self.auth_figures(&table, out);
        let _ = writeln!(out, "# TYPE buttress_traffic_running gauge");
        for (label, sum) in &routes {
            let _ = writeln!(out, "buttress_traffic_running{{{label}}} {}", sum.running);
        }
        let mut endpoints = Vec::new();
        let mut views = Vec::new();
        for route in &table.routes {
            for backend in &route.backends {
                let label = format!("route=\"{}\",backend=\"{}\"", route.name, backend.name);
                let list = backend.endpoints.load_full();
                for (at, member) in list.members.iter().enumerate() {
                    let label = format!("{label},endpoint=\"{}\"", member.endpoint.address);
                    endpoints.push((label, member.sum(), endpoint_state(&list, at, now)));
                }
                views.push((label, backend.policy.view(now), list.set.count(now)));
            }
        }
        let golden: Vec<(String, GoldenSum)> =
            endpoints.iter().map(|(label, (golden, ..), _)| (label.clone(), golden.clone())).collect();
        let _ = writeln!(out, "# TYPE buttress_traffic_endpoint_requests_total counter");
        classes(out, "buttress_traffic_endpoint_requests_total", &golden);
        histogram(out, "buttress_traffic_endpoint_seconds", &golden);
        let mut each = |name: &str, kind: &str, pick: &dyn Fn(&Sums, &str) -> u64| {
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for (label, sums, state) in &endpoints {
                let _ = writeln!(out, "{name}{{{label}}} {}", pick(sums, state));
            }
        };
        each("buttress_traffic_endpoint_running", "gauge", &|sums, _| sums.0.running);
        each("buttress_traffic_endpoint_failures_total", "counter", &|sums, _| sums.1);
        each("buttress_traffic_endpoint_connects_total", "counter", &|sums, _| sums.2);
        each("buttress_traffic_endpoint_up", "gauge", &|_, state| (state == "in").into());
        let mut each = |name: &str, pick: &dyn Fn(&buttress_policy::View, &buttress_policy::endpoint::Count) -> u64| {
            let _ = writeln!(out, "# TYPE {name} gauge");
            for (label, view, count) in &views {
                let _ = writeln!(out, "{name}{{{label}}} {}", pick(view, count));
            }
        };
        each("buttress_traffic_breaker_open", &|view, _| {
            view.breaker.is_some_and(|breaker| breaker.state.word().contains("open")).into()
        });
        each("buttress_traffic_concurrency_limit", &|view, _| view.limit.into());
        each("buttress_traffic_waiting", &|view, _| view.queued.into());
        each("buttress_traffic_retry_budget_left", &|view, _| view.budget.left().into());
        each("buttress_traffic_endpoints_ejected", &|_, count| count.ejected.into());
        each("buttress_traffic_endpoints_down", &|_, count| count.down.into());
        let _ = writeln!(
            out,
            "# TYPE buttress_traffic_table_generation gauge\nbuttress_traffic_table_generation {}",
            table.generation
        );
        let mut one = |name: &str, kind: &str, pick: fn(&Shard) -> &Count| {
            let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {}", self.sum(pick));
        };
        one("buttress_traffic_connections", "gauge", |shard| &shard.connections);
        one("buttress_traffic_connections_total", "counter", |shard| &shard.connections_total);
        one("buttress_traffic_refused_total", "counter", |shard| &shard.refused);
        one("buttress_traffic_unmatched_total", "counter", |shard| &shard.unmatched);
        one("buttress_traffic_attempts_total", "counter", |shard| &shard.attempts);
        one("buttress_traffic_retries_total", "counter", |shard| &shard.retries);
        one("buttress_traffic_hedges_total", "counter", |shard| &shard.hedges);
        one("buttress_traffic_mirrored_total", "counter", |shard| &shard.mirrored);
        one("buttress_traffic_tunnels_total", "counter", |shard| &shard.tunnels);
        self.tls.prometheus(out);
        tcp::prometheus(&self.tcp, out);
    }
}

impl Shared {
    /// Of routes that ask who calls, and of where their keys come from.
    fn auth_figures(&self, table: &Table, out: &mut String) {
        let gated: Vec<&Route> =
            table.routes.iter().map(|route| &**route).filter(|route| route.gate.is_some()).collect();
        if gated.is_empty() {
            return;
        }
        let _ = writeln!(out, "# TYPE buttress_traffic_auth_total counter");
        for route in gated {
            let mut line = |outcome: &str, pick: fn(&AuthFigures) -> &Count| {
                let sum = route.figures.auth.iter().map(|figures| pick(figures).get()).fold(0, u64::wrapping_add);
                let name = &route.name;
                let _ = writeln!(out, "buttress_traffic_auth_total{{route=\"{name}\",outcome=\"{outcome}\"}} {sum}");
            };
            line("passed", |figures| &figures.passed);
            line("anonymous", |figures| &figures.anonymous);
            line("refused", |figures| &figures.refused);
            line("forbidden", |figures| &figures.forbidden);
            line("unready", |figures| &figures.unready);
        }
        let sources = table.sources.health();
        let label = |what: &str, origin: &str| {
            format!(
                "what=\"{what}\",from=\"{}\"",
                origin.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
            )
        };
        let _ = writeln!(out, "# TYPE buttress_traffic_auth_keys gauge");
        for (what, health) in &sources {
            let _ = writeln!(
                out,
                "buttress_traffic_auth_keys{{{}}} {}",
                label(what, &health.origin),
                health.keys.unwrap_or(0)
            );
        }
        let _ = writeln!(out, "# TYPE buttress_traffic_auth_keys_stale gauge");
        for (what, health) in &sources {
            let stale = u8::from(health.problem.is_some() || health.keys.is_none());
            let _ = writeln!(out, "buttress_traffic_auth_keys_stale{{{}}} {stale}", label(what, &health.origin));
        }
    }
}

fn classes(out: &mut String, name: &str, series: &[(String, GoldenSum)]) {
    for (label, sum) in series {
        for (class, count) in sum.by_class.iter().enumerate() {
            let _ = writeln!(out, "{name}{{{label},status=\"{}xx\"}} {count}", class + 1);
        }
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

fn histogram(out: &mut String, name: &str, series: &[(String, GoldenSum)]) {
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
