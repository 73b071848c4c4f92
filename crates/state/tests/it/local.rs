//! The single-process ledger: submissions, watches, fetches that wait, time, leadership and faults.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use buttress_core::{
    Append, AppendOutcome, Cluster, Code, Consistency, Cursor, Entry, Error, Guard, KeyRange, LeaseChange, LeaseId,
    Ledger, LogId, NodeId, Offset, Put, PutOp, RangeOp, Refusal, RequestId, Revision, StatePut, Stream, SubmitError,
    TimeMs, Timer, TopicChange, Txn, TxnOp,
    entry::TopicSettings,
    ledger::{KeyValue, LeaseView, Member, WatchItem, WatchOptions},
    limits::VALUE_BYTES_MAX,
};
use buttress_state::local::{Fault, Local, opaque_batch};
use bytes::Bytes;

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A future that is polled by hand, and how often it was woken.
struct Task<'a, T> {
    future: Pin<Box<dyn Future<Output = T> + Send + 'a>>,
    woken: Arc<Count>,
}

impl<'a, T> Task<'a, T> {
    fn new(future: impl Future<Output = T> + Send + 'a) -> Self {
        Self { future: Box::pin(future), woken: Arc::new(Count(AtomicUsize::new(0))) }
    }

    fn poll(&mut self) -> Option<T> {
        let waker = Waker::from(self.woken.clone());
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn woken(&self) -> usize {
        self.woken.0.load(Ordering::SeqCst)
    }
}

/// Runs a future that does not have to wait.
fn now<T>(future: impl Future<Output = T> + Send) -> T {
    Task::new(future).poll().expect("this does not wait")
}

fn put(key: &str, value: &str) -> Entry {
    let put = Put { key: Bytes::copy_from_slice(key.as_bytes()), value: Some(value.to_owned().into()), lease: None };
    Entry { puts: vec![put], ..Entry::default() }
}

fn append(log: LogId, records: u32, timestamp: i64) -> Entry {
    let batch = opaque_batch(records, b"payload");
    let append = Append { log, records, max_timestamp_ms: timestamp, sequence: None, batch };
    Entry { appends: vec![append], ..Entry::default() }
}

#[test]
fn what_is_submitted_can_be_read() {
    let local = Local::new();
    let receipt = now(local.submit(put("k", "v"))).unwrap();
    assert_eq!((receipt.revision, receipt.time), (Revision(2), TimeMs(1_000_000)));
    let found = now(local.read(KeyRange::prefix("k"), 10, Consistency::Linearizable)).unwrap();
    assert_eq!((found.kvs.len(), &found.kvs[0].value[..]), (1, &b"v"[..]));

    let state = StatePut { space: "f".into(), key: "a".into(), value: Some("1".into()) };
    now(local.submit(Entry { state: vec![state], ..Entry::default() })).unwrap();
    let rows = now(Ledger::state(&*local, "f", vec!["a".into(), "b".into()])).unwrap();
    assert_eq!(rows, [Some(Bytes::from("1")), None]);

    let guards = vec![Guard::ModRevision { key: "k".into(), revision: Revision(9) }];
    let refused = now(local.submit(Entry { guards, ..put("k", "w") })).unwrap_err();
    assert_eq!(refused.code(), Code::REFUSED);
    assert!(matches!(refused, SubmitError::Refused(Refusal::Guard { position: 0, .. })));
    local.reopen();
    let found = now(local.read(KeyRange::key("k"), 10, Consistency::Serializable)).unwrap();
    assert_eq!(&found.kvs[0].value[..], b"v");
}

#[test]
fn a_request_is_answered_once_and_again_but_carried_out_once() {
    let local = Local::new();
    let request = Some(RequestId { client: 77, number: 1, acknowledged_below: 0 });
    let entry = Entry { request, ..put("k", "v") };
    // The first attempt is lost on the way, the second one's answer is.
    local.fail_next(Fault::Lost(Error::new(Code::TIMEOUT, "lost")));
    local.fail_next(Fault::Unanswered(Error::new(Code::TIMEOUT, "unanswered")));
    for message in ["lost", "unanswered"] {
        let failed = now(local.submit(entry.clone())).unwrap_err();
        assert_eq!(failed, SubmitError::Failed(Error::new(Code::TIMEOUT, message)));
    }
    let receipt = now(local.submit(entry.clone())).unwrap();
    assert_eq!((receipt.replayed, receipt.revision), (true, Revision(2)));
    // Long forgotten, its outcome is unknown: a failure, not a refusal, which would say that nothing happened.
    let request = Some(RequestId { client: 77, number: 9, acknowledged_below: 9 });
    now(local.submit(Entry { request, ..put("k", "w") })).unwrap();
    let late = now(local.submit(entry)).unwrap_err();
    assert!(matches!(late, SubmitError::Failed(Error { code: Code::TIMEOUT, .. })), "{late:?}");
}

#[test]
fn an_entry_that_is_too_large_is_never_applied() {
    let local = Local::new();
    let value = Some(Bytes::from(vec![0; VALUE_BYTES_MAX]));
    let puts = (0..6).map(|n| Put { key: vec![n].into(), value: value.clone(), lease: None }).collect();
    let failed = now(local.submit(Entry { puts, ..Entry::default() })).unwrap_err();
    assert_eq!(failed.code(), Code::TOO_LARGE);
    assert_eq!(local.view().applied.0, 0);
}

#[test]
fn a_watch_sees_the_past_then_the_present() {
    let local = Local::new();
    now(local.submit(put("a/1", "x"))).unwrap();
    now(local.submit(put("b/1", "x"))).unwrap();
    now(local.submit(put("a/2", "y"))).unwrap();
    let mut from_start = now(local.watch(KeyRange::prefix("a/"), Some(Revision(1)))).unwrap();
    let mut from_now = now(local.watch(KeyRange::prefix("a/"), None)).unwrap();
    let mut ahead = now(local.watch(KeyRange::prefix("a/"), Some(Revision(6)))).unwrap();

    let events = now(from_start.next()).unwrap().unwrap();
    let seen: Vec<_> = events.iter().map(|event| (event.revision.0, &event.key[..])).collect();
    assert_eq!(seen, [(2, &b"a/1"[..]), (4, &b"a/2"[..])]);

    let (mut task, mut later) = (Task::new(from_now.next()), Task::new(ahead.next()));
    assert!(task.poll().is_none() && later.poll().is_none());
    // A change outside the range wakes it, but gives it nothing.
    now(local.submit(put("b/2", "x"))).unwrap();
    assert_eq!(task.woken(), 1);
    assert!(task.poll().is_none() && later.poll().is_none());
    now(local.submit(put("a/3", "z"))).unwrap();
    assert_eq!(task.woken(), 2);
    let events = task.poll().expect("there is a change").unwrap().unwrap();
    assert_eq!((events.len(), events[0].revision), (1, Revision(6)));
    let events = later.poll().expect("revision 6 has come").unwrap().unwrap();
    assert_eq!(events[0].revision, Revision(6));

    drop(task);
    let mut task = Task::new(from_now.next());
    assert!(task.poll().is_none());
    local.stop();
    assert_eq!(task.poll(), Some(Ok(None)));
    assert_eq!(now(local.submit(put("a", "b"))).unwrap_err().code(), Code::STOPPED);
}

#[test]
fn a_fetch_waits_for_the_next_append_or_until_it_may_not() {
    let local = Local::new();
    let log = local.create_topic("t", 1, TopicSettings::default())[0];
    let empty = now(local.fetch(log, Offset(0), 1000, 0)).unwrap();
    assert_eq!((empty.start, empty.end, empty.batches.len()), (Offset(0), Offset(0), 0));

    let mut waits = Task::new(local.fetch(log, Offset(0), 1000, 500));
    assert!(waits.poll().is_none());
    let receipt = now(local.submit(append(log, 3, 70))).unwrap();
    assert_eq!(receipt.appends, [AppendOutcome::Appended { base_offset: Offset(0) }]);
    assert_eq!(waits.woken(), 1);
    let got = waits.poll().expect("records are there").unwrap();
    assert_eq!((got.end, got.batches.len(), got.batches[0].last_offset), (Offset(3), 1, Offset(2)));

    let mut waits = Task::new(local.fetch(log, Offset(3), 1000, 500));
    assert!(waits.poll().is_none());
    local.expire_waits();
    assert_eq!(waits.poll().expect("its time is over").unwrap().batches, []);

    // From within a batch on, the whole batch comes; at least one comes, however small the bound.
    now(local.submit(append(log, 1, 80))).unwrap();
    now(local.submit(append(log, 1, 90))).unwrap();
    let bases = |offset, bytes_max| {
        let got = now(local.fetch(log, Offset(offset), bytes_max, 0)).unwrap();
        got.batches.iter().map(|batch| batch.base_offset.0).collect::<Vec<_>>()
    };
    assert_eq!(bases(1, 1), [0]);
    assert_eq!(bases(3, 1_000_000), [3, 4]);
    assert_eq!(bases(0, 2 * 68), [0, 3]);

    assert_eq!(now(local.offset_for_time(log, 71)).unwrap(), Some((Offset(3), 80)));
    assert_eq!(now(local.offset_for_time(log, 91)).unwrap(), None);

    local.apply(Entry { topics: vec![TopicChange::Trim { log, before: Offset(3) }], ..Entry::default() });
    for offset in [0, 2, 6] {
        let error = now(local.fetch(log, Offset(offset), 1000, 500)).unwrap_err();
        assert_eq!(error.code, Code::OFFSET_OUT_OF_RANGE);
    }
    // A topic that is deleted ends the fetches that wait on it.
    let mut waits = Task::new(local.fetch(log, Offset(5), 1000, 500));
    assert!(waits.poll().is_none());
    now(local.submit(Entry { topics: vec![TopicChange::Delete { name: "t".into() }], ..Entry::default() })).unwrap();
    assert_eq!(waits.poll().expect("the log is gone").unwrap_err().code, Code::TOPIC_UNKNOWN);
    assert_eq!(now(local.offset_for_time(log, 0)).unwrap_err().code, Code::TOPIC_UNKNOWN);
}

#[test]
fn time_ends_leases_fires_timers_and_makes_retention_due() {
    let local = Local::new();
    let settings = TopicSettings { retention_ms: Some(60_000), ..TopicSettings::default() };
    let log = local.create_topic("t", 1, settings)[0];
    now(local.submit(append(log, 2, 0))).unwrap();
    let lease = LeaseId(4);
    let mut entry = put("alive", "yes");
    entry.puts[0].lease = Some(lease);
    entry.leases.push(LeaseChange::Grant { lease, ttl_ms: 1000 });
    let due = TimeMs(local.now().0 + 1500);
    entry.timers.push(Timer::Set { id: "t".into(), due, key: "fired".into(), value: "yes".into() });
    now(local.submit(entry)).unwrap();
    let keys = || {
        let found = now(local.read(KeyRange::prefix(""), 10, Consistency::Linearizable)).unwrap();
        found.kvs.into_iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    local.advance(999);
    assert_eq!(keys(), ["alive"]);
    local.advance(1);
    assert_eq!(keys(), [""; 0]);
    local.set_now(due);
    assert_eq!(keys(), ["fired"]);

    let start = || local.topic("t").unwrap().partitions[0].start;
    local.retain();
    assert_eq!(start(), Offset(0));
    local.advance(60_000);
    local.retain();
    assert_eq!(start(), Offset(2));
}

#[test]
fn leadership_is_what_the_test_says() {
    let local = Local::new();
    let seen = local.view();
    assert!(seen.is_leader());
    let mut changed = Task::new(local.changed(&seen));
    assert!(changed.poll().is_none());
    now(local.submit(put("k", "v"))).unwrap();
    assert!(changed.poll().is_none(), "an entry changes neither leader nor term");
    local.elect(Some(NodeId(2)));
    let view = changed.poll().expect("another leader");
    assert!(!view.is_leader() && view.term > seen.term);
    assert_eq!(now(local.changed(&seen)).leader, Some(NodeId(2)), "who looks late sees it at once");
    local.set_member(Member { id: NodeId(2), kafka: "127.0.0.1:9092".into(), ..Member::default() });
    assert!(local.view().is_leader());
    assert_eq!(local.view().members[0].kafka, "127.0.0.1:9092");
    now(local.submit(put("k", "w"))).unwrap();
}

#[test]
fn cursors_are_seen_where_they_were_moved() {
    let local = Local::new();
    let log = local.create_topic("t", 1, TopicSettings::default())[0];
    now(local.submit(append(log, 3, 0))).unwrap();
    assert_eq!(local.cursor("g", log), None);
    let cursor = Cursor { group: "g".into(), log, next: Offset(3), metadata: String::new() };
    let guards = vec![Guard::Cursor { group: "g".into(), log, expected: None }];
    let entry = Entry { guards, cursors: vec![cursor], ..Entry::default() };
    now(local.submit(entry.clone())).unwrap();
    assert_eq!(local.cursor("g", log), Some(Offset(3)));
    assert_eq!(now(local.submit(entry)).unwrap_err().code(), Code::REFUSED);
}

#[test]
fn ranges_watches_and_leases_have_etcds_options() {
    let local = Local::new();
    let start = now(local.keys(Consistency::Linearizable)).unwrap().revision;
    let options = WatchOptions { prev_kv: true, no_delete: true, ..WatchOptions::new(KeyRange::prefix("k")) };
    let mut watch = now(local.watch_with(options)).unwrap();
    let mut next = Task::new(watch.next());
    assert!(next.poll().is_none());
    let lease = LeaseId(5);
    now(local.submit(Entry { leases: vec![LeaseChange::Grant { lease, ttl_ms: 900 }], ..Entry::default() })).unwrap();
    for value in ["1", "2"] {
        let op = PutOp { key: "k".into(), value: value.into(), lease: Some(lease), ..PutOp::default() };
        let txn = Txn { success: vec![TxnOp::Put(op)], ..Txn::default() };
        let receipt = now(local.submit(Entry { txn: Some(txn), ..Entry::default() })).unwrap();
        assert!(receipt.txn.unwrap().succeeded);
    }
    assert!(next.woken() > 0);
    let Some(Ok(Some(WatchItem::Events { events, revision }))) = next.poll() else { panic!("events") };
    let values = |kv: &KeyValue| kv.value.clone();
    assert_eq!(events.iter().map(|event| values(&event.kv)).collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(events[1].prev.as_ref().map(values), Some(Bytes::from("1")));
    assert_eq!(revision, Revision(start.0 + 2));
    drop(next);
    local.advance(400);
    let view = now(local.lease(lease, true, Consistency::Linearizable)).unwrap().unwrap();
    assert_eq!((view.ttl_ms, view.remaining_ms, &view.keys[..]), (900, 500, &[Bytes::from("k")][..]));
    local.advance(500);
    assert_eq!(now(local.leases(Consistency::Linearizable)).unwrap(), []);
    // Deletes were not asked for, but that there is nothing up to there is news.
    let item = now(watch.next()).unwrap().unwrap();
    assert_eq!(item, WatchItem::Events { events: vec![], revision: Revision(start.0 + 3) });

    let past = RangeOp { revision: Some(revision), ..RangeOp::new(KeyRange::prefix("")) };
    let found = now(local.read_with(past.clone(), Consistency::Linearizable)).unwrap();
    assert_eq!((found.count, found.kvs[0].version, found.revision), (1, 2, Revision(start.0 + 3)));
    now(local.compact(found.revision, true)).unwrap();
    assert_eq!(now(local.read_with(past, Consistency::Linearizable)).unwrap_err().code, Code::COMPACTED);
    let view = now(local.keys(Consistency::Linearizable)).unwrap();
    assert_eq!((view.compacted, view.keys, view.unswept), (found.revision, 0, false));
    let from = WatchOptions { from: Some(revision), ..WatchOptions::new(KeyRange::prefix("")) };
    let mut late = now(local.watch_with(from)).unwrap();
    assert_eq!(now(late.next()), Ok(Some(WatchItem::Compacted { compacted: found.revision })));
    assert_eq!(now(late.next()), Ok(None));
}

#[test]
fn an_image_has_every_change_in_order_and_stays_as_it_is() {
    let put = |key: &'static str, value: Option<&'static str>, lease| Put {
        key: Bytes::from(key),
        value: value.map(Bytes::from),
        lease,
    };
    let local = Local::new();
    let submit = |entry| now(local.submit(entry)).unwrap();
    let lease = LeaseId(-5);
    let grant = LeaseChange::Grant { lease, ttl_ms: 9_000 };
    let puts = vec![put("a", Some("1"), Some(lease)), put("b", Some("2"), None)];
    submit(Entry { leases: vec![grant], puts, ..Entry::default() });
    submit(Entry { puts: vec![put("b", None, None)], ..Entry::default() });
    local.advance(4_000);
    submit(Entry { puts: vec![put("c", Some("3"), None)], ..Entry::default() });
    let image = now(local.image(Consistency::Linearizable)).unwrap();
    submit(Entry { puts: vec![put("a", Some("late"), None)], ..Entry::default() });
    let head = image.head();
    assert_eq!((head.revision, head.compacted), (Revision(4), Revision(0)));
    for _ in 0..2 {
        let changes: Vec<_> = image.changes().map(|change| change.unwrap()).collect();
        let told: Vec<_> = changes.iter().map(|c| (c.kv.mod_revision.0, c.sub, c.deleted, &c.kv.key[..])).collect();
        assert_eq!(told, [(2, 0, false, &b"a"[..]), (2, 1, false, b"b"), (3, 0, true, b"b"), (4, 0, false, b"c")]);
        assert_eq!(changes[0].kv.lease, Some(lease));
    }
    let leases: Vec<_> = image.leases().map(|lease| lease.unwrap()).collect();
    assert_eq!(leases, [LeaseView { lease, ttl_ms: 9_000, remaining_ms: 5_000, keys: Vec::new() }]);
}

#[test]
fn an_entry_of_a_format_that_is_not_known_stops_the_machine_and_changes_nothing() {
    use buttress_core::{Index, Machine as _, Term, entry::ENTRY_FORMAT};
    use buttress_state::{Limits, Machine, MemStore};

    let limits = Limits { entry_format: ENTRY_FORMAT, ..Limits::default() };
    let mut old = Machine::open_with(MemStore::new(), limits).unwrap();
    let put = |key: &'static str| Put { key: Bytes::from(key), value: Some(Bytes::from("v")), lease: None };
    let plain = Entry { puts: vec![put("a")], ..Entry::default() };
    assert!(old.apply(Index(1), Term(1), plain.encode()).result.is_ok());
    let store = old.store().clone();
    let txn = Txn { success: vec![TxnOp::Put(PutOp { key: Bytes::from("b"), ..PutOp::default() })], ..Txn::default() };
    let newer = Entry { txn: Some(txn), ..Entry::default() };
    assert!(newer.format() > ENTRY_FORMAT);
    let fatal = old.apply(Index(2), Term(1), newer.encode()).fatal.expect("it cannot be judged");
    assert_eq!(fatal.code, Code::FORMAT);
    // And nothing behind it, though it could be read: it would be applied to another state than elsewhere.
    assert!(old.apply(Index(3), Term(1), plain.encode()).fatal.is_some());
    assert_eq!(old.store(), &store);
    // Raising the format is an entry that it reads.
    let raise = buttress_state::machine::raise(3, TimeMs(1));
    assert_eq!(raise.format(), ENTRY_FORMAT);
    let mut old = Machine::open_with(store, limits).unwrap();
    assert_eq!(old.entry_format().unwrap(), ENTRY_FORMAT);
    assert!(old.apply(Index(2), Term(1), raise.encode()).fatal.is_none());
    assert_eq!(old.entry_format().unwrap(), 3);
}
