//! Peers that misbehave on the wire: they drip, they reset in the middle, they never read, they open and abandon. Whatever they do, others
//! are served, what is held for them is bounded, and nothing is sent twice that must not be.

use std::{
    cell::Cell,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{self, SeqCst},
        },
    },
    thread,
    time::Duration,
};

use buttress_gateway::{compile::Declared, table::Place};
use serde_json::{Value, json};

use crate::support::{Proxy, Upstream, read_answer, until};

fn route(name: &str, spec: Value) -> Declared {
    let place = Place { file: "routes.yaml".into(), line: 1 };
    Declared { name: name.into(), spec: serde_json::from_value(spec).unwrap(), place, match_lines: vec![] }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HEADERS of a GET for `/`, at its end.
fn get(stream: u32) -> Vec<u8> {
    frame(1, 5, stream, b"\x82\x86\x84\x41\x01a")
}

fn asks(proxy: &Proxy) -> u16 {
    proxy.ask("GET /other HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").status
}

#[test]
fn a_head_that_drips_ends_however_steadily_it_drips_and_others_are_served_meanwhile() {
    let upstream = Upstream::answering("ok");
    // One thread carries all traffic, so whoever held it up would hold up everybody.
    let proxy = Proxy::with(&[upstream.address], |options| options.timeouts.head = Duration::from_millis(500));
    let mut drips: Vec<TcpStream> = (0..50).map(|_| proxy.connect()).collect();
    for drip in &mut drips {
        drip.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Drip: ").unwrap();
    }
    let writers: Vec<TcpStream> = drips.iter().map(|drip| drip.try_clone().unwrap()).collect();
    // A byte each now and then, for as long as it is taken.
    let dripping = thread::spawn(move || {
        let mut writers = writers;
        while !writers.is_empty() {
            writers.retain_mut(|writer| writer.write_all(b"x").is_ok());
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(asks(&proxy), 200);
    for drip in &mut drips {
        let mut answer = Vec::new();
        // A reset may follow, because of the bytes that came after.
        let _ = drip.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    dripping.join().unwrap();
    assert_eq!(asks(&proxy), 200);
    assert!(upstream.requests().iter().all(|head| head.starts_with("GET /other ")));
}

#[test]
fn a_body_that_stops_coming_ends_with_the_deadline_and_frees_the_upstream() {
    let left = Arc::new(AtomicUsize::new(0));
    let seen = left.clone();
    let upstream = Upstream::new(move |_, connection| {
        let Some(head) = connection.read_head() else { return };
        if head.starts_with("GET") {
            return connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        // Until the proxy closes.
        while connection.stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
        seen.fetch_add(1, SeqCst);
    });
    let spec = json!({"to": [{"endpoints": upstream.address.to_string()}], "deadline": "500ms"});
    let proxy = Proxy::routing(&[route("r", spec)], |_| {});
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nonly this").unwrap();
    assert_eq!(asks(&proxy), 200);
    let answer = read_answer(&mut stream);
    assert_eq!((answer.status, answer.field("connection")), (504, Some("close")), "{answer:?}");
    until("the upstream is left alone", || left.load(SeqCst) == 1);
    assert_eq!(upstream.requests().iter().filter(|head| head.starts_with("POST")).count(), 1);
}

#[test]
fn a_client_that_never_reads_costs_a_bounded_piece_of_a_large_answer() {
    const LARGE: usize = 256 << 20;
    let (written, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, over) = (written.clone(), ended.clone());
    let upstream = Upstream::new(move |_, connection| {
        let Some(head) = connection.read_head() else { return };
        if head.starts_with("GET /other") {
            return connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        connection.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes());
        let piece = vec![b'x'; 64 * 1024];
        while count.load(SeqCst) < LARGE && connection.stream.write_all(&piece).is_ok() {
            count.fetch_add(piece.len(), SeqCst);
        }
        over.fetch_add(1, SeqCst);
    });
    let proxy = Proxy::to(&[upstream.address]);
    for http2 in [false, true] {
        written.store(0, SeqCst);
        let (before, mut client) = (ended.load(SeqCst), proxy.connect());
        let request = if http2 { [PREFACE, &get(1)].concat() } else { b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec() };
        client.write_all(&request).unwrap();
        // It stands still when what lies between is full: buffers of the kernel and one of ours.
        let last = Cell::new(0);
        until("the upstream can write no more", || {
            thread::sleep(Duration::from_millis(300));
            let now = written.load(SeqCst);
            now > 0 && last.replace(now) == now
        });
        assert!(last.get() < LARGE / 4, "{last:?} bytes went into a client that reads none (HTTP/2: {http2})");
        assert_eq!(asks(&proxy), 200);
        drop(client);
        until("the upstream hears that nobody wants it", || ended.load(SeqCst) > before);
    }
}

#[test]
fn an_upstream_that_resets_in_mid_request_is_asked_again_only_where_that_is_safe() {
    let upstream = Upstream::new(move |number, connection| {
        let Some(head) = connection.read_only_head() else { return };
        if number == 0 || head.starts_with("POST") {
            // Closed with bytes that nobody has read, which the kernel tells as a reset.
            let _ = connection.stream.peek(&mut [0; 1]);
            return;
        }
        let length: usize =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |text| text.parse().unwrap());
        let mut body = connection.rest();
        while body.len() < length {
            let mut buffer = [0; 64 * 1024];
            let read = connection.stream.read(&mut buffer).unwrap();
            body.extend_from_slice(&buffer[..read]);
        }
        // It closes now, and a proxy that was not told might send the next request into that.
        let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        connection.write(head.as_bytes());
        connection.write(&body);
    });
    // No breaker and no ejection: this is of the request alone.
    let spec = json!({"to": [{"endpoints": upstream.address.to_string()}], "breaker": "off", "outlier": "off"});
    let proxy = Proxy::routing(&[route("r", spec)], |_| {});
    let ask = |method: &str, length: usize| {
        let body = "b".repeat(length);
        proxy.ask(&format!(
            "{method} /{method} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    };
    let count = |method: &str| upstream.requests().iter().filter(|head| head.starts_with(method)).count();
    // Small enough to be kept for the second attempt.
    let answer = ask("PUT", 60_000);
    assert_eq!((answer.status, answer.body.len(), count("PUT")), (200, 60_000, 2), "the whole body goes again");
    let answer = ask("POST", 60_000);
    assert_eq!((answer.status, count("POST")), (502, 1), "{answer:?}");
    assert!(answer.field("buttress-code").is_some(), "{answer:?}");
    assert_eq!(ask("PUT", 5).status, 200);
}

#[test]
fn an_upstream_that_resets_in_mid_answer_cuts_it_and_is_not_asked_again() {
    for chunked in [false, true] {
        let upstream = Upstream::new(move |_, connection| {
            connection.read_only_head();
            let frame = if chunked { "Transfer-Encoding: chunked" } else { "Content-Length: 100000" };
            connection.write(format!("HTTP/1.1 200 OK\r\n{frame}\r\n\r\n").as_bytes());
            if chunked {
                connection.write(b"186a0\r\n");
            }
            connection.write(&[b'x'; 1000]);
            let _ = connection.stream.peek(&mut [0; 1]);
        });
        let proxy = Proxy::to(&[upstream.address]);
        let body = "b".repeat(60_000);
        let text =
            proxy.exchange(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n{body}").as_bytes());
        assert!(text.len() < 100_000 && !text.ends_with("0\r\n\r\n"), "nobody takes it for the whole");
        assert_eq!(upstream.requests().len(), 1, "an answer that has begun is not asked for again");
    }
}

#[test]
fn an_upstream_that_closes_one_side_without_an_answer_is_no_answer() {
    let upstream = Upstream::new(|_, connection| {
        connection.read_head();
        connection.stream.shutdown(Shutdown::Write).unwrap();
        // It goes on to read, so that no write of the proxy fails.
        while connection.stream.read(&mut [0; 64 * 1024]).is_ok_and(|read| read > 0) {}
    });
    let proxy = Proxy::to(&[upstream.address]);
    let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
    let whole = proxy.ask(&format!("{head}Content-Length: 5\r\n\r\nhello"));
    assert_eq!((whole.status, upstream.requests().len()), (502, 1), "{whole:?}");
    // Nor is one waited for until all of a request has come.
    let mut stream = proxy.connect();
    stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").as_bytes()).unwrap();
    assert_eq!(read_answer(&mut stream).status, 502);
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn streams_that_are_opened_and_reset_without_end_cost_the_client_its_connection_and_nobody_else_anything() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    let mut client = proxy.connect();
    client.write_all(PREFACE).unwrap();
    let mut reader = client.try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut said = Vec::new();
        let _ = reader.read_to_end(&mut said);
        said
    });
    // CVE-2023-44487: a request and its reset, again and again.
    let mut taken = 0;
    for at in 0..20_000u32 {
        let stream = 2 * at + 1;
        let pair = [get(stream), frame(3, 0, stream, &8u32.to_be_bytes())].concat();
        if client.write_all(&pair).is_err() {
            break;
        }
        taken = at + 1;
    }
    assert_eq!(asks(&proxy), 200);
    let _ = client.shutdown(Shutdown::Both);
    let said = reading.join().unwrap();
    // GOAWAY (type 7) with ENHANCE_YOUR_CALM (11): the frames that we are sent stand behind each other.
    let (mut at, mut goaway) = (0, None);
    while let Some(head) = said.get(at..at + 9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if head[3] == 7 {
            goaway = said.get(at + 13..at + 17).map(<[u8]>::to_vec);
        }
        at += 9 + length;
    }
    assert_eq!(goaway.as_deref(), Some(&11u32.to_be_bytes()[..]), "after {taken} streams");
    let begun = upstream.connections.load(Ordering::SeqCst);
    assert!(begun < 1_000, "{begun} connections for requests that nobody waited for");
}

#[test]
fn heads_that_never_end_over_http2_are_bounded_too() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    let mut client = proxy.connect();
    client.write_all(PREFACE).unwrap();
    // HEADERS without END_HEADERS, then CONTINUATION for ever (CVE-2024-27316).
    client.write_all(&frame(1, 1, 1, b"\x82\x86\x84\x41\x01a")).unwrap();
    let field = [b"\x00\x03x-a\x7f\x81\x7f".as_slice(), &[b'v'; 255]].concat();
    let piece = frame(9, 0, 1, &field.repeat(32));
    let mut sent = 0;
    while sent < 64 << 20 && client.write_all(&piece).is_ok() {
        sent += piece.len();
    }
    assert!(sent < 64 << 20, "somebody took all of it");
    assert_eq!(asks(&proxy), 200);
    // One that is large and ends is answered 431, or refused.
    let mut client = proxy.connect();
    client.write_all(PREFACE).unwrap();
    let mut large = vec![frame(1, 1, 1, b"\x82\x86\x84\x41\x01a")];
    large.extend((0..20).map(|_| frame(9, 0, 1, &field.repeat(32))));
    large.push(frame(9, 4, 1, &field));
    let _ = client.write_all(&large.concat());
    client.shutdown(Shutdown::Write).unwrap_or_default();
    let mut said = Vec::new();
    let _ = client.read_to_end(&mut said);
    assert_eq!(asks(&proxy), 200);
    assert!(upstream.requests().iter().all(|head| head.starts_with("GET /other ")), "none of it went on");
}

#[test]
fn no_frames_of_http2_stop_the_proxy_or_reach_the_upstream_as_a_request() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut draw = move |below: u64| {
        // Xorshift: the same frames each time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for connection in 0..100 {
        let mut bytes = PREFACE.to_vec();
        for _ in 0..20 {
            let payload: Vec<u8> = (0..draw(64)).map(|_| draw(256) as u8).collect();
            // Known kinds and unknown ones, streams of ours, of theirs and none, now and then a length that lies.
            let mut one = frame(draw(12) as u8, draw(256) as u8, draw(5) as u32, &payload);
            if draw(20) == 0 {
                one[0] = draw(256) as u8;
            }
            bytes.extend_from_slice(&one);
        }
        let mut client = proxy.connect();
        let _ = client.write_all(&bytes);
        let _ = client.shutdown(Shutdown::Write);
        let mut said = Vec::new();
        let _ = client.read_to_end(&mut said);
        if connection % 10 == 0 {
            assert_eq!(asks(&proxy), 200, "after connection {connection}");
        }
    }
    assert_eq!(asks(&proxy), 200);
    assert!(upstream.requests().iter().all(|head| head.starts_with("GET /other ")), "{:?}", upstream.requests());
}

#[test]
fn a_crowd_of_idle_connections_cost_nobody_an_answer_and_go_by_themselves() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::with(&[upstream.address], |options| options.timeouts.idle = Duration::from_secs(2));
    // As many as the usual limit of descriptors lets a test have on both ends.
    let mut crowd: Vec<TcpStream> = (0..400).map(|_| proxy.connect()).collect();
    for (at, one) in crowd.iter_mut().enumerate() {
        // Some have asked once, some never, some have begun.
        match at % 3 {
            0 => {
                one.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
                assert_eq!(read_answer(one).status, 200);
            }
            1 => one.write_all(b"GET / HT").unwrap(),
            _ => {}
        }
    }
    for _ in 0..20 {
        assert_eq!(asks(&proxy), 200);
    }
    for mut one in crowd {
        let mut rest = Vec::new();
        let _ = one.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408 "), "{rest:?}");
    }
    assert_eq!(asks(&proxy), 200);
}
