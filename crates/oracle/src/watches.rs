//! WATCH-1: a watcher sees every change once and in order, or is told that history is gone.
//!
//! A watcher connects, is given changes, loses its connection, and asks another node for what comes after the last revision
//! it has seen. Put together, its connections must show every change of its range, whole revisions at a time, from the
//! revision it first asked for to the one it last heard to be complete. The only hole it may have is one that it was told of:
//! a compaction that somebody asked for, and that reaches what it wanted.
//!
//! Where somebody saw every change ([`History::changes_end`]), that is the truth. Where nobody did, what acknowledged commits
//! put is: each of it must be there, and whatever else a watcher saw at their revisions is wrong.

use std::collections::BTreeMap;

use buttress_core::{Revision, Violation, invariants::WATCH_1, ledger::KeyEvent};
use bytes::Bytes;

use crate::{
    history::{Commit, History, Outcome, SessionEnd, Watcher, What},
    text::{Change, Word},
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub watchers: usize,
    pub sessions: usize,
    pub events: usize,
    pub compacted: usize,
    /// Watchers whose last connection did not end by hearing that everything was shown: of them only what they saw is judged.
    pub unfinished: usize,
}

/// Judges every watcher.
///
/// # Errors
/// The first watcher that missed a change, saw one twice, out of order, or one that never was, or was told of a compaction
/// that nobody asked for.
pub fn check(history: &History) -> Result<Checked, Violation> {
    let mut checked = Checked { watchers: history.watchers.len(), ..Checked::default() };
    let mut truth: BTreeMap<Revision, Vec<&KeyEvent>> = BTreeMap::new();
    for change in &history.changes {
        truth.entry(change.revision).or_default().push(change);
    }
    let mut commits: BTreeMap<Revision, &Commit> = BTreeMap::new();
    let mut compactions = Vec::new();
    for operation in history.operations() {
        let What::Commit(commit) = &operation.what else { continue };
        if let Some((commit, done)) = operation.done()
            && let Some(revision) = done.revision
            && commit.puts.iter().any(|put| put.value.is_some())
        {
            commits.insert(revision, commit);
        }
        if let (Some(compact), Outcome::Done(_) | Outcome::Unknown) = (commit.compact, &operation.outcome) {
            compactions.push(compact);
        }
    }
    for watcher in &history.watchers {
        let wrong = |at: usize, found: String| {
            let mut story = Watcher { sessions: watcher.sessions[..=at].to_vec(), ..watcher.clone() };
            // Enough to understand it by.
            story.sessions.drain(..at.saturating_sub(2));
            let story = story.to_string().replace('\n', "\n    ");
            WATCH_1.broken(format!("{} {found}\n    {story}", Word(watcher.name.as_bytes())))
        };
        let mut wanted: Option<Revision> = None;
        for (position, session) in watcher.sessions.iter().enumerate() {
            checked.sessions += 1;
            checked.events += session.events.len();
            if let Some(wanted) = wanted
                && session.from > wanted
            {
                return Err(wrong(position, format!("goes on from {}, but wants {wanted}", session.from)));
            }
            let mut next = session.from;
            for events in session.events.chunk_by(|a, b| a.revision == b.revision) {
                let revision = events[0].revision;
                if revision < next {
                    return Err(wrong(position, format!("sees {} though it is past {}", Change(&events[0]), revision)));
                }
                if let Some(foreign) = events.iter().find(|event| !watcher.range.contains(&event.key)) {
                    return Err(wrong(position, format!("is given {}, which it did not ask for", Change(foreign))));
                }
                complete(history, watcher, &truth, &commits, next, Revision(revision.0 - 1), &[])
                    .and_then(|()| complete(history, watcher, &truth, &commits, revision, revision, events))
                    .map_err(|found| wrong(position, found))?;
                next = Revision(revision.0 + 1);
            }
            match session.end {
                SessionEnd::Lost => {}
                SessionEnd::UpTo(end) => {
                    complete(history, watcher, &truth, &commits, next, end, &[])
                        .map_err(|found| wrong(position, found))?;
                    next = next.max(Revision(end.0 + 1));
                }
                SessionEnd::Compacted(compacted) => {
                    checked.compacted += 1;
                    if compacted < next {
                        return Err(wrong(position, format!("wants {next}, which compaction to {compacted} spares")));
                    }
                    if !compactions.contains(&compacted) {
                        return Err(wrong(
                            position,
                            format!("hears of a compaction to {compacted} that nobody wanted"),
                        ));
                    }
                    next = Revision(compacted.0 + 1);
                }
            }
            // Who asks again for what it has seen is given it again.
            wanted = Some(wanted.map_or(next, |wanted| wanted.max(next)));
        }
        let finished = matches!(watcher.sessions.last().map(|last| last.end), Some(SessionEnd::UpTo(_)));
        checked.unfinished += usize::from(!finished);
    }
    Ok(checked)
}

/// Holds what was seen at the revisions `from` to `to`, all of it at `to`, against what happened there.
fn complete(
    history: &History,
    watcher: &Watcher,
    truth: &BTreeMap<Revision, Vec<&KeyEvent>>,
    commits: &BTreeMap<Revision, &Commit>,
    from: Revision,
    to: Revision,
    seen: &[KeyEvent],
) -> Result<(), String> {
    if from > to {
        return Ok(());
    }
    if let Some(end) = history.changes_end {
        let in_range = |event: &&KeyEvent| watcher.range.contains(&event.key);
        let mut expected = truth.range(from..=to).flat_map(|(_, events)| events.iter().copied()).filter(in_range);
        let mut seen = seen.iter();
        loop {
            match (expected.next(), seen.next()) {
                (None, None) => return Ok(()),
                (Some(a), Some(b)) if a == b => {}
                (Some(missed), None) => return Err(format!("misses {}", Change(missed))),
                (Some(right), Some(wrong)) => return Err(format!("sees {}, not {}", Change(wrong), Change(right))),
                (None, Some(wrong)) if wrong.revision <= end => {
                    return Err(format!("sees {}, which never happened", Change(wrong)));
                }
                // Not judged: the list of changes ends before.
                (None, Some(_)) => {}
            }
        }
    }
    for (revision, commit) in commits.range(from..=to) {
        let wanted = commit.puts.iter().filter(|put| watcher.range.contains(&put.key) && put.value.is_some());
        for put in wanted {
            let event = KeyEvent { revision: *revision, key: put.key.clone(), value: put.value.clone() };
            if seen.iter().filter(|each| **each == event).count() != count(commit, &put.key, put.value.as_ref()) {
                return Err(format!("misses {}", Change(&event)));
            }
        }
        let deleted = |key: &Bytes| {
            commit.puts.iter().any(|put| put.key == *key && put.value.is_none()) || !commit.leases.is_empty()
        };
        let foreign = seen.iter().find(|event| match &event.value {
            Some(_) => !commit.puts.iter().any(|put| put.key == event.key && put.value == event.value),
            None => !deleted(&event.key),
        });
        if let Some(foreign) = foreign {
            return Err(format!("sees {}, which the commit of that revision did not do", Change(foreign)));
        }
    }
    Ok(())
}

fn count(commit: &Commit, key: &Bytes, value: Option<&Bytes>) -> usize {
    commit.puts.iter().filter(|put| put.key == *key && put.value.as_ref() == value).count()
}
