//! Record logs as readers see them: a tail in memory over segments on disk.
//!
//! `write` puts a batch into the tail, and it is readable from then on. The store's thread writes it to a segment later;
//! `filed` says how far that is. Batches stay in the tail after that while the tail's budget lasts, so consumers that keep
//! up never touch the disk. Cold reads use `pread` on a small cache of open files, outside of every lock.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use buttress_core::{Code, Error, LogId, Offset, TimeMs, entry::TopicSettings, ledger::Batch, store::StoredBatch};

use super::{
    OnEvent, StoreEvent,
    frames::{Segment, check_header, walk},
};
use crate::wal::disk::{Disk, DiskFile, Open, corrupt, disk_error, read_full};

/// Open segment files for cold reads.
const FILES_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct LogInner {
    /// Records below are forgotten.
    pub start: Offset,
    /// Offset of the next record.
    pub end: Offset,
    /// The newest batches, without gaps, up to the end.
    pub tail: VecDeque<StoredBatch>,
    /// Batches that end below this are in segments.
    pub filed: Offset,
    pub segments: VecDeque<Segment>,
    /// Bytes of records in segments and of those not yet filed.
    pub bytes: u64,
    /// The log is gone.
    pub dropped: bool,
}

/// Where a log begins and ends as the machine has written it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogRange {
    pub start: Offset,
    pub end: Offset,
    /// Bytes kept, in memory and on disk.
    pub bytes: u64,
}

pub(super) struct Logs {
    pub disk: Arc<dyn Disk>,
    /// `store-…/logs`
    pub dir: String,
    pub map: RwLock<BTreeMap<LogId, Arc<Mutex<LogInner>>>>,
    files: Mutex<FileCache>,
    /// The store is gone; there is nothing here any more.
    closed: bool,
    /// Hears of a disk that cannot be read or has rotted, once.
    on_event: Option<OnEvent>,
    reported: AtomicBool,
}

/// Stands in the place of a store that was dropped, so that readers do not keep its directory locked.
struct NoDisk;

fn no_disk<T>() -> io::Result<T> {
    Err(io::ErrorKind::NotFound.into())
}

impl Disk for NoDisk {
    fn list(&self, _: &str) -> io::Result<Vec<String>> {
        no_disk()
    }
    fn open(&self, _: &str, _: Open) -> io::Result<Arc<dyn DiskFile>> {
        no_disk()
    }
    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        no_disk()
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        no_disk()
    }
    fn create_dir(&self, _: &str) -> io::Result<()> {
        no_disk()
    }
    fn remove_dir_all(&self, _: &str) -> io::Result<()> {
        no_disk()
    }
    fn sync_dir(&self, _: &str) -> io::Result<()> {
        no_disk()
    }
}

pub(super) fn log_dir(dir: &str, log: LogId) -> String {
    format!("{dir}/{:08x}", log.0)
}

pub(super) fn segment_path(dir: &str, log: LogId, base: Offset) -> String {
    format!("{dir}/{:08x}/{:016x}.rec", log.0, base.0)
}

/// The base offset that a segment file's name says.
pub(super) fn segment_base(name: &str) -> Option<Offset> {
    let hex = name.strip_suffix(".rec")?;
    (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok())?.map(|base| Offset(base as i64))
}

/// Least recently used first; few enough that a scan costs nothing beside a read.
#[derive(Default)]
struct FileCache {
    files: VecDeque<((LogId, Offset), Arc<dyn DiskFile>)>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

impl Logs {
    pub fn new(disk: Arc<dyn Disk>, dir: String, on_event: Option<OnEvent>) -> Self {
        Self {
            disk,
            dir,
            map: RwLock::default(),
            files: Mutex::default(),
            closed: false,
            on_event,
            reported: AtomicBool::new(false),
        }
    }

    /// Passes a reader's result on; one that shows a bad disk stops the node.
    fn report<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && [Code::CORRUPT, Code::DISK, Code::DISK_FULL].contains(&error.code)
            && let Some(on_event) = &self.on_event
            && !self.reported.swap(true, SeqCst)
        {
            tracing::error!(code = error.code.0, error = %error, "a record log cannot be read");
            on_event(StoreEvent::Failed(error.clone()));
        }
        result
    }

    /// What readers get after the store was dropped.
    pub fn closed() -> Self {
        Self { closed: true, ..Self::new(Arc::new(NoDisk), String::new(), None) }
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.closed { Err(Error::new(Code::STOPPED, "the store is closed")) } else { Ok(()) }
    }

    pub fn get(&self, log: LogId) -> Option<Arc<Mutex<LogInner>>> {
        self.map.read().expect("nothing panics while it holds this lock").get(&log).cloned()
    }

    pub fn get_or_make(&self, log: LogId, start: Offset) -> Arc<Mutex<LogInner>> {
        if let Some(inner) = self.get(log) {
            return inner;
        }
        let mut map = self.map.write().expect("nothing panics while it holds this lock");
        map.entry(log)
            .or_insert_with(|| {
                Arc::new(Mutex::new(LogInner { start, end: start, filed: start, ..LogInner::default() }))
            })
            .clone()
    }

    pub fn remove(&self, log: LogId) {
        let gone = self.map.write().expect("nothing panics while it holds this lock").remove(&log);
        if let Some(inner) = gone {
            let mut inner = lock(&inner);
            inner.dropped = true;
            inner.tail.clear();
        }
        lock(&self.files).files.retain(|((l, _), _)| *l != log);
    }

    /// Closes a file that is to be removed.
    pub fn close(&self, log: LogId, base: Offset) {
        lock(&self.files).files.retain(|(key, _)| *key != (log, base));
    }

    fn open(&self, log: LogId, base: Offset) -> Result<Arc<dyn DiskFile>, Cold> {
        let mut cache = lock(&self.files);
        if let Some(at) = cache.files.iter().position(|(key, _)| *key == (log, base)) {
            let entry = cache.files.remove(at).expect("found just now");
            let file = entry.1.clone();
            cache.files.push_back(entry);
            return Ok(file);
        }
        drop(cache);
        let path = segment_path(&self.dir, log, base);
        let file = match self.disk.open(&path, Open::Read) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Cold::Gone),
            Err(e) => return Err(Cold::Failed(disk_error(format_args!("cannot open \"{path}\""), &e))),
        };
        let mut header = [0; super::frames::HEADER_BYTES];
        let got = read_full(&*file, &mut header, 0)
            .map_err(|e| Cold::Failed(disk_error(format_args!("cannot read \"{path}\""), &e)))?;
        check_header(&path, &header[..got], log, base).map_err(Cold::Failed)?;
        let mut cache = lock(&self.files);
        if cache.files.len() >= FILES_MAX {
            cache.files.pop_front();
        }
        cache.files.push_back(((log, base), file.clone()));
        Ok(file)
    }
}

/// Why a cold read did not come about.
enum Cold {
    /// Retention took the segment between looking and reading.
    Gone,
    Failed(Error),
}

fn out_of_range(log: LogId, offset: Offset, range: LogRange) -> Error {
    Error::new(
        Code::OFFSET_OUT_OF_RANGE,
        format!("offset {offset} of log {log} is not between {} and {}", range.start, range.end),
    )
    .hint("ask for the log's first or last offset and go on from there")
}

/// Reads record batches of the store that is current, also after a snapshot took its place. Cheap to clone.
#[derive(Clone)]
pub struct LogReader {
    pub(super) slot: Arc<RwLock<Arc<Logs>>>,
}

impl LogReader {
    fn logs(&self) -> Arc<Logs> {
        self.slot.read().expect("nothing panics while it holds this lock").clone()
    }

    /// Whole batches from the one that contains `offset` on: at least one where there is one, at most about `bytes_max`
    /// bytes. None at the end of the log, and none of a log that has no records yet. May give less than there is; the
    /// next read goes on behind the last batch.
    ///
    /// # Errors
    /// `OFFSET_OUT_OF_RANGE`, `CORRUPT`, `DISK`, `STOPPED` once the store was dropped.
    pub fn read(&self, log: LogId, offset: Offset, bytes_max: usize) -> Result<Vec<Batch>, Error> {
        let logs = self.logs();
        logs.check_open()?;
        logs.report(Self::read_from(&logs, log, offset, bytes_max))
    }

    fn read_from(logs: &Logs, log: LogId, offset: Offset, bytes_max: usize) -> Result<Vec<Batch>, Error> {
        // The loop ends: each turn after the first has seen retention move the log's start.
        loop {
            let Some(inner) = logs.get(log) else {
                let none = LogRange::default();
                return if offset == none.start { Ok(Vec::new()) } else { Err(out_of_range(log, offset, none)) };
            };
            let (base, at, end) = {
                let inner = lock(&inner);
                let range = LogRange { start: inner.start, end: inner.end, bytes: 0 };
                if offset < inner.start || offset > inner.end {
                    return Err(out_of_range(log, offset, range));
                }
                if offset == inner.end {
                    return Ok(Vec::new());
                }
                if inner.tail.front().is_some_and(|b| b.base_offset <= offset) {
                    return Ok(from_tail(&inner.tail, offset, bytes_max));
                }
                let at = inner.segments.partition_point(|s| s.last < offset);
                let segment = inner.segments.get(at).ok_or_else(|| missing(logs, log, offset))?;
                (segment.base, segment.position_of(offset), segment.bytes)
            };
            match cold(logs, log, base, at, end, offset, bytes_max) {
                Ok(batches) => return Ok(batches),
                Err(Cold::Gone) => {
                    let moved = lock(&inner);
                    if !moved.dropped && moved.start <= offset && moved.segments.iter().any(|s| s.base == base) {
                        return Err(corrupt(format_args!(
                            "record segment \"{}\" is missing",
                            segment_path(&logs.dir, log, base)
                        )));
                    }
                }
                Err(Cold::Failed(error)) => return Err(error),
            }
        }
    }

    /// The first batch with a timestamp of at least `timestamp_ms`: its base offset and largest timestamp.
    ///
    /// # Errors
    /// `CORRUPT`, `DISK`, `STOPPED` once the store was dropped.
    pub fn offset_for_time(&self, log: LogId, timestamp_ms: i64) -> Result<Option<(Offset, i64)>, Error> {
        let logs = self.logs();
        logs.check_open()?;
        logs.report(Self::find_time(&logs, log, timestamp_ms))
    }

    fn find_time(logs: &Logs, log: LogId, timestamp_ms: i64) -> Result<Option<(Offset, i64)>, Error> {
        let Some(inner) = logs.get(log) else { return Ok(None) };
        let mut after = Offset(-1);
        loop {
            let found = {
                let inner = lock(&inner);
                let after = after.max(Offset(inner.start.0 - 1));
                let segment = inner.segments.iter().find(|s| s.last > after && s.max_timestamp_ms >= timestamp_ms);
                match segment {
                    Some(s) => (s.base, s.last, s.position_of_time(timestamp_ms), s.bytes, inner.start),
                    None => {
                        let batch =
                            inner.tail.iter().find(|b| b.last_offset > after && b.max_timestamp_ms >= timestamp_ms);
                        return Ok(batch.map(|b| (b.base_offset.max(inner.start), b.max_timestamp_ms)));
                    }
                }
            };
            let (base, last, at, end, start) = found;
            let mut hit = None;
            match logs.open(log, base) {
                Ok(file) => {
                    walk(&*file, &segment_path(&logs.dir, log, base), log, at, end, |frame, _| {
                        if frame.last_offset >= start && frame.max_timestamp_ms >= timestamp_ms {
                            hit = Some((frame.base_offset.max(start), frame.max_timestamp_ms));
                        }
                        hit.is_none()
                    })?;
                }
                Err(Cold::Gone) => {}
                Err(Cold::Failed(error)) => return Err(error),
            }
            if hit.is_some() {
                return Ok(hit);
            }
            // All batches that are young enough were forgotten, or the segment is; go on behind it.
            after = last;
        }
    }

    /// Begin and end of a log; `None` if it never had a record.
    pub fn range(&self, log: LogId) -> Option<LogRange> {
        let inner = self.logs().get(log)?;
        let inner = lock(&inner);
        Some(LogRange { start: inner.start, end: inner.end, bytes: inner.bytes })
    }

    /// Begin and end of every log that has had a record.
    pub fn ranges(&self) -> Vec<(LogId, LogRange)> {
        let logs = self.logs();
        let map = logs.map.read().expect("nothing panics while it holds this lock");
        map.iter()
            .map(|(log, inner)| {
                let inner = lock(inner);
                (*log, LogRange { start: inner.start, end: inner.end, bytes: inner.bytes })
            })
            .collect()
    }

    /// The offset before which the topic's settings let records go, if that frees at least one segment. Time counts from
    /// when a batch was committed, not from what its producer stamped on it. The leader proposes it as a trim.
    pub fn retention_candidates(&self, log: LogId, settings: &TopicSettings, now: TimeMs) -> Option<Offset> {
        let inner = self.logs().get(log)?;
        let inner = lock(&inner);
        let mut left = inner.bytes;
        let mut before = None;
        for (at, segment) in inner.segments.iter().enumerate() {
            // The newest segment may only go by age, and only if nothing behind it waits to be written into it.
            let newest = at + 1 == inner.segments.len();
            if newest && inner.filed < inner.end {
                break;
            }
            let too_old =
                settings.retention_ms.is_some_and(|keep| segment.last_committed_at.0.saturating_add(keep) < now.0);
            let too_many =
                !newest && settings.retention_bytes.is_some_and(|keep| left - segment.data_bytes().min(left) >= keep);
            if !too_old && !too_many {
                break;
            }
            left -= segment.data_bytes().min(left);
            before = Some(Offset(segment.last.0 + 1));
        }
        before.filter(|b| *b > inner.start)
    }
}

fn missing(logs: &Logs, log: LogId, offset: Offset) -> Error {
    corrupt(format_args!("no segment in \"{}\" has offset {offset}", log_dir(&logs.dir, log)))
}

fn from_tail(tail: &VecDeque<StoredBatch>, offset: Offset, bytes_max: usize) -> Vec<Batch> {
    let first = tail.partition_point(|b| b.last_offset < offset);
    let mut bytes = 0;
    let mut out = Vec::new();
    for batch in tail.range(first..) {
        if !out.is_empty() && bytes + batch.bytes.len() > bytes_max {
            break;
        }
        bytes += batch.bytes.len();
        out.push(Batch {
            base_offset: batch.base_offset,
            last_offset: batch.last_offset,
            max_timestamp_ms: batch.max_timestamp_ms,
            index: batch.index,
            committed_at: batch.committed_at,
            bytes: batch.bytes.clone(),
        });
    }
    out
}

fn cold(
    logs: &Logs,
    log: LogId,
    base: Offset,
    at: u64,
    end: u64,
    offset: Offset,
    bytes_max: usize,
) -> Result<Vec<Batch>, Cold> {
    let file = logs.open(log, base)?;
    let mut bytes = 0;
    let mut out = Vec::new();
    walk(&*file, &segment_path(&logs.dir, log, base), log, at, end, |frame, batch| {
        if frame.last_offset < offset {
            return true;
        }
        if !out.is_empty() && bytes + batch.len() > bytes_max {
            return false;
        }
        bytes += batch.len();
        out.push(frame.batch(batch));
        bytes < bytes_max
    })
    .map_err(Cold::Failed)?;
    if out.is_empty() {
        return Err(Cold::Failed(missing(logs, log, offset)));
    }
    Ok(out)
}
