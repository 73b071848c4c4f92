//! Shrinks a failing seed: fewer faults, fewer operations, an earlier end.
//!
//! Delta debugging over the schedule: drop ever smaller pieces of it for as long as the same invariant still breaks. The
//! world draws other delays when a fault is missing, so this finds a smaller history that fails alike, not a part of the
//! same one.

use std::collections::BTreeSet;

use crate::{Failure, Options, run_seed, schedule::Schedule};

/// What is left of a failing seed.
#[derive(Clone, Debug)]
pub struct Minimal {
    pub options: Options,
    pub failure: Failure,
    pub runs: u64,
}

/// Shrinks `seed`, run with `options`; `None` if it does not fail. At most about `runs_max` runs.
pub fn minimise(seed: u64, options: &Options, runs_max: u64, mut progress: impl FnMut(&str)) -> Option<Minimal> {
    let options = Options { lines: crate::Lines::None, ..options.clone() };
    let first = run_seed(seed, &options);
    let failure = first.failure?;
    let mut best = Minimal { options, failure, runs: 1 };
    let all = Schedule::draw(seed).faults.len();
    let kept = |options: &Options| (0..all).filter(|n| !options.without.contains(n)).collect::<Vec<usize>>();

    // Nothing of the schedule at all?
    let none = Options { without: (0..all).collect(), ..best.options.clone() };
    if try_it(seed, &none, &mut best) {
        progress("fails without any fault");
    }
    // Faults after the failure cannot matter; then halves, quarters, … of what is left.
    let after: BTreeSet<usize> = Schedule::draw(seed)
        .faults
        .iter()
        .enumerate()
        .filter(|(_, (at, _))| *at > best.failure.at_us)
        .map(|(number, _)| number)
        .collect();
    let without = best.options.without.union(&after).copied().collect();
    try_it(seed, &Options { without, ..best.options.clone() }, &mut best);
    let mut piece = kept(&best.options).len().div_ceil(2);
    while piece >= 1 && best.runs < runs_max {
        let mut at = 0;
        let mut dropped = false;
        loop {
            let left = kept(&best.options);
            if at >= left.len() || best.runs >= runs_max {
                break;
            }
            let drop = &left[at..(at + piece).min(left.len())];
            let without = best.options.without.iter().chain(drop).copied().collect();
            if try_it(seed, &Options { without, ..best.options.clone() }, &mut best) {
                dropped = true;
                progress(&format!("{} faults left", kept(&best.options).len()));
            } else {
                at += piece;
            }
        }
        if piece == 1 && !dropped {
            break;
        }
        piece = if piece == 1 { 1 } else { piece / 2 };
    }
    // Fewer operations.
    let mut low = 0;
    let mut high = best.options.ops_max.unwrap_or(4096);
    while low < high && best.runs < runs_max {
        let middle = low + (high - low) / 2;
        if try_it(seed, &Options { ops_max: Some(middle), ..best.options.clone() }, &mut best) {
            progress(&format!("at most {middle} operations"));
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    // An earlier end.
    let heal = best.failure.at_us.min(Schedule::draw(seed).settings.faults_until);
    try_it(seed, &Options { heal_at: Some(heal), ..best.options.clone() }, &mut best);
    Some(best)
}

fn try_it(seed: u64, options: &Options, best: &mut Minimal) -> bool {
    best.runs += 1;
    match run_seed(seed, options).failure {
        Some(failure) if failure.id == best.failure.id => {
            best.options = options.clone();
            best.failure = failure;
            true
        }
        _ => false,
    }
}
