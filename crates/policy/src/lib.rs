//! What makes a call between two services safe, as decisions: deadlines, retries and their budget, hedging, circuit breaker,
//! bulkhead, adaptive concurrency, outlier ejection, balancing, rate limits, throttling, shedding. The gateway, the tower layers and
//! the tests in virtual time run the same code.
//!
//! It never reads a clock, draws a random number, sends a byte, starts a thread or waits: the time and one random number are
//! inputs of each decision. It has no dependencies. Deciding allocates nothing, save for who queues
//! and for an ejection.
//!
//! One request, as a driver sees it: [`RoutePolicy::admit`] checks the deadline, the breaker, rates and the places, and says go, wait or
//! refuse → [`RoutePolicy::pick`] chooses an endpoint → [`RoutePolicy::attempt_started`] takes the breaker's permit and says how
//! long the attempt may take → the driver sends, and tells [`RoutePolicy::attempt_ended`] what came of it, which moves the breaker,
//! the endpoint's latency and ejection, the limiter → [`RoutePolicy::next`] says whether another attempt follows, and after what
//! pause → [`RoutePolicy::done`] gives the place back. Every answer is a [`Why`]: a stable code, the numbers that decided, a sentence, and
//! what would have let the call pass.
//!
//! ```
//! use buttress_policy::{Admit, EndpointSet, Next, Outcome, Request, Rng, RouteConfig, RoutePolicy, Time};
//!
//! let route = RoutePolicy::new(RouteConfig::default()).expect("the defaults are valid");
//! let endpoints = EndpointSet::new([("10.0.0.1:80", 1), ("10.0.0.2:80", 1)]);
//! // A driver has a clock and seeds the generator from the operating system, one per core.
//! let (mut rng, mut now) = (Rng::new(1), Time::from_millis(0));
//!
//! let request = Request { idempotent: true, ..Request::default() };
//! let Admit::Go(mut call, _) = route.admit(now, &request) else { panic!("an idle route lets it in") };
//! let answer = loop {
//!     let pick = route.pick(now, rng.draw(), &endpoints, &call).expect("two endpoints are well");
//!     let attempt = route.attempt_started(now, rng.draw(), &mut call, &endpoints, pick.at).expect("the breaker is closed");
//!     // Here the request is sent to `attempt.endpoint().name()`, for `attempt.timeout` at most. The first one fails.
//!     let outcome = if attempt.number == 1 { Outcome::http(503) } else { Outcome::http(200) };
//!     route.attempt_ended(now, rng.draw(), &endpoints, attempt, &outcome, |_event| {});
//!     match route.next(now, rng.draw(), &mut call, &outcome) {
//!         Next::Retry { after, .. } => now = now.plus(after), // A driver sleeps.
//!         Next::GiveUp(why) => break (outcome.status, why.code()),
//!     }
//! };
//! route.done(now, call, |_woken| {});
//! assert_eq!(answer, (200, "BT-RTY-DONE"));
//! ```

mod config;
mod random;
mod time;

pub mod decision;
pub mod outcome;

mod route;

pub mod deadline;

pub mod budget;
pub mod hedge;
pub mod retry;

pub mod breaker;

pub mod adaptive;
pub mod bulkhead;
pub mod shed;
pub mod throttle;

pub mod lease;
pub mod rate;

pub mod balance;
pub mod endpoint;
pub mod outlier;

pub mod latency;
pub mod window;

pub mod parse;

pub mod fuzz;

pub use balance::Pick;
pub use bulkhead::{GaveUp, Ticket, Woken};
pub use config::{Invalid, Validate};
pub use decision::{Answer, Fact, Why};
pub use endpoint::{Endpoint, EndpointSet};
pub use outcome::{Outcome, Pushback};
pub use random::{Rng, hash};
pub use route::{Admit, Attempt, Call, Event, KeyRate, Next, Request, RouteConfig, RoutePolicy, View};
pub use shed::Priority;
pub use time::{Span, Time};
