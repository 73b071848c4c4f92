//! EndTxn (26): commits or aborts a transaction; only sent. From version 5 on the producer's next epoch is answered (KIP-890).

use super::{ErrorCode, message::message};

message! {
    pub struct EndTxnRequest {
        transactional_id: String, 0..;
        producer_id: i64, 0..;
        producer_epoch: i16, 0..;
        committed: bool, 0..;
    }

    pub struct EndTxnResponse {
        throttle_time_ms: i32, 0..;
        error_code: ErrorCode, 0..;
        producer_id: i64, 5.., -1;
        producer_epoch: i16, 5.., -1;
    }
}
