//! HTTP in: events for programs that post, topics for people, and the part of Confluent's REST proxy v2 that produces.
//!
//! | path | what |
//! |---|---|
//! | `POST /events` | JSON, NDJSON or CloudEvents into one topic; 200 only after the commit |
//! | `POST /topics/{t}[/partitions/{p}]`, `GET /topics…`, `GET /brokers` | REST proxy v2 ([`proxy`]) |
//! | `/v1/topics…` | create, list, describe, delete topics; read records with their story ([`admin`]) |
//! | `POST /v1/entries` | one entry: guards, keys, records, cursors, leases, timers, together or not at all ([`entries`]) |
//! | `GET /v1/keys…`, `GET /v1/watch` | the key space, now or at a revision; its changes as they come ([`keys`]) |
//!
//! Bodies arrive whole and bounded by the composition root; gzip is unpacked here, bounded again. Every record goes through
//! the same [`Ingest`] as MQTT's, so a device is deduplicated whichever way it came.

mod admin;
mod elsewhere;
mod entries;
mod events;
mod keys;
mod octets;

pub mod fuzz;
mod proxy;
mod request;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex},
};

use buttress_core::{Code, Error, limits::TOPIC_NAME_BYTES_MAX};
use bytes::Bytes;
use futures::task::AtomicWaker;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::json;

pub use elsewhere::Elsewhere;

use crate::ingest::{Incoming, Ingest, Item, Lane, Outcome, Route};

/// Limits of the edge.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where `POST /events` without `?topic=` goes.
    pub default_topic: String,
    /// Largest body after unpacking.
    pub body_bytes_max: usize,
    /// Records of one request.
    pub records_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { default_topic: "telemetry".into(), body_bytes_max: 8 * 1024 * 1024, records_max: 50_000 }
    }
}

/// The HTTP edge of the events plane.
pub struct EventsHttp {
    ingest: Arc<Ingest>,
    options: Options,
    /// Where the topics of `ingest` lie.
    engine: &'static str,
    elsewhere: Option<Arc<dyn Elsewhere>>,
    /// Requests by route and status: at most one line per route and status, so the labels are bounded.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

/// How errors are worded: ours, or the REST proxy's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Ours,
    Proxy,
}

/// A path of ours, taken apart.
enum Target {
    Events,
    Topics,
    Topic(String),
    Partitions(String),
    Partition(String, String),
    Offsets(String, String),
    Brokers,
    AdminTopics,
    AdminTopic(String),
    AdminRecords(String, String),
    Entries,
    Keys,
    Key(Bytes),
    /// Served as a stream by [`EventsHttp::watch`]; only other methods come here.
    Watch,
}

impl Target {
    fn parse(path: &str) -> Option<Self> {
        // A key may hold slashes and need not be text.
        if let Some(key) = path.strip_prefix("/v1/keys/") {
            return Some(Self::Key(request::percent_decode_bytes(key).into()));
        }
        let segments: Vec<String> = path.trim_matches('/').split('/').map(request::percent_decode).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        Some(match segments[..] {
            ["events"] => Self::Events,
            ["brokers"] => Self::Brokers,
            ["topics"] => Self::Topics,
            ["topics", t] => Self::Topic(t.into()),
            ["topics", t, "partitions"] => Self::Partitions(t.into()),
            ["topics", t, "partitions", p] => Self::Partition(t.into(), p.into()),
            ["topics", t, "partitions", p, "offsets"] => Self::Offsets(t.into(), p.into()),
            ["v1", "topics"] => Self::AdminTopics,
            ["v1", "topics", t] => Self::AdminTopic(t.into()),
            ["v1", "topics", t, "partitions", p, "records"] => Self::AdminRecords(t.into(), p.into()),
            ["v1", "entries"] => Self::Entries,
            ["v1", "keys"] => Self::Keys,
            ["v1", "watch"] => Self::Watch,
            _ => return None,
        })
    }

    /// The route's name in metrics.
    fn name(&self) -> &'static str {
        match self {
            Self::Events => "/events",
            Self::Brokers => "/brokers",
            Self::Topics => "/topics",
            Self::Topic(_) => "/topics/{t}",
            Self::Partitions(_) => "/topics/{t}/partitions",
            Self::Partition(..) => "/topics/{t}/partitions/{p}",
            Self::Offsets(..) => "/topics/{t}/partitions/{p}/offsets",
            Self::AdminTopics => "/v1/topics",
            Self::AdminTopic(_) => "/v1/topics/{t}",
            Self::AdminRecords(..) => "/v1/topics/{t}/partitions/{p}/records",
            Self::Entries => "/v1/entries",
            Self::Keys => "/v1/keys",
            Self::Key(_) => "/v1/keys/{key}",
            Self::Watch => "/v1/watch",
        }
    }

    fn manner(&self) -> Manner {
        match self {
            Self::Events | Self::AdminTopics | Self::AdminTopic(_) | Self::AdminRecords(..) => Manner::Ours,
            Self::Entries | Self::Keys | Self::Key(_) | Self::Watch => Manner::Ours,
            _ => Manner::Proxy,
        }
    }

    fn methods(&self) -> &'static [Method] {
        match self {
            Self::Events | Self::Entries => &[Method::POST],
            Self::Keys | Self::Key(_) | Self::Watch => &[Method::GET],
            Self::Topic(_) | Self::Partition(..) | Self::AdminTopics => &[Method::GET, Method::POST],
            Self::AdminTopic(_) => &[Method::GET, Method::DELETE],
            Self::Topics | Self::Partitions(_) | Self::Offsets(..) | Self::Brokers | Self::AdminRecords(..) => {
                &[Method::GET]
            }
        }
    }
}

impl EventsHttp {
    pub fn new(ingest: Arc<Ingest>, options: Options) -> Self {
        Self { ingest, options, engine: "embedded", elsewhere: None, requests: Mutex::default() }
    }

    /// Says what the engine is called in which the topics lie.
    pub fn on_engine(mut self, engine: &'static str) -> Self {
        self.engine = engine;
        self
    }

    /// Lets topics choose another engine.
    pub fn with_elsewhere(mut self, elsewhere: Arc<dyn Elsewhere>) -> Self {
        self.elsewhere = Some(elsewhere);
        self
    }

    /// The topic's way in.
    fn way_in(&self, topic: &str) -> Result<Arc<Route>, Error> {
        self.ingest.route(topic).map_err(|error| match &self.elsewhere {
            Some(elsewhere) if elsewhere.topic(topic).is_some() => elsewhere::not_here(topic, elsewhere.engine()),
            _ => error,
        })
    }

    /// Answers a request to a path of this plane; `None`: not ours.
    pub async fn route(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        let target = Target::parse(request.uri().path())?;
        let name = target.name();
        let manner = target.manner();
        let response = if target.methods().contains(request.method()) {
            self.dispatch(target, request).await.unwrap_or_else(|error| failure(&error, manner))
        } else {
            let allowed = target.methods().iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            let message = format!("{} does not take {}", name, request.method());
            let mut response = failure(&Error::new(Code::METHOD, message).hint(format!("use {allowed}")), manner);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_str(&allowed).expect("method names"));
            response
        };
        self.count(name, response.status().as_u16());
        Some(response)
    }

    fn count(&self, route: &'static str, status: u16) {
        *self.requests.lock().expect("no panic holds the lock").entry((route, status)).or_insert(0) += 1;
    }

    async fn dispatch(&self, target: Target, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let post = request.method() == Method::POST;
        match target {
            Target::Events => self.post_events(request).await,
            Target::Topic(t) if post => self.produce(&t, None, request).await,
            Target::Partition(t, p) if post => self.produce(&t, Some(&p), request).await,
            Target::Topics => Ok(self.proxy_topics()),
            Target::Topic(t) => self.proxy_topic(&t),
            Target::Partitions(t) => self.proxy_partitions(&t),
            Target::Partition(t, p) => self.proxy_partition(&t, &p),
            Target::Offsets(t, p) => self.proxy_offsets(&t, &p),
            Target::Brokers => Ok(self.proxy_brokers()),
            Target::AdminTopics if post => self.create_topic(request).await,
            Target::AdminTopics => Ok(self.list_topics()),
            Target::AdminTopic(t) if request.method() == Method::DELETE => self.delete_topic(&t).await,
            Target::AdminTopic(t) => self.describe_topic(&t),
            Target::Entries => self.post_entry(request).await,
            Target::Keys => self.list_keys(request.uri().query().unwrap_or("")).await,
            Target::Key(key) => self.get_key(key, request.uri().query().unwrap_or("")).await,
            Target::Watch => Err(Error::new(Code::UNSUPPORTED, "a watch is served as a stream only")),
            Target::AdminRecords(t, p) => self.read_records(&t, &p, request.uri().query().unwrap_or("")).await,
        }
    }

    /// Whether a request with this many records is taken at all.
    fn admit(&self, count: usize) -> Result<(), Error> {
        if count > self.options.records_max {
            let message =
                format!("{count} records in one request, more than the limit of {}", self.options.records_max);
            return Err(Error::new(Code::TOO_LARGE, message).hint("send them in several requests"));
        }
        if self.ingest.overloaded() {
            let message = "more records wait for their commit than this node holds";
            return Err(Error::new(Code::OVERLOADED, message).retryable());
        }
        Ok(())
    }

    /// Checks the records; all of them are good, or none is taken.
    fn prepare(&self, route: &Arc<Route>, records: Vec<Incoming>) -> Result<Vec<Item>, Error> {
        let prepare = |(at, record)| {
            self.ingest.prepare(route, record, at as u64).map_err(|mut error| {
                error.message = format!("record {at}: {}", error.message);
                error
            })
        };
        records.into_iter().enumerate().map(prepare).collect()
    }

    /// Commits the records and waits; outcomes are in their order.
    async fn commit(&self, mut items: Vec<Item>) -> Vec<Outcome> {
        let count = items.len();
        let lane = Lane::new(Arc::new(AtomicWaker::new()));
        self.ingest.enqueue(&lane, &mut items);
        let outcomes = lane.answered().await;
        assert_eq!(outcomes.len(), count, "one outcome per record");
        outcomes
    }

    /// Appends requests by route and status in Prometheus' text form.
    pub fn prometheus(&self, out: &mut String) {
        out.push_str("# TYPE buttress_events_http_requests_total counter\n");
        for ((route, status), count) in self.requests.lock().expect("no panic holds the lock").iter() {
            let _ =
                writeln!(out, "buttress_events_http_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}");
        }
    }
}

/// Checks a topic's name as Kafka does.
///
/// # Errors
/// `TOPIC_INVALID`.
pub fn check_topic_name(name: &str) -> Result<(), Error> {
    let wrong = if name.is_empty() {
        "is empty"
    } else if name.len() > TOPIC_NAME_BYTES_MAX {
        "is longer than 249 bytes"
    } else if name == "." || name == ".." {
        "is \".\" or \"..\""
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        "has characters other than a-z, A-Z, 0-9, '.', '_' and '-'"
    } else {
        return Ok(());
    };
    Err(Error::new(Code::TOPIC_INVALID, format!("topic name {name:?} {wrong}"))
        .hint("use letters, digits, '.', '_' and '-', at most 249 of them"))
}

/// The status that says most about a code.
fn status(code: Code) -> StatusCode {
    match code {
        Code::TOPIC_UNKNOWN | Code::NOT_FOUND => StatusCode::NOT_FOUND,
        Code::COMPACTED => StatusCode::GONE,
        Code::METHOD => StatusCode::METHOD_NOT_ALLOWED,
        Code::TOPIC_EXISTS | Code::REFUSED | Code::SEQUENCE_GAP | Code::EPOCH_STALE => StatusCode::CONFLICT,
        Code::TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        Code::UNSUPPORTED => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Code::TOPIC_INVALID | Code::RECORD_INVALID | Code::BATCH_INVALID => StatusCode::UNPROCESSABLE_ENTITY,
        Code::OFFSET_OUT_OF_RANGE => StatusCode::RANGE_NOT_SATISFIABLE,
        Code::BAD_REQUEST | Code::REVISION_FUTURE | Code::KEY_UNKNOWN => StatusCode::BAD_REQUEST,
        code if transient(code) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Whether the same request may succeed a moment later. After `TIMEOUT` it may also have succeeded already.
fn transient(code: Code) -> bool {
    matches!(code, Code::NO_LEADER | Code::TIMEOUT | Code::OVERLOADED | Code::STOPPED | Code::UNREACHABLE)
}

fn failure(error: &Error, manner: Manner) -> Response<Bytes> {
    let status = status(error.code);
    let (media, body) = match manner {
        Manner::Ours => {
            let body = json!({"code": error.code.0, "message": error.message, "hint": error.hint});
            ("application/json", body)
        }
        Manner::Proxy => {
            let message = match &error.hint {
                None => format!("{} [{}]", error.message, error.code),
                Some(hint) => format!("{} [{}]; hint: {hint}", error.message, error.code),
            };
            (proxy::MEDIA, json!({"error_code": proxy::error_code(error.code), "message": message}))
        }
    };
    let mut response = respond(status, media, &body);
    if transient(error.code) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn respond(status: StatusCode, media: &'static str, body: &serde_json::Value) -> Response<Bytes> {
    let mut text = body.to_string();
    text.push('\n');
    let mut response = Response::new(Bytes::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}
