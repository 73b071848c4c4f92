//! One request on its way: named, sent to an endpoint, answered.

use std::{cell::Cell, rc::Rc, sync::Arc};

use buttress_core::Code;
use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::time::Instant;

use crate::{
    body::{Body, Broken, Flow},
    forward::{self, Added},
    metrics::Shard,
    parse::{Kind, RequestHead},
    replay::{Replay, Replayed},
    reply::{Problem, Reply},
    request_id::{Numbers, RequestId},
    shared::Shared,
    upstream::{Asked, Failure, FailureKind, Got, Upstream},
};

/// What one core has for its requests.
pub struct Core {
    pub shared: Arc<Shared>,
    pub upstreams: Vec<Rc<Upstream>>,
    pub numbers: Numbers,
    pub shard: Arc<Shard>,
    next: Cell<usize>,
}

impl Core {
    pub fn new(shared: Arc<Shared>, at: usize, seed: u64) -> Self {
        let upstreams =
            shared.options.endpoints.iter().map(|endpoint| Rc::new(Upstream::new(endpoint.clone()))).collect();
        let shard = shared.shards[at].clone();
        Self { shared, upstreams, numbers: Numbers::new(seed), shard, next: Cell::new(0) }
    }

    fn round_robin(&self) -> usize {
        let at = self.next.get() % self.upstreams.len();
        self.next.set(at + 1);
        at
    }
}

/// Where a request came from.
pub struct Client<'a> {
    pub address: &'a str,
    pub http2: bool,
}

/// Sends a request to an endpoint, and its response back.
pub async fn handle(core: &Rc<Core>, request: RequestHead, body: Body, client: Client<'_>) -> Reply {
    let id = request.fields.get(Kind::RequestId).and_then(RequestId::kept);
    let id = id.unwrap_or_else(|| core.numbers.request_id());
    bare(core, request, body, client, id).await
}

/// In turn, and without any policy. Only what a kept connection did by dying is made good.
async fn bare(core: &Rc<Core>, request: RequestHead, body: Body, client: Client<'_>, id: RequestId) -> Reply {
    let upstream = &core.upstreams[core.round_robin()];
    let replay = (!body.is_empty()).then(|| Replay::new(body));
    let mut fresh = false;
    loop {
        let added = Added {
            id: &id,
            address: client.address,
            traceparent: core.numbers.traceparent(),
            attempt: 1,
            left_ms: None,
            endpoint: &upstream.endpoint.address,
        };
        let body = replay.as_ref().map_or_else(Body::empty, |replay| Flow::Replayed(Replayed::new(replay)).into());
        match once(core, upstream, &request, body, &added, fresh).await {
            Ok(got) => return answered(got, id),
            Err(failure) => {
                let harmless = failure.not_delivered || request.method.is_idempotent();
                let whole = replay.as_ref().is_none_or(|replay| replay.borrow().whole());
                if fresh || !failure.reused || !harmless || !whole {
                    return failed(&failure, upstream, &request, id);
                }
                fresh = true;
            }
        }
    }
}

/// One attempt.
async fn once(
    core: &Core,
    upstream: &Rc<Upstream>,
    request: &RequestHead,
    body: Body,
    added: &Added<'_>,
    fresh: bool,
) -> Result<Got, Failure> {
    let connect_timeout = core.shared.options.timeouts.connect;
    if (upstream.speaks_http2() || forward::is_grpc(request)) && !request.upgrade {
        return match forward::http2(request, added, body) {
            Ok(request) => upstream.exchange_http2(request, connect_timeout).await,
            Err(_) => Err(Failure {
                kind: FailureKind::Malformed(crate::parse::Refusal {
                    status: 400,
                    code: Code::HTTP_MALFORMED,
                    says: "the request cannot be written as HTTP/2",
                }),
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
        must_not_repeat: !request.method.is_idempotent(),
        fresh,
        connect_timeout,
        upgrade: request.upgrade,
    };
    upstream.exchange(asked).await
}

fn answered(got: Got, id: RequestId) -> Reply {
    Reply {
        status: got.head.status,
        length: got.head.length,
        fields: got.head.fields,
        body: Body::from(got.flow),
        id: Some(id),
        code: None,
        retry_after: None,
        tunnel: got.tunnel,
    }
}

fn failed(failure: &Failure, upstream: &Upstream, request: &RequestHead, id: RequestId) -> Reply {
    let (status, code) = match &failure.kind {
        FailureKind::Connect(_) | FailureKind::ConnectTimeout => (502, Code::UPSTREAM_UNREACHABLE),
        FailureKind::Closed(_) | FailureKind::Http2(_) => (502, Code::UPSTREAM_BROKE_OFF),
        FailureKind::Malformed(refusal) => (refusal.status, refusal.code),
        FailureKind::Client(Broken::Refused(refusal)) => (400, refusal.code),
        FailureKind::Client(_) => (400, Code::CLIENT_BROKE_OFF),
        FailureKind::Deadline => (504, Code::UPSTREAM_DEADLINE),
    };
    let detail = format!("{}: {}", upstream.endpoint.address, failure.kind);
    let grpc = forward::is_grpc(request).then_some(if status == 504 { 4 } else { 14 });
    Problem { status, code: code.0, detail: &detail, would_pass: None, id: Some(id), grpc, retry_after: None }.reply()
}

/// What a response's body tells the books when it ends.
pub struct Ticket {
    core: Rc<Core>,
    started: Instant,
}

impl Ticket {
    pub fn body_went_on(&mut self, _frame: &Frame<Bytes>) {}

    pub fn body_ended(&mut self, _broken: Option<&Broken>) {
        let _ = (&self.core, self.started, Flow::Empty);
    }
}
