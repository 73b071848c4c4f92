//! Backups of real nodes while they are written to, and clusters begun from them.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
    },
};

use buttress_core::{
    Code, Consistency, Cursor, Entry, Error, LeaseChange, LeaseId, LogId, NodeId, Offset, StatePut, Stream as _,
    entry::TopicSettings,
};
use buttress_node::{
    backup::{self, RestoreOptions, Verified, Verifier},
    runtime::{Config, Handle},
    wal::faulty::{FailingDisk, Seeded},
};

use proptest::prelude::*;

use super::world::*;

/// Takes a backup into a file, as a client does.
async fn take(handle: &Handle, consistency: Consistency, file: &Path) -> Verified {
    let mut verifier = Verifier::new(&["a"]);
    let stream = handle.backup(consistency).await.expect("a backup begins");
    let mut bytes = Vec::new();
    for piece in stream {
        verifier.push(&piece).expect("what a node sends is good");
        bytes.extend_from_slice(&piece);
    }
    std::fs::write(file, bytes).unwrap();
    verifier.finish().expect("what a node sends is whole")
}

/// Something of everything that a state can hold.
async fn fill(handle: &Handle) -> LogId {
    let log = create_topic(handle, "readings", TopicSettings::default()).await;
    for n in 0..20 {
        must(handle, append(log, format!("record {n}").as_bytes())).await;
        must(handle, put(&format!("a/{}", n % 7), &n.to_string())).await;
    }
    let lease = LeaseChange::Grant { lease: LeaseId(7), ttl_ms: 3_600_000 };
    let cursor = Cursor { group: "g".into(), log, next: Offset(11), metadata: "m".into() };
    let state = StatePut { space: "s".into(), key: "k".into(), value: Some("v".into()) };
    must(handle, Entry { leases: vec![lease], cursors: vec![cursor], state: vec![state], ..Entry::default() }).await;
    log
}

/// Nodes that did not run yet, of a cluster that a backup shall begin. Their clients are not those of the first cluster,
/// whose results the state remembers; real nodes draw theirs at random.
fn new_cluster(size: u64) -> World {
    let mut world = World::new(size, quick());
    world.cluster_id = "restored".into();
    world.starts = 1000;
    world
}

fn restored_config(world: &World, id: u64) -> Config {
    Config { cluster_id: "restored".into(), ..world.config(id) }
}

fn restore(file: &Path, config: &Config) -> Result<Verified, Error> {
    backup::restore(file, config, &RestoreOptions::default(), |_| {})
}

#[tokio::test]
async fn three_nodes_restored_from_one_file_are_one_cluster_with_the_same_state() {
    let world = World::started(3, quick()).await;
    let follower = world.follower().await;
    let node = world.node(follower);
    let log = fill(&node).await;
    // Written to while the backup is taken; what was acknowledged before must be inside, and nothing in halves.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (node, stop) = (world.node(world.leader().await), stop.clone());
        async move {
            let mut n = 0u64;
            while !stop.load(SeqCst) {
                let mut entry = append(log, n.to_string().as_bytes());
                entry.puts = put("n", &n.to_string()).puts;
                must(&node, entry).await;
                n += 1;
            }
            n
        }
    });
    let ahead = until("something was written meanwhile", async || {
        let end = records(&node, log).await.len() as i64;
        (end > 60).then_some(end)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b.btb");
    let verified = take(&node, Consistency::Linearizable, &file).await;
    stop.store(true, SeqCst);
    writer.await.unwrap();
    let of = &verified.header;
    assert_eq!((of.node, of.voters.len(), of.linearizable), (NodeId(follower), 3, true));
    let counts = &verified.inventory.counts;
    let partition = counts.topics[0].partitions[0];
    assert!(partition.end.0 >= ahead, "{partition:?} lacks what was acknowledged before, {ahead}");
    assert_eq!(
        (counts.topics[0].name.as_str(), counts.leases, counts.cursors, counts.state_rows),
        ("readings", 1, 1, 1)
    );
    assert_eq!((counts.keys, counts.wanted.len()), (8, 7));
    assert_eq!(counts.wanted[&b"a/5"[..]], "19");
    assert_eq!(backup::verify(&file, &["a"], |_| {}).unwrap(), verified);

    let before = records(&node, log).await;
    let mut again = new_cluster(3);
    for id in 1..=3 {
        restore(&file, &again.config(id)).unwrap();
        again.start(id).await;
        // Before it can have heard of the others it is what the file holds.
        let (index, _) = again.node(id).fingerprint().await.unwrap();
        assert!(index >= of.index);
    }
    again.leader().await;
    again.agree().await;
    for id in 1..=3 {
        let found = records(&again.node(id), log).await;
        let expected: BTreeMap<_, _> = before.clone().into_iter().filter(|(at, _)| *at < partition.end.0).collect();
        assert_eq!(found, expected);
        assert_eq!(again.node(id).cursor("g", log), Some(Offset(11)));
    }
    // Offsets and revisions go on where the state was.
    let receipt = must(&again.node(2), append(log, b"next")).await;
    assert_eq!(base_offset(&receipt), partition.end);
    let receipt = must(&again.node(3), put("after", "x")).await;
    assert_eq!(receipt.revision.0, counts.revision.0 + 1);
    assert_eq!(get(&again.node(1), "a/5").await.as_deref(), Some("19"));
    // A record and the key of its entry are never apart.
    let last: u64 = get(&again.node(1), "n").await.unwrap().parse().unwrap();
    assert_eq!(partition.end.0 as u64, 20 + last + 1);
    // It survives what an ordinary cluster does.
    for id in 1..=3 {
        again.kill(id);
    }
    for id in 1..=3 {
        again.start(id).await;
    }
    again.leader().await;
    again.agree().await;
    assert_eq!(get(&again.node(2), "after").await.as_deref(), Some("x"));
}

#[tokio::test]
async fn the_same_index_has_the_same_fingerprint_on_both_sides() {
    let mut world = World::started(1, quick()).await;
    let node = world.node(1);
    fill(&node).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b.btb");
    let verified = take(&node, Consistency::Serializable, &file).await;
    assert!(!verified.header.linearizable);
    let source = node.fingerprint().await.unwrap();
    assert_eq!(source.0, verified.header.index, "nothing was written since");
    // A node of three that is alone has no leader, so it applies nothing.
    let mut again = new_cluster(3);
    restore(&file, &again.config(2)).unwrap();
    again.start(2).await;
    assert_eq!(again.node(2).fingerprint().await.unwrap(), source);
    drop(node);
    world.kill(1);
}

#[tokio::test]
async fn a_node_that_was_not_restored_gets_the_state_from_the_others() {
    let world = World::started(1, quick()).await;
    let log = fill(&world.node(1)).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b.btb");
    take(&world.node(1), Consistency::Linearizable, &file).await;
    let mut again = new_cluster(3);
    for id in [1, 2] {
        restore(&file, &again.config(id)).unwrap();
        again.start(id).await;
    }
    again.leader().await;
    must(&again.node(1), put("new", "y")).await;
    again.start(3).await;
    until("the third node has it all", async || {
        (value(&again.node(3), "new", Consistency::Serializable).await.as_deref() == Some("y")).then_some(())
    })
    .await;
    again.agree().await;
    assert_eq!(records(&again.node(3), log).await.len(), 20);
}

#[tokio::test]
async fn what_is_not_a_whole_backup_is_refused_and_nothing_is_written() {
    let world = World::started(1, quick()).await;
    fill(&world.node(1)).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b.btb");
    take(&world.node(1), Consistency::Linearizable, &file).await;
    let good = std::fs::read(&file).unwrap();
    let config = Config { data_dir: dir.path().join("data"), ..restored_config(&world, 1) };
    let refused = |bytes: &[u8]| {
        let bad = dir.path().join("bad.btb");
        std::fs::write(&bad, bytes).unwrap();
        let verified = backup::verify(&bad, &[], |_| {}).expect_err("it is damaged");
        let error = restore(&bad, &config).expect_err("it is damaged");
        assert_eq!(error, verified);
        assert!(!config.data_dir.exists(), "{error}");
        error
    };
    let mut seeds = Seeded::new(7);
    for _ in 0..60 {
        let mut bytes = good.clone();
        let at = seeds.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << seeds.below(8);
        let error = refused(&bytes);
        assert!([Code::BACKUP_DAMAGED, Code::FORMAT].contains(&error.code), "byte {at}: {error}");
    }
    for _ in 0..20 {
        let cut = seeds.below(good.len() as u64) as usize;
        let error = refused(&good[..cut]);
        assert_eq!(error.code, Code::BACKUP_DAMAGED, "cut at {cut}: {error}");
    }
    let error = refused(&[&good[..], b"x"].concat());
    assert_eq!(error.code, Code::BACKUP_DAMAGED);
    assert!(error.message.contains(&format!("at byte {}: 1 bytes or more follow its end", good.len())), "{error}");
    let mut newer = good.clone();
    newer[8] = 2;
    let crc = crc32c::crc32c(&newer[..12]);
    newer[12..16].copy_from_slice(&crc.to_le_bytes());
    let error = refused(&newer);
    assert_eq!((error.code, error.message.as_str()), (Code::FORMAT, "the backup has format 2, this version knows 1"));
    assert!(refused(b"#!/bin/sh\n").message.contains("not a backup"));
    assert!(refused(b"").message.contains("it is empty"));
}

#[tokio::test]
async fn a_directory_in_use_and_the_old_cluster_s_name_are_refused() {
    let mut world = World::started(1, quick()).await;
    fill(&world.node(1)).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b.btb");
    take(&world.node(1), Consistency::Linearizable, &file).await;
    let same = Config { data_dir: dir.path().join("data"), ..world.config(1) };
    let error = restore(&file, &same).unwrap_err();
    assert!(error.code == Code::CONFIG && error.message.contains("cluster id of the backup"), "{error}");
    let used = Config { cluster_id: "restored".into(), ..world.config(1) };
    let error = restore(&file, &used).unwrap_err();
    assert!(error.code == Code::DIR_NOT_EMPTY && error.message.contains("it holds \"store\""), "{error}");
    let options = RestoreOptions { same_cluster_id: true, ..RestoreOptions::default() };
    backup::restore(&file, &same, &options, |_| {}).unwrap();
    // An old member does not take the restored directory for its own, nor the other way round.
    world.stop(1).await;
    std::fs::rename(&same.data_dir, dir.path().join("kept")).unwrap();
    let foreign = Config { cluster_id: "other".into(), data_dir: dir.path().join("kept"), ..same };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = buttress_node::runtime::start(foreign, listener).map(drop).unwrap_err();
    assert_eq!(error.code, Code::WRONG_CLUSTER);
}

#[tokio::test]
async fn a_restore_that_breaks_off_anywhere_is_refused_by_a_node_and_done_again() {
    let world = World::started(1, quick()).await;
    let log = fill(&world.node(1)).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b.btb");
    take(&world.node(1), Consistency::Linearizable, &file).await;
    let source = world.node(1).fingerprint().await.unwrap();

    let (mut crashes, mut fuse) = (0, -1);
    let mut random = Seeded::new(11);
    loop {
        // Every one of the first places, where the mark is made, and some of the many that are alike.
        fuse += if fuse < 12 { 1 } else { 1 + random.below(4) as i64 };
        let mut again = new_cluster(3);
        let config = again.config(1);
        let left = Arc::new(AtomicI64::new(fuse));
        let theirs = left.clone();
        let mut options = RestoreOptions::default();
        options.node.wrap_disk = Some(Arc::new(move |disk| Arc::new(FailingDisk::new(disk, theirs.clone(), false))));
        let result = backup::restore(&file, &config, &options, |_| {});
        match &result {
            Ok(_) => assert!(left.load(SeqCst) >= 0),
            Err(error) => {
                assert_eq!(error.code, Code::DISK, "{error}");
                crashes += 1;
                let marked = config.data_dir.join("RESTORING").exists();
                let begun = ["store", "wal"].iter().any(|part| config.data_dir.join(part).exists());
                // Only before the first write, and after the last one, may the mark be missing.
                if marked {
                    let error = again.try_start(1).await.unwrap_err();
                    assert_eq!(error.code, Code::RESTORE_UNFINISHED, "{error}");
                    restore(&file, &config).unwrap();
                } else if !begun {
                    restore(&file, &config).unwrap();
                }
            }
        }
        // Starting three nodes per crash point would say nothing more than one does; every few of them do.
        if result.is_ok() || fuse % 7 == 0 {
            again.start(1).await;
            assert_eq!(again.node(1).fingerprint().await.unwrap(), source, "fuse {fuse}");
            assert_eq!(records(&again.node(1), log).await.len(), 20);
        }
        if result.is_ok() {
            break;
        }
    }
    assert!(crashes > 15, "only {crashes} places to break off were found");
}

#[tokio::test]
async fn a_backup_that_is_never_read_stops_nobody_and_keeps_what_it_needs() {
    let mut options = quick();
    options.store.segment_bytes = 4096;
    let world = World::started(1, options).await;
    let node = world.node(1);
    let settings = TopicSettings { retention_bytes: Some(1), ..TopicSettings::default() };
    let log = create_topic(&node, "small", settings).await;
    for n in 0..200u32 {
        must(&node, append(log, &[n as u8; 1000])).await;
    }
    let stream = node.backup(Consistency::Linearizable).await.unwrap();
    // Retention and checkpoints go on; the state that is being read stays.
    for n in 0..1200u32 {
        must(&node, append(log, &vec![n as u8; 4000])).await;
    }
    until("retention took the oldest", async || {
        let topic = node.topic("small").unwrap();
        (topic.partitions[0].start.0 > 200).then_some(())
    })
    .await;
    let mut verifier = Verifier::new(&[]);
    for piece in stream {
        verifier.push(&piece).unwrap();
    }
    let verified = verifier.finish().unwrap();
    assert_eq!(verified.inventory.counts.topics[0].partitions[0].end, Offset(200));
    assert_eq!(verified.inventory.logs[&log].batches, 200);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn anything_is_a_whole_backup_or_refused(data in proptest::collection::vec(any::<u8>(), 0..1500)) {
        backup::fuzz::fuzz_backup(&data);
    }
}
