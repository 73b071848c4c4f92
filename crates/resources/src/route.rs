//! `kind: Route`: which requests go where, and under which policies.
//!
//! ```yaml
//! kind: Route
//! name: orders
//! spec:
//!   match:
//!     - {host: shop.example, path: /orders/*}
//!   to:
//!     - {name: v1, weight: 95, endpoints: [127.0.0.1:3001, 127.0.0.1:3002]}
//!     - {name: v2, weight: 5, endpoints: 127.0.0.1:3003}
//!   deadline: 2s
//!   breaker: {failure_rate: 50%, calls_min: 20, open_for: 30s}
//! ```
//!
//! Every policy that is left out has the default of `buttress proxy`; `off` switches one off.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Part, Span};

/// Which requests go where, and under which policies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Requests that one of these describes; absent: all that no other route takes.
    #[serde(default, rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Match>,
    /// Names of the listeners at which it takes requests; absent: all that speak HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listeners: Option<OneOrMany<String>>,
    /// Where they go; several share by weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Backend>,
    /// What is changed of a request before it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// Who may call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// Requests a second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rate: Vec<Rate>,
    #[serde(flatten)]
    pub policies: Policies,
    /// What is answered where no backend does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Copies of requests, whose answers nobody hears.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// Faults on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
}

/// All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// `shop.example`, or `*.example` for every name below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// `/orders` alone, or `/orders/*` for it and everything below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<OneOrMany<String>>,
    /// Fields by name: a value, `prefix*`, or `*` for any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// A version of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// How it is called in records and metrics; absent: its place in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its share beside the others; absent: 1. 0 takes it out, but for `when`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Requests that go here whatever the weights say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Match>,
    /// A list that stands here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<OneOrMany<EndpointSpec>>,
    /// `NAME:PORT`, every address that DNS gives for it, looked up again every five seconds. While DNS does not answer, the
    /// last addresses stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    /// A service of the registry: keys below `/buttress/services/NAME/`, each with `HOST:PORT` as its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What endpoints speak that do not say it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// TLS to the endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTls>,
    /// Asks endpoints whether they are well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// One, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// `HOST:PORT`, `http://…`, `h2c://…`, `https://…`; or with a weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EndpointSpec {
    Address(String),
    Weighted(WeightedEndpoint),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedEndpoint {
    pub address: String,
    pub weight: u32,
}

impl EndpointSpec {
    pub fn address(&self) -> &str {
        match self {
            Self::Address(address) => address,
            Self::Weighted(weighted) => &weighted.address,
        }
    }

    pub const fn weight(&self) -> u32 {
        match self {
            Self::Address(_) => 1,
            Self::Weighted(weighted) => weighted.weight,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Http,
    H2c,
    Https,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// A file of certificates (PEM) that sign those of endpoints; absent: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The name that their certificate must have; absent: the host of the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Asked with GET; 200 to 299 is well. Absent: a connection is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Absent: 5 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    /// Absent: 1 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Failures one after the other that take an endpoint out; absent: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fails: Option<u32>,
    /// Successes one after the other that bring it back; absent: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passes: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rewrite {
    /// Stands in place of the matched prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Stands in place of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Fields that are set, whatever the client sent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Fields that end here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// Who may call. Each way that is given is tried; one that fits is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_keys: Option<ApiKeys>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
    /// Names in certificates of clients: exact, or `prefix*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<String>,
    /// What callers must be, beyond being known; one rule that fits is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Allow>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKeys {
    /// The field with the key; absent: `x-api-key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// A file of lines `CALLER SHA256-OF-KEY-IN-HEX`; a change is taken up within seconds.
    pub file: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// A file with a JWKS, or an `http://` or `https://` address of one; absent: where `issuer` says (OpenID Connect Discovery).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
    /// For `https://`: a file of certificates (PEM) that sign the issuer's; absent: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Whose tokens count, exactly as their `iss` has it; without `jwks` the address of an OpenID provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<OneOrMany<String>>,
    /// The claim that names the caller; absent: `sub`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// By how much clocks may differ; absent: 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leeway: Option<Span>,
}

/// All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// Exact, or `prefix*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<OneOrMany<String>>,
    /// Claims of the token: a value, or one of a list's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<OneOrMany<String>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub per_second: f64,
    /// Requests that may come at once; absent: a second's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// A limit for each `client` (address), `caller` (as `auth` knows it) or `header:NAME`; absent: one for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// One limit for all gateways of the cluster, by leases of tokens from the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterRate>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterRate {
    /// Tokens that a gateway takes at once; absent: a tenth of a second's. All gateways together let pass at most
    /// `burst + rate × t + gateways × 1.5 × slice` in any time t.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<u32>,
    /// What each gateway lets pass by itself while the store does not answer; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_off_per_second: Option<f64>,
}

/// The policies of each backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    /// The most that a request may take until its answer begins, over all attempts; absent: 15 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Switch<Span>>,
    /// The most that one attempt may take while others may follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt_timeout: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Switch<Retry>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Switch<Hedge>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<Switch<Breaker>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// How important requests are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier: Option<Switch<Outlier>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    /// Refuses here what the upstream would refuse (Google's client throttle).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Switch<Throttle>>,
}

/// Settings, or `off`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Switch<T> {
    Off(Off),
    On(T),
}

impl<T> Switch<T> {
    pub const fn on(&self) -> Option<&T> {
        match self {
            Self::On(settings) => Some(settings),
            Self::Off(_) => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Off {
    #[serde(rename = "off")]
    Off,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Attempts in all; absent: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u8>,
    /// The first pause, about; absent: 25 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Span>,
    /// The longest pause; absent: 1 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Jitter>,
    /// Statuses beyond 502, 503 and 504 that are tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statuses: Option<OneOrMany<u16>>,
    /// Whether every method of this route may be repeated without harm, POST too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotent: Option<bool>,
    /// Retries as a part of requests; absent: 20 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Part>,
    /// Retries a second that are always allowed; absent: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_per_second_min: Option<f32>,
    /// Bodies up to this size are kept for another attempt; absent: 65536.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_bytes_max: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Jitter {
    Full,
    Decorrelated,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hedge {
    /// The part of calls that answer before a hedge starts; absent: 95 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantile: Option<Part>,
    /// Hedges as a part of requests; absent: 5 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Part>,
    /// A hedge starts no sooner; absent: 1 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_min: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Breaker {
    /// The part of calls that opens it by failing; absent: 50 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<Part>,
    /// Fewer calls than these give no rate; absent: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_min: Option<u32>,
    /// The time that is looked at; absent: 10 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// The last calls that are looked at, in place of a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u32>,
    /// Calls that take longer are slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_after: Option<Span>,
    /// The part of calls that opens it by being slow; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_rate: Option<Part>,
    /// Failures one after the other that open it; absent: no number does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive: Option<u32>,
    /// How long it stays open; absent: 1 s, and up to 2 s where probes fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_for: Option<Span>,
    /// The longest it stays open after probes that failed; absent: twice `open_for`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_for_max: Option<Span>,
    /// Calls let through while half-open; absent: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<u32>,
    /// Holds it `open` or `closed` whatever happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<Force>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Force {
    Open,
    Closed,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Concurrency {
    /// Requests at once (a bulkhead); absent: only what the adaptive limit says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Requests that may wait for a place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// Finds the limit from latencies; absent: `gradient2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
    /// Between which the adaptive limit moves; absent: 10 and 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive_min: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive_max: Option<u32>,
    /// For `aimd`: calls that take longer shrink the limit; absent: 500 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_after: Option<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Adaptive {
    Gradient2,
    Aimd,
    Off,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Priority {
    /// A field with 0 (critical) to 3 (bulk).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// Where no field says it; absent: `normal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Level>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Critical,
    Normal,
    Low,
    Bulk,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outlier {
    /// Failures one after the other that eject an endpoint; absent: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive: Option<u32>,
    /// How long the first time; absent: 5 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Span>,
    /// The part of endpoints that may be out; absent: half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejected_max: Option<Part>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Balance {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Balancer>,
    /// For `ring`: `client`, `caller`, `path` or `header:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Over which the share of a new endpoint grows; absent: 10 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Balancer {
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Ring,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Throttle {
    /// Requests that are sent for one that is accepted; absent: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<f32>,
    /// Absent: 2 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
}

/// Tried in this order, where no backend answered well: another backend, an old answer, a fixed one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fallback {
    /// The name of a backend, usually one of weight 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Answers to GET that were good are kept, and given out up to this age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<FixedAnswer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FixedAnswer {
    /// Absent: 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(default)]
    pub body: String,
    /// Absent: `text/plain; charset=utf-8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// `HOST:PORT`.
    pub to: String,
    /// Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Part>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Only requests that this describes; absent: all of the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Match>,
    /// The request waits this long first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Span>,
    /// Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_share: Option<Part>,
    /// The request is answered with this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<u16>,
    /// Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort_share: Option<Part>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_route_keeps_its_words_on_the_way_through_json() {
        let written = json!({
            "match": [{"host": "shop.example", "path": "/orders/*", "method": ["GET", "POST"], "headers": {"x-a": "*"}}],
            "to": [
                {"name": "v1", "weight": 95, "endpoints": ["127.0.0.1:1", {"address": "127.0.0.1:2", "weight": 3}]},
                {"name": "v2", "weight": 5, "endpoints": "127.0.0.1:3", "when": {"headers": {"x-canary": "1"}}},
            ],
            "deadline": "2s", "breaker": "off", "retry": {"attempts": 2, "statuses": 429, "budget": "10%"},
            "fallback": {"stale": "1m", "answer": {"body": "later"}},
        });
        let route: Route = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(route.policies.breaker, Some(Switch::Off(Off::Off)));
        assert_eq!(route.to[0].endpoints.as_ref().unwrap().as_slice()[1].weight(), 3);
        assert_eq!(serde_json::to_value(&route).unwrap(), written);
    }
}
