//! One classic consumer group, without clock, network or disk.
//!
//! # The problem
//!
//! The members of a group share the partitions of some topics. Whenever one comes or goes they agree anew: all of them join
//! with what they want, one of them (the leader) computes who gets what, and all fetch their part. Each agreement is a
//! *generation*. A member that missed one, because it was slow or cut off, must not commit offsets any more, or a group would
//! go back over what others have done since.
//!
//! # Transitions
//!
//! | state | what happens |
//! |---|---|
//! | `Empty` | no members; offsets may be there, and may be committed by whoever is no member of anything |
//! | `PreparingRebalance` | joins wait until all known members have joined again, or the longest rebalance timeout is over. A group that was empty waits a little for more members first |
//! | `CompletingRebalance` | the new generation is known to its members; syncs wait for the leader's assignment |
//! | `Stable` | the assignment is in the log, and everybody has or can get his part |
//!
//! The assignment is answered only after it is in the log ([`Output::Save`], then [`Input::Saved`]). So whoever coordinates
//! next knows every generation that any member has worked in, and the members go on as if nothing had happened. A save that
//! fails is not this file's business: the host throws the group away and reads it again from the log.
//!
//! A member with a *group instance id* is static: it may go away and come back under another member id within its session
//! timeout, without a rebalance; whoever still uses the old member id is fenced.
//!
//! # First start, recovery
//!
//! A group begins with the first join, or with an offset that is committed without a group. [`Group::restore`] makes it from
//! its [`Record`]; all sessions then begin anew. Before the first commit that it lets through, a coordinator writes the record
//! once more: a commit that an earlier coordinator has sent off is guarded by the revision that the record had then, so it
//! cannot come in after a later one and take the group back.
//!
//! Source: Kafka's group protocol (KIP-62, KIP-345, KIP-394, KIP-814) and its classic group coordinator.

use std::collections::{BTreeMap, BTreeSet};

use buttress_wire::kafka::ErrorCode;
use bytes::Bytes;

use super::record::{MemberRecord, Record};

/// Milliseconds of whatever clock the host uses, as long as it never goes back.
pub type Ms = u64;

/// Names a waiting request to the host.
pub type Token = u64;

/// Names a save to the host.
pub type SaveId = u64;

/// Members of one group.
pub const MEMBERS_MAX: usize = 1_000;
/// Bytes of what all members of a group said about themselves. With [`ASSIGNMENTS_BYTES_MAX`] a record stays below the
/// largest value of a key: 896 + 512 KiB of 1,536.
pub const MEMBERS_BYTES_MAX: usize = 896 * 1024;
/// Bytes of one generation's assignments.
pub const ASSIGNMENTS_BYTES_MAX: usize = 512 * 1024;
/// What a member costs in a record beside its texts.
const MEMBER_BYTES: usize = 64;

/// Times that are the same for every group.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long a group that was empty waits for more members, and again after each that comes. Kafka's
    /// `group.initial.rebalance.delay.ms`.
    pub initial_delay_ms: Ms,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Empty,
    PreparingRebalance,
    CompletingRebalance,
    Stable,
}

impl State {
    /// Kafka's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

/// What a member asks for when it joins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Join {
    /// Empty for a member that has none yet.
    pub member_id: String,
    pub instance: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub protocol_type: String,
    /// In the order in which the member likes them.
    pub protocols: Vec<(String, Bytes)>,
    pub session_ms: Ms,
    pub rebalance_ms: Ms,
    /// The id that the member gets if it has none; the host draws it.
    pub fresh_id: String,
    /// A member without an id is told one and has to come again with it, so that one that never hears the answer leaves
    /// nothing behind (KIP-394).
    pub must_know_id: bool,
    /// The client understands that it leads without having to assign (KIP-814).
    pub can_skip_assignment: bool,
}

/// Who speaks, in which generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub member_id: String,
    pub instance: Option<String>,
    /// Negative where the speaker is in no generation.
    pub generation: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sync {
    pub who: Identity,
    /// What the client believes was agreed; not said by older ones.
    pub protocol_type: Option<String>,
    pub protocol: Option<String>,
    /// From the leader: each member's part.
    pub assignments: Vec<(String, Bytes)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Join(Token, Join),
    Sync(Token, Sync),
    Heartbeat(Token, Identity),
    /// Member ids with instance ids. An empty member id stands for whoever has the instance id.
    Leave(Token, Vec<(String, Option<String>)>),
    /// May the speaker commit offsets? To be asked again where the log does not accept what follows.
    Commit(Token, Identity),
    /// A save is in the log.
    Saved(SaveId),
    /// Time has passed.
    Tick,
}

/// The answer to a join.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    pub error: ErrorCode,
    pub generation: i32,
    pub protocol_type: Option<String>,
    pub protocol: Option<String>,
    pub leader: String,
    pub skip_assignment: bool,
    pub member_id: String,
    /// For the leader: id, instance id and metadata of everybody.
    pub members: Vec<(String, Option<String>, Bytes)>,
}

/// The answer to a sync.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    pub error: ErrorCode,
    pub protocol_type: Option<String>,
    pub protocol: Option<String>,
    pub assignment: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Joined(Joined),
    Synced(Synced),
    /// To a heartbeat or a commit.
    Code(ErrorCode),
    /// One per member that was to leave.
    Left(Vec<ErrorCode>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Answer(Token, Answer),
    /// To be put into the log in place of the group's last record; saves of a group go one after the other.
    Save(SaveId, Record),
}

#[derive(Clone, Debug)]
struct Member {
    instance: Option<String>,
    client_id: String,
    client_host: String,
    session_ms: Ms,
    rebalance_ms: Ms,
    protocols: Vec<(String, Bytes)>,
    assignment: Bytes,
    /// When its session ends, unless it waits for an answer then.
    expires: Ms,
    joining: Option<Token>,
    syncing: Option<Token>,
    /// The last generation that it was told of.
    generation: i32,
}

impl Member {
    fn waits(&self) -> bool {
        self.joining.is_some() || self.syncing.is_some()
    }

    fn touch(&mut self, now: Ms) {
        self.expires = now.saturating_add(self.session_ms);
    }

    fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols
            .iter()
            .find(|(name, _)| name == protocol)
            .map(|(_, metadata)| metadata.clone())
            .unwrap_or_default()
    }
}

/// A member as others may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    pub id: String,
    pub instance: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub metadata: Bytes,
    pub assignment: Bytes,
}

/// How a rebalance waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    until: Ms,
    /// A group that was empty: how much longer it may wait for more members after `until`, and whether one came.
    initial: Option<(Ms, bool)>,
}

/// What happens when a save is in the log.
#[derive(Clone, Debug)]
enum AfterSave {
    /// The generation's members get their parts.
    Assign(i32),
    Join(Token, Joined),
    Nothing,
}

#[derive(Debug)]
pub struct Group {
    times: Times,
    state: State,
    generation: i32,
    protocol_type: Option<String>,
    protocol: Option<String>,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    /// Member ids by instance id.
    instances: BTreeMap<String, String>,
    /// Ids that were given and not yet used, and until when they may be.
    pending: BTreeMap<String, Ms>,
    rebalance: Option<Waiting>,
    /// Until when the members of a new generation must have asked for their parts, and who has not.
    unsynced: Option<(Ms, BTreeSet<String>)>,
    /// A record of the group is in the log.
    saved: bool,
    /// The last generation whose members got their parts; the log has it.
    agreed: i32,
    saves: BTreeMap<SaveId, AfterSave>,
    next_save: SaveId,
    /// The log's record was written by this coordinator. Until then a commit that an earlier one has sent off may still come,
    /// and would come after those that are taken here.
    claimed: bool,
    /// The record as it was read, until it is claimed.
    restored: Option<Record>,
    /// Commits that wait for that.
    claimers: Vec<(Token, Identity)>,
}

impl Group {
    /// A group that nobody has heard of.
    pub fn new(times: Times) -> Self {
        Self {
            times,
            state: State::Empty,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            instances: BTreeMap::new(),
            pending: BTreeMap::new(),
            rebalance: None,
            unsynced: None,
            saved: false,
            agreed: -1,
            saves: BTreeMap::new(),
            next_save: 0,
            claimed: false,
            restored: None,
            claimers: Vec::new(),
        }
    }

    /// The group as the log has it. Every member's session begins now.
    pub fn restore(times: Times, record: Record, now: Ms) -> Self {
        let mut group = Self::new(times);
        group.saved = true;
        group.restored = Some(record.clone());
        group.generation = record.generation;
        group.agreed = record.generation;
        group.protocol_type = record.protocol_type;
        group.protocol = record.protocol;
        group.leader = record.leader;
        for member in record.members {
            // The key space is open to others, so the record may be nobody's work of ours: an id stands for one member.
            let twice = member.instance.as_ref().is_some_and(|instance| group.instances.contains_key(instance));
            if twice || group.members.contains_key(&member.id) {
                continue;
            }
            if let Some(instance) = &member.instance {
                group.instances.insert(instance.clone(), member.id.clone());
            }
            let restored = Member {
                instance: member.instance,
                client_id: member.client_id,
                client_host: member.client_host,
                session_ms: member.session_ms,
                rebalance_ms: member.rebalance_ms,
                protocols: member.protocols,
                assignment: member.assignment,
                expires: now.saturating_add(member.session_ms),
                joining: None,
                syncing: None,
                generation: record.generation,
            };
            group.members.insert(member.id, restored);
        }
        group.state = if group.members.is_empty() { State::Empty } else { State::Stable };
        group
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn protocol_type(&self) -> &str {
        self.protocol_type.as_deref().unwrap_or_default()
    }

    /// What was agreed; nothing while a rebalance is under way.
    pub fn protocol(&self) -> &str {
        match self.state {
            State::Stable => self.protocol.as_deref().unwrap_or_default(),
            _ => "",
        }
    }

    /// Nobody is there, nobody is expected, and the log knows nothing of it: it need not be kept.
    pub fn is_gone(&self) -> bool {
        self.state == State::Empty && !self.saved && self.pending.is_empty() && self.saves.is_empty()
    }

    pub fn members(&self) -> Vec<MemberView> {
        let protocol = self.protocol();
        let view = |(id, member): (&String, &Member)| MemberView {
            id: id.clone(),
            instance: member.instance.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: member.metadata(protocol),
            assignment: if protocol.is_empty() { Bytes::new() } else { member.assignment.clone() },
        };
        self.members.iter().map(view).collect()
    }

    /// The metadata that members sent for the protocol in force, or for any while there is none.
    pub fn subscriptions(&self) -> impl Iterator<Item = &Bytes> {
        self.members.values().flat_map(|member| member.protocols.iter().map(|(_, metadata)| metadata))
    }

    /// When [`Input::Tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Ms> {
        let sessions = self.members.values().filter(|member| !member.waits()).map(|member| member.expires);
        let rebalance = self.rebalance.map(|waiting| waiting.until);
        let unsynced = self.unsynced.as_ref().map(|(until, _)| *until);
        sessions.chain(self.pending.values().copied()).chain(rebalance).chain(unsynced).min()
    }

    /// Every request that waits, with an answer that says why it waits no longer. For a group that is thrown away.
    pub fn abandon(self, error: ErrorCode) -> Vec<(Token, Answer)> {
        let mut answers = Vec::new();
        for (id, member) in self.members {
            answers.extend(member.joining.map(|token| (token, refused(error, id.clone()))));
            answers.extend(member.syncing.map(|token| (token, unsynced(error))));
        }
        answers.extend(self.claimers.into_iter().map(|(token, _)| (token, Answer::Code(error))));
        for (_, after) in self.saves {
            match after {
                AfterSave::Join(token, joined) => answers.push((token, refused(error, joined.member_id))),
                AfterSave::Assign(_) | AfterSave::Nothing => {}
            }
        }
        answers
    }

    pub fn step(&mut self, now: Ms, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Join(token, join) => self.join(now, token, join, &mut out),
            Input::Sync(token, sync) => self.sync(now, token, sync, &mut out),
            Input::Heartbeat(token, who) => {
                let code = self.heartbeat(now, &who);
                out.push(Output::Answer(token, Answer::Code(code)));
            }
            Input::Leave(token, leavers) => {
                let codes = leavers.iter().map(|(id, instance)| self.leave(now, id, instance.as_deref(), &mut out));
                let codes = codes.collect();
                out.push(Output::Answer(token, Answer::Left(codes)));
            }
            Input::Commit(token, who) => self.commit(now, token, &who, &mut out),
            Input::Saved(id) => self.saved(now, id, &mut out),
            Input::Tick => self.tick(now, &mut out),
        }
        out
    }

    // Joining.

    fn join(&mut self, now: Ms, token: Token, join: Join, out: &mut Vec<Output>) {
        let refuse = |out: &mut Vec<Output>, code| {
            out.push(Output::Answer(token, refused(code, join.member_id.clone())));
        };
        if !self.supports(&join) {
            return refuse(out, ErrorCode::INCONSISTENT_GROUP_PROTOCOL);
        }
        if self.is_full_for(&join) {
            return refuse(out, ErrorCode::GROUP_MAX_SIZE_REACHED);
        }
        if join.member_id.is_empty() {
            return match join.instance.as_ref().and_then(|instance| self.instances.get(instance)).cloned() {
                Some(old) => self.replace_static(now, token, &old, join, out),
                None if join.instance.is_none() && join.must_know_id => {
                    self.pending.insert(join.fresh_id.clone(), now.saturating_add(join.session_ms));
                    out.push(Output::Answer(token, refused(ErrorCode::MEMBER_ID_REQUIRED, join.fresh_id)));
                }
                None => self.add(now, token, join.fresh_id.clone(), join, out),
            };
        }
        if join.instance.is_none() && self.pending.remove(&join.member_id).is_some() {
            return self.add(now, token, join.member_id.clone(), join, out);
        }
        if let Err(code) = self.find(&join.member_id, join.instance.as_deref()) {
            return refuse(out, code);
        }
        let member = &self.members[&join.member_id];
        let same = member.protocols == join.protocols;
        let leads = self.leader.as_ref() == Some(&join.member_id);
        match self.state {
            // It did not hear the answer to its last join, or it is a follower that joins again without a reason.
            State::CompletingRebalance if same => self.join_again(now, token, &join, out),
            State::Stable if same && !leads => self.join_again(now, token, &join, out),
            // A leader joins again to make the group rebalance, for instance because a topic has more partitions.
            _ => self.update(now, token, join, out),
        }
    }

    fn supports(&self, join: &Join) -> bool {
        if join.protocols.is_empty() || join.protocol_type.is_empty() {
            return false;
        }
        // A member that comes again may change its mind as long as it is alone with it.
        let others = || {
            let is_self = |id: &str, member: &Member| {
                id == join.member_id || (join.instance.is_some() && member.instance == join.instance)
            };
            self.members.iter().filter(move |(id, member)| !is_self(id, member)).map(|(_, member)| member)
        };
        if others().next().is_none() {
            return true;
        }
        self.protocol_type.as_ref() == Some(&join.protocol_type)
            && join
                .protocols
                .iter()
                .any(|(name, _)| others().all(|member| member.protocols.iter().any(|(other, _)| other == name)))
    }

    fn is_full_for(&self, join: &Join) -> bool {
        let known = |member: &Member| {
            let protocols: usize = member.protocols.iter().map(|(name, metadata)| name.len() + metadata.len()).sum();
            let instance = member.instance.as_ref().map_or(0, String::len);
            MEMBER_BYTES + 2 * member.client_id.len() + member.client_host.len() + 2 * instance + protocols
        };
        let others = self.members.iter().filter(|(id, _)| **id != join.member_id);
        let (count, bytes) =
            others.fold((0, 0), |(count, bytes), (id, member)| (count + 1, bytes + id.len() + known(member)));
        let protocols: usize = join.protocols.iter().map(|(name, metadata)| name.len() + metadata.len()).sum();
        let instance = join.instance.as_ref().map_or(0, String::len);
        let texts = join.fresh_id.len() + 2 * join.client_id.len() + join.client_host.len() + 2 * instance;
        let returns = self.members.contains_key(&join.member_id)
            || join.instance.as_ref().is_some_and(|instance| self.instances.contains_key(instance));
        (!returns && count + self.pending.len() >= MEMBERS_MAX && !self.pending.contains_key(&join.member_id))
            || bytes + MEMBER_BYTES + texts + protocols > MEMBERS_BYTES_MAX
    }

    /// Whether the member is there under this id; a static one must be it still.
    fn find(&self, id: &str, instance: Option<&str>) -> Result<(), ErrorCode> {
        if let Some(instance) = instance {
            match self.instances.get(instance) {
                None => return Err(ErrorCode::UNKNOWN_MEMBER_ID),
                Some(current) if current != id => return Err(ErrorCode::FENCED_INSTANCE_ID),
                Some(_) => {}
            }
        }
        if self.members.contains_key(id) { Ok(()) } else { Err(ErrorCode::UNKNOWN_MEMBER_ID) }
    }

    fn add(&mut self, now: Ms, token: Token, id: String, join: Join, out: &mut Vec<Output>) {
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type.clone());
        }
        if let Some(instance) = &join.instance {
            self.instances.insert(instance.clone(), id.clone());
        }
        let member = Member {
            instance: join.instance,
            client_id: join.client_id,
            client_host: join.client_host,
            session_ms: join.session_ms,
            rebalance_ms: join.rebalance_ms,
            protocols: join.protocols,
            assignment: Bytes::new(),
            expires: now.saturating_add(join.session_ms),
            joining: Some(token),
            syncing: None,
            generation: -1,
        };
        self.members.insert(id.clone(), member);
        self.leader.get_or_insert(id);
        if let Some(Waiting { initial: Some((_, came)), .. }) = &mut self.rebalance {
            *came = true;
        }
        self.rebalance_or_complete(now, out);
    }

    fn update(&mut self, now: Ms, token: Token, join: Join, out: &mut Vec<Output>) {
        let member = self.members.get_mut(&join.member_id).expect("the member was found");
        if let Some(old) = member.joining.replace(token) {
            // The client has given up on it, or it would not ask again.
            out.push(Output::Answer(old, refused(ErrorCode::REBALANCE_IN_PROGRESS, join.member_id.clone())));
        }
        member.protocols = join.protocols;
        member.session_ms = join.session_ms;
        member.rebalance_ms = join.rebalance_ms;
        member.client_id = join.client_id;
        member.client_host = join.client_host;
        member.touch(now);
        if self.members.len() == 1 {
            self.protocol_type = Some(join.protocol_type);
        }
        self.rebalance_or_complete(now, out);
    }

    /// Answers a join with the generation that there is.
    fn join_again(&mut self, now: Ms, token: Token, join: &Join, out: &mut Vec<Output>) {
        self.members.get_mut(&join.member_id).expect("the member was found").touch(now);
        out.push(Output::Answer(token, Answer::Joined(self.joined(&join.member_id))));
    }

    /// What a member is told of its generation.
    fn joined(&self, id: &str) -> Joined {
        let leads = self.leader.as_deref() == Some(id);
        let protocol = self.protocol.clone().unwrap_or_default();
        let all =
            || self.members.iter().map(|(id, m)| (id.clone(), m.instance.clone(), m.metadata(&protocol))).collect();
        Joined {
            error: ErrorCode::NONE,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            skip_assignment: false,
            member_id: id.to_owned(),
            members: if leads { all() } else { Vec::new() },
        }
    }

    /// A static member comes back: it takes the place of its former self.
    fn replace_static(&mut self, now: Ms, token: Token, old: &str, join: Join, out: &mut Vec<Output>) {
        let id = join.fresh_id.clone();
        let mut member = self.members.remove(old).expect("an instance's member is there");
        let instance = member.instance.clone().expect("it was found by its instance id");
        for (token, answer) in [
            (member.joining.take(), refused(ErrorCode::FENCED_INSTANCE_ID, old.to_owned())),
            (member.syncing.take(), unsynced(ErrorCode::FENCED_INSTANCE_ID)),
        ] {
            out.extend(token.map(|token| Output::Answer(token, answer)));
        }
        member.protocols = join.protocols;
        member.session_ms = join.session_ms;
        member.rebalance_ms = join.rebalance_ms;
        member.client_id = join.client_id;
        member.client_host = join.client_host;
        member.touch(now);
        self.members.insert(id.clone(), member);
        self.instances.insert(instance, id.clone());
        let led = self.leader.as_deref() == Some(old);
        if led {
            self.leader = Some(id.clone());
        }
        if let Some((_, missing)) = &mut self.unsynced
            && missing.remove(old)
        {
            missing.insert(id.clone());
        }
        if self.state == State::Stable && self.vote() == self.protocol {
            // Nothing changes for the others. The new id must be in the log before anybody hears of it.
            let mut joined = self.joined(&id);
            if led && join.can_skip_assignment {
                joined.skip_assignment = true;
            } else if led {
                // An older client that hears that it leads would assign; so it hears the id that it had.
                joined.leader = old.to_owned();
                joined.members = Vec::new();
            }
            return self.save(AfterSave::Join(token, joined), out);
        }
        self.members.get_mut(&id).expect("it was just inserted").joining = Some(token);
        self.rebalance_or_complete(now, out);
    }

    fn rebalance_or_complete(&mut self, now: Ms, out: &mut Vec<Output>) {
        match self.state {
            State::PreparingRebalance => self.complete_if_all_joined(now, out),
            State::Empty | State::CompletingRebalance | State::Stable => self.prepare(now, out),
        }
    }

    fn prepare(&mut self, now: Ms, out: &mut Vec<Output>) {
        if self.state == State::CompletingRebalance {
            for member in self.members.values_mut() {
                member.assignment = Bytes::new();
                if let Some(token) = member.syncing.take() {
                    member.touch(now);
                    out.push(Output::Answer(token, unsynced(ErrorCode::REBALANCE_IN_PROGRESS)));
                }
            }
        }
        self.unsynced = None;
        let was_empty = self.state == State::Empty;
        self.state = State::PreparingRebalance;
        let longest = self.members.values().map(|member| member.rebalance_ms).max().unwrap_or(0);
        if was_empty {
            let delay = self.times.initial_delay_ms;
            let left = longest.saturating_sub(delay);
            self.rebalance = Some(Waiting { until: now.saturating_add(delay), initial: Some((left, false)) });
            if delay == 0 {
                self.tick_rebalance(now, out);
            }
        } else {
            self.rebalance = Some(Waiting { until: now.saturating_add(longest), initial: None });
            self.complete_if_all_joined(now, out);
        }
    }

    fn complete_if_all_joined(&mut self, now: Ms, out: &mut Vec<Output>) {
        let waits_for_first = self.rebalance.is_some_and(|waiting| waiting.initial.is_some());
        let all = self.members.values().all(|member| member.joining.is_some()) && self.pending.is_empty();
        if self.state == State::PreparingRebalance && all && (!waits_for_first || self.members.is_empty()) {
            self.complete(now, out);
        }
    }

    fn tick_rebalance(&mut self, now: Ms, out: &mut Vec<Output>) {
        let Some(waiting) = self.rebalance.filter(|waiting| waiting.until <= now) else { return };
        match waiting.initial {
            Some((left, true)) if left > 0 => {
                let delay = self.times.initial_delay_ms.min(left);
                let initial = Some((left - delay, false));
                self.rebalance = Some(Waiting { until: now.saturating_add(delay), initial });
            }
            _ => self.complete(now, out),
        }
    }

    /// Ends the joining: whoever is there makes the next generation.
    fn complete(&mut self, now: Ms, out: &mut Vec<Output>) {
        // Static members may still come back within their sessions; the others are taken for gone.
        let missing = self.members.iter().filter(|(_, m)| m.joining.is_none() && m.instance.is_none());
        let missing: Vec<String> = missing.map(|(id, _)| id.clone()).collect();
        missing.iter().for_each(|id| self.remove(id));
        if !self.members.is_empty() && self.members.values().all(|member| member.joining.is_none()) {
            // Only static members, none of which has come: nobody is there who could lead.
            let longest = self.members.values().map(|member| member.rebalance_ms).max().unwrap_or(0).max(1);
            self.rebalance = Some(Waiting { until: now.saturating_add(longest), initial: None });
            return;
        }
        self.rebalance = None;
        self.generation = if self.generation == i32::MAX { 0 } else { self.generation + 1 };
        if self.members.is_empty() {
            self.state = State::Empty;
            self.protocol = None;
            self.leader = None;
            if self.saved {
                self.save(AfterSave::Nothing, out);
            }
            return;
        }
        let leads = |id: &String| self.members.get(id).is_some_and(|member| member.joining.is_some());
        if !self.leader.as_ref().is_some_and(leads) {
            let joined = self.members.iter().find(|(_, member)| member.joining.is_some());
            self.leader = joined.map(|(id, _)| id.clone());
        }
        self.protocol = self.vote();
        self.state = State::CompletingRebalance;
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in &ids {
            let joined = self.joined(id);
            let member = self.members.get_mut(id).expect("it is one of the members");
            member.assignment = Bytes::new();
            member.touch(now);
            if let Some(token) = member.joining.take() {
                member.generation = self.generation;
                out.push(Output::Answer(token, Answer::Joined(joined)));
            }
        }
        let longest = self.members.values().map(|member| member.rebalance_ms).max().unwrap_or(0);
        self.unsynced = Some((now.saturating_add(longest), ids.into_iter().collect()));
    }

    /// Every member votes for the first of its protocols that all members know.
    fn vote(&self) -> Option<String> {
        let known_to_all =
            |name: &str| self.members.values().all(|member| member.protocols.iter().any(|(other, _)| other == name));
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            let choice = member.protocols.iter().find(|(name, _)| known_to_all(name));
            if let Some((name, _)) = choice {
                *votes.entry(name).or_default() += 1;
            }
        }
        let best = votes.iter().max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(a.0)));
        best.map(|(name, _)| (*name).to_owned())
    }

    // Syncing.

    fn sync(&mut self, now: Ms, token: Token, sync: Sync, out: &mut Vec<Output>) {
        let refuse = |out: &mut Vec<Output>, code| out.push(Output::Answer(token, unsynced(code)));
        let id = &sync.who.member_id;
        if let Err(code) = self.find(id, sync.who.instance.as_deref()) {
            return refuse(out, code);
        }
        if sync.who.generation != self.generation {
            return refuse(out, ErrorCode::ILLEGAL_GENERATION);
        }
        let differs = |said: &Option<String>, agreed: &Option<String>| said.is_some() && said != agreed;
        if differs(&sync.protocol_type, &self.protocol_type) || differs(&sync.protocol, &self.protocol) {
            return refuse(out, ErrorCode::INCONSISTENT_GROUP_PROTOCOL);
        }
        match self.state {
            State::Empty => return refuse(out, ErrorCode::UNKNOWN_MEMBER_ID),
            State::PreparingRebalance => return refuse(out, ErrorCode::REBALANCE_IN_PROGRESS),
            State::CompletingRebalance | State::Stable => {}
        }
        let leads = self.leader.as_ref() == Some(id);
        if leads && self.state == State::CompletingRebalance {
            let bytes: usize = sync.assignments.iter().map(|(_, assignment)| assignment.len()).sum();
            if bytes > ASSIGNMENTS_BYTES_MAX {
                return refuse(out, ErrorCode::INVALID_REQUEST);
            }
        }
        if let Some((_, missing)) = &mut self.unsynced {
            missing.remove(id);
            if missing.is_empty() {
                self.unsynced = None;
            }
        }
        let member = self.members.get_mut(id).expect("it was found");
        member.touch(now);
        if self.state == State::Stable {
            let assignment = member.assignment.clone();
            out.push(Output::Answer(token, Answer::Synced(self.synced(assignment))));
            return;
        }
        if let Some(old) = member.syncing.replace(token) {
            out.push(Output::Answer(old, unsynced(ErrorCode::REBALANCE_IN_PROGRESS)));
        }
        let under_way = self.saves.values().any(|after| matches!(after, AfterSave::Assign(g) if *g == self.generation));
        if leads && !under_way {
            for (id, assignment) in sync.assignments {
                if let Some(member) = self.members.get_mut(&id) {
                    member.assignment = assignment;
                }
            }
            self.save(AfterSave::Assign(self.generation), out);
        }
    }

    fn synced(&self, assignment: Bytes) -> Synced {
        Synced {
            error: ErrorCode::NONE,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment,
        }
    }

    fn save(&mut self, after: AfterSave, out: &mut Vec<Output>) {
        let record = self.record();
        self.save_as(record, after, out);
    }

    fn save_as(&mut self, record: Record, after: AfterSave, out: &mut Vec<Output>) {
        let id = self.next_save;
        self.next_save += 1;
        self.saves.insert(id, after);
        out.push(Output::Save(id, record));
    }

    fn record(&self) -> Record {
        let member = |(id, member): (&String, &Member)| MemberRecord {
            id: id.clone(),
            instance: member.instance.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            session_ms: member.session_ms,
            rebalance_ms: member.rebalance_ms,
            protocols: member.protocols.clone(),
            assignment: member.assignment.clone(),
        };
        Record {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: self.members.iter().map(member).collect(),
        }
    }

    fn saved(&mut self, now: Ms, id: SaveId, out: &mut Vec<Output>) {
        self.saved = true;
        self.claimed = true;
        self.restored = None;
        match self.saves.remove(&id) {
            Some(AfterSave::Assign(generation))
                if self.state == State::CompletingRebalance && generation == self.generation =>
            {
                self.state = State::Stable;
                self.agreed = generation;
                let mut answers = Vec::new();
                for member in self.members.values_mut() {
                    if let Some(token) = member.syncing.take() {
                        member.touch(now);
                        answers.push((token, member.assignment.clone()));
                    }
                }
                let answer = |(token, assignment)| Output::Answer(token, Answer::Synced(self.synced(assignment)));
                out.extend(answers.into_iter().map(answer));
            }
            Some(AfterSave::Join(token, joined)) => {
                if let Some(member) = self.members.get_mut(&joined.member_id) {
                    member.touch(now);
                }
                out.push(Output::Answer(token, Answer::Joined(joined)));
            }
            Some(AfterSave::Assign(_) | AfterSave::Nothing) | None => {}
        }
        for (token, who) in std::mem::take(&mut self.claimers) {
            self.commit(now, token, &who, out);
        }
    }

    // Living and leaving.

    fn heartbeat(&mut self, now: Ms, who: &Identity) -> ErrorCode {
        if let Err(code) = self.find(&who.member_id, who.instance.as_deref()) {
            return code;
        }
        if who.generation != self.generation {
            return ErrorCode::ILLEGAL_GENERATION;
        }
        self.members.get_mut(&who.member_id).expect("it was found").touch(now);
        match self.state {
            State::Empty => ErrorCode::UNKNOWN_MEMBER_ID,
            State::PreparingRebalance => ErrorCode::REBALANCE_IN_PROGRESS,
            State::CompletingRebalance | State::Stable => ErrorCode::NONE,
        }
    }

    fn commit(&mut self, now: Ms, token: Token, who: &Identity, out: &mut Vec<Output>) {
        let code = self.may_commit(now, who);
        if code.is_error() || self.claimed {
            return out.push(Output::Answer(token, Answer::Code(code)));
        }
        self.claimers.push((token, who.clone()));
        // Any save claims the group. Where none is under way, what is there is written once more: its revision is what counts.
        if self.saves.is_empty() {
            let record = self.restored.take().unwrap_or_else(|| self.record());
            self.save_as(record, AfterSave::Nothing, out);
        }
    }

    /// Nobody has ever joined it, and nothing of it is kept.
    fn is_unheard_of(&self) -> bool {
        self.state == State::Empty
            && self.pending.is_empty()
            && self.saves.is_empty()
            && self.restored.is_none()
            && !self.claimed
    }

    fn may_commit(&mut self, now: Ms, who: &Identity) -> ErrorCode {
        let stranger = who.generation < 0 && who.member_id.is_empty() && who.instance.is_none();
        if who.generation < 0 && self.state == State::Empty {
            // Somebody who takes no part in groups, or an administrator.
            ErrorCode::NONE
        } else if stranger {
            ErrorCode::UNKNOWN_MEMBER_ID
        } else if who.generation >= 0 && self.is_unheard_of() {
            // As Kafka says it of a group that is not there.
            ErrorCode::ILLEGAL_GENERATION
        } else {
            match self.find(&who.member_id, who.instance.as_deref()) {
                Err(code) => code,
                Ok(()) if who.generation != self.generation => ErrorCode::ILLEGAL_GENERATION,
                // Nobody has a part in this generation yet, or this member has none.
                Ok(()) if self.agreed != self.generation => ErrorCode::REBALANCE_IN_PROGRESS,
                Ok(()) if self.members[&who.member_id].generation != self.agreed => ErrorCode::REBALANCE_IN_PROGRESS,
                Ok(()) => {
                    self.members.get_mut(&who.member_id).expect("it was found").touch(now);
                    ErrorCode::NONE
                }
            }
        }
    }

    fn leave(&mut self, now: Ms, id: &str, instance: Option<&str>, out: &mut Vec<Output>) -> ErrorCode {
        let id = match (id, instance) {
            ("", Some(instance)) => match self.instances.get(instance) {
                Some(id) => id.clone(),
                None => return ErrorCode::UNKNOWN_MEMBER_ID,
            },
            (id, _) => id.to_owned(),
        };
        if self.pending.remove(&id).is_some() {
            self.complete_if_all_joined(now, out);
            return ErrorCode::NONE;
        }
        if let Err(code) = self.find(&id, instance) {
            return code;
        }
        self.part(now, &id, out);
        ErrorCode::NONE
    }

    /// A member goes, and the others have to agree anew.
    fn part(&mut self, now: Ms, id: &str, out: &mut Vec<Output>) {
        let member = &self.members[id];
        out.extend(member.joining.map(|t| Output::Answer(t, refused(ErrorCode::UNKNOWN_MEMBER_ID, id.to_owned()))));
        out.extend(member.syncing.map(|t| Output::Answer(t, unsynced(ErrorCode::UNKNOWN_MEMBER_ID))));
        self.remove(id);
        self.rebalance_or_complete(now, out);
    }

    fn remove(&mut self, id: &str) {
        let member = self.members.remove(id).expect("it was found");
        if let Some(instance) = member.instance {
            self.instances.remove(&instance);
        }
        if let Some((_, missing)) = &mut self.unsynced {
            missing.remove(id);
        }
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    fn tick(&mut self, now: Ms, out: &mut Vec<Output>) {
        let before = self.pending.len();
        self.pending.retain(|_, until| *until > now);
        if self.pending.len() < before {
            self.complete_if_all_joined(now, out);
        }
        let silent = self.members.iter().filter(|(_, member)| !member.waits() && member.expires <= now);
        let silent: Vec<String> = silent.map(|(id, _)| id.clone()).collect();
        for id in silent {
            // A rebalance that the one before it has ended may have answered and thereby touched it.
            if self.members.get(&id).is_some_and(|member| !member.waits() && member.expires <= now) {
                self.part(now, &id, out);
            }
        }
        if let Some((until, missing)) = self.unsynced.clone()
            && until <= now
        {
            // Whoever has not asked for its part does not work; the others must not wait for it, nor for its part.
            self.unsynced = None;
            missing
                .iter()
                .filter(|id| self.members.contains_key(*id))
                .cloned()
                .collect::<Vec<_>>()
                .iter()
                .for_each(|id| self.remove(id));
            self.rebalance_or_complete(now, out);
        }
        self.tick_rebalance(now, out);
    }
}

fn refused(error: ErrorCode, member_id: String) -> Answer {
    Answer::Joined(Joined { error, generation: -1, member_id, ..Joined::default() })
}

fn unsynced(error: ErrorCode) -> Answer {
    Answer::Synced(Synced { error, ..Synced::default() })
}
