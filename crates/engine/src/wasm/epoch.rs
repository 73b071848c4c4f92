//! The clock behind deadlines: a thread that moves wasmtime's epoch on every 10 ms while guests run.
//!
//! Compiled code compares the epoch with its deadline at every loop and call. A node at rest must not wake a hundred
//! times a second, so the thread starts with the first call and parks when no guest has run for a while.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    thread::Thread,
    time::Duration,
};

pub(crate) const TICK_MS: u64 = 10;
/// Ticks without a guest before the thread parks: one second.
const IDLE_TICKS_MAX: u32 = 100;

pub(crate) struct Clock {
    shared: Arc<Shared>,
    thread: OnceLock<Thread>,
}

struct Shared {
    engine: wasmtime::EngineWeak,
    running: AtomicUsize,
}

/// While this lives, the epoch moves.
pub(crate) struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Release);
    }
}

impl Clock {
    pub(crate) fn new(engine: &wasmtime::Engine) -> Self {
        let shared = Arc::new(Shared { engine: engine.weak(), running: AtomicUsize::new(0) });
        Self { shared, thread: OnceLock::new() }
    }

    /// Keeps the epoch moving until the guard is dropped.
    pub(crate) fn run(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, Ordering::AcqRel);
        self.thread
            .get_or_init(|| {
                let shared = Arc::downgrade(&self.shared);
                std::thread::Builder::new()
                    .name("buttress-epoch".into())
                    .spawn(move || tick(&shared))
                    .expect("the operating system has a thread left")
                    .thread()
                    .clone()
            })
            .unpark();
        Running(&self.shared)
    }

    /// The number of ticks after which a call that may take `deadline_ms` is over.
    pub(crate) fn ticks(deadline_ms: u64) -> u64 {
        // The first tick may come at once.
        deadline_ms.div_ceil(TICK_MS) + 1
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

fn tick(shared: &Weak<Shared>) {
    let mut idle = 0;
    loop {
        std::thread::sleep(Duration::from_millis(TICK_MS));
        {
            let Some(shared) = shared.upgrade() else { return };
            let Some(engine) = shared.engine.upgrade() else { return };
            engine.increment_epoch();
            idle = if shared.running.load(Ordering::Acquire) == 0 { idle + 1 } else { 0 };
        }
        if idle >= IDLE_TICKS_MAX {
            // A call between the check and this line has unparked us already, so no wake-up is lost.
            std::thread::park();
            idle = 0;
        }
    }
}
