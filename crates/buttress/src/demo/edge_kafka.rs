//! The user's own Kafka as the centre of `buttress demo --edge`: a way to its brokers that can be cut, and a reader that
//! counts what is committed.
//!
//! A Kafka tells its clients itself where its brokers are, so a proxy before one address would be gone around. The brokers'
//! answers pass [`relay`] instead, which puts addresses of ours into the two that name brokers (Metadata and
//! FindCoordinator); nothing else is looked at. Before each relay stands the demo's fault proxy, which cuts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use buttress_core::{Entry, Ledger as _, SubmitError, TopicChange};
use buttress_wire::kafka::{
    decode_response, encode_response, find_coordinator::FindCoordinatorResponse, metadata::MetadataResponse,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Mutex as AsyncMutex,
};

use super::{Task, committed, committed::Log};
use crate::{
    chaos::link::{Links, carry},
    engines::KafkaPlace,
};

const METADATA: i16 = 3;
const FIND_COORDINATOR: i16 = 10;
/// A request or an answer, as its length says it.
const FRAME_BYTES_MAX: usize = 128 * 1024 * 1024;
const READ_WAIT: Duration = Duration::from_millis(200);
/// A transaction may be open at the end of what is read; it is not waited for longer than this.
const STALLED_MAX: Duration = Duration::from_secs(3);

/// The ports of ours, by the brokers' ids.
type Ports = BTreeMap<i32, u16>;

/// A way to every broker; it is there until this is dropped.
pub struct Relay {
    pub bootstrap: Vec<String>,
    _tasks: Vec<Task>,
}

/// Opens it, as the link `from → to`.
///
/// # Errors
/// No broker answers, or there are no ports.
pub async fn relay(kafka: &[String], links: &Arc<Links>, from: u64, to: u64) -> anyhow::Result<Relay> {
    let brokers = committed::brokers(kafka).await?;
    let (mut ports, mut ways) = (Ports::new(), Vec::new());
    for (id, address) in brokers {
        let cut = TcpListener::bind("127.0.0.1:0").await?;
        let behind = TcpListener::bind("127.0.0.1:0").await?;
        ports.insert(id, cut.local_addr()?.port());
        ways.push((cut, behind, address));
    }
    let ports = Arc::new(ports);
    let mut tasks = Vec::new();
    for (cut, behind, address) in ways {
        let target = behind.local_addr()?;
        tasks.push(Task(tokio::spawn(carry(cut, from, to, target, links.clone()))));
        tasks.push(Task(tokio::spawn(serve(behind, address, ports.clone()))));
    }
    Ok(Relay { bootstrap: ports.values().map(|port| format!("127.0.0.1:{port}")).collect(), _tasks: tasks })
}

async fn serve(listener: TcpListener, broker: String, ports: Arc<Ports>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((near, _)) => {
                    connections.spawn(connection(near, broker.clone(), ports.clone()));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Ends with either end, and with a frame that is none.
async fn connection(near: TcpStream, broker: String, ports: Arc<Ports>) {
    let Ok(far) = TcpStream::connect(&broker).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    // Which answers name brokers, and in which version, by what the requests said.
    let asked = Mutex::default();
    let ended: anyhow::Result<()> = tokio::select! {
        ended = requests(near_read, far_write, &asked) => ended,
        ended = answers(far_read, near_write, &asked, &ports) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %broker, "a connection to the Kafka ended");
    }
}

type Asked = Mutex<HashMap<i32, (i16, i16)>>;

/// The next frame, without its length; none at the end.
async fn frame(read: &mut OwnedReadHalf) -> anyhow::Result<Option<Bytes>> {
    let mut head = [0; 4];
    if read.read_exact(&mut head).await.is_err() {
        return Ok(None);
    }
    let length = u32::from_be_bytes(head) as usize;
    ensure!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
    let mut body = BytesMut::with_capacity(length.min(64 * 1024));
    while body.len() < length {
        let left = (length - body.len()) as u64;
        ensure!((&mut *read).take(left).read_buf(&mut body).await? > 0, "the connection ended within a frame");
    }
    Ok(Some(body.freeze()))
}

async fn send(write: &mut OwnedWriteHalf, frame: &Bytes) -> anyhow::Result<()> {
    let mut whole = BytesMut::with_capacity(4 + frame.len());
    whole.put_u32(frame.len() as u32);
    whole.extend_from_slice(frame);
    Ok(write.write_all(&whole).await?)
}

async fn requests(mut read: OwnedReadHalf, mut write: OwnedWriteHalf, asked: &Asked) -> anyhow::Result<()> {
    while let Some(request) = frame(&mut read).await? {
        if let Some(&[a, b, c, d, e, f, g, h]) = request.first_chunk() {
            let api = i16::from_be_bytes([a, b]);
            if [METADATA, FIND_COORDINATOR].contains(&api) {
                let id = i32::from_be_bytes([e, f, g, h]);
                asked.lock().expect("no holder panics").insert(id, (api, i16::from_be_bytes([c, d])));
            }
        }
        send(&mut write, &request).await?;
    }
    Ok(())
}

async fn answers(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    asked: &Asked,
    ports: &Ports,
) -> anyhow::Result<()> {
    while let Some(mut answer) = frame(&mut read).await? {
        if let Some(&id) = answer.first_chunk() {
            let known = asked.lock().expect("no holder panics").remove(&i32::from_be_bytes(id));
            if let Some((api, version)) = known {
                answer = redirected(api, version, answer, ports)?;
            }
        }
        send(&mut write, &answer).await?;
    }
    Ok(())
}

/// The same answer with our ports for the brokers' addresses.
fn redirected(api: i16, version: i16, answer: Bytes, ports: &Ports) -> anyhow::Result<Bytes> {
    let turn = |id: i32, host: &mut String, port: &mut i32| {
        if let Some(ours) = ports.get(&id) {
            (*host, *port) = ("127.0.0.1".to_owned(), i32::from(*ours));
        }
    };
    let chunks = if api == METADATA {
        let (id, mut body) = decode_response::<MetadataResponse>(version, answer)?;
        body.brokers.iter_mut().for_each(|broker| turn(broker.node_id, &mut broker.host, &mut broker.port));
        encode_response(version, id, &body)
    } else {
        let (id, mut body) = decode_response::<FindCoordinatorResponse>(version, answer)?;
        turn(body.node_id, &mut body.host, &mut body.port);
        body.coordinators.iter_mut().for_each(|found| turn(found.node_id, &mut found.host, &mut found.port));
        encode_response(version, id, &body)
    };
    // The length before it is written anew by whoever sends it.
    Ok(Bytes::from(chunks.concat()).slice(4..))
}

/// The values of a partition, in order.
pub type Values = Vec<Vec<u8>>;

/// A Kafka that is the centre, as a consumer that reads committed records sees it.
pub struct KafkaCentre {
    pub kafka: Vec<String>,
    /// What the names of this run's topics begin with.
    pub prefix: String,
    logs: AsyncMutex<BTreeMap<(String, i32), (Log, Values)>>,
    had_gaps: bool,
}

impl KafkaCentre {
    /// # Errors
    /// It cannot be reached, or is too old.
    pub async fn open(kafka: &[String], prefix: String) -> anyhow::Result<Self> {
        let place = KafkaPlace { bootstrap: kafka.to_vec(), namespace: String::new() };
        place.connect().await.map(drop)?;
        let had_gaps = !committed::topics(kafka, buttress_uplink::gap::TOPIC).await?.is_empty();
        Ok(Self { kafka: kafka.to_vec(), prefix, logs: AsyncMutex::default(), had_gaps })
    }

    pub fn physical(&self, topic: &str) -> String {
        format!("{}{topic}", self.prefix)
    }

    /// Reads on to the end that there is now; what every partition has had so far, or nothing where there is no topic.
    ///
    /// # Errors
    /// The broker does not answer.
    async fn read<T>(&self, name: &str, partitions: i32, of: impl Fn(&Values) -> T) -> anyhow::Result<Vec<T>> {
        if !committed::topics(&self.kafka, name).await?.iter().any(|found| found == name) {
            return Ok(Vec::new());
        }
        let mut logs = self.logs.lock().await;
        let mut all = Vec::new();
        for partition in 0..partitions {
            let (log, values) = logs
                .entry((name.to_owned(), partition))
                .or_insert_with(|| (Log::new(&self.kafka, name.to_owned(), partition), Values::new()));
            let (_, end) = log.bounds().await.with_context(|| format!("{name}/{partition}"))?;
            let mut progress = Instant::now();
            while !log.has_read(end) && progress.elapsed() < STALLED_MAX {
                let records = log.more(READ_WAIT).await.with_context(|| format!("{name}/{partition}"))?;
                if !records.is_empty() {
                    progress = Instant::now();
                }
                values.extend(records.into_iter().map(|record| record.record.value.unwrap_or_default()));
            }
            all.push(of(values));
        }
        Ok(all)
    }

    /// # Errors
    /// As reading.
    pub async fn count(&self, topic: &str, partitions: usize) -> anyhow::Result<u64> {
        let counts = self.read(&self.physical(topic), partitions as i32, |values| values.len() as u64).await?;
        Ok(counts.iter().sum())
    }

    /// # Errors
    /// As reading.
    pub async fn values(&self, topic: &str, partitions: usize) -> anyhow::Result<Vec<Values>> {
        let mut values = self.read(&self.physical(topic), partitions as i32, Values::clone).await?;
        values.resize(partitions, Values::new());
        Ok(values)
    }

    /// Gap records of this gateway.
    ///
    /// # Errors
    /// As reading.
    pub async fn gaps(&self, edge: &str) -> anyhow::Result<u64> {
        let ours = |values: &Values| {
            let by = |value: &&Vec<u8>| serde_json::from_slice::<Value>(value).is_ok_and(|gap| gap["edge"] == edge);
            values.iter().filter(by).count() as u64
        };
        Ok(self.read(buttress_uplink::gap::TOPIC, 1, ours).await?.iter().sum())
    }

    /// Deletes what the run has made; says how many topics those were.
    ///
    /// # Errors
    /// The Kafka does not answer.
    pub async fn clean(&self) -> anyhow::Result<usize> {
        let place = KafkaPlace { bootstrap: self.kafka.clone(), namespace: String::new() };
        let kafka = place.connect().await?;
        let mut topics = committed::topics(&self.kafka, &self.prefix).await?;
        if !self.had_gaps {
            topics.extend(committed::topics(&self.kafka, buttress_uplink::gap::TOPIC).await?);
        }
        for name in &topics {
            let delete = Entry { topics: vec![TopicChange::Delete { name: name.clone() }], ..Entry::default() };
            kafka.submit(delete).await.map_err(SubmitError::into_error)?;
        }
        Ok(topics.len())
    }
}

#[cfg(test)]
mod tests {
    use buttress_wire::kafka::{
        find_coordinator::Coordinator,
        metadata::{MetadataBroker, MetadataTopic},
    };

    use super::*;

    #[test]
    fn answers_that_name_brokers_name_our_ports_in_every_version() {
        let ports = Ports::from([(1, 7001), (2, 7002)]);
        let strip = |chunks: Vec<Bytes>| Bytes::from(chunks.concat()).slice(4..);
        let broker = |node_id| MetadataBroker { node_id, host: "kafka".into(), port: 9092, ..Default::default() };
        for version in 9..=13 {
            let topic = MetadataTopic { name: Some("t".into()), ..MetadataTopic::default() };
            let body = MetadataResponse {
                brokers: vec![broker(1), broker(2), broker(3)],
                topics: vec![topic],
                ..MetadataResponse::default()
            };
            let turned = redirected(METADATA, version, strip(encode_response(version, 77, &body)), &ports).unwrap();
            let (id, turned) = decode_response::<MetadataResponse>(version, turned).unwrap();
            let named: Vec<_> = turned.brokers.iter().map(|b| (b.host.as_str(), b.port)).collect();
            // A broker that has come since is not ours to hide.
            assert_eq!((id, named), (77, vec![("127.0.0.1", 7001), ("127.0.0.1", 7002), ("kafka", 9092)]));
            assert_eq!(turned.topics, body.topics);
        }
        for version in 3..=6 {
            let found = Coordinator { node_id: 2, host: "kafka".into(), port: 9092, ..Coordinator::default() };
            let old = version < 4;
            let body = FindCoordinatorResponse {
                node_id: if old { 2 } else { 0 },
                host: if old { "kafka".into() } else { String::new() },
                port: if old { 9092 } else { 0 },
                coordinators: if old { vec![] } else { vec![found] },
                ..FindCoordinatorResponse::default()
            };
            let asked = strip(encode_response(version, 78, &body));
            let turned = redirected(FIND_COORDINATOR, version, asked, &ports).unwrap();
            let (_, turned) = decode_response::<FindCoordinatorResponse>(version, turned).unwrap();
            let named = if old {
                (turned.host, turned.port)
            } else {
                (turned.coordinators[0].host.clone(), turned.coordinators[0].port)
            };
            assert_eq!(named, ("127.0.0.1".to_owned(), 7002));
        }
    }
}
