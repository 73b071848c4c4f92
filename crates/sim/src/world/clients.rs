//! Clients: what an edge or a device does to get an entry into the log exactly once.

use std::collections::{BTreeMap, VecDeque};

use buttress_core::{Entry, Index, Machine as _, NodeId, RequestId, TimeMs, invariants};
use bytes::Bytes;

use super::{Event, World};
use crate::{
    MS, Us,
    workload::{Answer, CLIENTS_MAX, Consistency, Op, Outcome, SHARDS},
};

/// One client of one shard.
pub(crate) struct Session {
    /// `None`: the world's own, which asks for the last word.
    workload: Option<usize>,
    shard: u32,
    /// Where it goes first.
    node: u64,
    next_number: u64,
    waiting: VecDeque<(Op, Entry)>,
    pub open: BTreeMap<u64, Open>,
}

pub(crate) struct Open {
    op: Op,
    encoded: Bytes,
    attempt: u32,
    since: Us,
}

pub(crate) struct ReadOp {
    workload: usize,
    shard: u32,
    consistency: Consistency,
    /// What was acknowledged when it began.
    least: Index,
}

/// The session of the world's last words per shard.
const LAST_WORDS: u64 = 1 << 20;

fn session_id(workload: usize, client: u32, shard: u32) -> u64 {
    ((workload as u64 * u64::from(CLIENTS_MAX)) + u64::from(client)) * u64::from(SHARDS) + u64::from(shard) + 1
}

impl World {
    fn session(&mut self, id: u64, workload: Option<usize>, shard: u32) -> &mut Session {
        let node = 1 + self.rng.below(self.settings.voters);
        self.sessions.entry(id).or_insert_with(|| Session {
            workload,
            shard,
            node,
            next_number: 1,
            waiting: VecDeque::new(),
            open: BTreeMap::new(),
        })
    }

    pub(super) fn submit(&mut self, workload: usize, op: Op, client: u32, shard: u32, entry: Entry) {
        let id = session_id(workload, client, shard);
        self.session(id, Some(workload), shard).waiting.push_back((op, entry));
        self.send_waiting(id);
    }

    /// A last entry, to see that the group still takes one.
    pub(super) fn last_word(&mut self, shard: u32) -> (u64, u64) {
        let id = LAST_WORDS + u64::from(shard);
        let session = self.session(id, None, shard);
        session.waiting.push_back((0, Entry::default()));
        let number = session.next_number;
        self.send_waiting(id);
        (id, number)
    }

    /// Lets waiting entries follow while few enough are under way: half of what state remembers per client.
    fn send_waiting(&mut self, id: u64) {
        let window = (self.settings.limits.request_results_per_client / 2).max(1) as u64;
        loop {
            let session = self.sessions.get_mut(&id).expect("it submits");
            let number = session.next_number;
            let oldest = session.open.keys().next().copied().unwrap_or(number);
            if number - oldest >= window {
                return;
            }
            let Some((op, mut entry)) = session.waiting.pop_front() else { return };
            session.next_number += 1;
            entry.request = Some(RequestId { client: id, number, acknowledged_below: oldest });
            entry.time = TimeMs(0);
            let open = Open { op, encoded: entry.encode(), attempt: 0, since: self.now };
            session.open.insert(number, open);
            if op != 0 {
                self.ops.insert((id, number), op);
            }
            self.note(0, "submit", &[id, number], || format!("{id}/{number} op {op} {entry:?}"));
            self.attempt(id, number);
        }
    }

    fn attempt(&mut self, id: u64, number: u64) {
        let session = self.sessions.get_mut(&id).expect("it submits");
        let (node, shard) = (session.node, session.shard);
        let open = session.open.get_mut(&number).expect("it is under way");
        open.attempt += 1;
        let (attempt, entry) = (open.attempt, open.encoded.clone());
        let delay = self.delay();
        let lost = self.rng.percent(self.weather().drop_percent);
        if !lost {
            self.after(delay, Event::Ask { node, shard, client: id, number, entry });
        }
        // Whoever is not there is noticed soon.
        let patience = if self.node(node).host.is_none() { 20 * MS } else { self.settings.client_patience };
        self.after(patience, Event::Patience { client: id, number, attempt });
    }

    pub(super) fn patience_ends(&mut self, id: u64, number: u64, attempt: u32) {
        let (now, deadline) = (self.now, self.settings.client_deadline);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let forever = session.workload.is_none();
        let Some(open) = session.open.get(&number) else { return };
        if open.attempt != attempt {
            return;
        }
        if now - open.since > deadline && !forever {
            self.count("unknown_outcomes");
            self.finish(id, number, Outcome::Unknown);
            return;
        }
        self.count("client_retries");
        let running = self.running();
        if let Some(node) = self.rng.pick(&running) {
            self.sessions.get_mut(&id).expect("looked up above").node = node;
        }
        self.attempt(id, number);
    }

    pub(super) fn answer_client(&mut self, node: u64, client: u64, number: u64, outcome: Outcome) {
        let _ = node;
        if self.rng.percent(self.weather().drop_percent) {
            return;
        }
        let delay = self.delay();
        self.after(delay, Event::Answer { client, number, outcome });
    }

    pub(super) fn answered(&mut self, client: u64, number: u64, outcome: Outcome) {
        let Some(session) = self.sessions.get(&client) else { return };
        if session.open.contains_key(&number) {
            self.finish(client, number, outcome);
        }
    }

    fn finish(&mut self, id: u64, number: u64, outcome: Outcome) {
        let session = self.sessions.get_mut(&id).expect("it submits");
        let open = session.open.remove(&number).expect("it is under way");
        let (shard, workload) = (session.shard, session.workload);
        self.note(0, "ended", &[id, number], || format!("{id}/{number} op {} {outcome:?}", open.op));
        if let Outcome::Acknowledged(receipt) = &outcome {
            self.count("acknowledged");
            if receipt.replayed {
                self.count("replayed");
            }
            let group = &mut self.groups[shard as usize];
            group.acknowledged = group.acknowledged.max(receipt.index);
            let fact = group.facts.get(receipt.index.0.wrapping_sub(1) as usize);
            let right = fact.is_some_and(|fact| {
                fact.term == receipt.term
                    && fact.applied
                    && fact.request.is_some_and(|request| (request.client, request.number) == (id, number))
            });
            if !right {
                let found =
                    format!("{id}/{number} of shard {shard} was acknowledged as {receipt:?}, which is {fact:?}");
                self.fail(invariants::ACK_1, found);
                return;
            }
        } else if let Outcome::Refused(_) = &outcome {
            self.count("refused");
        }
        if let Some(workload) = workload {
            self.with_workload(workload, |workload, cx| workload.ended(cx, open.op, outcome));
        }
        self.send_waiting(id);
    }

    pub(super) fn read(
        &mut self,
        workload: usize,
        op: Op,
        client: u32,
        shard: u32,
        node: Option<u64>,
        consistency: Consistency,
    ) {
        let sticky = self.session(session_id(workload, client, shard), Some(workload), shard).node;
        // A node that has left the group says so, and clients turn away.
        let members = self.members(shard).all();
        let serving: Vec<u64> = self.running().into_iter().filter(|id| members.contains(&NodeId(*id))).collect();
        let node = match node {
            Some(node) => node,
            None if serving.contains(&sticky) => sticky,
            None => self.rng.pick(&serving).unwrap_or(sticky),
        };
        let least = self.groups[shard as usize].acknowledged;
        self.reads.insert(op, ReadOp { workload, shard, consistency, least });
        self.note(0, "read", &[op, node], || format!("op {op} {consistency:?} s{shard} at node {node}"));
        let delay = self.delay();
        self.after(delay, Event::AskRead { node, op });
        let patience = self.settings.client_deadline;
        self.after(patience, Event::ReadAnswer { op, answer: None });
    }

    pub(super) fn asked_to_read(&mut self, node: u64, op: Op) {
        let Some(read) = self.reads.get(&op) else { return };
        if self.node(node).host.is_none() {
            self.after(MS, Event::ReadAnswer { op, answer: None });
            return;
        }
        let shard = read.shard;
        match read.consistency {
            Consistency::Linearizable => self.read_here(node, shard, op),
            Consistency::Serializable => self.serve(node, shard, op, None),
        }
    }

    /// A node may answer a read. READ-1.
    pub(super) fn serve(&mut self, node: u64, shard: u32, op: Op, confirmed: Option<Index>) {
        let Some(read) = self.reads.get(&op) else { return };
        let (workload, least) = (read.workload, read.least);
        if let Some(confirmed) = confirmed {
            let host = self.node(node).host.as_ref().expect("it runs");
            let applied = host.shards[shard as usize].replica.machine().applied().0;
            if confirmed < least || applied < confirmed {
                let found = format!(
                    "op {op} reads shard {shard} at node {node} as of {confirmed}, applied {applied}; \
                     {least} was acknowledged before it began"
                );
                self.fail(invariants::READ_1, found);
                return;
            }
            self.count("linearizable_reads");
        }
        let answer = self.serve_read(workload, op, node, shard);
        let index = answer.index;
        self.note(node, "serve", &[op, index.0], || format!("op {op} at {index}: {answer:?}"));
        let delay = self.delay();
        self.after(delay, Event::ReadAnswer { op, answer: Some(answer) });
    }

    pub(super) fn read_answered(&mut self, op: Op, answer: Option<Answer>) {
        let Some(read) = self.reads.remove(&op) else { return };
        if answer.is_none() {
            self.count("reads_unanswered");
        }
        self.with_workload(read.workload, |workload, cx| workload.read_ended(cx, op, answer));
    }
}
