//! An upstream that plays a script, and what tests ask of policies.

use std::{
    collections::HashMap,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use buttress_tower::{Balanced, Body, Builder, Error, Policy, Record, RouteConfig, policy::EndpointSet};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use tower::ServiceExt;

pub const MS: Duration = Duration::from_millis(1);

pub type Sent = Full<Bytes>;

/// What an attempt meets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Does {
    Answers(u16),
    Fails(io::ErrorKind),
    /// Never answers.
    Hangs,
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub endpoint: String,
    pub headers: HashMap<String, String>,
    pub body: Bytes,
}

impl Seen {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

type Script = dyn FnMut(usize, &str) -> (Duration, Does) + Send;

/// Plays a script; each request is told its number and its endpoint.
pub struct Upstream {
    script: Mutex<Box<Script>>,
    pub seen: Mutex<Vec<Seen>>,
    pub running: AtomicUsize,
}

impl Upstream {
    pub fn new(script: impl FnMut(usize, &str) -> (Duration, Does) + Send + 'static) -> Arc<Self> {
        Arc::new(Self { script: Mutex::new(Box::new(script)), seen: Mutex::default(), running: AtomicUsize::new(0) })
    }

    /// These statuses one after the other, and then 200.
    pub fn statuses(statuses: &'static [u16]) -> Arc<Self> {
        Self::new(move |at, _| (Duration::ZERO, Does::Answers(statuses.get(at).copied().unwrap_or(200))))
    }

    pub fn always(does: Does) -> Arc<Self> {
        Self::new(move |_, _| (Duration::ZERO, does))
    }

    pub fn at(self: &Arc<Self>, endpoint: &str) -> Endpoint {
        Endpoint { upstream: Arc::clone(self), name: endpoint.to_owned() }
    }

    pub fn asked(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub fn asked_of(&self, endpoint: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen.endpoint == endpoint).count()
    }

    pub fn seen(&self, at: usize) -> Seen {
        self.seen.lock().unwrap()[at].clone()
    }
}

#[derive(Clone)]
pub struct Endpoint {
    upstream: Arc<Upstream>,
    name: String,
}

struct Running(Arc<Upstream>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

impl<B> tower::Service<Request<B>> for Endpoint
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Response = Response<Sent>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (upstream, endpoint) = (Arc::clone(&self.upstream), self.name.clone());
        upstream.running.fetch_add(1, SeqCst);
        let running = Running(Arc::clone(&upstream));
        Box::pin(async move {
            let _running = running;
            let (parts, body) = request.into_parts();
            let fields =
                parts.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
            let headers = fields.collect();
            let body = Box::pin(body).collect().await.map_err(io::Error::other)?.to_bytes();
            let at = {
                let mut seen = upstream.seen.lock().unwrap();
                seen.push(Seen { endpoint: endpoint.clone(), headers, body });
                seen.len() - 1
            };
            let (after, does) = (upstream.script.lock().unwrap())(at, &endpoint);
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            match does {
                Does::Answers(status) => Ok(Response::builder().status(status).body(Full::new("ok".into())).unwrap()),
                Does::Fails(kind) => Err(kind.into()),
                Does::Hangs => std::future::pending().await,
            }
        })
    }
}

/// Every record of a policy.
pub type Records = Arc<Mutex<Vec<Record>>>;

pub fn policy(config: RouteConfig) -> (Policy, Records) {
    policy_with(config, |builder| builder)
}

pub fn policy_with(config: RouteConfig, change: impl FnOnce(Builder) -> Builder) -> (Policy, Records) {
    let records = Records::default();
    let told = records.clone();
    let builder = Policy::builder(config).seed(1).on_decision(move |record| told.lock().unwrap().push(record.clone()));
    (change(builder).build().unwrap(), records)
}

pub fn client(policy: &Policy, upstream: &Arc<Upstream>, endpoints: &[&str]) -> Balanced<Endpoint> {
    Balanced::new(policy.clone(), endpoints.iter().map(|name| (*name, 1)), |name| upstream.at(name))
}

pub fn request(method: Method) -> Request<Sent> {
    Request::builder().method(method).uri("/orders/7").body(Full::new("order".into())).unwrap()
}

pub fn get() -> Request<Sent> {
    request(Method::GET)
}

/// A call, with its answer's body read to its end.
pub async fn ask(client: &Balanced<Endpoint>, request: Request<Sent>) -> Result<Response<Bytes>, Error> {
    let (parts, body) = client.clone().oneshot(request).await?.into_parts();
    Ok(Response::from_parts(parts, read(body).await))
}

pub async fn read(body: Body<Sent>) -> Bytes {
    body.collect().await.unwrap().to_bytes()
}

/// The status, or the code of the decision.
pub async fn told(client: &Balanced<Endpoint>, request: Request<Sent>) -> Result<u16, &'static str> {
    ask(client, request).await.map(|answer| answer.status().as_u16()).map_err(|error| error.why().code())
}

pub fn last(records: &Records) -> Record {
    records.lock().unwrap().last().expect("a record was told").clone()
}

/// Nothing runs, nobody waits, no endpoint looks busy.
pub fn quiet(policy: &Policy, set: &EndpointSet, upstream: &Upstream) -> Result<(), String> {
    let view = policy.view();
    let busy: Vec<u32> = set.iter().map(|endpoint| endpoint.inflight()).collect();
    let running = upstream.running.load(SeqCst);
    if view.inflight == 0 && view.queued == 0 && busy.iter().all(|busy| *busy == 0) && running == 0 {
        return Ok(());
    }
    Err(format!("{} calls have a place, {} wait, endpoints {busy:?}, {running} run", view.inflight, view.queued))
}
