//! What the host does or answers because of an applied entry.

use buttress_core::{
    Error, Index, LeaseId, LogId, Offset, Receipt, Refusal, RequestId, Term, TimeMs,
    ledger::{KeyEvent, KeyValue},
};

use crate::cursors::Position;

/// A topic came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicEvent {
    Created {
        name: String,
        logs: Vec<LogId>,
    },
    /// Its settings are others, or it has these partitions more.
    Changed {
        name: String,
        logs: Vec<LogId>,
    },
    Deleted {
        name: String,
        logs: Vec<LogId>,
    },
}

/// The outcome of one applied entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effects {
    pub index: Index,
    pub term: Term,
    /// The state's clock behind it, whatever became of the entry.
    pub time: TimeMs,
    /// The request that the entry carried, for hosts that find the waiting client by it.
    pub request: Option<RequestId>,
    pub result: Result<Receipt, Refusal>,
    /// For each change of a key, in their order, the key as it was left; of a delete, only the key and the revision. All of them
    /// have the same revision.
    pub kvs: Vec<KeyValue>,
    /// Partitions that grew, with their new ends.
    pub ends: Vec<(LogId, Offset)>,
    /// Partitions whose start moved, with their new starts.
    pub starts: Vec<(LogId, Offset)>,
    /// Cursors that moved, or, without a position, went.
    pub cursors: Vec<(String, LogId, Option<Position>)>,
    pub topics: Vec<TopicEvent>,
    /// Leases that were revoked or expired.
    pub leases_ended: Vec<LeaseId>,
    /// Ids of the timers that fired.
    pub timers_fired: Vec<String>,
    /// [`crate::Machine::next_deadline`] is another one than before.
    pub deadline_changed: bool,
    /// The entry could not be judged: the store could not be read, or the entry is of a format that this version does not know. The machine changes nothing from here on; the
    /// host must stop the node, answer nothing and write no checkpoint.
    pub fatal: Option<Error>,
}

impl Effects {
    pub(crate) fn new(index: Index, term: Term, result: Result<Receipt, Refusal>) -> Self {
        Self {
            index,
            term,
            time: TimeMs(0),
            request: None,
            result,
            kvs: Vec::new(),
            ends: Vec::new(),
            starts: Vec::new(),
            cursors: Vec::new(),
            topics: Vec::new(),
            leases_ended: Vec::new(),
            timers_fired: Vec::new(),
            deadline_changed: false,
            fatal: None,
        }
    }

    /// Changes of keys, in their order.
    pub fn events(&self) -> impl Iterator<Item = KeyEvent> {
        self.kvs.iter().map(|kv| KeyEvent {
            revision: kv.mod_revision,
            key: kv.key.clone(),
            value: (kv.version > 0).then(|| kv.value.clone()),
        })
    }
}
