//! Fetch (1): record batches out, from where they lie.

use super::{
    ErrorCode,
    message::{Records, Uuid, message},
};

message! {
    pub struct FetchRequest {
        replica_id: i32, 0..=14, -1;
        max_wait_ms: i32, 0..;
        min_bytes: i32, 0..;
        max_bytes: i32, 3.., i32::MAX;
        isolation_level: i8, 4..;
        session_id: i32, 7..;
        session_epoch: i32, 7.., -1;
        topics: Vec<FetchTopic>, 0..;
        forgotten_topics_data: Vec<ForgottenTopic>, 7..;
        rack_id: String, 11..;
    }
    tagged {
        0 => cluster_id: Option<String>, 12..;
    }

    pub struct FetchTopic {
        topic: String, 0..=12;
        topic_id: Uuid, 13..;
        partitions: Vec<FetchPartition>, 0..;
    }

    pub struct FetchPartition {
        partition: i32, 0..;
        current_leader_epoch: i32, 9.., -1;
        fetch_offset: i64, 0..;
        last_fetched_epoch: i32, 12.., -1;
        log_start_offset: i64, 5.., -1;
        partition_max_bytes: i32, 0..;
    }

    pub struct ForgottenTopic {
        topic: String, 7..=12;
        topic_id: Uuid, 13..;
        partitions: Vec<i32>, 7..;
    }

    pub struct FetchResponse {
        throttle_time_ms: i32, 1..;
        error_code: ErrorCode, 7..;
        session_id: i32, 7..;
        responses: Vec<FetchTopicResponse>, 0..;
    }
    tagged {
        0 => node_endpoints: Vec<NodeEndpoint>, 16..;
    }

    pub struct FetchTopicResponse {
        topic: String, 0..=12;
        topic_id: Uuid, 13..;
        partitions: Vec<FetchPartitionResponse>, 0..;
    }

    pub struct FetchPartitionResponse {
        partition_index: i32, 0..;
        error_code: ErrorCode, 0..;
        high_watermark: i64, 0.., -1;
        last_stable_offset: i64, 4.., -1;
        log_start_offset: i64, 5.., -1;
        aborted_transactions: Option<Vec<AbortedTransaction>>, 4..;
        preferred_read_replica: i32, 11.., -1;
        records: Records, 0..;
    }
    tagged {
        1 => current_leader: LeaderIdAndEpoch, 12..;
    }

    pub struct AbortedTransaction {
        producer_id: i64, 4..;
        first_offset: i64, 4..;
    }

    /// Told with NOT_LEADER_OR_FOLLOWER, so that the client need not ask for metadata first (KIP-951).
    pub struct LeaderIdAndEpoch {
        leader_id: i32, 0.., -1;
        leader_epoch: i32, 0.., -1;
    }

    pub struct NodeEndpoint {
        node_id: i32, 0..;
        host: String, 0..;
        port: i32, 0..;
        rack: Option<String>, 0..;
    }
}
