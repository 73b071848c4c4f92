//! What is asked and what is answered, as text. Fields with their default are left out.

use buttress_core::{Error, Machine, NodeId, entry::TopicSettings};
use buttress_events::kafka::Options;
use buttress_state::local::Fault;
use buttress_wire::{
    kafka::{
        ErrorCode, Uuid, api_versions::*, create_topics::*, delete_topics::*, fetch::*, find_coordinator::*,
        init_producer_id::*, list_offsets::*, metadata::*, produce::*,
    },
    records::{BatchView, Producer},
};
use bytes::Bytes;
use expect_test::expect;

use crate::support::{Client, Edge, NOW, batch, batch_from, produce};

fn topics(names: &[&str]) -> Option<Vec<MetadataRequestTopic>> {
    Some(names.iter().map(|n| MetadataRequestTopic { name: Some((*n).into()), ..Default::default() }).collect())
}

/// The address differs from run to run.
fn text(edge: &Edge, answer: &impl std::fmt::Debug) -> String {
    let port = edge.address.rsplit(':').next().unwrap().to_owned();
    format!("{answer:?}").replace(&port, "PORT").replace("Response", "")
}

#[tokio::test]
async fn api_versions() {
    let edge = Edge::start().await;
    let mut client = edge.client().await;
    let answer: ApiVersionsResponse = client.ask(0, &ApiVersionsRequest::default()).await;
    expect!["0:0-13 1:4-12 2:1-10 3:0-13 8:2-9 9:1-9 10:0-6 11:0-9 12:0-4 13:0-5 14:0-5 15:0-6 16:0-5 17:0-1 18:0-4 19:2-7 20:1-6 21:0-2 22:0-5 23:2-4 32:1-4 33:0-2 36:0-2 37:0-3 42:0-2 44:0-1 47:0-0 60:0-2"].assert_eq(
        &answer
            .api_keys
            .iter()
            .map(|api| format!("{}:{}-{}", api.api_key, api.min_version, api.max_version))
            .collect::<Vec<_>>()
            .join(" "),
    );
    let named = ApiVersionsRequest { client_software_name: "t".into(), client_software_version: "1".into() };
    for version in 3..=4 {
        let again: ApiVersionsResponse = client.ask(version, &named).await;
        assert_eq!(again, answer);
    }
    let nameless: ApiVersionsResponse = client.ask(3, &ApiVersionsRequest::default()).await;
    assert_eq!(nameless.error_code, ErrorCode::INVALID_REQUEST);

    // A version from the future is answered in version 0, and the connection lives on.
    client.raw(b"\0\0\0\x0c\0\x12\0\x63\0\0\x12\x34\0\0\0\0").await;
    let (id, old): (_, ApiVersionsResponse) = client.receive(0).await;
    assert_eq!((id, old.error_code), (0x1234, ErrorCode::UNSUPPORTED_VERSION));
    assert_eq!(old.api_keys, answer.api_keys);
    let _: ApiVersionsResponse = client.ask(0, &ApiVersionsRequest::default()).await;
    edge.stop().await;
}

#[tokio::test]
async fn metadata() {
    let edge = Edge::with(Options { default_partitions: 2, ..Options::default() }).await;
    let mut client = edge.client().await;
    let ask = MetadataRequest { topics: topics(&["plant"]), allow_auto_topic_creation: false, ..Default::default() };
    let answer: MetadataResponse = client.ask(4, &ask).await;
    expect![[r#"Metadata { brokers: [MetadataBroker { node_id: 1, host: "127.0.0.1", port: PORT }], cluster_id: Some("local"), controller_id: 1, topics: [MetadataTopic { error_code: UNKNOWN_TOPIC_OR_PARTITION, name: Some("plant") }] }"#]].assert_eq(&text(&edge, &answer));

    let ask = MetadataRequest { topics: topics(&["plant", "no spaces", ""]), ..Default::default() };
    let answer: MetadataResponse = client.ask(1, &ask).await;
    expect![[r#"[MetadataTopic { name: Some("plant"), partitions: [MetadataPartition { leader_id: 1, replica_nodes: [1], isr_nodes: [1] }, MetadataPartition { partition_index: 1, leader_id: 1, replica_nodes: [1], isr_nodes: [1] }] }, MetadataTopic { error_code: INVALID_TOPIC_EXCEPTION, name: Some("no spaces") }, MetadataTopic { error_code: INVALID_TOPIC_EXCEPTION, name: Some("") }]"#]].assert_eq(&text(&edge, &answer.topics));

    // Version 0 knows no null: an empty list means all. Later it means none.
    let none = MetadataRequest { topics: Some(vec![]), ..Default::default() };
    let all: MetadataResponse = client.ask(0, &none).await;
    assert_eq!(all.topics.len(), 1);
    let none: MetadataResponse = client.ask(1, &none).await;
    assert_eq!(none.topics.len(), 0);

    // By id.
    let all: MetadataResponse = client.ask(12, &MetadataRequest::default()).await;
    let id = all.topics[0].topic_id;
    assert!(!id.is_nil());
    let by_id = |id| MetadataRequestTopic { topic_id: id, name: None };
    let ids = Some(vec![by_id(id), by_id(Uuid::default()), by_id(Uuid([9; 16]))]);
    let answer: MetadataResponse = client.ask(13, &MetadataRequest { topics: ids, ..Default::default() }).await;
    let found: Vec<_> = answer.topics.iter().map(|t| (t.name.as_deref(), t.error_code)).collect();
    let unknown = (None, ErrorCode::UNKNOWN_TOPIC_ID);
    assert_eq!(found, [(Some("plant"), ErrorCode::NONE), unknown, unknown]);
    edge.stop().await;

    let edge = Edge::with(Options { auto_create_topics: false, ..Options::default() }).await;
    let mut client = edge.client().await;
    let ask = MetadataRequest { topics: topics(&["plant"]), ..Default::default() };
    let answer: MetadataResponse = client.ask(4, &ask).await;
    assert_eq!(answer.topics[0].error_code, ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
    edge.local.elect(None);
    edge.local.create_topic("plant", 1, TopicSettings::default());
    let answer: MetadataResponse = client.ask(4, &ask).await;
    assert_eq!(answer.topics[0].partitions[0].error_code, ErrorCode::LEADER_NOT_AVAILABLE);
    assert_eq!((answer.controller_id, answer.topics[0].partitions[0].leader_id), (-1, -1));
    edge.stop().await;
}

async fn produced(client: &mut Client, version: i16, request: &ProduceRequest) -> String {
    let answer: ProduceResponse = client.ask(version, request).await;
    let partitions = answer.responses.iter().flat_map(|t| &t.partition_responses);
    let line = |p: &ProducePartitionResponse| match &p.error_message {
        None => format!("{} {} at {}", p.index, p.error_code, p.base_offset),
        Some(message) => format!("{} {} at {}: {message}", p.index, p.error_code, p.base_offset),
    };
    partitions.map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn produce_in_every_version() {
    let edge = Edge::start().await;
    edge.local.create_topic("plant", 2, TopicSettings::default());
    let id = Uuid(edge.local.with(|machine| machine.topic("plant")).unwrap().id);
    let mut client = edge.client().await;
    for (at, version) in (3..=12).enumerate() {
        let request = produce("plant", vec![(0, batch(&["a", "b"])), (1, batch(&["c"]))]);
        let answer = produced(&mut client, version, &request).await;
        assert_eq!(answer, format!("0 NONE at {}\n1 NONE at {at}", 2 * at), "version {version}");
    }
    let mut request = produce("", vec![(0, batch(&["d"]))]);
    request.topic_data[0].topic_id = id;
    assert_eq!(produced(&mut client, 13, &request).await, "0 NONE at 20");
    request.topic_data[0].topic_id = Uuid::default();
    assert_eq!(produced(&mut client, 13, &request).await, "0 UNKNOWN_TOPIC_ID at -1");
    for version in 0..=2 {
        let answer = produced(&mut client, version, &produce("plant", vec![(0, batch(&["a"]))])).await;
        assert_eq!(answer, "0 UNSUPPORTED_VERSION at -1");
    }
    // One entry for all partitions of a request: eleven that appended, after the topic's.
    assert_eq!(edge.local.with(|machine| Machine::applied(machine).0.0), 12);
    assert_eq!(edge.count("buttress_events_kafka_records_in_total", "plant"), 31);
    edge.stop().await;
}

fn sealed(mut batch: Vec<u8>) -> Bytes {
    let crc = crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch.into()
}

/// Bit by bit, to be independent of the one under test.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[tokio::test]
async fn produce_refuses_what_is_wrong_and_takes_the_rest() {
    let edge = Edge::with(Options { message_bytes_max: 10_000, ..Options::default() }).await;
    edge.local.create_topic("plant", 20, TopicSettings::default());
    let mut client = edge.client().await;
    let good = batch(&["good"]);
    let with = |at: usize, value: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = value;
        sealed(bytes)
    };
    let mut crc = good.to_vec();
    crc[65] ^= 1;
    let request = produce(
        "plant",
        vec![
            (0, good.clone()),
            (1, crc.into()),
            (2, with(16, 1)),
            (3, with(16, 0)),
            (4, Bytes::new()),
            (5, [good.clone(), good.clone()].concat().into()),
            (6, batch(&[&"x".repeat(10_000)])),
            (7, with(60, 200)),
            (8, with(61, 0x7e)),
            (9, with(22, 0x20)),
            (10, with(22, 0x10)),
            (11, with(22, 0x08)),
            (12, with(22, 7)),
            (13, batch_from(None, NOW as i64 + 3_600_001, &["late"])),
            (14, batch_from(Some(Producer { id: 1, epoch: -1, base_sequence: -1 }), NOW as i64, &["no sequence"])),
            (15, good.slice(..good.len() - 1)),
            (99, good.clone()),
            (-1, good.clone()),
            (16, good.clone()),
        ],
    );
    expect![[r#"
        0 NONE at 0
        1 CORRUPT_MESSAGE at -1: record batch has CRC32C c1b119d1 where a9b23519 is stated [BT0304]
        2 INVALID_RECORD at -1: record batch has magic 1, only 2 is accepted [BT0304]

        hint: use a client that speaks Kafka 0.11 or newer
        3 INVALID_RECORD at -1: record batch has magic 0, only 2 is accepted [BT0304]

        hint: use a client that speaks Kafka 0.11 or newer
        4 INVALID_RECORD at -1: there is no record batch [BT0304]
        5 INVALID_RECORD at -1: 2 batches for one partition, exactly one is allowed
        6 MESSAGE_TOO_LARGE at -1: the batch is 10072 bytes, more than message_bytes_max of 10000
        7 INVALID_RECORD at -1: record batch states 200 records (last offset delta 0), which 11 bytes cannot hold [BT0304]
        8 INVALID_RECORD at -1: record 0 is malformed: its length [BT0304]
        9 INVALID_RECORD at -1: clients may not write control batches
        10 INVALID_RECORD at -1: transactions are not served yet
        11 INVALID_TIMESTAMP at -1: clients may not set the timestamp type LogAppendTime
        12 UNSUPPORTED_COMPRESSION_TYPE at -1: there is no codec 7
        13 INVALID_TIMESTAMP at -1: timestamp 1700003600001 is too far ahead of the clock, latest is 1700003600000
        14 INVALID_RECORD at -1: a producer id without epoch or sequence
        15 INVALID_RECORD at -1: record batch states a length of 60 bytes where 59 are there [BT0304]
        99 UNKNOWN_TOPIC_OR_PARTITION at -1
        -1 UNKNOWN_TOPIC_OR_PARTITION at -1
        16 NONE at 0"#]].assert_eq(&produced(&mut client, 9, &request).await);
    let unknown = produce("other", vec![(0, good.clone())]);
    expect!["0 UNKNOWN_TOPIC_OR_PARTITION at -1"].assert_eq(&produced(&mut client, 9, &unknown).await);
    let acks = ProduceRequest { acks: 2, ..produce("plant", vec![(0, good.clone())]) };
    expect!["0 INVALID_REQUIRED_ACKS at -1: acks is 2, not -1, 0 or 1"]
        .assert_eq(&produced(&mut client, 9, &acks).await);
    let transaction = ProduceRequest { transactional_id: Some("t".into()), ..produce("plant", vec![(0, good)]) };
    expect!["0 TRANSACTIONAL_ID_AUTHORIZATION_FAILED at -1: transactions are not served yet; produce without a transactional id"].assert_eq(&produced(&mut client, 9, &transaction).await);
    edge.stop().await;
}

#[tokio::test]
async fn produce_tells_the_ledgers_failures() {
    let edge = Edge::start().await;
    edge.local.create_topic("plant", 1, TopicSettings::default());
    let mut client = edge.client().await;
    let request = produce("plant", vec![(0, batch(&["a"]))]);
    let timeout = Error::new(buttress_core::Code::TIMEOUT, "no quorum");
    edge.local.fail_next(Fault::Lost(timeout.clone()));
    expect!["0 REQUEST_TIMED_OUT at -1: no quorum [BT0102]"].assert_eq(&produced(&mut client, 9, &request).await);
    edge.local.fail_next(Fault::Lost(Error::new(buttress_core::Code::NO_LEADER, "no leader")));
    expect!["0 NOT_LEADER_OR_FOLLOWER at -1: no leader [BT0101]"].assert_eq(&produced(&mut client, 9, &request).await);

    // The outcome was unknown to an idempotent producer; its retry is a duplicate and tells the first offset.
    let producer = Producer { id: 7, epoch: 0, base_sequence: 0 };
    let request = produce("plant", vec![(0, batch_from(Some(producer), NOW as i64, &["once", "only"]))]);
    edge.local.fail_next(Fault::Unanswered(timeout));
    expect!["0 REQUEST_TIMED_OUT at -1: no quorum [BT0102]"].assert_eq(&produced(&mut client, 9, &request).await);
    expect!["0 NONE at 0"].assert_eq(&produced(&mut client, 9, &request).await);
    assert_eq!(edge.count("buttress_events_kafka_records_in_total", "plant"), 0, "a duplicate is not counted");

    // Not the leader: the answer names who is.
    edge.local.elect(Some(NodeId(3)));
    let answer: ProduceResponse = client.ask(10, &request).await;
    expect![[r#"Produce { responses: [ProduceTopic { name: "plant", partition_responses: [ProducePartition { error_code: NOT_LEADER_OR_FOLLOWER, current_leader: LeaderIdAndEpoch { leader_id: 3, leader_epoch: 2 } }] }] }"#]].assert_eq(&text(&edge, &answer));
    edge.stop().await;
}

#[tokio::test]
async fn idempotent_producers() {
    let edge = Edge::start().await;
    edge.local.create_topic("plant", 1, TopicSettings::default());
    let mut client = edge.client().await;
    // Every request gets an id of its own, on every version, and after a restart as well.
    let mut ids = Vec::new();
    for version in 0..=5 {
        let answer: InitProducerIdResponse = client.ask(version, &InitProducerIdRequest::default()).await;
        assert_eq!((answer.error_code, answer.producer_epoch), (ErrorCode::NONE, 0));
        ids.push(answer.producer_id);
    }
    assert_eq!(ids, [0, 1, 2, 3, 4, 5]);
    let other = Edge::over(edge.local.clone(), |deps| deps).await;
    let answer: InitProducerIdResponse = other.client().await.ask(4, &InitProducerIdRequest::default()).await;
    assert_eq!(answer.producer_id, 1000, "another edge over the same ledger has a block of its own");
    let refused = InitProducerIdRequest { transactional_id: Some("t".into()), ..Default::default() };
    let answer: InitProducerIdResponse = client.ask(4, &refused).await;
    assert_eq!(answer.error_code, ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED);

    let mut send = async |epoch, base_sequence, values: &[&str]| {
        let producer = Producer { id: 5, epoch, base_sequence };
        let request = produce("plant", vec![(0, batch_from(Some(producer), NOW as i64, values))]);
        produced(&mut client, 8, &request).await
    };
    expect!["0 NONE at 0"].assert_eq(&send(1, 0, &["a", "b"]).await);
    expect!["0 NONE at 0"].assert_eq(&send(1, 0, &["a", "b"]).await);
    expect!["0 NONE at 2"].assert_eq(&send(1, 2, &["c"]).await);
    expect!["0 OUT_OF_ORDER_SEQUENCE_NUMBER at -1: a sequence number was skipped, 3 is next"]
        .assert_eq(&send(1, 9, &["x"]).await);
    expect!["0 INVALID_PRODUCER_EPOCH at -1: the producer's epoch is 1 by now"].assert_eq(&send(0, 3, &["x"]).await);
    // Sequence numbers go from the largest i32 to zero.
    expect!["0 NONE at 3"].assert_eq(&send(2, i32::MAX - 1, &["d", "e", "f"]).await);
    expect!["0 NONE at 6"].assert_eq(&send(2, 1, &["g"]).await);
    expect!["0 NONE at 3"].assert_eq(&send(2, i32::MAX - 1, &["d", "e", "f"]).await);
    expect!["0 OUT_OF_ORDER_SEQUENCE_NUMBER at -1: a sequence number was skipped, 2 is next"]
        .assert_eq(&send(2, 3, &["x"]).await);
    // Five batches are remembered; what is older is acknowledged without its offset.
    for sequence in 2..7 {
        send(2, sequence, &["h"]).await;
    }
    expect!["0 DUPLICATE_SEQUENCE_NUMBER at -1"].assert_eq(&send(2, i32::MAX - 1, &["d", "e", "f"]).await);
    edge.stop().await;
    other.stop().await;
}

fn fetch(wait_ms: i32, min_bytes: i32, partitions: &[(i32, i64)]) -> FetchRequest {
    let partition = |(partition, fetch_offset): &(i32, i64)| FetchPartition {
        partition: *partition,
        fetch_offset: *fetch_offset,
        partition_max_bytes: 1 << 20,
        ..FetchPartition::default()
    };
    FetchRequest {
        max_wait_ms: wait_ms,
        min_bytes,
        max_bytes: 50 << 20,
        topics: vec![FetchTopic {
            topic: "plant".into(),
            topic_id: Uuid::default(),
            partitions: partitions.iter().map(partition).collect(),
        }],
        ..FetchRequest::default()
    }
}

/// Per partition: error, log start, high watermark, and the values with their offsets.
fn fetched(answer: &FetchResponse) -> String {
    let mut lines = Vec::new();
    for p in answer.responses.iter().flat_map(|t| &t.partitions) {
        let mut line = format!("{} {} {}..{}", p.partition_index, p.error_code, p.log_start_offset, p.high_watermark);
        for chunk in &p.records.0 {
            let mut set = chunk.clone();
            while !set.is_empty() {
                let length = 12 + i32::from_be_bytes(set[8..12].try_into().unwrap()) as usize;
                for record in BatchView::parse(set.split_to(length)).unwrap().records().unwrap() {
                    let record = record.unwrap();
                    line += &format!(" {}:{}", record.offset, record.value.unwrap().escape_ascii());
                }
            }
        }
        lines.push(line);
    }
    lines.join("\n")
}

#[tokio::test]
async fn fetch_in_every_version() {
    let edge = Edge::start().await;
    edge.local.create_topic("plant", 2, TopicSettings::default());
    let mut client = edge.client().await;
    for values in [&["a", "b"][..], &["c"], &["d", "e", "f"]] {
        produced(&mut client, 9, &produce("plant", vec![(0, batch(values))])).await;
    }
    for version in 4..=12 {
        let answer: FetchResponse = client.ask(version, &fetch(0, 1, &[(0, 2), (1, 0)])).await;
        let start = if version < 5 { -1 } else { 0 };
        let expected = format!("0 NONE {start}..6 2:c 3:d 4:e 5:f\n1 NONE {start}..0");
        assert_eq!(fetched(&answer), expected, "version {version}");
        assert_eq!(answer.session_id, 0);
    }
    // An offset inside a batch gives the whole batch.
    let answer: FetchResponse = client.ask(12, &fetch(0, 1, &[(0, 4)])).await;
    expect!["0 NONE 0..6 3:d 4:e 5:f"].assert_eq(&fetched(&answer));
    let answer: FetchResponse = client.ask(12, &fetch(60_000, 1, &[(0, 7), (1, -1), (9, 0), (0, 0)])).await;
    expect![[r#"
        0 OFFSET_OUT_OF_RANGE -1..-1
        1 OFFSET_OUT_OF_RANGE -1..-1
        9 UNKNOWN_TOPIC_OR_PARTITION -1..-1
        0 NONE 0..6 0:a 1:b 2:c 3:d 4:e 5:f"#]]
    .assert_eq(&fetched(&answer));

    // The first batch is given whatever the limits say, and not more.
    let small = FetchRequest { max_bytes: 1, ..fetch(0, 1, &[(0, 0), (0, 3)]) };
    let answer: FetchResponse = client.ask(11, &small).await;
    expect![[r#"
        0 NONE 0..6 0:a 1:b
        0 NONE 0..6"#]]
    .assert_eq(&fetched(&answer));
    let mut small = fetch(0, 1, &[(0, 0), (0, 3)]);
    small.topics[0].partitions.iter_mut().for_each(|p| p.partition_max_bytes = 1);
    let answer: FetchResponse = client.ask(11, &small).await;
    expect![[r#"
        0 NONE 0..6 0:a 1:b
        0 NONE 0..6 3:d 4:e 5:f"#]]
    .assert_eq(&fetched(&answer));

    // A session that we never gave.
    let session = FetchRequest { session_id: 5, session_epoch: 3, ..fetch(0, 1, &[]) };
    let answer: FetchResponse = client.ask(7, &session).await;
    assert_eq!(answer.error_code, ErrorCode::FETCH_SESSION_ID_NOT_FOUND);

    // Leader epochs: ours is the term.
    edge.local.elect(Some(NodeId(1)));
    let mut epoch = async |current| {
        let mut request = fetch(0, 1, &[(0, 6)]);
        request.topics[0].partitions[0].current_leader_epoch = current;
        let answer: FetchResponse = client.ask(9, &request).await;
        answer.responses[0].partitions[0].error_code
    };
    assert_eq!(epoch(-1).await, ErrorCode::NONE);
    assert_eq!(epoch(2).await, ErrorCode::NONE);
    assert_eq!(epoch(1).await, ErrorCode::FENCED_LEADER_EPOCH);
    assert_eq!(epoch(3).await, ErrorCode::UNKNOWN_LEADER_EPOCH);

    edge.local.elect(Some(NodeId(2)));
    let answer: FetchResponse = client.ask(12, &fetch(60_000, 1, &[(0, 6)])).await;
    expect![[r#"FetchPartition { error_code: NOT_LEADER_OR_FOLLOWER, current_leader: LeaderIdAndEpoch { leader_id: 2, leader_epoch: 3 } }"#]]
        .assert_eq(&text(&edge, &answer.responses[0].partitions[0]));
    edge.stop().await;
}

#[tokio::test]
async fn fetch_waits_for_enough() {
    let edge = Edge::start().await;
    edge.local.create_topic("plant", 2, TopicSettings::default());
    let mut consumer = edge.client().await;
    let mut producer = edge.client().await;
    let one = batch(&["a"]).len() as i32;

    // Two batches are wanted, from whichever partition; the first alone does not end the waiting.
    consumer.send(4, &fetch(20_000, 2 * one, &[(0, 0), (1, 0)])).await;
    produced(&mut producer, 9, &produce("plant", vec![(1, batch(&["a"]))])).await;
    produced(&mut producer, 9, &produce("plant", vec![(0, batch(&["b"]))])).await;
    let (_, answer): (_, FetchResponse) = consumer.receive(4).await;
    expect![[r#"
        0 NONE -1..1 0:b
        1 NONE -1..1 0:a"#]]
    .assert_eq(&fetched(&answer));

    // What is there already counts, and what comes is added to it.
    consumer.send(4, &fetch(20_000, 2 * one, &[(0, 0)])).await;
    produced(&mut producer, 9, &produce("plant", vec![(0, batch(&["c"]))])).await;
    let (_, answer): (_, FetchResponse) = consumer.receive(4).await;
    expect!["0 NONE -1..2 0:b 1:c"].assert_eq(&fetched(&answer));

    // The time is over before anything comes.
    let answer: FetchResponse = consumer.ask(4, &fetch(1, 1, &[(0, 2), (1, 1)])).await;
    expect![[r#"
        0 NONE -1..2
        1 NONE -1..1"#]]
    .assert_eq(&fetched(&answer));
    edge.stop().await;
}

#[tokio::test]
async fn list_offsets() {
    let edge = Edge::start().await;
    edge.local.create_topic("plant", 2, TopicSettings::default());
    let mut client = edge.client().await;
    for (at, values) in [(0, &["a", "b"][..]), (500, &["c", "d", "e"]), (100, &["f"])] {
        let records = batch_from(None, NOW as i64 + at, values);
        produced(&mut client, 9, &produce("plant", vec![(0, records)])).await;
    }
    let mut ask = async |version: i16, partition_index, timestamp| {
        let partitions = vec![ListOffsetsPartition { partition_index, timestamp, ..Default::default() }];
        let topics = vec![ListOffsetsTopic { name: "plant".into(), partitions }];
        let answer: ListOffsetsResponse =
            client.ask(version, &ListOffsetsRequest { topics, ..Default::default() }).await;
        let p = answer.topics[0].partitions[0].clone();
        let timestamp = if p.timestamp < 0 { p.timestamp } else { p.timestamp - NOW as i64 };
        format!("{} offset {} time {timestamp} epoch {}", p.error_code, p.offset, p.leader_epoch)
    };
    for version in 1..=10 {
        let epoch = if version < 4 { -1 } else { 1 };
        assert_eq!(ask(version, 0, LATEST).await, format!("NONE offset 6 time -1 epoch {epoch}"));
        assert_eq!(ask(version, 0, EARLIEST).await, format!("NONE offset 0 time -1 epoch {epoch}"));
        assert_eq!(ask(version, 0, NOW as i64 + 501).await, format!("NONE offset 3 time 501 epoch {epoch}"));
        assert_eq!(ask(version, 0, NOW as i64 + 2).await, format!("NONE offset 2 time 500 epoch {epoch}"));
    }
    expect!["NONE offset 0 time 0 epoch 1"].assert_eq(&ask(5, 0, 0).await);
    expect!["NONE offset -1 time -1 epoch -1"].assert_eq(&ask(5, 0, NOW as i64 + 503).await);
    expect!["NONE offset 4 time 502 epoch 1"].assert_eq(&ask(7, 0, MAX_TIMESTAMP).await);
    expect!["NONE offset -1 time -1 epoch -1"].assert_eq(&ask(7, 1, MAX_TIMESTAMP).await);
    expect!["NONE offset 0 time -1 epoch 1"].assert_eq(&ask(8, 0, EARLIEST_LOCAL).await);
    expect!["NONE offset -1 time -1 epoch -1"].assert_eq(&ask(9, 0, LATEST_TIERED).await);
    expect!["UNKNOWN_TOPIC_OR_PARTITION offset -1 time -1 epoch -1"].assert_eq(&ask(5, 2, LATEST).await);
    edge.local.elect(None);
    expect!["NOT_LEADER_OR_FOLLOWER offset -1 time -1 epoch -1"].assert_eq(&ask(5, 0, LATEST).await);
    edge.stop().await;
}

fn creatable(name: &str, partitions: i32, replicas: i16, configs: &[(&str, &str)]) -> CreatableTopic {
    let config =
        |(name, value): &(&str, &str)| CreatableTopicConfig { name: (*name).into(), value: Some((*value).into()) };
    CreatableTopic {
        name: name.into(),
        num_partitions: partitions,
        replication_factor: replicas,
        assignments: Vec::new(),
        configs: configs.iter().map(config).collect(),
    }
}

#[tokio::test]
async fn topics_are_created_and_deleted() {
    let edge = Edge::start().await;
    let mut client = edge.client().await;
    let mut create = async |version, validate_only, topics: Vec<CreatableTopic>| {
        let request = CreateTopicsRequest { topics, validate_only, ..Default::default() };
        let answer: CreateTopicsResponse = client.ask(version, &request).await;
        let line = |t: &CreatableTopicResult| {
            let message = t.error_message.as_deref().map(|m| format!(": {m}")).unwrap_or_default();
            format!("{} {} {}×{}{message}", t.name, t.error_code, t.num_partitions, t.replication_factor)
        };
        answer.topics.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    for version in 2..=7 {
        let answer = create(version, false, vec![creatable(&format!("v{version}"), 3, 1, &[])]).await;
        let size = if version < 5 { "-1×-1" } else { "3×1" };
        assert_eq!(answer, format!("v{version} NONE {size}"));
    }
    let assigned = CreatableTopic {
        assignments: vec![
            CreatableReplicaAssignment { partition_index: 1, broker_ids: vec![1] },
            CreatableReplicaAssignment { partition_index: 0, broker_ids: vec![1] },
        ],
        ..creatable("assigned", -1, -1, &[])
    };
    let stranger = CreatableTopic {
        assignments: vec![CreatableReplicaAssignment { partition_index: 0, broker_ids: vec![8] }],
        ..creatable("stranger", -1, -1, &[])
    };
    let all = vec![
        creatable("defaults", -1, -1, &[]),
        creatable("kept", 2, 1, &[("retention.ms", "60000"), ("retention.bytes", "-1"), ("cleanup.policy", "delete")]),
        creatable("fields", 1, 1, &[("buttress.sequence.fields", "machine, seq")]),
        assigned,
        stranger,
        creatable("v2", 1, 1, &[]),
        creatable("twice", 1, 1, &[]),
        creatable("twice", 1, 1, &[]),
        creatable("..", 1, 1, &[]),
        creatable("zero", 0, 1, &[]),
        creatable("many", 1025, 1, &[]),
        creatable("replicas", 1, 3, &[]),
        creatable("compact", 1, 1, &[("cleanup.policy", "compact")]),
        creatable("unknown", 1, 1, &[("retention.hours", "1")]),
        creatable("text", 1, 1, &[("retention.ms", "a week")]),
        creatable("one-field", 1, 1, &[("buttress.sequence.fields", "machine")]),
    ];
    let dry = create(7, true, all.clone()).await;
    assert_eq!(edge.local.with(|machine| machine.topics()).len(), 6, "validate_only creates nothing");
    let wet = create(7, false, all).await;
    assert_eq!(dry, wet);
    expect![[r#"
        defaults NONE 1×1
        kept NONE 2×1
        fields NONE 1×1
        assigned NONE 2×1
        stranger INVALID_REPLICA_ASSIGNMENT -1×-1: a partition is assigned to no broker or to one that is not among [1]
        v2 TOPIC_ALREADY_EXISTS -1×-1: the topic "v2" exists
        twice INVALID_REQUEST -1×-1: the request names the topic more than once
        twice INVALID_REQUEST -1×-1: the request names the topic more than once
        .. INVALID_TOPIC_EXCEPTION -1×-1: the topic name ".." is not 1 to 249 of [a-zA-Z0-9._-]
        zero INVALID_PARTITIONS -1×-1: num_partitions is 0, not 1 to 1024
        many INVALID_PARTITIONS -1×-1: num_partitions is 1025, not 1 to 1024
        replicas INVALID_REPLICATION_FACTOR -1×-1: replication_factor is 3, but the cluster has 1 members
        compact INVALID_CONFIG -1×-1: cleanup.policy is "compact", only "delete" is served
        unknown INVALID_CONFIG -1×-1: there is no configuration "retention.hours" here; known are retention.ms, retention.bytes, max.message.bytes, buttress.sequence.fields, cleanup.policy, compression.gzip.level, compression.lz4.level, compression.type, compression.zstd.level, delete.retention.ms, file.delete.delay.ms, flush.messages, flush.ms, follower.replication.throttled.replicas, index.interval.bytes, leader.replication.throttled.replicas, local.retention.bytes, local.retention.ms, max.compaction.lag.ms, message.timestamp.after.max.ms, message.timestamp.before.max.ms, message.timestamp.type, min.cleanable.dirty.ratio, min.compaction.lag.ms, min.insync.replicas, preallocate, remote.copy.disable, remote.log.delete.on.disable, remote.storage.enable, segment.bytes, segment.index.bytes, segment.jitter.ms, segment.ms, unclean.leader.election.enable
        text INVALID_CONFIG -1×-1: retention.ms is "a week", not a number from -1 on
        one-field INVALID_CONFIG -1×-1: buttress.sequence.fields is "machine", not two field names, as in machine,seq"#]].assert_eq(&wet);
    let settings = |name| edge.local.with(|machine| machine.topic(name)).unwrap().settings;
    assert_eq!(settings("defaults").retention_ms, Some(604_800_000));
    assert_eq!((settings("kept").retention_ms, settings("kept").retention_bytes), (Some(60_000), None));
    assert_eq!(settings("fields").sequence_fields, Some(("machine".into(), "seq".into())));
    assert_eq!(edge.local.with(|machine| machine.topic("assigned")).unwrap().partitions.len(), 2);

    let request = CreateTopicsRequest {
        topics: vec![creatable("configs", 1, 1, &[("retention.ms", "5")])],
        ..Default::default()
    };
    let answer: CreateTopicsResponse = client.ask(7, &request).await;
    let configs = answer.topics[0].configs.as_ref().unwrap();
    let configs: Vec<_> =
        configs.iter().map(|c| format!("{}={}@{}", c.name, c.value.as_ref().unwrap(), c.config_source)).collect();
    expect!["cleanup.policy=delete@5 compression.gzip.level=-1@5 compression.lz4.level=9@5 compression.type=producer@5 compression.zstd.level=3@5 delete.retention.ms=86400000@5 file.delete.delay.ms=60000@5 flush.messages=9223372036854775807@5 flush.ms=9223372036854775807@5 follower.replication.throttled.replicas=@5 index.interval.bytes=4096@5 leader.replication.throttled.replicas=@5 local.retention.bytes=-2@5 local.retention.ms=-2@5 max.compaction.lag.ms=9223372036854775807@5 max.message.bytes=1048588@5 message.timestamp.after.max.ms=3600000@5 message.timestamp.before.max.ms=9223372036854775807@5 message.timestamp.type=CreateTime@5 min.cleanable.dirty.ratio=0.5@5 min.compaction.lag.ms=0@5 min.insync.replicas=1@5 preallocate=false@5 remote.copy.disable=false@5 remote.log.delete.on.disable=false@5 remote.storage.enable=false@5 retention.bytes=-1@5 retention.ms=5@1 segment.bytes=1073741824@5 segment.index.bytes=10485760@5 segment.jitter.ms=0@5 segment.ms=604800000@5 unclean.leader.election.enable=false@5"].assert_eq(&configs.join(" "));
    let id = answer.topics[0].topic_id;

    for version in 1..=5 {
        let request =
            DeleteTopicsRequest { topic_names: vec![format!("v{version}"), "gone".into()], ..Default::default() };
        let answer: DeleteTopicsResponse = client.ask(version, &request).await;
        let codes: Vec<_> = answer.responses.iter().map(|r| r.error_code).collect();
        let first = if version == 1 { ErrorCode::UNKNOWN_TOPIC_OR_PARTITION } else { ErrorCode::NONE };
        assert_eq!(codes, [first, ErrorCode::UNKNOWN_TOPIC_OR_PARTITION]);
    }
    let by_id = |topic_id| DeleteTopicState { name: None, topic_id };
    let request = DeleteTopicsRequest { topics: vec![by_id(id), by_id(id)], ..Default::default() };
    let answer: DeleteTopicsResponse = client.ask(6, &request).await;
    let found: Vec<_> = answer.responses.iter().map(|r| (r.name.clone(), r.error_code)).collect();
    assert_eq!(found[0], (Some("configs".into()), ErrorCode::NONE));
    assert!(found[1].1.is_error(), "the second deletion finds nothing: {found:?}");
    edge.stop().await;
}

#[tokio::test]
async fn the_leader_coordinates_groups_and_nobody_transactions() {
    let edge = Edge::start().await;
    let mut client = edge.client().await;
    let ask = FindCoordinatorRequest { key: "g".into(), ..Default::default() };
    for version in 0..=3 {
        let answer: FindCoordinatorResponse = client.ask(version, &ask).await;
        assert_eq!((answer.error_code, answer.node_id, &answer.host[..]), (ErrorCode::NONE, 1, "127.0.0.1"));
    }
    let ask = FindCoordinatorRequest { coordinator_keys: vec!["g".into(), "h".into()], ..Default::default() };
    for version in 4..=6 {
        let answer: FindCoordinatorResponse = client.ask(version, &ask).await;
        expect![[r#"FindCoordinator { coordinators: [Coordinator { key: "g", node_id: 1, host: "127.0.0.1", port: PORT }, Coordinator { key: "h", node_id: 1, host: "127.0.0.1", port: PORT }] }"#]].assert_eq(&text(&edge, &answer));
    }
    let ask = FindCoordinatorRequest { key_type: 1, coordinator_keys: vec!["t".into()], ..Default::default() };
    let answer: FindCoordinatorResponse = client.ask(4, &ask).await;
    expect![[r#"FindCoordinator { coordinators: [Coordinator { key: "t", node_id: -1, port: -1, error_code: TRANSACTIONAL_ID_AUTHORIZATION_FAILED, error_message: Some("transactions are not served yet; produce without a transactional id") }] }"#]].assert_eq(&text(&edge, &answer));
    let ask = FindCoordinatorRequest { key_type: 2, key: "share".into(), ..Default::default() };
    let answer: FindCoordinatorResponse = client.ask(3, &ask).await;
    assert_eq!(answer.error_code, ErrorCode::INVALID_REQUEST);
    edge.local.elect(None);
    let ask = FindCoordinatorRequest { key: "g".into(), ..Default::default() };
    let answer: FindCoordinatorResponse = client.ask(2, &ask).await;
    assert_eq!((answer.error_code, answer.node_id), (ErrorCode::COORDINATOR_NOT_AVAILABLE, -1));
    edge.stop().await;
}

/// What librdkafka reads out of ApiVersions: without these it sends uncompressed (rdkafka_feature.c).
#[tokio::test]
async fn clients_see_that_every_codec_is_understood() {
    let edge = Edge::start().await;
    let answer: ApiVersionsResponse = edge.client().await.ask(0, &ApiVersionsRequest::default()).await;
    let serves = |key, version| {
        answer.api_keys.iter().any(|api| api.api_key == key && (api.min_version..=api.max_version).contains(&version))
    };
    // LZ4 hangs on FindCoordinator 0, ZSTD on Produce 7 and Fetch 10, and Produce 0 is looked for by all.
    assert!(serves(10, 0) && serves(0, 7) && serves(1, 10) && serves(0, 0));
    // Transactions, KIP-848 and share groups are not advertised, so clients refuse them by themselves.
    for key in [24, 25, 26, 28, 68, 69, 76, 78] {
        assert!(answer.api_keys.iter().all(|api| api.api_key != key), "{key}");
    }
    edge.stop().await;
}
