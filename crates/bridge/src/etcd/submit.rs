//! An entry as one transaction of etcd.
//!
//! | part of the entry | in the transaction |
//! |---|---|
//! | guard on a key | compare |
//! | guard that a lease is alive | compare: the lease's marker exists |
//! | put, delete | operation |
//! | grant of a lease | `LeaseGrant` before it, and the lease's marker put in it |
//! | a transaction | the two branches of a transaction within it |
//!
//! etcd cannot compare whether a lease is alive, so a lease that is granted here has a *marker*: a key that hangs on the lease
//! and is gone with it, in the same revision. A lease that somebody else has granted has none, and a guard on it does not hold.
//!
//! A grant is no part of etcd's transactions. It is made before, has no effect that anybody sees, and is revoked if the
//! transaction is refused; if we die in between, it ends by itself.

use buttress_core::{
    Code, Compare, Entry, Error, Guard, Index, KeyRange, LeaseChange, LeaseId, Operand, Receipt, Refusal, Relation,
    Scope, SubmitError, Term, TimeMs,
    limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX},
};
use buttress_etcd_proto::{
    etcdserverpb::{self as pb, lease_client::LeaseClient, request_op::Request, response_op::Response},
    mvccpb,
};
use bytes::Bytes;

use super::{
    EtcdLedger,
    convert::{self, Namespace, OWN, number, revision},
    endpoints::{Attempt, Fault},
    kv,
    session::{Held, keep_alive},
};
use crate::{patience::Patience, scope};

/// Compares, or operations of one branch, in one transaction: etcd's `--max-txn-ops`.
pub const TXN_OPS_MAX: usize = 128;
/// What the bridge adds: the slot, and what settles it.
const OWN_OPS: usize = 2;
/// Bytes of keys and values in one transaction: etcd's `--max-request-bytes` is 1.5 MiB, less what frames them.
pub const TXN_BYTES_MAX: usize = 1536 * 1024 - 16 * 1024;

/// Bytes of keys and values that an entry brings, guards counted for both branches.
fn size_of(entry: &Entry) -> usize {
    let guards = entry.guards.iter().map(|guard| match guard {
        Guard::ModRevision { key, .. } | Guard::CreateRevision { key, .. } | Guard::Version { key, .. } => {
            2 * key.len()
        }
        Guard::Value { key, value } => 2 * key.len() + value.len(),
        _ => 0,
    });
    let puts = entry.puts.iter().map(|put| put.key.len() + put.value.as_ref().map_or(0, Bytes::len));
    guards.chain(puts).sum::<usize>() + entry.txn.as_ref().map_or(0, buttress_core::Txn::size_hint)
}

fn refused(code: Code, message: impl Into<String>) -> SubmitError {
    SubmitError::Refused(Refusal::Part { code, message: message.into() })
}

/// An answer of etcd's to a whole request: nothing of it happened.
fn decided(error: Error) -> SubmitError {
    match error.code {
        Code::LEASE_UNKNOWN | Code::LEASE_EXISTS | Code::COMPACTED | Code::REVISION_FUTURE | Code::KEY_UNKNOWN => {
            refused(error.code, error.message)
        }
        _ => SubmitError::Failed(error),
    }
}

fn now() -> TimeMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    TimeMs(since.map_or(0, |since| since.as_millis() as u64))
}

fn receipt(header: Option<&pb::ResponseHeader>) -> Receipt {
    let header = header.cloned().unwrap_or_default();
    Receipt {
        // etcd tells no index of its log; its revisions have the same order.
        index: Index(header.revision.max(0) as u64),
        term: Term(header.raft_term),
        revision: revision(header.revision),
        time: now(),
        ..Receipt::default()
    }
}

/// The key that lives as long as the lease.
pub(super) fn marker(ns: &Namespace, lease: LeaseId) -> Bytes {
    ns.key(&[OWN, format!("leases/{:016x}", lease.0).as_bytes()].concat())
}

/// The key that a guard looks at, and the compare that it is.
fn compare(ns: &Namespace, guard: &Guard) -> (Bytes, pb::Compare) {
    let of = |key: &Bytes, operand| {
        let compare = Compare { range: KeyRange::key(key.clone()), relation: Relation::Equal, operand };
        (ns.key(key), convert::compare(ns, &compare))
    };
    match guard {
        Guard::ModRevision { key, revision } => of(key, Operand::ModRevision(number(*revision))),
        Guard::CreateRevision { key, revision } => of(key, Operand::CreateRevision(number(*revision))),
        Guard::Version { key, version } => of(key, Operand::Version(i64::try_from(*version).unwrap_or(i64::MAX))),
        Guard::Value { key, value } => of(key, Operand::Value(value.clone())),
        Guard::LeaseAlive { lease } => {
            let key = marker(ns, *lease);
            (key.clone(), version_compare(key, pb::compare::CompareResult::Greater, 0))
        }
        Guard::Cursor { .. } | Guard::LogEnd { .. } => unreachable!("the scope was checked"),
    }
}

fn version_compare(key: Bytes, result: pb::compare::CompareResult, version: i64) -> pb::Compare {
    pb::Compare {
        result: result.into(),
        target: pb::compare::CompareTarget::Version.into(),
        key,
        range_end: Bytes::new(),
        target_union: Some(pb::compare::TargetUnion::Version(version)),
    }
}

/// What is there instead of what the guard asks for; `None` where it holds.
fn unmet(guard: &Guard, kv: Option<&mvccpb::KeyValue>) -> Option<String> {
    let differs = |found: i64, wanted: u64| (found.max(0) as u64 != wanted).then(|| found.to_string());
    match guard {
        Guard::ModRevision { revision, .. } => differs(kv.map_or(0, |kv| kv.mod_revision), revision.0),
        Guard::CreateRevision { revision, .. } => differs(kv.map_or(0, |kv| kv.create_revision), revision.0),
        Guard::Version { version, .. } => differs(kv.map_or(0, |kv| kv.version), *version),
        Guard::Value { value, .. } => match kv {
            Some(kv) if kv.value == *value => None,
            Some(kv) => Some(format!("{:?}", kv.value.slice(..kv.value.len().min(64)))),
            None => Some("no such key".into()),
        },
        Guard::LeaseAlive { .. } => kv.is_none().then(|| "no such lease".into()),
        Guard::Cursor { .. } | Guard::LogEnd { .. } => unreachable!("the scope was checked"),
    }
}

fn get(key: Bytes) -> pb::RequestOp {
    pb::RequestOp { request: Some(Request::RequestRange(pb::RangeRequest { key, ..Default::default() })) }
}

fn put(key: Bytes, value: Bytes, lease: i64) -> pb::RequestOp {
    let request = pb::PutRequest { key, value, lease, ..Default::default() };
    pb::RequestOp { request: Some(Request::RequestPut(request)) }
}

/// What a slot says of the transaction that wrote it last.
const CARRIED_OUT: &[u8] = b"1";
const REFUSED: &[u8] = b"0";

/// The entry's transaction, guarded by its slot. Both branches begin with the slot, so that their first result is known.
///
/// A copy that is sent after an attempt without an answer also settles the slot where it is refused. Otherwise that earlier copy,
/// still on its way, might find the guards holding later, after a refusal was told.
fn build(ns: &Namespace, entry: &Entry, held: &Held, again: bool) -> pb::TxnRequest {
    let mut request = pb::TxnRequest::default();
    let unwritten = version_compare(held.key.clone(), pb::compare::CompareResult::Equal, held.writes());
    request.compare.push(unwritten.clone());
    request.success.push(put(held.key.clone(), Bytes::from_static(CARRIED_OUT), held.lease()));
    request.failure.push(get(held.key.clone()));
    for guard in &entry.guards {
        let (key, compare) = compare(ns, guard);
        request.compare.push(compare);
        request.failure.push(get(key));
    }
    if again {
        let settle = put(held.key.clone(), Bytes::from_static(REFUSED), held.lease());
        let settle = pb::TxnRequest { compare: vec![unwritten], success: vec![settle], failure: Vec::new() };
        request.failure.push(pb::RequestOp { request: Some(Request::RequestTxn(settle)) });
    }
    for change in &entry.leases {
        if let LeaseChange::Grant { lease, .. } = change {
            request.success.push(put(marker(ns, *lease), Bytes::new(), lease.0));
        }
    }
    for each in &entry.puts {
        let key = ns.key(&each.key);
        request.success.push(match &each.value {
            Some(value) => put(key, value.clone(), each.lease.map_or(0, |lease| lease.0)),
            None => {
                let gone = pb::DeleteRangeRequest { key, ..Default::default() };
                pb::RequestOp { request: Some(Request::RequestDeleteRange(gone)) }
            }
        });
    }
    if let Some(txn) = &entry.txn {
        let txn = convert::txn_request(ns, txn);
        request.success.push(pb::RequestOp { request: Some(Request::RequestTxn(txn)) });
    }
    request
}

fn check(entry: &Entry) -> Result<(), SubmitError> {
    scope::check(Scope::Keys, entry).map_err(SubmitError::Failed)?;
    let grants = entry.leases.len();
    let ops = entry.guards.len().max(entry.puts.len() + grants + usize::from(entry.txn.is_some())) + OWN_OPS;
    let nested = entry.txn.as_ref().map_or(0, |txn| txn.parts());
    if ops.max(nested + OWN_OPS + 1) > TXN_OPS_MAX {
        let message =
            format!("the entry needs {} operations, one transaction of etcd can have {TXN_OPS_MAX}", ops.max(nested));
        return Err(SubmitError::Failed(Error::new(Code::TOO_LARGE, message).hint("split the entry")));
    }
    for each in &entry.puts {
        if each.key.is_empty() {
            return Err(refused(Code::BAD_REQUEST, "a key cannot be empty"));
        }
        if each.key.len() > KEY_BYTES_MAX || each.value.as_ref().is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
            let message = format!("a key may have {KEY_BYTES_MAX} bytes, a value {VALUE_BYTES_MAX}");
            return Err(SubmitError::Failed(Error::new(Code::TOO_LARGE, message)));
        }
    }
    let size = size_of(entry);
    if size > TXN_BYTES_MAX {
        let message = format!("the entry has {size} bytes, one transaction of etcd can have {TXN_BYTES_MAX}");
        return Err(SubmitError::Failed(Error::new(Code::TOO_LARGE, message).hint("split the entry")));
    }
    if let Some(txn) = &entry.txn {
        txn.check().map_err(|fault| SubmitError::Failed(fault.into()))?;
    }
    Ok(())
}

/// etcd counts leases in whole seconds; it is never less than what was asked for.
fn seconds(ttl_ms: u64) -> i64 {
    i64::try_from(ttl_ms.div_ceil(1000).max(1)).unwrap_or(i64::MAX)
}

impl EtcdLedger {
    pub(super) async fn carry_out(&self, entry: Entry) -> Result<Receipt, SubmitError> {
        check(&entry)?;
        if let Some(at) = entry.compact {
            return self.compact_at(number(at), false).await;
        }
        if let [change @ (LeaseChange::KeepAlive { .. } | LeaseChange::Revoke { .. })] = entry.leases[..] {
            return self.end_or_renew(change).await;
        }
        let mut granted = Vec::new();
        let mut ttls = Vec::new();
        for change in &entry.leases {
            let LeaseChange::Grant { lease, ttl_ms } = *change else { unreachable!("the scope was checked") };
            match self.grant(lease, ttl_ms).await {
                Ok(ttl_ms) => ttls.push(ttl_ms),
                Err(error) => {
                    self.take_back(&granted).await;
                    return Err(error);
                }
            }
            granted.push(lease);
        }
        match self.transact(&entry).await {
            Ok(receipt) => Ok(Receipt { lease_ttls_ms: ttls, ..receipt }),
            Err(error) => {
                // Where the outcome is unknown the lease may hold keys by now; it ends by itself.
                if error.code() != Code::TIMEOUT {
                    self.take_back(&granted).await;
                }
                Err(error)
            }
        }
    }

    async fn transact(&self, entry: &Entry) -> Result<Receipt, SubmitError> {
        let mut patience = Patience::new(self.endpoints.deadline);
        // An earlier copy may have been carried out, or may yet be.
        let mut open = false;
        let mut held = self.sessions.hold(&self.endpoints, &self.ns).await.map_err(SubmitError::Failed)?;
        let mut request = build(&self.ns, entry, &held, false);
        loop {
            let copy = request.clone();
            let call = |channel| async move { kv(channel).txn(copy).await };
            let why = match self.endpoints.attempt(call).await {
                Ok(answer) => match self.read_answer(entry, answer.into_inner(), &held)? {
                    Answer::Done(receipt) => {
                        held.settle(true);
                        return Ok(*receipt);
                    }
                    Answer::Refused(refusal) => {
                        held.settle(open);
                        return Err(SubmitError::Refused(refusal));
                    }
                    Answer::SlotGone => "the session's lease has ended".to_owned(),
                },
                Err(Attempt::Fault(Fault::Answer(status))) => {
                    let error = convert::error(&status);
                    let lost = error.code == Code::LEASE_UNKNOWN && self.session_is_gone(held.lease()).await;
                    if !lost {
                        // A copy on its way would have been refused by its slot as well, or has been carried out before
                        // this answer: only then is the outcome open.
                        if open {
                            return Err(unknown(&format!("etcd answers: {}", status.message())));
                        }
                        held.settle(false);
                        return Err(decided(error));
                    }
                    "the session's lease has ended".to_owned()
                }
                Err(Attempt::Fault(Fault::Open(why))) => {
                    open = true;
                    request = build(&self.ns, entry, &held, true);
                    if !patience.pause().await {
                        return Err(unknown(&why));
                    }
                    continue;
                }
                Err(Attempt::Fault(Fault::Refused(error))) => {
                    return Err(match open {
                        true => unknown(&error.message),
                        false => SubmitError::Failed(error),
                    });
                }
                Err(Attempt::NotSent(why)) => {
                    if !patience.pause().await {
                        return Err(match open {
                            true => unknown(&why),
                            false => SubmitError::Failed(convert::fault(&Fault::Open(why))),
                        });
                    }
                    continue;
                }
            };
            held.end_session();
            if open || !patience.pause().await {
                return Err(unknown(&why));
            }
            held = self.sessions.hold(&self.endpoints, &self.ns).await.map_err(SubmitError::Failed)?;
            request = build(&self.ns, entry, &held, false);
        }
    }

    fn read_answer(&self, entry: &Entry, answer: pb::TxnResponse, held: &Held) -> Result<Answer, SubmitError> {
        let strange = |what| SubmitError::Failed(Error::new(Code::BAD_REQUEST, format!("etcd's answer {what}")));
        if answer.succeeded {
            let mut receipt = receipt(answer.header.as_ref());
            if entry.txn.is_some() {
                let inner = answer.responses.last().and_then(|op| match &op.response {
                    Some(Response::ResponseTxn(txn)) => Some(txn),
                    _ => None,
                });
                let inner = inner.ok_or_else(|| strange("to a transaction holds none"))?;
                let result = convert::txn_result(&self.ns, inner.succeeded, &inner.responses, receipt.revision);
                receipt.txn = Some(result.map_err(SubmitError::Failed)?);
            }
            return Ok(Answer::Done(Box::new(receipt)));
        }
        let mut found = answer.responses.iter().map(|op| match &op.response {
            Some(Response::ResponseRange(range)) => range.kvs.first(),
            _ => None,
        });
        let slot = found.next().flatten();
        match slot.map_or(0, |kv| kv.version) {
            writes if writes == held.writes() + 1 && slot.is_some_and(|kv| kv.value == REFUSED) => {
                // An earlier copy was refused. What its guards found was lost with its answer.
                let guards = entry.guards.iter().zip(found);
                let now = guards.enumerate().find_map(|(at, (guard, kv))| Some((at, guard, unmet(guard, kv)?)));
                let (position, guard, found) = match now {
                    Some(unmet) => unmet,
                    None => match entry.guards.first() {
                        Some(guard) => (0, guard, "something else, when it was held against it".to_owned()),
                        None => return Err(strange("refuses an entry without guards")),
                    },
                };
                return Ok(Answer::Refused(Refusal::Guard { position, guard: guard.clone(), found }));
            }
            writes if writes == held.writes() + 1 => {
                if entry.txn.is_some() {
                    // It was carried out, but what it answered is lost with the answer.
                    return Err(unknown(
                        "the transaction was carried out, and its results were lost with the connection",
                    ));
                }
                let at = slot.map_or(0, |kv| kv.mod_revision);
                let receipt = Receipt { revision: revision(at), replayed: true, ..receipt(answer.header.as_ref()) };
                return Ok(Answer::Done(Box::new(Receipt { index: Index(at.max(0) as u64), ..receipt })));
            }
            writes if writes == held.writes() => {}
            _ => return Ok(Answer::SlotGone),
        }
        for (position, (guard, kv)) in entry.guards.iter().zip(found).enumerate() {
            if let Some(found) = unmet(guard, kv) {
                return Ok(Answer::Refused(Refusal::Guard { position, guard: guard.clone(), found }));
            }
        }
        Err(strange("names no guard that does not hold"))
    }

    async fn session_is_gone(&self, id: i64) -> bool {
        let asked = pb::LeaseTimeToLiveRequest { id, keys: false };
        let call = |channel| async move { LeaseClient::new(channel).lease_time_to_live(asked).await };
        self.endpoints.call(call).await.is_ok_and(|answer| answer.into_inner().ttl <= 0)
    }

    async fn grant(&self, lease: LeaseId, ttl_ms: u64) -> Result<u64, SubmitError> {
        if lease.0 == 0 {
            return Err(refused(Code::BAD_REQUEST, "lease 0 cannot be granted: it stands for none"));
        }
        let asked = pb::LeaseGrantRequest { ttl: seconds(ttl_ms), id: lease.0 };
        let mut patience = Patience::new(self.endpoints.deadline);
        let mut open = false;
        loop {
            let call = |channel| async move { LeaseClient::new(channel).lease_grant(asked).await };
            match self.endpoints.attempt(call).await {
                Ok(answer) => return Ok(answer.into_inner().ttl.max(0) as u64 * 1000),
                // Either our own earlier copy, or somebody's: a lease without a marker that nobody else grants is ours.
                Err(Attempt::Fault(Fault::Answer(status))) => {
                    let error = convert::error(&status);
                    if open && error.code == Code::LEASE_EXISTS && self.marker_is_missing(lease).await {
                        return Ok(asked.ttl as u64 * 1000);
                    }
                    return Err(decided(error));
                }
                Err(Attempt::Fault(Fault::Refused(error))) => return Err(SubmitError::Failed(error)),
                Err(Attempt::Fault(Fault::Open(why)) | Attempt::NotSent(why)) => {
                    open = true;
                    if !patience.pause().await {
                        // Without its transaction a lease is nothing that anybody sees, so nothing has happened.
                        return Err(SubmitError::Failed(convert::fault(&Fault::Open(why))));
                    }
                }
            }
        }
    }

    async fn marker_is_missing(&self, lease: LeaseId) -> bool {
        let asked = pb::RangeRequest { key: marker(&self.ns, lease), ..Default::default() };
        let call = |channel| {
            let asked = asked.clone();
            async move { kv(channel).range(asked).await }
        };
        self.endpoints.call(call).await.is_ok_and(|answer| answer.into_inner().kvs.is_empty())
    }

    /// Revokes leases that were granted for an entry which was then refused.
    async fn take_back(&self, leases: &[LeaseId]) {
        for lease in leases {
            let asked = pb::LeaseRevokeRequest { id: lease.0 };
            let call = |channel| async move { LeaseClient::new(channel).lease_revoke(asked).await };
            if let Err(fault) = self.endpoints.call(call).await {
                tracing::debug!(plane = "bridge", lease = lease.0, ?fault, "a lease that is not needed ends by itself");
            }
        }
    }

    /// Both may be repeated: a lease that is renewed twice lives as long, and one that is revoked stays so.
    async fn end_or_renew(&self, change: LeaseChange) -> Result<Receipt, SubmitError> {
        let gone = |lease| refused(Code::LEASE_UNKNOWN, format!("there is no lease {lease}, or it has ended"));
        match change {
            LeaseChange::KeepAlive { lease } => {
                let ttl = keep_alive(&self.endpoints, lease.0).await.map_err(SubmitError::Failed)?;
                if ttl <= 0 {
                    return Err(gone(lease));
                }
                Ok(Receipt { lease_ttls_ms: vec![ttl as u64 * 1000], time: now(), ..Receipt::default() })
            }
            LeaseChange::Revoke { lease } => {
                let asked = pb::LeaseRevokeRequest { id: lease.0 };
                let mut patience = Patience::new(self.endpoints.deadline);
                let mut open = false;
                loop {
                    let call = |channel| async move { LeaseClient::new(channel).lease_revoke(asked).await };
                    match self.endpoints.attempt(call).await {
                        Ok(answer) => {
                            let receipt = receipt(answer.into_inner().header.as_ref());
                            return Ok(Receipt { lease_ttls_ms: vec![0], ..receipt });
                        }
                        Err(Attempt::Fault(Fault::Answer(status))) => {
                            let error = convert::error(&status);
                            // After an attempt without an answer, a lease that is gone is what was wanted.
                            if open && error.code == Code::LEASE_UNKNOWN {
                                return Ok(Receipt { lease_ttls_ms: vec![0], time: now(), ..Receipt::default() });
                            }
                            return Err(match error.code {
                                Code::LEASE_UNKNOWN => gone(lease),
                                _ => decided(error),
                            });
                        }
                        Err(Attempt::Fault(Fault::Refused(error))) => {
                            return Err(match open {
                                true => unknown(&error.message),
                                false => SubmitError::Failed(error),
                            });
                        }
                        Err(Attempt::Fault(Fault::Open(why)) | Attempt::NotSent(why)) => {
                            open = true;
                            if !patience.pause().await {
                                return Err(unknown(&why));
                            }
                        }
                    }
                }
            }
            LeaseChange::Grant { .. } => unreachable!("only ends and renewals come here"),
        }
    }

    pub(super) async fn compact_at(&self, at: i64, physical: bool) -> Result<Receipt, SubmitError> {
        let asked = pb::CompactionRequest { revision: at, physical };
        let call = |channel| async move { kv(channel).compact(asked).await };
        match self.endpoints.call(call).await {
            Ok(answer) => Ok(receipt(answer.into_inner().header.as_ref())),
            Err(Fault::Answer(status)) => Err(decided(convert::error(&status))),
            Err(Fault::Refused(error)) => Err(SubmitError::Failed(error)),
            Err(Fault::Open(why)) => Err(unknown(&why)),
        }
    }
}

enum Answer {
    Done(Box<Receipt>),
    Refused(Refusal),
    /// The session's lease has ended, and its slots with it.
    SlotGone,
}

fn unknown(why: &str) -> SubmitError {
    let error = Error::new(Code::TIMEOUT, format!("whether etcd has carried it out is not known: {why}"));
    SubmitError::Failed(error.hint("read what it would have changed before doing it again").retryable())
}
