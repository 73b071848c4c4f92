//! Keys and records: puts, deletes, guarded writes, reads, appends with sequences, leases and timers.
//!
//! The log itself is the witness. At the end the operations are carried out again, in the order in which the log has
//! them, on a model of a few lines; every answer that a client got, and everything that a read saw, must be what
//! the model gives at that place. Because the world checks that a read comes after everything acknowledged before it
//! (READ-1), this is strict serializability.

use std::collections::{BTreeMap, BTreeSet};

use buttress_core::{
    Append, AppendOutcome, Entry, Guard, Index, KeyRange, LeaseChange, LeaseId, LogId, Offset, Put, Receipt, Sequence,
    TimeMs, TopicChange,
    entry::{Timer, TopicSettings},
    invariants::{ACK_1, ENTRY_1, GUARD_1, LIN_1, RECORD_1, REQUEST_1, Violation},
};
use buttress_state::{Machine, MemStore, local::opaque_batch};
use bytes::Bytes;

use super::{Answer, Consistency, Context, FinalView, Op, Outcome, SHARDS, Workload};
use crate::{MS, rng::Rng};

const CLIENTS: u32 = 4;
const KEYS: u64 = 5;
const PARTITIONS: u32 = 2;
const TOPIC: &str = "readings";

/// What a client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Nothing,
    Entry(Op),
    Read(Op),
}

struct Written {
    shard: u32,
    guards: Vec<Guard>,
    puts: Vec<Put>,
    appended: Option<(LogId, Bytes)>,
    outcome: Option<Outcome>,
}

struct Seen {
    shard: u32,
    key: Bytes,
    index: Index,
    value: Option<Bytes>,
}

/// One producer of one partition: it goes on only when its last batch is known to be there.
#[derive(Clone, Default)]
struct Producer {
    next: i64,
    /// Not known to be there yet: number, payload, records.
    pending: Option<(i64, Bytes, u32)>,
    op: Option<Op>,
    acknowledged: Vec<(i64, Bytes, Option<Offset>)>,
}

pub struct Basic {
    pause_us: u64,
    stopped: bool,
    doing: Vec<Doing>,
    written: BTreeMap<Op, Written>,
    reads: BTreeMap<Op, (u32, Bytes)>,
    seen: Vec<Seen>,
    /// What each client saw last of a key, for its guards.
    known: BTreeMap<(u32, Bytes), Option<Bytes>>,
    logs: [Vec<LogId>; SHARDS as usize],
    creating: [Option<Op>; SHARDS as usize],
    /// Topics that it asked for; each has a name of its own.
    creations: u32,
    producers: BTreeMap<(u32, u32, LogId), Producer>,
    next_lease: i64,
    leases: Vec<(u32, LeaseId)>,
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("k{number}"))
}

impl Basic {
    pub fn draw(rng: &mut Rng) -> Self {
        Self {
            pause_us: rng.one([5 * MS, 30 * MS, 120 * MS]),
            stopped: false,
            doing: vec![Doing::Nothing; CLIENTS as usize],
            written: BTreeMap::new(),
            reads: BTreeMap::new(),
            seen: Vec::new(),
            known: BTreeMap::new(),
            logs: [Vec::new(), Vec::new()],
            creating: [None, None],
            creations: 0,
            producers: BTreeMap::new(),
            next_lease: 1,
            leases: Vec::new(),
        }
    }

    fn next(&mut self, cx: &mut Context<'_>, client: u32) {
        let shard = cx.rng.below(u64::from(SHARDS)) as u32;
        if self.logs[shard as usize].is_empty() && self.creating[shard as usize].is_none() {
            self.creations += 1;
            let create = TopicChange::Create {
                name: format!("{TOPIC}{}", self.creations),
                id: [shard as u8 + 1; 16],
                partitions: PARTITIONS,
                settings: TopicSettings::default(),
            };
            let op = self.entry(cx, client, shard, Entry { topics: vec![create], ..Entry::default() }, None);
            self.creating[shard as usize] = Some(op);
            return;
        }
        match cx.rng.below(100) {
            0..25 => {
                let key = key(cx.rng.below(KEYS));
                let consistency =
                    if cx.rng.percent(75) { Consistency::Linearizable } else { Consistency::Serializable };
                let op = cx.read(client, shard, None, consistency);
                self.reads.insert(op, (shard, key));
                self.doing[client as usize] = Doing::Read(op);
            }
            25..65 => self.write_keys(cx, client, shard),
            65..85 if !self.logs[shard as usize].is_empty() => self.append(cx, client, shard),
            85..92 => self.lease(cx, client, shard),
            _ => {
                let number = cx.rng.below(4);
                let due = TimeMs(1_700_000_000_000 + cx.now_us / 1000 + cx.rng.below(900));
                let timer = match cx.rng.percent(80) {
                    true => Timer::Set {
                        id: format!("t{number}"),
                        due,
                        key: Bytes::from(format!("fired{number}")),
                        value: Bytes::from(format!("{due}")),
                    },
                    false => Timer::Cancel { id: format!("t{number}") },
                };
                self.entry(cx, client, shard, Entry { timers: vec![timer], ..Entry::default() }, None);
            }
        }
    }

    fn write_keys(&mut self, cx: &mut Context<'_>, client: u32, shard: u32) {
        let mut entry = Entry::default();
        for _ in 0..=cx.rng.below(2) {
            let key = key(cx.rng.below(KEYS));
            if entry.puts.iter().any(|put| put.key == key) {
                continue;
            }
            if cx.rng.percent(40) {
                let guard = match self.known.get(&(shard, key.clone())) {
                    Some(Some(value)) => Guard::Value { key: key.clone(), value: value.clone() },
                    _ => Guard::Version { key: key.clone(), version: 0 },
                };
                entry.guards.push(guard);
            }
            let size = if cx.rng.percent(5) { 400 } else { 0 };
            let mut value = format!("v{}-{client}", cx.rng.next() % 1_000_000_000).into_bytes();
            value.resize(value.len() + size, b'.');
            let value = (!cx.rng.percent(15)).then(|| Bytes::from(value));
            self.known.insert((shard, key.clone()), value.clone());
            entry.puts.push(Put { key, value, lease: None });
        }
        self.entry(cx, client, shard, entry, None);
    }

    fn append(&mut self, cx: &mut Context<'_>, client: u32, shard: u32) {
        let log = cx.rng.pick(&self.logs[shard as usize]).expect("the topic is there");
        let producer = self.producers.entry((client, shard, log)).or_default();
        let (number, payload, records) = producer.pending.get_or_insert_with(|| {
            let records = 1 + cx.rng.below(3) as u32;
            (producer.next, Bytes::from(format!("{client}:{}", producer.next)), records)
        });
        let append = Append {
            log,
            records: *records,
            max_timestamp_ms: 0,
            sequence: Some(Sequence { producer: format!("p{client}"), epoch: 0, number: *number }),
            batch: opaque_batch(*records, payload),
        };
        let payload = payload.clone();
        let op =
            self.entry(cx, client, shard, Entry { appends: vec![append], ..Entry::default() }, Some((log, payload)));
        self.producers.get_mut(&(client, shard, log)).expect("just made").op = Some(op);
    }

    fn lease(&mut self, cx: &mut Context<'_>, client: u32, shard: u32) {
        let mut entry = Entry::default();
        let old = cx.rng.pick(&self.leases).filter(|(at, _)| *at == shard);
        match (cx.rng.below(4), old) {
            (0, Some((_, lease))) => entry.leases.push(LeaseChange::KeepAlive { lease }),
            (1, Some((_, lease))) => entry.leases.push(LeaseChange::Revoke { lease }),
            _ => {
                let lease = LeaseId(self.next_lease);
                self.next_lease += 1;
                self.leases.push((shard, lease));
                entry.leases.push(LeaseChange::Grant { lease, ttl_ms: 50 + cx.rng.below(1500) });
                let name = Bytes::from(format!("lease{}", cx.rng.below(3)));
                entry.puts.push(Put { key: name, value: Some(Bytes::from_static(b"held")), lease: Some(lease) });
            }
        }
        self.entry(cx, client, shard, entry, None);
    }

    fn entry(
        &mut self,
        cx: &mut Context<'_>,
        client: u32,
        shard: u32,
        entry: Entry,
        appended: Option<(LogId, Bytes)>,
    ) -> Op {
        let model = |key: &Bytes| key.starts_with(b"k");
        let written = Written {
            shard,
            guards: entry.guards.clone(),
            puts: entry.puts.iter().filter(|put| model(&put.key)).cloned().collect(),
            appended,
            outcome: None,
        };
        let op = cx.submit(client, shard, entry);
        self.written.insert(op, written);
        self.doing[client as usize] = Doing::Entry(op);
        op
    }

    fn rest(&mut self, cx: &mut Context<'_>, client: u32) {
        self.doing[client as usize] = Doing::Nothing;
        if !self.stopped {
            let pause = 1 + cx.rng.below(2 * self.pause_us);
            cx.wake(pause, u64::from(client));
        }
    }

    fn client_of(&self, doing: Doing) -> u32 {
        self.doing.iter().position(|at| *at == doing).expect("it was doing this") as u32
    }

    fn appended(&mut self, client: u32, shard: u32, log: LogId, receipt: Option<&Receipt>) {
        let producer = self.producers.get_mut(&(client, shard, log)).expect("it appended");
        producer.op = None;
        let offset = match receipt.and_then(|receipt| receipt.appends.first()) {
            Some(AppendOutcome::Appended { base_offset }) => Some(*base_offset),
            Some(AppendOutcome::Duplicate { base_offset }) => *base_offset,
            // Unknown, or forgotten: the same number goes again.
            _ => return,
        };
        let (number, payload, records) = producer.pending.take().expect("one was under way");
        producer.next = number + i64::from(records);
        producer.acknowledged.push((number, payload, offset));
    }

    /// Carries out the log's operations of a shard on a model.
    fn check_keys(&self, view: &FinalView<'_>, shard: u32) -> Result<(), Violation> {
        let mut model: BTreeMap<Bytes, (Bytes, u64)> = BTreeMap::new();
        let mut reads: Vec<&Seen> = self.seen.iter().filter(|seen| seen.shard == shard).collect();
        reads.sort_by_key(|seen| seen.index);
        let mut reads = reads.into_iter().peekable();
        let mut first: BTreeMap<Op, bool> = BTreeMap::new();
        let facts = view.facts[shard as usize];
        for index in 0..=facts.len() as u64 {
            if index > 0
                && let Some(op) = facts[index as usize - 1].op
                && let Some(written) = self.written.get(&op)
            {
                let fact = &facts[index as usize - 1];
                match first.get(&op) {
                    Some(carried_out) => {
                        let again = fact.applied && !fact.replayed;
                        REQUEST_1.hold(!again && (*carried_out || !fact.applied), || {
                            format!("op {op} of shard {shard} was carried out again at {index}")
                        })?;
                    }
                    None if fact.forgotten => {}
                    None => {
                        first.insert(op, fact.applied);
                        let holds = written.guards.iter().all(|guard| match guard {
                            Guard::Value { key, value } => model.get(key).is_some_and(|(found, _)| found == value),
                            Guard::Version { key, version } => model.get(key).map_or(0, |(_, v)| *v) == *version,
                            _ => true,
                        });
                        let guarded = !written.guards.is_empty();
                        GUARD_1.hold(!guarded || holds == fact.applied, || {
                            format!(
                                "op {op} at {index} of shard {shard}: applied {}, {:?}",
                                fact.applied, written.guards
                            )
                        })?;
                        if fact.applied {
                            for put in &written.puts {
                                match &put.value {
                                    Some(value) => {
                                        let version = model.get(&put.key).map_or(0, |(_, version)| *version) + 1;
                                        model.insert(put.key.clone(), (value.clone(), version));
                                    }
                                    None => drop(model.remove(&put.key)),
                                }
                            }
                        }
                    }
                }
            }
            while let Some(seen) = reads.next_if(|seen| seen.index.0 == index) {
                let found = model.get(&seen.key).map(|(value, _)| value);
                LIN_1.hold(found == seen.value.as_ref(), || {
                    format!("a read of {:?} at {index} of shard {shard} saw {:?}, not {found:?}", seen.key, seen.value)
                })?;
            }
        }
        for (op, written) in self.written.iter().filter(|(_, written)| written.shard == shard) {
            let carried_out = first.get(op);
            match &written.outcome {
                Some(Outcome::Acknowledged(_)) => {
                    ACK_1
                        .hold(carried_out == Some(&true), || format!("op {op} was acknowledged and did not happen"))?;
                }
                Some(Outcome::Refused(refusal)) => ENTRY_1
                    .hold(carried_out == Some(&false), || format!("op {op} was refused ({refusal:?}) and happened"))?,
                Some(Outcome::Unknown) | None => {}
            }
        }
        for (node, machine) in &view.machines[shard as usize] {
            for number in 0..KEYS {
                let found = read_key(machine, &key(number));
                let want = model.get(&key(number)).map(|(value, _)| value.clone());
                LIN_1.hold(found == want, || {
                    format!("node {node} shard {shard} ends with {found:?} under k{number}, not {want:?}")
                })?;
            }
        }
        Ok(())
    }

    fn check_records(&self, view: &FinalView<'_>, shard: u32) -> Result<(), Violation> {
        for (node, machine) in &view.machines[shard as usize] {
            for log in &self.logs[shard as usize] {
                let mut found: BTreeMap<Bytes, Offset> = BTreeMap::new();
                let mut order: BTreeMap<String, i64> = BTreeMap::new();
                for batch in machine.store().batches(*log) {
                    let payload = batch.bytes.slice(buttress_state::topics::BATCH_HEADER_BYTES..);
                    let text = String::from_utf8_lossy(&payload).into_owned();
                    let twice = found.insert(payload, batch.base_offset).is_some();
                    RECORD_1.hold(!twice, || format!("node {node} shard {shard} log {log} has {text} twice"))?;
                    let (client, number) = text.split_once(':').expect("the payload says whose it is");
                    let number: i64 = number.parse().expect("the payload says its number");
                    let before = order.insert(client.to_owned(), number);
                    RECORD_1.hold(before.is_none_or(|before| before < number), || {
                        format!("node {node} shard {shard} log {log} has {text} after {before:?}")
                    })?;
                }
                for ((client, ..), producer) in
                    self.producers.iter().filter(|((_, at, of), _)| (*at, of) == (shard, log))
                {
                    for (number, payload, offset) in &producer.acknowledged {
                        let at = found.get(payload);
                        let right = at.is_some_and(|at| offset.is_none_or(|offset| *at == offset));
                        RECORD_1.hold(right, || {
                            format!(
                                "node {node} shard {shard} log {log}: number {number} of p{client} was acknowledged at \
                                 {offset:?} and is at {at:?}"
                            )
                        })?;
                    }
                    let known: BTreeSet<&Bytes> = producer.acknowledged.iter().map(|(_, payload, _)| payload).collect();
                    let own = format!("{client}:");
                    for payload in found.keys().filter(|payload| payload.starts_with(own.as_bytes())) {
                        let pending = producer.pending.as_ref().is_some_and(|(_, pending, _)| pending == payload);
                        RECORD_1.hold(known.contains(payload) || pending, || {
                            format!("node {node} shard {shard} log {log} has {payload:?}, which nobody sent")
                        })?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn read_key(machine: &Machine<MemStore>, key: &Bytes) -> Option<Bytes> {
    let found = machine.range(&KeyRange::key(key.clone()), 1, None).expect("the present can be read");
    found.kvs.into_iter().next().map(|found| found.value)
}

impl Workload for Basic {
    fn name(&self) -> &'static str {
        "basic"
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        for client in 0..CLIENTS {
            let begin = 300 * MS + cx.rng.below(400 * MS);
            cx.wake(begin, u64::from(client));
        }
    }

    fn woken(&mut self, cx: &mut Context<'_>, token: u64) {
        if self.doing[token as usize] == Doing::Nothing && !self.stopped {
            self.next(cx, token as u32);
        }
    }

    fn ended(&mut self, cx: &mut Context<'_>, op: Op, outcome: Outcome) {
        let client = self.client_of(Doing::Entry(op));
        let written = self.written.get_mut(&op).expect("it was submitted");
        let shard = written.shard;
        let receipt = match &outcome {
            Outcome::Acknowledged(receipt) => Some(receipt.clone()),
            _ => None,
        };
        written.outcome = Some(outcome);
        if let Some((log, _)) = written.appended.clone() {
            self.appended(client, shard, log, receipt.as_ref());
        }
        if self.creating[shard as usize] == Some(op) {
            self.creating[shard as usize] = None;
            if let Some(receipt) = receipt {
                self.logs[shard as usize] = receipt.created.iter().flat_map(|(_, logs)| logs.clone()).collect();
            }
            // Where it is not known whether the topic is there, another one is asked for: partitions are numbered in the
            // order of creation, whoever creates, so nobody can guess.
        }
        self.rest(cx, client);
    }

    fn serve(&mut self, op: Op, machine: &Machine<MemStore>) -> Answer {
        let (_, key) = &self.reads[&op];
        let value = read_key(machine, key);
        Answer { values: vec![value], ..Answer::default() }
    }

    fn read_ended(&mut self, cx: &mut Context<'_>, op: Op, answer: Option<Answer>) {
        let client = self.client_of(Doing::Read(op));
        let (shard, key) = self.reads.remove(&op).expect("it was asked");
        if let Some(answer) = answer {
            let value = answer.values[0].clone();
            self.known.insert((shard, key.clone()), value.clone());
            self.seen.push(Seen { shard, key, index: answer.index, value });
        }
        self.rest(cx, client);
    }

    fn stop(&mut self, _cx: &mut Context<'_>) {
        self.stopped = true;
    }

    fn is_done(&self) -> bool {
        self.doing.iter().all(|doing| *doing == Doing::Nothing)
    }

    fn check(&mut self, view: &FinalView<'_>) -> Result<(), Violation> {
        for shard in 0..SHARDS {
            self.check_keys(view, shard)?;
            self.check_records(view, shard)?;
        }
        Ok(())
    }
}
