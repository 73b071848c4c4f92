//! The HTTP port of a node: bounds every request, asks each plane in turn, and answers what is the node's own.

use std::{convert::Infallible, sync::Arc, time::Duration};

use buttress_core::{Cluster, Code, Error, ledger::ClusterView};
use buttress_events::http::EventsHttp;
use buttress_functions::FunctionsHttp;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::watch};

use crate::metrics::Metrics;

/// Bodies of requests: sixteen times Kafka's largest batch would not fit an entry anyway.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Components: a JavaScript function is 13 MB, a Python one 19 MB.
const COMPONENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A client that does not finish its request head or body in this time is cut off.
const READ_DEADLINE: Duration = Duration::from_secs(30);
const CONNECTIONS_MAX: usize = 4096;

pub struct Http {
    pub events: Arc<EventsHttp>,
    pub functions: Arc<FunctionsHttp>,
    pub cluster: Arc<dyn Cluster>,
    pub metrics: Metrics,
}

impl Http {
    /// Serves until `shutdown` turns true.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut shutdown: watch::Receiver<bool>) {
        let room = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => return,
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
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let this = this.clone();
                    async move { Ok::<_, Infallible>(this.answer(request).await) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(READ_DEADLINE)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "HTTP connection ended");
                }
                drop(permit);
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
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
        let request = Request::from_parts(head, body);
        if let Some(response) = self.events.route(request.clone()).await {
            return response.map(Full::new);
        }
        let what = format!("{} {}", request.method(), request.uri().path());
        if let Some(response) = self.functions.route(request).await {
            return response.map(Full::new);
        }
        let error = Error::new(Code::NOT_FOUND, format!("nothing is served at {what}"));
        failure(StatusCode::NOT_FOUND, &error.hint("docs/reference/http.md lists every path"))
    }

    fn own(&self, method: &Method, path: &str) -> Option<Response<Full<Bytes>>> {
        let known = ["/healthz", "/readyz", "/metrics", "/v1/cluster"].contains(&path);
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

/// The cluster as `/v1/cluster` shows it.
fn cluster_json(view: &ClusterView) -> serde_json::Value {
    serde_json::json!({
        "cluster_id": view.cluster_id,
        "node": view.node.0,
        "leader": view.leader.map(|id| id.0),
        "term": view.term.0,
        "committed": view.committed.0,
        "applied": view.applied.0,
        "revision": view.revision.0,
        "members": view.members.iter().map(|m| serde_json::json!({
            "id": m.id.0, "name": m.name, "peer": m.peer, "kafka": m.kafka, "mqtt": m.mqtt, "http": m.http,
        })).collect::<Vec<_>>(),
    })
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(body).expect("a JSON value is serialisable");
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn failure(status: StatusCode, error: &Error) -> Response<Full<Bytes>> {
    json(status, &serde_json::json!({"code": error.code.0, "message": error.message, "hint": error.hint}))
}
