//! The log against a model, on a disk that crashes.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::{Arc, mpsc},
};

use buttress_core::{Code, Error, Index, NodeId, Term};
use bytes::Bytes;
use expect_test::expect;
use proptest::prelude::*;

use super::{
    disk::{Disk, DiskFile, Open},
    faulty::{MemDisk, Seeded},
    format::{HEADER_BYTES, Header},
    *,
};

fn identity() -> Identity {
    Identity { cluster_id: "test".into(), node: NodeId(7) }
}

/// Segments of a few frames, and zeros ahead by the kilobyte.
fn tiny() -> Options {
    Options { segment_bytes: HEADER_BYTES as u64 + 2048, fill_bytes: 1024, spares_max: 1 }
}

fn entry(index: u64, term: u64, len: usize) -> LogEntry {
    let data: Vec<u8> = (0..len).map(|i| (index as usize * 31 + term as usize * 7 + i) as u8).collect();
    LogEntry { index: Index(index), term: Term(term), kind: (index % 2) as u8, data: data.into() }
}

fn commit(wal: &mut Wal, parts: impl FnOnce(&mut Batch)) -> Result<(), Error> {
    let mut batch = Batch::default();
    parts(&mut batch);
    wal.commit(&mut batch)
}

fn append(wal: &mut Wal, from: u64, to: u64, term: u64) -> Result<(), Error> {
    commit(wal, |b| (from..=to).for_each(|i| b.entry(0, &entry(i, term, 40))))
}

fn open(disk: &Arc<MemDisk>) -> Result<(Wal, Recovered), Error> {
    Wal::open(disk.clone(), identity(), tiny())
}

/// What a shard's log says, in a line.
fn show(log: &ShardLog) -> String {
    let entries: Vec<String> = log.entries.iter().map(|e| format!("{}@{}", e.index, e.term)).collect();
    let hard = log.hard_state.map(|h| format!("term {} vote {} commit {}", h.term, h.vote, h.commit));
    let marker = log.marker.as_ref().map(|m| format!("{}@{} {:?}", m.index, m.term, m.meta));
    format!("hard {hard:?} marker {marker:?} entries {}", entries.join(" "))
}

#[test]
fn what_was_committed_is_there_again() {
    let disk = Arc::new(MemDisk::new(1));
    let (mut wal, recovered) = open(&disk).unwrap();
    assert_eq!(recovered, Recovered::default());
    append(&mut wal, 1, 5, 1).unwrap();
    append(&mut wal, 4, 6, 2).unwrap();
    commit(&mut wal, |b| b.hard_state(0, HardState { term: Term(2), vote: NodeId(7), commit: Index(5) })).unwrap();
    commit(&mut wal, |b| b.entry(3, &entry(10, 1, 0))).unwrap();
    drop(wal);
    let (wal, mut recovered) = open(&disk).unwrap();
    expect![[r#"hard Some("term 2 vote 7 commit 5") marker None entries 1@1 2@1 3@1 4@2 5@2 6@2"#]]
        .assert_eq(&show(&recovered.take(0)));
    expect!["hard None marker None entries 10@1"].assert_eq(&show(&recovered.take(3)));
    drop(wal);
    // And again, from the segments that the second start made.
    let (mut wal, mut recovered) = open(&disk).unwrap();
    assert_eq!(recovered.take(0).entries.len(), 6);
    let marker = Marker { index: Index(20), term: Term(3), meta: Bytes::from_static(b"members") };
    commit(&mut wal, |b| b.marker(0, &marker)).unwrap();
    append(&mut wal, 21, 22, 3).unwrap();
    drop(wal);
    let (_, mut recovered) = open(&disk).unwrap();
    expect![[r#"hard Some("term 2 vote 7 commit 5") marker Some("20@3 b\"members\"") entries 21@3 22@3"#]]
        .assert_eq(&show(&recovered.take(0)));
}

#[test]
fn forgetting_recycles_segments_and_keeps_what_counts() {
    let disk = Arc::new(MemDisk::new(1));
    let (mut wal, _) = open(&disk).unwrap();
    commit(&mut wal, |b| b.hard_state(0, HardState { term: Term(1), vote: NodeId(2), commit: Index(0) })).unwrap();
    for i in 1..=200 {
        append(&mut wal, i, i, 1).unwrap();
        if i % 10 == 0 {
            wal.forget_before(0, Index(i - 20.min(i - 1))).unwrap();
        }
    }
    let names = disk.list("").unwrap();
    assert!(names.len() <= 6, "{names:?}");
    assert!(names.iter().any(|n| n.starts_with("spare-")), "{names:?}");
    assert!(wal.stats().segments_recycled.load(std::sync::atomic::Ordering::Relaxed) > 0);
    drop(wal);
    let (_, mut recovered) = open(&disk).unwrap();
    let log = recovered.take(0);
    assert_eq!(log.hard_state, Some(HardState { term: Term(1), vote: NodeId(2), commit: Index(0) }));
    assert!(log.entries[0].index <= Index(180));
    assert_eq!(log.entries.last().unwrap().index, Index(200));
    assert!(log.entries.windows(2).all(|w| w[1].index == w[0].index.next()));
}

#[test]
fn another_nodes_directory_is_refused() {
    let disk = Arc::new(MemDisk::new(1));
    drop(open(&disk).unwrap());
    let other = Identity { cluster_id: "other".into(), node: NodeId(7) };
    let error = Wal::open(disk.clone(), other, tiny()).err().unwrap();
    assert_eq!(error.code, Code::WRONG_CLUSTER);
    expect![[r#"
        the log belongs to node 7 of cluster "test", not to node 7 of cluster "other" [BT0107]

        hint: start the node with the data directory that is its own, or with an empty one under a new node id"#]]
    .assert_eq(&error.to_string());
}

#[test]
fn a_newer_format_is_refused() {
    let disk = Arc::new(MemDisk::new(1));
    drop(open(&disk).unwrap());
    let file = disk.open("wal-0000000000000001.seg", Open::Write).unwrap();
    let mut block = disk.file("wal-0000000000000001.seg")[..HEADER_BYTES].to_vec();
    block[8] = 9;
    let crc = crc32c::crc32c(&block[..HEADER_BYTES - 4]);
    block[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&block, 0).unwrap();
    let error = open(&disk).err().unwrap();
    assert_eq!(error.code, Code::FORMAT);
    assert!(error.hint.is_some());
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let nested = dir.path().join("a/b");
    let first = DirDisk::open(&nested).unwrap();
    assert_eq!(DirDisk::open(&nested).err().unwrap().code, Code::DIR_LOCKED);
    drop(first);
    DirDisk::open(&nested).unwrap();
}

#[test]
fn a_directory_is_free_at_once_whatever_was_forked_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d");
    let first = DirDisk::open(&path).unwrap();
    // What a child between its fork and its program holds: another descriptor of the same lock.
    let forked = first.lock_copy();
    drop(first);
    DirDisk::open(&path).unwrap();
    drop(forked);
}

#[test]
fn a_full_disk_stops_the_log_for_good() {
    let disk = Arc::new(MemDisk::new(3));
    let (mut wal, _) = open(&disk).unwrap();
    append(&mut wal, 1, 3, 1).unwrap();
    disk.fail_after(0, true);
    assert_eq!(append(&mut wal, 4, 4, 1).unwrap_err().code, Code::DISK_FULL);
    // Space that appears later changes nothing.
    disk.fail_after(1000, true);
    assert_eq!(append(&mut wal, 4, 4, 1).unwrap_err().code, Code::DISK_FULL);
    assert_eq!(wal.forget_before(0, Index(2)).unwrap_err().code, Code::DISK_FULL);
    drop(wal);
    let disk = Arc::new(disk.crash(1));
    let (_, mut recovered) = open(&disk).unwrap();
    let entries = recovered.take(0).entries.len();
    assert!(entries == 3 || entries == 4, "{entries}");
}

#[test]
#[should_panic(expected = "leaves a gap")]
fn a_gap_is_our_bug() {
    let (mut wal, _) = open(&Arc::new(MemDisk::new(1))).unwrap();
    append(&mut wal, 1, 2, 1).unwrap();
    let _ = append(&mut wal, 4, 4, 1);
}

#[test]
fn an_entry_larger_than_a_segment_fits() {
    let disk = Arc::new(MemDisk::new(1));
    let (mut wal, _) = open(&disk).unwrap();
    append(&mut wal, 1, 1, 1).unwrap();
    commit(&mut wal, |b| b.entry(0, &entry(2, 1, 50_000))).unwrap();
    append(&mut wal, 3, 3, 1).unwrap();
    drop(wal);
    let (_, mut recovered) = open(&disk).unwrap();
    let log = recovered.take(0);
    assert_eq!(log.entries.len(), 3);
    assert_eq!(log.entries[1], entry(2, 1, 50_000));
}

#[test]
fn after_a_snapshot_of_another_history_the_log_is_set_aside() {
    let log = ShardLog { entries: (5..=9).map(|i| entry(i, 2, 1)).collect(), ..ShardLog::default() };
    let indexes = |applied, term| {
        log.after(Index(applied), Term(term))
            .map(|e| e.iter().map(|e| e.index.0).collect::<Vec<_>>())
            .map_err(|e| e.code)
    };
    assert_eq!(indexes(6, 2), Ok(vec![7, 8, 9]));
    assert_eq!(indexes(4, 1), Ok(vec![5, 6, 7, 8, 9]));
    assert_eq!(indexes(6, 3), Ok(vec![]));
    assert_eq!(indexes(30, 3), Ok(vec![]));
    assert_eq!(indexes(3, 1), Err(Code::CORRUPT));
    let marker = Marker { index: Index(20), term: Term(3), meta: Bytes::new() };
    let log = ShardLog { marker: Some(marker), ..ShardLog::default() };
    assert_eq!(log.after(Index(19), Term(1)).unwrap_err().code, Code::CORRUPT);
    assert_eq!(log.after(Index(20), Term(3)).unwrap(), vec![]);
}

/// Every byte of a log rots in turn: the node refuses, or nothing is lost; only the last frame of the newest segment
/// cannot be told from a torn one.
#[test]
fn rot_is_refused_or_harmless() {
    let disk = Arc::new(MemDisk::new(1));
    let (mut wal, _) = open(&disk).unwrap();
    for i in 1..=30 {
        append(&mut wal, i, i, 1).unwrap();
    }
    drop(wal);
    let segments: Vec<String> = disk.list("").unwrap().into_iter().filter(|n| n.starts_with("wal-")).collect();
    assert!(segments.len() > 1);
    let (mut refused, mut harmless, mut torn) = (0, 0, 0);
    for (number, name) in segments.iter().enumerate() {
        let newest = number + 1 == segments.len();
        for at in 0..disk.file(name).len() as u64 {
            // The header block is mostly zeros under one checksum.
            if at > 64 && at < HEADER_BYTES as u64 - 4 && at % 97 != 0 {
                continue;
            }
            let bad = Arc::new(disk.crash(0));
            bad.rot(name, at);
            match open(&bad) {
                Err(error) => {
                    assert_eq!(error.code, Code::CORRUPT, "{error}");
                    refused += 1;
                }
                Ok((_, mut recovered)) => {
                    let entries = recovered.take(0).entries;
                    for (i, got) in entries.iter().enumerate() {
                        assert_eq!(*got, entry(i as u64 + 1, 1, 40));
                    }
                    match entries.len() {
                        30 => harmless += 1,
                        29 if newest => torn += 1,
                        n => panic!("rot of byte {at} of {name} lost {} entries in silence", 30 - n),
                    }
                }
            }
        }
    }
    assert!(refused > 1000 && harmless > 100 && torn > 50, "{refused} {harmless} {torn}");
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    hard_state: Option<HardState>,
    marker: Option<Marker>,
    entries: BTreeMap<u64, LogEntry>,
    forgotten_before: u64,
}

impl Model {
    fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().or(self.marker.as_ref().map(|m| m.index.0)).unwrap_or(0)
    }

    fn apply(&mut self, part: &Part) {
        match part {
            Part::Entry(entry) => {
                self.entries.split_off(&entry.index.0);
                self.entries.insert(entry.index.0, entry.clone());
            }
            Part::Hard(state) => self.hard_state = Some(*state),
            Part::Marker(marker) => {
                self.entries.clear();
                self.marker = Some(marker.clone());
            }
        }
    }

    /// Everything that was not forgotten is there, nothing else is.
    fn agrees(&self, log: &ShardLog) -> bool {
        let first = log.entries.first().map_or(u64::MAX, |e| e.index.0);
        let kept: Vec<&LogEntry> = self.entries.range(first.min(self.forgotten_before)..).map(|(_, e)| e).collect();
        let got: Vec<&LogEntry> = log.entries.iter().collect();
        // What was forgotten may still be there, if it is what was there.
        got == kept && self.hard_state == log.hard_state && self.marker == log.marker
    }
}

#[derive(Clone, Debug)]
enum Part {
    Entry(LogEntry),
    Hard(HardState),
    Marker(Marker),
}

fn random_parts(random: &mut Seeded, model: &Model, term: u64) -> Vec<Part> {
    let mut model = model.clone();
    let mut parts = Vec::new();
    for _ in 0..=random.below(4) {
        let part = match random.below(20) {
            0 => Part::Marker(Marker {
                index: Index(model.last() + random.below(5)),
                term: Term(term),
                meta: Bytes::from(vec![1; random.below(30) as usize]),
            }),
            1..=4 => {
                Part::Hard(HardState { term: Term(term), vote: NodeId(random.below(3)), commit: Index(model.last()) })
            }
            _ => {
                let least = model.forgotten_before.max(model.marker.as_ref().map_or(0, |m| m.index.0) + 1).max(1);
                let next = model.last() + 1;
                let back = if random.below(6) == 0 { random.below(4) } else { 0 };
                let index = next.saturating_sub(back).max(least).min(next);
                Part::Entry(entry(index, term, random.below(300) as usize))
            }
        };
        model.apply(&part);
        parts.push(part);
    }
    parts
}

/// One life of a log that crashes again and again, against a model.
fn crash_run(seed: u64) {
    let mut random = Seeded::new(seed);
    let mut disk = Arc::new(MemDisk::new(random.next_u64()));
    // Two shards share the log.
    let mut acknowledged = [Model::default(), Model::default()];
    let mut maybe = acknowledged.clone();
    for turn in 0..12 {
        // Sometimes the start itself crashes.
        if random.below(3) == 0 {
            disk.fail_after(random.below(8), false);
            let _ = open(&disk);
            disk = Arc::new(disk.crash(random.next_u64()));
        }
        let (mut wal, recovered) = open(&disk).unwrap_or_else(|e| panic!("seed {seed} turn {turn}: {e}"));
        let empty = ShardLog::default();
        let got = [0, 1].map(|s| recovered.shards.get(&s).unwrap_or(&empty).clone());
        let agrees = |models: &[Model; 2]| models.iter().zip(&got).all(|(m, g)| m.agrees(g));
        if agrees(&maybe) {
            acknowledged = maybe.clone();
        } else {
            assert!(agrees(&acknowledged), "seed {seed} turn {turn}:\n{acknowledged:#?}\n{maybe:#?}\n{got:#?}");
        }
        maybe = acknowledged.clone();
        let crash_at = random.below(60);
        disk.fail_after(crash_at, random.below(2) == 0);
        for _ in 0..40 {
            let shard = random.below(2) as usize;
            if random.below(8) == 0 {
                let model = &mut acknowledged[shard];
                let before =
                    model.forgotten_before + random.below(model.last().saturating_sub(model.forgotten_before) + 1);
                let result = wal.forget_before(shard as u32, Index(before));
                model.forgotten_before = before;
                maybe[shard].forgotten_before = before;
                if result.is_err() {
                    break;
                }
                continue;
            }
            let parts = random_parts(&mut random, &acknowledged[shard], turn + 1);
            let mut batch = Batch::default();
            for part in &parts {
                match part {
                    Part::Entry(e) => batch.entry(shard as u32, e),
                    Part::Hard(h) => batch.hard_state(shard as u32, *h),
                    Part::Marker(m) => batch.marker(shard as u32, m),
                }
                maybe[shard].apply(part);
            }
            if wal.commit(&mut batch).is_err() {
                break;
            }
            acknowledged = maybe.clone();
        }
        drop(wal);
        disk = Arc::new(disk.crash(random.next_u64()));
    }
}

#[test]
fn crashes_lose_nothing_acknowledged_and_invent_nothing() {
    for seed in 0..300 {
        crash_run(seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn crashes_with_any_seed(seed: u64) {
        crash_run(seed);
    }

    #[test]
    fn segments_of_anything_are_recovered_or_refused(mut data in proptest::collection::vec(any::<u8>(), 0..600), magic: bool) {
        if magic && data.len() > 24 {
            data[..4].copy_from_slice(&format::FRAME_MAGIC.to_le_bytes());
            data[5..8].fill(0);
            data[20..24].fill(0);
        }
        fuzz::fuzz_segment(&data);
        fuzz::fuzz_open(&data);
    }

    #[test]
    fn headers_of_anything_are_read_or_refused(epoch: u64, at in 0..HEADER_BYTES, byte: u8) {
        let header = Header { epoch, first_seq: 3, identity: identity() };
        let mut block = header.encode();
        prop_assert_eq!(Header::decode("x", &block).unwrap(), header.clone());
        block[at] = byte;
        if let Ok(read) = Header::decode("x", &block) {
            prop_assert_eq!(read, header);
        }
        fuzz::fuzz_segment(&block);
    }
}

#[test]
fn the_writer_reports_tickets_in_order_and_closes_clean() {
    let disk = Arc::new(MemDisk::new(1));
    let (wal, _) = open(&disk).unwrap();
    let (events, got) = mpsc::channel();
    let writer = Writer::spawn(wal, move |e| events.send(e).unwrap()).unwrap();
    for i in 1..=500u64 {
        writer.submit(Job { ticket: i, entries: vec![entry(i, 1, 10)], ..Job::default() });
        if i % 100 == 0 {
            writer.forget_before(0, Index(i - 50));
        }
    }
    let stats = writer.stats();
    drop(writer);
    let tickets: Vec<u64> = got
        .iter()
        .flat_map(|e| match e {
            Event::Synced(tickets) => tickets.into_iter().map(|t| t.1).collect::<Vec<_>>(),
            Event::Failed(error) => panic!("{error}"),
        })
        .collect();
    assert_eq!(tickets, (1..=500).collect::<Vec<_>>());
    assert_eq!(stats.queued_bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(stats.sync_us.count(), stats.sync_us.cumulative().last().unwrap().1);
    let (_, mut recovered) = open(&disk).unwrap();
    assert_eq!(recovered.take(0).entries.last().unwrap().index, Index(500));
}

#[test]
fn after_a_failed_sync_the_writer_acknowledges_nothing_more() {
    let disk = Arc::new(MemDisk::new(1));
    let (wal, _) = open(&disk).unwrap();
    let (events, got) = mpsc::channel();
    let writer = Writer::spawn(wal, move |e| events.send(e).unwrap()).unwrap();
    writer.submit(Job { ticket: 1, entries: vec![entry(1, 1, 10)], ..Job::default() });
    assert!(matches!(got.recv().unwrap(), Event::Synced(t) if t == vec![(0, 1)]));
    // The write goes through, its sync does not.
    disk.fail_after(1, false);
    writer.submit(Job { ticket: 2, entries: vec![entry(2, 1, 10)], ..Job::default() });
    assert!(matches!(got.recv().unwrap(), Event::Failed(error) if error.code == Code::DISK));
    disk.fail_after(1000, false);
    writer.submit(Job { ticket: 3, entries: vec![entry(3, 1, 10)], ..Job::default() });
    drop(writer);
    assert!(got.recv().is_err(), "nothing is reported after the failure");
}

#[test]
fn a_bug_on_the_writers_thread_is_reported() {
    let (wal, _) = open(&Arc::new(MemDisk::new(1))).unwrap();
    let (events, got) = mpsc::channel();
    let writer = Writer::spawn(wal, move |e| events.send(e).unwrap()).unwrap();
    writer.submit(Job { ticket: 1, entries: vec![entry(1, 1, 10), entry(3, 1, 10)], ..Job::default() });
    assert!(matches!(got.recv().unwrap(), Event::Failed(_)));
}

const CHILD: &str = "BUTTRESS_TEST_WAL_CHILD";

/// Not a test of its own: the process that `kill_nine_loses_nothing_acknowledged` kills.
#[test]
fn child_process() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let disk = Arc::new(DirDisk::open(dir).unwrap());
    let (mut wal, mut recovered) = Wal::open(disk, identity(), Options { segment_bytes: 65_536, ..tiny() }).unwrap();
    let mut last = recovered.take(0).entries.last().map_or(0, |e| e.index.0);
    loop {
        append(&mut wal, last + 1, last + 3, 1).unwrap();
        last += 3;
        println!("acknowledged {last}");
        if last % 50 == 0 {
            wal.forget_before(0, Index(last - 20)).unwrap();
        }
    }
}

#[test]
fn kill_nine_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::child_process", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while seen < 20 + round * 7 {
            let line = lines.next().expect("the child runs until it is killed").unwrap();
            if let Some((_, number)) = line.split_once("acknowledged ") {
                acknowledged = number.parse().unwrap();
                seen += 1;
            }
        }
        child.kill().unwrap();
        for line in lines.map_while(Result::ok) {
            if let Some((_, number)) = line.split_once("acknowledged ") {
                acknowledged = number.parse().unwrap_or(acknowledged);
            }
        }
        child.wait().unwrap();
        let disk = Arc::new(DirDisk::open(dir.path()).unwrap());
        let (_, mut recovered) = Wal::open(disk, identity(), Options { segment_bytes: 65_536, ..tiny() }).unwrap();
        let entries = recovered.take(0).entries;
        assert!(entries.last().unwrap().index.0 >= acknowledged);
        entries.iter().for_each(|e| assert_eq!(*e, entry(e.index.0, 1, 40)));
    }
}

#[test]
fn short_reads_and_writes_of_a_real_file_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let disk = DirDisk::open(dir.path()).unwrap();
    let file: Arc<dyn DiskFile> = disk.open("a", Open::Create).unwrap();
    file.write_all_at(b"hello", 3).unwrap();
    let mut buf = [9; 10];
    assert_eq!(disk::read_full(&*file, &mut buf, 0).unwrap(), 8);
    assert_eq!(&buf, b"\0\0\0hello\x09\x09");
}

/// What a reader should give: entries of shard 0 from `low` on.
fn read(wal: &Wal, low: u64, high: u64, bytes_max: usize) -> Result<Vec<LogEntry>, Error> {
    wal.reader().read(0, Index(low), Index(high), bytes_max)
}

#[test]
fn entries_are_read_back_as_they_were_last_written() {
    let disk = Arc::new(MemDisk::new(1));
    let (mut wal, _) = open(&disk).unwrap();
    append(&mut wal, 1, 60, 1).unwrap();
    append(&mut wal, 61, 80, 1).unwrap();
    append(&mut wal, 50, 70, 2).unwrap();
    // Replaced once more within a frame, beside another shard.
    commit(&mut wal, |b| {
        (71..=75).for_each(|i| b.entry(0, &entry(i, 2, 40)));
        b.entry(1, &entry(9, 1, 10));
        (73..=74).for_each(|i| b.entry(0, &entry(i, 3, 40)));
    })
    .unwrap();
    let expected = |index: u64| entry(index, [1, 2, 3][usize::from(index >= 50) + usize::from(index >= 73)], 40);
    let all: Vec<LogEntry> = (1..75).map(expected).collect();
    assert_eq!(read(&wal, 1, 75, usize::MAX).unwrap(), all);
    assert_eq!(read(&wal, 48, 53, usize::MAX).unwrap(), all[47..52]);
    assert_eq!(read(&wal, 10, 75, 100).unwrap(), all[9..11], "as many as have so many bytes");
    assert_eq!(read(&wal, 10, 75, 0).unwrap(), all[9..10], "and at least one");
    assert_eq!(wal.reader().read(1, Index(9), Index(10), 1).unwrap(), [entry(9, 1, 10)]);
    assert_eq!(wal.reader().read(2, Index(9), Index(10), 1).unwrap(), []);
    // After a restart too, and behind what is written then.
    drop(wal);
    let (mut wal, _) = open(&disk).unwrap();
    append(&mut wal, 75, 90, 4).unwrap();
    let all: Vec<LogEntry> = all.into_iter().chain((75..=90).map(|i| entry(i, 4, 40))).collect();
    assert_eq!(read(&wal, 1, 91, usize::MAX).unwrap(), all);
}

#[test]
fn what_was_let_go_is_not_read_and_what_a_snapshot_replaced_neither() {
    let disk = Arc::new(MemDisk::new(1));
    let (mut wal, _) = open(&disk).unwrap();
    for from in (1..=300).step_by(10) {
        append(&mut wal, from, from + 9, 1).unwrap();
    }
    let reader = wal.reader();
    assert!(wal.forget_before(0, Index(200)).unwrap() > 2);
    assert_eq!(reader.read(0, Index(1), Index(300), usize::MAX).unwrap(), []);
    assert_eq!(
        reader.read(0, Index(200), Index(203), usize::MAX).unwrap(),
        (200..203).map(|i| entry(i, 1, 40)).collect::<Vec<_>>()
    );
    // The segments that went are written over.
    for from in (301..=600).step_by(10) {
        append(&mut wal, from, from + 9, 1).unwrap();
    }
    assert_eq!(reader.read(0, Index(1), Index(300), usize::MAX).unwrap(), []);
    assert_eq!(reader.read(0, Index(590), Index(601), usize::MAX).unwrap().len(), 11);
    let marker = Marker { index: Index(700), term: Term(3), meta: Bytes::new() };
    commit(&mut wal, |b| b.marker(0, &marker)).unwrap();
    append(&mut wal, 701, 702, 3).unwrap();
    assert_eq!(reader.read(0, Index(590), Index(601), usize::MAX).unwrap(), []);
    assert_eq!(reader.read(0, Index(701), Index(703), usize::MAX).unwrap(), [entry(701, 3, 40), entry(702, 3, 40)]);
}

#[test]
fn a_reader_finds_what_has_rotted() {
    let disk = Arc::new(MemDisk::new(1));
    let (mut wal, _) = open(&disk).unwrap();
    append(&mut wal, 1, 5, 1).unwrap();
    append(&mut wal, 6, 9, 1).unwrap();
    let name = disk.list("").unwrap().into_iter().find(|name| name.starts_with("wal-")).unwrap();
    let file = disk.open(&name, Open::Write).unwrap();
    file.write_all_at(&[0xff], HEADER_BYTES as u64 + 100).unwrap();
    let error = read(&wal, 2, 9, usize::MAX).unwrap_err();
    assert_eq!(error.code, Code::CORRUPT);
    assert!(error.message.contains(&name), "{error:?}");
}

proptest! {
    /// Appends, replacements, restarts of the log and forgetting in any order; what is read is what a start would find.
    #[test]
    fn a_reader_gives_what_a_start_would(steps in proptest::collection::vec((0u8..8, 1u64..40, 1usize..120), 1..60)) {
        let disk = Arc::new(MemDisk::new(1));
        let (mut wal, _) = open(&disk).unwrap();
        let (mut last, mut least) = (0, 1);
        for (at, (what, number, len)) in (1..).zip(steps) {
            match what {
                0 => {
                    last += number;
                    let marker = Marker { index: Index(last), term: Term(at), meta: Bytes::new() };
                    commit(&mut wal, |b| b.marker(0, &marker)).unwrap();
                    least = last + 1;
                }
                1 => {
                    least = least.max((last + 1).saturating_sub(number));
                    wal.forget_before(0, Index(least)).unwrap();
                }
                2 => {
                    drop(wal);
                    wal = open(&disk).unwrap().0;
                }
                _ => {
                    // What a snapshot replaced, or what was let go, is not written anew.
                    let from = if what > 5 { (last + 1).saturating_sub(number).max(least) } else { last + 1 };
                    let to = from + number / 4;
                    commit(&mut wal, |b| (from..=to).for_each(|i| b.entry(0, &entry(i, at, len)))).unwrap();
                    last = to;
                }
            }
        }
        let reader = wal.reader();
        drop(wal);
        let (_, mut recovered) = open(&disk).unwrap();
        let kept = recovered.take(0).entries;
        if let Some(first) = kept.first() {
            prop_assert_eq!(reader.read(0, first.index, Index(last + 1), usize::MAX).unwrap(), kept);
        }
    }
}
