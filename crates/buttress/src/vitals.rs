//! What a node tells of itself to whoever looks after it: `GET /v1/node`. The doctor reads it.

use std::{path::PathBuf, sync::Arc, sync::atomic::Ordering::Relaxed};

use buttress_core::{Cluster as _, Error};
use buttress_node::{runtime::Handle, wal::Histogram};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vitals {
    pub version: String,
    pub cluster_id: String,
    pub node: u64,
    /// The node's wall clock when it answered.
    pub now_ms: u64,
    pub up_ms: u64,
    pub leader: Option<u64>,
    pub term: u64,
    pub committed: u64,
    pub applied: u64,
    pub revision: u64,
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    /// While a joint change runs.
    pub voters_outgoing: Vec<u64>,
    /// Of the followers; only the leader knows.
    pub peers: Vec<Peer>,
    pub leaders: Vec<LeaderSeen>,
    pub wal: Wal,
    pub store: Store,
    pub reads: Reads,
    pub disk: Option<Space>,
    pub memory: Option<Memory>,
    pub files: Option<Files>,
    pub digests: Vec<Digest>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub id: u64,
    pub matched: u64,
    pub active: bool,
    pub snapshot: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderSeen {
    pub at_ms: u64,
    pub leader: Option<u64>,
    pub term: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wal {
    pub syncs: u64,
    /// Upper bounds, since the start.
    pub sync_p50_us: u64,
    pub sync_p99_us: u64,
    pub queued_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    pub checkpoint_index: u64,
    pub checkpoint_p99_us: u64,
    pub pending_bytes: u64,
    /// Entries in memory: those under way, and a tail for followers that lag.
    pub log_bytes: u64,
    pub rows_disk_bytes: u64,
    /// Entries of this node that are not answered yet.
    pub waiting: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reads {
    pub linearizable: u64,
    pub serializable: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub resident_bytes: u64,
    /// Of the machine, or of the control group where that is less.
    pub total_bytes: u64,
    pub available_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    pub open: u64,
    pub limit: u64,
}

/// See [`buttress_node::store::Digest`]; the hash in hex, because JSON's numbers end at 2^53.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    pub from: u64,
    pub to: u64,
    pub hash: String,
}

/// Digests that are told: enough to meet those of a node that is seconds behind.
const DIGESTS_MAX: usize = 512;

/// Reads a node's vitals.
pub struct Nurse {
    node: Arc<Handle>,
    data_dir: PathBuf,
}

impl Nurse {
    pub fn new(node: Arc<Handle>, data_dir: PathBuf) -> Self {
        Self { node, data_dir }
    }

    /// # Errors
    /// `STOPPED`.
    pub async fn look(&self) -> Result<Vitals, Error> {
        let seen = self.node.inspect().await?;
        let view = self.node.view();
        let (wal, store, counters) = (self.node.wal_stats(), self.node.store(), self.node.counters());
        let engine = seen.consensus.engine;
        let ids = |ids: &[buttress_core::NodeId]| ids.iter().map(|id| id.0).collect();
        let quantile = |histogram: &Histogram, q| histogram.quantile_us(q);
        let digests = store.digests();
        let peers = engine.peers.iter().map(|peer| Peer {
            id: peer.id.0,
            matched: peer.matched.0,
            active: peer.active,
            snapshot: seen.sending_snapshots.contains(&peer.id),
        });
        Ok(Vitals {
            version: env!("CARGO_PKG_VERSION").into(),
            cluster_id: view.cluster_id,
            node: view.node.0,
            up_ms: seen.up.as_millis() as u64,
            leader: engine.role.leader.map(|id| id.0),
            term: engine.role.term.0,
            committed: engine.committed.0,
            applied: engine.applied.0,
            revision: view.revision.0,
            voters: ids(&engine.members.voters),
            learners: ids(&engine.members.learners),
            voters_outgoing: ids(&engine.members.voters_outgoing),
            peers: peers.collect(),
            leaders: self
                .node
                .leaders()
                .into_iter()
                .map(|seen| LeaderSeen { at_ms: seen.at.0, leader: seen.leader.map(|id| id.0), term: seen.term.0 })
                .collect(),
            wal: Wal {
                syncs: wal.sync_us.count(),
                sync_p50_us: quantile(&wal.sync_us, 0.5),
                sync_p99_us: quantile(&wal.sync_us, 0.99),
                queued_bytes: wal.queued_bytes.load(Relaxed),
            },
            store: Store {
                checkpoint_index: store.stats().checkpoint_index.load(Relaxed),
                checkpoint_p99_us: quantile(&store.stats().checkpoint_us, 0.99),
                pending_bytes: seen.store_pending_bytes,
                log_bytes: engine.log_bytes as u64,
                rows_disk_bytes: store.rows_disk_bytes(),
                waiting: seen.waiting as u64,
            },
            reads: Reads {
                linearizable: counters.reads_linearizable.load(Relaxed),
                serializable: counters.reads_serializable.load(Relaxed),
            },
            disk: space(&self.data_dir),
            memory: memory(),
            files: files(),
            digests: digests
                .iter()
                .skip(digests.len().saturating_sub(DIGESTS_MAX))
                .map(|d| Digest { from: d.from.0, to: d.to.0, hash: format!("{:016x}", d.hash) })
                .collect(),
            // Last, so that little time passes before the answer leaves.
            now_ms: self.node.now().0,
        })
    }

    /// Gauges of disk, memory and files for `/metrics`.
    pub fn metrics(&self, out: &mut String) {
        use std::fmt::Write as _;
        let mut gauge = |name: &str, help: &str, value: Option<u64>| {
            if let Some(value) = value {
                let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
            }
        };
        let (disk, memory, files) = (space(&self.data_dir), memory(), files());
        let name = "buttress_node_disk_free_bytes";
        gauge(name, "Free on the data directory's disk.", disk.map(|d| d.free_bytes));
        gauge("buttress_node_disk_total_bytes", "Size of the data directory's disk.", disk.map(|d| d.total_bytes));
        let name = "buttress_node_memory_available_bytes";
        gauge(name, "Memory that this machine or control group has left.", memory.map(|m| m.available_bytes));
        gauge("process_open_fds", "Open file descriptors.", files.map(|f| f.open));
        gauge("process_max_fds", "Most file descriptors that may be open.", files.map(|f| f.limit));
    }
}

fn space(dir: &std::path::Path) -> Option<Space> {
    let told = rustix::fs::statvfs(dir).ok()?;
    // What is free for whoever is not root.
    Some(Space { total_bytes: told.f_blocks * told.f_frsize, free_bytes: told.f_bavail * told.f_frsize })
}

fn memory() -> Option<Memory> {
    let kib = |text: &str, key: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    };
    let machine = std::fs::read_to_string("/proc/meminfo").ok()?;
    let own = std::fs::read_to_string("/proc/self/status").ok()?;
    let mut memory = Memory {
        resident_bytes: kib(&own, "VmRSS:")?,
        total_bytes: kib(&machine, "MemTotal:")?,
        available_bytes: kib(&machine, "MemAvailable:")?,
    };
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    if let (Some(limit), Some(used)) = (number("/sys/fs/cgroup/memory.max"), number("/sys/fs/cgroup/memory.current"))
        && limit < memory.total_bytes
    {
        memory.total_bytes = limit;
        memory.available_bytes = memory.available_bytes.min(limit.saturating_sub(used));
    }
    Some(memory)
}

fn files() -> Option<Files> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    let (limit, _) = rlimit::Resource::NOFILE.get().ok()?;
    Some(Files { open, limit })
}
