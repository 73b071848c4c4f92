//! Entry points for fuzzers: every body that a client of the gateway can send, and what becomes of it.

use std::sync::LazyLock;

use bytes::Bytes;
use prost::Message;

use super::{convert, gateway::Gateway};
use crate::pb::etcdserverpb as pb;

static GATEWAY: LazyLock<Gateway> = LazyLock::new(Gateway::new);

/// A body of the JSON gateway; the first byte chooses the path. What is read is written and read again, and the
/// requests that hold others are checked and converted as their calls do it.
///
/// # Panics
/// Where a message is not the same after it was JSON.
pub fn fuzz_gateway(data: &[u8]) {
    let Some((choice, body)) = data.split_first() else { return };
    let paths: Vec<&str> = GATEWAY.paths().collect();
    let path = paths[usize::from(*choice) % paths.len()];
    let Ok(Some((message, text))) = GATEWAY.transcode(path, body) else { return };
    let again = GATEWAY.transcode(path, text.as_bytes());
    assert_eq!(again, Ok(Some((message.clone(), text))), "{path}");
    match path {
        "kv/txn" => fuzz_txn(&message),
        "kv/range" => drop(pb::RangeRequest::decode(message).map(convert::range_op)),
        "kv/put" => drop(pb::PutRequest::decode(message).map(convert::put_op)),
        "kv/deleterange" => drop(pb::DeleteRangeRequest::decode(message).map(convert::delete_op)),
        _ => {}
    }
}

/// An encoded transaction.
///
/// # Panics
/// Where one that is taken has more operations than it may.
pub fn fuzz_txn(data: &[u8]) {
    let Ok(request) = pb::TxnRequest::decode(Bytes::copy_from_slice(data)) else { return };
    if let Ok((txn, _)) = convert::txn(request) {
        assert!(txn.compares.len().max(txn.success.len()).max(txn.failure.len()) <= convert::TXN_OPS_MAX);
        assert!(txn.check().is_ok());
    }
}
