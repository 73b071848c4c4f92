//! Builds the data directory of one node of a new cluster from a backup.
//!
//! Every node of the new cluster is restored from the same file, so all start with the same state at the same index, and
//! elect a leader among themselves as after any stop. Who they are says the configuration: the backup's own members play
//! no part. The new cluster has an id of its own, so that a member of the old one that wakes up somewhere is refused by
//! its transport and cannot take part.
//!
//! | step | a crash behind it leaves |
//! |---|---|
//! | the whole file is verified | nothing |
//! | `RESTORING` is written | a directory that a node refuses and a restore begins anew |
//! | write-ahead log: marker and hard state | the same |
//! | store: received, verified again, installed, and opened once | the same |
//! | `RESTORING` is removed | a node's data directory |

use std::path::Path;

use buttress_consensus::SnapshotMeta;
use buttress_core::{Code, Error, NodeId};
use bytes::Bytes;

use super::{
    format::{Decoder, Part, Trailer},
    verify::{Verified, read, verify},
};
use crate::{
    runtime::{Config, Options, SHARD},
    store::{DiskStore, StoreHandle},
    wal::{self, Disk, Identity, disk::disk_error},
};

const RESTORING: &str = "RESTORING";
/// What a lock of the directory leaves.
const LOCK: &str = "LOCK";
/// What is ours in a data directory.
const PARTS: [&str; 2] = ["store", "wal"];

#[derive(Clone, Default)]
pub struct RestoreOptions {
    /// Let the new cluster have the id of the one that the backup was taken of.
    pub same_cluster_id: bool,
    /// As for a node.
    pub node: Options,
}

/// How far a restore is, in bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Verifying(u64),
    Writing(u64),
}

/// Refuses a data directory that a restore left unfinished. Every node asks before it opens its own.
///
/// # Errors
/// `RESTORE_UNFINISHED`.
pub fn refuse_unfinished(data_dir: &Path) -> Result<(), Error> {
    if data_dir.join(RESTORING).exists() {
        let message = format!("a restore into \"{}\" did not finish", data_dir.display());
        return Err(Error::new(Code::RESTORE_UNFINISHED, message)
            .hint("run buttress restore again with the same configuration; it begins anew"));
    }
    Ok(())
}

/// Restores the node that `config` describes from the backup in `file`.
///
/// # Errors
/// `BACKUP_DAMAGED` or `FORMAT` before anything is written; `CONFIG`, `DIR_NOT_EMPTY`, `DIR_LOCKED`, `DISK`, `DISK_FULL`.
pub fn restore(
    file: &Path,
    config: &Config,
    options: &RestoreOptions,
    mut progress: impl FnMut(Progress),
) -> Result<Verified, Error> {
    config.validate()?;
    let verified = verify(file, &[], |bytes| progress(Progress::Verifying(bytes)))?;
    let of = &verified.header;
    if of.cluster_id == config.cluster_id && !options.same_cluster_id {
        let message = format!("the configuration has the cluster id of the backup, \"{}\"", of.cluster_id);
        return Err(Error::new(Code::CONFIG, message).hint(
            "give cluster.id another value on every node, so that no old member can join; --same-cluster-id if none is left",
        ));
    }
    let dir = &config.data_dir;
    refuse_used(dir)?;
    let disk = options.node.disk(dir)?;
    // Now that it is ours: what was looked at may have changed.
    refuse_used(dir)?;
    mark(&*disk, &verified.trailer)?;
    for part in PARTS {
        disk.remove_dir_all(part)
            .or_else(missing_is_fine)
            .map_err(|e| disk_error(format!("cannot remove {part}"), &e))?;
    }
    let mut voters: Vec<NodeId> = config.members.iter().map(|member| member.id).collect();
    voters.sort_unstable();
    let members = buttress_consensus::Members { voters, ..Default::default() };
    let snapshot = SnapshotMeta { index: of.index, term: of.term, members };
    write_log(config, options, &snapshot)?;
    write_store(file, config, options, &verified, snapshot.encode(), |bytes| progress(Progress::Writing(bytes)))?;
    let finish = || {
        disk.sync_dir("")?;
        disk.remove(RESTORING)?;
        disk.sync_dir("")
    };
    finish().map_err(|e| disk_error("cannot finish the restore", &e))?;
    // Nobody needs it any more; a node locks its log and its store.
    let _ = disk.remove(LOCK);
    tracing::info!(index = of.index.0, term = of.term.0, event_type = "restored", "a backup is restored");
    Ok(verified)
}

fn missing_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// A directory may hold nothing, or the remains of a restore.
fn refuse_used(dir: &Path) -> Result<(), Error> {
    let failed = |e: std::io::Error| disk_error(format_args!("cannot list \"{}\"", dir.display()), &e);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return missing_is_fine(error).map_err(failed),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed)?.file_name());
    }
    names.sort();
    let unfinished = names.iter().any(|name| name == RESTORING);
    let ours = |name: &std::ffi::OsString| {
        name == LOCK || name == "lost+found" || (unfinished && (name == RESTORING || PARTS.iter().any(|p| name == p)))
    };
    match names.iter().find(|name| !ours(name)) {
        None => Ok(()),
        Some(name) => {
            let message = format!("\"{}\" is not empty: it holds \"{}\"", dir.display(), name.display());
            Err(Error::new(Code::DIR_NOT_EMPTY, message)
                .hint("name an empty directory as node.data_dir, or move this one away"))
        }
    }
}

/// From here on the directory is no node's until it is whole.
fn mark(disk: &dyn Disk, trailer: &Trailer) -> Result<(), Error> {
    let write = || {
        let file = disk.open(RESTORING, wal::disk::Open::Create)?;
        file.set_len(0)?;
        file.write_all_at(format!("buttress restore {}\n", trailer.sha256_hex()).as_bytes(), 0)?;
        file.sync_data()?;
        disk.sync_dir("")
    };
    write().map_err(|e| disk_error("cannot begin the restore", &e))
}

fn identity(config: &Config) -> Identity {
    Identity { cluster_id: config.cluster_id.clone(), node: config.node }
}

/// A log as it is after a snapshot was installed: the snapshot's place, the term, and a vote for nobody.
fn write_log(config: &Config, options: &RestoreOptions, snapshot: &SnapshotMeta) -> Result<(), Error> {
    let disk = options.node.disk(&config.data_dir.join("wal"))?;
    let (mut log, _) = wal::Wal::open(disk, identity(config), options.node.wal.clone())?;
    let SnapshotMeta { index, term, .. } = *snapshot;
    let mut batch = wal::Batch::default();
    batch.marker(SHARD, &wal::Marker { index, term, meta: snapshot.encode() });
    batch.hard_state(SHARD, wal::HardState { term, vote: NodeId(0), commit: index });
    log.commit(&mut batch)
}

fn write_store(
    file: &Path,
    config: &Config,
    options: &RestoreOptions,
    verified: &Verified,
    meta: Bytes,
    mut progress: impl FnMut(u64),
) -> Result<(), Error> {
    let path = config.data_dir.join("store");
    let disk = options.node.disk(&path)?;
    let empty = DiskStore::open_on(disk, path, identity(config), options.node.store.clone(), |_| {})?;
    let store: StoreHandle = empty.handle();
    let mut receiver = store.receive_of(&verified.header.cluster_id)?;
    let mut decoder = Decoder::default();
    read(file, |piece, at| {
        decoder.push(piece);
        while let Some(part) = decoder.next_part()? {
            if let Part::Chunk(chunk) = part {
                receiver.push(chunk)?;
            }
        }
        progress(at);
        Ok(())
    })?;
    if decoder.finish()? != verified.trailer {
        return Err(Error::new(Code::BACKUP_DAMAGED, "the backup changed while it was restored"));
    }
    let received = receiver.finish_as(meta)?;
    let store = store.install(received)?;
    drop(empty);
    // What cannot become a machine would only stop the node later, with less to be done about it.
    buttress_state::Machine::open(store).map(drop).map_err(|error| {
        Error::new(Code::BACKUP_DAMAGED, format!("the state of the backup cannot be rebuilt: {error}"))
            .hint("take another backup; was this one written by a later version?")
    })
}
