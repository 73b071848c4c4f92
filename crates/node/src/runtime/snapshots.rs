//! Snapshots between nodes: read from the store and written to a connection, and the other way round, each on a thread of
//! its own, so that neither the node's task nor its heartbeats wait for a disk.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use buttress_consensus::{Message, SnapshotMeta};
use buttress_core::{Code, Error, NodeId};

use super::core_loop::Notice;
use crate::{
    store::{SnapshotReceiver, StoreHandle},
    transport::{Frame, Hello},
};

/// Chunks of at most 1 MiB that have come and are not on disk yet; the connection pushes back beyond.
const CHUNKS_WAITING_MAX: usize = 8;
/// A receiver that takes nothing for this long has gone.
const STALLED: Duration = Duration::from_secs(30);

/// Streams the store's last checkpoint to a follower, then the message that makes it install it.
pub(super) fn send(
    hello: Hello,
    address: String,
    message: Message,
    store: StoreHandle,
    notify: mpsc::UnboundedSender<Notice>,
) {
    let to = hello.to;
    let theirs = notify.clone();
    let spawned = std::thread::Builder::new().name("snapshot-send".into()).spawn(move || {
        let result = stream(&hello, &address, message, &store);
        let _ = theirs.send(Notice::SnapshotSent { to, result });
    });
    if let Err(error) = spawned {
        let result = Err(Error::new(Code::LIMITS, format!("cannot start a thread: {error}")));
        let _ = notify.send(Notice::SnapshotSent { to, result });
    }
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
    let mut connection = TcpStream::connect(address).map_err(lost)?;
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
    // The receiver closes when it has read everything.
    match connection.read(&mut [0; 1]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(Error::new(Code::BAD_REQUEST, format!("node {} answered to a snapshot", hello.to))),
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
) -> Result<mpsc::Sender<(NodeId, Frame)>, Error> {
    let (frames, mut incoming) = mpsc::channel::<(NodeId, Frame)>(CHUNKS_WAITING_MAX);
    std::thread::Builder::new()
        .name("snapshot-receive".into())
        .spawn(move || {
            let mut current: Option<(NodeId, SnapshotReceiver)> = None;
            while let Some((from, frame)) = incoming.blocking_recv() {
                if let Err(error) = take(&mut current, from, frame, &store, &notify) {
                    tracing::warn!(peer = from.0, %error, "a snapshot could not be received");
                    current = None;
                    if error.code == Code::DISK || error.code == Code::DISK_FULL {
                        let _ = notify.send(Notice::Failed(error));
                    }
                }
            }
        })
        .map_err(|error| Error::new(Code::LIMITS, format!("cannot start a thread: {error}")))?;
    Ok(frames)
}

fn take(
    current: &mut Option<(NodeId, SnapshotReceiver)>,
    from: NodeId,
    frame: Frame,
    store: &StoreHandle,
    notify: &mpsc::UnboundedSender<Notice>,
) -> Result<(), Error> {
    match frame {
        Frame::SnapshotChunk(chunk) => {
            // An empty chunk begins anew, whatever an earlier connection left behind.
            if chunk.is_empty() {
                *current = Some((from, store.receive()?));
                return Ok(());
            }
            match current {
                Some((sender, receiver)) if *sender == from => receiver.push(chunk),
                _ => Err(Error::new(Code::BAD_REQUEST, "a piece of a snapshot came that had not begun")),
            }
        }
        Frame::SnapshotEnd(bytes) => {
            let malformed =
                |error| Error::new(Code::BAD_REQUEST, format!("the snapshot's message is malformed: {error}"));
            let message = Message::decode(bytes).map_err(malformed)?;
            let Some((sender, receiver)) = current.take() else {
                return Err(Error::new(Code::BAD_REQUEST, "a snapshot ended that had not begun"));
            };
            if sender != from {
                return Err(Error::new(Code::BAD_REQUEST, "a snapshot ended that another node had begun"));
            }
            let received = receiver.finish()?;
            let _ = notify.send(Notice::SnapshotReceived { from, message, received });
            Ok(())
        }
        _ => Err(Error::new(Code::BAD_REQUEST, "only snapshots come over the snapshot lane")),
    }
}
