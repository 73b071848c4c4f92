//! The store's thread: it files record batches into segments and writes checkpoints, in exactly the order of the
//! writes. So when it comes to a checkpoint, everything up to its index is in segment files and nothing behind it is.
//!
//! A checkpoint first syncs the segment files that changed, then commits rows, file lengths and head in one synced
//! batch of fjall. Files that trims and drops have freed are removed only after that, because until then the
//! checkpoint before counts on them; and not while a snapshot is being read.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Instant,
};

use buttress_core::{
    Error, LogId, Offset, Table, TimeMs,
    store::{RowKey, StoredBatch},
};
use bytes::Bytes;

use super::{
    Options, StoreEvent, StoreStats,
    frames::{Frame, HEADER_BYTES, Segment, encode, encode_header},
    logs::{LogInner, Logs, lock, log_dir, segment_path},
    rows::{Head, LogRow, Rows, StoreRow},
};
use crate::wal::disk::{DiskFile, Open, disk_error};

/// Segment files that the thread keeps open to write to.
const OPEN_MAX: usize = 64;
/// Work that is taken from the queue at once, so that buffers never hold more than this and one batch: enough that the
/// system calls of a write cost nothing beside it.
const TURN_BYTES: usize = 1024 * 1024;

/// How much less of the processor this thread gets than the others of the node, as in nice(2): about a third of what a
/// thread gets that it competes with.
const NICE: i32 = 5;

/// Lets the other threads of the node go first, and those of other nodes on this machine: nobody waits for a checkpoint, but
/// everybody waits for the log. On Linux this is the thread's alone, and threads that it starts inherit it. Where the operating
/// system refuses, all are equal.
pub(super) fn give_way() {
    let _ = rustix::process::nice(NICE);
}

/// What a row becomes.
pub(super) struct Change {
    /// `None` deletes it.
    pub value: Option<Bytes>,
    /// Neither a checkpoint nor what is frozen has anything of the row.
    pub fresh: bool,
}

pub(super) type Overlay = BTreeMap<RowKey, Change>;

/// The rows that changed since the checkpoint before, and what they are the state of.
pub(super) struct Frozen {
    pub head: Head,
    pub tables: [Overlay; 3],
    pub bytes: u64,
    /// They are in fjall now.
    pub done: AtomicBool,
}

pub(super) enum Work {
    /// The log itself comes along, because a later drop takes it from the map before this is done.
    Append(Arc<Mutex<LogInner>>, StoredBatch),
    Trim(LogId, Offset),
    Drop(LogId),
    Checkpoint(Arc<Frozen>),
    /// Rows that nobody looks at any more. Freeing hundreds of thousands of them takes tens of milliseconds, which the node's
    /// task does not have.
    Free(#[expect(dead_code, reason = "it is only dropped")] Arc<Frozen>),
}

impl Work {
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Append(_, batch) => batch.bytes.len() as u64,
            _ => 0,
        }
    }
}

#[derive(Default)]
pub(super) struct Queue {
    pub work: VecDeque<Work>,
    pub stop: bool,
}

/// Files that may go when no snapshot reads them.
#[derive(Default)]
pub(super) struct Exports {
    pub running: usize,
    pub freed: Vec<Freed>,
}

pub(super) enum Freed {
    Segment(LogId, Offset),
    Log(LogId),
}

pub(super) struct Shared {
    pub queue: Mutex<Queue>,
    /// There is work.
    pub ready: Condvar,
    /// Work was done, or will never be.
    pub progress: Condvar,
    /// Bytes of record batches that are not filed.
    pub pending: AtomicU64,
    /// Somebody waits until no more than this is pending, and hears [`StoreEvent::Room`] then; `u64::MAX` where nobody does.
    pub room_wanted: AtomicU64,
    pub failed: Mutex<Option<Error>>,
    pub exports: Mutex<Exports>,
    pub stats: Arc<StoreStats>,
}

const NOBODY_WAITS: u64 = u64::MAX;

impl Shared {
    pub fn new(stats: Arc<StoreStats>) -> Self {
        Self {
            queue: Mutex::default(),
            ready: Condvar::new(),
            progress: Condvar::new(),
            pending: AtomicU64::new(0),
            room_wanted: AtomicU64::new(NOBODY_WAITS),
            failed: Mutex::default(),
            exports: Mutex::default(),
            stats,
        }
    }

    pub fn error(&self) -> Option<Error> {
        lock(&self.failed).clone()
    }

    /// Nothing will be done any more; wakes whoever waits for it.
    pub fn fail(&self, error: Error) {
        *lock(&self.failed) = Some(error);
        // Taking the lock makes sure that whoever saw no failure is waiting by now.
        drop(lock(&self.queue));
        self.progress.notify_all();
    }
}

/// What the thread knows of a log, as of the work it has done.
struct WorkLog {
    inner: Arc<Mutex<LogInner>>,
    start: Offset,
    end: Offset,
    active: Option<Active>,
    /// Encoded and not yet written.
    buffer: Vec<u8>,
    frames: Vec<Frame>,
    /// Changes since the last checkpoint.
    changed: Vec<Offset>,
    removed: Vec<Offset>,
    row_changed: bool,
    has_dir: bool,
    used: u64,
}

/// The segment that is written to.
struct Active {
    base: Offset,
    /// With what is in the buffer.
    bytes: u64,
    /// Where the buffer goes.
    written: u64,
    first_committed_at: TimeMs,
    file: Option<Arc<dyn DiskFile>>,
}

pub(super) struct Worker {
    logs: Arc<Logs>,
    rows: Rows,
    shared: Arc<Shared>,
    options: Options,
    on_event: Arc<dyn Fn(StoreEvent) + Send + Sync>,
    work_logs: BTreeMap<LogId, WorkLog>,
    /// Written and not synced.
    dirty: BTreeMap<(LogId, Offset), Arc<dyn DiskFile>>,
    /// Directories with new files in them.
    dirty_dirs: BTreeMap<LogId, ()>,
    new_dirs: bool,
    /// Logs that are gone since the last checkpoint.
    dropped: Vec<LogId>,
    freed: Vec<Freed>,
    /// Batches in tails that are on disk too, oldest first, and their bytes.
    kept: VecDeque<(LogId, Offset, usize)>,
    kept_bytes: usize,
    tick: u64,
}

impl Worker {
    pub fn new(
        logs: Arc<Logs>,
        rows: Rows,
        shared: Arc<Shared>,
        options: Options,
        on_event: Arc<dyn Fn(StoreEvent) + Send + Sync>,
    ) -> Self {
        let mut work_logs = BTreeMap::new();
        for (log, shared) in logs.map.read().expect("nothing panics while it holds this lock").iter() {
            let inner = lock(shared);
            let active = inner.segments.back().map(|s| Active {
                base: s.base,
                bytes: s.bytes,
                written: s.bytes,
                first_committed_at: s.first_committed_at,
                file: None,
            });
            work_logs.insert(
                *log,
                WorkLog {
                    active,
                    has_dir: !inner.segments.is_empty(),
                    ..WorkLog::new(shared.clone(), inner.start, inner.end)
                },
            );
        }
        Self {
            logs,
            rows,
            shared,
            options,
            on_event,
            work_logs,
            dirty: BTreeMap::new(),
            dirty_dirs: BTreeMap::new(),
            new_dirs: false,
            dropped: Vec::new(),
            freed: Vec::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            tick: 0,
        }
    }

    /// Works until the queue is stopped or something fails.
    pub fn run(mut self) {
        give_way();
        loop {
            let mut turn = Vec::new();
            {
                let mut queue = lock(&self.shared.queue);
                while queue.work.is_empty() && !queue.stop {
                    queue = self.shared.ready.wait(queue).expect("nothing panics while it holds this lock");
                }
                if queue.stop {
                    return;
                }
                let mut bytes = 0;
                while bytes < TURN_BYTES
                    && let Some(work) = queue.work.pop_front()
                {
                    bytes += work.bytes() as usize;
                    turn.push(work);
                }
            }
            let result = turn.into_iter().try_for_each(|work| self.work(work)).and_then(|()| self.flush_all());
            if let Err(error) = result {
                tracing::error!(code = error.code.0, error = %error, "the store failed");
                self.shared.fail(error.clone());
                (self.on_event)(StoreEvent::Failed(error));
                return;
            }
            // Taking the lock makes sure that whoever saw no progress is waiting by now.
            drop(lock(&self.shared.queue));
            self.shared.progress.notify_all();
            self.tell_room();
        }
    }

    fn tell_room(&self) {
        let wanted = self.shared.room_wanted.load(SeqCst);
        if wanted != NOBODY_WAITS && self.shared.pending.load(SeqCst) <= wanted {
            self.shared.room_wanted.store(NOBODY_WAITS, SeqCst);
            (self.on_event)(StoreEvent::Room);
        }
    }

    fn work(&mut self, work: Work) -> Result<(), Error> {
        match work {
            Work::Append(inner, batch) => self.append(inner, &batch),
            Work::Trim(log, before) => self.trim(log, before),
            Work::Drop(log) => self.drop_log(log),
            Work::Checkpoint(frozen) => self.checkpoint(&frozen),
            Work::Free(_) => Ok(()),
        }
    }

    fn append(&mut self, inner: Arc<Mutex<LogInner>>, batch: &StoredBatch) -> Result<(), Error> {
        let log = batch.log;
        self.tick += 1;
        let work =
            self.work_logs.entry(log).or_insert_with(|| WorkLog::new(inner, batch.base_offset, batch.base_offset));
        work.used = self.tick;
        let frame_bytes = (super::frames::FRAME_HEADER_BYTES + batch.bytes.len()) as u64;
        let roll = work.active.as_ref().is_none_or(|active| {
            let full = active.bytes + frame_bytes > self.options.segment_bytes && active.bytes > HEADER_BYTES as u64;
            let age = batch.committed_at.0.saturating_sub(active.first_committed_at.0);
            full || age > self.options.segment_age_ms
        });
        if roll {
            self.flush(log)?;
            let work = self.work_logs.get_mut(&log).expect("inserted above");
            work.buffer.extend_from_slice(&encode_header(log, batch.base_offset));
            work.active = Some(Active {
                base: batch.base_offset,
                bytes: HEADER_BYTES as u64,
                written: 0,
                first_committed_at: batch.committed_at,
                file: None,
            });
        }
        let work = self.work_logs.get_mut(&log).expect("inserted above");
        let start = work.buffer.len();
        encode(batch, &mut work.buffer);
        let frame = Frame::decode(&work.buffer[start..]).expect("the machine writes sane batches");
        work.frames.push(frame);
        work.active.as_mut().expect("made above").bytes += frame_bytes;
        work.end = Offset(batch.last_offset.0 + 1);
        work.row_changed = true;
        Ok(())
    }

    /// Writes the log's buffer and lets readers know.
    fn flush(&mut self, log: LogId) -> Result<(), Error> {
        let work = self.work_logs.get_mut(&log).expect("only known logs are flushed");
        if work.frames.is_empty() {
            return Ok(());
        }
        let active = work.active.as_mut().expect("frames have a segment");
        let (base, new) = (active.base, active.written == 0);
        let path = segment_path(&self.logs.dir, log, base);
        let failed = |e| disk_error(format_args!("cannot write record segment \"{path}\""), &e);
        let file = match active.file.clone().or_else(|| self.dirty.get(&(log, base)).cloned()) {
            Some(file) => file,
            None => {
                if !work.has_dir {
                    self.logs.disk.create_dir(&log_dir(&self.logs.dir, log)).map_err(failed)?;
                    work.has_dir = true;
                    self.new_dirs = true;
                }
                let file = self.logs.disk.open(&path, Open::Create).map_err(failed)?;
                if new {
                    // The remains of a segment that was begun after the checkpoint of an earlier start.
                    file.set_len(0).map_err(failed)?;
                    self.dirty_dirs.insert(log, ());
                }
                file
            }
        };
        file.write_all_at(&work.buffer, active.written).map_err(failed)?;
        active.written += work.buffer.len() as u64;
        active.file = Some(file.clone());
        self.dirty.insert((log, base), file);
        self.shared.stats.filed_bytes.fetch_add(work.buffer.len() as u64, SeqCst);
        // Not kept: there may be thousands of logs.
        work.buffer = Vec::new();
        if work.changed.last() != Some(&base) {
            work.changed.push(base);
        }

        let mut payload = 0;
        {
            let mut inner = lock(&work.inner);
            if new {
                inner.segments.push_back(Segment::new(base, active.first_committed_at));
            }
            let segment = inner.segments.back_mut().expect("pushed with its first frames");
            for frame in &work.frames {
                segment.push(frame);
                self.kept.push_back((log, frame.last_offset, frame.len as usize));
                self.kept_bytes += frame.len as usize;
                payload += u64::from(frame.len);
            }
            inner.filed = work.end;
        }
        work.frames.clear();
        self.shared.pending.fetch_sub(payload, SeqCst);
        self.forget_tails();
        self.close_files(log)
    }

    fn flush_all(&mut self) -> Result<(), Error> {
        let logs: Vec<LogId> = self.work_logs.iter().filter(|(_, w)| !w.frames.is_empty()).map(|(l, _)| *l).collect();
        logs.into_iter().try_for_each(|log| self.flush(log))
    }

    /// Keeps the tails within their budget.
    fn forget_tails(&mut self) {
        while self.kept_bytes > self.options.tail_bytes
            && let Some((log, last, bytes)) = self.kept.pop_front()
        {
            self.kept_bytes -= bytes;
            if let Some(inner) = self.logs.get(log) {
                let mut inner = lock(&inner);
                while inner.tail.front().is_some_and(|b| b.last_offset <= last) {
                    inner.tail.pop_front();
                }
            }
        }
        self.shared.stats.tail_bytes.store(self.kept_bytes as u64, SeqCst);
    }

    /// Keeps open files within their number. A file that was written to is synced before it is closed, since an error of
    /// writing back is reported only to those who have it open.
    fn close_files(&mut self, current: LogId) -> Result<(), Error> {
        while self.dirty.len() > OPEN_MAX {
            let ((log, base), file) = self.dirty.pop_first().expect("more than the limit");
            self.sync(log, base, &*file)?;
        }
        let open = self.work_logs.values().filter(|w| w.active.as_ref().is_some_and(|a| a.file.is_some())).count();
        if open > OPEN_MAX {
            let oldest = self
                .work_logs
                .iter()
                .filter(|(log, w)| **log != current && w.active.as_ref().is_some_and(|a| a.file.is_some()))
                .min_by_key(|(_, w)| w.used)
                .map(|(log, _)| *log);
            if let Some(log) = oldest {
                let active = self.work_logs.get_mut(&log).and_then(|w| w.active.as_mut()).expect("filtered on it");
                active.file = None;
                let base = active.base;
                if let Some(file) = self.dirty.remove(&(log, base)) {
                    self.sync(log, base, &*file)?;
                }
            }
        }
        Ok(())
    }

    fn sync(&self, log: LogId, base: Offset, file: &dyn DiskFile) -> Result<(), Error> {
        file.sync_data().map_err(|e| {
            disk_error(format_args!("cannot sync record segment \"{}\"", segment_path(&self.logs.dir, log, base)), &e)
        })
    }

    fn trim(&mut self, log: LogId, before: Offset) -> Result<(), Error> {
        if !self.work_logs.contains_key(&log) {
            return Ok(());
        }
        self.flush(log)?;
        let work = self.work_logs.get_mut(&log).expect("looked up above");
        work.start = work.start.max(before.min(work.end));
        work.row_changed = true;
        let start = work.start;
        let mut gone = Vec::new();
        {
            let mut inner = lock(&work.inner);
            while inner.segments.front().is_some_and(|s| s.last < start) {
                let segment = inner.segments.pop_front().expect("the front was just there");
                inner.bytes -= segment.data_bytes();
                gone.push(segment.base);
            }
        }
        for base in gone {
            if work.active.as_ref().is_some_and(|a| a.base == base) {
                work.active = None;
            }
            self.dirty.remove(&(log, base));
            work.changed.retain(|b| *b != base);
            work.removed.push(base);
            self.freed.push(Freed::Segment(log, base));
        }
        Ok(())
    }

    fn drop_log(&mut self, log: LogId) -> Result<(), Error> {
        if let Some(work) = self.work_logs.remove(&log) {
            let unfiled: u64 = work.frames.iter().map(|f| u64::from(f.len)).sum();
            self.shared.pending.fetch_sub(unfiled, SeqCst);
            self.dirty.retain(|(l, _), _| *l != log);
            self.dirty_dirs.remove(&log);
            self.dropped.push(log);
            self.freed.push(Freed::Log(log));
        }
        Ok(())
    }

    fn checkpoint(&mut self, frozen: &Arc<Frozen>) -> Result<(), Error> {
        let started = Instant::now();
        self.flush_all()?;
        for ((log, base), file) in std::mem::take(&mut self.dirty) {
            self.sync(log, base, &*file)?;
        }
        let sync_dir = |dir: &str| {
            self.logs.disk.sync_dir(dir).map_err(|e| disk_error(format_args!("cannot sync directory \"{dir}\""), &e))
        };
        for log in std::mem::take(&mut self.dirty_dirs).keys() {
            sync_dir(&log_dir(&self.logs.dir, *log))?;
        }
        if std::mem::take(&mut self.new_dirs) {
            sync_dir(&self.logs.dir)?;
        }

        let mut store = Vec::new();
        // Segments of a log that is gone are found by asking the last checkpoint's list.
        if !self.dropped.is_empty() {
            for view in self.rows.view().logs()? {
                if self.dropped.contains(&view.log) {
                    store.push(StoreRow::NoLog(view.log));
                    store.extend(view.segments.iter().map(|s| StoreRow::NoSegment(view.log, s.base)));
                }
            }
            self.dropped.clear();
        }
        for (log, work) in &mut self.work_logs {
            store.extend(work.removed.drain(..).map(|base| StoreRow::NoSegment(*log, base)));
            if std::mem::take(&mut work.row_changed) {
                store.push(StoreRow::Log(*log, LogRow { start: work.start, end: work.end }));
            }
            if work.changed.is_empty() {
                continue;
            }
            let inner = lock(&work.inner);
            for base in work.changed.drain(..) {
                let at = inner.segments.partition_point(|s| s.base < base);
                store.push(StoreRow::Segment(*log, inner.segments[at].clone()));
            }
        }
        let rows = [Table::Meta, Table::Keys, Table::State]
            .into_iter()
            .zip(&frozen.tables)
            .flat_map(|(table, rows)| rows.iter().map(move |(key, change)| (table, key, change.value.as_ref())));
        self.rows.commit(&frozen.head, rows, &store)?;

        frozen.done.store(true, SeqCst);
        let stats = &self.shared.stats;
        stats.checkpoints.fetch_add(1, SeqCst);
        stats.checkpoint_index.store(frozen.head.index.0, SeqCst);
        stats.checkpoint_us.record_us(started.elapsed().as_micros() as u64);
        self.remove_freed();
        (self.on_event)(StoreEvent::Checkpointed { index: frozen.head.index, term: frozen.head.term });
        Ok(())
    }

    fn remove_freed(&mut self) {
        let mut exports = lock(&self.shared.exports);
        exports.freed.append(&mut self.freed);
        if exports.running == 0 {
            remove_files(&self.logs, std::mem::take(&mut exports.freed));
        }
    }
}

/// Removes files that no checkpoint names. A failure costs space only: the next start tries again.
pub(super) fn remove_files(logs: &Logs, freed: Vec<Freed>) {
    for each in freed {
        let result = match &each {
            Freed::Segment(log, base) => {
                logs.close(*log, *base);
                logs.disk.remove(&segment_path(&logs.dir, *log, *base))
            }
            Freed::Log(log) => logs.disk.remove_dir_all(&log_dir(&logs.dir, *log)),
        };
        match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(error = %error, "a record segment that was freed stays for now");
            }
            _ => {}
        }
    }
}

impl WorkLog {
    fn new(inner: Arc<Mutex<LogInner>>, start: Offset, end: Offset) -> Self {
        Self {
            inner,
            start,
            end,
            active: None,
            buffer: Vec::new(),
            frames: Vec::new(),
            changed: Vec::new(),
            removed: Vec::new(),
            row_changed: false,
            has_dir: false,
            used: 0,
        }
    }
}
