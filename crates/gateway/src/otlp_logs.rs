//! Log records for a collector: what happened to requests that did not simply succeed, beside their spans.
//!
//! They are the decision records ([`crate::record`]), so a proxy that is well hardly says anything: every request that failed, was
//! refused or broke off, every one that needed more than one attempt, and of the others one in [`SAMPLE`](crate::record::SAMPLE). Requests that were
//! no HTTP are not among them: whoever sends garbage must not fill somebody's store of logs.
//!
//! | what became of the request | severity |
//! |---|---|
//! | it was served | INFO |
//! | it was refused or failed by the client's doing: 4xx, a client that left, gRPC statuses like NOT_FOUND | WARN |
//! | it failed by ours or the upstream's: 5xx, an answer that broke off, gRPC statuses like UNAVAILABLE | ERROR |
//!
//! The body is the code and the sentence, as `buttress explain` prints them; trace and span are those of the request, so that a
//! collector's reader finds the one by the other. A storm of failures is told [`RATE`] times a second at most: what is above that, or finds
//! no room in the queue, is dropped and counted. Nothing that a request needs waits for it.
//!
//! Source: OpenTelemetry, "Logs Data Model" (severities, trace context) and semantic conventions 1.27 (HTTP attributes; which statuses
//! of gRPC are a server's error).

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use buttress_policy::{Time, Why, rate};
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use crate::{
    otlp::{Attributes, Figures, Way, text_of},
    record::Record,
    request_id::hex,
};

/// Log records of a second; 1 MB.
const RATE: u32 = 1000;
/// Attempts that a log record names; the decision record has all.
const ATTEMPTS_MAX: usize = 16;

/// Where the cores tell records.
pub struct Logs {
    pub(crate) way: Way<Arc<Record>>,
    rate: rate::Limit,
    started: Instant,
}

impl Logs {
    pub(crate) fn new() -> (Arc<Self>, Receiver<Arc<Record>>) {
        let (way, records) = Way::new();
        let rate = rate::Limit::new(rate::Config { per_second: RATE.into(), burst: RATE });
        (Arc::new(Self { way, rate, started: Instant::now() }), records)
    }

    pub fn tell(&self, record: &Arc<Record>) {
        let since = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match self.rate.take(Time::from_nanos(since), 1) {
            Ok(_) => self.way.tell(record.clone()),
            Err(_) => drop(self.figures().dropped.fetch_add(1, Relaxed)),
        }
    }

    pub const fn figures(&self) -> &Figures {
        &self.way.figures
    }
}

/// As OpenTelemetry numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Info = 9,
    Warn = 13,
    Error = 17,
}

impl Severity {
    fn of(record: &Record) -> Self {
        let broke_off = record.outcome.code == buttress_core::Code::UPSTREAM_CUT.0;
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        let grpc = record.grpc_status.filter(|status| *status != 0);
        match record.status {
            _ if broke_off || grpc.is_some_and(|status| matches!(status, 2 | 4 | 12..=15)) => Self::Error,
            500.. => Self::Error,
            400.. => Self::Warn,
            _ if grpc.is_some() => Self::Warn,
            _ => Self::Info,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}

/// A `LogRecord`.
pub(crate) fn log_record(record: &Record) -> Value {
    let mut about = Attributes::default();
    about.text("http.request.method", &record.method);
    about.target(record.path.as_bytes());
    about.number("http.response.status_code", record.status.into());
    about.text("client.address", &record.client);
    if !record.authority.is_empty() {
        about.server(&record.authority);
    }
    about.text("buttress.request_id", &record.id);
    about.text("buttress.code", record.outcome.code);
    let known = [
        ("buttress.would_pass", record.outcome.would_pass.as_str()),
        ("buttress.route", &record.route),
        ("buttress.backend", &record.backend),
        ("buttress.listener", record.listener.as_deref().unwrap_or_default()),
        ("buttress.caller", record.caller.as_deref().unwrap_or_default()),
    ];
    for (key, value) in known.into_iter().filter(|(_, value)| !value.is_empty()) {
        about.text(key, value);
    }
    about.0.push(json!({"key": "buttress.took_ms", "value": {"doubleValue": record.took_ms}}));
    let attempts = record.attempts.iter().take(ATTEMPTS_MAX).map(|attempt| {
        let became = match attempt.status {
            _ if !attempt.problem.is_empty() => attempt.problem.clone(),
            Some(status) => status.to_string(),
            None => "no answer".to_owned(),
        };
        json!({"stringValue": format!("{}: {became}", attempt.endpoint)})
    });
    let attempts: Vec<Value> = attempts.collect();
    if !attempts.is_empty() {
        about.0.push(json!({"key": "buttress.attempts", "value": {"arrayValue": {"values": attempts}}}));
    }
    if let Some(status) = record.grpc_status {
        about.text("rpc.system", "grpc");
        about.number("rpc.grpc.status_code", status.into());
    }
    let severity = Severity::of(record);
    if severity != Severity::Info {
        // An upstream's own 404 is no failure to the policies, so no code says it.
        match record.outcome.code == (Why::RetryNeedless { attempt: 1 }).code() {
            true => about.text("error.type", &record.status.to_string()),
            false => about.text("error.type", record.outcome.code),
        }
    }
    let at = record.at_ms.saturating_mul(1_000_000).to_string();
    let mut told = json!({
        "timeUnixNano": at, "observedTimeUnixNano": at, "severityNumber": severity as u8, "severityText": severity.text(),
        "eventName": "buttress.decision",
        "body": {"stringValue": format!("{}: {}", record.outcome.code, record.outcome.says)},
        "attributes": about.0,
    });
    if let Some(context) = &record.trace {
        told["traceId"] = text_of(&context.id).into();
        told["flags"] = u8::from(context.sampled).into();
        if let Some(span) = context.span {
            told["spanId"] = text_of(&hex(span)).into();
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Decision, example};

    #[test]
    fn severity_says_whose_fault_it_was() {
        let of = |status, grpc_status, code| {
            let outcome = Decision { code, ..Decision::default() };
            Severity::of(&Record { status, grpc_status, outcome, ..example("a") }).text()
        };
        assert_eq!([of(200, None, "BT-RTY-OK"), of(304, None, ""), of(200, Some(0), "")], ["INFO"; 3]);
        assert_eq!([of(404, None, "BT0914"), of(499, None, "BT0913"), of(429, None, "BT-LSE-EMPTY")], ["WARN"; 3]);
        assert_eq!([of(200, Some(5), "BT0911"), of(200, Some(16), "BT0911")], ["WARN"; 2]);
        assert_eq!([of(503, None, "BT-LIM-FULL"), of(200, None, "BT0912"), of(200, Some(14), "BT0911")], ["ERROR"; 3]);
    }

    #[test]
    fn an_upstreams_own_404_is_told_as_such_and_a_refusal_by_its_code() {
        let of = |status, code| {
            let outcome = Decision { code, ..Decision::default() };
            let told = log_record(&Record { status, outcome, ..example("a") });
            let known = told["attributes"].as_array().unwrap().iter().find(|one| one["key"] == "error.type").cloned();
            known.map(|one| one["value"]["stringValue"].as_str().unwrap().to_owned())
        };
        let needless = (Why::RetryNeedless { attempt: 2 }).code();
        assert_eq!((of(404, needless), of(200, needless)), (Some("404".into()), None));
        assert_eq!(of(429, "BT-LSE-EMPTY"), Some("BT-LSE-EMPTY".into()));
    }

    #[test]
    fn a_storm_of_failures_is_told_up_to_a_rate_and_the_rest_is_counted() {
        let (logs, mut records) = Logs::new();
        let record = Arc::new(example("a"));
        let told = u64::from(4 * RATE);
        for _ in 0..told {
            logs.tell(&record);
        }
        let mut came = 0;
        while records.try_recv().is_ok() {
            came += 1;
        }
        let dropped = logs.figures().dropped.load(Relaxed);
        assert!(
            came >= u64::from(RATE) && came + dropped == told && dropped > 0,
            "{came} came, {dropped} were dropped"
        );
    }
}
