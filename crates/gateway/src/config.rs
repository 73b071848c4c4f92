//! What a proxy is told.

use std::time::Duration;

use buttress_core::{Code, Error};

use crate::{listen::Listening, parse::authority_ok, tls};

/// Who answers in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `HOST:PORT`; a name is looked up for every connection, so that a change in DNS is followed.
    pub address: String,
    pub protocol: Protocol,
    /// Within TLS. `Protocol::Http1` then means that the upstream chooses (ALPN).
    pub tls: bool,
}

/// What an endpoint speaks. gRPC is always HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    /// Without TLS, by prior knowledge.
    Http2,
}

impl Endpoint {
    /// Reads `HOST:PORT`, `http://HOST:PORT`, `h2c://HOST:PORT`, `https://HOST:PORT` or `h2s://HOST:PORT`.
    ///
    /// # Errors
    /// `CONFIG` where it is none of these.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |says: &str| {
            Err(Error::new(Code::CONFIG, format!("\"{text}\" {says}"))
                .hint("give HOST:PORT, for example 127.0.0.1:3000, https://HOST:PORT for TLS, h2c://HOST:PORT for HTTP/2 without"))
        };
        let (protocol, tls, address) = match text.split_once("://") {
            None => (Protocol::Http1, false, text),
            Some(("http", rest)) => (Protocol::Http1, false, rest),
            Some(("h2c", rest)) => (Protocol::Http2, false, rest),
            Some(("https", rest)) => (Protocol::Http1, true, rest),
            Some(("h2s", rest)) => (Protocol::Http2, true, rest),
            Some((scheme, _)) => return wrong(&format!("begins with \"{scheme}\", which is not known")),
        };
        let address = address.strip_suffix('/').unwrap_or(address);
        let Some((host, port)) = address.rsplit_once(':') else {
            return wrong("names no port");
        };
        if port.parse::<u16>().is_ok_and(|port| port > 0) && !host.is_empty() && authority_ok(address.as_bytes()) {
            Ok(Self { address: address.to_owned(), protocol, tls })
        } else {
            wrong("is not a host and a port")
        }
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens when it starts.
    pub listeners: Vec<Listening>,
    /// One for each core that traffic may use.
    pub threads: usize,
    /// Round robin, and no policy: what the data path costs alone.
    pub bare: bool,
    pub timeouts: Timeouts,
    pub edge: Edge,
    /// Where a line for each request goes.
    pub access_log: Option<crate::access_log::To>,
    /// Where records are kept beside memory.
    pub records: Option<crate::archive::To>,
    /// Where spans go.
    pub otlp: Option<crate::otlp::To>,
    /// For whatever is drawn by chance.
    pub seed: u64,
}

/// How connections are made and taken, whatever is spoken on them.
#[derive(Clone, Debug, Default)]
pub struct Edge {
    /// TLS to those endpoints that ask for it.
    pub upstream_tls: tls::Client,
    /// An `X-Forwarded-Client-Cert` that comes in is kept, because a proxy before us wrote it. Without this it is taken off:
    /// any client could write one.
    pub keep_client_cert: bool,
    /// A client that ends its sending side has left, and its request with it. Without this it is answered: RFC 9112, 9.6, lets it
    /// wait for that.
    pub half_close_leaves: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection to the upstream.
    pub connect: Duration,
    /// For a request head, from its first byte on; and for a handshake of TLS.
    pub head: Duration,
    /// A client's connection without a request, where its listener says nothing else.
    pub idle: Duration,
    /// An upstream that says nothing in the middle of its answer, and an upgraded connection on which nothing moves.
    pub silence: Duration,
    /// How long requests may go on when the proxy stops.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            head: Duration::from_secs(10),
            // Longer than most load balancers keep theirs (60 s), so that they close first.
            idle: Duration::from_secs(75),
            // Events and WebSockets are meant to be silent, but nothing is kept for ever for a peer that has vanished.
            silence: Duration::from_secs(3600),
            drain: Duration::from_secs(25),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_wrong_ones_say_what_would_be_right() {
        let ok = |text: &str| Endpoint::parse(text).unwrap();
        assert_eq!(
            ok("127.0.0.1:3000"),
            Endpoint { address: "127.0.0.1:3000".into(), protocol: Protocol::Http1, tls: false }
        );
        let secure = |protocol| Endpoint { address: "orders:443".into(), protocol, tls: true };
        assert_eq!(ok("https://orders:443/"), secure(Protocol::Http1));
        assert_eq!(ok("h2s://orders:443"), secure(Protocol::Http2));
        assert_eq!(ok("h2c://[::1]:9"), Endpoint { address: "[::1]:9".into(), protocol: Protocol::Http2, tls: false });
        assert_eq!(ok("http://orders.local:80/").address, "orders.local:80");
        for text in ["orders", "orders:", ":80", "orders:0", "orders:99999", "ftp://x:1", "a b:1", "u@h:1"] {
            let error = Endpoint::parse(text).unwrap_err();
            assert!(error.code == Code::CONFIG && error.hint.is_some(), "{text}");
        }
    }
}
