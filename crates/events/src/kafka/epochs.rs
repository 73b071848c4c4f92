//! OffsetForLeaderEpoch: where the reign of a leader ended in a partition.
//!
//! A consumer asks after a change of leader whether what it has read is still there. Here it always is, because only what a
//! quorum has is ever given out; the answer lets the consumer see that for itself (KIP-320).
//!
//! Nothing is kept for it: every batch carries the epoch under which it was appended, epochs grow along the log, so the last
//! batch of an epoch is found by bisection.
//!
//! Source: Kafka, `LeaderEpochFileCache.endOffsetFor`.

use buttress_core::{
    Error, Offset,
    ledger::{ClusterView, PartitionView},
};
use buttress_wire::kafka::{
    Api, ErrorCode,
    offset_for_leader_epoch::{
        EpochEndOffset, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse, OffsetForLeaderTopicResult,
    },
};

use super::{Broker, check_leader_epoch, error::Fault, leader_epoch, partition};

/// No such epoch, no such offset.
const UNDEFINED: (i32, i64) = (-1, -1);

pub(super) async fn handle(broker: &Broker, request: OffsetForLeaderEpochRequest) -> OffsetForLeaderEpochResponse {
    let view = broker.cluster.view();
    let mut response = OffsetForLeaderEpochResponse::default();
    for topic in request.topics {
        let found = broker.stream.topic(&topic.topic);
        let mut partitions = Vec::new();
        for wanted in topic.partitions {
            let known = found.as_ref().and_then(|found| partition(found, wanted.partition));
            let result = match known {
                _ if !view.is_leader() => Err(ErrorCode::NOT_LEADER_OR_FOLLOWER),
                None => Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION),
                Some(known) => match check_leader_epoch(&view, wanted.current_leader_epoch) {
                    Ok(()) => {
                        end_of(broker, &view, known, wanted.leader_epoch).await.map_err(|error| Fault::from(error).code)
                    }
                    Err(code) => Err(code),
                },
            };
            let (leader_epoch, end_offset) = result.unwrap_or(UNDEFINED);
            let error_code = result.err().unwrap_or_default();
            if error_code.is_error() {
                broker.counters.error(&Api::OFFSET_FOR_LEADER_EPOCH);
            }
            partitions.push(EpochEndOffset { error_code, partition: wanted.partition, leader_epoch, end_offset });
        }
        response.topics.push(OffsetForLeaderTopicResult { topic: topic.topic, partitions });
    }
    response
}

/// The largest epoch up to `epoch` that the partition has, and the offset after its last record.
async fn end_of(
    broker: &Broker,
    view: &ClusterView,
    partition: &PartitionView,
    epoch: i32,
) -> Result<(i32, i64), Error> {
    let current = leader_epoch(view);
    if epoch == current {
        return Ok((epoch, partition.end.0));
    }
    if epoch > current || epoch < 0 || partition.start == partition.end {
        return Ok(UNDEFINED);
    }
    let Some(first) = batch_at(broker, partition, partition.start).await? else { return Ok(UNDEFINED) };
    if first.epoch > epoch {
        return Ok((epoch, partition.start.0));
    }
    // The batches before `last` are of the epoch or an older one, those from `beyond` on are of newer ones.
    let (mut last, mut beyond) = (first, partition.end.0);
    while last.next < beyond {
        let middle = last.next + (beyond - last.next) / 2;
        match batch_at(broker, partition, Offset(middle)).await? {
            Some(batch) if batch.epoch <= epoch => last = batch,
            Some(batch) => beyond = batch.base.max(last.next),
            None => beyond = middle,
        }
    }
    Ok((last.epoch, last.next))
}

struct Place {
    base: i64,
    next: i64,
    epoch: i32,
}

async fn batch_at(broker: &Broker, partition: &PartitionView, offset: Offset) -> Result<Option<Place>, Error> {
    let fetched = broker.stream.fetch(partition.log, offset, 1, 0).await?;
    let place = |batch: buttress_core::ledger::Batch| {
        // Behind base offset and length, both before the checksum (source: Kafka, record batch format v2).
        let epoch = batch.bytes.get(12..16)?.try_into().map(i32::from_be_bytes).ok()?;
        Some(Place { base: batch.base_offset.0, next: batch.last_offset.0 + 1, epoch })
    };
    Ok(fetched.batches.into_iter().next().and_then(place))
}
