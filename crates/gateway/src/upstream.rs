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
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, time::Instant};

use crate::{
    body::{Body, Broken, Flow, HEAD_READ, Pump, PumpError, poll_body, poll_read},
    config::{Endpoint, Protocol},
    frame::{Decoder, Encoder},
    local::LocalExecutor,
    parse::{self, Length, Refusal, ResponseHead, Scanner},
    reply::Interims,
    stream::Stream,
    tls::{self, Connector, Offer, Wrong},
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
    /// There is a connection, but no agreement on TLS; why, as a sentence about the upstream.
    Tls(String),
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
            FailureKind::Tls(says) => write!(f, "no TLS: {says}"),
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
    pub tunnel: Option<(Stream, BytesMut)>,
}

pub struct Upstream {
    pub endpoint: Endpoint,
    idle: RefCell<VecDeque<Idle>>,
    http2: RefCell<Option<http2::SendRequest<Body>>>,
    /// Makes TLS, where the endpoint asks for it.
    connector: Option<Arc<Connector>>,
    /// A request went over the connection of HTTP/2.
    http2_used: Cell<bool>,
    /// Whether an upstream that may choose chose HTTP/2; `None` until it was asked.
    chosen: Cell<Option<bool>>,
    /// Connections made so far.
    pub connects: Cell<u64>,
    pub reuses: Cell<u64>,
    used: Cell<Instant>,
}

struct Idle {
    stream: Stream,
    since: Instant,
    /// A request was answered on it.
    used: bool,
}

impl Upstream {
    pub fn new(endpoint: Endpoint, connector: Option<Arc<Connector>>) -> Self {
        Self {
            endpoint,
            idle: RefCell::default(),
            http2: RefCell::default(),
            connector,
            http2_used: Cell::new(false),
            chosen: Cell::new(None),
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

    /// A connection that was idle, and seems to be alive; and whether it was used before.
    fn kept(&self, now: Instant, must_not_repeat: bool) -> Option<(Stream, bool)> {
        let mut idle = self.idle.borrow_mut();
        while let Some(mut kept) = idle.pop_back() {
            if now.duration_since(kept.since) > IDLE_AGE_MAX {
                idle.clear();
                return None;
            }
            if kept.stream.alive(must_not_repeat) {
                self.reuses.set(self.reuses.get() + 1);
                return Some((kept.stream, kept.used));
            }
        }
        None
    }

    fn put(&self, stream: Stream, used: bool) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() == IDLE_MAX {
            idle.pop_front();
        }
        idle.push_back(Idle { stream, since: Instant::now(), used });
    }

    /// A new connection, and whether HTTP/2 is spoken on it.
    async fn connect(&self, timeout: Duration, offer: Offer) -> Result<(Stream, bool), Failure> {
        self.connects.set(self.connects.get() + 1);
        let failure = |kind| Failure { kind, not_delivered: true, reused: false };
        let stream = tokio::time::timeout(timeout, TcpStream::connect(self.endpoint.address.as_str()))
            .await
            .map_err(|_| failure(FailureKind::ConnectTimeout))?
            .map_err(|error| failure(FailureKind::Connect(error)))?;
        stream.set_nodelay(true).map_err(|error| failure(FailureKind::Connect(error)))?;
        let Some(connector) = self.connector.as_ref().filter(|_| self.endpoint.tls) else {
            return Ok((Stream::Plain(stream), offer == Offer::Http2));
        };
        // In a box, so that requests without TLS do not carry its state.
        let agreeing = Box::pin(connector.connect(stream, &self.endpoint.address, offer));
        let agreed = tokio::time::timeout(timeout, agreeing).await;
        agreed.map_err(|_| failure(FailureKind::ConnectTimeout))?.map_err(|wrong| {
            // It may have another opinion the next time.
            self.chosen.set(None);
            failure(match wrong {
                Wrong::Tls(says) => FailureKind::Tls(says),
                Wrong::Io(error) => FailureKind::Connect(error),
            })
        })
    }

    /// Whether requests go to it over HTTP/2. One that may choose (ALPN) is asked once, with a connection that is then kept.
    ///
    /// # Errors
    /// Where it must be asked and there is no connection.
    pub async fn speaks_http2(&self, timeout: Duration) -> Result<bool, Failure> {
        match (self.endpoint.protocol, self.endpoint.tls, self.chosen.get()) {
            (Protocol::Http2, ..) => return Ok(true),
            (Protocol::Http1, false, _) => return Ok(false),
            (Protocol::Http1, true, Some(chosen)) => return Ok(chosen),
            (Protocol::Http1, true, None) => {}
        }
        let (stream, http2) = self.connect(timeout, Offer::Either).await?;
        self.chosen.set(Some(http2));
        if http2 {
            self.begin_http2(stream, timeout).await?;
        } else {
            self.put(stream, false);
        }
        Ok(http2)
    }

    /// Whether a connection can be made.
    ///
    /// # Errors
    /// Why not.
    pub async fn reach(&self, timeout: Duration) -> Result<(), Failure> {
        self.connect(timeout, Offer::Either).await.map(drop)
    }

    /// Sends a request over HTTP/1.1 and waits for the head of the response.
    ///
    /// # Errors
    /// Where there is none, with what is known of the request's fate.
    pub async fn exchange(self: &Rc<Self>, asked: Asked<'_>) -> Result<Got, Failure> {
        let Asked { head, body, encoder, method, must_not_repeat, fresh, connect_timeout, upgrade, interim } = asked;
        let now = Instant::now();
        self.used.set(now);
        let kept = if fresh { None } else { self.kept(now, must_not_repeat) };
        let (mut stream, reused) = match kept {
            Some(kept) => kept,
            None => (self.connect(connect_timeout, Offer::Http1).await?.0, false),
        };
        let mut pump = Pump::new(head, body, encoder);
        let (mut pumping, mut write_failed) = (true, None);
        let mut bytes = BytesMut::new();
        let mut scanner = Scanner::default();
        let mut interims = 0;
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
                    interims += 1;
                    if head.status == 101 || interims > INTERIM_MAX {
                        let says = "an informational response that nobody asked for";
                        return Poll::Ready(Err(refused(Refusal {
                            status: 502,
                            code: buttress_core::Code::UPSTREAM_MALFORMED,
                            says,
                        })));
                    }
                    if head.status != 100
                        && let Some(interim) = interim
                    {
                        interim.add(head.status, &head.fields);
                    }
                    scanner = Scanner::default();
                    continue;
                }
                let error = match ready!(poll_read(&mut stream, &mut bytes, HEAD_READ, cx)) {
                    Ok(0) => None,
                    Ok(_) => continue,
                    Err(error) => Some(error),
                };
                // An upstream that has something against our certificate closes, and has read nothing.
                let refused = [&error, &write_failed].into_iter().flatten().find_map(tls::certificate_refused);
                if let Some(says) = refused.filter(|_| !reused && bytes.is_empty()) {
                    return Poll::Ready(Err(Failure { kind: FailureKind::Tls(says), not_delivered: true, reused }));
                }
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
                    self.put(stream, true);
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
            return Ok((sender, self.http2_used.replace(true)));
        }
        let (stream, _) = self.connect(timeout, Offer::Http2).await?;
        let sender = self.begin_http2(stream, timeout).await?;
        self.http2_used.set(true);
        Ok((sender, false))
    }

    async fn begin_http2(&self, stream: Stream, timeout: Duration) -> Result<http2::SendRequest<Body>, Failure> {
        let failure = |kind| Failure { kind, not_delivered: true, reused: false };
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
        self.http2_used.set(false);
        Ok(sender)
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
            if let Some(says) = certificate_refused(&error).filter(|_| !reused) {
                return Failure { kind: FailureKind::Tls(says), not_delivered: true, reused };
            }
            let not_delivered = never_sent || refused_stream(&error);
            // Only a connection that was dead already is no failure of the upstream; a stream that it reset is one.
            Failure { kind: FailureKind::Http2(error), not_delivered, reused: reused && never_sent }
        })?;
        let (parts, incoming) = response.into_parts();
        let length = http_body::Body::size_hint(&incoming).exact().map_or(Length::UntilClose, Length::Known);
        let fields = parse::Fields::from_map(&parts.headers);
        let head = ResponseHead { status: parts.status.as_u16(), fields, length, keep_alive: true };
        // A head that ends its stream goes on as one: gRPC takes nothing else for a status without an answer.
        let ended = http_body::Body::is_end_stream(&incoming);
        let flow = if ended { Flow::Empty } else { Flow::Http2(incoming) };
        Ok(Got { head, flow, tunnel: None })
    }
}

/// The server says that it did not look at the request (RFC 9113, 8.7).
fn refused_stream(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// What the upstream has against our certificate, if that is why it ended the connection.
fn certificate_refused(error: &hyper::Error) -> Option<String> {
    let source = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
    tls::certificate_refused(source.get_io()?)
}

/// A request, ready to be written.
pub struct Asked<'a> {
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
    /// Where informational answers go.
    pub interim: Option<&'a Interims>,
}

/// An exchange whose response is still being read, and whose request perhaps still being written.
pub struct Exchange {
    upstream: Rc<Upstream>,
    /// `None` once it was given back.
    stream: Option<Stream>,
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
            self.upstream.put(stream, true);
        }
    }
}
