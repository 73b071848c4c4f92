//! What members say to each other, and how it looks on the wire.
//!
//! The problem: the engine's own messages are protobuf types, and parsing protobuf from the network with the crate it
//! pins is what its advisory warns of. So a message is a plain type of ours with a bounded codec of ours, and the
//! engine's types never leave this process.
//!
//! Format 1: a version byte, `from`, `to`, `term`, a tag byte, then the fields of that kind of message in the order of
//! [`Body`]. A reader refuses any other version, so a newer node must not speak a newer format before every member
//! understands it. Numbers are bounded by [`NUMBER_MAX`], counts by the bytes that are left, byte strings by named
//! limits, and the data of entries is copied out of the receive buffer: a slice of it would keep the whole buffer alive
//! for as long as the entry stays in the log.

use std::{fmt, sync::Arc};

use buttress_core::{DecodeError, Index, NodeId, Reader, Term, Writer};
use bytes::Bytes;

use crate::types::{Book, LogEntry, NUMBER_MAX, SnapshotMeta, flag, number};

/// The format that this code writes.
pub const MESSAGE_FORMAT: u8 = 1;
/// Entries in one message. With the frame's 4 bytes per entry as the least, 1 MiB of messages stays below this.
pub const MESSAGE_ENTRIES_MAX: usize = 256 * 1024;
/// A read's context: node, nonce, number.
pub const CONTEXT_BYTES_MAX: usize = 64;

/// One message from one member to another.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub from: NodeId,
    pub to: NodeId,
    /// The sender's term; zero for requests that any leader may answer.
    pub term: Term,
    pub body: Body,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    /// Entries that follow `prev`, and how far the log is committed.
    Append {
        prev_index: Index,
        prev_term: Term,
        commit: Index,
        entries: Vec<LogEntry>,
    },
    /// The log agrees up to `index`.
    Accepted {
        index: Index,
        commit: Index,
    },
    /// The log has no entry of that term at `index`; the last one that might agree is the hint.
    Rejected {
        index: Index,
        hint_index: Index,
        hint_term: Term,
        commit: Index,
    },
    Heartbeat {
        commit: Index,
        context: Bytes,
    },
    HeartbeatReply {
        commit: Index,
        context: Bytes,
    },
    /// Asks for a vote, or (`pre`) whether one would be given.
    Vote {
        pre: bool,
        last_index: Index,
        last_term: Term,
        commit: Index,
        commit_term: Term,
        transfer: bool,
    },
    VoteReply {
        pre: bool,
        granted: bool,
        commit: Index,
        commit_term: Term,
    },
    /// The receiver is too far behind for entries. The state itself travels beside this message, before it.
    Snapshot {
        meta: SnapshotMeta,
    },
    /// Leadership is handed over: campaign now.
    TimeoutNow,
    /// Asks the leader for an index that a linearizable read must wait for.
    ReadIndex {
        context: Bytes,
    },
    ReadIndexReply {
        index: Index,
        context: Bytes,
    },
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{} t{} {:?}", self.from, self.to, self.term, self.body)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Append { prev_index, prev_term, commit, entries } => {
                write!(f, "append after {prev_index}@{prev_term} commit {commit}")?;
                if !entries.is_empty() {
                    write!(f, " {entries:?}")?;
                }
                Ok(())
            }
            Self::Accepted { index, commit } => write!(f, "accepted {index} commit {commit}"),
            Self::Rejected { index, hint_index, hint_term, commit } => {
                write!(f, "rejected {index} hint {hint_index}@{hint_term} commit {commit}")
            }
            Self::Heartbeat { commit, context } => {
                write!(f, "heartbeat commit {commit}{}", if context.is_empty() { "" } else { " with read" })
            }
            Self::HeartbeatReply { commit, context } => {
                write!(f, "heartbeat reply commit {commit}{}", if context.is_empty() { "" } else { " with read" })
            }
            Self::Vote { pre, last_index, last_term, transfer, .. } => write!(
                f,
                "{}vote? last {last_index}@{last_term}{}",
                if *pre { "pre-" } else { "" },
                if *transfer { " transfer" } else { "" }
            ),
            Self::VoteReply { pre, granted, .. } => {
                write!(f, "{}vote {}", if *pre { "pre-" } else { "" }, if *granted { "granted" } else { "refused" })
            }
            Self::Snapshot { meta } => write!(f, "snapshot {meta:?}"),
            Self::TimeoutNow => write!(f, "campaign now"),
            Self::ReadIndex { .. } => write!(f, "read index?"),
            Self::ReadIndexReply { index, .. } => write!(f, "read index {index}"),
        }
    }
}

impl Message {
    /// Whether it may carry entries: such messages wait behind each other, all others must never wait behind them. One that
    /// only tells what is committed is among them: it follows the entries that were sent before, and would be refused, and
    /// all that is under way sent again, where it came before them.
    pub fn is_bulk(&self) -> bool {
        matches!(&self.body, Body::Append { .. })
    }

    /// The state that a snapshot message announces.
    pub fn snapshot(&self) -> Option<&SnapshotMeta> {
        match &self.body {
            Body::Snapshot { meta } => Some(meta),
            _ => None,
        }
    }

    /// Makes a snapshot message announce the state that was really sent, which may be newer than what was asked for.
    pub fn retarget_snapshot(&mut self, meta: SnapshotMeta) {
        match &mut self.body {
            Body::Snapshot { meta: old } => *old = meta,
            other => panic!("only a snapshot message can be retargeted, not {other:?}"),
        }
    }

    /// A close upper bound of the encoded size in bytes.
    pub fn size_hint(&self) -> usize {
        let entries = match &self.body {
            Body::Append { entries, .. } => entries.iter().map(|entry| entry.data.len() + 32).sum(),
            Body::Snapshot { meta } => meta.members.book.size_hint(),
            _ => 0,
        };
        192 + entries
    }

    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(self.size_hint());
        w.u8(MESSAGE_FORMAT);
        w.varint(self.from.0);
        w.varint(self.to.0);
        w.varint(self.term.0);
        match &self.body {
            Body::Append { prev_index, prev_term, commit, entries } => {
                w.u8(1);
                w.varint(prev_index.0);
                w.varint(prev_term.0);
                w.varint(commit.0);
                w.list(entries, |w, entry| entry.encode_to(w));
            }
            Body::Accepted { index, commit } => {
                w.u8(2);
                w.varint(index.0);
                w.varint(commit.0);
            }
            Body::Rejected { index, hint_index, hint_term, commit } => {
                w.u8(3);
                w.varint(index.0);
                w.varint(hint_index.0);
                w.varint(hint_term.0);
                w.varint(commit.0);
            }
            Body::Heartbeat { commit, context } => {
                w.u8(4);
                w.varint(commit.0);
                w.bytes(context);
            }
            Body::HeartbeatReply { commit, context } => {
                w.u8(5);
                w.varint(commit.0);
                w.bytes(context);
            }
            Body::Vote { pre, last_index, last_term, commit, commit_term, transfer } => {
                w.u8(6);
                w.u8(u8::from(*pre));
                w.varint(last_index.0);
                w.varint(last_term.0);
                w.varint(commit.0);
                w.varint(commit_term.0);
                w.u8(u8::from(*transfer));
            }
            Body::VoteReply { pre, granted, commit, commit_term } => {
                w.u8(7);
                w.u8(u8::from(*pre));
                w.u8(u8::from(*granted));
                w.varint(commit.0);
                w.varint(commit_term.0);
            }
            // Two tags, so that members from before there was a book understand this as long as there is none.
            Body::Snapshot { meta } if meta.members.book.is_empty() => {
                w.u8(8);
                meta.encode_to(&mut w);
            }
            Body::Snapshot { meta } => {
                w.u8(12);
                meta.encode_to(&mut w);
                meta.members.book.encode_to(&mut w);
            }
            Body::TimeoutNow => w.u8(9),
            Body::ReadIndex { context } => {
                w.u8(10);
                w.bytes(context);
            }
            Body::ReadIndexReply { index, context } => {
                w.u8(11);
                w.varint(index.0);
                w.bytes(context);
            }
        }
        w.finish()
    }

    /// Reads one whole message.
    ///
    /// # Errors
    /// Bytes that are not exactly one message of a known format.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        match r.u8("message version")? {
            MESSAGE_FORMAT => {}
            got => return Err(DecodeError::Version { got, known: MESSAGE_FORMAT }),
        }
        let from = NodeId(r.varint("sender")?);
        let to = NodeId(r.varint("receiver")?);
        let term = Term(number(&mut r, "term")?);
        let r = &mut r;
        let context =
            |r: &mut Reader| r.bytes("context", CONTEXT_BYTES_MAX).map(|shared| Bytes::copy_from_slice(&shared));
        let index = |r: &mut Reader, what| number(r, what).map(Index);
        let body = match r.u8("message tag")? {
            1 => Body::Append {
                prev_index: index(r, "previous index")?,
                prev_term: Term(number(r, "previous term")?),
                commit: index(r, "commit")?,
                entries: r.list("entries", MESSAGE_ENTRIES_MAX, LogEntry::decode_from)?,
            },
            2 => Body::Accepted { index: index(r, "index")?, commit: index(r, "commit")? },
            3 => Body::Rejected {
                index: index(r, "index")?,
                hint_index: index(r, "hint index")?,
                hint_term: Term(number(r, "hint term")?),
                commit: index(r, "commit")?,
            },
            4 => Body::Heartbeat { commit: index(r, "commit")?, context: context(r)? },
            5 => Body::HeartbeatReply { commit: index(r, "commit")?, context: context(r)? },
            6 => Body::Vote {
                pre: flag(r, "pre-vote")?,
                last_index: index(r, "last index")?,
                last_term: Term(number(r, "last term")?),
                commit: index(r, "commit")?,
                commit_term: Term(number(r, "commit term")?),
                transfer: flag(r, "transfer")?,
            },
            7 => Body::VoteReply {
                pre: flag(r, "pre-vote")?,
                granted: flag(r, "granted")?,
                commit: index(r, "commit")?,
                commit_term: Term(number(r, "commit term")?),
            },
            8 => Body::Snapshot { meta: SnapshotMeta::decode_from(r)? },
            9 => Body::TimeoutNow,
            10 => Body::ReadIndex { context: context(r)? },
            11 => Body::ReadIndexReply { index: index(r, "index")?, context: context(r)? },
            12 => {
                let mut meta = SnapshotMeta::decode_from(r)?;
                meta.members.book = Arc::new(Book::decode_from(r)?);
                Body::Snapshot { meta }
            }
            tag => return Err(DecodeError::Tag { what: "message", tag: tag.into() }),
        };
        r.clone().end()?;
        Ok(Self { from, to, term, body })
    }

    /// Whether the message is possible at all, whoever receives it. What depends on the receiver's log is checked
    /// there.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.from.0 == 0 || self.to.0 == 0 || self.from == self.to {
            return Err("sender and receiver must be two members");
        }
        if self.term.0 > NUMBER_MAX {
            return Err("the term is out of range");
        }
        let asks_any_leader = matches!(self.body, Body::ReadIndex { .. });
        if asks_any_leader != (self.term.0 == 0) {
            return Err("the term does not fit the kind of message");
        }
        match &self.body {
            Body::Append { prev_index, prev_term, entries, .. } => {
                let (mut index, mut term) = (*prev_index, *prev_term);
                if (index.0 == 0) != (term.0 == 0) {
                    return Err("only index 0 has term 0");
                }
                for entry in entries {
                    if entry.index != index.next() {
                        return Err("entries are not consecutive");
                    }
                    if entry.term < term || entry.term.0 == 0 {
                        return Err("terms of entries go back");
                    }
                    (index, term) = (entry.index, entry.term);
                }
                if term > self.term || index.0 > NUMBER_MAX {
                    return Err("an entry is newer than its sender");
                }
                Ok(())
            }
            Body::Rejected { index, hint_index, .. } if hint_index > index => {
                Err("the hint lies behind the rejected index")
            }
            Body::Vote { last_term, .. } if *last_term > self.term => Err("the log is newer than its owner"),
            Body::Snapshot { meta } if meta.index.0 == 0 || meta.term.0 == 0 || meta.term > self.term => {
                Err("the snapshot is empty or newer than its sender")
            }
            Body::Snapshot { meta } if !meta.members.is_valid() => Err("the snapshot's members are not valid"),
            Body::ReadIndex { context } | Body::ReadIndexReply { context, .. } if context.is_empty() => {
                Err("a read without context")
            }
            _ => Ok(()),
        }
    }
}
