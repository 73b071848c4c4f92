//! Leases.
//!
//! A lease lives in the log and ends by an entry of the leader, so every node agrees on it and a change of leader keeps
//! its deadline. A keep-alive is an entry too.

use std::pin::Pin;

use buttress_core::{Code, Consistency, Entry, LeaseChange, LeaseId, SubmitError};
use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use super::{Etcd, error};
use crate::pb::etcdserverpb::{self as pb, lease_server::Lease};

/// The longest time to live in seconds, as in etcd: a little under 300 years.
const TTL_MAX_S: i64 = 9_000_000_000;
/// The shortest, as etcd's with its default election timeout: shorter ones would end with every change of leader.
const TTL_MIN_S: i64 = 2;

fn refused_as(error: &SubmitError, code: Code) -> bool {
    error.code() == code
}

impl Etcd {
    pub(super) async fn lease_grant(&self, request: pb::LeaseGrantRequest) -> Result<pb::LeaseGrantResponse, Status> {
        if request.ttl > TTL_MAX_S {
            return Err(error::LEASE_TTL_TOO_LARGE.into());
        }
        let ttl = request.ttl.max(TTL_MIN_S);
        loop {
            let id = if request.id == 0 { random_id()? } else { request.id };
            let grant = LeaseChange::Grant { lease: LeaseId(id), ttl_ms: ttl as u64 * 1000 };
            match self.ledger.submit(Entry { leases: vec![grant], ..Entry::default() }).await {
                Ok(receipt) => {
                    let header = self.header(receipt.revision);
                    return Ok(pb::LeaseGrantResponse { header, id, ttl, error: String::new() });
                }
                // Drawn twice in 63 bits, or a try of ours whose answer was lost: draw again.
                Err(error) if request.id == 0 && refused_as(&error, Code::LEASE_EXISTS) => {}
                Err(error) => return Err(error::submit_status(error)),
            }
        }
    }

    pub(super) async fn lease_revoke(
        &self,
        request: pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse, Status> {
        let revoke = LeaseChange::Revoke { lease: LeaseId(request.id) };
        let receipt = self.submit(Entry { leases: vec![revoke], ..Entry::default() }).await?;
        Ok(pb::LeaseRevokeResponse { header: self.header(receipt.revision) })
    }

    pub(super) async fn keep_alive(
        &self,
        request: pb::LeaseKeepAliveRequest,
    ) -> Result<pb::LeaseKeepAliveResponse, Status> {
        let change = LeaseChange::KeepAlive { lease: LeaseId(request.id) };
        match self.ledger.submit(Entry { leases: vec![change], ..Entry::default() }).await {
            Ok(receipt) => {
                let ttl_ms = receipt.lease_ttls_ms.first().copied().unwrap_or_default();
                let header = self.header(receipt.revision);
                Ok(pb::LeaseKeepAliveResponse { header, id: request.id, ttl: ttl_ms.div_ceil(1000) as i64 })
            }
            // Gone is an answer and no failure: the stream goes on for other leases.
            Err(error) if refused_as(&error, Code::LEASE_UNKNOWN) => {
                let header = self.header_now().await?;
                Ok(pb::LeaseKeepAliveResponse { header, id: request.id, ttl: 0 })
            }
            Err(error) => Err(error::submit_status(error)),
        }
    }

    pub(super) async fn time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, Status> {
        let asked = self.ledger.lease(LeaseId(request.id), request.keys, Consistency::Linearizable);
        let found = asked.await.map_err(|e| error::status(&e))?;
        let header = self.header_now().await?;
        Ok(match found {
            Some(lease) => pb::LeaseTimeToLiveResponse {
                header,
                id: request.id,
                ttl: (lease.remaining_ms / 1000) as i64,
                granted_ttl: lease.ttl_ms.div_ceil(1000) as i64,
                keys: lease.keys,
            },
            None => pb::LeaseTimeToLiveResponse { header, id: request.id, ttl: -1, granted_ttl: 0, keys: Vec::new() },
        })
    }

    pub(super) async fn lease_leases(&self) -> Result<pb::LeaseLeasesResponse, Status> {
        let leases = self.ledger.leases(Consistency::Linearizable).await.map_err(|e| error::status(&e))?;
        let leases = leases.into_iter().map(|lease| pb::LeaseStatus { id: lease.0 }).collect();
        Ok(pb::LeaseLeasesResponse { header: self.header_now().await?, leases })
    }
}

/// A lease id that nobody has, in all likelihood: positive, as etcd draws them.
pub(super) fn random_id() -> Result<i64, Status> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| Status::unavailable(format!("etcdserver: no randomness: {error}")))?;
    Ok((i64::from_le_bytes(bytes) & i64::MAX).max(1))
}

#[tonic::async_trait]
impl Lease for super::Shared {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        Etcd::lease_grant(self, request.into_inner()).await.map(Response::new)
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        Etcd::lease_revoke(self, request.into_inner()).await.map(Response::new)
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    /// One request after the other: a client that sends more than it reads waits, and nothing grows.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let state = (self.0.clone(), request.into_inner());
        let answers = stream::try_unfold(state, |(etcd, mut requests)| async move {
            let Some(request) = requests.next().await.transpose()? else { return Ok(None) };
            let answer = etcd.keep_alive(request).await?;
            Ok(Some((answer, (etcd, requests))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        self.time_to_live(request.into_inner()).await.map(Response::new)
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        Etcd::lease_leases(self).await.map(Response::new)
    }
}
