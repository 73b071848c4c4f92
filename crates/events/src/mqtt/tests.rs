//! Transcripts of bytes in and bytes out, over pipes with a clock that stands still, and stock clients over loopback.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use buttress_core::{Append, Cluster as _, Code, Entry, Error, Offset, TopicChange, entry::TopicSettings};
use buttress_state::local::{Fault, Local};
use buttress_wire::mqtt::{self, Connect, Filter, Packet, Publish, Qos, Text, TopicName, Will};
use bytes::{Bytes, BytesMut};
use expect_test::{Expect, expect};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::*;
use crate::{
    ingest::{Deps, Ingest},
    testing,
};

/// An edge over the in-memory ledger.
struct Edge {
    local: Arc<Local>,
    broker: Arc<Broker>,
}

impl Edge {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let (local, ingest) = testing::start();
        Self { local, broker: Broker::new(ingest, options) }
    }

    /// A connection over a pipe that holds `pipe_bytes` each way.
    fn pipe(&self, pipe_bytes: usize) -> Client<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(pipe_bytes);
        let task = tokio::spawn(self.broker.clone().serve_connection(theirs, "pipe".into()));
        Client { io: ours, input: BytesMut::new(), task: Some(task) }
    }

    async fn connected(&self, client_id: &str) -> Client<DuplexStream> {
        let mut client = self.pipe(64 * 1024);
        client.send(&connect(client_id, 0, None)).await;
        assert!(matches!(client.next().await, Some(Packet::Connack { .. })));
        client
    }
}

struct Client<IO> {
    io: IO,
    input: BytesMut,
    task: Option<JoinHandle<()>>,
}

impl<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Client<IO> {
    async fn raw(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.expect("the edge reads");
    }

    async fn send(&mut self, packet: &Packet) {
        let mut out = BytesMut::new();
        packet.encode(&mut out);
        self.raw(&out).await;
    }

    /// The edge's next packet; `None` when it has closed.
    async fn next(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = mqtt::decode(&mut self.input, usize::MAX).expect("the edge speaks MQTT") {
                return Some(packet);
            }
            match self.io.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Everything until the edge closes, one line per packet.
    async fn rest(&mut self) -> String {
        let mut out = String::new();
        while let Some(packet) = self.next().await {
            writeln!(out, "{packet:?}").expect("strings can be written to");
        }
        out.push_str("closed\n");
        out
    }
}

fn connect(client_id: &str, keep_alive_s: u16, will: Option<Will>) -> Packet {
    let client_id = Text::try_from(client_id).expect("valid");
    Packet::Connect(Box::new(Connect {
        client_id,
        clean_session: true,
        keep_alive_s,
        will,
        username: None,
        password: None,
    }))
}

fn publish(topic: &str, payload: &str, packet_id: Option<u16>) -> Packet {
    Packet::Publish(Publish {
        dup: false,
        qos: if packet_id.is_some() { Qos::AtLeastOnce } else { Qos::AtMostOnce },
        retain: false,
        topic: TopicName::try_from(topic).expect("valid"),
        packet_id,
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    })
}

fn reading(machine: &str, seq: i64, packet_id: Option<u16>) -> Packet {
    publish(&format!("telemetry/{machine}"), &format!(r#"{{"machine":"{machine}","seq":{seq}}}"#), packet_id)
}

fn subscribe(packet_id: u16, filters: &[(&str, Qos)]) -> Packet {
    let filters = filters.iter().map(|(f, qos)| (Filter::try_from(*f).expect("valid"), *qos)).collect();
    Packet::Subscribe { packet_id, filters }
}

/// Sends the packets on a fresh connection with client id `dev`, and prints everything that comes back.
async fn check(edge: &Edge, packets: &[Packet], expect: Expect) {
    let mut client = edge.pipe(64 * 1024);
    client.send(&connect("dev", 0, None)).await;
    for packet in packets {
        client.send(packet).await;
    }
    expect.assert_eq(&client.rest().await);
}

#[tokio::test]
async fn a_puback_means_committed() {
    let edge = Edge::new();
    let mut client = edge.connected("dev").await;
    for (id, seq) in [(10, 1), (11, 2), (12, 2), (13, 3)] {
        client.send(&reading("m1", seq, Some(id))).await;
        assert_eq!(client.next().await, Some(Packet::Puback { packet_id: id }));
    }
    let records = testing::records(&edge.local, "telemetry").await;
    let lines: Vec<String> = records
        .iter()
        .map(|(_, r)| {
            let header = &r.headers[0];
            format!(
                "{} key {} {} {}={}",
                r.offset,
                testing::text(r.key.as_ref()),
                testing::text(r.value.as_ref()),
                testing::text(Some(&header.key)),
                testing::text(header.value.as_ref())
            )
        })
        .collect();
    expect![[r#"
        [
            "0 key m1 {\"machine\":\"m1\",\"seq\":1} mqtt.topic=telemetry/m1",
            "1 key m1 {\"machine\":\"m1\",\"seq\":2} mqtt.topic=telemetry/m1",
            "2 key m1 {\"machine\":\"m1\",\"seq\":3} mqtt.topic=telemetry/m1",
        ]
    "#]]
    .assert_debug_eq(&lines);
    assert!(records.iter().all(|(_, r)| r.timestamp_ms == edge.local.now().0 as i64), "arrival at the edge");
}

#[tokio::test]
async fn nothing_is_acknowledged_before_the_commit() {
    let local = Local::new();
    testing::topics(&local);
    let gate = testing::Gate::new(local.clone());
    let ingest = Ingest::new(Deps { ledger: gate.clone(), ..testing::deps(&local) }, crate::ingest::Options::default());
    tokio::spawn(ingest.clone().run());
    let edge = Edge { local, broker: Broker::new(ingest, Options::default()) };
    let mut client = edge.connected("dev").await;
    client.send(&reading("m1", 1, Some(1))).await;
    let (_, go) = gate.next().await;
    client.send(&reading("m1", 2, Some(2))).await;
    client.send(&Packet::Pingreq).await;
    assert_eq!(client.next().await, Some(Packet::Pingresp), "the session goes on while the commit is awaited");
    assert_eq!(edge.broker.counters.pubacks.load(Relaxed), 0);
    go.send(()).expect("the submission waits");
    assert_eq!(client.next().await, Some(Packet::Puback { packet_id: 1 }));
    let (_, go) = gate.next().await;
    go.send(()).expect("the submission waits");
    assert_eq!(client.next().await, Some(Packet::Puback { packet_id: 2 }));
}

#[tokio::test]
async fn refusals_close_after_what_was_earned() {
    let edge = Edge::new();
    check(
        &edge,
        &[reading("m1", 1, Some(1)), reading("m1", 5, Some(2)), reading("m1", 6, Some(3))],
        expect![[r#"
            Connack { session_present: false, code: Accepted }
            Puback { packet_id: 1 }
            closed
        "#]],
    )
    .await;
    // The client comes back and resends in order: nothing is lost, nothing twice.
    check(
        &edge,
        &[reading("m1", 1, Some(1)), reading("m1", 2, Some(2)), Packet::Disconnect],
        expect![[r#"
            Connack { session_present: false, code: Accepted }
            closed
        "#]],
    )
    .await;
    while testing::records(&edge.local, "telemetry").await.len() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(testing::records(&edge.local, "telemetry").await.len(), 2);
    for (packet, why) in [
        (publish("nowhere/m1", "{}", Some(1)), "an unknown topic would be acknowledged"),
        (publish("telemetry/m1", "not json", Some(1)), "a body without a sequence"),
        (publish("telemetry/m1", r#"{"machine":"m1"}"#, None), "a body without a number, even at QoS 0"),
        (Packet::Pubrel { packet_id: 1 }, "QoS 2 without a message"),
        (connect("dev", 0, None), "a second CONNECT"),
        (Packet::Pingresp, "a packet for servers"),
    ] {
        let mut client = edge.connected("other").await;
        client.send(&packet).await;
        assert_eq!(client.rest().await, "closed\n", "{why}");
    }
    let mut client = edge.connected("exact").await;
    let mut out = BytesMut::new();
    Publish {
        dup: false,
        qos: Qos::ExactlyOnce,
        retain: false,
        topic: TopicName::try_from("alerts/a").expect("valid"),
        packet_id: Some(1),
        payload: Bytes::new(),
    }
    .encode(&mut out);
    client.raw(&out).await;
    assert_eq!(client.rest().await, "closed\n");
    assert_eq!(edge.broker.counters.sessions.load(Relaxed), 0);
}

#[tokio::test]
async fn qos_0_to_nowhere_is_dropped_and_counted() {
    let edge = Edge::new();
    let mut client = edge.connected("dev").await;
    client.send(&publish("nowhere/m1", "x", None)).await;
    client.send(&publish("alerts/m1", "x", None)).await;
    client.send(&publish("alerts/m1", "y", Some(9))).await;
    assert_eq!(client.next().await, Some(Packet::Puback { packet_id: 9 }), "and the session goes on");
    assert_eq!(edge.broker.counters.dropped.load(Relaxed), 1);
    assert_eq!(testing::records(&edge.local, "alerts").await.len(), 2);
}

#[tokio::test]
async fn a_failed_commit_closes_and_the_resend_is_deduplicated() {
    let edge = Edge::new();
    let mut client = edge.connected("dev").await;
    edge.local.fail_next(Fault::Unanswered(Error::new(Code::TIMEOUT, "no answer")));
    client.send(&reading("m1", 1, Some(1))).await;
    assert_eq!(client.rest().await, "closed\n");
    let mut client = edge.connected("dev").await;
    client.send(&reading("m1", 1, Some(1))).await;
    assert_eq!(client.next().await, Some(Packet::Puback { packet_id: 1 }));
    assert_eq!(testing::records(&edge.local, "telemetry").await.len(), 1);
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let edge = Edge::with(Options { packet_bytes_max: 1024, ..Options::default() });
    for (bytes, answer) in [
        // MQTT 5, then 3.1.
        (&b"\x10\x0f\0\x04MQTT\x05\x02\0\x3c\0\0\x02m1"[..], &[0x20, 3, 0, 0x84, 0][..]),
        (b"\x10\x10\0\x06MQIsdp\x03\x02\0\x3c\0\x02m1", &[0x20, 2, 0, 1]),
        // No client id without a clean session.
        (b"\x10\x0c\0\x04MQTT\x04\0\0\0\0\0", &[0x20, 2, 0, 2]),
        (b"GET / HTTP/1.1\r\n\r\n", &[]),
        (b"\xc0\0", &[]),
        (b"\x30\xff\xff\xff\x7f", &[]),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", &[]),
    ] {
        let mut client = edge.pipe(1024);
        client.raw(bytes).await;
        let mut got = Vec::new();
        client.io.read_to_end(&mut got).await.expect("closed");
        assert_eq!(got, answer, "{}", bytes.escape_ascii());
    }
    let mut client = edge.connected("big").await;
    client.raw(b"\x30\xff\xff\xff\x7f").await;
    assert_eq!(client.rest().await, "closed\n", "an oversized packet is refused by its length");
    assert_eq!(edge.broker.counters.refused.load(Relaxed), 8);
}

#[tokio::test]
async fn an_empty_client_id_gets_one() {
    let edge = Edge::new();
    let (mut one, mut two) = (edge.pipe(1024), edge.pipe(1024));
    for client in [&mut one, &mut two] {
        client.send(&connect("", 0, None)).await;
        assert!(matches!(client.next().await, Some(Packet::Connack { code: mqtt::ConnectCode::Accepted, .. })));
    }
    assert_eq!(edge.broker.counters.sessions.load(Relaxed), 2, "they do not take each other over");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_after_one_and_a_half_keep_alives() {
    let edge = Edge::new();
    let started = tokio::time::Instant::now();
    let mut client = edge.pipe(1024);
    client.send(&connect("dev", 10, None)).await;
    client.next().await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    client.send(&Packet::Pingreq).await;
    assert_eq!(client.next().await, Some(Packet::Pingresp));
    assert_eq!(client.rest().await, "closed\n");
    let lasted = started.elapsed().as_secs_f64();
    assert!((24.0..24.5).contains(&lasted), "{lasted}");
}

#[tokio::test(start_paused = true)]
async fn slow_frames_do_not_hold_a_connection() {
    let edge = Edge::new();
    // A CONNECT that never ends.
    let started = tokio::time::Instant::now();
    let mut client = edge.pipe(1024);
    client.raw(b"\x10\x0f\0").await;
    assert_eq!(client.rest().await, "closed\n");
    assert!((10.0..10.5).contains(&started.elapsed().as_secs_f64()));
    // A PUBLISH that trickles, without keep-alive: each byte does not buy another thirty seconds.
    let mut client = edge.connected("dev").await;
    let started = tokio::time::Instant::now();
    let task = client.task.take().expect("serving");
    client.raw(b"\x30\x7f\0\x08alerts/a").await;
    while !task.is_finished() {
        tokio::time::sleep(Duration::from_secs(5)).await;
        if client.io.write_all(b"x").await.is_err() {
            break;
        }
    }
    assert!((30.0..36.0).contains(&started.elapsed().as_secs_f64()), "{:?}", started.elapsed());
    // A client without keep-alive that has nothing to say stays.
    let mut idle = edge.connected("idle").await;
    tokio::time::sleep(Duration::from_secs(100_000)).await;
    idle.send(&Packet::Pingreq).await;
    assert_eq!(idle.next().await, Some(Packet::Pingresp));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_closed() {
    let edge = Edge::new();
    let mut client = edge.pipe(64);
    let started = tokio::time::Instant::now();
    client.send(&connect("dev", 0, None)).await;
    let task = client.task.take().expect("serving");
    // Forty answers of two bytes do not fit into the pipe of 64, and nobody reads them.
    for _ in 0..40 {
        client.send(&Packet::Pingreq).await;
    }
    task.await.expect("no panic");
    assert!(started.elapsed() >= Duration::from_secs(30), "{:?}", started.elapsed());
}

#[tokio::test]
async fn the_newer_connection_takes_the_session_over() {
    let edge = Edge::new();
    let mut old = edge.connected("dev").await;
    let mut new = edge.connected("dev").await;
    assert_eq!(old.rest().await, "closed\n");
    new.send(&reading("m1", 1, Some(1))).await;
    assert_eq!(new.next().await, Some(Packet::Puback { packet_id: 1 }));
    old.task.take().expect("serving").await.expect("no panic");
    assert_eq!(edge.broker.counters.sessions.load(Relaxed), 1);
}

#[tokio::test]
async fn a_will_is_published_unless_the_client_says_goodbye() {
    let edge = Edge::new();
    let will = || {
        Some(Will {
            topic: TopicName::try_from("alerts/dev").expect("valid"),
            payload: Bytes::from_static(b"gone"),
            qos: Qos::AtLeastOnce,
            retain: false,
        })
    };
    let mut polite = edge.pipe(1024);
    polite.send(&connect("polite", 0, will())).await;
    polite.send(&Packet::Disconnect).await;
    polite.rest().await;
    polite.task.take().expect("serving").await.expect("no panic");
    assert_eq!(testing::records(&edge.local, "alerts").await.len(), 0);

    let mut cut = edge.pipe(1024);
    cut.send(&connect("cut", 0, will())).await;
    cut.next().await;
    let task = cut.task.take().expect("serving");
    drop(cut);
    task.await.expect("no panic");
    let records = testing::records(&edge.local, "alerts").await;
    assert_eq!(records.len(), 1);
    assert_eq!(testing::text(records[0].1.value.as_ref()), "gone");
    assert_eq!(testing::text(records[0].1.key.as_ref()), "dev");
}

#[tokio::test]
async fn subscribers_get_what_is_new_and_matches() {
    let edge = Edge::new();
    let mut dev = edge.connected("dev").await;
    dev.send(&publish("alerts/old", "before", Some(1))).await;
    dev.next().await;

    let mut sub = edge.connected("sub").await;
    let filters = [("alerts/+", Qos::ExactlyOnce), ("alerts/#", Qos::AtMostOnce), ("$share/g/alerts", Qos::AtMostOnce)];
    sub.send(&subscribe(1, &filters)).await;
    let granted = vec![Some(Qos::AtLeastOnce), Some(Qos::AtMostOnce), None];
    assert_eq!(sub.next().await, Some(Packet::Suback { packet_id: 1, granted }));
    let mut other = edge.connected("other").await;
    other.send(&subscribe(1, &[("telemetry/+", Qos::AtMostOnce)])).await;
    other.next().await;

    dev.send(&publish("alerts/new", "after", Some(2))).await;
    dev.send(&publish("alerts/a/deep", "deep", Some(3))).await;
    dev.send(&reading("m1", 1, Some(4))).await;
    // Partitions have no order between them.
    let mut got = vec![
        format!("{:?}", sub.next().await.expect("a message")),
        format!("{:?}", sub.next().await.expect("a message")),
    ];
    got.sort();
    assert_eq!(got, [r#"Publish(alerts/a/deep "deep" qos 0)"#, r#"Publish(alerts/new "after" qos 1 id 1)"#]);
    assert_eq!(
        format!("{:?}", other.next().await.expect("a message")),
        r#"Publish(telemetry/m1 "{\"machine\":\"m1\",\"seq\":1}" qos 0)"#
    );

    // After UNSUBSCRIBE of one of two filters the other still holds.
    let filters = vec![Filter::try_from("alerts/+").expect("valid")];
    sub.send(&Packet::Unsubscribe { packet_id: 2, filters }).await;
    assert_eq!(sub.next().await, Some(Packet::Unsuback { packet_id: 2 }));
    dev.send(&publish("alerts/new", "again", Some(5))).await;
    assert_eq!(format!("{:?}", sub.next().await.expect("a message")), "Publish(alerts/new \"again\" qos 0)");
}

#[tokio::test]
async fn records_from_elsewhere_are_delivered_under_their_key() {
    let edge = Edge::new();
    let mut sub = edge.connected("sub").await;
    sub.send(&subscribe(1, &[("#", Qos::AtLeastOnce)])).await;
    sub.next().await;
    let http = crate::http::EventsHttp::new(edge.broker.ingest.clone(), crate::http::Options::default());
    let body = r#"{"records":[{"key":"hall/3","value":{"x":1}}]}"#;
    let request = ::http::Request::post("/topics/alerts")
        .header("content-type", "application/vnd.kafka.json.v2+json")
        .body(Bytes::from_static(body.as_bytes()))
        .expect("a request");
    http.route(request).await.expect("ours");
    assert_eq!(
        format!("{:?}", sub.next().await.expect("a message")),
        r#"Publish(alerts/hall/3 "{\"x\":1}" qos 1 id 1)"#
    );
}

#[tokio::test(start_paused = true)]
async fn a_topic_made_later_is_followed_from_its_start_and_left_when_nobody_listens() {
    let edge = Edge::new();
    let watch = tokio::spawn(edge.broker.hub.clone().watch_topics());
    let mut sub = edge.connected("sub").await;
    sub.send(&subscribe(1, &[("later/#", Qos::AtMostOnce)])).await;
    sub.next().await;
    edge.local.create_topic("later", 1, TopicSettings::default());
    let mut dev = edge.connected("dev").await;
    dev.send(&publish("later/a", "first", Some(1))).await;
    dev.next().await;
    assert_eq!(format!("{:?}", sub.next().await.expect("a message")), "Publish(later/a \"first\" qos 0)");
    assert_eq!(edge.broker.hub.tailed().len(), 1);
    sub.send(&Packet::Disconnect).await;
    sub.rest().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(edge.broker.hub.tailed(), []);
    watch.abort();
}

#[tokio::test]
async fn a_deleted_topic_ends_its_tailers() {
    let edge = Edge::new();
    let mut sub = edge.connected("sub").await;
    sub.send(&subscribe(1, &[("alerts/#", Qos::AtMostOnce)])).await;
    sub.next().await;
    assert_eq!(edge.broker.hub.tailed().len(), 2);
    let delete = TopicChange::Delete { name: "alerts".into() };
    assert!(edge.local.apply(Entry { topics: vec![delete], ..Entry::default() }).result.is_ok());
    while !edge.broker.hub.tailed().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_tailer_that_retention_overtook_goes_on_at_what_is_left() {
    let edge = Edge::new();
    let log = edge.local.create_topic("short", 1, TopicSettings::default())[0];
    let mut sub = edge.connected("sub").await;
    sub.send(&subscribe(1, &[("short/#", Qos::AtMostOnce)])).await;
    sub.next().await;
    // All in one go, before the tailer runs: ten records, of which nine are trimmed at once.
    let mut builder = buttress_wire::records::Builder::new();
    for n in 0..10 {
        builder.push(1, Some(b"a"), Some(n.to_string().as_bytes()), &[]);
        let batch = std::mem::take(&mut builder).build().expect("a record was pushed");
        let append = Append { log, records: 1, max_timestamp_ms: 1, sequence: None, batch };
        assert!(edge.local.apply(Entry { appends: vec![append], ..Entry::default() }).result.is_ok());
    }
    let trim = TopicChange::Trim { log, before: Offset(9) };
    assert!(edge.local.apply(Entry { topics: vec![trim], ..Entry::default() }).result.is_ok());
    assert_eq!(format!("{:?}", sub.next().await.expect("a message")), r#"Publish(short/a "9" qos 0)"#);
}

#[tokio::test]
async fn a_slow_subscriber_is_disconnected_and_others_are_not() {
    let edge = Edge::with(Options { outbox_messages_max: 10, in_flight_max: 2, ..Options::default() });
    let mut slow = edge.connected("slow").await;
    slow.send(&subscribe(1, &[("alerts/#", Qos::AtLeastOnce)])).await;
    slow.next().await;
    let mut fast = edge.connected("fast").await;
    fast.send(&subscribe(1, &[("alerts/#", Qos::AtLeastOnce)])).await;
    fast.next().await;
    let mut dev = edge.connected("dev").await;
    let mut delivered = 0;
    for n in 1..=20u16 {
        dev.send(&publish("alerts/a", &n.to_string(), Some(n))).await;
        assert_eq!(dev.next().await, Some(Packet::Puback { packet_id: n }));
        let Some(Packet::Publish(message)) = fast.next().await else { panic!("fast gets every message") };
        assert_eq!(message.payload, n.to_string());
        fast.send(&Packet::Puback { packet_id: message.packet_id.expect("qos 1") }).await;
        delivered += 1;
    }
    assert_eq!(delivered, 20);
    // Two in flight that were never acknowledged, ten queued, then no more.
    expect![[r#"
        Publish(alerts/a "1" qos 1 id 1)
        Publish(alerts/a "2" qos 1 id 2)
        closed
    "#]]
    .assert_eq(&slow.rest().await);
    assert_eq!(edge.broker.counters.slow_subscribers.load(Relaxed), 1);
}

#[tokio::test]
async fn rules_map_names_to_topics() {
    let rules = Rules::new(vec![Rule::new("plant/+/state", "telemetry", KeyFrom::Level(1)).expect("valid")]);
    let edge = Edge::with(Options { rules, ..Options::default() });
    let mut sub = edge.connected("sub").await;
    sub.send(&subscribe(1, &[("plant/#", Qos::AtMostOnce)])).await;
    sub.next().await;
    let mut dev = edge.connected("dev").await;
    dev.send(&publish("plant/m7/state", r#"{"machine":"m7","seq":1}"#, Some(1))).await;
    dev.next().await;
    assert_eq!(
        format!("{:?}", sub.next().await.expect("a message")),
        r#"Publish(plant/m7/state "{\"machine\":\"m7\",\"seq\":1}" qos 0)"#
    );
    let records = testing::records(&edge.local, "telemetry").await;
    assert_eq!(records[0].1.key.as_deref(), Some(&b"m7"[..]));
}

#[tokio::test]
async fn a_window_full_of_publishes_is_answered_to_the_last() {
    let edge = Edge::with(Options { unanswered_max: 4, ..Options::default() });
    let mut client = edge.connected("dev").await;
    let mut out = BytesMut::new();
    for n in 1..=500u16 {
        reading("m1", n.into(), Some(n)).encode(&mut out);
    }
    client.raw(&out).await;
    for n in 1..=500u16 {
        assert_eq!(client.next().await, Some(Packet::Puback { packet_id: n }));
    }
}

#[tokio::test]
async fn garbage_after_connect_never_panics() {
    let edge = Edge::new();
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    for _ in 0..200 {
        let mut client = edge.connected("dev").await;
        let garbage: Vec<u8> = (0..64)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed as u8
            })
            .collect();
        // The edge may have closed by the time the rest comes.
        let _ = client.io.write_all(&garbage).await;
        let task = client.task.take().expect("serving");
        drop(client);
        task.await.expect("no panic");
    }
    assert_eq!(edge.broker.counters.sessions.load(Relaxed), 0);
}

/// The edge on a real socket.
async fn loopback() -> (Edge, u16, JoinHandle<()>) {
    let edge = Edge::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let server = tokio::spawn(edge.broker.clone().serve(listener));
    (edge, port, server)
}

#[tokio::test]
async fn a_stock_client_publishes_and_subscribes() {
    let (edge, port, server) = loopback().await;
    let options = |id: &str| {
        let mut options = rumqttc::MqttOptions::new(id, "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(5));
        options
    };
    let (subscriber, mut events) = rumqttc::AsyncClient::new(options("sub"), 100);
    subscriber.subscribe("telemetry/+", rumqttc::QoS::AtLeastOnce).await.expect("queued");
    loop {
        if let rumqttc::Event::Incoming(rumqttc::Packet::SubAck(ack)) = events.poll().await.expect("connected") {
            assert_eq!(ack.return_codes, [rumqttc::SubscribeReasonCode::Success(rumqttc::QoS::AtLeastOnce)]);
            break;
        }
    }
    let (publisher, mut acks) = rumqttc::AsyncClient::new(options("pub"), 100);
    let sender = tokio::spawn(async move {
        for seq in 0..200 {
            let body = format!(r#"{{"machine":"m{}","seq":{}}}"#, seq % 10, seq / 10);
            let topic = format!("telemetry/m{}", seq % 10);
            publisher.publish(topic, rumqttc::QoS::AtLeastOnce, false, body).await.expect("queued");
        }
    });
    let acked = tokio::spawn(async move {
        let mut count = 0;
        while count < 200 {
            if let rumqttc::Event::Incoming(rumqttc::Packet::PubAck(_)) = acks.poll().await.expect("connected") {
                count += 1;
            }
        }
    });
    let mut per_machine = std::collections::BTreeMap::<String, Vec<i64>>::new();
    let mut count = 0;
    while count < 200 {
        if let rumqttc::Event::Incoming(rumqttc::Packet::Publish(message)) = events.poll().await.expect("connected") {
            let body: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
            let machine = body["machine"].as_str().expect("a name").to_owned();
            assert_eq!(message.topic, format!("telemetry/{machine}"));
            per_machine.entry(machine).or_default().push(body["seq"].as_i64().expect("a number"));
            count += 1;
        }
    }
    assert!(per_machine.values().all(|seqs| *seqs == (0..20).collect::<Vec<_>>()), "in order: {per_machine:?}");
    sender.await.expect("no panic");
    acked.await.expect("no panic");
    assert_eq!(testing::records(&edge.local, "telemetry").await.len(), 200);
    server.abort();
}

#[tokio::test]
async fn stopping_closes_every_connection() {
    let (edge, port, server) = loopback().await;
    let mut clients = Vec::new();
    for n in 0..20 {
        let io = TcpStream::connect(("127.0.0.1", port)).await.expect("accepted");
        let mut client = Client { io, input: BytesMut::new(), task: None };
        client.send(&connect(&format!("c{n}"), 0, None)).await;
        client.send(&subscribe(1, &[("#", Qos::AtMostOnce)])).await;
        client.next().await;
        client.next().await;
        clients.push(client);
    }
    assert_eq!(edge.broker.counters.sessions.load(Relaxed), 20);
    server.abort();
    for client in &mut clients {
        assert_eq!(client.rest().await, "closed\n");
    }
    assert_eq!(edge.broker.counters.sessions.load(Relaxed), 0);
    assert_eq!(edge.broker.hub.tailed(), []);
}

#[tokio::test]
async fn counters_print_as_prometheus_text() {
    let edge = Edge::new();
    let mut client = edge.connected("dev").await;
    client.send(&reading("m1", 1, Some(1))).await;
    client.next().await;
    let mut out = String::new();
    edge.broker.counters().prometheus(&mut out);
    edge.broker.ingest.counters().prometheus(&mut out);
    for line in [
        "buttress_events_mqtt_sessions 1",
        "buttress_events_mqtt_publishes_total 1",
        "buttress_events_mqtt_pubacks_total 1",
        "buttress_events_ingest_appended_total 1",
        "buttress_events_ingest_entry_records_bucket{le=\"1\"} 1",
        "buttress_events_ingest_entry_records_bucket{le=\"+Inf\"} 1",
    ] {
        assert!(out.lines().any(|l| l == line), "{line} in\n{out}");
    }
}
