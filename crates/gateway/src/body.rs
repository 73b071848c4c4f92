//! Bodies on their way through: one type for all that can flow, so that every pair of protocols is one path.
//!
//! Nothing is collected. A frame is asked for when the other side can take one, which is the whole of backpressure: a slow
//! reader leaves bytes in the kernel's buffers, and the sender's window closes.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::{
    call::{Running, Ticket},
    frame::{Decoder, Encoder, Step},
    parse::Refusal,
    replay::Replayed,
    stale::Keeper,
    stream::ReadHalf,
    upstream::Exchange,
};

/// Room for a head and a small body; most connections never need more.
pub const HEAD_READ: usize = 4 * 1024;
/// Room for a body of unknown length, and the most for one that is known.
const BODY_READ: usize = 16 * 1024;
const BODY_READ_MAX: usize = 64 * 1024;
/// A frame that is larger is written from where it lies; a smaller one is copied behind the head.
const COPIED_MAX: usize = 8 * 1024;
/// Gathered for one write at most.
const GATHERED_MAX: usize = 64 * 1024;
/// Read of the next requests of a client while it waits for an answer, to see whether it is still there.
const AHEAD_MAX: usize = HEAD_READ;

/// Why a body ended before it was whole.
#[derive(Debug)]
pub enum Broken {
    /// The connection broke, or its peer closed it in the middle.
    Io(io::Error),
    /// The peer's frame was wrong.
    Refused(Refusal),
    Http2(hyper::Error),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Io(error) => write!(f, "{error}"),
            Broken::Refused(refusal) => f.write_str(refusal.says),
            Broken::Http2(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Broken {}

/// A body, and what it does to the books when it ends.
pub struct Body {
    flow: Flow,
    ticket: Option<Box<Ticket>>,
    /// Ends with the body.
    running: Option<Running>,
    /// Keeps what goes through, for when there is no answer.
    keeper: Option<Box<Keeper>>,
    /// Counts bytes that went through.
    count: Option<Rc<Cell<u64>>>,
}

pub enum Flow {
    Empty,
    Full(Bytes),
    /// Of an HTTP/1.1 client, and which of its requests.
    Client(Rc<RefCell<Source>>, u64),
    /// Of an HTTP/1.1 upstream.
    Upstream(Box<Exchange>),
    /// Of HTTP/2, on either side.
    Http2(Incoming),
    /// Of a request that may be sent again.
    Replayed(Replayed),
}

impl From<Flow> for Body {
    fn from(flow: Flow) -> Self {
        Self { flow, ticket: None, running: None, keeper: None, count: None }
    }
}

impl Body {
    pub fn empty() -> Self {
        Flow::Empty.into()
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Flow::Full(bytes.into()).into()
    }

    pub fn with(self, ticket: Box<Ticket>) -> Self {
        Self { ticket: Some(ticket), ..self }
    }

    pub fn on_end(self, running: Running) -> Self {
        Self { running: Some(running), ..self }
    }

    /// Has somebody keep the body as it goes to the client.
    pub fn keep(&mut self, mut keeper: Keeper) {
        match &self.flow {
            Flow::Empty => keeper.ended(false),
            Flow::Full(bytes) => {
                keeper.went_on(&Frame::data(bytes.clone()));
                keeper.ended(false);
            }
            _ => self.keeper = Some(Box::new(keeper)),
        }
    }

    pub fn counted(self, count: Option<Rc<Cell<u64>>>) -> Self {
        Self { count, ..self }
    }

    /// An upgraded connection has ended after so many bytes each way.
    pub fn tunnelled(&mut self, from_client: u64, to_client: u64) {
        if let Some(running) = &mut self.running {
            running.tunnelled(from_client, to_client);
        }
    }

    /// Whether all of it is here.
    pub fn is_whole(&self) -> bool {
        matches!(self.flow, Flow::Empty | Flow::Full(_))
    }

    pub fn is_empty(&self) -> bool {
        self.flow.is_empty()
    }
}

impl Flow {
    fn is_empty(&self) -> bool {
        match self {
            Flow::Empty => true,
            Flow::Full(bytes) => bytes.is_empty(),
            Flow::Http2(incoming) => http_body::Body::is_end_stream(incoming),
            _ => false,
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let frame = ready!(match &mut this.flow {
            Flow::Empty => Poll::Ready(None),
            Flow::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Flow::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Flow::Client(source, request) => source.borrow_mut().poll_frame(*request, cx),
            Flow::Upstream(exchange) => exchange.poll_frame(cx),
            Flow::Http2(incoming) => Pin::new(incoming).poll_frame(cx).map(|f| f.map(|f| f.map_err(Broken::Http2))),
            Flow::Replayed(replayed) => replayed.poll_frame(cx),
        });
        if let Some(ticket) = &mut this.ticket {
            match &frame {
                None => ticket.body_ended(None),
                Some(Err(broken)) => ticket.body_ended(Some(broken)),
                Some(Ok(frame)) => ticket.body_went_on(frame),
            }
        }
        if let Some(keeper) = &mut this.keeper {
            match &frame {
                None => keeper.ended(false),
                Some(Err(_)) => keeper.ended(true),
                Some(Ok(frame)) => keeper.went_on(frame),
            }
        }
        if let Some(running) = &mut this.running {
            match &frame {
                None => running.body_ended(None),
                Some(Err(broken)) => running.body_ended(Some(broken)),
                // Of HTTP/2 nobody asks for more after the last frame.
                Some(Ok(frame)) => running.body_went_on(frame, frame.is_trailers() || this.flow.is_empty()),
            }
        }
        if let (Some(count), Some(Ok(frame))) = (&this.count, &frame)
            && let Some(data) = frame.data_ref()
        {
            count.set(count.get() + data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // With a ticket the end must be heard.
        self.ticket.is_none() && self.keeper.is_none() && self.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.flow {
            Flow::Empty => SizeHint::with_exact(0),
            Flow::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Flow::Http2(incoming) => http_body::Body::size_hint(incoming),
            _ => SizeHint::default(),
        }
    }
}

/// The reading side of a client's connection; what is read beyond a request stays for the next one.
pub struct Source {
    pub read: ReadHalf,
    pub bytes: BytesMut,
    pub decoder: Decoder,
    /// The client waits for `100 Continue` until somebody wants its body.
    pub holds_back: bool,
    /// Somebody wants it.
    pub wanted: bool,
    /// Of the task that can say so.
    pub connection: Option<Waker>,
    pub broken: bool,
    /// The client has ended its sending side.
    pub closed: bool,
    /// Counts requests. Whoever still holds the body of an earlier one must not read of this one.
    pub request: u64,
    /// The connection is about to close; nobody gets any more of the body.
    pub abandoned: bool,
    /// Who waits for more of the body.
    pub reader: Option<Waker>,
}

impl Source {
    fn poll_frame(&mut self, request: u64, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.abandoned {
            return Poll::Ready(Some(Err(Broken::Io(io::ErrorKind::ConnectionAborted.into()))));
        }
        if request != self.request {
            // There is a next request only once this one's body had been read to its end.
            return Poll::Ready(None);
        }
        if self.holds_back && !self.wanted {
            self.wanted = true;
            if let Some(waker) = &self.connection {
                waker.wake_by_ref();
            }
        }
        let polled = poll_body(&mut self.read, &mut self.bytes, &mut self.decoder, cx);
        self.reader = polled.is_pending().then(|| cx.waker().clone());
        let frame = ready!(polled);
        self.broken |= matches!(frame, Some(Err(_)));
        if self.decoder.ended()
            && let Some(waker) = &self.connection
        {
            // From now on it is the connection that hears whether the client leaves.
            waker.wake_by_ref();
        }
        Poll::Ready(frame)
    }

    /// Whether the client has left, for whoever waits for an answer to a request that was read whole. What is read is of
    /// the next request. A reset is a client that left; the end of what it sends is one only where `half_close` says so.
    pub fn poll_left(&mut self, half_close: bool, cx: &mut Context<'_>) -> Poll<()> {
        while self.decoder.ended() && !self.closed && self.bytes.len() < AHEAD_MAX {
            match ready!(poll_read(&mut self.read, &mut self.bytes, HEAD_READ, cx)) {
                Ok(0) if half_close => return Poll::Ready(()),
                Ok(0) => self.closed = true,
                Ok(_) => {}
                Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }
}

/// Reads what is there into about so much room; 0 is the end.
pub fn poll_read<R: AsyncRead + Unpin>(
    read: &mut R,
    bytes: &mut BytesMut,
    room: usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if bytes.capacity() - bytes.len() < room / 4 {
        bytes.reserve(room);
    }
    // The future has no state of its own, so it may be made anew for every poll.
    pin!(read.read_buf(bytes)).poll(cx)
}

fn room(decoder: &Decoder) -> usize {
    match decoder {
        Decoder::Length(left) => (*left).clamp(HEAD_READ as u64, BODY_READ_MAX as u64) as usize,
        _ => BODY_READ,
    }
}

/// The next frame of a body that is read from a connection.
pub fn poll_body<R: AsyncRead + Unpin>(
    read: &mut R,
    bytes: &mut BytesMut,
    decoder: &mut Decoder,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
    loop {
        match decoder.step(bytes) {
            Ok(Step::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Ok(Step::Trailers(map)) => return Poll::Ready(Some(Ok(Frame::trailers(map)))),
            Ok(Step::End) => return Poll::Ready(None),
            Err(refusal) => return Poll::Ready(Some(Err(Broken::Refused(refusal)))),
            Ok(Step::More) => match ready!(poll_read(read, bytes, room(decoder), cx)) {
                Ok(0) => {
                    return Poll::Ready(decoder.closed().err().map(|error| Err(Broken::Io(error))));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(Broken::Io(error)))),
            },
        }
    }
}

/// Carries a head and a body to a connection.
pub struct Pump {
    body: Body,
    encoder: Encoder,
    /// Written first.
    small: BytesMut,
    /// Then this.
    large: Bytes,
    /// Owed behind `large`.
    owed: &'static [u8],
    ended: bool,
    /// The body broke off; said once what came before it is written.
    broken: Option<PumpError>,
    /// Bytes that the kernel has taken.
    pub written: u64,
    /// TLS holds some of that.
    flushing: bool,
}

/// Which side failed.
#[derive(Debug)]
pub enum PumpError {
    Read(Broken),
    Write(io::Error),
}

impl Pump {
    pub fn new(head: BytesMut, body: Body, encoder: Encoder) -> Self {
        Self {
            body,
            encoder,
            small: head,
            large: Bytes::new(),
            owed: b"",
            ended: false,
            broken: None,
            written: 0,
            flushing: false,
        }
    }

    /// Whether it is the connection that is waited for, and not the body.
    pub fn owes(&self) -> bool {
        self.flushing || !self.small.is_empty() || !self.large.is_empty()
    }

    pub fn poll<W: AsyncWrite + Unpin>(&mut self, write: &mut W, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        loop {
            if !self.ended
                && let Err(broken) = self.gather(cx)
            {
                (self.ended, self.broken) = (true, Some(broken));
            }
            if self.small.is_empty() && self.large.is_empty() {
                // Nothing to write: the body is over, or it wakes us. TLS may hold what it was given.
                let flushed = Pin::new(&mut *write).poll_flush(cx);
                self.flushing = flushed.is_pending();
                if let Err(error) = ready!(flushed) {
                    return Poll::Ready(Err(PumpError::Write(error)));
                }
                return match self.broken.take() {
                    Some(broken) => Poll::Ready(Err(broken)),
                    None if self.ended => Poll::Ready(Ok(())),
                    None => Poll::Pending,
                };
            }
            let slices = [io::IoSlice::new(&self.small), io::IoSlice::new(&self.large)];
            let wrote = match (self.small.is_empty(), self.large.is_empty()) {
                (false, true) => Pin::new(&mut *write).poll_write(cx, &self.small),
                (true, _) => Pin::new(&mut *write).poll_write(cx, &self.large),
                (false, false) => Pin::new(&mut *write).poll_write_vectored(cx, &slices),
            };
            let wrote = match ready!(wrote) {
                Ok(0) => return Poll::Ready(Err(PumpError::Write(io::ErrorKind::WriteZero.into()))),
                Ok(wrote) => wrote,
                Err(error) => return Poll::Ready(Err(PumpError::Write(error))),
            };
            self.written += wrote as u64;
            let of_small = wrote.min(self.small.len());
            if of_small == self.small.len() {
                self.small.clear();
            } else {
                bytes::Buf::advance(&mut self.small, of_small);
            }
            bytes::Buf::advance(&mut self.large, wrote - of_small);
        }
    }

    /// Takes frames from the body until enough is there for one write, or no more is there now.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<(), PumpError> {
        let refused = |refusal| PumpError::Read(Broken::Refused(refusal));
        while !self.ended && self.large.is_empty() && self.small.len() < GATHERED_MAX {
            self.small.extend_from_slice(std::mem::take(&mut self.owed));
            match http_body::Body::poll_frame(Pin::new(&mut self.body), cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => {
                    self.encoder.end(None, &mut self.small).map_err(refused)?;
                    self.ended = true;
                }
                Poll::Ready(Some(Err(broken))) => return Err(PumpError::Read(broken)),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        self.encoder.before(data.len(), &mut self.small).map_err(refused)?;
                        if data.len() > COPIED_MAX {
                            (self.large, self.owed) = (data, self.encoder.after());
                        } else {
                            self.small.extend_from_slice(&data);
                            self.small.extend_from_slice(self.encoder.after());
                        }
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().ok();
                        self.encoder.end(trailers.as_ref(), &mut self.small).map_err(refused)?;
                        self.ended = true;
                    }
                },
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener, net::TcpStream};

    use std::future::poll_fn;

    use super::*;
    use crate::{parse::Length, stream::Stream};

    #[tokio::test(flavor = "current_thread")]
    async fn who_holds_the_body_of_an_earlier_request_reads_nothing_of_the_next_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (read, _write) = Stream::Plain(listener.accept().await.unwrap().0).into_split();
        client.write_all(b"second").await.unwrap();
        let source = Rc::new(RefCell::new(Source {
            read,
            bytes: BytesMut::new(),
            decoder: Decoder::new(Length::Known(6)),
            holds_back: true,
            wanted: false,
            connection: None,
            broken: false,
            closed: false,
            request: 2,
            abandoned: false,
            reader: None,
        }));
        let of = |request| {
            let mut body = Body::from(Flow::Client(source.clone(), request));
            async move { poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx)).await }
        };
        assert!(of(1).await.is_none(), "its own body was read to its end");
        assert!(!source.borrow().wanted, "nor does it ask the client to go on");
        let frame = of(2).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "second");
        // And when the connection is about to close, nobody gets what is left.
        source.borrow_mut().abandoned = true;
        assert!(of(2).await.unwrap().is_err());
    }
}
