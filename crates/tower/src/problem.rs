//! Answers of ours, in the form that RFC 9457 gives them, and for gRPC in its own.

use std::{
    convert::Infallible,
    fmt::Write as _,
    pin::Pin,
    task::{Context, Poll},
};

use buttress_policy::{Answer, Why};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};

use crate::headers::{CODE, SPENT, UNDELIVERED};

/// The body of an answer of ours.
#[derive(Clone, Debug, Default)]
pub struct Text(Option<Bytes>);

impl Body for Text {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// What went wrong.
pub(crate) struct Problem<'a> {
    pub status: u16,
    /// The status of gRPC, where the request was of gRPC.
    pub grpc: Option<u8>,
    pub code: &'static str,
    pub detail: &'a str,
    pub would_pass: &'a str,
    pub request_id: Option<&'a str>,
    /// In seconds, of what may be asked again; 1 where nobody knows.
    pub retry_after: Option<u32>,
    pub undelivered: bool,
    pub spent: bool,
}

/// The statuses that a refusal has over HTTP and gRPC.
pub(crate) fn statuses(why: &Why) -> (u16, u8) {
    match why.answer() {
        Answer::Refuse { http, grpc } => (http, grpc),
        _ => (503, 14),
    }
}

/// The name of a request, where it is one that may be written anywhere.
pub(crate) fn request_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get("x-request-id")?.to_str().ok()?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:+/=@".contains(&byte);
    ((1..=128).contains(&id.len()) && id.bytes().all(fits)).then_some(id)
}

impl Problem<'_> {
    pub fn response(&self) -> Response<Text> {
        let mut response = match self.grpc {
            Some(grpc) => {
                // A response of trailers only. The message is percent-encoded where it must be.
                let mut response = Response::new(Text::default());
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert("grpc-status", u16::from(grpc).into());
                if let Ok(message) = HeaderValue::from_str(&percent(self.detail)) {
                    headers.insert("grpc-message", message);
                }
                response
            }
            None => {
                let body = Bytes::from(self.json());
                let mut response = Response::new(Text(Some(body)));
                *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_GATEWAY);
                let problem = HeaderValue::from_static("application/problem+json");
                response.headers_mut().insert(header::CONTENT_TYPE, problem);
                response
            }
        };
        let headers = response.headers_mut();
        headers.insert(CODE, HeaderValue::from_static(self.code));
        if let Some(id) = self.request_id.and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert("x-request-id", id);
        }
        if matches!(self.status, 429 | 503) {
            headers.insert(header::RETRY_AFTER, self.retry_after.unwrap_or(1).into());
        }
        for (mark, set) in [(UNDELIVERED, self.undelivered), (SPENT, self.spent)] {
            if set {
                headers.insert(mark, HeaderValue::from_static("1"));
            }
        }
        response
    }

    fn json(&self) -> String {
        let title = StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        let instance = self.request_id.map(|id| format!("urn:buttress:request:{id}"));
        let kind = format!("urn:buttress:{}", self.code);
        let mut out = String::from("{");
        let fields = [
            ("code", Some(self.code)),
            ("detail", Some(self.detail)),
            ("instance", instance.as_deref()),
            ("request_id", self.request_id),
            ("title", Some(title.unwrap_or("Error"))),
            ("type", Some(kind.as_str())),
            ("would_pass", Some(self.would_pass).filter(|text| !text.is_empty())),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                let _ = write!(out, "\"{name}\":");
                quote(value, &mut out);
                out.push(',');
            }
        }
        let _ = write!(out, "\"status\":{}}}", self.status);
        out
    }
}

/// A string of JSON (RFC 8259, 7).
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => out.extend(['\\', char]),
            char if char < ' ' => drop(write!(out, "\\u{:04x}", u32::from(char))),
            char => out.push(char),
        }
    }
    out.push('"');
}

fn percent(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte as char),
            _ => drop(write!(out, "%{byte:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem<'a>() -> Problem<'a> {
        Problem {
            status: 503,
            grpc: None,
            code: "BT-BLK-FULL",
            detail: "a \"quoted\"\n\\detail µs",
            would_pass: "fewer calls",
            request_id: Some("r-1"),
            retry_after: None,
            undelivered: true,
            spent: false,
        }
    }

    #[test]
    fn a_problem_is_json_that_others_read() {
        let mut response = problem().response();
        let body = response.body_mut().0.take().unwrap();
        let read: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let wanted = serde_json::json!({
            "type": "urn:buttress:BT-BLK-FULL", "title": "Service Unavailable", "status": 503, "code": "BT-BLK-FULL",
            "detail": "a \"quoted\"\n\\detail µs", "would_pass": "fewer calls",
            "instance": "urn:buttress:request:r-1", "request_id": "r-1",
        });
        assert_eq!(read, wanted);
        let field = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(
            (field(CODE), field("retry-after"), field("content-type")),
            (Some("BT-BLK-FULL"), Some("1"), Some("application/problem+json"))
        );
        assert_eq!((field(UNDELIVERED), field(SPENT)), (Some("1"), None));
        let later = Problem { retry_after: Some(30), ..problem() }.response();
        assert_eq!(later.headers()["retry-after"], "30");
    }

    #[test]
    fn grpc_is_answered_in_its_own_way() {
        let response = Problem { grpc: Some(14), ..problem() }.response();
        let field = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!((response.status().as_u16(), field("grpc-status")), (200, Some("14")));
        assert_eq!(field("grpc-message"), Some("a \"quoted\"%0A\\detail %C2%B5s"));
        assert!(response.body().is_end_stream());
    }

    #[test]
    fn a_request_is_named_only_by_what_is_harmless() {
        let of = |id: &str| {
            request_id(&HeaderMap::from_iter([("x-request-id".parse().unwrap(), HeaderValue::from_str(id).unwrap())]))
                .is_some()
        };
        assert!(of("4f0c2a9be11d7c35") && of("a.b:c/d=e@f"));
        assert!(!of("") && !of("a b") && !of("<script>") && !of(&"x".repeat(129)));
    }
}
