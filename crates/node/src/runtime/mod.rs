//! Drives one replica for real.
//!
//! One task owns the replica. It drains everything that has come since its last turn (peers' messages, proposals, synced
//! tickets, ticks), steps the replica once, and carries out what the replica wants: send, persist, answer. The write-ahead
//! log has a thread of its own, and so has the store; neither ever blocks the task.
//!
//! The way of a commit: [`Handle::submit`] hands the entry to the task. On the leader it is proposed; elsewhere it is sent
//! to the leader. Either way the submitter waits until *its own node* applies the entry, so what it reads here afterwards
//! includes its write. If the leader changes first, the entry is sent again to the next one; state remembers the request's
//! result, so it is never applied twice.

mod admin;
mod core_loop;
mod follow;
mod give_way;
mod handle;
mod plan;
mod ring;
mod shared;
mod snapshots;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{net::TcpListener, sync::mpsc};

use buttress_core::{
    Error, NodeId, TimeMs,
    entry::{ENTRY_FORMAT_MAX, ENTRY_FORMAT_RELEASED},
    ledger::Member,
    limits,
};

pub use admin::{MemberDone, MemberRequest};
pub use core_loop::Running;
pub(crate) use core_loop::SHARD;
pub use give_way::Options as GiveWayOptions;
pub use handle::Handle;
pub use shared::{Counters, Inspection, LeaderSeen};

use crate::{
    store,
    wal::{self, DirDisk, Disk},
};

/// How long one tick of the consensus clock lasts. An election starts after 10 to 20 ticks without a leader.
pub const TICK: Duration = Duration::from_millis(50);

/// What a node needs to know before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub cluster_id: String,
    pub node: NodeId,
    /// The founders, and this node. The first start of every founder must be given the same members. Of members that
    /// joined later the log knows the addresses, and what it knows counts; until a newcomer has the log, these are whom it
    /// knows.
    pub members: Vec<Member>,
    /// A node with an empty data directory joins the members that are there, under an id that the cluster gave it.
    /// Otherwise it founds the cluster with all of `members`.
    pub join: bool,
    pub data_dir: PathBuf,
    /// Seeds election timeouts; differs from node to node.
    pub seed: u64,
    /// Drawn at random at each start: identifies this run's requests.
    pub client: u64,
}

/// Sizes and times of a node. The defaults are those of production; tests make them small.
#[derive(Clone)]
pub struct Options {
    pub store: store::Options,
    pub wal: wal::Options,
    /// Entries kept behind the last checkpoint for followers that lag.
    pub log_tail_bytes: usize,
    /// Applied entries that stay in memory; a follower that lags further is sent what the log on disk has.
    pub log_memory_bytes: usize,
    /// Entries that a leader keeps beyond, for a follower that it reaches and that lags or takes a snapshot. One whose
    /// snapshot takes longer than it takes to write this much needs another.
    pub lagging_log_bytes_max: usize,
    /// Committed records that wait to be filed by the store's thread. Above it a leader proposes nothing new, and a follower
    /// does not read what its leader sends, until half of it is left: producers wait meanwhile, and nothing is refused.
    pub unfiled_bytes_max: u64,
    /// Proposals that wait for their commit; the leader refuses more.
    pub uncommitted_bytes_max: usize,
    pub tick: Duration,
    /// A submitted entry is given up after this long; its outcome is then unknown, unless it was never sent.
    pub submit_deadline: Duration,
    /// A linearizable read is given up after this long.
    pub read_deadline: Duration,
    /// An entry that was sent to a leader and not applied is sent again after this long, and then ever more rarely.
    pub resend_after: Duration,
    /// Retention is looked at this often.
    pub retention_every: Duration,
    /// When a leader whose disk is slow gives way.
    pub give_way: GiveWayOptions,
    /// A leader that stops hands over first, and a node that stops answers what is under way, for at most this long.
    pub stop_deadline: Duration,
    /// A node that the leader does not know gives up after this long.
    pub unknown_deadline: Duration,
    /// The newest format of entries that this node reads and proposes. Less than this version's only in tests, where it
    /// makes an older node.
    pub entry_format: u8,
    /// The format that a member reads which has not said anything. Less than what was released first only in tests.
    pub entry_format_of_all: u8,
    /// What needs a newer format than the cluster has agreed on waits so long for it.
    pub format_wait: Duration,
    /// Puts a disk that misbehaves in the place of the real one.
    pub wrap_disk: Option<WrapDisk>,
    /// Gives the wall clock's time. The system's, but in tests of what a wrong one does.
    pub wall_clock: WallClock,
}

pub type WallClock = Arc<dyn Fn() -> TimeMs + Send + Sync>;
pub type WrapDisk = Arc<dyn Fn(DirDisk) -> Arc<dyn Disk> + Send + Sync>;

impl Default for Options {
    fn default() -> Self {
        Self {
            store: store::Options::default(),
            wal: wal::Options::default(),
            log_tail_bytes: limits::LOG_TAIL_BYTES,
            log_memory_bytes: limits::LOG_MEMORY_BYTES,
            lagging_log_bytes_max: 8 * limits::LOG_TAIL_BYTES,
            unfiled_bytes_max: limits::UNFILED_BYTES_MAX,
            uncommitted_bytes_max: 4 * limits::ENTRY_BYTES_MAX,
            tick: TICK,
            submit_deadline: Duration::from_secs(10),
            read_deadline: Duration::from_secs(5),
            resend_after: Duration::from_secs(1),
            retention_every: Duration::from_secs(10),
            give_way: GiveWayOptions::default(),
            stop_deadline: Duration::from_secs(3),
            unknown_deadline: Duration::from_secs(5),
            entry_format: ENTRY_FORMAT_MAX,
            entry_format_of_all: ENTRY_FORMAT_RELEASED,
            // Members say what they read once a second.
            format_wait: Duration::from_secs(3),
            wrap_disk: None,
            wall_clock: Arc::new(|| {
                TimeMs(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
            }),
        }
    }
}

impl Options {
    pub(crate) fn disk(&self, path: &Path) -> Result<Arc<dyn Disk>, Error> {
        let disk = DirDisk::open(path)?;
        Ok(match &self.wrap_disk {
            Some(wrap) => wrap(disk),
            None => Arc::new(disk),
        })
    }
}

/// Opens the data directory, rebuilds the state, and starts the node's tasks on the current runtime.
///
/// The returned future ends when the node has stopped: with an error when a disk fault or a safety violation stopped it.
///
/// # Errors
/// `WRONG_CLUSTER`, `FORMAT`, `DIR_LOCKED`, `CORRUPT`, `DISK`, `DISK_FULL`, `CONFIG`.
pub fn start(config: Config, peer_listener: TcpListener) -> Result<(Arc<Handle>, Running), Error> {
    start_with(config, Options::default(), peer_listener)
}

/// As [`start`], with other sizes and times.
///
/// # Errors
/// As [`start`].
pub fn start_with(
    config: Config,
    options: Options,
    peer_listener: TcpListener,
) -> Result<(Arc<Handle>, Running), Error> {
    let (commands, inbox) = mpsc::channel(core_loop::COMMANDS_MAX);
    let core = core_loop::Core::open(&config, options, peer_listener)?;
    let handle = Arc::new(Handle::new(commands, core.shared()));
    Ok((handle, core.run(inbox)))
}

impl Config {
    /// # Errors
    /// `CONFIG` when members are missing, doubled or lack this node.
    pub fn validate(&self) -> Result<(), Error> {
        use buttress_core::Code;
        let mut seen = BTreeMap::new();
        for member in &self.members {
            if member.id.0 == 0 {
                return Err(Error::new(Code::CONFIG, "a member has the id 0").hint("ids count from 1"));
            }
            if let Some(other) = seen.insert(member.id, &member.name) {
                let message = format!("members \"{other}\" and \"{}\" have the same id {}", member.name, member.id);
                return Err(Error::new(Code::CONFIG, message).hint("give every member an id of its own"));
            }
        }
        if !seen.contains_key(&self.node) {
            let message = format!("node {} is not among the members {:?}", self.node, seen.keys());
            return Err(Error::new(Code::CONFIG, message).hint("add this node to [[members]]"));
        }
        Ok(())
    }
}
