//! Members over HTTP: who they are, and what shall become of them. Any node takes the requests; the leader carries them out.

use std::{net::SocketAddr, sync::Arc};

use buttress_core::{
    Cluster, Code, Error, NodeId,
    ledger::{ClusterView, Member, MemberRole},
};
use buttress_node::runtime::{Handle, MemberDone, MemberRequest};
use bytes::Bytes;
use http::{Method, Response, StatusCode};

use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    config::nearest,
    http::{Body, failure, json},
};

pub struct MembersHttp {
    pub node: Arc<Handle>,
    /// Members may have addresses other than loopback.
    pub insecure: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinBody {
    name: String,
    peer: String,
    kafka: String,
    mqtt: String,
    http: String,
    #[serde(default)]
    etcd: String,
    /// Stay a learner until it is promoted by hand.
    #[serde(default)]
    learner: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PromoteBody {
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplaceBody {
    with: String,
    #[serde(default)]
    force: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TransferBody {
    to: Option<String>,
}

impl MembersHttp {
    /// Answers what is below `/v1/cluster/`.
    pub async fn route(&self, method: &Method, path: &str, body: &Bytes) -> Option<Response<Body>> {
        let rest = path.strip_prefix("/v1/cluster/")?;
        let steps: Vec<&str> = rest.split('/').collect();
        let wanted = match steps[..] {
            ["members"] | ["transfer"] | ["members", _, "promote" | "replace"] => Method::POST,
            ["members", _] => Method::DELETE,
            _ => return None,
        };
        if *method != wanted {
            let error =
                Error::new(Code::METHOD, format!("{path} does not take {method}")).hint(format!("use {wanted}"));
            return Some(failure(StatusCode::METHOD_NOT_ALLOWED, &error));
        }
        let done = match self.request(&steps, body) {
            Ok(request) => self.node.change_members(request).await,
            Err(error) => Err(error),
        };
        Some(match done {
            Ok(done) => json(StatusCode::OK, &self.done_json(&done)),
            Err(error) => failure(status(&error), &error),
        })
    }

    fn request(&self, steps: &[&str], body: &Bytes) -> Result<MemberRequest, Error> {
        let view = self.node.view();
        match *steps {
            ["members"] => {
                let JoinBody { name, peer, kafka, mqtt, http, etcd, learner } = parse(body)?;
                let member = Member { name, peer, kafka, mqtt, http, etcd, ..Member::default() };
                self.check_addresses(&member)?;
                Ok(MemberRequest::Join { member, promote: !learner })
            }
            ["members", name] => Ok(MemberRequest::Remove { id: find(&view, name)? }),
            ["members", name, "promote"] => {
                let PromoteBody { force } = parse_or_default(body)?;
                Ok(MemberRequest::Promote { id: find(&view, name)?, force })
            }
            ["members", name, "replace"] => {
                let ReplaceBody { with, force } = parse(body)?;
                Ok(MemberRequest::Replace { old: find(&view, name)?, new: find(&view, &with)?, force })
            }
            _ => {
                let TransferBody { to } = parse_or_default(body)?;
                Ok(MemberRequest::Transfer { to: to.map(|to| find(&view, &to)).transpose()?, from: None })
            }
        }
    }

    fn check_addresses(&self, member: &Member) -> Result<(), Error> {
        for (edge, address) in
            [("peer", &member.peer), ("kafka", &member.kafka), ("mqtt", &member.mqtt), ("http", &member.http)]
                .into_iter()
                .chain((!member.etcd.is_empty()).then_some(("etcd", &member.etcd)))
        {
            let parsed: SocketAddr = address.parse().map_err(|_| {
                Error::new(Code::BAD_REQUEST, format!("{edge} address \"{}\" is not IP:PORT", address.escape_default()))
                    .hint("for example 127.0.0.1:7400")
            })?;
            if !parsed.ip().is_loopback() && !self.insecure {
                let message = format!("{edge} address \"{address}\" is not a loopback address");
                return Err(Error::new(Code::BAD_REQUEST, message).hint(
                    "TLS and authentication are not served yet; nodes with node.insecure = true take it in the clear",
                ));
            }
        }
        Ok(())
    }

    fn done_json(&self, done: &MemberDone) -> serde_json::Value {
        let view = self.node.view();
        let name = view.members.iter().find(|m| m.id == done.id).map(|m| m.name.clone());
        let mut value = cluster_json(&view);
        value["id"] = done.id.0.into();
        value["name"] = name.into();
        value["already"] = done.already.into();
        value["warnings"] = done.warnings.clone().into();
        value
    }
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| {
        Error::new(Code::BAD_REQUEST, format!("the body is not what this path takes: {error}"))
            .hint("docs/reference/http.md shows every body")
    })
}

fn parse_or_default<T: DeserializeOwned + Default>(body: &Bytes) -> Result<T, Error> {
    if body.is_empty() { Ok(T::default()) } else { parse(body) }
}

/// The member of this name or id, as the command line and paths give it.
fn find(view: &ClusterView, wanted: &str) -> Result<NodeId, Error> {
    if let Some(member) = view.members.iter().find(|m| m.name == wanted) {
        return Ok(member.id);
    }
    // Ids that no member has any more are the leader's to judge.
    if let Ok(id) = wanted.parse::<u64>()
        && id != 0
    {
        return Ok(NodeId(id));
    }
    let names: Vec<&str> = view.members.iter().map(|m| m.name.as_str()).collect();
    let error = Error::new(Code::MEMBER_UNKNOWN, format!("there is no member \"{}\"", wanted.escape_default()));
    Err(match nearest(wanted, names.iter().copied()) {
        Some(name) => error.hint(format!("did you mean \"{name}\"? members: {}", names.join(", "))),
        None => error.hint(format!("members: {}", names.join(", "))),
    })
}

fn status(error: &Error) -> StatusCode {
    match error.code {
        Code::BAD_REQUEST | Code::TOO_LARGE => StatusCode::BAD_REQUEST,
        Code::MEMBER_UNKNOWN => StatusCode::NOT_FOUND,
        Code::TIMEOUT => StatusCode::GATEWAY_TIMEOUT,
        Code::UNSUPPORTED => StatusCode::NOT_IMPLEMENTED,
        _ if error.retryable => StatusCode::SERVICE_UNAVAILABLE,
        Code::NO_LEADER | Code::STOPPED | Code::OVERLOADED => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::CONFLICT,
    }
}

/// The cluster as `/v1/cluster` shows it.
pub fn cluster_json(view: &ClusterView) -> serde_json::Value {
    let members = view.members.iter().map(|m| {
        let progress = view.progress.iter().find(|progress| progress.id == m.id);
        serde_json::json!({
            "id": m.id.0, "name": m.name, "peer": m.peer, "kafka": m.kafka, "mqtt": m.mqtt, "http": m.http,
            "etcd": m.etcd,
            "role": match m.role {
                MemberRole::Voter => "voter",
                MemberRole::Learner => "learner",
                MemberRole::Leaving => "leaving",
            },
            "matched": progress.map(|p| p.matched.0),
            "lag": progress.map(|p| p.lag),
            "reachable": progress.map(|p| p.reachable),
            "snapshot": progress.map(|p| p.snapshot),
            "sync_us": progress.and_then(|p| p.sync_us),
        })
    });
    serde_json::json!({
        "cluster_id": view.cluster_id,
        "node": view.node.0,
        "leader": view.leader.map(|id| id.0),
        "term": view.term.0,
        "committed": view.committed.0,
        "applied": view.applied.0,
        "revision": view.revision.0,
        "members": members.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_found_by_name_or_id_and_a_wrong_name_names_the_nearest() {
        let member = |id, name: &str| Member { id: NodeId(id), name: name.into(), ..Member::default() };
        let view = ClusterView { members: vec![member(1, "node-1"), member(2, "west")], ..ClusterView::default() };
        assert_eq!(find(&view, "west").unwrap(), NodeId(2));
        assert_eq!(find(&view, "1").unwrap(), NodeId(1));
        assert_eq!(find(&view, "9").unwrap(), NodeId(9));
        let hint = |wanted| find(&view, wanted).unwrap_err().hint.unwrap();
        assert_eq!(hint("nod-1"), "did you mean \"node-1\"? members: node-1, west");
        assert_eq!(hint("something-else"), "members: node-1, west");
    }
}
