//! The JSON gateway: every call as `POST /v3/…` with a JSON body.
//!
//! A body becomes the message that its call takes, by the description of all messages, and the call is made as if it
//! had come over gRPC; so the gateway knows no service, and cannot say anything else than they do. Names are those of
//! the protocol (`range_end`) or in camel case, bytes are base64, numbers of 64 bits are strings (numbers are taken
//! too), and what has its default is left out. A call that streams answers with a line per message, `{"result":{…}}`;
//! where the request streams, the body holds one JSON object after another.
//!
//! Source: the HTTP rules of etcd 3.7's services, and proto3's JSON mapping.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::{Code, Status, body::Body};

use super::{Etcd, http as port};
use crate::pb;

/// A JSON object of a body: a request of 2 MiB is 2.7 MiB in base64.
const OBJECT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Paths below `/v3`, and their calls.
const ROUTES: &[(&str, &str)] = &[
    ("kv/range", "etcdserverpb.KV/Range"),
    ("kv/put", "etcdserverpb.KV/Put"),
    ("kv/deleterange", "etcdserverpb.KV/DeleteRange"),
    ("kv/txn", "etcdserverpb.KV/Txn"),
    ("kv/compaction", "etcdserverpb.KV/Compact"),
    ("watch", "etcdserverpb.Watch/Watch"),
    ("lease/grant", "etcdserverpb.Lease/LeaseGrant"),
    ("lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("kv/lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("lease/keepalive", "etcdserverpb.Lease/LeaseKeepAlive"),
    ("lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("kv/lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("kv/lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("cluster/member/add", "etcdserverpb.Cluster/MemberAdd"),
    ("cluster/member/remove", "etcdserverpb.Cluster/MemberRemove"),
    ("cluster/member/update", "etcdserverpb.Cluster/MemberUpdate"),
    ("cluster/member/list", "etcdserverpb.Cluster/MemberList"),
    ("cluster/member/promote", "etcdserverpb.Cluster/MemberPromote"),
    ("maintenance/alarm", "etcdserverpb.Maintenance/Alarm"),
    ("maintenance/status", "etcdserverpb.Maintenance/Status"),
    ("maintenance/defragment", "etcdserverpb.Maintenance/Defragment"),
    ("maintenance/hash", "etcdserverpb.Maintenance/Hash"),
    ("maintenance/hashkv", "etcdserverpb.Maintenance/HashKV"),
    ("maintenance/snapshot", "etcdserverpb.Maintenance/Snapshot"),
    ("maintenance/transfer-leadership", "etcdserverpb.Maintenance/MoveLeader"),
    ("maintenance/downgrade", "etcdserverpb.Maintenance/Downgrade"),
    ("auth/enable", "etcdserverpb.Auth/AuthEnable"),
    ("auth/disable", "etcdserverpb.Auth/AuthDisable"),
    ("auth/status", "etcdserverpb.Auth/AuthStatus"),
    ("auth/authenticate", "etcdserverpb.Auth/Authenticate"),
    ("auth/user/add", "etcdserverpb.Auth/UserAdd"),
    ("auth/user/get", "etcdserverpb.Auth/UserGet"),
    ("auth/user/list", "etcdserverpb.Auth/UserList"),
    ("auth/user/delete", "etcdserverpb.Auth/UserDelete"),
    ("auth/user/changepw", "etcdserverpb.Auth/UserChangePassword"),
    ("auth/user/grant", "etcdserverpb.Auth/UserGrantRole"),
    ("auth/user/revoke", "etcdserverpb.Auth/UserRevokeRole"),
    ("auth/role/add", "etcdserverpb.Auth/RoleAdd"),
    ("auth/role/get", "etcdserverpb.Auth/RoleGet"),
    ("auth/role/list", "etcdserverpb.Auth/RoleList"),
    ("auth/role/delete", "etcdserverpb.Auth/RoleDelete"),
    ("auth/role/grant", "etcdserverpb.Auth/RoleGrantPermission"),
    ("auth/role/revoke", "etcdserverpb.Auth/RoleRevokePermission"),
    ("lock/lock", "v3lockpb.Lock/Lock"),
    ("lock/unlock", "v3lockpb.Lock/Unlock"),
    ("election/campaign", "v3electionpb.Election/Campaign"),
    ("election/proclaim", "v3electionpb.Election/Proclaim"),
    ("election/leader", "v3electionpb.Election/Leader"),
    ("election/observe", "v3electionpb.Election/Observe"),
    ("election/resign", "v3electionpb.Election/Resign"),
];

/// A call that a path stands for.
#[derive(Clone)]
struct Route {
    call: String,
    input: MessageDescriptor,
    output: MessageDescriptor,
    streams_in: bool,
    streams_out: bool,
}

/// The paths, with what their bodies are.
pub struct Gateway {
    routes: BTreeMap<&'static str, Route>,
    services: DescriptorPool,
}

impl Default for Gateway {
    fn default() -> Self {
        Self::new()
    }
}

impl Gateway {
    pub fn new() -> Self {
        let pool = DescriptorPool::decode(pb::DESCRIPTOR).expect("the description was generated with the messages");
        let route = |(path, call): &(&'static str, &'static str)| {
            let (service, name) = call.split_once('/').expect("a call is a service and a method");
            let service = pool.get_service_by_name(service).expect("the service is described");
            let method = service.methods().find(|method| method.name() == name).expect("the method is described");
            let route = Route {
                call: format!("/{call}"),
                input: method.input(),
                output: method.output(),
                streams_in: method.is_client_streaming(),
                streams_out: method.is_server_streaming(),
            };
            (*path, route)
        };
        Self { routes: ROUTES.iter().map(route).collect(), services: pool.clone() }
    }

    /// Whether a method takes a stream of requests; `None` where there is none of this name.
    pub fn takes_stream(&self, service: &str, method: &str) -> Option<bool> {
        let service = self.services.get_service_by_name(service)?;
        let found = service.methods().find(|known| known.name() == method);
        found.map(|known| known.is_client_streaming())
    }

    /// The paths below `/v3/`.
    pub fn paths(&self) -> impl Iterator<Item = &'static str> {
        self.routes.keys().copied()
    }

    /// Reads the JSON objects of a body and gives the first as the message that its call takes, encoded, and that
    /// message as JSON again. `None` where there is none of either.
    ///
    /// # Errors
    /// What a client is told of a body that cannot be read.
    pub fn transcode(&self, path: &str, body: &[u8]) -> Result<Option<(Bytes, String)>, String> {
        let Some(route) = self.routes.get(path) else { return Ok(None) };
        let mut objects = Objects::default();
        let first = if route.streams_in {
            match objects.feed(body).map_err(|status| status.message().to_owned())?.into_iter().next() {
                Some(object) => object,
                None => return Ok(None),
            }
        } else {
            Bytes::copy_from_slice(body)
        };
        let message = read(&route.input, &first).map_err(|status| status.message().to_owned())?;
        let text = write(&route.input, &message).map_err(|status| status.message().to_owned())?;
        Ok(Some((message, text)))
    }
}

/// A JSON object as an encoded message.
fn read(descriptor: &MessageDescriptor, json: &[u8]) -> Result<Bytes, Status> {
    let wrong =
        |error: serde_json::Error| Status::invalid_argument(format!("the body is not what this takes: {error}"));
    // A body of nothing has nothing but defaults.
    if json.iter().all(u8::is_ascii_whitespace) {
        return Ok(Bytes::new());
    }
    // As in etcd's gateway, what is not known is passed over.
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let mut reader = serde_json::Deserializer::from_slice(json);
    let message = DynamicMessage::deserialize_with_options(descriptor.clone(), &mut reader, &options).map_err(wrong)?;
    reader.end().map_err(wrong)?;
    Ok(message.encode_to_vec().into())
}

/// An encoded message as JSON.
fn write(descriptor: &MessageDescriptor, message: &[u8]) -> Result<String, Status> {
    let message = DynamicMessage::decode(descriptor.clone(), message)
        .map_err(|error| Status::internal(format!("the answer cannot be read: {error}")))?;
    let options =
        SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true).skip_default_fields(true);
    let mut text = Vec::new();
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut text), &options)
        .map_err(|error| Status::internal(format!("the answer cannot be written: {error}")))?;
    String::from_utf8(text).map_err(|_| Status::internal("the answer is no text"))
}

/// Cuts a stream of bytes into JSON objects without reading any byte twice.
#[derive(Default)]
struct Objects {
    pending: BytesMut,
    /// Bytes of `pending` that were looked at.
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Objects {
    fn feed(&mut self, data: &[u8]) -> Result<Vec<Bytes>, Status> {
        self.pending.extend_from_slice(data);
        let mut found = Vec::new();
        while let Some(&byte) = self.pending.get(self.seen) {
            self.seen += 1;
            match (self.in_string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (true, b'"') => self.in_string = false,
                (true, _) => {}
                (false, b'{' | b'[') if self.depth > 0 || byte == b'{' => self.depth += 1,
                (false, b'}' | b']') if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        found.push(self.pending.split_to(self.seen).freeze());
                        self.seen = 0;
                    }
                }
                (false, b'"') if self.depth > 0 => self.in_string = true,
                (false, byte) if self.depth > 0 || byte.is_ascii_whitespace() => {}
                (false, _) => return Err(Status::invalid_argument("the body is not a row of JSON objects")),
            }
        }
        if self.pending.len() > OBJECT_BYTES_MAX {
            let text = format!("an object of the body is larger than {OBJECT_BYTES_MAX} bytes");
            return Err(Status::resource_exhausted(text));
        }
        Ok(found)
    }
}

/// A message in gRPC's framing.
fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

/// Takes whole messages out of gRPC's framing.
fn unframe(pending: &mut BytesMut) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while let Some(&[_, a, b, c, d]) = pending.first_chunk::<5>() {
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if pending.len() < 5 + length {
            break;
        }
        pending.advance(5);
        messages.push(pending.split_to(length).freeze());
    }
    messages
}

impl Etcd {
    /// Answers a path below `/v3/`.
    pub(super) async fn json<B>(self: Arc<Self>, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
        let path = request.uri().path();
        let path = path.strip_prefix("/v3/").or_else(|| path.strip_prefix("/v3beta/")).unwrap_or_default();
        let Some(route) = self.gateway.routes.get(path).cloned() else {
            return failure(&Status::not_found("Not Found"));
        };
        if request.method() != Method::POST {
            return failure(&Status::unimplemented("Method Not Allowed"));
        }
        let body = request.into_body();
        let answer = if route.streams_in {
            let messages = messages(body, route.input.clone());
            let frames = messages.map(|message| message.map(|message| Frame::data(frame(&message))));
            self.grpc(call(&route, StreamBody::new(Box::pin(frames))), "json").await
        } else {
            let message = match whole(body).await.and_then(|body| read(&route.input, &body)) {
                Ok(message) => message,
                Err(status) => return failure(&status),
            };
            self.grpc(call(&route, Full::new(frame(&message))), "json").await
        };
        if let Some(status) = status_in(answer.headers()) {
            return failure(&status);
        }
        if route.streams_out {
            let lines = lines(answer.into_body(), route.output);
            let mut response = Response::new(Body::new(StreamBody::new(Box::pin(lines))));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return response;
        }
        match single(answer.into_body()).await.and_then(|message| write(&route.output, &message)) {
            Ok(text) => port::full(StatusCode::OK, "application/json", text),
            Err(status) => failure(&status),
        }
    }
}

fn call<B>(route: &Route, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = route.call.parse().expect("a call is a path");
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request
}

async fn whole<B>(body: B) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<tonic::codegen::StdError>,
{
    match Limited::new(body, OBJECT_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Status::resource_exhausted(format!("the body is larger than {OBJECT_BYTES_MAX} bytes")))
        }
        Err(error) => Err(Status::invalid_argument(format!("the body could not be read: {error}"))),
    }
}

/// The encoded messages of a body of JSON objects, as they come.
fn messages<B>(body: B, input: MessageDescriptor) -> impl Stream<Item = Result<Bytes, Status>> + Send + use<B>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send,
{
    let state = (body, Objects::default());
    let objects = stream::try_unfold(state, |(mut body, mut objects)| async move {
        loop {
            let Some(piece) = body.frame().await else { return Ok::<_, Status>(None) };
            let piece = piece.map_err(|error| Status::invalid_argument(error.into().to_string()))?;
            let Ok(data) = piece.into_data() else { continue };
            let found = objects.feed(&data)?;
            if !found.is_empty() {
                return Ok(Some((stream::iter(found.into_iter().map(Ok)), (body, objects))));
            }
        }
    });
    use futures::TryStreamExt;
    objects.try_flatten().map(move |object| object.and_then(|object| read(&input, &object)))
}

/// The one message of a call's answer.
async fn single(body: Body) -> Result<Bytes, Status> {
    let collected = body.collect().await?;
    if let Some(status) = collected.trailers().and_then(status_in) {
        return Err(status);
    }
    let mut pending = BytesMut::from(&collected.to_bytes()[..]);
    unframe(&mut pending).pop().ok_or_else(|| Status::internal("the answer is missing"))
}

/// A line for each message of a call's answer, and one for its failure.
fn lines(body: Body, output: MessageDescriptor) -> impl Stream<Item = Result<Frame<Bytes>, Status>> + Send {
    let state = Some((body, BytesMut::new()));
    stream::unfold(state, move |state| {
        let output = output.clone();
        async move {
            let (mut body, mut pending) = state?;
            loop {
                let status = match body.frame().await? {
                    Err(status) => Some(status),
                    Ok(piece) if piece.is_trailers() => piece.trailers_ref().and_then(status_in),
                    Ok(piece) => {
                        pending.extend_from_slice(&piece.into_data().unwrap_or_default());
                        None
                    }
                };
                if let Some(status) = status {
                    let line = format!("{}\n", serde_json::json!({"error": described(&status)}));
                    return Some((Ok(Frame::data(line.into())), None));
                }
                let mut text = String::new();
                for message in unframe(&mut pending) {
                    match write(&output, &message) {
                        Ok(json) => text.extend(["{\"result\":", &json, "}\n"]),
                        Err(status) => {
                            return Some((Err(status), None));
                        }
                    }
                }
                if !text.is_empty() {
                    return Some((Ok(Frame::data(text.into())), Some((body, pending))));
                }
                if body.is_end_stream() {
                    return None;
                }
            }
        }
    })
}

/// The failure that headers or trailers tell of.
fn status_in(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)
}

/// As etcd's gateway has it now, and with `error` as it had it before 3.6.
fn described(status: &Status) -> serde_json::Value {
    serde_json::json!({"error": status.message(), "code": status.code() as i32, "message": status.message()})
}

fn failure(status: &Status) -> Response<Body> {
    port::json(http_status(status.code()), &described(status))
}

/// Source: grpc-gateway, `runtime/errors.go`, `HTTPStatusFromCode`.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).expect("three digits"),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
