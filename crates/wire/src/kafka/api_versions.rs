//! ApiVersions (18): which APIs are served, in which versions.

use super::{ErrorCode, message::message};

message! {
    pub struct ApiVersionsRequest {
        client_software_name: String, 3..;
        client_software_version: String, 3..;
    }

    pub struct ApiVersionsResponse {
        error_code: ErrorCode, 0..;
        api_keys: Vec<ApiVersion>, 0..;
        throttle_time_ms: i32, 1..;
    }
    tagged {
        2 => finalized_features: Vec<FinalizedFeature>, 3..;
    }

    /// A feature that the whole cluster has agreed on (KIP-584).
    pub struct FinalizedFeature {
        name: String, 3..;
        max_version_level: i16, 3..;
        min_version_level: i16, 3..;
    }

    pub struct ApiVersion {
        api_key: i16, 0..;
        min_version: i16, 0..;
        max_version: i16, 0..;
    }
}

impl ApiVersionsRequest {
    /// Whether name and version are what KIP-511 allows: letters, digits, `-` and `.`, beginning and ending in a letter
    /// or digit. Versions before 3 carry neither.
    pub fn is_valid(&self, version: i16) -> bool {
        fn fits(text: &str) -> bool {
            let bytes = text.as_bytes();
            let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
            edge(bytes.first())
                && edge(bytes.last())
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        }
        version < 3 || (fits(&self.client_software_name) && fits(&self.client_software_version))
    }
}
