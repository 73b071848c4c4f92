//! Connections between the nodes of a cluster.
//!
//! Every node opens its own connections to every peer, one per [`Lane`], and sends over those alone; what it receives
//! comes over the connections that peers opened. So a lane is a queue, a task and a socket, and nothing is shared, not even
//! at the receiver: control frames have an [`Inbox`] of their own. Queues are bounded in bytes: what does not fit is
//! dropped and reported, which Raft treats as a lost message. A receiver that does not keep up stops reading, so TCP's
//! window and then the sender's queue push back.
//!
//! The receiver of a lane writes one byte a second. A sender that hears none for a while connects anew: a link that was cut
//! and comes back would else be as silent as TCP's last pause between two attempts was long. Over the snapshot lane the one
//! byte says that the snapshot was taken.
//!
//! The functions are generic over the byte stream, so TLS slips in where a connection is made and accepted.

pub mod frame;
pub mod fuzz;

use std::{
    collections::{BTreeMap, VecDeque},
    io::ErrorKind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
};

use buttress_core::{DecodeError, NodeId};

pub use frame::{Frame, Hello, Lane};

/// Raft messages wait here while a peer is slow. Control frames are at most a few hundred bytes each.
const CONTROL_QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// Entries in one consensus message, but for a single larger one: the engine merges what it sends a follower in one step
/// without regard to size, and a message that fits no frame would be sent again for ever.
pub const APPEND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Four of the largest entries; the leader's flow control stays well below.
const DATA_QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// One write takes at most this much, so that a slow peer does not make us hold two copies of the whole queue.
const WRITE_BYTES_MAX: usize = 256 * 1024;
const RECONNECT_MIN: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_millis(500);
/// How often the receiver of a lane shows that it is there.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// A lane whose receiver shows nothing for this long is connected anew.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Control frames that wait for the node's next turn; the connections push back beyond.
const CONTROL_FRAMES_MAX: usize = 4096;
/// Data frames that wait for the node's next turn, and their bytes: two of the largest frames fit.
const DATA_FRAMES_MAX: usize = 1024;
const DATA_BYTES_MAX: usize = 2 * frame::FRAME_BYTES_MAX;
/// Connections that are open at once. A peer has three, and for a moment those that they replace; the rest is for strangers
/// until their hello is overdue.
const CONNECTIONS_MAX: usize = 256;
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What the transport tells the node.
#[derive(Debug)]
pub enum Event {
    Frame {
        from: NodeId,
        frame: Frame,
        /// What the frame takes of the inbox's bytes, until the event is dropped.
        room: Option<OwnedSemaphorePermit>,
    },
    /// Frames to this peer were dropped or its connection broke.
    Unreachable { peer: NodeId },
}

/// What has come and waits for the node's task. Whoever takes from it looks at `control` first.
pub struct Inbox {
    pub control: mpsc::Receiver<Event>,
    pub data: mpsc::Receiver<Event>,
}

/// A frame of the snapshot lane. The connection goes on reading, or says that the snapshot was taken, when `taken` is
/// answered, and breaks off when it is dropped.
pub struct SnapshotFrame {
    pub from: NodeId,
    pub frame: Frame,
    pub taken: oneshot::Sender<()>,
}

/// Figures for `/metrics`.
#[derive(Debug, Default)]
pub struct Counters {
    pub sent_bytes: AtomicU64,
    pub received_bytes: AtomicU64,
    pub dropped_frames: AtomicU64,
    pub connects: AtomicU64,
    pub refused_connections: AtomicU64,
}

/// The sending side: one bounded queue per peer and lane.
pub struct Transport {
    queues: BTreeMap<NodeId, [Arc<Queue>; 2]>,
    counters: Arc<Counters>,
    _tasks: JoinSet<()>,
}

struct Queue {
    frames: Mutex<(VecDeque<Frame>, usize)>,
    bytes_max: usize,
    ready: Notify,
}

impl Queue {
    fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { frames: Mutex::default(), bytes_max, ready: Notify::new() })
    }

    fn push(&self, frame: Frame) -> bool {
        let mut guard = self.frames.lock().expect("no holder panics");
        let (frames, bytes) = &mut *guard;
        if *bytes + frame.size() > self.bytes_max && !frames.is_empty() {
            return false;
        }
        *bytes += frame.size();
        frames.push_back(frame);
        drop(guard);
        self.ready.notify_one();
        true
    }

    /// Encodes what is queued, up to about `WRITE_BYTES_MAX`; waits until there is something.
    async fn take(&self, out: &mut BytesMut) {
        loop {
            {
                let mut guard = self.frames.lock().expect("no holder panics");
                let (frames, bytes) = &mut *guard;
                while out.len() < WRITE_BYTES_MAX {
                    let Some(frame) = frames.pop_front() else { break };
                    *bytes -= frame.size();
                    frame.encode(out);
                }
            }
            if !out.is_empty() {
                return;
            }
            self.ready.notified().await;
        }
    }

    fn clear(&self) -> usize {
        let mut guard = self.frames.lock().expect("no holder panics");
        let dropped = guard.0.len();
        *guard = (VecDeque::new(), 0);
        dropped
    }
}

impl Transport {
    /// Starts a sending task per peer and lane, and one that accepts peers. `peers` maps every other member to its
    /// peer address.
    pub fn start(
        cluster_id: String,
        node: NodeId,
        peers: BTreeMap<NodeId, String>,
        listener: TcpListener,
        snapshots: mpsc::Sender<SnapshotFrame>,
    ) -> (Self, Inbox) {
        let counters = Arc::new(Counters::default());
        let (control, control_inbox) = mpsc::channel(CONTROL_FRAMES_MAX);
        let (data, data_inbox) = mpsc::channel(DATA_FRAMES_MAX);
        let mut tasks = JoinSet::new();
        let mut queues = BTreeMap::new();
        for (&peer, address) in &peers {
            let lanes =
                [(Lane::Control, CONTROL_QUEUE_BYTES_MAX), (Lane::Data, DATA_QUEUE_BYTES_MAX)].map(|(lane, max)| {
                    let queue = Queue::new(max);
                    let hello = Hello { cluster_id: cluster_id.clone(), from: node, to: peer, lane };
                    tasks.spawn(send(hello, address.clone(), queue.clone(), control.clone(), counters.clone()));
                    queue
                });
            queues.insert(peer, lanes);
        }
        let known: Arc<[NodeId]> = peers.keys().copied().collect();
        let incoming = Incoming {
            control,
            data,
            room: Arc::new(Semaphore::new(DATA_BYTES_MAX)),
            snapshots,
            newest: Arc::default(),
            counters: counters.clone(),
        };
        tasks.spawn(accept(cluster_id, node, known, listener, incoming));
        (Self { queues, counters, _tasks: tasks }, Inbox { control: control_inbox, data: data_inbox })
    }

    /// Queues a frame. `false` when it was dropped because the queue is full or the peer is unknown.
    pub fn send(&self, to: NodeId, lane: Lane, frame: Frame) -> bool {
        let queue = match (self.queues.get(&to), lane) {
            (Some([control, _]), Lane::Control) => control,
            (Some([_, data]), Lane::Data) => data,
            _ => return false,
        };
        let taken = queue.push(frame);
        if !taken {
            self.counters.dropped_frames.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

async fn send(hello: Hello, address: String, queue: Arc<Queue>, events: mpsc::Sender<Event>, counters: Arc<Counters>) {
    let mut pause = RECONNECT_MIN;
    loop {
        match connect(&hello, &address).await {
            Ok(stream) => {
                pause = RECONNECT_MIN;
                counters.connects.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(peer = hello.to.0, lane = ?hello.lane, "peer connected");
                let error = drain(stream, &queue, &counters).await;
                tracing::info!(peer = hello.to.0, lane = ?hello.lane, %error, "peer connection lost");
            }
            Err(error) => tracing::debug!(peer = hello.to.0, %address, %error, "peer cannot be reached"),
        }
        // What waited for a connection that broke is stale: Raft resends what is still wanted.
        let dropped = queue.clear();
        counters.dropped_frames.fetch_add(dropped as u64, Ordering::Relaxed);
        if events.send(Event::Unreachable { peer: hello.to }).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_MAX);
    }
}

/// Connects and says hello.
pub async fn connect(hello: &Hello, address: &str) -> std::io::Result<TcpStream> {
    let connecting = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&hello.encode()).await?;
        Ok(stream)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// Writes what is queued until the connection breaks or its receiver falls silent.
async fn drain<S: AsyncRead + AsyncWrite>(stream: S, queue: &Queue, counters: &Counters) -> std::io::Error {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let listen = async {
        let mut scratch = [0u8; 16];
        loop {
            match tokio::time::timeout(SILENCE_MAX, reader.read(&mut scratch)).await {
                Ok(Ok(0)) => return ErrorKind::ConnectionReset.into(),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error,
                Err(_) => return ErrorKind::TimedOut.into(),
            }
        }
    };
    let write = async {
        let mut out = BytesMut::new();
        loop {
            out.clear();
            queue.take(&mut out).await;
            counters.sent_bytes.fetch_add(out.len() as u64, Ordering::Relaxed);
            if let Err(error) = writer.write_all(&out).await {
                return error;
            }
            if out.capacity() > 2 * WRITE_BYTES_MAX {
                out = BytesMut::new();
            }
        }
    };
    tokio::select! {
        error = listen => error,
        error = write => error,
    }
}

/// Where received frames go.
#[derive(Clone)]
struct Incoming {
    control: mpsc::Sender<Event>,
    data: mpsc::Sender<Event>,
    /// Bytes that may wait in `data`.
    room: Arc<Semaphore>,
    snapshots: mpsc::Sender<SnapshotFrame>,
    /// The connection that counts, per peer and lane; telling the one before closes it.
    newest: Arc<Mutex<BTreeMap<(NodeId, Lane), Arc<Notify>>>>,
    counters: Arc<Counters>,
}

impl Incoming {
    /// `false` when nobody takes frames of this connection any more.
    async fn take(&self, from: NodeId, lane: Lane, frame: Frame) -> bool {
        match lane {
            Lane::Control => self.control.send(Event::Frame { from, frame, room: None }).await.is_ok(),
            Lane::Data => {
                let bytes = u32::try_from(frame.size()).expect("a frame is at most 16 MiB");
                let Ok(room) = self.room.clone().acquire_many_owned(bytes).await else { return false };
                self.data.send(Event::Frame { from, frame, room: Some(room) }).await.is_ok()
            }
            Lane::Snapshot => {
                let (taken, answer) = oneshot::channel();
                self.snapshots.send(SnapshotFrame { from, frame, taken }).await.is_ok() && answer.await.is_ok()
            }
        }
    }

    /// Makes a connection the one that counts. A peer that lost its connection may be back long before we hear of it.
    fn replace(&self, from: NodeId, lane: Lane) -> Arc<Notify> {
        let replaced = Arc::new(Notify::new());
        let mut newest = self.newest.lock().expect("no holder panics");
        if let Some(before) = newest.insert((from, lane), replaced.clone()) {
            before.notify_one();
        }
        replaced
    }
}

async fn accept(cluster_id: String, node: NodeId, known: Arc<[NodeId]>, listener: TcpListener, incoming: Incoming) {
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting peers failed");
                tokio::time::sleep(RECONNECT_MAX).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            incoming.counters.refused_connections.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let (cluster_id, known, incoming) = (cluster_id.clone(), known.clone(), incoming.clone());
        connections.spawn(async move {
            if let Err(error) = receive(stream, &cluster_id, node, &known, &incoming).await {
                incoming.counters.refused_connections.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "peer connection refused");
            }
        });
    }
}

#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error("no hello came")]
    NoHello,
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    #[error("the peer belongs to cluster {0:?}")]
    OtherCluster(String),
    #[error("the peer {from} wanted node {to}")]
    NotForUs { from: NodeId, to: NodeId },
    #[error("node {0} is not a member")]
    Stranger(NodeId),
}

async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    cluster_id: &str,
    node: NodeId,
    known: &[NodeId],
    incoming: &Incoming,
) -> Result<(), ReceiveError> {
    let hello =
        tokio::time::timeout(HELLO_TIMEOUT, read_hello(&mut stream)).await.map_err(|_| ReceiveError::NoHello)??;
    if hello.cluster_id != cluster_id {
        return Err(ReceiveError::OtherCluster(hello.cluster_id));
    }
    if hello.to != node {
        return Err(ReceiveError::NotForUs { from: hello.from, to: hello.to });
    }
    if !known.contains(&hello.from) {
        return Err(ReceiveError::Stranger(hello.from));
    }
    let replaced = incoming.replace(hello.from, hello.lane);
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::select! {
        whole_snapshot = read_frames(&mut reader, &hello, incoming) => {
            if whole_snapshot? {
                // The sender counts its snapshot as arrived only when it reads this; if it cannot, it sends it again.
                let _ = writer.write_all(&[1]).await;
            }
        }
        () = show_alive(&mut writer, hello.lane) => {}
        () = replaced.notified() => {}
    }
    Ok(())
}

/// Writes a byte now and then until the connection breaks.
async fn show_alive<W: AsyncWrite + Unpin>(writer: &mut W, lane: Lane) {
    if lane == Lane::Snapshot {
        return std::future::pending().await;
    }
    while writer.write_all(&[0]).await.is_ok() {
        tokio::time::sleep(ALIVE_EVERY).await;
    }
}

/// Hands frames on until the connection ends, or until the end of a snapshot was taken: that is when it gives `true`.
async fn read_frames<R: AsyncRead + Unpin>(
    reader: &mut R,
    hello: &Hello,
    incoming: &Incoming,
) -> Result<bool, ReceiveError> {
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    loop {
        while let Some(frame) = Frame::decode(&mut buffer)? {
            let last = matches!(frame, Frame::SnapshotEnd(_)) && hello.lane == Lane::Snapshot;
            if !incoming.take(hello.from, hello.lane, frame).await {
                return Ok(false);
            }
            if last {
                return Ok(true);
            }
        }
        if buffer.is_empty() && buffer.capacity() > WRITE_BYTES_MAX * 2 {
            buffer = BytesMut::with_capacity(16 * 1024);
        }
        buffer.reserve(16 * 1024);
        match reader.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return Ok(false),
            Ok(read) => {
                incoming.counters.received_bytes.fetch_add(read as u64, Ordering::Relaxed);
            }
        }
    }
}

async fn read_hello<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Hello, ReceiveError> {
    let mut prefix = [0u8; 2];
    stream.read_exact(&mut prefix).await.map_err(|_| ReceiveError::NoHello)?;
    let mut body = vec![0u8; Hello::length(prefix)?];
    stream.read_exact(&mut body).await.map_err(|_| ReceiveError::NoHello)?;
    Ok(Hello::decode(Bytes::from(body))?)
}
