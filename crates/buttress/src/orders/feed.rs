//! What the live page and the terminal show: one snapshot, replaced twice a second.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;

use super::{
    judge::Report,
    schedule::Window,
    shape::{Role, Side},
};
use crate::demo::feed::now_ms;

const EVENTS_MAX: usize = 100;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    #[default]
    Starting,
    Playing,
    Draining,
    Checking,
    Done,
    Failed,
}

impl Phase {
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Playing => "playing",
            Self::Draining => "draining",
            Self::Checking => "checking",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct EventView {
    pub at_s: f64,
    pub kind: &'static str,
    pub text: String,
}

/// The orders that were sent in one second.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Second {
    pub sent: u64,
    pub good: u64,
    pub late: u64,
    pub failed: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct PartView {
    pub up: bool,
    pub waiting: u64,
    /// Requests in the last second.
    pub rate: f64,
    /// What is wrong with it, in a word.
    pub fault: Option<String>,
    /// Of the proxy before it.
    pub breaker: Option<String>,
    pub limit: Option<u64>,
    pub retries: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct SideView {
    pub placed: u64,
    pub completed: u64,
    pub compensated: u64,
    pub open: u64,
    pub good: u64,
    pub late: u64,
    pub failed: u64,
    pub goodput: f64,
    pub p99_ms: Option<f64>,
    pub calls: u64,
    pub attempts: u64,
    pub parts: BTreeMap<Role, PartView>,
    pub seconds: Vec<Second>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    pub phase: Phase,
    pub elapsed_s: f64,
    pub duration_s: f64,
    pub rate: f64,
    pub seed: u64,
    pub leader: Option<String>,
    pub sides: BTreeMap<Side, SideView>,
    pub windows: Vec<Window>,
    pub events: Vec<EventView>,
    /// Pages of the proxies.
    pub proxies: BTreeMap<Role, String>,
    pub report: Option<Report>,
}

#[derive(Default)]
pub struct Feed {
    snapshot: Mutex<Snapshot>,
    /// When the load began, in milliseconds since the epoch; 0 before.
    started_ms: AtomicU64,
}

impl Feed {
    pub fn start_clock(&self) -> f64 {
        let now = now_ms();
        self.started_ms.store(now as u64, Ordering::Relaxed);
        now
    }

    pub fn at_s(&self) -> f64 {
        match self.started_ms.load(Ordering::Relaxed) {
            0 => 0.0,
            started => ((now_ms() - started as f64) / 100.0).round() / 10.0,
        }
    }

    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.snapshot.lock().expect("no panic under this lock"));
    }

    pub fn phase(&self, phase: Phase) {
        self.update(|snapshot| snapshot.phase = phase);
    }

    pub fn event(&self, kind: &'static str, text: impl Into<String>) {
        let event = EventView { at_s: self.at_s(), kind, text: text.into() };
        self.update(|snapshot| {
            if snapshot.events.len() < EVENTS_MAX {
                snapshot.events.push(event);
            }
        });
    }

    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.lock().expect("no panic under this lock").clone()
    }

    pub fn json(&self) -> String {
        serde_json::to_string(&*self.snapshot.lock().expect("no panic under this lock")).expect("it is plain data")
    }
}
