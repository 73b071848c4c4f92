//! Connections between the nodes of a cluster.
//!
//! Every node opens its own connections to every peer, one per [`Lane`], and sends over those alone; what it receives
//! comes over the connections that peers opened. So a lane is a queue, a task and a socket, and nothing is shared, not even
//! at the receiver: control frames have an [`Inbox`] of their own. Queues are bounded in bytes: what does not fit is
//! dropped and reported, which Raft treats as a lost message. A receiver that does not keep up stops reading, so TCP's
//! window and then the sender's queue push back.
//!
//! The receiver of a lane writes a byte or two a second. A sender that hears none for a while connects anew: a link that was cut
//! and comes back would else be as silent as TCP's last pause between two attempts was long. Over the snapshot lane the one
//! byte says that the snapshot was taken; over the control lane it says how long the receiver's disk takes to sync and
//! which entries it reads ([`signal`]); and before a connection is closed for good it says why.
//!
//! Who may connect follows the log ([`Roll`]). A node whose log ends early may not know a member that joined later, and
//! may need it to learn the rest: whoever has a higher id than it ever saw and names its address is a *guest*, heard and
//! answered like a member. Whoever was removed is told so, by anybody; whoever was never added is told so by the leader,
//! who knows.
//!
//! The functions are generic over the byte stream, so TLS slips in where a connection is made and accepted.

pub mod frame;
pub mod fuzz;
pub mod signal;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::ErrorKind,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{AbortHandle, JoinSet},
};

use buttress_core::{DecodeError, NodeId};

pub use frame::{Frame, Hello, Lane};
pub use signal::{Signal, Verdict};

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
/// How long a peer that is told to go may take to read it.
const LAST_WORD_MAX: Duration = Duration::from_secs(1);

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
    /// A node that our log does not name yet connected, and is reached there.
    Guest { peer: NodeId, address: String },
    /// This peer does not count us among the members.
    Told { peer: NodeId, verdict: Verdict },
    /// How long this peer's disk takes to sync, in microseconds.
    Sync { peer: NodeId, us: u64 },
    /// The newest format of entries that this peer reads.
    Reads { peer: NodeId, format: u8 },
}

/// Whose connections are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roll {
    pub members: BTreeSet<NodeId>,
    /// The highest id that the log knows to be or have been a member's; 0 while it knows none.
    pub highest: NodeId,
    /// This node leads, and its log cannot be behind: who is not on the roll is no member.
    pub complete: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Member,
    Guest,
    Out(Verdict),
    /// Its membership cannot be told, and it cannot be answered.
    Stranger,
}

impl Roll {
    pub fn standing(&self, id: NodeId, has_address: bool) -> Standing {
        if self.members.contains(&id) {
            Standing::Member
        } else if id <= self.highest {
            Standing::Out(Verdict::Removed)
        } else if self.complete {
            Standing::Out(Verdict::Unknown)
        } else if has_address {
            Standing::Guest
        } else {
            Standing::Stranger
        }
    }
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
    cluster_id: String,
    node: NodeId,
    /// What a hello says of where we are reached.
    address: Option<String>,
    peers: BTreeMap<NodeId, Peer>,
    events: mpsc::Sender<Event>,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Peer {
    address: String,
    lanes: [Arc<Queue>; 2],
    tasks: [AbortHandle; 2],
}

/// What the tasks of all connections look at.
struct Shared {
    counters: Arc<Counters>,
    roll: RwLock<Roll>,
    /// The byte that receivers of the control lane write.
    alive: AtomicU8,
    /// The one behind it.
    reads: AtomicU8,
    /// The connection that counts, per peer and lane; telling the one before closes it.
    newest: Mutex<BTreeMap<(NodeId, Lane), Arc<Closing>>>,
}

/// Tells a connection to close, and what to say before.
#[derive(Default)]
struct Closing {
    last_word: AtomicU8,
    told: Notify,
}

impl Closing {
    fn close(&self, verdict: Option<Verdict>) {
        self.last_word.store(verdict.map_or(signal::ALIVE, Verdict::byte), Ordering::Release);
        self.told.notify_one();
    }
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
    /// peer address; `address` is told to peers whose log may not have it.
    pub fn start(
        cluster_id: String,
        node: NodeId,
        address: Option<String>,
        peers: BTreeMap<NodeId, String>,
        listener: TcpListener,
        snapshots: mpsc::Sender<SnapshotFrame>,
    ) -> (Self, Inbox) {
        let (control, control_inbox) = mpsc::channel(CONTROL_FRAMES_MAX);
        let (data, data_inbox) = mpsc::channel(DATA_FRAMES_MAX);
        let roll = Roll { members: peers.keys().copied().collect(), ..Roll::default() };
        let shared = Arc::new(Shared {
            counters: Arc::default(),
            roll: RwLock::new(roll),
            alive: AtomicU8::new(signal::ALIVE),
            reads: AtomicU8::new(signal::ALIVE),
            newest: Mutex::default(),
        });
        let mut transport = Self {
            cluster_id: cluster_id.clone(),
            node,
            address,
            peers: BTreeMap::new(),
            events: control.clone(),
            shared: shared.clone(),
            tasks: JoinSet::new(),
        };
        transport.set_peers(&peers);
        let room = Arc::new(Semaphore::new(DATA_BYTES_MAX));
        let incoming = Incoming { control, data, room, snapshots, shared };
        transport.tasks.spawn(accept(cluster_id, node, listener, incoming));
        (transport, Inbox { control: control_inbox, data: data_inbox })
    }

    /// Opens connections to peers that are new or have moved, and drops those to peers that are no longer named. A peer
    /// without an address cannot be reached.
    pub fn set_peers(&mut self, peers: &BTreeMap<NodeId, String>) {
        self.peers.retain(|id, peer| {
            let kept = peers.get(id) == Some(&peer.address);
            if !kept {
                peer.tasks.iter().for_each(AbortHandle::abort);
            }
            kept
        });
        while self.tasks.try_join_next().is_some() {}
        for (id, address) in peers.iter().filter(|(_, address)| !address.is_empty()) {
            if *id == self.node || self.peers.contains_key(id) {
                continue;
            }
            let lanes = [CONTROL_QUEUE_BYTES_MAX, DATA_QUEUE_BYTES_MAX].map(Queue::new);
            let tasks = [Lane::Control, Lane::Data].map(|lane| {
                let queue = lanes[lane as usize].clone();
                let hello = self.hello(*id, lane);
                let (events, counters) = (self.events.clone(), self.counters());
                self.tasks.spawn(send(hello, address.clone(), queue, events, counters))
            });
            self.peers.insert(*id, Peer { address: address.clone(), lanes, tasks });
        }
    }

    /// Follows the log: who is not on the roll any more is told so and not heard any more.
    pub fn set_roll(&self, roll: Roll) {
        if *self.shared.roll.read().expect("no holder panics") == roll {
            return;
        }
        *self.shared.roll.write().expect("no holder panics") = roll.clone();
        self.shared.newest.lock().expect("no holder panics").retain(|(peer, _), closing| {
            // Guests have said where they are reached, or they would not be here.
            match roll.standing(*peer, true) {
                Standing::Out(verdict) => {
                    closing.close(Some(verdict));
                    false
                }
                Standing::Member | Standing::Guest | Standing::Stranger => true,
            }
        });
    }

    /// Tells peers how long our disk takes to sync.
    pub fn set_sync(&self, us: Option<u64>) {
        self.shared.alive.store(us.map_or(signal::ALIVE, signal::sync), Ordering::Relaxed);
    }

    /// Tells peers which entries we read.
    pub fn set_reads(&self, format: u8) {
        self.shared.reads.store(signal::reads(format), Ordering::Relaxed);
    }

    /// How a connection to this peer opens.
    pub fn hello(&self, to: NodeId, lane: Lane) -> Hello {
        Hello { cluster_id: self.cluster_id.clone(), from: self.node, to, lane, address: self.address.clone() }
    }

    pub fn address_of(&self, peer: NodeId) -> Option<&str> {
        self.peers.get(&peer).map(|peer| peer.address.as_str())
    }

    /// Queues a frame. `false` when it was dropped because the queue is full or the peer is unknown.
    pub fn send(&self, to: NodeId, lane: Lane, frame: Frame) -> bool {
        let queue = match (self.peers.get(&to), lane) {
            (Some(peer), Lane::Control | Lane::Data) => &peer.lanes[lane as usize],
            _ => return false,
        };
        let taken = queue.push(frame);
        if !taken {
            self.shared.counters.dropped_frames.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
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
                let told = |signal| match signal {
                    Signal::Told(verdict) => Some(Event::Told { peer: hello.to, verdict }),
                    Signal::Sync(us) => Some(Event::Sync { peer: hello.to, us }),
                    Signal::Reads(format) => Some(Event::Reads { peer: hello.to, format }),
                    Signal::Alive => None,
                };
                let error = drain(stream, &queue, &counters, |signal| {
                    if let Some(event) = told(signal) {
                        // Where there is no room, the next signal comes soon.
                        let _ = events.try_send(event);
                    }
                })
                .await;
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
async fn drain<S: AsyncRead + AsyncWrite>(
    stream: S,
    queue: &Queue,
    counters: &Counters,
    on_signal: impl Fn(Signal),
) -> std::io::Error {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let listen = async {
        let mut scratch = [0u8; 16];
        loop {
            match tokio::time::timeout(SILENCE_MAX, reader.read(&mut scratch)).await {
                Ok(Ok(0)) => return ErrorKind::ConnectionReset.into(),
                Ok(Ok(read)) => {
                    for byte in &scratch[..read] {
                        on_signal(Signal::of(*byte));
                    }
                }
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
    shared: Arc<Shared>,
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
    fn replace(&self, from: NodeId, lane: Lane) -> Arc<Closing> {
        let closing = Arc::new(Closing::default());
        let mut newest = self.shared.newest.lock().expect("no holder panics");
        if let Some(before) = newest.insert((from, lane), closing.clone()) {
            before.close(None);
        }
        closing
    }
}

async fn accept(cluster_id: String, node: NodeId, listener: TcpListener, incoming: Incoming) {
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
            incoming.shared.counters.refused_connections.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let (cluster_id, incoming) = (cluster_id.clone(), incoming.clone());
        connections.spawn(async move {
            if let Err(error) = receive(stream, &cluster_id, node, &incoming).await {
                incoming.shared.counters.refused_connections.fetch_add(1, Ordering::Relaxed);
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
    #[error("node {0} was told that it is no member: {1:?}")]
    Out(NodeId, Verdict),
}

async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    cluster_id: &str,
    node: NodeId,
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
    if hello.from == node {
        return Err(ReceiveError::Stranger(hello.from));
    }
    // Registered before the roll is looked at: a change of it meanwhile finds the connection.
    let closing = incoming.replace(hello.from, hello.lane);
    let standing = incoming.shared.roll.read().expect("no holder panics").standing(hello.from, hello.address.is_some());
    match (standing, &hello.address) {
        (Standing::Member, _) => {}
        (Standing::Guest, Some(address)) => {
            let event = Event::Guest { peer: hello.from, address: address.clone() };
            if incoming.control.send(event).await.is_err() {
                return Ok(());
            }
        }
        (Standing::Out(verdict), _) => {
            say_last(&mut stream, verdict).await;
            return Err(ReceiveError::Out(hello.from, verdict));
        }
        (Standing::Stranger | Standing::Guest, _) => return Err(ReceiveError::Stranger(hello.from)),
    }
    let (mut reader, mut writer) = tokio::io::split(stream);
    let shown = [&incoming.shared.alive, &incoming.shared.reads];
    let alive = || match hello.lane {
        Lane::Control => shown.map(|byte| byte.load(Ordering::Relaxed)),
        Lane::Data | Lane::Snapshot => [signal::ALIVE; 2],
    };
    tokio::select! {
        whole_snapshot = read_frames(&mut reader, &hello, incoming) => {
            if whole_snapshot? {
                // The sender counts its snapshot as arrived only when it reads this; if it cannot, it sends it again.
                let _ = writer.write_all(&[signal::TAKEN]).await;
            }
        }
        () = show_alive(&mut writer, hello.lane, alive) => {}
        () = closing.told.notified() => {
            if let Signal::Told(verdict) = Signal::of(closing.last_word.load(Ordering::Acquire)) {
                say_last(&mut reader.unsplit(writer), verdict).await;
            }
        }
    }
    Ok(())
}

/// Tells a peer why its connection ends. What it has sent meanwhile is read and thrown away, for a socket that is closed
/// with bytes unread takes back what it said.
async fn say_last<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, verdict: Verdict) {
    let exchange = async {
        stream.write_all(&[verdict.byte()]).await?;
        stream.shutdown().await?;
        let mut scratch = [0; 4096];
        while stream.read(&mut scratch).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LAST_WORD_MAX, exchange).await;
}

/// Writes two bytes now and then until the connection breaks.
async fn show_alive<W: AsyncWrite + Unpin>(writer: &mut W, lane: Lane, alive: impl Fn() -> [u8; 2]) {
    if lane == Lane::Snapshot {
        return std::future::pending().await;
    }
    while writer.write_all(&alive()).await.is_ok() {
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
                incoming.shared.counters.received_bytes.fetch_add(read as u64, Ordering::Relaxed);
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
