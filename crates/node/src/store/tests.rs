//! The store against a model, with crashes, full disks, rot and snapshots.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
    },
};

use buttress_core::{
    Code, Error, Index, LogId, NodeId, Offset, Store, Table, Term, TimeMs, WriteBatch,
    entry::TopicSettings,
    ledger::Batch,
    store::{Row, StoredBatch},
};
use bytes::Bytes;
use expect_test::expect;
use proptest::prelude::*;

use super::{
    root::{Root, dir_name},
    rows::{DirGuard, Rows},
    *,
};
use crate::wal::{
    Identity,
    disk::{DirDisk, Disk},
    faulty::{FailingDisk, Seeded, SyncedLengths},
};

fn identity() -> Identity {
    Identity { cluster_id: "test".into(), node: NodeId(7) }
}

fn tiny() -> Options {
    Options {
        segment_bytes: 2000,
        segment_age_ms: 10_000,
        tail_bytes: 600,
        checkpoint_bytes: 3000,
        checkpoint_row_bytes: 3000,
        checkpoint_ms: 50,
        checkpoint_early_thirds: 0,
        pending_bytes_max: 4000,
    }
}

fn open(path: &Path) -> DiskStore {
    try_open(path).unwrap_or_else(|e| panic!("{e}"))
}

fn try_open(path: &Path) -> Result<DiskStore, Error> {
    DiskStore::open(path, identity(), tiny(), |_| {})
}

fn batch(log: u32, base: i64, records: i64, index: u64, len: usize) -> StoredBatch {
    StoredBatch {
        log: LogId(log),
        base_offset: Offset(base),
        last_offset: Offset(base + records - 1),
        // Producers' clocks go back and forth.
        max_timestamp_ms: 1000 + base * 10 - (base % 3) * 25,
        index: Index(index),
        committed_at: TimeMs(5000 + index * 100),
        bytes: (0..len).map(|i| (base as usize * 13 + log as usize + i) as u8).collect::<Vec<u8>>().into(),
    }
}

fn row(table: Table, key: &str, value: Option<&str>) -> Row {
    Row { table, key: key.into(), value: value.map(|v| Bytes::copy_from_slice(v.as_bytes())), fresh: false }
}

fn write(index: u64, rows: Vec<Row>, appends: Vec<StoredBatch>) -> WriteBatch {
    WriteBatch { index: Index(index), term: Term(1), rows, appends, trims: vec![], drops: vec![] }
}

/// What the store should say.
#[derive(Clone, Default, PartialEq)]
struct Model {
    applied: (Index, Term),
    meta: Bytes,
    tables: [BTreeMap<Bytes, Bytes>; 3],
    logs: BTreeMap<LogId, ModelLog>,
}

#[derive(Clone, Default, PartialEq)]
struct ModelLog {
    start: Offset,
    end: Offset,
    batches: Vec<StoredBatch>,
}

impl Model {
    fn write(&mut self, batch: &WriteBatch) {
        self.applied = (batch.index, batch.term);
        for row in &batch.rows {
            let table = &mut self.tables[rows::table_at(row.table)];
            match &row.value {
                Some(value) => table.insert(Bytes::copy_from_slice(&row.key), value.clone()),
                None => table.remove(&row.key[..]),
            };
        }
        for append in &batch.appends {
            let log = self
                .logs
                .entry(append.log)
                .or_insert_with(|| ModelLog { start: append.base_offset, ..ModelLog::default() });
            log.end = Offset(append.last_offset.0 + 1);
            log.batches.push(append.clone());
        }
        for (log, before) in &batch.trims {
            if let Some(log) = self.logs.get_mut(log) {
                log.start = log.start.max((*before).min(log.end));
            }
        }
        for log in &batch.drops {
            self.logs.remove(log);
        }
    }
}

fn as_batch(b: &StoredBatch) -> Batch {
    Batch {
        base_offset: b.base_offset,
        last_offset: b.last_offset,
        max_timestamp_ms: b.max_timestamp_ms,
        index: b.index,
        committed_at: b.committed_at,
        bytes: b.bytes.clone(),
    }
}

/// Everything that the store says is what the model says.
fn check(store: &DiskStore, model: &Model, what: &str) {
    assert_eq!(store.applied(), model.applied, "{what}");
    assert_eq!(store.meta(), &model.meta, "{what}");
    for table in Table::ALL {
        let all = store.scan(table, b"", None, usize::MAX).unwrap();
        let expected: Vec<_> =
            model.tables[rows::table_at(table)].iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        assert_eq!(all, expected, "{what}: {table:?}");
    }
    let reader = store.reader();
    let ranges: Vec<_> = reader.ranges().into_iter().map(|(log, r)| (log, r.start, r.end)).collect();
    let expected: Vec<_> = model.logs.iter().map(|(log, l)| (*log, l.start, l.end)).collect();
    assert_eq!(ranges, expected, "{what}");
    for (log, l) in &model.logs {
        let mut at = l.start;
        let mut got = Vec::new();
        while at < l.end {
            let batches = reader.read(*log, at, 700).unwrap_or_else(|e| panic!("{what}: log {log} at {at}: {e}"));
            assert!(batches[0].base_offset <= at && batches[0].last_offset >= at, "{what}");
            at = Offset(batches.last().unwrap().last_offset.0 + 1);
            got.extend(batches);
        }
        let expected: Vec<Batch> = l.batches.iter().filter(|b| b.last_offset >= l.start).map(as_batch).collect();
        assert!(got == expected, "{what}: log {log}: {got:?}\n{expected:?}");
        assert_eq!(reader.read(*log, l.end, 10).unwrap(), vec![], "{what}");
        assert_eq!(
            reader.read(*log, l.end.max(Offset(0)).0.checked_add(1).map(Offset).unwrap(), 10).unwrap_err().code,
            Code::OFFSET_OUT_OF_RANGE
        );
        for time in [0, 1000 + l.start.0 * 10, 1000 + (l.start.0 + l.end.0) * 5, i64::MAX] {
            let expected = l
                .batches
                .iter()
                .find(|b| b.last_offset >= l.start && b.max_timestamp_ms >= time)
                .map(|b| (b.base_offset.max(l.start), b.max_timestamp_ms));
            assert_eq!(reader.offset_for_time(*log, time).unwrap(), expected, "{what}: log {log} time {time}");
        }
    }
}

#[test]
fn a_write_is_seen_at_once_and_a_checkpoint_survives() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let mut model = Model::default();
    check(&store, &model, "empty");
    for i in 1..=30u64 {
        let b = write(
            i,
            vec![
                row(Table::Meta, &format!("m{}", i % 4), Some(&i.to_string())),
                row(Table::Keys, &format!("k{i:03}"), Some("v")),
                row(Table::Keys, &format!("k{:03}", i.saturating_sub(5)), None),
            ],
            vec![batch(1, (i as i64 - 1) * 3, 3, i, 100)],
        );
        model.write(&b);
        store.write(b);
        check(&store, &model, "after a write");
    }
    store.set_meta(Bytes::from_static(b"members"));
    model.meta = Bytes::from_static(b"members");
    assert_eq!(store.checkpoint_now().unwrap(), (Index(30), Term(1)));
    check(&store, &model, "after the checkpoint");
    let late = write(31, vec![row(Table::Meta, "late", Some("x"))], vec![batch(1, 90, 1, 31, 10)]);
    store.write(late);
    drop(store);
    let store = open(dir.path());
    check(&store, &model, "after the restart");
}

#[test]
fn a_checkpoint_is_due_by_rows_alone_by_all_bytes_and_by_time() {
    let due = |options: Options, rows: usize, records: usize, now_ms: u64| {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskStore::open(dir.path(), identity(), options, |_| {}).unwrap();
        assert!(!store.maybe_checkpoint(1000), "nothing was written");
        store.write(write(1, vec![row(Table::Keys, "k", Some(&"v".repeat(rows)))], vec![batch(1, 0, 1, 1, records)]));
        let due = store.maybe_checkpoint(1000 + now_ms);
        assert!(!store.maybe_checkpoint(1000 + now_ms), "nothing was written since, or one is running");
        due
    };
    let all = || Options { checkpoint_bytes: 3000, checkpoint_row_bytes: 1000, ..tiny() };
    assert!(!due(all(), 500, 2000, 49), "below all three");
    assert!(due(all(), 1000, 10, 0), "rows");
    assert!(due(all(), 500, 2500, 0), "rows and records");
    assert!(due(all(), 1, 1, 50), "time");
    // The first of a run comes one or two thirds earlier.
    let early = |thirds| Options { checkpoint_early_thirds: thirds, ..all() };
    assert!(due(early(1), 700, 10, 0) && !due(early(1), 500, 10, 0));
    assert!(due(early(2), 400, 10, 0) && !due(early(2), 200, 10, 0));
}

#[test]
fn scans_merge_all_layers_and_keep_their_limit() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.write(write(1, (0..10).map(|i| row(Table::Keys, &format!("{i}"), Some("disk"))).collect(), vec![]));
    store.checkpoint_now().unwrap();
    store.write(write(
        2,
        vec![row(Table::Keys, "3", None), row(Table::Keys, "55", Some("new")), row(Table::Keys, "5", Some("changed"))],
        vec![],
    ));
    let show = |from: &str, to: Option<&str>, limit| {
        let rows = store.scan(Table::Keys, from.as_bytes(), to.map(str::as_bytes), limit).unwrap();
        rows.iter().map(|(k, v)| format!("{}={}", k.escape_ascii(), v.escape_ascii())).collect::<Vec<_>>().join(" ")
    };
    expect!["2=disk 4=disk 5=changed 55=new 6=disk"].assert_eq(&show("2", Some("7"), 100));
    expect!["2=disk 4=disk 5=changed"].assert_eq(&show("2", Some("7"), 3));
    expect![""].assert_eq(&show("7", Some("7"), 3));
    expect![""].assert_eq(&show("7", Some("2"), 3));
    expect!["8=disk 9=disk"].assert_eq(&show("8", None, 100));
}

fn random_batch(random: &mut Seeded, model: &Model, dead: &mut Vec<LogId>) -> WriteBatch {
    let index = model.applied.0.0 + 1;
    let mut batch_ = write(index, vec![], vec![]);
    batch_.term = Term(1 + index / 20);
    for _ in 0..random.below(5) {
        // Around the length up to which a row's key lies in the overlay itself.
        let number = random.below(30);
        let key = format!("key-of-a-row-{number:0width$}", width = 5 + number as usize % 6);
        let value = format!("{index}-{}", "x".repeat(random.below(80) as usize));
        let table = Table::ALL[random.below(3) as usize];
        batch_.rows.push(row(table, &key, (random.below(4) > 0).then_some(&value)));
    }
    let mut ends: BTreeMap<LogId, Offset> = model.logs.iter().map(|(l, m)| (*l, m.end)).collect();
    for _ in 0..random.below(4) {
        let log = LogId(random.below(5) as u32 + 10 * dead.len() as u32);
        if dead.contains(&log) {
            continue;
        }
        let end = ends.entry(log).or_insert(Offset(0));
        let records = 1 + random.below(4) as i64;
        let appended = batch(log.0, end.0, records, index, 1 + random.below(500) as usize);
        *end = Offset(end.0 + records);
        batch_.appends.push(appended);
    }
    let logs: Vec<LogId> = model.logs.keys().copied().collect();
    if !logs.is_empty() && random.below(8) == 0 {
        let log = logs[random.below(logs.len() as u64) as usize];
        let l = &model.logs[&log];
        batch_.trims.push((log, Offset(l.start.0 + random.below((l.end.0 - l.start.0) as u64 + 1) as i64)));
    }
    if !logs.is_empty() && random.below(40) == 0 {
        let log = logs[random.below(logs.len() as u64) as usize];
        batch_.appends.retain(|a| a.log != log);
        batch_.drops.push(log);
        dead.push(log);
    }
    batch_
}

/// What a loss of power does to the record files: bytes behind the last checkpoint are cut anywhere, or are garbage.
fn lose_unsynced(path: &Path, synced: &BTreeMap<String, u64>, random: &mut Seeded) {
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(path).unwrap());
    let root = Arc::new(Root { path: path.to_owned(), disk, identity: identity() });
    let number = root.read_current().unwrap().unwrap().number;
    let rows = Rows::open(Arc::new(DirGuard { root, number, unwanted: AtomicBool::new(false) })).unwrap();
    let logs = path.join(dir_name(number)).join("logs");
    for view in rows.view().logs().unwrap() {
        for segment in view.segments {
            let file = logs.join(format!("{:08x}/{:016x}.rec", view.log.0, segment.base.0));
            let len = fs::metadata(&file).unwrap().len();
            assert!(len >= segment.bytes);
            let name = format!("{}/logs/{:08x}/{:016x}.rec", dir_name(number), view.log.0, segment.base.0);
            assert!(
                synced.get(&name).is_some_and(|synced| *synced >= segment.bytes),
                "a checkpoint counts on {} bytes of {name}, {:?} are synced",
                segment.bytes,
                synced.get(&name)
            );
            let file = fs::OpenOptions::new().write(true).open(&file).unwrap();
            let keep = segment.bytes + random.below(len - segment.bytes + 1);
            file.set_len(keep).unwrap();
            if random.below(3) == 0 {
                file.set_len(keep + random.below(200)).unwrap();
            }
        }
    }
    let _ = fs::create_dir_all(logs.join("000000ff"));
    fs::write(logs.join("000000ff/0000000000000000.rec"), b"a segment of a log that no checkpoint knows").unwrap();
}

/// One life of a store that crashes again and again, against a model.
fn crash_run(seed: u64, writes: u64) {
    let mut random = Seeded::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let events: Arc<Mutex<Vec<StoreEvent>>> = Arc::default();
    let sink = events.clone();
    let synced: SyncedLengths = Arc::default();
    let all_synced = synced.clone();
    let reopen = move || {
        let sink = sink.clone();
        let disk = FailingDisk::new(DirDisk::open(dir.path()).unwrap(), Arc::new(AtomicI64::new(-1)), false);
        // What was synced in earlier lives still is.
        let disk = disk.with_synced(all_synced.clone());
        DiskStore::open_on(Arc::new(disk), dir.path().to_owned(), identity(), tiny(), move |e| {
            sink.lock().unwrap().push(e)
        })
        .map(|s| (s, dir.path().to_owned()))
        .unwrap_or_else(|e| panic!("seed {seed}: {e}"))
    };
    let (mut store, path) = reopen();
    let mut history = vec![Model::default()];
    let mut log: Vec<WriteBatch> = Vec::new();
    let mut dead = Vec::new();
    let mut clock = 0;
    let mut crashes = 0;
    while (log.len() as u64) < writes {
        let mut model = history.last().unwrap().clone();
        let batch = random_batch(&mut random, &model, &mut dead);
        model.write(&batch);
        store.write(batch.clone());
        log.push(batch);
        if random.below(15) == 0 {
            model.meta = Bytes::from(format!("members at {}", model.applied.0));
            store.set_meta(model.meta.clone());
        }
        history.push(model);
        clock += random.below(20);
        store.maybe_checkpoint(clock);
        match random.below(40) {
            0 => {
                store.checkpoint_now().unwrap();
            }
            1 | 2 => check(&store, history.last().unwrap(), &format!("seed {seed} at {}", log.len())),
            3 => {
                crashes += 1;
                drop(store);
                lose_unsynced(&path, &synced.lock().unwrap(), &mut random);
                let promised = events.lock().unwrap().iter().fold(Index(0), |most, e| match e {
                    StoreEvent::Checkpointed { index, .. } => most.max(*index),
                    StoreEvent::Room => most,
                    StoreEvent::Failed(error) => panic!("seed {seed}: {error}"),
                });
                (store, _) = reopen();
                let at = store.applied().0;
                assert!(at >= promised, "seed {seed}: {at} after {promised} was promised");
                check(&store, &history[at.0 as usize], &format!("seed {seed} reopened at {at}"));
                for (batch, model) in log.iter().zip(&history[1..]).skip(at.0 as usize) {
                    store.write(batch.clone());
                    store.set_meta(model.meta.clone());
                    if random.below(10) == 0 {
                        store.maybe_checkpoint(clock);
                    }
                }
                check(&store, history.last().unwrap(), &format!("seed {seed} replayed"));
            }
            _ => {}
        }
    }
    check(&store, history.last().unwrap(), &format!("seed {seed} in the end after {crashes} crashes"));
}

#[test]
fn crashes_leave_the_exact_state_at_a_checkpoint() {
    for seed in 0..12 {
        crash_run(seed, 150);
    }
}

#[test]
fn retention_frees_segments_after_the_next_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for i in 1..=40u64 {
        store.write(write(i, vec![], vec![batch(1, i as i64 - 1, 1, i, 400)]));
    }
    store.checkpoint_now().unwrap();
    let reader = store.reader();
    let files = || {
        let logs = dir.path().join(dir_name(1)).join("logs/00000001");
        fs::read_dir(logs).unwrap().count()
    };
    assert_eq!(files(), 10);
    let keep = |bytes, ms| TopicSettings { retention_bytes: bytes, retention_ms: ms, ..TopicSettings::default() };
    let before = |s: &TopicSettings, now| reader.retention_candidates(LogId(1), s, TimeMs(now));
    assert_eq!(before(&keep(None, None), u64::MAX), None);
    assert_eq!(before(&keep(Some(10_000), None), 0), Some(Offset(16)));
    assert_eq!(before(&keep(Some(0), None), 0), Some(Offset(36)));
    assert_eq!(before(&keep(None, Some(1000)), 5000 + 8 * 100 + 1001), Some(Offset(8)));
    assert_eq!(before(&keep(None, Some(1000)), u64::MAX), Some(Offset(40)));

    store.write(WriteBatch { trims: vec![(LogId(1), Offset(16))], ..write(41, vec![], vec![]) });
    assert_eq!(reader.read(LogId(1), Offset(15), 10).unwrap_err().code, Code::OFFSET_OUT_OF_RANGE);
    assert_eq!(reader.read(LogId(1), Offset(16), 10).unwrap().len(), 1);
    store.checkpoint_now().unwrap();
    assert_eq!(files(), 6);
    // Everything goes, and the log goes on where it was.
    store.write(WriteBatch { trims: vec![(LogId(1), Offset(40))], ..write(42, vec![], vec![]) });
    store.checkpoint_now().unwrap();
    assert_eq!(files(), 0);
    drop(store);
    let mut store = open(dir.path());
    let range = store.reader().range(LogId(1)).unwrap();
    assert_eq!(range, LogRange { start: Offset(40), end: Offset(40), bytes: 0 });
    store.write(write(43, vec![], vec![batch(1, 40, 2, 43, 10)]));
    assert_eq!(store.reader().read(LogId(1), Offset(41), 10).unwrap().len(), 1);
    store.write(WriteBatch { drops: vec![LogId(1)], ..write(44, vec![], vec![]) });
    assert_eq!(store.reader().range(LogId(1)), None);
    store.checkpoint_now().unwrap();
    assert!(!dir.path().join(dir_name(1)).join("logs/00000001").exists());
    drop(store);
    assert_eq!(open(dir.path()).logs(), vec![]);
}

#[test]
fn many_logs_do_not_need_many_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let mut index = 0;
    for round in 0..3 {
        for log in 0..150 {
            index += 1;
            store.write(write(index, vec![], vec![batch(log, round, 1, index, 50)]));
        }
    }
    store.checkpoint_now().unwrap();
    let reader = store.reader();
    for log in 0..150 {
        for offset in 0..3 {
            assert_eq!(reader.read(LogId(log), Offset(offset), 10_000).unwrap()[0].base_offset, Offset(offset));
        }
    }
    let open_files = fs::read_dir("/proc/self/fd").unwrap().filter(|fd| {
        let target = fd.as_ref().ok().and_then(|fd| fs::read_link(fd.path()).ok());
        target.is_some_and(|t| t.starts_with(dir.path()) && t.extension().is_some_and(|e| e == "rec"))
    });
    assert!(open_files.count() <= 64 + 64 + 2);
}

#[test]
fn a_full_disk_stops_the_store_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let fuse = Arc::new(AtomicI64::new(-1));
    let events: Arc<Mutex<Vec<StoreEvent>>> = Arc::default();
    let start = |fuse: &Arc<AtomicI64>| {
        let disk = FailingDisk::new(DirDisk::open(dir.path()).unwrap(), fuse.clone(), true);
        let sink = events.clone();
        DiskStore::open_on(Arc::new(disk), dir.path().to_owned(), identity(), tiny(), move |e| {
            sink.lock().unwrap().push(e)
        })
    };
    let mut store = start(&fuse).unwrap();
    let mut model = Model::default();
    let first = write(1, vec![row(Table::Meta, "a", Some("1"))], vec![batch(1, 0, 1, 1, 100)]);
    model.write(&first);
    store.write(first);
    store.checkpoint_now().unwrap();
    fuse.store(0, SeqCst);
    // More than may be pending: a writer must not wait for a disk that is full.
    for i in 2..=60u64 {
        store.write(write(i, vec![], vec![batch(1, i as i64 - 1, 1, i, 300)]));
    }
    assert_eq!(store.checkpoint_now().unwrap_err().code, Code::DISK_FULL);
    assert_eq!(store.error().unwrap().code, Code::DISK_FULL);
    drop(store);
    let events_seen = events.lock().unwrap().clone();
    assert_eq!(events_seen[0], StoreEvent::Checkpointed { index: Index(1), term: Term(1) });
    assert!(matches!(&events_seen[1], StoreEvent::Failed(e) if e.code == Code::DISK_FULL && e.hint.is_some()));
    assert_eq!(events_seen.len(), 2);
    fuse.store(-1, SeqCst);
    check(&start(&fuse).unwrap(), &model, "when there is space again");
}

#[test]
fn failures_anywhere_in_a_checkpoint_leave_the_one_before() {
    for fuse_at in 0..14 {
        let dir = tempfile::tempdir().unwrap();
        let fuse = Arc::new(AtomicI64::new(-1));
        let disk = FailingDisk::new(DirDisk::open(dir.path()).unwrap(), fuse.clone(), false);
        let mut store = DiskStore::open_on(Arc::new(disk), dir.path().to_owned(), identity(), tiny(), |_| {}).unwrap();
        let mut models = vec![Model::default()];
        for i in 1..=6u64 {
            let mut model = models.last().unwrap().clone();
            let b = write(
                i,
                vec![row(Table::Keys, "k", Some(&i.to_string()))],
                vec![batch((i % 3) as u32, (i / 3) as i64, 1, i, 700)],
            );
            model.write(&b);
            models.push(model);
            store.write(b);
            if i == 3 {
                store.checkpoint_now().unwrap();
                fuse.store(fuse_at, SeqCst);
            }
        }
        let result = store.checkpoint_now();
        drop(store);
        let store = open(dir.path());
        let at = store.applied().0;
        assert_eq!(at, if result.is_ok() { Index(6) } else { Index(3) });
        check(&store, &models[at.0 as usize], "after a failed checkpoint");
    }
}

#[test]
fn rot_in_a_segment_is_found_when_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for i in 1..=20u64 {
        store.write(write(i, vec![], vec![batch(1, i as i64 - 1, 1, i, 400)]));
    }
    store.checkpoint_now().unwrap();
    drop(store);
    let file = dir.path().join(dir_name(1)).join("logs/00000001").join(format!("{:016x}.rec", 4));
    let mut bytes = fs::read(&file).unwrap();
    bytes[700] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let events: Arc<Mutex<Vec<StoreEvent>>> = Arc::default();
    let sink = events.clone();
    let store = DiskStore::open(dir.path(), identity(), tiny(), move |e| sink.lock().unwrap().push(e)).unwrap();
    assert_eq!(store.reader().read(LogId(1), Offset(0), 100).unwrap().len(), 1);
    let error = store.reader().read(LogId(1), Offset(5), 100).unwrap_err();
    assert_eq!(error.code, Code::CORRUPT);
    assert!(error.hint.is_some());
    // The host hears of it too, once.
    assert_eq!(store.reader().offset_for_time(LogId(1), 1055).unwrap_err().code, Code::CORRUPT);
    assert_eq!(*events.lock().unwrap(), vec![StoreEvent::Failed(error)]);
    drop(store);
    // A segment that is shorter than its checkpoint, or gone, is found at once.
    fs::write(&file, &bytes[..500]).unwrap();
    assert_eq!(try_open(dir.path()).unwrap_err().code, Code::CORRUPT);
    fs::remove_file(&file).unwrap();
    assert_eq!(try_open(dir.path()).unwrap_err().code, Code::CORRUPT);
}

#[test]
fn another_clusters_or_a_newer_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(try_open(dir.path()).unwrap_err().code, Code::DIR_LOCKED);
    drop(store);
    let other = Identity { cluster_id: "other".into(), node: NodeId(7) };
    let error = DiskStore::open(dir.path(), other, tiny(), |_| {}).unwrap_err();
    assert_eq!(error.code, Code::WRONG_CLUSTER);
    let current = dir.path().join("CURRENT");
    let text = fs::read_to_string(&current).unwrap();
    expect![[r#"
        buttress-store 1
        cluster test
        node 7
        directory store-0000000000000001 ready
        crc 4e5ab460
    "#]]
    .assert_eq(&text);
    let (body, _) = text.split_once("crc").unwrap();
    let newer = body.replace("buttress-store 1", "buttress-store 2");
    fs::write(&current, format!("{newer}crc {:08x}\n", crc32c::crc32c(newer.as_bytes()))).unwrap();
    assert_eq!(try_open(dir.path()).unwrap_err().code, Code::FORMAT);
    // How a newer format goes on after its first line, and how it is checked, is not ours to know.
    for newer in [text.replace("buttress-store 1", "buttress-store 9"), "buttress-store 2\nsha256 0\n".into()] {
        fs::write(&current, newer).unwrap();
        assert_eq!(try_open(dir.path()).unwrap_err().code, Code::FORMAT);
    }
    fs::write(&current, text.replace("buttress-store 1", "buttress-store 0")).unwrap();
    assert_eq!(try_open(dir.path()).unwrap_err().code, Code::CORRUPT);
    fs::write(&current, text.replace("node 7", "node 8")).unwrap();
    assert_eq!(try_open(dir.path()).unwrap_err().code, Code::CORRUPT);
    fs::remove_file(&current).unwrap();
    assert_eq!(try_open(dir.path()).unwrap_err().code, Code::CORRUPT);
    fs::write(&current, &text).unwrap();
    open(dir.path());
}

/// A store with rows, large values, trimmed and dropped logs.
fn rich_store(path: &Path) -> (DiskStore, Model) {
    let mut random = Seeded::new(99);
    let mut store = open(path);
    let mut model = Model::default();
    let mut dead = Vec::new();
    for _ in 0..150 {
        let batch = random_batch(&mut random, &model, &mut dead);
        model.write(&batch);
        store.write(batch);
    }
    let big = "y".repeat(2_500_000);
    let batch = write(151, vec![row(Table::Keys, "big", Some(&big))], vec![]);
    model.write(&batch);
    store.write(batch);
    model.meta = Bytes::from_static(b"members");
    store.set_meta(model.meta.clone());
    store.checkpoint_now().unwrap();
    (store, model)
}

fn receive_all(store: &DiskStore, chunks: &[Bytes]) -> Result<ReceivedSnapshot, Error> {
    let mut receiver = store.handle().receive()?;
    chunks.iter().try_for_each(|c| receiver.push(c.clone()))?;
    receiver.finish()
}

#[test]
fn a_snapshot_takes_the_place_of_a_store() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut source, model) = rich_store(from.path());
    let mut export = source.handle().export().unwrap();
    assert_eq!(export.header().index, Index(151));
    let first = export.next().unwrap().unwrap();
    // While it is read, the store goes on: rows change, logs grow, are trimmed and dropped, checkpoints are written.
    let logs: Vec<LogId> = model.logs.keys().copied().collect();
    let mut later = write(152, vec![row(Table::Keys, "big", None), row(Table::Meta, "new", Some("n"))], vec![]);
    later.drops.push(logs[0]);
    later.trims.extend(logs[1..].iter().map(|l| (*l, model.logs[l].end)));
    source.write(later);
    source.checkpoint_now().unwrap();
    let mut chunks = vec![first];
    chunks.extend(export.by_ref().map(Result::unwrap));
    assert!(chunks.len() >= 3 && chunks.iter().all(|c| c.len() <= CHUNK_BYTES_MAX));
    drop(export);

    let mut target = open(to.path());
    target.write(write(1, vec![row(Table::Keys, "old", Some("o"))], vec![batch(1, 0, 5, 1, 100)]));
    let reader = target.reader();
    let received = receive_all(&target, &chunks).unwrap();
    assert_eq!(received.header().index, Index(151));
    assert_eq!(received.header().meta, model.meta);
    let handle = target.handle();
    let mut installed = handle.install(received).unwrap();
    check(&installed, &model, "installed");
    // The old store may still be written to; nobody sees it.
    target.write(write(2, vec![], vec![batch(1, 5, 5, 2, 100)]));
    assert!(target.checkpoint_now().is_err());
    drop(target);
    assert_eq!(reader.ranges().len(), model.logs.len());
    let mut model = model;
    let next = write(152, vec![row(Table::Keys, "more", Some("m"))], vec![]);
    model.write(&next);
    installed.write(next);
    installed.checkpoint_now().unwrap();
    drop((installed, handle));
    assert_eq!(reader.read(LogId(1), Offset(0), 1).unwrap_err().code, Code::STOPPED);
    let store = open(to.path());
    check(&store, &model, "after a restart");
    let directories = fs::read_dir(to.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(directories, 1, "the old store is gone");
}

#[test]
fn freed_files_go_when_the_last_export_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for i in 1..=20u64 {
        store.write(write(i, vec![], vec![batch(1, i as i64 - 1, 1, i, 400)]));
    }
    store.checkpoint_now().unwrap();
    let files = || fs::read_dir(dir.path().join(dir_name(1)).join("logs/00000001")).unwrap().count();
    let before = files();
    let export = store.handle().export().unwrap();
    store.write(WriteBatch { trims: vec![(LogId(1), Offset(20))], ..write(21, vec![], vec![]) });
    store.checkpoint_now().unwrap();
    assert_eq!(files(), before);
    drop(export);
    assert_eq!(files(), 0);
}

#[test]
fn a_snapshot_that_is_not_whole_is_refused_and_leaves_nothing() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, _) = rich_store(from.path());
    let chunks: Vec<Bytes> = source.handle().export().unwrap().map(Result::unwrap).collect();
    let target = open(to.path());
    let refused = |chunks: &[Bytes]| receive_all(&target, chunks).map(|r| r.header().index).unwrap_err();
    assert_eq!(refused(&[]).code, Code::CORRUPT);
    assert_eq!(refused(&chunks[..chunks.len() - 1]).code, Code::CORRUPT);
    let mut swapped = chunks.clone();
    swapped.swap(0, 1);
    assert_eq!(refused(&swapped).code, Code::CORRUPT);
    for at in [0, 5, 9, 20, 100_000] {
        let mut bad = chunks.clone();
        let mut bytes = bad[1].to_vec();
        bytes[at] ^= 4;
        bad[1] = bytes.into();
        assert_eq!(refused(&bad).code, Code::CORRUPT);
    }
    let error = refused(&chunks[1..]);
    assert!(error.retryable);
    let directories = fs::read_dir(to.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(directories, 1, "what was refused is gone");
    // Received and whole, but never installed: the next start goes on with the old store.
    receive_all(&target, &chunks).unwrap().keep();
    drop(target);
    assert_eq!(open(to.path()).applied().0, Index(0));

    let other = tempfile::tempdir().unwrap();
    let stranger = Identity { cluster_id: "other".into(), node: NodeId(7) };
    let stranger = DiskStore::open(other.path(), stranger, tiny(), |_| {}).unwrap();
    let refused = receive_all(&stranger, &chunks).map(|r| r.header().index);
    assert_eq!(refused.unwrap_err().code, Code::WRONG_CLUSTER);
}

#[test]
fn readers_on_other_threads_see_whole_batches_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let reader = store.reader();
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (reader, stop) = (reader.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut at = Offset(0);
                let mut seen = 0u64;
                // One more turn after the end, so that everything is read.
                let mut last = false;
                while !last {
                    last = stop.load(SeqCst);
                    loop {
                        let got = match reader.read(LogId(1), at, 1500) {
                            Ok(got) => got,
                            Err(error) => {
                                assert_eq!(error.code, Code::OFFSET_OUT_OF_RANGE);
                                at = reader.range(LogId(1)).unwrap().start;
                                continue;
                            }
                        };
                        if got.is_empty() {
                            break;
                        }
                        for b in got {
                            let index = b.index.0;
                            assert_eq!(b, as_batch(&batch(1, index as i64 - 1, 1, index, 120)));
                            at = Offset(b.last_offset.0 + 1);
                            seen += 1;
                        }
                    }
                }
                (at, seen)
            })
        })
        .collect();
    for i in 1..=1500u64 {
        let mut b = write(i, vec![], vec![batch(1, i as i64 - 1, 1, i, 120)]);
        if i % 50 == 0 {
            b.trims.push((LogId(1), Offset(i as i64 - 40)));
        }
        store.write(b);
        store.maybe_checkpoint(i);
    }
    stop.store(true, SeqCst);
    for thread in threads {
        let (at, seen) = thread.join().unwrap();
        assert_eq!(at, Offset(1500));
        assert!(seen > 0);
    }
}

const CHILD: &str = "BUTTRESS_TEST_STORE_CHILD";
const CHILD_KEYS: u64 = 40;

/// The state at an index, as the child writes it.
fn child_batch(i: u64) -> WriteBatch {
    let mut rows: Vec<Row> = Table::ALL.iter().map(|t| row(*t, "counter", Some(&i.to_string()))).collect();
    rows.push(row(
        Table::Keys,
        &format!("key-{}", i % CHILD_KEYS),
        Some(&format!("{i}-{}", "z".repeat((i % 7) as usize * 300))),
    ));
    rows.push(row(Table::State, &format!("key-{}", (i + 7) % CHILD_KEYS), (!i.is_multiple_of(3)).then_some("s")));
    let mut b = write(i, rows, vec![batch((i % 3) as u32, (i / 3) as i64, 1, i, 200)]);
    if i.is_multiple_of(25) {
        b.trims.push((LogId(0), Offset((i / 3) as i64 - 5)));
    }
    b
}

/// Not a test of its own: the process that `kill_nine_leaves_a_checkpoint` kills.
#[test]
fn child_process() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let options = Options { checkpoint_ms: 1, ..tiny() };
    let mut store = DiskStore::open(dir, identity(), options, |event| match event {
        StoreEvent::Checkpointed { index, .. } => println!("checkpoint {index}"),
        StoreEvent::Room => {}
        StoreEvent::Failed(error) => panic!("{error}"),
    })
    .unwrap();
    let mut clock = 0;
    for i in store.applied().0.0 + 1.. {
        store.write(child_batch(i));
        clock += i % 2;
        store.maybe_checkpoint(clock);
    }
}

#[test]
fn kill_nine_leaves_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::default();
    let mut models = vec![model.clone()];
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::child_process", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut promised = 0;
        let mut seen = 0;
        while seen < 3 + round * 4 {
            let line = lines.next().expect("the child runs until it is killed").unwrap();
            if let Some((_, number)) = line.split_once("checkpoint ") {
                promised = number.parse().unwrap();
                seen += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(dir.path());
        let at = store.applied().0.0;
        assert!(at >= promised, "round {round}: {at} after {promised} was promised");
        while models.len() as u64 <= at {
            model.write(&child_batch(models.len() as u64));
            models.push(model.clone());
        }
        check(&store, &models[at as usize], &format!("round {round}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn anything_is_decoded_or_refused(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz::fuzz_frame(&data);
        fuzz::fuzz_snapshot(&data);
        fuzz::fuzz_checkpoint(&data);
    }

    #[test]
    fn frames_survive_and_rot_is_seen(base in 0i64..1 << 40, records in 1i64..1000, len in 0usize..300, at: prop::sample::Index, bit in 0u8..8) {
        let stored = batch(9, base, records, 5, len);
        let mut bytes = Vec::new();
        frames::encode(&stored, &mut bytes);
        let frame = frames::Frame::decode(&bytes).unwrap();
        prop_assert!(frame.verify(LogId(9), &bytes));
        prop_assert!(!frame.verify(LogId(8), &bytes));
        prop_assert_eq!(frame.batch(stored.bytes.clone()), as_batch(&stored));
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(frames::Frame::decode(&bytes).is_none_or(|f| !f.verify(LogId(9), &bytes)));
        fuzz::fuzz_frame(&bytes);
    }
}

#[test]
fn a_fresh_row_that_is_deleted_leaves_nothing_and_hides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut model) = (open(dir.path()), Model::default());
    let fresh = |key: &str, value: &str| Row { fresh: true, ..row(Table::Meta, key, Some(value)) };
    let gone = |key: &str| row(Table::Meta, key, None);
    let steps: [Vec<Row>; 8] = [
        vec![fresh("a", "1"), fresh("b", "1"), fresh("c", "1")],
        // Never written: nothing is left of it.
        vec![gone("a")],
        vec![fresh("a", "2"), row(Table::Meta, "b", Some("2"))],
        vec![gone("b")],
        // Written by the checkpoint in between: the deletes must be written too, and what comes back and goes again does not
        // bring back what was there before.
        vec![gone("a"), gone("c")],
        vec![fresh("c", "3")],
        vec![gone("c")],
        vec![fresh("d", "1")],
    ];
    for (index, rows) in (1..).zip(steps) {
        let batch = write(index, rows, vec![]);
        model.write(&batch);
        store.write(batch);
        check(&store, &model, &format!("entry {index}"));
        if index == 2 {
            assert!(!store.active[rows::table_at(Table::Meta)].contains_key(&b"a"[..]), "no trace of it");
        }
        if index == 4 || index == 8 {
            store.checkpoint_now().unwrap();
            check(&store, &model, &format!("the checkpoint at {index}"));
        }
    }
    drop(store);
    check(&open(dir.path()), &model, "after a start");
}
