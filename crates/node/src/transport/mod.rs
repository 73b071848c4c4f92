//! Connections between the nodes of a cluster.
//!
//! Every node opens its own connections to every peer, one per [`Lane`], and only writes to them; what it receives comes
//! over the connections that peers opened. So a lane is a queue, a task and a socket, and nothing is shared. Queues are
//! bounded in bytes: what does not fit is dropped and reported, which Raft treats as a lost message. A receiver that does
//! not keep up stops reading, so TCP's window and then the sender's queue push back.
//!
//! The functions are generic over the byte stream, so TLS slips in where a connection is made and accepted.

pub mod frame;

use std::{
    collections::{BTreeMap, VecDeque},
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
    sync::{Notify, mpsc},
    task::JoinSet,
};

use buttress_core::{DecodeError, NodeId};

pub use frame::{Frame, Hello, Lane};

/// Raft messages wait here while a peer is slow. Control frames are at most a few hundred bytes each.
const CONTROL_QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// Four of the largest entries; the leader's flow control stays well below.
const DATA_QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// One write takes at most this much, so that a slow peer does not make us hold two copies of the whole queue.
const WRITE_BYTES_MAX: usize = 256 * 1024;
const RECONNECT_MIN: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_millis(500);
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What the transport tells the node.
#[derive(Debug)]
pub enum Event {
    Frame {
        from: NodeId,
        frame: Frame,
    },
    /// Frames to this peer were dropped or its connection broke.
    Unreachable {
        peer: NodeId,
    },
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
        events: mpsc::Sender<Event>,
        snapshots: mpsc::Sender<(NodeId, Frame)>,
    ) -> Self {
        let counters = Arc::new(Counters::default());
        let mut tasks = JoinSet::new();
        let mut queues = BTreeMap::new();
        for (&peer, address) in &peers {
            let lanes =
                [(Lane::Control, CONTROL_QUEUE_BYTES_MAX), (Lane::Data, DATA_QUEUE_BYTES_MAX)].map(|(lane, max)| {
                    let queue = Queue::new(max);
                    let hello = Hello { cluster_id: cluster_id.clone(), from: node, to: peer, lane };
                    tasks.spawn(send(hello, address.clone(), queue.clone(), events.clone(), counters.clone()));
                    queue
                });
            queues.insert(peer, lanes);
        }
        let known: Arc<[NodeId]> = peers.keys().copied().collect();
        tasks.spawn(accept(
            cluster_id,
            node,
            known,
            listener,
            Incoming { events, snapshots, counters: counters.clone() },
        ));
        Self { queues, counters, _tasks: tasks }
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

/// Writes what is queued until the connection breaks.
async fn drain<S: AsyncRead + AsyncWrite + Unpin>(stream: S, queue: &Queue, counters: &Counters) -> std::io::Error {
    let (mut reader, mut writer) = tokio::io::split(stream);
    // The peer never writes here; a read that returns tells us that the connection is gone even while we are idle.
    let mut scratch = [0u8; 1];
    let mut out = BytesMut::new();
    loop {
        out.clear();
        tokio::select! {
            got = reader.read(&mut scratch) => {
                return got.err().unwrap_or_else(|| std::io::ErrorKind::ConnectionReset.into());
            }
            () = queue.take(&mut out) => {}
        }
        counters.sent_bytes.fetch_add(out.len() as u64, Ordering::Relaxed);
        if let Err(error) = writer.write_all(&out).await {
            return error;
        }
        if out.capacity() > 2 * WRITE_BYTES_MAX {
            out = BytesMut::new();
        }
    }
}

/// Where received frames go.
#[derive(Clone)]
struct Incoming {
    events: mpsc::Sender<Event>,
    snapshots: mpsc::Sender<(NodeId, Frame)>,
    counters: Arc<Counters>,
}

impl Incoming {
    /// `false` when nobody takes frames any more.
    async fn take(&self, from: NodeId, lane: Lane, frame: Frame) -> bool {
        match lane {
            Lane::Snapshot => self.snapshots.send((from, frame)).await.is_ok(),
            Lane::Control | Lane::Data => self.events.send(Event::Frame { from, frame }).await.is_ok(),
        }
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

async fn receive<S: AsyncRead + Unpin>(
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
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    loop {
        while let Some(frame) = Frame::decode(&mut buffer)? {
            if !incoming.take(hello.from, hello.lane, frame).await {
                return Ok(());
            }
        }
        if buffer.is_empty() && buffer.capacity() > WRITE_BYTES_MAX * 2 {
            buffer = BytesMut::with_capacity(16 * 1024);
        }
        buffer.reserve(16 * 1024);
        match stream.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return Ok(()),
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
