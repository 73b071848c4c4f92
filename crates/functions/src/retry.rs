//! What to do after a call failed: try again, try with fewer records, or set a record aside.
//!
//! The problem: a function may fail because of one record (it always will), because of the moment (it would not again),
//! or because it is broken (everything fails). The records may not be lost, the partition may not stand still for one
//! bad record, and a broken function may not eat the processor.
//!
//! The design. A failed batch is tried again [`attempts`](Retry::new) times with exponential back-off. Then a record of
//! it is suspect, and the batch is bisected: while the suspect range is not passed, a failure halves the batch at once,
//! and a failing batch of one record is dead-lettered. After successes the batch size doubles back. Bisecting needs no
//! back-off, since it ends after `log2(records)` calls; but dead letters in a row, without a success between them, are
//! the mark of a broken function and back off again, so that it costs one call per partition in ten seconds.
//!
//! What the function gave but cannot be committed (not granted, too large) would come out the same again, so it is
//! bisected without further attempts. A failure of the node (no leader, state cannot be read) says nothing about the
//! records: it backs off and never bisects.

use buttress_core::Offset;

pub const BACKOFF_MIN_MS: u64 = 50;
pub const BACKOFF_MAX_MS: u64 = 10_000;

/// Exponential from [`BACKOFF_MIN_MS`] to [`BACKOFF_MAX_MS`]: `n` is 0 after the first failure.
pub fn backoff_ms(n: u32) -> u64 {
    (BACKOFF_MIN_MS << n.min(16)).min(BACKOFF_MAX_MS)
}

/// How a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The guest trapped, ran out of time or memory, or answered an error.
    Guest,
    /// What the guest gave cannot be committed.
    Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Call again with up to [`Retry::limit`] records after the pause.
    Again { after_ms: u64 },
    /// Set the record aside, then pause.
    DeadLetter { after_ms: u64 },
}

#[derive(Debug)]
pub struct Retry {
    attempts_max: u32,
    records_max: usize,
    /// Most records of the next call.
    limit: usize,
    /// Failures of the batch that begins at the cursor.
    attempts: u32,
    /// Somewhere before this offset a record fails.
    suspect_until: Option<Offset>,
    dead_letters_in_a_row: u32,
    node_failures_in_a_row: u32,
}

impl Retry {
    pub fn new(attempts_max: u32, records_max: usize) -> Self {
        assert!(attempts_max > 0 && records_max > 0, "limits were checked at deploy");
        Self {
            attempts_max,
            records_max,
            limit: records_max,
            attempts: 0,
            suspect_until: None,
            dead_letters_in_a_row: 0,
            node_failures_in_a_row: 0,
        }
    }

    /// A new version has its own settings, and the suspicion was against the old one.
    pub fn configure(&mut self, attempts_max: u32, records_max: usize) {
        *self = Self { node_failures_in_a_row: self.node_failures_in_a_row, ..Self::new(attempts_max, records_max) };
    }

    /// Most records of the next call, which begins at `from`. It never reaches beyond the suspect range, so that a
    /// failure inside it is known to be one.
    pub fn limit(&self, from: Offset) -> usize {
        match self.suspect_until {
            Some(until) if until > from => self.limit.min((until.0 - from.0) as usize),
            _ => self.limit,
        }
    }

    /// Nothing is suspect and batches have their full size.
    pub fn is_calm(&self) -> bool {
        self.suspect_until.is_none() && self.limit == self.records_max
    }

    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A call with `records` records up to before `to` failed.
    pub fn failed(&mut self, records: usize, to: Offset, failure: Failure) -> Next {
        assert!(records > 0, "a call has records");
        self.attempts += 1;
        let suspect = self.suspect_until.is_some_and(|until| to <= until);
        if !suspect {
            if failure == Failure::Guest && self.attempts < self.attempts_max {
                return Next::Again { after_ms: backoff_ms(self.attempts - 1) };
            }
            self.suspect_until = Some(to);
        }
        if records == 1 {
            let after_ms = match self.dead_letters_in_a_row {
                0 => 0,
                n => backoff_ms(n - 1),
            };
            return Next::DeadLetter { after_ms };
        }
        self.limit = records / 2;
        Next::Again { after_ms: 0 }
    }

    /// Everything before `to` is committed.
    pub fn committed(&mut self, to: Offset) {
        self.attempts = 0;
        self.dead_letters_in_a_row = 0;
        self.node_failures_in_a_row = 0;
        self.limit = (self.limit * 2).min(self.records_max);
        self.passed(to);
    }

    /// A dead letter was committed.
    pub fn dead_lettered(&mut self, to: Offset) {
        self.attempts = 0;
        self.dead_letters_in_a_row = self.dead_letters_in_a_row.saturating_add(1);
        self.node_failures_in_a_row = 0;
        self.passed(to);
        if self.dead_letters_in_a_row > 1 {
            // Probably the next record fails as well: go on with the suspicion that it does.
            self.suspect_until = Some(self.suspect_until.unwrap_or(Offset(0)).max(Offset(to.0 + 1)));
        }
    }

    fn passed(&mut self, to: Offset) {
        if self.suspect_until.is_some_and(|until| until <= to) {
            self.suspect_until = None;
        }
    }

    /// The node could not do its part; how long to pause.
    pub fn node_failed(&mut self) -> u64 {
        let after_ms = backoff_ms(self.node_failures_in_a_row);
        self.node_failures_in_a_row = self.node_failures_in_a_row.saturating_add(1);
        after_ms
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// Runs a function that fails on `poison` over `0..end`, and tells what happens.
    fn check(end: i64, records_max: usize, poison: &[i64], failure: Failure, expect: Expect) {
        let mut retry = Retry::new(3, records_max);
        let mut cursor = 0;
        let mut transcript = String::new();
        let mut set_aside = Vec::new();
        while cursor < end {
            let records = retry.limit(Offset(cursor)).min((end - cursor) as usize);
            let to = cursor + records as i64;
            transcript += &format!("[{cursor},{to}) ");
            if (cursor..to).any(|offset| poison.contains(&offset)) {
                match retry.failed(records, Offset(to), failure) {
                    Next::Again { after_ms } => transcript += &format!("fails, again after {after_ms}\n"),
                    Next::DeadLetter { after_ms } => {
                        transcript += &format!("fails, dead letter, pause {after_ms}\n");
                        set_aside.push(cursor);
                        retry.dead_lettered(Offset(to));
                        cursor = to;
                    }
                }
            } else {
                transcript += "ok\n";
                retry.committed(Offset(to));
                cursor = to;
            }
        }
        expect.assert_eq(&transcript);
        assert_eq!(set_aside, poison, "exactly the poison is set aside");
    }

    #[test]
    fn one_poison_record_is_isolated() {
        check(
            24,
            8,
            &[5],
            Failure::Guest,
            expect![[r#"
            [0,8) fails, again after 50
            [0,8) fails, again after 100
            [0,8) fails, again after 0
            [0,4) ok
            [4,8) fails, again after 0
            [4,6) fails, again after 0
            [4,5) ok
            [5,7) fails, again after 0
            [5,6) fails, dead letter, pause 0
            [6,7) ok
            [7,8) ok
            [8,12) ok
            [12,20) ok
            [20,24) ok
        "#]],
        );
    }

    #[test]
    fn a_broken_function_slows_down() {
        check(
            12,
            4,
            &(0..12).collect::<Vec<_>>(),
            Failure::Guest,
            expect![[r#"
            [0,4) fails, again after 50
            [0,4) fails, again after 100
            [0,4) fails, again after 0
            [0,2) fails, again after 0
            [0,1) fails, dead letter, pause 0
            [1,2) fails, dead letter, pause 50
            [2,3) fails, dead letter, pause 100
            [3,4) fails, dead letter, pause 200
            [4,5) fails, dead letter, pause 400
            [5,6) fails, dead letter, pause 800
            [6,7) fails, dead letter, pause 1600
            [7,8) fails, dead letter, pause 3200
            [8,9) fails, dead letter, pause 6400
            [9,10) fails, dead letter, pause 10000
            [10,11) fails, dead letter, pause 10000
            [11,12) fails, dead letter, pause 10000
        "#]],
        );
    }

    #[test]
    fn what_would_fail_again_is_not_tried_again() {
        check(
            8,
            8,
            &[0],
            Failure::Outcome,
            expect![[r#"
            [0,8) fails, again after 0
            [0,4) fails, again after 0
            [0,2) fails, again after 0
            [0,1) fails, dead letter, pause 0
            [1,2) ok
            [2,4) ok
            [4,8) ok
        "#]],
        );
    }
}
