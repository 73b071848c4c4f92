//! What etcd's clients do: transactions that compare and then do one thing or another, with ranges, puts and deletes that
//! answer what was there, nested ones, ones under leases and ones that only look; reads with limits and of the past; leases
//! that are kept alive, revoked or left to expire. All on a handful of keys. In some worlds the watch workload compacts the
//! same key space, and takes the history that a retried transaction would be answered from. TXN-1, LIN-2 and LEASE-3.

use std::collections::BTreeMap;

use buttress_core::{
    Compare, DeleteOp, Entry, KeyRange, LeaseChange, LeaseId, Operand, Put, PutOp, RangeOp, Relation, Revision, Txn,
    TxnOp,
    invariants::Violation,
    ledger::KeyValue,
    txn::{SortOrder, SortTarget},
};
use buttress_oracle::{Outcome as Known, What, leases, txns};
use buttress_state::{Effects, Machine, MemStore};
use bytes::Bytes;

use super::{
    Answer, Consistency, Context, FinalView, Op, Outcome, SHARDS, Workload,
    book::{Book, soon},
};
use crate::{MS, Us, rng::Rng};

const SCOPE: &str = "etcd/";
/// Of the shard's other workloads none grants leases from here on.
const FIRST_LEASE: i64 = 1 << 41;
/// Levels of transactions.
const DEPTH: u64 = 2;

pub struct Etcd {
    book: Book,
    clients: u64,
    keys: u64,
    think: Us,
    ttl_ms: u64,
    /// Leases that were granted and that nobody here has seen end.
    leases: Vec<LeaseId>,
    stopped: bool,
    open: BTreeMap<Op, u32>,
    /// What somebody saw last of each key; `None`: that it is not there.
    known: BTreeMap<Bytes, Option<KeyValue>>,
    newest: Revision,
    limit: BTreeMap<Op, usize>,
    checked: txns::Checked,
}

impl Etcd {
    pub fn draw(rng: &mut Rng) -> Self {
        let shard = rng.below(u64::from(SHARDS)) as u32;
        Self {
            book: Book::new(shard, Some(SCOPE)),
            clients: rng.range(2, 5),
            keys: rng.one([2, 3, 6]),
            think: rng.one([30 * MS, 100 * MS, 300 * MS]),
            ttl_ms: rng.one([150, 800, 3_000]),
            leases: Vec::new(),
            stopped: false,
            open: BTreeMap::new(),
            known: BTreeMap::new(),
            newest: Revision(1),
            limit: BTreeMap::new(),
            checked: txns::Checked::default(),
        }
    }

    fn key(&self, rng: &mut Rng) -> Bytes {
        Bytes::from(format!("{SCOPE}{}", rng.below(self.keys)))
    }

    fn value(&mut self) -> Bytes {
        Bytes::from(self.book.serial().to_string())
    }

    fn range(&self, rng: &mut Rng) -> KeyRange {
        match rng.below(4) {
            0 | 1 => KeyRange::key(self.key(rng)),
            2 => KeyRange::prefix(SCOPE),
            _ => KeyRange { from: self.key(rng), to: Some(self.key(rng)) },
        }
    }

    fn lease(&self, rng: &mut Rng) -> Option<LeaseId> {
        // Mostly a young one, which may still live.
        let from = self.leases.len().saturating_sub(3);
        rng.pick(&self.leases[from..])
    }

    fn past(&self, rng: &mut Rng) -> Revision {
        let back = rng.one([1, 4, 30]);
        Revision(self.newest.0.saturating_sub(rng.below(back)).max(1))
    }

    fn compare(&self, rng: &mut Rng) -> Compare {
        let range = self.range(rng);
        let known = self.known.get(&range.from).cloned().flatten();
        // Sometimes what nobody has seen.
        let off = i64::from(rng.percent(15));
        let number = |number: Option<u64>| number.unwrap_or(0) as i64 + off;
        let operand = match rng.below(5) {
            0 => Operand::Version(number(known.map(|kv| kv.version))),
            1 => Operand::CreateRevision(number(known.map(|kv| kv.create_revision.0))),
            2 => Operand::Value(known.map_or(Bytes::from_static(b"nothing"), |kv| kv.value)),
            3 => Operand::Lease(known.and_then(|kv| kv.lease).map_or(0, |lease| lease.0) + off),
            _ => Operand::ModRevision(number(known.map(|kv| kv.mod_revision.0))),
        };
        let relation = rng.one([
            Relation::Equal,
            Relation::Equal,
            Relation::Equal,
            Relation::NotEqual,
            Relation::Greater,
            Relation::Less,
        ]);
        Compare { range, relation, operand }
    }

    fn range_op(&self, rng: &mut Rng) -> RangeOp {
        let mut op = RangeOp::new(self.range(rng));
        if rng.percent(10) {
            op.revision = Some(self.past(rng));
        }
        if rng.percent(25) {
            op.limit = rng.range(1, 3);
        }
        op.count_only = rng.percent(10);
        op.keys_only = rng.percent(10);
        if rng.percent(10) {
            op.min_mod_revision = Some(self.past(rng));
        }
        if rng.percent(10) {
            op.max_create_revision = Some(self.past(rng));
        }
        if rng.percent(30) {
            op.order = rng.one([SortOrder::Ascending, SortOrder::Descending]);
            op.target = rng.one([
                SortTarget::Key,
                SortTarget::Version,
                SortTarget::CreateRevision,
                SortTarget::ModRevision,
                SortTarget::Value,
            ]);
        }
        op
    }

    fn put(&mut self, rng: &mut Rng) -> PutOp {
        let lease = if rng.percent(20) { self.lease(rng) } else { None };
        PutOp { key: self.key(rng), value: self.value(), lease, prev_kv: rng.percent(40), ..PutOp::default() }
    }

    fn ops(&mut self, rng: &mut Rng, changes: bool, depth: u64) -> Vec<TxnOp> {
        let mut ops = Vec::new();
        for _ in 0..rng.range(1, 4) {
            let op = match rng.below(100) {
                0..50 if changes => TxnOp::Put(self.put(rng)),
                50..62 if changes => {
                    let range = if rng.percent(80) { KeyRange::key(self.key(rng)) } else { self.range(rng) };
                    TxnOp::Delete(DeleteOp { range, prev_kv: rng.percent(50) })
                }
                62..66 if changes => {
                    // What it puts beside it tells it apart from others that keep what is there.
                    ops.push(TxnOp::Put(self.put(rng)));
                    let mut op = self.put(rng);
                    op.ignore_value = rng.percent(50);
                    op.ignore_lease = !op.ignore_value || rng.percent(30);
                    if op.ignore_value {
                        op.value = Bytes::new();
                    }
                    if op.ignore_lease {
                        op.lease = None;
                    }
                    TxnOp::Put(op)
                }
                66..76 if depth > 1 => TxnOp::Txn(Box::new(self.txn(rng, changes, depth - 1))),
                _ => TxnOp::Range(self.range_op(rng)),
            };
            ops.push(op);
        }
        ops
    }

    fn txn(&mut self, rng: &mut Rng, changes: bool, depth: u64) -> Txn {
        let compares = (0..rng.below(3)).map(|_| self.compare(rng)).collect();
        // The other way mostly looks, as clients do that want to try again.
        let changes_otherwise = changes && rng.percent(40);
        let success = self.ops(rng, changes, depth);
        let failure = self.ops(rng, changes_otherwise, depth);
        Txn { compares, success, failure }
    }

    fn ask(&mut self, cx: &mut Context<'_>, client: u32, what: impl FnOnce(bool) -> What) {
        let consistency = cx.rng.one([Consistency::Linearizable, Consistency::Linearizable, Consistency::Serializable]);
        let what = what(consistency == Consistency::Linearizable);
        let op = self.book.read(cx, client, None, consistency, what);
        self.limit.insert(op, if cx.rng.percent(15) { 1 } else { usize::MAX });
        self.open.insert(op, client);
    }

    fn next(&mut self, cx: &mut Context<'_>, client: u32) {
        if self.stopped {
            return;
        }
        let mut entry = Entry::default();
        match cx.rng.below(100) {
            0..55 => {
                let mut txn = self.txn(cx.rng, true, DEPTH);
                // Mostly one that changes no key twice; the others are refused.
                for _ in 0..4 {
                    if txn.check().is_ok() {
                        break;
                    }
                    txn = self.txn(cx.rng, true, DEPTH);
                }
                entry.txn = Some(txn);
            }
            55..65 => {
                let txn = self.txn(cx.rng, false, DEPTH);
                self.ask(cx, client, |linearizable| What::Txn { txn, linearizable });
                return;
            }
            65..80 => {
                let range = self.range(cx.rng);
                let at = if cx.rng.percent(15) { Some(self.past(cx.rng)) } else { None };
                self.ask(cx, client, |linearizable| What::Read { range, at, linearizable });
                return;
            }
            80..94 => {
                let lease = self.lease(cx.rng);
                entry.leases.push(match (cx.rng.below(3), lease) {
                    (1, Some(lease)) => LeaseChange::KeepAlive { lease },
                    (2, Some(lease)) => LeaseChange::Revoke { lease },
                    _ => {
                        let lease = LeaseId(FIRST_LEASE + self.book.serial() as i64);
                        self.leases.push(lease);
                        LeaseChange::Grant { lease, ttl_ms: self.ttl_ms }
                    }
                });
            }
            _ => {
                let put = self.put(cx.rng);
                entry.puts.push(Put { key: put.key, value: Some(put.value), lease: put.lease });
            }
        }
        let op = self.book.submit(cx, client, entry);
        self.open.insert(op, client);
    }

    fn again(&mut self, cx: &mut Context<'_>, op: Op) {
        let client = self.open.remove(&op).expect("it is one of ours");
        soon(cx, 2 * self.think, client.into());
    }
}

impl Workload for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
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
        match self.book.ended(cx.now_us, op, &outcome) {
            Known::Done(done) => self.newest = self.newest.max(done.revision.unwrap_or_default()),
            Known::Transacted { revision, .. } => self.newest = self.newest.max(revision),
            _ => {}
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
        match self.book.read_ended(cx.now_us, op, answer.is_some()) {
            Known::Found(found) => {
                if found.revision >= self.newest {
                    for kv in found.kvs {
                        self.known.insert(kv.key.clone(), Some(kv));
                    }
                }
                self.newest = self.newest.max(found.revision);
            }
            Known::Transacted { revision, .. } => self.newest = self.newest.max(revision),
            _ => {}
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
        self.checked = txns::check(&self.book.history)?;
        leases::check(&self.book.history)?;
        Ok(())
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("history_operations", self.book.history.operations().len() as u64),
            ("transactions", self.checked.transactions as u64),
            ("transactions_failed", self.checked.failed as u64),
            ("transactions_recovered", self.checked.recovered as u64),
        ]
    }
}
