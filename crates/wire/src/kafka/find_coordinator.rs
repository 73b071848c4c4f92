//! FindCoordinator (10): who coordinates a group or a transaction.

use super::{ErrorCode, message::message};

/// The key is a consumer group.
pub const KEY_TYPE_GROUP: i8 = 0;
/// The key is a transactional id.
pub const KEY_TYPE_TRANSACTION: i8 = 1;

message! {
    pub struct FindCoordinatorRequest {
        key: String, 0..=3;
        key_type: i8, 1..;
        coordinator_keys: Vec<String>, 4..;
    }

    pub struct FindCoordinatorResponse {
        throttle_time_ms: i32, 1..;
        error_code: ErrorCode, 0..=3;
        error_message: Option<String>, 1..=3;
        node_id: i32, 0..=3;
        host: String, 0..=3;
        port: i32, 0..=3;
        coordinators: Vec<Coordinator>, 4..;
    }

    pub struct Coordinator {
        key: String, 4..;
        node_id: i32, 4..;
        host: String, 4..;
        port: i32, 4..;
        error_code: ErrorCode, 4..;
        error_message: Option<String>, 4..;
    }
}
