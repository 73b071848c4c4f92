//! The two narrow traits that planes are written against, and the view of the cluster that edges need.

use std::{future::Future, pin::Pin};

use bytes::Bytes;

use crate::{
    entry::{Entry, KeyRange, TopicSettings},
    error::{Code, Error},
    ids::{Index, LogId, NodeId, Offset, Revision, Term, TimeMs},
    receipt::{Receipt, Refusal},
};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What one commit can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything at once: keys, records, cursors, timers, guards.
    Entry,
    /// Keys and leases of one etcd transaction.
    Keys,
    /// Records and offsets of one Kafka transaction.
    Records,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every commit that was acknowledged before the read began, on any node.
    Linearizable,
    /// What this node has applied.
    Serializable,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// A guard did not hold: nothing happened.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// With [`Code::TIMEOUT`] the outcome is unknown.
    #[error(transparent)]
    Failed(Error),
}

impl SubmitError {
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(Refusal::Guard { .. }) => Code::REFUSED,
            Self::Refused(Refusal::Part { code, .. }) => *code,
            Self::Failed(error) => error.code,
        }
    }

    pub fn into_error(self) -> Error {
        match self {
            Self::Refused(refusal) => refusal.into_error(),
            Self::Failed(error) => error,
        }
    }
}

/// A key with its value at the revision that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub version: u64,
}

/// The keys of a range, in key order, and the revision at which they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValues {
    pub revision: Revision,
    pub kvs: Vec<KeyValue>,
    /// More keys than `limit` are in the range.
    pub more: bool,
}

/// One change of one key. All changes of a revision come together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEvent {
    pub revision: Revision,
    pub key: Bytes,
    /// `None` for a delete.
    pub value: Option<Bytes>,
}

/// A running watch.
pub trait Watch: Send {
    /// The next changes, in revision order without gaps; `None` when the node stops.
    ///
    /// # Errors
    /// When history before the wanted revision is gone.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeyEvent>>, Error>>;
}

/// Keys, guards, leases and timers.
pub trait Ledger: Send + Sync + 'static {
    /// Proposes the entry and waits until it is applied. May be called on any node; `time` and `request` are filled in,
    /// and the request is retried across leader changes without ever being applied twice.
    fn submit(&self, entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>>;

    /// Reads a range of keys at the current revision.
    fn read(&self, range: KeyRange, limit: usize, consistency: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>>;

    /// Reads rows of a function's state as this node has applied them.
    fn state(&self, space: &str, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, Error>>;

    /// Watches a range from a revision on (`None`: from now).
    fn watch(&self, range: KeyRange, from: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>>;

    fn scope(&self) -> Scope;
}

/// A topic as applied on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    pub name: String,
    pub id: [u8; 16],
    pub settings: TopicSettings,
    pub partitions: Vec<PartitionView>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionView {
    pub log: LogId,
    /// First offset that retention has left.
    pub start: Offset,
    /// Offset of the next record: the high watermark.
    pub end: Offset,
    pub bytes: u64,
}

/// Where a batch lies, and its bytes as the producer sent them but for base offset and leader epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub base_offset: Offset,
    pub last_offset: Offset,
    pub max_timestamp_ms: i64,
    pub index: Index,
    pub committed_at: TimeMs,
    pub bytes: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    pub start: Offset,
    pub end: Offset,
    /// Whole batches; the first one contains the wanted offset.
    pub batches: Vec<Batch>,
}

/// Topics and records. Only what a quorum has committed is ever seen.
pub trait Stream: Send + Sync + 'static {
    fn topics(&self) -> Vec<TopicView>;
    fn topic(&self, name: &str) -> Option<TopicView>;

    /// Reads batches from `offset` on, at least one where there is one, at most about `bytes_max`. Where there is none
    /// yet, waits up to `wait_ms`.
    ///
    /// # Errors
    /// `OFFSET_OUT_OF_RANGE`, `TOPIC_UNKNOWN`.
    fn fetch(
        &self,
        log: LogId,
        offset: Offset,
        bytes_max: usize,
        wait_ms: u64,
    ) -> BoxFuture<'_, Result<Fetched, Error>>;

    /// The first offset whose batch has a timestamp of at least `timestamp_ms`, with that timestamp.
    fn offset_for_time(&self, log: LogId, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<(Offset, i64)>, Error>>;

    /// The group's cursors as applied on this node.
    fn cursor(&self, group: &str, log: LogId) -> Option<Offset>;

    fn scope(&self) -> Scope;
}

/// Addresses that a member serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    pub name: String,
    /// `host:port` of each edge, as clients should use it.
    pub peer: String,
    pub kafka: String,
    pub mqtt: String,
    pub http: String,
}

/// The cluster as this node sees it now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    pub cluster_id: String,
    pub node: NodeId,
    pub members: Vec<Member>,
    pub leader: Option<NodeId>,
    pub term: Term,
    pub committed: Index,
    pub applied: Index,
    pub revision: Revision,
}

impl ClusterView {
    pub fn is_leader(&self) -> bool {
        self.leader == Some(self.node)
    }
}

pub trait Cluster: Send + Sync + 'static {
    fn view(&self) -> ClusterView;
    /// Returns when leader or term differ from what `seen` had.
    fn changed(&self, seen: &ClusterView) -> BoxFuture<'_, ClusterView>;
    /// The node's wall clock.
    fn now(&self) -> TimeMs;
}
