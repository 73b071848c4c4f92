//! ListOffsets: the ends of a partition, the record at a time, the record with the largest time.
//!
//! The log's time index knows batches. The record inside the batch is found by decoding it; where its codec is not
//! decoded here, the batch's first offset is given, which is at most one batch too early.

use buttress_core::{Error, LogId, Offset};
use buttress_wire::{
    kafka::{
        Api, ErrorCode,
        list_offsets::{
            EARLIEST, EARLIEST_LOCAL, LATEST, LATEST_TIERED, ListOffsetsPartitionResponse, ListOffsetsRequest,
            ListOffsetsResponse, ListOffsetsTopicResponse, MAX_TIMESTAMP,
        },
    },
    records::BatchView,
};

use super::{Broker, check_leader_epoch, error::Fault, leader_epoch, partition};

pub(super) async fn handle(broker: &Broker, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let view = broker.cluster.view();
    let mut response = ListOffsetsResponse::default();
    for topic in request.topics {
        let found = broker.stream.topic(&topic.name);
        let mut answer = ListOffsetsTopicResponse { name: topic.name, partitions: Vec::new() };
        for wanted in topic.partitions {
            let known = found.as_ref().and_then(|found| partition(found, wanted.partition_index));
            let result = match known {
                _ if !view.is_leader() => Err(ErrorCode::NOT_LEADER_OR_FOLLOWER),
                None => Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION),
                Some(known) => match check_leader_epoch(&view, wanted.current_leader_epoch) {
                    Err(code) => Err(code),
                    Ok(()) => match wanted.timestamp {
                        LATEST => Ok((known.end, -1)),
                        EARLIEST | EARLIEST_LOCAL => Ok((known.start, -1)),
                        LATEST_TIERED => Ok((Offset(-1), -1)),
                        timestamp => {
                            let found = match timestamp {
                                MAX_TIMESTAMP => latest(broker, known.log).await,
                                timestamp => at_time(broker, known.log, timestamp).await,
                            };
                            found.map(|f| f.unwrap_or((Offset(-1), -1))).map_err(|error| Fault::from(error).code)
                        }
                    },
                },
            };
            let mut partition = ListOffsetsPartitionResponse {
                partition_index: wanted.partition_index,
                ..ListOffsetsPartitionResponse::default()
            };
            match result {
                Ok((offset, timestamp)) => {
                    (partition.offset, partition.timestamp) = (offset.0, timestamp);
                    partition.leader_epoch = if offset.0 < 0 { -1 } else { leader_epoch(&view) };
                }
                Err(code) => {
                    broker.counters.error(&Api::LIST_OFFSETS);
                    partition.error_code = code;
                }
            }
            answer.partitions.push(partition);
        }
        response.topics.push(answer);
    }
    response
}

/// The first record with a timestamp of at least `timestamp`, and its timestamp.
async fn at_time(broker: &Broker, log: LogId, timestamp: i64) -> Result<Option<(Offset, i64)>, Error> {
    let Some((offset, batch_timestamp)) = broker.stream.offset_for_time(log, timestamp).await? else {
        return Ok(None);
    };
    let inside = find_record(broker, log, offset, |t| t >= timestamp).await?;
    Ok(Some(inside.unwrap_or((offset, batch_timestamp))))
}

/// The first record with the largest timestamp of all. The index answers "which is the first batch that reaches this
/// time", so the largest time for which there is an answer is found by bisection.
async fn latest(broker: &Broker, log: LogId) -> Result<Option<(Offset, i64)>, Error> {
    let Some(mut best) = broker.stream.offset_for_time(log, 0).await? else { return Ok(None) };
    // Something reaches `best.1`, nothing reaches `beyond`.
    let mut beyond = i64::MAX;
    while best.1 < beyond - 1 {
        let middle = best.1 + (beyond - best.1) / 2;
        match broker.stream.offset_for_time(log, middle).await? {
            Some(later) => best = later,
            None => beyond = middle,
        }
    }
    let inside = find_record(broker, log, best.0, |t| t == best.1).await?;
    Ok(Some(inside.unwrap_or(best)))
}

/// The first record that matches in the batch at `offset`; `None` where the batch cannot be decoded or has none.
async fn find_record(
    broker: &Broker,
    log: LogId,
    offset: Offset,
    matches: impl Fn(i64) -> bool,
) -> Result<Option<(Offset, i64)>, Error> {
    let fetched = broker.stream.fetch(log, offset, 1, 0).await?;
    let batch = fetched.batches.into_iter().next().and_then(|batch| BatchView::parse(batch.bytes).ok());
    let Some(records) = batch.and_then(|batch| batch.records().ok()) else { return Ok(None) };
    let mut records = records.map_while(Result::ok);
    let found = records.find(|record| record.offset >= offset.0 && matches(record.timestamp_ms));
    Ok(found.map(|record| (Offset(record.offset), record.timestamp_ms)))
}
