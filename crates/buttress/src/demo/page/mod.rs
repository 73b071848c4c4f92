//! The live page of a running fleet: a small HTTP server for one person on this machine.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` and the files it names | the page, embedded into the binary; nothing is loaded from anywhere else |
//! | `GET /feed` | server-sent events: the snapshot of the [`Feed`], then every update of it |
//! | `POST /actions/kill-leader`, `restart`, `swap-model`, `wear-out?machine=N` | a button: `{"ok":true,"message":…}`, or `{"code":…,"message":…,"hint":…}` with a fitting status |
//!
//! **Slow readers.** A page that does not keep up loses updates in the feed's ring, never holds up the fleet, and gets a
//! new snapshot: a snapshot replaces everything that the page knows. The subscription begins before the snapshot is
//! taken, so an update may be told twice, and the page leaves out what it has already.
//!
//! **Who may press a button.** Whoever runs programs on this machine could send the signal without us. A *page of another
//! site* in the same person's browser must not: it listens on the loopback interface; `Host` has to be
//! a name of it, which stops a foreign name that resolves to 127.0.0.1 (DNS rebinding); and a `POST` whose `Origin` or
//! `Sec-Fetch-Site` shows that another page sent it is refused. Browsers send at least one of the two with every
//! cross-origin `POST` and do not let a page change them. A client without both, such as curl, is no browser.

use std::{sync::Arc, time::Duration};

use buttress_core::{Code, Error};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::broadcast::{self, error::RecvError},
};

use super::feed::{Command, Feed};
use crate::page::{self, Asset, Body, SHARED, full, local_host};

pub mod preview;

/// A browser opens six connections to one address; this is room for a few tabs and a few curls.
const CONNECTIONS_MAX: usize = 64;
/// A silent feed says this often that it is there, so that a page which is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The browser waits this long before it connects to the feed again.
const RECONNECT_MS: u32 = 1_000;

const fn script(path: &'static str, text: &'static str) -> Asset {
    (path, "text/javascript; charset=utf-8", text)
}

static ASSETS: [Asset; 5] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    script("/app.js", include_str!("app.js")),
    script("/heatmap.js", include_str!("heatmap.js")),
    script("/charts.js", include_str!("charts.js")),
    script("/panels.js", include_str!("panels.js")),
];

/// Serves the page until aborted; with it end all of its connections.
pub async fn serve(listener: TcpListener, feed: Arc<Feed>) {
    page::serve(listener, CONNECTIONS_MAX, move |request| answer(request, feed.clone())).await;
}

async fn answer<B>(request: Request<B>, feed: Arc<Feed>) -> Response<Body> {
    let response = match route(request.method(), request.uri(), request.headers()) {
        Ok(Route::Asset(asset)) => page::asset(asset),
        Ok(Route::Feed) => feed_response(feed),
        Ok(Route::Action(command)) => match feed.command(command).await {
            Ok(message) => json_response(StatusCode::OK, &json!({"ok": true, "message": message})),
            Err(error) => failure(action_status(&error), &error),
        },
        Err((status, error)) => {
            let mut response = failure(status, &error);
            if status == StatusCode::METHOD_NOT_ALLOWED {
                let allowed = if request.uri().path().starts_with("/actions/") { "POST" } else { "GET, HEAD" };
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            }
            response
        }
    };
    page::guarded(response)
}

enum Route {
    Asset(&'static Asset),
    Feed,
    Action(Command),
}

/// What a request asks for, from its head alone; a body is never read.
fn route(method: &Method, uri: &http::Uri, headers: &HeaderMap) -> Result<Route, (StatusCode, Error)> {
    let host = local_host(headers).ok_or_else(|| {
        (
            StatusCode::MISDIRECTED_REQUEST,
            Error::new(Code::BAD_REQUEST, "the page is served to this machine only, under a loopback name")
                .hint("open the address that the demo printed"),
        )
    })?;
    let path = uri.path();
    let method_is = |allowed: &[Method]| match allowed.contains(method) {
        true => Ok(()),
        false => Err((
            StatusCode::METHOD_NOT_ALLOWED,
            Error::new(Code::METHOD, format!("{path} does not take {method}")).hint(format!("use {}", allowed[0])),
        )),
    };
    if let Some(action) = path.strip_prefix("/actions/") {
        let command = action_command(action, uri.query())?;
        method_is(&[Method::POST])?;
        same_origin(headers, host).map_err(|error| (StatusCode::FORBIDDEN, error))?;
        return Ok(Route::Action(command));
    }
    if path == "/feed" {
        method_is(&[Method::GET])?;
        return Ok(Route::Feed);
    }
    let Some(asset) = ASSETS.iter().chain(&SHARED).find(|(known, ..)| *known == path) else {
        return Err(not_found(path));
    };
    method_is(&[Method::GET, Method::HEAD])?;
    Ok(Route::Asset(asset))
}

fn not_found(path: &str) -> (StatusCode, Error) {
    (
        StatusCode::NOT_FOUND,
        Error::new(Code::NOT_FOUND, format!("nothing is served at '{path}'")).hint("the page is at /"),
    )
}

fn action_command(action: &str, query: Option<&str>) -> Result<Command, (StatusCode, Error)> {
    match action {
        "kill-leader" => Ok(Command::KillLeader),
        "restart" => Ok(Command::Restart),
        "swap-model" => Ok(Command::SwapModel),
        "wear-out" => {
            let machine = query.unwrap_or("").split('&').find_map(|pair| pair.strip_prefix("machine=")).unwrap_or("");
            // Digits only: `parse` alone would take a sign as well.
            let number = if machine.bytes().all(|b| b.is_ascii_digit()) { machine.parse().ok() } else { None };
            number.map(Command::WearOut).ok_or_else(|| {
                (
                    StatusCode::BAD_REQUEST,
                    Error::new(Code::BAD_REQUEST, format!("'{machine}' is not the number of a machine"))
                        .hint("for example /actions/wear-out?machine=42"),
                )
            })
        }
        _ => Err(not_found(&format!("/actions/{action}"))),
    }
}

/// Refuses what another site's page sent.
fn same_origin(headers: &HeaderMap, host: &str) -> Result<(), Error> {
    let from_here = |origin: &HeaderValue| {
        let name = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        name.is_some_and(|name| name.eq_ignore_ascii_case(host))
    };
    let origins_fit = headers.get_all(header::ORIGIN).iter().all(from_here);
    let sites_fit = headers.get_all("sec-fetch-site").iter().all(|site| site == "same-origin");
    match origins_fit && sites_fit {
        true => Ok(()),
        false => Err(Error::new(Code::BAD_REQUEST, "another site's page may not press this button")
            .hint("press it on the demo's own page")),
    }
}

/// "Not now" is a conflict with how the fleet stands; only what is worth repeating at once is an unavailable service.
fn action_status(error: &Error) -> StatusCode {
    match error.code {
        Code::OVERLOADED => StatusCode::TOO_MANY_REQUESTS,
        Code::UNREACHABLE => StatusCode::BAD_GATEWAY,
        _ if error.retryable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::CONFLICT,
    }
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    full(status, "application/json", Bytes::from(body.to_string()))
}

fn failure(status: StatusCode, error: &Error) -> Response<Body> {
    json_response(status, &json!({"code": error.code.0, "message": error.message, "hint": error.hint}))
}

fn feed_response(feed: Arc<Feed>) -> Response<Body> {
    page::event_stream(stream::unfold(Subscription::new(feed), |mut subscription| async move {
        let event = subscription.next().await?;
        Some((event, subscription))
    }))
}

/// One page's way through the feed.
struct Subscription {
    feed: Arc<Feed>,
    updates: broadcast::Receiver<Arc<str>>,
    /// At the beginning, and after updates were lost.
    needs_snapshot: bool,
    begun: bool,
}

impl Subscription {
    fn new(feed: Arc<Feed>) -> Self {
        let updates = feed.subscribe();
        Self { feed, updates, needs_snapshot: true, begun: false }
    }

    /// The next piece of the event stream; `None` when the feed has ended.
    async fn next(&mut self) -> Option<Bytes> {
        if !self.begun {
            self.begun = true;
            return Some(Bytes::from(format!("retry: {RECONNECT_MS}\n\n")));
        }
        if self.needs_snapshot {
            self.needs_snapshot = false;
            return Some(event(&self.feed.snapshot()));
        }
        match tokio::time::timeout(KEEP_ALIVE, self.updates.recv()).await {
            Ok(Ok(update)) => Some(event(&update)),
            Ok(Err(RecvError::Lagged(_))) => {
                // What still waits in the ring is older than the snapshot; the new subscription skips it.
                self.updates = self.feed.subscribe();
                Some(event(&self.feed.snapshot()))
            }
            Ok(Err(RecvError::Closed)) => None,
            Err(_) => Some(Bytes::from_static(b": still here\n\n")),
        }
    }
}

/// A text as one server-sent event. Each of its lines becomes a `data` line, as the format asks; JSON has only one.
fn event(text: &str) -> Bytes {
    let mut out = String::with_capacity(text.len() + 16);
    for line in text.split(['\n', '\r']) {
        out.push_str("data: ");
        out.push_str(line);
        out.push('\n');
    }
    out.push('\n');
    Bytes::from(out)
}

#[cfg(test)]
mod tests;
