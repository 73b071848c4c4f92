//! The load: bounded, made of what users do, and all of it recorded.
//!
//! | client | does |
//! |---|---|
//! | keys | put, get, compare-and-swap, delete; transactions over two keys with a guard that also append a record |
//! | producers | numbered records over `POST /events`, each sent again until it is acknowledged |
//! | pipeline | reads records, and commits cursor, output and state in one entry |
//! | lock | takes a lock by a lease, writes under its fencing token, gives it up or lets it run out |
//! | watcher | follows all changes, and goes on elsewhere when its connection breaks |
//!
//! Beside them a deployed function passes every record of the producers on to a topic of its own.
//!
//! A client has a node that it likes and asks another one now and then. Keys are new every [`WINDOW`], so each key's history
//! is short and judging stays cheap however long the run is. Values and records carry serials that nobody else uses.

use std::{sync::Arc, time::Duration};

use buttress_core::{
    Cursor, Guard, KeyRange, LeaseId, Offset, Put, Revision,
    entry::{LeaseChange, Sequence},
    ledger::KeyEvent,
};
use buttress_oracle::{Appended, Commit, Done, Outcome, Records, Serial, Session, SessionEnd, What};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::{
    ask::Reply,
    dice::Dice,
    record::SampleKind,
    world::{Client, World},
};

pub const ORDERS: &str = "orders";
pub const SHIPPED: &str = "shipped";
pub const TRANSACTIONS: &str = "transactions";
pub const GROUP: &str = "chaos-pipeline";
/// All keys of the clients begin so; whatever else is written to the key space is not theirs.
pub const SCOPE: &str = "chaos/";
pub const PIPE_STATE: &str = "chaos/pipe/state";
pub const LOCKS: &str = "chaos/lock/";

/// Keys live this long.
const WINDOW: Duration = Duration::from_secs(10);
const KEYS_PER_WINDOW: u64 = 6;
const OP_DEADLINE: Duration = Duration::from_secs(3);
/// After a refused connection or no answer.
const PAUSE: Duration = Duration::from_millis(150);
const LOCK_TTL_MS: u64 = 2_000;
/// Records that the pipeline takes at once.
const PIPE_BATCH: usize = 20;

pub const KEY_CLIENTS: u64 = 4;
pub const PRODUCERS: u64 = 2;
pub const LOCK_CLIENTS: u64 = 2;

/// Client numbers in the history.
const PRODUCER_BASE: u64 = 10;
const PIPELINE: u64 = 20;
const LOCK_BASE: u64 = 30;
pub const DIRECTOR: u64 = 40;

fn value(serial: Serial) -> Bytes {
    serial.to_string().into()
}

fn put(key: &Bytes, serial: Serial) -> Put {
    Put { key: key.clone(), value: Some(value(serial)), lease: None }
}

pub fn plain(serial: Serial) -> String {
    json!({"serial": serial.0}).to_string()
}

pub async fn pause(dice: &mut Dice, from_ms: u64, to_ms: u64) {
    tokio::time::sleep(Duration::from_millis(from_ms + dice.below(to_ms - from_ms))).await;
}

/// The client's own node mostly, another one now and then.
pub fn pick(dice: &mut Dice, home: u64, nodes: usize) -> usize {
    if dice.below(5) > 0 { home as usize % nodes } else { dice.below(nodes as u64) as usize }
}

pub async fn keys(world: Arc<World>, id: u64, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut client = Client::new(id, OP_DEADLINE);
    let nodes = world.nodes.len();
    while !world.is_stopped() {
        pause(&mut dice, 15, 45).await;
        let window = world.recorder.elapsed().as_secs() / WINDOW.as_secs();
        let key = |n: u64| Bytes::from(format!("{SCOPE}k/{window}/{n}"));
        let one = dice.below(KEYS_PER_WINDOW);
        let node = pick(&mut dice, id, nodes);
        let (a, b) = (key(one), key((one + 1 + dice.below(KEYS_PER_WINDOW - 1)) % KEYS_PER_WINDOW));
        let outcome = match dice.below(100) {
            0..30 => {
                let commit = Commit { puts: vec![put(&a, world.serial())], ..Commit::default() };
                client.commit(&world, node, commit, plain).await
            }
            30..65 => client.read(&world, node, &a, true).await,
            65..72 => client.read(&world, node, &a, false).await,
            72..80 => {
                let commit = Commit { puts: vec![Put { key: a, value: None, lease: None }], ..Commit::default() };
                client.commit(&world, node, commit, plain).await
            }
            80..90 => swap(&world, &mut client, node, &a).await,
            _ => transaction(&world, &mut client, node, &a, &b).await,
        };
        if matches!(outcome, Outcome::Failed | Outcome::Unknown) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn revision_of(outcome: &Outcome) -> Option<Revision> {
    match outcome {
        Outcome::Found(found) => Some(found.kvs.first().map_or(Revision(0), |kv| kv.mod_revision)),
        _ => None,
    }
}

/// Reads, and writes only if nobody else has meanwhile.
async fn swap(world: &World, client: &mut Client, node: usize, key: &Bytes) -> Outcome {
    let read = client.read(world, node, key, true).await;
    let Some(revision) = revision_of(&read) else { return read };
    let guards = vec![Guard::ModRevision { key: key.clone(), revision }];
    let commit = Commit { guards, puts: vec![put(key, world.serial())], ..Commit::default() };
    client.commit(world, node, commit, plain).await
}

/// Two keys and a record, if one of the keys is still what it was.
async fn transaction(world: &World, client: &mut Client, node: usize, a: &Bytes, b: &Bytes) -> Outcome {
    let read = client.read(world, node, a, true).await;
    let Some(revision) = revision_of(&read) else { return read };
    let commit = Commit {
        guards: vec![Guard::ModRevision { key: a.clone(), revision }],
        puts: vec![put(a, world.serial()), put(b, world.serial())],
        appends: vec![Records { log: world.log(TRANSACTIONS), sequence: None, serials: vec![world.serial()] }],
        ..Commit::default()
    };
    client.commit(world, node, commit, plain).await
}

/// Sends numbered records one after the other, each again and again until it is acknowledged. In the history this is one
/// call: whichever of its requests arrived, the record is there once.
pub async fn producer(world: Arc<World>, which: u64, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut client = Client::new(PRODUCER_BASE + which, OP_DEADLINE);
    let log = world.log(ORDERS);
    let name = format!("p{which}");
    let mut number = 0;
    while !world.is_stopped() {
        pause(&mut dice, 25, 75).await;
        number += 1;
        let serial = world.serial();
        let sequence = Sequence { producer: format!("device:{name}"), epoch: 0, number };
        let records = Records { log, sequence: Some(sequence), serials: vec![serial] };
        let body = json!({"p": name, "seq": number, "serial": serial.0});
        let op = world.recorder.invoke(client.id, What::Commit(Commit { appends: vec![records], ..Commit::default() }));
        let path = format!("/events?topic={ORDERS}");
        loop {
            let node = pick(&mut dice, which, world.nodes.len());
            let began = world.recorder.elapsed();
            let reply = client.caller.post(&world.nodes[node].http, &path, &body, client.deadline).await;
            if let Reply::Answer { status: 200, json } = &reply {
                let offset = json["offsets"][0]["offset"].as_i64();
                let place = offset.map_or(Appended::Before, |offset| Appended::At(Offset(offset)));
                let outcome = Outcome::Done(Done { revision: None, offsets: vec![place] });
                world.recorder.complete(op, outcome.clone());
                client.sampled(&world, node, began, SampleKind::Write, &outcome);
                break;
            }
            let outcome = match &reply {
                Reply::NotSent => Outcome::Failed,
                Reply::Answer { status: 503, .. } | Reply::NoAnswer => Outcome::Unknown,
                Reply::Answer { status, json } => {
                    world.recorder.problem(format!("{}: {status} {json} to {body}", world.nodes[node].name));
                    Outcome::Unknown
                }
            };
            client.sampled(&world, node, began, SampleKind::Write, &outcome);
            if world.is_stopped() {
                // Its outcome stays unknown.
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A record of a topic's one partition as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub offset: Offset,
    pub serial: Serial,
    /// The input that the record was made of.
    pub of: Option<Serial>,
}

/// Reads records from an offset on.
///
/// # Errors
/// The answer, where there is one that no fault explains; `None` where there is none.
pub async fn fetch(
    client: &mut Client,
    address: &str,
    topic: &str,
    from: Offset,
    max: usize,
) -> Result<Vec<Read>, Option<String>> {
    let path = format!("/v1/topics/{topic}/partitions/0/records?offset={from}&max={max}");
    let reply = client.caller.get(address, &path, client.deadline).await;
    let json = match reply {
        Reply::Answer { status: 200, json } => json,
        // A node that is behind does not have the offset yet.
        Reply::Answer { status: 404 | 416 | 503, .. } | Reply::NotSent | Reply::NoAnswer => return Err(None),
        Reply::Answer { status, json } => return Err(Some(format!("{status} {json} to GET {path}"))),
    };
    let read = |record: &Value| {
        let value: Value = serde_json::from_str(record["value"].as_str()?).ok()?;
        let serial = Serial(value["serial"].as_u64()?);
        Some(Read { offset: Offset(record["offset"].as_i64()?), serial, of: value["of"].as_u64().map(Serial) })
    };
    let records = json["records"].as_array().map(Vec::as_slice).unwrap_or_default();
    records.iter().map(|record| read(record).ok_or_else(|| Some(format!("the record {record}")))).collect()
}

/// Takes records in order; cursor, outputs and state of a batch are one entry, guarded by the cursor.
pub async fn pipeline(world: Arc<World>, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut client = Client::new(PIPELINE, OP_DEADLINE);
    let (orders, shipped) = (world.log(ORDERS), world.log(SHIPPED));
    let state = Bytes::from(PIPE_STATE);
    let mut at: Option<Option<Offset>> = None;
    while !world.is_stopped() {
        pause(&mut dice, 80, 160).await;
        let node = pick(&mut dice, 2, world.nodes.len());
        // Where it is, it learns from the state that it committed with the cursor, also after an unknown outcome.
        let cursor = match at {
            Some(cursor) => cursor,
            None => match client.read(&world, node, &state, true).await {
                Outcome::Found(found) => {
                    let text = found.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
                    text.and_then(|text| text.split(' ').next()?.parse().ok()).map(Offset)
                }
                _ => continue,
            },
        };
        let from = cursor.unwrap_or(Offset(0));
        let address = world.nodes[node].http.clone();
        let inputs = match fetch(&mut client, &address, ORDERS, from, PIPE_BATCH).await {
            Ok(inputs) => inputs,
            Err(problem) => {
                problem.into_iter().for_each(|problem| world.recorder.problem(problem));
                continue;
            }
        };
        let Some(last) = inputs.last() else {
            at = Some(cursor);
            continue;
        };
        let next = Offset(last.offset.0 + 1);
        let outputs: Vec<(Serial, Serial)> = inputs.iter().map(|input| (world.serial(), input.serial)).collect();
        let text = format!("{} {}", next.0, world.serial());
        let commit = Commit {
            guards: vec![Guard::Cursor { group: GROUP.into(), log: orders, expected: cursor }],
            puts: vec![Put { key: state.clone(), value: Some(text.into()), lease: None }],
            appends: vec![Records {
                log: shipped,
                sequence: None,
                serials: outputs.iter().map(|(serial, _)| *serial).collect(),
            }],
            cursors: vec![Cursor { group: GROUP.into(), log: orders, next, metadata: String::new() }],
            ..Commit::default()
        };
        let record = |serial: Serial| {
            let (_, of) = outputs.iter().find(|(output, _)| *output == serial).expect("it is one of ours");
            json!({"serial": serial.0, "of": of.0}).to_string()
        };
        at = match client.commit(&world, node, commit, record).await {
            Outcome::Done(_) => Some(Some(next)),
            _ => None,
        };
    }
}

/// Takes a lock that hangs on a lease; what it writes under it is guarded by the lock's creation revision, the token.
pub async fn lock(world: Arc<World>, which: u64, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut client = Client::new(LOCK_BASE + which, OP_DEADLINE);
    let lock = Bytes::from(format!("{LOCKS}a"));
    let protected = Bytes::from(format!("{SCOPE}protected/a"));
    while !world.is_stopped() {
        pause(&mut dice, 100, 400).await;
        let node = pick(&mut dice, which + 1, world.nodes.len());
        let lease = LeaseId(world.serial().0 as i64);
        let take = Commit {
            guards: vec![Guard::CreateRevision { key: lock.clone(), revision: Revision(0) }],
            leases: vec![LeaseChange::Grant { lease, ttl_ms: LOCK_TTL_MS }],
            puts: vec![Put { key: lock.clone(), value: Some(value(world.serial())), lease: Some(lease) }],
            ..Commit::default()
        };
        // If nobody knows whether it was taken, it runs out by itself.
        let Outcome::Done(Done { revision: Some(token), .. }) = client.commit(&world, node, take, plain).await else {
            continue;
        };
        for _ in 0..1 + dice.below(4) {
            // Now and then longer than the lease lives: then the token protects, not the clock.
            let longest = if dice.below(8) == 0 { LOCK_TTL_MS + 1_000 } else { 200 };
            pause(&mut dice, 50, longest).await;
            let commit = Commit {
                guards: vec![Guard::CreateRevision { key: lock.clone(), revision: token }],
                leases: if dice.below(2) == 0 { vec![LeaseChange::KeepAlive { lease }] } else { Vec::new() },
                puts: vec![put(&protected, world.serial())],
                ..Commit::default()
            };
            let node = pick(&mut dice, which + 1, world.nodes.len());
            if !matches!(client.commit(&world, node, commit, plain).await, Outcome::Done(_)) {
                break;
            }
        }
        if dice.below(4) > 0 {
            let release = Commit { leases: vec![LeaseChange::Revoke { lease }], ..Commit::default() };
            client.commit(&world, node, release, plain).await;
        }
    }
}

/// Follows every change from revision 2 on. A connection that breaks, or that says nothing for long, is replaced by one to
/// the next node, from the first revision not yet seen.
pub async fn watcher(world: Arc<World>) -> Vec<Session> {
    let mut sessions = Vec::new();
    let mut from = Revision(2);
    let mut node = 0;
    while !world.is_stopped() {
        let mut session = Session { from, events: Vec::new(), end: SessionEnd::Lost };
        let stop = async {
            while !world.is_stopped() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            _ = follow(&world.nodes[node].http, &mut session, None) => {}
            () = stop => {}
        }
        if let Some(last) = session.events.last() {
            from = Revision(last.revision.0 + 1);
        }
        if !session.events.is_empty() {
            sessions.push(session);
        }
        node = (node + 1) % world.nodes.len();
        tokio::time::sleep(PAUSE).await;
    }
    sessions
}

/// A connection that shows nothing, not even that it is idle, for this long is given up. An idle one shows a line every 15 s.
const WATCH_SILENCE: Duration = Duration::from_secs(20);
/// A node that is asked for a watch answers at once.
const WATCH_CONNECT: Duration = Duration::from_secs(2);

/// Adds the changes that one node shows to `session`, until its connection ends or `upto` was seen.
pub async fn follow(address: &str, session: &mut Session, upto: Option<Revision>) -> Option<()> {
    let stream = tokio::time::timeout(WATCH_CONNECT, tokio::net::TcpStream::connect(address)).await.ok()?.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = tokio::spawn(connection);
    // The connection's task ends with us, whichever way we end.
    let _ends = AbortOnDrop(connection.abort_handle());
    let request = http::Request::builder()
        .uri(format!("/v1/watch?prefix={SCOPE}&from={}", session.from))
        .header(http::header::HOST, address)
        .body(http_body_util::Empty::<Bytes>::new())
        .expect("our own path is valid");
    let answer = tokio::time::timeout(WATCH_CONNECT, sender.send_request(request)).await.ok()?.ok()?;
    if answer.status() != 200 {
        return None;
    }
    let mut body = answer.into_body();
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        if session.events.last().is_some_and(|last| upto.is_some_and(|upto| last.revision >= upto)) {
            return Some(());
        }
        let frame = tokio::time::timeout(WATCH_SILENCE, body.frame()).await.ok()??.ok()?;
        buffer.extend_from_slice(frame.data_ref()?);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            if line.len() > 1 {
                session.events.extend(events(&serde_json::from_slice(&line).ok()?)?);
            }
        }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn bytes_of(json: &Value, name: &str) -> Option<Bytes> {
    use base64::Engine as _;
    match json[name].as_str() {
        Some(text) => Some(text.to_owned().into()),
        None => {
            let text = json[format!("{name}_base64")].as_str()?;
            Some(base64::engine::general_purpose::STANDARD.decode(text).ok()?.into())
        }
    }
}

/// One line of a watch.
fn events(line: &Value) -> Option<Vec<KeyEvent>> {
    let revision = Revision(line["revision"].as_u64()?);
    let event = |event: &Value| {
        let value = if event["type"] == "put" { Some(bytes_of(event, "value")?) } else { None };
        Some(KeyEvent { revision, key: bytes_of(event, "key")?, value })
    };
    line["events"].as_array()?.iter().map(event).collect()
}

/// The keys of all clients.
pub fn scope() -> KeyRange {
    KeyRange::prefix(SCOPE)
}
