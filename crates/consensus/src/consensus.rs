//! What a replica asks of a consensus engine.
//!
//! The engine is sans-IO: it is told what happened and asked what follows. One turn of its owner is
//!
//! ```text
//!   tick · step · propose · read_index · change …        what happened
//!   while let Some(ready) = engine.ready()               what follows
//!       send ready.messages now
//!       make ready.entries and ready.hard_state durable, then send ready.after_persist, then persisted(number)
//!       put ready.snapshot in place, then installed()
//!       apply ready.committed, then applied(index)
//! ```
//!
//! Everything handed out by one `ready` comes before everything of the next. The lab's other protocols implement the
//! same trait, and are tested against the same world.

use buttress_core::{Error, Index, NodeId, Term};
use bytes::Bytes;

use crate::{
    message::Message,
    types::{Contact, Fetch, HardState, LogEntry, MemberStep, Members, ProposalError, Role, SnapshotMeta},
};

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepError {
    /// It is malformed, stale, or from nobody that could have sent it; dropping it is safe, as the network may drop
    /// any message.
    Dropped(&'static str),
    /// It proves that this node lost what it had acknowledged. The node must stop, and be replaced under a new id.
    Fatal(Error),
}

/// What follows from what happened.
#[derive(Debug, Default)]
pub struct Ready {
    /// Names this batch of things to persist; grows.
    pub number: u64,
    /// May be sent at once.
    pub messages: Vec<Message>,
    /// Must not be sent before everything in this and all earlier batches is durable.
    pub after_persist: Vec<Message>,
    /// Every entry that the durable log holds is void, for this snapshot has taken their place: the log begins anew
    /// behind it. `entries` come after.
    pub reset: Option<SnapshotMeta>,
    /// Set where term or vote changed, and beside entries.
    pub hard_state: Option<HardState>,
    /// The first one's index truncates what the log had from there on.
    pub entries: Vec<LogEntry>,
    /// A state to put in place of log and machine, before anything else of this batch.
    pub snapshot: Option<SnapshotMeta>,
    /// Entries that may be applied, in order.
    pub committed: Vec<LogEntry>,
    /// Reads that may be answered once the index is applied.
    pub reads: Vec<(Bytes, Index)>,
}

/// A member's progress, as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub id: NodeId,
    /// Its log is known to agree up to here.
    pub matched: Index,
    pub next: Index,
    /// It was heard from within the last election timeout.
    pub active: bool,
    /// It is being sent a snapshot.
    pub snapshot: bool,
}

/// Where the log stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStatus {
    pub role: Role,
    pub first: Index,
    pub last: Index,
    pub persisted: Index,
    pub committed: Index,
    pub applied: Index,
    /// Of the entries from the first to the last, and of those among them that are in memory.
    pub log_bytes: usize,
    pub log_memory_bytes: usize,
    pub uncommitted_bytes: usize,
    pub members: Members,
    /// Only on the leader, in id order.
    pub peers: Vec<PeerStatus>,
}

/// A consensus engine.
pub trait Consensus: Send + 'static {
    /// One unit of time passed.
    fn tick(&mut self);

    /// Takes a message whose sender the transport has authenticated.
    ///
    /// # Errors
    /// Whether it was dropped or proves a loss.
    fn step(&mut self, from: NodeId, message: Message) -> Result<(), StepError>;

    /// Bytes that may still be proposed before the limit of uncommitted bytes is reached, for a proposal of `len`
    /// bytes on top of `pending` ones. One proposal is always let through when nothing waits.
    fn has_room(&self, pending: usize, len: usize) -> bool;

    /// Appends all entries at once, in order, as consecutive indexes in one term; gives the first one's place.
    ///
    /// # Errors
    /// When nothing was appended.
    fn propose(&mut self, entries: Vec<Bytes>) -> Result<(Index, Term), ProposalError>;

    /// Proposes a change of members, with the contacts of those that are new; gives its place.
    ///
    /// # Errors
    /// When nothing was appended.
    fn change(&mut self, steps: &[MemberStep], contacts: &[(NodeId, Contact)]) -> Result<(Index, Term), ProposalError>;

    /// Asks for a read index under a context that was never used before. `false`: nobody to ask yet, try again.
    fn read_index(&mut self, context: Bytes) -> bool;

    /// Hands leadership over, if this node leads and the other is a voter.
    fn transfer(&mut self, to: NodeId);

    fn unreachable(&mut self, peer: NodeId);

    /// A snapshot message was delivered together with its state, or could not be.
    fn snapshot_sent(&mut self, to: NodeId, ok: bool);

    /// What follows; `None` when nothing does.
    fn ready(&mut self) -> Option<Ready>;

    /// Everything up to this batch is durable.
    fn persisted(&mut self, number: u64);

    /// The snapshot that the last [`Ready::snapshot`] asked for is durable and in place.
    fn installed(&mut self);

    /// The machine has applied up to here.
    fn applied(&mut self, index: Index);

    /// Entries that followers need and that are in the durable log only; each is told once.
    fn fetches(&mut self) -> Vec<Fetch>;

    /// What the host read for the [`Fetch`] that began at `low`: entries from there on, or none if it could not.
    fn fetched(&mut self, low: Index, entries: Vec<LogEntry>);

    /// Carries out a committed change of members and gives the members after it.
    fn apply_change(&mut self, entry: &LogEntry) -> Members;

    /// The store is durable up to here; gives the first index that the log still holds, if that moved.
    fn checkpointed(&mut self, index: Index, term: Term) -> Option<Index>;

    /// Whether a follower needs a snapshot and there is no checkpoint to offer; asking clears it.
    fn wants_checkpoint(&mut self) -> bool;

    /// Members after the entry at `index`, for indexes from the last checkpoint to the last applied one.
    fn members_at(&self, index: Index) -> Option<Members>;

    fn role(&self) -> Role;

    fn status(&self) -> EngineStatus;
}
