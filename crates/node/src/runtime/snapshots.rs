//! Snapshots between nodes: read from the store and written to a connection, and the other way round, each on a thread of
//! its own, so that neither the node's task nor its heartbeats wait for a disk.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream, ToSocketAddrs},
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};

use buttress_consensus::{Message, SnapshotMeta};
use buttress_core::{Code, Error, NodeId};

use super::core_loop::Notice;
use crate::{
    store::{SnapshotReceiver, StoreHandle},
    transport::{Frame, Hello, SnapshotFrame},
};

/// Chunks of at most 1 MiB, from any number of connections, that wait for the receiving thread. A connection waits for its
/// chunk to be taken before it reads the next.
const CHUNKS_WAITING_MAX: usize = 8;
/// A receiver that takes nothing for this long has gone.
const STALLED: Duration = Duration::from_secs(30);
/// A snapshot that could not be sent is not tried again sooner.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Sees to it that consensus gets its answer whatever becomes of the thread: a follower whose snapshot is never answered
/// for is sent nothing any more.
struct Answer {
    to: NodeId,
    result: Result<(), Error>,
    notify: mpsc::UnboundedSender<Notice>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        let _ = self.notify.send(Notice::SnapshotSent { to: self.to, result });
    }
}

/// Streams the store's last checkpoint to a follower, then the message that makes it install it.
pub(super) fn send(
    hello: Hello,
    address: String,
    message: Message,
    store: StoreHandle,
    notify: mpsc::UnboundedSender<Notice>,
) {
    let broken = Err(Error::new(Code::LIMITS, "there is no thread to send the snapshot"));
    let answer = Answer { to: hello.to, result: broken, notify };
    let spawned = std::thread::Builder::new().name("snapshot-send".into()).spawn(move || {
        // The whole of it moves in, or it would answer at the end of this function.
        let mut answer = answer;
        answer.result = stream(&hello, &address, message, &store);
        if answer.result.is_err() {
            // Consensus tries again as soon as it hears of it.
            std::thread::sleep(RETRY_PAUSE);
        }
    });
    // If there is no thread, its closure is gone already, and with it the answer was given.
    drop(spawned);
}

fn connect(address: &str) -> std::io::Result<TcpStream> {
    let mut last = std::io::ErrorKind::AddrNotAvailable.into();
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn stream(hello: &Hello, address: &str, mut message: Message, store: &StoreHandle) -> Result<(), Error> {
    let lost = |error: std::io::Error| {
        Error::new(Code::UNREACHABLE, format!("node {} at \"{address}\": {error}", hello.to)).retryable()
    };
    let export = store.export()?;
    let header = export.header();
    let members = SnapshotMeta::decode(header.meta.clone())
        .map_err(|error| Error::new(Code::CORRUPT, format!("the checkpoint's member list is malformed: {error}")))?
        .members;
    // The store may have moved on since consensus asked; the follower is told what it really gets.
    message.retarget_snapshot(SnapshotMeta { index: header.index, term: header.term, members });
    let mut connection = connect(address).map_err(lost)?;
    connection.set_write_timeout(Some(STALLED)).map_err(lost)?;
    connection.set_read_timeout(Some(STALLED)).map_err(lost)?;
    connection.write_all(&hello.encode()).map_err(lost)?;
    let mut out = BytesMut::new();
    Frame::SnapshotChunk(Bytes::new()).encode(&mut out);
    connection.write_all(&out).map_err(lost)?;
    for chunk in export {
        out.clear();
        Frame::SnapshotChunk(chunk?).encode(&mut out);
        connection.write_all(&out).map_err(lost)?;
    }
    out.clear();
    Frame::SnapshotEnd(message.encode()).encode(&mut out);
    connection.write_all(&out).map_err(lost)?;
    connection.shutdown(Shutdown::Write).map_err(lost)?;
    // The receiver answers when its replica has seen the message, so that this one does not send it all again meanwhile.
    match connection.read(&mut [0; 1]) {
        Ok(1) => Ok(()),
        Ok(_) => Err(Error::new(Code::UNREACHABLE, format!("node {} did not take the snapshot", hello.to)).retryable()),
        Err(error) => Err(lost(error)),
    }
}

/// Starts the thread that takes snapshots; frames of the snapshot lane go into the channel.
///
/// # Errors
/// `LIMITS` where the operating system gives no thread.
pub(super) fn receiver(
    store: StoreHandle,
    notify: mpsc::UnboundedSender<Notice>,
) -> Result<mpsc::Sender<SnapshotFrame>, Error> {
    let (frames, mut incoming) = mpsc::channel::<SnapshotFrame>(CHUNKS_WAITING_MAX);
    std::thread::Builder::new()
        .name("snapshot-receive".into())
        .spawn(move || {
            // Our own bug must not leave a node that can never be brought up to date again.
            let run = || {
                let mut current: Option<(NodeId, SnapshotReceiver)> = None;
                while let Some(frame) = incoming.blocking_recv() {
                    let from = frame.from;
                    let Err(error) = take(&mut current, frame, &store, &notify) else { continue };
                    tracing::warn!(peer = from.0, %error, "a snapshot could not be received");
                    // Another node's may be under way.
                    current.take_if(|(sender, _)| *sender == from);
                    if error.code == Code::DISK || error.code == Code::DISK_FULL {
                        let _ = notify.send(Notice::Failed(error));
                    }
                }
            };
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                let error = Error::new(Code::DISK, "the thread that takes snapshots panicked");
                let _ = notify.send(Notice::Failed(error));
            }
        })
        .map_err(|error| Error::new(Code::LIMITS, format!("cannot start a thread: {error}")))?;
    Ok(frames)
}

/// Takes one frame. On success its connection is told, at once or, for the last one, by the node's task.
fn take(
    current: &mut Option<(NodeId, SnapshotReceiver)>,
    SnapshotFrame { from, frame, taken }: SnapshotFrame,
    store: &StoreHandle,
    notify: &mpsc::UnboundedSender<Notice>,
) -> Result<(), Error> {
    match frame {
        Frame::SnapshotChunk(chunk) => {
            // An empty chunk begins anew, whatever an earlier connection left behind.
            if chunk.is_empty() {
                *current = Some((from, store.receive()?));
            } else {
                match current {
                    Some((sender, receiver)) if *sender == from => receiver.push(chunk)?,
                    _ => return Err(Error::new(Code::BAD_REQUEST, "a piece of a snapshot came that had not begun")),
                }
            }
            let _ = taken.send(());
            Ok(())
        }
        Frame::SnapshotEnd(bytes) => finish(current, from, bytes, taken, notify),
        _ => Err(Error::new(Code::BAD_REQUEST, "only snapshots come over the snapshot lane")),
    }
}

fn finish(
    current: &mut Option<(NodeId, SnapshotReceiver)>,
    from: NodeId,
    message: Bytes,
    taken: oneshot::Sender<()>,
    notify: &mpsc::UnboundedSender<Notice>,
) -> Result<(), Error> {
    let bad = |what: String| Error::new(Code::BAD_REQUEST, what);
    let Some((_, receiver)) = current.take_if(|(sender, _)| *sender == from) else {
        return Err(bad("a snapshot ended that had not begun".into()));
    };
    let message = Message::decode(message).map_err(|error| bad(format!("the snapshot's message: {error}")))?;
    let received = receiver.finish()?;
    let header = received.header();
    let members = SnapshotMeta::decode(header.meta.clone())
        .map_err(|error| bad(format!("the snapshot's member list: {error}")))?
        .members;
    // Consensus judges the message and the store gets the state, so they must speak of the same.
    let announced = SnapshotMeta { index: header.index, term: header.term, members };
    if message.snapshot() != Some(&announced) {
        return Err(bad(format!("{:?} was announced, the state of {announced:?} came", message.snapshot())));
    }
    let _ = notify.send(Notice::SnapshotReceived { from, message: Box::new(message), received, taken });
    Ok(())
}
