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

use std::{future::ready, sync::Arc, time::Duration};

use http::{Request, Response, StatusCode};
use tokio::net::TcpListener;

use super::feed::Feed;
use crate::page::{self, Asset, Body, full, plain};

const CONNECTIONS_MAX: usize = 64;
const FEED_EVERY: Duration = Duration::from_millis(500);

static ASSETS: [Asset; 3] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/orders.css", "text/css; charset=utf-8", include_str!("page/orders.css")),
    ("/orders.js", "text/javascript; charset=utf-8", include_str!("page/orders.js")),
];

/// Serves until aborted.
pub async fn serve(listener: TcpListener, feed: Arc<Feed>) {
    page::serve(listener, CONNECTIONS_MAX, move |request| ready(answer(&request, &feed))).await;
}

fn answer<B>(request: &Request<B>, feed: &Arc<Feed>) -> Response<Body> {
    let path = request.uri().path();
    page::guarded(if page::local_host(request.headers()).is_none() {
        plain(StatusCode::MISDIRECTED_REQUEST, "open the address that the demo printed\n")
    } else if !page::looks(request.method()) {
        plain(StatusCode::METHOD_NOT_ALLOWED, "nothing can be changed here; use GET\n")
    } else {
        let feed = feed.clone();
        match path {
            "/feed" => page::events(FEED_EVERY, move || feed.json()),
            "/v1/orders" => full(StatusCode::OK, "application/json", feed.json().into()),
            _ => page::embedded(path, &ASSETS)
                .unwrap_or_else(|| plain(StatusCode::NOT_FOUND, "nothing is served here; the page is at /\n")),
        }
    })
}

#[cfg(test)]
mod tests {
    use http::Method;

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
