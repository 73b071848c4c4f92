//! Produce (0): record batches in.
//!
//! Versions 0 to 2 are decoded so that they can be answered: librdkafka looks for version 0 before it compresses
//! (KAFKA-18659), but what they carry, record formats 0 and 1, is refused.

use super::{
    ErrorCode,
    fetch::{LeaderIdAndEpoch, NodeEndpoint},
    message::{Records, Uuid, message},
};

message! {
    pub struct ProduceRequest {
        transactional_id: Option<String>, 3..;
        acks: i16, 0..;
        timeout_ms: i32, 0..;
        topic_data: Vec<ProduceTopic>, 0..;
    }

    pub struct ProduceTopic {
        name: String, 0..=12;
        topic_id: Uuid, 13..;
        partition_data: Vec<ProducePartition>, 0..;
    }

    pub struct ProducePartition {
        index: i32, 0..;
        records: Records, 0..;
    }

    pub struct ProduceResponse {
        responses: Vec<ProduceTopicResponse>, 0..;
        throttle_time_ms: i32, 1..;
    }
    tagged {
        0 => node_endpoints: Vec<NodeEndpoint>, 10..;
    }

    pub struct ProduceTopicResponse {
        name: String, 0..=12;
        topic_id: Uuid, 13..;
        partition_responses: Vec<ProducePartitionResponse>, 0..;
    }

    pub struct ProducePartitionResponse {
        index: i32, 0..;
        error_code: ErrorCode, 0..;
        base_offset: i64, 0.., -1;
        log_append_time_ms: i64, 2.., -1;
        log_start_offset: i64, 5.., -1;
        record_errors: Vec<RecordErrorMessage>, 8..;
        error_message: Option<String>, 8..;
    }
    tagged {
        0 => current_leader: LeaderIdAndEpoch, 10..;
    }

    pub struct RecordErrorMessage {
        batch_index: i32, 8..;
        batch_index_error_message: Option<String>, 8..;
    }
}
