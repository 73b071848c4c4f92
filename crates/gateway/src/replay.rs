//! A request's body that may be sent again: what an attempt read is kept, up to a limit, for the next one.
//!
//! Nothing is read ahead. The first attempt streams, and what it took is remembered; when that grows beyond
//! [`KEPT_BYTES_MAX`], it is forgotten and the request can no longer be repeated. Only one attempt reads at a time.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use crate::body::{Body, Broken};

/// As linkerd2-proxy keeps; larger bodies are not repeated.
pub const KEPT_BYTES_MAX: usize = 64 * 1024;

/// A body and what was read of it.
pub struct Replay {
    body: Body,
    kept: Vec<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// More was read than is kept, or reading failed.
    lost: bool,
}

impl Replay {
    pub fn new(body: Body) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self { body, kept: Vec::new(), bytes: 0, trailers: None, ended: false, lost: false }))
    }

    /// Whether the request can be sent (again) from its begin.
    pub fn whole(&self) -> bool {
        !self.lost
    }

    /// Whether all of it is here, so that two can read it side by side.
    pub fn complete(&self) -> bool {
        self.ended && !self.lost
    }

    /// Whether anything of it was read.
    pub fn untouched(&self) -> bool {
        self.kept.is_empty() && !self.ended && !self.lost
    }
}

/// One attempt's view.
pub struct Replayed {
    replay: Rc<RefCell<Replay>>,
    next: usize,
    trailers_told: bool,
}

impl Replayed {
    pub fn new(replay: &Rc<RefCell<Replay>>) -> Self {
        Self { replay: replay.clone(), next: 0, trailers_told: false }
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let replay = &mut *self.replay.borrow_mut();
        if !replay.lost
            && let Some(kept) = replay.kept.get(self.next)
        {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
        }
        if replay.ended {
            if let Some(trailers) = replay.trailers.as_ref().filter(|_| !self.trailers_told) {
                self.trailers_told = true;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
            }
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(http_body::Body::poll_frame(Pin::new(&mut replay.body), cx));
        match &frame {
            None => replay.ended = true,
            Some(Err(_)) => replay.lost = true,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref().filter(|_| !replay.lost) {
                    replay.bytes += data.len();
                    if replay.bytes > KEPT_BYTES_MAX {
                        (replay.lost, replay.kept) = (true, Vec::new());
                    } else {
                        replay.kept.push(data.clone());
                        self.next += 1;
                    }
                }
                if let Some(trailers) = frame.trailers_ref() {
                    (replay.trailers, replay.ended, self.trailers_told) = (Some(trailers.clone()), true, true);
                }
            }
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::body::Flow;

    async fn read(replayed: &mut Replayed) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(frame) = poll_fn(|cx| replayed.poll_frame(cx)).await {
            all.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        all
    }

    #[tokio::test]
    async fn a_small_body_is_read_again_and_a_large_one_is_not() {
        let replay = Replay::new(Body::full("order"));
        assert!(replay.borrow().untouched());
        for _ in 0..3 {
            assert_eq!(read(&mut Replayed::new(&replay)).await, b"order");
            assert!(replay.borrow().whole());
        }
        let large = Replay::new(Flow::Full(Bytes::from(vec![7; KEPT_BYTES_MAX + 1])).into());
        assert_eq!(read(&mut Replayed::new(&large)).await.len(), KEPT_BYTES_MAX + 1);
        assert!(!large.borrow().whole());
    }
}
