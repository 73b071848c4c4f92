//! What every [`Ledger`] and every [`Stream`] owes, as one suite that the embedded log and the bridges both pass.
//!
//! It knows nothing of what it runs against but the traits, a place of its own in the key space, and how to let time pass. A
//! check that fails panics with what it wanted. What an engine cannot hold is part of the contract too: it is refused with
//! `UNSUPPORTED` and a hint, and nothing of the entry has happened.

use std::sync::Arc;

use buttress_core::{
    Append, AppendOutcome, BoxFuture, Code, Compare, Consistency, Cursor, Entry, Error, Guard, KeyRange, LeaseChange,
    LeaseId, Ledger, LogId, Offset, OpResult, Operand, Put, PutOp, RangeOp, Receipt, Refusal, Relation, Revision,
    Scope, StatePut, Stream, SubmitError, TimeMs, Timer, TopicChange, Txn, TxnOp,
    entry::TopicSettings,
    ledger::{KeyEvent, KeyValue, Watch, WatchEvent, WatchItem, WatchOptions},
    txn::{SortOrder, SortTarget},
};
use buttress_wire::records::{BatchView, Builder};
use bytes::Bytes;

/// Lets so many milliseconds pass, on whatever clock the ledger looks at.
pub type Pass = Box<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

/// A ledger of keys to be held to its contract.
pub struct Keys {
    pub ledger: Arc<dyn Ledger>,
    /// All keys of the suite begin with it; nothing lies there yet.
    pub prefix: String,
    pub pass: Pass,
}

fn put(key: &Bytes, value: &str) -> Put {
    Put { key: key.clone(), value: Some(Bytes::copy_from_slice(value.as_bytes())), lease: None }
}

fn delete(key: &Bytes) -> Put {
    Put { key: key.clone(), value: None, lease: None }
}

fn guard_of(error: SubmitError) -> usize {
    match error {
        SubmitError::Refused(Refusal::Guard { position, .. }) => position,
        other => panic!("a guard was to refuse, but: {other}"),
    }
}

impl Keys {
    fn key(&self, name: &str) -> Bytes {
        format!("{}{name}", self.prefix).into()
    }

    fn range(&self, name: &str) -> KeyRange {
        KeyRange::prefix(self.key(name))
    }

    async fn submit(&self, entry: Entry) -> Result<Receipt, SubmitError> {
        self.ledger.submit(entry).await
    }

    async fn puts(&self, puts: Vec<Put>) -> Revision {
        self.submit(Entry { puts, ..Entry::default() }).await.expect("puts without guards are carried out").revision
    }

    async fn get(&self, key: &Bytes) -> Option<KeyValue> {
        let read = self.ledger.read(KeyRange::key(key.clone()), 1, Consistency::Linearizable).await;
        read.expect("a key is read").kvs.pop()
    }

    /// The suite.
    pub async fn run(&self) {
        self.writes_count().await;
        self.guards_refuse_all().await;
        self.every_guard().await;
        self.ranges_and_history().await;
        self.ranges_with_options().await;
        self.transactions_that_read().await;
        self.watches().await;
        self.watches_with_options().await;
        self.leases().await;
        self.compaction().await;
        self.bad_input().await;
        self.what_it_cannot_hold().await;
    }

    /// Revisions and versions are etcd's: a delete ends a key, a new one begins at version 1.
    async fn writes_count(&self) {
        let key = self.key("count/a");
        let first = self.puts(vec![put(&key, "1")]).await;
        let second = self.puts(vec![put(&key, "2")]).await;
        assert!(second > first, "revisions grow");
        let found = self.get(&key).await.expect("the key is there");
        assert_eq!((&found.value[..], found.version), (&b"2"[..], 2));
        assert_eq!((found.create_revision, found.mod_revision, found.lease), (first, second, None));
        self.puts(vec![delete(&key)]).await;
        assert_eq!(self.get(&key).await, None);
        let again = self.puts(vec![put(&key, "3")]).await;
        let found = self.get(&key).await.expect("the key is there again");
        assert_eq!((found.version, found.create_revision), (1, again));
    }

    /// A guard that does not hold refuses the whole entry and is named; of two that both want to create, one does.
    async fn guards_refuse_all(&self) {
        let (a, b) = (self.key("guards/a"), self.key("guards/b"));
        let create = |value: &str| Entry {
            guards: vec![Guard::CreateRevision { key: a.clone(), revision: Revision(0) }],
            puts: vec![put(&a, value), put(&b, value)],
            ..Entry::default()
        };
        let (first, second) = (self.ledger.submit(create("one")), self.ledger.submit(create("two")));
        let (first, second) = futures::future::join(first, second).await;
        assert!(first.is_ok() != second.is_ok(), "one of two creations wins: {first:?}, {second:?}");
        let winner = if first.is_ok() { "one" } else { "two" };
        assert_eq!(guard_of(first.and(second).unwrap_err()), 0);
        let values = [self.get(&a).await, self.get(&b).await].map(|kv| kv.expect("both keys are there").value);
        assert_eq!(values, [winner, winner].map(Bytes::from), "both keys are the winner's");

        let at = self.get(&a).await.expect("it is there").mod_revision;
        let stale = Entry {
            guards: vec![
                Guard::ModRevision { key: a.clone(), revision: at },
                Guard::Value { key: b.clone(), value: "three".into() },
            ],
            puts: vec![put(&a, "lost")],
            ..Entry::default()
        };
        assert_eq!(guard_of(self.submit(stale).await.unwrap_err()), 1, "the guard that does not hold is named");
        assert_eq!(self.get(&a).await.expect("it is there").mod_revision, at, "nothing of a refused entry happens");
    }

    async fn every_guard(&self) {
        let (key, none) = (self.key("every/a"), self.key("every/none"));
        let created = self.puts(vec![put(&key, "x")]).await;
        let modified = self.puts(vec![put(&key, "y")]).await;
        let holding = [
            Guard::ModRevision { key: key.clone(), revision: modified },
            Guard::CreateRevision { key: key.clone(), revision: created },
            Guard::Version { key: key.clone(), version: 2 },
            Guard::Value { key: key.clone(), value: "y".into() },
            Guard::ModRevision { key: none.clone(), revision: Revision(0) },
            Guard::CreateRevision { key: none.clone(), revision: Revision(0) },
            Guard::Version { key: none.clone(), version: 0 },
        ];
        let entry = Entry { guards: holding.to_vec(), puts: vec![put(&self.key("every/b"), "")], ..Entry::default() };
        self.submit(entry).await.expect("every guard holds");
        let broken = [
            Guard::ModRevision { key: key.clone(), revision: created },
            Guard::CreateRevision { key: key.clone(), revision: Revision(0) },
            Guard::Version { key: key.clone(), version: 1 },
            Guard::Value { key: key.clone(), value: "x".into() },
            Guard::Value { key: none, value: Bytes::new() },
            Guard::LeaseAlive { lease: LeaseId(0x7e57_0000_0000) },
        ];
        for guard in broken {
            let entry = Entry { guards: vec![guard.clone()], puts: vec![delete(&key)], ..Entry::default() };
            assert_eq!(guard_of(self.submit(entry).await.unwrap_err()), 0, "{guard:?}");
        }
        assert!(self.get(&key).await.is_some());
    }

    async fn ranges_and_history(&self) {
        let keys: Vec<Bytes> = (0..5).map(|n| self.key(&format!("range/{n}"))).collect();
        let before = self.puts(keys.iter().map(|key| put(key, "old")).collect()).await;
        self.puts(vec![put(&keys[1], "new"), delete(&keys[3])]).await;
        let range = self.range("range/");
        let now = self.ledger.read(range.clone(), 100, Consistency::Linearizable).await.unwrap();
        let values: Vec<_> = now.kvs.iter().map(|kv| kv.value.clone()).collect();
        assert_eq!(values, ["old", "new", "old", "old"].map(Bytes::from));
        assert!(!now.more && now.revision > before);
        let some = self.ledger.read(range.clone(), 2, Consistency::Serializable).await.unwrap();
        assert!(some.kvs.len() <= 2 && (some.more || some.kvs.len() < 2), "a limit leaves some out, and says so");
        let then = self.ledger.read_at(range.clone(), 100, before).await.unwrap();
        assert_eq!(then.kvs.len(), 5, "an earlier revision is read as it was");
        assert!(then.kvs.iter().all(|kv| &kv.value[..] == b"old"));
        let future = self.ledger.read_at(range, 100, Revision(now.revision.0 + 1_000_000)).await.unwrap_err();
        assert_eq!(future.code, Code::REVISION_FUTURE);
    }

    /// Limits, orders, bounds and counts are etcd's.
    async fn ranges_with_options(&self) {
        let keys: Vec<Bytes> = (0..5).map(|n| self.key(&format!("options/{n}"))).collect();
        let first = self.puts(keys.iter().map(|key| put(key, "old")).collect()).await;
        let second = self.puts(vec![put(&keys[2], "new")]).await;
        let read =
            async |op: RangeOp| self.ledger.read_with(op, Consistency::Linearizable).await.expect("a range is read");
        let all = || RangeOp::new(self.range("options/"));
        let newest = RangeOp { order: SortOrder::Descending, target: SortTarget::ModRevision, limit: 1, ..all() };
        let found = read(newest).await;
        assert_eq!((&found.kvs[0].key, found.count, found.more), (&keys[2], 5, true), "the newest of five");
        assert!(found.revision >= second);
        let last = read(RangeOp { order: SortOrder::Descending, limit: 2, keys_only: true, ..all() }).await;
        assert_eq!(last.kvs.iter().map(|kv| &kv.key).collect::<Vec<_>>(), [&keys[4], &keys[3]]);
        assert!(last.kvs.iter().all(|kv| kv.value.is_empty()), "values come empty");
        let count = read(RangeOp { count_only: true, ..all() }).await;
        assert_eq!((count.kvs.len(), count.count), (0, 5));
        let changed = read(RangeOp { min_mod_revision: Some(second), ..all() }).await;
        assert_eq!(changed.kvs.iter().map(|kv| &kv.value[..]).collect::<Vec<_>>(), [b"new"]);
        let then = read(RangeOp { revision: Some(first), ..all() }).await;
        assert!(then.kvs.iter().all(|kv| &kv.value[..] == b"old"), "as it was at an earlier revision");
        let keys = self.ledger.keys(Consistency::Linearizable).await.expect("the key space is looked at");
        assert!(keys.revision >= second && keys.keys >= 5, "{keys:?}");
        match self.ledger.hash_keys(None).await {
            Ok(hash) => assert!(hash.revision >= second, "{hash:?}"),
            Err(error) => assert!(error.code == Code::UNSUPPORTED && error.hint.is_some(), "{error}"),
        }
    }

    /// What only reads is read at one revision, in whichever branch its compares choose.
    async fn transactions_that_read(&self) {
        let (a, none) = (self.key("txn/a"), self.key("txn/none"));
        let at = self.puts(vec![put(&a, "1")]).await;
        let version = |key: &Bytes, number| Compare {
            range: KeyRange::key(key.clone()),
            relation: Relation::Equal,
            operand: Operand::Version(number),
        };
        let get = |key: &Bytes| TxnOp::Range(RangeOp::new(KeyRange::key(key.clone())));
        let txn = |compares| Txn { compares, success: vec![get(&a), get(&none)], failure: vec![get(&none)] };
        for consistency in [Consistency::Linearizable, Consistency::Serializable] {
            let (revision, read) =
                self.ledger.read_txn(txn(vec![version(&a, 1)]), consistency).await.expect("it is read");
            let [OpResult::Range(found), OpResult::Range(empty)] = &read.results[..] else { panic!("{read:?}") };
            assert!(read.succeeded && revision >= at, "{read:?}");
            assert_eq!((&found.kvs[0].value[..], found.kvs[0].mod_revision, empty.count), (&b"1"[..], at, 0));
            let (_, read) = self.ledger.read_txn(txn(vec![version(&none, 1)]), consistency).await.expect("it is read");
            assert!(!read.succeeded && read.results.len() == 1, "the other branch: {read:?}");
        }
        let change = TxnOp::Put(PutOp { key: a.clone(), value: "2".into(), ..PutOp::default() });
        let change = Txn { compares: Vec::new(), success: vec![change], failure: Vec::new() };
        let error = self.ledger.read_txn(change, Consistency::Linearizable).await.unwrap_err();
        assert_eq!(error.code, Code::BAD_REQUEST, "what changes something is no read");
        assert_eq!(self.get(&a).await.expect("it is there").mod_revision, at);
    }

    /// Filters, what was there before, and how far the watch is.
    async fn watches_with_options(&self) {
        let (a, b) = (self.key("with/a"), self.key("with/b"));
        let first = self.puts(vec![put(&a, "1")]).await;
        let second = self.puts(vec![put(&a, "2"), put(&b, "2")]).await;
        let third = self.puts(vec![delete(&a)]).await;
        let options = || WatchOptions { from: Some(first), ..WatchOptions::new(self.range("with/")) };
        let watch = async |options: WatchOptions, count: usize| {
            let mut watch = self.ledger.watch_with(options).await.expect("a range is watched");
            let mut seen: Vec<WatchEvent> = Vec::new();
            while seen.len() < count {
                match watch.next().await.expect("the watch goes on").expect("the node runs") {
                    WatchItem::Events { events, revision } => {
                        assert!(events.iter().all(|event| event.kv.mod_revision <= revision), "complete up to there");
                        seen.extend(events);
                    }
                    WatchItem::Compacted { compacted } => panic!("nobody has compacted up to {compacted}"),
                }
                assert!(watch.position() > seen.last().map_or(Revision(0), |event| event.kv.mod_revision));
            }
            seen
        };
        let seen = watch(WatchOptions { prev_kv: true, ..options() }, 4).await;
        let told: Vec<_> = seen
            .iter()
            .map(|WatchEvent { kv, deleted, prev }| {
                (kv.mod_revision, &kv.key, *deleted, kv.value.clone(), prev.as_ref().map(|prev| prev.value.clone()))
            })
            .collect();
        let wanted = [
            (first, &a, false, "1".into(), None),
            (second, &a, false, "2".into(), Some("1".into())),
            (second, &b, false, "2".into(), None),
            (third, &a, true, Bytes::new(), Some("2".into())),
        ];
        assert_eq!(told, wanted);
        assert_eq!((seen[1].kv.version, seen[1].kv.create_revision), (2, first));
        let deletes = watch(WatchOptions { no_put: true, ..options() }, 1).await;
        assert_eq!((deletes.len(), deletes[0].deleted, deletes[0].kv.mod_revision), (1, true, third));
        let puts = watch(WatchOptions { no_delete: true, ..options() }, 3).await;
        assert!(puts.iter().all(|event| !event.deleted && event.prev.is_none()), "{puts:?}");
    }

    async fn next(&self, watch: &mut dyn Watch) -> Vec<KeyEvent> {
        watch.next().await.expect("the watch goes on").expect("the node runs")
    }

    /// Changes come in order, whole revisions, from where they were asked for, and only those of the range.
    async fn watches(&self) {
        let (a, b) = (self.key("watch/a"), self.key("watch/b"));
        let first = self.puts(vec![put(&a, "1")]).await;
        let mut from_now = self.ledger.watch(self.range("watch/"), None).await.unwrap();
        let second = self.puts(vec![put(&a, "2"), put(&b, "2")]).await;
        self.puts(vec![put(&self.key("elsewhere"), "")]).await;
        let third = self.puts(vec![delete(&a)]).await;
        let mut from_first = self.ledger.watch(self.range("watch/"), Some(first)).await.unwrap();
        let event = |revision, key: &Bytes, value: Option<&'static str>| KeyEvent {
            revision,
            key: key.clone(),
            value: value.map(Bytes::from),
        };
        let wanted = [
            event(first, &a, Some("1")),
            event(second, &a, Some("2")),
            event(second, &b, Some("2")),
            event(third, &a, None),
        ];
        for (watch, wanted) in [(&mut from_first, &wanted[..]), (&mut from_now, &wanted[1..])] {
            let mut seen = Vec::new();
            while seen.len() < wanted.len() {
                let events = self.next(&mut **watch).await;
                if let Some(last) = seen.last().map(|e: &KeyEvent| e.revision) {
                    assert!(events[0].revision > last, "a revision comes whole");
                }
                seen.extend(events);
            }
            assert_eq!(seen, wanted);
        }
    }

    /// Keys end with their lease, whether it is revoked or nobody renews it, and a guard sees the one that lives.
    async fn leases(&self) {
        let mut salt =
            self.prefix.bytes().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let mut id = || {
            salt = salt.wrapping_add(1);
            LeaseId(0x6200_0000_0000 + i64::from(salt))
        };
        let (first, second) = (id(), id());
        let with = |lease, key: &Bytes| Put { lease: Some(lease), ..put(key, "held") };
        let key = self.key("lease/a");
        let grant = |lease, ttl_ms| vec![LeaseChange::Grant { lease, ttl_ms }];
        let entry = Entry { leases: grant(first, 60_000), puts: vec![with(first, &key)], ..Entry::default() };
        let receipt = self.submit(entry).await.expect("a lease is granted and used in one entry");
        assert!(receipt.lease_ttls_ms.first().is_some_and(|ttl| *ttl >= 60_000), "{receipt:?}");
        assert_eq!(self.get(&key).await.and_then(|kv| kv.lease), Some(first));
        let view = self.ledger.lease(first, true, Consistency::Linearizable).await.expect("a lease is looked at");
        let view = view.expect("the lease lives");
        assert_eq!((view.lease, &view.keys[..]), (first, std::slice::from_ref(&key)), "with the keys that hang on it");
        assert!(view.ttl_ms >= 60_000 && view.remaining_ms > 0, "{view:?}");
        let all = self.ledger.leases(Consistency::Linearizable).await.expect("leases are listed");
        assert!(all.contains(&first) && all.is_sorted(), "{all:?}");
        let taken = self.submit(Entry { leases: grant(first, 60_000), ..Entry::default() }).await.unwrap_err();
        assert_eq!(taken.code(), Code::LEASE_EXISTS);
        let renewed = Entry { leases: vec![LeaseChange::KeepAlive { lease: first }], ..Entry::default() };
        self.submit(renewed).await.expect("a lease that lives is renewed");
        let alive = |lease| Entry {
            guards: vec![Guard::LeaseAlive { lease }],
            puts: vec![put(&self.key("lease/guarded"), "")],
            ..Entry::default()
        };
        self.submit(alive(first)).await.expect("the lease is alive");

        let revoke = Entry { leases: vec![LeaseChange::Revoke { lease: first }], ..Entry::default() };
        self.submit(revoke).await.expect("a lease that lives is revoked");
        assert_eq!(self.get(&key).await, None, "its keys are gone with it");
        let view = self.ledger.lease(first, true, Consistency::Linearizable).await.expect("a lease is looked at");
        assert_eq!(view, None, "a lease that was revoked is none");
        assert_eq!(guard_of(self.submit(alive(first)).await.unwrap_err()), 0, "a guard on a lease that ended refuses");
        let gone = Entry { leases: vec![LeaseChange::KeepAlive { lease: first }], ..Entry::default() };
        assert_eq!(self.submit(gone).await.unwrap_err().code(), Code::LEASE_UNKNOWN);
        let unknown = Entry { puts: vec![with(first, &key)], ..Entry::default() };
        assert_eq!(self.submit(unknown).await.unwrap_err().code(), Code::LEASE_UNKNOWN);

        // A refused entry grants nothing: its lease can be granted afterwards.
        let refused = Entry {
            guards: vec![Guard::Version { key: key.clone(), version: 7 }],
            leases: grant(second, 2_000),
            puts: vec![with(second, &key)],
            ..Entry::default()
        };
        assert_eq!(guard_of(self.submit(refused).await.unwrap_err()), 0);
        let entry = Entry { leases: grant(second, 2_000), puts: vec![with(second, &key)], ..Entry::default() };
        self.submit(entry).await.expect("a lease whose entry was refused was not granted");
        let mut waited = 0;
        while self.get(&key).await.is_some() {
            assert!(waited < 30_000, "a key without a lease is still there after {waited} ms");
            (self.pass)(500).await;
            waited += 500;
        }
        assert!(waited >= 1_000, "a lease of 2 s has ended after {waited} ms");
        assert_eq!(guard_of(self.submit(alive(second)).await.unwrap_err()), 0);
    }

    /// What was compacted is refused, and a watch goes on behind it.
    async fn compaction(&self) {
        let key = self.key("compact/a");
        let old = self.puts(vec![put(&key, "1")]).await;
        let kept = self.puts(vec![put(&key, "2")]).await;
        self.ledger.compact(kept, false).await.expect("history is compacted");
        assert_eq!(self.ledger.read_at(KeyRange::key(key.clone()), 1, old).await.unwrap_err().code, Code::COMPACTED);
        let error = match self.ledger.watch(KeyRange::key(key.clone()), Some(old)).await {
            Ok(mut watch) => watch.next().await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.code, Code::COMPACTED);
        let read = self.ledger.read(KeyRange::key(key.clone()), 1, Consistency::Linearizable).await.unwrap();
        let from = Some(Revision(read.revision.0 + 1));
        let mut watch = self.ledger.watch(KeyRange::key(key.clone()), from).await.unwrap();
        let new = self.puts(vec![put(&key, "3")]).await;
        assert_eq!(
            self.next(&mut *watch).await,
            [KeyEvent { revision: new, key: key.clone(), value: Some("3".into()) }]
        );
        let options = WatchOptions { from: Some(old), ..WatchOptions::new(KeyRange::key(key.clone())) };
        let mut watch = self.ledger.watch_with(options).await.expect("a range is watched");
        match watch.next().await.expect("it says what it knows") {
            Some(WatchItem::Compacted { compacted }) => assert!(compacted >= kept, "{compacted}"),
            other => panic!("history was to be gone, but: {other:?}"),
        }
        let view = self.ledger.keys(Consistency::Linearizable).await.expect("the key space is looked at");
        assert!(view.compacted >= kept && view.revision >= new, "{view:?}");
        let twice = self.ledger.compact(kept, false).await.unwrap_err();
        assert_eq!(twice.code(), Code::COMPACTED);
    }

    async fn bad_input(&self) {
        let large = Put { key: self.key("large"), value: Some(vec![0; 9 * 1024 * 1024].into()), lease: None };
        let error = self.submit(Entry { puts: vec![large], ..Entry::default() }).await.unwrap_err();
        assert_eq!(error.code(), Code::TOO_LARGE);
        assert_eq!(self.get(&self.key("large")).await, None);
    }

    async fn what_it_cannot_hold(&self) {
        if self.ledger.scope() == Scope::Entry {
            return;
        }
        let key = self.key("scope");
        let entries = [
            ("timers", Entry { timers: vec![Timer::Cancel { id: "t".into() }], ..Entry::default() }),
            ("state", Entry { state: vec![state("s", "k", "v")], ..Entry::default() }),
            ("cursors", Entry { cursors: vec![cursor("g", LogId(0), 0)], ..Entry::default() }),
            ("records", Entry { appends: vec![append(LogId(0), &["x"])], ..Entry::default() }),
        ];
        for (what, mut entry) in entries {
            entry.puts.push(put(&key, "x"));
            unsupported(what, self.submit(entry).await);
        }
        assert_eq!(self.get(&key).await, None, "nothing of what is refused has happened");
    }
}

fn unsupported(what: &str, result: Result<Receipt, SubmitError>) {
    match result {
        Err(SubmitError::Failed(Error { code: Code::UNSUPPORTED, hint: Some(_), .. })) => {}
        other => panic!("{what} were to be refused with a way out, but: {other:?}"),
    }
}

fn state(space: &str, key: &str, value: &str) -> StatePut {
    StatePut {
        space: space.to_owned(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
    }
}

fn cursor(group: &str, log: LogId, next: i64) -> Cursor {
    Cursor { group: group.to_owned(), log, next: Offset(next), metadata: String::new() }
}

fn append(log: LogId, values: &[&str]) -> Append {
    let mut builder = Builder::new();
    for value in values {
        builder.push(1_700_000_000_000, None, Some(value.as_bytes()), &[]);
    }
    Append {
        log,
        records: builder.count(),
        max_timestamp_ms: builder.max_timestamp_ms(),
        sequence: None,
        batch: builder.build().expect("there are values"),
    }
}

/// Takes a group's cursor on a partition; nothing where a guard is all that it takes.
pub type Claims = Box<dyn Fn(&str, LogId) -> BoxFuture<'static, Result<(), Error>> + Send + Sync>;

/// One host of a stream: what a process has.
pub struct Host {
    pub ledger: Arc<dyn Ledger>,
    pub stream: Arc<dyn Stream>,
    pub claim: Claims,
}

/// A stream to be held to its contract.
pub struct Records {
    pub host: Host,
    /// Another host of the same; it may know topics only after it has looked.
    pub other: Host,
    /// Lets the other host look at what topics there are.
    pub look: Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
    /// Begins the names of topics and groups; nothing is there yet.
    pub prefix: String,
}

impl Host {
    async fn submit(&self, entry: Entry) -> Result<Receipt, SubmitError> {
        self.ledger.submit(entry).await
    }

    async fn append(&self, log: LogId, values: &[&str]) -> Offset {
        let entry = Entry { appends: vec![append(log, values)], ..Entry::default() };
        match &self.submit(entry).await.expect("an append without guards is carried out").appends[..] {
            [AppendOutcome::Appended { base_offset }] => *base_offset,
            other => panic!("one append was to be carried out, but: {other:?}"),
        }
    }

    fn logs(&self, topic: &str) -> Vec<LogId> {
        self.stream.topic(topic).expect("the topic is there").partitions.iter().map(|p| p.log).collect()
    }

    /// So many values from an offset on, with their offsets, and no more are there. What was committed is seen soon: a Kafka says
    /// that a transaction is committed before every partition has heard of it.
    async fn values(&self, log: LogId, from: i64, count: usize) -> Vec<(i64, String)> {
        let mut values = Vec::new();
        let mut next = from;
        let mut waits = 0;
        loop {
            let wait_ms = if values.len() < count { 1_000 } else { 0 };
            let fetched =
                self.stream.fetch(log, Offset(next), 1024 * 1024, wait_ms).await.expect("the partition is read");
            let Some(last) = fetched.batches.last() else {
                waits += 1;
                if values.len() >= count || waits > 20 {
                    return values;
                }
                continue;
            };
            let start = next;
            next = last.last_offset.0 + 1;
            for batch in fetched.batches {
                let view = BatchView::parse_stored(batch.bytes).expect("a batch is one");
                if view.is_control() {
                    continue;
                }
                for record in view.records().expect("it is not compressed") {
                    let record = record.expect("a record is one");
                    if record.offset >= start {
                        let value = record.value.unwrap_or_default();
                        values.push((record.offset, String::from_utf8_lossy(&value).into_owned()));
                    }
                }
            }
        }
    }

    async fn row(&self, space: &str, key: &str) -> Option<Bytes> {
        let rows = self.ledger.state(space, vec![Bytes::copy_from_slice(key.as_bytes())]).await;
        rows.expect("state is read").pop().flatten()
    }
}

/// What a function commits for a batch.
fn batch(group: &str, log: LogId, from: Option<i64>, to: i64, out: Append, rows: Vec<StatePut>) -> Entry {
    Entry {
        guards: vec![Guard::Cursor { group: group.to_owned(), log, expected: from.map(Offset) }],
        state: rows,
        appends: vec![out],
        cursors: vec![cursor(group, log, to)],
        ..Entry::default()
    }
}

impl Records {
    /// The suite.
    pub async fn run(&self) {
        let (source, target) = (format!("{}in", self.prefix), format!("{}out", self.prefix));
        self.topics(&source, &target).await;
        self.appends_and_fetches(&source).await;
        self.consume_transform_produce(&source, &target).await;
        self.bad_input(&source).await;
        self.what_it_cannot_hold(&source).await;
    }

    async fn topics(&self, source: &str, target: &str) {
        for (id, name) in [(1, source), (2, target)] {
            let create = || TopicChange::Create {
                name: name.to_owned(),
                id: [id; 16],
                partitions: 2,
                settings: TopicSettings::default(),
            };
            let receipt =
                self.host.submit(Entry { topics: vec![create()], ..Entry::default() }).await.expect("a topic is made");
            assert_eq!(
                receipt.created.iter().map(|(name, logs)| (&name[..], logs.len())).collect::<Vec<_>>(),
                [(name, 2)]
            );
            assert_eq!(receipt.created[0].1, self.host.logs(name), "and is there once that is told");
            let again = self.host.submit(Entry { topics: vec![create()], ..Entry::default() }).await.unwrap_err();
            assert_eq!(again.code(), Code::TOPIC_EXISTS);
        }
        (self.look)().await;
    }

    async fn appends_and_fetches(&self, source: &str) {
        let host = &self.host;
        let log = host.logs(source)[0];
        assert_eq!(host.values(log, 0, 0).await, []);
        let first = host.append(log, &["a", "b", "c"]).await;
        let second = host.append(log, &["d"]).await;
        assert!(second.0 >= first.0 + 3, "offsets grow");
        let values = host.values(log, 0, 4).await;
        assert_eq!(values.iter().map(|(_, v)| &v[..]).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        assert_eq!((values[0].0, values[3].0), (first.0, second.0));
        let middle = host.values(log, first.0 + 1, 3).await;
        assert_eq!(middle, values[1..], "reading begins in the middle of a batch");
        let fetched = host.stream.fetch(log, second, 1, 0).await.unwrap();
        assert_eq!(fetched.batches[0].base_offset, second, "at least one batch comes, however little is asked for");
        let end = fetched.end;
        let waited = host.stream.fetch(log, end, 1024, 50).await.unwrap();
        assert_eq!(waited.batches, [], "at the end a fetch waits and comes back");
        let beyond = host.stream.fetch(log, Offset(end.0 + 1_000), 1024, 0).await.unwrap_err();
        assert_eq!(beyond.code, Code::OFFSET_OUT_OF_RANGE);
        let found = host.stream.offset_for_time(log, 0).await.unwrap();
        assert_eq!(found.map(|(offset, _)| offset), Some(first));
    }

    /// Outputs, state and cursor happen together or not at all, once; whoever comes after goes on from there.
    async fn consume_transform_produce(&self, source: &str, target: &str) {
        let group = format!("{}group", self.prefix);
        let (host, other) = (&self.host, &self.other);
        let (log, out) = (host.logs(source)[0], host.logs(target)[1]);
        (host.claim)(&group, log).await.expect("a cursor is claimed");
        assert_eq!(host.stream.cursor(&group, log), None);
        let space = format!("{group}/0");
        let first = batch(
            &group,
            log,
            None,
            3,
            append(out, &["A", "B", "C"]),
            vec![state(&space, "n", "3"), state(&space, "m", "x")],
        );
        let receipt = host.submit(first.clone()).await.expect("the first batch is committed");
        assert!(matches!(receipt.appends[..], [AppendOutcome::Appended { .. }]), "{receipt:?}");
        assert_eq!(host.stream.cursor(&group, log), Some(Offset(3)));
        assert_eq!(host.row(&space, "n").await, Some("3".into()));
        assert_eq!(guard_of(host.submit(first.clone()).await.unwrap_err()), 0, "the same batch is not committed again");
        let values = |values: Vec<(i64, String)>| values.into_iter().map(|(_, v)| v).collect::<Vec<_>>();
        assert_eq!(values(host.values(out, 0, 3).await), ["A", "B", "C"]);

        // Another host takes over: it goes on where the first has ended, with its state.
        let (log2, out2) = (other.logs(source)[0], other.logs(target)[1]);
        (other.claim)(&group, log2).await.expect("a cursor is claimed by another");
        assert_eq!(other.stream.cursor(&group, log2), Some(Offset(3)));
        assert_eq!(other.row(&space, "n").await, Some("3".into()));
        let forget = StatePut { space: space.clone(), key: "m".into(), value: None };
        let second = batch(&group, log2, Some(3), 4, append(out2, &["D"]), vec![state(&space, "n", "4"), forget]);
        other.submit(second).await.expect("the second batch is committed by another host");
        assert_eq!((other.row(&space, "n").await, other.row(&space, "m").await), (Some("4".into()), None));

        // The first host does not know that, and tries the same batch.
        let late = batch(&group, log, Some(3), 4, append(out, &["twice"]), vec![state(&space, "n", "bad")]);
        let error = host.submit(late).await.unwrap_err();
        let refused = matches!(error, SubmitError::Refused(Refusal::Guard { .. })) || error.code() == Code::EPOCH_STALE;
        assert!(refused, "a host that was overtaken is refused: {error}");
        assert_eq!(values(other.values(out2, 0, 4).await), ["A", "B", "C", "D"], "and nothing of what it did is seen");

        // It takes over again, and finds what is.
        (host.claim)(&group, log).await.expect("a cursor is claimed back");
        assert_eq!(host.stream.cursor(&group, log), Some(Offset(4)));
        assert_eq!((host.row(&space, "n").await, host.row(&space, "m").await), (Some("4".into()), None));
        let third = batch(&group, log, Some(4), 4, append(out, &["E"]), Vec::new());
        host.submit(third).await.expect("a cursor may stay where it is");
        assert_eq!(values(host.values(out, 0, 5).await), ["A", "B", "C", "D", "E"]);
    }

    async fn bad_input(&self, source: &str) {
        let log = self.host.logs(source)[1];
        let mut broken = append(log, &["x"]);
        broken.batch.truncate(broken.batch.len() - 1);
        let error = self.host.submit(Entry { appends: vec![broken], ..Entry::default() }).await.unwrap_err();
        assert_eq!(error.code(), Code::BATCH_INVALID);
        assert_eq!(self.host.values(log, 0, 0).await, []);
        let nowhere = self.host.stream.fetch(LogId(u32::MAX), Offset(0), 1024, 0).await.unwrap_err();
        assert_eq!(nowhere.code, Code::TOPIC_UNKNOWN);
    }

    async fn what_it_cannot_hold(&self, source: &str) {
        if self.host.ledger.scope() == Scope::Entry {
            return;
        }
        let log = self.host.logs(source)[1];
        let key: Bytes = "k".into();
        let entries = [
            ("keys", Entry { puts: vec![put(&key, "v")], ..Entry::default() }),
            (
                "guards on keys",
                Entry { guards: vec![Guard::Version { key: key.clone(), version: 0 }], ..Entry::default() },
            ),
            ("leases", Entry { leases: vec![LeaseChange::Grant { lease: LeaseId(1), ttl_ms: 1 }], ..Entry::default() }),
            (
                "timers",
                Entry {
                    timers: vec![Timer::Set { id: "t".into(), due: TimeMs(0), key: key.clone(), value: key.clone() }],
                    ..Entry::default()
                },
            ),
            ("ends of logs", Entry { guards: vec![Guard::LogEnd { log, expected: Offset(0) }], ..Entry::default() }),
        ];
        for (what, mut entry) in entries {
            entry.appends.push(append(log, &["x"]));
            unsupported(what, self.host.submit(entry).await);
        }
        assert_eq!(self.host.values(log, 0, 0).await, [], "nothing of what is refused has happened");
    }
}
