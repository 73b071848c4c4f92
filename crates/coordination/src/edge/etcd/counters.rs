//! Figures of the edge.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// Methods have names of the protocol only, so the labels are bounded.
#[derive(Debug, Default)]
pub struct Counters {
    calls: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    pub connections: AtomicU64,
    pub watches: AtomicU64,
    pub events_sent: AtomicU64,
    /// Watches that fell behind the ring and went on from the store.
    pub watches_behind: AtomicU64,
    /// The most bytes of answers that one stream had in line at a time for a watch that is behind.
    pub watch_line_bytes_max: AtomicU64,
}

impl Counters {
    pub(super) fn call(&self, service: &'static str, outcome: &'static str) {
        *self.calls.lock().expect("no holder panics").entry((service, outcome)).or_insert(0) += 1;
    }

    /// Appends the figures in Prometheus' text form.
    pub fn prometheus(&self, out: &mut String) {
        out.push_str("# TYPE buttress_etcd_calls_total counter\n");
        for ((service, outcome), count) in self.calls.lock().expect("no holder panics").iter() {
            let _ = writeln!(out, "buttress_etcd_calls_total{{service=\"{service}\",transport=\"{outcome}\"}} {count}");
        }
        for (name, kind, value) in [
            ("buttress_etcd_connections", "gauge", &self.connections),
            ("buttress_etcd_watches", "gauge", &self.watches),
            ("buttress_etcd_events_sent_total", "counter", &self.events_sent),
            ("buttress_etcd_watches_behind_total", "counter", &self.watches_behind),
            ("buttress_etcd_watch_line_bytes_max", "gauge", &self.watch_line_bytes_max),
        ] {
            let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {}", value.load(Ordering::Relaxed));
        }
    }
}
