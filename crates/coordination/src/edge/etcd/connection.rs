//! A connection of HTTP/2: one task, which reads, makes the calls, and writes what has come together.
//!
//! The calls that clients make all the time (Range, Put, DeleteRange, Txn) are decoded where they were received and answered
//! in place. Everything else becomes a request as the `http` crate has it, and goes to the generated services, the pages and
//! the JSON gateway as what comes over HTTP/1.1 does; so does a hot call with anything unusual about it, with what came of its
//! body so far.
//!
//! A turn: what others have said (a call is answered, a body was read), what the socket has, the calls that are to be polled,
//! one write. Bytes are read into a buffer that all connections of a thread share; a connection keeps only what is not a
//! whole frame yet, so one that rests holds next to nothing.
//!
//! Bounds: 256 KiB of a body that its service has not taken, 1 MiB of all bodies of a connection, 64 KiB of each answer that
//! the client has not made room for, and those of `buttress-http2`.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use buttress_http2::{Code, Event, Fault, Head, Options, Server};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::Instant,
};
use tonic::{Status, body::Body};

use super::{
    Etcd,
    calls::{self, Calls},
    http::{GRPC, HEAD_BYTES, Unary, may_be_one_message, no_message, only_message, turned},
    upload::{Feed, upload},
};

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
/// Names and values of one head, with 32 bytes for each.
const REQUEST_HEAD_BYTES_MAX: usize = 16 * 1024;
/// What is read at once.
const READ_BYTES: usize = 64 * 1024;
/// Calls that end in one turn, before others of this thread get theirs.
const TURN_ENDS_MAX: usize = 256;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// What a call has come to.
enum Done {
    /// An encoded message, or a failure.
    Message(Result<Vec<u8>, Status>),
    Response(Box<Response<Body>>),
    /// The next piece of an answer, and where more of it comes from.
    Piece(Body, Option<Result<Frame<Bytes>, Status>>),
    /// It is time to look whether anybody is there.
    Timer,
    /// The node stops.
    Stopping,
}

/// A stream.
struct Call {
    /// Where its future is polled.
    place: Option<usize>,
    doing: Doing,
}

enum Doing {
    /// The message of a hot call is not all there.
    Collecting(Unary, Vec<u8>),
    /// A hot call runs.
    Running,
    /// Some service has it.
    Served {
        upload: Feed,
        /// An answer that waits until the client has made room.
        parked: Option<Body>,
        head_only: bool,
    },
}

/// Serves a connection whose client has said these bytes first.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    etcd: Arc<Etcd>,
    stream: S,
    first: &[u8],
    mut stopping: watch::Receiver<bool>,
) -> Result<(), String> {
    let server = Server::new(Options {
        streams_max: STREAMS_MAX,
        stream_window_bytes: STREAM_WINDOW_BYTES,
        connection_window_bytes: CONNECTION_WINDOW_BYTES,
        head_bytes_max: REQUEST_HEAD_BYTES_MAX,
        repeated: &[("content-type", "application/grpc"), ("grpc-status", "0")],
    });
    let mut calls = Calls::new();
    let stop = async move {
        turned(&mut stopping).await;
        Done::Stopping
    };
    calls.add(0, Box::pin(stop));
    let mut connection = Connection {
        etcd,
        stream,
        server,
        calls,
        kept: Vec::new(),
        route: (0, None),
        heard: Instant::now(),
        asked: false,
        ending: None,
    };
    connection.set_timer(PING_INTERVAL);
    if let Err(fault) = connection.take(first) {
        connection.ending = Some(Err(fault.why.to_owned()));
    }
    poll_fn(|context| connection.turn(context)).await
}

struct Connection<S> {
    etcd: Arc<Etcd>,
    stream: S,
    server: Server<Call>,
    calls: Calls<Done>,
    /// What is not a whole frame yet, or must wait because the client does not read.
    kept: Vec<u8>,
    /// The hot call that a head asks for, by the head's number: clients say the same again and again.
    route: (u64, Option<Unary>),
    /// When something came last.
    heard: Instant,
    /// The client was asked whether it is there.
    asked: bool,
    /// Nothing is read any more; what there is to say is written, and that was it.
    ending: Option<Result<(), String>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<Result<(), String>> {
        for (stream, bytes) in self.calls.listen(context.waker()) {
            self.server.release(stream, bytes);
        }
        self.read(context);
        let mut ends = 0;
        loop {
            while let Some((stream, done)) = self.calls.next() {
                self.on_done(stream, done);
                ends += 1;
                if ends == TURN_ENDS_MAX {
                    context.waker().wake_by_ref();
                    break;
                }
            }
            let written = self.write(context);
            let mut more = false;
            while let Some(stream) = self.server.next_drained() {
                more |= self.unpark(stream);
            }
            if self.ending.is_some() || self.server.is_over() {
                // Whoever does not read what there is left is not waited for longer than for an answer to a ping.
                return match written {
                    Poll::Pending if !self.is_late() => Poll::Pending,
                    _ => Poll::Ready(self.ending.take().unwrap_or(Ok(()))),
                };
            }
            if !more || ends >= TURN_ENDS_MAX {
                return Poll::Pending;
            }
        }
    }

    fn is_late(&self) -> bool {
        self.asked && self.heard.elapsed() >= PING_INTERVAL + PING_TIMEOUT
    }

    fn end(&mut self, why: Result<(), String>) {
        self.ending.get_or_insert(why);
    }

    fn read(&mut self, context: &mut Context<'_>) {
        if self.ending.is_some() || self.server.is_full() {
            return;
        }
        self.server.begin();
        // What had to wait until the client read.
        if !self.kept.is_empty() {
            self.took(&[]);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            while self.ending.is_none() && !self.server.is_full() {
                let mut buffer = ReadBuf::new(scratch);
                match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                    Poll::Pending => return,
                    Poll::Ready(Err(error)) => return self.end(Err(error.to_string())),
                    Poll::Ready(Ok(())) if buffer.filled().is_empty() => return self.end(Ok(())),
                    Poll::Ready(Ok(())) => {
                        (self.heard, self.asked) = (Instant::now(), false);
                        let filled = buffer.filled().len();
                        self.took(&scratch[..filled]);
                        if filled == READ_BYTES {
                            // There is more, and others get their turn first.
                            context.waker().wake_by_ref();
                            return;
                        }
                    }
                }
            }
        });
    }

    fn took(&mut self, bytes: &[u8]) {
        if let Err(fault) = self.take(bytes) {
            self.end(Err(fault.why.to_owned()));
        }
    }

    /// Carries out what the client says with what came, and keeps what is left.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.kept.is_empty() {
            let mut input = bytes;
            self.carry_out(&mut input)?;
            self.kept.extend_from_slice(input);
            return Ok(());
        }
        let mut kept = std::mem::take(&mut self.kept);
        kept.extend_from_slice(bytes);
        let mut input = &kept[..];
        self.carry_out(&mut input)?;
        if !input.is_empty() {
            let taken = kept.len() - input.len();
            kept.drain(..taken);
            self.kept = kept;
        }
        Ok(())
    }

    fn carry_out(&mut self, input: &mut &[u8]) -> Result<(), Fault> {
        while let Some(event) = self.server.next(input)? {
            match event {
                Event::Head { stream, ended } => self.on_head(stream, ended),
                Event::Data { stream, bytes, ended } => self.on_data(stream, bytes, ended),
                Event::Trailers { stream } => self.on_trailers(stream),
                Event::Reset { with, .. } => self.drop_call(with),
            }
        }
        Ok(())
    }

    fn drop_call(&mut self, call: Call) {
        if let Some(place) = call.place {
            self.calls.cancel(place);
        }
    }

    fn abort(&mut self, stream: u32, code: Code) {
        if let Some(call) = self.server.abort(stream, code) {
            self.drop_call(call);
        }
    }

    fn on_head(&mut self, stream: u32, ended: bool) {
        let number = self.server.head_number();
        if self.route.0 != number {
            self.route = (number, route(self.server.head()));
        }
        match self.route.1 {
            Some(unary) if !ended => {
                self.server.accept(stream, Call { place: None, doing: Doing::Collecting(unary, Vec::new()) });
            }
            _ => match request(self.server.head()) {
                Some(head) => self.serve(stream, head, Bytes::new(), ended),
                None => self.abort(stream, Code::PROTOCOL_ERROR),
            },
        }
    }

    fn on_data(&mut self, stream: u32, bytes: &[u8], ended: bool) {
        let Some(call) = self.server.with(stream) else { return };
        match &mut call.doing {
            Doing::Running => self.server.release(stream, bytes.len()),
            Doing::Served { upload, .. } => {
                if !upload.push(bytes, ended) {
                    self.server.release(stream, bytes.len());
                }
            }
            Doing::Collecting(unary, message) => {
                let unary = *unary;
                if message.is_empty()
                    && ended
                    && let Some(only) = only_message(bytes)
                {
                    self.run(stream, unary, only);
                } else {
                    message.extend_from_slice(bytes);
                    let whole = ended || !may_be_one_message(message);
                    if whole {
                        let message = std::mem::take(message);
                        self.collected(stream, unary, message, ended);
                    }
                }
                self.server.release(stream, bytes.len());
            }
        }
    }

    fn on_trailers(&mut self, stream: u32) {
        let trailers = headers(self.server.head(), false);
        let Some(call) = self.server.with(stream) else { return };
        match &mut call.doing {
            Doing::Running => {}
            Doing::Served { upload, .. } => upload.end(trailers),
            Doing::Collecting(unary, message) => {
                let (unary, message) = (*unary, std::mem::take(message));
                self.collected(stream, unary, message, true);
            }
        }
    }

    /// The body of a hot call is all there, or is no single message.
    fn collected(&mut self, stream: u32, unary: Unary, body: Vec<u8>, ended: bool) {
        match only_message(&body) {
            Some(message) if ended => self.run(stream, unary, message),
            _ => {
                let mut head = Request::new(());
                *head.method_mut() = Method::POST;
                *head.uri_mut() = Uri::from_static(unary.path());
                *head.version_mut() = Version::HTTP_2;
                head.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                self.serve(stream, head, body.into(), ended);
            }
        }
    }

    /// Makes a hot call.
    fn run(&mut self, stream: u32, unary: Unary, message: &[u8]) {
        self.etcd.counters.call("kv", "grpc");
        let etcd = self.etcd.clone();
        macro_rules! call {
            ($method:ident) => {
                match Message::decode(message) {
                    Ok(request) => Box::pin(async move {
                        Done::Message(etcd.$method(request).await.map(|answer| answer.encode_to_vec()))
                    }),
                    Err(_) => return self.fail(stream, &no_message()),
                }
            };
        }
        let call: calls::Future<Done> = match unary {
            Unary::Range => call!(range),
            Unary::Put => call!(put),
            Unary::DeleteRange => call!(delete_range),
            Unary::Txn => call!(txn),
        };
        self.begin(stream, call, Doing::Running);
    }

    /// Hands a request to whoever answers it.
    fn serve(&mut self, stream: u32, head: Request<()>, first: Bytes, ended: bool) {
        let (feed, upload) = upload(stream, self.calls.bell(), first, ended);
        let head_only = head.method() == Method::HEAD;
        let (etcd, request) = (self.etcd.clone(), head.map(|()| upload));
        let call = async move { Done::Response(Box::new(etcd.answer(request).await)) };
        self.begin(stream, Box::pin(call), Doing::Served { upload: feed, parked: None, head_only });
    }

    fn begin(&mut self, stream: u32, call: calls::Future<Done>, doing: Doing) {
        let place = Some(self.calls.add(stream, call));
        match self.server.with(stream) {
            Some(known) => *known = Call { place, doing },
            None => self.server.accept(stream, Call { place, doing }),
        }
    }

    fn fail(&mut self, stream: u32, status: &Status) {
        let response = status.clone().into_http::<Body>();
        self.server.respond(stream, 200, fields(response.headers()), true);
    }

    fn on_done(&mut self, stream: u32, done: Done) {
        if let Some(call) = self.server.with(stream) {
            call.place = None;
        }
        match done {
            Done::Message(Ok(message)) => {
                let Ok(length) = u32::try_from(message.len()) else {
                    return self.fail(stream, &Status::resource_exhausted("grpc: the answer is too large"));
                };
                let mut head = [0; HEAD_BYTES];
                head[1..].copy_from_slice(&length.to_be_bytes());
                self.server.answer(
                    stream,
                    200,
                    &[(b"content-type", b"application/grpc")],
                    &[&head, &message],
                    &[(b"grpc-status", b"0")],
                );
            }
            Done::Message(Err(status)) => self.fail(stream, &status),
            Done::Response(response) => self.on_response(stream, *response),
            Done::Piece(body, piece) => self.on_piece(stream, body, piece),
            Done::Timer => self.on_timer(),
            Done::Stopping => self.server.leave(),
        }
    }

    fn on_response(&mut self, stream: u32, response: Response<Body>) {
        let (mut head, body) = response.into_parts();
        let Some(Call { doing: Doing::Served { head_only, .. }, .. }) = self.server.with(stream) else { return };
        let ended = *head_only || body.is_end_stream();
        if let Some(length) = body.size_hint().exact()
            && !head.headers.contains_key("grpc-status")
        {
            head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        self.server.respond(stream, head.status.as_u16(), fields(&head.headers), ended);
        if !ended {
            self.pull(stream, body);
        }
    }

    /// Waits for the next piece of an answer.
    fn pull(&mut self, stream: u32, mut body: Body) {
        let next = async move {
            let piece = body.frame().await;
            Done::Piece(body, piece)
        };
        let place = self.calls.add(stream, Box::pin(next));
        match self.server.with(stream) {
            Some(call) => call.place = Some(place),
            None => self.calls.cancel(place),
        }
    }

    fn on_piece(&mut self, stream: u32, body: Body, piece: Option<Result<Frame<Bytes>, Status>>) {
        let frame = match piece {
            None => return self.server.end(stream),
            Some(Err(status)) => {
                tracing::debug!(plane = "coordination", %status, "an answer broke off");
                return self.abort(stream, Code::INTERNAL_ERROR);
            }
            Some(Ok(frame)) => frame,
        };
        match frame.into_data() {
            Ok(data) => self.server.data(stream, data),
            Err(other) => {
                let trailers = other.into_trailers().unwrap_or_default();
                return self.server.trailers(stream, fields(&trailers));
            }
        }
        if body.is_end_stream() {
            self.server.end(stream);
        } else if self.server.queued(stream) < SEND_BUFFER_BYTES {
            self.pull(stream, body);
        } else if let Some(Call { doing: Doing::Served { parked, .. }, .. }) = self.server.with(stream) {
            *parked = Some(body);
        }
    }

    /// The client has made room for an answer.
    fn unpark(&mut self, stream: u32) -> bool {
        let Some(Call { doing: Doing::Served { parked, .. }, .. }) = self.server.with(stream) else { return false };
        let Some(body) = parked.take() else { return false };
        self.pull(stream, body);
        true
    }

    fn set_timer(&mut self, after: Duration) {
        self.calls.add(
            0,
            Box::pin(async move {
                tokio::time::sleep(after).await;
                Done::Timer
            }),
        );
    }

    fn on_timer(&mut self) {
        let quiet = self.heard.elapsed();
        if quiet < PING_INTERVAL {
            return self.set_timer(PING_INTERVAL - quiet);
        }
        if self.asked {
            return self.end(Err("nobody is there any more".to_owned()));
        }
        self.asked = true;
        self.server.ping();
        self.set_timer(PING_TIMEOUT);
    }

    /// Writes until all is written, or the socket takes no more.
    fn write(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let output = self.server.output();
            if output.is_empty() {
                return Poll::Ready(());
            }
            let full = output.len() >= buttress_http2::OUTPUT_BYTES_MAX;
            match ready!(Pin::new(&mut self.stream).poll_write(context, output)) {
                Ok(written) if written > 0 => {
                    self.server.wrote(written);
                    if full {
                        // Reading had stopped for it.
                        context.waker().wake_by_ref();
                    }
                }
                Ok(_) => {
                    self.end(Ok(()));
                    return Poll::Ready(());
                }
                Err(error) => {
                    self.end(Err(error.to_string()));
                    return Poll::Ready(());
                }
            }
        }
    }
}

/// The hot call that a head asks for, where nothing about it is unusual.
fn route(head: &Head) -> Option<Unary> {
    let (mut method, mut media, mut call, mut plain) = (false, false, None, true);
    for (name, value) in head.iter() {
        match name {
            b":method" => method = value == b"POST",
            b":path" => call = std::str::from_utf8(value).ok().and_then(Unary::of),
            b"content-type" => media = value == GRPC,
            b"grpc-encoding" | b"hasleader" => plain = false,
            _ => {}
        }
    }
    call.filter(|_| method && media && plain)
}

/// A head as everybody else wants it. `None` where its parts are none of HTTP.
fn request(head: &Head) -> Option<Request<()>> {
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    let mut uri = Uri::builder();
    for (name, value) in head.iter() {
        match name {
            b":method" => *request.method_mut() = Method::from_bytes(value).ok()?,
            b":scheme" => uri = uri.scheme(value),
            b":authority" if !value.is_empty() => uri = uri.authority(value),
            b":path" => uri = uri.path_and_query(value),
            _ => {}
        }
    }
    *request.headers_mut() = headers(head, true);
    if head.get(b":authority").is_none_or(<[u8]>::is_empty) {
        // Without a name of the server a scheme has no place in an address.
        uri = Uri::builder().path_and_query(head.get(b":path")?);
    }
    *request.uri_mut() = uri.build().ok()?;
    Some(request)
}

fn headers(head: &Head, of_request: bool) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(if of_request { head.len() } else { 0 });
    for (name, value) in head.iter().filter(|(name, _)| !name.starts_with(b":")) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

fn fields(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}
