//! The state machine: what one committed entry does.
//!
//! The order within an entry is the order of its fields: topics, leases, keys, function state, appends, cursors, timers,
//! and last what is due. Every check comes before every change (see `check`), so from the first change on nothing can
//! fail.

use std::collections::BTreeSet;

use buttress_core::{
    Code, Entry, Index, KeyRange, LeaseChange, LogId, Offset, Receipt, Refusal, Revision, Store, StoreError, Table,
    Term, TimeMs, TopicChange, Writer,
    entry::Timer,
    ledger::{KeyValues, PartitionView, TopicView},
    limits::{PRODUCERS_PER_PARTITION_MAX, REQUEST_CLIENTS_MAX, REQUEST_RESULTS_PER_CLIENT_MAX},
};
use bytes::Bytes;

use crate::{
    changes::{Changes, Kind, scan_all},
    check::{Stop, check},
    cursors::{Cursors, Position},
    effects::{Effects, TopicEvent},
    keys::{FIRST_REVISION, KeyEvents, Keys, ReadError},
    leases::Leases,
    requests::{Recall, Requests, decode_result, encode_result},
    timers::Timers,
    topics::{At, Topics},
};

/// The format of all rows, in the row of [`Kind::Clock`].
const ROWS_FORMAT: u8 = 1;

/// Leases and timers that one entry ends; what is left over stays due, and the leader proposes again. Bounds the rows of
/// one entry when very many are due at once.
pub const ENDS_PER_ENTRY: usize = 4096;

/// How much is remembered. All replicas must use the same limits; only tests use others than the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub request_clients: usize,
    pub request_results_per_client: usize,
    pub producers_per_partition: usize,
    pub ends_per_entry: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_clients: REQUEST_CLIENTS_MAX,
            request_results_per_client: REQUEST_RESULTS_PER_CLIENT_MAX,
            producers_per_partition: PRODUCERS_PER_PARTITION_MAX,
            ends_per_entry: ENDS_PER_ENTRY,
        }
    }
}

/// The machine over a store.
#[derive(Debug)]
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
    fatal: Option<StoreError>,
}

/// The scalars, in the row of [`Kind::Clock`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    time: TimeMs,
    revision: Revision,
    compacted: Revision,
    next_log: u32,
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
        Kind::Clock.load(&store, |_, mut value| {
            let got = value.u8("rows format")?;
            if got != ROWS_FORMAT {
                return Err(buttress_core::DecodeError::Version { got, known: ROWS_FORMAT });
            }
            clock = Clock {
                time: TimeMs(value.varint("clock")?),
                revision: Revision(value.varint("revision")?),
                compacted: Revision(value.varint("compacted revision")?),
                next_log: value.varint_u32("next log")?,
            };
            value.end()
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
        if let Some(request) = &entry.request {
            let known = match self.requests.recall(request) {
                Recall::New => None,
                Recall::Answered(outcome) => Some(
                    decode_result(outcome, &entry.guards)
                        .map_err(|error| StoreError(format!("a remembered result: {error}")))?,
                ),
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
        let mut effects = match check(self, &entry) {
            Err(Stop::Fatal(error)) => return Err(error),
            Err(Stop::Refused(refusal)) => {
                self.clock = self.clock.max(entry.time);
                Effects::new(index, term, Err(refusal))
            }
            Ok(()) => {
                self.clock = self.clock.max(entry.time);
                self.carry_out(at, &entry, changes)
            }
        };
        if let Some(request) = &entry.request {
            let outcome = encode_result(&effects.result);
            self.requests.remember(request, index, outcome, &self.limits, changes);
        }
        effects.request = entry.request;
        Ok(effects)
    }

    /// Does what the entry says. Everything was checked.
    fn carry_out(&mut self, (index, term): (Index, Term), entry: &Entry, changes: &mut Changes) -> Effects {
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
                TopicChange::Trim { log, before } => {
                    if self.topics.trim(*log, *before, &mut touched, changes) {
                        effects.starts.push((*log, *before));
                    }
                }
            }
        }
        for change in &entry.leases {
            match *change {
                LeaseChange::Grant { lease, ttl_ms } => self.leases.set(lease, ttl_ms, self.clock, changes),
                LeaseChange::KeepAlive { lease } => {
                    let ttl_ms = self.leases.get(lease).expect("the lease was checked to live").ttl_ms;
                    self.leases.set(lease, ttl_ms, self.clock, changes);
                }
                LeaseChange::Revoke { lease } => {
                    self.keys.end_lease(&mut step, lease, changes);
                    self.leases.end(lease, changes);
                    effects.leases_ended.push(lease);
                }
            }
        }
        for put in &entry.puts {
            match &put.value {
                Some(value) => self.keys.put(&mut step, put.key.clone(), value.clone(), put.lease, changes),
                None => self.keys.delete(&mut step, put.key.clone(), changes),
            }
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
            self.cursors.set(&cursor.group, cursor.log, position, changes);
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
        self.topics.write_touched(&touched, changes);
        effects.events = step.events;
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
pub(crate) fn state_key(space: &str, key: &[u8]) -> Bytes {
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
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn put(&mut self, parts: &[&[u8]]) {
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
        } else {
            match Entry::decode(entry) {
                Ok(entry) => self.apply_entry((index, term), entry, &mut changes),
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

fn fatal(index: Index, term: Term, error: StoreError) -> Effects {
    let refusal = Refusal::Part { code: Code::DISK, message: error.to_string() };
    Effects { fatal: Some(error), ..Effects::new(index, term, Err(refusal)) }
}
