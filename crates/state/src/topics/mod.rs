//! Topics and their partitions.
//!
//! A partition is a log of record batches that are opaque here but for their header. Apply gives a batch its base offset
//! and writes it, with the Raft term as leader epoch, into the batch's first sixteen bytes; both fields lie outside the
//! batch's checksum (source: Kafka, record batch format v2), so nothing is computed again.
//!
//! The machine does not know where batches lie; that is the store's. For retention it keeps *marks*: from time to time
//! the offset, the bytes before it and the time of the last append before it. So what retention forgets is planned
//! ([`Topics::retention`]) without touching a disk, in steps of a mark.

pub mod producers;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use buttress_core::{
    Append, AppendOutcome, DecodeError, Index, LogId, Mutant, Offset, Reader, Store, StoreError, Table, Term, TimeMs,
    TopicChange, Writer,
    entry::TopicSettings,
    ledger::{PartitionView, TopicView},
    limits::{PARTITIONS_PER_TOPIC_MAX, TOPIC_NAME_BYTES_MAX},
    mutant,
    store::StoredBatch,
};
use bytes::{Bytes, BytesMut};

use self::producers::Producer;
use crate::changes::{Changes, Kind, be, rest_text};

/// Bytes between two marks: the grain of retention by size.
pub const MARK_BYTES: u64 = 1024 * 1024;
/// Bounds of the time between two marks, which is a tenth of the topic's retention time.
const MARK_MS: (u64, u64) = (1_000, 600_000);

/// Bytes of a record batch's header; a batch cannot be shorter.
pub const BATCH_HEADER_BYTES: usize = 61;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Topic {
    pub(crate) id: [u8; 16],
    pub(crate) settings: TopicSettings,
    pub(crate) logs: Vec<LogId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) offset: Offset,
    /// Bytes ever appended before the offset.
    pub(crate) bytes: u64,
    /// When the last batch before the offset was committed.
    pub(crate) time: TimeMs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) topic: Arc<str>,
    pub(crate) start: Offset,
    pub(crate) end: Offset,
    /// Bytes ever appended.
    pub(crate) appended: u64,
    /// Of these, bytes before the mark at or below the start.
    pub(crate) trimmed: u64,
    pub(crate) last_append: TimeMs,
    /// When the last mark was set, or the first batch came.
    pub(crate) marked: TimeMs,
    pub(crate) marks: VecDeque<Mark>,
    pub(crate) producers: BTreeMap<Box<str>, Producer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    pub(crate) topics: BTreeMap<Arc<str>, Topic>,
    pub(crate) partitions: BTreeMap<LogId, Partition>,
    /// The next log's number; numbers are never used again.
    pub(crate) next_log: u32,
}

impl Default for Topics {
    fn default() -> Self {
        Self { topics: BTreeMap::new(), partitions: BTreeMap::new(), next_log: 1 }
    }
}

/// Where and when an append happens.
#[derive(Clone, Copy)]
pub(crate) struct At {
    pub(crate) index: Index,
    pub(crate) term: Term,
    pub(crate) time: TimeMs,
}

/// Whether a topic may have this name, by Kafka's rule.
pub fn valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= TOPIC_NAME_BYTES_MAX
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Checks of a batch's header what offsets depend on: its length, and that its records are numbered without gaps.
/// Everything else, the checksum too, is the edge's to check before it proposes.
pub(crate) fn check_batch(append: &Append) -> Result<(), String> {
    let header = &append.batch;
    if header.len() < BATCH_HEADER_BYTES {
        return Err(format!("the record batch has {} bytes, less than its header", header.len()));
    }
    let i32_at = |at: usize| i32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
    if i64::from(i32_at(8)) != header.len() as i64 - 12 {
        return Err(format!("the record batch says it is {} + 12 bytes long, but has {}", i32_at(8), header.len()));
    }
    if append.records == 0 || i64::from(i32_at(23)) != i64::from(append.records) - 1 {
        return Err(format!(
            "the record batch's last offset delta {} does not fit {} records",
            i32_at(23),
            append.records
        ));
    }
    Ok(())
}

impl Partition {
    pub(crate) fn new(topic: Arc<str>) -> Self {
        Self {
            topic,
            start: Offset(0),
            end: Offset(0),
            appended: 0,
            trimmed: 0,
            last_append: TimeMs(0),
            marked: TimeMs(0),
            marks: VecDeque::new(),
            producers: BTreeMap::new(),
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(48);
        w.zigzag(self.start.0);
        w.zigzag(self.end.0);
        w.varint(self.appended);
        w.varint(self.trimmed);
        w.varint(self.last_append.0);
        w.varint(self.marked.0);
        w.finish()
    }

    pub(crate) fn decode(&mut self, mut r: Reader) -> Result<(), DecodeError> {
        self.start = Offset(r.zigzag("start")?);
        self.end = Offset(r.zigzag("end")?);
        self.appended = r.varint("appended bytes")?;
        self.trimmed = r.varint("trimmed bytes")?;
        self.last_append = TimeMs(r.varint("last append")?);
        self.marked = TimeMs(r.varint("marked")?);
        // A row may have rotted; what follows relies on this.
        if self.start < Offset(0) || self.start > self.end {
            let limit = self.end.0.max(0) as u64;
            return Err(DecodeError::TooLarge { what: "start", got: self.start.0 as u64, limit });
        }
        if self.trimmed > self.appended {
            return Err(DecodeError::TooLarge { what: "trimmed bytes", got: self.trimmed, limit: self.appended });
        }
        r.end()
    }

    fn mark_due(&self, time: TimeMs, settings: &TopicSettings) -> bool {
        if self.end == self.start || self.marks.back().is_some_and(|mark| mark.offset == self.end) {
            return false;
        }
        let before = self.marks.back().map_or(self.trimmed, |mark| mark.bytes);
        let interval = settings.retention_ms.map(|ms| (ms / 10).clamp(MARK_MS.0, MARK_MS.1));
        self.appended - before >= MARK_BYTES
            || interval.is_some_and(|interval| time.0.saturating_sub(self.marked.0) >= interval)
    }
}

impl Topic {
    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(64 + 4 * self.logs.len());
        w.raw(&self.id);
        self.settings.encode(&mut w);
        w.list(&self.logs, |w, log| w.varint(log.0.into()));
        // Rows that were written before there was this limit end here.
        if let Some(bytes) = self.settings.batch_bytes_max {
            w.varint(bytes.into());
        }
        w.finish()
    }

    pub(crate) fn decode(mut r: Reader) -> Result<Self, DecodeError> {
        let mut topic = Self {
            id: be(&mut r, "topic id")?,
            settings: TopicSettings::decode(&mut r)?,
            logs: r.list("logs", PARTITIONS_PER_TOPIC_MAX as usize, |r| r.varint_u32("log").map(LogId))?,
        };
        if r.remaining() > 0 {
            topic.settings.batch_bytes_max = Some(r.varint_u32("batch size")?);
        }
        r.end()?;
        Ok(topic)
    }
}

impl Topics {
    pub(crate) fn open<S: Store>(store: &S, next_log: u32) -> Result<Self, StoreError> {
        let mut topics = Self { next_log, ..Self::default() };
        Kind::Topic.load(store, |key, value| {
            let name: Arc<str> = rest_text(key, "topic")?.into();
            let topic = Topic::decode(value)?;
            for log in &topic.logs {
                topics.partitions.insert(*log, Partition::new(name.clone()));
            }
            topics.topics.insert(name, topic);
            Ok(())
        })?;
        Kind::Partition.load(store, |key, value| partition(&mut topics, key)?.1.decode(value))?;
        Kind::Mark.load(store, |key, mut value| {
            let (_, partition) = partition(&mut topics, key)?;
            partition.marks.push_back(Mark {
                offset: Offset(i64::from_be_bytes(be(key, "offset")?)),
                bytes: value.varint("bytes")?,
                time: TimeMs(value.varint("time")?),
            });
            value.end()
        })?;
        Kind::Producer.load(store, |key, mut value| {
            let (_, partition) = partition(&mut topics, key)?;
            let name = rest_text(key, "producer")?;
            let producer = Producer::decode(&mut value)?;
            if !mutant::active(Mutant::LoseProducers) {
                partition.producers.insert(name, producer);
            }
            value.end()
        })?;
        return Ok(topics);

        fn partition<'a>(topics: &'a mut Topics, key: &mut Reader) -> Result<(LogId, &'a mut Partition), DecodeError> {
            let log = LogId(u32::from_be_bytes(be(key, "log")?));
            match topics.partitions.get_mut(&log) {
                Some(partition) => Ok((log, partition)),
                None => Err(DecodeError::Tag { what: "partition", tag: log.0.into() }),
            }
        }
    }

    pub(crate) fn create(
        &mut self,
        name: &str,
        id: [u8; 16],
        partitions: u32,
        settings: TopicSettings,
        changes: &mut Changes,
    ) -> Vec<LogId> {
        let name: Arc<str> = name.into();
        let first = self.next_log;
        self.next_log += partitions;
        let logs: Vec<LogId> = (first..self.next_log).map(LogId).collect();
        for log in &logs {
            self.partitions.insert(*log, Partition::new(name.clone()));
        }
        let topic = Topic { id, settings, logs: logs.clone() };
        changes.put(Table::Meta, Kind::Topic.key(&[name.as_bytes()]), topic.encode());
        self.topics.insert(name, topic);
        logs
    }

    /// Gives a topic other settings. Marks that its old ones did not ask for come with the next appends.
    pub(crate) fn configure(&mut self, name: &str, settings: TopicSettings, changes: &mut Changes) {
        let topic = self.topics.get_mut(name).expect("the topic was checked to exist");
        topic.settings = settings;
        changes.put(Table::Meta, Kind::Topic.key(&[name.as_bytes()]), topic.encode());
    }

    /// Gives a topic partitions until it has as many as `partitions`; the new ones.
    pub(crate) fn extend(&mut self, name: &str, partitions: u32, changes: &mut Changes) -> Vec<LogId> {
        let (name, topic) = {
            let (name, _) = self.topics.get_key_value(name).expect("the topic was checked to exist");
            let name = name.clone();
            (name.clone(), self.topics.get_mut(&name).expect("it was just found"))
        };
        let more = partitions - topic.logs.len() as u32;
        let first = self.next_log;
        self.next_log += more;
        let logs: Vec<LogId> = (first..self.next_log).map(LogId).collect();
        topic.logs.extend(&logs);
        changes.put(Table::Meta, Kind::Topic.key(&[name.as_bytes()]), topic.encode());
        for log in &logs {
            self.partitions.insert(*log, Partition::new(name.clone()));
        }
        logs
    }

    pub(crate) fn delete(&mut self, name: &str, changes: &mut Changes) -> Vec<LogId> {
        let topic = self.topics.remove(name).expect("the topic was checked to exist");
        changes.delete(Table::Meta, Kind::Topic.key(&[name.as_bytes()]));
        for log in &topic.logs {
            let partition = self.partitions.remove(log).expect("a topic's partitions live as long as it");
            let id = log.0.to_be_bytes();
            changes.delete(Table::Meta, Kind::Partition.key(&[&id]));
            for mark in &partition.marks {
                changes.delete(Table::Meta, Kind::Mark.key(&[&id, &mark.offset.0.to_be_bytes()]));
            }
            for producer in partition.producers.keys() {
                changes.delete(Table::Meta, Kind::Producer.key(&[&id, producer.as_bytes()]));
            }
            changes.drop_log(*log);
        }
        topic.logs
    }

    /// Forgets records below `before`; whether anything was there to forget.
    pub(crate) fn trim(
        &mut self,
        log: LogId,
        before: Offset,
        touched: &mut BTreeSet<LogId>,
        changes: &mut Changes,
    ) -> bool {
        let partition = self.partitions.get_mut(&log).expect("the partition was checked to exist");
        if before <= partition.start {
            return false;
        }
        partition.start = before;
        while let Some(mark) = partition.marks.front()
            && mark.offset <= before
        {
            partition.trimmed = mark.bytes;
            changes.delete(Table::Meta, Kind::Mark.key(&[&log.0.to_be_bytes(), &mark.offset.0.to_be_bytes()]));
            partition.marks.pop_front();
        }
        if before == partition.end {
            partition.trimmed = partition.appended;
        }
        touched.insert(log);
        changes.trim(log, before);
        true
    }

    /// Appends a batch where its sequence allows it. The rows of touched partitions are written once per entry, by
    /// [`Self::write_touched`].
    pub(crate) fn append(
        &mut self,
        append: &Append,
        at: At,
        limits: &crate::Limits,
        touched: &mut BTreeSet<LogId>,
        changes: &mut Changes,
    ) -> AppendOutcome {
        let Some(partition) = self.partitions.get_mut(&append.log) else { return AppendOutcome::UnknownLog };
        let log = append.log.0.to_be_bytes();
        let base = partition.end;
        if let Some(sequence) = &append.sequence {
            let known = partition.producers.get_mut(sequence.producer.as_str());
            if let Some(outcome) = Producer::judge(known.as_deref(), sequence, append.records) {
                return outcome;
            }
            let producer = Producer::after(known.as_deref(), sequence, append.records, base);
            let key = Kind::Producer.key(&[&log, sequence.producer.as_bytes()]);
            changes.put(Table::Meta, key, producer.encode());
            match known {
                Some(known) => *known = producer,
                None => {
                    if partition.producers.len() >= limits.producers_per_partition {
                        partition.forget_producers(append.log, limits.producers_per_partition, changes);
                    }
                    partition.producers.insert(sequence.producer.as_str().into(), producer);
                }
            }
        }
        let settings = &self.topics[&*partition.topic].settings;
        if partition.mark_due(at.time, settings) {
            let mark = Mark { offset: base, bytes: partition.appended, time: partition.last_append };
            let mut w = Writer::with_capacity(16);
            w.varint(mark.bytes);
            w.varint(mark.time.0);
            changes.put(Table::Meta, Kind::Mark.key(&[&log, &base.0.to_be_bytes()]), w.finish());
            partition.marks.push_back(mark);
            partition.marked = at.time;
        } else if partition.end == partition.start {
            partition.marked = at.time;
        }
        let last_offset = Offset(base.0 + i64::from(append.records) - 1);
        changes.appends.push(StoredBatch {
            log: append.log,
            base_offset: base,
            last_offset,
            max_timestamp_ms: append.max_timestamp_ms,
            index: at.index,
            committed_at: at.time,
            bytes: patched(&append.batch, base, at.term),
        });
        partition.end = Offset(last_offset.0 + 1);
        partition.appended += append.batch.len() as u64;
        partition.last_append = at.time;
        touched.insert(append.log);
        AppendOutcome::Appended { base_offset: base }
    }

    pub(crate) fn write_touched(&self, touched: &BTreeSet<LogId>, changes: &mut Changes) {
        for log in touched {
            // A later part of the same entry may have deleted it.
            if let Some(partition) = self.partitions.get(log) {
                changes.put(Table::Meta, Kind::Partition.key(&[&log.0.to_be_bytes()]), partition.encode());
            }
        }
    }

    /// The trims that the topics' retention asks for at `now`; the leader proposes them.
    pub fn retention(&self, now: TimeMs) -> Vec<TopicChange> {
        let mut trims = Vec::new();
        for (log, partition) in &self.partitions {
            let settings = &self.topics[&*partition.topic].settings;
            let mut before = partition.start;
            if let Some(ms) = settings.retention_ms {
                let oldest = TimeMs(now.0.saturating_sub(ms));
                if partition.last_append < oldest {
                    before = partition.end;
                } else {
                    let old = partition.marks.partition_point(|mark| mark.time < oldest);
                    before = before.max(old.checked_sub(1).map_or(before, |at| partition.marks[at].offset));
                }
            }
            if let Some(bytes) = settings.retention_bytes {
                let dispensable = partition.marks.partition_point(|mark| partition.appended - mark.bytes >= bytes);
                before = before.max(dispensable.checked_sub(1).map_or(before, |at| partition.marks[at].offset));
            }
            if before > partition.start {
                trims.push(TopicChange::Trim { log: *log, before });
            }
        }
        trims
    }

    pub(crate) fn views(&self) -> Vec<TopicView> {
        self.topics.keys().filter_map(|name| self.view(name)).collect()
    }

    pub(crate) fn view(&self, name: &str) -> Option<TopicView> {
        let topic = self.topics.get(name)?;
        Some(TopicView {
            name: name.to_owned(),
            id: topic.id,
            settings: topic.settings.clone(),
            partitions: topic.logs.iter().filter_map(|log| self.partition_view(*log)).collect(),
        })
    }

    pub(crate) fn partition_view(&self, log: LogId) -> Option<PartitionView> {
        let partition = self.partitions.get(&log)?;
        Some(PartitionView {
            log,
            start: partition.start,
            end: partition.end,
            bytes: partition.appended - partition.trimmed,
        })
    }
}

impl Partition {
    /// Makes room for a producer: forgets the sixteenth of them, one at least, that has been silent longest. Many at
    /// once, so that finding them costs little per append.
    fn forget_producers(&mut self, log: LogId, limit: usize, changes: &mut Changes) {
        let count = (limit / 16).max(1).min(self.producers.len());
        let mut ages: Vec<Offset> = self.producers.values().map(Producer::last_base).collect();
        let (_, youngest, _) = ages.select_nth_unstable(count - 1);
        let youngest = *youngest;
        self.producers.retain(|name, producer| {
            let keep = producer.last_base() > youngest;
            if !keep {
                changes.delete(Table::Meta, Kind::Producer.key(&[&log.0.to_be_bytes(), name.as_bytes()]));
            }
            keep
        });
    }
}

/// The batch with its base offset and leader epoch.
fn patched(batch: &[u8], base: Offset, term: Term) -> Bytes {
    let mut bytes = BytesMut::from(batch);
    bytes[0..8].copy_from_slice(&base.0.to_be_bytes());
    bytes[12..16].copy_from_slice(&i32::try_from(term.0).unwrap_or(i32::MAX).to_be_bytes());
    bytes.freeze()
}
