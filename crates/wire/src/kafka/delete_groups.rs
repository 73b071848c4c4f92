//! DeleteGroups (42): groups without members go, with their offsets.

use super::{ErrorCode, message::message};

message! {
    pub struct DeleteGroupsRequest {
        groups_names: Vec<String>, 0..;
    }

    pub struct DeleteGroupsResponse {
        throttle_time_ms: i32, 0..;
        results: Vec<DeletableGroupResult>, 0..;
    }

    pub struct DeletableGroupResult {
        group_id: String, 0..;
        error_code: ErrorCode, 0..;
    }
}
