//! Spans and log records on their way to a collector: OTLP over HTTP, as JSON, from one thread that no request waits for.
//!
//! JSON and not protobuf: every receiver of OTLP over HTTP has to take both, nothing must be generated, and whoever debugs can
//! read it. It is three times the bytes; they go to an agent on the same host, once a second, or within TLS and with the fields
//! that it asks for to a collector somewhere. Spans and log records each have a queue and a connection of their own: a collector that
//! takes one kind and not the other loses nothing of the one. What log records are of stands in [`crate::otlp_logs`].
//!
//! | what happens | what we do |
//! |---|---|
//! | 512 spans (or log records) wait, or a second has gone by | they are sent, 512 at most at a time |
//! | no connection, no answer in time, 429, 502, 503, 504 | sent again after 1 s, 2 s, 4 s … 30 s, or what `Retry-After` says; given up after six tries |
//! | any other answer but 2xx | given up, told once |
//! | 200 that says how many were rejected | those are counted as dropped |
//! | the queue is full meanwhile | what comes is dropped and counted |
//! | the proxy stops | what is there is sent once, for two seconds at most |
//!
//! Source: OTLP specification 1.3, "OTLP/HTTP": request, response, failures, JSON encoding (ids in hexadecimal, 64-bit numbers as text).

use std::{
    fmt::Write as _,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use buttress_core::{Code, Error};
use bytes::BytesMut;
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{
        Notify,
        mpsc::{Receiver, Sender, channel, error::TryRecvError},
    },
    time::{sleep, timeout},
};

use crate::{
    access_log::Ended,
    body::Body,
    config::{Endpoint, Protocol},
    frame::Encoder,
    otlp_logs::Logs,
    record::Record,
    request_id::hex,
    tls::{self, Connector},
    trace::{Attempt, Told},
    upstream::{Asked, Upstream},
};

/// Spans or log records of one request to the collector.
const BATCH: u64 = 512;
const BATCH_EVERY: Duration = Duration::from_secs(1);
/// Requests that wait to be told of, each with its attempts: 8,192 of about 1 KiB are 8 MiB; as many records.
const QUEUE_MAX: usize = 8192;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Of an answer; what it says beyond is not read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
const TRIES: u32 = 6;
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Of a client's text.
const TEXT_MAX: usize = 256;

/// Fields that a collector wants to be sent, such as its key.
const FIELDS_MAX: usize = 16;
const FIELD_BYTES_MAX: usize = 8 * 1024;
/// Said by the exporter itself.
const OWN_FIELDS: [&str; 7] =
    ["connection", "content-encoding", "content-length", "content-type", "host", "te", "transfer-encoding"];

/// Fields of each request to the collector. Their values are secret: nothing shows them.
#[derive(Clone, Default)]
pub struct Fields(Vec<(String, String)>);

impl std::fmt::Debug for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Fields {
    /// Takes a field; one of the same name that was there before goes.
    ///
    /// # Errors
    /// `CONFIG` where a request could not carry it. The value is not repeated.
    pub fn put(&mut self, name: &str, value: &str) -> Result<(), Error> {
        let wrong = |says: &str| {
            let shown: String = name.chars().take(64).flat_map(char::escape_default).collect();
            Err(Error::new(Code::CONFIG, format!("the field \"{shown}\" for the collector {says}"))
                .hint("give NAME=VALUE, or NAME=@FILE with the value in a file, for example authorization=@token"))
        };
        let name = name.to_ascii_lowercase();
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            return wrong("has a name that no field can have");
        }
        if OWN_FIELDS.contains(&name.as_str()) {
            return wrong("is set by the exporter itself");
        }
        let value = value.trim();
        if value.is_empty() || value.len() > FIELD_BYTES_MAX || !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return wrong("has no value of visible ASCII, 8 KiB at most");
        }
        self.0.retain(|(known, _)| *known != name);
        if self.0.len() == FIELDS_MAX {
            return wrong("is one more than the 16 that are sent");
        }
        self.0.push((name, value.to_owned()));
        Ok(())
    }

    /// As `OTEL_EXPORTER_OTLP_HEADERS` has them: `name=value,name=value`, values percent-encoded where need be (the format of
    /// W3C Baggage, without its properties).
    ///
    /// # Errors
    /// `CONFIG`, as [`Fields::put`].
    pub fn put_list(&mut self, list: &str) -> Result<(), Error> {
        for one in list.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let Some((name, value)) = one.split_once('=') else {
                return Err(Error::new(Code::CONFIG, "the list of fields for the collector has one without \"=\"")
                    .hint("write OTEL_EXPORTER_OTLP_HEADERS as name=value,name=value"));
            };
            self.put(name.trim(), &percent_decoded(value))?;
        }
        Ok(())
    }
}

/// What is no `%` and two digits stays as it is: keys are pasted, not encoded, by most.
fn percent_decoded(text: &str) -> String {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let decoded = digits.filter(|two| byte == b'%' && two.bytes().all(|b| b.is_ascii_hexdigit()));
        match decoded.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                rest = &behind[2..];
            }
            None => {
                out.push(byte);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What is exported where.
#[derive(Clone, Debug)]
pub struct To {
    /// `HOST:PORT`.
    pub address: String,
    /// As in the address that was given.
    pub host: String,
    /// Within TLS, and whose word counts there.
    pub tls: Option<tls::Client>,
    pub fields: Fields,
    /// `/v1/traces`, below whatever the collector is served under; and `/v1/logs`.
    pub path: String,
    pub logs_path: String,
    /// Whether log records are exported too.
    pub logs: bool,
    /// The share of traces that begin here that is sampled, 0 to 1.
    pub sample: f64,
    /// `service.name`.
    pub service: String,
}

impl To {
    /// Reads `http://HOST:PORT` or `https://HOST[:PORT]`, each perhaps with a path.
    ///
    /// # Errors
    /// `CONFIG` where it is neither.
    pub fn parse(text: &str, sample: f64, service: &str) -> Result<Self, Error> {
        let wrong = |says: &str| {
            Error::new(Code::CONFIG, format!("\"{text}\" {says}"))
                .hint("give the address of an OTLP receiver over HTTP, for example http://127.0.0.1:4318 or https://otel.example")
        };
        let (secure, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err(wrong("begins neither with http:// nor with https://")),
        };
        let (host, path) = rest.split_once('/').map_or((rest, ""), |(address, path)| (address, path));
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let address = if secure && !has_port { format!("{host}:443") } else { host.to_owned() };
        let endpoint = Endpoint::parse(&address).map_err(|_| wrong("is not a host and a port"))?;
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
        if !path.bytes().all(safe) {
            return Err(wrong("has a path with more than letters, digits and -._~/"));
        }
        let below = path.trim_end_matches('/');
        // Whoever names the place of the one kind means that of both.
        let below = ["v1/traces", "v1/logs"].iter().find_map(|own| below.strip_suffix(own)).unwrap_or(below);
        let below = below.trim_end_matches('/');
        let slash = if below.is_empty() { "" } else { "/" };
        let (path, logs_path) = (format!("{slash}{below}/v1/traces"), format!("{slash}{below}/v1/logs"));
        let (host, tls, fields) = (host.to_owned(), secure.then(tls::Client::default), Fields::default());
        let service = service.to_owned();
        Ok(Self { address: endpoint.address, host, tls, fields, path, logs_path, logs: false, sample, service })
    }
}

/// What is told the collector, of one kind.
pub(crate) trait Signal: Sized + Send + 'static {
    /// As it is called in the log.
    const WHAT: &'static str;
    /// What an answer calls how many it did not take.
    const REJECTED: &'static str;

    /// How many spans or log records it is.
    fn count(&self) -> u64;
    fn path(to: &To) -> &str;
    /// The request for a batch.
    fn payload(to: &To, batch: &[Self]) -> Value;
}

/// The way from the cores to the exporter.
pub(crate) struct Way<T> {
    queue: Sender<T>,
    /// Spans or log records in the queue.
    waiting: AtomicU64,
    many: Notify,
    closing: AtomicBool,
    pub figures: Figures,
}

impl<T: Signal> Way<T> {
    pub fn new() -> (Self, Receiver<T>) {
        let (queue, waiting) = channel(QUEUE_MAX);
        let (many, closing) = (Notify::new(), AtomicBool::new(false));
        (Self { queue, waiting: AtomicU64::new(0), many, closing, figures: Figures::default() }, waiting)
    }

    /// Takes it along, where there is room.
    pub fn tell(&self, told: T) {
        let count = told.count();
        match self.queue.try_send(told) {
            Ok(()) => {
                let before = self.waiting.fetch_add(count, Relaxed);
                if before < BATCH && before + count >= BATCH {
                    self.many.notify_one();
                }
            }
            Err(_) => drop(self.figures.dropped.fetch_add(count, Relaxed)),
        }
    }

    fn close(&self) {
        self.closing.store(true, Relaxed);
        self.many.notify_one();
    }
}

#[derive(Debug, Default)]
pub struct Figures {
    pub exported: AtomicU64,
    pub dropped: AtomicU64,
    /// Requests to the collector that failed.
    pub failures: AtomicU64,
}

/// Where the cores tell spans.
pub struct Traces {
    way: Way<Box<Told>>,
    /// A draw below it is sampled.
    below: u64,
}

/// Ends the exporter.
pub struct Exporter {
    traces: Arc<Traces>,
    logs: Option<Arc<Logs>>,
    ended: std::sync::Mutex<mpsc::Receiver<()>>,
}

impl Exporter {
    /// Has what is there sent, once.
    pub fn close(&self) {
        self.traces.way.close();
        if let Some(logs) = &self.logs {
            logs.way.close();
        }
        let ended = self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = ended.recv_timeout(CLOSE_MAX);
    }
}

/// What was started: where to tell spans, and log records where they are wanted, and what ends it.
pub struct Started {
    pub traces: Arc<Traces>,
    pub logs: Option<Arc<Logs>>,
    pub exporter: Exporter,
}

/// Starts the thread that exports. `connector` makes TLS to the collector.
///
/// # Errors
/// `LIMITS` where there is no thread to be had.
pub fn start(to: To, connector: Option<Arc<Connector>>) -> Result<Started, Error> {
    let (way, spans) = Way::new();
    let traces = Arc::new(Traces { way, below: below(to.sample) });
    let (logs, records) = to.logs.then(Logs::new).unzip();
    let (end, ended) = mpsc::channel();
    let exporting = (traces.clone(), logs.clone());
    std::thread::Builder::new()
        .name("otlp".into())
        .spawn(move || {
            let (traces, logs) = exporting;
            let export = Export { to, connector };
            let all = async {
                let records = async {
                    if let (Some(logs), Some(records)) = (logs, records) {
                        export.follow(&logs.way, records).await;
                    }
                };
                tokio::join!(export.follow(&traces.way, spans), records)
            };
            match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => drop(runtime.block_on(all)),
                Err(error) => tracing::error!(%error, "a runtime for the collector cannot be made"),
            }
            let _ = end.send(());
        })
        .map_err(|error| Error::new(Code::LIMITS, format!("a thread cannot be started: {error}")))?;
    let exporter = Exporter { traces: traces.clone(), logs: logs.clone(), ended: std::sync::Mutex::new(ended) };
    Ok(Started { traces, logs, exporter })
}

impl Traces {
    pub fn samples(&self, random: u64) -> bool {
        self.below == u64::MAX || random < self.below
    }

    /// Takes a request's spans, where there is room.
    pub fn tell(&self, told: Box<Told>) {
        self.way.tell(told);
    }

    pub const fn figures(&self) -> &Figures {
        &self.way.figures
    }
}

/// Draws below this are the share.
fn below(share: f64) -> u64 {
    if share >= 1.0 { u64::MAX } else { (share.max(0.0) * u64::MAX as f64) as u64 }
}

struct Export {
    to: To,
    connector: Option<Arc<Connector>>,
}

impl Export {
    async fn follow<T: Signal>(&self, way: &Way<T>, mut queue: Receiver<T>) {
        let (address, tls) = (self.to.address.clone(), self.connector.is_some());
        let endpoint = Endpoint { address, protocol: Protocol::Http1, tls };
        let upstream = Rc::new(Upstream::new(endpoint, self.connector.clone()));
        let mut failing = false;
        loop {
            if !way.closing.load(Relaxed) {
                let _ = timeout(BATCH_EVERY, way.many.notified()).await;
            }
            loop {
                let (mut batch, mut count) = (Vec::new(), 0);
                let ended = loop {
                    match queue.try_recv() {
                        Ok(told) => {
                            count += told.count();
                            batch.push(told);
                            if count >= BATCH {
                                break false;
                            }
                        }
                        Err(TryRecvError::Empty | TryRecvError::Disconnected) => break true,
                    }
                };
                way.waiting.fetch_sub(count, Relaxed);
                if count > 0 {
                    self.send(way, &upstream, &batch, count, &mut failing).await;
                }
                if ended {
                    break;
                }
            }
            if way.closing.load(Relaxed) {
                return;
            }
        }
    }

    /// Sends a batch until it is taken or given up.
    async fn send<T: Signal>(
        &self,
        way: &Way<T>,
        upstream: &Rc<Upstream>,
        batch: &[T],
        count: u64,
        failing: &mut bool,
    ) {
        let body = T::payload(&self.to, batch).to_string();
        let mut pause = Duration::from_secs(1);
        for attempt in 1..=TRIES {
            let why = match ask::<T>(upstream, &self.to, &body).await {
                Said::Taken { rejected } => {
                    way.figures.exported.fetch_add(count.saturating_sub(rejected), Relaxed);
                    way.figures.dropped.fetch_add(rejected.min(count), Relaxed);
                    if std::mem::take(failing) {
                        tracing::warn!(what = T::WHAT, "the collector takes them again");
                    }
                    return;
                }
                Said::Never(why) => {
                    way.figures.failures.fetch_add(1, Relaxed);
                    self.tell_once::<T>(failing, &why);
                    break;
                }
                Said::Later { after, why } => {
                    way.figures.failures.fetch_add(1, Relaxed);
                    if let Some(after) = after {
                        pause = after.min(BACK_OFF_MAX);
                    }
                    why
                }
            };
            self.tell_once::<T>(failing, &why);
            if attempt == TRIES || way.closing.load(Relaxed) {
                break;
            }
            // Whoever stops the proxy does not wait for a pause to end.
            let _ = timeout(pause, async {
                while !way.closing.load(Relaxed) {
                    sleep(Duration::from_millis(50)).await;
                }
            })
            .await;
            pause = (pause * 2).min(BACK_OFF_MAX);
        }
        way.figures.dropped.fetch_add(count, Relaxed);
    }

    fn tell_once<T: Signal>(&self, failing: &mut bool, why: &str) {
        if !std::mem::replace(failing, true) {
            let (what, address) = (T::WHAT, &self.to.address);
            tracing::warn!(
                what,
                why,
                address,
                "the collector does not take them; they are dropped and counted until it does"
            );
        }
    }
}

/// What the collector said to a batch.
enum Said {
    Taken { rejected: u64 },
    Later { after: Option<Duration>, why: String },
    Never(String),
}

async fn ask<T: Signal>(upstream: &Rc<Upstream>, to: &To, body: &str) -> Said {
    let mut head = BytesMut::new();
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!(
        "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
        T::path(to),
        to.host,
        body.len()
    );
    if !to.fields.0.iter().any(|(name, _)| name == "user-agent") {
        let _ = write!(text, "user-agent: buttress/{version}\r\n");
    }
    for (name, value) in &to.fields.0 {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    head.extend_from_slice(text.as_bytes());
    head.extend_from_slice(b"\r\n");
    let asked = Asked {
        head,
        body: Body::full(body.to_owned()),
        encoder: Encoder::Length(body.len() as u64),
        method: Method::POST,
        must_not_repeat: false,
        fresh: false,
        connect_timeout: CONNECT_TIMEOUT,
        upgrade: false,
        interim: None,
    };
    let exchange = async {
        let got = match upstream.exchange(asked).await {
            Ok(got) => got,
            Err(failure) => return Said::Later { after: None, why: failure.kind.to_string() },
        };
        let (status, mut text) = (got.head.status, Vec::new());
        let after =
            got.head.fields.named("retry-after").and_then(|asked| std::str::from_utf8(asked).ok()?.parse().ok());
        let mut flow = Body::from(got.flow);
        while let Some(Ok(frame)) = flow.frame().await {
            if let Some(data) = frame.data_ref()
                && text.len() + data.len() <= ANSWER_BYTES_MAX
            {
                text.extend_from_slice(data);
            }
        }
        match status {
            200..300 => {
                let said: Value = serde_json::from_slice(&text).unwrap_or_default();
                let rejected = &said["partialSuccess"][T::REJECTED];
                let number = rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok());
                Said::Taken { rejected: number.unwrap_or(0) }
            }
            429 | 502 | 503 | 504 => {
                Said::Later { after: after.map(Duration::from_secs), why: format!("it answered {status}") }
            }
            _ => {
                let text = String::from_utf8_lossy(&text[..text.len().min(TEXT_MAX)]).into_owned();
                Said::Never(format!("it answered {status}: {text}"))
            }
        }
    };
    let late = || Said::Later { after: None, why: "no answer in time".into() };
    timeout(ANSWER_TIMEOUT, exchange).await.unwrap_or_else(|_| late())
}

/// An `ExportTraceServiceRequest`.
impl Signal for Box<Told> {
    const WHAT: &'static str = "spans";
    const REJECTED: &'static str = "rejectedSpans";

    fn count(&self) -> u64 {
        1 + self.attempts.len() as u64
    }

    fn path(to: &To) -> &str {
        &to.path
    }

    fn payload(to: &To, batch: &[Self]) -> Value {
        let of = |told: &Told| -> Vec<Value> {
            std::iter::once(server(told)).chain(told.attempts.iter().map(|attempt| client(told, attempt))).collect()
        };
        let spans: Vec<Value> = batch.iter().flat_map(|told| of(told)).collect();
        json!({"resourceSpans": [{"resource": resource(to), "scopeSpans": [{"scope": scope(), "spans": spans}]}]})
    }
}

/// An `ExportLogsServiceRequest`.
impl Signal for Arc<Record> {
    const WHAT: &'static str = "log records";
    const REJECTED: &'static str = "rejectedLogRecords";

    fn count(&self) -> u64 {
        1
    }

    fn path(to: &To) -> &str {
        &to.logs_path
    }

    fn payload(to: &To, batch: &[Self]) -> Value {
        let records: Vec<Value> = batch.iter().map(|record| crate::otlp_logs::log_record(record)).collect();
        json!({"resourceLogs": [{"resource": resource(to), "scopeLogs": [{"scope": scope(), "logRecords": records}]}]})
    }
}

/// Who says it.
fn resource(to: &To) -> Value {
    let mut about = Attributes::default();
    about.text("service.name", &to.service);
    about.text("service.version", env!("CARGO_PKG_VERSION"));
    about.number("process.pid", std::process::id().into());
    json!({"attributes": about.0})
}

fn scope() -> Value {
    json!({"name": "buttress.gateway", "version": env!("CARGO_PKG_VERSION")})
}

/// As OTLP writes them.
#[derive(Default)]
pub(crate) struct Attributes(pub Vec<Value>);

impl Attributes {
    pub fn text(&mut self, key: &str, value: &str) {
        self.0.push(json!({"key": key, "value": {"stringValue": value}}));
    }

    fn bytes(&mut self, key: &str, value: &[u8]) {
        if !value.is_empty() {
            self.text(key, &String::from_utf8_lossy(&value[..value.len().min(TEXT_MAX)]));
        }
    }

    pub fn number(&mut self, key: &str, value: u64) {
        self.0.push(json!({"key": key, "value": {"intValue": value.to_string()}}));
    }

    /// `url.path` and `url.query`.
    pub fn target(&mut self, target: &[u8]) {
        let at = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
        self.text("url.path", &String::from_utf8_lossy(&target[..at]));
        if at < target.len() {
            self.text("url.query", &String::from_utf8_lossy(&target[at + 1..]));
        }
    }

    /// `server.address` and `server.port`.
    pub fn server(&mut self, authority: &str) {
        match authority.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => {
                self.text("server.address", host.trim_start_matches('[').trim_end_matches(']'));
                self.number("server.port", port.parse().unwrap_or(0));
            }
            _ => self.text("server.address", authority),
        }
    }
}

pub(crate) fn text_of(hex: &[u8]) -> &str {
    std::str::from_utf8(hex).expect("ids are checked to be hexadecimal")
}

fn span(told: &Told, id: u64, parent: Option<&str>, name: &str, kind: u8, (began, ended): (u64, u64)) -> Value {
    let id = hex(id);
    let mut span = json!({
        "traceId": text_of(&told.id), "spanId": text_of(&id), "name": name, "kind": kind,
        "startTimeUnixNano": began.to_string(), "endTimeUnixNano": ended.to_string(),
    });
    if let Some(parent) = parent {
        span["parentSpanId"] = parent.into();
    }
    span
}

/// `SPAN_KIND_SERVER`, `SPAN_KIND_CLIENT`, `STATUS_CODE_ERROR`.
const SERVER: u8 = 2;
const CLIENT: u8 = 3;
const ERROR: u8 = 2;

/// The span of a request.
fn server(told: &Told) -> Value {
    let name = match &told.route {
        Some(route) => format!("{} {route}", told.method),
        None => told.method.to_string(),
    };
    let parent = told.parent.as_ref().map(|parent| text_of(parent));
    let mut span = span(told, told.span, parent, &name, SERVER, (told.began_ns, told.ended_ns));
    let mut about = Attributes::default();
    about.text("http.request.method", told.method.as_str());
    about.text("url.scheme", told.scheme);
    about.target(&told.path[..told.path.len().min(4 * TEXT_MAX)]);
    about.number("http.response.status_code", told.status.into());
    let (protocol, version) = told.protocol.split_once('/').unwrap_or((told.protocol, ""));
    about.text("network.protocol.name", &protocol.to_ascii_lowercase());
    about.text("network.protocol.version", version);
    about.text("client.address", &told.client);
    if !told.authority.is_empty() {
        about.server(&String::from_utf8_lossy(&told.authority));
    }
    about.bytes("user_agent.original", &told.user_agent);
    about.number("http.request.body.size", told.bytes_in);
    about.number("http.response.body.size", told.bytes_out);
    about.text("buttress.request_id", told.request_id.as_str());
    if let Some(route) = &told.route {
        about.text("buttress.route", route);
    }
    if let Some(backend) = &told.backend {
        about.text("buttress.backend", backend);
    }
    if let Some(code) = told.code {
        about.text("buttress.code", code);
    }
    if let Some(status) = told.grpc_status {
        about.number("rpc.grpc.status_code", status.into());
        about.text("rpc.system", "grpc");
    }
    if told.failed() {
        let left = if told.ended == Ended::Left { Some("the client left first") } else { None };
        let why = told.code.or(left).map_or_else(|| told.status.to_string(), str::to_owned);
        about.text("error.type", &why);
        // What is the client's fault is no error of the server.
        if told.status >= 500 || told.ended == Ended::Cut || told.grpc_status.is_some_and(|status| status != 0) {
            span["status"] = json!({"code": ERROR, "message": why});
        }
    }
    span["attributes"] = about.0.into();
    span
}

/// The span of an attempt.
fn client(told: &Told, attempt: &Attempt) -> Value {
    let parent = hex(told.span);
    let times = (attempt.began_ns, attempt.ended_ns);
    let mut span = span(told, attempt.span, Some(text_of(&parent)), told.method.as_str(), CLIENT, times);
    let mut about = Attributes::default();
    let address = &attempt.member.endpoint.address;
    about.text("http.request.method", told.method.as_str());
    let path = String::from_utf8_lossy(&told.path[..told.path.len().min(4 * TEXT_MAX)]);
    let scheme = if attempt.member.endpoint.tls { "https" } else { "http" };
    about.text("url.full", &format!("{scheme}://{address}{path}"));
    about.server(address);
    if attempt.number > 1 {
        about.number("http.request.resend_count", u64::from(attempt.number) - 1);
    }
    about.text("buttress.backend", &attempt.backend);
    if attempt.hedge {
        about.0.push(json!({"key": "buttress.hedge", "value": {"boolValue": true}}));
    }
    if let Some(status) = attempt.status {
        about.number("http.response.status_code", status.into());
    }
    if let Some(status) = attempt.grpc_status {
        about.number("rpc.grpc.status_code", status.into());
    }
    let grpc = attempt.grpc_status.is_some_and(|status| status != 0);
    let failed = attempt.problem.clone().or_else(|| {
        let status = attempt.status.filter(|status| *status >= 400 || grpc)?;
        Some(status.to_string())
    });
    if let Some(why) = failed {
        about.text("error.type", &why);
        span["status"] = json!({"code": ERROR, "message": why});
    }
    span["attributes"] = about.0.into();
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors_are_read_and_wrong_ones_say_what_would_be_right() {
        let to = |text: &str| To::parse(text, 1.0, "s");
        let told = |text: &str| to(text).map(|to| format!("{} {}", to.address, to.path)).unwrap();
        let logs = |text: &str| to(text).map(|to| to.logs_path).unwrap();
        assert_eq!((logs("http://otel:1").as_str(), logs("http://otel:1/a/").as_str()), ("/v1/logs", "/a/v1/logs"));
        assert_eq!(
            (logs("http://o:1/v1/traces"), logs("http://o:1/a/v1/logs")),
            ("/v1/logs".into(), "/a/v1/logs".into())
        );
        assert_eq!(told("http://o:1/a/v1/logs"), "o:1 /a/v1/traces");
        assert_eq!(told("http://127.0.0.1:4318"), "127.0.0.1:4318 /v1/traces");
        assert_eq!(told("http://otel:4318/"), "otel:4318 /v1/traces");
        assert_eq!(told("http://otel:4318/tenant/v1/traces"), "otel:4318 /tenant/v1/traces");
        assert_eq!(told("http://otel:4318/tenant"), "otel:4318 /tenant/v1/traces");
        assert_eq!(told("https://otel.example/otlp"), "otel.example:443 /otlp/v1/traces");
        assert_eq!(told("https://[::1]:4318"), "[::1]:4318 /v1/traces");
        assert_eq!(to("https://otel.example/otlp").unwrap().host, "otel.example");
        assert!(to("https://a:1").unwrap().tls.is_some() && to("http://a:1").unwrap().tls.is_none());
        for bad in ["127.0.0.1:4318", "https://", "http://a", "grpc://a:1", "http://a:1/x y", "http://a:1/x\r\ny"] {
            let error = to(bad).unwrap_err();
            assert!(error.code == Code::CONFIG && error.hint.is_some(), "{bad}");
        }
    }

    #[test]
    fn fields_for_the_collector_are_read_as_users_write_them_and_their_values_are_never_shown() {
        let mut fields = Fields::default();
        fields.put_list("api-key=a%20b%3Dc, Authorization=Basic eDp5==,,x-odd=100%").unwrap();
        fields.put("X-ODD", " other ").unwrap();
        let known: Vec<_> = fields.0.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        assert_eq!(known, ["api-key: a b=c", "authorization: Basic eDp5==", "x-odd: other"]);
        assert_eq!(format!("{fields:?}"), r#"["api-key", "authorization", "x-odd"]"#);
        for (name, value) in [
            ("a b", "v"),
            ("", "v"),
            ("host", "v"),
            ("Content-Length", "1"),
            ("transfer-encoding", "chunked"),
            ("key", ""),
            ("key", "secret\r\nx: y"),
            ("key", "secret\u{e4}"),
        ] {
            let error = fields.put(name, value).unwrap_err();
            assert!(error.code == Code::CONFIG && error.hint.is_some() && !error.message.contains("secret"), "{name}");
        }
        assert!(fields.put("key", &"x".repeat(FIELD_BYTES_MAX + 1)).is_err());
        let error = fields.put_list("secret").unwrap_err();
        assert!(!error.message.contains("secret") && error.hint.is_some());
        for at in fields.0.len()..FIELDS_MAX {
            fields.put(&format!("f-{at}"), "v").unwrap();
        }
        assert!(fields.put("f-0", "v").is_err() && fields.put("api-key", "v").is_ok());
    }

    #[test]
    fn a_share_is_the_share_of_all_draws() {
        assert_eq!((below(0.0), below(1.0), below(7.0), below(-1.0)), (0, u64::MAX, u64::MAX, 0));
        let half = below(0.5);
        assert!(half.abs_diff(u64::MAX / 2) < 1 << 12, "{half}");
    }
}
