//! Listeners of the configuration: where a gateway takes connections, and how. They count from its start to its end; a change
//! needs a restart, which loses nothing (SIGTERM drains).

use std::net::SocketAddr;

use buttress_core::{Code, Error};
use buttress_gateway::{
    config::{Edge, Timeouts},
    tcp, tls,
};
use buttress_resources::listener::{ClientCertificate, Listener};

use super::files::Listening;

/// Adds listeners to what the command line says. Tells where HTTP listens, if one of them says it.
///
/// # Errors
/// `ROUTES_INVALID` for an address that is none, and for a second listener of HTTP.
pub fn take_up(listeners: &[Listening], edge: &mut Edge, timeouts: &mut Timeouts) -> Result<Option<SocketAddr>, Error> {
    let mut http: Option<(&Listening, SocketAddr)> = None;
    for one in listeners {
        let wrong = |says: String| {
            Error::new(Code::ROUTES_INVALID, format!("{}: listener \"{}\": {says}", one.place, one.name))
        };
        let Listener { address, tls, tcp, idle } = &one.spec;
        let address =
            listen(address).ok_or_else(|| wrong(format!("\"{address}\" is no address; write HOST:PORT or :PORT")))?;
        if let Some(tcp) = tcp {
            if tls.is_some() {
                return Err(wrong("has tls and tcp; what is passed as it is cannot be read".into()));
            }
            let endpoints = tcp.endpoints.as_slice().iter().map(|endpoint| endpoint.address().to_owned()).collect();
            let idle = tcp.idle.map_or(timeouts.silence, |span| span.0);
            edge.tcp.push(tcp::Options {
                listen: address,
                endpoints,
                idle,
                connect: timeouts.connect,
                send_proxy: false,
            });
            continue;
        }
        if let Some((other, _)) = &http {
            return Err(wrong(format!("listens for HTTP, as \"{}\" does; a gateway has one such port", other.name))
                .hint("run another gateway for it, or put one of them behind tcp"));
        }
        if let Some(tls) = tls {
            let pair = |pair: &buttress_resources::listener::Certificate| tls::Pair {
                certificate: pair.cert.clone().into(),
                key: pair.key.clone().into(),
            };
            edge.tls = Some(tls::Server {
                certificates: tls.certificates.as_slice().iter().map(pair).collect(),
                client_ca: tls.client_ca.clone().map(Into::into),
                client: match tls.client {
                    ClientCertificate::Required => tls::Wanted::Required,
                    ClientCertificate::Optional => tls::Wanted::Optional,
                },
            });
        }
        if let Some(idle) = idle {
            timeouts.idle = idle.0;
        }
        http = Some((one, address));
    }
    Ok(http.map(|(_, address)| address))
}

/// `HOST:PORT`, or `:PORT` for every address.
fn listen(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix(':') {
        Some(port) => Some(SocketAddr::from(([0, 0, 0, 0], port.parse().ok()?))),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use buttress_gateway::table::Place;
    use serde_json::json;

    use super::*;

    fn listening(name: &str, spec: serde_json::Value) -> Listening {
        let place = Place { file: "l.yaml".into(), line: 3 };
        Listening { name: name.into(), spec: serde_json::from_value(spec).unwrap(), place }
    }

    #[test]
    fn listeners_say_where_and_how_and_what_cannot_be_is_refused_with_its_place() {
        let (mut edge, mut timeouts) = (Edge::default(), Timeouts::default());
        let all = [
            listening(
                "web",
                json!({"address": ":8443", "tls": {"certificates": {"cert": "c", "key": "k"}}, "idle": "9s"}),
            ),
            listening(
                "db",
                json!({"address": "127.0.0.1:5432", "tcp": {"endpoints": ["10.0.0.1:5432"], "idle": "1m"}}),
            ),
        ];
        assert_eq!(take_up(&all, &mut edge, &mut timeouts).unwrap(), Some("0.0.0.0:8443".parse().unwrap()));
        assert_eq!((edge.tls.unwrap().certificates.len(), edge.tcp.len(), timeouts.idle.as_secs()), (1, 1, 9));
        for (spec, says) in [
            (json!({"address": "nowhere"}), "is no address"),
            (json!({"address": ":1", "tls": {"certificates": []}, "tcp": {"endpoints": []}}), "has tls and tcp"),
            (json!({"address": ":1"}), "a gateway has one such port"),
        ] {
            let two = [listening("a", json!({"address": ":80"})), listening("b", spec)];
            let error = take_up(&two, &mut Edge::default(), &mut Timeouts::default()).unwrap_err();
            assert!(error.message.starts_with("l.yaml:3: listener \"b\"") && error.message.contains(says), "{error}");
        }
    }
}
