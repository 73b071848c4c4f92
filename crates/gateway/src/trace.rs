//! Traces: a span for each request and one for each attempt, for a trace that came with the request or begins here.
//!
//! | the request | we do |
//! |---|---|
//! | has a valid `traceparent` that is sampled | spans are children of its span, and are exported |
//! | has a valid one that is not sampled | it goes on unchanged, and nothing is exported: whoever began the trace decides |
//! | has none, or one that is not valid | a trace begins here; the share of `--trace-sample` is sampled, and what failed is exported all the same |
//!
//! What goes upstream names the attempt's span as the parent, so that what the upstream reports hangs below the attempt that it
//! belongs to. `tracestate` goes on as it is: we have nothing to say in it. Where nothing is exported (no `--otlp`), a
//! `traceparent` goes on as it came: a parent that nobody reports would tear the trace apart.
//!
//! What a core notes of a request are a few numbers and pointers; the texts are made by [`crate::otlp`], on its own thread.
//!
//! Source: W3C Trace Context level 1, 3.2 and 3.3; OpenTelemetry semantic conventions 1.27, HTTP spans.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::Method;
use tokio::time::Instant;

use crate::{
    access_log::{End, Ended},
    otlp::Traces,
    proxy::Core,
    request_id::{RequestId, hex},
    table::Member,
};

/// Attempts of which spans are kept; more than retries and hedges can make.
const ATTEMPTS_MAX: usize = 16;

/// A request's part in a trace, while it runs.
pub struct Tracing {
    pub traces: Arc<Traces>,
    id: [u8; 32],
    /// The span that the request came from.
    parent: Option<[u8; 16]>,
    span: u64,
    flags: [u8; 2],
    sampled: bool,
    began: Instant,
    began_ns: u64,
    attempts: RefCell<Vec<Attempt>>,
}

/// Where a request stands in a trace.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    pub id: [u8; 32],
    /// Its span, where it has one that may be exported.
    pub span: Option<u64>,
    pub sampled: bool,
}

/// An attempt that is over.
pub struct Attempt {
    pub span: u64,
    pub began_ns: u64,
    pub ended_ns: u64,
    pub member: Arc<Member>,
    pub backend: Arc<str>,
    /// From 1 on.
    pub number: u32,
    pub hedge: bool,
    pub status: Option<u16>,
    pub grpc_status: Option<u16>,
    /// What went wrong, where there was no answer.
    pub problem: Option<String>,
}

/// A request that is over, with all that its spans say.
pub struct Told {
    pub id: [u8; 32],
    pub parent: Option<[u8; 16]>,
    pub span: u64,
    pub sampled: bool,
    pub began_ns: u64,
    pub ended_ns: u64,
    pub method: Method,
    pub path: Bytes,
    pub authority: Bytes,
    /// What its client spoke.
    pub scheme: &'static str,
    pub protocol: &'static str,
    pub status: u16,
    pub grpc_status: Option<u16>,
    pub code: Option<&'static str>,
    pub route: Option<Arc<str>>,
    pub backend: Option<Arc<str>>,
    pub client: Box<str>,
    pub request_id: RequestId,
    pub user_agent: Box<[u8]>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub ended: Ended,
    pub attempts: Vec<Attempt>,
}

impl Told {
    /// What is known only when the answer has ended.
    pub fn end(&mut self, end: &End) {
        self.ended_ns = self.began_ns + end.whole_us * 1000;
        (self.grpc_status, self.code) = (end.grpc_status, end.code);
        (self.bytes_in, self.bytes_out, self.ended) = (end.bytes_in, end.bytes_out, end.ended);
    }

    pub fn failed(&self) -> bool {
        let grpc = self.grpc_status.is_some_and(|status| status != 0);
        self.status >= 500 || self.code.is_some() || grpc || self.ended != Ended::Whole
    }

    /// Whether its spans are exported.
    pub fn counts(&self) -> bool {
        self.sampled || self.failed()
    }
}

impl Tracing {
    /// Takes a request's trace up, or begins one. None where nothing will be exported.
    pub fn begin(core: &Core, came: Option<&[u8]>, began: Instant) -> Option<Self> {
        let traces = core.shared.traces.as_ref()?;
        let (id, parent, flags, sampled) = match came {
            Some(came) => {
                let (id, parent) = (came[3..35].try_into().ok()?, came[36..52].try_into().ok()?);
                let flags: [u8; 2] = came[53..55].try_into().ok()?;
                // The lowest bit of two hexadecimal digits.
                if !matches!(flags[1], b'1' | b'3' | b'5' | b'7' | b'9' | b'b' | b'd' | b'f') {
                    return None;
                }
                (id, Some(parent), flags, true)
            }
            None => {
                let mut id = [0; 32];
                id[..16].copy_from_slice(&hex(core.numbers.draw()));
                // All zeros would be no trace.
                id[16..].copy_from_slice(&hex(core.numbers.draw() | 1));
                let sampled = traces.samples(core.numbers.draw());
                (id, None, if sampled { *b"01" } else { *b"00" }, sampled)
            }
        };
        Some(Self {
            traces: traces.clone(),
            id,
            parent,
            span: core.numbers.draw() | 1,
            flags,
            sampled,
            began,
            began_ns: core.unix_ns(),
            attempts: RefCell::default(),
        })
    }

    /// What an upstream is told that is asked under this span.
    pub fn traceparent(&self, span: u64) -> [u8; 55] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        text[3..35].copy_from_slice(&self.id);
        text[36..52].copy_from_slice(&hex(span));
        text[53..55].copy_from_slice(&self.flags);
        text
    }

    pub fn context(&self) -> Context {
        Context { id: self.id, span: Some(self.span), sampled: self.sampled }
    }

    pub fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// A moment of this request, in nanoseconds since 1970. Of one clock, so that no child begins before its parent.
    fn at(&self, moment: Instant) -> u64 {
        self.began_ns + moment.saturating_duration_since(self.began).as_nanos() as u64
    }

    /// All that is known when the answer begins.
    pub fn told(&self, about: About<'_>) -> Told {
        let About { method, path, authority, scheme, protocol, status, route, backend, client, .. } = about;
        let About { request_id, user_agent, .. } = about;
        Told {
            id: self.id,
            parent: self.parent,
            span: self.span,
            sampled: self.sampled,
            began_ns: self.began_ns,
            ended_ns: 0,
            method: method.clone(),
            path: path.clone(),
            authority: authority.clone(),
            scheme,
            protocol,
            status,
            grpc_status: None,
            code: None,
            route,
            backend,
            client: client.into(),
            request_id: request_id.clone(),
            user_agent: user_agent.into(),
            bytes_in: 0,
            bytes_out: 0,
            ended: Ended::Left,
            attempts: self.attempts.take(),
        }
    }
}

pub struct About<'a> {
    pub method: &'a Method,
    pub path: &'a Bytes,
    pub authority: &'a Bytes,
    pub scheme: &'static str,
    pub protocol: &'static str,
    pub status: u16,
    pub route: Option<Arc<str>>,
    pub backend: Option<Arc<str>>,
    pub client: &'a str,
    pub request_id: &'a RequestId,
    pub user_agent: &'a [u8],
}

/// An attempt under way. Dropped without a word it was cancelled, which is told too.
pub struct Span {
    tracing: Rc<Tracing>,
    began: Instant,
    attempt: Option<Attempt>,
}

impl Span {
    pub fn begin(
        tracing: &Rc<Tracing>,
        span: u64,
        member: &Arc<Member>,
        backend: &Arc<str>,
        number: u32,
        hedge: bool,
    ) -> Self {
        let began = Instant::now();
        let attempt = Attempt {
            span,
            began_ns: tracing.at(began),
            ended_ns: 0,
            member: member.clone(),
            backend: backend.clone(),
            number,
            hedge,
            status: None,
            grpc_status: None,
            problem: None,
        };
        Self { tracing: tracing.clone(), began, attempt: Some(attempt) }
    }

    pub fn end(mut self, status: Option<u16>, grpc_status: Option<u16>, problem: Option<String>) {
        let Some(attempt) = self.attempt.take() else { return };
        self.keep(Attempt { status, grpc_status, problem, ..attempt });
    }

    fn keep(&self, mut attempt: Attempt) {
        attempt.ended_ns = attempt.began_ns + self.began.elapsed().as_nanos() as u64;
        let mut attempts = self.tracing.attempts.borrow_mut();
        if attempts.len() < ATTEMPTS_MAX {
            attempts.push(attempt);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            self.keep(Attempt { problem: Some("cancelled".into()), ..attempt });
        }
    }
}
