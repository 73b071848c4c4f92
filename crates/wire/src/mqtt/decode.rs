//! Bytes to packets.

use bytes::{Buf, Bytes, BytesMut};

use super::{
    Connect, ConnectCode, Error, Filter, LEVEL_3_1_1, Packet, Publish, Qos, REMAINING_LENGTH_MAX, Text, TopicName, Will,
};

/// The fixed header of the packet at the head of the buffer.
struct Header {
    kind: u8,
    flags: u8,
    /// Bytes of the fixed header itself, two to five.
    header_len: usize,
    remaining: usize,
}

/// Takes the next packet off `buf`; `None` when it has not arrived in full yet.
///
/// # Errors
/// A reason to close the connection; the buffer is then of no further use.
pub fn decode(buf: &mut BytesMut, packet_bytes_max: usize) -> Result<Option<Packet>, Error> {
    let Some(header) = fixed_header(buf)? else { return Ok(None) };
    let total = header.header_len + header.remaining;
    if total > packet_bytes_max {
        return Err(Error::TooLarge { got: total, limit: packet_bytes_max });
    }
    if buf.len() < total {
        return Ok(None);
    }
    let mut body = buf.split_to(total).freeze();
    body.advance(header.header_len);
    packet(header.kind, header.flags, body).map(Some)
}

fn fixed_header(buf: &[u8]) -> Result<Option<Header>, Error> {
    let Some((&first, rest)) = buf.split_first() else { return Ok(None) };
    let (kind, flags) = (first >> 4, first & 0x0f);
    // Table 2.2: the flags of every packet but PUBLISH are fixed. Checked at the first byte, so that a stranger who
    // speaks another protocol is turned away before its bytes are taken for a length.
    let valid = match kind {
        1 | 2 | 4 | 5 | 7 | 9 | 11..=14 => flags == 0,
        3 => flags & 0b0110 != 0b0110,
        6 | 8 | 10 => flags == 0b0010,
        _ => return Err(Error::Malformed("packet type is reserved [MQTT-2.2.1]")),
    };
    if !valid {
        return Err(Error::Malformed("reserved flags of the fixed header are not as required [MQTT-2.2.2-2]"));
    }
    let mut remaining = 0usize;
    for (position, &digit) in rest.iter().take(4).enumerate() {
        remaining |= usize::from(digit & 0x7f) << (7 * position);
        if digit & 0x80 == 0 {
            debug_assert!(remaining <= REMAINING_LENGTH_MAX);
            return Ok(Some(Header { kind, flags, header_len: position + 2, remaining }));
        }
    }
    if rest.len() >= 4 {
        Err(Error::Malformed("remaining length has more than four digits [MQTT-2.2.3]"))
    } else {
        Ok(None)
    }
}

/// Reads the body of one packet.
struct Body(Bytes);

const SHORT: Error = Error::Malformed("packet ends inside a field");

impl Body {
    fn u8(&mut self) -> Result<u8, Error> {
        self.0.try_get_u8().map_err(|_| SHORT)
    }

    fn u16(&mut self) -> Result<u16, Error> {
        self.0.try_get_u16().map_err(|_| SHORT)
    }

    fn packet_id(&mut self) -> Result<u16, Error> {
        match self.u16()? {
            0 => Err(Error::Malformed("packet identifier is zero [MQTT-2.3.1-1]")),
            id => Ok(id),
        }
    }

    fn binary(&mut self) -> Result<Bytes, Error> {
        let len = usize::from(self.u16()?);
        if self.0.len() < len {
            return Err(SHORT);
        }
        Ok(self.0.split_to(len))
    }

    fn text(&mut self) -> Result<Text, Error> {
        Text::new(self.binary()?)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn end(self) -> Result<(), Error> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Error::Malformed("bytes are left over after the packet's last field"))
        }
    }
}

fn packet(kind: u8, flags: u8, body: Bytes) -> Result<Packet, Error> {
    let mut body = Body(body);
    let packet = match kind {
        1 => Packet::Connect(Box::new(connect(&mut body)?)),
        2 => {
            let session_present = match body.u8()? {
                0 => false,
                1 => true,
                _ => return Err(Error::Malformed("CONNACK flags are reserved [MQTT-3.2.2]")),
            };
            let code = ConnectCode::from_byte(body.u8()?)
                .ok_or(Error::Malformed("CONNACK return code is reserved [MQTT-3.2.2]"))?;
            Packet::Connack { session_present, code }
        }
        3 => {
            let qos = Qos::from_bits(flags >> 1 & 0b11).expect("QoS 3 was refused with the fixed header");
            let dup = flags & 0b1000 != 0;
            if dup && qos == Qos::AtMostOnce {
                return Err(Error::Malformed("DUP is set on a QoS 0 message [MQTT-3.3.1-2]"));
            }
            let topic = TopicName::new(body.text()?)?;
            let packet_id = if qos == Qos::AtMostOnce { None } else { Some(body.packet_id()?) };
            let payload = std::mem::take(&mut body.0);
            Packet::Publish(Publish { dup, qos, retain: flags & 1 != 0, topic, packet_id, payload })
        }
        4 => Packet::Puback { packet_id: body.packet_id()? },
        5 => Packet::Pubrec { packet_id: body.packet_id()? },
        6 => Packet::Pubrel { packet_id: body.packet_id()? },
        7 => Packet::Pubcomp { packet_id: body.packet_id()? },
        8 => {
            let packet_id = body.packet_id()?;
            let mut filters = Vec::new();
            while !body.is_empty() {
                let filter = Filter::new(body.text()?)?;
                let qos = Qos::from_bits(body.u8()?)
                    .ok_or(Error::Malformed("requested QoS has reserved bits set [MQTT-3.8.3-4]"))?;
                filters.push((filter, qos));
            }
            if filters.is_empty() {
                return Err(Error::Malformed("SUBSCRIBE without a topic filter [MQTT-3.8.3-3]"));
            }
            Packet::Subscribe { packet_id, filters }
        }
        9 => {
            let packet_id = body.packet_id()?;
            let mut granted = Vec::new();
            while !body.is_empty() {
                granted.push(match body.u8()? {
                    0x80 => None,
                    bits => Some(
                        Qos::from_bits(bits)
                            .ok_or(Error::Malformed("SUBACK return code is reserved [MQTT-3.9.3-2]"))?,
                    ),
                });
            }
            Packet::Suback { packet_id, granted }
        }
        10 => {
            let packet_id = body.packet_id()?;
            let mut filters = Vec::new();
            while !body.is_empty() {
                filters.push(Filter::new(body.text()?)?);
            }
            if filters.is_empty() {
                return Err(Error::Malformed("UNSUBSCRIBE without a topic filter [MQTT-3.10.3-2]"));
            }
            Packet::Unsubscribe { packet_id, filters }
        }
        11 => Packet::Unsuback { packet_id: body.packet_id()? },
        12 => Packet::Pingreq,
        13 => Packet::Pingresp,
        14 => Packet::Disconnect,
        _ => unreachable!("reserved types were refused with the fixed header"),
    };
    body.end()?;
    Ok(packet)
}

fn connect(body: &mut Body) -> Result<Connect, Error> {
    let name = body.binary()?;
    let level = body.u8()?;
    match (&name[..], level) {
        (b"MQTT", LEVEL_3_1_1) => {}
        (b"MQTT", _) | (b"MQIsdp", 3) => return Err(Error::Level(level)),
        _ => return Err(Error::Malformed("protocol name is not \"MQTT\" [MQTT-3.1.2-1]")),
    }
    let flags = body.u8()?;
    if flags & 1 != 0 {
        return Err(Error::Malformed("reserved CONNECT flag is set [MQTT-3.1.2-3]"));
    }
    let has_will = flags & 0b100 != 0;
    let will_qos = Qos::from_bits(flags >> 3 & 0b11).ok_or(Error::Malformed("will QoS is 3 [MQTT-3.1.2-14]"))?;
    let will_retain = flags & 0b10_0000 != 0;
    if !has_will && (will_retain || will_qos != Qos::AtMostOnce) {
        return Err(Error::Malformed("will flags are set without a will [MQTT-3.1.2-11]"));
    }
    let has_username = flags & 0b1000_0000 != 0;
    let has_password = flags & 0b0100_0000 != 0;
    if has_password && !has_username {
        return Err(Error::Malformed("a password without a user name [MQTT-3.1.2-22]"));
    }
    let keep_alive_s = body.u16()?;
    let client_id = body.text()?;
    let will = if has_will {
        let topic = TopicName::new(body.text()?)?;
        let payload = body.binary()?;
        Some(Will { topic, payload, qos: will_qos, retain: will_retain })
    } else {
        None
    };
    let username = if has_username { Some(body.text()?) } else { None };
    let password = if has_password { Some(body.binary()?) } else { None };
    Ok(Connect { client_id, clean_session: flags & 0b10 != 0, keep_alive_s, will, username, password })
}
