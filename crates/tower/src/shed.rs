//! The server's side: what cannot be served well is refused at once, and says why.
//!
//! A request is let in by its deadline, its priority, the rate limits, and the places that the adaptive limit has found out; it
//! may wait for a moment in a bounded queue. What is refused is answered before the service has seen it: 503, 429 or 504 with a problem of
//! RFC 9457, the code in `buttress-code`, and `buttress-undelivered`, so that callers may send even a POST elsewhere. For gRPC it is
//! a status. A service that does not answer within what the caller has left is cut off, since nobody listens any more.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use buttress_policy::{EndpointSet, Outcome, RouteConfig, Why, deadline, retry};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::{Body, Held},
    error::Verdict,
    guard::{Place, Trying, admit},
    headers::{self, Hop, SPENT, UNDELIVERED},
    policy_set::Policy,
    problem::{Problem, Text, request_id, statuses},
    record::{End, Story, Tried},
};

/// Settings for a server: no breaker, no ejection and no retries, which are a client's; no deadline but the caller's.
pub fn server_config() -> RouteConfig {
    RouteConfig {
        deadline: deadline::Config { total: None, ..Default::default() },
        retry: retry::Config { attempts: 1, ..Default::default() },
        breaker: None,
        outlier: None,
        ..RouteConfig::default()
    }
}

/// Puts admission before a service.
///
/// ```
/// # use buttress_tower::{Policy, ShedLayer, policy::bulkhead, server_config, RouteConfig};
/// # use bytes::Bytes; use http::{Request, Response}; use http_body_util::Full;
/// # use tower::{service_fn, Layer, ServiceExt};
/// # use std::convert::Infallible;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = RouteConfig { bulkhead: bulkhead::Config { concurrent: 1, queue: 0 }, ..server_config() };
/// let slow = service_fn(|_: Request<()>| async {
///     std::future::pending::<()>().await;
///     Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
/// });
/// let service = ShedLayer::new(Policy::new(config)?).layer(slow);
/// let mut first = Box::pin(service.clone().oneshot(Request::new(())));
/// assert!(futures::poll!(&mut first).is_pending());
/// let refused = service.oneshot(Request::new(())).await?;
/// assert_eq!((refused.status().as_u16(), &refused.headers()["buttress-code"]), (503, &"BT-BLK-FULL".parse()?));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ShedLayer {
    policy: Policy,
}

impl ShedLayer {
    /// With settings like those of [`server_config`].
    pub fn new(policy: Policy) -> Self {
        Self { policy }
    }
}

impl<S> Layer<S> for ShedLayer {
    type Service = Shed<S>;

    fn layer(&self, inner: S) -> Shed<S> {
        Shed { inner, policy: self.policy.clone(), set: Arc::new(EndpointSet::new([("service", 1)])) }
    }
}

/// A service with admission before it. It is always ready: what it cannot take is answered.
#[derive(Clone, Debug)]
pub struct Shed<S> {
    inner: S,
    policy: Policy,
    set: Arc<EndpointSet>,
}

pin_project! {
    /// The service's own answer, or ours.
    #[project = Projected]
    pub enum ShedBody<R> {
        /// The service's.
        Service { #[pin] body: Body<R> },
        /// Ours.
        Problem { #[pin] body: Text },
    }
}

impl<R: http_body::Body<Data = Bytes>> http_body::Body for ShedBody<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        match self.project() {
            Projected::Service { body } => body.poll_frame(cx),
            Projected::Problem { body } => {
                body.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ShedBody::Service { body } => body.is_end_stream(),
            ShedBody::Problem { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ShedBody::Service { body } => body.size_hint(),
            ShedBody::Problem { body } => body.size_hint(),
        }
    }
}

type Answer<R, E> = Result<Response<ShedBody<R>>, E>;

impl<S, B, R> Service<Request<B>> for Shed<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<ShedBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Answer<R, S::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Box::pin(serve(self.policy.clone(), Arc::clone(&self.set), self.inner.clone(), request))
    }
}

async fn serve<S, B, R>(policy: Policy, set: Arc<EndpointSet>, mut inner: S, request: Request<B>) -> Answer<R, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: http_body::Body<Data = Bytes>,
{
    let (mut parts, body) = request.into_parts();
    let asked = headers::asked(policy.hooks(), &parts);
    let mut story = Story::begin(&policy, &parts);
    // What an answer of ours needs, should the service be cut off.
    let about = ["content-type", "x-request-id"].map(http::HeaderName::from_static);
    let about: HeaderMap =
        about.into_iter().filter_map(|name| Some((name.clone(), parts.headers.get(name)?.clone()))).collect();
    let admitted = match admit(&policy, &asked, &mut story).await {
        Ok(place) => begin(&policy, &set, place),
        Err(why) => Err(why),
    };
    let (mut place, trying, picked, timeout) = match admitted {
        Ok(begun) => begun,
        Err(why) => {
            story.end(End::Refused, why);
            return Ok(problem(&why, &about, true));
        }
    };
    let began = policy.now();
    let left = place.call().left(began);
    story.deadline(left);
    let deadline = left.and_then(|left| tokio::time::Instant::now().checked_add(left));
    parts.extensions.insert(Hop { deadline, attempt: asked.attempt });
    let request = Request::from_parts(parts, body);
    let answered = tokio::time::timeout(timeout, async move {
        std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
        inner.call(request).await
    });
    let answered = answered.await;
    let ended = policy.now();
    let grpc = headers::is_grpc(&about);
    let (outcome, open) = match &answered {
        Ok(Ok(response)) => headers::judge(response.status().as_u16(), response.headers(), grpc),
        Ok(Err(_)) => (Outcome::http(500), false),
        Err(_) => (Outcome::timeout(), false),
    };
    story.tried(|| Tried {
        endpoint: Arc::clone(set.get(0)),
        hedge: false,
        picked,
        breaker: None,
        took: ended.since(began),
        outcome,
        problem: match &answered {
            Ok(Ok(_)) => String::new(),
            Ok(Err(_)) => "the service failed".to_owned(),
            Err(_) => "no answer in time".to_owned(),
        },
        next: None,
    });
    match answered {
        Ok(Ok(mut response)) => {
            let status = response.status().as_u16();
            story.end(End::Answered(status), Why::RetryNeedless { attempt: 1 });
            pass_on(&mut response);
            let open = if open {
                Some((trying, ended))
            } else {
                trying.end(ended, &outcome);
                None
            };
            Ok(response.map(|body| ShedBody::Service { body: Body::new(body, Held::new(place, open)) }))
        }
        Ok(Err(error)) => {
            trying.end(ended, &outcome);
            story.end(End::Failed, Why::RetryOff { attempt: 1 });
            Err(error)
        }
        Err(_) => {
            trying.end(ended, &outcome);
            let why = Why::DeadlinePast { late: Duration::ZERO.into() };
            story.end(End::Answered(504), why);
            Ok(problem(&why, &about, false))
        }
    }
}

/// The one attempt that a server makes.
fn begin(policy: &Policy, set: &Arc<EndpointSet>, mut place: Place) -> Result<(Place, Trying, Why, Duration), Why> {
    let now = policy.now();
    let pick = policy.route().pick(now, policy.draw(), set, place.call())?;
    let attempt = policy.route().attempt_started(now, policy.draw(), place.call(), set, pick.at)?;
    let timeout = attempt.timeout;
    Ok((place, Trying::new(policy, set, attempt), pick.why, timeout))
}

/// A service that hands on the answer of another one tells its caller what is known of that.
fn pass_on<R>(response: &mut Response<R>) {
    let Some(verdict) = response.extensions().get::<Verdict>().copied() else { return };
    for (mark, set) in [(UNDELIVERED, verdict.undelivered), (SPENT, verdict.spent)] {
        if set {
            response.headers_mut().insert(mark, HeaderValue::from_static("1"));
        }
    }
}

fn problem<R>(why: &Why, asked: &HeaderMap, undelivered: bool) -> Response<ShedBody<R>> {
    let (status, grpc) = statuses(why);
    let problem = Problem {
        status,
        grpc: headers::is_grpc(asked).then_some(grpc),
        code: why.code(),
        detail: &why.to_string(),
        would_pass: &why.would_pass().to_string(),
        request_id: request_id(asked),
        retry_after: why.retry_after(),
        undelivered,
        spent: false,
    };
    problem.response().map(|body| ShedBody::Problem { body })
}
