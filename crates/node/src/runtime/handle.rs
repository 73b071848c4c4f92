//! The node as planes and edges see it: [`Ledger`], [`Stream`] and [`Cluster`].

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};

use buttress_core::{
    Cluster, Code, Consistency, Entry, Error, Index, KeyRange, LeaseId, Ledger, LogId, Offset, RangeOp, RangeResult,
    Receipt, Refusal, Revision, Scope, Stream, SubmitError, TimeMs, Txn, TxnResult,
    ledger::{
        BoxFuture, ClusterView, CursorView, Fetched, KeyEvent, KeyImage, KeyValue, KeyValues, KeyWatch, KeysHash,
        KeysPage, KeysView, LeaseView, PartitionView, TopicView, Watch, WatchItem, WatchOptions,
    },
    limits::{ENTRY_BYTES_MAX, ENTRY_PARTS_MAX},
};

use buttress_consensus::SnapshotMeta;
use buttress_state::{Changed, KeyEvents, Page, PageLimits, ReadError};

use super::{
    MemberDone, MemberRequest,
    core_loop::{Command, Machine, unknown_at_stop},
    follow::Follow,
    ring::{Watching, passes},
    shared::{Counters, Inspection, LeaderSeen, Shared},
};
use crate::{
    backup::BackupStream,
    metrics,
    store::StoreHandle,
    wal::{WalStats, disk::corrupt},
};

/// Entries that wait for their commit, in bytes: eight of the largest.
const IN_FLIGHT_BYTES_MAX: usize = 8 * ENTRY_BYTES_MAX;
/// How long a submitter waits for room before it is told to come back.
const ROOM_WAIT: Duration = Duration::from_secs(2);
/// Changes that one `Watch::next` gives at most.
const WATCH_EVENTS_MAX: usize = 1024;

/// Changes that a watch behind the ring looks at in one turn of the node's task.
const WATCH_LOOKS_MAX: usize = 4096;
/// What one look for a large read takes in one turn: about a millisecond.
const PAGE: PageLimits = PageLimits { keys: 2048, looks: 16 * 1024, bytes: 1024 * 1024 };
/// What one read may give, in bytes of keys and values with a little for each: beyond, clients must read in pages.
const READ_BYTES_MAX: usize = 512 * 1024 * 1024;
/// A key in an answer, beside its texts.
const READ_KEY_BYTES: usize = 128;
/// Keys that one turn hashes with their history.
const HASH_LOOKS: usize = 1024;
/// A read and a watch of a node that is behind wait so long for it to catch up.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);
/// How often a read of the present begins anew because history was compacted under its revision.
const READ_ATTEMPTS: usize = 3;

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
        let values: [(&str, &str, &str, u64); 36] = [
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
            (
                "buttress_consensus_handed_over_total",
                "counter",
                "Times that this node handed leadership over.",
                count(&shared.counters.handed_over),
            ),
            (
                "buttress_consensus_gave_way_total",
                "counter",
                "Times that this node gave leadership away because its disk was slow.",
                count(&shared.counters.gave_way),
            ),
            (
                "buttress_consensus_promoted_total",
                "counter",
                "Learners that this node made voters by itself.",
                count(&shared.counters.promoted),
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
            (
                "buttress_ledger_reads_linearizable_total",
                "counter",
                "Reads of keys that asked a quorum first.",
                count(&shared.counters.reads_linearizable),
            ),
            (
                "buttress_ledger_reads_serializable_total",
                "counter",
                "Reads of keys as applied on this node.",
                count(&shared.counters.reads_serializable),
            ),
            ("buttress_wal_commits_total", "counter", "Writes with their fsync.", count(&shared.wal.commits)),
            ("buttress_wal_entries_total", "counter", "Entries written.", count(&shared.wal.entries)),
            ("buttress_wal_bytes_total", "counter", "Bytes written.", count(&shared.wal.bytes)),
            ("buttress_wal_queued_bytes", "gauge", "Bytes that wait for their fsync.", count(&shared.wal.queued_bytes)),
            (
                "buttress_wal_memory_bytes",
                "gauge",
                "Entries of the log that are in memory.",
                count(&shared.counters.log_memory_bytes),
            ),
            (
                "buttress_wal_reads_total",
                "counter",
                "Reads of the log on disk for followers that lag.",
                count(&shared.counters.log_reads),
            ),
            (
                "buttress_store_unfiled_bytes",
                "gauge",
                "Committed records in memory that are not in their segments yet.",
                shared.store.unfiled_bytes(),
            ),
            (
                "buttress_store_tail_bytes",
                "gauge",
                "Newest records in memory that are in their segments too.",
                count(&shared.store.stats().tail_bytes),
            ),
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

    /// Changes the members, or hands leadership over, through whoever leads. Asking again after an error that leaves the
    /// outcome open is safe.
    ///
    /// # Errors
    /// `MEMBER_UNKNOWN`, `MEMBER_EXISTS`, `MEMBERS_BUSY`, `QUORUM`, `LAGGING`, `BAD_REQUEST`, `NO_LEADER`, `TIMEOUT`,
    /// `STOPPED`.
    pub async fn change_members(&self, request: MemberRequest) -> Result<MemberDone, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Members { request, reply }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Hands leadership over if this node leads and somebody else can; returns when that is done, or will not be.
    pub async fn hand_over(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::HandOver { reply }).await.is_ok() {
            let _ = done.await;
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

    /// Where consensus and the store stand at this moment.
    ///
    /// # Errors
    /// `STOPPED`.
    pub async fn inspect(&self) -> Result<Inspection, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Inspect { reply }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }

    /// The latest leaders that this node heard of, oldest first.
    pub fn leaders(&self) -> Vec<LeaderSeen> {
        self.shared.leaders.lock().expect("no holder panics").iter().copied().collect()
    }

    /// How long syncs of the log took.
    pub fn wal_stats(&self) -> Arc<WalStats> {
        self.shared.wal.clone()
    }

    pub fn store(&self) -> StoreHandle {
        self.shared.store.clone()
    }

    /// Begins a backup of the state at one index, on any node. A linearizable one holds everything that was acknowledged
    /// before it was asked for, wherever that was; a serializable one what this node has applied. The state is read as
    /// the stream is, which blocks on the disk, and the checkpoint it comes from is kept as long as the stream lives.
    ///
    /// # Errors
    /// `NO_LEADER` where a read barrier does not come about or nothing was applied yet, `DISK`, `STOPPED`.
    pub async fn backup(&self, consistency: Consistency) -> Result<BackupStream, Error> {
        self.checkpoint(consistency).await?;
        let (store, taken_at, view) = (self.shared.store.clone(), self.shared.time.wall(), self.view());
        let begin = move || {
            let export = store.export()?;
            let header = export.header();
            if header.index.0 == 0 {
                return Err(Error::new(Code::NO_LEADER, "this node has applied nothing yet").retryable().hint("retry"));
            }
            let voters = SnapshotMeta::decode(header.meta.clone())
                .map_err(|error| corrupt(format_args!("the checkpoint's member list is malformed: {error}")))?
                .members
                .voters;
            let linearizable = consistency == Consistency::Linearizable;
            Ok(BackupStream::new(export, view.node, taken_at, linearizable, view.members, voters))
        };
        tokio::task::spawn_blocking(begin).await.map_err(|_| stopped())?
    }

    /// Waits until a checkpoint has everything that was acknowledged before, or that this node has applied.
    async fn checkpoint(&self, consistency: Consistency) -> Result<(), Error> {
        let index = self.ask(consistency, |machine| Ok(buttress_core::Machine::applied(machine).0)).await?;
        let (reply, reached) = oneshot::channel();
        self.commands.send(Command::Checkpoint { index, reply }).await.map_err(|_| stopped())?;
        reached.await.map_err(|_| stopped())?;
        Ok(())
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

    fn count_read(&self, consistency: Consistency) {
        let reads = match consistency {
            Consistency::Linearizable => &self.shared.counters.reads_linearizable,
            Consistency::Serializable => &self.shared.counters.reads_serializable,
        };
        reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads a range in pages at one revision.
    async fn read_pages(&self, op: RangeOp, mut consistency: Consistency) -> Result<RangeResult, Error> {
        let mut attempts = READ_ATTEMPTS;
        loop {
            attempts -= 1;
            match self.read_pages_once(&op, consistency).await {
                // It was the present when it began.
                Err(error) if error.code == Code::COMPACTED && op.revision.is_none() && attempts > 0 => {}
                // A client learnt of this revision from another node, and this one is behind: the leader knows.
                Err(error)
                    if error.code == Code::REVISION_FUTURE
                        && consistency == Consistency::Serializable
                        && self.catch_up().await =>
                {
                    consistency = Consistency::Linearizable;
                }
                found => return found,
            }
        }
    }

    async fn read_page_once(&self, op: RangeOp, consistency: Consistency) -> Result<KeysPage, Error> {
        let keys = match op.limit {
            _ if op.count_only => 0,
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        self.ask(consistency, move |machine| {
            let limits = PageLimits { keys, ..PAGE };
            let Page { kvs, count, next } = machine.page(&op.range, op.revision, op.needs_values(), limits)?;
            Ok(KeysPage { revision: machine.revision(), kvs, count, next })
        })
        .await
    }

    /// Waits until this node has applied what was committed when it was called. `false` where nobody can tell.
    async fn catch_up(&self) -> bool {
        let barrier = self.ask(Consistency::Linearizable, |_| Ok(()));
        tokio::time::timeout(CATCH_UP_MAX, barrier).await.is_ok_and(|answer| answer.is_ok())
    }

    async fn read_pages_once(&self, op: &RangeOp, consistency: Consistency) -> Result<RangeResult, Error> {
        let wanted = match op.fetch() {
            _ if op.count_only => 0,
            Some(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        let values = op.needs_values();
        let mut range = op.range.clone();
        let mut at = op.revision;
        let mut consistency = consistency;
        let mut revision = Revision(0);
        let mut kvs: Vec<KeyValue> = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        loop {
            let limits = PageLimits { keys: wanted.saturating_sub(kvs.len()), ..PAGE };
            let ask = move |machine: &Machine| {
                let page = machine.page(&range, at, values, limits)?;
                Ok((machine.revision(), range, page))
            };
            let (now, asked, Page { kvs: more, count: counted, next }) = self.ask(consistency, ask).await?;
            if consistency == Consistency::Linearizable || revision == Revision(0) {
                revision = now;
                at = Some(at.unwrap_or(now));
                // The barrier was for the first page; what follows is at the same revision.
                consistency = Consistency::Serializable;
            }
            bytes += more.iter().map(|kv| READ_KEY_BYTES + kv.key.len() + kv.value.len()).sum::<usize>();
            if bytes > READ_BYTES_MAX {
                let message = format!("the range has more than {READ_BYTES_MAX} bytes");
                return Err(Error::new(Code::TOO_LARGE, message).hint("read it in pages, with a limit"));
            }
            kvs.extend(more);
            count += counted;
            match next {
                Some(next) => range = KeyRange { from: next, to: asked.to },
                None => return Ok(op.finish(revision, count, kvs)),
            }
        }
    }

    async fn hash_pages(&self, at: Option<Revision>) -> Result<KeysHash, Error> {
        let view = self.ask(Consistency::Serializable, |machine| Ok(machine.keys_view())).await?;
        let upto = at.unwrap_or(view.revision);
        let mut range = KeyRange::prefix("");
        let mut hash = 0;
        loop {
            let ask = move |machine: &Machine| {
                // Another compaction would leave other changes to the pages that follow than to those before.
                if machine.compacted() != view.compacted {
                    let message = format!("history was compacted to {} meanwhile", machine.compacted());
                    return Err(Error::new(Code::COMPACTED, message).retryable().hint("ask again"));
                }
                Ok(machine.hash_page(&range, Some(upto), HASH_LOOKS)?)
            };
            let (part, next) = self.ask(Consistency::Serializable, ask).await?;
            hash ^= part;
            match next {
                Some(next) => range = KeyRange { from: next, to: Some(Bytes::new()) },
                None => {
                    return Ok(KeysHash { hash, at: upto, compacted: view.compacted, revision: view.revision });
                }
            }
        }
    }

    async fn compact_inner(&self, at: Revision, physical: bool) -> Result<Receipt, SubmitError> {
        let receipt = self.submit_inner(Entry { compact: Some(at), ..Entry::default() }).await?;
        if !physical {
            return Ok(receipt);
        }
        loop {
            let unswept = self.ask(Consistency::Serializable, |machine| Ok(machine.keys().unswept())).await;
            if !unswept.map_err(SubmitError::Failed)? {
                return Ok(receipt);
            }
            // Every entry sweeps a bounded part, and so does one that holds nothing.
            self.submit_inner(Entry::default()).await?;
        }
    }

    async fn submit_inner(&self, entry: Entry) -> Result<Receipt, SubmitError> {
        let size = entry.size_hint();
        if size > ENTRY_BYTES_MAX || entry.parts() > ENTRY_PARTS_MAX {
            let message = format!("the entry has about {size} bytes and {} parts", entry.parts());
            let hint = format!("at most {ENTRY_BYTES_MAX} bytes and {ENTRY_PARTS_MAX} parts; split it");
            return Err(SubmitError::Failed(Error::new(Code::TOO_LARGE, message).hint(hint)));
        }
        // Mostly there is room, and then nothing waits and no timer is made.
        let room = match self.room.clone().try_acquire_many_owned(size as u32) {
            Ok(room) => room,
            Err(_) => {
                let room = self.room.clone().acquire_many_owned(size as u32);
                let Ok(Ok(room)) = tokio::time::timeout(ROOM_WAIT, room).await else {
                    let error = Error::new(Code::OVERLOADED, "too many bytes wait for their commit").retryable();
                    return Err(SubmitError::Failed(error.hint("retry after a pause")));
                };
                room
            }
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
        self.count_read(consistency);
        Box::pin(self.ask(consistency, move |machine| Ok(machine.range(&range, limit, None)?)))
    }

    fn read_at(&self, range: KeyRange, limit: usize, at: Revision) -> BoxFuture<'_, Result<KeyValues, Error>> {
        let ask = self.ask(Consistency::Serializable, move |machine| Ok(machine.range(&range, limit, Some(at))?));
        Box::pin(ask)
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
            let now = || *self.shared.revision.borrow();
            let follow = self.shared.followed.follow(range.clone(), now);
            let latest = follow.latest();
            let next = from.unwrap_or_else(|| Revision(now().0 + 1));
            let watch = NodeWatch { commands: self.commands.clone(), latest, range, next, _follow: follow };
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    fn read_with(&self, op: RangeOp, consistency: Consistency) -> BoxFuture<'_, Result<RangeResult, Error>> {
        self.count_read(consistency);
        Box::pin(self.read_pages(op, consistency))
    }

    fn read_page(&self, op: RangeOp, consistency: Consistency) -> BoxFuture<'_, Result<KeysPage, Error>> {
        self.count_read(consistency);
        Box::pin(async move {
            match self.read_page_once(op.clone(), consistency).await {
                // As a range's: this node may only be behind.
                Err(error)
                    if error.code == Code::REVISION_FUTURE
                        && consistency == Consistency::Serializable
                        && self.catch_up().await =>
                {
                    self.read_page_once(op, consistency).await
                }
                found => found,
            }
        })
    }

    fn read_txn(&self, txn: Txn, consistency: Consistency) -> BoxFuture<'_, Result<(Revision, TxnResult), Error>> {
        self.count_read(consistency);
        let read = move |txn: Txn, consistency| {
            self.ask(consistency, move |machine| {
                let read = machine.read_txn(&txn).map_err(|error| Error::new(Code::DISK, error.to_string()))?;
                Ok((machine.revision(), read.map_err(Refusal::into_error)?))
            })
        };
        Box::pin(async move {
            match read(txn.clone(), consistency).await {
                // As a range's: this node may only be behind.
                Err(error)
                    if error.code == Code::REVISION_FUTURE
                        && consistency == Consistency::Serializable
                        && self.catch_up().await =>
                {
                    read(txn, consistency).await
                }
                found => found,
            }
        })
    }

    fn watch_with(&self, options: WatchOptions) -> BoxFuture<'_, Result<Box<dyn KeyWatch>, Error>> {
        Box::pin(async move {
            // Registered first, so that what is applied from here on is in the ring.
            let watching = self.shared.ring.watching(options.prev_kv);
            if options.from.is_none() {
                // What was acknowledged elsewhere before is no news. Without a leader it is from what this node has applied.
                self.catch_up().await;
            }
            let revisions = self.shared.revision.subscribe();
            let next = options.from.unwrap_or_else(|| Revision(revisions.borrow().0 + 1));
            let shared = self.shared.clone();
            let commands = self.commands.clone();
            let watch = NodeKeyWatch { shared, commands, revisions, options, next, ended: false, _watching: watching };
            Ok(Box::new(watch) as Box<dyn KeyWatch>)
        })
    }

    fn leases(&self, consistency: Consistency) -> BoxFuture<'_, Result<Vec<LeaseId>, Error>> {
        Box::pin(self.ask(consistency, |machine| Ok(machine.leases().iter().map(|(id, _)| id).collect())))
    }

    fn lease(
        &self,
        lease: LeaseId,
        keys: bool,
        consistency: Consistency,
    ) -> BoxFuture<'_, Result<Option<LeaseView>, Error>> {
        let shared = self.shared.clone();
        Box::pin(self.ask(consistency, move |machine| Ok(machine.lease(lease, shared.time.now(), keys))))
    }

    fn keys(&self, consistency: Consistency) -> BoxFuture<'_, Result<KeysView, Error>> {
        Box::pin(self.ask(consistency, |machine| Ok(machine.keys_view())))
    }

    fn hash_keys(&self, at: Option<Revision>) -> BoxFuture<'_, Result<KeysHash, Error>> {
        Box::pin(self.hash_pages(at))
    }

    fn image(&self, consistency: Consistency) -> BoxFuture<'_, Result<Box<dyn KeyImage>, Error>> {
        Box::pin(async move {
            self.checkpoint(consistency).await?;
            let store = self.shared.store.clone();
            let begin = move || -> Result<Box<dyn KeyImage>, Error> { Ok(Box::new(store.image()?)) };
            tokio::task::spawn_blocking(begin).await.map_err(|_| stopped())?
        })
    }

    fn compact(&self, at: Revision, physical: bool) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(self.compact_inner(at, physical))
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
        let cursors = self.shared.cursors.read().expect("no holder panics");
        cursors.get(group)?.get(&log).map(|position| position.next)
    }

    fn position(&self, group: &str, log: LogId) -> Option<CursorView> {
        self.shared.cursors.read().expect("no holder panics").get(group)?.get(&log).cloned()
    }

    fn positions(&self, group: &str) -> Vec<(LogId, CursorView)> {
        let cursors = self.shared.cursors.read().expect("no holder panics");
        let found = cursors.get(group).into_iter().flatten();
        found.map(|(log, position)| (*log, position.clone())).collect()
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
        self.shared.time.wall()
    }

    fn cluster_time(&self) -> TimeMs {
        self.shared.time.now()
    }
}

/// A watch that asks for history when its range has changed. It holds no queue: a slow watcher reads later, from disk if
/// need be, and never grows memory.
struct NodeWatch {
    commands: mpsc::Sender<Command>,
    /// The latest revision that may have changed the range.
    latest: tokio::sync::watch::Receiver<Revision>,
    range: KeyRange,
    next: Revision,
    _follow: Arc<Follow>,
}

impl Watch for NodeWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeyEvent>>, Error>> {
        Box::pin(async move {
            loop {
                let seen = *self.latest.borrow_and_update();
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
                    moved = self.latest.changed() => if moved.is_err() {
                        return Ok(None);
                    },
                    // The watch keeps the revisions alive, but the node has stopped.
                    () = self.commands.closed() => return Ok(None),
                }
            }
        })
    }
}

/// A watch with options: from the ring where that has what comes next, otherwise from history.
struct NodeKeyWatch {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    revisions: tokio::sync::watch::Receiver<Revision>,
    options: WatchOptions,
    next: Revision,
    /// It was told that history is gone.
    ended: bool,
    _watching: Watching,
}

impl NodeKeyWatch {
    /// Reads history; `None` when the node stops.
    async fn history(&self) -> Option<Result<Changed, ReadError>> {
        let (range, from, prev) = (self.options.range.clone(), self.next, self.options.prev_kv);
        let (reply, answer) = oneshot::channel();
        let run = Box::new(move |machine: Result<&Machine, Error>| {
            let limits = (WATCH_EVENTS_MAX, WATCH_LOOKS_MAX);
            if let Ok(machine) = machine {
                let _ = reply.send(machine.changed_since(&range, from, limits, prev));
            }
        });
        self.commands.send(Command::Ask { consistency: Consistency::Serializable, run }).await.ok()?;
        answer.await.ok()
    }

    async fn next_inner(&mut self) -> Result<Option<WatchItem>, Error> {
        if self.ended {
            return Ok(None);
        }
        while *self.revisions.borrow_and_update() < self.next {
            tokio::select! {
                moved = self.revisions.changed() => if moved.is_err() {
                    return Ok(None);
                },
                // The handle keeps the revisions alive, but the node has stopped.
                () = self.commands.closed() => return Ok(None),
            }
        }
        if let Some((events, next)) = self.shared.ring.read(&self.options, self.next, WATCH_EVENTS_MAX) {
            self.next = next;
            return Ok(Some(WatchItem::Events { events, revision: Revision(next.0 - 1) }));
        }
        match self.history().await {
            None => Ok(None),
            Some(Ok(Changed { mut events, next })) => {
                self.next = next;
                events.retain(|event| passes(&self.options, event));
                Ok(Some(WatchItem::Events { events, revision: Revision(next.0 - 1) }))
            }
            Some(Err(ReadError::Compacted { compacted, .. })) => {
                self.ended = true;
                Ok(Some(WatchItem::Compacted { compacted }))
            }
            Some(Err(error)) => Err(error.into()),
        }
    }
}

impl KeyWatch for NodeKeyWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<WatchItem>, Error>> {
        Box::pin(self.next_inner())
    }

    fn position(&self) -> Revision {
        self.next
    }
}
