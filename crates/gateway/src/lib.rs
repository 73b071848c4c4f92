//! The traffic plane's data path: a proxy for HTTP/1.1, HTTP/2 and gRPC that refuses what is ambiguous, streams both ways,
//! and can say why a request failed.
//!
//! It never forwards bytes of a frame that it did not write itself, never keeps a body beyond what a retry needs, and never
//! sends a request twice that may have had an effect.
//!
//! The way of a request: [`run`] accepts the connection on one of the cores, at one of the [`listen`]ers; [`tls`] makes it safe where
//! that is asked for; [`server`] reads a head with [`parse`] (or
//! hyper does, for HTTP/2); [`proxy`] names it; [`call`] finds its route in the [`table`], holds it against the route's
//! [`rules`] (and [`auth`], where it says who may call), and takes it through the policies of a backend, which may refuse it, let it wait, or send it again; [`forward`] writes the head that goes on;
//! [`upstream`] takes a connection, writes and reads; [`body`] and [`frame`] carry what follows; [`reply`] is what goes
//! back. When that has ended, [`access_log`] has a line of it, and [`otlp`] its spans; [`otlp_logs`] tells of what did not simply succeed. HTTP/1.1 is ours on both sides, HTTP/2 is hyper's: docs/adr/0013-http1.md says why.

/// The codes of decisions, for whoever explains them.
pub use buttress_policy::decision;

pub mod compile;
pub mod config;
pub mod frame;
pub mod parse;

pub mod body;
pub mod forward;
mod local;
mod replay;
pub mod reply;
pub mod request_id;
pub mod stream;
pub mod tls;
pub mod upstream;

pub mod auth;
pub mod cluster_rate;
pub mod discover;
mod health;
mod mirror;
pub mod rules;
pub mod stale;
pub mod table;

pub mod call;
pub mod listen;
pub mod proxy;
pub mod server;

pub mod fuzz;

pub mod access_log;
pub mod archive;
pub mod metrics;
pub mod noted;
pub mod otlp;
pub mod otlp_logs;
pub mod record;
pub mod report;
pub mod run;
pub mod shared;
pub mod tcp;
mod trace;
