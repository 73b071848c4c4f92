//! Active health checks: endpoints are asked whether they are well, and taken out of the balancers while they are not.
//!
//! | an endpoint | becomes | when |
//! |---|---|---|
//! | new in the list | up | at once: requests say soon enough whether that is true |
//! | up | down | `fails` checks one after the other failed |
//! | down | up | `passes` checks one after the other were good; it begins with a slow start |
//!
//! One task for each endpoint, on a thread that carries no traffic, with the connections that requests have too: HTTP/1.1,
//! HTTP/2, TLS. Where most endpoints are down the balancer's panic threshold takes all of them, as outlier ejection does.

use std::{collections::HashMap, rc::Rc, sync::Arc, time::Duration};

use buttress_resources::route as spec;
use bytes::{BufMut, BytesMut};
use http_body_util::BodyExt;
use tokio::task::JoinHandle;

use crate::{
    body::Body,
    frame::Encoder,
    shared::Shared,
    table::{Backend, Member},
    upstream::{Asked, Failure, Got, Upstream},
};

/// How soon a change of endpoints is taken up.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Checks whatever the table says, until it is dropped.
pub async fn keep(shared: Arc<Shared>) {
    let mut checks: HashMap<u64, JoinHandle<()>> = HashMap::new();
    loop {
        let mut wanted = HashMap::new();
        for backend in shared.table.load().backends() {
            if let Some(health) = &backend.identity.health {
                let members = &backend.endpoints.load().members;
                wanted.extend(
                    members.iter().map(|member| (member.id, (backend.clone(), member.clone(), health.clone()))),
                );
            }
        }
        checks.retain(|id, check| {
            let stays = wanted.contains_key(id);
            if !stays {
                check.abort();
            }
            stays
        });
        for (id, (backend, member, health)) in wanted {
            let shared = &shared;
            checks
                .entry(id)
                .or_insert_with(|| tokio::task::spawn_local(watch(shared.clone(), backend, member, health)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn watch(shared: Arc<Shared>, backend: Arc<Backend>, member: Arc<Member>, health: spec::Health) {
    let upstream = Rc::new(Upstream::new(member.endpoint.clone(), member.connector.clone()));
    let span = |span: Option<buttress_resources::units::Span>, default| span.map_or(default, |span| span.0);
    let every = span(health.every, Duration::from_secs(5));
    let timeout = span(health.timeout, Duration::from_secs(1));
    let (fails, passes) = (health.fails.unwrap_or(3).max(1), health.passes.unwrap_or(2).max(1));
    let (mut down, mut against) = (false, 0);
    loop {
        let asked = tokio::time::timeout(timeout, ask(&upstream, health.path.as_deref(), timeout)).await;
        let found = asked.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        against = if found.is_ok() == down { against + 1 } else { 0 };
        if against == if down { passes } else { fails } {
            (down, against) = (!down, 0);
            let endpoints = backend.endpoints.load_full();
            if let Some(at) = endpoints.members.iter().position(|other| other.id == member.id) {
                endpoints.set.set_down(shared.now(), at, down);
            }
            let (backend, endpoint) = (&*backend.name, member.endpoint.address.as_str());
            match found {
                Ok(()) => tracing::warn!(backend, endpoint, "the endpoint is well again"),
                Err(problem) => tracing::warn!(backend, endpoint, problem, "the endpoint is down"),
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// # Errors
/// Why it is not well.
async fn ask(upstream: &Rc<Upstream>, path: Option<&str>, timeout: Duration) -> Result<(), String> {
    let Some(path) = path else {
        return upstream.reach(timeout).await.map_err(|failure| failure.kind.to_string());
    };
    let got = match get(upstream, path, timeout, false).await {
        // The kept connection was closed meanwhile; that says nothing.
        Err(failure) if failure.reused => get(upstream, path, timeout, true).await,
        first => first,
    };
    let got = got.map_err(|failure| failure.kind.to_string())?;
    let status = got.head.status;
    let mut body = Body::from(got.flow);
    while let Some(frame) = body.frame().await {
        frame.map_err(|broken| format!("answered {status} and broke off: {broken}"))?;
    }
    if (200..300).contains(&status) { Ok(()) } else { Err(format!("answered {status}")) }
}

async fn get(upstream: &Rc<Upstream>, path: &str, connect_timeout: Duration, fresh: bool) -> Result<Got, Failure> {
    let host = &upstream.endpoint.address;
    let scheme = if upstream.endpoint.tls { "https" } else { "http" };
    if upstream.speaks_http2(connect_timeout).await? {
        let request =
            http::Request::get(format!("{scheme}://{host}{path}")).header("user-agent", AGENT).body(Body::empty());
        return upstream.exchange_http2(request.expect("the path was checked"), connect_timeout).await;
    }
    let mut head = BytesMut::new();
    for part in ["GET ", path, " HTTP/1.1\r\nhost: ", host, "\r\nuser-agent: ", AGENT, "\r\n\r\n"] {
        head.put_slice(part.as_bytes());
    }
    let asked = Asked {
        head,
        body: Body::empty(),
        encoder: Encoder::Length(0),
        method: http::Method::GET,
        must_not_repeat: false,
        fresh,
        connect_timeout,
        upgrade: false,
        interim: None,
    };
    upstream.exchange(asked).await
}

const AGENT: &str = "buttress-health/1";
