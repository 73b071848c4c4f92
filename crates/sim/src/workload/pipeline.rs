//! A function: two workers that do not know of each other read the same partition, add up what they read, and commit each
//! batch as one entry that moves the cursor, writes the state and appends the outputs, under a guard on the cursor. Whoever
//! is late, reads old state, or does not hear that it was carried out, must change nothing. PIPE-1 and RECORD-1.

use std::collections::BTreeMap;

use buttress_core::{
    Append, Cursor, Entry, Guard, LogId, Offset, StatePut, TopicChange,
    entry::TopicSettings,
    invariants::{PIPE_1, Violation},
};
use buttress_oracle::{Outcome as Known, Serial, pipeline, records};
use buttress_state::{Effects, Machine, MemStore};
use bytes::Bytes;

use super::{
    Answer, Consistency, Context, FinalView, Op, Outcome, SHARDS, Workload,
    book::{self, Book, batch, soon},
};
use crate::{MS, Us, rng::Rng};

const INPUT: &str = "inputs";
const OUTPUT: &str = "outputs";
const GROUP: &str = "adder";
const ROW: &[u8] = b"sum";
/// Clients: who makes the topics, a producer, and the workers.
const KEEPER: u32 = 0;
const PRODUCER: u32 = 1;
const WORKERS: u32 = 2;

/// What the function knows: how many inputs it took, how many outputs it wrote, and the inputs' sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    taken: u64,
    written: u64,
    sum: u64,
}

impl Sum {
    /// Takes an input: nothing, one or two outputs come of it.
    fn take(&mut self, input: Serial) -> Vec<Serial> {
        self.taken += 1;
        self.sum = self.sum.wrapping_mul(31).wrapping_add(input.0);
        let count = [1, 0, 2][(input.0 % 3) as usize];
        let outputs: Vec<Serial> = (0..count).map(|number| Serial(self.written + number)).collect();
        self.written += count;
        outputs
    }

    fn encode(self) -> Bytes {
        [self.taken, self.written, self.sum].iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>().into()
    }

    fn decode(row: &[u8]) -> Option<Self> {
        let mut numbers = row.chunks_exact(8).map(|number| u64::from_be_bytes(number.try_into().expect("eight bytes")));
        let sum = Self { taken: numbers.next()?, written: numbers.next()?, sum: numbers.next()? };
        (row.len() == 24).then_some(sum)
    }
}

/// What a worker sees on a node, all of it at one index.
#[derive(Clone, Debug)]
struct Look {
    logs: Option<(LogId, LogId)>,
    cursor: Option<Offset>,
    state: Option<Sum>,
    inputs: Vec<(Offset, Serial)>,
}

enum Asked {
    Topics,
    Look { worker: Option<u32> },
    Produce,
    Commit { worker: u32 },
}

pub struct Pipeline {
    book: Book,
    logs: Option<(LogId, LogId)>,
    think: Us,
    workers: u32,
    /// Bytes that a worker reads at once.
    bites: usize,
    stopped: bool,
    open: BTreeMap<Op, Asked>,
    looked: BTreeMap<Op, Look>,
    /// Found while a read was served.
    violation: Option<Violation>,
    committed: u64,
    lost: u64,
}

impl Pipeline {
    pub fn draw(rng: &mut Rng) -> Self {
        let shard = rng.below(u64::from(SHARDS)) as u32;
        Self {
            book: Book::new(shard, None),
            logs: None,
            think: rng.one([10 * MS, 50 * MS, 150 * MS]),
            workers: rng.range(1, 3) as u32,
            bites: rng.one([1, 300, 2000]),
            stopped: false,
            open: BTreeMap::new(),
            looked: BTreeMap::new(),
            violation: None,
            committed: 0,
            lost: 0,
        }
    }

    fn submit(&mut self, cx: &mut Context<'_>, client: u32, asked: Asked, entry: Entry) {
        let op = self.book.submit(cx, client, entry);
        self.open.insert(op, asked);
    }

    fn look(&mut self, cx: &mut Context<'_>, client: u32, worker: Option<u32>) {
        let consistency = match worker {
            // A worker that reads old state must be stopped by its guard.
            Some(_) => cx.rng.one([Consistency::Serializable, Consistency::Serializable, Consistency::Linearizable]),
            None => Consistency::Linearizable,
        };
        let op = cx.read(client, self.book.shard, None, consistency);
        self.open.insert(op, Asked::Look { worker });
    }

    fn begin(&mut self, cx: &mut Context<'_>, logs: (LogId, LogId)) {
        if self.logs.is_none() {
            self.logs = Some(logs);
            for client in PRODUCER..WORKERS + self.workers {
                soon(cx, 2 * self.think, client.into());
            }
        }
    }

    fn see(&self, machine: &Machine<MemStore>) -> Look {
        let first = |topic: &str| machine.topic(topic).map(|topic| topic.partitions[0].log);
        let logs = first(INPUT).zip(first(OUTPUT));
        let row = machine.state_get(GROUP, ROW).expect("a store in memory can be read");
        let Some((input, _)) = logs else { return Look { logs, cursor: None, state: None, inputs: Vec::new() } };
        let cursor = machine.cursor(GROUP, input);
        let from = cursor.unwrap_or(Offset(0));
        let mut inputs = book::records(machine, input, from.0, self.bites);
        inputs.retain(|(offset, _)| *offset >= from);
        Look { logs, cursor, state: row.and_then(|row| Sum::decode(&row)), inputs }
    }

    /// What belongs together on every node at every moment, by counting.
    fn together(look: &Look, machine: &Machine<MemStore>) -> Result<(), Violation> {
        let Some((_, output)) = look.logs else { return Ok(()) };
        let state = look.state.unwrap_or_default();
        let cursor = look.cursor.unwrap_or(Offset(0)).0 as u64;
        let written = machine.partition(output).expect("nobody deletes the topic").end.0 as u64;
        PIPE_1.hold((state.taken, state.written) == (cursor, written), || {
            format!("the cursor is at {cursor}, {written} outputs are there, and the state is {state:?}")
        })
    }

    fn work(&mut self, cx: &mut Context<'_>, worker: u32, look: Look) {
        let (Some((input, output)), false) = (look.logs, look.inputs.is_empty()) else {
            soon(cx, 4 * self.think, worker.into());
            return;
        };
        let mut state = look.state.unwrap_or_default();
        let outputs: Vec<Serial> = look.inputs.iter().flat_map(|(_, serial)| state.take(*serial)).collect();
        let next = Offset(look.inputs.last().expect("there are inputs").0.0 + 1);
        let appends = if outputs.is_empty() {
            vec![]
        } else {
            let records = outputs.len() as u32;
            vec![Append { log: output, records, max_timestamp_ms: 0, sequence: None, batch: batch(&outputs) }]
        };
        let entry = Entry {
            guards: vec![Guard::Cursor { group: GROUP.into(), log: input, expected: look.cursor }],
            state: vec![StatePut { space: GROUP.into(), key: Bytes::from_static(ROW), value: Some(state.encode()) }],
            appends,
            cursors: vec![Cursor { group: GROUP.into(), log: input, next, metadata: String::new() }],
            ..Entry::default()
        };
        self.submit(cx, worker, Asked::Commit { worker }, entry);
    }
}

impl Workload for Pipeline {
    fn name(&self) -> &'static str {
        "pipeline"
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        soon(cx, 2 * self.think, KEEPER.into());
    }

    fn woken(&mut self, cx: &mut Context<'_>, token: u64) {
        if self.stopped {
            return;
        }
        match (token as u32, self.logs) {
            (KEEPER, None) => {
                let create = |name: &str, id: u8| TopicChange::Create {
                    name: name.into(),
                    id: [id; 16],
                    partitions: 1,
                    settings: TopicSettings::default(),
                };
                let topics = vec![create(INPUT, 10), create(OUTPUT, 11)];
                self.submit(cx, KEEPER, Asked::Topics, Entry { topics, ..Entry::default() });
            }
            (PRODUCER, Some((input, _))) => {
                let count = cx.rng.range(1, 5) as u32;
                let serials: Vec<Serial> = (0..count).map(|_| Serial(self.book.serial())).collect();
                let batch = batch(&serials);
                let append = Append { log: input, records: count, max_timestamp_ms: 0, sequence: None, batch };
                self.submit(cx, PRODUCER, Asked::Produce, Entry { appends: vec![append], ..Entry::default() });
            }
            (worker, Some(_)) if worker >= WORKERS => self.look(cx, worker, Some(worker)),
            _ => {}
        }
    }

    fn ended(&mut self, cx: &mut Context<'_>, op: Op, outcome: Outcome) {
        let known = self.book.ended(cx.now_us, op, &outcome);
        match self.open.remove(&op).expect("it is one of ours") {
            Asked::Topics => self.look(cx, KEEPER, None),
            Asked::Produce => soon(cx, 2 * self.think, PRODUCER.into()),
            Asked::Commit { worker } => {
                match known {
                    Known::Done(_) => self.committed += 1,
                    _ => self.lost += 1,
                }
                soon(cx, 2 * self.think, worker.into());
            }
            Asked::Look { .. } => unreachable!("reads end otherwise"),
        }
    }

    fn serve(&mut self, op: Op, machine: &Machine<MemStore>) -> Answer {
        let look = self.see(machine);
        if let Err(violation) = Self::together(&look, machine) {
            self.violation.get_or_insert(violation);
        }
        self.looked.insert(op, look);
        Answer::default()
    }

    fn read_ended(&mut self, cx: &mut Context<'_>, op: Op, answer: Option<Answer>) {
        let look = self.looked.remove(&op).filter(|_| answer.is_some());
        let Some(Asked::Look { worker }) = self.open.remove(&op) else { unreachable!("only looks are read") };
        match (worker, look) {
            (None, Some(Look { logs: Some(logs), .. })) => self.begin(cx, logs),
            (None, _) => cx.wake(100 * MS, KEEPER.into()),
            (Some(worker), Some(look)) if !self.stopped => self.work(cx, worker, look),
            (Some(worker), _) => soon(cx, 2 * self.think, worker.into()),
        }
    }

    fn watches(&self) -> bool {
        true
    }

    fn applied(&mut self, _: &mut Context<'_>, _: u64, _: u32, _: &Effects) -> Result<(), Violation> {
        self.violation.take().map_or(Ok(()), Err)
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.stopped = true;
    }

    fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    fn check(&mut self, view: &FinalView<'_>) -> Result<(), Violation> {
        self.violation.take().map_or(Ok(()), Err)?;
        let Some((input, output)) = self.logs else { return Ok(()) };
        self.book.close(view, &[input, output], false)?;
        records::check(&self.book.history)?;
        for (_, machine) in &view.machines[self.book.shard as usize] {
            let look = self.see(machine);
            let outputs: Vec<Serial> =
                book::records(machine, output, 0, usize::MAX).into_iter().map(|(_, serial)| serial).collect();
            let found = pipeline::Pipeline {
                name: GROUP,
                inputs: &self.book.history.logs[&input],
                cursor: look.cursor.unwrap_or(Offset(0)),
                state: look.state.unwrap_or_default(),
                outputs: &outputs,
            };
            pipeline::check(&found, Sum::default(), |state, _, serial| state.take(serial))?;
        }
        Ok(())
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        let operations = self.book.history.operations().len() as u64;
        vec![
            ("history_operations", operations),
            ("function_commits", self.committed),
            ("function_commits_refused", self.lost),
        ]
    }
}
