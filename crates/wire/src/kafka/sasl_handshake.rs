//! SaslHandshake (17): served only to be refused.

use super::{ErrorCode, message::message};

message! {
    pub struct SaslHandshakeRequest {
        mechanism: String, 0..;
    }

    pub struct SaslHandshakeResponse {
        error_code: ErrorCode, 0..;
        mechanisms: Vec<String>, 0..;
    }
}
