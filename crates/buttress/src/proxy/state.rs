//! What became of the routes that a proxy was given last, for the page, metrics and the log.

use std::{
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

#[derive(Debug, Default)]
pub struct State {
    loaded: AtomicU64,
    refused: AtomicU64,
    /// Why the newest routes were not taken; none where they were.
    problem: Mutex<Option<String>>,
    loaded_at_ms: AtomicU64,
}

impl State {
    /// The routes of the start hold.
    pub fn new() -> Self {
        let state = Self::default();
        state.loaded_at_ms.store(unix_ms(), Relaxed);
        state
    }

    pub fn loaded(&self, generation: u64) {
        tracing::warn!(generation, "the routes were changed");
        self.loaded.fetch_add(1, Relaxed);
        self.loaded_at_ms.store(unix_ms(), Relaxed);
        *self.lock() = None;
    }

    pub fn refused(&self, problem: &str) {
        tracing::error!("the routes stay as they were: {problem}");
        self.refused.fetch_add(1, Relaxed);
        *self.lock() = Some(problem.to_owned());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn json(&self) -> Value {
        json!({
            "loads": self.loaded.load(Relaxed), "refused": self.refused.load(Relaxed),
            "loaded_at_ms": self.loaded_at_ms.load(Relaxed), "problem": *self.lock(),
        })
    }

    pub fn prometheus(&self, out: &mut String) {
        let (name, loads) = ("buttress_traffic_config_loads_total", self.loaded.load(Relaxed));
        let _ = writeln!(
            out,
            "# HELP {name} Changes of the routes that were taken up.\n# TYPE {name} counter\n{name} {loads}"
        );
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
