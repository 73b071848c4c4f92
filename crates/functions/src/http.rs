//! The plane's HTTP side: managing functions and models, and calling functions.
//!
//! | request | answer |
//! |---|---|
//! | `PUT /v1/blobs` (bytes) | `{"digest","size"}` |
//! | `PUT /v1/functions/{name}` (component, manifest in `X-Buttress-Function`; or the manifest as `application/json` with `"component":"sha256:…"`) | `{"name","version","component","revision","unchanged","warnings"}`, 201 for the first version |
//! | `GET /v1/functions` · `GET /v1/functions/{name}` | what is deployed, and the state of every partition |
//! | `DELETE /v1/functions/{name}` | `{"name","deleted","revision"}` |
//! | `GET /v1/functions/{name}/logs?limit=` | `{"lines","dropped"}` of this node |
//! | `POST /v1/functions/{name}/invoke?path=&method=` | the function's answer |
//! | `ANY /fn/{name}/…` | the function's answer, for functions with `http` |
//! | `ANY` a path in a function's `routes` | the function's answer |
//! | `PUT /v1/models/{name}` (bytes) | `{"name","generation","digest","revision","audit_offset","unchanged"}`, 201 for the first generation |
//! | `GET /v1/models` · `GET /v1/models/{name}` | what is pushed |
//!
//! Calls of one function run side by side up to its limit. More wait, but not many and not long: a full queue answers
//! 429 at once, a wait that lasts answers 503, both with `Retry-After`. Guests run on the engine's threads.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use buttress_core::{
    Cluster, Code, Error, Guest,
    guest::{GuestLog, HttpAnswer, HttpCall, NamedModel},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    catalogue::{FunctionSlot, ModelSlot, Receiver, Serving, wait_for},
    deploy::{Deployer, unknown_function, unknown_model},
    home::Homes,
    resource::{FunctionSpec, Manifest, group},
    stats::{Stats, lag, lock},
};

/// Calls that wait for one function, beyond those that run: what the default 16 finish in about the longest wait if each
/// takes 250 ms.
pub const WAITING_MAX: usize = 64;
pub const WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a deploy waits until this very node serves what was deployed.
const READY_WAIT: Duration = Duration::from_secs(5);
const LOG_LIMIT_DEFAULT: usize = 100;

/// The header that carries the manifest where the component is the body.
pub const MANIFEST_HEADER: &str = "x-buttress-function";

/// Names of headers that belong to one connection and are not passed on (RFC 9110, section 7.6.1).
const HOP_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

type Answer = Response<Bytes>;

/// Bounds the calls of one function.
struct Gate {
    limit: usize,
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Counts a waiting call for as long as it waits, also when its client goes away.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The routes of this plane.
pub struct FunctionsHttp {
    pub(crate) deployer: Deployer,
    pub(crate) catalogue: Receiver,
    pub(crate) stats: Arc<Stats>,
    pub(crate) homes: Homes,
    pub(crate) cluster: Arc<dyn Cluster>,
    gates: Mutex<BTreeMap<String, Arc<Gate>>>,
}

impl FunctionsHttp {
    pub(crate) fn new(
        deployer: Deployer,
        catalogue: Receiver,
        stats: Arc<Stats>,
        homes: Homes,
        cluster: Arc<dyn Cluster>,
    ) -> Self {
        Self { deployer, catalogue, stats, homes, cluster, gates: Mutex::default() }
    }

    /// Whether [`FunctionsHttp::route`] would answer this path. Saves a composition root from cloning requests.
    pub fn owns(&self, path: &str) -> bool {
        let under =
            |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        ["/v1/blobs", "/v1/functions", "/v1/models", "/fn"].into_iter().any(under)
            || self.catalogue.borrow().route(path).is_some()
    }

    /// Answers what is this plane's; `None` is for others.
    pub async fn route(&self, request: Request<Bytes>) -> Option<Answer> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let answer = match (parts.as_slice(), request.method().as_str()) {
            (["v1", "blobs"], "PUT" | "POST") => self.put_blob(request).await,
            (["v1", "blobs"], method) => Err(wrong_method(method, &path, "PUT")),
            (["v1", "blobs", ..], _) => Err(nothing_here(&path)),
            (["v1", "functions"], "GET") => Ok(self.list_functions()),
            (["v1", "functions"], method) => Err(wrong_method(method, &path, "GET")),
            (["v1", "functions", name], "PUT") => self.put_function(name, request).await,
            (["v1", "functions", name], "GET") => self.get_function(name),
            (["v1", "functions", name], "DELETE") => self.delete_function(name).await,
            (["v1", "functions", _], method) => Err(wrong_method(method, &path, "GET, PUT, DELETE")),
            (["v1", "functions", name, "logs"], "GET") => self.logs(name, request.uri().query()),
            (["v1", "functions", _, "logs"], method) => Err(wrong_method(method, &path, "GET")),
            (["v1", "functions", name, "invoke"], "POST") => self.invoke(name, request).await,
            (["v1", "functions", _, "invoke"], method) => Err(wrong_method(method, &path, "POST")),
            (["v1", "functions", ..], _) => Err(nothing_here(&path)),
            (["v1", "models"], "GET") => Ok(self.list_models()),
            (["v1", "models"], method) => Err(wrong_method(method, &path, "GET")),
            (["v1", "models", name], "PUT") => self.put_model(name, request).await,
            (["v1", "models", name], "GET") => self.get_model(name),
            (["v1", "models", _], method) => Err(wrong_method(method, &path, "GET, PUT")),
            (["v1", "models", ..], _) => Err(nothing_here(&path)),
            (["fn"], _) => Err(nothing_here(&path)),
            (["fn", name, ..], _) => self.call_by_name(name, request).await,
            _ => {
                let name = self.catalogue.borrow().route(&path).map(|slot| slot.wanted.spec.name.clone())?;
                let uri = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
                let method = request.method().clone();
                let (parts, body) = request.into_parts();
                self.call(&name, method, uri, &parts.headers, body).await
            }
        };
        Some(answer.unwrap_or_else(|error| error_answer(&error)))
    }

    async fn put_blob(&self, request: Request<Bytes>) -> Result<Answer, Error> {
        let digest = self.deployer.blob(request.body()).await?;
        Ok(json_answer(StatusCode::OK, &json!({"digest": digest, "size": request.body().len()})))
    }

    async fn put_function(&self, name: &str, request: Request<Bytes>) -> Result<Answer, Error> {
        let is_json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.split(';').next().is_some_and(|t| t.trim() == "application/json"));
        let (manifest, component) = match request.headers().get(MANIFEST_HEADER) {
            Some(manifest) => (Manifest::parse(manifest.as_bytes())?, Some(request.body().clone())),
            None if is_json => (Manifest::parse(request.body())?, None),
            None => {
                return Err(Error::new(Code::BAD_REQUEST, "no manifest is given").hint(
                    "send the manifest as application/json, or the component as the body with the manifest in X-Buttress-Function",
                ));
            }
        };
        let mut deployed = self.deployer.function(name, manifest, component).await?;
        let mut catalogue = self.catalogue.clone();
        let ready = wait_for(&mut catalogue, READY_WAIT, |snapshot| {
            let slot = snapshot.functions.get(name)?;
            if slot.wanted.revision.0 < deployed.revision {
                return None;
            }
            match (&slot.error, slot.current()) {
                (Some(error), _) => Some(Some(error.to_string())),
                (None, Some(_)) => Some(None),
                (None, None) => None,
            }
        });
        match ready.await {
            Some(None) => {}
            Some(Some(error)) => deployed.warnings.push(format!("this node cannot load it: {error}")),
            None => deployed.warnings.push("this node is still loading it".into()),
        }
        let status = match (deployed.version, deployed.unchanged) {
            (1, false) => StatusCode::CREATED,
            _ => StatusCode::OK,
        };
        Ok(json_answer(status, &deployed))
    }

    async fn delete_function(&self, name: &str) -> Result<Answer, Error> {
        let revision = self.deployer.remove_function(name).await?;
        Ok(json_answer(StatusCode::OK, &json!({"name": name, "deleted": true, "revision": revision.0})))
    }

    async fn put_model(&self, name: &str, request: Request<Bytes>) -> Result<Answer, Error> {
        let pushed = self.deployer.model(name, request.into_body()).await?;
        let status = match (pushed.generation, pushed.unchanged) {
            (1, false) => StatusCode::CREATED,
            _ => StatusCode::OK,
        };
        Ok(json_answer(status, &pushed))
    }

    fn list_functions(&self) -> Answer {
        let snapshot = self.catalogue.borrow().clone();
        let functions: Vec<Value> = snapshot.functions.values().map(|slot| self.describe(slot)).collect();
        json_answer(StatusCode::OK, &json!({"functions": functions}))
    }

    fn get_function(&self, name: &str) -> Result<Answer, Error> {
        let snapshot = self.catalogue.borrow().clone();
        let slot = snapshot.functions.get(name).ok_or_else(|| unknown_function(name))?;
        Ok(json_answer(StatusCode::OK, &self.describe(slot)))
    }

    fn list_models(&self) -> Answer {
        let snapshot = self.catalogue.borrow().clone();
        let models: Vec<Value> = snapshot.models.values().map(describe_model).collect();
        json_answer(StatusCode::OK, &json!({"models": models}))
    }

    fn get_model(&self, name: &str) -> Result<Answer, Error> {
        let snapshot = self.catalogue.borrow().clone();
        let slot = snapshot.models.get(name).ok_or_else(|| unknown_model(name))?;
        Ok(json_answer(StatusCode::OK, &describe_model(slot)))
    }

    fn describe(&self, slot: &FunctionSlot) -> Value {
        let spec = &slot.wanted.spec;
        let view = self.cluster.view();
        let leader = view.leader.and_then(|id| view.members.iter().find(|m| m.id == id));
        let stats = self.stats.function(&spec.name);
        let mut value = json!(spec);
        value["revision"] = json!(slot.wanted.revision.0);
        value["serving_version"] = json!(slot.serving.as_ref().map(|s| s.spec.version));
        value["state"] = json!(state(slot.current().is_some(), slot.error.is_some()));
        value["error"] = error_value(slot.error.as_ref());
        value["runs_on"] = json!(leader.map(|m| json!({"name": m.name, "http": m.http})));
        value["runs_here"] = json!(view.is_leader());
        if let Some(trigger) = &spec.trigger {
            let seen = stats.partitions();
            let found = self.homes.of(&trigger.topic);
            if let Some(claims) = found.as_ref().and_then(|(home, _)| home.claims.as_ref()) {
                // Each partition has a host of its own.
                value["engine"] = json!(claims.engine());
                value["runs_on"] = Value::Null;
                value["runs_here"] = Value::Null;
            }
            let partitions: Vec<Value> = found
                .iter()
                .flat_map(|(home, topic)| topic.partitions.iter().enumerate().map(move |(n, p)| (home, n, p)))
                .map(|(home, n, p)| {
                    let cursor = home.stream.cursor(&group(&spec.name), p.log);
                    let mut status = json!(seen.get(&(n as i32)).cloned().unwrap_or_default());
                    status["partition"] = json!(n);
                    status["cursor"] = json!(cursor.map(|c| c.0));
                    status["start"] = json!(p.start.0);
                    status["end"] = json!(p.end.0);
                    status["lag"] = json!(lag(p.start, p.end, cursor));
                    if let Some(claims) = &home.claims {
                        status["host"] = json!(claims.runs_on(&group(&spec.name), &trigger.topic, n as i32));
                        if cursor.is_none() {
                            // Whoever runs it knows.
                            status["lag"] = Value::Null;
                        }
                    }
                    status
                })
                .collect();
            value["partitions"] = json!(partitions);
        }
        value["counters"] = json!({
            "records": stats.records.load(Relaxed),
            "batches": stats.batches.load(Relaxed),
            "outputs": stats.outputs.load(Relaxed),
            "errors": stats.errors.load(Relaxed),
            "rescored": stats.rescored.load(Relaxed),
            "dead_letters": stats.dead_letters.load(Relaxed),
            "gaps": stats.gaps.load(Relaxed),
            "guest_ms": stats.guest_us.load(Relaxed) as f64 / 1_000.0,
            "http_requests": stats.http_requests.load(Relaxed),
            "http_errors": stats.http_errors.load(Relaxed),
            "http_refused": stats.http_refused.load(Relaxed),
        });
        value
    }

    fn logs(&self, name: &str, query: Option<&str>) -> Result<Answer, Error> {
        if !self.catalogue.borrow().functions.contains_key(name) {
            return Err(unknown_function(name));
        }
        let limit = match parameter(query, "limit")? {
            None => LOG_LIMIT_DEFAULT,
            Some(limit) => limit.parse().map_err(|_| {
                Error::new(Code::BAD_REQUEST, format!("limit '{limit}' is not a number")).hint("give as limit=100")
            })?,
        };
        let (lines, dropped) = self.stats.function(name).logs(limit);
        Ok(json_answer(StatusCode::OK, &json!({"lines": lines, "dropped": dropped})))
    }

    async fn invoke(&self, name: &str, request: Request<Bytes>) -> Result<Answer, Error> {
        let query = request.uri().query();
        let uri = parameter(query, "path")?.unwrap_or_else(|| "/".into());
        if !uri.starts_with('/') {
            return Err(Error::new(Code::BAD_REQUEST, format!("path '{uri}' does not start with '/'")));
        }
        let method = match parameter(query, "method")? {
            None => Method::POST,
            Some(method) => Method::from_bytes(method.to_ascii_uppercase().as_bytes())
                .map_err(|_| Error::new(Code::BAD_REQUEST, format!("'{method}' is not a method")))?,
        };
        let (parts, body) = request.into_parts();
        self.call(name, method, uri, &parts.headers, body).await
    }

    async fn call_by_name(&self, name: &str, request: Request<Bytes>) -> Result<Answer, Error> {
        let open = self.catalogue.borrow().functions.get(name).map(|slot| slot.wanted.spec.http);
        match open {
            None => return Err(unknown_function(name)),
            Some(false) => {
                return Err(Error::new(Code::NOT_FOUND, format!("function '{name}' does not answer HTTP"))
                    .hint(r#"deploy it with "http":true"#));
            }
            Some(true) => {}
        }
        let (parts, body) = request.into_parts();
        let whole = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        let rest = &whole["/fn/".len() + name.len()..];
        let uri = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
        self.call(name, parts.method, uri, &parts.headers, body).await
    }

    async fn call(
        &self,
        name: &str,
        method: Method,
        uri: String,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Answer, Error> {
        let mut catalogue = self.catalogue.clone();
        if !catalogue.borrow().functions.contains_key(name) {
            return Err(unknown_function(name));
        }
        let stats = self.stats.function(name);
        stats.http_requests.fetch_add(1, Relaxed);
        // Right after a deploy, or a restart, this node may still be compiling.
        let found = wait_for(&mut catalogue, WAIT_MAX, |snapshot| {
            let slot = snapshot.functions.get(name)?;
            match (&slot.serving, &slot.error) {
                (Some(serving), _) => Some(Ok((serving.clone(), models(serving, &snapshot.models)))),
                (None, Some(error)) => Some(Err(error.clone())),
                (None, None) => None,
            }
        })
        .await;
        let (function, models) = match found {
            Some(found) => found?,
            None => {
                stats.http_refused.fetch_add(1, Relaxed);
                let loading = Error::new(Code::OVERLOADED, format!("function '{name}' is being loaded"));
                return Err(loading
                    .hint("retry after a second; GET /v1/functions/NAME shows when it is ready")
                    .retryable());
            }
        };
        if !function.loaded.handles_http() {
            return Err(Error::new(
                Code::EXPORT_MISSING,
                format!("function '{name}' does not export 'wasi:http/incoming-handler'"),
            )
            .hint("it is only called by its topic"));
        }
        let permit = match self.enter(name, function.spec.limits.http_concurrency).await {
            Ok(permit) => permit,
            Err(answer) => {
                stats.http_refused.fetch_add(1, Relaxed);
                return Ok(answer);
            }
        };
        let call = HttpCall {
            method: method.as_str().to_owned(),
            uri,
            headers: headers
                .iter()
                .filter(|(name, _)| !HOP_HEADERS.contains(&name.as_str()) && name.as_str() != MANIFEST_HEADER)
                .map(|(name, value)| (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes())))
                .collect(),
            body,
            models,
            now_ms: self.cluster.now().0,
        };
        let version = function.spec.version;
        let begun = std::time::Instant::now();
        // Engines run guests on threads of their own.
        let result = function.loaded.call_http(call).await;
        drop(permit);
        stats.guest_us.fetch_add(begun.elapsed().as_micros() as u64, Relaxed);
        let now_ms = self.cluster.now().0;
        match result {
            Ok(mut answer) => {
                stats.log(now_ms, version, None, std::mem::take(&mut answer.logs));
                passed_on(name, version, answer)
            }
            Err(error) => {
                stats.http_errors.fetch_add(1, Relaxed);
                stats.log(now_ms, version, None, vec![GuestLog { level: "error", message: error.message.clone() }]);
                Err(error)
            }
        }
    }

    async fn enter(&self, name: &str, limit: usize) -> Result<OwnedSemaphorePermit, Answer> {
        let gate = {
            let mut gates = lock(&self.gates);
            match gates.get(name).filter(|gate| gate.limit == limit) {
                Some(gate) => gate.clone(),
                None => {
                    let gate = Arc::new(Gate {
                        limit,
                        running: Arc::new(Semaphore::new(limit)),
                        waiting: AtomicUsize::new(0),
                    });
                    gates.insert(name.to_owned(), gate.clone());
                    gate
                }
            }
        };
        if let Ok(permit) = gate.running.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let busy = |what: &str| {
            Error::new(Code::OVERLOADED, format!("function '{name}' is busy: {what}"))
                .hint(format!("retry after a second, or raise limits.http_concurrency above {limit}"))
                .retryable()
        };
        if gate.waiting.fetch_add(1, Relaxed) >= WAITING_MAX {
            gate.waiting.fetch_sub(1, Relaxed);
            return Err(error_answer_with(StatusCode::TOO_MANY_REQUESTS, &busy("too many calls wait already")));
        }
        let _waiting = Waiting(&gate.waiting);
        match tokio::time::timeout(WAIT_MAX, gate.running.clone().acquire_owned()).await {
            Ok(permit) => Ok(permit.expect("gates are never closed")),
            Err(_) => Err(error_answer(&busy("no call has ended in time"))),
        }
    }
}

fn models(function: &Serving<FunctionSpec, dyn Guest>, models: &BTreeMap<String, ModelSlot>) -> Vec<NamedModel> {
    let granted = function.spec.grants.models.iter();
    granted
        .filter_map(|name| {
            let serving = models.get(name)?.serving.as_ref()?;
            Some(NamedModel { name: name.clone(), generation: serving.spec.generation, model: serving.loaded.clone() })
        })
        .collect()
}

fn state(ready: bool, failed: bool) -> &'static str {
    match (ready, failed) {
        (_, true) => "failed",
        (true, false) => "ready",
        (false, false) => "loading",
    }
}

fn error_value(error: Option<&Error>) -> Value {
    error.map_or(Value::Null, |e| json!({"code": e.code.0, "message": e.message, "hint": e.hint}))
}

fn describe_model(slot: &ModelSlot) -> Value {
    let mut value = json!(slot.wanted.spec);
    value["revision"] = json!(slot.wanted.revision.0);
    value["serving_generation"] = json!(slot.serving.as_ref().map(|s| s.spec.generation));
    value["state"] = json!(state(slot.current().is_some(), slot.error.is_some()));
    value["error"] = error_value(slot.error.as_ref());
    if let Some(serving) = &slot.serving {
        let info = serving.loaded.info();
        value["features"] = json!(info.features);
        value["width"] = json!(info.width);
        value["outputs"] = json!(info.outputs);
    }
    value
}

/// The function's answer, as far as HTTP allows it.
fn passed_on(name: &str, version: u64, answer: HttpAnswer) -> Result<Answer, Error> {
    let wrong = |what: String| Error::new(Code::FUNCTION_FAILED, format!("function '{name}' answered {what}"));
    let status = StatusCode::from_u16(answer.status).map_err(|_| wrong(format!("status {}", answer.status)))?;
    let mut response = Response::new(answer.body);
    *response.status_mut() = status;
    for (key, value) in answer.headers {
        let key = HeaderName::from_bytes(key.as_bytes()).map_err(|_| wrong("a header that is none".into()))?;
        if HOP_HEADERS.contains(&key.as_str()) {
            continue;
        }
        let value = HeaderValue::from_bytes(&value).map_err(|_| wrong(format!("header '{key}' with bad bytes")))?;
        response.headers_mut().append(key, value);
    }
    if let Ok(served) = HeaderValue::from_str(&format!("{name}@{version}")) {
        response.headers_mut().insert("x-buttress-function", served);
    }
    Ok(response)
}

/// The status that fits a code.
pub fn status_of(code: Code) -> StatusCode {
    match code {
        Code::BAD_REQUEST | Code::TOPIC_INVALID => StatusCode::BAD_REQUEST,
        Code::IMPORT_NOT_GRANTED => StatusCode::FORBIDDEN,
        Code::FUNCTION_UNKNOWN | Code::MODEL_UNKNOWN | Code::NOT_FOUND | Code::TOPIC_UNKNOWN => StatusCode::NOT_FOUND,
        Code::METHOD => StatusCode::METHOD_NOT_ALLOWED,
        Code::REFUSED => StatusCode::CONFLICT,
        Code::TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        Code::COMPONENT_INVALID | Code::EXPORT_MISSING | Code::MODEL_INVALID | Code::MODEL_SHAPE => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        Code::TRAPPED | Code::FUNCTION_FAILED | Code::MEMORY_LIMIT => StatusCode::BAD_GATEWAY,
        Code::DEADLINE | Code::TIMEOUT => StatusCode::GATEWAY_TIMEOUT,
        Code::NO_LEADER | Code::OVERLOADED | Code::STOPPED | Code::UNREACHABLE => StatusCode::SERVICE_UNAVAILABLE,
        Code::UNSUPPORTED => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn error_answer(error: &Error) -> Answer {
    error_answer_with(status_of(error.code), error)
}

fn error_answer_with(status: StatusCode, error: &Error) -> Answer {
    let body = error_value(Some(error));
    let mut answer = json_answer(status, &body);
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

fn json_answer(status: StatusCode, body: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(body).expect("answers have string keys only");
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn wrong_method(method: &str, path: &str, allowed: &str) -> Error {
    Error::new(Code::METHOD, format!("'{path}' does not take {method}")).hint(format!("it takes {allowed}"))
}

fn nothing_here(path: &str) -> Error {
    Error::new(Code::NOT_FOUND, format!("nothing is served at '{path}'"))
        .hint("GET /v1/functions lists functions, GET /v1/models lists models")
}

/// One parameter of a query, decoded.
pub(crate) fn parameter(query: Option<&str>, name: &str) -> Result<Option<String>, Error> {
    for pair in query.unwrap_or_default().split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key == name {
            return percent_decoded(value).map(Some).ok_or_else(|| {
                Error::new(Code::BAD_REQUEST, format!("parameter '{name}' is not percent-encoded UTF-8"))
            });
        }
    }
    Ok(None)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |b: Option<u8>| (b? as char).to_digit(16);
                (digit(bytes.next())? * 16 + digit(bytes.next())?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        assert_eq!(parameter(Some("a=1&path=%2Finfer%3Fx=%C3%A4&b"), "path").unwrap().as_deref(), Some("/infer?x=ä"));
        assert_eq!(parameter(Some("b"), "b").unwrap().as_deref(), Some(""));
        assert_eq!(parameter(None, "b").unwrap(), None);
        for bad in ["p=%", "p=%4", "p=%zz", "p=%ff"] {
            assert!(parameter(Some(bad), "p").is_err(), "{bad}");
        }
    }
}
