//! The HTTP port of a node: bounds every request, asks each plane in turn, and answers what is the node's own.

use std::{convert::Infallible, sync::Arc, time::Duration};

use buttress_core::{Cluster, Code, Error};
use buttress_events::http::EventsHttp;
use buttress_functions::FunctionsHttp;
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    backups::Backups,
    members::{MembersHttp, cluster_json},
    metrics::Metrics,
    resources::store::Store,
    uplink::Uplinks,
    vitals::Nurse,
};

/// Bodies of requests: sixteen times Kafka's largest batch would not fit an entry anyway.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Components: a JavaScript function is 13 MB, a Python one 19 MB.
const COMPONENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A client that does not finish its request head or body in this time is cut off.
const READ_DEADLINE: Duration = Duration::from_secs(30);
const CONNECTIONS_MAX: usize = 4096;
/// How long requests that run when the node stops may take to be answered.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// What is answered: bytes at once, or a stream of them. A stream that ends with an error breaks its connection off, so that
/// nobody takes what came for the whole.
pub type Body = UnsyncBoxBody<Bytes, Error>;

/// A body that is there already.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that comes in pieces.
pub fn streamed(pieces: impl futures::Stream<Item = Result<Bytes, Error>> + Send + 'static) -> Body {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

pub struct Http {
    pub events: Arc<EventsHttp>,
    pub functions: Arc<FunctionsHttp>,
    pub cluster: Arc<dyn Cluster>,
    /// Routes and listeners.
    pub resources: Store,
    /// What only a process with a log of its own has.
    pub own: Option<OwnLog>,
    pub metrics: Arc<Metrics>,
}

/// The paths about the node's log.
pub struct OwnLog {
    pub members: MembersHttp,
    pub uplinks: Arc<Uplinks>,
    pub node: Arc<buttress_node::runtime::Handle>,
    pub backups: Backups,
    pub nurse: Arc<Nurse>,
}

impl OwnLog {
    async fn route(&self, method: &Method, path: &str, query: Option<&str>, body: &Bytes) -> Option<Response<Body>> {
        if let Some(response) = self.members.route(method, path, body).await {
            return Some(response);
        }
        if let Some(response) = self.uplinks.route(method, path, body).await {
            return Some(response);
        }
        let failed = |error: Error| failure(status_of(&error), &error);
        match (method, path) {
            (&Method::GET, "/v1/fingerprint") => Some(self.fingerprint().await),
            (&Method::GET, "/v1/node") => Some(match self.nurse.look().await {
                Ok(vitals) => json(StatusCode::OK, &serde_json::to_value(vitals).expect("vitals are plain data")),
                Err(error) => failed(error),
            }),
            (&Method::GET, "/v1/backup") => Some(self.backups.answer(query).await.unwrap_or_else(failed)),
            _ => None,
        }
    }

    /// A hash over everything that this node has applied: nodes that name the same index must name the same hash.
    async fn fingerprint(&self) -> Response<Body> {
        match self.node.fingerprint().await {
            Ok((index, hash)) => {
                let told = serde_json::json!({"index": index.0, "fingerprint": format!("{hash:016x}")});
                json(StatusCode::OK, &told)
            }
            Err(error) => failure(StatusCode::SERVICE_UNAVAILABLE, &error),
        }
    }
}

impl Http {
    /// Serves until `shutdown` turns true; then no connection is taken any more, requests that run are answered, and the
    /// connections close. Returns when that is done, at the latest after [`SHUTDOWN_GRACE`].
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut shutdown: watch::Receiver<bool>) {
        let room = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        let ending = shutdown.clone();
        loop {
            let accepted = tokio::select! {
                () = turned(&mut shutdown) => {
                    drop(listener);
                    let all = room.acquire_many(CONNECTIONS_MAX as u32);
                    let _ = tokio::time::timeout(SHUTDOWN_GRACE, all).await;
                    return;
                }
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting an HTTP connection failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(permit) = room.clone().try_acquire_owned() else {
                tracing::warn!(limit = CONNECTIONS_MAX, "too many HTTP connections; one is closed");
                continue;
            };
            let _ = stream.set_nodelay(true);
            let this = self.clone();
            let mut ending = ending.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let this = this.clone();
                    async move { Ok::<_, Infallible>(this.answer(request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(READ_DEADLINE)
                    .serve_connection(TokioIo::new(stream), service);
                let mut connection = std::pin::pin!(connection);
                let served = tokio::select! {
                    served = connection.as_mut() => served,
                    () = turned(&mut ending) => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                if let Err(error) = served {
                    tracing::debug!(%error, "HTTP connection ended");
                }
                drop(permit);
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let limit = if head.uri.path().starts_with("/v1/blobs") { COMPONENT_BYTES_MAX } else { BODY_BYTES_MAX };
        let body = match tokio::time::timeout(READ_DEADLINE, Limited::new(body, limit).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let error = Error::new(Code::TOO_LARGE, format!("the body is larger than {limit} bytes"));
                return failure(StatusCode::PAYLOAD_TOO_LARGE, &error.hint("send smaller batches"));
            }
            Ok(Err(error)) => {
                let error = Error::new(Code::BAD_REQUEST, format!("the body could not be read: {error}"));
                return failure(StatusCode::BAD_REQUEST, &error);
            }
            Err(_) => {
                let error = Error::new(Code::BAD_REQUEST, "the body did not come in time");
                return failure(StatusCode::REQUEST_TIMEOUT, &error);
            }
        };
        if let Some(response) = self.own(&head.method, head.uri.path()) {
            return response;
        }
        if let Some(own) = &self.own
            && let Some(response) = own.route(&head.method, head.uri.path(), head.uri.query(), &body).await
        {
            return response;
        }
        if let Some(response) = self.resources.route(&head.method, head.uri.path(), head.uri.query(), &body).await {
            return response;
        }
        let request = Request::from_parts(head, body);
        match self.events.watch(&request).await {
            Some(Ok(lines)) => {
                let mut response = Response::new(streamed(lines.map(Ok)));
                let media = header::HeaderValue::from_static("application/x-ndjson");
                response.headers_mut().insert(header::CONTENT_TYPE, media);
                return response;
            }
            Some(Err(response)) => return response.map(full),
            None => {}
        }
        if let Some(response) = self.events.route(request.clone()).await {
            return response.map(full);
        }
        let what = format!("{} {}", request.method(), request.uri().path());
        if let Some(response) = self.functions.route(request).await {
            return response.map(full);
        }
        let error = Error::new(Code::NOT_FOUND, format!("nothing is served at {what}"));
        failure(StatusCode::NOT_FOUND, &error.hint("docs/reference/http.md lists every path"))
    }

    fn own(&self, method: &Method, path: &str) -> Option<Response<Body>> {
        let known = ["/healthz", "/readyz", "/metrics", "/v1/cluster", "/v1/fingerprint", "/v1/backup", "/v1/node"]
            .contains(&path);
        if known && method != Method::GET {
            let error = Error::new(Code::METHOD, format!("{path} does not take {method}")).hint("use GET");
            return Some(failure(StatusCode::METHOD_NOT_ALLOWED, &error));
        }
        match path {
            "/healthz" => Some(text(StatusCode::OK, "ok\n".into())),
            "/readyz" => Some(match self.cluster.view().leader {
                Some(_) => text(StatusCode::OK, "ready\n".into()),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "no leader is known\n".into()),
            }),
            "/metrics" => Some(text(StatusCode::OK, self.metrics.render())),
            "/v1/cluster" => Some(json(StatusCode::OK, &cluster_json(&self.cluster.view()))),
            _ => None,
        }
    }
}

async fn turned(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

pub fn json(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let body = serde_json::to_vec(body).expect("a JSON value is serialisable");
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

pub fn failure(status: StatusCode, error: &Error) -> Response<Body> {
    json(status, &serde_json::json!({"code": error.code.0, "message": error.message, "hint": error.hint}))
}

fn status_of(error: &Error) -> StatusCode {
    match error.code {
        Code::BAD_REQUEST => StatusCode::BAD_REQUEST,
        Code::OVERLOADED => StatusCode::TOO_MANY_REQUESTS,
        Code::NO_LEADER | Code::STOPPED | Code::TIMEOUT => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
