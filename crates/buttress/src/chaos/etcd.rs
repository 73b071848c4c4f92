//! The load of etcd's clients, over gRPC: transactions that go one way or the other, ranges, leases that are kept alive,
//! revoked or left to run out, and a watch. All of it goes into a history of its own, for the oracle that judges
//! transactions takes the place of those for plain commits: TXN-1, LEASE-3, WATCH-1.
//!
//! An error leaves the outcome open unless no connection came about: what etcd's clients hear does not always say whether
//! anything happened.

use std::{sync::Arc, time::Duration};

use buttress_core::{
    Compare, DeleteOp, KeyRange, LeaseId, OpResult, Operand, Put, PutOp, RangeOp, RangeResult, Relation, Revision, Txn,
    TxnOp, TxnResult,
    entry::LeaseChange,
    ledger::{KeyEvent, KeyValue, KeyValues},
};
use buttress_etcd_proto::{
    client::Channel,
    etcdserverpb::{
        self as pb, compare as wire, kv_client::KvClient, lease_client::LeaseClient, request_op::Request,
        response_op::Response, watch_client::WatchClient, watch_request::RequestUnion,
    },
    mvccpb,
};
use buttress_oracle::{Commit, Done, Outcome, Session, SessionEnd, What};
use bytes::Bytes;
use tonic::{Code, Status};

use super::{
    clients::{pause, pick},
    dice::Dice,
    record::{Answered, Sample, SampleKind},
    world::World,
};

pub const CLIENTS: u64 = 3;
/// All keys of these clients begin so, within the scope of all clients.
pub const KEYS: &str = "chaos/e/";
/// Client numbers in the history.
const BASE: u64 = 50;
const DEADLINE: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_secs(1);
/// After a refused connection or no answer.
const PAUSE: Duration = Duration::from_millis(150);
/// Keys live so long, as with the other clients.
const WINDOW: Duration = Duration::from_secs(10);
const KEYS_PER_WINDOW: u64 = 4;
const LEASE_TTL_S: i64 = 2;

/// A client with a connection to each node that it has asked.
struct Client {
    id: u64,
    channels: Vec<Option<Channel>>,
}

fn number(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

fn revision(header: Option<pb::ResponseHeader>) -> Revision {
    number(header.map_or(0, |header| header.revision))
}

fn key_value(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: number(kv.create_revision),
        mod_revision: number(kv.mod_revision),
        version: u64::try_from(kv.version).unwrap_or(0),
        lease: (kv.lease != 0).then_some(LeaseId(kv.lease)),
    }
}

fn request_op(op: &TxnOp) -> pb::RequestOp {
    let request = match op {
        TxnOp::Range(op) => Request::RequestRange(range_request(&op.range)),
        TxnOp::Put(op) => Request::RequestPut(pb::PutRequest {
            key: op.key.clone(),
            value: op.value.clone(),
            lease: op.lease.map_or(0, |lease| lease.0),
            prev_kv: op.prev_kv,
            ..pb::PutRequest::default()
        }),
        TxnOp::Delete(op) => Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: op.range.from.clone(),
            range_end: op.range.to.clone().unwrap_or_default(),
            prev_kv: op.prev_kv,
        }),
        TxnOp::Txn(txn) => Request::RequestTxn(txn_request(txn)),
    };
    pb::RequestOp { request: Some(request) }
}

fn range_request(range: &KeyRange) -> pb::RangeRequest {
    pb::RangeRequest {
        key: range.from.clone(),
        range_end: range.to.clone().unwrap_or_default(),
        ..pb::RangeRequest::default()
    }
}

/// The transaction as etcd's clients send it: what is recorded and what is asked are one.
fn txn_request(txn: &Txn) -> pb::TxnRequest {
    let compare = |compare: &Compare| {
        let (target, union) = match &compare.operand {
            Operand::Version(version) => (wire::CompareTarget::Version, wire::TargetUnion::Version(*version)),
            Operand::CreateRevision(at) => (wire::CompareTarget::Create, wire::TargetUnion::CreateRevision(*at)),
            Operand::ModRevision(at) => (wire::CompareTarget::Mod, wire::TargetUnion::ModRevision(*at)),
            Operand::Value(value) => (wire::CompareTarget::Value, wire::TargetUnion::Value(value.clone())),
            Operand::Lease(lease) => (wire::CompareTarget::Lease, wire::TargetUnion::Lease(*lease)),
        };
        let result = match compare.relation {
            Relation::Equal => wire::CompareResult::Equal,
            Relation::NotEqual => wire::CompareResult::NotEqual,
            Relation::Greater => wire::CompareResult::Greater,
            Relation::Less => wire::CompareResult::Less,
        };
        pb::Compare {
            result: result.into(),
            target: target.into(),
            key: compare.range.from.clone(),
            range_end: compare.range.to.clone().unwrap_or_default(),
            target_union: Some(union),
        }
    };
    pb::TxnRequest {
        compare: txn.compares.iter().map(compare).collect(),
        success: txn.success.iter().map(request_op).collect(),
        failure: txn.failure.iter().map(request_op).collect(),
    }
}

fn txn_result(answer: pb::TxnResponse) -> Option<TxnResult> {
    let result = |op: pb::ResponseOp| {
        Some(match op.response? {
            Response::ResponseRange(range) => OpResult::Range(RangeResult {
                revision: revision(range.header),
                kvs: range.kvs.into_iter().map(key_value).collect(),
                more: range.more,
                count: u64::try_from(range.count).ok()?,
            }),
            Response::ResponsePut(put) => {
                OpResult::Put { revision: revision(put.header), prev: put.prev_kv.map(key_value) }
            }
            Response::ResponseDeleteRange(delete) => OpResult::Delete {
                revision: revision(delete.header),
                deleted: u64::try_from(delete.deleted).ok()?,
                prev: delete.prev_kvs.into_iter().map(key_value).collect(),
            },
            Response::ResponseTxn(txn) => OpResult::Txn(txn_result(txn)?),
        })
    };
    let results = answer.responses.into_iter().map(result).collect::<Option<_>>()?;
    Some(TxnResult { succeeded: answer.succeeded, results })
}

impl Client {
    fn new(id: u64, nodes: usize) -> Self {
        Self { id, channels: vec![None; nodes] }
    }

    async fn channel(&mut self, world: &World, node: usize) -> Option<Channel> {
        let kept = &mut self.channels[node];
        if kept.as_ref().is_none_or(Channel::is_closed) {
            let connecting = Channel::connect(&world.nodes[node].etcd);
            *kept = tokio::time::timeout(CONNECT, connecting).await.ok().and_then(Result::ok);
        }
        kept.clone()
    }

    /// Asks and records. `understand` reads the answer.
    async fn ask<T>(
        &mut self,
        world: &World,
        node: usize,
        what: What,
        kind: SampleKind,
        call: impl AsyncFnOnce(Channel) -> Result<T, Status>,
        understand: impl FnOnce(T) -> Option<Outcome>,
    ) -> Outcome {
        let told = format!("{what:?}");
        let began = world.recorder.elapsed();
        let op = world.over_etcd.invoke(self.id, what);
        let outcome = match self.channel(world, node).await {
            None => Outcome::Failed,
            Some(channel) => match tokio::time::timeout(DEADLINE, call(channel)).await {
                Err(_) => {
                    self.channels[node] = None;
                    Outcome::Unknown
                }
                Ok(Ok(answer)) => understand(answer).unwrap_or_else(|| {
                    world.recorder.problem(format!("{}: an answer that does not fit {told}", world.nodes[node].name));
                    Outcome::Unknown
                }),
                Ok(Err(status)) => self.refused(world, node, &status, &told),
            },
        };
        world.over_etcd.complete(op, outcome.clone());
        let ended = world.recorder.elapsed();
        world.recorder.sample(Sample { began, ended, node, kind, answer: Answered::of(&outcome) });
        if matches!(outcome, Outcome::Failed | Outcome::Unknown) {
            tokio::time::sleep(PAUSE).await;
        }
        outcome
    }

    fn refused(&mut self, world: &World, node: usize, status: &Status, told: &str) -> Outcome {
        match status.code() {
            // The lease has ended.
            Code::NotFound => Outcome::Refused { guard: None },
            Code::Unavailable | Code::ResourceExhausted => Outcome::Unknown,
            // The connection broke.
            Code::Unknown | Code::Cancelled | Code::Internal if !status.message().starts_with("etcdserver") => {
                self.channels[node] = None;
                Outcome::Unknown
            }
            code => {
                let name = &world.nodes[node].name;
                world.recorder.problem(format!("{name}: {code:?} {} to {told}", status.message()));
                Outcome::Unknown
            }
        }
    }

    async fn read(&mut self, world: &World, node: usize, range: KeyRange, linearizable: bool) -> Outcome {
        let request = pb::RangeRequest { serializable: !linearizable, ..range_request(&range) };
        let kind = if linearizable { SampleKind::Read } else { SampleKind::Other };
        let what = What::Read { range, at: None, linearizable };
        let call = async |channel| KvClient::new(channel).range(request).await;
        self.ask(world, node, what, kind, call, |answer| {
            let answer = answer.into_inner();
            let kvs = answer.kvs.into_iter().map(key_value).collect();
            Some(Outcome::Found(KeyValues { revision: revision(answer.header), kvs, more: answer.more }))
        })
        .await
    }

    async fn txn(&mut self, world: &World, node: usize, txn: Txn) -> Outcome {
        let request = txn_request(&txn);
        let what = What::Txn { txn, linearizable: true };
        let call = async |channel| KvClient::new(channel).txn(request).await;
        self.ask(world, node, what, SampleKind::Write, call, |answer| {
            let answer = answer.into_inner();
            let revision = revision(answer.header);
            Some(Outcome::Transacted { revision, result: txn_result(answer)? })
        })
        .await
    }

    async fn put(&mut self, world: &World, node: usize, put: Put) -> Outcome {
        let request = pb::PutRequest {
            key: put.key.clone(),
            value: put.value.clone().expect("puts have values"),
            lease: put.lease.map_or(0, |lease| lease.0),
            ..pb::PutRequest::default()
        };
        let what = What::Commit(Commit { puts: vec![put], ..Commit::default() });
        let call = async |channel| KvClient::new(channel).put(request).await;
        self.ask(world, node, what, SampleKind::Write, call, |answer| Some(done(answer.into_inner().header))).await
    }

    async fn lease(&mut self, world: &World, node: usize, change: LeaseChange) -> Outcome {
        let what = What::Commit(Commit { leases: vec![change], ..Commit::default() });
        let call = async |channel: Channel| {
            let mut client = LeaseClient::new(channel);
            match change {
                LeaseChange::Grant { lease, .. } => {
                    let request = pb::LeaseGrantRequest { id: lease.0, ttl: LEASE_TTL_S };
                    Ok(Some(client.lease_grant(request).await?.into_inner().header))
                }
                LeaseChange::Revoke { lease } => {
                    let request = pb::LeaseRevokeRequest { id: lease.0 };
                    Ok(Some(client.lease_revoke(request).await?.into_inner().header))
                }
                LeaseChange::KeepAlive { lease } => {
                    let request = futures::stream::iter([pb::LeaseKeepAliveRequest { id: lease.0 }]);
                    let mut answers = client.lease_keep_alive(request).await?.into_inner();
                    let answer = answers.message().await?.ok_or_else(|| Status::unavailable("no answer"))?;
                    // A time to live of none says that the lease has ended.
                    Ok((answer.ttl > 0).then_some(answer.header))
                }
            }
        };
        self.ask(world, node, what, SampleKind::Write, call, |answer| {
            Some(answer.map_or(Outcome::Refused { guard: None }, done))
        })
        .await
    }
}

fn done(header: Option<pb::ResponseHeader>) -> Outcome {
    Outcome::Done(Done { revision: Some(revision(header)), offsets: Vec::new() })
}

fn seen(outcome: &Outcome) -> Option<i64> {
    match outcome {
        Outcome::Found(found) => Some(found.kvs.first().map_or(0, |kv| kv.mod_revision.0 as i64)),
        _ => None,
    }
}

pub async fn transactions(world: Arc<World>, which: u64, seed: u64) {
    let mut dice = Dice::new(seed);
    let nodes = world.nodes.len();
    let mut client = Client::new(BASE + which, nodes);
    let mut lease: Option<LeaseId> = None;
    while !world.is_stopped() {
        pause(&mut dice, 15, 45).await;
        let window = world.recorder.elapsed().as_secs() / WINDOW.as_secs();
        let prefix = format!("{KEYS}{window}/");
        let one = dice.below(KEYS_PER_WINDOW);
        let key = |n: u64| Bytes::from(format!("{prefix}{}", n % KEYS_PER_WINDOW));
        let (a, b) = (key(one), key(one + 1 + dice.below(KEYS_PER_WINDOW - 1)));
        let node = pick(&mut dice, which, nodes);
        let value = || Bytes::from(world.serial().to_string());
        let put = |key: &Bytes, prev_kv: bool| {
            TxnOp::Put(PutOp { key: key.clone(), value: value(), prev_kv, ..PutOp::default() })
        };
        let range = |range: KeyRange| TxnOp::Range(RangeOp::new(range));
        match dice.below(100) {
            0..40 => {
                // Two keys at once, if the first is still what it was; otherwise a look at all of them.
                let read = client.read(&world, node, KeyRange::key(a.clone()), true).await;
                let Some(at) = seen(&read) else { continue };
                let off = i64::from(dice.below(10) == 0);
                let compares = vec![Compare {
                    range: KeyRange::key(a.clone()),
                    relation: Relation::Equal,
                    operand: Operand::ModRevision(at + off),
                }];
                let txn = Txn {
                    compares,
                    success: vec![put(&a, true), range(KeyRange::key(b.clone())), put(&b, false)],
                    failure: vec![range(KeyRange::prefix(prefix))],
                };
                client.txn(&world, node, txn).await;
            }
            40..60 => {
                // Moves one key to another, or makes it.
                let there = Compare {
                    range: KeyRange::key(a.clone()),
                    relation: Relation::Greater,
                    operand: Operand::Version(0),
                };
                let delete = TxnOp::Delete(DeleteOp { range: KeyRange::key(a.clone()), prev_kv: true });
                let inner = Txn {
                    compares: vec![Compare {
                        range: KeyRange::key(b.clone()),
                        relation: Relation::Equal,
                        operand: Operand::CreateRevision(0),
                    }],
                    success: vec![put(&b, false)],
                    failure: vec![range(KeyRange::key(b.clone()))],
                };
                let txn = Txn {
                    compares: vec![there],
                    success: vec![delete, TxnOp::Txn(Box::new(inner))],
                    failure: vec![put(&a, true)],
                };
                client.txn(&world, node, txn).await;
            }
            60..75 => {
                let range = if dice.below(2) == 0 { KeyRange::key(a) } else { KeyRange::prefix(prefix) };
                client.read(&world, node, range, dice.below(4) > 0).await;
            }
            75..85 => {
                let leased = if dice.below(2) == 0 { lease } else { None };
                let put = Put { key: a, value: Some(value()), lease: leased };
                client.put(&world, node, put).await;
            }
            _ => {
                let change = match (lease, dice.below(4)) {
                    (Some(lease), 0 | 1) => LeaseChange::KeepAlive { lease },
                    (Some(lease), 2) => LeaseChange::Revoke { lease },
                    _ => LeaseChange::Grant {
                        lease: LeaseId(world.serial().0 as i64),
                        ttl_ms: LEASE_TTL_S as u64 * 1_000,
                    },
                };
                let outcome = client.lease(&world, node, change).await;
                lease = match (change, outcome) {
                    (LeaseChange::Grant { lease, .. } | LeaseChange::KeepAlive { lease }, Outcome::Done(_)) => {
                        Some(lease)
                    }
                    _ => None,
                };
            }
        }
    }
}

/// Follows every change of the clients' keys from revision 2 on, over etcd's watch.
pub async fn watcher(world: Arc<World>) -> Vec<Session> {
    let mut sessions = Vec::new();
    let mut from = Revision(2);
    let mut node = 1;
    while !world.is_stopped() {
        let mut session = Session { from, events: Vec::new(), end: SessionEnd::Lost };
        let stop = async {
            while !world.is_stopped() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            result = follow(&world, node % world.nodes.len(), &mut session) => {
                if let Err(Some(problem)) = result {
                    world.recorder.problem(problem);
                }
            }
            () = stop => {}
        }
        if let Some(last) = session.events.last() {
            from = Revision(last.revision.0 + 1);
            sessions.push(session);
        }
        node += 1;
        tokio::time::sleep(PAUSE).await;
    }
    sessions
}

/// An answer must come, of progress at least, within this time of the last one.
const SILENCE: Duration = Duration::from_secs(5);

/// # Errors
/// What no fault explains, or nothing where the connection broke.
async fn follow(world: &World, node: usize, session: &mut Session) -> Result<(), Option<String>> {
    let connecting = Channel::connect(&world.nodes[node].etcd);
    let channel = tokio::time::timeout(CONNECT, connecting).await.map_err(|_| None)?.map_err(|_| None)?;
    let range = super::clients::scope();
    let create = pb::WatchCreateRequest {
        key: range.from,
        range_end: range.to.unwrap_or_default(),
        start_revision: session.from.0 as i64,
        ..pb::WatchCreateRequest::default()
    };
    let (requests, stream) = futures::channel::mpsc::unbounded();
    let ask = |request| requests.unbounded_send(pb::WatchRequest { request_union: Some(request) });
    ask(RequestUnion::CreateRequest(create)).expect("the other end is here");
    let opening = async {
        let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
        Ok::<_, Status>(client.watch(stream).await?.into_inner())
    };
    let mut answers = tokio::time::timeout(SILENCE, opening).await.map_err(|_| None)?.map_err(|_| None)?;
    loop {
        let answer = match tokio::time::timeout(SILENCE / 2, answers.message()).await {
            Ok(Ok(Some(answer))) => answer,
            Ok(_) => return Err(None),
            Err(_) => {
                // Quiet: is it still there?
                ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).map_err(|_| None)?;
                match tokio::time::timeout(SILENCE, answers.message()).await {
                    Ok(Ok(Some(answer))) => answer,
                    _ => return Err(None),
                }
            }
        };
        if answer.canceled {
            return Err(Some(format!("{}: the watch was cancelled: {answer:?}", world.nodes[node].name)));
        }
        for event in answer.events {
            let deleted = event.r#type() == mvccpb::event::EventType::Delete;
            let kv = event.kv.ok_or_else(|| Some("an event without a key".to_owned()))?;
            let value = (!deleted).then_some(kv.value);
            session.events.push(KeyEvent { revision: number(kv.mod_revision), key: kv.key, value });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_becomes_what_the_oracles_compare() {
        let header = |revision| Some(pb::ResponseHeader { revision, ..pb::ResponseHeader::default() });
        let kv = mvccpb::KeyValue {
            key: "a".into(),
            value: "1".into(),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            lease: 9,
        };
        let op = |response| pb::ResponseOp { response: Some(response) };
        let put = pb::PutResponse { header: header(7), prev_kv: Some(kv.clone()) };
        let range = pb::RangeResponse { header: header(7), kvs: vec![kv], more: true, count: 4 };
        let answer = pb::TxnResponse {
            header: header(7),
            succeeded: true,
            responses: vec![op(Response::ResponsePut(put)), op(Response::ResponseRange(range))],
        };
        let kv = KeyValue {
            key: "a".into(),
            value: "1".into(),
            create_revision: Revision(2),
            mod_revision: Revision(3),
            version: 2,
            lease: Some(LeaseId(9)),
        };
        let wanted = vec![
            OpResult::Put { revision: Revision(7), prev: Some(kv.clone()) },
            OpResult::Range(RangeResult { revision: Revision(7), kvs: vec![kv], more: true, count: 4 }),
        ];
        assert_eq!(txn_result(answer), Some(TxnResult { succeeded: true, results: wanted }));
        let nothing = pb::TxnResponse { responses: vec![pb::ResponseOp::default()], ..pb::TxnResponse::default() };
        assert_eq!(txn_result(nothing), None);
    }
}
