//! The port: connections, routing, and the pages that are no API.
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge are told apart by their first bytes. What has gRPC's content type goes to
//! the services; `/v3/…` to the JSON gateway; the rest are pages that etcd has on its client port too.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use buttress_core::{Consistency, ledger::MemberRole};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use prost::Message;
use tokio::{net::TcpListener, sync::watch};
use tonic::{Code, Status, body::Body, server::Grpc};

use super::{Etcd, VERSION, convert::REQUEST_BYTES_MAX, error, watches::WatchCodec};
use crate::pb::{
    etcdserverpb::{
        auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
        maintenance_server::MaintenanceServer,
    },
    v3electionpb::election_server::ElectionServer,
    v3lockpb::lock_server::LockServer,
};

/// The largest message that is taken at all: as in etcd, what a request may have and 512 KiB for what is around it.
pub(super) const MESSAGE_BYTES_MAX: usize = REQUEST_BYTES_MAX + 512 * 1024;
/// A client that says nothing at all, or does not finish the head of an HTTP/1.1 request, is cut off after this time.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// Calls and streams at a time on one connection. A client that watches from thousands of streams fits.
const STREAMS_MAX: u32 = 4096;
/// What may be under way to us on a stream before we have taken it, and on a connection: 1 MiB for all of its streams.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Answers that a stream's client has not made room for yet.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// A connection on which nothing comes is asked whether anybody is there, and closed without an answer in time: so a
/// half-open one does not live for ever.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const GRPC: &[u8] = b"application/grpc";
/// How the generated services begin to say that bytes are no message.
const NO_MESSAGE_OF_OURS: &str = "failed to decode Protobuf message";
/// How long calls that run when the node stops may take to be answered.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Serves until the node stops; then no connection is taken any more, calls that run are answered, streams end with
/// etcd's "server stopped", and the connections close. Returns when that is done, or after two seconds.
pub async fn serve(etcd: Arc<Etcd>, listener: TcpListener) {
    let limit = etcd.options.connections_max;
    let room = Arc::new(tokio::sync::Semaphore::new(limit));
    let mut stopping = etcd.stopping.clone();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES);
    let builder = Arc::new(builder);
    let term = etcd.clone();
    let mut term = std::pin::pin!(term.follow_term());
    loop {
        let accepted = tokio::select! {
            () = term.as_mut() => continue,
            () = turned(&mut stopping) => {
                drop(listener);
                let all = room.acquire_many(limit as u32);
                let _ = tokio::time::timeout(SHUTDOWN_GRACE, all).await;
                return;
            }
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(plane = "coordination", %error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            tracing::warn!(plane = "coordination", limit, "too many connections; one is closed");
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (etcd, builder, mut stopping) = (etcd.clone(), builder.clone(), stopping.clone());
        tokio::spawn(async move {
            // Nobody waits for long for the first byte of a client that says nothing.
            let mut byte = [0];
            let first = tokio::time::timeout(HEAD_DEADLINE, stream.peek(&mut byte));
            let spoke = tokio::select! {
                first = first => matches!(first, Ok(Ok(1))),
                () = turned(&mut stopping) => false,
            };
            if !spoke {
                return;
            }
            etcd.counters.connections.fetch_add(1, Ordering::Relaxed);
            let service = service_fn(|request| {
                let etcd = etcd.clone();
                async move { Ok::<_, Infallible>(etcd.answer(request).await) }
            });
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let served = tokio::select! {
                served = connection.as_mut() => served,
                () = turned(&mut stopping) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = served {
                tracing::debug!(plane = "coordination", %error, "connection ended");
            }
            etcd.counters.connections.fetch_sub(1, Ordering::Relaxed);
            drop(permit);
        });
    }
}

async fn turned(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Etcd {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let media = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        if request.version() == Version::HTTP_2 {
            if media == GRPC {
                return self.call(request).await;
            }
            if let Some([b'+' | b';', subtype @ ..]) = media.strip_prefix(GRPC) {
                // Whatever it is called, the messages are protobuf. So etcd takes it.
                let named = HeaderValue::from_bytes(&[GRPC, b"+", subtype].concat());
                let mut response = self.call(request).await;
                response.headers_mut().insert(header::CONTENT_TYPE, named.expect("its bytes came in a header"));
                return response;
            }
            if call_of(request.uri().path()).is_some_and(|(service, _)| Service::of(service).is_some()) {
                let text = format!("invalid gRPC request content-type \"{}\"", media.escape_ascii());
                return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, Status::invalid_argument(text));
            }
        }
        if ["/v3/", "/v3beta/"].iter().any(|root| request.uri().path().starts_with(root)) {
            return self.clone().json(request).await;
        }
        self.page(&request).await
    }

    async fn call(self: &Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        if request.method() != Method::POST {
            let method = request.method();
            let text = format!("Received a HEADERS frame with :method \"{method}\" which should be POST");
            return refused(StatusCode::METHOD_NOT_ALLOWED, Status::internal(text));
        }
        match Unary::of(request.uri().path()) {
            Some(call) => self.unary(call, request).await,
            None => self.grpc(request, "grpc").await,
        }
    }

    /// Answers one of the calls that clients make all the time, with as little as it takes: the message is decoded where it
    /// was received, and the answer is one piece. Where there is anything unusual about the request, the generated service
    /// gets it as it came.
    async fn unary(self: &Arc<Self>, call: Unary, request: Request<Incoming>) -> Response<Body> {
        let (head, mut body) = request.into_parts();
        let (mut whole, mut ended) = (Bytes::new(), body.is_end_stream());
        while !ended && may_be_one_message(&whole) {
            match body.frame().await {
                None => ended = true,
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    whole = if whole.is_empty() { data } else { join(whole, &data) };
                    ended = body.is_end_stream();
                }
                Some(Err(error)) => return Status::from_error(Box::new(error)).into_http(),
            }
        }
        let plain = !head.headers.contains_key("grpc-encoding") && !head.headers.contains_key("hasleader");
        let Some(message) = only_message(&whole).filter(|_| plain && ended) else {
            let came = futures::stream::iter((!whole.is_empty()).then(|| Ok(Frame::data(whole))));
            let body = StreamBody::new(came.chain(BodyStream::new(body)));
            return self.grpc(Request::from_parts(head, body), "grpc").await;
        };
        self.counters.call("kv", "grpc");
        let answered = match call {
            Unary::Range => unary(message, |request| self.range(request)).await,
            Unary::Put => unary(message, |request| self.put(request)).await,
            Unary::DeleteRange => unary(message, |request| self.delete_range(request)).await,
            Unary::Txn => unary(message, |request| self.txn(request)).await,
        };
        match answered {
            Ok(answer) => {
                let mut response = Response::new(Body::new(Answer::Message(answer)));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                response
            }
            Err(status) => status.into_http(),
        }
    }

    /// Answers a gRPC call, whatever carried it.
    pub(super) async fn grpc<B>(self: &Arc<Self>, request: Request<B>, transport: &'static str) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
        let requires_leader = request.headers().get("hasleader").is_some_and(|value| value == "true");
        if requires_leader && let Err(status) = error::require_leader(&self.cluster.view()) {
            return status.into_http();
        }
        let path = request.uri().path();
        let Some((service, method)) = call_of(path) else {
            self.counters.call("unknown", transport);
            return Status::unimplemented(format!("malformed method name: \"{}\"", path.escape_default())).into_http();
        };
        let Some((known, name)) = Service::of(service) else {
            self.counters.call("unknown", transport);
            return Status::unimplemented(format!("unknown service {}", service.escape_default())).into_http();
        };
        self.counters.call(name, transport);
        let Some(streams) = self.gateway.takes_stream(service, method) else {
            let text = format!("unknown method {} for service {service}", method.escape_default());
            return Status::unimplemented(text).into_http();
        };
        let encoding = request.headers().get("grpc-encoding").map(HeaderValue::as_bytes).unwrap_or_default();
        if !matches!(encoding, b"" | b"identity") {
            let text = format!("grpc: Decompressor is not installed for grpc-encoding \"{}\"", encoding.escape_ascii());
            return Status::unimplemented(text).into_http();
        }
        let request = request.map(|body| Guarded::new(body, MESSAGE_BYTES_MAX, !streams));
        let response = self.serve_call(known, request, requires_leader).await;
        reworded(response)
    }

    async fn serve_call<B>(
        self: &Arc<Self>,
        service: Service,
        request: Request<Guarded<B>>,
        requires_leader: bool,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
        match service {
            Service::Kv => call(KvServer::new(super::Shared(self.clone())), request).await,
            Service::Watch => {
                let watch = WatchCall { etcd: self.clone(), requires_leader };
                Grpc::new(WatchCodec).streaming(watch, request).await
            }
            Service::Lease => call(LeaseServer::new(super::Shared(self.clone())), request).await,
            Service::Cluster => call(ClusterServer::from_arc(self.clone()), request).await,
            Service::Maintenance => call(MaintenanceServer::from_arc(self.clone()), request).await,
            Service::Auth => call(AuthServer::from_arc(self.clone()), request).await,
            Service::Lock => call(LockServer::new(super::Shared(self.clone())), request).await,
            Service::Election => call(ElectionServer::new(super::Shared(self.clone())), request).await,
        }
    }

    async fn page(&self, request: &Request<Incoming>) -> Response<Body> {
        let known = ["/health", "/livez", "/readyz", "/version", "/metrics"].contains(&request.uri().path());
        if !known {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let query = request.uri().query().unwrap_or_default();
        let asked = |wanted: &str| query.split('&').any(|pair| pair.split('=').next() == Some(wanted));
        match request.uri().path() {
            "/health" => {
                let serializable = query.split('&').any(|pair| pair == "serializable=true");
                let (status, health, reason) = match self.healthy(serializable).await {
                    Ok(()) => (StatusCode::OK, "true", String::new()),
                    Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, "false", reason),
                };
                json(status, &serde_json::json!({"health": health, "reason": reason}))
            }
            // It answers, so it lives: restarting it would mend nothing.
            "/livez" => check(asked("verbose"), "serializable_read", self.healthy(true).await),
            "/readyz" => check(asked("verbose"), "linearizable_read", self.healthy(false).await),
            "/version" => {
                let versions = serde_json::json!({
                    "etcdserver": VERSION, "etcdcluster": VERSION, "storage": VERSION,
                    "buttress": env!("CARGO_PKG_VERSION"),
                });
                json(StatusCode::OK, &versions)
            }
            _ => {
                let mut page = String::with_capacity(16 * 1024);
                (self.metrics)(&mut page);
                text(StatusCode::OK, page)
            }
        }
    }

    /// Whether keys can be read; a linearizable read needs a quorum, which a learner cannot ask for itself in etcd
    /// either.
    async fn healthy(&self, serializable: bool) -> Result<(), String> {
        let view = self.cluster.view();
        let learner = view.members.iter().any(|m| m.id == view.node && m.role == MemberRole::Learner);
        if !serializable && view.leader.is_none() {
            return Err("RAFT NO LEADER".to_owned());
        }
        let consistency = if serializable || learner { Consistency::Serializable } else { Consistency::Linearizable };
        match self.ledger.keys(consistency).await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("RANGE ERROR:{}", error::status(&error).message())),
        }
    }
}

/// Service and method of a call's path.
fn call_of(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/').unwrap_or(path).rsplit_once('/')
}

/// A refusal of the transport, which a client of HTTP understands too.
fn refused(http: StatusCode, status: Status) -> Response<Body> {
    let mut response = status.into_http();
    *response.status_mut() = http;
    response
}

/// Says of bytes that are no message what etcd says. What the decoder says names our types, and may be long.
fn reworded(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::Internal && status.message().starts_with(NO_MESSAGE_OF_OURS) => {
            no_message().into_http()
        }
        _ => response,
    }
}

fn no_message() -> Status {
    Status::internal("grpc: error unmarshalling request: proto: cannot parse invalid wire-format data")
}

async fn call<S, B>(mut server: S, request: Request<B>) -> Response<Body>
where
    S: tonic::codegen::Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    match server.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The calls of [`Etcd::unary`].
#[derive(Clone, Copy)]
enum Unary {
    Range,
    Put,
    DeleteRange,
    Txn,
}

impl Unary {
    fn of(path: &str) -> Option<Self> {
        Some(match path.strip_prefix("/etcdserverpb.KV/")? {
            "Range" => Self::Range,
            "Put" => Self::Put,
            "DeleteRange" => Self::DeleteRange,
            "Txn" => Self::Txn,
            _ => return None,
        })
    }
}

/// A message with gRPC's head: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;

/// Whether these are the first bytes of a body that holds one message of an allowed size, as it is. So no more than that is
/// kept of a body.
fn may_be_one_message(bytes: &[u8]) -> bool {
    bytes.first_chunk::<HEAD_BYTES>().is_none_or(|[compressed, length @ ..]| {
        let length = u32::from_be_bytes(*length) as usize;
        *compressed == 0 && length <= MESSAGE_BYTES_MAX && bytes.len() <= HEAD_BYTES + length
    })
}

/// The message of a body that holds just one, which is not compressed.
fn only_message(body: &Bytes) -> Option<Bytes> {
    let [compressed, length @ ..] = *body.first_chunk::<HEAD_BYTES>()?;
    let whole = compressed == 0 && u32::from_be_bytes(length) as usize == body.len() - HEAD_BYTES;
    whole.then(|| body.slice(HEAD_BYTES..))
}

fn join(first: Bytes, then: &[u8]) -> Bytes {
    // The pieces before are ours alone after the first time, so they are not copied again.
    let mut joined = first.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    joined.extend_from_slice(then);
    joined.freeze()
}

/// Makes one call: bytes in, bytes out.
async fn unary<Q, A, F>(message: Bytes, call: impl FnOnce(Q) -> F) -> Result<Bytes, Status>
where
    Q: Message + Default,
    A: Message,
    F: Future<Output = Result<A, Status>>,
{
    let request = Q::decode(message).map_err(|_| no_message())?;
    let answer = call(request).await?;
    let length = answer.encoded_len();
    let told = u32::try_from(length).map_err(|_| Status::resource_exhausted("grpc: the answer is too large"))?;
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(told);
    answer.encode(&mut bytes).expect("the buffer has room for it");
    Ok(bytes.freeze())
}

/// What is still to be sent: the message, and the trailer that says that the call went well.
enum Answer {
    Message(Bytes),
    Trailer,
    Nothing,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let (frame, next) = match std::mem::replace(&mut *self, Self::Nothing) {
            Self::Message(message) => (Frame::data(message), Self::Trailer),
            Self::Trailer => {
                let mut trailers = http::HeaderMap::with_capacity(1);
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                (Frame::trailers(trailers), Self::Nothing)
            }
            Self::Nothing => return Poll::Ready(None),
        };
        *self = next;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

#[derive(Clone, Copy)]
enum Service {
    Kv,
    Watch,
    Lease,
    Cluster,
    Maintenance,
    Auth,
    Lock,
    Election,
}

impl Service {
    /// The service of this name, with its name in metrics.
    fn of(service: &str) -> Option<(Self, &'static str)> {
        Some(match service {
            "etcdserverpb.KV" => (Self::Kv, "kv"),
            "etcdserverpb.Watch" => (Self::Watch, "watch"),
            "etcdserverpb.Lease" => (Self::Lease, "lease"),
            "etcdserverpb.Cluster" => (Self::Cluster, "cluster"),
            "etcdserverpb.Maintenance" => (Self::Maintenance, "maintenance"),
            "etcdserverpb.Auth" => (Self::Auth, "auth"),
            "v3lockpb.Lock" => (Self::Lock, "lock"),
            "v3electionpb.Election" => (Self::Election, "election"),
            _ => return None,
        })
    }
}

/// The one call of the Watch service.
struct WatchCall {
    etcd: Arc<Etcd>,
    requires_leader: bool,
}

impl tonic::server::StreamingService<crate::pb::etcdserverpb::WatchRequest> for WatchCall {
    type Response = Bytes;
    type ResponseStream = Pin<Box<dyn futures::Stream<Item = Result<Bytes, Status>> + Send>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(
        &mut self,
        request: tonic::Request<tonic::Streaming<crate::pb::etcdserverpb::WatchRequest>>,
    ) -> Self::Future {
        let requests = request.into_inner().boxed();
        let answers: Self::ResponseStream = Box::pin(self.etcd.watch_stream(requests, self.requires_leader));
        std::future::ready(Ok(tonic::Response::new(answers)))
    }
}

fn check(verbose: bool, name: &str, healthy: Result<(), String>) -> Response<Body> {
    match healthy {
        Ok(()) if verbose => text(StatusCode::OK, format!("[+]{name} ok\nok\n")),
        Ok(()) => text(StatusCode::OK, "ok\n"),
        Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("[-]{name} failed: {reason}\n")),
    }
}

pub(super) fn full(status: StatusCode, media: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into()).map_err(|never| match never {})));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    full(status, "text/plain; charset=utf-8", body)
}

pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    full(status, "application/json", body.to_string())
}

/// A request's body whose messages are what they may be. It follows gRPC's framing (a byte that says whether the message is
/// compressed, and its length in four) and refuses a length before anybody makes room for it. Of a call that takes one
/// message, what comes behind it is not looked at.
struct Guarded<B> {
    body: B,
    bytes_max: usize,
    single: bool,
    head: [u8; 5],
    head_len: usize,
    /// Bytes of the current message that are still to come.
    left: usize,
    /// The one message was there.
    done: bool,
}

impl<B> Guarded<B> {
    fn new(body: B, bytes_max: usize, single: bool) -> Self {
        Self { body, bytes_max, single, head: [0; 5], head_len: 0, left: 0, done: false }
    }

    /// How many of the bytes belong to what is read.
    fn follow(&mut self, data: &[u8]) -> Result<usize, Status> {
        let mut rest = data;
        while !rest.is_empty() && !self.done {
            if self.left > 0 {
                let step = self.left.min(rest.len());
                rest.advance(step);
                self.left -= step;
            } else {
                self.head[self.head_len] = rest.get_u8();
                self.head_len += 1;
                if self.head_len < self.head.len() {
                    continue;
                }
                self.head_len = 0;
                self.left = self.length()?;
            }
            self.done = self.single && self.left == 0;
        }
        Ok(data.len() - rest.len())
    }

    /// What the head says.
    fn length(&self) -> Result<usize, Status> {
        let [compressed, length @ ..] = self.head;
        match compressed {
            0 => {}
            1 => return Err(Status::internal("grpc: compressed flag set with identity or empty encoding")),
            other => return Err(Status::internal(format!("grpc: received unexpected payload format {other}"))),
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.bytes_max {
            let text = format!("grpc: received message larger than max ({length} vs. {})", self.bytes_max);
            return Err(Status::resource_exhausted(text));
        }
        Ok(length)
    }
}

impl<B> HttpBody for Guarded<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let frame = match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
            // As Go reads a head, and what is behind it.
            None if self.head_len > 0 => return Poll::Ready(Some(Err(Status::unknown("EOF").into()))),
            None if self.left > 0 => return Poll::Ready(Some(Err(Status::unknown("unexpected EOF").into()))),
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(other) => return Poll::Ready(Some(Ok(other))),
        };
        Poll::Ready(Some(match self.follow(&data) {
            Ok(bytes) => Ok(Frame::data(data.slice(..bytes))),
            Err(status) => Err(status.into()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.done || (self.head_len == 0 && self.left == 0 && self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_measured_by_its_head_wherever_it_is_cut() {
        let message = |length: u32, body: usize| {
            let mut bytes = vec![0];
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.resize(bytes.len() + body, 7);
            bytes
        };
        let two = [message(10, 10), message(3, 3)].concat();
        for cut in 0..two.len() {
            let mut guarded = Guarded::new((), 10, false);
            guarded.follow(&two[..cut]).unwrap();
            guarded.follow(&two[cut..]).unwrap();
        }
        let error = Guarded::new((), 10, false).follow(&message(11, 0)).unwrap_err();
        assert_eq!(error.message(), "grpc: received message larger than max (11 vs. 10)");
        assert_eq!(error.code(), tonic::Code::ResourceExhausted);
        for cut in 0..two.len() {
            let mut first = Guarded::new((), 10, true);
            let taken = first.follow(&two[..cut]).unwrap() + first.follow(&two[cut..]).unwrap();
            assert_eq!((taken, first.done), (15, true), "only the first of a call that takes one");
        }
    }
}
