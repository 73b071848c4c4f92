//! A node: what a production node does around its replicas and its log, as steps of virtual time.
//!
//! It follows the production host rule by rule: a turn drains the inbox, steps the replica once, and carries out what comes
//! out in the order of the contract. Jobs for the log wait while a commit is in flight and then go as one batch. The
//! leader stamps entries with the cluster's time, as it knows it, and proposes what is due. An entry of a client is unsent, in this
//! leader's log, or sent to another leader, and is sent again when that is silent.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use buttress_consensus::{
    Applied, Body, Fetch, Input, MemberChange, Message, Outputs, Persist, ProposalError, Replica, Role, SnapshotMeta,
};
use buttress_core::{
    Clocks, ClusterClock, Code, Entry, Index, Machine as _, NodeId, Refusal, Renewal, RequestId, Term, TimeMs,
    invariants, limits::ENTRY_PARTS_MAX,
};
use buttress_state::{Machine, MemStore};
use buttress_wal::{Batch, Job, Wal};
use bytes::Bytes;

use super::{Event, World};
use crate::{
    MS, SEC, Us,
    machine::{SimMachine, Step},
    schedule::Kind,
    workload::{Op, Outcome, SHARDS},
};

/// The pause after an entry was not taken because the leader is overloaded, doubled each time.
const OVERLOAD_PAUSE: (Us, Us) = (50 * MS, 800 * MS);
const RESEND_MAX: Us = 8 * SEC;
const RETENTION_EVERY: Us = 2 * SEC;

/// What nodes send each other.
#[derive(Clone)]
pub(crate) enum Frame {
    Raft(Bytes),
    /// A client's entry, on its way to the leader.
    Propose {
        client: u64,
        number: u64,
        entry: Bytes,
    },
    NotTaken {
        client: u64,
        number: u64,
        overloaded: bool,
    },
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frame::Raft(bytes) => match Message::decode(bytes.clone()) {
                Ok(message) => write!(f, "{message:?}"),
                Err(error) => write!(f, "{error}"),
            },
            Frame::Propose { client, number, .. } => write!(f, "propose {client}/{number}"),
            Frame::NotTaken { client, number, overloaded } => {
                write!(f, "not taken {client}/{number}{}", if *overloaded { ", overloaded" } else { "" })
            }
        }
    }
}

/// A state that is, or will be, durable.
#[derive(Clone)]
pub(crate) struct Checkpoint {
    pub meta: SnapshotMeta,
    pub store: MemStore,
    pub rolling: u64,
}

/// A snapshot that has come in whole.
pub(crate) struct Incoming {
    pub from: u64,
    pub from_incarnation: u64,
    pub message: Bytes,
    pub state: Checkpoint,
}

/// Whose proposal it is that this leader has in the log.
#[derive(Clone, Copy)]
enum Proposer {
    Own { client: u64, number: u64 },
    Peer { node: u64, client: u64, number: u64 },
    Clock,
}

#[derive(Clone, Copy)]
enum Place {
    Unsent,
    Here,
    SentTo { leader: u64, at: Us },
}

struct Pending {
    encoded: Bytes,
    place: Place,
    since: Us,
    patience: Us,
}

pub(crate) enum Work {
    Job(Job),
    Forget { shard: u32, before: Index },
}

/// What is being written.
pub(crate) struct Commit {
    pub jobs: Vec<Job>,
    pub forget: Vec<(u32, Index)>,
    pub batch: Batch,
}

pub(crate) struct ShardHost {
    pub replica: Replica<SimMachine>,
    inbox: Vec<Input<SimMachine>>,
    turn_due: bool,
    pub arrivals: VecDeque<Incoming>,
    after_sync: VecDeque<(u64, Vec<(NodeId, Message)>)>,
    pub role: Role,
    proposed: BTreeMap<u64, Proposer>,
    from_peers: BTreeSet<(u64, u64, u64)>,
    next_tag: u64,
    /// The term of the latest entry that was applied in this run.
    applied_term: Term,
    /// The cluster's time, as this replica knows it.
    clock: ClusterClock,
    renewal: Option<Renewal>,
    expiry: Option<u64>,
    retention_at: Us,
    checkpoint_at: Us,
    /// A checkpoint is on its way to the disk.
    checkpointing: bool,
    /// A durable checkpoint that consensus does not know of yet, because followers still want the log before it.
    checkpoint: Option<(Index, Term)>,
    sending: BTreeMap<u64, Option<Message>>,
    pending: BTreeMap<(u64, u64), Pending>,
    unsent: BTreeSet<(u64, u64)>,
    unsent_paused: Us,
    overload_pause: Us,
    headroom: Option<usize>,
    /// Reads by the tag of their barrier.
    barriers: BTreeMap<u64, Barrier>,
    next_barrier: u64,
    new_reads: Vec<Op>,
}

struct Barrier {
    failed: bool,
    since: Us,
    reads: Vec<Op>,
}

pub(crate) struct Host {
    pub wal: Wal,
    queue: VecDeque<Work>,
    pub committing: Option<Commit>,
    /// Notices of the log's thread are heard in order.
    notify_at: Us,
    pub started: Us,
    pub shards: [ShardHost; SHARDS as usize],
}

impl Host {
    pub fn new(wal: Wal, started: Us, clocks: Clocks, replicas: [Replica<SimMachine>; SHARDS as usize]) -> Self {
        let shards = replicas.map(|replica| ShardHost {
            clock: ClusterClock::start(clocks, replica.machine().inner.clock()),
            applied_term: Term(0),
            renewal: None,
            replica,
            inbox: Vec::new(),
            turn_due: false,
            arrivals: VecDeque::new(),
            after_sync: VecDeque::new(),
            role: Role::default(),
            proposed: BTreeMap::new(),
            from_peers: BTreeSet::new(),
            next_tag: 0,
            expiry: None,
            retention_at: started + RETENTION_EVERY,
            checkpoint_at: 0,
            checkpointing: false,
            checkpoint: None,
            sending: BTreeMap::new(),
            pending: BTreeMap::new(),
            unsent: BTreeSet::new(),
            unsent_paused: 0,
            overload_pause: OVERLOAD_PAUSE.0,
            headroom: None,
            barriers: BTreeMap::new(),
            next_barrier: 0,
            new_reads: Vec::new(),
        });
        Self { wal, queue: VecDeque::new(), committing: None, notify_at: 0, started, shards }
    }
}

/// The bit that marks tags of the operator's changes, apart from those of proposals.
pub(crate) const OPERATOR_TAG: u64 = 1 << 62;

impl World {
    fn shard(&mut self, id: u64, shard: u32) -> &mut ShardHost {
        let host = self.nodes[id as usize - 1].host.as_mut().expect("only a node that runs is asked");
        &mut host.shards[shard as usize]
    }

    /// Hands a replica something, and sees to it that a turn comes.
    pub(crate) fn input(&mut self, id: u64, shard: u32, input: Input<SimMachine>) {
        self.shard(id, shard).inbox.push(input);
        self.turn_soon(id, shard);
    }

    fn turn_soon(&mut self, id: u64, shard: u32) {
        let at = self.shard(id, shard);
        if !at.turn_due {
            at.turn_due = true;
            let lag = if self.settings.turn_lag > 0 { self.rng.below(self.settings.turn_lag) } else { 0 };
            let incarnation = self.node(id).incarnation;
            self.after(lag, Event::Turn { node: id, incarnation, shard });
        }
    }

    pub(super) fn tick(&mut self, id: u64) {
        for shard in 0..SHARDS {
            self.shard(id, shard).inbox.push(Input::Tick);
            self.on_tick(id, shard);
            self.turn_soon(id, shard);
        }
        let ppm = self.node(id).clock.ppm;
        let tick = (self.settings.tick as i64 * 1_000_000 / (1_000_000 + ppm)) as Us;
        let incarnation = self.node(id).incarnation;
        self.after(tick, Event::Tick { node: id, incarnation });
    }

    fn on_tick(&mut self, id: u64, shard: u32) {
        let now = self.now;
        let (deadline, resend) = (self.settings.client_deadline, self.settings.client_deadline);
        let at = self.shard(id, shard);
        // A client that is gone by now is not answered any more.
        let late: Vec<_> = at.pending.iter().filter(|(_, p)| now - p.since > deadline).map(|(key, _)| *key).collect();
        for key in late {
            at.pending.remove(&key);
            at.unsent.remove(&key);
        }
        let silent = |p: &Pending| matches!(p.place, Place::SentTo { at, .. } if now - at > p.patience);
        let again: Vec<_> = at.pending.iter().filter(|(_, p)| silent(p)).map(|(key, _)| *key).collect();
        for key in again {
            let pending = at.pending.get_mut(&key).expect("just listed");
            pending.patience = (2 * pending.patience).min(RESEND_MAX);
            pending.place = Place::Unsent;
            at.unsent.insert(key);
        }
        let stale: Vec<u64> =
            at.barriers.iter().filter(|(_, barrier)| now - barrier.since > resend).map(|(tag, _)| *tag).collect();
        let given_up: Vec<Op> =
            stale.into_iter().flat_map(|tag| at.barriers.remove(&tag).expect("just listed").reads).collect();
        for (tag, barrier) in at.barriers.iter_mut().filter(|(_, barrier)| barrier.failed) {
            barrier.failed = false;
            at.inbox.push(Input::ReadIndex { tag: *tag });
        }
        for op in given_up {
            self.after(0, Event::ReadAnswer { op, answer: None });
        }
        if self.shard(id, shard).role.is_leader {
            self.propose_due(id, shard);
        }
        self.tell_checkpoint(id, shard);
        if self.now >= self.shard(id, shard).checkpoint_at {
            self.begin_checkpoint(id, shard);
        }
    }

    fn time(&mut self, id: u64, shard: u32) -> TimeMs {
        let clocks = self.clocks(id);
        self.shard(id, shard).clock.now(clocks)
    }

    /// Gives every lease its whole time again where a step of the time may have taken some of it. `true` when what is due
    /// may end.
    fn renew_leases(&mut self, id: u64, shard: u32) -> bool {
        let time = self.time(id, shard);
        // One by one, so that a leader dies in the middle of them.
        let together = if self.seed.is_multiple_of(2) { 1 } else { ENTRY_PARTS_MAX };
        let at = self.shard(id, shard);
        let heard_all = at.applied_term == at.role.term;
        let may_end = at.clock.may_end(heard_all);
        let Some(step) = at.clock.owes_renewal() else { return may_end };
        if !heard_all || at.renewal.as_ref().is_some_and(Renewal::waits) {
            return may_end;
        }
        let leases = at.replica.machine().inner.leases();
        let mut renewal = at.renewal.take().unwrap_or_else(|| Renewal::of(leases.set_before(step), together));
        let Some(entry) = renewal.next(at.next_tag, time, |lease| leases.get(lease).is_some()) else {
            at.clock.renewed();
            return true;
        };
        at.renewal = Some(renewal);
        let data = entry.encode();
        self.note_proposed(shard, &data);
        self.shard(id, shard).propose(data, Proposer::Clock);
        self.count("renewals");
        false
    }

    /// What is due by the cluster's time: leases and timers, and retention now and then.
    fn propose_due(&mut self, id: u64, shard: u32) {
        let (now, time) = (self.now, self.time(id, shard));
        let may_end = self.renew_leases(id, shard);
        let at = self.shard(id, shard);
        let machine = &at.replica.machine().inner;
        let trims = if at.retention_at <= now { machine.retention(time) } else { Vec::new() };
        let due = may_end && at.expiry.is_none() && machine.next_deadline().is_some_and(|due| due <= time);
        if at.retention_at <= now {
            at.retention_at = now + RETENTION_EVERY;
        }
        if due {
            let data = Entry { time, expire: true, ..Entry::default() }.encode();
            self.note_proposed(shard, &data);
            let at = self.shard(id, shard);
            let tag = at.propose(data, Proposer::Clock);
            at.expiry = Some(tag);
            self.count("expiries");
        }
        if !trims.is_empty() {
            let data = Entry { time, topics: trims, ..Entry::default() }.encode();
            self.shard(id, shard).propose(data, Proposer::Clock);
            self.count("trims");
        }
    }

    fn begin_checkpoint(&mut self, id: u64, shard: u32) {
        let stored = self.node(id).stores[shard as usize].as_ref().map_or(Index(0), |stored| stored.meta.index);
        let every = self.settings.checkpoint_every;
        let next = self.now + every / 2 + self.rng.below(every);
        let at = self.shard(id, shard);
        at.checkpoint_at = next;
        let meta = at.replica.snapshot_meta();
        if at.checkpointing || meta.index <= stored || at.replica.status().installing {
            return;
        }
        at.checkpointing = true;
        let machine = at.replica.machine();
        let checkpoint = Checkpoint { meta, store: machine.inner.store().clone(), rolling: machine.rolling };
        let (low, high) = self.settings.checkpoint_time;
        let time = self.rng.range(low, high);
        let incarnation = self.node(id).incarnation;
        self.after(time, Event::Checkpointed { node: id, incarnation, shard, checkpoint: Box::new(checkpoint) });
    }

    pub(super) fn checkpointed(&mut self, id: u64, shard: u32, checkpoint: Checkpoint) {
        let at = self.shard(id, shard);
        at.checkpointing = false;
        let (index, term) = (checkpoint.meta.index, checkpoint.meta.term);
        let newer = self.node(id).stores[shard as usize].as_ref().is_some_and(|stored| stored.meta.index >= index);
        if newer {
            return;
        }
        self.count("checkpoints");
        self.note(id, "checkpoint", &[u64::from(shard), index.0], || format!("s{shard} at {index}"));
        self.node_mut(id).stores[shard as usize] = Some(checkpoint);
        self.shard(id, shard).checkpoint = Some((index, term));
        self.tell_checkpoint(id, shard);
    }

    fn tell_checkpoint(&mut self, id: u64, shard: u32) {
        let lagging = self.settings.lagging_log_bytes;
        let at = self.shard(id, shard);
        let Some((index, term)) = at.checkpoint else { return };
        let status = at.replica.status().engine;
        let wanted = status.peers.iter().any(|peer| peer.active && peer.matched < index);
        if !wanted || status.log_bytes > lagging {
            at.checkpoint = None;
            self.input(id, shard, Input::Checkpointed { index, term });
        }
    }

    pub(super) fn turn(&mut self, id: u64, shard: u32) {
        self.shard(id, shard).turn_due = false;
        self.shard(id, shard).headroom = None;
        self.send_unsent(id, shard);
        let now = self.now;
        let at = self.shard(id, shard);
        if !at.new_reads.is_empty() {
            let tag = at.next_barrier;
            at.next_barrier += 1;
            let reads = std::mem::take(&mut at.new_reads);
            at.barriers.insert(tag, Barrier { since: now, failed: false, reads });
            at.inbox.push(Input::ReadIndex { tag });
        }
        let incarnation = self.node(id).incarnation;
        loop {
            let started = self.node(id).host.as_ref().expect("it runs").started;
            let now_ms = (self.now - started) / 1000;
            let at = self.shard(id, shard);
            let mut inputs = std::mem::take(&mut at.inbox);
            // Two snapshots in one step could not be told apart.
            let arrival = at.arrivals.pop_front();
            if let Some(arrival) = &arrival {
                let message = Message::decode(arrival.message.clone()).expect("what a member encoded can be decoded");
                inputs.push(Input::Receive { from: NodeId(arrival.from), message });
            }
            let before = at.replica.machine().applied().0;
            let replaced = inputs.iter().any(|input| matches!(input, Input::Installed { .. }));
            let outputs = at.replica.step(now_ms, inputs);
            let more = outputs.more;
            if replaced {
                let clocks = self.clocks(id);
                let at = self.shard(id, shard);
                at.clock.installed(clocks, at.replica.machine().inner.clock());
                self.tell_replaced(id, shard);
            }
            self.carry_out(id, shard, before, outputs, arrival);
            if self.failure.is_some() || !self.alive(id, incarnation) {
                return;
            }
            let at = self.shard(id, shard);
            if at.inbox.is_empty() && at.arrivals.is_empty() {
                if more {
                    self.turn_soon(id, shard);
                }
                break;
            }
        }
        self.start_commit(id);
    }

    fn carry_out(
        &mut self,
        id: u64,
        shard: u32,
        before: Index,
        outputs: Outputs<SimMachine>,
        arrival: Option<Incoming>,
    ) {
        if let Some(error) = outputs.fatal {
            self.note(id, "fatal", &[u64::from(shard)], || format!("s{shard} {error}"));
            self.lost_something(id, &format!("shard {shard} stopped: {error}"));
            return;
        }
        self.post(id, shard, outputs.messages);
        if let Some(mut persist) = outputs.persist {
            self.note(id, "persist", &[u64::from(shard), persist.ticket], || persist_text(shard, &persist));
            let job = buttress_wal::recovery::job(shard, &mut persist);
            let host = self.node_mut(id).host.as_mut().expect("it runs");
            host.queue.push_back(Work::Job(job));
            if !persist.then_send.is_empty() {
                self.shard(id, shard).after_sync.push_back((persist.ticket, persist.then_send));
            }
        }
        for (to, message) in outputs.snapshots {
            self.send_snapshot(id, shard, to.0, message);
        }
        if let Some((index, members)) = &outputs.members {
            self.note(id, "members", &[u64::from(shard), index.0], || format!("s{shard} from {index}: {members:?}"));
            self.learn_members(id, shard, *index, members);
        }
        match (outputs.install, arrival) {
            (Some(meta), Some(arrival)) => {
                if !self.install(id, shard, &meta, arrival) {
                    return;
                }
            }
            (Some(meta), None) => {
                self.fail(invariants::STATE_1, format!("node {id} accepted {meta:?}, whose state has not come"));
                return;
            }
            (None, Some(arrival)) => self.arrival_taken(id, shard, &arrival),
            (None, None) => {}
        }
        let at = self.shard(id, shard);
        let follows = outputs.role.is_some_and(|role| !role.is_leader || role.term != at.role.term);
        if follows && at.role.is_leader {
            at.renewal = None;
            let clocks = self.clocks(id);
            self.shard(id, shard).clock.follow(clocks);
        }
        self.on_applied(id, shard, before, outputs.applied);
        if self.failure.is_some() {
            return;
        }
        for (tag, error) in outputs.failed {
            self.on_proposal_failed(id, shard, tag, &error);
        }
        for (tag, index) in outputs.reads {
            let Some(barrier) = self.shard(id, shard).barriers.remove(&tag) else { continue };
            for op in barrier.reads {
                self.serve(id, shard, op, Some(index));
            }
        }
        for tag in outputs.reads_failed {
            if let Some(barrier) = self.shard(id, shard).barriers.get_mut(&tag) {
                barrier.failed = true;
            }
        }
        if let Some(role) = outputs.role {
            self.on_role(id, shard, role);
        }
        if outputs.checkpoint_wanted {
            self.count("checkpoints_wanted");
            if self.rng.percent(50) {
                self.begin_checkpoint(id, shard);
            }
        }
        if let Some(before) = outputs.log_start {
            let host = self.node_mut(id).host.as_mut().expect("it runs");
            host.queue.push_back(Work::Forget { shard, before });
        }
        for fetch in outputs.fetch {
            self.count("log_reads");
            // When nothing fails any more disks are fast: a message may hold a single entry, and hundreds are missing.
            let healed = self.now >= self.heal_at;
            let most = if healed { MS } else { self.settings.log_read_time };
            let (lag, incarnation) = (self.rng.below(most), self.node(id).incarnation);
            self.after(lag, Event::Fetch { node: id, incarnation, shard, fetch });
        }
    }

    /// A thread of the node reads from its log what a follower needs that lags further than memory goes.
    pub(super) fn fetch(&mut self, id: u64, shard: u32, fetch: &Fetch) {
        let reader = self.node(id).host.as_ref().expect("it runs").wal.reader();
        match buttress_wal::recovery::fetch(&reader, shard, fetch) {
            Ok(entries) => {
                let count = entries.len() as u64;
                let numbers = [u64::from(shard), fetch.low.0, count];
                self.note(id, "fetched", &numbers, || format!("s{shard} {count} entries from {}", fetch.low));
                self.count(if entries.is_empty() { "log_reads_too_late" } else { "log_reads_found" });
                self.input(id, shard, Input::Fetched { low: fetch.low, entries });
            }
            Err(error) => self.lost_something(id, &format!("shard {shard} cannot read its log: {error}")),
        }
    }

    fn post(&mut self, id: u64, shard: u32, messages: Vec<(NodeId, Message)>) {
        let asks = messages.iter().any(|(_, message)| matches!(message.body, Body::Vote { pre: false, .. }));
        for (to, message) in messages {
            if self.is_unheard(id, to.0, shard, &message) {
                self.count("messages_cut");
                self.note(id, "unheard", &[to.0, u64::from(shard)], || format!("s{shard} {message:?}"));
                continue;
            }
            if !self.send(id, to.0, shard, Frame::Raft(message.encode())) {
                self.after(MS, Event::Unreachable { node: id, shard, peer: to.0 });
            }
        }
        if asks {
            self.asked_for_votes(id);
        }
    }

    fn on_applied(&mut self, id: u64, shard: u32, before: Index, applied: Vec<Applied<Step>>) {
        if applied.is_empty() {
            return;
        }
        let last = applied.last().expect("it is not empty").index;
        self.note(id, "applied", &[u64::from(shard), last.0], || format!("s{shard} {} to {last}", before.next()));
        for Applied { index, term, tag, effects } in &applied {
            if !self.check_applied(id, shard, *index, *term, effects) {
                return;
            }
            if let Some(error) = &effects.effects.fatal {
                self.fail(invariants::ENTRY_1, format!("node {id} cannot judge entry {index}: {error}"));
                return;
            }
            if let Some(tag) = tag {
                if let Some(renewal) = &mut self.shard(id, shard).renewal {
                    renewal.settle(*tag, effects.effects.result.is_ok());
                }
                self.settle_proposal(id, shard, *tag);
            }
        }
        let clocks = self.clocks(id);
        let at = self.shard(id, shard);
        for Applied { term, effects, .. } in &applied {
            at.clock.heard(clocks, effects.effects.time, at.role.is_leader && at.role.term == *term);
            at.applied_term = *term;
        }
        let seen: Vec<_> = applied.iter().map(|applied| &applied.effects.effects).collect();
        self.tell_watchers(id, shard, &seen);
        for effects in applied.into_iter().map(|applied| applied.effects.effects) {
            let Some(RequestId { client, number, .. }) = effects.request else { continue };
            let at = self.shard(id, shard);
            if at.pending.remove(&(client, number)).is_none() {
                continue;
            }
            at.unsent.remove(&(client, number));
            at.overload_pause = OVERLOAD_PAUSE.0;
            let outcome = match effects.result {
                Ok(receipt) => Outcome::Acknowledged(receipt),
                // The result is forgotten, so whether it happened is unknown: no refusal.
                Err(Refusal::Part { code: Code::TIMEOUT, .. }) => Outcome::Unknown,
                Err(refusal) => Outcome::Refused(refusal),
            };
            self.answer_client(id, client, number, outcome);
        }
    }

    /// A proposal is no longer under way in this leader's log.
    fn settle_proposal(&mut self, id: u64, shard: u32, tag: u64) -> Option<Proposer> {
        if tag & OPERATOR_TAG != 0 {
            self.change_ended(shard, tag, None);
            return None;
        }
        let at = self.shard(id, shard);
        if at.expiry == Some(tag) {
            at.expiry = None;
        }
        let Some(proposer) = at.proposed.remove(&tag) else {
            self.fail(invariants::ACK_2, format!("node {id} shard {shard} answers tag {tag} once more"));
            return None;
        };
        if let Proposer::Peer { node, client, number } = proposer {
            at.from_peers.remove(&(node, client, number));
        }
        Some(proposer)
    }

    fn on_proposal_failed(&mut self, id: u64, shard: u32, tag: u64, error: &ProposalError) {
        self.note(id, "failed", &[u64::from(shard), tag], || format!("s{shard} tag {}: {error}", tag & !OPERATOR_TAG));
        if tag & OPERATOR_TAG != 0 {
            self.change_ended(shard, tag, Some(error));
            return;
        }
        let overloaded = matches!(error, ProposalError::Overloaded);
        if let Some(renewal) = &mut self.shard(id, shard).renewal {
            renewal.settle(tag, false);
        }
        match self.settle_proposal(id, shard, tag) {
            Some(Proposer::Own { client, number }) => {
                self.unsend(id, shard, (client, number));
                if overloaded {
                    self.pause_unsent(id, shard);
                }
            }
            Some(Proposer::Peer { node, client, number }) => {
                self.send(id, node, shard, Frame::NotTaken { client, number, overloaded });
            }
            Some(Proposer::Clock) | None => {}
        }
    }

    fn on_role(&mut self, id: u64, shard: u32, role: Role) {
        let (resend, clocks) = (self.settings.resend_after, self.clocks(id));
        let at = self.shard(id, shard);
        let before = std::mem::replace(&mut at.role, role);
        if role.is_leader && (!before.is_leader || before.term != role.term) {
            at.clock.lead(clocks);
        }
        self.note(id, "role", &[u64::from(shard), role.term.0, role.leader.map_or(0, |leader| leader.0)], || {
            let leader = role.leader.map_or("nobody".to_owned(), |leader| format!("node {leader}"));
            format!("s{shard} term {} led by {leader}", role.term)
        });
        if role.is_leader {
            self.begin_reign(id, shard, role.term.0);
            self.check_leader(id, shard, role.term);
        }
        if (before.leader, before.term) != (role.leader, role.term) && role.leader.is_some() {
            // What was sent to the old leader may be lost; the new one gets all of it again, in order.
            let at = self.shard(id, shard);
            let again = |p: &Pending| !matches!(p.place, Place::Here) || !role.is_leader;
            let keys: Vec<_> = at.pending.iter().filter(|(_, p)| again(p)).map(|(key, _)| *key).collect();
            for key in keys {
                self.shard(id, shard).pending.get_mut(&key).expect("just listed").patience = resend;
                self.unsend(id, shard, key);
            }
            let at = self.shard(id, shard);
            at.unsent_paused = 0;
            at.overload_pause = OVERLOAD_PAUSE.0;
            at.headroom = None;
            self.send_unsent(id, shard);
        }
    }

    fn unsend(&mut self, id: u64, shard: u32, key: (u64, u64)) {
        let at = self.shard(id, shard);
        if let Some(pending) = at.pending.get_mut(&key) {
            pending.place = Place::Unsent;
            at.unsent.insert(key);
        }
    }

    fn pause_unsent(&mut self, id: u64, shard: u32) {
        let now = self.now;
        let at = self.shard(id, shard);
        at.unsent_paused = now + at.overload_pause;
        at.overload_pause = (2 * at.overload_pause).min(OVERLOAD_PAUSE.1);
    }

    /// A client asks this node to log an entry.
    pub(super) fn asked_by_client(&mut self, id: u64, shard: u32, client: u64, number: u64, encoded: Bytes) {
        if self.node(id).host.is_none() {
            return;
        }
        let (since, patience) = (self.now, self.settings.resend_after);
        let at = self.shard(id, shard);
        if at.pending.contains_key(&(client, number)) {
            return;
        }
        at.pending.insert((client, number), Pending { encoded, place: Place::Unsent, since, patience });
        at.unsent.insert((client, number));
        self.turn_soon(id, shard);
    }

    fn send_unsent(&mut self, id: u64, shard: u32) {
        if self.shard(id, shard).unsent_paused > self.now {
            return;
        }
        while let Some(&key) = self.shard(id, shard).unsent.first() {
            if !self.send_pending(id, shard, key) {
                return;
            }
            self.shard(id, shard).unsent.remove(&key);
        }
    }

    fn send_pending(&mut self, id: u64, shard: u32, key: (u64, u64)) -> bool {
        let (now, time) = (self.now, self.time(id, shard));
        let uncommitted_max = self.settings.max_uncommitted_bytes;
        let at = self.shard(id, shard);
        let Some(leader) = at.role.leader else { return false };
        let encoded = at.pending[&key].encoded.clone();
        let (client, number) = key;
        let place = if at.role.is_leader {
            if !at.takes(encoded.len(), uncommitted_max) {
                self.pause_unsent(id, shard);
                return false;
            }
            let data = Entry::stamp(&encoded, time).expect("we encoded it");
            self.note_proposed(shard, &data);
            self.shard(id, shard).propose(data, Proposer::Own { client, number });
            Place::Here
        } else {
            if !self.send(id, leader.0, shard, Frame::Propose { client, number, entry: encoded }) {
                self.pause_unsent(id, shard);
                return false;
            }
            Place::SentTo { leader: leader.0, at: now }
        };
        self.shard(id, shard).pending.get_mut(&key).expect("looked up above").place = place;
        true
    }

    pub(super) fn peer_proposes(&mut self, id: u64, shard: u32, from: u64, client: u64, number: u64, entry: &Bytes) {
        let time = self.time(id, shard);
        let uncommitted_max = self.settings.max_uncommitted_bytes;
        let at = self.shard(id, shard);
        if at.role.is_leader && at.from_peers.contains(&(from, client, number)) {
            return;
        }
        let overloaded = at.role.is_leader && !at.takes(entry.len(), uncommitted_max);
        if overloaded || !at.role.is_leader {
            self.send(id, from, shard, Frame::NotTaken { client, number, overloaded });
            return;
        }
        let data = Entry::stamp(entry, time).expect("a node sends entries");
        self.note_proposed(shard, &data);
        let at = self.shard(id, shard);
        at.from_peers.insert((from, client, number));
        at.propose(data, Proposer::Peer { node: from, client, number });
        self.turn_soon(id, shard);
    }

    pub(super) fn not_taken(&mut self, id: u64, shard: u32, from: u64, client: u64, number: u64, overloaded: bool) {
        let now = self.now;
        let at = self.shard(id, shard);
        let place = at.pending.get(&(client, number)).map(|pending| pending.place);
        if matches!(place, Some(Place::SentTo { leader, .. }) if leader == from) {
            self.unsend(id, shard, (client, number));
            if self.shard(id, shard).unsent_paused <= now {
                if overloaded {
                    self.pause_unsent(id, shard);
                } else {
                    self.shard(id, shard).unsent_paused = now + OVERLOAD_PAUSE.0;
                }
            }
        }
    }

    pub(super) fn read_here(&mut self, id: u64, shard: u32, op: Op) {
        self.shard(id, shard).new_reads.push(op);
        self.turn_soon(id, shard);
    }

    pub(crate) fn ask_change(&mut self, id: u64, shard: u32, change: MemberChange) {
        self.input(id, shard, Input::Change(change));
    }

    /// Streams the store to a follower, one at a time.
    fn send_snapshot(&mut self, id: u64, shard: u32, to: u64, message: Message) {
        if let Some(next) = self.shard(id, shard).sending.get_mut(&to) {
            *next = Some(message);
            return;
        }
        self.shard(id, shard).sending.insert(to, None);
        self.stream(id, shard, to, message);
    }

    fn stream(&mut self, id: u64, shard: u32, to: u64, mut message: Message) {
        self.count("snapshots_sent");
        let asked = message.snapshot().expect("it is a snapshot message").index;
        let durable = self.node(id).stores[shard as usize].as_ref().filter(|stored| stored.meta.index >= asked);
        let state = match durable {
            Some(stored) if self.seed.is_multiple_of(2) => stored.clone(),
            _ => {
                let replica = &self.node(id).host.as_ref().expect("it runs").shards[shard as usize].replica;
                let machine = replica.machine();
                Checkpoint {
                    meta: replica.snapshot_meta(),
                    store: machine.inner.store().clone(),
                    rolling: machine.rolling,
                }
            }
        };
        message.retarget_snapshot(state.meta.clone());
        let (low, high) = self.settings.snapshot_time;
        let time = self.rng.range(low, high);
        let incarnation = self.node(id).incarnation;
        let index = state.meta.index;
        self.note(id, "snapshot", &[u64::from(shard), to, index.0], || format!("s{shard} at {index} to {to}"));
        let lost = self.is_cut(id, to) || self.rng.percent(self.weather().drop_percent);
        if lost || to as usize > self.nodes.len() {
            self.after(time, Event::SnapshotSent { node: id, incarnation, shard, to, ok: false });
            return;
        }
        let incoming = Incoming { from: id, from_incarnation: incarnation, message: message.encode(), state };
        self.after(time, Event::SnapshotArrives { to, shard, incoming: Box::new(incoming) });
    }

    pub(super) fn snapshot_arrives(&mut self, to: u64, shard: u32, incoming: Incoming) {
        let (node, incarnation) = (incoming.from, incoming.from_incarnation);
        if self.node(to).host.is_none() || self.is_cut(node, to) {
            self.after(MS, Event::SnapshotSent { node, incarnation, shard, to, ok: false });
            return;
        }
        self.shard(to, shard).arrivals.push_back(incoming);
        self.turn_soon(to, shard);
    }

    fn arrival_taken(&mut self, id: u64, shard: u32, arrival: &Incoming) {
        let (node, incarnation) = (arrival.from, arrival.from_incarnation);
        let ok = !self.is_cut(id, node);
        let delay = self.delay();
        self.after(delay, Event::SnapshotSent { node, incarnation, shard, to: id, ok });
    }

    /// The receiver died, and its sender's connection with it.
    pub(super) fn arrival_lost(&mut self, id: u64, shard: u32, arrival: &Incoming) {
        let (node, incarnation) = (arrival.from, arrival.from_incarnation);
        self.after(5 * MS, Event::SnapshotSent { node, incarnation, shard, to: id, ok: false });
    }

    pub(super) fn snapshot_sent(&mut self, id: u64, shard: u32, to: u64, ok: bool) {
        match self.shard(id, shard).sending.remove(&to).flatten() {
            // The answer would be taken for the later one's.
            Some(next) => {
                self.shard(id, shard).sending.insert(to, None);
                self.stream(id, shard, to, next);
            }
            None => self.input(id, shard, Input::SnapshotSent { to: NodeId(to), ok }),
        }
    }

    /// Puts a received snapshot in the place of the store. `false`: the node died over it.
    fn install(&mut self, id: u64, shard: u32, meta: &SnapshotMeta, arrival: Incoming) -> bool {
        let dies = self.settings.kinds.iter().any(|kind| matches!(kind, Kind::Crash | Kind::Kill));
        let dies = !self.healed && dies && self.rng.percent(10);
        if dies && self.rng.percent(50) {
            self.count("crashes_before_install");
            self.arrival_lost(id, shard, &arrival);
            self.crash(id, true);
            self.restart_after(id, 50 * MS);
            return false;
        }
        if arrival.state.meta != *meta {
            let found = &arrival.state.meta;
            self.fail(invariants::STATE_1, format!("node {id} is to install {meta:?} and got {found:?}"));
            return false;
        }
        self.note(id, "install", &[u64::from(shard), meta.index.0], || format!("s{shard} {meta:?}"));
        self.count("snapshots_installed");
        self.node_mut(id).stores[shard as usize] = Some(arrival.state.clone());
        self.check_snapshot(id, shard, &arrival.state);
        if dies {
            self.count("crashes_after_install");
            self.arrival_lost(id, shard, &arrival);
            self.crash(id, true);
            self.restart_after(id, 50 * MS);
            return false;
        }
        self.arrival_taken(id, shard, &arrival);
        let Checkpoint { store, rolling, .. } = arrival.state;
        let inner = match Machine::open_with(store, self.settings.limits) {
            Ok(inner) => inner,
            Err(error) => {
                self.fail(invariants::ENTRY_3, format!("the snapshot {meta:?} cannot be opened: {error}"));
                return false;
            }
        };
        let machine = SimMachine { inner, rolling };
        let at = self.shard(id, shard);
        at.checkpoint = None;
        at.inbox.push(Input::Installed { snapshot: meta.clone(), machine: Box::new(machine) });
        true
    }

    /// Begins to write what has queued, unless something is being written.
    pub(super) fn start_commit(&mut self, id: u64) {
        let host = self.nodes[id as usize - 1].host.as_mut().expect("it runs");
        if host.committing.is_some() || host.queue.is_empty() {
            return;
        }
        let mut commit = Commit { jobs: Vec::new(), forget: Vec::new(), batch: Batch::default() };
        let mut bytes = 0;
        while let Some(work) = host.queue.front() {
            if let Work::Job(job) = work
                && bytes > 0
                && bytes + job.bytes() > buttress_wal::COMMIT_BYTES_MAX as u64
            {
                break;
            }
            match host.queue.pop_front().expect("the front was just there") {
                Work::Job(job) => {
                    bytes += job.bytes();
                    job.add_to(&mut commit.batch);
                    commit.jobs.push(job);
                }
                Work::Forget { shard, before } => commit.forget.push((shard, before)),
            }
        }
        let writes = !commit.jobs.is_empty();
        host.committing = Some(commit);
        let (low, high) = self.settings.sync_time;
        let (extra, until) = self.node(id).slow;
        let mut time = if writes { self.rng.range(low, high) } else { 0 };
        if self.now < until && writes {
            time += extra / 2 + self.rng.below(extra);
        }
        let incarnation = self.node(id).incarnation;
        self.after(time, Event::Committed { node: id, incarnation });
    }

    /// The commit that was under way has reached the disk, or failed.
    pub(super) fn committed(&mut self, id: u64) {
        let host = self.nodes[id as usize - 1].host.as_mut().expect("it runs");
        let Some(mut commit) = host.committing.take() else { return };
        let result = host.wal.commit(&mut commit.batch).and_then(|()| {
            let node = &mut self.nodes[id as usize - 1];
            for job in &commit.jobs {
                node.shadows[job.shard as usize].take(job);
            }
            let wal = &mut node.host.as_mut().expect("it runs").wal;
            commit.forget.drain(..).try_for_each(|(shard, before)| wal.forget_before(shard, before).map(drop))
        });
        if let Err(error) = result {
            self.count("disk_failures");
            self.note(id, "disk-failed", &[], || error.to_string());
            if !self.node(id).disk.is_failing() {
                self.fail(invariants::DURABLE_1, format!("node {id} cannot write to a healthy disk: {error}"));
                return;
            }
            self.node_mut(id).in_flight = commit.jobs;
            self.stopped_by_disk(id);
            return;
        }
        let tickets: Vec<(u32, u64)> = commit.jobs.iter().map(|job| (job.shard, job.ticket)).collect();
        if !tickets.is_empty() {
            self.note(id, "synced", &tickets.iter().map(|(_, ticket)| *ticket).collect::<Vec<_>>(), || {
                tickets.iter().map(|(shard, ticket)| format!("s{shard}:{ticket}")).collect::<Vec<_>>().join(" ")
            });
            // Mostly heard at once, now and then late.
            let late = if self.rng.percent(8) { self.rng.below(30 * MS) } else { 0 };
            let at = self.now + late;
            let host = self.nodes[id as usize - 1].host.as_mut().expect("it runs");
            host.notify_at = host.notify_at.max(at);
            let at = host.notify_at;
            let incarnation = self.node(id).incarnation;
            self.at(at, Event::Notify { node: id, incarnation, tickets });
        }
        self.start_commit(id);
    }

    pub(super) fn notified(&mut self, id: u64, tickets: &[(u32, u64)]) {
        for &(shard, ticket) in tickets {
            self.input(id, shard, Input::Persisted { ticket });
            while self.shard(id, shard).after_sync.front().is_some_and(|(wanted, _)| *wanted <= ticket) {
                let (_, messages) = self.shard(id, shard).after_sync.pop_front().expect("the front was just there");
                self.post(id, shard, messages);
            }
        }
    }
}

impl ShardHost {
    fn propose(&mut self, data: Bytes, by: Proposer) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.proposed.insert(tag, by);
        self.inbox.push(Input::Propose { tag, data });
        tag
    }

    /// Whether this leader has room for a proposal, which then counts as made. Once it has none, it has none for the
    /// rest of the turn, so that no smaller entry overtakes.
    fn takes(&mut self, len: usize, uncommitted_max: usize) -> bool {
        let headroom = self.headroom.unwrap_or_else(|| match self.replica.status().engine.uncommitted_bytes {
            // However large, one entry is let in when none is under way.
            0 => uncommitted_max.max(buttress_core::limits::ENTRY_BYTES_MAX),
            waiting => uncommitted_max.saturating_sub(waiting),
        });
        let left = headroom.checked_sub(len);
        self.headroom = Some(left.unwrap_or(0));
        left.is_some()
    }

    /// Every read that waits here.
    pub fn waiting_reads(&self) -> Vec<Op> {
        self.barriers.values().flat_map(|barrier| &barrier.reads).chain(&self.new_reads).copied().collect()
    }
}

fn persist_text(shard: u32, persist: &Persist) -> String {
    let mut text = format!("s{shard}:{}", persist.ticket);
    if let Some(meta) = &persist.reset {
        text += &format!(" reset to {}", meta.index);
    }
    if let Some(state) = persist.hard_state {
        let vote = state.vote.map_or("nobody".to_owned(), |vote| format!("node {vote}"));
        text += &format!(" term {} vote {vote} commit {}", state.term, state.commit);
    }
    if let (Some(first), Some(last)) = (persist.entries.first(), persist.entries.last()) {
        text += &format!(" entries {}@{} to {}@{}", first.index, first.term, last.index, last.term);
    }
    text
}
