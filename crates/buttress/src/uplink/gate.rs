//! Who of an uplink's lanes may send now: priorities and the cap on bytes a second.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress_core::{Cluster, TimeMs};
use buttress_uplink::{Bucket, Priority, Turns};
use tokio::sync::Notify;

/// Parcels on their way at once. With a cap it is one, so that an alert waits for one parcel at most.
const IN_FLIGHT_MAX: usize = 4;

struct State {
    turns: Turns,
    bucket: Bucket,
    in_flight: usize,
}

pub struct Gate {
    state: Mutex<State>,
    in_flight_max: usize,
    changed: Notify,
    cluster: Arc<dyn Cluster>,
}

/// A parcel is on its way for as long as this lives.
pub struct Pass<'a> {
    gate: &'a Gate,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.with(|state| state.in_flight -= 1);
        self.gate.changed.notify_waiters();
    }
}

/// Takes a lane that gives up out of the queue.
struct Queued<'a> {
    gate: &'a Gate,
    lane: u64,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.gate.with(|state| state.turns.leave(self.lane));
        self.gate.changed.notify_waiters();
    }
}

impl Gate {
    pub fn new(rate: Option<u64>, cluster: Arc<dyn Cluster>) -> Self {
        let bucket = Bucket::new(rate, cluster.now());
        let in_flight_max = if rate.is_some() { 1 } else { IN_FLIGHT_MAX };
        let state = State { turns: Turns::default(), bucket, in_flight: 0 };
        Self { state: Mutex::new(state), in_flight_max, changed: Notify::new(), cluster }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Waits for the lane's turn.
    pub async fn pass(&self, lane: u64, priority: Priority, bytes: usize) -> Pass<'_> {
        let _queued = Queued { gate: self, lane };
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = self.cluster.now();
            let wait = self.with(|state| {
                state.turns.ask(lane, priority);
                if state.in_flight >= self.in_flight_max || state.turns.next() != Some(lane) {
                    return Some(None);
                }
                let ready = state.bucket.ready_at(now);
                if ready > now {
                    return Some(Some(ready));
                }
                state.turns.go(lane, bytes);
                state.bucket.take(bytes, now);
                state.in_flight += 1;
                None
            });
            match wait {
                None => {
                    // Another one may have room, too.
                    self.changed.notify_waiters();
                    return Pass { gate: self };
                }
                Some(None) => changed.await,
                Some(Some(TimeMs(ready))) => {
                    let pause = Duration::from_millis(ready.saturating_sub(now.0));
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }
}
