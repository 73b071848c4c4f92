//! LIN-1: the operations on each key are linearizable.
//!
//! Linearizability is local: a history is linearizable exactly if the part of it that each key sees is (Herlihy and Wing,
//! theorem 1). So every key is judged alone, which keeps searches small. An operation on several keys is judged on each of
//! them by what it says about that key; that its parts belong together is LIN-2's matter ([`crate::revisions`]).
//!
//! The model of a key is its value, with what etcd tells about it: the revision of its last change, the revision of its
//! creation, its version. A write whose receipt never came leaves them open, and a read that sees them settles them. The
//! revision of every answer must grow along the order, which both checks the revisions and prunes the search.
//!
//! A history with transactions that decide is left to [`crate::txns`]: their way depends on keys that they do not write.
//!
//! What a key's lease does to it no operation says. Keys that ever hang on a lease are left out here and counted; the
//! sequence of revisions (LIN-2), LEASE-3 and LOCK-1 judge them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use buttress_core::{Guard, Revision, Violation, invariants::LIN_1, ledger::KeyValue};
use bytes::Bytes;

use crate::{
    history::{Commit, Done, History, Operation, Outcome, What},
    linear::{self, BUDGET_STEPS, Model, Span, Verdict},
    text::Word,
};

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyGuard {
    Modified(u64),
    Created(u64),
    Version(u64),
    Value(Bytes),
}

/// What an operation asks of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyCall {
    Get,
    /// Under all guards, the values it is given one after the other; `None` deletes. Without values it only asks.
    Set {
        guards: Vec<KeyGuard>,
        values: Vec<Option<Bytes>>,
    },
}

/// What an operation was told about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyAnswer {
    /// Read at a revision.
    Got { found: Option<KeyValue>, revision: u64 },
    /// Set; the revision after it, where it is known.
    Set { revision: Option<u64> },
    /// The guard at this position does not hold, those before it do. `None`: something else stood against it.
    Refused { guard: Option<usize> },
}

/// A key. Numbers that nobody was told yet are `None`; of a key that does not exist they are 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyState {
    pub value: Option<Bytes>,
    pub modified: Option<u64>,
    pub created: Option<u64>,
    pub version: Option<u64>,
    /// No later answer has a smaller revision.
    pub floor: u64,
}

impl KeyState {
    fn holds(&self, guard: &KeyGuard) -> Option<bool> {
        match guard {
            KeyGuard::Modified(revision) => self.modified.map(|known| known == *revision),
            KeyGuard::Created(revision) => self.created.map(|known| known == *revision),
            KeyGuard::Version(version) => self.version.map(|known| known == *version),
            KeyGuard::Value(value) => Some(self.value.as_ref() == Some(value)),
        }
    }

    /// The state under the condition that the guard holds.
    fn assume(mut self, guard: &KeyGuard) -> Option<Self> {
        if self.holds(guard) == Some(false) {
            return None;
        }
        // A key that does not exist is known in full, so a number that is open is that of a key that exists.
        let (slot, number) = match guard {
            KeyGuard::Modified(revision) => (&mut self.modified, *revision),
            KeyGuard::Created(revision) => (&mut self.created, *revision),
            KeyGuard::Version(version) => (&mut self.version, *version),
            KeyGuard::Value(_) => return Some(self),
        };
        if slot.is_none() && number == 0 {
            return None;
        }
        *slot = Some(number);
        Some(self)
    }

    fn read(mut self, found: Option<&KeyValue>, revision: u64) -> Option<Self> {
        if revision < self.floor {
            return None;
        }
        self.floor = revision;
        let same = |known: Option<u64>, told: u64| known.is_none_or(|known| known == told);
        match found {
            None => self.value.is_none().then_some(self),
            Some(kv) => {
                let fits = self.value.as_ref() == Some(&kv.value)
                    && same(self.modified, kv.mod_revision.0)
                    && same(self.created, kv.create_revision.0)
                    && same(self.version, kv.version)
                    && kv.mod_revision.0 <= revision;
                self.modified = Some(kv.mod_revision.0);
                self.created = Some(kv.create_revision.0);
                self.version = Some(kv.version);
                fits.then_some(self)
            }
        }
    }

    /// The state after the values, at a revision where it is known.
    fn set(mut self, values: &[Option<Bytes>], revision: Option<u64>) -> Option<Self> {
        let mut changed = false;
        for value in values {
            match value {
                Some(value) => {
                    if self.value.is_none() {
                        self.created = revision;
                        self.version = Some(0);
                    }
                    self.value = Some(value.clone());
                    self.modified = revision;
                    self.version = self.version.map(|version| version + 1);
                    changed = true;
                }
                None if self.value.is_some() => {
                    self = Self { value: None, modified: Some(0), created: Some(0), version: Some(0), ..self };
                    changed = true;
                }
                // Deleting what is not there changes nothing.
                None => {}
            }
        }
        if let Some(revision) = revision {
            if revision < self.floor || (changed && revision == self.floor) {
                return None;
            }
            self.floor = revision;
        }
        Some(self)
    }
}

/// One key of the key space.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyModel;

impl Model for KeyModel {
    type Call = KeyCall;
    type Answer = KeyAnswer;
    type State = KeyState;

    fn init(&self) -> KeyState {
        KeyState { value: None, modified: Some(0), created: Some(0), version: Some(0), floor: 0 }
    }

    fn step(&self, state: &KeyState, call: &KeyCall, answer: Option<&KeyAnswer>) -> Option<KeyState> {
        let state = state.clone();
        match (call, answer) {
            (KeyCall::Get, Some(KeyAnswer::Got { found, revision })) => state.read(found.as_ref(), *revision),
            (KeyCall::Get, None) => Some(state),
            (KeyCall::Set { guards, values }, None | Some(KeyAnswer::Set { .. })) => {
                let revision = match answer {
                    Some(KeyAnswer::Set { revision }) => *revision,
                    _ => None,
                };
                let state = guards.iter().try_fold(state, KeyState::assume)?;
                state.set(values, revision)
            }
            (KeyCall::Set { guards, .. }, Some(KeyAnswer::Refused { guard })) => {
                let before = guard.unwrap_or(guards.len());
                let state = guards[..before].iter().try_fold(state, KeyState::assume)?;
                match guard.map(|guard| state.holds(&guards[guard])) {
                    Some(Some(true)) => None,
                    _ => Some(state),
                }
            }
            (call, answer) => unreachable!("{answer:?} answers {call:?}"),
        }
    }
}

/// What was judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub keys: usize,
    /// Operations, once for each key that they touch.
    pub operations: usize,
    /// Keys left out because they hang on leases.
    pub leased: usize,
    /// Keys whose search used up its budget.
    pub undecided: Vec<Bytes>,
}

fn guard_of(guard: &Guard) -> Option<(&Bytes, KeyGuard)> {
    Some(match guard {
        Guard::ModRevision { key, revision } => (key, KeyGuard::Modified(revision.0)),
        Guard::CreateRevision { key, revision } => (key, KeyGuard::Created(revision.0)),
        Guard::Version { key, version } => (key, KeyGuard::Version(*version)),
        Guard::Value { key, value } => (key, KeyGuard::Value(value.clone())),
        Guard::LeaseAlive { .. } | Guard::Cursor { .. } | Guard::LogEnd { .. } => return None,
    })
}

fn keys_of(commit: &Commit) -> BTreeSet<&Bytes> {
    let guarded = commit.guards.iter().filter_map(|guard| guard_of(guard).map(|(key, _)| key));
    guarded.chain(commit.puts.iter().map(|put| &put.key)).collect()
}

/// What a commit says about a key. `learnt`: the revision at which others saw its writes.
fn project(commit: &Commit, outcome: &Outcome, key: &Bytes, learnt: Option<u64>) -> (KeyCall, Option<KeyAnswer>) {
    let mut guards = Vec::new();
    // The refused guard's position among the guards of this key, and whether guards of this key stand before it.
    let refused = match outcome {
        Outcome::Refused { guard } => *guard,
        _ => None,
    };
    let mut position = None;
    for (at, guard) in commit.guards.iter().enumerate() {
        if refused.is_some_and(|refused| at > refused) {
            break;
        }
        if let Some((of, guard)) = guard_of(guard)
            && of == key
        {
            if refused == Some(at) {
                position = Some(guards.len());
            }
            guards.push(guard);
        }
    }
    let values = commit.puts.iter().filter(|put| put.key == *key).map(|put| put.value.clone()).collect();
    let answer = match outcome {
        Outcome::Done(Done { revision, .. }) => Some(KeyAnswer::Set { revision: revision.map(|revision| revision.0) }),
        Outcome::Refused { guard: None } => {
            // Nobody said why, so nothing is known of any guard.
            guards.clear();
            Some(KeyAnswer::Refused { guard: None })
        }
        Outcome::Refused { .. } => Some(KeyAnswer::Refused { guard: position }),
        _ => learnt.map(|revision| KeyAnswer::Set { revision: Some(revision) }),
    };
    (KeyCall::Set { guards, values }, answer)
}

/// Judges every key of a history.
///
/// # Errors
/// The first key, in their order, whose operations no order explains.
pub fn check(history: &History) -> Result<Checked, Violation> {
    check_within(history, BUDGET_STEPS)
}

/// [`check`] with another budget of steps for each key.
///
/// # Errors
/// As [`check`].
pub fn check_within(history: &History, budget: u64) -> Result<Checked, Violation> {
    if history.has_transactions() {
        return Ok(Checked::default());
    }
    let operations = history.operations();
    let mut keys = BTreeSet::new();
    let mut leased = BTreeSet::new();
    // Who writes a value to a key, and at which revision it was seen.
    let mut writers: BTreeMap<(&Bytes, &Bytes), Vec<usize>> = BTreeMap::new();
    let mut seen: BTreeMap<(&Bytes, &Bytes), Revision> = BTreeMap::new();
    for (at, operation) in operations.iter().enumerate() {
        match (&operation.what, &operation.outcome) {
            (What::Commit(commit), outcome) if *outcome != Outcome::Failed => {
                keys.extend(keys_of(commit));
                for put in &commit.puts {
                    if put.lease.is_some() {
                        leased.insert(&put.key);
                    }
                    if let (Some(value), false) = (&put.value, matches!(outcome, Outcome::Refused { .. })) {
                        writers.entry((&put.key, value)).or_default().push(at);
                    }
                }
            }
            (What::Read { .. }, Outcome::Found(found)) => {
                for kv in &found.kvs {
                    keys.insert(&kv.key);
                    seen.entry((&kv.key, &kv.value)).or_insert(kv.mod_revision);
                }
            }
            _ => {}
        }
    }
    // A commit whose receipt was lost, but whose value is its own and was seen, did happen, and when is known.
    let mut learnt: BTreeMap<usize, u64> = BTreeMap::new();
    for (place, writers) in &writers {
        if let ([only], Some(revision)) = (&writers[..], seen.get(place))
            && operations[*only].outcome == Outcome::Unknown
        {
            learnt.entry(*only).or_insert(revision.0);
        }
    }
    let mut checked = Checked { leased: leased.len(), ..Checked::default() };
    let mut told = None;
    for key in keys.difference(&leased) {
        let project = |learnt: &BTreeMap<usize, u64>, absent: &BTreeSet<usize>| {
            let mut spans: Vec<Span<KeyModel>> = Vec::new();
            let mut places = Vec::new();
            for (at, operation) in operations.iter().enumerate().filter(|(at, _)| !absent.contains(at)) {
                if let Some((call, answer)) = ask(operation, key, learnt.get(&at).copied()) {
                    places.push(at);
                    spans.push(Span { began: operation.began, ended: operation.ended, call, answer });
                }
            }
            (spans, places)
        };
        let (mut spans, mut places) = project(&learnt, &BTreeSet::new());
        checked.keys += 1;
        checked.operations += spans.len();
        let mut verdict = linear::check(&KeyModel, &spans, budget);
        if matches!(verdict, Verdict::Undecided { .. }) {
            // Clients alone leave too many possibilities. Who saw every change knows which commits happened, and when.
            let (seen, absent) = told.get_or_insert_with(|| told_by_changes(history, &writers));
            let known = seen.iter().chain(&learnt).map(|(at, revision)| (*at, *revision)).collect();
            (spans, places) = project(&known, absent);
            verdict = linear::check(&KeyModel, &spans, budget);
        }
        match verdict {
            Verdict::Linearizable(_) => {}
            Verdict::Undecided { .. } => checked.undecided.push((*key).clone()),
            Verdict::Broken(why) => return Err(LIN_1.broken(story(operations, &places, key, &why))),
        }
    }
    Ok(checked)
}

/// Which commits without a receipt happened, by the changes that nobody else makes, and which did not. The changes
/// themselves are held against all operations by LIN-2 ([`crate::revisions`]).
fn told_by_changes(
    history: &History,
    writers: &BTreeMap<(&Bytes, &Bytes), Vec<usize>>,
) -> (BTreeMap<usize, u64>, BTreeSet<usize>) {
    let operations = history.operations();
    let (mut seen, mut absent) = (BTreeMap::new(), BTreeSet::new());
    let Some(end) = history.changes_end else { return (seen, absent) };
    let made: BTreeMap<(&Bytes, &Bytes), u64> = history
        .changes
        .iter()
        .filter_map(|event| Some(((&event.key, event.value.as_ref()?), event.revision.0)))
        .collect();
    // Of a change behind the end nothing is known, so nothing may be called absent if anybody was there.
    let beyond = operations.iter().any(|operation| match &operation.outcome {
        Outcome::Done(done) => done.revision.is_some_and(|revision| revision > end),
        Outcome::Found(found) => found.revision > end,
        _ => false,
    });
    for (at, operation) in operations.iter().enumerate() {
        let (What::Commit(commit), Outcome::Unknown) = (&operation.what, &operation.outcome) else { continue };
        // The last put of a key in a commit is the one that shows.
        let last: BTreeMap<&Bytes, Option<&Bytes>> =
            commit.puts.iter().map(|put| (&put.key, put.value.as_ref())).collect();
        let own = last.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let Some(place) = own.into_iter().find(|place| writers.get(place).is_some_and(|by| by.len() == 1)) else {
            continue;
        };
        match made.get(&place) {
            Some(revision) => _ = seen.insert(at, *revision),
            None if !beyond => _ = absent.insert(at),
            None => {}
        }
    }
    (seen, absent)
}

/// What an operation asks of a key and hears about it.
fn ask(operation: &Operation, key: &Bytes, learnt: Option<u64>) -> Option<(KeyCall, Option<KeyAnswer>)> {
    match (&operation.what, &operation.outcome) {
        (_, Outcome::Failed) => None,
        (What::Commit(commit), outcome) => keys_of(commit).contains(key).then(|| project(commit, outcome, key, learnt)),
        (What::Read { range, at: None, linearizable: true }, Outcome::Found(found)) if range.contains(key) => {
            // What lies behind the last key of a cut answer was not told.
            let told = !found.more || found.kvs.last().is_some_and(|last| *key <= last.key);
            let kv = found.kvs.iter().find(|kv| kv.key == *key).cloned();
            told.then(|| (KeyCall::Get, Some(KeyAnswer::Got { found: kv, revision: found.revision.0 })))
        }
        _ => None,
    }
}

/// Operations of an order that a failure shows; those before them are only counted.
const SHOWN: usize = 12;

fn story(operations: &[Operation], places: &[usize], key: &Bytes, why: &linear::Counterexample<KeyState>) -> String {
    let mut text = format!("no order of the operations on {} explains\n", Word(key));
    let line = |text: &mut String, at: usize| {
        let _ = writeln!(text, "    {}", operations[places[at]]);
    };
    line(&mut text, why.culprit);
    text.push_str("  everything answered before is explained by this order\n");
    let skipped = why.explained.len().saturating_sub(SHOWN);
    if skipped > 0 {
        let _ = writeln!(text, "    ({skipped} before)");
    }
    why.explained[skipped..].iter().for_each(|at| line(&mut text, *at));
    let number = |number: Option<u64>| number.map_or("?".to_owned(), |number| number.to_string());
    let state = &why.state;
    let _ = match &state.value {
        None => writeln!(text, "  behind which there is no {} at {}", Word(key), state.floor),
        Some(value) => writeln!(
            text,
            "  behind which {}={}@{}/{}v{} at {}",
            Word(key),
            Word(value),
            number(state.modified),
            number(state.created),
            number(state.version),
            state.floor
        ),
    };
    let beside: Vec<usize> = why.around.iter().copied().filter(|at| !why.explained.contains(at)).take(SHOWN).collect();
    if !beside.is_empty() {
        text.push_str("  beside it ran\n");
        beside.into_iter().for_each(|at| line(&mut text, at));
    }
    text.truncate(text.trim_end().len());
    text
}
