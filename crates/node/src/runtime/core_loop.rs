//! The task that owns the replica.
//!
//! A turn: drain the inbox, step once, then in this order: send what may go before the fsync, hand the log its batch,
//! answer what was applied. The order is the contract of async append: the leader's messages leave first, a follower's
//! acknowledgement only after its fsync.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
    pin::Pin,
    sync::{Arc, RwLock, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use buttress_consensus::{
    self as consensus, Input, LogEntry, Message, Outputs, Persist, ProposalError, Replica, Restored, SnapshotMeta,
};
use buttress_core::{
    Code, Consistency, Entry, Error, Index, NodeId, Receipt, RequestId, Revision, Store, SubmitError, Term, TimeMs,
    entry::TopicChange,
    ledger::ClusterView,
};

use super::{
    Config, TICK,
    handle::wall_clock,
    shared::{Counters, LogState, Shared},
};
use crate::{
    store::{self, DiskStore},
    transport::{self, Frame, Lane, Transport},
    wal,
};

pub(super) type Machine = buttress_state::Machine<DiskStore>;
pub type Running = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

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
enum Notice {
    Synced(Vec<u64>),
    LogFailed(Error),
    Checkpointed { index: Index, term: Term },
    StoreFailed(Error),
    SnapshotSent { to: NodeId, result: Result<(), Error> },
}

/// Whose proposal it is that this leader has in the log.
enum Proposer {
    Own { number: u64 },
    Peer { node: NodeId, number: u64 },
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
    store: store::Host,
    frames: mpsc::Receiver<transport::Event>,
    notices: mpsc::UnboundedReceiver<Notice>,
    notify: mpsc::UnboundedSender<Notice>,
    started: Instant,
    /// Entries of this node by request number, in order.
    pending: BTreeMap<u64, Pending>,
    next_request: u64,
    barriers: BTreeMap<u64, Barrier>,
    next_barrier: u64,
    /// Reads whose index the quorum has confirmed and that wait for this node to apply it.
    waiting: BTreeMap<Index, Vec<AskFn>>,
    /// Tag of a proposal → whose it is and under which number; forgotten when it is applied or fails.
    proposed: HashMap<u64, Proposer>,
    next_tag: u64,
    role: consensus::Role,
    leaderless_since: Option<Instant>,
    expiry: Option<u64>,
    retention_at: Instant,
    /// A snapshot that came in whole and waits for consensus to accept it.
    received: Option<store::Received>,
    receiving: Option<(NodeId, store::SnapshotReceiver)>,
    checkpoint_members: consensus::Members,
}

impl Core {
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    pub fn run(mut self, mut inbox: mpsc::Receiver<Command>) -> Running {
        Box::pin(async move {
            let ended = self.turns(&mut inbox).await;
            // Nobody is answered any more; those who wait learn that the node stopped.
            self.pending.clear();
            self.barriers.clear();
            self.waiting.clear();
            if let Err(error) = &ended {
                tracing::error!(code = error.code.0, error = %error.message, "the node stopped itself");
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
        self.publish_topics();
        self.publish_cursors();
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
            while !inputs.is_empty() {
                let outputs = self.replica.step(self.started.elapsed().as_millis() as u64, std::mem::take(&mut inputs));
                self.carry_out(outputs, &mut inputs)?;
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
        let pending =
            Pending { encoded, reply, since: Instant::now(), sent: None, ever_sent: false, _room: room };
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
            Frame::SnapshotChunk(chunk) => self.on_snapshot_chunk(from, &chunk),
            Frame::SnapshotEnd(bytes) => self.on_snapshot_end(from, bytes, inputs),
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
        let stale: Vec<u64> = self.barriers.iter().filter(|(_, b)| now - b.since > READ_DEADLINE).map(|(t, _)| *t).collect();
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
            Notice::Synced(tickets) => inputs.extend(tickets.into_iter().map(|ticket| Input::Persisted { ticket })),
            Notice::Checkpointed { index, term } => inputs.push(Input::Checkpointed { index, term }),
            Notice::LogFailed(error) | Notice::StoreFailed(error) => return Err(error),
            Notice::SnapshotSent { to, result } => {
                match &result {
                    Ok(()) => tracing::info!(peer = to.0, "snapshot sent"),
                    Err(error) => tracing::warn!(peer = to.0, %error, "snapshot could not be sent"),
                }
                inputs.push(Input::SnapshotSent { to, ok: result.is_ok() });
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
            self.send_snapshot(to, message);
        }
        if let Some(meta) = outputs.install {
            self.install(meta, inputs)?;
        }
        self.on_applied(outputs.applied)?;
        for (tag, error) in outputs.failed {
            self.on_proposal_failed(tag, &error);
        }
        for (tag, index) in outputs.reads {
            if let Some(barrier) = self.barriers.remove(&tag) {
                self.waiting.entry(index).or_default().extend(barrier.asks);
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
        self.answer_reads();
        if let Some(start) = outputs.log_start {
            self.log.forget_before(SHARD, start);
        }
        Ok(())
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
        let mut topics_changed = false;
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
            topics_changed |= !effects.topics.is_empty();
            if let Ok(receipt) = &effects.result {
                revision = Some(receipt.revision);
            }
            if !effects.topics.is_empty() {
                // A log must be known before its end is moved.
                self.publish_topics();
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
                self.shared.counters.commit.observe_us(pending.since.elapsed().as_micros() as u64);
                if effects.result.is_err() {
                    self.shared.counters.refused.fetch_add(1, Ordering::Relaxed);
                }
                let _ = pending.reply.send(effects.result.map_err(SubmitError::Refused));
            }
        }
        if topics_changed {
            self.publish_cursors();
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
                self.shared.counters.election.observe_us(since.elapsed().as_micros() as u64);
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

    fn answer_reads(&mut self) {
        let (applied, _) = buttress_core::Machine::applied(self.replica.machine());
        while let Some(first) = self.waiting.first_entry()
            && *first.key() <= applied
        {
            for ask in first.remove() {
                ask(Ok(self.replica.machine()));
            }
        }
    }

    fn persist(&mut self, persist: Persist) {
        let entry = |e: consensus::LogEntry| wal::LogEntry {
            index: e.index,
            term: e.term,
            kind: e.kind as u8,
            data: e.data,
        };
        self.log.submit(wal::Job {
            shard: SHARD,
            ticket: persist.ticket,
            hard_state: persist.hard_state.map(|h| wal::HardState {
                term: h.term,
                vote: h.vote.unwrap_or_default(),
                commit: h.commit,
            }),
            marker: None,
            entries: persist.entries.into_iter().map(entry).collect(),
        });
    }

    fn publish_topics(&self) {
        let topics = self.replica.machine().topics();
        let mut logs = self.shared.logs.write().expect("no holder panics");
        let live: HashSet<LogId> = topics.iter().flat_map(|t| &t.partitions).map(|p| p.log).collect();
        logs.retain(|log, state| {
            let keep = live.contains(log);
            if !keep {
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
    }

    fn publish_cursors(&self) {
        let cursors = self.replica.machine().cursors().iter().map(|(group, log, next)| ((group.to_owned(), log), next));
        *self.shared.cursors.write().expect("no holder panics") = cursors.collect();
    }

    fn publish_view(&self) {
        let status = self.replica.status();
        let revision = self.replica.machine().revision();
        self.shared.view.send_if_modified(|view| {
            view.committed = status.committed;
            view.applied = status.applied;
            view.revision = revision;
            let changed = (view.leader, view.term) != (self.role.leader, self.role.term);
            view.leader = self.role.leader;
            view.term = self.role.term;
            changed
        });
    }
}
