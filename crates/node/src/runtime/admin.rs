//! Requests that only the leader carries out: changes of members, and handing over.
//!
//! Any node takes them and asks the leader, as it does with entries. Other than those they are not remembered by their
//! number: each says what shall be true afterwards, so asking again after a lost answer changes nothing and is answered
//! with [`MemberDone::already`].
//!
//! Wire format 1 of a request and of an answer: a version byte, a tag, then the fields in the order of the types.

use buttress_consensus::CONTACT_TEXT_BYTES_MAX;
use buttress_core::{Code, DecodeError, Error, NodeId, Reader, Writer, ledger::Member};
use bytes::Bytes;

const FORMAT: u8 = 1;
/// Text of errors and warnings.
const TEXT_BYTES_MAX: usize = 4096;
const WARNINGS_MAX: usize = 16;

/// What shall become of the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberRequest {
    /// Adds a learner under a new id, or gives the id of one that was added and has not started. `member.id` is not looked
    /// at.
    Join {
        member: Member,
        /// The leader makes it a voter once it has caught up.
        promote: bool,
    },
    Remove {
        id: NodeId,
    },
    /// Makes a learner a voter.
    Promote {
        id: NodeId,
        /// Even if it has not caught up, where the quorum does not need it.
        force: bool,
    },
    /// `new` becomes a voter in the step in which `old` ceases to be a member.
    Replace {
        old: NodeId,
        new: NodeId,
        force: bool,
    },
    /// Hands leadership over, to the most suitable voter where none is named.
    Transfer {
        to: Option<NodeId>,
        /// Who is to lead no more, where nobody is named to follow: whoever leads when the request is first sent. So a
        /// request that is sent again does not move leadership again.
        from: Option<NodeId>,
    },
}

/// What has become true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberDone {
    /// Whom the request was about; after a transfer, who leads.
    pub id: NodeId,
    /// It was so before.
    pub already: bool,
    /// What the operator should know about the cluster as it is now.
    pub warnings: Vec<String>,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotDone {
    /// The receiver does not lead (any more): ask whoever leads.
    NotLeader,
    Refused(Error),
}

pub(super) type Outcome = Result<MemberDone, NotDone>;

impl MemberRequest {
    pub(super) fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(128);
        w.u8(FORMAT);
        match self {
            Self::Join { member, promote } => {
                w.u8(1);
                for text in [&member.name, &member.peer, &member.kafka, &member.mqtt, &member.http] {
                    w.bytes(text.as_bytes());
                }
                w.u8((*promote).into());
            }
            Self::Remove { id } => {
                w.u8(2);
                w.varint(id.0);
            }
            Self::Promote { id, force } => {
                w.u8(3);
                w.varint(id.0);
                w.u8((*force).into());
            }
            Self::Replace { old, new, force } => {
                w.u8(4);
                w.varint(old.0);
                w.varint(new.0);
                w.u8((*force).into());
            }
            Self::Transfer { to, from } => {
                w.u8(5);
                w.varint(to.map_or(0, |id| id.0));
                w.varint(from.map_or(0, |id| id.0));
            }
        }
        w.finish()
    }

    pub(super) fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let request = match r.u8("request")? {
            1 => {
                let mut text = |what| r.string(what, CONTACT_TEXT_BYTES_MAX);
                let (name, peer) = (text("name")?, text("peer")?);
                let (kafka, mqtt, http) = (text("kafka")?, text("mqtt")?, text("http")?);
                let member = Member { name, peer, kafka, mqtt, http, ..Member::default() };
                Self::Join { member, promote: flag(&mut r)? }
            }
            2 => Self::Remove { id: NodeId(r.varint("id")?) },
            3 => Self::Promote { id: NodeId(r.varint("id")?), force: flag(&mut r)? },
            4 => Self::Replace {
                old: NodeId(r.varint("old id")?),
                new: NodeId(r.varint("new id")?),
                force: flag(&mut r)?,
            },
            5 => {
                let mut id = |what| r.varint(what).map(|id| Some(NodeId(id)).filter(|id| id.0 != 0));
                Self::Transfer { to: id("id")?, from: id("from")? }
            }
            tag => return Err(DecodeError::Tag { what: "request", tag: tag.into() }),
        };
        r.end()?;
        Ok(request)
    }
}

pub(super) fn encode_outcome(outcome: &Outcome) -> Bytes {
    let mut w = Writer::with_capacity(64);
    w.u8(FORMAT);
    match outcome {
        Ok(done) => {
            w.u8(1);
            w.varint(done.id.0);
            w.u8(done.already.into());
            let warnings = &done.warnings[..done.warnings.len().min(WARNINGS_MAX)];
            w.list(warnings, |w, text| w.bytes(cut(text).as_bytes()));
        }
        Err(NotDone::NotLeader) => w.u8(2),
        Err(NotDone::Refused(error)) => {
            w.u8(3);
            w.bytes(error.code.0.as_bytes());
            w.bytes(cut(&error.message).as_bytes());
            w.bytes(cut(error.hint.as_deref().unwrap_or_default()).as_bytes());
            w.u8(error.retryable.into());
        }
    }
    w.finish()
}

pub(super) fn decode_outcome(bytes: Bytes) -> Result<Outcome, DecodeError> {
    let mut r = Reader::new(bytes);
    version(&mut r)?;
    let outcome = match r.u8("answer")? {
        1 => {
            let (id, already) = (NodeId(r.varint("id")?), flag(&mut r)?);
            let warnings = r.list("warnings", WARNINGS_MAX, |r| r.string("warning", TEXT_BYTES_MAX))?;
            Ok(MemberDone { id, already, warnings })
        }
        2 => Err(NotDone::NotLeader),
        3 => {
            let code = r.string("code", 16)?;
            let message = r.string("message", TEXT_BYTES_MAX)?;
            let hint = r.string("hint", TEXT_BYTES_MAX)?;
            // A later version may refuse for reasons that this one has no word for.
            let known = Code::ALL.iter().map(|(known, _)| *known).find(|known| known.0 == code);
            let mut error = Error::new(known.unwrap_or(Code::BAD_REQUEST), message);
            error.hint = Some(hint).filter(|hint| !hint.is_empty());
            error.retryable = flag(&mut r)?;
            Err(NotDone::Refused(error))
        }
        tag => return Err(DecodeError::Tag { what: "answer", tag: tag.into() }),
    };
    r.end()?;
    Ok(outcome)
}

fn version(r: &mut Reader) -> Result<(), DecodeError> {
    match r.u8("version")? {
        FORMAT => Ok(()),
        got => Err(DecodeError::Version { got, known: FORMAT }),
    }
}

fn flag(r: &mut Reader) -> Result<bool, DecodeError> {
    Ok(r.u8("flag")? != 0)
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requests() -> Vec<MemberRequest> {
        let member = Member { name: "node-4".into(), peer: "127.0.0.1:1".into(), ..Member::default() };
        vec![
            MemberRequest::Join { member, promote: true },
            MemberRequest::Remove { id: NodeId(3) },
            MemberRequest::Promote { id: NodeId(4), force: false },
            MemberRequest::Replace { old: NodeId(1), new: NodeId(4), force: true },
            MemberRequest::Transfer { to: None, from: Some(NodeId(1)) },
            MemberRequest::Transfer { to: Some(NodeId(2)), from: None },
        ]
    }

    #[test]
    fn requests_and_outcomes_come_back() {
        for request in requests() {
            assert_eq!(MemberRequest::decode(request.encode()), Ok(request));
        }
        let refused = Error::new(Code::QUORUM, "3 voters").hint("wait").retryable();
        for outcome in [
            Ok(MemberDone { id: NodeId(4), already: true, warnings: vec!["even".into()] }),
            Err(NotDone::NotLeader),
            Err(NotDone::Refused(refused)),
            Err(NotDone::Refused(Error::new(Code::LAGGING, "x"))),
        ] {
            assert_eq!(decode_outcome(encode_outcome(&outcome)), Ok(outcome));
        }
    }

    proptest! {
        #[test]
        fn anything_is_taken(data in proptest::collection::vec(any::<u8>(), 0..100), at in 0usize..6, cut in 0usize..40) {
            let _ = MemberRequest::decode(data.clone().into());
            let _ = decode_outcome(data.into());
            let whole = requests()[at].encode();
            prop_assert!(cut >= whole.len() || MemberRequest::decode(whole.slice(..cut)).is_err());
        }
    }
}
