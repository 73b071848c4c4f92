//! A consumer group: two coordinators that do not know of each other bring it to its next generations, and members commit
//! offsets as long as they believe that their generation is the last. A record in the key space holds the generation and who
//! owns the partition in it; a commit guards on the record's revision, and so does the record's next version. Members do not
//! always look whether they are still the owner, and do not always believe a refusal. GROUP-1.
//!
//! Every node is watched: wherever an offset moves, the member's generation is the one that the record has at that place in
//! the log, and the offset does not go back.

use std::collections::BTreeMap;

use buttress_core::{
    Append, Cursor, Entry, Guard, KeyRange, LogId, Offset, Put, Revision, TopicChange,
    entry::TopicSettings,
    invariants::{GROUP_1, Violation},
};
use buttress_oracle::Serial;
use buttress_state::{Effects, Machine, MemStore};
use bytes::Bytes;

use super::{
    Answer, Consistency, Context, FinalView, Op, Outcome, SHARDS, Workload,
    book::{batch, soon},
};
use crate::{MS, SEC, Us, rng::Rng};

const TOPIC: &str = "shared";
const GROUP: &str = "readers";
const RECORD: &[u8] = b"groups/readers";
/// Clients: who makes and fills the topic, the coordinators, and the members.
const KEEPER: u32 = 0;
const COORDINATORS: u32 = 1;
const MEMBERS: u32 = 3;

/// Generation and owner, as the record's value has them.
fn record(generation: u64, owner: u32) -> Bytes {
    Bytes::from(format!("{generation}/{owner}"))
}

fn read_record(value: &[u8]) -> Option<(u64, u32)> {
    let (generation, owner) = std::str::from_utf8(value).ok()?.split_once('/')?;
    Some((generation.parse().ok()?, owner.parse().ok()?))
}

/// What a member believes that it owns.
#[derive(Clone, Copy, Debug)]
struct Duty {
    generation: u64,
    revision: Revision,
    at: i64,
    end: i64,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Fill,
    /// Somebody reads record, cursor and end.
    Look(u32),
    Lead(u32),
    Commit {
        member: u32,
        next: i64,
    },
}

/// What a node has applied, as far as it concerns the group.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    generation: u64,
    cursor: i64,
}

impl Seen {
    fn of(machine: &Machine<MemStore>, log: Option<LogId>) -> Self {
        let found = machine.range(&KeyRange::key(RECORD), 1, None).expect("a store in memory can be read");
        let generation =
            found.kvs.first().and_then(|kv| read_record(&kv.value)).map_or(0, |(generation, _)| generation);
        let cursor = log.and_then(|log| machine.cursor(GROUP, log)).map_or(0, |offset| offset.0);
        Self { generation, cursor }
    }
}

pub struct Groups {
    shard: u32,
    think: Us,
    members: u32,
    /// Of a hundred thoughts of a member, how many are long ones.
    pauses: u64,
    stopped: bool,
    log: Option<LogId>,
    serial: u64,
    duties: BTreeMap<u32, Duty>,
    /// The generation in which a commit of the member is under way for ever: it must not send another one, because it
    /// could not say which comes first.
    unknown: BTreeMap<u32, u64>,
    open: BTreeMap<Op, Asked>,
    nodes: BTreeMap<u64, Seen>,
    committed: u64,
    fenced: u64,
    generations: u64,
}

impl Groups {
    pub fn draw(rng: &mut Rng) -> Self {
        Self {
            shard: rng.below(u64::from(SHARDS)) as u32,
            think: rng.one([10 * MS, 50 * MS, 150 * MS]),
            members: rng.range(2, 4) as u32,
            pauses: rng.one([2, 10, 30]),
            stopped: false,
            log: None,
            serial: 0,
            duties: BTreeMap::new(),
            unknown: BTreeMap::new(),
            open: BTreeMap::new(),
            nodes: BTreeMap::new(),
            committed: 0,
            fenced: 0,
            generations: 0,
        }
    }

    fn submit(&mut self, cx: &mut Context<'_>, client: u32, asked: Asked, entry: Entry) {
        let op = cx.submit(client, self.shard, entry);
        self.open.insert(op, asked);
    }

    fn look(&mut self, cx: &mut Context<'_>, client: u32, consistency: Consistency) {
        let op = cx.read(client, self.shard, None, consistency);
        self.open.insert(op, Asked::Look(client));
    }

    fn again(&mut self, cx: &mut Context<'_>, client: u32) {
        if client >= MEMBERS && cx.rng.percent(self.pauses) {
            let pause = cx.rng.range(100 * MS, 5 * SEC);
            cx.wake(pause, client.into());
        } else {
            soon(cx, 2 * self.think, client.into());
        }
    }

    fn fill(&mut self, cx: &mut Context<'_>) {
        let Some(log) = self.log else {
            let settings = TopicSettings::default();
            let create = TopicChange::Create { name: TOPIC.into(), id: [12; 16], partitions: 1, settings };
            return self.submit(cx, KEEPER, Asked::Fill, Entry { topics: vec![create], ..Entry::default() });
        };
        let count = cx.rng.range(1, 6) as u32;
        let serials: Vec<Serial> = (0..count)
            .map(|_| {
                self.serial += 1;
                Serial(self.serial)
            })
            .collect();
        let append = Append { log, records: count, max_timestamp_ms: 0, sequence: None, batch: batch(&serials) };
        self.submit(cx, KEEPER, Asked::Fill, Entry { appends: vec![append], ..Entry::default() });
    }

    fn member(&mut self, cx: &mut Context<'_>, member: u32) {
        match self.duties.get(&member).copied() {
            // Most of the time it goes on without looking.
            Some(duty) if duty.at < duty.end && cx.rng.percent(80) => {
                let next = (duty.at + cx.rng.range(1, 4) as i64).min(duty.end);
                let log = self.log.expect("a duty is on a log");
                let metadata = duty.generation.to_string();
                let entry = Entry {
                    guards: vec![Guard::ModRevision { key: Bytes::from_static(RECORD), revision: duty.revision }],
                    cursors: vec![Cursor { group: GROUP.into(), log, next: Offset(next), metadata }],
                    ..Entry::default()
                };
                self.submit(cx, member, Asked::Commit { member, next }, entry);
            }
            _ => self.look(cx, member, Consistency::Linearizable),
        }
    }
}

impl Workload for Groups {
    fn name(&self) -> &'static str {
        "groups"
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        for client in 0..MEMBERS + self.members {
            self.again(cx, client);
        }
    }

    fn woken(&mut self, cx: &mut Context<'_>, token: u64) {
        if self.stopped {
            return;
        }
        match token as u32 {
            KEEPER => self.fill(cx),
            member if member >= MEMBERS => self.member(cx, member),
            coordinator => {
                // One that reads old state must be stopped by its guard.
                let consistency = cx.rng.one([Consistency::Serializable, Consistency::Linearizable]);
                self.look(cx, coordinator, consistency);
            }
        }
    }

    fn ended(&mut self, cx: &mut Context<'_>, op: Op, outcome: Outcome) {
        match self.open.remove(&op).expect("it is one of ours") {
            Asked::Fill => {
                if let (None, Outcome::Acknowledged(receipt)) = (self.log, &outcome) {
                    self.log = receipt.created.first().map(|(_, logs)| logs[0]);
                }
                if self.log.is_none() && !matches!(outcome, Outcome::Acknowledged(_)) {
                    self.look(cx, KEEPER, Consistency::Linearizable);
                } else {
                    self.again(cx, KEEPER);
                }
            }
            Asked::Lead(coordinator) => {
                self.generations += u64::from(matches!(outcome, Outcome::Acknowledged(_)));
                // A generation lives for a while.
                let pause = cx.rng.range(1, 40) * self.think;
                cx.wake(pause, coordinator.into());
            }
            Asked::Commit { member, next } => {
                let duty = self.duties.get_mut(&member);
                match (outcome, duty) {
                    (Outcome::Acknowledged(_), Some(duty)) => {
                        duty.at = next;
                        self.committed += 1;
                    }
                    (Outcome::Unknown, Some(duty)) => {
                        self.unknown.insert(member, duty.generation);
                        self.duties.remove(&member);
                    }
                    (Outcome::Refused(_), Some(_)) => {
                        self.fenced += 1;
                        if cx.rng.percent(50) {
                            self.duties.remove(&member);
                        }
                    }
                    (_, None) => {}
                }
                self.again(cx, member);
            }
            Asked::Look(_) => unreachable!("reads end otherwise"),
        }
    }

    fn serve(&mut self, _: Op, machine: &Machine<MemStore>) -> Answer {
        let found = machine.range(&KeyRange::key(RECORD), 1, None).expect("a store in memory can be read");
        let kv = found.kvs.into_iter().next();
        let partition = machine.topic(TOPIC).map(|topic| topic.partitions[0].clone());
        let log = partition.as_ref().map(|partition| partition.log);
        let cursor = log.and_then(|log| machine.cursor(GROUP, log));
        Answer {
            numbers: vec![
                kv.as_ref().map_or(0, |kv| kv.mod_revision.0 as i64),
                cursor.map_or(0, |cursor| cursor.0),
                partition.as_ref().map_or(0, |partition| partition.end.0),
                log.map_or(0, |log| log.0.into()),
            ],
            values: vec![kv.map(|kv| kv.value)],
            ..Answer::default()
        }
    }

    fn read_ended(&mut self, cx: &mut Context<'_>, op: Op, answer: Option<Answer>) {
        let Some(Asked::Look(client)) = self.open.remove(&op) else { unreachable!("only looks are read") };
        let Some(answer) = answer else { return self.again(cx, client) };
        let (revision, at, end) = (Revision(answer.numbers[0] as u64), answer.numbers[1], answer.numbers[2]);
        if self.log.is_none() && answer.numbers[3] > 0 {
            self.log = Some(LogId(answer.numbers[3] as u32));
        }
        let found = answer.values[0].as_ref().and_then(|value| read_record(value));
        if client >= MEMBERS {
            self.duties.remove(&client);
            if let Some((generation, owner)) = found
                && owner == client
                && self.log.is_some()
                && self.unknown.get(&client) != Some(&generation)
            {
                self.duties.insert(client, Duty { generation, revision, at, end });
            }
        } else if client >= COORDINATORS && !self.stopped {
            let generation = found.map_or(1, |(generation, _)| generation + 1);
            let owner = MEMBERS + cx.rng.below(u64::from(self.members)) as u32;
            let key = Bytes::from_static(RECORD);
            let entry = Entry {
                guards: vec![Guard::ModRevision { key: key.clone(), revision }],
                puts: vec![Put { key, value: Some(record(generation, owner)), lease: None }],
                ..Entry::default()
            };
            return self.submit(cx, client, Asked::Lead(client), entry);
        }
        self.again(cx, client);
    }

    fn watches(&self) -> bool {
        true
    }

    fn applied(&mut self, _: &mut Context<'_>, node: u64, shard: u32, effects: &Effects) -> Result<(), Violation> {
        if shard != self.shard {
            return Ok(());
        }
        let seen = self.nodes.entry(node).or_default();
        // An entry that moves the cursor does not change the record, so their order within the entry does not matter.
        for event in effects.events().filter(|event| event.key == RECORD) {
            let generation = event.value.as_ref().and_then(|value| read_record(value)).map_or(0, |(g, _)| g);
            GROUP_1.hold(generation == seen.generation + 1, || {
                format!("node {node} has generation {generation} after {}", seen.generation)
            })?;
            seen.generation = generation;
        }
        for (_, _, position) in effects.cursors.iter().filter(|(group, ..)| group == GROUP) {
            let Some(position) = position else { continue };
            GROUP_1.hold(position.metadata == seen.generation.to_string(), || {
                format!("a member of generation {} commits in {}", position.metadata, seen.generation)
            })?;
            GROUP_1.hold(position.next.0 >= seen.cursor, || {
                format!(
                    "the offset goes back from {} to {} in generation {}",
                    seen.cursor, position.next, seen.generation
                )
            })?;
            seen.cursor = position.next.0;
        }
        Ok(())
    }

    fn replaced(
        &mut self,
        _: &mut Context<'_>,
        node: u64,
        shard: u32,
        machine: &Machine<MemStore>,
    ) -> Result<(), Violation> {
        if shard == self.shard {
            let log = machine.topic(TOPIC).map(|topic| topic.partitions[0].log);
            self.nodes.insert(node, Seen::of(machine, log));
        }
        Ok(())
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.stopped = true;
    }

    fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    fn check(&mut self, view: &FinalView<'_>) -> Result<(), Violation> {
        for (node, machine) in &view.machines[self.shard as usize] {
            let log = machine.topic(TOPIC).map(|topic| topic.partitions[0].log);
            let last = Seen::of(machine, log);
            let at = self.duties.values().filter(|duty| duty.generation == last.generation).map(|duty| duty.at).max();
            GROUP_1.hold(at.is_none_or(|at| at <= last.cursor), || {
                format!("node {} ends at {}, a member was acknowledged {at:?}", node.0, last.cursor)
            })?;
        }
        Ok(())
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("group_commits", self.committed),
            ("group_commits_fenced", self.fenced),
            ("group_generations", self.generations),
        ]
    }
}
