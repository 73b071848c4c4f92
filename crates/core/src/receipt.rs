//! What applying an entry answers.

use crate::{
    entry::Guard,
    error::{Code, Error},
    ids::{Index, LogId, Offset, Revision, Term, TimeMs},
    txn::TxnResult,
};

/// The entry was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    pub index: Index,
    pub term: Term,
    /// The key space's revision after the entry.
    pub revision: Revision,
    /// The entry's time as state counted it.
    pub time: TimeMs,
    /// One outcome per append, in the entry's order.
    pub appends: Vec<AppendOutcome>,
    /// Partitions of the topics that the entry created, in the entry's order: topic name and its logs.
    pub created: Vec<(String, Vec<LogId>)>,
    /// One per change of a lease, in the entry's order: its time to live in milliseconds, counted from `time`; 0 for a
    /// lease that was revoked.
    pub lease_ttls_ms: Vec<u64>,
    /// What the entry's transaction did.
    pub txn: Option<TxnResult>,
    /// This is the remembered result of an earlier attempt.
    pub replayed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendOutcome {
    /// Appended from this offset on.
    Appended { base_offset: Offset },
    /// The sequence was seen before: acknowledged, not appended again. The offset is known for recent batches.
    Duplicate { base_offset: Option<Offset> },
    /// A number was skipped.
    Gap { expected: i64 },
    /// A newer epoch of the producer exists.
    StaleEpoch { current: i32 },
    /// There is no such partition (any more).
    UnknownLog,
}

/// The entry was refused: nothing of it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The guard at this position did not hold; `found` says what is there instead.
    Guard { position: usize, guard: Guard, found: String },
    /// A part cannot be carried out: a topic exists, a lease is unknown, …
    Part { code: Code, message: String },
}

impl Refusal {
    pub fn into_error(self) -> Error {
        match self {
            Self::Guard { position, guard, found } => {
                Error::new(Code::REFUSED, format!("guard {position} does not hold: {guard:?}, found {found}"))
            }
            Self::Part { code, message } => Error::new(code, message),
        }
    }
}
