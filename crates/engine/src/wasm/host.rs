//! The data of a store, its limits, and the functions that a guest may call.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use buttress_core::{
    guest::{Grants, GuestLimits, NamedModel},
    limits,
};
use bytes::Bytes;
use wasmtime::{
    StoreContextMut,
    component::{ComponentType, Lift, Linker, ResourceTable},
};
use wasmtime_wasi::{HostWallClock, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

use super::{failure::quote, lend::Lent, output::Output};

/// State changes of one batch: a part of the entry each.
const STATE_CHANGES_MAX: usize = limits::ENTRY_PARTS_MAX;
/// Bytes of state changes of one batch: half an entry, so that the outputs have the other half.
const STATE_BYTES_MAX: usize = limits::ENTRY_BYTES_MAX / 2;

/// Counts linear memory, so that reaching the limit can be told from any other trap.
pub(crate) struct Memory {
    pub(crate) bytes_max: usize,
    pub(crate) bytes: usize,
    /// A growth was refused since the call started.
    pub(crate) refused: bool,
}

/// Table elements that one store may have; a table is as much memory as any other.
const TABLE_ELEMENTS_MAX: usize = 100_000;

impl wasmtime::ResourceLimiter for Memory {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let bytes = self.bytes.saturating_add(desired.saturating_sub(current));
        if bytes > self.bytes_max {
            self.refused = true;
            return Ok(false);
        }
        self.bytes = bytes;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }
}

/// The wall clock of a guest stands at the time its call was given.
#[derive(Clone, Default)]
struct Wall(Arc<AtomicU64>);

impl HostWallClock for Wall {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// Requests of the guest's own are not linked; this answers should a future version of the linker reach it.
#[derive(Clone, Copy, Default)]
pub(crate) struct NoRequests;

type Sent = wasmtime_wasi_http::Result<(
    ::http::Response<WasiBody>,
    Box<dyn Future<Output = wasmtime_wasi_http::Result<()>> + Send>,
)>;

impl WasiHttpHooks for NoRequests {
    fn send_request(
        &mut self,
        _: ::http::Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = wasmtime_wasi_http::Result<()>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(std::future::ready(Err(wasmtime_wasi_http::Error::HttpRequestDenied)))
    }
}

/// The data of one store.
pub(crate) struct Context {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: NoRequests,
    wall: Wall,
    pub(crate) output: Output,
    pub(crate) memory: Memory,
    grants: Arc<Grants>,
    pub(crate) deadline_ms: u64,
    log_bytes_max: usize,
    models: Vec<NamedModel>,
    pub(crate) models_used: Vec<String>,
    pub(crate) state: Lent,
    /// What this batch has changed so far: a guest reads its own writes.
    state_new: BTreeMap<Bytes, Option<Bytes>>,
    pub(crate) state_changes: Vec<(Bytes, Option<Bytes>)>,
    state_bytes: usize,
    /// A read of the durable state failed: whatever the guest made of it, the batch must not happen.
    pub(crate) state_problem: Option<String>,
}

impl Context {
    pub(crate) fn new(grants: Arc<Grants>, limits: GuestLimits) -> Self {
        let output = Output::default();
        output.start(limits.log_bytes_max);
        let wall = Wall::default();
        let wasi = WasiCtx::builder()
            .stdout(output.stream(0))
            .stderr(output.stream(1))
            .wall_clock(wall.clone())
            .allow_tcp(false)
            .allow_udp(false)
            .build();
        Self {
            table: ResourceTable::new(),
            wasi,
            http: WasiHttpCtx::new(),
            hooks: NoRequests,
            wall,
            output,
            memory: Memory { bytes_max: limits.memory_bytes_max, bytes: 0, refused: false },
            grants,
            deadline_ms: limits.deadline_ms,
            log_bytes_max: limits.log_bytes_max,
            models: Vec::new(),
            models_used: Vec::new(),
            state: Lent::default(),
            state_new: BTreeMap::new(),
            state_changes: Vec::new(),
            state_bytes: 0,
            state_problem: None,
        }
    }

    /// Forgets the last call and takes what the next one may use.
    pub(crate) fn start(&mut self, models: &[NamedModel], now_ms: u64) {
        self.wall.0.store(now_ms, Ordering::Relaxed);
        self.output.start(self.log_bytes_max);
        self.memory.refused = false;
        self.models = models.to_vec();
        self.models_used.clear();
        self.state_new.clear();
        self.state_changes.clear();
        self.state_bytes = 0;
        self.state_problem = None;
    }

    pub(crate) fn may_produce_to(&self, topic: &str) -> bool {
        self.grants.topics.iter().any(|granted| granted == topic)
    }

    fn predict(&mut self, name: &str, rows: &[f32]) -> Result<Vec<f32>, String> {
        if !self.grants.models.iter().any(|granted| granted == name) {
            return Err(format!("model `{}` is not granted to this function", quote(name)));
        }
        let Some(found) = self.models.iter().find(|model| model.name == name) else {
            return Err(format!("model `{name}` is granted, but nothing of this name was pushed yet"));
        };
        if !self.models_used.iter().any(|used| used == name) {
            self.models_used.push(name.to_owned());
        }
        let mut scores = Vec::new();
        found.model.predict(rows, &mut scores).map_err(|error| error.message)?;
        Ok(scores)
    }

    fn state_get(&mut self, key: Vec<u8>) -> Result<Option<Vec<u8>>, String> {
        if let Some(value) = self.state_new.get(key.as_slice()) {
            return Ok(value.as_ref().map(|value| value.to_vec()));
        }
        let Some(reader) = self.state.get() else { return Err(NO_STATE.into()) };
        match reader.get(&key) {
            Ok(value) => Ok(value.map(Vec::from)),
            Err(problem) => {
                self.state_problem = Some(problem.clone());
                Err(problem)
            }
        }
    }

    fn state_change(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> Result<(), String> {
        if self.state.get().is_none() {
            return Err(NO_STATE.into());
        }
        if key.len() > limits::KEY_BYTES_MAX {
            return Err(format!("a key of {} bytes is larger than {}", key.len(), limits::KEY_BYTES_MAX));
        }
        let value_bytes = value.as_ref().map_or(0, Vec::len);
        if value_bytes > limits::VALUE_BYTES_MAX {
            return Err(format!("a value of {value_bytes} bytes is larger than {}", limits::VALUE_BYTES_MAX));
        }
        let bytes = self.state_bytes + key.len() + value_bytes;
        if bytes > STATE_BYTES_MAX || self.state_changes.len() == STATE_CHANGES_MAX {
            return Err(format!(
                "a batch may change at most {STATE_CHANGES_MAX} keys and {STATE_BYTES_MAX} bytes of state"
            ));
        }
        self.state_bytes = bytes;
        let (key, value) = (Bytes::from(key), value.map(Bytes::from));
        self.state_new.insert(key.clone(), value.clone());
        self.state_changes.push((key, value));
        Ok(())
    }
}

const NO_STATE: &str = "state is not available to HTTP calls";

impl WasiView for Context {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Context {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "the variants are made by lifting")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

/// Everything that any guest can be granted. What one component may really import is checked before it is linked.
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Context>> {
    type Store<'a> = StoreContextMut<'a, Context>;
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;

    linker
        .instance("buttress:function/inference@0.1.0")?
        .func_wrap("predict", |mut store: Store<'_>, (model, rows): (String, Vec<f32>)| {
            Ok((store.data_mut().predict(&model, &rows),))
        })?;
    let mut state = linker.instance("buttress:function/state@0.1.0")?;
    state.func_wrap("get", |mut store: Store<'_>, (key,): (Vec<u8>,)| Ok((store.data_mut().state_get(key),)))?;
    state.func_wrap("set", |mut store: Store<'_>, (key, value): (Vec<u8>, Vec<u8>)| {
        Ok((store.data_mut().state_change(key, Some(value)),))
    })?;
    state.func_wrap("delete", |mut store: Store<'_>, (key,): (Vec<u8>,)| {
        Ok((store.data_mut().state_change(key, None),))
    })?;
    linker.instance("buttress:function/log@0.1.0")?.func_wrap(
        "log",
        |store: Store<'_>, (level, message): (Level, String)| {
            let level = match level {
                Level::Trace => "trace",
                Level::Debug => "debug",
                Level::Info => "info",
                Level::Warn => "warn",
                Level::Error => "error",
            };
            store.data().output.log(level, &message);
            Ok(())
        },
    )?;
    Ok(linker)
}
