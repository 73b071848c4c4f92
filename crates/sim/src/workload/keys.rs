//! Keys: puts, deletes, compare-and-set on everything that a guard can ask for, transactions over several keys, reads of
//! the present, of the past and of what a node happens to know, all on a handful of keys, so that they get in each other's
//! way. What everybody saw is judged by LIN-1 and LIN-2.

use std::collections::BTreeMap;

use buttress_core::{
    Entry, Guard, KeyRange, Put, Revision,
    invariants::{self, Violation},
    ledger::KeyValue,
};
use buttress_oracle::{Outcome as Known, What, keys, revisions};
use buttress_state::{Effects, Machine, MemStore};
use bytes::Bytes;

use super::{
    Answer, Consistency, Context, FinalView, Op, Outcome, SHARDS, Workload,
    book::{Book, soon},
};
use crate::{MS, Us, rng::Rng};

const SCOPE: &str = "keys/";

pub struct Keys {
    book: Book,
    clients: u64,
    keys: u64,
    think: Us,
    /// Of a hundred entries, how many ask only to change something that was seen before.
    guarded: u64,
    stopped: bool,
    /// Whose operation it is.
    open: BTreeMap<Op, u32>,
    /// What somebody saw last of each key; `None`: that it is not there.
    known: BTreeMap<Bytes, Option<KeyValue>>,
    newest: Revision,
    limit: BTreeMap<Op, usize>,
}

impl Keys {
    pub fn draw(rng: &mut Rng) -> Self {
        let shard = rng.below(u64::from(SHARDS)) as u32;
        Self {
            book: Book::new(shard, Some(SCOPE)),
            clients: rng.range(2, 5),
            keys: rng.one([1, 2, 3, 6]),
            think: rng.one([30 * MS, 100 * MS, 300 * MS]),
            guarded: rng.one([20, 60, 90]),
            stopped: false,
            open: BTreeMap::new(),
            known: BTreeMap::new(),
            newest: Revision(1),
            limit: BTreeMap::new(),
        }
    }

    fn key(&self, rng: &mut Rng) -> Bytes {
        Bytes::from(format!("{SCOPE}{}", rng.below(self.keys)))
    }

    fn guard(&self, rng: &mut Rng, key: Bytes) -> Guard {
        let known = self.known.get(&key).cloned().flatten();
        // Sometimes what nobody has seen.
        let off = u64::from(rng.percent(10));
        match (rng.below(5), known) {
            (0, Some(kv)) => Guard::CreateRevision { key, revision: Revision(kv.create_revision.0 + off) },
            (1, Some(kv)) => Guard::Version { key, version: kv.version + off },
            (2, Some(kv)) => Guard::Value { key, value: kv.value },
            (_, Some(kv)) => Guard::ModRevision { key, revision: Revision(kv.mod_revision.0 + off) },
            (0, None) => Guard::CreateRevision { key, revision: Revision(off) },
            (1, None) => Guard::Version { key, version: off },
            (_, None) => Guard::ModRevision { key, revision: Revision(off) },
        }
    }

    fn put(&mut self, rng: &mut Rng) -> Put {
        let value = rng.percent(75).then(|| Bytes::from(self.book.serial().to_string()));
        Put { key: self.key(rng), value, lease: None }
    }

    fn range(&self, rng: &mut Rng) -> KeyRange {
        match rng.below(3) {
            0 => KeyRange::key(self.key(rng)),
            1 => KeyRange::prefix(SCOPE),
            _ => KeyRange { from: self.key(rng), to: Some(self.key(rng)) },
        }
    }

    fn next(&mut self, cx: &mut Context<'_>, client: u32) {
        if self.stopped {
            return;
        }
        if cx.rng.percent(45) {
            let consistency =
                cx.rng.one([Consistency::Linearizable, Consistency::Linearizable, Consistency::Serializable]);
            let at = cx.rng.percent(15).then(|| {
                let back = cx.rng.one([1, 5, 40]);
                Revision(self.newest.0.saturating_sub(cx.rng.below(back)).max(1))
            });
            let linearizable = consistency == Consistency::Linearizable;
            let what = What::Read { range: self.range(cx.rng), at, linearizable };
            let op = self.book.read(cx, client, None, consistency, what);
            self.limit.insert(op, if cx.rng.percent(15) { 1 } else { usize::MAX });
            self.open.insert(op, client);
            return;
        }
        let mut entry = Entry::default();
        let puts = if cx.rng.percent(60) { 1 } else { cx.rng.range(2, 4) };
        for _ in 0..puts {
            let put = self.put(cx.rng);
            if cx.rng.percent(self.guarded) {
                // On the key that is written, or on another one.
                let key = if cx.rng.percent(70) { put.key.clone() } else { self.key(cx.rng) };
                entry.guards.push(self.guard(cx.rng, key));
            }
            entry.puts.push(put);
        }
        if cx.rng.percent(3) {
            // A question only: who asks so wants to know whether it still holds.
            entry.puts.clear();
        }
        let op = self.book.submit(cx, client, entry);
        self.open.insert(op, client);
    }

    fn again(&mut self, cx: &mut Context<'_>, op: Op) {
        let client = self.open.remove(&op).expect("it is one of ours");
        soon(cx, 2 * self.think, client.into());
    }
}

impl Workload for Keys {
    fn name(&self) -> &'static str {
        "keys"
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        for client in 0..self.clients {
            soon(cx, 2 * self.think, client);
        }
    }

    fn woken(&mut self, cx: &mut Context<'_>, token: u64) {
        self.next(cx, token as u32);
    }

    fn ended(&mut self, cx: &mut Context<'_>, op: Op, outcome: Outcome) {
        if let Known::Done(done) = self.book.ended(cx.now_us, op, &outcome) {
            self.newest = self.newest.max(done.revision.unwrap_or_default());
        }
        self.again(cx, op);
    }

    fn serve(&mut self, op: Op, machine: &Machine<MemStore>) -> Answer {
        let limit = self.limit.get(&op).copied().unwrap_or(usize::MAX);
        self.book.serve(op, machine, limit);
        Answer::default()
    }

    fn read_ended(&mut self, cx: &mut Context<'_>, op: Op, answer: Option<Answer>) {
        self.limit.remove(&op);
        if let Known::Found(found) = self.book.read_ended(cx.now_us, op, answer.is_some()) {
            if found.revision >= self.newest && !found.more {
                let seen: BTreeMap<Bytes, KeyValue> = found.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
                for number in 0..self.keys {
                    let key = Bytes::from(format!("{SCOPE}{number}"));
                    let kv = seen.get(&key).cloned();
                    self.known.insert(key, kv);
                }
            }
            self.newest = self.newest.max(found.revision);
        }
        self.again(cx, op);
    }

    fn watches(&self) -> bool {
        true
    }

    fn applied(&mut self, _: &mut Context<'_>, _: u64, shard: u32, effects: &Effects) -> Result<(), Violation> {
        self.book.applied(shard, effects);
        Ok(())
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.stopped = true;
    }

    fn is_done(&self) -> bool {
        self.book.is_idle()
    }

    fn check(&mut self, view: &FinalView<'_>) -> Result<(), Violation> {
        self.book.close(view, &[], true)?;
        let checked = keys::check(&self.book.history)?;
        if !checked.undecided.is_empty() {
            return Err(invariants::LIN_1.broken(format!("the search gave up on {} keys", checked.undecided.len())));
        }
        revisions::check(&self.book.history)?;
        Ok(())
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        vec![("history_operations", self.book.history.operations().len() as u64)]
    }
}
