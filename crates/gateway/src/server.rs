//! Clients: a connection, and the requests on it one after the other (HTTP/1.1) or side by side (HTTP/2).
//!
//! A connection of HTTP/1.1 is one task. It reads a head, has it answered, writes the answer while the request's body may
//! still be coming, and reads the next head. Whoever begins with the preface of HTTP/2 gets HTTP/2.
//!
//! | the client | what we do |
//! |---|---|
//! | sends what is no HTTP | 400, 431, 501, 505 or 417 with a code, and the connection ends: what follows cannot be understood |
//! | sends its head too slowly | 408, and the connection ends |
//! | speaks HTTP without TLS where TLS is wanted | 400, and what to do instead |
//! | leaves before its answer begins | a reset is seen at once, and its request is cancelled |
//! | says nothing for long | the connection ends |
//! | closes its sending side after a request | it is answered; a half-closed client still listens, unless we are told that it does not |
//! | does not take its answer | after [`STALL_MAX`] without a byte the connection ends |
//! | waits for an upstream that says nothing in the middle of its answer | after `timeouts.silence` the connection ends |
//! | is answered before its body was read | the answer goes out, then the connection ends |

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::Method;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    task::AbortHandle,
    time::{Instant, Sleep},
};

use crate::{
    body::{Body, Flow, HEAD_READ, Pump, Source, poll_read},
    forward,
    frame::{Decoder, Encoder},
    listen::Setting,
    local::LocalExecutor,
    parse::{self, Refusal, RequestHead, Scanner},
    proxy::{Client, Core, handle},
    reply::{HEAD_TIMED_OUT, Hop, Interims, Reply},
    run::Counted,
    stream::{Stream, WriteHalf, join},
    tls::{Accepted, Acceptor, Peer},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A client that takes nothing of its answer for this long has gone; Envoy's stream_idle_timeout is the same.
const STALL_MAX: Duration = Duration::from_secs(300);
/// After an answer that came before the request was read: how much is still read, and for how long, so that the client
/// sees the answer and not a reset.
const LINGER_BYTES_MAX: usize = 256 * 1024;
const LINGER_MAX: Duration = Duration::from_secs(2);
/// Requests side by side on one connection of HTTP/2; as nginx and Envoy allow (128, 100).
const STREAMS_MAX: u32 = 128;

/// How connections are told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With their next answer. One without a request stays: its client may just be sending one.
    Gently,
    /// Those without a request at once.
    Idle,
}

/// The connections that a core took with one setting of a listener.
#[derive(Default)]
pub struct Drain {
    ending: Cell<Option<Ending>>,
    wakers: RefCell<HashMap<u64, Waker>>,
    tasks: RefCell<HashMap<u64, AbortHandle>>,
    next: Cell<u64>,
}

impl Drain {
    pub fn begin(&self, how: Ending) {
        self.ending.set(Some(how));
        for waker in self.wakers.borrow().values() {
            waker.wake_by_ref();
        }
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Ends those that are left, in the middle of what they do.
    pub fn cut(&self) -> usize {
        let tasks = self.tasks.take();
        tasks.values().for_each(AbortHandle::abort);
        tasks.len()
    }

    /// Carries a connection on a task of its own.
    pub fn spawn<F: Future<Output = ()> + 'static>(self: &Rc<Self>, serve: impl FnOnce(Listed) -> F) {
        let at = self.next.get();
        self.next.set(at + 1);
        let task = tokio::task::spawn_local(serve(Listed { drain: self.clone(), at }));
        self.tasks.borrow_mut().insert(at, task.abort_handle());
    }
}

/// A connection's place in the list of those that are told.
pub struct Listed {
    drain: Rc<Drain>,
    at: u64,
}

impl Listed {
    /// This task is woken when the end begins.
    async fn wakes(&self) {
        poll_fn(|cx| {
            self.drain.wakers.borrow_mut().insert(self.at, cx.waker().clone());
            Poll::Ready(())
        })
        .await;
    }

    fn draining(&self) -> bool {
        self.drain.ending.get().is_some()
    }

    /// Without a request there is nothing to wait for.
    fn leaves_idle(&self) -> bool {
        self.drain.ending.get() == Some(Ending::Idle)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.drain.wakers.borrow_mut().remove(&self.at);
        self.drain.tasks.borrow_mut().remove(&self.at);
    }
}

/// One timer for a connection's whole life. Moving it later costs nothing: it fires, and is set anew.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    due: Instant,
}

impl Timer {
    fn new(due: Instant) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep_until(due)), due }
    }

    fn set(&mut self, due: Instant) {
        self.due = due;
        if due < self.sleep.deadline() {
            self.sleep.as_mut().reset(due);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if self.due <= self.sleep.deadline() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.due);
        }
    }
}

/// Why there is no further request on a connection.
enum NoRequest {
    /// Closed, idle for too long, broken, or we stop.
    Over,
    Refused(Refusal),
}

/// Who is on a connection.
struct Known {
    address: String,
    /// What the listener said when it came.
    setting: Arc<Setting>,
    secure: bool,
    /// Whom its certificate names.
    peer: Option<Peer>,
}

impl Known {
    fn client<'a>(&'a self, core: &Core, http2: bool, interim: Option<&'a Interims>) -> Client<'a> {
        Client {
            address: &self.address,
            listener: Some(&self.setting.told.name),
            http2,
            secure: self.secure,
            identity: self.peer.as_ref().and_then(|peer| peer.identity.clone()),
            certificate: self.peer.as_ref().map(|peer| &*peer.forwarded),
            keep_client_cert: core.shared.options.edge.keep_client_cert,
            interim,
        }
    }
}

/// Said to whoever speaks in clear to a port of TLS.
const TLS_EXPECTED: Refusal = Refusal {
    status: 400,
    code: buttress_core::Code::TLS_EXPECTED,
    says: "this port speaks TLS, and the request came without it: use https://",
};

/// Carries a connection of HTTP to its end; `acceptor` does its handshake, where TLS is wanted.
pub async fn serve(
    core: Rc<Core>,
    listed: Listed,
    setting: Arc<Setting>,
    acceptor: Option<Arc<Acceptor>>,
    tcp: TcpStream,
    from: SocketAddr,
    _counted: Counted,
) {
    listed.wakes().await;
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    let mut timer = Timer::new(Instant::now() + core.shared.options.timeouts.head);
    let mut bytes = BytesMut::new();
    let mut known = Known { address: from.ip().to_canonical().to_string(), setting, secure: false, peer: None };
    let (mut stream, chosen) = match &acceptor {
        None => (Stream::Plain(tcp), None),
        // In a box, so that connections without TLS do not carry the state of a handshake.
        Some(acceptor) => match Box::pin(acceptor.accept(tcp, timer.due)).await {
            Accepted::Secure { stream, http2, peer } => {
                known = Known { secure: true, peer, ..known };
                (stream, http2.then_some(true))
            }
            Accepted::Clear(tcp) => {
                let clear = Http1::new(core, listed, Stream::Plain(tcp), bytes, timer, known);
                return Box::pin(clear.expects_tls()).await;
            }
            Accepted::Nothing => return,
        },
    };
    let http2 = match chosen {
        Some(http2) => Some(http2),
        None => poll_fn(|cx| speaks_http2(&mut stream, &mut bytes, &mut timer, &listed, cx)).await,
    };
    match http2 {
        Some(true) => serve_http2(core, listed, Rewound { bytes: bytes.freeze(), stream }, known).await,
        Some(false) => Http1::new(core, listed, stream, bytes, timer, known).serve().await,
        None => {}
    }
}

/// Whoever says nothing holds no room for what it might say. Tells whether anything was said.
fn release(bytes: &mut BytesMut) -> bool {
    if bytes.is_empty() {
        *bytes = BytesMut::new();
    }
    !bytes.is_empty()
}

/// Reads until it is clear what the client speaks. `None`: it says nothing.
fn speaks_http2(
    stream: &mut Stream,
    bytes: &mut BytesMut,
    timer: &mut Timer,
    listed: &Listed,
    cx: &mut Context<'_>,
) -> Poll<Option<bool>> {
    loop {
        let compared = bytes.len().min(PREFACE.len());
        if compared > 0 && bytes[..compared] != PREFACE[..compared] {
            return Poll::Ready(Some(false));
        }
        if compared == PREFACE.len() {
            return Poll::Ready(Some(true));
        }
        match poll_read(stream, bytes, HEAD_READ, cx) {
            Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
            Poll::Ready(Ok(_)) => {}
            Poll::Pending if bytes.is_empty() && listed.leaves_idle() => return Poll::Ready(None),
            Poll::Pending => {
                release(bytes);
                return timer.poll(cx).map(|()| None);
            }
        }
    }
}

struct Http1 {
    core: Rc<Core>,
    listed: Listed,
    source: Rc<RefCell<Source>>,
    write: WriteHalf,
    timer: Timer,
    known: Known,
    /// Informational answers, before they are written.
    interims: Interims,
    /// What is to be written before anything else.
    owed: BytesMut,
}

impl Http1 {
    fn new(core: Rc<Core>, listed: Listed, stream: Stream, bytes: BytesMut, timer: Timer, known: Known) -> Self {
        let (read, write) = stream.into_split();
        let source = Source {
            read,
            bytes,
            decoder: Decoder::Ended,
            holds_back: false,
            wanted: false,
            connection: None,
            broken: false,
            closed: false,
            request: 0,
            abandoned: false,
            reader: None,
        };
        Self {
            core,
            listed,
            source: Rc::new(RefCell::new(source)),
            write,
            timer,
            known,
            interims: Interims::default(),
            owed: BytesMut::new(),
        }
    }

    async fn serve(mut self) {
        loop {
            let request = match self.request().await {
                Ok(request) => request,
                Err(NoRequest::Over) => return,
                Err(NoRequest::Refused(refusal)) => {
                    let told = self.core.refused(&refusal, &self.known.client(&self.core, false, None));
                    let hop = Hop { minor: 1, head_request: false, keep_alive: false };
                    let _ = self.write_reply(told, hop).await;
                    return self.linger().await;
                }
            };
            let hop = Hop {
                minor: request.minor,
                head_request: request.method == Method::HEAD,
                keep_alive: request.keep_alive && !self.listed.draining(),
            };
            // A client that left gets no answer, and dropping what asked for one cancels it.
            let Some(mut reply) = self.answer(request).await else { return };
            if let Some((upstream, first)) = reply.tunnel.take() {
                return self.tunnel(reply, hop, upstream, first).await;
            }
            // What was not read by now is not wanted.
            let read = {
                let source = self.source.borrow();
                source.decoder.ended() && !source.broken && !source.holds_back
            };
            let hop = Hop { keep_alive: hop.keep_alive && read && !self.listed.draining(), ..hop };
            match self.write_reply(reply, hop).await {
                Ok(true) => {}
                Ok(false) => return self.linger().await,
                Err(()) => return,
            }
        }
    }

    /// Says that this port speaks TLS.
    async fn expects_tls(mut self) {
        let hop = Hop { minor: 1, head_request: false, keep_alive: false };
        let told = self.core.refused(&TLS_EXPECTED, &self.known.client(&self.core, false, None));
        if self.write_reply(told, hop).await.is_ok() {
            self.linger().await;
        }
    }

    /// Waits for the next request's head.
    async fn request(&mut self) -> Result<RequestHead, NoRequest> {
        let timeouts = self.core.shared.options.timeouts;
        let mut scanner = Scanner::default();
        let mut begun = false;
        self.timer.set(Instant::now() + self.known.setting.idle().unwrap_or(timeouts.idle));
        let (listed, timer, shared) = (&self.listed, &mut self.timer, &self.source);
        let raw = poll_fn(|cx| {
            let source = &mut *shared.borrow_mut();
            loop {
                match scanner.end(&source.bytes) {
                    Err(refusal) => return Poll::Ready(Err(NoRequest::Refused(refusal))),
                    Ok(Some(end)) => {
                        let mut raw = source.bytes.split_to(end).freeze();
                        return Poll::Ready(Ok(if scanner.begin > 0 { raw.split_off(scanner.begin) } else { raw }));
                    }
                    Ok(None) => {}
                }
                match poll_read(&mut source.read, &mut source.bytes, HEAD_READ, cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(NoRequest::Over)),
                    Poll::Ready(Ok(_)) => continue,
                    // What had arrived is read before this says that there is nothing.
                    Poll::Pending if source.bytes.is_empty() && listed.leaves_idle() => {
                        return Poll::Ready(Err(NoRequest::Over));
                    }
                    Poll::Pending => {}
                }
                if release(&mut source.bytes) && !begun {
                    begun = true;
                    timer.set(Instant::now() + timeouts.head);
                }
                ready!(timer.poll(cx));
                return Poll::Ready(Err(if begun { NoRequest::Refused(HEAD_TIMED_OUT) } else { NoRequest::Over }));
            }
        })
        .await?;
        let request = parse::request(raw).map_err(NoRequest::Refused)?;
        let source = &mut *self.source.borrow_mut();
        source.request += 1;
        source.decoder = Decoder::new(request.length);
        (source.holds_back, source.wanted, source.broken) = (request.expects_continue, false, false);
        Ok(request)
    }

    /// Has a request answered. `None`: the client left before there was an answer.
    async fn answer(&mut self, request: RequestHead) -> Option<Reply> {
        let mut holds_back = request.expects_continue;
        let whole = self.source.borrow().decoder.ended();
        let number = self.source.borrow().request;
        let body = if whole { Body::empty() } else { Flow::Client(self.source.clone(), number).into() };
        let half_close = self.core.shared.options.edge.half_close_leaves;
        let client = self.known.client(&self.core, false, (request.minor == 1).then_some(&self.interims));
        let handling = handle(&self.core, request, body, client);
        let (mut handling, source) = (pin!(handling), &self.source);
        let (write, owed, interims) = (&mut self.write, &mut self.owed, &self.interims);
        let mut flushing = false;
        poll_fn(|cx| {
            if !whole {
                let connection = &mut source.borrow_mut().connection;
                if connection.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
                    *connection = Some(cx.waker().clone());
                }
            }
            let reply = handling.as_mut().poll(cx);
            if reply.is_pending() && holds_back && source.borrow().wanted {
                holds_back = false;
                owed.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            let interim = interims.take();
            if !interim.is_empty() {
                owed.extend_from_slice(&interim);
            }
            if let Poll::Ready(reply) = reply {
                source.borrow_mut().connection = None;
                return Poll::Ready(Some(reply));
            }
            while !owed.is_empty() {
                match Pin::new(&mut *write).poll_write(cx, owed) {
                    Poll::Ready(Ok(wrote)) if wrote > 0 => bytes::Buf::advance(owed, wrote),
                    // Reading will say so too, or writing the answer.
                    Poll::Ready(_) => owed.clear(),
                    Poll::Pending => break,
                }
                flushing = true;
            }
            // TLS may hold it until the client takes what came before.
            flushing = flushing && Pin::new(&mut *write).poll_flush(cx).is_pending();
            let source = &mut *source.borrow_mut();
            if source.holds_back && !holds_back && owed.is_empty() {
                source.holds_back = false;
            }
            source.poll_left(half_close, cx).map(|()| None)
        })
        .await
    }

    /// Writes an answer. Tells whether the connection may go on; an error ends it at once.
    async fn write_reply(&mut self, reply: Reply, hop: Hop) -> Result<bool, ()> {
        let mut head = std::mem::take(&mut self.owed);
        let (encoder, keep_alive) = reply.write_head(hop, &mut head);
        let body = if hop.head_request { Body::empty() } else { reply.body };
        let mut pump = Pump::new(head, body, encoder);
        let (write, timer, source) = (&mut self.write, &mut self.timer, &self.source);
        let (silence, half_close) =
            (self.core.shared.options.timeouts.silence, self.core.shared.options.edge.half_close_leaves);
        let mut seen = None;
        let pumped = poll_fn(|cx| {
            if let Poll::Ready(done) = pump.poll(write, cx) {
                return Poll::Ready(Some(done));
            }
            // A client that takes nothing, and an upstream that says nothing, are waited for differently.
            let now = Some((pump.written, pump.owes()));
            if seen != now {
                seen = now;
                timer.set(Instant::now() + if pump.owes() { STALL_MAX } else { silence });
            }
            if !pump.owes() && source.borrow_mut().poll_left(half_close, cx).is_ready() {
                return Poll::Ready(None);
            }
            timer.poll(cx).map(|()| None)
        })
        .await;
        match pumped {
            Some(Ok(())) => Ok(keep_alive),
            // The client must not take what came for the whole. A frame that does not end says so; where the end of the
            // connection is the end of the body, only a reset does.
            Some(Err(_)) | None => {
                if encoder == Encoder::UntilClose {
                    self.write.cut();
                }
                Err(())
            }
        }
    }

    /// Ends the connection so that the client can read what was written: a close with unread bytes would be a reset.
    async fn linger(mut self) {
        let reader = {
            let source = &mut *self.source.borrow_mut();
            source.abandoned = true;
            source.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        if self.write.shutdown().await.is_err() {
            return;
        }
        let (shared, mut left) = (&self.source, LINGER_BYTES_MAX);
        let reading = poll_fn(|cx| {
            let source = &mut *shared.borrow_mut();
            while left > 0 {
                source.bytes.clear();
                match ready!(poll_read(&mut source.read, &mut source.bytes, HEAD_READ, cx)) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => left = left.saturating_sub(read),
                }
            }
            Poll::Ready(())
        });
        let _ = tokio::time::timeout(LINGER_MAX, reading).await;
    }

    /// Joins client and upstream after an upgrade, until both have closed.
    async fn tunnel(self, reply: Reply, hop: Hop, mut upstream: Stream, first: BytesMut) {
        let Self { core, source, mut write, listed, owed: mut head, .. } = self;
        let mut reply = Reply { tunnel: None, ..reply };
        write_upgrade(&reply, hop, &mut head);
        head.extend_from_slice(&first);
        let Some(Source { read, bytes, .. }) = Rc::into_inner(source).map(RefCell::into_inner) else { return };
        let moved = Cell::new((0u64, 0u64));
        let joined = async {
            write.write_all(&head).await?;
            write.flush().await?;
            upstream.write_all(&bytes).await?;
            upstream.flush().await?;
            let mut client = read.reunite(write).ok_or(io::ErrorKind::NotConnected)?;
            let silence = core.shared.options.timeouts.silence;
            join(&mut client, &mut upstream, silence, |there, back| {
                let (so_far, so_back) = moved.get();
                moved.set((so_far + there, so_back + back));
            })
            .await;
            Ok::<_, io::Error>(())
        };
        core.shard.tunnels.add(1);
        let first = first.len() as u64;
        if joined.await.is_ok() {
            let (from_client, to_client) = moved.get();
            reply.body.tunnelled(from_client, to_client + first);
        }
        drop(listed);
    }
}

/// The head of a 101: everything that the upstream said, and what upgrades the connection.
fn write_upgrade(reply: &Reply, _hop: Hop, out: &mut BytesMut) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n");
    for (kind, name, value) in reply.fields.iter() {
        if !kind.hop_by_hop() || kind == parse::Kind::Upgrade {
            crate::reply::line(out, name, value);
        }
    }
    if let Some(id) = &reply.id {
        crate::reply::line(out, b"x-request-id", id.as_str().as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

async fn serve_http2(core: Rc<Core>, listed: Listed, stream: Rewound, known: Known) {
    let known = Rc::new(known);
    let service_core = core.clone();
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (core, known) = (service_core.clone(), known.clone());
        async move {
            let (parts, incoming) = request.into_parts();
            let reply = match forward::from_http2(&parts, &incoming) {
                Ok(head) => {
                    let empty = http_body::Body::is_end_stream(&incoming);
                    let body = if empty { Body::empty() } else { Flow::Http2(incoming).into() };
                    handle(&core, head, body, known.client(&core, true, None)).await
                }
                Err(refusal) => core.refused(&refusal, &known.client(&core, true, None)),
            };
            Ok::<_, std::convert::Infallible>(reply.into_http2())
        }
    });
    let connection = hyper::server::conn::http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(parse::HEAD_BYTES_MAX as u32)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .adaptive_window(true)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut told = false;
    let served = poll_fn(|cx| {
        if listed.draining() && !told {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    })
    .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of HTTP/2 ended");
    }
}

/// A connection of which something was read already.
struct Rewound {
    bytes: Bytes,
    stream: Stream,
}

impl AsyncRead for Rewound {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.bytes.is_empty() {
            let take = this.bytes.len().min(buf.remaining());
            buf.put_slice(&this.bytes.split_to(take));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room<A, B, C, D, E, F, G, H>(_: impl Fn(A, B, C, D, E, F, G) -> H) -> usize {
        size_of::<H>()
    }

    /// Whatever a connection may ever do has its room for as long as the connection is open. A future that is moved where it
    /// is awaited has it twice.
    #[test]
    fn a_connection_has_room_for_one_attempt_and_no_more() {
        assert!(room(serve) <= 14 * 1024, "{} bytes", room(serve));
    }
}
