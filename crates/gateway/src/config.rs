//! What a proxy is told.

use std::{net::SocketAddr, time::Duration};

use buttress_core::{Code, Error};

use crate::parse::authority_ok;

/// Who answers in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `HOST:PORT`; a name is looked up for every connection, so that a change in DNS is followed.
    pub address: String,
    pub protocol: Protocol,
}

/// What an endpoint speaks. gRPC is always HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    /// Without TLS, by prior knowledge.
    Http2,
}

impl Endpoint {
    /// Reads `HOST:PORT`, `http://HOST:PORT` or `h2c://HOST:PORT`.
    ///
    /// # Errors
    /// `CONFIG` where it is none of these.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |says: &str| {
            Err(Error::new(Code::CONFIG, format!("\"{text}\" {says}"))
                .hint("give HOST:PORT, for example 127.0.0.1:3000, or h2c://HOST:PORT for HTTP/2 without TLS"))
        };
        let (protocol, address) = match text.split_once("://") {
            None => (Protocol::Http1, text),
            Some(("http", rest)) => (Protocol::Http1, rest),
            Some(("h2c", rest)) => (Protocol::Http2, rest),
            Some(("https", _)) => return wrong("asks for TLS to the upstream, which is not there yet"),
            Some((scheme, _)) => return wrong(&format!("begins with \"{scheme}\", which is not known")),
        };
        let address = address.strip_suffix('/').unwrap_or(address);
        let Some((host, port)) = address.rsplit_once(':') else {
            return wrong("names no port");
        };
        if port.parse::<u16>().is_ok_and(|port| port > 0) && !host.is_empty() && authority_ok(address.as_bytes()) {
            Ok(Self { address: address.to_owned(), protocol })
        } else {
            wrong("is not a host and a port")
        }
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    pub listen: SocketAddr,
    /// One for each core that traffic may use.
    pub threads: usize,
    /// Round robin, and no policy: what the data path costs alone.
    pub bare: bool,
    pub timeouts: Timeouts,
    /// Where a line for each request goes.
    pub access_log: Option<crate::access_log::To>,
    /// Where spans go.
    pub otlp: Option<crate::otlp::To>,
    /// For whatever is drawn by chance.
    pub seed: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection to the upstream.
    pub connect: Duration,
    /// For a request head, from its first byte on.
    pub head: Duration,
    /// A client's connection without a request.
    pub idle: Duration,
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
        assert_eq!(ok("127.0.0.1:3000"), Endpoint { address: "127.0.0.1:3000".into(), protocol: Protocol::Http1 });
        assert_eq!(ok("h2c://[::1]:9"), Endpoint { address: "[::1]:9".into(), protocol: Protocol::Http2 });
        assert_eq!(ok("http://orders.local:80/").address, "orders.local:80");
        for text in [
            "orders",
            "orders:",
            ":80",
            "orders:0",
            "orders:99999",
            "https://orders:443",
            "ftp://x:1",
            "a b:1",
            "u@h:1",
        ] {
            let error = Endpoint::parse(text).unwrap_err();
            assert!(error.code == Code::CONFIG && error.hint.is_some(), "{text}");
        }
    }
}
