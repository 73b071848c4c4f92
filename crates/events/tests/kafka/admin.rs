//! Configurations, partitions, records and epochs: what administrators and careful consumers ask for.

use buttress_core::{NodeId, Stream, entry::TopicSettings};
use buttress_events::kafka::Options;
use buttress_wire::kafka::{
    ErrorCode, alter_configs as alter, create_partitions::*, delete_records::*, describe_cluster::*,
    describe_configs::*, incremental_alter_configs as incremental, offset_for_leader_epoch::*,
    produce::ProduceResponse, sasl_authenticate::*, sasl_handshake::*,
};
use expect_test::expect;

use crate::support::{Client, Edge, batch, produce};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;

async fn describe(client: &mut Client, version: i16, kind: i8, name: &str, keys: Option<&[&str]>) -> String {
    let resource = DescribeConfigsResource {
        resource_type: kind,
        resource_name: name.into(),
        configuration_keys: keys.map(|keys| keys.iter().map(|key| (*key).to_owned()).collect()),
    };
    let request = DescribeConfigsRequest { resources: vec![resource], ..Default::default() };
    let answer: DescribeConfigsResponse = client.ask(version, &request).await;
    let result = &answer.results[0];
    let line = |c: &DescribeConfigsResourceResult| {
        let fixed = if c.read_only { " read-only" } else { "" };
        format!("{}={} source {} type {}{fixed}", c.name, c.value.as_ref().unwrap(), c.config_source, c.config_type)
    };
    match &result.error_message {
        Some(message) => format!("{}: {message}", result.error_code),
        None => result.configs.iter().map(line).collect::<Vec<_>>().join("\n"),
    }
}

#[tokio::test]
async fn configurations_are_told_with_kafkas_defaults() {
    let edge = Edge::start().await;
    let settings = TopicSettings { retention_ms: Some(5), batch_bytes_max: Some(2_000), ..TopicSettings::default() };
    edge.local.create_topic("plant", 1, settings);
    let mut client = edge.client().await;
    expect![[r#"
        cleanup.policy=delete source 5 type 7
        compression.gzip.level=-1 source 5 type 3
        compression.lz4.level=9 source 5 type 3
        compression.type=producer source 5 type 2
        compression.zstd.level=3 source 5 type 3
        delete.retention.ms=86400000 source 5 type 5
        file.delete.delay.ms=60000 source 5 type 5
        flush.messages=9223372036854775807 source 5 type 5
        flush.ms=9223372036854775807 source 5 type 5
        follower.replication.throttled.replicas= source 5 type 7
        index.interval.bytes=4096 source 5 type 3
        leader.replication.throttled.replicas= source 5 type 7
        local.retention.bytes=-2 source 5 type 5
        local.retention.ms=-2 source 5 type 5
        max.compaction.lag.ms=9223372036854775807 source 5 type 5
        max.message.bytes=2000 source 1 type 3
        message.timestamp.after.max.ms=3600000 source 5 type 5
        message.timestamp.before.max.ms=9223372036854775807 source 5 type 5
        message.timestamp.type=CreateTime source 5 type 2
        min.cleanable.dirty.ratio=0.5 source 5 type 6
        min.compaction.lag.ms=0 source 5 type 5
        min.insync.replicas=1 source 5 type 3
        preallocate=false source 5 type 1
        remote.copy.disable=false source 5 type 1
        remote.log.delete.on.disable=false source 5 type 1
        remote.storage.enable=false source 5 type 1
        retention.bytes=-1 source 5 type 5
        retention.ms=5 source 1 type 5
        segment.bytes=1073741824 source 5 type 3
        segment.index.bytes=10485760 source 5 type 3
        segment.jitter.ms=0 source 5 type 5
        segment.ms=604800000 source 5 type 5
        unclean.leader.election.enable=false source 5 type 1"#]]
    .assert_eq(&describe(&mut client, 4, TOPIC, "plant", None).await);
    let some = Some(&["retention.ms", "segment.bytes", "no.such"][..]);
    for version in 1..=4 {
        let told = describe(&mut client, version, TOPIC, "plant", some).await;
        let kinds = if version < 3 { [0, 0] } else { [5, 3] };
        let expected =
            format!("retention.ms=5 source 1 type {}\nsegment.bytes=1073741824 source 5 type {}", kinds[0], kinds[1]);
        assert_eq!(told, expected);
    }
    expect![[r#"
        auto.create.topics.enable=true source 4 type 1 read-only
        broker.id=1 source 4 type 3 read-only
        compression.type=producer source 4 type 2 read-only
        connections.max.idle.ms=600000 source 4 type 5 read-only
        default.replication.factor=1 source 4 type 3 read-only
        delete.topic.enable=true source 4 type 1 read-only
        group.initial.rebalance.delay.ms=3000 source 4 type 3 read-only
        group.max.session.timeout.ms=1800000 source 4 type 3 read-only
        group.max.size=1000 source 4 type 3 read-only
        group.min.session.timeout.ms=6000 source 4 type 3 read-only
        log.cleanup.policy=delete source 4 type 7 read-only
        log.message.timestamp.type=CreateTime source 4 type 2 read-only
        log.retention.bytes=-1 source 4 type 5 read-only
        log.retention.ms=604800000 source 4 type 5 read-only
        message.max.bytes=1048588 source 4 type 3 read-only
        min.insync.replicas=1 source 4 type 3 read-only
        node.id=1 source 4 type 3 read-only
        num.partitions=1 source 4 type 3 read-only
        offset.metadata.max.bytes=4096 source 4 type 3 read-only
        offsets.retention.minutes=10080 source 4 type 3 read-only
        unclean.leader.election.enable=false source 4 type 1 read-only"#]]
    .assert_eq(&describe(&mut client, 4, BROKER, "1", None).await);
    for (kind, name) in [(TOPIC, "gone"), (TOPIC, "a/b"), (BROKER, "7"), (BROKER, "one"), (8, "1"), (16, "")] {
        let told = describe(&mut client, 4, kind, name, None).await;
        assert!(!told.contains('='), "{told}");
    }
    expect![[r#"INVALID_REQUEST: "7" is not the id of a member of this cluster"#]]
        .assert_eq(&describe(&mut client, 4, BROKER, "7", None).await);

    let resource = DescribeConfigsResource {
        resource_type: TOPIC,
        resource_name: "plant".into(),
        configuration_keys: Some(vec!["retention.ms".into()]),
    };
    let request = DescribeConfigsRequest { resources: vec![resource], include_synonyms: true, ..Default::default() };
    let answer: DescribeConfigsResponse = client.ask(4, &request).await;
    let synonyms: Vec<_> =
        answer.results[0].configs[0].synonyms.iter().map(|s| (s.value.as_deref(), s.source)).collect();
    assert_eq!(synonyms, [(Some("5"), 1), (Some("604800000"), 5)]);
    edge.stop().await;
}

/// Sets, deletes and appends, one change each.
async fn change(client: &mut Client, name: &str, changes: &[(&str, i8, Option<&str>)], validate_only: bool) -> String {
    let config = |(name, operation, value): &(&str, i8, Option<&str>)| incremental::AlterableConfig {
        name: (*name).into(),
        config_operation: *operation,
        value: value.map(str::to_owned),
    };
    let resource = incremental::AlterConfigsResource {
        resource_type: TOPIC,
        resource_name: name.into(),
        configs: changes.iter().map(config).collect(),
    };
    let request = incremental::IncrementalAlterConfigsRequest { resources: vec![resource], validate_only };
    let answer: incremental::IncrementalAlterConfigsResponse = client.ask(1, &request).await;
    let told = &answer.responses[0];
    format!("{} {}", told.error_code, told.error_message.as_deref().unwrap_or_default()).trim().to_owned()
}

#[tokio::test]
async fn configurations_are_changed() {
    let edge = Edge::start().await;
    edge.local.create_topic("plant", 1, TopicSettings::default());
    let mut client = edge.client().await;
    let settings = || edge.local.topic("plant").unwrap().settings;
    let set = [("retention.ms", 0, Some("1000")), ("max.message.bytes", 0, Some("300"))];
    assert_eq!(change(&mut client, "plant", &set, true).await, "NONE");
    assert_eq!(settings(), TopicSettings::default(), "nothing happens where it is only to be validated");
    assert_eq!(change(&mut client, "plant", &set, false).await, "NONE");
    assert_eq!((settings().retention_ms, settings().batch_bytes_max), (Some(1_000), Some(300)));
    // One is deleted, the other stays; a list is appended what it has.
    let delete = [("retention.ms", 1, None), ("cleanup.policy", 2, Some("delete"))];
    assert_eq!(change(&mut client, "plant", &delete, false).await, "NONE");
    assert_eq!((settings().retention_ms, settings().batch_bytes_max), (Some(604_800_000), Some(300)));
    // What promises no more than is kept anyway.
    let kept = [("min.insync.replicas", 0, Some("1")), ("flush.messages", 0, Some("1"))];
    assert_eq!(change(&mut client, "plant", &kept, false).await, "NONE");

    let mut told = Vec::new();
    for (name, operation, value) in [
        ("max.message.bytes", 0, Some("9999999")),
        ("max.message.bytes", 0, Some("many")),
        ("retention.ms", 0, Some("-2")),
        ("retention.ms", 0, None),
        ("retention.ms", 2, Some("5")),
        ("cleanup.policy", 2, Some("compact")),
        ("cleanup.policy", 3, Some("delete")),
        ("cleanup.policy", 0, Some("compact")),
        ("min.insync.replicas", 0, Some("2")),
        ("segment.bytes", 0, Some("1")),
        ("retention.ms", 9, Some("5")),
    ] {
        told.push(change(&mut client, "plant", &[(name, operation, value)], false).await);
    }
    told.push(change(&mut client, "plant", &[("retention.ms", 1, None), ("retention.ms", 1, None)], false).await);
    told.push(change(&mut client, "gone", &[], false).await);
    expect![[r#"
        INVALID_CONFIG max.message.bytes is "9999999", not a number up to 1052672, the largest batch there is
        INVALID_CONFIG max.message.bytes is "many", not a number up to 1052672, the largest batch there is
        INVALID_CONFIG retention.ms is "-2", not a number from -1 on
        INVALID_REQUEST retention.ms is to be set, but has no value
        INVALID_CONFIG retention.ms is not a list that could be changed by parts
        INVALID_CONFIG cleanup.policy is not a list that could be changed by parts
        INVALID_CONFIG cleanup.policy is not a list that could be changed by parts
        INVALID_CONFIG cleanup.policy is "compact", only "delete" is served
        INVALID_CONFIG min.insync.replicas is "2", more than the 1 members that have every acknowledged record
        INVALID_CONFIG segment.bytes is "1", only "1073741824" is served
        INVALID_CONFIG retention.ms is not a list that could be changed by parts
        INVALID_REQUEST retention.ms is named more than once
        UNKNOWN_TOPIC_OR_PARTITION there is no topic "gone""#]]
    .assert_eq(&told.join("\n"));

    // The old way replaces everything: what is not named has its default again.
    for version in 0..=2 {
        let config = alter::AlterableConfig { name: "retention.bytes".into(), value: Some("7".into()) };
        let resource =
            alter::AlterConfigsResource { resource_type: TOPIC, resource_name: "plant".into(), configs: vec![config] };
        let broker =
            alter::AlterConfigsResource { resource_type: BROKER, resource_name: "1".into(), configs: Vec::new() };
        let request = alter::AlterConfigsRequest { resources: vec![resource, broker], validate_only: false };
        let answer: alter::AlterConfigsResponse = client.ask(version, &request).await;
        let codes: Vec<_> = answer.responses.iter().map(|r| r.error_code).collect();
        assert_eq!(codes, [ErrorCode::NONE, ErrorCode::INVALID_REQUEST]);
        let settings = settings();
        assert_eq!((settings.retention_bytes, settings.batch_bytes_max), (Some(7), None));
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_topics_own_limit_holds_for_its_batches() {
    let edge = Edge::with(Options { message_bytes_max: 500, ..Options::default() }).await;
    let limited = |bytes| TopicSettings { batch_bytes_max: Some(bytes), ..TopicSettings::default() };
    edge.local.create_topic("small", 1, limited(100));
    edge.local.create_topic("large", 1, limited(10_000));
    edge.local.create_topic("usual", 1, TopicSettings::default());
    let mut client = edge.client().await;
    let mut told = Vec::new();
    for topic in ["small", "usual", "large"] {
        for size in [20, 300, 5_000, 20_000] {
            let request = produce(topic, vec![(0, batch(&[&"x".repeat(size)]))]);
            let answer: ProduceResponse = client.ask(9, &request).await;
            let partition = &answer.responses[0].partition_responses[0];
            let message = partition.error_message.as_deref().unwrap_or_default();
            told.push(format!("{topic} {size}: {} {message}", partition.error_code).trim_end().to_owned());
        }
    }
    expect![[r#"
        small 20: NONE
        small 300: MESSAGE_TOO_LARGE the batch is 370 bytes, more than the topic's max.message.bytes of 100
        small 5000: MESSAGE_TOO_LARGE the batch is 5070 bytes, more than the topic's max.message.bytes of 100
        small 20000: MESSAGE_TOO_LARGE the batch is 20072 bytes, more than the topic's max.message.bytes of 100
        usual 20: NONE
        usual 300: NONE
        usual 5000: MESSAGE_TOO_LARGE the batch is 5070 bytes, more than message_bytes_max of 500
        usual 20000: MESSAGE_TOO_LARGE the batch is 20072 bytes, more than message_bytes_max of 500
        large 20: NONE
        large 300: NONE
        large 5000: NONE
        large 20000: MESSAGE_TOO_LARGE the batch is 20072 bytes, more than the topic's max.message.bytes of 10000"#]]
    .assert_eq(&told.join("\n"));
    edge.stop().await;
}

#[tokio::test]
async fn partitions_are_added() {
    let edge = Edge::start().await;
    edge.local.create_topic("plant", 2, TopicSettings::default());
    edge.local.create_topic("other", 1, TopicSettings::default());
    let mut client = edge.client().await;
    let more = |name: &str, count, assignments: Option<&[&[i32]]>| CreatePartitionsTopic {
        name: name.into(),
        count,
        assignments: assignments
            .map(|a| a.iter().map(|ids| CreatePartitionsAssignment { broker_ids: ids.to_vec() }).collect()),
    };
    let mut ask = async |version, validate_only, topics: Vec<CreatePartitionsTopic>| {
        let request = CreatePartitionsRequest { topics, validate_only, timeout_ms: 1_000 };
        let answer: CreatePartitionsResponse = client.ask(version, &request).await;
        let line = |r: &CreatePartitionsTopicResult| {
            format!("{} {} {}", r.name, r.error_code, r.error_message.as_deref().unwrap_or_default())
        };
        answer.results.iter().map(|r| line(r).trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    };
    for version in 0..=3 {
        assert_eq!(ask(version, true, vec![more("plant", 3 + i32::from(version), None)]).await, "plant NONE");
        assert_eq!(ask(version, false, vec![more("plant", 3 + i32::from(version), None)]).await, "plant NONE");
    }
    assert_eq!(edge.local.topic("plant").unwrap().partitions.len(), 6);
    let told =
        ask(3, false, vec![more("plant", 8, Some(&[&[1], &[1]])), more("other", 1, None), more("gone", 3, None)]);
    expect![[r#"
        plant NONE
        other INVALID_PARTITIONS the topic has 1 partitions; 1 would not be an increase
        gone UNKNOWN_TOPIC_OR_PARTITION there is no topic "gone""#]]
    .assert_eq(&told.await);
    let mut told = Vec::new();
    for topics in [
        vec![more("other", 0, None)],
        vec![more("other", -5, None)],
        vec![more("other", 1_025, None)],
        vec![more("other", 3, Some(&[&[1]]))],
        vec![more("other", 2, Some(&[&[9]]))],
        vec![more("other", 2, None), more("other", 3, None)],
    ] {
        told.push(ask(3, false, topics).await);
    }
    expect![[r#"
        other INVALID_PARTITIONS the topic has 1 partitions; 0 would not be an increase
        other INVALID_PARTITIONS the topic has 1 partitions; -5 would not be an increase
        other INVALID_PARTITIONS 1025 partitions are more than the limit of 1024
        other INVALID_REPLICA_ASSIGNMENT 1 assignments for 2 new partitions
        other INVALID_REPLICA_ASSIGNMENT a partition is assigned to no broker or to one that is not among [1]
        other INVALID_REQUEST the request names the topic more than once
        other INVALID_REQUEST the request names the topic more than once"#]]
    .assert_eq(&told.join("\n"));
    // A new partition is one like the others.
    let answer: ProduceResponse = client.ask(9, &produce("plant", vec![(7, batch(&["a"]))])).await;
    assert_eq!(answer.responses[0].partition_responses[0].error_code, ErrorCode::NONE);
    edge.stop().await;
}

#[tokio::test]
async fn records_are_deleted() {
    let edge = Edge::start().await;
    edge.local.create_topic("plant", 2, TopicSettings::default());
    let mut client = edge.client().await;
    for _ in 0..5 {
        let _: ProduceResponse = client.ask(9, &produce("plant", vec![(0, batch(&["a", "b"]))])).await;
    }
    let mut ask = async |version, offsets: &[(i32, i64)]| {
        let partition =
            |(index, offset): &(i32, i64)| DeleteRecordsPartition { partition_index: *index, offset: *offset };
        let partitions = offsets.iter().map(partition).collect();
        let topics = vec![DeleteRecordsTopic { name: "plant".into(), partitions }];
        let answer: DeleteRecordsResponse =
            client.ask(version, &DeleteRecordsRequest { topics, timeout_ms: 1_000 }).await;
        let line = |p: &DeleteRecordsPartitionResult| {
            format!("{} {} from {}", p.partition_index, p.error_code, p.low_watermark)
        };
        answer.topics[0].partitions.iter().map(line).collect::<Vec<_>>().join(", ")
    };
    for version in 0..=2 {
        let offset = 2 + i64::from(version);
        assert_eq!(ask(version, &[(0, offset)]).await, format!("0 NONE from {offset}"));
    }
    expect!["0 NONE from 4, 0 OFFSET_OUT_OF_RANGE from -1, 0 OFFSET_OUT_OF_RANGE from -1, 1 NONE from 0, 9 UNKNOWN_TOPIC_OR_PARTITION from -1"].assert_eq(&ask(2, &[(0, 1), (0, 11), (0, -2), (1, -1), (9, 0)]).await);
    expect!["0 NONE from 10"].assert_eq(&ask(2, &[(0, -1)]).await);
    let view = edge.local.topic("plant").unwrap();
    assert_eq!((view.partitions[0].start.0, view.partitions[0].end.0), (10, 10));
    edge.local.elect(Some(NodeId(2)));
    expect!["0 NOT_LEADER_OR_FOLLOWER from -1"].assert_eq(&ask(2, &[(0, -1)]).await);
    edge.stop().await;
}

#[tokio::test]
async fn epochs_end_where_the_next_leader_began() {
    let edge = Edge::start().await;
    edge.local.create_topic("plant", 2, TopicSettings::default());
    let mut client = edge.client().await;
    // Epoch 1 has offsets 0 to 5, epoch 2 none, epoch 3 offsets 6 to 8, epoch 4 none yet.
    for values in [&["a"][..], &["b", "c"], &["d", "e", "f"]] {
        let _: ProduceResponse = client.ask(9, &produce("plant", vec![(0, batch(values))])).await;
    }
    edge.local.elect(Some(NodeId(1)));
    edge.local.elect(Some(NodeId(1)));
    let _: ProduceResponse = client.ask(9, &produce("plant", vec![(0, batch(&["g", "h", "i"]))])).await;
    edge.local.elect(Some(NodeId(1)));
    let mut ask = async |version, partition, leader_epoch, current_leader_epoch| {
        let partitions = vec![OffsetForLeaderPartition { partition, current_leader_epoch, leader_epoch }];
        let topics = vec![OffsetForLeaderTopic { topic: "plant".into(), partitions }];
        let answer: OffsetForLeaderEpochResponse =
            client.ask(version, &OffsetForLeaderEpochRequest { topics, ..Default::default() }).await;
        let end = &answer.topics[0].partitions[0];
        (end.error_code, end.leader_epoch, end.end_offset)
    };
    for version in 2..=4 {
        for (epoch, answer) in [(0, (0, 0)), (1, (1, 6)), (2, (1, 6)), (3, (3, 9)), (4, (4, 9)), (5, (-1, -1))] {
            assert_eq!(ask(version, 0, epoch, -1).await, (ErrorCode::NONE, answer.0, answer.1), "epoch {epoch}");
        }
    }
    assert_eq!(ask(4, 1, 3, 4).await, (ErrorCode::NONE, -1, -1), "an empty partition has no epochs");
    assert_eq!(ask(4, 1, 4, 4).await, (ErrorCode::NONE, 4, 0));
    assert_eq!(ask(4, 0, 1, 3).await.0, ErrorCode::FENCED_LEADER_EPOCH);
    assert_eq!(ask(4, 0, 1, 9).await.0, ErrorCode::UNKNOWN_LEADER_EPOCH);
    assert_eq!(ask(4, 7, 1, -1).await.0, ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
    edge.local.elect(None);
    assert_eq!(ask(4, 0, 1, -1).await.0, ErrorCode::NOT_LEADER_OR_FOLLOWER);
    edge.stop().await;
}

#[tokio::test]
async fn the_cluster_is_described_and_sasl_refused() {
    let edge = Edge::start().await;
    let mut client = edge.client().await;
    for version in 0..=2 {
        let answer: DescribeClusterResponse = client.ask(version, &DescribeClusterRequest::default()).await;
        assert_eq!((&answer.cluster_id[..], answer.controller_id, answer.brokers.len()), ("local", 1, 1));
        assert_eq!((answer.brokers[0].broker_id, &answer.brokers[0].host[..]), (1, "127.0.0.1"));
    }
    let request = DescribeClusterRequest { endpoint_type: 2, ..Default::default() };
    let answer: DescribeClusterResponse = client.ask(1, &request).await;
    assert_eq!(answer.error_code, ErrorCode::UNSUPPORTED_ENDPOINT_TYPE);
    for version in 0..=1 {
        let answer: SaslHandshakeResponse = client.ask(version, &SaslHandshakeRequest::default()).await;
        assert_eq!((answer.error_code, answer.mechanisms.len()), (ErrorCode::UNSUPPORTED_SASL_MECHANISM, 0));
    }
    for version in 0..=2 {
        let answer: SaslAuthenticateResponse = client.ask(version, &SaslAuthenticateRequest::default()).await;
        assert_eq!(answer.error_code, ErrorCode::ILLEGAL_SASL_STATE);
        assert!(answer.error_message.is_some_and(|text| text.contains("PLAINTEXT")));
    }
    edge.stop().await;
}
