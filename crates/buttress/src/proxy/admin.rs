//! The admin address of a proxy: the live page, metrics, and the records behind `buttress explain`.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` and the files it names | the live page, embedded into the binary |
//! | `GET /feed` | server-sent events: a snapshot every second |
//! | `GET /v1/traffic` | the same snapshot once |
//! | `GET /v1/requests` | the newest records, one line each |
//! | `GET /v1/requests/ID` | one record whole |
//! | `GET /v1/records` | all records whole, one a line, newest last; 12 MiB at most, the newest |
//! | `GET /v1/routes` | the routes that hold now, with where they were written |
//! | `GET /metrics`, `/healthz` | Prometheus' text form; 200 while the process answers |
//!
//! Nothing can be changed here. On a loopback address the `Host` has to be a loopback name too, so that a foreign page
//! whose name resolves to 127.0.0.1 reads nothing (DNS rebinding).

use std::{convert::Infallible, sync::Arc, time::Duration};

use buttress_core::{Code, Error};
use buttress_gateway::{
    record::{KEPT, SAMPLE},
    shared::Shared,
    table::Table,
};
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Frame, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::state::State;
use crate::{demo::page::local_host, metrics::process_metrics};

const CONNECTIONS_MAX: usize = 256;
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 16 * 1024;
const FEED_EVERY: Duration = Duration::from_secs(1);
/// Records in a list.
const LISTED_MAX: usize = 100;
/// Of `/v1/records`: what a client has to be ready for. 4,096 records are 4 MiB to 10 MiB.
const RECORDS_BYTES_MAX: usize = 12 * 1024 * 1024;
/// Records that the page shows.
const SHOWN_MAX: usize = 12;

const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What can be looked at.
struct Seen {
    shared: Arc<Shared>,
    state: Arc<State>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

const ASSETS: [(&str, &str, &str); 6] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/proxy.css", "text/css; charset=utf-8", include_str!("page/proxy.css")),
    ("/proxy.js", "text/javascript; charset=utf-8", include_str!("page/proxy.js")),
    ("/style.css", "text/css; charset=utf-8", include_str!("../demo/page/style.css")),
    ("/connection.js", "text/javascript; charset=utf-8", include_str!("../demo/page/connection.js")),
    ("/format.js", "text/javascript; charset=utf-8", include_str!("../demo/page/format.js")),
];

/// Serves until aborted.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, state: Arc<State>) {
    let seen = Arc::new(Seen { shared, state });
    let loopback = listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(_) if connections.len() >= CONNECTIONS_MAX => {
                tracing::warn!(limit = CONNECTIONS_MAX, "too many connections to the admin address; one is closed");
            }
            Ok((stream, _)) => {
                connections.spawn(connection(stream, seen.clone(), loopback));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection to the admin address failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, seen: Arc<Seen>, loopback: bool) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let seen = seen.clone();
        async move { Ok::<_, Infallible>(answer(&request, &seen, loopback)) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the admin address ended");
    }
}

fn answer<B>(request: &Request<B>, seen: &Arc<Seen>, loopback: bool) -> Response<Body> {
    let mut response = match route(request, seen, loopback) {
        Ok(response) => response,
        Err((status, error)) => {
            json_response(status, &json!({"code": error.code.0, "message": error.message, "hint": error.hint}))
        }
    };
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn route<B>(request: &Request<B>, seen: &Arc<Seen>, loopback: bool) -> Result<Response<Body>, (StatusCode, Error)> {
    let shared = &seen.shared;
    let path = request.uri().path();
    if loopback && local_host(request.headers()).is_none() {
        let error = Error::new(Code::BAD_REQUEST, "this address is served under a loopback name only");
        return Err((StatusCode::MISDIRECTED_REQUEST, error.hint("open the address that the proxy printed")));
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let error = Error::new(Code::METHOD, format!("{path} does not take {}", request.method()));
        return Err((StatusCode::METHOD_NOT_ALLOWED, error.hint("use GET")));
    }
    if let Some((_, content_type, text)) = ASSETS.iter().find(|(known, ..)| *known == path) {
        return Ok(full(StatusCode::OK, content_type, Bytes::from_static(text.as_bytes())));
    }
    match path {
        "/healthz" => Ok(full(StatusCode::OK, "text/plain; charset=utf-8", Bytes::from_static(b"ok\n"))),
        "/metrics" => {
            let mut page = String::with_capacity(16 * 1024);
            shared.prometheus(&mut page);
            seen.state.prometheus(&mut page);
            process_metrics(&mut page);
            Ok(full(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page.into()))
        }
        "/feed" => Ok(feed(seen.clone())),
        "/v1/traffic" => Ok(json_response(StatusCode::OK, &snapshot(seen))),
        "/v1/requests" => {
            let records: Vec<Value> = shared.records.latest(LISTED_MAX).iter().map(|record| record.summary()).collect();
            Ok(json_response(StatusCode::OK, &json!({"requests": records})))
        }
        "/v1/records" => Ok(full(StatusCode::OK, "application/x-ndjson", records(seen).into())),
        "/v1/routes" => Ok(json_response(StatusCode::OK, &routes(&shared.table.load()))),
        _ => match path.strip_prefix("/v1/requests/").and_then(decoded) {
            Some(id) => match shared.records.find(&id) {
                Some(record) => Ok(json_response(StatusCode::OK, &record.json())),
                None => Err((
                    StatusCode::NOT_FOUND,
                    Error::new(Code::REQUEST_UNKNOWN, format!("no record of request \"{id}\" is kept"))
                        .hint("GET /v1/requests lists what is kept"),
                )),
            },
            None => Err((
                StatusCode::NOT_FOUND,
                Error::new(Code::NOT_FOUND, format!("nothing is served at '{path}'"))
                    .hint("the page is at /, metrics at /metrics, records at /v1/requests"),
            )),
        },
    }
}

/// As many of the newest records as fit, in the order in which they were kept.
fn records(seen: &Seen) -> String {
    let mut lines = Vec::new();
    let mut left = RECORDS_BYTES_MAX;
    for record in seen.shared.records.latest(KEPT) {
        let line = record.json().to_string();
        let Some(rest) = left.checked_sub(line.len() + 1) else { break };
        left = rest;
        lines.push(line);
    }
    lines.reverse();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn routes(table: &Table) -> Value {
    let routes: Vec<Value> = table
        .routes
        .iter()
        .map(|route| {
            json!({
                "name": &*route.name, "file": route.place.file, "line": route.place.line,
                "match_lines": route.match_lines, "spec": route.spec,
            })
        })
        .collect();
    json!({"generation": table.generation, "sample": SAMPLE, "routes": routes})
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Option<String> {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digit = |b: Option<u8>| (b? as char).to_digit(16);
                (digit(bytes.next())? * 16 + digit(bytes.next())?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

fn snapshot(seen: &Seen) -> Value {
    let mut snapshot = seen.shared.snapshot();
    snapshot["config"] = seen.state.json();
    let newest: Vec<Value> = seen.shared.records.latest(SHOWN_MAX).iter().map(|record| record.json()).collect();
    snapshot["records"] = newest.into();
    snapshot
}

fn feed(seen: Arc<Seen>) -> Response<Body> {
    let events = stream::unfold((seen, false), |(seen, begun)| async move {
        if begun {
            tokio::time::sleep(FEED_EVERY).await;
        }
        let event = format!("data: {}\n\n", snapshot(&seen));
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(event))), (seen, true)))
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(events)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

fn full(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    full(status, "application/json", Bytes::from(body.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_decoded_and_half_escapes_refused() {
        assert_eq!(decoded("a%2Fb%3a1").as_deref(), Some("a/b:1"));
        assert_eq!(decoded("a%2"), None);
        assert_eq!(decoded("a%zz"), None);
    }
}
