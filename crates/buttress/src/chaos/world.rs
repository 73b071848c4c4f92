//! What faults and clients share: where the nodes are, what they say of themselves, and the words in which a commit is both
//! recorded and sent, so that the history cannot say anything else than what was asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use buttress_core::{
    Guard, KeyRange, LogId, Offset, Revision,
    entry::LeaseChange,
    ledger::{KeyValue, KeyValues},
};
use buttress_oracle::{Appended, Commit, Done, Outcome, Serial, What};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    ask::{Caller, Reply},
    groups::Notes,
    record::{Answered, Recorder, Sample, SampleKind},
};

/// A node that does not say in this time how it is, is not there.
pub const STATUS_DEADLINE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub struct Node {
    pub id: u64,
    pub name: String,
    pub http: String,
    pub etcd: String,
    pub kafka: String,
}

/// What `GET /v1/cluster` says, as far as it is needed here.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Status {
    pub leader: Option<u64>,
    pub term: u64,
    pub committed: u64,
    pub applied: u64,
    pub revision: u64,
}

pub struct World {
    pub nodes: Vec<Node>,
    pub recorder: Recorder,
    /// What the clients of etcd did. Times, samples and problems are in the other one.
    pub over_etcd: Recorder,
    /// What Kafka's producers did, and the members of the group.
    pub over_kafka: Recorder,
    pub groups: Notes,
    /// The logs of the partitions of the topic of Kafka's clients.
    pub parcels: Vec<LogId>,
    pub stopped: AtomicBool,
    /// Topics by the log of their one partition.
    topics: BTreeMap<LogId, String>,
    serials: AtomicU64,
    /// Every leader that a node named, by term.
    leaders: Mutex<BTreeMap<u64, BTreeSet<u64>>>,
}

impl World {
    pub fn new(nodes: Vec<Node>, topics: BTreeMap<LogId, String>, parcels: Vec<LogId>) -> Self {
        Self {
            nodes,
            recorder: Recorder::default(),
            over_etcd: Recorder::default(),
            over_kafka: Recorder::default(),
            groups: Notes::default(),
            parcels,
            stopped: AtomicBool::new(false),
            topics,
            serials: AtomicU64::new(1),
            leaders: Mutex::default(),
        }
    }

    /// A number that nobody else is given.
    pub fn serial(&self) -> Serial {
        Serial(self.serials.fetch_add(1, Ordering::Relaxed))
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub fn position(&self, id: u64) -> usize {
        self.nodes.iter().position(|node| node.id == id).expect("ids are the members'")
    }

    pub fn topic(&self, log: LogId) -> String {
        self.topics[&log].clone()
    }

    pub fn log(&self, topic: &str) -> LogId {
        *self.topics.iter().find(|(_, name)| *name == topic).expect("topics are made before the clients start").0
    }

    /// What one node says now. Whom it names as leader is noted: two in one term would be a violation.
    pub async fn status(&self, node: usize) -> Option<Status> {
        let reply = Caller::default().get(&self.nodes[node].http, "/v1/cluster", STATUS_DEADLINE).await;
        let Reply::Answer { status: 200, json } = reply else { return None };
        let status: Status = serde_json::from_value(json).ok()?;
        if let Some(leader) = status.leader {
            self.leaders.lock().expect("no holder panics").entry(status.term).or_default().insert(leader);
        }
        Some(status)
    }

    pub async fn statuses(&self, nodes: &[usize]) -> Vec<(usize, Status)> {
        let asked = futures::future::join_all(nodes.iter().map(|&node| async move { (node, self.status(node).await) }));
        asked.await.into_iter().filter_map(|(node, status)| Some((node, status?))).collect()
    }

    pub fn all(&self) -> Vec<usize> {
        (0..self.nodes.len()).collect()
    }

    /// Leader and term, as those with the highest term see it.
    pub async fn leader(&self) -> Option<(usize, u64)> {
        let statuses = self.statuses(&self.all()).await;
        let best = statuses.into_iter().filter(|(_, s)| s.leader.is_some()).max_by_key(|(_, s)| s.term)?.1;
        Some((self.position(best.leader?), best.term))
    }

    /// Terms in which more than one node was named as leader.
    pub fn double_leaders(&self) -> Vec<String> {
        let leaders = self.leaders.lock().expect("no holder panics");
        let double = leaders.iter().filter(|(_, named)| named.len() > 1);
        double.map(|(term, named)| format!("term {term} has leaders {named:?}")).collect()
    }

    pub fn terms(&self) -> usize {
        self.leaders.lock().expect("no holder panics").len()
    }
}

/// One client: its connection, its number in the history, its patience.
pub struct Client {
    pub id: u64,
    pub caller: Caller,
    pub deadline: Duration,
}

impl Client {
    pub fn new(id: u64, deadline: Duration) -> Self {
        Self { id, caller: Caller::default(), deadline }
    }

    /// Asks a node to commit, and records it. `record` gives a record's text for its serial.
    pub async fn commit(
        &mut self,
        world: &World,
        node: usize,
        commit: Commit,
        record: impl Fn(Serial) -> String,
    ) -> Outcome {
        let body = entry_json(&commit, |log| world.topic(log), record);
        let began = world.recorder.elapsed();
        let op = world.recorder.invoke(self.id, What::Commit(commit));
        let reply = self.caller.post(&world.nodes[node].http, "/v1/entries", &body, self.deadline).await;
        let outcome = commit_outcome(&reply).unwrap_or_else(|problem| {
            world.recorder.problem(format!("{}: {problem} to {body}", world.nodes[node].name));
            Outcome::Unknown
        });
        world.recorder.complete(op, outcome.clone());
        self.sampled(world, node, began, SampleKind::Write, &outcome);
        outcome
    }

    /// Reads one key and records it.
    pub async fn read(&mut self, world: &World, node: usize, key: &Bytes, linearizable: bool) -> Outcome {
        let how = if linearizable { "linearizable" } else { "serializable" };
        let name = crate::client::segment(std::str::from_utf8(key).expect("our keys are text"));
        let path = format!("/v1/keys/{name}?consistency={how}");
        let range = KeyRange::key(key.clone());
        let began = world.recorder.elapsed();
        let op = world.recorder.invoke(self.id, What::Read { range, at: None, linearizable });
        let reply = self.caller.get(&world.nodes[node].http, &path, self.deadline).await;
        let outcome = read_outcome(&reply).unwrap_or_else(|problem| {
            world.recorder.problem(format!("{}: {problem} to GET {path}", world.nodes[node].name));
            Outcome::Failed
        });
        world.recorder.complete(op, outcome.clone());
        let kind = if linearizable { SampleKind::Read } else { SampleKind::Other };
        self.sampled(world, node, began, kind, &outcome);
        outcome
    }

    pub fn sampled(&self, world: &World, node: usize, began: Duration, kind: SampleKind, outcome: &Outcome) {
        let ended = world.recorder.elapsed();
        world.recorder.sample(Sample { began, ended, node, kind, answer: Answered::of(outcome) });
    }
}

fn put_bytes(into: &mut Map<String, Value>, name: &str, bytes: &Bytes) {
    let text = std::str::from_utf8(bytes).expect("the clients' keys and values are text");
    into.insert(name.into(), json!(text));
}

fn on_key(key: &Bytes, name: &str, value: Value) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, "key", key);
    object.insert(name.into(), value);
    Value::Object(object)
}

/// A commit as `POST /v1/entries` takes it.
pub fn entry_json(commit: &Commit, topic: impl Fn(LogId) -> String, record: impl Fn(Serial) -> String) -> Value {
    let guards: Vec<Value> = commit
        .guards
        .iter()
        .map(|guard| match guard {
            Guard::ModRevision { key, revision } => on_key(key, "mod_revision", json!(revision.0)),
            Guard::CreateRevision { key, revision } => on_key(key, "create_revision", json!(revision.0)),
            Guard::Version { key, version } => on_key(key, "version", json!(version)),
            Guard::Value { key, value } => {
                on_key(key, "value", json!(std::str::from_utf8(value).expect("values are text")))
            }
            Guard::LeaseAlive { lease } => json!({"lease_alive": lease.0}),
            Guard::Cursor { group, log, expected } => {
                json!({"cursor": {"group": group, "topic": topic(*log), "offset": expected.map(|offset| offset.0)}})
            }
            Guard::LogEnd { log, expected } => json!({"log_end": {"topic": topic(*log), "offset": expected.0}}),
        })
        .collect();
    let leases: Vec<Value> = commit
        .leases
        .iter()
        .map(|change| match change {
            LeaseChange::Grant { lease, ttl_ms } => json!({"grant": lease.0, "ttl_ms": ttl_ms}),
            LeaseChange::KeepAlive { lease } => json!({"keep_alive": lease.0}),
            LeaseChange::Revoke { lease } => json!({"revoke": lease.0}),
        })
        .collect();
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    for put in &commit.puts {
        let mut object = Map::new();
        put_bytes(&mut object, "key", &put.key);
        match &put.value {
            Some(value) => {
                put_bytes(&mut object, "value", value);
                if let Some(lease) = put.lease {
                    object.insert("lease".into(), json!(lease.0));
                }
                puts.push(Value::Object(object));
            }
            None => deletes.push(Value::Object(object)),
        }
    }
    let appends: Vec<Value> = commit
        .appends
        .iter()
        .map(|append| {
            let records: Vec<Value> = append.serials.iter().map(|serial| json!({"value": record(*serial)})).collect();
            json!({"topic": topic(append.log), "records": records})
        })
        .collect();
    let cursors: Vec<Value> = commit
        .cursors
        .iter()
        .map(|cursor| json!({"group": cursor.group, "topic": topic(cursor.log), "offset": cursor.next.0}))
        .collect();
    json!({
        "guards": guards, "leases": leases, "puts": puts, "deletes": deletes, "appends": appends, "cursors": cursors,
    })
}

/// # Errors
/// An answer that no fault explains.
pub fn commit_outcome(reply: &Reply) -> Result<Outcome, String> {
    let (status, json) = match reply {
        Reply::NotSent => return Ok(Outcome::Failed),
        Reply::NoAnswer => return Ok(Outcome::Unknown),
        Reply::Answer { status, json } => (*status, json),
    };
    match (status, json["outcome"].as_str()) {
        (200, Some("applied")) => {
            let offsets =
                json["appends"].as_array().map(Vec::as_slice).unwrap_or_default().iter().map(|append| {
                    match (append["outcome"].as_str(), append["base_offset"].as_i64()) {
                        (Some("appended" | "duplicate"), Some(offset)) => Appended::At(Offset(offset)),
                        (Some("duplicate"), None) => Appended::Before,
                        _ => Appended::Not,
                    }
                });
            let revision = json["revision"].as_u64().map(Revision);
            Ok(Outcome::Done(Done { revision, offsets: offsets.collect() }))
        }
        (409, Some("refused")) => {
            Ok(Outcome::Refused { guard: json["guard"]["position"].as_u64().map(|position| position as usize) })
        }
        (504, Some("unknown")) => Ok(Outcome::Unknown),
        (503, Some("none")) => Ok(Outcome::Failed),
        _ => Err(format!("the answer {status} {json}")),
    }
}

/// # Errors
/// An answer that no fault explains.
pub fn read_outcome(reply: &Reply) -> Result<Outcome, String> {
    let (status, json) = match reply {
        Reply::NotSent | Reply::NoAnswer => return Ok(Outcome::Failed),
        Reply::Answer { status, json } => (*status, json),
    };
    let revision = json["revision"].as_u64().map(Revision);
    match (status, revision) {
        (200, Some(revision)) => {
            let kv = key_value(json).ok_or_else(|| format!("the answer {json}"))?;
            Ok(Outcome::Found(KeyValues { revision, kvs: vec![kv], more: false }))
        }
        (404, Some(revision)) => Ok(Outcome::Found(KeyValues { revision, kvs: Vec::new(), more: false })),
        (503 | 504, _) => Ok(Outcome::Failed),
        _ => Err(format!("the answer {status} {json}")),
    }
}

fn key_value(json: &Value) -> Option<KeyValue> {
    Some(KeyValue {
        key: json["key"].as_str()?.to_owned().into(),
        value: json["value"].as_str()?.to_owned().into(),
        create_revision: Revision(json["create_revision"].as_u64()?),
        mod_revision: Revision(json["mod_revision"].as_u64()?),
        version: json["version"].as_u64()?,
        // Histories say of leases what commits did to them.
        lease: None,
    })
}

#[cfg(test)]
mod tests {
    use buttress_core::{Cursor, LeaseId, Put};
    use buttress_oracle::Records;

    use super::*;

    #[test]
    fn what_is_recorded_is_what_is_sent() {
        let commit = Commit {
            guards: vec![
                Guard::ModRevision { key: "a".into(), revision: Revision(3) },
                Guard::Cursor { group: "g".into(), log: LogId(1), expected: None },
                Guard::LeaseAlive { lease: LeaseId(7) },
            ],
            leases: vec![LeaseChange::Grant { lease: LeaseId(8), ttl_ms: 9 }],
            puts: vec![
                Put { key: "a".into(), value: Some("x".into()), lease: Some(LeaseId(8)) },
                Put { key: "b".into(), value: None, lease: None },
            ],
            appends: vec![Records { log: LogId(1), sequence: None, serials: vec![Serial(5)] }],
            cursors: vec![Cursor { group: "g".into(), log: LogId(1), next: Offset(4), metadata: String::new() }],
            ..Commit::default()
        };
        let json = entry_json(&commit, |_| "t".into(), |serial| format!("s{serial}"));
        expect_test::expect![[r#"{"appends":[{"records":[{"value":"s5"}],"topic":"t"}],"cursors":[{"group":"g","offset":4,"topic":"t"}],"deletes":[{"key":"b"}],"guards":[{"key":"a","mod_revision":3},{"cursor":{"group":"g","offset":null,"topic":"t"}},{"lease_alive":7}],"leases":[{"grant":8,"ttl_ms":9}],"puts":[{"key":"a","lease":8,"value":"x"}]}"#]]
        .assert_eq(&json.to_string());
    }

    #[test]
    fn an_unknown_outcome_is_never_taken_for_a_failure() {
        let answer = |status, json| commit_outcome(&Reply::Answer { status, json });
        assert_eq!(commit_outcome(&Reply::NoAnswer), Ok(Outcome::Unknown));
        assert_eq!(commit_outcome(&Reply::NotSent), Ok(Outcome::Failed));
        assert_eq!(answer(504, json!({"outcome": "unknown"})), Ok(Outcome::Unknown));
        assert_eq!(answer(503, json!({"outcome": "none"})), Ok(Outcome::Failed));
        assert_eq!(
            answer(409, json!({"outcome": "refused", "guard": {"position": 2}})),
            Ok(Outcome::Refused { guard: Some(2) })
        );
        assert!(answer(500, Value::Null).is_err() && answer(200, Value::Null).is_err());
    }
}
