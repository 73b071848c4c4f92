//! The thread that makes commits durable: it takes everything that has queued, writes and syncs it once, and says so.
//!
//! The queue has no timer and no count limit; its bytes are visible in [`Writer::queued_bytes`], and whoever proposes
//! holds back above a limit of its own. One commit takes at most [`COMMIT_BYTES_MAX`], so that a backlog still
//! acknowledges its head early.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, atomic::Ordering::Relaxed},
    thread::JoinHandle,
};

use buttress_core::{Code, Error, Index};

use super::{Batch, HardState, LogEntry, Marker, Wal, WalStats};

/// Bytes that one sync takes, unless a single job is larger: beyond it a sync costs what its bytes cost, and each of them is
/// copied into the frame.
pub const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Something to make durable. Within a job the marker comes first, then entries, then the hard state.
#[derive(Clone, Debug, Default)]
pub struct Job {
    pub shard: u32,
    /// Given back in [`Event::Synced`].
    pub ticket: u64,
    pub hard_state: Option<HardState>,
    pub marker: Option<Marker>,
    pub entries: Vec<LogEntry>,
}

impl Job {
    /// About what the job takes in the log.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|e| e.data.len() as u64 + 32).sum::<u64>() + 64
    }

    pub fn add_to(&self, batch: &mut Batch) {
        if let Some(marker) = &self.marker {
            batch.marker(self.shard, marker);
        }
        for entry in &self.entries {
            batch.entry(self.shard, entry);
        }
        if let Some(state) = self.hard_state {
            batch.hard_state(self.shard, state);
        }
    }
}

/// What the thread reports. After `Failed` nothing comes any more, and no ticket that was not reported is durable for sure.
#[derive(Clone, Debug)]
pub enum Event {
    /// Shards and tickets, in the order of their submission.
    Synced(Vec<(u32, u64)>),
    Failed(Error),
}

enum Work {
    Job(Job),
    Forget { shard: u32, before: Index },
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
    stats: Arc<WalStats>,
}

/// A handle on the thread. Dropping it makes durable what was submitted, then stops the thread.
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. `on_event` runs on it and should only hand the event over.
    ///
    /// # Errors
    /// `LIMITS` where the operating system gives no thread.
    pub fn spawn(wal: Wal, mut on_event: impl FnMut(Event) + Send + 'static) -> Result<Self, Error> {
        let shared = Arc::new(Shared { queue: Mutex::default(), ready: Condvar::new(), stats: wal.stats() });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("wal".into())
            .spawn(move || {
                // Our own bug must not leave a node alive that waits for its log for ever.
                let run = std::panic::AssertUnwindSafe(|| run(wal, &theirs, &mut on_event));
                if std::panic::catch_unwind(run).is_err() {
                    on_event(Event::Failed(Error::new(Code::DISK, "the log's thread panicked")));
                }
            })
            .map_err(|e| Error::new(Code::LIMITS, format!("cannot start the log's thread: {e}")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues a job; never blocks.
    pub fn submit(&self, job: Job) {
        self.shared.stats.queued_bytes.fetch_add(job.bytes(), Relaxed);
        self.push(Work::Job(job));
    }

    /// Queues a [`Wal::forget_before`], behind what was submitted.
    pub fn forget_before(&self, shard: u32, before: Index) {
        self.push(Work::Forget { shard, before });
    }

    fn push(&self, work: Work) {
        self.shared.queue.lock().expect("the queue's users do not panic").work.push_back(work);
        self.shared.ready.notify_one();
    }

    /// Bytes handed over and not yet on disk.
    pub fn queued_bytes(&self) -> u64 {
        self.shared.stats.queued_bytes.load(Relaxed)
    }

    pub fn stats(&self) -> Arc<WalStats> {
        self.shared.stats.clone()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.lock().expect("the queue's users do not panic").closed = true;
        self.shared.ready.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut wal: Wal, shared: &Shared, on_event: &mut impl FnMut(Event)) {
    let mut batch = Batch::default();
    let mut tickets = Vec::new();
    let mut forget: Vec<(u32, Index)> = Vec::new();
    loop {
        let mut bytes = 0;
        {
            let mut queue = shared.queue.lock().expect("the queue's users do not panic");
            while queue.work.is_empty() && !queue.closed {
                queue = shared.ready.wait(queue).expect("the queue's users do not panic");
            }
            if queue.work.is_empty() {
                return;
            }
            // Jobs are moved out under the lock and encoded behind it, so that submitting never waits for a copy.
            let mut taken = Vec::new();
            while let Some(work) = queue.work.front() {
                if let Work::Job(job) = work
                    && bytes > 0
                    && bytes + job.bytes() > COMMIT_BYTES_MAX as u64
                {
                    break;
                }
                match queue.work.pop_front().expect("the front was just there") {
                    Work::Job(job) => {
                        bytes += job.bytes();
                        taken.push(job);
                    }
                    Work::Forget { shard, before } => forget.push((shard, before)),
                }
            }
            drop(queue);
            batch.reserve(bytes as usize);
            for job in taken {
                job.add_to(&mut batch);
                tickets.push((job.shard, job.ticket));
            }
        }
        let result = wal.commit(&mut batch).and_then(|()| {
            shared.stats.jobs.fetch_add(tickets.len() as u64, Relaxed);
            shared.stats.queued_bytes.fetch_sub(bytes, Relaxed);
            if !tickets.is_empty() {
                on_event(Event::Synced(std::mem::take(&mut tickets)));
            }
            batch.clear();
            forget.drain(..).try_for_each(|(shard, before)| wal.forget_before(shard, before).map(drop))
        });
        if let Err(error) = result {
            tracing::error!(code = error.code.0, error = %error, "the log failed");
            on_event(Event::Failed(error));
            return;
        }
    }
}
