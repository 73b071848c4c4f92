//! Reads frames from a socket: bounded, timed, and safe to be cancelled between two polls.
//!
//! A stated length reserves nothing: the buffer grows by what has arrived. A frame larger than [`FRAME_BYTES_FREE`]
//! first gets room from a budget that all connections share, and gives it back when its request is answered. A frame
//! that does not arrive in time is the end of the connection, so a slow sender cannot keep that room.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::{FRAME_BYTES_FREE, FRAME_BYTES_MAX};

/// How much the buffer grows at a time.
const READ_BYTES: usize = 64 * 1024;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the client closed the connection inside a frame")]
    Torn,
    #[error("the frame states a length of {0} bytes, more than the limit of {FRAME_BYTES_MAX}")]
    TooLarge(u32),
    #[error("the frame did not arrive in time")]
    Slow,
    #[error("no request came for too long")]
    Idle,
}

/// A frame's message, and its share of the common room.
pub(super) struct Frame {
    pub message: Bytes,
    pub room: Option<OwnedSemaphorePermit>,
}

pub(super) struct FrameReader<R> {
    input: R,
    buffer: BytesMut,
    room: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    idle_timeout: Duration,
    transfer_timeout: Duration,
    idle_until: Instant,
    /// Set with the first byte of a frame.
    transfer_until: Option<Instant>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(input: R, room: Arc<Semaphore>, idle_timeout: Duration, transfer_timeout: Duration) -> Self {
        Self {
            input,
            buffer: BytesMut::new(),
            room,
            permit: None,
            idle_timeout,
            transfer_timeout,
            idle_until: Instant::now() + idle_timeout,
            transfer_until: None,
        }
    }

    /// The idle time counts from now: an answer was sent.
    pub fn touch(&mut self) {
        self.idle_until = Instant::now() + self.idle_timeout;
    }

    /// The next frame; `None` when the client has closed the connection between two.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if !self.buffer.is_empty() && self.transfer_until.is_none() {
                self.transfer_until = Some(Instant::now() + self.transfer_timeout);
            }
            let length = match self.buffer.first_chunk::<4>() {
                Some(prefix) => u32::from_be_bytes(*prefix),
                None => {
                    match self.read(4).await? {
                        0 if self.buffer.is_empty() => return Ok(None),
                        0 => return Err(FrameError::Torn),
                        _ => continue,
                    };
                }
            };
            if length as usize > FRAME_BYTES_MAX {
                return Err(FrameError::TooLarge(length));
            }
            let whole = 4 + length as usize;
            if length as usize > FRAME_BYTES_FREE && self.permit.is_none() {
                let room = self.room.clone().acquire_many_owned(length);
                let until = self.transfer_until.expect("the first bytes are there");
                let permit = timeout_at(until, room).await.map_err(|_| FrameError::Slow)?;
                self.permit = Some(permit.expect("the budget is never closed"));
            }
            if self.buffer.len() >= whole {
                let message = self.buffer.split_to(whole).freeze().slice(4..);
                self.transfer_until = None;
                self.touch();
                return Ok(Some(Frame { message, room: self.permit.take() }));
            }
            if self.read(whole - self.buffer.len()).await? == 0 {
                return Err(FrameError::Torn);
            }
        }
    }

    /// Reads what has arrived; zero at the end.
    async fn read(&mut self, wanted: usize) -> Result<usize, FrameError> {
        self.buffer.reserve(wanted.clamp(4 * 1024, READ_BYTES));
        let (until, error) = match self.transfer_until {
            Some(until) => (until, FrameError::Slow),
            None => (self.idle_until, FrameError::Idle),
        };
        match timeout_at(until, self.input.read_buf(&mut self.buffer)).await {
            Ok(read) => Ok(read?),
            Err(_) => Err(error),
        }
    }
}
