//! Bodies that may be sent again.
//!
//! | keeps | for | may be sent again |
//! |---|---|---|
//! | [`Cloned`] | bodies that are `Clone`, which is what most clients send: a `Full<Bytes>`, an `Empty`, a `String` | always |
//! | [`Buffered`] | every other body, as a server passes it on | while no more was read of it than `retry.body_bytes_max`; a hedge starts only when all of it is here |
//!
//! Nothing is read ahead: the first attempt streams, and what it took is remembered for the next one.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// How a body is kept for further attempts.
pub trait Keep<B>: Clone {
    /// What is held while the call runs.
    type Kept;
    /// What a service is handed.
    type Sent;

    /// `bytes_max`: so much of it is held, where holding it costs anything.
    fn keep(&self, body: B, bytes_max: usize) -> Self::Kept;

    /// The body of one attempt, from its beginning on. Attempts read one after the other, unless [`complete`](Self::complete).
    fn sent(kept: &mut Self::Kept) -> Self::Sent;

    /// Whether the request can be sent (again) from its beginning.
    fn whole(kept: &Self::Kept) -> bool;

    /// Whether two attempts can read it side by side.
    fn complete(kept: &Self::Kept) -> bool;

    /// Whether reading it failed, which is nothing that a service did.
    fn broken(_kept: &Self::Kept) -> bool {
        false
    }
}

/// Sends a clone each time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cloned;

impl<B: Clone> Keep<B> for Cloned {
    type Kept = B;
    type Sent = B;

    fn keep(&self, body: B, _bytes_max: usize) -> B {
        body
    }

    fn sent(kept: &mut B) -> B {
        kept.clone()
    }

    fn whole(_kept: &B) -> bool {
        true
    }

    fn complete(_kept: &B) -> bool {
        true
    }
}

/// Remembers what was read, up to the limit of the route. Services are handed [`Replayed`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Buffered;

struct Buffer<B> {
    body: Pin<Box<B>>,
    kept: Vec<Bytes>,
    bytes: usize,
    bytes_max: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// More was read than is kept, or reading failed.
    lost: bool,
    failed: bool,
    /// The attempt that may read on. A connection may hold the body of one that was given up for a while.
    reader: u64,
}

/// A body with what was read of it.
pub struct Kept<B>(Arc<Mutex<Buffer<B>>>);

/// One attempt's view of a [`Buffered`] body.
pub struct Replayed<B> {
    buffer: Arc<Mutex<Buffer<B>>>,
    reader: u64,
    next: usize,
    trailers_told: bool,
}

fn lock<B>(buffer: &Mutex<Buffer<B>>) -> MutexGuard<'_, Buffer<B>> {
    buffer.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Body> Keep<B> for Buffered {
    type Kept = Kept<B>;
    type Sent = Replayed<B>;

    fn keep(&self, body: B, bytes_max: usize) -> Kept<B> {
        let ended = body.is_end_stream();
        Kept(Arc::new(Mutex::new(Buffer {
            body: Box::pin(body),
            kept: Vec::new(),
            bytes: 0,
            bytes_max,
            trailers: None,
            ended,
            lost: false,
            failed: false,
            reader: 0,
        })))
    }

    fn sent(kept: &mut Kept<B>) -> Replayed<B> {
        let mut buffer = lock(&kept.0);
        buffer.reader += 1;
        Replayed { buffer: Arc::clone(&kept.0), reader: buffer.reader, next: 0, trailers_told: false }
    }

    fn whole(kept: &Kept<B>) -> bool {
        !lock(&kept.0).lost
    }

    fn complete(kept: &Kept<B>) -> bool {
        let buffer = lock(&kept.0);
        buffer.ended && !buffer.lost
    }

    fn broken(kept: &Kept<B>) -> bool {
        lock(&kept.0).failed
    }
}

impl<B: Body> Body for Replayed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let buffer = &mut *lock(&this.buffer);
        if !buffer.lost
            && let Some(kept) = buffer.kept.get(this.next)
        {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
        }
        if buffer.ended {
            let trailers = buffer.trailers.as_ref().filter(|_| !this.trailers_told).cloned();
            this.trailers_told = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        if this.reader != buffer.reader {
            // Its attempt was given up; a piece that it took would be missing from the next one.
            return Poll::Pending;
        }
        match ready!(buffer.body.as_mut().poll_frame(cx)) {
            None => {
                buffer.ended = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                (buffer.lost, buffer.failed) = (true, true);
                Poll::Ready(Some(Err(error)))
            }
            Some(Ok(frame)) => {
                let frame = frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
                if let Some(data) = frame.data_ref().filter(|_| !buffer.lost) {
                    buffer.bytes += data.len();
                    if buffer.bytes > buffer.bytes_max {
                        (buffer.lost, buffer.kept) = (true, Vec::new());
                    } else {
                        buffer.kept.push(data.clone());
                        this.next += 1;
                    }
                }
                if let Some(trailers) = frame.trailers_ref() {
                    (buffer.trailers, buffer.ended, this.trailers_told) = (Some(trailers.clone()), true, true);
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let buffer = lock(&self.buffer);
        let trailers_left = buffer.trailers.is_some() && !self.trailers_told;
        buffer.ended && !trailers_left && (buffer.lost || self.next >= buffer.kept.len())
    }

    fn size_hint(&self) -> SizeHint {
        let buffer = lock(&self.buffer);
        let kept: usize = if buffer.lost { 0 } else { buffer.kept.iter().skip(self.next).map(Bytes::len).sum() };
        let rest = if buffer.ended { SizeHint::with_exact(0) } else { buffer.body.size_hint() };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(kept as u64));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(kept as u64));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};

    use super::*;

    type Stream = UnsyncBoxBody<Bytes, &'static str>;

    fn stream(pieces: Vec<Result<Frame<Bytes>, &'static str>>) -> Stream {
        StreamBody::new(futures::stream::iter(pieces)).boxed_unsync()
    }

    fn pieces(texts: &[&'static str]) -> Stream {
        stream(texts.iter().map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes())))).collect())
    }

    async fn next(body: &mut Replayed<Stream>) -> Option<Result<Frame<Bytes>, &'static str>> {
        poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
    }

    #[tokio::test]
    async fn what_an_attempt_took_comes_again_and_the_rest_after_it() {
        let mut kept = Buffered.keep(pieces(&["a", "b", "c"]), 100);
        let mut first = Buffered::sent(&mut kept);
        next(&mut first).await.unwrap().unwrap();
        assert!(Buffered::whole(&kept) && !Buffered::complete(&kept));
        let second = Buffered::sent(&mut kept);
        assert_eq!(second.collect().await.unwrap().to_bytes(), "abc");
        assert!(Buffered::complete(&kept));
        let (third, fourth) = (Buffered::sent(&mut kept), Buffered::sent(&mut kept));
        assert_eq!(fourth.collect().await.unwrap().to_bytes(), "abc");
        assert_eq!(third.collect().await.unwrap().to_bytes(), "abc", "a hedge reads beside it");
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_sent_once_and_forgotten() {
        let mut kept = Buffered.keep(pieces(&["aaaa", "bbbb", "cc"]), 6);
        assert_eq!(Buffered::sent(&mut kept).collect().await.unwrap().to_bytes(), "aaaabbbbcc");
        assert!(!Buffered::whole(&kept) && !Buffered::broken(&kept));
    }

    #[tokio::test]
    async fn an_attempt_that_was_given_up_takes_nothing_from_the_next_one() {
        let mut kept = Buffered.keep(pieces(&["aaaa", "bbbb", "cc"]), 6);
        let mut old = Buffered::sent(&mut kept);
        next(&mut old).await.unwrap().unwrap();
        let new = Buffered::sent(&mut kept);
        assert!(futures::poll!(std::pin::pin!(next(&mut old))).is_pending());
        assert_eq!(new.collect().await.unwrap().to_bytes(), "aaaabbbbcc");
    }

    #[tokio::test]
    async fn trailers_come_again_and_a_body_that_breaks_is_the_callers_fault() {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("7"))]);
        let body = stream(vec![Ok(Frame::data(Bytes::from_static(b"x"))), Ok(Frame::trailers(trailers.clone()))]);
        let mut kept = Buffered.keep(body, 10);
        for _ in 0..2 {
            let read = Buffered::sent(&mut kept).collect().await.unwrap();
            assert_eq!(read.trailers(), Some(&trailers));
        }
        let mut kept = Buffered.keep(stream(vec![Err("the client left")]), 10);
        assert!(Buffered::sent(&mut kept).collect().await.is_err());
        assert!(Buffered::broken(&kept) && !Buffered::whole(&kept));
    }

    #[test]
    fn an_empty_body_is_complete_at_once_and_its_length_is_known() {
        let mut kept = Buffered.keep(http_body_util::Empty::<Bytes>::new(), 10);
        assert!(Buffered::complete(&kept) && Buffered::sent(&mut kept).is_end_stream());
        let mut kept = Buffered.keep(http_body_util::Full::new(Bytes::from_static(b"four")), 10);
        assert_eq!(Buffered::sent(&mut kept).size_hint().exact(), Some(4));
    }
}
