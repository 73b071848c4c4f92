//! The machine against a model so naive that it can be seen to be right: it carries an entry out part by part on a copy of
//! everything, and throws the copy away at the first part that cannot be carried out. Entries are random but mostly
//! sensible; in between, the machine crashes: it is opened from an older checkpoint and applies the log from there again.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use buttress_core::{
    Append, AppendOutcome, Code, Compare, Cursor, DeleteOp, Entry, Forget, Guard, Index, KeyRange, LeaseChange,
    LeaseId, LogId, Machine as _, Offset, OpResult, Operand, Put, PutOp, RangeOp, RangeResult, Receipt, Refusal,
    Relation, RequestId, Revision, Sequence, StatePut, Table, Term, TimeMs, Timer, TopicChange, Txn, TxnOp, TxnResult,
    entry::{ENTRY_FORMAT_MAX, TopicSettings},
    ledger::{KeyEvent, KeyValue},
    txn::{SortOrder, SortTarget, TxnFault},
};
use buttress_state::{
    Limits, Machine, MemStore, PageLimits, ReadError, fuzz::fuzz_apply, invariants, local::opaque_batch,
};
use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

const LIMITS: Limits = Limits {
    request_clients: 2,
    request_results_per_client: 3,
    producers_per_partition: 1000,
    ends_per_entry: 1000,
    // So few that sweeping goes on over many entries.
    sweep_per_entry: 3,
    entry_format: ENTRY_FORMAT_MAX,
};

/// A result without its prose.
#[derive(Clone, Debug, PartialEq)]
enum Short {
    Ok(Box<Receipt>),
    Guard(usize),
    Part(Code),
}

impl Short {
    fn of(result: &Result<Receipt, Refusal>) -> Self {
        match result {
            Ok(receipt) => Self::Ok(Box::new(receipt.clone())),
            Err(Refusal::Guard { position, .. }) => Self::Guard(*position),
            Err(Refusal::Part { code, .. }) => Self::Part(*code),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Record {
    /// Producer, epoch and number.
    origin: Option<(String, i32, i64)>,
    /// Counts the log's batches from 0.
    batch: usize,
}

#[derive(Clone, Debug, Default)]
struct Log {
    start: i64,
    /// From offset 0 on, also those that retention has forgotten.
    records: Vec<Record>,
    /// The bytes behind the header of each batch ever appended.
    batches: Vec<Bytes>,
}

impl Log {
    fn end(&self) -> Offset {
        Offset(self.records.len() as i64)
    }

    /// Epoch and last number of a producer.
    fn last_of(&self, producer: &str) -> Option<(i32, i64)> {
        self.records.iter().rev().find_map(|record| match &record.origin {
            Some((name, epoch, number)) if name == producer => Some((*epoch, *number)),
            _ => None,
        })
    }

    fn find(&self, producer: &str, epoch: i32, number: i64) -> Option<Offset> {
        let origin = Some((producer.to_owned(), epoch, number));
        self.records.iter().position(|record| record.origin == origin).map(|at| Offset(at as i64))
    }

    /// Whether the offset is in one of the last five batches of the producer's epoch.
    fn recent(&self, producer: &str, epoch: i32, at: Offset) -> bool {
        let batches: BTreeSet<usize> = self
            .records
            .iter()
            .filter(|r| r.origin.as_ref().is_some_and(|(name, of, _)| name == producer && *of == epoch))
            .map(|r| r.batch)
            .collect();
        batches.iter().rev().take(5).any(|batch| *batch == self.records[at.0 as usize].batch)
    }
}

/// A range by its definition: everything, then what the options take away.
fn naive_range(op: &RangeOp, revision: Revision, all: Vec<KeyValue>) -> RangeResult {
    let count = all.len() as u64;
    let limit = if op.limit == 0 { usize::MAX } else { op.limit as usize };
    let bounds = [op.min_mod_revision, op.max_mod_revision, op.min_create_revision, op.max_create_revision];
    let mut kvs = all;
    // etcd takes the limit in the order of keys where no order is asked for, even if something else is to be sorted by.
    let early = op.order == SortOrder::None && bounds.iter().all(Option::is_none);
    let mut more = false;
    if early && kvs.len() > limit {
        // One more than the limit takes part in the sort.
        kvs.truncate(limit + 1);
    }
    kvs.retain(|kv| {
        op.min_mod_revision.is_none_or(|min| kv.mod_revision >= min)
            && op.max_mod_revision.is_none_or(|max| kv.mod_revision <= max)
            && op.min_create_revision.is_none_or(|min| kv.create_revision >= min)
            && op.max_create_revision.is_none_or(|max| kv.create_revision <= max)
    });
    kvs.sort_by(|a, b| match op.target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::CreateRevision => a.create_revision.cmp(&b.create_revision),
        SortTarget::ModRevision => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    });
    if op.order == SortOrder::Descending {
        kvs.reverse();
    }
    if kvs.len() > limit {
        more = true;
        kvs.truncate(limit);
    }
    if op.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    if op.count_only {
        RangeResult { revision, kvs: Vec::new(), more: false, count }
    } else {
        RangeResult { revision, kvs, more, count }
    }
}

/// Whether two changes of a transaction could meet on a key, by trying every pair of operations that may both be taken.
fn meets(ops: &[TxnOp]) -> bool {
    fn puts(op: &TxnOp) -> Vec<Bytes> {
        match op {
            TxnOp::Put(op) => vec![op.key.clone()],
            TxnOp::Txn(txn) => txn.success.iter().chain(&txn.failure).flat_map(puts).collect(),
            _ => Vec::new(),
        }
    }
    fn deletes(op: &TxnOp) -> Vec<KeyRange> {
        match op {
            TxnOp::Delete(op) => vec![op.range.clone()],
            TxnOp::Txn(txn) => txn.success.iter().chain(&txn.failure).flat_map(deletes).collect(),
            _ => Vec::new(),
        }
    }
    let inner = |op: &TxnOp| matches!(op, TxnOp::Txn(txn) if meets(&txn.success) || meets(&txn.failure));
    if ops.iter().any(inner) {
        return true;
    }
    ops.iter().enumerate().any(|(i, a)| {
        ops.iter().enumerate().any(|(j, b)| {
            let nested = |op: &TxnOp| matches!(op, TxnOp::Txn(_));
            let deleted = |key: &Bytes| deletes(b).iter().any(|range| range.contains(key));
            // As in etcd: of two inner transactions only the earlier one's deletes are held against the later one's puts.
            let held = !(nested(a) && nested(b)) || j < i;
            i != j
                && (puts(a).iter().any(|key| i < j && puts(b).contains(key)) || (held && puts(a).iter().any(deleted)))
        })
    })
}

#[derive(Clone, Debug, Default)]
struct World {
    clock: u64,
    revision: u64,
    compacted: u64,
    next_log: u32,
    keys: BTreeMap<Bytes, (KeyValue, Option<LeaseId>)>,
    events: Vec<KeyEvent>,
    /// The keys at every revision, the current one included.
    past: BTreeMap<u64, Rc<BTreeMap<Bytes, KeyValue>>>,
    topics: BTreeMap<String, Vec<LogId>>,
    settings: BTreeMap<String, TopicSettings>,
    logs: BTreeMap<LogId, Log>,
    cursors: BTreeMap<(LogId, String), (Offset, String)>,
    leases: BTreeMap<LeaseId, (u64, u64)>,
    timers: BTreeMap<String, (u64, Bytes, Bytes)>,
    state: BTreeMap<(String, Bytes), Bytes>,
    /// Client, number and result, oldest first.
    results: Vec<(u64, u64, Short)>,
    /// What was sent under a client's number first, and the revision before it was applied.
    sent: BTreeMap<(u64, u64), (Entry, u64)>,
    floors: BTreeMap<u64, u64>,
}

impl World {
    fn new() -> Self {
        Self { revision: 1, next_log: 1, past: BTreeMap::from([(1, Rc::default())]), ..Self::default() }
    }

    fn kvs(&self) -> BTreeMap<Bytes, KeyValue> {
        self.keys.iter().map(|(key, (kv, _))| (key.clone(), kv.clone())).collect()
    }

    fn compare(compare: &Compare, before: &BTreeMap<Bytes, KeyValue>) -> bool {
        let mut found: Vec<Option<&KeyValue>> =
            before.iter().filter(|(key, _)| compare.range.contains(key)).map(|(_, kv)| Some(kv)).collect();
        if found.is_empty() {
            found.push(None);
        }
        let relation = |ordering: Ordering| match compare.relation {
            Relation::Equal => ordering == Ordering::Equal,
            Relation::Greater => ordering == Ordering::Greater,
            Relation::Less => ordering == Ordering::Less,
            Relation::NotEqual => ordering != Ordering::Equal,
        };
        found.into_iter().all(|kv| match &compare.operand {
            Operand::Value(value) => kv.is_some_and(|kv| relation(kv.value.cmp(value))),
            Operand::Version(wanted) => relation((kv.map_or(0, |kv| kv.version) as i64).cmp(wanted)),
            Operand::CreateRevision(wanted) => relation((kv.map_or(0, |kv| kv.create_revision.0) as i64).cmp(wanted)),
            Operand::ModRevision(wanted) => relation((kv.map_or(0, |kv| kv.mod_revision.0) as i64).cmp(wanted)),
            Operand::Lease(wanted) => relation(kv.and_then(|kv| kv.lease).map_or(0, |lease| lease.0).cmp(wanted)),
        })
    }

    /// Carries out a transaction; `before` is the state before the outermost one.
    fn txn(&mut self, txn: &Txn, before: &BTreeMap<Bytes, KeyValue>, changed: &mut bool) -> Result<TxnResult, Short> {
        let succeeded = txn.compares.iter().all(|compare| Self::compare(compare, before));
        let mut results = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            let now = |changed: bool| Revision(self.revision + u64::from(changed));
            results.push(match op {
                TxnOp::Range(op) => {
                    let kvs = match op.revision {
                        Some(at) if at.0 > self.revision => return Err(Short::Part(Code::REVISION_FUTURE)),
                        Some(at) if at.0 < self.compacted => return Err(Short::Part(Code::COMPACTED)),
                        Some(at) => match self.past.range(..=at.0).next_back() {
                            Some((_, kvs)) => (**kvs).clone(),
                            None => BTreeMap::new(),
                        },
                        None => self.kvs(),
                    };
                    let all = kvs.into_values().filter(|kv| op.range.contains(&kv.key)).collect();
                    OpResult::Range(naive_range(op, now(*changed), all))
                }
                TxnOp::Put(op) => {
                    if op.lease.is_some_and(|lease| !self.leases.contains_key(&lease)) {
                        return Err(Short::Part(Code::LEASE_UNKNOWN));
                    }
                    let prev = self.keys.get(&op.key).map(|(kv, _)| kv.clone());
                    if prev.is_none() && (op.ignore_value || op.ignore_lease) {
                        return Err(Short::Part(Code::KEY_UNKNOWN));
                    }
                    let kept = prev.clone().filter(|_| op.ignore_value).map(|kv| kv.value);
                    let lease = if op.ignore_lease { prev.as_ref().and_then(|kv| kv.lease) } else { op.lease };
                    *changed = true;
                    self.change(&op.key, Some(&kept.unwrap_or(op.value.clone())), lease);
                    OpResult::Put { revision: Revision(self.revision + 1), prev: prev.filter(|_| op.prev_kv) }
                }
                TxnOp::Delete(op) => {
                    let gone: Vec<KeyValue> =
                        self.kvs().into_values().filter(|kv| op.range.contains(&kv.key)).collect();
                    for kv in &gone {
                        *changed |= self.change(&kv.key, None, None);
                    }
                    let deleted = gone.len() as u64;
                    let revision = Revision(self.revision + u64::from(*changed));
                    OpResult::Delete { revision, deleted, prev: if op.prev_kv { gone } else { Vec::new() } }
                }
                TxnOp::Txn(inner) => OpResult::Txn(self.txn(inner, before, changed)?),
            });
        }
        Ok(TxnResult { succeeded, results })
    }

    /// Puts or deletes at the revision after the current one; whether anything changed.
    fn change(&mut self, key: &Bytes, value: Option<&Bytes>, lease: Option<LeaseId>) -> bool {
        let revision = Revision(self.revision + 1);
        let before = self.keys.remove(key);
        if before.is_none() && value.is_none() {
            return false;
        }
        if let Some(value) = value {
            let (create_revision, version) = before.map_or((revision, 0), |(kv, _)| (kv.create_revision, kv.version));
            let kv = KeyValue {
                key: key.clone(),
                value: value.clone(),
                create_revision,
                mod_revision: revision,
                version: version + 1,
                lease,
            };
            self.keys.insert(key.clone(), (kv, lease));
        }
        self.events.push(KeyEvent { revision, key: key.clone(), value: value.cloned() });
        true
    }

    fn end_lease(&mut self, lease: LeaseId) -> bool {
        self.leases.remove(&lease);
        let keys: Vec<Bytes> =
            self.keys.iter().filter(|(_, (_, of))| *of == Some(lease)).map(|(key, _)| key.clone()).collect();
        for key in &keys {
            assert!(self.change(key, None, None), "the key was there");
        }
        !keys.is_empty()
    }

    fn holds(&self, guard: &Guard) -> bool {
        let kv = |key: &Bytes| self.keys.get(key).map(|(kv, _)| kv);
        match guard {
            Guard::ModRevision { key, revision } => kv(key).map_or(0, |kv| kv.mod_revision.0) == revision.0,
            Guard::CreateRevision { key, revision } => kv(key).map_or(0, |kv| kv.create_revision.0) == revision.0,
            Guard::Version { key, version } => kv(key).map_or(0, |kv| kv.version) == *version,
            Guard::Value { key, value } => kv(key).is_some_and(|kv| kv.value == value),
            Guard::LeaseAlive { lease } => self.leases.contains_key(lease),
            Guard::Cursor { group, log, expected } => {
                self.cursors.get(&(*log, group.clone())).map(|(at, _)| *at) == *expected
            }
            Guard::LogEnd { log, expected } => self.logs.get(log).is_some_and(|log| log.end() == *expected),
        }
    }

    fn append(&mut self, append: &Append) -> AppendOutcome {
        let Some(log) = self.logs.get_mut(&append.log) else { return AppendOutcome::UnknownLog };
        if let Some(s) = &append.sequence
            && let Some((epoch, last)) = log.last_of(&s.producer)
        {
            if s.epoch < epoch {
                return AppendOutcome::StaleEpoch { current: epoch };
            }
            if s.epoch == epoch && s.number != last + 1 {
                if s.number + i64::from(append.records) - 1 > last {
                    return AppendOutcome::Gap { expected: last + 1 };
                }
                let at = log.find(&s.producer, epoch, s.number);
                if at.is_none() {
                    // It was never there, though others behind it were.
                    return AppendOutcome::Gap { expected: last + 1 };
                }
                return AppendOutcome::Duplicate { base_offset: at.filter(|at| log.recent(&s.producer, epoch, *at)) };
            }
        }
        let base_offset = log.end();
        let batch = log.batches.len();
        for record in 0..i64::from(append.records) {
            let origin = append.sequence.as_ref().map(|s| (s.producer.clone(), s.epoch, s.number + record));
            log.records.push(Record { origin, batch });
        }
        log.batches.push(append.batch.slice(61..));
        AppendOutcome::Appended { base_offset }
    }

    fn carry_out(&mut self, entry: &Entry, index: Index, term: Term) -> Result<Receipt, Short> {
        if let Some(position) = entry.guards.iter().position(|guard| !self.holds(guard)) {
            return Err(Short::Guard(position));
        }
        let mut receipt = Receipt { index, term, time: TimeMs(self.clock), ..Receipt::default() };
        let mut changed = false;
        let old = self.clone();
        for change in &entry.topics {
            match change {
                TopicChange::Create { name, partitions, settings, .. } => {
                    if name.contains('/') || *partitions == 0 {
                        return Err(Short::Part(Code::TOPIC_INVALID));
                    }
                    if self.topics.contains_key(name) {
                        return Err(Short::Part(Code::TOPIC_EXISTS));
                    }
                    let logs: Vec<LogId> = (0..*partitions).map(|n| LogId(self.next_log + n)).collect();
                    self.next_log += partitions;
                    logs.iter().for_each(|log| drop(self.logs.insert(*log, Log::default())));
                    self.topics.insert(name.clone(), logs.clone());
                    self.settings.insert(name.clone(), settings.clone());
                    receipt.created.push((name.clone(), logs));
                }
                TopicChange::Configure { name, from, to } => {
                    let settings = self.settings.get_mut(name).ok_or(Short::Part(Code::TOPIC_UNKNOWN))?;
                    if settings != from {
                        return Err(Short::Part(Code::REFUSED));
                    }
                    *settings = to.clone();
                }
                TopicChange::Extend { name, partitions } => {
                    let logs = self.topics.get_mut(name).ok_or(Short::Part(Code::TOPIC_UNKNOWN))?;
                    if *partitions as usize <= logs.len() {
                        return Err(Short::Part(Code::TOPIC_INVALID));
                    }
                    while logs.len() < *partitions as usize {
                        logs.push(LogId(self.next_log));
                        self.logs.insert(LogId(self.next_log), Log::default());
                        self.next_log += 1;
                    }
                }
                TopicChange::Delete { name } => {
                    self.settings.remove(name);
                    let logs = self.topics.remove(name).ok_or(Short::Part(Code::TOPIC_UNKNOWN))?;
                    self.logs.retain(|log, _| !logs.contains(log));
                    self.cursors.retain(|(log, _), _| !logs.contains(log));
                }
                TopicChange::Trim { log, before } => {
                    if !old.logs.contains_key(log) {
                        return Err(Short::Part(Code::TOPIC_UNKNOWN));
                    }
                    let log = self.logs.get_mut(log).ok_or(Short::Part(Code::TOPIC_UNKNOWN))?;
                    if *before > log.end() {
                        return Err(Short::Part(Code::OFFSET_OUT_OF_RANGE));
                    }
                    log.start = log.start.max(before.0);
                }
            }
        }
        for change in &entry.leases {
            match change {
                LeaseChange::Grant { lease, ttl_ms } => {
                    if *ttl_ms == 0 {
                        return Err(Short::Part(Code::BAD_REQUEST));
                    }
                    if self.leases.contains_key(lease) {
                        return Err(Short::Part(Code::LEASE_EXISTS));
                    }
                    self.leases.insert(*lease, (*ttl_ms, self.clock + ttl_ms));
                    receipt.lease_ttls_ms.push(*ttl_ms);
                }
                LeaseChange::KeepAlive { lease } => {
                    let (ttl_ms, deadline) = self.leases.get_mut(lease).ok_or(Short::Part(Code::LEASE_UNKNOWN))?;
                    *deadline = self.clock + *ttl_ms;
                    receipt.lease_ttls_ms.push(*ttl_ms);
                }
                LeaseChange::Revoke { lease } => {
                    if !self.leases.contains_key(lease) {
                        return Err(Short::Part(Code::LEASE_UNKNOWN));
                    }
                    changed |= self.end_lease(*lease);
                    receipt.lease_ttls_ms.push(0);
                }
            }
        }
        for put in &entry.puts {
            if put.key.is_empty() {
                return Err(Short::Part(Code::BAD_REQUEST));
            }
            if put.lease.is_some_and(|lease| !self.leases.contains_key(&lease)) {
                return Err(Short::Part(Code::LEASE_UNKNOWN));
            }
            changed |= self.change(&put.key, put.value.as_ref(), put.lease);
        }
        for put in &entry.state {
            let place = (put.space.clone(), put.key.clone());
            match &put.value {
                Some(value) => drop(self.state.insert(place, value.clone())),
                None => drop(self.state.remove(&place)),
            }
        }
        for append in &entry.appends {
            if append.records == 0 {
                return Err(Short::Part(Code::BATCH_INVALID));
            }
            let outcome = self.append(append);
            receipt.appends.push(outcome);
        }
        for cursor in &entry.cursors {
            let end = old.logs.get(&cursor.log).filter(|_| self.logs.contains_key(&cursor.log)).map(Log::end);
            let end = end.ok_or(Short::Part(Code::TOPIC_UNKNOWN))?;
            if cursor.next > end {
                return Err(Short::Part(Code::OFFSET_OUT_OF_RANGE));
            }
            self.cursors.insert((cursor.log, cursor.group.clone()), (cursor.next, cursor.metadata.clone()));
        }
        for forget in &entry.forgets {
            self.cursors.remove(&(forget.log, forget.group.clone()));
        }
        for timer in &entry.timers {
            match timer {
                Timer::Set { id, due, key, value } => {
                    if key.is_empty() {
                        return Err(Short::Part(Code::BAD_REQUEST));
                    }
                    self.timers.insert(id.clone(), (due.0, key.clone(), value.clone()));
                }
                Timer::Cancel { id } => drop(self.timers.remove(id)),
            }
        }
        if entry.expire {
            let now = self.clock;
            let mut leases: Vec<(u64, LeaseId)> = self.leases.iter().map(|(id, (_, at))| (*at, *id)).collect();
            leases.sort();
            for (_, lease) in leases.into_iter().filter(|(at, _)| *at <= now) {
                changed |= self.end_lease(lease);
            }
            let mut timers: Vec<(u64, String)> = self.timers.iter().map(|(id, (at, ..))| (*at, id.clone())).collect();
            timers.sort();
            for (_, id) in timers.into_iter().filter(|(at, _)| *at <= now) {
                let (_, key, value) = self.timers.remove(&id).expect("it was listed");
                changed |= self.change(&key, Some(&value), None);
            }
        }
        if let Some(Revision(to)) = entry.compact {
            if to <= self.compacted {
                return Err(Short::Part(Code::COMPACTED));
            }
            if to > self.revision {
                return Err(Short::Part(Code::REVISION_FUTURE));
            }
            self.compacted = to;
        }
        if let Some(txn) = &entry.txn {
            if txn.check().is_err() || !entry.puts.is_empty() || !entry.leases.is_empty() || entry.expire {
                return Err(Short::Part(Code::BAD_REQUEST));
            }
            let before = old.kvs();
            // The transaction comes before the compaction.
            let compacted = std::mem::replace(&mut self.compacted, old.compacted);
            receipt.txn = Some(self.txn(txn, &before, &mut changed)?);
            self.compacted = compacted;
        }
        self.revision += u64::from(changed);
        self.past.insert(self.revision, Rc::new(self.kvs()));
        receipt.revision = Revision(self.revision);
        Ok(receipt)
    }

    fn apply(&mut self, entry: &Entry, index: Index, term: Term) -> Short {
        self.clock = self.clock.max(entry.time.0);
        if let Some(request) = &entry.request {
            let known =
                self.results.iter().find(|(client, number, _)| (*client, *number) == (request.client, request.number));
            match known {
                Some((_, _, Short::Guard(position))) if *position >= entry.guards.len() => {
                    return Short::Part(Code::BAD_REQUEST);
                }
                Some((_, _, Short::Ok(receipt))) => {
                    let mut receipt = Receipt { replayed: true, ..(**receipt).clone() };
                    let ttl_ms = |change: &LeaseChange| match change {
                        LeaseChange::Grant { ttl_ms, .. } => *ttl_ms,
                        LeaseChange::KeepAlive { lease } => self.leases.get(lease).map_or(0, |(ttl_ms, _)| *ttl_ms),
                        LeaseChange::Revoke { .. } => 0,
                    };
                    receipt.lease_ttls_ms = entry.leases.iter().map(ttl_ms).collect();
                    if let (Some(txn), Some(result)) = (&entry.txn, &receipt.txn) {
                        let (_, base) = self.sent[&(request.client, request.number)];
                        if self.is_gone(txn, result, base) {
                            return Short::Part(Code::TIMEOUT);
                        }
                    }
                    return Short::Ok(Box::new(receipt));
                }
                Some((_, _, result)) => return result.clone(),
                None if request.number < self.floors.get(&request.client).copied().unwrap_or(0) => {
                    return Short::Part(Code::TIMEOUT);
                }
                None => {}
            }
        }
        if let Some(request) = &entry.request {
            self.sent.insert((request.client, request.number), (entry.clone(), self.revision));
        }
        let mut copy = self.clone();
        let result = match copy.carry_out(entry, index, term) {
            Ok(receipt) => {
                *self = copy;
                Short::Ok(Box::new(receipt))
            }
            Err(refused) => refused,
        };
        if let Some(request) = &entry.request {
            self.remember(request, result.clone());
        }
        result
    }

    /// Whether what the operations saw is compacted, so that it cannot be given again.
    fn is_gone(&self, txn: &Txn, result: &TxnResult, base: u64) -> bool {
        let ops = if result.succeeded { &txn.success } else { &txn.failure };
        ops.iter().zip(&result.results).any(|(op, result)| match (op, result) {
            (TxnOp::Range(op), _) => op.revision.map_or(base, |at| at.0) < self.compacted,
            (TxnOp::Put(op), _) => op.prev_kv && base < self.compacted,
            (TxnOp::Delete(_), _) => base < self.compacted,
            (TxnOp::Txn(txn), OpResult::Txn(result)) => self.is_gone(txn, result, base),
            (TxnOp::Txn(_), _) => unreachable!("a transaction has the result of one"),
        })
    }

    fn remember(&mut self, request: &RequestId, result: Short) {
        let client = request.client;
        if !self.floors.contains_key(&client) && self.floors.len() == LIMITS.request_clients {
            // The one whose newest result is the oldest.
            let silent = *self
                .floors
                .keys()
                .min_by_key(|client| self.results.iter().rposition(|(of, ..)| of == *client))
                .expect("there are clients");
            self.floors.remove(&silent);
            self.results.retain(|(of, ..)| *of != silent);
        }
        let acknowledged = request.acknowledged_below.min(request.number);
        let floor = self.floors.entry(client).or_insert(0);
        *floor = (*floor).max(acknowledged);
        self.results.retain(|(of, number, _)| *of != client || *number >= acknowledged);
        let mut numbers: Vec<u64> = self.results.iter().filter(|(of, ..)| *of == client).map(|(_, n, _)| *n).collect();
        numbers.sort();
        if numbers.len() == LIMITS.request_results_per_client {
            *floor = (*floor).max(numbers[0] + 1);
            self.results.retain(|(of, number, _)| (*of, *number) != (client, numbers[0]));
        }
        self.results.push((client, request.number, result));
    }
}

/// Choices drawn from bytes; when they run out, always the first choice.
struct Dice(std::vec::IntoIter<u8>);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        u64::from(self.0.next().unwrap_or(0)) % sides
    }

    fn rarely(&mut self) -> bool {
        self.roll(10) == 9
    }

    /// Keys that lie in the index itself, the longest of them (20 bytes), and the shortest that do not; two differ behind that.
    fn key(&mut self) -> Bytes {
        const KEYS: [&str; 4] = ["a", "c-twenty-bytes-of-it", "c-twenty-bytes-of-it+", "d, and more than fit into it"];
        Bytes::from_static(if self.roll(60) == 59 { b"" } else { KEYS[self.roll(4) as usize].as_bytes() })
    }

    fn value(&mut self) -> Bytes {
        Bytes::from(format!("v{}", self.roll(5)))
    }

    fn group(&mut self) -> String {
        format!("g{}", self.roll(2))
    }

    fn log(&mut self, world: &World) -> LogId {
        let known: Vec<LogId> = world.logs.keys().copied().collect();
        if known.is_empty() || self.rarely() {
            LogId(1 + self.roll(20) as u32)
        } else {
            // Mostly the first one, so that it grows long.
            known[self.roll(known.len() as u64) as usize * self.roll(2) as usize]
        }
    }

    fn lease(&mut self, world: &World, alive: bool) -> LeaseId {
        let fitting: Vec<i64> = (1..5).filter(|id| world.leases.contains_key(&LeaseId(*id)) == alive).collect();
        if fitting.is_empty() || self.rarely() {
            LeaseId(1 + self.roll(4) as i64)
        } else {
            LeaseId(fitting[self.roll(fitting.len() as u64) as usize])
        }
    }

    /// A number that is mostly right.
    fn near(&mut self, right: u64) -> u64 {
        if self.rarely() { right.saturating_sub(1) + self.roll(3) } else { right }
    }

    fn guard(&mut self, world: &World) -> Guard {
        let key = self.key();
        let kv = world.keys.get(&key).map(|(kv, _)| kv);
        match self.roll(7) {
            0 => Guard::ModRevision { revision: Revision(self.near(kv.map_or(0, |kv| kv.mod_revision.0))), key },
            1 => Guard::CreateRevision { revision: Revision(self.near(kv.map_or(0, |kv| kv.create_revision.0))), key },
            2 => Guard::Version { version: self.near(kv.map_or(0, |kv| kv.version)), key },
            3 => match kv {
                Some(kv) if !self.rarely() => Guard::Value { key, value: kv.value.clone() },
                _ => Guard::Value { key, value: self.value() },
            },
            4 => Guard::LeaseAlive { lease: self.lease(world, true) },
            5 => {
                let (group, log) = (self.group(), self.log(world));
                let found = world.cursors.get(&(log, group.clone())).map(|(at, _)| *at);
                let expected = if self.rarely() { Some(Offset(self.roll(4) as i64)) } else { found };
                Guard::Cursor { group, log, expected }
            }
            _ => {
                let log = self.log(world);
                let end = world.logs.get(&log).map_or(0, |log| log.end().0);
                Guard::LogEnd { log, expected: Offset(self.near(end as u64) as i64) }
            }
        }
    }

    fn range(&mut self) -> KeyRange {
        let from = self.key();
        match self.roll(4) {
            0 | 1 => KeyRange::key(from),
            2 => KeyRange { from, to: Some(Bytes::from(vec![b'a' + self.roll(5) as u8])) },
            _ => KeyRange { from, to: Some(Bytes::new()) },
        }
    }

    fn compare(&mut self, world: &World) -> Compare {
        let range = self.range();
        let kv = world.keys.get(&range.from).map(|(kv, _)| kv);
        let operand = match self.roll(5) {
            0 => Operand::Version(self.near(kv.map_or(0, |kv| kv.version)) as i64),
            1 => Operand::CreateRevision(self.near(kv.map_or(0, |kv| kv.create_revision.0)) as i64),
            2 => Operand::ModRevision(self.near(kv.map_or(0, |kv| kv.mod_revision.0)) as i64),
            3 => Operand::Value(kv.map_or(self.value(), |kv| kv.value.clone())),
            _ => Operand::Lease(self.near(kv.and_then(|kv| kv.lease).map_or(0, |lease| lease.0 as u64)) as i64),
        };
        // Mostly equal, so that many transactions succeed.
        let relation = match self.roll(6) {
            0 => Relation::Greater,
            1 => Relation::Less,
            2 => Relation::NotEqual,
            _ => Relation::Equal,
        };
        Compare { range, relation, operand }
    }

    fn bound(&mut self, world: &World) -> Option<Revision> {
        (self.roll(5) == 4).then(|| Revision(self.roll(world.revision + 2)))
    }

    fn op(&mut self, world: &World, depth: u64) -> TxnOp {
        match self.roll(7 + depth) {
            0 | 1 => TxnOp::Range(RangeOp {
                range: self.range(),
                revision: match self.roll(4) {
                    3 => Some(Revision(world.compacted + self.roll(world.revision - world.compacted + 2))),
                    _ => None,
                },
                limit: self.roll(4),
                count_only: self.rarely(),
                keys_only: self.rarely(),
                min_mod_revision: self.bound(world),
                max_mod_revision: self.bound(world),
                min_create_revision: self.bound(world),
                max_create_revision: self.bound(world),
                order: [SortOrder::None, SortOrder::Ascending, SortOrder::Descending][self.roll(3) as usize],
                target: [
                    SortTarget::Key,
                    SortTarget::Version,
                    SortTarget::CreateRevision,
                    SortTarget::ModRevision,
                    SortTarget::Value,
                ][self.roll(5) as usize],
            }),
            2..=4 => {
                let mut op = PutOp { key: self.key(), prev_kv: self.roll(2) == 1, ..PutOp::default() };
                op.ignore_value = self.rarely();
                op.ignore_lease = self.rarely();
                if !op.ignore_value {
                    op.value = self.value();
                }
                if !op.ignore_lease && self.roll(4) == 3 {
                    op.lease = Some(self.lease(world, true));
                }
                TxnOp::Put(op)
            }
            5 | 6 => TxnOp::Delete(DeleteOp { range: self.range(), prev_kv: self.roll(2) == 1 }),
            _ => TxnOp::Txn(Box::new(self.txn(world, depth - 1))),
        }
    }

    fn txn(&mut self, world: &World, depth: u64) -> Txn {
        let mut txn = Txn::default();
        for _ in 0..self.roll(3) {
            txn.compares.push(self.compare(world));
        }
        for _ in 0..self.roll(4) {
            txn.success.push(self.op(world, depth));
        }
        for _ in 0..self.roll(3) {
            txn.failure.push(self.op(world, depth));
        }
        txn
    }

    fn topic_change(&mut self, world: &World) -> TopicChange {
        let name = if self.roll(20) == 19 { "a/b".into() } else { format!("t{}", self.roll(3)) };
        let exists = world.topics.contains_key(&name) != self.rarely();
        match self.roll(4) {
            0 if exists && self.roll(3) == 2 => TopicChange::Delete { name },
            _ if !exists => TopicChange::Create {
                name,
                id: [self.roll(256) as u8; 16],
                partitions: if self.rarely() { 0 } else { 1 + self.roll(2) as u32 },
                settings: TopicSettings { retention_ms: Some(1 + self.roll(200) * 100), ..TopicSettings::default() },
            },
            1 if self.roll(2) == 1 => {
                let from = world.settings.get(&name).cloned().unwrap_or_default();
                let from = if self.rarely() { TopicSettings::default() } else { from };
                let to = TopicSettings { batch_bytes_max: Some(self.roll(9) as u32), ..from.clone() };
                TopicChange::Configure { name, from, to }
            }
            1 => TopicChange::Extend { partitions: 1 + self.roll(4) as u32, name },
            _ => {
                let log = self.log(world);
                let end = world.logs.get(&log).map_or(0, |log| log.end().0 as u64);
                let before = self.roll(end + 1) + u64::from(self.rarely());
                TopicChange::Trim { log, before: Offset(before as i64) }
            }
        }
    }

    fn append(&mut self, world: &World) -> Append {
        let log = self.log(world);
        let records = if self.roll(40) == 39 { 0 } else { 1 + self.roll(3) as u32 };
        let sequence = (self.roll(4) > 0).then(|| {
            let producer = format!("{}:{}", ["device", "kafka"][self.roll(2) as usize], self.roll(2));
            let (epoch, last) = world.logs.get(&log).and_then(|log| log.last_of(&producer)).unwrap_or((0, -1));
            let epoch = if self.rarely() { epoch - 1 + self.roll(3) as i32 } else { epoch };
            let back = if self.roll(2) == 1 { self.roll(12) as i64 - 1 } else { 0 };
            Sequence { producer, epoch, number: (last + 1 - back).max(0) }
        });
        let payload = vec![b'p'; self.roll(30) as usize];
        Append { log, records, max_timestamp_ms: self.roll(9) as i64, sequence, batch: opaque_batch(records, &payload) }
    }

    fn entry(&mut self, world: &World) -> Entry {
        let mut entry =
            Entry { time: TimeMs((world.clock + self.roll(120) * 10).saturating_sub(50)), ..Entry::default() };
        if self.roll(2) == 1 {
            let number = self.roll(9);
            let acknowledged_below = self.roll(number + 2);
            entry.request = Some(RequestId { client: self.roll(3), number, acknowledged_below });
        }
        if self.roll(3) == 2 {
            // Mostly alone, as it must be.
            entry.txn = Some(self.txn(world, 2));
            if !self.rarely() {
                if self.rarely() {
                    let to = world.compacted + self.roll(world.revision - world.compacted + 2);
                    entry.compact = Some(Revision(to));
                }
                return Self::sent_before(entry, world);
            }
        }
        for _ in 0..1 + self.roll(6) {
            match self.roll(12) {
                0 | 1 => {
                    for _ in 0..1 + self.roll(4) {
                        entry.appends.push(self.append(world));
                    }
                }
                2 => entry.guards.push(self.guard(world)),
                3 => entry.topics.push(self.topic_change(world)),
                4 => {
                    let change = match self.roll(3) {
                        0 => LeaseChange::Grant { lease: self.lease(world, false), ttl_ms: self.roll(30) * 50 },
                        1 => LeaseChange::KeepAlive { lease: self.lease(world, true) },
                        _ => LeaseChange::Revoke { lease: self.lease(world, true) },
                    };
                    entry.leases.push(change);
                }
                5 | 6 => {
                    let value = (self.roll(4) > 0).then(|| self.value());
                    let lease = (value.is_some() && self.roll(3) == 0).then(|| self.lease(world, true));
                    entry.puts.push(Put { key: self.key(), value, lease });
                }
                7 => {
                    let value = (self.roll(3) > 0).then(|| self.value());
                    entry.state.push(StatePut { space: self.group(), key: self.key(), value });
                }
                8 => {
                    let log = self.log(world);
                    let end = world.logs.get(&log).map_or(0, |log| log.end().0 as u64);
                    let next = Offset((self.roll(end + 1) + u64::from(self.rarely())) as i64);
                    if self.roll(4) == 3 {
                        entry.forgets.push(Forget { group: self.group(), log });
                    } else {
                        entry.cursors.push(Cursor { group: self.group(), log, next, metadata: self.group() });
                    }
                }
                9 => {
                    let id = format!("timer{}", self.roll(3));
                    entry.timers.push(if self.roll(4) == 3 {
                        Timer::Cancel { id }
                    } else {
                        let due = TimeMs(world.clock + self.roll(30) * 50);
                        Timer::Set { id, due, key: self.key(), value: self.value() }
                    });
                }
                10 => entry.expire = true,
                _ => {
                    // Mostly a revision that can be compacted to.
                    let to = world.compacted + self.roll(world.revision - world.compacted + 2);
                    entry.compact = Some(Revision(to));
                }
            }
        }
        Self::sent_before(entry, world)
    }

    /// Under a number that a transaction has, only that transaction is sent again.
    fn sent_before(entry: Entry, world: &World) -> Entry {
        let known = entry.request.and_then(|request| world.sent.get(&(request.client, request.number)));
        match known {
            Some((sent, _)) if sent.txn.is_some() || entry.txn.is_some() => {
                Entry { request: entry.request, time: entry.time, ..sent.clone() }
            }
            _ => entry,
        }
    }
}

/// The machine, the model, and what a crash leaves of the machine.
struct Pair {
    world: World,
    machine: Machine<MemStore>,
    term: Term,
    checkpoint: MemStore,
    tail: Vec<(Index, Term, Bytes)>,
    /// The keys at every revision.
    past: BTreeMap<Revision, Vec<KeyValue>>,
    /// How often each outcome has come.
    seen: BTreeMap<&'static str, usize>,
}

fn open(store: MemStore) -> Machine<MemStore> {
    Machine::open_with(store, LIMITS).expect("memory can be read")
}

impl Pair {
    fn new() -> Self {
        Self {
            world: World::new(),
            machine: open(MemStore::new()),
            term: Term(1),
            checkpoint: MemStore::new(),
            tail: Vec::new(),
            past: BTreeMap::from([(Revision(1), Vec::new())]),
            seen: BTreeMap::new(),
        }
    }

    fn keys(&self) -> Vec<KeyValue> {
        self.world.keys.values().map(|(kv, _)| kv.clone()).collect()
    }

    fn apply(&mut self, bytes: Bytes) -> buttress_state::Effects {
        let index = self.machine.applied().0.next();
        self.tail.push((index, self.term, bytes.clone()));
        self.machine.apply(index, self.term, bytes)
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), TestCaseError> {
        let index = self.machine.applied().0.next();
        let deadline = self.machine.next_deadline();
        let events = self.world.events.len();
        let ends: BTreeMap<LogId, Offset> = self.world.logs.iter().map(|(id, log)| (*id, log.end())).collect();
        let expected = self.world.apply(entry, index, self.term);
        let effects = self.apply(entry.encode());
        prop_assert_eq!(&Short::of(&effects.result), &expected, "{:?}", entry);
        prop_assert_eq!(&effects.events().collect::<Vec<_>>()[..], &self.world.events[events..]);
        prop_assert_eq!(effects.deadline_changed, deadline != self.machine.next_deadline());
        prop_assert_eq!(effects.request, entry.request);
        let grown: Vec<(LogId, Offset)> = self
            .world
            .logs
            .iter()
            .map(|(id, log)| (*id, log.end()))
            .filter(|(id, end)| *end > ends.get(id).copied().unwrap_or_default())
            .collect();
        prop_assert_eq!(effects.ends, grown);
        self.past.insert(Revision(self.world.revision), self.keys());
        self.compare()?;
        let mut count = |outcome| *self.seen.entry(outcome).or_default() += 1;
        match &expected {
            Short::Ok(receipt) if receipt.replayed && receipt.txn.is_some() => count("replayed transaction"),
            Short::Ok(receipt) if receipt.replayed => count("replayed"),
            Short::Part(Code::TIMEOUT) if entry.txn.is_some() => count("forgotten transaction"),
            Short::Ok(receipt) => {
                count("carried out");
                if entry.compact.is_some() {
                    count("compacted");
                }
                if let Some(result) = &receipt.txn {
                    count(if result.succeeded { "succeeded" } else { "failed" });
                }
                receipt.appends.iter().for_each(|outcome| {
                    count(match outcome {
                        AppendOutcome::Appended { .. } => "appended",
                        AppendOutcome::Duplicate { .. } => "duplicate",
                        AppendOutcome::Gap { .. } => "gap",
                        AppendOutcome::StaleEpoch { .. } => "stale epoch",
                        AppendOutcome::UnknownLog => "unknown log",
                    });
                });
            }
            Short::Guard(_) => count("guard refused"),
            Short::Part(_) => count("part refused"),
        }
        Ok(())
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let (machine, world) = (&self.machine, &self.world);
        let all = KeyRange::prefix("");
        let found = machine.range(&all, usize::MAX, None).expect("the present can be read");
        prop_assert_eq!(found.revision, Revision(world.revision));
        prop_assert_eq!(found.kvs, self.keys());
        let deadlines = world.leases.values().map(|(_, at)| *at).chain(world.timers.values().map(|(at, ..)| *at));
        prop_assert_eq!(machine.next_deadline(), deadlines.min().map(TimeMs));
        let leases: Vec<_> =
            machine.leases().iter().map(|(id, lease)| (id, (lease.ttl_ms, lease.deadline.0))).collect();
        prop_assert_eq!(leases, world.leases.clone().into_iter().collect::<Vec<_>>());
        for (id, (_, keys)) in machine.leases().iter().map(|(id, _)| (id, machine.keys().attached_to(id))).enumerate() {
            prop_assert!(keys.into_iter().all(|key| world.keys.contains_key(&key[..])), "lease {}", id);
        }
        let timers: Vec<_> =
            machine.timers().iter().map(|(id, t)| (id.to_owned(), (t.due.0, t.key.clone(), t.value.clone()))).collect();
        prop_assert_eq!(timers, world.timers.clone().into_iter().collect::<Vec<_>>());
        let cursors: Vec<_> = machine
            .cursors()
            .iter()
            .map(|(log, group, at)| ((log, group.to_owned()), (at.next, at.metadata.clone())))
            .collect();
        prop_assert_eq!(cursors, world.cursors.clone().into_iter().collect::<Vec<_>>());
        let topics: Vec<_> = machine
            .topics()
            .into_iter()
            .map(|topic| (topic.name, topic.partitions.iter().map(|p| p.log).collect::<Vec<_>>()))
            .collect();
        prop_assert_eq!(topics, world.topics.clone().into_iter().collect::<Vec<_>>());
        let settings: Vec<_> = machine.topics().into_iter().map(|topic| (topic.name, topic.settings)).collect();
        prop_assert_eq!(settings, world.settings.clone().into_iter().collect::<Vec<_>>());
        for (id, log) in &world.logs {
            let view = machine.partition(*id).expect("the model has it");
            prop_assert_eq!((view.start, view.end), (Offset(log.start), log.end()));
            // What is left are the batches from the one that holds the start on.
            let first = log.records.get(log.start as usize).map_or(log.batches.len(), |record| record.batch);
            let left: Vec<Bytes> = machine.store().batches(*id).map(|batch| batch.bytes.slice(61..)).collect();
            prop_assert_eq!(&left[..], &log.batches[first..]);
        }
        for ((space, key), value) in &world.state {
            let found = machine.state_get(space, key).expect("memory can be read");
            prop_assert_eq!(found.as_ref(), Some(value));
        }
        prop_assert_eq!(machine.store().rows(Table::State).len(), world.state.len());
        for violation in [invariants::check(machine), invariants::check_batches(machine)] {
            prop_assert_eq!(violation, Ok(()));
        }
        Ok(())
    }

    /// What was true in the past must stay so.
    fn compare_past(&self) -> Result<(), TestCaseError> {
        let all = KeyRange::prefix("");
        let compacted = Revision(self.world.compacted);
        prop_assert_eq!(self.machine.compacted(), compacted);
        for (revision, keys) in &self.past {
            let found = self.machine.range(&all, usize::MAX, Some(*revision));
            if *revision < compacted {
                prop_assert_eq!(found, Err(ReadError::Compacted { wanted: *revision, compacted }));
            } else {
                prop_assert_eq!(&found.expect("it is not compacted").kvs, keys);
            }
        }
        if compacted > Revision(1) {
            let wanted = Revision(compacted.0 - 1);
            let found = self.machine.events_since(&all, wanted, usize::MAX);
            prop_assert_eq!(found, Err(ReadError::Compacted { wanted, compacted }));
        }
        // What changed at the very revision is there.
        let first = Revision(compacted.0.max(1));
        let left: Vec<KeyEvent> = self.world.events.iter().filter(|event| event.revision >= first).cloned().collect();
        // A watch that takes a few at a time sees every change once, whole revisions at a time.
        for limit in [1, 3, usize::MAX] {
            let mut seen = Vec::new();
            let mut next = first;
            while next <= self.machine.revision() {
                let found = self.machine.events_since(&all, next, limit).expect("it is not compacted");
                prop_assert!(found.next > next && found.events.iter().all(|event| event.revision < found.next));
                next = found.next;
                seen.extend(found.events);
            }
            prop_assert_eq!(&seen, &left);
        }
        // With all that is known, and what was before.
        let mut next = first;
        let mut seen = Vec::new();
        while next <= self.machine.revision() {
            let found = self.machine.changed_since(&all, next, (2, 3), true).expect("it is not compacted");
            prop_assert!(found.next > next);
            next = found.next;
            seen.extend(found.events);
        }
        for event in seen.iter().filter(|event| event.kv.mod_revision > compacted) {
            let at = |revision: u64| {
                let kvs = &self.past[&Revision(revision)];
                kvs.iter().find(|kv| kv.key == event.kv.key).cloned()
            };
            prop_assert_eq!(&event.prev, &at(event.kv.mod_revision.0 - 1));
            if event.deleted {
                prop_assert_eq!((event.kv.version, event.kv.value.len()), (0, 0));
            }
        }
        let seen: Vec<KeyEvent> = seen
            .into_iter()
            .map(|event| KeyEvent {
                revision: event.kv.mod_revision,
                key: event.kv.key,
                value: (!event.deleted).then_some(event.kv.value),
            })
            .collect();
        prop_assert_eq!(&seen, &left);
        self.compare_pages()?;
        let some = KeyRange { from: "b".into(), to: Some("d".into()) };
        let found = self.machine.events_since(&some, first, usize::MAX).expect("it is not compacted");
        let expected: Vec<KeyEvent> = left.iter().filter(|event| some.contains(&event.key)).cloned().collect();
        prop_assert_eq!(found.events, expected);
        Ok(())
    }

    /// Pages put together are the range, whatever limits cut them, and so are the hashes of parts.
    fn compare_pages(&self) -> Result<(), TestCaseError> {
        let all = KeyRange::prefix("");
        let limits = PageLimits { keys: 2, looks: 3, bytes: 150 };
        let (mut kvs, mut count, mut range) = (Vec::new(), 0, Some(all.clone()));
        while let Some(from) = range {
            let page = self.machine.page(&from, None, true, limits).expect("the present can be read");
            prop_assert!(page.kvs.len() <= 2);
            count += page.count;
            // Keys beyond the limit are counted and not given, so only what is given is compared.
            kvs.extend(page.kvs);
            range = page.next.map(|from| KeyRange { from, to: Some(Bytes::new()) });
        }
        let keys = self.keys();
        prop_assert_eq!(count, keys.len() as u64);
        prop_assert!(kvs.iter().all(|kv| keys.contains(kv)));
        let whole = self.machine.page(&all, None, false, PageLimits::NONE).expect("the present can be read");
        let without: Vec<KeyValue> = keys.iter().map(|kv| KeyValue { value: Bytes::new(), ..kv.clone() }).collect();
        prop_assert_eq!(whole.kvs, without);
        let (hash, end) = self.machine.hash_page(&all, None, usize::MAX).expect("the present can be read");
        prop_assert_eq!(end, None);
        let (mut parts, mut range) = (0, Some(all));
        while let Some(from) = range {
            let (part, next) = self.machine.hash_page(&from, None, 2).expect("the present can be read");
            parts ^= part;
            range = next.map(|from| KeyRange { from, to: Some(Bytes::new()) });
        }
        prop_assert_eq!(parts, hash);
        prop_assert_eq!(self.machine.keys_view().keys, keys.len() as u64);
        Ok(())
    }

    /// The machine loses what came after the checkpoint, and applies it again.
    fn crash(&mut self) -> Result<(), TestCaseError> {
        let mut again = open(self.checkpoint.clone());
        for (index, term, bytes) in &self.tail {
            again.apply(*index, *term, bytes.clone());
        }
        prop_assert_eq!(again.store(), self.machine.store());
        prop_assert_eq!(again.hash(), self.machine.hash());
        self.machine = again;
        Ok(())
    }
}

fn run(steps: Vec<Vec<u8>>) -> Result<BTreeMap<&'static str, usize>, TestCaseError> {
    let mut pair = Pair::new();
    let settings = TopicSettings::default();
    let create = TopicChange::Create { name: "t0".into(), id: [0; 16], partitions: 2, settings };
    pair.entry(&Entry { topics: vec![create], ..Entry::default() })?;
    for step in steps {
        let mut dice = Dice(step.into_iter());
        match dice.roll(16) {
            12 => {
                pair.checkpoint = pair.machine.store().clone();
                pair.tail.clear();
            }
            13 => pair.crash()?,
            14 => drop(pair.apply(Bytes::new())),
            15 => pair.term.0 += 1,
            _ => {
                let entry = dice.entry(&pair.world);
                pair.entry(&entry)?;
            }
        }
    }
    pair.compare_past()?;
    pair.crash()?;
    prop_assert_eq!(invariants::check_reopen(&pair.machine).expect("memory can be read"), Ok(()));
    Ok(pair.seen)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_machine_does_what_the_model_does(steps in vec(vec(any::<u8>(), 0..90), 1..120)) {
        run(steps)?;
    }

    #[test]
    fn any_bytes_can_be_applied(data in vec(any::<u8>(), 0..400)) {
        fuzz_apply(&data);
    }

    #[test]
    fn bytes_that_are_almost_entries_can_be_applied(
        steps in vec(vec(any::<u8>(), 0..60), 1..12),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        // Real entries against a growing world, then some bytes of theirs changed.
        let mut world = World::new();
        let mut data = Vec::new();
        for (at, step) in steps.into_iter().enumerate() {
            let entry = Dice(step.into_iter()).entry(&world);
            world.apply(&entry, Index(at as u64 + 1), Term(1));
            let bytes = entry.encode();
            data.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
            data.extend_from_slice(&bytes);
        }
        for (at, byte) in changes {
            let at = at.index(data.len());
            data[at] = byte;
        }
        fuzz_apply(&data);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// The check for keys that are changed twice against trying every pair.
    #[test]
    fn keys_that_are_changed_twice_are_found(bytes in vec(any::<u8>(), 0..160)) {
        let txn = Dice(bytes.into_iter()).txn(&World::new(), 2);
        let twice = meets(&txn.success) || meets(&txn.failure);
        match txn.check() {
            Err(TxnFault::EmptyKey) => {}
            found => prop_assert_eq!(matches!(found, Err(TxnFault::DuplicateKey(_))), twice, "{:?}", txn),
        }
    }
}

/// The random entries are worth something only if many of them are carried out, and many are not.
#[test]
fn random_entries_are_neither_all_good_nor_all_bad() {
    // A fixed xorshift sequence: the same entries on every run.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 32) as u8
    };
    let mut seen = BTreeMap::new();
    for _ in 0..15 {
        let steps = (0..80).map(|_| (0..90).map(|_| byte()).collect()).collect();
        for (outcome, times) in run(steps).expect("the machine does what the model does") {
            *seen.entry(outcome).or_insert(0) += times;
        }
    }
    let rare = |outcome: &str, least: usize| seen.get(outcome).is_none_or(|times| *times < least);
    assert!(!rare("carried out", 150) && !rare("part refused", 50) && !rare("guard refused", 10), "{seen:?}");
    assert!(!rare("appended", 200) && !rare("duplicate", 30) && !rare("gap", 10), "{seen:?}");
    assert!(!rare("compacted", 20), "{seen:?}");
    assert!(!rare("succeeded", 30) && !rare("failed", 10) && !rare("replayed transaction", 3), "{seen:?}");
    assert!(!rare("stale epoch", 2) && !rare("unknown log", 10) && !rare("replayed", 5), "{seen:?}");
}
