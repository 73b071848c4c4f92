//! Hosts that run the partitions of an engine of the user's, as `buttress host` does: seats by leases on the ledger, claims on a
//! target with transactions ([`super::target`]), functions that are changed and fenced. Whose turn a seat is, how long it is
//! held, what a claim lets a host do and what is known of a commit is production's ([`buttress_core::tenure`]); what carries
//! it out, in the bridge and in the plane of functions, is repeated here in small.
//!
//! Hosts are killed and come back under their names with nothing in their heads, or are paused in the middle of anything and go on
//! as if nothing had been; their clocks run at different speeds; what they know of others and of versions is what some node
//! happens to have. Requests and answers are lost, come late and come twice, and the target
//! is away for a while, sometimes from just before it would have committed.
//! SEAT-1, CLAIM-1 and CLAIM-2.

use std::collections::{BTreeMap, BTreeSet};

use buttress_core::{
    Entry, KeyRange, LeaseId, Offset, Put, Revision, TimeMs,
    invariants::{CLAIM_1, CLAIM_2, SEAT_1, Violation},
    tenure::{Came, Fate, Hold, Next, Renewal, Tenure, Told, turn},
};
use buttress_state::{Effects, Machine, MemStore};
use bytes::Bytes;

use super::{
    Answer, Consistency, Context, FinalView, Op, Outcome, SHARDS, Workload,
    book::soon,
    target::{Reply, Request, Target},
};
use crate::{MS, SEC, Us, rng::Rng};

/// Every key that is held.
const HELD: &str = "hosts/held/";
const PRESENT: &str = "hosts/held/host/";
const SEATS: &str = "hosts/held/seat/";
/// The function, as whoever changes it writes it.
const FUNCTION: &[u8] = b"hosts/function";
/// Of the shard's other workloads none grants leases from here on.
const FIRST_LEASE: i64 = 1 << 42;
/// Clients: who changes the function, and the hosts.
const KEEPER: u32 = 0;
const FIRST_HOST: u32 = 1;
/// Tokens: rounds of hosts, hosts that wake up, trouble, changes, pauses of partitions, and what is under way.
const ROUNDS: u64 = 0;
const WAKES: u64 = 1 << 8;
const TROUBLE: u64 = 1 << 9;
const CHANGES: u64 = TROUBLE + 1;
const PAUSES: u64 = 1 << 10;
const FLIGHTS: u64 = 1 << 20;
/// Who asks the target.
const FENCER: usize = usize::MAX;
const TRIES: u32 = 4;
/// Batches of one commit.
const BATCHES_MAX: i64 = 3;

enum Slot {
    Free,
    Asking,
    Held { hold: Hold, next: TimeMs, renewing: bool },
}

/// What a partition's host does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Claim,
    Position,
    Judges,
    Work,
}

enum Busy {
    No,
    Pause,
    Ledger,
    Target { flight: u64, tries: u32, request: Request },
}

/// A partition, in the head of one host.
struct Part {
    stage: Stage,
    busy: Busy,
    tenure: Tenure,
    fate: Fate,
    epoch: u64,
    /// Requests that are still to be sent for the commit, the next one last.
    steps: Vec<Request>,
    /// Where the commit ends.
    to: i64,
    /// Answers to what was asked under an earlier number are nobody's.
    turn: u64,
}

impl Part {
    fn new(turn: u64) -> Self {
        Self {
            stage: Stage::Claim,
            busy: Busy::No,
            tenure: Tenure::default(),
            fate: Fate::default(),
            epoch: 0,
            steps: Vec::new(),
            to: 0,
            turn,
        }
    }

    /// The seat is gone, or given back. What the head holds stays.
    fn leave(&mut self) {
        self.stage = Stage::Claim;
        self.busy = Busy::No;
        self.steps.clear();
        self.turn += 1;
    }
}

/// A process.
struct Host {
    life: u64,
    asleep_until: Us,
    /// What came while it slept, in order.
    inbox: Vec<Event>,
    /// Its clock, in thousandths of the world's.
    pace: u64,
    /// Itself among the hosts, then a seat for each partition.
    slots: Vec<Slot>,
    parts: Vec<Part>,
    /// Hosts and the function as some node had them last.
    present: BTreeSet<u64>,
    function: Revision,
}

enum Event {
    Round,
    Ended(Asked, Outcome),
    Read(Asked, Option<Answer>),
    Pause { part: usize, turn: u64 },
    Answered { part: usize, turn: u64, flight: u64, reply: Option<Reply> },
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Take { slot: usize, lease: LeaseId, at: TimeMs },
    Renew { slot: usize, lease: LeaseId, at: TimeMs },
    Release,
    Look,
    Judges { part: usize, turn: u64 },
    Change,
}

/// Something between a host and the target: who sent it, and the request or its answer. Neither: the time for an answer is over.
struct Flight {
    who: usize,
    part: usize,
    life: u64,
    turn: u64,
    first: u64,
    request: Option<Request>,
    reply: Option<Reply>,
}

/// Whoever changes the function: the revision that it got, and what is still to be fenced.
struct Fencing {
    revision: Revision,
    part: usize,
    flight: u64,
    ends: Vec<usize>,
}

pub struct Hosts {
    shard: u32,
    think: Us,
    ttl_ms: u64,
    link_loss: u64,
    restarts: bool,
    hosts: Vec<Host>,
    targets: Vec<Target>,
    /// Until then what a target does is done, and nobody hears of it.
    mute_until: Vec<Us>,
    /// The target goes away when it is next told to commit, just before it would.
    dies_at_commit: Vec<bool>,
    /// A record comes in so often.
    input_every: Us,
    stopped_at: Option<Us>,
    finished: bool,
    next_lease: i64,
    next_flight: u64,
    open: BTreeMap<Op, (usize, u64, Asked)>,
    flights: BTreeMap<u64, Flight>,
    fencing: Option<Fencing>,
    changing: bool,
    /// What was fenced: from these commits on nothing is judged by what is older than the revision.
    fenced: Vec<(Revision, Vec<usize>)>,
    /// Per node, the keys that somebody holds there.
    nodes: BTreeMap<u64, BTreeSet<Bytes>>,
    takeovers: u64,
    refused: u64,
    unknown: u64,
    sleeps: u64,
}

fn name(host: usize) -> String {
    format!("{host}")
}

fn key(host: usize, slot: usize) -> Bytes {
    match slot {
        0 => Bytes::from(format!("{PRESENT}{}", name(host))),
        seat => Bytes::from(format!("{SEATS}{}", seat - 1)),
    }
}

/// What a batch says of itself: its inputs, and by which revision of the function they were judged.
fn batch(from: i64, to: i64, judged_by: Revision) -> Bytes {
    [from as u64, to as u64, judged_by.0].iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>().into()
}

fn read_batch(batch: &Bytes) -> (i64, i64, Revision) {
    let number = |at: usize| u64::from_be_bytes(batch[8 * at..8 * at + 8].try_into().expect("eight bytes"));
    (number(0) as i64, number(1) as i64, Revision(number(2)))
}

fn held(machine: &Machine<MemStore>) -> BTreeSet<Bytes> {
    let found = machine.range(&KeyRange::prefix(HELD), usize::MAX, None).expect("a store in memory can be read");
    found.kvs.into_iter().map(|kv| kv.key).collect()
}

impl Hosts {
    pub fn draw(rng: &mut Rng) -> Self {
        let parts = rng.range(1, 3) as usize;
        let mut this = Self {
            shard: rng.below(u64::from(SHARDS)) as u32,
            think: rng.one([10 * MS, 40 * MS]),
            ttl_ms: rng.one([1_500, 3_000]),
            link_loss: rng.one([0, 2, 10, 30]),
            restarts: rng.percent(60),
            hosts: Vec::new(),
            targets: (0..parts).map(|_| Target::default()).collect(),
            mute_until: vec![0; parts],
            dies_at_commit: vec![false; parts],
            input_every: rng.one([5 * MS, 20 * MS, 80 * MS]),
            stopped_at: None,
            finished: false,
            next_lease: FIRST_LEASE,
            next_flight: 0,
            open: BTreeMap::new(),
            flights: BTreeMap::new(),
            fencing: None,
            changing: false,
            fenced: Vec::new(),
            nodes: BTreeMap::new(),
            takeovers: 0,
            refused: 0,
            unknown: 0,
            sleeps: 0,
        };
        for _ in 0..rng.range(2, 4) {
            let host = this.boot(rng, 0);
            this.hosts.push(host);
        }
        this
    }

    fn boot(&self, rng: &mut Rng, life: u64) -> Host {
        let parts = self.targets.len();
        Host {
            life,
            asleep_until: 0,
            inbox: Vec::new(),
            pace: rng.one([900, 980, 1_000, 1_000, 1_020, 1_100]),
            slots: (0..=parts).map(|_| Slot::Free).collect(),
            parts: (0..parts).map(|_| Part::new(0)).collect(),
            present: BTreeSet::new(),
            function: Revision(0),
        }
    }

    fn clock(&self, cx: &Context<'_>, at: usize) -> TimeMs {
        TimeMs(cx.now_us * self.hosts[at].pace / 1_000 / MS)
    }

    /// Records that have come in.
    fn inputs(&self, now: Us) -> i64 {
        (self.stopped_at.unwrap_or(now).min(now) / self.input_every) as i64
    }

    fn submit(&mut self, cx: &mut Context<'_>, at: usize, asked: Asked, entry: Entry) {
        let op = cx.submit(FIRST_HOST + at as u32, self.shard, entry);
        self.open.insert(op, (at, self.hosts[at].life, asked));
    }

    fn read(&mut self, cx: &mut Context<'_>, at: usize, asked: Asked, consistency: Consistency) {
        let op = cx.read(FIRST_HOST + at as u32, self.shard, None, consistency);
        self.open.insert(op, (at, self.hosts[at].life, asked));
    }

    /// Whose turn a partition is, as a host sees it.
    fn is_turn_of(&self, at: usize, part: usize) -> bool {
        let hosts: Vec<String> = self.hosts[at].present.iter().map(|host| name(*host as usize)).collect();
        turn(&format!("{part}"), hosts.iter().map(String::as_str)) == Some(&name(at))
    }

    /// Looks after its seats, and at what others do.
    fn round(&mut self, cx: &mut Context<'_>, at: usize) {
        if self.finished {
            return;
        }
        let now = self.clock(cx, at);
        let consistency = cx.rng.one([Consistency::Serializable, Consistency::Serializable, Consistency::Linearizable]);
        self.read(cx, at, Asked::Look, consistency);
        for slot in 0..self.hosts[at].slots.len() {
            let wanted = slot == 0 || self.is_turn_of(at, slot - 1);
            let ttl_ms = self.ttl_ms;
            match &mut self.hosts[at].slots[slot] {
                Slot::Free if wanted => {
                    self.next_lease += 1;
                    let lease = LeaseId(self.next_lease);
                    self.hosts[at].slots[slot] = Slot::Asking;
                    let entry = Hold::take(&key(at, slot), &name(at), lease, ttl_ms);
                    self.submit(cx, at, Asked::Take { slot, lease, at: now }, entry);
                }
                Slot::Free | Slot::Asking => {}
                Slot::Held { hold, .. } if now >= hold.until() => self.leave(at, slot),
                Slot::Held { hold, .. } if !wanted => {
                    let entry = hold.release();
                    self.leave(at, slot);
                    self.submit(cx, at, Asked::Release, entry);
                }
                Slot::Held { hold, next, renewing } if now >= *next && !*renewing => {
                    *renewing = true;
                    let (entry, lease) = (hold.renewal(), hold.lease);
                    self.submit(cx, at, Asked::Renew { slot, lease, at: now }, entry);
                }
                Slot::Held { .. } => {}
            }
            if slot > 0 {
                self.drive(cx, at, slot - 1);
            }
        }
        cx.wake((self.ttl_ms / 8) * MS, ROUNDS + at as u64);
    }

    fn leave(&mut self, at: usize, slot: usize) {
        let host = &mut self.hosts[at];
        host.slots[slot] = Slot::Free;
        if let Some(part) = slot.checked_sub(1) {
            host.parts[part].leave();
        }
    }

    /// Does what a partition needs next.
    fn drive(&mut self, cx: &mut Context<'_>, at: usize, part: usize) {
        let inputs = self.inputs(cx.now_us);
        let host = &mut self.hosts[at];
        let (seated, function) = (matches!(host.slots[part + 1], Slot::Held { .. }), host.function);
        let here = &mut host.parts[part];
        if self.finished || !seated || !matches!(here.busy, Busy::No) {
            return;
        }
        match here.stage {
            Stage::Claim => self.send(cx, at, part, Request::Init, 0),
            Stage::Position => self.send(cx, at, part, Request::Position, 0),
            Stage::Judges => {
                here.busy = Busy::Ledger;
                let asked = Asked::Judges { part, turn: here.turn };
                self.read(cx, at, asked, Consistency::Linearizable);
            }
            Stage::Work if here.tenure.is_outdated_by(FUNCTION, function) => {
                here.stage = Stage::Claim;
                self.drive(cx, at, part);
            }
            Stage::Work => {
                let from = here.tenure.position().map_or(0, |offset| offset.0);
                if inputs <= from || !here.tenure.may_judge(FUNCTION, function) {
                    return self.pause(cx, at, part);
                }
                // The further it is behind, the more it takes at once, as a reader with a backlog does.
                let to = inputs.min(from + (cx.rng.range(1, 9) as i64).max((inputs - from) / 8));
                assert!(here.fate.begin(), "work follows a claim, and a commit of which all is known");
                here.to = to;
                let epoch = here.epoch;
                let mut steps = vec![Request::Offsets { epoch, next: to, text: String::new(), gap: None }];
                let each = (to - from + BATCHES_MAX - 1) / BATCHES_MAX;
                let begins: Vec<i64> = (from..to).step_by(each as usize).collect();
                for (number, begin) in begins.into_iter().enumerate().rev() {
                    let batch = batch(begin, to.min(begin + each), function);
                    steps.push(Request::Produce { epoch, number, batch });
                }
                here.steps = steps;
                self.step(cx, at, part);
            }
        }
    }

    fn pause(&mut self, cx: &mut Context<'_>, at: usize, part: usize) {
        self.hosts[at].parts[part].busy = Busy::Pause;
        let after = cx.rng.range(self.think, 4 * self.think);
        cx.wake(after, PAUSES + (at * self.targets.len() + part) as u64);
    }

    /// Sends the next part of a commit, or its end.
    fn step(&mut self, cx: &mut Context<'_>, at: usize, part: usize) {
        match self.hosts[at].parts[part].steps.pop() {
            Some(request) => self.send(cx, at, part, request, 0),
            None => self.prepared(cx, at, part, Told::Done),
        }
    }

    fn prepared(&mut self, cx: &mut Context<'_>, at: usize, part: usize, told: Told) {
        let here = &mut self.hosts[at].parts[part];
        here.steps.clear();
        let next = here.fate.prepared(told);
        self.goes_on(cx, at, part, next, 0);
    }

    fn goes_on(&mut self, cx: &mut Context<'_>, at: usize, part: usize, next: Next, tries: u32) {
        let here = &mut self.hosts[at].parts[part];
        match next {
            Next::End { commit } => {
                let request = Request::End { epoch: here.epoch, commit };
                return self.send(cx, at, part, request, 0);
            }
            Next::Ask => {
                let Busy::Target { request, .. } = std::mem::replace(&mut here.busy, Busy::No) else {
                    unreachable!("an end was asked for")
                };
                return self.send(cx, at, part, request, tries + 1);
            }
            Next::Over(Came::Committed) => here.tenure.moved(Offset(here.to)),
            Next::Over(came) => {
                here.stage = Stage::Claim;
                self.unknown += u64::from(came == Came::Unknown);
            }
        }
        self.pause(cx, at, part);
    }

    /// A request goes, may be lost, or come twice; so may its answer; and somebody waits for it only so long.
    fn send(&mut self, cx: &mut Context<'_>, at: usize, part: usize, request: Request, tries: u32) {
        let host = &self.hosts[at];
        let (life, turn, first) = (host.life, host.parts[part].turn, self.next_flight);
        self.hosts[at].parts[part].busy = Busy::Target { flight: first, tries, request: request.clone() };
        self.fly(cx, Flight { who: at, part, life, turn, first, request: Some(request), reply: None });
    }

    fn fly(&mut self, cx: &mut Context<'_>, flight: Flight) {
        let first = flight.first;
        assert_eq!(first, self.next_flight, "whoever sends has looked");
        self.next_flight += 3;
        let again = |request, reply| Flight { request, reply, ..flight };
        let request = flight.request.clone();
        if !cx.rng.percent(self.loss()) {
            let delay = self.delay(cx);
            cx.wake(delay, FLIGHTS + first);
            if cx.rng.percent(self.loss() / 4) {
                // It comes again much later, and nobody waits for its answer.
                let late = cx.rng.range(100 * MS, 2 * SEC);
                let stray = Flight { life: u64::MAX, ..again(request.clone(), None) };
                self.flights.insert(first + 1, stray);
                cx.wake(late, FLIGHTS + first + 1);
            }
            self.flights.insert(first, Flight { request, ..again(None, None) });
        }
        self.flights.insert(first + 2, again(None, None));
        cx.wake(150 * MS, FLIGHTS + first + 2);
    }

    fn loss(&self) -> u64 {
        if self.stopped_at.is_some() { 0 } else { self.link_loss }
    }

    fn delay(&self, cx: &mut Context<'_>) -> Us {
        match (self.stopped_at.is_some(), cx.rng.percent(10)) {
            // What is left has to get through in the time that the world gives.
            (true, _) => cx.rng.range(MS / 10, 2 * MS),
            (false, true) => cx.rng.range(20 * MS, 500 * MS),
            (false, false) => cx.rng.range(MS, 20 * MS),
        }
    }

    /// Something has come to where it was sent.
    fn landed(&mut self, cx: &mut Context<'_>, number: u64) {
        let Some(mut flight) = self.flights.remove(&number) else { return };
        if let Some(request) = flight.request.take() {
            let target = &mut self.targets[flight.part];
            if matches!(request, Request::End { commit: true, .. })
                && std::mem::take(&mut self.dies_at_commit[flight.part])
            {
                target.away_until = cx.now_us + cx.rng.range(50 * MS, 3 * SEC);
            }
            if cx.now_us < target.away_until {
                return;
            }
            let reply = target.handle(cx.now_us, cx.rng, request);
            let muted = cx.now_us < self.mute_until[flight.part];
            if flight.life == u64::MAX || muted || cx.rng.percent(self.loss()) {
                return;
            }
            flight.reply = Some(reply);
            self.flights.insert(number, flight);
            let delay = self.delay(cx);
            return cx.wake(delay, FLIGHTS + number);
        }
        let Flight { who, part, life, turn, first, reply, .. } = flight;
        if who == FENCER {
            return self.fence_answered(cx, first, reply);
        }
        if life == self.hosts[who].life {
            self.happens(cx, who, Event::Answered { part, turn, flight: first, reply });
        }
    }

    fn answered(&mut self, cx: &mut Context<'_>, at: usize, part: usize, reply: Option<Reply>) {
        let here = &mut self.hosts[at].parts[part];
        let Busy::Target { tries, request, .. } = &here.busy else { unreachable!("it was looked at before") };
        let (tries, request) = (*tries, request.clone());
        let patient = tries < TRIES;
        let told = match &reply {
            None => Told::Again { open: true },
            Some(Reply::Again) => Told::Again { open: false },
            Some(Reply::Fenced) => Told::Refused { stale: true },
            Some(_) => Told::Done,
        };
        self.refused += u64::from(told == Told::Refused { stale: true });
        if let Request::End { .. } = request {
            if let Some(Reply::Epoch(epoch)) = reply {
                here.epoch = epoch;
            }
            let next = here.fate.ended(told, patient);
            return self.goes_on(cx, at, part, next, tries);
        }
        here.busy = Busy::No;
        match (request, reply) {
            (request, None | Some(Reply::Again)) if patient => self.send(cx, at, part, request, tries + 1),
            (Request::Init, Some(Reply::Epoch(epoch))) => {
                here.epoch = epoch;
                here.fate = Fate::claimed();
                here.stage = Stage::Position;
                self.drive(cx, at, part);
            }
            (Request::Position, Some(Reply::Position(found, _))) => {
                self.takeovers += u64::from(found.is_some());
                here.tenure.claimed(found.map(|(next, _)| Offset(next)));
                here.stage = Stage::Judges;
                self.drive(cx, at, part);
            }
            (Request::Init | Request::Position, _) => {
                here.stage = Stage::Claim;
                self.pause(cx, at, part);
            }
            (_, Some(Reply::Done)) => self.step(cx, at, part),
            _ => self.prepared(cx, at, part, told),
        }
    }

    fn happens(&mut self, cx: &mut Context<'_>, at: usize, event: Event) {
        let host = &mut self.hosts[at];
        if cx.now_us < host.asleep_until || !host.inbox.is_empty() {
            host.inbox.push(event);
            return;
        }
        self.happened(cx, at, event);
    }

    fn happened(&mut self, cx: &mut Context<'_>, at: usize, event: Event) {
        match event {
            Event::Round => self.round(cx, at),
            Event::Pause { part, turn } => {
                let here = &mut self.hosts[at].parts[part];
                if here.turn == turn && matches!(here.busy, Busy::Pause) {
                    here.busy = Busy::No;
                    self.drive(cx, at, part);
                }
            }
            Event::Answered { part, turn, flight, reply } => {
                let here = &self.hosts[at].parts[part];
                let waits = matches!(&here.busy, Busy::Target { flight: wanted, .. } if *wanted == flight);
                if here.turn == turn && waits {
                    self.answered(cx, at, part, reply);
                }
            }
            Event::Ended(asked, outcome) => self.told(cx, at, asked, &outcome),
            Event::Read(Asked::Judges { part, turn }, answer) => {
                let here = &mut self.hosts[at].parts[part];
                if here.turn != turn {
                    return;
                }
                here.busy = Busy::No;
                match answer {
                    Some(answer) => {
                        here.tenure.read(Bytes::from_static(FUNCTION), Revision(answer.numbers[0] as u64));
                        here.stage = Stage::Work;
                        self.drive(cx, at, part);
                    }
                    None => {
                        here.stage = Stage::Claim;
                        self.pause(cx, at, part);
                    }
                }
            }
            Event::Read(_, Some(answer)) => {
                let host = &mut self.hosts[at];
                // A watch never goes back.
                host.function = host.function.max(Revision(answer.numbers[0] as u64));
                host.present = answer.numbers[1..].iter().map(|host| *host as u64).collect();
            }
            Event::Read(_, None) => {}
        }
    }

    /// What became of an entry that a host has submitted.
    fn told(&mut self, cx: &mut Context<'_>, at: usize, asked: Asked, outcome: &Outcome) {
        let now = self.clock(cx, at);
        let ttl_ms = self.ttl_ms;
        match asked {
            Asked::Take { slot, lease, at: asked } => {
                let hold = Hold::taken(lease, ttl_ms, asked);
                let taken = matches!(outcome, Outcome::Acknowledged(_)) && now < hold.until();
                // Otherwise its lease ends by itself, if it was granted.
                self.hosts[at].slots[slot] = match taken {
                    true => Slot::Held { hold, next: TimeMs(now.0 + hold.pause_ms()), renewing: false },
                    false => Slot::Free,
                };
                if let Some(part) = slot.checked_sub(1) {
                    self.drive(cx, at, part);
                }
            }
            Asked::Renew { slot, lease, at: asked } => {
                let Slot::Held { hold, next, renewing } = &mut self.hosts[at].slots[slot] else { return };
                if hold.lease != lease {
                    return;
                }
                *renewing = false;
                let what = match outcome {
                    Outcome::Acknowledged(_) => Renewal::Done,
                    Outcome::Refused(_) => Renewal::Gone,
                    Outcome::Unknown => Renewal::Unanswered,
                };
                *next = TimeMs(now.0 + hold.pause_ms());
                if !hold.renewed(asked, now, what) {
                    self.leave(at, slot);
                }
            }
            Asked::Release | Asked::Change | Asked::Look | Asked::Judges { .. } => {}
        }
    }

    /// The function is put, and then every partition is fenced: what is committed afterwards is judged by it.
    fn changed(&mut self, cx: &mut Context<'_>, outcome: &Outcome) {
        self.changing = false;
        match outcome {
            Outcome::Acknowledged(receipt) => {
                self.fencing = Some(Fencing { revision: receipt.revision, part: 0, flight: 0, ends: Vec::new() });
                self.fence(cx);
            }
            // Whoever asks again pays what is owed.
            _ => soon(cx, 20 * self.think, CHANGES),
        }
    }

    fn fence(&mut self, cx: &mut Context<'_>) {
        let first = self.next_flight;
        let fencing = self.fencing.as_mut().expect("it was put there");
        fencing.flight = first;
        let part = fencing.part;
        let request = Some(Request::Init);
        self.fly(cx, Flight { who: FENCER, part, life: 0, turn: 0, first, request, reply: None });
    }

    fn fence_answered(&mut self, cx: &mut Context<'_>, flight: u64, reply: Option<Reply>) {
        let Some(fencing) = self.fencing.as_mut().filter(|fencing| fencing.flight == flight) else { return };
        if let Some(Reply::Epoch(_)) = reply {
            fencing.ends.push(self.targets[fencing.part].commits.len());
            fencing.part += 1;
        }
        if fencing.part < self.targets.len() {
            return self.fence(cx);
        }
        let Fencing { revision, ends, .. } = self.fencing.take().expect("looked at above");
        self.fenced.push((revision, ends));
        let after = cx.rng.range(200 * MS, 3 * SEC);
        cx.wake(after, CHANGES);
    }

    fn trouble(&mut self, cx: &mut Context<'_>) {
        let at = cx.rng.below(self.hosts.len() as u64) as usize;
        match cx.rng.below(12) {
            0..=4 => {
                // A sleeper may sleep beyond its lease.
                self.sleeps += 1;
                let wakes = cx.now_us + cx.rng.range(50 * MS, 2 * self.ttl_ms * MS);
                self.hosts[at].asleep_until = self.hosts[at].asleep_until.max(wakes);
                cx.wake(self.hosts[at].asleep_until - cx.now_us, WAKES + at as u64);
            }
            5 | 6 if self.restarts => {
                let life = self.hosts[at].life + 1;
                let slept_on_it = self.hosts[at].inbox.iter().any(|event| matches!(event, Event::Round));
                self.hosts[at] = self.boot(cx.rng, life);
                if slept_on_it {
                    soon(cx, 40 * self.think, ROUNDS + at as u64);
                }
            }
            kind @ 7..=9 => {
                let part = cx.rng.below(self.targets.len() as u64) as usize;
                let until = cx.now_us + cx.rng.range(50 * MS, 3 * SEC);
                match kind {
                    7 => self.targets[part].away_until = until,
                    _ => self.mute_until[part] = until,
                }
            }
            10 | 11 => {
                let part = cx.rng.below(self.targets.len() as u64) as usize;
                self.dies_at_commit[part] = true;
            }
            _ => {}
        }
        let next = cx.rng.range(50 * MS, SEC);
        cx.wake(next, TROUBLE);
    }

    fn wake(&mut self, cx: &mut Context<'_>, at: usize) {
        if cx.now_us < self.hosts[at].asleep_until {
            return;
        }
        for event in std::mem::take(&mut self.hosts[at].inbox) {
            self.happened(cx, at, event);
        }
    }

    /// Everything that came in before the end is through.
    fn look_whether_finished(&mut self, now: Us) {
        let Some(stopped_at) = self.stopped_at else { return };
        let end = self.inputs(stopped_at);
        let done = |target: &mut Target| {
            target.settle(now);
            target.position().map_or(0, |(next, _)| next) >= end
        };
        self.finished |= self.targets.iter_mut().all(done) && self.fencing.is_none() && !self.changing;
    }
}

impl Workload for Hosts {
    fn name(&self) -> &'static str {
        "hosts"
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        for at in 0..self.hosts.len() {
            soon(cx, 20 * self.think, ROUNDS + at as u64);
        }
        soon(cx, 20 * self.think, CHANGES);
        soon(cx, 2 * SEC, TROUBLE);
    }

    fn woken(&mut self, cx: &mut Context<'_>, token: u64) {
        match token {
            FLIGHTS.. => self.landed(cx, token - FLIGHTS),
            PAUSES.. => {
                let number = (token - PAUSES) as usize;
                let (at, part) = (number / self.targets.len(), number % self.targets.len());
                // A pause of a process that is gone wakes its successor too early, which does no harm.
                let turn = self.hosts[at].parts[part].turn;
                self.happens(cx, at, Event::Pause { part, turn });
            }
            CHANGES if self.stopped_at.is_some() || self.fencing.is_some() || self.changing => {}
            CHANGES => {
                let value = Some(Bytes::from(format!("{}", self.fenced.len())));
                let put = Put { key: Bytes::from_static(FUNCTION), value, lease: None };
                let op = cx.submit(KEEPER, self.shard, Entry { puts: vec![put], ..Entry::default() });
                self.open.insert(op, (FENCER, 0, Asked::Change));
                self.changing = true;
            }
            TROUBLE if self.stopped_at.is_none() => self.trouble(cx),
            TROUBLE => {}
            WAKES.. => self.wake(cx, (token - WAKES) as usize),
            _ => self.happens(cx, (token - ROUNDS) as usize, Event::Round),
        }
        self.look_whether_finished(cx.now_us);
    }

    fn ended(&mut self, cx: &mut Context<'_>, op: Op, outcome: Outcome) {
        let (at, life, asked) = self.open.remove(&op).expect("it is one of ours");
        if at == FENCER {
            self.changed(cx, &outcome);
        } else if life == self.hosts[at].life {
            self.happens(cx, at, Event::Ended(asked, outcome));
        }
    }

    fn serve(&mut self, _: Op, machine: &Machine<MemStore>) -> Answer {
        let found = machine.range(&KeyRange::key(FUNCTION), 1, None).expect("a store in memory can be read");
        let mut numbers = vec![found.kvs.first().map_or(0, |kv| kv.mod_revision.0 as i64)];
        let host = |key: &Bytes| std::str::from_utf8(key.strip_prefix(PRESENT.as_bytes())?).ok()?.parse::<i64>().ok();
        numbers.extend(held(machine).iter().filter_map(host));
        Answer { numbers, ..Answer::default() }
    }

    fn read_ended(&mut self, cx: &mut Context<'_>, op: Op, answer: Option<Answer>) {
        let (at, life, asked) = self.open.remove(&op).expect("it is one of ours");
        if life == self.hosts[at].life {
            self.happens(cx, at, Event::Read(asked, answer));
        }
    }

    fn watches(&self) -> bool {
        true
    }

    fn applied(&mut self, _: &mut Context<'_>, node: u64, shard: u32, effects: &Effects) -> Result<(), Violation> {
        if shard != self.shard {
            return Ok(());
        }
        let held = self.nodes.entry(node).or_default();
        for event in effects.events().filter(|event| event.key.starts_with(HELD.as_bytes())) {
            let free = match event.value {
                Some(_) => held.insert(event.key.clone()),
                None => held.remove(&event.key),
            };
            SEAT_1.hold(free, || {
                let key = String::from_utf8_lossy(&event.key);
                format!("node {node} has {key} changed at {} while somebody holds it", event.revision)
            })?;
        }
        Ok(())
    }

    fn replaced(
        &mut self,
        _: &mut Context<'_>,
        node: u64,
        shard: u32,
        machine: &Machine<MemStore>,
    ) -> Result<(), Violation> {
        if shard == self.shard {
            self.nodes.insert(node, held(machine));
        }
        Ok(())
    }

    fn stop(&mut self, cx: &mut Context<'_>) {
        self.stopped_at = Some(cx.now_us);
        self.mute_until.fill(0);
        self.dies_at_commit.fill(false);
        for target in &mut self.targets {
            target.away_until = 0;
            target.healed = true;
        }
        for at in 0..self.hosts.len() {
            self.hosts[at].asleep_until = 0;
            self.wake(cx, at);
        }
        self.look_whether_finished(cx.now_us);
    }

    fn is_done(&self) -> bool {
        self.finished && self.open.is_empty()
    }

    fn check(&mut self, _: &FinalView<'_>) -> Result<(), Violation> {
        for (part, target) in self.targets.iter().enumerate() {
            let mut next = 0;
            for (number, commit) in target.commits.iter().enumerate() {
                for (from, to, judged_by) in commit.batches.iter().map(read_batch) {
                    CLAIM_1.hold(from == next && to > from, || {
                        format!("commit {number} of partition {part} takes inputs {from}..{to} where {next} comes")
                    })?;
                    next = to;
                    let fenced = self.fenced.iter().rev().find(|(_, ends)| ends[part] <= number);
                    let least = fenced.map_or(Revision(0), |(revision, _)| *revision);
                    CLAIM_2.hold(judged_by >= least, || {
                        format!("commit {number} of partition {part} is judged by revision {judged_by} after {least} was fenced in")
                    })?;
                }
                let told = commit.position.as_ref().map(|(next, _)| *next);
                CLAIM_1.hold(told == Some(next), || {
                    format!("commit {number} of partition {part} ends at {next} and says {told:?}")
                })?;
            }
        }
        Ok(())
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("host_commits", self.targets.iter().map(|target| target.commits.len() as u64).sum()),
            ("host_claims", self.takeovers),
            ("host_refused", self.refused),
            ("host_unknown", self.unknown),
            ("host_fences", self.fenced.len() as u64),
            ("host_sleeps", self.sleeps),
        ]
    }
}
