//! etcd's v3 API on one port: gRPC over HTTP/2, the JSON gateway and a few pages over HTTP/1.1 or HTTP/2, without TLS.
//!
//! What is served, and where it differs from the original, is written in `COMPAT.md`. The unary path is kept narrow: a
//! request is decoded, one method of [`Etcd`] takes a message and gives a message or a [`Status`], and nothing of the
//! transport reaches it. So another implementation of the framing can take tonic's place.

mod auth;
mod bolt;
mod calls;
mod cluster;
mod connection;
mod convert;
mod counters;
mod election;
mod error;
mod feed;
pub mod fuzz;
pub mod gateway;
mod http;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod queue;
mod snapshot;
mod upload;
mod watches;

#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use buttress_core::{BoxFuture, Cluster, Consistency, Error, Ledger, NodeId, Revision};
use tokio::sync::{Semaphore, watch};
use tonic::Status;

pub use convert::{REQUEST_BYTES_MAX, TXN_OPS_MAX};
pub use counters::Counters;
pub use http::serve;

use crate::pb::etcdserverpb as pb;

/// The version of etcd whose API this is. Clients switch features on by it.
pub const VERSION: &str = "3.7.0";

/// What the edge may ask of the node beside the ledger.
pub trait Admin: Send + Sync + 'static {
    /// Takes a member out of the cluster.
    ///
    /// # Errors
    /// `MEMBER_UNKNOWN`, `MEMBERS_BUSY`, `QUORUM`, and those of the node.
    fn remove(&self, id: NodeId) -> BoxFuture<'_, Result<(), Error>>;

    /// Makes a learner that has caught up a voter.
    ///
    /// # Errors
    /// `MEMBER_UNKNOWN`, `LAGGING`, `MEMBERS_BUSY`, and those of the node.
    fn promote(&self, id: NodeId) -> BoxFuture<'_, Result<(), Error>>;

    /// Hands leadership over to a member.
    ///
    /// # Errors
    /// `MEMBER_UNKNOWN`, `LAGGING`, `NO_LEADER`, and those of the node.
    fn transfer(&self, to: NodeId) -> BoxFuture<'_, Result<(), Error>>;

    /// Bytes that the node's data takes on its disk.
    fn disk_bytes(&self) -> BoxFuture<'_, u64>;
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Connections at a time; one more is closed. Thousands may idle: each costs two file descriptors' worth of buffers
    /// only once it speaks.
    pub connections_max: usize,
    /// How often a watch that asked for it hears how far it is when there was nothing else to say. etcd's default.
    pub progress_interval: Duration,
    /// Latest events that are kept in memory for watches, per way of encoding them. A watch that is further behind
    /// reads from the store.
    pub ring_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections_max: 12 * 1024,
            progress_interval: Duration::from_secs(600),
            ring_bytes_max: 8 * 1024 * 1024,
        }
    }
}

/// What the edge stands on.
pub struct Deps {
    pub ledger: Arc<dyn Ledger>,
    pub cluster: Arc<dyn Cluster>,
    pub admin: Arc<dyn Admin>,
    /// Appends everything for `/metrics`.
    pub metrics: Box<dyn Fn(&mut String) + Send + Sync>,
    pub counters: Arc<Counters>,
    pub options: Options,
    /// Turns true when the node stops.
    pub stopping: watch::Receiver<bool>,
}

/// The services.
pub struct Etcd {
    ledger: Arc<dyn Ledger>,
    cluster: Arc<dyn Cluster>,
    admin: Arc<dyn Admin>,
    metrics: Box<dyn Fn(&mut String) + Send + Sync>,
    counters: Arc<Counters>,
    options: Options,
    feeds: feed::Feeds,
    gateway: gateway::Gateway,
    snapshots: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
    cluster_number: u64,
    member: NodeId,
    /// As [`Etcd::follow_term`] saw it last: a view of the cluster is too much to make for every reply.
    term: AtomicU64,
}

/// The edge as a service whose streams keep it.
struct Shared(Arc<Etcd>);

impl std::ops::Deref for Shared {
    type Target = Arc<Etcd>;

    fn deref(&self) -> &Arc<Etcd> {
        &self.0
    }
}

impl Etcd {
    pub fn new(deps: Deps) -> Arc<Self> {
        let Deps { ledger, cluster, admin, metrics, counters, options, stopping } = deps;
        let feeds = feed::Feeds::new(ledger.clone(), options.ring_bytes_max);
        let gateway = gateway::Gateway::new();
        let view = cluster.view();
        let (cluster_number, member, term) = (cluster_number(&view.cluster_id), view.node, view.term.0.into());
        Arc::new(Self {
            ledger,
            cluster,
            admin,
            metrics,
            counters,
            options,
            feeds,
            gateway,
            snapshots: Arc::new(Semaphore::new(snapshot::RUNNING_MAX)),
            stopping,
            cluster_number,
            member,
            term,
        })
    }

    /// The header that every reply has.
    fn header(&self, revision: Revision) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            cluster_id: self.cluster_number,
            member_id: self.member.0,
            revision: convert::number(revision),
            raft_term: self.term.load(Ordering::Relaxed),
        })
    }

    /// Keeps the term of headers up to date, for as long as it is polled.
    async fn follow_term(&self) {
        let mut view = self.cluster.view();
        loop {
            self.term.store(view.term.0, Ordering::Relaxed);
            view = self.cluster.changed(&view).await;
        }
    }

    /// The header where the request touched no key: at the revision that this node has applied.
    async fn header_now(&self) -> Result<Option<pb::ResponseHeader>, Status> {
        let keys = self.ledger.keys(Consistency::Serializable).await.map_err(|e| error::status(&e))?;
        Ok(self.header(keys.revision))
    }
}

/// etcd numbers clusters; ours have names. FNV-1a of 64 bits, so that every node says the same.
fn cluster_number(id: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    id.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
