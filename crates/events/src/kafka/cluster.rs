//! DescribeCluster: the members, and who leads them.

use buttress_wire::kafka::{
    Api, ErrorCode,
    describe_cluster::{DescribeClusterBroker, DescribeClusterRequest, DescribeClusterResponse},
};

use super::{Broker, broker_id, endpoints, message};

/// Kafka can describe brokers or controllers; here every member is both, and clients reach it as a broker.
const BROKERS: i8 = 1;

pub(super) fn handle(broker: &Broker, request: &DescribeClusterRequest) -> DescribeClusterResponse {
    if request.endpoint_type != BROKERS {
        broker.counters.error(&Api::DESCRIBE_CLUSTER);
        return DescribeClusterResponse {
            error_code: ErrorCode::UNSUPPORTED_ENDPOINT_TYPE,
            error_message: message("there are no controllers to be reached apart from the brokers"),
            endpoint_type: request.endpoint_type,
            ..DescribeClusterResponse::default()
        };
    }
    let view = broker.cluster.view();
    let described = |endpoint: buttress_wire::kafka::fetch::NodeEndpoint| DescribeClusterBroker {
        broker_id: endpoint.node_id,
        host: endpoint.host,
        port: endpoint.port,
        ..DescribeClusterBroker::default()
    };
    DescribeClusterResponse {
        controller_id: view.leader.map_or(-1, broker_id),
        brokers: endpoints(&view).into_iter().map(described).collect(),
        cluster_id: view.cluster_id,
        ..DescribeClusterResponse::default()
    }
}
