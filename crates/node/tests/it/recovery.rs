//! Stops, kills and starts: what was acknowledged is there again, once.

use std::{
    sync::{
        Arc, Mutex,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    time::Duration,
};

use buttress_core::{
    Code, Consistency, Cursor, Entry, Ledger as _, Offset, Stream as _, entry::TopicSettings, ledger::TopicView,
};
use futures::future::join_all;

use crate::world::{
    World, append, base_offset, create_topic, get, keys, metric, must, put, quick, records, until, value,
};

#[tokio::test]
async fn a_cluster_that_was_stopped_is_what_it_was() {
    let mut world = World::started(3, quick()).await;
    let node = world.node(world.follower().await);
    let log = create_topic(&node, "t", TopicSettings::default()).await;
    for i in 0..20 {
        must(&node, put(&format!("k{i}"), "v")).await;
        must(&node, append(log, format!("r{i}").as_bytes())).await;
    }
    let cursor = Cursor { group: "g".into(), log, next: Offset(9), metadata: String::new() };
    must(&node, Entry { cursors: vec![cursor], ..Entry::default() }).await;
    world.agree().await;
    let before = (keys(&node, "").await, records(&node, log).await, node.topics());
    drop(node);
    for id in world.ids() {
        world.stop(id).await;
    }
    for id in 1..=3 {
        world.start(id).await;
    }
    world.agree().await;
    for id in world.ids() {
        let node = world.node(id);
        let bytes_aside = |topics: Vec<TopicView>| -> Vec<_> {
            let ends = |t: &TopicView| t.partitions.iter().map(|p| (p.log, p.start, p.end)).collect::<Vec<_>>();
            topics.iter().map(|t| (t.name.clone(), t.id, ends(t))).collect()
        };
        assert_eq!(keys(&node, "").await, before.0);
        assert_eq!(records(&node, log).await, before.1);
        assert_eq!(bytes_aside(node.topics()), bytes_aside(before.2.clone()));
        assert_eq!(node.cursor("g", log), Some(Offset(9)));
    }
}

#[tokio::test]
async fn what_is_under_way_when_the_leader_dies_is_applied_once() {
    let mut world = World::started(3, quick()).await;
    let leader = world.leader().await;
    let node = world.node(world.follower().await);
    let log = create_topic(&node, "t", TopicSettings::default()).await;
    let done = Arc::new(Mutex::new(Vec::new()));
    let submitted = tokio::spawn({
        let (node, done) = (node.clone(), done.clone());
        join_all((0..200u32).map(move |i| {
            let (node, done) = (node.clone(), done.clone());
            async move {
                // A few at a time, so that some are at every stage when the leader goes.
                for j in 0..5u32 {
                    let payload = (i * 5 + j).to_be_bytes();
                    let offset = base_offset(&must(&node, append(log, &payload)).await);
                    done.lock().unwrap().push((offset.0, payload.to_vec()));
                }
            }
        }))
    });
    until("some are done", async || (done.lock().unwrap().len() >= 100).then_some(())).await;
    world.kill(leader);
    submitted.await.unwrap();
    let mut done = done.lock().unwrap().clone();
    done.sort();
    assert_eq!(done.len(), 1000);
    let found: Vec<(i64, Vec<u8>)> = records(&node, log).await.into_iter().collect();
    assert_eq!(found, done, "each once, where its receipt says");
    drop(node);
    world.start(leader).await;
    world.agree().await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_all_nodes_are_killed_under_load() {
    let mut world = World::started(3, quick()).await;
    world.leader().await;
    let log = create_topic(&world.node(1), "t", TopicSettings::default()).await;
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let writers: Vec<_> = (0..12u64)
        .map(|writer| {
            let (node, acknowledged) = (world.node(1 + writer % 3), acknowledged.clone());
            tokio::spawn(async move {
                for i in 0.. {
                    let name = format!("{writer}/{i}");
                    let mut entry = append(log, name.as_bytes());
                    entry.puts = put(&name, "v").puts;
                    match node.submit(entry).await {
                        Ok(receipt) => acknowledged.lock().unwrap().push((base_offset(&receipt).0, name)),
                        Err(error) => {
                            assert!(matches!(error.code(), Code::TIMEOUT | Code::STOPPED), "{error}");
                            return;
                        }
                    }
                }
            })
        })
        .collect();
    until("there is load", async || (acknowledged.lock().unwrap().len() >= 300).then_some(())).await;
    for id in world.ids() {
        world.kill(id);
    }
    for writer in writers {
        writer.await.unwrap();
    }
    for id in 1..=3 {
        world.start(id).await;
    }
    world.leader().await;
    let acknowledged = acknowledged.lock().unwrap().clone();
    for id in world.ids() {
        let node = world.node(id);
        let (there, found) = (keys(&node, "").await, records(&node, log).await);
        for (offset, name) in &acknowledged {
            assert_eq!(found.get(offset).map(Vec::as_slice), Some(name.as_bytes()), "node {id}");
            assert!(there.contains_key(name), "node {id}: {name}");
        }
        assert_eq!(found.len(), there.len(), "an entry is applied whole or not at all, and once");
    }
    world.agree().await;
}

#[tokio::test]
async fn a_follower_that_was_away_too_long_gets_a_snapshot_and_goes_on() {
    let mut options = quick();
    options.log_tail_bytes = 32 * 1024;
    options.lagging_log_bytes_max = 64 * 1024 * 1024;
    options.wal.segment_bytes = 128 * 1024;
    options.store.segment_bytes = 128 * 1024;
    options.store.checkpoint_bytes = 128 * 1024;
    let mut world = World::started(3, options).await;
    let away = world.follower().await;
    let log = create_topic(&world.node(away), "t", TopicSettings::default()).await;
    must(&world.node(away), put("before", "1")).await;
    world.kill(away);
    let known = world.last().await;
    let node = world.node(world.ids()[0]);
    for i in 0..40u32 {
        let mut entry = append(log, &[i as u8; 32 * 1024]);
        entry.puts = put(&format!("k{i}"), "v").puts;
        must(&node, entry).await;
    }
    world.forget(known).await;
    // A checkpoint that ends later would take along what follows the snapshot, if the others heard nothing of this one for long.
    world.checkpointed().await;
    world.start(away).await;
    world.agree().await;
    let back = world.node(away);
    assert_eq!(back.counters().snapshots_installed.load(Relaxed), 1, "it came by a snapshot, and by one");
    assert_eq!(records(&back, log).await.len(), 40);
    assert_eq!(value(&back, "before", Consistency::Serializable).await.as_deref(), Some("1"));
    assert_eq!(value(&back, "k39", Consistency::Serializable).await.as_deref(), Some("v"));
    // It goes on from there, also through a restart.
    assert_eq!(base_offset(&must(&back, append(log, b"after")).await), Offset(40));
    drop(back);
    drop(node);
    world.kill(away);
    world.start(away).await;
    world.agree().await;
    let back = world.node(away);
    assert_eq!(records(&back, log).await[&40], b"after");
    must(&back, put("end", "1")).await;
}

#[tokio::test]
async fn a_snapshot_reaches_a_follower_while_the_log_moves_on() {
    let mut options = quick();
    options.log_tail_bytes = 512 * 1024;
    options.lagging_log_bytes_max = 64 * 1024 * 1024;
    options.wal.segment_bytes = 256 * 1024;
    options.store.checkpoint_bytes = 256 * 1024;
    let mut world = World::started(3, options).await;
    let away = world.follower().await;
    let log = create_topic(&world.node(away), "t", TopicSettings::default()).await;
    world.kill(away);
    let known = world.last().await;
    let node = world.node(world.leader().await);
    let done = Arc::new(Mutex::new((false, 0)));
    let load = tokio::spawn({
        let (node, done) = (node.clone(), done.clone());
        async move {
            while !done.lock().unwrap().0 {
                join_all((0..4).map(|_| must(&node, append(log, &[1; 16 * 1024])))).await;
                done.lock().unwrap().1 += 4;
            }
        }
    });
    // More than the log keeps for whoever lags.
    until("the log is long", async || (done.lock().unwrap().1 > 200).then_some(())).await;
    world.forget(known).await;
    world.start(away).await;
    let back = world.node(away);
    until("it keeps up", async || {
        let behind = node.topic("t")?.partitions[0].end.0 - back.topic("t")?.partitions[0].end.0;
        (behind < 20).then_some(())
    })
    .await;
    let snapshots = back.counters().snapshots_installed.load(Relaxed);
    // One is enough on an idle machine; a starved one may need a few. Without the log kept for it, it never keeps up.
    assert!((1..=8).contains(&snapshots), "{snapshots} snapshots");
    done.lock().unwrap().0 = true;
    load.await.unwrap();
    drop((node, back));
    world.agree().await;
}

#[tokio::test]
async fn a_follower_catches_up_with_more_than_a_frame_holds() {
    let mut world = World::started(3, quick()).await;
    let away = world.follower().await;
    let log = create_topic(&world.node(away), "t", TopicSettings::default()).await;
    world.kill(away);
    let node = world.node(world.leader().await);
    // 24 MiB: less than the log keeps, more than a frame may have, and more than one message takes.
    let entry = |i: u8| Entry { appends: vec![crate::world::batch(log, 1, &vec![i; 1 << 20])], ..Entry::default() };
    join_all((0..24).map(|i| {
        let (node, entry) = (node.clone(), entry(i));
        async move { must(&node, entry).await }
    }))
    .await;
    world.start(away).await;
    let back = world.node(away);
    until("it has caught up", async || {
        (back.topic("t").is_some_and(|t| t.partitions[0].end == Offset(24))).then_some(())
    })
    .await;
    assert_eq!(back.counters().snapshots_installed.load(Relaxed), 0, "the log was enough");
    // Once to each follower. A message that fits no frame would be sent again and again.
    let sent = metric(&node, "buttress_peer_sent_bytes_total");
    assert!(sent < 80 << 20, "{} MiB were sent", sent >> 20);
    world.agree().await;
}

#[tokio::test]
async fn a_follower_that_lags_further_than_memory_goes_catches_up_from_the_log_on_disk() {
    let mut options = quick();
    options.log_memory_bytes = 32 * 1024;
    options.wal.segment_bytes = 1024 * 1024;
    let mut world = World::started(3, options).await;
    let away = world.follower().await;
    let log = create_topic(&world.node(away), "t", TopicSettings::default()).await;
    world.kill(away);
    let node = world.node(world.leader().await);
    // 4 MiB in several segments: less than the log keeps, more than is in memory and more than one read gives.
    for i in 0..64u32 {
        let entries = (0..4).map(|_| append(log, &[i as u8; 16 * 1024]));
        join_all(entries.map(|entry| must(&node, entry))).await;
    }
    let memory = until("memory was let go", async || {
        let memory = metric(&node, "buttress_wal_memory_bytes");
        (memory < 128 * 1024).then_some(memory)
    })
    .await;
    world.start(away).await;
    let back = world.node(away);
    until("it has caught up", async || {
        (back.topic("t").is_some_and(|t| t.partitions[0].end == Offset(256))).then_some(())
    })
    .await;
    assert_eq!(back.counters().snapshots_installed.load(Relaxed), 0, "the log was enough");
    let reads = metric(&node, "buttress_wal_reads_total");
    assert!(reads > 1, "{reads} reads of the log, and {memory} B in memory");
    let found = records(&back, log).await;
    assert!((0..256).all(|at| found[&at] == [(at / 4) as u8; 16 * 1024]), "every record is what it was");
    // From here on memory is enough again.
    must(&back, append(log, b"after")).await;
    world.agree().await;
}

#[tokio::test]
async fn a_burst_that_the_store_cannot_file_as_fast_is_slowed_and_nothing_is_refused_or_lost() {
    let mut options = quick();
    options.unfiled_bytes_max = 256 * 1024;
    options.uncommitted_bytes_max = 256 * 1024;
    options.store.checkpoint_bytes = 256 * 1024;
    options.submit_deadline = Duration::from_secs(60);
    let world = World::started(3, options).await;
    let leader = world.leader().await;
    let log = create_topic(&world.node(leader), "t", TopicSettings::default()).await;
    // A checkpoint syncs several files, and nothing is filed meanwhile.
    for id in world.ids() {
        world.nodes[&id].sync_ms.store(10, SeqCst);
    }
    // 16 MiB at once, by way of every node.
    let nodes: Vec<_> = world.ids().into_iter().map(|id| world.node(id)).collect();
    let burst = join_all((0..512usize).map(|i| must(&nodes[i % 3], append(log, &[i as u8; 32 * 1024]))));
    let most = async {
        let mut most = 0;
        loop {
            most = nodes.iter().map(|node| metric(node, "buttress_store_unfiled_bytes")).max().unwrap_or(0).max(most);
            tokio::time::sleep(Duration::from_millis(1)).await;
            if nodes.iter().all(|node| node.topic("t").is_some_and(|t| t.partitions[0].end == Offset(512))) {
                return most;
            }
        }
    };
    let (receipts, most) = tokio::join!(burst, most);
    let mut offsets: Vec<Offset> = receipts.iter().map(base_offset).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (0..512).map(Offset).collect::<Vec<_>>(), "every one was taken, once");
    // What is committed beyond the bound was proposed before it was reached; a follower may have a frame of it besides.
    assert!(most <= 2 * 1024 * 1024, "{most} B were in memory at once, of 16 MiB");
    world.agree().await;
}

#[tokio::test]
async fn a_restart_of_the_others_costs_a_follower_that_lags_no_snapshot() {
    let mut world = World::started(3, quick()).await;
    let away = world.follower().await;
    must(&world.node(away), put("a", "1")).await;
    world.kill(away);
    let here = world.ids();
    must(&world.node(here[0]), put("b", "1")).await;
    world.agree().await;
    for id in here.clone() {
        // A clean stop writes a checkpoint of everything.
        world.stop(id).await;
    }
    for id in here {
        world.start(id).await;
    }
    world.start(away).await;
    world.agree().await;
    let back = world.node(away);
    assert_eq!(get(&back, "b").await.as_deref(), Some("1"));
    assert_eq!(back.counters().snapshots_installed.load(Relaxed), 0);
}

#[tokio::test]
async fn a_store_without_its_log_and_a_log_without_its_store_are_refused() {
    let mut options = quick();
    options.log_tail_bytes = 0;
    options.wal.segment_bytes = 64 * 1024;
    options.wal.spares_max = 0;
    let mut world = World::started(1, options).await;
    for i in 0..20 {
        must(&world.node(1), put(&format!("k{i}"), &"v".repeat(20_000))).await;
    }
    world.stop(1).await;
    // The second run forgets what the first one's checkpoint has.
    world.start(1).await;
    must(&world.node(1), put("more", &"v".repeat(20_000))).await;
    let node = world.node(1);
    until("the log is forgotten", async || {
        let files = std::fs::read_dir(world.dir.path().join("1/wal")).unwrap().count();
        (files <= 3).then_some(())
    })
    .await;
    drop(node);
    world.stop(1).await;

    let dir = world.dir.path().join("1");
    let away = world.dir.path().join("away");
    for part in ["wal", "store"] {
        std::fs::rename(dir.join(part), &away).unwrap();
        let error = until("the directory is free", async || match world.try_start(1).await {
            Err(error) if error.code == Code::DIR_LOCKED => None,
            other => Some(other.expect_err("it must not found anew what it has forgotten")),
        });
        assert_eq!(error.await.code, Code::CORRUPT, "without its {part}");
        std::fs::remove_dir_all(dir.join(part)).unwrap();
        std::fs::rename(&away, dir.join(part)).unwrap();
    }
    world.start(1).await;
    assert!(get(&world.node(1), "more").await.is_some());
    world.nodes[&1].fuse.store(-1, SeqCst);
}
