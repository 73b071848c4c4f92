//! The log as the engine reads it: its end in memory, what lies behind that on the host's disk.
//!
//! The write-ahead log is the durability point. The engine's storage is plain memory owned by the engine: no lock, no IO,
//! no error that depends on a disk. What it may forget follows from checkpoints: the store holds everything up to a
//! checkpoint, so entries behind it are only of use to followers that lag, and of those the newest
//! [`crate::Config::log_tail_bytes`] are kept. A follower that needs older ones is sent the state instead; the engine only
//! deals in its [`SnapshotMeta`].
//!
//! Of what is kept, the bytes need not be in memory. An entry that is applied and durable here is *cold* once more than
//! [`crate::Config::log_memory_bytes`] came behind it: index, term and size stay, and the bytes are in the durable log only.
//! Nothing but sending to a follower reads behind what is applied, and the crate lets that wait: it is told that the
//! entries are not there yet, the wish becomes a [`Fetch`] for the host, and what the host read is served once
//! ([`MemoryLog::serve`]). A wish that comes to nothing is dropped; the follower's next answer to a heartbeat asks again.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
};

use buttress_core::{Index, Term};
use raft::{
    GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};

use crate::{
    engine::to_snapshot,
    types::{ENTRY_OVERHEAD_BYTES, Fetch, SnapshotMeta},
};

/// Places in the log that followers wait for at once. Each waits for one, and there are at most
/// [`crate::types::MEMBERS_MAX`] of them; some are of a follower that was sent on meanwhile.
const WISHES_MAX: usize = 64;
/// Askers for one place; the same follower asks with every new entry.
const ASKERS_MAX: usize = 16;

pub(crate) struct MemoryLog {
    initial: RaftState,
    /// Sizes of the entries whose bytes are only on disk; the first one follows `before`.
    cold: VecDeque<u32>,
    /// Where a term begins among the cold ones: first index and term, oldest first.
    cold_terms: VecDeque<(u64, u64)>,
    /// Consecutive; the first one follows the cold ones.
    entries: VecDeque<Entry>,
    /// Index and term of the entry before the first one.
    before: (u64, u64),
    /// Of the whole log, and of what is in memory.
    bytes: usize,
    memory_bytes: usize,
    /// Cold entries that the host has read, while they are served.
    served: Vec<Entry>,
    /// What followers wait for, by its first index.
    wishes: RefCell<BTreeMap<u64, Wish>>,
    /// What is offered to a follower that is too far behind: the last checkpoint.
    offer: Option<(SnapshotMeta, ConfState)>,
    /// A follower needed a snapshot that could not be offered.
    wanted: Cell<bool>,
}

struct Wish {
    fetch: Fetch,
    /// The host was told.
    told: bool,
    askers: Vec<GetEntriesContext>,
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
        Self {
            initial: RaftState::new(hard_state, conf_state),
            cold: VecDeque::new(),
            cold_terms: VecDeque::new(),
            entries,
            before,
            bytes,
            memory_bytes: bytes,
            served: Vec::new(),
            wishes: RefCell::default(),
            offer: None,
            wanted: Cell::new(false),
        }
    }

    pub(crate) fn first(&self) -> u64 {
        self.before.0 + 1
    }

    /// The first entry whose bytes are in memory.
    fn first_warm(&self) -> u64 {
        self.first() + self.cold.len() as u64
    }

    pub(crate) fn last(&self) -> u64 {
        self.before.0 + (self.cold.len() + self.entries.len()) as u64
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        if index < self.first() {
            return None;
        }
        if index < self.first_warm() {
            let behind = self.cold_terms.partition_point(|(first, _)| *first <= index);
            return Some(self.cold_terms[behind - 1].1);
        }
        self.entries.get((index - self.first_warm()) as usize).map(|entry| entry.term)
    }

    /// Appends, cutting off what was there from the first new index on.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            (self.first_warm()..=self.last() + 1).contains(&first.index),
            "entry {} does not follow a log of [{}, {}], in memory from {} on",
            first.index,
            self.first(),
            self.last(),
            self.first_warm()
        );
        while self.last() >= first.index {
            let cut = self.entries.pop_back().expect("the log reaches beyond the first new index");
            self.bytes -= size(&cut);
            self.memory_bytes -= size(&cut);
        }
        for entry in entries {
            self.bytes += size(entry);
            self.memory_bytes += size(entry);
            self.entries.push_back(entry.clone());
        }
    }

    /// Lets go of the bytes of entries up to `index`, which are applied and durable, but for the last `keep_bytes` of the
    /// log.
    pub(crate) fn cool(&mut self, index: u64, keep_bytes: usize) {
        while self.memory_bytes > keep_bytes
            && let Some(entry) = self.entries.pop_front_if(|entry| entry.index <= index)
        {
            self.memory_bytes -= size(&entry);
            self.cold.push_back(u32::try_from(size(&entry)).expect("entries are far below 4 GiB"));
            if self.cold_terms.back().is_none_or(|(_, term)| *term != entry.term) {
                self.cold_terms.push_back((entry.index, entry.term));
            }
        }
    }

    /// What followers wait for and the host was not told yet.
    pub(crate) fn take_wishes(&self) -> Vec<Fetch> {
        let tell = |wish: &mut Wish| (!std::mem::replace(&mut wish.told, true)).then(|| wish.fetch.clone());
        self.wishes.borrow_mut().values_mut().filter_map(tell).collect()
    }

    /// Takes what the host read, to be served until [`Self::served`], and gives those who asked for it; nobody if it is not
    /// what the log has there.
    pub(crate) fn serve(&mut self, low: u64, entries: Vec<Entry>) -> Vec<GetEntriesContext> {
        let Some(wish) = self.wishes.borrow_mut().remove(&low) else { return Vec::new() };
        // The log may have begun anew since.
        let fits = |(entry, index): (&Entry, u64)| entry.index == index && self.term_at(index) == Some(entry.term);
        if entries.is_empty() || !entries.iter().zip(low..).all(fits) {
            return Vec::new();
        }
        self.served = entries;
        wish.askers
    }

    pub(crate) fn served(&mut self) {
        self.served = Vec::new();
    }

    /// Cold entries from `low` on, if they are being served; otherwise they are wished for.
    fn cold(&self, low: u64, high: u64, bytes_max: u64, asker: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        if let Some(first) = self.served.first()
            && let Some(skip) = low.checked_sub(first.index)
            && skip < self.served.len() as u64
        {
            let served = self.served[skip as usize..].iter().take((high - low) as usize);
            return Ok(up_to(bytes_max, served));
        }
        assert!(asker.can_async(), "entry {low} is applied, and only sending reads behind what is applied");
        let mut wishes = self.wishes.borrow_mut();
        if wishes.len() < WISHES_MAX || wishes.contains_key(&low) {
            let wish = wishes.entry(low).or_insert_with(|| {
                let high = Index(high.min(self.first_warm()));
                let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
                Wish { fetch: Fetch { low: Index(low), high, bytes_max }, told: false, askers: Vec::new() }
            });
            if wish.askers.len() < ASKERS_MAX {
                wish.askers.push(asker);
            }
        }
        Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    /// A snapshot takes the place of the log.
    pub(crate) fn reset(&mut self, index: u64, term: u64) {
        self.cold.clear();
        self.cold_terms.clear();
        self.entries.clear();
        self.bytes = 0;
        self.memory_bytes = 0;
        self.before = (index, term);
        self.wishes.borrow_mut().clear();
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
            kept += match self.cold.get(keep_from - 1) {
                Some(size) => *size as usize,
                None => size(&self.entries[keep_from - 1 - self.cold.len()]),
            };
            if kept > tail_bytes {
                break;
            }
            keep_from -= 1;
        }
        if keep_from == 0 {
            return;
        }
        let last_gone = self.before.0 + keep_from as u64;
        let term = self.term_at(last_gone).expect("the log reaches to the checkpoint");
        for _ in 0..keep_from {
            if let Some(gone) = self.cold.pop_front() {
                self.bytes -= gone as usize;
            } else {
                let gone = self.entries.pop_front().expect("counted above");
                self.bytes -= size(&gone);
                self.memory_bytes -= size(&gone);
            }
        }
        self.before = (last_gone, term);
        while self.cold.is_empty() && !self.cold_terms.is_empty()
            || self.cold_terms.get(1).is_some_and(|(next, _)| *next <= self.first())
        {
            self.cold_terms.pop_front();
        }
    }
}

/// The first of these, and those that follow it within the limit.
fn up_to<'a>(bytes_max: u64, entries: impl Iterator<Item = &'a Entry>) -> Vec<Entry> {
    let mut bytes = 0u64;
    let mut found = Vec::new();
    for entry in entries {
        bytes += size(entry) as u64;
        if bytes > bytes_max && !found.is_empty() {
            break;
        }
        found.push(entry.clone());
    }
    found
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
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "entries up to {high} were asked of a log that ends at {}", self.last());
        let limit = max_size.into().unwrap_or(u64::MAX);
        let warm = self.first_warm();
        if low < warm && low < high {
            return self.cold(low, high, limit, context);
        }
        let (from, to) = ((low - warm) as usize, (high - warm) as usize);
        Ok(up_to(limit, self.entries.range(from..to)))
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
