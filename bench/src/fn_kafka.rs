//! `bench fn-kafka`: records that a function takes from a Kafka and passes on exactly once, beside a plain Java program that
//! does the same with Kafka's own client: read, send, commit offsets and outputs in one transaction. The program runs with one
//! thread, as somebody would write it first, and with one for each partition, as Kafka Streams would and as the host does.
//!
//! All run against one broker of the original and read the same records, each in a group of its own, in turn: started, warmed up,
//! watched for a while, and stopped. What counts is what a reader of committed records finds in the target: the ends of its
//! partitions are taken at both ends of the window, and afterwards what lies between is read and counted, transactions too (each
//! has an epoch of its own). After the last round the whole target is read once more: every source record before the group's
//! offset must be there, and none twice.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use buttress_wire::{
    kafka::{
        fetch::{FetchPartition, FetchRequest, FetchResponse, FetchTopic},
        list_offsets::{LATEST, ListOffsetsPartition, ListOffsetsRequest, ListOffsetsResponse, ListOffsetsTopic},
        offset_fetch::{OffsetFetchRequest, OffsetFetchRequestTopic, OffsetFetchResponse},
        produce::{ProducePartition, ProduceRequest, ProduceResponse, ProduceTopic},
    },
    records::{BatchView, Builder, split_stored},
};
use serde_json::json;

use crate::{
    figures::{median, noise, round},
    log::{ANSWER_MAX, Connection, PRODUCE, create_topic},
    options::Options,
    sides::{Original, Side, cpu_seconds, folder, free_ports},
};

const PARTITIONS: i32 = 4;
const RECORD_BYTES: usize = 100;
/// Records in one batch that the source is filled with.
const BATCH_RECORDS: u64 = 2_000;
/// What is there for each second that a side may copy; where it is used up, the benchmark says so.
const RECORDS_PER_SECOND_MAX: f64 = 1_600_000.0;
/// Most records of one transaction, on all sides. Records lie in long runs in their partitions, so that most transactions have
/// as many.
const TRANSACTION_RECORDS: usize = 2_000;
/// Until a side has started and is as fast as it gets: a Java program compiles itself meanwhile.
const WARM_UP: Duration = Duration::from_secs(3);
const FIRST_COMMIT_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(20);
/// A transaction that nobody ends is ended by the broker after a minute.
const STABLE_MAX: Duration = Duration::from_secs(75);
const POLL: Duration = Duration::from_millis(100);
const FETCH_BYTES: i32 = 8 * 1024 * 1024;
const READ_COMMITTED: i8 = 1;
const FETCH: i16 = 11;
const LIST_OFFSETS: i16 = 5;
const OFFSET_FETCH: i16 = 7;
const SOURCE: &str = "source";
const FUNCTION: &str = "copy";

struct Contender {
    name: &'static str,
    key: &'static str,
    group: &'static str,
    target: &'static str,
    /// Threads of the Java program; `None` for the function.
    threads: Option<i32>,
}

const CONTENDERS: [Contender; 3] = [
    Contender { name: "java, 1 thread", key: "java", group: "java-one", target: "copied-java-one", threads: Some(1) },
    Contender {
        name: "java, 4 threads",
        key: "java_threads",
        group: "java-all",
        target: "copied-java-all",
        threads: Some(PARTITIONS),
    },
    Contender { name: "buttress function", key: "buttress", group: "fn:copy", target: "copied", threads: None },
];

/// What was seen of one side, over its rounds.
#[derive(Default)]
struct Seen {
    rates: Vec<f64>,
    records: f64,
    transactions: f64,
    cpu: f64,
    broker_cpu: f64,
    lost: usize,
    twice: usize,
}

pub fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, 2, 4.0, &[])?;
    let help =
        Command::new(&options.binary).arg("host").arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    ensure!(
        help.success(),
        "\"{} host\" is not there: this build cannot run functions on a Kafka\n\nhint: build a version that has it, or name another --binary",
        options.binary.display()
    );
    Original::Kafka.install()?;
    Original::Etcd.install()?;
    let kafka = Side::original(Original::Kafka, 1)?;
    let etcd = Side::original(Original::Etcd, 1)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(fill(&kafka, &options))?;

    let mut seen = [Seen::default(), Seen::default(), Seen::default()];
    for number in 0..options.rounds.max(1) {
        for step in 0..CONTENDERS.len() {
            let at = (step + number) % CONTENDERS.len();
            let contender = &CONTENDERS[at];
            let scratch = folder()?;
            let mut process = match contender.threads {
                Some(threads) => java(&kafka, contender, threads)?,
                None => host(&options.binary, &kafka, &etcd, scratch.path())?,
            };
            let watched = runtime.block_on(watch(&kafka, contender, &process, options.round()));
            process.stop();
            let window = watched.with_context(|| format!("{} copies nothing", contender.name))?;
            let last = number + 1 == options.rounds.max(1);
            let seen = &mut seen[at];
            runtime.block_on(count(&kafka, contender, &window, last, seen))?;
            eprintln!("round {}: {} {:.0} records/s", number + 1, contender.name, seen.rates[number]);
        }
    }
    report(&options, seen)
}

fn report(options: &Options, mut seen: [Seen; 3]) -> Result<()> {
    let rates = [0, 1, 2].map(|at| median(&mut seen[at].rates));
    let per_record = |seconds: f64, seen: &Seen| seconds / f64::max(seen.records, 1.0) * 1e6;
    let better = f64::max(rates[0], rates[1]);
    let mut result = json!({
        "bench": "fn-kafka", "record_bytes": RECORD_BYTES, "partitions": PARTITIONS, "transaction_records_max": TRANSACTION_RECORDS,
        "ratio": { "records_per_s": round(rates[2] / better, 2), "to_one_thread": round(rates[2] / rates[0], 2) },
    });
    if !options.json {
        println!(
            "records of {RECORD_BYTES} B from {PARTITIONS} partitions of one broker, at most {TRANSACTION_RECORDS} in a transaction,"
        );
        println!("counted by a reader of committed records in the target; processor time of a record");
    }
    for (at, (contender, seen)) in CONTENDERS.iter().zip(&seen).enumerate() {
        let (cpu, broker) = (per_record(seen.cpu, seen), per_record(seen.broker_cpu, seen));
        let each = seen.records / f64::max(seen.transactions, 1.0);
        result[contender.key] = json!({
            "records_per_s": round(rates[at], 0), "records_per_transaction": round(each, 0),
            "cpu_per_record": round(cpu, 2), "broker_cpu_per_record": round(broker, 2),
            "missing": seen.lost, "twice": seen.twice,
        });
        if !options.json {
            println!(
                "  {:<18}{:>9.0}/s {:>6.0} a transaction   cpu {cpu:>6.2} µs   broker {broker:>6.2} µs   missing {}, twice {}",
                contender.name, rates[at], each, seen.lost, seen.twice
            );
        }
    }
    if options.json {
        println!("{result}");
    } else {
        println!("  ratio to one thread {:.2}, to the better of both {:.2}", rates[2] / rates[0], rates[2] / better);
    }
    let wrong: usize = seen.iter().map(|seen| seen.lost + seen.twice).sum();
    ensure!(wrong == 0, "{wrong} records are missing in a target, or there twice: see above");
    Ok(())
}

/// A process that is ended with its owner.
struct Process(Child);

impl Process {
    /// Asks it to end and waits for it.
    fn stop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let end = Instant::now() + STOP_MAX;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn cache() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::env::var_os("BUTTRESS_CONFORMANCE_CACHE").map_or_else(|| root.join("target/conformance"), PathBuf::from)
}

fn java(kafka: &Side, contender: &Contender, threads: i32) -> Result<Process> {
    let mut command = Command::new("java");
    command.arg("-Xmx512m").arg("-cp").arg(format!("{}/kafka-jars/*", cache().display()));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("java/CopyLoop.java"));
    command.args([&kafka.addresses[0], SOURCE, contender.target, contender.group]);
    command.args([threads.to_string(), TRANSACTION_RECORDS.to_string()]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Ok(Process(child.context("java cannot be started\n\nhint: apt-get install default-jdk-headless (17 or newer)")?))
}

/// Starts a host of functions and deploys the copying function on it.
fn host(binary: &Path, kafka: &Side, etcd: &Side, scratch: &Path) -> Result<Process> {
    let http = format!("127.0.0.1:{}", free_ports(1)?);
    let log = std::fs::File::create(scratch.join("host.log"))?;
    let child = Command::new(binary)
        .args([
            "host",
            "--kafka",
            &kafka.addresses[0],
            "--etcd",
            &format!("http://{}", etcd.addresses[0]),
            "--http",
            &http,
        ])
        .arg("--cache-dir")
        .arg(scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    let process = Process(child);
    let component = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/built/copy.wasm");
    let end = Instant::now() + FIRST_COMMIT_MAX;
    loop {
        let deployed = Command::new(binary)
            .args(["fn", "deploy", FUNCTION])
            .arg(&component)
            .args(["--topic", SOURCE, "--max-records", &TRANSACTION_RECORDS.to_string()])
            .args(["--output-topic", "copied", "--server", &format!("http://{http}")])
            .stdin(Stdio::null())
            .output()?;
        if deployed.status.success() {
            return Ok(process);
        }
        if Instant::now() > end {
            let log = std::fs::read_to_string(scratch.join("host.log")).unwrap_or_default();
            bail!("the function is not deployed: {}\n{log}", String::from_utf8_lossy(&deployed.stderr));
        }
        std::thread::sleep(POLL);
    }
}

/// The key by which a source record is known again: its partition and offset.
fn key_of(partition: i32, offset: i64) -> [u8; 8] {
    (((partition as u64) << 40) | offset as u64).to_be_bytes()
}

fn place_of(key: &[u8]) -> Result<(usize, usize)> {
    let key = u64::from_be_bytes(key.try_into().context("a key in the target is not of the source")?);
    Ok(((key >> 40) as usize, (key & ((1 << 40) - 1)) as usize))
}

/// Makes the topics and fills the source.
async fn fill(kafka: &Side, options: &Options) -> Result<()> {
    let address = &kafka.addresses[0];
    for topic in [SOURCE].into_iter().chain(CONTENDERS.map(|contender| contender.target)) {
        create_topic(address, topic, PARTITIONS, 1, &[]).await.context(topic)?;
    }
    let seconds = (options.seconds + WARM_UP.as_secs_f64()) * options.rounds.max(1) as f64;
    let batches = (seconds * RECORDS_PER_SECOND_MAX) as u64 / BATCH_RECORDS + 1;
    let value = noise(RECORD_BYTES, 7);
    let mut connection = Connection::open(address).await?;
    for at in 0..batches {
        let index = at as i32 % PARTITIONS;
        let first = (at / PARTITIONS as u64 * BATCH_RECORDS) as i64;
        let mut builder = Builder::new();
        for offset in first..first + BATCH_RECORDS as i64 {
            builder.push(0, Some(&key_of(index, offset)), Some(&value), &[]);
        }
        let batch = builder.build().context("no record was pushed")?;
        let topic = ProduceTopic {
            name: SOURCE.into(),
            partition_data: vec![ProducePartition { index, records: batch.into() }],
            ..ProduceTopic::default()
        };
        let request =
            ProduceRequest { acks: -1, timeout_ms: ANSWER_MAX, topic_data: vec![topic], ..ProduceRequest::default() };
        let answer: ProduceResponse = connection.ask(PRODUCE, &request).await?;
        for answer in answer.responses.iter().flat_map(|topic| &topic.partition_responses) {
            let expected = answer.error_code.0 == 0 && answer.base_offset == first;
            ensure!(expected, "the source cannot be filled: {answer:?}");
        }
        if at % 400 == 399 {
            eprintln!("filling the source: {} of {} records", (at + 1) * BATCH_RECORDS, batches * BATCH_RECORDS);
        }
    }
    Ok(())
}

/// A window: the committed ends of the target's partitions at both of its ends, and what it cost.
struct Window {
    begin: Vec<i64>,
    end: Vec<i64>,
    seconds: f64,
    cpu: f64,
    broker_cpu: f64,
}

/// Waits until something arrives and the side is warm; then watches it for the window.
async fn watch(kafka: &Side, contender: &Contender, process: &Process, window: Duration) -> Result<Window> {
    let mut connection = Connection::open(&kafka.addresses[0]).await?;
    let first = ends(&mut connection, contender.target, READ_COMMITTED).await?;
    let limit = Instant::now() + FIRST_COMMIT_MAX;
    while ends(&mut connection, contender.target, READ_COMMITTED).await? == first {
        ensure!(Instant::now() < limit, "nothing arrived in {} s", FIRST_COMMIT_MAX.as_secs());
        tokio::time::sleep(POLL).await;
    }
    tokio::time::sleep(WARM_UP).await;
    let pid = process.0.id().to_string();
    let opened = Instant::now();
    let (begin, cpu, broker) =
        (ends(&mut connection, contender.target, READ_COMMITTED).await?, cpu_seconds(&pid)?, kafka.cpu_seconds()?);
    tokio::time::sleep(window).await;
    let end = ends(&mut connection, contender.target, READ_COMMITTED).await?;
    let seconds = opened.elapsed().as_secs_f64();
    let (cpu, broker_cpu) = (cpu_seconds(&pid)? - cpu, kafka.cpu_seconds()? - broker);
    let (read, all): (i64, i64) = (
        offsets(&mut connection, contender.group).await?.iter().sum(),
        ends(&mut connection, SOURCE, 0).await?.iter().sum(),
    );
    ensure!(read < all, "the source was used up: try fewer --seconds");
    Ok(Window { begin, end, seconds, cpu, broker_cpu })
}

/// Reads what arrived in the window; and where that is asked for, everything, against the source.
async fn count(kafka: &Side, contender: &Contender, window: &Window, all: bool, seen: &mut Seen) -> Result<()> {
    let mut connection = Connection::open(&kafka.addresses[0]).await?;
    let mut records = 0u64;
    let mut transactions = HashSet::new();
    let mut found: Vec<Vec<u8>> = Vec::new();
    let mut end = window.end.clone();
    let offsets = if all {
        // What the process left open ends first: then everything before the group's offsets can be read.
        let limit = Instant::now() + STABLE_MAX;
        loop {
            end = ends(&mut connection, contender.target, READ_COMMITTED).await?;
            if end == ends(&mut connection, contender.target, 0).await? {
                break;
            }
            ensure!(Instant::now() < limit, "a transaction stays open in {}", contender.target);
            tokio::time::sleep(POLL).await;
        }
        let offsets = offsets(&mut connection, contender.group).await?;
        found = offsets.iter().map(|offset| vec![0; *offset as usize]).collect();
        offsets
    } else {
        Vec::new()
    };
    for partition in 0..PARTITIONS {
        let at = partition as usize;
        let mut next = if all { 0 } else { window.begin[at] };
        while next < end[at] {
            for view in fetch(&mut connection, contender.target, partition, next).await? {
                let (base, last) = (view.base_offset(), view.last_offset());
                if last < next || base >= end[at] {
                    next = next.max(last + 1);
                    continue;
                }
                next = last + 1;
                if view.is_control() {
                    continue;
                }
                if base >= window.begin[at] && base < window.end[at] {
                    records += u64::from(view.records_count());
                    transactions.insert(view.producer().map(|producer| (producer.id, producer.epoch)));
                }
                if all {
                    for record in view.records()? {
                        let (source, offset) = place_of(&record?.key.unwrap_or_default())?;
                        // What lies behind the offset was copied by a transaction that the group's offset does not know.
                        let times = found.get_mut(source).and_then(|found| found.get_mut(offset));
                        let times = times.with_context(|| {
                            format!(
                                "record {offset} of partition {source} is in {}, but not before the group's offset",
                                contender.target
                            )
                        })?;
                        *times = times.saturating_add(1);
                    }
                }
            }
        }
    }
    seen.rates.push(records as f64 / window.seconds);
    seen.records += records as f64;
    seen.transactions += transactions.len() as f64;
    seen.cpu += window.cpu;
    seen.broker_cpu += window.broker_cpu;
    if all {
        ensure!(
            offsets.iter().all(|offset| *offset > 0),
            "{} has read nothing of a partition: {offsets:?}",
            contender.name
        );
        seen.lost = found.iter().flatten().filter(|times| **times == 0).count();
        seen.twice = found.iter().flatten().filter(|times| **times > 1).count();
    }
    Ok(())
}

/// The batches from an offset on, without those of aborted transactions.
async fn fetch(connection: &mut Connection, topic: &str, partition: i32, from: i64) -> Result<Vec<BatchView>> {
    let wanted =
        FetchPartition { partition, fetch_offset: from, partition_max_bytes: FETCH_BYTES, ..FetchPartition::default() };
    let topic_wanted = FetchTopic { topic: topic.into(), partitions: vec![wanted], ..FetchTopic::default() };
    let request = FetchRequest {
        max_wait_ms: 500,
        min_bytes: 1,
        max_bytes: FETCH_BYTES,
        isolation_level: READ_COMMITTED,
        topics: vec![topic_wanted],
        ..FetchRequest::default()
    };
    let answer: FetchResponse = connection.ask(FETCH, &request).await?;
    let found = answer.responses.into_iter().flat_map(|topic| topic.partitions).next();
    let found =
        found.with_context(|| format!("the broker says nothing of {topic}/{partition}: {:?}", answer.error_code))?;
    ensure!(found.error_code.0 == 0, "{topic}/{partition} cannot be read: {:?}", found.error_code);
    let mut aborted = found.aborted_transactions.unwrap_or_default();
    aborted.sort_unstable_by_key(|transaction| transaction.first_offset);
    let mut aborted = aborted.into_iter().peekable();
    let mut gone = HashSet::new();
    let mut batches = Vec::new();
    for raw in split_stored(found.records.concat()) {
        // The last one of an answer may be cut off.
        let Ok(view) = BatchView::parse_stored(raw) else { break };
        let last = view.last_offset();
        while let Some(transaction) = aborted.next_if(|transaction| transaction.first_offset <= last) {
            gone.insert(transaction.producer_id);
        }
        let producer = view.producer().map_or(-1, |producer| producer.id);
        if view.is_control() {
            gone.remove(&producer);
            batches.push(view);
        } else if gone.contains(&producer) {
            // Its place is kept, so that the reader gets further.
            batches.push(BatchView::parse_stored(view.as_control())?);
        } else {
            batches.push(view);
        }
    }
    ensure!(!batches.is_empty(), "{topic}/{partition} has nothing at {from}");
    Ok(batches)
}

/// The ends of a topic's partitions: of what is committed, or of everything.
async fn ends(connection: &mut Connection, topic: &str, isolation_level: i8) -> Result<Vec<i64>> {
    let partition = |partition_index| ListOffsetsPartition {
        partition_index,
        timestamp: LATEST,
        ..ListOffsetsPartition::default()
    };
    let wanted = ListOffsetsTopic { name: topic.into(), partitions: (0..PARTITIONS).map(partition).collect() };
    let request = ListOffsetsRequest { isolation_level, topics: vec![wanted], ..ListOffsetsRequest::default() };
    let answer: ListOffsetsResponse = connection.ask(LIST_OFFSETS, &request).await?;
    let mut ends = vec![0; PARTITIONS as usize];
    for found in answer.topics.iter().flat_map(|topic| &topic.partitions) {
        ensure!(found.error_code.0 == 0, "the end of {topic} cannot be read: {:?}", found.error_code);
        ends[found.partition_index as usize] = found.offset;
    }
    Ok(ends)
}

/// A group's offsets in the source.
async fn offsets(connection: &mut Connection, group: &str) -> Result<Vec<i64>> {
    let topic = OffsetFetchRequestTopic { name: SOURCE.into(), partition_indexes: (0..PARTITIONS).collect() };
    let request = OffsetFetchRequest {
        group_id: group.into(),
        topics: Some(vec![topic]),
        require_stable: true,
        ..OffsetFetchRequest::default()
    };
    let answer: OffsetFetchResponse = connection.ask(OFFSET_FETCH, &request).await?;
    ensure!(answer.error_code.0 == 0, "the offsets of {group} cannot be read: {:?}", answer.error_code);
    let mut offsets = vec![0; PARTITIONS as usize];
    for found in answer.topics.iter().flat_map(|topic| &topic.partitions) {
        offsets[found.partition_index as usize] = found.committed_offset.max(0);
    }
    Ok(offsets)
}
