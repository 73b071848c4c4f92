//! Guards with several appends, a producer's numbers and remembered results, under copies and lost answers.
//!
//! Two edges and a reader share three keys' worth of state. *North* writes a key that it has read, *south* appends with an
//! expected end, the *reader* moves a cursor that it has read and wants the key to be as it was; each entry also appends
//! to one or two logs, so that there is much to tear apart. A device sends its numbered records through both edges, the
//! same number again where it has no answer. Every request may be on its way several times, copies come in any order and
//! as late as they like, and answers may be lost.
//!
//! What is checked. The abstract rules ([`Spec`]) judge each entry that reaches the log and must agree with the machine
//! about the verdict, the answer and everything that is there afterwards. Independently of them, what lies in the logs
//! and in the history of keys is counted: a request left all of its marks or none, and none of them twice; a device's
//! numbers lie in order without a hole.

use std::{collections::BTreeMap, fmt};

use buttress_core::{
    Append, AppendOutcome, Code, Cursor, Entry, Guard, LogId, Offset, Refusal, RequestId, Revision, Sequence, StatePut,
    TimeMs, TopicChange,
    entry::{Put, TopicSettings},
    invariants::{
        ACK_1, CURSOR_1, DEDUP_1, ENTRY_1, ENTRY_3, GUARD_1, Invariant, KEYS_1, KEYS_2, OFFSET_1, OFFSET_2, RECORD_1,
        REQUEST_1, REQUEST_2, Violation,
    },
};
use buttress_state::{Effects, Limits, local::opaque_batch};

use crate::{
    design::{Design, Seen},
    real::Real,
};

const READINGS: usize = 0;
const JOURNAL: usize = 1;
const LOGS: [LogId; 2] = [LogId(1), LogId(2)];
const GROUP: &str = "reader";
const DEVICE: &str = "device:d";
const CLIENTS: [&str; 3] = ["north", "south", "reader"];

/// What is broken on purpose between the model and the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Entries reach the machine without their guards.
    GuardsIgnored,
    /// The last append of an entry is left out.
    AppendLost,
    /// Entries reach the machine without their request's id.
    RequestsForgotten,
    /// Appends reach the machine without their producer's number.
    NumbersIgnored,
}

/// Each with what it is, and the invariant that it breaks.
pub const BUGS: [(Bug, &str, &str); 4] = [
    (Bug::GuardsIgnored, "entries are applied without their guards", "GUARD-1"),
    (Bug::AppendLost, "the last append of an entry is left out", "ENTRY-1"),
    (Bug::RequestsForgotten, "results are not remembered", "REQUEST-1"),
    (Bug::NumbersIgnored, "producers' numbers are ignored", "DEDUP-1"),
];

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Guards {
    /// Requests of north, south and the reader.
    pub requests: [u8; 3],
    /// Copies of a request that its client sends.
    pub copies: u8,
    pub bug: Option<Bug>,
}

impl Guards {
    pub fn small() -> Self {
        Self { requests: [2, 1, 0], copies: 2, bug: None }
    }

    pub fn full() -> Self {
        Self { requests: [2, 1, 1], copies: 2, bug: None }
    }
}

/// A request: client and number.
type Id = (u8, u8);

fn name(id: Id) -> String {
    format!("{}/{}", CLIENTS[usize::from(id.0)], id.1)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Rule {
    /// The key was last changed at this revision.
    Changed(&'static str, u64),
    /// The key's value was written by this request.
    Written(&'static str, Id),
    /// The log ends here.
    End(usize, i64),
    /// The cursor is here.
    At(Option<i64>),
}

/// What a request asks for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Body {
    id: Id,
    rules: Vec<Rule>,
    put: &'static str,
    row: bool,
    /// Log, and the device's number.
    appends: Vec<(usize, Option<u8>)>,
    cursor: Option<i64>,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} if {:?}", name(self.id), self.rules)
    }
}

impl Body {
    fn payload(&self, number: Option<u8>) -> String {
        match number {
            Some(number) => format!("{}#{number}", name(self.id)),
            None => name(self.id),
        }
    }

    fn entry(&self, bug: Option<Bug>) -> Entry {
        let guard = |rule: &Rule| match rule {
            Rule::Changed(key, at) => Guard::ModRevision { key: (*key).into(), revision: Revision(*at) },
            Rule::Written(key, by) => Guard::Value { key: (*key).into(), value: name(*by).into() },
            Rule::End(log, at) => Guard::LogEnd { log: LOGS[*log], expected: Offset(*at) },
            Rule::At(at) => Guard::Cursor { group: GROUP.into(), log: LOGS[READINGS], expected: at.map(Offset) },
        };
        let value = Some(name(self.id).into());
        let append = |(log, number): &(usize, Option<u8>)| Append {
            log: LOGS[*log],
            records: 1,
            max_timestamp_ms: 0,
            sequence: number.map(|number| Sequence { producer: DEVICE.into(), epoch: 0, number: number.into() }),
            batch: opaque_batch(1, self.payload(*number).as_bytes()),
        };
        let mut entry = Entry {
            request: Some(RequestId {
                client: u64::from(self.id.0),
                number: u64::from(self.id.1),
                acknowledged_below: u64::from(self.id.1),
            }),
            time: TimeMs(1),
            guards: self.rules.iter().map(guard).collect(),
            puts: vec![Put { key: self.put.into(), value: value.clone(), lease: None }],
            appends: self.appends.iter().map(append).collect(),
            ..Entry::default()
        };
        if self.row {
            entry.state.push(StatePut { space: "s".into(), key: "last".into(), value });
        }
        if let Some(next) = self.cursor {
            let cursor = Cursor { group: GROUP.into(), log: LOGS[READINGS], next: Offset(next), metadata: "".into() };
            entry.cursors.push(cursor);
        }
        match bug {
            Some(Bug::GuardsIgnored) => entry.guards.clear(),
            Some(Bug::AppendLost) => drop(entry.appends.pop()),
            Some(Bug::RequestsForgotten) => entry.request = None,
            Some(Bug::NumbersIgnored) => entry.appends.iter_mut().for_each(|append| append.sequence = None),
            None => {}
        }
        entry
    }
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fate {
    At(i64),
    Seen(i64),
}

/// What a request is answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Done(Vec<Fate>),
    /// By the guard at this place.
    Refused(usize),
    /// Asked too late: the outcome is no longer known.
    Forgotten,
}

impl Answer {
    fn of(effects: &Effects) -> Option<Self> {
        match &effects.result {
            Ok(receipt) => {
                let fate = |outcome: &AppendOutcome| match outcome {
                    AppendOutcome::Appended { base_offset } => Some(Fate::At(base_offset.0)),
                    AppendOutcome::Duplicate { base_offset } => base_offset.map(|offset| Fate::Seen(offset.0)),
                    _ => None,
                };
                receipt.appends.iter().map(fate).collect::<Option<_>>().map(Self::Done)
            }
            Err(Refusal::Guard { position, .. }) => Some(Self::Refused(*position)),
            Err(Refusal::Part { code: Code::TIMEOUT, .. }) => Some(Self::Forgotten),
            Err(Refusal::Part { .. }) => None,
        }
    }
}

/// What should be there, by rules of a line each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Spec {
    revision: u64,
    /// Key → who wrote it, and the revision.
    keys: BTreeMap<&'static str, (Id, u64)>,
    row: Option<Id>,
    logs: [Vec<String>; 2],
    /// Device number → offset.
    numbers: Vec<i64>,
    cursor: Option<i64>,
    answers: BTreeMap<Id, Answer>,
}

impl Spec {
    fn holds(&self, rule: &Rule) -> bool {
        match rule {
            Rule::Changed(key, at) => self.keys.get(key).map_or(0, |(_, revision)| *revision) == *at,
            Rule::Written(key, by) => self.keys.get(key).is_some_and(|(writer, _)| writer == by),
            Rule::End(log, at) => self.logs[*log].len() as i64 == *at,
            Rule::At(at) => self.cursor == *at,
        }
    }

    /// The answer that the entry is due, and whether it was given before.
    fn judge(&mut self, body: &Body) -> (Answer, bool) {
        if let Some(answer) = self.answers.get(&body.id) {
            return (answer.clone(), true);
        }
        if self.answers.keys().any(|(client, number)| *client == body.id.0 && *number > body.id.1) {
            return (Answer::Forgotten, true);
        }
        let answer = match body.rules.iter().position(|rule| !self.holds(rule)) {
            Some(position) => Answer::Refused(position),
            None => self.carry_out(body),
        };
        // The client sends a request only after the answer to the one before.
        self.answers.retain(|(client, _), _| *client != body.id.0);
        self.answers.insert(body.id, answer.clone());
        (answer, false)
    }

    fn carry_out(&mut self, body: &Body) -> Answer {
        self.revision += 1;
        self.keys.insert(body.put, (body.id, self.revision));
        if body.row {
            self.row = Some(body.id);
        }
        let mut fates = Vec::new();
        for (log, number) in &body.appends {
            let end = self.logs[*log].len() as i64;
            if let Some(number) = number {
                if let Some(offset) = self.numbers.get(usize::from(*number)) {
                    fates.push(Fate::Seen(*offset));
                    continue;
                }
                self.numbers.push(end);
            }
            self.logs[*log].push(body.payload(*number));
            fates.push(Fate::At(end));
        }
        self.cursor = body.cursor.or(self.cursor);
        Answer::Done(fates)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Client {
    /// Requests answered.
    done: u8,
    /// Copies sent of the one that is not.
    sent: u8,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub struct State {
    real: Real,
    spec: Spec,
    clients: [Client; 3],
    /// Requests that are not answered or still on their way, with the number of their copies on the way.
    bodies: BTreeMap<Id, (Body, u8)>,
    /// The device's number that is not acknowledged yet.
    number: u8,
}

#[derive(Clone, PartialEq)]
pub enum Step {
    Compose(u8),
    SendAgain(u8),
    /// A copy reaches the log, and its answer the client, or not.
    Apply(Id, bool),
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compose(client) => write!(f, "{} reads and sends", CLIENTS[usize::from(*client)]),
            Self::SendAgain(client) => write!(f, "{} sends again", CLIENTS[usize::from(*client)]),
            Self::Apply(id, true) => write!(f, "{} is applied", name(*id)),
            Self::Apply(id, false) => write!(f, "{} is applied, the answer lost", name(*id)),
        }
    }
}

const GUARD_REFUSED: usize = 0;
const FROM_MEMORY: usize = 1;
const TOO_LATE: usize = 2;
const OTHER_EDGE: usize = 3;
const LOST: usize = 4;

impl Guards {
    /// What a client asks for, from what it reads now.
    fn compose(state: &State, client: u8) -> Body {
        let spec = &state.spec;
        let id = (client, state.clients[usize::from(client)].done);
        let key = |key| spec.keys.get(key).map_or(0, |(_, revision)| *revision);
        let end = |log: usize| spec.logs[log].len() as i64;
        let body = Body { id, rules: vec![], put: "k", row: false, appends: vec![], cursor: None };
        match client {
            0 => Body {
                rules: vec![Rule::Changed("k", key("k"))],
                row: true,
                appends: vec![(READINGS, Some(state.number)), (JOURNAL, None)],
                ..body
            },
            1 => Body {
                rules: vec![Rule::End(JOURNAL, end(JOURNAL))],
                put: "s",
                appends: vec![(JOURNAL, None), (READINGS, Some(state.number))],
                ..body
            },
            _ => Body {
                rules: [Rule::At(spec.cursor)]
                    .into_iter()
                    .chain(spec.keys.get("k").map(|(by, _)| Rule::Written("k", *by)))
                    .collect(),
                appends: vec![(JOURNAL, None)],
                cursor: Some(end(READINGS)),
                ..body
            },
        }
    }
}

impl Design for Guards {
    type State = State;
    type Step = Step;

    const NAME: &'static str = "guards";
    const CHECKS: &'static [Invariant] = &[
        ENTRY_1, ENTRY_3, GUARD_1, REQUEST_1, REQUEST_2, ACK_1, DEDUP_1, RECORD_1, OFFSET_1, OFFSET_2, CURSOR_1,
        KEYS_1, KEYS_2,
    ];
    const WITNESSES: &'static [&'static str] = &[
        "a guard refused",
        "a copy was answered from memory",
        "a copy came after its result was forgotten",
        "a number came through the other edge before",
        "an answer was lost",
    ];

    fn bounds(&self) -> String {
        let [north, south, reader] = self.requests;
        format!("requests: north {north}, south {south}, reader {reader}; copies of each: {}", self.copies)
    }

    fn start(&self) -> State {
        let create = |name: &str, id: u8| TopicChange::Create {
            name: name.into(),
            id: [id; 16],
            partitions: 1,
            settings: TopicSettings::default(),
        };
        let topics = vec![create("readings", 1), create("journal", 2)];
        State {
            real: Real::new(Limits::default()).with(&Entry { time: TimeMs(1), topics, ..Entry::default() }),
            spec: Spec { revision: 1, ..Spec::default() },
            clients: std::array::from_fn(|_| Client { done: 0, sent: 0 }),
            bodies: BTreeMap::new(),
            number: 0,
        }
    }

    fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        for (at, client) in state.clients.iter().enumerate() {
            let id = at as u8;
            if client.sent > 0 {
                if client.sent < self.copies {
                    steps.push(Step::SendAgain(id));
                }
            } else if client.done < self.requests[at] {
                steps.push(Step::Compose(id));
            }
        }
        for (id, (_, copies)) in &state.bodies {
            if *copies > 0 {
                steps.push(Step::Apply(*id, true));
                // Nobody waits for the answer to a copy that comes late.
                if state.clients[usize::from(id.0)].done == id.1 {
                    steps.push(Step::Apply(*id, false));
                }
            }
        }
    }

    fn take(&self, state: &State, step: &Step, seen: &Seen) -> Result<State, Violation> {
        let mut next = state.clone();
        match step {
            Step::Compose(client) => {
                let body = Self::compose(state, *client);
                next.clients[usize::from(*client)].sent = 1;
                next.bodies.insert(body.id, (body, 1));
            }
            Step::SendAgain(client) => {
                let client = *client;
                let open = (client, next.clients[usize::from(client)].done);
                next.clients[usize::from(client)].sent += 1;
                next.bodies.get_mut(&open).expect("what is sent again was sent").1 += 1;
            }
            Step::Apply(id, answered) => self.apply(state, &mut next, *id, *answered, seen)?,
        }
        Ok(next)
    }
}

impl Guards {
    fn apply(&self, state: &State, next: &mut State, id: Id, answered: bool, seen: &Seen) -> Result<(), Violation> {
        let (body, copies) = state.bodies[&id].clone();
        let (wanted, again) = next.spec.judge(&body);
        let (real, effects) = state.real.apply(&body.entry(self.bug))?;
        next.real = real;
        let got = Answer::of(&effects);
        compare(&body, &wanted, again, got.as_ref(), &effects)?;
        marks(&next.real)?;
        there(&next.spec, &next.real)?;

        match &wanted {
            Answer::Refused(_) if !again => seen.mark(GUARD_REFUSED),
            Answer::Forgotten => seen.mark(TOO_LATE),
            Answer::Done(fates) if !again && fates.iter().any(|fate| matches!(fate, Fate::Seen(_))) => {
                seen.mark(OTHER_EDGE);
            }
            _ => {}
        }
        if again && wanted != Answer::Forgotten {
            seen.mark(FROM_MEMORY);
        }

        let client = &mut next.clients[usize::from(id.0)];
        let waits = client.done == id.1;
        if waits && answered {
            REQUEST_1.hold(wanted != Answer::Forgotten, || format!("{} waits, and is forgotten", name(id)))?;
            client.done += 1;
            client.sent = 0;
            if let Answer::Done(_) = &wanted
                && body.appends.iter().any(|(_, number)| *number == Some(next.number))
            {
                next.number += 1;
            }
        } else if waits {
            seen.mark(LOST);
        }
        if copies == 1 && next.clients[usize::from(id.0)].done > id.1 {
            next.bodies.remove(&id);
        } else {
            next.bodies.get_mut(&id).expect("a copy was on its way").1 -= 1;
        }
        // Every number that the device was told is there, once (its order is looked at in `marks`).
        let acknowledged = usize::from(next.number);
        RECORD_1.hold(next.spec.numbers.len() >= acknowledged, || format!("{acknowledged} numbers were acknowledged"))
    }
}

/// Holds the machine's answer against the one that is due.
fn compare(
    body: &Body,
    wanted: &Answer,
    again: bool,
    got: Option<&Answer>,
    effects: &Effects,
) -> Result<(), Violation> {
    let replayed = effects.result.as_ref().is_ok_and(|receipt| receipt.replayed);
    let found = || format!("{}: {:?} instead of {wanted:?}", name(body.id), effects.result);
    if let Answer::Done(_) = wanted {
        REQUEST_1.hold(!matches!(got, Some(Answer::Done(_))) || again == replayed, found)?;
    }
    match (wanted, got) {
        _ if Some(wanted) == got => Ok(()),
        _ if again => Err(REQUEST_1.broken(found())),
        (Answer::Refused(_), _) | (_, Some(Answer::Refused(_))) => Err(GUARD_1.broken(found())),
        (Answer::Done(wanted), Some(Answer::Done(got))) if wanted.len() != got.len() => Err(ENTRY_1.broken(found())),
        (Answer::Done(_), Some(Answer::Done(_))) => Err(DEDUP_1.broken(found())),
        _ => Err(ACK_1.broken(found())),
    }
}

/// Counts what requests left behind, without regard to any rule.
fn marks(real: &Real) -> Result<(), Violation> {
    let mut marks: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    let mut numbers = Vec::new();
    for (place, log) in LOGS.iter().enumerate() {
        for payload in real.payloads(*log) {
            let (id, number) = payload.split_once('#').map_or((&*payload, None), |(id, number)| (id, Some(number)));
            marks.entry(id.to_owned()).or_default()[place] += 1;
            numbers.extend(number.map(|number| number.parse::<usize>().expect("a number was written")));
        }
    }
    for event in real.history() {
        let id = String::from_utf8_lossy(&event.value.expect("nothing is deleted")).into_owned();
        marks.entry(id).or_default()[2] += 1;
    }
    for (id, counts) in marks {
        REQUEST_1.hold(counts.iter().all(|count| *count <= 1), || format!("{id} left {counts:?}"))?;
        // The readings may lack one that came through the other edge before.
        ENTRY_1.hold(counts[JOURNAL] == counts[2], || format!("{id} left {counts:?}"))?;
    }
    DEDUP_1.hold(numbers.iter().copied().eq(0..numbers.len()), || format!("the device's numbers lie {numbers:?}"))
}

/// Holds everything that is there against the rules.
fn there(spec: &Spec, real: &Real) -> Result<(), Violation> {
    for (key, (writer, revision)) in &spec.keys {
        let (_, changed, value) = real.key(key);
        let right = changed == Revision(*revision) && value.as_deref() == Some(name(*writer).as_bytes());
        ENTRY_1.hold(right, || format!("{key} is {value:?} of {changed}, not {} of {revision}", name(*writer)))?;
    }
    let revision = real.machine().revision();
    ENTRY_1.hold(revision == Revision(spec.revision), || format!("revision {revision}, not {}", spec.revision))?;
    let row = real.machine().state_get("s", b"last").expect("a store in memory can be read");
    let wanted = spec.row.map(name);
    ENTRY_1.hold(row.as_deref() == wanted.as_deref().map(str::as_bytes), || format!("row {row:?}, not {wanted:?}"))?;
    for (log, wanted) in LOGS.iter().zip(&spec.logs) {
        let found = real.payloads(*log);
        ENTRY_1.hold(found == *wanted, || format!("log {log} holds {found:?}, not {wanted:?}"))?;
    }
    let cursor = real.machine().cursor(GROUP, LOGS[READINGS]);
    ENTRY_1.hold(cursor == spec.cursor.map(Offset), || format!("cursor {cursor:?}, not {:?}", spec.cursor))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::{design::check, report::story};

    #[test]
    fn every_order_of_a_few_requests_is_right() {
        let explored = check(Guards::small());
        assert!(explored.broken.is_none(), "{}", story(&explored));
    }

    fn finds(bug: Bug, expect: Expect) {
        expect.assert_eq(&story(&check(Guards { bug: Some(bug), ..Guards::full() })));
    }

    #[test]
    fn ignored_guards_are_found() {
        finds(
            Bug::GuardsIgnored,
            expect![[r#"
                north reads and sends
                south reads and sends
                north/0 is applied
                south/0 is applied
                => GUARD-1 does not hold: south/0: Ok(Receipt { index: Index(3), term: Term(1), revision: Revision(3), time: TimeMs(1), appends: [Appended { base_offset: Offset(1) }, Duplicate { base_offset: Some(Offset(0)) }], created: [], lease_ttls_ms: [], txn: None, replayed: false }) instead of Refused(0)
            "#]],
        );
    }

    #[test]
    fn a_lost_append_is_found() {
        finds(
            Bug::AppendLost,
            expect![[r#"
                north reads and sends
                north/0 is applied
                => ENTRY-1 does not hold: north/0: Ok(Receipt { index: Index(2), term: Term(1), revision: Revision(2), time: TimeMs(1), appends: [Appended { base_offset: Offset(0) }], created: [], lease_ttls_ms: [], txn: None, replayed: false }) instead of Done([At(0), At(0)])
            "#]],
        );
    }

    #[test]
    fn forgotten_requests_are_found() {
        finds(
            Bug::RequestsForgotten,
            expect![[r#"
            north reads and sends
            north sends again
            north/0 is applied
            north/0 is applied
            => REQUEST-1 does not hold: north/0: Err(Guard { position: 0, guard: mod_revision("k") == 0, found: "2" }) instead of Done([At(0), At(0)])
        "#]],
        );
    }

    #[test]
    fn ignored_numbers_are_found() {
        finds(
            Bug::NumbersIgnored,
            expect![[r#"
                north reads and sends
                south reads and sends
                south/0 is applied
                north/0 is applied
                => DEDUP-1 does not hold: north/0: Ok(Receipt { index: Index(3), term: Term(1), revision: Revision(3), time: TimeMs(1), appends: [Appended { base_offset: Offset(1) }, Appended { base_offset: Offset(1) }], created: [], lease_ttls_ms: [], txn: None, replayed: false }) instead of Done([Seen(0), At(1)])
            "#]],
        );
    }
}
