//! ListGroups, DescribeGroups, DeleteGroups.
//!
//! Administrators ask every node for its groups and put the answers together, so a node that does not lead says that it has
//! none. What is asked of one group goes to its coordinator.

use buttress_wire::kafka::{
    Api, ErrorCode, Reader,
    delete_groups::{DeletableGroupResult, DeleteGroupsRequest, DeleteGroupsResponse},
    describe_groups::{DescribeGroupsRequest, DescribeGroupsResponse, DescribedGroup, DescribedGroupMember},
    list_groups::{ListGroupsRequest, ListGroupsResponse, ListedGroup},
};
use bytes::{Buf, Bytes};

use super::{GROUPS_MAX, check_group_id, coordinator::GroupView};
use crate::kafka::Broker;

/// The protocol type of consumers.
pub(super) const CONSUMER: &str = "consumer";
/// How a group is told that does not exist.
const DEAD: &str = "Dead";
const CLASSIC: &str = "classic";
/// From this version on a group that does not exist is an error.
const DESCRIBE_UNKNOWN_VERSION: i16 = 6;
/// Groups of one request.
const GROUPS_PER_REQUEST_MAX: usize = GROUPS_MAX;

pub(in crate::kafka) async fn list(broker: &Broker, request: ListGroupsRequest) -> ListGroupsResponse {
    let mut response = ListGroupsResponse::default();
    match broker.groups.list().await {
        Ok(groups) => {
            let fits = |filter: &[String], value: &str| {
                filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
            };
            let listed = |(group_id, protocol_type, state): (String, String, super::group::State)| {
                let state = state.name();
                (fits(&request.states_filter, state) && fits(&request.types_filter, CLASSIC)).then(|| ListedGroup {
                    group_id,
                    protocol_type,
                    group_state: state.to_owned(),
                    group_type: CLASSIC.to_owned(),
                })
            };
            response.groups = groups.into_iter().filter_map(listed).collect();
        }
        Err(ErrorCode::NOT_COORDINATOR) => {}
        Err(code) => {
            broker.counters.error(&Api::LIST_GROUPS);
            response.error_code = code;
        }
    }
    response
}

pub(in crate::kafka) async fn describe(
    broker: &Broker,
    version: i16,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let mut response = DescribeGroupsResponse::default();
    let too_many = request.groups.len() > GROUPS_PER_REQUEST_MAX;
    for group_id in request.groups {
        let view = match check_group_id(&group_id) {
            Ok(()) if too_many => Err(ErrorCode::INVALID_REQUEST),
            Ok(()) => broker.groups.view(&group_id).await,
            Err(code) => Err(code),
        };
        let described = match view {
            Ok(Some(view)) => described(view),
            Ok(None) => {
                let is_error = version >= DESCRIBE_UNKNOWN_VERSION;
                DescribedGroup {
                    error_code: if is_error { ErrorCode::GROUP_ID_NOT_FOUND } else { ErrorCode::NONE },
                    error_message: is_error.then(|| format!("group {group_id:?} is not known")),
                    group_id,
                    group_state: DEAD.to_owned(),
                    ..DescribedGroup::default()
                }
            }
            Err(error_code) => {
                broker.counters.error(&Api::DESCRIBE_GROUPS);
                DescribedGroup { error_code, group_id, ..DescribedGroup::default() }
            }
        };
        response.groups.push(described);
    }
    response
}

fn described(view: GroupView) -> DescribedGroup {
    let member = |member: super::group::MemberView| DescribedGroupMember {
        member_id: member.id,
        group_instance_id: member.instance,
        client_id: member.client_id,
        client_host: member.client_host,
        member_metadata: member.metadata,
        member_assignment: member.assignment,
    };
    DescribedGroup {
        group_id: view.id,
        group_state: view.state.name().to_owned(),
        protocol_type: view.protocol_type,
        protocol_data: view.protocol,
        members: view.members.into_iter().map(member).collect(),
        ..DescribedGroup::default()
    }
}

pub(in crate::kafka) async fn delete(broker: &Broker, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let mut response = DeleteGroupsResponse::default();
    let too_many = request.groups_names.len() > GROUPS_PER_REQUEST_MAX;
    for group_id in request.groups_names {
        let deleted = match check_group_id(&group_id) {
            Ok(()) if too_many => Err(ErrorCode::INVALID_REQUEST),
            Ok(()) => broker.groups.delete(&group_id).await,
            Err(code) => Err(code),
        };
        if deleted.is_err() {
            broker.counters.error(&Api::DELETE_GROUPS);
        }
        response.results.push(DeletableGroupResult { group_id, error_code: deleted.err().unwrap_or_default() });
    }
    response
}

/// Whether a consumer's subscription names the topic. What cannot be read names everything, so that no offset is taken from
/// under a consumer.
///
/// Source: Kafka, ConsumerProtocolSubscription.json: a version, then the topics, in every version.
pub(super) fn names_topic(subscription: &Bytes, topic: &str) -> bool {
    let mut bytes = subscription.clone();
    if bytes.len() < 2 {
        return true;
    }
    bytes.advance(2);
    match Reader::new(bytes, 0, false).nullable_array::<String>("topics") {
        Ok(topics) => topics.unwrap_or_default().iter().any(|named| named == topic),
        Err(_) => true,
    }
}
