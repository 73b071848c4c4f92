//! What the fuzzer runs: heads and framed bodies that anybody can send.

use bytes::{Bytes, BytesMut};
use http::Method;

use crate::{
    forward::{self, Added},
    frame::{Decoder, Step},
    parse::{self, Length, RequestHead, Scanner},
    request_id::RequestId,
};

/// A request's head. What is forwarded of it is read again as the same request, and frames its body in one way.
pub fn request(input: &[u8]) {
    let Some(request) = read(input) else { return };
    let (id, mut out) = (RequestId::Made(*b"0123456789abcdef"), BytesMut::new());
    let added = Added {
        id: &id,
        address: "192.0.2.1",
        traceparent: b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        attempt: 2,
        left_ms: Some(1000),
        endpoint: "up:80",
        rewrite: None,
        path: None,
    };
    forward::write_head(&request, &added, &mut out);
    let text = String::from_utf8_lossy(&out).to_ascii_lowercase();
    let lengths = text.matches("\r\ncontent-length:").count();
    let codings = text.matches("\r\ntransfer-encoding:").count();
    assert!(lengths + codings <= 1, "{text}");
    // Fewer than twelve fields are added to those that came.
    if request.fields.len() + 12 <= parse::FIELDS_MAX
        && let Some(again) = read(&out)
    {
        assert_eq!((&again.method, &again.path, again.length), (&request.method, &request.path, request.length));
        assert!(!again.authority.is_empty());
    } else {
        assert!(out.len() > parse::HEAD_BYTES_MAX || request.fields.len() + 12 > parse::FIELDS_MAX, "{text}");
    }
}

fn read(input: &[u8]) -> Option<RequestHead> {
    let mut scanner = Scanner::default();
    let end = scanner.end(input).ok()??;
    assert!(scanner.begin < end && end <= input.len());
    parse::request(Bytes::copy_from_slice(&input[scanner.begin..end])).ok()
}

/// A response's head, and however it is cut, the end is found at the same place.
pub fn response(input: &[u8]) {
    let whole = Scanner::default().end(input);
    let mut scanner = Scanner::default();
    let pieces = (1..=input.len()).map(|upto| scanner.end(&input[..upto])).find(|end| !matches!(end, Ok(None)));
    assert_eq!(pieces.unwrap_or(Ok(None)).ok(), whole.ok());
    if let Ok(Some(end)) = whole {
        let _ = parse::response(Bytes::copy_from_slice(&input[..end]), &Method::GET);
    }
}

/// A chunked body: however it is cut, the same bytes come out, and no more than went in.
pub fn chunks(input: &[u8]) {
    let decode = |cut: usize| {
        let (mut decoder, mut bytes, mut data) = (Decoder::new(Length::Chunked), BytesMut::new(), Vec::new());
        for piece in input.chunks(cut) {
            bytes.extend_from_slice(piece);
            loop {
                match decoder.step(&mut bytes) {
                    Ok(Step::Data(piece)) => data.extend_from_slice(&piece),
                    Ok(Step::Trailers(_)) => {}
                    Ok(Step::End) => return (data, true, false),
                    Ok(Step::More) => break,
                    Err(_) => return (data, false, true),
                }
            }
        }
        (data, false, false)
    };
    let whole = decode(input.len().max(1));
    assert!(whole.0.len() <= input.len());
    assert_eq!(decode(1), whole);
}

pub fn requests() -> Vec<Vec<u8>> {
    [
        "GET /a?b=c HTTP/1.1\r\nHost: a.example:80\r\nAccept: */*\r\n\r\n",
        "POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close, x-a\r\nX-A: 1\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: [::1]:8080\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
        "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
        "OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub fn responses() -> Vec<Vec<u8>> {
    [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\nRetry-After: 1\r\n\r\n",
        "HTTP/1.0 204\r\nConnection: close\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub fn bodies() -> Vec<Vec<u8>> {
    ["5\r\nhello\r\n0\r\n\r\n", "3;a=\"b\"\r\nabc\r\n0A\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}
