//! The Kafka edge: stock Kafka clients produce to and consume from the log.
//!
//! The way of a request: a connection's task ([`connection`]) reads one bounded frame, `buttress_wire::kafka` decodes
//! it, the API's file here answers it against the [`Ledger`], the [`Stream`] and the [`Cluster`], and the answer goes
//! out in one vectored write. Record batches are checked (header, CRC, the framing of uncompressed records) and are
//! otherwise opaque; a Produce of several partitions becomes one entry where it fits.
//!
//! Who answers what: every partition is led by the cluster's leader, so a follower answers Produce, Fetch and
//! ListOffsets with NOT_LEADER_OR_FOLLOWER and names the leader where the version can. The leader coordinates groups as well,
//! so a follower answers what is asked of a group with NOT_COORDINATOR. Everything else is answered by any node: the ledger
//! brings proposals to the leader by itself.
//!
//! Idempotence: a producer id is drawn from a counter in the key space, guarded by compare-and-swap, and a batch's
//! producer id, epoch and base sequence become the append's [`Sequence`](buttress_core::Sequence). So the log itself
//! refuses repetitions and gaps, and a failover forgets nothing. Transactions are not served.
//!
//! Consumer groups: see [`groups`].
//!
//! This module never buffers acknowledged data and never acknowledges what the ledger has not.

mod api_versions;
mod cluster;
mod configs;
mod connection;
mod counters;
mod epochs;
mod error;
mod fetch;
mod find_coordinator;
mod frame;
pub mod fuzz;
mod groups;
mod list_offsets;
mod metadata;
mod produce;
mod producer_id;
mod records;
mod sasl;
mod topics;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress_core::{
    Cluster, Consistency, KeyRange, Ledger, NodeId, Stream,
    entry::TopicSettings,
    ledger::{ClusterView, PartitionView, TopicView},
    limits::{ENTRY_BYTES_MAX, PARTITIONS_PER_TOPIC_MAX, RECORD_BATCH_BYTES_MAX},
};
use buttress_wire::kafka::{
    ErrorCode, Uuid,
    fetch::{LeaderIdAndEpoch, NodeEndpoint},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};

pub use counters::{Counters, Sample};

/// Largest request frame: two full entries, so that whatever fits one entry fits one request with its names.
pub const FRAME_BYTES_MAX: usize = 2 * ENTRY_BYTES_MAX;
/// Frames up to this size are read without asking for room; 12,288 connections × 16 KiB are 192 MiB.
pub const FRAME_BYTES_FREE: usize = 16 * 1024;
/// Room for larger frames, over all connections: eight of the largest.
pub const FRAME_BYTES_IN_FLIGHT_MAX: usize = 8 * FRAME_BYTES_MAX;
/// Produce requests of one connection that are in the log at the same time. An idempotent producer keeps five.
pub const PRODUCES_IN_FLIGHT_MAX: usize = 16;
/// Record bytes of one Fetch response, beyond which only a batch that was begun is finished.
pub const FETCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest wait of a Fetch, whatever it asks for. Clients ask for half a second.
pub const FETCH_WAIT_MS_MAX: u64 = 30_000;
/// Topic ids whose names are remembered; when there are more, all are looked up again.
const TOPIC_NAMES_MAX: usize = 10_000;
/// Bytes of a text that is sent with an error.
const ERROR_MESSAGE_BYTES_MAX: usize = 1024;

/// What can be set.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connections beyond this are closed at once.
    pub connections_max: usize,
    /// A connection without a request for so long is closed. Kafka's `connections.max.idle.ms`.
    pub idle_timeout: Duration,
    /// A frame must arrive within this time of its first byte, and a response must be taken within it.
    pub transfer_timeout: Duration,
    /// Bytes of Produce requests on their way into the log, over all connections; a connection that brings more is not read
    /// until there is room. What a commit takes while the disk syncs: 20 ms at 100 MB/s. Each byte is in a leader's memory three
    /// times meanwhile: as it came, in the entry, and as the log writes it.
    pub produce_bytes_in_flight_max: usize,
    /// Largest batch. Kafka's `max.message.bytes`.
    pub message_bytes_max: usize,
    /// Whether a Metadata request that allows it creates the topics it names. Kafka's `auto.create.topics.enable`.
    pub auto_create_topics: bool,
    /// Partitions of a topic whose creator does not say. Kafka's `num.partitions`.
    pub default_partitions: u32,
    /// Settings of a topic whose creator does not say. Kafka's `log.retention.*`.
    pub default_settings: TopicSettings,
    /// Batches that claim to come from further ahead than this are refused, because they would stand in the way of
    /// retention. Kafka's `message.timestamp.after.max.ms`.
    pub timestamp_ahead_max: Duration,
    /// How long a group without members waits for more of them when the first has come. Kafka's
    /// `group.initial.rebalance.delay.ms`.
    pub group_initial_rebalance_delay: Duration,
    /// How long running requests may take to finish when the node stops.
    pub shutdown_grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections_max: 12 * 1024,
            idle_timeout: Duration::from_secs(600),
            transfer_timeout: Duration::from_secs(60),
            produce_bytes_in_flight_max: 2 * 1024 * 1024,
            message_bytes_max: 1_048_588,
            auto_create_topics: true,
            default_partitions: 1,
            default_settings: TopicSettings { retention_ms: Some(7 * 24 * 3_600 * 1_000), ..TopicSettings::default() },
            timestamp_ahead_max: Duration::from_secs(3_600),
            group_initial_rebalance_delay: Duration::from_secs(3),
            shutdown_grace: Duration::from_secs(2),
        }
    }
}

/// What the edge stands on.
pub struct Deps {
    pub ledger: Arc<dyn Ledger>,
    pub stream: Arc<dyn Stream>,
    pub cluster: Arc<dyn Cluster>,
    pub options: Options,
    pub counters: Arc<Counters>,
    /// Turns true when the node stops.
    pub shutdown: watch::Receiver<bool>,
}

/// What all connections share.
pub(crate) struct Broker {
    ledger: Arc<dyn Ledger>,
    stream: Arc<dyn Stream>,
    cluster: Arc<dyn Cluster>,
    options: Options,
    counters: Arc<Counters>,
    producer_ids: producer_id::ProducerIds,
    frame_room: Arc<Semaphore>,
    produce_room: Arc<Semaphore>,
    topic_names: Mutex<BTreeMap<Uuid, String>>,
    groups: groups::coordinator::Coordinator,
}

/// Who sends a request.
struct Peer<'a> {
    host: std::net::IpAddr,
    client_id: &'a str,
}

/// Serves the Kafka protocol on `listener` until `shutdown` turns true; then running requests may finish.
///
/// # Panics
/// When an option is beyond the limits of the log.
pub async fn serve(listener: TcpListener, deps: Deps) {
    let Deps { ledger, stream, cluster, options, counters, mut shutdown } = deps;
    assert!(options.message_bytes_max <= RECORD_BATCH_BYTES_MAX, "message_bytes_max fits the log");
    assert!((1..=PARTITIONS_PER_TOPIC_MAX).contains(&options.default_partitions), "default_partitions fits the log");
    let group_deps = groups::coordinator::Deps {
        ledger: ledger.clone(),
        stream: stream.clone(),
        cluster: cluster.clone(),
        initial_delay: options.group_initial_rebalance_delay,
    };
    let (groups, coordinate) = groups::coordinator::new(group_deps, shutdown.clone());
    let coordinate = tokio::spawn(coordinate);
    let produce_room = Arc::new(Semaphore::new(options.produce_bytes_in_flight_max));
    let broker = Arc::new(Broker {
        ledger,
        stream,
        cluster,
        options,
        counters,
        producer_ids: producer_id::ProducerIds::default(),
        frame_room: Arc::new(Semaphore::new(FRAME_BYTES_IN_FLIGHT_MAX)),
        produce_room,
        topic_names: Mutex::default(),
        groups,
    });
    let mut connections = JoinSet::new();
    let for_connections = shutdown.clone();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut shutdown) => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => accept(&broker, &mut connections, socket, peer, for_connections.clone()),
                Err(error) => {
                    // Out of descriptors, most likely: closing others is what helps, so wait for that.
                    tracing::warn!(%error, "kafka: a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let grace = broker.options.shutdown_grace;
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, finished).await.is_err() {
        tracing::warn!(connections = connections.len(), "kafka: connections are cut because they did not finish");
    }
    // It has seen the same signal.
    if let Err(error) = coordinate.await {
        tracing::error!(%error, "kafka: the coordinator of groups has failed");
    }
}

/// Returns when the node stops, or when nobody is left who could say so.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

fn accept(
    broker: &Arc<Broker>,
    connections: &mut JoinSet<()>,
    socket: TcpStream,
    peer: SocketAddr,
    shutdown: watch::Receiver<bool>,
) {
    if connections.len() >= broker.options.connections_max {
        broker.counters.connection_refused();
        tracing::warn!(%peer, limit = broker.options.connections_max, "kafka: too many connections, one is refused");
        return;
    }
    connections.spawn(connection::run(broker.clone(), socket, peer, shutdown));
}

/// A broker id is an i32 on the wire. Node ids are small numbers; should one not be, its low bits have to do.
fn broker_id(node: NodeId) -> i32 {
    (node.0 & 0x7fff_ffff) as i32
}

/// The leader epoch is the term, in the width that the protocol has for it.
fn leader_epoch(view: &ClusterView) -> i32 {
    (view.term.0 & 0x7fff_ffff) as i32
}

fn leader(view: &ClusterView) -> LeaderIdAndEpoch {
    LeaderIdAndEpoch { leader_id: view.leader.map_or(-1, broker_id), leader_epoch: leader_epoch(view) }
}

/// The members that serve Kafka, with host and port apart.
fn endpoints(view: &ClusterView) -> Vec<NodeEndpoint> {
    let endpoint = |member: &buttress_core::ledger::Member| {
        let (host, port) = member.kafka.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port.parse::<u16>().ok()?.into();
        Some(NodeEndpoint { node_id: broker_id(member.id), host, port, rack: None })
    };
    view.members.iter().filter_map(endpoint).collect()
}

/// Where the leader is, for a client that asked somebody else.
fn leader_endpoint(view: &ClusterView) -> Vec<NodeEndpoint> {
    let leader = view.leader.map(broker_id);
    endpoints(view).into_iter().filter(|e| Some(e.node_id) == leader).collect()
}

/// Whether the client's idea of the leader's epoch is ours. −1: it has none.
fn check_leader_epoch(view: &ClusterView, current: i32) -> Result<(), ErrorCode> {
    match current {
        ..0 => Ok(()),
        current if current < leader_epoch(view) => Err(ErrorCode::FENCED_LEADER_EPOCH),
        current if current > leader_epoch(view) => Err(ErrorCode::UNKNOWN_LEADER_EPOCH),
        _ => Ok(()),
    }
}

fn partition(topic: &TopicView, index: i32) -> Option<&PartitionView> {
    topic.partitions.get(usize::try_from(index).ok()?)
}

impl Broker {
    /// Waits until this node has what was acknowledged before: whoever has just created a topic by another node means it. A
    /// node that hears no majority answers with what it has.
    async fn catch_up(&self) {
        let nothing = KeyRange::key("\0");
        if let Err(error) = self.ledger.read(nothing, 1, Consistency::Linearizable).await {
            tracing::debug!(plane = "events", %error, "an administrator is answered with what this node has");
        }
    }

    /// The topic with this id. Names are remembered by id, so that not every request looks through all topics.
    fn topic_by_id(&self, id: Uuid) -> Option<TopicView> {
        if id.is_nil() {
            return None;
        }
        let is_it = |topic: &TopicView| topic.id == id.0;
        let remembered = self.topic_names.lock().expect("its holders do not panic").get(&id).cloned();
        if let Some(topic) = remembered.and_then(|name| self.stream.topic(&name)).filter(is_it) {
            return Some(topic);
        }
        let topic = self.stream.topics().into_iter().find(is_it)?;
        let mut names = self.topic_names.lock().expect("its holders do not panic");
        if names.len() >= TOPIC_NAMES_MAX {
            names.clear();
        }
        names.insert(id, topic.name.clone());
        Some(topic)
    }
}

/// A new UUID as text, for a member's id.
fn random_uuid() -> String {
    format!("{:?}", Uuid(new_topic_id()))
}

/// A UUID of version 4.
fn new_topic_id() -> [u8; 16] {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the operating system gives random bytes");
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

/// Cuts a text so that it fits every version's string, at a character's border.
fn message(text: impl Into<String>) -> Option<String> {
    let mut text = text.into();
    text.truncate(text.floor_char_boundary(ERROR_MESSAGE_BYTES_MAX));
    Some(text)
}
