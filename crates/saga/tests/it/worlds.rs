//! Worlds in which the coordinator crashes at every place, and calls and replies are lost, repeated and late. The services
//! are the rows of [`book`], as in the product.

use std::collections::{BTreeMap, VecDeque};

use buttress_core::invariants::SAGA_2;
use buttress_saga::{
    Call, Next, Outcome, Record, Reply, Saga,
    book::{self, Answer, Row},
    decode, encode,
};
use proptest::prelude::*;
use serde_json::json;

use super::order;

/// What goes wrong, drawn up front; when it is used up, nothing does any more.
struct World {
    dice: VecDeque<u8>,
    /// Steps that the service refuses.
    refuses: u8,
    /// Crash before this write, and crash after it with the reply of the commit lost.
    crash_at: Option<(usize, bool)>,
    writes: usize,
    crashes: usize,
    rows: BTreeMap<String, Row>,
    /// How often an effect came, by key.
    effects: BTreeMap<String, u32>,
    undone: Vec<String>,
    /// Calls that are still on their way.
    late: Vec<Call>,
    journal: Vec<Record>,
    now_ms: u64,
}

impl World {
    fn new(dice: Vec<u8>, refuses: u8, crash_at: Option<(usize, bool)>) -> Self {
        let start = Record::Started { saga: "o".into(), definition: order().hash(), input: json!(1), at_ms: 0 };
        Self {
            dice: dice.into(),
            refuses,
            crash_at,
            writes: 0,
            crashes: 0,
            rows: BTreeMap::new(),
            effects: BTreeMap::new(),
            undone: Vec::new(),
            late: Vec::new(),
            journal: vec![start],
            now_ms: 0,
        }
    }

    /// A die with so many sides; all of them are harmless once the dice are used up.
    fn die(&mut self, sides: u8) -> u8 {
        self.dice.pop_front().map_or(sides - 1, |value| value % sides)
    }

    fn serve(&mut self, call: &Call) -> Reply {
        let row = self.rows.get(&call.key).copied();
        let at = order().steps.iter().position(|step| step.name == call.step).unwrap();
        let answer = match call.undo {
            true => book::undo(row),
            false if self.refuses >> at & 1 == 1 && row.is_none() => Answer::Becomes(Row::Void),
            false => book::act(row),
        };
        if let Answer::Becomes(row) = answer {
            self.rows.insert(call.key.clone(), row);
            match row {
                Row::Done => *self.effects.entry(call.key.clone()).or_default() += 1,
                Row::Undone => self.undone.push(call.step.clone()),
                Row::Void => {}
            }
        }
        match (call.undo, answer) {
            (true, _) => Reply::Done,
            (false, Answer::Becomes(Row::Done) | Answer::Already) => Reply::Done,
            (false, _) => Reply::Refused("no".into()),
        }
    }

    /// Commits, or crashes at it. A commit of which no reply came may be there or not.
    fn commit(&mut self, records: &[Record]) -> bool {
        let crash = self.crash_at.is_some_and(|(at, _)| at == self.writes) || self.die(12) == 0;
        let stays = self.crash_at.map_or_else(|| true, |(at, stays)| at != self.writes || stays);
        let stays = stays && (!crash || self.die(2) == 1);
        self.writes += 1;
        if stays {
            self.journal.extend_from_slice(records);
        }
        self.crashes += usize::from(crash);
        !crash
    }

    /// One life of a coordinator: until it crashes or the saga has ended.
    fn live(&mut self) -> Option<Outcome> {
        let journal = decode(encode(&self.journal).as_bytes()).unwrap();
        let mut saga = Saga::fold(&order(), &journal).unwrap();
        loop {
            self.now_ms += u64::from(self.die(4)) * 100;
            if self.die(8) == 0 && !self.late.is_empty() {
                let at = usize::from(self.die(255)) % self.late.len();
                let call = self.late.swap_remove(at);
                self.serve(&call);
            }
            let records = match saga.next(&order(), self.now_ms) {
                Next::Ended(outcome) => return Some(outcome),
                Next::Write(records) => records,
                Next::Call(call) => {
                    self.now_ms = self.now_ms.max(call.not_before_ms);
                    let reply = match self.die(8) {
                        // Lost on the way there, or still on its way.
                        0 => Reply::Failed("no answer".into()),
                        1 => {
                            self.late.push(call.clone());
                            Reply::Failed("no answer".into())
                        }
                        // Lost on the way back.
                        2 => {
                            self.serve(&call);
                            Reply::Failed("no answer".into())
                        }
                        // Sent twice, by something between.
                        3 => {
                            self.late.push(call.clone());
                            self.serve(&call)
                        }
                        // The coordinator is lost while it waits.
                        4 if self.die(3) == 0 => {
                            self.serve(&call);
                            self.crashes += 1;
                            return None;
                        }
                        _ => self.serve(&call),
                    };
                    let dice = u64::from(self.die(200));
                    let records = saga.answered(&order(), &call, &reply, self.now_ms, dice);
                    // The same reply again finds that all is said.
                    let mut after = saga.clone();
                    for record in &records {
                        after.apply(&order(), record).unwrap();
                    }
                    assert!(after.answered(&order(), &call, &reply, self.now_ms, dice).is_empty());
                    records
                }
            };
            if !self.commit(&records) {
                return None;
            }
            for record in &records {
                saga.apply(&order(), record).unwrap();
            }
        }
    }

    fn play(mut self) -> (Outcome, Self) {
        for _ in 0..200 {
            if let Some(outcome) = self.live() {
                // Whatever is still on its way arrives after the end.
                for call in std::mem::take(&mut self.late) {
                    self.serve(&call);
                }
                self.judge(outcome);
                return (outcome, self);
            }
        }
        panic!("the saga does not end");
    }

    /// SAGA-2, from the rows alone.
    fn judge(&self, outcome: Outcome) {
        let there = |step: &str| self.rows.get(&format!("o/{step}")) == Some(&Row::Done);
        let there: Vec<bool> = order().steps.iter().map(|step| there(&step.name)).collect();
        let holds = match outcome {
            Outcome::Completed => there.iter().all(|there| *there),
            Outcome::Compensated => there.iter().all(|there| !*there),
            Outcome::Stuck => true,
        };
        SAGA_2.hold(holds, || format!("{outcome:?} with effects {there:?}\n{}", encode(&self.journal))).unwrap();
        assert!(self.effects.values().all(|times| *times == 1), "{:?}", self.effects);
        let places: Vec<usize> =
            self.undone.iter().map(|step| order().steps.iter().position(|s| s.name == *step).unwrap()).collect();
        assert!(places.windows(2).all(|pair| pair[0] > pair[1]), "undone out of order: {:?}", self.undone);
    }
}

#[test]
fn a_crash_at_every_write_of_the_journal_changes_nothing_of_the_outcome() {
    for refuses in 0..8 {
        let (outcome, whole) = World::new(Vec::new(), refuses, None).play();
        assert_eq!(outcome == Outcome::Completed, refuses == 0);
        for at in 0..whole.writes {
            for stays in [false, true] {
                let (again, world) = World::new(Vec::new(), refuses, Some((at, stays))).play();
                assert_eq!((again, world.crashes), (outcome, 1), "refuses {refuses:b}, crash at {at}, {stays}");
                assert_eq!(world.rows, whole.rows);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_is_lost_repeated_or_late_the_end_agrees_with_the_books(
        dice in prop::collection::vec(any::<u8>(), 0..160), refuses in 0u8..8,
    ) {
        World::new(dice, refuses, None).play();
    }
}

#[test]
fn a_journal_that_no_coordinator_writes_is_refused() {
    let (_, world) = World::new(Vec::new(), 2, None).play();
    let journal = world.journal;
    for left_out in 0..journal.len() {
        let mut holed = journal.clone();
        holed.remove(left_out);
        let is_last = left_out + 1 == journal.len();
        assert_eq!(Saga::fold(&order(), &holed).is_ok(), is_last, "without {:?}", journal[left_out]);
    }
    let mut twice = journal.clone();
    twice.push(journal.last().unwrap().clone());
    assert_eq!(Saga::fold(&order(), &twice).unwrap_err().id, "SAGA-1");
}
