//! LIN-2: entries over several keys take effect at their revision. With it GUARD-1, as far as guards look at keys.
//!
//! Searching an order for entries that touch many keys is hopeless in general, and needless here: every answer carries the
//! revision at which it took effect, so the order is told, and only has to be held against what was asked and seen.
//!
//! There are two ways. Where somebody saw every change ([`History::changes_end`]), all of it is played: each revision must be
//! exactly what one commit does to the state before it, a commit that was acknowledged there, or one whose outcome is not
//! known and that was not seen elsewhere; or keys leaving with their lease. Every read must be the state at its revision.
//! Where nobody did, what is known of each key stands as facts, and reads and guards must not contradict them.
//!
//! In both ways revisions must agree with real time: what was called after an answer has no smaller revision, and a greater
//! one if it changed keys.
//!
//! What a writer must keep for this: a value is written to a key by one commit only. Refusals are LIN-1's matter; here they
//! say only that nothing of them may be seen. A history with transactions that decide is left to [`crate::txns`].

use std::collections::{BTreeMap, BTreeSet};

use buttress_core::{
    Guard, KeyRange, LeaseChange, LeaseId, Revision, Violation,
    invariants::{GUARD_1, KEYS_1, LIN_2},
    ledger::{KeyEvent, KeyValue, KeyValues},
};
use bytes::Bytes;

use crate::{
    history::{Commit, History, Operation, Outcome, What},
    text::{Change, Word},
};

/// What was judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub commits: usize,
    pub reads: usize,
    /// Commits whose receipt was lost, and that were found to have taken effect.
    pub recovered: usize,
    /// Reads beyond the last revision that the list of changes covers; only their time was judged.
    pub beyond: usize,
}

/// Judges a history.
///
/// # Errors
/// The first contradiction.
pub fn check(history: &History) -> Result<Checked, Violation> {
    let mut checked = Checked::default();
    if history.has_transactions() {
        return Ok(checked);
    }
    for operation in history.operations() {
        checked.commits += usize::from(operation.done().is_some());
        checked.reads += usize::from(matches!(operation.outcome, Outcome::Found(_)));
    }
    let recovered = match history.changes_end {
        Some(end) => play(history, end, &mut checked)?,
        None => Facts::of(history)?.judge(history)?,
    };
    checked.recovered = recovered.len();
    real_time(history.operations(), &recovered)?;
    Ok(checked)
}

fn puts_something(commit: &Commit) -> bool {
    commit.puts.iter().any(|put| put.value.is_some())
}

/// Revisions agree with real time. `recovered`: the revisions of commits without a receipt.
fn real_time(operations: &[Operation], recovered: &BTreeMap<usize, u64>) -> Result<(), Violation> {
    let mut moments = Moments::default();
    for (at, operation) in operations.iter().enumerate() {
        match (&operation.what, &operation.outcome) {
            (What::Commit(commit), Outcome::Done(done)) => {
                if let Some(revision) = done.revision {
                    moments.answered(operation, at, revision);
                    moments.called(operation, at, revision, puts_something(commit));
                }
            }
            (What::Read { at: asked, linearizable, .. }, Outcome::Found(found)) => {
                moments.answered(operation, at, found.revision);
                if *linearizable && asked.is_none() {
                    moments.called(operation, at, found.revision, false);
                }
            }
            (What::Commit(_), Outcome::Unknown) => {
                if let Some(revision) = recovered.get(&at) {
                    moments.called(operation, at, Revision(*revision), true);
                }
            }
            _ => {}
        }
    }
    moments.judge(operations)
}

/// What calls and answers say about the order of revisions.
#[derive(Default)]
pub(crate) struct Moments {
    /// In the order of their answers: what is proven to have been there by then.
    ends: Vec<(u64, u64, usize)>,
    /// In the order of their calls: which revision they took effect at, and whether they made it.
    begins: Vec<(u64, u64, bool, usize)>,
}

impl Moments {
    /// Once it was answered, this revision was there.
    pub fn answered(&mut self, operation: &Operation, at: usize, revision: Revision) {
        self.ends.push((operation.ended, revision.0, at));
    }

    /// It took effect at this revision, at or after its call, and made it or did not.
    pub fn called(&mut self, operation: &Operation, at: usize, revision: Revision, makes: bool) {
        self.begins.push((operation.began, revision.0, makes, at));
    }

    pub fn judge(self, operations: &[Operation]) -> Result<(), Violation> {
        let Self { mut ends, mut begins } = self;
        ends.sort_unstable();
        begins.sort_unstable();
        let mut newest: Option<(u64, usize)> = None;
        let mut ends = ends.into_iter().peekable();
        for (began, revision, makes, at) in begins {
            while let Some((_, proven, by)) = ends.next_if(|(ended, ..)| *ended < began) {
                if newest.is_none_or(|(known, _)| proven > known) {
                    newest = Some((proven, by));
                }
            }
            if let Some((known, by)) = newest
                && (revision < known || (makes && revision == known))
            {
                let (earlier, later) = (&operations[by], &operations[at]);
                let found = format!("revision {revision} comes after revision {known}\n    {earlier}\n    {later}");
                return Err(LIN_2.broken(found));
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct Live {
    kv: KeyValue,
    lease: Option<LeaseId>,
}

/// The key space while its changes are played.
#[derive(Default)]
struct Space {
    revision: u64,
    live: BTreeMap<Bytes, Live>,
    attached: BTreeMap<LeaseId, BTreeSet<Bytes>>,
    /// All that a key ever was: since which revision, and what.
    past: BTreeMap<Bytes, Vec<(u64, Option<KeyValue>)>>,
}

/// Whether a read gave what was there. Which lease a key hangs on is judged by what happens when the lease ends.
fn alike(read: &KeyValue, truth: &KeyValue) -> bool {
    KeyValue { lease: None, ..read.clone() } == KeyValue { lease: None, ..truth.clone() }
}

impl Space {
    fn holds(&self, guard: &Guard) -> bool {
        let live = |key: &Bytes| self.live.get(key).map(|live| &live.kv);
        match guard {
            Guard::ModRevision { key, revision } => live(key).map_or(Revision(0), |kv| kv.mod_revision) == *revision,
            Guard::CreateRevision { key, revision } => {
                live(key).map_or(Revision(0), |kv| kv.create_revision) == *revision
            }
            Guard::Version { key, version } => live(key).map_or(0, |kv| kv.version) == *version,
            Guard::Value { key, value } => live(key).is_some_and(|kv| kv.value == *value),
            // Not about keys.
            Guard::LeaseAlive { .. } | Guard::Cursor { .. } | Guard::LogEnd { .. } => true,
        }
    }

    fn guards_hold(&self, commit: &Commit) -> bool {
        commit.guards.iter().all(|guard| self.holds(guard))
    }

    /// The changes that a commit makes here.
    fn effect(&self, commit: &Commit) -> Vec<KeyEvent> {
        let revision = Revision(self.revision + 1);
        let mut gone: BTreeSet<&Bytes> = BTreeSet::new();
        let mut new: BTreeSet<&Bytes> = BTreeSet::new();
        let mut events = Vec::new();
        for change in &commit.leases {
            if let LeaseChange::Revoke { lease } = change {
                for key in self.attached.get(lease).into_iter().flatten() {
                    gone.insert(key);
                    events.push(KeyEvent { revision, key: key.clone(), value: None });
                }
            }
        }
        for put in &commit.puts {
            if put.value.is_some() {
                new.insert(&put.key);
                gone.remove(&put.key);
            } else if new.remove(&put.key) || (self.live.contains_key(&put.key) && !gone.contains(&put.key)) {
                gone.insert(&put.key);
            } else {
                continue;
            }
            events.push(KeyEvent { revision, key: put.key.clone(), value: put.value.clone() });
        }
        events
    }

    /// Whether these changes are what the end of one or several leases does: all their keys go, and nothing else happens.
    fn ends_leases(&self, events: &[KeyEvent]) -> bool {
        let gone: BTreeSet<&Bytes> = events.iter().map(|event| &event.key).collect();
        events.iter().all(|event| {
            let lease = self.live.get(&event.key).and_then(|live| live.lease);
            event.value.is_none()
                && lease.is_some_and(|lease| self.attached[&lease].iter().all(|key| gone.contains(key)))
        })
    }

    fn detach(&mut self, key: &Bytes) {
        if let Some(lease) = self.live.get(key).and_then(|live| live.lease)
            && let Some(keys) = self.attached.get_mut(&lease)
        {
            keys.remove(key);
        }
    }

    /// Takes over the changes of the next revision; `commit` says which leases the keys hang on.
    fn advance(&mut self, events: &[KeyEvent], commit: Option<&Commit>) {
        self.revision += 1;
        let revision = Revision(self.revision);
        for KeyEvent { key, value, .. } in events {
            self.detach(key);
            let before = self.live.remove(key);
            if let Some(value) = value {
                let (create_revision, version) =
                    before.map_or((revision, 1), |live| (live.kv.create_revision, live.kv.version + 1));
                let (key, value) = (key.clone(), value.clone());
                let put = commit.and_then(|commit| {
                    commit.puts.iter().find(|put| put.key == key && put.value.as_ref() == Some(&value))
                });
                let lease = put.and_then(|put| put.lease);
                if let Some(lease) = lease {
                    self.attached.entry(lease).or_default().insert(key.clone());
                }
                let kv =
                    KeyValue { key: key.clone(), value, create_revision, mod_revision: revision, version, lease: None };
                self.live.insert(key, Live { kv, lease });
            }
            let now = self.live.get(key).map(|live| live.kv.clone());
            let past = self.past.entry(key.clone()).or_default();
            // Of several changes in one revision the last counts.
            if past.last().is_some_and(|(since, _)| *since == revision.0) {
                past.pop();
            }
            past.push((revision.0, now));
        }
    }

    fn range(&self, range: &KeyRange, at: u64) -> impl Iterator<Item = &KeyValue> {
        let keys = self.past.range(range.from.clone()..).take_while(|(key, _)| range.contains(key));
        keys.filter_map(move |(_, past)| {
            let upto = past.partition_point(|(since, _)| *since <= at);
            past[..upto].last()?.1.as_ref()
        })
    }
}

pub(crate) fn shown(events: &[KeyEvent]) -> String {
    let events: Vec<String> = events.iter().map(|event| Change(event).to_string()).collect();
    if events.is_empty() { "nothing".into() } else { events.join(", ") }
}

/// Plays all changes and holds every operation against them. Gives the revisions of commits without a receipt.
fn play(history: &History, end: Revision, checked: &mut Checked) -> Result<BTreeMap<usize, u64>, Violation> {
    let operations = history.operations();
    let mut acknowledged: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    // Commits without a receipt, found by what they put; those that only delete apart.
    let mut lost: BTreeMap<(&Bytes, &Bytes), Vec<usize>> = BTreeMap::new();
    let mut lost_deletes = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        if let Some((_, done)) = operation.done()
            && let Some(revision) = done.revision
        {
            acknowledged.entry(revision.0).or_default().push(at);
        }
        // A receipt without a revision is as good as none here.
        let (What::Commit(commit), Outcome::Unknown | Outcome::Done(crate::Done { revision: None, .. })) =
            (&operation.what, &operation.outcome)
        else {
            continue;
        };
        match commit.puts.iter().find_map(|put| Some((&put.key, put.value.as_ref()?))) {
            Some(place) => lost.entry(place).or_default().push(at),
            None => lost_deletes.push(at),
        }
    }
    let mut reads: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    let mut recovered = BTreeMap::new();
    let mut space = Space { revision: 1, ..Space::default() };
    let mut changes = history.changes.chunk_by(|a, b| a.revision == b.revision).peekable();
    let commit_of = |at: usize| match &operations[at].what {
        What::Commit(commit) => commit,
        _ => unreachable!("only commits are looked for"),
    };
    judge_quiet(&space, acknowledged.remove(&1).unwrap_or_default(), operations)?;
    while space.revision < end.0 {
        let revision = space.revision + 1;
        let Some(events) = changes.next_if(|events| events[0].revision.0 == revision) else {
            if history.scope.is_some() {
                // Somebody else's revision: what was acknowledged here changes nothing of ours.
                space.advance(&[], None);
                judge_quiet(&space, acknowledged.remove(&revision).unwrap_or_default(), operations)?;
                continue;
            }
            let next = changes.peek().map_or("nothing".into(), |events| shown(events));
            return Err(KEYS_1.broken(format!("revision {revision} changes nothing; after it comes {next}")));
        };
        // At most one of those acknowledged here made the revision; what the others ask changes nothing behind it. Where
        // several would have made it (they delete the same), guards that do not hold behind it tell who it was.
        let (mut makers, mut quiet): (Vec<usize>, Vec<usize>) = acknowledged
            .remove(&revision)
            .unwrap_or_default()
            .into_iter()
            .partition(|at| space.effect(commit_of(*at)) == events);
        let putting = |ats: &[usize]| ats.iter().copied().find(|at| puts_something(commit_of(*at)));
        if let Some(at) = putting(&quiet) {
            let effect = space.effect(commit_of(at));
            let found = format!("is {}, not {}\n    {}", shown(events), shown(&effect), operations[at]);
            return Err(LIN_2.broken(format!("revision {revision} {found}")));
        }
        if let ([first, second, ..], true) = (&makers[..], putting(&makers).is_some()) {
            let found = format!("is made twice\n    {}\n    {}", operations[*first], operations[*second]);
            return Err(LIN_2.broken(format!("revision {revision} {found}")));
        }
        let held: BTreeSet<usize> = makers.iter().copied().filter(|at| space.guards_hold(commit_of(*at))).collect();
        let fits = |at: &usize| {
            let commit = commit_of(*at);
            space.guards_hold(commit) && space.effect(commit) == events
        };
        // Where none of them could have deleted this, somebody did whose answer was lost, or a lease ended.
        let deleted_by_others = held.is_empty()
            && putting(&makers).is_none()
            && (lost_deletes.iter().any(fits) || space.ends_leases(events));
        if deleted_by_others {
            quiet.append(&mut makers);
        }
        let mut made_by = makers.first().copied();
        if made_by.is_none() {
            let candidates =
                events.iter().find_map(|event| lost.get(&(&event.key, event.value.as_ref()?))).unwrap_or(&lost_deletes);
            if let Some(at) = candidates.iter().copied().find(|at| fits(at)) {
                if let Some(before) = recovered.get(&at).filter(|_| puts_something(commit_of(at))) {
                    let found = format!("took effect at revisions {before} and {revision}\n    {}", operations[at]);
                    return Err(LIN_2.broken(found));
                }
                // Several may delete the same; which one it was makes no difference to anybody.
                if puts_something(commit_of(at)) {
                    recovered.insert(at, revision);
                }
                made_by = Some(at);
            } else if !space.ends_leases(events) {
                let mut found = format!("nobody made revision {revision}: {}", shown(events));
                for at in candidates {
                    let commit = commit_of(*at);
                    if commit.puts.iter().any(|put| put.value.is_some()) {
                        found += &format!("\n    not {}", operations[*at]);
                        if let Some(guard) = commit.guards.iter().find(|guard| !space.holds(guard)) {
                            return Err(GUARD_1.broken(format!("{found}\n    because of {guard:?}")));
                        }
                    }
                }
                return Err(LIN_2.broken(found));
            }
        }
        // One of several is as good as the other for what the space looks like behind it.
        let broken = made_by.and_then(|at| commit_of(at).guards.iter().find(|guard| !space.holds(guard)));
        space.advance(events, made_by.map(commit_of));
        if !makers.is_empty() {
            let maker = makers.iter().position(|at| held.contains(at) && !space.guards_hold(commit_of(*at)));
            match maker.or(makers.iter().position(|at| held.contains(at))) {
                Some(position) => {
                    makers.swap_remove(position);
                    quiet.append(&mut makers);
                }
                None => {
                    let guard = broken.expect("a guard of the first one does not hold");
                    let found =
                        format!("before revision {revision} {guard:?} does not hold\n    {}", operations[makers[0]]);
                    return Err(GUARD_1.broken(found));
                }
            }
        }
        judge_quiet(&space, quiet, operations)?;
    }
    if let Some(events) = changes.next() {
        return Err(KEYS_1.broken(format!("changes lie beyond revision {end}: {}", shown(events))));
    }
    if let Some((revision, ats)) = acknowledged.into_iter().find(|(revision, _)| *revision <= end.0) {
        unreachable!("revision {revision} was played with {ats:?}");
    }
    for (at, operation) in operations.iter().enumerate() {
        if let Outcome::Found(found) = &operation.outcome {
            if found.revision > end {
                checked.beyond += 1;
            } else {
                reads.entry(found.revision.0).or_default().push(at);
            }
        }
    }
    for (revision, ats) in reads {
        for at in ats {
            let (What::Read { range, at: asked, .. }, Outcome::Found(found)) =
                (&operations[at].what, &operations[at].outcome)
            else {
                unreachable!("only reads find keys")
            };
            let mut there = space.range(range, revision);
            let same = found.kvs.iter().all(|kv| there.next().is_some_and(|other| alike(kv, other)))
                && (found.more == there.next().is_some());
            if !same || asked.is_some_and(|asked| asked != found.revision) {
                let kvs = space.range(range, revision).cloned().collect();
                let truth = Outcome::Found(KeyValues { revision: Revision(revision), kvs, more: false });
                return Err(LIN_2.broken(format!("a read differs from\n    {truth}\n    {}", operations[at])));
            }
        }
    }
    Ok(recovered)
}

/// Commits that were acknowledged at a revision that they did not make: they must change nothing there.
fn judge_quiet(space: &Space, quiet: Vec<usize>, operations: &[Operation]) -> Result<(), Violation> {
    for at in quiet {
        let Some((commit, _)) = operations[at].done() else { continue };
        let effect = space.effect(commit);
        if !effect.is_empty() {
            let found = format!("revision {} lacks {}", space.revision, shown(&effect));
            return Err(LIN_2.broken(format!("{found}\n    {}", operations[at])));
        }
        if let Some(guard) = commit.guards.iter().find(|guard| !space.holds(guard)) {
            let found = format!("at revision {} {guard:?} does not hold\n    {}", space.revision, operations[at]);
            return Err(GUARD_1.broken(found));
        }
    }
    Ok(())
}

/// What is known of a key at a revision.
#[derive(Clone, Debug)]
struct Fact {
    /// `None`: it is not there.
    value: Option<Bytes>,
    /// The value was put at this very revision.
    put: bool,
    by: usize,
}

/// What is known where nobody saw every change.
struct Facts {
    known: BTreeMap<Bytes, BTreeMap<u64, Fact>>,
    recovered: BTreeMap<usize, u64>,
    writers: BTreeMap<(Bytes, Bytes), usize>,
    /// Keys that may go without anybody's receipt: by a lease, or by a commit whose outcome is not known.
    fleeting: BTreeSet<Bytes>,
}

impl Facts {
    fn of(history: &History) -> Result<Self, Violation> {
        let operations = history.operations();
        let mut facts = Self {
            known: BTreeMap::new(),
            recovered: BTreeMap::new(),
            writers: BTreeMap::new(),
            fleeting: BTreeSet::new(),
        };
        let mut makers: BTreeMap<u64, usize> = BTreeMap::new();
        for (at, operation) in operations.iter().enumerate() {
            let What::Commit(commit) = &operation.what else { continue };
            let (revision, known) = match &operation.outcome {
                Outcome::Done(done) => (done.revision, true),
                Outcome::Unknown => (None, false),
                _ => continue,
            };
            if let Some(revision) = revision.filter(|_| puts_something(commit))
                && let Some(other) = makers.insert(revision.0, at)
            {
                let found = format!("revision {revision} is made twice\n    {}\n    {operation}", operations[other]);
                return Err(LIN_2.broken(found));
            }
            for put in &commit.puts {
                if put.lease.is_some() || (put.value.is_none() && (!known || revision.is_none())) {
                    facts.fleeting.insert(put.key.clone());
                }
                if let Some(value) = &put.value {
                    facts.writers.insert((put.key.clone(), value.clone()), at);
                }
                if let Some(revision) = revision {
                    let fact = Fact { value: put.value.clone(), put: put.value.is_some(), by: at };
                    facts.known.entry(put.key.clone()).or_default().insert(revision.0, fact);
                }
            }
        }
        // What was seen of commits without a receipt tells their revision.
        for operation in operations {
            let Outcome::Found(found) = &operation.outcome else { continue };
            for kv in &found.kvs {
                let Some(writer) = facts.writers.get(&(kv.key.clone(), kv.value.clone())).copied() else {
                    return Err(LIN_2.broken(format!(
                        "nobody wrote {}={}\n    {operation}",
                        Word(&kv.key),
                        Word(&kv.value)
                    )));
                };
                let told = operations[writer].done().and_then(|(_, done)| done.revision);
                let revision = told.map_or(kv.mod_revision.0, |revision| revision.0);
                let revision =
                    if told.is_none() { *facts.recovered.entry(writer).or_insert(revision) } else { revision };
                if kv.mod_revision.0 != revision || kv.mod_revision > found.revision {
                    let found = format!("{}={} was written at {revision}", Word(&kv.key), Word(&kv.value));
                    return Err(LIN_2.broken(format!("{found}\n    {operation}\n    {}", operations[writer])));
                }
            }
        }
        for (at, revision) in &facts.recovered {
            if let Some(other) = makers.insert(*revision, *at) {
                let found = format!("revision {revision} is made twice");
                return Err(LIN_2.broken(format!("{found}\n    {}\n    {}", operations[other], operations[*at])));
            }
            let What::Commit(commit) = &operations[*at].what else { unreachable!("only commits write") };
            for put in &commit.puts {
                let fact = Fact { value: put.value.clone(), put: put.value.is_some(), by: *at };
                facts.known.entry(put.key.clone()).or_default().insert(*revision, fact);
            }
        }
        Ok(facts)
    }

    /// The last thing known of a key at or before a revision.
    fn last(&self, key: &Bytes, at: u64) -> Option<(u64, &Fact)> {
        self.known.get(key)?.range(..=at).next_back().map(|(revision, fact)| (*revision, fact))
    }

    /// Whether nothing known speaks against the key having this value, last changed at this revision, at `at`.
    fn may_be(&self, key: &Bytes, seen: Option<(u64, Option<&Bytes>)>, at: u64) -> Result<(), usize> {
        match (seen, self.last(key, at)) {
            (None, Some((_, fact))) if fact.value.is_some() && !self.fleeting.contains(key) => Err(fact.by),
            (Some((modified, _)), Some((revision, fact))) if revision > modified => Err(fact.by),
            (Some((modified, value)), Some((revision, fact)))
                if revision == modified
                    && (!fact.put || value.is_some_and(|value| fact.value.as_ref() != Some(value))) =>
            {
                Err(fact.by)
            }
            _ => Ok(()),
        }
    }

    fn judge(self, history: &History) -> Result<BTreeMap<usize, u64>, Violation> {
        let operations = history.operations();
        for (at, operation) in operations.iter().enumerate() {
            match (&operation.what, &operation.outcome) {
                (What::Read { range, .. }, Outcome::Found(found)) => {
                    let revision = found.revision.0;
                    for key in self.known.keys().filter(|key| range.contains(key)) {
                        if found.more && found.kvs.last().is_none_or(|last| *key > last.key) {
                            continue;
                        }
                        let kv = found.kvs.iter().find(|kv| kv.key == *key);
                        let seen = kv.map(|kv| (kv.mod_revision.0, Some(&kv.value)));
                        self.may_be(key, seen, revision).map_err(|by| {
                            LIN_2.broken(format!(
                                "of {} at {revision} this tells another thing\n    {}\n    {operation}",
                                Word(key),
                                operations[by]
                            ))
                        })?;
                    }
                }
                (What::Commit(commit), _) => {
                    let told = operation.done().and_then(|(_, done)| done.revision).map(|revision| revision.0);
                    let Some(revision) = told.or(self.recovered.get(&at).copied()) else { continue };
                    // A commit that changed nothing was looked at behind its revision.
                    let before = if puts_something(commit) { revision - 1 } else { revision };
                    for guard in &commit.guards {
                        let (key, seen) = match guard {
                            Guard::ModRevision { key, revision: Revision(0) }
                            | Guard::CreateRevision { key, revision: Revision(0) }
                            | Guard::Version { key, version: 0 } => (key, None),
                            Guard::ModRevision { key, revision } => (key, Some((revision.0, None))),
                            Guard::Value { key, value } => match self.writer(operations, key, value) {
                                Some(revision) => (key, Some((revision, Some(value)))),
                                None => continue,
                            },
                            _ => continue,
                        };
                        if !puts_something(commit) && commit.puts.iter().any(|put| put.key == *key) {
                            // It may have deleted the key at this revision: the guard looked at the one before.
                            continue;
                        }
                        self.may_be(key, seen, before).map_err(|by| {
                            GUARD_1.broken(format!(
                                "{guard:?} does not hold at {before}\n    {}\n    {operation}",
                                operations[by]
                            ))
                        })?;
                    }
                }
                _ => {}
            }
        }
        Ok(self.recovered)
    }

    /// The revision at which a value was written, where it is known.
    fn writer(&self, operations: &[Operation], key: &Bytes, value: &Bytes) -> Option<u64> {
        let at = *self.writers.get(&(key.clone(), value.clone()))?;
        let told = operations[at].done().and_then(|(_, done)| done.revision).map(|revision| revision.0);
        told.or(self.recovered.get(&at).copied())
    }
}
