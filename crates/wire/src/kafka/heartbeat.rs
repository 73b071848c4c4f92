//! Heartbeat (12): a member lives, and learns whether its generation still does.

use super::{ErrorCode, message::message};

message! {
    pub struct HeartbeatRequest {
        group_id: String, 0..;
        generation_id: i32, 0..;
        member_id: String, 0..;
        group_instance_id: Option<String>, 3..;
    }

    pub struct HeartbeatResponse {
        throttle_time_ms: i32, 1..;
        error_code: ErrorCode, 0..;
    }
}
