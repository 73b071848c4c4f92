//! Listeners of the configuration, and those of the command line beside them.

use std::net::SocketAddr;

use buttress_core::{Code, Error};
use buttress_gateway::{
    compile::{self, Declared},
    config::Timeouts,
    listen::{self, Http, What, Wrong},
    tcp, tls,
};
use buttress_resources::{
    listener::{Certificate, ClientCertificate, Listener},
    nearest::nearest,
};

use super::files::Listening;

/// How routes call the port of HTTP that the command line names.
pub const COMMAND_LINE: &str = "command-line";

/// What the command line says of listeners.
#[derive(Clone, Debug)]
pub struct Base {
    /// Beside whatever is declared.
    pub always: Vec<listen::Listening>,
    /// As long as nothing else listens for HTTP.
    pub usual: Option<listen::Listening>,
    pub timeouts: Timeouts,
}

impl Base {
    /// All listeners that a gateway has with these. `http` says that more are declared for HTTP, which cannot be carried out.
    pub fn with(&self, declared: Vec<listen::Listening>, http: bool) -> Vec<listen::Listening> {
        let mut all = self.always.clone();
        all.extend(declared);
        if !http && !all.iter().any(listen::Listening::is_http) {
            all.extend(self.usual.clone());
        }
        all
    }

    /// The same of resources.
    ///
    /// # Errors
    /// What is wrong with each, and where it stands.
    pub fn with_resources(&self, listeners: &[Listening]) -> Result<Vec<listen::Listening>, Vec<Wrong>> {
        let (mut declared, mut wrong) = (Vec::with_capacity(listeners.len()), Vec::new());
        for one in listeners {
            match told(one, &self.timeouts) {
                Ok(told) => declared.push(told),
                Err(error) => {
                    wrong.push(Wrong { listener: one.name.clone(), place: one.place.clone(), error });
                }
            }
        }
        if wrong.is_empty() { Ok(self.with(declared, false)) } else { Err(wrong) }
    }
}

/// A listener as the gateway is told.
///
/// # Errors
/// `ROUTES_INVALID` for an address that is none, and for tls beside tcp.
pub fn told(one: &Listening, timeouts: &Timeouts) -> Result<listen::Listening, Error> {
    let invalid = |says: String, hint: &str| Error::new(Code::ROUTES_INVALID, says).hint(hint);
    let Listener { address, tls, tcp, idle } = &one.spec;
    let listen: SocketAddr = listen::address(address)
        .ok_or_else(|| invalid(format!("\"{address}\" is no address"), "write HOST:PORT or :PORT"))?;
    let what = match (tcp, tls) {
        (Some(_), Some(_)) => {
            return Err(invalid(
                "it has tls and tcp".into(),
                "what is passed as it is cannot be read; leave one of them out",
            ));
        }
        (Some(tcp), None) => What::Tcp(tcp::Options {
            endpoints: tcp.endpoints.as_slice().iter().map(|endpoint| endpoint.address().to_owned()).collect(),
            idle: tcp.idle.map_or(timeouts.silence, |span| span.0),
            connect: timeouts.connect,
            send_proxy: false,
        }),
        (None, tls) => {
            let pair =
                |pair: &Certificate| tls::Pair { certificate: pair.cert.clone().into(), key: pair.key.clone().into() };
            let tls = tls.as_ref().map(|tls| tls::Server {
                certificates: tls.certificates.as_slice().iter().map(pair).collect(),
                client_ca: tls.client_ca.clone().map(Into::into),
                client: match tls.client {
                    ClientCertificate::Required => tls::Wanted::Required,
                    ClientCertificate::Optional => tls::Wanted::Optional,
                },
            });
            What::Http(Http { tls, idle: idle.map(|span| span.0) })
        }
    };
    Ok(listen::Listening { name: one.name.as_str().into(), place: one.place.clone(), listen, what })
}

/// Routes for listeners that are not there: nobody would ever reach them.
pub fn orphans(routes: &[Declared], listeners: &[listen::Listening]) -> Vec<compile::Wrong> {
    let http = listeners.iter().filter(|one| one.is_http());
    let known: Vec<&str> = http.map(|one| &*one.name).collect();
    let mut wrong = Vec::new();
    for route in routes {
        let named = route.spec.listeners.as_ref().map_or(&[][..], |named| named.as_slice());
        for name in named.iter().filter(|name| !known.contains(&name.as_str())) {
            let hint = match nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None if known.is_empty() => "no listener takes HTTP".to_owned(),
                None => format!("there are {}", known.join(", ")),
            };
            wrong.push(compile::Wrong {
                route: route.name.clone(),
                place: route.place.clone(),
                field: "listeners".into(),
                says: format!("no listener for HTTP is called \"{name}\"; {hint}"),
            });
        }
    }
    wrong
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

    fn base() -> Base {
        let usual = listen::Listening::http(COMMAND_LINE, "127.0.0.1:8080".parse().unwrap(), Http::default());
        Base { always: Vec::new(), usual: Some(usual), timeouts: Timeouts::default() }
    }

    #[test]
    fn listeners_say_where_and_how_and_what_cannot_be_is_refused_with_its_place() {
        let db = json!({"address": "127.0.0.1:5432", "tcp": {"endpoints": ["10.0.0.1:5432"], "idle": "1m"}});
        let web = json!({"address": ":8443", "tls": {"certificates": {"cert": "c", "key": "k"}}, "idle": "9s"});
        let all = base().with_resources(&[listening("db", db.clone()), listening("web", web)]).unwrap();
        let told: Vec<_> = all.iter().map(|one| (&*one.name, one.protocol(), one.listen.port())).collect();
        assert_eq!(told, [("db", "tcp", 5432), ("web", "https", 8443)]);
        let all = base().with_resources(&[listening("db", db)]).unwrap();
        assert_eq!(&*all[1].name, COMMAND_LINE, "where nothing else takes HTTP, the usual port does");
        for (spec, says) in [
            (json!({"address": "nowhere"}), "\"nowhere\" is no address; write HOST:PORT"),
            (json!({"address": ":1", "tls": {"certificates": []}, "tcp": {"endpoints": []}}), "it has tls and tcp"),
        ] {
            let two = [listening("a", json!({"address": ":80"})), listening("b", spec)];
            let wrong = base().with_resources(&two).unwrap_err()[0].to_string();
            assert!(wrong.starts_with("l.yaml:3: listener \"b\": BT0921") && wrong.contains(says), "{wrong}");
        }
    }

    #[test]
    fn a_route_for_a_listener_that_is_not_there_is_told_the_nearest_one() {
        let spec = serde_json::from_value(json!({"listeners": "wbe", "to": [{"endpoints": "a:1"}]})).unwrap();
        let route = Declared { name: "r".into(), spec, ..Declared::default() };
        let all = base().with_resources(&[listening("web", json!({"address": ":80"}))]).unwrap();
        let wrong = orphans(&[route], &all);
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].says.contains("did you mean \"web\"?"), "{}", wrong[0].says);
    }
}
