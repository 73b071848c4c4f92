//! FindCoordinator: the cluster's leader coordinates all groups. Transactions have no coordinator.
//!
//! librdkafka takes the presence of this API for the sign that a broker understands LZ4. Who asks for a transaction's
//! coordinator gets an error that clients do not retry in silence, so that a user reads the text instead of waiting.

use buttress_wire::kafka::{
    Api, ErrorCode,
    fetch::NodeEndpoint,
    find_coordinator::{
        Coordinator, FindCoordinatorRequest, FindCoordinatorResponse, KEY_TYPE_GROUP, KEY_TYPE_TRANSACTION,
    },
};

use super::{Broker, error::Fault, leader_endpoint};

pub(super) fn handle(broker: &Broker, version: i16, request: FindCoordinatorRequest) -> FindCoordinatorResponse {
    let found = find(broker, request.key_type);
    let keys = if version < 4 { 1 } else { request.coordinator_keys.len() };
    if found.is_err() {
        (0..keys).for_each(|_| broker.counters.error(&Api::FIND_COORDINATOR));
    }
    let nobody = NodeEndpoint { node_id: -1, port: -1, ..NodeEndpoint::default() };
    let (endpoint, error_code, error_message) = match found {
        Ok(endpoint) => (endpoint, ErrorCode::NONE, None),
        Err(fault) => (nobody, fault.code, fault.message),
    };
    let NodeEndpoint { node_id, host, port, .. } = endpoint;
    if version < 4 {
        return FindCoordinatorResponse {
            node_id,
            host,
            port,
            error_code,
            error_message,
            ..FindCoordinatorResponse::default()
        };
    }
    let coordinator =
        |key| Coordinator { key, node_id, host: host.clone(), port, error_code, error_message: error_message.clone() };
    let coordinators = request.coordinator_keys.into_iter().map(coordinator).collect();
    FindCoordinatorResponse { coordinators, ..FindCoordinatorResponse::default() }
}

fn find(broker: &Broker, key_type: i8) -> Result<NodeEndpoint, Fault> {
    match key_type {
        KEY_TYPE_GROUP => {}
        KEY_TYPE_TRANSACTION => {
            let text = "transactions are not served yet; produce without a transactional id";
            return Err(Fault::new(ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED, text));
        }
        other => {
            let text = format!("key type {other} is not served, only groups (0) are");
            return Err(Fault::new(ErrorCode::INVALID_REQUEST, text));
        }
    }
    let leader = leader_endpoint(&broker.cluster.view()).into_iter().next();
    leader.ok_or_else(|| Fault::new(ErrorCode::COORDINATOR_NOT_AVAILABLE, "the cluster has no leader at the moment"))
}
