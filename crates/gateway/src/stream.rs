//! A connection: TCP, or TLS on it. Everything above reads and writes without knowing which.
//!
//! | | TCP | TLS |
//! |---|---|---|
//! | a kept connection is alive | nothing was heard; asked twice where that matters | the same, once TLS has taken the tickets that a server sends when it likes |
//! | half-close | FIN | `close_notify` and FIN; the other direction goes on |
//! | a body without a frame that broke off | a reset | a reset, and no `close_notify`, which would tell that it was whole |
//! | halves | tokio's | one connection behind a `RefCell`; reading waits for the socket to be readable and writing for it to be writable, so two tasks do not take each other's wake-ups |
//!
//! TCP is an enum's arm and nothing more: no pointer, no virtual call. TLS is behind one pointer, as its state is a kilobyte
//! that connections without it should not carry.
//!
//! [`join`] carries bytes both ways for upgrades and for [`crate::tcp`].

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use rustix::net::{RecvFlags, Shutdown};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::Instant,
};
use tokio_rustls::TlsStream;

#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Whether it can be used: nothing was heard of it, neither a close nor bytes that nobody asked for. The reactor may not have
    /// looked since it was used; `thorough` asks the kernel itself.
    pub fn alive(&mut self, thorough: bool) -> bool {
        let silent = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
        match self {
            Stream::Plain(tcp) => {
                let mut byte = [0u8; 1];
                tcp.try_read(&mut byte).is_err_and(silent)
                    && (!thorough || Kernel { tcp, thorough }.peek(&mut byte).is_err_and(silent))
            }
            Stream::Tls(tls) => match &mut **tls {
                TlsStream::Client(tls) => {
                    let (tcp, session) = tls.get_mut();
                    let mut kernel = Kernel { tcp, thorough };
                    loop {
                        match session.read_tls(&mut kernel) {
                            Err(error) => return silent(error),
                            Ok(0) => return false,
                            Ok(_) => {}
                        }
                        // Tickets for sessions come when they like, and say nothing of the connection.
                        match session.process_new_packets() {
                            Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() => {}
                            _ => return false,
                        }
                    }
                }
                // What a client has is never kept for somebody else.
                TlsStream::Server(_) => false,
            },
        }
    }

    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Stream::Plain(tcp) => {
                let (read, write) = tcp.into_split();
                (ReadHalf::Plain(read), WriteHalf::Plain(write))
            }
            Stream::Tls(tls) => {
                let tls = Rc::new(RefCell::new(*tls));
                (ReadHalf::Tls(tls.clone()), WriteHalf::Tls(Quiet { tls, cut: Cell::new(false) }))
            }
        }
    }
}

/// What has come, without waiting for more.
struct Kernel<'a> {
    tcp: &'a TcpStream,
    /// Whatever the reactor knows.
    thorough: bool,
}

impl Kernel<'_> {
    fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        let (read, _) = rustix::net::recv(self.tcp, into, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
        Ok(read)
    }
}

impl io::Read for Kernel<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !self.thorough {
            return self.tcp.try_read(into);
        }
        let (read, _) = rustix::net::recv(self.tcp, into, RecvFlags::DONTWAIT)?;
        Ok(read)
    }
}

macro_rules! each {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain($inner) => $call,
            Stream::Tls($inner) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, inner => Pin::new(inner).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, inner => Pin::new(inner).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, inner => Pin::new(inner).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, inner => Pin::new(inner).poll_shutdown(cx))
    }
}

pub enum ReadHalf {
    Plain(OwnedReadHalf),
    Tls(Rc<RefCell<TlsStream<TcpStream>>>),
}

impl ReadHalf {
    /// The connection whole again. `None` where the halves are not of one connection.
    pub fn reunite(self, write: WriteHalf) -> Option<Stream> {
        match (self, write) {
            (ReadHalf::Plain(read), WriteHalf::Plain(write)) => Some(Stream::Plain(read.reunite(write).ok()?)),
            (ReadHalf::Tls(read), WriteHalf::Tls(write)) => {
                write.cut.set(true);
                drop(write);
                Some(Stream::Tls(Box::new(Rc::into_inner(read)?.into_inner())))
            }
            _ => None,
        }
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ReadHalf::Plain(read) => Pin::new(read).poll_read(cx, buf),
            ReadHalf::Tls(tls) => Pin::new(&mut *tls.borrow_mut()).poll_read(cx, buf),
        }
    }
}

pub enum WriteHalf {
    Plain(OwnedWriteHalf),
    Tls(Quiet),
}

impl WriteHalf {
    /// Closing will be a reset: the peer must not take what came for the whole.
    pub fn cut(&self) {
        let _ = match self {
            WriteHalf::Plain(write) => write.as_ref().set_zero_linger(),
            WriteHalf::Tls(quiet) => {
                quiet.cut.set(true);
                quiet.tls.borrow().get_ref().0.set_zero_linger()
            }
        };
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            WriteHalf::Plain(write) => Pin::new(write).poll_write(cx, bytes),
            WriteHalf::Tls(quiet) => Pin::new(&mut *quiet.tls.borrow_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            WriteHalf::Plain(write) => Pin::new(write).poll_write_vectored(cx, slices),
            WriteHalf::Tls(quiet) => Pin::new(&mut *quiet.tls.borrow_mut()).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            WriteHalf::Plain(_) => Poll::Ready(Ok(())),
            WriteHalf::Tls(quiet) => Pin::new(&mut *quiet.tls.borrow_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            WriteHalf::Plain(write) => Pin::new(write).poll_shutdown(cx),
            WriteHalf::Tls(quiet) => Pin::new(&mut *quiet.tls.borrow_mut()).poll_shutdown(cx),
        }
    }
}

/// The writing half of TLS. As with TCP, the sending side ends when it is dropped, even while somebody still reads.
pub struct Quiet {
    tls: Rc<RefCell<TlsStream<TcpStream>>>,
    cut: Cell<bool>,
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.cut.get() {
            return;
        }
        let tls = &mut *self.tls.borrow_mut();
        // What does not fit into the kernel's buffer now is not waited for: nobody reads it.
        let mut cx = Context::from_waker(Waker::noop());
        if Pin::new(&mut *tls).poll_shutdown(&mut cx).is_pending() {
            let _ = rustix::net::shutdown(tls.get_ref().0, Shutdown::Write);
        }
    }
}

/// Read at once by whoever is ready; nobody holds a buffer while nothing moves.
const SCRATCH: usize = 64 * 1024;

thread_local! {
    static SCRATCH_BYTES: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// One direction of two joined connections.
#[derive(Default)]
struct Way {
    /// Read and not yet written.
    held: Vec<u8>,
    at: usize,
    /// The reader has ended.
    ended: bool,
    /// And its end was told to the other side.
    told: bool,
    /// Bytes that were read.
    moved: u64,
    /// Counts whatever moves, reading or writing.
    steps: u64,
}

impl Way {
    fn poll(&mut self, from: &mut Stream, to: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.at < self.held.len() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.held[self.at..]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    wrote => self.at += wrote,
                }
                self.steps += 1;
            }
            if !self.held.is_empty() {
                // Given back: a stream that was busy once may be silent for hours.
                (self.held, self.at) = (Vec::new(), 0);
            }
            if self.ended {
                if !self.told {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.told = true;
                }
                return Poll::Ready(Ok(()));
            }
            let read = SCRATCH_BYTES.with(|scratch| {
                let scratch = &mut *scratch.borrow_mut();
                let mut buf = ReadBuf::new(scratch);
                let polled = Pin::new(&mut *from).poll_read(cx, &mut buf)?;
                if polled.is_pending() {
                    return Poll::Pending;
                }
                let (all, mut at) = (buf.filled(), 0);
                while at < all.len() {
                    match Pin::new(&mut *to).poll_write(cx, &all[at..])? {
                        Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                        Poll::Ready(wrote) => at += wrote,
                        Poll::Pending => break,
                    }
                }
                self.held.extend_from_slice(&all[at..]);
                Poll::Ready(Ok(all.len()))
            });
            match read {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(read)) => {
                    self.moved += read as u64;
                    self.steps += 1;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // TLS may hold what it was given.
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
        }
    }
}

/// How two joined connections ended.
#[derive(Debug)]
pub enum Joined {
    /// Both sides have said all.
    Closed,
    /// Nothing moved for too long.
    Idle,
    Broke(io::Error),
}

/// Carries bytes both ways until both sides have ended, one breaks, or nothing moves for `idle`. A side that ends its
/// sending may still be written to. `moved` is told of every change: bytes from `a` to `b`, and from `b` to `a`.
pub async fn join(a: &mut Stream, b: &mut Stream, idle: Duration, mut moved: impl FnMut(u64, u64)) -> Joined {
    let (mut there, mut back) = (Way::default(), Way::default());
    let (mut told, mut steps) = ((0, 0), 0);
    let mut due = Instant::now() + idle;
    let mut sleep = Box::pin(tokio::time::sleep_until(due));
    poll_fn(|cx| {
        let polled = (there.poll(a, b, cx), back.poll(b, a, cx));
        if steps != there.steps + back.steps {
            moved(there.moved - told.0, back.moved - told.1);
            told = (there.moved, back.moved);
            steps = there.steps + back.steps;
            due = Instant::now() + idle;
        }
        match polled {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => return Poll::Ready(Joined::Broke(error)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Joined::Closed),
            _ => {}
        }
        // Moving the moment later costs nothing until the timer fires.
        loop {
            ready!(sleep.as_mut().poll(cx));
            if due <= sleep.deadline() {
                return Poll::Ready(Joined::Idle);
            }
            sleep.as_mut().reset(due);
        }
    })
    .await
}
