//! `bench fn`: what a function costs.
//!
//! The same component (`guests/built/anomaly.wasm`) answers the same `POST /infer` twice: by the library path that
//! `wasmtime serve` takes (a precompiled component, `ProxyPre`, a store and a task per request, the pooling allocator,
//! epochs), and by `Guest::call_http`. Both evaluate the same model in the host, both are called with the same number
//! of requests in flight on the same runtime, in alternating rounds; the ratio is of the medians.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use buttress_core::{
    Engine, Guest, Model,
    guest::{BatchCall, Grants, GuestLimits, GuestRecord, HttpCall, NamedModel, StateReader},
};
use buttress_engine::{Options, WasmEngine};
use bytes::Bytes;
use http_body_util::BodyExt;
use wasmtime::component::{Component, ComponentType, Lift, Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{
    RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
    p2::bindings::{ProxyPre, http::types::Scheme},
};

use crate::detect;

const COMPONENT: &[u8] = include_bytes!("../../guests/built/anomaly.wasm");
const BODY: &[u8] = br#"{"samples":[[61.5,2.5],[62.0,2.6],[63.1,4.4]],"ts":1700000000000}"#;
/// Requests in flight.
const IN_FLIGHT: usize = 16;
/// Records per batch.
const BATCH: usize = 64;

struct Asked {
    rounds: usize,
    seconds: f64,
    json: bool,
}

fn parse(args: &[String]) -> Result<Asked> {
    let mut asked = Asked { rounds: 5, seconds: 2.0, json: false };
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        let value = args.next().with_context(|| format!("`{flag}` needs a value"))?;
        match flag.as_str() {
            "--rounds" => asked.rounds = value.parse().context("--rounds")?,
            "--seconds" => asked.seconds = value.parse().context("--seconds")?,
            "--output" if value == "json" => asked.json = true,
            "--output" if value == "table" => asked.json = false,
            _ => bail!("no such option: {flag} {value}"),
        }
    }
    if asked.rounds == 0 {
        bail!("--rounds must be at least 1");
    }
    Ok(asked)
}

pub fn run(args: &[String]) -> Result<()> {
    let asked = parse(args)?;
    let dir = tempfile::tempdir()?;
    let grants = Grants { models: vec![detect::MODEL.into()], topics: vec![detect::TOPIC.into()], state: true };
    let engine = engine(dir.path())?;
    let model = NamedModel { name: detect::MODEL.into(), generation: 1, model: model(100, 8)? };
    let started = Instant::now();
    let guest = engine.compile(COMPONENT, &grants, GuestLimits::default())?;
    let compile = started.elapsed();
    let resident_compiled = resident_mib()?;
    let resident_cached: f64 = {
        let output = std::process::Command::new(std::env::current_exe()?).arg("fn-at-rest").arg(dir.path()).output()?;
        String::from_utf8(output.stdout)?.trim().parse().context("the process at rest said nothing")?
    };

    let cold = cold_start(dir.path(), &grants, &model)?;
    let (theirs, ours) = requests(&asked, &guest, &model)?;
    let batches = batches(&guest, &model)?;
    let predict = predict(&*model.model);
    let ratio = ours / theirs;

    if asked.json {
        let object = serde_json::json!({
            "in_flight": IN_FLIGHT,
            "wasmtime_requests_per_s": theirs,
            "buttress_requests_per_s": ours,
            "ratio": ratio,
            "compile_ms": compile.as_secs_f64() * 1e3,
            "resident_mib": {"after_compiling": resident_compiled, "from_cache": resident_cached},
            "cold_start_ms": {"first": cold.first, "median": cold.median},
            "batch": {
                "records": BATCH,
                "wasm_us": batches.wasm,
                "native_us": batches.native,
                "slowdown": batches.wasm / batches.native,
                "empty_us": batches.empty,
                "core_share_at_10000_per_s": batches.wasm / BATCH as f64 / 100.0,
            },
            "predict_us": {"row": predict.0, "row_in_batch_of_64": predict.1},
        });
        println!("{object}");
        return Ok(());
    }
    println!("requests/s, {IN_FLIGHT} in flight, median of {} rounds", asked.rounds);
    println!("  wasmtime serve's path   {theirs:>10.0}");
    println!("  buttress                {ours:>10.0}");
    println!("  ratio                   {ratio:>10.2}   (wanted: 0.90)");
    println!("compile                   {:>10.1} ms", compile.as_secs_f64() * 1e3);
    println!("resident after compiling  {resident_compiled:>10.1} MiB");
    println!("resident, from the cache  {resident_cached:>10.1} MiB");
    println!("cold start, first         {:>10.2} ms   (cached machine code to first answer; wanted: 5)", cold.first);
    println!("cold start, median        {:>10.2} ms", cold.median);
    println!("batch of {BATCH} readings, 100 trees of depth 8");
    println!(
        "  in the sandbox          {:>10.1} µs   ({:.1} % of a core at 10,000 readings/s)",
        batches.wasm,
        batches.wasm / BATCH as f64
    );
    println!("  the same code natively  {:>10.1} µs   (slowdown {:.2})", batches.native, batches.wasm / batches.native);
    println!("  a batch of nothing      {:>10.1} µs", batches.empty);
    println!("model alone, one row      {:>10.2} µs", predict.0);
    println!("model alone, row in 64    {:>10.2} µs", predict.1);
    Ok(())
}

/// Prints what a process holds that took the flagship from the cache and answered once.
pub fn at_rest(args: &[String]) -> Result<()> {
    let [dir] = args else { bail!("fn-at-rest needs a directory") };
    let grants = Grants { models: vec![detect::MODEL.into()], topics: vec![], state: true };
    let model = NamedModel { name: detect::MODEL.into(), generation: 1, model: model(1, 1)? };
    let engine = engine(dir.as_ref())?;
    let guest = engine.compile(COMPONENT, &grants, GuestLimits::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let answer = runtime.block_on(guest.call_http(call(&model)))?;
    expect(answer.status, &answer.body)?;
    println!("{}", resident_mib()?);
    Ok(())
}

/// Memory of this process that is in RAM.
fn resident_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("only Linux tells")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}

fn engine(dir: &std::path::Path) -> Result<WasmEngine> {
    Ok(WasmEngine::new(Options { cache_dir: Some(dir.join("components")), ..Options::default() })?)
}

/// A full ensemble with thresholds spread over what the features usually are.
fn model(trees: usize, depth: u32) -> Result<Arc<dyn Model>> {
    let mut random = Random(7);
    let span = [(50.0, 80.0), (1.0, 5.0), (1200.0, 1800.0), (20.0, 60.0), (0.0, 250.0)];
    let inner = (1usize << depth) - 1;
    let trees: Vec<_> = (0..trees)
        .map(|_| {
            let nodes = 2 * inner + 1;
            let leaf = |node: usize| node >= inner;
            let feature: Vec<i64> = (0..nodes).map(|node| if leaf(node) { -1 } else { random.below(5) as i64 }).collect();
            let threshold: Vec<f64> = feature
                .iter()
                .map(|feature| span.get(*feature as usize).map_or(0.0, |(low, high)| low + (high - low) * random.unit()))
                .collect();
            let child = |by: usize| -> Vec<i64> {
                (0..nodes).map(|node| if leaf(node) { -1 } else { (2 * node + by) as i64 }).collect()
            };
            let value: Vec<f64> = (0..nodes).map(|_| random.unit() * 0.02 - 0.012).collect();
            serde_json::json!({"feature": feature, "threshold": threshold, "left": child(1), "right": child(2), "value": value})
        })
        .collect();
    let model = serde_json::json!({
        "format": "buttress.tree-ensemble/1",
        "features": ["temperature", "vibration", "speed", "torque", "wear"],
        "neutral": [62.0, 2.5, 1500.0, 40.0, 100.0],
        "objective": "logistic",
        "trees": trees,
    });
    Ok(buttress_engine::load_model(model.to_string().as_bytes())?)
}

/// xorshift: the same numbers every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct ColdStart {
    first: f64,
    median: f64,
}

/// From machine code on disk to the first answer: read, checked, loaded, linked, instantiated, asked.
fn cold_start(dir: &std::path::Path, grants: &Grants, model: &NamedModel) -> Result<ColdStart> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let engine = engine(dir)?;
    let mut times = Vec::new();
    for _ in 0..21 {
        let started = Instant::now();
        let guest = engine.compile(COMPONENT, grants, GuestLimits::default())?;
        let answer = runtime.block_on(guest.call_http(call(model)))?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
        expect(answer.status, &answer.body)?;
    }
    Ok(ColdStart { first: times[0], median: median(times) })
}

fn call(model: &NamedModel) -> HttpCall {
    HttpCall {
        method: "POST".into(),
        uri: "/infer".into(),
        headers: vec![("content-type".into(), Bytes::from_static(b"application/json"))],
        body: Bytes::from_static(BODY),
        models: vec![model.clone()],
        now_ms: 1_700_000_000_000,
    }
}

fn expect(status: u16, body: &[u8]) -> Result<()> {
    if status == 200 && body.starts_with(b"{\"anomaly\":") {
        return Ok(());
    }
    Err(anyhow!("answered {status}: {}", String::from_utf8_lossy(body)))
}

fn requests(asked: &Asked, guest: &Arc<dyn Guest>, model: &NamedModel) -> Result<(f64, f64)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let reference = Arc::new(Reference::new(Arc::clone(&model.model))?);
    let span = Duration::from_secs_f64(asked.seconds);
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for round in 0..=asked.rounds {
        let by_reference = {
            let reference = Arc::clone(&reference);
            runtime.block_on(drive(span, move || {
                let reference = Arc::clone(&reference);
                async move { reference.answer().await }
            }))?
        };
        let by_us = {
            let (guest, model) = (Arc::clone(guest), model.clone());
            runtime.block_on(drive(span, move || {
                let (guest, model) = (Arc::clone(&guest), model.clone());
                async move {
                    let answer = guest.call_http(call(&model)).await?;
                    expect(answer.status, &answer.body)
                }
            }))?
        };
        // The first round warms both.
        if round > 0 {
            eprintln!("round {round}: wasmtime {by_reference:.0}/s, buttress {by_us:.0}/s");
            theirs.push(by_reference);
            ours.push(by_us);
        }
    }
    Ok((median(theirs), median(ours)))
}

/// Keeps [`IN_FLIGHT`] requests going for `span`, and gives requests per second.
async fn drive<F, A>(span: Duration, ask: F) -> Result<f64>
where
    F: Fn() -> A + Clone + Send + 'static,
    A: Future<Output = Result<()>> + Send + 'static,
{
    let started = Instant::now();
    let tasks: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            let ask = ask.clone();
            tokio::spawn(async move {
                let mut answered = 0u64;
                while started.elapsed() < span {
                    ask().await?;
                    answered += 1;
                }
                Ok::<_, anyhow::Error>(answered)
            })
        })
        .collect();
    let mut answered = 0;
    for task in tasks {
        answered += task.await??;
    }
    Ok(answered as f64 / started.elapsed().as_secs_f64())
}

/// The library path of `wasmtime serve`.
struct Reference {
    engine: wasmtime::Engine,
    pre: ProxyPre<Host>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    model: Arc<dyn Model>,
}

struct Host {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Hooks,
    limits: wasmtime::StoreLimits,
    model: Arc<dyn Model>,
}

#[derive(Clone, Copy)]
struct Hooks;

type Sent = wasmtime_wasi_http::Result<(
    http::Response<WasiBody>,
    Box<dyn Future<Output = wasmtime_wasi_http::Result<()>> + Send>,
)>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        _: http::Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = wasmtime_wasi_http::Result<()>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(std::future::ready(Err(wasmtime_wasi_http::Error::HttpRequestDenied)))
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Host {
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

impl Reference {
    fn new(model: Arc<dyn Model>) -> Result<Self> {
        let mut config = wasmtime::Config::new();
        config.epoch_interruption(true);
        config.allocation_strategy(wasmtime::InstanceAllocationStrategy::pooling());
        let engine = wasmtime::Engine::new(&config).map_err(|error| plain(&error))?;
        let mut linker = Linker::<Host>::new(&engine);
        let linked = (|| {
            wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
            wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
            linker.instance("buttress:function/inference@0.1.0")?.func_wrap(
                "predict",
                |store: wasmtime::StoreContextMut<'_, Host>, (_, rows): (String, Vec<f32>)| {
                    let mut scores = Vec::new();
                    let answer =
                        store.data().model.predict(&rows, &mut scores).map(|()| scores).map_err(|error| error.message);
                    Ok((answer,))
                },
            )?;
            type Answer<T> = Result<T, String>;
            let mut state = linker.instance("buttress:function/state@0.1.0")?;
            state.func_wrap("get", |_, (_,): (Vec<u8>,)| Ok((Answer::<Option<Vec<u8>>>::Ok(None),)))?;
            state.func_wrap("set", |_, (_, _): (Vec<u8>, Vec<u8>)| Ok((Answer::<()>::Ok(()),)))?;
            state.func_wrap("delete", |_, (_,): (Vec<u8>,)| Ok((Answer::<()>::Ok(()),)))?;
            linker.instance("buttress:function/log@0.1.0")?.func_wrap("log", |_, (_, _): (Level, String)| Ok(()))?;
            let component = Component::from_binary(&engine, COMPONENT)?;
            ProxyPre::new(linker.instantiate_pre(&component)?)
        })();
        let pre = linked.map_err(|error| plain(&error))?;
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (ticking, stopped) = (engine.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
                ticking.increment_epoch();
            }
        });
        Ok(Self { engine, pre, stop, model })
    }

    /// One request, as `wasmtime serve` handles it: its store, its task, its answer through a channel.
    async fn answer(&self) -> Result<()> {
        let host = Host {
            table: ResourceTable::new(),
            wasi: WasiCtx::builder().build(),
            http: WasiHttpCtx::new(),
            hooks: Hooks,
            limits: wasmtime::StoreLimitsBuilder::new().memory_size(64 * 1024 * 1024).build(),
            model: Arc::clone(&self.model),
        };
        let mut store = wasmtime::Store::new(&self.engine, host);
        store.limiter(|host| &mut host.limits);
        store.set_epoch_deadline(100);
        let request = http::Request::builder()
            .method("POST")
            .uri("/infer")
            .header("content-type", "application/json")
            .header("host", "localhost")
            .body(http_body_util::Full::new(Bytes::from_static(BODY)))?;
        let (send, receive) = tokio::sync::oneshot::channel();
        let incoming =
            store.data_mut().http().new_incoming_request(Scheme::Http, request).map_err(|error| plain(&error))?;
        let out = store.data_mut().http().new_response_outparam(send).map_err(|error| plain(&error))?;
        let pre = self.pre.clone();
        let task = tokio::spawn(async move {
            let proxy = pre.instantiate_async(&mut store).await?;
            proxy.wasi_http_incoming_handler().call_handle(&mut store, incoming, out).await
        });
        let response = receive.await?.map_err(|code| anyhow!("the reference answered {code:?}"))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| anyhow!("the reference's body broke off: {error:?}"))?;
        task.await?.map_err(|error| plain(&error))?;
        expect(head.status.as_u16(), &body.to_bytes())
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

fn plain(error: &wasmtime::Error) -> anyhow::Error {
    anyhow!("{error:#}")
}

struct Batches {
    wasm: f64,
    native: f64,
    empty: f64,
}

#[derive(Default)]
struct State(BTreeMap<Bytes, Bytes>);

impl StateReader for State {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, String> {
        Ok(self.0.get(key).cloned())
    }
}

/// Readings as the demo sends them, one in a hundred of them bad.
fn readings(batch: usize) -> Vec<GuestRecord> {
    let mut random = Random(batch as u64 + 1);
    (0..BATCH)
        .map(|at| {
            let machine = random.below(10_000);
            let vibration = if random.below(100) == 0 { 6.0 } else { 1.0 + random.unit() * 3.0 };
            let value = format!(
                r#"{{"machine":"cnc-{machine:05}","seq":{batch},"ts":17000000{batch:05},"temperature":{:.2},"vibration":{vibration:.3},"speed":{:.1},"torque":{:.2},"wear":{:.1}}}"#,
                55.0 + random.unit() * 15.0,
                1300.0 + random.unit() * 400.0,
                30.0 + random.unit() * 20.0,
                random.unit() * 250.0,
            );
            GuestRecord {
                key: Bytes::from(format!("cnc-{machine:05}")),
                value: value.into(),
                timestamp_ms: 1_700_000_000_000,
                partition: 0,
                offset: (batch * BATCH + at) as i64,
            }
        })
        .collect()
}

/// Microseconds per batch: in the sandbox, natively, and in the sandbox with nothing to do.
fn batches(guest: &Arc<dyn Guest>, model: &NamedModel) -> Result<Batches> {
    const BATCHES: usize = 300;
    let inputs: Vec<_> = (0..BATCHES).map(readings).collect();
    let models = [model.clone()];
    let mut instance = guest.instance()?;
    let (mut wasm, mut native, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    let mut state = State::default();
    let mut native_host = NativeHost { model: Arc::clone(&model.model), state: BTreeMap::new(), changes: Vec::new() };
    for input in &inputs {
        let started = Instant::now();
        let outcome = instance.handle(BatchCall { records: input, models: &models, state: &mut state, now_ms: 0 })?;
        wasm.push(started.elapsed().as_secs_f64() * 1e6);

        let started = Instant::now();
        let records: Vec<_> = input
            .iter()
            .map(|record| detect::Record {
                key: &record.key,
                value: &record.value,
                timestamp_ms: record.timestamp_ms,
                partition: record.partition,
                offset: record.offset,
            })
            .collect();
        let anomalies = detect::handle(&mut native_host, &records).map_err(|problem| anyhow!(problem))?;
        native.push(started.elapsed().as_secs_f64() * 1e6);
        if anomalies.len() != outcome.outputs.len()
            || anomalies.iter().zip(&outcome.outputs).any(|(native, wasm)| native.value != wasm.value[..])
        {
            bail!("the sandbox and the machine disagree about a batch");
        }
        for (key, value) in outcome.state {
            state.0.insert(key, value.context("the flagship deletes nothing")?);
        }
        native_host.state.extend(native_host.changes.drain(..));

        let started = Instant::now();
        instance.handle(BatchCall { records: &[], models: &models, state: &mut state, now_ms: 0 })?;
        empty.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Batches { wasm: median(wasm), native: median(native), empty: median(empty) })
}

struct NativeHost {
    model: Arc<dyn Model>,
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    changes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl detect::Host for NativeHost {
    fn predict(&mut self, rows: &[f32]) -> Result<Vec<f32>, String> {
        let mut scores = Vec::new();
        self.model.predict(rows, &mut scores).map_err(|error| error.message)?;
        Ok(scores)
    }

    fn state_get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
        Ok(self.state.get(key).cloned())
    }

    fn state_set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        self.changes.push((key.to_vec(), value.to_vec()));
        Ok(())
    }

    fn warn(&mut self, _: &str) {}
}

/// Microseconds per row: alone, and in a batch.
fn predict(model: &dyn Model) -> (f64, f64) {
    let mut random = Random(3);
    let rows: Vec<f32> = (0..BATCH)
        .flat_map(|_| {
            [
                50.0 + random.unit() * 30.0,
                random.unit() * 6.0,
                1200.0 + random.unit() * 600.0,
                20.0 + random.unit() * 40.0,
                random.unit() * 250.0,
            ]
        })
        .map(|value| value as f32)
        .collect();
    let mut scores = Vec::new();
    let mut time = |rows: &[f32], width: usize| {
        let times = (0..200).map(|_| {
            scores.clear();
            let started = Instant::now();
            for rows in rows.chunks(width) {
                model.predict(rows, &mut scores).expect("rows of five");
            }
            started.elapsed().as_secs_f64() * 1e6 / BATCH as f64
        });
        median(times.collect())
    };
    (time(&rows, 5), time(&rows, BATCH * 5))
}
