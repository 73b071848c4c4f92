//! Who the members are, who asks for what to become of them, and who leads next: the part of the node's task that acts on
//! the decisions of [`plan`](super::super::plan) and [`give_way`](super::super::give_way).
//!
//! **The book.** Ids and roles come from the log. Addresses of members that joined come from the log too; those of founders
//! are as this node's own configuration says, so a founder may be reached by another way from each node. A newcomer whose
//! log is empty knows its configuration only. Whenever the members change, the transport follows.
//!
//! **The way of a request.** It is ours ([`AskedBy::Own`]) until the leader answers it: at once, or when its change has been
//! applied and no joint configuration is left. A leader that is new decides nothing before it has applied an entry of its
//! own term, for until then it does not know who the members are, and has heard of those that it can reach. Whoever is to be removed while it leads hands over
//! first, and the request finds the next leader by itself.
//!
//! **Leaving.** A node that finds itself removed, in its own log or told so by a peer, stops with `REMOVED`. One whose id the
//! leader has never heard of stops with `MEMBER_UNKNOWN` after a while: a newcomer may be early.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use buttress_consensus::{Contact, Input, MEMBERS_MAX, MemberChange, MemberStep, Members, ProposalError, Role};
use buttress_core::{
    Code, Error, Index, NodeId, Term,
    ledger::{Member, MemberRole, Progress},
};
use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Core, Machine, Options, Proposer};
use crate::{
    runtime::{
        MemberDone, MemberRequest,
        admin::{self, NotDone, Outcome},
        give_way::{Candidate, GiveWay},
        plan::{self, Promoter},
    },
    transport::{Frame, Lane, Roll, Verdict},
    wal::WalStats,
};

/// A peer counts as reachable if it was heard within this many ticks, two election timeouts: a follower answers every
/// heartbeat, five times in each.
const REACHABLE_TICKS: u32 = 20;
/// A new leader has heard of everybody whom it can reach after this many ticks: a heartbeat goes out every two.
const SETTLE_TICKS: u32 = 10;
/// A hand-over that takes longer than this many ticks has failed; consensus gives it up after an election timeout.
const TRANSFER_TICKS: u32 = 20;
/// Guests that are answered at once: a change adds one member at a time, so more than a few are a mistake.
const GUESTS_MAX: usize = 8;
/// Requests about members that wait for their answer.
const REQUESTS_MAX: usize = 64;
/// Who is to lead because a disk is slow has at most this many entries to catch up.
const HEIR_LAG_MAX: u64 = 1000;
/// What a peer said of its disk is not believed for longer.
const SYNC_BELIEVED: Duration = Duration::from_secs(5);
const NAME_BYTES_MAX: usize = 63;

/// Who asked for a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskedBy {
    Own(u64),
    Peer(NodeId, u64),
}

/// A request of this node's own.
struct Asked {
    request: MemberRequest,
    reply: oneshot::Sender<Result<MemberDone, Error>>,
    since: Instant,
    /// Whom it was sent to, this node included.
    sent: Option<(NodeId, Instant)>,
}

/// Leadership is being handed over.
struct Transfer {
    to: NodeId,
    deadline: Instant,
    by: Option<AskedBy>,
    /// The request is about more than this, and is for the next leader to decide.
    ask_again: bool,
}

/// What the task knows of the members.
pub(super) struct Group {
    /// As the log says; without voters while it says nothing.
    members: Members,
    /// Nodes that our log does not name yet, and where they are reached.
    guests: BTreeMap<NodeId, String>,
    heard: BTreeMap<NodeId, Instant>,
    syncs: BTreeMap<NodeId, (u64, Instant)>,
    /// The newest format of entries that peers read, as they said since we were last connected.
    reads: BTreeMap<NodeId, u8>,
    promoter: Promoter,
    give_way: GiveWay,
    disk: DiskWatch,
    asked: BTreeMap<u64, Asked>,
    next_ask: u64,
    /// Requests that came before this leader knew who the members are.
    early: Vec<(AskedBy, MemberRequest)>,
    /// Changes that were applied, and wait for the joint configuration to end.
    pub finishing: Vec<(Option<AskedBy>, MemberDone)>,
    transfers: Vec<Transfer>,
    handed_over: Vec<oneshot::Sender<()>>,
    /// Since when the leader says that it does not know us, and when it last said so.
    unknown: Option<(Instant, Instant)>,
    /// Term of the last entry that was applied.
    pub applied_term: Term,
    leads_since: Option<Instant>,
}

impl Group {
    pub fn new(options: &Options) -> Self {
        Self {
            members: Members::default(),
            guests: BTreeMap::new(),
            heard: BTreeMap::new(),
            syncs: BTreeMap::new(),
            reads: BTreeMap::new(),
            promoter: Promoter::default(),
            give_way: GiveWay::new(options.give_way),
            disk: DiskWatch::default(),
            asked: BTreeMap::new(),
            next_ask: 1,
            early: Vec::new(),
            finishing: Vec::new(),
            transfers: Vec::new(),
            handed_over: Vec::new(),
            unknown: None,
            applied_term: Term(0),
            leads_since: None,
        }
    }
}

/// How long our own disk takes to sync: the mean of a second's syncs, or the age of one that does not end.
#[derive(Default)]
struct DiskWatch {
    since: Option<Instant>,
    count: u64,
    sum_us: u64,
    /// The number of commits when it last changed, and when that was seen.
    commits: (u64, Option<Instant>),
    last: Option<(u64, Instant)>,
}

impl DiskWatch {
    const WINDOW: Duration = Duration::from_secs(1);

    fn look(&mut self, stats: &WalStats, now: Instant) -> Option<u64> {
        let commits = stats.commits.load(Ordering::Relaxed);
        let idle = stats.queued_bytes.load(Ordering::Relaxed) == 0;
        if idle || commits != self.commits.0 || self.commits.1.is_none() {
            self.commits = (commits, Some(now));
        }
        let since = *self.since.get_or_insert(now);
        if now - since >= Self::WINDOW {
            let (count, sum_us) = (stats.sync_us.count(), stats.sync_us.sum_us());
            if let Some(mean) = sum_us.saturating_sub(self.sum_us).checked_div(count - self.count) {
                self.last = Some((mean, now));
            }
            (self.since, self.count, self.sum_us) = (Some(now), count, sum_us);
        }
        let hangs = self.commits.1.map_or(0, |at| (now - at).as_micros() as u64);
        let known = self.last.filter(|(_, at)| now - *at < SYNC_BELIEVED).map(|(us, _)| us);
        // A sync that goes on for less than what is usual says nothing.
        if hangs > known.unwrap_or(100_000) { Some(hangs) } else { known }
    }
}

impl Core {
    /// Every member that is known, in the order of ids: what the log says, or the configuration while it says nothing.
    fn addressed(&self) -> Vec<Member> {
        let members = &self.group.members;
        if members.is_empty() {
            return self.config.members.clone();
        }
        let configured = |id| self.config.members.iter().find(|m| m.id == id).cloned();
        let listed = |id| {
            members.book.contacts.get(&id).map(|contact| Member {
                id,
                name: contact.name.clone(),
                peer: contact.peer.clone(),
                kafka: contact.kafka.clone(),
                mqtt: contact.mqtt.clone(),
                http: contact.http.clone(),
                etcd: contact.etcd.clone(),
                role: MemberRole::Voter,
            })
        };
        let unnamed = |id: NodeId| Member { id, name: format!("node-{id}"), ..Member::default() };
        let role = |id: NodeId| {
            if members.voters.contains(&id) {
                MemberRole::Voter
            } else if members.voters_outgoing.contains(&id) {
                MemberRole::Leaving
            } else {
                MemberRole::Learner
            }
        };
        let all = members.all().into_iter();
        all.map(|id| Member { role: role(id), ..listed(id).or_else(|| configured(id)).unwrap_or_else(|| unnamed(id)) })
            .collect()
    }

    fn name(&self, id: NodeId) -> String {
        let members = &self.group.members;
        let listed = members.book.contacts.get(&id).map(|contact| contact.name.clone());
        let configured = || self.config.members.iter().find(|m| m.id == id).map(|m| m.name.clone());
        listed.or_else(configured).unwrap_or_else(|| format!("node-{id}"))
    }

    /// Whether this leader knows of every change of members that is committed: it has applied an entry of its own term, and
    /// with it all before.
    pub(super) fn knows_members(&self) -> bool {
        self.role.is_leader && self.group.applied_term == self.role.term
    }

    /// Whether this leader can judge who is reachable. A follower hears of its leader only, so it has to lead for a moment.
    fn is_settled(&self) -> bool {
        let Some(since) = self.group.leads_since else { return false };
        let heard = |id: &NodeId| *id == self.config.node || self.group.heard.get(id).is_some_and(|at| *at > since);
        self.knows_members()
            && (self.group.members.all().iter().all(heard) || since.elapsed() > self.options.tick * SETTLE_TICKS)
    }

    fn roll(&self) -> Roll {
        let members = &self.group.members;
        if members.is_empty() {
            let members = self.config.members.iter().map(|m| m.id).collect();
            return Roll { members, highest: NodeId(0), complete: false };
        }
        Roll {
            members: members.all().into_iter().collect(),
            highest: members.highest(),
            complete: self.knows_members(),
        }
    }

    /// Lets transport and view follow the members.
    pub(super) fn on_members(&mut self, members: Members) -> Result<(), Error> {
        let first = self.group.members.is_empty();
        if !first {
            tracing::info!(members = ?members, event_type = "members", "the members have changed");
        }
        self.group.members = members;
        let known = self.group.members.clone();
        let gone = |id: &NodeId| known.contains(*id) || *id <= known.highest();
        self.group.guests.retain(|id, _| !gone(id));
        self.connect();
        let members = self.addressed();
        self.shared.view.send_if_modified(|view| {
            let changed = view.members != members;
            view.members = members;
            changed
        });
        if self.is_removed() { Err(self.leave()) } else { Ok(()) }
    }

    /// Why this node stops now. Whoever asked it for just that is told that it is done: the leader's answer may come late.
    fn leave(&mut self) -> Error {
        let own = self.config.node;
        let wanted = |asked: &mut Asked| match asked.request {
            MemberRequest::Remove { id } => id == own,
            MemberRequest::Replace { old, .. } => old == own,
            _ => false,
        };
        for (_, asked) in self.group.asked.extract_if(.., |_, asked| wanted(asked)) {
            let id = if let MemberRequest::Replace { new, .. } = asked.request { new } else { own };
            let _ = asked.reply.send(Ok(MemberDone { id, ..MemberDone::default() }));
        }
        self.removed()
    }

    fn connect(&mut self) {
        let mut peers: BTreeMap<NodeId, String> = self.addressed().into_iter().map(|m| (m.id, m.peer)).collect();
        peers.extend(self.group.guests.iter().map(|(id, address)| (*id, address.clone())));
        self.transport.set_peers(&peers);
        self.transport.set_roll(self.roll());
    }

    /// Ids are never used again, so one that is no member's and not higher than all is a removed member's.
    fn is_removed(&self) -> bool {
        let (members, own) = (&self.group.members, self.config.node);
        !members.is_empty() && !members.contains(own) && own <= members.highest()
    }

    fn removed(&self) -> Error {
        let own = self.config.node;
        Error::new(Code::REMOVED, format!("node {own} was removed from cluster \"{}\"", self.config.cluster_id)).hint(
            "to use this machine again, let it join under a new id with an empty data directory: buttress cluster join",
        )
    }

    pub(super) fn on_told(&mut self, peer: NodeId, verdict: Verdict) -> Result<(), Error> {
        match verdict {
            Verdict::Removed => {
                tracing::warn!(peer = peer.0, event_type = "removed", "a member says that this node was removed");
                Err(self.leave())
            }
            Verdict::Unknown => {
                let now = Instant::now();
                let (since, _) = self.group.unknown.unwrap_or((now, now));
                if since == now {
                    tracing::warn!(peer = peer.0, event_type = "unknown", "the leader does not know this node");
                }
                self.group.unknown = Some((since, now));
                Ok(())
            }
        }
    }

    pub(super) fn on_guest(&mut self, peer: NodeId, address: String) {
        let known = self.group.members.contains(peer) || address.is_empty();
        let room = self.group.guests.len() < GUESTS_MAX || self.group.guests.contains_key(&peer);
        if !known && room && self.group.guests.insert(peer, address.clone()).as_ref() != Some(&address) {
            tracing::info!(peer = peer.0, %address, event_type = "guest", "a node that the log does not name yet is here");
            self.connect();
        }
    }

    pub(super) fn on_heard(&mut self, peer: NodeId) {
        self.group.heard.insert(peer, Instant::now());
    }

    pub(super) fn on_sync(&mut self, peer: NodeId, us: u64) {
        self.group.syncs.insert(peer, (us, Instant::now()));
    }

    pub(super) fn on_reads(&mut self, peer: NodeId, format: u8) {
        self.group.reads.insert(peer, format);
    }

    /// It may come back as another version.
    pub(super) fn on_unreachable(&mut self, peer: NodeId) {
        self.group.reads.remove(&peer);
    }

    /// The newest format of entries that all members read. Who has not said anything may be of the first release.
    pub(super) fn all_read(&self) -> u8 {
        let own = self.config.node;
        let reads = |id: NodeId| match id == own {
            true => self.options.entry_format,
            false => self.group.reads.get(&id).copied().unwrap_or(self.options.entry_format_of_all),
        };
        self.group.members.all().into_iter().map(reads).min().unwrap_or(self.options.entry_format_of_all)
    }

    pub(super) fn on_role_of_members(&mut self, before: Role) {
        if self.role.leader.is_some() {
            self.group.unknown = None;
        }
        if before.is_leader != self.role.is_leader {
            self.group.promoter = Promoter::default();
            self.group.give_way.follows();
            self.group.leads_since = self.role.is_leader.then(Instant::now);
        }
        if !self.role.is_leader {
            for (by, _) in std::mem::take(&mut self.group.early) {
                self.answer(Some(by), Err(NotDone::NotLeader));
            }
        }
        self.transport.set_roll(self.roll());
        self.settle_transfers();
    }

    /// Members that can be reached now, this node included.
    fn alive(&self) -> BTreeSet<NodeId> {
        let limit = self.options.tick * REACHABLE_TICKS;
        let heard = self.group.heard.iter().filter(|(_, at)| at.elapsed() < limit).map(|(id, _)| *id);
        heard.chain([self.config.node]).collect()
    }

    fn matched(&self) -> BTreeMap<NodeId, Index> {
        self.replica.status().engine.peers.into_iter().map(|peer| (peer.id, peer.matched)).collect()
    }

    fn heir(&self) -> Option<NodeId> {
        plan::heir(&self.group.members, self.config.node, &self.matched(), &self.alive())
    }

    /// What is due by the clock.
    pub(super) fn tick_members(&mut self, inputs: &mut Vec<Input<Machine>>) -> Result<(), Error> {
        let now = Instant::now();
        if let Some((since, last)) = self.group.unknown {
            if now - last > self.options.unknown_deadline {
                self.group.unknown = None;
            } else if now - since > self.options.unknown_deadline {
                let message = format!(
                    "cluster \"{}\" has never had a member with the id {}",
                    self.config.cluster_id, self.config.node
                );
                return Err(Error::new(Code::MEMBER_UNKNOWN, message)
                    .hint("let the cluster give this node an id: buttress cluster join"));
            }
        }
        let own_us = self.group.disk.look(&self.shared.wal, now);
        self.transport.set_sync(own_us);
        self.transport.set_roll(self.roll());
        self.settle_transfers();
        self.tick_requests(now, inputs);
        if self.role.is_leader {
            self.promote_learners(inputs);
            self.watch_disk(own_us, inputs);
        }
        self.publish_progress(own_us);
        Ok(())
    }

    fn publish_progress(&self, own_us: Option<u64>) {
        let mut progress = Vec::new();
        if self.role.is_leader {
            let status = self.replica.status().engine;
            let alive = self.alive();
            progress.extend(status.peers.iter().map(|peer| Progress {
                id: peer.id,
                matched: peer.matched,
                lag: status.last.0.saturating_sub(peer.matched.0),
                reachable: alive.contains(&peer.id),
                snapshot: peer.snapshot,
                sync_us: self.believed(peer.id),
            }));
            progress.push(Progress {
                id: self.config.node,
                matched: status.last,
                reachable: true,
                sync_us: own_us,
                ..Progress::default()
            });
            progress.sort_unstable_by_key(|progress| progress.id);
        }
        self.shared.view.send_if_modified(|view| {
            view.progress = progress;
            false
        });
    }

    fn believed(&self, peer: NodeId) -> Option<u64> {
        self.group.syncs.get(&peer).filter(|(_, at)| at.elapsed() < SYNC_BELIEVED).map(|(us, _)| *us)
    }

    fn promote_learners(&mut self, inputs: &mut Vec<Input<Machine>>) {
        if self.group.members.learners.is_empty() {
            return;
        }
        let status = self.replica.status().engine;
        let alive = self.alive();
        let ready = |id: &NodeId| alive.contains(id);
        let learners = status
            .peers
            .iter()
            .filter(|peer| self.group.members.learners.contains(&peer.id) && ready(&peer.id) && !peer.snapshot)
            .map(|peer| (peer.id, peer.matched))
            .collect();
        self.group.promoter.tick(status.last, &learners);
        let under_way = self.proposed.values().any(|proposer| matches!(proposer, Proposer::Change { .. }));
        if under_way || self.group.members.is_joint() || !self.knows_members() || self.stopping.is_some() {
            return;
        }
        let wanted = |id: &&NodeId| self.group.members.book.contacts.get(id).is_some_and(|contact| contact.promote);
        let mut ready =
            self.group.members.learners.iter().filter(wanted).filter(|id| self.group.promoter.keeps_up(**id));
        let Some(id) = ready.next().copied() else { return };
        if self.check(&format!("adding {}", self.name(id)), &[MemberStep::Voter(id)], &alive).is_ok() {
            tracing::info!(peer = id.0, event_type = "promoting", "a learner has caught up and becomes a voter");
            self.shared.counters.promoted.fetch_add(1, Ordering::Relaxed);
            self.propose_change(
                None,
                MemberDone { id, ..MemberDone::default() },
                vec![MemberStep::Voter(id)],
                Vec::new(),
                inputs,
            );
        }
    }

    fn watch_disk(&mut self, own_us: Option<u64>, inputs: &mut Vec<Input<Machine>>) {
        let status = self.replica.status().engine;
        let alive = self.alive();
        let near = |id: &NodeId| {
            let peer = status.peers.iter().find(|peer| peer.id == *id);
            peer.is_some_and(|peer| status.last.0.saturating_sub(peer.matched.0) <= HEIR_LAG_MAX)
        };
        let candidates: Vec<Candidate> = self
            .group
            .members
            .voters
            .iter()
            .filter(|id| **id != self.config.node && alive.contains(id) && near(id))
            .filter_map(|id| Some(Candidate { id: *id, sync_us: self.believed(*id)? }))
            .collect();
        let now_ms = self.started.elapsed().as_millis() as u64;
        let Some(heir) = self.group.give_way.look(now_ms, own_us, &candidates) else { return };
        tracing::warn!(
            peer = heir.id.0,
            sync_us = own_us,
            peer_sync_us = heir.sync_us,
            event_type = "gave_way",
            "the disk is slow, so leadership is handed over"
        );
        self.shared.counters.gave_way.fetch_add(1, Ordering::Relaxed);
        self.transfer(heir.id, None, false, inputs);
    }

    fn transfer(&mut self, to: NodeId, by: Option<AskedBy>, ask_again: bool, inputs: &mut Vec<Input<Machine>>) {
        inputs.push(Input::Transfer { to });
        let deadline = Instant::now() + self.options.tick * TRANSFER_TICKS;
        self.group.transfers.push(Transfer { to, deadline, by, ask_again });
    }

    /// Answers hand-overs that have succeeded or take too long.
    fn settle_transfers(&mut self) {
        let (leader, now) = (self.role.leader, Instant::now());
        let gone = leader.is_some_and(|leader| leader != self.config.node);
        for transfer in std::mem::take(&mut self.group.transfers) {
            if gone {
                self.shared.counters.handed_over.fetch_add(1, Ordering::Relaxed);
                let outcome = match leader {
                    _ if transfer.ask_again => Err(NotDone::NotLeader),
                    Some(id) if id == transfer.to => Ok(MemberDone { id, ..MemberDone::default() }),
                    _ => Err(NotDone::NotLeader),
                };
                self.answer(transfer.by, outcome);
            } else if now > transfer.deadline {
                let message = format!("{} did not take over in time", self.name(transfer.to));
                let error = Error::new(Code::LAGGING, message).retryable().hint("see `buttress cluster status`");
                self.answer(transfer.by, Err(NotDone::Refused(error)));
            } else {
                self.group.transfers.push(transfer);
            }
        }
        if !self.role.is_leader && leader.is_some() || self.group.transfers.is_empty() {
            for reply in self.group.handed_over.drain(..) {
                let _ = reply.send(());
            }
        }
    }

    /// Makes somebody else lead, if this node does.
    pub(super) fn hand_over(&mut self, reply: Option<oneshot::Sender<()>>, inputs: &mut Vec<Input<Machine>>) {
        self.group.handed_over.extend(reply);
        if self.role.is_leader
            && self.group.transfers.is_empty()
            && let Some(heir) = self.heir()
        {
            tracing::info!(peer = heir.0, event_type = "hand_over", "leadership is handed over");
            self.transfer(heir, None, false, inputs);
        }
        self.settle_transfers();
    }

    /// Whether nothing is left that this node should do before it stops.
    pub(super) fn may_stop(&self, deadline: Instant) -> bool {
        let idle = self.pending.is_empty() && self.waiting.is_empty() && self.group.asked.is_empty();
        Instant::now() > deadline || idle && self.group.transfers.is_empty()
    }

    pub(super) fn take_request(
        &mut self,
        request: MemberRequest,
        reply: oneshot::Sender<Result<MemberDone, Error>>,
        inputs: &mut Vec<Input<Machine>>,
    ) {
        if self.group.asked.len() >= REQUESTS_MAX {
            let error = Error::new(Code::OVERLOADED, "too many changes of members wait for their answer").retryable();
            let _ = reply.send(Err(error.hint("retry after a pause")));
            return;
        }
        let number = self.group.next_ask;
        self.group.next_ask += 1;
        self.group.asked.insert(number, Asked { request, reply, since: Instant::now(), sent: None });
        self.send_request(number, inputs);
    }

    fn send_request(&mut self, number: u64, inputs: &mut Vec<Input<Machine>>) {
        let Some(leader) = self.role.leader else { return };
        let Some(asked) = self.group.asked.get_mut(&number) else { return };
        asked.sent = Some((leader, Instant::now()));
        if let MemberRequest::Transfer { to: None, from } = &mut asked.request {
            from.get_or_insert(leader);
        }
        let request = asked.request.clone();
        if self.role.is_leader {
            self.decide(AskedBy::Own(number), request, inputs);
        } else {
            self.transport.send(leader, Lane::Control, Frame::Ask { number, request: request.encode() });
        }
    }

    fn tick_requests(&mut self, now: Instant, inputs: &mut Vec<Input<Machine>>) {
        let late = |asked: &Asked| now - asked.since > self.options.submit_deadline || asked.reply.is_closed();
        let late: Vec<u64> = self.group.asked.iter().filter(|(_, a)| late(a)).map(|(number, _)| *number).collect();
        for number in late {
            let asked = self.group.asked.remove(&number).expect("just listed");
            let error = match asked.sent {
                None => Error::new(Code::NO_LEADER, "no leader is known").hint("retry; see `buttress cluster status`"),
                Some(_) => Error::new(Code::TIMEOUT, "the leader did not answer in time; its outcome is unknown")
                    .hint("ask again: what is done already is not done twice"),
            };
            let _ = asked.reply.send(Err(error.retryable()));
        }
        let (leader, patience) = (self.role.leader, self.options.resend_after);
        let due = |asked: &Asked| match asked.sent {
            None => true,
            Some((to, _)) if Some(to) != leader => true,
            Some((to, at)) => to != self.config.node && now - at > patience,
        };
        let due: Vec<u64> = self.group.asked.iter().filter(|(_, a)| due(a)).map(|(number, _)| *number).collect();
        for number in due {
            self.send_request(number, inputs);
        }
        if self.is_settled() {
            for (by, request) in std::mem::take(&mut self.group.early) {
                self.decide(by, request, inputs);
            }
        }
    }

    pub(super) fn on_ask(&mut self, from: NodeId, number: u64, request: Bytes, inputs: &mut Vec<Input<Machine>>) {
        match MemberRequest::decode(request) {
            Ok(request) => self.decide(AskedBy::Peer(from, number), request, inputs),
            Err(error) => {
                tracing::warn!(peer = from.0, %error, "a peer's request is malformed");
                let error =
                    Error::new(Code::UNSUPPORTED, format!("the leader does not understand the request: {error}"));
                self.answer(Some(AskedBy::Peer(from, number)), Err(NotDone::Refused(error)));
            }
        }
    }

    pub(super) fn on_answer(&mut self, from: NodeId, number: u64, answer: Bytes) {
        // What was asked of another meanwhile is answered by that one.
        let sent = self.group.asked.get(&number).and_then(|asked| asked.sent);
        if sent.is_none_or(|(to, _)| to != from) {
            return;
        }
        match admin::decode_outcome(answer) {
            Ok(outcome) => self.answer(Some(AskedBy::Own(number)), outcome),
            Err(error) => tracing::warn!(peer = from.0, %error, "a peer's answer is malformed"),
        }
    }

    fn answer(&mut self, by: Option<AskedBy>, outcome: Outcome) {
        match by {
            None => {}
            Some(AskedBy::Peer(node, number)) => {
                let answer = admin::encode_outcome(&outcome);
                self.transport.send(node, Lane::Control, Frame::Answer { number, answer });
            }
            Some(AskedBy::Own(number)) => match outcome {
                // Asked again by the next tick.
                Err(NotDone::NotLeader) => {
                    if let Some(asked) = self.group.asked.get_mut(&number) {
                        asked.sent = None;
                    }
                }
                Ok(done) => self.reply(number, Ok(done)),
                Err(NotDone::Refused(error)) => self.reply(number, Err(error)),
            },
        }
    }

    fn reply(&mut self, number: u64, result: Result<MemberDone, Error>) {
        if let Some(asked) = self.group.asked.remove(&number) {
            let _ = asked.reply.send(result);
        }
    }

    /// Whether this very request is being carried out.
    fn is_under_way(&self, by: AskedBy) -> bool {
        let proposed = self.proposed.values().any(|p| matches!(p, Proposer::Change { by: Some(at), .. } if *at == by));
        proposed
            || self.group.finishing.iter().any(|(at, _)| *at == Some(by))
            || self.group.transfers.iter().any(|transfer| transfer.by == Some(by))
            || self.group.early.iter().any(|(at, _)| *at == by)
    }

    fn decide(&mut self, by: AskedBy, request: MemberRequest, inputs: &mut Vec<Input<Machine>>) {
        if self.is_under_way(by) {
            return;
        }
        if !self.role.is_leader {
            self.answer(Some(by), Err(NotDone::NotLeader));
        } else if !self.is_settled() {
            if self.group.early.len() < REQUESTS_MAX {
                self.group.early.push((by, request));
            }
        } else {
            match self.judge(request) {
                Ok(Judgement::Done(done)) => self.answer(Some(by), Ok(done)),
                Ok(Judgement::Change { done, steps, contacts }) => {
                    self.propose_change(Some(by), done, steps, contacts, inputs);
                }
                Ok(Judgement::Transfer { to, ask_again }) => self.transfer(to, Some(by), ask_again, inputs),
                Err(error) => self.answer(Some(by), Err(NotDone::Refused(error))),
            }
        }
    }

    /// What is to be done about a request, on a leader that knows the members.
    fn judge(&self, request: MemberRequest) -> Result<Judgement, Error> {
        let (members, own) = (&self.group.members, self.config.node);
        let alive = self.alive();
        match request {
            MemberRequest::Join { member, promote } => self.judge_join(&member, promote),
            MemberRequest::Remove { id } => {
                if !self.was_member(id)? {
                    return Ok(Judgement::already(id));
                }
                let steps = vec![MemberStep::Remove(id)];
                let warnings = self.check(&format!("removing {}", self.name(id)), &steps, &alive)?;
                self.change_or_leave(id, steps, warnings, own)
            }
            MemberRequest::Promote { id, force } => {
                if !self.was_member(id)? {
                    return Err(self.unknown_member(id));
                }
                if members.voters.contains(&id) {
                    return Ok(Judgement::already(id));
                }
                let steps = vec![MemberStep::Voter(id)];
                let alive = self.ready(id, force, alive)?;
                let warnings = self.check(&format!("adding {}", self.name(id)), &steps, &alive)?;
                Ok(Judgement::Change { done: MemberDone { id, already: false, warnings }, steps, contacts: Vec::new() })
            }
            MemberRequest::Replace { old, new, force } => {
                if old == new {
                    let message = format!("{} cannot replace itself", self.name(old));
                    return Err(Error::new(Code::BAD_REQUEST, message)
                        .hint("name the member that goes, and the one that comes"));
                }
                if !self.was_member(new)? {
                    return Err(self.unknown_member(new));
                }
                let votes = members.voters.contains(&new);
                if !self.was_member(old)? {
                    return if votes { Ok(Judgement::already(new)) } else { Err(self.unknown_member(old)) };
                }
                let mut steps = Vec::new();
                let mut alive = alive;
                if !votes && members.voters.contains(&old) {
                    steps.push(MemberStep::Voter(new));
                    alive = self.ready(new, force, alive)?;
                }
                steps.push(MemberStep::Remove(old));
                let what = format!("replacing {} by {}", self.name(old), self.name(new));
                let warnings = self.check(&what, &steps, &alive)?;
                Ok(match self.change_or_leave(old, steps, warnings, own)? {
                    Judgement::Change { done, steps, contacts } => {
                        Judgement::Change { done: MemberDone { id: new, ..done }, steps, contacts }
                    }
                    other => other,
                })
            }
            MemberRequest::Transfer { to: None, from: Some(from) } if from != own => {
                Ok(Judgement::Done(MemberDone { id: own, ..MemberDone::default() }))
            }
            MemberRequest::Transfer { to: None, .. } => match self.heir() {
                Some(to) => Ok(Judgement::Transfer { to, ask_again: false }),
                None => {
                    Err(Error::new(Code::QUORUM, "no other voter can be reached").hint("see `buttress cluster status`"))
                }
            },
            MemberRequest::Transfer { to: Some(to), .. } if to == own => Ok(Judgement::already(to)),
            MemberRequest::Transfer { to: Some(to), .. } => {
                let refused = |why: &str| Error::new(Code::LAGGING, format!("{} {why}", self.name(to)));
                if !self.was_member(to)? {
                    Err(self.unknown_member(to))
                } else if !members.voters.contains(&to) {
                    Err(refused("is a learner and cannot lead").hint("promote it first: buttress cluster promote"))
                } else if !alive.contains(&to) {
                    Err(refused("cannot be reached").hint("see `buttress cluster status`").retryable())
                } else {
                    Ok(Judgement::Transfer { to, ask_again: false })
                }
            }
        }
    }

    /// A change by which `id` goes; if that is this leader, somebody else is to carry it out.
    fn change_or_leave(
        &self,
        id: NodeId,
        steps: Vec<MemberStep>,
        warnings: Vec<String>,
        own: NodeId,
    ) -> Result<Judgement, Error> {
        if id == own {
            let none =
                || Error::new(Code::QUORUM, format!("{} leads, and no other voter can be reached", self.name(id)));
            return Ok(Judgement::Transfer { to: self.heir().ok_or_else(none)?, ask_again: true });
        }
        Ok(Judgement::Change { done: MemberDone { id, already: false, warnings }, steps, contacts: Vec::new() })
    }

    fn judge_join(&self, member: &Member, promote: bool) -> Result<Judgement, Error> {
        check_member(member)?;
        let everybody = self.addressed();
        let contact = Contact {
            name: member.name.clone(),
            peer: member.peer.clone(),
            kafka: member.kafka.clone(),
            mqtt: member.mqtt.clone(),
            http: member.http.clone(),
            etcd: member.etcd.clone(),
            promote,
        };
        let addresses = |m: &Member| [m.peer.clone(), m.kafka.clone(), m.mqtt.clone(), m.http.clone(), m.etcd.clone()];
        let wanted = addresses(member);
        for other in everybody.iter().filter(|other| other.name != member.name) {
            if let Some(taken) = addresses(other).iter().find(|theirs| !theirs.is_empty() && wanted.contains(theirs)) {
                let message = format!("address \"{taken}\" is that of {}", other.name);
                return Err(Error::new(Code::MEMBER_EXISTS, message).hint("give the new member addresses of its own"));
            }
        }
        let change = |id, already| Judgement::Change {
            done: MemberDone { id, already, warnings: Vec::new() },
            steps: vec![MemberStep::Learner(id)],
            contacts: vec![(id, contact.clone())],
        };
        let members = &self.group.members;
        let Some(there) = everybody.iter().find(|other| other.name == member.name) else {
            if members.all().len() >= MEMBERS_MAX {
                let message = format!("the cluster has {MEMBERS_MAX} members, which is the most it can have");
                return Err(Error::new(Code::TOO_LARGE, message).hint("remove one first"));
            }
            return Ok(change(NodeId(members.highest().0 + 1), false));
        };
        // Its id may be used again only as long as nothing was ever acknowledged under it.
        let matched = self.matched().get(&there.id).copied().unwrap_or_default();
        if there.role != MemberRole::Learner || matched.0 > 0 {
            let message = format!("{} is a member already, with the id {}, and has started", there.name, there.id);
            return Err(Error::new(Code::MEMBER_EXISTS, message)
                .hint("start it with its own configuration and data directory; if those are lost, join under another name and replace it"));
        }
        let known = members.book.contacts.get(&there.id);
        Ok(if known == Some(&contact) { Judgement::already(there.id) } else { change(there.id, true) })
    }

    /// Whether it is a member now; an id that was one once gives false.
    fn was_member(&self, id: NodeId) -> Result<bool, Error> {
        if self.group.members.contains(id) {
            Ok(true)
        } else if id.0 != 0 && id <= self.group.members.highest() {
            Ok(false)
        } else {
            Err(self.unknown_member(id))
        }
    }

    fn unknown_member(&self, id: NodeId) -> Error {
        let names: Vec<String> = self.addressed().into_iter().map(|m| format!("{} ({})", m.name, m.id)).collect();
        Error::new(Code::MEMBER_UNKNOWN, format!("there is no member with the id {id}"))
            .hint(format!("members: {}", names.join(", ")))
    }

    /// Who can be counted on if `id` becomes a voter: all that are reachable, and itself only if it has caught up.
    fn ready(&self, id: NodeId, force: bool, mut alive: BTreeSet<NodeId>) -> Result<BTreeSet<NodeId>, Error> {
        if alive.contains(&id) && self.group.promoter.keeps_up(id) {
            return Ok(alive);
        }
        if !force {
            let status = self.replica.status().engine;
            let peer = status.peers.iter().find(|peer| peer.id == id);
            let lag = status.last.0.saturating_sub(peer.map_or(0, |peer| peer.matched.0));
            let state = match peer {
                _ if !alive.contains(&id) => "cannot be reached",
                Some(peer) if peer.snapshot => "is being sent a snapshot",
                _ => "has not caught up",
            };
            let message = format!("{} {state}; it is {lag} entries behind", self.name(id));
            return Err(Error::new(Code::LAGGING, message).retryable().hint("wait, or see `buttress cluster status`"));
        }
        alive.remove(&id);
        Ok(alive)
    }

    fn check(&self, what: &str, steps: &[MemberStep], alive: &BTreeSet<NodeId>) -> Result<Vec<String>, Error> {
        let name = |id| self.name(id);
        plan::Group { members: &self.group.members, alive, name: &name }.check(what, steps)
    }

    fn propose_change(
        &mut self,
        by: Option<AskedBy>,
        done: MemberDone,
        steps: Vec<MemberStep>,
        contacts: Vec<(NodeId, Contact)>,
        inputs: &mut Vec<Input<Machine>>,
    ) {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.proposed.insert(tag, Proposer::Change { by, done });
        inputs.push(Input::Change(MemberChange { tag, steps, contacts }));
    }

    pub(super) fn on_change_failed(&mut self, by: Option<AskedBy>, done: &MemberDone, error: &ProposalError) {
        let refused =
            |code, text: String| Err(NotDone::Refused(Error::new(code, text).retryable().hint("retry after a pause")));
        let outcome = match error {
            ProposalError::NotLeader { .. } | ProposalError::Lost => Err(NotDone::NotLeader),
            ProposalError::ChangePending => {
                refused(Code::MEMBERS_BUSY, "an earlier change of members is not finished".to_owned())
            }
            ProposalError::Overloaded | ProposalError::TooLarge { .. } => refused(Code::OVERLOADED, error.to_string()),
            ProposalError::ChangeInvalid(why) => Err(NotDone::Refused(Error::new(
                Code::BAD_REQUEST,
                format!("{} cannot be changed: {why}", self.name(done.id)),
            ))),
        };
        self.answer(by, outcome);
    }

    /// Answers changes that were applied, once no joint configuration is left.
    pub(super) fn finish_changes(&mut self) {
        if self.group.finishing.is_empty() || self.group.members.is_joint() {
            return;
        }
        for (by, done) in std::mem::take(&mut self.group.finishing) {
            self.answer(by, Ok(done));
        }
    }
}

enum Judgement {
    Done(MemberDone),
    Change { done: MemberDone, steps: Vec<MemberStep>, contacts: Vec<(NodeId, Contact)> },
    Transfer { to: NodeId, ask_again: bool },
}

impl Judgement {
    fn already(id: NodeId) -> Self {
        Self::Done(MemberDone { id, already: true, warnings: Vec::new() })
    }
}

/// Whether a newcomer's name and addresses can be used.
fn check_member(member: &Member) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let name = &member.name;
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) || name.parse::<u64>().is_ok() {
        let message = format!("\"{}\" cannot be a member's name", name.escape_default());
        let hint =
            format!("1 to {NAME_BYTES_MAX} letters, digits, '-', '_' and '.', and not a number; for example node-4");
        return Err(Error::new(Code::BAD_REQUEST, message).hint(hint));
    }
    let texts = [
        ("peer", &member.peer),
        ("kafka", &member.kafka),
        ("mqtt", &member.mqtt),
        ("http", &member.http),
        ("etcd", &member.etcd),
    ];
    for (edge, address) in texts {
        let absent = address.is_empty() && edge != "peer";
        if !absent && !address.parse::<SocketAddr>().is_ok_and(|parsed| parsed.port() != 0) {
            let message = format!("{edge} address \"{}\" is not IP:PORT", address.escape_default());
            return Err(Error::new(Code::BAD_REQUEST, message).hint("for example 127.0.0.1:7400"));
        }
    }
    let given: Vec<&String> = texts.iter().map(|(_, address)| *address).filter(|address| !address.is_empty()).collect();
    let distinct: BTreeSet<&String> = given.iter().copied().collect();
    if distinct.len() < given.len() {
        let message = format!("two edges of {name} have the same address");
        return Err(Error::new(Code::BAD_REQUEST, message).hint("give every edge a port of its own"));
    }
    Ok(())
}
