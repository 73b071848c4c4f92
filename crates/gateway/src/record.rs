//! Decision records: what happened to a request that did not simply succeed, so that somebody can ask afterwards.
//!
//! All failures are kept, and requests that needed more than one attempt; of the others one in [`SAMPLE`]. The newest
//! [`KEPT`] stay in memory, for all cores together: 4,096 records of about 1 KiB are about 4 MiB. A record is made only when
//! there is one to keep, so a request that succeeds at once pays for none of it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use buttress_policy::{Outcome, Pushback, parse};
use serde_json::{Value, json};

use crate::parse::{Kind, RequestHead};

pub const KEPT: usize = 4096;
/// One in so many requests that succeeded at once is kept too.
pub const SAMPLE: u64 = 1024;
/// Of a path or a host; what is longer is cut.
const TEXT_MAX: usize = 256;

/// What a policy decided, and why.
#[derive(Clone, Debug)]
pub struct Decision {
    pub code: &'static str,
    pub says: String,
    /// Empty where the request passed.
    pub would_pass: String,
}

#[derive(Clone, Debug)]
pub struct Attempt {
    pub endpoint: String,
    pub backend: String,
    /// Sent beside an earlier one that was slow.
    pub hedge: bool,
    /// How the endpoint was chosen.
    pub picked: Option<Decision>,
    /// What the endpoint's breaker said.
    pub breaker: Option<Decision>,
    pub took_ms: f64,
    /// The status of the answer, where there was one.
    pub status: Option<u16>,
    pub grpc_status: Option<u16>,
    /// What went wrong; empty where nothing did.
    pub problem: String,
    /// The same, as the policies were told it.
    pub outcome: Outcome,
    /// Whether the upstream can have seen the request.
    pub delivered: bool,
    pub reused_connection: bool,
    /// Whether another attempt follows, and why or why not.
    pub next: Option<Decision>,
}

/// What a request said of itself that policies look at. With it a record can be judged again, by other policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// It has an `idempotency-key`.
    pub keyed: bool,
    /// It makes a connection that nobody can repeat.
    pub upgrade: bool,
    /// Which attempt of its caller it is.
    pub attempt: u32,
    /// What its caller waits for.
    pub left: Option<Duration>,
    /// By the header that its route named.
    pub priority: Option<u8>,
}

impl Default for Said {
    fn default() -> Self {
        Self { keyed: false, upgrade: false, attempt: 1, left: None, priority: None }
    }
}

impl Said {
    pub fn of(request: &RequestHead, priority: Option<&str>) -> Self {
        let fields = &request.fields;
        let grpc = || fields.text(Kind::GrpcTimeout).and_then(parse::grpc_timeout);
        Self {
            keyed: fields.get(Kind::IdempotencyKey).is_some(),
            upgrade: request.upgrade,
            attempt: fields.text(Kind::RetryAttempt).map_or(1, parse::attempt),
            left: fields.text(Kind::Timeout).and_then(parse::timeout_ms).or_else(grpc),
            priority: priority.and_then(|name| std::str::from_utf8(fields.named(name)?).ok()?.trim().parse().ok()),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Record {
    pub id: String,
    pub at_ms: u64,
    pub method: String,
    pub path: String,
    pub authority: String,
    pub client: String,
    pub said: Said,
    pub route: String,
    /// Where the match that took it was written.
    pub matched: String,
    /// The last one that was asked.
    pub backend: String,
    /// What the client was answered.
    pub status: u16,
    pub grpc_status: Option<u16>,
    /// The code that decided, and its sentence.
    pub outcome: Decision,
    pub took_ms: f64,
    pub deadline_ms: f64,
    pub deadline_left_ms: f64,
    /// What the policies of the route said before an attempt was made.
    pub admission: Vec<Decision>,
    pub attempts: Vec<Attempt>,
    /// How the policies stood then, a sentence each.
    pub state: Vec<String>,
}

/// A text that anybody may have sent, cut to a size that may be kept.
pub fn cut(text: &[u8]) -> String {
    let mut kept = String::from_utf8_lossy(&text[..text.len().min(TEXT_MAX)]).into_owned();
    if text.len() > TEXT_MAX {
        kept.push('…');
    }
    kept
}

/// `never`, milliseconds, or nothing.
fn pushback(asked: Pushback) -> Value {
    match asked {
        Pushback::None => Value::Null,
        Pushback::Never => "never".into(),
        Pushback::After(pause) => (pause.as_secs_f64() * 1e3).into(),
    }
}

impl Decision {
    fn json(&self) -> Value {
        json!({"code": self.code, "says": self.says, "would_pass": self.would_pass})
    }
}

impl Record {
    pub fn json(&self) -> Value {
        let option = |decision: &Option<Decision>| decision.as_ref().map(Decision::json);
        let attempts: Vec<Value> = self
            .attempts
            .iter()
            .map(|a| {
                json!({
                    "endpoint": a.endpoint, "backend": a.backend, "hedge": a.hedge, "picked": option(&a.picked), "breaker": option(&a.breaker),
                    "took_ms": a.took_ms, "status": a.status, "grpc_status": a.grpc_status, "problem": a.problem,
                    "kind": a.outcome.kind.word(), "undelivered": a.outcome.undelivered, "pushback": pushback(a.outcome.pushback),
                    "delivered": a.delivered, "reused_connection": a.reused_connection, "next": option(&a.next),
                })
            })
            .collect();
        json!({
            "id": self.id, "at_ms": self.at_ms, "method": self.method, "path": self.path, "authority": self.authority,
            "client": self.client,
            "said": {
                "keyed": self.said.keyed, "upgrade": self.said.upgrade, "attempt": self.said.attempt,
                "left_ms": self.said.left.map(|left| left.as_secs_f64() * 1e3), "priority": self.said.priority,
            },
            "route": self.route, "matched": self.matched, "backend": self.backend, "status": self.status, "grpc_status": self.grpc_status,
            "outcome": self.outcome.json(), "took_ms": self.took_ms, "deadline_ms": self.deadline_ms,
            "deadline_left_ms": self.deadline_left_ms,
            "admission": self.admission.iter().map(Decision::json).collect::<Vec<_>>(),
            "attempts": attempts, "state": self.state,
        })
    }

    /// One line for a list.
    pub fn summary(&self) -> Value {
        json!({
            "id": self.id, "at_ms": self.at_ms, "method": self.method, "path": self.path, "status": self.status,
            "code": self.outcome.code, "says": self.outcome.says, "took_ms": self.took_ms,
            "attempts": self.attempts.len(),
        })
    }
}

/// The newest records.
#[derive(Default)]
pub struct Records {
    ring: Mutex<VecDeque<Arc<Record>>>,
}

impl Records {
    pub fn keep(&self, record: Record) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(Arc::new(record));
    }

    /// The newest record of this id: a client may have used one twice.
    pub fn find(&self, id: &str) -> Option<Arc<Record>> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.iter().rev().find(|record| record.id == id).cloned()
    }

    /// The newest ones, newest first.
    pub fn latest(&self, most: usize) -> Vec<Arc<Record>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().take(most).cloned().collect()
    }
}

#[cfg(test)]
pub(crate) fn example(id: &str) -> Record {
    let decision = Decision { code: "BT0911", says: "s".into(), would_pass: String::new() };
    Record {
        id: id.into(),
        at_ms: 0,
        method: "GET".into(),
        path: "/".into(),
        authority: "h".into(),
        client: "c".into(),
        said: Said::default(),
        route: "all".into(),
        matched: "routes.yaml:3".into(),
        backend: "1".into(),
        status: 503,
        grpc_status: None,
        outcome: decision,
        took_ms: 1.0,
        deadline_ms: 2.0,
        deadline_left_ms: 1.0,
        admission: Vec::new(),
        attempts: Vec::new(),
        state: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_records_stay_and_the_newest_of_an_id_is_found() {
        let records = Records::default();
        for number in 0..KEPT + 10 {
            records.keep(example(&format!("r-{number}")));
        }
        assert!(records.find("r-9").is_none() && records.find("r-10").is_some());
        records.keep(Record { status: 200, ..example("r-20") });
        assert_eq!(records.find("r-20").unwrap().status, 200);
        assert_eq!(records.latest(2).len(), 2);
        assert_eq!(cut(&[b'a'; 300]).chars().count(), TEXT_MAX + 1);
    }
}
