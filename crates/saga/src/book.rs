//! What a service keeps of each key, so that it does its part once: whatever is repeated, late or out of order.
//!
//! | row | asked to act | asked to undo |
//! |---|---|---|
//! | none | done | void |
//! | done | done already | undone |
//! | undone, void | refused | undone already |
//!
//! The row `void` is what makes a late call harmless: a request may lie in a queue for longer than its caller waits, and
//! arrive after the order to undo it. The refusal of a service is kept as `void` too, so that it stays at its word.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Row {
    Done,
    Undone,
    /// Never done, and never will be.
    Void,
}

/// What follows for the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The row becomes this, in the entry that holds the effect.
    Becomes(Row),
    /// It is so already: the first answer again.
    Already,
    /// It was undone, or refused.
    Refused,
}

pub fn act(row: Option<Row>) -> Answer {
    match row {
        None => Answer::Becomes(Row::Done),
        Some(Row::Done) => Answer::Already,
        Some(Row::Undone | Row::Void) => Answer::Refused,
    }
}

pub fn undo(row: Option<Row>) -> Answer {
    match row {
        None => Answer::Becomes(Row::Void),
        Some(Row::Done) => Answer::Becomes(Row::Undone),
        Some(Row::Undone | Row::Void) => Answer::Already,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays calls to one key and tells how often the effect came and went.
    fn play(calls: &[bool]) -> (u32, u32, Option<Row>) {
        let (mut acted, mut undone, mut row) = (0, 0, None);
        for is_act in calls {
            if let Answer::Becomes(next) = if *is_act { act(row) } else { undo(row) } {
                acted += u32::from(next == Row::Done);
                undone += u32::from(next == Row::Undone);
                row = Some(next);
            }
        }
        (acted, undone, row)
    }

    #[test]
    fn in_every_order_of_repeated_calls_the_effect_comes_once_and_an_undoing_is_the_last_word() {
        for calls in 0..1u32 << 6 {
            let calls: Vec<bool> = (0..6).map(|bit| calls >> bit & 1 == 1).collect();
            let (acted, undone, row) = play(&calls);
            assert!(acted <= 1 && undone <= acted, "{calls:?}");
            let undo_was_asked = calls.contains(&false);
            let effect_is_there = acted > undone;
            assert_eq!(effect_is_there, !undo_was_asked, "{calls:?}");
            assert_eq!(effect_is_there, row == Some(Row::Done), "{calls:?}");
        }
    }
}
