//! The entry: what one commit can hold. All of it happens, or none of it.
//!
//! Format 1, written by [`Entry::encode`]: a version byte, the time as eight bytes (big endian, so that the leader can
//! stamp an encoded entry in place), then the other fields in the order of the struct up to `expire`. Format 2 is format 1
//! with `compact` behind it. Format 3 is format 1 with an optional `compact` behind it, then the list of `forgets`, then an
//! optional `txn`; its topic changes may be of the kinds that change a topic, and its settings may limit the size of a batch.
//! An entry is written in the oldest format that can hold it, so every entry that does none of this is one that older nodes
//! can read. A node that meets a newer version byte than it knows stops, and a newer format is not proposed before every
//! member has said that it reads it (ADR 0004).

use std::fmt;

use bytes::Bytes;

use crate::{
    bytes_debug::Pretty,
    codec::{DecodeError, Reader, Writer},
    ids::{LeaseId, LogId, Offset, Revision, TimeMs},
    limits::{
        ENTRY_BYTES_MAX, ENTRY_PARTS_MAX, KEY_BYTES_MAX, RECORD_BATCH_BYTES_MAX, TOPIC_NAME_BYTES_MAX, TXN_DEPTH_MAX,
        VALUE_BYTES_MAX,
    },
    txn::Txn,
};

/// The oldest format, in which all entries are written that it can hold.
pub const ENTRY_FORMAT: u8 = 1;
/// Format 1 and a compaction.
const ENTRY_FORMAT_COMPACT: u8 = 2;
/// The newest format that this code reads and writes.
pub const ENTRY_FORMAT_MAX: u8 = 3;
/// What the first release of all reads: a cluster may write it without asking its members.
pub const ENTRY_FORMAT_RELEASED: u8 = 3;

/// Identifies a request across retries, so that its result is given again instead of being produced again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// Drawn at random by the client when it starts.
    pub client: u64,
    /// Grows by one per request.
    pub number: u64,
    /// Every result with a smaller number has reached the client and may be forgotten.
    pub acknowledged_below: u64,
}

/// A condition that must hold when the entry is applied; otherwise the whole entry is refused.
#[derive(Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key was last changed at this revision; revision 0 means it does not exist.
    ModRevision { key: Bytes, revision: Revision },
    /// The key was created at this revision; revision 0 means it does not exist.
    CreateRevision { key: Bytes, revision: Revision },
    /// The key has been written this often since its creation; 0 means it does not exist.
    Version { key: Bytes, version: u64 },
    /// The key exists and has this value.
    Value { key: Bytes, value: Bytes },
    /// The lease is alive.
    LeaseAlive { lease: LeaseId },
    /// The group's cursor on the partition is at this offset; `None` means it was never set.
    Cursor { group: String, log: LogId, expected: Option<Offset> },
    /// The partition ends at this offset (event sourcing: append with expected version).
    LogEnd { log: LogId, expected: Offset },
}

/// A write to the key space, which keeps history.
#[derive(Clone, PartialEq, Eq)]
pub struct Put {
    pub key: Bytes,
    /// `None` deletes.
    pub value: Option<Bytes>,
    /// The key is deleted when the lease ends.
    pub lease: Option<LeaseId>,
}

/// A write to a function's state, which keeps no history.
#[derive(Clone, PartialEq, Eq)]
pub struct StatePut {
    pub space: String,
    pub key: Bytes,
    /// `None` deletes.
    pub value: Option<Bytes>,
}

/// The place of an append in its producer's stream. Seen before: acknowledged, not appended again. A gap: refused for
/// this append alone. A producer that the partition does not know may start anywhere; what lies below its start is a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// `device:<name>` for devices, `kafka:<producer id>` for Kafka producers.
    pub producer: String,
    /// A newer epoch may start at any number; an older one is refused.
    pub epoch: i32,
    /// Number of the batch's first record; the next batch starts at `number + records`.
    pub number: i64,
}

/// A record batch for one partition: Kafka's record batch v2, opaque but for its header.
#[derive(Clone, PartialEq, Eq)]
pub struct Append {
    pub log: LogId,
    /// Number of records, validated by the edge.
    pub records: u32,
    pub max_timestamp_ms: i64,
    pub sequence: Option<Sequence>,
    pub batch: Bytes,
}

/// Moves a group's cursor: `next` is the offset of the first record not yet consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub group: String,
    pub log: LogId,
    pub next: Offset,
    pub metadata: String,
}

/// Takes a group's cursor off a partition, as if it had never been set. Where there is none, nothing happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forget {
    pub group: String,
    pub log: LogId,
}

/// A timer: when due, the leader proposes its end, and the key is put with the value.
#[derive(Clone, PartialEq, Eq)]
pub enum Timer {
    Set { id: String, due: TimeMs, key: Bytes, value: Bytes },
    Cancel { id: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// `ttl_ms` counts from the entry's time.
    Grant {
        lease: LeaseId,
        ttl_ms: u64,
    },
    KeepAlive {
        lease: LeaseId,
    },
    Revoke {
        lease: LeaseId,
    },
}

/// How long a topic keeps records; `None` keeps them for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicSettings {
    pub retention_bytes: Option<u64>,
    pub retention_ms: Option<u64>,
    /// Where the body is JSON: the fields that hold the producer's name and its sequence number
    /// (`("machine", "seq")`), so that devices without an idempotent protocol are deduplicated.
    pub sequence_fields: Option<(String, String)>,
    /// Largest record batch in bytes that an edge takes from a producer; `None`: as large as the edge allows.
    pub batch_bytes_max: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicChange {
    /// `id` is the topic's UUID, drawn by the proposer.
    Create {
        name: String,
        id: [u8; 16],
        partitions: u32,
        settings: TopicSettings,
    },
    Delete {
        name: String,
    },
    /// Gives a topic other settings. Refused where they are not what the proposer saw, so that two changes at once cannot
    /// undo each other.
    Configure {
        name: String,
        from: TopicSettings,
        to: TopicSettings,
    },
    /// Gives a topic more partitions, `partitions` in all. Those that are there stay as they are.
    Extend {
        name: String,
        partitions: u32,
    },
    /// Retention: forget records below the offset.
    Trim {
        log: LogId,
        before: Offset,
    },
}

/// One commit.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Entry {
    pub request: Option<RequestId>,
    /// The cluster's time, by the leader's count, when it proposed. State never goes back: an earlier time counts as the latest seen.
    pub time: TimeMs,
    pub guards: Vec<Guard>,
    pub topics: Vec<TopicChange>,
    pub leases: Vec<LeaseChange>,
    pub puts: Vec<Put>,
    pub state: Vec<StatePut>,
    pub appends: Vec<Append>,
    pub cursors: Vec<Cursor>,
    pub timers: Vec<Timer>,
    /// Ends what is due at `time`: leases expire, timers fire. Only the leader sets it.
    pub expire: bool,
    /// Forgets the history of keys below this revision: what a read at it or later can see stays, reads and watches of what
    /// was before are refused from here on.
    pub compact: Option<Revision>,
    /// Compares keys and does one thing or another. It changes keys as `puts` do, so an entry has either, and neither
    /// leases nor an expiry beside it.
    pub txn: Option<Txn>,
    /// Cursors that go, after those that move.
    pub forgets: Vec<Forget>,
}

/// A range of keys: `[from, to)`; `to: None` is the single key `from`; an empty `to` means to the end.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyRange {
    pub from: Bytes,
    pub to: Option<Bytes>,
}

impl KeyRange {
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { from: key.into(), to: None }
    }

    /// Every key that starts with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let from: Bytes = prefix.into();
        let mut to = from.to_vec();
        while let Some(last) = to.pop() {
            if last < 0xff {
                to.push(last + 1);
                break;
            }
        }
        Self { from, to: Some(to.into()) }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.to {
            None => key == self.from,
            Some(to) => key >= &self.from[..] && (to.is_empty() || key < &to[..]),
        }
    }
}

impl Entry {
    /// Number of parts, to be held against [`ENTRY_PARTS_MAX`].
    pub fn parts(&self) -> usize {
        self.guards.len()
            + self.topics.len()
            + self.leases.len()
            + self.puts.len()
            + self.state.len()
            + self.appends.len()
            + self.cursors.len()
            + self.timers.len()
            + self.txn.as_ref().map_or(0, Txn::parts)
            + self.forgets.len()
    }

    /// The oldest format that can hold the entry.
    pub fn format(&self) -> u8 {
        let is_newer = |change: &TopicChange| match change {
            TopicChange::Create { settings, .. } => settings.batch_bytes_max.is_some(),
            TopicChange::Configure { .. } | TopicChange::Extend { .. } => true,
            TopicChange::Delete { .. } | TopicChange::Trim { .. } => false,
        };
        if self.txn.is_some() || !self.forgets.is_empty() || self.topics.iter().any(is_newer) {
            ENTRY_FORMAT_MAX
        } else if self.compact.is_some() {
            ENTRY_FORMAT_COMPACT
        } else {
            ENTRY_FORMAT
        }
    }

    /// An upper bound of the encoded size in bytes, without encoding, so that an edge can pack up to
    /// [`ENTRY_BYTES_MAX`]. A number takes at most ten bytes, and no part has more than four beside its texts.
    pub fn size_hint(&self) -> usize {
        const PART: usize = 48;
        let guards = self.guards.iter().map(|guard| match guard {
            Guard::ModRevision { key, .. } | Guard::CreateRevision { key, .. } | Guard::Version { key, .. } => {
                key.len()
            }
            Guard::Value { key, value } => key.len() + value.len(),
            Guard::LeaseAlive { .. } | Guard::LogEnd { .. } => 0,
            Guard::Cursor { group, .. } => group.len(),
        });
        let settings = |settings: &TopicSettings| {
            let fields = settings.sequence_fields.as_ref();
            64 + fields.map_or(0, |(producer, number)| producer.len() + number.len())
        };
        let topics = self.topics.iter().map(|change| match change {
            TopicChange::Create { name, settings: created, .. } => name.len() + settings(created),
            TopicChange::Configure { name, from, to } => name.len() + settings(from) + settings(to),
            TopicChange::Delete { name } | TopicChange::Extend { name, .. } => name.len(),
            TopicChange::Trim { .. } => 0,
        });
        let length = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        let puts = self.puts.iter().map(|put| put.key.len() + length(&put.value));
        let state = self.state.iter().map(|put| put.space.len() + put.key.len() + length(&put.value));
        let appends = self.appends.iter().map(|append| {
            append.batch.len() + append.sequence.as_ref().map_or(0, |sequence| 16 + sequence.producer.len())
        });
        let cursors = self.cursors.iter().map(|cursor| cursor.group.len() + cursor.metadata.len());
        let timers = self.timers.iter().map(|timer| match timer {
            Timer::Set { id, key, value, .. } => id.len() + key.len() + value.len(),
            Timer::Cancel { id } => id.len(),
        });
        let forgets = self.forgets.iter().map(|forget| forget.group.len());
        let rest = cursors.chain(timers).chain(forgets);
        let texts: usize = guards.chain(topics).chain(puts).chain(state).chain(appends).chain(rest).sum();
        128 + PART * self.parts() + texts + self.txn.as_ref().map_or(0, Txn::size_hint)
    }

    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(self.size_hint());
        let format = self.format();
        w.u8(format);
        w.raw(&self.time.0.to_be_bytes());
        w.option(self.request.as_ref(), |w, r| {
            w.varint(r.client);
            w.varint(r.number);
            w.varint(r.acknowledged_below);
        });
        w.list(&self.guards, Guard::encode);
        w.list(&self.topics, TopicChange::encode);
        w.list(&self.leases, LeaseChange::encode);
        w.list(&self.puts, |w, p| {
            w.bytes(&p.key);
            w.option(p.value.as_ref(), |w, v| w.bytes(v));
            w.option(p.lease.as_ref(), |w, l| w.zigzag(l.0));
        });
        w.list(&self.state, |w, p| {
            w.bytes(p.space.as_bytes());
            w.bytes(&p.key);
            w.option(p.value.as_ref(), |w, v| w.bytes(v));
        });
        w.list(&self.appends, |w, a| {
            w.varint(a.log.0.into());
            w.varint(a.records.into());
            w.zigzag(a.max_timestamp_ms);
            w.option(a.sequence.as_ref(), |w, s| {
                w.bytes(s.producer.as_bytes());
                w.zigzag(s.epoch.into());
                w.zigzag(s.number);
            });
            w.bytes(&a.batch);
        });
        w.list(&self.cursors, |w, c| {
            w.bytes(c.group.as_bytes());
            w.varint(c.log.0.into());
            w.zigzag(c.next.0);
            w.bytes(c.metadata.as_bytes());
        });
        w.list(&self.timers, Timer::encode);
        w.u8(self.expire.into());
        match format {
            ENTRY_FORMAT => {}
            ENTRY_FORMAT_COMPACT => w.varint(self.compact.expect("the format is for entries that compact").0),
            _ => {
                w.option(self.compact.as_ref(), |w, revision| w.varint(revision.0));
                w.list(&self.forgets, |w, forget| {
                    w.bytes(forget.group.as_bytes());
                    w.varint(forget.log.0.into());
                });
                w.option(self.txn.as_ref(), |w, txn| txn.encode(w));
            }
        }
        w.finish()
    }

    /// The format that an encoded entry says it has, without looking further.
    pub fn format_of(encoded: &[u8]) -> Option<u8> {
        encoded.first().copied()
    }

    /// Sets the time of an encoded entry, as the leader does when it proposes what another node has encoded.
    ///
    /// # Errors
    /// When `encoded` is too short to be an entry.
    pub fn stamp(encoded: &[u8], time: TimeMs) -> Result<Bytes, DecodeError> {
        if encoded.len() < 9 {
            return Err(DecodeError::Short("entry"));
        }
        let mut stamped = encoded.to_vec();
        stamped[1..9].copy_from_slice(&time.0.to_be_bytes());
        Ok(stamped.into())
    }

    /// # Errors
    /// Any way in which `bytes` are not an entry of a known format. Counts and lengths are checked before allocating.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(DecodeError::TooLarge {
                what: "entry",
                got: bytes.len() as u64,
                limit: ENTRY_BYTES_MAX as u64,
            });
        }
        let mut r = Reader::new(bytes);
        let format = r.u8("entry format")?;
        if !(ENTRY_FORMAT..=ENTRY_FORMAT_MAX).contains(&format) {
            return Err(DecodeError::Version { got: format, known: ENTRY_FORMAT_MAX });
        }
        let time = r.take(8, "time")?[..].try_into().expect("eight bytes were taken");
        let mut entry = Self {
            time: TimeMs(u64::from_be_bytes(time)),
            request: r.option("request", |r| {
                Ok(RequestId {
                    client: r.varint("client")?,
                    number: r.varint("request number")?,
                    acknowledged_below: r.varint("acknowledged below")?,
                })
            })?,
            guards: r.list("guards", ENTRY_PARTS_MAX, Guard::decode)?,
            topics: r.list("topics", ENTRY_PARTS_MAX, TopicChange::decode)?,
            leases: r.list("leases", ENTRY_PARTS_MAX, LeaseChange::decode)?,
            puts: r.list("puts", ENTRY_PARTS_MAX, |r| {
                Ok(Put {
                    key: r.bytes("key", KEY_BYTES_MAX)?,
                    value: r.option("value", |r| r.bytes("value", VALUE_BYTES_MAX))?,
                    lease: r.option("lease", |r| r.zigzag("lease").map(LeaseId))?,
                })
            })?,
            state: r.list("state", ENTRY_PARTS_MAX, |r| {
                Ok(StatePut {
                    space: r.string("state space", KEY_BYTES_MAX)?,
                    key: r.bytes("state key", KEY_BYTES_MAX)?,
                    value: r.option("state value", |r| r.bytes("state value", VALUE_BYTES_MAX))?,
                })
            })?,
            appends: r.list("appends", ENTRY_PARTS_MAX, |r| {
                Ok(Append {
                    log: LogId(r.varint_u32("log")?),
                    records: r.varint_u32("records")?,
                    max_timestamp_ms: r.zigzag("max timestamp")?,
                    sequence: r.option("sequence", |r| {
                        Ok(Sequence {
                            producer: r.string("producer", KEY_BYTES_MAX)?,
                            epoch: r.zigzag("epoch")? as i32,
                            number: r.zigzag("sequence number")?,
                        })
                    })?,
                    batch: r.bytes("record batch", RECORD_BATCH_BYTES_MAX)?,
                })
            })?,
            cursors: r.list("cursors", ENTRY_PARTS_MAX, |r| {
                Ok(Cursor {
                    group: r.string("group", KEY_BYTES_MAX)?,
                    log: LogId(r.varint_u32("log")?),
                    next: Offset(r.zigzag("next offset")?),
                    metadata: r.string("cursor metadata", KEY_BYTES_MAX)?,
                })
            })?,
            timers: r.list("timers", ENTRY_PARTS_MAX, Timer::decode)?,
            expire: match r.u8("expire")? {
                0 => false,
                1 => true,
                tag => {
                    return Err(DecodeError::Tag { what: "expire", tag: tag.into() });
                }
            },
            compact: None,
            forgets: Vec::new(),
            txn: None,
        };
        match format {
            ENTRY_FORMAT => {}
            ENTRY_FORMAT_COMPACT => entry.compact = Some(Revision(r.varint("compacted revision")?)),
            _ => {
                entry.compact = r.option("compaction", |r| r.varint("compacted revision").map(Revision))?;
                entry.forgets = r.list("forgets", ENTRY_PARTS_MAX, |r| {
                    Ok(Forget { group: r.string("group", KEY_BYTES_MAX)?, log: LogId(r.varint_u32("log")?) })
                })?;
                let mut parts = ENTRY_PARTS_MAX;
                entry.txn = r.option("transaction", |r| Txn::decode(r, &mut parts, TXN_DEPTH_MAX))?;
            }
        }
        r.end()?;
        // A node that knows older formats only would have refused it, and all must do the same.
        if entry.format() > format {
            return Err(DecodeError::Version { got: entry.format(), known: format });
        }
        Ok(entry)
    }
}

impl Guard {
    fn encode(w: &mut Writer, guard: &Self) {
        match guard {
            Self::ModRevision { key, revision } => {
                w.u8(0);
                w.bytes(key);
                w.varint(revision.0);
            }
            Self::CreateRevision { key, revision } => {
                w.u8(1);
                w.bytes(key);
                w.varint(revision.0);
            }
            Self::Version { key, version } => {
                w.u8(2);
                w.bytes(key);
                w.varint(*version);
            }
            Self::Value { key, value } => {
                w.u8(3);
                w.bytes(key);
                w.bytes(value);
            }
            Self::LeaseAlive { lease } => {
                w.u8(4);
                w.zigzag(lease.0);
            }
            Self::Cursor { group, log, expected } => {
                w.u8(5);
                w.bytes(group.as_bytes());
                w.varint(log.0.into());
                w.option(expected.as_ref(), |w, o| w.zigzag(o.0));
            }
            Self::LogEnd { log, expected } => {
                w.u8(6);
                w.varint(log.0.into());
                w.zigzag(expected.0);
            }
        }
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match r.u8("guard")? {
            0 => Self::ModRevision {
                key: r.bytes("guard key", KEY_BYTES_MAX)?,
                revision: Revision(r.varint("revision")?),
            },
            1 => Self::CreateRevision {
                key: r.bytes("guard key", KEY_BYTES_MAX)?,
                revision: Revision(r.varint("revision")?),
            },
            2 => Self::Version { key: r.bytes("guard key", KEY_BYTES_MAX)?, version: r.varint("version")? },
            3 => Self::Value {
                key: r.bytes("guard key", KEY_BYTES_MAX)?,
                value: r.bytes("guard value", VALUE_BYTES_MAX)?,
            },
            4 => Self::LeaseAlive { lease: LeaseId(r.zigzag("lease")?) },
            5 => Self::Cursor {
                group: r.string("group", KEY_BYTES_MAX)?,
                log: LogId(r.varint_u32("log")?),
                expected: r.option("expected", |r| r.zigzag("offset").map(Offset))?,
            },
            6 => Self::LogEnd { log: LogId(r.varint_u32("log")?), expected: Offset(r.zigzag("offset")?) },
            tag => {
                return Err(DecodeError::Tag { what: "guard", tag: tag.into() });
            }
        })
    }
}

impl TopicChange {
    fn encode(w: &mut Writer, change: &Self) {
        match change {
            Self::Create { name, id, partitions, settings } => {
                w.u8(if settings.batch_bytes_max.is_none() { 0 } else { 5 });
                w.bytes(name.as_bytes());
                w.raw(id);
                w.varint((*partitions).into());
                settings.encode(w);
                if let Some(bytes) = settings.batch_bytes_max {
                    w.varint(bytes.into());
                }
            }
            Self::Configure { name, from, to } => {
                w.u8(3);
                w.bytes(name.as_bytes());
                for settings in [from, to] {
                    settings.encode(w);
                    w.option(settings.batch_bytes_max.as_ref(), |w, bytes| w.varint((*bytes).into()));
                }
            }
            Self::Extend { name, partitions } => {
                w.u8(4);
                w.bytes(name.as_bytes());
                w.varint((*partitions).into());
            }
            Self::Delete { name } => {
                w.u8(1);
                w.bytes(name.as_bytes());
            }
            Self::Trim { log, before } => {
                w.u8(2);
                w.varint(log.0.into());
                w.zigzag(before.0);
            }
        }
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let all_settings = |r: &mut Reader| {
            let mut settings = TopicSettings::decode(r)?;
            settings.batch_bytes_max = r.option("batch size", |r| r.varint_u32("batch size"))?;
            Ok(settings)
        };
        Ok(match r.u8("topic change")? {
            tag @ (0 | 5) => Self::Create {
                name: r.string("topic", TOPIC_NAME_BYTES_MAX)?,
                id: r.take(16, "topic id")?[..].try_into().expect("sixteen bytes were taken"),
                partitions: r.varint_u32("partitions")?,
                settings: match tag {
                    0 => TopicSettings::decode(r)?,
                    _ => {
                        let settings = TopicSettings::decode(r)?;
                        TopicSettings { batch_bytes_max: Some(r.varint_u32("batch size")?), ..settings }
                    }
                },
            },
            3 => Self::Configure {
                name: r.string("topic", TOPIC_NAME_BYTES_MAX)?,
                from: all_settings(r)?,
                to: all_settings(r)?,
            },
            4 => {
                Self::Extend { name: r.string("topic", TOPIC_NAME_BYTES_MAX)?, partitions: r.varint_u32("partitions")? }
            }
            1 => Self::Delete { name: r.string("topic", TOPIC_NAME_BYTES_MAX)? },
            2 => Self::Trim { log: LogId(r.varint_u32("log")?), before: Offset(r.zigzag("offset")?) },
            tag => {
                return Err(DecodeError::Tag { what: "topic change", tag: tag.into() });
            }
        })
    }
}

impl TopicSettings {
    /// Writes the settings but for `batch_bytes_max`, which came later: whoever writes it puts it where its format has room.
    pub fn encode(&self, w: &mut Writer) {
        w.option(self.retention_bytes.as_ref(), |w, v| w.varint(*v));
        w.option(self.retention_ms.as_ref(), |w, v| w.varint(*v));
        w.option(self.sequence_fields.as_ref(), |w, (producer, number)| {
            w.bytes(producer.as_bytes());
            w.bytes(number.as_bytes());
        });
    }

    /// # Errors
    /// Any way in which the bytes are not settings.
    pub fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            retention_bytes: r.option("retention bytes", |r| r.varint("retention bytes"))?,
            retention_ms: r.option("retention time", |r| r.varint("retention time"))?,
            sequence_fields: r.option("sequence fields", |r| {
                Ok((r.string("producer field", KEY_BYTES_MAX)?, r.string("number field", KEY_BYTES_MAX)?))
            })?,
            batch_bytes_max: None,
        })
    }
}

impl LeaseChange {
    fn encode(w: &mut Writer, change: &Self) {
        match change {
            Self::Grant { lease, ttl_ms } => {
                w.u8(0);
                w.zigzag(lease.0);
                w.varint(*ttl_ms);
            }
            Self::KeepAlive { lease } => {
                w.u8(1);
                w.zigzag(lease.0);
            }
            Self::Revoke { lease } => {
                w.u8(2);
                w.zigzag(lease.0);
            }
        }
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match r.u8("lease change")? {
            0 => Self::Grant { lease: LeaseId(r.zigzag("lease")?), ttl_ms: r.varint("ttl")? },
            1 => Self::KeepAlive { lease: LeaseId(r.zigzag("lease")?) },
            2 => Self::Revoke { lease: LeaseId(r.zigzag("lease")?) },
            tag => {
                return Err(DecodeError::Tag { what: "lease change", tag: tag.into() });
            }
        })
    }
}

impl Timer {
    fn encode(w: &mut Writer, timer: &Self) {
        match timer {
            Self::Set { id, due, key, value } => {
                w.u8(0);
                w.bytes(id.as_bytes());
                w.varint(due.0);
                w.bytes(key);
                w.bytes(value);
            }
            Self::Cancel { id } => {
                w.u8(1);
                w.bytes(id.as_bytes());
            }
        }
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match r.u8("timer")? {
            0 => Self::Set {
                id: r.string("timer id", KEY_BYTES_MAX)?,
                due: TimeMs(r.varint("due")?),
                key: r.bytes("timer key", KEY_BYTES_MAX)?,
                value: r.bytes("timer value", VALUE_BYTES_MAX)?,
            },
            1 => Self::Cancel { id: r.string("timer id", KEY_BYTES_MAX)? },
            tag => {
                return Err(DecodeError::Tag { what: "timer", tag: tag.into() });
            }
        })
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            None => write!(f, "{:?}", Pretty(&self.from)),
            Some(to) => write!(f, "[{:?}, {:?})", Pretty(&self.from), Pretty(to)),
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ModRevision { key, revision } => {
                write!(f, "mod_revision({:?}) == {revision}", Pretty(key))
            }
            Self::CreateRevision { key, revision } => {
                write!(f, "create_revision({:?}) == {revision}", Pretty(key))
            }
            Self::Version { key, version } => write!(f, "version({:?}) == {version}", Pretty(key)),
            Self::Value { key, value } => {
                write!(f, "value({:?}) == {:?}", Pretty(key), Pretty(value))
            }
            Self::LeaseAlive { lease } => write!(f, "lease {lease} is alive"),
            Self::Cursor { group, log, expected: Some(at) } => write!(f, "cursor({group}, log {log}) == {at}"),
            Self::Cursor { group, log, expected: None } => write!(f, "cursor({group}, log {log}) is unset"),
            Self::LogEnd { log, expected } => write!(f, "end(log {log}) == {expected}"),
        }
    }
}

impl fmt::Debug for Put {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "put {:?} = {:?}", Pretty(&self.key), Pretty(value))?,
            None => write!(f, "delete {:?}", Pretty(&self.key))?,
        }
        match self.lease {
            Some(lease) => write!(f, " lease {lease}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for StatePut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "state {}/{:?} = {:?}", self.space, Pretty(&self.key), Pretty(value)),
            None => write!(f, "state {}/{:?} deleted", self.space, Pretty(&self.key)),
        }
    }
}

impl fmt::Debug for Append {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "append log {} {} records {} bytes", self.log, self.records, self.batch.len())?;
        match &self.sequence {
            Some(s) => write!(f, " from {} epoch {} number {}", s.producer, s.epoch, s.number),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { id, due, key, value } => {
                write!(f, "timer {id} at {due}: put {:?} = {:?}", Pretty(key), Pretty(value))
            }
            Self::Cancel { id } => write!(f, "timer {id} cancelled"),
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        if let Some(r) = &self.request {
            list.entry(&format_args!("request {:x}/{}", r.client, r.number));
        }
        list.entries(&self.guards)
            .entries(&self.topics)
            .entries(&self.leases)
            .entries(&self.puts)
            .entries(&self.state)
            .entries(&self.appends)
            .entries(&self.cursors)
            .entries(&self.timers);
        if self.expire {
            list.entry(&format_args!("expire at {}", self.time));
        }
        if let Some(revision) = self.compact {
            list.entry(&format_args!("compact {revision}"));
        }
        list.entries(&self.forgets);
        if let Some(txn) = &self.txn {
            list.entry(txn);
        }
        list.finish()
    }
}
