//! What came of an attempt, in the words that policies ask for, and how HTTP and gRPC statuses map to them.
//!
//! | kind | breaker | outlier | limiter | throttle | retried, where it may be |
//! |---|---|---|---|---|---|
//! | answered (also 4xx) | success | success | sample | accepted | no |
//! | overloaded (429, RESOURCE_EXHAUSTED) | failure in rates and probes, never consecutive | neither | nothing: it may be one caller's quota | refused | with pushback, or where the route says so |
//! | failed (500) | failure | failure | sample | accepted | where the route says so |
//! | gateway (502, 503, 504, UNAVAILABLE) | failure | failure, and gateway | drop | refused | yes |
//! | timeout | failure | failure, and gateway | drop | refused | yes |
//! | reset | failure | failure, and gateway | nothing | refused | yes |
//! | unreached (no connection, GOAWAY, refused stream) | failure | failure, and gateway | nothing | refused | yes, any method |
//! | cancelled (the client left) | nothing | nothing | nothing | nothing | no |
//!
//! Source: linkerd2-proxy `app/outbound/src/http/breaker` for the part of 429; Envoy "Outlier detection" for gateway
//! failures; gRPC "Status codes and their use".

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Answered,
    Overloaded,
    Failed,
    Gateway,
    Timeout,
    Reset,
    Unreached,
    Cancelled,
}

impl Kind {
    const ALL: [(Kind, &'static str); 8] = [
        (Kind::Answered, "answered"),
        (Kind::Overloaded, "overloaded"),
        (Kind::Failed, "failed"),
        (Kind::Gateway, "gateway"),
        (Kind::Timeout, "timeout"),
        (Kind::Reset, "reset"),
        (Kind::Unreached, "unreached"),
        (Kind::Cancelled, "cancelled"),
    ];

    /// As records have it.
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, word)| word)
    }

    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(kind, _)| *kind)
    }
}

/// What the upstream asked for with its failure: `Retry-After`, `grpc-retry-pushback-ms`, or the mark of an inner hop that
/// has retried already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pushback {
    #[default]
    None,
    After(Duration),
    Never,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub kind: Kind,
    /// The status as the protocol has it, for the explanation; 0 where there was none.
    pub status: u16,
    /// The upstream, or every hop on the way to it, is known not to have seen the request.
    pub undelivered: bool,
    pub pushback: Pushback,
}

impl Outcome {
    const fn of(kind: Kind, status: u16, undelivered: bool) -> Self {
        Self { kind, status, undelivered, pushback: Pushback::None }
    }

    /// An HTTP response. 501 and 505 are failures of the request and not of the upstream.
    pub const fn http(status: u16) -> Self {
        let kind = match status {
            429 => Kind::Overloaded,
            502..=504 => Kind::Gateway,
            501 | 505 => Kind::Answered,
            500..=599 => Kind::Failed,
            _ => Kind::Answered,
        };
        Self::of(kind, status, false)
    }

    /// A gRPC status.
    pub const fn grpc(code: u16) -> Self {
        let kind = match code {
            4 => Kind::Timeout,
            8 => Kind::Overloaded,
            2 | 13 | 15 => Kind::Failed,
            14 => Kind::Gateway,
            _ => Kind::Answered,
        };
        Self::of(kind, code, false)
    }

    /// No answer within the attempt's time.
    pub const fn timeout() -> Self {
        Self::of(Kind::Timeout, 0, false)
    }

    /// The connection broke after the request, or a part of it, was sent.
    pub const fn reset() -> Self {
        Self::of(Kind::Reset, 0, false)
    }

    /// No byte of the request reached the upstream's application: connection refused, GOAWAY below the stream, REFUSED_STREAM.
    pub const fn unreached() -> Self {
        Self::of(Kind::Unreached, 0, true)
    }

    /// The client went away, or a hedged attempt lost. It says nothing of the upstream.
    pub const fn cancelled() -> Self {
        Self::of(Kind::Cancelled, 0, false)
    }

    /// The answer itself says that the request was not delivered: an inner hop could not reach the upstream.
    pub const fn not_delivered(mut self) -> Self {
        self.undelivered = true;
        self
    }

    pub const fn pushed_back(mut self, pushback: Pushback) -> Self {
        self.pushback = pushback;
        self
    }

    /// Success as rates count it; nothing where the outcome says nothing.
    pub const fn succeeded(&self) -> Option<bool> {
        match self.kind {
            Kind::Answered => Some(true),
            Kind::Cancelled => None,
            _ => Some(false),
        }
    }

    /// Whether it counts among failures one after the other.
    pub const fn is_failure(&self) -> bool {
        !matches!(self.kind, Kind::Answered | Kind::Cancelled | Kind::Overloaded)
    }

    pub const fn is_gateway(&self) -> bool {
        matches!(self.kind, Kind::Gateway | Kind::Timeout | Kind::Reset | Kind::Unreached)
    }

    /// Whether the upstream took the call on, as the client throttle asks.
    pub const fn is_accepted(&self) -> bool {
        matches!(self.kind, Kind::Answered | Kind::Failed)
    }

    /// A sign of too much load: the limiter shrinks.
    pub const fn is_drop(&self) -> bool {
        matches!(self.kind, Kind::Gateway | Kind::Timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_word() {
        for (kind, word) in Kind::ALL {
            assert_eq!((kind.word(), Kind::named(word)), (word, Some(kind)));
        }
        assert_eq!(Kind::named("broken"), None);
    }
}
