//! PIPE-1: a function's cursor, state and outputs move together.
//!
//! A function that reads a partition, keeps state and writes outputs is a fold: whatever crashed, was retried or ran twice,
//! what is there must be what *the inputs below the cursor*, each taken once and in order, give. So the oracle folds the
//! inputs itself and compares. Where it differs, it says of which number of inputs the state, or the outputs, would have
//! been right; that tells at once which of the three has run ahead.

use std::fmt::Debug;

use buttress_core::{Offset, Violation, invariants::PIPE_1};

use crate::history::{LogContent, Serial};

/// What was found of one function on one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipeline<'a, S> {
    pub name: &'a str,
    /// The input partition from its offset 0 on.
    pub inputs: &'a LogContent,
    /// The next input; 0 where the group has none.
    pub cursor: Offset,
    pub state: S,
    /// What it wrote, in order. Nobody else writes there.
    pub outputs: &'a [Serial],
}

/// Folds the inputs with `step`, which changes the state and gives the outputs of one input.
///
/// # Errors
/// What does not belong together.
pub fn check<S: Clone + Debug + PartialEq>(
    found: &Pipeline<'_, S>,
    start: S,
    mut step: impl FnMut(&mut S, Offset, Serial) -> Vec<Serial>,
) -> Result<(), Violation> {
    let Pipeline { name, inputs, cursor, state, outputs } = found;
    let wrong = |what: String| PIPE_1.broken(format!("{name}: {what}"));
    if inputs.start != Offset(0) {
        return Err(wrong(format!("inputs below {} are gone, so nothing can be judged", inputs.start)));
    }
    let taken = usize::try_from(cursor.0).ok().filter(|taken| *taken <= inputs.records.len());
    let Some(taken) = taken else {
        return Err(wrong(format!("the cursor is at {cursor}, behind the {} inputs", inputs.records.len())));
    };
    // After each number of inputs: the state, and how many outputs there are.
    let mut states = vec![start];
    let mut counts = vec![0];
    let mut expected = Vec::new();
    for (offset, serial) in &inputs.records {
        let mut next = states.last().expect("there is the start").clone();
        expected.extend(step(&mut next, *offset, *serial));
        states.push(next);
        counts.push(expected.len());
    }
    let right = &expected[..counts[taken]];
    if *state == states[taken] && *outputs == right {
        return Ok(());
    }
    let mut what = format!("the cursor is at {cursor}");
    if *state != states[taken] {
        what += &match states.iter().position(|each| each == state) {
            Some(of) => format!(", but the state is that of {of} inputs"),
            None => format!(", but the state is {state:?}, not {:?}", states[taken]),
        };
    }
    if *outputs != right {
        let of = (0..counts.len()).find(|at| expected[..counts[*at]] == **outputs);
        what += &match of {
            Some(of) => format!(", but the outputs are those of {of} inputs"),
            None => {
                let at = outputs.iter().zip(right).take_while(|(a, b)| a == b).count();
                let show =
                    |serial: Option<&Serial>| serial.map_or("nothing".into(), |serial| format!("record {serial}"));
                format!(
                    ", but of {} outputs number {at} is {}, not {}",
                    outputs.len(),
                    show(outputs.get(at)),
                    show(right.get(at))
                )
            }
        };
    }
    Err(wrong(what))
}
