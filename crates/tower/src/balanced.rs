//! A client of one service over its endpoints, and the layer that makes one of a single service.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, RwLock},
    task::{Context, Poll},
};

use buttress_policy::EndpointSet;
use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::Body,
    call::call,
    error::{BoxError, Error},
    keep::{Buffered, Cloned, Keep},
    policy_set::Policy,
};

/// Calls to one service, under its policies, over any number of endpoints.
///
/// Every attempt chooses an endpoint and takes a clone of the service for it, which is asked for readiness within the attempt's
/// time; so this client is always ready itself, and what it cannot take is refused with a reason instead of waiting for ever. Clones share
/// everything.
///
/// ```
/// # use buttress_tower::{Balanced, Policy, RouteConfig};
/// # use http::{Request, Response};
/// # use tower::{service_fn, ServiceExt};
/// # use std::convert::Infallible;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let orders = Balanced::new(Policy::new(RouteConfig::default())?, [("10.0.0.1:80", 1), ("10.0.0.2:80", 1)], |name| {
///     // Here a client that connects to `name`; see `Origin` for hyper's.
///     let name = name.to_owned();
///     service_fn(move |request: Request<String>| {
///         let answer = format!("{} for {}", name, request.uri());
///         async move { Ok::<_, Infallible>(Response::new(answer)) }
///     })
/// });
/// let answer = orders.clone().oneshot(Request::get("/orders/7").body(String::new())?).await?;
/// assert_eq!(answer.status(), 200);
/// // The list of endpoints changed: who stays keeps what is known of it.
/// # let make = |_: &str| unreachable!();
/// orders.change([("10.0.0.2:80", 1)], make);
/// # Ok(()) }
/// ```
pub struct Balanced<S, K = Cloned> {
    shared: Arc<Shared<S>>,
    keep: K,
}

/// What all clones share.
pub(crate) struct Shared<S> {
    pub policy: Policy,
    endpoints: RwLock<Arc<Endpoints<S>>>,
}

/// The endpoints at one moment.
pub(crate) struct Endpoints<S> {
    pub set: Arc<EndpointSet>,
    /// In the order of the set. A lock each, held for as long as a clone takes, so that services need not be `Sync`.
    services: Vec<Mutex<S>>,
}

impl<S: Clone> Endpoints<S> {
    pub fn service(&self, at: usize) -> S {
        self.services[at].lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<S> Shared<S> {
    pub fn endpoints(&self) -> Arc<Endpoints<S>> {
        Arc::clone(&self.endpoints.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S> Balanced<S> {
    /// `endpoints`: names with weights from 1 to 1000. `make`: the service of an endpoint, called once for each name.
    pub fn new<'a>(
        policy: Policy,
        endpoints: impl IntoIterator<Item = (&'a str, u32)>,
        make: impl FnMut(&str) -> S,
    ) -> Self {
        let set = EndpointSet::new(endpoints);
        let services = set.iter().map(|endpoint| endpoint.name()).map(make).map(Mutex::new).collect();
        let endpoints = RwLock::new(Arc::new(Endpoints { set: Arc::new(set), services }));
        Self { shared: Arc::new(Shared { policy, endpoints }), keep: Cloned }
    }
}

impl<S, K> Balanced<S, K> {
    /// Keeps bodies that cannot be cloned, up to `retry.body_bytes_max`: services are handed a [`Replayed`](crate::Replayed) body.
    pub fn buffered(self) -> Balanced<S, Buffered> {
        Balanced { shared: self.shared, keep: Buffered }
    }

    pub fn policy(&self) -> &Policy {
        &self.shared.policy
    }

    /// The endpoints now, with what is known of each.
    pub fn endpoints(&self) -> Arc<EndpointSet> {
        Arc::clone(&self.shared.endpoints().set)
    }

    /// Takes up a new list. Who is in both keeps its service and what is known of it; calls under way end where they began.
    pub fn change<'a>(&self, endpoints: impl IntoIterator<Item = (&'a str, u32)>, mut make: impl FnMut(&str) -> S)
    where
        S: Clone,
    {
        let mut slot = self.shared.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        let set = slot.set.change(self.shared.policy.now(), endpoints);
        let services = set.iter().map(|endpoint| {
            let known = slot.set.iter().position(|old| old.name() == endpoint.name());
            Mutex::new(known.map_or_else(|| make(endpoint.name()), |at| slot.service(at)))
        });
        let services = services.collect();
        *slot = Arc::new(Endpoints { set: Arc::new(set), services });
    }

    /// What a health check or a registry says of an endpoint. Tells whether there is one of this name.
    pub fn set_down(&self, name: &str, down: bool) -> bool {
        let set = self.endpoints();
        let at = set.iter().position(|endpoint| endpoint.name() == name);
        at.inspect(|at| set.set_down(self.shared.policy.now(), *at, down)).is_some()
    }
}

impl<S, K: Clone> Clone for Balanced<S, K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), keep: self.keep.clone() }
    }
}

impl<S, K> fmt::Debug for Balanced<S, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.endpoints();
        let names: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.name()).collect();
        f.debug_struct("Balanced").field("endpoints", &names).field("policy", &self.shared.policy).finish()
    }
}

/// A call under way. Dropped, everything that it began is ended.
pub type ResponseFuture<R> = Pin<Box<dyn Future<Output = Result<Response<Body<R>>, Error>> + Send>>;

impl<S, K, B, R> Service<Request<B>> for Balanced<S, K>
where
    K: Keep<B> + Send + 'static,
    K::Kept: Send + 'static,
    K::Sent: Send + 'static,
    B: Send + 'static,
    S: Service<Request<K::Sent>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    R: http_body::Body + Send + 'static,
{
    type Response = Response<Body<R>>;
    type Error = Error;
    type Future = ResponseFuture<R>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture<R> {
        Box::pin(call(Arc::clone(&self.shared), self.keep.clone(), request))
    }
}

/// Puts policies around a client that reaches one endpoint.
///
/// ```
/// # use buttress_tower::{Policy, PolicyLayer, RouteConfig};
/// # use http::{Request, Response};
/// # use tower::{service_fn, ServiceExt, Layer};
/// # use std::{convert::Infallible, sync::atomic::{AtomicU32, Ordering::Relaxed}};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// static ASKED: AtomicU32 = AtomicU32::new(0);
/// let flaky = service_fn(|_: Request<String>| async {
///     let status = if ASKED.fetch_add(1, Relaxed) == 0 { 503 } else { 200 };
///     Ok::<_, Infallible>(Response::builder().status(status).body(String::new()).unwrap())
/// });
/// let inventory = PolicyLayer::new(Policy::new(RouteConfig::default())?).layer(flaky);
/// let answer = inventory.oneshot(Request::get("/stock/7").body(String::new())?).await?;
/// assert_eq!((answer.status().as_u16(), ASKED.load(Relaxed)), (200, 2), "the failure was hidden");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct PolicyLayer<K = Cloned> {
    policy: Policy,
    name: String,
    keep: K,
}

impl PolicyLayer {
    /// Bodies are cloned for each attempt. Everything that is made with one `Policy` shares its breaker, budget and limits.
    pub fn new(policy: Policy) -> Self {
        Self { policy, name: "upstream".to_owned(), keep: Cloned }
    }
}

impl<K> PolicyLayer<K> {
    /// What the endpoint is called in records.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// As [`Balanced::buffered`].
    pub fn buffered(self) -> PolicyLayer<Buffered> {
        PolicyLayer { policy: self.policy, name: self.name, keep: Buffered }
    }
}

impl<S, K: Clone> Layer<S> for PolicyLayer<K> {
    type Service = Balanced<S, K>;

    fn layer(&self, inner: S) -> Balanced<S, K> {
        let mut inner = Some(inner);
        let made = Balanced::new(self.policy.clone(), [(self.name.as_str(), 1)], |_| {
            inner.take().expect("one name, one service")
        });
        Balanced { shared: made.shared, keep: self.keep.clone() }
    }
}
