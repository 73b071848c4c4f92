//! A request's body on its way from its connection to whoever serves it.
//!
//! What the service has taken is released, so the client may send as much more: a service that reads slowly holds at most
//! its stream's window.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame};
use tonic::Status;

use super::calls::Bell;

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    /// Of their bytes, those that were released before.
    released: usize,
    trailers: Option<HeaderMap>,
    /// All of it came.
    ended: bool,
    /// The stream is no more, and the rest will not come.
    broken: bool,
    /// Nobody reads it any more.
    unwanted: bool,
    reader: Option<Waker>,
}

/// The end that the connection has.
pub(super) struct Feed(Arc<Mutex<State>>);

/// The end that the service has.
pub(super) struct Upload {
    state: Arc<Mutex<State>>,
    bell: Arc<Bell>,
    stream: u32,
}

/// A body of which some has come already, and was released.
pub(super) fn upload(stream: u32, bell: &Arc<Bell>, first: Bytes, ended: bool) -> (Feed, Upload) {
    let mut state = State { ended, released: first.len(), ..State::default() };
    if !first.is_empty() {
        state.pieces.push_back(first);
    }
    let state = Arc::new(Mutex::new(state));
    (Feed(state.clone()), Upload { state, bell: bell.clone(), stream })
}

impl State {
    /// How many of so many bytes are to be released.
    fn taken(&mut self, bytes: usize) -> usize {
        let before = self.released.min(bytes);
        self.released -= before;
        bytes - before
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no holder panics")
}

impl Feed {
    /// Hands on a piece. `false` where nobody wants it.
    pub fn push(&self, bytes: &[u8], ended: bool) -> bool {
        self.change(|state| {
            if !bytes.is_empty() && !state.unwanted {
                state.pieces.push_back(Bytes::copy_from_slice(bytes));
            }
            state.ended |= ended;
            !state.unwanted
        })
    }

    pub fn end(&self, trailers: HeaderMap) {
        self.change(|state| (state.ended, state.trailers) = (true, Some(trailers)));
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.0);
        let said = change(&mut state);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        said
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.change(|state| state.broken = true);
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut state = lock(&self.state);
        if let Some(piece) = state.pieces.pop_front() {
            let taken = state.taken(piece.len());
            drop(state);
            if taken > 0 {
                self.bell.take(self.stream, taken);
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if state.ended {
            return Poll::Ready(state.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        if state.broken {
            return Poll::Ready(Some(Err(Status::cancelled("the stream was reset"))));
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.state);
        state.ended && state.pieces.is_empty() && state.trailers.is_none()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.unwanted = true;
        let left = state.pieces.drain(..).map(|piece| piece.len()).sum();
        let taken = state.taken(left);
        drop(state);
        if taken > 0 {
            self.bell.take(self.stream, taken);
        }
    }
}
