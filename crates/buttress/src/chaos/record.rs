//! What the clients did and saw: the history that is judged, and samples for the page.
//!
//! A call is recorded before it leaves and its answer after it has come ([`buttress_oracle::History`]). What got no answer
//! stays unknown: it may have happened.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use buttress_oracle::{History, OpId, Outcome, What};

/// One call for the page and for the faults' own checks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub began: Duration,
    pub ended: Duration,
    /// Index of the node that was asked.
    pub node: usize,
    pub kind: SampleKind,
    pub answer: Answered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    Write,
    /// A linearizable read.
    Read,
    /// Anything that promises nothing about now.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    Yes,
    /// Refused by a guard: an answer, and a statement about now.
    No,
    /// Certainly nothing happened.
    Failed,
    Unknown,
}

impl Answered {
    pub fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done(_) | Outcome::Found(_) | Outcome::Fetched(_) | Outcome::Transacted { .. } => Self::Yes,
            Outcome::Refused { .. } => Self::No,
            Outcome::Failed => Self::Failed,
            Outcome::Unknown => Self::Unknown,
        }
    }
}

pub struct Recorder {
    started: Instant,
    history: Mutex<History>,
    samples: Mutex<Vec<Sample>>,
    /// Answers that no fault explains.
    problems: Mutex<Vec<String>>,
}

/// Problems kept; one more would say nothing new.
const PROBLEMS_MAX: usize = 20;

impl Default for Recorder {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            history: Mutex::new(History::new()),
            samples: Mutex::default(),
            problems: Mutex::default(),
        }
    }
}

impl Recorder {
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn now_us(&self) -> u64 {
        self.elapsed().as_micros() as u64
    }

    pub fn invoke(&self, client: u64, what: What) -> OpId {
        let mut history = self.history.lock().expect("no holder panics");
        history.invoke(client, self.now_us(), what)
    }

    pub fn complete(&self, id: OpId, outcome: Outcome) {
        let mut history = self.history.lock().expect("no holder panics");
        history.complete(id, self.now_us(), outcome);
    }

    pub fn sample(&self, sample: Sample) {
        self.samples.lock().expect("no holder panics").push(sample);
    }

    pub fn problem(&self, text: String) {
        let mut problems = self.problems.lock().expect("no holder panics");
        if problems.len() < PROBLEMS_MAX && !problems.contains(&text) {
            problems.push(text);
        }
    }

    /// Samples that ended at or after `since`.
    pub fn samples_since(&self, since: Duration) -> Vec<Sample> {
        let samples = self.samples.lock().expect("no holder panics");
        // Ended in rising order, but for what several threads push at the same moment.
        let recent = samples.iter().rev().take_while(|sample| sample.ended + Duration::from_secs(1) >= since);
        recent.filter(|sample| sample.ended >= since).copied().collect()
    }

    pub fn operations(&self) -> usize {
        self.history.lock().expect("no holder panics").operations().len()
    }

    /// What was recorded; the recorder is empty afterwards.
    pub fn take(&self) -> (History, Vec<Sample>, Vec<String>) {
        (
            std::mem::take(&mut *self.history.lock().expect("no holder panics")),
            std::mem::take(&mut *self.samples.lock().expect("no holder panics")),
            std::mem::take(&mut *self.problems.lock().expect("no holder panics")),
        )
    }
}
