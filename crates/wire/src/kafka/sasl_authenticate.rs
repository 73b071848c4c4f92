//! SaslAuthenticate (36): served only to be refused.

use bytes::Bytes;

use super::{ErrorCode, message::message};

message! {
    pub struct SaslAuthenticateRequest {
        auth_bytes: Bytes, 0..;
    }

    pub struct SaslAuthenticateResponse {
        error_code: ErrorCode, 0..;
        error_message: Option<String>, 0..;
        auth_bytes: Bytes, 0..;
        session_lifetime_ms: i64, 1..;
    }
}
