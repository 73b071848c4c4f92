//! What a workload keeps for the oracle: the history of its operations, and what happened to its keys.
//!
//! A workload owns a part of the key space, a prefix, and one shard. It orders operations through its book, which records
//! the call, and hands the book every answer. Every change under the prefix, as the node that applied it first made it, is
//! the truth that reads and watchers are held against; that all other nodes made the same changes is the world's matter
//! (STATE-1).

use std::collections::BTreeMap;

use buttress_core::{Code, Entry, KeyRange, LogId, Refusal, invariants::Violation};
use buttress_oracle::{Commit, Done, History, LogContent, OpId, Outcome as Known, Serial, What};
use buttress_state::{Effects, Machine, MemStore, local::opaque_batch, topics::BATCH_HEADER_BYTES};
use bytes::Bytes;

use super::{Consistency, Context, FinalView, Op, Outcome};
use crate::Us;

pub(super) struct Book {
    pub shard: u32,
    pub history: History,
    operations: BTreeMap<Op, OpId>,
    /// What was served to reads whose answer has not arrived.
    served: BTreeMap<Op, Known>,
    /// Effects up to this index were seen.
    seen: u64,
    next_serial: u64,
}

impl Book {
    /// `scope`: the keys that nobody else writes.
    pub fn new(shard: u32, scope: Option<&'static str>) -> Self {
        let mut history = History::new();
        history.scope = scope.map(|prefix| KeyRange::prefix(Bytes::from_static(prefix.as_bytes())));
        Self { shard, history, operations: BTreeMap::new(), served: BTreeMap::new(), seen: 0, next_serial: 0 }
    }

    /// A number that this book gives once only: for serials, values, leases.
    pub fn serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }

    /// Nothing of it waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.operations.is_empty()
    }

    pub fn submit(&mut self, cx: &mut Context<'_>, client: u32, entry: Entry) -> Op {
        let what = match &entry.txn {
            Some(txn) => What::Txn { txn: txn.clone(), linearizable: true },
            None => What::Commit(Commit::of(&entry, |append| serials(&append.batch))),
        };
        let id = self.history.invoke(client.into(), cx.now_us, what);
        let op = cx.submit(client, self.shard, entry);
        self.operations.insert(op, id);
        op
    }

    /// Records how an entry ended, and says what is known of it.
    pub fn ended(&mut self, now_us: u64, op: Op, outcome: &Outcome) -> Known {
        let id = self.operations.remove(&op).expect("it was submitted");
        let known = match outcome {
            Outcome::Acknowledged(receipt) => match &receipt.txn {
                Some(result) => Known::Transacted { revision: receipt.revision, result: result.clone() },
                None => Known::Done(Done::from(receipt)),
            },
            Outcome::Refused(Refusal::Guard { position, .. }) => Known::Refused { guard: Some(*position) },
            // Its result was remembered, and is forgotten.
            Outcome::Refused(Refusal::Part { code: Code::TIMEOUT, .. }) | Outcome::Unknown => Known::Unknown,
            Outcome::Refused(Refusal::Part { .. }) => Known::Refused { guard: None },
        };
        self.history.complete(id, now_us, known.clone());
        known
    }

    /// Asks a node for something that [`Self::serve`] will answer.
    pub fn read(
        &mut self,
        cx: &mut Context<'_>,
        client: u32,
        node: Option<u64>,
        consistency: Consistency,
        what: What,
    ) -> Op {
        let id = self.history.invoke(client.into(), cx.now_us, what);
        let op = cx.read(client, self.shard, node, consistency);
        self.operations.insert(op, id);
        op
    }

    /// Answers a read of keys or records on the node.
    pub fn serve(&mut self, op: Op, machine: &Machine<MemStore>, limit: usize) {
        let Some(id) = self.operations.get(&op) else { return };
        let known = match &self.history.get(*id).what {
            What::Read { range, at, .. } => match machine.range(range, limit, *at) {
                Ok(found) => Known::Found(found),
                // Compacted, or not there yet on a node that lags.
                Err(_) => Known::Refused { guard: None },
            },
            What::Fetch { log, from } => match machine.partition(*log) {
                Some(partition) if partition.start <= *from && *from <= partition.end => {
                    let found = records(machine, *log, from.0, limit);
                    Known::Fetched(found.into_iter().filter(|(offset, _)| offset >= from).collect())
                }
                _ => Known::Refused { guard: None },
            },
            What::Txn { txn, .. } => match machine.read_txn(txn).expect("memory can be read") {
                Ok(result) => Known::Transacted { revision: machine.revision(), result },
                Err(_) => Known::Refused { guard: None },
            },
            What::Commit(_) => unreachable!("nobody serves a commit"),
        };
        self.served.insert(op, known);
    }

    /// Records the answer that a read got, and gives it.
    pub fn read_ended(&mut self, now_us: u64, op: Op, answered: bool) -> Known {
        let id = self.operations.remove(&op).expect("it was asked");
        let served = self.served.remove(&op);
        let known = if answered { served.expect("what was answered was served") } else { Known::Unknown };
        self.history.complete(id, now_us, known.clone());
        known
    }

    /// A node has applied an entry; whoever applies it first tells what it did. Gives that, where it is new.
    pub fn applied(&mut self, shard: u32, effects: &Effects) -> bool {
        if shard != self.shard || effects.index.0 != self.seen + 1 {
            return false;
        }
        self.seen += 1;
        let Self { history, .. } = self;
        let ours =
            effects.events().filter(|event| history.scope.as_ref().is_none_or(|scope| scope.contains(&event.key)));
        history.changes.extend(ours);
        true
    }

    /// The machine that is furthest.
    pub fn last<'a>(&self, view: &FinalView<'a>) -> &'a Machine<MemStore> {
        let machines = &view.machines[self.shard as usize];
        let last = machines.iter().max_by_key(|(_, machine)| machine.revision());
        last.expect("a shard has members").1
    }

    /// Closes the book: all changes are there, and the content of these partitions.
    ///
    /// # Panics
    /// When an effect was never told to a workload that watches; the list of changes would have a hole.
    pub fn close(&mut self, view: &FinalView<'_>, logs: &[LogId], watches: bool) -> Result<(), Violation> {
        let machine = self.last(view);
        if watches {
            let told = view.facts[self.shard as usize].len() as u64;
            assert_eq!(self.seen, told, "effects of shard {} were not told", self.shard);
            self.history.changes_end = Some(machine.revision());
        }
        for log in logs {
            let partition = machine.partition(*log).expect("nobody deletes the topic");
            let found = records(machine, *log, partition.start.0, usize::MAX);
            let records = found.into_iter().filter(|(offset, _)| *offset >= partition.start).collect();
            self.history.logs.insert(*log, LogContent { start: partition.start, records });
        }
        Ok(())
    }
}

/// Wakes the workload within a time.
pub(super) fn soon(cx: &mut Context<'_>, within: Us, token: u64) {
    let after = cx.rng.below(within);
    cx.wake(after, token);
}

/// A batch of records that hold nothing but their serials.
pub(super) fn batch(serials: &[Serial]) -> Bytes {
    let payload: Vec<u8> = serials.iter().flat_map(|serial| serial.0.to_be_bytes()).collect();
    opaque_batch(serials.len() as u32, &payload)
}

/// The serials in a batch.
pub(super) fn serials(batch: &[u8]) -> Vec<Serial> {
    let numbers = batch[BATCH_HEADER_BYTES..].chunks_exact(8);
    numbers.map(|number| Serial(u64::from_be_bytes(number.try_into().expect("eight bytes")))).collect()
}

/// Records of a machine's log from the batch on that holds an offset.
pub(super) fn records(
    machine: &Machine<MemStore>,
    log: LogId,
    from: i64,
    bytes_max: usize,
) -> Vec<(buttress_core::Offset, Serial)> {
    let mut found = Vec::new();
    for batch in machine.store().fetch(log, buttress_core::Offset(from), bytes_max) {
        for (serial, offset) in serials(&batch.bytes).into_iter().zip(batch.base_offset.0..) {
            found.push((buttress_core::Offset(offset), serial));
        }
    }
    found
}
