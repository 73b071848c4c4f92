//! DeleteRecords: a partition's oldest records go, at once and for ever.

use buttress_core::{Entry, Offset, TopicChange, limits::ENTRY_PARTS_MAX};
use buttress_wire::kafka::{
    Api, ErrorCode,
    delete_records::{
        DeleteRecordsPartitionResult, DeleteRecordsRequest, DeleteRecordsResponse, DeleteRecordsTopicResult,
    },
};

use super::{Broker, error::Fault, partition};

/// Stands for the end of the partition.
const END: i64 = -1;

pub(super) async fn handle(broker: &Broker, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let view = broker.cluster.view();
    let mut trims = Vec::new();
    let mut response = DeleteRecordsResponse::default();
    for topic in request.topics {
        let found = broker.stream.topic(&topic.name);
        let mut partitions = Vec::new();
        for wanted in topic.partitions {
            let known = found.as_ref().and_then(|found| partition(found, wanted.partition_index));
            let placed = match known {
                _ if !view.is_leader() => Err(ErrorCode::NOT_LEADER_OR_FOLLOWER),
                None => Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION),
                Some(known) if wanted.offset == END => Ok((known, known.end)),
                Some(known) if (0..=known.end.0).contains(&wanted.offset) => Ok((known, Offset(wanted.offset))),
                Some(_) => Err(ErrorCode::OFFSET_OUT_OF_RANGE),
            };
            let mut result = DeleteRecordsPartitionResult {
                partition_index: wanted.partition_index,
                low_watermark: -1,
                error_code: ErrorCode::NONE,
            };
            match placed {
                Ok((known, before)) => {
                    result.low_watermark = before.max(known.start).0;
                    trims.push(TopicChange::Trim { log: known.log, before });
                }
                Err(code) => result.error_code = code,
            }
            partitions.push(result);
        }
        response.topics.push(DeleteRecordsTopicResult { name: topic.name, partitions });
    }
    let trimmed = match trims.len() {
        0 => Ok(()),
        1..=ENTRY_PARTS_MAX => {
            let entry = Entry { topics: trims, ..Entry::default() };
            broker.ledger.submit(entry).await.map(drop).map_err(|error| Fault::from(error.into_error()).code)
        }
        _ => Err(ErrorCode::INVALID_REQUEST),
    };
    for result in response.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
        if let (Err(code), false) = (trimmed, result.error_code.is_error()) {
            (result.low_watermark, result.error_code) = (-1, code);
        }
        if result.error_code.is_error() {
            broker.counters.error(&Api::DELETE_RECORDS);
        }
    }
    response
}
