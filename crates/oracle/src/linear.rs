//! Is there an order of these operations that explains every answer? Wing and Gong's search, with Lowe's memory.
//!
//! An operation may be placed anywhere between its call and its answer. The search walks the calls and answers in the order
//! of time. At every call that is not placed yet it tries to place the operation next; when it meets the answer of an
//! operation that is not placed, what was placed so far was wrong, and it goes back. What makes it fast is Lowe's
//! observation: two ways that have placed the same *set* of operations and stand in the same *state* have the same future,
//! so of each pair only the first is followed. An operation without a known answer never forces anybody back: it may be
//! placed anywhere behind its call, or nowhere.
//!
//! The search can take exponential time, so it has a budget of steps, and says [`Verdict::Undecided`] when that is used up.
//!
//! Source: J. Wing, C. Gong, *Testing and verifying concurrent objects*, 1993; G. Lowe, *Testing for linearizability*, 2016.

use std::{
    collections::{HashSet, hash_map::DefaultHasher},
    fmt::Debug,
    hash::{BuildHasherDefault, Hash},
};

/// What is checked: a state, and which answers a call may have in it.
pub trait Model {
    type Call: Debug;
    type Answer: Debug;
    type State: Clone + Debug + Eq + Hash;

    fn init(&self) -> Self::State;

    /// The state after the call, or `None` where the call cannot have this answer in this state. Without an answer
    /// everything that could have happened counts as possible.
    fn step(&self, state: &Self::State, call: &Self::Call, answer: Option<&Self::Answer>) -> Option<Self::State>;
}

/// One operation of a history.
#[derive(Debug)]
pub struct Span<M: Model> {
    pub began: u64,
    /// `u64::MAX` where there is no answer.
    pub ended: u64,
    pub call: M::Call,
    /// `None` where it is not known.
    pub answer: Option<M::Answer>,
}

/// Steps of one search. A step is one look at one call or answer; a million take well under a second.
pub const BUDGET_STEPS: u64 = 4_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<S> {
    /// Positions of the operations, in an order that explains every answer.
    Linearizable(Vec<usize>),
    Broken(Counterexample<S>),
    /// The budget was used up.
    Undecided {
        steps: u64,
    },
}

/// Why there is no order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample<S> {
    /// The first operation, by the time of its answer, that no order explains.
    pub culprit: usize,
    /// An order that explains every answer that came before the culprit's.
    pub explained: Vec<usize>,
    /// The state behind that order.
    pub state: S,
    /// Operations that ran while the culprit did, and were placed by no way or by another one.
    pub around: Vec<usize>,
}

/// Judges a history.
pub fn check<M: Model>(model: &M, spans: &[Span<M>], budget: u64) -> Verdict<M::State> {
    let mut steps = 0;
    match search(model, spans, u64::MAX, budget, &mut steps) {
        Some(Ok((order, _))) => return Verdict::Linearizable(order),
        None => return Verdict::Undecided { steps },
        Some(Err(())) => {}
    }
    // A history is linearizable only if each of its beginnings is. So the shortest beginning that is not ends with the
    // answer that does not fit.
    let mut ends: Vec<(u64, usize)> =
        spans.iter().enumerate().filter(|(_, s)| s.ended < u64::MAX).map(|(at, s)| (s.ended, at)).collect();
    ends.sort_unstable();
    let (mut good, mut bad) = (0, ends.len());
    let mut explained = (Vec::new(), model.init());
    while bad - good > 1 {
        let middle = good.midpoint(bad);
        steps = 0;
        match search(model, spans, ends[middle - 1].0, budget, &mut steps) {
            Some(Ok(found)) => (good, explained) = (middle, found),
            Some(Err(())) => bad = middle,
            None => return Verdict::Undecided { steps },
        }
    }
    let culprit = ends[bad - 1].1;
    let span = &spans[culprit];
    let around = (0..spans.len())
        .filter(|at| *at != culprit && spans[*at].began < span.ended && spans[*at].ended > span.began)
        .collect();
    let (explained, state) = explained;
    Verdict::Broken(Counterexample { culprit, explained, state, around })
}

/// The operations placed so far.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Placed(Box<[u64]>);

impl Placed {
    fn flip(&mut self, at: usize) {
        self.0[at / 64] ^= 1 << (at % 64);
    }
}

/// Calls and answers in the order of time, as a list that operations can be taken out of and put back into. Place 0 is the
/// head.
struct Moments {
    /// The operation, and whether this is its answer.
    what: Vec<(usize, bool)>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// The place of an operation's call and, where it has one, of its answer.
    places: Vec<(usize, Option<usize>)>,
    answers_left: usize,
}

impl Moments {
    fn of<M: Model>(spans: &[Span<M>], until: u64) -> Self {
        let mut times: Vec<(u64, bool, usize)> = Vec::with_capacity(spans.len() * 2);
        for (at, span) in spans.iter().enumerate() {
            if span.began > until {
                continue;
            }
            times.push((span.began, false, at));
            if span.ended <= until && span.ended < u64::MAX {
                times.push((span.ended, true, at));
            }
        }
        times.sort_unstable();
        let count = times.len();
        let mut places = vec![(0, None); spans.len()];
        let mut what = vec![(usize::MAX, false)];
        let mut answers_left = 0;
        for (place, (_, is_answer, at)) in (1..).zip(times) {
            what.push((at, is_answer));
            if is_answer {
                places[at].1 = Some(place);
                answers_left += 1;
            } else {
                places[at].0 = place;
            }
        }
        // The list is a ring through the head.
        let next = (1..=count).chain([0]).collect();
        let previous = [count].into_iter().chain(0..count).collect();
        Self { what, next, previous, places, answers_left }
    }

    fn unlink(&mut self, place: usize) {
        let (before, after) = (self.previous[place], self.next[place]);
        self.next[before] = after;
        self.previous[after] = before;
    }

    fn relink(&mut self, place: usize) {
        let (before, after) = (self.previous[place], self.next[place]);
        self.next[before] = place;
        self.previous[after] = place;
    }

    fn take(&mut self, operation: usize) {
        let (call, answer) = self.places[operation];
        self.unlink(call);
        if let Some(answer) = answer {
            self.unlink(answer);
            self.answers_left -= 1;
        }
    }

    fn put_back(&mut self, operation: usize) {
        let (call, answer) = self.places[operation];
        if let Some(answer) = answer {
            self.relink(answer);
            self.answers_left += 1;
        }
        self.relink(call);
    }
}

type Found<S> = Result<(Vec<usize>, S), ()>;

/// Searches an order for what was answered up to `until`; what was answered later counts as not answered, but what is known
/// of its answer still holds should it be placed. `None` when the budget is used up.
fn search<M: Model>(model: &M, spans: &[Span<M>], until: u64, budget: u64, steps: &mut u64) -> Option<Found<M::State>> {
    let mut moments = Moments::of(spans, until);
    let mut placed = Placed(vec![0; spans.len().div_ceil(64)].into());
    let mut seen: HashSet<(Placed, M::State), BuildHasherDefault<DefaultHasher>> = HashSet::default();
    let mut state = model.init();
    // What was placed, and the state before it.
    let mut way: Vec<(usize, M::State)> = Vec::new();
    let mut place = moments.next[0];
    while moments.answers_left > 0 {
        *steps += 1;
        if *steps > budget {
            return None;
        }
        let (operation, is_answer) = moments.what[place];
        // Behind the last moment, and at an answer whose operation is not placed, this way ends.
        if place == 0 || is_answer {
            let Some((undone, before)) = way.pop() else { return Some(Err(())) };
            state = before;
            placed.flip(undone);
            moments.put_back(undone);
            place = moments.next[moments.places[undone].0];
            continue;
        }
        let span = &spans[operation];
        if let Some(after) = model.step(&state, &span.call, span.answer.as_ref()) {
            placed.flip(operation);
            if seen.insert((placed.clone(), after.clone())) {
                way.push((operation, std::mem::replace(&mut state, after)));
                moments.take(operation);
                place = moments.next[0];
                continue;
            }
            placed.flip(operation);
        }
        place = moments.next[place];
    }
    Some(Ok((way.into_iter().map(|(operation, _)| operation).collect(), state)))
}

/// The same question by trying every order, for histories of a few operations: what [`check`] is held against.
///
/// # Panics
/// With more than nine operations, which would take minutes.
pub fn check_by_force<M: Model>(model: &M, spans: &[Span<M>]) -> bool {
    assert!(spans.len() <= 9, "{} operations have too many orders", spans.len());
    let mut order = Vec::new();
    any_order(model, spans, &mut order)
}

fn any_order<M: Model>(model: &M, spans: &[Span<M>], order: &mut Vec<usize>) -> bool {
    let complete = (0..spans.len()).all(|at| spans[at].ended == u64::MAX || order.contains(&at));
    if complete && explains(model, spans, order) {
        return true;
    }
    for at in 0..spans.len() {
        if !order.contains(&at) {
            order.push(at);
            if any_order(model, spans, order) {
                return true;
            }
            order.pop();
        }
    }
    false
}

fn explains<M: Model>(model: &M, spans: &[Span<M>], order: &[usize]) -> bool {
    for (position, later) in order.iter().enumerate() {
        if order[..position].iter().any(|earlier| spans[*later].ended < spans[*earlier].began) {
            return false;
        }
    }
    let mut state = model.init();
    order.iter().all(|at| match model.step(&state, &spans[*at].call, spans[*at].answer.as_ref()) {
        Some(after) => {
            state = after;
            true
        }
        None => false,
    })
}
