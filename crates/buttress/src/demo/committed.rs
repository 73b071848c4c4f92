//! Reading the user's Kafka as a `read_committed` consumer would, and judging for itself what is committed.
//!
//! The stock client that the demo reads its own nodes with hands out the records of aborted transactions as well, and a host
//! that is killed leaves such behind. So this reader takes the partition's bytes as they lie there, uncommitted ones too, and
//! decides by the markers in them: a record counts once the marker of its transaction says "commit". It asks the broker for
//! nothing but bytes, and shares the message definitions with the hosts, not the code that reads.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context as _, bail, ensure};
use buttress_wire::{
    kafka::{
        Body, RequestHeader, decode_response, encode_request,
        fetch::{FetchPartition, FetchRequest, FetchResponse, FetchTopic},
        list_offsets::{
            EARLIEST, LATEST, ListOffsetsPartition, ListOffsetsRequest, ListOffsetsResponse, ListOffsetsTopic,
        },
        metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse},
    },
    records::{BatchView, split_stored},
};
use bytes::Bytes;
use rskafka::record::{Record, RecordAndOffset};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const ANSWER_MAX: Duration = Duration::from_secs(15);
const FETCH_BYTES_MAX: i32 = 1024 * 1024;
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The key of a marker: version and kind, both of two bytes.
const MARKER_COMMIT: [u8; 2] = [0, 1];

/// One connection to a broker.
struct Connection {
    stream: TcpStream,
    correlation: i32,
}

impl Connection {
    async fn open(address: &str) -> anyhow::Result<Self> {
        let stream = timeout(ANSWER_MAX, TcpStream::connect(address)).await.with_context(|| address.to_owned())?;
        Ok(Self { stream: stream.with_context(|| address.to_owned())?, correlation: 0 })
    }

    async fn ask<Q: Body, A: Body>(&mut self, version: i16, request: &Q, wait: Duration) -> anyhow::Result<A> {
        self.correlation += 1;
        let header = RequestHeader {
            api_key: Q::API.key,
            version,
            correlation_id: self.correlation,
            client_id: Some("fleet-reader".into()),
        };
        let exchange = async {
            for chunk in encode_request(&header, request) {
                self.stream.write_all(&chunk).await?;
            }
            let length = self.stream.read_i32().await?;
            let length = usize::try_from(length).ok().filter(|length| *length <= ANSWER_BYTES_MAX);
            let length = length.context("an answer of no size that can be")?;
            // Grows with what comes, not with what was stated.
            let mut answer = Vec::new();
            (&mut self.stream).take(length as u64).read_to_end(&mut answer).await?;
            ensure!(answer.len() == length, "the broker has closed the connection");
            anyhow::Ok(Bytes::from(answer))
        };
        let answer = timeout(ANSWER_MAX + wait, exchange).await.context("the broker does not answer")??;
        let (id, body) = decode_response::<A>(version, answer)?;
        ensure!(id == self.correlation, "the broker answers something else");
        Ok(body)
    }
}

async fn metadata(bootstrap: &[String], topic: Option<&str>) -> anyhow::Result<MetadataResponse> {
    let request = MetadataRequest {
        topics: topic
            .map(|name| vec![MetadataRequestTopic { name: Some(name.to_owned()), ..MetadataRequestTopic::default() }]),
        allow_auto_topic_creation: false,
        ..MetadataRequest::default()
    };
    let mut last = anyhow::anyhow!("no broker is named");
    for address in bootstrap {
        let asked = async { Connection::open(address).await?.ask(9, &request, Duration::ZERO).await };
        match asked.await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last.context("no broker answers"))
}

/// The topics whose names begin so.
///
/// # Errors
/// No broker answers.
pub async fn topics(bootstrap: &[String], prefix: &str) -> anyhow::Result<Vec<String>> {
    let all = metadata(bootstrap, None).await?;
    let mut names: Vec<String> = all.topics.into_iter().filter_map(|topic| topic.name).collect();
    names.retain(|name| name.starts_with(prefix));
    names.sort_unstable();
    Ok(names)
}

/// Every broker's id and address.
///
/// # Errors
/// No broker answers.
pub async fn brokers(bootstrap: &[String]) -> anyhow::Result<Vec<(i32, String)>> {
    let all = metadata(bootstrap, None).await?.brokers;
    Ok(all.into_iter().map(|broker| (broker.node_id, format!("{}:{}", broker.host, broker.port))).collect())
}

/// A batch whose transaction may not be decided yet.
struct Held {
    /// The producer whose marker decides.
    waits_for: Option<i64>,
    records: Vec<RecordAndOffset>,
}

/// One partition, read from its beginning.
pub struct Log {
    bootstrap: Vec<String>,
    topic: String,
    partition: i32,
    connection: Option<Connection>,
    next: i64,
    /// In the order of offsets; nothing is given before what lies before it is decided.
    held: VecDeque<Held>,
}

impl Log {
    pub fn new(bootstrap: &[String], topic: String, partition: i32) -> Self {
        Self { bootstrap: bootstrap.to_vec(), topic, partition, connection: None, next: 0, held: VecDeque::new() }
    }

    async fn connection(&mut self) -> anyhow::Result<&mut Connection> {
        if self.connection.is_none() {
            let what = || format!("{}/{}", self.topic, self.partition);
            let meta = metadata(&self.bootstrap, Some(&self.topic)).await?;
            let topic = meta.topics.iter().find(|topic| topic.name.as_ref() == Some(&self.topic));
            let leader = topic
                .and_then(|topic| topic.partitions.iter().find(|p| p.partition_index == self.partition))
                .map(|partition| partition.leader_id);
            let broker = meta.brokers.iter().find(|broker| Some(broker.node_id) == leader);
            let broker = broker.with_context(|| format!("{} has no leader", what()))?;
            self.connection = Some(Connection::open(&format!("{}:{}", broker.host, broker.port)).await?);
        }
        Ok(self.connection.as_mut().expect("it was opened above"))
    }

    /// The next committed records; none where none have come within the wait.
    ///
    /// # Errors
    /// The broker does not answer, or what lies there is no log. Asking again goes on where it was.
    pub async fn more(&mut self, wait: Duration) -> anyhow::Result<Vec<RecordAndOffset>> {
        let fetched = self.fetch(wait).await;
        if fetched.is_err() {
            self.connection = None;
        }
        for batch in split_stored(fetched?) {
            self.take(batch)?;
        }
        let mut given = Vec::new();
        while let Some(held) = self.held.pop_front_if(|held| held.waits_for.is_none()) {
            given.extend(held.records);
        }
        Ok(given)
    }

    async fn fetch(&mut self, wait: Duration) -> anyhow::Result<Bytes> {
        let place = FetchPartition {
            partition: self.partition,
            fetch_offset: self.next,
            partition_max_bytes: FETCH_BYTES_MAX,
            ..FetchPartition::default()
        };
        let request = FetchRequest {
            max_wait_ms: wait.as_millis() as i32,
            min_bytes: 1,
            max_bytes: FETCH_BYTES_MAX,
            topics: vec![FetchTopic { topic: self.topic.clone(), partitions: vec![place], ..FetchTopic::default() }],
            ..FetchRequest::default()
        };
        let answer: FetchResponse = self.connection().await?.ask(12, &request, wait).await?;
        let topic = answer.responses.into_iter().next().context("the broker says nothing of the topic")?;
        let partition = topic.partitions.into_iter().next().context("the broker says nothing of the partition")?;
        if partition.error_code.is_error() {
            bail!("fetching {}/{} at {}: {}", self.topic, self.partition, self.next, partition.error_code);
        }
        Ok(partition.records.concat())
    }

    fn take(&mut self, batch: Bytes) -> anyhow::Result<()> {
        let view = BatchView::parse_stored(batch)?;
        if view.last_offset() < self.next {
            return Ok(());
        }
        let from = std::mem::replace(&mut self.next, view.last_offset() + 1);
        let producer = view.producer().map(|producer| producer.id);
        if view.is_control() {
            let marker = view.records()?.next().context("a marker without a record")??;
            let committed = marker.key.as_deref().is_some_and(|key| key.get(2..4) == Some(&MARKER_COMMIT));
            for held in self.held.iter_mut().filter(|held| held.waits_for == producer) {
                held.waits_for = None;
                if !committed {
                    held.records.clear();
                }
            }
            return Ok(());
        }
        let mut records = Vec::with_capacity(view.records_count() as usize);
        for record in view.records()? {
            let record = record?;
            if record.offset < from {
                continue;
            }
            let since = Duration::from_millis(record.timestamp_ms.max(0) as u64);
            let mut read = Record {
                key: record.key.map(|key| key.to_vec()),
                value: record.value.map(|value| value.to_vec()),
                headers: std::collections::BTreeMap::new(),
                // The epoch, to which the milliseconds are added.
                timestamp: Default::default(),
            };
            read.timestamp += since;
            records.push(RecordAndOffset { offset: record.offset, record: read });
        }
        let waits_for = if view.is_transactional() { producer } else { None };
        self.held.push_back(Held { waits_for, records });
        Ok(())
    }

    /// Whether everything before `end` was read and decided.
    pub fn has_read(&self, end: i64) -> bool {
        self.next >= end && self.held.is_empty()
    }

    /// The offset behind everything that lies there, and the first one.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn bounds(&mut self) -> anyhow::Result<(i64, i64)> {
        let mut bounds = [0; 2];
        for (bound, timestamp) in bounds.iter_mut().zip([EARLIEST, LATEST]) {
            let place =
                ListOffsetsPartition { partition_index: self.partition, timestamp, ..ListOffsetsPartition::default() };
            let request = ListOffsetsRequest {
                topics: vec![ListOffsetsTopic { name: self.topic.clone(), partitions: vec![place] }],
                ..ListOffsetsRequest::default()
            };
            let answer: ListOffsetsResponse = self.connection().await?.ask(5, &request, Duration::ZERO).await?;
            let found = answer.topics.first().and_then(|topic| topic.partitions.first());
            let found = found.context("the broker says nothing of the partition")?;
            ensure!(!found.error_code.is_error(), "asking for the bounds: {}", found.error_code);
            *bound = found.offset;
        }
        Ok((bounds[0], bounds[1]))
    }
}

#[cfg(test)]
mod tests {
    use buttress_wire::records::{Builder, Producer};

    use super::*;

    fn batch(base: i64, values: &[&str], producer: Option<i64>) -> Bytes {
        let mut builder = Builder::new();
        for value in values {
            builder.push(1_000, None, Some(value.as_bytes()), &[]);
        }
        let plain = BatchView::parse(builder.build().unwrap()).unwrap();
        let batch = match producer {
            Some(id) => plain.in_transaction(Producer { id, epoch: 0, base_sequence: 0 }),
            None => plain.into_bytes(),
        };
        at(base, &batch)
    }

    fn marker(base: i64, producer: i64, commit: bool) -> Bytes {
        let mut builder = Builder::new();
        builder.push(1_000, Some(&[0, 0, 0, u8::from(commit)]), Some(&[0; 6]), &[]);
        let plain = BatchView::parse(builder.build().unwrap()).unwrap();
        let inside = plain.in_transaction(Producer { id: producer, epoch: 0, base_sequence: -1 });
        at(base, &BatchView::parse_stored(inside).unwrap().as_control())
    }

    /// The base offset is not part of what the checksum covers.
    fn at(base: i64, batch: &Bytes) -> Bytes {
        [&base.to_be_bytes()[..], &batch[8..]].concat().into()
    }

    fn read(batches: &[Bytes]) -> (Vec<(i64, String)>, Log) {
        let mut log = Log::new(&[], "t".into(), 0);
        let mut given = Vec::new();
        for batch in batches {
            log.take(batch.clone()).unwrap();
            while let Some(held) = log.held.pop_front_if(|held| held.waits_for.is_none()) {
                given.extend(
                    held.records
                        .into_iter()
                        .map(|record| (record.offset, String::from_utf8(record.record.value.unwrap()).unwrap())),
                );
            }
        }
        (given, log)
    }

    #[test]
    fn what_a_marker_commits_is_given_in_the_order_of_offsets_and_what_it_aborts_is_not() {
        let batches = [
            batch(0, &["a", "b"], Some(7)),
            batch(2, &["c"], Some(8)),
            batch(3, &["d"], None),
            marker(4, 8, false),
            marker(5, 7, true),
            batch(6, &["e"], Some(8)),
        ];
        let (given, log) = read(&batches);
        let expected = [(0, "a"), (1, "b"), (3, "d")].map(|(offset, value)| (offset, value.to_owned()));
        assert_eq!(given, expected);
        assert!(!log.has_read(7), "a transaction is open");
        let (given, log) = read(&[&batches[..], &[marker(7, 8, true)]].concat());
        assert_eq!((given.len(), log.has_read(8), log.has_read(9)), (4, true, false));
    }
}
