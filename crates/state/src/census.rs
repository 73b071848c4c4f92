//! What is in a store, told from its rows as they pass by.
//!
//! A backup is verified on a machine that may have neither the memory nor the disk to open it. So the census takes one row
//! at a time, in the order in which a store gives them, and keeps what a person wants to know: topics with their
//! offsets, how many of everything else, and the values of a few keys that the caller names by prefix. It needs the
//! memory that the names of the keys need, as the machine's own index does, and nothing for values.

use std::collections::{BTreeMap, BTreeSet};

use buttress_core::{DecodeError, LogId, Offset, Reader, Revision, Table, TimeMs, entry::TopicSettings};
use bytes::Bytes;

use crate::{
    changes::{Kind, be, rest_text},
    keys::KeyRow,
    machine::{CLUSTER_SPACE, clock_of, state_key},
    topics::{Partition, Topic},
};

/// A topic with its partitions, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicCount {
    pub name: String,
    pub settings: TopicSettings,
    pub partitions: Vec<PartitionCount>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionCount {
    pub log: LogId,
    pub start: Offset,
    pub end: Offset,
}

/// What the rows held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The log's own clock: the largest time of an entry.
    pub time: TimeMs,
    pub revision: Revision,
    pub topics: Vec<TopicCount>,
    /// Keys that exist, and all changes of keys that history still has.
    pub keys: u64,
    pub key_changes: u64,
    pub state_rows: u64,
    pub producers: u64,
    pub cursors: u64,
    pub leases: u64,
    pub timers: u64,
    pub results: u64,
    /// The keys below the prefixes that were asked for, with their present values.
    pub wanted: BTreeMap<Bytes, Bytes>,
}

/// Takes rows and gives [`Counts`].
#[derive(Debug)]
pub struct Census {
    prefixes: &'static [&'static str],
    counts: Counts,
    keys: BTreeSet<Bytes>,
    topics: BTreeMap<String, Topic>,
    partitions: BTreeMap<LogId, (Offset, Offset)>,
    clock: bool,
}

impl Census {
    /// Keeps the values of keys that begin with one of `prefixes`, which should be few and small.
    pub fn new(prefixes: &'static [&'static str]) -> Self {
        Self {
            prefixes,
            counts: Counts::default(),
            keys: BTreeSet::new(),
            topics: BTreeMap::new(),
            partitions: BTreeMap::new(),
            clock: false,
        }
    }

    /// Takes the next row; rows of a table come in the order of their keys.
    ///
    /// # Errors
    /// A row that no machine wrote.
    pub fn row(&mut self, table: Table, key: &Bytes, value: Bytes) -> Result<(), DecodeError> {
        match table {
            Table::Meta => self.meta(key, value),
            Table::Keys => self.key(key, value),
            Table::State => {
                // What the cluster has agreed on is no function's.
                if !key.starts_with(&state_key(CLUSTER_SPACE, &[])) {
                    self.counts.state_rows += 1;
                }
                Ok(())
            }
        }
    }

    fn meta(&mut self, key: &Bytes, value: Bytes) -> Result<(), DecodeError> {
        let mut rest = Reader::new(key.clone());
        let kind = rest.u8("kind of row")?;
        let counts = &mut self.counts;
        let known = |known: Kind| known as u8 == kind;
        if known(Kind::Clock) {
            (counts.time, counts.revision) = clock_of(value)?;
            self.clock = true;
        } else if known(Kind::Topic) {
            let name = rest_text(&mut rest, "topic name")?;
            self.topics.insert(name.into(), Topic::decode(Reader::new(value))?);
        } else if known(Kind::Partition) {
            let log = LogId(u32::from_be_bytes(be(&mut rest, "log")?));
            let mut partition = Partition::new("".into());
            partition.decode(Reader::new(value))?;
            self.partitions.insert(log, (partition.start, partition.end));
        } else if known(Kind::Producer) {
            counts.producers += 1;
        } else if known(Kind::Cursor) {
            counts.cursors += 1;
        } else if known(Kind::Lease) {
            counts.leases += 1;
        } else if known(Kind::Timer) {
            counts.timers += 1;
        } else if known(Kind::Result) {
            counts.results += 1;
        } else if !known(Kind::Mark) {
            return Err(DecodeError::Tag { what: "kind of row", tag: kind.into() });
        }
        Ok(())
    }

    fn key(&mut self, key: &Bytes, value: Bytes) -> Result<(), DecodeError> {
        if key.len() != 12 {
            return Err(DecodeError::Short("revision of a key"));
        }
        let row = KeyRow::decode(value)?;
        self.counts.key_changes += 1;
        let wanted = self.prefixes.iter().any(|prefix| row.key.starts_with(prefix.as_bytes()));
        // Copied, so that a name does not keep the buffer with its value alive.
        let name = Bytes::copy_from_slice(&row.key);
        match row.value {
            Some(value) => {
                if wanted {
                    self.counts.wanted.insert(name.clone(), Bytes::copy_from_slice(&value));
                }
                self.keys.insert(name);
            }
            None => {
                self.counts.wanted.remove(&name);
                self.keys.remove(&name);
            }
        }
        Ok(())
    }

    /// # Errors
    /// Where the rows are not those of one machine: a topic's partition has no row.
    pub fn finish(mut self) -> Result<Counts, DecodeError> {
        for (name, topic) in self.topics {
            let partition = |log: &LogId| {
                let (start, end) = self.partitions.get(log).copied().unwrap_or_default();
                PartitionCount { log: *log, start, end }
            };
            let partitions = topic.logs.iter().map(partition).collect();
            self.counts.topics.push(TopicCount { name, settings: topic.settings, partitions });
        }
        // Only a machine that never applied anything has no clock.
        if !self.clock && (!self.counts.topics.is_empty() || self.counts.key_changes > 0) {
            return Err(DecodeError::Short("the row of the clock"));
        }
        self.counts.keys = self.keys.len() as u64;
        Ok(self.counts)
    }
}
