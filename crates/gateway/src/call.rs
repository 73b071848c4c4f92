//! A request on its way: matched with a route, held against its rules, let in, sent, sent again where that is safe, answered,
//! remembered.
//!
//! The policies are [`buttress_policy`]'s, one set for each backend, and shared by all cores; this file is their driver. It has
//! the clock, waits where they say so, and keeps the promises that they ask of a driver with guards: [`Place`] gives a call's
//! place back and [`Trying`] ends an attempt, also when the client leaves and this future is dropped.
//!
//! | what came of an attempt | told to the policies when |
//! |---|---|
//! | no connection, a break, no answer in time | at once |
//! | an answer of HTTP, or of gRPC with its status in the head | with the head |
//! | an answer of gRPC whose status stands in the trailers | with the trailers; for a stream of several messages the latency is that of its head |
//!
//! The place of a call is given back when its answer's body has ended.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use buttress_core::Code;
use buttress_policy::{
    self as policy, Admit, Answer, Attempt, Call, Next, Outcome, Pick, Priority, Pushback, Time, Why, Woken, parse,
};
use buttress_resources::route::Level;
use bytes::Bytes;
use http_body::Frame;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    access_log::{self, End, Ended as Ending},
    auth::{Caller, FRESHER_PATIENCE, Gate},
    body::{Body, Broken},
    forward::{self, Added},
    noted::without_secrets,
    otlp::Traces,
    parse::{Fields, Kind, RequestHead},
    proxy::{Client, Core, answered, failure_code, send},
    record::{self, Decision, Record, Said, cut},
    replay::Replay,
    reply::{Problem, Reply, would_pass},
    request_id::RequestId,
    rules::{Point, Rewrite, drawn},
    stale::Stale,
    table::{Backend, Endpoints, Member, Route, RouteFigures, Table},
    trace::{self, Span, Told, Tracing},
    upstream::{Failure, FailureKind, Got, Upstream},
};

/// Said by a hop whose retries are spent, so that hops before it make none.
pub const SPENT_FIELD: &str = "buttress-retried";
/// Said by a hop that is sure that the upstream has not seen the request, so that even a POST may be sent again.
pub const UNDELIVERED_FIELD: &str = "buttress-undelivered";

/// A call that was let in. Its place is given back when this is dropped.
struct Place {
    core: Rc<Core>,
    backend: Arc<Backend>,
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
            self.backend.done(self.core.now(), call);
        }
    }
}

/// An attempt under way. Dropped without a word it was cancelled.
struct Trying {
    core: Rc<Core>,
    backend: Arc<Backend>,
    endpoints: Arc<Endpoints>,
    attempt: Option<Attempt>,
}

impl Trying {
    /// Why the breaker let it through.
    fn permit(&self, now: Time) -> Option<Why> {
        self.backend.policy.explain_permit(now, self.attempt.as_ref()?)
    }

    fn end(mut self, now: Time, outcome: &Outcome) {
        self.ended(now, outcome);
    }

    fn ended(&mut self, now: Time, outcome: &Outcome) {
        let Some(attempt) = self.attempt.take() else { return };
        let name = &*self.backend.name;
        let set = &self.endpoints.set;
        self.backend.policy.attempt_ended(now, self.core.numbers.draw(), set, attempt, outcome, |event| match event {
            policy::Event::Breaker(state) => {
                tracing::warn!(backend = name, state = state.word(), "the breaker changed")
            }
            policy::Event::Endpoint(endpoint, why) => {
                tracing::warn!(backend = name, endpoint = endpoint.name(), code = why.code(), "{why}");
            }
        });
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        if self.attempt.is_some() {
            self.ended(self.core.now(), &Outcome::cancelled());
        }
    }
}

/// A place in the queue, given up when this is dropped.
struct Queued {
    core: Rc<Core>,
    backend: Arc<Backend>,
    ticket: Option<policy::Ticket>,
    call: Option<Call>,
    /// Where its word comes.
    heard: Option<oneshot::Receiver<Woken>>,
}

impl Queued {
    /// Whether it has a place by now. Where it has, the call is handed over.
    fn give_up(&mut self) -> Result<Call, Why> {
        let (ticket, call) = (self.ticket.take(), self.call.take());
        let (Some(ticket), Some(call)) = (ticket, call) else { unreachable!("a queued call gives up once") };
        self.backend.give_up(self.core.now(), ticket, self.heard.as_mut()).map(|()| call)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if self.ticket.is_some()
            && let Ok(call) = self.give_up()
        {
            self.backend.done(self.core.now(), call);
        }
    }
}

/// What is remembered of a call while it runs; nothing of it allocates unless something goes wrong.
pub struct Story<'a> {
    core: &'a Rc<Core>,
    request: &'a RequestHead,
    client: &'a Client<'a>,
    /// Who asks, where a rule found out.
    caller: Option<String>,
    id: &'a RequestId,
    /// What goes on as `traceparent` where nothing is exported.
    traceparent: &'a [u8],
    trace: Option<Rc<Tracing>>,
    began: Instant,
    at_ms: u64,
    /// Counts the request until its answer takes it along.
    running: Option<Running>,
    /// Attempts that were begun, and who got the last one.
    sent: u32,
    asked: Option<Arc<Member>>,
    /// The attempt that is under way: to whom, since when, and why to them.
    under_way: Option<(Rc<Upstream>, Time, Why)>,
    table: &'a Arc<Table>,
    /// The route and which of its matches; none where no route takes the request.
    route: Option<(&'a Route, Option<usize>)>,
    point: Option<Point>,
    backend: Option<Arc<Backend>>,
    admission: [Option<Why>; 2],
    attempts: Vec<record::Attempt>,
    deadline_ms: f64,
    deadline_left_ms: f64,
}

pub fn decision(why: &Why) -> Decision {
    Decision { code: why.code(), says: why.to_string(), would_pass: why.would_pass().to_string() }
}

impl Story<'_> {
    /// Where nothing of the trace is exported, it is the one that goes on.
    fn context(&self) -> trace::Context {
        let goes_on = || trace::Context {
            id: self.traceparent[3..35].try_into().expect("it was checked, or made here"),
            span: None,
            sampled: false,
        };
        self.trace.as_ref().map_or_else(goes_on, |trace| trace.context())
    }

    fn keep(&self, status: u16, grpc_status: Option<u16>, outcome: Decision) {
        let shared = &self.core.shared;
        let (route, matched) =
            self.route.map_or_else(Default::default, |(route, at)| (route.name.to_string(), matched(route, at)));
        let (backend, state) = self
            .backend
            .as_ref()
            .map_or_else(Default::default, |backend| (backend.name.to_string(), backend.state(self.core.now())));
        let priority = self.route.and_then(|(route, _)| route.priority.header.as_deref());
        shared.records.keep(Record {
            id: self.id.as_str().to_owned(),
            trace: Some(self.context()),
            at_ms: self.core.unix_ms(),
            method: self.request.method.to_string(),
            path: without_secrets(cut(&self.request.path)),
            authority: cut(&self.request.authority),
            client: self.client.address.to_owned(),
            listener: self.client.listener.map(ToString::to_string),
            caller: self.caller.clone(),
            said: Said::of(self.request, priority),
            fields: self.table.noted.read(&self.request.fields),
            point: self.point,
            route,
            matched,
            backend,
            status,
            grpc_status,
            outcome,
            took_ms: self.began.elapsed().as_secs_f64() * 1e3,
            deadline_ms: self.deadline_ms,
            deadline_left_ms: self.deadline_left_ms,
            admission: self.admission.iter().flatten().map(decision).collect(),
            attempts: self.attempts.clone(),
            state,
        });
    }
}

impl Story<'_> {
    pub fn id(&self) -> &RequestId {
        self.id
    }

    /// For a copy of the request, which is no attempt of it.
    pub fn traceparent(&self) -> &[u8] {
        self.traceparent
    }

    /// Whether something is written down of the request when it ends.
    fn watched(&self) -> bool {
        self.core.lines.is_some() || self.trace.is_some()
    }

    /// The answer begins: the figures hear of it, and what is to be written when it ends goes along with its body.
    fn answered(&mut self, reply: &mut Reply) {
        let Some(mut running) = self.running.take() else { return };
        running.told(reply.status);
        let code = reply.code.or(reply.failed.then_some(Code::UPSTREAM_FAILED.0));
        if let Some(code) = code {
            self.core.shard.coded(code);
        }
        if self.watched() {
            let grpc = reply.fields.text(Kind::GrpcStatus).and_then(|text| text.parse().ok());
            // Nothing follows the head, or nobody reads what does.
            let whole = self.request.method == http::Method::HEAD || (reply.tunnel.is_none() && reply.body.is_empty());
            running.watch = Some(self.watch(&running, reply.status, grpc, code, whole));
        }
        let body = std::mem::replace(&mut reply.body, Body::empty());
        reply.body = body.on_end(running);
    }

    fn watch(
        &self,
        running: &Running,
        status: u16,
        grpc: Option<u16>,
        code: Option<&'static str>,
        whole: bool,
    ) -> Box<Watch> {
        let line = self.core.lines.as_ref().map(|lines| {
            lines.begin(&access_log::About {
                unix_ms: self.at_ms,
                method: self.request.method.as_str(),
                authority: &self.request.authority,
                path: &self.request.path,
                protocol: self.client.protocol(self.request.minor),
                status,
                route: self.route.map_or("", |(route, _)| &route.name),
                matched: self.route.map(|(route, at)| (route.place.file.as_str(), line_of(route, at))),
                backend: self.backend.as_ref().map_or("", |backend| &backend.name),
                endpoint: self.asked.as_ref().map_or("", |member| member.endpoint.address.as_str()),
                attempts: self.sent,
                head_us: self.began.elapsed().as_micros() as u64,
                client: self.client.address,
                caller: self.caller.as_deref(),
                request_id: self.id.as_str(),
                trace_id: self.trace.as_ref().map_or(&self.traceparent[3..35], |trace| &trace.id()[..]),
                user_agent: self.request.fields.named("user-agent").unwrap_or_default(),
            })
        });
        let told = self.trace.as_ref().map(|trace| {
            let about = trace::About {
                method: &self.request.method,
                path: &self.request.path,
                authority: &self.request.authority,
                scheme: self.client.scheme(),
                protocol: self.client.protocol(self.request.minor),
                status,
                route: self.route.map(|(route, _)| route.name.clone()),
                backend: self.backend.as_ref().map(|backend| backend.name.clone()),
                client: self.client.address,
                request_id: self.id,
                user_agent: self.request.fields.named("user-agent").unwrap_or_default(),
            };
            (trace.traces.clone(), Box::new(trace.told(about)))
        });
        let ended = if whole { Ending::Whole } else { Ending::Left };
        let end = End { grpc_status: grpc, code, bytes_in: 0, bytes_out: 0, whole_us: 0, ended };
        Box::new(Watch { line, told, end, taken: running.taken.clone() })
    }
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        // The client left before there was an answer: 499, as nginx calls it.
        if let Some(mut running) = self.running.take() {
            running.told(499);
            if self.watched() {
                running.watch = Some(self.watch(&running, 499, None, None, false));
            }
            self.left();
        }
    }
}

impl Story<'_> {
    /// The call has so much time, from here on.
    fn has(&mut self, began: Time, deadline: Time) {
        if deadline != Time::NEVER {
            self.deadline_ms = deadline.since(began).as_secs_f64() * 1e3;
            self.deadline_left_ms = deadline.since(self.core.now()).as_secs_f64() * 1e3;
        }
    }

    /// Remembers a request whose client left before its answer began, and what it was waiting for.
    fn left(&mut self) {
        let waited = Millis(self.began.elapsed().as_secs_f64() * 1e3);
        self.deadline_left_ms = (self.deadline_ms - waited.0).max(0.0);
        let waits_for = match self.under_way.take() {
            Some((upstream, began, picked)) => {
                let endpoint = upstream.endpoint.address.clone();
                let took_ms = self.core.now().since(began).as_secs_f64() * 1e3;
                let says = format!("attempt {} at {endpoint} was not answered for {}", self.sent, Millis(took_ms));
                self.attempts.push(record::Attempt {
                    endpoint,
                    backend: self.backend.as_ref().map_or_else(String::new, |backend| backend.name.to_string()),
                    hedge: false,
                    picked: Some(decision(&picked)),
                    breaker: None,
                    took_ms,
                    status: None,
                    grpc_status: None,
                    problem: "its client left".to_owned(),
                    outcome: Outcome::cancelled(),
                    delivered: true,
                    reused_connection: false,
                    next: None,
                });
                says
            }
            None if self.sent > 0 => format!("{} attempts had failed, and the next was not begun", self.sent),
            None if self.admission[0].is_some() => "it waited for a place".to_owned(),
            None => "nothing of it was sent on".to_owned(),
        };
        let says = format!("the client left after {waited}, before its answer began; {waits_for}");
        let would_pass = "a client that waits longer, or an upstream that answers sooner".to_owned();
        self.keep(499, None, Decision { code: Code::CLIENT_LEFT.0, says, would_pass });
    }
}

/// Milliseconds as people read them.
struct Millis(f64);

impl std::fmt::Display for Millis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            ms if ms >= 1e3 => write!(f, "{:.2} s", ms / 1e3),
            ms if ms >= 10.0 => write!(f, "{ms:.0} ms"),
            ms => write!(f, "{ms:.1} ms"),
        }
    }
}

/// Where the match stands that took a request.
fn matched(route: &Route, at: Option<usize>) -> String {
    crate::table::Place { file: route.place.file.clone(), line: line_of(route, at) }.to_string()
}

fn line_of(route: &Route, at: Option<usize>) -> u32 {
    at.and_then(|at| route.match_lines.get(at).copied()).filter(|line| *line > 0).unwrap_or(route.place.line)
}

/// Answers a request.
pub async fn handle(core: &Rc<Core>, request: RequestHead, body: Body, client: Client<'_>, id: RequestId) -> Reply {
    let began = Instant::now();
    let table = core.table();
    let came = forward::traceparent(&request);
    let trace = Tracing::begin(core, came, began).map(Rc::new);
    let made;
    let traceparent = match came {
        Some(came) => came,
        None => {
            made = core.numbers.traceparent();
            &made[..]
        }
    };
    let found = table.find(&request, client.listener.map(|name| &**name));
    let watched = core.lines.is_some() || trace.is_some();
    let taken = (watched && !body.is_empty()).then(Rc::default);
    let body = body.counted(taken.clone());
    let mut story = Story {
        core,
        request: &request,
        client: &client,
        caller: None,
        id: &id,
        traceparent,
        trace,
        began,
        at_ms: if core.lines.is_some() { core.unix_ms() } else { 0 },
        running: Some(Running::new(core, found.map(|(route, _)| &route.figures), began, taken)),
        sent: 0,
        asked: None,
        under_way: None,
        table: &table,
        route: found.map(|(route, at)| (&**route, at)),
        point: None,
        backend: None,
        admission: [None; 2],
        attempts: Vec::new(),
        deadline_ms: 0.0,
        deadline_left_ms: 0.0,
    };
    let mut reply = match found {
        Some((route, at)) => routed(core, route, at, body, &client, &mut story).await,
        None => {
            core.shard.unmatched.add(1);
            let detail = "no route takes this host, path, method and these fields";
            let would_pass = "a route whose match describes it; see buttress route test";
            ours(&story, Code::ROUTE_NONE, (404, 12), detail, would_pass)
        }
    };
    story.answered(&mut reply);
    reply
}

/// An answer of the gateway itself, with its record.
fn ours(story: &Story<'_>, code: Code, (status, grpc): (u16, u8), detail: &str, would_pass: &str) -> Reply {
    let is_grpc = forward::is_grpc(story.request);
    let reply = Problem {
        status,
        code: code.0,
        detail,
        would_pass: Some(would_pass).filter(|text| !text.is_empty()),
        id: Some(story.id.clone()),
        grpc: is_grpc.then_some(grpc),
        retry_after: None,
    }
    .reply();
    let outcome = Decision { code: code.0, says: detail.to_owned(), would_pass: would_pass.to_owned() };
    story.keep(status, is_grpc.then_some(grpc.into()), outcome);
    reply
}

/// Under the rules of its route.
async fn routed(
    core: &Rc<Core>,
    route: &Route,
    at: Option<usize>,
    body: Body,
    client: &Client<'_>,
    story: &mut Story<'_>,
) -> Reply {
    let request = story.request;
    if let Some(fault) = route.fault.as_ref().filter(|fault| fault.holds(request)) {
        if let Some((delay, share)) = fault.delay
            && drawn(core.numbers.draw(), share)
        {
            tokio::time::sleep(delay).await;
        }
        if let Some((status, share)) = fault.abort
            && drawn(core.numbers.draw(), share)
        {
            let detail = format!("route \"{}\" fails this request on purpose", route.name);
            return ours(story, Code::FAULT_ON_PURPOSE, (status, 14), &detail, "a route without fault, or luck");
        }
    }
    let caller = match &route.gate {
        Some(gate) => match let_in(core, route, gate, client, story).await {
            Ok(caller) => Some(caller),
            Err(reply) => return reply,
        },
        None => None,
    };
    let known = forward::Known {
        caller: caller.as_ref().map(|caller| &*caller.field),
        withheld: route.gate.as_ref().and_then(|gate| gate.withheld()),
    };
    let caller = caller.as_ref().map(|caller| &*caller.name);
    story.caller = caller.map(str::to_owned);
    for limit in &route.limits {
        if let Err(why) = limit.take(core.now(), request, client, caller) {
            return refuse(story, &why, false);
        }
    }
    let asked = Asked {
        policy: asked(route, request, client, caller),
        rewrite: route.rewrite.as_ref(),
        path: route.rewrite.as_ref().and_then(|rewrite| rewrite.path(&request.path, at)),
        known,
    };
    let replay = (!body.is_empty()).then(|| Replay::new(body));
    if route.backends.is_empty() {
        return fixed(story, route).unwrap_or_else(|| {
            ours(story, Code::ROUTE_NONE, (503, 14), "the route has no backend", "a backend in the route's `to`")
        });
    }
    let kept = route.stale.as_ref().and_then(|stale| Some((stale, Stale::key(request, caller)?)));
    let point = *story.point.insert(Point::of(core.numbers.draw()));
    let chosen = route.choose(request, point);
    let mut reply = through(core, &route.backends[chosen], &asked, replay.as_ref(), client, story).await;
    if let Some(mirror) = &route.mirror {
        mirror.copy(core, request, &asked, replay.as_ref(), client, story);
    }
    if !reply.failed {
        if let Some((stale, key)) = kept {
            stale.watch(key, core.now(), &mut reply);
        }
        return reply;
    }
    if let Some(at) = route.fallback.filter(|at| *at != chosen) {
        let again = reply.undelivered || asked.policy.idempotent;
        if again && replay.as_ref().is_none_or(|replay| replay.borrow().whole()) {
            let reply = through(core, &route.backends[at], &asked, replay.as_ref(), client, story).await;
            if !reply.failed {
                return reply;
            }
        }
    }
    if let Some((stale, key)) = &kept
        && let Some((old, _)) = stale.give(key, core.now())
    {
        return Reply { id: Some(story.id.clone()), ..old };
    }
    fixed(story, route).unwrap_or(reply)
}

/// Who calls, where the caller may. Keys that are being read are waited for, a little.
async fn let_in(
    core: &Rc<Core>,
    route: &Route,
    gate: &Gate,
    client: &Client<'_>,
    story: &Story<'_>,
) -> Result<Caller, Reply> {
    let figures = &route.figures.auth[core.at];
    let identity = client.identity.as_ref();
    let check = || gate.check(story.request, identity, core.unix_ms() / 1000, &mut core.tokens.borrow_mut());
    let mut checked = check();
    if let Err(denied) = &checked
        && let Some(mut fresher) = gate.fresher(denied)
    {
        let _ = tokio::time::timeout(FRESHER_PATIENCE, fresher.over()).await;
        checked = check();
    }
    let denied = match checked {
        Ok(caller) => {
            figures.passed.add(1);
            return Ok(caller);
        }
        Err(denied) => denied,
    };
    figures.denied(denied.why).add(1);
    let (status, grpc) = denied.status();
    let is_grpc = forward::is_grpc(story.request);
    let mut reply = Problem {
        status,
        code: denied.code().0,
        detail: &denied.says,
        would_pass: None,
        id: Some(story.id.clone()),
        grpc: is_grpc.then_some(grpc),
        retry_after: (status == 503).then_some(1),
    }
    .reply();
    if status == 401 {
        reply.fields = reply.fields.with("www-authenticate", &gate.challenge(&route.name, &denied));
    }
    let outcome = Decision { code: denied.code().0, says: denied.says.into_owned(), would_pass: denied.would_pass };
    story.keep(status, is_grpc.then_some(grpc.into()), outcome);
    Err(reply)
}

/// The answer that a route has for when nobody else has one.
fn fixed(story: &Story<'_>, route: &Route) -> Option<Reply> {
    let answer = route.spec.fallback.as_ref()?.answer.as_ref()?;
    if forward::is_grpc(story.request) {
        return None;
    }
    let body = Bytes::from(answer.body.clone());
    let content_type = answer.content_type.as_deref().unwrap_or("text/plain; charset=utf-8");
    Some(Reply {
        status: answer.status.unwrap_or(200),
        fields: Fields::from_pairs(&[("content-type", content_type), ("buttress-fallback", "answer")]),
        length: crate::parse::Length::Known(body.len() as u64),
        body: Body::full(body),
        id: Some(story.id.clone()),
        ..Reply::empty()
    })
}

/// A request as it is sent to a backend.
pub struct Asked<'a> {
    pub policy: policy::Request,
    pub rewrite: Option<&'a Rewrite>,
    pub path: Option<Vec<u8>>,
    pub known: forward::Known<'a>,
}

/// Under the policies of a backend.
async fn through(
    core: &Rc<Core>,
    backend: &Arc<Backend>,
    asked: &Asked<'_>,
    replay: Option<&Rc<RefCell<Replay>>>,
    client: &Client<'_>,
    story: &mut Story<'_>,
) -> Reply {
    story.backend = Some(backend.clone());
    let now = core.now();
    match admit(core, backend, &asked.policy, story).await {
        Ok(place) => tries(core, place, asked, replay, client, story).await,
        Err(why) => {
            let deadline = policy::deadline::begin(&backend.policy.config().deadline, now, asked.policy.left);
            story.has(now, deadline);
            refuse(story, &why, false)
        }
    }
}

/// What the policies ask of a request.
fn asked(route: &Route, request: &RequestHead, client: &Client<'_>, caller: Option<&str>) -> policy::Request {
    let said = Said::of(request, route.priority.header.as_deref());
    let idempotent = request.method.is_idempotent() || said.keyed || route.idempotent;
    let priority = said.priority.map_or(
        match route.priority.default {
            Some(Level::Critical) => Priority::CRITICAL,
            Some(Level::Normal) | None => Priority::NORMAL,
            Some(Level::Low) => Priority::LOW,
            Some(Level::Bulk) => Priority::BULK,
        },
        Priority::new,
    );
    policy::Request {
        left: said.left,
        attempt: said.attempt,
        // An upgrade makes a connection that nobody can repeat.
        idempotent: idempotent && !said.upgrade,
        priority,
        ring_key: route.ring_key.of(request, client, caller),
        ..policy::Request::default()
    }
}

async fn admit(
    core: &Rc<Core>,
    backend: &Arc<Backend>,
    asked: &policy::Request,
    story: &mut Story<'_>,
) -> Result<Place, Why> {
    let place = |call| Place { core: core.clone(), backend: backend.clone(), call: Some(call) };
    let (call, ticket, until) = match backend.policy.admit(core.now(), asked) {
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
    let (ticket, call) = (Some(ticket), Some(call));
    let mut queued = Queued { core: core.clone(), backend: backend.clone(), ticket, call, heard: None };
    let woken = match backend.wait(number) {
        Err(woken) => Some(woken),
        Ok(heard) => {
            let heard = queued.heard.insert(heard);
            tokio::time::timeout_at(core.instant(until), heard).await.ok().and_then(Result::ok)
        }
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
    story.admission[1] = Some(backend.policy.resume(core.now(), call)?);
    Ok(place)
}

/// An attempt that may be sent.
struct Begun {
    trying: Trying,
    pick: Pick,
    member: Arc<Member>,
    upstream: Rc<Upstream>,
    began: Time,
    timeout: Duration,
    number: u32,
    left: Option<Duration>,
    hedge: bool,
}

/// An attempt that is over.
struct Ended {
    trying: Trying,
    pick: Pick,
    member: Arc<Member>,
    began: Time,
    ended: Time,
    hedge: bool,
    sent: Result<Got, Failure>,
    outcome: Outcome,
    status: Option<u16>,
    grpc_status: Option<u16>,
    /// A status of gRPC is still to come, in the trailers.
    open: bool,
}

/// Chooses an endpoint and takes what an attempt needs.
fn begin(core: &Rc<Core>, place: &mut Place, hedge: bool) -> Result<Begun, Why> {
    let backend = place.backend.clone();
    let endpoints = backend.endpoints.load_full();
    let now = core.now();
    let pick = backend.policy.pick(now, core.numbers.draw(), &endpoints.set, place.call())?;
    let attempt = backend.policy.attempt_started(now, core.numbers.draw(), place.call(), &endpoints.set, pick.at)?;
    let member = endpoints.members[pick.at].clone();
    Ok(Begun {
        pick,
        upstream: core.upstream(&member),
        member,
        began: now,
        timeout: attempt.timeout,
        number: place.call().attempt_to_send(),
        left: place.call().left(now),
        hedge,
        trying: Trying { core: core.clone(), backend, endpoints, attempt: Some(attempt) },
    })
}

/// A request on its way to an endpoint, for the figures.
struct Counted<'a>(&'a crate::metrics::EndpointFigures);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.golden.running.take(1);
    }
}

/// Sends it, and waits for what comes of it.
async fn attempt(
    core: &Rc<Core>,
    begun: Begun,
    request: &RequestHead,
    asked: &Asked<'_>,
    replay: Option<&Rc<RefCell<Replay>>>,
    client: &Client<'_>,
    (id, traceparent, trace): (&RequestId, &[u8], Option<&Rc<Tracing>>),
) -> Ended {
    let Begun { trying, pick, member, upstream, began, timeout, number, left, hedge } = begun;
    let span = trace.map(|trace| {
        let span = core.numbers.draw() | 1;
        let backend = &trying.backend.name;
        (Span::begin(trace, span, &member, backend, number, hedge), trace.traceparent(span))
    });
    let sent = {
        let figures = &member.figures[core.at];
        core.shard.attempts.add(1);
        figures.golden.running.add(1);
        let _counted = Counted(figures);
        let added = Added {
            id,
            client,
            traceparent: span.as_ref().map_or(traceparent, |(_, ours)| &ours[..]),
            attempt: number,
            left_ms: left.map(|left| left.min(timeout).as_millis() as u64),
            endpoint: &upstream.endpoint.address,
            tls: upstream.endpoint.tls,
            rewrite: asked.rewrite,
            path: asked.path.as_deref(),
            known: asked.known,
        };
        let idempotent = asked.policy.idempotent;
        let sent = tokio::time::timeout(timeout, send(core, &upstream, request, replay, &added, idempotent)).await;
        figures.connects.set(upstream.connects.get());
        sent.unwrap_or_else(|_| Err(Failure { kind: FailureKind::Deadline, not_delivered: false, reused: false }))
    };
    let ended = core.now();
    let (outcome, status, grpc_status, open) = judge(&sent, forward::is_grpc(request), core.unix_ms());
    if let Some((span, _)) = span {
        span.end(status, grpc_status, sent.as_ref().err().map(|failure| failure.kind.to_string()));
    }
    let figures = &member.figures[core.at];
    // What a client broke off is no failure of its upstream.
    let unanswered = if outcome.kind == policy::outcome::Kind::Cancelled { 499 } else { 502 };
    figures.golden.done(status.unwrap_or(unanswered), ended.since(began).as_micros() as u64);
    if outcome.succeeded() == Some(false) {
        figures.failures.add(1);
    }
    Ended { trying, pick, member, began, ended, hedge, sent, outcome, status, grpc_status, open }
}

impl Ended {
    /// For the record of the request. An attempt whose end is open is told as what it is up to here.
    fn told(&self, next: Option<&Why>) -> record::Attempt {
        let failure = self.sent.as_ref().err();
        record::Attempt {
            endpoint: self.member.endpoint.address.clone(),
            backend: self.trying.backend.name.to_string(),
            hedge: self.hedge,
            picked: Some(decision(&self.pick.why)),
            breaker: self.trying.permit(self.began).as_ref().map(decision),
            took_ms: self.ended.since(self.began).as_secs_f64() * 1e3,
            status: self.status,
            grpc_status: self.grpc_status,
            problem: failure.map(|failure| failure.kind.to_string()).unwrap_or_default(),
            outcome: self.outcome,
            delivered: failure.is_none_or(|failure| !failure.not_delivered),
            reused_connection: failure.is_some_and(|failure| failure.reused),
            next: next.map(decision),
        }
    }
}

/// One attempt, and a second one beside it where the route hedges and the first is slow. What comes first and is good counts.
async fn attempt_or_hedge(
    core: &Rc<Core>,
    place: &mut Place,
    begun: Begun,
    asked: &Asked<'_>,
    replay: Option<&Rc<RefCell<Replay>>>,
    client: &Client<'_>,
    story: &mut Story<'_>,
) -> Ended {
    let (request, backend) = (story.request, place.backend.clone());
    let trace = story.trace.clone();
    let id = (story.id, story.traceparent, trace.as_ref());
    let after = backend.policy.hedge(core.now(), place.call());
    // It stays where it is made, and the second, which is rare, has a box: a connection has room for one attempt, idle or not.
    let mut first = pin!(attempt(core, begun, request, asked, replay, client, id));
    let Ok(after) = after else { return first.await };
    tokio::select! {
        biased;
        ended = &mut first => return ended,
        () = tokio::time::sleep(after) => {}
    }
    // Two can read a body only when all of it is here.
    let readable = replay.is_none_or(|replay| replay.borrow().complete());
    if !readable || backend.policy.hedge_now(core.now(), place.call(), after).is_err() {
        return first.await;
    }
    let Ok(second) = begin(core, place, true) else { return first.await };
    core.shard.hedges.add(1);
    story.sent += 1;
    let mut second = Box::pin(attempt(core, second, request, asked, replay, client, id));
    let (ended, first_is_over) = tokio::select! {
        ended = &mut first => (ended, true),
        ended = &mut second => (ended, false),
    };
    // The other one is dropped, which cancels it.
    if ended.outcome.succeeded() == Some(true) {
        return ended;
    }
    story.attempts.push(ended.told(None));
    ended.trying.end(ended.ended, &ended.outcome);
    if first_is_over { second.await } else { first.await }
}

/// Makes attempts until one is answered or no other may follow.
async fn tries(
    core: &Rc<Core>,
    mut place: Place,
    asked: &Asked<'_>,
    replay: Option<&Rc<RefCell<Replay>>>,
    client: &Client<'_>,
    story: &mut Story<'_>,
) -> Reply {
    let backend = place.backend.clone();
    story.has(place.call().began(), place.call().deadline());
    // What the client is answered if no further attempt follows.
    let mut last: Option<Box<Over>> = None;
    loop {
        let begun = match begin(core, &mut place, false) {
            Ok(begun) => begun,
            Err(why) => {
                story.deadline_left_ms = left_ms(place.call(), core.now());
                // The last answer stands, where there was one.
                return match last {
                    Some(over) => stands(story, place, *over, &why),
                    None => refuse(story, &why, false),
                };
            }
        };
        story.sent += 1;
        if core.lines.is_some() {
            story.asked = Some(begun.member.clone());
        }
        story.under_way = Some((begun.upstream.clone(), begun.began, begun.pick.why));
        let ended = attempt_or_hedge(core, &mut place, begun, asked, replay, client, story).await;
        story.under_way = None;
        story.deadline_left_ms = left_ms(place.call(), ended.ended);
        if core.lines.is_some() {
            story.asked = Some(ended.member.clone());
        }
        // The frequent case, which allocates nothing but what the answer needs.
        if ended.outcome.succeeded() == Some(true) {
            let again = !story.attempts.is_empty();
            if again || core.sampled() {
                story.attempts.push(ended.told(None));
                let outcome = decision(&Why::RetryNeedless { attempt: place.call().attempts().into() });
                story.keep(ended.status.unwrap_or(200), ended.grpc_status, outcome);
            }
            let Ended { trying, pick, member, sent: Ok(got), outcome, began, ended, open, .. } = ended else {
                unreachable!("a failure is no success")
            };
            let reply = answered(got, story.id.clone());
            let last = Last { picked: pick.why, member: &member, took_ms: ended.since(began).as_secs_f64() * 1e3 };
            if !open {
                trying.end(ended, &outcome);
                return finish(story, last, reply, place, None);
            }
            return finish(story, last, reply, place, Some((trying, ended)));
        }
        let whole = replay.is_none_or(|replay| replay.borrow().whole());
        let told = ended.told(None);
        let Ended { trying, pick, member, sent, outcome, began, ended, grpc_status, .. } = ended;
        trying.end(ended, &outcome);
        if let Err(Failure { kind: FailureKind::Client(broken), .. }) = &sent {
            story.attempts.push(told);
            return broke_off(story, broken);
        }
        let next = if whole {
            backend.policy.next(ended, core.numbers.draw(), place.call(), &outcome)
        } else {
            Next::GiveUp(Why::RetryBody { attempt: place.call().attempts().into() })
        };
        let (Next::Retry { why, .. } | Next::GiveUp(why)) = &next;
        story.attempts.push(record::Attempt { next: Some(decision(why)), ..told });
        let took_ms = ended.since(began).as_secs_f64() * 1e3;
        let over = Over { picked: pick.why, member, took_ms, sent, grpc_status };
        match next {
            Next::Retry { after, .. } => {
                last = Some(Box::new(over));
                tokio::time::sleep(after).await;
                core.shard.retries.add(1);
            }
            Next::GiveUp(why) => return stands(story, place, over, &why),
        }
    }
}

/// An attempt that failed, and whose answer goes to the client if no other attempt follows.
struct Over {
    picked: Why,
    member: Arc<Member>,
    took_ms: f64,
    sent: Result<Got, Failure>,
    grpc_status: Option<u16>,
}

/// No further attempt follows: the answer to the last one stands, the upstream's own or ours.
fn stands(story: &Story<'_>, mut place: Place, over: Over, why: &Why) -> Reply {
    let Over { picked, member, took_ms, sent, grpc_status } = over;
    let mut reply = failed(story, &member.endpoint.address, sent, why);
    reply.failed = true;
    // Where nothing arrived anywhere, the hop before may have an endpoint that we have not.
    reply.undelivered = story.attempts.iter().all(|attempt| !attempt.delivered);
    reply.spent = place.call().mark_retried() && !reply.undelivered;
    keep_failure(story, &reply, grpc_status, why);
    finish(story, Last { picked, member: &member, took_ms }, reply, place, None)
}

/// The answer to a client whose request did not come whole, or not as HTTP has it. No upstream is to blame.
fn broke_off(story: &Story<'_>, broken: &Broken) -> Reply {
    let (code, says, would_pass) = match broken {
        Broken::Refused(refusal) => {
            let head = story.core.shared.options.timeouts.head;
            (refusal.code, refusal.says.to_owned(), would_pass(refusal.code, head))
        }
        Broken::Io(_) | Broken::Http2(_) => {
            let says = format!("the client broke off in the middle of its request: {broken}");
            (Code::CLIENT_BROKE_OFF, says, "a client that sends its request whole".into())
        }
    };
    // INTERNAL, which is what gRPC has for bytes that are no call.
    ours(story, code, (400, 13), &says, &would_pass)
}

fn left_ms(call: &Call, now: Time) -> f64 {
    call.left(now).unwrap_or_default().as_secs_f64() * 1e3
}

/// The attempt whose answer goes to the client.
struct Last<'a> {
    picked: Why,
    member: &'a Member,
    took_ms: f64,
}

/// Gives the place back when the body of the answer has ended, and tells how a call of gRPC ended.
fn finish(story: &Story<'_>, last: Last<'_>, mut reply: Reply, place: Place, open: Option<(Trying, Time)>) -> Reply {
    if open.is_none() && (reply.body.is_whole() || reply.tunnel.is_some()) {
        return reply;
    }
    let (route, matched) =
        story.route.map_or_else(Default::default, |(route, at)| (route.name.clone(), Box::from(matched(route, at))));
    let about = About {
        id: story.id.clone(),
        trace: story.context(),
        method: story.request.method.clone(),
        path: story.request.path.clone(),
        authority: story.request.authority.clone(),
        client: story.client.address.into(),
        listener: story.client.listener.cloned(),
        said: Said::of(story.request, story.route.and_then(|(route, _)| route.priority.header.as_deref())),
        route,
        matched,
        caller: story.caller.as_deref().map(Box::from),
        head: (!story.table.noted.is_empty()).then(|| (story.table.clone(), story.request.fields.clone())),
        point: story.point,
        endpoint: last.member.endpoint.address.as_str().into(),
        began: story.began,
        status: reply.status,
        deadline_ms: story.deadline_ms,
        deadline_left_ms: story.deadline_left_ms,
        admission: story.admission,
        attempts: story.attempts.clone(),
        picked: last.picked,
        took_ms: last.took_ms,
    };
    reply.body = reply.body.with(Box::new(Ticket { place, about, open, frames: 0, bytes: 0 }));
    reply
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
        // A rate's limit and a breaker know when they let the next one through.
        retry_after: (status == 503 || status == 429).then(|| why.retry_after().unwrap_or(1)),
    }
    .reply();
    // Nothing was sent, unless attempts were made before.
    reply.undelivered = story.attempts.iter().all(|attempt| !attempt.delivered);
    reply.spent = spent;
    reply.failed = true;
    story.keep(status, is_grpc.then_some(grpc.into()), decision);
    reply
}

/// The answer where the last attempt failed: the upstream's own, or ours.
fn failed(story: &Story<'_>, endpoint: &str, sent: Result<Got, Failure>, why: &Why) -> Reply {
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
                grpc: forward::is_grpc(story.request).then_some(grpc_of(status)),
                retry_after: None,
            }
            .reply()
        }
    }
}

/// What a failure is in gRPC: DEADLINE_EXCEEDED, or UNAVAILABLE.
pub const fn grpc_of(status: u16) -> u8 {
    if status == 504 { 4 } else { 14 }
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
    // An answer of ours has a status of gRPC that no upstream gave.
    let ours = || reply.fields.text(Kind::GrpcStatus).and_then(|text| text.parse().ok());
    let grpc_status = grpc_status.or_else(|| reply.code.and_then(|_| ours()));
    story.keep(reply.status, grpc_status, Decision { code, says, would_pass: why.would_pass().to_string() });
}

/// A request that runs, for the figures and the access log; told once, when its answer begins, and over when that has ended.
pub struct Running {
    /// Of its route; none where no route takes it.
    figures: Option<Arc<RouteFigures>>,
    core: Rc<Core>,
    began: Instant,
    told: bool,
    /// Bytes of the request's body.
    taken: Option<Rc<Cell<u64>>>,
    watch: Option<Box<Watch>>,
}

/// What is written down when an answer has ended.
struct Watch {
    line: Option<access_log::Line>,
    told: Option<(Arc<Traces>, Box<Told>)>,
    end: End,
    taken: Option<Rc<Cell<u64>>>,
}

impl Running {
    fn new(core: &Rc<Core>, figures: Option<&Arc<RouteFigures>>, began: Instant, taken: Option<Rc<Cell<u64>>>) -> Self {
        if let Some(figures) = figures {
            figures.golden[core.at].running.add(1);
        }
        Self { figures: figures.cloned(), core: core.clone(), began, told: false, taken, watch: None }
    }

    fn told(&mut self, status: u16) {
        self.told = true;
        if let Some(figures) = &self.figures {
            figures.golden[self.core.at].done(status, self.began.elapsed().as_micros() as u64);
        }
    }

    pub fn body_went_on(&mut self, frame: &Frame<Bytes>, last: bool) {
        let Some(watch) = &mut self.watch else { return };
        if let Some(data) = frame.data_ref() {
            watch.end.bytes_out += data.len() as u64;
        }
        if let Some(trailers) = frame.trailers_ref() {
            let grpc = trailers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
            watch.end.grpc_status = grpc.or(watch.end.grpc_status);
        }
        if last {
            watch.end.ended = Ending::Whole;
        }
    }

    pub fn body_ended(&mut self, broken: Option<&Broken>) {
        if broken.is_some() {
            self.core.shard.coded(Code::UPSTREAM_CUT.0);
        }
        let Some(watch) = &mut self.watch else { return };
        watch.end.ended = Ending::Whole;
        if broken.is_some() {
            (watch.end.ended, watch.end.code) = (Ending::Cut, Some(Code::UPSTREAM_CUT.0));
        }
    }

    /// An upgraded connection has ended after so many bytes each way.
    pub fn tunnelled(&mut self, from_client: u64, to_client: u64) {
        let Some(watch) = &mut self.watch else { return };
        (watch.end.bytes_in, watch.end.bytes_out) = (from_client, to_client);
        watch.end.ended = Ending::Whole;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(figures) = &self.figures {
            figures.golden[self.core.at].running.take(1);
        }
        let Some(watch) = self.watch.take() else { return };
        let Watch { line, told, mut end, taken } = *watch;
        end.whole_us = self.began.elapsed().as_micros() as u64;
        end.bytes_in += taken.map_or(0, |taken| taken.get());
        if let (Some(lines), Some(line)) = (&self.core.lines, line) {
            lines.end(line, &end);
        }
        if let Some((traces, mut told)) = told {
            told.end(&end);
            if told.counts() {
                traces.tell(told);
            }
        }
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
    trace: trace::Context,
    method: http::Method,
    path: Bytes,
    authority: Bytes,
    client: Box<str>,
    listener: Option<Arc<str>>,
    said: Said,
    route: Arc<str>,
    matched: Box<str>,
    caller: Option<Box<str>>,
    /// Where the table has fields that records hold.
    head: Option<(Arc<Table>, Fields)>,
    point: Option<Point>,
    endpoint: Box<str>,
    began: Instant,
    status: u16,
    deadline_ms: f64,
    deadline_left_ms: f64,
    admission: [Option<Why>; 2],
    /// Empty where the first one was answered.
    attempts: Vec<record::Attempt>,
    /// Why the last one went to its endpoint, and how long its head took.
    picked: Why,
    took_ms: f64,
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
        let mut attempts = about.attempts.clone();
        // Where it was not the first one, or is a sample, the last one stands among them already.
        if attempts.is_empty() {
            attempts.push(record::Attempt {
                endpoint: about.endpoint.to_string(),
                backend: self.place.backend.name.to_string(),
                hedge: false,
                picked: Some(decision(&about.picked)),
                breaker: None,
                took_ms: about.took_ms,
                status: Some(about.status),
                grpc_status: None,
                problem: String::new(),
                // The policies were told of its head.
                outcome: Outcome::http(about.status),
                delivered: true,
                reused_connection: false,
                next: None,
            });
        }
        if let Some(last) = attempts.last_mut() {
            last.problem = format!("answered {}, and broke off after {} bytes: {broken}", about.status, self.bytes);
        }
        core.shared.records.keep(Record {
            id: about.id.as_str().to_owned(),
            trace: Some(about.trace),
            at_ms: core.unix_ms(),
            method: about.method.to_string(),
            path: without_secrets(cut(&about.path)),
            authority: cut(&about.authority),
            client: about.client.to_string(),
            listener: about.listener.as_deref().map(str::to_owned),
            caller: about.caller.as_deref().map(str::to_owned),
            said: about.said,
            fields: about.head.as_ref().map(|(table, fields)| table.noted.read(fields)).unwrap_or_default(),
            point: about.point,
            route: about.route.to_string(),
            matched: about.matched.to_string(),
            backend: self.place.backend.name.to_string(),
            status: about.status,
            grpc_status: None,
            outcome: Decision { code: Code::UPSTREAM_CUT.0, says, would_pass },
            took_ms,
            deadline_ms: about.deadline_ms,
            deadline_left_ms: about.deadline_left_ms,
            admission: about.admission.iter().flatten().map(decision).collect(),
            attempts,
            state: self.place.backend.state(core.now()),
        });
    }
}
