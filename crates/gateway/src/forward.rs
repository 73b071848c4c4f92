//! From the request that came to the request that goes on: which fields end here, and which are added.
//!
//! | field | what we do | why |
//! |---|---|---|
//! | Connection and what it names, Keep-Alive, Proxy-Connection, TE, Transfer-Encoding, Upgrade | end here | RFC 9110, 7.6.1; Upgrade is asked for anew when the client asked, `h2c` never |
//! | Content-Length | written anew from what was read | never beside Transfer-Encoding |
//! | Expect | ends here; we say `100 Continue` when the upstream can take the body | the upstream must not wait for us |
//! | Via | `1.1 buttress` is added to requests | RFC 9110, 7.6.3: a gateway must; to responses it may, and we do not |
//! | X-Forwarded-For | the client's address is added behind what is there | |
//! | X-Forwarded-Client-Cert | ends here unless it is to be kept; what a client proved to us is written in Envoy's form | anybody can write one |
//! | X-Forwarded-Proto | kept, or `http`, or `https` where the client came with TLS | behind a balancer that ends TLS, it knows and we do not |
//! | Buttress-Caller | ends here; written where the route knows who calls | else anybody could be anybody |
//! | the field of an API key | ends here, where the route asks for one | a secret between the client and us |
//! | X-Request-Id | kept where it is harmless, or made | names the request in records and in the answer |
//! | traceparent | kept where it is valid, or begun; of the attempt's span where spans are exported | W3C trace context; [`crate::trace`] |

use std::{fmt::Write as _, time::Duration};

use buttress_policy::parse::to_grpc_timeout;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, Version};

use crate::{
    auth::CALLER_FIELD,
    body::Body,
    frame::Encoder,
    parse::{Kind, Length, RequestHead},
    proxy::Client,
    reply::line,
    request_id::{RequestId, traceparent_ok},
    rules::Rewrite,
};

/// What is added to a request, beside its own fields.
pub struct Added<'a> {
    pub id: &'a RequestId,
    pub client: &'a Client<'a>,
    pub traceparent: &'a [u8],
    /// Which attempt of this hop or of the one before; not written for the first.
    pub attempt: u32,
    /// What is left of the deadline, in milliseconds.
    pub left_ms: Option<u64>,
    /// What the upstream is called where the client named nothing.
    pub endpoint: &'a str,
    /// The upstream is asked within TLS.
    pub tls: bool,
    /// What the route changes.
    pub rewrite: Option<&'a Rewrite>,
    /// The path in place of the client's.
    pub path: Option<&'a [u8]>,
    pub known: Known<'a>,
}

/// What a route with `auth` knows of the client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// Who calls, as it can stand in a field.
    pub caller: Option<&'a str>,
    /// The field that holds a secret, and ends here.
    pub withheld: Option<&'a str>,
}

impl<'a> Added<'a> {
    fn host(&'a self, request: &'a RequestHead) -> &'a [u8] {
        match self.rewrite.and_then(|rewrite| rewrite.host.as_ref()) {
            Some(host) => host.as_bytes(),
            None if request.authority.is_empty() => self.endpoint.as_bytes(),
            None => &request.authority,
        }
    }

    fn path(&'a self, request: &'a RequestHead) -> &'a [u8] {
        self.path.unwrap_or(&request.path)
    }

    /// Whether a field of the client's goes on.
    fn passes(&self, kind: Kind, name: &[u8]) -> bool {
        passes(kind)
            && self.rewrite.is_none_or(|rewrite| !rewrite.ends(name))
            && self.known.withheld.is_none_or(|withheld| !withheld.as_bytes().eq_ignore_ascii_case(name))
    }

    fn set(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.rewrite.into_iter().flat_map(|rewrite| rewrite.set.iter().map(|(name, value)| (&**name, &**value)))
    }
}

/// The field by which a hop says that a request is a retry, and which one.
pub const ATTEMPT_FIELD: &str = "buttress-attempt";
/// The field by which a hop says how much time is left, in milliseconds.
pub const TIMEOUT_FIELD: &str = "buttress-timeout-ms";

/// Whether a field of the request goes on as it is.
fn passes(kind: Kind) -> bool {
    !kind.hop_by_hop()
        && !matches!(
            kind,
            Kind::Caller
                | Kind::Host
                | Kind::ContentLength
                | Kind::Expect
                | Kind::ForwardedFor
                | Kind::ForwardedProto
                | Kind::ClientCert
                | Kind::GrpcTimeout
                | Kind::RequestId
                | Kind::RetryAttempt
                | Kind::Timeout
                | Kind::Traceparent
        )
}

pub fn is_grpc(request: &RequestHead) -> bool {
    request.fields.get(Kind::ContentType).is_some_and(|value| value.starts_with(b"application/grpc"))
}

/// How a request's body is framed upstream.
pub fn encoder(length: Length) -> Encoder {
    match length {
        Length::Known(bytes) => Encoder::Length(bytes),
        Length::Chunked | Length::UntilClose => Encoder::Chunked,
    }
}

/// Writes the head for an upstream that speaks HTTP/1.1.
pub fn write_head(request: &RequestHead, added: &Added<'_>, out: &mut BytesMut) {
    out.reserve(512);
    for part in [request.method.as_str().as_bytes(), b" ", added.path(request), b" HTTP/1.1\r\n"] {
        out.put_slice(part);
    }
    line(out, b"host", added.host(request));
    for (kind, name, value) in request.fields.iter() {
        if added.passes(kind, name) {
            line(out, name, value);
        }
    }
    for (name, value) in added.set() {
        line(out, name.as_bytes(), value.as_bytes());
    }
    if let Some(caller) = added.known.caller {
        line(out, CALLER_FIELD.as_bytes(), caller.as_bytes());
    }
    if request.upgrade
        && let Some(protocol) = request.fields.get(Kind::Upgrade)
    {
        out.put_slice(b"connection: upgrade\r\n");
        line(out, b"upgrade", protocol);
    }
    out.put_slice(b"x-forwarded-for: ");
    for (_, _, value) in request.fields.iter().filter(|(kind, ..)| *kind == Kind::ForwardedFor) {
        out.put_slice(value);
        out.put_slice(b", ");
    }
    out.put_slice(added.client.address.as_bytes());
    out.put_slice(b"\r\n");
    line(
        out,
        b"x-forwarded-proto",
        request.fields.get(Kind::ForwardedProto).unwrap_or(added.client.scheme().as_bytes()),
    );
    if let Some(certificate) = client_cert(request, added.client) {
        line(out, b"x-forwarded-client-cert", &certificate);
    }
    line(out, b"x-request-id", added.id.as_str().as_bytes());
    line(out, b"traceparent", added.traceparent);
    out.put_slice(b"via: 1.1 buttress\r\n");
    if added.attempt > 1 {
        let _ = write!(out, "{ATTEMPT_FIELD}: {}\r\n", added.attempt);
    }
    if let Some(left) = added.left_ms {
        let _ = write!(out, "{TIMEOUT_FIELD}: {left}\r\n");
    }
    match request.length {
        // Whoever sends a body of no length says so; a GET without one says nothing.
        Length::Known(0) if request.fields.get(Kind::ContentLength).is_none() && !body_is_usual(&request.method) => {}
        Length::Known(bytes) => {
            let _ = write!(out, "content-length: {bytes}\r\n");
        }
        Length::Chunked | Length::UntilClose => out.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.put_slice(b"\r\n");
}

/// Who the client proved to be, behind what proxies before us said where that is believed.
fn client_cert(request: &RequestHead, client: &Client<'_>) -> Option<Vec<u8>> {
    if !client.keep_client_cert && client.certificate.is_none() {
        return None;
    }
    let fields = request.fields.iter().filter(|(kind, ..)| client.keep_client_cert && *kind == Kind::ClientCert);
    let all = fields.map(|(_, _, value)| value).chain(client.certificate.map(str::as_bytes));
    let all: Vec<&[u8]> = all.collect();
    (!all.is_empty()).then(|| all.join(&b","[..]))
}

fn body_is_usual(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}

/// The trace that a request belongs to, where it says so in a form that may go on.
pub fn traceparent(request: &RequestHead) -> Option<&[u8]> {
    request.fields.get(Kind::Traceparent).filter(|value| traceparent_ok(value))
}

/// The same request for an upstream that speaks HTTP/2.
///
/// # Errors
/// Where the path or the authority is none that HTTP/2 can carry.
pub fn http2(request: &RequestHead, added: &Added<'_>, body: Body) -> Result<http::Request<Body>, http::Error> {
    let uri = http::Uri::builder()
        .scheme(if added.tls { "https" } else { "http" })
        .authority(added.host(request))
        .path_and_query(added.path(request))
        .build()?;
    let mut built = http::Request::builder().method(&request.method).uri(uri).version(Version::HTTP_2).body(body)?;
    let headers = built.headers_mut();
    let mut trailers = is_grpc(request);
    for (kind, name, value) in request.fields.iter() {
        trailers |= kind == Kind::Te && value.eq_ignore_ascii_case(b"trailers");
        if added.passes(kind, name) {
            headers.append(HeaderName::from_bytes(name)?, HeaderValue::from_bytes(value)?);
        }
    }
    for (name, value) in added.set() {
        headers.insert(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
    }
    if let Some(caller) = added.known.caller {
        headers.insert(CALLER_FIELD, HeaderValue::from_str(caller)?);
    }
    let before = request.fields.iter().filter(|(kind, ..)| *kind == Kind::ForwardedFor).map(|(_, _, value)| value);
    let mut chain = before.flat_map(|value| [value, b", "]).collect::<Vec<_>>().concat();
    chain.extend_from_slice(added.client.address.as_bytes());
    let proto = request.fields.get(Kind::ForwardedProto).unwrap_or(added.client.scheme().as_bytes());
    if let Some(certificate) = client_cert(request, added.client) {
        headers.insert("x-forwarded-client-cert", HeaderValue::from_bytes(&certificate)?);
    }
    for (name, value) in [
        ("x-forwarded-for", &chain[..]),
        ("x-forwarded-proto", proto),
        ("x-request-id", added.id.as_str().as_bytes()),
        ("traceparent", added.traceparent),
    ] {
        headers.insert(name, HeaderValue::from_bytes(value)?);
    }
    headers.append("via", HeaderValue::from_static("2 buttress"));
    if trailers {
        headers.insert("te", HeaderValue::from_static("trailers"));
    }
    if added.attempt > 1 {
        headers.insert(ATTEMPT_FIELD, added.attempt.into());
    }
    match (added.left_ms, is_grpc(request)) {
        (Some(left), true) => {
            headers.insert("grpc-timeout", HeaderValue::from_str(&to_grpc_timeout(Duration::from_millis(left)))?);
        }
        (Some(left), false) => {
            headers.insert(TIMEOUT_FIELD, left.into());
        }
        (None, _) => {
            if let Some(asked) = request.fields.get(Kind::GrpcTimeout) {
                headers.insert("grpc-timeout", HeaderValue::from_bytes(asked)?);
            }
        }
    }
    if let Length::Known(bytes) = request.length
        && (bytes > 0 || request.fields.get(Kind::ContentLength).is_some())
    {
        headers.insert(http::header::CONTENT_LENGTH, bytes.into());
    }
    Ok(built)
}

/// A request over HTTP/2 in the form in which all requests are handled here.
///
/// # Errors
/// What must not be forwarded.
pub fn from_http2(
    parts: &http::request::Parts,
    body: &hyper::body::Incoming,
) -> Result<RequestHead, crate::parse::Refusal> {
    use buttress_core::Code;
    let bad = |status, code, says| crate::parse::Refusal { status, code, says };
    if parts.method == Method::CONNECT {
        return Err(bad(501, Code::HTTP_UNSUPPORTED, "CONNECT is not served"));
    }
    let host = parts.headers.get(http::header::HOST).map(|host| host.as_bytes());
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes()).or(host).unwrap_or_default();
    if !crate::parse::authority_ok(authority) {
        return Err(bad(400, Code::HTTP_MALFORMED, "the authority is not a host and a port"));
    }
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    if !path.starts_with('/') && path != "*" {
        return Err(bad(400, Code::HTTP_MALFORMED, "the path does not begin with a slash"));
    }
    if parts.headers.len() > crate::parse::FIELDS_MAX {
        return Err(bad(431, Code::HTTP_HEAD_TOO_LARGE, "there are more than 100 fields"));
    }
    let length = match http_body::Body::size_hint(body).exact() {
        Some(bytes) => Length::Known(bytes),
        None => Length::Chunked,
    };
    Ok(RequestHead {
        method: parts.method.clone(),
        path: Bytes::copy_from_slice(path.as_bytes()),
        authority: Bytes::copy_from_slice(authority),
        fields: crate::parse::Fields::from_map(&parts.headers),
        length,
        minor: 1,
        keep_alive: true,
        upgrade: false,
        expects_continue: false,
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn forwarded(head: &str) -> String {
        let request = crate::parse::request(Bytes::copy_from_slice(head.as_bytes())).unwrap();
        let (mut out, id) = (BytesMut::new(), RequestId::kept(b"id-1").unwrap());
        let added = Added {
            id: &id,
            client: &Client { address: "192.0.2.7", ..Client::default() },
            traceparent: b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
            attempt: 1,
            left_ms: None,
            endpoint: "up:1",
            tls: false,
            rewrite: None,
            path: None,
            known: Known::default(),
        };
        write_head(&request, &added, &mut out);
        String::from_utf8(out.to_vec()).unwrap().replace("\r\n", "\n")
    }

    #[test]
    fn what_is_for_one_hop_ends_here_and_what_an_outer_proxy_said_stays() {
        expect![[r#"
            GET /a?b HTTP/1.1
            host: shop.example
            Accept: */*
            Authorization: secret
            x-forwarded-for: 10.0.0.1, 192.0.2.7
            x-forwarded-proto: https
            x-request-id: id-1
            traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00
            via: 1.1 buttress

        "#]]
        .assert_eq(&forwarded(
            "GET http://shop.example/a?b HTTP/1.1\r\nHost: other\r\nAccept: */*\r\nConnection: x-private, authorization, \
             x-forwarded-for\r\nX-Private: 1\r\nAuthorization: secret\r\nKeep-Alive: 5\r\nTE: trailers\r\nUpgrade: h2c\r\n\
             X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Request-Id: id-1\r\n\r\n",
        ));
    }

    #[test]
    fn a_body_has_one_frame_and_an_upgrade_is_asked_for_anew() {
        expect![[r#"
            POST / HTTP/1.1
            host: h
            x-forwarded-for: 192.0.2.7
            x-forwarded-proto: http
            x-request-id: id-1
            traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00
            via: 1.1 buttress
            transfer-encoding: chunked

        "#]]
        .assert_eq(&forwarded("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"));
        let upgrade = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert!(forwarded(upgrade).contains("connection: upgrade\nupgrade: websocket\n"));
        assert!(!forwarded(&upgrade.replace("websocket", "h2c")).contains("upgrade"));
    }

    #[test]
    fn the_caller_is_who_we_say_on_both_protocols_and_a_key_goes_no_further() {
        let head =
            "GET / HTTP/1.1\r\nHost: h\r\nX-Api-Key: secret\r\nButtress_Caller: root\r\nbuttress-caller: root\r\n\r\n";
        let request = crate::parse::request(Bytes::from_static(head.as_bytes())).unwrap();
        let id = RequestId::kept(b"id-1").unwrap();
        let mut added = Added {
            id: &id,
            client: &Client { address: "192.0.2.7", ..Client::default() },
            tls: false,
            traceparent: b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
            attempt: 1,
            left_ms: None,
            endpoint: "up:1",
            rewrite: None,
            path: None,
            known: Known { caller: Some("alice"), withheld: Some("x-api-key") },
        };
        let written = |added: &Added<'_>| {
            let mut out = BytesMut::new();
            write_head(&request, added, &mut out);
            let http2 = http2(&request, added, Body::empty()).unwrap();
            (String::from_utf8(out.to_vec()).unwrap().to_ascii_lowercase(), format!("{:?}", http2.headers()))
        };
        for text in <[String; 2]>::from(written(&added)) {
            assert!(text.contains("alice") && !text.contains("root") && !text.contains("secret"), "{text}");
        }
        added.known = Known::default();
        for text in <[String; 2]>::from(written(&added)) {
            assert!(!text.contains("caller") && text.contains("secret"), "{text}");
        }
    }
}
