//! What must hold, looked at whenever something happens. A violation ends the run.

use std::collections::VecDeque;

use buttress_consensus::{Members, Restored};
use buttress_core::{
    Code, Entry, Index, Machine as _, NodeId, Refusal, Term,
    clock::{AGREE_MS, SLEW_PERCENT},
    invariants,
};
use buttress_wal::{Job, ShardLog};
use bytes::Bytes;

use super::{Checkpoint, World};
use crate::{
    MS, Us,
    machine::{Step, check_all},
    rng::mix_bytes,
    schedule::Fault,
    workload::{Fact, SHARDS},
};

/// What a node's log was told to be durable of a shard, kept outside the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shadow {
    first: u64,
    terms: VecDeque<u64>,
    hard_state: Option<buttress_wal::HardState>,
}

impl Shadow {
    pub fn take(&mut self, job: &Job) {
        if let Some(marker) = &job.marker {
            self.terms.clear();
            self.first = marker.index.0 + 1;
        }
        for entry in &job.entries {
            self.push(entry.index.0, entry.term.0);
        }
        if job.hard_state.is_some() {
            self.hard_state = job.hard_state;
        }
    }

    fn push(&mut self, index: u64, term: u64) {
        if self.terms.is_empty() || index < self.first {
            self.terms.clear();
            self.first = index;
        }
        self.terms.truncate((index - self.first) as usize);
        self.terms.push_back(term);
    }

    /// The log as it was founded.
    pub fn found(&mut self, restored: &Restored) {
        *self = Self::default();
        for entry in &restored.entries {
            self.push(entry.index.0, entry.term.0);
        }
        if !restored.entries.is_empty() {
            let state = restored.hard_state;
            self.hard_state = Some(buttress_wal::HardState {
                term: state.term,
                vote: state.vote.unwrap_or_default(),
                commit: state.commit,
            });
        }
    }

    pub fn restore(&mut self, kept: &ShardLog) {
        *self = Self { hard_state: kept.hard_state, ..Self::default() };
        for entry in &kept.entries {
            self.push(entry.index.0, entry.term.0);
        }
    }

    fn term_at(&self, index: Index) -> Option<u64> {
        self.terms.get(index.0.checked_sub(self.first)? as usize).copied()
    }

    /// Whether a log holds what this says above the store, and nothing else.
    fn agrees(&self, kept: &ShardLog, stored: Index) -> bool {
        let above = kept.entries.partition_point(|entry| entry.index <= stored);
        let kept_above = kept.entries[above..].iter().map(|entry| (entry.index.0, entry.term.0));
        let mine = (self.first..).zip(self.terms.iter().copied()).filter(|(index, _)| *index > stored.0);
        kept.hard_state == self.hard_state && kept_above.eq(mine)
    }
}

fn majority(ids: &[NodeId], holds: impl Fn(u64) -> bool) -> bool {
    2 * ids.iter().filter(|id| holds(id.0)).count() > ids.len()
}

impl World {
    /// Whether a node's disk was told to keep this entry, or a state after it.
    pub(crate) fn holds(&self, id: u64, shard: u32, index: Index, term: Term) -> bool {
        let node = self.node(id);
        let stored = node.stores[shard as usize].as_ref().is_some_and(|stored| stored.meta.index >= index);
        stored || node.shadows[shard as usize].term_at(index) == Some(term.0)
    }

    /// Whether a node knows after any crash that this index is committed.
    pub(crate) fn knows_committed(&self, id: u64, shard: u32, index: Index) -> bool {
        let node = self.node(id);
        let stored = node.stores[shard as usize].as_ref().is_some_and(|stored| stored.meta.index >= index);
        stored || node.shadows[shard as usize].hard_state.is_some_and(|state| state.commit >= index)
    }

    /// LEADER-1.
    pub(crate) fn check_leader(&mut self, id: u64, shard: u32, term: Term) {
        let leader = *self.groups[shard as usize].leaders.entry(term).or_insert(id);
        if leader != id {
            self.fail(invariants::LEADER_1, format!("term {term} of shard {shard} has the leaders {leader} and {id}"));
        }
    }

    /// An entry was proposed. The same bytes may be proposed again, by another leader.
    pub(crate) fn note_proposed(&mut self, shard: u32, data: &Bytes) {
        let counts = Entry::decode(data.clone()).is_ok_and(|entry| entry.expire || !entry.leases.is_empty());
        if counts {
            let times = self.groups[shard as usize].proposed.entry(mix_bytes(0, data)).or_insert((self.now, self.now));
            times.1 = self.now;
        }
    }

    /// LEASE-4: what an expiry ends had its time, in true time, since the entry that gave it was proposed. A monotonic clock
    /// that goes too fast takes its part, as nobody can tell.
    fn check_leases(&mut self, shard: u32, index: Index, step: &Step) -> bool {
        let drift = |(_, fault): &(Us, Fault)| if let Fault::ClockDrift { ppm, .. } = fault { *ppm } else { 0 };
        let fastest = self.faults.iter().map(drift).max().unwrap_or(0).max(0) as u64;
        let group = &mut self.groups[shard as usize];
        let proposed = group.proposed.get(&step.entry_hash).copied();
        let mut early = None;
        for lease in &step.effects.leases_ended {
            let Some((ttl_ms, since)) = group.leases.remove(lease) else { continue };
            let Some((_, at)) = proposed.filter(|_| step.expires) else { continue };
            let counted = (at - since) * (100 + SLEW_PERCENT) / 100 * (1_000_000 + fastest) / 1_000_000;
            if counted + (AGREE_MS + 2) * MS < ttl_ms * MS {
                let had = (at - since) / MS;
                early =
                    Some(format!("shard {shard} at {index}: lease {lease} of {ttl_ms} ms was ended after {had} ms"));
            }
        }
        for (lease, ttl_ms) in &step.leases_set {
            let (since, _) = proposed.expect("a leader proposed it");
            group.leases.insert(*lease, (*ttl_ms, since));
        }
        if let Some(found) = early {
            self.fail(invariants::LEASE_4, found);
            return false;
        }
        true
    }

    /// LOG-1, STATE-1, COMMIT-1 and what the machine says of itself.
    pub(crate) fn check_applied(&mut self, id: u64, shard: u32, index: Index, term: Term, step: &Step) -> bool {
        if let Some(violation) = &step.violation {
            self.fail_with(violation.id, format!("node {id} shard {shard} at {index}: {}", violation.found));
            return false;
        }
        let group = &mut self.groups[shard as usize];
        let known = group.facts.len() as u64;
        if index.0 <= known {
            let fact = &mut group.facts[index.0 as usize - 1];
            let found = format!("node {id} shard {shard} at {index}@{term}, first applied as @{}", fact.term);
            let (log, state) = (
                (fact.term, fact.entry_hash) == (term, step.entry_hash),
                fact.rolling == step.rolling && (step.full.is_none() || fact.full.is_none() || fact.full == step.full),
            );
            if fact.full.is_none() {
                fact.full = step.full;
            }
            if !log {
                self.fail(invariants::LOG_1, format!("{found}, is another entry"));
            } else if !state {
                self.fail(invariants::STATE_1, format!("{found}, gives another state"));
            }
            return log && state;
        }
        if index.0 != known + 1 {
            self.fail(invariants::LOG_1, format!("node {id} shard {shard} applies {index} when {known} is the last"));
            return false;
        }
        if !self.check_leases(shard, index, step) {
            return false;
        }
        let request = step.effects.request;
        let op = request.and_then(|request| self.ops.get(&(request.client, request.number)).copied());
        let (applied, replayed) = match &step.effects.result {
            Ok(receipt) => (true, receipt.replayed),
            Err(_) => (false, false),
        };
        let forgotten = matches!(&step.effects.result, Err(Refusal::Part { code: Code::TIMEOUT, .. }));
        let fact = Fact {
            term,
            request,
            op,
            replayed,
            applied,
            forgotten,
            entry_hash: step.entry_hash,
            rolling: step.rolling,
            full: step.full,
        };
        self.groups[shard as usize].facts.push(fact);
        self.check_committed(id, shard, index, term)
    }

    /// COMMIT-1. Which members counted when the leader committed it is known but for the last few changes, so any of
    /// them will do.
    fn check_committed(&mut self, id: u64, shard: u32, index: Index, term: Term) -> bool {
        if index.0 <= 1 {
            return true;
        }
        let holds = |id: u64| (id as usize) <= self.nodes.len() && self.holds(id, shard, index, term);
        let configs = &self.groups[shard as usize].configs;
        let committed = configs.values().rev().take(4).any(|members| {
            majority(&members.voters, holds)
                && (members.voters_outgoing.is_empty() || majority(&members.voters_outgoing, holds))
        });
        if !committed && !configs.is_empty() {
            let members = self.members(shard);
            let on: Vec<u64> = (1..=self.nodes.len() as u64).filter(|id| holds(*id)).collect();
            self.fail(
                invariants::COMMIT_1,
                format!("node {id} shard {shard} applied {index}@{term}, durable on {on:?} of {members:?}"),
            );
            return false;
        }
        true
    }

    /// Members are part of the state: equal at equal indexes.
    pub(crate) fn learn_members(&mut self, id: u64, shard: u32, index: Index, members: &Members) {
        let configs = &mut self.groups[shard as usize].configs;
        if index.0 == 0 || members.is_empty() {
            return;
        }
        if let Some(known) = configs.get(&index) {
            if known != members {
                let found = format!("node {id} shard {shard} has {members:?} at {index}, others {known:?}");
                self.fail(invariants::STATE_1, found);
            }
        } else if configs.last_key_value().is_none_or(|(last, known)| *last < index && known != members) {
            configs.insert(index, members.clone());
            self.count("member_changes_applied");
        }
    }

    /// What the log kept is what it had said to be durable, and at most what was being written on top.
    pub(crate) fn check_kept(&mut self, id: u64, shard: u32, kept: &ShardLog) {
        let node = self.node(id);
        if node.incarnation <= 1 {
            return;
        }
        let stored = node.stores[shard as usize].as_ref().map_or(Index(0), |stored| stored.meta.index);
        let promised = &node.shadows[shard as usize];
        let mut with_flight = promised.clone();
        node.in_flight.iter().filter(|job| job.shard == shard).for_each(|job| with_flight.take(job));
        if promised.agrees(kept, stored) || with_flight.agrees(kept, stored) {
            return;
        }
        let kept_range = (kept.entries.first().map(|e| e.index.0), kept.entries.last().map(|e| (e.index.0, e.term.0)));
        let found = format!(
            "node {id} shard {shard} restarts with {:?} {kept_range:?} above {stored}; promised were {:?} {} to {}",
            kept.hard_state,
            promised.hard_state,
            promised.first,
            promised.first + promised.terms.len() as u64,
        );
        self.fail(invariants::DURABLE_1, found);
    }

    /// A restarted machine is the one that others had at this index.
    pub(crate) fn check_restored(&mut self, id: u64, shard: u32) {
        let host = self.node(id).host.as_ref().expect("it runs");
        let machine = host.shards[shard as usize].replica.machine();
        let (index, rolling) = (machine.applied().0, machine.rolling);
        self.check_state(id, shard, index, rolling);
    }

    pub(crate) fn check_snapshot(&mut self, id: u64, shard: u32, state: &Checkpoint) {
        self.check_state(id, shard, state.meta.index, state.rolling);
    }

    fn check_state(&mut self, id: u64, shard: u32, index: Index, rolling: u64) {
        if index.0 == 0 {
            return;
        }
        let fact = self.groups[shard as usize].facts.get(index.0 as usize - 1);
        if fact.is_none_or(|fact| fact.rolling != rolling) {
            self.fail(invariants::STATE_1, format!("node {id} shard {shard} stands at {index} with another state"));
        }
    }

    /// Everything, when all is over.
    pub(crate) fn final_check(&mut self) {
        for shard in 0..SHARDS {
            let members = self.members(shard).all();
            let mut first: Option<(u64, Index, u64)> = None;
            for member in members {
                let host = self.node(member.0).host.as_ref().expect("members run at the end");
                let machine = &host.shards[shard as usize].replica.machine();
                let index = machine.applied().0;
                let hash = machine.inner.hash().expect("a store in memory can be read");
                let violation = check_all(&machine.inner).err();
                let reopened = match first {
                    None => buttress_state::invariants::check_reopen(&machine.inner)
                        .expect("a store in memory can be read")
                        .err(),
                    Some(_) => None,
                };
                if let Some(violation) = violation.or(reopened) {
                    self.fail_with(violation.id, format!("node {member} shard {shard}: {}", violation.found));
                    return;
                }
                match first {
                    None => first = Some((member.0, index, hash)),
                    Some((other, at, other_hash)) if at == index && hash != other_hash => {
                        self.fail(
                            invariants::STATE_1,
                            format!("nodes {other} and {member} differ at {index} of shard {shard}"),
                        );
                        return;
                    }
                    Some(_) => {}
                }
            }
            let group = &self.groups[shard as usize];
            if group.acknowledged.0 > group.facts.len() as u64 {
                let (acknowledged, end) = (group.acknowledged, group.facts.len());
                self.fail(invariants::DURABLE_1, format!("{acknowledged} was acknowledged and the log ends at {end}"));
                return;
            }
        }
        let result =
            self.with_final_view(|workloads, view| workloads.iter_mut().try_for_each(|workload| workload.check(view)));
        if let Err(violation) = result {
            self.fail_with(violation.id, violation.found);
        }
    }
}
