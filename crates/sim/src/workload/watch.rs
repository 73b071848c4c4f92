//! Watchers: some ask a node again and again for what comes after what they have seen, some hang on a node and are told
//! what it applies; all of them lose their node and go on at another one, which may lag; and somebody compacts the history
//! that they may still want. WATCH-1, and KEYS-3 as far as watchers see it.

use std::collections::BTreeMap;

use buttress_core::{
    Entry, KeyRange, Revision,
    invariants::{KEYS_3, Violation},
    ledger::KeyEvent,
};
use buttress_oracle::{Session, SessionEnd, Watcher, watches};
use buttress_state::{Effects, Machine, MemStore, ReadError};
use bytes::Bytes;

use super::{
    Answer, Consistency, Context, FinalView, Op, Outcome, SHARDS, Workload,
    book::{Book, soon},
};
use crate::{MS, Us, rng::Rng};

/// The client that compacts; watchers only read.
const KEEPER: u32 = 0;
const WATCHERS: u32 = 1;
/// What a live watcher's read may bring at once.
const EVERYTHING: usize = usize::MAX;

/// What a node has shown.
#[derive(Debug)]
enum Shown {
    /// Events, and the revision from which on it goes on.
    Events(Vec<KeyEvent>, Revision),
    Compacted(Revision),
}

struct Watching {
    range: KeyRange,
    next: Revision,
    node: u64,
    /// It is told what its node applies, once it has caught up there.
    live: bool,
    /// It hangs on its node from this revision on.
    hangs: bool,
    connected: bool,
}

pub struct Watch {
    book: Book,
    watchers: Vec<Watching>,
    think: Us,
    events_max: usize,
    compacts: bool,
    newest: Revision,
    stopped: bool,
    compacting: Option<Op>,
    open: BTreeMap<Op, usize>,
    shown: BTreeMap<Op, Shown>,
    checked: watches::Checked,
}

impl Watch {
    pub fn draw(rng: &mut Rng) -> Self {
        let shard = rng.below(u64::from(SHARDS)) as u32;
        let count = rng.range(1, 3);
        let mut book = Book::new(shard, None);
        let mut watchers = Vec::new();
        for number in 0..count {
            let range = match rng.below(4) {
                0 => KeyRange::prefix(""),
                1 => KeyRange::prefix("keys/"),
                2 => KeyRange::prefix("lock/of/"),
                _ => KeyRange { from: Bytes::from_static(b"keys/1"), to: Some(Bytes::from_static(b"z")) },
            };
            let name = format!("w{number}");
            book.history.watchers.push(Watcher { name, range: range.clone(), sessions: Vec::new() });
            let live = rng.percent(50);
            watchers.push(Watching { range, next: Revision(2), node: 1, live, hangs: false, connected: false });
        }
        Self {
            book,
            watchers,
            think: rng.one([20 * MS, 100 * MS, 800 * MS]),
            events_max: rng.one([1, 5, 100]),
            compacts: rng.percent(70),
            newest: Revision(1),
            stopped: false,
            compacting: None,
            open: BTreeMap::new(),
            shown: BTreeMap::new(),
            checked: watches::Checked::default(),
        }
    }

    fn again(&self, cx: &mut Context<'_>, number: usize) {
        soon(cx, 2 * self.think, u64::from(WATCHERS) + number as u64);
    }

    fn session(&mut self, number: usize) -> &mut Session {
        let watching = &mut self.watchers[number];
        let sessions = &mut self.book.history.watchers[number].sessions;
        if !watching.connected {
            watching.connected = true;
            sessions.push(Session { from: watching.next, events: Vec::new(), end: SessionEnd::Lost });
        }
        sessions.last_mut().expect("there is a session while it is connected")
    }

    /// Gives the watcher events, and where to go on.
    fn give(&mut self, number: usize, events: Vec<KeyEvent>, next: Revision) {
        let session = self.session(number);
        session.events.extend(events);
        if next > session.from {
            // Also where nothing of its range happened, it knows that.
            session.end = SessionEnd::UpTo(Revision(next.0 - 1));
        }
        self.watchers[number].next = next.max(self.watchers[number].next);
        self.newest = self.newest.max(Revision(next.0 - 1));
    }

    /// The connection is over.
    fn lose(&mut self, number: usize) {
        self.watchers[number].connected = false;
        self.watchers[number].hangs = false;
    }

    fn ask(&mut self, cx: &mut Context<'_>, number: usize) {
        let watching = &self.watchers[number];
        if !cx.running.contains(&watching.node) || cx.rng.percent(8) {
            self.lose(number);
            self.watchers[number].node = cx.rng.pick(cx.running).unwrap_or(1);
        }
        if self.watchers[number].hangs {
            // Nothing to ask for: it is told. From time to time it looks whether its node still runs.
            self.again(cx, number);
            return;
        }
        let node = Some(self.watchers[number].node);
        let op = cx.read(WATCHERS + number as u32, self.book.shard, node, Consistency::Serializable);
        self.open.insert(op, number);
    }
}

impl Workload for Watch {
    fn name(&self) -> &'static str {
        "watch"
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        for number in 0..self.watchers.len() {
            self.again(cx, number);
        }
        if self.compacts {
            soon(cx, 40 * self.think, KEEPER.into());
        }
    }

    fn woken(&mut self, cx: &mut Context<'_>, token: u64) {
        if self.stopped {
            return;
        }
        if token >= u64::from(WATCHERS) {
            self.ask(cx, (token - u64::from(WATCHERS)) as usize);
        } else {
            // Mostly what most have seen, sometimes all there is, sometimes what is not there yet.
            let back = cx.rng.one([0, 3, 30]);
            let to = (self.newest.0 + cx.rng.below(2)).saturating_sub(cx.rng.below(back + 1));
            let entry = Entry { compact: Some(Revision(to)), ..Entry::default() };
            self.compacting = Some(self.book.submit(cx, KEEPER, entry));
        }
    }

    fn ended(&mut self, cx: &mut Context<'_>, op: Op, outcome: Outcome) {
        self.book.ended(cx.now_us, op, &outcome);
        assert_eq!(self.compacting.take(), Some(op), "only compactions are submitted");
        soon(cx, 40 * self.think, KEEPER.into());
    }

    fn serve(&mut self, op: Op, machine: &Machine<MemStore>) -> Answer {
        let Some(number) = self.open.get(&op).copied() else { return Answer::default() };
        let watching = &self.watchers[number];
        let limit = if watching.live { EVERYTHING } else { self.events_max };
        let shown = match machine.events_since(&watching.range, watching.next, limit) {
            Ok(found) => Shown::Events(found.events, found.next.max(watching.next)),
            Err(ReadError::Compacted { compacted, .. }) => Shown::Compacted(compacted),
            Err(error) => panic!("a watch is never refused so: {error}"),
        };
        if watching.live {
            // From this very moment on it hangs on the node, and is given what it has not seen.
            if let Shown::Events(events, next) = shown {
                let next = next.min(Revision(machine.revision().0 + 1)).max(self.watchers[number].next);
                self.give(number, events, next);
                self.watchers[number].hangs = true;
                return Answer::default();
            }
        }
        self.shown.insert(op, shown);
        Answer::default()
    }

    fn read_ended(&mut self, cx: &mut Context<'_>, op: Op, answer: Option<Answer>) {
        let number = self.open.remove(&op).expect("it is one of ours");
        match (self.shown.remove(&op), answer) {
            (Some(Shown::Events(events, next)), Some(_)) => self.give(number, events, next),
            (Some(Shown::Compacted(compacted)), Some(_)) => {
                self.session(number).end = SessionEnd::Compacted(compacted);
                self.watchers[number].next = Revision(compacted.0 + 1);
                self.lose(number);
            }
            // A live watcher was served already; if its node is gone, it finds out.
            (None, Some(_)) => {}
            (_, None) => self.lose(number),
        }
        self.again(cx, number);
    }

    fn watches(&self) -> bool {
        true
    }

    fn applied(&mut self, _: &mut Context<'_>, node: u64, shard: u32, effects: &Effects) -> Result<(), Violation> {
        self.book.applied(shard, effects);
        if shard != self.book.shard {
            return Ok(());
        }
        let Some(revision) = effects.events().next().map(|event| event.revision) else { return Ok(()) };
        for number in 0..self.watchers.len() {
            let watching = &self.watchers[number];
            // What it has seen elsewhere its node may only come to now.
            if watching.hangs && watching.node == node && watching.next <= revision {
                let events = effects.events().filter(|event| watching.range.contains(&event.key));
                let events = events.collect();
                self.give(number, events, Revision(revision.0 + 1));
            }
        }
        Ok(())
    }

    fn replaced(&mut self, _: &mut Context<'_>, node: u64, shard: u32, _: &Machine<MemStore>) -> Result<(), Violation> {
        for number in 0..self.watchers.len() {
            if shard == self.book.shard && self.watchers[number].node == node {
                self.lose(number);
            }
        }
        Ok(())
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.stopped = true;
    }

    fn is_done(&self) -> bool {
        self.open.is_empty() && self.book.is_idle()
    }

    fn check(&mut self, view: &FinalView<'_>) -> Result<(), Violation> {
        self.book.close(view, &[], true)?;
        // Everybody looks a last time, each at another node.
        let machines = &view.machines[self.book.shard as usize];
        let end = self.book.last(view).revision();
        for number in 0..self.watchers.len() {
            let (_, machine) = machines[number % machines.len()];
            self.lose(number);
            loop {
                let watching = &self.watchers[number];
                match machine.events_since(&watching.range, watching.next, EVERYTHING) {
                    Ok(found) => {
                        self.give(number, found.events, found.next);
                        self.session(number).end = SessionEnd::UpTo(end);
                        break;
                    }
                    Err(ReadError::Compacted { compacted, .. }) => {
                        KEYS_3.hold(watching.next <= compacted, || format!("compacted to {compacted} only"))?;
                        self.session(number).end = SessionEnd::Compacted(compacted);
                        self.watchers[number].next = Revision(compacted.0 + 1);
                        self.lose(number);
                    }
                    Err(error) => panic!("a store in memory can be read: {error}"),
                }
            }
        }
        self.checked = watches::check(&self.book.history)?;
        // What is left of history is what happened.
        for (node, machine) in machines {
            let compacted = machine.compacted();
            let found = machine.events_since(&KeyRange::prefix(""), Revision(compacted.0 + 1), EVERYTHING);
            let found = found.expect("it is not compacted").events;
            let changes = &self.book.history.changes;
            let left = &changes[changes.partition_point(|event| event.revision <= compacted)..];
            KEYS_3.hold(found == left, || {
                format!("node {node} has {} changes behind {compacted}, not {}", found.len(), left.len())
            })?;
        }
        Ok(())
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        let watches::Checked { sessions, events, compacted, .. } = self.checked;
        vec![
            ("watch_sessions", sessions as u64),
            ("watch_events", events as u64),
            ("watch_compacted", compacted as u64),
        ]
    }
}
