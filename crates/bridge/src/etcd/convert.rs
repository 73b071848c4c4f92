//! Our words in etcd's, and back.
//!
//! Keys lie under a namespace, which is a prefix that nobody above sees, so that several users can share an etcd. In it, what
//! begins with [`OWN`] is the bridge's: ranges and watches leave it out.

use buttress_core::{
    Code, Compare, DeleteOp, Error, KeyRange, LeaseId, OpResult, Operand, PutOp, RangeOp, RangeResult, Relation,
    Revision, Txn, TxnOp, TxnResult,
    ledger::KeyValue,
    txn::{SortOrder, SortTarget},
};
use buttress_etcd_proto::{
    etcdserverpb::{self as pb, compare::TargetUnion, request_op::Request, response_op::Response},
    mvccpb,
};
use bytes::{BufMut, Bytes, BytesMut};
use tonic::Status;

use super::endpoints::Fault;

/// Where the bridge's own keys begin, within the namespace. No key of a user begins with a zero byte and our name.
pub(super) const OWN: &[u8] = b"\0buttress/";

#[derive(Clone, Debug)]
pub(super) struct Namespace(pub Bytes);

impl Namespace {
    pub(super) fn key(&self, key: &[u8]) -> Bytes {
        let mut whole = BytesMut::with_capacity(self.0.len() + key.len());
        whole.put_slice(&self.0);
        whole.put_slice(key);
        whole.freeze()
    }

    /// Key and range end of etcd.
    pub(super) fn range(&self, range: &KeyRange) -> (Bytes, Bytes) {
        let from = match (&range.from[..], self.0.is_empty(), &range.to) {
            // A key cannot be empty; the first that can be is a zero byte.
            ([], true, Some(_)) => Bytes::from_static(b"\0"),
            (from, ..) => self.key(from),
        };
        let to = match &range.to {
            None => Bytes::new(),
            Some(to) if to.is_empty() => match KeyRange::prefix(self.0.clone()).to {
                Some(end) if !end.is_empty() => end,
                _ => Bytes::from_static(b"\0"),
            },
            Some(to) => self.key(to),
        };
        (from, to)
    }

    /// The key as it is above; `None` for one of our own.
    pub(super) fn strip(&self, key: &Bytes) -> Option<Bytes> {
        let key = key.slice_ref(key.strip_prefix(&self.0[..])?);
        (!key.starts_with(OWN)).then_some(key)
    }

    pub(super) fn kv(&self, kv: &mvccpb::KeyValue) -> Option<KeyValue> {
        Some(KeyValue {
            key: self.strip(&kv.key)?,
            value: kv.value.clone(),
            create_revision: revision(kv.create_revision),
            mod_revision: revision(kv.mod_revision),
            version: kv.version.max(0) as u64,
            lease: (kv.lease != 0).then_some(LeaseId(kv.lease)),
        })
    }
}

pub(super) fn revision(number: i64) -> Revision {
    Revision(number.max(0) as u64)
}

/// Revisions are counted by etcd as signed numbers; one beyond them is in the future, as the largest is.
pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// What an answer of etcd's is to us.
pub(super) fn error(status: &Status) -> Error {
    use tonic::Code as Grpc;
    let text = status.message();
    let said = || format!("etcd answers: {text}");
    match status.code() {
        Grpc::OutOfRange if text.contains("compacted") => {
            Error::new(Code::COMPACTED, "the history of keys at this revision is gone")
                .hint("read the range again, and watch from there")
        }
        Grpc::OutOfRange if text.contains("future") => Error::new(Code::REVISION_FUTURE, said()),
        Grpc::NotFound if text.contains("lease") => {
            Error::new(Code::LEASE_UNKNOWN, "there is no such lease, or it has ended")
        }
        Grpc::FailedPrecondition if text.contains("lease already exists") => {
            Error::new(Code::LEASE_EXISTS, "a lease of this id is alive")
        }
        Grpc::ResourceExhausted if text.contains("space") => {
            Error::new(Code::DISK_FULL, said()).hint("compact and defragment the etcd, then etcdctl alarm disarm")
        }
        Grpc::ResourceExhausted if text.contains("too many requests") => {
            Error::new(Code::OVERLOADED, said()).retryable()
        }
        Grpc::ResourceExhausted => Error::new(Code::TOO_LARGE, said()),
        Grpc::InvalidArgument if text.contains("too large") || text.contains("too many operations") => {
            Error::new(Code::TOO_LARGE, said())
                .hint("split the entry, or raise --max-request-bytes and --max-txn-ops of the etcd")
        }
        Grpc::InvalidArgument if text.contains("key not found") => Error::new(Code::KEY_UNKNOWN, said()),
        Grpc::PermissionDenied => Error::new(Code::FORBIDDEN, said())
            .hint("give the user's role readwrite on the ledger's namespace: etcdctl role grant-permission --prefix"),
        Grpc::InvalidArgument if text.contains("user name is empty") => {
            Error::new(Code::CREDENTIALS, said()).hint("the etcd wants a user: etcd://USER@HOST:PORT")
        }
        Grpc::InvalidArgument if text.contains("authentication failed") => {
            Error::new(Code::CREDENTIALS, said()).hint("check the user and the password")
        }
        Grpc::Unauthenticated => Error::new(Code::CREDENTIALS, said()).hint("check the user and the password"),
        Grpc::InvalidArgument => Error::new(Code::BAD_REQUEST, said()),
        Grpc::Unimplemented => Error::new(Code::UNSUPPORTED, said()).hint("etcd 3.5 or newer is needed"),
        Grpc::DataLoss => Error::new(Code::CORRUPT, said()),
        _ => Error::new(Code::UNREACHABLE, said()).retryable(),
    }
}

pub(super) fn fault(fault: &Fault) -> Error {
    match fault {
        Fault::Answer(status) => error(status),
        Fault::Open(why) => {
            let error = Error::new(Code::UNREACHABLE, format!("the etcd does not answer: {why}"));
            error.hint("is a majority of its members up, and is the address one of theirs?").retryable()
        }
        Fault::Refused(error) => error.clone(),
    }
}

pub(super) fn range_request(ns: &Namespace, op: &RangeOp, serializable: bool) -> pb::RangeRequest {
    use pb::range_request as wire;
    let (key, range_end) = ns.range(&op.range);
    let bound = |bound: Option<Revision>| bound.map_or(0, number);
    pb::RangeRequest {
        key,
        range_end,
        limit: i64::try_from(op.limit).unwrap_or(0),
        revision: op.revision.map_or(0, number),
        sort_order: match op.order {
            SortOrder::None => wire::SortOrder::None,
            SortOrder::Ascending => wire::SortOrder::Ascend,
            SortOrder::Descending => wire::SortOrder::Descend,
        }
        .into(),
        sort_target: match op.target {
            SortTarget::Key => wire::SortTarget::Key,
            SortTarget::Version => wire::SortTarget::Version,
            SortTarget::CreateRevision => wire::SortTarget::Create,
            SortTarget::ModRevision => wire::SortTarget::Mod,
            SortTarget::Value => wire::SortTarget::Value,
        }
        .into(),
        serializable,
        keys_only: op.keys_only,
        count_only: op.count_only,
        min_mod_revision: bound(op.min_mod_revision),
        max_mod_revision: bound(op.max_mod_revision),
        min_create_revision: bound(op.min_create_revision),
        max_create_revision: bound(op.max_create_revision),
    }
}

pub(super) fn range_result(ns: &Namespace, response: &pb::RangeResponse, at: Revision) -> RangeResult {
    let kvs: Vec<_> = response.kvs.iter().filter_map(|kv| ns.kv(kv)).collect();
    let own = (response.kvs.len() - kvs.len()) as u64;
    RangeResult { revision: at, kvs, more: response.more, count: (response.count.max(0) as u64).saturating_sub(own) }
}

pub(super) fn txn_request(ns: &Namespace, txn: &Txn) -> pb::TxnRequest {
    let ops = |ops: &[TxnOp]| ops.iter().map(|op| request_op(ns, op)).collect();
    pb::TxnRequest {
        compare: txn.compares.iter().map(|c| compare(ns, c)).collect(),
        success: ops(&txn.success),
        failure: ops(&txn.failure),
    }
}

/// Makes every range of a transaction one that any member answers as it stands.
pub(super) fn serializable(txn: &mut pb::TxnRequest) {
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut op.request {
            Some(Request::RequestRange(range)) => range.serializable = true,
            Some(Request::RequestTxn(txn)) => serializable(txn),
            _ => {}
        }
    }
}

pub(super) fn compare(ns: &Namespace, compare: &Compare) -> pb::Compare {
    use pb::compare::{CompareResult, CompareTarget};
    let (key, range_end) = ns.range(&compare.range);
    let (target, union) = match &compare.operand {
        Operand::Version(number) => (CompareTarget::Version, TargetUnion::Version(*number)),
        Operand::CreateRevision(number) => (CompareTarget::Create, TargetUnion::CreateRevision(*number)),
        Operand::ModRevision(number) => (CompareTarget::Mod, TargetUnion::ModRevision(*number)),
        Operand::Value(value) => (CompareTarget::Value, TargetUnion::Value(value.clone())),
        Operand::Lease(number) => (CompareTarget::Lease, TargetUnion::Lease(*number)),
    };
    let result = match compare.relation {
        Relation::Equal => CompareResult::Equal,
        Relation::Greater => CompareResult::Greater,
        Relation::Less => CompareResult::Less,
        Relation::NotEqual => CompareResult::NotEqual,
    };
    pb::Compare { result: result.into(), target: target.into(), key, range_end, target_union: Some(union) }
}

fn request_op(ns: &Namespace, op: &TxnOp) -> pb::RequestOp {
    let request = match op {
        TxnOp::Range(op) => Request::RequestRange(range_request(ns, op, false)),
        TxnOp::Put(op) => Request::RequestPut(put_request(ns, op)),
        TxnOp::Delete(DeleteOp { range, prev_kv }) => {
            let (key, range_end) = ns.range(range);
            Request::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: *prev_kv })
        }
        TxnOp::Txn(txn) => Request::RequestTxn(txn_request(ns, txn)),
    };
    pb::RequestOp { request: Some(request) }
}

fn put_request(ns: &Namespace, op: &PutOp) -> pb::PutRequest {
    pb::PutRequest {
        key: ns.key(&op.key),
        value: op.value.clone(),
        lease: op.lease.map_or(0, |lease| lease.0),
        prev_kv: op.prev_kv,
        ignore_value: op.ignore_value,
        ignore_lease: op.ignore_lease,
    }
}

/// # Errors
/// `BAD_REQUEST` for an answer that does not fit what was asked.
pub(super) fn txn_result(
    ns: &Namespace,
    succeeded: bool,
    responses: &[pb::ResponseOp],
    at: Revision,
) -> Result<TxnResult, Error> {
    let results = responses.iter().map(|response| {
        Ok(match &response.response {
            Some(Response::ResponseRange(range)) => OpResult::Range(range_result(ns, range, at)),
            Some(Response::ResponsePut(put)) => {
                OpResult::Put { revision: at, prev: put.prev_kv.as_ref().and_then(|kv| ns.kv(kv)) }
            }
            Some(Response::ResponseDeleteRange(gone)) => OpResult::Delete {
                revision: at,
                deleted: gone.deleted.max(0) as u64,
                prev: gone.prev_kvs.iter().filter_map(|kv| ns.kv(kv)).collect(),
            },
            Some(Response::ResponseTxn(txn)) => OpResult::Txn(txn_result(ns, txn.succeeded, &txn.responses, at)?),
            None => return Err(Error::new(Code::BAD_REQUEST, "etcd answers an operation with nothing")),
        })
    });
    Ok(TxnResult { succeeded, results: results.collect::<Result<_, Error>>()? })
}
