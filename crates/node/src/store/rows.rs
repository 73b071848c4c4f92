//! The rows on disk: fjall, and how a checkpoint is laid out in it.
//!
//! Three keyspaces hold the machine's tables. A fourth, `store`, says what the checkpoint is: its head (index, term, the
//! host's blob), and per record log where it begins and ends and which segments of which length it has. All of it is
//! written in one atomic, synced batch; so the record files' lengths in here are the truth, and what files have beyond
//! them never happened.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use buttress_core::{
    Code, Error, Index, LogId, Offset, Reader, Table, Term, TimeMs, Writer, codec::DecodeError, store::RowKey,
};
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use super::{
    frames::{HEADER_BYTES, Segment, Sparse},
    root::Root,
};
use crate::wal::disk::{corrupt, disk_error};

const HEAD_FORMAT: u8 = 1;
const HEAD_KEY: &[u8] = b"head";
/// The host's blob: the members of a large cluster take a few hundred bytes.
pub const META_BYTES_MAX: usize = 64 * 1024;
/// A sparse index of a segment that is as long as one may be.
const SPARSE_MAX: usize = 1 << 20;

/// What a checkpoint is the state of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub index: Index,
    pub term: Term,
    pub meta: Bytes,
}

impl Head {
    fn encode(&self) -> Bytes {
        let mut w = Writer::default();
        w.u8(HEAD_FORMAT);
        w.varint(self.index.0);
        w.varint(self.term.0);
        w.bytes(&self.meta);
        w.finish()
    }

    pub(super) fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        match r.u8("head format")? {
            HEAD_FORMAT => {}
            got => return Err(DecodeError::Version { got, known: HEAD_FORMAT }),
        }
        let head = Self {
            index: Index(r.varint("index")?),
            term: Term(r.varint("term")?),
            meta: r.bytes("meta", META_BYTES_MAX)?,
        };
        r.end()?;
        Ok(head)
    }
}

/// Where a log begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRow {
    pub start: Offset,
    pub end: Offset,
}

fn log_key(log: LogId) -> Vec<u8> {
    let mut key = vec![b'l'];
    key.extend_from_slice(&log.0.to_be_bytes());
    key
}

fn segment_key(log: LogId, base: Offset) -> Vec<u8> {
    let mut key = vec![b's'];
    key.extend_from_slice(&log.0.to_be_bytes());
    key.extend_from_slice(&(base.0 as u64).to_be_bytes());
    key
}

pub(super) fn encode_segment(segment: &Segment) -> Bytes {
    let mut w = Writer::with_capacity(64 + segment.sparse.len() * 16);
    w.u8(1);
    w.zigzag(segment.last.0);
    w.varint(segment.bytes);
    w.zigzag(segment.max_timestamp_ms);
    w.varint(segment.first_committed_at.0);
    w.varint(segment.last_committed_at.0);
    w.list(&segment.sparse, |w, s| {
        w.zigzag(s.base.0);
        w.varint(s.at);
        w.zigzag(s.max_timestamp_before);
    });
    w.finish()
}

pub(super) fn decode_segment(base: Offset, bytes: Bytes) -> Result<Segment, DecodeError> {
    let mut r = Reader::new(bytes);
    match r.u8("segment format")? {
        1 => {}
        got => return Err(DecodeError::Version { got, known: 1 }),
    }
    let segment = Segment {
        base,
        last: Offset(r.zigzag("last offset")?),
        bytes: r.varint("bytes")?,
        max_timestamp_ms: r.zigzag("timestamp")?,
        first_committed_at: TimeMs(r.varint("first time")?),
        last_committed_at: TimeMs(r.varint("last time")?),
        sparse: r.list("sparse index", SPARSE_MAX, |r| {
            Ok(Sparse {
                base: Offset(r.zigzag("offset")?),
                at: r.varint("position")?,
                max_timestamp_before: r.zigzag("timestamp")?,
            })
        })?,
    };
    r.end()?;
    if segment.bytes < HEADER_BYTES as u64 {
        return Err(DecodeError::Short("segment"));
    }
    Ok(segment)
}

pub(super) fn encode_log(row: LogRow) -> Bytes {
    let mut w = Writer::default();
    w.zigzag(row.start.0);
    w.zigzag(row.end.0);
    w.finish()
}

pub(super) fn decode_log(bytes: Bytes) -> Result<LogRow, DecodeError> {
    let mut r = Reader::new(bytes);
    let row = LogRow { start: Offset(r.zigzag("start")?), end: Offset(r.zigzag("end")?) };
    r.end()?;
    Ok(row)
}

/// Changes of the `store` keyspace.
#[derive(Debug)]
pub enum StoreRow {
    Log(LogId, LogRow),
    Segment(LogId, Segment),
    NoLog(LogId),
    NoSegment(LogId, Offset),
}

/// The open database.
#[derive(Clone)]
pub struct Rows {
    db: Database,
    tables: [Keyspace; 3],
    store: Keyspace,
    /// The last field, so that the directory goes only after everything that has it open.
    pub dir: Arc<DirGuard>,
}

/// Removes a store's directory when the last user of its rows is gone, if it is no longer wanted.
pub struct DirGuard {
    pub root: Arc<Root>,
    pub number: u64,
    pub unwanted: AtomicBool,
}

impl Drop for DirGuard {
    fn drop(&mut self) {
        if self.unwanted.load(SeqCst)
            && let Err(error) = self.root.remove(self.number)
        {
            // It counts for nothing any more; the next start removes it.
            tracing::warn!(error = %error, "a store directory that is no longer wanted stays for now");
        }
    }
}

/// fjall's block cache. The machine keeps its own index in memory, so this serves values of cold keys only.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// Rows in memory per table before fjall writes a file.
const MEMTABLE_BYTES: u64 = 8 * 1024 * 1024;
/// fjall's least.
const JOURNAL_BYTES: u64 = 64 * 1024 * 1024;
const FILES_MAX: usize = 64;

pub(super) fn table_at(table: Table) -> usize {
    match table {
        Table::Meta => 0,
        Table::Keys => 1,
        Table::State => 2,
    }
}

/// Turns an error of fjall into one that says what to do.
pub(super) fn rows_error(what: &str, error: &fjall::Error) -> Error {
    match error {
        fjall::Error::Io(e) => disk_error(what, e),
        fjall::Error::Storage(fjall::LsmError::Io(e)) => disk_error(what, e),
        fjall::Error::Locked => Error::new(Code::DIR_LOCKED, format!("{what}: another process has the rows open"))
            .hint("stop the other node, or give this one a directory of its own as node.data_dir"),
        fjall::Error::InvalidVersion(_) => Error::new(Code::FORMAT, format!("{what}: {error}"))
            .hint("run the version of buttress that wrote this directory, or a later one"),
        fjall::Error::Poisoned => Error::new(Code::DISK, format!("{what}: an earlier write failed")),
        _ => corrupt(format_args!("{what}: {error}")),
    }
}

impl Rows {
    pub fn open(dir: Arc<DirGuard>) -> Result<Self, Error> {
        let open = || -> fjall::Result<Self> {
            let db = Database::builder(dir.root.rows_path(dir.number))
                .cache_size(CACHE_BYTES)
                .worker_threads(1)
                .max_cached_files(Some(FILES_MAX))
                .max_journaling_size(JOURNAL_BYTES)
                .open()?;
            let keyspace =
                |name: &str| db.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES));
            let tables = [keyspace("meta")?, keyspace("keys")?, keyspace("state")?];
            let store = keyspace("store")?;
            Ok(Self { db, tables, store, dir: dir.clone() })
        };
        // Opened on a thread of its own, so that fjall's threads are as modest as the one that starts them.
        let opened: Result<_, Error> = std::thread::scope(|scope| {
            let opening = std::thread::Builder::new().name("store-open".into()).spawn_scoped(scope, || {
                super::worker::give_way();
                open()
            });
            let opening = opening.map_err(|e| Error::new(Code::LIMITS, format!("cannot start a thread: {e}")))?;
            Ok(opening.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        opened?.map_err(|e| rows_error("cannot open the store's rows", &e))
    }

    pub fn get(&self, table: Table, key: &[u8]) -> fjall::Result<Option<Bytes>> {
        Ok(self.tables[table_at(table)].get(key)?.map(|v| Bytes::copy_from_slice(&v)))
    }

    /// Rows from `from` on, up to and without `to` where given.
    pub fn range(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
    ) -> impl Iterator<Item = fjall::Result<(Bytes, Bytes)>> + use<> {
        let keyspace = &self.tables[table_at(table)];
        let iter = match to {
            Some(to) => keyspace.range::<&[u8], _>(from..to.max(from)),
            None => keyspace.range::<&[u8], _>(from..),
        };
        iter.map(|guard| {
            let (key, value) = guard.into_inner()?;
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        })
    }

    /// Writes a checkpoint: all or nothing, and durable when this returns.
    pub fn commit<'a>(
        &self,
        head: &Head,
        rows: impl Iterator<Item = (Table, &'a RowKey, Option<&'a Bytes>)>,
        store: &[StoreRow],
    ) -> Result<(), Error> {
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncAll));
        for (table, key, value) in rows {
            let keyspace = &self.tables[table_at(table)];
            match value {
                Some(value) => batch.insert(keyspace, &key[..], &value[..]),
                None => batch.remove(keyspace, &key[..]),
            }
        }
        for row in store {
            match row {
                StoreRow::Log(log, row) => batch.insert(&self.store, log_key(*log), &encode_log(*row)[..]),
                StoreRow::Segment(log, segment) => {
                    batch.insert(&self.store, segment_key(*log, segment.base), &encode_segment(segment)[..]);
                }
                StoreRow::NoLog(log) => batch.remove(&self.store, log_key(*log)),
                StoreRow::NoSegment(log, base) => batch.remove(&self.store, segment_key(*log, *base)),
            }
        }
        batch.insert(&self.store, HEAD_KEY, &head.encode()[..]);
        batch.commit().map_err(|e| rows_error("cannot write a checkpoint", &e))
    }

    /// Writes rows of a snapshot that is not complete yet; there is no head before it is.
    pub fn import(&self, rows: &[(Table, Bytes, Bytes)]) -> Result<(), Error> {
        let mut batch = self.db.batch();
        for (table, key, value) in rows {
            batch.insert(&self.tables[table_at(*table)], &key[..], &value[..]);
        }
        batch.commit().map_err(|e| rows_error("cannot write rows of a snapshot", &e))
    }

    /// A view that later checkpoints do not change.
    pub fn view(&self) -> View {
        View { snapshot: self.db.snapshot(), rows: self.clone() }
    }

    pub fn disk_bytes(&self) -> u64 {
        self.db.disk_space().unwrap_or(0)
    }
}

/// The rows at one checkpoint.
pub struct View {
    snapshot: Snapshot,
    rows: Rows,
}

/// One log as a checkpoint knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogView {
    pub log: LogId,
    pub row: LogRow,
    /// Oldest first.
    pub segments: Vec<Segment>,
}

impl buttress_state::image::Rows for View {
    fn prefix(&self, table: Table, prefix: &[u8]) -> buttress_state::image::RowIter<'_> {
        let rows = View::prefix(self, table, prefix);
        Box::new(rows.map(|row| row.map_err(|e| rows_error("cannot read rows for an image", &e))))
    }
}

impl View {
    /// The head; `None` for a store that never had a checkpoint.
    pub fn head(&self) -> Result<Option<Head>, Error> {
        let bytes = self
            .snapshot
            .get(&self.rows.store, HEAD_KEY)
            .map_err(|e| rows_error("cannot read the checkpoint's head", &e))?;
        bytes
            .map(|b| Head::decode(Bytes::copy_from_slice(&b)))
            .transpose()
            .map_err(|e| corrupt(format_args!("the checkpoint's head is damaged: {e}")))
    }

    pub fn logs(&self) -> Result<Vec<LogView>, Error> {
        let bad =
            |what: &dyn std::fmt::Display| corrupt(format_args!("the checkpoint's list of logs is damaged: {what}"));
        let rows = |prefix: &'static [u8]| {
            self.snapshot.prefix(&self.rows.store, prefix).map(|guard| {
                let (key, value) = guard.into_inner().map_err(|e| rows_error("cannot read the list of logs", &e))?;
                Ok::<_, Error>((key, Bytes::copy_from_slice(&value)))
            })
        };
        let mut logs = Vec::new();
        for row in rows(b"l") {
            let (key, value) = row?;
            let log = key[1..].try_into().map_err(|_| bad(&"key of a log"))?;
            let row = decode_log(value).map_err(|e| bad(&e))?;
            logs.push(LogView { log: LogId(u32::from_be_bytes(log)), row, segments: Vec::new() });
        }
        for row in rows(b"s") {
            let (key, value) = row?;
            if key.len() != 13 {
                return Err(bad(&"key of a segment"));
            }
            let log = LogId(u32::from_be_bytes(key[1..5].try_into().expect("four bytes")));
            let base = Offset(u64::from_be_bytes(key[5..13].try_into().expect("eight bytes")) as i64);
            let segment = decode_segment(base, value).map_err(|e| bad(&e))?;
            let at = logs.binary_search_by_key(&log, |l| l.log).map_err(|_| bad(&"segment of no log"))?;
            logs[at].segments.push(segment);
        }
        Ok(logs)
    }

    /// Rows whose key begins with `prefix`.
    pub fn prefix(&self, table: Table, prefix: &[u8]) -> impl Iterator<Item = fjall::Result<(Bytes, Bytes)>> + use<> {
        self.snapshot.prefix(&self.rows.tables[table_at(table)], prefix).map(|guard| {
            let (key, value) = guard.into_inner()?;
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        })
    }

    pub fn table(&self, table: Table) -> impl Iterator<Item = fjall::Result<(Bytes, Bytes)>> + Send + use<> {
        self.snapshot.iter(&self.rows.tables[table_at(table)]).map(|guard| {
            let (key, value) = guard.into_inner()?;
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        })
    }
}
