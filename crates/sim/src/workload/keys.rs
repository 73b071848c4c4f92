//! Keys: puts, deletes, compare-and-set on everything that a guard can ask for, transactions over several keys, reads of
//! the present, of the past and of what a node happens to know, all on a handful of keys, so that they get in each other's
//! way. What everybody saw is judged by LIN-1 and LIN-2.

use std::collections::BTreeMap;

use buttress_core::{
    Entry, Guard, KeyRange, Put, Revision,
    invariants::{self, Violation},
    ledger::KeyValue,
};
use buttress_oracle::{History, What, keys, revisions};
use bytes::Bytes;

use super::{
    Consistency, Context, Workload,
    desk::{Asks, Clients, Desk},
};
use crate::rng::Rng;

const SCOPE: &str = "keys/";

struct Keys {
    /// Of a hundred entries, how many ask only to change something that was seen before.
    guarded: u64,
}

pub fn draw(rng: &mut Rng) -> impl Workload + use<> {
    let desk = Desk::draw(rng, SCOPE, [1, 2, 3, 6]);
    Clients { desk, asks: Keys { guarded: rng.one([20, 60, 90]) } }
}

fn guard(desk: &Desk, rng: &mut Rng, key: Bytes) -> Guard {
    let known = desk.known(&key);
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

fn put(desk: &mut Desk, rng: &mut Rng) -> Put {
    let value = rng.percent(75).then(|| desk.value());
    Put { key: desk.key(rng), value, lease: None }
}

fn range(desk: &Desk, rng: &mut Rng) -> KeyRange {
    match rng.below(3) {
        0 => KeyRange::key(desk.key(rng)),
        1 => KeyRange::prefix(SCOPE),
        _ => KeyRange { from: desk.key(rng), to: Some(desk.key(rng)) },
    }
}

impl Asks for Keys {
    const NAME: &'static str = "keys";

    fn next(&mut self, desk: &mut Desk, cx: &mut Context<'_>, client: u32) {
        if cx.rng.percent(45) {
            let consistency = Desk::consistency(cx.rng);
            let at = cx.rng.percent(15).then(|| desk.past(cx.rng, [1, 5, 40]));
            let linearizable = consistency == Consistency::Linearizable;
            let what = What::Read { range: range(desk, cx.rng), at, linearizable };
            return desk.ask(cx, client, consistency, what);
        }
        let mut entry = Entry::default();
        let puts = if cx.rng.percent(60) { 1 } else { cx.rng.range(2, 4) };
        for _ in 0..puts {
            let put = put(desk, cx.rng);
            if cx.rng.percent(self.guarded) {
                // On the key that is written, or on another one.
                let key = if cx.rng.percent(70) { put.key.clone() } else { desk.key(cx.rng) };
                entry.guards.push(guard(desk, cx.rng, key));
            }
            entry.puts.push(put);
        }
        if cx.rng.percent(3) {
            // A question only: who asks so wants to know whether it still holds.
            entry.puts.clear();
        }
        desk.submit(cx, client, entry);
    }

    fn seen(&self, desk: &mut Desk, kvs: Vec<KeyValue>, more: bool) {
        if more {
            return;
        }
        let seen: BTreeMap<Bytes, KeyValue> = kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        for number in 0..desk.keys {
            let key = desk.numbered(number);
            let kv = seen.get(&key).cloned();
            desk.learn(key, kv);
        }
    }

    fn judge(&mut self, history: &History) -> Result<(), Violation> {
        let checked = keys::check(history)?;
        if !checked.undecided.is_empty() {
            return Err(invariants::LIN_1.broken(format!("the search gave up on {} keys", checked.undecided.len())));
        }
        revisions::check(history)?;
        Ok(())
    }
}
