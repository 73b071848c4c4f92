//! The load of Kafka's clients, over Kafka's protocol: idempotent producers, and members of a classic group that join, are
//! rebalanced, commit, leave, die, and sleep until they are given up. What producers did goes into a history of its own
//! (RECORD-1, OFFSET-1), what the group did into notes that [`super::groups`] judges (GROUP-1, GROUP-OUT).
//!
//! A client does what ordinary ones do: it asks who leads, sends again what may not have arrived, and goes on in its generation
//! after a commit that nobody answered. It may ask a node that leads no longer, and a member that slept tries its old
//! generation first.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use buttress_core::{LogId, Offset, Sequence};
use buttress_oracle::{Appended, Commit, Done, Outcome, Records, Serial, What};
use buttress_wire::{
    kafka::{
        self, Body, ErrorCode, RequestHeader, fetch::*, find_coordinator::*, heartbeat::*, init_producer_id::*,
        join_group::*, leave_group::*, metadata::*, offset_commit::*, offset_fetch::*, produce::*, sync_group::*,
    },
    records::{Builder, Producer, split_batches},
};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    clients::{Read, pause},
    dice::Dice,
    groups::{Committed, Note, Noted},
    record::{Answered, Sample, SampleKind},
    world::World,
};

pub const TOPIC: &str = "parcels";
pub const PARTITIONS: usize = 3;
pub const GROUP: &str = "chaos-readers";
pub const PRODUCERS: u64 = 2;
pub const MEMBERS: u64 = 3;
/// Client numbers in the history.
const BASE: u64 = 60;
const DEADLINE: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_secs(1);
/// After a refused connection or no answer.
const PAUSE: Duration = Duration::from_millis(150);
/// The shortest that is allowed.
const SESSION_MS: i32 = 6_000;
const REBALANCE_MS: i32 = 6_000;
/// A join waits for the others, at most as long as they may take.
const JOIN_DEADLINE: Duration = Duration::from_millis(REBALANCE_MS as u64 + 3_000);
const BEAT_EVERY: Duration = Duration::from_millis(500);
const FETCH_WAIT_MS: i32 = 200;
/// A little more than a node gives at once, so that reading back takes more than one answer.
const FETCH_BYTES: i32 = 64 * 1024;
/// The largest answer is that of a fetch.
const ANSWER_BYTES_MAX: u32 = 32 * 1024 * 1024;

/// Connections to the nodes, one request at a time on each.
struct Link {
    streams: Vec<Option<TcpStream>>,
    sent: i32,
}

/// No byte of it left, or it may have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    NotSent,
    NoAnswer,
}

impl Failure {
    fn answered(self) -> Answered {
        match self {
            Self::NotSent => Answered::Failed,
            Self::NoAnswer => Answered::Unknown,
        }
    }
}

impl Link {
    fn new(nodes: usize) -> Self {
        Self { streams: (0..nodes).map(|_| None).collect(), sent: 0 }
    }

    async fn ask<Q: Body, A: Body>(
        &mut self,
        world: &World,
        node: usize,
        version: i16,
        request: &Q,
        deadline: Duration,
    ) -> Result<A, Failure> {
        // Given back after the answer: a connection that owes one is not used again.
        let stream = match self.streams[node].take() {
            Some(stream) => Ok(stream),
            None => {
                let connecting = TcpStream::connect(&world.nodes[node].kafka);
                tokio::time::timeout(CONNECT, connecting).await.ok().and_then(Result::ok).ok_or(Failure::NotSent)
            }
        };
        let mut stream = stream?;
        let _ = stream.set_nodelay(true);
        self.sent += 1;
        let header =
            RequestHeader { api_key: Q::API.key, version, correlation_id: self.sent, client_id: Some("chaos".into()) };
        let frame = kafka::joined(kafka::encode_request(&header, request));
        let exchange = async {
            stream.write_all(&frame).await.ok()?;
            let length = stream.read_u32().await.ok().filter(|length| *length <= ANSWER_BYTES_MAX)?;
            let mut message = vec![0; length as usize];
            stream.read_exact(&mut message).await.ok()?;
            Some(Bytes::from(message))
        };
        let message = tokio::time::timeout(deadline, exchange).await.ok().flatten().ok_or(Failure::NoAnswer)?;
        match kafka::decode_response::<A>(version, message) {
            Ok((id, answer)) if id == header.correlation_id => {
                self.streams[node] = Some(stream);
                Ok(answer)
            }
            told => {
                let name = &world.nodes[node].name;
                let told = told.map(|(id, _)| id);
                world.recorder.problem(format!("{name}: {} is answered with {told:?}", Q::API.name));
                Err(Failure::NoAnswer)
            }
        }
    }

    /// Who leads, as one node has it. One leads all partitions.
    async fn leader(&mut self, world: &World, asked: usize) -> Option<usize> {
        let topic = MetadataRequestTopic { name: Some(TOPIC.into()), ..MetadataRequestTopic::default() };
        let request = MetadataRequest { topics: Some(vec![topic]), ..MetadataRequest::default() };
        let answer: MetadataResponse = self.ask(world, asked, 12, &request, DEADLINE).await.ok()?;
        let leader = answer.topics.first()?.partitions.first()?.leader_id;
        world.nodes.iter().position(|node| i64::try_from(node.id) == Ok(leader.into()))
    }

    async fn coordinator(&mut self, world: &World, asked: usize) -> Option<usize> {
        let request = FindCoordinatorRequest {
            key_type: KEY_TYPE_GROUP,
            coordinator_keys: vec![GROUP.into()],
            ..FindCoordinatorRequest::default()
        };
        let answer: FindCoordinatorResponse = self.ask(world, asked, 6, &request, DEADLINE).await.ok()?;
        let found = answer.coordinators.first().filter(|found| !found.error_code.is_error())?;
        world.nodes.iter().position(|node| i64::try_from(node.id) == Ok(found.node_id.into()))
    }
}

/// Codes that a fault explains: whoever hears one asks again, elsewhere perhaps.
fn comes_again(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NOT_LEADER_OR_FOLLOWER
            | ErrorCode::LEADER_NOT_AVAILABLE
            | ErrorCode::REQUEST_TIMED_OUT
            | ErrorCode::NOT_ENOUGH_REPLICAS
            | ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND
            | ErrorCode::KAFKA_STORAGE_ERROR
            | ErrorCode::NOT_COORDINATOR
            | ErrorCode::COORDINATOR_NOT_AVAILABLE
            | ErrorCode::COORDINATOR_LOAD_IN_PROGRESS
    )
}

/// A member that hears one of these is no longer in its generation.
fn is_fenced(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::ILLEGAL_GENERATION | ErrorCode::UNKNOWN_MEMBER_ID | ErrorCode::REBALANCE_IN_PROGRESS)
}

fn unexplained(world: &World, node: usize, code: ErrorCode, to: &str) {
    world.recorder.problem(format!("{}: {code} to {to}", world.nodes[node].name));
}

fn sampled(world: &World, node: usize, began: Duration, kind: SampleKind, answer: Answered) {
    let ended = world.recorder.elapsed();
    world.recorder.sample(Sample { began, ended, node, kind, answer });
}

/// Batches of an idempotent producer, each sent again until it is acknowledged; in the history a batch is one call. Now and then
/// the producer dies over it, and another one with an identity of its own goes on.
pub async fn producer(world: Arc<World>, which: u64, seed: u64) {
    let mut dice = Dice::new(seed);
    let nodes = world.nodes.len();
    let mut link = Link::new(nodes);
    let mut leader = which as usize % nodes;
    'life: while !world.is_stopped() {
        let request = InitProducerIdRequest { transaction_timeout_ms: 60_000, ..InitProducerIdRequest::default() };
        let asked = dice.below(nodes as u64) as usize;
        let identity: Result<InitProducerIdResponse, _> = link.ask(&world, asked, 5, &request, DEADLINE).await;
        let identity = match identity {
            Ok(identity) if identity.error_code == ErrorCode::NONE => identity,
            other => {
                if let Ok(identity) = other
                    && !comes_again(identity.error_code)
                {
                    unexplained(&world, asked, identity.error_code, "InitProducerId");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (id, epoch) = (identity.producer_id, identity.producer_epoch);
        let mut sequences = [0i32; PARTITIONS];
        while !world.is_stopped() {
            pause(&mut dice, 25, 75).await;
            let partition = dice.below(PARTITIONS as u64) as usize;
            let serials: Vec<Serial> = (0..1 + dice.below(4)).map(|_| world.serial()).collect();
            let base_sequence = sequences[partition];
            let mut batch = Builder::new().producer(Producer { id, epoch, base_sequence });
            for serial in &serials {
                batch.push(0, None, Some(serial.to_string().as_bytes()), &[]);
            }
            let batch = batch.build().expect("there is a record at least");
            sequences[partition] += serials.len() as i32;
            let sequence =
                Sequence { producer: format!("kafka:{id}"), epoch: epoch.into(), number: base_sequence.into() };
            let records = Records { log: world.parcels[partition], sequence: Some(sequence), serials };
            let what = What::Commit(Commit { appends: vec![records], ..Commit::default() });
            let op = world.over_kafka.invoke(BASE + which, what);
            let data = ProducePartition { index: partition as i32, records: batch.into() };
            let topic = ProduceTopic { name: TOPIC.into(), partition_data: vec![data], ..ProduceTopic::default() };
            let request =
                ProduceRequest { acks: -1, timeout_ms: 2_500, topic_data: vec![topic], ..ProduceRequest::default() };
            loop {
                // Somebody who leads no longer must not acknowledge what is lost.
                let node = if dice.below(20) == 0 { dice.below(nodes as u64) as usize } else { leader };
                let began = world.recorder.elapsed();
                let answer: Result<ProduceResponse, _> = link.ask(&world, node, 12, &request, DEADLINE).await;
                let told = answer.map(|answer| {
                    let partition = answer.responses.first().and_then(|topic| topic.partition_responses.first());
                    partition.map_or((ErrorCode::UNKNOWN_SERVER_ERROR, -1), |p| (p.error_code, p.base_offset))
                });
                let place = match told {
                    Ok((ErrorCode::NONE, offset)) if offset >= 0 => Some(Appended::At(Offset(offset))),
                    // So long ago that nobody remembers where.
                    Ok((ErrorCode::NONE | ErrorCode::DUPLICATE_SEQUENCE_NUMBER, _)) => Some(Appended::Before),
                    _ => None,
                };
                if let Some(place) = place {
                    world.over_kafka.complete(op, Outcome::Done(Done { revision: None, offsets: vec![place] }));
                    sampled(&world, node, began, SampleKind::Write, Answered::Yes);
                    break;
                }
                let answered = match told {
                    Err(failure) => failure.answered(),
                    Ok((code, _)) => {
                        if !comes_again(code) {
                            unexplained(&world, node, code, &format!("batch {base_sequence} of producer {id}"));
                        }
                        Answered::Unknown
                    }
                };
                sampled(&world, node, began, SampleKind::Write, answered);
                if world.is_stopped() {
                    // Its outcome stays unknown.
                    return;
                }
                if dice.below(16) == 0 {
                    continue 'life;
                }
                tokio::time::sleep(PAUSE).await;
                let asked = dice.below(nodes as u64) as usize;
                leader = link.leader(&world, asked).await.unwrap_or(leader);
            }
        }
    }
}

/// What a fetch shows from `from` on, and where the partition ends. `None` where nobody answers, or nobody who leads.
async fn fetch(
    link: &mut Link,
    world: &World,
    node: usize,
    partition: usize,
    from: i64,
    wait_ms: i32,
) -> Option<(Vec<Read>, i64)> {
    let wanted = FetchPartition {
        partition: partition as i32,
        fetch_offset: from,
        partition_max_bytes: FETCH_BYTES,
        ..FetchPartition::default()
    };
    let topic = FetchTopic { topic: TOPIC.into(), partitions: vec![wanted], ..FetchTopic::default() };
    let request = FetchRequest {
        max_wait_ms: wait_ms,
        min_bytes: 1,
        max_bytes: FETCH_BYTES,
        topics: vec![topic],
        ..FetchRequest::default()
    };
    let answer: FetchResponse = link.ask(world, node, 12, &request, DEADLINE).await.ok()?;
    let found = answer.responses.into_iter().next().and_then(|topic| topic.partitions.into_iter().next());
    let (code, found) = match found {
        _ if answer.error_code.is_error() => (answer.error_code, None),
        Some(found) => (found.error_code, Some(found)),
        None => (ErrorCode::UNKNOWN_SERVER_ERROR, None),
    };
    if code.is_error() {
        if !comes_again(code) {
            unexplained(world, node, code, &format!("a fetch of {TOPIC}/{partition} from {from}"));
        }
        return None;
    }
    let found = found.expect("one without an error is there");
    let end = found.high_watermark;
    let set = found.records.concat();
    if set.is_empty() {
        return Some((Vec::new(), end));
    }
    let read = || {
        let mut reads = Vec::new();
        for batch in split_batches(set).ok()? {
            for record in batch.records().ok()? {
                let record = record.ok()?;
                let serial = std::str::from_utf8(record.value.as_ref()?).ok()?.parse().ok()?;
                // A batch is given whole, wherever in it the fetch begins.
                if record.offset >= from {
                    reads.push(Read { offset: Offset(record.offset), serial: Serial(serial), of: None });
                }
            }
        }
        Some(reads)
    };
    let reads = read();
    if reads.is_none() {
        world.recorder.problem(format!("records of {TOPIC}/{partition} from {from} cannot be read"));
    }
    Some((reads?, end))
}

/// A partition that a member owns.
#[derive(Clone, Copy, Debug)]
struct Owned {
    /// What is delivered under one assignment is one stint.
    stint: Serial,
    next: i64,
    committed: i64,
    /// Where the partition ended when it was last looked at.
    end: Option<i64>,
}

struct Member<'a> {
    world: &'a World,
    link: Link,
    dice: Dice,
    who: u64,
    /// Who coordinates and who leads are one, here as well.
    coordinator: Option<usize>,
    id: String,
    generation: i32,
    owned: BTreeMap<usize, Owned>,
    beaten: Instant,
    /// It ends when the clients do, or then.
    until: Option<Instant>,
}

/// How an exchange with the coordinator has ended.
enum Told {
    Good,
    /// This member is to join anew.
    Fenced,
    /// Nobody knows.
    Open,
}

fn is_over(world: &World, until: Option<Instant>) -> bool {
    until.map_or(world.is_stopped(), |until| Instant::now() >= until)
}

async fn over(world: &World, until: Option<Instant>) {
    while !is_over(world, until) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A consumer's subscription, as clients write it: version 1, topics, user data.
fn subscription() -> Bytes {
    let mut bytes = vec![0, 1, 0, 0, 0, 1];
    bytes.extend((TOPIC.len() as u16).to_be_bytes());
    bytes.extend(TOPIC.as_bytes());
    bytes.extend([0xff; 4]);
    bytes.into()
}

impl<'a> Member<'a> {
    fn new(world: &'a World, who: u64, seed: u64, until: Option<Instant>) -> Self {
        Self {
            world,
            link: Link::new(world.nodes.len()),
            dice: Dice::new(seed),
            who,
            coordinator: None,
            id: String::new(),
            generation: -1,
            owned: BTreeMap::new(),
            beaten: Instant::now(),
            until,
        }
    }

    fn is_over(&self) -> bool {
        is_over(self.world, self.until)
    }

    fn note(&self, began: Duration, note: Note) {
        let ended = self.world.recorder.elapsed();
        self.world.groups.note(Noted { who: self.who, began, ended, note });
    }

    /// Asks the coordinator; `None`, after a pause, where there is none or it does not answer.
    async fn ask<Q: Body, A: Body>(
        &mut self,
        version: i16,
        request: &Q,
        deadline: Duration,
        code: impl Fn(&A) -> ErrorCode,
    ) -> Option<(ErrorCode, A)> {
        let world = self.world;
        if self.coordinator.is_none() {
            let asked = self.dice.below(world.nodes.len() as u64) as usize;
            self.coordinator = self.link.coordinator(world, asked).await;
        }
        let answer = match self.coordinator {
            Some(node) => {
                let (until, patient) = (self.until, deadline > DEADLINE);
                let asked = self.link.ask(world, node, version, request, deadline);
                tokio::select! {
                    answer = asked => answer.ok().map(|answer| (node, answer)),
                    // Who waits for the others in vain must not keep the end waiting.
                    () = over(world, until), if patient => None,
                }
            }
            None => None,
        };
        let Some((node, answer)) = answer else {
            self.coordinator = None;
            tokio::time::sleep(PAUSE).await;
            return None;
        };
        let code = code(&answer);
        if comes_again(code) {
            self.coordinator = None;
            tokio::time::sleep(PAUSE).await;
        } else if code.is_error() && !is_fenced(code) && code != ErrorCode::MEMBER_ID_REQUIRED {
            unexplained(world, node, code, Q::API.name);
        }
        Some((code, answer))
    }

    /// Becomes a member of the next generation, and learns what it owns and where to go on; whether it did.
    async fn join(&mut self) -> bool {
        self.owned.clear();
        while !self.is_over() {
            let request = JoinGroupRequest {
                group_id: GROUP.into(),
                session_timeout_ms: SESSION_MS,
                rebalance_timeout_ms: REBALANCE_MS,
                member_id: self.id.clone(),
                protocol_type: "consumer".into(),
                protocols: vec![JoinGroupRequestProtocol { name: "range".into(), metadata: subscription() }],
                ..JoinGroupRequest::default()
            };
            let told = self.ask(9, &request, JOIN_DEADLINE, |joined: &JoinGroupResponse| joined.error_code).await;
            let Some((code, joined)) = told else { continue };
            match code {
                ErrorCode::NONE => {}
                ErrorCode::MEMBER_ID_REQUIRED => {
                    self.id = joined.member_id;
                    continue;
                }
                ErrorCode::UNKNOWN_MEMBER_ID => {
                    self.id.clear();
                    continue;
                }
                _ => continue,
            }
            self.id.clone_from(&joined.member_id);
            let began = self.world.recorder.elapsed();
            let Some(owned) = self.sync(&joined).await else { continue };
            self.generation = joined.generation_id;
            self.note(began, Note::Joined { generation: self.generation });
            self.beaten = Instant::now();
            if self.positions(owned).await {
                return true;
            }
        }
        false
    }

    async fn sync(&mut self, joined: &JoinGroupResponse) -> Option<Vec<usize>> {
        let mut parts: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        if joined.leader == joined.member_id {
            for partition in 0..PARTITIONS {
                // Who owns which changes from generation to generation.
                let at = (partition + joined.generation_id as usize) % joined.members.len().max(1);
                let member = joined.members.get(at)?;
                parts.entry(&member.member_id).or_default().push(partition as u8);
            }
        }
        let assignments = parts.into_iter().map(|(member, assignment)| SyncGroupRequestAssignment {
            member_id: member.to_owned(),
            assignment: assignment.into(),
        });
        let request = SyncGroupRequest {
            group_id: GROUP.into(),
            generation_id: joined.generation_id,
            member_id: joined.member_id.clone(),
            protocol_type: Some("consumer".into()),
            protocol_name: Some("range".into()),
            assignments: assignments.collect(),
            ..SyncGroupRequest::default()
        };
        let told = self.ask(5, &request, JOIN_DEADLINE, |synced: &SyncGroupResponse| synced.error_code).await;
        match told? {
            (ErrorCode::NONE, synced) => Some(synced.assignment.iter().map(|partition| (*partition).into()).collect()),
            (ErrorCode::UNKNOWN_MEMBER_ID, _) => {
                self.id.clear();
                None
            }
            _ => None,
        }
    }

    /// Reads where to go on in each partition that it owns; false when it should join anew.
    async fn positions(&mut self, owned: Vec<usize>) -> bool {
        while !self.is_over() {
            if owned.is_empty() {
                return true;
            }
            if let Some(found) = self.committed(&owned).await {
                self.owned = found
                    .into_iter()
                    .map(|(partition, offset)| {
                        let next = offset.max(0);
                        (partition, Owned { stint: self.world.serial(), next, committed: next, end: None })
                    })
                    .collect();
                return true;
            }
            if matches!(self.beat().await, Told::Fenced) {
                return false;
            }
        }
        false
    }

    /// The group's offsets; −1 where there is none.
    async fn committed(&mut self, partitions: &[usize]) -> Option<BTreeMap<usize, i64>> {
        let indexes = partitions.iter().map(|partition| *partition as i32).collect();
        let topics = vec![OffsetFetchRequestTopics { name: TOPIC.into(), partition_indexes: indexes }];
        let group = OffsetFetchRequestGroup { group_id: GROUP.into(), topics: Some(topics), ..Default::default() };
        let request = OffsetFetchRequest { groups: vec![group], require_stable: true, ..OffsetFetchRequest::default() };
        let began = self.world.recorder.elapsed();
        let code = |answer: &OffsetFetchResponse| {
            let Some(group) = answer.groups.first() else { return ErrorCode::UNKNOWN_SERVER_ERROR };
            let mut partitions = group.topics.iter().flat_map(|topic| &topic.partitions);
            let bad = partitions.find(|partition| partition.error_code.is_error());
            if group.error_code.is_error() {
                group.error_code
            } else {
                bad.map_or(ErrorCode::NONE, |bad| bad.error_code)
            }
        };
        let (code, answer) = self.ask(8, &request, DEADLINE, code).await?;
        if code.is_error() {
            return None;
        }
        let found = answer.groups.iter().flat_map(|group| &group.topics).flat_map(|topic| &topic.partitions);
        let mut offsets = BTreeMap::new();
        for found in found {
            let partition = found.partition_index as usize;
            let by = found.metadata.as_ref().and_then(|text| text.parse().ok()).map(Serial);
            self.note(began, Note::Looked { partition, offset: found.committed_offset, by });
            offsets.insert(partition, found.committed_offset);
        }
        (offsets.len() == partitions.len()).then_some(offsets)
    }

    async fn beat(&mut self) -> Told {
        self.beaten = Instant::now();
        let request = HeartbeatRequest {
            group_id: GROUP.into(),
            generation_id: self.generation,
            member_id: self.id.clone(),
            ..HeartbeatRequest::default()
        };
        let told = self.ask(4, &request, DEADLINE, |answer: &HeartbeatResponse| answer.error_code).await;
        match told {
            Some((ErrorCode::NONE, _)) => Told::Good,
            Some((code, _)) if is_fenced(code) => Told::Fenced,
            _ => Told::Open,
        }
    }

    /// Takes what a partition has next.
    async fn deliver(&mut self, partition: usize, wait_ms: i32) {
        let (world, Some(owned)) = (self.world, self.owned.get(&partition).copied()) else { return };
        let Some(node) = self.coordinator else {
            let asked = self.dice.below(world.nodes.len() as u64) as usize;
            self.coordinator = self.link.coordinator(world, asked).await;
            return;
        };
        let began = world.recorder.elapsed();
        let Some((records, end)) = fetch(&mut self.link, world, node, partition, owned.next, wait_ms).await else {
            self.coordinator = None;
            return tokio::time::sleep(PAUSE).await;
        };
        let next = records.last().map_or(owned.next, |last| last.offset.0 + 1);
        if !records.is_empty() {
            self.note(began, Note::Delivered { stint: owned.stint, partition, from: owned.next, records });
        }
        self.owned.insert(partition, Owned { next, end: Some(end), ..owned });
    }

    /// Commits what was delivered.
    async fn commit(&mut self) -> Told {
        let moved: Vec<(usize, i64)> = self
            .owned
            .iter()
            .filter(|(_, o)| o.next > o.committed)
            .map(|(partition, o)| (*partition, o.next))
            .collect();
        if moved.is_empty() {
            return Told::Good;
        }
        // By it the commit is known again where the offset is read.
        let by = self.world.serial();
        let partition = |(partition, offset): &(usize, i64)| OffsetCommitRequestPartition {
            partition_index: *partition as i32,
            committed_offset: *offset,
            committed_metadata: Some(by.to_string()),
            ..OffsetCommitRequestPartition::default()
        };
        let partitions = moved.iter().map(partition).collect();
        let request = OffsetCommitRequest {
            group_id: GROUP.into(),
            generation_id_or_member_epoch: self.generation,
            member_id: self.id.clone(),
            topics: vec![OffsetCommitRequestTopic { name: TOPIC.into(), partitions }],
            ..OffsetCommitRequest::default()
        };
        let began = self.world.recorder.elapsed();
        let first = |answer: &OffsetCommitResponse| {
            let mut codes = answer.topics.iter().flat_map(|topic| &topic.partitions).map(|one| one.error_code);
            codes.find(|code| code.is_error()).unwrap_or_default()
        };
        let node = self.coordinator;
        let told = self.ask(9, &request, DEADLINE, first).await;
        let mut all = Told::Good;
        for (partition, offset) in moved {
            let code = told.as_ref().and_then(|(_, answer)| {
                let mut found = answer.topics.iter().flat_map(|topic| &topic.partitions);
                Some(found.find(|found| found.partition_index == partition as i32)?.error_code)
            });
            let outcome = match code {
                Some(ErrorCode::NONE) => {
                    self.owned.get_mut(&partition).expect("it is one of those").committed = offset;
                    Committed::Yes
                }
                Some(code) if is_fenced(code) => {
                    all = Told::Fenced;
                    Committed::Fenced
                }
                _ => {
                    all = Told::Open;
                    Committed::Unknown
                }
            };
            self.note(began, Note::Committed { generation: self.generation, partition, offset, by, outcome });
        }
        let answer = match all {
            Told::Good => Answered::Yes,
            Told::Fenced => Answered::No,
            Told::Open => Answered::Unknown,
        };
        sampled(self.world, node.unwrap_or(0), began, SampleKind::Write, answer);
        all
    }

    async fn leave(&mut self) {
        let member = MemberIdentity { member_id: self.id.clone(), ..MemberIdentity::default() };
        let request =
            LeaveGroupRequest { group_id: GROUP.into(), members: vec![member], ..LeaveGroupRequest::default() };
        // A member that was given up, or that nobody hears, has left as well.
        let _ = self.ask(5, &request, DEADLINE, |answer: &LeaveGroupResponse| answer.error_code).await;
    }

    /// One round: is it still a member, what comes next, and a commit now and then.
    async fn turn(&mut self) -> Told {
        if self.beaten.elapsed() >= BEAT_EVERY
            && let Told::Fenced = self.beat().await
        {
            return Told::Fenced;
        }
        let owned: Vec<usize> = self.owned.keys().copied().collect();
        if owned.is_empty() {
            pause(&mut self.dice, 50, 150).await;
            return Told::Good;
        }
        let partition = owned[self.dice.below(owned.len() as u64) as usize];
        self.deliver(partition, FETCH_WAIT_MS).await;
        pause(&mut self.dice, 5, 60).await;
        match self.dice.below(3) {
            0 => self.commit().await,
            _ => Told::Good,
        }
    }
}

/// Members of the group one after the other: each lives for a while, and ends in one of three ways.
pub async fn member(world: Arc<World>, which: u64, seed: u64) {
    let mut dice = Dice::new(seed);
    while !world.is_stopped() {
        let mut member = Member::new(&world, BASE + 10 + which, dice.roll(), None);
        let ends = Instant::now() + Duration::from_millis(8_000 + dice.below(20_000));
        let mut joined = member.join().await;
        while joined && !world.is_stopped() && Instant::now() < ends {
            if let Told::Fenced = member.turn().await {
                if dice.below(2) == 0 {
                    // Its last records may still be its own, it thinks.
                    member.commit().await;
                }
                joined = member.join().await;
            }
        }
        match dice.below(3) {
            0 => member.leave().await,
            // It dies, and nobody is told.
            1 => {}
            _ => {
                // It sleeps until it is given up, and goes on as if nothing had been.
                let until = Instant::now() + Duration::from_millis(SESSION_MS as u64 + dice.below(4_000));
                while Instant::now() < until && !world.is_stopped() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                member.commit().await;
            }
        }
        let gone = Instant::now() + Duration::from_millis(dice.below(3_000));
        while Instant::now() < gone && !world.is_stopped() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// What is left when everything is over.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// Every partition, from its beginning.
    pub parcels: Vec<Vec<Read>>,
    /// Where the group stands in each; −1 where it never committed.
    pub committed: Vec<i64>,
}

/// One last member takes what the others have left, then everything is read from the beginning.
pub async fn drain(world: &World, seed: u64, within: Duration) -> Option<Left> {
    let until = Instant::now() + within;
    let mut member = Member::new(world, BASE + 10 + MEMBERS, seed, Some(until));
    let mut joined = member.join().await;
    loop {
        if !joined {
            return None;
        }
        let done = member.owned.len() == PARTITIONS
            && member.owned.values().all(|owned| owned.end == Some(owned.next) && owned.committed == owned.next);
        if done {
            break;
        }
        if member.is_over() {
            return None;
        }
        let mut told = member.turn().await;
        if matches!(told, Told::Good) {
            told = member.commit().await;
        }
        if matches!(told, Told::Fenced) {
            joined = member.join().await;
        }
    }
    let committed = loop {
        let all: Vec<usize> = (0..PARTITIONS).collect();
        match member.committed(&all).await {
            Some(committed) => break committed.into_values().collect(),
            None if member.is_over() => return None,
            None => {}
        }
    };
    member.leave().await;
    let mut parcels = Vec::new();
    for partition in 0..PARTITIONS {
        let mut reads: Vec<Read> = Vec::new();
        loop {
            let from = reads.last().map_or(0, |read| read.offset.0 + 1);
            let asked = member.dice.below(world.nodes.len() as u64) as usize;
            let found = match member.link.leader(world, asked).await {
                Some(leader) => fetch(&mut member.link, world, leader, partition, from, 0).await,
                None => None,
            };
            match found {
                Some((records, end)) => {
                    reads.extend(records);
                    if reads.last().map_or(0, |read| read.offset.0 + 1) >= end {
                        break;
                    }
                }
                None if member.is_over() => return None,
                None => tokio::time::sleep(PAUSE).await,
            }
        }
        parcels.push(reads);
    }
    Some(Left { parcels, committed })
}

/// The logs of the topic's partitions, as the answer to its creation names them.
pub fn logs(made: &serde_json::Value) -> Option<Vec<LogId>> {
    let log = |partition: &serde_json::Value| Some(LogId(u32::try_from(partition["log"].as_u64()?).ok()?));
    made["partitions"].as_array()?.iter().map(log).collect()
}
