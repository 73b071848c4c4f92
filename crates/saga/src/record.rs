//! The journal: what has happened to a saga, one record a line. It is all that a coordinator knows; whatever else it holds
//! in memory can be lost at any time.

use buttress_core::invariants::{SAGA_1, Violation};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Record {
    /// Written by whoever wants the saga, in the entry that holds the reason for it.
    Started {
        saga: String,
        definition: String,
        input: serde_json::Value,
        at_ms: u64,
    },
    /// The step may be sent from now on, so its undoing is registered.
    StepScheduled {
        step: String,
        attempt: u32,
        not_before_ms: u64,
        at_ms: u64,
    },
    StepDone {
        step: String,
        at_ms: u64,
    },
    /// The step will not be done; what was begun is undone from here on.
    Compensating {
        step: String,
        effect: Effect,
        why: String,
        at_ms: u64,
    },
    CompScheduled {
        step: String,
        attempt: u32,
        not_before_ms: u64,
        at_ms: u64,
    },
    CompDone {
        step: String,
        at_ms: u64,
    },
    Ended {
        outcome: Outcome,
        at_ms: u64,
    },
}

/// What is known of the effect of a step that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// The service said no, and that it will stay at that.
    None,
    /// Nobody knows, so it is undone.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Every step was done.
    Completed,
    /// Whatever was begun was undone.
    Compensated,
    /// Undoing was given up: a person must look.
    Stuck,
}

impl Outcome {
    pub fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Compensated => "compensated",
            Self::Stuck => "stuck",
        }
    }
}

/// The journal as it is stored.
pub fn encode(records: &[Record]) -> String {
    records.iter().map(|record| serde_json::to_string(record).expect("a record is plain data") + "\n").collect()
}

/// # Errors
/// SAGA-1 where the text is no journal.
pub fn decode(text: &[u8]) -> Result<Vec<Record>, Violation> {
    let lines = text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    lines
        .map(|(at, line)| {
            serde_json::from_slice(line)
                .map_err(|error| SAGA_1.broken(format!("line {} of the journal is no record: {error}", at + 1)))
        })
        .collect()
}
