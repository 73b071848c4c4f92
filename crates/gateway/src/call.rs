//! A request under the policies of its route: let in, sent, sent again where that is safe, answered, remembered.
//!
//! The policies are [`buttress_policy`]'s and shared by all cores; this file is their driver. It has the clock, waits where they
//! say so, and keeps the promises that they ask of a driver with guards: [`Place`] gives a call's place back and
//! [`Trying`] ends an attempt, also when the client leaves and this future is dropped.
//!
//! | what came of an attempt | told to the policies when |
//! |---|---|
//! | no connection, a break, no answer in time | at once |
//! | an answer of HTTP, or of gRPC with its status in the head | with the head |
//! | an answer of gRPC whose status stands in the trailers | with the trailers; for a stream of several messages the latency is that of its head |
//!
//! The place of a call is given back when its answer's body has ended.

use std::{collections::HashMap, rc::Rc, sync::PoisonError, time::Duration};

use buttress_core::Code;
use buttress_policy::{
    self as policy, Admit, Answer, Attempt, Call, EndpointSet, GaveUp, Next, Outcome, Pushback, RoutePolicy, Time, Why,
    Woken, parse,
};
use bytes::Bytes;
use http_body::Frame;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    body::{Body, Broken},
    forward::{self, Added},
    parse::{Fields, Kind, RequestHead},
    proxy::{Client, Core, answered, failure_code, send},
    record::{self, Decision, Record, cut},
    replay::Replay,
    reply::{Problem, Reply},
    request_id::RequestId,
    shared::ROUTE,
    upstream::{Failure, FailureKind, Got},
};

/// Said by a hop whose retries are spent, so that hops before it make none.
pub const SPENT_FIELD: &str = "buttress-retried";
/// Said by a hop that is sure that the upstream has not seen the request, so that even a POST may be sent again.
pub const UNDELIVERED_FIELD: &str = "buttress-undelivered";

/// The policies of a route, and who waits for a place in it.
pub struct Route {
    pub policy: RoutePolicy,
    pub endpoints: EndpointSet,
    waiting: std::sync::Mutex<HashMap<u64, Waiter>>,
}

enum Waiter {
    Waits(oneshot::Sender<Woken>),
    /// It was woken before it had told where it waits.
    Woken(Woken),
    /// It gave up while the word that it has a place was on its way.
    Gone,
}

impl Route {
    pub fn new(policy: RoutePolicy, endpoints: EndpointSet) -> Self {
        Self { policy, endpoints, waiting: Default::default() }
    }

    fn wake(&self, woken: Woken) {
        let (Woken::In(ticket) | Woken::Out(ticket, _)) = woken;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.remove(&ticket.0) {
            Some(Waiter::Waits(waiter)) => drop(waiter.send(woken)),
            Some(Waiter::Gone) => {}
            _ => drop(waiting.insert(ticket.0, Waiter::Woken(woken))),
        }
    }

    fn done(&self, now: Time, call: Call) {
        self.policy.done(now, call, |woken| self.wake(woken));
    }
}

/// A call that was let in. Its place is given back when this is dropped.
struct Place {
    core: Rc<Core>,
    call: Option<Call>,
}

impl Place {
    fn call(&mut self) -> &mut Call {
        self.call.as_mut().expect("the call is there until the place is dropped")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            self.core.shared.route.done(self.core.now(), call);
        }
    }
}

/// An attempt under way. Dropped without a word it was cancelled.
struct Trying {
    core: Rc<Core>,
    attempt: Option<Attempt>,
}

impl Trying {
    /// Why the breaker let it through.
    fn permit(&self, now: Time) -> Option<Why> {
        self.core.shared.route.policy.explain_permit(now, self.attempt.as_ref()?)
    }

    fn end(mut self, now: Time, outcome: &Outcome) {
        if let Some(attempt) = self.attempt.take() {
            end(&self.core, now, attempt, outcome);
        }
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            end(&self.core, self.core.now(), attempt, &Outcome::cancelled());
        }
    }
}

fn end(core: &Core, now: Time, attempt: Attempt, outcome: &Outcome) {
    let route = &core.shared.route;
    route.policy.attempt_ended(now, core.numbers.draw(), &route.endpoints, attempt, outcome, |event| match event {
        policy::Event::Breaker(state) => tracing::warn!(route = ROUTE, state = state.word(), "the breaker changed"),
        policy::Event::Endpoint(endpoint, why) => {
            tracing::warn!(route = ROUTE, endpoint = endpoint.name(), code = why.code(), "{why}");
        }
    });
}

/// A place in the queue, given up when this is dropped.
struct Queued {
    core: Rc<Core>,
    ticket: Option<policy::Ticket>,
    call: Option<Call>,
}

impl Queued {
    /// Whether it has a place by now. Where it has, the call is handed over.
    fn give_up(&mut self) -> Result<Call, Why> {
        let (ticket, call) = (self.ticket.take(), self.call.take());
        let (Some(ticket), Some(call)) = (ticket, call) else { unreachable!("a queued call gives up once") };
        let route = &self.core.shared.route;
        let id = ticket.0;
        let gave_up = route.policy.give_up(self.core.now(), ticket);
        let mut waiting = route.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let unheard = matches!(waiting.remove(&id), Some(Waiter::Waits(_)));
        match gave_up {
            GaveUp::Left(why) => Err(why),
            GaveUp::HasPlace => {
                if unheard {
                    waiting.insert(id, Waiter::Gone);
                }
                Ok(call)
            }
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if self.ticket.is_some()
            && let Ok(call) = self.give_up()
        {
            self.core.shared.route.done(self.core.now(), call);
        }
    }
}

/// What is remembered of a call while it runs; nothing of it allocates unless something goes wrong.
struct Story<'a> {
    core: &'a Core,
    request: &'a RequestHead,
    client: &'a str,
    id: &'a RequestId,
    began: Instant,
    admission: [Option<Why>; 2],
    attempts: Vec<record::Attempt>,
    deadline_ms: f64,
    deadline_left_ms: f64,
}

pub fn decision(why: &Why) -> Decision {
    Decision { code: why.code(), says: why.to_string(), would_pass: why.would_pass().to_string() }
}

impl Story<'_> {
    fn keep(&self, status: u16, grpc_status: Option<u16>, outcome: Decision) {
        let shared = &self.core.shared;
        shared.records.keep(Record {
            id: self.id.as_str().to_owned(),
            at_ms: self.core.unix_ms(),
            method: self.request.method.to_string(),
            path: cut(&self.request.path),
            authority: cut(&self.request.authority),
            client: self.client.to_owned(),
            route: ROUTE.to_owned(),
            status,
            grpc_status,
            outcome,
            took_ms: self.began.elapsed().as_secs_f64() * 1e3,
            deadline_ms: self.deadline_ms,
            deadline_left_ms: self.deadline_left_ms,
            admission: self.admission.iter().flatten().map(decision).collect(),
            attempts: self.attempts.clone(),
            state: shared.state(self.core.now()),
        });
    }
}

/// Answers a request under the policies.
pub async fn handle(core: &Rc<Core>, request: RequestHead, body: Body, client: Client<'_>, id: RequestId) -> Reply {
    let began = Instant::now();
    core.shard.route.running.add(1);
    let mut running = Running { core: core.clone(), began, told: false };
    let mut story = Story {
        core,
        request: &request,
        client: client.address,
        id: &id,
        began,
        admission: [None; 2],
        attempts: Vec::new(),
        deadline_ms: 0.0,
        deadline_left_ms: 0.0,
    };
    let asked = asked(&request);
    let mut reply = match admit(core, &asked, &mut story).await {
        Ok(place) => tries(core, place, &request, body, &client, &mut story).await,
        Err(why) => refuse(&story, &why, false),
    };
    running.told(reply.status);
    reply.body = reply.body.on_end(running);
    reply
}

/// What the policies ask of a request.
fn asked(request: &RequestHead) -> policy::Request {
    let fields = &request.fields;
    let grpc = fields.text(Kind::GrpcTimeout).and_then(parse::grpc_timeout);
    let idempotent = request.method.is_idempotent() || fields.get(Kind::IdempotencyKey).is_some();
    policy::Request {
        left: fields.text(Kind::Timeout).and_then(parse::timeout_ms).or(grpc),
        attempt: fields.text(Kind::RetryAttempt).map_or(1, parse::attempt),
        // An upgrade makes a connection that nobody can repeat.
        idempotent: idempotent && !request.upgrade,
        ..policy::Request::default()
    }
}

async fn admit(core: &Rc<Core>, asked: &policy::Request, story: &mut Story<'_>) -> Result<Place, Why> {
    let route = &core.shared.route;
    let place = |call| Place { core: core.clone(), call: Some(call) };
    let (call, ticket, until) = match route.policy.admit(core.now(), asked) {
        Admit::Go(call, why) => {
            story.admission[0] = Some(why);
            return Ok(place(call));
        }
        Admit::Refuse(why) => return Err(why),
        Admit::Wait { call, ticket, until, why } => {
            story.admission[0] = Some(why);
            (call, ticket, until)
        }
    };
    let number = ticket.0;
    let mut queued = Queued { core: core.clone(), ticket: Some(ticket), call: Some(call) };
    let (waiter, woken) = oneshot::channel();
    let known = {
        let mut waiting = route.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.remove(&number) {
            Some(Waiter::Woken(woken)) => Some(woken),
            _ => {
                waiting.insert(number, Waiter::Waits(waiter));
                None
            }
        }
    };
    let woken = match known {
        Some(woken) => Some(woken),
        None => tokio::time::timeout_at(core.instant(until), woken).await.ok().and_then(Result::ok),
    };
    let call = match woken {
        Some(Woken::In(_)) => {
            queued.ticket = None;
            queued.call.take().expect("the call waited")
        }
        Some(Woken::Out(_, why)) => {
            queued.ticket = None;
            return Err(why);
        }
        None => queued.give_up()?,
    };
    let place = place(call);
    let call = place.call.as_ref().expect("it was put there above");
    story.admission[1] = Some(route.policy.resume(core.now(), call)?);
    Ok(place)
}

/// Makes attempts until one is answered or no other may follow.
async fn tries(
    core: &Rc<Core>,
    mut place: Place,
    request: &RequestHead,
    body: Body,
    client: &Client<'_>,
    story: &mut Story<'_>,
) -> Reply {
    let route = &core.shared.route;
    let policy = &route.policy;
    let replay = (!body.is_empty()).then(|| Replay::new(body));
    let is_grpc = forward::is_grpc(request);
    if let Some(left) = place.call().left(core.now()) {
        story.deadline_ms = left.as_secs_f64() * 1e3;
    }
    // What the client is answered if no further attempt follows.
    let mut last: Option<(Reply, Option<u16>)> = None;
    loop {
        let now = core.now();
        let started = policy.pick(now, core.numbers.draw(), &route.endpoints, place.call()).and_then(|pick| {
            Ok((pick, policy.attempt_started(now, core.numbers.draw(), place.call(), &route.endpoints, pick.at)?))
        });
        let (pick, attempt) = match started {
            Ok(started) => started,
            Err(why) => {
                story.deadline_left_ms = left_ms(place.call(), now);
                // The last answer stands, where there was one.
                return match last {
                    Some((mut reply, grpc_status)) => {
                        reply.spent = true;
                        keep_failure(story, &reply, grpc_status, &why);
                        reply
                    }
                    None => refuse(story, &why, false),
                };
            }
        };
        let timeout = attempt.timeout;
        let trying = Trying { core: core.clone(), attempt: Some(attempt) };
        let upstream = &core.upstreams[pick.at];
        let figures = &core.shard.endpoints[pick.at];
        core.shard.attempts.add(1);
        let busy = Busy::new(core, pick.at);
        let left = place.call().left(now);
        let added = Added {
            id: story.id,
            client,
            traceparent: core.numbers.traceparent(),
            attempt: place.call().attempt_to_send(),
            left_ms: left.map(|left| left.min(timeout).as_millis() as u64),
            endpoint: &upstream.endpoint.address,
            tls: upstream.endpoint.tls,
        };
        let repeatable = asked(request).idempotent;
        let sent =
            tokio::time::timeout(timeout, send(core, upstream, request, replay.as_ref(), &added, repeatable)).await;
        let sent =
            sent.unwrap_or_else(|_| Err(Failure { kind: FailureKind::Deadline, not_delivered: false, reused: false }));
        drop(busy);
        figures.connects.set(upstream.connects.get());
        let ended = core.now();
        let took = ended.since(now);
        let (outcome, status, grpc_status, open) = judge(&sent, is_grpc, core.unix_ms());
        figures.golden.done(status.unwrap_or(502), took.as_micros() as u64);
        if outcome.succeeded() == Some(false) {
            figures.failures.add(1);
        }
        story.deadline_left_ms = left_ms(place.call(), ended);
        // The frequent case, which allocates nothing but what the answer needs.
        if outcome.succeeded() == Some(true) {
            let got = match sent {
                Ok(got) => got,
                Err(_) => unreachable!("a failure is no success"),
            };
            let again = !story.attempts.is_empty();
            if again || core.sampled() {
                let breaker = trying.permit(now);
                story.attempts.push(tried(upstream, &pick.why, breaker, took, status, grpc_status, "", true, false));
                let outcome = decision(&Why::RetryNeedless { attempt: place.call().attempts().into() });
                story.keep(got.head.status, grpc_status, outcome);
            }
            if !open {
                trying.end(ended, &outcome);
                return finish(story, &upstream.endpoint.address, answered(got, story.id.clone()), place, None);
            }
            let reply = answered(got, story.id.clone());
            return finish(story, &upstream.endpoint.address, reply, place, Some((trying, ended)));
        }
        let breaker = trying.permit(now);
        trying.end(ended, &outcome);
        let whole = replay.as_ref().is_none_or(|replay| replay.borrow().whole());
        let next = if whole {
            policy.next(ended, core.numbers.draw(), place.call(), &outcome)
        } else {
            Next::GiveUp(Why::RetryBody { attempt: place.call().attempts().into() })
        };
        let (Next::Retry { why, .. } | Next::GiveUp(why)) = &next;
        let problem = sent.as_ref().err().map(|failure| failure.kind.to_string()).unwrap_or_default();
        let (delivered, reused) = sent.as_ref().err().map_or((true, false), |f| (!f.not_delivered, f.reused));
        let mut tried = tried(upstream, &pick.why, breaker, took, status, grpc_status, &problem, delivered, reused);
        tried.next = Some(decision(why));
        story.attempts.push(tried);
        let reply = failed(story, upstream.endpoint.address.as_str(), sent, is_grpc, why);
        match next {
            Next::Retry { after, .. } => {
                last = Some((reply, grpc_status));
                tokio::time::sleep(after).await;
                core.shard.retries.add(1);
            }
            Next::GiveUp(_) => {
                let mut reply = reply;
                // Where nothing arrived anywhere, the hop before may have an endpoint that we have not.
                reply.undelivered = story.attempts.iter().all(|attempt| !attempt.delivered);
                reply.spent = place.call().mark_retried() && !reply.undelivered;
                keep_failure(story, &reply, grpc_status, why);
                return finish(story, &upstream.endpoint.address, reply, place, None);
            }
        }
    }
}

/// An attempt that runs, for the figures of its endpoint; over when this is dropped, also because the client left.
struct Busy<'a> {
    core: &'a Core,
    at: usize,
}

impl<'a> Busy<'a> {
    fn new(core: &'a Core, at: usize) -> Self {
        core.shard.endpoints[at].golden.running.add(1);
        Self { core, at }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.core.shard.endpoints[self.at].golden.running.take(1);
    }
}

fn left_ms(call: &Call, now: Time) -> f64 {
    call.left(now).unwrap_or_default().as_secs_f64() * 1e3
}

/// Gives the place back when the body of the answer has ended, and tells how a call of gRPC ended.
fn finish(story: &Story<'_>, endpoint: &str, mut reply: Reply, place: Place, open: Option<(Trying, Time)>) -> Reply {
    if open.is_none() && (reply.body.is_whole() || reply.tunnel.is_some()) {
        return reply;
    }
    let about = About {
        id: story.id.clone(),
        method: story.request.method.clone(),
        path: story.request.path.clone(),
        authority: story.request.authority.clone(),
        client: story.client.into(),
        endpoint: endpoint.into(),
        began: story.began,
        status: reply.status,
    };
    reply.body = reply.body.with(Box::new(Ticket { place, about, open, frames: 0, bytes: 0 }));
    reply
}

#[allow(clippy::too_many_arguments)]
fn tried(
    upstream: &crate::upstream::Upstream,
    picked: &Why,
    breaker: Option<Why>,
    took: Duration,
    status: Option<u16>,
    grpc_status: Option<u16>,
    problem: &str,
    delivered: bool,
    reused: bool,
) -> record::Attempt {
    record::Attempt {
        endpoint: upstream.endpoint.address.clone(),
        picked: Some(decision(picked)),
        breaker: breaker.as_ref().map(decision),
        took_ms: took.as_secs_f64() * 1e3,
        status,
        grpc_status,
        problem: problem.to_owned(),
        delivered,
        reused_connection: reused,
        next: None,
    }
}

/// What came of an attempt: for the policies, the statuses, and whether a status in the trailers is still to come.
fn judge(sent: &Result<Got, Failure>, is_grpc: bool, unix_ms: u64) -> (Outcome, Option<u16>, Option<u16>, bool) {
    match sent {
        Ok(got) => {
            let (status, fields) = (got.head.status, &got.head.fields);
            let grpc = fields.text(Kind::GrpcStatus).and_then(|text| text.parse::<u16>().ok());
            let open = is_grpc && status == 200 && grpc.is_none();
            let outcome = match grpc {
                Some(code) if is_grpc && status == 200 => Outcome::grpc(code),
                _ => Outcome::http(status),
            };
            (marks(outcome, fields, unix_ms), Some(status), grpc.filter(|_| is_grpc), open)
        }
        Err(failure) => {
            let outcome = match &failure.kind {
                FailureKind::Client(_) => Outcome::cancelled(),
                FailureKind::Deadline => Outcome::timeout(),
                FailureKind::Connect(_) | FailureKind::ConnectTimeout | FailureKind::Tls(_) => Outcome::unreached(),
                _ if failure.not_delivered => Outcome::unreached(),
                FailureKind::Malformed(_) => Outcome::http(500),
                FailureKind::Closed(_) | FailureKind::Http2(_) => Outcome::reset(),
            };
            (outcome, None, None, false)
        }
    }
}

/// What an answer that is a failure says about trying again.
fn marks(outcome: Outcome, fields: &Fields, unix_ms: u64) -> Outcome {
    if outcome.succeeded() == Some(true) {
        return outcome;
    }
    let outcome = if fields.named(UNDELIVERED_FIELD).is_some() { outcome.not_delivered() } else { outcome };
    let text = |name: &str| std::str::from_utf8(fields.named(name)?).ok();
    let pushback = if fields.named(SPENT_FIELD).is_some() {
        Pushback::Never
    } else if let Some(asked) = text("grpc-retry-pushback-ms") {
        parse::pushback_ms(asked)
    } else {
        text("retry-after")
            .and_then(|asked| parse::retry_after(asked, unix_ms / 1000))
            .map_or(Pushback::None, Pushback::After)
    };
    outcome.pushed_back(pushback)
}

/// The answer to a request that no policy let through.
fn refuse(story: &Story<'_>, why: &Why, spent: bool) -> Reply {
    let (status, grpc) = match why.answer() {
        Answer::Refuse { http, grpc } => (http, grpc),
        _ => (503, 14),
    };
    let is_grpc = forward::is_grpc(story.request);
    let decision = decision(why);
    let mut reply = Problem {
        status,
        code: decision.code,
        detail: &decision.says,
        would_pass: Some(&decision.would_pass),
        id: Some(story.id.clone()),
        grpc: is_grpc.then_some(grpc),
        retry_after: (status == 503 || status == 429).then_some(1),
    }
    .reply();
    // Nothing was sent, unless attempts were made before.
    reply.undelivered = story.attempts.iter().all(|attempt| !attempt.delivered);
    reply.spent = spent;
    story.keep(status, is_grpc.then_some(grpc.into()), decision);
    reply
}

/// The answer where the last attempt failed: the upstream's own, or ours.
fn failed(story: &Story<'_>, endpoint: &str, sent: Result<Got, Failure>, is_grpc: bool, why: &Why) -> Reply {
    match sent {
        Ok(got) => answered(got, story.id.clone()),
        Err(failure) => {
            let (status, code) = failure_code(&failure);
            let detail = format!("{endpoint}: {}", failure.kind);
            let would_pass = why.would_pass().to_string();
            Problem {
                status,
                code: code.0,
                detail: &detail,
                would_pass: Some(&would_pass).filter(|text| !text.is_empty()).map(String::as_str),
                id: Some(story.id.clone()),
                grpc: is_grpc.then_some(if status == 504 { 4 } else { 14 }),
                retry_after: None,
            }
            .reply()
        }
    }
}

fn keep_failure(story: &Story<'_>, reply: &Reply, grpc_status: Option<u16>, why: &Why) {
    let last = story.attempts.last();
    let says = match (last, reply.code) {
        (Some(attempt), None) => {
            let status = attempt.grpc_status.map_or(format!("{}", reply.status), |grpc| format!("gRPC status {grpc}"));
            format!("{} answered {status} itself", attempt.endpoint)
        }
        (Some(attempt), Some(_)) => format!("{}: {}", attempt.endpoint, attempt.problem),
        (None, _) => String::new(),
    };
    let code = reply.code.unwrap_or(Code::UPSTREAM_FAILED.0);
    story.keep(reply.status, grpc_status, Decision { code, says, would_pass: why.would_pass().to_string() });
}

/// A request that runs, for the figures; told once, when its answer begins, and over when that has ended.
pub struct Running {
    core: Rc<Core>,
    began: Instant,
    told: bool,
}

impl Running {
    fn told(&mut self, status: u16) {
        self.told = true;
        self.core.shard.route.done(status, self.began.elapsed().as_micros() as u64);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.told {
            // The client left before there was an answer: 499, as nginx calls it.
            self.told(499);
        }
        self.core.shard.route.running.take(1);
    }
}

/// What a response's body tells the books when it goes on and ends.
pub struct Ticket {
    place: Place,
    about: About,
    /// A call of gRPC whose status is still to come, and when its head came.
    open: Option<(Trying, Time)>,
    frames: u32,
    bytes: u64,
}

/// What a record of an answer that breaks off needs.
struct About {
    id: RequestId,
    method: http::Method,
    path: Bytes,
    authority: Bytes,
    client: Box<str>,
    endpoint: Box<str>,
    began: Instant,
    status: u16,
}

impl Ticket {
    pub fn body_went_on(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.frames = self.frames.saturating_add(1);
            self.bytes += data.len() as u64;
        }
        if let Some(trailers) = frame.trailers_ref()
            && let Some((trying, head)) = self.open.take()
        {
            let code = trailers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse::<u16>().ok());
            // A stream may be open for hours, which says nothing about how fast the upstream is.
            let now = if self.frames > 1 { head } else { trying.core.now() };
            trying.end(now, &Outcome::grpc(code.unwrap_or(2)));
        }
    }

    pub fn body_ended(&mut self, broken: Option<&Broken>) {
        if let Some((trying, head)) = self.open.take() {
            let outcome = if broken.is_some() { Outcome::reset() } else { Outcome::grpc(2) };
            trying.end(head, &outcome);
        }
        if let Some(broken) = broken {
            self.cut(broken);
        }
    }

    /// Remembers an answer that broke off.
    fn cut(&self, broken: &Broken) {
        let (core, about) = (&self.place.core, &self.about);
        let took_ms = about.began.elapsed().as_secs_f64() * 1e3;
        let says = format!("{} broke off after {} bytes of its answer: {broken}", about.endpoint, self.bytes);
        let would_pass = "an upstream that finishes what it begins".to_owned();
        core.shared.records.keep(Record {
            id: about.id.as_str().to_owned(),
            at_ms: core.unix_ms(),
            method: about.method.to_string(),
            path: cut(&about.path),
            authority: cut(&about.authority),
            client: about.client.to_string(),
            route: ROUTE.to_owned(),
            status: about.status,
            grpc_status: None,
            outcome: Decision { code: Code::UPSTREAM_CUT.0, says, would_pass },
            took_ms,
            deadline_ms: 0.0,
            deadline_left_ms: 0.0,
            admission: Vec::new(),
            attempts: Vec::new(),
            state: core.shared.state(core.now()),
        });
    }
}
