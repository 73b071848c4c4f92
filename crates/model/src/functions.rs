//! Functions on a topic: one partition, runners on two nodes that do not know of each other, and new models and versions
//! while they work.
//!
//! Two runners stand for whatever makes more than one: a change of leader, a node that was paused and goes on, a runner
//! that started anew while an entry of its predecessor is still under way. A runner reads the cursor, takes some records,
//! judges them with the version and the generation that its node knows of, and sends the entry that the real planner
//! makes of it. Entries under way are applied in any order, twice, or never answered; runners crash and begin again.
//! Meanwhile models are pushed and versions deployed, with the entries that deploying really uses. One record makes the
//! function fail.
//!
//! What is checked, all of it from what lies in the topics: audit ranges tile (FN-1), no generation appears after the
//! marker of a later one (FN-2), outputs and state are those of the audited batches (FN-3, PIPE-1), the failing record is
//! set aside once, in the entry that skips it (FN-4), and nothing of an old version is applied after a new one was.

use std::{collections::BTreeMap, fmt, sync::Arc};

use buttress_core::{
    Append, Code, Entry, Error, Guard, LogId, Offset, Refusal, RequestId, Revision, TimeMs, TopicChange,
    entry::{Put, TopicSettings},
    guest::{BatchOutcome, GuestOutput},
    invariants::{
        CURSOR_1, ENTRY_1, ENTRY_3, FN_1, FN_2, FN_3, FN_4, GUARD_1, Invariant, OFFSET_1, PIPE_1, REQUEST_1, Violation,
    },
};
use buttress_functions::{
    plan::{self, JudgedBy, Place, Poison, Targets},
    resource::{FunctionSpec, Manifest, function_key, group, model_key, state_space},
};
use buttress_state::Limits;
use buttress_wire::records::{BatchView, Builder, Record};
use bytes::Bytes;
use serde_json::Value;

use crate::{
    design::{Design, Seen},
    real::Real,
};

const INPUT: LogId = LogId(1);
const AUDIT: LogId = LogId(2);
const ALERTS: LogId = LogId(3);
const DEAD: LogId = LogId(4);
const FUNCTION: &str = "watch";
const MODEL: &str = "wear";
const KEY: &str = "m1";
/// The record that makes the function fail.
const POISON: &str = "!";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The entry is not guarded by the model's generation.
    GenerationUnguarded,
    /// The entry is not guarded by the function's version.
    VersionUnguarded,
    /// The entry is not guarded by the cursor.
    CursorUnguarded,
    /// State is not written in the entry of its batch.
    StateApart,
}

/// Each with what it is, and the invariant that it breaks.
pub const BUGS: [(Bug, &str, &str); 4] = [
    (Bug::GenerationUnguarded, "no guard on the model's generation", "FN-2"),
    (Bug::VersionUnguarded, "no guard on the function's version", "GUARD-1"),
    (Bug::CursorUnguarded, "no guard on the cursor", "FN-1"),
    (Bug::StateApart, "state is left out of the entry of its batch", "PIPE-1"),
];

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Functions {
    /// What lies in the topic.
    pub records: &'static [&'static str],
    /// Batches judged, those whose entry comes to nothing included.
    pub judged: u8,
    pub pushes: u8,
    pub deploys: u8,
    pub crashes: u8,
    /// Entries that are sent a second time.
    pub copies: u8,
    pub bug: Option<Bug>,
}

impl Functions {
    pub fn small() -> Self {
        Self { judged: 2, deploys: 0, ..Self::full() }
    }

    pub fn full() -> Self {
        Self { records: &["x", POISON], judged: 3, pushes: 1, deploys: 1, crashes: 0, copies: 0, bug: None }
    }
}

/// A version or a generation, and the revision that put it.
type Put1 = (u64, Revision);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// It has not read where it is.
    Lost,
    At(Option<i64>),
    /// Its entry is under way.
    Waits(u8),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Runner {
    stage: Stage,
    version: Option<Put1>,
    generation: Option<Put1>,
}

/// What a runner's entry does: the cursor before and after it, and the version that judged.
#[derive(Clone, Copy, Debug)]
struct Moves {
    from: Option<i64>,
    to: i64,
    version: u64,
}

/// An entry under way.
#[derive(Clone)]
struct Flight {
    copies: u8,
    entry: Arc<Entry>,
    encoded: Bytes,
    moves: Option<Moves>,
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.copies, self.entry)
    }
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.copies == other.copies && self.encoded == other.encoded
    }
}

impl std::hash::Hash for Flight {
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        (self.copies, &self.encoded).hash(hasher);
    }
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub struct State {
    real: Real,
    runners: [Runner; 2],
    flights: BTreeMap<u8, Flight>,
    sent: u8,
    judged: u8,
    pushes: u8,
    deploys: u8,
    crashes: u8,
    copies: u8,
}

#[derive(Clone, PartialEq)]
pub enum Step {
    /// A runner's node hears of the newest version and generation.
    Learn(u8),
    ReadCursor(u8),
    /// A runner judges this many records.
    Judge(u8, i64),
    Push,
    Deploy,
    SendAgain(u8),
    /// An entry is applied, and the answer comes or not.
    Apply(u8, bool),
    Crash(u8),
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Learn(runner) => write!(f, "runner {runner} loads what is newest"),
            Self::ReadCursor(runner) => write!(f, "runner {runner} reads the cursor"),
            Self::Judge(runner, count) => write!(f, "runner {runner} judges {count} and sends the entry"),
            Self::Push => write!(f, "a model is pushed"),
            Self::Deploy => write!(f, "a version is deployed"),
            Self::SendAgain(flight) => write!(f, "entry {flight} is sent again"),
            Self::Apply(flight, true) => write!(f, "entry {flight} is applied"),
            Self::Apply(flight, false) => write!(f, "entry {flight} is applied, the answer lost"),
            Self::Crash(runner) => write!(f, "runner {runner} crashes"),
        }
    }
}

const OLD_GENERATION: usize = 0;
const OLD_VERSION: usize = 1;
const OTHER_RUNNER: usize = 2;
const SET_ASIDE: usize = 3;
const ALL_DONE: usize = 4;

impl Design for Functions {
    type State = State;
    type Step = Step;

    const NAME: &'static str = "functions";
    const CHECKS: &'static [Invariant] =
        &[FN_1, FN_2, FN_3, FN_4, PIPE_1, GUARD_1, ENTRY_1, ENTRY_3, CURSOR_1, OFFSET_1, REQUEST_1];
    const WITNESSES: &'static [&'static str] = &[
        "a batch of an old generation was refused",
        "a batch of an old version was refused",
        "a batch that the other runner had committed was refused",
        "a record was set aside",
        "every record was handled",
    ];

    fn bounds(&self) -> String {
        let Self { judged, pushes, deploys, crashes, copies, .. } = self;
        format!(
            "records {}, batches {judged}, pushes {pushes}, deploys {deploys}, crashes {crashes}, copies {copies}",
            self.records.len()
        )
    }

    fn start(&self) -> State {
        let create = |(name, id): (&str, u8)| TopicChange::Create {
            name: name.into(),
            id: [id; 16],
            partitions: 1,
            settings: TopicSettings::default(),
        };
        let topics = [("input", 1), ("buttress-audit", 2), ("alerts", 3), ("watch-dead-letter", 4)].map(create).into();
        let mut input = Builder::new();
        for record in self.records {
            input.push(1, Some(KEY.as_bytes()), Some(record.as_bytes()), &[]);
        }
        let input = Append {
            log: INPUT,
            records: input.count(),
            max_timestamp_ms: 1,
            sequence: None,
            batch: input.build().expect("there are records"),
        };
        let real = Real::new(Limits::default())
            .with(&Entry { time: TimeMs(1), topics, ..Entry::default() })
            .with(&Entry { time: TimeMs(1), appends: vec![input], ..Entry::default() })
            .with(&replace(function_key(FUNCTION), Revision(0), 1));
        let push = push(&real);
        let runner = Runner { stage: Stage::Lost, version: None, generation: None };
        State {
            real: real.with(&push),
            runners: [runner.clone(), runner],
            flights: BTreeMap::new(),
            sent: 0,
            judged: 0,
            pushes: 0,
            deploys: 0,
            crashes: 0,
            copies: 0,
        }
    }

    fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        let newest = (read(&state.real, &function_key(FUNCTION)), read(&state.real, &model_key(MODEL)));
        for (runner, at) in state.runners.iter().zip(0u8..) {
            if (runner.version, runner.generation) != (Some(newest.0), Some(newest.1)) {
                steps.push(Step::Learn(at));
            }
            match runner.stage {
                Stage::Lost => steps.push(Step::ReadCursor(at)),
                Stage::At(cursor) if runner.version.is_some() && runner.generation.is_some() => {
                    let rest = &self.records[cursor.unwrap_or(0) as usize..];
                    // What fails is judged alone, after `retry` has found it.
                    let good = rest.iter().take_while(|record| **record != POISON).count();
                    let most = good.max(usize::from(!rest.is_empty()));
                    if state.judged < self.judged {
                        steps.extend((1..=most as i64).map(|count| Step::Judge(at, count)));
                    }
                }
                _ => {}
            }
            if state.crashes < self.crashes && runner.stage != Stage::Lost {
                steps.push(Step::Crash(at));
            }
        }
        if state.pushes < self.pushes {
            steps.push(Step::Push);
        }
        if state.deploys < self.deploys {
            steps.push(Step::Deploy);
        }
        for (id, flight) in &state.flights {
            if flight.copies == 1 && state.copies < self.copies {
                steps.push(Step::SendAgain(*id));
            }
            steps.push(Step::Apply(*id, true));
            if state.runners.iter().any(|runner| runner.stage == Stage::Waits(*id)) {
                steps.push(Step::Apply(*id, false));
            }
        }
    }

    fn take(&self, state: &State, step: &Step, seen: &Seen) -> Result<State, Violation> {
        let mut next = state.clone();
        match *step {
            Step::Learn(runner) => {
                let runner = &mut next.runners[usize::from(runner)];
                runner.version = Some(read(&state.real, &function_key(FUNCTION)));
                runner.generation = Some(read(&state.real, &model_key(MODEL)));
            }
            Step::ReadCursor(runner) => {
                let cursor = state.real.machine().cursor(&group(FUNCTION), INPUT);
                next.runners[usize::from(runner)].stage = Stage::At(cursor.map(|cursor| cursor.0));
            }
            Step::Judge(runner, count) => {
                let (entry, moves) = self.judge(state, &state.runners[usize::from(runner)], count);
                let id = send(&mut next, entry, Some(moves));
                next.judged += 1;
                next.runners[usize::from(runner)].stage = Stage::Waits(id);
            }
            Step::Push => {
                next.pushes += 1;
                send(&mut next, push(&state.real), None);
            }
            Step::Deploy => {
                next.deploys += 1;
                let (version, revision) = read(&state.real, &function_key(FUNCTION));
                send(&mut next, replace(function_key(FUNCTION), revision, version + 1), None);
            }
            Step::SendAgain(flight) => {
                next.copies += 1;
                next.flights.get_mut(&flight).expect("it is under way").copies += 1;
            }
            Step::Apply(flight, answered) => self.apply(state, &mut next, flight, answered, seen)?,
            Step::Crash(runner) => {
                next.crashes += 1;
                next.runners[usize::from(runner)] = Runner { stage: Stage::Lost, version: None, generation: None };
            }
        }
        Ok(next)
    }
}

/// A key whose value is a number, and the revision that put it.
fn read(real: &Real, key: &Bytes) -> Put1 {
    let (_, revision, value) = real.key(std::str::from_utf8(key).expect("resources have readable keys"));
    let value = value.expect("the model has put it");
    (String::from_utf8_lossy(&value).parse().expect("the model puts numbers"), revision)
}

/// As deploying does it: what is read is replaced if it is still that.
fn replace(key: Bytes, before: Revision, number: u64) -> Entry {
    Entry {
        time: TimeMs(1),
        guards: vec![Guard::ModRevision { key: key.clone(), revision: before }],
        puts: vec![Put { key, value: Some(number.to_string().into()), lease: None }],
        ..Entry::default()
    }
}

/// The next generation of the model, with its marker.
fn push(real: &Real) -> Entry {
    let key = model_key(MODEL);
    let (generation, revision) = match real.key(std::str::from_utf8(&key).expect("resources have readable keys")) {
        (_, _, None) => (0, Revision(0)),
        _ => read(real, &key),
    };
    let mut entry = replace(key, revision, generation + 1);
    entry.appends.push(plan::model_pushed(AUDIT, MODEL, None, generation + 1, "sha256:00", 1));
    entry
}

fn send(state: &mut State, mut entry: Entry, moves: Option<Moves>) -> u8 {
    let id = state.sent;
    state.sent += 1;
    // Every entry is its client's only one: what is remembered for long is the business of another model.
    entry.request = Some(RequestId { client: id.into(), number: 0, acknowledged_below: 0 });
    entry.time = TimeMs(1);
    let encoded = entry.encode();
    state.flights.insert(id, Flight { copies: 1, entry: Arc::new(entry), encoded, moves });
    id
}

fn spec(version: u64) -> FunctionSpec {
    let manifest = r#"{"trigger":{"topic":"input"},"grants":{"models":["wear"],"topics":["alerts"],"state":true}}"#;
    let manifest = Manifest::parse(manifest.as_bytes()).expect("the manifest is right");
    manifest.into_spec(FUNCTION, version, "sha256:00".into(), 1, 1)
}

impl Functions {
    /// What a runner makes of the next records: it counts them in its state, and says so for each.
    fn judge(&self, state: &State, runner: &Runner, count: i64) -> (Entry, Moves) {
        let (version, revision) = runner.version.expect("who judges has loaded a version");
        let (generation, model_revision) = runner.generation.expect("who judges has loaded a model");
        let Stage::At(cursor) = runner.stage else { unreachable!("who judges knows where it is") };
        let from = cursor.unwrap_or(0);
        let to = from + count;
        let moves = Moves { from: cursor, to, version };
        let spec = spec(version);
        let place = Place {
            spec: &spec,
            revision,
            topic: "input",
            partition: 0,
            log: INPUT,
            cursor: cursor.map(Offset),
            audit: Some(AUDIT),
            now_ms: 1,
        };
        if self.records[from as usize] == POISON {
            let poison = Poison {
                from: Offset(from),
                to: Offset(to),
                key: Some(KEY.into()),
                value: POISON.into(),
                timestamp_ms: 1,
                whole_batch: false,
            };
            let error = Error::new(Code::TRAPPED, "unreachable");
            return (plan::dead_letter(&place, &poison, &error, DEAD), moves);
        }
        let mut counted = row(&state.real);
        let mut outcome = BatchOutcome { models_used: vec![MODEL.into()], ..BatchOutcome::default() };
        for offset in from..to {
            counted += 1;
            outcome.outputs.push(GuestOutput {
                topic: "alerts".into(),
                key: KEY.into(),
                value: format!("{offset} {generation} {counted}").into(),
            });
        }
        outcome.state.push((KEY.into(), Some(counted.to_string().into())));
        let judged =
            [JudgedBy { name: MODEL.into(), generation, revision: model_revision, digest: "sha256:00".into() }];
        let targets = Targets::from([("alerts".to_owned(), vec![ALERTS])]);
        let planned = plan::batch(&place, Offset(from), Offset(to), count as usize, &outcome, &judged, &targets);
        let mut entry = planned.expect("everything is granted and small").entry;
        match self.bug {
            Some(Bug::CursorUnguarded) => entry.guards.retain(|guard| !matches!(guard, Guard::Cursor { .. })),
            Some(Bug::VersionUnguarded) => entry.guards.retain(|guard| !on(guard, &function_key(FUNCTION))),
            Some(Bug::GenerationUnguarded) => entry.guards.retain(|guard| !on(guard, &model_key(MODEL))),
            Some(Bug::StateApart) => entry.state.clear(),
            None => {}
        }
        (entry, moves)
    }

    fn apply(&self, state: &State, next: &mut State, id: u8, answered: bool, seen: &Seen) -> Result<(), Violation> {
        let flight = state.flights[&id].clone();
        let (real, effects) = state.real.apply_encoded(flight.encoded.clone())?;
        next.real = real;
        if flight.copies == 1 {
            next.flights.remove(&id);
        } else {
            next.flights.get_mut(&id).expect("looked up above").copies -= 1;
        }
        let fresh = effects.result.as_ref().is_ok_and(|receipt| !receipt.replayed);
        if let Some(Moves { version, .. }) = flight.moves {
            let (newest, _) = read(&state.real, &function_key(FUNCTION));
            GUARD_1.hold(!fresh || version == newest, || format!("version {version} was applied after {newest}"))?;
        }
        self.look(&next.real, seen)?;

        let refused = match &effects.result {
            Ok(_) => None,
            Err(Refusal::Guard { guard, .. }) => Some(guard.clone()),
            Err(refusal) => return Err(ENTRY_1.broken(format!("entry {id} is refused: {refusal:?}"))),
        };
        let Some(Moves { from, to, .. }) = flight.moves else { return Ok(()) };
        match &refused {
            Some(Guard::Cursor { .. }) => seen.mark(OTHER_RUNNER),
            Some(guard) if on(guard, &model_key(MODEL)) => seen.mark(OLD_GENERATION),
            Some(_) => seen.mark(OLD_VERSION),
            None => {}
        }
        let Some(runner) = next.runners.iter_mut().find(|runner| runner.stage == Stage::Waits(id)) else {
            return Ok(());
        };
        if !answered {
            // It waits in vain, then reads where it is.
            runner.stage = Stage::Lost;
            return Ok(());
        }
        match &refused {
            None => runner.stage = Stage::At(Some(to)),
            Some(Guard::Cursor { .. }) => runner.stage = Stage::Lost,
            Some(guard) => {
                // The same records again, once what is newer is loaded.
                runner.stage = Stage::At(from);
                match on(guard, &model_key(MODEL)) {
                    true => runner.generation = None,
                    false => runner.version = None,
                }
            }
        }
        Ok(())
    }

    /// Reads the topics as somebody who knows nothing of runners.
    fn look(&self, real: &Real, seen: &Seen) -> Result<(), Violation> {
        let mut done = 0;
        let mut generation = 0;
        let mut batches = Vec::new();
        let mut dead = Vec::new();
        for record in records(real, AUDIT) {
            let event: Value = serde_json::from_slice(&record.value.unwrap_or_default()).expect("audit is JSON");
            let number = |field: &str| event[field].as_i64().expect("audit records carry numbers");
            match event["event"].as_str().unwrap_or_default() {
                "model-pushed" => generation = number("generation"),
                kind => {
                    let (from, to) = (number("from"), number("to"));
                    FN_1.hold(from == done && to > from, || format!("{kind} {from} to {to} follows {done}"))?;
                    done = to;
                    if kind == "dead-letter" {
                        dead.push(from);
                    } else {
                        let judged = number("generation");
                        FN_2.hold(judged == generation, || format!("{from} to {to} by {judged}, after {generation}"))?;
                        batches.extend((from..to).map(|offset| (offset, judged)));
                    }
                }
            }
        }
        let cursor = real.machine().cursor(&group(FUNCTION), INPUT).map_or(0, |cursor| cursor.0);
        FN_1.hold(cursor == done, || format!("the cursor is at {cursor}, audit ends at {done}"))?;

        let text = |record: Record| String::from_utf8_lossy(&record.value.unwrap_or_default()).into_owned();
        let outputs: Vec<String> = records(real, ALERTS).into_iter().map(text).collect();
        let due = batches.iter().zip(1..).map(|((offset, by), count)| format!("{offset} {by} {count}"));
        let due: Vec<String> = due.collect();
        let places = |lines: &[String]| -> Vec<String> {
            lines.iter().map(|line| line.rsplit_once(' ').expect("three words").0.to_owned()).collect()
        };
        FN_3.hold(places(&outputs) == places(&due), || format!("outputs {outputs:?}, by audit {due:?}"))?;
        let counted = row(real);
        PIPE_1
            .hold(outputs == due && counted == batches.len(), || format!("{counted} counted, outputs {outputs:?}"))?;

        let set_aside: Vec<Record> = records(real, DEAD);
        let right = set_aside.len() == dead.len()
            && dead.iter().all(|at| self.records[*at as usize] == POISON)
            && batches.iter().all(|(at, _)| self.records[*at as usize] != POISON)
            && set_aside.iter().all(|record| record.value.as_deref() == Some(POISON.as_bytes()));
        FN_4.hold(right, || format!("{} set aside, by audit {dead:?}", set_aside.len()))?;
        if !dead.is_empty() {
            seen.mark(SET_ASIDE);
        }
        if done as usize == self.records.len() {
            seen.mark(ALL_DONE);
        }
        Ok(())
    }
}

fn on(guard: &Guard, wanted: &Bytes) -> bool {
    matches!(guard, Guard::ModRevision { key, .. } if key == wanted)
}

/// The function's row: how many records it has counted.
fn row(real: &Real) -> usize {
    let row = real.machine().state_get(&state_space(FUNCTION, 0), KEY.as_bytes());
    let row = row.expect("a store in memory can be read");
    row.map_or(0, |row| String::from_utf8_lossy(&row).parse().expect("the function writes numbers"))
}

fn records(real: &Real, log: LogId) -> Vec<Record> {
    let batches = real.store().batches(log).map(|batch| batch.bytes.clone());
    let records = |batch| BatchView::parse(batch).and_then(|view| view.records()).expect("the planner's batches parse");
    batches.flat_map(records).map(|record| record.expect("the planner's records parse")).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::{design::check, report::story};

    #[test]
    fn every_record_is_judged_once_by_the_generation_of_its_time() {
        let explored = check(Functions::small());
        assert!(explored.broken.is_none(), "{}", story(&explored));
        assert_eq!(explored.missing, [Functions::WITNESSES[OLD_VERSION]]);
    }

    fn finds(bug: Bug, expect: Expect) {
        expect.assert_eq(&story(&check(Functions { bug: Some(bug), ..Functions::full() })));
    }

    #[test]
    fn an_unguarded_generation_is_found() {
        finds(
            Bug::GenerationUnguarded,
            expect![[r#"
            runner 0 loads what is newest
            runner 0 reads the cursor
            runner 0 judges 1 and sends the entry
            a model is pushed
            entry 1 is applied
            entry 0 is applied
            => FN-2 does not hold: 0 to 1 by 1, after 2
        "#]],
        );
    }

    #[test]
    fn an_unguarded_version_is_found() {
        finds(
            Bug::VersionUnguarded,
            expect![[r#"
            runner 0 loads what is newest
            runner 0 reads the cursor
            runner 0 judges 1 and sends the entry
            a version is deployed
            entry 1 is applied
            entry 0 is applied
            => GUARD-1 does not hold: version 1 was applied after 2
        "#]],
        );
    }

    #[test]
    fn an_unguarded_cursor_is_found() {
        finds(
            Bug::CursorUnguarded,
            expect![[r#"
            runner 0 loads what is newest
            runner 0 reads the cursor
            runner 0 judges 1 and sends the entry
            runner 1 loads what is newest
            runner 1 reads the cursor
            runner 1 judges 1 and sends the entry
            entry 0 is applied
            entry 1 is applied
            => FN-1 does not hold: batch 0 to 1 follows 1
        "#]],
        );
    }

    #[test]
    fn state_apart_is_found() {
        finds(
            Bug::StateApart,
            expect![[r#"
            runner 0 loads what is newest
            runner 0 reads the cursor
            runner 0 judges 1 and sends the entry
            entry 0 is applied
            => PIPE-1 does not hold: 0 counted, outputs ["0 1 1"]
        "#]],
        );
    }
}
