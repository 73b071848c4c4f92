//! The two narrow traits that planes are written against, and the view of the cluster that edges need.

use std::{future::Future, pin::Pin};

use bytes::Bytes;

use crate::{
    entry::{Entry, KeyRange, TopicSettings},
    error::{Code, Error},
    ids::{Index, LeaseId, LogId, NodeId, Offset, Revision, Term, TimeMs},
    receipt::{Receipt, Refusal},
    txn::{RangeOp, RangeResult, Txn, TxnResult},
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
    /// The key is deleted when this lease ends.
    pub lease: Option<LeaseId>,
}

/// The keys of a range, in key order, and the revision at which they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValues {
    pub revision: Revision,
    pub kvs: Vec<KeyValue>,
    /// More keys than `limit` are in the range.
    pub more: bool,
}

/// A part of a range, in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeysPage {
    /// The key space's revision when it was read, whatever revision was asked for.
    pub revision: Revision,
    pub kvs: Vec<KeyValue>,
    /// Keys that the part has, given or not.
    pub count: u64,
    /// Where the next part begins; `None` where this was the last one.
    pub next: Option<Bytes>,
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

/// What a [`KeyWatch`] is to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchOptions {
    pub range: KeyRange,
    /// The first revision whose changes are wanted; one that is not there yet is waited for. `None`: what comes after now.
    pub from: Option<Revision>,
    /// Give with each change what the key was before it, where history still has it.
    pub prev_kv: bool,
    pub no_put: bool,
    pub no_delete: bool,
}

impl WatchOptions {
    pub fn new(range: KeyRange) -> Self {
        Self { range, from: None, prev_kv: false, no_put: false, no_delete: false }
    }
}

/// One change of one key, with everything that is known of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The key as the change left it. Of a delete: the key and the revision at which it was deleted (`mod_revision`),
    /// everything else empty.
    pub kv: KeyValue,
    pub deleted: bool,
    pub prev: Option<KeyValue>,
}

/// What a watch has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// Changes in the order of revisions, whole revisions only, and up to which revision they are complete. Without any
    /// event it is news all the same: up to `revision` there is nothing for this watch.
    Events { events: Vec<WatchEvent>, revision: Revision },
    /// The changes at the wanted revision are gone; history begins at `compacted`. The watch has ended.
    Compacted { compacted: Revision },
}

/// A running watch with etcd's options.
pub trait KeyWatch: Send {
    /// Waits until the key space has moved past what was given last, and gives what there is; `None` when the node stops.
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// `DISK`.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<WatchItem>, Error>>;

    /// Everything below this revision was given, or was nothing for this watch.
    fn position(&self) -> Revision;
}

/// A lease as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseView {
    pub lease: LeaseId,
    /// The time to live that was granted.
    pub ttl_ms: u64,
    /// Until it is due; 0 once it is, though it lives until the leader has ended it.
    pub remaining_ms: u64,
    /// Keys that hang on it, in their order, where they were asked for.
    pub keys: Vec<Bytes>,
}

/// How far the key space is, and how much of its past is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeysView {
    pub revision: Revision,
    /// Reads below this revision are refused.
    pub compacted: Revision,
    /// Keys that exist.
    pub keys: u64,
    /// Changes wait to be removed after a compaction.
    pub unswept: bool,
}

/// A hash over keys and their history, to compare nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeysHash {
    pub hash: u64,
    /// The revision up to which changes are in it, and the one to which history was compacted.
    pub at: Revision,
    pub compacted: Revision,
    /// The key space's revision when it was taken.
    pub revision: Revision,
}

/// What a [`KeyImage`] is the image of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageHead {
    pub index: Index,
    pub term: Term,
    /// The log's clock.
    pub time: TimeMs,
    pub revision: Revision,
    /// Reads below this revision are refused.
    pub compacted: Revision,
}

/// One change of a key, as history keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageChange {
    /// The key as the change left it, under its `mod_revision`. Of a delete: the key and the revision only.
    pub kv: KeyValue,
    /// The number of the change among those of its revision.
    pub sub: u32,
    pub deleted: bool,
}

/// Keys with their history, and leases, as they were at one entry of the log. It stays as it is however long it is read,
/// and reading it blocks on the disk.
pub trait KeyImage: Send + 'static {
    fn head(&self) -> ImageHead;

    /// All changes that history has, in the order in which they were made. What a compaction forgets may still be there.
    fn changes(&self) -> Box<dyn Iterator<Item = Result<ImageChange, Error>> + '_>;

    /// The leases that live, without their keys, in the order of their ids as unsigned numbers.
    fn leases(&self) -> Box<dyn Iterator<Item = Result<LeaseView, Error>> + '_>;
}

fn unsupported<'a, T: Send + 'a>(what: &'static str) -> BoxFuture<'a, Result<T, Error>> {
    Box::pin(async move { Err(Error::new(Code::UNSUPPORTED, format!("this ledger does not serve {what}"))) })
}

/// Keys, guards, leases and timers.
pub trait Ledger: Send + Sync + 'static {
    /// Proposes the entry and waits until it is applied. May be called on any node; `time` and `request` are filled in,
    /// and the request is retried across leader changes without ever being applied twice.
    fn submit(&self, entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>>;

    /// Reads a range of keys at the current revision.
    fn read(&self, range: KeyRange, limit: usize, consistency: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>>;

    /// Reads a range of keys as it was at an earlier revision, from what this node has applied.
    ///
    /// # Errors
    /// `COMPACTED`, `REVISION_FUTURE` for one that this node has not reached, `UNSUPPORTED` where no history is kept.
    fn read_at(&self, range: KeyRange, limit: usize, at: Revision) -> BoxFuture<'_, Result<KeyValues, Error>> {
        let _ = (range, limit, at);
        Box::pin(async { Err(Error::new(Code::UNSUPPORTED, "this ledger keeps no earlier revisions")) })
    }

    /// Reads rows of a function's state as this node has applied them.
    fn state(&self, space: &str, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, Error>>;

    /// Watches a range from a revision on (`None`: from now).
    fn watch(&self, range: KeyRange, from: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>>;

    /// Reads a range with everything that etcd's Range offers. A read of many keys is done in pages at one revision, so
    /// that it does not stop the node.
    ///
    /// # Errors
    /// `COMPACTED`, `REVISION_FUTURE`, and those of the node.
    fn read_with(&self, op: RangeOp, consistency: Consistency) -> BoxFuture<'_, Result<RangeResult, Error>> {
        let _ = (op, consistency);
        unsupported("ranges with options")
    }

    /// Reads the first part of a range, as large as is read in one go. Of the options, order and bounds are not looked at.
    /// What follows is read from `next` on, at the first part's revision, with as much less for a limit.
    ///
    /// # Errors
    /// `COMPACTED`, `REVISION_FUTURE`, and those of the node.
    fn read_page(&self, op: RangeOp, consistency: Consistency) -> BoxFuture<'_, Result<KeysPage, Error>> {
        let _ = (op, consistency);
        unsupported("ranges in parts")
    }

    /// Evaluates a transaction that changes nothing ([`Txn::is_read_only`]) without proposing it, and gives the revision
    /// at which it was read.
    ///
    /// # Errors
    /// As an entry with this transaction would be refused; `BAD_REQUEST` for one that changes something.
    fn read_txn(&self, txn: Txn, consistency: Consistency) -> BoxFuture<'_, Result<(Revision, TxnResult), Error>> {
        let _ = (txn, consistency);
        unsupported("transactions")
    }

    /// Watches a range with etcd's options.
    fn watch_with(&self, options: WatchOptions) -> BoxFuture<'_, Result<Box<dyn KeyWatch>, Error>> {
        let _ = options;
        unsupported("watches with options")
    }

    /// The leases that live, in the order of their ids.
    fn leases(&self, consistency: Consistency) -> BoxFuture<'_, Result<Vec<LeaseId>, Error>> {
        let _ = consistency;
        unsupported("lists of leases")
    }

    /// A lease, with the keys that hang on it if `keys`; `None` where there is none.
    fn lease(
        &self,
        lease: LeaseId,
        keys: bool,
        consistency: Consistency,
    ) -> BoxFuture<'_, Result<Option<LeaseView>, Error>> {
        let _ = (lease, keys, consistency);
        unsupported("leases")
    }

    /// How far the key space is.
    fn keys(&self, consistency: Consistency) -> BoxFuture<'_, Result<KeysView, Error>> {
        let _ = consistency;
        unsupported("the state of the key space")
    }

    /// Hashes keys and history up to a revision (`None`: all that this node has applied). It reads all of them.
    ///
    /// # Errors
    /// `COMPACTED`, `REVISION_FUTURE`, `DISK`.
    fn hash_keys(&self, at: Option<Revision>) -> BoxFuture<'_, Result<KeysHash, Error>> {
        let _ = at;
        unsupported("hashes of keys")
    }

    /// The key space as an image of one moment, to be read off the node's task. A linearizable one has everything that was
    /// acknowledged before it was asked for.
    ///
    /// # Errors
    /// `NO_LEADER`, `DISK`, `STOPPED`.
    fn image(&self, consistency: Consistency) -> BoxFuture<'_, Result<Box<dyn KeyImage>, Error>> {
        let _ = consistency;
        unsupported("images of the key space")
    }

    /// Forgets the history of keys below a revision. `physical` waits until this node has removed what no read can see any
    /// more; otherwise that goes on behind the answer.
    ///
    /// # Errors
    /// Refused with `COMPACTED` where that was done already, `REVISION_FUTURE` where the key space is not there yet.
    fn compact(&self, at: Revision, physical: bool) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        let _ = physical;
        Box::pin(async move { self.submit(Entry { compact: Some(at), ..Entry::default() }).await })
    }

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

/// How far a group has consumed a partition, and what it noted there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CursorView {
    pub next: Offset,
    pub metadata: String,
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

    /// A group's cursor with the text that was left with it.
    fn position(&self, group: &str, log: LogId) -> Option<CursorView> {
        self.cursor(group, log).map(|next| CursorView { next, metadata: String::new() })
    }

    /// All cursors of a group, in the order of the logs.
    fn positions(&self, group: &str) -> Vec<(LogId, CursorView)> {
        let topics = self.topics();
        let logs = topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.log);
        let mut found: Vec<_> = logs.filter_map(|log| Some((log, self.position(group, log)?))).collect();
        found.sort_unstable_by_key(|(log, _)| *log);
        found
    }

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
    /// Empty where the member serves no etcd clients: one that was added before there was that edge.
    pub etcd: String,
    pub role: MemberRole,
}

/// What a member's word counts for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberRole {
    #[default]
    Voter,
    /// Has the log and serves reads and clients, but no decision waits for it.
    Learner,
    /// A voter until the change that runs is finished.
    Leaving,
}

/// How far a member is, as the leader sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub id: NodeId,
    /// Its log is known to agree up to here.
    pub matched: Index,
    /// Entries that the leader has and it is not known to have.
    pub lag: u64,
    /// It was heard within about two election timeouts.
    pub reachable: bool,
    /// It is being sent a snapshot.
    pub snapshot: bool,
    /// How long its disk takes to sync, where it has said so.
    pub sync_us: Option<u64>,
}

/// The cluster as this node sees it now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    pub cluster_id: String,
    pub node: NodeId,
    /// In the order of their ids.
    pub members: Vec<Member>,
    /// On the leader: of every member, itself included.
    pub progress: Vec<Progress>,
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
    /// The node's wall clock: for people, and for the timestamps of records.
    fn now(&self) -> TimeMs;
    /// The cluster's time, by which leases end and timers fire. An engine that has none of its own goes by the wall clock.
    fn cluster_time(&self) -> TimeMs {
        self.now()
    }
}
