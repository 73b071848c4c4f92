//! Random worlds by seed. A failure prints the command that replays it.

use crate::world::{Cruelty, Rng, Stats, World};

/// Worlds of every run of the suite.
const SEEDS: u64 = 150;

struct Replay<'a> {
    seed: u64,
    world: &'a World,
}

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "{}\nworld {} failed with {:?}; replay it with\n    \
                 BUTTRESS_SEED={} cargo test -p buttress-consensus --test it chaos::one_seed -- --nocapture",
                self.world.recent(),
                self.seed,
                self.world.drawn,
                self.seed
            );
        }
    }
}

fn play(seed: u64, trace: bool) -> (u64, Stats, Option<String>) {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let cruelty = Cruelty::draw(&mut rng);
    let (voters, spares) = if seed.is_multiple_of(2) { (3, 2) } else { (5, 0) };
    let mut world = World::new(seed, voters, spares, cruelty);
    if trace {
        world.full_trace = Some(String::new());
    }
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.live(1500)));
    if let Err(panic) = result {
        if let Some(trace) = &world.full_trace {
            eprintln!("{trace}");
        }
        let _guard = Replay { seed, world: &world };
        std::panic::resume_unwind(panic);
    }
    (world.trace_hash, world.stats, world.full_trace.take())
}

#[test]
fn many_seeds() {
    let from = 1;
    let mut total = Stats::default();
    for seed in from..from + SEEDS {
        let (_, stats, _) = play(seed, false);
        total.acked += stats.acked;
        total.reads += stats.reads;
        total.installs += stats.installs;
        total.crashes += stats.crashes;
        total.elections += stats.elections;
        total.changes += stats.changes;
        total.lost += stats.lost;
        total.fetches.0 += stats.fetches.0;
        total.fetches.1 += stats.fetches.1;
    }
    eprintln!("{total:?}");
    // A world in which nothing happens proves nothing.
    assert!(total.acked > 40 * SEEDS, "{total:?}");
    assert!(total.reads > 10 * SEEDS, "{total:?}");
    assert!(total.installs > SEEDS / 2, "{total:?}");
    assert!(total.crashes > SEEDS, "{total:?}");
    assert!(total.changes > SEEDS / 4, "{total:?}");
}

/// `BUTTRESS_SEED=n` replays one world, with its whole trace where it fails.
#[test]
fn one_seed() {
    let seed = std::env::var("BUTTRESS_SEED").ok().map(|seed| seed.parse().expect("BUTTRESS_SEED is a number"));
    let (_, stats, trace) = play(seed.unwrap_or(7), seed.is_some());
    if seed.is_some() {
        eprintln!("{}\n{stats:?}", trace.unwrap_or_default());
    }
}

#[test]
fn a_seed_gives_the_same_trace_twice() {
    for seed in [3, 10, 21, 44] {
        assert_eq!(play(seed, true), play(seed, true), "seed {seed}");
    }
}
