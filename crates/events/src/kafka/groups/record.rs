//! What the log keeps of a group: the value of the key [`key`], written at each stable generation.
//!
//! Its revision is the fence of the group's offsets: an entry that moves them guards on it, so a commit that was allowed under
//! one generation is refused once the next one is in the log, whoever sends it and however late it comes (GROUP-1).
//!
//! Format 1: a version byte, then the fields in order.

use buttress_core::{
    DecodeError, Reader, Writer,
    limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX},
};
use bytes::Bytes;

use super::group::{MEMBERS_MAX, Ms};

const FORMAT: u8 = 1;
const PREFIX: &str = "/buttress/kafka/groups/";
/// Protocols of one member; the Java client brings two.
const PROTOCOLS_MAX: usize = super::PROTOCOLS_MAX;

/// The key of a group.
pub fn key(group: &str) -> Bytes {
    format!("{PREFIX}{group}").into()
}

/// The range of all groups' keys.
pub fn all() -> buttress_core::KeyRange {
    buttress_core::KeyRange::prefix(PREFIX)
}

/// The group that has the key.
pub fn group_of(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.strip_prefix(PREFIX.as_bytes())?).ok()
}

/// A generation with its members; without members only the generation counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub generation: i32,
    pub protocol_type: Option<String>,
    pub protocol: Option<String>,
    pub leader: Option<String>,
    pub members: Vec<MemberRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRecord {
    pub id: String,
    pub instance: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_ms: Ms,
    pub rebalance_ms: Ms,
    pub protocols: Vec<(String, Bytes)>,
    pub assignment: Bytes,
}

impl Record {
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(256);
        let text = |w: &mut Writer, text: &String| w.bytes(text.as_bytes());
        w.u8(FORMAT);
        w.zigzag(self.generation.into());
        w.option(self.protocol_type.as_ref(), text);
        w.option(self.protocol.as_ref(), text);
        w.option(self.leader.as_ref(), text);
        w.list(&self.members, |w, member| {
            text(w, &member.id);
            w.option(member.instance.as_ref(), text);
            text(w, &member.client_id);
            text(w, &member.client_host);
            w.varint(member.session_ms);
            w.varint(member.rebalance_ms);
            w.list(&member.protocols, |w, (name, metadata)| {
                text(w, name);
                w.bytes(metadata);
            });
            w.bytes(&member.assignment);
        });
        w.finish()
    }

    /// # Errors
    /// Any way in which the bytes are not a record. The key space is open to others, so they may be anything.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        match r.u8("group format")? {
            FORMAT => {}
            got => return Err(DecodeError::Version { got, known: FORMAT }),
        }
        let text = |r: &mut Reader| r.string("group text", KEY_BYTES_MAX);
        let record = Self {
            generation: r.zigzag("generation")? as i32,
            protocol_type: r.option("protocol type", text)?,
            protocol: r.option("protocol", text)?,
            leader: r.option("leader", text)?,
            members: r.list("members", MEMBERS_MAX, |r| {
                Ok(MemberRecord {
                    id: text(r)?,
                    instance: r.option("instance", text)?,
                    client_id: text(r)?,
                    client_host: text(r)?,
                    session_ms: r.varint("session timeout")?,
                    rebalance_ms: r.varint("rebalance timeout")?,
                    protocols: r
                        .list("protocols", PROTOCOLS_MAX, |r| Ok((text(r)?, r.bytes("metadata", VALUE_BYTES_MAX)?)))?,
                    assignment: r.bytes("assignment", VALUE_BYTES_MAX)?,
                })
            })?,
        };
        r.end()?;
        Ok(record)
    }
}
