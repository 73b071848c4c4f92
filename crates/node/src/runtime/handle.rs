//! The node as planes and edges see it: [`Ledger`], [`Stream`] and [`Cluster`].

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};

use buttress_core::{
    Cluster, Code, Consistency, Entry, Error, Index, KeyRange, Ledger, LogId, Offset, Receipt, Revision, Scope, Stream,
    SubmitError, TimeMs,
    ledger::{BoxFuture, ClusterView, Fetched, KeyEvent, KeyValues, PartitionView, TopicView, Watch},
    limits::{ENTRY_BYTES_MAX, ENTRY_PARTS_MAX},
};

use buttress_state::KeyEvents;

use super::{
    core_loop::{Command, Machine, unknown_at_stop},
    shared::{Counters, Shared},
};
use crate::metrics;

/// Entries that wait for their commit, in bytes: eight of the largest.
const IN_FLIGHT_BYTES_MAX: usize = 8 * ENTRY_BYTES_MAX;
/// How long a submitter waits for room before it is told to come back.
const ROOM_WAIT: Duration = Duration::from_secs(2);
/// Changes that one `Watch::next` gives at most.
const WATCH_EVENTS_MAX: usize = 1024;

/// Topics that get a label of their own in `/metrics`.
const TOPIC_LABELS_MAX: usize = 100;

pub struct Handle {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
}

impl Handle {
    pub(super) fn new(commands: mpsc::Sender<Command>, shared: Arc<Shared>) -> Self {
        Self { commands, shared, room: Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX)) }
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Appends the node's figures in Prometheus' text form.
    pub fn render_metrics(&self, out: &mut String) {
        let view = self.view();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shared = &self.shared;
        let values: [(&str, &str, &str, u64); 27] = [
            ("buttress_consensus_term", "gauge", "Raft term.", view.term.0),
            (
                "buttress_consensus_leader",
                "gauge",
                "Id of the leader, 0 while none is known.",
                view.leader.map_or(0, |id| id.0),
            ),
            ("buttress_consensus_is_leader", "gauge", "1 on the leader.", view.is_leader().into()),
            ("buttress_consensus_committed_index", "gauge", "Last committed entry.", view.committed.0),
            ("buttress_consensus_applied_index", "gauge", "Last applied entry.", view.applied.0),
            (
                "buttress_consensus_commit_lag_entries",
                "gauge",
                "Committed here and not yet applied.",
                view.committed.0.saturating_sub(view.applied.0),
            ),
            (
                "buttress_consensus_leader_changes_total",
                "counter",
                "Leaders that this node has seen.",
                count(&shared.counters.leader_changes),
            ),
            ("buttress_consensus_turns_total", "counter", "Turns of the node's task.", count(&shared.counters.turns)),
            ("buttress_ledger_revision", "gauge", "Revision of the key space.", view.revision.0),
            (
                "buttress_ledger_submitted_total",
                "counter",
                "Entries submitted to this node.",
                count(&shared.counters.submitted),
            ),
            (
                "buttress_ledger_forwarded_total",
                "counter",
                "Entries sent on to the leader.",
                count(&shared.counters.forwarded),
            ),
            (
                "buttress_ledger_resent_total",
                "counter",
                "Entries sent again after a leader change or silence.",
                count(&shared.counters.resent),
            ),
            (
                "buttress_ledger_refused_total",
                "counter",
                "Entries of this node that a guard refused.",
                count(&shared.counters.refused),
            ),
            (
                "buttress_ledger_failed_total",
                "counter",
                "Entries of this node given up at their deadline.",
                count(&shared.counters.failed),
            ),
            (
                "buttress_ledger_applied_entries_total",
                "counter",
                "Entries applied.",
                count(&shared.counters.applied_entries),
            ),
            (
                "buttress_ledger_applied_records_total",
                "counter",
                "Records applied.",
                count(&shared.counters.applied_records),
            ),
            ("buttress_wal_commits_total", "counter", "Writes with their fsync.", count(&shared.wal.commits)),
            ("buttress_wal_entries_total", "counter", "Entries written.", count(&shared.wal.entries)),
            ("buttress_wal_bytes_total", "counter", "Bytes written.", count(&shared.wal.bytes)),
            ("buttress_wal_queued_bytes", "gauge", "Bytes that wait for their fsync.", count(&shared.wal.queued_bytes)),
            (
                "buttress_store_checkpoints_total",
                "counter",
                "Checkpoints written.",
                count(&shared.store.stats().checkpoints),
            ),
            (
                "buttress_store_checkpoint_index",
                "gauge",
                "Entry of the last checkpoint.",
                count(&shared.store.stats().checkpoint_index),
            ),
            (
                "buttress_store_overlay_bytes",
                "gauge",
                "Rows in memory that no checkpoint has yet.",
                count(&shared.store.stats().overlay_bytes),
            ),
            (
                "buttress_store_snapshots_sent_total",
                "counter",
                "Snapshots sent to followers.",
                count(&shared.counters.snapshots_sent),
            ),
            (
                "buttress_store_snapshots_installed_total",
                "counter",
                "Snapshots installed.",
                count(&shared.counters.snapshots_installed),
            ),
            ("buttress_peer_sent_bytes_total", "counter", "Bytes sent to peers.", count(&shared.transport.sent_bytes)),
            (
                "buttress_peer_dropped_frames_total",
                "counter",
                "Frames to peers that were dropped.",
                count(&shared.transport.dropped_frames),
            ),
        ];
        for (name, kind, help, value) in values {
            metrics::render_value(name, kind, help, value, out);
        }
        metrics::render_histogram(
            "buttress_ledger_commit_seconds",
            "From submit to applied on this node.",
            &shared.counters.commit,
            out,
        );
        metrics::render_histogram(
            "buttress_consensus_election_seconds",
            "From losing a leader to knowing the next.",
            &shared.counters.election,
            out,
        );
        metrics::render_histogram("buttress_wal_fsync_seconds", "One fsync of the log.", &shared.wal.sync_us, out);
        metrics::render_histogram(
            "buttress_store_checkpoint_seconds",
            "One checkpoint.",
            &shared.store.stats().checkpoint_us,
            out,
        );
        let _ = writeln!(
            out,
            "# HELP buttress_topic_end_offset Sum of the partitions' end offsets.\n# TYPE buttress_topic_end_offset gauge"
        );
        for topic in self.topics().iter().take(TOPIC_LABELS_MAX) {
            let end: i64 = topic.partitions.iter().map(|p| p.end.0).sum();
            let _ = writeln!(out, "buttress_topic_end_offset{{topic=\"{}\"}} {end}", topic.name);
        }
    }

    /// Asks the node to stop; the future that [`super::start`] returned then ends.
    pub async fn stop(&self) {
        let _ = self.commands.send(Command::Stop).await;
    }

    /// Hashes everything that this node has applied, with the index up to which that is. Nodes with the same index have the
    /// same hash. It reads all rows on the node's task, so it is for tests and for operators with a suspicion.
    ///
    /// # Errors
    /// `DISK`, `STOPPED`.
    pub async fn fingerprint(&self) -> Result<(Index, u64), Error> {
        self.ask(Consistency::Serializable, |machine| {
            let hash = machine.hash().map_err(|error| Error::new(Code::DISK, error.to_string()))?;
            Ok((buttress_core::Machine::applied(machine).0, hash))
        })
        .await
    }

    /// Runs `ask` on the machine, after a read barrier where `consistency` wants one.
    async fn ask<T: Send + 'static>(
        &self,
        consistency: Consistency,
        ask: impl FnOnce(&Machine) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let run = Box::new(move |machine: Result<&Machine, Error>| {
            let _ = reply.send(machine.and_then(ask));
        });
        self.commands.send(Command::Ask { consistency, run }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    async fn submit_inner(&self, entry: Entry) -> Result<Receipt, SubmitError> {
        let size = entry.size_hint();
        if size > ENTRY_BYTES_MAX || entry.parts() > ENTRY_PARTS_MAX {
            let message = format!("the entry has about {size} bytes and {} parts", entry.parts());
            let hint = format!("at most {ENTRY_BYTES_MAX} bytes and {ENTRY_PARTS_MAX} parts; split it");
            return Err(SubmitError::Failed(Error::new(Code::TOO_LARGE, message).hint(hint)));
        }
        let room = self.room.clone().acquire_many_owned(size as u32);
        let Ok(Ok(room)) = tokio::time::timeout(ROOM_WAIT, room).await else {
            let error = Error::new(Code::OVERLOADED, "too many bytes wait for their commit").retryable();
            return Err(SubmitError::Failed(error.hint("retry after a pause")));
        };
        let (reply, answer) = oneshot::channel();
        self.shared.counters.submitted.fetch_add(1, Ordering::Relaxed);
        let command = Command::Submit { entry: Box::new(entry), reply, room };
        self.commands.send(command).await.map_err(|_| SubmitError::Failed(stopped()))?;
        answer.await.map_err(|_| SubmitError::Failed(unknown_at_stop()))?
    }

    fn partition(&self, view: &PartitionView) -> PartitionView {
        let (start, end) = self.shared.log(view.log).map_or((view.start, view.end), |log| log.range());
        let bytes = self.shared.reader.range(view.log).map_or(0, |range| range.bytes);
        PartitionView { log: view.log, start, end, bytes }
    }

    fn live(&self, view: &TopicView) -> TopicView {
        TopicView { partitions: view.partitions.iter().map(|p| self.partition(p)).collect(), ..view.clone() }
    }

    async fn fetch_inner(&self, log: LogId, offset: Offset, bytes_max: usize, wait_ms: u64) -> Result<Fetched, Error> {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(wait_ms);
        loop {
            // Looked up anew each time, for its topic may be deleted while we wait.
            let state = self
                .shared
                .log(log)
                .ok_or_else(|| Error::new(Code::TOPIC_UNKNOWN, format!("there is no partition with log id {log}")))?;
            // Registered before the check, so that growth in between is not missed.
            let mut grown = std::pin::pin!(state.grown.notified());
            grown.as_mut().enable();
            let (start, end) = state.range();
            if offset < start || offset > end {
                let message = format!("offset {offset} is not within [{start}, {end}]");
                return Err(
                    Error::new(Code::OFFSET_OUT_OF_RANGE, message).hint("start at the earliest or latest offset")
                );
            }
            if offset < end {
                let batches = self.shared.reader.read(log, offset, bytes_max)?;
                return Ok(Fetched { start, end, batches });
            }
            if self.commands.is_closed() {
                return Err(stopped());
            }
            if wait_ms == 0 {
                return Ok(Fetched { start, end, batches: Vec::new() });
            }
            tokio::select! {
                () = grown => {}
                () = self.commands.closed() => {}
                () = tokio::time::sleep_until(deadline) => return Ok(Fetched { start, end, batches: Vec::new() }),
            }
        }
    }
}

pub(super) fn stopped() -> Error {
    Error::new(Code::STOPPED, "this node is stopping").retryable().hint("ask another node")
}

impl Ledger for Handle {
    fn submit(&self, entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(self.submit_inner(entry))
    }

    fn read(&self, range: KeyRange, limit: usize, consistency: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>> {
        Box::pin(self.ask(consistency, move |machine| Ok(machine.range(&range, limit, None)?)))
    }

    fn state(&self, space: &str, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, Error>> {
        let space = space.to_owned();
        Box::pin(self.ask(Consistency::Serializable, move |machine| {
            let row = |key: &Bytes| machine.state_get(&space, key);
            keys.iter().map(row).collect::<Result<_, _>>().map_err(|error| Error::new(Code::DISK, error.to_string()))
        }))
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        Box::pin(async move {
            let revisions = self.shared.revision.subscribe();
            let next = match from {
                Some(revision) => revision,
                None => Revision(revisions.borrow().0 + 1),
            };
            let watch = NodeWatch { commands: self.commands.clone(), revisions, range, next };
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    fn scope(&self) -> Scope {
        Scope::Entry
    }
}

impl Stream for Handle {
    fn topics(&self) -> Vec<TopicView> {
        let topics = self.shared.topics.read().expect("no holder panics").clone();
        topics.values().map(|topic| self.live(topic)).collect()
    }

    fn topic(&self, name: &str) -> Option<TopicView> {
        let topics = self.shared.topics.read().expect("no holder panics").clone();
        topics.get(name).map(|topic| self.live(topic))
    }

    fn fetch(
        &self,
        log: LogId,
        offset: Offset,
        bytes_max: usize,
        wait_ms: u64,
    ) -> BoxFuture<'_, Result<Fetched, Error>> {
        Box::pin(self.fetch_inner(log, offset, bytes_max, wait_ms))
    }

    fn offset_for_time(&self, log: LogId, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<(Offset, i64)>, Error>> {
        Box::pin(async move { self.shared.reader.offset_for_time(log, timestamp_ms) })
    }

    fn cursor(&self, group: &str, log: LogId) -> Option<Offset> {
        self.shared.cursors.read().expect("no holder panics").get(&(group.to_owned(), log)).copied()
    }

    fn scope(&self) -> Scope {
        Scope::Entry
    }
}

impl Cluster for Handle {
    fn view(&self) -> ClusterView {
        self.shared.view.borrow().clone()
    }

    fn changed(&self, seen: &ClusterView) -> BoxFuture<'_, ClusterView> {
        let mut views = self.shared.view.subscribe();
        let (leader, term) = (seen.leader, seen.term);
        Box::pin(async move {
            loop {
                {
                    let view = views.borrow_and_update();
                    if (view.leader, view.term) != (leader, term) {
                        return view.clone();
                    }
                }
                if views.changed().await.is_err() {
                    // The node has stopped; nothing changes any more.
                    std::future::pending::<()>().await;
                }
            }
        })
    }

    fn now(&self) -> TimeMs {
        wall_clock()
    }
}

/// The node's wall clock.
pub(super) fn wall_clock() -> TimeMs {
    TimeMs(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64))
}

/// A watch that asks for history when the revision has moved. It holds no queue: a slow watcher reads later, from disk if
/// need be, and never grows memory.
struct NodeWatch {
    commands: mpsc::Sender<Command>,
    revisions: tokio::sync::watch::Receiver<Revision>,
    range: KeyRange,
    next: Revision,
}

impl Watch for NodeWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeyEvent>>, Error>> {
        Box::pin(async move {
            loop {
                let seen = *self.revisions.borrow_and_update();
                if seen >= self.next {
                    let (range, from) = (self.range.clone(), self.next);
                    let (reply, answer) = oneshot::channel();
                    let run = Box::new(move |machine: Result<&Machine, Error>| {
                        let _ = reply.send(machine.and_then(|m| Ok(m.events_since(&range, from, WATCH_EVENTS_MAX)?)));
                    });
                    let command = Command::Ask { consistency: Consistency::Serializable, run };
                    if self.commands.send(command).await.is_err() {
                        return Ok(None);
                    }
                    let Ok(answer) = answer.await else { return Ok(None) };
                    let KeyEvents { events, next } = answer?;
                    self.next = next;
                    if !events.is_empty() {
                        return Ok(Some(events));
                    }
                    continue;
                }
                tokio::select! {
                    moved = self.revisions.changed() => if moved.is_err() {
                        return Ok(None);
                    },
                    // The handle keeps the revisions alive, but the node has stopped.
                    () = self.commands.closed() => return Ok(None),
                }
            }
        })
    }
}
