//! What the tests share.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use buttress_core::{
    Engine, Error, Guest, Model,
    guest::{BatchCall, BatchInstance, BatchOutcome, Grants, GuestLimits, GuestRecord, NamedModel, StateReader},
};
use buttress_engine::{Options, WasmEngine};
use bytes::Bytes;

/// A component of `guests/built`.
pub fn built(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../guests/built").join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One engine for all tests. Its cache lives in the target directory and is keyed by content, so that only the first
/// run of a new component pays for a compiler that was built without optimisation.
pub fn engine() -> &'static WasmEngine {
    static ENGINE: OnceLock<WasmEngine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let cache_dir = Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("components"));
        WasmEngine::new(Options { cache_dir, ..Options::default() }).expect("an engine")
    })
}

pub fn grants() -> Grants {
    Grants {
        models: vec!["anomaly".into()],
        topics: vec!["out".into(), "faulty-out".into(), "machine-anomalies".into()],
        state: true,
    }
}

pub fn limits() -> GuestLimits {
    // A build without optimisation on a busy machine is slow; only the tests of the deadline itself lower it.
    GuestLimits { deadline_ms: 30_000, ..GuestLimits::default() }
}

pub fn guest(name: &str) -> Arc<dyn Guest> {
    engine().compile(&built(name), &grants(), limits()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Durable state in memory.
#[derive(Default)]
pub struct State {
    pub rows: BTreeMap<Bytes, Bytes>,
    pub broken: bool,
}

impl StateReader for State {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, String> {
        if self.broken { Err("the store is closed".into()) } else { Ok(self.rows.get(key).cloned()) }
    }
}

impl State {
    pub fn commit(&mut self, outcome: &BatchOutcome) {
        for (key, value) in &outcome.state {
            match value {
                Some(value) => self.rows.insert(key.clone(), value.clone()),
                None => self.rows.remove(key),
            };
        }
    }
}

pub fn records<T: AsRef<[u8]>>(values: &[T]) -> Vec<GuestRecord> {
    values
        .iter()
        .zip(10..)
        .map(|(value, offset)| GuestRecord {
            key: "k".into(),
            value: Bytes::copy_from_slice(value.as_ref()),
            timestamp_ms: 1_700_000_000_000,
            partition: 3,
            offset,
        })
        .collect()
}

/// Runs a batch and commits its state.
pub fn run(
    instance: &mut dyn BatchInstance,
    values: &[&str],
    models: &[NamedModel],
    state: &mut State,
) -> Result<BatchOutcome, Error> {
    let records = records(values);
    let outcome = instance.handle(BatchCall { records: &records, models, state, now_ms: 1_700_000_000_500 })?;
    state.commit(&outcome);
    Ok(outcome)
}

/// An outcome as a transcript.
pub fn shown(outcome: &Result<BatchOutcome, Error>) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    match outcome {
        Err(error) => format!("! {error}\n"),
        Ok(outcome) => {
            let mut shown = String::new();
            for output in &outcome.outputs {
                shown += &format!("> {} {}={}\n", output.topic, text(&output.key), text(&output.value));
            }
            for (key, value) in &outcome.state {
                shown += &format!("* {} {}\n", text(key), value.as_ref().map_or("deleted".into(), &text));
            }
            for log in &outcome.logs {
                shown += &format!("# {}: {}\n", log.level, log.message);
            }
            if !outcome.models_used.is_empty() {
                shown += &format!("? {}\n", outcome.models_used.join(", "));
            }
            shown
        }
    }
}

/// A model that answers 0.9 where vibration (the second of five features) is above 4, and 0.1 elsewhere.
pub fn model() -> NamedModel {
    let json = br#"{
        "format": "buttress.tree-ensemble/1",
        "features": ["temperature", "vibration", "speed", "torque", "wear"],
        "objective": "identity",
        "trees": [{"feature": [1, -1, -1], "threshold": [4, 0, 0], "left": [1, -1, -1], "right": [2, -1, -1], "value": [0, 0.1, 0.9]}]
    }"#;
    let model: Arc<dyn Model> = buttress_engine::load_model(json).expect("a model");
    NamedModel { name: "anomaly".into(), generation: 1, model }
}
