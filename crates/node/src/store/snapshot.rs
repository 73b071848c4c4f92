//! A store as a stream of chunks, and a stream of chunks as a store.
//!
//! ```text
//! chunk   magic u32 · number u32 · crc32c u32 · payload     at most 1 MiB, integers little endian
//! stream  the payloads in a row: items, each kind u8 · length u32 · body
//!         Header · Row* · (Log (Segment Data*)*)* · End
//! ```
//! A chunk's checksum covers its number, so none is lost, doubled or swapped unnoticed. Items may lie across chunks, since
//! one value can be larger than a chunk. `End` counts what came, so a stream that breaks off is never taken for a
//! whole one.
//!
//! The sender reads the last checkpoint: fjall's snapshot holds the rows, the list of segments in it names the files and
//! how much of each counts, and freed files stay until the last export is dropped. The receiver builds a store
//! directory that nothing points to, verifies every frame as it indexes it, syncs everything, and writes the head
//! last. Only [`StoreHandle::install`](super::StoreHandle::install) makes it count.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use buttress_core::{
    Code, DecodeError, Error, Index, LogId, Offset, Reader, Table, Term, Writer, limits::ENTRY_BYTES_MAX,
};
use bytes::{Buf, Bytes, BytesMut};

use super::{
    Options,
    frames::{Frame, HEADER_BYTES, Segment, check_header, walk},
    logs::{Logs, lock, log_dir, segment_path},
    logs_dir, make_dir,
    root::{Root, dir_name},
    rows::{Head, LogRow, LogView, META_BYTES_MAX, Rows, StoreRow, View, rows_error, table_at},
    worker::{Shared, remove_files},
};
use crate::wal::{
    Identity,
    disk::{Disk, DiskFile, Open, corrupt, disk_error, read_full},
    format::CLUSTER_ID_BYTES_MAX,
};

/// Largest chunk, with its head.
pub const CHUNK_BYTES_MAX: usize = 1024 * 1024;
const CHUNK_MAGIC: u32 = 0x5054_5442;
const CHUNK_HEAD_BYTES: usize = 12;
const STREAM_FORMAT: u8 = 1;
pub(super) const ITEM_HEAD_BYTES: usize = 5;
/// Largest item: a row whose value is an entry, with its key.
pub(super) const ITEM_BYTES_MAX: usize = ENTRY_BYTES_MAX + 64 * 1024;
const DATA_BYTES: usize = 256 * 1024;
/// Rows that a receiver writes at once.
const ROWS_BYTES: usize = 1024 * 1024;
/// fjall's limit.
const ROW_KEY_BYTES_MAX: usize = 65_535;

/// What a snapshot is the state of, and whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    pub cluster_id: String,
    pub index: Index,
    pub term: Term,
    /// The host's blob.
    pub meta: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Header(SnapshotHeader),
    Row {
        table: Table,
        key: Bytes,
        value: Bytes,
    },
    Log {
        log: LogId,
        row: LogRow,
    },
    /// The length of the file; its bytes follow as data.
    Segment {
        base: Offset,
        bytes: u64,
    },
    Data(Bytes),
    End {
        rows: u64,
        bytes: u64,
    },
}

impl Item {
    fn encode(&self, out: &mut BytesMut) {
        let mut w = Writer::default();
        let kind = match self {
            Self::Header(header) => {
                w.u8(STREAM_FORMAT);
                w.bytes(header.cluster_id.as_bytes());
                w.varint(header.index.0);
                w.varint(header.term.0);
                w.bytes(&header.meta);
                1
            }
            Self::Row { table, key, value } => {
                w.u8(table_at(*table) as u8);
                w.bytes(key);
                w.raw(value);
                2
            }
            Self::Log { log, row } => {
                w.varint(log.0.into());
                w.zigzag(row.start.0);
                w.zigzag(row.end.0);
                3
            }
            Self::Segment { base, bytes } => {
                w.zigzag(base.0);
                w.varint(*bytes);
                4
            }
            Self::Data(bytes) => {
                w.raw(bytes);
                5
            }
            Self::End { rows, bytes } => {
                w.varint(*rows);
                w.varint(*bytes);
                6
            }
        };
        let body = w.finish();
        out.extend_from_slice(&[kind]);
        out.extend_from_slice(&u32::try_from(body.len()).expect("items are bounded").to_le_bytes());
        out.extend_from_slice(&body);
    }

    pub(super) fn decode(kind: u8, body: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        let item = match kind {
            1 => {
                match r.u8("snapshot format")? {
                    STREAM_FORMAT => {}
                    got => return Err(DecodeError::Version { got, known: STREAM_FORMAT }),
                }
                Self::Header(SnapshotHeader {
                    cluster_id: r.string("cluster id", CLUSTER_ID_BYTES_MAX)?,
                    index: Index(r.varint("index")?),
                    term: Term(r.varint("term")?),
                    meta: r.bytes("meta", META_BYTES_MAX)?,
                })
            }
            2 => {
                let table = r.u8("table")?;
                let table = *Table::ALL
                    .iter()
                    .find(|t| table_at(**t) as u8 == table)
                    .ok_or(DecodeError::Tag { what: "table", tag: table.into() })?;
                let key = r.bytes("key", ROW_KEY_BYTES_MAX)?;
                if key.is_empty() {
                    return Err(DecodeError::Short("key"));
                }
                let rest = r.remaining();
                Self::Row { table, key, value: r.take(rest, "value")? }
            }
            3 => Self::Log {
                log: LogId(r.varint_u32("log")?),
                row: LogRow { start: Offset(r.zigzag("start")?), end: Offset(r.zigzag("end")?) },
            },
            4 => Self::Segment { base: Offset(r.zigzag("base offset")?), bytes: r.varint("bytes")? },
            5 => {
                let rest = r.remaining();
                Self::Data(r.take(rest, "data")?)
            }
            6 => Self::End { rows: r.varint("rows")?, bytes: r.varint("bytes")? },
            tag => return Err(DecodeError::Tag { what: "snapshot item", tag: tag.into() }),
        };
        r.end()?;
        Ok(item)
    }
}

fn chunk_crc(number: u32, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), payload)
}

pub(super) fn encode_chunk(number: u32, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(CHUNK_HEAD_BYTES + payload.len());
    out.extend_from_slice(&CHUNK_MAGIC.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&chunk_crc(number, payload).to_le_bytes());
    out.extend_from_slice(payload);
    out.freeze()
}

/// The payload of the chunk, if it is whole and has this number.
pub(super) fn decode_chunk(number: u32, mut chunk: Bytes) -> Result<Bytes, Error> {
    let bad = |what: String| Error::new(Code::CORRUPT, format!("snapshot chunk {number}: {what}")).retryable();
    if chunk.len() < CHUNK_HEAD_BYTES || chunk.len() > CHUNK_BYTES_MAX {
        return Err(bad(format!("it has {} bytes", chunk.len())));
    }
    let (magic, got, crc) = (chunk.get_u32_le(), chunk.get_u32_le(), chunk.get_u32_le());
    if magic != CHUNK_MAGIC {
        return Err(bad("it is not a chunk".into()));
    }
    if got != number {
        return Err(bad(format!("number {got} came")));
    }
    if chunk_crc(number, &chunk) != crc {
        return Err(bad("it fails its checksum".into()));
    }
    Ok(chunk)
}

/// Reads a checkpoint as chunks. Retention may go on meanwhile; its files stay until this is dropped.
pub struct Export {
    header: SnapshotHeader,
    logs: Arc<Logs>,
    shared: Arc<Shared>,
    stage: Stage,
    number: u32,
    out: BytesMut,
    rows: u64,
    bytes: u64,
    /// Dropped after the rows that `stage` iterates over.
    view: View,
}

type RowIter = Box<dyn Iterator<Item = fjall::Result<(Bytes, Bytes)>> + Send>;

enum Stage {
    Rows {
        tables: VecDeque<Table>,
        table: Table,
        iter: RowIter,
    },
    Logs {
        logs: VecDeque<LogView>,
        open: Option<OpenSegment>,
    },
    Done,
    /// An error was given; nothing more comes.
    Failed,
}

struct OpenSegment {
    path: String,
    file: Arc<dyn DiskFile>,
    at: u64,
    end: u64,
}

impl Export {
    pub(super) fn new(rows: &Rows, logs: &Arc<Logs>, shared: &Arc<Shared>, identity: &Identity) -> Result<Self, Error> {
        // The count comes before the view, so that nothing the view names is removed in between.
        lock(&shared.exports).running += 1;
        let view = rows.view();
        let mut tables: VecDeque<Table> = Table::ALL.into();
        let table = tables.pop_front().expect("there are tables");
        let iter: RowIter = Box::new(view.table(table));
        let mut export = Self {
            header: SnapshotHeader {
                cluster_id: identity.cluster_id.clone(),
                index: Index(0),
                term: Term(0),
                meta: Bytes::new(),
            },
            logs: logs.clone(),
            shared: shared.clone(),
            stage: Stage::Rows { tables, table, iter },
            number: 0,
            out: BytesMut::new(),
            rows: 0,
            bytes: 0,
            view,
        };
        let head = export.view.head()?.ok_or_else(|| corrupt("the store has no checkpoint"))?;
        export.header.index = head.index;
        export.header.term = head.term;
        export.header.meta = head.meta;
        let header = Item::Header(export.header.clone());
        header.encode(&mut export.out);
        Ok(export)
    }

    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// Appends the next item to `out`.
    fn step(&mut self) -> Result<(), Error> {
        match &mut self.stage {
            Stage::Rows { tables, table, iter } => match iter.next() {
                Some(row) => {
                    let (key, value) = row.map_err(|e| rows_error("cannot read rows for a snapshot", &e))?;
                    self.rows += 1;
                    self.bytes += (key.len() + value.len()) as u64;
                    Item::Row { table: *table, key, value }.encode(&mut self.out);
                }
                None => match tables.pop_front() {
                    Some(next) => {
                        *table = next;
                        *iter = Box::new(self.view.table(next));
                    }
                    None => {
                        let logs: VecDeque<LogView> = self.view.logs()?.into();
                        if let Some(view) = logs.front() {
                            Item::Log { log: view.log, row: view.row }.encode(&mut self.out);
                        }
                        self.stage = Stage::Logs { logs, open: None };
                    }
                },
            },
            Stage::Logs { open: Some(open), .. } if open.at < open.end => {
                let mut data = vec![0; DATA_BYTES.min((open.end - open.at) as usize)];
                let got = read_full(&*open.file, &mut data, open.at)
                    .map_err(|e| disk_error(format_args!("cannot read \"{}\"", open.path), &e))?;
                if got < data.len() {
                    return Err(corrupt(format_args!(
                        "record segment \"{}\" is shorter than its checkpoint says",
                        open.path
                    )));
                }
                open.at += got as u64;
                self.bytes += got as u64;
                Item::Data(data.into()).encode(&mut self.out);
            }
            Stage::Logs { logs, open } => match logs.front_mut() {
                Some(view) if !view.segments.is_empty() => {
                    let segment = view.segments.remove(0);
                    let path = segment_path(&self.logs.dir, view.log, segment.base);
                    let file = self
                        .logs
                        .disk
                        .open(&path, Open::Read)
                        .map_err(|e| disk_error(format_args!("cannot open \"{path}\""), &e))?;
                    Item::Segment { base: segment.base, bytes: segment.bytes }.encode(&mut self.out);
                    *open = Some(OpenSegment { path, file, at: 0, end: segment.bytes });
                }
                Some(_) => {
                    logs.pop_front();
                    *open = None;
                    if let Some(view) = logs.front() {
                        Item::Log { log: view.log, row: view.row }.encode(&mut self.out);
                    }
                }
                None => {
                    Item::End { rows: self.rows, bytes: self.bytes }.encode(&mut self.out);
                    self.stage = Stage::Done;
                }
            },
            Stage::Done | Stage::Failed => {}
        }
        Ok(())
    }
}

impl Iterator for Export {
    type Item = Result<Bytes, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        const PAYLOAD: usize = CHUNK_BYTES_MAX - CHUNK_HEAD_BYTES;
        while self.out.len() < PAYLOAD && !matches!(self.stage, Stage::Done | Stage::Failed) {
            if let Err(error) = self.step() {
                self.stage = Stage::Failed;
                self.out.clear();
                return Some(Err(error));
            }
        }
        if self.out.is_empty() {
            return None;
        }
        let payload = self.out.split_to(self.out.len().min(PAYLOAD));
        let chunk = encode_chunk(self.number, &payload);
        self.number += 1;
        Some(Ok(chunk))
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let mut exports = lock(&self.shared.exports);
        exports.running -= 1;
        if exports.running == 0 {
            remove_files(&self.logs, std::mem::take(&mut exports.freed));
        }
    }
}

/// Builds a store directory from chunks. Dropping it, or what it gave, without installing removes the directory.
pub struct SnapshotReceiver {
    rows: Rows,
    disk: Arc<dyn Disk>,
    dir: String,
    cluster_id: String,
    options: Options,
    number: u32,
    input: BytesMut,
    header: Option<SnapshotHeader>,
    pending: Vec<(Table, Bytes, Bytes)>,
    pending_bytes: usize,
    row_count: u64,
    bytes: u64,
    log: Option<(LogId, LogRow)>,
    /// Where the next segment of the log may begin.
    next: Offset,
    segment: Option<Receiving>,
    store: Vec<StoreRow>,
    ended: bool,
    failed: Option<Error>,
}

struct Receiving {
    path: String,
    file: Arc<dyn DiskFile>,
    base: Offset,
    at: u64,
    end: u64,
}

/// A snapshot that is on disk, whole and verified.
pub struct ReceivedSnapshot {
    header: SnapshotHeader,
    rows: Rows,
}

impl ReceivedSnapshot {
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// Lets the directory stay, closes it, and gives its number.
    pub(super) fn keep(self) -> u64 {
        self.rows.dir.unwanted.store(false, SeqCst);
        self.rows.dir.number
    }
}

fn invalid(what: impl std::fmt::Display) -> Error {
    Error::new(Code::CORRUPT, format!("the snapshot is not valid: {what}"))
        .hint("it is sent again; if this comes back, look at the sender's disk")
        .retryable()
}

impl SnapshotReceiver {
    /// `cluster_id` is whose snapshot is taken: the store's own cluster, or the one that a backup was taken of.
    pub(super) fn new(root: &Arc<Root>, number: u64, options: &Options, cluster_id: &str) -> Result<Self, Error> {
        let rows = make_dir(root, number)?;
        rows.dir.unwanted.store(true, SeqCst);
        Ok(Self {
            rows,
            disk: root.disk.clone(),
            dir: logs_dir(number),
            cluster_id: cluster_id.to_owned(),
            options: options.clone(),
            number: 0,
            input: BytesMut::new(),
            header: None,
            pending: Vec::new(),
            pending_bytes: 0,
            row_count: 0,
            bytes: 0,
            log: None,
            next: Offset(0),
            segment: None,
            store: Vec::new(),
            ended: false,
            failed: None,
        })
    }

    /// What the snapshot is the state of, once the first chunk came.
    pub fn header(&self) -> Option<&SnapshotHeader> {
        self.header.as_ref()
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// `CORRUPT` (retryable: begin again with a new receiver), `WRONG_CLUSTER`, `DISK`, `DISK_FULL`. After an error
    /// every call gives it again.
    pub fn push(&mut self, chunk: Bytes) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.try_push(chunk);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    fn try_push(&mut self, chunk: Bytes) -> Result<(), Error> {
        let payload = decode_chunk(self.number, chunk)?;
        self.number += 1;
        self.input.extend_from_slice(&payload);
        loop {
            if self.input.len() < ITEM_HEAD_BYTES {
                return Ok(());
            }
            let kind = self.input[0];
            let len = u32::from_le_bytes(self.input[1..5].try_into().expect("four bytes")) as usize;
            if len > ITEM_BYTES_MAX {
                return Err(invalid(format_args!("an item has {len} bytes")));
            }
            if self.input.len() < ITEM_HEAD_BYTES + len {
                return Ok(());
            }
            self.input.advance(ITEM_HEAD_BYTES);
            let body = self.input.split_to(len).freeze();
            let item = Item::decode(kind, body).map_err(invalid)?;
            self.item(item)?;
        }
    }

    fn item(&mut self, item: Item) -> Result<(), Error> {
        if self.ended {
            return Err(invalid("something follows its end"));
        }
        if self.header.is_none() != matches!(item, Item::Header(_)) {
            return Err(invalid("its header is not where it belongs"));
        }
        match item {
            Item::Header(header) => {
                if header.cluster_id != self.cluster_id {
                    return Err(Error::new(
                        Code::WRONG_CLUSTER,
                        format!(
                            "the snapshot belongs to cluster \"{}\", not to \"{}\"",
                            header.cluster_id, self.cluster_id
                        ),
                    )
                    .hint("check the addresses of the peers"));
                }
                self.header = Some(header);
            }
            Item::Row { table, key, value } => {
                let bytes = key.len() + value.len();
                self.row_count += 1;
                self.bytes += bytes as u64;
                self.pending_bytes += bytes;
                self.pending.push((table, key, value));
                if self.pending_bytes >= ROWS_BYTES {
                    self.write_rows()?;
                }
            }
            Item::Log { log, row } => {
                self.end_segment()?;
                self.end_log()?;
                if row.start.0 < 0 || row.end < row.start {
                    return Err(invalid(format_args!("log {log} goes from {} to {}", row.start, row.end)));
                }
                if self.store.iter().any(|r| matches!(r, StoreRow::Log(l, _) if *l == log)) {
                    return Err(invalid(format_args!("log {log} comes twice")));
                }
                self.store.push(StoreRow::Log(log, row));
                self.log = Some((log, row));
                self.next = Offset(0);
            }
            Item::Segment { base, bytes } => {
                self.end_segment()?;
                let Some((log, _)) = self.log else { return Err(invalid("a segment has no log")) };
                if base < self.next || bytes <= HEADER_BYTES as u64 {
                    return Err(invalid(format_args!("segment {base} of log {log} is out of place")));
                }
                let path = segment_path(&self.dir, log, base);
                let failed = |e| disk_error(format_args!("cannot write \"{path}\""), &e);
                self.disk.create_dir(&log_dir(&self.dir, log)).map_err(failed)?;
                let file = self.disk.open(&path, Open::Create).map_err(failed)?;
                self.segment = Some(Receiving { path, file, base, at: 0, end: bytes });
            }
            Item::Data(data) => {
                let Some(segment) = &mut self.segment else { return Err(invalid("data has no segment")) };
                if segment.at + data.len() as u64 > segment.end {
                    return Err(invalid(format_args!("\"{}\" is longer than announced", segment.path)));
                }
                segment
                    .file
                    .write_all_at(&data, segment.at)
                    .map_err(|e| disk_error(format_args!("cannot write \"{}\"", segment.path), &e))?;
                segment.at += data.len() as u64;
                self.bytes += data.len() as u64;
            }
            Item::End { rows, bytes } => {
                self.end_segment()?;
                self.end_log()?;
                self.write_rows()?;
                if (rows, bytes) != (self.row_count, self.bytes) || !self.input.is_empty() {
                    return Err(invalid(format_args!(
                        "{} rows and {} bytes came, {rows} and {bytes} were sent",
                        self.row_count, self.bytes
                    )));
                }
                self.ended = true;
            }
        }
        Ok(())
    }

    fn write_rows(&mut self) -> Result<(), Error> {
        self.pending_bytes = 0;
        let rows = std::mem::take(&mut self.pending);
        if rows.is_empty() { Ok(()) } else { self.rows.import(&rows) }
    }

    /// Verifies, indexes and syncs the segment that came.
    fn end_segment(&mut self) -> Result<(), Error> {
        let Some(Receiving { path, file, base, at, end }) = self.segment.take() else { return Ok(()) };
        let (log, _) = self.log.expect("a segment has a log");
        if at != end {
            return Err(invalid(format_args!("\"{path}\" has {at} of {end} bytes")));
        }
        let mut header = [0; HEADER_BYTES];
        read_full(&*file, &mut header, 0).map_err(|e| disk_error(format_args!("cannot read \"{path}\""), &e))?;
        check_header(&path, &header, log, base).map_err(|e| invalid(e.message))?;
        let mut segment: Option<Segment> = None;
        let mut next = base;
        let mut out_of_order = false;
        walk(&*file, &path, log, HEADER_BYTES as u64, end, |frame: &Frame, _| {
            out_of_order |= frame.base_offset < next;
            next = Offset(frame.last_offset.0.saturating_add(1));
            segment.get_or_insert_with(|| Segment::new(base, frame.committed_at)).push(frame);
            !out_of_order
        })
        .map_err(|e| if e.code == Code::CORRUPT { invalid(e.message) } else { e })?;
        let segment =
            segment.filter(|_| !out_of_order).ok_or_else(|| invalid(format_args!("\"{path}\" is out of order")))?;
        file.sync_data().map_err(|e| disk_error(format_args!("cannot sync \"{path}\""), &e))?;
        self.next = next;
        self.store.push(StoreRow::Segment(log, segment));
        Ok(())
    }

    fn end_log(&mut self) -> Result<(), Error> {
        let Some((log, row)) = self.log.take() else { return Ok(()) };
        let has_segments = matches!(self.store.last(), Some(StoreRow::Segment(..)));
        if has_segments {
            if self.next != row.end {
                return Err(invalid(format_args!("log {log} ends at {}, its segments at {}", row.end, self.next)));
            }
            let dir = log_dir(&self.dir, log);
            self.disk.sync_dir(&dir).map_err(|e| disk_error(format_args!("cannot sync \"{dir}\""), &e))?;
        }
        Ok(())
    }

    /// Makes the snapshot durable.
    ///
    /// # Errors
    /// `CORRUPT` if it is not whole; what `push` gives otherwise.
    pub fn finish(self) -> Result<ReceivedSnapshot, Error> {
        self.finish_with(None)
    }

    /// As [`Self::finish`], with another blob of the host's than the sender had: a restored cluster has members of its
    /// own.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_as(self, meta: Bytes) -> Result<ReceivedSnapshot, Error> {
        assert!(meta.len() <= META_BYTES_MAX, "the host's blob has {} bytes", meta.len());
        self.finish_with(Some(meta))
    }

    fn finish_with(self, meta: Option<Bytes>) -> Result<ReceivedSnapshot, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut header = match self.header {
            Some(header) if self.ended => header,
            _ => return Err(invalid("it breaks off")),
        };
        header.meta = meta.unwrap_or(header.meta);
        let dir = &self.dir;
        self.disk.sync_dir(dir).map_err(|e| disk_error(format_args!("cannot sync \"{dir}\""), &e))?;
        let store = dir_name(self.rows.dir.number);
        self.disk.sync_dir(&store).map_err(|e| disk_error(format_args!("cannot sync \"{store}\""), &e))?;
        let head = Head { index: header.index, term: header.term, meta: header.meta.clone() };
        self.rows.commit(&head, std::iter::empty(), &self.store)?;
        tracing::debug!(index = header.index.0, segment_bytes = self.options.segment_bytes, "a snapshot is complete");
        Ok(ReceivedSnapshot { header, rows: self.rows })
    }
}
