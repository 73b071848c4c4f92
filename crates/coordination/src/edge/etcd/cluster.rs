//! Members, as etcd shows them.
//!
//! A member of this cluster has more addresses than etcd's `MemberAdd` can say, and it founds its data directory when
//! it joins. So members are added with `buttress join`; removing and promoting fit and are served.

use buttress_core::{
    Consistency, NodeId,
    ledger::{self, MemberRole},
};
use tonic::{Request, Response, Status};

use super::{Etcd, error};
use crate::pb::etcdserverpb::{self as pb, cluster_server::Cluster};

fn url(address: &str) -> Vec<String> {
    if address.is_empty() { Vec::new() } else { vec![format!("http://{address}")] }
}

pub(super) fn member(member: &ledger::Member) -> pb::Member {
    pb::Member {
        id: member.id.0,
        name: member.name.clone(),
        peer_ur_ls: url(&member.peer),
        client_ur_ls: url(&member.etcd),
        is_learner: member.role == MemberRole::Learner,
    }
}

impl Etcd {
    fn members(&self) -> Vec<pb::Member> {
        self.cluster.view().members.iter().map(member).collect()
    }
}

#[tonic::async_trait]
impl Cluster for Etcd {
    async fn member_add(&self, _: Request<pb::MemberAddRequest>) -> Result<Response<pb::MemberAddResponse>, Status> {
        let text = "etcdserver: a member has more addresses than this request can say; \
                    add it with: buttress cluster join --name NAME --data-dir DIR";
        Err(Status::unimplemented(text))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let id = NodeId(request.into_inner().id);
        if !self.cluster.view().members.iter().any(|member| member.id == id) {
            return Err(error::MEMBER_NOT_FOUND.into());
        }
        self.admin.remove(id).await.map_err(|e| error::status(&e))?;
        // This node may not have applied it yet.
        let members = self.members().into_iter().filter(|member| member.id != id.0).collect();
        Ok(Response::new(pb::MemberRemoveResponse { header: self.header_now().await?, members }))
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let text = "etcdserver: addresses of a member do not change; \
                    join a member at the new address and then: buttress cluster replace OLD NEW";
        Err(Status::unimplemented(text))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let consistency = match request.into_inner().linearizable {
            true => Consistency::Linearizable,
            false => Consistency::Serializable,
        };
        let keys = self.ledger.keys(consistency).await.map_err(|e| error::status(&e))?;
        Ok(Response::new(pb::MemberListResponse { header: self.header(keys.revision), members: self.members() }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let id = NodeId(request.into_inner().id);
        match self.cluster.view().members.iter().find(|member| member.id == id) {
            None => return Err(error::MEMBER_NOT_FOUND.into()),
            Some(member) if member.role != MemberRole::Learner => return Err(error::MEMBER_NOT_LEARNER.into()),
            Some(_) => {}
        }
        self.admin.promote(id).await.map_err(|e| error::status(&e))?;
        let mut members = self.members();
        members.iter_mut().filter(|member| member.id == id.0).for_each(|member| member.is_learner = false);
        Ok(Response::new(pb::MemberPromoteResponse { header: self.header_now().await?, members }))
    }
}
