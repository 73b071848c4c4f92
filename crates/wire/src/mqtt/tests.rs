use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

const LIMIT: usize = 1024;

/// Bytes as people write them in a transcript: hex digits, spaces, and text in quotes.
fn bytes(script: &str) -> BytesMut {
    let mut out = BytesMut::new();
    for (position, part) in script.split('"').enumerate() {
        if position % 2 == 1 {
            out.extend_from_slice(part.as_bytes());
            continue;
        }
        for word in part.split_whitespace() {
            for at in (0..word.len()).step_by(2) {
                out.extend_from_slice(&[u8::from_str_radix(&word[at..at + 2], 16).expect("hex digits")]);
            }
        }
    }
    out
}

/// One line per packet, then what is left and why it ended.
fn check(script: &str, expect: Expect) {
    let mut buf = bytes(script);
    let mut out = String::new();
    loop {
        match decode(&mut buf, LIMIT) {
            Ok(Some(packet)) => writeln!(out, "{packet:?}").expect("strings can be written to"),
            Ok(None) if buf.is_empty() => break,
            Ok(None) => {
                writeln!(out, "waits with {} bytes", buf.len()).expect("strings can be written to");
                break;
            }
            Err(error) => {
                writeln!(out, "closes: {error}").expect("strings can be written to");
                break;
            }
        }
    }
    expect.assert_eq(&out);
}

#[test]
fn a_session() {
    check(
        r##"10 0e 0004 "MQTT" 04 02 003c 0002 "m1"
           82 0d 0001 0008 "alerts/+" 01
           32 11 000c "telemetry/m1" 0002 "x"
           30 03 0001 "a"
           40 02 0007
           c0 00 a2 05 0003 0001 "#" e0 00 c0"##,
        expect![[r##"
            Connect("m1" keep alive 60 s clean)
            Subscribe { packet_id: 1, filters: [("alerts/+", AtLeastOnce)] }
            Publish(telemetry/m1 "x" qos 1 id 2)
            Publish(a "" qos 0)
            Puback { packet_id: 7 }
            Pingreq
            Unsubscribe { packet_id: 3, filters: ["#"] }
            Disconnect
            waits with 1 bytes
        "##]],
    );
}

#[test]
fn connect_with_everything() {
    check(
        r#"10 25 0004 "MQTT" 04 ee 000a 0002 "m1" 0004 "gone" 0003 "bye" 0004 "user" 0004 "pass""#,
        expect![[r#"
            Connect("m1" keep alive 10 s clean will gone "bye" qos 1 retain user "user" password given)
        "#]],
    );
}

#[test]
fn other_levels_are_named() {
    check(
        r#"10 0f 0004 "MQTT" 05 02 003c 00 0002 "m1""#,
        expect![[r#"
            closes: protocol level 5 is not served, only 4 (MQTT 3.1.1)
        "#]],
    );
    check(
        r#"10 10 0006 "MQIsdp" 03 02 003c 0002 "m1""#,
        expect![[r#"
            closes: protocol level 3 is not served, only 4 (MQTT 3.1.1)
        "#]],
    );
    let mut out = BytesMut::new();
    refuse_level(5, &mut out);
    refuse_level(3, &mut out);
    assert_eq!(&out[..], [0x20, 3, 0, 0x84, 0, 0x20, 2, 0, 1]);
}

#[test]
fn what_the_standard_forbids_is_refused_by_clause() {
    for (script, expect) in [
        (
            r#"00 00"#,
            expect![[r#"
            closes: malformed packet: packet type is reserved [MQTT-2.2.1]
        "#]],
        ),
        (
            r#""GET / HTTP/1.1""#,
            expect![[r#"
            closes: malformed packet: reserved flags of the fixed header are not as required [MQTT-2.2.2-2]
        "#]],
        ),
        (
            r#"80 00"#,
            expect![[r#"
            closes: malformed packet: reserved flags of the fixed header are not as required [MQTT-2.2.2-2]
        "#]],
        ),
        (
            r#"36 05 0001 "a" 0001"#,
            expect![[r#"
            closes: malformed packet: reserved flags of the fixed header are not as required [MQTT-2.2.2-2]
        "#]],
        ),
        (
            r#"38 03 0001 "a""#,
            expect![[r#"
            closes: malformed packet: DUP is set on a QoS 0 message [MQTT-3.3.1-2]
        "#]],
        ),
        (
            r#"30 ff ff ff ff 01"#,
            expect![[r#"
            closes: malformed packet: remaining length has more than four digits [MQTT-2.2.3]
        "#]],
        ),
        (
            r#"30 ff 7f"#,
            expect![[r#"
            closes: packet of 16386 bytes is larger than the limit of 1024
        "#]],
        ),
        (
            r#"30 ff"#,
            expect![[r#"
            waits with 2 bytes
        "#]],
        ),
        (
            r#"32 05 0001 "a" 0000"#,
            expect![[r#"
            closes: malformed packet: packet identifier is zero [MQTT-2.3.1-1]
        "#]],
        ),
        (
            r#"30 02 0000"#,
            expect![[r#"
            closes: malformed packet: a topic name is empty [MQTT-4.7.3-1]
        "#]],
        ),
        (
            r##"30 05 0003 "a/#""##,
            expect![[r#"
            closes: malformed packet: a topic name contains a wildcard [MQTT-3.3.2-2]
        "#]],
        ),
        (
            r#"30 04 0002 c0 80"#,
            expect![[r#"
            closes: malformed packet: a string is not valid UTF-8 [MQTT-1.5.3-1]
        "#]],
        ),
        (
            r#"30 04 0002 "a" 00"#,
            expect![[r#"
            closes: malformed packet: a string contains U+0000 [MQTT-1.5.3-2]
        "#]],
        ),
        (
            r#"30 03 0009 "a""#,
            expect![[r#"
            closes: malformed packet: packet ends inside a field
        "#]],
        ),
        (
            r#"c0 01 00"#,
            expect![[r#"
            closes: malformed packet: bytes are left over after the packet's last field
        "#]],
        ),
        (
            r#"82 02 0001"#,
            expect![[r#"
            closes: malformed packet: SUBSCRIBE without a topic filter [MQTT-3.8.3-3]
        "#]],
        ),
        (
            r#"82 06 0001 0001 "a" 03"#,
            expect![[r#"
            closes: malformed packet: requested QoS has reserved bits set [MQTT-3.8.3-4]
        "#]],
        ),
        (
            r##"82 08 0001 0003 "a#b" 00"##,
            expect![[r##"
            closes: malformed packet: '#' is not alone in the last level of a topic filter [MQTT-4.7.1-2]
        "##]],
        ),
        (
            r#"a2 02 0001"#,
            expect![[r#"
            closes: malformed packet: UNSUBSCRIBE without a topic filter [MQTT-3.10.3-2]
        "#]],
        ),
        (
            r#"10 0c 0004 "MQTT" 04 03 003c 0000"#,
            expect![[r#"
            closes: malformed packet: reserved CONNECT flag is set [MQTT-3.1.2-3]
        "#]],
        ),
        (
            r#"10 0c 0004 "MQTT" 04 42 003c 0000"#,
            expect![[r#"
            closes: malformed packet: a password without a user name [MQTT-3.1.2-22]
        "#]],
        ),
        (
            r#"10 0c 0004 "MQTT" 04 0a 003c 0000"#,
            expect![[r#"
            closes: malformed packet: will flags are set without a will [MQTT-3.1.2-11]
        "#]],
        ),
        (
            r#"10 0c 0004 "MQTT" 04 1e 003c 0000"#,
            expect![[r#"
            closes: malformed packet: will QoS is 3 [MQTT-3.1.2-14]
        "#]],
        ),
        (
            r#"10 0c 0004 "HTTP" 04 02 003c 0000"#,
            expect![[r#"
            closes: malformed packet: protocol name is not "MQTT" [MQTT-3.1.2-1]
        "#]],
        ),
        (
            r#"20 02 02 00"#,
            expect![[r#"
            closes: malformed packet: CONNACK flags are reserved [MQTT-3.2.2]
        "#]],
        ),
    ] {
        check(script, expect);
    }
}

#[test]
fn filters_match_as_in_chapter_4_7() {
    // The examples of sections 4.7.1 to 4.7.3.
    for (filter, name, matches) in [
        ("sport/tennis/player1/#", "sport/tennis/player1", true),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
        ("sport/tennis/player1/#", "sport/tennis/player2", false),
        ("sport/#", "sport", true),
        ("#", "a/b/c", true),
        ("sport/tennis/+", "sport/tennis/player1", true),
        ("sport/tennis/+", "sport/tennis/player1/ranking", false),
        ("sport/+", "sport", false),
        ("sport/+", "sport/", true),
        ("+", "finance", true),
        ("+/+", "/finance", true),
        ("/+", "/finance", true),
        ("+", "/finance", false),
        ("#", "$SYS/uptime", false),
        ("+/monitor", "$SYS/monitor", false),
        ("$SYS/#", "$SYS/monitor", true),
        ("$SYS/monitor/+", "$SYS/monitor/clients", true),
        ("accounts", "Accounts", false),
        ("a/b", "a/b/c", false),
        ("a/b/c", "a/b", false),
    ] {
        let parsed = Filter::try_from(filter).expect("valid filter");
        assert_eq!(parsed.matches(name), matches, "{filter} against {name}");
    }
}

#[test]
fn filters_overlap_when_a_name_matches_both() {
    for (a, b, overlap) in [
        ("telemetry/+", "telemetry/m1", true),
        ("telemetry/+", "#", true),
        ("plant/+/telemetry", "plant/#", true),
        ("plant/+/telemetry", "+/x/telemetry", true),
        ("plant/+/telemetry", "plant/x/status", false),
        ("telemetry/+", "telemetry", false),
        ("telemetry/#", "telemetry", true),
        ("a/b", "a/b/+", false),
    ] {
        let (fa, fb) = (Filter::try_from(a).expect("valid"), Filter::try_from(b).expect("valid"));
        assert_eq!(fa.overlaps(&fb), overlap, "{a} and {b}");
        assert_eq!(fb.overlaps(&fa), overlap, "{b} and {a}");
    }
}

fn text() -> impl Strategy<Value = Text> {
    "[a-zA-Z0-9äß漢/$ -]{0,20}".prop_map(|s| Text::try_from(&s[..]).expect("no U+0000"))
}

fn topic_name() -> impl Strategy<Value = TopicName> {
    "[a-zä漢/$]{1,20}".prop_map(|s| TopicName::try_from(&s[..]).expect("no wildcards"))
}

fn filter() -> impl Strategy<Value = Filter> {
    (prop::collection::vec(prop_oneof![Just("+".to_owned()), "[a-z$]{0,4}"], 1..5), any::<bool>()).prop_map(
        |(mut levels, hash)| {
            if hash || levels.iter().all(String::is_empty) {
                levels.push("#".into());
            }
            Filter::try_from(&levels.join("/")[..]).expect("wildcards stand alone")
        },
    )
}

fn qos() -> impl Strategy<Value = Qos> {
    prop_oneof![Just(Qos::AtMostOnce), Just(Qos::AtLeastOnce), Just(Qos::ExactlyOnce)]
}

fn payload() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn packet() -> impl Strategy<Value = Packet> {
    let id = 1..=u16::MAX;
    let will = (topic_name(), payload(), qos(), any::<bool>()).prop_map(|(topic, payload, qos, retain)| Will {
        topic,
        payload,
        qos,
        retain,
    });
    let credentials = prop::option::of((text(), prop::option::of(payload())));
    prop_oneof![
        (text(), any::<bool>(), any::<u16>(), prop::option::of(will), credentials).prop_map(
            |(client_id, clean_session, keep_alive_s, will, credentials)| {
                let (username, password) = match credentials {
                    None => (None, None),
                    Some((username, password)) => (Some(username), password),
                };
                let connect = Connect { client_id, clean_session, keep_alive_s, will, username, password };
                Packet::Connect(Box::new(connect))
            }
        ),
        (any::<bool>(), 0..6u8).prop_map(|(session_present, code)| Packet::Connack {
            session_present,
            code: ConnectCode::from_byte(code).expect("0 to 5"),
        }),
        (qos(), any::<bool>(), any::<bool>(), topic_name(), id.clone(), payload()).prop_map(
            |(qos, dup, retain, topic, id, payload)| {
                let guarded = qos != Qos::AtMostOnce;
                let packet_id = guarded.then_some(id);
                Packet::Publish(Publish { dup: dup && guarded, qos, retain, topic, packet_id, payload })
            }
        ),
        id.clone().prop_map(|packet_id| Packet::Puback { packet_id }),
        id.clone().prop_map(|packet_id| Packet::Pubrec { packet_id }),
        id.clone().prop_map(|packet_id| Packet::Pubrel { packet_id }),
        id.clone().prop_map(|packet_id| Packet::Pubcomp { packet_id }),
        (id.clone(), prop::collection::vec((filter(), qos()), 1..5))
            .prop_map(|(packet_id, filters)| Packet::Subscribe { packet_id, filters }),
        (id.clone(), prop::collection::vec(prop::option::of(qos()), 1..5))
            .prop_map(|(packet_id, granted)| Packet::Suback { packet_id, granted }),
        (id.clone(), prop::collection::vec(filter(), 1..5))
            .prop_map(|(packet_id, filters)| Packet::Unsubscribe { packet_id, filters }),
        id.prop_map(|packet_id| Packet::Unsuback { packet_id }),
        Just(Packet::Pingreq),
        Just(Packet::Pingresp),
        Just(Packet::Disconnect),
    ]
}

proptest! {
    #[test]
    fn packets_survive_the_wire(packets in prop::collection::vec(packet(), 1..6)) {
        let mut out = BytesMut::new();
        for packet in &packets {
            packet.encode(&mut out);
        }
        fuzz::fuzz_mqtt_decode(&out);
        for packet in &packets {
            let decoded = decode(&mut out, 64 * 1024).expect("valid");
            prop_assert_eq!(decoded.as_ref(), Some(packet));
        }
        prop_assert!(out.is_empty());
    }

    #[test]
    fn flipped_bytes_never_panic(packets in prop::collection::vec(packet(), 1..4), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut out = BytesMut::new();
        for packet in &packets {
            packet.encode(&mut out);
        }
        for (at, byte) in flips {
            let at = at.index(out.len());
            out[at] = byte;
        }
        fuzz::fuzz_mqtt_decode(&out);
    }

    #[test]
    fn garbage_never_panics(data in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz::fuzz_mqtt_decode(&data);
    }

    #[test]
    fn what_matches_overlaps(filter in filter(), name in topic_name()) {
        if filter.matches(&name) {
            let as_filter = Filter::try_from(&name[..]).expect("a name is a filter");
            prop_assert!(filter.overlaps(&as_filter));
        }
    }
}
