//! Which of a lane's troubles go into the log.
//!
//! A lane tries for as long as the link is down, and what it is told changes from one attempt to the next: nobody is there,
//! then nobody answers. A line for each says nothing new, and buries what does. So a code is told when it comes up, and again
//! only after [`AGAIN_MS`]; and that the lane gets on is told once, if anything was told before. `uplink status` always has
//! the latest.

use std::collections::BTreeMap;

use buttress_core::{Code, TimeMs};

/// A trouble that stays is told this often: ten minutes.
const AGAIN_MS: u64 = 600_000;

#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Trouble,
    GetsOn,
}

/// What was told of one lane.
#[derive(Default)]
pub struct Telling {
    /// At most one per code.
    told: BTreeMap<Code, TimeMs>,
    /// A trouble was told, and not yet that it is over.
    open: bool,
}

impl Telling {
    /// What is to be told of a lane that is as it is now.
    pub fn next(&mut self, now: TimeMs, trouble: Option<Code>) -> Option<Line> {
        let Some(code) = trouble else { return std::mem::take(&mut self.open).then_some(Line::GetsOn) };
        if self.told.get(&code).is_some_and(|at| now.0 < at.0.saturating_add(AGAIN_MS)) {
            return None;
        }
        self.told.insert(code, now);
        self.open = true;
        Some(Line::Trouble)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_flips_is_told_once_and_again_after_ten_minutes() {
        let mut telling = Telling::default();
        let mut lines = 0;
        for attempt in 0..60 {
            let code = if attempt % 2 == 0 { Code::UNREACHABLE } else { Code::TIMEOUT };
            lines += usize::from(telling.next(TimeMs(attempt * 10_000), Some(code)).is_some());
        }
        assert_eq!(lines, 2);
        assert_eq!(telling.next(TimeMs(AGAIN_MS), Some(Code::UNREACHABLE)), Some(Line::Trouble));
        assert_eq!(telling.next(TimeMs(AGAIN_MS), Some(Code::CREDENTIALS)), Some(Line::Trouble), "something new");
    }

    #[test]
    fn a_link_that_comes_and_goes_is_told_once() {
        let mut telling = Telling::default();
        assert_eq!(telling.next(TimeMs(0), None), None, "there was nothing wrong");
        assert_eq!(telling.next(TimeMs(1), Some(Code::UNREACHABLE)), Some(Line::Trouble));
        assert_eq!(telling.next(TimeMs(2), None), Some(Line::GetsOn));
        for second in 1..100 {
            assert_eq!(telling.next(TimeMs(second * 1000), Some(Code::UNREACHABLE)), None);
            assert_eq!(telling.next(TimeMs(second * 1000 + 500), None), None);
        }
    }
}
