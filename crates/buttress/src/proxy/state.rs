//! What became of the routes that a proxy was given last, for the page, metrics and the log.

use std::{
    collections::BTreeMap,
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
    /// Resources of the store that are not taken up, as they were told last.
    unwell: Mutex<BTreeMap<String, String>>,
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

    /// What of the store is not taken up and why, by its name; all else holds. Tells of each once, and when it got well;
    /// gives how many are told of now.
    pub fn unwell(&self, now: BTreeMap<String, String>) -> usize {
        let mut before = self.unwell.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = 0;
        for (what, problem) in now.iter().filter(|(what, problem)| before.get(*what) != Some(*problem)) {
            tracing::error!("{what} stays as it was: {problem}");
            self.refused.fetch_add(1, Relaxed);
            told += 1;
        }
        for what in before.keys().filter(|what| !now.contains_key(*what)) {
            tracing::warn!("{what} is well again, or gone");
        }
        let all: Vec<String> = now.iter().map(|(what, problem)| format!("{what}: {problem}")).collect();
        *self.lock() = (!all.is_empty()).then(|| all.join("\n"));
        *before = now;
        told
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_counted_when_it_changes_and_gone_when_it_is_well() {
        let (state, unwell) = (State::new(), |says: &str| BTreeMap::from([("route \"a\"".into(), says.to_owned())]));
        for (now, refused) in [(unwell("x"), 1), (unwell("x"), 1), (unwell("y"), 2)] {
            let _ = state.unwell(now);
            assert_eq!(state.json()["refused"], refused);
        }
        assert_eq!(state.json()["problem"], "route \"a\": y");
        assert_eq!(state.unwell(BTreeMap::new()), 0);
        assert!(state.json()["problem"].is_null());
    }
}
