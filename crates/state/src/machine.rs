//! The state machine: what one committed entry does.
//!
//! The order within an entry is the order of its fields: topics, leases, keys (puts or a transaction), function state,
//! appends, cursors and those forgotten, timers, what is due, and last the compaction. Every check comes before every change
//! (see `check`), so from the first change on nothing can
//! fail.

use std::collections::BTreeSet;

use buttress_core::{
    Code, DecodeError, Entry, Error, Index, KeyRange, LeaseChange, LeaseId, LogId, Mutant, Offset, Reader, Receipt,
    Refusal, Revision, StatePut, Store, StoreError, Table, Term, TimeMs, TopicChange, Txn, TxnResult, Writer,
    entry::{ENTRY_FORMAT, ENTRY_FORMAT_MAX, Timer},
    ledger::{KeyValue, KeyValues, KeysView, LeaseView, PartitionView, TopicView},
    limits::{PRODUCERS_PER_PARTITION_MAX, REQUEST_CLIENTS_MAX, REQUEST_RESULTS_PER_CLIENT_MAX},
    mutant,
    store::RowKey,
};
use bytes::Bytes;

use crate::{
    changes::{Changes, Kind, scan_all},
    check::{Stop, check},
    cursors::{Cursors, Position},
    effects::{Effects, TopicEvent},
    keys::{
        Changed, FIRST_REVISION, KeyEvents, Keys, Page, PageLimits, ReadError,
        txn::{self, Fault, Plan, Write},
    },
    leases::Leases,
    requests::{Recall, Remembered, Requests, decode_result, encode_result},
    timers::Timers,
    topics::{At, Topics},
};

/// Where the machine keeps what the cluster has agreed on. Names of functions have no slash.
pub(crate) const CLUSTER_SPACE: &str = "/cluster";
const ENTRY_FORMAT_KEY: &[u8] = b"entry format";

/// The entry that raises the cluster's format. It is of the oldest format itself, and a row like any other, so that
/// members of before there was such a thing keep it too.
pub fn raise(format: u8, time: TimeMs) -> Entry {
    let key = Bytes::from_static(ENTRY_FORMAT_KEY);
    let value = Some(Bytes::copy_from_slice(&[format]));
    Entry { time, state: vec![StatePut { space: CLUSTER_SPACE.into(), key, value }], ..Entry::default() }
}

/// The format of all rows, in the row of [`Kind::Clock`].
const ROWS_FORMAT: u8 = 1;

/// Leases and timers that one entry ends; what is left over stays due, and the leader proposes again. Bounds the rows of
/// one entry when very many are due at once.
pub const ENDS_PER_ENTRY: usize = 4096;

/// Changes of keys that one entry sweeps after a compaction; what is left over is swept by the entries after it. As with
/// [`ENDS_PER_ENTRY`], this bounds the rows of one entry.
pub const SWEEP_PER_ENTRY: usize = 4096;

/// How much is remembered. All replicas must use the same limits; only tests use others than the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub request_clients: usize,
    pub request_results_per_client: usize,
    pub producers_per_partition: usize,
    pub ends_per_entry: usize,
    pub sweep_per_entry: usize,
    /// The newest format of entries that this machine reads. Replicas may differ in it: one that meets a newer entry stops.
    pub entry_format: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_clients: REQUEST_CLIENTS_MAX,
            request_results_per_client: REQUEST_RESULTS_PER_CLIENT_MAX,
            producers_per_partition: PRODUCERS_PER_PARTITION_MAX,
            ends_per_entry: ENDS_PER_ENTRY,
            sweep_per_entry: SWEEP_PER_ENTRY,
            entry_format: ENTRY_FORMAT_MAX,
        }
    }
}

/// The machine over a store. A clone, where the store can be cloned, goes its own way from there on.
#[derive(Clone, Debug)]
pub struct Machine<S> {
    pub(crate) store: S,
    pub(crate) limits: Limits,
    pub(crate) applied: (Index, Term),
    pub(crate) clock: TimeMs,
    pub(crate) keys: Keys,
    pub(crate) topics: Topics,
    pub(crate) cursors: Cursors,
    pub(crate) leases: Leases,
    pub(crate) timers: Timers,
    pub(crate) requests: Requests,
    fatal: Option<Error>,
    #[cfg(feature = "mutants")]
    opened_at: Index,
}

/// The scalars, in the row of [`Kind::Clock`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    pub(crate) time: TimeMs,
    pub(crate) revision: Revision,
    pub(crate) compacted: Revision,
    next_log: u32,
}

impl Clock {
    pub(crate) fn decode(mut value: Reader) -> Result<Self, DecodeError> {
        match value.u8("rows format")? {
            ROWS_FORMAT => {}
            got => return Err(DecodeError::Version { got, known: ROWS_FORMAT }),
        }
        let clock = Self {
            time: TimeMs(value.varint("clock")?),
            revision: Revision(value.varint("revision")?),
            compacted: Revision(value.varint("compacted revision")?),
            next_log: value.varint_u32("next log")?,
        };
        value.end()?;
        Ok(clock)
    }
}

/// Time and revision out of the row of [`Kind::Clock`].
pub(crate) fn clock_of(value: Bytes) -> Result<(TimeMs, Revision), DecodeError> {
    let clock = Clock::decode(Reader::new(value))?;
    Ok((clock.time, clock.revision))
}

impl<S: Store> Machine<S> {
    /// Builds the machine from a store's rows.
    ///
    /// # Errors
    /// Where the store cannot be read, or its rows are not those of a machine.
    pub fn open(store: S) -> Result<Self, StoreError> {
        Self::open_with(store, Limits::default())
    }

    /// [`Self::open`] with other limits, for tests.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(store: S, limits: Limits) -> Result<Self, StoreError> {
        let mut clock = Clock { time: TimeMs(0), revision: FIRST_REVISION, compacted: Revision(0), next_log: 1 };
        Kind::Clock.load(&store, |_, value| {
            clock = Clock::decode(value)?;
            Ok(())
        })?;
        Ok(Self {
            applied: store.applied(),
            clock: clock.time,
            keys: Keys::open(&store, clock.revision, clock.compacted)?,
            topics: Topics::open(&store, clock.next_log)?,
            cursors: Cursors::open(&store)?,
            leases: Leases::open(&store)?,
            timers: Timers::open(&store)?,
            requests: Requests::open(&store)?,
            #[cfg(feature = "mutants")]
            opened_at: store.applied().0,
            store,
            limits,
            fatal: None,
        })
    }

    /// Reads keys as they are, or as they were at a revision.
    ///
    /// # Errors
    /// Where the revision is gone or not yet there, or the store cannot be read.
    pub fn range(&self, range: &KeyRange, limit: usize, at: Option<Revision>) -> Result<KeyValues, ReadError> {
        self.keys.range(&self.store, range, limit, at)
    }

    /// Reads the changes of keys from a revision on. All changes of a revision come together, so slightly more than
    /// `limit` may come.
    ///
    /// # Errors
    /// Where history from there on is gone, or the store cannot be read.
    pub fn events_since(&self, range: &KeyRange, from: Revision, limit: usize) -> Result<KeyEvents, ReadError> {
        self.keys.events_since(&self.store, range, from, limit)
    }

    /// Reads a part of a range, as it is or as it was at a revision: at most so many keys and bytes, and a count of keys
    /// without an end to it but the limits'.
    ///
    /// # Errors
    /// As [`Self::range`].
    pub fn page(
        &self,
        range: &KeyRange,
        at: Option<Revision>,
        values: bool,
        limits: PageLimits,
    ) -> Result<Page, ReadError> {
        self.keys.page(&self.store, range, at.unwrap_or(self.keys.revision), values, limits)
    }

    /// Reads the changes of keys from a revision on, with all that is known of them, and with what was there before each
    /// where `prev` asks for it: at most about so many, after about so many looks.
    ///
    /// # Errors
    /// As [`Self::events_since`].
    pub fn changed_since(
        &self,
        range: &KeyRange,
        from: Revision,
        (limit, looks): (usize, usize),
        prev: bool,
    ) -> Result<Changed, ReadError> {
        self.keys.changed_since(&self.store, range, from, (limit, looks), prev)
    }

    /// What a key was at a revision; `None` also where history is gone.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn was(&self, key: &[u8], at: Revision) -> Result<Option<KeyValue>, StoreError> {
        self.keys.was(&self.store, key, at)
    }

    /// Evaluates a transaction that changes nothing against the present.
    ///
    /// # Errors
    /// The refusal, as an entry with it would be refused, and for one that may change something; or why the store cannot be
    /// read.
    pub fn read_txn(&self, txn: &Txn) -> Result<Result<TxnResult, Refusal>, StoreError> {
        if !txn.is_read_only() {
            let message = "the transaction may change keys, so it must be proposed".into();
            return Ok(Err(Refusal::Part { code: Code::BAD_REQUEST, message }));
        }
        match txn::plan(&self.keys, &self.leases, &self.store, txn) {
            Ok(plan) => Ok(Ok(plan.result)),
            Err(Fault::Refused(refusal)) => Ok(Err(refusal)),
            Err(Fault::Fatal(error)) => Err(error),
        }
    }

    /// A lease as it stands at `now`, which the caller's clock says, with the keys that hang on it if `keys`.
    pub fn lease(&self, id: LeaseId, now: TimeMs, keys: bool) -> Option<LeaseView> {
        let lease = self.leases.get(id)?;
        let now = now.max(self.clock);
        let attached = self.keys.attached_to(id).filter(|_| keys);
        Some(LeaseView {
            lease: id,
            ttl_ms: lease.ttl_ms,
            remaining_ms: lease.deadline.0.saturating_sub(now.0),
            keys: attached.map(|key| Bytes::copy_from_slice(key)).collect(),
        })
    }

    /// How far the key space is.
    pub fn keys_view(&self) -> KeysView {
        KeysView {
            revision: self.keys.revision,
            compacted: self.keys.compacted,
            keys: self.keys.living(),
            unswept: self.keys.unswept(),
        }
    }

    /// Hashes a part of what reads of a range from the last compaction up to a revision can see, at most `looks` keys of
    /// it, and says where the next part begins. The hashes of all parts, put together by exclusive or, are that of the
    /// range.
    ///
    /// # Errors
    /// As [`Self::range`].
    pub fn hash_page(
        &self,
        range: &KeyRange,
        at: Option<Revision>,
        looks: usize,
    ) -> Result<(u64, Option<Bytes>), ReadError> {
        self.keys.hash_page(&self.store, range, at.unwrap_or(self.keys.revision), looks)
    }

    pub fn topics(&self) -> Vec<TopicView> {
        self.topics.views()
    }

    pub fn topic(&self, name: &str) -> Option<TopicView> {
        self.topics.view(name)
    }

    pub fn partition(&self, log: LogId) -> Option<PartitionView> {
        self.topics.partition_view(log)
    }

    pub fn cursor(&self, group: &str, log: LogId) -> Option<Offset> {
        self.cursors.get(group, log).map(|position| position.next)
    }

    pub fn cursors(&self) -> &Cursors {
        &self.cursors
    }

    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Reads a row of a function's state.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn state_get(&self, space: &str, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get(Table::State, &state_key(space, key))
    }

    /// The newest format of entries that every member is known to read; see [`raise`].
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn entry_format(&self) -> Result<u8, StoreError> {
        let row = self.state_get(CLUSTER_SPACE, ENTRY_FORMAT_KEY)?;
        Ok(row.and_then(|value| value.first().copied()).unwrap_or(ENTRY_FORMAT))
    }

    /// When the next lease expires or timer fires; the leader then proposes an entry with `expire`.
    pub fn next_deadline(&self) -> Option<TimeMs> {
        match (self.leases.first_deadline(), self.timers.first_due()) {
            (Some(lease), Some(timer)) => Some(lease.min(timer)),
            (lease, timer) => lease.or(timer),
        }
    }

    /// The trims that retention asks for at `now`; the leader proposes them.
    pub fn retention(&self, now: TimeMs) -> Vec<TopicChange> {
        self.topics.retention(now)
    }

    pub fn revision(&self) -> Revision {
        self.keys.revision
    }

    /// Reads below this revision, and watches up to it, are refused.
    pub fn compacted(&self) -> Revision {
        self.keys.compacted
    }

    /// The latest time that an entry brought.
    pub fn clock(&self) -> TimeMs {
        self.clock
    }

    pub fn store(&self) -> &S {
        &self.store
    }

    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    pub fn into_store(self) -> S {
        self.store
    }

    fn clock_row(&self) -> Clock {
        Clock {
            time: self.clock,
            revision: self.keys.revision,
            compacted: self.keys.compacted,
            next_log: self.topics.next_log,
        }
    }

    fn write_clock(&self, changes: &mut Changes) {
        changes.put(Table::Meta, Kind::Clock.key(&[]), self.clock_row().encode());
    }

    /// Judges and applies a decoded entry; the result is the first one where it is a retry.
    fn apply_entry(&mut self, at: (Index, Term), entry: Entry, changes: &mut Changes) -> Result<Effects, StoreError> {
        let (index, term) = at;
        if mutant::active(Mutant::DoubleApply) && self.is_first_since_open(index) {
            let _ = check(self, &entry).map(|plan| self.carry_out(at, &entry, plan, changes));
        }
        if let Some(request) = &entry.request {
            let known = match self.requests.recall(request) {
                Recall::New => None,
                Recall::Answered(outcome) => {
                    let kept = decode_result(outcome, &entry.guards)
                        .map_err(|error| StoreError(format!("a remembered result: {error}")))?;
                    Some(self.answer_again(kept, &entry)?)
                }
                Recall::Forgotten { floor } => Some(Err(Refusal::Part {
                    code: Code::TIMEOUT,
                    message: format!(
                        "results below {floor} are forgotten, so the outcome of request {} is unknown",
                        request.number
                    ),
                })),
            };
            if let Some(result) = known {
                self.clock = self.clock.max(entry.time);
                return Ok(Effects { request: entry.request, ..Effects::new(index, term, result) });
            }
        }
        let mut taken = None;
        let mut effects = match check(self, &entry) {
            Err(Stop::Fatal(error)) => return Err(error),
            Err(Stop::Refused(refusal)) => {
                self.clock = self.clock.max(entry.time);
                if mutant::active(Mutant::CursorWithoutOutputs) {
                    let moves = Entry { time: entry.time, cursors: entry.cursors.clone(), ..Entry::default() };
                    let _ = check(self, &moves).map(|plan| self.carry_out(at, &moves, plan, changes));
                }
                Effects::new(index, term, Err(refusal))
            }
            Ok(plan) => {
                self.clock = self.clock.max(entry.time);
                taken = plan.as_ref().map(|plan| plan.taken.clone());
                self.carry_out(at, &entry, plan, changes)
            }
        };
        if let Some(request) = &entry.request
            && !(mutant::active(Mutant::ForgetRefusal) && effects.result.is_err())
        {
            let outcome = encode_result(&effects.result, taken.as_ref());
            self.requests.remember(request, index, outcome, &self.limits, changes);
        }
        effects.request = entry.request;
        Ok(effects)
    }

    /// The first result of a request that has come again: what was remembered of it, with what this entry brings along and
    /// state still knows.
    fn answer_again(&self, kept: Remembered, entry: &Entry) -> Result<Result<Receipt, Refusal>, StoreError> {
        let Remembered { result, txn: taken } = kept;
        let Ok(mut receipt) = result else { return Ok(result) };
        let ttl_ms = |change: &LeaseChange| match change {
            LeaseChange::Grant { ttl_ms, .. } => *ttl_ms,
            // It may have ended since, and then 0 is the truth.
            LeaseChange::KeepAlive { lease } => self.leases.get(*lease).map_or(0, |lease| lease.ttl_ms),
            LeaseChange::Revoke { .. } => 0,
        };
        receipt.lease_ttls_ms = entry.leases.iter().map(ttl_ms).collect();
        let answer = match (&entry.txn, taken) {
            (None, None) => return Ok(Ok(receipt)),
            (Some(txn), Some(taken)) => txn::answer_again(&self.keys, &self.store, txn, &taken),
            _ => Err(txn::other_transaction()),
        };
        match answer {
            Ok(result) => {
                receipt.txn = Some(result);
                Ok(Ok(receipt))
            }
            Err(Fault::Refused(refusal)) => Ok(Err(refusal)),
            Err(Fault::Fatal(error)) => Err(error),
        }
    }

    /// Only a mutant wants to know, so only its build remembers.
    fn is_first_since_open(&self, _index: Index) -> bool {
        #[cfg(feature = "mutants")]
        return self.opened_at.next() == _index && self.opened_at > Index(0);
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Does what the entry says, and what its transaction comes to. Everything was checked.
    fn carry_out(
        &mut self,
        (index, term): (Index, Term),
        entry: &Entry,
        plan: Option<Plan>,
        changes: &mut Changes,
    ) -> Effects {
        let mut receipt = Receipt { index, term, time: self.clock, ..Receipt::default() };
        let mut effects = Effects::new(index, term, Ok(Receipt::default()));
        let mut step = self.keys.begin();
        let mut touched = BTreeSet::new();

        for change in &entry.topics {
            match change {
                TopicChange::Create { name, id, partitions, settings } => {
                    let logs = self.topics.create(name, *id, *partitions, settings.clone(), changes);
                    receipt.created.push((name.clone(), logs.clone()));
                    effects.topics.push(TopicEvent::Created { name: name.clone(), logs });
                }
                TopicChange::Delete { name } => {
                    let logs = self.topics.delete(name, changes);
                    for log in &logs {
                        self.cursors.drop_log(*log, changes);
                    }
                    effects.topics.push(TopicEvent::Deleted { name: name.clone(), logs });
                }
                TopicChange::Configure { name, to, .. } => {
                    self.topics.configure(name, to.clone(), changes);
                    effects.topics.push(TopicEvent::Changed { name: name.clone(), logs: Vec::new() });
                }
                TopicChange::Extend { name, partitions } => {
                    let logs = self.topics.extend(name, *partitions, changes);
                    effects.topics.push(TopicEvent::Changed { name: name.clone(), logs });
                }
                TopicChange::Trim { log, before } => {
                    if self.topics.trim(*log, *before, &mut touched, changes) {
                        effects.starts.push((*log, *before));
                    }
                }
            }
        }
        for change in &entry.leases {
            match *change {
                LeaseChange::Grant { lease, ttl_ms } => {
                    self.leases.set(lease, ttl_ms, self.clock, changes);
                    receipt.lease_ttls_ms.push(ttl_ms);
                }
                LeaseChange::KeepAlive { lease } => {
                    let ttl_ms = self.leases.get(lease).expect("the lease was checked to live").ttl_ms;
                    self.leases.set(lease, ttl_ms, self.clock, changes);
                    receipt.lease_ttls_ms.push(ttl_ms);
                }
                LeaseChange::Revoke { lease } => {
                    self.keys.end_lease(&mut step, lease, changes);
                    self.leases.end(lease, changes);
                    effects.leases_ended.push(lease);
                    receipt.lease_ttls_ms.push(0);
                }
            }
        }
        for put in &entry.puts {
            match &put.value {
                Some(value) => self.keys.put(&mut step, put.key.clone(), value.clone(), put.lease, changes),
                None => self.keys.delete(&mut step, put.key.clone(), changes),
            }
        }
        if let Some(Plan { writes, result, .. }) = plan {
            for write in writes {
                match write {
                    Write::Put { key, value, lease } => self.keys.put(&mut step, key, value, lease, changes),
                    Write::Delete { key } => self.keys.delete(&mut step, key, changes),
                }
            }
            receipt.txn = Some(result);
        }
        for put in &entry.state {
            let key = state_key(&put.space, &put.key);
            match &put.value {
                // A copy, so that a small row does not keep a large entry in memory.
                Some(value) => changes.put(Table::State, key, Bytes::copy_from_slice(value)),
                None => changes.delete(Table::State, key),
            }
        }
        let at = At { index, term, time: self.clock };
        for append in &entry.appends {
            receipt.appends.push(self.topics.append(append, at, &self.limits, &mut touched, changes));
        }
        for cursor in &entry.cursors {
            let position = Position { next: cursor.next, metadata: cursor.metadata.clone() };
            self.cursors.set(&cursor.group, cursor.log, position.clone(), changes);
            effects.cursors.push((cursor.group.clone(), cursor.log, Some(position)));
        }
        for forget in &entry.forgets {
            if self.cursors.forget(&forget.group, forget.log, changes) {
                effects.cursors.push((forget.group.clone(), forget.log, None));
            }
        }
        for timer in &entry.timers {
            match timer {
                Timer::Set { id, due, key, value } => self.timers.set(id, *due, key, value, changes),
                Timer::Cancel { id } => {
                    self.timers.remove(id, changes);
                }
            }
        }
        if entry.expire {
            for lease in self.leases.due(self.clock, self.limits.ends_per_entry) {
                self.keys.end_lease(&mut step, lease, changes);
                self.leases.end(lease, changes);
                effects.leases_ended.push(lease);
            }
            let left = self.limits.ends_per_entry.saturating_sub(effects.leases_ended.len());
            for id in self.timers.due(self.clock, left) {
                let timer = self.timers.remove(&id, changes).expect("a timer that is due is set");
                self.keys.put(&mut step, timer.key, timer.value, None, changes);
                effects.timers_fired.push(id.to_string());
            }
        }

        self.keys.finish(&step);
        if let Some(revision) = entry.compact {
            self.keys.compacted = revision;
        }
        self.keys.sweep(self.limits.sweep_per_entry, changes);
        self.topics.write_touched(&touched, changes);
        effects.kvs = step.kvs;
        effects.ends = touched_ends(&self.topics, changes);
        receipt.revision = self.keys.revision;
        effects.result = Ok(receipt);
        effects
    }

    /// A hash of everything the machine knows. Machines that applied the same entries have the same hash, however often
    /// they were opened from their rows. It reads all rows of keys and function state, so it takes its time.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn hash(&self) -> Result<u64, StoreError> {
        let mut hash = Fnv::default();
        hash.put(&[&self.applied.0.0.to_be_bytes(), &self.applied.1.0.to_be_bytes(), &self.clock_row().encode()]);
        for (key, places) in self.keys.places() {
            hash.put(&[key]);
            for (main, sub, put) in places {
                hash.put(&[&main.to_be_bytes(), &sub.to_be_bytes(), &[u8::from(put)]]);
            }
        }
        for (lease, keys) in self.keys.attached() {
            hash.put(&[&lease.0.to_be_bytes()]);
            keys.iter().for_each(|key| hash.put(&[key]));
        }
        for (name, topic) in &self.topics.topics {
            hash.put(&[name.as_bytes(), &topic.encode()]);
        }
        for (log, partition) in &self.topics.partitions {
            hash.put(&[&log.0.to_be_bytes(), &partition.encode()]);
            for mark in &partition.marks {
                hash.put(&[&mark.offset.0.to_be_bytes(), &mark.bytes.to_be_bytes(), &mark.time.0.to_be_bytes()]);
            }
            for (name, producer) in &partition.producers {
                hash.put(&[name.as_bytes(), &producer.encode()]);
            }
        }
        for (log, group, position) in self.cursors.iter() {
            let next = position.next.0.to_be_bytes();
            hash.put(&[&log.0.to_be_bytes(), group.as_bytes(), &next, position.metadata.as_bytes()]);
        }
        for (id, lease) in self.leases.iter() {
            hash.put(&[&id.0.to_be_bytes(), &lease.ttl_ms.to_be_bytes(), &lease.deadline.0.to_be_bytes()]);
        }
        for (id, timer) in self.timers.iter() {
            hash.put(&[id.as_bytes(), &timer.due.0.to_be_bytes(), &timer.key, &timer.value]);
        }
        for (client, floor, last, results) in self.requests.iter() {
            hash.put(&[&client.to_be_bytes(), &floor.to_be_bytes(), &last.0.to_be_bytes()]);
            for (number, outcome) in results {
                hash.put(&[&number.to_be_bytes(), outcome]);
            }
        }
        for table in [Table::Keys, Table::State] {
            scan_all(&self.store, table, &[], None, |key, value| {
                hash.put(&[key, &value]);
                Ok(())
            })?;
        }
        Ok(hash.0)
    }
}

/// The new ends of the logs that were appended to.
fn touched_ends(topics: &Topics, changes: &Changes) -> Vec<(LogId, Offset)> {
    let logs: BTreeSet<LogId> = changes.appends.iter().map(|batch| batch.log).collect();
    logs.into_iter().filter_map(|log| Some((log, topics.partitions.get(&log)?.end))).collect()
}

/// The key of a row of function state: the space's length and name, then the key, so that a space is one range of rows.
pub(crate) fn state_key(space: &str, key: &[u8]) -> RowKey {
    let len = u16::try_from(space.len()).expect("spaces are limited to KEY_BYTES_MAX by the entry's codec");
    [&len.to_be_bytes()[..], space.as_bytes(), key].concat().into()
}

impl Clock {
    fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(32);
        w.u8(ROWS_FORMAT);
        w.varint(self.time.0);
        w.varint(self.revision.0);
        w.varint(self.compacted.0);
        w.varint(self.next_log.into());
        w.finish()
    }
}

/// FNV-1a over 64 bits: small, ours, and the same everywhere.
pub(crate) struct Fnv(pub(crate) u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub(crate) fn put(&mut self, parts: &[&[u8]]) {
        for part in parts {
            // The length keeps ("a", "bc") and ("ab", "c") apart.
            for byte in (part.len() as u64).to_be_bytes().iter().chain(*part) {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
}

impl<S: Store> buttress_core::Machine for Machine<S> {
    type Effects = Effects;

    fn applied(&self) -> (Index, Term) {
        self.applied
    }

    fn apply(&mut self, index: Index, term: Term, entry: Bytes) -> Effects {
        assert_eq!(index, self.applied.0.next(), "entries are applied one after the other");
        assert!(term >= self.applied.1, "terms never go back along the log");
        self.applied = (index, term);
        if let Some(error) = &self.fatal {
            return fatal(index, term, error.clone());
        }
        let clock = self.clock_row();
        let deadline = self.next_deadline();
        let mut changes = Changes::default();
        let applied = if entry.is_empty() {
            let receipt = Receipt { index, term, revision: self.revision(), time: self.clock, ..Receipt::default() };
            Ok(Effects::new(index, term, Ok(receipt)))
        } else if let Some(format) = Entry::format_of(&entry).filter(|format| *format > self.limits.entry_format) {
            // Others may read it. To go on without it would be to have another state than they.
            let known = self.limits.entry_format;
            let message = format!("entry {index} is of format {format}, and this version reads up to {known}");
            Err(Error::new(Code::FORMAT, message).hint("run the version of buttress that the other members run"))
        } else {
            match Entry::decode(entry) {
                Ok(entry) => self
                    .apply_entry((index, term), entry, &mut changes)
                    .map_err(|error| Error::new(Code::DISK, format!("the state cannot be read: {error}"))),
                Err(error) => {
                    let message = format!("entry {index} cannot be read: {error}");
                    Ok(Effects::new(index, term, Err(Refusal::Part { code: Code::CORRUPT, message })))
                }
            }
        };
        match applied {
            Ok(mut effects) => {
                if self.clock_row() != clock {
                    self.write_clock(&mut changes);
                }
                effects.time = self.clock;
                effects.deadline_changed = self.next_deadline() != deadline;
                self.store.write(changes.finish(index, term));
                effects
            }
            Err(error) => {
                self.fatal = Some(error.clone());
                fatal(index, term, error)
            }
        }
    }
}

fn fatal(index: Index, term: Term, error: Error) -> Effects {
    let refusal = Refusal::Part { code: error.code, message: error.message.clone() };
    Effects { fatal: Some(error), ..Effects::new(index, term, Err(refusal)) }
}
