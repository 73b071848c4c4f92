//! Compiles components and hands out guests.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use buttress_core::{
    BoxFuture, Code, Engine, Error, Model,
    guest::{BatchInstance, Grants, Guest, GuestLimits, HttpAnswer, HttpCall},
};
use sha2::{Digest, Sha256};
use wasmtime::{
    Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig, Store,
    component::{Component, InstancePre, Linker},
};
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use super::{
    batch,
    cache::Cache,
    epoch::Clock,
    host::{self, Context},
    http::{self, Pool},
    imports::{self, Exports},
};

/// Largest component taken: a JavaScript runtime is 13 MB, a Python one 19 MB.
pub(crate) const COMPONENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Instances alive at once: 16 partitions of 32 functions, and the HTTP calls in flight. A slot costs address space
/// (4 GiB each, 2 TiB in all of the 128 TiB there are), and memory only once used.
const INSTANCES_MAX: u32 = 512;
/// Memory of a slot that stays resident after use, so that the next instance does not fault it in again.
const RESIDENT_BYTES: usize = 256 * 1024;
/// Native stack for guests; wasm itself may use half of it, the rest is for host functions.
const STACK_BYTES: usize = 1024 * 1024;
const WASM_STACK_BYTES: usize = 512 * 1024;

/// How an engine is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where machine code is kept. `None` compiles anew in every process.
    pub cache_dir: Option<PathBuf>,
    /// Threads that run HTTP calls.
    pub http_threads_max: usize,
    /// HTTP calls that may wait for a thread; more are refused as `OVERLOADED`.
    pub http_queue_max: usize,
    /// Instances from pools of memory, falling back to one by one where address space is short.
    pub pooling: bool,
}

impl Default for Options {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
        Self { cache_dir: None, http_threads_max: cores.clamp(2, 8), http_queue_max: 1024, pooling: true }
    }
}

/// What happened so far, for `/metrics`.
#[derive(Debug, Default)]
pub struct Counters {
    pub components_compiled: AtomicU64,
    pub components_from_cache: AtomicU64,
    pub instances_started: AtomicU64,
    pub batches: AtomicU64,
    pub batches_failed: AtomicU64,
    pub batch_micros: AtomicU64,
    pub http_calls: AtomicU64,
    pub http_calls_failed: AtomicU64,
    pub http_calls_refused: AtomicU64,
    pub http_micros: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

/// What all guests of one engine share.
pub(crate) struct Shared {
    pub(crate) engine: wasmtime::Engine,
    pub(crate) clock: Clock,
    pub(crate) counters: Counters,
    pub(crate) pool: Pool,
    linker: Linker<Context>,
    cache: Option<Cache>,
    /// Drives the timers of guests that sleep. Guests themselves never run on it.
    timers: Option<tokio::runtime::Runtime>,
}

impl Shared {
    pub(crate) fn timers(&self) -> &tokio::runtime::Handle {
        self.timers.as_ref().expect("there until the drop").handle()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A plain drop would block, and panic where this is dropped inside another runtime.
        if let Some(timers) = self.timers.take() {
            timers.shutdown_background();
        }
    }
}

/// The engine. Cheap to clone by `Arc`; one per process is enough.
pub struct WasmEngine {
    shared: Arc<Shared>,
    pooled: bool,
}

impl WasmEngine {
    /// # Errors
    /// `DISK` where the cache's directory cannot be made, `LIMITS` where the operating system refuses memory or threads.
    pub fn new(options: Options) -> Result<Self, Error> {
        let limit = |error: &dyn std::fmt::Display| {
            Error::new(Code::LIMITS, format!("the engine for functions cannot start: {error}"))
                .hint("raise the limits on address space (ulimit -v) and threads (ulimit -u)")
        };
        let pooled = options.pooling.then(|| wasmtime::Engine::new(&config(true))).and_then(|engine| match engine {
            Ok(engine) => Some(engine),
            Err(error) => {
                tracing::warn!(%error, "address space is short: instances are allocated one by one");
                None
            }
        });
        let (engine, pooled) = match pooled {
            Some(engine) => (engine, true),
            None => (wasmtime::Engine::new(&config(false)).map_err(|error| limit(&error))?, false),
        };
        let cache = match &options.cache_dir {
            None => None,
            Some(dir) => Some(Cache::open(dir, &engine).map_err(|error| {
                Error::new(Code::DISK, format!("the component cache `{}` cannot be opened: {error}", dir.display()))
            })?),
        };
        let linker = host::linker(&engine).map_err(|error| limit(&error))?;
        let timers = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("buttress-timers")
            .enable_time()
            .build()
            .map_err(|error| limit(&error))?;
        let clock = Clock::new(&engine);
        let pool = Pool::new(options.http_threads_max, options.http_queue_max);
        let shared = Shared { engine, clock, counters: Counters::default(), pool, linker, cache, timers: Some(timers) };
        Ok(Self { shared: Arc::new(shared), pooled })
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Whether instances come from the pool.
    pub fn is_pooled(&self) -> bool {
        self.pooled
    }

    /// Compiles as [`Engine::compile`] does, into the concrete type.
    fn guest(&self, bytes: &[u8], grants: &Grants, limits: GuestLimits) -> Result<WasmGuest, Error> {
        imports::check_header(bytes)?;
        if bytes.len() > COMPONENT_BYTES_MAX {
            return Err(Error::new(
                Code::COMPONENT_INVALID,
                format!("the component has {} bytes; at most {COMPONENT_BYTES_MAX} are taken", bytes.len()),
            ));
        }
        let shared = &self.shared;
        let digest = digest(bytes);
        let cached = shared.cache.as_ref().and_then(|cache| {
            let there = cache.load(&shared.engine, &digest)?;
            Counters::add(&shared.counters.components_from_cache, 1);
            Some(there)
        });
        let component = match cached {
            Some(component) => component,
            None => {
                let component = Component::from_binary(&shared.engine, bytes).map_err(|error| {
                    Error::new(Code::COMPONENT_INVALID, format!("the component does not compile: {}", detail(&error)))
                })?;
                Counters::add(&shared.counters.components_compiled, 1);
                if let Some(cache) = &shared.cache
                    && let Err(error) = cache.store(&digest, &component)
                {
                    // The function runs all the same; the next start compiles again.
                    tracing::warn!(%error, "the component cache cannot be written");
                }
                component
            }
        };
        imports::check(&component, grants)?;
        let exports = imports::exports(&component)?;
        let pre = shared.linker.instantiate_pre(&component).map_err(|error| {
            Error::new(Code::COMPONENT_INVALID, format!("the component's imports do not fit: {}", detail(&error)))
                .hint("build against WASI 0.2 and buttress:function@0.1.0")
        })?;
        let proxy = match exports.http {
            false => None,
            true => Some(ProxyPre::new(pre.clone()).map_err(|error| {
                Error::new(
                    Code::EXPORT_MISSING,
                    format!("`wasi:http/incoming-handler` does not fit: {}", detail(&error)),
                )
            })?),
        };
        let inner =
            Inner { shared: Arc::clone(shared), digest, grants: Arc::new(grants.clone()), limits, exports, pre, proxy };
        Ok(WasmGuest { inner: Arc::new(inner) })
    }
}

/// An error of wasmtime on one line, innermost cause last.
fn detail(error: &wasmtime::Error) -> String {
    super::failure::quote(&format!("{error:#}"))
}

/// `sha256:` and the hex digest.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        text += &format!("{byte:02x}");
    }
    text
}

fn config(pooling: bool) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .memory_init_cow(true)
        .async_stack_size(STACK_BYTES)
        .max_wasm_stack(WASM_STACK_BYTES)
        // Backtraces name functions, which needs no map from instructions to bytes of the component.
        .generate_address_map(false);
    if pooling {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(INSTANCES_MAX)
            .total_core_instances(INSTANCES_MAX * 8)
            .total_memories(INSTANCES_MAX)
            .total_tables(INSTANCES_MAX * 4)
            .total_stacks(INSTANCES_MAX)
            .max_core_instances_per_component(32)
            .max_memories_per_component(8)
            .max_tables_per_component(32)
            .max_memory_size(1 << 32)
            .max_unused_warm_slots(16)
            .linear_memory_keep_resident(RESIDENT_BYTES)
            .table_keep_resident(16 * 1024)
            .async_stack_keep_resident(16 * 1024)
            .pagemap_scan(Enabled::Auto);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    } else {
        // Address space is short: memories start small and move as they grow, at the price of bounds checks.
        config
            .memory_reservation(0)
            .memory_reservation_for_growth(1024 * 1024)
            .memory_guard_size(64 * 1024)
            .guard_before_linear_memory(false)
            .memory_may_move(true);
    }
    config
}

impl Engine for WasmEngine {
    fn compile(&self, component: &[u8], grants: &Grants, limits: GuestLimits) -> Result<Arc<dyn Guest>, Error> {
        Ok(Arc::new(self.guest(component, grants, limits)?))
    }

    fn load_model(&self, bytes: &[u8]) -> Result<Arc<dyn Model>, Error> {
        crate::model::load(bytes)
    }
}

/// A compiled component with its grants and limits.
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    digest: String,
    grants: Arc<Grants>,
    pub(crate) limits: GuestLimits,
    pub(crate) exports: Exports,
    pub(crate) pre: InstancePre<Context>,
    pub(crate) proxy: Option<ProxyPre<Context>>,
}

impl Inner {
    /// A store with everything limited, its deadline not yet set.
    pub(crate) fn store(&self) -> Store<Context> {
        let mut store = Store::new(&self.shared.engine, Context::new(Arc::clone(&self.grants), self.limits));
        store.limiter(|context| &mut context.memory);
        // A guest can name the same memory in many places of one answer; this bounds what we copy out of it.
        store.set_hostcall_fuel(2 * buttress_core::limits::ENTRY_BYTES_MAX);
        store
    }
}

struct WasmGuest {
    inner: Arc<Inner>,
}

impl Guest for WasmGuest {
    fn digest(&self) -> &str {
        &self.inner.digest
    }

    fn handles_batches(&self) -> bool {
        self.inner.exports.batches
    }

    fn handles_http(&self) -> bool {
        self.inner.exports.http
    }

    fn instance(&self) -> Result<Box<dyn BatchInstance>, Error> {
        Ok(Box::new(batch::Instance::start(Arc::clone(&self.inner))?))
    }

    fn call_http(&self, request: HttpCall) -> BoxFuture<'_, Result<HttpAnswer, Error>> {
        http::call(Arc::clone(&self.inner), request)
    }
}
