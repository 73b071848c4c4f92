//! The policies of `buttress proxy` as tower layers: deadlines, retries under a budget, hedging, circuit breaker, bulkhead, adaptive
//! concurrency, outlier ejection, balancing, rate limits and shedding, and of every decision a code, a sentence and what would have let the
//! call pass.
//!
//! It never decides anything itself: [`policy::RoutePolicy`] does, the same code as in the proxy. It never sends a request twice that may
//! have had an effect, and whatever it has begun it ends, wherever a future is dropped. It starts no task and no thread; time is tokio's,
//! so `tokio::time::pause` stops it too.
//!
//! One request through [`Balanced`]: what it may cost is read from it (deadline, attempt, whether it can be repeated) → it is let in, or
//! waits in a bounded queue, or is refused → an endpoint is drawn, the breaker asked, the request sent with what is left of its time → an
//! answer is judged, and handed on; or a failure is, and perhaps sent again after a pause → the place is given back when the answer's
//! body has ended. [`Policy`]'s `on_decision` is told all of it.
//!
//! | side | what | gives |
//! |---|---|---|
//! | client, one endpoint | [`PolicyLayer`] | [`Error`], with [`Error::why`]; answers as they came |
//! | client, several endpoints | [`Balanced`] | the same |
//! | server | [`ShedLayer`] | 503, 429, 504 with a problem of RFC 9457 |
//! | both, over a whole cluster (feature `cluster`) | `cluster::ClusterLimit` | 429 or an [`Error`], by tokens leased from a store |
//!
//! A service that answers requests by making others passes on where it stands with [`Hop::pass`], so that deadlines shrink and retries do
//! not multiply from hop to hop.
//!
//! ```
//! use buttress_tower::{Hop, Policy, PolicyLayer, RouteConfig, policy::{breaker, bulkhead}};
//! use http::{Request, Response};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Any client of HTTP that is a tower service; this one is never answered with anything but an error.
//! let dead = service_fn(|_: Request<String>| async { Err::<Response<String>, _>(std::io::Error::other("cable cut")) });
//! let breaker = breaker::Config { consecutive: 3, jitter: 0.0, ..Default::default() };
//! // Without jitter the sentence below has a round number; leave it on otherwise.
//! let config = RouteConfig { breaker: Some(breaker), ..RouteConfig::default() };
//! let payments = PolicyLayer::new(Policy::new(config)?).layer(dead);
//!
//! let ask = || Request::get("/charges/7").body(String::new()).unwrap();
//! let failed = payments.clone().oneshot(ask()).await.err().unwrap();
//! assert_eq!((failed.attempts(), failed.inner().unwrap().to_string().as_str()), (3, "cable cut"));
//! let refused = payments.clone().oneshot(ask()).await.err().unwrap();
//! assert_eq!(refused.why().code(), "BT-BRK-CONSECUTIVE");
//! assert_eq!(refused.would_pass(), "a call 1 s later, as a probe; an upstream that answers");
//! # Ok(()) }
//! ```

mod call;
mod guard;

mod balanced;
mod origin;
mod shed;

mod error;
mod policy_set;
mod record;

mod body;
mod keep;

pub mod headers;
mod problem;

#[cfg(feature = "cluster")]
pub mod cluster;
#[cfg(feature = "etcd")]
pub mod etcd;

mod clock;

pub use balanced::{Balanced, PolicyLayer, ResponseFuture};
pub use body::Body;
/// The decisions themselves, and their settings.
pub use buttress_policy as policy;
pub use buttress_policy::{RouteConfig, Why};
pub use error::{BoxError, Error, Verdict};
pub use headers::Hop;
pub use keep::{Buffered, Cloned, Keep, Kept, Replayed};
pub use origin::Origin;
pub use policy_set::{Builder, Invalid, Policy};
pub use problem::Text;
pub use record::{End, Record, Tried};
pub use shed::{Shed, ShedBody, ShedLayer, server_config};

/// The examples of the README are run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
