//! What the cores of a proxy share, and what an onlooker may read: figures, records, the state of the policies.

use std::{fmt::Write, net::SocketAddr, sync::Arc, time::Instant};

use serde_json::{Value, json};

use crate::{
    config::Options,
    metrics::{BOUNDS_US, Count, EndpointFigures, GoldenSum, Shard},
    record::Records,
};

/// The one route that `buttress proxy` has.
pub const ROUTE: &str = "everything";

pub struct Shared {
    pub options: Options,
    /// Where traffic comes in.
    pub address: SocketAddr,
    pub shards: Vec<Arc<Shard>>,
    pub records: Records,
    pub started: Instant,
}

impl Shared {
    pub fn new(options: Options, address: SocketAddr) -> Self {
        let shards = (0..options.threads.max(1)).map(|_| Arc::new(Shard::new(options.endpoints.len()))).collect();
        Self { options, address, shards, records: Records::default(), started: Instant::now() }
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
        let endpoints: Vec<Value> = (0..self.options.endpoints.len())
            .map(|at| {
                let (golden, failures, connects) = self.endpoint(at);
                let endpoint = &self.options.endpoints[at].address;
                json!({
                    "endpoint": endpoint, "golden": golden_json(&golden), "failures": failures, "connects": connects,
                    "state": "in",
                })
            })
            .collect();
        json!({
            "listen": self.address.to_string(), "uptime_ms": self.started.elapsed().as_millis() as u64,
            "bare": self.options.bare, "route": golden_json(&self.route()), "endpoints": endpoints,
            "connections": self.sum(|shard| &shard.connections), "attempts": self.sum(|shard| &shard.attempts),
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
        let mut one = |name: &str, kind: &str, pick: fn(&Shard) -> &Count| {
            let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {}", self.sum(pick));
        };
        one("buttress_traffic_connections", "gauge", |shard| &shard.connections);
        one("buttress_traffic_connections_total", "counter", |shard| &shard.connections_total);
        one("buttress_traffic_refused_total", "counter", |shard| &shard.refused);
        one("buttress_traffic_attempts_total", "counter", |shard| &shard.attempts);
        one("buttress_traffic_retries_total", "counter", |shard| &shard.retries);
        one("buttress_traffic_tunnels_total", "counter", |shard| &shard.tunnels);
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
