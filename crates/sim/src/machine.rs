//! The production state machine with two hashes beside it: of the entries, and of everything they did.

use std::collections::BTreeMap;

use buttress_core::{
    AppendOutcome, Entry, Index, LeaseChange, LeaseId, Term, TimeMs,
    invariants::{LEASE_2, TIMER_1, Violation},
};
use buttress_state::{Effects, Machine, MemStore};
use bytes::Bytes;

use crate::rng::{mix, mix_bytes};

/// Every so many indexes the whole machine is hashed and its invariants are checked; on every replica at the same ones.
pub const FULL_EVERY: u64 = 128;

pub struct SimMachine {
    pub inner: Machine<MemStore>,
    /// Of all effects so far.
    pub rolling: u64,
}

/// An applied entry.
pub struct Step {
    pub entry_hash: u64,
    pub rolling: u64,
    pub full: Option<u64>,
    pub violation: Option<Violation>,
    pub effects: Effects,
    /// Leases whose time began anew, and that time.
    pub leases_set: Vec<(LeaseId, u64)>,
    /// It is the leader's expiry, and not a client's entry.
    pub expires: bool,
}

impl buttress_core::Machine for SimMachine {
    type Effects = Step;

    fn applied(&self) -> (Index, Term) {
        buttress_core::Machine::applied(&self.inner)
    }

    fn apply(&mut self, index: Index, term: Term, entry: Bytes) -> Step {
        let entry_hash = mix_bytes(0, &entry);
        let ending = Ending::of(&self.inner, &entry);
        let expires = ending.is_some();
        let changes = Entry::decode(entry.clone()).map(|entry| entry.leases).unwrap_or_default();
        let effects = buttress_core::Machine::apply(&mut self.inner, index, term, entry);
        self.rolling = effects_hash(mix(self.rolling, entry_hash), &effects);
        let due = index.0.is_multiple_of(FULL_EVERY);
        let full = due.then(|| self.inner.hash().expect("a store in memory can be read"));
        let checked = ending.map_or(Ok(()), |before| check_ended(&before, &self.inner, &effects));
        let violation = checked.and_then(|()| if due { check_all(&self.inner) } else { Ok(()) }).err();
        let mut leases_set = Vec::new();
        if effects.result.as_ref().is_ok_and(|receipt| !receipt.replayed) {
            for change in changes {
                let (LeaseChange::Grant { lease, .. } | LeaseChange::KeepAlive { lease }) = change else { continue };
                leases_set.extend(self.inner.leases().get(lease).map(|found| (lease, found.ttl_ms)));
            }
        }
        Step { entry_hash, rolling: self.rolling, full, violation, effects, leases_set, expires }
    }
}

/// What an expiry may end, as it was before: the deadlines of leases and timers.
struct Ending {
    leases: BTreeMap<LeaseId, TimeMs>,
    timers: BTreeMap<String, TimeMs>,
}

impl Ending {
    fn of(machine: &Machine<MemStore>, entry: &Bytes) -> Option<Self> {
        let entry = Entry::decode(entry.clone()).ok().filter(|entry| entry.expire)?;
        // What the entry itself grants, sets or ends is not judged; the leader's own expiries do nothing beside.
        let alone = entry.leases.is_empty() && entry.timers.is_empty();
        alone.then(|| Self {
            leases: machine.leases().iter().map(|(id, lease)| (id, lease.deadline)).collect(),
            timers: machine.timers().iter().map(|(id, timer)| (id.to_owned(), timer.due)).collect(),
        })
    }
}

/// LEASE-2 and TIMER-1: an expiry ends nothing before its time by the machine's clock.
fn check_ended(before: &Ending, machine: &Machine<MemStore>, effects: &Effects) -> Result<(), Violation> {
    let now = machine.clock();
    for lease in &effects.leases_ended {
        let deadline = before.leases.get(lease);
        LEASE_2.hold(deadline.is_some_and(|at| *at <= now), || {
            format!("lease {lease} ended at {now}, its deadline is {deadline:?}")
        })?;
    }
    for timer in &effects.timers_fired {
        let due = before.timers.get(timer);
        TIMER_1.hold(due.is_some_and(|at| *at <= now), || format!("timer {timer:?} fired at {now}, due {due:?}"))?;
    }
    Ok(())
}

/// What can be seen in one state of a machine and its store.
pub fn check_all(machine: &Machine<MemStore>) -> Result<(), Violation> {
    buttress_state::invariants::check(machine)?;
    buttress_state::invariants::check_batches(machine)
}

fn effects_hash(hash: u64, effects: &Effects) -> u64 {
    let mut hash = mix(mix(hash, effects.index.0), effects.term.0);
    match &effects.result {
        Ok(receipt) => {
            for number in [receipt.index.0, receipt.term.0, receipt.revision.0, receipt.time.0] {
                hash = mix(hash, number);
            }
            hash = mix(hash, u64::from(receipt.replayed));
            for append in &receipt.appends {
                hash = match append {
                    AppendOutcome::Appended { base_offset } => mix(hash, base_offset.0 as u64),
                    other => mix_bytes(hash, format!("{other:?}").as_bytes()),
                };
            }
            for (name, logs) in &receipt.created {
                hash = logs.iter().fold(mix_bytes(hash, name.as_bytes()), |hash, log| mix(hash, u64::from(log.0)));
            }
            if let Some(result) = &receipt.txn {
                hash = mix_bytes(hash, format!("{result:?}").as_bytes());
            }
        }
        Err(refusal) => hash = mix_bytes(hash, format!("{refusal:?}").as_bytes()),
    }
    for event in effects.events() {
        hash = mix_bytes(mix(hash, event.revision.0), &event.key);
        hash = match &event.value {
            Some(value) => mix_bytes(hash, value),
            None => mix(hash, 1),
        };
    }
    for (log, offset) in effects.ends.iter().chain(&effects.starts) {
        hash = mix(mix(hash, u64::from(log.0)), offset.0 as u64);
    }
    for (group, log, position) in &effects.cursors {
        let next = position.as_ref().map_or(-1, |position| position.next.0);
        hash = mix(mix(mix_bytes(hash, group.as_bytes()), u64::from(log.0)), next as u64);
    }
    for lease in &effects.leases_ended {
        hash = mix(hash, lease.0 as u64);
    }
    for timer in &effects.timers_fired {
        hash = mix_bytes(hash, timer.as_bytes());
    }
    hash
}
