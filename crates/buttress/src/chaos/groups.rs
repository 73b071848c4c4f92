//! What a consumer group must keep, judged by what its members saw: GROUP-1 and GROUP-OUT.
//!
//! Members note whenever a generation was told to them, an offset was committed or read, and records were delivered. A note is
//! an interval, from before the request left until after its answer came; only what had ended before something else began
//! comes before it.
//!
//! GROUP-1: in a partition no offset that is read or acknowledged is below one that was read or acknowledged before it began.
//! No commit of a generation is acknowledged that began after a later generation had been told to a member. An offset that is
//! read is that of a commit which somebody made and which was not fenced: each carries a serial.
//!
//! GROUP-OUT: what is behind the group's last offset was delivered to a member, each record as it lies in the log, in the
//! order of its partition; and the last offset is the partition's end, once one member had the time to get there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::Duration,
};

use buttress_core::{Offset, Violation, invariants::GROUP_1};
use buttress_oracle::Serial;

use super::{clients::Read, kafka::Left};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    Yes,
    /// The coordinator has said that the member or its generation is not the group's.
    Fenced,
    Unknown,
}

#[derive(Clone, Debug)]
pub enum Note {
    /// The generation is in force: its assignment was told.
    Joined {
        generation: i32,
    },
    Committed {
        generation: i32,
        partition: usize,
        offset: i64,
        by: Serial,
        outcome: Committed,
    },
    /// An offset was read; −1 where there is none.
    Looked {
        partition: usize,
        offset: i64,
        by: Option<Serial>,
    },
    Delivered {
        stint: Serial,
        partition: usize,
        from: i64,
        records: Vec<Read>,
    },
}

#[derive(Clone, Debug)]
pub struct Noted {
    pub who: u64,
    pub began: Duration,
    pub ended: Duration,
    pub note: Note,
}

#[derive(Default)]
pub struct Notes(Mutex<Vec<Noted>>);

impl Notes {
    pub fn note(&self, noted: Noted) {
        self.0.lock().expect("no holder panics").push(noted);
    }

    pub fn take(&self) -> Vec<Noted> {
        std::mem::take(&mut *self.0.lock().expect("no holder panics"))
    }
}

/// An offset that was certainly the group's at some moment between `began` and `ended`.
struct Point<'a> {
    noted: &'a Noted,
    offset: i64,
}

fn points(notes: &[Noted], of: usize) -> Vec<Point<'_>> {
    let point = |noted| {
        let noted: &Noted = noted;
        let offset = match &noted.note {
            Note::Committed { partition, offset, outcome: Committed::Yes, .. } if *partition == of => *offset,
            Note::Looked { partition, offset, .. } if *partition == of => *offset,
            _ => return None,
        };
        Some(Point { noted, offset })
    };
    notes.iter().filter_map(point).collect()
}

fn told(noted: &Noted) -> String {
    let (from, to) = (noted.began.as_secs_f64(), noted.ended.as_secs_f64());
    format!("{from:.3}..{to:.3} s, member {}: {:?}", noted.who, noted.note)
}

/// GROUP-1. Gives what was judged.
///
/// # Errors
/// The first offset that went back, or that nobody may have committed.
pub fn check_offsets(notes: &[Noted], partitions: usize) -> Result<String, Violation> {
    let mut commits: BTreeMap<(usize, Serial), &Noted> = BTreeMap::new();
    let (mut acknowledged, mut fenced, mut unknown, mut looks) = (0, 0, 0, 0);
    for noted in notes {
        if let Note::Committed { partition, by, outcome, .. } = &noted.note {
            commits.insert((*partition, *by), noted);
            match outcome {
                Committed::Yes => acknowledged += 1,
                Committed::Fenced => fenced += 1,
                Committed::Unknown => unknown += 1,
            }
        }
    }
    // Every offset that is read is that of a commit.
    for noted in notes {
        let Note::Looked { partition, offset, by } = &noted.note else { continue };
        looks += 1;
        match by.map(|by| commits.get(&(*partition, by))) {
            None if *offset < 0 => {}
            None | Some(None) => {
                return Err(GROUP_1.broken(format!("an offset that nobody committed is read\n    {}", told(noted))));
            }
            Some(Some(commit)) => {
                let Note::Committed { offset: committed, outcome, .. } = &commit.note else {
                    unreachable!("commits only")
                };
                let wrong = match outcome {
                    Committed::Fenced => "a fenced commit has moved the group's offset",
                    _ if committed != offset => "an offset is read that is not the commit's",
                    _ if commit.began > noted.ended => "an offset is read before it is committed",
                    _ => continue,
                };
                return Err(GROUP_1.broken(format!("{wrong}\n    {}\n    {}", told(commit), told(noted))));
            }
        }
    }
    // Nothing goes back.
    for partition in 0..partitions {
        let mut by_begin = points(notes, partition);
        by_begin.sort_by_key(|point| point.noted.began);
        let mut by_end = points(notes, partition);
        by_end.sort_by_key(|point| point.noted.ended);
        let mut before = by_end.into_iter().peekable();
        let mut highest: Option<Point<'_>> = None;
        for point in by_begin {
            while let Some(ended) = before.next_if(|ended| ended.noted.ended < point.noted.began) {
                if highest.as_ref().is_none_or(|highest| highest.offset < ended.offset) {
                    highest = Some(ended);
                }
            }
            if let Some(highest) = highest.as_ref().filter(|highest| highest.offset > point.offset) {
                let (first, then) = (told(highest.noted), told(point.noted));
                let text = format!("the offset of partition {partition} goes back\n    {first}\n    {then}");
                return Err(GROUP_1.broken(text));
            }
        }
    }
    // A generation ends for good when a later one is told.
    let mut joins: Vec<(Duration, i32)> = Vec::new();
    for noted in notes {
        if let Note::Joined { generation } = noted.note {
            joins.push((noted.ended, generation));
        }
    }
    joins.sort_unstable();
    for noted in notes {
        let Note::Committed { generation, outcome: Committed::Yes, .. } = noted.note else { continue };
        let later = joins.iter().take_while(|(at, _)| *at < noted.began).find(|(_, later)| *later > generation);
        if let Some((at, later)) = later {
            let text = format!("generation {later} is there at {:.3} s\n    {}", at.as_secs_f64(), told(noted));
            return Err(GROUP_1.broken(format!("a commit of a fenced generation is acknowledged; {text}")));
        }
    }
    let generations: BTreeSet<i32> = joins.iter().map(|(_, generation)| *generation).collect();
    Ok(format!(
        "{acknowledged} commits of {} generations, {fenced} fenced, {unknown} with an unknown outcome, {looks} offsets read",
        generations.len()
    ))
}

/// GROUP-OUT. Gives what was judged.
///
/// # Errors
/// The first record that was not delivered, or not as it lies in the log, or out of turn.
pub fn check_delivery(notes: &[Noted], left: &Left) -> Result<String, String> {
    let mut next: BTreeMap<Serial, i64> = BTreeMap::new();
    let mut delivered: Vec<BTreeMap<Offset, usize>> = vec![BTreeMap::new(); left.parcels.len()];
    for noted in notes {
        let Note::Delivered { stint, partition, from, records } = &noted.note else { continue };
        let turn = next.entry(*stint).or_insert(*from);
        for record in records {
            if record.offset.0 != *turn {
                return Err(format!("offset {} is delivered where {turn} comes\n    {}", record.offset, told(noted)));
            }
            *turn += 1;
            let lies = left.parcels[*partition].get(record.offset.0 as usize).map(|read| read.serial);
            if lies != Some(record.serial) {
                let text = format!("record {} is delivered at {}, where {lies:?} lies", record.serial, record.offset);
                return Err(format!("{text}\n    {}", told(noted)));
            }
            *delivered[*partition].entry(record.offset).or_default() += 1;
        }
    }
    let (mut records, mut deliveries) = (0, 0);
    for (partition, ((reads, committed), delivered)) in
        left.parcels.iter().zip(&left.committed).zip(&delivered).enumerate()
    {
        if *committed != reads.len() as i64 && (*committed, reads.len()) != (-1, 0) {
            let text = format!("the group ends at {committed} of partition {partition}, which ends at {}", reads.len());
            return Err(text);
        }
        if let Some(read) = reads.iter().find(|read| !delivered.contains_key(&read.offset)) {
            let text = format!("record {} at {} of partition {partition}", read.serial, read.offset);
            return Err(format!("{text} was delivered to nobody, and the group is past it"));
        }
        records += reads.len();
        deliveries += delivered.values().sum::<usize>();
    }
    Ok(format!("{records} records, {deliveries} deliveries: {} of them again", deliveries - records))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(who: u64, began_ms: u64, ended_ms: u64, note: Note) -> Noted {
        Noted { who, began: Duration::from_millis(began_ms), ended: Duration::from_millis(ended_ms), note }
    }

    fn joined(generation: i32) -> Note {
        Note::Joined { generation }
    }

    fn commit(generation: i32, offset: i64, by: u64, outcome: Committed) -> Note {
        Note::Committed { generation, partition: 0, offset, by: Serial(by), outcome }
    }

    fn look(offset: i64, by: Option<u64>) -> Note {
        Note::Looked { partition: 0, offset, by: by.map(Serial) }
    }

    fn read(offset: i64, serial: u64) -> Read {
        Read { offset: Offset(offset), serial: Serial(serial), of: None }
    }

    fn deliver(stint: u64, from: i64, serials: &[u64]) -> Note {
        let records = (from..).zip(serials).map(|(offset, serial)| read(offset, *serial)).collect();
        Note::Delivered { stint: Serial(stint), partition: 0, from, records }
    }

    fn why(notes: &[Noted]) -> String {
        let violation = check_offsets(notes, 1).unwrap_err();
        assert_eq!(violation.id, "GROUP-1");
        violation.to_string()
    }

    #[test]
    fn a_group_that_goes_on_where_the_last_generation_was_holds() {
        let notes = [
            at(1, 0, 1, joined(1)),
            at(1, 2, 3, look(-1, None)),
            at(1, 4, 5, commit(1, 3, 100, Committed::Yes)),
            // Nobody has heard of it, and it happened.
            at(1, 6, 9, commit(1, 5, 101, Committed::Unknown)),
            at(2, 20, 21, joined(2)),
            at(2, 22, 23, look(5, Some(101))),
            at(1, 24, 25, commit(1, 6, 102, Committed::Fenced)),
            at(2, 26, 28, commit(2, 7, 103, Committed::Yes)),
        ];
        assert_eq!(
            check_offsets(&notes, 1).unwrap(),
            "2 commits of 2 generations, 1 fenced, 1 with an unknown outcome, 2 offsets read"
        );
        // What overlaps has no order.
        let overlapping = [at(1, 0, 9, commit(1, 5, 100, Committed::Yes)), at(2, 8, 10, look(-1, None))];
        assert!(check_offsets(&overlapping, 1).is_ok());
    }

    #[test]
    fn an_offset_that_goes_back_is_found() {
        let first = at(1, 0, 1, commit(1, 3, 100, Committed::Yes));
        let second = at(1, 2, 3, commit(1, 9, 101, Committed::Yes));
        let late = at(2, 4, 5, look(3, Some(100)));
        assert!(why(&[first.clone(), second.clone(), late]).contains("goes back"));
        let lost = at(2, 4, 5, look(-1, None));
        assert!(why(&[first.clone(), lost]).contains("goes back"));
        let lower = at(2, 4, 5, commit(2, 4, 102, Committed::Yes));
        assert!(why(&[first, second, lower]).contains("goes back"));
    }

    #[test]
    fn a_commit_of_a_fenced_generation_is_found() {
        let told = [at(1, 0, 1, joined(1)), at(2, 2, 3, joined(2)), at(1, 4, 5, commit(1, 9, 100, Committed::Yes))];
        assert!(why(&told).contains("fenced generation"));
        // Refused, and seen all the same.
        let seen = [at(1, 4, 5, commit(1, 9, 100, Committed::Fenced)), at(2, 6, 7, look(9, Some(100)))];
        assert!(why(&seen).contains("fenced commit"));
        assert!(why(&[at(2, 6, 7, look(9, Some(100)))]).contains("nobody committed"));
        assert!(why(&[at(2, 6, 7, look(9, None))]).contains("nobody committed"));
        let other = [at(1, 4, 5, commit(1, 9, 100, Committed::Yes)), at(2, 6, 7, look(10, Some(100)))];
        assert!(why(&other).contains("not the commit's"));
    }

    #[test]
    fn a_record_that_the_group_has_passed_over_or_seen_otherwise_is_found() {
        let left = Left { parcels: vec![vec![read(0, 10), read(1, 11), read(2, 12)]], committed: vec![3] };
        let judged = |notes: &[Note]| {
            let notes: Vec<Noted> = notes.iter().map(|note| at(1, 0, 1, note.clone())).collect();
            check_delivery(&notes, &left)
        };
        let twice = [deliver(1, 0, &[10, 11]), deliver(2, 1, &[11]), deliver(2, 2, &[12])];
        assert_eq!(judged(&twice).unwrap(), "3 records, 4 deliveries: 1 of them again");
        assert!(judged(&[deliver(1, 0, &[10, 11])]).unwrap_err().contains("delivered to nobody"));
        assert!(judged(&[deliver(1, 0, &[10]), deliver(1, 2, &[12])]).unwrap_err().contains("where 1 comes"));
        assert!(judged(&[deliver(1, 0, &[10, 12])]).unwrap_err().contains("lies"));
        assert!(judged(&[deliver(1, 3, &[13])]).unwrap_err().contains("lies"));
        let short = Left { committed: vec![2], ..left.clone() };
        let all = [at(1, 0, 1, deliver(1, 0, &[10, 11, 12]))];
        assert!(check_delivery(&all, &short).unwrap_err().contains("ends at 2"));
    }
}
