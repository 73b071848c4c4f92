//! TXN-1: transactions go the way that their compares say, see what they should, and answer what they saw. With it LIN-2,
//! where clients issue transactions: then one oracle judges all of their commits and reads.
//!
//! As in [`crate::revisions`] no order is searched: every answer carries its revision. All changes are played, and each
//! revision must be exactly what one transaction or commit does to the state before it: one that was acknowledged there
//! with exactly that answer, or one whose outcome is not known; or keys leaving with their lease. A transaction that was
//! acknowledged at a revision that it did not make must change nothing behind it, and answer what is there. The evaluation
//! is this oracle's own: it copies the state, and does one operation after the other.
//!
//! What writers must keep for this: a value is written to a key by one transaction only, and a transaction that keeps the
//! value or the lease of a key also puts a value of its own. So whoever made a revision can be told by what it put, and
//! those that can be confused only delete, which leaves the same state whoever it was.
//!
//! Without the list of all changes ([`History::changes_end`]) nothing is judged here but the time of answers.

use std::collections::{BTreeMap, BTreeSet};

use buttress_core::{
    Compare, KeyRange, LeaseChange, OpResult, Operand, RangeOp, RangeResult, Relation, Revision, Txn, TxnOp, TxnResult,
    Violation,
    invariants::{KEYS_1, LIN_2, TXN_1},
    ledger::{KeyEvent, KeyValue, KeyValues},
    txn::{SortOrder, SortTarget},
};
use bytes::Bytes;

use crate::{
    history::{Commit, History, Operation, Outcome, What},
    revisions::{Moments, shown},
    text::Transacted,
};

/// What was judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub transactions: usize,
    /// Those of them that went the other way.
    pub failed: usize,
    pub reads: usize,
    /// Commits and transactions whose receipt was lost, and that were found to have taken effect.
    pub recovered: usize,
}

/// Judges a history with transactions; one without is left to the other oracles.
///
/// # Errors
/// The first contradiction.
pub fn check(history: &History) -> Result<Checked, Violation> {
    let mut checked = Checked::default();
    if !history.has_transactions() {
        return Ok(checked);
    }
    for operation in history.operations() {
        match &operation.outcome {
            Outcome::Transacted { result, .. } => {
                checked.transactions += 1;
                checked.failed += usize::from(!result.succeeded);
            }
            Outcome::Found(_) => checked.reads += 1,
            _ => {}
        }
    }
    let made = match history.changes_end {
        Some(end) => play(history, end)?,
        None => BTreeMap::new(),
    };
    let mut moments = Moments::default();
    for (at, operation) in history.operations().iter().enumerate() {
        let makes = made.contains_key(&at);
        match (&operation.what, &operation.outcome) {
            (What::Commit(_), Outcome::Done(crate::Done { revision: Some(revision), .. }))
            | (What::Txn { linearizable: true, .. }, Outcome::Transacted { revision, .. }) => {
                moments.answered(operation, at, *revision);
                moments.called(operation, at, *revision, makes);
            }
            (What::Txn { .. }, Outcome::Transacted { revision, .. }) => moments.answered(operation, at, *revision),
            (What::Read { at: asked, linearizable, .. }, Outcome::Found(found)) => {
                moments.answered(operation, at, found.revision);
                if *linearizable && asked.is_none() {
                    moments.called(operation, at, found.revision, false);
                }
            }
            (_, Outcome::Unknown) => {
                if let Some(revision) = made.get(&at) {
                    checked.recovered += 1;
                    moments.called(operation, at, Revision(*revision), true);
                }
            }
            _ => {}
        }
    }
    moments.judge(history.operations())?;
    Ok(checked)
}

type Keys = BTreeMap<Bytes, KeyValue>;

/// The key space while its changes are played.
#[derive(Default)]
struct Space {
    revision: u64,
    live: Keys,
    /// All that a key ever was: since which revision, and what.
    past: BTreeMap<Bytes, Vec<(u64, Option<KeyValue>)>>,
}

/// What an operation does to a state.
struct Played {
    events: Vec<KeyEvent>,
    after: Keys,
    result: Option<TxnResult>,
}

/// A state that is being changed at one revision.
struct Scratch<'a> {
    space: &'a Space,
    keys: Keys,
    events: Vec<KeyEvent>,
}

impl Scratch<'_> {
    /// The revision that changes have.
    fn next(&self) -> Revision {
        Revision(self.space.revision + 1)
    }

    /// The revision after the operations so far.
    fn now(&self) -> Revision {
        Revision(self.space.revision + u64::from(!self.events.is_empty()))
    }

    fn put(&mut self, key: &Bytes, value: &Bytes, lease: Option<buttress_core::LeaseId>) {
        let revision = self.next();
        let (create_revision, version) = match self.keys.get(key) {
            Some(before) => (before.create_revision, before.version + 1),
            None => (revision, 1),
        };
        let (key, value) = (key.clone(), value.clone());
        self.events.push(KeyEvent { revision, key: key.clone(), value: Some(value.clone()) });
        let kv = KeyValue { key: key.clone(), value, create_revision, mod_revision: revision, version, lease };
        self.keys.insert(key, kv);
    }

    fn delete(&mut self, key: &Bytes) {
        if self.keys.remove(key).is_some() {
            self.events.push(KeyEvent { revision: self.next(), key: key.clone(), value: None });
        }
    }

    fn within(&self, range: &KeyRange) -> Vec<KeyValue> {
        self.keys.values().filter(|kv| range.contains(&kv.key)).cloned().collect()
    }

    /// `None` where it would be refused.
    fn run(&mut self, txn: &Txn) -> Option<TxnResult> {
        let succeeded = txn.compares.iter().all(|compare| holds(compare, &self.space.live));
        let mut results = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            results.push(match op {
                TxnOp::Range(op) => {
                    let all = match op.revision {
                        Some(at) if at.0 > self.space.revision => return None,
                        Some(at) => self.space.range(&op.range, at.0).cloned().collect(),
                        None => self.within(&op.range),
                    };
                    OpResult::Range(range(op, self.now(), all))
                }
                TxnOp::Put(op) => {
                    let before = self.keys.get(&op.key).cloned();
                    if before.is_none() && (op.ignore_value || op.ignore_lease) {
                        return None;
                    }
                    let kept = before.as_ref().filter(|_| op.ignore_value).map(|kv| kv.value.clone());
                    let lease = if op.ignore_lease { before.as_ref().and_then(|kv| kv.lease) } else { op.lease };
                    self.put(&op.key, &kept.unwrap_or_else(|| op.value.clone()), lease);
                    OpResult::Put { revision: self.next(), prev: before.filter(|_| op.prev_kv) }
                }
                TxnOp::Delete(op) => {
                    let gone = self.within(&op.range);
                    gone.iter().for_each(|kv| self.delete(&kv.key));
                    let deleted = gone.len() as u64;
                    let prev = if op.prev_kv { gone } else { Vec::new() };
                    OpResult::Delete { revision: self.now(), deleted, prev }
                }
                TxnOp::Txn(inner) => OpResult::Txn(self.run(inner)?),
            });
        }
        Some(TxnResult { succeeded, results })
    }

    fn commit(&mut self, commit: &Commit) {
        for change in &commit.leases {
            if let LeaseChange::Revoke { lease } = change {
                let keys: Vec<Bytes> =
                    self.keys.values().filter(|kv| kv.lease == Some(*lease)).map(|kv| kv.key.clone()).collect();
                keys.iter().for_each(|key| self.delete(key));
            }
        }
        for put in &commit.puts {
            match &put.value {
                Some(value) => self.put(&put.key, value, put.lease),
                None => self.delete(&put.key),
            }
        }
    }
}

/// What a compare says of a state. A key that is not there has 0 everywhere, and no value.
fn holds(compare: &Compare, keys: &Keys) -> bool {
    let within: Vec<&KeyValue> = keys.values().filter(|kv| compare.range.contains(&kv.key)).collect();
    let relates = |found: std::cmp::Ordering| match compare.relation {
        Relation::Equal => found.is_eq(),
        Relation::NotEqual => found.is_ne(),
        Relation::Greater => found.is_gt(),
        Relation::Less => found.is_lt(),
    };
    let of = |kv: Option<&KeyValue>| match &compare.operand {
        Operand::Value(value) => kv.is_some_and(|kv| relates(kv.value.cmp(value))),
        Operand::Version(number) => relates(kv.map_or(0, |kv| kv.version as i64).cmp(number)),
        Operand::CreateRevision(number) => relates(kv.map_or(0, |kv| kv.create_revision.0 as i64).cmp(number)),
        Operand::ModRevision(number) => relates(kv.map_or(0, |kv| kv.mod_revision.0 as i64).cmp(number)),
        Operand::Lease(number) => relates(kv.and_then(|kv| kv.lease).map_or(0, |lease| lease.0).cmp(number)),
    };
    if within.is_empty() { of(None) } else { within.into_iter().all(|kv| of(Some(kv))) }
}

/// What a range gives of all the keys in it. Ties of a sort are left in the order of keys.
fn range(op: &RangeOp, revision: Revision, mut kvs: Vec<KeyValue>) -> RangeResult {
    let count = kvs.len() as u64;
    if op.count_only {
        return RangeResult { revision, kvs: Vec::new(), more: false, count };
    }
    let limit = if op.limit == 0 { usize::MAX } else { op.limit as usize };
    let bounded = [op.min_mod_revision, op.max_mod_revision, op.min_create_revision, op.max_create_revision]
        .iter()
        .any(Option::is_some);
    if op.order == SortOrder::None && !bounded {
        kvs.truncate(limit.saturating_add(1));
    }
    kvs.retain(|kv| {
        op.min_mod_revision.is_none_or(|min| min <= kv.mod_revision)
            && op.max_mod_revision.is_none_or(|max| kv.mod_revision <= max)
            && op.min_create_revision.is_none_or(|min| min <= kv.create_revision)
            && op.max_create_revision.is_none_or(|max| kv.create_revision <= max)
    });
    match op.target {
        SortTarget::Key => {}
        SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
        SortTarget::CreateRevision => kvs.sort_by_key(|kv| kv.create_revision),
        SortTarget::ModRevision => kvs.sort_by_key(|kv| kv.mod_revision),
        SortTarget::Value => kvs.sort_by_key(|kv| kv.value.clone()),
    }
    if op.order == SortOrder::Descending {
        kvs.reverse();
    }
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if op.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeResult { revision, kvs, more, count }
}

impl Space {
    fn range(&self, range: &KeyRange, at: u64) -> impl Iterator<Item = &KeyValue> {
        let keys = self.past.iter().filter(move |(key, _)| range.contains(key));
        keys.filter_map(move |(_, past)| {
            let upto = past.partition_point(|(since, _)| *since <= at);
            past[..upto].last()?.1.as_ref()
        })
    }

    /// What a transaction or commit does here; `None` where it would be refused.
    fn play(&self, what: &What) -> Option<Played> {
        let mut scratch = Scratch { space: self, keys: self.live.clone(), events: Vec::new() };
        let result = match what {
            What::Txn { txn, .. } => Some(scratch.run(txn)?),
            What::Commit(commit) => {
                scratch.commit(commit);
                None
            }
            What::Read { .. } | What::Fetch { .. } => return None,
        };
        Some(Played { events: scratch.events, after: scratch.keys, result })
    }

    /// The state behind the end of one or several leases, where that explains the changes: all of their keys go, and nothing
    /// else happens.
    fn lease_ends(&self, events: &[KeyEvent]) -> Option<Keys> {
        let gone: BTreeSet<&Bytes> = events.iter().map(|event| &event.key).collect();
        let leases: BTreeSet<_> = gone.iter().map(|key| self.live.get(*key).and_then(|kv| kv.lease)).collect();
        let whole = self.live.values().all(|kv| !leases.contains(&kv.lease) || gone.contains(&kv.key));
        if events.iter().any(|event| event.value.is_some()) || leases.contains(&None) || !whole {
            return None;
        }
        Some(
            self.live
                .iter()
                .filter(|(key, _)| !gone.contains(key))
                .map(|(key, kv)| (key.clone(), kv.clone()))
                .collect(),
        )
    }

    fn advance(&mut self, events: &[KeyEvent], after: Keys) {
        self.revision += 1;
        self.live = after;
        for key in events.iter().map(|event| &event.key).collect::<BTreeSet<_>>() {
            let now = self.live.get(key).cloned();
            self.past.entry(key.clone()).or_default().push((self.revision, now));
        }
    }
}

/// The revision at which an operation was acknowledged, and what it answered where it is a transaction.
fn acknowledged(operation: &Operation) -> Option<(Revision, Option<&TxnResult>)> {
    match &operation.outcome {
        Outcome::Done(done) => done.revision.map(|revision| (revision, None)),
        Outcome::Transacted { revision, result } => Some((*revision, Some(result))),
        _ => None,
    }
}

/// Plays all changes; gives the operations that made a revision, and which.
fn play(history: &History, end: Revision) -> Result<BTreeMap<usize, u64>, Violation> {
    let operations = history.operations();
    let mut by_revision: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    let mut unknown: Vec<usize> = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        if let Some((revision, _)) = acknowledged(operation) {
            by_revision.entry(revision.0).or_default().push(at);
        } else if matches!(operation.what, What::Commit(_) | What::Txn { .. })
            && matches!(operation.outcome, Outcome::Unknown | Outcome::Done(_))
        {
            unknown.push(at);
        }
    }
    let mut made = BTreeMap::new();
    let mut space = Space { revision: 1, ..Space::default() };
    let mut changes = history.changes.chunk_by(|a, b| a.revision == b.revision).peekable();
    judge_quiet(&space, by_revision.remove(&1).unwrap_or_default(), operations)?;
    while space.revision < end.0 {
        let revision = space.revision + 1;
        let mut here = by_revision.remove(&revision).unwrap_or_default();
        match changes.next_if(|events| events[0].revision.0 == revision) {
            Some(events) => {
                let after = make(&space, events, revision, &mut here, &mut unknown, operations, &mut made)?;
                space.advance(events, after);
            }
            None if history.scope.is_some() => {
                // Somebody else's revision.
                let same = space.live.clone();
                space.advance(&[], same);
            }
            None => {
                let next = changes.peek().map_or("nothing".into(), |events| shown(events));
                return Err(KEYS_1.broken(format!("revision {revision} changes nothing; after it comes {next}")));
            }
        }
        judge_quiet(&space, here, operations)?;
    }
    for operation in operations {
        let (What::Read { range, at, .. }, Outcome::Found(found)) = (&operation.what, &operation.outcome) else {
            continue;
        };
        if found.revision > end {
            continue;
        }
        let mut there = space.range(range, found.revision.0);
        let same = found.kvs.iter().all(|kv| there.next() == Some(kv)) && found.more == there.next().is_some();
        if !same || at.is_some_and(|asked| asked != found.revision) {
            let kvs = space.range(range, found.revision.0).cloned().collect();
            let truth = Outcome::Found(KeyValues { revision: found.revision, kvs, more: false });
            return Err(LIN_2.broken(format!("a read differs from\n    {truth}\n    {operation}")));
        }
    }
    Ok(made)
}

/// Finds who made a revision, and gives the state behind it. Whoever it was leaves `here`, which keeps those who were only
/// told of it.
fn make(
    space: &Space,
    events: &[KeyEvent],
    revision: u64,
    here: &mut Vec<usize>,
    unknown: &mut Vec<usize>,
    operations: &[Operation],
    made: &mut BTreeMap<usize, u64>,
) -> Result<Keys, Violation> {
    let mut makers: Vec<(usize, Keys)> = Vec::new();
    for (position, at) in here.iter().enumerate() {
        let operation = &operations[*at];
        let told = acknowledged(operation).and_then(|(_, result)| result);
        if let Some(Played { events: does, after, result }) = space.play(&operation.what)
            && does == events
            && told == result.as_ref()
        {
            makers.push((position, after));
        }
    }
    // A transaction tells what it did, and a commit does not: of two that delete the same it was the transaction.
    let is_txn = |position: usize| matches!(operations[here[position]].what, What::Txn { .. });
    makers.sort_by_key(|(position, _)| !is_txn(*position));
    if let Some((position, after)) = makers.into_iter().next() {
        made.insert(here.swap_remove(position), revision);
        return Ok(after);
    }
    for position in 0..unknown.len() {
        let at = unknown[position];
        if let Some(Played { events: does, after, .. }) = space.play(&operations[at].what)
            && does == events
        {
            // What only deletes may have been somebody else, and may still come.
            if events.iter().any(|event| event.value.is_some()) {
                unknown.swap_remove(position);
                made.insert(at, revision);
            }
            return Ok(after);
        }
    }
    if let Some(after) = space.lease_ends(events) {
        return Ok(after);
    }
    let mut found = format!("nobody made revision {revision}: {}", shown(events));
    let mut id = LIN_2;
    for at in here.iter() {
        let operation = &operations[*at];
        let does = space.play(&operation.what);
        let says = does.map_or("it would be refused".into(), |played| {
            if played.events == events {
                // The changes are right and the answer is not.
                id = TXN_1;
            }
            let answer = played.result.map_or(String::new(), |result| format!(" and answer {}", Transacted(&result)));
            format!("it would do {}{answer}", shown(&played.events))
        });
        found += &format!("\n    {operation}\n      {says}");
    }
    Err(id.broken(found))
}

/// Operations that were acknowledged at a revision that they did not make: they must change nothing there, and answer what is
/// there.
fn judge_quiet(space: &Space, quiet: Vec<usize>, operations: &[Operation]) -> Result<(), Violation> {
    for at in quiet {
        let operation = &operations[at];
        let told = acknowledged(operation).and_then(|(_, result)| result);
        let Some(Played { events, result, .. }) = space.play(&operation.what) else {
            let found = format!("behind revision {} it would be refused\n    {operation}", space.revision);
            return Err(TXN_1.broken(found));
        };
        if !events.is_empty() {
            let found = format!("revision {} lacks {}\n    {operation}", space.revision, shown(&events));
            return Err(LIN_2.broken(found));
        }
        if told != result.as_ref() {
            let truth = result.map_or(String::new(), |result| Transacted(&result).to_string());
            let found = format!("at revision {} it should answer {truth}\n    {operation}", space.revision);
            return Err(TXN_1.broken(found));
        }
    }
    Ok(())
}
