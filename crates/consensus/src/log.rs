//! The log as the engine reads it: in memory, from the tail kept for lagging followers to the last entry.
//!
//! The write-ahead log is the durability point and is never read while the node runs, so the engine's storage is plain
//! memory owned by the engine: no lock, no IO, no error that depends on a disk. What it may forget follows from
//! checkpoints: the store holds everything up to a checkpoint, so entries behind it are only of use to followers that
//! lag, and of those the newest [`crate::Config::log_tail_bytes`] are kept. A follower that needs older ones is sent
//! the state instead; the engine only deals in its [`SnapshotMeta`].

use std::{cell::Cell, collections::VecDeque};

use buttress_core::{Index, Term};
use raft::{
    GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};

use crate::{
    engine::to_snapshot,
    types::{ENTRY_OVERHEAD_BYTES, SnapshotMeta},
};

pub(crate) struct MemoryLog {
    initial: RaftState,
    /// Consecutive; the first one follows `before`.
    entries: VecDeque<Entry>,
    /// Index and term of the entry before the first one.
    before: (u64, u64),
    bytes: usize,
    /// What is offered to a follower that is too far behind: the last checkpoint.
    offer: Option<(SnapshotMeta, ConfState)>,
    /// A follower needed a snapshot that could not be offered.
    wanted: Cell<bool>,
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + ENTRY_OVERHEAD_BYTES
}

impl MemoryLog {
    pub(crate) fn new(
        hard_state: HardState,
        conf_state: ConfState,
        before: (u64, u64),
        entries: VecDeque<Entry>,
    ) -> Self {
        let bytes = entries.iter().map(size).sum();
        let initial = RaftState::new(hard_state, conf_state);
        Self { initial, entries, before, bytes, offer: None, wanted: Cell::new(false) }
    }

    pub(crate) fn first(&self) -> u64 {
        self.before.0 + 1
    }

    pub(crate) fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        let position = index.checked_sub(self.first())?;
        self.entries.get(position as usize).map(|entry| entry.term)
    }

    /// Appends, cutting off what was there from the first new index on.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            (self.first()..=self.last() + 1).contains(&first.index),
            "entry {} does not follow a log of [{}, {}]",
            first.index,
            self.first(),
            self.last()
        );
        while self.last() >= first.index {
            let cut = self.entries.pop_back().expect("the log reaches beyond the first new index");
            self.bytes -= size(&cut);
        }
        for entry in entries {
            self.bytes += size(entry);
            self.entries.push_back(entry.clone());
        }
    }

    /// A snapshot takes the place of the log.
    pub(crate) fn reset(&mut self, index: u64, term: u64) {
        self.entries.clear();
        self.bytes = 0;
        self.before = (index, term);
        self.offer = None;
    }

    pub(crate) fn set_offer(&mut self, meta: SnapshotMeta, conf_state: ConfState) {
        self.wanted.set(false);
        self.offer = Some((meta, conf_state));
    }

    pub(crate) fn offer(&self) -> Option<&SnapshotMeta> {
        self.offer.as_ref().map(|(meta, _)| meta)
    }

    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.take()
    }

    /// Forgets entries up to `checkpoint`, but for the last `tail_bytes` of them.
    pub(crate) fn compact(&mut self, checkpoint: u64, tail_bytes: usize) {
        assert!(checkpoint <= self.last(), "a checkpoint at {checkpoint} lies behind the log's end {}", self.last());
        let behind = checkpoint.saturating_sub(self.before.0) as usize;
        let (mut kept, mut keep_from) = (0, behind);
        while keep_from > 0 {
            kept += size(&self.entries[keep_from - 1]);
            if kept > tail_bytes {
                break;
            }
            keep_from -= 1;
        }
        for _ in 0..keep_from {
            let gone = self.entries.pop_front().expect("counted above");
            self.bytes -= size(&gone);
            self.before = (gone.index, gone.term);
        }
    }
}

impl Storage for MemoryLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "entries up to {high} were asked of a log that ends at {}", self.last());
        let limit = max_size.into().unwrap_or(u64::MAX);
        let (from, to) = ((low - self.first()) as usize, (high - self.first()) as usize);
        let mut bytes = 0u64;
        let mut found = Vec::new();
        for entry in self.entries.range(from..to) {
            bytes += size(entry) as u64;
            if bytes > limit && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_at(index).ok_or(raft::Error::Store(if index < self.first() {
            StorageError::Compacted
        } else {
            StorageError::Unavailable
        }))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        match &self.offer {
            Some((meta, conf_state)) if meta.index >= Index(request_index) && meta.index >= Index(1) => {
                Ok(to_snapshot(meta, conf_state.clone()))
            }
            _ => {
                self.wanted.set(true);
                Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

/// Where an entry stands.
pub(crate) fn place(entry: &Entry) -> (Index, Term) {
    (Index(entry.index), Term(entry.term))
}
