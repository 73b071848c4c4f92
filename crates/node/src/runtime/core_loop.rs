//! The task that owns the replica.
//!
//! A turn: drain the inbox, step once, then in this order: send what may go before the fsync, hand the log its batch,
//! answer what was applied. The order is the contract of async append: the leader's messages leave first, a follower's
//! acknowledgement only after its fsync.
//!
//! The way of one of our entries: it *waits* until few enough are under way, so that state never forgets the result of one
//! that is not answered yet; then it is *pending* until this node applies it. A pending entry is *unsent*, or in this
//! leader's log, or sent to another leader. Unsent ones go in order, and none overtakes another: an edge's batches carry
//! sequence numbers. One that is in this leader's log comes back from consensus, applied or failed, so it is never proposed
//! twice; one that was sent to another leader is sent again after a while, ever more rarely.
//!
//! A leader takes a proposal only while its log and its store keep up. Beyond, its own entries stay unsent and those of
//! others are refused, so a slow disk ends as `OVERLOADED` at the edges and never as a blocked task.

mod members;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, RwLock, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::MissedTickBehavior,
};

use buttress_consensus::{
    Applied, Body, Fetch, Input, LogEntry, Message, Outputs, Persist, ProposalError, Replica, Role, SnapshotMeta,
};
use buttress_core::{
    ClusterClock, Code, Consistency, Entry, Error, Index, LogId, NodeId, Receipt, Refusal, Renewal, RequestId,
    Revision, SubmitError, Term, TimeMs,
    ledger::{ClusterView, CursorView},
    limits::{ENTRY_PARTS_MAX, REQUEST_RESULTS_PER_CLIENT_MAX},
};
use buttress_state::Effects;

use members::{AskedBy, Group};

use super::{
    Config, MemberDone, MemberRequest, Options,
    follow::Followed,
    handle::stopped,
    shared::{Counters, Inspection, LeaderSeen, Shared, Time},
    snapshots,
};
use crate::{
    store::{DiskStore, ReceivedSnapshot, StoreEvent, StoreHandle},
    transport::{self, APPEND_BYTES_MAX, Frame, Lane, Transport},
    wal::{self, Identity},
};

pub(super) type Machine = buttress_state::Machine<DiskStore>;
pub type Running = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// The only shard so far; it holds the metadata and the key space.
pub(crate) const SHARD: u32 = 0;
/// Commands that wait for the next turn.
pub(super) const COMMANDS_MAX: usize = 4096;
/// One turn takes at most this many events of a kind, so that ticks are never starved.
const TURN_EVENTS_MAX: usize = 2048;
/// Our entries under way at once, counted from the oldest. State remembers twice as many results per client, so none is
/// forgotten while its request may still be sent again, even if the newer half overtook the older one.
const WINDOW: u64 = (REQUEST_RESULTS_PER_CLIENT_MAX / 2) as u64;
/// The pause after an entry was not taken because the leader is overloaded, doubled each time.
const OVERLOAD_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(800));
/// A peer whose proposal was not taken sends it again after a pause, so after two of the longest it will not.
const REFUSED_FOR: Duration = Duration::from_millis(1600);
/// The longest time between two attempts to send an entry to the same leader.
const RESEND_MAX: Duration = Duration::from_secs(8);
/// A leader takes no proposal while more bytes than this wait for its own fsync.
const WAL_QUEUE_BYTES_MAX: u64 = 32 * 1024 * 1024;

type AskFn = Box<dyn FnOnce(Result<&Machine, Error>) + Send>;

pub(super) enum Command {
    Submit {
        entry: Box<Entry>,
        reply: oneshot::Sender<Result<Receipt, SubmitError>>,
        room: OwnedSemaphorePermit,
    },
    Ask {
        consistency: Consistency,
        run: AskFn,
    },
    Members {
        request: MemberRequest,
        reply: oneshot::Sender<Result<MemberDone, Error>>,
    },
    /// Answered when this node does not lead, or cannot help leading.
    HandOver {
        reply: oneshot::Sender<()>,
    },
    /// Answered when the last checkpoint is at this index, or behind it.
    Checkpoint {
        index: Index,
        reply: oneshot::Sender<()>,
    },
    /// Where consensus and the store stand.
    Inspect {
        reply: oneshot::Sender<Inspection>,
    },
    Stop,
}

/// What the other threads tell the task.
pub(super) enum Notice {
    Synced(Vec<u64>),
    Failed(Error),
    /// The store's thread has caught up.
    StoreHasRoom,
    Checkpointed {
        index: Index,
        term: Term,
    },
    SnapshotSent {
        to: NodeId,
        result: Result<(), Error>,
    },
    /// What the log on disk has for a follower that lags.
    Fetched {
        low: Index,
        result: Result<Vec<LogEntry>, Error>,
    },
    /// A snapshot has come in whole; the message makes consensus judge it.
    SnapshotReceived {
        from: NodeId,
        message: Box<Message>,
        received: ReceivedSnapshot,
        /// Answered when the replica has seen the message.
        taken: oneshot::Sender<()>,
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
    /// Expiry, retention and sweeping; proposed again by a later tick if it fails.
    Clock,
    /// A change of members, and what whoever asked for it is answered.
    Change {
        by: Option<AskedBy>,
        done: MemberDone,
    },
}

/// An entry of ours that was not sent anywhere yet.
struct Waiting {
    entry: Box<Entry>,
    reply: oneshot::Sender<Result<Receipt, SubmitError>>,
    since: Instant,
    room: OwnedSemaphorePermit,
}

/// An entry of ours that is not applied here yet.
struct Pending {
    encoded: Bytes,
    /// What it says.
    time: TimeMs,
    reply: oneshot::Sender<Result<Receipt, SubmitError>>,
    since: Instant,
    place: Place,
    ever_sent: bool,
    /// How long the next leader is given before it is asked again.
    patience: Duration,
    _room: OwnedSemaphorePermit,
}

#[derive(Clone, Copy)]
enum Place {
    Unsent,
    /// In the log of this node, which leads.
    Here,
    SentTo {
        leader: NodeId,
        at: Instant,
    },
}

/// A snapshot that is on disk and waits for consensus to accept it.
struct Arrival {
    from: NodeId,
    message: Message,
    received: ReceivedSnapshot,
    taken: oneshot::Sender<()>,
}

/// Linearizable reads that wait for one answer of the quorum.
struct Barrier {
    since: Instant,
    failed: bool,
    asks: Vec<AskFn>,
}

pub(super) struct Core {
    config: Config,
    options: Options,
    replica: Replica<Machine>,
    shared: Arc<Shared>,
    transport: Transport,
    log: wal::Writer,
    log_reader: wal::Reader,
    store: StoreHandle,
    frames: transport::Inbox,
    notices: mpsc::UnboundedReceiver<Notice>,
    notify: mpsc::UnboundedSender<Notice>,
    started: Instant,
    /// Entries of this node that are not under way, in order.
    waiting: VecDeque<Waiting>,
    /// Those that need a newer format than the cluster has agreed on. Others may overtake them.
    parked: VecDeque<Waiting>,
    /// The newest format that every member is known to read, as this node has applied it.
    format: u8,
    /// The tag of the entry that raises it.
    raising: Option<u64>,
    /// Entries of this node by request number, in order.
    pending: BTreeMap<u64, Pending>,
    /// Those of them that are [`Place::Unsent`].
    unsent: BTreeSet<u64>,
    /// Nothing is sent before.
    unsent_paused: Option<Instant>,
    overload_pause: Duration,
    next_request: u64,
    barriers: BTreeMap<u64, Barrier>,
    next_barrier: u64,
    /// Tag of a proposal → whose it is; forgotten when it is applied or fails.
    proposed: HashMap<u64, Proposer>,
    /// Peers' proposals among these: one that is sent again meanwhile is not proposed again.
    from_peers: HashSet<(NodeId, u64)>,
    /// Peers' proposals that were not taken for want of room and have not come again, and when that was.
    refused: BTreeMap<(NodeId, u64), Instant>,
    /// Bytes that may still be proposed in this turn, once it was asked.
    headroom: Option<usize>,
    next_tag: u64,
    /// Messages that wait for the fsync of their ticket.
    after_sync: VecDeque<(u64, Vec<(NodeId, Message)>)>,
    role: Role,
    leaderless_since: Option<Instant>,
    /// Leases that get their whole time again before any ends.
    renewal: Option<Renewal>,
    /// The tag of the expiry that is under way.
    expiry: Option<u64>,
    /// The tag of the empty entry that goes on with what a compaction left to remove.
    sweep: Option<u64>,
    retention_at: Instant,
    /// A checkpoint that consensus does not know of yet, because followers still want the log before it.
    checkpoint: Option<(Index, Term)>,
    /// Followers to whom a snapshot is under way, and the message of a later one that consensus wants sent behind it.
    sending: BTreeMap<NodeId, Option<Message>>,
    arrivals: VecDeque<Arrival>,
    /// The one whose message is in this very step.
    arriving: Option<Arrival>,
    /// Peers to whom frames were dropped since the last tick.
    dropped: BTreeSet<NodeId>,
    group: Group,
    /// The node was asked to stop, and does so at the latest then.
    stopping: Option<Instant>,
    /// Backups that wait for a checkpoint.
    checkpoints_wanted: Vec<(Index, oneshot::Sender<()>)>,
}

impl Core {
    /// Opens the data directory and rebuilds the state of the last run.
    pub fn open(config: &Config, options: Options, peer_listener: TcpListener) -> Result<Self, Error> {
        config.validate()?;
        crate::backup::refuse_unfinished(&config.data_dir)?;
        let (notify, notices) = mpsc::unbounded_channel();
        let identity = Identity { cluster_id: config.cluster_id.clone(), node: config.node };
        let store = {
            let notify = notify.clone();
            let path = config.data_dir.join("store");
            let disk = options.disk(&path)?;
            let early = config.node.0 % 3;
            let options = crate::store::Options { checkpoint_early_thirds: early, ..options.store.clone() };
            DiskStore::open_on(disk, path, identity.clone(), options, move |event| {
                let _ = notify.send(match event {
                    StoreEvent::Checkpointed { index, term } => Notice::Checkpointed { index, term },
                    StoreEvent::Room => Notice::StoreHasRoom,
                    StoreEvent::Failed(error) => Notice::Failed(error),
                });
            })?
        };
        let disk = options.disk(&config.data_dir.join("wal"))?;
        let (mut log, mut recovered) = wal::Wal::open(disk, identity, options.wal.clone())?;
        if recovered.torn_bytes > 0 {
            tracing::warn!(
                bytes = recovered.torn_bytes,
                event_type = "torn_tail",
                "a torn tail of the log was left out"
            );
        }
        let (index, term) = buttress_core::Store::applied(&store);
        let stored = wal::Stored { index, term, meta: store.meta().clone() };
        let founders = config.members.iter().map(|m| m.id);
        let founders: Vec<NodeId> = if config.join { Vec::new() } else { founders.collect() };
        let kept = recovered.take(SHARD);
        let restored = wal::restore(&founders, options.log_tail_bytes, SHARD, &mut log, kept, &stored)?;
        let handle = store.handle();
        let reader = store.reader();
        let log_reader = log.reader();
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
        let limits = buttress_state::Limits { entry_format: options.entry_format, ..Default::default() };
        let machine = Machine::open_with(store, limits)
            .map_err(|error| Error::new(Code::CORRUPT, format!("the state cannot be rebuilt: {error}")))?;
        let consensus = buttress_consensus::Config {
            log_tail_bytes: options.log_tail_bytes,
            log_memory_bytes: options.log_memory_bytes,
            max_uncommitted_bytes: options.uncommitted_bytes_max,
            ..buttress_consensus::Config::new(config.node, config.seed)
        };
        let replica = Replica::new(consensus, restored, machine)?;
        let peers = config.members.iter().filter(|m| m.id != config.node).map(|m| (m.id, m.peer.clone())).collect();
        let incoming = snapshots::receiver(handle.clone(), notify.clone())?;
        let own = config.members.iter().find(|m| m.id == config.node && config.join).map(|m| m.peer.clone());
        let (transport, frames) =
            Transport::start(config.cluster_id.clone(), config.node, own, peers, peer_listener, incoming);
        transport.set_reads(options.entry_format);
        let view = ClusterView {
            cluster_id: config.cluster_id.clone(),
            node: config.node,
            members: config.members.clone(),
            ..ClusterView::default()
        };
        let shared = Shared {
            time: Time::start(options.wall_clock.clone(), replica.machine().clock()),
            view: watch::Sender::new(view),
            topics: RwLock::default(),
            logs: RwLock::default(),
            cursors: RwLock::default(),
            revision: watch::Sender::new(Revision(0)),
            ring: Arc::default(),
            followed: Followed::default(),
            reader,
            counters: Counters::default(),
            leaders: Mutex::default(),
            wal: wal.stats(),
            store: handle.clone(),
            transport: transport.counters(),
        };
        let format = options.entry_format_of_all;
        Ok(Self {
            config: config.clone(),
            group: Group::new(&options),
            stopping: None,
            options,
            replica,
            shared: Arc::new(shared),
            transport,
            log: wal,
            log_reader,
            store: handle,
            frames,
            notices,
            notify,
            started: Instant::now(),
            waiting: VecDeque::new(),
            parked: VecDeque::new(),
            format,
            raising: None,
            pending: BTreeMap::new(),
            unsent: BTreeSet::new(),
            unsent_paused: None,
            overload_pause: OVERLOAD_PAUSE.0,
            next_request: 1,
            barriers: BTreeMap::new(),
            next_barrier: 0,
            proposed: HashMap::new(),
            from_peers: HashSet::new(),
            refused: BTreeMap::new(),
            headroom: None,
            next_tag: 0,
            after_sync: VecDeque::new(),
            role: Role::default(),
            leaderless_since: Some(Instant::now()),
            renewal: None,
            expiry: None,
            sweep: None,
            retention_at: Instant::now(),
            checkpoint: None,
            sending: BTreeMap::new(),
            arrivals: VecDeque::new(),
            arriving: None,
            dropped: BTreeSet::new(),
            checkpoints_wanted: Vec::new(),
        })
    }

    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    pub fn run(mut self, mut inbox: mpsc::Receiver<Command>) -> Running {
        Box::pin(async move {
            let ended = self.turns(&mut inbox).await;
            self.give_up(&mut inbox);
            match &ended {
                Err(error) => {
                    tracing::error!(code = error.code.0, error = %error.message, "the node stopped itself");
                    Err(error.clone())
                }
                // So that the next start has nothing to replay. Where the node stopped itself its state may be one that
                // no log leads to, so no checkpoint is written then.
                Ok(()) => self.replica.machine_mut().store_mut().checkpoint_now().map(drop),
            }
        })
    }

    /// Tells those who wait that the node has stopped, and whether anything may have come of their entries.
    fn give_up(&mut self, inbox: &mut mpsc::Receiver<Command>) {
        inbox.close();
        let waiting = self.parked.drain(..).chain(self.waiting.drain(..)).map(|waiting| (waiting.reply, false));
        let pending = std::mem::take(&mut self.pending).into_values().map(|pending| (pending.reply, pending.ever_sent));
        for (reply, ever_sent) in waiting.chain(pending) {
            let error = if ever_sent { unknown_at_stop() } else { stopped() };
            let _ = reply.send(Err(SubmitError::Failed(error)));
        }
        while let Ok(command) = inbox.try_recv() {
            if let Command::Submit { reply, .. } = command {
                let _ = reply.send(Err(SubmitError::Failed(stopped())));
            }
        }
        self.barriers.clear();
        self.checkpoints_wanted.clear();
        self.role.leader = None;
        self.publish_view();
    }

    async fn turns(&mut self, inbox: &mut mpsc::Receiver<Command>) -> Result<(), Error> {
        let mut ticks = tokio::time::interval(self.options.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commands = Vec::new();
        let mut frames = Vec::new();
        let mut inputs = Vec::new();
        // What the machine holds after a restart is visible before the first entry is applied.
        self.publish(self.replica.machine());
        self.publish_view();
        let format = self.format_of(self.replica.machine())?;
        self.take_format(format)?;
        let mut more = false;
        loop {
            self.headroom = None;
            let takes_data = self.takes_data();
            tokio::select! {
                biased;
                _ = ticks.tick() => {
                    inputs.push(Input::Tick);
                    self.on_tick(&mut inputs)?;
                }
                Some(notice) = self.notices.recv() => self.on_notice(notice, &mut inputs)?,
                got = self.frames.control.recv_many(&mut frames, TURN_EVENTS_MAX) => {
                    assert!(got > 0, "the transport lives as long as the task");
                }
                Some(event) = self.frames.data.recv(), if takes_data => frames.push(event),
                got = inbox.recv_many(&mut commands, TURN_EVENTS_MAX) => {
                    if got == 0 {
                        return Ok(());
                    }
                }
                // There is more to apply; others of this thread get their turn first.
                () = tokio::task::yield_now(), if more => {}
            }
            // Whatever else has come meanwhile belongs to the same turn.
            while let Ok(notice) = self.notices.try_recv() {
                self.on_notice(notice, &mut inputs)?;
            }
            for (receiver, takes) in [(&mut self.frames.control, true), (&mut self.frames.data, takes_data)] {
                let before = frames.len();
                while takes
                    && frames.len() < before + TURN_EVENTS_MAX
                    && let Ok(event) = receiver.try_recv()
                {
                    frames.push(event);
                }
            }
            while commands.len() < TURN_EVENTS_MAX
                && let Ok(command) = inbox.try_recv()
            {
                commands.push(command);
            }
            for event in frames.drain(..) {
                self.on_transport(event, &mut inputs)?;
            }
            let mut barrier = Vec::new();
            for command in commands.drain(..) {
                match command {
                    Command::Submit { entry, reply, room } => {
                        self.waiting.push_back(Waiting { entry, reply, since: Instant::now(), room });
                    }
                    Command::Ask { consistency: Consistency::Serializable, run } => run(Ok(self.replica.machine())),
                    Command::Ask { consistency: Consistency::Linearizable, run } => barrier.push(run),
                    Command::Members { request, reply } => self.take_request(request, reply, &mut inputs),
                    Command::HandOver { reply } => self.hand_over(Some(reply), &mut inputs),
                    Command::Stop => {
                        self.stopping.get_or_insert(Instant::now() + self.options.stop_deadline);
                        self.hand_over(None, &mut inputs);
                    }
                    Command::Checkpoint { index, reply } => self.checkpoints_wanted.push((index, reply)),
                    Command::Inspect { reply } => drop(reply.send(self.inspect())),
                }
            }
            self.send_unsent(&mut inputs);
            if !barrier.is_empty() {
                // One confirmation by the quorum serves every read of the turn.
                let tag = self.next_barrier;
                self.next_barrier += 1;
                self.barriers.insert(tag, Barrier { since: Instant::now(), failed: false, asks: barrier });
                inputs.push(Input::ReadIndex { tag });
            }
            more = self.step(&mut inputs, more)?;
            self.shared.counters.turns.fetch_add(1, Ordering::Relaxed);
            if self.stopping.is_some_and(|deadline| self.may_stop(deadline)) {
                return Ok(());
            }
        }
    }

    /// Steps the replica, and again while carrying out what it wants gives it something to hear at once. `true` when more
    /// is ready than one step takes.
    fn step(&mut self, inputs: &mut Vec<Input<Machine>>, mut more: bool) -> Result<bool, Error> {
        while more || !inputs.is_empty() || !self.arrivals.is_empty() {
            // Two snapshots in one step could not be told apart.
            if let Some(mut arrival) = self.arrivals.pop_front() {
                let message = std::mem::replace(&mut arrival.message, empty_message());
                inputs.push(Input::Receive { from: arrival.from, message });
                self.arriving = Some(arrival);
            }
            let now_ms = self.started.elapsed().as_millis() as u64;
            let outputs = self.replica.step(now_ms, std::mem::take(inputs));
            more = outputs.more;
            self.carry_out(outputs, inputs)?;
            if inputs.is_empty() && self.arrivals.is_empty() {
                return Ok(more);
            }
        }
        Ok(false)
    }

    /// Lets waiting entries follow while few enough are under way, and sends what is unsent, in order, as far as it goes.
    fn send_unsent(&mut self, inputs: &mut Vec<Input<Machine>>) {
        while let Some(waiting) = self.waiting.front() {
            let number = self.next_request;
            let oldest = self.pending.keys().next().copied().unwrap_or(number);
            if number - oldest >= WINDOW {
                break;
            }
            // REQUEST-1: state keeps this many results of ours, so that of an unanswered one is never forgotten.
            assert!(number - oldest < REQUEST_RESULTS_PER_CLIENT_MAX as u64, "a result could be forgotten too early");
            if waiting.reply.is_closed() {
                self.waiting.pop_front();
                continue;
            }
            if waiting.entry.format() > self.format {
                self.parked.extend(self.waiting.pop_front());
                continue;
            }
            let Waiting { mut entry, reply, since, room } = self.waiting.pop_front().expect("the front was just there");
            self.next_request += 1;
            entry.request = Some(RequestId { client: self.config.client, number, acknowledged_below: oldest });
            entry.time = self.shared.time.now();
            let pending = Pending {
                encoded: entry.encode(),
                time: entry.time,
                reply,
                since,
                place: Place::Unsent,
                ever_sent: false,
                patience: self.options.resend_after,
                _room: room,
            };
            self.pending.insert(number, pending);
            self.unsent.insert(number);
        }
        if self.unsent_paused.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.unsent_paused = None;
        while let Some(&number) = self.unsent.first() {
            if !self.send_pending(number, inputs) {
                return;
            }
            self.unsent.remove(&number);
        }
    }

    /// Proposes one of our entries, or sends it to the leader. `false` if that is not possible now.
    fn send_pending(&mut self, number: u64, inputs: &mut Vec<Input<Machine>>) -> bool {
        let Some(leader) = self.role.leader else { return false };
        let encoded = self.pending[&number].encoded.clone();
        let place = if self.role.is_leader {
            if !self.takes(encoded.len()) {
                self.pause_unsent();
                return false;
            }
            // Mostly it was encoded a moment ago; otherwise the stamped one is kept in its place, so that there is one copy.
            let now = self.shared.time.now();
            let pending = self.pending.get_mut(&number).expect("looked up above");
            if pending.time != now {
                pending.encoded = Entry::stamp(&encoded, now).expect("we encoded it");
                pending.time = now;
            }
            let data = pending.encoded.clone();
            self.propose(data, Proposer::Own { number }, inputs);
            Place::Here
        } else {
            if !self.transport.send(leader, Lane::Data, Frame::Propose { number, entry: encoded }) {
                self.pause_unsent();
                return false;
            }
            self.shared.counters.forwarded.fetch_add(1, Ordering::Relaxed);
            Place::SentTo { leader, at: Instant::now() }
        };
        let pending = self.pending.get_mut(&number).expect("looked up above");
        if pending.ever_sent {
            self.shared.counters.resent.fetch_add(1, Ordering::Relaxed);
        }
        pending.place = place;
        pending.ever_sent = true;
        true
    }

    fn pause_unsent(&mut self) {
        self.unsent_paused = Some(Instant::now() + self.overload_pause);
        self.overload_pause = (2 * self.overload_pause).min(OVERLOAD_PAUSE.1);
    }

    /// An entry is to be sent again, if it is still wanted.
    fn unsend(&mut self, number: u64) {
        if let Some(pending) = self.pending.get_mut(&number) {
            pending.place = Place::Unsent;
            self.unsent.insert(number);
        }
    }

    /// Whether a peer's proposal would overtake an earlier one of that peer that was not taken. It is not taken either until
    /// that one comes again, or is long overdue because its submitter has given it up: a producer's first batch that comes
    /// after its second would count as seen before, and be acknowledged without being there.
    fn overtakes(&mut self, from: NodeId, number: u64) -> bool {
        // Small: a peer has at most `WINDOW` entries under way, and what is overdue is dropped here.
        self.refused.retain(|(peer, _), at| *peer != from || at.elapsed() < REFUSED_FOR);
        self.refused.range((from, 0)..(from, number)).next().is_some()
    }

    /// Whether this leader has room for a proposal, which then counts as made. Once it has none, it has none for the rest of
    /// the turn, so that no smaller entry overtakes. However large, one entry is let in when none is under way.
    fn takes(&mut self, len: usize) -> bool {
        let (headroom, alone) = match self.headroom {
            Some(headroom) => (headroom, false),
            None => self.free_bytes(),
        };
        let left = headroom.checked_sub(len);
        self.headroom = Some(left.unwrap_or(0));
        left.is_some() || alone
    }

    /// Bytes that may be proposed, and whether nothing is under way.
    fn free_bytes(&self) -> (usize, bool) {
        let store = self.replica.machine().store();
        // The store would block the task at its limit, heartbeats and all.
        let store_lags = store.pending_bytes() > self.options.store.pending_bytes_max / 4 * 3;
        if store_lags
            || !store.has_room(self.options.unfiled_bytes_max)
            || self.log.queued_bytes() > WAL_QUEUE_BYTES_MAX
        {
            return (0, false);
        }
        let waiting = self.replica.status().engine.uncommitted_bytes;
        (self.options.uncommitted_bytes_max.saturating_sub(waiting), waiting == 0)
    }

    /// Whether what comes over the lanes for data is taken now. A follower whose store lags lets it wait in the transport,
    /// which then reads no more, so that the leader keeps what it has for this one. Heartbeats have a lane of their own. A
    /// leader goes on: it answers each proposal whether it is taken.
    fn takes_data(&self) -> bool {
        self.role.is_leader || self.replica.machine().store().has_room(self.options.unfiled_bytes_max)
    }

    fn on_transport(&mut self, event: transport::Event, inputs: &mut Vec<Input<Machine>>) -> Result<(), Error> {
        let (from, frame) = match event {
            transport::Event::Unreachable { peer } => {
                self.on_unreachable(peer);
                inputs.push(Input::Unreachable { peer });
                return Ok(());
            }
            transport::Event::Guest { peer, address } => {
                self.on_guest(peer, address);
                return Ok(());
            }
            transport::Event::Told { peer, verdict } => return self.on_told(peer, verdict),
            transport::Event::Reads { peer, format } => {
                self.on_reads(peer, format);
                return Ok(());
            }
            transport::Event::Sync { peer, us } => {
                self.on_sync(peer, us);
                return Ok(());
            }
            transport::Event::Frame { from, frame, room: _room } => (from, frame),
        };
        self.on_heard(from);
        match frame {
            Frame::Raft(bytes) => match Message::decode(bytes) {
                Ok(message) if message.snapshot().is_some() => {
                    tracing::warn!(peer = from.0, "a snapshot was announced without its state");
                }
                Ok(message) => inputs.push(Input::Receive { from, message }),
                Err(error) => tracing::warn!(peer = from.0, %error, "a peer's message is malformed"),
            },
            Frame::Propose { entry, .. } if Entry::format_of(&entry).is_some_and(|f| f > self.options.entry_format) => {
                // No node proposes it before the cluster has agreed on it, and then this node would have stopped.
                tracing::warn!(peer = from.0, "a peer's proposal is of a format that is not known here");
            }
            Frame::Propose { number, entry } => {
                if self.role.is_leader && self.from_peers.contains(&(from, number)) {
                    // It was sent again while the first one is under way.
                    return Ok(());
                }
                let overloaded = self.role.is_leader && (self.overtakes(from, number) || !self.takes(entry.len()));
                self.refused.remove(&(from, number));
                if overloaded {
                    self.refused.insert((from, number), Instant::now());
                }
                if overloaded || !self.role.is_leader {
                    self.transport.send(from, Lane::Control, Frame::NotTaken { number, overloaded });
                    return Ok(());
                }
                match Entry::stamp(&entry, self.shared.time.now()) {
                    Ok(data) => {
                        self.from_peers.insert((from, number));
                        self.propose(data, Proposer::Peer { node: from, number }, inputs);
                    }
                    Err(error) => tracing::warn!(peer = from.0, %error, "a peer's proposal is malformed"),
                }
            }
            Frame::NotTaken { number, overloaded } => {
                let place = self.pending.get(&number).map(|pending| pending.place);
                // What was sent to another leader meanwhile stays there.
                if matches!(place, Some(Place::SentTo { leader, .. }) if leader == from) {
                    tracing::debug!(peer = from.0, number, overloaded, "a proposal was not taken");
                    self.unsend(number);
                    if overloaded && self.unsent_paused.is_none() {
                        self.pause_unsent();
                    } else if !overloaded && self.unsent_paused.is_none() {
                        // It does not lead any more, and will soon tell who does.
                        self.unsent_paused = Some(Instant::now() + OVERLOAD_PAUSE.0);
                    }
                }
            }
            Frame::SnapshotChunk(_) | Frame::SnapshotEnd(_) => {
                tracing::warn!(peer = from.0, "a piece of a snapshot came over the wrong lane");
            }
            Frame::Ask { number, request } => self.on_ask(from, number, request, inputs),
            Frame::Answer { number, answer } => self.on_answer(from, number, answer),
        }
        Ok(())
    }

    fn on_tick(&mut self, inputs: &mut Vec<Input<Machine>>) -> Result<(), Error> {
        let now = Instant::now();
        inputs.extend(std::mem::take(&mut self.dropped).into_iter().map(|peer| Input::Unreachable { peer }));
        // Ours first: those given up, then those to be sent again, in their order.
        let deadline = self.options.submit_deadline;
        let late: Vec<u64> =
            self.pending.iter().filter(|(_, p)| now - p.since > deadline).map(|(number, _)| *number).collect();
        for number in late {
            let pending = self.pending.remove(&number).expect("just listed");
            self.unsent.remove(&number);
            self.shared.counters.failed.fetch_add(1, Ordering::Relaxed);
            let error = if pending.ever_sent {
                Error::new(Code::TIMEOUT, "the commit did not come in time; its outcome is unknown")
                    .hint("read the state before repeating the request")
            } else {
                self.not_sent()
            };
            let _ = pending.reply.send(Err(SubmitError::Failed(error.retryable())));
        }
        while self.waiting.front().is_some_and(|waiting| now - waiting.since > deadline) {
            let waiting = self.waiting.pop_front().expect("the front was just there");
            self.shared.counters.failed.fetch_add(1, Ordering::Relaxed);
            let _ = waiting.reply.send(Err(SubmitError::Failed(self.not_sent().retryable())));
        }
        let wait = self.options.format_wait.min(deadline);
        while self.parked.front().is_some_and(|parked| now - parked.since > wait) {
            let parked = self.parked.pop_front().expect("the front was just there");
            self.shared.counters.failed.fetch_add(1, Ordering::Relaxed);
            let message =
                "not every member is known to read what this needs: one runs an older version, or was not there yet";
            let error = Error::new(Code::OLD_MEMBER, message)
                .retryable()
                .hint("upgrade, start or remove that member; see: buttress cluster status");
            let _ = parked.reply.send(Err(SubmitError::Failed(error)));
        }
        let silent = |p: &Pending| matches!(p.place, Place::SentTo { at, .. } if now - at > p.patience);
        let again: Vec<u64> = self.pending.iter().filter(|(_, p)| silent(p)).map(|(number, _)| *number).collect();
        for number in again {
            let pending = self.pending.get_mut(&number).expect("just listed");
            pending.patience = (2 * pending.patience).min(RESEND_MAX);
            self.unsend(number);
        }
        // Reads: a barrier that got no answer is asked again, and given up at last.
        let stale: Vec<u64> =
            self.barriers.iter().filter(|(_, b)| now - b.since > self.options.read_deadline).map(|(t, _)| *t).collect();
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
        self.tell_checkpoint(inputs);
        self.replica.machine_mut().store_mut().maybe_checkpoint(self.started.elapsed().as_millis() as u64);
        let memory = self.replica.status().engine.log_memory_bytes as u64;
        self.shared.counters.log_memory_bytes.store(memory, Ordering::Relaxed);
        self.tick_members(inputs)?;
        self.checkpoint_for_backups();
        self.publish_view();
        Ok(())
    }

    /// Why an entry was never sent.
    fn not_sent(&self) -> Error {
        match self.role.leader {
            None => Error::new(Code::NO_LEADER, "no leader is known").hint("retry; see `buttress cluster status`"),
            Some(leader) => Error::new(Code::OVERLOADED, format!("the leader, node {leader}, takes no more for now"))
                .hint("retry after a pause"),
        }
    }

    /// Gives every lease its whole time again where a step of the cluster's time may have taken some of it. `true` when
    /// what is due may end.
    fn renew_leases(&mut self, inputs: &mut Vec<Input<Machine>>) -> bool {
        let heard_all = self.knows_members();
        let (owed, may_end) = self.shared.time.with(|clock, _| (clock.owes_renewal(), clock.may_end(heard_all)));
        let Some(step) = owed else { return may_end };
        if !heard_all || self.renewal.as_ref().is_some_and(Renewal::waits) {
            return may_end;
        }
        let leases = self.replica.machine().leases();
        let mut renewal = self.renewal.take().unwrap_or_else(|| Renewal::of(leases.set_before(step), ENTRY_PARTS_MAX));
        let lives = |lease| leases.get(lease).is_some();
        let Some(entry) = renewal.next(self.next_tag, self.shared.time.now(), lives) else {
            self.shared.time.with(|clock, _| clock.renewed());
            return true;
        };
        self.renewal = Some(renewal);
        self.propose(entry.encode(), Proposer::Clock, inputs);
        false
    }

    /// Proposes what is due by the cluster's time: leases and timers, retention now and then, and the rest of a compaction.
    fn propose_due(&mut self, inputs: &mut Vec<Input<Machine>>) {
        let now = self.shared.time.now();
        let may_end = self.renew_leases(inputs);
        let machine = self.replica.machine();
        let mut trims = Vec::new();
        if self.retention_at <= Instant::now() {
            trims = machine.retention(now);
            // What does not fit into one entry comes with the next look.
            trims.truncate(ENTRY_PARTS_MAX);
            self.retention_at = Instant::now() + self.options.retention_every;
        }
        if may_end && self.expiry.is_none() && machine.next_deadline().is_some_and(|due| due <= now) {
            let data = Entry { time: now, expire: true, ..Entry::default() }.encode();
            self.expiry = Some(self.propose(data, Proposer::Clock, inputs));
        }
        // Every entry removes a part of what a compaction has made invisible; where none comes by itself, this one does.
        if self.sweep.is_none() && self.expiry.is_none() && self.replica.machine().keys().unswept() {
            let data = Entry { time: now, ..Entry::default() }.encode();
            self.sweep = Some(self.propose(data, Proposer::Clock, inputs));
        }
        if self.raising.is_none() && self.format < self.options.entry_format && self.knows_members() {
            let format = self.all_read();
            if format > self.format {
                let data = buttress_state::machine::raise(format, now).encode();
                self.raising = Some(self.propose(data, Proposer::Clock, inputs));
            }
        }
        if !trims.is_empty() {
            let data = Entry { time: now, topics: trims, ..Entry::default() }.encode();
            self.propose(data, Proposer::Clock, inputs);
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
            Notice::Checkpointed { index, term } => {
                self.checkpoint = Some((index, term));
                self.tell_checkpoint(inputs);
                self.checkpoint_for_backups();
            }
            Notice::Failed(error) => return Err(error),
            Notice::StoreHasRoom => {
                self.unsent_paused = None;
                self.overload_pause = OVERLOAD_PAUSE.0;
            }
            // What the log on disk should have and has not is as final as at a start.
            Notice::Fetched { low, result } => inputs.push(Input::Fetched { low, entries: result? }),
            Notice::SnapshotSent { to, result } => {
                match &result {
                    Ok(()) => tracing::info!(peer = to.0, event_type = "snapshot_sent", "snapshot sent"),
                    Err(error) => tracing::warn!(peer = to.0, %error, "snapshot could not be sent"),
                }
                match self.sending.remove(&to).flatten() {
                    // The answer would be taken for the later one's.
                    Some(next) => self.send_snapshot(to, next),
                    None => inputs.push(Input::SnapshotSent { to, ok: result.is_ok() }),
                }
            }
            Notice::SnapshotReceived { from, message, received, taken } => {
                self.arrivals.push_back(Arrival { from, message: *message, received, taken });
            }
        }
        Ok(())
    }

    /// Sends a follower the store, one at a time: consensus may want the next before it hears what became of this one.
    fn send_snapshot(&mut self, to: NodeId, message: Message) {
        if let Some(next) = self.sending.get_mut(&to) {
            *next = Some(message);
            return;
        }
        self.sending.insert(to, None);
        self.shared.counters.snapshots_sent.fetch_add(1, Ordering::Relaxed);
        let address = self.transport.address_of(to).unwrap_or_default().to_owned();
        let hello = self.transport.hello(to, Lane::Snapshot);
        snapshots::send(hello, address, message, self.store.clone(), self.notify.clone());
    }

    fn inspect(&self) -> Inspection {
        Inspection {
            consensus: self.replica.status(),
            store_pending_bytes: self.replica.machine().store().pending_bytes(),
            waiting: self.waiting.len() + self.pending.len(),
            sending_snapshots: self.sending.keys().copied().collect(),
            up: self.started.elapsed(),
        }
    }

    /// Lets backups go on whose checkpoint is there, and begins one for the others.
    fn checkpoint_for_backups(&mut self) {
        if self.checkpoints_wanted.is_empty() {
            return;
        }
        let reached = self.store.stats().checkpoint_index.load(Ordering::SeqCst);
        for (_, reply) in self.checkpoints_wanted.extract_if(.., |(index, _)| index.0 <= reached) {
            let _ = reply.send(());
        }
        self.checkpoints_wanted.retain(|(_, reply)| !reply.is_closed());
        if !self.checkpoints_wanted.is_empty() {
            self.replica.machine_mut().store_mut().begin_checkpoint();
        }
    }

    /// Lets consensus forget the log before the latest checkpoint, once the followers that can be reached have it. Without
    /// this, one that takes a snapshot while the log moves on would need the next as soon as it has it.
    fn tell_checkpoint(&mut self, inputs: &mut Vec<Input<Machine>>) {
        let Some((index, term)) = self.checkpoint else { return };
        let status = self.replica.status().engine;
        let wanted = status.peers.iter().any(|peer| peer.active && peer.matched < index);
        if !wanted || status.log_bytes > self.options.lagging_log_bytes_max {
            self.checkpoint = None;
            inputs.push(Input::Checkpointed { index, term });
        }
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
        match (outputs.install, self.arriving.take()) {
            (Some(meta), Some(arrival)) => {
                inputs.push(self.install(meta, arrival.received)?);
                let _ = arrival.taken.send(());
            }
            (Some(_), None) => {
                return Err(Error::new(Code::CORRUPT, "consensus accepted a snapshot whose state has not come"));
            }
            // Not needed after all: dropping the state removes its files.
            (None, Some(arrival)) => drop(arrival.taken.send(())),
            (None, None) => {}
        }
        let follows = outputs.role.is_some_and(|role| !role.is_leader || role.term != self.role.term);
        if follows && self.role.is_leader {
            // What is applied may be another leader's already, and its time counts.
            self.renewal = None;
            self.shared.time.with(ClusterClock::follow);
        }
        self.on_applied(outputs.applied)?;
        if let Some((index, members)) = outputs.members {
            let meta = SnapshotMeta { index, term: self.role.term, members: members.clone() }.encode();
            self.replica.machine_mut().store_mut().set_meta(meta);
            self.on_members(members)?;
        }
        self.finish_changes();
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
        outputs.fetch.into_iter().for_each(|fetch| self.fetch(fetch));
        Ok(())
    }

    /// Reads from the log on disk what a follower needs that lags further than memory goes.
    fn fetch(&self, fetch: Fetch) {
        self.shared.counters.log_reads.fetch_add(1, Ordering::Relaxed);
        let (reader, notify) = (self.log_reader.clone(), self.notify.clone());
        // One per follower at a time, of at most a message and a frame.
        tokio::task::spawn_blocking(move || {
            let result = wal::recovery::fetch(&reader, SHARD, &fetch);
            let _ = notify.send(Notice::Fetched { low: fetch.low, result });
        });
    }

    /// Puts a received snapshot in the place of the store.
    fn install(&mut self, meta: SnapshotMeta, received: ReceivedSnapshot) -> Result<Input<Machine>, Error> {
        tracing::info!(index = meta.index.0, event_type = "snapshot_installed", "installing a snapshot");
        let store = self.store.install(received)?;
        let limits = buttress_state::Limits { entry_format: self.options.entry_format, ..Default::default() };
        let machine = Machine::open_with(store, limits)
            .map_err(|error| Error::new(Code::CORRUPT, format!("the snapshot's state cannot be rebuilt: {error}")))?;
        self.shared.counters.snapshots_installed.fetch_add(1, Ordering::Relaxed);
        self.checkpoint = None;
        self.publish(&machine);
        self.shared.time.with(|clock, clocks| clock.installed(clocks, machine.clock()));
        let format = self.format_of(&machine)?;
        self.take_format(format)?;
        Ok(Input::Installed { snapshot: meta, machine: Box::new(machine) })
    }

    fn post(&mut self, messages: Vec<(NodeId, Message)>) {
        for (to, message) in messages {
            let lane = if message.is_bulk() { Lane::Data } else { Lane::Control };
            for piece in pieces(message, APPEND_BYTES_MAX) {
                if !self.transport.send(to, lane, Frame::Raft(piece.encode())) {
                    // The follower could not join what comes behind the gap.
                    self.dropped.insert(to);
                    break;
                }
            }
        }
    }

    fn on_applied(&mut self, applied: Vec<Applied<Effects>>) -> Result<(), Error> {
        let Some(last) = applied.last() else { return Ok(()) };
        if let Some(error) = &last.effects.fatal {
            // The machine changes nothing any more from the entry on that it could not judge, so the last one tells.
            return Err(error.clone());
        }
        if self.format < self.options.entry_format {
            let format = self.format_of(self.replica.machine())?;
            self.take_format(format)?;
        }
        self.group.applied_term = last.term;
        self.shared.counters.applied_entries.fetch_add(applied.len() as u64, Ordering::Relaxed);
        // Everything that edges look at is moved before anybody is answered, so that whoever has a receipt sees its entry.
        let grown = if applied.iter().any(|applied| !applied.effects.topics.is_empty()) {
            self.publish(self.replica.machine())
        } else {
            self.move_shared(&applied)
        };
        self.shared.counters.applied_records.fetch_add(grown, Ordering::Relaxed);
        let machine = self.replica.machine();
        // One by one, for a step among them is seen by what came just before.
        self.shared.time.with(|clock, clocks| {
            for Applied { term, effects, .. } in &applied {
                clock.heard(clocks, effects.time, self.role.is_leader && self.role.term == *term);
            }
        });
        for applied in &applied {
            self.shared.ring.push(&applied.effects.kvs, |key, at| machine.was(key, at));
            self.shared.followed.changed(&applied.effects.kvs);
        }
        let revision = machine.revision();
        self.shared.revision.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
        self.publish_view();
        for Applied { tag, effects, .. } in applied {
            if let (Some(tag), Some(renewal)) = (tag, &mut self.renewal) {
                renewal.settle(tag, effects.result.is_ok());
            }
            if let Some(tag) = tag
                && let Some(Proposer::Change { by, done }) = self.settle_proposal(tag)
            {
                self.group.finishing.push((by, done));
            }
            if let Some(request) = effects.request
                && request.client == self.config.client
                && let Some(pending) = self.pending.remove(&request.number)
            {
                self.unsent.remove(&request.number);
                self.overload_pause = OVERLOAD_PAUSE.0;
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
        Ok(())
    }

    /// Moves ends, starts and cursors as the entries did, and gives by how many records the logs grew.
    fn move_shared(&self, applied: &[Applied<Effects>]) -> u64 {
        let mut grown = 0;
        let logs = self.shared.logs.read().expect("no holder panics");
        for effects in applied.iter().map(|applied| &applied.effects) {
            for (log, end) in &effects.ends {
                grown += logs.get(log).map_or(0, |state| state.move_to(None, *end));
            }
            for (log, start) in &effects.starts {
                if let Some(state) = logs.get(log) {
                    state.start.fetch_max(start.0, Ordering::AcqRel);
                }
            }
        }
        drop(logs);
        if applied.iter().any(|applied| !applied.effects.cursors.is_empty()) {
            let mut cursors = self.shared.cursors.write().expect("no holder panics");
            for (group, log, position) in applied.iter().flat_map(|applied| &applied.effects.cursors) {
                match position {
                    Some(position) => {
                        cursors.entry(group.clone()).or_default().insert(*log, position.clone());
                    }
                    None => {
                        if let Some(logs) = cursors.get_mut(group) {
                            logs.remove(log);
                            if logs.is_empty() {
                                cursors.remove(group);
                            }
                        }
                    }
                }
            }
        }
        grown
    }

    /// The newest format that every member is known to read, as of this state.
    fn format_of(&self, machine: &Machine) -> Result<u8, Error> {
        let unread = |error| Error::new(Code::DISK, format!("the state cannot be read: {error}"));
        Ok(machine.entry_format().map_err(unread)?.max(self.options.entry_format_of_all))
    }

    /// The cluster has agreed on a format: what waited for it goes on, ahead of what came later.
    fn take_format(&mut self, format: u8) -> Result<(), Error> {
        let own = self.options.entry_format;
        if format > own {
            let message = format!("the cluster writes entries of format {format}, and this version reads up to {own}");
            return Err(
                Error::new(Code::FORMAT, message).hint("run the version of buttress that the other members run")
            );
        }
        if format > self.format {
            tracing::info!(format, event_type = "entry_format", "every member reads this format of entries");
            self.format = format;
            while let Some(parked) = self.parked.pop_back() {
                self.waiting.push_front(parked);
            }
        }
        Ok(())
    }

    /// A proposal is no longer under way in this leader's log.
    fn settle_proposal(&mut self, tag: u64) -> Option<Proposer> {
        for clock in [&mut self.expiry, &mut self.sweep, &mut self.raising] {
            if *clock == Some(tag) {
                *clock = None;
            }
        }
        let proposer = self.proposed.remove(&tag);
        if let Some(Proposer::Peer { node, number }) = proposer {
            self.from_peers.remove(&(node, number));
        }
        proposer
    }

    fn on_proposal_failed(&mut self, tag: u64, error: &ProposalError) {
        let overloaded = matches!(error, ProposalError::Overloaded);
        if let Some(renewal) = &mut self.renewal {
            renewal.settle(tag, false);
        }
        match self.settle_proposal(tag) {
            Some(Proposer::Own { number }) => {
                self.unsend(number);
                if overloaded {
                    self.pause_unsent();
                }
            }
            Some(Proposer::Peer { node, number }) => {
                if overloaded {
                    self.refused.insert((node, number), Instant::now());
                }
                self.transport.send(node, Lane::Control, Frame::NotTaken { number, overloaded });
            }
            Some(Proposer::Change { by, done }) => self.on_change_failed(by, &done, error),
            Some(Proposer::Clock) | None => {}
        }
    }

    fn on_role(&mut self, role: Role, inputs: &mut Vec<Input<Machine>>) {
        let before = std::mem::replace(&mut self.role, role);
        if role.is_leader && (!before.is_leader || before.term != role.term) {
            self.shared.time.with(ClusterClock::lead);
        }
        self.on_role_of_members(before);
        if role.leader.is_none() && self.leaderless_since.is_none() {
            self.leaderless_since = Some(Instant::now());
        }
        if role.leader.is_some() {
            if let Some(since) = self.leaderless_since.take() {
                self.shared.counters.election.record_us(since.elapsed().as_micros() as u64);
            }
            if before.leader != role.leader {
                self.shared.counters.leader_changes.fetch_add(1, Ordering::Relaxed);
                self.shared.note_leader(LeaderSeen {
                    at: self.shared.time.wall(),
                    leader: role.leader,
                    term: role.term,
                });
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
            let sent = |p: &Pending| !matches!(p.place, Place::Here) || !role.is_leader;
            let numbers: Vec<u64> = self.pending.iter().filter(|(_, p)| sent(p)).map(|(number, _)| *number).collect();
            for number in numbers {
                self.pending.get_mut(&number).expect("just listed").patience = self.options.resend_after;
                self.unsend(number);
            }
            self.unsent_paused = None;
            self.overload_pause = OVERLOAD_PAUSE.0;
            self.headroom = None;
            self.refused.clear();
            self.send_unsent(inputs);
        }
        self.publish_view();
    }

    fn persist(&mut self, mut persist: Persist) {
        self.log.submit(wal::recovery::job(SHARD, &mut persist));
        if !persist.then_send.is_empty() {
            self.after_sync.push_back((persist.ticket, persist.then_send));
        }
    }

    /// Shows edges what topics, partitions and cursors there are, and gives by how many records the logs grew.
    fn publish(&self, machine: &Machine) -> u64 {
        let topics = machine.topics();
        let mut grown = 0;
        let mut logs = self.shared.logs.write().expect("no holder panics");
        let live: HashSet<LogId> = topics.iter().flat_map(|t| &t.partitions).map(|p| p.log).collect();
        let gone: Vec<_> = logs.extract_if(|log, _| !live.contains(log)).map(|(_, state)| state).collect();
        for partition in topics.iter().flat_map(|t| &t.partitions) {
            grown += logs.entry(partition.log).or_default().move_to(Some(partition.start), partition.end);
        }
        drop(logs);
        // Whoever waits for one of them looks again and finds it gone.
        gone.iter().for_each(|state| state.grown.notify_waiters());
        let topics = topics.into_iter().map(|topic| (topic.name.clone(), topic)).collect();
        *self.shared.topics.write().expect("no holder panics") = Arc::new(topics);
        let mut cursors: HashMap<String, BTreeMap<LogId, CursorView>> = HashMap::new();
        for (log, group, position) in machine.cursors().iter() {
            cursors.entry(group.to_owned()).or_default().insert(log, position.clone());
        }
        *self.shared.cursors.write().expect("no holder panics") = cursors;
        let revision = machine.revision();
        self.shared.revision.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
        self.shared.followed.all_changed(revision);
        grown
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

/// What a submitter is told when the node stops while its entry is under way.
pub(super) fn unknown_at_stop() -> Error {
    Error::new(Code::TIMEOUT, "the node stopped before the commit was seen; its outcome is unknown")
        .retryable()
        .hint("read the state on another node before repeating the request")
}

/// Stands where a message was taken out.
fn empty_message() -> Message {
    Message { from: NodeId(0), to: NodeId(0), term: Term(0), body: Body::TimeoutNow }
}

/// Cuts a message with many entries into several that fit a frame each; they say the same.
fn pieces(message: Message, bytes_max: usize) -> Vec<Message> {
    let Message { from, to, term, body } = message;
    let Body::Append { mut prev_index, mut prev_term, commit, entries } = body else {
        return vec![Message { from, to, term, body }];
    };
    let piece = |prev_index, prev_term, entries| {
        let body = Body::Append { prev_index, prev_term, commit, entries };
        Message { from, to, term, body }
    };
    let mut out = Vec::new();
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for entry in entries {
        let size = entry.size();
        if !taken.is_empty() && bytes + size > bytes_max {
            let full: Vec<LogEntry> = std::mem::take(&mut taken);
            let last = full.last().map(|last| (last.index, last.term)).expect("it is not empty");
            out.push(piece(prev_index, prev_term, full));
            (prev_index, prev_term) = last;
            bytes = 0;
        }
        bytes += size;
        taken.push(entry);
    }
    out.push(piece(prev_index, prev_term, taken));
    out
}

#[cfg(test)]
mod tests {
    use buttress_consensus::EntryKind;

    use super::*;

    #[test]
    fn a_message_in_pieces_says_the_same() {
        let entry = |index: u64, term: u64, bytes: usize| LogEntry {
            index: Index(index),
            term: Term(term),
            kind: EntryKind::Normal,
            data: vec![index as u8; bytes].into(),
        };
        let entries: Vec<LogEntry> =
            [10, 900, 10, 5000, 10, 10].into_iter().zip(5..).map(|(bytes, i)| entry(i, 1 + i / 7, bytes)).collect();
        let append = |prev_index: u64, prev_term: u64, entries: &[LogEntry]| Message {
            from: NodeId(1),
            to: NodeId(2),
            term: Term(3),
            body: Body::Append {
                prev_index: Index(prev_index),
                prev_term: Term(prev_term),
                commit: Index(9),
                entries: entries.to_vec(),
            },
        };
        let cut = pieces(append(4, 1, &entries), 1300);
        // A single entry that is larger goes alone; each piece joins the one before.
        let expected = [
            append(4, 1, &entries[..2]),
            append(6, 1, &entries[2..3]),
            append(7, 2, &entries[3..4]),
            append(8, 2, &entries[4..]),
        ];
        assert_eq!(cut, expected);
        assert_eq!(pieces(append(4, 1, &entries), usize::MAX), [append(4, 1, &entries)]);
        assert_eq!(pieces(append(4, 1, &[]), 1), [append(4, 1, &[])], "an empty one is what it was");
    }
}
