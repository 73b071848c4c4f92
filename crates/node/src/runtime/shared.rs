//! What edges may look at without asking the node's task: the view of the cluster, topics and their ends, cursors.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use tokio::sync::{Notify, watch};

use buttress_core::{
    LogId, Offset, Revision,
    ledger::{ClusterView, TopicView},
};

use crate::{
    store::{LogReader, StoreHandle},
    transport,
    wal::{Histogram, WalStats},
};

/// The live end of one partition.
#[derive(Debug, Default)]
pub(super) struct LogState {
    pub start: AtomicI64,
    pub end: AtomicI64,
    pub grown: Notify,
}

impl LogState {
    pub fn range(&self) -> (Offset, Offset) {
        (Offset(self.start.load(Ordering::Acquire)), Offset(self.end.load(Ordering::Acquire)))
    }

    /// Moves forward only, the end first, so that whoever looks meanwhile never sees a log that shrinks or begins behind
    /// its end. Gives by how many records the log grew.
    pub fn move_to(&self, start: Option<Offset>, end: Offset) -> u64 {
        let before = self.end.fetch_max(end.0, Ordering::AcqRel);
        if let Some(start) = start {
            self.start.fetch_max(start.0, Ordering::AcqRel);
        }
        if end.0 > before {
            self.grown.notify_waiters();
        }
        (end.0 - before).max(0) as u64
    }
}

/// Figures for `/metrics`.
#[derive(Debug, Default)]
pub struct Counters {
    pub submitted: AtomicU64,
    pub forwarded: AtomicU64,
    pub refused: AtomicU64,
    pub failed: AtomicU64,
    pub resent: AtomicU64,
    pub applied_entries: AtomicU64,
    pub applied_records: AtomicU64,
    pub leader_changes: AtomicU64,
    pub snapshots_sent: AtomicU64,
    pub snapshots_installed: AtomicU64,
    pub turns: AtomicU64,
    /// From losing the leader to knowing the next one.
    pub election: Histogram,
    /// From `submit` to applied on this node.
    pub commit: Histogram,
}

pub(super) struct Shared {
    /// Watchers see changes of leader, term and membership; indexes are updated in place.
    pub view: watch::Sender<ClusterView>,
    pub topics: RwLock<Arc<BTreeMap<String, TopicView>>>,
    pub logs: RwLock<HashMap<LogId, Arc<LogState>>>,
    pub cursors: RwLock<HashMap<(String, LogId), Offset>>,
    pub revision: watch::Sender<Revision>,
    /// Follows the store when a snapshot replaces it.
    pub reader: LogReader,
    pub counters: Counters,
    pub wal: Arc<WalStats>,
    pub store: StoreHandle,
    pub transport: Arc<transport::Counters>,
}

impl Shared {
    pub fn log(&self, log: LogId) -> Option<Arc<LogState>> {
        self.logs.read().expect("no holder panics").get(&log).cloned()
    }
}
