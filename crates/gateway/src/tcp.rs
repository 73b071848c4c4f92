//! TCP passthrough: a connection is joined to an endpoint, whatever is spoken on it.
//!
//! **Which endpoint.** The policies' balancer draws two and takes the one with fewer connections. One that cannot be reached counts as a
//! failure there (five in a row eject it), and the next one is tried: nothing was sent yet, so that is safe. Where none can be reached
//! the client gets a reset, which it cannot take for an answer.
//!
//! | | |
//! |---|---|
//! | one side ends what it sends | that is passed on, and the other direction goes on |
//! | nothing moves for `idle` | both are closed |
//! | the proxy stops | no new connections; those that are open go on for the time to drain |
//!
//! **First start, recovery.** Those of [`buttress_policy::balance`] and [`buttress_policy::outlier`].
//!
//! Source: "The PROXY protocol", HAProxy 2.9, section 2.2, for [`Options::send_proxy`].

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use buttress_core::{Code, Error};
use buttress_policy::{
    self as policy, Admit, Attempt, Call, EndpointSet, Outcome, RouteConfig, RoutePolicy, Time, balance, bulkhead,
    deadline,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    config::Endpoint,
    proxy::Core,
    stream::{Joined, Stream, join},
};

/// Connections of one listener; each costs two descriptors.
const CONNECTIONS_MAX: u32 = 50_000;
/// Endpoints that are tried for one connection: as many as the policies remember.
const ATTEMPTS_MAX: usize = 3;
const PROXY_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `HOST:PORT`; a name is looked up for every connection.
    pub endpoints: Vec<String>,
    /// A connection on which nothing moves for this long is closed.
    pub idle: Duration,
    /// For a connection to one endpoint.
    pub connect: Duration,
    /// Begin with a header that says where the client is.
    pub send_proxy: bool,
}

impl Options {
    /// Reads `LISTEN=HOST:PORT[,HOST:PORT]`, with the address to listen on.
    ///
    /// # Errors
    /// `CONFIG` where it is not that.
    pub fn parse(text: &str) -> Result<(SocketAddr, Self), Error> {
        let wrong = |says: &str| {
            Error::new(Code::CONFIG, format!("\"{text}\" {says}"))
                .hint("give LISTEN=HOST:PORT[,HOST:PORT], for example 127.0.0.1:5432=10.0.0.1:5432,10.0.0.2:5432")
        };
        let (listen, to) = text.split_once('=').ok_or_else(|| wrong("does not say where to send connections"))?;
        let listen = listen.strip_prefix(':').map_or(listen.to_owned(), |port| format!("127.0.0.1:{port}"));
        let listen = listen.parse().map_err(|_| wrong("does not begin with an address and a port to listen on"))?;
        let mut endpoints = Vec::new();
        for address in to.split(',') {
            // What is spoken there does not matter here.
            if address.contains("://") {
                return Err(wrong("names a protocol; connections are passed as they are"));
            }
            let address =
                Endpoint::parse(address).map_err(|error| wrong(&format!("is wrong: {}", error.message)))?.address;
            if endpoints.contains(&address) {
                return Err(wrong("names an endpoint twice"));
            }
            endpoints.push(address);
        }
        let (idle, connect) = (Duration::from_secs(3600), Duration::from_secs(1));
        Ok((listen, Self { endpoints, idle, connect, send_proxy: false }))
    }
}

/// How connections ended, in the order of [`ENDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Idle,
    Broke,
    Unreachable,
    Refused,
}

const ENDS: [&str; 5] = ["closed", "idle", "broke", "unreachable", "refused"];

#[derive(Debug, Default)]
struct Figures {
    ends: [AtomicU64; ENDS.len()],
    /// From clients, and to them.
    received: AtomicU64,
    sent: AtomicU64,
    /// By the place of the endpoint.
    connect_failures: Vec<AtomicU64>,
}

/// A listener, and what all cores know of its endpoints.
#[derive(Debug)]
pub struct Listener {
    pub options: Options,
    /// Where it listens.
    pub address: SocketAddr,
    policy: RoutePolicy,
    endpoints: EndpointSet,
    figures: Figures,
}

/// A session, counted for its endpoint until it ends.
struct Session<'a> {
    listener: &'a Listener,
    core: &'a Core,
    call: Option<Call>,
    attempt: Option<Attempt>,
}

impl Session<'_> {
    fn attempt_ended(&mut self, outcome: &Outcome) {
        let Some(attempt) = self.attempt.take() else { return };
        let (now, draw) = (self.core.now(), self.core.numbers.draw());
        let listener = self.listener;
        listener.policy.attempt_ended(now, draw, &listener.endpoints, attempt, outcome, |event| {
            if let policy::Event::Endpoint(endpoint, why) = event {
                tracing::warn!(listener = %listener.address, endpoint = endpoint.name(), code = why.code(), "{why}");
            }
        });
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.attempt_ended(&Outcome::cancelled());
        if let Some(call) = self.call.take() {
            self.listener.policy.done(self.core.now(), call, |_| {});
        }
    }
}

impl Listener {
    /// # Errors
    /// `CONFIG` where the policies cannot be so.
    pub fn new(options: Options, address: SocketAddr) -> Result<Self, Error> {
        let policy = RoutePolicy::new(RouteConfig {
            deadline: deadline::Config { total: None, minimum: Duration::ZERO, foresee: false, ..Default::default() },
            breaker: None,
            limiter: None,
            bulkhead: bulkhead::Config { concurrent: CONNECTIONS_MAX, queue: 0 },
            // How long a connection lives says nothing about how fast its endpoint is.
            balance: balance::Config { balancer: balance::Balancer::LeastRequest, ..Default::default() },
            ..RouteConfig::default()
        });
        let policy = policy.map_err(|wrong| {
            let all: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            Error::new(Code::CONFIG, all.join("; "))
        })?;
        let endpoints = EndpointSet::new(options.endpoints.iter().map(|endpoint| (endpoint.as_str(), 1)));
        let connect_failures = options.endpoints.iter().map(|_| AtomicU64::new(0)).collect();
        Ok(Self { options, address, policy, endpoints, figures: Figures { connect_failures, ..Figures::default() } })
    }

    fn ended(&self, end: End) {
        self.figures.ends[end as usize].fetch_add(1, Relaxed);
    }

    /// Carries one connection to its end.
    pub async fn serve(&self, core: &Rc<Core>, client: TcpStream, from: SocketAddr) {
        if client.set_nodelay(true).is_err() {
            return;
        }
        let call = match self.policy.admit(core.now(), &policy::Request::default()) {
            Admit::Go(call, _) => call,
            Admit::Wait { call, ticket, .. } => {
                // There is no queue, so nobody waits; whoever did would have to give up first.
                drop((call, self.policy.give_up(core.now(), ticket)));
                return self.ended(End::Refused);
            }
            Admit::Refuse(why) => {
                tracing::warn!(listener = %self.address, code = why.code(), "{why}");
                return self.ended(End::Refused);
            }
        };
        let mut session = Session { listener: self, core, call: Some(call), attempt: None };
        let Some(mut upstream) = self.connect(&mut session).await else {
            let _ = client.set_zero_linger();
            return self.ended(End::Unreachable);
        };
        if self.options.send_proxy {
            let to = client.local_addr().unwrap_or(self.address);
            if upstream.write_all(&proxy_header(from, to)).await.is_err() {
                return self.ended(End::Broke);
            }
        }
        let (mut client, mut upstream) = (Stream::Plain(client), Stream::Plain(upstream));
        let figures = &self.figures;
        let joined = join(&mut client, &mut upstream, self.options.idle, |received, sent| {
            figures.received.fetch_add(received, Relaxed);
            figures.sent.fetch_add(sent, Relaxed);
        });
        let end = match joined.await {
            Joined::Closed => End::Closed,
            Joined::Idle => End::Idle,
            Joined::Broke(error) => {
                tracing::debug!(%error, "a joined connection broke");
                // Neither side may take what it has for the whole.
                let _ = (client.tcp().set_zero_linger(), upstream.tcp().set_zero_linger());
                End::Broke
            }
        };
        session.attempt_ended(&Outcome::http(200));
        self.ended(end);
    }

    /// A connection to the best endpoint that can be reached.
    async fn connect(&self, session: &mut Session<'_>) -> Option<TcpStream> {
        let core = session.core;
        for _ in 0..self.endpoints.len().min(ATTEMPTS_MAX) {
            let (now, call) = (core.now(), session.call.as_mut()?);
            let picked = self.policy.pick(now, core.numbers.draw(), &self.endpoints, call);
            let started = picked.and_then(|pick| {
                let attempt = self.policy.attempt_started(now, core.numbers.draw(), call, &self.endpoints, pick.at)?;
                Ok((pick.at, attempt))
            });
            let (at, attempt) = match started {
                Ok(started) => started,
                Err(why) => {
                    tracing::warn!(listener = %self.address, code = why.code(), "{why}");
                    return None;
                }
            };
            session.attempt = Some(attempt);
            let address = self.options.endpoints[at].as_str();
            let connecting = tokio::time::timeout(self.options.connect, TcpStream::connect(address));
            let error = match connecting.await {
                Ok(Ok(stream)) if stream.set_nodelay(true).is_ok() => return Some(stream),
                Ok(Ok(_)) => "it closed at once".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no connection within the time for connecting".to_owned(),
            };
            tracing::debug!(listener = %self.address, endpoint = address, error, "an endpoint cannot be reached");
            self.figures.connect_failures[at].fetch_add(1, Relaxed);
            session.attempt_ended(&Outcome::unreached());
        }
        None
    }

    /// What the live page shows.
    pub fn json(&self, now: Time) -> serde_json::Value {
        let endpoints: Vec<_> = self
            .endpoints
            .iter()
            .map(|endpoint| {
                serde_json::json!({
                    "endpoint": endpoint.name(), "connections": endpoint.inflight(),
                    "state": if endpoint.available(now) { "in" } else { "ejected" },
                })
            })
            .collect();
        serde_json::json!({"listen": self.address.to_string(), "endpoints": endpoints})
    }
}

/// Figures of all listeners in Prometheus' text form.
pub fn prometheus(listeners: &[&Listener], out: &mut String) {
    if listeners.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "# HELP buttress_traffic_tcp_connections TCP connections that are joined.\n# TYPE buttress_traffic_tcp_connections gauge"
    );
    for listener in listeners {
        for endpoint in listener.endpoints.iter() {
            let (at, name, count) = (listener.address, endpoint.name(), endpoint.inflight());
            let _ = writeln!(out, "buttress_traffic_tcp_connections{{listener=\"{at}\",endpoint=\"{name}\"}} {count}");
        }
    }
    let _ = writeln!(
        out,
        "# HELP buttress_traffic_tcp_connections_total TCP connections that were taken.\n# TYPE buttress_traffic_tcp_connections_total counter"
    );
    for listener in listeners {
        for (end, count) in ENDS.iter().zip(&listener.figures.ends) {
            let (at, count) = (listener.address, count.load(Relaxed));
            let _ = writeln!(out, "buttress_traffic_tcp_connections_total{{listener=\"{at}\",end=\"{end}\"}} {count}");
        }
    }
    let _ = writeln!(
        out,
        "# HELP buttress_traffic_tcp_bytes_total Bytes of TCP connections, by direction.\n# TYPE buttress_traffic_tcp_bytes_total counter"
    );
    for listener in listeners {
        let figures = &listener.figures;
        for (direction, count) in [("received", &figures.received), ("sent", &figures.sent)] {
            let (at, count) = (listener.address, count.load(Relaxed));
            let _ = writeln!(
                out,
                "buttress_traffic_tcp_bytes_total{{listener=\"{at}\",direction=\"{direction}\"}} {count}"
            );
        }
    }
    let _ = writeln!(
        out,
        "# HELP buttress_traffic_tcp_connect_failures_total Connections to endpoints of TCP that could not be made.\n# TYPE buttress_traffic_tcp_connect_failures_total counter"
    );
    for listener in listeners {
        for (name, count) in listener.options.endpoints.iter().zip(&listener.figures.connect_failures) {
            let (at, count) = (listener.address, count.load(Relaxed));
            let labels = format!("listener=\"{at}\",endpoint=\"{name}\"");
            let _ = writeln!(out, "buttress_traffic_tcp_connect_failures_total{{{labels}}} {count}");
        }
    }
}

/// Where a client came from and where it arrived, in the binary form of the PROXY protocol.
fn proxy_header(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut out = PROXY_SIGNATURE.to_vec();
    // Version 2, on behalf of somebody.
    out.push(0x21);
    match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            out.extend([0x11, 0, 12]);
            out.extend([source.octets(), destination.octets()].concat());
        }
        (source, destination) => {
            let six = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            out.extend([0x21, 0, 36]);
            out.extend([six(source), six(destination)].concat());
        }
    }
    out.extend(from.port().to_be_bytes());
    out.extend(to.port().to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_and_wrong_ones_say_what_would_be_right() {
        let (listen, read) = Options::parse(":5432=db-1:5432,db-2:5432").unwrap();
        assert_eq!((listen, read.endpoints.len()), ("127.0.0.1:5432".parse().unwrap(), 2));
        for text in ["5432", ":x=a:1", ":1=", ":1=a", ":1=a:1,a:1", ":1=https://a:1", "=a:1"] {
            let error = Options::parse(text).unwrap_err();
            assert!(error.code == Code::CONFIG && error.hint.is_some(), "{text}");
        }
    }

    #[test]
    fn the_header_says_both_ends_in_the_family_that_holds_them() {
        let header = |from: &str, to: &str| proxy_header(from.parse().unwrap(), to.parse().unwrap());
        let four = header("192.0.2.1:1000", "[::ffff:192.0.2.2]:443");
        assert_eq!(four.len(), 28);
        assert_eq!(&four[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 1, 192, 0, 2, 2, 3, 232, 1, 187]);
        let six = header("[2001:db8::1]:1", "192.0.2.2:2");
        assert_eq!((six.len(), six[13], six[15]), (52, 0x21, 36));
    }
}
