//! How a member is, and the little there is to do about it.

use std::pin::Pin;

use buttress_core::{Consistency, NodeId, ledger::MemberRole};
use futures::Stream;
use tonic::{Request, Response, Status};

use super::{Etcd, VERSION, convert, error, snapshot};
use crate::pb::etcdserverpb::{self as pb, alarm_request::AlarmAction, maintenance_server::Maintenance};

impl Etcd {
    /// Hashes of 64 bits, folded to the 32 that the protocol has.
    async fn hash(&self, at: i64) -> Result<pb::HashKvResponse, Status> {
        let found = self.ledger.hash_keys(convert::revision(at)).await.map_err(|e| error::status(&e))?;
        Ok(pb::HashKvResponse {
            header: self.header(found.revision),
            hash: (found.hash ^ (found.hash >> 32)) as u32,
            compact_revision: convert::number(found.compacted),
            hash_revision: convert::number(found.at),
        })
    }
}

#[tonic::async_trait]
impl Maintenance for Etcd {
    /// There are no alarms: what is wrong stops the node or shows in `buttress doctor`.
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        if request.into_inner().action() == AlarmAction::Activate {
            return Err(Status::unimplemented("etcdserver: alarms cannot be raised; see: buttress doctor"));
        }
        Ok(Response::new(pb::AlarmResponse { header: self.header_now().await?, alarms: Vec::new() }))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let header = self.header_now().await?;
        let view = self.cluster.view();
        let bytes = self.admin.disk_bytes().await as i64;
        let own = view.members.iter().find(|member| member.id == view.node);
        Ok(Response::new(pb::StatusResponse {
            header,
            version: VERSION.to_owned(),
            db_size: bytes,
            leader: view.leader.map_or(0, |leader| leader.0),
            raft_index: view.committed.0,
            raft_term: view.term.0,
            raft_applied_index: view.applied.0,
            errors: match view.leader {
                Some(_) => Vec::new(),
                None => vec![error::NO_LEADER.text.to_owned()],
            },
            db_size_in_use: bytes,
            is_learner: own.is_some_and(|member| member.role == MemberRole::Learner),
            storage_version: VERSION.to_owned(),
            db_size_quota: 0,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    async fn defragment(&self, _: Request<pb::DefragmentRequest>) -> Result<Response<pb::DefragmentResponse>, Status> {
        tracing::info!(
            plane = "coordination",
            event_type = "defragment",
            "nothing to defragment: the store compacts itself in the background while it serves"
        );
        Ok(Response::new(pb::DefragmentResponse { header: self.header_now().await? }))
    }

    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let pb::HashKvResponse { header, hash, .. } = self.hash(0).await?;
        Ok(Response::new(pb::HashResponse { header, hash }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        self.hash(request.into_inner().revision).await.map(Response::new)
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    /// See `snapshot.rs`: a file that etcd's own tools open and restore from.
    async fn snapshot(&self, _: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let Ok(permit) = self.snapshots.clone().try_acquire_owned() else {
            return Err(error::TOO_MANY_REQUESTS.into());
        };
        // As etcd does: of what this member has applied.
        let image = self.ledger.image(Consistency::Serializable).await.map_err(|e| error::status(&e))?;
        let pieces = snapshot::stream(image, permit);
        let stream = futures::stream::unfold(pieces, |mut pieces| async move {
            let piece = pieces.recv().await?;
            Some((piece, pieces))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        let to = NodeId(request.into_inner().target_id);
        let view = self.cluster.view();
        if !view.is_leader() {
            return Err(error::NOT_LEADER.into());
        }
        let voter = |member: &buttress_core::ledger::Member| member.id == to && member.role == MemberRole::Voter;
        if !view.members.iter().any(voter) {
            return Err(error::BAD_LEADER_TRANSFEREE.into());
        }
        if to != view.node {
            self.admin.transfer(to).await.map_err(|e| error::status(&e))?;
        }
        Ok(Response::new(pb::MoveLeaderResponse { header: self.header_now().await? }))
    }

    /// No version of this has another storage format to go back to.
    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        use pb::downgrade_request::DowngradeAction;
        Err(match request.into_inner().action() {
            DowngradeAction::Cancel => error::NO_INFLIGHT_DOWNGRADE.into(),
            DowngradeAction::Validate | DowngradeAction::Enable => error::INVALID_DOWNGRADE_TARGET.into(),
        })
    }
}
