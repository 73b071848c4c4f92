//! Connections and upstreams that fail, and what is sent again.

use std::{io::Write, net::TcpListener, sync::atomic::Ordering};

use crate::support::{Proxy, Upstream, read_answer};

const CLOSE: &str = "Host: a\r\nConnection: close\r\n";

/// Answers the first request of a connection, and closes it when a second one has arrived, as a server does that ended an
/// idle connection at the moment at which it was used.
fn closing_at_the_moment_of_use() -> Upstream {
    Upstream::new(|number, connection| {
        connection.read_request();
        connection.write(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}").as_bytes());
        connection.read_request();
    })
}

#[test]
fn a_kept_connection_that_closes_at_the_moment_of_use_is_no_failure_where_repeating_is_harmless() {
    let upstream = closing_at_the_moment_of_use();
    let proxy = Proxy::to(&[upstream.address]);
    let mut stream = proxy.connect();
    for connection in ["0", "1"] {
        stream.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let answer = read_answer(&mut stream);
        assert_eq!((answer.status, answer.body.as_str()), (200, connection));
    }
    assert_eq!(upstream.requests().len(), 3, "the second request was sent on the dying connection and on a new one");
}

#[test]
fn a_request_that_may_have_had_an_effect_is_not_sent_twice() {
    let upstream = closing_at_the_moment_of_use();
    let proxy = Proxy::to(&[upstream.address]);
    let mut stream = proxy.connect();
    let post = b"POST /pay HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    stream.write_all(post).unwrap();
    assert_eq!(read_answer(&mut stream).status, 200);
    stream.write_all(post).unwrap();
    let answer = read_answer(&mut stream);
    assert_eq!((answer.status, answer.field("buttress-code")), (502, Some("bt0907")), "{answer:?}");
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_connection_that_was_closed_while_idle_is_not_used_for_anything() {
    // Closes every connection after its answer, without saying so in the answer.
    let upstream = Upstream::new(|_, connection| {
        connection.read_request();
        connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let proxy = Proxy::to(&[upstream.address]);
    let mut stream = proxy.connect();
    for number in 1..=20 {
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").unwrap();
        assert_eq!(read_answer(&mut stream).status, 200);
        // The close is on its way; the next request may only be sent when the proxy's kernel has it.
        crate::support::until("the connection is closed", || upstream.connections.load(Ordering::SeqCst) >= number);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(upstream.requests().len(), 20);
}

#[test]
fn an_endpoint_that_refuses_connections_costs_no_request() {
    let upstream = Upstream::answering("ok");
    // A port on which nobody listens.
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::to(&[dead, upstream.address]);
    for _ in 0..10 {
        let answer = proxy.ask(&format!("POST / HTTP/1.1\r\n{CLOSE}Content-Length: 2\r\n\r\nhi"));
        assert_eq!(answer.status, 200, "nothing was sent to the dead one, so even a POST goes on: {answer:?}");
    }
    let alone = Proxy::to(&[dead]);
    let answer = alone.ask(&format!("GET / HTTP/1.1\r\n{CLOSE}\r\n"));
    assert_eq!((answer.status, answer.field("buttress-code")), (502, Some("bt0906")), "{answer:?}");
    assert!(answer.body.contains("refused"), "{answer:?}");
}
