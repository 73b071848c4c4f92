//! The steps of an ordinary user of the crate rskafka: topics, records and offsets, without groups or transactions.

use std::{collections::BTreeMap, time::SystemTime};

use chrono::{TimeZone, Utc};
use conformance_checks::Checks;
use rskafka::{
    client::{
        Client, ClientBuilder,
        error::Error,
        partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling},
    },
    record::{Record, RecordAndOffset},
};

type Result<T> = std::result::Result<T, Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let bootstrap = std::env::var("KAFKA_BOOTSTRAP").expect("KAFKA_BOOTSTRAP names the server");
    let bootstrap: Vec<String> = bootstrap.split(',').map(str::to_owned).collect();
    let mut checks = Checks::begin("rskafka", env!("CLIENT_VERSION"));
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_nanos();
    let topic = format!("conformance-rskafka-{since}");
    let build = || ClientBuilder::new(bootstrap.clone()).build();
    let (client, second) = match (build().await, build().await) {
        (Ok(client), Ok(second)) => (client, second),
        (Err(error), _) | (_, Err(error)) => {
            return checks.check::<&str, _>("the client connects", "connected", Err(error));
        }
    };
    topics(&client, &topic, &mut checks).await;
    if let Err(error) = records(&client, &second, &topic, &mut checks).await {
        checks.check::<&str, _>("a partition is found", "found", Err(error));
    }
    if let Ok(controller) = client.controller_client() {
        checks.check("a topic is deleted", (), controller.delete_topic(&*topic, 10_000).await);
    }
    checks.check("and is not listed any more", true, gone(&client, &topic).await);
    checks.end();
}

async fn listed(client: &Client, topic: &str) -> Result<Option<usize>> {
    Ok(client.list_topics().await?.into_iter().find(|found| found.name == topic).map(|found| found.partitions.len()))
}

/// Metadata may lag a little behind what was done.
async fn gone(client: &Client, topic: &str) -> Result<bool> {
    for _ in 0..100 {
        if listed(client, topic).await?.is_none() {
            return Ok(true);
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Ok(false)
}

async fn topics(client: &Client, topic: &str, checks: &mut Checks) {
    match client.controller_client() {
        Ok(controller) => {
            checks.check("a topic is created", (), controller.create_topic(topic, 2, 1, 10_000).await);
            let again = controller.create_topic(topic, 2, 1, 10_000).await;
            checks.fails("a topic that is there", "TopicAlreadyExists", again);
            checks.fails(
                "a name that cannot be",
                "InvalidTopic",
                controller.create_topic("no/good", 1, 1, 10_000).await,
            );
        }
        Err(error) => checks.check::<&str, _>("a controller is found", "found", Err(error)),
    }
    checks.check("the topic is listed with its partitions", Some(2), listed(client, topic).await);
    let missing = client.partition_client(format!("{topic}-missing"), 0, UnknownTopicHandling::Error).await;
    checks.fails("a topic that there is not", "UnknownTopicOrPartition", missing.map(drop));
}

fn record(value: &str, millis: i64) -> Record {
    Record {
        key: Some(b"key".to_vec()),
        value: Some(value.as_bytes().to_vec()),
        headers: BTreeMap::from([("a".to_owned(), b"1".to_vec())]),
        timestamp: Utc.timestamp_millis_opt(1_700_000_000_000 + millis).unwrap(),
    }
}

fn texts(records: &[RecordAndOffset]) -> Vec<String> {
    let text = |record: &RecordAndOffset| {
        String::from_utf8_lossy(record.record.value.as_deref().unwrap_or_default()).into_owned()
    };
    records.iter().map(text).collect()
}

async fn records(client: &Client, second: &Client, topic: &str, checks: &mut Checks) -> Result<()> {
    let partition = client.partition_client(topic, 0, UnknownTopicHandling::Retry).await?;
    let other = second.partition_client(topic, 0, UnknownTopicHandling::Retry).await?;
    let mut next = 0;
    for (name, compression) in [
        ("none", Compression::NoCompression),
        ("gzip", Compression::Gzip),
        ("snappy", Compression::Snappy),
        ("lz4", Compression::Lz4),
        ("zstd", Compression::Zstd),
    ] {
        let lines: Vec<String> = (0..200).map(|n| format!("{name} line {n} of some length to compress")).collect();
        let batch = lines.iter().map(|line| record(line, next)).collect();
        let read = there_and_back(&partition, batch, compression, next).await;
        checks.check(&format!("reads back what was written with {name}"), (next, lines), read);
        next += 200;
    }
    let whole =
        partition.fetch_records(0, 1..1_000_000, 5_000).await.map(|(records, high)| (records[0].record.clone(), high));
    checks.check(
        "key, headers, timestamp and the high watermark",
        (record("none line 0 of some length to compress", 0), 1000),
        whole,
    );
    let end = async || {
        Ok::<_, Error>((partition.get_offset(OffsetAt::Earliest).await?, partition.get_offset(OffsetAt::Latest).await?))
    };
    checks.check("the first and the next offset", (0, 1000), end().await);
    let at = partition.get_offset(OffsetAt::Timestamp(Utc.timestamp_millis_opt(1_700_000_000_300).unwrap())).await;
    checks.check("the offset of a time", 400, at);
    checks.fails(
        "an offset that is out of range",
        "OffsetOutOfRange",
        partition.fetch_records(50_000, 1..1_000_000, 1_000).await,
    );
    let large = Record { value: Some(vec![b'x'; 2_000_000]), ..record("", 0) };
    let refused = partition.produce(vec![large], Compression::NoCompression).await;
    checks.fails("a message that is too large", "MessageTooLarge", refused);
    checks.check("a reader that waits is woken", vec!["live".to_owned()], woken(&partition, &other).await);
    let deleted = async || {
        partition.delete_records(500, 5_000).await?;
        partition.get_offset(OffsetAt::Earliest).await
    };
    checks.check("records are deleted up to an offset", 500, deleted().await);
    let idle = client.partition_client(topic, 1, UnknownTopicHandling::Retry).await?;
    checks.check("an empty partition", 0, idle.fetch_records(0, 1..1_000, 100).await.map(|(records, _)| records.len()));
    Ok(())
}

/// The first offset of what was written, and the texts that are read from there.
async fn there_and_back(
    client: &PartitionClient,
    batch: Vec<Record>,
    compression: Compression,
    from: i64,
) -> Result<(i64, Vec<String>)> {
    let offsets = client.produce(batch, compression).await?;
    let (records, _) = client.fetch_records(from, 1..1_000_000, 5_000).await?;
    Ok((offsets[0], texts(&records)))
}

/// The writer has a connection of its own, because a broker answers a connection's requests one after the other.
async fn woken(client: &PartitionClient, writer: &PartitionClient) -> Result<Vec<String>> {
    let at = client.get_offset(OffsetAt::Latest).await?;
    let write = async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        writer.produce(vec![record("live", 0)], Compression::NoCompression).await
    };
    let (read, written) = tokio::join!(client.fetch_records(at, 1..1_000_000, 10_000), write);
    written?;
    Ok(texts(&read?.0))
}
