//! Bodies on their way: streamed both ways, cut in the middle, answered early, held back, tunnelled.

use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::mpsc,
};

use crate::support::{Answer, PATIENCE, Proxy, Upstream, read_answer};

#[test]
fn a_large_body_passes_both_ways_while_it_comes() {
    const BYTES: usize = 8 * 1024 * 1024;
    // Answers each piece as it comes: nothing on the way may wait for the whole.
    let upstream = Upstream::new(|_, connection| {
        connection.read_head();
        connection.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n").as_bytes());
        let first = connection.rest();
        connection.write(&first);
        let (mut left, mut buffer) = (BYTES - first.len(), vec![0; 64 * 1024]);
        while left > 0 {
            let read = connection.stream.read(&mut buffer).unwrap();
            connection.write(&buffer[..read]);
            left -= read;
        }
    });
    let proxy = Proxy::to(&[upstream.address]);
    let mut stream = proxy.connect();
    let mut writing = stream.try_clone().unwrap();
    let body: Vec<u8> = (0..BYTES).map(|at| (at * 31 / 7) as u8).collect();
    let sent = body.clone();
    let writer = std::thread::spawn(move || {
        writing.write_all(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {BYTES}\r\n\r\n").as_bytes()).unwrap();
        writing.write_all(&sent).unwrap();
    });
    let mut answer = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let head_end = loop {
        let read = stream.read(&mut buffer).unwrap();
        answer.extend_from_slice(&buffer[..read]);
        if let Some(at) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
    };
    while answer.len() - head_end < BYTES {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the answer ended after {} bytes", answer.len() - head_end);
        answer.extend_from_slice(&buffer[..read]);
    }
    writer.join().unwrap();
    assert!(answer[head_end..] == body[..], "the bytes that came back are not those that were sent");
}

#[test]
fn an_answer_that_is_cut_in_the_middle_is_cut_for_the_client_too() {
    for (name, begin, whole) in [
        ("a length", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it", "Content-Length: 100"),
        ("chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhalf of it\r\n", "0\r\n\r\n"),
    ] {
        let upstream = Upstream::new(move |_, connection| {
            connection.read_request();
            connection.write(begin.as_bytes());
        });
        let proxy = Proxy::to(&[upstream.address]);
        let text = proxy.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("half of it"), "{name}: {text}");
        let ends_well = text.ends_with(whole) || Answer::parse(&text).body.len() >= 100;
        assert!(!ends_well, "{name}: the client must not take it for the whole: {text}");
    }
}

#[test]
fn an_answer_without_a_length_ends_with_its_connection() {
    let upstream = Upstream::new(|_, connection| {
        connection.read_request();
        connection.write(b"HTTP/1.1 200 OK\r\n\r\nuntil I close");
    });
    let proxy = Proxy::to(&[upstream.address]);
    let text = proxy.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(text.contains("transfer-encoding: chunked") && text.ends_with("d\r\nuntil I close\r\n0\r\n\r\n"), "{text}");
    let old = proxy.exchange(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert!(!old.contains("chunked") && old.ends_with("\r\n\r\nuntil I close"), "{old}");
}

#[test]
fn a_client_that_closed_its_sending_side_is_still_answered() {
    let upstream = Upstream::answering("for a listener");
    let proxy = Proxy::to(&[upstream.address]);
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(Answer::parse(&text).body, "for a listener");
}

#[test]
fn an_answer_that_comes_before_the_request_is_read_goes_out() {
    // The upstream reads nothing of the body, which is larger than what the sockets between can hold.
    let upstream = Upstream::new(|_, connection| {
        connection.read_head();
        connection.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large");
        std::thread::park_timeout(PATIENCE);
    });
    let proxy = Proxy::to(&[upstream.address]);
    let mut stream = proxy.connect();
    let mut writing = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        let _ = writing.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n");
        // It ends with an error once the proxy has closed.
        while writing.write_all(&[0; 64 * 1024]).is_ok() {}
    });
    let answer = read_answer(&mut stream);
    assert_eq!((answer.status, answer.body.as_str()), (413, "too large"));
    assert_eq!(answer.field("connection"), Some("close"));
}

#[test]
fn a_client_that_waits_for_100_continue_is_told_once_the_upstream_can_take_its_body() {
    let upstream = Upstream::new(|_, connection| {
        while let Some((head, body)) = connection.read_request() {
            assert!(!head.to_ascii_lowercase().contains("expect"), "{head}");
            let length = body.len();
            connection.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes());
            connection.write(&body);
        }
    });
    let proxy = Proxy::to(&[upstream.address]);
    let mut stream = proxy.connect();
    for _ in 0..2 {
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").unwrap();
        assert_eq!(read_answer(&mut stream).status, 100);
        stream.write_all(b"hello").unwrap();
        let answer = read_answer(&mut stream);
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    }
}

#[test]
fn informational_answers_go_on_and_are_not_taken_for_the_answer() {
    let upstream = Upstream::new(|_, connection| {
        while connection.read_request().is_some() {
            connection.write(b"HTTP/1.1 100 Continue\r\n\r\n");
            connection.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n");
            connection.write(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let proxy = Proxy::to(&[upstream.address]);
    let text = proxy.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let begin = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n";
    assert!(text.starts_with(begin) && text.ends_with("\r\n\r\nok"), "{text}");
    // A client of HTTP/1.0 could not read them.
    let old = proxy.ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert_eq!((old.status, old.body.as_str()), (200, "ok"));
}

#[test]
fn answers_to_head_and_304_have_a_length_and_no_body() {
    let upstream = Upstream::new(|_, connection| {
        while let Some((head, _)) = connection.read_request() {
            let status = if head.starts_with("HEAD") { "200 OK" } else { "304 Not Modified" };
            connection.write(format!("HTTP/1.1 {status}\r\nContent-Length: 1234\r\n\r\n").as_bytes());
        }
    });
    let proxy = Proxy::to(&[upstream.address]);
    let mut stream = proxy.connect();
    for (method, status) in [("HEAD", "HTTP/1.1 200"), ("GET", "HTTP/1.1 304"), ("HEAD", "HTTP/1.1 200")] {
        stream.write_all(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
        let (mut bytes, mut byte) = (Vec::new(), [0]);
        while !bytes.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            bytes.push(byte[0]);
        }
        let head = String::from_utf8(bytes).unwrap().to_ascii_lowercase();
        assert!(head.starts_with(&status.to_ascii_lowercase()) && head.contains("content-length: 1234"), "{head}");
    }
}

#[test]
fn an_upgraded_connection_becomes_a_tunnel_that_closes_on_both_sides() {
    let (told, closed) = mpsc::channel();
    let upstream = Upstream::new(move |_, connection| {
        let head = connection.read_head().unwrap();
        assert!(head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
        // Bytes of the new protocol right behind the head.
        connection
            .write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello ");
        let mut buffer = [0; 64];
        loop {
            match connection.stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(read) => connection.write(&buffer[..read]),
            }
        }
        told.send(()).unwrap();
    });
    let proxy = Proxy::to(&[upstream.address]);
    let mut stream = proxy.connect();
    stream.write_all(b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
    let mut text = String::new();
    let mut buffer = [0; 256];
    while !text.ends_with("hello ") {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    assert!(text.starts_with("HTTP/1.1 101 ") && text.to_ascii_lowercase().contains("upgrade: websocket"), "{text}");
    for word in ["one", "two"] {
        stream.write_all(word.as_bytes()).unwrap();
        let read = stream.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..read], word.as_bytes());
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut buffer).unwrap(), 0);
    closed.recv_timeout(PATIENCE).unwrap();
}
