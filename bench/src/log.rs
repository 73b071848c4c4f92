//! `bench log`: records produced with acks=all to three nodes, beside Kafka.
//!
//! One client for both: connections that send requests prepared beforehand and keep a few under way, as Kafka's own producer
//! does (five requests, a batch of up to 16 KiB for each partition that the broker leads). Kafka is measured twice: with a
//! flush to disk per batch (`flush.messages=1`), which is the promise that Buttress makes, and as it comes, when it acknowledges
//! what three page caches have.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use buttress_wire::{
    kafka::{
        Body, RequestHeader,
        create_topics::{CreatableTopic, CreatableTopicConfig, CreateTopicsRequest, CreateTopicsResponse},
        decode_response, encode_request, joined,
        metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse},
        produce::{ProducePartition, ProduceRequest, ProduceResponse, ProduceTopic},
    },
    records::Builder,
};
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
};

use crate::{
    figures::{self, Figures, Round, Window, noise},
    options::{Only, Options},
    sides::{Memory, NODES, Original, Side},
};

/// The batch of one partition, as Kafka's producer fills it, and what a request to all partitions may have: with many of them,
/// batches are smaller, or what is measured is how long a megabyte waits.
const BATCH_BYTES: usize = 16_000;
const REQUEST_BYTES: usize = 256_000;
/// Requests under way on a connection, as with Kafka's producer.
const IN_FLIGHT: usize = 5;
const RECORD_BYTES: [usize; 2] = [100, 1000];
const WARM_UP: Duration = Duration::from_millis(1500);
/// Before the first case each side works so long and is not measured: what runs on a Java machine compiles itself meanwhile.
const WARM_SIDE: Duration = Duration::from_secs(12);
pub const ANSWER_MAX: i32 = 30_000;
const READY_MAX: Duration = Duration::from_secs(60);
/// Versions that both sides speak.
pub const PRODUCE: i16 = 9;
const METADATA: i16 = 9;
const CREATE_TOPICS: i16 = 6;

/// What is measured: a side and how its topics are made.
struct Contender<'a> {
    name: &'static str,
    side: &'a Side,
    configs: &'static [(&'static str, &'static str)],
}

pub fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, 2, 4.0, &[4])?;
    let side = |original: bool| -> Result<Option<Side>> {
        let wanted = options.measures(if original { Only::Original } else { Only::Buttress });
        let start =
            || if original { Side::original(Original::Kafka, NODES) } else { Side::buttress(&options.binary, "kafka") };
        wanted.then(start).transpose()
    };
    if options.measures(Only::Original) {
        Original::Kafka.install()?;
    }
    let (kafka, ours) = (side(true)?, side(false)?);
    let mut contenders = Vec::new();
    if let Some(side) = &kafka {
        let configs = &[("flush.messages", "1"), ("min.insync.replicas", "2")];
        contenders.push(Contender { name: "kafka, synced", side, configs });
        contenders.push(Contender { name: "kafka, default", side, configs: &configs[1..] });
    }
    contenders.extend(ours.as_ref().map(|side| Contender { name: "buttress", side, configs: &[] }));
    let sides: Vec<&Side> = kafka.iter().chain(&ours).collect();
    let memory = |when: &str| memory(when, &sides, options.json);
    let rest = memory("at rest")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut cases = Vec::new();
    let mut after = rest.clone();
    for &partitions in &options.partitions {
        for record_bytes in RECORD_BYTES {
            let warm = cases.is_empty();
            let case = case(&options, &contenders, partitions, record_bytes, warm);
            let mut case = LocalSet::new().block_on(&runtime, case)?;
            after = memory(&format!("after {partitions} partitions, {record_bytes} B"))?;
            case["memory_mib"] = told(&after);
            cases.push(case);
        }
    }
    if options.json {
        let ratios: Vec<f64> = cases.iter().filter_map(|case| case["ratio"]["records_per_s"].as_f64()).collect();
        let ratio = ours.is_some() && kafka.is_some();
        let result = json!({
            "bench": "log", "nodes": NODES, "batch_bytes": BATCH_BYTES, "in_flight": IN_FLIGHT, "cases": cases,
            "memory_mib": told(&after), "memory_mib_at_rest": told(&rest),
            // The least of all cases.
            "ratio": ratio.then(|| json!({
                "records_per_s": ratios.iter().copied().fold(f64::INFINITY, f64::min),
                "rss": figures::round(after["buttress"].resident / after["kafka"].resident, 3),
            })),
        });
        println!("{result}");
    } else if let (Some(mine), Some(theirs)) = (after.get("buttress"), after.get("kafka")) {
        println!("resident on all nodes after all rounds: ratio {:.3}", mine.resident / theirs.resident);
    }
    Ok(())
}

fn told(memory: &BTreeMap<&'static str, Memory>) -> Value {
    memory.iter().map(|(name, memory)| ((*name).to_owned(), memory.json())).collect()
}

/// What all nodes of each side have in memory.
fn memory(when: &str, sides: &[&Side], quiet: bool) -> Result<BTreeMap<&'static str, Memory>> {
    let mut found = BTreeMap::new();
    for side in sides {
        let memory = side.memory()?;
        if !quiet {
            println!(
                "{} {when}: resident on all nodes {:.0} MiB, of that {:.0} their own and {:.0} of files",
                side.name, memory.resident, memory.own, memory.files
            );
        }
        found.insert(side.name, memory);
    }
    Ok(found)
}

async fn case(
    options: &Options,
    contenders: &[Contender<'_>],
    partitions: i32,
    record_bytes: usize,
    warm: bool,
) -> Result<Value> {
    let mut measured: Vec<Vec<Round>> = contenders.iter().map(|_| Vec::new()).collect();
    let mut topics = Vec::new();
    for (at, contender) in contenders.iter().enumerate() {
        let topic = format!("bench-{partitions}-{record_bytes}-{at}");
        topics.push((topic.clone(), create(contender, &topic, partitions).await?));
    }
    if warm {
        for (contender, (topic, leaders)) in contenders.iter().zip(&topics) {
            eprintln!("warming up: {}", contender.name);
            measure(options, contender, topic, leaders, record_bytes, WARM_SIDE / contenders.len() as u32).await?;
        }
    }
    for number in 0..options.rounds.max(1) {
        for step in 0..contenders.len() {
            let at = (step + number) % contenders.len();
            let (contender, (topic, leaders)) = (&contenders[at], &topics[at]);
            let round = measure(options, contender, topic, leaders, record_bytes, options.round()).await?;
            eprintln!(
                "{partitions} partitions, {record_bytes} B, round {}: {} {:.0} records/s",
                number + 1,
                contender.name,
                round.per_second()
            );
            measured[at].push(round);
        }
    }
    let figures: Vec<Figures> = measured.into_iter().map(Figures::of).collect();
    if !options.json {
        println!(
            "{partitions} partitions, records of {record_bytes} B; times are a request's, processor time a record's"
        );
        for (contender, figures) in contenders.iter().zip(&figures) {
            println!("{}", figures.row(contender.name));
        }
        if let [synced, _, ours] = &figures[..] {
            println!("{}", ours.ratio_row(synced));
        }
    }
    let mut case = json!({ "partitions": partitions, "record_bytes": record_bytes });
    for (contender, figures) in contenders.iter().zip(&figures) {
        case[contender.name.replace(", ", "_")] = figures.json("records", "record");
    }
    if let [synced, default, ours] = &figures[..] {
        case["ratio"] = ours.ratio(synced, "records", "record");
        case["ratio_to_default"] = ours.ratio(default, "records", "record");
    }
    Ok(case)
}

/// A connection that sends a request and reads its answer, one or several at a time.
pub struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Connection {
    pub async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::new() })
    }

    /// The next frame's message.
    async fn read(&mut self) -> Result<Bytes> {
        loop {
            if let Some(length) = self.buffer.first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if self.buffer.len() >= 4 + length {
                    return Ok(self.buffer.split_to(4 + length).freeze().slice(4..));
                }
            }
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the broker hung up");
        }
    }

    pub async fn ask<Q: Body, A: Body>(&mut self, version: i16, request: &Q) -> Result<A> {
        self.stream.write_all(&frame(version, request)).await?;
        Ok(decode_response(version, self.read().await?)?.1)
    }
}

fn frame<B: Body>(version: i16, body: &B) -> Bytes {
    let header = RequestHeader { version, client_id: Some("bench".into()), ..RequestHeader::default() };
    joined(encode_request(&header, body))
}

async fn create(contender: &Contender<'_>, name: &str, partitions: i32) -> Result<BTreeMap<String, Vec<i32>>> {
    create_topic(&contender.side.addresses[0], name, partitions, NODES, contender.configs)
        .await
        .with_context(|| contender.name)
}

/// Makes a topic, waits until every partition has a leader and all its replicas, and says which broker leads which.
///
/// # Errors
/// What the broker says, or when that takes too long.
pub async fn create_topic(
    address: &str,
    name: &str,
    partitions: i32,
    copies: usize,
    configs: &[(&str, &str)],
) -> Result<BTreeMap<String, Vec<i32>>> {
    let mut connection = Connection::open(address).await?;
    let config =
        |(name, value): &(&str, &str)| CreatableTopicConfig { name: (*name).into(), value: Some((*value).into()) };
    let topic = CreatableTopic {
        name: name.into(),
        num_partitions: partitions,
        replication_factor: copies as i16,
        configs: configs.iter().map(config).collect(),
        ..CreatableTopic::default()
    };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: ANSWER_MAX, ..CreateTopicsRequest::default() };
    let answer: CreateTopicsResponse = connection.ask(CREATE_TOPICS, &request).await?;
    let made = answer.topics.first().context("no answer for the topic")?;
    ensure!(made.error_code.0 == 0, "{:?} {:?}", made.error_code, made.error_message);
    let end = Instant::now() + READY_MAX;
    loop {
        let wanted = MetadataRequestTopic { name: Some(name.into()), ..MetadataRequestTopic::default() };
        let request = MetadataRequest { topics: Some(vec![wanted]), ..MetadataRequest::default() };
        let answer: MetadataResponse = connection.ask(METADATA, &request).await?;
        let brokers: BTreeMap<i32, String> =
            answer.brokers.iter().map(|b| (b.node_id, format!("{}:{}", b.host, b.port))).collect();
        let mut leaders: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        let parts = answer.topics.first().map(|topic| &topic.partitions[..]).unwrap_or_default();
        for partition in parts.iter().filter(|p| p.error_code.0 == 0 && p.isr_nodes.len() == copies) {
            if let Some(address) = brokers.get(&partition.leader_id) {
                leaders.entry(address.clone()).or_default().push(partition.partition_index);
            }
        }
        if leaders.values().map(Vec::len).sum::<usize>() == partitions as usize {
            return Ok(leaders);
        }
        ensure!(Instant::now() < end, "topic {name} does not get its leaders and replicas");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn measure(
    options: &Options,
    contender: &Contender<'_>,
    topic: &str,
    leaders: &BTreeMap<String, Vec<i32>>,
    record_bytes: usize,
    window: Duration,
) -> Result<Round> {
    let partitions_all: usize = leaders.values().map(Vec::len).sum();
    let producers = options.clients.first().copied().unwrap_or(1);
    let begin = Instant::now() + WARM_UP;
    let end = begin + window;
    let mut tasks = Vec::new();
    for producer in 0..producers {
        let mut builder = Builder::new();
        let value = noise(record_bytes, producer as u64);
        while builder.size() + record_bytes + 32 < BATCH_BYTES.min(REQUEST_BYTES / partitions_all) {
            builder.push(0, None, Some(&value), &[]);
        }
        let records = u64::from(builder.count());
        let batch = builder.build().context("no record was pushed")?;
        for (address, partitions) in leaders {
            let partition = |index: &i32| ProducePartition { index: *index, records: batch.clone().into() };
            let data = ProduceTopic {
                name: topic.into(),
                partition_data: partitions.iter().map(partition).collect(),
                ..ProduceTopic::default()
            };
            let request = ProduceRequest {
                acks: -1,
                timeout_ms: ANSWER_MAX,
                topic_data: vec![data],
                ..ProduceRequest::default()
            };
            let (request, records) = (frame(PRODUCE, &request), records * partitions.len() as u64);
            tasks.push(tokio::task::spawn_local(produce(address.clone(), request, records, begin, end)));
        }
    }
    tokio::time::sleep_until(begin.into()).await;
    let opened = Window::open(contender.side)?;
    tokio::time::sleep_until(end.into()).await;
    // Requests that were answered later are not counted; their work in the window is that of others before it.
    let cpu = opened.cpu()?;
    let (mut done, mut micros) = (0, Vec::new());
    for task in tasks {
        let (records, times) = task.await?.with_context(|| format!("a producer of {}", contender.name))?;
        done += records;
        micros.extend(times);
    }
    opened.close_at(cpu, done, window, micros)
}

/// Keeps requests under way until the end; the records and times of those that were answered in the window.
async fn produce(
    address: String,
    request: Bytes,
    records: u64,
    begin: Instant,
    end: Instant,
) -> Result<(u64, Vec<u32>)> {
    let mut connection = Connection::open(&address).await?;
    let mut sent: VecDeque<Instant> = VecDeque::new();
    let (mut done, mut micros) = (0, Vec::new());
    loop {
        if sent.len() < IN_FLIGHT && Instant::now() < end {
            sent.push_back(Instant::now());
            connection.stream.write_all(&request).await?;
            continue;
        }
        let Some(start) = sent.pop_front() else { return Ok((done, micros)) };
        let (_, answer) = decode_response::<ProduceResponse>(PRODUCE, connection.read().await?)?;
        let wrong = answer.responses.iter().flat_map(|t| &t.partition_responses).find(|p| p.error_code.0 != 0);
        if let Some(wrong) = wrong {
            bail!("partition {}: {:?} {:?}", wrong.index, wrong.error_code, wrong.error_message);
        }
        let now = Instant::now();
        if now >= begin && now < end {
            done += records;
            micros.push((now - start).as_micros() as u32);
        }
    }
}
