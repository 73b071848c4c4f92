//! The task that coordinates groups while this node leads.
//!
//! It owns every [`Group`], gives them their inputs one at a time, keeps their clocks, and carries out their saves. Whoever
//! wants something of a group sends a command and waits for the answer.
//!
//! | this node | what happens |
//! |---|---|
//! | does not lead | everything is answered with NOT_COORDINATOR |
//! | begins to lead | all records are read behind a barrier; what comes meanwhile waits |
//! | leads | groups live |
//! | stops leading | what waits is answered with NOT_COORDINATOR, all groups are forgotten |
//!
//! A save is an entry with a guard on the revision of the group's last record. Where it is refused somebody else coordinates,
//! or did until just now; where its outcome is not known it may be anything. In both cases the group is thrown away and read
//! again. So at worst two nodes answer heartbeats for a moment, but only one of them can bring a group to its next
//! generation.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use buttress_core::{
    BoxFuture, Cluster, Consistency, Entry, Error, Forget, Guard, KeyRange, Ledger, Put, Revision, Stream, SubmitError,
};
use buttress_wire::kafka::ErrorCode;
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    GROUPS_MAX, cursor_group,
    group::{Answer, Group, Identity, Input, MemberView, Ms, Output, SaveId, State, Times, Token},
    record::{self, Record},
};
use crate::kafka::stopped;

/// Commands that wait for the task. Beyond, a connection waits until there is room.
const COMMANDS_MAX: usize = 1_024;
/// Commands that wait while the groups are read. Beyond, clients are told to come again.
const STASH_MAX: usize = 1_024;
/// Records that are read at a time.
const LOAD_KEYS: usize = 256;
/// Pause before records that could not be read are read again.
const LOAD_PAUSE: Duration = Duration::from_millis(300);
/// How often groups without members are looked at.
const SWEEP_MS: Ms = 3_600_000;
/// A group without members whose offsets nobody has touched for so long goes, with its offsets. Kafka's
/// `offsets.retention.minutes`. It counts anew when the leader changes.
const RETENTION_MS: Ms = 7 * 24 * 3_600_000;

/// What an answer of a group holds under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Of the group's record in the log; 0 where there is none.
    pub revision: Revision,
    /// Another one whenever the group was read anew: in between others may have coordinated it.
    pub life: u64,
}

/// An answer, and what it holds under.
pub type Told = Result<(Answer, Standing), ErrorCode>;

/// A group as administrators see it.
#[derive(Clone, Debug)]
pub struct GroupView {
    pub id: String,
    pub state: State,
    pub protocol_type: String,
    pub protocol: String,
    pub members: Vec<MemberView>,
    /// What members said when they joined, for whoever knows how to read it.
    pub subscriptions: Vec<bytes::Bytes>,
    pub revision: Revision,
}

type Make = Box<dyn FnOnce(Token) -> Input + Send>;

/// A group's name, its protocol type and its state.
pub type Listed = (String, String, State);

enum Command {
    Group {
        group: String,
        create: bool,
        make: Make,
        reply: oneshot::Sender<Told>,
    },
    /// An entry with a guard on this revision was refused. Answered when it makes sense to ask the group again.
    Stale {
        group: String,
        revision: Revision,
        reply: oneshot::Sender<()>,
    },
    List {
        reply: oneshot::Sender<Result<Vec<Listed>, ErrorCode>>,
    },
    View {
        group: String,
        reply: oneshot::Sender<Result<Option<GroupView>, ErrorCode>>,
    },
    Delete {
        group: String,
        reply: oneshot::Sender<Result<(), ErrorCode>>,
    },
}

impl Command {
    fn refuse(self, error: ErrorCode) {
        // Whoever asked may be gone; then nobody wants to know.
        match self {
            Self::Group { reply, .. } => drop(reply.send(Err(error))),
            Self::Stale { reply, .. } => {
                let _ = reply.send(());
            }
            Self::List { reply } => drop(reply.send(Err(error))),
            Self::View { reply, .. } => drop(reply.send(Err(error))),
            Self::Delete { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// The way to the task.
#[derive(Clone)]
pub struct Coordinator(mpsc::Sender<Command>);

impl Coordinator {
    async fn send<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Result<T, ErrorCode> {
        self.0.send(command).await.map_err(|_| ErrorCode::COORDINATOR_NOT_AVAILABLE)?;
        answer.await.map_err(|_| ErrorCode::COORDINATOR_NOT_AVAILABLE)
    }

    /// Gives a group an input and waits for its answer. A group that does not exist is created where `create` says so;
    /// otherwise nobody is a member of it.
    pub async fn ask(&self, group: &str, create: bool, make: impl FnOnce(Token) -> Input + Send + 'static) -> Told {
        let (reply, answer) = oneshot::channel();
        let command = Command::Group { group: group.to_owned(), create, make: Box::new(make), reply };
        self.send(command, answer).await?
    }

    /// May `who` commit offsets? Gives the revision to guard on.
    pub async fn may_commit(&self, group: &str, who: Identity) -> Result<Standing, ErrorCode> {
        let create = who.generation < 0;
        match self.ask(group, create, |token| Input::Commit(token, who)).await? {
            (Answer::Code(ErrorCode::NONE), standing) => Ok(standing),
            (Answer::Code(code), _) => Err(code),
            (other, _) => unreachable!("a commit is answered with a code, not with {other:?}"),
        }
    }

    pub async fn stale(&self, group: &str, revision: Revision) {
        let (reply, answer) = oneshot::channel();
        let _ = self.send(Command::Stale { group: group.to_owned(), revision, reply }, answer).await;
    }

    pub async fn list(&self) -> Result<Vec<Listed>, ErrorCode> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::List { reply }, answer).await?
    }

    pub async fn view(&self, group: &str) -> Result<Option<GroupView>, ErrorCode> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::View { group: group.to_owned(), reply }, answer).await?
    }

    pub async fn delete(&self, group: &str) -> Result<(), ErrorCode> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Delete { group: group.to_owned(), reply }, answer).await?
    }
}

/// What the task stands on.
pub struct Deps {
    pub ledger: Arc<dyn Ledger>,
    pub stream: Arc<dyn Stream>,
    pub cluster: Arc<dyn Cluster>,
    pub initial_delay: Duration,
}

/// Makes the task, and the way to it. It ends when the node stops or nobody can ask it any more.
pub fn new(deps: Deps, shutdown: watch::Receiver<bool>) -> (Coordinator, impl Future<Output = ()> + Send) {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let task = Task {
        times: Times { initial_delay_ms: deps.initial_delay.as_millis() as Ms },
        deps,
        start: Instant::now(),
        role: Role::Follower,
        reign: 0,
        slots: BTreeMap::new(),
        deadlines: BTreeSet::new(),
        waiting: BTreeMap::new(),
        next_token: 0,
        lives: 0,
        work: FuturesUnordered::new(),
        next_sweep: SWEEP_MS,
    };
    (Coordinator(sender), task.run(commands, shutdown))
}

enum Role {
    Follower,
    Loading(VecDeque<Command>),
    Leader,
}

struct Live {
    group: Group,
    life: u64,
    /// Of the group's record in the log; 0 where there is none.
    revision: Revision,
    saving: bool,
    saves: VecDeque<(SaveId, Record)>,
    deadline: Option<Ms>,
    used: Ms,
    /// Who was refused by the log, and waits for the save that is under way.
    stale: Vec<oneshot::Sender<()>>,
}

enum Slot {
    Live(Box<Live>),
    /// Being read again, or deleted.
    Busy,
}

type Loaded = Vec<(String, Record, Revision)>;

enum Done {
    Loaded(Result<Loaded, Error>),
    Reloaded(String, Result<Option<(Record, Revision)>, Error>),
    Saved(String, SaveId, Result<Revision, SubmitError>),
    Deleted(String, Result<(), SubmitError>, Option<oneshot::Sender<Result<(), ErrorCode>>>),
}

struct Task {
    times: Times,
    deps: Deps,
    start: Instant,
    role: Role,
    /// Grows whenever this node begins to lead; what belongs to an earlier reign is dropped.
    reign: u64,
    slots: BTreeMap<String, Slot>,
    deadlines: BTreeSet<(Ms, String)>,
    waiting: BTreeMap<Token, oneshot::Sender<Told>>,
    next_token: Token,
    lives: u64,
    work: FuturesUnordered<BoxFuture<'static, (u64, Done)>>,
    next_sweep: Ms,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut shutdown: watch::Receiver<bool>) {
        let cluster = self.deps.cluster.clone();
        let mut view = cluster.view();
        if view.is_leader() {
            self.lead();
        }
        loop {
            let deadline = self.deadlines.first().map_or(self.next_sweep, |(at, _)| (*at).min(self.next_sweep));
            let timer = sleep_until(self.start + Duration::from_millis(deadline));
            tokio::select! {
                biased;
                () = stopped(&mut shutdown) => return,
                changed = cluster.changed(&view) => {
                    view = changed;
                    self.follow();
                    if view.is_leader() {
                        self.lead();
                    }
                }
                Some((reign, done)) = self.work.next(), if !self.work.is_empty() => {
                    if reign == self.reign {
                        self.done(done);
                    }
                }
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                () = timer => self.tick(),
            }
        }
    }

    fn now(&self) -> Ms {
        self.start.elapsed().as_millis() as Ms
    }

    /// Forgets all groups.
    fn follow(&mut self) {
        self.reign += 1;
        self.work = FuturesUnordered::new();
        self.deadlines.clear();
        for slot in std::mem::take(&mut self.slots).into_values() {
            if let Slot::Live(live) = slot {
                self.abandon(*live, ErrorCode::NOT_COORDINATOR);
            }
        }
        self.waiting.clear();
        if let Role::Loading(stash) = std::mem::replace(&mut self.role, Role::Follower) {
            stash.into_iter().for_each(|command| command.refuse(ErrorCode::NOT_COORDINATOR));
        }
    }

    fn lead(&mut self) {
        self.role = Role::Loading(VecDeque::new());
        let ledger = self.deps.ledger.clone();
        self.start_work(async move { Done::Loaded(load(&*ledger).await) });
    }

    fn start_work(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        let reign = self.reign;
        self.work.push(work.map(move |done| (reign, done)).boxed());
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Loaded(Ok(loaded)) => {
                let now = self.now();
                tracing::debug!(groups = loaded.len(), "kafka: this node coordinates groups");
                for (id, record, revision) in loaded {
                    self.put(id, Group::restore(self.times, record, now), revision);
                }
                if let Role::Loading(stash) = std::mem::replace(&mut self.role, Role::Leader) {
                    stash.into_iter().for_each(|command| self.command(command));
                }
            }
            Done::Loaded(Err(error)) => {
                tracing::warn!(%error, "kafka: the groups cannot be read, trying again");
                if let Role::Loading(stash) = &mut self.role {
                    let stash = std::mem::take(stash);
                    stash.into_iter().for_each(|command| command.refuse(ErrorCode::COORDINATOR_LOAD_IN_PROGRESS));
                }
                let ledger = self.deps.ledger.clone();
                self.start_work(async move {
                    sleep(LOAD_PAUSE).await;
                    Done::Loaded(load(&*ledger).await)
                });
            }
            Done::Reloaded(id, Ok(found)) => {
                self.slots.remove(&id);
                if let Some((record, revision)) = found {
                    let group = Group::restore(self.times, record, self.now());
                    self.put(id, group, revision);
                }
            }
            Done::Reloaded(id, Err(error)) => {
                tracing::warn!(group = id, %error, "kafka: a group cannot be read, trying again");
                self.reload(id, LOAD_PAUSE);
            }
            Done::Saved(id, save, Ok(revision)) => {
                let Some(Slot::Live(live)) = self.slots.get_mut(&id) else { return };
                live.revision = revision;
                live.saving = false;
                for reply in live.stale.drain(..) {
                    let _ = reply.send(());
                }
                self.step(&id, Input::Saved(save));
            }
            Done::Saved(id, _, Err(error)) => {
                tracing::warn!(group = id, %error, "kafka: a group cannot be saved, it is read again");
                let code = if matches!(error, SubmitError::Refused(_)) {
                    ErrorCode::NOT_COORDINATOR
                } else {
                    ErrorCode::COORDINATOR_NOT_AVAILABLE
                };
                self.discard(id, code);
            }
            Done::Deleted(id, result, reply) => {
                let answer = match result {
                    Ok(()) => {
                        self.slots.remove(&id);
                        Ok(())
                    }
                    Err(error) => {
                        tracing::warn!(group = id, %error, "kafka: a group cannot be deleted, it is read again");
                        self.reload(id, Duration::ZERO);
                        Err(super::coordinator_fault(&error))
                    }
                };
                if let Some(reply) = reply {
                    let _ = reply.send(answer);
                }
            }
        }
    }

    fn put(&mut self, id: String, group: Group, revision: Revision) {
        let used = self.now();
        let deadline = group.next_deadline();
        self.deadlines.extend(deadline.map(|at| (at, id.clone())));
        self.lives += 1;
        let life = self.lives;
        let live =
            Live { group, life, revision, saving: false, saves: VecDeque::new(), deadline, used, stale: Vec::new() };
        self.slots.insert(id, Slot::Live(Box::new(live)));
    }

    fn abandon(&mut self, live: Live, code: ErrorCode) {
        let standing = Standing { revision: live.revision, life: live.life };
        for (token, answer) in live.group.abandon(code) {
            if let Some(reply) = self.waiting.remove(&token) {
                let _ = reply.send(Ok((answer, standing)));
            }
        }
    }

    /// Throws a group away and reads it again.
    fn discard(&mut self, id: String, code: ErrorCode) {
        if let Some(Slot::Live(live)) = self.slots.insert(id.clone(), Slot::Busy) {
            self.deadlines.remove(&(live.deadline.unwrap_or_default(), id.clone()));
            self.abandon(*live, code);
        }
        self.reload(id, Duration::ZERO);
    }

    fn reload(&mut self, id: String, pause: Duration) {
        self.slots.insert(id.clone(), Slot::Busy);
        let ledger = self.deps.ledger.clone();
        self.start_work(async move {
            sleep(pause).await;
            let found = ledger.read(KeyRange::key(record::key(&id)), 1, Consistency::Linearizable).await;
            let found = found.map(|found| {
                let kv = found.kvs.into_iter().next()?;
                Some((decode(&id, kv.value), kv.mod_revision))
            });
            Done::Reloaded(id, found)
        });
    }

    fn command(&mut self, command: Command) {
        match &mut self.role {
            Role::Follower => return command.refuse(ErrorCode::NOT_COORDINATOR),
            Role::Loading(stash) if stash.len() < STASH_MAX => return stash.push_back(command),
            Role::Loading(_) => return command.refuse(ErrorCode::COORDINATOR_LOAD_IN_PROGRESS),
            Role::Leader => {}
        }
        match command {
            Command::Group { group, create, make, reply } => self.ask(group, create, make, reply),
            Command::Stale { group, revision, reply } => match self.slots.get_mut(&group) {
                Some(Slot::Live(live)) if live.revision == revision && live.saving => live.stale.push(reply),
                Some(Slot::Live(live)) if live.revision == revision => {
                    // The log has another record than this node: another one coordinates, or did.
                    self.discard(group, ErrorCode::NOT_COORDINATOR);
                    let _ = reply.send(());
                }
                _ => {
                    let _ = reply.send(());
                }
            },
            Command::List { reply } => {
                let live = |(id, slot): (&String, &Slot)| match slot {
                    Slot::Live(live) if !live.group.is_gone() => {
                        Some((id.clone(), live.group.protocol_type().to_owned(), live.group.state()))
                    }
                    _ => None,
                };
                let _ = reply.send(Ok(self.slots.iter().filter_map(live).collect()));
            }
            Command::View { group, reply } => {
                let view = match self.slots.get(&group) {
                    Some(Slot::Busy) => Err(ErrorCode::COORDINATOR_LOAD_IN_PROGRESS),
                    Some(Slot::Live(live)) if !live.group.is_gone() => Ok(Some(GroupView {
                        state: live.group.state(),
                        protocol_type: live.group.protocol_type().to_owned(),
                        protocol: live.group.protocol().to_owned(),
                        members: live.group.members(),
                        subscriptions: live.group.subscriptions().cloned().collect(),
                        revision: live.revision,
                        id: group,
                    })),
                    _ => Ok(None),
                };
                let _ = reply.send(view);
            }
            Command::Delete { group, reply } => match self.slots.get(&group) {
                Some(Slot::Busy) => drop(reply.send(Err(ErrorCode::COORDINATOR_LOAD_IN_PROGRESS))),
                Some(Slot::Live(live)) if live.group.state() != State::Empty || live.saving => {
                    let _ = reply.send(Err(ErrorCode::NON_EMPTY_GROUP));
                }
                Some(Slot::Live(live)) if !live.group.is_gone() => {
                    let revision = live.revision;
                    self.delete(group, revision, Some(reply));
                }
                _ => drop(reply.send(Err(ErrorCode::GROUP_ID_NOT_FOUND))),
            },
        }
    }

    /// Deletes a group without members, with its offsets.
    fn delete(&mut self, id: String, revision: Revision, reply: Option<oneshot::Sender<Result<(), ErrorCode>>>) {
        if let Some(Slot::Live(live)) = self.slots.insert(id.clone(), Slot::Busy) {
            self.deadlines.remove(&(live.deadline.unwrap_or_default(), id.clone()));
            self.abandon(*live, ErrorCode::COORDINATOR_LOAD_IN_PROGRESS);
        }
        let (ledger, stream) = (self.deps.ledger.clone(), self.deps.stream.clone());
        self.start_work(async move {
            let group = cursor_group(&id);
            let forget = |(log, _)| Forget { group: group.clone(), log };
            let key = record::key(&id);
            let entry = Entry {
                guards: vec![Guard::ModRevision { key: key.clone(), revision }],
                puts: vec![Put { key, value: None, lease: None }],
                forgets: stream.positions(&group).into_iter().map(forget).collect(),
                ..Entry::default()
            };
            Done::Deleted(id, ledger.submit(entry).await.map(drop), reply)
        });
    }

    fn ask(&mut self, id: String, create: bool, make: Make, reply: oneshot::Sender<Told>) {
        match self.slots.get(&id) {
            Some(Slot::Busy) => return drop(reply.send(Err(ErrorCode::COORDINATOR_LOAD_IN_PROGRESS))),
            Some(Slot::Live(_)) => {}
            None if create && self.slots.len() >= GROUPS_MAX => {
                tracing::warn!(group = id, limit = GROUPS_MAX, "kafka: there are too many groups, one is refused");
                return drop(reply.send(Err(ErrorCode::COORDINATOR_NOT_AVAILABLE)));
            }
            None if create => self.put(id.clone(), Group::new(self.times), Revision(0)),
            None => {
                // Nobody is a member of a group that does not exist; a group of its own says so in every form.
                let token = self.next_token;
                let mut nobody = Group::new(self.times);
                let answer = nobody.step(self.now(), make(token)).into_iter().find_map(|output| match output {
                    Output::Answer(_, answer) => Some(answer),
                    Output::Save(..) => None,
                });
                let answer = answer.ok_or(ErrorCode::UNKNOWN_MEMBER_ID).map(|answer| (answer, Standing::default()));
                return drop(reply.send(answer));
            }
        }
        let token = self.next_token;
        self.next_token += 1;
        self.waiting.insert(token, reply);
        self.step(&id, make(token));
    }

    fn step(&mut self, id: &str, input: Input) {
        let now = self.now();
        let Some(Slot::Live(live)) = self.slots.get_mut(id) else { return };
        if !matches!(input, Input::Tick) {
            live.used = now;
        }
        for output in live.group.step(now, input) {
            match output {
                Output::Answer(token, answer) => {
                    if let Some(reply) = self.waiting.remove(&token) {
                        let standing = Standing { revision: live.revision, life: live.life };
                        let _ = reply.send(Ok((answer, standing)));
                    }
                }
                Output::Save(save, record) => live.saves.push_back((save, record)),
            }
        }
        let mut save = None;
        if !live.saving
            && let Some((id, record)) = live.saves.pop_front()
        {
            live.saving = true;
            save = Some((id, record, live.revision));
        }
        let (deadline, gone) = (live.group.next_deadline(), live.group.is_gone());
        let before = std::mem::replace(&mut live.deadline, deadline);
        if before != deadline {
            self.deadlines.remove(&(before.unwrap_or_default(), id.to_owned()));
            self.deadlines.extend(deadline.map(|at| (at, id.to_owned())));
        }
        if gone {
            self.slots.remove(id);
        }
        if let Some((save, record, revision)) = save {
            let (ledger, id) = (self.deps.ledger.clone(), id.to_owned());
            self.start_work(async move {
                let key = record::key(&id);
                let entry = Entry {
                    guards: vec![Guard::ModRevision { key: key.clone(), revision }],
                    puts: vec![Put { key, value: Some(record.encode()), lease: None }],
                    ..Entry::default()
                };
                let saved = ledger.submit(entry).await.map(|receipt| receipt.revision);
                Done::Saved(id, save, saved)
            });
        }
    }

    fn tick(&mut self) {
        let now = self.now();
        while let Some((at, id)) = self.deadlines.first().cloned()
            && at <= now
        {
            self.step(&id, Input::Tick);
            // A deadline that its own tick does not move would come for ever.
            if self.deadlines.remove(&(at, id.clone()))
                && let Some(Slot::Live(live)) = self.slots.get_mut(&id)
            {
                live.deadline = Some(now + 1);
                self.deadlines.insert((now + 1, id));
            }
        }
        if self.next_sweep <= now {
            self.next_sweep = now + SWEEP_MS;
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: Ms) {
        let old = |(id, slot): (&String, &Slot)| match slot {
            Slot::Live(live)
                if live.group.state() == State::Empty && !live.saving && live.used + RETENTION_MS <= now =>
            {
                Some((id.clone(), live.revision))
            }
            _ => None,
        };
        let old: Vec<_> = self.slots.iter().filter_map(old).collect();
        for (id, revision) in old {
            tracing::info!(group = id, "kafka: a group that nobody has used for seven days goes");
            self.delete(id, revision, None);
        }
    }
}

/// Reads the records of all groups, as the last leader left them.
async fn load(ledger: &dyn Ledger) -> Result<Loaded, Error> {
    let mut range = record::all();
    let mut loaded = Vec::new();
    let mut consistency = Consistency::Linearizable;
    loop {
        let found = ledger.read(range.clone(), LOAD_KEYS, consistency).await?;
        let last = found.kvs.last().map(|kv| kv.key.clone());
        for kv in found.kvs {
            let Some(id) = record::group_of(&kv.key).map(str::to_owned) else { continue };
            let record = decode(&id, kv.value);
            loaded.push((id, record, kv.mod_revision));
        }
        match last {
            Some(last) if found.more && loaded.len() < GROUPS_MAX => range.from = [&last[..], &[0]].concat().into(),
            _ => return Ok(loaded),
        }
        // This node has seen everything already.
        consistency = Consistency::Serializable;
    }
}

/// A record that cannot be read was not written by us: the group begins anew, and its next save replaces it.
fn decode(group: &str, value: bytes::Bytes) -> Record {
    // Copied, so that a group does not keep what was read with it.
    match Record::decode(bytes::Bytes::copy_from_slice(&value)) {
        Ok(record) => record,
        Err(error) => {
            tracing::error!(group, %error, "kafka: the record of a group cannot be read");
            Record::default()
        }
    }
}
