//! TCP passthrough: endpoints that are there and not there, ends of one side, silence, a proxy that stops.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use buttress_gateway::{listen::Listening, tcp::Options};

use crate::support::{PATIENCE, Proxy, until};

/// Reads to the end, and only then answers with its name and what it read.
fn afterwards(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                let _ = stream.write_all(name.as_bytes()).and_then(|()| stream.write_all(&all));
            });
        }
    });
    address
}

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn proxy(endpoints: &[SocketAddr], change: impl FnOnce(&mut Options)) -> Proxy {
    let to: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    let (listen, mut told) = Options::parse(&format!("127.0.0.1:0={}", to.join(","))).unwrap();
    change(&mut told);
    Proxy::routing(&[], |options| options.listeners = vec![Listening::tcp("db", listen, told)])
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn metrics(proxy: &Proxy) -> String {
    let mut text = String::new();
    proxy.shared().prometheus(&mut text);
    text
}

#[test]
fn the_end_of_one_side_is_passed_on_and_the_other_goes_on() {
    let proxy = proxy(&[afterwards("heard ")], |_| {});
    let mut stream = connect(&proxy);
    // More than all buffers on the way hold.
    let bytes = vec![b'x'; 8 * 1024 * 1024];
    stream.write_all(&bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"heard x") && answer.len() == bytes.len() + 6);
    until("it is counted", || metrics(&proxy).contains("end=\"closed\"} 1\n"));
    let text = metrics(&proxy);
    assert!(text.contains(&format!("direction=\"received\"}} {}\n", bytes.len())), "{text}");
    assert!(text.contains(&format!("direction=\"sent\"}} {}\n", answer.len())), "{text}");
}

#[test]
fn an_endpoint_that_is_not_there_is_passed_over_and_none_at_all_is_a_reset() {
    let dead = nobody();
    let proxy_of_two = proxy(&[dead, afterwards("alive")], |_| {});
    for _ in 0..20 {
        let mut stream = connect(&proxy_of_two);
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "alive");
    }
    let text = metrics(&proxy_of_two);
    // It was ejected, so it was not tried twenty times; how often, chance decides.
    let failures = text.lines().find(|line| line.contains("connect_failures") && line.contains(&dead.to_string()));
    let failures: u32 = failures.and_then(|line| line.rsplit(' ').next()).unwrap().parse().unwrap();
    assert!(failures <= 5, "{text}");
    let none = proxy(&[dead], |_| {});
    let ended = connect(&none).read(&mut [0; 8]);
    assert!(ended.is_err(), "an end without an answer would look like one: {ended:?}");
    assert!(metrics(&none).contains("end=\"unreachable\"} 1\n"));
}

#[test]
fn connections_go_where_there_are_fewest() {
    let (first, second) = (afterwards("a"), afterwards("b"));
    let proxy = proxy(&[first, second], |_| {});
    let open: Vec<TcpStream> = (0..20).map(|_| connect(&proxy)).collect();
    let of = |address: SocketAddr| {
        let text = metrics(&proxy);
        let wanted = format!("endpoint=\"{address}\"}} ");
        let line =
            text.lines().find(|line| line.starts_with("buttress_traffic_tcp_connections{") && line.contains(&wanted));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).unwrap()
    };
    until("all are joined", || of(first) + of(second) == 20);
    assert_eq!((of(first), of(second)), (10, 10));
    drop(open);
    until("none is left", || of(first) + of(second) == 0);
}

#[test]
fn silence_ends_a_connection() {
    let proxy = proxy(&[afterwards("never")], |options| options.idle = Duration::from_millis(100));
    let mut stream = connect(&proxy);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    until("it is counted", || metrics(&proxy).contains("end=\"idle\"} 1\n"));
}

#[test]
fn the_endpoint_can_be_told_where_the_client_is() {
    let proxy = proxy(&[afterwards("")], |options| options.send_proxy = true);
    let mut stream = connect(&proxy);
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let port = stream.local_addr().unwrap().port().to_be_bytes();
    assert_eq!(answer.len(), 28 + 5);
    assert_eq!(
        (&answer[..12], &answer[24..26], &answer[28..]),
        (&b"\r\n\r\n\0\r\nQUIT\n"[..], &port[..], &b"hello"[..])
    );
}

#[test]
fn a_proxy_that_stops_lets_what_is_joined_end() {
    let mut proxy = proxy(&[afterwards("done")], |_| {});
    let mut stream = connect(&proxy);
    stream.write_all(b"!").unwrap();
    until("it is joined", || metrics(&proxy).contains("direction=\"received\"} 1\n"));
    let (address, running) = (proxy.address, proxy.take());
    let (told, stopped) = mpsc::channel();
    thread::spawn(move || {
        running.stop();
        told.send(()).unwrap();
    });
    until("nobody listens any more", || TcpStream::connect(address).is_err());
    assert!(stopped.try_recv().is_err(), "a connection is open");
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "done!");
    stopped.recv_timeout(PATIENCE).unwrap();
}
