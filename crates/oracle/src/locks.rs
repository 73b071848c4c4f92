//! LOCK-1: a lock never has two holders.
//!
//! A lock is a key. Whoever creates it holds it, and the revision of its creation is the holder's *fencing token*. Taking it
//! is a commit that is guarded by the key not being there; everything the holder then does under the lock is guarded by the
//! token. The key hangs on a lease, so that a lock does not outlive a holder that is gone.
//!
//! No lease and no clock can keep a client that was paused from *believing* that it holds the lock: it may wake up long after
//! the lease has ended. That is what tokens are for, and so holders are counted by what the log let them do. Everything that
//! shows a token to be the lock's, the commit that took it, a commit under it that succeeded, a read that saw it, was called
//! and answered at some moments. As soon as one of these for a newer token is answered, nothing for an older one may be
//! called and succeed.

use std::collections::BTreeMap;

use buttress_core::{Guard, KeyRange, Revision, Violation, invariants::LOCK_1};
use bytes::Bytes;

use crate::{
    history::{Commit, History, Operation, Outcome, What},
    text::Word,
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub locks: usize,
    pub tokens: usize,
    /// Commits that succeeded under a token.
    pub guarded: usize,
    /// Commits that were refused because their token was not the lock's any more.
    pub fenced: usize,
}

/// What shows that a token was the lock's.
struct Evidence<'a> {
    /// The commit that took the lock, where its receipt came.
    taken: Option<&'a Operation>,
    /// By its answer the token existed.
    first: &'a Operation,
    /// At its call the token still was the lock's.
    last: &'a Operation,
}

/// The token that a commit claims to hold of a lock.
fn claimed<'a>(commit: &'a Commit, locks: &KeyRange) -> Option<(&'a Bytes, Revision)> {
    commit.guards.iter().find_map(|guard| match guard {
        Guard::CreateRevision { key, revision } | Guard::ModRevision { key, revision }
            if *revision > Revision(0) && locks.contains(key) =>
        {
            Some((key, *revision))
        }
        _ => None,
    })
}

/// The lock that a commit takes where it succeeds.
fn taken<'a>(commit: &'a Commit, locks: &KeyRange) -> Option<&'a Bytes> {
    commit.guards.iter().find_map(|guard| match guard {
        Guard::CreateRevision { key, revision: Revision(0) }
        | Guard::ModRevision { key, revision: Revision(0) }
        | Guard::Version { key, version: 0 }
            if locks.contains(key) && commit.puts.iter().any(|put| put.key == *key && put.value.is_some()) =>
        {
            Some(key)
        }
        _ => None,
    })
}

/// Judges every lock: each key of the range `locks`.
///
/// # Errors
/// The first lock that two held.
pub fn check(history: &History, locks: &KeyRange) -> Result<Checked, Violation> {
    let mut checked = Checked::default();
    let mut held: BTreeMap<&Bytes, BTreeMap<Revision, Evidence<'_>>> = BTreeMap::new();
    for operation in history.operations() {
        match (&operation.what, &operation.outcome) {
            (What::Commit(commit), Outcome::Done(done)) => {
                if let (Some(key), Some(token)) = (taken(commit, locks), done.revision) {
                    let tokens = held.entry(key).or_default();
                    note(tokens, token, operation);
                    let evidence = tokens.get_mut(&token).expect("it was noted above");
                    if let Some(other) = evidence.taken.replace(operation) {
                        let found = format!("{} is taken twice at {token}\n    {other}\n    {operation}", Word(key));
                        return Err(LOCK_1.broken(found));
                    }
                } else if let Some((key, token)) = claimed(commit, locks) {
                    checked.guarded += 1;
                    note(held.entry(key).or_default(), token, operation);
                }
            }
            (What::Commit(commit), Outcome::Refused { .. }) => {
                checked.fenced += usize::from(claimed(commit, locks).is_some());
            }
            (What::Read { at: None, linearizable: true, .. }, Outcome::Found(found)) => {
                for kv in found.kvs.iter().filter(|kv| locks.contains(&kv.key)) {
                    note(held.entry(&kv.key).or_default(), kv.create_revision, operation);
                }
            }
            _ => {}
        }
    }
    checked.locks = held.len();
    for (key, tokens) in &held {
        checked.tokens += tokens.len();
        // From the newest token down: what shows first that a newer one exists.
        let mut newer: Option<(Revision, &Operation)> = None;
        for (token, evidence) in tokens.iter().rev() {
            if let Some((other, by)) = newer
                && by.precedes(evidence.last)
            {
                return Err(LOCK_1.broken(format!(
                    "{} is held under {token} after it was held under {other}\n    {by}\n    {}",
                    Word(key),
                    evidence.last
                )));
            }
            if newer.is_none_or(|(_, by)| evidence.first.ended < by.ended) {
                newer = Some((*token, evidence.first));
            }
        }
    }
    by_revision(history, locks, &held)?;
    Ok(checked)
}

fn note<'a>(tokens: &mut BTreeMap<Revision, Evidence<'a>>, token: Revision, operation: &'a Operation) {
    let evidence = tokens.entry(token).or_insert(Evidence { taken: None, first: operation, last: operation });
    if operation.ended < evidence.first.ended {
        evidence.first = operation;
    }
    if operation.began > evidence.last.began {
        evidence.last = operation;
    }
}

/// Tokens are revisions, so receipts tell the order even of what ran at the same time: at its own revision a commit under a
/// token must not find a newer token.
fn by_revision(
    history: &History,
    locks: &KeyRange,
    held: &BTreeMap<&Bytes, BTreeMap<Revision, Evidence<'_>>>,
) -> Result<(), Violation> {
    for operation in history.operations() {
        let Some((commit, done)) = operation.done() else { continue };
        let (Some((key, token)), Some(revision)) = (claimed(commit, locks), done.revision) else { continue };
        if token >= revision && commit.puts.iter().any(|put| put.value.is_some()) {
            let found = format!("{} is held under {token} before that revision\n    {operation}", Word(key));
            return Err(LOCK_1.broken(found));
        }
        // Strictly between: the commit's own revision is its own.
        let between = held[key].range((std::ops::Bound::Excluded(token), std::ops::Bound::Excluded(revision)));
        if let Some((newer, evidence)) = between.into_iter().next() {
            return Err(LOCK_1.broken(format!(
                "{} is used under {token} at {revision}, but {newer} is newer\n    {}\n    {operation}",
                Word(key),
                evidence.first
            )));
        }
    }
    Ok(())
}
