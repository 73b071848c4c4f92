//! The proxy's own life: ids and contexts, slow clients, an end without lost requests.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{Arc, Barrier},
    time::Duration,
};

use crate::support::{Answer, Proxy, Upstream, read_answer, until};

#[test]
fn requests_have_an_id_that_both_sides_see() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    let kept = proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-Id: mine-1\r\n\r\n");
    assert_eq!(kept.field("x-request-id"), Some("mine-1"));
    let made = proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-Id: not \"harmless\"\r\n\r\n");
    let made = made.field("x-request-id").unwrap().to_owned();
    assert_eq!(made.len(), 16);
    let seen = upstream.requests();
    assert!(
        seen[0].contains("x-request-id: mine-1\r\n") && seen[0].contains("x-forwarded-for: 127.0.0.1\r\n"),
        "{seen:?}"
    );
    assert!(seen[1].contains(&format!("x-request-id: {made}\r\n")) && seen[1].contains("traceparent: 00-"), "{seen:?}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::new(|_, connection| {
        while let Some((head, _)) = connection.read_request() {
            let path = head.split(' ').nth(1).unwrap();
            connection.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()).as_bytes());
        }
    });
    let proxy = Proxy::to(&[upstream.address]);
    let text = proxy.exchange(
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\nHost: a\r\n\
          Connection: close\r\n\r\n",
    );
    let bodies: Vec<&str> = text.split("\r\n\r\n").skip(1).map(|body| &body[..2]).collect();
    assert_eq!(bodies, ["/1", "/2", "/3"], "{text}");
}

#[test]
fn a_head_that_does_not_come_whole_gets_408_and_silence_gets_nothing() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::with(&[upstream.address], |options| {
        options.timeouts.head = Duration::from_millis(200);
        options.timeouts.idle = Duration::from_millis(200);
    });
    let answer = proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ");
    assert_eq!((answer.status, answer.field("buttress-code")), (408, Some("bt0904")), "{answer:?}");
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut stream).status, 200);
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "an idle connection is closed without a word");
    assert_eq!(proxy.exchange(b""), "", "so is one that never said anything");
}

#[test]
fn a_proxy_that_stops_lets_running_requests_end_and_takes_no_new_ones() {
    let (arrived, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (here, on) = (arrived.clone(), go_on.clone());
    let upstream = Upstream::new(move |_, connection| {
        while connection.read_request().is_some() {
            here.wait();
            on.wait();
            connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
        }
    });
    let mut proxy = Proxy::to(&[upstream.address]);
    let address = proxy.address;
    let mut idle = proxy.connect();
    let mut busy = proxy.connect();
    busy.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    arrived.wait();
    let running = proxy.take();
    let stopping = std::thread::spawn(move || running.stop());
    assert_eq!(idle.read(&mut [0; 16]).unwrap(), 0, "what is idle is closed at once");
    until("nobody listens any more", || TcpStream::connect(address).is_err());
    assert!(!stopping.is_finished(), "a request is running");
    go_on.wait();
    let answer = read_answer(&mut busy);
    assert_eq!((answer.status, answer.body.as_str()), (200, "done"));
    assert_eq!(answer.field("connection"), Some("close"));
    stopping.join().unwrap();
}

#[test]
fn a_port_that_is_taken_is_an_error_and_not_shared() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    let mut options = proxy.shared().options.clone();
    options.listeners[0].listen = proxy.address;
    let error = buttress_gateway::run::start(options, &[]).err().expect("the port is taken");
    assert_eq!(error.code, buttress_core::Code::PORT_TAKEN);
    assert_eq!(Answer::parse("HTTP/1.1 200 OK\r\n\r\n").status, 200);
}
