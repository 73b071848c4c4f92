//! What clients of the world do, and what they check.
//!
//! A workload is a state machine of callbacks. It is told that something happened (it may start, a moment that it asked
//! for has come, an operation ended), and answers by giving the world orders through [`Context`]. It never waits and it
//! never reads anything but its arguments, its own fields and [`Context::rng`], so a seed repeats it exactly.
//!
//! # Operations
//!
//! [`Context::submit`] hands an entry to the world under one of the workload's *clients*. A client is what an edge or a
//! device is: its entries get a [`RequestId`](buttress_core::RequestId) of that client and shard, and go in order, at
//! most a window of them at once; each is sent to one node, and when that does not answer in time, to another one, under
//! the same id. The node handles it as a production node does: it proposes it where it leads, or sends it on to the
//! leader, again and again. In the end [`Workload::ended`] is told one of three things:
//!
//! | [`Outcome`] | means |
//! |---|---|
//! | `Acknowledged` | it was applied; the receipt is what the entry answered (`replayed` after a retry) |
//! | `Refused` | it was applied and refused: nothing of it happened |
//! | `Unknown` | nobody answered in time. It may have happened, may still happen later, or never |
//!
//! [`Context::read`] asks one node for a look at its state. When the node may answer (at once for a serializable read,
//! after a ReadIndex round for a linearizable one), [`Workload::serve`] is called with the machine; what it returns
//! travels to the client and arrives with [`Workload::read_ended`], or `None` arrives because the node died, the answer
//! was lost or nobody confirmed the read in time. An operation begins when the order is given and ends when it is told,
//! so [`Context::now_us`] in both places is what a history needs.
//!
//! # Watching
//!
//! [`Workload::applied`] sees every effect that a node applies, if [`Workload::watches`] says so. Where a node's machine is
//! replaced (a restart, an installed snapshot) [`Workload::replaced`] comes instead of the effects in between, as for a
//! watcher in production, which then has to read `events_since`.
//!
//! # The end
//!
//! After the faults end, [`Workload::stop`] asks to start nothing new. When everything has ended, [`Workload::check`] gets
//! the [`Verdict`](FinalView): every replica's machine and the log as it was applied.

pub mod basic;

mod book;
mod desk;
pub mod etcd;
pub mod groups;
pub mod hosts;
pub mod keys;
pub mod leases;
pub mod locks;
pub mod pipeline;
pub mod records;
mod target;
pub mod uplink;
pub mod watch;

use buttress_core::{Entry, Index, NodeId, Receipt, Refusal, RequestId, Term, invariants::Violation};
use buttress_state::{Effects, Machine, MemStore};

use crate::{Options, Us, rng::Rng};

/// The shards that every node hosts.
pub const SHARDS: u32 = 2;

/// Names an operation; unique in a run, and growing.
pub type Op = u64;

/// How an entry ended for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Acknowledged(Receipt),
    Refused(Refusal),
    /// Nobody answered in time; it may have been, or may yet be, applied.
    Unknown,
}

/// What a read may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Everything that was acknowledged before the read began.
    Linearizable,
    /// What the node has applied.
    Serializable,
}

/// What [`Workload::serve`] made of a read: numbers and texts of the workload's own making. `index` is filled in by the
/// world: the read saw exactly the entries up to there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub node: u64,
    pub index: Index,
    pub values: Vec<Option<bytes::Bytes>>,
    pub numbers: Vec<i64>,
}

/// Orders of a workload to the world; carried out when the callback returns.
pub(crate) enum Order {
    Submit { op: Op, client: u32, shard: u32, entry: Box<Entry> },
    Read { op: Op, client: u32, shard: u32, node: Option<u64>, consistency: Consistency },
    Wake { after: Us, token: u64 },
    Note { text: String },
}

/// The world as a workload sees it during a callback.
pub struct Context<'a> {
    /// Virtual time. One for all clients; nodes' clocks differ from it.
    pub now_us: Us,
    pub rng: &'a mut Rng,
    /// Numbers of the nodes that run now, in order.
    pub running: &'a [u64],
    pub(crate) next_op: &'a mut Op,
    pub(crate) orders: &'a mut Vec<Order>,
}

impl Context<'_> {
    /// Submits an entry for one of the workload's clients, which are numbered as it likes below [`CLIENTS_MAX`]. `request`
    /// and `time` of the entry are filled in by the world.
    pub fn submit(&mut self, client: u32, shard: u32, entry: Entry) -> Op {
        assert!(client < CLIENTS_MAX && shard < SHARDS, "client {client} of shard {shard} does not exist");
        let op = self.next();
        self.orders.push(Order::Submit { op, client, shard, entry: Box::new(entry) });
        op
    }

    /// Reads on a node, or, where none is named, on one that the client picks.
    pub fn read(&mut self, client: u32, shard: u32, node: Option<u64>, consistency: Consistency) -> Op {
        assert!(client < CLIENTS_MAX && shard < SHARDS, "client {client} of shard {shard} does not exist");
        let op = self.next();
        self.orders.push(Order::Read { op, client, shard, node, consistency });
        op
    }

    /// Asks for [`Workload::woken`] with this token.
    pub fn wake(&mut self, after: Us, token: u64) {
        self.orders.push(Order::Wake { after, token });
    }

    /// A line in the event log.
    pub fn note(&mut self, text: String) {
        self.orders.push(Order::Note { text });
    }

    fn next(&mut self) -> Op {
        *self.next_op += 1;
        *self.next_op
    }
}

/// Clients of one workload. Together with the number of workloads this must stay below the smallest
/// `Limits::request_clients` that a world draws, or a retry could be carried out twice.
pub const CLIENTS_MAX: u32 = 8;

/// One applied entry, as the world recorded it where it was applied first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub term: Term,
    /// The workload's operation that it carries, where it is one of a client.
    pub request: Option<RequestId>,
    pub op: Option<Op>,
    /// It is a remembered result of an earlier entry.
    pub replayed: bool,
    pub applied: bool,
    /// It was not carried out, because what became of its request was forgotten: it may have been before.
    pub forgotten: bool,
    /// A hash of the entry's bytes.
    pub entry_hash: u64,
    /// A hash of every effect up to here.
    pub rolling: u64,
    /// A hash of the whole machine, at some indexes.
    pub full: Option<u64>,
}

/// Everything, when all is over.
pub struct FinalView<'a> {
    pub now_us: Us,
    /// Per shard: every member's machine.
    pub machines: [Vec<(NodeId, &'a Machine<MemStore>)>; SHARDS as usize],
    /// Per shard: the facts in log order; the first one is of index 1.
    pub facts: [&'a [Fact]; SHARDS as usize],
}

/// A kind of client.
pub trait Workload {
    fn name(&self) -> &'static str;

    /// The world is there; nobody leads yet.
    fn start(&mut self, cx: &mut Context<'_>);

    /// A moment that was asked for by [`Context::wake`].
    fn woken(&mut self, _cx: &mut Context<'_>, _token: u64) {}

    /// An entry of this workload has ended.
    fn ended(&mut self, cx: &mut Context<'_>, op: Op, outcome: Outcome);

    /// A node answers a read of this workload: look at its machine. This happens on the node; the client does not know
    /// yet.
    fn serve(&mut self, _op: Op, _machine: &Machine<MemStore>) -> Answer {
        Answer::default()
    }

    /// A read has ended; `None` where no answer came.
    fn read_ended(&mut self, _cx: &mut Context<'_>, _op: Op, _answer: Option<Answer>) {}

    /// Whether [`Self::applied`] and [`Self::replaced`] are wanted.
    fn watches(&self) -> bool {
        false
    }

    /// A node has applied an entry; `machine` is the state after the whole step.
    fn applied(&mut self, _cx: &mut Context<'_>, _node: u64, _shard: u32, _effects: &Effects) -> Result<(), Violation> {
        Ok(())
    }

    /// A node has another machine than before: it restarted, or installed a snapshot.
    fn replaced(
        &mut self,
        _cx: &mut Context<'_>,
        _node: u64,
        _shard: u32,
        _machine: &Machine<MemStore>,
    ) -> Result<(), Violation> {
        Ok(())
    }

    /// Start nothing new from now on.
    fn stop(&mut self, cx: &mut Context<'_>);

    /// Whether everything it started has ended.
    fn is_done(&self) -> bool;

    /// Holds what was seen against what is there now.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    fn check(&mut self, view: &FinalView<'_>) -> Result<(), Violation>;

    /// Numbers for the report, when all is over.
    fn tally(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Makes a workload.
type Make = fn(&mut Rng) -> Box<dyn Workload>;

/// Every workload: its name, how many worlds of a hundred have it, and how it is made.
pub const ALL: &[(&str, u64, Make)] = &[
    ("basic", 35, |rng| Box::new(basic::Basic::draw(rng))),
    ("keys", 35, |rng| Box::new(keys::draw(rng))),
    ("locks", 35, |rng| Box::new(locks::Locks::draw(rng))),
    ("records", 30, |rng| Box::new(records::Records::draw(rng))),
    ("pipeline", 35, |rng| Box::new(pipeline::Pipeline::draw(rng))),
    ("watch", 45, |rng| Box::new(watch::Watch::draw(rng))),
    ("etcd", 35, |rng| Box::new(etcd::draw(rng))),
    ("groups", 30, |rng| Box::new(groups::Groups::draw(rng))),
    ("uplink", 40, |rng| Box::new(uplink::Uplink::draw(rng))),
    ("leases", 50, |rng| Box::new(leases::Leases::draw(rng))),
    ("hosts", 30, |rng| Box::new(hosts::Hosts::draw(rng))),
];

/// The workloads of a seed: of those that are named, or of all, the ones that it draws. One that is named alone is in every
/// world, so that as many worlds have it as there are seeds; where it is drawn too, the history is the same.
pub(crate) fn draw(seed: u64, options: &Options) -> Vec<Box<dyn Workload>> {
    let mut drawn = Vec::new();
    for (at, (name, percent, make)) in ALL.iter().enumerate() {
        let mut rng = Rng::derive(seed, 1000 + at as u64);
        let lucky = rng.percent(*percent);
        let named = options.workloads.iter().any(|wanted| wanted == name);
        let alone = named && options.workloads.len() == 1;
        if alone || (lucky && (named || options.workloads.is_empty())) {
            drawn.push(make(&mut rng));
        }
    }
    if drawn.is_empty() && options.workloads.is_empty() {
        // A world without clients proves little.
        drawn.push(Box::new(basic::Basic::draw(&mut Rng::derive(seed, 1000))));
    }
    drawn
}
