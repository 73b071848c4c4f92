//! The body of an answer. The call's place is given back when it has ended, and a call of gRPC is judged by its trailers.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use buttress_policy::{Outcome, Time};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::guard::{Place, Trying};

pin_project! {
    /// An answer's body as it came, with the place that its call holds until it has ended or is dropped.
    pub struct Body<B> {
        #[pin]
        inner: B,
        held: Option<Held>,
    }
}

/// What a body holds.
pub(crate) struct Held {
    /// Given back when this is dropped.
    _place: Place,
    /// A call of gRPC whose status is still to come, and when its head came.
    open: Option<(Trying, Time)>,
    frames: u32,
}

impl Held {
    pub fn new(place: Place, open: Option<(Trying, Time)>) -> Self {
        Self { _place: place, open, frames: 0 }
    }

    fn frame<D>(&mut self, frame: &Frame<D>) {
        if frame.is_data() {
            self.frames = self.frames.saturating_add(1);
        }
        if let Some(trailers) = frame.trailers_ref()
            && let Some((trying, head)) = self.open.take()
        {
            let code = trailers.get("grpc-status").and_then(|status| status.to_str().ok()?.trim().parse().ok());
            // A stream may be open for hours, which says nothing about how fast the upstream is.
            let at = if self.frames > 1 { head } else { trying.now() };
            trying.end(at, &Outcome::grpc(code.unwrap_or(2)));
        }
    }

    fn ended(mut self, broken: bool) {
        if let Some((trying, head)) = self.open.take() {
            trying.end(head, &if broken { Outcome::reset() } else { Outcome::grpc(2) });
        }
    }
}

impl<B: http_body::Body> Body<B> {
    pub(crate) fn new(inner: B, held: Held) -> Self {
        let over = inner.is_end_stream();
        let mut body = Self { inner, held: Some(held) };
        if over && let Some(held) = body.held.take() {
            held.ended(false);
        }
        body
    }
}

impl<B: http_body::Body> http_body::Body for Body<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        let over = match &frame {
            Some(Ok(frame)) => {
                if let Some(held) = this.held {
                    held.frame(frame);
                }
                // Many readers do not ask again after the last frame.
                this.inner.is_end_stream()
            }
            Some(Err(_)) | None => true,
        };
        if over && let Some(held) = this.held.take() {
            held.ended(matches!(frame, Some(Err(_))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
