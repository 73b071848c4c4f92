//! The clients of a key space, as `keys` and `etcd` have them: each asks, waits for the answer, thinks, and asks again; what
//! they ask is the workload's own ([`Asks`]). The desk keeps what all of them share: the book, who has asked what, and what
//! somebody saw last of each key.

use std::collections::BTreeMap;

use buttress_core::{Entry, Revision, invariants::Violation, ledger::KeyValue};
use buttress_oracle::{History, Outcome as Known, What};
use buttress_state::{Effects, Machine, MemStore};
use bytes::Bytes;

use super::{
    Answer, Consistency, Context, FinalView, Op, Outcome, SHARDS, Workload,
    book::{Book, soon},
};
use crate::{MS, Us, rng::Rng};

pub(super) struct Desk {
    pub book: Book,
    /// Keys that there are.
    pub keys: u64,
    scope: &'static str,
    clients: u64,
    think: Us,
    stopped: bool,
    /// Whose operation it is.
    open: BTreeMap<Op, u32>,
    /// What somebody saw last of each key; `None`: that it is not there.
    known: BTreeMap<Bytes, Option<KeyValue>>,
    /// The latest revision that somebody heard of.
    newest: Revision,
    limit: BTreeMap<Op, usize>,
}

impl Desk {
    /// `scope`: the keys that nobody else writes.
    pub fn draw<const N: usize>(rng: &mut Rng, scope: &'static str, keys: [u64; N]) -> Self {
        let shard = rng.below(u64::from(SHARDS)) as u32;
        Self {
            book: Book::new(shard, Some(scope)),
            scope,
            clients: rng.range(2, 5),
            keys: rng.one(keys),
            think: rng.one([30 * MS, 100 * MS, 300 * MS]),
            stopped: false,
            open: BTreeMap::new(),
            known: BTreeMap::new(),
            newest: Revision(1),
            limit: BTreeMap::new(),
        }
    }

    pub fn numbered(&self, number: u64) -> Bytes {
        Bytes::from(format!("{}{number}", self.scope))
    }

    pub fn key(&self, rng: &mut Rng) -> Bytes {
        self.numbered(rng.below(self.keys))
    }

    pub fn value(&mut self) -> Bytes {
        Bytes::from(self.book.serial().to_string())
    }

    /// What somebody saw last of a key, if it was there.
    pub fn known(&self, key: &Bytes) -> Option<KeyValue> {
        self.known.get(key).cloned().flatten()
    }

    pub fn learn(&mut self, key: Bytes, seen: Option<KeyValue>) {
        self.known.insert(key, seen);
    }

    /// A revision that was the newest not long ago.
    pub fn past<const N: usize>(&self, rng: &mut Rng, back: [u64; N]) -> Revision {
        let back = rng.one(back);
        Revision(self.newest.0.saturating_sub(rng.below(back)).max(1))
    }

    pub fn consistency(rng: &mut Rng) -> Consistency {
        rng.one([Consistency::Linearizable, Consistency::Linearizable, Consistency::Serializable])
    }

    pub fn ask(&mut self, cx: &mut Context<'_>, client: u32, consistency: Consistency, what: What) {
        let op = self.book.read(cx, client, None, consistency, what);
        self.limit.insert(op, if cx.rng.percent(15) { 1 } else { usize::MAX });
        self.open.insert(op, client);
    }

    pub fn submit(&mut self, cx: &mut Context<'_>, client: u32, entry: Entry) {
        let op = self.book.submit(cx, client, entry);
        self.open.insert(op, client);
    }

    fn heard(&mut self, known: &Known) {
        let revision = match known {
            Known::Done(done) => done.revision.unwrap_or_default(),
            Known::Transacted { revision, .. } => *revision,
            Known::Found(found) => found.revision,
            _ => return,
        };
        self.newest = self.newest.max(revision);
    }

    fn again(&mut self, cx: &mut Context<'_>, op: Op) {
        let client = self.open.remove(&op).expect("it is one of ours");
        soon(cx, 2 * self.think, client.into());
    }
}

/// What the clients at a desk ask, and how what they saw is judged.
pub(super) trait Asks {
    const NAME: &'static str;

    /// Asks, or submits, once.
    fn next(&mut self, desk: &mut Desk, cx: &mut Context<'_>, client: u32);

    /// Somebody has read keys, no older than what anybody has heard of; `more`: it was cut short.
    fn seen(&self, desk: &mut Desk, kvs: Vec<KeyValue>, more: bool);

    /// # Errors
    /// The first invariant that does not hold.
    fn judge(&mut self, history: &History) -> Result<(), Violation>;

    fn tally(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// The workload of the clients at one desk.
pub(super) struct Clients<A> {
    pub desk: Desk,
    pub asks: A,
}

impl<A: Asks> Workload for Clients<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        for client in 0..self.desk.clients {
            soon(cx, 2 * self.desk.think, client);
        }
    }

    fn woken(&mut self, cx: &mut Context<'_>, token: u64) {
        if !self.desk.stopped {
            self.asks.next(&mut self.desk, cx, token as u32);
        }
    }

    fn ended(&mut self, cx: &mut Context<'_>, op: Op, outcome: Outcome) {
        let known = self.desk.book.ended(cx.now_us, op, &outcome);
        self.desk.heard(&known);
        self.desk.again(cx, op);
    }

    fn serve(&mut self, op: Op, machine: &Machine<MemStore>) -> Answer {
        let limit = self.desk.limit.get(&op).copied().unwrap_or(usize::MAX);
        self.desk.book.serve(op, machine, limit);
        Answer::default()
    }

    fn read_ended(&mut self, cx: &mut Context<'_>, op: Op, answer: Option<Answer>) {
        self.desk.limit.remove(&op);
        let known = self.desk.book.read_ended(cx.now_us, op, answer.is_some());
        let newest = self.desk.newest;
        self.desk.heard(&known);
        if let Known::Found(found) = known
            && found.revision >= newest
        {
            self.asks.seen(&mut self.desk, found.kvs, found.more);
        }
        self.desk.again(cx, op);
    }

    fn watches(&self) -> bool {
        true
    }

    fn applied(&mut self, _: &mut Context<'_>, _: u64, shard: u32, effects: &Effects) -> Result<(), Violation> {
        self.desk.book.applied(shard, effects);
        Ok(())
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.desk.stopped = true;
    }

    fn is_done(&self) -> bool {
        self.desk.book.is_idle()
    }

    fn check(&mut self, view: &FinalView<'_>) -> Result<(), Violation> {
        self.desk.book.close(view, &[], true)?;
        self.asks.judge(&self.desk.book.history)
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        let mut tally = vec![("history_operations", self.desk.book.history.operations().len() as u64)];
        tally.extend(self.asks.tally());
        tally
    }
}
