//! One endpoint as one core sees it: its idle connections, and the exchange of a request for a response.
//!
//! **Why our own pool.** It belongs to one thread, so it needs no lock and no task between a request and its connection:
//! the request's own task writes, reads and puts the connection back. The connection used last is taken first, so that what
//! is not needed grows old and is closed.
//!
//! **A kept connection may die at the moment of use.** An upstream that closes an idle connection and a proxy that uses it
//! cross each other. Before a connection is taken, what the kernel has told is looked at; before a request that must not be
//! sent twice, the kernel is asked. What remains shows as a close without a byte of an answer: [`Failure`] tells whether
//! anything was handed to the kernel, and only what was not, or may be repeated anyway, is sent again.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    io,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::RecvFlags;
use tokio::{net::TcpStream, time::Instant};

use crate::{
    body::{Body, Broken, Flow, HEAD_READ, Pump, PumpError, poll_body, poll_read},
    config::{Endpoint, Protocol},
    frame::{Decoder, Encoder},
    local::LocalExecutor,
    parse::{self, Length, Refusal, ResponseHead, Scanner},
};

/// Idle connections to one endpoint, per core.
const IDLE_MAX: usize = 128;
/// Most servers close idle connections after 60 s or more; Node after 5 s, which the look before use sees.
/// An endpoint that nobody has asked for so long holds no connection any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);
const IDLE_AGE_MAX: Duration = Duration::from_secs(55);
/// Informational responses before the final one; more is a server that never answers.
const INTERIM_MAX: u8 = 8;

/// Why there is no response.
#[derive(Debug)]
pub struct Failure {
    pub kind: FailureKind,
    /// Nothing of the request was handed to the kernel, or the upstream said that it did not look at it.
    pub not_delivered: bool,
    /// The connection had served another request before.
    pub reused: bool,
}

#[derive(Debug)]
pub enum FailureKind {
    Connect(io::Error),
    ConnectTimeout,
    /// The connection ended before a response.
    Closed(Option<io::Error>),
    Malformed(Refusal),
    Http2(hyper::Error),
    /// The client broke off; nobody waits for a response.
    Client(Broken),
    Deadline,
}

impl std::fmt::Display for FailureKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FailureKind::Connect(error) => write!(f, "no connection: {error}"),
            FailureKind::ConnectTimeout => f.write_str("no connection within the time for connecting"),
            FailureKind::Closed(None) => f.write_str("the connection closed before an answer"),
            FailureKind::Closed(Some(error)) => write!(f, "the connection broke before an answer: {error}"),
            FailureKind::Malformed(refusal) => write!(f, "the answer is not HTTP: {}", refusal.says),
            FailureKind::Http2(error) => {
                write!(f, "HTTP/2: {error}")?;
                match std::error::Error::source(error) {
                    Some(source) => write!(f, ": {source}"),
                    None => Ok(()),
                }
            }
            FailureKind::Client(broken) => write!(f, "the client broke off: {broken}"),
            FailureKind::Deadline => f.write_str("no answer within the deadline"),
        }
    }
}

/// What an exchange begins with.
pub struct Got {
    pub head: ResponseHead,
    pub flow: Flow,
    /// After 101: the connection, and what was read from it already.
    pub tunnel: Option<(TcpStream, BytesMut)>,
}

pub struct Upstream {
    pub endpoint: Endpoint,
    idle: RefCell<VecDeque<Idle>>,
    http2: RefCell<Option<http2::SendRequest<Body>>>,
    /// Connections made so far.
    pub connects: Cell<u64>,
    pub reuses: Cell<u64>,
    used: Cell<Instant>,
}

struct Idle {
    stream: TcpStream,
    since: Instant,
}

impl Upstream {
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            idle: RefCell::default(),
            http2: RefCell::default(),
            connects: Cell::new(0),
            reuses: Cell::new(0),
            used: Cell::new(Instant::now()),
        }
    }

    /// Closes connections that were idle for long.
    pub fn sweep(&self, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        while idle.front().is_some_and(|oldest| now.duration_since(oldest.since) > IDLE_AGE_MAX) {
            idle.pop_front();
        }
    }

    /// Whether nobody has used it for long.
    pub fn forgotten(&self, now: Instant) -> bool {
        now.duration_since(self.used.get()) > FORGOTTEN_AFTER
    }

    pub fn idle_count(&self) -> usize {
        self.idle.borrow().len()
    }

    /// A connection that was idle, and seems to be alive.
    fn kept(&self, now: Instant, must_not_repeat: bool) -> Option<TcpStream> {
        let mut idle = self.idle.borrow_mut();
        while let Some(kept) = idle.pop_back() {
            if now.duration_since(kept.since) > IDLE_AGE_MAX {
                idle.clear();
                return None;
            }
            if alive(&kept.stream, must_not_repeat) {
                self.reuses.set(self.reuses.get() + 1);
                return Some(kept.stream);
            }
        }
        None
    }

    fn put(&self, stream: TcpStream) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() == IDLE_MAX {
            idle.pop_front();
        }
        idle.push_back(Idle { stream, since: Instant::now() });
    }

    async fn connect(&self, timeout: Duration) -> Result<TcpStream, Failure> {
        self.connects.set(self.connects.get() + 1);
        let failure = |kind| Failure { kind, not_delivered: true, reused: false };
        let stream = tokio::time::timeout(timeout, TcpStream::connect(self.endpoint.address.as_str()))
            .await
            .map_err(|_| failure(FailureKind::ConnectTimeout))?
            .map_err(|error| failure(FailureKind::Connect(error)))?;
        stream.set_nodelay(true).map_err(|error| failure(FailureKind::Connect(error)))?;
        Ok(stream)
    }

    /// Whether a connection can be made.
    ///
    /// # Errors
    /// Why not.
    pub async fn reach(&self, timeout: Duration) -> Result<(), Failure> {
        self.connect(timeout).await.map(drop)
    }

    /// Sends a request over HTTP/1.1 and waits for the head of the response.
    ///
    /// # Errors
    /// Where there is none, with what is known of the request's fate.
    pub async fn exchange(self: &Rc<Self>, asked: Asked) -> Result<Got, Failure> {
        let Asked { head, body, encoder, method, must_not_repeat, fresh, connect_timeout, upgrade } = asked;
        let now = Instant::now();
        self.used.set(now);
        let kept = if fresh { None } else { self.kept(now, must_not_repeat) };
        let reused = kept.is_some();
        let mut stream = match kept {
            Some(stream) => stream,
            None => self.connect(connect_timeout).await?,
        };
        let mut pump = Pump::new(head, body, encoder);
        let (mut pumping, mut write_failed) = (true, None);
        let mut bytes = BytesMut::new();
        let mut scanner = Scanner::default();
        let mut interim = 0;
        let head = poll_fn(|cx| {
            if pumping {
                match pump.poll(&mut stream, cx) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(())) => pumping = false,
                    // It may have answered before it closed, for example that the body is too large.
                    Poll::Ready(Err(PumpError::Write(error))) => {
                        pumping = false;
                        write_failed = Some(error);
                    }
                    Poll::Ready(Err(PumpError::Read(broken))) => {
                        return Poll::Ready(Err(Failure {
                            kind: FailureKind::Client(broken),
                            not_delivered: false,
                            reused,
                        }));
                    }
                }
            }
            loop {
                let malformed =
                    |refusal| Failure { kind: FailureKind::Malformed(refusal), not_delivered: false, reused };
                let refused = |refusal| {
                    malformed(Refusal { status: 502, code: buttress_core::Code::UPSTREAM_MALFORMED, ..refusal })
                };
                if !bytes.is_empty()
                    && let Some(end) = scanner.end(&bytes).map_err(refused)?
                {
                    if scanner.begin > 0 {
                        return Poll::Ready(Err(refused(Refusal {
                            status: 502,
                            code: buttress_core::Code::UPSTREAM_MALFORMED,
                            says: "there is an empty line before the status line",
                        })));
                    }
                    let raw = bytes.split_to(end).freeze();
                    let head = parse::response(raw, &method).map_err(malformed)?;
                    if head.status >= 200 || (head.status == 101 && upgrade) {
                        return Poll::Ready(Ok(head));
                    }
                    interim += 1;
                    if head.status == 101 || interim > INTERIM_MAX {
                        let says = "an informational response that nobody asked for";
                        return Poll::Ready(Err(refused(Refusal {
                            status: 502,
                            code: buttress_core::Code::UPSTREAM_MALFORMED,
                            says,
                        })));
                    }
                    scanner = Scanner::default();
                    continue;
                }
                let error = match ready!(poll_read(&mut stream, &mut bytes, HEAD_READ, cx)) {
                    Ok(0) => None,
                    Ok(_) => continue,
                    Err(error) => Some(error),
                };
                let kind = FailureKind::Closed(write_failed.take().or(error));
                return Poll::Ready(Err(Failure {
                    kind,
                    not_delivered: pump.written == 0 && bytes.is_empty(),
                    reused,
                }));
            }
        })
        .await?;
        if head.status == 101 {
            return Ok(Got { head, flow: Flow::Empty, tunnel: Some((stream, bytes)) });
        }
        let reusable = head.keep_alive && write_failed.is_none();
        let mut decoder = Decoder::new(head.length);
        // What has come whole already needs no exchange.
        let whole = match head.length {
            Length::Known(length) if !pumping && bytes.len() as u64 == length => Some(bytes.split()),
            _ => None,
        };
        let flow = match whole {
            Some(whole) => {
                if reusable {
                    self.put(stream);
                }
                if whole.is_empty() { Flow::Empty } else { Flow::Full(whole.freeze()) }
            }
            None => {
                if head.length == Length::Known(0) {
                    decoder = Decoder::Ended;
                }
                let pump = pumping.then_some(pump);
                let mut exchange =
                    Exchange { upstream: self.clone(), stream: Some(stream), bytes, decoder, pump, reusable };
                exchange.give_back_if_over();
                Flow::Upstream(Box::new(exchange))
            }
        };
        Ok(Got { head, flow, tunnel: None })
    }

    /// The connection for HTTP/2, made when there is none.
    async fn http2(&self, timeout: Duration) -> Result<(http2::SendRequest<Body>, bool), Failure> {
        self.used.set(Instant::now());
        let known = self.http2.borrow().as_ref().filter(|sender| !sender.is_closed()).cloned();
        if let Some(sender) = known {
            self.reuses.set(self.reuses.get() + 1);
            return Ok((sender, true));
        }
        let failure = |kind| Failure { kind, not_delivered: true, reused: false };
        let stream = self.connect(timeout).await?;
        let handshake = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .adaptive_window(true)
            .keep_alive_interval(Duration::from_secs(20))
            .max_header_list_size(parse::HEAD_BYTES_MAX as u32)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = tokio::time::timeout(timeout, handshake)
            .await
            .map_err(|_| failure(FailureKind::ConnectTimeout))?
            .map_err(|error| failure(FailureKind::Http2(error)))?;
        tokio::task::spawn_local(async move {
            // Its error comes to the requests.
            let _ = connection.await;
        });
        *self.http2.borrow_mut() = Some(sender.clone());
        Ok((sender, false))
    }

    /// Sends a request over HTTP/2 and waits for the head of the response.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub async fn exchange_http2(&self, request: http::Request<Body>, timeout: Duration) -> Result<Got, Failure> {
        let (mut sender, reused) = self.http2(timeout).await?;
        if let Err(error) = sender.ready().await {
            return Err(Failure { kind: FailureKind::Http2(error), not_delivered: true, reused });
        }
        let response = sender.try_send_request(request).await.map_err(|mut failed| {
            let never_sent = failed.take_message().is_some();
            let error = failed.into_error();
            let not_delivered = never_sent || refused_stream(&error);
            // Only a connection that was dead already is no failure of the upstream; a stream that it reset is one.
            Failure { kind: FailureKind::Http2(error), not_delivered, reused: reused && never_sent }
        })?;
        let (parts, incoming) = response.into_parts();
        let length = http_body::Body::size_hint(&incoming).exact().map_or(Length::UntilClose, Length::Known);
        let fields = parse::Fields::from_map(&parts.headers);
        let head = ResponseHead { status: parts.status.as_u16(), fields, length, keep_alive: true };
        Ok(Got { head, flow: Flow::Http2(incoming), tunnel: None })
    }

    pub fn speaks_http2(&self) -> bool {
        self.endpoint.protocol == Protocol::Http2
    }
}

/// The server says that it did not look at the request (RFC 9113, 8.7).
fn refused_stream(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// A request, ready to be written.
pub struct Asked {
    pub head: BytesMut,
    pub body: Body,
    pub encoder: Encoder,
    pub method: Method,
    /// It must not be sent twice, so a kept connection is looked at twice.
    pub must_not_repeat: bool,
    /// On a new connection.
    pub fresh: bool,
    pub connect_timeout: Duration,
    pub upgrade: bool,
}

/// Whether a connection can be used: nothing was heard of it, neither a close nor bytes that nobody asked for.
fn alive(stream: &TcpStream, thorough: bool) -> bool {
    let mut byte = [0u8; 1];
    let heard = stream.try_read(&mut byte);
    if !matches!(&heard, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
        return false;
    }
    // The reactor may not have looked since; this asks the kernel itself.
    !thorough
        || matches!(
            rustix::net::recv(stream, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT),
            Err(rustix::io::Errno::AGAIN)
        )
}

/// An exchange whose response is still being read, and whose request perhaps still being written.
pub struct Exchange {
    upstream: Rc<Upstream>,
    /// `None` once it was given back.
    stream: Option<TcpStream>,
    bytes: BytesMut,
    decoder: Decoder,
    pump: Option<Pump>,
    reusable: bool,
}

impl Exchange {
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        if let Some(pump) = &mut self.pump {
            match pump.poll(stream, cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.pump = None,
                // The response is there; that the rest of the request cannot be sent is not its fault.
                Poll::Ready(Err(_)) => (self.pump, self.reusable) = (None, false),
            }
        }
        let frame = ready!(poll_body(stream, &mut self.bytes, &mut self.decoder, cx));
        match &frame {
            None => self.decoder = Decoder::Ended,
            Some(Err(_)) => self.reusable = false,
            Some(Ok(_)) => {}
        }
        self.give_back_if_over();
        Poll::Ready(frame)
    }

    /// A response that ends before its request is complete ends the connection too.
    fn give_back_if_over(&mut self) {
        if self.decoder.ended()
            && let Some(stream) = self.stream.take()
            && self.reusable
            && self.pump.is_none()
            && self.bytes.is_empty()
        {
            self.upstream.put(stream);
        }
    }
}

/// Where a client is, and where it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub from: SocketAddr,
}
