//! The port: connections, routing, and the pages that are no API.
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge are told apart by their first bytes; the one is hyper's, the other
//! [ours](super::connection). What has gRPC's content type goes to
//! the services; `/v3/…` to the JSON gateway; the rest are pages that etcd has on its client port too.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use buttress_core::{Consistency, ledger::MemberRole};
use buttress_http2::PREFACE;
use bytes::{Buf, Bytes};
use futures::StreamExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::watch,
};
use tonic::{Code, Status, body::Body, server::Grpc};

use super::{Etcd, VERSION, connection, convert::REQUEST_BYTES_MAX, error, watches::WatchCodec};
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
pub(super) const GRPC: &[u8] = b"application/grpc";
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
        let mut stream = match accepted {
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
        let (etcd, stopping) = (etcd.clone(), stopping.clone());
        tokio::spawn(async move {
            if let Some((first, length)) = first_bytes(&mut stream, stopping.clone()).await {
                etcd.counters.connections.fetch_add(1, Ordering::Relaxed);
                let first = &first[..length];
                let served = match first == PREFACE {
                    true => connection::serve(etcd.clone(), stream, first, stopping).await,
                    false => http1(etcd.clone(), stream, first, stopping).await,
                };
                if let Err(error) = served {
                    tracing::debug!(plane = "coordination", %error, "connection ended");
                }
                etcd.counters.connections.fetch_sub(1, Ordering::Relaxed);
            }
            drop(permit);
        });
    }
}

/// What a client says first: HTTP/2's preface, or as much as shows that it is none. `None` where it says nothing: nobody
/// waits for that for long.
async fn first_bytes<S: AsyncRead + Unpin>(
    stream: &mut S,
    mut stopping: watch::Receiver<bool>,
) -> Option<([u8; PREFACE.len()], usize)> {
    let read = async {
        let (mut bytes, mut length) = ([0; PREFACE.len()], 0);
        while length < bytes.len() && PREFACE.starts_with(&bytes[..length]) {
            match stream.read(&mut bytes[length..]).await {
                Ok(0) | Err(_) => return None,
                Ok(read) => length += read,
            }
        }
        Some((bytes, length))
    };
    tokio::select! {
        read = tokio::time::timeout(HEAD_DEADLINE, read) => read.ok().flatten(),
        () = turned(&mut stopping) => None,
    }
}

async fn http1<S>(etcd: Arc<Etcd>, stream: S, first: &[u8], mut stopping: watch::Receiver<bool>) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let etcd = etcd.clone();
        async move { Ok::<_, Infallible>(etcd.answer(request).await) }
    });
    let io = TokioIo::new(Begun { first: Bytes::copy_from_slice(first), stream });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = turned(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    served.map_err(|error| error.to_string())
}

/// A socket of which something was read already.
struct Begun<S> {
    first: Bytes,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

pub(super) async fn turned(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Etcd {
    /// Answers a request, whichever version of HTTP it came with.
    pub(super) async fn answer<B>(self: Arc<Self>, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
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

    async fn call<B>(self: &Arc<Self>, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
        if request.method() != Method::POST {
            let method = request.method();
            let text = format!("Received a HEADERS frame with :method \"{method}\" which should be POST");
            return refused(StatusCode::METHOD_NOT_ALLOWED, Status::internal(text));
        }
        self.grpc(request, "grpc").await
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

    async fn page<B>(&self, request: &Request<B>) -> Response<Body> {
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

pub(super) fn no_message() -> Status {
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

/// The calls that clients make all the time.
#[derive(Clone, Copy)]
pub(super) enum Unary {
    Range,
    Put,
    DeleteRange,
    Txn,
}

impl Unary {
    pub fn of(path: &str) -> Option<Self> {
        [Self::Range, Self::Put, Self::DeleteRange, Self::Txn].into_iter().find(|call| call.path() == path)
    }

    pub fn path(self) -> &'static str {
        match self {
            Self::Range => "/etcdserverpb.KV/Range",
            Self::Put => "/etcdserverpb.KV/Put",
            Self::DeleteRange => "/etcdserverpb.KV/DeleteRange",
            Self::Txn => "/etcdserverpb.KV/Txn",
        }
    }
}

/// A message with gRPC's head: whether it is compressed, and its length.
pub(super) const HEAD_BYTES: usize = 5;

/// Whether these are the first bytes of a body that holds one message of an allowed size, as it is. So no more than that is
/// kept of a body.
pub(super) fn may_be_one_message(bytes: &[u8]) -> bool {
    bytes.first_chunk::<HEAD_BYTES>().is_none_or(|[compressed, length @ ..]| {
        let length = u32::from_be_bytes(*length) as usize;
        *compressed == 0 && length <= MESSAGE_BYTES_MAX && bytes.len() <= HEAD_BYTES + length
    })
}

/// The message of a body that holds just one, which is not compressed and of an allowed size.
pub(super) fn only_message(body: &[u8]) -> Option<&[u8]> {
    let ([compressed, length @ ..], message) = body.split_first_chunk::<HEAD_BYTES>()?;
    let length = u32::from_be_bytes(*length) as usize;
    (*compressed == 0 && length == message.len() && length <= MESSAGE_BYTES_MAX).then_some(message)
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
