//! The task that owns the replica.
//!
//! A turn: drain the inbox, step once, then in this order: send what may go before the fsync, hand the log its batch,
//! answer what was applied. The order is the contract of async append: the leader's messages leave first, a follower's
//! acknowledgement only after its fsync.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    future::Future,
    pin::Pin,
    sync::{Arc, RwLock, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
};

use buttress_consensus::{
    Applied, EntryKind, HardState, Input, LogEntry, Message, Outputs, Persist, ProposalError, Replica, Restored, Role,
    SnapshotMeta,
};
use buttress_core::{
    Code, Consistency, Entry, Error, Index, LogId, NodeId, Receipt, Refusal, RequestId, Revision, SubmitError, Term,
    ledger::ClusterView,
};
use buttress_state::Effects;

use super::{
    Config, TICK,
    handle::wall_clock,
    shared::{Counters, Shared},
    snapshots,
};
use crate::{
    store::{DiskStore, Options, ReceivedSnapshot, StoreEvent, StoreHandle},
    transport::{self, Frame, Lane, Transport},
    wal::{self, DirDisk, Identity},
};

pub(super) type Machine = buttress_state::Machine<DiskStore>;
pub type Running = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// The only shard so far; it holds the metadata and the key space.
const SHARD: u32 = 0;
/// Commands that wait for the next turn.
pub(super) const COMMANDS_MAX: usize = 4096;
/// Frames that wait for the next turn; the connections push back beyond.
const FRAMES_MAX: usize = 1024;
/// One turn takes at most this many events, so that ticks are never starved.
const TURN_EVENTS_MAX: usize = 2048;
/// A submitted entry is given up after this long; its outcome is then unknown.
const SUBMIT_DEADLINE: Duration = Duration::from_secs(10);
/// An entry that was sent to a leader and not applied is sent again after this long.
const RESEND_AFTER: Duration = Duration::from_secs(1);
/// A linearizable read is given up after this long.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// Retention is looked at this often.
const RETENTION_EVERY: Duration = Duration::from_secs(10);

type AskFn = Box<dyn FnOnce(Result<&Machine, Error>) + Send>;

pub(super) enum Command {
    Submit { entry: Box<Entry>, reply: oneshot::Sender<Result<Receipt, SubmitError>>, room: OwnedSemaphorePermit },
    Ask { consistency: Consistency, run: AskFn },
    Stop,
}

/// What the other threads tell the task.
pub(super) enum Notice {
    Synced(Vec<u64>),
    Failed(Error),
    Checkpointed {
        index: Index,
        term: Term,
    },
    SnapshotSent {
        to: NodeId,
        result: Result<(), Error>,
    },
    /// A snapshot has come in whole; the message makes consensus judge it.
    SnapshotReceived {
        from: NodeId,
        message: Message,
        received: ReceivedSnapshot,
    },
}

/// Whose proposal it is that this leader has in the log.
enum Proposer {
    Own {
        number: u64,
    },
    Peer {
        node: NodeId,
        number: u64,
    },
    /// Expiry and retention; proposed again by a later tick if it fails.
    Clock,
}

/// An entry of ours that is not applied here yet.
struct Pending {
    encoded: Bytes,
    reply: oneshot::Sender<Result<Receipt, SubmitError>>,
    since: Instant,
    /// Where and when it was sent last.
    sent: Option<(NodeId, Term, Instant)>,
    ever_sent: bool,
    _room: OwnedSemaphorePermit,
}

/// Linearizable reads that wait for one answer of the quorum.
struct Barrier {
    since: Instant,
    failed: bool,
    asks: Vec<AskFn>,
}

pub(super) struct Core {
    config: Config,
    replica: Replica<Machine>,
    shared: Arc<Shared>,
    transport: Transport,
    log: wal::Writer,
    store: StoreHandle,
    frames: mpsc::Receiver<transport::Event>,
    notices: mpsc::UnboundedReceiver<Notice>,
    notify: mpsc::UnboundedSender<Notice>,
    started: Instant,
    /// Entries of this node by request number, in order.
    pending: BTreeMap<u64, Pending>,
    next_request: u64,
    barriers: BTreeMap<u64, Barrier>,
    next_barrier: u64,
    /// Tag of a proposal → whose it is; forgotten when it is applied or fails.
    proposed: HashMap<u64, Proposer>,
    next_tag: u64,
    /// Messages that wait for the fsync of their ticket.
    after_sync: VecDeque<(u64, Vec<(NodeId, Message)>)>,
    role: Role,
    leaderless_since: Option<Instant>,
    /// The tag of the expiry that is under way.
    expiry: Option<u64>,
    retention_at: Instant,
    /// A snapshot that is on disk and waits for consensus to accept it.
    received: Option<ReceivedSnapshot>,
}

impl Core {
    /// Opens the data directory and rebuilds the state of the last run.
    pub fn open(config: &Config, peer_listener: TcpListener) -> Result<Self, Error> {
        config.validate()?;
        let (notify, notices) = mpsc::unbounded_channel();
        let identity = Identity { cluster_id: config.cluster_id.clone(), node: config.node };
        let store = {
            let notify = notify.clone();
            DiskStore::open(config.data_dir.join("store"), identity.clone(), Options::default(), move |event| {
                let _ = notify.send(match event {
                    StoreEvent::Checkpointed { index, term } => Notice::Checkpointed { index, term },
                    StoreEvent::Failed(error) => Notice::Failed(error),
                });
            })?
        };
        let disk = Arc::new(DirDisk::open(config.data_dir.join("wal"))?);
        let (mut log, mut recovered) = wal::Wal::open(disk, identity, wal::Options::default())?;
        if recovered.torn_bytes > 0 {
            tracing::warn!(
                bytes = recovered.torn_bytes,
                event_type = "torn_tail",
                "a torn tail of the log was left out"
            );
        }
        let restored = restore(config, &mut log, recovered.take(SHARD), &store)?;
        let handle = store.handle();
        let reader = store.reader();
        let wal = {
            let notify = notify.clone();
            wal::Writer::spawn(log, move |event| {
                let _ = notify.send(match event {
                    wal::Event::Synced(tickets) => {
                        Notice::Synced(tickets.into_iter().map(|(_, ticket)| ticket).collect())
                    }
                    wal::Event::Failed(error) => Notice::Failed(error),
                });
            })?
        };
        let machine = Machine::open(store)
            .map_err(|error| Error::new(Code::CORRUPT, format!("the state cannot be rebuilt: {error}")))?;
        let replica = Replica::new(buttress_consensus::Config::new(config.node, config.seed), restored, machine)?;
        let (events, frames) = mpsc::channel(FRAMES_MAX);
        let peers = config.members.iter().filter(|m| m.id != config.node).map(|m| (m.id, m.peer.clone())).collect();
        let incoming = snapshots::receiver(handle.clone(), notify.clone())?;
        let transport =
            Transport::start(config.cluster_id.clone(), config.node, peers, peer_listener, events, incoming);
        let view = ClusterView {
            cluster_id: config.cluster_id.clone(),
            node: config.node,
            members: config.members.clone(),
            ..ClusterView::default()
        };
        let shared = Shared {
            view: watch::Sender::new(view),
            topics: RwLock::default(),
            logs: RwLock::default(),
            cursors: RwLock::default(),
            revision: watch::Sender::new(Revision(0)),
            reader,
            counters: Counters::default(),
            wal: wal.stats(),
            store: handle.clone(),
            transport: transport.counters(),
        };
        Ok(Self {
            config: config.clone(),
            replica,
            shared: Arc::new(shared),
            transport,
            log: wal,
            store: handle,
            frames,
            notices,
            notify,
            started: Instant::now(),
            pending: BTreeMap::new(),
            next_request: 1,
            barriers: BTreeMap::new(),
            next_barrier: 0,
            proposed: HashMap::new(),
            next_tag: 0,
            after_sync: VecDeque::new(),
            role: Role::default(),
            leaderless_since: Some(Instant::now()),
            expiry: None,
            retention_at: Instant::now(),
            received: None,
        })
    }

    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    pub fn run(mut self, mut inbox: mpsc::Receiver<Command>) -> Running {
        Box::pin(async move {
            let ended = self.turns(&mut inbox).await;
            // Nobody is answered any more; those who wait learn that the node stopped.
            self.pending.clear();
            self.barriers.clear();
            match &ended {
                Err(error) => tracing::error!(code = error.code.0, error = %error.message, "the node stopped itself"),
                // So that the next start has nothing to replay.
                Ok(()) => drop(self.replica.machine_mut().store_mut().checkpoint_now()),
            }
            ended
        })
    }

    async fn turns(&mut self, inbox: &mut mpsc::Receiver<Command>) -> Result<(), Error> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut commands = Vec::new();
        let mut frames = Vec::new();
        let mut inputs = Vec::new();
        // What the machine holds after a restart is visible before the first entry is applied.
        self.publish(self.replica.machine());
        self.publish_view();
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => {
                    inputs.push(Input::Tick);
                    self.on_tick(&mut inputs);
                }
                Some(notice) = self.notices.recv() => self.on_notice(notice, &mut inputs)?,
                got = self.frames.recv_many(&mut frames, TURN_EVENTS_MAX) => {
                    assert!(got > 0, "the transport lives as long as the task");
                }
                got = inbox.recv_many(&mut commands, TURN_EVENTS_MAX) => {
                    if got == 0 {
                        return Ok(());
                    }
                }
            }
            // Whatever else has come meanwhile belongs to the same turn.
            while let Ok(notice) = self.notices.try_recv() {
                self.on_notice(notice, &mut inputs)?;
            }
            while frames.len() < TURN_EVENTS_MAX
                && let Ok(frame) = self.frames.try_recv()
            {
                frames.push(frame);
            }
            while commands.len() < TURN_EVENTS_MAX
                && let Ok(command) = inbox.try_recv()
            {
                commands.push(command);
            }
            for event in frames.drain(..) {
                self.on_transport(event, &mut inputs);
            }
            let mut barrier = Vec::new();
            for command in commands.drain(..) {
                match command {
                    Command::Submit { entry, reply, room } => self.on_submit(*entry, reply, room, &mut inputs),
                    Command::Ask { consistency: Consistency::Serializable, run } => run(Ok(self.replica.machine())),
                    Command::Ask { consistency: Consistency::Linearizable, run } => barrier.push(run),
                    Command::Stop => return Ok(()),
                }
            }
            if !barrier.is_empty() {
                // One confirmation by the quorum serves every read of the turn.
                let tag = self.next_barrier;
                self.next_barrier += 1;
                self.barriers.insert(tag, Barrier { since: Instant::now(), failed: false, asks: barrier });
                inputs.push(Input::ReadIndex { tag });
            }
            let mut more = !inputs.is_empty();
            while more {
                let now_ms = self.started.elapsed().as_millis() as u64;
                let outputs = self.replica.step(now_ms, std::mem::take(&mut inputs));
                more = outputs.more;
                self.carry_out(outputs, &mut inputs)?;
                more |= !inputs.is_empty();
            }
            self.shared.counters.turns.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn on_submit(
        &mut self,
        mut entry: Entry,
        reply: oneshot::Sender<Result<Receipt, SubmitError>>,
        room: OwnedSemaphorePermit,
        inputs: &mut Vec<Input<Machine>>,
    ) {
        let number = self.next_request;
        self.next_request += 1;
        let acknowledged_below = self.pending.keys().next().copied().unwrap_or(number);
        entry.request = Some(RequestId { client: self.config.client, number, acknowledged_below });
        entry.time = wall_clock();
        let encoded = entry.encode();
        let pending = Pending { encoded, reply, since: Instant::now(), sent: None, ever_sent: false, _room: room };
        self.pending.insert(number, pending);
        self.send_pending(number, inputs);
    }

    /// Proposes one of our entries, or sends it to the leader; without a leader it waits for one.
    fn send_pending(&mut self, number: u64, inputs: &mut Vec<Input<Machine>>) {
        let Some(leader) = self.role.leader else { return };
        let Some(pending) = self.pending.get_mut(&number) else { return };
        pending.sent = Some((leader, self.role.term, Instant::now()));
        pending.ever_sent = true;
        if self.role.is_leader {
            let data = Entry::stamp(&pending.encoded, wall_clock()).expect("we encoded it");
            self.propose(data, Proposer::Own { number }, inputs);
        } else {
            self.shared.counters.forwarded.fetch_add(1, Ordering::Relaxed);
            let frame = Frame::Propose { number, entry: pending.encoded.clone() };
            if !self.transport.send(leader, Lane::Data, frame) {
                pending.sent = None;
            }
        }
    }

    fn on_transport(&mut self, event: transport::Event, inputs: &mut Vec<Input<Machine>>) {
        let (from, frame) = match event {
            transport::Event::Unreachable { peer } => {
                inputs.push(Input::Unreachable { peer });
                return;
            }
            transport::Event::Frame { from, frame } => (from, frame),
        };
        match frame {
            Frame::Raft(bytes) => match Message::decode(bytes) {
                Ok(message) => inputs.push(Input::Receive { from, message }),
                Err(error) => tracing::warn!(peer = from.0, %error, "a peer's message is malformed"),
            },
            Frame::Propose { number, entry } => {
                if !self.role.is_leader {
                    self.transport.send(from, Lane::Control, Frame::NotTaken { number, overloaded: false });
                    return;
                }
                match Entry::stamp(&entry, wall_clock()) {
                    Ok(data) => {
                        self.propose(data, Proposer::Peer { node: from, number }, inputs);
                    }
                    Err(error) => tracing::warn!(peer = from.0, %error, "a peer's proposal is malformed"),
                }
            }
            Frame::NotTaken { number, overloaded } => {
                if let Some(pending) = self.pending.get_mut(&number) {
                    // The next tick sends it again, to whoever leads then.
                    tracing::debug!(peer = from.0, number, overloaded, "a proposal was not taken");
                    pending.sent = None;
                }
            }
            Frame::SnapshotChunk(_) | Frame::SnapshotEnd(_) => {
                tracing::warn!(peer = from.0, "a piece of a snapshot came over the wrong lane");
            }
        }
    }

    fn on_tick(&mut self, inputs: &mut Vec<Input<Machine>>) {
        let now = Instant::now();
        // Ours first: those given up, then those to be sent again, in their order.
        let late: Vec<u64> =
            self.pending.iter().filter(|(_, p)| now - p.since > SUBMIT_DEADLINE).map(|(number, _)| *number).collect();
        for number in late {
            let pending = self.pending.remove(&number).expect("just listed");
            self.shared.counters.failed.fetch_add(1, Ordering::Relaxed);
            let error = if pending.ever_sent {
                Error::new(Code::TIMEOUT, "the commit did not come in time; its outcome is unknown")
                    .hint("read the state before repeating the request")
            } else {
                Error::new(Code::NO_LEADER, "no leader is known").hint("retry; see `buttress cluster status`")
            };
            let _ = pending.reply.send(Err(SubmitError::Failed(error.retryable())));
        }
        let again: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, p)| p.sent.is_none_or(|(_, _, at)| now - at > RESEND_AFTER))
            .map(|(number, _)| *number)
            .collect();
        for number in again {
            self.shared.counters.resent.fetch_add(1, Ordering::Relaxed);
            self.send_pending(number, inputs);
        }
        // Reads: a barrier that got no answer is asked again, and given up at last.
        let stale: Vec<u64> =
            self.barriers.iter().filter(|(_, b)| now - b.since > READ_DEADLINE).map(|(t, _)| *t).collect();
        for tag in stale {
            let barrier = self.barriers.remove(&tag).expect("just listed");
            for ask in barrier.asks {
                ask(Err(Error::new(Code::NO_LEADER, "no leader confirmed the read").retryable().hint("retry")));
            }
        }
        for (&tag, barrier) in self.barriers.iter_mut().filter(|(_, b)| b.failed) {
            barrier.failed = false;
            inputs.push(Input::ReadIndex { tag });
        }
        if self.role.is_leader {
            self.propose_due(inputs);
        }
        self.replica.machine_mut().store_mut().maybe_checkpoint(self.started.elapsed().as_millis() as u64);
        self.publish_view();
    }

    /// Proposes what is due by the clock: leases and timers, and retention now and then.
    fn propose_due(&mut self, inputs: &mut Vec<Input<Machine>>) {
        let now = wall_clock();
        let machine = self.replica.machine();
        let trims = if self.retention_at <= Instant::now() { machine.retention(now) } else { Vec::new() };
        if self.expiry.is_none() && machine.next_deadline().is_some_and(|due| due <= now) {
            let data = Entry { time: now, expire: true, ..Entry::default() }.encode();
            self.expiry = Some(self.propose(data, Proposer::Clock, inputs));
        }
        if self.retention_at <= Instant::now() {
            self.retention_at = Instant::now() + RETENTION_EVERY;
            if !trims.is_empty() {
                let data = Entry { time: now, topics: trims, ..Entry::default() }.encode();
                self.propose(data, Proposer::Clock, inputs);
            }
        }
    }

    fn propose(&mut self, data: Bytes, by: Proposer, inputs: &mut Vec<Input<Machine>>) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.proposed.insert(tag, by);
        inputs.push(Input::Propose { tag, data });
        tag
    }

    fn on_notice(&mut self, notice: Notice, inputs: &mut Vec<Input<Machine>>) -> Result<(), Error> {
        match notice {
            Notice::Synced(tickets) => {
                for ticket in tickets {
                    inputs.push(Input::Persisted { ticket });
                    while self.after_sync.front().is_some_and(|(wanted, _)| *wanted <= ticket) {
                        let (_, messages) = self.after_sync.pop_front().expect("the front was just there");
                        self.post(messages);
                    }
                }
            }
            Notice::Checkpointed { index, term } => inputs.push(Input::Checkpointed { index, term }),
            Notice::Failed(error) => return Err(error),
            Notice::SnapshotSent { to, result } => {
                match &result {
                    Ok(()) => tracing::info!(peer = to.0, event_type = "snapshot_sent", "snapshot sent"),
                    Err(error) => tracing::warn!(peer = to.0, %error, "snapshot could not be sent"),
                }
                inputs.push(Input::SnapshotSent { to, ok: result.is_ok() });
            }
            Notice::SnapshotReceived { from, message, received } => {
                self.received = Some(received);
                inputs.push(Input::Receive { from, message });
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, outputs: Outputs<Machine>, inputs: &mut Vec<Input<Machine>>) -> Result<(), Error> {
        if let Some(error) = outputs.fatal {
            return Err(error);
        }
        self.post(outputs.messages);
        if let Some(persist) = outputs.persist {
            self.persist(persist);
        }
        for (to, message) in outputs.snapshots {
            self.shared.counters.snapshots_sent.fetch_add(1, Ordering::Relaxed);
            let address = self.config.members.iter().find(|m| m.id == to).map(|m| m.peer.clone());
            let hello = transport::Hello {
                cluster_id: self.config.cluster_id.clone(),
                from: self.config.node,
                to,
                lane: Lane::Snapshot,
            };
            snapshots::send(hello, address.unwrap_or_default(), message, self.store.clone(), self.notify.clone());
        }
        match (outputs.install, self.received.take()) {
            (Some(meta), Some(received)) => inputs.push(self.install(meta, received)?),
            (Some(_), None) => {
                return Err(Error::new(Code::CORRUPT, "consensus accepted a snapshot whose state has not come"));
            }
            // Not needed after all: dropping it removes its files.
            (None, _) => {}
        }
        self.on_applied(outputs.applied)?;
        if let Some((index, members)) = outputs.members {
            let meta = SnapshotMeta { index, term: self.role.term, members }.encode();
            self.replica.machine_mut().store_mut().set_meta(meta);
        }
        for (tag, error) in outputs.failed {
            self.on_proposal_failed(tag, &error);
        }
        for (tag, _) in outputs.reads {
            for ask in self.barriers.remove(&tag).into_iter().flat_map(|barrier| barrier.asks) {
                ask(Ok(self.replica.machine()));
            }
        }
        for tag in outputs.reads_failed {
            // Asked again by the next tick; asking at once would spin while there is no leader.
            if let Some(barrier) = self.barriers.get_mut(&tag) {
                barrier.failed = true;
            }
        }
        if let Some(role) = outputs.role {
            self.on_role(role, inputs);
        }
        // `checkpoint_wanted` needs no answer: checkpoints come every few seconds while anything is applied.
        if let Some(start) = outputs.log_start {
            self.log.forget_before(SHARD, start);
        }
        Ok(())
    }

    /// Puts a received snapshot in the place of the store.
    fn install(&mut self, meta: SnapshotMeta, received: ReceivedSnapshot) -> Result<Input<Machine>, Error> {
        tracing::info!(index = meta.index.0, event_type = "snapshot_installed", "installing a snapshot");
        let store = self.store.install(received)?;
        let machine = Machine::open(store)
            .map_err(|error| Error::new(Code::CORRUPT, format!("the snapshot's state cannot be rebuilt: {error}")))?;
        self.shared.counters.snapshots_installed.fetch_add(1, Ordering::Relaxed);
        self.publish(&machine);
        Ok(Input::Installed { snapshot: meta, machine })
    }

    fn post(&mut self, messages: Vec<(NodeId, Message)>) {
        for (to, message) in messages {
            let lane = if message.is_bulk() { Lane::Data } else { Lane::Control };
            self.transport.send(to, lane, Frame::Raft(message.encode()));
        }
    }

    fn on_applied(&mut self, applied: Vec<Applied<Effects>>) -> Result<(), Error> {
        if applied.is_empty() {
            return Ok(());
        }
        let mut revision = None;
        for Applied { tag, effects, .. } in applied {
            if let Some(error) = effects.fatal {
                return Err(Error::new(Code::DISK, format!("the state cannot be read: {error}")));
            }
            if let Some(tag) = tag {
                self.proposed.remove(&tag);
                if self.expiry == Some(tag) {
                    self.expiry = None;
                }
            }
            self.shared.counters.applied_entries.fetch_add(1, Ordering::Relaxed);
            if let Ok(receipt) = &effects.result {
                revision = Some(receipt.revision);
            }
            if !effects.topics.is_empty() {
                // A log must be known before its end is moved; cursors of deleted ones go.
                self.publish(self.replica.machine());
            }
            self.move_logs(&effects);
            if !effects.cursors.is_empty() {
                let mut cursors = self.shared.cursors.write().expect("no holder panics");
                for (group, log, next) in effects.cursors {
                    cursors.insert((group, log), next);
                }
            }
            if let Some(request) = effects.request
                && request.client == self.config.client
                && let Some(pending) = self.pending.remove(&request.number)
            {
                self.shared.counters.commit.record_us(pending.since.elapsed().as_micros() as u64);
                if effects.result.is_err() {
                    self.shared.counters.refused.fetch_add(1, Ordering::Relaxed);
                }
                let _ = pending.reply.send(effects.result.map_err(|refusal| match refusal {
                    // The result is forgotten, so whether it happened is unknown: no refusal.
                    Refusal::Part { code: Code::TIMEOUT, message } => {
                        SubmitError::Failed(Error::new(Code::TIMEOUT, message).retryable())
                    }
                    refusal => SubmitError::Refused(refusal),
                }));
            }
        }
        if let Some(revision) = revision {
            self.shared.revision.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
        }
        Ok(())
    }

    fn move_logs(&self, effects: &Effects) {
        if effects.ends.is_empty() && effects.starts.is_empty() {
            return;
        }
        let logs = self.shared.logs.read().expect("no holder panics");
        for (log, start) in &effects.starts {
            if let Some(state) = logs.get(log) {
                state.start.store(start.0, Ordering::Release);
            }
        }
        for (log, end) in &effects.ends {
            if let Some(state) = logs.get(log) {
                let before = state.end.swap(end.0, Ordering::AcqRel);
                self.shared.counters.applied_records.fetch_add((end.0 - before).max(0) as u64, Ordering::Relaxed);
                state.grown.notify_waiters();
            }
        }
    }

    fn on_proposal_failed(&mut self, tag: u64, error: &ProposalError) {
        if self.expiry == Some(tag) {
            self.expiry = None;
        }
        let overloaded = matches!(error, ProposalError::Overloaded);
        match self.proposed.remove(&tag) {
            Some(Proposer::Own { number }) => {
                if let Some(pending) = self.pending.get_mut(&number) {
                    pending.sent = None;
                }
            }
            Some(Proposer::Peer { node, number }) => {
                self.transport.send(node, Lane::Control, Frame::NotTaken { number, overloaded });
            }
            Some(Proposer::Clock) | None => {}
        }
    }

    fn on_role(&mut self, role: Role, inputs: &mut Vec<Input<Machine>>) {
        let before = std::mem::replace(&mut self.role, role);
        if role.leader.is_none() && self.leaderless_since.is_none() {
            self.leaderless_since = Some(Instant::now());
        }
        if role.leader.is_some() {
            if let Some(since) = self.leaderless_since.take() {
                self.shared.counters.election.record_us(since.elapsed().as_micros() as u64);
            }
            if before.leader != role.leader {
                self.shared.counters.leader_changes.fetch_add(1, Ordering::Relaxed);
                tracing::info!(
                    node_id = self.config.node.0,
                    term = role.term.0,
                    leader = role.leader.map_or(0, |l| l.0),
                    event_type = "leader",
                    "leader known"
                );
            }
        }
        if (before.leader, before.term) != (role.leader, role.term) && role.leader.is_some() {
            // What was sent to the old leader may be lost; the new one gets all of it again, in order.
            let numbers: Vec<u64> = self.pending.keys().copied().collect();
            for number in numbers {
                if self.pending[&number].sent.is_some() {
                    self.shared.counters.resent.fetch_add(1, Ordering::Relaxed);
                }
                self.send_pending(number, inputs);
            }
        }
        self.publish_view();
    }

    fn persist(&mut self, persist: Persist) {
        let marker = persist.reset.map(|meta| wal::Marker { index: meta.index, term: meta.term, meta: meta.encode() });
        self.log.submit(wal::Job {
            shard: SHARD,
            ticket: persist.ticket,
            hard_state: persist.hard_state.map(to_wal_state),
            marker,
            entries: persist.entries.into_iter().map(to_wal_entry).collect(),
        });
        if !persist.then_send.is_empty() {
            self.after_sync.push_back((persist.ticket, persist.then_send));
        }
    }

    /// Shows edges what topics, partitions and cursors there are.
    fn publish(&self, machine: &Machine) {
        let topics = machine.topics();
        let mut logs = self.shared.logs.write().expect("no holder panics");
        let live: HashSet<LogId> = topics.iter().flat_map(|t| &t.partitions).map(|p| p.log).collect();
        logs.retain(|log, state| {
            let keep = live.contains(log);
            if !keep {
                // Whoever waits for it looks again and finds it gone.
                state.grown.notify_waiters();
            }
            keep
        });
        for partition in topics.iter().flat_map(|t| &t.partitions) {
            let state = logs.entry(partition.log).or_default();
            state.start.store(partition.start.0, Ordering::Release);
            state.end.store(partition.end.0, Ordering::Release);
            state.grown.notify_waiters();
        }
        drop(logs);
        let topics = topics.into_iter().map(|topic| (topic.name.clone(), topic)).collect();
        *self.shared.topics.write().expect("no holder panics") = Arc::new(topics);
        let cursors = machine.cursors().iter().map(|(log, group, position)| ((group.to_owned(), log), position.next));
        *self.shared.cursors.write().expect("no holder panics") = cursors.collect();
        let revision = machine.revision();
        self.shared.revision.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
    }

    fn publish_view(&self) {
        let status = self.replica.status();
        let revision = self.replica.machine().revision();
        self.shared.view.send_if_modified(|view| {
            view.committed = status.engine.committed;
            view.applied = status.engine.applied;
            view.revision = revision;
            let changed = (view.leader, view.term) != (self.role.leader, self.role.term);
            view.leader = self.role.leader;
            view.term = self.role.term;
            changed
        });
    }
}

/// Joins what the store and the log kept to what consensus starts from. A node that has neither founds the cluster.
fn restore(config: &Config, log: &mut wal::Wal, kept: wal::ShardLog, store: &DiskStore) -> Result<Restored, Error> {
    let (index, term) = buttress_core::Store::applied(store);
    if index.0 == 0 && kept.hard_state.is_none() && kept.entries.is_empty() {
        let voters: Vec<NodeId> = config.members.iter().map(|m| m.id).collect();
        let founding = Restored::founding(&voters);
        let mut batch = wal::Batch::default();
        for entry in &founding.entries {
            batch.entry(SHARD, &to_wal_entry(entry.clone()));
        }
        batch.hard_state(SHARD, to_wal_state(founding.hard_state));
        log.commit(&mut batch)?;
        tracing::info!(event_type = "founded", voters = voters.len(), "a new cluster is founded");
        return Ok(founding);
    }
    let snapshot = if index.0 == 0 {
        SnapshotMeta::default()
    } else {
        let kept = SnapshotMeta::decode(store.meta().clone())
            .map_err(|error| Error::new(Code::CORRUPT, format!("the store's member list is malformed: {error}")))?;
        SnapshotMeta { index, term, members: kept.members }
    };
    let hard_state = kept.hard_state.map_or_else(HardState::default, |state| HardState {
        term: state.term,
        vote: Some(state.vote).filter(|vote| vote.0 != 0),
        commit: state.commit,
    });
    let entries = kept.after(index, term)?.into_iter().map(from_wal_entry).collect::<Result<_, _>>()?;
    Ok(Restored { hard_state, snapshot, entries })
}

fn to_wal_state(state: HardState) -> wal::HardState {
    wal::HardState { term: state.term, vote: state.vote.unwrap_or_default(), commit: state.commit }
}

fn to_wal_entry(entry: LogEntry) -> wal::LogEntry {
    let kind = match entry.kind {
        EntryKind::Normal => 0,
        EntryKind::ConfChange => 1,
    };
    wal::LogEntry { index: entry.index, term: entry.term, kind, data: entry.data }
}

fn from_wal_entry(entry: wal::LogEntry) -> Result<LogEntry, Error> {
    let kind = match entry.kind {
        0 => EntryKind::Normal,
        1 => EntryKind::ConfChange,
        kind => {
            return Err(Error::new(
                Code::FORMAT,
                format!("entry {} of the log is of the unknown kind {kind}", entry.index),
            ));
        }
    };
    Ok(LogEntry { index: entry.index, term: entry.term, kind, data: entry.data })
}
