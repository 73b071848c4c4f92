//! The store: applied state on disk, a little behind the log, and always exactly the state at one index.
//!
//! [`DiskStore`] is what the machine writes to. A write costs it a few map inserts: rows go into an overlay, record
//! batches into the tails of their logs, and both are readable at once. A thread files the batches into segments and,
//! when the host says that one is due, writes a *checkpoint*: all rows that changed since the one before, where each
//! record log begins and ends, index, term and the host's blob (such as the members), in one atomic and synced batch.
//! Between checkpoints nothing of the rows reaches the disk. So after any crash the store opens at the last checkpoint,
//! cuts its segments to the lengths that the checkpoint names, and the write-ahead log gives the rest again.
//!
//! Durability is the write-ahead log's; the store may be late, but it is never torn. Whoever forgets log entries waits
//! for [`StoreEvent::Checkpointed`] first.
//!
//! [`LogReader`] is for the edges, [`StoreHandle`] for whoever sends and receives snapshots. Rows: [`rows`]; record
//! segments: [`frames`] and [`logs`]; the thread: [`worker`]; which directory counts: [`root`]; snapshots: [`snapshot`].

mod digests;
mod frames;
pub mod fuzz;
mod inspect;
mod logs;
mod root;
mod rows;
mod snapshot;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::PathBuf,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
};

use buttress_core::{Code, Error, Index, LogId, Store, StoreError, Table, Term, WriteBatch, store::RowKey};
use buttress_state::image::Image;
use bytes::Bytes;

use crate::wal::{
    Histogram, Identity,
    disk::{DirDisk, Disk, Open, corrupt, disk_error},
};
use digests::Digests;
use frames::Segment;
use logs::{Logs, lock, log_dir, segment_base, segment_path};
use root::{Current, Root, dir_name};
use rows::{DirGuard, Head, Rows, View, rows_error, table_at};
use worker::{Change, Frozen, Overlay, Shared, Work, Worker};

pub use digests::{Digest, WINDOW};
pub use inspect::{Inspector, Inventory, LogCount};
pub use logs::{LogRange, LogReader};
pub use rows::META_BYTES_MAX;
pub use snapshot::{CHUNK_BYTES_MAX, Export, ReceivedSnapshot, SnapshotHeader, SnapshotReceiver};

#[derive(Clone, Debug)]
pub struct Options {
    /// A record segment is closed when the next batch does not fit. Retention frees whole segments.
    pub segment_bytes: u64,
    /// A record segment is closed when its first batch is this old, so that retention by time gets hold of it.
    pub segment_age_ms: u64,
    /// Record batches that stay in memory after they were filed, over all logs, for consumers that keep up. The others read
    /// files, which the page cache has.
    pub tail_bytes: usize,
    /// A checkpoint is due when this much has changed (rows and records together) …
    pub checkpoint_bytes: u64,
    /// … or this much of rows alone: they are in memory until then, and are written and synced in one piece for which the log's
    /// own syncs wait. Of records only what is not synced yet is left to do, but it is a sync of each file …
    pub checkpoint_row_bytes: u64,
    /// … or this long after the one before, if anything was applied since.
    pub checkpoint_ms: u64,
    /// How many thirds of that the first checkpoint of a run comes early; 0, 1 or 2. Nodes apply the same entries, so all of
    /// them would write their checkpoints at the same moments, and on one machine, or one disk behind several, that is when
    /// everybody waits.
    pub checkpoint_early_thirds: u64,
    /// A write waits while more than this is not filed yet. Hosts hold back proposals long before.
    pub pending_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 32 * 1024 * 1024,
            segment_age_ms: 6 * 60 * 60 * 1000,
            tail_bytes: 2 * 1024 * 1024,
            checkpoint_bytes: 32 * 1024 * 1024,
            checkpoint_row_bytes: 4 * 1024 * 1024,
            checkpoint_ms: 3000,
            checkpoint_early_thirds: 0,
            pending_bytes_max: 128 * 1024 * 1024,
        }
    }
}

/// What the store's thread reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// The state at this index is durable.
    Checkpointed { index: Index, term: Term },
    /// There is room again, where [`DiskStore::has_room`] said that there was none.
    Room,
    /// The disk failed; nothing is filed and no checkpoint is written any more. The node must stop.
    Failed(Error),
}

/// Plain counters that the composition root prints.
#[derive(Debug, Default)]
pub struct StoreStats {
    pub filed_bytes: AtomicU64,
    pub checkpoints: AtomicU64,
    pub checkpoint_index: AtomicU64,
    pub checkpoint_us: Histogram,
    /// Rows in memory that are not in fjall yet.
    pub overlay_bytes: AtomicU64,
    /// Record batches in memory that are filed too.
    pub tail_bytes: AtomicU64,
}

type OnEvent = Arc<dyn Fn(StoreEvent) + Send + Sync>;

/// What stays when a snapshot replaces the store.
struct Core {
    root: Arc<Root>,
    options: Options,
    on_event: OnEvent,
    slot: Arc<RwLock<Arc<Logs>>>,
    stats: Arc<StoreStats>,
    live: Mutex<Live>,
    digests: Arc<Digests>,
    /// The number of the next directory.
    next_number: AtomicU64,
}

/// The store that counts, and its thread.
#[derive(Default)]
struct Live {
    parts: Option<(Rows, Arc<Logs>, Arc<Shared>)>,
    thread: Option<JoinHandle<()>>,
}

/// The machine's store. One owner writes; readers of records have [`LogReader`].
pub struct DiskStore {
    core: Arc<Core>,
    shared: Arc<Shared>,
    logs: Arc<Logs>,
    rows: Rows,
    applied: (Index, Term),
    meta: Bytes,
    active: [Overlay; 3],
    active_bytes: u64,
    appended_bytes: u64,
    frozen: Option<Arc<Frozen>>,
    checkpointed: Index,
    /// When it was first asked whether a checkpoint is due.
    opened_ms: Option<u64>,
    last_checkpoint_ms: Option<u64>,
}

/// For whoever sends and receives snapshots. Cheap to clone, and good for the store that takes this one's place too. The
/// directory stays locked while a handle, a receiver or an export lives.
#[derive(Clone)]
pub struct StoreHandle {
    core: Arc<Core>,
}

impl DiskStore {
    /// Opens the store in `path`, making it where there is none. `on_event` runs on the store's thread and should only
    /// hand the event over.
    ///
    /// # Errors
    /// `DIR_LOCKED`, `WRONG_CLUSTER`, `FORMAT`, `CORRUPT`, `DISK`, `DISK_FULL`.
    pub fn open(
        path: impl Into<PathBuf>,
        identity: Identity,
        options: Options,
        on_event: impl Fn(StoreEvent) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let path = path.into();
        let disk = Arc::new(DirDisk::open(&path)?);
        Self::open_on(disk, path, identity, options, on_event)
    }

    /// As [`DiskStore::open`], with the record segments' file operations going through `disk`, whose root is `path`.
    ///
    /// # Errors
    /// As [`DiskStore::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        path: PathBuf,
        identity: Identity,
        options: Options,
        on_event: impl Fn(StoreEvent) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let root = Arc::new(Root { path, disk, identity });
        let numbers = root.numbers()?;
        let current = match root.read_current()? {
            Some(current) => current,
            None if numbers.is_empty() => {
                let current = Current { number: 1, fresh: true };
                root.write_current(&current)?;
                current
            }
            None => return Err(corrupt("the store's CURRENT file is missing, but there is a store")),
        };
        for number in &numbers {
            if *number != current.number || current.fresh {
                root.remove(*number)?;
            }
        }
        let next_number = numbers.iter().copied().max().unwrap_or(0).max(current.number) + 1;
        let core = Arc::new(Core {
            root,
            options,
            on_event: Arc::new(on_event),
            slot: Arc::new(RwLock::new(Arc::new(Logs::closed()))),
            stats: Arc::default(),
            live: Mutex::default(),
            digests: Arc::default(),
            next_number: AtomicU64::new(next_number),
        });
        let mut live = lock(&core.live);
        if current.fresh {
            let rows = make_dir(&core.root, current.number)?;
            rows.commit(&Head::default(), std::iter::empty(), &[])?;
            core.root.write_current(&Current { fresh: false, ..current })?;
        }
        let store = Self::start(&core, &mut live, current.number)?;
        drop(live);
        Ok(store)
    }

    /// Opens a directory that is complete and current, and starts its thread.
    fn start(core: &Arc<Core>, live: &mut Live, number: u64) -> Result<Self, Error> {
        let dir = Arc::new(DirGuard { root: core.root.clone(), number, unwanted: AtomicBool::new(false) });
        let rows = Rows::open(dir)?;
        let view = rows.view();
        let head = view.head()?.ok_or_else(|| corrupt("the store has no checkpoint"))?;
        let logs = Arc::new(Logs::new(core.root.disk.clone(), logs_dir(number), Some(core.on_event.clone())));
        recover_logs(&logs, view.logs()?)?;
        drop(view);

        let shared = Arc::new(Shared::new(core.stats.clone()));
        let worker =
            Worker::new(logs.clone(), rows.clone(), shared.clone(), core.options.clone(), core.on_event.clone());
        let (theirs, on_event) = (shared.clone(), core.on_event.clone());
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                // Our own bug must not leave writers waiting and the node alive without a store.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.run())).is_err() {
                    let error = Error::new(Code::DISK, "the store's thread panicked");
                    theirs.fail(error.clone());
                    on_event(StoreEvent::Failed(error));
                }
            })
            .map_err(|e| Error::new(Code::LIMITS, format!("cannot start the store's thread: {e}")))?;
        *live = Live { parts: Some((rows.clone(), logs.clone(), shared.clone())), thread: Some(thread) };
        *core.slot.write().expect("nothing panics while it holds this lock") = logs.clone();
        core.stats.checkpoint_index.store(head.index.0, SeqCst);
        core.digests.restart(head.index);
        Ok(Self {
            core: core.clone(),
            shared,
            logs,
            rows,
            applied: (head.index, head.term),
            meta: head.meta,
            active: Default::default(),
            active_bytes: 0,
            appended_bytes: 0,
            frozen: None,
            checkpointed: head.index,
            opened_ms: None,
            last_checkpoint_ms: None,
        })
    }

    /// The host's blob, as of the checkpoint that was opened or as set since.
    pub fn meta(&self) -> &Bytes {
        &self.meta
    }

    /// Sets the blob that goes into the next checkpoint. It must be true for the index that was last written, which is
    /// why checkpoints begin only when the host asks for them.
    pub fn set_meta(&mut self, meta: Bytes) {
        assert!(meta.len() <= META_BYTES_MAX, "the host's blob has {} bytes", meta.len());
        self.meta = meta;
    }

    /// The index of the last checkpoint that this store has begun or was opened at.
    pub fn checkpointed(&self) -> Index {
        self.checkpointed
    }

    /// Begins a checkpoint if one is due and none is running. `now_ms` is any clock that does not go back. The
    /// store's thread does the work; [`StoreEvent::Checkpointed`] says when it is done.
    pub fn maybe_checkpoint(&mut self, now_ms: u64) -> bool {
        self.reap();
        let last = self.last_checkpoint_ms.unwrap_or(*self.opened_ms.get_or_insert(now_ms));
        if self.frozen.is_some() || self.applied.0 <= self.checkpointed {
            return false;
        }
        let options = &self.core.options;
        let early = if self.last_checkpoint_ms.is_some() { 0 } else { options.checkpoint_early_thirds };
        let wait = |whole: u64| whole - whole / 3 * early;
        let due = self.active_bytes >= wait(options.checkpoint_row_bytes)
            || self.active_bytes + self.appended_bytes >= wait(options.checkpoint_bytes)
            || now_ms.saturating_sub(last) >= wait(options.checkpoint_ms);
        if due {
            self.freeze();
            self.last_checkpoint_ms = Some(now_ms);
        }
        due
    }

    /// Begins a checkpoint now, unless one is running or nothing was written since the last one. It must be as true as one
    /// of [`Self::maybe_checkpoint`]'s.
    pub fn begin_checkpoint(&mut self) {
        self.reap();
        if self.frozen.is_none() && self.applied.0 > self.checkpointed {
            self.freeze();
        }
    }

    /// Writes a checkpoint of what has been written and waits for it: for a clean stop, so that the next start has
    /// nothing to replay.
    ///
    /// # Errors
    /// What made the store fail.
    pub fn checkpoint_now(&mut self) -> Result<(Index, Term), Error> {
        self.wait_for_frozen()?;
        if self.applied.0 > self.checkpointed {
            self.freeze();
            self.wait_for_frozen()?;
        }
        Ok(self.applied)
    }

    fn wait_for_frozen(&mut self) -> Result<(), Error> {
        let Some(frozen) = self.frozen.clone() else { return self.shared.error().map_or(Ok(()), Err) };
        let mut queue = lock(&self.shared.queue);
        while !frozen.done.load(SeqCst) {
            if let Some(error) = self.shared.error() {
                return Err(error);
            }
            if queue.stop {
                return Err(Error::new(Code::STOPPED, "the store was replaced or is stopping"));
            }
            queue = self.shared.progress.wait(queue).expect("nothing panics while it holds this lock");
        }
        drop(queue);
        self.reap();
        Ok(())
    }

    fn freeze(&mut self) {
        let frozen = Arc::new(Frozen {
            head: Head { index: self.applied.0, term: self.applied.1, meta: self.meta.clone() },
            tables: std::mem::take(&mut self.active),
            bytes: std::mem::take(&mut self.active_bytes),
            done: AtomicBool::new(false),
        });
        self.appended_bytes = 0;
        self.checkpointed = self.applied.0;
        lock(&self.shared.queue).work.push_back(Work::Checkpoint(frozen.clone()));
        self.shared.ready.notify_one();
        self.frozen = Some(frozen);
    }

    /// Lets go of rows that are in fjall by now.
    fn reap(&mut self) {
        if let Some(frozen) = &self.frozen
            && frozen.done.load(SeqCst)
        {
            if let Some(frozen) = self.frozen.take() {
                lock(&self.shared.queue).work.push_back(Work::Free(frozen));
                self.shared.ready.notify_one();
            }
            self.core.stats.overlay_bytes.store(self.active_bytes, SeqCst);
        }
    }

    /// Bytes in memory that are not on disk yet: record batches to be filed, and rows of the overlays.
    pub fn pending_bytes(&self) -> u64 {
        let frozen = self.frozen.as_ref().map_or(0, |f| f.bytes);
        self.shared.pending.load(SeqCst) + self.active_bytes + frozen
    }

    /// Whether no more than `limit` bytes of record batches wait to be filed. If more do, [`StoreEvent::Room`] comes as soon
    /// as half of that is left.
    pub fn has_room(&self, limit: u64) -> bool {
        if self.shared.pending.load(SeqCst) <= limit {
            return true;
        }
        self.shared.room_wanted.store(limit / 2, SeqCst);
        // The thread may have filed everything in between, and then looks at nothing any more.
        self.shared.pending.load(SeqCst) <= limit
    }

    /// What made the store fail, if it has.
    pub fn error(&self) -> Option<Error> {
        self.shared.error()
    }

    pub fn reader(&self) -> LogReader {
        LogReader { slot: self.core.slot.clone() }
    }

    pub fn handle(&self) -> StoreHandle {
        StoreHandle { core: self.core.clone() }
    }

    pub fn stats(&self) -> Arc<StoreStats> {
        self.core.stats.clone()
    }

    /// The value that an overlay has for the key: `Some(None)` if it deletes it.
    fn overlaid(&self, table: Table, key: &[u8]) -> Option<&Option<Bytes>> {
        let table = table_at(table);
        let change = self.active[table].get(key).or_else(|| self.frozen.as_ref()?.tables[table].get(key))?;
        Some(&change.value)
    }
}

impl Store for DiskStore {
    fn applied(&self) -> (Index, Term) {
        self.applied
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.overlaid(table, key) {
            Some(value) => Ok(value.clone()),
            None => self.rows.get(table, key).map_err(|e| store_error(&e)),
        }
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let mut out = Vec::new();
        if limit == 0 || to.is_some_and(|to| to <= from) {
            return Ok(out);
        }
        let at = table_at(table);
        let bounds =
            (std::ops::Bound::Included(from), to.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded));
        let mut active = self.active[at].range::<[u8], _>(bounds).peekable();
        let empty = Overlay::new();
        let frozen = self.frozen.as_ref().map_or(&empty, |f| &f.tables[at]);
        let mut frozen = frozen.range::<[u8], _>(bounds).peekable();
        let mut disk = self.rows.range(table, from, to).peekable();
        while out.len() < limit {
            if matches!(disk.peek(), Some(Err(_))) {
                let Some(Err(error)) = disk.next() else { unreachable!("peeked an error") };
                return Err(store_error(&error));
            }
            let disk_key = match disk.peek() {
                Some(Ok((key, _))) => Some(&key[..]),
                _ => None,
            };
            let keys = [active.peek().map(|(k, _)| &k[..]), frozen.peek().map(|(k, _)| &k[..]), disk_key];
            let Some(key) = keys.into_iter().flatten().min().map(RowKey::new) else { break };
            // The newest layer that has the key wins; all that have it move on.
            let from_disk = disk.next_if(|row| row.as_ref().is_ok_and(|(k, _)| k[..] == key[..]));
            let from_frozen = frozen.next_if(|(k, _)| **k == key);
            let from_active = active.next_if(|(k, _)| **k == key);
            out.extend(match from_active.or(from_frozen) {
                Some((key, change)) => change.value.clone().map(|value| (Bytes::copy_from_slice(key), value)),
                None => from_disk.and_then(Result::ok),
            });
        }
        Ok(out)
    }

    fn write(&mut self, batch: WriteBatch) {
        assert!(batch.index > self.applied.0, "batch {} comes after {}", batch.index, self.applied.0);
        self.reap();
        self.applied = (batch.index, batch.term);
        self.core.digests.write(&batch);
        for row in batch.rows {
            let bytes = (row.key.len() + row.value.as_ref().map_or(0, Bytes::len) + ROW_OVERHEAD_BYTES) as u64;
            let at = table_at(row.table);
            match self.active[at].entry(row.key) {
                Entry::Occupied(known) if row.value.is_none() && known.get().fresh => {
                    // Nobody has seen it but this overlay, so nothing need say that it is gone.
                    let (key, change) = known.remove_entry();
                    let gone = key.len() + change.value.map_or(0, |value| value.len()) + ROW_OVERHEAD_BYTES;
                    self.active_bytes = self.active_bytes.saturating_sub(gone as u64);
                    continue;
                }
                // What the overlay has of it may hide a row below.
                Entry::Occupied(mut known) => known.get_mut().value = row.value,
                Entry::Vacant(place) => drop(place.insert(Change { value: row.value, fresh: row.fresh })),
            }
            // A row that is written again is counted again: the count only says when a checkpoint is due.
            self.active_bytes += bytes;
        }
        self.core.stats.overlay_bytes.store(self.active_bytes, SeqCst);

        let mut work = Vec::with_capacity(batch.appends.len() + batch.trims.len() + batch.drops.len());
        let mut bytes = 0;
        for append in batch.appends {
            let shared = self.logs.get_or_make(append.log, append.base_offset);
            let mut inner = lock(&shared);
            assert!(append.base_offset >= inner.end, "log {} ends at {}", append.log, inner.end);
            inner.end = buttress_core::Offset(append.last_offset.0 + 1);
            inner.bytes += (append.bytes.len() + frames::FRAME_HEADER_BYTES) as u64;
            inner.tail.push_back(append.clone());
            drop(inner);
            bytes += append.bytes.len() as u64;
            work.push(Work::Append(shared, append));
        }
        for (log, before) in batch.trims {
            if let Some(inner) = self.logs.get(log) {
                let mut inner = lock(&inner);
                inner.start = inner.start.max(before.min(inner.end));
                let start = inner.start;
                while inner.tail.front().is_some_and(|b| b.last_offset < start) {
                    inner.tail.pop_front();
                }
            }
            work.push(Work::Trim(log, before));
        }
        for log in batch.drops {
            self.logs.remove(log);
            work.push(Work::Drop(log));
        }
        self.appended_bytes += bytes;
        if !work.is_empty() {
            self.shared.pending.fetch_add(bytes, SeqCst);
            let mut queue = lock(&self.shared.queue);
            queue.work.extend(work);
            self.shared.ready.notify_one();
            while self.shared.pending.load(SeqCst) > self.core.options.pending_bytes_max
                && !queue.stop
                && self.shared.error().is_none()
            {
                queue = self.shared.progress.wait(queue).expect("nothing panics while it holds this lock");
            }
        }
    }
}

/// What a row takes in an overlay beside its bytes, about.
const ROW_OVERHEAD_BYTES: usize = 64;

fn store_error(error: &fjall::Error) -> StoreError {
    StoreError(rows_error("cannot read rows", error).to_string())
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        let mut live = lock(&self.core.live);
        let mine = live.parts.as_ref().is_some_and(|(_, _, shared)| Arc::ptr_eq(shared, &self.shared));
        if mine {
            stop(&mut live);
            *self.core.slot.write().expect("nothing panics while it holds this lock") = Arc::new(Logs::closed());
        }
    }
}

/// Stops the thread without a checkpoint, and lets go of the rows.
fn stop(live: &mut Live) {
    if let Some((_, _, shared)) = live.parts.take() {
        lock(&shared.queue).stop = true;
        shared.ready.notify_all();
        shared.progress.notify_all();
    }
    if let Some(thread) = live.thread.take() {
        let _ = thread.join();
    }
}

fn logs_dir(number: u64) -> String {
    format!("{}/logs", dir_name(number))
}

/// Makes an empty store directory, durably.
fn make_dir(root: &Arc<Root>, number: u64) -> Result<Rows, Error> {
    let make = || {
        root.disk.create_dir(&logs_dir(number))?;
        root.disk.sync_dir(&dir_name(number))?;
        root.disk.sync_dir("")
    };
    make().map_err(|e| disk_error("cannot make a store directory", &e))?;
    let rows = Rows::open(Arc::new(DirGuard { root: root.clone(), number, unwanted: AtomicBool::new(false) }))?;
    root.disk.sync_dir(&dir_name(number)).map_err(|e| disk_error("cannot make a store directory", &e))?;
    Ok(rows)
}

/// Brings the record files to what the checkpoint says: cuts what came after it, removes what it does not name.
fn recover_logs(logs: &Arc<Logs>, views: Vec<rows::LogView>) -> Result<(), Error> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: std::io::Error| disk_error(format_args!("cannot recover record segment \"{what}\""), &e)
    };
    let mut known = BTreeMap::new();
    for view in &views {
        for segment in &view.segments {
            let path = segment_path(&logs.dir, view.log, segment.base);
            let file = match logs.disk.open(&path, Open::Write) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Err(corrupt(format_args!("record segment \"{path}\" is missing")));
                }
                Err(e) => return Err(failed(&path)(e)),
            };
            let len = file.len().map_err(failed(&path))?;
            if len < segment.bytes {
                return Err(corrupt(format_args!(
                    "record segment \"{path}\" has {len} bytes, the checkpoint counts on {}",
                    segment.bytes
                )));
            }
            if len > segment.bytes {
                file.set_len(segment.bytes).map_err(failed(&path))?;
                file.sync_data().map_err(failed(&path))?;
            }
        }
        known.insert(format!("{:08x}", view.log.0), view);
    }
    for name in logs.disk.list(&logs.dir).map_err(failed(&logs.dir))? {
        let dir = format!("{}/{name}", logs.dir);
        let Some(view) = known.get(&name) else {
            logs.disk.remove_dir_all(&dir).map_err(failed(&dir))?;
            continue;
        };
        for file in logs.disk.list(&log_dir(&logs.dir, view.log)).map_err(failed(&dir))? {
            let named = segment_base(&file).is_some_and(|base| view.segments.iter().any(|s| s.base == base));
            if !named {
                let path = format!("{dir}/{file}");
                logs.disk.remove(&path).map_err(failed(&path))?;
            }
        }
    }
    let mut map = logs.map.write().expect("nothing panics while it holds this lock");
    for view in views {
        let last = view.segments.last().map_or(view.row.end.0, |s| s.last.0 + 1);
        if last != view.row.end.0 {
            return Err(corrupt(format_args!(
                "log {} ends at {}, but its last segment ends at {last}",
                view.log, view.row.end
            )));
        }
        let inner = logs::LogInner {
            start: view.row.start,
            end: view.row.end,
            filed: view.row.end,
            bytes: view.segments.iter().map(Segment::data_bytes).sum(),
            segments: view.segments.into(),
            ..logs::LogInner::default()
        };
        map.insert(view.log, Arc::new(Mutex::new(inner)));
    }
    Ok(())
}

impl StoreHandle {
    pub fn reader(&self) -> LogReader {
        LogReader { slot: self.core.slot.clone() }
    }

    pub fn stats(&self) -> Arc<StoreStats> {
        self.core.stats.clone()
    }

    /// Digests of what was written lately, oldest first, to be held against another node's.
    pub fn digests(&self) -> Vec<Digest> {
        self.core.digests.all()
    }

    /// Record batches in memory that are not filed yet, for metrics.
    pub fn unfiled_bytes(&self) -> u64 {
        lock(&self.core.live).parts.as_ref().map_or(0, |(_, _, shared)| shared.pending.load(SeqCst))
    }

    /// Bytes that the rows take on disk, for metrics.
    pub fn rows_disk_bytes(&self) -> u64 {
        lock(&self.core.live).parts.as_ref().map_or(0, |(rows, _, _)| rows.disk_bytes())
    }

    /// The key space as the last checkpoint has it. While the image lives, its rows stay on the disk.
    ///
    /// # Errors
    /// `STOPPED` if there is no store at the moment, `NO_LEADER` where nothing was applied yet, `CORRUPT`, `DISK`.
    pub fn image(&self) -> Result<Image<View>, Error> {
        let view = {
            let live = lock(&self.core.live);
            let Some((rows, _, _)) = &live.parts else {
                return Err(Error::new(Code::STOPPED, "the store is stopping").retryable());
            };
            rows.view()
        };
        let Some(head) = view.head()?.filter(|head| head.index.0 > 0) else {
            return Err(Error::new(Code::NO_LEADER, "this node has applied nothing yet").retryable().hint("retry"));
        };
        Image::new(view, (head.index, head.term))
    }

    /// Begins to read the last checkpoint as a snapshot.
    ///
    /// # Errors
    /// `STOPPED` if there is no store at the moment, `CORRUPT`, `DISK`.
    pub fn export(&self) -> Result<Export, Error> {
        let live = lock(&self.core.live);
        let Some((rows, logs, shared)) = &live.parts else {
            return Err(Error::new(Code::STOPPED, "the store is stopping").retryable());
        };
        Export::new(rows, logs, shared, &self.core.root.identity)
    }

    /// Begins to receive a snapshot, beside the store that counts.
    ///
    /// # Errors
    /// `DISK`, `DISK_FULL`.
    pub fn receive(&self) -> Result<SnapshotReceiver, Error> {
        self.receive_of(&self.core.root.identity.cluster_id)
    }

    /// As [`Self::receive`], for a snapshot of another cluster: what a restore does.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn receive_of(&self, cluster_id: &str) -> Result<SnapshotReceiver, Error> {
        let number = self.core.next_number.fetch_add(1, SeqCst);
        SnapshotReceiver::new(&self.core.root, number, &self.core.options, cluster_id)
    }

    /// Puts a received snapshot in the place of the store. Whoever still has the old [`DiskStore`] may drop it at any time;
    /// what it writes from here on is lost, as it should be. After a crash there is either the old store or the new one.
    ///
    /// # Errors
    /// `DISK`, `DISK_FULL`; then the old store has stopped and the node must stop too.
    pub fn install(&self, received: ReceivedSnapshot) -> Result<DiskStore, Error> {
        let mut live = lock(&self.core.live);
        let old = live.parts.as_ref().map(|(rows, _, _)| rows.dir.clone());
        stop(&mut live);
        let number = received.keep();
        self.core.root.write_current(&Current { number, fresh: false })?;
        if let Some(old) = old {
            old.unwanted.store(true, SeqCst);
        }
        DiskStore::start(&self.core, &mut live, number)
    }
}

impl std::fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskStore").field("applied", &self.applied).finish_non_exhaustive()
    }
}

/// Logs by number, for tests and tools.
impl DiskStore {
    pub fn logs(&self) -> Vec<(LogId, LogRange)> {
        self.reader().ranges()
    }
}
