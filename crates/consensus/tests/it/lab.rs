//! A small laboratory, driven by hand: replicas whose every message and sync waits until it is told to happen.
//!
//! Scripts are text (`testdata/*.txt`): a command after `>`, and below it what came out. The commands:
//!
//! ```text
//! found 3            a group of three, everything of its start done
//! join 4             a new, empty node
//! tick 1 [n]         time passes
//! campaign 1         time passes until 1 campaigns
//! propose 1 a b      two proposals in one step
//! read 1
//! change 1 learner=4 voter=4 remove=1 contact=4/node-4
//! transfer 1 2
//! sync 1             everything that 1 has to persist becomes durable
//! deliver [1->2]     messages that are under way now arrive, all or those of one way
//! drop 1->2          they are lost instead
//! cut 3, mend 3      everything from and to 3 is lost until mended
//! settle             sync and deliver until nothing is left
//! checkpoint 1       its store becomes durable
//! install 2          the snapshot that 2 accepted is put in place
//! crash 1, start 1
//! status
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use buttress_consensus::{
    Config, Contact, HardState, Input, LogEntry, MemberChange, MemberStep, Message, Outputs, Persist, Replica,
    Restored, SnapshotMeta,
};
use buttress_core::{Index, Machine as _, NodeId};
use bytes::Bytes;

use crate::world::Book;

#[derive(Default)]
struct Node {
    replica: Option<Replica<Book>>,
    hard_state: HardState,
    log: Vec<LogEntry>,
    store: (SnapshotMeta, Book),
    persisting: Vec<Persist>,
    install: Option<(SnapshotMeta, Book)>,
    starts: u64,
}

#[derive(Default)]
pub struct Lab {
    nodes: BTreeMap<u64, Node>,
    under_way: Vec<(u64, u64, Message, Option<Book>)>,
    cut: BTreeSet<u64>,
    next_tag: u64,
    out: String,
}

impl Lab {
    /// Runs one command and gives what came out.
    pub fn run(&mut self, command: &str) -> String {
        self.out.clear();
        let words: Vec<&str> = command.split_whitespace().collect();
        let id = |position: usize| words[position].parse::<u64>().expect("a node's number");
        match words[0] {
            "found" => {
                let founders: Vec<NodeId> = (1..=id(1)).map(NodeId).collect();
                for founder in &founders {
                    let founding = Restored::founding(&founders);
                    let node = Node { hard_state: founding.hard_state, log: founding.entries, ..Node::default() };
                    self.nodes.insert(founder.0, node);
                    self.start(founder.0);
                    self.step(founder.0, Vec::new());
                }
            }
            "join" => {
                self.nodes.insert(id(1), Node::default());
                self.start(id(1));
                self.step(id(1), Vec::new());
            }
            "tick" => {
                let times = words.get(2).map_or(1, |times| times.parse().expect("a number"));
                for _ in 0..times {
                    self.step(id(1), vec![Input::Tick]);
                }
            }
            "campaign" => {
                let before = self.under_way.len();
                for _ in 0..21 {
                    self.step(id(1), vec![Input::Tick]);
                    if self.under_way.len() > before || self.replica(id(1)).role().is_leader {
                        break;
                    }
                }
            }
            "propose" => {
                let inputs = words[2..]
                    .iter()
                    .map(|word| {
                        self.next_tag += 1;
                        Input::Propose { tag: self.next_tag, data: Bytes::copy_from_slice(word.as_bytes()) }
                    })
                    .collect();
                self.step(id(1), inputs);
            }
            "read" => {
                self.next_tag += 1;
                self.step(id(1), vec![Input::ReadIndex { tag: self.next_tag }]);
            }
            "change" => {
                let (contacts, steps): (Vec<&str>, Vec<&str>) =
                    words[2..].iter().partition(|word| word.starts_with("contact="));
                let contacts = contacts
                    .iter()
                    .map(|word| {
                        let (node, name) = word["contact=".len()..].split_once('/').expect("contact=node/name");
                        let contact = Contact { name: name.to_owned(), ..Contact::default() };
                        (NodeId(node.parse().expect("a node's number")), contact)
                    })
                    .collect();
                let steps = steps
                    .iter()
                    .map(|word| {
                        let (what, node) = word.split_once('=').expect("what=node");
                        let node = NodeId(node.parse().expect("a node's number"));
                        match what {
                            "voter" => MemberStep::Voter(node),
                            "learner" => MemberStep::Learner(node),
                            "remove" => MemberStep::Remove(node),
                            other => panic!("unknown step {other:?}"),
                        }
                    })
                    .collect();
                self.next_tag += 1;
                self.step(id(1), vec![Input::Change(MemberChange { tag: self.next_tag, steps, contacts })]);
            }
            "transfer" => self.step(id(1), vec![Input::Transfer { to: NodeId(id(2)) }]),
            "sync" => self.sync(id(1)),
            "deliver" => self.deliver(words.get(1).copied(), true),
            "drop" => self.deliver(words.get(1).copied(), false),
            "cut" => {
                self.cut.insert(id(1));
            }
            "mend" => {
                self.cut.remove(&id(1));
            }
            "settle" => self.settle(),
            "checkpoint" => {
                let replica = self.replica(id(1));
                let (meta, book) = (replica.snapshot_meta(), replica.machine().clone());
                let (index, term) = (meta.index, meta.term);
                self.nodes.get_mut(&id(1)).expect("a node").store = (meta, book);
                self.step(id(1), vec![Input::Checkpointed { index, term }]);
            }
            "install" => {
                let node = self.nodes.get_mut(&id(1)).expect("a node");
                let (snapshot, machine) = node.install.take().expect("a snapshot was accepted");
                node.store = (snapshot.clone(), machine.clone());
                self.step(id(1), vec![Input::Installed { snapshot, machine: Box::new(machine) }]);
            }
            "crash" => {
                let node = self.nodes.get_mut(&id(1)).expect("a node");
                node.replica = None;
                node.persisting.clear();
                node.install = None;
            }
            "start" => {
                self.start(id(1));
                self.step(id(1), Vec::new());
            }
            "status" => self.status(),
            other => panic!("unknown command {other:?}"),
        }
        self.out.clone()
    }

    fn replica(&self, id: u64) -> &Replica<Book> {
        self.nodes[&id].replica.as_ref().expect("it runs")
    }

    fn start(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("a node");
        node.starts += 1;
        let config = Config { log_tail_bytes: 0, ..Config::new(NodeId(id), id * 100 + node.starts) };
        let restored =
            Restored { hard_state: node.hard_state, snapshot: node.store.0.clone(), entries: node.log.clone() };
        node.replica = Some(Replica::new(config, restored, node.store.1.clone()).expect("it starts"));
    }

    fn step(&mut self, id: u64, inputs: Vec<Input<Book>>) {
        let replica = self.nodes.get_mut(&id).expect("a node").replica.as_mut().expect("it runs");
        let out = replica.step(0, inputs);
        let book = replica.machine().clone();
        let meta = replica.snapshot_meta();
        self.show(id, &out);
        for (to, message) in out.messages {
            self.under_way.push((id, to.0, message, None));
        }
        for (to, mut message) in out.snapshots {
            message.retarget_snapshot(meta.clone());
            self.under_way.push((id, to.0, message, Some(book.clone())));
        }
        self.nodes.get_mut(&id).expect("a node").persisting.extend(out.persist);
    }

    fn show(&mut self, id: u64, out: &Outputs<Book>) {
        let mut lines: Vec<String> = Vec::new();
        if let Some(role) = &out.role {
            let who = match role.leader {
                _ if role.is_leader => "leads".to_owned(),
                Some(leader) => format!("follows {leader}"),
                None => "knows no leader".to_owned(),
            };
            lines.push(format!("{who} in term {}", role.term));
        }
        if let Some((index, members)) = &out.members {
            lines.push(format!("members at {index}: {members:?}"));
        }
        for (to, message) in &out.messages {
            lines.push(format!("sends {to}: t{} {:?}", message.term, message.body));
        }
        for (to, message) in &out.snapshots {
            lines.push(format!("streams its store to {to}: t{} {:?}", message.term, message.body));
        }
        if let Some(persist) = &out.persist {
            let mut line = "persists".to_owned();
            if let Some(meta) = &persist.reset {
                let _ = write!(line, " reset behind {}@{}", meta.index, meta.term);
            }
            if let Some(HardState { term, vote, commit }) = persist.hard_state {
                let _ = write!(line, " term {term}");
                if let Some(vote) = vote {
                    let _ = write!(line, " vote {vote}");
                }
                let _ = write!(line, " commit {commit}");
            }
            if !persist.entries.is_empty() {
                let _ = write!(line, " {:?}", persist.entries);
            }
            lines.push(line);
            for (to, message) in &persist.then_send {
                lines.push(format!("  then sends {to}: t{} {:?}", message.term, message.body));
            }
        }
        if let Some(meta) = &out.install {
            lines.push(format!("installs {meta:?}"));
        }
        for applied in &out.applied {
            let tag = applied.tag.map_or(String::new(), |tag| format!(" for tag {tag}"));
            let data = applied.effects.0.escape_ascii();
            lines.push(format!("applies {}@{} \"{data}\"{tag}", applied.index, applied.term));
        }
        for (tag, error) in &out.failed {
            lines.push(format!("fails tag {tag}: {error}"));
        }
        for (tag, index) in &out.reads {
            lines.push(format!("answers read {tag} at {index}"));
        }
        for tag in &out.reads_failed {
            lines.push(format!("fails read {tag}"));
        }
        if let Some(start) = out.log_start {
            lines.push(format!("forgets its log before {start}"));
        }
        if out.checkpoint_wanted {
            lines.push("wants a checkpoint".to_owned());
        }
        if let Some(fatal) = &out.fatal {
            lines.push(format!("is lost: {} [{}]", fatal.message, fatal.code));
        }
        for line in lines {
            writeln!(self.out, "{id} {line}").expect("a string takes everything");
        }
    }

    fn sync(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("a node");
        for persist in std::mem::take(&mut node.persisting) {
            let node = self.nodes.get_mut(&id).expect("a node");
            if persist.reset.is_some() {
                node.log.clear();
            }
            if let Some(first) = persist.entries.first() {
                node.log.retain(|entry| entry.index < first.index);
                node.log.extend(persist.entries.iter().cloned());
            }
            node.hard_state = persist.hard_state.unwrap_or(node.hard_state);
            for (to, message) in persist.then_send {
                self.under_way.push((id, to.0, message, None));
            }
            self.step(id, vec![Input::Persisted { ticket: persist.ticket }]);
        }
    }

    fn deliver(&mut self, way: Option<&str>, arrive: bool) {
        let way = way.map(|way| {
            let (from, to) = way.split_once("->").expect("from->to");
            (from.parse::<u64>().expect("a number"), to.parse::<u64>().expect("a number"))
        });
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.under_way)
            .into_iter()
            .partition(|(from, to, ..)| way.is_none_or(|way| way == (*from, *to)));
        self.under_way = later;
        for (from, to, message, book) in now {
            let gone = self.nodes.get(&to).is_none_or(|node| node.replica.is_none());
            if !arrive || gone || self.cut.contains(&from) || self.cut.contains(&to) {
                continue;
            }
            let message = Message::decode(message.encode()).expect("it was encoded just now");
            let meta = message.snapshot().cloned();
            self.step(to, vec![Input::Receive { from: NodeId(from), message }]);
            if let (Some(meta), Some(book)) = (meta, book) {
                if self.replica(to).status().installing {
                    self.nodes.get_mut(&to).expect("a node").install = Some((meta, book));
                }
                if self.nodes[&from].replica.is_some() {
                    self.step(from, vec![Input::SnapshotSent { to: NodeId(to), ok: true }]);
                }
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            let busy: Vec<u64> =
                self.nodes.iter().filter(|(_, node)| !node.persisting.is_empty()).map(|(id, _)| *id).collect();
            if busy.is_empty() && self.under_way.is_empty() {
                return;
            }
            busy.into_iter().for_each(|id| self.sync(id));
            self.deliver(None, true);
        }
        panic!("it never settles");
    }

    fn status(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            let Some(replica) = &self.nodes[&id].replica else {
                writeln!(self.out, "{id} is down").expect("a string takes everything");
                continue;
            };
            let status = replica.status();
            let engine = status.engine;
            let who = if engine.role.is_leader { "leads" } else { "follows" };
            writeln!(
                self.out,
                "{id} {who} term {} log {}..={} committed {} applied {} {:?}",
                engine.role.term, engine.first, engine.last, engine.committed, engine.applied, engine.members
            )
            .expect("a string takes everything");
            for peer in engine.peers {
                let snapshot = if peer.snapshot { " snapshot" } else { "" };
                writeln!(self.out, "  {} matched {} next {}{snapshot}", peer.id, peer.matched, peer.next)
                    .expect("a string takes everything");
            }
        }
        let same: Vec<(Index, u64)> = self
            .nodes
            .values()
            .filter_map(|node| node.replica.as_ref())
            .map(|replica| (replica.machine().applied().0, replica.machine().hash))
            .collect();
        let agreed = same.iter().all(|one| same.iter().all(|other| one.0 != other.0 || one.1 == other.1));
        assert!(agreed, "machines at the same index are equal");
    }
}
