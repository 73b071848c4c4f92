//! Listeners that come, change and go while clients go on: nobody's request is lost.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use buttress_core::Code;
use buttress_gateway::{
    compile::{Declared, everything},
    listen::{Http, Listening, Port},
    shared::Refused,
    table::Place,
    tcp,
};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;

use crate::{
    support::{Answer, PATIENCE, Proxy, Upstream, read_answer, tls_of, until},
    tls::{self, Authority, dial, server, shown},
};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
const LAST: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn http(name: &str, listen: SocketAddr) -> Listening {
    let place = Place { file: "l.yaml".into(), line: 7 };
    Listening { place, ..Listening::http(name, listen, Http::default()) }
}

fn routes(upstream: &Upstream) -> Vec<Declared> {
    vec![everything(&[upstream.address.to_string()], None)]
}

fn port(proxy: &Proxy, name: &str) -> Arc<Port> {
    let all = proxy.shared().listeners.all();
    all.into_iter().find(|port| *port.now().setting.told.name == *name).expect("it listens")
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Asks once, on a connection that stays.
fn ask(stream: &mut TcpStream) -> Answer {
    stream.write_all(GET).unwrap();
    read_answer(stream)
}

fn refused(refused: Refused) -> Vec<String> {
    match refused {
        Refused::Listeners(wrong) => wrong.iter().map(ToString::to_string).collect(),
        Refused::Routes(wrong) => panic!("the routes are right: {wrong:?}"),
    }
}

#[test]
fn a_listener_that_is_added_serves_on_every_core_and_one_that_goes_drains_while_others_go_on() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::with(&[upstream.address], |options| options.threads = 2);
    let web = proxy.shared().options.listeners.clone();
    let routes = routes(&upstream);
    let mut stays = connect(proxy.address);
    assert_eq!(ask(&mut stays).status, 200);

    let both = [web.clone(), vec![http("second", any())]].concat();
    proxy.shared().change(&routes, &both).unwrap();
    let second = port(&proxy, "second");
    // Enough that the kernel gives each core some.
    let mut kept: Vec<TcpStream> = (0..16).map(|_| connect(second.address)).collect();
    assert!(kept.iter_mut().all(|stream| ask(stream).status == 200));
    until("all are counted", || second.json()["connections"] == 16);

    proxy.shared().change(&routes, &web).unwrap();
    until("nobody listens there any more", || TcpStream::connect(second.address).is_err());
    assert_eq!(second.json()["state"], "draining");
    for stream in &mut kept {
        let answer = ask(stream);
        assert_eq!((answer.status, answer.field("connection")), (200, Some("close")), "the last one says so");
    }
    until("it has drained", || proxy.shared().listeners.all().len() == 1);
    let answer = ask(&mut stays);
    assert_eq!((answer.status, answer.field("connection")), (200, None), "who is at another listener hears nothing");
}

#[test]
fn what_outlives_the_time_to_drain_is_cut_when_its_listener_goes() {
    let upstream = Upstream::new(|_, connection| {
        connection.read_request();
        connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok");
        // It never says the rest.
        connection.read_request();
    });
    let proxy = Proxy::with(&[upstream.address], |options| {
        options.timeouts.drain = std::time::Duration::from_millis(50);
        options.listeners.push(http("second", any()));
    });
    let second = port(&proxy, "second");
    let mut stream = connect(second.address);
    stream.write_all(GET).unwrap();
    until("it has been asked", || !upstream.requests().is_empty());
    proxy.shared().change(&routes(&upstream), &proxy.shared().options.listeners[..1]).unwrap();
    until("it is gone", || proxy.shared().listeners.all().len() == 1);
    assert_eq!(second.json()["connections"], 0);
    assert_eq!(port(&proxy, "web").json()["state"], "serving");
}

#[test]
fn a_port_that_is_taken_refuses_the_change_with_its_place_and_all_stays() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let generation = proxy.shared().table.load().generation;
    let wanted = [http("good", any()), http("bad", address)];
    let wrong = refused(proxy.shared().change(&routes(&upstream), &wanted).unwrap_err());
    assert_eq!(wrong.len(), 1);
    let says = format!("l.yaml:7: listener \"bad\": {}: cannot listen on {address}", Code::PORT_TAKEN.0);
    assert!(wrong[0].starts_with(&says) && wrong[0].contains("; stop what uses the address"), "{}", wrong[0]);
    assert_eq!(proxy.shared().table.load().generation, generation);
    let names: Vec<_> = proxy.shared().listeners.all().iter().map(|port| port.json()["listener"].clone()).collect();
    assert_eq!(names, ["web"], "nothing of the new set holds");
    assert_eq!(proxy.ask(std::str::from_utf8(LAST).unwrap()).status, 200);

    drop(other);
    proxy.shared().change(&routes(&upstream), &wanted).unwrap();
    assert_eq!(ask(&mut connect(address)).status, 200);
}

#[test]
fn a_listener_moves_to_another_address_and_stays_where_it_was_if_that_is_taken() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    let (old, routes) = (proxy.address, routes(&upstream));
    let mut kept = connect(old);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let new = taken.local_addr().unwrap();
    let moved = [http("web", new)];
    refused(proxy.shared().change(&routes, &moved).unwrap_err());
    assert_eq!(port(&proxy, "web").address, old);
    assert_eq!(ask(&mut kept).field("connection"), None, "nobody is told to go for what was refused");

    drop(taken);
    proxy.shared().change(&routes, &moved).unwrap();
    assert_eq!(ask(&mut connect(new)).status, 200, "it is there when the change is");
    assert_eq!(proxy.shared().listeners.first_http().unwrap().address, new);
    until("nobody listens at the old one", || TcpStream::connect(old).is_err());
    let answer = ask(&mut kept);
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    until("the old one has drained", || proxy.shared().listeners.all().len() == 1);

    // There and back again, while those of the way there are still open.
    let mut kept = connect(new);
    assert_eq!(ask(&mut kept).status, 200);
    proxy.shared().change(&routes, &[http("web", any())]).unwrap();
    proxy.shared().change(&routes, &moved).unwrap();
    let answer = ask(&mut kept);
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    until("what was given up has drained", || proxy.shared().listeners.all().len() == 1);
    let mut again = connect(new);
    assert_eq!((ask(&mut again).field("connection"), ask(&mut again).status), (None, 200));
}

#[test]
fn a_listener_that_is_written_elsewhere_by_now_is_still_the_same() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    let mut kept = connect(proxy.address);
    assert_eq!(ask(&mut kept).status, 200);
    let listen = proxy.shared().options.listeners[0].listen;
    let extra = Listening { place: Place { file: "l.yaml".into(), line: 1 }, ..http("extra", any()) };
    proxy.shared().change(&routes(&upstream), &[extra, http("web", listen)]).unwrap();
    // The other one is served, so this core has heard of the change.
    assert_eq!(ask(&mut connect(port(&proxy, "extra").address)).status, 200);
    assert_eq!(ask(&mut kept).field("connection"), None);
    assert_eq!(port(&proxy, "web").json()["place"], "l.yaml:7");
}

#[test]
fn names_and_addresses_that_stand_twice_are_refused() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (wanted, says) in [
        ([http("a", any()), http("a", any())], "the name stands at l.yaml:7 too"),
        ([http("a", free), http("b", free)], "is the address of \"a\" too"),
    ] {
        let wrong = refused(proxy.shared().change(&routes(&upstream), &wanted).unwrap_err());
        assert!(wrong[0].contains(says), "{wrong:?}");
    }
}

#[test]
fn another_certificate_counts_for_new_connections_and_old_ones_end_as_they_began() {
    let authority = Authority::new();
    let (one, two) = (authority.named("one", &["a.example"]), authority.named("two", &["a.example"]));
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::with(&[upstream.address], |options| *tls_of(options) = Some(server(&[&one])));
    let seen = || shown(&dial(proxy.address, authority.client(None, &["http/1.1"]), "a.example").unwrap());
    let mut old = dial(proxy.address, authority.client(None, &["http/1.1"]), "a.example").unwrap();
    let first = seen();

    let mut options = proxy.shared().options.clone();
    *tls_of(&mut options) = Some(server(&[&two]));
    proxy.shared().change(&routes(&upstream), &options.listeners).unwrap();
    until("new connections see the new one", || seen() != first);
    assert_eq!(shown(&old), first);
    let answer = tls::ask(&mut old, std::str::from_utf8(GET).unwrap()).unwrap();
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));

    // One that cannot be read refuses the change; what holds goes on.
    let now = seen();
    let mut gone = two.clone();
    gone.certificate = "/nowhere/cert.pem".into();
    *tls_of(&mut options) = Some(server(&[&gone]));
    let wrong = refused(proxy.shared().change(&routes(&upstream), &options.listeners).unwrap_err());
    assert!(wrong[0].contains(Code::CERTIFICATE.0) && wrong[0].contains("/nowhere/cert.pem"), "{wrong:?}");
    assert_eq!(seen(), now);
}

#[test]
fn a_port_changes_between_http_and_tcp() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::with(&[upstream.address], |options| options.listeners[0].listen = any());
    let (_, told) = tcp::Options::parse(&format!("127.0.0.1:0={}", upstream.address)).unwrap();
    let passed = Listening::tcp("web", any(), told);
    proxy.shared().change(&[], &[passed]).unwrap();
    until("it passes what comes", || {
        let mut stream = connect(proxy.address);
        let answer = ask(&mut stream);
        // A gateway names its requests.
        answer.status == 200 && answer.field("x-request-id").is_none()
    });
    assert_eq!(port(&proxy, "web").json()["protocol"], "tcp");
}

#[test]
fn a_route_takes_requests_of_the_listeners_that_it_names() {
    let (inner, outer) = (Upstream::answering("inner"), Upstream::answering("outer"));
    let route = |name: &str, spec| Declared {
        name: name.into(),
        spec: serde_json::from_value(spec).unwrap(),
        ..Declared::default()
    };
    let routes = [
        route("inner", json!({"listeners": "second", "to": [{"endpoints": inner.address.to_string()}]})),
        route("outer", json!({"to": [{"endpoints": outer.address.to_string()}]})),
    ];
    let proxy = Proxy::routing(&routes, |options| options.listeners.push(http("second", any())));
    assert_eq!(ask(&mut connect(proxy.address)).body, "outer");
    assert_eq!(ask(&mut connect(port(&proxy, "second").address)).body, "inner");

    let only_inner = Proxy::routing(&routes[..1], |options| options.listeners.push(http("second", any())));
    assert_eq!(ask(&mut connect(only_inner.address)).status, 404);
    assert_eq!(
        only_inner.shared().records.latest(1)[0].listener.as_deref(),
        Some("web"),
        "its record says where it came"
    );
}

#[test]
fn a_listener_of_ipv6_serves_and_is_told_as_it_is_written() {
    let upstream = Upstream::answering("ok");
    let any: SocketAddr = "[::1]:0".parse().unwrap();
    if TcpListener::bind(any).is_err() {
        return println!("this machine has no IPv6, so nothing was tried");
    }
    let proxy = Proxy::with(&[upstream.address], |options| options.threads = 2);
    let wanted = [proxy.shared().options.listeners.clone(), vec![http("six", any)]].concat();
    proxy.shared().change(&routes(&upstream), &wanted).unwrap();
    let six = port(&proxy, "six");
    assert!(six.address.is_ipv6() && six.address.port() != 0, "{}", six.address);
    let mut stream = connect(six.address);
    assert_eq!(ask(&mut stream).body, "ok");
    assert_eq!(six.json()["listen"], format!("[::1]:{}", six.address.port()));
    assert!(upstream.requests()[0].contains("x-forwarded-for: ::1\r\n"), "{:?}", upstream.requests());
    // The same port of IPv4 is another address.
    let four = SocketAddr::from(([127, 0, 0, 1], six.address.port()));
    assert!(TcpStream::connect(four).is_err());

    let stays = [proxy.shared().options.listeners.clone(), vec![http("six", six.address)]].concat();
    proxy.shared().change(&routes(&upstream), &stays).unwrap();
    assert_eq!(ask(&mut connect(six.address)).status, 200);
    proxy.shared().change(&routes(&upstream), &proxy.shared().options.listeners).unwrap();
    until("nobody listens there any more", || TcpStream::connect(six.address).is_err());
}

/// A client has a connection as soon as the kernel says so, whoever will accept it.
#[test]
fn whoever_could_connect_to_a_port_that_closes_is_answered() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::with(&[upstream.address], |options| options.threads = 2);
    let (web, routes) = (proxy.shared().options.listeners.clone(), routes(&upstream));
    // Each takes a second: whoever comes when the port is closing asks again after that.
    for _ in 0..6 {
        proxy.shared().change(&routes, &[web.clone(), vec![http("second", any())]].concat()).unwrap();
        let address = port(&proxy, "second").address;
        let answered = Arc::new(AtomicU64::new(0));
        let client = || {
            let answered = answered.clone();
            thread::spawn(move || {
                while let Ok(mut stream) = TcpStream::connect(address) {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    assert_eq!(ask(&mut stream).status, 200);
                    answered.fetch_add(1, SeqCst);
                }
            })
        };
        let clients: Vec<_> = (0..8).map(|_| client()).collect();
        until("they are busy", || answered.load(SeqCst) > 50);
        proxy.shared().change(&routes, &web).unwrap();
        for client in clients {
            client.join().expect("whoever was connected was answered");
        }
    }
}

/// What clients saw until they were stopped.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    answered: AtomicU64,
    connections: AtomicU64,
}

/// A client of HTTP/1.1 that keeps its connection, and reconnects when it was told that an answer was the last. A connection that
/// ends where an answer should be is a lost request.
fn client(to: SocketAddr, seen: &Arc<Seen>) -> thread::JoinHandle<()> {
    let seen = seen.clone();
    thread::spawn(move || {
        let mut stream = None;
        while !seen.stop.load(SeqCst) {
            let kept = stream.get_or_insert_with(|| {
                seen.connections.fetch_add(1, SeqCst);
                connect(to)
            });
            let answer = ask(kept);
            assert_eq!(answer.status, 200, "{answer:?}");
            seen.answered.fetch_add(1, SeqCst);
            if answer.field("connection") == Some("close") {
                stream = None;
            }
        }
    })
}

/// A client of HTTP/2 with four requests side by side, which reconnects when its connection takes no more of them. A request that
/// was begun is lost if it has no answer.
fn client_of_http2(to: SocketAddr, seen: &Arc<Seen>) -> thread::JoinHandle<()> {
    let seen = seen.clone();
    let work = async move {
        while !seen.stop.load(SeqCst) {
            seen.connections.fetch_add(1, SeqCst);
            let stream = TokioIo::new(tokio::net::TcpStream::connect(to).await.unwrap());
            let (sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            tokio::spawn(connection);
            let one = || async {
                let mut sender = sender.clone();
                while !seen.stop.load(SeqCst) && sender.ready().await.is_ok() {
                    let request = Request::get("http://a.example/").body(Empty::<Bytes>::new()).unwrap();
                    match sender.send_request(request).await {
                        Ok(answer) => {
                            assert_eq!(answer.status(), 200);
                            assert_eq!(answer.into_body().collect().await.expect("all of it").to_bytes(), "ok");
                            seen.answered.fetch_add(1, SeqCst);
                        }
                        // The connection was told to end before this one was sent.
                        Err(error) => return assert!(error.is_canceled(), "{error:?}"),
                    }
                }
            };
            futures::future::join_all([one(), one(), one(), one()]).await;
        }
    };
    thread::spawn(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work))
}

#[test]
fn no_request_is_lost_while_listeners_come_change_and_go() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::with(&[upstream.address], |options| options.threads = 2);
    let (old, new) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
    let clients = [client(proxy.address, &old), client(proxy.address, &old), client_of_http2(proxy.address, &new)];
    let routes = routes(&upstream);
    let mut web = proxy.shared().options.listeners[0].clone();
    for round in 1..=20_u64 {
        // Its idle time is another one each round, which ends the setting that every client is on.
        web.what = buttress_gateway::listen::What::Http(Http {
            tls: None,
            idle: Some(std::time::Duration::from_secs(60 + round)),
        });
        let wanted = [web.clone(), http(&format!("extra-{round}"), any())];
        let before = [&old, &new].map(|seen| seen.connections.load(SeqCst));
        proxy.shared().change(&routes, &wanted).unwrap();
        assert_eq!(ask(&mut connect(port(&proxy, &format!("extra-{round}")).address)).status, 200);
        for (seen, before) in [&old, &new].into_iter().zip(before) {
            until("who is at the setting that ended moves to the new one", || seen.connections.load(SeqCst) > before);
            let before = seen.answered.load(SeqCst);
            until("all go on", || seen.answered.load(SeqCst) > before + 20);
        }
    }
    for seen in [&old, &new] {
        seen.stop.store(true, SeqCst);
    }
    for client in clients {
        client.join().expect("no request of it was lost");
    }
}
