//! A cluster of real nodes in this process: each on a thread and a runtime of its own, on real disks and sockets, with a
//! proxy on every way from one node to another that can be cut.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use buttress_core::{
    Append, AppendOutcome, Cluster as _, Code, Consistency, Entry, Error, Index, KeyRange, Ledger as _, LogId, NodeId,
    Offset, Put, Receipt, Stream as _, SubmitError, TimeMs, TopicChange,
    entry::TopicSettings,
    ledger::{Member, MemberRole},
};
use buttress_node::{
    runtime::{self, Config, Handle, MemberDone, MemberRequest, Options},
    wal::{
        disk::{Disk, DiskFile, Open},
        faulty::FailingDisk,
    },
};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
};

/// Whatever takes longer than this will not happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// Nodes that may join a world.
const NEWCOMERS_MAX: u64 = 4;

/// Options that make elections, deadlines and checkpoints quick.
pub fn quick() -> Options {
    let mut options = Options {
        tick: Duration::from_millis(20),
        submit_deadline: Duration::from_secs(15),
        retention_every: Duration::from_millis(100),
        ..Options::default()
    };
    options.store.checkpoint_ms = 100;
    options
}

/// Asks until the answer is there.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut pace = tokio::time::interval(Duration::from_millis(3));
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never came to pass that {what}");
        pace.tick().await;
    }
}

/// The way from one node to another.
struct Way {
    address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    open: watch::Sender<bool>,
}

pub struct Running {
    pub handle: Arc<Handle>,
    /// Makes the node's disks fail when it is set to zero.
    pub fuse: Arc<AtomicI64>,
    /// How long its disks take to sync, on top of what they take.
    pub sync_ms: Arc<AtomicU64>,
    kill: oneshot::Sender<()>,
    thread: JoinHandle<Option<Result<(), Error>>>,
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub cluster_id: String,
    pub options: Options,
    ways: BTreeMap<(u64, u64), Way>,
    pub nodes: BTreeMap<u64, Running>,
    /// The founders.
    size: u64,
    pub starts: u64,
    /// By how much the nodes' wall clocks are ahead. It stays over a restart.
    walls: BTreeMap<u64, Arc<AtomicI64>>,
    proxies: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl World {
    /// A cluster of `size` nodes, none of which runs.
    pub fn new(size: u64, options: Options) -> Self {
        let mut ways = BTreeMap::new();
        let mut listeners = Vec::new();
        // From 0 leads the way on which newcomers reach everybody and everybody reaches them.
        for from in 0..=size {
            let last = if from == 0 { size + NEWCOMERS_MAX } else { size };
            for to in (1..=last).filter(|to| *to != from) {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                listener.set_nonblocking(true).unwrap();
                let way = Way {
                    address: listener.local_addr().unwrap(),
                    target: Arc::default(),
                    open: watch::Sender::new(true),
                };
                listeners.push((listener, way.target.clone(), way.open.subscribe()));
                ways.insert((from, to), way);
            }
        }
        let (end, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            current_thread().block_on(async move {
                for (listener, target, open) in listeners {
                    tokio::spawn(proxy(TcpListener::from_std(listener).unwrap(), target, open));
                }
                let _ = ended.await;
            });
        });
        Self {
            dir: tempfile::tempdir().unwrap(),
            cluster_id: "test".into(),
            options,
            ways,
            nodes: BTreeMap::new(),
            size,
            starts: 0,
            walls: BTreeMap::new(),
            proxies: Some((end, thread)),
        }
    }

    pub async fn started(size: u64, options: Options) -> Self {
        let mut world = Self::new(size, options);
        for id in 1..=size {
            world.start(id).await;
        }
        world
    }

    pub fn config(&self, id: u64) -> Config {
        let join = id > self.size;
        let from = if join { 0 } else { id };
        let members = (1..=self.size)
            .chain(join.then_some(id))
            .map(|to| Member {
                id: NodeId(to),
                name: format!("n{to}"),
                peer: self.ways.get(&(from, to)).map_or(String::new(), |way| way.address.to_string()),
                ..Member::default()
            })
            .collect();
        Config {
            cluster_id: self.cluster_id.clone(),
            node: NodeId(id),
            members,
            join,
            data_dir: self.dir.path().join(id.to_string()),
            seed: self.starts * 100 + id,
            client: self.starts * 100 + id,
        }
    }

    /// The last entry in any log of those that run.
    pub async fn last(&self) -> Index {
        let mut last = Index(0);
        for id in self.ids() {
            last = last.max(self.node(id).inspect().await.expect("it runs").consensus.engine.last);
        }
        last
    }

    /// Waits until nobody has the entries up to this one any more: who is not further needs a snapshot, whoever leads.
    pub async fn forget(&self, index: Index) {
        for id in self.ids() {
            let node = self.node(id);
            until("the log before its checkpoint is forgotten", async || {
                (node.inspect().await.ok()?.consensus.engine.first > index).then_some(())
            })
            .await;
        }
    }

    /// Waits until every node's last checkpoint holds all that it has applied.
    pub async fn checkpointed(&self) {
        for id in self.ids() {
            let node = self.node(id);
            until("everything is in a checkpoint", async || {
                let applied = node.inspect().await.ok()?.consensus.engine.applied;
                (node.store().stats().checkpoint_index.load(SeqCst) >= applied.0).then_some(())
            })
            .await;
        }
    }

    /// A newcomer as it asks to join; it is reached as soon as it runs.
    pub fn newcomer(&self, id: u64) -> Member {
        self.config(id).members.into_iter().find(|m| m.id.0 == id).expect("a newcomer names itself")
    }

    /// Lets a node join through `at` and starts it.
    pub async fn join(&mut self, id: u64, at: u64, promote: bool) {
        let request = MemberRequest::Join { member: self.newcomer(id), promote };
        let done = self.node(at).change_members(request).await.expect("it may join");
        assert_eq!(done.id, NodeId(id), "the next id that nobody ever had");
        self.start(id).await;
    }

    /// Waits until node `at` sees these voters and learners.
    pub async fn members_are(&self, at: u64, voters: &[u64], learners: &[u64]) {
        let mut last = String::new();
        let node = self.node(at);
        let seen = tokio::time::timeout(
            PATIENCE,
            until("the members are as they should be", async || {
                let members = node.view().members;
                let of = |role| members.iter().filter(|m| m.role == role).map(|m| m.id.0).collect::<Vec<_>>();
                last = format!("{members:?}");
                (of(MemberRole::Voter) == voters
                    && of(MemberRole::Learner) == learners
                    && of(MemberRole::Leaving).is_empty())
                .then_some(())
            }),
        );
        assert!(seen.await.is_ok(), "not {voters:?} and {learners:?} but {last}");
    }

    /// Starts a node, waiting for an earlier run of it to let go of the directory.
    pub async fn start(&mut self, id: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_start(id).await {
                Ok(()) => return,
                Err(error) if error.code == Code::DIR_LOCKED && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("node {id} cannot start: {error}"),
            }
        }
    }

    pub async fn try_start(&mut self, id: u64) -> Result<(), Error> {
        self.starts += 1;
        let config = self.config(id);
        let fuse = Arc::new(AtomicI64::new(-1));
        let sync_ms = Arc::new(AtomicU64::new(0));
        let (their_fuse, their_ms) = (fuse.clone(), sync_ms.clone());
        let (right, ahead_ms) = (self.options.wall_clock.clone(), self.walls.entry(id).or_default().clone());
        let options = Options {
            wall_clock: Arc::new(move || TimeMs(right().0.saturating_add_signed(ahead_ms.load(SeqCst)))),
            wrap_disk: Some(Arc::new(move |disk| {
                let disk = FailingDisk::new(disk, their_fuse.clone(), false);
                Arc::new(SlowDisk { disk, sync_ms: their_ms.clone() })
            })),
            ..self.options.clone()
        };
        let (ready, is_ready) = oneshot::channel();
        let (kill, killed) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = current_thread();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                match runtime::start_with(config, options, listener) {
                    Ok((handle, running)) => {
                        let _ = ready.send(Ok((handle, address)));
                        tokio::select! {
                            ended = running => Some(ended),
                            _ = killed => None,
                        }
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        None
                    }
                }
            })
        });
        let (handle, address) = is_ready.await.expect("the thread answers")?;
        for way in self.ways.iter().filter(|((_, to), _)| *to == id).map(|(_, way)| way) {
            *way.target.lock().unwrap() = Some(address);
        }
        self.nodes.insert(id, Running { handle, fuse, sync_ms, kill, thread });
        Ok(())
    }

    /// Sets a node's wall clock, which may not run yet, so far ahead of the right time.
    pub fn set_wall(&mut self, id: u64, ahead_ms: i64) {
        self.walls.entry(id).or_default().store(ahead_ms, SeqCst);
    }

    /// Ends a node without giving it a chance to do anything.
    pub fn kill(&mut self, id: u64) {
        let Running { handle, kill, thread, .. } = self.nodes.remove(&id).expect("it runs");
        let _ = kill.send(());
        let ended = thread.join().expect("a node does not panic");
        assert_eq!(ended, None, "it was killed and did not stop");
        drop(handle);
    }

    pub async fn stop(&mut self, id: u64) {
        self.node(id).stop().await;
        self.ended(id).expect("it ran until it was stopped").expect("a clean stop is no error");
    }

    /// Waits for a node that ends by itself.
    pub fn ended(&mut self, id: u64) -> Option<Result<(), Error>> {
        // A node also ends when its last handle is dropped, so that is kept until then.
        let Running { thread, kill, handle, .. } = self.nodes.remove(&id).expect("it runs");
        let deadline = Instant::now() + PATIENCE;
        while !thread.is_finished() {
            assert!(Instant::now() < deadline, "node {id} does not end");
            std::thread::sleep(Duration::from_millis(3));
        }
        drop((kill, handle));
        thread.join().expect("a node does not panic")
    }

    pub fn node(&self, id: u64) -> Arc<Handle> {
        self.nodes[&id].handle.clone()
    }

    pub fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    pub fn address(&self, of: u64) -> SocketAddr {
        let way = self.ways.iter().find(|((_, to), _)| *to == of).expect("somebody reaches it").1;
        way.target.lock().unwrap().expect("it has run")
    }

    /// Cuts or mends the way from one node to another, one direction only.
    pub fn link(&self, from: u64, to: u64, open: bool) {
        self.ways[&(from, to)].open.send_replace(open);
    }

    /// Cuts a node off from all others, or mends that.
    pub fn isolate(&self, id: u64, cut: bool) {
        for (pair, way) in &self.ways {
            if pair.0 == id || pair.1 == id {
                way.open.send_replace(!cut);
            }
        }
    }

    /// The leader that all of `ids` agree on.
    pub async fn leader_of(&self, ids: &[u64]) -> u64 {
        until("a leader is agreed on", async || {
            let views: Vec<_> = ids.iter().map(|id| self.node(*id).view()).collect();
            let leader = views[0].leader?;
            let agreed = views.iter().all(|view| (view.leader, view.term) == (Some(leader), views[0].term));
            (agreed && ids.contains(&leader.0)).then_some(leader.0)
        })
        .await
    }

    pub async fn leader(&self) -> u64 {
        self.leader_of(&self.ids()).await
    }

    pub async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        self.ids().into_iter().find(|id| *id != leader).expect("there are others")
    }

    /// Waits until all nodes that run have applied the same and are the same.
    pub async fn agree(&self) {
        until("all nodes are the same", async || {
            let mut prints = Vec::new();
            for id in self.ids() {
                prints.push(self.node(id).fingerprint().await.unwrap());
            }
            let same = prints.iter().all(|print| print.0 == prints[0].0);
            if same {
                assert!(prints.iter().all(|print| *print == prints[0]), "equal logs gave different states: {prints:?}");
            }
            same.then_some(())
        })
        .await;
    }
}

/// A disk that takes its time to sync.
struct SlowDisk<D> {
    disk: D,
    sync_ms: Arc<AtomicU64>,
}

struct SlowFile {
    file: Arc<dyn DiskFile>,
    sync_ms: Arc<AtomicU64>,
}

impl<D: Disk> Disk for SlowDisk<D> {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn open(&self, path: &str, mode: Open) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile { file: self.disk.open(path, mode)?, sync_ms: self.sync_ms.clone() }))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.create_dir(dir)
    }
    fn remove_dir_all(&self, dir: &str) -> io::Result<()> {
        self.disk.remove_dir_all(dir)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
}

impl DiskFile for SlowFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(buf, at)
    }
    fn write_all_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(buf, at)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        let more = self.sync_ms.load(SeqCst);
        if more > 0 {
            std::thread::sleep(Duration::from_millis(more));
        }
        self.file.sync_data()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for id in self.ids() {
            if !std::thread::panicking() {
                self.kill(id);
            }
        }
        if let Some((end, thread)) = self.proxies.take() {
            let _ = end.send(());
            let _ = thread.join();
        }
    }
}

fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Takes connections and passes bytes on both ways while the way is open; while it is cut, bytes wait, as they do in TCP.
/// Sends leadership somewhere. On a machine with other work the heir may not be far enough in time, which is said and can be
/// asked again.
pub async fn transfer(node: &Handle, to: Option<u64>) -> MemberDone {
    until("leadership is taken over", async || {
        match node.change_members(MemberRequest::Transfer { to: to.map(NodeId), from: None }).await {
            Ok(done) => Some(done),
            Err(error) => {
                assert!(error.retryable, "{error}");
                None
            }
        }
    })
    .await
}

async fn proxy(listener: TcpListener, target: Arc<Mutex<Option<SocketAddr>>>, open: watch::Receiver<bool>) {
    loop {
        let Ok((near, _)) = listener.accept().await else { return };
        let Some(target) = *target.lock().unwrap() else { continue };
        let open = open.clone();
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(target).await else { return };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            tokio::join!(pump(near_read, far_write, open.clone()), pump(far_read, near_write, open));
        });
    }
}

async fn pump<R: AsyncReadExt + Unpin, W: AsyncWriteExt + Unpin>(mut from: R, mut to: W, open: watch::Receiver<bool>) {
    let mut open = open;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let got = from.read(&mut buffer).await.unwrap_or(0);
        if open.wait_for(|open| *open).await.is_err() {
            return;
        }
        if got == 0 {
            // What is left for the other side still goes there.
            let _ = to.shutdown().await;
            return;
        }
        if to.write_all(&buffer[..got]).await.is_err() {
            return;
        }
    }
}

pub fn put(key: &str, value: &str) -> Entry {
    let put = Put { key: Bytes::from(key.to_owned()), value: Some(Bytes::from(value.to_owned())), lease: None };
    Entry { puts: vec![put], ..Entry::default() }
}

pub async fn must(handle: &Handle, entry: Entry) -> Receipt {
    handle.submit(entry).await.unwrap_or_else(|error| panic!("refused: {error:?}"))
}

/// What the key holds, by a linearizable read.
pub async fn get(handle: &Handle, key: &str) -> Option<String> {
    value(handle, key, Consistency::Linearizable).await
}

pub async fn value(handle: &Handle, key: &str, consistency: Consistency) -> Option<String> {
    let found = handle.read(KeyRange::key(key.to_owned()), 1, consistency).await.expect("a read is answered");
    found.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

pub async fn keys(handle: &Handle, prefix: &str) -> BTreeMap<String, String> {
    let range = KeyRange::prefix(prefix.to_owned());
    let found = handle.read(range, usize::MAX, Consistency::Linearizable).await.expect("a read is answered");
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    found.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect()
}

/// A record batch as far as the node looks at it: a header and a payload.
pub fn batch(log: LogId, records: u32, payload: &[u8]) -> Append {
    let mut bytes = vec![0; 61];
    bytes.extend_from_slice(payload);
    let len = bytes.len() as i32 - 12;
    bytes[8..12].copy_from_slice(&len.to_be_bytes());
    bytes[23..27].copy_from_slice(&(records as i32 - 1).to_be_bytes());
    Append { log, records, max_timestamp_ms: 0, sequence: None, batch: bytes.into() }
}

pub fn append(log: LogId, payload: &[u8]) -> Entry {
    Entry { appends: vec![batch(log, 1, payload)], ..Entry::default() }
}

pub fn base_offset(receipt: &Receipt) -> Offset {
    match receipt.appends[..] {
        [AppendOutcome::Appended { base_offset }] => base_offset,
        ref other => panic!("not one append: {other:?}"),
    }
}

pub async fn create_topic(handle: &Handle, name: &str, settings: TopicSettings) -> LogId {
    let change = TopicChange::Create { name: name.into(), id: [7; 16], partitions: 1, settings };
    let receipt = must(handle, Entry { topics: vec![change], ..Entry::default() }).await;
    receipt.created[0].1[0]
}

/// Payloads of all batches from the log's start on, by offset.
pub async fn records(handle: &Handle, log: LogId) -> BTreeMap<i64, Vec<u8>> {
    let mut found = BTreeMap::new();
    let topic = handle.topics().into_iter().find(|t| t.partitions[0].log == log).expect("the topic is there");
    let mut at = topic.partitions[0].start;
    while at < topic.partitions[0].end {
        let fetched = handle.fetch(log, at, 1 << 20, 0).await.unwrap();
        for batch in fetched.batches {
            assert_eq!(batch.base_offset, at, "no gap and no overlap");
            at = Offset(batch.last_offset.0 + 1);
            found.insert(batch.base_offset.0, batch.bytes[61..].to_vec());
        }
    }
    found
}

pub fn set_fuse(world: &World, id: u64, left: i64) {
    world.nodes[&id].fuse.store(left, SeqCst);
}

pub fn code(result: Result<Receipt, SubmitError>) -> Code {
    result.expect_err("it cannot succeed").code()
}

/// A figure of the node's `/metrics`.
pub fn metric(handle: &Handle, name: &str) -> u64 {
    let mut text = String::new();
    handle.render_metrics(&mut text);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("there is no {name}")).parse().unwrap()
}
