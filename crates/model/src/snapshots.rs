//! Snapshots and remembered results: a log that is cut, a node that starts over from a snapshot, and copies of requests
//! that come after it.
//!
//! Clients send numbered requests, several at a time, each as several copies, and send again what is not answered. The
//! log is what Raft agreed on; agreeing is not modelled. Each node applies it at its own pace, writes checkpoints and cuts
//! its log before them, may crash (it opens its checkpoint and applies again from there), and takes the leader's
//! checkpoint where the leader no longer has the entries it needs. Any node that applies a request may answer it.
//!
//! What is checked. Nodes at the same index are equal; no request is applied twice on any of them; what was answered is
//! there, at the offset that was answered; and a client that still waits is never told that its result is forgotten.
//! The limits of what is remembered are as small as the model's clients allow, so that both are reached. Two of the seeded
//! bugs go beyond them, which shows that the limits are really needed: more requests at a time than results are
//! remembered, and more clients than are remembered.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use buttress_core::{
    Append, AppendOutcome, Code, Entry, Index, LogId, Refusal, RequestId, Store as _, Table, TimeMs, TopicChange,
    WriteBatch,
    entry::TopicSettings,
    invariants::{ACK_1, ENTRY_3, Invariant, OFFSET_1, REQUEST_1, REQUEST_2, STATE_1, Violation},
    store::{Row, RowKey},
};
use buttress_state::{Limits, MemStore, local::opaque_batch};

use crate::{
    design::{Design, Seen},
    real::Real,
};

const LOG: LogId = LogId(1);
/// The machine's rows of remembered results start with this byte.
const RESULT_ROWS: u8 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A snapshot leaves remembered results behind. Replicas are not compared, or that alone would show it.
    ResultsLeftBehind,
    /// A client has more requests under way than results are remembered.
    WindowTooWide,
    /// There are more clients than are remembered.
    TooManyClients,
}

/// Each with what it is, and the invariant that it breaks.
pub const BUGS: [(Bug, &str, &str); 3] = [
    (Bug::ResultsLeftBehind, "a snapshot leaves remembered results behind", "REQUEST-1"),
    (Bug::WindowTooWide, "more requests at a time than results remembered", "REQUEST-1"),
    (Bug::TooManyClients, "more clients than are remembered", "REQUEST-1"),
];

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Snapshots {
    /// Requests of each client.
    pub requests: [u8; 2],
    /// Requests that a client has under way at a time, and results that are remembered per client.
    pub window: u8,
    /// Copies sent beside the first ones, of all requests together.
    pub copies: u8,
    pub nodes: u8,
    pub checkpoints: u8,
    pub crashes: u8,
    pub elections: u8,
    pub bug: Option<Bug>,
}

impl Snapshots {
    pub fn small() -> Self {
        Self { requests: [2, 0], crashes: 0, elections: 0, ..Self::full() }
    }

    pub fn full() -> Self {
        Self { requests: [2, 1], window: 2, copies: 1, nodes: 2, checkpoints: 1, crashes: 1, elections: 0, bug: None }
    }

    /// One client, and the other node leads at some time.
    pub fn elected() -> Self {
        Self { requests: [2, 0], elections: 1, ..Self::full() }
    }

    fn limits(&self) -> Limits {
        let less = |bug, than: usize| if self.bug == Some(bug) { than - 1 } else { than };
        Limits {
            request_clients: less(Bug::TooManyClients, self.requests.len()),
            request_results_per_client: less(Bug::WindowTooWide, self.window.into()),
            ..Limits::default()
        }
    }
}

/// Client and number.
type Id = (u8, u8);

fn name((client, number): Id) -> String {
    format!("{}/{number}", char::from(b'a' + client))
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct Node {
    real: Real,
    /// What a crash falls back to, and what a follower is sent. The log before it is cut.
    checkpoint: Real,
    /// Entries that lie in this node's log, those cut off included.
    has: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Client {
    /// The next number.
    next: u8,
    /// What is not answered.
    open: BTreeSet<u8>,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub struct State {
    /// What was agreed on: the request, and below which number its client had all answers when it sent it.
    log: Vec<(Id, u8)>,
    /// The digest after each entry, as the first node to apply it had it.
    digests: Vec<u64>,
    nodes: Vec<Node>,
    leader: u8,
    clients: [Client; 2],
    /// Copies on their way.
    copies: BTreeMap<Id, (u8, u8)>,
    /// Answered requests, and the number of entries after which they must be there.
    answered: BTreeMap<Id, usize>,
    sent_again: u8,
    checkpoints: u8,
    crashes: u8,
    elections: u8,
}

#[derive(Clone, PartialEq)]
pub enum Step {
    Send(u8),
    SendAgain(Id),
    /// A copy reaches the leader and is agreed on.
    Agree(Id),
    /// A node applies its next entry and answers, or the answer is lost.
    Apply(u8, bool),
    Checkpoint(u8),
    Install(u8),
    Crash(u8),
    Elect(u8),
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send(client) => write!(f, "{} sends its next request", char::from(b'a' + client)),
            Self::SendAgain(id) => write!(f, "{} is sent again", name(*id)),
            Self::Agree(id) => write!(f, "{} is in the log", name(*id)),
            Self::Apply(node, true) => write!(f, "node {node} applies and answers"),
            Self::Apply(node, false) => write!(f, "node {node} applies, the answer is lost"),
            Self::Checkpoint(node) => write!(f, "node {node} writes a checkpoint and cuts its log"),
            Self::Install(node) => write!(f, "node {node} takes the leader's snapshot"),
            Self::Crash(node) => write!(f, "node {node} crashes"),
            Self::Elect(node) => write!(f, "node {node} leads"),
        }
    }
}

const INSTALLED: usize = 0;
const FROM_MEMORY_AFTER: usize = 1;
const TOO_LATE: usize = 2;
const AGAIN_AFTER_CRASH: usize = 3;

impl Design for Snapshots {
    type State = State;
    type Step = Step;

    const NAME: &'static str = "snapshots";
    const CHECKS: &'static [Invariant] = &[STATE_1, REQUEST_1, REQUEST_2, ACK_1, ENTRY_3, OFFSET_1];
    const WITNESSES: &'static [&'static str] = &[
        "a snapshot was taken",
        "a copy was answered from memory on a node that took a snapshot",
        "a copy came after its result was forgotten",
        "an entry was applied again after a crash",
    ];

    fn bounds(&self) -> String {
        let Self { requests: [a, b], window, copies, nodes, checkpoints, crashes, elections, .. } = self;
        format!(
            "requests {a}+{b}, window {window}, sent again {copies}, nodes {nodes}, checkpoints {checkpoints}, crashes {crashes}, elections {elections}"
        )
    }

    fn start(&self) -> State {
        let settings = TopicSettings::default();
        let create = TopicChange::Create { name: "t".into(), id: [1; 16], partitions: 1, settings };
        let entry = Entry { time: TimeMs(1), topics: vec![create], ..Entry::default() };
        let real = Real::new(self.limits()).with(&entry);
        let node = Node { real: real.clone(), checkpoint: real, has: 0 };
        State {
            log: Vec::new(),
            digests: Vec::new(),
            nodes: vec![node; self.nodes.into()],
            leader: 0,
            clients: Default::default(),
            copies: BTreeMap::new(),
            answered: BTreeMap::new(),
            sent_again: 0,
            checkpoints: 0,
            crashes: 0,
            elections: 0,
        }
    }

    fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        for (client, at) in state.clients.iter().zip(0u8..) {
            if client.next < self.requests[usize::from(at)] && client.open.len() < self.window.into() {
                steps.push(Step::Send(at));
            }
            if state.sent_again < self.copies {
                steps.extend(client.open.iter().map(|number| Step::SendAgain((at, *number))));
            }
        }
        steps.extend(state.copies.keys().map(|id| Step::Agree(*id)));
        let leader = &state.nodes[usize::from(state.leader)];
        for (node, at) in state.nodes.iter().zip(0u8..) {
            let applied = applied(&node.real);
            let cut = applied < self::applied(&leader.checkpoint);
            if applied < state.log.len() && (applied < node.has || !cut) {
                steps.push(Step::Apply(at, true));
                if state.clients[usize::from(state.log[applied].0.0)].open.contains(&state.log[applied].0.1) {
                    steps.push(Step::Apply(at, false));
                }
            }
            if applied >= node.has && cut {
                steps.push(Step::Install(at));
            }
            if state.checkpoints < self.checkpoints && applied > self::applied(&node.checkpoint) {
                steps.push(Step::Checkpoint(at));
            }
            if state.crashes < self.crashes && applied > self::applied(&node.checkpoint) {
                steps.push(Step::Crash(at));
            }
            // Only who has every entry is elected.
            if state.elections < self.elections && at != state.leader && node.has == state.log.len() {
                steps.push(Step::Elect(at));
            }
        }
    }

    fn take(&self, state: &State, step: &Step, seen: &Seen) -> Result<State, Violation> {
        let mut next = state.clone();
        match *step {
            Step::Send(at) => {
                let client = &mut next.clients[usize::from(at)];
                let number = client.next;
                client.next += 1;
                client.open.insert(number);
                let lowest = *client.open.first().expect("just put in");
                next.copies.insert((at, number), (lowest, 1));
            }
            Step::SendAgain(id) => {
                next.sent_again += 1;
                // The bytes are those of the first copy, so what they say of earlier answers may be old.
                let below = state.copies.get(&id).map(|(below, _)| *below);
                let below = below.or_else(|| state.log.iter().find(|entry| entry.0 == id).map(|entry| entry.1));
                let copies = next.copies.entry(id).or_insert((below.expect("it was sent before"), 0));
                copies.1 += 1;
            }
            Step::Agree(id) => {
                let (below, copies) = state.copies[&id];
                next.log.push((id, below));
                match copies {
                    1 => drop(next.copies.remove(&id)),
                    _ => next.copies.get_mut(&id).expect("looked up above").1 -= 1,
                }
                let leader = usize::from(state.leader);
                next.nodes[leader].has = next.log.len();
            }
            Step::Apply(node, answered) => self.apply(&mut next, node, answered, seen)?,
            Step::Checkpoint(node) => {
                let node = &mut next.nodes[usize::from(node)];
                node.checkpoint = node.real.clone();
                next.checkpoints += 1;
            }
            Step::Install(node) => {
                let checkpoint = &state.nodes[usize::from(state.leader)].checkpoint;
                let store = match self.bug {
                    Some(Bug::ResultsLeftBehind) => without_results(checkpoint.store()),
                    _ => checkpoint.store().clone(),
                };
                let real = Real::open(store, self.limits());
                let has = applied(&real);
                next.nodes[usize::from(node)] = Node { checkpoint: real.clone(), real, has };
                self.look(&next, node)?;
                seen.mark(INSTALLED);
            }
            Step::Crash(node) => {
                let node = &mut next.nodes[usize::from(node)];
                node.real = Real::open(node.checkpoint.store().clone(), self.limits());
                next.crashes += 1;
            }
            Step::Elect(node) => {
                next.leader = node;
                next.elections += 1;
            }
        }
        Ok(next)
    }
}

/// Entries of the model that a machine has applied; the first of all sets it up.
fn applied(real: &Real) -> usize {
    real.index().0 as usize - 1
}

impl Snapshots {
    fn apply(&self, next: &mut State, at: u8, answered: bool, seen: &Seen) -> Result<(), Violation> {
        let node = &mut next.nodes[usize::from(at)];
        let place = applied(&node.real);
        let (id, below) = next.log[place];
        let entry = Entry {
            request: Some(RequestId { client: id.0.into(), number: id.1.into(), acknowledged_below: below.into() }),
            time: TimeMs(1),
            appends: vec![Append {
                log: LOG,
                records: 1,
                max_timestamp_ms: 0,
                sequence: None,
                batch: opaque_batch(1, name(id).as_bytes()),
            }],
            ..Entry::default()
        };
        let (real, effects) = node.real.apply(&entry)?;
        let installed = node.has < place + 1 && place > 0 && applied(&node.checkpoint) > 0;
        node.real = real;
        node.has = node.has.max(place + 1);
        if place < next.digests.len() {
            if place + 1 < next.digests.len() && next.crashes > 0 {
                seen.mark(AGAIN_AFTER_CRASH);
            }
        } else {
            next.digests.push(node.real.digest());
        }
        self.look(next, at)?;

        let waits = next.clients[usize::from(id.0)].open.contains(&id.1);
        match &effects.result {
            Ok(receipt) => {
                let Some(AppendOutcome::Appended { base_offset }) = receipt.appends.first() else {
                    return Err(ACK_1.broken(format!("{} is answered {receipt:?}", name(id))));
                };
                let payloads = next.nodes[usize::from(at)].real.payloads(LOG);
                let lies = payloads.get(base_offset.0 as usize).is_some_and(|payload| *payload == name(id));
                REQUEST_1.hold(lies, || format!("{} is answered {base_offset}, where {payloads:?} lie", name(id)))?;
                if receipt.replayed && installed {
                    seen.mark(FROM_MEMORY_AFTER);
                }
                if waits && answered {
                    next.clients[usize::from(id.0)].open.remove(&id.1);
                    next.answered.insert(id, place + 1);
                }
            }
            Err(Refusal::Part { code: Code::TIMEOUT, message }) => {
                REQUEST_1.hold(!waits, || format!("{} waits and is told: {message}", name(id)))?;
                seen.mark(TOO_LATE);
            }
            Err(refusal) => return Err(ACK_1.broken(format!("{} is refused: {refusal:?}", name(id)))),
        }
        Ok(())
    }

    /// Looks at a node that has changed.
    fn look(&self, state: &State, node: u8) -> Result<(), Violation> {
        let real = &state.nodes[usize::from(node)].real;
        let payloads = real.payloads(LOG);
        let different: BTreeSet<&String> = payloads.iter().collect();
        REQUEST_1.hold(different.len() == payloads.len(), || format!("node {node} holds {payloads:?}"))?;
        let applied = applied(real);
        for (id, after) in &state.answered {
            let there = applied < *after || different.contains(&name(*id));
            ACK_1.hold(there, || format!("{} was answered, node {node} holds {payloads:?}", name(*id)))?;
        }
        let same = applied == 0 || state.digests[applied - 1] == real.digest();
        STATE_1.hold(same || self.bug == Some(Bug::ResultsLeftBehind), || {
            format!("node {node} differs from the first that applied {applied} entries")
        })
    }
}

/// The same store without its rows of remembered results.
fn without_results(store: &MemStore) -> MemStore {
    let (index, term) = store.applied();
    let mut stripped = MemStore::new();
    for before in 1..index.0 {
        stripped.write(WriteBatch { index: Index(before), term, ..WriteBatch::default() });
    }
    let rows = Table::ALL.iter().flat_map(|table| {
        let kept = move |key: &[u8]| *table != Table::Meta || key[0] != RESULT_ROWS;
        let row = move |(key, value): (&RowKey, &bytes::Bytes)| Row {
            table: *table,
            key: key.clone(),
            value: Some(value.clone()),
            fresh: false,
        };
        store.rows(*table).iter().filter(move |(key, _)| kept(key)).map(row)
    });
    let appends = store.logs().flat_map(|log| store.batches(log).cloned()).collect();
    stripped.write(WriteBatch { index, term, rows: rows.collect(), appends, ..WriteBatch::default() });
    stripped
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::{design::check, report::story};

    #[test]
    fn a_snapshot_carries_what_is_remembered() {
        let explored = check(Snapshots::small());
        assert!(explored.ok() || explored.missing == Snapshots::WITNESSES[3..], "{}", story(&explored));
    }

    fn finds(bug: Bug, expect: Expect) {
        expect.assert_eq(&story(&check(Snapshots { bug: Some(bug), ..Snapshots::full() })));
    }

    #[test]
    fn results_left_behind_are_found() {
        finds(
            Bug::ResultsLeftBehind,
            expect![[r#"
            a sends its next request
            a/0 is sent again
            a/0 is in the log
            a/0 is in the log
            node 0 applies and answers
            node 0 writes a checkpoint and cuts its log
            node 1 takes the leader's snapshot
            node 1 applies and answers
            => REQUEST-1 does not hold: node 1 holds ["a/0", "a/0"]
        "#]],
        );
    }

    #[test]
    fn a_window_wider_than_what_is_remembered_is_found() {
        finds(
            Bug::WindowTooWide,
            expect![[r#"
            a sends its next request
            a sends its next request
            a/0 is sent again
            a/0 is in the log
            a/1 is in the log
            a/0 is in the log
            node 0 applies, the answer is lost
            node 0 applies and answers
            node 0 applies and answers
            => REQUEST-1 does not hold: a/0 waits and is told: results below 1 are forgotten, so the outcome of request 0 is unknown
        "#]],
        );
    }

    #[test]
    fn more_clients_than_are_remembered_are_found() {
        finds(
            Bug::TooManyClients,
            expect![[r#"
            a sends its next request
            a/0 is sent again
            b sends its next request
            a/0 is in the log
            b/0 is in the log
            a/0 is in the log
            node 0 applies and answers
            node 0 applies and answers
            node 0 applies and answers
            => REQUEST-1 does not hold: node 0 holds ["a/0", "b/0", "a/0"]
        "#]],
        );
    }
}
