//! A stock client: rskafka, pure Rust.

use std::collections::BTreeMap;

use rskafka::{
    chrono::{DateTime, TimeZone, Utc},
    client::{
        ClientBuilder,
        partition::{Compression, OffsetAt, UnknownTopicHandling},
    },
    record::Record,
};

use crate::support::{Edge, NOW};

fn time(after: i64) -> DateTime<Utc> {
    Utc.timestamp_millis_opt(NOW as i64 + after).unwrap()
}

fn record(value: &str, after: i64) -> Record {
    Record {
        key: Some(b"machine".to_vec()),
        value: Some(value.into()),
        headers: BTreeMap::from([("unit".to_owned(), b"mm/s".to_vec())]),
        timestamp: time(after),
    }
}

#[tokio::test]
async fn rskafka_creates_produces_consumes_and_deletes() {
    let edge = Edge::start().await;
    let client = ClientBuilder::new(vec![edge.address.clone()]).build().await.unwrap();
    let controller = client.controller_client().unwrap();
    controller.create_topic("plant", 2, 1, 5_000).await.unwrap();
    let topics = client.list_topics().await.unwrap();
    assert_eq!((topics[0].name.as_str(), topics[0].partitions.len()), ("plant", 2));

    let partition = client.partition_client("plant", 1, UnknownTopicHandling::Error).await.unwrap();
    let offsets = partition.produce(vec![record("a", 0), record("b", 5)], Compression::NoCompression).await.unwrap();
    assert_eq!(offsets, [0, 1]);
    assert_eq!(partition.produce(vec![record("c", 9)], Compression::NoCompression).await.unwrap(), [2]);

    let (records, high_watermark) = partition.fetch_records(1, 1..1_000_000, 1_000).await.unwrap();
    assert_eq!(high_watermark, 3);
    let got: Vec<_> = records.into_iter().map(|r| (r.offset, r.record)).collect();
    assert_eq!(got, [(1, record("b", 5)), (2, record("c", 9))]);

    assert_eq!(partition.get_offset(OffsetAt::Earliest).await.unwrap(), 0);
    assert_eq!(partition.get_offset(OffsetAt::Latest).await.unwrap(), 3);
    assert_eq!(partition.get_offset(OffsetAt::Timestamp(time(3))).await.unwrap(), 1);
    let error = partition.fetch_records(99, 1..1_000, 0).await.unwrap_err();
    assert!(error.to_string().contains("OffsetOutOfRange"), "{error}");
    let error = controller.create_topic("plant", 2, 1, 5_000).await.unwrap_err();
    assert!(error.to_string().contains("TopicAlreadyExists"), "{error}");

    controller.delete_topic("plant", 5_000).await.unwrap();
    assert!(client.list_topics().await.unwrap().is_empty());
    edge.stop().await;
}

#[tokio::test]
async fn rskafka_waits_for_a_record() {
    let edge = Edge::start().await;
    let client = ClientBuilder::new(vec![edge.address.clone()]).build().await.unwrap();
    client.controller_client().unwrap().create_topic("plant", 1, 1, 5_000).await.unwrap();
    let consumer = client.partition_client("plant", 0, UnknownTopicHandling::Error).await.unwrap();
    let producer = client.partition_client("plant", 0, UnknownTopicHandling::Error).await.unwrap();
    let produced = producer.produce(vec![record("late", 1)], Compression::NoCompression);
    let ((records, _), _) = tokio::try_join!(consumer.fetch_records(0, 1..1_000_000, 20_000), produced).unwrap();
    assert_eq!(records[0].record, record("late", 1));
    edge.stop().await;
}
