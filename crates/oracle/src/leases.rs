//! LEASE-3: no key of a lease is seen after the end of the lease was acknowledged.
//!
//! A lease has ended for everybody once its revocation is acknowledged, or once somebody who had its grant acknowledged
//! hears that a keep-alive was refused. After that no read may show a value that was put under it, and no put under it may
//! succeed. Before that a client may believe what it likes: see [`crate::locks`].
//!
//! A lease's id is used for one lease only, and a value is written to a key by one commit only.

use std::collections::{BTreeMap, BTreeSet};

use buttress_core::{LeaseChange, LeaseId, OpResult, Txn, TxnOp, TxnResult, Violation, invariants::LEASE_3};
use bytes::Bytes;

use crate::{
    history::{History, Operation, Outcome, What},
    text::Word,
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub leases: usize,
    /// Leases whose end somebody was told.
    pub ended: usize,
}

/// Judges every lease of a history.
///
/// # Errors
/// The first key that was seen, or put, after its lease's end.
pub fn check(history: &History) -> Result<Checked, Violation> {
    let operations = history.operations();
    let mut granted: BTreeMap<LeaseId, &Operation> = BTreeMap::new();
    for operation in operations {
        if let Some((commit, _)) = operation.done() {
            for change in &commit.leases {
                if let LeaseChange::Grant { lease, .. } = change
                    && granted.insert(*lease, operation).is_some()
                {
                    return Err(LEASE_3.broken(format!("lease {lease} is granted twice\n    {operation}")));
                }
            }
        }
    }
    let mut ended: BTreeMap<LeaseId, &Operation> = BTreeMap::new();
    let mut put: BTreeMap<(&Bytes, &Bytes), LeaseId> = BTreeMap::new();
    // Keys whose value may have been kept and hung on another lease, or on none: of these the answer says which it is.
    let mut rehung: BTreeSet<&Bytes> = BTreeSet::new();
    for operation in operations {
        if let What::Txn { txn, .. } = &operation.what {
            put_under(txn, &mut put, &mut rehung);
        }
        let What::Commit(commit) = &operation.what else { continue };
        for change in &commit.leases {
            let lease = match (change, &operation.outcome) {
                (LeaseChange::Revoke { lease }, Outcome::Done(_)) => *lease,
                // Alone, so that nothing else can have stood against it.
                (
                    LeaseChange::KeepAlive { lease } | LeaseChange::Revoke { lease },
                    Outcome::Refused { guard: None },
                ) if commit.leases.len() == 1
                    && commit.puts.is_empty()
                    && commit.appends.is_empty()
                    && commit.cursors.is_empty()
                    && granted.get(lease).is_some_and(|grant| grant.precedes(operation)) =>
                {
                    *lease
                }
                _ => continue,
            };
            let end = ended.entry(lease).or_insert(operation);
            if operation.ended < end.ended {
                *end = operation;
            }
        }
        for each in &commit.puts {
            if let (Some(value), Some(lease)) = (&each.value, each.lease) {
                put.insert((&each.key, value), lease);
            }
        }
    }
    for operation in operations {
        match (&operation.what, &operation.outcome) {
            (What::Read { at: None, linearizable: true, .. }, Outcome::Found(found)) => {
                for kv in &found.kvs {
                    let lease = match rehung.contains(&kv.key) {
                        true => kv.lease,
                        false => put.get(&(&kv.key, &kv.value)).copied(),
                    };
                    if let Some(lease) = lease
                        && let Some(end) = ended.get(&lease)
                        && end.precedes(operation)
                    {
                        return Err(LEASE_3.broken(format!(
                            "{}={} is seen, but lease {lease} has ended\n    {end}\n    {operation}",
                            Word(&kv.key),
                            Word(&kv.value)
                        )));
                    }
                }
            }
            (What::Txn { txn, .. }, Outcome::Transacted { result, .. }) => {
                for lease in taken_leases(txn, result) {
                    if let Some(end) = ended.get(&lease)
                        && end.precedes(operation)
                    {
                        let found = format!("lease {lease} lives, but it has ended\n    {end}\n    {operation}");
                        return Err(LEASE_3.broken(found));
                    }
                }
            }
            (What::Commit(commit), Outcome::Done(_)) => {
                let puts = commit.puts.iter().filter_map(|put| put.lease);
                let kept = commit.leases.iter().filter_map(|change| match change {
                    LeaseChange::KeepAlive { lease } => Some(*lease),
                    _ => None,
                });
                for lease in puts.chain(kept) {
                    if let Some(end) = ended.get(&lease)
                        && end.precedes(operation)
                    {
                        let found = format!("lease {lease} lives, but it has ended\n    {end}\n    {operation}");
                        return Err(LEASE_3.broken(found));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Checked { leases: granted.len(), ended: ended.len() })
}

/// The values that a transaction puts under a lease, whichever way it goes.
fn put_under<'a>(txn: &'a Txn, put: &mut BTreeMap<(&'a Bytes, &'a Bytes), LeaseId>, rehung: &mut BTreeSet<&'a Bytes>) {
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            TxnOp::Put(op) if op.ignore_value => _ = rehung.insert(&op.key),
            TxnOp::Put(op) => {
                if let Some(lease) = op.lease {
                    put.insert((&op.key, &op.value), lease);
                }
            }
            TxnOp::Txn(inner) => put_under(inner, put, rehung),
            _ => {}
        }
    }
}

/// The leases that a transaction put under, going as it went.
fn taken_leases(txn: &Txn, result: &TxnResult) -> Vec<LeaseId> {
    let ops = if result.succeeded { &txn.success } else { &txn.failure };
    let mut leases = Vec::new();
    for (op, result) in ops.iter().zip(&result.results) {
        match (op, result) {
            (TxnOp::Put(op), _) => leases.extend(op.lease),
            (TxnOp::Txn(inner), OpResult::Txn(result)) => leases.extend(taken_leases(inner, result)),
            _ => {}
        }
    }
    leases
}
