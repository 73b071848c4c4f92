//! `bench kv`: puts and linearizable gets through etcd's protocol, beside etcd.
//!
//! Every client has a connection of its own and one request at a time. Clients are spread evenly over the nodes, as etcd's
//! own client spreads them, or all speak to the leader (`--to leader`). Sync is on on both sides. Memory with many keys is measured on
//! clusters of its own, loaded with transactions of 128 puts, so that what the rounds write does not count.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use buttress_etcd_proto::{
    client::Channel,
    etcdserverpb::{
        PutRequest, RangeRequest, RequestOp, StatusRequest, TxnRequest, kv_client::KvClient,
        maintenance_client::MaintenanceClient, request_op::Request,
    },
};
use bytes::Bytes;
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::task::LocalSet;

use crate::{
    figures::{Dice, Round, Window, alternate, noise, round, tell},
    options::{Only, Options},
    sides::{NODES, Original, Side},
};

const VALUE_BYTES: usize = 256;
/// Keys that puts and gets choose among.
const KEY_SPACE: u64 = 10_000;
/// What is not measured before a window: connections, caches.
const WARM_UP: Duration = Duration::from_millis(500);
/// Puts in one transaction when keys are loaded: what etcd takes by default.
const LOAD_BATCH: usize = 128;
const LOADERS: usize = 8;
/// After a load, until what goes on in the background is done and memory is read.
const SETTLE: Duration = Duration::from_secs(8);

pub fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, 3, 3.0, &[1, 16, 128])?;
    Original::Etcd.install()?;
    let memory = if options.keys > 0 { Some(memory(&options)?) } else { None };
    let mut result = json!({ "bench": "kv", "nodes": NODES, "value_bytes": VALUE_BYTES });
    if options.rounds > 0 {
        let sides = sides(&options)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, rounds(&options, &sides, &mut result))?;
    }
    if let Some([theirs, ours]) = memory {
        println_unless(options.json, format_args!("{} keys of {VALUE_BYTES} B, resident on all nodes", options.keys));
        let ratio = theirs.zip(ours).map(|(theirs, ours)| ours / theirs);
        let field = if options.keys == 1_000_000 { "rss_1m_keys" } else { "rss_keys" };
        for (side, value, unit) in [("etcd", theirs, "MiB"), ("buttress", ours, "MiB"), ("ratio", ratio, "")] {
            if let Some(value) = value {
                println_unless(options.json, format_args!("  {side:<10}{value:>8.2} {unit}"));
                result[side][field] = json!(round(value, 2));
            }
        }
    }
    if options.json {
        println!("{result}");
    }
    Ok(())
}

fn println_unless(json: bool, line: std::fmt::Arguments<'_>) {
    if json { eprintln!("{line}") } else { println!("{line}") }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Put,
    Get,
}

impl Op {
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Op::Put => ("puts", "put"),
            Op::Get => ("gets", "get"),
        }
    }
}

/// The clusters that are measured: etcd and Buttress, or one of them.
pub fn sides(options: &Options) -> Result<[Option<Side>; 2]> {
    let theirs = options.measures(Only::Original).then(|| Side::original(Original::Etcd, NODES)).transpose()?;
    let ours = options.measures(Only::Buttress).then(|| Side::buttress(&options.binary, "etcd")).transpose()?;
    Ok([theirs, ours])
}

async fn rounds(options: &Options, sides: &[Option<Side>; 2], result: &mut Value) -> Result<()> {
    for side in sides.iter().flatten() {
        load(side, "bench/", KEY_SPACE as usize).await?;
    }
    let mut cases = Vec::new();
    for &clients in &options.clients {
        for op in [Op::Put, Op::Get] {
            let (many, one) = op.names();
            let figures = alternate(options.rounds, sides, async |side, number| {
                let round = measure(options, side, clients, op, number as u64).await?;
                eprintln!("{clients} clients, {many}, round {}: {} {:.0}/s", number + 1, side.name, round.per_second());
                Ok(round)
            })
            .await?;
            println_unless(options.json, format_args!("{clients} clients, {many} of {VALUE_BYTES} B"));
            let mut case = tell(options.json, "etcd", &figures, many, one);
            case["clients"] = json!(clients);
            case["op"] = json!(one);
            case["to"] = json!(if options.leader_only { "leader" } else { "all" });
            cases.push(case);
        }
    }
    // The heading figures are those of the most clients' puts.
    let most = options.clients.iter().max().copied().unwrap_or_default();
    if let Some(case) = cases.iter().find(|case| case["clients"] == most && case["op"] == "put") {
        for field in ["etcd", "buttress", "ratio"] {
            result[field] = case[field].clone();
        }
    }
    result["cases"] = json!(cases);
    Ok(())
}

/// The addresses that clients are spread over.
async fn targets(options: &Options, side: &Side) -> Result<Vec<String>> {
    if !options.leader_only {
        return Ok(side.addresses.clone());
    }
    for address in &side.addresses {
        let status =
            MaintenanceClient::new(connect(address).await?).status(StatusRequest::default()).await?.into_inner();
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            return Ok(vec![address.clone()]);
        }
    }
    bail!("{} has no leader", side.name)
}

pub async fn connect(address: &str) -> Result<Channel> {
    Channel::connect(address).await.with_context(|| format!("cannot connect to {address}"))
}

pub fn key(prefix: &str, number: u64) -> Bytes {
    format!("{prefix}{number:012}").into_bytes().into()
}

async fn measure(options: &Options, side: &Side, clients: usize, op: Op, number: u64) -> Result<Round> {
    let targets = targets(options, side).await?;
    let begin = Instant::now() + WARM_UP;
    let end = begin + options.round();
    let micros = Rc::new(RefCell::new(Vec::with_capacity(1 << 18)));
    let mut tasks = Vec::new();
    for client in 0..clients {
        let channel = connect(&targets[client % targets.len()]).await?;
        let micros = micros.clone();
        tasks.push(tokio::task::spawn_local(async move {
            let mut kv = KvClient::new(channel);
            let mut dice = Dice::new(number * 100_000 + client as u64 + 1);
            let value = Bytes::from(noise(VALUE_BYTES, client as u64));
            loop {
                let start = Instant::now();
                if start >= end {
                    return anyhow::Ok(());
                }
                let key = key("bench/", dice.below(KEY_SPACE));
                match op {
                    Op::Put => {
                        kv.put(PutRequest { key, value: value.clone(), ..PutRequest::default() }).await?;
                    }
                    Op::Get => {
                        let found = kv.range(RangeRequest { key, ..RangeRequest::default() }).await?.into_inner();
                        anyhow::ensure!(found.kvs.len() == 1, "a key that was written is not there");
                    }
                }
                let now = Instant::now();
                if now >= begin && now < end {
                    micros.borrow_mut().push((now - start).as_micros() as u32);
                }
            }
        }));
    }
    tokio::time::sleep_until(begin.into()).await;
    let window = Window::open(side)?;
    tokio::time::sleep_until(end.into()).await;
    let micros_at_end = micros.borrow().clone();
    let done = window.close(micros_at_end.len() as u64, options.round(), micros_at_end)?;
    for task in tasks {
        task.await?.with_context(|| format!("a client of {}", side.name))?;
    }
    Ok(done)
}

/// Writes keys, in transactions.
pub async fn load(side: &Side, prefix: &str, keys: usize) -> Result<()> {
    let prefix: Arc<str> = prefix.into();
    let loaders = (0..LOADERS).map(|loader| {
        let prefix = prefix.clone();
        async move {
            let mut kv = KvClient::new(connect(&side.addresses[loader % side.addresses.len()]).await?);
            for batch in (loader..keys.div_ceil(LOAD_BATCH)).step_by(LOADERS) {
                let numbers = batch * LOAD_BATCH..((batch + 1) * LOAD_BATCH).min(keys);
                let put = |number: usize| RequestOp {
                    request: Some(Request::RequestPut(PutRequest {
                        key: key(&prefix, number as u64),
                        value: noise(VALUE_BYTES, number as u64).into(),
                        ..PutRequest::default()
                    })),
                };
                kv.txn(TxnRequest { success: numbers.map(put).collect(), ..TxnRequest::default() }).await?;
            }
            anyhow::Ok(())
        }
    });
    try_join_all(loaders).await.with_context(|| format!("loading keys into {}", side.name))?;
    Ok(())
}

/// Resident memory of etcd and of Buttress with so many keys, on all nodes, in MiB.
fn memory(options: &Options) -> Result<[Option<f64>; 2]> {
    let mut resident = [None; 2];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (at, resident) in resident.iter_mut().enumerate() {
        // One after the other, on clusters of their own.
        let side = match at {
            0 if options.measures(Only::Original) => Side::original(Original::Etcd, NODES)?,
            1 if options.measures(Only::Buttress) => Side::buttress(&options.binary, "etcd")?,
            _ => continue,
        };
        let start = Instant::now();
        let empty: f64 = side.resident_mib()?.iter().sum();
        runtime.block_on(load(&side, "memory/", options.keys))?;
        let loaded = start.elapsed();
        std::thread::sleep(SETTLE);
        let nodes = side.resident_mib()?;
        *resident = Some(nodes.iter().sum());
        eprintln!(
            "{}: {} keys in {:.1} s; resident per node {nodes:.0?} MiB, {empty:.0} MiB together when empty",
            side.name,
            options.keys,
            loaded.as_secs_f64()
        );
    }
    Ok(resident)
}
