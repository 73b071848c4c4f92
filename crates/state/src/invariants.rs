//! What must always hold, each with an id and one sentence. Tests check all of it after every entry they apply; a
//! violation is a bug of ours, never of a client.

use std::collections::{BTreeMap, BTreeSet};

use buttress_core::{LogId, Offset, Revision, Store, StoreError};

use crate::{MemStore, machine::Machine};

/// An id and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invariant {
    pub id: &'static str,
    pub says: &'static str,
}

/// An invariant that does not hold, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{id} does not hold: {found}")]
pub struct Violation {
    pub id: &'static str,
    pub found: String,
}

macro_rules! invariants {
    ($($name:ident = $id:literal, $says:literal;)*) => {
        $(#[doc = $says] pub const $name: Invariant = Invariant { id: $id, says: $says };)*
        /// Every invariant, for the docs.
        pub const ALL: &[Invariant] = &[$($name),*];
    };
}

invariants! {
    ENTRY_1 = "ENTRY-1", "an entry is applied whole, or nothing of it but its remembered refusal is";
    ENTRY_2 = "ENTRY-2", "equal entries give byte-equal rows and batches on every replica";
    ENTRY_3 = "ENTRY-3", "the rows alone rebuild the machine that wrote them";
    OFFSET_1 = "OFFSET-1", "the offsets of a partition are gap-free, and each batch's bytes carry the offset at which it lies";
    OFFSET_2 = "OFFSET-2", "a partition's start is never past its end, and its marks lie between them in rising order";
    LOG_1 = "LOG-1", "a log belongs to exactly one topic, and its number is never used again";
    DEDUP_1 = "DEDUP-1", "a number of a producer's epoch is appended at most once per partition, and in order";
    CURSOR_1 = "CURSOR-1", "a cursor is on a partition that exists and never past its end";
    LEASE_1 = "LEASE-1", "a key is attached to living leases only, and to one at most";
    LEASE_2 = "LEASE-2", "a lease ends only by revocation or by an expiry that has reached its deadline";
    KEYS_1 = "KEYS-1", "the revision grows by one with every entry that changes keys, and by nothing else";
    KEYS_2 = "KEYS-2", "the changes of a key lie in rising order, none after the current revision";
    TIMER_1 = "TIMER-1", "a timer is due exactly once";
    REQUEST_1 = "REQUEST-1", "a request is carried out at most once, and a retry gets the first result";
    REQUEST_2 = "REQUEST-2", "the clients and results remembered stay within their limits";
}

fn held(condition: bool, invariant: Invariant, found: impl FnOnce() -> String) -> Result<(), Violation> {
    if condition { Ok(()) } else { Err(Violation { id: invariant.id, found: found() }) }
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
            held(owned.insert(*log), LOG_1, || format!("log {log} belongs to two topics"))?;
            held(log.0 < topics.next_log, LOG_1, || format!("log {log} is not below the next one"))?;
            let partition = topics.partitions.get(log);
            held(partition.is_some_and(|p| p.topic == *name), LOG_1, || format!("log {log} does not name {name:?}"))?;
        }
    }
    held(owned.len() == topics.partitions.len(), LOG_1, || "a partition without a topic".into())?;
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
        let (main, _, put) = *changes.last().expect("a key in the index has changed");
        held(Revision(main) <= machine.keys.revision, KEYS_2, || format!("{key:?} changed at {main}"))?;
        held(machine.keys.live(key).is_some() == put, KEYS_2, || format!("{key:?} is neither there nor gone"))?;
        for (main, sub, _) in changes {
            held(places.insert((main, sub), key).is_none(), KEYS_2, || format!("two changes at {main}.{sub}"))?;
        }
    }
    // Revisions are dense, and so are the changes within one.
    let mut want = (2, 0);
    for (main, sub) in places.keys() {
        if (*main, *sub) != want {
            want = (want.0 + 1, 0);
        }
        held((*main, *sub) == want, KEYS_1, || format!("found {main}.{sub} where {}.{} comes", want.0, want.1))?;
        want.1 += 1;
    }
    let last = places.keys().last().map_or(1, |(main, _)| *main);
    held(machine.keys.revision == Revision(last), KEYS_1, || format!("revision {}", machine.keys.revision))?;

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
        held(machine.topics.partitions.contains_key(&log), LOG_1, || format!("batches of log {log}, which is gone"))?;
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
