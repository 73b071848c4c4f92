//! What happened to a call, so that somebody can ask afterwards.

use std::{fmt, sync::Arc, time::Duration};

use buttress_policy::{Endpoint, Outcome, Span, View, Why};
use http::{Method, Uri, request::Parts};
use tokio::time::Instant;

use crate::policy_set::Policy;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With an answer, good or bad.
    Answered(u16),
    /// The last attempt failed without an answer.
    Failed,
    /// A policy let no attempt begin.
    Refused,
    /// Whoever made the call dropped it.
    Left,
}

/// One attempt.
#[derive(Clone, Debug)]
pub struct Tried {
    pub endpoint: Arc<Endpoint>,
    /// Sent beside an earlier one that was slow.
    pub hedge: bool,
    /// How the endpoint was chosen.
    pub picked: Why,
    /// What the breaker said.
    pub breaker: Option<Why>,
    pub took: Duration,
    pub outcome: Outcome,
    /// The error, where there was no answer; empty where there was.
    pub problem: String,
    /// Whether another attempt follows, and why or why not; nothing where it is no question.
    pub next: Option<Why>,
}

/// A call with all that was decided about it. [`Display`](fmt::Display) tells it in sentences.
#[derive(Clone, Debug)]
pub struct Record {
    pub method: Method,
    pub uri: Uri,
    pub end: End,
    /// What decided in the end; nothing where whoever made the call left before.
    pub why: Option<Why>,
    pub took: Duration,
    /// Of the deadline, when the call was let in.
    pub deadline: Option<Duration>,
    /// What the policies said before the first attempt.
    pub admission: Vec<Why>,
    pub attempts: Vec<Tried>,
    /// How the policies stood at the end.
    pub state: View,
}

impl Record {
    /// Whether the call was answered at once and well, so that there is nothing to tell.
    pub fn plain(&self) -> bool {
        let once = |one: &Tried| !one.hedge && one.outcome.succeeded() == Some(true);
        matches!(self.end, End::Answered(_)) && self.attempts.len() == 1 && once(&self.attempts[0])
    }

    /// The codes of all decisions, in their order.
    pub fn codes(&self) -> Vec<&'static str> {
        let attempts = self.attempts.iter().flat_map(|one| [Some(one.picked), one.breaker, one.next]);
        let all = self.admission.iter().copied().map(Some).chain(attempts);
        let mut codes: Vec<_> = all.flatten().map(|why| why.code()).collect();
        // A refusal, or what stopped the attempts from outside; else it stands with the last attempt.
        let last = self.attempts.last().and_then(|last| last.next);
        codes.extend(self.why.filter(|why| last != Some(*why)).map(|why| why.code()));
        codes
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.uri.path();
        write!(f, "{} {path}: ", self.method)?;
        match self.end {
            End::Answered(status) => write!(f, "answered {status}")?,
            End::Failed => f.write_str("failed")?,
            End::Refused => f.write_str("refused")?,
            End::Left => f.write_str("whoever asked left")?,
        }
        write!(f, " after {}", Span::from(self.took))?;
        for (at, one) in self.attempts.iter().enumerate() {
            let kind = if one.hedge { "hedge" } else { "attempt" };
            write!(f, "\n  {kind} {} to {} took {}: ", at + 1, one.endpoint.name(), Span::from(one.took))?;
            match (one.problem.as_str(), one.outcome.status) {
                ("", 0) => f.write_str("cancelled")?,
                ("", status) => write!(f, "status {status}")?,
                (problem, _) => f.write_str(problem)?,
            }
            if let Some(next) = one.next {
                write!(f, "; {next} ({})", next.code())?;
            }
        }
        let Some(why) = self.why.filter(|_| !self.plain()) else { return Ok(()) };
        let told = self.attempts.last().and_then(|last| last.next) == Some(why);
        if !told {
            write!(f, "\n  {why} ({})", why.code())?;
        }
        let passes = why.would_pass().to_string();
        if passes.is_empty() { Ok(()) } else { write!(f, "\n  what would pass: {passes}") }
    }
}

/// A record that is being written, where somebody listens. It is told once, however the call ends.
pub(crate) struct Story {
    policy: Policy,
    began: Instant,
    record: Option<Record>,
}

impl Story {
    pub fn begin(policy: &Policy, parts: &Parts) -> Self {
        let record = policy.hooks().on_decision.is_some().then(|| Record {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            end: End::Left,
            why: None,
            took: Duration::ZERO,
            deadline: None,
            admission: Vec::new(),
            attempts: Vec::new(),
            state: policy.view(),
        });
        Self { policy: policy.clone(), began: Instant::now(), record }
    }

    /// Whether anybody listens.
    pub fn listened(&self) -> bool {
        self.record.is_some()
    }

    pub fn admitted(&mut self, why: Why) {
        if let Some(record) = &mut self.record {
            record.admission.push(why);
        }
    }

    pub fn deadline(&mut self, left: Option<Duration>) {
        if let Some(record) = &mut self.record {
            record.deadline = left;
        }
    }

    /// An attempt has ended; it is put together only where somebody listens.
    pub fn tried(&mut self, tried: impl FnOnce() -> Tried) {
        if let Some(record) = &mut self.record {
            record.attempts.push(tried());
        }
    }

    pub fn end(&mut self, end: End, why: Why) {
        if let Some(record) = &mut self.record {
            (record.end, record.why) = (end, Some(why));
        }
        self.tell();
    }

    fn tell(&mut self) {
        if let (Some(mut record), Some(told)) = (self.record.take(), &self.policy.hooks().on_decision) {
            record.took = self.began.elapsed();
            record.state = self.policy.view();
            told(&record);
        }
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        self.tell();
    }
}
