//! `bench append`: commits of 1 MiB to one node, against the least that durability costs: a loop of append and fdatasync of
//! the same size on the same disk. Rounds alternate, so that a noisy disk disturbs both.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use buttress_core::{Append, Entry, Ledger, LogId, NodeId, TopicChange, entry::TopicSettings, ledger::Member};
use buttress_node::runtime;
use buttress_wire::records::Builder;
use bytes::Bytes;
use serde_json::{Value, json};

const COMMIT_BYTES: usize = 1024 * 1024;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
/// Commits in flight: one is written while the next one is proposed and the one before is applied.
const IN_FLIGHT: usize = 4;

/// Runs the rounds; `--output json` prints one object.
///
/// # Errors
/// When the node or the disk fails.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let json = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--output", "json"] => true,
        _ => anyhow::bail!("usage: buttress-bench append [--output json]"),
    };
    let result = rounds()?;
    if json {
        println!("{result}");
    } else {
        println!(
            "append + fdatasync {:.0} MB/s, commits {:.0} MB/s, ratio {:.2}",
            result["raw_mb_per_s"].as_f64().unwrap_or_default(),
            result["commit_mb_per_s"].as_f64().unwrap_or_default(),
            result["ratio"].as_f64().unwrap_or_default()
        );
    }
    Ok(())
}

fn rounds() -> anyhow::Result<Value> {
    let dir = tempfile::tempdir().context("no temporary directory")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (handle, log, running) = runtime.block_on(start(dir.path()))?;
    let node = runtime.spawn(running);
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        raw.push(raw_loop(&dir.path().join("raw"))?);
        ours.push(runtime.block_on(commits(&handle, log))?);
        eprintln!("round {}: raw {:.0} MB/s, commits {:.0} MB/s", round + 1, raw[round], ours[round]);
    }
    runtime.block_on(async {
        handle.stop().await;
        node.await
    })??;
    let (raw, ours) = (median(&mut raw), median(&mut ours));
    Ok(json!({
        "bench": "append", "commit_bytes": COMMIT_BYTES, "raw_mb_per_s": raw, "commit_mb_per_s": ours, "ratio": ours / raw,
    }))
}

type Running = std::pin::Pin<Box<dyn Future<Output = Result<(), buttress_core::Error>> + Send>>;

/// A node of its own cluster, with a topic.
async fn start(dir: &Path) -> anyhow::Result<(Arc<runtime::Handle>, LogId, Running)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let member =
        Member { id: NodeId(1), name: "bench".into(), peer: listener.local_addr()?.to_string(), ..Member::default() };
    let config = runtime::Config {
        cluster_id: "bench".into(),
        node: NodeId(1),
        members: vec![member],
        data_dir: dir.join("node"),
        seed: 1,
        client: 1,
        join: false,
    };
    let (handle, mut running) = runtime::start(config, listener)?;
    let create = Entry {
        topics: vec![TopicChange::Create {
            name: "bench".into(),
            id: [1; 16],
            partitions: 1,
            settings: TopicSettings { retention_bytes: Some(1 << 30), ..TopicSettings::default() },
        }],
        ..Entry::default()
    };
    let receipt = tokio::select! {
        ended = &mut running => anyhow::bail!("the node ended: {ended:?}"),
        receipt = handle.submit(create) => receipt?,
    };
    Ok((handle, receipt.created[0].1[0], running))
}

/// Appends and syncs 1 MiB at a time; MB/s.
fn raw_loop(path: &Path) -> anyhow::Result<f64> {
    let mut file = File::create(path)?;
    let block = noise(COMMIT_BYTES);
    let (start, mut written) = (Instant::now(), 0);
    while start.elapsed() < ROUND {
        file.write_all(&block)?;
        file.sync_data()?;
        written += block.len();
    }
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(written as f64 / 1e6 / seconds)
}

/// Commits batches of 1 MiB, a few in flight; MB/s.
async fn commits(handle: &Arc<runtime::Handle>, log: LogId) -> anyhow::Result<f64> {
    let mut builder = Builder::new();
    builder.push(0, None, Some(&noise(COMMIT_BYTES)), &[]);
    let batch: Bytes = builder.build().expect("a record was pushed");
    let start = Instant::now();
    let workers: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            let (handle, batch) = (handle.clone(), batch.clone());
            tokio::spawn(async move {
                let mut committed = 0;
                while start.elapsed() < ROUND {
                    let append = Append { log, records: 1, max_timestamp_ms: 0, sequence: None, batch: batch.clone() };
                    handle.submit(Entry { appends: vec![append], ..Entry::default() }).await?;
                    committed += batch.len();
                }
                anyhow::Ok(committed)
            })
        })
        .collect();
    let mut committed = 0;
    for worker in workers {
        committed += worker.await??;
    }
    Ok(committed as f64 / 1e6 / start.elapsed().as_secs_f64())
}

/// Bytes that do not compress, the same each time.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
