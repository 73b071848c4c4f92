//! Kafka's error codes as ours. `retryable` says that the same request may be sent again.

use buttress_core::{Code, Error};
use buttress_wire::kafka::ErrorCode;

pub(super) fn no_leader(topics: &[String]) -> Error {
    let error = Error::new(Code::NO_LEADER, format!("no broker is known to lead {}", topics.join(", ")));
    error.hint("does the topic exist, and is a replica of it alive?").retryable()
}

/// What an error code in the answer to `what` means.
pub(super) fn of(code: ErrorCode, what: &str) -> Error {
    let new = |ours| Error::new(ours, format!("Kafka answers {what} with {code}"));
    match code {
        ErrorCode::NOT_LEADER_OR_FOLLOWER
        | ErrorCode::LEADER_NOT_AVAILABLE
        | ErrorCode::FENCED_LEADER_EPOCH
        | ErrorCode::UNKNOWN_LEADER_EPOCH => new(Code::NO_LEADER).retryable(),
        ErrorCode::COORDINATOR_LOAD_IN_PROGRESS
        | ErrorCode::COORDINATOR_NOT_AVAILABLE
        | ErrorCode::NOT_COORDINATOR
        | ErrorCode::CONCURRENT_TRANSACTIONS
        | ErrorCode::UNSTABLE_OFFSET_COMMIT
        | ErrorCode::REQUEST_TIMED_OUT
        | ErrorCode::NOT_ENOUGH_REPLICAS
        | ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND
        | ErrorCode::KAFKA_STORAGE_ERROR => new(Code::NO_LEADER).retryable(),
        // A topic that was just made is not known everywhere yet.
        ErrorCode::UNKNOWN_TOPIC_OR_PARTITION
        | ErrorCode::UNKNOWN_TOPIC_ID
        | ErrorCode::INCONSISTENT_TOPIC_ID => new(Code::TOPIC_UNKNOWN).retryable(),
        ErrorCode::PRODUCER_FENCED
        | ErrorCode::INVALID_PRODUCER_EPOCH
        | ErrorCode::TRANSACTION_COORDINATOR_FENCED
        | ErrorCode::INVALID_PRODUCER_ID_MAPPING
        | ErrorCode::INVALID_TXN_STATE
        | ErrorCode::TRANSACTION_ABORTABLE => {
            new(Code::EPOCH_STALE).hint("another host has claimed this partition, or the transaction took too long")
        }
        ErrorCode::OFFSET_OUT_OF_RANGE => new(Code::OFFSET_OUT_OF_RANGE),
        ErrorCode::MESSAGE_TOO_LARGE | ErrorCode::RECORD_LIST_TOO_LARGE => {
            new(Code::TOO_LARGE).hint("raise max.message.bytes of the topic, or give less per record")
        }
        ErrorCode::CORRUPT_MESSAGE | ErrorCode::INVALID_RECORD | ErrorCode::INVALID_TIMESTAMP => {
            new(Code::BATCH_INVALID)
        }
        ErrorCode::INVALID_TRANSACTION_TIMEOUT => new(Code::CONFIG)
            .hint("a transaction may not last as long: lower transaction_max, or raise the Kafka's transaction.max.timeout.ms"),
        ErrorCode::SASL_AUTHENTICATION_FAILED => new(Code::CREDENTIALS).hint("check the user and the password"),
        ErrorCode::TOPIC_ALREADY_EXISTS => new(Code::TOPIC_EXISTS),
        ErrorCode::INVALID_TOPIC_EXCEPTION
        | ErrorCode::INVALID_PARTITIONS
        | ErrorCode::INVALID_REPLICATION_FACTOR
        | ErrorCode::INVALID_CONFIG => new(Code::TOPIC_INVALID),
        ErrorCode::TOPIC_AUTHORIZATION_FAILED
        | ErrorCode::GROUP_AUTHORIZATION_FAILED
        | ErrorCode::CLUSTER_AUTHORIZATION_FAILED
        | ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED => new(Code::FORBIDDEN)
            .hint("the user needs Read, Write and Create on topics, Read on the group, Write on the transactional id"),
        _ => new(Code::REFUSED),
    }
}
