//! What pages of this binary have in common: a small HTTP server for people who look on. It serves what was embedded and
//! what a handler gives.
//!
//! On a loopback address the `Host` has to be a loopback name too, so that a foreign page whose name resolves to 127.0.0.1 reads
//! nothing (DNS rebinding).

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

const HEAD_DEADLINE: Duration = Duration::from_secs(10);
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Where it is served, its content type, and its text.
pub type Asset = (&'static str, &'static str, &'static str);

/// What all pages are drawn with.
pub static SHARED: [Asset; 3] = [
    ("/style.css", "text/css; charset=utf-8", include_str!("style.css")),
    ("/connection.js", "text/javascript; charset=utf-8", include_str!("connection.js")),
    ("/format.js", "text/javascript; charset=utf-8", include_str!("format.js")),
];

/// Serves until aborted; more connections than `connections_max` are closed.
pub async fn serve<A>(
    listener: TcpListener,
    connections_max: usize,
    answer: impl Fn(Request<Incoming>) -> A + Send + Sync + 'static,
) where
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let answer = Arc::new(answer);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(_) if connections.len() >= connections_max => {
                tracing::warn!(limit = connections_max, "too many connections to the page; one is closed");
            }
            Ok((stream, _)) => {
                connections.spawn(connection(stream, answer.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely.
                tracing::warn!(%error, "accepting a connection to the page failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection<A>(stream: TcpStream, answer: Arc<impl Fn(Request<Incoming>) -> A>)
where
    A: Future<Output = Response<Body>>,
{
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        // A closed tab is the usual reason.
        tracing::debug!(%error, "a connection to the page ended");
    }
}

/// The same answer with what keeps browsers from doing more with it than showing it.
pub fn guarded(mut response: Response<Body>) -> Response<Body> {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        // The next run may be another version's.
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether a request only looks.
pub fn looks(method: &Method) -> bool {
    [Method::GET, Method::HEAD].contains(method)
}

/// The request's `Host` where it is a name of the loopback interface. Exactly one is allowed.
pub fn local_host(headers: &HeaderMap) -> Option<&str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next()?.to_str().ok()?;
    if hosts.next().is_some() {
        return None;
    }
    let local = match host.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        // Port 80 is left out by browsers.
        Err(_) if matches!(host, "127.0.0.1" | "[::1]") => true,
        Err(_) => {
            let (name, port) = host.rsplit_once(':').unwrap_or((host, "80"));
            port.parse::<u16>().is_ok() && name.eq_ignore_ascii_case("localhost")
        }
    };
    local.then_some(host)
}

/// What was embedded under this path.
pub fn embedded(path: &str, own: &'static [Asset]) -> Option<Response<Body>> {
    own.iter().chain(&SHARED).find(|(known, ..)| *known == path).map(asset)
}

pub fn asset((_, content_type, text): &'static Asset) -> Response<Body> {
    full(StatusCode::OK, content_type, Bytes::from_static(text.as_bytes()))
}

pub fn full(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    full(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

/// Server-sent events: a snapshot in JSON at once, and one every so often.
pub fn events(every: Duration, snapshot: impl Fn() -> String + Send + 'static) -> Response<Body> {
    event_stream(stream::unfold((snapshot, false), move |(snapshot, begun)| async move {
        if begun {
            tokio::time::sleep(every).await;
        }
        let event = format!("data: {}\n\n", snapshot());
        Some((Bytes::from(event), (snapshot, true)))
    }))
}

/// Server-sent events, as they come.
pub fn event_stream(events: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let frames = events.map(|event| Ok::<_, Infallible>(Frame::data(event)));
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}
