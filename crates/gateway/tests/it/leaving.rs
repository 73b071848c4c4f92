//! Clients that leave, or only stop sending, and answers that are silent.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::mpsc,
    time::Duration,
};

use buttress_gateway::compile::everything;

use crate::{
    support::{PATIENCE, Proxy, Upstream, tls_of, until},
    tls::{Authority, dial, server},
};

/// An upstream that reads a request, says so, and then tells when its connection has ended.
fn waiting() -> (Upstream, mpsc::Receiver<&'static str>) {
    let (tell, told) = mpsc::channel();
    let upstream = Upstream::new(move |_, connection| {
        if connection.read_request().is_some() {
            tell.send("asked").unwrap();
            while let Ok(1..) = connection.stream.read(&mut [0; 16]) {}
            tell.send("ended").unwrap();
        }
    });
    (upstream, told)
}

fn reset(stream: &TcpStream) {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_client_that_leaves_before_its_answer_ends_its_request_at_the_upstream() {
    let (upstream, told) = waiting();
    let proxy = Proxy::to(&[upstream.address]);
    let post = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let mut stream = proxy.connect();
    stream.write_all(post).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "asked");
    reset(&stream);
    drop(stream);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "ended");
    let endpoint = || {
        let (mut metrics, wanted) =
            (String::new(), format!("{{route=\"everything\",backend=\"1\",endpoint=\"{}\"", upstream.address));
        proxy.shared().prometheus(&mut metrics);
        let of = |name: &str| {
            let begin = format!("buttress_traffic_endpoint_{name}{wanted}}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&begin)).unwrap().to_owned()
        };
        (of("running"), of("failures_total"))
    };
    until("the place is given back, and it is no failure of the endpoint", || endpoint() == ("0".into(), "0".into()));
    // It counts as 499, which is of the class 4xx; the request is over a moment after its attempt.
    until("the request is counted", || {
        let mut metrics = String::new();
        proxy.shared().prometheus(&mut metrics);
        metrics.contains("buttress_traffic_requests_total{route=\"everything\",status=\"4xx\"} 1\n")
    });
}

#[test]
fn the_end_of_what_a_client_sends_is_no_leaving_unless_we_are_told_that_it_is() {
    for leaves in [false, true] {
        let (upstream, told) = waiting();
        let route = everything(&[upstream.address.to_string()], Some(Duration::from_millis(1500)));
        let proxy = Proxy::routing(&[route], |options| options.edge.half_close_leaves = leaves);
        let mut stream = proxy.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        // Who did not leave is answered when the deadline is over.
        assert_eq!(answer.starts_with("HTTP/1.1 504"), !leaves, "{answer}");
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "ended");
    }
}

#[test]
fn what_a_client_sends_while_it_waits_is_its_next_request() {
    let (go, on) = (std::sync::Arc::new(std::sync::Barrier::new(2)), std::sync::Arc::new(std::sync::Barrier::new(2)));
    let (here, there) = (go.clone(), on.clone());
    let upstream = Upstream::new(move |_, connection| {
        while let Some((head, body)) = connection.read_request() {
            if head.starts_with("GET /1") {
                here.wait();
                there.wait();
            }
            // `1` of `GET /1`, and `/` of `POST /2`.
            let text = format!("{}{}", &head[5..6], String::from_utf8(body).unwrap());
            connection.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).as_bytes());
        }
    });
    let proxy = Proxy::to(&[upstream.address]);
    let mut stream = proxy.connect();
    stream.write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    go.wait();
    // More than is read ahead.
    let long = "x".repeat(20_000);
    let rest =
        format!("POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{long}", long.len());
    stream.write_all(rest.as_bytes()).unwrap();
    on.wait();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("content-length: 1\r\n\r\n1HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.ends_with(&format!("\r\n\r\n/{long}")), "{text}");
}

#[test]
fn an_answer_may_be_silent_for_as_long_as_is_allowed_and_no_longer() {
    let (tell, told) = mpsc::channel();
    let upstream = Upstream::new(move |_, connection| {
        connection.read_request();
        connection.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
        while let Ok(1..) = connection.stream.read(&mut [0; 16]) {}
        tell.send(()).unwrap();
    });
    let proxy = Proxy::with(&[upstream.address], |options| options.timeouts.silence = Duration::from_millis(300));
    let text = proxy.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    // The frame has no end, so nobody takes it for the whole.
    assert!(text.contains("data: 1") && !text.ends_with("0\r\n\r\n"), "{text}");
    told.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_client_that_leaves_a_silent_answer_ends_it_at_the_upstream() {
    let (tell, told) = mpsc::channel();
    let upstream = Upstream::new(move |_, connection| {
        connection.read_request();
        connection.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
        while let Ok(1..) = connection.stream.read(&mut [0; 16]) {}
        tell.send(()).unwrap();
    });
    let authority = Authority::new();
    let pair = authority.named("a", &["a.example"]);
    let get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let plain = Proxy::to(&[upstream.address]);
    let mut stream = plain.connect();
    stream.write_all(get).unwrap();
    assert!(matches!(stream.read(&mut [0; 1024]), Ok(1..)));
    reset(&stream);
    drop(stream);
    told.recv_timeout(PATIENCE).unwrap();
    let secure = Proxy::with(&[upstream.address], |options| *tls_of(options) = Some(server(&[&pair])));
    let mut stream = dial(secure.address, authority.client(None, &[]), "a.example").unwrap();
    stream.write_all(get).unwrap();
    assert!(matches!(stream.read(&mut [0; 1024]), Ok(1..)));
    reset(&stream.sock);
    drop(stream);
    told.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_tunnel_is_closed_when_nothing_moves_for_too_long() {
    let upstream = Upstream::new(|_, connection| {
        connection.read_request();
        connection.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhello");
        let _ = connection.stream.read(&mut [0; 16]);
    });
    let authority = Authority::new();
    let pair = authority.named("a", &["a.example"]);
    let proxy = Proxy::with(&[upstream.address], |options| {
        *tls_of(options) = Some(server(&[&pair]));
        options.timeouts.silence = Duration::from_millis(300);
    });
    let mut stream = dial(proxy.address, authority.client(None, &[]), "a.example").unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // It ends without a word of TLS, which says that this was not the end of what is within.
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.ends_with(b"\r\n\r\nhello"), "{}", String::from_utf8_lossy(&answer));
}
