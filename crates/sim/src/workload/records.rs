//! Records: producers with sequences that send again what was not acknowledged, with several batches under way, that start
//! new epochs; producers without; entries that append to several partitions at once; readers that follow on any node; and
//! retention. RECORD-1 and OFFSET-1.

use std::collections::BTreeMap;

use buttress_core::{
    Append, AppendOutcome, Entry, LogId, Offset, Sequence, TopicChange,
    entry::TopicSettings,
    invariants::{RECORD_1, Violation},
};
use buttress_oracle::{Appended, Outcome as Known, Serial, What, records};
use buttress_state::{Machine, MemStore};

use super::{
    Answer, Consistency, Context, FinalView, Op, Outcome, SHARDS, Workload,
    book::{Book, batch, soon},
};
use crate::{MS, Us, rng::Rng};

const TOPIC: &str = "serials";
/// The client that makes the topic and trims it, and the first producer.
const KEEPER: u32 = 0;
const PRODUCERS: u32 = 1;
/// Readers do not submit; their numbers only tell them apart.
const READERS: u32 = 5;

#[derive(Clone, Debug)]
struct Batch {
    number: i64,
    serials: Vec<Serial>,
    op: Option<Op>,
}

/// A producer of one partition.
struct Producer {
    sequenced: bool,
    partition: usize,
    epoch: i32,
    next: i64,
    /// Not acknowledged, oldest first.
    window: Vec<Batch>,
    window_max: usize,
    /// Epoch and next number of this producer's last life, which has not heard yet that it is over.
    zombie: Option<(i32, i64)>,
}

enum Asked {
    Topic,
    Look,
    Append {
        producer: u32,
        number: i64,
    },
    /// A producer that was fenced appends nevertheless.
    Zombie,
    Trim,
    Fetch {
        reader: usize,
    },
}

pub struct Records {
    book: Book,
    partitions: u32,
    logs: Vec<LogId>,
    producers: Vec<Producer>,
    /// Where each reader is.
    readers: Vec<(usize, i64)>,
    think: Us,
    trims: bool,
    stopped: bool,
    open: BTreeMap<Op, Asked>,
    looked: BTreeMap<Op, Vec<LogId>>,
    fetched: u64,
    zombies: u64,
    /// The append of a fenced producer that the log took.
    unfenced: Option<Op>,
}

impl Records {
    pub fn draw(rng: &mut Rng) -> Self {
        let shard = rng.below(u64::from(SHARDS)) as u32;
        let partitions = rng.range(1, 2) as u32;
        let producers = (0..rng.range(1, 4)).map(|number| Producer {
            sequenced: number == 0 || rng.percent(70),
            partition: rng.below(partitions.into()) as usize,
            epoch: 0,
            next: 0,
            window: Vec::new(),
            window_max: rng.one([1, 1, 3]),
            zombie: None,
        });
        let producers = producers.collect();
        Self {
            book: Book::new(shard, None),
            partitions,
            logs: Vec::new(),
            producers,
            readers: (0..rng.range(1, 2)).map(|_| (rng.below(partitions.into()) as usize, 0)).collect(),
            think: rng.one([30 * MS, 100 * MS, 300 * MS]),
            trims: rng.percent(40),
            stopped: false,
            open: BTreeMap::new(),
            looked: BTreeMap::new(),
            fetched: 0,
            zombies: 0,
            unfenced: None,
        }
    }

    fn submit(&mut self, cx: &mut Context<'_>, client: u32, asked: Asked, entry: Entry) -> Op {
        let op = self.book.submit(cx, client, entry);
        self.open.insert(op, asked);
        op
    }

    fn create(&mut self, cx: &mut Context<'_>) {
        let create = TopicChange::Create {
            name: TOPIC.into(),
            id: [9; 16],
            partitions: self.partitions,
            settings: TopicSettings::default(),
        };
        self.submit(cx, KEEPER, Asked::Topic, Entry { topics: vec![create], ..Entry::default() });
    }

    fn begin(&mut self, cx: &mut Context<'_>, logs: Vec<LogId>) {
        if !self.logs.is_empty() {
            return;
        }
        self.logs = logs;
        for producer in 0..self.producers.len() as u64 {
            soon(cx, 2 * self.think, u64::from(PRODUCERS) + producer);
        }
        for reader in 0..self.readers.len() as u64 {
            soon(cx, 2 * self.think, u64::from(READERS) + reader);
        }
        if self.trims {
            soon(cx, 20 * self.think, u64::from(KEEPER));
        }
    }

    /// Sends what is not under way, and new records where the window has room.
    fn produce(&mut self, cx: &mut Context<'_>, number: u32) {
        let at = number as usize;
        let room = self.producers[at].window.len() < self.producers[at].window_max;
        if room && !self.stopped {
            let count = cx.rng.range(1, 4);
            let serials: Vec<Serial> = (0..count).map(|_| Serial(self.book.serial())).collect();
            let producer = &mut self.producers[at];
            producer.window.push(Batch { number: producer.next, serials, op: None });
            producer.next += count as i64;
        }
        for position in 0..self.producers[at].window.len() {
            let producer = &self.producers[at];
            let Batch { number: first, serials, op: None } = &producer.window[position] else { continue };
            let first = *first;
            let append = |log: LogId, serials: &[Serial], name: &str| Append {
                log,
                records: serials.len() as u32,
                max_timestamp_ms: 0,
                sequence: producer.sequenced.then(|| Sequence {
                    producer: format!("{name}{number}"),
                    epoch: producer.epoch,
                    number: first,
                }),
                batch: batch(serials),
            };
            let mut appends = vec![append(self.logs[producer.partition], serials, "serials")];
            if self.logs.len() > 1 && !producer.sequenced {
                // The same commit appends elsewhere: both or none.
                let other: Vec<Serial> = serials.iter().map(|serial| Serial(serial.0 | 1 << 40)).collect();
                appends.push(append(self.logs[1 - producer.partition], &other, "twin"));
            }
            let entry = Entry { appends, ..Entry::default() };
            let op = self.submit(cx, PRODUCERS + number, Asked::Append { producer: number, number: first }, entry);
            self.producers[at].window[position].op = Some(op);
        }
    }

    /// The new epoch is acknowledged, so nothing of the old one may be appended any more.
    fn zombie(&mut self, cx: &mut Context<'_>, number: u32, epoch: i32, next: i64) {
        let serials = [Serial(self.book.serial())];
        let append = Append {
            log: self.logs[self.producers[number as usize].partition],
            records: 1,
            max_timestamp_ms: 0,
            sequence: Some(Sequence { producer: format!("serials{number}"), epoch, number: next }),
            batch: batch(&serials),
        };
        self.zombies += 1;
        let entry = Entry { appends: vec![append], ..Entry::default() };
        self.submit(cx, PRODUCERS + number, Asked::Zombie, entry);
    }

    fn appended(&mut self, cx: &mut Context<'_>, number: u32, first: i64, op: Op, known: &Known, overtaken: bool) {
        let producer = &mut self.producers[number as usize];
        let mine = producer.window.iter().position(|batch| batch.number == first && batch.op == Some(op));
        if let Some(position) = mine {
            let there = match known {
                Known::Done(done) => done.offsets.iter().all(|offset| *offset != Appended::Not),
                _ => false,
            };
            if there || !producer.sequenced {
                // Without a sequence nothing can be sent again, whatever became of it.
                producer.window.remove(position);
                if let Some((epoch, next)) = producer.zombie.take() {
                    self.zombie(cx, number, epoch, next);
                }
            } else if overtaken || cx.rng.percent(15) {
                // The producer restarts: a new epoch, which fences the old one, and what was not acknowledged is given up.
                producer.zombie = Some((producer.epoch, producer.next));
                producer.epoch += 1;
                producer.next = 0;
                producer.window.clear();
            } else {
                producer.window[position].op = None;
            }
        }
        soon(cx, 2 * self.think, u64::from(PRODUCERS + number));
    }
}

impl Workload for Records {
    fn name(&self) -> &'static str {
        "records"
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        self.create(cx);
    }

    fn woken(&mut self, cx: &mut Context<'_>, token: u64) {
        let token = token as u32;
        if self.logs.is_empty() {
            if !self.stopped {
                self.create(cx);
            }
        } else if token >= READERS {
            if !self.stopped {
                let reader = (token - READERS) as usize;
                let (partition, from) = self.readers[reader];
                let what = What::Fetch { log: self.logs[partition], from: Offset(from) };
                let op = self.book.read(cx, token, None, Consistency::Serializable, what);
                self.open.insert(op, Asked::Fetch { reader });
            }
        } else if token >= PRODUCERS {
            // What was sent must be sent until it is acknowledged, also after the end of the faults.
            self.produce(cx, token - PRODUCERS);
        } else if !self.stopped {
            let (partition, at) = self.readers[0];
            let before = Offset(at.saturating_sub(cx.rng.below(20) as i64).max(0));
            let trim = TopicChange::Trim { log: self.logs[partition], before };
            self.submit(cx, KEEPER, Asked::Trim, Entry { topics: vec![trim], ..Entry::default() });
        }
    }

    fn ended(&mut self, cx: &mut Context<'_>, op: Op, outcome: Outcome) {
        let known = self.book.ended(cx.now_us, op, &outcome);
        match self.open.remove(&op).expect("it is one of ours") {
            Asked::Topic => match outcome {
                Outcome::Acknowledged(receipt) => {
                    let (_, logs) = receipt.created.into_iter().next().expect("it created a topic");
                    self.begin(cx, logs);
                }
                // It may be there or not: look, and try again.
                _ => {
                    let op = cx.read(KEEPER, self.book.shard, None, Consistency::Linearizable);
                    self.open.insert(op, Asked::Look);
                }
            },
            Asked::Append { producer, number } => {
                // A later batch of its began the epoch, so this one can never be appended in it.
                let overtaken = match &outcome {
                    Outcome::Acknowledged(receipt) => {
                        matches!(receipt.appends[..], [AppendOutcome::Gap { expected }, ..] if expected > number)
                    }
                    _ => false,
                };
                self.appended(cx, producer, number, op, &known, overtaken);
            }
            Asked::Zombie => {
                let taken = match &known {
                    Known::Done(done) => done.offsets.iter().any(|offset| *offset != Appended::Not),
                    _ => false,
                };
                if taken {
                    self.unfenced = Some(op);
                }
            }
            Asked::Trim => soon(cx, 20 * self.think, u64::from(KEEPER)),
            Asked::Look | Asked::Fetch { .. } => unreachable!("reads end otherwise"),
        }
    }

    fn serve(&mut self, op: Op, machine: &Machine<MemStore>) -> Answer {
        match self.open.get(&op) {
            Some(Asked::Look) => {
                let topic = machine.topic(TOPIC);
                let logs = topic.map(|topic| topic.partitions.iter().map(|partition| partition.log).collect());
                self.looked.insert(op, logs.unwrap_or_default());
            }
            Some(Asked::Fetch { .. }) => self.book.serve(op, machine, 500),
            _ => {}
        }
        Answer::default()
    }

    fn read_ended(&mut self, cx: &mut Context<'_>, op: Op, answer: Option<Answer>) {
        match self.open.remove(&op).expect("it is one of ours") {
            Asked::Look => {
                let logs = self.looked.remove(&op).filter(|_| answer.is_some()).unwrap_or_default();
                if logs.is_empty() {
                    cx.wake(100 * MS, KEEPER.into());
                } else {
                    self.begin(cx, logs);
                }
            }
            Asked::Fetch { reader } => {
                match self.book.read_ended(cx.now_us, op, answer.is_some()) {
                    Known::Fetched(found) => {
                        if let Some((last, _)) = found.last() {
                            self.fetched += found.len() as u64;
                            self.readers[reader].1 = last.0 + 1;
                        }
                    }
                    // Retention took it, or the node lags.
                    Known::Refused { .. } if cx.rng.percent(30) => self.readers[reader].1 += 1,
                    _ => {}
                }
                soon(cx, 4 * self.think, u64::from(READERS) + reader as u64);
            }
            _ => unreachable!("entries end otherwise"),
        }
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.stopped = true;
    }

    fn is_done(&self) -> bool {
        self.open.is_empty() && self.producers.iter().all(|producer| producer.window.is_empty())
    }

    fn check(&mut self, view: &FinalView<'_>) -> Result<(), Violation> {
        let logs = self.logs.clone();
        self.book.close(view, &logs, false)?;
        records::check(&self.book.history)?;
        RECORD_1
            .hold(self.unfenced.is_none(), || format!("op {:?} appended with a producer's older epoch", self.unfenced))
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        let operations = self.book.history.operations().len() as u64;
        vec![("history_operations", operations), ("records_read", self.fetched), ("fenced_appends", self.zombies)]
    }
}
