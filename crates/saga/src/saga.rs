//! The state of a saga as a fold over its journal, and what comes next as a function of that state.
//!
//! | state | what comes next |
//! |---|---|
//! | started, or a step done | the next step is scheduled; behind the last one the saga has completed |
//! | a step scheduled | its call, from `not_before_ms` on; past the step's deadline: compensating |
//! | … done | the step is done |
//! | … refused | compensating, without this step |
//! | … no reply, or a failure | scheduled again after a pause; with attempts or deadline spent: compensating, with this step |
//! | compensating | the last step that was begun is undone, then the one before it; behind the first the saga is compensated |
//! | an undoing scheduled | its call, from `not_before_ms` on |
//! | … failed | scheduled again after a pause; with its attempts spent the saga is stuck |
//!
//! **First start.** [`Record::Started`] alone: the first step is scheduled. **Recovery.** The journal is folded; a call that
//! was scheduled and has no reply in the journal is made again, with the attempt that it has: the key makes that harmless.
//!
//! Source: Garcia-Molina, Salem, "Sagas", SIGMOD 1987; backward recovery with idempotent, commuting undoing.

use buttress_core::invariants::{SAGA_1, Violation};
use serde_json::Value;

use crate::{Definition, Effect, Outcome, Record};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saga {
    id: String,
    definition: String,
    input: Value,
    phase: Phase,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The steps before `step` are done.
    Forward {
        step: usize,
        scheduled: Option<Scheduled>,
    },
    /// `left` is still to be undone, its last one first.
    Backward {
        left: Vec<usize>,
        scheduled: Option<Scheduled>,
    },
    Ended(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduled {
    pub attempt: u32,
    pub not_before_ms: u64,
    /// When the first attempt was scheduled.
    pub first_ms: u64,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// To be committed before anything else is done.
    Write(Vec<Record>),
    Call(Call),
    Ended(Outcome),
}

/// A call to make, or to make again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub step: String,
    pub service: String,
    /// What the service is asked: the step's `act`, or its `undo`.
    pub ask: String,
    pub undo: bool,
    pub attempt: u32,
    /// Under which the service does it once.
    pub key: String,
    pub not_before_ms: u64,
    pub timeout_ms: u64,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Done,
    /// The service promises that nothing happened and that nothing will.
    Refused(String),
    /// No reply, or one that leaves open what happened.
    Failed(String),
}

impl Saga {
    /// The state after a journal.
    ///
    /// # Errors
    /// SAGA-1 where the definition does not allow what the journal says.
    pub fn fold(definition: &Definition, journal: &[Record]) -> Result<Self, Violation> {
        let [Record::Started { saga, definition: hash, input, .. }, rest @ ..] = journal else {
            return Err(SAGA_1.broken("a journal does not begin with a start"));
        };
        SAGA_1.hold(*hash == definition.hash(), || format!("the journal of {saga} is on another definition"))?;
        let phase = Phase::Forward { step: 0, scheduled: None };
        let mut state = Self { id: saga.clone(), definition: hash.clone(), input: input.clone(), phase };
        for record in rest {
            state.apply(definition, record)?;
        }
        Ok(state)
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The hash of the definition that it runs on.
    pub fn definition(&self) -> &str {
        &self.definition
    }

    pub fn input(&self) -> &Value {
        &self.input
    }

    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Takes one record more.
    ///
    /// # Errors
    /// SAGA-1 where it cannot follow; the state stays as it was.
    pub fn apply(&mut self, definition: &Definition, record: &Record) -> Result<(), Violation> {
        let Some(phase) = self.after(definition, record) else {
            return Err(SAGA_1.broken(format!("in {}, {record:?} does not follow {:?}", self.id, self.phase)));
        };
        self.phase = phase;
        Ok(())
    }

    fn after(&self, definition: &Definition, record: &Record) -> Option<Phase> {
        let named = |step: &str, at: usize| definition.position(step) == Some(at);
        let again = |scheduled: &Option<Scheduled>, attempt: u32, not_before_ms: u64, at_ms: u64| {
            let expected = scheduled.map_or(1, |scheduled| scheduled.attempt + 1);
            let first_ms = scheduled.map_or(at_ms, |scheduled| scheduled.first_ms);
            (attempt == expected).then_some(Some(Scheduled { attempt, not_before_ms, first_ms }))
        };
        Some(match (&self.phase, record) {
            (Phase::Forward { step: at, scheduled }, Record::StepScheduled { step, attempt, not_before_ms, at_ms })
                if named(step, *at) =>
            {
                Phase::Forward { step: *at, scheduled: again(scheduled, *attempt, *not_before_ms, *at_ms)? }
            }
            (Phase::Forward { step: at, scheduled: Some(_) }, Record::StepDone { step, .. }) if named(step, *at) => {
                Phase::Forward { step: at + 1, scheduled: None }
            }
            (Phase::Forward { step: at, scheduled: Some(_) }, Record::Compensating { step, effect, .. })
                if named(step, *at) =>
            {
                let begun = match effect {
                    Effect::None => *at,
                    Effect::Unknown => at + 1,
                };
                let left = (0..begun).filter(|step| definition.steps[*step].undo.is_some()).collect();
                Phase::Backward { left, scheduled: None }
            }
            (Phase::Backward { left, scheduled }, Record::CompScheduled { step, attempt, not_before_ms, at_ms })
                if named(step, *left.last()?) =>
            {
                Phase::Backward { left: left.clone(), scheduled: again(scheduled, *attempt, *not_before_ms, *at_ms)? }
            }
            (Phase::Backward { left, scheduled: Some(_) }, Record::CompDone { step, .. })
                if named(step, *left.last()?) =>
            {
                Phase::Backward { left: left[..left.len() - 1].to_vec(), scheduled: None }
            }
            (Phase::Forward { step, scheduled: None }, Record::Ended { outcome: Outcome::Completed, .. })
                if *step == definition.steps.len() =>
            {
                Phase::Ended(Outcome::Completed)
            }
            (Phase::Backward { left, scheduled: None }, Record::Ended { outcome: Outcome::Compensated, .. })
                if left.is_empty() =>
            {
                Phase::Ended(Outcome::Compensated)
            }
            (Phase::Backward { left, scheduled: Some(scheduled) }, Record::Ended { outcome: Outcome::Stuck, .. })
                if scheduled.attempt >= definition.steps[*left.last()?].undo_attempts =>
            {
                Phase::Ended(Outcome::Stuck)
            }
            _ => return None,
        })
    }

    /// What comes next.
    pub fn next(&self, definition: &Definition, now_ms: u64) -> Next {
        match &self.phase {
            Phase::Ended(outcome) => Next::Ended(*outcome),
            Phase::Forward { step, scheduled: None } => Next::Write(vec![forward(definition, *step, now_ms)]),
            Phase::Backward { left, scheduled: None } => Next::Write(vec![backward(definition, left, now_ms)]),
            Phase::Forward { step, scheduled: Some(scheduled) } => {
                let known = &definition.steps[*step];
                if now_ms.saturating_sub(scheduled.first_ms) >= known.deadline_ms {
                    let why = format!("{} was not done within {} ms", known.name, known.deadline_ms);
                    return Next::Write(self.give_up(definition, *step, Effect::Unknown, why, now_ms));
                }
                // The last call ends with the deadline.
                let begins_ms = now_ms.max(scheduled.not_before_ms);
                let left_ms = scheduled.first_ms.saturating_add(known.deadline_ms).saturating_sub(begins_ms);
                let call = self.call(definition, *step, scheduled, false);
                Next::Call(Call { timeout_ms: call.timeout_ms.min(left_ms.max(1)), ..call })
            }
            Phase::Backward { left, scheduled: Some(scheduled) } => {
                let step = *left.last().expect("an undoing is scheduled for the last one");
                Next::Call(self.call(definition, step, scheduled, true))
            }
        }
    }

    fn call(&self, definition: &Definition, step: usize, scheduled: &Scheduled, undo: bool) -> Call {
        let step = &definition.steps[step];
        let asked = if undo { step.undo.as_ref() } else { Some(&step.act) };
        Call {
            step: step.name.clone(),
            service: step.service.clone(),
            ask: asked.expect("only steps that can be undone are left").clone(),
            undo,
            attempt: scheduled.attempt,
            key: format!("{}/{}", self.id, step.name),
            not_before_ms: scheduled.not_before_ms,
            timeout_ms: step.timeout_ms,
        }
    }

    /// The records that follow a reply. Nothing follows the reply to a call that is not the current one: it is late, and what
    /// it says was decided without it. `dice` is a random number, for the pause.
    pub fn answered(&self, definition: &Definition, call: &Call, reply: &Reply, now_ms: u64, dice: u64) -> Vec<Record> {
        let is_current = |scheduled: &Scheduled, step: usize, undo: bool| {
            let known = &definition.steps[step];
            call.undo == undo && call.step == known.name && call.attempt == scheduled.attempt
        };
        match &self.phase {
            Phase::Forward { step, scheduled: Some(scheduled) } if is_current(scheduled, *step, false) => {
                let known = &definition.steps[*step];
                match reply {
                    Reply::Done => {
                        let done = Record::StepDone { step: known.name.clone(), at_ms: now_ms };
                        vec![done, forward(definition, step + 1, now_ms)]
                    }
                    Reply::Refused(why) => self.give_up(definition, *step, Effect::None, why.clone(), now_ms),
                    Reply::Failed(why) => {
                        let not_before_ms = now_ms + known.pause_ms(scheduled.attempt, dice);
                        let is_late = not_before_ms.saturating_sub(scheduled.first_ms) >= known.deadline_ms;
                        if scheduled.attempt >= known.attempts || is_late {
                            return self.give_up(definition, *step, Effect::Unknown, why.clone(), now_ms);
                        }
                        let attempt = scheduled.attempt + 1;
                        vec![Record::StepScheduled { step: known.name.clone(), attempt, not_before_ms, at_ms: now_ms }]
                    }
                }
            }
            Phase::Backward { left, scheduled: Some(scheduled) }
                if left.last().is_some_and(|step| is_current(scheduled, *step, true)) =>
            {
                let (last, before) = left.split_last().expect("it has a last one");
                let known = &definition.steps[*last];
                match reply {
                    Reply::Done => {
                        let done = Record::CompDone { step: known.name.clone(), at_ms: now_ms };
                        vec![done, backward(definition, before, now_ms)]
                    }
                    // Nobody can refuse to undo: it is asked again, like after any failure.
                    Reply::Refused(_) | Reply::Failed(_) if scheduled.attempt < known.undo_attempts => {
                        let not_before_ms = now_ms + known.pause_ms(scheduled.attempt, dice);
                        let (step, attempt) = (known.name.clone(), scheduled.attempt + 1);
                        vec![Record::CompScheduled { step, attempt, not_before_ms, at_ms: now_ms }]
                    }
                    Reply::Refused(_) | Reply::Failed(_) => {
                        vec![Record::Ended { outcome: Outcome::Stuck, at_ms: now_ms }]
                    }
                }
            }
            _ => Vec::new(),
        }
    }

    fn give_up(&self, definition: &Definition, step: usize, effect: Effect, why: String, now_ms: u64) -> Vec<Record> {
        let record = Record::Compensating { step: definition.steps[step].name.clone(), effect, why, at_ms: now_ms };
        let phase = self.after(definition, &record).expect("a step that is scheduled can be given up");
        let Phase::Backward { left, .. } = phase else { unreachable!("what is given up is undone") };
        vec![record, backward(definition, &left, now_ms)]
    }
}

/// What is written where the steps before `step` are done.
fn forward(definition: &Definition, step: usize, now_ms: u64) -> Record {
    match definition.steps.get(step) {
        Some(step) => {
            Record::StepScheduled { step: step.name.clone(), attempt: 1, not_before_ms: now_ms, at_ms: now_ms }
        }
        None => Record::Ended { outcome: Outcome::Completed, at_ms: now_ms },
    }
}

/// What is written where the steps in `left` are still to be undone.
fn backward(definition: &Definition, left: &[usize], now_ms: u64) -> Record {
    match left.last() {
        Some(step) => {
            let step = definition.steps[*step].name.clone();
            Record::CompScheduled { step, attempt: 1, not_before_ms: now_ms, at_ms: now_ms }
        }
        None => Record::Ended { outcome: Outcome::Compensated, at_ms: now_ms },
    }
}
