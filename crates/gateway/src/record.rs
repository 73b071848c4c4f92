//! Decision records: what happened to a request that did not simply succeed, so that somebody can ask afterwards.
//!
//! All failures are kept, and requests that needed more than one attempt; of the others one in [`SAMPLE`]. The newest
//! [`KEPT`] stay in memory, for all cores together: 4,096 records of about 1 KiB are about 4 MiB. A record is made only when
//! there is one to keep, so a request that succeeds at once pays for none of it.
//!
//! A record holds what the decisions hung on, so that other routes can be asked about the same request: what it said of itself
//! ([`Said`]), the fields by which the table in force decides ([`crate::noted`]), and the [`Point`] by which weights chose its
//! backend. Credentials are in none.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use buttress_policy::{Outcome, Pushback, parse};
use serde_json::{Value, json};

use crate::{
    archive::Archive,
    noted::{self, Noted},
    otlp_logs::Logs,
    parse::{Kind, RequestHead},
    rules::Point,
    trace::Context,
};

pub const KEPT: usize = 4096;
/// Of requests that could not be read, which have a place of their own: whoever sends garbage must not push out what is worth
/// keeping. For the same reason they are not kept on disk.
const KEPT_UNREAD: usize = 256;
/// Of records of before the start, which are kept as text and shown until there are enough new ones.
const BEFORE: usize = 200;
/// One in so many requests that succeeded at once is kept too.
pub const SAMPLE: u64 = 1024;
/// Of a path or a host; what is longer is cut.
const TEXT_MAX: usize = 256;

/// What a policy decided, and why.
#[derive(Clone, Debug, Default)]
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

#[derive(Clone, Debug, Default)]
pub struct Record {
    pub id: String,
    /// For whoever keeps it beside a trace; no record shows it.
    pub trace: Option<Context>,
    pub at_ms: u64,
    pub method: String,
    pub path: String,
    pub authority: String,
    pub client: String,
    /// The name of the listener at which it came in.
    pub listener: Option<String>,
    /// Who calls, where the route found out.
    pub caller: Option<String>,
    pub said: Said,
    /// The fields by which a route of the table could have decided.
    pub fields: Vec<Noted>,
    /// By which weights chose the backend; none where the request got no further than to a route's rules.
    pub point: Option<Point>,
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
        Pushback::After(pause) => micros(pause.as_secs_f64() * 1e3).into(),
    }
}

/// Milliseconds to the microsecond: what is finer nobody reads, and it would not come back from JSON as it was.
fn micros(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
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
                    "took_ms": micros(a.took_ms), "status": a.status, "grpc_status": a.grpc_status, "problem": a.problem,
                    "kind": a.outcome.kind.word(), "undelivered": a.outcome.undelivered, "pushback": pushback(a.outcome.pushback),
                    "delivered": a.delivered, "reused_connection": a.reused_connection, "next": option(&a.next),
                })
            })
            .collect();
        json!({
            "id": self.id, "at_ms": self.at_ms, "method": self.method, "path": self.path, "authority": self.authority,
            "client": self.client, "listener": self.listener, "caller": self.caller,
            "said": {
                "keyed": self.said.keyed, "upgrade": self.said.upgrade, "attempt": self.said.attempt,
                "left_ms": self.said.left.map(|left| micros(left.as_secs_f64() * 1e3)), "priority": self.said.priority,
            },
            "fields": noted::json(&self.fields), "point": self.point.map(Point::share),
            "route": self.route, "matched": self.matched, "backend": self.backend, "status": self.status, "grpc_status": self.grpc_status,
            "outcome": self.outcome.json(), "took_ms": micros(self.took_ms), "deadline_ms": micros(self.deadline_ms),
            "deadline_left_ms": micros(self.deadline_left_ms),
            "admission": self.admission.iter().map(Decision::json).collect::<Vec<_>>(),
            "attempts": attempts, "state": self.state,
        })
    }
}

/// One line of a list, from a record as JSON.
pub fn summary(record: &Value) -> Value {
    let mut line = json!({
        "says": record["outcome"]["says"], "code": record["outcome"]["code"],
        "attempts": record["attempts"].as_array().map_or(0, Vec::len),
    });
    for key in ["id", "at_ms", "method", "path", "status", "grpc_status", "route", "took_ms"] {
        line[key] = record[key].clone();
    }
    line
}

/// Which records are wanted; what is absent lets all pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Its whole name; empty: those that no route took.
    pub route: Option<String>,
    /// What the code of its outcome, or of a decision against it, begins with; in any case.
    pub code: Option<String>,
    /// What stands in id, path, host, client, caller, endpoints, or the sentence; in any case.
    pub text: Option<String>,
}

impl Filter {
    fn holds(&self, record: &Record) -> bool {
        // A decision that let the call pass is no reason to look for it.
        let refusals = || {
            let of = |attempt: &'_ Attempt| [attempt.picked.clone(), attempt.breaker.clone(), attempt.next.clone()];
            let all = record.attempts.iter().flat_map(of).flatten().chain(record.admission.iter().cloned());
            all.filter(|one| !one.would_pass.is_empty()).chain([record.outcome.clone()])
        };
        let texts = || {
            let known =
                [&record.id, &record.path, &record.authority, &record.client, &record.method, &record.outcome.says];
            let endpoints = record.attempts.iter().flat_map(|attempt| [&attempt.endpoint, &attempt.problem]);
            known.into_iter().chain(endpoints).chain(&record.caller).map(String::as_str)
        };
        self.route.as_ref().is_none_or(|route| *route == record.route)
            && self.code.as_ref().is_none_or(|wanted| refusals().any(|one| begins(one.code, wanted)))
            && self.text.as_ref().is_none_or(|wanted| {
                let wanted = wanted.to_lowercase();
                texts().any(|text| text.to_lowercase().contains(&wanted)) || record.status.to_string() == wanted
            })
    }

    /// The same of a record of before the start, where all of its text is looked at.
    fn holds_json(&self, record: &Value, line: &str) -> bool {
        let list = |key: &str| record[key].as_array().map(Vec::as_slice).unwrap_or_default();
        let refusals = || {
            let of = |attempt: &'_ Value| ["picked", "breaker", "next"].map(|key| attempt[key].clone());
            let all = list("attempts").iter().flat_map(of).chain(list("admission").iter().cloned());
            all.filter(|one| one["would_pass"].as_str().is_some_and(|pass| !pass.is_empty()))
                .chain([record["outcome"].clone()])
        };
        self.route.as_ref().is_none_or(|route| record["route"] == route.as_str())
            && self.code.as_ref().is_none_or(|wanted| {
                refusals().any(|one| one["code"].as_str().is_some_and(|code| begins(code, wanted)))
            })
            && self.text.as_ref().is_none_or(|text| line.to_lowercase().contains(&text.to_lowercase()))
    }
}

fn begins(code: &str, wanted: &str) -> bool {
    code.get(..wanted.len()).is_some_and(|part| part.eq_ignore_ascii_case(wanted))
}

/// The newest records.
#[derive(Default)]
pub struct Records {
    rings: Mutex<Rings>,
    /// Newest first.
    before: Vec<Box<str>>,
    archive: Option<Archive>,
    logs: Option<Arc<Logs>>,
}

#[derive(Default)]
struct Rings {
    all: VecDeque<Arc<Record>>,
    unread: VecDeque<Arc<Record>>,
}

impl Records {
    /// Also on disk, and with what lies there; and as log records for a collector.
    pub fn with(archive: Option<Archive>, logs: Option<Arc<Logs>>) -> Self {
        let mut before = Vec::new();
        if let Some(archive) = &archive {
            archive.before(|_, line| {
                before.push(line.into());
                before.len() < BEFORE
            });
        }
        Self { rings: Mutex::default(), before, archive, logs }
    }

    pub fn archive(&self) -> Option<&Archive> {
        self.archive.as_ref()
    }

    pub fn logs(&self) -> Option<&Logs> {
        self.logs.as_deref()
    }

    pub fn keep(&self, record: Record) {
        let record = Arc::new(record);
        if let Some(logs) = &self.logs {
            logs.tell(&record);
        }
        if let Some(archive) = &self.archive {
            archive.keep(&record);
        }
        push(&mut self.lock().all, record, KEPT);
    }

    /// A request whose head could not be read.
    pub fn keep_unread(&self, record: Record) {
        push(&mut self.lock().unread, Arc::new(record), KEPT_UNREAD);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest record of this id that is in memory: a client may have used one twice.
    pub fn find(&self, id: &str) -> Option<Arc<Record>> {
        let rings = self.lock();
        rings.all.iter().rev().chain(rings.unread.iter().rev()).find(|record| record.id == id).cloned()
    }

    /// The same, also from disk, which may take some milliseconds.
    pub fn find_anywhere(&self, id: &str) -> Option<Value> {
        self.find(id).map(|record| record.json()).or_else(|| self.archive.as_ref()?.find(id))
    }

    /// The newest ones in memory, newest first.
    pub fn latest(&self, most: usize) -> Vec<Arc<Record>> {
        self.lock().all.iter().rev().take(most).cloned().collect()
    }

    /// The newest ones that a filter lets pass, those that could not be read among them, newest first; where there are fewer, of
    /// before the start too.
    pub fn list(&self, filter: &Filter, most: usize) -> Vec<Value> {
        // Held as short as may be: cores wait for it to keep theirs.
        let (mut found, unread) = {
            let rings = self.lock();
            let taken = if *filter == Filter::default() { most } else { usize::MAX };
            let of = |ring: &VecDeque<Arc<Record>>| ring.iter().rev().take(taken).cloned().collect::<Vec<_>>();
            (of(&rings.all), of(&rings.unread))
        };
        found.extend(unread);
        found.retain(|record| filter.holds(record));
        // Stable, so that those of one millisecond stay as they came.
        found.sort_by_key(|record| std::cmp::Reverse(record.at_ms));
        let fresh = found.iter().map(|record| record.json());
        let before = self.before.iter().filter_map(|line| {
            let record: Value = serde_json::from_str(line).ok()?;
            filter.holds_json(&record, line).then_some(record)
        });
        fresh.chain(before).take(most).collect()
    }
}

fn push(ring: &mut VecDeque<Arc<Record>>, record: Arc<Record>, most: usize) {
    if ring.len() == most {
        ring.pop_front();
    }
    ring.push_back(record);
}

#[cfg(test)]
pub(crate) fn example(id: &str) -> Record {
    let decision = Decision { code: "BT0911", says: "s".into(), would_pass: String::new() };
    Record {
        id: id.into(),
        trace: None,
        at_ms: 0,
        method: "GET".into(),
        path: "/".into(),
        authority: "h".into(),
        client: "c".into(),
        listener: Some("web".into()),
        caller: None,
        said: Said::default(),
        fields: Vec::new(),
        point: None,
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
        for number in 0..KEPT_UNREAD + 1 {
            records.keep_unread(example(&format!("u-{number}")));
        }
        assert!(records.find("r-20").is_some() && records.find("u-1").is_some() && records.find("u-0").is_none());
        assert_eq!(cut(&[b'a'; 300]).chars().count(), TEXT_MAX + 1);
    }

    #[test]
    fn a_list_is_by_route_code_and_text() {
        let records = Records::default();
        records.keep(Record { path: "/Orders".into(), route: "shop".into(), at_ms: 2, ..example("a") });
        records.keep_unread(Record { route: String::new(), at_ms: 1, ..example("b") });
        let ids = |filter: Filter| -> String {
            let listed = records.list(&filter, 10);
            listed.iter().map(|record| record["id"].as_str().unwrap_or_default()).collect()
        };
        let text = |text: &str| ids(Filter { text: Some(text.into()), ..Filter::default() });
        assert_eq!(
            (ids(Filter::default()), text("orders"), text("503"), text("none")),
            ("ab".into(), "a".into(), "ab".into(), String::new())
        );
        let route = |route: &str| ids(Filter { route: Some(route.into()), ..Filter::default() });
        assert_eq!((route("shop"), route(""), route("sho")), ("a".into(), "b".into(), String::new()));
        let code = |code: &str| ids(Filter { code: Some(code.into()), ..Filter::default() });
        assert_eq!((code("bt0911"), code("BT-")), ("ab".into(), String::new()));
    }
}
