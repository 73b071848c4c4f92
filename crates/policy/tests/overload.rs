//! A closed world in virtual time: callers who do not wait for each other, a gateway with the policies or without, and four
//! servers with a queue each. One seed, one thread, the same to the last call when it is repeated.
//!
//! The servers are as simple as real ones are: they work through their queue, whoever may have given up meanwhile. That is what
//! makes an overload stay: once the queue is longer than the callers' patience, every answer comes too late, every call is made
//! three times, and the load that the retries make keeps the queue as long as it is (Bronson et al., "Metastable failures in
//! distributed systems", HotOS 2021).

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    time::Duration,
};

use buttress_policy::{
    Admit, Attempt, Call, EndpointSet, GaveUp, Next, Outcome, Request, Rng, RouteConfig, RoutePolicy, Ticket, Time,
    Woken, breaker, deadline,
};

const SERVERS: usize = 4;
const WORKERS: usize = 25;
/// 4 servers × 25 workers ÷ 100 ms = 1,000 calls a second.
const SERVICE_MS: f64 = 100.0;
const CAPACITY: f64 = 1_000.0;
/// What a server's queue holds: ten seconds of work.
const QUEUE: usize = 2_500;
const PATIENCE: Duration = Duration::from_secs(1);
const NAIVE_ATTEMPTS: u8 = 3;
/// Within the ten seconds of the brown-out a call takes ten times as long.
const BROWN: (u64, u64) = (20, 30);
const SECONDS: usize = 60;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Arrive,
    Served { server: usize, call: u64, number: u8 },
    TimedOut { call: u64, number: u8 },
    Again { call: u64 },
    Waited { call: u64 },
}

#[derive(Default)]
struct Server {
    busy: usize,
    queue: VecDeque<(u64, u8)>,
}

/// A call as the driver keeps it.
struct Live {
    began: Time,
    /// The attempt that counts.
    number: u8,
    server: usize,
    policy: Option<Call>,
    attempt: Option<Attempt>,
    ticket: Option<Ticket>,
}

#[derive(Clone, Debug, PartialEq)]
struct Report {
    /// Answers in time, in each second.
    good: Vec<u32>,
    calls: u64,
    /// Attempts that were sent to a server, and calls that had at least one.
    attempts: u64,
    sent: u64,
    /// What ended calls that were not answered.
    codes: HashMap<&'static str, u64>,
}

struct World {
    now: Time,
    events: BinaryHeap<Reverse<(Time, u64, What)>>,
    ordinal: u64,
    rng: Rng,
    rate: f64,
    servers: Vec<Server>,
    live: HashMap<u64, Live>,
    route: Option<RoutePolicy>,
    set: EndpointSet,
    tickets: HashMap<Ticket, u64>,
    report: Report,
}

impl World {
    fn new(seed: u64, rate: f64, route: Option<RoutePolicy>) -> Self {
        let names: Vec<String> = (0..SERVERS).map(|n| format!("server-{n}")).collect();
        let report = Report { good: vec![0; SECONDS], calls: 0, attempts: 0, sent: 0, codes: HashMap::new() };
        Self {
            now: Time::ZERO,
            events: BinaryHeap::new(),
            ordinal: 0,
            rng: Rng::new(seed),
            rate,
            servers: (0..SERVERS).map(|_| Server::default()).collect(),
            live: HashMap::new(),
            route,
            set: EndpointSet::new(names.iter().map(|name| (name.as_str(), 1))),
            tickets: HashMap::new(),
            report,
        }
    }

    fn run(mut self) -> Report {
        self.at(Duration::ZERO, What::Arrive);
        while let Some(Reverse((now, _, what))) = self.events.pop() {
            if now >= Time::from_millis(SECONDS as u64 * 1000) {
                break;
            }
            self.now = now;
            match what {
                What::Arrive => self.arrive(),
                What::Served { server, call, number } => self.served(server, call, number),
                What::TimedOut { call, number } => {
                    if self.live.get(&call).is_some_and(|live| live.number == number && live.server < SERVERS) {
                        self.ended(call, Outcome::timeout());
                    }
                }
                What::Again { call } => self.attempt(call),
                What::Waited { call } => self.waited(call),
            }
        }
        self.report
    }

    fn at(&mut self, after: Duration, what: What) {
        self.ordinal += 1;
        self.events.push(Reverse((self.now.plus(after), self.ordinal, what)));
    }

    fn exponential(&mut self, mean_ms: f64) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.rng.unit()).ln() * mean_ms / 1000.0)
    }

    fn arrive(&mut self) {
        let next = self.exponential(1000.0 / self.rate);
        self.at(next, What::Arrive);
        let id = self.report.calls;
        self.report.calls += 1;
        let mut live = Live { began: self.now, number: 0, server: SERVERS, policy: None, attempt: None, ticket: None };
        if let Some(route) = &self.route {
            let request = Request { idempotent: true, ..Request::default() };
            match route.admit(self.now, &request) {
                Admit::Go(call, _) => live.policy = Some(call),
                Admit::Wait { call, ticket, until, .. } => {
                    (live.policy, live.ticket) = (Some(call), Some(ticket));
                    self.tickets.insert(ticket, id);
                    self.live.insert(id, live);
                    self.at(until.since(self.now), What::Waited { call: id });
                    return;
                }
                Admit::Refuse(why) => {
                    *self.report.codes.entry(why.code()).or_default() += 1;
                    return;
                }
            }
        }
        self.live.insert(id, live);
        self.attempt(id);
    }

    /// A ticket's time is over.
    fn waited(&mut self, id: u64) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let Some(ticket) = live.ticket.take() else { return };
        let route = self.route.as_ref().expect("only policies queue");
        let GaveUp::Left(why) = route.give_up(self.now, ticket) else { panic!("whoever got a place was woken") };
        self.tickets.remove(&ticket);
        // It never had a place, so it has none to give back.
        self.live.remove(&id);
        *self.report.codes.entry(why.code()).or_default() += 1;
    }

    fn attempt(&mut self, id: u64) {
        let live = self.live.get_mut(&id).expect("a call that goes on is there");
        let (server, timeout) = match (&self.route, &mut live.policy) {
            (Some(route), Some(call)) => {
                let started = route.pick(self.now, self.rng.draw(), &self.set, call).and_then(|pick| {
                    Ok((pick.at, route.attempt_started(self.now, self.rng.draw(), call, &self.set, pick.at)?))
                });
                match started {
                    Ok((at, attempt)) => {
                        let timeout = attempt.timeout;
                        live.attempt = Some(attempt);
                        (at, timeout)
                    }
                    Err(why) => return self.finish(id, Err(why.code())),
                }
            }
            _ => (self.rng.below(SERVERS as u64) as usize, PATIENCE),
        };
        live.number += 1;
        live.server = server;
        let number = live.number;
        self.report.attempts += 1;
        self.report.sent += u64::from(number == 1);
        self.at(timeout, What::TimedOut { call: id, number });
        if self.servers[server].busy < WORKERS {
            self.serve(server, id, number);
        } else if self.servers[server].queue.len() < QUEUE {
            self.servers[server].queue.push_back((id, number));
        } else {
            self.ended(id, Outcome::http(503));
        }
    }

    fn serve(&mut self, server: usize, call: u64, number: u8) {
        self.servers[server].busy += 1;
        let second = self.now.nanos() / 1_000_000_000;
        let slower = if (BROWN.0..BROWN.1).contains(&second) { 10.0 } else { 1.0 };
        // Half of it is the same for all.
        let takes = self.exponential(SERVICE_MS / 2.0) + Duration::from_secs_f64(SERVICE_MS / 2000.0);
        self.at(takes.mul_f64(slower), What::Served { server, call, number });
    }

    fn served(&mut self, server: usize, id: u64, number: u8) {
        self.servers[server].busy -= 1;
        if let Some((call, number)) = self.servers[server].queue.pop_front() {
            self.serve(server, call, number);
        }
        if self.live.get(&id).is_some_and(|live| live.number == number && live.server < SERVERS) {
            self.ended(id, Outcome::http(200));
        }
    }

    /// The attempt that counts has ended.
    fn ended(&mut self, id: u64, outcome: Outcome) {
        let live = self.live.get_mut(&id).expect("its attempt runs");
        live.server = SERVERS;
        let good = outcome == Outcome::http(200);
        let next = match (&self.route, &mut live.policy) {
            (Some(route), Some(call)) => {
                let attempt = live.attempt.take().expect("it runs");
                route.attempt_ended(self.now, self.rng.draw(), &self.set, attempt, &outcome, |_| {});
                match route.next(self.now, self.rng.draw(), call, &outcome) {
                    Next::Retry { after, .. } => Ok(after),
                    Next::GiveUp(why) => Err(why.code()),
                }
            }
            _ if good || live.number >= NAIVE_ATTEMPTS => Err("no attempts left"),
            _ => Ok(Duration::from_millis(25 << live.number)),
        };
        match next {
            Ok(after) => self.at(after, What::Again { call: id }),
            Err(_) if good => self.finish(id, Ok(())),
            Err(code) => self.finish(id, Err(code)),
        }
    }

    fn finish(&mut self, id: u64, answer: Result<(), &'static str>) {
        let live = self.live.remove(&id).expect("it ends once");
        match answer {
            Ok(()) => {
                assert!(self.now.since(live.began) <= 4 * PATIENCE, "no attempt waits for longer");
                self.report.good[(self.now.nanos() / 1_000_000_000) as usize] += 1;
            }
            Err(code) => *self.report.codes.entry(code).or_default() += 1,
        }
        let (Some(route), Some(call)) = (&self.route, live.policy) else { return };
        let mut woken = Vec::new();
        route.done(self.now, call, |one| woken.push(one));
        for one in woken {
            let (Woken::In(ticket) | Woken::Out(ticket, _)) = one;
            let id = self.tickets.remove(&ticket).expect("a ticket is answered once");
            self.live.get_mut(&id).expect("it waits").ticket = None;
            match one {
                Woken::Out(_, why) => {
                    self.live.remove(&id);
                    *self.report.codes.entry(why.code()).or_default() += 1;
                }
                Woken::In(_) => {
                    let route = self.route.as_ref().expect("only policies queue");
                    let call = self.live[&id].policy.as_ref().expect("it is with the policies");
                    match route.resume(self.now, call) {
                        Ok(_) => self.at(Duration::ZERO, What::Again { call: id }),
                        Err(why) => self.finish(id, Err(why.code())),
                    }
                }
            }
        }
    }
}

fn policies() -> RoutePolicy {
    let deadline = deadline::Config { total: Some(PATIENCE), ..Default::default() };
    RoutePolicy::new(RouteConfig { deadline, ..RouteConfig::default() }).expect("valid settings")
}

/// Good answers a second from one second to another, as a part of the capacity.
fn goodput(report: &Report, from: usize, to: usize) -> f64 {
    let sum: u32 = report.good[from..to].iter().sum();
    f64::from(sum) / (to - from) as f64 / CAPACITY
}

#[test]
fn an_overload_that_lasts_does_not_keep_a_brown_out_alive() {
    for seed in 1..=3 {
        let report = World::new(seed, 2.0 * CAPACITY, Some(policies())).run();
        let before = goodput(&report, 10, 20);
        let after = goodput(&report, 35, 60);
        println!("seed {seed}: {:?}\n{:?}", report.good, report.codes);
        assert!(before >= 0.9, "twice the capacity is asked for, and {before} of it is answered");
        assert!(after >= 0.95 * before, "five seconds after the brown-out: {after} of the capacity, {before} before");
        for second in 35..60 {
            let now = goodput(&report, second, second + 1);
            assert!(now >= 0.85 * before, "{now} in second {second}, {before} before");
        }
        // What the budget lets through: a fifth of the calls that were sent, and three a second.
        let allowed = report.sent as f64 * 1.2 + 3.0 * (SECONDS as f64 + 10.0);
        assert!(report.attempts as f64 <= allowed, "{} attempts for {} calls", report.attempts, report.sent);
    }
}

#[test]
fn without_the_policies_the_same_overload_stays() {
    let report = World::new(1, 2.0 * CAPACITY, None).run();
    println!("{:?}", report.good);
    let after = goodput(&report, 35, 60);
    assert!(after <= 0.1, "everything is answered too late: {after}");
    assert!(report.attempts as f64 >= 2.5 * report.sent as f64, "and everything is sent three times");
}

#[test]
fn a_load_that_was_no_problem_before_the_brown_out_is_none_after_it() {
    for seed in 1..=3 {
        let naive = World::new(seed, 0.8 * CAPACITY, None).run();
        let wise = World::new(seed, 0.8 * CAPACITY, Some(policies())).run();
        println!("seed {seed}\nwithout {:?}\nwith    {:?}\n{:?}", naive.good, wise.good, wise.codes);
        let (before, stuck) = (goodput(&naive, 10, 20), goodput(&naive, 35, 60));
        assert!(before >= 0.75 && stuck <= 0.1 * before, "metastable: {before} before, {stuck} after");
        let (before, after) = (goodput(&wise, 10, 20), goodput(&wise, 35, 60));
        assert!(before >= 0.75 && after >= 0.95 * before, "{before} before, {after} after");
    }
}

#[test]
fn a_run_is_the_same_when_it_is_repeated() {
    let run = || World::new(9, 2.0 * CAPACITY, Some(policies())).run();
    assert_eq!(run(), run());
}

/// The breaker alone is not what saves them: with half-open probes every few seconds it would let bursts through.
#[test]
fn the_limiter_carries_the_overload_and_the_breaker_is_not_needed_for_it() {
    let deadline = deadline::Config { total: Some(PATIENCE), ..Default::default() };
    let config = RouteConfig { deadline, breaker: None::<breaker::Config>, ..RouteConfig::default() };
    let route = RoutePolicy::new(config).expect("valid settings");
    let report = World::new(2, 2.0 * CAPACITY, Some(route)).run();
    let (before, after) = (goodput(&report, 10, 20), goodput(&report, 35, 60));
    assert!(before >= 0.9 && after >= 0.95 * before, "{before} before, {after} after");
}

/// Attempts that give up early are followed by others, and all of them fail: what the upstream sees is bounded by the budget.
#[test]
fn retries_of_everything_that_fails_are_a_fifth_of_it() {
    let deadline =
        deadline::Config { total: Some(PATIENCE), attempt: Some(Duration::from_millis(300)), ..Default::default() };
    for (breaker, limiter) in [(true, true), (false, false)] {
        let full = RouteConfig { deadline, ..RouteConfig::default() };
        let config = RouteConfig {
            breaker: full.breaker.filter(|_| breaker),
            limiter: full.limiter.filter(|_| limiter),
            ..full
        };
        let route = RoutePolicy::new(config).expect("valid settings");
        let report = World::new(4, 0.8 * CAPACITY, Some(route)).run();
        println!("{:?} {} {} {:?}", report.good, report.sent, report.attempts, report.codes);
        let (before, after) = (goodput(&report, 10, 20), goodput(&report, 35, 60));
        let retries = report.attempts - report.sent;
        assert!(retries > 0, "some are made");
        assert!(
            retries as f64 <= 0.2 * report.sent as f64 + 3.0 * (SECONDS as f64 + 10.0),
            "{retries} {}",
            report.sent
        );
        if limiter {
            assert!(before >= 0.75 && after >= 0.95 * before, "{before} before, {after} after");
        }
    }
}
