//! Leases that live for seconds, some kept alive and some not. Those of the other workloads are short, so that
//! many end; a clock that takes seconds from a lease shows on one that has them. The world checks every one (LEASE-4).

use std::collections::BTreeMap;

use buttress_core::{Entry, LeaseChange, LeaseId, invariants::Violation};

use super::{Context, FinalView, Op, Outcome, SHARDS, Workload};
use crate::{MS, Us, rng::Rng};

/// Nobody else's leases have these numbers.
const FIRST_LEASE: i64 = 1 << 42;
/// One time for each client's leases.
const TTLS_MS: [u64; 4] = [2_000, 3_000, 5_000, 15_000];

#[derive(Clone, Copy)]
enum Asked {
    Grant,
    KeepAlive,
}

/// A client, who has one lease at a time.
struct Client {
    ttl_ms: u64,
    lease: Option<LeaseId>,
}

pub struct Leases {
    shard: u32,
    clients: Vec<Client>,
    next_lease: i64,
    /// Of a hundred thoughts, how many are of leaving the lease to itself.
    forgets: u64,
    stopped: bool,
    open: BTreeMap<Op, (u32, Asked)>,
    kept: u64,
}

impl Leases {
    pub fn draw(rng: &mut Rng) -> Self {
        Self {
            shard: rng.below(u64::from(SHARDS)) as u32,
            clients: TTLS_MS.map(|ttl_ms| Client { ttl_ms, lease: None }).into(),
            next_lease: FIRST_LEASE,
            forgets: rng.one([0, 5, 30]),
            stopped: false,
            open: BTreeMap::new(),
            kept: 0,
        }
    }

    fn submit(&mut self, cx: &mut Context<'_>, client: u32, asked: Asked, change: LeaseChange) {
        let op = cx.submit(client, self.shard, Entry { leases: vec![change], ..Entry::default() });
        self.open.insert(op, (client, asked));
    }

    /// A lease shows that it lost time when it has little left, so mostly it is kept alive late.
    fn think(&self, cx: &mut Context<'_>, client: u32) {
        let ttl = self.clients[client as usize].ttl_ms * MS;
        let after: Us = if cx.rng.percent(30) { ttl / 10 } else { cx.rng.range(ttl / 2, ttl * 9 / 10) };
        cx.wake(after, client.into());
    }
}

impl Workload for Leases {
    fn name(&self) -> &'static str {
        "leases"
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        for client in 0..self.clients.len() {
            self.think(cx, client as u32);
        }
    }

    fn woken(&mut self, cx: &mut Context<'_>, token: u64) {
        if self.stopped {
            return;
        }
        let (number, forgets) = (token as u32, cx.rng.percent(self.forgets));
        let client = &mut self.clients[number as usize];
        if forgets {
            client.lease = None;
        }
        match client.lease {
            Some(lease) => self.submit(cx, number, Asked::KeepAlive, LeaseChange::KeepAlive { lease }),
            None => {
                let (lease, ttl_ms) = (LeaseId(self.next_lease), client.ttl_ms);
                self.next_lease += 1;
                client.lease = Some(lease);
                self.submit(cx, number, Asked::Grant, LeaseChange::Grant { lease, ttl_ms });
            }
        }
    }

    fn ended(&mut self, cx: &mut Context<'_>, op: Op, outcome: Outcome) {
        let (number, asked) = self.open.remove(&op).expect("it was submitted");
        match (asked, outcome) {
            (Asked::KeepAlive, Outcome::Acknowledged(_)) => self.kept += 1,
            // It ended, or was never granted.
            (_, Outcome::Refused(_)) => self.clients[number as usize].lease = None,
            _ => {}
        }
        self.think(cx, number);
    }

    fn stop(&mut self, _cx: &mut Context<'_>) {
        self.stopped = true;
    }

    fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    fn check(&mut self, _view: &FinalView<'_>) -> Result<(), Violation> {
        Ok(())
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        vec![("leases_kept", self.kept)]
    }
}
