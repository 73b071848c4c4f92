//! One request on its way: named, sent to an endpoint, answered. With policies that is [`crate::call`]; without, it is here.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use buttress_core::Code;
use buttress_policy::Time;
use bytes::BytesMut;
use tokio::time::Instant;

use crate::{
    access_log::{self, End, Ended, Lines},
    auth::Tokens,
    body::{Body, Broken, Flow},
    call,
    forward::{self, Added},
    metrics::Shard,
    parse::{Kind, Refusal, RequestHead},
    record::{Decision, Record, SAMPLE},
    replay::{Replay, Replayed},
    reply::{self, Interims, Problem, Reply},
    request_id::{Numbers, RequestId},
    shared::Shared,
    table::{Member, Table},
    upstream::{Asked, Failure, FailureKind, Got, Upstream},
};

/// Nothing waits for longer than this.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// What one core has for its requests.
pub struct Core {
    pub shared: Arc<Shared>,
    /// Which of the cores.
    pub at: usize,
    upstreams: RefCell<HashMap<u64, Rc<Upstream>>>,
    pub numbers: Numbers,
    /// Tokens of callers whose signature this core has seen to be good.
    pub tokens: RefCell<Tokens>,
    pub shard: Arc<Shard>,
    /// Of the access log, where there is one.
    pub lines: Option<Lines>,
    /// Mirrored requests under way.
    pub copies: Cell<usize>,
    next: Cell<usize>,
    sample: Cell<u64>,
}

impl Core {
    pub fn new(shared: Arc<Shared>, at: usize, seed: u64) -> Self {
        let shard = shared.shards[at].clone();
        let (upstreams, numbers) = (RefCell::default(), Numbers::new(seed));
        let (tokens, lines) = (RefCell::default(), shared.log.clone().map(Lines::new));
        let (copies, next, sample) = (Cell::new(0), Cell::new(0), Cell::new(0));
        Self { shared, at, upstreams, numbers, tokens, shard, lines, copies, next, sample }
    }

    /// What requests are routed by at this moment.
    pub fn table(&self) -> Arc<Table> {
        self.shared.table.load_full()
    }

    /// This core's connections to an endpoint.
    pub fn upstream(&self, member: &Member) -> Rc<Upstream> {
        let mut upstreams = self.upstreams.borrow_mut();
        upstreams
            .entry(member.id)
            .or_insert_with(|| Rc::new(Upstream::new(member.endpoint.clone(), member.connector.clone())))
            .clone()
    }

    /// Closes connections that were idle for long, and forgets endpoints that nobody has asked since.
    pub fn sweep(&self, now: Instant) {
        self.upstreams.borrow_mut().retain(|_, upstream| {
            upstream.sweep(now);
            Rc::strong_count(upstream) > 1 || !upstream.forgotten(now)
        });
    }

    /// Whose turn it is of so many.
    fn turn(&self, of: usize) -> usize {
        let at = self.next.get() % of;
        self.next.set(at + 1);
        at
    }

    /// The policies' clock.
    pub fn now(&self) -> Time {
        self.shared.now()
    }

    /// A moment of the policies' clock, for a timer.
    pub fn instant(&self, time: Time) -> Instant {
        Instant::now() + time.since(self.now()).min(FOREVER)
    }

    pub fn unix_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    pub fn unix_ns(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
    }

    /// A request was not taken, because it was no HTTP.
    pub fn refused(&self, refusal: &Refusal, client: &Client<'_>) -> Reply {
        self.shard.refused.add(1);
        self.shard.coded(refusal.code.0);
        let id = self.numbers.request_id();
        let would_pass = reply::would_pass(refusal.code, self.shared.options.timeouts.head).into_owned();
        let reply = reply::refused(refusal, &would_pass, id.clone());
        self.shared.records.keep_unread(Record {
            id: id.as_str().to_owned(),
            at_ms: self.unix_ms(),
            client: client.address.to_owned(),
            listener: client.listener.map(ToString::to_string),
            status: refusal.status,
            outcome: Decision { code: refusal.code.0, says: refusal.says.to_owned(), would_pass },
            ..Record::default()
        });
        let Some(lines) = &self.lines else { return reply };
        let line = lines.begin(&access_log::About {
            unix_ms: self.unix_ms(),
            protocol: client.protocol(1),
            status: refusal.status,
            client: client.address,
            request_id: id.as_str(),
            ..access_log::About::default()
        });
        let code = Some(refusal.code.0);
        lines.end(line, &End { code, ended: Ended::Whole, ..End::default() });
        reply
    }

    /// Whether this success is one of the few that are remembered.
    pub fn sampled(&self) -> bool {
        self.sample.set(self.sample.get() + 1);
        self.sample.get().is_multiple_of(SAMPLE)
    }
}

/// Where a request came from.
#[derive(Clone, Default)]
pub struct Client<'a> {
    pub address: &'a str,
    /// The name of the listener at which it came in.
    pub listener: Option<&'a Arc<str>>,
    pub http2: bool,
    /// It came with TLS.
    pub secure: bool,
    /// Whom its certificate names, which was verified.
    pub identity: Option<Arc<str>>,
    /// The same for `X-Forwarded-Client-Cert`.
    pub certificate: Option<&'a str>,
    pub keep_client_cert: bool,
    /// Where informational answers go; nowhere for a client that cannot read them.
    pub interim: Option<&'a Interims>,
}

impl Client<'_> {
    pub const fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

impl Client<'_> {
    /// What it speaks; HTTP/1 with this minor version.
    pub fn protocol(&self, minor: u8) -> &'static str {
        match (self.http2, minor) {
            (true, _) => "HTTP/2",
            (false, 0) => "HTTP/1.0",
            (false, _) => "HTTP/1.1",
        }
    }
}

/// Sends a request to an endpoint, and its response back.
pub async fn handle(core: &Rc<Core>, request: RequestHead, body: Body, client: Client<'_>) -> Reply {
    let id = request.fields.get(Kind::RequestId).and_then(RequestId::kept);
    let id = id.unwrap_or_else(|| core.numbers.request_id());
    if core.shared.options.bare {
        bare(core, request, body, client, id).await
    } else {
        call::handle(core, request, body, client, id).await
    }
}

/// In turn, and without any policy. Only what a kept connection did by dying is made good.
async fn bare(core: &Rc<Core>, request: RequestHead, body: Body, client: Client<'_>, id: RequestId) -> Reply {
    let table = core.table();
    let Some(backend) = table.routes.first().and_then(|route| route.backends.first()) else { return Reply::empty() };
    let endpoints = backend.endpoints.load_full();
    let upstream = &core.upstream(&endpoints.members[core.turn(endpoints.members.len())]);
    let replay = (!body.is_empty()).then(|| Replay::new(body));
    let made = core.numbers.traceparent();
    let added = Added {
        id: &id,
        client: &client,
        traceparent: forward::traceparent(&request).unwrap_or(&made),
        attempt: 1,
        left_ms: None,
        endpoint: &upstream.endpoint.address,
        tls: upstream.endpoint.tls,
        rewrite: None,
        path: None,
        known: forward::Known::default(),
    };
    match send(core, upstream, &request, replay.as_ref(), &added, request.method.is_idempotent()).await {
        Ok(got) => answered(got, id),
        Err(failure) => {
            let (status, code) = failure_code(&failure);
            let detail = format!("{}: {}", upstream.endpoint.address, failure.kind);
            let grpc = forward::is_grpc(&request).then(|| call::grpc_of(status));
            let (would_pass, retry_after) = (None, None);
            Problem { status, code: code.0, detail: &detail, would_pass, id: Some(id), grpc, retry_after }.reply()
        }
    }
}

/// One attempt. A kept connection that died at the moment of use is no failure of the upstream: where the request can be
/// repeated without harm, it is sent again on a new connection, and that is not counted as a retry.
pub async fn send(
    core: &Core,
    upstream: &Rc<Upstream>,
    request: &RequestHead,
    replay: Option<&Rc<RefCell<Replay>>>,
    added: &Added<'_>,
    idempotent: bool,
) -> Result<Got, Failure> {
    let mut fresh = false;
    loop {
        let body = replay.map_or_else(Body::empty, |replay| Flow::Replayed(Replayed::new(replay)).into());
        let failure = match once(core, upstream, request, body, added, idempotent, fresh).await {
            Ok(got) => return Ok(got),
            Err(failure) => failure,
        };
        let broke = matches!(failure.kind, FailureKind::Closed(_) | FailureKind::Http2(_));
        let harmless = failure.not_delivered || idempotent;
        let whole = replay.is_none_or(|replay| replay.borrow().whole());
        if fresh || !failure.reused || !broke || !harmless || !whole {
            return Err(failure);
        }
        fresh = true;
    }
}

async fn once(
    core: &Core,
    upstream: &Rc<Upstream>,
    request: &RequestHead,
    body: Body,
    added: &Added<'_>,
    idempotent: bool,
    fresh: bool,
) -> Result<Got, Failure> {
    let connect_timeout = core.shared.options.timeouts.connect;
    if !request.upgrade && (forward::is_grpc(request) || upstream.speaks_http2(connect_timeout).await?) {
        let says = "the request cannot be written as HTTP/2";
        return match forward::http2(request, added, body) {
            Ok(request) => upstream.exchange_http2(request, connect_timeout).await,
            Err(_) => Err(Failure {
                kind: FailureKind::Client(Broken::Refused(Refusal { status: 400, code: Code::HTTP_MALFORMED, says })),
                not_delivered: true,
                reused: false,
            }),
        };
    }
    let mut head = BytesMut::new();
    forward::write_head(request, added, &mut head);
    let asked = Asked {
        head,
        body,
        encoder: forward::encoder(request.length),
        method: request.method.clone(),
        must_not_repeat: !idempotent,
        fresh,
        connect_timeout,
        upgrade: request.upgrade,
        interim: added.client.interim,
    };
    upstream.exchange(asked).await
}

pub fn answered(got: Got, id: RequestId) -> Reply {
    Reply {
        status: got.head.status,
        length: got.head.length,
        fields: got.head.fields,
        body: Body::from(got.flow),
        id: Some(id),
        tunnel: got.tunnel,
        ..Reply::empty()
    }
}

/// What a client is answered where there is no response.
pub fn failure_code(failure: &Failure) -> (u16, Code) {
    match &failure.kind {
        FailureKind::Connect(_) | FailureKind::ConnectTimeout => (502, Code::UPSTREAM_UNREACHABLE),
        FailureKind::Tls(_) => (502, Code::UPSTREAM_TLS),
        FailureKind::Closed(_) | FailureKind::Http2(_) => (502, Code::UPSTREAM_BROKE_OFF),
        FailureKind::Malformed(refusal) => (refusal.status, refusal.code),
        FailureKind::Client(Broken::Refused(refusal)) => (400, refusal.code),
        FailureKind::Client(_) => (400, Code::CLIENT_BROKE_OFF),
        FailureKind::Deadline => (504, Code::UPSTREAM_DEADLINE),
    }
}
