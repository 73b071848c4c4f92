//! Reading a partition: only what is committed, batch by batch as it lies there.
//!
//! A broker hands out the batches of aborted transactions too, and says which producers' they are from which offset on. They
//! are handed on as something that readers step over, as they step over a transaction's marker: so every offset is covered,
//! and a reader that goes on behind the last batch never comes back to the same place.

use std::{collections::BTreeSet, time::Duration};

use buttress_core::{Code, Error, Index, Offset, TimeMs, ledger::Batch};
use buttress_wire::{
    kafka::{
        ErrorCode, Uuid,
        fetch::{AbortedTransaction, FetchPartition, FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopic},
        list_offsets::{ListOffsetsPartition, ListOffsetsRequest, ListOffsetsResponse, ListOffsetsTopic},
    },
    records::{BatchView, split_stored, stored_offsets},
};

use super::{
    Place,
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
    place: &Place,
    offset: Offset,
    bytes_max: usize,
    wait: Duration,
    deadline: Duration,
) -> Result<Page, Error> {
    let wait = wait.min(WAIT_MAX);
    let bytes = i32::try_from(bytes_max).unwrap_or(i32::MAX);
    let asked = FetchPartition {
        partition: place.partition,
        fetch_offset: offset.0,
        partition_max_bytes: bytes,
        ..FetchPartition::default()
    };
    // By its id, so that a topic of the same name which was made since does not answer for it.
    let topic = FetchTopic { topic_id: Uuid(place.id), partitions: vec![asked], ..FetchTopic::default() };
    let request = FetchRequest {
        max_wait_ms: wait.as_millis() as i32,
        min_bytes: 1,
        max_bytes: bytes,
        isolation_level: READ_COMMITTED,
        topics: vec![topic],
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
    let found: FetchPartitionResponse = at_leader(client, place, deadline, 13, &request, wait, of).await?;
    let (start, end) = (Offset(found.log_start_offset.max(0)), Offset(found.last_stable_offset.max(0)));
    let batches = committed(found, offset, end).map_err(|why| {
        let error = Error::new(Code::BATCH_INVALID, format!("the broker's records of {place} from {offset} on {why}"));
        error
            .hint("nothing of them was handed on; read again, and if it stays: kafka-dump-log.sh --verify-index-only")
            .retryable()
    })?;
    Ok(Page { start, end, batches })
}

/// The topic that a place is in is still there.
///
/// # Errors
/// `TOPIC_UNKNOWN`, `FORBIDDEN`.
pub(super) fn check(client: &Client, place: &Place) -> Result<(), Error> {
    let Place { topic, id, .. } = place;
    client.check_allowed(topic)?;
    match client.topic(topic) {
        Some(meta) if meta.id == *id => Ok(()),
        Some(_) => {
            let message = format!("topic '{topic}' was deleted, and another one made under its name");
            Err(Error::new(Code::TOPIC_UNKNOWN, message).hint("look at the topic again: its partitions are others"))
        }
        None => Err(Error::new(Code::TOPIC_UNKNOWN, format!("there is no topic '{topic}'"))),
    }
}

/// The batches that hold the wanted offset or come after it. A reader relies on them: they follow each other, they are whole,
/// and at least one gets it further, or there is none.
fn committed(found: FetchPartitionResponse, wanted: Offset, end: Offset) -> Result<Vec<Batch>, String> {
    let mut aborted = found.aborted_transactions.unwrap_or_default();
    aborted.sort_unstable_by_key(|transaction| transaction.first_offset);
    let mut aborted = aborted.into_iter().peekable();
    let mut gone: BTreeSet<i64> = BTreeSet::new();
    let mut batches: Vec<Batch> = Vec::new();
    let set = found.records.concat();
    let something = !set.is_empty();
    for raw in split_stored(set) {
        let Some((base, last)) = stored_offsets(&raw) else { continue };
        while let Some(AbortedTransaction { producer_id, .. }) = aborted.next_if(|a| a.first_offset <= last) {
            gone.insert(producer_id);
        }
        let mut bytes = raw.clone();
        let view = match BatchView::parse_stored(raw) {
            Ok(view) => view,
            // What is good before it goes on; the next read begins at what is not.
            Err(_) if !batches.is_empty() => break,
            Err(error) => return Err(format!("cannot be read: {error}")),
        };
        let producer = view.producer().map(|producer| producer.id);
        if view.is_control() {
            // The marker of an abort ends it; that of a commit is never among the aborted.
            if let Some(id) = producer {
                gone.remove(&id);
            }
        } else if view.is_transactional() && producer.is_some_and(|id| gone.contains(&id)) {
            bytes = view.as_control();
        }
        if last < wanted.0 {
            continue;
        }
        if last >= end.0 {
            return Err(format!("go on to {last}, behind what it says is committed ({end})"));
        }
        if batches.last().is_some_and(|before| base <= before.last_offset.0) {
            return Err(format!("go back to {base}"));
        }
        batches.push(Batch {
            base_offset: Offset(base),
            last_offset: Offset(last),
            max_timestamp_ms: view.max_timestamp_ms(),
            index: Index(0),
            committed_at: TimeMs(view.max_timestamp_ms().max(0) as u64),
            bytes,
        });
    }
    if something && batches.is_empty() {
        return Err("hold nothing that was asked for, or no whole batch".into());
    }
    Ok(batches)
}

/// Asserts what a reader relies on, whatever a broker sends.
pub(crate) fn check_fetch(records: &[u8], wanted: Offset, end: Offset) {
    let records = bytes::Bytes::copy_from_slice(records);
    let something = !records.is_empty();
    let found = FetchPartitionResponse { records: records.into(), ..FetchPartitionResponse::default() };
    let Ok(batches) = committed(found, wanted, end) else { return };
    assert_eq!(something, !batches.is_empty(), "where there is something, a reader gets further");
    let mut next = Offset(i64::MIN);
    for batch in &batches {
        assert!(batch.base_offset >= next && batch.last_offset >= wanted && batch.last_offset < end, "{batch:?}");
        assert!(batch.base_offset <= batch.last_offset, "{batch:?}");
        next = Offset(batch.last_offset.0 + 1);
        BatchView::parse_stored(batch.bytes.clone()).expect("a batch that is handed on is one");
    }
}

/// The offset that Kafka has for a timestamp or one of its special values, with the record's timestamp; `None` where there is
/// none.
pub(super) async fn list_offset(
    client: &Client,
    place: &Place,
    timestamp: i64,
    deadline: Duration,
) -> Result<Option<(Offset, i64)>, Error> {
    let asked = ListOffsetsPartition { partition_index: place.partition, timestamp, ..ListOffsetsPartition::default() };
    let request = ListOffsetsRequest {
        isolation_level: READ_COMMITTED,
        topics: vec![ListOffsetsTopic { name: place.topic.clone(), partitions: vec![asked] }],
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
    at_leader(client, place, deadline, 2, &request, Duration::ZERO, of).await
}

/// Asks the partition's leader, and whoever leads after it.
async fn at_leader<Q: buttress_wire::kafka::Body, A: buttress_wire::kafka::Body, T>(
    client: &Client,
    place: &Place,
    deadline: Duration,
    min: i16,
    request: &Q,
    wait: Duration,
    of: impl Fn(A) -> Result<T, ErrorCode>,
) -> Result<T, Error> {
    let mut patience = Patience::new(deadline);
    loop {
        let error = match client.leader(&place.topic, place.partition) {
            None => errors::no_leader(&[place.to_string()]),
            Some((address, _)) => match client.ask::<Q, A>(&address, min, request, wait).await {
                Ok(answer) => match of(answer) {
                    Ok(found) => return Ok(found),
                    Err(code) => {
                        let error = errors::of(code, &format!("{} of {place}", Q::API.name));
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
        match client.refresh(std::slice::from_ref(&place.topic)).await {
            Err(Failure::Refused(error)) => return Err(error),
            Ok(()) => check(client, place)?,
            Err(_) => {}
        }
    }
}
