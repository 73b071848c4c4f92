//! Metadata (3): brokers, topics, and who leads each partition.

use super::{
    ErrorCode,
    message::{Uuid, message},
};

message! {
    pub struct MetadataRequest {
        /// `None`: all topics. In version 0 an empty list means that as well.
        topics: Option<Vec<MetadataRequestTopic>>, 0..;
        allow_auto_topic_creation: bool, 4.., true;
        include_cluster_authorized_operations: bool, 8..=10;
        include_topic_authorized_operations: bool, 8..;
    }

    pub struct MetadataRequestTopic {
        topic_id: Uuid, 10..;
        name: Option<String>, 0..;
    }

    pub struct MetadataResponse {
        throttle_time_ms: i32, 3..;
        brokers: Vec<MetadataBroker>, 0..;
        cluster_id: Option<String>, 2..;
        controller_id: i32, 1.., -1;
        topics: Vec<MetadataTopic>, 0..;
        cluster_authorized_operations: i32, 8..=10, i32::MIN;
        error_code: ErrorCode, 13..;
    }

    pub struct MetadataBroker {
        node_id: i32, 0..;
        host: String, 0..;
        port: i32, 0..;
        rack: Option<String>, 1..;
    }

    pub struct MetadataTopic {
        error_code: ErrorCode, 0..;
        /// Null only from version 12 on.
        name: Option<String>, 0..;
        topic_id: Uuid, 10..;
        is_internal: bool, 1..;
        partitions: Vec<MetadataPartition>, 0..;
        topic_authorized_operations: i32, 8.., i32::MIN;
    }

    pub struct MetadataPartition {
        error_code: ErrorCode, 0..;
        partition_index: i32, 0..;
        leader_id: i32, 0..;
        leader_epoch: i32, 7.., -1;
        replica_nodes: Vec<i32>, 0..;
        isr_nodes: Vec<i32>, 0..;
        offline_replicas: Vec<i32>, 5..;
    }
}
