//! `bench fn-kafka`: records that a function takes from a Kafka and passes on exactly once, beside a plain Java program that
//! does the same with Kafka's own client: read, send, commit offsets and outputs in one transaction.
//!
//! Both run against one broker of the original and read the same records, each in a group of its own, in turn: started, warmed up,
//! watched for a while by what their group has committed, and stopped. So a batch that is not committed does not count.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use buttress_wire::{
    kafka::{
        offset_fetch::{OffsetFetchRequest, OffsetFetchRequestTopic, OffsetFetchResponse},
        produce::{ProducePartition, ProduceRequest, ProduceResponse, ProduceTopic},
    },
    records::Builder,
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
const BATCH_RECORDS: usize = 2_000;
/// What is there for each second that either side may copy: more than a machine does that runs this.
const RECORDS_PER_SECOND_MAX: f64 = 150_000.0;
/// Until a side has started and is as fast as it gets: a Java program compiles itself meanwhile.
const WARM_UP: Duration = Duration::from_secs(6);
const FIRST_COMMIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
const OFFSET_FETCH: i16 = 7;
const SOURCE: &str = "source";
/// Where the function writes to, and the Java program.
const TARGETS: [&str; 2] = ["copied", "copied-java"];
const FUNCTION: &str = "copy";

pub fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, 3, 6.0, &[])?;
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

    let mut rates = [Vec::new(), Vec::new()];
    let mut cpu = [0.0; 2];
    let mut done = [0.0; 2];
    for number in 0..options.rounds.max(1) {
        for at in if number % 2 == 0 { [0, 1] } else { [1, 0] } {
            let scratch = folder()?;
            let (name, group, process) = match at {
                0 => ("java", "java-copy".to_owned(), java(&kafka)?),
                _ => ("buttress", format!("fn:{FUNCTION}"), host(&options.binary, &kafka, &etcd, scratch.path())?),
            };
            let measured = runtime.block_on(watch(&kafka, &group, &process, options.round()));
            drop(process);
            let (records, cpu_used) = measured.with_context(|| format!("{name} copies nothing"))?;
            eprintln!("round {}: {name} {:.0} records/s", number + 1, records / options.seconds);
            rates[at].push(records / options.seconds);
            cpu[at] += cpu_used;
            done[at] += records;
        }
    }
    let [java, ours] = rates.map(|mut rates| median(&mut rates));
    let per_record = [0, 1].map(|at| cpu[at] / f64::max(done[at], 1.0) * 1e6);
    if options.json {
        let side = |rate: f64, cpu: f64| json!({ "records_per_s": round(rate, 0), "cpu_per_record": round(cpu, 2) });
        let result = json!({
            "bench": "fn-kafka", "record_bytes": RECORD_BYTES, "partitions": PARTITIONS,
            "java": side(java, per_record[0]), "buttress": side(ours, per_record[1]),
            "ratio": { "records_per_s": round(ours / java, 2), "cpu_per_record": round(per_record[1] / per_record[0], 2) },
        });
        println!("{result}");
    } else {
        println!("records of {RECORD_BYTES} B from {PARTITIONS} partitions of one broker, copied exactly once");
        println!("  java transactional loop {java:>10.0}/s   cpu {:>7.1} µs", per_record[0]);
        println!("  buttress function       {ours:>10.0}/s   cpu {:>7.1} µs", per_record[1]);
        println!("  ratio                   {:>10.2}x    cpu {:>7.2}", ours / java, per_record[1] / per_record[0]);
    }
    Ok(())
}

/// A process that is ended with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both leave nothing behind but an open transaction, which ends with the next start.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn cache() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::env::var_os("BUTTRESS_CONFORMANCE_CACHE").map_or_else(|| root.join("target/conformance"), PathBuf::from)
}

fn java(kafka: &Side) -> Result<Process> {
    let mut command = Command::new("java");
    command.arg("-Xmx512m").arg("-cp").arg(format!("{}/kafka-jars/*", cache().display()));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("java/CopyLoop.java"));
    command.args([&kafka.addresses[0], SOURCE, TARGETS[1], "java-copy"]);
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
            .args(["--topic", SOURCE, "--output-topic", TARGETS[0], "--server", &format!("http://{http}")])
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

/// Makes the topics and fills the source.
async fn fill(kafka: &Side, options: &Options) -> Result<()> {
    let address = &kafka.addresses[0];
    for topic in [SOURCE, TARGETS[0], TARGETS[1]] {
        create_topic(address, topic, PARTITIONS, 1, &[]).await.context(topic)?;
    }
    let seconds = (options.seconds + WARM_UP.as_secs_f64()) * options.rounds.max(1) as f64;
    let batches = (seconds * RECORDS_PER_SECOND_MAX / BATCH_RECORDS as f64) as usize + 1;
    let mut builder = Builder::new();
    for record in 0..BATCH_RECORDS as u64 {
        builder.push(0, Some(&record.to_be_bytes()), Some(&noise(RECORD_BYTES, record)), &[]);
    }
    let batch = builder.build().context("no record was pushed")?;
    let mut connection = Connection::open(address).await?;
    for at in 0..batches {
        let partition = ProducePartition { index: at as i32 % PARTITIONS, records: batch.clone().into() };
        let topic = ProduceTopic { name: SOURCE.into(), partition_data: vec![partition], ..ProduceTopic::default() };
        let request =
            ProduceRequest { acks: -1, timeout_ms: ANSWER_MAX, topic_data: vec![topic], ..ProduceRequest::default() };
        let answer: ProduceResponse = connection.ask(PRODUCE, &request).await?;
        let wrong = answer.responses.iter().flat_map(|t| &t.partition_responses).find(|p| p.error_code.0 != 0);
        ensure!(wrong.is_none(), "the source cannot be filled: {wrong:?}");
        if at % 200 == 199 {
            eprintln!("filling the source: {} of {} records", (at + 1) * BATCH_RECORDS, batches * BATCH_RECORDS);
        }
    }
    Ok(())
}

/// Waits for the first commit and until it is warm; then how many records were committed in the window, and the processor time
/// that the process used.
async fn watch(kafka: &Side, group: &str, process: &Process, window: Duration) -> Result<(f64, f64)> {
    let mut connection = Connection::open(&kafka.addresses[0]).await?;
    let first = committed(&mut connection, group).await.unwrap_or(0);
    let end = Instant::now() + FIRST_COMMIT_MAX;
    while committed(&mut connection, group).await.unwrap_or(0) <= first {
        ensure!(Instant::now() < end, "nothing was committed in {} s", FIRST_COMMIT_MAX.as_secs());
        tokio::time::sleep(POLL).await;
    }
    tokio::time::sleep(WARM_UP).await;
    let pid = process.0.id().to_string();
    let (begin, before, used) = (Instant::now(), committed(&mut connection, group).await?, cpu_seconds(&pid)?);
    tokio::time::sleep(window).await;
    let (after, used) = (committed(&mut connection, group).await?, cpu_seconds(&pid)? - used);
    // Asking takes a moment too.
    let scale = window.as_secs_f64() / begin.elapsed().as_secs_f64();
    ensure!(after > before, "nothing was committed in the window: is the source used up? Try fewer --seconds");
    Ok(((after - before) as f64 * scale, used * scale))
}

/// Records before a group's offsets, over all partitions.
async fn committed(connection: &mut Connection, group: &str) -> Result<i64> {
    let topic = OffsetFetchRequestTopic { name: SOURCE.into(), partition_indexes: (0..PARTITIONS).collect() };
    let request =
        OffsetFetchRequest { group_id: group.into(), topics: Some(vec![topic]), ..OffsetFetchRequest::default() };
    let answer: OffsetFetchResponse = connection.ask(OFFSET_FETCH, &request).await?;
    ensure!(answer.error_code.0 == 0, "the offsets of {group} cannot be read: {:?}", answer.error_code);
    Ok(answer.topics.iter().flat_map(|t| &t.partitions).map(|p| p.committed_offset.max(0)).sum())
}
