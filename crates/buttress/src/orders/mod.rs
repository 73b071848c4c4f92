//! `buttress demo orders`: the same orders through the same services twice, at the same time and with the same faults;
//! once as programs call each other at first, once through the traffic plane. Every order ends in a saga.
//!
//! The way of an order: a customer's POST reaches the gateway, which calls the order service → that writes the order,
//! `OrderCreated` and the beginning of its saga in one entry ([`part`]) → the side's coordinator finds the journal and goes
//! on with it ([`coordinator`]): inventory reserves, payment captures, shipping ships, each with one entry that holds its
//! row, its event and a guard on the coordinator's token ([`desk`]) → `OrderCompleted`; or, where a step fails for good,
//! a record in `order-compensations` and the same backwards, and `OrderCancelled`.
//!
//! Every part is a process ([`stage`]), the log is a cluster of nodes, and on one side a `buttress proxy` stands before
//! each service that is called ([`call`]). Faults come by [`schedule`], customers by [`load`]. At the end the topics are
//! read back by a stock Kafka client, the books from the key space, and [`judge`] compares them. It never asks the
//! coordinator.

pub mod shape;

pub mod call;
pub mod coordinator;
pub mod desk;
pub mod ledger;
pub mod part;

pub mod load;
pub mod schedule;
pub mod stage;

pub mod judge;

pub mod feed;
pub mod page;
pub mod terminal;

pub mod cli;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use buttress_core::{Code, Error};
use serde_json::{Value, json};

use crate::{
    cluster::LocalCluster,
    demo::{
        feed::now_ms,
        http::{Ask, HttpClient},
        reader,
        report::percentile,
    },
};
use feed::{Feed, PartView, Phase, Second, SideView};
use judge::{End, Evidence, Mood, ProxyFigures, Report, SideEvidence, mood};
use ledger::Ledger;
use load::Load;
use part::Fault;
use schedule::{Deed, Window};
use shape::{COMPENSATIONS, EVENTS, Event, Order, Role, SKUS, Side, keys};
use stage::{Place, Room, Stage};
use terminal::Terminal;

pub const RATE_DEFAULT: f64 = 20.0;
const WORKERS: u16 = 4;
/// A healthy service does so many times what is asked of it.
const HEADROOM: f64 = 2.5;
/// Its queue holds so many seconds of work.
const QUEUE_S: f64 = 2.0;
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// The drain looks this often. Rounds are counted and not seconds: the whole machine may stand still for a while.
const DRAIN_LOOK: Duration = Duration::from_millis(100);
/// Without an order that ends for so many rounds the drain is given up, and the report shows what is open.
const DRAIN_ROUNDS: u32 = 600;
const SETTLED_ROUNDS: u32 = 20;

pub struct Options {
    pub rate: f64,
    pub duration: Duration,
    pub seed: u64,
    pub chaos: bool,
}

impl Options {
    /// What each service has: workers that do so many times what is asked of them, and a queue before them.
    pub fn room(&self) -> Room {
        let capacity = self.rate * HEADROOM;
        Room {
            workers: WORKERS,
            queue: (capacity * QUEUE_S).ceil() as u64,
            work: Duration::from_secs_f64(f64::from(WORKERS) / capacity),
        }
    }
}

/// Aborts its task when dropped, so that an early end leaves nothing running.
struct Task<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is known of the orders while they run, from the topics.
#[derive(Default)]
struct Followed {
    next: u64,
    created: u64,
    ends: BTreeMap<u64, End>,
}

/// Counters of processes that may be killed: what a new one counts is added to what the old one had.
#[derive(Default)]
struct Counted(BTreeMap<(Place, &'static str), Count>);

#[derive(Clone, Copy, Default)]
struct Count {
    before: u64,
    last: u64,
    process: u64,
}

impl Counted {
    fn see(&mut self, place: Place, process: u64, name: &'static str, value: u64) -> u64 {
        let count = self.0.entry((place, name)).or_default();
        if process != count.process {
            (count.before, count.process) = (count.before + count.last, process);
        }
        count.last = value;
        count.before + value
    }

    fn get(&self, place: Place, name: &'static str) -> u64 {
        self.0.get(&(place, name)).map_or(0, |count| count.before + count.last)
    }
}

struct Run {
    options: Options,
    cluster: Arc<LocalCluster>,
    stage: Arc<Stage>,
    feed: Arc<Feed>,
    ledger: Ledger,
    http: HttpClient,
    sent: load::Ledgers,
    followed: Mutex<[Followed; 2]>,
    counted: Mutex<Counted>,
    faults: Mutex<Vec<Window>>,
    left_open: Mutex<Option<[u64; 2]>>,
    started_ms: Mutex<f64>,
    interrupted: AtomicBool,
}

/// Plays the orders and reports. Ctrl-C ends the load early, with a report of what was sent.
///
/// # Errors
/// When the run cannot be carried out. Broken promises are no error but part of the report.
pub async fn run(
    options: Options,
    cluster: Arc<LocalCluster>,
    stage: Arc<Stage>,
    feed: Arc<Feed>,
) -> anyhow::Result<Report> {
    let nodes: Vec<String> = cluster.members().iter().map(|member| member.http.clone()).collect();
    let run = Arc::new(Run {
        ledger: Ledger::new(nodes, 0),
        http: HttpClient::default(),
        sent: Arc::new([Mutex::default(), Mutex::default()]),
        followed: Mutex::default(),
        counted: Mutex::default(),
        faults: Mutex::default(),
        left_open: Mutex::default(),
        started_ms: Mutex::default(),
        interrupted: AtomicBool::new(false),
        options,
        cluster,
        stage,
        feed: feed.clone(),
    });
    let outcome = tokio::select! {
        outcome = run.play() => outcome,
        () = run.second_interrupt() => {
            Err(Error::new(Code::STOPPED, "given up after a second Ctrl-C; there is no report").into())
        }
    };
    if outcome.is_err() {
        feed.phase(Phase::Failed);
    }
    outcome
}

impl Run {
    async fn play(self: &Arc<Self>) -> anyhow::Result<Report> {
        let (feed, options) = (&self.feed, &self.options);
        let duration_s = options.duration.as_secs_f64();
        feed.update(|shown| {
            shown.duration_s = duration_s;
            (shown.rate, shown.seed) = (options.rate, options.seed);
            shown.proxies =
                Role::CALLED.map(|role| (role, format!("http://{}/", self.stage.admin(role)))).into_iter().collect();
            if options.chaos {
                shown.windows = schedule::windows(duration_s);
            }
        });
        for topic in [EVENTS, COMPENSATIONS] {
            self.create_topic(topic).await?;
        }
        self.stage.start_all().await?;
        feed.event("start", format!("{} nodes, 12 parts and 4 proxies are up", self.cluster.members().len()));
        let started_ms = feed.start_clock();
        *self.started_ms.lock().expect("no panic under this lock") = started_ms;
        let started = Instant::now();
        let busy = processors();
        feed.phase(Phase::Playing);
        let watching = Task(tokio::spawn(self.clone().watch()));
        let directing = Task(tokio::spawn(self.clone().direct(started)));
        let load = Load {
            seed: options.seed,
            rate: options.rate,
            total: (options.rate * duration_s).ceil() as u64,
            gateways: Side::ALL.map(|side| self.stage.address(Place::part(side, Role::Gateway)).to_owned()),
            sent: self.sent.clone(),
        };
        load.run(started, started_ms, || self.is_interrupted()).await;
        let played_s = started.elapsed().as_secs_f64().min(duration_s);
        let busy = used(busy, processors());
        let mut directing = directing;
        (&mut directing.0).await.context("the director")??;
        feed.phase(Phase::Draining);
        feed.event("drain", "no more orders; those that are open come to their end");
        self.drain().await;
        feed.phase(Phase::Checking);
        feed.event("check", "a stock Kafka client reads the topics back");
        drop(watching);
        let evidence = self.collect(started_ms, played_s, self.is_interrupted(), busy).await?;
        let report = judge::judge(&evidence);
        feed.event("done", if report.ok { "every promise held" } else { "a promise was broken" });
        feed.update(|shown| {
            shown.report = Some(report.clone());
            shown.phase = Phase::Done;
        });
        Ok(report)
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// The first Ctrl-C sets the flag; the second one returns.
    async fn second_interrupt(&self) {
        for _ in 0..2 {
            if tokio::signal::ctrl_c().await.is_err() {
                // Without a handler the default action ends the process, and nothing is to be done here.
                std::future::pending::<()>().await;
            }
            if !self.interrupted.swap(true, Ordering::Relaxed) {
                self.feed.event(
                    "stop",
                    "Ctrl-C: no more orders; those that were sent are ended and checked (again to give up)",
                );
            }
        }
    }

    async fn create_topic(&self, name: &str) -> Result<(), Error> {
        let body = json!({"name": name, "partitions": Side::ALL.len()}).to_string();
        let mut rounds = 0;
        loop {
            let ask = Ask::json(http::Method::POST, "/v1/topics", body.clone());
            let node = &self.cluster.members()[0].http;
            let problem = match self.http.ask(node, &ask, Duration::from_secs(12)).await {
                Ok(answer) if answer.ok() || answer.json()["code"] == Code::TOPIC_EXISTS.0 => return Ok(()),
                Ok(answer) => Error::new(Code::UNREACHABLE, answer.problem()),
                Err(error) => error,
            };
            rounds += 1;
            if rounds > DRAIN_ROUNDS {
                return Err(problem);
            }
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    }

    /// Does what the schedule says, and in the end leaves everybody well.
    async fn direct(self: Arc<Self>, started: Instant) -> Result<(), Error> {
        if !self.options.chaos {
            return Ok(());
        }
        let duration_s = self.options.duration.as_secs_f64();
        let (mut killed, mut down) = (BTreeSet::new(), None);
        for step in schedule::steps(duration_s, self.cluster.members().len() > 2) {
            let due = started + Duration::from_secs_f64(step.at_s);
            while Instant::now() < due && !self.is_interrupted() {
                tokio::time::sleep_until((Instant::now() + Duration::from_millis(50)).min(due).into()).await;
            }
            // Once it is to end, nobody is hurt any more, and who was is made well.
            let is_due = match step.deed {
                Deed::Fault(_, fault) => fault == Fault::NONE || !self.is_interrupted(),
                Deed::Kill(_) | Deed::KillLeader => !self.is_interrupted(),
                Deed::Start(role) => killed.remove(&role),
                Deed::StartNode => down.is_some(),
            };
            if !is_due {
                continue;
            }
            self.feed.event(step.kind, step.says);
            match step.deed {
                Deed::Fault(role, fault) => {
                    self.stage.set_fault(role, fault).await?;
                    if fault == Fault::NONE {
                        self.note_end(role, duration_s);
                    }
                }
                Deed::Kill(role) => {
                    killed.insert(role);
                    if role == Role::Coordinator {
                        let mut open = [0; 2];
                        for (open, side) in open.iter_mut().zip(Side::ALL) {
                            *open = self.ledger.list(&keys::open(side, "")).await?.0.len() as u64;
                        }
                        *self.left_open.lock().expect("no panic under this lock") = Some(open);
                    }
                    for side in Side::ALL {
                        self.stage.kill(Place::part(side, role)).await;
                    }
                }
                Deed::Start(role) => {
                    for side in Side::ALL {
                        self.stage.start(Place::part(side, role))?;
                    }
                    for side in Side::ALL {
                        self.stage.wait_ready(Place::part(side, role)).await?;
                    }
                }
                Deed::KillLeader => {
                    down = self.leader().await;
                    if let Some(name) = &down {
                        self.cluster.kill(name).await?;
                    }
                }
                Deed::StartNode => {
                    if let Some(name) = down.take() {
                        self.cluster.start(&name).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A fault has ended now, whatever the schedule had meant.
    fn note_end(&self, role: Role, duration_s: f64) {
        let planned = schedule::windows(duration_s);
        if let Some(window) = planned.into_iter().find(|window| window.what.starts_with(role.word())) {
            let to_s = self.feed.at_s();
            self.faults.lock().expect("no panic under this lock").push(Window { to_s, ..window });
        }
    }

    async fn leader(&self) -> Option<String> {
        for member in self.cluster.members() {
            let answer = self.http.ask(&member.http, &Ask::get("/v1/cluster"), Duration::from_secs(1)).await;
            if let Ok(answer) = answer
                && let Some(leader) = answer.json()["leader"].as_u64()
                && let Some(leader) = self.cluster.members().iter().find(|member| member.id == leader)
            {
                return Some(leader.name.clone());
            }
        }
        None
    }

    /// Follows the topics and asks every process how it stands, until it is aborted.
    async fn watch(self: Arc<Self>) {
        let mut terminal = Terminal::new();
        let mut last: BTreeMap<Place, (Instant, u64)> = BTreeMap::new();
        loop {
            let begun = Instant::now();
            self.follow().await;
            let parts = self.look(&mut last).await;
            let leader = self.leader().await;
            let elapsed_s = self.feed.at_s();
            let sides: BTreeMap<Side, SideView> =
                Side::ALL.into_iter().zip(parts).map(|(side, parts)| (side, self.side(side, parts))).collect();
            self.feed.update(|shown| {
                shown.sides = sides;
                shown.leader = leader;
                shown.elapsed_s = elapsed_s;
            });
            terminal.show(&self.feed.snapshot());
            tokio::time::sleep_until((begun + WATCH_EVERY).into()).await;
        }
    }

    async fn follow(&self) {
        for (at, side) in Side::ALL.into_iter().enumerate() {
            let next = self.followed.lock().expect("no panic under this lock")[at].next;
            let Ok(records) = self.ledger.records(EVENTS, side.partition(), next).await else { continue };
            let mut followed = self.followed.lock().expect("no panic under this lock");
            let followed = &mut followed[at];
            for record in records {
                followed.next = record["offset"].as_u64().map_or(followed.next, |offset| offset + 1);
                let Some(event) = record["value"].as_str().and_then(|value| serde_json::from_str::<Event>(value).ok())
                else {
                    continue;
                };
                followed.created += u64::from(event.event == "OrderCreated");
                if let (Some(number), Some(end)) = (Order::number(&event.order), End::of(&event)) {
                    followed.ends.insert(number, end);
                }
            }
        }
    }

    async fn look(&self, last: &mut BTreeMap<Place, (Instant, u64)>) -> [BTreeMap<Role, PartView>; 2] {
        let parts = Side::ALL.into_iter().flat_map(|side| Role::ALL.map(|role| Place::part(side, role)));
        let places: Vec<Place> = parts.chain(Role::CALLED.map(Place::proxy)).collect();
        let stats = futures::future::join_all(places.iter().map(|place| self.stage.stats(*place))).await;
        let now = Instant::now();
        let mut views: [BTreeMap<Role, PartView>; 2] = Default::default();
        let mut counted = self.counted.lock().expect("no panic under this lock");
        for (place, stats) in places.into_iter().zip(stats) {
            let view = views[place.side as usize].entry(place.role).or_default();
            let Some(stats) = stats else { continue };
            let number = |value: &Value| value.as_u64().unwrap_or(0);
            let process = number(&stats["pid"]);
            if place.proxy {
                let requests: u64 =
                    stats["routes"][0]["golden"]["by_class"].as_array().into_iter().flatten().map(number).sum();
                counted.see(place, process, "requests", requests);
                counted.see(place, process, "attempts", number(&stats["attempts"]));
                view.retries = Some(counted.see(place, process, "retries", number(&stats["retries"])));
                counted.see(place, process, "uptime_ms", number(&stats["uptime_ms"]));
                let backend = &stats["routes"][0]["backends"][0];
                view.breaker = backend["breaker"].as_str().map(str::to_owned);
                view.limit = backend["limit"].as_u64();
                continue;
            }
            counted.see(place, process, "calls", number(&stats["calls"]));
            counted.see(place, process, "attempts", number(&stats["attempts"]));
            let requests = counted.see(place, process, "requests", number(&stats["requests"]));
            if let Some((then, before)) = last.insert(place, (now, requests)) {
                let seconds = (now - then).as_secs_f64().max(0.001);
                view.rate = (requests.saturating_sub(before) as f64 / seconds * 10.0).round() / 10.0;
            }
            view.up = true;
            view.waiting = number(&stats["waiting"]);
            view.fault = serde_json::from_value::<Fault>(stats["fault"].clone()).ok().and_then(word_of);
        }
        views
    }

    fn side(&self, side: Side, parts: BTreeMap<Role, PartView>) -> SideView {
        let at = side as usize;
        let sent = self.sent[at].lock().expect("no panic under this lock").clone();
        let followed = self.followed.lock().expect("no panic under this lock");
        let followed = &followed[at];
        let started_ms = *self.started_ms.lock().expect("no panic under this lock");
        let now = now_ms();
        let mut view = SideView { placed: followed.created, parts, ..SideView::default() };
        let mut latencies = Vec::new();
        for (number, sent) in sent.iter().enumerate() {
            let end = followed.ends.get(&(number as u64));
            let second = ((sent.due_ms - started_ms) / 1_000.0).max(0.0) as usize;
            if view.seconds.len() <= second {
                view.seconds.resize(second + 1, Second::default());
            }
            let of_second = &mut view.seconds[second];
            of_second.sent += 1;
            match mood(sent, end, now) {
                Mood::Good => (of_second.good, view.good) = (of_second.good + 1, view.good + 1),
                Mood::Late => (of_second.late, view.late) = (of_second.late + 1, view.late + 1),
                Mood::Failed => (of_second.failed, view.failed) = (of_second.failed + 1, view.failed + 1),
                Mood::Waiting => {}
            }
            if let Some(end) = end {
                (view.completed, view.compensated) =
                    (view.completed + u64::from(end.completed), view.compensated + u64::from(!end.completed));
                latencies.push((end.at_ms - sent.due_ms).max(0.0));
            }
        }
        view.open = view.placed.saturating_sub(view.completed + view.compensated);
        view.p99_ms = percentile(&mut latencies, 0.99);
        let seconds = sent.len() as f64 / self.options.rate;
        view.goodput = view.good as f64 / seconds.max(1.0);
        (view.calls, view.attempts) = self.amplification(side);
        view
    }

    /// Calls that were wanted, and requests that were sent for them. With the policies that is the proxies' count.
    fn amplification(&self, side: Side) -> (u64, u64) {
        let counted = self.counted.lock().expect("no panic under this lock");
        let (places, calls): (Vec<Place>, _) = match side {
            Side::Without => ([Role::Gateway, Role::Coordinator].map(|role| Place::part(side, role)).into(), "calls"),
            Side::With => (Role::CALLED.map(Place::proxy).into(), "requests"),
        };
        let sum = |name| places.iter().map(|place| counted.get(*place, name)).sum::<u64>();
        (sum(calls), sum("attempts"))
    }

    /// Waits until every order that was placed has ended.
    async fn drain(&self) {
        let (mut last, mut idle) = (None, 0);
        loop {
            let now: (u64, usize) = {
                let followed = self.followed.lock().expect("no panic under this lock");
                (followed.iter().map(|f| f.created).sum(), followed.iter().map(|f| f.ends.len()).sum())
            };
            idle = if last == Some(now) { idle + 1 } else { 0 };
            last = Some(now);
            // What a customer gave up on may still be on its way into the log: looked at a few times more.
            let open = (now.0 as usize).saturating_sub(now.1);
            if open == 0 && idle > SETTLED_ROUNDS {
                return;
            }
            if idle > DRAIN_ROUNDS {
                self.feed.event("check", format!("{open} orders do not end"));
                return;
            }
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    }

    async fn collect(
        &self,
        started_ms: f64,
        duration_s: f64,
        interrupted: bool,
        busy: Option<f64>,
    ) -> anyhow::Result<Evidence> {
        // The last figures of those who call.
        self.look(&mut BTreeMap::new()).await;
        let kafka: Vec<String> = self.cluster.members().iter().map(|member| member.kafka.clone()).collect();
        let left_open = *self.left_open.lock().expect("no panic under this lock");
        let mut evidence = Evidence {
            seed: self.options.seed,
            rate: self.options.rate,
            duration_s,
            started_ms,
            faults: self.faults.lock().expect("no panic under this lock").clone(),
            interrupted,
            busy,
            ..Evidence::default()
        };
        for (at, side) in Side::ALL.into_iter().enumerate() {
            let sent = self.sent[at].lock().expect("no panic under this lock").clone();
            let mut of_side = SideEvidence {
                sent,
                open: self.ledger.list(&keys::open(side, "")).await?.0.len(),
                killed: left_open.is_some(),
                left_open: left_open.map_or(0, |open| open[at]),
                ..SideEvidence::default()
            };
            (of_side.calls, of_side.attempts) = self.amplification(side);
            for (topic, events) in [(EVENTS, &mut of_side.events), (COMPENSATIONS, &mut of_side.compensations)] {
                let mut foreign = 0;
                reader::read_all(&kafka, topic, side.partition(), |value| match serde_json::from_slice(value) {
                    Ok(event) => events.push(event),
                    Err(_) => foreign += 1,
                })
                .await?;
                anyhow::ensure!(foreign == 0, "{foreign} records of {topic} are no events");
            }
            for kept in self.ledger.list(&keys::row(side, Role::Order, "")).await?.0 {
                let order: Order = serde_json::from_str(&kept.value).context("a row of the order service")?;
                of_side.orders.insert(order.id.clone(), order);
            }
            for role in Role::STEPS {
                let prefix = keys::row(side, role, "");
                let rows = self.ledger.list(&prefix).await?.0.into_iter().map(|kept| {
                    let line = serde_json::from_str(&kept.value).context("a row of a book")?;
                    Ok((kept.key[prefix.len()..].to_owned(), line))
                });
                of_side.books.insert(role, rows.collect::<anyhow::Result<_>>()?);
            }
            for sku in 0..SKUS {
                if let Some(kept) = self.ledger.get(&keys::stock(side, sku)).await? {
                    of_side.stock.insert(sku, kept.value.parse().context("a shelf")?);
                }
            }
            match side {
                Side::Without => evidence.without = of_side,
                Side::With => evidence.with = of_side,
            }
        }
        let counted = self.counted.lock().expect("no panic under this lock");
        evidence.proxies = Role::CALLED
            .map(|role| {
                let get = |name| counted.get(Place::proxy(role), name);
                ProxyFigures {
                    role,
                    requests: get("requests"),
                    attempts: get("attempts"),
                    retries: get("retries"),
                    seconds: get("uptime_ms") as f64 / 1_000.0,
                }
            })
            .into();
        Ok(evidence)
    }
}

fn word_of(fault: Fault) -> Option<String> {
    let mut words = Vec::new();
    if fault.fail > 0.0 || fault.lose > 0.0 {
        words.push("flaky".to_owned());
    }
    if fault.slower > 1.0 {
        words.push(format!("{}x slower", fault.slower));
    }
    (!words.is_empty()).then(|| words.join(", "))
}

/// Idle and whole time of all processors, as the kernel counts them.
fn processors() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> = text.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().take(8).sum()))
}

fn used(before: Option<(u64, u64)>, after: Option<(u64, u64)>) -> Option<f64> {
    let ((idle, all), (idle_now, all_now)) = (before?, after?);
    let all = all_now.checked_sub(all).filter(|all| *all > 0)?;
    Some(1.0 - idle_now.saturating_sub(idle) as f64 / all as f64)
}
