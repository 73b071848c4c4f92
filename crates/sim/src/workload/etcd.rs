//! What etcd's clients do: transactions that compare and then do one thing or another, with ranges, puts and deletes that
//! answer what was there, nested ones, ones under leases and ones that only look; reads with limits and of the past; leases
//! that are kept alive, revoked or left to expire. All on a handful of keys. In some worlds the watch workload compacts the
//! same key space, and takes the history that a retried transaction would be answered from. TXN-1, LIN-2 and LEASE-3.

use buttress_core::{
    Compare, DeleteOp, Entry, KeyRange, LeaseChange, LeaseId, Operand, Put, PutOp, RangeOp, Relation, Txn, TxnOp,
    invariants::Violation,
    ledger::KeyValue,
    txn::{SortOrder, SortTarget},
};
use buttress_oracle::{History, What, leases, txns};
use bytes::Bytes;

use super::{
    Consistency, Context, Workload,
    desk::{Asks, Clients, Desk},
};
use crate::rng::Rng;

const SCOPE: &str = "etcd/";
/// Of the shard's other workloads none grants leases from here on.
const FIRST_LEASE: i64 = 1 << 41;
/// Levels of transactions.
const DEPTH: u64 = 2;
/// How many revisions back somebody looks.
const PAST: [u64; 3] = [1, 4, 30];

struct Etcd {
    ttl_ms: u64,
    /// Leases that were granted and that nobody here has seen end.
    leases: Vec<LeaseId>,
    checked: txns::Checked,
}

pub fn draw(rng: &mut Rng) -> impl Workload + use<> {
    let desk = Desk::draw(rng, SCOPE, [2, 3, 6]);
    let ttl_ms = rng.one([150, 800, 3_000]);
    Clients { desk, asks: Etcd { ttl_ms, leases: Vec::new(), checked: txns::Checked::default() } }
}

fn range(desk: &Desk, rng: &mut Rng) -> KeyRange {
    match rng.below(4) {
        0 | 1 => KeyRange::key(desk.key(rng)),
        2 => KeyRange::prefix(SCOPE),
        _ => KeyRange { from: desk.key(rng), to: Some(desk.key(rng)) },
    }
}

impl Etcd {
    fn lease(&self, rng: &mut Rng) -> Option<LeaseId> {
        // Mostly a young one, which may still live.
        let from = self.leases.len().saturating_sub(3);
        rng.pick(&self.leases[from..])
    }

    fn compare(&self, desk: &Desk, rng: &mut Rng) -> Compare {
        let range = range(desk, rng);
        let known = desk.known(&range.from);
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

    fn range_op(&self, desk: &Desk, rng: &mut Rng) -> RangeOp {
        let mut op = RangeOp::new(range(desk, rng));
        if rng.percent(10) {
            op.revision = Some(desk.past(rng, PAST));
        }
        if rng.percent(25) {
            op.limit = rng.range(1, 3);
        }
        op.count_only = rng.percent(10);
        op.keys_only = rng.percent(10);
        if rng.percent(10) {
            op.min_mod_revision = Some(desk.past(rng, PAST));
        }
        if rng.percent(10) {
            op.max_create_revision = Some(desk.past(rng, PAST));
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

    fn put(&self, desk: &mut Desk, rng: &mut Rng) -> PutOp {
        let lease = if rng.percent(20) { self.lease(rng) } else { None };
        PutOp { key: desk.key(rng), value: desk.value(), lease, prev_kv: rng.percent(40), ..PutOp::default() }
    }

    fn ops(&self, desk: &mut Desk, rng: &mut Rng, changes: bool, depth: u64) -> Vec<TxnOp> {
        let mut ops = Vec::new();
        for _ in 0..rng.range(1, 4) {
            let op = match rng.below(100) {
                0..50 if changes => TxnOp::Put(self.put(desk, rng)),
                50..62 if changes => {
                    let range = if rng.percent(80) { KeyRange::key(desk.key(rng)) } else { range(desk, rng) };
                    TxnOp::Delete(DeleteOp { range, prev_kv: rng.percent(50) })
                }
                62..66 if changes => {
                    // What it puts beside it tells it apart from others that keep what is there.
                    ops.push(TxnOp::Put(self.put(desk, rng)));
                    let mut op = self.put(desk, rng);
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
                66..76 if depth > 1 => TxnOp::Txn(Box::new(self.txn(desk, rng, changes, depth - 1))),
                _ => TxnOp::Range(self.range_op(desk, rng)),
            };
            ops.push(op);
        }
        ops
    }

    fn txn(&self, desk: &mut Desk, rng: &mut Rng, changes: bool, depth: u64) -> Txn {
        let compares = (0..rng.below(3)).map(|_| self.compare(desk, rng)).collect();
        // The other way mostly looks, as clients do that want to try again.
        let changes_otherwise = changes && rng.percent(40);
        let success = self.ops(desk, rng, changes, depth);
        let failure = self.ops(desk, rng, changes_otherwise, depth);
        Txn { compares, success, failure }
    }
}

impl Asks for Etcd {
    const NAME: &'static str = "etcd";

    fn next(&mut self, desk: &mut Desk, cx: &mut Context<'_>, client: u32) {
        let mut entry = Entry::default();
        match cx.rng.below(100) {
            0..55 => {
                let mut txn = self.txn(desk, cx.rng, true, DEPTH);
                // Mostly one that changes no key twice; the others are refused.
                for _ in 0..4 {
                    if txn.check().is_ok() {
                        break;
                    }
                    txn = self.txn(desk, cx.rng, true, DEPTH);
                }
                entry.txn = Some(txn);
            }
            55..65 => {
                let txn = self.txn(desk, cx.rng, false, DEPTH);
                let consistency = Desk::consistency(cx.rng);
                let linearizable = consistency == Consistency::Linearizable;
                return desk.ask(cx, client, consistency, What::Txn { txn, linearizable });
            }
            65..80 => {
                let range = range(desk, cx.rng);
                let at = if cx.rng.percent(15) { Some(desk.past(cx.rng, PAST)) } else { None };
                let consistency = Desk::consistency(cx.rng);
                let linearizable = consistency == Consistency::Linearizable;
                return desk.ask(cx, client, consistency, What::Read { range, at, linearizable });
            }
            80..94 => {
                let lease = self.lease(cx.rng);
                entry.leases.push(match (cx.rng.below(3), lease) {
                    (1, Some(lease)) => LeaseChange::KeepAlive { lease },
                    (2, Some(lease)) => LeaseChange::Revoke { lease },
                    _ => {
                        let lease = LeaseId(FIRST_LEASE + desk.book.serial() as i64);
                        self.leases.push(lease);
                        LeaseChange::Grant { lease, ttl_ms: self.ttl_ms }
                    }
                });
            }
            _ => {
                let put = self.put(desk, cx.rng);
                entry.puts.push(Put { key: put.key, value: Some(put.value), lease: put.lease });
            }
        }
        desk.submit(cx, client, entry);
    }

    fn seen(&self, desk: &mut Desk, kvs: Vec<KeyValue>, _: bool) {
        for kv in kvs {
            desk.learn(kv.key.clone(), Some(kv));
        }
    }

    fn judge(&mut self, history: &History) -> Result<(), Violation> {
        self.checked = txns::check(history)?;
        leases::check(history)?;
        Ok(())
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("transactions", self.checked.transactions as u64),
            ("transactions_failed", self.checked.failed as u64),
            ("transactions_recovered", self.checked.recovered as u64),
        ]
    }
}
