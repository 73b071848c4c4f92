//! InitProducerId (22): an identity for an idempotent producer.

use super::{ErrorCode, message::message};

message! {
    pub struct InitProducerIdRequest {
        transactional_id: Option<String>, 0..;
        transaction_timeout_ms: i32, 0..;
        producer_id: i64, 3.., -1;
        producer_epoch: i16, 3.., -1;
    }

    pub struct InitProducerIdResponse {
        throttle_time_ms: i32, 0..;
        error_code: ErrorCode, 0..;
        producer_id: i64, 0.., -1;
        producer_epoch: i16, 0..;
    }
}
