//! A seeded world: replicas, a network that loses, repeats, delays and reorders, disks that are slow and forget what
//! was not synced, clients that propose and read, and the invariants that must hold whatever happens.
//!
//! The ids are those of `buttress_core::invariants`: LEADER-1, LOG-1, STATE-1, COMMIT-1 (while the membership is fixed),
//! ACK-1, ACK-2, READ-1 and, after all faults end, LIVE-1.
//!
//! Everything is drawn from one seed, so a seed is a bug report.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
};

use buttress_consensus::{
    Config, Fetch, HardState, Input, LogEntry, MemberChange, MemberStep, Members, Message, Outputs, Persist, Replica,
    Restored, Role, SnapshotMeta,
};
use buttress_core::{Index, Machine, NodeId, Term};
use bytes::Bytes;

pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len() as u64) as usize]) }
    }
}

fn mix(hash: u64, bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(hash ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The smallest machine worth the name: remembers everything, and a hash over it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    applied: (Index, Term),
    pub hash: u64,
    pub pages: Vec<(Index, Bytes)>,
}

impl Machine for Book {
    /// The entry's data, and the hash after it.
    type Effects = (Bytes, u64);

    fn applied(&self) -> (Index, Term) {
        self.applied
    }

    fn apply(&mut self, index: Index, term: Term, entry: Bytes) -> Self::Effects {
        self.hash = mix(self.hash.rotate_left(7) ^ index.0 ^ (term.0 << 32), &entry);
        self.applied = (index, term);
        if !entry.is_empty() {
            self.pages.push((index, entry.clone()));
        }
        (entry, self.hash)
    }
}

/// What a node finds after a crash.
#[derive(Clone, Default)]
pub struct Disk {
    pub hard_state: HardState,
    pub log: Vec<LogEntry>,
    pub store: (SnapshotMeta, Book),
    /// The last index ever written and not truncated, forgotten or not.
    last: Index,
}

impl Disk {
    fn truncate_and_append(&mut self, entries: &[LogEntry]) {
        if let Some(first) = entries.first() {
            assert!(first.index <= self.last.next(), "{} leaves a gap behind {}", first.index, self.last);
            self.last = entries.last().expect("there is a first one").index;
            self.log.retain(|entry| entry.index < first.index);
            self.log.extend_from_slice(entries);
        }
    }

    fn write(&mut self, persist: &Persist) {
        if let Some(meta) = &persist.reset {
            self.log.clear();
            self.last = meta.index;
        }
        self.truncate_and_append(&persist.entries);
        if let Some(hard_state) = persist.hard_state {
            self.hard_state = hard_state;
        }
    }

    /// The power went while this was being written.
    fn tear(&mut self, persist: &Persist, rng: &mut Rng) {
        match rng.below(4) {
            0 => {}
            1 => {
                if let Some(hard_state) = persist.hard_state {
                    self.hard_state = hard_state;
                }
            }
            2 if persist.reset.is_none() => {
                let some = rng.below(persist.entries.len() as u64 + 1) as usize;
                self.truncate_and_append(&persist.entries[..some]);
            }
            _ => self.write(persist),
        }
    }

    pub fn holds(&self, index: Index, term: Term) -> bool {
        self.store.0.index >= index || self.log.iter().any(|entry| entry.index == index && entry.term == term)
    }
}

pub struct Node {
    pub disk: Disk,
    pub replica: Option<Replica<Book>>,
    incarnation: u64,
    inbox: Vec<Input<Book>>,
    turn_due: bool,
    persisting: VecDeque<Persist>,
    /// State that arrived with a snapshot message still in the inbox, by what it announces.
    arrived: Vec<(SnapshotMeta, Book)>,
    /// Stopped for good: it lost what it had acknowledged, or was removed.
    pub retired: bool,
}

#[derive(Debug)]
enum Event {
    Tick { node: u64, incarnation: u64 },
    Fetch { node: u64, incarnation: u64, fetch: Fetch },
    Turn { node: u64, incarnation: u64 },
    Deliver { from: u64, to: u64, bytes: Bytes, state: Option<(SnapshotMeta, Book)> },
    SnapshotSent { node: u64, incarnation: u64, to: u64, ok: bool },
    Synced { node: u64, incarnation: u64 },
    Notify { node: u64, incarnation: u64, ticket: u64 },
    Checkpointed { node: u64, incarnation: u64, meta: SnapshotMeta, state: Book },
    Installed { node: u64, incarnation: u64, meta: SnapshotMeta, state: Book },
    Restart { node: u64 },
    Client,
    Fault,
    Change,
}

/// How cruel the world is.
#[derive(Clone, Copy, Debug)]
pub struct Cruelty {
    pub drop_percent: u64,
    pub repeat_percent: u64,
    pub delay_ms_max: u64,
    pub sync_ms_max: u64,
    pub crashes: bool,
    pub partitions: bool,
    pub members_change: bool,
    pub checkpoints: bool,
    /// Bytes of log kept behind a checkpoint.
    pub tail_bytes: usize,
    /// Bytes of applied entries that stay in memory.
    pub memory_bytes: usize,
}

impl Cruelty {
    pub const NONE: Cruelty = Cruelty {
        drop_percent: 0,
        repeat_percent: 0,
        delay_ms_max: 2,
        sync_ms_max: 2,
        crashes: false,
        partitions: false,
        members_change: false,
        checkpoints: true,
        tail_bytes: 4096,
        memory_bytes: 0,
    };

    pub fn draw(rng: &mut Rng) -> Self {
        Self {
            drop_percent: [0, 2, 10, 25][rng.below(4) as usize],
            repeat_percent: [0, 5, 20][rng.below(3) as usize],
            delay_ms_max: [2, 10, 60][rng.below(3) as usize],
            sync_ms_max: [1, 8, 60][rng.below(3) as usize],
            crashes: rng.percent(70),
            partitions: rng.percent(60),
            members_change: rng.percent(35),
            checkpoints: rng.percent(80),
            tail_bytes: [0, 600, 1 << 20][rng.below(3) as usize],
            memory_bytes: [0, 0, 300, 1 << 20][rng.below(4) as usize],
        }
    }
}

struct Wish {
    node: u64,
    data: Bytes,
    is_change: bool,
    answered: bool,
}

pub struct World {
    pub rng: Rng,
    pub now_ms: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Event>,
    pub nodes: BTreeMap<u64, Node>,
    blocked: BTreeSet<(u64, u64)>,
    pub cruelty: Cruelty,
    /// As it was before the faults ended.
    pub drawn: Cruelty,
    seed: u64,
    next_tag: u64,
    wishes: BTreeMap<u64, Wish>,
    reads: BTreeMap<u64, (u64, Index)>,
    /// Index → term, data and hash, as first applied anywhere.
    truth: BTreeMap<Index, (Term, Bytes, u64)>,
    acked: BTreeMap<Index, u64>,
    leaders: BTreeMap<Term, u64>,
    ever_changed: bool,
    pub trace_hash: u64,
    recent: VecDeque<String>,
    pub full_trace: Option<String>,
    pub stats: Stats,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub acked: u64,
    pub reads: u64,
    pub installs: u64,
    pub crashes: u64,
    pub elections: u64,
    pub changes: u64,
    pub lost: u64,
    /// Reads of the durable log for followers that lag, and those among them that found something.
    pub fetches: (u64, u64),
}

pub const TICK_MS: u64 = 10;

impl World {
    pub fn new(seed: u64, voters: u64, spares: u64, cruelty: Cruelty) -> Self {
        let mut world = Self {
            rng: Rng::new(seed),
            now_ms: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            nodes: BTreeMap::new(),
            blocked: BTreeSet::new(),
            cruelty,
            drawn: cruelty,
            seed,
            next_tag: 0,
            wishes: BTreeMap::new(),
            reads: BTreeMap::new(),
            truth: BTreeMap::new(),
            acked: BTreeMap::new(),
            leaders: BTreeMap::new(),
            ever_changed: false,
            trace_hash: 0,
            recent: VecDeque::new(),
            full_trace: None,
            stats: Stats::default(),
        };
        let founders: Vec<NodeId> = (1..=voters).map(NodeId).collect();
        for id in 1..=voters + spares {
            let mut disk = Disk::default();
            if id <= voters {
                let founding = Restored::founding(&founders);
                disk.hard_state = founding.hard_state;
                disk.truncate_and_append(&founding.entries);
            }
            world.nodes.insert(
                id,
                Node {
                    disk,
                    replica: None,
                    incarnation: 0,
                    inbox: Vec::new(),
                    turn_due: false,
                    persisting: VecDeque::new(),
                    arrived: Vec::new(),
                    retired: false,
                },
            );
            world.start(id);
        }
        world
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let line = format!("{:>6} {}", self.now_ms, line());
        self.trace_hash = mix(self.trace_hash.rotate_left(5), line.as_bytes());
        if let Some(full) = &mut self.full_trace {
            writeln!(full, "{line}").expect("a string takes everything");
        }
        self.recent.push_back(line);
        if self.recent.len() > 60 {
            self.recent.pop_front();
        }
    }

    fn at(&mut self, delay_ms: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now_ms + delay_ms, self.sequence), event);
    }

    pub fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    fn running(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| node.replica.is_some()).map(|(id, _)| *id).collect()
    }

    pub fn start(&mut self, id: u64) {
        let (seed, tail, memory) = (self.seed, self.cruelty.tail_bytes, self.cruelty.memory_bytes);
        let node = self.nodes.get_mut(&id).expect("the node exists");
        assert!(node.replica.is_none(), "a node starts once");
        node.incarnation += 1;
        let incarnation = node.incarnation;
        let config = Config {
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_message_bytes: 400,
            max_inflight_messages: 8,
            max_uncommitted_bytes: 2000,
            max_apply_bytes: 1000,
            log_tail_bytes: tail,
            log_memory_bytes: memory,
            ..Config::new(NodeId(id), mix(seed, &[id as u8, incarnation as u8]))
        };
        let restored = Restored {
            hard_state: node.disk.hard_state,
            snapshot: node.disk.store.0.clone(),
            entries: node.disk.log.clone(),
        };
        let replica = Replica::new(config, restored, node.disk.store.1.clone()).expect("nothing acknowledged is lost");
        node.replica = Some(replica);
        node.turn_due = false;
        let jitter = self.rng.below(TICK_MS);
        self.at(jitter, Event::Tick { node: id, incarnation });
        self.note(|| format!("{id} starts"));
    }

    pub fn crash(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if node.replica.take().is_none() {
            return;
        }
        node.incarnation += 1;
        node.inbox.clear();
        node.arrived.clear();
        let pending: Vec<Persist> = node.persisting.drain(..).collect();
        // What was under way reached the disk up to some point.
        let whole = self.rng.below(pending.len() as u64 + 1) as usize;
        for persist in &pending[..whole] {
            node.disk.write(persist);
        }
        if let Some(torn) = pending.get(whole) {
            node.disk.tear(torn, &mut self.rng);
        }
        self.stats.crashes += 1;
        // Nobody is left to answer.
        self.wishes.values_mut().filter(|wish| wish.node == id).for_each(|wish| wish.answered = true);
        self.reads.retain(|_, (node, _)| *node != id);
        self.note(|| format!("{id} crashes"));
    }

    fn input(&mut self, id: u64, input: Input<Book>) {
        let lag = if self.rng.percent(50) { 0 } else { self.rng.below(4) };
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if node.replica.is_none() {
            return;
        }
        node.inbox.push(input);
        if !node.turn_due {
            node.turn_due = true;
            let incarnation = node.incarnation;
            self.at(lag, Event::Turn { node: id, incarnation });
        }
    }

    /// Runs until nothing is left to do before `until_ms`.
    pub fn run(&mut self, until_ms: u64) {
        while let Some(entry) = self.queue.first_entry() {
            let (at, _) = *entry.key();
            if at > until_ms {
                break;
            }
            let event = entry.remove();
            self.now_ms = at;
            self.handle(event);
        }
        self.now_ms = until_ms;
    }

    fn alive(&self, id: u64, incarnation: u64) -> bool {
        self.nodes[&id].incarnation == incarnation && self.nodes[&id].replica.is_some()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick { node, incarnation } => {
                if self.alive(node, incarnation) {
                    self.input(node, Input::Tick);
                    self.at(TICK_MS, Event::Tick { node, incarnation });
                }
            }
            Event::Fetch { node, incarnation, fetch } => self.fetch(node, incarnation, &fetch),
            Event::Turn { node, incarnation } => {
                if self.alive(node, incarnation) {
                    self.turn(node);
                }
            }
            Event::Deliver { from, to, bytes, state } => {
                if self.nodes[&to].replica.is_none() || self.blocked.contains(&(from, to)) {
                    return;
                }
                let message = Message::decode(bytes).expect("what a member encoded can be decoded");
                if let Some(state) = state {
                    self.nodes.get_mut(&to).expect("the node exists").arrived.push(state);
                }
                self.input(to, Input::Receive { from: NodeId(from), message });
            }
            Event::SnapshotSent { node, incarnation, to, ok } => {
                if self.alive(node, incarnation) {
                    self.input(node, Input::SnapshotSent { to: NodeId(to), ok });
                }
            }
            Event::Synced { node, incarnation } => {
                if self.alive(node, incarnation) {
                    self.synced(node, incarnation);
                }
            }
            Event::Notify { node, incarnation, ticket } => {
                if self.alive(node, incarnation) {
                    self.input(node, Input::Persisted { ticket });
                }
            }
            Event::Checkpointed { node, incarnation, meta, state } => {
                let disk = &mut self.nodes.get_mut(&node).expect("the node exists").disk;
                if disk.store.0.index < meta.index && self.nodes[&node].incarnation == incarnation {
                    let (index, term) = (meta.index, meta.term);
                    self.nodes.get_mut(&node).expect("the node exists").disk.store = (meta, state);
                    self.input(node, Input::Checkpointed { index, term });
                }
            }
            Event::Installed { node, incarnation, meta, state } => {
                if self.alive(node, incarnation) {
                    self.nodes.get_mut(&node).expect("the node exists").disk.store = (meta.clone(), state.clone());
                    // A crash between the two is what makes this interesting.
                    if self.cruelty.crashes && self.rng.percent(10) {
                        self.crash(node);
                        self.at(50, Event::Restart { node });
                    } else {
                        self.stats.installs += 1;
                        self.input(node, Input::Installed { snapshot: meta, machine: Box::new(state) });
                    }
                }
            }
            Event::Restart { node } => {
                if self.nodes[&node].replica.is_none() && !self.nodes[&node].retired {
                    self.start(node);
                }
            }
            Event::Client => self.client(),
            Event::Fault => self.fault(),
            Event::Change => self.change(),
        }
    }

    /// The node's write-ahead log finished the oldest persist.
    fn synced(&mut self, id: u64, incarnation: u64) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let persist = node.persisting.pop_front().expect("every sync has its persist");
        node.disk.write(&persist);
        // Mostly told before anything is sent, as the rules want; sometimes late, which must be survived.
        let late = if self.rng.percent(15) { self.rng.below(30) } else { 0 };
        self.at(late, Event::Notify { node: id, incarnation, ticket: persist.ticket });
        for (to, message) in persist.then_send {
            self.send(id, to.0, message, None);
        }
    }

    fn send(&mut self, from: u64, to: u64, message: Message, state: Option<(SnapshotMeta, Book)>) -> bool {
        if !self.nodes.contains_key(&to) || self.rng.percent(self.cruelty.drop_percent) {
            return false;
        }
        let copies = 1 + u64::from(self.rng.percent(self.cruelty.repeat_percent));
        let bytes = message.encode();
        for _ in 0..copies {
            let delay = self.rng.below(self.cruelty.delay_ms_max + 1);
            self.at(delay, Event::Deliver { from, to, bytes: bytes.clone(), state: state.clone() });
        }
        true
    }

    fn turn(&mut self, id: u64) {
        let now_ms = self.now_ms;
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.turn_due = false;
        let inputs = std::mem::take(&mut node.inbox);
        let replica = node.replica.as_mut().expect("only a running node has a turn");
        let before = replica.machine().applied().0;
        let out = replica.step(now_ms, inputs);
        self.outputs(id, before, out);
    }

    fn outputs(&mut self, id: u64, before: Index, out: Outputs<Book>) {
        let incarnation = self.nodes[&id].incarnation;
        assert_eq!(out.fatal, None, "no node loses anything here");
        self.note(|| {
            let mut line = format!("{id}:");
            let _ = write!(line, " {:?}", out.messages);
            if let Some(persist) = &out.persist {
                let _ = write!(
                    line,
                    " persist {}{} {:?} {:?} then {:?}",
                    persist.ticket,
                    if persist.reset.is_some() { " reset" } else { "" },
                    persist.hard_state,
                    persist.entries,
                    persist.then_send
                );
            }
            for (name, what) in [
                ("install", out.install.as_ref().map(|meta| format!("{meta:?}"))),
                ("role", out.role.as_ref().map(|role| format!("{role:?}"))),
                ("members", out.members.as_ref().map(|members| format!("{members:?}"))),
                ("failed", (!out.failed.is_empty()).then(|| format!("{:?}", out.failed))),
                ("reads", (!out.reads.is_empty()).then(|| format!("{:?}", out.reads))),
                ("applied", out.applied.last().map(|last| format!("{}", last.index))),
                ("snapshots", (!out.snapshots.is_empty()).then(|| format!("{:?}", out.snapshots))),
            ] {
                if let Some(what) = what {
                    let _ = write!(line, " {name} {what}");
                }
            }
            line
        });
        self.check_applied(id, before, &out);
        if let Some(Role { term, is_leader: true, .. }) = out.role {
            let leader = *self.leaders.entry(term).or_insert(id);
            assert_eq!(leader, id, "LEADER-1: term {term} has the leaders {leader} and {id}");
            self.stats.elections += 1;
        }
        for (tag, error) in &out.failed {
            self.answer(*tag);
            self.stats.lost += 1;
            let _ = error;
        }
        let applied = self.nodes[&id].replica.as_ref().expect("it runs").machine().applied().0;
        for (tag, index) in &out.reads {
            let (node, least) = self.reads.remove(tag).expect("ACK-2: a read is answered once");
            assert_eq!(node, id, "ACK-2: an answer comes from who was asked");
            assert!(*index >= least, "READ-1: read at {index}, but {least} was acknowledged before it began");
            assert!(applied >= *index, "READ-1: a read is answered once its index is applied");
            self.stats.reads += 1;
        }
        for tag in &out.reads_failed {
            self.reads.remove(tag).expect("ACK-2: a read is answered once");
        }

        for (to, message) in out.messages {
            self.send(id, to.0, message, None);
        }
        for (to, message) in out.snapshots {
            self.send_snapshot(id, to.0, message);
        }
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if let Some(start) = out.log_start
            && self.rng.percent(60)
        {
            // Whoever may forget need not: both must work. Only what is whole is cut, as segments are.
            let disk = &mut node.disk;
            if disk.store.0.index >= Index(start.0 - 1) {
                disk.log.retain(|entry| entry.index >= start);
            }
        }
        let arrived = std::mem::take(&mut node.arrived);
        for fetch in out.fetch {
            let delay = self.rng.below(30);
            self.at(delay, Event::Fetch { node: id, incarnation, fetch });
        }
        if let Some(meta) = out.install {
            let (meta, state) =
                arrived.into_iter().find(|(arrived, _)| *arrived == meta).expect("what is installed has arrived");
            let delay = self.rng.below(80);
            self.at(delay, Event::Installed { node: id, incarnation, meta, state });
        }
        if let Some(persist) = out.persist {
            let node = self.nodes.get_mut(&id).expect("the node exists");
            let last = node.persisting.back().map_or(0, |last| last.ticket);
            assert!(persist.ticket > last, "tickets grow");
            node.persisting.push_back(persist);
            let delay = self.sync_delay(id);
            self.at(delay, Event::Synced { node: id, incarnation });
        }
        if out.checkpoint_wanted || (self.cruelty.checkpoints && self.rng.percent(4)) {
            let replica = self.nodes[&id].replica.as_ref().expect("it runs");
            let (meta, state) = (replica.snapshot_meta(), replica.machine().clone());
            if meta.index > Index(0) && !replica.status().installing {
                let delay = self.rng.below(40);
                self.at(delay, Event::Checkpointed { node: id, incarnation, meta, state });
            }
        }
        if out.more {
            let node = self.nodes.get_mut(&id).expect("the node exists");
            if !node.turn_due {
                node.turn_due = true;
                self.at(0, Event::Turn { node: id, incarnation });
            }
        }
    }

    fn fetch(&mut self, id: u64, incarnation: u64, fetch: &Fetch) {
        let node = &self.nodes[&id];
        if node.incarnation != incarnation || node.replica.is_none() {
            return;
        }
        let mut bytes = 0;
        let wanted = node.disk.log.iter().filter(|e| e.index >= fetch.low && e.index < fetch.high);
        let entries: Vec<LogEntry> = wanted
            .take_while(|entry| {
                let first = bytes == 0;
                bytes += entry.data.len() + 1;
                first || bytes <= fetch.bytes_max
            })
            .cloned()
            .collect();
        // It was forgotten since, or a part of it was.
        let entries = if entries.first().is_some_and(|e| e.index == fetch.low) { entries } else { Vec::new() };
        self.stats.fetches.0 += 1;
        self.stats.fetches.1 += u64::from(!entries.is_empty());
        self.input(id, Input::Fetched { low: fetch.low, entries });
    }

    /// Syncs finish in order.
    fn sync_delay(&mut self, id: u64) -> u64 {
        let own = self.rng.below(self.cruelty.sync_ms_max + 1);
        let busy = self
            .queue
            .iter()
            .filter(|(_, event)| matches!(event, Event::Synced { node, .. } if *node == id))
            .map(|((at, _), _)| at.saturating_sub(self.now_ms))
            .max()
            .unwrap_or(0);
        busy.max(own)
    }

    fn send_snapshot(&mut self, id: u64, to: u64, mut message: Message) {
        let incarnation = self.nodes[&id].incarnation;
        let replica = self.nodes[&id].replica.as_ref().expect("it runs");
        let asked = message.snapshot().expect("it is a snapshot message").clone();
        let durable = self.nodes[&id].disk.store.clone();
        let state = if self.rng.percent(50) && durable.0.index >= asked.index {
            durable
        } else {
            (replica.snapshot_meta(), replica.machine().clone())
        };
        assert!(state.0.index >= asked.index, "the store is at least what is announced");
        message.retarget_snapshot(state.0.clone());
        let ok = self.send(id, to, message, Some(state)) && !self.blocked.contains(&(id, to));
        let delay = self.cruelty.delay_ms_max + self.rng.below(20);
        self.at(delay, Event::SnapshotSent { node: id, incarnation, to, ok });
    }

    fn check_applied(&mut self, id: u64, before: Index, out: &Outputs<Book>) {
        let mut expected = before.next();
        for (position, applied) in out.applied.iter().enumerate() {
            if position == 0 && applied.index != expected {
                // A snapshot was put in place in this very step.
                expected = applied.index;
            }
            assert_eq!(applied.index, expected, "entries are applied in order");
            expected = expected.next();
            let (data, hash) = &applied.effects;
            match self.truth.get(&applied.index) {
                Some((term, known, known_hash)) => {
                    assert_eq!(
                        (*term, known),
                        (applied.term, data),
                        "LOG-1: node {id} applied another entry at {}",
                        applied.index
                    );
                    assert_eq!(known_hash, hash, "STATE-1: node {id} differs at {}", applied.index);
                }
                None => {
                    self.check_committed(id, applied.index, applied.term);
                    self.truth.insert(applied.index, (applied.term, data.clone(), *hash));
                }
            }
            if let Some(tag) = applied.tag {
                self.answer(tag);
                let wish = &self.wishes[&tag];
                if wish.is_change {
                    assert!(data.is_empty(), "the machine sees a change of members as an empty entry");
                    self.stats.changes += 1;
                } else {
                    assert_eq!(&wish.data, data, "ACK-1: acknowledged with another entry");
                }
                self.acked.insert(applied.index, tag);
                self.stats.acked += 1;
            }
        }
    }

    fn check_committed(&self, id: u64, index: Index, term: Term) {
        if self.ever_changed || index == Index(1) {
            return;
        }
        let replica = self.nodes[&id].replica.as_ref().expect("it runs");
        let voters = replica.members_at(index).expect("members are known").voters;
        let durable = voters.iter().filter(|voter| self.nodes[&voter.0].disk.holds(index, term)).count();
        assert!(
            2 * durable > voters.len(),
            "COMMIT-1: node {id} applied {index}@{term}, durable on {durable} of {}",
            voters.len()
        );
    }

    fn answer(&mut self, tag: u64) {
        let wish = self.wishes.get_mut(&tag).expect("ACK-2: only what was asked is answered");
        assert!(!wish.answered, "ACK-2: tag {tag} is answered twice");
        wish.answered = true;
    }

    pub fn propose(&mut self, id: u64, data: Bytes) -> u64 {
        self.next_tag += 1;
        let tag = self.next_tag;
        self.wishes.insert(tag, Wish { node: id, data: data.clone(), is_change: false, answered: false });
        self.input(id, Input::Propose { tag, data });
        tag
    }

    pub fn read(&mut self, id: u64) {
        self.next_tag += 1;
        let least = self.acked.keys().next_back().copied().unwrap_or_default();
        self.reads.insert(self.next_tag, (id, least));
        self.input(id, Input::ReadIndex { tag: self.next_tag });
    }

    fn client(&mut self) {
        let running = self.running();
        // Mostly whoever leads, sometimes anybody.
        let leaders: Vec<u64> = running.iter().copied().filter(|id| self.leads(*id)).collect();
        let target = if self.rng.percent(80) { self.rng.pick(&leaders) } else { self.rng.pick(&running) };
        if let Some(id) = target {
            for _ in 0..=self.rng.below(4) {
                let size = if self.rng.percent(5) { 900 } else { 8 + self.rng.below(60) as usize };
                let mut data = format!("p{}-", self.next_tag + 1).into_bytes();
                data.resize(size.max(data.len()), b'.');
                self.propose(id, data.into());
            }
        }
        if let Some(id) = self.rng.pick(&running)
            && self.rng.percent(60)
        {
            self.read(id);
        }
        let pause = self.rng.below(40);
        self.at(pause, Event::Client);
    }

    pub fn leads(&self, id: u64) -> bool {
        self.nodes[&id].replica.as_ref().is_some_and(|replica| replica.role().is_leader)
    }

    fn fault(&mut self) {
        let ids = self.ids();
        match self.rng.below(4) {
            0 | 1 if self.cruelty.crashes => {
                let running = self.running();
                if let Some(id) = self.rng.pick(&running) {
                    self.crash(id);
                    let down = 20 + self.rng.below(400);
                    self.at(down, Event::Restart { node: id });
                }
            }
            2 if self.cruelty.partitions => {
                self.blocked.clear();
                if self.rng.percent(60) {
                    // Cut a random half off, in both directions or in one.
                    let both = self.rng.percent(70);
                    let side: BTreeSet<u64> = ids.iter().copied().filter(|_| self.rng.percent(50)).collect();
                    for from in &ids {
                        for to in &ids {
                            if side.contains(from) != side.contains(to) && (both || side.contains(from)) {
                                self.blocked.insert((*from, *to));
                            }
                        }
                    }
                }
                let blocked = self.blocked.clone();
                self.note(|| format!("cut {blocked:?}"));
            }
            _ => {
                let running = self.running();
                if let (Some(id), Some(to)) = (self.rng.pick(&running), self.rng.pick(&ids)) {
                    if self.rng.percent(50) {
                        self.input(id, Input::Transfer { to: NodeId(to) });
                    } else {
                        self.input(id, Input::Unreachable { peer: NodeId(to) });
                    }
                }
            }
        }
        let pause = 30 + self.rng.below(200);
        self.at(pause, Event::Fault);
    }

    fn change(&mut self) {
        let pause = 50 + self.rng.below(300);
        self.at(pause, Event::Change);
        let Some(id) = self.running().into_iter().find(|id| self.leads(*id)) else { return };
        let members = self.members(id);
        let mut steps: Vec<MemberStep> = Vec::new();
        let ids = self.ids();
        for _ in 0..=self.rng.below(2) {
            let other = NodeId(self.rng.pick(&ids).expect("there are nodes"));
            let voters = members.voters.len();
            let step = match self.rng.below(4) {
                0 => MemberStep::Learner(other),
                3 if voters > 2 => MemberStep::Remove(other),
                _ => MemberStep::Voter(other),
            };
            let demotes = !matches!(step, MemberStep::Voter(_)) && members.voters.contains(&other);
            if demotes && voters <= 2 {
                continue;
            }
            steps.push(step);
        }
        self.ask_change(id, steps);
    }

    pub fn ask_change(&mut self, id: u64, steps: Vec<MemberStep>) -> u64 {
        self.ever_changed = true;
        self.next_tag += 1;
        let tag = self.next_tag;
        self.wishes.insert(tag, Wish { node: id, data: Bytes::new(), is_change: true, answered: false });
        self.note(|| format!("{id} is asked to change {steps:?}"));
        self.input(id, Input::Change(MemberChange { tag, steps, ..MemberChange::default() }));
        tag
    }

    pub fn members(&self, id: u64) -> Members {
        self.nodes[&id].replica.as_ref().expect("it runs").status().engine.members
    }

    /// Clients and faults until `until_ms`, then peace; everybody must catch up.
    pub fn live(&mut self, until_ms: u64) {
        self.at(0, Event::Client);
        self.at(100, Event::Fault);
        if self.cruelty.members_change {
            self.at(200, Event::Change);
        }
        self.run(until_ms);
        self.heal();
        self.converge();
    }

    pub fn heal(&mut self) {
        self.queue.retain(|_, event| !matches!(event, Event::Client | Event::Fault | Event::Change));
        self.cruelty = Cruelty { tail_bytes: self.cruelty.tail_bytes, ..Cruelty::NONE };
        self.blocked.clear();
        self.note(|| "all faults end".to_owned());
        for id in self.ids() {
            if self.nodes[&id].replica.is_none() && !self.nodes[&id].retired {
                self.start(id);
            }
        }
    }

    /// LIVE-1, and the account of everything promised.
    pub fn converge(&mut self) {
        let patience_ms = 10_000;
        let deadline = self.now_ms + patience_ms;
        let mut last_wish = None;
        loop {
            self.run(self.now_ms + 50);
            let done = last_wish.is_some_and(|tag: u64| {
                let reached = self.acked.iter().find(|(_, acked)| **acked == tag).map(|(index, _)| *index);
                reached.is_some_and(|index| self.caught_up(index))
            });
            if done && self.wishes.values().all(|wish| wish.answered) && self.reads.is_empty() {
                break;
            }
            assert!(self.now_ms < deadline, "LIVE-1: not caught up {patience_ms} ms after the last fault");
            let refused = last_wish
                .is_none_or(|tag| self.wishes[&tag].answered && !self.acked.values().any(|acked| *acked == tag));
            if refused && let Some(leader) = self.running().into_iter().find(|id| self.leads(*id)) {
                last_wish = Some(self.propose(leader, Bytes::from_static(b"the last one")));
            }
        }
        for (index, tag) in &self.acked {
            let wish = &self.wishes[tag];
            assert_eq!(self.truth[index].1, wish.data, "ACK-1: what was acknowledged at {index} is gone");
        }
        for (id, node) in &self.nodes {
            let book = node.replica.as_ref().expect("it runs").machine();
            for (index, data) in &book.pages {
                assert_eq!(&self.truth[index].1, data, "LOG-1: node {id} holds another entry at {index}");
            }
        }
    }

    fn caught_up(&self, index: Index) -> bool {
        let Some(leader) = self.running().into_iter().find(|id| self.leads(*id)) else { return false };
        let members = self.members(leader);
        !members.is_joint()
            && members.all().iter().all(|id| {
                self.nodes[&id.0].replica.as_ref().is_some_and(|replica| {
                    replica.machine().applied().0 >= index
                        && self.truth[&replica.machine().applied().0].2 == replica.machine().hash
                })
            })
    }

    /// The last events, for a failure.
    pub fn recent(&self) -> String {
        self.recent.iter().fold(String::new(), |all, line| all + line + "\n")
    }
}
