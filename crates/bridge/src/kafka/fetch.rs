//! Reading a partition: only what is committed, batch by batch as it lies there.
//!
//! A broker hands out the batches of aborted transactions too, and says which producers' they are from which offset on. They
//! are handed on as something that readers step over, as they step over a transaction's marker: so every offset is covered,
//! and a reader that goes on behind the last batch never comes back to the same place.

use std::{collections::BTreeSet, time::Duration};

use buttress_core::{Code, Error, Index, Offset, TimeMs, ledger::Batch};
use buttress_wire::{
    kafka::{
        ErrorCode,
        fetch::{AbortedTransaction, FetchPartition, FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopic},
        list_offsets::{ListOffsetsPartition, ListOffsetsRequest, ListOffsetsResponse, ListOffsetsTopic},
    },
    records::{BatchView, split_stored, stored_offsets},
};

use super::{
    client::{Client, Failure},
    errors,
};
use crate::patience::Patience;

const READ_COMMITTED: i8 = 1;
/// A fetch waits this long at most, whatever is asked for.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What a partition has given.
pub(super) struct Page {
    pub(super) start: Offset,
    /// The last stable offset: behind it are open transactions, or nothing.
    pub(super) end: Offset,
    pub(super) batches: Vec<Batch>,
}

pub(super) async fn fetch(
    client: &Client,
    topic: &str,
    partition: i32,
    offset: Offset,
    bytes_max: usize,
    wait: Duration,
    deadline: Duration,
) -> Result<Page, Error> {
    let wait = wait.min(WAIT_MAX);
    let bytes = i32::try_from(bytes_max).unwrap_or(i32::MAX);
    let place =
        FetchPartition { partition, fetch_offset: offset.0, partition_max_bytes: bytes, ..FetchPartition::default() };
    let request = FetchRequest {
        max_wait_ms: wait.as_millis() as i32,
        min_bytes: 1,
        max_bytes: bytes,
        isolation_level: READ_COMMITTED,
        topics: vec![FetchTopic { topic: topic.to_owned(), partitions: vec![place], ..FetchTopic::default() }],
        ..FetchRequest::default()
    };
    let of = |answer: FetchResponse| {
        if answer.error_code.is_error() {
            return Err(answer.error_code);
        }
        let topic = answer.responses.into_iter().next();
        let partition = topic.and_then(|topic| topic.partitions.into_iter().next());
        match partition {
            Some(partition) if partition.error_code.is_error() => Err(partition.error_code),
            Some(partition) => Ok(partition),
            None => Err(ErrorCode::UNKNOWN_SERVER_ERROR),
        }
    };
    let found: FetchPartitionResponse = at_leader(client, topic, partition, deadline, 12, &request, wait, of).await?;
    let end = Offset(found.last_stable_offset.max(0));
    let batches = committed(found, offset);
    Ok(Page { start: Offset(batches.0.max(0)), end, batches: batches.1 })
}

/// The batches that hold the wanted offset or come after it, and the partition's start.
fn committed(found: FetchPartitionResponse, wanted: Offset) -> (i64, Vec<Batch>) {
    let mut aborted = found.aborted_transactions.unwrap_or_default();
    aborted.sort_unstable_by_key(|transaction| transaction.first_offset);
    let mut aborted = aborted.into_iter().peekable();
    let mut gone: BTreeSet<i64> = BTreeSet::new();
    let mut batches = Vec::new();
    for raw in split_stored(found.records.concat()) {
        let Some((base, last)) = stored_offsets(&raw) else { continue };
        while let Some(AbortedTransaction { producer_id, .. }) = aborted.next_if(|a| a.first_offset <= last) {
            gone.insert(producer_id);
        }
        let mut bytes = raw.clone();
        let mut max_timestamp_ms = 0;
        // What is malformed is handed on as it is, so that the reader can say so.
        if let Ok(view) = BatchView::parse_stored(raw) {
            max_timestamp_ms = view.max_timestamp_ms();
            let producer = view.producer().map(|producer| producer.id);
            if view.is_control() {
                // The marker of an abort ends it; that of a commit is never among the aborted.
                if let Some(id) = producer {
                    gone.remove(&id);
                }
            } else if view.is_transactional() && producer.is_some_and(|id| gone.contains(&id)) {
                bytes = view.as_control();
            }
        }
        if last >= wanted.0 {
            batches.push(Batch {
                base_offset: Offset(base),
                last_offset: Offset(last),
                max_timestamp_ms,
                index: Index(0),
                committed_at: TimeMs(max_timestamp_ms.max(0) as u64),
                bytes,
            });
        }
    }
    (found.log_start_offset, batches)
}

/// The offset that Kafka has for a timestamp or one of its special values, with the record's timestamp; `None` where there is
/// none.
pub(super) async fn list_offset(
    client: &Client,
    topic: &str,
    partition: i32,
    timestamp: i64,
    deadline: Duration,
) -> Result<Option<(Offset, i64)>, Error> {
    let asked = ListOffsetsPartition { partition_index: partition, timestamp, ..ListOffsetsPartition::default() };
    let request = ListOffsetsRequest {
        isolation_level: READ_COMMITTED,
        topics: vec![ListOffsetsTopic { name: topic.to_owned(), partitions: vec![asked] }],
        ..ListOffsetsRequest::default()
    };
    let of = |answer: ListOffsetsResponse| {
        let partition = answer.topics.first().and_then(|topic| topic.partitions.first()).cloned();
        match partition {
            Some(partition) if partition.error_code.is_error() => Err(partition.error_code),
            Some(partition) => Ok((partition.offset >= 0).then_some((Offset(partition.offset), partition.timestamp))),
            None => Err(ErrorCode::UNKNOWN_SERVER_ERROR),
        }
    };
    at_leader(client, topic, partition, deadline, 2, &request, Duration::ZERO, of).await
}

/// Asks the partition's leader, and whoever leads after it.
#[allow(clippy::too_many_arguments)]
async fn at_leader<Q: buttress_wire::kafka::Body, A: buttress_wire::kafka::Body, T>(
    client: &Client,
    topic: &str,
    partition: i32,
    deadline: Duration,
    min: i16,
    request: &Q,
    wait: Duration,
    of: impl Fn(A) -> Result<T, ErrorCode>,
) -> Result<T, Error> {
    let mut patience = Patience::new(deadline);
    loop {
        let error = match client.leader(topic, partition) {
            None => errors::no_leader(&[format!("{topic}/{partition}")]),
            Some((address, _)) => match client.ask::<Q, A>(&address, min, request, wait).await {
                Ok(answer) => match of(answer) {
                    Ok(found) => return Ok(found),
                    Err(code) => {
                        let error = errors::of(code, &format!("{} of {topic}/{partition}", Q::API.name));
                        if !error.retryable {
                            return Err(error);
                        }
                        error
                    }
                },
                Err(Failure::Refused(error)) => return Err(error),
                Err(failure) => failure.into_error(),
            },
        };
        if !patience.pause().await {
            return Err(error);
        }
        match client.refresh(&[topic.to_owned()]).await {
            Err(Failure::Refused(error)) => return Err(error),
            Ok(()) if client.topic(topic).is_none() => {
                return Err(Error::new(Code::TOPIC_UNKNOWN, format!("there is no topic '{topic}'")));
            }
            Ok(()) | Err(_) => {}
        }
    }
}
