//! Why a call has no answer.

use std::{error::Error as StdError, fmt, io};

use buttress_policy::{Outcome, Why, outcome::Kind};
use http::{HeaderMap, Response};

use crate::{
    headers,
    problem::{Problem, Text, request_id, statuses},
};

pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A call that has no answer: what decided, what would have let it pass, and the error of the last attempt where one was made.
///
/// An answer with a bad status is no error: it is handed on as it came, with a [`Verdict`] in its extensions.
#[derive(Debug)]
pub struct Error {
    why: Why,
    attempts: u8,
    failure: Option<Failure>,
    undelivered: bool,
    spent: bool,
}

/// How the last attempt failed.
#[derive(Debug)]
pub(crate) enum Failure {
    TimedOut,
    /// By its error, and whether it is known that nobody saw the request.
    Service(BoxError, Outcome),
}

/// What was decided about a call whose answer is handed on; in the extensions of answers that are failures, or that took more than one
/// attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    pub why: Why,
    pub attempts: u8,
    /// Surely nobody has seen the request.
    pub undelivered: bool,
    /// Retries were made; whoever asked should make none.
    pub spent: bool,
}

impl Error {
    pub(crate) fn refused(why: Why) -> Self {
        Self { why, attempts: 0, failure: None, undelivered: true, spent: false }
    }

    pub(crate) fn failed(verdict: Verdict, failure: Failure) -> Self {
        let Verdict { why, attempts, undelivered, spent } = verdict;
        Self { why, attempts, failure: Some(failure), undelivered, spent }
    }

    /// The decision that ended the call: a refusal, or why no further attempt was made.
    pub const fn why(&self) -> Why {
        self.why
    }

    /// As the field `buttress-code` has it: the code of the refusal, or of how the last attempt failed.
    pub fn code(&self) -> &'static str {
        match &self.failure {
            None => self.why.code(),
            Some(Failure::TimedOut) => "BT0909",
            Some(Failure::Service(_, outcome)) if outcome.kind == Kind::Unreached => "BT0906",
            Some(Failure::Service(..)) => "BT0907",
        }
    }

    /// What would have let the call pass; empty where the policies have nothing to say.
    pub fn would_pass(&self) -> String {
        self.why.would_pass().to_string()
    }

    pub const fn attempts(&self) -> u8 {
        self.attempts
    }

    /// A policy refused it, and no attempt was made.
    pub const fn is_refusal(&self) -> bool {
        self.failure.is_none()
    }

    /// The last attempt had no answer in its time.
    pub const fn is_timeout(&self) -> bool {
        matches!(self.failure, Some(Failure::TimedOut))
    }

    /// Surely nobody has seen the request, so it may be made again, whatever it does.
    pub const fn undelivered(&self) -> bool {
        self.undelivered
    }

    /// The error of the service, where it had one.
    pub fn inner(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        match &self.failure {
            Some(Failure::Service(error, _)) => Some(&**error),
            _ => None,
        }
    }

    pub fn into_inner(self) -> Option<BoxError> {
        match self.failure {
            Some(Failure::Service(error, _)) => Some(error),
            _ => None,
        }
    }

    /// The status that a server answers its own caller: 503 or 429 of a refusal, 504 where time was over, 502.
    pub fn status(&self) -> u16 {
        match &self.failure {
            None => statuses(&self.why).0,
            Some(Failure::TimedOut) => 504,
            Some(Failure::Service(..)) => 502,
        }
    }

    /// The answer of a server to its own caller whose headers these are: a problem of RFC 9457, or a status of gRPC, with
    /// the fields by which hops before this one know whether to try again.
    pub fn response(&self, asked: &HeaderMap) -> Response<Text> {
        let status = self.status();
        let grpc = match status {
            504 => 4,
            _ => self.failure.as_ref().map_or_else(|| statuses(&self.why).1, |_| 14),
        };
        Problem {
            status,
            grpc: headers::is_grpc(asked).then_some(grpc),
            code: self.code(),
            detail: &self.says(),
            would_pass: &self.would_pass(),
            request_id: request_id(asked),
            retry_after: self.why.retry_after(),
            undelivered: self.undelivered,
            spent: self.spent,
        }
        .response()
    }

    fn says(&self) -> String {
        let why = self.why;
        match &self.failure {
            None => why.to_string(),
            Some(Failure::TimedOut) => format!("attempt {} had no answer in time; {why}", self.attempts),
            Some(Failure::Service(error, _)) => format!("attempt {} failed: {}; {why}", self.attempts, chain(&**error)),
        }
    }
}

/// An error with its causes, as one line.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(next) = cause {
        let says = next.to_string();
        // Many errors print their cause themselves.
        if !text.ends_with(&says) {
            text = format!("{text}: {says}");
        }
        cause = next.source();
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.says(), self.why.code())
    }
}

/// The inner error is printed as a part of this one, and is the source too, so that it can be looked at.
impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner().map(|error| error as _)
    }
}

/// What an error of a service means where nobody says better. Only what cannot have been delivered is taken for that.
pub(crate) fn outcome(error: &(dyn StdError + 'static)) -> Outcome {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(ours) = error.downcast_ref::<Error>() {
            return if ours.undelivered { Outcome::unreached() } else { Outcome::reset() };
        }
        // Both are answers to an attempt to connect, never of a connection that was there.
        let refused = [io::ErrorKind::ConnectionRefused, io::ErrorKind::AddrNotAvailable];
        if error.downcast_ref::<io::Error>().is_some_and(|error| refused.contains(&error.kind())) {
            return Outcome::unreached();
        }
        next = error.source();
    }
    Outcome::reset()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrapped(io::Error);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("cannot send")
        }
    }

    impl StdError for Wrapped {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_refused_connection_is_known_not_to_have_delivered_anything() {
        let of = |kind: io::ErrorKind| outcome(&Wrapped(kind.into())).kind;
        assert_eq!(of(io::ErrorKind::ConnectionRefused), Kind::Unreached);
        assert_eq!(of(io::ErrorKind::ConnectionReset), Kind::Reset);
        assert_eq!(of(io::ErrorKind::TimedOut), Kind::Reset, "a read may have timed out");
        let refused = Error::refused(Why::BulkheadFull { inflight: 1, limit: 1, queued: 0, queue: 0 });
        assert_eq!(outcome(&refused).kind, Kind::Unreached);
    }

    #[test]
    fn an_error_says_what_failed_and_why_nothing_followed() {
        let why = Why::RetryAttempts { attempt: 3, attempts: 3 };
        let verdict = Verdict { why, attempts: 3, undelivered: false, spent: true };
        let error = Wrapped(io::ErrorKind::ConnectionReset.into());
        let failed = Error::failed(verdict, Failure::Service(Box::new(error), Outcome::reset()));
        assert_eq!(
            failed.to_string(),
            "attempt 3 failed: cannot send: connection reset; 3 of 3 attempts were made, and all failed (BT-RTY-ATTEMPTS)"
        );
        assert_eq!((failed.code(), failed.status(), failed.is_refusal()), ("BT0907", 502, false));
        assert!(failed.would_pass().starts_with("a healthy upstream"));
        let response = failed.response(&HeaderMap::new());
        assert!(response.headers().contains_key("buttress-retried"));
        let late = Error::failed(verdict, Failure::TimedOut);
        assert_eq!((late.code(), late.status(), late.is_timeout()), ("BT0909", 504, true));
    }
}
