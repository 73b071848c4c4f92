//! Members, as etcd shows them.
//!
//! A member of this cluster has more addresses than etcd's `MemberAdd` can say (those of Kafka, MQTT and HTTP, to which
//! clients are sent), they never change, and it is given its id together with its configuration. An invitation without
//! them would be a member that nobody can become. So members are added with `buttress cluster join`, and the refusal is the
//! command, with what the request said; removing and promoting fit and are served.

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

/// The first of a member's addresses, as our commands take it.
fn peer_address(urls: &[String]) -> Result<String, Status> {
    let place = |url: &String| {
        let url: http::Uri = url.trim().parse().ok()?;
        let known = matches!(url.scheme_str(), Some("http" | "https")) && matches!(url.path(), "" | "/");
        let authority = url.authority().filter(|place| known && place.port().is_some())?;
        Some(authority.as_str().to_owned())
    };
    let places: Option<Vec<String>> = urls.iter().map(place).collect();
    places.and_then(|places| places.into_iter().next()).ok_or_else(|| error::MEMBER_BAD_URLS.into())
}

impl Etcd {
    /// Where our commands find this cluster.
    fn server_option(&self) -> String {
        let view = self.cluster.view();
        let own = view.members.iter().find(|member| member.id == view.node && !member.http.is_empty());
        own.map_or_else(String::new, |own| format!(" --server http://{}", own.http))
    }

    fn members(&self) -> Vec<pb::Member> {
        self.cluster.view().members.iter().map(member).collect()
    }
}

#[tonic::async_trait]
impl Cluster for Etcd {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let pb::MemberAddRequest { peer_ur_ls, is_learner } = request.into_inner();
        let peer = peer_address(&peer_ur_ls)?;
        let learner = if is_learner { " --learner" } else { "" };
        Err(Status::unimplemented(format!(
            "etcdserver: a member has more addresses than this request can say; on its machine: \
             buttress cluster join --name NAME --data-dir DIR --peer {peer}{learner} --serve{}",
            self.server_option()
        )))
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
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let pb::MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        let peer = peer_address(&peer_ur_ls)?;
        let view = self.cluster.view();
        let Some(member) = view.members.iter().find(|member| member.id.0 == id) else {
            return Err(error::MEMBER_NOT_FOUND.into());
        };
        let server = self.server_option();
        Err(Status::unimplemented(format!(
            "etcdserver: addresses of a member do not change; let another one take its place: \
             buttress cluster join --name NEW --data-dir DIR --peer {peer} --serve{server}, and then: \
             buttress cluster replace {} --with NEW{server}",
            member.name
        )))
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
