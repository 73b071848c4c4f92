//! Exhaustive models of what is ours: every order of a few requests, copies, lost answers, crashes and hand-overs is
//! tried, not a sample of them.
//!
//! Raft itself is not modelled here; others have done that, and the engine is theirs. What is ours is what an entry means:
//! guards with several appends, remembered results, generations of functions and models, snapshots that carry the
//! remembered results along, locks with fencing tokens.
//!
//! No model has a second state machine of its own to be right about. The transition function is the real
//! [`buttress_state::Machine`], and where functions are concerned the real planner of `buttress_functions`; a model adds
//! what surrounds them: clients, copies of messages on their way, answers that get lost, nodes that fall back to a
//! checkpoint. After every step the machine is checked with its own invariants, opened again from its rows and compared
//! ([`real`]), and what the step did is held against the model's abstract state. Where an abstract rule is needed (does
//! this guard hold?) it is a few lines over a few small values and shares no code with the machine.
//!
//! A model is a [`design::Design`]: a start, the steps that are possible, and what a step leads to, or the violation that
//! it shows. [`design::check`] explores it breadth first with the `stateright` crate, so a counterexample is a shortest
//! one. Three things keep a clean result honest: the bounds are part of the report; a model names *witnesses* (a guard was
//! refused, a copy came late, …) and fails where one was never seen; and each model comes with seeded bugs, all of which
//! it must find.
//!
//! | model | what is tried |
//! |---|---|
//! | [`guards`] | entries with guards, several appends, a producer's numbers, a cursor; copies and lost answers |
//! | [`functions`] | two runners of one partition, entries on their way, new models and versions, a record that fails |
//! | [`snapshots`] | checkpoints, cut logs, snapshots, crashes, a change of leader, late copies, results forgotten by limit |
//! | [`locks`] | leases, expiry, fencing tokens, delayed writes of an old holder |

pub mod design;
pub mod real;

pub mod functions;
pub mod guards;
pub mod locks;
pub mod snapshots;

pub mod report;
