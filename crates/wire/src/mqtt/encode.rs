//! Packets to bytes.

use bytes::{BufMut, BytesMut};

use super::{Connect, LEVEL_3_1_1, Packet, Publish, Qos, REMAINING_LENGTH_MAX};

impl Packet {
    /// Appends the packet to `out`.
    ///
    /// # Panics
    /// When the packet was built by us against the standard: larger than 256 MiB, a QoS above 0 without a packet
    /// identifier, a password without a user name.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Connect(connect) => connect.encode(out),
            Self::Connack { session_present, code } => {
                out.put_slice(&[0x20, 2, u8::from(*session_present), *code as u8]);
            }
            Self::Publish(publish) => publish.encode(out),
            Self::Puback { packet_id } => with_id(0x40, *packet_id, out),
            Self::Pubrec { packet_id } => with_id(0x50, *packet_id, out),
            Self::Pubrel { packet_id } => with_id(0x62, *packet_id, out),
            Self::Pubcomp { packet_id } => with_id(0x70, *packet_id, out),
            Self::Subscribe { packet_id, filters } => {
                let len = 2 + filters.iter().map(|(f, _)| 2 + f.len() + 1).sum::<usize>();
                header(0x82, len, out);
                out.put_u16(*packet_id);
                for (filter, qos) in filters {
                    binary(filter.as_bytes(), out);
                    out.put_u8(*qos as u8);
                }
            }
            Self::Suback { packet_id, granted } => {
                header(0x90, 2 + granted.len(), out);
                out.put_u16(*packet_id);
                for qos in granted {
                    out.put_u8(qos.map_or(0x80, |qos| qos as u8));
                }
            }
            Self::Unsubscribe { packet_id, filters } => {
                header(0xa2, 2 + filters.iter().map(|f| 2 + f.len()).sum::<usize>(), out);
                out.put_u16(*packet_id);
                for filter in filters {
                    binary(filter.as_bytes(), out);
                }
            }
            Self::Unsuback { packet_id } => with_id(0xb0, *packet_id, out),
            Self::Pingreq => out.put_slice(&[0xc0, 0]),
            Self::Pingresp => out.put_slice(&[0xd0, 0]),
            Self::Disconnect => out.put_slice(&[0xe0, 0]),
        }
    }
}

impl Publish {
    /// Appends the packet to `out`, without having to wrap it in a [`Packet`].
    pub fn encode(&self, out: &mut BytesMut) {
        assert_eq!(self.qos == Qos::AtMostOnce, self.packet_id.is_none(), "a packet id goes with QoS above 0");
        let flags = u8::from(self.dup) << 3 | (self.qos as u8) << 1 | u8::from(self.retain);
        let id_len = if self.packet_id.is_some() { 2 } else { 0 };
        header(0x30 | flags, 2 + self.topic.len() + id_len + self.payload.len(), out);
        binary(self.topic.as_bytes(), out);
        if let Some(id) = self.packet_id {
            out.put_u16(id);
        }
        out.put_slice(&self.payload);
    }
}

impl Connect {
    fn encode(&self, out: &mut BytesMut) {
        assert!(self.password.is_none() || self.username.is_some(), "a password needs a user name");
        let will_len = self.will.as_ref().map_or(0, |w| 4 + w.topic.len() + w.payload.len());
        let len = 10
            + 2
            + self.client_id.len()
            + will_len
            + self.username.as_ref().map_or(0, |u| 2 + u.len())
            + self.password.as_ref().map_or(0, |p| 2 + p.len());
        header(0x10, len, out);
        binary(b"MQTT", out);
        out.put_u8(LEVEL_3_1_1);
        let mut flags = u8::from(self.clean_session) << 1;
        if let Some(will) = &self.will {
            flags |= 0b100 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
        }
        flags |= u8::from(self.password.is_some()) << 6 | u8::from(self.username.is_some()) << 7;
        out.put_u8(flags);
        out.put_u16(self.keep_alive_s);
        binary(self.client_id.as_bytes(), out);
        if let Some(will) = &self.will {
            binary(will.topic.as_bytes(), out);
            binary(&will.payload, out);
        }
        if let Some(username) = &self.username {
            binary(username.as_bytes(), out);
        }
        if let Some(password) = &self.password {
            binary(password, out);
        }
    }
}

fn with_id(first: u8, packet_id: u16, out: &mut BytesMut) {
    assert_ne!(packet_id, 0, "packet identifier 0 is not allowed");
    let [high, low] = packet_id.to_be_bytes();
    out.put_slice(&[first, 2, high, low]);
}

fn header(first: u8, remaining: usize, out: &mut BytesMut) {
    assert!(remaining <= REMAINING_LENGTH_MAX, "a packet of {remaining} bytes cannot be said in four digits");
    out.reserve(5 + remaining);
    out.put_u8(first);
    let mut rest = remaining;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

fn binary(bytes: &[u8], out: &mut BytesMut) {
    let len = u16::try_from(bytes.len()).expect("strings and wills are at most 65535 bytes");
    out.put_u16(len);
    out.put_slice(bytes);
}
