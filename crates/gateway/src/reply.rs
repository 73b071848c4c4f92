//! What a client is answered, before it is known which protocol it speaks.

use std::{borrow::Cow, cell::RefCell, fmt::Write as _, time::Duration};

use buttress_core::Code;
use buttress_policy::{
    Span,
    decision::{Answer, Entry},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use crate::{
    body::Body,
    call::{SPENT_FIELD, UNDELIVERED_FIELD},
    frame::Encoder,
    parse::{Fields, Kind, Length, Refusal},
    request_id::RequestId,
    stream::Stream,
};

/// The field that carries a code in answers that are ours.
pub const CODE_FIELD: &str = "buttress-code";

pub struct Reply {
    pub status: u16,
    pub fields: Fields,
    pub length: Length,
    pub body: Body,
    pub id: Option<RequestId>,
    pub code: Option<&'static str>,
    /// Of an answer of ours that may be asked again: `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
    pub tunnel: Option<(Stream, BytesMut)>,
    /// No byte of the request reached an upstream: whoever asked may ask again.
    pub undelivered: bool,
    /// Retries were made here: whoever asked should make none.
    pub spent: bool,
    /// It stands for no good answer of a backend; another one may take its place.
    pub failed: bool,
}

impl Reply {
    pub fn empty() -> Self {
        Self {
            status: 200,
            fields: Fields::default(),
            length: Length::Known(0),
            body: Body::empty(),
            id: None,
            code: None,
            retry_after: None,
            tunnel: None,
            undelivered: false,
            spent: false,
            failed: false,
        }
    }
}

/// An answer of ours: what went wrong, in the form that RFC 9457 gives it.
pub struct Problem<'a> {
    pub status: u16,
    pub code: &'static str,
    /// One sentence, lower case, no full stop.
    pub detail: &'a str,
    pub would_pass: Option<&'a str>,
    pub id: Option<RequestId>,
    pub grpc: Option<u8>,
    pub retry_after: Option<u32>,
}

impl Problem<'_> {
    pub fn reply(self) -> Reply {
        let Problem { status, code, detail, would_pass, id, grpc, retry_after } = self;
        // A code of any other kind would be one that no test of answers knows.
        debug_assert!(
            code.starts_with("BT09")
                || Entry::named(code).is_some_and(|entry| matches!(entry.answer, Answer::Refuse { .. })),
            "{code} is no code that requests are answered with"
        );
        if let Some(grpc) = grpc {
            // gRPC: a response of trailers only. The message is percent-encoded where it must be.
            let (number, message) = (grpc.to_string(), percent(detail));
            let fields = Fields::from_pairs(&[
                ("content-type", "application/grpc"),
                ("grpc-status", &number),
                ("grpc-message", &message),
            ]);
            return Reply { fields, id, code: Some(code), retry_after, ..Reply::empty() };
        }
        let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let mut problem = json!({
            "type": format!("urn:buttress:{code}"), "title": title.unwrap_or("Error"), "status": status,
            "detail": detail, "code": code,
        });
        if let Some(would_pass) = would_pass {
            problem["would_pass"] = json!(would_pass);
        }
        if let Some(id) = &id {
            problem["instance"] = json!(format!("urn:buttress:request:{}", id.as_str()));
            problem["request_id"] = json!(id.as_str());
        }
        let body = Bytes::from(problem.to_string());
        Reply {
            status,
            fields: Fields::from_pairs(&[("content-type", "application/problem+json")]),
            length: Length::Known(body.len() as u64),
            body: Body::full(body),
            id,
            code: Some(code),
            retry_after,
            ..Reply::empty()
        }
    }
}

/// What would have been read in place of a request that was not. Heads have so much time.
pub fn would_pass(code: Code, head: Duration) -> Cow<'static, str> {
    let would_pass = match code {
        Code::HTTP_MALFORMED => "a request as RFC 9112 (HTTP/1.1) and 9113 (HTTP/2) write it",
        Code::HTTP_AMBIGUOUS => "a request that can be read in one way only",
        Code::HTTP_HEAD_TOO_LARGE => "a head of at most 64 KiB and 100 fields",
        Code::HTTP_HEAD_TIMEOUT => {
            return format!("a head that comes whole within {} of its first byte", Span::from(head)).into();
        }
        Code::HTTP_UNSUPPORTED => "a request without that part of HTTP",
        Code::TLS_EXPECTED => "https:// in place of http://",
        _ => "",
    };
    would_pass.into()
}

/// Answers a request that was not taken.
pub fn refused(refusal: &Refusal, would_pass: &str, id: RequestId) -> Reply {
    Problem {
        status: refusal.status,
        code: refusal.code.0,
        detail: refusal.says,
        would_pass: Some(would_pass).filter(|text| !text.is_empty()),
        id: Some(id),
        grpc: None,
        retry_after: None,
    }
    .reply()
}

pub const HEAD_TIMED_OUT: Refusal =
    Refusal { status: 408, code: Code::HTTP_HEAD_TIMEOUT, says: "the request's head did not come whole in time" };

fn percent(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte as char),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out
    })
}

/// What an HTTP/1.1 client is told about its connection.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    pub minor: u8,
    pub head_request: bool,
    pub keep_alive: bool,
}

impl Reply {
    /// Writes the head for HTTP/1.1 and tells how the body is framed, and whether the connection may go on.
    pub fn write_head(&self, hop: Hop, out: &mut BytesMut) -> (Encoder, bool) {
        out.reserve(256);
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_GATEWAY);
        for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason().unwrap_or(""), "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        let tunnel = self.tunnel.is_some();
        let bodiless = hop.head_request || matches!(self.status, 204 | 304) || tunnel;
        for (kind, name, value) in self.fields.iter() {
            let skipped = match kind {
                Kind::Upgrade => !tunnel,
                Kind::ContentLength => !bodiless || self.status == 204,
                Kind::RequestId => self.id.is_some(),
                _ => kind.hop_by_hop(),
            };
            if !skipped {
                line(out, name, value);
            }
        }
        if let Some(id) = &self.id {
            line(out, b"x-request-id", id.as_str().as_bytes());
        }
        if let Some(code) = self.code {
            line(out, CODE_FIELD.as_bytes(), code.as_bytes());
        }
        if let Some(seconds) = self.retry_after {
            let _ = write!(out, "retry-after: {seconds}\r\n");
        }
        for mark in self.marks() {
            line(out, mark.as_bytes(), b"1");
        }
        let (encoder, mut keep_alive) = match self.length {
            _ if bodiless => (Encoder::Length(0), hop.keep_alive && !tunnel),
            Length::Known(length) => {
                let _ = write!(out, "content-length: {length}\r\n");
                (Encoder::Length(length), hop.keep_alive)
            }
            _ if hop.minor == 0 => (Encoder::UntilClose, false),
            _ => {
                out.extend_from_slice(b"transfer-encoding: chunked\r\n");
                (Encoder::Chunked, hop.keep_alive)
            }
        };
        if tunnel {
            out.extend_from_slice(b"connection: upgrade\r\n");
            keep_alive = false;
        } else if !keep_alive {
            out.extend_from_slice(b"connection: close\r\n");
        } else if hop.minor == 0 {
            out.extend_from_slice(b"connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
        (encoder, keep_alive)
    }

    /// What hops before this one should know.
    fn marks(&self) -> impl Iterator<Item = &'static str> {
        let undelivered = self.undelivered.then_some(UNDELIVERED_FIELD);
        undelivered.into_iter().chain(self.spent.then_some(SPENT_FIELD))
    }

    /// The same for HTTP/2.
    pub fn into_http2(self) -> http::Response<Body> {
        let mut headers = HeaderMap::with_capacity(self.fields.len() + 3);
        for (kind, name, value) in self.fields.iter() {
            if kind.hop_by_hop() || (kind == Kind::RequestId && self.id.is_some()) {
                continue;
            }
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
                headers.append(name, value);
            }
        }
        let mut add = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        if let Some(id) = &self.id {
            add("x-request-id", id.as_str());
        }
        if let Some(code) = self.code {
            add(CODE_FIELD, code);
        }
        if let Some(seconds) = self.retry_after {
            add("retry-after", &seconds.to_string());
        }
        for mark in self.marks() {
            add(mark, "1");
        }
        let mut response = http::Response::new(self.body);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_GATEWAY);
        *response.headers_mut() = headers;
        response
    }
}

/// Informational answers on their way to a client, written but not yet sent.
#[derive(Default)]
pub struct Interims(RefCell<BytesMut>);

impl Interims {
    /// As RFC 9110, 15.2, has it: one that is not understood is passed on. `100` is ours to say and `101` ends what HTTP is.
    pub fn add(&self, status: u16, fields: &Fields) {
        let out = &mut *self.0.borrow_mut();
        let code = StatusCode::from_u16(status).unwrap_or(StatusCode::PROCESSING);
        let reason = code.canonical_reason().unwrap_or("");
        for part in ["HTTP/1.1 ", code.as_str(), " ", reason, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        for (kind, name, value) in fields.iter() {
            if !kind.hop_by_hop() && kind != Kind::ContentLength {
                line(out, name, value);
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    pub fn take(&self) -> BytesMut {
        // Nearly always there is none, and splitting nothing would allocate.
        let all = &mut *self.0.borrow_mut();
        if all.is_empty() { BytesMut::new() } else { std::mem::take(all) }
    }
}

pub fn line(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
