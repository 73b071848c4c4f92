//! The machine against a model so naive that it can be seen to be right: it carries an entry out part by part on a copy of
//! everything, and throws the copy away at the first part that cannot be carried out. Entries are random but mostly
//! sensible; in between, the machine crashes: it is opened from an older checkpoint and applies the log from there again.

use std::collections::{BTreeMap, BTreeSet};

use buttress_core::{
    Append, AppendOutcome, Code, Cursor, Entry, Guard, Index, KeyRange, LeaseChange, LeaseId, LogId, Machine as _,
    Offset, Put, Receipt, Refusal, RequestId, Revision, Sequence, StatePut, Table, Term, TimeMs, Timer, TopicChange,
    entry::TopicSettings,
    ledger::{KeyEvent, KeyValue},
};
use buttress_state::{Limits, Machine, MemStore, fuzz::fuzz_apply, invariants, local::opaque_batch};
use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

const LIMITS: Limits =
    Limits { request_clients: 2, request_results_per_client: 3, producers_per_partition: 1000, ends_per_entry: 1000 };

/// A result without its prose.
#[derive(Clone, Debug, PartialEq)]
enum Short {
    Ok(Receipt),
    Guard(usize),
    Part(Code),
}

impl Short {
    fn of(result: &Result<Receipt, Refusal>) -> Self {
        match result {
            Ok(receipt) => Self::Ok(receipt.clone()),
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

#[derive(Clone, Debug, Default)]
struct World {
    clock: u64,
    revision: u64,
    next_log: u32,
    keys: BTreeMap<Bytes, (KeyValue, Option<LeaseId>)>,
    events: Vec<KeyEvent>,
    topics: BTreeMap<String, Vec<LogId>>,
    logs: BTreeMap<LogId, Log>,
    cursors: BTreeMap<(LogId, String), (Offset, String)>,
    leases: BTreeMap<LeaseId, (u64, u64)>,
    timers: BTreeMap<String, (u64, Bytes, Bytes)>,
    state: BTreeMap<(String, Bytes), Bytes>,
    /// Client, number and result, oldest first.
    results: Vec<(u64, u64, Short)>,
    floors: BTreeMap<u64, u64>,
}

impl World {
    fn new() -> Self {
        Self { revision: 1, next_log: 1, ..Self::default() }
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
                TopicChange::Create { name, partitions, .. } => {
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
                    receipt.created.push((name.clone(), logs));
                }
                TopicChange::Delete { name } => {
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
                }
                LeaseChange::KeepAlive { lease } => {
                    let (ttl_ms, deadline) = self.leases.get_mut(lease).ok_or(Short::Part(Code::LEASE_UNKNOWN))?;
                    *deadline = self.clock + *ttl_ms;
                }
                LeaseChange::Revoke { lease } => {
                    if !self.leases.contains_key(lease) {
                        return Err(Short::Part(Code::LEASE_UNKNOWN));
                    }
                    changed |= self.end_lease(*lease);
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
        self.revision += u64::from(changed);
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
                Some((_, _, Short::Ok(receipt))) => return Short::Ok(Receipt { replayed: true, ..receipt.clone() }),
                Some((_, _, result)) => return result.clone(),
                None if request.number < self.floors.get(&request.client).copied().unwrap_or(0) => {
                    return Short::Part(Code::TIMEOUT);
                }
                None => {}
            }
        }
        let mut copy = self.clone();
        let result = match copy.carry_out(entry, index, term) {
            Ok(receipt) => {
                *self = copy;
                Short::Ok(receipt)
            }
            Err(refused) => refused,
        };
        if let Some(request) = &entry.request {
            self.remember(request, result.clone());
        }
        result
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

    fn key(&mut self) -> Bytes {
        if self.roll(60) == 59 { Bytes::new() } else { Bytes::from(vec![b'a' + self.roll(4) as u8]) }
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
                    entry.cursors.push(Cursor { group: self.group(), log, next, metadata: self.group() });
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
                _ => entry.expire = true,
            }
        }
        entry
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
        prop_assert_eq!(&effects.events[..], &self.world.events[events..]);
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
            Short::Ok(receipt) if receipt.replayed => count("replayed"),
            Short::Ok(receipt) => {
                count("carried out");
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
            prop_assert!(keys.into_iter().all(|key| world.keys.contains_key(key)), "lease {}", id);
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
        for (revision, keys) in &self.past {
            let found = self.machine.range(&all, usize::MAX, Some(*revision)).expect("nothing is compacted");
            prop_assert_eq!(&found.kvs, keys);
        }
        // A watch that takes a few at a time sees every change once, whole revisions at a time.
        for limit in [1, 3, usize::MAX] {
            let mut seen = Vec::new();
            let mut next = Revision(1);
            while next <= self.machine.revision() {
                let found = self.machine.events_since(&all, next, limit).expect("nothing is compacted");
                prop_assert!(found.next > next && found.events.iter().all(|event| event.revision < found.next));
                next = found.next;
                seen.extend(found.events);
            }
            prop_assert_eq!(&seen, &self.world.events);
        }
        let some = KeyRange { from: "b".into(), to: Some("d".into()) };
        let found = self.machine.events_since(&some, Revision(0), usize::MAX).expect("nothing is compacted");
        let expected: Vec<KeyEvent> =
            self.world.events.iter().filter(|event| some.contains(&event.key)).cloned().collect();
        prop_assert_eq!(found.events, expected);
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
    for _ in 0..10 {
        let steps = (0..80).map(|_| (0..90).map(|_| byte()).collect()).collect();
        for (outcome, times) in run(steps).expect("the machine does what the model does") {
            *seen.entry(outcome).or_insert(0) += times;
        }
    }
    let rare = |outcome: &str, least: usize| seen.get(outcome).is_none_or(|times| *times < least);
    assert!(!rare("carried out", 150) && !rare("part refused", 50) && !rare("guard refused", 10), "{seen:?}");
    assert!(!rare("appended", 200) && !rare("duplicate", 30) && !rare("gap", 10), "{seen:?}");
    assert!(!rare("stale epoch", 2) && !rare("unknown log", 10) && !rare("replayed", 5), "{seen:?}");
}
