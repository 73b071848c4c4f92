//! The live page: both sides beside each other, for one person on this machine.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` and the files it names | the page, embedded into the binary |
//! | `GET /feed` | server-sent events: a snapshot twice a second |
//! | `GET /v1/orders` | the same snapshot once |
//!
//! Nothing can be changed here. `Host` has to be a loopback name, so that a foreign page whose name resolves to 127.0.0.1
//! reads nothing (DNS rebinding).

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Frame, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet};

use super::feed::Feed;
use crate::demo::page::local_host;

const CONNECTIONS_MAX: usize = 64;
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 16 * 1024;
const FEED_EVERY: Duration = Duration::from_millis(500);

const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

type Body = UnsyncBoxBody<Bytes, Infallible>;

const ASSETS: [(&str, &str, &str); 6] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/orders.css", "text/css; charset=utf-8", include_str!("page/orders.css")),
    ("/orders.js", "text/javascript; charset=utf-8", include_str!("page/orders.js")),
    ("/style.css", "text/css; charset=utf-8", include_str!("../demo/page/style.css")),
    ("/connection.js", "text/javascript; charset=utf-8", include_str!("../demo/page/connection.js")),
    ("/format.js", "text/javascript; charset=utf-8", include_str!("../demo/page/format.js")),
];

/// Serves until aborted.
pub async fn serve(listener: TcpListener, feed: Arc<Feed>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(_) if connections.len() >= CONNECTIONS_MAX => {
                tracing::warn!(limit = CONNECTIONS_MAX, "too many connections to the page; one is closed");
            }
            Ok((stream, _)) => {
                let feed = feed.clone();
                connections.spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let service = service_fn(move |request| {
                        let answer = answer(&request, &feed);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    // A closed tab is the usual reason for an error.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_DEADLINE)
                        .max_buf_size(HEAD_BYTES_MAX)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection to the page failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn answer<B>(request: &Request<B>, feed: &Arc<Feed>) -> Response<Body> {
    let path = request.uri().path();
    let asset = ASSETS.iter().find(|(known, ..)| *known == path);
    let mut response = if local_host(request.headers()).is_none() {
        plain(StatusCode::MISDIRECTED_REQUEST, "open the address that the demo printed\n")
    } else if ![Method::GET, Method::HEAD].contains(request.method()) {
        plain(StatusCode::METHOD_NOT_ALLOWED, "nothing can be changed here; use GET\n")
    } else {
        match (asset, path) {
            (Some((_, content_type, text)), _) => {
                full(StatusCode::OK, content_type, Bytes::from_static(text.as_bytes()))
            }
            (None, "/feed") => events(feed.clone()),
            (None, "/v1/orders") => full(StatusCode::OK, "application/json", feed.json().into()),
            (None, _) => plain(StatusCode::NOT_FOUND, "nothing is served here; the page is at /\n"),
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

fn events(feed: Arc<Feed>) -> Response<Body> {
    let events = stream::unfold((feed, false), |(feed, begun)| async move {
        if begun {
            tokio::time::sleep(FEED_EVERY).await;
        }
        let event = format!("data: {}\n\n", feed.json());
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(event))), (feed, true)))
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(events)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    full(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn full(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_and_what_it_names_are_served_to_this_machine_only() {
        let feed = Arc::new(Feed::default());
        let status = |method: Method, path: &str, host: &str| {
            let request = Request::builder().method(method).uri(path).header("host", host).body(()).unwrap();
            answer(&request, &feed).status().as_u16()
        };
        let here = "127.0.0.1:4000";
        let page = ASSETS[0].2;
        for (path, ..) in ASSETS {
            assert_eq!(status(Method::GET, path, here), 200, "{path}");
        }
        for named in ["/orders.css", "/orders.js", "/style.css"] {
            assert!(page.contains(named), "{named}");
        }
        assert_eq!(status(Method::GET, "/v1/orders", here), 200);
        assert_eq!(status(Method::GET, "/else", here), 404);
        assert_eq!(status(Method::POST, "/v1/orders", here), 405);
        assert_eq!(status(Method::GET, "/", "evil.example"), 421);
    }
}
