//! Figures of the edge, as plain counters. Labels are bounded: APIs are the table's, topics the first thousand.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use buttress_wire::kafka::Api;

/// Topics that are counted by name; the others are counted together.
const TOPICS_MAX: usize = 1000;
const OTHER_TOPICS: &str = "_other";

/// Counts since the node started. All methods may be called from any task.
#[derive(Debug, Default)]
pub struct Counters {
    /// By place in [`Api::SERVED`].
    requests: [AtomicU64; Api::SERVED.len()],
    errors: [AtomicU64; Api::SERVED.len()],
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    connections_opened: AtomicU64,
    connections_closed: AtomicU64,
    connections_refused: AtomicU64,
    connections_failed: AtomicU64,
    produce_waits: AtomicU64,
    topics: Mutex<BTreeMap<String, TopicCounters>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct TopicCounters {
    records_in: u64,
    record_bytes_in: u64,
    records_out: u64,
    record_bytes_out: u64,
}

type TopicFigure = fn(&TopicCounters) -> u64;

/// One figure: the metric's name, its label if it has one, and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub name: &'static str,
    pub label: Option<(&'static str, String)>,
    pub value: u64,
}

fn place(api: &Api) -> usize {
    Api::SERVED.iter().position(|served| served.key == api.key).expect("a decoded request is of a served API")
}

impl Counters {
    pub(super) fn request(&self, api: &Api, bytes: usize) {
        self.requests[place(api)].fetch_add(1, Relaxed);
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
    }

    /// Error codes given in answers of the API.
    pub(super) fn error(&self, api: &Api) {
        self.errors[place(api)].fetch_add(1, Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn connection_opened(&self) {
        self.connections_opened.fetch_add(1, Relaxed);
    }

    /// `failed`: closed by us because of what the client sent or did not do.
    pub(super) fn connection_closed(&self, failed: bool) {
        self.connections_closed.fetch_add(1, Relaxed);
        self.connections_failed.fetch_add(failed.into(), Relaxed);
    }

    /// A Produce found no room on its way into the log.
    pub(super) fn produce_waited(&self) {
        self.produce_waits.fetch_add(1, Relaxed);
    }

    pub(super) fn connection_refused(&self) {
        self.connections_refused.fetch_add(1, Relaxed);
    }

    pub(super) fn records_in(&self, topic: &str, records: u64, bytes: usize) {
        self.topic(topic, |c| {
            c.records_in += records;
            c.record_bytes_in += bytes as u64;
        });
    }

    pub(super) fn records_out(&self, topic: &str, records: u64, bytes: usize) {
        self.topic(topic, |c| {
            c.records_out += records;
            c.record_bytes_out += bytes as u64;
        });
    }

    fn topic(&self, name: &str, count: impl FnOnce(&mut TopicCounters)) {
        let mut topics = self.topics.lock().expect("counting does not panic");
        if let Some(counters) = topics.get_mut(name) {
            return count(counters);
        }
        let name = if topics.len() < TOPICS_MAX { name } else { OTHER_TOPICS };
        count(topics.entry(name.to_owned()).or_default());
    }

    /// Every figure, in a fixed order, named as Prometheus wants counters named.
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        let plain = [
            ("buttress_events_kafka_bytes_in_total", &self.bytes_in),
            ("buttress_events_kafka_bytes_out_total", &self.bytes_out),
            ("buttress_events_kafka_connections_opened_total", &self.connections_opened),
            ("buttress_events_kafka_connections_closed_total", &self.connections_closed),
            ("buttress_events_kafka_connections_refused_total", &self.connections_refused),
            ("buttress_events_kafka_connections_failed_total", &self.connections_failed),
            ("buttress_events_kafka_produce_waits_total", &self.produce_waits),
        ];
        samples.extend(plain.map(|(name, value)| Sample { name, label: None, value: value.load(Relaxed) }));
        for (name, values) in [
            ("buttress_events_kafka_requests_total", &self.requests),
            ("buttress_events_kafka_errors_total", &self.errors),
        ] {
            samples.extend(Api::SERVED.iter().zip(values).map(|(api, value)| Sample {
                name,
                label: Some(("api", api.name.to_owned())),
                value: value.load(Relaxed),
            }));
        }
        let topics = self.topics.lock().expect("counting does not panic").clone();
        let by_topic: [(&'static str, TopicFigure); 4] = [
            ("buttress_events_kafka_records_in_total", |c| c.records_in),
            ("buttress_events_kafka_record_bytes_in_total", |c| c.record_bytes_in),
            ("buttress_events_kafka_records_out_total", |c| c.records_out),
            ("buttress_events_kafka_record_bytes_out_total", |c| c.record_bytes_out),
        ];
        for (name, value) in by_topic {
            samples.extend(topics.iter().map(|(topic, counters)| Sample {
                name,
                label: Some(("topic", topic.clone())),
                value: value(counters),
            }));
        }
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_beyond_the_limit_are_counted_together() {
        let counters = Counters::default();
        for topic in 0..TOPICS_MAX + 5 {
            counters.records_in(&format!("t{topic}"), 2, 10);
        }
        let samples = counters.samples();
        let records: Vec<_> = samples.iter().filter(|s| s.name == "buttress_events_kafka_records_in_total").collect();
        assert_eq!(records.len(), TOPICS_MAX + 1);
        let other = records.iter().find(|s| s.label == Some(("topic", OTHER_TOPICS.into()))).unwrap();
        assert_eq!(other.value, 10);
    }
}
