//! Bytes that hide one request in another, and what RFC 9112 asks of whoever receives them.
//!
//! Where it lets a server repair or refuse, we refuse; each case names the section. Nothing of a refused request may reach
//! the upstream, and nothing behind it may be read as a request.

use crate::support::{Answer, Proxy, Upstream};

/// Name and section, what is sent, and the status that is right.
const REFUSED: &[(&str, &str, u16)] = &[
    (
        "6.1 length and coding",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "6.1 coding and length",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("6.3 two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    (
        "6.3 the same length twice",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        400,
    ),
    ("6.3 a list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
    ("6.2 a length with a sign", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400),
    ("6.2 a negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
    ("6.2 a hexadecimal length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", 400),
    ("6.2 an empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n", 400),
    (
        "6.2 a length that overflows",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551621\r\n\r\nhello",
        400,
    ),
    ("6.1 identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\nhello", 400),
    ("6.1 chunked twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    (
        "6.1 chunked in two fields",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "6.1 chunked is not the last",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "6.1 a coding that we do not know",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
    ),
    ("6.1 something like chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    (
        "6.1 chunked with a tab inside",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chun\tked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("6.1 chunked in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("5.2 a folded field", "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n 2\r\n\r\n", 400),
    ("5.2 a field that begins with a blank", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    ("5.1 a blank before the colon", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello", 400),
    ("5.1 a tab before the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", 400),
    ("5.1 no name", "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", 400),
    ("5 no colon", "GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n", 400),
    ("2.2 bare LF in the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    ("2.2 bare LF behind a field", "GET / HTTP/1.1\r\nHost: a\nX-A: 1\r\n\r\n", 400),
    ("2.2 bare LF at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    ("2.2 bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r2\r\n\r\n", 400),
    ("9110 5.5 NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\x002\r\n\r\n", 400),
    ("9110 5.5 NUL in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\0A: 1\r\n\r\n", 400),
    ("3 NUL in the target", "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("3.2 no host", "GET / HTTP/1.1\r\n\r\n", 400),
    ("3.2 two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("3.2 the same host twice", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    ("3.2 a host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    ("3.2 a host with a user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    ("3.2 two hosts in one field", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    ("3.2.2 a URL with a user", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("3.2.2 a URL without a host", "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("3.2 neither path nor URL", "GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("3.2 a fragment", "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("3.2.3 CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
    ("3 two blanks", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("3 a blank at the end", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    ("3 a tab", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("3 a blank in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("2.3 no version", "GET /\r\nHost: a\r\n\r\n", 400),
    ("2.3 version 2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    ("2.3 a version in small letters", "GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    ("2.2 three empty lines first", "\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("TLS on a port without it", "\x16\x03\x01\x02\0\x01\0\x01", 400),
    (
        "9110 10.1.1 an expectation that we do not know",
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 0\r\n\r\n",
        417,
    ),
    (
        "9110 7.6.1 Connection names the length",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\nhello",
        400,
    ),
];

/// Chunked bodies that are refused once they are read: the head is good, so the upstream may have been told of it, but its
/// request never becomes whole.
const BROKEN_BODIES: &[(&str, &str)] = &[
    ("7.1 a size that is no number", "xyz\r\n"),
    ("7.1 a size with a sign", "+5\r\nhello\r\n0\r\n\r\n"),
    ("7.1 a size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
    ("7.1 an empty size", "\r\nhello\r\n0\r\n\r\n"),
    ("7.1 a size of 16 digits", "0000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("7.1 a size that overflows", "ffffffffffffffff0\r\nhello\r\n"),
    ("7.1 bare LF behind the size", "5\nhello\r\n0\r\n\r\n"),
    ("7.1 bare LF behind the data", "5\r\nhello\n0\r\n\r\n"),
    ("7.1 a chunk that is longer than its size", "5\r\nhello!\r\n0\r\n\r\n"),
    ("7.1 a blank before the size", " 5\r\nhello\r\n0\r\n\r\n"),
    ("7.1.1 something behind the size", "5 x\r\nhello\r\n0\r\n\r\n"),
    ("7.1.1 bare CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
    ("7.1.2 a length in the trailers", "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"),
    ("7.1.2 a coding in the trailers", "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("7.1.2 a folded trailer", "5\r\nhello\r\n0\r\nX-A: 1\r\n 2\r\n\r\n"),
];

/// What would be answered as a second request if the first one's end were misread.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn what_could_be_read_in_two_ways_is_refused_and_never_reaches_the_upstream() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    for (name, bytes, status) in REFUSED {
        let answer = Answer::parse(&proxy.exchange(format!("{bytes}{HIDDEN}").as_bytes()));
        assert_eq!(answer.status, *status, "{name}: {answer:?}");
        assert_eq!(answer.field("content-type"), Some("application/problem+json"), "{name}");
        assert_eq!(answer.field("connection"), Some("close"), "{name}");
        let code = answer.field("buttress-code").unwrap_or_default().to_ascii_uppercase();
        assert!(answer.body.contains(&format!("\"code\":\"{code}\"")), "{name}: {answer:?}");
        assert!(!answer.body.contains("HTTP/1.1 "), "{name}: one answer, not two: {answer:?}");
    }
    assert_eq!(upstream.requests(), Vec::<String>::new());
}

#[test]
fn a_body_with_a_wrong_frame_never_becomes_whole_and_hides_no_request() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    for (name, body) in BROKEN_BODIES {
        let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}{HIDDEN}");
        let text = proxy.exchange(bytes.as_bytes());
        let answer = Answer::parse(&text);
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{name}: {text}");
    }
    assert!(!upstream.requests().iter().any(|head| head.contains("/hidden")), "{:?}", upstream.requests());
}

#[test]
fn what_is_merely_unusual_passes_and_is_written_anew() {
    let upstream = Upstream::new(|_, connection| {
        while let Some((_, body)) = connection.read_request() {
            let body = String::from_utf8(body).unwrap().replace("\r\n", "|");
            connection.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
        }
    });
    let proxy = Proxy::to(&[upstream.address]);
    let close = "Host: a\r\nConnection: close\r\n";
    let chunked = format!("POST / HTTP/1.1\r\n{close}Transfer-Encoding: Chunked\r\n\r\n");
    for (name, request, body) in [
        ("extensions end here", format!("{chunked}5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n"), "5|hello|0||"),
        ("leading zeros end here", format!("{chunked}0005\r\nhello\r\n000\r\n\r\n"), "5|hello|0||"),
        ("an empty line first", format!("\r\nPOST / HTTP/1.1\r\n{close}Content-Length: 2\r\n\r\nhi"), "hi"),
        (
            "no blank behind the colon",
            "POST / HTTP/1.1\r\nHost:a\r\nConnection:close\r\nContent-Length:2\r\n\r\nhi".into(),
            "hi",
        ),
        ("HTTP/1.0 without a host", "POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi".into(), "hi"),
    ] {
        let answer = proxy.ask(&request);
        assert_eq!((answer.status, answer.body.as_str()), (200, body), "{name}: {answer:?}");
    }
    // The target's authority counts, not the field's (RFC 9112, 3.2.2).
    proxy.ask("GET http://right/x HTTP/1.1\r\nHost: wrong\r\nConnection: close\r\n\r\n");
    let last = upstream.requests().pop().unwrap();
    assert!(last.starts_with("GET /x HTTP/1.1\r\nhost: right\r\n") && !last.contains("wrong"), "{last}");
}

#[test]
fn heads_that_are_too_large_get_431() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX-A: {}\r\n\r\n", "a".repeat(70_000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X-A: 1\r\n".repeat(100));
    for request in [long, many] {
        let answer = proxy.ask(&request);
        assert_eq!((answer.status, answer.field("buttress-code")), (431, Some("bt0903")), "{answer:?}");
    }
    assert_eq!(upstream.requests(), Vec::<String>::new());
}

#[test]
fn answers_that_could_be_read_in_two_ways_become_502() {
    for (name, response) in [
        ("length and coding", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        ("a folded field", "HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\nContent-Length: 0\r\n\r\n"),
        ("bare LF", "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n"),
        ("no status line", "hello world\r\n\r\n"),
        ("a status of four digits", "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
        ("101 that nobody asked for", "HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    ] {
        let upstream = Upstream::new(move |_, connection| {
            connection.read_request();
            connection.write(response.as_bytes());
        });
        let proxy = Proxy::to(&[upstream.address]);
        let answer = proxy.ask("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        assert_eq!((answer.status, answer.field("buttress-code")), (502, Some("bt0908")), "{name}: {answer:?}");
    }
}
