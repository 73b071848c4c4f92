//! ListOffsets (2): the offset at a time, or at an end.

use super::{ErrorCode, message::message};

/// The next record's offset.
pub const LATEST: i64 = -1;
/// The first offset that is left.
pub const EARLIEST: i64 = -2;
/// The record with the largest timestamp.
pub const MAX_TIMESTAMP: i64 = -3;
/// The first offset on local disk; all disk is local here.
pub const EARLIEST_LOCAL: i64 = -4;
/// The last offset in tiered storage; there is none.
pub const LATEST_TIERED: i64 = -5;

message! {
    pub struct ListOffsetsRequest {
        replica_id: i32, 0.., -1;
        isolation_level: i8, 2..;
        topics: Vec<ListOffsetsTopic>, 0..;
        timeout_ms: i32, 10..;
    }

    pub struct ListOffsetsTopic {
        name: String, 0..;
        partitions: Vec<ListOffsetsPartition>, 0..;
    }

    pub struct ListOffsetsPartition {
        partition_index: i32, 0..;
        current_leader_epoch: i32, 4.., -1;
        timestamp: i64, 0..;
    }

    pub struct ListOffsetsResponse {
        throttle_time_ms: i32, 2..;
        topics: Vec<ListOffsetsTopicResponse>, 0..;
    }

    pub struct ListOffsetsTopicResponse {
        name: String, 0..;
        partitions: Vec<ListOffsetsPartitionResponse>, 0..;
    }

    pub struct ListOffsetsPartitionResponse {
        partition_index: i32, 0..;
        error_code: ErrorCode, 0..;
        timestamp: i64, 1.., -1;
        offset: i64, 1.., -1;
        leader_epoch: i32, 4.., -1;
    }
}
