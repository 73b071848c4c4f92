//! Locks: clients that take one, write under it, keep its lease alive or do not, pause for longer than it lives, and go on
//! as if they still held it. Only the fencing token stands between them and each other's data. LOCK-1, LEASE-3, and LIN-2
//! for what was written.

use std::collections::BTreeMap;

use buttress_core::{Entry, Guard, KeyRange, LeaseChange, LeaseId, Put, Revision, invariants::Violation};
use buttress_oracle::{Outcome as Known, What, leases, locks, revisions};
use buttress_state::{Effects, Machine, MemStore};
use bytes::Bytes;

use super::{
    Answer, Consistency, Context, FinalView, Op, Outcome, SHARDS, Workload,
    book::{Book, soon},
};
use crate::{MS, SEC, Us, rng::Rng};

const SCOPE: &str = "lock/";
/// Of the shard's other workloads none grants leases from here on.
const FIRST_LEASE: i64 = 1 << 40;

/// What a client believes.
#[derive(Clone, Debug)]
enum Belief {
    Free,
    /// It asked for the lock and was not told; what it put under it tells.
    Perhaps {
        lock: u64,
        name: Bytes,
        lease: LeaseId,
    },
    Holder {
        lock: u64,
        token: Revision,
        lease: LeaseId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Take,
    Look,
    Write,
    KeepAlive,
    Release,
}

pub struct Locks {
    book: Book,
    beliefs: Vec<Belief>,
    locks: u64,
    think: Us,
    ttl_ms: u64,
    /// Of a hundred thoughts, how many are long ones.
    pauses: u64,
    stopped: bool,
    open: BTreeMap<Op, (u32, Asked)>,
    fenced: u64,
    tokens: u64,
}

fn lock_key(lock: u64) -> Bytes {
    Bytes::from(format!("{SCOPE}of/{lock}"))
}

fn held(lock: u64, token: Revision) -> Guard {
    Guard::CreateRevision { key: lock_key(lock), revision: token }
}

impl Locks {
    pub fn draw(rng: &mut Rng) -> Self {
        let shard = rng.below(u64::from(SHARDS)) as u32;
        Self {
            book: Book::new(shard, Some(SCOPE)),
            beliefs: vec![Belief::Free; rng.range(2, 4) as usize],
            locks: rng.one([1, 1, 2]),
            think: rng.one([20 * MS, 100 * MS]),
            ttl_ms: rng.one([150, 800, 3_000]),
            pauses: rng.one([2, 10, 30]),
            stopped: false,
            open: BTreeMap::new(),
            fenced: 0,
            tokens: 0,
        }
    }

    fn submit(&mut self, cx: &mut Context<'_>, client: u32, asked: Asked, entry: Entry) {
        let op = self.book.submit(cx, client, entry);
        self.open.insert(op, (client, asked));
    }

    fn look(&mut self, cx: &mut Context<'_>, client: u32, lock: u64) {
        let what = What::Read { range: KeyRange::key(lock_key(lock)), at: None, linearizable: true };
        let op = self.book.read(cx, client, None, Consistency::Linearizable, what);
        self.open.insert(op, (client, Asked::Look));
    }

    fn next(&mut self, cx: &mut Context<'_>, client: u32) {
        if self.stopped {
            return;
        }
        match self.beliefs[client as usize].clone() {
            Belief::Free if cx.rng.percent(20) => {
                let lock = cx.rng.below(self.locks);
                self.look(cx, client, lock);
            }
            Belief::Free => {
                let lock = cx.rng.below(self.locks);
                let lease = LeaseId(FIRST_LEASE + self.book.serial() as i64);
                let name = Bytes::from(format!("{client}-{}", self.book.serial()));
                self.beliefs[client as usize] = Belief::Perhaps { lock, name: name.clone(), lease };
                let entry = Entry {
                    guards: vec![held(lock, Revision(0))],
                    leases: vec![LeaseChange::Grant { lease, ttl_ms: self.ttl_ms }],
                    puts: vec![Put { key: lock_key(lock), value: Some(name), lease: Some(lease) }],
                    ..Entry::default()
                };
                self.submit(cx, client, Asked::Take, entry);
            }
            Belief::Perhaps { lock, .. } => self.look(cx, client, lock),
            Belief::Holder { lock, token, lease } => match cx.rng.below(100) {
                0..55 => {
                    let value = Bytes::from(self.book.serial().to_string());
                    let key = Bytes::from(format!("{SCOPE}data/{lock}"));
                    // Some of it goes when the lease does.
                    let own = cx.rng.percent(20).then_some(lease);
                    let key = if own.is_some() { Bytes::from(format!("{SCOPE}own/{client}")) } else { key };
                    let entry = Entry {
                        guards: vec![held(lock, token)],
                        puts: vec![Put { key, value: Some(value), lease: own }],
                        ..Entry::default()
                    };
                    self.submit(cx, client, Asked::Write, entry);
                }
                55..80 => {
                    let leases = vec![LeaseChange::KeepAlive { lease }];
                    self.submit(cx, client, Asked::KeepAlive, Entry { leases, ..Entry::default() });
                }
                80..88 => self.look(cx, client, lock),
                88..95 => {
                    let leases = vec![LeaseChange::Revoke { lease }];
                    self.submit(cx, client, Asked::Release, Entry { leases, ..Entry::default() });
                }
                _ => {
                    let entry = Entry {
                        guards: vec![held(lock, token)],
                        puts: vec![Put { key: lock_key(lock), value: None, lease: None }],
                        ..Entry::default()
                    };
                    self.submit(cx, client, Asked::Release, entry);
                }
            },
        }
    }

    fn again(&mut self, cx: &mut Context<'_>, client: u32) {
        let pause = cx.rng.percent(self.pauses);
        if pause {
            let pause = cx.rng.range(100 * MS, 5 * SEC);
            cx.wake(pause, client.into());
        } else {
            soon(cx, 2 * self.think, client.into());
        }
    }
}

impl Workload for Locks {
    fn name(&self) -> &'static str {
        "locks"
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        for client in 0..self.beliefs.len() as u32 {
            self.again(cx, client);
        }
    }

    fn woken(&mut self, cx: &mut Context<'_>, token: u64) {
        self.next(cx, token as u32);
    }

    fn ended(&mut self, cx: &mut Context<'_>, op: Op, outcome: Outcome) {
        let known = self.book.ended(cx.now_us, op, &outcome);
        let (client, asked) = self.open.remove(&op).expect("it is one of ours");
        let belief = &mut self.beliefs[client as usize];
        match (asked, known, belief.clone()) {
            (Asked::Take, Known::Done(done), Belief::Perhaps { lock, lease, .. }) => {
                let token = done.revision.expect("a receipt has its revision");
                *belief = Belief::Holder { lock, token, lease };
            }
            (Asked::Take, Known::Refused { .. }, _) => *belief = Belief::Free,
            // It is somebody else's by now, or it was given back before.
            (Asked::Write | Asked::Release, Known::Refused { .. }, _) => *belief = Belief::Free,
            (Asked::Release, Known::Done(_), _) => *belief = Belief::Free,
            // A client that hears that its lease is gone should stop. This one does not always.
            (Asked::KeepAlive, Known::Refused { .. }, _) if cx.rng.percent(50) => *belief = Belief::Free,
            _ => {}
        }
        self.again(cx, client);
    }

    fn serve(&mut self, op: Op, machine: &Machine<MemStore>) -> Answer {
        self.book.serve(op, machine, usize::MAX);
        Answer::default()
    }

    fn read_ended(&mut self, cx: &mut Context<'_>, op: Op, answer: Option<Answer>) {
        let known = self.book.read_ended(cx.now_us, op, answer.is_some());
        let (client, _) = self.open.remove(&op).expect("it is one of ours");
        let belief = &mut self.beliefs[client as usize];
        if let (Known::Found(found), Belief::Perhaps { lock, name, lease }) = (known, belief.clone()) {
            *belief = match found.kvs.first() {
                Some(kv) if kv.value == name => Belief::Holder { lock, token: kv.create_revision, lease },
                _ => Belief::Free,
            };
        }
        self.again(cx, client);
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
        let checked = locks::check(&self.book.history, &KeyRange::prefix(format!("{SCOPE}of/")))?;
        self.fenced = checked.fenced as u64;
        self.tokens = checked.tokens as u64;
        leases::check(&self.book.history)?;
        revisions::check(&self.book.history)?;
        Ok(())
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        let operations = self.book.history.operations().len() as u64;
        vec![("history_operations", operations), ("lock_tokens", self.tokens), ("lock_fenced", self.fenced)]
    }
}
