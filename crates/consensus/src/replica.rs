//! The replica: consensus and a machine, joined into one thing that is only ever stepped.
//!
//! `step` takes everything that happened since the last turn and answers everything that follows, so that a host with
//! many inputs waiting gets few, large outputs: proposals of a turn become one append per follower and one record for
//! the write-ahead log, reads of a turn become one round. The rules that the host keeps are few:
//!
//! 1. `messages` may go at once, even before `persist` is durable: that is what lets a leader replicate and sync at the
//!    same time. `persist.then_send` must wait until that persist and all earlier ones are durable.
//! 2. Persists become durable in order, each wholly. Then, and before what `then_send` causes can arrive, the host
//!    answers [`Input::Persisted`]. After a failed sync it stops.
//! 3. A message of `snapshots` is delivered after the state it announces has arrived at the receiver, as whatever
//!    index that state then has ([`Message::retarget_snapshot`]); then the host answers [`Input::SnapshotSent`].
//! 4. The receiver hands that message in as any other. If `install` comes out of that very step, the host puts the
//!    state in place of its store, durably, and answers [`Input::Installed`] with a machine on it; otherwise it was
//!    not needed and is thrown away.
//! 5. Each of `fetch` is read from the durable log, and answered with [`Input::Fetched`]. It may take its time: no other
//!    input waits for it.
//! 6. `fatal` means that this node lost what it had acknowledged: it must stop and never come back under its id.
//!
//! The machine is applied to inside `step`, entry by entry in log order, and never before an entry is committed and
//! durable here.

use std::collections::VecDeque;

use buttress_core::{Code, Error, Index, Machine, Mutant, NodeId, Term, limits::ENTRY_BYTES_MAX, mutant};
use bytes::Bytes;

use crate::{
    config::{Config, Restored},
    consensus::{Consensus, EngineStatus, Ready, StepError},
    engine::RaftEngine,
    message::Message,
    rng::Rng,
    types::{EntryKind, Fetch, HardState, LogEntry, MemberChange, Members, ProposalError, Role, SnapshotMeta},
};

/// Reads that wait for their index; at most this many rounds, each with any number of reads.
const READ_ROUNDS_MAX: usize = 1024;
/// A read that got no answer within this many election timeouts has failed.
const READ_TIMEOUT_ELECTIONS: u32 = 4;

/// What happened.
#[derive(Debug)]
pub enum Input<M> {
    /// One tick of time passed.
    Tick,
    /// A message from a member, whom the transport has authenticated.
    Receive {
        from: NodeId,
        message: Message,
    },
    /// Somebody wants this entry logged. The tag comes back in [`Applied`] or [`Outputs::failed`], exactly once.
    Propose {
        tag: u64,
        data: Bytes,
    },
    /// Somebody wants to read what is true now. The tag comes back in [`Outputs::reads`] or
    /// [`Outputs::reads_failed`], exactly once.
    ReadIndex {
        tag: u64,
    },
    /// This persist and all earlier ones are durable.
    Persisted {
        ticket: u64,
    },
    /// The store is durable up to here: it may be offered as a snapshot, and the log behind it may be forgotten.
    Checkpointed {
        index: Index,
        term: Term,
    },
    /// A snapshot message was delivered together with its state, or could not be.
    SnapshotSent {
        to: NodeId,
        ok: bool,
    },
    /// What a [`Fetch`] that began at `low` gave: entries from there on as the durable log has them; none if it has them no
    /// more.
    Fetched {
        low: Index,
        entries: Vec<LogEntry>,
    },
    /// The transport lost its connection to a member.
    Unreachable {
        peer: NodeId,
    },
    /// The state that `install` asked for is in place, with a machine on it.
    Installed {
        snapshot: SnapshotMeta,
        /// Boxed, for it is large and every other input would take as much room.
        machine: Box<M>,
    },
    Change(MemberChange),
    /// Hand leadership over, if this node leads.
    Transfer {
        to: NodeId,
    },
}

/// What must become durable, as one unit.
#[derive(Debug, Default)]
pub struct Persist {
    /// Grows with every persist.
    pub ticket: u64,
    /// Every entry that the durable log holds is void, for this snapshot has taken their place: the log begins anew
    /// behind it. `entries` come after.
    pub reset: Option<SnapshotMeta>,
    pub hard_state: Option<HardState>,
    /// The first one's index truncates what the log had from there on.
    pub entries: Vec<LogEntry>,
    /// May go once this persist and all earlier ones are durable.
    pub then_send: Vec<(NodeId, Message)>,
}

/// A committed entry, applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied<E> {
    pub index: Index,
    pub term: Term,
    /// The proposal's, where it was proposed by this node in this term.
    pub tag: Option<u64>,
    pub effects: E,
}

/// What follows. Everything may be empty.
#[derive(Debug)]
pub struct Outputs<M: Machine> {
    /// May go now.
    pub messages: Vec<(NodeId, Message)>,
    pub persist: Option<Persist>,
    /// To followers that are too far behind: stream the store, then deliver the message.
    pub snapshots: Vec<(NodeId, Message)>,
    /// The snapshot received in this step was accepted: put the store in place and answer `Installed`.
    pub install: Option<SnapshotMeta>,
    /// In log order without gaps.
    pub applied: Vec<Applied<M::Effects>>,
    pub failed: Vec<(u64, ProposalError)>,
    /// Reads that may be served now: the machine has applied the index.
    pub reads: Vec<(u64, Index)>,
    pub reads_failed: Vec<u64>,
    /// Set where leader, term or leadership changed, and in the first step.
    pub role: Option<Role>,
    /// Set where an applied entry or an accepted snapshot changed the members, with its index; and in the first step.
    pub members: Option<(Index, Members)>,
    /// The write-ahead log may forget everything before.
    pub log_start: Option<Index>,
    /// Followers need these entries, which are durable here and no longer in memory: read them from the durable log and
    /// answer each with [`Input::Fetched`], in any order.
    pub fetch: Vec<Fetch>,
    /// A follower waits for a snapshot and there was no checkpoint yet: make one.
    pub checkpoint_wanted: bool,
    /// More is ready than one step takes: step again at once, with or without inputs.
    pub more: bool,
    pub fatal: Option<Error>,
}

impl<M: Machine> Default for Outputs<M> {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            persist: None,
            snapshots: Vec::new(),
            install: None,
            applied: Vec::new(),
            failed: Vec::new(),
            reads: Vec::new(),
            reads_failed: Vec::new(),
            role: None,
            members: None,
            log_start: None,
            fetch: Vec::new(),
            checkpoint_wanted: false,
            more: false,
            fatal: None,
        }
    }
}

/// A replica at a glance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub engine: EngineStatus,
    /// When leader or term last changed, on the host's monotonic clock.
    pub role_since_ms: u64,
    /// A snapshot is being put in place.
    pub installing: bool,
    pub pending_proposals: usize,
    pub pending_reads: usize,
    /// Messages that were refused since the start.
    pub messages_dropped: u64,
    /// Why the latest of them was.
    pub last_drop: Option<&'static str>,
}

struct Proposed {
    index: Index,
    term: Term,
    tag: u64,
}

/// Reads that share one round.
struct Round {
    number: u64,
    tags: Vec<u64>,
    asked: bool,
    index: Option<Index>,
    age_ticks: u32,
}

/// One member: a consensus engine and the machine it feeds.
pub struct Replica<M: Machine, C: Consensus = RaftEngine> {
    id: NodeId,
    config: Config,
    engine: C,
    machine: M,
    nonce: u64,
    proposals: Vec<(u64, Bytes)>,
    proposed: VecDeque<Proposed>,
    new_reads: Vec<u64>,
    rounds: VecDeque<Round>,
    round_number: u64,
    /// Persists handed out and not yet durable.
    tickets: VecDeque<u64>,
    last_number: u64,
    /// Messages that wait for a persist of an earlier step.
    held: VecDeque<(u64, Vec<Message>)>,
    installing: Option<SnapshotMeta>,
    role: Option<Role>,
    role_since_ms: u64,
    members: Option<Members>,
    messages_dropped: u64,
    last_drop: Option<&'static str>,
    fatal: Option<Error>,
}

impl<M: Machine> Replica<M> {
    /// # Errors
    /// Settings that make no sense, and a restored state that lacks what was acknowledged.
    pub fn new(config: Config, restored: Restored, machine: M) -> Result<Self, Error> {
        let stands = (restored.snapshot.index, restored.snapshot.term);
        if machine.applied() != stands {
            return Err(Error::new(
                Code::CORRUPT,
                format!("the store stands at {:?} and its snapshot description at {stands:?}", machine.applied()),
            ));
        }
        let engine = RaftEngine::new(&config, restored)?;
        Ok(Self::with_engine(config, engine, machine))
    }
}

impl<M: Machine, C: Consensus> Replica<M, C> {
    /// A replica on another engine.
    pub fn with_engine(config: Config, engine: C, machine: M) -> Self {
        // The engine draws from the seed itself; the nonce must not repeat its numbers.
        let nonce = Rng::new(config.seed ^ 0x7265_6164_2d69_6478).next();
        Self {
            id: config.id,
            config,
            engine,
            machine,
            nonce,
            proposals: Vec::new(),
            proposed: VecDeque::new(),
            new_reads: Vec::new(),
            rounds: VecDeque::new(),
            round_number: 0,
            tickets: VecDeque::new(),
            last_number: 0,
            held: VecDeque::new(),
            installing: None,
            role: None,
            role_since_ms: 0,
            members: None,
            messages_dropped: 0,
            last_drop: None,
            fatal: None,
        }
    }

    pub fn id(&self) -> NodeId {
        self.id
    }

    pub fn machine(&self) -> &M {
        &self.machine
    }

    pub fn machine_mut(&mut self) -> &mut M {
        &mut self.machine
    }

    /// Where the store stands now, for a checkpoint or a snapshot of it: hand it out together with the state itself.
    pub fn snapshot_meta(&self) -> SnapshotMeta {
        let (mut index, term) = self.machine.applied();
        if mutant::active(Mutant::SnapshotTooHigh) {
            index = index.next();
        }
        SnapshotMeta { index, term, members: self.members_at(index).unwrap_or_default() }
    }

    /// Members after the entry at `index`; known from the last checkpoint to the last applied entry.
    pub fn members_at(&self, index: Index) -> Option<Members> {
        self.engine.members_at(index)
    }

    pub fn role(&self) -> Role {
        self.engine.role()
    }

    pub fn status(&self) -> Status {
        Status {
            engine: self.engine.status(),
            role_since_ms: self.role_since_ms,
            installing: self.installing.is_some(),
            pending_proposals: self.proposed.len(),
            pending_reads: self.rounds.iter().map(|round| round.tags.len()).sum(),
            messages_dropped: self.messages_dropped,
            last_drop: self.last_drop,
        }
    }

    /// Takes what happened and gives what follows. `now_ms` is the host's monotonic clock; only [`Status`] shows it.
    pub fn step(&mut self, now_ms: u64, inputs: Vec<Input<M>>) -> Outputs<M> {
        let mut out = Outputs::default();
        for input in inputs {
            if self.fatal.is_some() {
                self.refuse(input, &mut out);
                continue;
            }
            self.take(input, &mut out);
        }
        if self.fatal.is_none() {
            self.flush_proposals(&mut out);
            self.ask_reads(&mut out);
            self.drain(&mut out);
            self.settle_role(now_ms, &mut out);
            self.answer_reads(&mut out);
            out.checkpoint_wanted = self.engine.wants_checkpoint();
            out.fetch = self.engine.fetches();
        } else {
            self.fail_everything(&mut out);
        }
        out.fatal.clone_from(&self.fatal);
        out
    }

    fn take(&mut self, input: Input<M>, out: &mut Outputs<M>) {
        match input {
            Input::Tick => {
                self.engine.tick();
                self.age_reads(out);
            }
            Input::Receive { from, message } => match self.engine.step(from, message) {
                Ok(()) => {}
                Err(StepError::Dropped(reason)) => {
                    self.messages_dropped += 1;
                    self.last_drop = Some(reason);
                }
                Err(StepError::Fatal(error)) => self.fatal = Some(error),
            },
            Input::Propose { tag, data } => {
                if data.len() > ENTRY_BYTES_MAX {
                    let error = ProposalError::TooLarge { got: data.len(), limit: ENTRY_BYTES_MAX };
                    out.failed.push((tag, error));
                } else {
                    self.proposals.push((tag, data));
                }
            }
            Input::ReadIndex { tag } => self.new_reads.push(tag),
            Input::Persisted { ticket } => self.persisted(ticket, out),
            Input::Checkpointed { index, term } => {
                if self.installing.is_none()
                    && let Some(start) = self.engine.checkpointed(index, term)
                {
                    out.log_start = Some(start);
                }
            }
            Input::SnapshotSent { to, ok } => self.engine.snapshot_sent(to, ok),
            Input::Fetched { low, entries } => self.engine.fetched(low, entries),
            Input::Unreachable { peer } => self.engine.unreachable(peer),
            Input::Installed { snapshot, machine } => {
                assert_eq!(Some(&snapshot), self.installing.as_ref(), "only what was asked for is installed");
                assert_eq!(machine.applied(), (snapshot.index, snapshot.term), "the machine stands elsewhere");
                self.installing = None;
                self.machine = *machine;
                self.engine.installed();
                out.log_start = Some(snapshot.index.next());
            }
            Input::Change(change) => {
                self.flush_proposals(out);
                match self.engine.change(&change.steps, &change.contacts) {
                    Ok((index, term)) => self.proposed.push_back(Proposed { index, term, tag: change.tag }),
                    Err(error) => out.failed.push((change.tag, error)),
                }
            }
            Input::Transfer { to } => {
                self.flush_proposals(out);
                self.engine.transfer(to);
            }
        }
    }

    fn persisted(&mut self, ticket: u64, out: &mut Outputs<M>) {
        while self.tickets.front().is_some_and(|at| *at <= ticket) {
            self.tickets.pop_front();
        }
        self.engine.persisted(ticket);
        while self.held.front().is_some_and(|(at, _)| *at <= ticket) {
            let (_, messages) = self.held.pop_front().expect("looked at above");
            messages.into_iter().for_each(|message| send(message, out));
        }
    }

    /// Turns the proposals of this step into one. Behind one that finds no room none is taken, so that no smaller one
    /// overtakes.
    fn flush_proposals(&mut self, out: &mut Outputs<M>) {
        let (mut bytes, mut full) = (0, false);
        let (mut tags, mut entries) = (Vec::with_capacity(self.proposals.len()), Vec::new());
        for (tag, data) in self.proposals.drain(..) {
            full = full || !self.engine.has_room(bytes, data.len());
            if !full {
                bytes += data.len();
                tags.push(tag);
                entries.push(data);
            } else {
                let role = self.engine.role();
                let error = if role.is_leader {
                    ProposalError::Overloaded
                } else {
                    ProposalError::NotLeader { leader: role.leader }
                };
                out.failed.push((tag, error));
            }
        }
        if entries.is_empty() {
            return;
        }
        match self.engine.propose(entries) {
            Ok((first, term)) => self.proposed.extend(tags.into_iter().zip(first.0..).map(|(tag, index)| Proposed {
                index: Index(index),
                term,
                tag,
            })),
            Err(error) => out.failed.extend(tags.into_iter().map(|tag| (tag, error.clone()))),
        }
    }

    /// Everything that the engine has ready, until nothing is or enough was applied for one step.
    fn drain(&mut self, out: &mut Outputs<M>) {
        let mut persist: Option<Persist> = None;
        let mut later = Vec::new();
        let mut applied_bytes = 0;
        while let Some(ready) = self.engine.ready() {
            let Ready { number, messages, after_persist, reset, hard_state, entries, snapshot, committed, reads } =
                ready;
            self.last_number = number;
            if let Some(meta) = snapshot {
                self.members = Some(meta.members.clone());
                out.members = Some((meta.index, meta.members.clone()));
                self.installing = Some(meta.clone());
                out.install = Some(meta);
            }
            if reset.is_some() || hard_state.is_some() || !entries.is_empty() {
                merge(persist.get_or_insert_with(Persist::default), number, reset, hard_state, entries);
            }
            messages.into_iter().for_each(|message| send(message, out));
            later.extend(after_persist);
            for entry in committed {
                applied_bytes += entry.size();
                self.apply(entry, out);
            }
            for (context, index) in reads {
                self.read_ready(&context, index);
            }
            if applied_bytes >= self.config.max_apply_bytes {
                out.more = true;
                break;
            }
        }
        // The engine's order among followers is that of its hash map.
        later.sort_by_key(|message: &Message| message.to);
        match (persist, self.tickets.back()) {
            (Some(mut persist), _) => {
                self.tickets.push_back(persist.ticket);
                let (snapshots, later): (Vec<_>, Vec<_>) =
                    later.into_iter().partition(|message| message.snapshot().is_some());
                persist.then_send = later.into_iter().map(|message| (message.to, message)).collect();
                if mutant::active(Mutant::AnswerBeforePersist) {
                    out.messages.append(&mut persist.then_send);
                }
                if !snapshots.is_empty() {
                    self.held.push_back((persist.ticket, snapshots));
                }
                out.persist = Some(persist);
            }
            (None, Some(ticket)) if !later.is_empty() => self.held.push_back((*ticket, later)),
            (None, _) => later.into_iter().for_each(|message| send(message, out)),
        }
        out.messages.sort_by_key(|(to, _)| *to);
        out.snapshots.sort_by_key(|(to, _)| *to);
    }

    fn apply(&mut self, entry: LogEntry, out: &mut Outputs<M>) {
        let (index, term) = (entry.index, entry.term);
        assert_eq!(index, self.machine.applied().0.next(), "entries are applied in order");
        let data = match entry.kind {
            EntryKind::Normal => entry.data,
            EntryKind::ConfChange => {
                let members = self.engine.apply_change(&entry);
                if self.members.as_ref() != Some(&members) {
                    self.members = Some(members.clone());
                    out.members = Some((index, members));
                }
                Bytes::new()
            }
        };
        let effects = self.machine.apply(index, term, data);
        assert_eq!(self.machine.applied(), (index, term), "the machine counts what it applied");
        let mut tag = None;
        while let Some(front) = self.proposed.front()
            && front.index <= index
        {
            let front = self.proposed.pop_front().expect("looked at above");
            if front.index == index && front.term == term {
                tag = Some(front.tag);
            } else {
                out.failed.push((front.tag, ProposalError::Lost));
            }
        }
        out.applied.push(Applied { index, term, tag, effects });
        self.engine.applied(index);
    }

    fn settle_role(&mut self, now_ms: u64, out: &mut Outputs<M>) {
        let role = self.engine.role();
        if self.role != Some(role) {
            if self.role.is_none() && out.members.is_none() {
                let index = self.machine.applied().0;
                let members = self.engine.members_at(index).unwrap_or_default();
                self.members = Some(members.clone());
                out.members = Some((index, members));
            }
            self.role = Some(role);
            self.role_since_ms = now_ms;
            out.role = Some(role);
            // Whoever was asked may not answer any more.
            self.rounds.iter_mut().for_each(|round| round.asked = false);
        }
        while self.proposed.front().is_some_and(|front| !role.is_leader || front.term != role.term) {
            let front = self.proposed.pop_front().expect("looked at above");
            out.failed.push((front.tag, ProposalError::Lost));
        }
    }

    fn context(&self, number: u64) -> Bytes {
        let mut context = Vec::with_capacity(24);
        for part in [self.id.0, self.nonce, number] {
            context.extend_from_slice(&part.to_be_bytes());
        }
        context.into()
    }

    /// Starts one round for the reads of this step, and asks again where nobody could be asked before.
    fn ask_reads(&mut self, out: &mut Outputs<M>) {
        if !self.new_reads.is_empty() {
            let tags = std::mem::take(&mut self.new_reads);
            if self.rounds.len() >= READ_ROUNDS_MAX {
                out.reads_failed.extend(tags);
            } else {
                self.round_number += 1;
                let number = self.round_number;
                self.rounds.push_back(Round { number, tags, asked: false, index: None, age_ticks: 0 });
            }
        }
        for position in 0..self.rounds.len() {
            let round = &self.rounds[position];
            if mutant::active(Mutant::NoReadBarrier) {
                self.rounds[position].index = Some(self.machine.applied().0);
            } else if !round.asked && round.index.is_none() {
                let context = self.context(round.number);
                self.rounds[position].asked = self.engine.read_index(context);
            }
        }
    }

    fn age_reads(&mut self, out: &mut Outputs<M>) {
        let is_leader = self.engine.role().is_leader;
        let (again, limit) = (2 * self.config.heartbeat_ticks, READ_TIMEOUT_ELECTIONS * self.config.election_ticks);
        for round in &mut self.rounds {
            round.age_ticks += 1;
            // A leader repeats its own question with every heartbeat; to a follower's a message may be lost.
            if !is_leader && round.age_ticks % again == 0 {
                round.asked = false;
            }
        }
        while let Some(front) = self.rounds.front()
            && front.age_ticks > limit
        {
            out.reads_failed.extend(self.rounds.pop_front().expect("looked at above").tags);
        }
    }

    fn read_ready(&mut self, context: &[u8], index: Index) {
        let number = context.last_chunk::<8>().map(|tail| u64::from_be_bytes(*tail));
        let round = self.rounds.iter_mut().find(|round| Some(round.number) == number);
        if let Some(round) = round
            && round.index.is_none()
            && self.id.0.to_be_bytes() == context[..8]
            && self.nonce.to_be_bytes() == context[8..16]
        {
            round.index = Some(index);
        }
    }

    fn answer_reads(&mut self, out: &mut Outputs<M>) {
        if self.rounds.is_empty() || self.installing.is_some() {
            return;
        }
        let applied = self.machine.applied().0;
        self.rounds.retain_mut(|round| match round.index {
            Some(index) if index <= applied || mutant::active(Mutant::ReadBeforeApply) => {
                out.reads.extend(round.tags.drain(..).map(|tag| (tag, index)));
                false
            }
            _ => true,
        });
    }

    fn fail_everything(&mut self, out: &mut Outputs<M>) {
        out.failed.extend(self.proposed.drain(..).map(|proposed| (proposed.tag, ProposalError::Lost)));
        let not_leader = ProposalError::NotLeader { leader: None };
        out.failed.extend(self.proposals.drain(..).map(|(tag, _)| (tag, not_leader.clone())));
        out.reads_failed.append(&mut self.new_reads);
        out.reads_failed.extend(self.rounds.drain(..).flat_map(|round| round.tags));
    }

    fn refuse(&mut self, input: Input<M>, out: &mut Outputs<M>) {
        let not_leader = ProposalError::NotLeader { leader: None };
        match input {
            Input::Propose { tag, .. } | Input::Change(MemberChange { tag, .. }) => out.failed.push((tag, not_leader)),
            Input::ReadIndex { tag } => out.reads_failed.push(tag),
            _ => {}
        }
    }
}

fn send<M: Machine>(message: Message, out: &mut Outputs<M>) {
    let to = message.to;
    if message.snapshot().is_some() {
        out.snapshots.push((to, message));
    } else {
        out.messages.push((to, message));
    }
}

/// Adds what a later batch of the same step must make durable.
fn merge(
    persist: &mut Persist,
    number: u64,
    reset: Option<SnapshotMeta>,
    hard_state: Option<HardState>,
    mut entries: Vec<LogEntry>,
) {
    persist.ticket = number;
    if reset.is_some() {
        persist.reset = reset;
        persist.entries.clear();
    }
    if let Some(mut new) = hard_state {
        // Never more than what was durable before the whole persist.
        if let Some(old) = persist.hard_state {
            new.commit = new.commit.min(old.commit);
        }
        persist.hard_state = Some(new);
    }
    if let Some(first) = entries.first() {
        let keep = persist.entries.partition_point(|entry| entry.index < first.index);
        persist.entries.truncate(keep);
        persist.entries.append(&mut entries);
    }
}
