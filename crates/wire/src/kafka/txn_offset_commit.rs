//! TxnOffsetCommit (28): a group's offsets as part of a transaction; only sent. From version 5 on it adds the group to the
//! transaction by itself (KIP-890).

use super::{ErrorCode, message::message};

message! {
    pub struct TxnOffsetCommitRequest {
        transactional_id: String, 0..;
        group_id: String, 0..;
        producer_id: i64, 0..;
        producer_epoch: i16, 0..;
        generation_id: i32, 3.., -1;
        member_id: String, 3..;
        group_instance_id: Option<String>, 3..;
        topics: Vec<TxnOffsetCommitTopic>, 0..;
    }

    pub struct TxnOffsetCommitTopic {
        name: String, 0..;
        partitions: Vec<TxnOffsetCommitPartition>, 0..;
    }

    pub struct TxnOffsetCommitPartition {
        partition_index: i32, 0..;
        committed_offset: i64, 0..;
        committed_leader_epoch: i32, 2.., -1;
        committed_metadata: Option<String>, 0..;
    }

    pub struct TxnOffsetCommitResponse {
        throttle_time_ms: i32, 0..;
        topics: Vec<TxnOffsetCommitTopicResponse>, 0..;
    }

    pub struct TxnOffsetCommitTopicResponse {
        name: String, 0..;
        partitions: Vec<TxnOffsetCommitPartitionResponse>, 0..;
    }

    pub struct TxnOffsetCommitPartitionResponse {
        partition_index: i32, 0..;
        error_code: ErrorCode, 0..;
    }
}
