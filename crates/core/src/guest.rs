//! Functions as the functions plane sees them. `engine` implements these traits with wasmtime; tests with plain Rust.

use std::sync::Arc;

use bytes::Bytes;

use crate::{error::Error, ledger::BoxFuture, model::Model};

/// What a component may reach. Everything is denied unless named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Names of models that `inference.predict` may use.
    pub models: Vec<String>,
    /// Topics that the function may produce to.
    pub topics: Vec<String>,
    /// Whether `state` may be read and written.
    pub state: bool,
}

/// What one call may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLimits {
    pub memory_bytes_max: usize,
    pub deadline_ms: u64,
    /// Bytes of standard output, standard error and log lines kept per call.
    pub log_bytes_max: usize,
}

impl Default for GuestLimits {
    fn default() -> Self {
        Self { memory_bytes_max: 64 * 1024 * 1024, deadline_ms: 1_000, log_bytes_max: 16 * 1024 }
    }
}

/// Compiles components and loads models.
pub trait Engine: Send + Sync {
    /// Compiles a component, or takes it from the cache of precompiled ones, and checks its imports against `grants`.
    ///
    /// # Errors
    /// `COMPONENT_INVALID`, `IMPORT_NOT_GRANTED` (naming every unmet import), `EXPORT_MISSING`.
    fn compile(&self, component: &[u8], grants: &Grants, limits: GuestLimits) -> Result<Arc<dyn Guest>, Error>;

    /// Reads a model.
    ///
    /// # Errors
    /// `MODEL_INVALID` with what is wrong and where.
    fn load_model(&self, bytes: &[u8]) -> Result<Arc<dyn Model>, Error>;
}

/// A compiled component.
pub trait Guest: Send + Sync {
    /// `sha256:` and the hex digest of the component's bytes.
    fn digest(&self) -> &str;
    /// Whether it exports `handle-batch`.
    fn handles_batches(&self) -> bool;
    /// Whether it exports `wasi:http/incoming-handler`.
    fn handles_http(&self) -> bool;
    /// Starts a long-lived instance for one partition.
    fn instance(&self) -> Result<Box<dyn BatchInstance>, Error>;
    /// Answers one HTTP request on an instance of its own.
    fn call_http(&self, request: HttpCall) -> BoxFuture<'_, Result<HttpAnswer, Error>>;
}

/// One record as a function sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestRecord {
    pub key: Bytes,
    pub value: Bytes,
    /// Milliseconds since the Unix epoch: when the edge took the record.
    pub timestamp_ms: i64,
    pub partition: i32,
    pub offset: i64,
}

/// One record that a function gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestOutput {
    pub topic: String,
    pub key: Bytes,
    pub value: Bytes,
}

/// A model by the name under which a function asks for it.
#[derive(Clone)]
pub struct NamedModel {
    pub name: String,
    /// The generation that the commit will be guarded by.
    pub generation: u64,
    pub model: Arc<dyn Model>,
}

/// Reads the function's durable state; called from the thread that runs the guest, and may block it.
pub trait StateReader: Send {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, String>;
}

/// The input of one batch call.
pub struct BatchCall<'a> {
    pub records: &'a [GuestRecord],
    pub models: &'a [NamedModel],
    pub state: &'a mut dyn StateReader,
    /// The clock the guest sees.
    pub now_ms: u64,
}

/// What one batch call gave. Nothing of it has happened yet: the plane commits it in one entry or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchOutcome {
    pub outputs: Vec<GuestOutput>,
    /// State changes in the order made; `None` deletes. The last one of a key counts.
    pub state: Vec<(Bytes, Option<Bytes>)>,
    pub logs: Vec<GuestLog>,
    /// Names of the models that were asked.
    pub models_used: Vec<String>,
    /// Largest linear memory in bytes.
    pub memory_bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestLog {
    /// `trace`, `debug`, `info`, `warn`, `error`, `stdout`, `stderr`.
    pub level: &'static str,
    pub message: String,
}

/// A running instance of one function for one partition. After an error it must be dropped.
pub trait BatchInstance: Send {
    /// # Errors
    /// `TRAPPED`, `DEADLINE`, `MEMORY_LIMIT`, `FUNCTION_FAILED`.
    fn handle(&mut self, call: BatchCall<'_>) -> Result<BatchOutcome, Error>;
}

/// One HTTP request to a function, its body already read and bounded.
pub struct HttpCall {
    pub method: String,
    /// Path and query.
    pub uri: String,
    pub headers: Vec<(String, Bytes)>,
    pub body: Bytes,
    pub models: Vec<NamedModel>,
    pub now_ms: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpAnswer {
    pub status: u16,
    pub headers: Vec<(String, Bytes)>,
    pub body: Bytes,
    pub logs: Vec<GuestLog>,
}
