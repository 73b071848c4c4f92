//! What edges may look at without asking the node's task: the view of the cluster, topics and their ends, cursors.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use buttress_consensus::Status;
use buttress_core::{
    Clocks, ClusterClock, LogId, NodeId, Offset, Revision, Term, TimeMs,
    ledger::{ClusterView, CursorView, TopicView},
};

use super::{WallClock, follow::Followed, ring::Ring};
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
    /// How often entries were read from the log on disk for a follower that lagged.
    pub log_reads: AtomicU64,
    /// Entries of the log in memory, as of the last tick.
    pub log_memory_bytes: AtomicU64,
    pub snapshots_installed: AtomicU64,
    pub turns: AtomicU64,
    /// Times that this node gave leadership away because its disk was slow.
    pub gave_way: AtomicU64,
    /// Times that this node handed leadership over for any reason.
    pub handed_over: AtomicU64,
    pub promoted: AtomicU64,
    /// Reads of keys that asked a quorum first, and those that did not.
    pub reads_linearizable: AtomicU64,
    pub reads_serializable: AtomicU64,
    /// From losing the leader to knowing the next one.
    pub election: Histogram,
    /// From `submit` to applied on this node.
    pub commit: Histogram,
}

/// Leaders that are remembered with their times.
const LEADERS_MAX: usize = 32;

/// A leader, and when this node heard of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderSeen {
    pub at: TimeMs,
    pub leader: Option<NodeId>,
    pub term: Term,
}

/// Where a node stands, for whoever looks after it.
#[derive(Clone, Debug)]
pub struct Inspection {
    pub consensus: Status,
    /// Written and not on disk yet.
    pub store_pending_bytes: u64,
    /// Entries of this node that are not answered yet.
    pub waiting: usize,
    /// Followers to whom a snapshot is under way.
    pub sending_snapshots: Vec<NodeId>,
    /// Since the start.
    pub up: Duration,
}

/// The node's clocks, and the cluster's time by them.
pub(super) struct Time {
    wall: WallClock,
    started: Instant,
    clock: Mutex<ClusterClock>,
}

impl Time {
    /// The latest entry that was applied before this start says `stamp`.
    pub fn start(wall: WallClock, stamp: TimeMs) -> Self {
        let clocks = Clocks { monotonic_ms: 0, wall: wall() };
        Self { wall, started: Instant::now(), clock: Mutex::new(ClusterClock::start(clocks, stamp)) }
    }

    /// What the wall clock says: for people, and for the timestamps of records.
    pub fn wall(&self) -> TimeMs {
        (self.wall)()
    }

    /// The cluster's time.
    pub fn now(&self) -> TimeMs {
        self.with(ClusterClock::now)
    }

    pub fn with<R>(&self, run: impl FnOnce(&mut ClusterClock, Clocks) -> R) -> R {
        let mut clock = self.clock.lock().expect("no holder panics");
        let clocks = Clocks { monotonic_ms: self.started.elapsed().as_millis() as u64, wall: self.wall() };
        run(&mut clock, clocks)
    }
}

pub(super) struct Shared {
    pub time: Time,
    /// Watchers see changes of leader, term and membership; indexes are updated in place.
    pub view: watch::Sender<ClusterView>,
    pub topics: RwLock<Arc<BTreeMap<String, TopicView>>>,
    pub logs: RwLock<HashMap<LogId, Arc<LogState>>>,
    /// By group, so that one is found without copying its name.
    pub cursors: RwLock<HashMap<String, BTreeMap<LogId, CursorView>>>,
    pub revision: watch::Sender<Revision>,
    /// The latest changes of keys.
    pub ring: Arc<Ring>,
    /// Ranges of keys of which somebody wants to hear when they change.
    pub followed: Followed,
    /// Follows the store when a snapshot replaces it.
    pub reader: LogReader,
    pub counters: Counters,
    /// The latest leaders, oldest first.
    pub leaders: Mutex<VecDeque<LeaderSeen>>,
    pub wal: Arc<WalStats>,
    pub store: StoreHandle,
    pub transport: Arc<transport::Counters>,
}

impl Shared {
    pub fn note_leader(&self, seen: LeaderSeen) {
        let mut leaders = self.leaders.lock().expect("no holder panics");
        if leaders.len() == LEADERS_MAX {
            leaders.pop_front();
        }
        leaders.push_back(seen);
    }

    pub fn log(&self, log: LogId) -> Option<Arc<LogState>> {
        self.logs.read().expect("no holder panics").get(&log).cloned()
    }
}
