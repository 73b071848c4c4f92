//! Joins the log to consensus: what a replica wants durable becomes a job of the log, and what the log and the store kept
//! becomes what a replica starts from.
//!
//! The log itself knows nothing of consensus. This file is what a host needs between the two, so that every host (a node,
//! the simulator) restarts by the same rules.

use std::collections::VecDeque;

use buttress_consensus::{
    ENTRY_OVERHEAD_BYTES, EntryKind, Fetch, HardState, LogEntry, Persist, Restored, SnapshotMeta,
};
use buttress_core::{Code, Error, Index, NodeId, Term};
use bytes::Bytes;

use crate::{Batch, Job, Marker, Reader, ShardLog, Wal, disk::corrupt};

/// Where the store stands, and what it was told about that place: an encoded [`SnapshotMeta`].
#[derive(Clone, Debug, Default)]
pub struct Stored {
    pub index: Index,
    pub term: Term,
    pub meta: Bytes,
}

/// What a replica wants durable, as a job of the log. Its entries move over; what is to be sent afterwards stays.
pub fn job(shard: u32, persist: &mut Persist) -> Job {
    Job {
        shard,
        ticket: persist.ticket,
        hard_state: persist.hard_state.map(to_wal_state),
        marker: persist.reset.as_ref().map(|at| Marker { index: at.index, term: at.term, meta: at.encode() }),
        entries: std::mem::take(&mut persist.entries).into_iter().map(to_wal_entry).collect(),
    }
}

/// Joins what the store and the log kept of a shard to what consensus starts from. A node that has neither founds the
/// group with `founders`, which is durable when this returns; one that was given none joins a group, and starts empty.
///
/// `log_tail_bytes` of entries that the store has already are kept in memory for followers that lag.
///
/// # Errors
/// `CORRUPT` where the two do not fit together, `FORMAT` for an entry of an unknown kind, `DISK`, `DISK_FULL`.
pub fn restore(
    founders: &[NodeId],
    log_tail_bytes: usize,
    shard: u32,
    log: &mut Wal,
    kept: ShardLog,
    stored: &Stored,
) -> Result<Restored, Error> {
    let Stored { index, term, .. } = *stored;
    if index.0 == 0 && kept.hard_state.is_none() && kept.entries.is_empty() {
        if founders.is_empty() {
            return Ok(Restored::default());
        }
        let founding = Restored::founding(founders);
        let mut batch = Batch::default();
        for entry in &founding.entries {
            batch.entry(shard, &to_wal_entry(entry.clone()));
        }
        batch.hard_state(shard, to_wal_state(founding.hard_state));
        log.commit(&mut batch)?;
        tracing::info!(event_type = "founded", voters = founders.len(), "a new cluster is founded");
        return Ok(founding);
    }
    if kept.hard_state.is_none() {
        // Every run writes one before it answers anybody, so a log without it is not the one that this store lived with.
        return Err(corrupt(format_args!("the store is at {index} and the log does not know of it")));
    }
    let snapshot = if index.0 == 0 {
        SnapshotMeta::default()
    } else {
        let kept = SnapshotMeta::decode(stored.meta.clone())
            .map_err(|error| Error::new(Code::CORRUPT, format!("the store's member list is malformed: {error}")))?;
        SnapshotMeta { index, term, members: kept.members }
    };
    let hard_state = kept.hard_state.map_or_else(HardState::default, |state| HardState {
        term: state.term,
        vote: Some(state.vote).filter(|vote| vote.0 != 0),
        commit: state.commit,
    });
    let after = kept.after(index, term)?;
    // Followers that lag may want what the store has already; without it, every restart would cost them a snapshot.
    let joins = after.len() == kept.entries.len().saturating_sub(kept.entries.partition_point(|e| e.index <= index));
    let mut entries: VecDeque<crate::LogEntry> = after.into();
    let mut bytes = 0;
    for entry in kept.entries.into_iter().rev().filter(|entry| joins && entry.index <= index) {
        bytes += entry.data.len() + ENTRY_OVERHEAD_BYTES;
        if bytes > log_tail_bytes {
            break;
        }
        entries.push_front(entry);
    }
    let entries = entries.into_iter().map(from_wal_entry).collect::<Result<_, _>>()?;
    Ok(Restored { hard_state, snapshot, entries })
}

/// Reads what a replica wants from its durable log, for a follower that lags: entries from the first one on, or none if
/// the log has let go of them.
///
/// # Errors
/// `CORRUPT`, `FORMAT`, `DISK`.
pub fn fetch(reader: &Reader, shard: u32, fetch: &Fetch) -> Result<Vec<LogEntry>, Error> {
    let read = reader.read(shard, fetch.low, fetch.high, fetch.bytes_max)?;
    read.into_iter().map(from_wal_entry).collect()
}

fn to_wal_state(state: HardState) -> crate::HardState {
    crate::HardState { term: state.term, vote: state.vote.unwrap_or_default(), commit: state.commit }
}

fn to_wal_entry(entry: LogEntry) -> crate::LogEntry {
    let kind = match entry.kind {
        EntryKind::Normal => 0,
        EntryKind::ConfChange => 1,
    };
    crate::LogEntry { index: entry.index, term: entry.term, kind, data: entry.data }
}

fn from_wal_entry(entry: crate::LogEntry) -> Result<LogEntry, Error> {
    let kind = match entry.kind {
        0 => EntryKind::Normal,
        1 => EntryKind::ConfChange,
        kind => {
            return Err(Error::new(
                Code::FORMAT,
                format!("entry {} of the log is of the unknown kind {kind}", entry.index),
            ));
        }
    };
    Ok(LogEntry { index: entry.index, term: entry.term, kind, data: entry.data })
}
