//! The ledger of a single process: every entry is applied at once, in memory.
//!
//! It is the real machine over [`MemStore`] behind a mutex, with the codec in between, so what a plane's tests see here is
//! what a cluster answers. There is no timer and no clock: time is what [`Local::set_now`] and [`Local::advance`] say, a
//! fetch with `wait_ms` waits for the next append or for [`Local::expire_waits`], and leadership changes when
//! [`Local::elect`] says so. Futures use plain wakers and run under any executor.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard},
    task::{Poll, Waker},
};

use buttress_core::{
    BoxFuture, Cluster, Code, Consistency, Entry, Error, KeyRange, LeaseId, Ledger, LogId, Machine as _, NodeId,
    Offset, RangeOp, RangeResult, Receipt, Refusal, RequestId, Revision, Scope, Stream, SubmitError, Term, TimeMs,
    TopicChange, Txn, TxnResult,
    entry::TopicSettings,
    ledger::{
        ClusterView, CursorView, Fetched, KeyEvent, KeyImage, KeyValues, KeyWatch, KeysHash, KeysPage, KeysView,
        LeaseView, Member, TopicView, Watch, WatchItem, WatchOptions,
    },
    limits::ENTRY_BYTES_MAX,
};
use bytes::{Bytes, BytesMut};

use crate::{Effects, Machine, MemStore, Page, PageLimits, ReadError, image::Image, topics::BATCH_HEADER_BYTES};

/// Events that a watch takes at a time.
const WATCH_EVENTS: usize = 1024;
/// A part of a range; small, so that tests meet several.
const PAGE: PageLimits = PageLimits { keys: 0, looks: 64, bytes: 1024 * 1024 };
/// The client id of requests that carry none.
const LOCAL_CLIENT: u64 = 1;

/// What goes wrong with a submission, to test how a plane takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The entry is not applied, and the submitter is told this.
    Lost(Error),
    /// The entry is applied, and the submitter is told this nevertheless: the outcome is unknown to it.
    Unanswered(Error),
}

pub struct Local {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
}

struct State {
    machine: Machine<MemStore>,
    now: TimeMs,
    term: Term,
    leader: Option<NodeId>,
    member: Member,
    requests: u64,
    faults: VecDeque<Fault>,
    waits_expired: u64,
    stopped: bool,
    wakers: Vec<Waker>,
}

impl State {
    fn apply(&mut self, entry: &Entry) -> Effects {
        let index = self.machine.applied().0.next();
        let effects = self.machine.apply(index, self.term, entry.encode());
        self.wake();
        effects
    }

    /// Ends what is due, as a leader does.
    fn expire(&mut self) {
        while self.machine.next_deadline().is_some_and(|at| at <= self.now) {
            self.apply(&Entry { time: self.now, expire: true, ..Entry::default() });
        }
    }

    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn view(&self) -> ClusterView {
        let applied = self.machine.applied().0;
        ClusterView {
            cluster_id: "local".into(),
            node: self.member.id,
            members: vec![self.member.clone()],
            progress: Vec::new(),
            leader: self.leader,
            term: self.term,
            committed: applied,
            applied,
            revision: self.machine.revision(),
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock has panicked")
    }

    /// Resolves as soon as `ready` gives something, looking again after every change.
    async fn wait<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        poll_fn(|cx| {
            let mut state = self.lock();
            match ready(&mut state) {
                Some(value) => Poll::Ready(value),
                None => {
                    state.wakers.push(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Local {
    /// An empty ledger at time 1,000,000 ms, term 1, led by this very node, number 1.
    pub fn new() -> Arc<Self> {
        let machine = Machine::open(MemStore::new()).expect("an empty store opens");
        let node = NodeId(1);
        Arc::new(Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    machine,
                    now: TimeMs(1_000_000),
                    term: Term(1),
                    leader: Some(node),
                    member: Member { id: node, name: "local".into(), ..Member::default() },
                    requests: 0,
                    faults: VecDeque::new(),
                    waits_expired: 0,
                    stopped: false,
                    wakers: Vec::new(),
                }),
            }),
        })
    }

    /// Applies an entry now, as it is but for its time, which counts as now at least.
    pub fn apply(&self, entry: Entry) -> Effects {
        let mut state = self.inner.lock();
        let time = entry.time.max(state.now);
        state.apply(&Entry { time, ..entry })
    }

    /// Creates a topic and returns its partitions' logs.
    ///
    /// # Panics
    /// Where the topic cannot be created.
    pub fn create_topic(&self, name: &str, partitions: u32, settings: TopicSettings) -> Vec<LogId> {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(self.inner.lock().machine.applied().0.0 + 1).to_be_bytes());
        let create = TopicChange::Create { name: name.into(), id, partitions, settings };
        match self.apply(Entry { topics: vec![create], ..Entry::default() }).result {
            Ok(mut receipt) => receipt.created.remove(0).1,
            Err(refusal) => panic!("{}", refusal.into_error()),
        }
    }

    /// Looks at the machine.
    pub fn with<T>(&self, look: impl FnOnce(&Machine<MemStore>) -> T) -> T {
        look(&self.inner.lock().machine)
    }

    /// Builds the machine again from its rows, as a restart does.
    pub fn reopen(&self) {
        let mut state = self.inner.lock();
        let store = state.machine.store().clone();
        state.machine = Machine::open(store).expect("the rows of a machine open");
    }

    /// Sets the clock; what has become due ends.
    pub fn set_now(&self, now: TimeMs) {
        let mut state = self.inner.lock();
        state.now = now;
        state.expire();
    }

    /// Moves the clock on; what has become due ends.
    pub fn advance(&self, ms: u64) {
        let mut state = self.inner.lock();
        state.now.0 += ms;
        state.expire();
    }

    /// Proposes the trims that retention asks for now, as a leader does from time to time.
    pub fn retain(&self) {
        let mut state = self.inner.lock();
        let topics = state.machine.retention(state.now);
        if !topics.is_empty() {
            let time = state.now;
            state.apply(&Entry { time, topics, ..Entry::default() });
        }
    }

    /// Ends every fetch that waits now, as if its `wait_ms` had passed.
    pub fn expire_waits(&self) {
        let mut state = self.inner.lock();
        state.waits_expired += 1;
        state.wake();
    }

    /// Starts a new term with this leader. Entries are applied all the same.
    pub fn elect(&self, leader: Option<NodeId>) {
        let mut state = self.inner.lock();
        state.term.0 += 1;
        state.leader = leader;
        state.wake();
    }

    /// Sets this node's id and addresses. The leader does not change by it.
    pub fn set_member(&self, member: Member) {
        let mut state = self.inner.lock();
        state.member = member;
        state.wake();
    }

    /// Makes the next submission go wrong; several queue up.
    pub fn fail_next(&self, fault: Fault) {
        self.inner.lock().faults.push_back(fault);
    }

    /// Ends watches, and refuses submissions, as a node that stops does.
    pub fn stop(&self) {
        let mut state = self.inner.lock();
        state.stopped = true;
        state.wake();
    }
}

impl Ledger for Local {
    fn submit(&self, mut entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(async move {
            let mut state = self.inner.lock();
            if state.stopped {
                return Err(SubmitError::Failed(Error::new(Code::STOPPED, "this node is stopping")));
            }
            let fault = state.faults.pop_front();
            if let Some(Fault::Lost(error)) = fault {
                return Err(SubmitError::Failed(error));
            }
            entry.time = state.now;
            if entry.request.is_none() {
                let number = state.requests;
                state.requests += 1;
                entry.request = Some(RequestId { client: LOCAL_CLIENT, number, acknowledged_below: number });
            }
            let size = entry.encode().len();
            if size > ENTRY_BYTES_MAX {
                let message = format!("the entry has {size} bytes, more than the limit of {ENTRY_BYTES_MAX}");
                return Err(SubmitError::Failed(Error::new(Code::TOO_LARGE, message)));
            }
            let effects = state.apply(&entry);
            if let Some(Fault::Unanswered(error)) = fault {
                return Err(SubmitError::Failed(error));
            }
            effects.result.map_err(|refusal| match refusal {
                Refusal::Part { code: Code::TIMEOUT, message } => {
                    SubmitError::Failed(Error::new(Code::TIMEOUT, message))
                }
                refusal => SubmitError::Refused(refusal),
            })
        })
    }

    fn read(&self, range: KeyRange, limit: usize, _: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>> {
        Box::pin(async move { Ok(self.inner.lock().machine.range(&range, limit, None)?) })
    }

    fn read_at(&self, range: KeyRange, limit: usize, at: Revision) -> BoxFuture<'_, Result<KeyValues, Error>> {
        Box::pin(async move { Ok(self.inner.lock().machine.range(&range, limit, Some(at))?) })
    }

    fn state(&self, space: &str, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, Error>> {
        let space = space.to_owned();
        Box::pin(async move {
            let state = self.inner.lock();
            keys.iter()
                .map(|key| {
                    state.machine.state_get(&space, key).map_err(|error| Error::new(Code::DISK, error.to_string()))
                })
                .collect()
        })
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            let next = from.unwrap_or_else(|| Revision(inner.lock().machine.revision().0 + 1));
            let watch: Box<dyn Watch> = Box::new(LocalWatch { inner, range, next });
            Ok(watch)
        })
    }

    fn read_with(&self, op: RangeOp, _: Consistency) -> BoxFuture<'_, Result<RangeResult, Error>> {
        Box::pin(async move {
            let state = self.inner.lock();
            let keys = match op.fetch() {
                _ if op.count_only => 0,
                Some(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
                None => usize::MAX,
            };
            let limits = PageLimits { keys, ..PageLimits::NONE };
            let page = state.machine.page(&op.range, op.revision, op.needs_values(), limits)?;
            Ok(op.finish(state.machine.revision(), page.count, page.kvs))
        })
    }

    fn read_page(&self, op: RangeOp, _: Consistency) -> BoxFuture<'_, Result<KeysPage, Error>> {
        Box::pin(async move {
            let state = self.inner.lock();
            let keys = match op.limit {
                _ if op.count_only => 0,
                0 => usize::MAX,
                limit => usize::try_from(limit).unwrap_or(usize::MAX),
            };
            let limits = PageLimits { keys, ..PAGE };
            let Page { kvs, count, next } = state.machine.page(&op.range, op.revision, op.needs_values(), limits)?;
            Ok(KeysPage { revision: state.machine.revision(), kvs, count, next })
        })
    }

    fn read_txn(&self, txn: Txn, _: Consistency) -> BoxFuture<'_, Result<(Revision, TxnResult), Error>> {
        Box::pin(async move {
            let state = self.inner.lock();
            let read = state.machine.read_txn(&txn).map_err(|error| Error::new(Code::DISK, error.to_string()))?;
            Ok((state.machine.revision(), read.map_err(Refusal::into_error)?))
        })
    }

    fn image(&self, _: Consistency) -> BoxFuture<'_, Result<Box<dyn KeyImage>, Error>> {
        Box::pin(async move {
            let (store, applied) = self.with(|machine| (machine.store().clone(), machine.applied()));
            let image: Box<dyn KeyImage> = Box::new(Image::new(store, applied)?);
            Ok(image)
        })
    }

    fn watch_with(&self, options: WatchOptions) -> BoxFuture<'_, Result<Box<dyn KeyWatch>, Error>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            let next = options.from.unwrap_or_else(|| Revision(inner.lock().machine.revision().0 + 1));
            let watch: Box<dyn KeyWatch> = Box::new(LocalKeyWatch { inner, options, next, ended: false });
            Ok(watch)
        })
    }

    fn leases(&self, _: Consistency) -> BoxFuture<'_, Result<Vec<LeaseId>, Error>> {
        Box::pin(async move { Ok(self.with(|machine| machine.leases().iter().map(|(id, _)| id).collect())) })
    }

    fn lease(&self, lease: LeaseId, keys: bool, _: Consistency) -> BoxFuture<'_, Result<Option<LeaseView>, Error>> {
        Box::pin(async move {
            let state = self.inner.lock();
            Ok(state.machine.lease(lease, state.now, keys))
        })
    }

    fn keys(&self, _: Consistency) -> BoxFuture<'_, Result<KeysView, Error>> {
        Box::pin(async move { Ok(self.with(Machine::keys_view)) })
    }

    fn hash_keys(&self, at: Option<Revision>) -> BoxFuture<'_, Result<KeysHash, Error>> {
        Box::pin(async move {
            let state = self.inner.lock();
            let view = state.machine.keys_view();
            let (hash, _) = state.machine.hash_page(&KeyRange::prefix(""), at, usize::MAX)?;
            let at = at.unwrap_or(view.revision);
            Ok(KeysHash { hash, at, compacted: view.compacted, revision: view.revision })
        })
    }

    fn compact(&self, at: Revision, physical: bool) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(async move {
            let receipt = self.submit(Entry { compact: Some(at), ..Entry::default() }).await?;
            while physical && self.with(|machine| machine.keys().unswept()) {
                self.submit(Entry::default()).await?;
            }
            Ok(receipt)
        })
    }

    fn scope(&self) -> Scope {
        Scope::Entry
    }
}

struct LocalKeyWatch {
    inner: Arc<Inner>,
    options: WatchOptions,
    next: Revision,
    ended: bool,
}

impl KeyWatch for LocalKeyWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<WatchItem>, Error>> {
        let Self { inner, options, next, ended } = self;
        Box::pin(inner.wait(move |state| {
            if *ended || state.stopped {
                return Some(Ok(None));
            }
            let limits = (WATCH_EVENTS, usize::MAX);
            if state.machine.revision() < *next {
                return None;
            }
            match state.machine.changed_since(&options.range, *next, limits, options.prev_kv) {
                Err(ReadError::Compacted { compacted, .. }) => {
                    *ended = true;
                    Some(Ok(Some(WatchItem::Compacted { compacted })))
                }
                Err(error) => Some(Err(error.into())),
                Ok(mut found) => {
                    *next = found.next;
                    found.events.retain(|event| if event.deleted { !options.no_delete } else { !options.no_put });
                    let revision = Revision(found.next.0 - 1);
                    Some(Ok(Some(WatchItem::Events { events: found.events, revision })))
                }
            }
        }))
    }

    fn position(&self) -> Revision {
        self.next
    }
}

struct LocalWatch {
    inner: Arc<Inner>,
    range: KeyRange,
    next: Revision,
}

impl Watch for LocalWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeyEvent>>, Error>> {
        let Self { inner, range, next } = self;
        Box::pin(inner.wait(move |state| match state.machine.events_since(range, *next, WATCH_EVENTS) {
            Err(error) => Some(Err(error.into())),
            Ok(found) => {
                // A watch from a future revision stays there.
                *next = found.next.max(*next);
                if !found.events.is_empty() { Some(Ok(Some(found.events))) } else { state.stopped.then_some(Ok(None)) }
            }
        }))
    }
}

impl Stream for Local {
    fn topics(&self) -> Vec<TopicView> {
        self.with(Machine::topics)
    }

    fn topic(&self, name: &str) -> Option<TopicView> {
        self.with(|machine| machine.topic(name))
    }

    fn fetch(
        &self,
        log: LogId,
        offset: Offset,
        bytes_max: usize,
        wait_ms: u64,
    ) -> BoxFuture<'_, Result<Fetched, Error>> {
        let mut started = None;
        Box::pin(self.inner.wait(move |state| {
            let Some(partition) = state.machine.partition(log) else {
                return Some(Err(Error::new(Code::TOPIC_UNKNOWN, format!("there is no log {log}"))));
            };
            let (start, end) = (partition.start, partition.end);
            if offset < start || offset > end {
                let message = format!("offset {offset} is not in log {log}, which holds {start} to {end}");
                return Some(Err(Error::new(Code::OFFSET_OUT_OF_RANGE, message)));
            }
            let batches = state.machine.store().fetch(log, offset, bytes_max);
            let expired = *started.get_or_insert(state.waits_expired) != state.waits_expired;
            let done = !batches.is_empty() || wait_ms == 0 || expired || state.stopped;
            done.then_some(Ok(Fetched { start, end, batches }))
        }))
    }

    fn offset_for_time(&self, log: LogId, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<(Offset, i64)>, Error>> {
        Box::pin(async move {
            let state = self.inner.lock();
            if state.machine.partition(log).is_none() {
                return Err(Error::new(Code::TOPIC_UNKNOWN, format!("there is no log {log}")));
            }
            Ok(state.machine.store().offset_for_time(log, timestamp_ms))
        })
    }

    fn cursor(&self, group: &str, log: LogId) -> Option<Offset> {
        self.with(|machine| machine.cursor(group, log))
    }

    fn position(&self, group: &str, log: LogId) -> Option<CursorView> {
        self.with(|machine| machine.cursors().get(group, log).cloned())
    }

    fn positions(&self, group: &str) -> Vec<(LogId, CursorView)> {
        self.with(|machine| machine.cursors().of(group).map(|(log, position)| (log, position.clone())).collect())
    }

    fn scope(&self) -> Scope {
        Scope::Entry
    }
}

impl Cluster for Local {
    fn view(&self) -> ClusterView {
        self.inner.lock().view()
    }

    fn changed(&self, seen: &ClusterView) -> BoxFuture<'_, ClusterView> {
        let (leader, term) = (seen.leader, seen.term);
        Box::pin(self.inner.wait(move |state| {
            let view = state.view();
            (view.leader != leader || view.term != term).then_some(view)
        }))
    }

    fn now(&self) -> TimeMs {
        self.inner.lock().now
    }
}

/// A record batch that is right in what the machine looks at, its header, with `payload` where its records would be.
/// For tests that do not read records; its checksum is not one.
pub fn opaque_batch(records: u32, payload: &[u8]) -> Bytes {
    let mut batch = BytesMut::zeroed(BATCH_HEADER_BYTES);
    batch.extend_from_slice(payload);
    let len = batch.len() as i32 - 12;
    batch[8..12].copy_from_slice(&len.to_be_bytes());
    batch[16] = 2;
    batch[23..27].copy_from_slice(&records.wrapping_sub(1).to_be_bytes());
    batch[57..61].copy_from_slice(&records.to_be_bytes());
    batch.freeze()
}
