//! JoinGroup, SyncGroup, Heartbeat, LeaveGroup: requests to inputs of a group, answers to responses.

use buttress_wire::kafka::{
    Api, ErrorCode,
    heartbeat::{HeartbeatRequest, HeartbeatResponse},
    join_group::{JoinGroupRequest, JoinGroupResponse, JoinGroupResponseMember},
    leave_group::{LeaveGroupRequest, LeaveGroupResponse, MemberIdentity, MemberResponse},
    sync_group::{SyncGroupRequest, SyncGroupResponse},
};
use bytes::Bytes;

use super::{
    CLIENT_ID_BYTES_MAX, INSTANCE_ID_BYTES_MAX, PROTOCOLS_MAX, SESSION_MS, check_group_id,
    group::{Answer, Identity, Input, Join, Joined, Sync, Synced},
};
use crate::kafka::{Broker, Peer};

/// From this version on a member is told its id before it takes part (KIP-394).
const JOIN_KNOWN_ID_VERSION: i16 = 4;
/// Before this version the protocol's name may not be null.
const JOIN_NULL_PROTOCOL_VERSION: i16 = 7;
const JOIN_SKIP_ASSIGNMENT_VERSION: i16 = 9;
/// From this version on several members leave at once.
const LEAVE_BATCH_VERSION: i16 = 3;
/// Members that one request takes out of a group.
const LEAVERS_MAX: usize = super::group::MEMBERS_MAX;

/// Bytes of their own, because the frame that they came in goes when the request is answered.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

pub(in crate::kafka) async fn join(
    broker: &Broker,
    version: i16,
    peer: &Peer<'_>,
    request: JoinGroupRequest,
) -> JoinGroupResponse {
    let joined = try_join(broker, version, peer, &request).await.unwrap_or_else(|error| Joined {
        error,
        generation: -1,
        member_id: request.member_id,
        ..Joined::default()
    });
    let is_quiet = matches!(joined.error, ErrorCode::NONE | ErrorCode::MEMBER_ID_REQUIRED);
    if !is_quiet {
        broker.counters.error(&Api::JOIN_GROUP);
    }
    let member =
        |(member_id, group_instance_id, metadata)| JoinGroupResponseMember { member_id, group_instance_id, metadata };
    JoinGroupResponse {
        error_code: joined.error,
        generation_id: joined.generation,
        protocol_type: joined.protocol_type,
        protocol_name: joined.protocol.or((version < JOIN_NULL_PROTOCOL_VERSION).then(String::new)),
        leader: joined.leader,
        skip_assignment: joined.skip_assignment,
        member_id: joined.member_id,
        members: joined.members.into_iter().map(member).collect(),
        ..JoinGroupResponse::default()
    }
}

async fn try_join(
    broker: &Broker,
    version: i16,
    peer: &Peer<'_>,
    request: &JoinGroupRequest,
) -> Result<Joined, ErrorCode> {
    check_group_id(&request.group_id)?;
    if !SESSION_MS.contains(&request.session_timeout_ms) {
        return Err(ErrorCode::INVALID_SESSION_TIMEOUT);
    }
    let instance = request.group_instance_id.clone();
    if instance.as_ref().is_some_and(|id| id.is_empty() || id.len() > INSTANCE_ID_BYTES_MAX)
        || request.protocols.len() > PROTOCOLS_MAX
    {
        return Err(ErrorCode::INVALID_REQUEST);
    }
    let mut client_id = peer.client_id.to_owned();
    client_id.truncate(client_id.floor_char_boundary(CLIENT_ID_BYTES_MAX));
    let session_ms = request.session_timeout_ms as u64;
    let join = Join {
        member_id: request.member_id.clone(),
        fresh_id: format!("{}-{}", instance.as_deref().unwrap_or(&client_id), crate::kafka::random_uuid()),
        instance,
        client_id,
        client_host: format!("/{}", peer.host),
        protocol_type: request.protocol_type.clone(),
        protocols: request.protocols.iter().map(|p| (p.name.clone(), own(&p.metadata))).collect(),
        session_ms,
        // Version 0 has one timeout for both.
        rebalance_ms: u64::try_from(request.rebalance_timeout_ms).unwrap_or(session_ms),
        must_know_id: version >= JOIN_KNOWN_ID_VERSION,
        can_skip_assignment: version >= JOIN_SKIP_ASSIGNMENT_VERSION,
    };
    let create = join.member_id.is_empty();
    match broker.groups.ask(&request.group_id, create, |token| Input::Join(token, join)).await? {
        (Answer::Joined(joined), _) => Ok(joined),
        (other, _) => unreachable!("a join is answered as one, not with {other:?}"),
    }
}

pub(in crate::kafka) async fn sync(broker: &Broker, request: SyncGroupRequest) -> SyncGroupResponse {
    let sync = Sync {
        who: Identity {
            member_id: request.member_id,
            instance: request.group_instance_id,
            generation: request.generation_id,
        },
        protocol_type: request.protocol_type,
        protocol: request.protocol_name,
        assignments: request.assignments.iter().map(|a| (a.member_id.clone(), own(&a.assignment))).collect(),
    };
    let told = match check_group_id(&request.group_id) {
        Ok(()) => broker.groups.ask(&request.group_id, false, |token| Input::Sync(token, sync)).await,
        Err(code) => Err(code),
    };
    let synced = match told {
        Ok((Answer::Synced(synced), _)) => synced,
        Ok((other, _)) => unreachable!("a sync is answered as one, not with {other:?}"),
        Err(error) => Synced { error, ..Synced::default() },
    };
    if synced.error.is_error() {
        broker.counters.error(&Api::SYNC_GROUP);
    }
    SyncGroupResponse {
        error_code: synced.error,
        protocol_type: synced.protocol_type,
        protocol_name: synced.protocol,
        assignment: synced.assignment,
        ..SyncGroupResponse::default()
    }
}

pub(in crate::kafka) async fn heartbeat(broker: &Broker, request: HeartbeatRequest) -> HeartbeatResponse {
    let who = Identity {
        member_id: request.member_id,
        instance: request.group_instance_id,
        generation: request.generation_id,
    };
    let told = match check_group_id(&request.group_id) {
        Ok(()) => broker.groups.ask(&request.group_id, false, |token| Input::Heartbeat(token, who)).await,
        Err(code) => Err(code),
    };
    let error_code = match told {
        Ok((Answer::Code(code), _)) => code,
        Ok((other, _)) => unreachable!("a heartbeat is answered with a code, not with {other:?}"),
        Err(code) => code,
    };
    // That a rebalance is under way is news, not an error.
    if error_code.is_error() && error_code != ErrorCode::REBALANCE_IN_PROGRESS {
        broker.counters.error(&Api::HEARTBEAT);
    }
    HeartbeatResponse { error_code, ..HeartbeatResponse::default() }
}

pub(in crate::kafka) async fn leave(broker: &Broker, version: i16, request: LeaveGroupRequest) -> LeaveGroupResponse {
    let members = match version {
        LEAVE_BATCH_VERSION.. => request.members,
        _ => vec![MemberIdentity { member_id: request.member_id, ..MemberIdentity::default() }],
    };
    let leavers: Vec<_> = members.iter().map(|m| (m.member_id.clone(), m.group_instance_id.clone())).collect();
    let told = match check_group_id(&request.group_id) {
        Ok(()) if leavers.len() > LEAVERS_MAX => Err(ErrorCode::INVALID_REQUEST),
        Ok(()) => broker.groups.ask(&request.group_id, false, |token| Input::Leave(token, leavers)).await,
        Err(code) => Err(code),
    };
    let mut response = LeaveGroupResponse::default();
    match told {
        Ok((Answer::Left(codes), _)) => {
            if codes.iter().any(|code| code.is_error()) {
                broker.counters.error(&Api::LEAVE_GROUP);
            }
            if version < LEAVE_BATCH_VERSION {
                response.error_code = codes[0];
            } else {
                let left = |(member, error_code): (MemberIdentity, ErrorCode)| MemberResponse {
                    member_id: member.member_id,
                    group_instance_id: member.group_instance_id,
                    error_code,
                };
                response.members = members.into_iter().zip(codes).map(left).collect();
            }
        }
        Ok((other, _)) => unreachable!("a leave is answered as one, not with {other:?}"),
        Err(code) => {
            broker.counters.error(&Api::LEAVE_GROUP);
            response.error_code = code;
        }
    }
    response
}
