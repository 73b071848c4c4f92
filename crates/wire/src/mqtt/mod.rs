//! MQTT 3.1.1 (OASIS standard, 29 October 2014): control packets to typed values and back.
//!
//! The codec is strict, because a broker that guesses acknowledges what the device did not mean: reserved bits,
//! UTF-8, packet identifiers and lengths are held against the standard, and the error names the clause. It is
//! sans-IO: [`decode`] takes bytes that have arrived and answers with a packet, "not yet", or a reason to close;
//! [`Packet::encode`] appends to an output buffer. A payload is never copied: it shares the allocation it arrived in.
//!
//! Memory is bounded by the caller's `packet_bytes_max`: a remaining length above it is refused as soon as its last
//! digit is there, before the packet is buffered.
//!
//! An MQTT 5 or 3.1 CONNECT is recognised by its level and reported as [`Error::Level`], so that the edge can refuse
//! it in the form that client understands ([`refuse_level`]).

mod decode;
mod encode;
pub mod fuzz;
mod topic;

#[cfg(test)]
mod tests;

use bytes::{Bytes, BytesMut};

pub use decode::decode;
pub use topic::{Filter, TopicName};

/// The largest remaining length that four digits can say (MQTT-2.2.3).
pub const REMAINING_LENGTH_MAX: usize = 268_435_455;

/// Protocol level of MQTT 3.1.1.
pub const LEVEL_3_1_1: u8 = 4;

/// How often a message may reach its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl Qos {
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// A string as MQTT allows it: UTF-8 without U+0000, at most 65,535 bytes. Shares the bytes it was decoded from.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(Bytes);

impl Text {
    /// # Errors
    /// When the bytes are not UTF-8, contain U+0000 (MQTT-1.5.3-2) or are too long for a length prefix of two bytes.
    pub fn new(bytes: Bytes) -> Result<Self, Error> {
        if bytes.len() > usize::from(u16::MAX) {
            return Err(Error::Malformed("a string is longer than 65535 bytes"));
        }
        match std::str::from_utf8(&bytes) {
            Err(_) => Err(Error::Malformed("a string is not valid UTF-8 [MQTT-1.5.3-1]")),
            Ok(text) if text.contains('\0') => Err(Error::Malformed("a string contains U+0000 [MQTT-1.5.3-2]")),
            Ok(_) => Ok(Self(bytes)),
        }
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked in Text::new")
    }

    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

impl TryFrom<&str> for Text {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self, Error> {
        Self::new(Bytes::copy_from_slice(text.as_bytes()))
    }
}

/// Why a connection cannot go on. MQTT 3.1.1 has no packet to say so: the answer is to close (MQTT-4.8.0-1), and
/// to log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    #[error("packet of {got} bytes is larger than the limit of {limit}")]
    TooLarge { got: usize, limit: usize },
    /// A CONNECT of another protocol level; answer with [`refuse_level`], then close.
    #[error("protocol level {0} is not served, only 4 (MQTT 3.1.1)")]
    Level(u8),
}

/// The message that the server publishes when the connection ends without DISCONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct Will {
    pub topic: TopicName,
    pub payload: Bytes,
    pub qos: Qos,
    pub retain: bool,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    /// May be empty, and is then chosen by the server (only with `clean_session`, MQTT-3.1.3-7).
    pub client_id: Text,
    pub clean_session: bool,
    /// Zero turns the keep-alive off.
    pub keep_alive_s: u16,
    pub will: Option<Will>,
    pub username: Option<Text>,
    pub password: Option<Bytes>,
}

/// CONNACK return codes (table 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectCode {
    Accepted = 0,
    UnacceptableProtocol = 1,
    IdentifierRejected = 2,
    ServerUnavailable = 3,
    BadCredentials = 4,
    NotAuthorized = 5,
}

impl ConnectCode {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Accepted,
            1 => Self::UnacceptableProtocol,
            2 => Self::IdentifierRejected,
            3 => Self::ServerUnavailable,
            4 => Self::BadCredentials,
            5 => Self::NotAuthorized,
            _ => return None,
        })
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct Publish {
    pub dup: bool,
    pub qos: Qos,
    pub retain: bool,
    pub topic: TopicName,
    /// Present exactly when `qos` is above 0; never zero.
    pub packet_id: Option<u16>,
    pub payload: Bytes,
}

/// One control packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Connect(Box<Connect>),
    Connack {
        session_present: bool,
        code: ConnectCode,
    },
    Publish(Publish),
    Puback {
        packet_id: u16,
    },
    Pubrec {
        packet_id: u16,
    },
    Pubrel {
        packet_id: u16,
    },
    Pubcomp {
        packet_id: u16,
    },
    Subscribe {
        packet_id: u16,
        filters: Vec<(Filter, Qos)>,
    },
    /// `None` refuses the filter at that position.
    Suback {
        packet_id: u16,
        granted: Vec<Option<Qos>>,
    },
    Unsubscribe {
        packet_id: u16,
        filters: Vec<Filter>,
    },
    Unsuback {
        packet_id: u16,
    },
    Pingreq,
    Pingresp,
    Disconnect,
}

impl Packet {
    /// The packet's name in the standard.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Connect(_) => "CONNECT",
            Self::Connack { .. } => "CONNACK",
            Self::Publish(_) => "PUBLISH",
            Self::Puback { .. } => "PUBACK",
            Self::Pubrec { .. } => "PUBREC",
            Self::Pubrel { .. } => "PUBREL",
            Self::Pubcomp { .. } => "PUBCOMP",
            Self::Subscribe { .. } => "SUBSCRIBE",
            Self::Suback { .. } => "SUBACK",
            Self::Unsubscribe { .. } => "UNSUBSCRIBE",
            Self::Unsuback { .. } => "UNSUBACK",
            Self::Pingreq => "PINGREQ",
            Self::Pingresp => "PINGRESP",
            Self::Disconnect => "DISCONNECT",
        }
    }
}

/// Refuses a CONNECT of another level in the words that client knows: an MQTT 5 client gets CONNACK with reason 0x84
/// (Unsupported Protocol Version), all others the 3.1.1 return code 0x01 (MQTT-3.1.2-2).
pub fn refuse_level(level: u8, out: &mut BytesMut) {
    if level == 5 {
        out.extend_from_slice(&[0x20, 3, 0, 0x84, 0]);
    } else {
        Packet::Connack { session_present: false, code: ConnectCode::UnacceptableProtocol }.encode(out);
    }
}

struct Payload<'a>(&'a Bytes);

impl std::fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.0[..self.0.len().min(64)];
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if self.0.len() > shown.len() {
            write!(f, "…({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Publish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} qos {}", &*self.topic, Payload(&self.payload), self.qos as u8)?;
        if let Some(id) = self.packet_id {
            write!(f, " id {id}")?;
        }
        if self.dup {
            f.write_str(" dup")?;
        }
        if self.retain {
            f.write_str(" retain")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Will {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} qos {}", &*self.topic, Payload(&self.payload), self.qos as u8)?;
        if self.retain { f.write_str(" retain") } else { Ok(()) }
    }
}

/// A password never reaches a log.
impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} keep alive {} s", self.client_id, self.keep_alive_s)?;
        if self.clean_session {
            f.write_str(" clean")?;
        }
        if let Some(will) = &self.will {
            write!(f, " will {will:?}")?;
        }
        if let Some(username) = &self.username {
            write!(f, " user {username:?}")?;
        }
        if self.password.is_some() {
            f.write_str(" password given")?;
        }
        Ok(())
    }
}
