//! RECORD-1: an acknowledged record is there exactly once, where it was acknowledged, in its producer's order; one that was
//! not acknowledged is there at most once. With it OFFSET-1, as clients see it.
//!
//! Every record carries a serial of its own, so what the partitions held at the end ([`History::logs`]) says of each record
//! how often it is there, and where. A fetch in the middle of the run must have shown what is there at the end: a record that
//! was given out is committed.

use std::collections::BTreeMap;

use buttress_core::{
    LogId, Offset, Sequence, Violation,
    invariants::{OFFSET_1, RECORD_1},
};

use crate::history::{Appended, History, Operation, Outcome, Serial, What};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Records at the end, in all partitions.
    pub records: usize,
    pub acknowledged: usize,
    /// Records whose append has no known outcome, and that are there.
    pub recovered: usize,
    /// Acknowledged records that retention had taken by the end.
    pub trimmed: usize,
    pub fetched: usize,
}

/// Judges every partition whose content at the end is known, against all appends to it.
///
/// # Errors
/// The first record that is lost, doubled, misplaced, out of order or nobody's.
pub fn check(history: &History) -> Result<Checked, Violation> {
    let mut checked = Checked::default();
    // Where each record lies.
    let mut places: BTreeMap<(LogId, Serial), Offset> = BTreeMap::new();
    let mut at: BTreeMap<(LogId, Offset), Serial> = BTreeMap::new();
    for (log, content) in &history.logs {
        let mut next = content.start;
        for (offset, serial) in &content.records {
            if *offset != next {
                return Err(OFFSET_1.broken(format!("log {log} has offset {offset} where {next} comes")));
            }
            next = Offset(offset.0 + 1);
            if let Some(before) = places.insert((*log, *serial), *offset) {
                return Err(RECORD_1.broken(format!("record {serial} is in log {log} at {before} and at {offset}")));
            }
            at.insert((*log, *offset), *serial);
        }
        checked.records += content.records.len();
    }
    let mut owners: BTreeMap<(LogId, Serial), &Operation> = BTreeMap::new();
    // The records that are there, by producer and epoch, in the order of their numbers.
    type Numbered<'a> = BTreeMap<i64, (Offset, &'a Operation)>;
    let mut numbered: BTreeMap<(LogId, &str, i32), Numbered<'_>> = BTreeMap::new();
    for operation in history.operations() {
        let What::Commit(commit) = &operation.what else { continue };
        for (position, append) in commit.appends.iter().enumerate() {
            let Some(content) = history.logs.get(&append.log) else { continue };
            let told = match &operation.outcome {
                Outcome::Done(done) => Some(done.offsets.get(position).copied().unwrap_or(Appended::Before)),
                Outcome::Unknown => None,
                // A refusal: nothing of the entry happened.
                _ => Some(Appended::Not),
            };
            for (index, serial) in (0..).zip(&append.serials) {
                let place = places.get(&(append.log, *serial)).copied();
                let lies = |found: String| {
                    RECORD_1.broken(format!("record {serial} of log {} {found}\n    {operation}", append.log))
                };
                match (told, place) {
                    (Some(Appended::At(base)), Some(place)) if place == Offset(base.0 + index) => {}
                    (Some(Appended::At(base)), None) if base.0 + index < content.start.0 => checked.trimmed += 1,
                    (Some(Appended::At(_) | Appended::Before), None) if content.start == Offset(0) => {
                        return Err(lies("is acknowledged and not there".into()));
                    }
                    (Some(Appended::At(base)), None) => {
                        return Err(lies(format!("is acknowledged at {} and not there", base.0 + index)));
                    }
                    (Some(Appended::At(base)), Some(place)) => {
                        return Err(lies(format!("is acknowledged at {} and lies at {place}", base.0 + index)));
                    }
                    (Some(Appended::Before), None) => checked.trimmed += 1,
                    (Some(Appended::Not), Some(place)) if !elsewhere(history, append.log, *serial, operation) => {
                        return Err(lies(format!("was refused and lies at {place}")));
                    }
                    (None, Some(_)) => checked.recovered += 1,
                    (Some(Appended::Before), Some(_)) | (Some(Appended::Not), _) | (None, None) => {}
                }
                checked.acknowledged += usize::from(matches!(told, Some(Appended::At(_) | Appended::Before)));
                if let Some(place) = place
                    && told != Some(Appended::Not)
                {
                    owners.insert((append.log, *serial), operation);
                    if let Some(Sequence { producer, epoch, number }) = &append.sequence {
                        numbered
                            .entry((append.log, producer, *epoch))
                            .or_default()
                            .insert(number + index, (place, operation));
                    }
                }
            }
        }
    }
    if let Some(((log, serial), place)) = places.iter().find(|(place, _)| !owners.contains_key(place)) {
        return Err(RECORD_1.broken(format!("record {serial} is in log {log} at {place}, and nobody appended it")));
    }
    for ((log, producer, epoch), records) in &numbered {
        let mut last: Option<(i64, Offset)> = None;
        for (number, (offset, operation)) in records {
            if let Some((before, at)) = last
                && at > *offset
            {
                return Err(RECORD_1.broken(format!(
                    "log {log} has number {number} of {producer:?}, epoch {epoch}, at {offset}, before number {before} at {at}\n    {operation}"
                )));
            }
            last = Some((*number, *offset));
        }
    }
    for operation in history.operations() {
        let (What::Fetch { log, from }, Outcome::Fetched(found)) = (&operation.what, &operation.outcome) else {
            continue;
        };
        let Some(content) = history.logs.get(log) else { continue };
        let mut next = None;
        for (offset, serial) in found {
            if *offset < *from || next.is_some_and(|next| next != *offset) {
                return Err(OFFSET_1.broken(format!("log {log} shows offset {offset} out of turn\n    {operation}")));
            }
            next = Some(Offset(offset.0 + 1));
            checked.fetched += 1;
            if *offset >= content.start && at.get(&(*log, *offset)) != Some(serial) {
                let there = at.get(&(*log, *offset)).map_or("nothing".into(), |serial| format!("record {serial}"));
                let found = format!("log {log} showed record {serial} at {offset}, where at the end {there} lies");
                return Err(RECORD_1.broken(format!("{found}\n    {operation}")));
            }
        }
    }
    Ok(checked)
}

/// Whether another operation may have appended the same record: a client that sends a batch again keeps its serials.
fn elsewhere(history: &History, log: LogId, serial: Serial, than: &Operation) -> bool {
    history.operations().iter().any(|operation| {
        let What::Commit(commit) = &operation.what else { return false };
        !std::ptr::eq(operation, than)
            && matches!(operation.outcome, Outcome::Done(_) | Outcome::Unknown)
            && commit.appends.iter().any(|append| append.log == log && append.serials.contains(&serial))
    })
}
