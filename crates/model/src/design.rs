//! What a model is, and how it is explored.

use std::{
    fmt::Debug,
    hash::{Hash, Hasher},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use buttress_core::invariants::{Invariant, Violation};
use stateright::{Checker, HasDiscoveries, Model, Property};

/// A model: where it starts, what can happen, and what that leads to.
pub trait Design: Send + Sync + 'static {
    type State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static;
    type Step: Clone + Debug + PartialEq + Send + Sync + 'static;

    const NAME: &'static str;
    /// What is checked in every state.
    const CHECKS: &'static [Invariant];
    /// What must be seen at least once, so that nothing holds for want of a chance to break it.
    const WITNESSES: &'static [&'static str];

    /// The bounds in words.
    fn bounds(&self) -> String;
    fn start(&self) -> Self::State;
    fn steps(&self, state: &Self::State, steps: &mut Vec<Self::Step>);

    /// Takes a step.
    ///
    /// # Errors
    /// The invariant that the step shows not to hold.
    fn take(&self, state: &Self::State, step: &Self::Step, seen: &Seen) -> Result<Self::State, Violation>;
}

/// The witnesses seen so far, by their places in [`Design::WITNESSES`].
#[derive(Debug, Default)]
pub struct Seen(AtomicU64);

impl Seen {
    pub fn mark(&self, witness: usize) {
        self.0.fetch_or(1 << witness, Relaxed);
    }

    fn missing(&self, names: &'static [&'static str]) -> Vec<&'static str> {
        let bits = self.0.load(Relaxed);
        names.iter().enumerate().filter(|(at, _)| bits & (1 << at) == 0).map(|(_, name)| *name).collect()
    }
}

/// What exploring a model showed.
#[derive(Clone, Debug, PartialEq)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Steps taken, those into known states included.
    pub steps: usize,
    /// Steps from the start to the farthest state.
    pub depth: usize,
    pub seconds: f64,
    /// The shortest way to a violation.
    pub broken: Option<Broken>,
    /// Witnesses never seen; of a model that was left at its first violation this says nothing.
    pub missing: Vec<&'static str>,
}

/// A violation and a shortest sequence of steps that leads to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Broken {
    pub violation: Violation,
    pub steps: Vec<String>,
}

impl Explored {
    /// Everything held, and everything that was to be seen was seen.
    pub fn ok(&self) -> bool {
        self.broken.is_none() && self.missing.is_empty()
    }
}

#[derive(Clone, Debug)]
enum Place<S> {
    Fine(S),
    Broken(Violation),
}

impl<S: Hash> Hash for Place<S> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        match self {
            Self::Fine(state) => state.hash(hasher),
            Self::Broken(violation) => (violation.id, &violation.found).hash(hasher),
        }
    }
}

impl<S: PartialEq> PartialEq for Place<S> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fine(a), Self::Fine(b)) => a == b,
            (Self::Broken(a), Self::Broken(b)) => a == b,
            _ => false,
        }
    }
}

/// A design as `stateright` takes it.
struct Adapter<D> {
    design: D,
    seen: Seen,
}

const HOLDS: &str = "every invariant holds";

impl<D: Design> Model for Adapter<D> {
    type State = Place<D::State>;
    type Action = D::Step;

    fn init_states(&self) -> Vec<Self::State> {
        vec![Place::Fine(self.design.start())]
    }

    fn actions(&self, state: &Self::State, actions: &mut Vec<Self::Action>) {
        if let Place::Fine(state) = state {
            self.design.steps(state, actions);
        }
    }

    fn next_state(&self, state: &Self::State, step: Self::Action) -> Option<Self::State> {
        let Place::Fine(state) = state else { return None };
        Some(match self.design.take(state, &step, &self.seen) {
            Ok(state) => Place::Fine(state),
            Err(violation) => Place::Broken(violation),
        })
    }

    // A condition is a plain function that knows only the state, so which invariant broke is in the state.
    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(HOLDS, |_: &Self, state: &Self::State| matches!(state, Place::Fine(_)))]
    }
}

/// Explores every state of a design, or all up to its first violation. One thread, so that the way found is a shortest
/// one and the figures are the same every time.
///
/// # Panics
/// Where the design panics, or breaks an invariant that it does not list.
pub fn check<D: Design>(design: D) -> Explored {
    assert!(D::WITNESSES.len() <= 64, "witnesses are bits of one word");
    let begun = Instant::now();
    let adapter = Adapter { design, seen: Seen::default() };
    let checker = adapter.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let broken = checker.discovery(HOLDS).map(|path| {
        let Place::Broken(violation) = path.last_state().clone() else {
            unreachable!("only a violation is discovered")
        };
        let steps = path.into_actions().iter().map(|step| format!("{step:?}")).collect();
        Broken { violation, steps }
    });
    if let Some(broken) = &broken {
        let id = broken.violation.id;
        assert!(D::CHECKS.iter().any(|check| check.id == id), "{} breaks {id}, which it does not list", D::NAME);
    }
    Explored {
        states: checker.unique_state_count(),
        steps: checker.state_count() - 1,
        // The start counts as one there.
        depth: checker.max_depth() - 1,
        seconds: begun.elapsed().as_secs_f64(),
        broken,
        missing: checker.model().seen.missing(D::WITNESSES),
    }
}
