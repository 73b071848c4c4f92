//! What an onlooker may read of a proxy: figures for Prometheus, a snapshot for the live page, the policies' state in words.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
};

use buttress_policy::{Span, Time};
use serde_json::{Value, json};

use crate::{
    listen::{Serves, Setting},
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
        if let Some(limiter) = view.limiter {
            let (limit, short, base) = (limiter.limit, Span::from(limiter.short), Span::from(limiter.base));
            state.push(format!(
                "adaptive limit: {limit} at once; answers took {short} lately, and take {base} without load"
            ));
        }
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

/// Those that pass connections as they are. Of several at one address, of which all but the first drain, the first.
fn passed(settings: &[Arc<Setting>]) -> Vec<&tcp::Listener> {
    let mut passed: Vec<&tcp::Listener> = Vec::new();
    for setting in settings {
        if let Serves::Tcp(listener) = &setting.serves
            && !passed.iter().any(|known| known.address == listener.address)
        {
            passed.push(listener);
        }
    }
    passed
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
        let ports = self.listeners.all();
        let listeners: Vec<Value> = ports.iter().map(|port| port.json()).collect();
        let settings: Vec<_> = ports.iter().map(|port| port.now().setting).collect();
        let tcp: Vec<Value> = passed(&settings).iter().map(|listener| listener.json(now)).collect();
        json!({
            "listen": self.listeners.first_http().map(|port| port.address.to_string()), "listeners": listeners,
            "uptime_ms": self.started.elapsed().as_millis() as u64,
            "bare": self.options.bare, "generation": table.generation, "routes": routes,
            "connections": self.sum(|shard| &shard.connections), "attempts": self.sum(|shard| &shard.attempts),
            "retries": self.sum(|shard| &shard.retries), "hedges": self.sum(|shard| &shard.hedges),
            "refused": self.sum(|shard| &shard.refused), "unmatched": self.sum(|shard| &shard.unmatched),
            "tunnels": self.sum(|shard| &shard.tunnels),
            "tcp": tcp,
        })
    }

    /// Figures in the text form of Prometheus.
    pub fn prometheus(&self, out: &mut String) {
        let (now, table) = (self.now(), self.table.load_full());
        let routes: Vec<(String, GoldenSum)> =
            table.routes.iter().map(|route| (format!("route=\"{}\"", value(&route.name)), route.sum())).collect();
        let name = "buttress_traffic_requests_total";
        classes(out, name, "Answers to clients, by hundreds of the status. A client that left first is 4xx.", &routes);
        let name = "buttress_traffic_request_seconds";
        histogram(out, name, "From a request's head to the begin of its answer.", &routes);
        self.auth_figures(&table, out);
        let name = "buttress_traffic_running";
        head(out, name, "gauge", "Requests whose answer has not ended.");
        for (label, sum) in &routes {
            let _ = writeln!(out, "{name}{{{label}}} {}", sum.running);
        }
        let mut endpoints = Vec::new();
        let mut views = Vec::new();
        for route in &table.routes {
            for backend in &route.backends {
                let label = format!("route=\"{}\",backend=\"{}\"", value(&route.name), value(&backend.name));
                let list = backend.endpoints.load_full();
                for (at, member) in list.members.iter().enumerate() {
                    let label = format!("{label},endpoint=\"{}\"", value(&member.endpoint.address));
                    endpoints.push((label, member.sum(), endpoint_state(&list, at, now)));
                }
                views.push((label, backend.policy.view(now), list.set.count(now)));
            }
        }
        let golden: Vec<(String, GoldenSum)> =
            endpoints.iter().map(|(label, (golden, ..), _)| (label.clone(), golden.clone())).collect();
        let name = "buttress_traffic_endpoint_requests_total";
        classes(
            out,
            name,
            "Attempts, by hundreds of the status. No answer counts as 502, or as 499 where the client broke off.",
            &golden,
        );
        histogram(out, "buttress_traffic_endpoint_seconds", "From an attempt to the begin of its answer.", &golden);
        let mut each = |name: &str, kind: &str, help: &str, pick: &dyn Fn(&Sums, &str) -> u64| {
            head(out, name, kind, help);
            for (label, sums, state) in &endpoints {
                let _ = writeln!(out, "{name}{{{label}}} {}", pick(sums, state));
            }
        };
        let name = "buttress_traffic_endpoint_running";
        each(name, "gauge", "Attempts that wait for the begin of an answer.", &|sums, _| sums.0.running);
        let name = "buttress_traffic_endpoint_failures_total";
        each(name, "counter", "Attempts that the policies count as failures.", &|sums, _| sums.1);
        each("buttress_traffic_endpoint_connects_total", "counter", "Connections made.", &|sums, _| sums.2);
        let name = "buttress_traffic_endpoint_up";
        each(name, "gauge", "1 where it is neither ejected nor down.", &|_, state| (state == "in").into());
        type View<'a> = &'a dyn Fn(&buttress_policy::View, &buttress_policy::endpoint::Count) -> u64;
        let mut each = |name: &str, help: &str, pick: View<'_>| {
            head(out, name, "gauge", help);
            for (label, view, count) in &views {
                let _ = writeln!(out, "{name}{{{label}}} {}", pick(view, count));
            }
        };
        each("buttress_traffic_breaker_open", "1 while the backend's breaker is open or half open.", &|view, _| {
            view.breaker.is_some_and(|breaker| breaker.state.word().contains("open")).into()
        });
        let name = "buttress_traffic_concurrency_limit";
        each(name, "Calls that may run at once, as the limiter stands.", &|view, _| view.limit.into());
        each("buttress_traffic_waiting", "Calls that wait for a place.", &|view, _| view.queued.into());
        let name = "buttress_traffic_retry_budget_left";
        each(name, "Retries and hedges that the budget allows at this moment.", &|view, _| view.budget.left().into());
        each("buttress_traffic_endpoints", "Endpoints in all.", &|_, count| {
            (count.available + count.ejected + count.down).into()
        });
        let name = "buttress_traffic_endpoints_ejected";
        each(name, "Endpoints that are left out because they failed.", &|_, count| count.ejected.into());
        let name = "buttress_traffic_endpoints_down";
        each(name, "Endpoints that are told to be down.", &|_, count| count.down.into());
        let mut one = |name: &str, kind: &str, help: &str, count: u64| {
            head(out, name, kind, help);
            let _ = writeln!(out, "{name} {count}");
        };
        let sum = |pick: fn(&Shard) -> &Count| self.sum(pick);
        let generation = table.generation;
        one("buttress_traffic_table_generation", "gauge", "Rises with every change of the routes.", generation);
        let (name, rejected) = ("buttress_traffic_config_rejected_total", self.rejected.load(Relaxed));
        one(name, "counter", "Changes of the routes that were refused.", rejected);
        let (name, standing) = ("buttress_traffic_config_stale", self.stale.load(Relaxed));
        one(name, "gauge", "1 while the newest routes were refused and older ones are in force.", standing.into());
        one("buttress_traffic_connections", "gauge", "Connections of clients.", sum(|shard| &shard.connections));
        let name = "buttress_traffic_connections_total";
        one(name, "counter", "Connections of clients that were accepted.", sum(|shard| &shard.connections_total));
        let name = "buttress_traffic_refused_total";
        one(name, "counter", "What was no HTTP, or ambiguous.", sum(|shard| &shard.refused));
        let name = "buttress_traffic_unmatched_total";
        one(name, "counter", "Requests that no route takes.", sum(|shard| &shard.unmatched));
        one("buttress_traffic_attempts_total", "counter", "Requests sent upstream.", sum(|shard| &shard.attempts));
        let name = "buttress_traffic_retries_total";
        one(name, "counter", "Attempts that were retries.", sum(|shard| &shard.retries));
        let name = "buttress_traffic_hedges_total";
        one(name, "counter", "Attempts beside a slow one.", sum(|shard| &shard.hedges));
        let name = "buttress_traffic_mirrored_total";
        one(name, "counter", "Copies sent to mirrors.", sum(|shard| &shard.mirrored));
        one("buttress_traffic_tunnels_total", "counter", "Connections upgraded.", sum(|shard| &shard.tunnels));
        if let Some(log) = &self.log {
            let figures = log.figures();
            let name = "buttress_traffic_access_log_lines_total";
            one(name, "counter", "Lines written to the access log.", figures.written.load(Relaxed));
            let name = "buttress_traffic_access_log_dropped_total";
            one(name, "counter", "Lines that the access log could not take.", figures.dropped.load(Relaxed));
            let name = "buttress_traffic_access_log_failures_total";
            one(name, "counter", "Writes of the access log that failed.", figures.failures.load(Relaxed));
        }
        if let Some(archive) = self.records.archive() {
            let figures = archive.figures();
            let name = "buttress_traffic_records_written_total";
            one(name, "counter", "Decision records written to disk.", figures.written.load(Relaxed));
            let name = "buttress_traffic_records_lost_total";
            one(name, "counter", "Decision records that the disk did not get.", figures.lost.load(Relaxed));
        }
        if let Some(traces) = &self.traces {
            let figures = traces.figures();
            let name = "buttress_traffic_spans_exported_total";
            one(name, "counter", "Spans that the collector took.", figures.exported.load(Relaxed));
            let name = "buttress_traffic_spans_dropped_total";
            one(
                name,
                "counter",
                "Spans that it did not take, or for which there was no room.",
                figures.dropped.load(Relaxed),
            );
            let name = "buttress_traffic_spans_failures_total";
            one(name, "counter", "Requests to the collector that failed.", figures.failures.load(Relaxed));
        }
        if let Some(logs) = self.records.logs() {
            let figures = logs.figures();
            let name = "buttress_traffic_logs_exported_total";
            one(name, "counter", "Log records that the collector took.", figures.exported.load(Relaxed));
            let name = "buttress_traffic_logs_dropped_total";
            one(
                name,
                "counter",
                "Log records that it did not take, that came too fast, or for which there was no room.",
                figures.dropped.load(Relaxed),
            );
            let name = "buttress_traffic_logs_failures_total";
            one(
                name,
                "counter",
                "Requests to the collector with log records that failed.",
                figures.failures.load(Relaxed),
            );
        }
        let mut codes: BTreeMap<&'static str, u64> = BTreeMap::new();
        for shard in &self.shards {
            for (code, count) in &*shard.codes.lock().unwrap_or_else(PoisonError::into_inner) {
                *codes.entry(code).or_default() += count;
            }
        }
        let name = "buttress_traffic_codes_total";
        head(out, name, "counter", "Answers that were no success, by the code that decided.");
        for (code, count) in codes {
            let _ = writeln!(out, "{name}{{code=\"{code}\"}} {count}");
        }
        self.tls.prometheus(out);
        let ports = self.listeners.all();
        let name = "buttress_traffic_listener_connections";
        head(out, name, "gauge", "Open connections of a listener, serving or draining.");
        // Several of one name may drain at one address.
        let mut sums = BTreeMap::<String, usize>::new();
        for port in &ports {
            let now = port.now();
            let (told, state) = (&now.setting.told, if now.open { "serving" } else { "draining" });
            let (listener, address, protocol) = (value(&told.name), port.address, told.protocol());
            let label =
                format!("listener=\"{listener}\",address=\"{address}\",protocol=\"{protocol}\",state=\"{state}\"");
            *sums.entry(label).or_default() += port.connections.load(Relaxed);
        }
        for (label, connections) in sums {
            let _ = writeln!(out, "{name}{{{label}}} {connections}");
        }
        let settings: Vec<_> = ports.iter().map(|port| port.now().setting).collect();
        tcp::prometheus(&passed(&settings), out);
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
        let _ = writeln!(
            out,
            "# HELP buttress_traffic_auth_total Requests to routes that ask who calls, by what came of it.\n# TYPE buttress_traffic_auth_total counter"
        );
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
        let _ = writeln!(
            out,
            "# HELP buttress_traffic_auth_keys Keys that were read from a file or an address.\n# TYPE buttress_traffic_auth_keys gauge"
        );
        for (what, health) in &sources {
            let _ = writeln!(
                out,
                "buttress_traffic_auth_keys{{{}}} {}",
                label(what, &health.origin),
                health.keys.unwrap_or(0)
            );
        }
        let _ = writeln!(
            out,
            "# HELP buttress_traffic_auth_keys_stale 1 where the last reading of keys failed.\n# TYPE buttress_traffic_auth_keys_stale gauge"
        );
        for (what, health) in &sources {
            let stale = u8::from(health.problem.is_some() || health.keys.is_none());
            let _ = writeln!(out, "buttress_traffic_auth_keys_stale{{{}}} {stale}", label(what, &health.origin));
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A label's value.
fn value(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn classes(out: &mut String, name: &str, help: &str, series: &[(String, GoldenSum)]) {
    head(out, name, "counter", help);
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

fn histogram(out: &mut String, name: &str, help: &str, series: &[(String, GoldenSum)]) {
    head(out, name, "histogram", help);
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
