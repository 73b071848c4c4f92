//! Chaos of consensus, checked: a cluster of real processes is hurt on a seeded schedule while clients use it, and
//! everything that they saw is judged.
//!
//! What it never does: it never looks inside a node, and it never calls an outcome that nobody knows a failure.
//!
//! The way of a run ([`run`]): lay out the network ([`network`], [`link`]) and a disk that can be full ([`disk`]); start the nodes;
//! make topics and deploy a function; let the clients go ([`clients`], [`etcd`], [`kafka`], recorded by [`record`] in the words of [`world`]); play fault
//! after fault ([`schedule`] says what is expected, [`director`] does it and looks); stop the clients, let everybody catch up, read
//! everything back; give the whole history to the oracles ([`check`], [`groups`]); and tell ([`report`], [`terminal`]).

pub mod dice;
pub mod schedule;

pub mod disk;
mod etcd;
mod groups;
mod kafka;
pub mod link;
pub mod network;

pub mod ask;
pub mod clients;
pub mod record;
pub mod world;

pub mod director;

pub mod check;
pub mod report;
pub mod terminal;

pub mod cli;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use buttress_core::{Code, Error, Guard, LogId, Offset, Revision};
use buttress_oracle::{Commit, Outcome, Session, SessionEnd, Watcher};
use bytes::Bytes;
use http::Method;
use serde_json::json;
use tokio::{sync::Notify, task::JoinSet};

use ask::Reply;
use check::Leftovers;
use clients::{GROUP, ORDERS, PIPE_STATE, Read, SHIPPED, TRANSACTIONS};
use dice::Dice;
use director::Director;
use disk::SmallDisk;
use network::{Mode, Network};
use record::{Answered, SampleKind};
use report::{NotRun, Parts, Report};
use schedule::{Kind, Schedule};
use terminal::{Now, Terminal};
use world::{Client, Node, World};

use crate::{client, cluster::LocalCluster};

/// The function that passes records on, and traps on every hundredth: its outputs must be exactly once nevertheless.
const FAULTY: &[u8] = include_bytes!("../../../../guests/built/faulty.wasm");
const RELAY: &str = "relay";
const RELAYED: &str = "faulty-out";

/// The cluster is whole for so long before the first fault, and between two.
const WARM_UP: Duration = Duration::from_secs(3);
const BETWEEN: Duration = Duration::from_secs(2);
/// Clients end within this time: their longest patience, and a little.
const CLIENTS_END_WITHIN: Duration = Duration::from_secs(15);
/// When the clients have stopped, everything comes to rest within this time.
const SETTLE_WITHIN: Duration = Duration::from_secs(60);
const READ_DEADLINE: Duration = Duration::from_secs(20);
const PAGE: usize = 1000;
const MONITOR_EVERY: Duration = Duration::from_millis(250);

pub struct Options {
    pub duration: Duration,
    pub nodes: usize,
    pub seed: u64,
    pub kinds: Vec<Kind>,
    pub network: Mode,
    /// An empty directory.
    pub dir: PathBuf,
}

/// Plays and judges. `stop` ends the faults early.
///
/// # Errors
/// When the cluster cannot be started, or not be brought back.
pub async fn run(options: Options, stop: Arc<Notify>) -> anyhow::Result<Report> {
    let terminal = Arc::new(Terminal::default());
    let (network, plans) = Network::lay_out(options.network, options.nodes, options.seed).await?;
    let (kinds, mut not_run, disk) = possible(&options, &plans[options.nodes - 1].member.name);
    let cluster_id = format!("chaos-{:08x}", crate::dev::seed()? as u32);
    let cluster = Arc::new(LocalCluster::lay_out_as(&options.dir, &cluster_id, &plans)?);
    terminal.line(&format!(
        "{} nodes, network: {}, seed {}, {:.1} minutes of faults",
        options.nodes,
        network.name(),
        options.seed,
        options.duration.as_secs_f64() / 60.0
    ));
    for (kind, reason) in &not_run {
        terminal.line(&format!("not run: {}: {reason}", kind.name()));
    }
    let result = async {
        cluster.start_all().await?;
        let nodes = plans.iter().map(|plan| &plan.member);
        let node = |m: &crate::config::MemberConfig| Node {
            id: m.id,
            name: m.name.clone(),
            http: m.http.clone(),
            etcd: m.etcd.clone(),
            kafka: m.kafka.clone(),
        };
        let nodes: Vec<Node> = nodes.map(node).collect();
        let (topics, parcels) = set_up(&nodes[0]).await?;
        let world = Arc::new(World::new(nodes, topics, parcels));
        let director = Director::new(world.clone(), cluster.clone(), network, disk, terminal.clone());
        play(&options, &kinds, &mut not_run, world, director, terminal.clone(), stop).await
    }
    .await;
    terminal.clear();
    cluster.stop_all().await;
    result
}

/// Which faults can be played here, and why the others cannot.
fn possible(options: &Options, node: &str) -> (Vec<Kind>, Vec<NotRun>, Option<(usize, SmallDisk)>) {
    let mut not_run = Vec::new();
    let mut disk = None;
    let mut kinds = options.kinds.clone();
    kinds.retain(|kind| match kind {
        Kind::DiskFull => match SmallDisk::mount(&options.dir.join(node)) {
            Ok(small) => {
                disk = Some((options.nodes - 1, small));
                true
            }
            Err(error) => {
                not_run.push((*kind, format!("no small disk can be mounted here: {}", error.message)));
                false
            }
        },
        _ => true,
    });
    (kinds, not_run, disk)
}

/// Topics and the function.
async fn set_up(node: &Node) -> anyhow::Result<(BTreeMap<LogId, String>, Vec<LogId>)> {
    let server = client::Client::new(&format!("http://{}", node.http))?;
    let mut topics = BTreeMap::new();
    for topic in [ORDERS, SHIPPED, TRANSACTIONS, RELAYED] {
        let mut wanted = json!({"name": topic, "partitions": 1});
        if topic == ORDERS {
            wanted["sequence_fields"] = json!(["p", "seq"]);
        }
        let made = server.send_json(Method::POST, "/v1/topics", &wanted).await?;
        let log = made["partitions"][0]["log"].as_u64().context("a topic has a log")?;
        topics.insert(LogId(log as u32), topic.to_owned());
    }
    let wanted = json!({"name": kafka::TOPIC, "partitions": kafka::PARTITIONS});
    let made = server.send_json(Method::POST, "/v1/topics", &wanted).await?;
    let parcels = kafka::logs(&made).context("a topic has logs")?;
    let blob = server.send_bytes(Method::PUT, "/v1/blobs", Bytes::from_static(FAULTY)).await?;
    let manifest = json!({
        "component": blob["digest"],
        "trigger": {"topic": ORDERS, "attempts": 10},
        "grants": {"topics": [RELAYED]},
    });
    server.send_json(Method::PUT, &format!("/v1/functions/{RELAY}"), &manifest).await?;
    Ok((topics, parcels))
}

async fn play(
    options: &Options,
    kinds: &[Kind],
    not_run: &mut Vec<NotRun>,
    world: Arc<World>,
    mut director: Director,
    terminal: Arc<Terminal>,
    stop: Arc<Notify>,
) -> anyhow::Result<Report> {
    let mut dice = Dice::new(options.seed);
    let mut load = JoinSet::new();
    for id in 0..clients::KEY_CLIENTS {
        load.spawn(clients::keys(world.clone(), id, dice.roll()));
    }
    for which in 0..clients::PRODUCERS {
        load.spawn(clients::producer(world.clone(), which, dice.roll()));
    }
    for which in 0..clients::LOCK_CLIENTS {
        load.spawn(clients::lock(world.clone(), which, dice.roll()));
    }
    load.spawn(clients::pipeline(world.clone(), dice.roll()));
    for which in 0..etcd::CLIENTS {
        load.spawn(etcd::transactions(world.clone(), which, dice.roll()));
    }
    for which in 0..kafka::PRODUCERS {
        load.spawn(kafka::producer(world.clone(), which, dice.roll()));
    }
    for which in 0..kafka::MEMBERS {
        load.spawn(kafka::member(world.clone(), which, dice.roll()));
    }
    let watching = tokio::spawn(clients::watcher(world.clone()));
    let etcd_watching = tokio::spawn(etcd::watcher(world.clone()));
    let monitor = tokio::spawn(monitor(world.clone(), terminal.clone(), options.duration));

    let (played, ended_early) = faults(options, kinds, dice.roll(), &world, &mut director, &terminal, &stop).await?;
    world.stopped.store(true, Ordering::Relaxed);
    let ended = async { while load.join_next().await.is_some() {} };
    if tokio::time::timeout(CLIENTS_END_WITHIN, ended).await.is_err() {
        load.abort_all();
        world.recorder.problem("a client did not end in time".into());
    }
    let elapsed = world.recorder.elapsed();
    let sessions = watching.await.context("the watcher panicked")?;
    let etcd_sessions = etcd_watching.await.context("the watcher over etcd's protocol panicked")?;
    monitor.abort();
    terminal.clear();
    terminal.event(world.recorder.elapsed(), "judge", "the clients have stopped; everything is read back and judged");

    let (mut left, changes, sessions) = read_back(&world, &mut director, sessions).await;
    let (mut history, samples, problems) = world.recorder.take();
    let (mut over_etcd, _, _) = world.over_etcd.take();
    let (mut over_kafka, _, _) = world.over_kafka.take();
    let group = world.groups.take();
    let parcels = world.parcels.clone();
    left.problems = problems;
    left.double_leaders = world.double_leaders();
    left.terms = world.terms();
    if let Some(changes) = &changes {
        check::attach_changes(&mut history, false, changes);
        check::attach_changes(&mut over_etcd, true, changes);
    }
    let watcher = |name: &str, sessions| Watcher { name: name.into(), range: clients::scope(), sessions };
    let watchers = vec![watcher("watcher", sessions), watcher("watcher over etcd's protocol", etcd_sessions)];
    let operations =
        history.operations().len() + over_etcd.operations().len() + over_kafka.operations().len() + group.len();
    // Takes a while for long runs, and must not keep the heartbeat of our own sockets.
    let judging = move || {
        let mut promises = check::check(&mut history, &left);
        promises.extend(check::check_etcd(&over_etcd));
        promises.extend(check::check_kafka(&mut over_kafka, &group, &parcels, left.kafka.as_ref()));
        promises.push(check::check_watchers(changes.as_ref(), watchers));
        promises
    };
    let promises = tokio::task::spawn_blocking(judging).await?;
    Ok(Report::of(Parts {
        seed: options.seed,
        nodes: options.nodes,
        network: director.network.name(),
        elapsed,
        ended_early,
        operations,
        kinds: options.kinds.clone(),
        played,
        not_run: std::mem::take(not_run),
        promises,
        samples,
    }))
}

/// Plays faults until the time is over; `true` when it was told to stop before.
async fn faults(
    options: &Options,
    kinds: &[Kind],
    seed: u64,
    world: &World,
    director: &mut Director,
    terminal: &Terminal,
    stop: &Notify,
) -> anyhow::Result<(Vec<director::Played>, bool)> {
    let mut played = Vec::new();
    let until = Instant::now() + options.duration;
    let mut wait = WARM_UP;
    if kinds.is_empty() {
        return Err(Error::new(Code::CONFIG, "none of the wanted faults can be played here").into());
    }
    let mut schedule = Schedule::new(kinds.to_vec(), seed);
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.notified() => return Ok((played, true)),
        }
        if Instant::now() >= until {
            return Ok((played, false));
        }
        wait = BETWEEN;
        let (kind, choice) = schedule.draw();
        let expected = kind.expectation();
        let at = world.recorder.elapsed();
        terminal.event(at, "expect", &format!("{}: {}", kind.name(), expected.what));
        terminal.line(&format!("{:>22}safety: {}", "", expected.safety));
        terminal.line(&format!("{:>22}liveness: {}", "", expected.liveness));
        let one = tokio::select! {
            one = director.play(kind, choice) => one?,
            () = stop.notified() => {
                director.restore().await?;
                return Ok((played, true));
            }
        };
        let at = world.recorder.elapsed();
        match one.held() {
            true => terminal.event(at, "held", kind.name()),
            false => terminal.event(at, "broken", &format!("{}: {}", kind.name(), one.broken.join("; "))),
        }
        played.push(one);
    }
}

/// Notes who leads, all the time, and redraws the line.
async fn monitor(world: Arc<World>, terminal: Arc<Terminal>, whole: Duration) {
    loop {
        tokio::time::sleep(MONITOR_EVERY).await;
        let statuses = world.statuses(&world.all()).await;
        let best = statuses.iter().filter(|(_, status)| status.leader.is_some()).max_by_key(|(_, status)| status.term);
        let doing = best.map_or("no leader".to_owned(), |(_, status)| {
            let leader = &world.nodes[world.position(status.leader.expect("filtered above"))];
            format!("{} leads", leader.name)
        });
        let now = world.recorder.elapsed();
        let since = now.saturating_sub(Duration::from_secs(2));
        let mut took: Vec<f64> = world
            .recorder
            .samples_since(since)
            .iter()
            .filter(|sample| sample.kind != SampleKind::Other && matches!(sample.answer, Answered::Yes | Answered::No))
            .map(|sample| (sample.ended - sample.began).as_secs_f64() * 1_000.0)
            .collect();
        took.sort_by(f64::total_cmp);
        terminal.now(&Now {
            elapsed: now,
            whole,
            operations: world.recorder.operations(),
            per_second: took.len() as u64 / 2,
            p99_ms: took.get(took.len() * 99 / 100).copied(),
            doing,
        });
    }
}

type Changes = (Vec<buttress_core::ledger::KeyEvent>, Revision);

/// Waits until everything has come to rest, and reads what is there.
async fn read_back(
    world: &World,
    director: &mut Director,
    mut sessions: Vec<Session>,
) -> (Leftovers, Option<Changes>, Vec<Session>) {
    let mut left = Leftovers::default();
    let mut client = Client::new(clients::DIRECTOR + 1, READ_DEADLINE);
    left.cursor = cursor(world, &mut client).await;
    let last = director.last_revision().await;
    let mut changes = None;
    match last {
        None => left.missing.push("no commit was acknowledged when everything was over".into()),
        Some(last) => {
            // By one node what counts as the truth, by another what the watcher has yet to see.
            match changes_until(world, 0, Revision(2), last).await {
                Some(seen) => changes = Some((seen.events, last)),
                None => left.missing.push(format!("the changes up to revision {last} could not be read")),
            }
            let seen = sessions.last().and_then(|session| session.events.last()).map(|event| event.revision);
            let from = seen.map_or(Revision(2), |seen| Revision(seen.0 + 1));
            if let Some(mut seen) = changes_until(world, 1, from, last).await {
                seen.end = SessionEnd::UpTo(Revision(last.0 + 1));
                sessions.push(seen);
            }
        }
    }
    let orders = topic(world, &mut client, ORDERS, None).await;
    // The function may still be at work.
    let wanted = orders.as_ref().map(Vec::len);
    let relayed = topic(world, &mut client, RELAYED, wanted).await;
    let shipped = topic(world, &mut client, SHIPPED, None).await;
    let transactions = topic(world, &mut client, TRANSACTIONS, None).await;
    for (name, reads) in [(ORDERS, &orders), (RELAYED, &relayed), (SHIPPED, &shipped), (TRANSACTIONS, &transactions)] {
        if reads.is_none() {
            left.missing.push(format!("topic {name} could not be read back"));
        }
    }
    left.orders = orders.map(|reads| (world.log(ORDERS), reads));
    left.shipped = shipped.map(|reads| (world.log(SHIPPED), reads));
    left.transactions = transactions.map(|reads| (world.log(TRANSACTIONS), reads));
    left.relayed = relayed;
    left.kafka = kafka::drain(world, clients::DIRECTOR, SETTLE_WITHIN).await;
    if left.kafka.is_none() {
        left.missing.push(format!("the group {} did not come to the end of its topic", kafka::GROUP));
    }
    left.fingerprints = fingerprints(world, &mut client).await;
    (left, changes, sessions)
}

async fn changes_until(world: &World, node: usize, from: Revision, upto: Revision) -> Option<Session> {
    let started = Instant::now();
    while started.elapsed() < SETTLE_WITHIN {
        let mut session = Session { from, events: Vec::new(), end: SessionEnd::Lost };
        if from > upto || clients::follow(&world.nodes[node].http, &mut session, Some(upto)).await.is_some() {
            return Some(session);
        }
        tokio::time::sleep(MONITOR_EVERY).await;
    }
    None
}

/// Where the pipeline's cursor is, and where its state says it is. The cursor is asked for by a guard.
async fn cursor(world: &World, client: &mut Client) -> Option<(Offset, Offset)> {
    let started = Instant::now();
    let key = Bytes::from(PIPE_STATE);
    while started.elapsed() < SETTLE_WITHIN {
        let Outcome::Found(found) = client.read(world, 0, &key, true).await else { continue };
        let state = found.kvs.first().and_then(|kv| {
            let text = String::from_utf8_lossy(&kv.value).into_owned();
            text.split(' ').next()?.parse().ok()
        });
        let expected = state.map(Offset);
        let guard = Guard::Cursor { group: GROUP.into(), log: world.log(ORDERS), expected };
        let serial = world.serial();
        let put = buttress_core::Put {
            key: format!("{}cursor/{serial}", clients::SCOPE).into(),
            value: Some(serial.to_string().into()),
            lease: None,
        };
        let commit = Commit { guards: vec![guard], puts: vec![put], ..Commit::default() };
        match client.commit(world, 0, commit, clients::plain).await {
            Outcome::Done(_) => return Some((expected.unwrap_or(Offset(0)), expected.unwrap_or(Offset(0)))),
            // Nobody moves it any more, so it is elsewhere than its state says.
            Outcome::Refused { .. } => return Some((Offset(-1), expected.unwrap_or(Offset(0)))),
            _ => {}
        }
    }
    None
}

/// A topic's whole partition, once it has at least `wanted` records.
async fn topic(world: &World, client: &mut Client, name: &str, wanted: Option<usize>) -> Option<Vec<Read>> {
    let started = Instant::now();
    let mut reads: Vec<Read> = Vec::new();
    while started.elapsed() < SETTLE_WITHIN {
        let from = reads.last().map_or(Offset(0), |read| Offset(read.offset.0 + 1));
        match clients::fetch(client, &world.nodes[0].http, name, from, PAGE).await {
            Ok(page) if page.is_empty() && wanted.is_none_or(|wanted| reads.len() >= wanted) => return Some(reads),
            Ok(page) if page.is_empty() => tokio::time::sleep(MONITOR_EVERY).await,
            Ok(page) => reads.extend(page),
            Err(Some(problem)) => {
                world.recorder.problem(problem);
                return None;
            }
            Err(None) => tokio::time::sleep(MONITOR_EVERY).await,
        }
    }
    // Fewer than wanted: that is for the judge to say.
    Some(reads)
}

/// Every node's fingerprint at one index.
async fn fingerprints(world: &World, client: &mut Client) -> Option<Vec<(String, u64, String)>> {
    let started = Instant::now();
    while started.elapsed() < SETTLE_WITHIN {
        let mut prints = Vec::new();
        for node in &world.nodes {
            let reply = client.caller.get(&node.http, "/v1/fingerprint", READ_DEADLINE).await;
            if let Reply::Answer { status: 200, json } = reply
                && let (Some(index), Some(print)) = (json["index"].as_u64(), json["fingerprint"].as_str())
            {
                prints.push((node.name.clone(), index, print.to_owned()));
            }
        }
        if prints.len() == world.nodes.len() && prints.iter().all(|(_, index, _)| *index == prints[0].1) {
            return Some(prints);
        }
        tokio::time::sleep(MONITOR_EVERY).await;
    }
    None
}
