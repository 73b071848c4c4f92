//! The admin address of a proxy: the live page, metrics, and the records behind `buttress explain`.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` and the files it names | the live page, embedded into the binary |
//! | `GET /feed` | server-sent events: a snapshot every second |
//! | `GET /v1/traffic` | the same snapshot once |
//! | `GET /explain/`, `/explain/ID` | the same for one request, to be linked to; without an id, a list to choose from |
//! | `GET /v1/requests` | the newest records, one line each; `?route=`, `code=` (how it begins), `text=` and `limit=` choose |
//! | `GET /v1/requests/ID` | one record whole, also from disk with `--records` |
//! | `GET /v1/records` | all records whole, one a line, newest last, those of before the start first; 12 MiB at most, the newest |
//! | `GET /v1/routes` | the routes that hold now, with where they were written |
//! | `GET /metrics`, `/healthz` | Prometheus' text form; 200 while the process answers |
//!
//! Nothing can be changed here. On a loopback address the `Host` has to be a loopback name too, so that a foreign page
//! whose name resolves to 127.0.0.1 reads nothing (DNS rebinding).

use std::{future::ready, sync::Arc, time::Duration};

use buttress_core::{Code, Error};
use buttress_gateway::{
    record::{Filter, KEPT, SAMPLE, summary},
    shared::Shared,
    table::Table,
};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::state::State;
use crate::{
    metrics::process_metrics,
    page::{self, Asset, Body, full},
};

const CONNECTIONS_MAX: usize = 256;
const FEED_EVERY: Duration = Duration::from_secs(1);
/// Records in a list, where nothing is said and at most.
const LISTED: usize = 100;
const LISTED_MAX: usize = 1000;
/// Of `/v1/records`: what a client has to be ready for. 4,096 records are 4 MiB to 10 MiB.
const RECORDS_BYTES_MAX: usize = 12 * 1024 * 1024;
/// Records that the page shows.
const SHOWN_MAX: usize = 12;

/// What can be looked at.
struct Seen {
    shared: Arc<Shared>,
    state: Arc<State>,
}

static ASSETS: [Asset; 6] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/proxy.css", "text/css; charset=utf-8", include_str!("page/proxy.css")),
    ("/proxy.js", "text/javascript; charset=utf-8", include_str!("page/proxy.js")),
    ("/explain", "text/html; charset=utf-8", include_str!("page/explain.html")),
    ("/explain.js", "text/javascript; charset=utf-8", include_str!("page/explain.js")),
    ("/story.js", "text/javascript; charset=utf-8", include_str!("page/story.js")),
];

/// Serves until aborted.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, state: Arc<State>) {
    let loopback = listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    let seen = Arc::new(Seen { shared, state });
    page::serve(listener, CONNECTIONS_MAX, move |request| ready(answer(&request, &seen, loopback))).await;
}

fn answer<B>(request: &Request<B>, seen: &Arc<Seen>, loopback: bool) -> Response<Body> {
    page::guarded(route(request, seen, loopback).unwrap_or_else(|(status, error)| {
        json_response(status, &json!({"code": error.code.0, "message": error.message, "hint": error.hint}))
    }))
}

fn route<B>(request: &Request<B>, seen: &Arc<Seen>, loopback: bool) -> Result<Response<Body>, (StatusCode, Error)> {
    let shared = &seen.shared;
    let path = request.uri().path();
    if loopback && page::local_host(request.headers()).is_none() {
        let error = Error::new(Code::BAD_REQUEST, "this address is served under a loopback name only");
        return Err((StatusCode::MISDIRECTED_REQUEST, error.hint("open the address that the proxy printed")));
    }
    if !page::looks(request.method()) {
        let error = Error::new(Code::METHOD, format!("{path} does not take {}", request.method()));
        return Err((StatusCode::METHOD_NOT_ALLOWED, error.hint("use GET")));
    }
    // The page finds the id in its own address.
    let asset = if path.starts_with("/explain/") { "/explain" } else { path };
    if let Some(asset) = page::embedded(asset, &ASSETS) {
        return Ok(asset);
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
        "/feed" => {
            let seen = seen.clone();
            Ok(page::events(FEED_EVERY, move || snapshot(&seen).to_string()))
        }
        "/v1/traffic" => Ok(json_response(StatusCode::OK, &snapshot(seen))),
        "/v1/requests" => {
            let (filter, limit) =
                wanted(request.uri().query().unwrap_or_default()).map_err(|error| (StatusCode::BAD_REQUEST, error))?;
            let records: Vec<Value> = shared.records.list(&filter, limit).iter().map(summary).collect();
            Ok(json_response(StatusCode::OK, &json!({"requests": records})))
        }
        "/v1/records" => Ok(full(StatusCode::OK, "application/x-ndjson", records(seen).into())),
        "/v1/routes" => Ok(json_response(StatusCode::OK, &routes(&shared.table.load()))),
        _ => match path.strip_prefix("/v1/requests/").and_then(decoded) {
            Some(id) => match shared.records.find_anywhere(&id) {
                Some(record) => Ok(json_response(StatusCode::OK, &record)),
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
    if let Some(archive) = seen.shared.records.archive() {
        archive.before(|_, line| match left.checked_sub(line.len() + 1) {
            Some(rest) => {
                left = rest;
                lines.push(line.to_owned());
                true
            }
            None => false,
        });
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

/// What a query asks for.
fn wanted(query: &str) -> Result<(Filter, usize), Error> {
    let (mut filter, mut limit) = (Filter::default(), LISTED);
    let wrong =
        |part: &str, hint: &str| Error::new(Code::BAD_REQUEST, format!("\"{part}\" is not understood")).hint(hint);
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let value = decoded(&value.replace('+', " ")).ok_or_else(|| wrong(part, "encode it with %, and two digits"))?;
        match name {
            "route" => filter.route = Some(value),
            "code" => filter.code = Some(value).filter(|code| !code.is_empty()),
            "text" => filter.text = Some(value).filter(|text| !text.is_empty()),
            "limit" => {
                let number = value.parse().ok().filter(|limit| (1..=LISTED_MAX).contains(limit));
                limit = number.ok_or_else(|| wrong(part, "limit is a number from 1 to 1000"))?;
            }
            _ => return Err(wrong(part, "the list takes route, code, text and limit")),
        }
    }
    Ok((filter, limit))
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
    let newest = seen.shared.records.list(&Filter::default(), SHOWN_MAX);
    snapshot["records"] = newest.into();
    snapshot
}

fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    full(status, "application/json", Bytes::from(body.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_asked_for_by_what_it_knows_and_nothing_else() {
        let (filter, limit) = wanted("route=shop&code=BT-&text=a+b%26c&limit=5").unwrap();
        assert_eq!((filter.route.as_deref(), filter.code.as_deref(), limit), (Some("shop"), Some("BT-"), 5));
        assert_eq!(filter.text.as_deref(), Some("a b&c"));
        assert_eq!(wanted("").unwrap(), (Filter::default(), LISTED));
        assert_eq!(wanted("code=&text=&route=").unwrap().0.route.as_deref(), Some(""), "those that no route took");
        for bad in ["limit=0", "limit=1001", "limit=x", "status=5", "text=%zz"] {
            assert!(wanted(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn request_ids_are_decoded_and_half_escapes_refused() {
        assert_eq!(decoded("a%2Fb%3a1").as_deref(), Some("a/b:1"));
        assert_eq!(decoded("a%2"), None);
        assert_eq!(decoded("a%zz"), None);
    }
}
