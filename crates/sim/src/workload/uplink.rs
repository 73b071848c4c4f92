//! An uplink: the production lane forwards a topic of the world to a target of its own ([`super::target`]): a Kafka with
//! its transactions, or a Buttress with its journal. The edge's process crashes, an older one lives on, the link loses requests
//! and answers, the target's coordinator is away or takes its time; retention overtakes the lane; the gateway is cloned and its
//! twin sends under the same name. UPLINK-1, UPLINK-2 and UPLINK-3.

use std::collections::BTreeMap;

use buttress_core::{
    Append, AppendOutcome, Code, Entry, Error, LogId, Offset, TimeMs, TopicChange,
    entry::TopicSettings,
    invariants::{UPLINK_1, UPLINK_2, UPLINK_3, Violation},
};
use buttress_state::{Machine, MemStore};
use buttress_uplink::{Action, Bounds, Lane, Lineage, LocalBatch, Oversized, Parcel, Phase, Settings, Source};
use buttress_wire::records::{BatchView, Builder};
use bytes::Bytes;

use super::{
    Answer, Consistency, Context, FinalView, Op, Outcome, SHARDS, Workload,
    book::soon,
    target::{Commit, Reply, Request, Target},
};
use crate::{MS, SEC, Us, rng::Rng};

const TOPIC: &str = "outbound";
const TWIN: &str = "outbound-twin";
/// Clients: who makes, fills and trims the topics, and the processes of the edge.
const KEEPER: u32 = 0;
const PRODUCER: u32 = 1;
const TRIMMER: u32 = 2;
const DRIVERS: u32 = 3;
const DRIVERS_MAX: usize = 3;
/// Each may be a commit by itself, where it is too large for the target, and all have to arrive in the time that the world
/// gives after the last fault.
const RECORDS_MAX: u64 = 2_500;
/// Tokens: below, clients; then drivers' pauses; then things under way between a driver and the target.
const PAUSES: u64 = 1 << 20;
const FLIGHTS: u64 = 1 << 21;
const CRASHES: u64 = 1 << 19;

/// What a driver waits for.
#[derive(Debug)]
enum Busy {
    /// Somebody wakes it.
    No,
    Pause,
    Local,
    /// A request under way, what follows it, and how often it was sent.
    Target {
        flight: u64,
        tries: u32,
        request: Request,
    },
}

/// A process of the edge: a lane, and what it knows of the target.
struct Driver {
    /// The log that it has: the gateway's, or the twin's.
    twin: bool,
    lane: Lane,
    busy: Busy,
    epoch: u64,
    end: usize,
    /// Requests that are still to be sent for the parcel, the next one last.
    steps: Vec<Request>,
    /// What the lane is told if the last step goes well, or has gone wrong.
    failed: Option<Error>,
    idle: bool,
}

enum Asked {
    Topics,
    Look,
    Fill,
    Trim,
    Driver { driver: usize, generation: u64, look: bool },
}

#[derive(Clone, Default)]
struct Seen {
    bounds: Bounds,
    batches: Vec<LocalBatch>,
    logs: Option<(LogId, LogId)>,
    out_of_range: bool,
}

pub struct Uplink {
    shard: u32,
    think: Us,
    clones: bool,
    trims: bool,
    link_loss: u64,
    parcel_bytes: usize,
    serial: u64,
    logs: Option<(LogId, LogId)>,
    forked: bool,
    stopped: bool,
    target: Target,
    drivers: Vec<Driver>,
    /// A driver's number and generation make its answers its own.
    generations: Vec<u64>,
    flights: BTreeMap<u64, (usize, u64, Option<Reply>, Option<Request>)>,
    next_flight: u64,
    open: BTreeMap<Op, Asked>,
    seen: BTreeMap<Op, Seen>,
    wants: BTreeMap<Op, (bool, Option<Offset>, bool)>,
    /// What each log was seen to hold.
    truth: [BTreeMap<i64, u64>; 2],
    ends: [i64; 2],
    /// The end of the gateway's log, as the producer knows it.
    latest: i64,
    /// Of some records nobody knows whether they will be appended.
    unsure: bool,
    crashes: u64,
    fenced: u64,
    diverged: u64,
    lost: u64,
}

fn serials(batch: &Bytes) -> Vec<u64> {
    let records = BatchView::parse_stored(batch.clone()).expect("a batch of ours").records().expect("not compressed");
    let serial = |value: Bytes| u64::from_be_bytes(value[..8].try_into().expect("eight bytes"));
    records.map(|record| serial(record.expect("a record of ours").value.expect("it has a value"))).collect()
}

impl Uplink {
    pub fn draw(rng: &mut Rng) -> Self {
        let clones = rng.percent(30);
        let batch_bytes_max = rng.percent(20).then_some(220);
        Self {
            shard: rng.below(u64::from(SHARDS)) as u32,
            think: rng.one([10 * MS, 50 * MS, 150 * MS]),
            clones,
            // Retention can take what tells two logs apart; then only ids and lengths can.
            trims: !clones && rng.percent(70),
            link_loss: rng.one([0, 5, 20, 40]),
            parcel_bytes: rng.one([1, 300, 3_000, 100_000]),
            serial: 0,
            logs: None,
            forked: false,
            stopped: false,
            target: Target { journal: rng.percent(40), batch_bytes_max, ..Target::default() },
            drivers: Vec::new(),
            generations: Vec::new(),
            flights: BTreeMap::new(),
            next_flight: 0,
            open: BTreeMap::new(),
            seen: BTreeMap::new(),
            wants: BTreeMap::new(),
            truth: [BTreeMap::new(), BTreeMap::new()],
            ends: [0, 0],
            latest: 0,
            unsure: false,
            crashes: 0,
            fenced: 0,
            diverged: 0,
            lost: 0,
        }
    }

    fn submit(&mut self, cx: &mut Context<'_>, client: u32, asked: Asked, entry: Entry) {
        let op = cx.submit(client, self.shard, entry);
        self.open.insert(op, asked);
    }

    fn lane(&self, cx: &mut Context<'_>) -> Lane {
        Lane::new(Settings {
            source: Source { edge: "edge".into(), topic: TOPIC.into(), partition: 0 },
            lineage: Lineage { topic: [13; 16], adopted: 0 },
            origin: Offset(0),
            parcel_bytes: self.parcel_bytes,
            oversized: if self.target.batch_bytes_max.is_some() { Oversized::Gap } else { Oversized::Stop },
            known: None,
            seed: cx.rng.next(),
        })
    }

    /// A process starts, in the place of one that is gone or beside it.
    fn boot(&mut self, cx: &mut Context<'_>, at: Option<usize>, twin: bool) {
        let lane = self.lane(cx);
        let driver =
            Driver { twin, lane, busy: Busy::No, epoch: 0, end: 0, steps: Vec::new(), failed: None, idle: false };
        let at = match at {
            Some(at) => {
                self.drivers[at] = driver;
                self.generations[at] += 1;
                at
            }
            None => {
                self.drivers.push(driver);
                self.generations.push(0);
                self.drivers.len() - 1
            }
        };
        self.drive(cx, at);
    }

    fn begin(&mut self, cx: &mut Context<'_>, logs: (LogId, LogId)) {
        if self.logs.is_some() {
            return;
        }
        self.logs = Some(logs);
        soon(cx, 2 * self.think, PRODUCER.into());
        soon(cx, 20 * self.think, TRIMMER.into());
        self.boot(cx, None, false);
        let first = cx.rng.range(200 * MS, 2 * SEC);
        cx.wake(first, CRASHES);
    }

    /// What a batch of the producer holds.
    fn batch(&mut self, cx: &mut Context<'_>) -> (Bytes, u32) {
        let count = cx.rng.range(1, 5) as u32;
        let mut builder = Builder::new();
        for _ in 0..count {
            self.serial += 1;
            let mut value = self.serial.to_be_bytes().to_vec();
            value.resize(8 + cx.rng.one([0, 0, 0, 20, 20, 200]), b'.');
            builder.push(1_000, None, Some(&value), &[]);
        }
        (builder.build().expect("there are records"), count)
    }

    fn fill(&mut self, cx: &mut Context<'_>) {
        let (one, two) = self.logs.expect("the producer begins with the topics");
        let append = |log, records, batch| Append { log, records, max_timestamp_ms: 1_000, sequence: None, batch };
        let (bytes, records) = self.batch(cx);
        let appends = if !self.clones {
            vec![append(one, records, bytes)]
        } else if !self.forked {
            // One gateway: the twin's disk is a copy.
            vec![append(one, records, bytes.clone()), append(two, records, bytes)]
        } else if cx.rng.percent(50) {
            vec![append(one, records, bytes)]
        } else {
            vec![append(two, records, bytes)]
        };
        self.submit(cx, PRODUCER, Asked::Fill, Entry { appends, ..Entry::default() });
    }

    /// Does what the driver's lane asks for.
    fn drive(&mut self, cx: &mut Context<'_>, at: usize) {
        let now = TimeMs(cx.now_us / MS);
        let driver = &mut self.drivers[at];
        driver.idle = false;
        match driver.lane.poll(now) {
            Action::Claim => {
                driver.steps =
                    if self.target.journal { vec![Request::Position] } else { vec![Request::Position, Request::Init] };
                self.step(cx, at);
            }
            Action::Look { mark } => self.ask(cx, at, mark, true),
            Action::Read { from, .. } => self.ask(cx, at, Some(from), false),
            Action::Send(parcel) => {
                self.drivers[at].steps = self.requests(at, &parcel);
                self.step(cx, at);
            }
            Action::Wait { until } => {
                driver.busy = Busy::Pause;
                if driver.lane.phase() == Phase::Diverged {
                    self.diverged += 1;
                    driver.idle = true;
                } else if let Some(until) = until {
                    cx.wake((until.0 - now.0).max(1) * MS, PAUSES + at as u64);
                }
            }
        }
    }

    /// The requests of a commit, the first one last.
    fn requests(&self, at: usize, parcel: &Parcel) -> Vec<Request> {
        let driver = &self.drivers[at];
        let (next, text) = (parcel.position.next.0, parcel.position.text());
        if self.target.journal {
            let position = Some((next, text));
            let commit = Commit { gap: parcel.gap, batches: parcel.batches.clone(), position };
            return vec![Request::Append { end: driver.end, commit }];
        }
        let epoch = driver.epoch;
        let mut steps =
            vec![Request::End { epoch, commit: true }, Request::Offsets { epoch, next, text, gap: parcel.gap }];
        let batches = parcel.batches.iter().cloned().enumerate().rev();
        steps.extend(batches.map(|(number, batch)| Request::Produce { epoch, number, batch }));
        steps
    }

    fn ask(&mut self, cx: &mut Context<'_>, at: usize, offset: Option<Offset>, look: bool) {
        let consistency = if look { Consistency::Linearizable } else { Consistency::Serializable };
        let op = cx.read(DRIVERS + at as u32, self.shard, None, consistency);
        self.open.insert(op, Asked::Driver { driver: at, generation: self.generations[at], look });
        self.wants.insert(op, (self.drivers[at].twin, offset, look));
        self.drivers[at].busy = Busy::Local;
    }

    /// Sends the next request, or tells the lane that all is done.
    fn step(&mut self, cx: &mut Context<'_>, at: usize) {
        let Some(request) = self.drivers[at].steps.pop() else {
            let outcome = self.drivers[at].failed.take().map_or(Ok(()), Err);
            self.drivers[at].lane.sent(TimeMs(cx.now_us / MS), outcome);
            return self.drive(cx, at);
        };
        self.send(cx, at, request, 0);
    }

    /// A request goes, may be lost, or come twice; so may its answer; and somebody waits for it only so long.
    fn send(&mut self, cx: &mut Context<'_>, at: usize, request: Request, tries: u32) {
        let flight = self.next_flight;
        self.next_flight += 3;
        let generation = self.generations[at];
        let loss = if self.stopped { 0 } else { self.link_loss };
        if !cx.rng.percent(loss) {
            self.flights.insert(flight, (at, generation, None, Some(request.clone())));
            let delay = self.delay(cx);
            cx.wake(delay, FLIGHTS * 2 + flight);
        } else {
            self.lost += 1;
        }
        if !self.stopped && cx.rng.percent(loss / 4) {
            // It comes again much later.
            self.flights.insert(flight + 1, (at, u64::MAX, None, Some(request.clone())));
            let late = cx.rng.range(100 * MS, 2 * SEC);
            cx.wake(late, FLIGHTS * 2 + flight + 1);
        }
        self.drivers[at].busy = Busy::Target { flight, tries, request };
        self.flights.insert(flight + 2, (at, generation, None, None));
        cx.wake(300 * MS, FLIGHTS * 2 + flight + 2);
    }

    fn delay(&self, cx: &mut Context<'_>) -> Us {
        match (self.stopped, cx.rng.percent(10)) {
            // What is left has to get through in the time that the world gives.
            (true, _) => cx.rng.range(MS / 10, 2 * MS),
            (false, true) => cx.rng.range(20 * MS, 500 * MS),
            (false, false) => cx.rng.range(MS, 20 * MS),
        }
    }

    /// Something between a driver and the target has come to where it was sent.
    fn landed(&mut self, cx: &mut Context<'_>, flight: u64) {
        let Some((at, generation, reply, request)) = self.flights.remove(&flight) else { return };
        match (reply, request) {
            (None, Some(request)) => {
                if cx.now_us < self.target.away_until {
                    return;
                }
                let reply = self.target.handle(cx.now_us, cx.rng, request);
                let loss = if self.stopped { 0 } else { self.link_loss };
                if generation == u64::MAX || cx.rng.percent(loss) {
                    return;
                }
                self.flights.insert(flight, (at, generation, Some(reply), None));
                let delay = self.delay(cx);
                cx.wake(delay, FLIGHTS * 2 + flight);
            }
            (Some(reply), _) => {
                if generation == self.generations[at] && self.waits_for(at, flight) {
                    self.answered(cx, at, reply);
                }
            }
            // The time for an answer is over.
            (None, None) => {
                if generation == self.generations[at] && self.waits_for(at, flight - 2) {
                    self.answered(cx, at, Reply::Again);
                }
            }
        }
    }

    fn waits_for(&self, at: usize, wanted: u64) -> bool {
        self.drivers
            .get(at)
            .is_some_and(|driver| matches!(driver.busy, Busy::Target { flight, .. } if flight == wanted))
    }

    fn answered(&mut self, cx: &mut Context<'_>, at: usize, reply: Reply) {
        let now = TimeMs(cx.now_us / MS);
        let Busy::Target { tries, request, .. } = std::mem::replace(&mut self.drivers[at].busy, Busy::No) else {
            unreachable!("it is looked at before");
        };
        let driver = &mut self.drivers[at];
        let claiming = matches!(request, Request::Init | Request::Position);
        match (reply, &request) {
            (Reply::Again, Request::Append { .. }) => {
                // An entry is not sent twice: nobody would know it again.
                driver.lane.sent(now, Err(Error::new(Code::TIMEOUT, "no answer").retryable()));
                self.drive(cx, at);
            }
            (Reply::Again, _) if tries < 4 => self.send(cx, at, request, tries + 1),
            (Reply::Epoch(epoch), _) => {
                driver.epoch = epoch;
                if driver.failed.is_some() {
                    driver.steps.clear();
                }
                self.step(cx, at);
            }
            (Reply::Position(found, end), _) => {
                driver.end = end;
                driver.lane.claimed(now, Ok(found.map(|(next, text)| (Offset(next), text))));
                self.drive(cx, at);
            }
            (Reply::Done, Request::Append { .. }) => {
                driver.end += 1;
                self.step(cx, at);
            }
            (Reply::Done, _) => self.step(cx, at),
            (reply, _) => {
                let code = match reply {
                    Reply::TooLarge => Code::TOO_LARGE,
                    Reply::Fenced => {
                        self.fenced += 1;
                        Code::EPOCH_STALE
                    }
                    _ => Code::UNREACHABLE,
                };
                let error = Error::new(code, "the target refuses, or does not answer");
                driver.steps.clear();
                if claiming {
                    driver.lane.claimed(now, Err(error));
                    return self.drive(cx, at);
                }
                if code == Code::TOO_LARGE && !self.target.journal {
                    // Ended at once, for readers wait behind it.
                    let epoch = driver.epoch;
                    driver.failed = Some(error);
                    return self.send(cx, at, Request::End { epoch, commit: false }, 0);
                }
                let failed = driver.failed.take();
                driver.lane.sent(now, Err(failed.unwrap_or(error)));
                self.drive(cx, at);
            }
        }
    }

    fn local(&mut self, cx: &mut Context<'_>, at: usize, look: bool, seen: Option<Seen>) {
        let now = TimeMs(cx.now_us / MS);
        let twin = usize::from(self.drivers[at].twin);
        let driver = &mut self.drivers[at];
        driver.busy = Busy::No;
        let unreachable = || Error::new(Code::NO_LEADER, "nobody answers").retryable();
        if look {
            let found = seen.map(|seen| {
                self.ends[twin] = self.ends[twin].max(seen.bounds.end.0);
                (seen.bounds, seen.batches.into_iter().next())
            });
            driver.lane.looked(now, found.ok_or_else(unreachable));
        } else {
            let found = match seen {
                None => Err(unreachable()),
                Some(seen) if seen.out_of_range => Err(Error::new(Code::OFFSET_OUT_OF_RANGE, "not there")),
                Some(seen) => Ok((seen.bounds, seen.batches)),
            };
            let idle = found.as_ref().is_ok_and(|(_, batches)| batches.is_empty());
            driver.lane.read(now, found);
            if idle && driver.lane.phase() == Phase::Reading {
                driver.idle = true;
                driver.busy = Busy::Pause;
                let pause = cx.rng.range(10 * MS, 100 * MS);
                return cx.wake(pause, PAUSES + at as u64);
            }
        }
        self.drive(cx, at);
    }

    /// Crashes, restarts, processes that live on, a target that is away.
    fn trouble(&mut self, cx: &mut Context<'_>) {
        let at = cx.rng.below(self.drivers.len() as u64) as usize;
        match cx.rng.below(10) {
            0..=4 => {
                self.crashes += 1;
                let twin = self.drivers[at].twin;
                self.boot(cx, Some(at), twin);
            }
            5 if self.drivers.len() < DRIVERS_MAX => self.boot(cx, None, self.clones && self.forked),
            6 if self.clones && (self.forked || self.is_settled()) => {
                self.forked = true;
                if self.drivers.len() < DRIVERS_MAX {
                    self.boot(cx, None, true);
                }
            }
            7 | 8 => self.target.away_until = cx.now_us + cx.rng.range(100 * MS, 4 * SEC),
            _ => {}
        }
        let next = cx.rng.range(100 * MS, 2 * SEC);
        cx.wake(next, CRASHES);
    }

    /// Whether nothing is under way that both logs would get, after the fork as well: a copy of a disk gets nothing that its
    /// original gets.
    fn is_settled(&self) -> bool {
        !self.unsure && !self.open.values().any(|asked| matches!(asked, Asked::Fill))
    }

    /// What the target's commits are worth.
    fn judge(&self) -> Result<i64, Violation> {
        let mut next = 0i64;
        let mut logs = vec![0usize, 1];
        for (number, commit) in self.target.commits.iter().enumerate() {
            if let Some(gap) = commit.gap {
                UPLINK_1.hold(gap.from.0 == next && gap.to.0 > next, || {
                    format!("commit {number} tells a gap {}..{} at {next}", gap.from, gap.to)
                })?;
                next = gap.to.0;
            }
            UPLINK_1.hold(commit.batches.iter().all(|batch| batch[..8] == [0; 8]), || {
                format!("commit {number} has a batch that a Kafka refuses")
            })?;
            for serial in commit.batches.iter().flat_map(serials) {
                let holds = |log: &usize| self.truth[*log].get(&next) == Some(&serial);
                let anywhere = (0..2).any(|log| holds(&log));
                UPLINK_1.hold(anywhere, || {
                    format!("commit {number} has record {serial} at {next}, which is {:?}", self.truth[0].get(&next))
                })?;
                logs.retain(holds);
                UPLINK_2.hold(!logs.is_empty(), || {
                    let positions: Vec<_> = self.target.commits.iter().map(|commit| &commit.position).collect();
                    let before = &positions[number.saturating_sub(3)..=number];
                    let around = self.truth.iter().map(|log| log.range(next - 12..next + 3).collect::<Vec<_>>());
                    format!(
                        "commit {number} has record {serial} at {next} of another log than the records before it: {before:?}, {:?}",
                        around.collect::<Vec<_>>()
                    )
                })?;
                next += 1;
            }
            let told = commit.position.as_ref().map(|(next, _)| *next);
            UPLINK_3.hold(told == Some(next), || format!("commit {number} ends at {next} and says {told:?}"))?;
        }
        Ok(next)
    }
}

impl Workload for Uplink {
    fn name(&self) -> &'static str {
        "uplink"
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        soon(cx, 2 * self.think, KEEPER.into());
    }

    fn woken(&mut self, cx: &mut Context<'_>, token: u64) {
        if token >= FLIGHTS * 2 {
            return self.landed(cx, token - FLIGHTS * 2);
        }
        if token == CRASHES {
            if !self.stopped {
                self.trouble(cx);
            }
            return;
        }
        if (PAUSES..FLIGHTS).contains(&token) {
            let at = (token - PAUSES) as usize;
            // A pause of a process that is gone wakes its successor too early, which does no harm.
            let pauses = |driver: &Driver| matches!(driver.busy, Busy::Pause) && driver.lane.phase() != Phase::Diverged;
            if self.drivers.get(at).is_some_and(pauses) {
                self.drive(cx, at);
            }
            return;
        }
        match token as u32 {
            KEEPER if self.logs.is_none() && !self.stopped => {
                let create = |name: &str, id: u8| TopicChange::Create {
                    name: name.into(),
                    id: [id; 16],
                    partitions: 1,
                    settings: TopicSettings::default(),
                };
                let topics = vec![create(TOPIC, 13), create(TWIN, 14)];
                self.submit(cx, KEEPER, Asked::Topics, Entry { topics, ..Entry::default() });
            }
            PRODUCER if !self.stopped && self.serial < RECORDS_MAX => self.fill(cx),
            TRIMMER if !self.stopped && self.trims => {
                let (log, _) = self.logs.expect("the trimmer begins with the topics");
                // Sometimes all of it.
                let before = Offset((self.latest - cx.rng.below(10) as i64).max(0));
                let trim = TopicChange::Trim { log, before };
                self.submit(cx, TRIMMER, Asked::Trim, Entry { topics: vec![trim], ..Entry::default() });
            }
            _ => {}
        }
    }

    fn ended(&mut self, cx: &mut Context<'_>, op: Op, outcome: Outcome) {
        match self.open.remove(&op).expect("it is one of ours") {
            Asked::Topics => match outcome {
                Outcome::Acknowledged(receipt) if receipt.created.len() == 2 => {
                    let logs: Vec<LogId> = receipt.created.iter().map(|(_, logs)| logs[0]).collect();
                    self.begin(cx, (logs[0], logs[1]));
                }
                _ => {
                    let op = cx.read(KEEPER, self.shard, None, Consistency::Linearizable);
                    self.open.insert(op, Asked::Look);
                }
            },
            Asked::Fill => {
                self.unsure |= !matches!(outcome, Outcome::Acknowledged(_));
                if let Outcome::Acknowledged(receipt) = &outcome
                    && let Some(AppendOutcome::Appended { base_offset }) = receipt.appends.first()
                {
                    self.latest = self.latest.max(base_offset.0 + 1);
                }
                if self.stopped {
                    // Whatever became of it, the lanes look at the log after it.
                    for at in 0..self.drivers.len() {
                        let twin = self.drivers[at].twin;
                        self.boot(cx, Some(at), twin);
                    }
                }
                soon(cx, 2 * self.think, PRODUCER.into());
            }
            Asked::Trim => soon(cx, 20 * self.think, TRIMMER.into()),
            Asked::Look | Asked::Driver { .. } => unreachable!("reads end otherwise"),
        }
    }

    fn serve(&mut self, op: Op, machine: &Machine<MemStore>) -> Answer {
        let first = |topic: &str| machine.topic(topic).map(|topic| topic.partitions[0].clone());
        let (one, two) = (first(TOPIC), first(TWIN));
        let mut seen = Seen { logs: one.as_ref().map(|p| p.log).zip(two.as_ref().map(|p| p.log)), ..Seen::default() };
        if let Some((twin, offset, look)) = self.wants.get(&op).copied()
            && let Some(partition) = if twin { two } else { one }
        {
            seen.bounds = Bounds { start: partition.start, end: partition.end };
            let wanted = offset.unwrap_or(partition.end);
            seen.out_of_range = wanted < partition.start || wanted > partition.end;
            if !seen.out_of_range {
                let most = if look { 1 } else { self.parcel_bytes };
                let found = machine.store().fetch(partition.log, wanted, most);
                seen.batches = found
                    .into_iter()
                    .map(|batch| LocalBatch {
                        base: batch.base_offset,
                        last: batch.last_offset,
                        max_timestamp_ms: batch.max_timestamp_ms,
                        bytes: batch.bytes,
                    })
                    .collect();
            }
            for batch in &seen.batches {
                for (serial, offset) in serials(&batch.bytes).into_iter().zip(batch.base.0..) {
                    self.truth[usize::from(twin)].insert(offset, serial);
                }
            }
            if look {
                seen.batches.retain(|batch| offset.is_some_and(|at| batch.base <= at && at <= batch.last));
            }
        }
        self.seen.insert(op, seen);
        Answer::default()
    }

    fn read_ended(&mut self, cx: &mut Context<'_>, op: Op, answer: Option<Answer>) {
        let seen = self.seen.remove(&op).filter(|_| answer.is_some());
        self.wants.remove(&op);
        match self.open.remove(&op).expect("it is one of ours") {
            Asked::Look => match seen.and_then(|seen| seen.logs) {
                Some(logs) => self.begin(cx, logs),
                None => cx.wake(100 * MS, KEEPER.into()),
            },
            Asked::Driver { driver, generation, look } if generation == self.generations[driver] => {
                self.local(cx, driver, look, seen);
            }
            _ => {}
        }
    }

    fn stop(&mut self, cx: &mut Context<'_>) {
        self.stopped = true;
        self.target.away_until = 0;
        self.target.healed = true;
        if self.drivers.is_empty() {
            return;
        }
        // The last process of each gateway begins anew, and the others are gone.
        let twins = self.clones && self.forked && self.drivers.iter().any(|driver| driver.twin);
        for generation in &mut self.generations {
            *generation += 1;
        }
        self.drivers.truncate(if twins { 2.min(self.drivers.len()) } else { 1 });
        self.boot(cx, Some(0), false);
        if twins && self.drivers.len() > 1 {
            self.boot(cx, Some(1), true);
        }
    }

    fn is_done(&self) -> bool {
        let settled = |driver: &Driver| {
            driver.idle
                && (driver.lane.phase() == Phase::Diverged
                    || driver.lane.next().is_some_and(|next| next.0 >= self.ends[usize::from(driver.twin)]))
        };
        self.open.values().all(|asked| matches!(asked, Asked::Driver { .. })) && self.drivers.iter().all(settled)
    }

    fn check(&mut self, view: &FinalView<'_>) -> Result<(), Violation> {
        let Some((log, twin)) = self.logs else { return Ok(()) };
        self.target.settle(u64::MAX);
        // A lane reads only what it sends, so each log is read as a whole, as far as it is there.
        for (_, machine) in &view.machines[self.shard as usize] {
            for (truth, log) in self.truth.iter_mut().zip([log, twin]) {
                for batch in machine.store().batches(log) {
                    truth.extend((batch.base_offset.0..).zip(serials(&batch.bytes)));
                }
            }
        }
        let next = self.judge()?;
        if !self.clones {
            let machines = &view.machines[self.shard as usize];
            let ends = machines.iter().filter_map(|(_, machine)| Some(machine.partition(log)?.end.0));
            let end = ends.max().unwrap_or(0);
            // What nobody heard of may have been appended after the lanes' last look.
            UPLINK_1.hold(self.ends[0] <= next && next <= end, || {
                format!("the log ended at {} and ends at {end}, the target has records up to {next}", self.ends[0])
            })?;
        }
        Ok(())
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        let records: u64 = self.target.commits.iter().flat_map(|c| &c.batches).map(|b| serials(b).len() as u64).sum();
        vec![
            ("uplink_commits", self.target.commits.len() as u64),
            ("uplink_records", records),
            ("uplink_gaps", self.target.commits.iter().filter(|commit| commit.gap.is_some()).count() as u64),
            ("uplink_crashes", self.crashes),
            ("uplink_fenced", self.fenced),
            ("uplink_diverged", self.diverged),
            ("uplink_lost_requests", self.lost),
        ]
    }
}
