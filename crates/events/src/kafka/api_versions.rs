//! ApiVersions: what is served.

use buttress_wire::kafka::{
    Api, ErrorCode,
    api_versions::{ApiVersion, ApiVersionsRequest, ApiVersionsResponse},
};

pub(super) fn handle(version: i16, request: &ApiVersionsRequest) -> ApiVersionsResponse {
    let error_code = if request.is_valid(version) { ErrorCode::NONE } else { ErrorCode::INVALID_REQUEST };
    ApiVersionsResponse { error_code, api_keys: served(), throttle_time_ms: 0, finalized_features: Vec::new() }
}

/// The answer to a version that is not known here, to be sent in version 0. It names the versions that are, so that
/// the client can ask again (KIP-511).
pub(super) fn unsupported() -> ApiVersionsResponse {
    ApiVersionsResponse {
        error_code: ErrorCode::UNSUPPORTED_VERSION,
        api_keys: served(),
        throttle_time_ms: 0,
        finalized_features: Vec::new(),
    }
}

fn served() -> Vec<ApiVersion> {
    let version = |api: &Api| ApiVersion { api_key: api.key, min_version: api.min, max_version: api.max };
    Api::SERVED.iter().map(version).collect()
}
