//! The world: one thread, one seed, one clock.
//!
//! Everything that will happen lies in a heap, ordered by its moment and by when it was put there. Taking the first one
//! out and letting it happen is all that [`World::run`] does. Nothing else moves time, and nothing in it asks the
//! machine it runs on for anything.
//!
//! | file | what |
//! |---|---|
//! | `host.rs` | a node: the loop that a production node runs around its replicas and its log, step by step |
//! | `boot.rs` | start, crash, stop; what the disk kept, held against what it had promised |
//! | `net.rs` | messages and what becomes of them |
//! | `clients.rs` | clients: request ids, windows, retries at other nodes, reads |
//! | `operator.rs` | members: joins, replacements, changes, and the arithmetic that limits damage to a minority |
//! | `faults.rs` | the faults of the schedule |
//! | `oracle.rs` | what must hold, looked at whenever something happens |

mod boot;
mod clients;
mod faults;
mod host;
mod net;
mod operator;
mod oracle;
mod reigns;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap},
};

use buttress_consensus::{Fetch, Members, SnapshotMeta};
use buttress_core::{Clocks, Index, LeaseId, NodeId, Term, TimeMs, invariants};
use buttress_state::{Machine, MemStore};
use bytes::Bytes;

use crate::{
    MS, Options, SEC, Us,
    disk::SimDisk,
    rng::Rng,
    schedule::{CONVERGE_WITHIN, Fault, Schedule, Settings, Weather},
    trace::Trace,
    workload::{Context, Fact, FinalView, Op, Order, SHARDS, Workload},
};

pub(crate) use clients::{ReadOp, Session};
pub(crate) use host::{Checkpoint, Frame, Host, Incoming};
pub(crate) use operator::Task;
pub(crate) use oracle::Shadow;

/// Nodes that a world may have over its whole life; cuts are masks of 64 bits.
pub const NODES_MAX: usize = 56;
/// No fault takes a node, and no wish adds one, once there have been so many: whoever is lost then still finds a successor.
pub const NODES_TAKEN_MAX: usize = 40;
/// The wall clock when the world begins.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// Why a seed failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The invariant's id, or `PANIC`.
    pub id: String,
    pub found: String,
    pub at_us: Us,
}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Up,
    /// It comes back by itself.
    Down,
    /// It stopped for good: its disk is gone, or it found that it lost something. It must be replaced.
    Dead,
    /// It was removed and switched off.
    Gone,
}

/// A node's clocks: the wall clock, and the monotonic one that goes at the same pace and is never set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    since: Us,
    at_since_us: i64,
    /// By how much it was set, which the monotonic one does not see.
    jumped_us: i64,
    ppm: i64,
}

impl Clock {
    fn us(&self, now: Us) -> i64 {
        let passed = (now - self.since) as i64;
        self.at_since_us + passed + passed / 1_000_000 * self.ppm + passed % 1_000_000 * self.ppm / 1_000_000
    }

    pub fn monotonic_us(&self, now: Us) -> i64 {
        self.us(now) - self.jumped_us
    }

    fn set(&mut self, now: Us, jump_us: i64, ppm: i64) {
        let jumped_us = self.jumped_us + jump_us;
        *self = Clock { since: now, at_since_us: self.us(now) + jump_us, jumped_us, ppm };
    }
}

pub(crate) struct Node {
    pub id: u64,
    pub disk: SimDisk,
    /// The store: what a restart finds. `None` where nothing was ever applied.
    pub stores: [Option<Checkpoint>; SHARDS as usize],
    pub shadows: [Shadow; SHARDS as usize],
    /// What was being written when it went down.
    pub in_flight: Vec<buttress_wal::Job>,
    pub host: Option<Box<Host>>,
    pub incarnation: u64,
    pub standing: Standing,
    /// It joined later, so an empty disk does not found the group.
    pub joiner: bool,
    /// Something durable on its disk was damaged since the last start.
    pub damaged: bool,
    pub clock: Clock,
    /// What the monotonic clock said when the process began, which counts from there.
    pub started_us: i64,
    pub paused_until: Us,
    pub slow: (Us, Us),
    /// A broken or full disk is mended when it restarts after so long.
    pub mend_after: Option<Us>,
    pub power_lost_with_mend: bool,
}

pub(crate) enum Event {
    Tick { node: u64, incarnation: u64 },
    Turn { node: u64, incarnation: u64, shard: u32 },
    Deliver { from: u64, to: u64, shard: u32, frame: Frame },
    Committed { node: u64, incarnation: u64 },
    Notify { node: u64, incarnation: u64, tickets: Vec<(u32, u64)> },
    Checkpointed { node: u64, incarnation: u64, shard: u32, checkpoint: Box<Checkpoint> },
    Fetch { node: u64, incarnation: u64, shard: u32, fetch: Fetch },
    SnapshotArrives { to: u64, shard: u32, incoming: Box<Incoming> },
    SnapshotSent { node: u64, incarnation: u64, shard: u32, to: u64, ok: bool },
    Unreachable { node: u64, shard: u32, peer: u64 },
    Restart { node: u64, incarnation: u64 },
    Spawn { node: u64 },
    SwitchOff { node: u64 },
    Ask { node: u64, shard: u32, client: u64, number: u64, entry: Bytes },
    Answer { client: u64, number: u64, outcome: crate::workload::Outcome },
    Patience { client: u64, number: u64, attempt: u32 },
    AskRead { node: u64, op: Op },
    ReadAnswer { op: Op, answer: Option<crate::workload::Answer> },
    Wake { workload: usize, token: u64 },
    Fault { number: usize },
    CrashForDamage { node: u64, incarnation: u64, down: Us },
    ReignEnds { node: u64, incarnation: u64, shard: u32 },
    CutEnds { cut: u64 },
    WeatherEnds { weather: u64 },
    Operator,
    Heal,
}

struct Item {
    at: Us,
    sequence: u64,
    event: Event,
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl Eq for Item {}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the largest; the earliest comes first.
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

/// What is known of a group from outside.
pub(crate) struct Group {
    pub facts: Vec<Fact>,
    pub leaders: BTreeMap<Term, u64>,
    /// The latest index that a client was told of.
    pub acknowledged: Index,
    /// When entries that set or end leases were proposed first and last, by their hash.
    pub proposed: BTreeMap<u64, (Us, Us)>,
    /// Living leases: their time, and when the entry that set it was proposed.
    pub leases: BTreeMap<LeaseId, (u64, Us)>,
    /// Members by the index from which on they count.
    pub configs: BTreeMap<Index, Members>,
}

/// Numbers for the report: how often something happened.
pub type Counts = BTreeMap<&'static str, u64>;

pub struct World {
    pub(crate) seed: u64,
    pub(crate) settings: Settings,
    pub(crate) reigns: reigns::Reigns,
    pub(crate) faults: Vec<(Us, Fault)>,
    pub(crate) now: Us,
    sequence: u64,
    queue: BinaryHeap<Item>,
    pub(crate) rng: Rng,
    pub(crate) nodes: Vec<Node>,
    pub(crate) founders: Vec<NodeId>,
    /// Active cuts: per sender the receivers it does not reach.
    cuts: BTreeMap<u64, Vec<u64>>,
    blocked: Vec<u64>,
    weathers: BTreeMap<u64, Weather>,
    weather: Weather,
    next_disturbance: u64,
    pub(crate) groups: [Group; SHARDS as usize],
    pub(crate) tasks: Vec<Task>,
    /// Per shard: the term in which the operator last asked for a change whose end is not known.
    pub(crate) asked: [Option<Term>; SHARDS as usize],
    pub(crate) operator_tags: BTreeMap<u64, u32>,
    pub(crate) next_operator_tag: u64,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) reads: BTreeMap<Op, ReadOp>,
    pub(crate) ops: BTreeMap<(u64, u64), Op>,
    workloads: Vec<Box<dyn Workload>>,
    workload_rngs: Vec<Rng>,
    next_op: Op,
    ops_max: u64,
    pub(crate) healed: bool,
    pub(crate) heal_at: Us,
    pub trace: Trace,
    pub counts: Counts,
    pub failure: Option<Failure>,
}

impl World {
    pub fn new(seed: u64, options: &Options) -> Self {
        let Schedule { settings, faults } = Schedule::draw(seed);
        let workloads = crate::workload::draw(seed, options);
        let mut world = Self {
            seed,
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            rng: Rng::derive(seed, 2),
            nodes: Vec::new(),
            founders: (1..=settings.voters).map(NodeId).collect(),
            cuts: BTreeMap::new(),
            blocked: vec![0; NODES_MAX + 1],
            weathers: BTreeMap::new(),
            weather: settings.weather,
            next_disturbance: 0,
            groups: std::array::from_fn(|_| Group {
                facts: Vec::new(),
                leaders: BTreeMap::new(),
                acknowledged: Index(0),
                proposed: BTreeMap::new(),
                leases: BTreeMap::new(),
                configs: BTreeMap::new(),
            }),
            tasks: Vec::new(),
            asked: [None; SHARDS as usize],
            operator_tags: BTreeMap::new(),
            next_operator_tag: 0,
            sessions: BTreeMap::new(),
            reads: BTreeMap::new(),
            ops: BTreeMap::new(),
            workload_rngs: (0..workloads.len()).map(|at| Rng::derive(seed, 100 + at as u64)).collect(),
            workloads,
            next_op: 0,
            ops_max: options.ops_max.unwrap_or(u64::MAX),
            healed: false,
            heal_at: options.heal_at.unwrap_or(settings.faults_until),
            trace: Trace::new(options.lines),
            counts: Counts::new(),
            failure: None,
            settings,
            reigns: reigns::Reigns::default(),
            faults,
        };
        for _ in 0..world.settings.voters {
            let id = world.add_node(false);
            world.start(id);
        }
        for number in 0..world.faults.len() {
            let at = world.faults[number].0;
            if !options.without.contains(&number) && at < world.heal_at {
                world.at(at, Event::Fault { number });
            }
        }
        world.at(500 * MS, Event::Operator);
        world.at(world.heal_at, Event::Heal);
        world
    }

    pub(crate) fn add_node(&mut self, joiner: bool) -> u64 {
        let id = self.nodes.len() as u64 + 1;
        let skew = self.rng.below(20 * MS) as i64 - 10 * MS as i64;
        self.nodes.push(Node {
            id,
            disk: SimDisk::new(self.seed ^ id),
            stores: [None, None],
            shadows: std::array::from_fn(|_| Shadow::default()),
            in_flight: Vec::new(),
            host: None,
            incarnation: 0,
            standing: Standing::Down,
            joiner,
            damaged: false,
            clock: Clock { since: self.now, at_since_us: self.now as i64 + skew, jumped_us: 0, ppm: 0 },
            started_us: 0,
            paused_until: 0,
            slow: (0, 0),
            mend_after: None,
            power_lost_with_mend: false,
        });
        id
    }

    pub(crate) fn node(&self, id: u64) -> &Node {
        &self.nodes[id as usize - 1]
    }

    pub(crate) fn node_mut(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    pub(crate) fn running(&self) -> Vec<u64> {
        self.nodes.iter().filter(|node| node.host.is_some()).map(|node| node.id).collect()
    }

    pub(crate) fn wall(&self, id: u64) -> TimeMs {
        TimeMs((EPOCH_MS as i64 + self.node(id).clock.us(self.now) / 1000).max(1) as u64)
    }

    /// What a node's clocks show.
    pub(crate) fn clocks(&self, id: u64) -> Clocks {
        let node = self.node(id);
        let monotonic_us = node.clock.monotonic_us(self.now) - node.started_us;
        Clocks { monotonic_ms: monotonic_us as u64 / 1000, wall: self.wall(id) }
    }

    pub(crate) fn at(&mut self, at: Us, event: Event) {
        self.sequence += 1;
        self.queue.push(Item { at: at.max(self.now), sequence: self.sequence, event });
    }

    pub(crate) fn after(&mut self, delay: Us, event: Event) {
        self.at(self.now + delay, event);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn note(&mut self, node: u64, kind: &'static str, numbers: &[u64], text: impl FnOnce() -> String) {
        self.trace.event(self.now, node, kind, numbers, text);
    }

    /// Ends the run: an invariant does not hold.
    pub(crate) fn fail(&mut self, invariant: invariants::Invariant, found: String) {
        self.fail_with(invariant.id, found);
    }

    pub(crate) fn fail_with(&mut self, id: &str, found: String) {
        if self.failure.is_none() {
            self.note(0, "VIOLATION", &[], || format!("{id}: {found}"));
            self.failure = Some(Failure { id: id.to_owned(), found, at_us: self.now });
        }
    }

    pub fn now_us(&self) -> Us {
        self.now
    }

    /// Lets the seed happen.
    pub fn run(&mut self) {
        for workload in 0..self.workloads.len() {
            self.with_workload(workload, |workload, cx| workload.start(cx));
        }
        while self.failure.is_none() && self.now < self.heal_at {
            if !self.next_event(self.heal_at) {
                self.now = self.heal_at;
            }
        }
        if self.failure.is_none() {
            self.converge();
        }
        self.count_more();
    }

    fn count_more(&mut self) {
        let entries: u64 = self.groups.iter().map(|group| group.facts.len() as u64).sum();
        *self.counts.entry("entries").or_default() += entries;
        *self.counts.entry("events").or_default() += self.trace.events();
        let elected: u64 = self.groups.iter().map(|group| group.leaders.len() as u64).sum();
        *self.counts.entry("elections").or_default() += elected;
        for workload in &self.workloads {
            for (what, number) in workload.tally() {
                *self.counts.entry(what).or_default() += number;
            }
        }
    }

    /// Lets the next thing happen, if it comes before `until`.
    fn next_event(&mut self, until: Us) -> bool {
        if self.queue.peek().is_none_or(|item| item.at > until) {
            return false;
        }
        let item = self.queue.pop().expect("looked at above");
        self.now = item.at;
        if let Some(until) = self.deferred(&item.event) {
            // In the order in which they came.
            self.at(until, item.event);
            return true;
        }
        self.handle(item.event);
        true
    }

    /// Until when an event's node is paused, so that it happens later.
    fn deferred(&self, event: &Event) -> Option<Us> {
        let node = match event {
            Event::Tick { node, .. }
            | Event::Turn { node, .. }
            | Event::Deliver { to: node, .. }
            | Event::Notify { node, .. }
            | Event::SnapshotArrives { to: node, .. }
            | Event::SnapshotSent { node, .. }
            | Event::Unreachable { node, .. }
            | Event::Checkpointed { node, .. }
            | Event::Fetch { node, .. }
            | Event::Ask { node, .. }
            | Event::AskRead { node, .. } => *node,
            _ => return None,
        };
        let until = self.node(node).paused_until;
        (until > self.now).then_some(until)
    }

    pub(crate) fn alive(&self, id: u64, incarnation: u64) -> bool {
        let node = self.node(id);
        node.incarnation == incarnation && node.host.is_some()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick { node, incarnation } if self.alive(node, incarnation) => self.tick(node),
            Event::Turn { node, incarnation, shard } if self.alive(node, incarnation) => self.turn(node, shard),
            Event::Deliver { from, to, shard, frame } => self.deliver(from, to, shard, frame),
            Event::Committed { node, incarnation } if self.alive(node, incarnation) => self.committed(node),
            Event::Notify { node, incarnation, tickets } if self.alive(node, incarnation) => {
                self.notified(node, &tickets)
            }
            Event::Checkpointed { node, incarnation, shard, checkpoint } if self.alive(node, incarnation) => {
                self.checkpointed(node, shard, *checkpoint);
            }
            Event::Fetch { node, incarnation, shard, fetch } if self.alive(node, incarnation) => {
                self.fetch(node, shard, &fetch);
            }
            Event::SnapshotArrives { to, shard, incoming } => self.snapshot_arrives(to, shard, *incoming),
            Event::SnapshotSent { node, incarnation, shard, to, ok } if self.alive(node, incarnation) => {
                self.snapshot_sent(node, shard, to, ok);
            }
            Event::Unreachable { node, shard, peer } if self.node(node).host.is_some() => {
                self.input(node, shard, buttress_consensus::Input::Unreachable { peer: NodeId(peer) });
            }
            Event::Restart { node, incarnation } => self.restart(node, incarnation),
            Event::Spawn { node } => self.start(node),
            Event::SwitchOff { node } => self.switch_off(node),
            Event::Ask { node, shard, client, number, entry } => {
                self.asked_by_client(node, shard, client, number, entry)
            }
            Event::Answer { client, number, outcome } => self.answered(client, number, outcome),
            Event::Patience { client, number, attempt } => self.patience_ends(client, number, attempt),
            Event::AskRead { node, op } => self.asked_to_read(node, op),
            Event::ReadAnswer { op, answer } => self.read_answered(op, answer),
            Event::Wake { workload, token } => {
                self.with_workload(workload, |workload, cx| workload.woken(cx, token));
            }
            Event::Fault { number } => self.fault(number),
            Event::CrashForDamage { node, incarnation, down } if self.alive(node, incarnation) => {
                self.crash(node, true);
                self.restart_after(node, down);
            }
            Event::ReignEnds { node, incarnation, shard } if self.alive(node, incarnation) => {
                self.end_reign(node, shard);
            }
            Event::CutEnds { cut } => {
                self.cuts.remove(&cut);
                self.settle_cuts();
                self.note(0, "cut-ends", &[cut], String::new);
            }
            Event::WeatherEnds { weather } => {
                self.weathers.remove(&weather);
                self.settle_weather();
                self.note(0, "weather-ends", &[weather], String::new);
            }
            Event::Operator => self.operator(),
            Event::Heal => self.heal(),
            // Of a node that is no more.
            _ => {}
        }
    }

    /// Calls a workload and carries out what it orders.
    pub(crate) fn with_workload<T>(
        &mut self,
        number: usize,
        call: impl FnOnce(&mut dyn Workload, &mut Context<'_>) -> T,
    ) -> T {
        let mut orders = Vec::new();
        let running = self.running();
        let mut cx = Context {
            now_us: self.now,
            rng: &mut self.workload_rngs[number],
            running: &running,
            next_op: &mut self.next_op,
            orders: &mut orders,
        };
        let result = call(&mut *self.workloads[number], &mut cx);
        for order in orders {
            match order {
                Order::Submit { op, client, shard, entry } => self.submit(number, op, client, shard, *entry),
                Order::Read { op, client, shard, node, consistency } => {
                    self.read(number, op, client, shard, node, consistency);
                }
                Order::Wake { after, token } => self.after(after, Event::Wake { workload: number, token }),
                Order::Note { text } => self.note(0, "note", &[number as u64], || text),
            }
        }
        if self.next_op >= self.ops_max {
            self.ops_max = u64::MAX;
            self.stop_workloads();
        }
        result
    }

    pub(crate) fn serve_read(&mut self, workload: usize, op: Op, node: u64, shard: u32) -> crate::workload::Answer {
        let host = self.nodes[node as usize - 1].host.as_ref().expect("only a node that runs serves");
        let machine = &host.shards[shard as usize].replica.machine().inner;
        let mut answer = self.workloads[workload].serve(op, machine);
        answer.node = node;
        answer.index = buttress_core::Machine::applied(machine).0;
        answer
    }

    pub(crate) fn tell_watchers(&mut self, id: u64, shard: u32, steps: &[&buttress_state::Effects]) {
        for number in 0..self.workloads.len() {
            if !self.workloads[number].watches() {
                continue;
            }
            for effects in steps {
                let result = self.with_workload(number, |workload, cx| workload.applied(cx, id, shard, effects));
                if let Err(violation) = result {
                    self.fail_with(violation.id, violation.found);
                }
            }
        }
    }

    pub(crate) fn tell_replaced(&mut self, id: u64, shard: u32) {
        for number in 0..self.workloads.len() {
            if !self.workloads[number].watches() {
                continue;
            }
            // The machine stays where it is; the workload is handed a look at it while it gives orders.
            let Some(host) = self.node_mut(id).host.take() else { return };
            let result = self.with_workload(number, |workload, cx| {
                workload.replaced(cx, id, shard, &host.shards[shard as usize].replica.machine().inner)
            });
            self.node_mut(id).host = Some(host);
            if let Err(violation) = result {
                self.fail_with(violation.id, violation.found);
            }
        }
    }

    /// All faults end.
    fn heal(&mut self) {
        self.note(0, "heal", &[], || "all faults end".into());
        self.healed = true;
        self.cuts.clear();
        self.settle_cuts();
        self.weathers.clear();
        self.settings.weather = Weather::CALM;
        self.settle_weather();
        for id in 1..=self.nodes.len() as u64 {
            let now = self.now;
            let node = self.node_mut(id);
            node.clock.set(now, 0, 0);
            node.paused_until = now.min(node.paused_until);
            node.slow = (0, 0);
            if node.disk.is_failing() && node.host.is_some() {
                node.disk.mend();
                node.mend_after = None;
            }
            if node.standing == Standing::Down && node.host.is_none() && node.incarnation > 0 {
                self.restart_after(id, 0);
            }
        }
        self.stop_workloads();
    }

    fn stop_workloads(&mut self) {
        for number in 0..self.workloads.len() {
            self.with_workload(number, |workload, cx| workload.stop(cx));
        }
    }

    /// LIVE-1, and then the account of everything promised.
    fn converge(&mut self) {
        let deadline = self.heal_at + CONVERGE_WITHIN;
        let mut why = String::new();
        let mut looked = self.heal_at;
        let mut last_words: Option<[(u64, u64); SHARDS as usize]> = None;
        while self.failure.is_none() {
            let until = looked + 50 * MS;
            while self.failure.is_none() && self.next_event(until) {}
            self.now = self.now.max(until);
            looked = until;
            if self.failure.is_some() {
                return;
            }
            let waiting = match last_words {
                Some(last_words) => self.not_converged(last_words),
                None => self.not_idle(),
            };
            match (waiting, last_words) {
                (None, Some(_)) => {
                    self.note(0, "converged", &[], String::new);
                    self.count("converged");
                    let took = self.now - self.heal_at;
                    *self.counts.entry("converge_us").or_default() += took;
                    break;
                }
                (None, None) => last_words = Some(std::array::from_fn(|shard| self.last_word(shard as u32))),
                (Some(what), _) => why = what,
            }
            if self.now >= deadline {
                let bound = CONVERGE_WITHIN / SEC;
                self.fail(invariants::LIVE_1, format!("{bound} s after the last fault: {why}"));
                return;
            }
        }
        self.final_check();
    }

    /// What the workloads and the operator still wait for.
    fn not_idle(&self) -> Option<String> {
        if let Some(workload) = self.workloads.iter().find(|workload| !workload.is_done()) {
            return Some(format!("the workload {} waits for answers", workload.name()));
        }
        if let Some(task) = self.tasks.first() {
            return Some(format!("the operator waits for {task:?}"));
        }
        (1..=self.nodes.len() as u64).find_map(|id| {
            let node = self.node(id);
            (node.standing == Standing::Down).then(|| format!("node {id} is down"))
        })
    }

    fn not_converged(&self, last_words: [(u64, u64); SHARDS as usize]) -> Option<String> {
        if let Some(what) = self.not_idle() {
            return Some(what);
        }
        for shard in 0..SHARDS {
            let group = &self.groups[shard as usize];
            let (client, number) = last_words[shard as usize];
            if self.sessions[&client].open.contains_key(&number) {
                return Some(format!("nothing new is committed in shard {shard}"));
            }
            let members = self.members(shard);
            if members.is_joint() {
                return Some(format!("shard {shard} is in a joint change: {members:?}"));
            }
            let mut leaders = 0;
            for member in members.all() {
                let Some(host) = &self.node(member.0).host else {
                    return Some(format!("member {member} of shard {shard} does not run"));
                };
                let replica = &host.shards[shard as usize].replica;
                leaders += u64::from(replica.role().is_leader);
                let (applied, _) = buttress_core::Machine::applied(replica.machine());
                if applied.0 < group.facts.len() as u64 || applied < group.acknowledged {
                    let end = group.facts.len();
                    return Some(format!("member {member} of shard {shard} has applied {applied} of {end}"));
                }
            }
            if leaders != 1 {
                return Some(format!("shard {shard} has {leaders} leaders"));
            }
        }
        None
    }

    pub(crate) fn with_final_view<T>(
        &mut self,
        call: impl FnOnce(&mut Vec<Box<dyn Workload>>, &FinalView<'_>) -> T,
    ) -> T {
        let mut workloads = std::mem::take(&mut self.workloads);
        let machines = std::array::from_fn(|shard| {
            let members = self.members(shard as u32);
            let found = members.all().into_iter().filter_map(|id| {
                let host = self.node(id.0).host.as_ref()?;
                let machine: &Machine<MemStore> = &host.shards[shard].replica.machine().inner;
                Some((id, machine))
            });
            found.collect()
        });
        let facts = std::array::from_fn(|shard| &self.groups[shard].facts[..]);
        let result = call(&mut workloads, &FinalView { now_us: self.now, machines, facts });
        self.workloads = workloads;
        result
    }

    /// The members that were applied last anywhere.
    pub(crate) fn members(&self, shard: u32) -> Members {
        self.groups[shard as usize].configs.last_key_value().map(|(_, members)| members.clone()).unwrap_or_default()
    }

    pub(crate) fn empty_store(&self) -> Checkpoint {
        Checkpoint { meta: SnapshotMeta::default(), store: MemStore::new(), rolling: 0 }
    }
}
