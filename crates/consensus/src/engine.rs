//! The production engine: TiKV's `raft` crate behind [`Consensus`], and everything that contains its sharp edges.
//!
//! The crate is a faithful Raft with pre-vote, check-quorum, joint consensus and pipelined, asynchronous appends, but
//! it trusts its callers: it panics on messages that cannot be, and a few that can. Nothing reaches it here that was
//! not checked against the log first. What is contained, each with tests of this name in `traps.rs`:
//!
//! - `stale_rejection_*`: a delayed rejection in probe state sets a follower's next index at or below what it has
//!   already matched (tikv/raft-rs#557). A rejection at or below `matched` is dropped.
//! - `gap_*`, `lost_tail_*`: an append with an index gap, and a heartbeat that commits more than the log holds, panic.
//!   The first is dropped; the second proves that this node lost what it acknowledged, and is fatal.
//! - `batched_*`: entries that a probe sends again are put into an append without entries that waits for the same
//!   follower, though that one follows a later entry. The follower would drop it as one with a gap, and hear nothing more
//!   until the next heartbeat. What it follows is set right on its way out.
//! - `follower_never_forwards_*`: `propose` on a follower returns `Ok` and forwards. The role is asked first.
//! - `undurable_*`: winning an election while entries are not yet durable panics. Such a campaign does not start.
//! - `sole_voter_*`: a group's only voter leads the moment it campaigns, before its own vote is durable; sending to
//!   learners then could show them two different entries at one index and term. Its messages wait for the vote.
//! - `removed_leader_*`: a leader that removed itself panics on its next persist. It steps down at once.
//! - `impossible_change_*`: a change of members that comes too early is replaced by an empty entry in silence. It is
//!   planned here first, and refused.
//! - `two_changes_*`: members count from when they are applied, which is safe only while no candidate is more than one
//!   change behind its own log (etcd-io/etcd#7625). A restart takes every change but the last as committed.
//! - `installing_*`: a follower between accepting a snapshot and having it in place has neither the old log nor the
//!   new state; an election then panics. Until it is in place no time passes and no entry is taken, but heartbeats
//!   and votes are answered.
//!
//! Election timeouts: the crate draws them from the thread's generator. After every call that could have drawn one it
//! is overwritten with ours, and ours changes exactly when role or term does; so a run is determined by its seeds.
//!
//! Conf-change entries: the crate parses the data of a proposed one as protobuf. It is given that here, written by
//! itself a moment before; what goes into logs and messages is our own form, which travels in the entry's `context`.
//! So protobuf is never parsed from bytes that another process wrote.

// The crate's messages carry bookkeeping fields of protobuf; setting what is meant reads better than naming those.
#![allow(clippy::field_reassign_with_default)]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use buttress_core::{Code, Error, Index, Mutant, NodeId, Reader, Term, Writer, mutant};
use bytes::Bytes;
use raft::{
    Changer, ProgressState, RawNode, ReadOnlyOption, SnapshotStatus, StateRole,
    eraftpb::{
        ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
        HardState as RaftHardState, Message as RaftMessage, MessageType, Snapshot,
    },
};

use crate::{
    config::{Checked, Config, REPLACE_HINT, Restored},
    consensus::{Consensus, EngineStatus, PeerStatus, Ready, StepError},
    log::{MemoryLog, place},
    message::{Body, Message},
    rng::Rng,
    types::{
        Book, Change, Contact, EntryKind, Fetch, HardState, LogEntry, MemberStep, Members, ProposalError, Role,
        SnapshotMeta, contacts_fit,
    },
};

/// How the crate marks a vote request that a leadership transfer caused.
const TRANSFER: &[u8] = b"CampaignTransfer";

/// [`Consensus`] on the `raft` crate.
pub struct RaftEngine {
    id: u64,
    pub(crate) node: RawNode<MemoryLog>,
    pub(crate) log_tail_bytes: usize,
    log_memory_bytes: usize,
    max_uncommitted_bytes: usize,
    rng: Rng,
    timeout: usize,
    seen: (StateRole, u64),
    /// Term and vote that are known to be durable, and those handed out but not yet durable.
    durable_vote: (u64, u64),
    /// A change of members was applied whose commit no hard state says yet.
    change_unwritten: bool,
    pending_votes: VecDeque<(u64, (u64, u64))>,
    /// Batches with entries that are not yet durable.
    pending_entries: VecDeque<u64>,
    /// Last index of the entries handed out to be made durable so far.
    handed_out: u64,
    installing: Option<Installing>,
    /// The durable log holds entries that this snapshot replaced.
    stale: Option<SnapshotMeta>,
    /// Members after the entry at the index: one at or before the last checkpoint, and every change since. The last one
    /// is who they are now.
    members: BTreeMap<u64, (Members, ConfState)>,
}

struct Installing {
    number: u64,
    meta: SnapshotMeta,
    /// The latest batch that became durable in the meantime.
    persisted: u64,
    /// What must not be said before the state is in place.
    held: Vec<Message>,
}

impl RaftEngine {
    /// # Errors
    /// A configuration that makes no sense, or a restored state with holes.
    pub fn new(config: &Config, restored: Restored) -> Result<Self, Error> {
        config.check()?;
        let Checked { restored, stale } = restored.check()?;
        let SnapshotMeta { index, term, members } = restored.snapshot;
        // The term of the entry before the first one is known only at the snapshot and at the log's very start;
        // elsewhere the first entry itself is given up to be that one.
        let before = match restored.entries.first() {
            None => (index.0, term.0),
            Some(first) if first.index == index.next() => (index.0, term.0),
            Some(first) if first.index == Index(1) => (0, 0),
            Some(first) => (first.index.0, first.term.0),
        };
        let entries: VecDeque<Entry> =
            restored.entries.into_iter().filter(|entry| entry.index.0 > before.0).map(to_raft_entry).collect();
        let conf_state = to_conf_state(&members);
        let mut hard_state = RaftHardState::default();
        hard_state.term = restored.hard_state.term.0;
        hard_state.vote = restored.hard_state.vote.map_or(0, |id| id.0);
        hard_state.commit = restored.hard_state.commit.0;
        let last = before.0 + entries.len() as u64;
        let durable_vote = (hard_state.term, hard_state.vote);
        let log = MemoryLog::new(hard_state, conf_state.clone(), before, entries);
        let raft_config = raft::Config {
            id: config.id.0,
            election_tick: config.election_ticks as usize,
            heartbeat_tick: config.heartbeat_ticks as usize,
            applied: index.0,
            max_size_per_msg: config.max_message_bytes as u64,
            max_inflight_msgs: config.max_inflight_messages,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            batch_append: true,
            max_uncommitted_size: config.max_uncommitted_bytes.max(config.max_message_bytes) as u64,
            max_committed_size_per_ready: config.max_apply_bytes as u64,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft_config, log, &logger)
            .map_err(|error| Error::new(Code::CONFIG, format!("consensus cannot start: {error}")))?;
        let mut engine = Self {
            id: config.id.0,
            node,
            log_tail_bytes: config.log_tail_bytes,
            log_memory_bytes: config.log_memory_bytes,
            max_uncommitted_bytes: config.max_uncommitted_bytes,
            rng: Rng::new(config.seed),
            timeout: 0,
            seen: (StateRole::Follower, 0),
            durable_vote,
            change_unwritten: false,
            pending_votes: VecDeque::new(),
            pending_entries: VecDeque::new(),
            handed_out: last,
            installing: None,
            stale: stale.then(|| SnapshotMeta { index, term, members: members.clone() }),
            members: BTreeMap::from([(index.0, (members.clone(), conf_state.clone()))]),
        };
        if index.0 > 0 {
            engine.node.mut_store().set_offer(SnapshotMeta { index, term, members }, conf_state);
        }
        engine.cool();
        engine.draw_timeout();
        Ok(engine)
    }

    fn draw_timeout(&mut self) {
        let least = self.node.raft.election_timeout() as u64;
        self.timeout = self.rng.range(least, 2 * least) as usize;
        self.seen = (self.node.raft.state, self.node.raft.term);
        self.node.raft.set_randomized_election_timeout(self.timeout);
    }

    /// Puts our election timeout in the place of whatever the crate has drawn.
    fn settle(&mut self) {
        if self.seen != (self.node.raft.state, self.node.raft.term) {
            self.draw_timeout();
        } else {
            self.node.raft.set_randomized_election_timeout(self.timeout);
        }
    }

    /// Lets the log go of bytes that only a follower that lags would need again. What is not applied or not durable stays:
    /// the crate reads it, and truncates it.
    fn cool(&mut self) {
        let log = &self.node.raft.raft_log;
        let index = log.applied.min(log.persisted);
        let keep_bytes = self.log_memory_bytes;
        self.node.mut_store().cool(index, keep_bytes);
    }

    fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn leader(&self) -> Option<NodeId> {
        (self.node.raft.leader_id != 0).then_some(NodeId(self.node.raft.leader_id))
    }

    /// Whether all entries of the log are durable here.
    fn all_durable(&self) -> bool {
        self.pending_entries.is_empty() && self.node.raft.raft_log.unstable_entries().is_empty()
    }

    /// Whether this node may campaign now: see `undurable` and `installing`.
    fn may_campaign(&self) -> bool {
        self.installing.is_none() && self.all_durable()
    }

    /// What the message says against what the log holds; see the file's head.
    fn check(&self, message: &Message) -> Result<(), StepError> {
        let log = &self.node.raft.raft_log;
        if message.to.0 != self.id {
            return Err(StepError::Dropped("the message is for another node"));
        }
        message.check().map_err(StepError::Dropped)?;
        let progress = self.node.raft.prs().get(message.from.0);
        let current = message.term.0 >= self.node.raft.term;
        let answers_me = self.is_leader() && message.term.0 == self.node.raft.term;
        match &message.body {
            // Entries behind a snapshot must not reach the durable log before it was told to begin anew there, be the
            // snapshot handed out already or only taken a moment ago.
            Body::Append { .. } | Body::Snapshot { .. }
                if self.installing.is_some() || self.node.raft.raft_log.unstable_snapshot().is_some() =>
            {
                Err(StepError::Dropped("a snapshot is being put in place"))
            }
            Body::TimeoutNow if !self.may_campaign() => Err(StepError::Dropped("the log is not durable yet")),
            Body::Heartbeat { commit, .. } if current && commit.0 > log.last_index() => {
                Err(StepError::Fatal(lost_tail(commit.0, log.last_index())))
            }
            Body::Accepted { index, .. } if answers_me && index.0 > log.last_index() => {
                Err(StepError::Dropped("it acknowledges what was never sent"))
            }
            Body::Rejected { index, .. } if answers_me && index.0 > log.last_index() => {
                Err(StepError::Dropped("it rejects what was never sent"))
            }
            Body::Rejected { index, .. }
                if answers_me && progress.is_some_and(|progress| index.0 <= progress.matched) =>
            {
                Err(StepError::Dropped("a rejection of what has been accepted since"))
            }
            Body::Accepted { .. }
            | Body::Rejected { .. }
            | Body::HeartbeatReply { .. }
            | Body::VoteReply { .. }
            | Body::ReadIndex { .. }
                if progress.is_none() =>
            {
                Err(StepError::Dropped("the sender is not a member"))
            }
            Body::Append { prev_index, prev_term, .. }
                if current && prev_index.0 == log.committed && !log.match_term(prev_index.0, prev_term.0) =>
            {
                Err(StepError::Fatal(Error::new(
                    Code::CORRUPT,
                    format!("the leader's entry {prev_index} of term {prev_term} contradicts a committed one"),
                )))
            }
            _ => Ok(()),
        }
    }

    fn step_raft(&mut self, message: RaftMessage) -> Result<(), StepError> {
        if mutant::active(Mutant::TruncateOnAppend) {
            self.truncate_on_append(&message);
        }
        let (was_leader, result) = (self.is_leader(), self.node.step(message));
        if mutant::active(Mutant::CommitOldTerm) && self.is_leader() {
            let (index, _) = self.node.raft.mut_prs().maximal_committed_index();
            self.node.raft.raft_log.commit_to(index);
        }
        if mutant::active(Mutant::CommitOnElection) && self.is_leader() && !was_leader {
            let last = self.node.raft.raft_log.persisted;
            self.node.raft.raft_log.commit_to(last);
        }
        self.settle();
        result.map_err(|_| StepError::Dropped("the sender is not a member"))
    }

    /// Sets what an append follows to what it does follow: see `batched` in the file's head.
    fn close_gap(&self, message: &mut RaftMessage) {
        if message.get_msg_type() != MessageType::MsgAppend {
            return;
        }
        // Where the log begins behind it by now, the message stays what it is, and is dropped as one with a gap.
        if let Some(first) = message.get_entries().first()
            && message.index != first.index - 1
            && let Ok(term) = self.node.raft.raft_log.term(first.index - 1)
        {
            (message.index, message.log_term) = (first.index - 1, term);
        }
    }

    /// The body of a [`Mutant`].
    fn truncate_on_append(&mut self, message: &RaftMessage) {
        let raft = &mut self.node.raft;
        let (term, log, entries) = (raft.term, &mut raft.raft_log, message.get_entries());
        if message.get_msg_type() == MessageType::MsgAppend
            && message.term == term
            && message.index >= log.committed
            && log.match_term(message.index, message.log_term)
            && !entries.is_empty()
        {
            log.append(entries);
            log.persisted = log.persisted.min(message.index);
        }
    }

    /// Where the next proposal of this node goes; the crate itself would forward it from a follower.
    fn next_place(&self) -> Result<(Index, Term), ProposalError> {
        let raft = &self.node.raft;
        if !self.is_leader() {
            return Err(ProposalError::NotLeader { leader: self.leader() });
        }
        if let Some(next) = raft.lead_transferee {
            return Err(ProposalError::NotLeader { leader: Some(NodeId(next)) });
        }
        Ok((Index(raft.raft_log.last_index() + 1), Term(raft.term)))
    }

    fn members_now(&self) -> &Members {
        &self.members.last_key_value().expect("members are known from the last checkpoint").1.0
    }

    /// Whether the crate would take this change now, and as what.
    fn plan_change(&self, steps: &[MemberStep], contacts: &[(NodeId, Contact)]) -> Result<ConfChangeV2, ProposalError> {
        let raft = &self.node.raft;
        // A leader that has not committed in its own term does not know what else is committed (Ongaro's correction of
        // single-server changes, raft-dev 2015-07-10).
        let unfinished = !raft.commit_to_current_term()
            || raft.has_pending_conf()
            || to_members(&raft.prs().conf().to_conf_state()).is_joint();
        if unfinished {
            return Err(ProposalError::ChangePending);
        }
        if steps.is_empty() || steps.len() > crate::types::MEMBERS_MAX {
            return Err(ProposalError::ChangeInvalid(format!("{} steps", steps.len())));
        }
        let mut ids: Vec<NodeId> = steps.iter().map(step_id).collect();
        ids.sort_unstable();
        if ids[0].0 == 0 || ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ProposalError::ChangeInvalid("a member is named twice, or is 0".to_owned()));
        }
        if !contacts_fit(steps, contacts) {
            return Err(ProposalError::ChangeInvalid("a contact is too long, or of nobody who is added".to_owned()));
        }
        let change = to_conf_change(steps);
        let mut changer = Changer::new(raft.prs());
        let planned = match change.enter_joint() {
            Some(auto_leave) => changer.enter_joint(auto_leave, change.get_changes()),
            None => changer.simple(change.get_changes()),
        };
        let (conf, _) = planned.map_err(|error| ProposalError::ChangeInvalid(error.to_string()))?;
        let after = to_members(&conf.to_conf_state());
        if after.all().len() > crate::types::MEMBERS_MAX {
            return Err(ProposalError::ChangeInvalid(format!("more than {} members", crate::types::MEMBERS_MAX)));
        }
        let before = self.members_now();
        if conf == *raft.prs().conf() && before.changed_to(after, contacts).book == before.book {
            return Err(ProposalError::ChangeInvalid("nothing would change".to_owned()));
        }
        Ok(change)
    }
}

impl Consensus for RaftEngine {
    fn tick(&mut self) {
        if !self.is_leader() && !self.may_campaign() {
            // Time passes, so that votes for others are given once the leader has been silent for long.
            self.node.raft.election_elapsed += 1;
            return;
        }
        self.node.tick();
        self.settle();
    }

    fn step(&mut self, from: NodeId, message: Message) -> Result<(), StepError> {
        if from != message.from {
            return Err(StepError::Dropped("the message claims another sender"));
        }
        self.check(&message)?;
        self.step_raft(to_raft_message(message))
    }

    fn has_room(&self, pending: usize, len: usize) -> bool {
        let waiting = self.node.raft.uncommitted_size() + pending;
        waiting == 0 || waiting + len <= self.max_uncommitted_bytes
    }

    fn propose(&mut self, entries: Vec<Bytes>) -> Result<(Index, Term), ProposalError> {
        let place = self.next_place()?;
        let entries: Vec<Entry> = entries
            .into_iter()
            .map(|data| {
                let mut entry = Entry::default();
                entry.data = data;
                entry
            })
            .collect();
        let mut message = RaftMessage::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.id;
        message.set_entries(entries.into());
        self.node.raft.step(message).map_err(|_| ProposalError::Overloaded)?;
        Ok(place)
    }

    fn change(&mut self, steps: &[MemberStep], contacts: &[(NodeId, Contact)]) -> Result<(Index, Term), ProposalError> {
        let place = self.next_place()?;
        let change = self.plan_change(steps, contacts)?;
        let context = Change::Steps { steps: steps.to_vec(), contacts: contacts.to_vec() }.encode();
        self.node.propose_conf_change(context.to_vec(), change).map_err(|_| ProposalError::Overloaded)?;
        Ok(place)
    }

    fn read_index(&mut self, context: Bytes) -> bool {
        let raft = &self.node.raft;
        let can_ask = match raft.state {
            StateRole::Leader => raft.commit_to_current_term(),
            StateRole::Follower => raft.leader_id != 0,
            StateRole::Candidate | StateRole::PreCandidate => false,
        };
        if can_ask {
            self.node.read_index(context.to_vec());
        }
        can_ask
    }

    fn transfer(&mut self, to: NodeId) {
        if self.is_leader() && self.node.raft.prs().conf().voters().contains(to.0) {
            self.node.transfer_leader(to.0);
        }
    }

    fn unreachable(&mut self, peer: NodeId) {
        self.node.report_unreachable(peer.0);
    }

    fn snapshot_sent(&mut self, to: NodeId, ok: bool) {
        self.node.report_snapshot(to.0, if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    fn ready(&mut self) -> Option<Ready> {
        let own = self.installing.is_none() && (self.stale.is_some() || self.change_unwritten);
        if !self.node.has_ready() && !own {
            return None;
        }
        let mut raw = self.node.ready();
        let mut ready = Ready { number: raw.number(), ..Ready::default() };
        if self.installing.is_none() {
            ready.reset = self.stale.take();
        }

        if !raw.snapshot().is_empty() {
            let meta = from_snapshot(raw.snapshot());
            self.node.mut_store().reset(meta.index.0, meta.term.0);
            self.members.clear();
            self.members.insert(meta.index.0, (meta.members.clone(), to_conf_state(&meta.members)));
            self.pending_entries.clear();
            self.stale = None;
            ready.reset = None;
            // Until the state is in place the durable log is still the old one, of which only this much is committed
            // for certain.
            self.handed_out = self.node.raft.raft_log.applied;
            self.installing =
                Some(Installing { number: ready.number, meta: meta.clone(), persisted: 0, held: Vec::new() });
            ready.snapshot = Some(meta);
        }

        let vote = (self.node.raft.term, self.node.raft.vote);
        let last_vote = self.pending_votes.back().map_or(self.durable_vote, |(_, vote)| *vote);
        if vote != last_vote {
            self.pending_votes.push_back((ready.number, vote));
        }
        // A restart goes on with the members that were committed as far as it knows. If nobody knew of the last change
        // after a loss of power everywhere, then a member that was taken out because it is dead would be counted again.
        let change_due = self.change_unwritten && self.installing.is_none();
        if vote != last_vote || !raw.entries().is_empty() || change_due {
            self.change_unwritten &= self.installing.is_some();
            // Never more than what is in the durable log already, so that the two may be written in any order.
            let unchanged = raw.entries().first().map_or(u64::MAX, |first| first.index - 1);
            ready.hard_state = Some(HardState {
                term: Term(vote.0),
                vote: (vote.1 != 0 && !mutant::active(Mutant::ForgetVote)).then_some(NodeId(vote.1)),
                commit: Index(self.node.raft.raft_log.committed.min(self.handed_out).min(unchanged)),
            });
        }

        let entries = raw.take_entries();
        if let Some(last) = entries.last() {
            self.node.mut_store().append(&entries);
            self.pending_entries.push_back(ready.number);
            self.handed_out = last.index;
            ready.entries = entries.into_iter().map(from_raft_entry).collect();
        }

        let vote_is_durable = self.pending_votes.is_empty();
        let mut at_once = raw.take_messages();
        at_once.iter_mut().for_each(|message| self.close_gap(message));
        let mut later = raw.take_persisted_messages();
        if !vote_is_durable {
            later.append(&mut at_once);
        }
        ready.messages = at_once.into_iter().filter_map(from_raft_message).collect();
        ready.after_persist = later.into_iter().filter_map(from_raft_message).collect();
        if let Some(installing) = &mut self.installing
            && !mutant::active(Mutant::AcceptBeforeInstall)
        {
            let (held, free) = std::mem::take(&mut ready.after_persist)
                .into_iter()
                .partition(|message| matches!(message.body, Body::Accepted { .. } | Body::Rejected { .. }));
            installing.held.extend::<Vec<Message>>(held);
            ready.after_persist = free;
        }

        ready.committed = raw.take_committed_entries().into_iter().map(from_raft_entry).collect();
        ready.reads =
            raw.take_read_states().into_iter().map(|read| (read.request_ctx.into(), Index(read.index))).collect();
        self.node.advance_append_async(raw);
        Some(ready)
    }

    fn persisted(&mut self, number: u64) {
        while self.pending_votes.front().is_some_and(|(at, _)| *at <= number) {
            self.durable_vote = self.pending_votes.pop_front().expect("looked at above").1;
        }
        while self.pending_entries.front().is_some_and(|at| *at <= number) {
            self.pending_entries.pop_front();
        }
        match &mut self.installing {
            // The crate takes a batch as proof that all earlier ones are durable, the snapshot's among them.
            Some(installing) if number >= installing.number => installing.persisted = number,
            _ => {
                self.node.on_persist_ready(number);
                if mutant::active(Mutant::AckBeforeQuorum) && self.is_leader() {
                    let durable = self.node.raft.raft_log.persisted;
                    self.node.raft.raft_log.commit_to(durable);
                }
                self.cool();
                self.settle();
            }
        }
    }

    fn installed(&mut self) {
        let installing = self.installing.take().expect("the replica answers a snapshot it was given");
        self.stale = Some(installing.meta.clone());
        self.handed_out = installing.meta.index.0;
        // The state is durable and the log begins behind it, so it is what followers that need more are offered. Without
        // it a leader that came up by a snapshot could help none of them: the host holds back its next checkpoint while
        // they want the log before it.
        let (_, conf_state) = self.members[&installing.meta.index.0].clone();
        self.node.mut_store().set_offer(installing.meta.clone(), conf_state);
        self.node.on_persist_ready(installing.number.max(installing.persisted));
        self.node.advance_apply_to(installing.meta.index.0);
        self.node.raft.msgs.extend(installing.held.into_iter().map(to_raft_message));
        self.settle();
    }

    fn applied(&mut self, index: Index) {
        self.node.advance_apply_to(index.0);
        self.cool();
    }

    fn fetches(&mut self) -> Vec<Fetch> {
        self.node.store().take_wishes()
    }

    fn fetched(&mut self, low: Index, entries: Vec<LogEntry>) {
        let entries = entries.into_iter().map(to_raft_entry).collect();
        for asker in self.node.mut_store().serve(low.0, entries) {
            self.node.on_entries_fetched(asker);
        }
        self.node.mut_store().served();
        self.settle();
    }

    fn apply_change(&mut self, entry: &LogEntry) -> Members {
        assert_eq!(entry.kind, EntryKind::ConfChange, "only a change of members is one");
        // Bytes that do not decode cannot come from the network (checked there) nor from us; from a damaged log they
        // would be the same on no two nodes, so stopping is all that is left.
        let change = Change::decode(entry.data.clone()).expect("a change was checked when it was received");
        let (steps, mut contacts): (Vec<ConfChangeV2>, Vec<(NodeId, Contact)>) = match change {
            Change::Leave => (vec![ConfChangeV2::default()], Vec::new()),
            Change::Steps { steps, contacts } => (vec![to_conf_change(&steps)], contacts),
            // One by one, because a group without voters cannot enter a joint configuration.
            Change::Found(voters) => {
                (voters.iter().map(|id| to_conf_change(&[MemberStep::Voter(*id)])).collect(), Vec::new())
            }
        };
        for step in steps {
            // Every member refuses the same changes, for they are applied to the same members.
            if self.node.apply_conf_change(&step).is_err() {
                contacts.clear();
            }
        }
        let conf_state = self.node.raft.prs().conf().to_conf_state();
        let members = self.members_now().changed_to(to_members(&conf_state), &contacts);
        self.members.insert(entry.index.0, (members.clone(), conf_state));
        // The founders are in everybody's first hard state.
        self.change_unwritten |= entry.index.0 > 1;
        if self.is_leader() && !self.node.raft.prs().conf().voters().contains(self.id) {
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, 0);
        }
        self.settle();
        members
    }

    fn checkpointed(&mut self, index: Index, term: Term) -> Option<Index> {
        let log = self.node.store();
        let stale = index.0 == 0
            || index.0 > self.node.raft.raft_log.applied
            || log.offer().is_some_and(|offer| offer.index >= index)
            || log.term_at(index.0) != Some(term.0);
        if stale {
            return None;
        }
        let at = *self.members.range(..=index.0).next_back().expect("members are known from the last checkpoint").0;
        self.members = self.members.split_off(&at);
        let (members, conf_state) = self.members[&at].clone();
        let before = self.node.store().first();
        let tail = self.log_tail_bytes;
        let log = self.node.mut_store();
        log.set_offer(SnapshotMeta { index, term, members }, conf_state);
        log.compact(index.0, tail);
        (log.first() > before).then_some(Index(log.first()))
    }

    fn wants_checkpoint(&mut self) -> bool {
        self.node.store().take_wanted()
    }

    fn members_at(&self, index: Index) -> Option<Members> {
        self.members.range(..=index.0).next_back().map(|(_, (members, _))| members.clone())
    }

    fn role(&self) -> Role {
        let raft = &self.node.raft;
        Role { leader: self.leader(), term: Term(raft.term), is_leader: self.is_leader() }
    }

    fn status(&self) -> EngineStatus {
        let raft = &self.node.raft;
        let log = &raft.raft_log;
        let mut peers = Vec::new();
        if self.is_leader() {
            peers.extend(raft.prs().iter().filter(|(id, _)| **id != self.id).map(|(id, progress)| PeerStatus {
                id: NodeId(*id),
                matched: Index(progress.matched),
                next: Index(progress.next_idx),
                active: progress.recent_active,
                snapshot: progress.state == ProgressState::Snapshot,
            }));
            peers.sort_unstable_by_key(|peer| peer.id);
        }
        EngineStatus {
            role: self.role(),
            first: Index(log.store.first()),
            last: Index(log.last_index()),
            persisted: Index(log.persisted),
            committed: Index(log.committed),
            applied: Index(log.applied),
            log_bytes: log.store.bytes(),
            log_memory_bytes: log.store.memory_bytes(),
            uncommitted_bytes: if self.is_leader() { raft.uncommitted_size() } else { 0 },
            members: self.members_now().clone(),
            peers,
        }
    }
}

fn lost_tail(commit: u64, last: u64) -> Error {
    Error::new(
        Code::CORRUPT,
        format!("this node acknowledged entry {commit} and its log ends at {last}: an acknowledged tail was lost"),
    )
    .hint(REPLACE_HINT)
}

fn step_id(step: &MemberStep) -> NodeId {
    match step {
        MemberStep::Voter(id) | MemberStep::Learner(id) | MemberStep::Remove(id) => *id,
    }
}

fn to_conf_change(steps: &[MemberStep]) -> ConfChangeV2 {
    let singles: Vec<ConfChangeSingle> = steps
        .iter()
        .map(|step| {
            let mut single = ConfChangeSingle::default();
            single.node_id = step_id(step).0;
            single.set_change_type(match step {
                MemberStep::Voter(_) => ConfChangeType::AddNode,
                MemberStep::Learner(_) => ConfChangeType::AddLearnerNode,
                MemberStep::Remove(_) => ConfChangeType::RemoveNode,
            });
            single
        })
        .collect();
    let mut change = ConfChangeV2::default();
    change.set_transition(ConfChangeTransition::Auto);
    change.set_changes(singles.into());
    change
}

fn to_conf_state(members: &Members) -> ConfState {
    let raw = |ids: &[NodeId]| ids.iter().map(|id| id.0).collect::<Vec<u64>>();
    let mut state = ConfState::default();
    state.voters = raw(&members.voters);
    state.learners = raw(&members.learners);
    state.voters_outgoing = raw(&members.voters_outgoing);
    state.learners_next = raw(&members.learners_next);
    state.auto_leave = members.auto_leave;
    state
}

fn to_members(state: &ConfState) -> Members {
    let sorted = |ids: &[u64]| {
        let mut ids: Vec<NodeId> = ids.iter().map(|id| NodeId(*id)).collect();
        ids.sort_unstable();
        ids
    };
    Members {
        voters: sorted(&state.voters),
        learners: sorted(&state.learners),
        voters_outgoing: sorted(&state.voters_outgoing),
        learners_next: sorted(&state.learners_next),
        auto_leave: state.auto_leave,
        ..Members::default()
    }
}

fn to_raft_entry(entry: LogEntry) -> Entry {
    let mut raw = Entry::default();
    raw.index = entry.index.0;
    raw.term = entry.term.0;
    match entry.kind {
        EntryKind::Normal => raw.data = entry.data,
        EntryKind::ConfChange => {
            raw.set_entry_type(EntryType::EntryConfChangeV2);
            raw.context = entry.data;
        }
    }
    raw
}

fn from_raft_entry(entry: Entry) -> LogEntry {
    let (index, term) = place(&entry);
    match entry.get_entry_type() {
        EntryType::EntryNormal => LogEntry { index, term, kind: EntryKind::Normal, data: entry.data },
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
            LogEntry { index, term, kind: EntryKind::ConfChange, data: entry.context }
        }
    }
}

fn from_snapshot(snapshot: &Snapshot) -> SnapshotMeta {
    let meta = snapshot.get_metadata();
    let mut members = to_members(meta.get_conf_state());
    members.book = book_from(&snapshot.data);
    SnapshotMeta { index: Index(meta.index), term: Term(meta.term), members }
}

/// The crate's snapshots carry data for their application; ours carry the book, for the members there have no room for
/// it.
pub(crate) fn to_snapshot(meta: &SnapshotMeta, conf_state: ConfState) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = meta.index.0;
    metadata.term = meta.term.0;
    metadata.set_conf_state(conf_state);
    if !meta.members.book.is_empty() {
        let mut w = Writer::with_capacity(256);
        meta.members.book.encode_to(&mut w);
        snapshot.data = w.finish();
    }
    snapshot
}

fn book_from(data: &Bytes) -> Arc<Book> {
    if data.is_empty() {
        return Arc::default();
    }
    Arc::new(Book::decode_from(&mut Reader::new(data.clone())).expect("written by `to_snapshot` in this process"))
}

pub(crate) fn to_raft_message(message: Message) -> RaftMessage {
    let mut raw = RaftMessage::default();
    raw.from = message.from.0;
    raw.to = message.to.0;
    raw.term = message.term.0;
    let kind = match message.body {
        Body::Append { prev_index, prev_term, commit, entries } => {
            raw.index = prev_index.0;
            raw.log_term = prev_term.0;
            raw.commit = commit.0;
            raw.set_entries(entries.into_iter().map(to_raft_entry).collect());
            MessageType::MsgAppend
        }
        Body::Accepted { index, commit } => {
            raw.index = index.0;
            raw.commit = commit.0;
            MessageType::MsgAppendResponse
        }
        Body::Rejected { index, hint_index, hint_term, commit } => {
            raw.index = index.0;
            raw.reject = true;
            raw.reject_hint = hint_index.0;
            raw.log_term = hint_term.0;
            raw.commit = commit.0;
            MessageType::MsgAppendResponse
        }
        Body::Heartbeat { commit, context } => {
            raw.commit = commit.0;
            raw.context = context;
            MessageType::MsgHeartbeat
        }
        Body::HeartbeatReply { commit, context } => {
            raw.commit = commit.0;
            raw.context = context;
            MessageType::MsgHeartbeatResponse
        }
        Body::Vote { pre, last_index, last_term, commit, commit_term, transfer } => {
            raw.index = last_index.0;
            raw.log_term = last_term.0;
            raw.commit = commit.0;
            raw.commit_term = commit_term.0;
            if transfer {
                raw.context = Bytes::from_static(TRANSFER);
            }
            if pre { MessageType::MsgRequestPreVote } else { MessageType::MsgRequestVote }
        }
        Body::VoteReply { pre, granted, commit, commit_term } => {
            raw.reject = !granted;
            raw.commit = commit.0;
            raw.commit_term = commit_term.0;
            if pre { MessageType::MsgRequestPreVoteResponse } else { MessageType::MsgRequestVoteResponse }
        }
        Body::Snapshot { meta } => {
            raw.set_snapshot(to_snapshot(&meta, to_conf_state(&meta.members)));
            MessageType::MsgSnapshot
        }
        Body::TimeoutNow => MessageType::MsgTimeoutNow,
        Body::ReadIndex { context } => {
            raw.set_entries(vec![context_entry(context)].into());
            MessageType::MsgReadIndex
        }
        Body::ReadIndexReply { index, context } => {
            raw.index = index.0;
            raw.set_entries(vec![context_entry(context)].into());
            MessageType::MsgReadIndexResp
        }
    };
    raw.set_msg_type(kind);
    raw
}

fn context_entry(context: Bytes) -> Entry {
    let mut entry = Entry::default();
    entry.data = context;
    entry
}

/// `None` for the kinds that never leave a node: proposals are not forwarded, and the rest is local.
fn from_raft_message(mut raw: RaftMessage) -> Option<Message> {
    let commit = Index(raw.commit);
    let context_of = |raw: &mut RaftMessage| raw.take_entries().into_iter().next().map(|entry| entry.data);
    let body = match raw.get_msg_type() {
        MessageType::MsgAppend => Body::Append {
            prev_index: Index(raw.index),
            prev_term: Term(raw.log_term),
            commit,
            entries: raw.take_entries().into_iter().map(from_raft_entry).collect(),
        },
        MessageType::MsgAppendResponse if raw.reject => Body::Rejected {
            index: Index(raw.index),
            hint_index: Index(raw.reject_hint),
            hint_term: Term(raw.log_term),
            commit,
        },
        MessageType::MsgAppendResponse => Body::Accepted { index: Index(raw.index), commit },
        MessageType::MsgHeartbeat => Body::Heartbeat { commit, context: raw.context },
        MessageType::MsgHeartbeatResponse => Body::HeartbeatReply { commit, context: raw.context },
        kind @ (MessageType::MsgRequestVote | MessageType::MsgRequestPreVote) => Body::Vote {
            pre: kind == MessageType::MsgRequestPreVote,
            last_index: Index(raw.index),
            last_term: Term(raw.log_term),
            commit,
            commit_term: Term(raw.commit_term),
            transfer: raw.context == TRANSFER,
        },
        kind @ (MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse) => Body::VoteReply {
            pre: kind == MessageType::MsgRequestPreVoteResponse,
            granted: !raw.reject,
            commit,
            commit_term: Term(raw.commit_term),
        },
        MessageType::MsgSnapshot => Body::Snapshot { meta: from_snapshot(raw.get_snapshot()) },
        MessageType::MsgTimeoutNow => Body::TimeoutNow,
        MessageType::MsgReadIndex => Body::ReadIndex { context: context_of(&mut raw)? },
        MessageType::MsgReadIndexResp => {
            Body::ReadIndexReply { index: Index(raw.index), context: context_of(&mut raw)? }
        }
        _ => return None,
    };
    Some(Message { from: NodeId(raw.from), to: NodeId(raw.to), term: Term(raw.term), body })
}
