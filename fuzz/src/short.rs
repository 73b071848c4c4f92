//! The short run: the same inputs on every machine, and nothing but the toolchain needed.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
};

use anyhow::Result;

use crate::{Target, mutate::Mutator};

/// An input that made a target panic, made small, and what the panic said.
#[derive(Clone, Debug)]
pub struct Failure {
    pub input: Vec<u8>,
    pub says: String,
}

/// Attempts at making a failing input smaller. One costs as much as any other input.
const SHRINK_ATTEMPTS_MAX: u32 = 4_000;

/// What the last panic of this process said; panics of targets are expected here and go nowhere else.
static LAST: Mutex<String> = Mutex::new(String::new());

/// Takes panics quietly from here on.
pub fn quiet() {
    std::panic::set_hook(Box::new(|info| {
        let what = info.payload_as_str().unwrap_or("a panic without words");
        let place = info.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        if let Ok(mut last) = LAST.lock() {
            *last = format!("{what}{place}");
        }
    }));
}

/// What the panic says, where the input makes the target panic.
pub fn fails(target: &Target, input: &[u8]) -> Option<String> {
    let run = target.run;
    catch_unwind(AssertUnwindSafe(|| run(input)))
        .err()
        .map(|_| LAST.lock().map_or_else(|_| String::new(), |l| l.clone()))
}

/// Runs everything that the target starts from as it is, then `inputs` mutations of it. Stops at the first failure.
///
/// # Errors
/// A corpus that cannot be read.
pub fn run(target: &Target, seed: u64, inputs: u32) -> Result<Option<Failure>> {
    let start = target.inputs()?;
    let mut mutator = Mutator::new(seed, &start, target.words, target.bytes_max);
    let mutated = (0..inputs).map(|_| mutator.input());
    for input in start.iter().cloned().chain(mutated) {
        if let Some(says) = fails(target, &input) {
            return Ok(Some(shrink(target, Failure { input, says })));
        }
    }
    Ok(None)
}

/// Makes a failing input smaller: whole halves, then less and less, then plain zeros.
pub fn shrink(target: &Target, mut failure: Failure) -> Failure {
    let mut attempts = 0;
    let mut try_it = |candidate: Vec<u8>, failure: &mut Failure| {
        attempts += 1;
        if attempts > SHRINK_ATTEMPTS_MAX {
            return false;
        }
        let says = fails(target, &candidate);
        if let Some(says) = says {
            *failure = Failure { input: candidate, says };
            return true;
        }
        false
    };
    let mut size = failure.input.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < failure.input.len() {
            let mut less = failure.input.clone();
            less.drain(at..(at + size).min(failure.input.len()));
            if !try_it(less, &mut failure) {
                at += size;
            }
        }
        size /= 2;
    }
    for at in 0..failure.input.len() {
        if failure.input[at] != 0 {
            let mut plain = failure.input.clone();
            plain[at] = 0;
            try_it(plain, &mut failure);
        }
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picky(data: &[u8]) {
        assert!(!data.windows(2).any(|pair| pair == b"!\x07"), "found it");
    }

    #[test]
    fn a_planted_failure_is_found_and_made_small() {
        let target = Target {
            name: "planted",
            reads: "nothing",
            run: picky,
            seeds: || vec![b"a long beginning! and an end".to_vec()],
            words: &["\x07"],
            short_inputs: 20_000,
            bytes_max: 100,
        };
        let failure = run(&target, 1, 20_000).unwrap().expect("the mutator finds it");
        assert_eq!(failure.input, b"!\x07");
    }
}
