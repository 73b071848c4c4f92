//! What hops tell each other: read from what comes, written to what goes on, and what an answer says about trying again.
//!
//! | field | means |
//! |---|---|
//! | `buttress-timeout-ms`, for gRPC `grpc-timeout` | how much time is left |
//! | `buttress-attempt` | the request is a retry of some hop, which goes on with them; nobody behind it makes its own |
//! | `buttress-retried` | of an answer: retries were made, make none |
//! | `buttress-undelivered` | of an answer: surely nobody has seen the request, so even a POST may be sent again |
//! | `Retry-After`, `grpc-retry-pushback-ms` | of an answer: not sooner than that |

use std::time::Duration;

use buttress_policy::{self as policy, Outcome, Priority, Pushback, parse};
use http::{Extensions, HeaderMap, HeaderValue, Request, header, request::Parts};
use tokio::time::Instant;

use crate::{clock::unix_seconds, policy_set::Hooks};

/// The code of an answer that is ours.
pub const CODE: &str = "buttress-code";
/// What is left of the deadline, in milliseconds.
pub const TIMEOUT: &str = "buttress-timeout-ms";
/// Which attempt a request is; not written for the first.
pub const ATTEMPT: &str = "buttress-attempt";
/// Said by a hop whose retries are spent.
pub const SPENT: &str = "buttress-retried";
/// Said by a hop that is sure that nobody has seen the request.
pub const UNDELIVERED: &str = "buttress-undelivered";

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Where a request stands on its way over hops; in the extensions of every request that a layer of this crate hands on.
///
/// A service that calls others passes it on, so that its own caller's deadline and retries count there too:
///
/// ```
/// # use buttress_tower::Hop;
/// fn ask_inventory(order: &http::Request<()>) -> http::Request<String> {
///     let mut request = http::Request::new(String::new());
///     Hop::pass(order, &mut request);
///     request
/// }
/// # ask_inventory(&http::Request::new(()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// When whoever asked stops waiting.
    pub deadline: Option<Instant>,
    /// 1 for a first attempt.
    pub attempt: u32,
}

impl Hop {
    pub fn of<B>(request: &Request<B>) -> Option<Self> {
        request.extensions().get().copied()
    }

    /// From the request that a service answers to one that it makes for it.
    pub fn pass<A, B>(from: &Request<A>, to: &mut Request<B>) {
        if let Some(hop) = Self::of(from) {
            to.extensions_mut().insert(hop);
        }
    }

    /// What is left now.
    pub fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn in_extensions(extensions: &Extensions) -> Option<Self> {
        extensions.get().copied()
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// What the policies are told of a request.
pub(crate) fn asked(hooks: &Hooks, parts: &Parts) -> policy::Request {
    let headers = &parts.headers;
    let hop = Hop::in_extensions(&parts.extensions);
    let told = text(headers, TIMEOUT).and_then(parse::timeout_ms);
    let told = told.or_else(|| text(headers, GRPC_TIMEOUT).and_then(parse::grpc_timeout));
    let left = [told, hop.and_then(|hop| hop.left())].into_iter().flatten().min();
    let attempt = text(headers, ATTEMPT).map_or(1, parse::attempt).max(hop.map_or(1, |hop| hop.attempt));
    let idempotent = hooks.idempotent || parts.method.is_idempotent() || headers.contains_key("idempotency-key");
    let priority = hooks.priority_header.as_ref().and_then(|name| text(headers, name.as_str())?.trim().parse().ok());
    let mut asked = policy::Request {
        left,
        attempt,
        // An upgrade makes a connection that nobody can repeat.
        idempotent: idempotent && !headers.contains_key(header::UPGRADE),
        priority: priority.map_or(Priority::NORMAL, Priority::new),
        ..policy::Request::default()
    };
    if let Some(describe) = &hooks.describe {
        describe(parts, &mut asked);
    }
    asked
}

/// Writes what the next hop must know into a request.
pub(crate) fn mark(parts: &mut Parts, attempt: u32, left: Option<Duration>) {
    let grpc = is_grpc(&parts.headers);
    for name in [TIMEOUT, GRPC_TIMEOUT, ATTEMPT] {
        parts.headers.remove(name);
    }
    if attempt > 1 {
        parts.headers.insert(ATTEMPT, attempt.into());
    }
    if let Some(left) = left {
        // Digits and a letter are always a value.
        let value = HeaderValue::try_from(parse::to_grpc_timeout(left));
        match value {
            Ok(value) if grpc => drop(parts.headers.insert(GRPC_TIMEOUT, value)),
            _ => drop(parts.headers.insert(TIMEOUT, u64::try_from(left.as_millis()).unwrap_or(u64::MAX).into())),
        }
    }
    let deadline = left.and_then(|left| Instant::now().checked_add(left));
    parts.extensions.insert(Hop { deadline, attempt });
}

/// The head of an answer as the policies understand it, and whether a status of gRPC is still to come, in its trailers.
pub(crate) fn judge(status: u16, headers: &HeaderMap, grpc: bool) -> (Outcome, bool) {
    let told = text(headers, "grpc-status").and_then(|code| code.trim().parse::<u16>().ok());
    let outcome = match told {
        Some(code) if grpc && status == 200 => Outcome::grpc(code),
        _ => Outcome::http(status),
    };
    (marks(outcome, headers), grpc && status == 200 && told.is_none())
}

/// What an answer that is a failure says about trying again.
fn marks(outcome: Outcome, headers: &HeaderMap) -> Outcome {
    if outcome.succeeded() == Some(true) {
        return outcome;
    }
    let outcome = if headers.contains_key(UNDELIVERED) { outcome.not_delivered() } else { outcome };
    let pushback = if headers.contains_key(SPENT) {
        Pushback::Never
    } else if let Some(asked) = text(headers, "grpc-retry-pushback-ms") {
        parse::pushback_ms(asked)
    } else {
        text(headers, "retry-after")
            .and_then(|asked| parse::retry_after(asked, unix_seconds()))
            .map_or(Pushback::None, Pushback::After)
    };
    outcome.pushed_back(pushback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, fields: &[(&'static str, &'static str)]) -> Parts {
        let mut builder = Request::builder().method(method);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn asked_of(method: &str, fields: &[(&'static str, &'static str)]) -> policy::Request {
        asked(&Hooks::default(), &request(method, fields))
    }

    #[test]
    fn a_method_or_a_key_says_whether_a_request_may_be_repeated() {
        assert!(asked_of("GET", &[]).idempotent && asked_of("DELETE", &[]).idempotent);
        assert!(!asked_of("POST", &[]).idempotent);
        assert!(asked_of("POST", &[("idempotency-key", "7")]).idempotent);
        assert!(!asked_of("GET", &[("upgrade", "websocket")]).idempotent);
        assert!(asked(&Hooks { idempotent: true, ..Hooks::default() }, &request("POST", &[])).idempotent);
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_time_counts_and_the_later_attempt() {
        let mut parts = request("GET", &[(TIMEOUT, "500"), (ATTEMPT, "2")]);
        assert_eq!(
            (asked_of("GET", &[("grpc-timeout", "2S")]).left, asked_of("GET", &[]).attempt),
            (Some(Duration::from_secs(2)), 1)
        );
        let deadline = Some(Instant::now() + Duration::from_millis(90));
        parts.extensions.insert(Hop { deadline, attempt: 3 });
        let asked = asked(&Hooks::default(), &parts);
        assert_eq!((asked.left, asked.attempt), (Some(Duration::from_millis(90)), 3));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(Hop::in_extensions(&parts.extensions).unwrap().left(), Some(Duration::ZERO));
    }

    #[test]
    fn what_goes_on_says_what_is_left_in_the_protocols_own_field() {
        let mut plain = request("GET", &[(TIMEOUT, "9999"), (ATTEMPT, "7")]);
        mark(&mut plain, 1, Some(Duration::from_millis(80)));
        assert_eq!((text(&plain.headers, TIMEOUT), text(&plain.headers, ATTEMPT)), (Some("80"), None));
        let mut grpc = request("POST", &[("content-type", "application/grpc"), ("grpc-timeout", "9S")]);
        mark(&mut grpc, 2, Some(Duration::from_millis(80)));
        assert_eq!(text(&grpc.headers, "grpc-timeout"), Some("80000000n"));
        assert_eq!((text(&grpc.headers, TIMEOUT), text(&grpc.headers, ATTEMPT)), (None, Some("2")));
        let mut endless = request("GET", &[(TIMEOUT, "5")]);
        mark(&mut endless, 1, None);
        assert!(endless.headers.is_empty() && endless.extensions.get::<Hop>().unwrap().deadline.is_none());
    }

    #[test]
    fn an_answer_is_judged_by_its_protocol_and_failures_by_what_they_ask_for() {
        let headers = |fields: &[(&'static str, &'static str)]| request("GET", fields).headers;
        assert_eq!(
            judge(503, &headers(&[("retry-after", "2")]), false).0.pushback,
            Pushback::After(Duration::from_secs(2))
        );
        assert_eq!(judge(503, &headers(&[(SPENT, "1"), ("retry-after", "2")]), false).0.pushback, Pushback::Never);
        assert!(judge(503, &headers(&[(UNDELIVERED, "1")]), false).0.undelivered);
        assert!(!judge(200, &headers(&[(UNDELIVERED, "1")]), false).0.undelivered);
        assert_eq!(judge(200, &headers(&[("grpc-status", "14")]), true), (Outcome::grpc(14), false));
        assert_eq!(judge(200, &headers(&[("grpc-status", "14")]), false), (Outcome::http(200), false));
        assert_eq!(judge(200, &headers(&[]), true), (Outcome::http(200), true));
        let pushed = judge(200, &headers(&[("grpc-status", "8"), ("grpc-retry-pushback-ms", "-1")]), true).0;
        assert_eq!(pushed.pushback, Pushback::Never);
    }
}
