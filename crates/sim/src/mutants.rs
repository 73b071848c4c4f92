//! Whether the simulator would notice: every [`Mutant`] of the production code, until a seed catches it.
//!
//! A mutant is run from seed 1 on. Over a fixed set of seeds it is counted how many catch it, and by which invariant; where
//! none does, further seeds follow up to a limit. The same fixed set runs without any mutant first, and a catch counts
//! only where the seed passes without the mutant: one that fails then, too, has found a bug instead.
//!
//! A mutant that survives, or is caught by luck only, names what is missing: a fault that is never injected where it
//! hurts, or a promise that nobody checks.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use buttress_core::{Mutant, mutant};

use crate::{Options, run_seed};

/// What is run.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// Over so many seeds it is counted how many catch a mutant.
    pub fixed: u64,
    /// A mutant that no seed up to this one has caught survives.
    pub seeds_max: u64,
    pub jobs: usize,
    pub mutants: Vec<Mutant>,
    /// A mutant's first catch is enough.
    pub first_only: bool,
}

/// What became of one mutant, or of the code as it is.
#[derive(Clone, Debug)]
pub struct Hunted {
    pub mutant: Option<Mutant>,
    /// The smallest seed that caught it, the invariant's id, and what was found.
    pub first: Option<(u64, String, String)>,
    pub seeds: u64,
    /// Of the fixed set.
    pub caught: u64,
    /// How often which invariant caught it, in the fixed set.
    pub ids: BTreeMap<String, u64>,
    pub took: Duration,
}

/// Runs the code as it is and then each mutant, handing out each result as it comes.
pub fn hunt(hunt: &Hunt, mut each: impl FnMut(&Hunted)) -> Vec<Hunted> {
    let mut all = Vec::new();
    for mutant in [None].into_iter().chain(hunt.mutants.iter().copied().map(Some)) {
        mutant::set(mutant);
        let hunted = one(hunt, mutant);
        mutant::set(None);
        each(&hunted);
        all.push(hunted);
    }
    all
}

fn one(hunt: &Hunt, mutant: Option<Mutant>) -> Hunted {
    let started = Instant::now();
    let mut hunted = Hunted { mutant, first: None, seeds: 0, caught: 0, ids: BTreeMap::new(), took: Duration::ZERO };
    // One batch is as many seeds as run at once, so that the smallest catching seed is known whatever the timing.
    let mut next = 1;
    loop {
        let in_fixed = next <= hunt.fixed && !(hunt.first_only && mutant.is_some());
        let end = if in_fixed { hunt.fixed } else { hunt.seeds_max };
        let enough = hunted.first.is_some() && !in_fixed;
        if next > end || enough || (mutant.is_none() && !in_fixed) {
            break;
        }
        let upto = end.min(next + 4 * hunt.jobs as u64 - 1);
        for (seed, failure) in batch(next, upto, hunt.jobs) {
            hunted.seeds = seed;
            let Some((id, found)) = failure else { continue };
            if mutant.is_some() && hunted.first.is_none() && fails_anyway(seed, mutant) {
                continue;
            }
            if seed <= hunt.fixed {
                hunted.caught += 1;
                *hunted.ids.entry(id.clone()).or_default() += 1;
            }
            if hunted.first.is_none() {
                hunted.first = Some((seed, id, found));
            }
        }
        next = upto + 1;
    }
    hunted.took = started.elapsed();
    hunted
}

/// Whether the seed fails without the mutant, which is set again afterwards.
fn fails_anyway(seed: u64, mutant: Option<Mutant>) -> bool {
    mutant::set(None);
    let fails = run_seed(seed, &Options::default()).failure.is_some();
    mutant::set(mutant);
    fails
}

type Found = Option<(String, String)>;

fn batch(from: u64, upto: u64, jobs: usize) -> BTreeMap<u64, Found> {
    let next = AtomicU64::new(from);
    let all = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed > upto {
                        return;
                    }
                    let failure = run_seed(seed, &Options::default()).failure;
                    let failure = failure.map(|failure| (failure.id.to_string(), failure.found));
                    all.lock().expect("nobody panics with the results").insert(seed, failure);
                }
            });
        }
    });
    all.into_inner().expect("nobody panicked")
}

/// Whether every mutant was caught, and nothing where there was none.
pub fn passed(all: &[Hunted]) -> bool {
    all.iter().all(|hunted| hunted.mutant.is_some() == hunted.first.is_some())
}

pub const TABLE_HEAD: &str = "mutant                  first seed  caught of fixed  by";

/// A line of the table.
pub fn line(hunted: &Hunted, fixed: u64) -> String {
    let name = hunted.mutant.map_or("(none)", Mutant::name);
    let mut line = match (&hunted.first, hunted.mutant) {
        (Some((seed, ..)), _) => format!("{name:<24}{seed:>10}"),
        (None, None) => format!("{name:<24}{:>10}", "-"),
        (None, Some(_)) => format!("{name:<24}{:>10}", "SURVIVES"),
    };
    let of = hunted.seeds.min(fixed);
    let _ = write!(line, "  {:>8} of {of:<4}", hunted.caught);
    let mut ids: Vec<(&String, &u64)> = hunted.ids.iter().collect();
    ids.sort_by(|a, b| b.1.cmp(a.1));
    for (id, times) in &ids {
        let _ = write!(line, "  {id} {times}");
    }
    if let Some((_, id, _)) = &hunted.first
        && ids.is_empty()
    {
        let _ = write!(line, "  {id}");
    }
    let _ = write!(line, "  ({:.1} s)", hunted.took.as_secs_f64());
    line
}

pub fn json(all: &[Hunted], fixed: u64) -> String {
    let text = |text: &str| {
        let mut quoted = String::from("\"");
        for c in text.chars() {
            match c {
                '"' | '\\' => quoted.extend(['\\', c]),
                c if (c as u32) < 32 => drop(write!(quoted, "\\u{:04x}", c as u32)),
                c => quoted.push(c),
            }
        }
        quoted + "\""
    };
    let mutants: Vec<String> = all
        .iter()
        .map(|hunted| {
            let first = hunted.first.as_ref().map_or("null".to_owned(), |(seed, id, found)| {
                format!("{{\"seed\": {seed}, \"id\": {}, \"found\": {}}}", text(id), text(found))
            });
            let ids: Vec<String> = hunted.ids.iter().map(|(id, times)| format!("{}: {times}", text(id))).collect();
            format!(
                "{{\"mutant\": {}, \"says\": {}, \"first\": {first}, \"seeds\": {}, \"caught_of_fixed\": {}, \"ids\": {{{}}}}}",
                hunted.mutant.map_or("null".to_owned(), |mutant| text(mutant.name())),
                hunted.mutant.map_or("null".to_owned(), |mutant| text(mutant.says())),
                hunted.seeds,
                hunted.caught,
                ids.join(", ")
            )
        })
        .collect();
    format!("{{\"ok\": {}, \"fixed\": {fixed}, \"mutants\": [{}]}}", passed(all), mutants.join(", "))
}
