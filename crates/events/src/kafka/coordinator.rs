//! FindCoordinator: there is none yet, neither for groups nor for transactions.
//!
//! It is served nevertheless because librdkafka takes its presence for the sign that a broker understands LZ4. Both are
//! answered with an error that clients do not retry in silence, so that a user reads the text instead of waiting: kcat
//! prints it for `-G` at once, where COORDINATOR_NOT_AVAILABLE would have it ask for ever.

use buttress_wire::kafka::{
    Api, ErrorCode,
    find_coordinator::{Coordinator, FindCoordinatorRequest, FindCoordinatorResponse, KEY_TYPE_GROUP},
};

use super::{Broker, message};

pub(super) fn handle(broker: &Broker, version: i16, request: FindCoordinatorRequest) -> FindCoordinatorResponse {
    broker.counters.error(&Api::FIND_COORDINATOR);
    let (error_code, text) = match request.key_type {
        KEY_TYPE_GROUP => {
            (ErrorCode::INVALID_REQUEST, "consumer groups are not served yet; assign partitions instead of subscribing")
        }
        _ => (
            ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
            "transactions are not served yet; produce without a transactional id",
        ),
    };
    let mut response = FindCoordinatorResponse { node_id: -1, port: -1, ..FindCoordinatorResponse::default() };
    if version < 4 {
        (response.error_code, response.error_message) = (error_code, message(text));
    } else {
        let coordinator = |key| Coordinator {
            key,
            node_id: -1,
            port: -1,
            error_code,
            error_message: message(text),
            ..Coordinator::default()
        };
        response.coordinators = request.coordinator_keys.into_iter().map(coordinator).collect();
    }
    response
}
