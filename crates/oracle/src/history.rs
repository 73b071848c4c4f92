//! What clients did and saw, in the order in which it was recorded.
//!
//! An operation begins, and later it ends or it does not. What began before another operation ended may have taken effect
//! in either order; what began after it must have taken effect after it. Checkers compare the *numbers* of these moments,
//! not the clock: the recorder counts them up, so that operations of one client that follow each other within one
//! microsecond stay in order. Times are for people.
//!
//! A recorder that many threads share stands behind one lock. It is told of a call before the call leaves and of an answer
//! after the answer has come, so the counted order is one that really was.

use std::collections::BTreeMap;

use buttress_core::{
    Append, Cursor, Entry, Guard, KeyRange, LeaseChange, LogId, Offset, Put, Receipt, Revision, Sequence, StatePut,
    Txn, TxnResult,
    ledger::{KeyEvent, KeyValues},
    receipt::AppendOutcome,
};

/// Tells records apart. A record's writer puts it into the record, and gives it to no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(pub u64);

impl std::fmt::Display for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The records that one commit appends to one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    pub log: LogId,
    pub sequence: Option<Sequence>,
    pub serials: Vec<Serial>,
}

/// What a client asked to be committed as one: an [`Entry`], with its records by their serials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    pub guards: Vec<Guard>,
    pub leases: Vec<LeaseChange>,
    pub puts: Vec<Put>,
    pub state: Vec<StatePut>,
    pub appends: Vec<Records>,
    pub cursors: Vec<Cursor>,
    /// Forget the history of keys below this revision.
    pub compact: Option<Revision>,
}

impl Commit {
    /// The commit that submitting `entry` asks for. `serials` reads the serials out of an append's batch.
    pub fn of(entry: &Entry, mut serials: impl FnMut(&Append) -> Vec<Serial>) -> Self {
        let records =
            |append: &Append| Records { log: append.log, sequence: append.sequence.clone(), serials: serials(append) };
        Self {
            guards: entry.guards.clone(),
            leases: entry.leases.clone(),
            puts: entry.puts.clone(),
            state: entry.state.clone(),
            appends: entry.appends.iter().map(records).collect(),
            cursors: entry.cursors.clone(),
            compact: entry.compact,
        }
    }
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Commit(Commit),
    /// A transaction that decides. One that changes nothing may be read on a node, and then need not be linearizable.
    Txn {
        txn: Txn,
        linearizable: bool,
    },
    Read {
        range: KeyRange,
        /// `None` is the present.
        at: Option<Revision>,
        /// It asked for what is acknowledged now, not for what its node happened to have applied.
        linearizable: bool,
    },
    /// Reads records from an offset on.
    Fetch {
        log: LogId,
        from: Offset,
    },
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was committed.
    Done(Done),
    /// The transaction was carried out, with this answer; the revision is the one after it.
    Transacted { revision: Revision, result: TxnResult },
    /// The keys of a range.
    Found(KeyValues),
    /// Records and where they lie.
    Fetched(Vec<(Offset, Serial)>),
    /// It was looked at, and it was not carried out: this guard, or a part of it, stood against it.
    Refused { guard: Option<usize> },
    /// It certainly never happened and never will: nobody took it in.
    Failed,
    /// Nobody knows. It may take effect at any time from its call on, also after every answer, or never.
    Unknown,
}

/// What a commit's receipt says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The key space's revision after the commit, where the protocol tells it.
    pub revision: Option<Revision>,
    /// For each append, where its first record lies; `None` where it was not appended, or was before at a place no longer
    /// known.
    pub offsets: Vec<Appended>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Acknowledged, with its place.
    At(Offset),
    /// Acknowledged as seen before; its place is no longer known.
    Before,
    /// Not appended: a gap, a stale epoch, no such partition.
    Not,
}

impl From<&Receipt> for Done {
    fn from(receipt: &Receipt) -> Self {
        let offsets = receipt.appends.iter().map(|outcome| match outcome {
            AppendOutcome::Appended { base_offset } | AppendOutcome::Duplicate { base_offset: Some(base_offset) } => {
                Appended::At(*base_offset)
            }
            AppendOutcome::Duplicate { base_offset: None } => Appended::Before,
            AppendOutcome::Gap { .. } | AppendOutcome::StaleEpoch { .. } | AppendOutcome::UnknownLog => Appended::Not,
        });
        Self { revision: Some(receipt.revision), offsets: offsets.collect() }
    }
}

/// One call, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub client: u64,
    pub invoked_us: u64,
    pub returned_us: Option<u64>,
    pub what: What,
    pub outcome: Outcome,
    pub(crate) began: u64,
    /// `u64::MAX` while there is no answer, and where the outcome is not known.
    pub(crate) ended: u64,
}

impl Operation {
    /// Whether this had its answer before the other was called.
    pub fn precedes(&self, other: &Operation) -> bool {
        self.ended < other.began
    }

    /// An operation for [`History::of`].
    pub fn new(client: u64, invoked_us: u64, returned_us: Option<u64>, what: What, outcome: Outcome) -> Self {
        Self { client, invoked_us, returned_us, what, outcome, began: 0, ended: u64::MAX }
    }

    /// The commit, and its receipt, where it was acknowledged.
    pub fn done(&self) -> Option<(&Commit, &Done)> {
        match (&self.what, &self.outcome) {
            (What::Commit(commit), Outcome::Done(done)) => Some((commit, done)),
            _ => None,
        }
    }

    /// The commit, where nobody knows what became of it.
    pub fn undecided(&self) -> Option<&Commit> {
        match (&self.what, &self.outcome) {
            (What::Commit(commit), Outcome::Unknown) => Some(commit),
            _ => None,
        }
    }
}

/// The place of an operation in its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub usize);

/// What one partition held when everything was over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogContent {
    /// Records below were there once; retention took them.
    pub start: Offset,
    /// From the start on, each with its place.
    pub records: Vec<(Offset, Serial)>,
}

/// One connection of a watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The revision it asked for.
    pub from: Revision,
    /// In the order in which they came.
    pub events: Vec<KeyEvent>,
    pub end: SessionEnd,
}

/// How a watcher's connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// It broke, or it still runs: what comes after the last event is not known.
    Lost,
    /// It was told that there is nothing more below this revision.
    UpTo(Revision),
    /// It was told that changes up to this revision are gone.
    Compacted(Revision),
}

/// Somebody who wants to see every change of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watcher {
    pub name: String,
    pub range: KeyRange,
    pub sessions: Vec<Session>,
}

/// Everything that was recorded of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    operations: Vec<Operation>,
    moments: u64,
    pub watchers: Vec<Watcher>,
    /// What the partitions held at the end.
    pub logs: BTreeMap<LogId, LogContent>,
    /// The part of the key space that this history is about, where others write elsewhere in it: their revisions are not in
    /// `changes`. `None`: nobody else writes keys, so there is a change at every revision.
    pub scope: Option<KeyRange>,
    /// Every change of keys from revision 2 to `changes_end`, as somebody who missed nothing saw it.
    pub changes: Vec<KeyEvent>,
    /// The last revision that `changes` covers; `None` where nobody saw all of it.
    pub changes_end: Option<Revision>,
}

impl History {
    pub fn new() -> Self {
        Self::default()
    }

    /// A history of operations that were recorded apart, ordered by their times; what happened in the same microsecond
    /// counts as concurrent.
    pub fn of(operations: Vec<Operation>) -> Self {
        let mut history = Self { operations, ..Self::default() };
        // Calls before answers of the same time.
        let mut moments: Vec<(u64, bool, usize)> = Vec::new();
        for (position, operation) in history.operations.iter().enumerate() {
            moments.push((operation.invoked_us, false, position));
            if let Some(returned) = operation.returned_us.filter(|_| operation.outcome != Outcome::Unknown) {
                assert!(returned >= operation.invoked_us, "an answer does not come before its call");
                moments.push((returned, true, position));
            }
        }
        moments.sort_unstable();
        for (moment, (_, returns, position)) in (0..).zip(moments) {
            let operation = &mut history.operations[position];
            *(if returns { &mut operation.ended } else { &mut operation.began }) = moment;
            history.moments = moment + 1;
        }
        history
    }

    fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments - 1
    }

    /// Records a call, before it leaves. Until it is completed its outcome is not known.
    pub fn invoke(&mut self, client: u64, now_us: u64, what: What) -> OpId {
        let began = self.moment();
        let operation = Operation {
            client,
            invoked_us: now_us,
            returned_us: None,
            what,
            outcome: Outcome::Unknown,
            began,
            ended: u64::MAX,
        };
        self.operations.push(operation);
        OpId(self.operations.len() - 1)
    }

    /// Records an answer, after it has come.
    ///
    /// # Panics
    /// When the operation has its answer already, or the answer is none to what was asked.
    pub fn complete(&mut self, id: OpId, now_us: u64, outcome: Outcome) {
        let ended = self.moment();
        let operation = &mut self.operations[id.0];
        assert!(operation.returned_us.is_none(), "operation {} is answered twice", id.0);
        let fits = match (&operation.what, &outcome) {
            (_, Outcome::Failed | Outcome::Unknown) => true,
            (What::Commit(commit), Outcome::Done(done)) => {
                done.offsets.len() == commit.appends.len() || done.offsets.is_empty()
            }
            (What::Txn { .. }, Outcome::Transacted { .. } | Outcome::Refused { .. })
            | (What::Commit(_), Outcome::Refused { .. })
            | (What::Read { .. }, Outcome::Found(_) | Outcome::Refused { .. })
            | (What::Fetch { .. }, Outcome::Fetched(_) | Outcome::Refused { .. }) => true,
            _ => false,
        };
        assert!(fits, "{outcome:?} is no answer to {:?}", operation.what);
        operation.returned_us = Some(now_us);
        if outcome != Outcome::Unknown {
            operation.ended = ended;
        }
        operation.outcome = outcome;
    }

    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    pub fn get(&self, id: OpId) -> &Operation {
        &self.operations[id.0]
    }

    /// Whether anybody asked for a transaction; [`crate::txns`] then judges all of the operations on keys.
    pub fn has_transactions(&self) -> bool {
        self.operations.iter().any(|operation| matches!(operation.what, What::Txn { .. }))
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty() && self.watchers.is_empty()
    }
}
