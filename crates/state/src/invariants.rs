//! Checks of what must always hold of a machine. The ids and their sentences are core's registry; tests and the simulator
//! check all of it after every entry they apply.

use std::collections::{BTreeMap, BTreeSet};

pub use buttress_core::invariants::*;
use buttress_core::{LogId, Offset, Revision, Store, StoreError};

use crate::{MemStore, machine::Machine};

fn held(condition: bool, invariant: Invariant, found: impl FnOnce() -> String) -> Result<(), Violation> {
    invariant.hold(condition, found)
}

/// Checks what can be seen in one state of the machine.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check<S: Store>(machine: &Machine<S>) -> Result<(), Violation> {
    check_topics(machine)?;
    check_keys(machine)?;
    check_time(machine)?;
    check_requests(machine)
}

fn check_topics<S: Store>(machine: &Machine<S>) -> Result<(), Violation> {
    let topics = &machine.topics;
    let mut owned = BTreeSet::new();
    for (name, topic) in &topics.topics {
        for log in &topic.logs {
            held(owned.insert(*log), TOPIC_1, || format!("log {log} belongs to two topics"))?;
            held(log.0 < topics.next_log, TOPIC_1, || format!("log {log} is not below the next one"))?;
            let partition = topics.partitions.get(log);
            held(partition.is_some_and(|p| p.topic == *name), TOPIC_1, || format!("log {log} does not name {name:?}"))?;
        }
    }
    held(owned.len() == topics.partitions.len(), TOPIC_1, || "a partition without a topic".into())?;
    for (log, partition) in &topics.partitions {
        let (start, end) = (partition.start, partition.end);
        held(Offset(0) <= start && start <= end, OFFSET_2, || format!("log {log} holds {start} to {end}"))?;
        held(partition.trimmed <= partition.appended, OFFSET_2, || format!("log {log} trimmed more than it had"))?;
        let mut last = (start, partition.trimmed);
        for mark in &partition.marks {
            held(mark.offset > last.0 && mark.offset < end && mark.bytes >= last.1, OFFSET_2, || {
                format!("log {log} has {mark:?} after {last:?}")
            })?;
            last = (mark.offset, mark.bytes);
        }
        for (name, producer) in &partition.producers {
            let recent = producer.recent();
            held(recent.is_sorted_by(|a, b| a.1 < b.1), DEDUP_1, || format!("{name}: {recent:?}"))?;
            held(producer.last_base() < end, DEDUP_1, || format!("{name} is past the end of log {log}"))?;
        }
        let limit = machine.limits.producers_per_partition;
        held(partition.producers.len() <= limit, DEDUP_1, || format!("log {log} remembers too many producers"))?;
    }
    for (log, group, position) in machine.cursors.iter() {
        let end = topics.partitions.get(&log).map(|partition| partition.end);
        held(end.is_some_and(|end| Offset(0) <= position.next && position.next <= end), CURSOR_1, || {
            format!("{group} is at {} of log {log}, which ends at {end:?}", position.next)
        })?;
    }
    Ok(())
}

fn check_keys<S: Store>(machine: &Machine<S>) -> Result<(), Violation> {
    let mut places = BTreeMap::new();
    for (key, changes) in machine.keys.places() {
        held(changes.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1)), KEYS_2, || format!("{key:?}: {changes:?}"))?;
        let Some((main, _, put)) = changes.last().copied() else {
            return Err(KEYS_2.broken(format!("{key:?} has no change")));
        };
        held(Revision(main) <= machine.keys.revision, KEYS_2, || format!("{key:?} changed at {main}"))?;
        held(machine.keys.live(key).is_some() == put, KEYS_2, || format!("{key:?} is neither there nor gone"))?;
        for (main, sub, _) in changes {
            held(places.insert((main, sub), key).is_none(), KEYS_2, || format!("two changes at {main}.{sub}"))?;
        }
    }
    // Revisions are dense, and so are the changes within one; but compaction may have taken those up to its revision, and of
    // the changes up to there only what a read can see is left, once all is swept.
    let (revision, compacted) = (machine.keys.revision, machine.keys.compacted);
    held(compacted <= revision, KEYS_3, || format!("compacted to {compacted}, beyond {revision}"))?;
    if !machine.keys.unswept() {
        for (key, changes) in machine.keys.places() {
            // What changed there stays, and otherwise the value that was there.
            let older = changes.partition_point(|(main, ..)| *main < compacted.0);
            let changed_there = changes.get(older).is_some_and(|(main, ..)| *main == compacted.0);
            let fits = older == 0 || (older == 1 && changes[0].2 && !changed_there);
            held(fits, KEYS_3, || format!("{key:?} keeps {changes:?}"))?;
        }
    }
    let mut want = (compacted.0.max(1) + 1, 0);
    for (main, sub) in places.keys().filter(|(main, _)| *main > compacted.0) {
        if (*main, *sub) != want {
            want = (want.0 + 1, 0);
        }
        held((*main, *sub) == want, KEYS_1, || format!("found {main}.{sub} where {}.{} comes", want.0, want.1))?;
        want.1 += 1;
    }
    let last = places.keys().last().map_or(1, |(main, _)| *main).max(compacted.0);
    held(revision == Revision(last), KEYS_1, || format!("revision {revision}, but the last change is at {last}"))?;

    let mut attached = BTreeSet::new();
    for (lease, keys) in machine.keys.attached() {
        held(machine.leases.get(lease).is_some(), LEASE_1, || format!("keys hang on lease {lease}, which has ended"))?;
        held(!keys.is_empty(), LEASE_1, || format!("lease {lease} keeps an empty set"))?;
        for key in keys {
            let live = machine.keys.live(key);
            held(live.is_some_and(|live| live.lease == Some(lease)), LEASE_1, || format!("{key:?} of lease {lease}"))?;
            attached.insert(key);
        }
    }
    for (key, live) in machine.keys.all_live() {
        held(live.lease.is_none() || attached.contains(key), LEASE_1, || format!("{key:?} is not attached"))?;
    }
    Ok(())
}

fn check_time<S: Store>(machine: &Machine<S>) -> Result<(), Violation> {
    let mut deadlines: Vec<_> = machine.leases.iter().map(|(id, lease)| (lease.deadline, id)).collect();
    deadlines.sort_unstable();
    held(deadlines.iter().copied().eq(machine.leases.deadlines()), LEASE_2, || "deadlines and leases differ".into())?;
    let mut dues: Vec<_> = machine.timers.iter().map(|(id, timer)| (timer.due, id)).collect();
    dues.sort_unstable();
    held(dues.iter().copied().eq(machine.timers.dues()), TIMER_1, || "dues and timers differ".into())
}

fn check_requests<S: Store>(machine: &Machine<S>) -> Result<(), Violation> {
    let mut ages = Vec::new();
    for (client, floor, last, results) in machine.requests.iter() {
        let limit = machine.limits.request_results_per_client;
        held(!results.is_empty() && results.len() <= limit, REQUEST_2, || {
            format!("client {client} has {} results above floor {floor}", results.len())
        })?;
        ages.push((last, client));
    }
    held(ages.len() <= machine.limits.request_clients, REQUEST_2, || format!("{} clients", ages.len()))?;
    ages.sort_unstable();
    held(ages.into_iter().eq(machine.requests.ages()), REQUEST_2, || "ages and clients differ".into())
}

/// Checks the record batches of a store in memory against the machine over it.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check_batches(machine: &Machine<MemStore>) -> Result<(), Violation> {
    let store = machine.store();
    for log in store.logs().collect::<Vec<LogId>>() {
        held(machine.topics.partitions.contains_key(&log), TOPIC_1, || format!("batches of log {log}, which is gone"))?;
    }
    for (log, partition) in &machine.topics.partitions {
        let mut next = None;
        for batch in store.batches(*log) {
            let base = batch.base_offset;
            held(next.is_none_or(|next| next == base), OFFSET_1, || format!("log {log}: {next:?} before {base}"))?;
            held(next.is_some() || base <= partition.start, OFFSET_1, || format!("log {log} starts with {base}"))?;
            held(batch.bytes[..8] == base.0.to_be_bytes(), OFFSET_1, || format!("log {log}: the bytes of {base}"))?;
            next = Some(Offset(batch.last_offset.0 + 1));
        }
        let end = next.unwrap_or(partition.start);
        held(end == partition.end, OFFSET_1, || format!("log {log} ends at {end}, not at {}", partition.end))?;
    }
    Ok(())
}

/// Opens the store again and compares ([`ENTRY_3`]).
///
/// # Errors
/// Where the store cannot be read.
///
/// # Panics
/// Never for a machine that is right; a violation comes as `Ok(Err(…))`.
pub fn check_reopen(machine: &Machine<MemStore>) -> Result<Result<(), Violation>, StoreError> {
    let again = Machine::open_with(machine.store().clone(), machine.limits)?;
    let same = again.applied == machine.applied
        && again.clock == machine.clock
        && again.keys == machine.keys
        && again.topics == machine.topics
        && again.cursors == machine.cursors
        && again.leases == machine.leases
        && again.timers == machine.timers
        && again.requests == machine.requests
        && again.hash()? == machine.hash()?;
    Ok(held(same, ENTRY_3, || format!("opened again at {}:\n{again:#?}\nwas\n{machine:#?}", machine.applied.0)))
}
