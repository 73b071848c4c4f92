//! Holds an entry against the state before anything is changed, so that an entry happens whole or not at all.
//!
//! Guards see the state as it is before the entry. Parts are carried out in the order of the entry's fields, so a part is
//! checked against what the parts before it leave behind: a lease that the entry grants may be used by its puts, a topic
//! that it deletes may be created anew. What an append's sequence says is no ground for a refusal; its outcome is its own.

use std::collections::BTreeMap;

use buttress_core::{
    Code, Entry, Guard, LeaseChange, LeaseId, LogId, Mutant, Offset, Refusal, Revision, Store, StoreError, Timer,
    TopicChange,
    entry::TopicSettings,
    limits::{ENTRY_PARTS_MAX, PARTITIONS_PER_TOPIC_MAX, TOPIC_NAME_BYTES_MAX},
    mutant,
};

use crate::{
    keys::txn::{Fault, Plan, plan},
    machine::Machine,
    topics::{check_batch, producers::Numbers, valid_name},
};

/// Why an entry is not carried out.
pub(crate) enum Stop {
    Refused(Refusal),
    Fatal(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Fatal(error)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(refusal) => Self::Refused(refusal),
            Fault::Fatal(error) => Self::Fatal(error),
        }
    }
}

fn part(code: Code, message: impl Into<String>) -> Stop {
    Stop::Refused(Refusal::Part { code, message: message.into() })
}

/// Passes what can be carried out, with what the entry's transaction comes to.
pub(crate) fn check<S: Store>(machine: &Machine<S>, entry: &Entry) -> Result<Option<Plan>, Stop> {
    if entry.parts() > ENTRY_PARTS_MAX {
        return Err(part(
            Code::TOO_LARGE,
            format!("the entry has {} parts, more than the limit of {ENTRY_PARTS_MAX}", entry.parts()),
        ));
    }
    for (position, guard) in entry.guards.iter().enumerate() {
        if let Some(found) = unmet(machine, guard)?
            && !mutant::active(Mutant::NoGuards)
        {
            return Err(Stop::Refused(Refusal::Guard { position, guard: guard.clone(), found }));
        }
    }
    let gone = check_topics(machine, &entry.topics)?;
    check_leases(machine, entry)?;
    for append in &entry.appends {
        check_batch(append).map_err(|message| part(Code::BATCH_INVALID, message))?;
        if let Some(s) = &append.sequence
            && !Numbers::of(&s.producer).holds(s.number, append.records)
        {
            return Err(part(
                Code::BATCH_INVALID,
                format!("{} is not a sequence number of {:?}", s.number, s.producer),
            ));
        }
    }
    for cursor in &entry.cursors {
        let log = cursor.log;
        let end = match machine.topics.partitions.get(&log) {
            Some(partition) if !gone.contains(&log) => partition.end,
            _ => return Err(part(Code::TOPIC_UNKNOWN, format!("there is no log {log} to move a cursor on"))),
        };
        if cursor.next < Offset(0) || cursor.next > end {
            return Err(part(
                Code::OFFSET_OUT_OF_RANGE,
                format!("cursor {:?} cannot move to {}, log {log} ends at {end}", cursor.group, cursor.next),
            ));
        }
    }
    for timer in &entry.timers {
        if let Timer::Set { id, key, .. } = timer
            && (id.is_empty() || key.is_empty())
        {
            return Err(part(Code::BAD_REQUEST, "a timer needs an id and a key"));
        }
    }
    if let Some(wanted) = entry.compact {
        let (compacted, current) = (machine.keys.compacted, machine.keys.revision);
        if wanted <= compacted {
            let message = format!("history below revision {compacted} is gone, so it cannot be compacted to {wanted}");
            return Err(part(Code::COMPACTED, message));
        }
        // The entry's own revision is not there yet.
        if wanted > current {
            let message = format!("the key space is at revision {current}, so it cannot be compacted to {wanted}");
            return Err(part(Code::REVISION_FUTURE, message));
        }
    }
    let Some(txn) = &entry.txn else { return Ok(None) };
    // What else changes keys would be neither before nor behind the transaction for its compares and ranges.
    if !entry.puts.is_empty() || !entry.leases.is_empty() || entry.expire {
        return Err(part(Code::BAD_REQUEST, "an entry with a transaction holds no puts, no leases and no expiry"));
    }
    Ok(Some(plan(&machine.keys, &machine.leases, &machine.store, txn)?))
}

/// What is there instead of what the guard asks for; `None` where it holds.
fn unmet<S: Store>(machine: &Machine<S>, guard: &Guard) -> Result<Option<String>, StoreError> {
    let live = |key: &[u8]| machine.keys.live(key);
    Ok(match guard {
        Guard::ModRevision { key, revision } => differs(live(key).map_or(Revision(0), |live| live.modified), *revision),
        Guard::CreateRevision { key, revision } => {
            differs(live(key).map_or(Revision(0), |live| live.create), *revision)
        }
        Guard::Version { key, version } => differs(live(key).map_or(0, |live| live.version), *version),
        Guard::Value { key, value } => match machine.keys.value(&machine.store, key)? {
            Some(found) if found == value => None,
            Some(found) => Some(preview(&found)),
            None => Some("no such key".into()),
        },
        Guard::LeaseAlive { lease } => machine.leases.get(*lease).is_none().then(|| "no such lease".into()),
        Guard::Cursor { group, log, expected } => {
            let found = machine.cursors.get(group, *log).map(|position| position.next);
            (found != *expected).then(|| found.map_or("unset".into(), |at| at.to_string()))
        }
        Guard::LogEnd { log, expected } => match machine.topics.partitions.get(log) {
            Some(partition) => differs(partition.end, *expected),
            None => Some("no such log".into()),
        },
    })
}

fn differs<T: PartialEq + std::fmt::Display>(found: T, wanted: T) -> Option<String> {
    (found != wanted).then(|| found.to_string())
}

/// A value as a refusal shows it: escaped, and cut, because refusals are remembered.
fn preview(value: &[u8]) -> String {
    let shown = &value[..value.len().min(64)];
    let more = if value.len() > shown.len() { format!("…({} bytes)", value.len()) } else { String::new() };
    format!("\"{}\"{more}", shown.escape_ascii())
}

/// The logs that are gone after the topic changes.
fn check_topics<S: Store>(machine: &Machine<S>, topics: &[TopicChange]) -> Result<Vec<LogId>, Stop> {
    let mut exists: BTreeMap<&str, bool> = BTreeMap::new();
    // Partitions and settings of topics that the entry creates or changes.
    let mut sizes: BTreeMap<&str, u32> = BTreeMap::new();
    let mut settings: BTreeMap<&str, &TopicSettings> = BTreeMap::new();
    let mut gone: Vec<LogId> = Vec::new();
    let mut next_log = machine.topics.next_log;
    let there = |exists: &BTreeMap<&str, bool>, name: &str| {
        exists.get(name).copied().unwrap_or_else(|| machine.topics.topics.contains_key(name))
    };
    let unknown = |name: &str| part(Code::TOPIC_UNKNOWN, format!("there is no topic {name:?}"));
    for change in topics {
        match change {
            TopicChange::Create { name, partitions, settings: created, .. } => {
                if !valid_name(name) {
                    return Err(part(
                        Code::TOPIC_INVALID,
                        format!(
                            "{name:?} is no name for a topic: 1 to {TOPIC_NAME_BYTES_MAX} of a-z, A-Z, 0-9, '.', '_', '-'"
                        ),
                    ));
                }
                if !(1..=PARTITIONS_PER_TOPIC_MAX).contains(partitions) {
                    return Err(part(
                        Code::TOPIC_INVALID,
                        format!(
                            "topic {name:?} cannot have {partitions} partitions, but 1 to {PARTITIONS_PER_TOPIC_MAX}"
                        ),
                    ));
                }
                if there(&exists, name) {
                    return Err(part(Code::TOPIC_EXISTS, format!("topic {name:?} exists")));
                }
                next_log = next_log
                    .checked_add(*partitions)
                    .ok_or_else(|| part(Code::TOO_LARGE, "all numbers of logs are used up"))?;
                exists.insert(name, true);
                sizes.insert(name, *partitions);
                settings.insert(name, created);
            }
            TopicChange::Configure { name, from, to } => {
                let found = match settings.get(name.as_str()) {
                    _ if !there(&exists, name) => return Err(unknown(name)),
                    Some(found) => found,
                    None => &machine.topics.topics[name.as_str()].settings,
                };
                if found != from {
                    return Err(part(Code::REFUSED, format!("topic {name:?} has other settings by now: {found:?}")));
                }
                settings.insert(name, to);
            }
            TopicChange::Extend { name, partitions } => {
                if !there(&exists, name) {
                    return Err(unknown(name));
                }
                let known = || machine.topics.topics[name.as_str()].logs.len() as u32;
                let present = sizes.get(name.as_str()).copied().unwrap_or_else(known);
                if !(present + 1..=PARTITIONS_PER_TOPIC_MAX).contains(partitions) {
                    return Err(part(
                        Code::TOPIC_INVALID,
                        format!(
                            "topic {name:?} has {present} partitions, it cannot have {partitions}, but more, and \
                             {PARTITIONS_PER_TOPIC_MAX} at most"
                        ),
                    ));
                }
                next_log = next_log
                    .checked_add(*partitions - present)
                    .ok_or_else(|| part(Code::TOO_LARGE, "all numbers of logs are used up"))?;
                sizes.insert(name, *partitions);
            }
            TopicChange::Delete { name } => {
                if !there(&exists, name) {
                    return Err(unknown(name));
                }
                if exists.insert(name, false).is_none() {
                    gone.extend(&machine.topics.topics[name.as_str()].logs);
                }
                sizes.remove(name.as_str());
                settings.remove(name.as_str());
            }
            TopicChange::Trim { log, before } => {
                let end = match machine.topics.partitions.get(log) {
                    Some(partition) if !gone.contains(log) => partition.end,
                    _ => return Err(part(Code::TOPIC_UNKNOWN, format!("there is no log {log} to trim"))),
                };
                if *before > end {
                    return Err(part(
                        Code::OFFSET_OUT_OF_RANGE,
                        format!("log {log} cannot be trimmed to {before}, it ends at {end}"),
                    ));
                }
            }
        }
    }
    Ok(gone)
}

fn check_leases<S: Store>(machine: &Machine<S>, entry: &Entry) -> Result<(), Stop> {
    let mut alive: BTreeMap<LeaseId, bool> = BTreeMap::new();
    let lives = |alive: &BTreeMap<LeaseId, bool>, lease: LeaseId| {
        alive.get(&lease).copied().unwrap_or_else(|| machine.leases.get(lease).is_some())
    };
    let unknown = |lease: LeaseId| part(Code::LEASE_UNKNOWN, format!("there is no lease {lease}"));
    for change in &entry.leases {
        match *change {
            LeaseChange::Grant { lease, ttl_ms } => {
                if lease == LeaseId(0) || ttl_ms == 0 {
                    return Err(part(Code::BAD_REQUEST, "a lease needs an id and a time to live other than 0"));
                }
                if lives(&alive, lease) {
                    return Err(part(Code::LEASE_EXISTS, format!("lease {lease} exists")));
                }
                alive.insert(lease, true);
            }
            LeaseChange::KeepAlive { lease } if !lives(&alive, lease) => return Err(unknown(lease)),
            LeaseChange::KeepAlive { .. } => {}
            LeaseChange::Revoke { lease } => {
                if !lives(&alive, lease) {
                    return Err(unknown(lease));
                }
                alive.insert(lease, false);
            }
        }
    }
    for put in &entry.puts {
        if put.key.is_empty() {
            return Err(part(Code::BAD_REQUEST, "a key cannot be empty"));
        }
        match put.lease {
            Some(lease) if !lives(&alive, lease) => return Err(unknown(lease)),
            Some(_) if put.value.is_none() => {
                return Err(part(Code::BAD_REQUEST, "a delete cannot carry a lease"));
            }
            _ => {}
        }
    }
    Ok(())
}
