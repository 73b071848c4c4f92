//! What a replica starts from: its settings, and what survived its last run.

use buttress_core::{
    Code, Error, Index, NodeId, Term,
    limits::{ENTRY_BYTES_MAX, LOG_MEMORY_BYTES, LOG_TAIL_BYTES},
};

use crate::types::{Change, EntryKind, HardState, LogEntry, NUMBER_MAX, SnapshotMeta};

/// Settings of a replica. [`Config::new`] gives defaults for ticks of 50 to 100 ms.
#[derive(Clone, Debug)]
pub struct Config {
    pub id: NodeId,
    /// Spreads election timeouts and makes the contexts of reads unique. Draw a fresh one at every start: a read's
    /// answer that was under way when the node stopped must not be taken for a new read's.
    pub seed: u64,
    /// A follower campaigns after one to two times this many ticks without a leader.
    pub election_ticks: u32,
    pub heartbeat_ticks: u32,
    /// Bytes of entries in one message, but for a single larger entry.
    pub max_message_bytes: usize,
    /// Messages under way to one follower: times `max_message_bytes` is what a slow one can make the transport hold.
    pub max_inflight_messages: usize,
    /// Bytes of proposals that wait for their commit; more are refused with [`crate::ProposalError::Overloaded`].
    pub max_uncommitted_bytes: usize,
    /// Bytes of entries applied in one step; what is left comes in the next ([`crate::Outputs::more`]).
    pub max_apply_bytes: usize,
    /// Bytes of entries kept behind the last checkpoint for followers that lag.
    pub log_tail_bytes: usize,
    /// Bytes of entries kept in memory once they are applied and durable here. A follower that needs older ones makes the
    /// host read them from the durable log ([`crate::Outputs::fetch`]).
    pub log_memory_bytes: usize,
}

impl Config {
    pub fn new(id: NodeId, seed: u64) -> Self {
        Self {
            id,
            seed,
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_message_bytes: 1024 * 1024,
            max_inflight_messages: 32,
            max_uncommitted_bytes: 4 * ENTRY_BYTES_MAX,
            max_apply_bytes: 2 * ENTRY_BYTES_MAX,
            log_tail_bytes: LOG_TAIL_BYTES,
            log_memory_bytes: LOG_MEMORY_BYTES,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = if self.id.0 == 0 {
            "a member's id is never 0"
        } else if self.heartbeat_ticks == 0 || self.election_ticks < 2 * self.heartbeat_ticks {
            "an election takes at least two heartbeats, and a heartbeat at least one tick"
        } else if self.max_inflight_messages == 0 || self.max_message_bytes == 0 || self.max_apply_bytes == 0 {
            "limits of messages are never 0"
        } else {
            return Ok(());
        };
        Err(Error::new(Code::CONFIG, format!("consensus cannot start: {wrong}")))
    }
}

/// What survived the last run: the durable log, and where the store stands.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// The last one that was made durable.
    pub hard_state: HardState,
    /// Where the store stands: its applied index and term, and the members after that entry. Index 0 for an empty
    /// store, without members.
    pub snapshot: SnapshotMeta,
    /// The durable log after all truncations and resets, in order. It may begin anywhere up to the entry after the
    /// snapshot; a gap in it is taken as the trace of a snapshot, and only what follows the last gap is used.
    pub entries: Vec<LogEntry>,
}

impl Restored {
    /// The state that every founding member of a new group starts from; the host makes it durable before the first
    /// step. Members that join later start from `Restored::default()` and learn everything, the founders included,
    /// from the log or from a snapshot.
    pub fn founding(voters: &[NodeId]) -> Self {
        let mut voters = voters.to_vec();
        voters.sort_unstable();
        voters.dedup();
        let data = Change::Found(voters).encode();
        Self {
            hard_state: HardState { term: Term(1), vote: None, commit: Index(1) },
            snapshot: SnapshotMeta::default(),
            entries: vec![LogEntry { index: Index(1), term: Term(1), kind: EntryKind::ConfChange, data }],
        }
    }

    /// The last index that the log itself proves to be committed. A leader proposes a change of members only once it has
    /// applied the one before, so every change but the last one in a log is committed, whatever the hard state says.
    ///
    /// The crate rests on that: it counts votes by the members that it has applied, and relies on nobody being more than
    /// one change behind its own log. The hard state alone does not give that. It is written with a commit that is never
    /// ahead of what was durable before, so a node that took two changes in one append and crashed knew of neither; with
    /// the members of two changes ago, a majority need not share anybody with that of today.
    fn proven_by_changes(&self) -> Index {
        let mut changes = self.entries.iter().rev().filter(|entry| entry.kind == EntryKind::ConfChange);
        changes.nth(1).map_or(Index(0), |entry| entry.index)
    }

    /// Brings what survived into the form that the engine starts from.
    ///
    /// # Errors
    /// When something that was acknowledged is missing.
    pub(crate) fn check(mut self) -> Result<Checked, Error> {
        let corrupt = |message: String| Error::new(Code::CORRUPT, message).hint(REPLACE_HINT);
        let snapshot = self.snapshot.clone();
        if snapshot.index.0 == 0 {
            if !snapshot.members.is_empty() || snapshot.term.0 != 0 {
                return Err(Error::new(Code::CONFIG, "an empty store has neither members nor a term")
                    .hint("found a group with Restored::founding"));
            }
        } else if !snapshot.members.is_valid() || snapshot.term.0 == 0 {
            return Err(corrupt(format!("the store's members are not valid: {:?}", snapshot.members)));
        }

        let follows = |pair: &[LogEntry]| pair[1].index == pair[0].index.next() && pair[1].term >= pair[0].term;
        let run = self.entries.windows(2).rposition(|pair| !follows(pair)).map_or(0, |gap| gap + 1);
        self.entries.drain(..run);
        let first = self.entries.first().map(|entry| entry.index);
        let last = self.entries.last().map_or(Index(0), |entry| entry.index);
        if first.is_some_and(|first| first > snapshot.index.next()) {
            return Err(corrupt(format!(
                "the log begins at {} and the store ends at {}: entries between them are lost",
                self.entries[0].index, snapshot.index
            )));
        }
        // A log that ends before the store, or has another entry where the store's last one was, is what a snapshot
        // replaced.
        let at_snapshot = self.entries.iter().find(|entry| entry.index == snapshot.index);
        let replaced = last < snapshot.index || at_snapshot.is_some_and(|entry| entry.term != snapshot.term);
        if replaced {
            self.entries.clear();
        }
        let stale = self.entries.is_empty() && snapshot.index.0 > 0;
        for entry in &self.entries {
            let malformed = entry.kind == EntryKind::ConfChange && Change::decode(entry.data.clone()).is_err();
            if malformed || entry.term.0 == 0 || entry.index.0.max(entry.term.0) > NUMBER_MAX {
                return Err(corrupt(format!("entry {} of the log is malformed", entry.index)));
            }
        }

        let last = self.entries.last().map_or(snapshot.index, |entry| entry.index);
        let last_term = self.entries.last().map_or(snapshot.term, |entry| entry.term);
        if self.hard_state.commit > last {
            return Err(corrupt(format!(
                "the log ends at {last} and {} was committed: an acknowledged tail is lost",
                self.hard_state.commit
            )));
        }
        // What the store holds was committed. A term is never behind the log's: it may be where a store was put in
        // place and the node stopped before the term was written.
        self.hard_state.commit = self.hard_state.commit.max(snapshot.index).max(self.proven_by_changes());
        if self.hard_state.term < last_term {
            self.hard_state.term = last_term;
            self.hard_state.vote = None;
        }
        Ok(Checked { restored: self, stale })
    }
}

/// What survived, without holes.
pub(crate) struct Checked {
    pub(crate) restored: Restored,
    /// The durable log holds nothing that follows or reaches the store, but may hold what a snapshot replaced: it must
    /// be told that it begins anew behind the store.
    pub(crate) stale: bool,
}

pub(crate) const REPLACE_HINT: &str =
    "remove this member and add the machine again under a new id with an empty data directory";
