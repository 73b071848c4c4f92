//! Requests as the ledger takes them, and its answers as clients read them.
//!
//! Numbers that make no sense are taken as etcd takes them: a limit or revision that is not positive is none. An enum
//! value that the protocol does not have is refused, where etcd would do one or the other without a word.

use buttress_core::{
    Compare, DeleteOp, KeyRange, LeaseId, OpResult, Operand, PutOp, RangeOp, RangeResult, Relation, Revision, Txn,
    TxnOp, TxnResult,
    ledger::{KeyValue, WatchEvent},
    limits::KEY_BYTES_MAX,
    txn::{SortOrder, SortTarget},
};
use bytes::Bytes;
use prost::Message;
use tonic::Status;

use super::error::{self, Known};
use crate::pb::{etcdserverpb as pb, mvccpb};

/// Compares, or operations of one branch, in one transaction, with those of transactions within it.
pub const TXN_OPS_MAX: usize = 128;
/// The largest request that changes something, encoded.
pub const REQUEST_BYTES_MAX: usize = 1536 * 1024;

/// The keys from `key` up to `range_end`: empty is the one key, a zero byte is to the end.
pub fn key_range(key: Bytes, range_end: Bytes) -> KeyRange {
    let to = match &range_end[..] {
        [] => None,
        [0] => Some(Bytes::new()),
        _ => Some(range_end),
    };
    KeyRange { from: key, to }
}

fn checked_range(key: Bytes, range_end: Bytes) -> Result<KeyRange, Status> {
    if key.is_empty() {
        return Err(error::EMPTY_KEY.into());
    }
    if key.len().max(range_end.len()) > KEY_BYTES_MAX {
        return Err(error::REQUEST_TOO_LARGE.into());
    }
    Ok(key_range(key, range_end))
}

fn positive(number: i64) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

pub fn revision(number: i64) -> Option<Revision> {
    positive(number).map(Revision)
}

/// Revisions are counted by the log and never come near the sign.
pub fn number(revision: Revision) -> i64 {
    revision.0 as i64
}

pub fn lease(id: i64) -> Option<LeaseId> {
    (id != 0).then_some(LeaseId(id))
}

pub fn range_op(request: pb::RangeRequest) -> Result<RangeOp, Status> {
    let (Ok(order), Ok(target)) = (request.sort_order.try_into(), request.sort_target.try_into()) else {
        return Err(error::INVALID_SORT_OPTION.into());
    };
    use pb::range_request as wire;
    // A bound of zero is none; an upper one below zero lets nothing through.
    let upper = |bound: i64| (bound != 0).then(|| Revision(bound.max(0) as u64));
    Ok(RangeOp {
        revision: revision(request.revision),
        limit: positive(request.limit).unwrap_or(0),
        count_only: request.count_only,
        keys_only: request.keys_only,
        min_mod_revision: revision(request.min_mod_revision),
        max_mod_revision: upper(request.max_mod_revision),
        min_create_revision: revision(request.min_create_revision),
        max_create_revision: upper(request.max_create_revision),
        order: match order {
            wire::SortOrder::None => SortOrder::None,
            wire::SortOrder::Ascend => SortOrder::Ascending,
            wire::SortOrder::Descend => SortOrder::Descending,
        },
        target: match target {
            wire::SortTarget::Key => SortTarget::Key,
            wire::SortTarget::Version => SortTarget::Version,
            wire::SortTarget::Create => SortTarget::CreateRevision,
            wire::SortTarget::Mod => SortTarget::ModRevision,
            wire::SortTarget::Value => SortTarget::Value,
        },
        ..RangeOp::new(checked_range(request.key, request.range_end)?)
    })
}

/// A range that is given in pieces, in the order of keys.
pub fn stream_op(request: pb::RangeRequest) -> Result<RangeOp, Status> {
    let bounds =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    let bounded = bounds.iter().any(|bound| *bound != 0);
    let op = range_op(request)?;
    // etcd lets any target pass that has no order. It sorts each piece then and goes on behind its last key, which gives
    // some keys twice.
    if op.target != SortTarget::Key || op.order == SortOrder::Descending {
        return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    if bounded {
        return Err(Status::unimplemented("RangeStream does not support revision filters"));
    }
    Ok(op)
}

pub fn put_op(request: pb::PutRequest) -> Result<PutOp, Status> {
    if request.key.is_empty() {
        return Err(error::EMPTY_KEY.into());
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(error::VALUE_PROVIDED.into());
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(error::LEASE_PROVIDED.into());
    }
    if request.key.len() > KEY_BYTES_MAX {
        return Err(error::REQUEST_TOO_LARGE.into());
    }
    Ok(PutOp {
        key: request.key,
        value: request.value,
        lease: lease(request.lease),
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    })
}

pub fn delete_op(request: pb::DeleteRangeRequest) -> Result<DeleteOp, Status> {
    Ok(DeleteOp { range: checked_range(request.key, request.range_end)?, prev_kv: request.prev_kv })
}

/// Refuses what is larger than etcd lets into its log.
pub fn check_size(request: &impl Message) -> Result<(), Status> {
    if request.encoded_len() > REQUEST_BYTES_MAX { Err(error::REQUEST_TOO_LARGE.into()) } else { Ok(()) }
}

/// The transaction, and whether all its reads are content with what this node has applied.
pub fn txn(request: pb::TxnRequest) -> Result<(Txn, bool), Status> {
    check_txn(&request, TXN_OPS_MAX)?;
    let mut serializable = true;
    let txn = convert_txn(request, &mut serializable)?;
    txn.check().map_err(|fault| error::txn_status(&fault))?;
    Ok((txn, serializable))
}

/// Counts as etcd does: the longest of the three lists, and what it leaves is for the transactions within.
fn check_txn(request: &pb::TxnRequest, ops_max: usize) -> Result<(), Status> {
    let longest = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(left) = ops_max.checked_sub(longest) else { return Err(error::TOO_MANY_OPS.into()) };
    for op in request.success.iter().chain(&request.failure) {
        if let Some(pb::request_op::Request::RequestTxn(inner)) = &op.request {
            check_txn(inner, left)?;
        }
    }
    Ok(())
}

fn convert_txn(request: pb::TxnRequest, serializable: &mut bool) -> Result<Txn, Status> {
    let compares = request.compare.into_iter().map(compare).collect::<Result<_, _>>()?;
    let mut ops =
        |list: Vec<pb::RequestOp>| list.into_iter().map(|op| txn_op(op, serializable)).collect::<Result<Vec<_>, _>>();
    Ok(Txn { compares, success: ops(request.success)?, failure: ops(request.failure)? })
}

fn compare(request: pb::Compare) -> Result<Compare, Status> {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    let bad =
        |what: &str, number: i32| Status::invalid_argument(format!("etcdserver: unknown compare {what} {number}"));
    let relation = match request.result.try_into().map_err(|_| bad("result", request.result))? {
        CompareResult::Equal => Relation::Equal,
        CompareResult::Greater => Relation::Greater,
        CompareResult::Less => Relation::Less,
        CompareResult::NotEqual => Relation::NotEqual,
    };
    // As in etcd, a target whose own field is not set is compared with that field's default.
    let operand = match request.target.try_into().map_err(|_| bad("target", request.target))? {
        CompareTarget::Version => Operand::Version(match request.target_union {
            Some(TargetUnion::Version(version)) => version,
            _ => 0,
        }),
        CompareTarget::Create => Operand::CreateRevision(match request.target_union {
            Some(TargetUnion::CreateRevision(revision)) => revision,
            _ => 0,
        }),
        CompareTarget::Mod => Operand::ModRevision(match request.target_union {
            Some(TargetUnion::ModRevision(revision)) => revision,
            _ => 0,
        }),
        CompareTarget::Value => Operand::Value(match request.target_union {
            Some(TargetUnion::Value(value)) => value,
            _ => Bytes::new(),
        }),
        CompareTarget::Lease => Operand::Lease(match request.target_union {
            Some(TargetUnion::Lease(lease)) => lease,
            _ => 0,
        }),
    };
    Ok(Compare { range: checked_range(request.key, request.range_end)?, relation, operand })
}

fn txn_op(op: pb::RequestOp, serializable: &mut bool) -> Result<TxnOp, Status> {
    use pb::request_op::Request;
    Ok(match op.request {
        Some(Request::RequestRange(range)) => {
            *serializable &= range.serializable;
            TxnOp::Range(range_op(range)?)
        }
        Some(Request::RequestPut(put)) => TxnOp::Put(put_op(put)?),
        Some(Request::RequestDeleteRange(delete)) => TxnOp::Delete(delete_op(delete)?),
        Some(Request::RequestTxn(inner)) => TxnOp::Txn(Box::new(convert_txn(inner, serializable)?)),
        // An operation that says nothing; so etcd complains.
        None => return Err(Known::into(error::KEY_NOT_FOUND)),
    })
}

pub fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: number(kv.create_revision),
        mod_revision: number(kv.mod_revision),
        version: kv.version as i64,
        value: kv.value,
        lease: kv.lease.map_or(0, |lease| lease.0),
    }
}

pub fn event(event: WatchEvent) -> mvccpb::Event {
    use mvccpb::event::EventType;
    mvccpb::Event {
        r#type: if event.deleted { EventType::Delete } else { EventType::Put }.into(),
        kv: Some(key_value(event.kv)),
        prev_kv: event.prev.map(key_value),
    }
}

/// Within a transaction's answer a header says the revision and nothing else.
fn inner_header(revision: Revision) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision: number(revision), ..pb::ResponseHeader::default() })
}

pub fn range_response(header: Option<pb::ResponseHeader>, found: RangeResult) -> pb::RangeResponse {
    pb::RangeResponse {
        header,
        kvs: found.kvs.into_iter().map(key_value).collect(),
        more: found.more,
        count: found.count as i64,
    }
}

pub fn txn_response(header: Option<pb::ResponseHeader>, result: TxnResult) -> pb::TxnResponse {
    use pb::response_op::Response;
    let respond = |result: OpResult| match result {
        OpResult::Range(found) => Response::ResponseRange(range_response(inner_header(found.revision), found)),
        OpResult::Put { revision, prev } => {
            Response::ResponsePut(pb::PutResponse { header: inner_header(revision), prev_kv: prev.map(key_value) })
        }
        OpResult::Delete { revision, deleted, prev } => Response::ResponseDeleteRange(pb::DeleteRangeResponse {
            header: inner_header(revision),
            deleted: deleted as i64,
            prev_kvs: prev.into_iter().map(key_value).collect(),
        }),
        OpResult::Txn(inner) => Response::ResponseTxn(txn_response(Some(pb::ResponseHeader::default()), inner)),
    };
    pb::TxnResponse {
        header,
        succeeded: result.succeeded,
        responses: result
            .results
            .into_iter()
            .map(|result| pb::ResponseOp { response: Some(respond(result)) })
            .collect(),
    }
}
