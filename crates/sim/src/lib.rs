//! The seeded world: the production replica, state machine and write-ahead log, on a simulated disk, network and clock.
//!
//! The problem: a replicated log is wrong in ways that no test written by hand will find, and a failure that cannot be
//! repeated cannot be understood. So everything that a node reads from outside (its disk, its peers, its clocks, its
//! chance) is simulated, from one seed, in one thread. A seed is a history: [`run_seed`] lets it happen, checks the
//! invariants of [`buttress_core::invariants`] at every step, and gives the same hash however often it is run.
//!
//! What runs inside is what ships: [`Replica`](buttress_consensus::Replica),
//! [`Machine`](buttress_state::Machine), [`Wal`](buttress_wal::Wal) and its recovery. The host loop around them is this
//! crate's own, step by step like the one of a production node, because that one lives on threads and sockets. The store
//! of records and rows on disk is not simulated: a checkpoint is atomic here.
//!
//! A seed goes through three phases: faults, healing, and then everything must converge within
//! [`CONVERGE_WITHIN`](schedule::CONVERGE_WITHIN) of virtual time.
//!
//! The binary `buttress-sim` (`cargo xtask sim`) runs many seeds, replays one with its event log, and shrinks a failure.

pub mod disk;
pub mod machine;
pub mod minimise;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod rng;
pub mod schedule;
pub mod trace;
pub mod workload;
pub mod world;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};

pub use trace::Lines;
pub use world::{Counts, Failure, World};

/// Virtual time in microseconds.
pub type Us = u64;
pub const MS: Us = 1_000;
pub const SEC: Us = 1_000_000;

/// How a seed is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub lines: Lines,
    /// Numbers of faults to leave out.
    pub without: BTreeSet<usize>,
    /// Faults end and clients stop then, earlier than drawn.
    pub heal_at: Option<Us>,
    /// Clients start no operation after so many.
    pub ops_max: Option<u64>,
    /// Only workloads of these names, where any is given.
    pub workloads: Vec<String>,
}

/// What became of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    pub failure: Option<Failure>,
    pub trace_hash: u64,
    pub virtual_us: Us,
    pub counts: Counts,
    pub lines: Vec<String>,
}

thread_local! {
    /// The last panic of this thread, while it runs a seed.
    static PANIC: RefCell<Option<Option<String>>> = const { RefCell::new(None) };
}

/// A panic in a seed belongs to its outcome, not to the terminal.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let mine = PANIC.with(|panic| {
                let mut panic = panic.borrow_mut();
                let mine = panic.is_some();
                if mine {
                    *panic = Some(Some(info.to_string()));
                }
                mine
            });
            if !mine {
                before(info);
            }
        }));
    });
}

/// Runs one seed. Never panics; a panic inside is a failure with the id `PANIC`.
pub fn run_seed(seed: u64, options: &Options) -> Outcome {
    catch_panics();
    PANIC.with(|panic| *panic.borrow_mut() = Some(None));
    let mut world = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        world.insert(World::new(seed, options)).run();
    }));
    let panicked = PANIC.with(|panic| panic.borrow_mut().take()).flatten();
    let mut failure = world.as_ref().and_then(|world| world.failure.clone());
    let at_us = world.as_ref().map_or(0, World::now_us);
    if result.is_err() {
        let found = panicked.unwrap_or_else(|| "a panic without a message".into());
        failure = Some(Failure { id: "PANIC".into(), found, at_us });
    }
    Outcome {
        seed,
        failure,
        trace_hash: world.as_ref().map_or(0, |world| world.trace.hash()),
        virtual_us: at_us,
        counts: world.as_ref().map(|world| world.counts.clone()).unwrap_or_default(),
        lines: world.as_mut().map(|world| world.trace.take_lines()).unwrap_or_default(),
    }
}
