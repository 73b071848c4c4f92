//! Evaluates transactions: what they come to, before anything is changed.
//!
//! A transaction is carried out in two steps, as everything is. Here its compares are held against the state and its
//! operations against what that state and the operations before them leave, kept beside the state as an overlay. What comes
//! out is a [`Plan`]: the changes to make, none of which can fail, and the answer. The machine then makes the changes.
//!
//! Of the answer only what cannot be found again is remembered for a retry: at which revision the transaction looked, and
//! which way each of its compares went ([`Taken`]). A retry brings the transaction along, and history has the rest, so the
//! same evaluation over the same revision gives the same answer, however large it was; memory holds a few bytes. Only where
//! history was compacted meanwhile there is none to give, and the retry is told that it was carried out and not what it saw.

use std::collections::BTreeMap;

use buttress_core::{
    Code, Compare, KeyRange, LeaseId, Mutant, OpResult, Operand, RangeOp, RangeResult, Refusal, Revision, Store,
    StoreError, Txn, TxnOp, TxnResult, ledger::KeyValue, limits::TXN_BYTES_MAX, mutant, txn::PutOp,
};
use bytes::Bytes;

use super::{Keys, PageLimits, ReadError};
use crate::leases::Leases;

/// What a row costs beside its texts, against [`TXN_BYTES_MAX`].
const ROW_BYTES: usize = 64;

/// What a key costs against [`TXN_BYTES_MAX`].
pub(crate) fn cost(kv: &KeyValue) -> usize {
    ROW_BYTES + kv.key.len() + kv.value.len()
}

/// Why a transaction is not carried out.
#[derive(Debug)]
pub(crate) enum Fault {
    Refused(Refusal),
    Fatal(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Fatal(error)
    }
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => Self::Fatal(error),
            error => {
                let buttress_core::Error { code, message, .. } = error.into();
                refuse(code, message)
            }
        }
    }
}

fn refuse(code: Code, message: impl Into<String>) -> Fault {
    Fault::Refused(Refusal::Part { code, message: message.into() })
}

/// A change that a transaction makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Put { key: Bytes, value: Bytes, lease: Option<LeaseId> },
    Delete { key: Bytes },
}

/// What must be remembered to answer again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The revision before the transaction.
    pub base: Revision,
    /// Which way it went, and then each transaction within it that was taken, in their order.
    pub path: Vec<bool>,
}

/// What a transaction comes to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub taken: Taken,
    /// In their order.
    pub writes: Vec<Write>,
    pub result: TxnResult,
}

/// Evaluates a transaction against the present.
pub(crate) fn plan<S: Store>(keys: &Keys, leases: &Leases, store: &S, txn: &Txn) -> Result<Plan, Fault> {
    txn.check().map_err(|fault| refuse(Code::BAD_REQUEST, fault.to_string()))?;
    let mut view = View::new(keys, store, Some(leases), keys.revision);
    let mut path = Vec::new();
    view.decide(txn, &mut path)?;
    let result = view.run(txn, &mut path.iter().copied())?;
    Ok(Plan { taken: Taken { base: keys.revision, path }, writes: view.writes, result })
}

/// Gives the answer of a transaction that was carried out before once more.
///
/// # Errors
/// Refused where history is gone, or where the transaction is not the one that was carried out.
pub(crate) fn answer_again<S: Store>(keys: &Keys, store: &S, txn: &Txn, taken: &Taken) -> Result<TxnResult, Fault> {
    let base = if mutant::active(Mutant::TxnStale) { keys.revision } else { taken.base };
    let mut view = View::new(keys, store, None, base);
    let mut path = taken.path.iter().copied();
    let result = view.run(txn, &mut path);
    match result {
        Ok(result) if path.next().is_none() => Ok(result),
        Err(Fault::Fatal(error)) => Err(Fault::Fatal(error)),
        Err(Fault::Refused(Refusal::Part { code: Code::COMPACTED, message })) => {
            let message = format!(
                "the transaction was carried out after revision {}, and its results are gone: {message}",
                taken.base
            );
            Err(refuse(Code::TIMEOUT, message))
        }
        Ok(_) | Err(Fault::Refused(_)) => Err(other_transaction()),
    }
}

/// A retry that is none.
pub(crate) fn other_transaction() -> Fault {
    refuse(Code::BAD_REQUEST, "the request's number was used for another transaction before, which was carried out")
}

/// The key space as a transaction sees it: a revision, and over it what the transaction has changed so far.
struct View<'a, S> {
    keys: &'a Keys,
    store: &'a S,
    /// `None` for a transaction that was carried out before: its leases were checked then.
    leases: Option<&'a Leases>,
    base: Revision,
    /// Keys that the transaction has changed; `None` where it deleted them.
    overlay: BTreeMap<Bytes, Option<KeyValue>>,
    writes: Vec<Write>,
    /// Bytes that it may still read or delete.
    budget: usize,
}

impl<'a, S: Store> View<'a, S> {
    fn new(keys: &'a Keys, store: &'a S, leases: Option<&'a Leases>, base: Revision) -> Self {
        Self { keys, store, leases, base, overlay: BTreeMap::new(), writes: Vec::new(), budget: TXN_BYTES_MAX }
    }

    /// The revision after the operations so far.
    fn revision(&self) -> Revision {
        Revision(self.base.0 + u64::from(!self.writes.is_empty()))
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Fault> {
        self.budget = self.budget.checked_sub(bytes).ok_or_else(|| {
            refuse(Code::TOO_LARGE, format!("the transaction reads or deletes more than {TXN_BYTES_MAX} bytes"))
        })?;
        Ok(())
    }

    /// A range as it was at a revision, without the transaction's own changes, at most `limit` keys of it; and how many
    /// there are.
    fn past(
        &mut self,
        range: &KeyRange,
        at: Revision,
        limit: usize,
        values: bool,
    ) -> Result<(Vec<KeyValue>, u64), Fault> {
        // One byte more than is left, so that what is too much shows.
        let limits = PageLimits { keys: limit, bytes: self.budget.saturating_add(1), ..PageLimits::NONE };
        let page = self.keys.page(self.store, range, at, values, limits)?;
        self.spend(page.kvs.iter().map(cost).sum())?;
        Ok((page.kvs, page.count))
    }

    /// A range as the transaction sees it now.
    fn present(&mut self, range: &KeyRange, limit: usize, values: bool) -> Result<(Vec<KeyValue>, u64), Fault> {
        let own = |view: &Self| {
            let from = view.overlay.range(range.from.clone()..);
            from.take_while(|(key, _)| range.contains(key))
                .map(|(key, kv)| (key.clone(), kv.clone()))
                .collect::<Vec<_>>()
        };
        let own = own(self);
        if own.is_empty() || mutant::active(Mutant::TxnBlind) {
            return self.past(range, self.base, limit, values);
        }
        // Each key of the overlay hides at most one, so with so many more the first `limit` are among them.
        let (past, mut count) = self.past(range, self.base, limit.saturating_add(own.len()), values)?;
        for (key, kv) in &own {
            let before = self.keys.index.get(&key[..]).and_then(|history| history.at(self.base)).is_some();
            match (before, kv.is_some()) {
                (true, false) => count -= 1,
                (false, true) => count += 1,
                _ => {}
            }
        }
        let mut merged: BTreeMap<Bytes, Option<KeyValue>> =
            past.into_iter().map(|kv| (kv.key.clone(), Some(kv))).collect();
        merged.extend(own);
        let kvs: Vec<KeyValue> = merged.into_values().flatten().take(limit).collect();
        Ok((kvs, count))
    }

    /// A key as the transaction sees it now.
    fn current(&mut self, key: &Bytes, value: bool) -> Result<Option<KeyValue>, Fault> {
        if let Some(own) = self.overlay.get(key) {
            return Ok(own.clone());
        }
        Ok(self.past(&KeyRange::key(key.clone()), self.base, 1, value)?.0.pop())
    }

    /// Which way the transaction goes, and those within it that are then taken. All look at the state before.
    fn decide(&mut self, txn: &Txn, path: &mut Vec<bool>) -> Result<(), Fault> {
        let mut holds = true;
        for compare in &txn.compares {
            if !self.holds(compare)? {
                holds = false;
                break;
            }
        }
        path.push(holds);
        for op in taken_branch(txn, holds) {
            if let TxnOp::Txn(inner) = op {
                self.decide(inner, path)?;
            }
        }
        Ok(())
    }

    fn holds(&mut self, compare: &Compare) -> Result<bool, Fault> {
        let values = matches!(compare.operand, Operand::Value(_));
        let (kvs, _) = self.past(&compare.range, self.base, usize::MAX, values)?;
        Ok(match &compare.operand {
            Operand::Value(value) => {
                !kvs.is_empty() && kvs.iter().all(|kv| compare.relation.holds(kv.value.cmp(value)))
            }
            operand => {
                let number = |kv: Option<&KeyValue>| match operand {
                    Operand::Version(_) => kv.map_or(0, |kv| kv.version as i64),
                    Operand::CreateRevision(_) => kv.map_or(0, |kv| kv.create_revision.0 as i64),
                    Operand::ModRevision(_) => kv.map_or(0, |kv| kv.mod_revision.0 as i64),
                    Operand::Lease(_) => kv.and_then(|kv| kv.lease).map_or(0, |lease| lease.0),
                    Operand::Value(_) => unreachable!("values are compared above"),
                };
                let wanted = match operand {
                    Operand::Version(wanted)
                    | Operand::CreateRevision(wanted)
                    | Operand::ModRevision(wanted)
                    | Operand::Lease(wanted) => wanted,
                    Operand::Value(_) => unreachable!("values are compared above"),
                };
                let holds = |kv: Option<&KeyValue>| compare.relation.holds(number(kv).cmp(wanted));
                if kvs.is_empty() { holds(None) } else { kvs.iter().all(|kv| holds(Some(kv))) }
            }
        })
    }

    /// Does the operations of the branches that `path` names.
    fn run(&mut self, txn: &Txn, path: &mut impl Iterator<Item = bool>) -> Result<TxnResult, Fault> {
        let succeeded = path.next().ok_or_else(other_transaction)?;
        let mut results = Vec::with_capacity(taken_branch(txn, succeeded).len());
        for op in taken_branch(txn, succeeded) {
            results.push(match op {
                TxnOp::Range(op) => OpResult::Range(self.range(op)?),
                TxnOp::Put(op) => self.put(op)?,
                TxnOp::Delete(op) => self.delete(&op.range, op.prev_kv)?,
                TxnOp::Txn(inner) => OpResult::Txn(self.run(inner, path)?),
            });
        }
        Ok(TxnResult { succeeded, results })
    }

    fn range(&mut self, op: &RangeOp) -> Result<RangeResult, Fault> {
        let limit = match op.fetch() {
            _ if op.count_only => 0,
            Some(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        let values = op.needs_values();
        let (kvs, count) = match op.revision {
            None => self.present(&op.range, limit, values)?,
            // The transaction's own revision is not there yet.
            Some(wanted) if wanted > self.base => {
                return Err(ReadError::Future { wanted, current: self.base }.into());
            }
            Some(at) => self.past(&op.range, at, limit, values)?,
        };
        Ok(op.finish(self.revision(), count, kvs))
    }

    fn put(&mut self, op: &PutOp) -> Result<OpResult, Fault> {
        if let (Some(lease), Some(leases)) = (op.lease, self.leases)
            && leases.get(lease).is_none()
        {
            return Err(refuse(Code::LEASE_UNKNOWN, format!("there is no lease {lease}")));
        }
        let again = self.leases.is_none();
        let before = match self.current(&op.key, op.prev_kv || op.ignore_value) {
            // What was there before makes no difference to the answer; a range that would see it asks for itself.
            Err(Fault::Refused(_)) if again && !op.prev_kv => None,
            before => before?,
        };
        if before.is_none() && (op.ignore_value || op.ignore_lease) && !again {
            return Err(refuse(
                Code::KEY_UNKNOWN,
                format!("there is no key \"{}\" whose value or lease could be kept", op.key.escape_ascii()),
            ));
        }
        let value = match &before {
            Some(before) if op.ignore_value => before.value.clone(),
            _ => op.value.clone(),
        };
        let lease = match &before {
            Some(before) if op.ignore_lease => before.lease,
            _ => op.lease,
        };
        self.writes.push(Write::Put { key: op.key.clone(), value: value.clone(), lease });
        let revision = self.revision();
        let (create_revision, version) = match &before {
            Some(before) => (before.create_revision, before.version + 1),
            None => (revision, 1),
        };
        let now = KeyValue { key: op.key.clone(), value, create_revision, mod_revision: revision, version, lease };
        self.overlay.insert(op.key.clone(), Some(now));
        Ok(OpResult::Put { revision, prev: before.filter(|_| op.prev_kv) })
    }

    fn delete(&mut self, range: &KeyRange, prev_kv: bool) -> Result<OpResult, Fault> {
        let (gone, deleted) = self.present(range, usize::MAX, prev_kv)?;
        for kv in &gone {
            self.writes.push(Write::Delete { key: kv.key.clone() });
            self.overlay.insert(kv.key.clone(), None);
        }
        let prev = if prev_kv { gone } else { Vec::new() };
        Ok(OpResult::Delete { revision: self.revision(), deleted, prev })
    }
}

fn taken_branch(txn: &Txn, succeeded: bool) -> &[TxnOp] {
    if succeeded { &txn.success } else { &txn.failure }
}
