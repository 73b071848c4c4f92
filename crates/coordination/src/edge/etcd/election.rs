//! Elections that the server holds.
//!
//! Source: etcd 3.7, `server/etcdserver/api/v3election/election.go` and `client/v3/concurrency/election.go`.

use std::{collections::VecDeque, pin::Pin};

use buttress_core::{
    Entry, KeyRange, PutOp, Revision, Txn, TxnOp,
    ledger::{KeyWatch, WatchItem, WatchOptions},
};
use bytes::Bytes;
use futures::{Stream, stream};
use tonic::{Request, Response, Status};

use super::{
    Etcd, convert, error,
    queue::{self, Leaver},
};
use crate::pb::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse, election_server::Election,
};

impl Etcd {
    /// Writes the leader's value, if it still leads.
    async fn proclaim_value(&self, leader: &LeaderKey, value: Bytes) -> Result<Revision, Status> {
        let (key, lease) = (leader.key.clone(), convert::lease(leader.lease));
        let op = convert::put_op(crate::pb::etcdserverpb::PutRequest { key, value, ..Default::default() })?;
        let created = convert::revision(leader.rev).unwrap_or_default();
        let txn = Txn {
            compares: vec![queue::created_at(op.key.clone(), created)],
            success: vec![TxnOp::Put(PutOp { lease, ..op })],
            failure: Vec::new(),
        };
        let receipt = self.submit(Entry { txn: Some(txn), ..Entry::default() }).await?;
        match receipt.txn {
            Some(result) if result.succeeded => Ok(receipt.revision),
            _ => Err(error::ELECTION_NOT_LEADER.into()),
        }
    }
}

/// What an observer waits for.
enum Observing {
    /// Whoever stands first.
    Leader,
    /// News of this leader.
    News { watch: Box<dyn KeyWatch>, pending: VecDeque<LeaderResponse>, ended: bool },
}

impl Etcd {
    async fn watch_from(&self, range: KeyRange, from: Revision) -> Result<Box<dyn KeyWatch>, Status> {
        let options = WatchOptions { from: Some(from), ..WatchOptions::new(range) };
        self.ledger.watch_with(options).await.map_err(|e| error::status(&e))
    }

    /// The next thing that a leader proclaimed.
    async fn observe_next(&self, prefix: &Bytes, mut at: Observing) -> Result<(LeaderResponse, Observing), Status> {
        loop {
            at = match at {
                Observing::Leader => {
                    let (first, revision) = self.first(prefix.clone()).await?;
                    let next = Revision(revision.0 + 1);
                    match first {
                        Some(kv) => {
                            let watch = self.watch_from(KeyRange::key(kv.key.clone()), next).await?;
                            let answer =
                                LeaderResponse { header: self.header(revision), kv: Some(convert::key_value(kv)) };
                            let (pending, ended) = (VecDeque::new(), false);
                            return Ok((answer, Observing::News { watch, pending, ended }));
                        }
                        None => {
                            // Whatever happens in the line, look again.
                            let mut watch = self.watch_from(KeyRange::prefix(prefix.clone()), next).await?;
                            while let WatchItem::Events { events, .. } = next_item(&mut watch).await?
                                && events.is_empty()
                            {}
                            Observing::Leader
                        }
                    }
                }
                Observing::News { watch, mut pending, ended } if !pending.is_empty() => {
                    let answer = pending.pop_front().expect("it is not empty");
                    return Ok((answer, Observing::News { watch, pending, ended }));
                }
                Observing::News { ended: true, .. } => Observing::Leader,
                Observing::News { mut watch, mut pending, .. } => match next_item(&mut watch).await? {
                    WatchItem::Compacted { .. } => Observing::Leader,
                    WatchItem::Events { events, revision } => {
                        let ended = events.iter().any(|event| event.deleted);
                        for event in events.into_iter().take_while(|event| !event.deleted) {
                            let kv = Some(convert::key_value(event.kv));
                            pending.push_back(LeaderResponse { header: self.header(revision), kv });
                        }
                        Observing::News { watch, pending, ended }
                    }
                },
            }
        }
    }
}

async fn next_item(watch: &mut Box<dyn KeyWatch>) -> Result<WatchItem, Status> {
    match watch.next().await.map_err(|e| error::status(&e))? {
        Some(item) => Ok(item),
        None => Err(error::STOPPED.into()),
    }
}

#[tonic::async_trait]
impl Election for super::Shared {
    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let CampaignRequest { name, lease, value } = request.into_inner();
        let lease = self.lease_or_new(lease).await?;
        let place = self.take_place(&name, lease, value.clone()).await?;
        let leader =
            LeaderKey { name, key: place.key.clone(), rev: convert::number(place.created), lease: place.lease.0 };
        let leaver = Leaver::new(self, &place);
        // The lease campaigned before with something else to say.
        let mut revision = match &place.found {
            Some(found) if *found != value => self.proclaim_value(&leader, value).await?,
            _ => place.revision,
        };
        self.wait_for_turn(&place).await?;
        let (held, now) = self.get(place.key.clone()).await?;
        if held.is_none_or(|kv| kv.create_revision != place.created) {
            return Err(error::LEASE_NOT_FOUND.into());
        }
        revision = revision.max(now);
        leaver.stay();
        Ok(Response::new(CampaignResponse { header: self.header(revision), leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or(error::LEADER_FIELD_MISSING)?;
        let revision = self.proclaim_value(&leader, value).await?;
        Ok(Response::new(ProclaimResponse { header: self.header(revision) }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let (first, revision) = self.first(queue::prefix(&request.into_inner().name)).await?;
        let kv = first.ok_or(error::ELECTION_NO_LEADER)?;
        Ok(Response::new(LeaderResponse { header: self.header(revision), kv: Some(convert::key_value(kv)) }))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let state = (self.0.clone(), queue::prefix(&request.into_inner().name), Observing::Leader);
        let answers = stream::try_unfold(state, |(etcd, prefix, at)| async move {
            let (answer, at) = etcd.observe_next(&prefix, at).await?;
            Ok(Some((answer, (etcd, prefix, at))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let leader = request.into_inner().leader.ok_or(error::LEADER_FIELD_MISSING)?;
        let created = convert::revision(leader.rev).unwrap_or_default();
        if leader.key.is_empty() {
            return Err(error::EMPTY_KEY.into());
        }
        let compares = vec![queue::created_at(leader.key.clone(), created)];
        let revision = self.delete_if(compares, leader.key).await?;
        Ok(Response::new(ResignResponse { header: self.header(revision) }))
    }
}
