//! Looks at a snapshot's stream without building a store from it: is every byte of it what was written, do its parts fit
//! together, and what is inside.
//!
//! It needs the memory of the keys' names and of one record batch, whatever the size of the stream. What it finds wrong,
//! [`SnapshotReceiver`](super::SnapshotReceiver) would refuse too; beyond that it holds record logs against the machine's
//! own rows, and offsets against each other, because nobody reads a backup again before it is needed.

use std::collections::BTreeMap;

use buttress_core::{Code, Error, LogId, Offset};
use buttress_state::census::{Census, Counts};
use bytes::{Buf, Bytes, BytesMut};

use super::{
    frames::{Frame, HEADER_BYTES, check_header},
    rows::{LogRow, table_at},
    snapshot::{ITEM_BYTES_MAX, ITEM_HEAD_BYTES, Item, SnapshotHeader, decode_chunk},
};

/// One record log of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCount {
    pub start: Offset,
    pub end: Offset,
    pub segments: u64,
    pub batches: u64,
    /// Of the segments, with their headers.
    pub bytes: u64,
}

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    pub header: SnapshotHeader,
    /// Rows and their bytes, per table in the order of [`buttress_core::Table::ALL`].
    pub rows: [(u64, u64); 3],
    pub logs: BTreeMap<LogId, LogCount>,
    pub counts: Counts,
}

impl Inventory {
    pub fn row_bytes(&self) -> u64 {
        self.rows.iter().map(|(_, bytes)| bytes).sum()
    }

    pub fn record_bytes(&self) -> u64 {
        self.logs.values().map(|log| log.bytes).sum()
    }
}

/// Takes the chunks of a snapshot in their order.
pub struct Inspector {
    number: u32,
    input: BytesMut,
    header: Option<SnapshotHeader>,
    census: Census,
    rows: [(u64, u64); 3],
    last_row: Option<(usize, Bytes)>,
    logs: BTreeMap<LogId, LogCount>,
    log: Option<LogId>,
    segment: Option<Walk>,
    /// Where the next batch of the log begins, once its first segment has begun.
    next: Option<Offset>,
    ended: bool,
}

/// A segment whose bytes pass by.
struct Walk {
    base: Offset,
    header: bool,
    left: u64,
    pending: BytesMut,
}

fn invalid(what: impl std::fmt::Display) -> Error {
    Error::new(Code::CORRUPT, format!("the snapshot is not valid: {what}"))
}

impl Inspector {
    /// Keeps the present values of keys below `prefixes` for [`Counts::wanted`].
    pub fn new(prefixes: &'static [&'static str]) -> Self {
        Self {
            number: 0,
            input: BytesMut::new(),
            header: None,
            census: Census::new(prefixes),
            rows: [(0, 0); 3],
            last_row: None,
            logs: BTreeMap::new(),
            log: None,
            segment: None,
            next: None,
            ended: false,
        }
    }

    /// Takes the next chunk. After an error nothing more should be pushed.
    ///
    /// # Errors
    /// `CORRUPT`, and `FORMAT` for what a newer version wrote.
    pub fn push(&mut self, chunk: Bytes) -> Result<(), Error> {
        let payload = decode_chunk(self.number, chunk)?;
        self.number += 1;
        self.input.extend_from_slice(&payload);
        while let Some((head, _)) = self.input.split_first_chunk::<ITEM_HEAD_BYTES>() {
            let kind = head[0];
            let len = u32::from_le_bytes(head[1..].try_into().expect("four bytes")) as usize;
            if len > ITEM_BYTES_MAX {
                return Err(invalid(format_args!("an item has {len} bytes")));
            }
            if self.input.len() < ITEM_HEAD_BYTES + len {
                break;
            }
            self.input.advance(ITEM_HEAD_BYTES);
            let body = self.input.split_to(len).freeze();
            self.item(Item::decode(kind, body).map_err(invalid)?)?;
        }
        Ok(())
    }

    fn item(&mut self, item: Item) -> Result<(), Error> {
        if self.ended {
            return Err(invalid("something follows its end"));
        }
        if self.header.is_none() != matches!(item, Item::Header(_)) {
            return Err(invalid("its header is not where it belongs"));
        }
        match item {
            Item::Header(header) => self.header = Some(header),
            Item::Row { table, key, value } => {
                if self.log.is_some() {
                    return Err(invalid("a row comes after the logs"));
                }
                let place = (table_at(table), key.clone());
                if self.last_row.as_ref().is_some_and(|last| *last >= place) {
                    return Err(invalid(format_args!("row \"{}\" is out of order", key.escape_ascii())));
                }
                let (rows, bytes) = &mut self.rows[place.0];
                *rows += 1;
                *bytes += (key.len() + value.len()) as u64;
                self.census
                    .row(table, &key, value)
                    .map_err(|error| invalid(format_args!("row \"{}\": {error}", key.escape_ascii())))?;
                self.last_row = Some(place);
            }
            Item::Log { log, row } => self.begin_log(log, row)?,
            Item::Segment { base, bytes } => self.begin_segment(base, bytes)?,
            Item::Data(data) => self.data(&data)?,
            Item::End { rows, bytes } => {
                self.end_log()?;
                let row_count: u64 = self.rows.iter().map(|(rows, _)| rows).sum();
                let row_bytes: u64 = self.rows.iter().map(|(_, bytes)| bytes).sum();
                let total = row_bytes + self.logs.values().map(|log| log.bytes).sum::<u64>();
                if (rows, bytes) != (row_count, total) || !self.input.is_empty() {
                    return Err(invalid(format_args!(
                        "{row_count} rows and {total} bytes came, {rows} and {bytes} were written"
                    )));
                }
                self.ended = true;
            }
        }
        Ok(())
    }

    fn begin_log(&mut self, log: LogId, row: LogRow) -> Result<(), Error> {
        self.end_log()?;
        if row.start.0 < 0 || row.end < row.start {
            return Err(invalid(format_args!("log {log} goes from {} to {}", row.start, row.end)));
        }
        let count = LogCount { start: row.start, end: row.end, ..LogCount::default() };
        if self.logs.insert(log, count).is_some() {
            return Err(invalid(format_args!("log {log} comes twice")));
        }
        self.log = Some(log);
        self.next = None;
        Ok(())
    }

    fn begin_segment(&mut self, base: Offset, bytes: u64) -> Result<(), Error> {
        self.end_segment()?;
        let Some(log) = self.log else { return Err(invalid("a segment has no log")) };
        let count = self.logs.get_mut(&log).expect("inserted when the log began");
        let joins = match self.next {
            // The first one holds the log's start, or all before it would be a hole.
            None => base.0 >= 0 && base <= count.start,
            Some(next) => base == next,
        };
        if !joins || bytes <= HEADER_BYTES as u64 {
            return Err(invalid(format_args!("segment {base} of log {log} is out of place")));
        }
        count.segments += 1;
        self.next = Some(base);
        self.segment = Some(Walk { base, header: false, left: bytes, pending: BytesMut::new() });
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> Result<(), Error> {
        let (Some(log), Some(walk)) = (self.log, &mut self.segment) else {
            return Err(invalid("data has no segment"));
        };
        if data.len() as u64 > walk.left {
            return Err(invalid(format_args!("segment {} of log {log} is longer than announced", walk.base)));
        }
        walk.left -= data.len() as u64;
        walk.pending.extend_from_slice(data);
        let count = self.logs.get_mut(&log).expect("inserted when the log began");
        count.bytes += data.len() as u64;
        if !walk.header {
            if walk.pending.len() < HEADER_BYTES {
                return Ok(());
            }
            let name = format!("{:016x}.rec", walk.base.0);
            check_header(&name, &walk.pending, log, walk.base).map_err(|e| invalid(e.message))?;
            walk.pending.advance(HEADER_BYTES);
            walk.header = true;
        }
        loop {
            let frame = match Frame::decode(&walk.pending) {
                Some(frame) if walk.pending.len() >= frame.total() => frame,
                // More of it comes; a length that lies is at most an entry's.
                Some(_) => return Ok(()),
                None if walk.pending.len() < super::frames::FRAME_HEADER_BYTES => return Ok(()),
                None => return Err(invalid(format_args!("segment {} of log {log} holds no frame", walk.base))),
            };
            let next = self.next.expect("set when the segment began");
            if !frame.verify(log, &walk.pending) {
                return Err(invalid(format_args!("the batch at offset {next} of log {log} fails its checksum")));
            }
            if frame.base_offset != next {
                return Err(invalid(format_args!("log {log} goes on at offset {}, not at {next}", frame.base_offset)));
            }
            count.batches += 1;
            self.next = Some(Offset(frame.last_offset.0.saturating_add(1)));
            walk.pending.advance(frame.total());
        }
    }

    fn end_segment(&mut self) -> Result<(), Error> {
        let Some(walk) = self.segment.take() else { return Ok(()) };
        if walk.left > 0 || !walk.header || !walk.pending.is_empty() {
            return Err(invalid(format_args!("segment {} is shorter than announced", walk.base)));
        }
        Ok(())
    }

    fn end_log(&mut self) -> Result<(), Error> {
        self.end_segment()?;
        let Some(log) = self.log else { return Ok(()) };
        let count = self.logs[&log];
        let end = self.next.unwrap_or(count.start);
        // Without a segment everything was forgotten.
        if end != count.end {
            return Err(invalid(format_args!("log {log} ends at {}, its segments at {end}", count.end)));
        }
        Ok(())
    }

    /// What was inside.
    ///
    /// # Errors
    /// `CORRUPT` if it breaks off, or its records are not those that its rows speak of.
    pub fn finish(self) -> Result<Inventory, Error> {
        let header = match self.header {
            Some(header) if self.ended => header,
            _ => return Err(invalid("it breaks off")),
        };
        let counts = self.census.finish().map_err(invalid)?;
        for partition in counts.topics.iter().flat_map(|topic| &topic.partitions) {
            let log = self.logs.get(&partition.log).copied().unwrap_or_default();
            if (log.start, log.end) != (partition.start, partition.end) {
                return Err(invalid(format_args!(
                    "log {} goes from {} to {}, the state says from {} to {}",
                    partition.log, log.start, log.end, partition.start, partition.end
                )));
            }
        }
        Ok(Inventory { header, rows: self.rows, logs: self.logs, counts })
    }
}
