//! Nothing is broken: what every node of a cluster answers.

use std::sync::atomic::Ordering::Relaxed;

use buttress_core::{
    Cluster as _, Code, Consistency, Cursor, Entry, Guard, KeyRange, LeaseChange, LeaseId, Ledger as _, Offset, Put,
    Refusal, Revision, Stream as _, SubmitError, TimeMs, Timer, TopicChange, entry::TopicSettings,
};
use bytes::Bytes;
use futures::future::join_all;

use crate::world::{
    World, append, base_offset, batch, create_topic, get, keys, must, put, quick, records, until, value,
};

#[tokio::test]
async fn every_node_takes_entries_and_reads_its_own_writes() {
    let world = World::started(3, quick()).await;
    world.leader().await;
    for id in world.ids() {
        let node = world.node(id);
        let key = format!("key-{id}");
        let receipt = must(&node, put(&key, "v")).await;
        // All of this without a barrier, on the node that answered.
        assert_eq!(value(&node, &key, Consistency::Serializable).await.as_deref(), Some("v"));
        let view = node.view();
        assert!(view.revision >= receipt.revision && view.applied >= receipt.index, "{view:?} {receipt:?}");

        let log = create_topic(&node, &format!("topic-{id}"), TopicSettings::default()).await;
        assert_eq!(node.topic(&format!("topic-{id}")).unwrap().partitions[0].log, log);
        let cursor = Cursor { group: "g".into(), log, next: Offset(3), metadata: String::new() };
        let entry = Entry { appends: vec![batch(log, 3, b"abc")], cursors: vec![], ..Entry::default() };
        assert_eq!(base_offset(&must(&node, entry).await), Offset(0));
        let fetched = node.fetch(log, Offset(1), 1000, 0).await.unwrap();
        assert_eq!((fetched.end, fetched.batches.len()), (Offset(3), 1));
        assert_eq!(&fetched.batches[0].bytes[61..], b"abc");
        must(&node, Entry { cursors: vec![cursor], ..Entry::default() }).await;
        assert_eq!(node.cursor("g", log), Some(Offset(3)));

        // And linearizable on every other, at once.
        for other in world.ids() {
            assert_eq!(get(&world.node(other), &key).await.as_deref(), Some("v"), "node {other}");
        }
    }
    let forwarded: u64 = world.ids().iter().map(|id| world.node(*id).counters().forwarded.load(Relaxed)).sum();
    assert!(forwarded >= 8, "two followers forwarded four entries each: {forwarded}");
    world.agree().await;
}

#[tokio::test]
async fn a_linearizable_read_sees_what_was_acknowledged_elsewhere() {
    let world = World::started(3, quick()).await;
    world.leader().await;
    for round in 0..30u64 {
        let writer = world.node(1 + round % 3);
        must(&writer, put("counter", &round.to_string())).await;
        for id in world.ids() {
            assert_eq!(get(&world.node(id), "counter").await, Some(round.to_string()), "node {id}, round {round}");
        }
    }
}

#[tokio::test]
async fn a_guard_that_does_not_hold_is_named() {
    let world = World::started(3, quick()).await;
    for id in [world.leader().await, world.follower().await] {
        let node = world.node(id);
        let key = Bytes::from(format!("guarded-{id}"));
        let unwritten = Guard::Version { key: key.clone(), version: 0 };
        let right = Guard::ModRevision { key: "other".into(), revision: Revision(0) };
        let write = Entry {
            guards: vec![right, unwritten.clone()],
            puts: vec![Put { key: key.clone(), value: Some("1".into()), lease: None }],
            ..Entry::default()
        };
        must(&node, write.clone()).await;
        let refused = node.submit(write).await.unwrap_err();
        let expected = Refusal::Guard { position: 1, guard: unwritten, found: "1".into() };
        assert_eq!(refused, SubmitError::Refused(expected));
        assert_eq!(refused.code(), Code::REFUSED);
        assert_eq!(node.counters().refused.load(Relaxed), 1);
    }
}

#[tokio::test]
async fn a_watch_sees_every_change_once_in_order_and_goes_on_where_it_stopped() {
    let world = World::started(3, quick()).await;
    let follower = world.node(world.follower().await);
    must(&follower, put("w/first", "0")).await;
    let mut from_now = follower.watch(KeyRange::prefix("w/"), None).await.unwrap();
    let mut from_start = follower.watch(KeyRange::prefix("w/"), Some(Revision(1))).await.unwrap();
    let writes = (0..60u64).map(|i| {
        let node = world.node(1 + i % 3);
        async move { must(&node, put(&format!("w/{i}"), &i.to_string())).await.revision }
    });
    let mut expected: Vec<Revision> = join_all(writes).await;
    expected.sort();
    let mut seen = Vec::new();
    while seen.len() < 30 {
        seen.extend(from_now.next().await.unwrap().unwrap());
    }
    // Another watch takes over behind the last revision that was seen.
    drop(from_now);
    let next = Revision(seen.last().unwrap().revision.0 + 1);
    let mut resumed = world.node(world.leader().await).watch(KeyRange::prefix("w/"), Some(next)).await.unwrap();
    while seen.len() < 60 {
        seen.extend(resumed.next().await.unwrap().unwrap());
    }
    assert_eq!(seen.iter().map(|event| event.revision).collect::<Vec<_>>(), expected);
    let mut all = Vec::new();
    while all.len() < 61 {
        all.extend(from_start.next().await.unwrap().unwrap());
    }
    assert_eq!(all[0].key, "w/first");
    assert_eq!(all[1..], seen);
}

#[tokio::test]
async fn leases_expire_and_timers_fire_by_the_clock() {
    let world = World::started(3, quick()).await;
    let node = world.node(world.follower().await);
    let soon = TimeMs(node.now().0 + 150);
    let entry = Entry {
        leases: vec![
            LeaseChange::Grant { lease: LeaseId(1), ttl_ms: 150 },
            LeaseChange::Grant { lease: LeaseId(2), ttl_ms: 600_000 },
        ],
        puts: vec![
            Put { key: "short".into(), value: Some("1".into()), lease: Some(LeaseId(1)) },
            Put { key: "long".into(), value: Some("1".into()), lease: Some(LeaseId(2)) },
        ],
        timers: vec![
            Timer::Set { id: "t".into(), due: soon, key: "fired".into(), value: "yes".into() },
            Timer::Set { id: "u".into(), due: TimeMs(soon.0 + 600_000), key: "late".into(), value: "yes".into() },
        ],
        ..Entry::default()
    };
    let granted = must(&node, entry).await;
    until("the lease has expired and the timer has fired", async || {
        (get(&node, "short").await.is_none() && get(&node, "fired").await.is_some()).then_some(())
    })
    .await;
    assert!(node.now().0 >= granted.time.0 + 150, "not before they were due");
    for id in world.ids() {
        let node = world.node(id);
        assert_eq!(get(&node, "long").await.as_deref(), Some("1"));
        assert_eq!(get(&node, "late").await, None);
        assert_eq!(get(&node, "short").await, None);
    }
}

#[tokio::test]
async fn retention_trims_on_every_node() {
    let world = World::started(3, quick()).await;
    let node = world.node(world.leader().await);
    let settings = TopicSettings { retention_bytes: Some(1 << 20), ..TopicSettings::default() };
    let log = create_topic(&node, "short", settings).await;
    for _ in 0..12 {
        must(&node, append(log, &[7; 256 * 1024])).await;
    }
    for id in world.ids() {
        let node = world.node(id);
        let start = until("retention has trimmed", async || {
            let partition = &node.topic("short")?.partitions[0];
            (partition.start > Offset(0)).then_some(partition.start)
        })
        .await;
        assert!(start <= Offset(8), "the last MiB and what shares its mark stay: {start}");
        let gone = node.fetch(log, Offset(0), 1000, 0).await.unwrap_err();
        assert_eq!(gone.code, Code::OFFSET_OUT_OF_RANGE);
    }
}

#[tokio::test]
async fn a_fetch_waits_for_records_and_hears_of_the_topic_s_end() {
    let world = World::started(1, quick()).await;
    let node = world.node(1);
    let log = create_topic(&node, "t", TopicSettings::default()).await;
    let (fetched, _) = tokio::join!(node.fetch(log, Offset(0), 1000, 60_000), async {
        tokio::task::yield_now().await;
        must(&node, append(log, b"x")).await
    });
    assert_eq!(fetched.unwrap().batches.len(), 1);
    let delete = Entry { topics: vec![TopicChange::Delete { name: "t".into() }], ..Entry::default() };
    let (fetched, _) = tokio::join!(node.fetch(log, Offset(1), 1000, 60_000), async {
        tokio::task::yield_now().await;
        must(&node, delete).await
    });
    assert_eq!(fetched.unwrap_err().code, Code::TOPIC_UNKNOWN);
}

#[tokio::test]
async fn whoever_waits_when_the_node_stops_is_told() {
    let mut world = World::started(1, quick()).await;
    let node = world.node(1);
    let log = create_topic(&node, "t", TopicSettings::default()).await;
    let mut watch = node.watch(KeyRange::prefix("x"), None).await.unwrap();
    let (fetched, watched, ()) = tokio::join!(node.fetch(log, Offset(0), 1000, 60_000), watch.next(), async {
        tokio::task::yield_now().await;
        world.stop(1).await;
    });
    assert_eq!(fetched.unwrap_err().code, Code::STOPPED);
    assert_eq!(watched, Ok(None));
    assert_eq!(node.submit(put("a", "b")).await.unwrap_err().code(), Code::STOPPED);
    assert_eq!(node.view().leader, None);
}

#[tokio::test]
async fn more_entries_than_results_are_remembered_are_each_applied_once() {
    let world = World::started(3, quick()).await;
    let node = world.node(world.follower().await);
    let log = create_topic(&node, "many", TopicSettings::default()).await;
    let receipts = join_all((0..6000u32).map(|i| {
        let node = node.clone();
        async move { base_offset(&must(&node, append(log, &i.to_be_bytes())).await) }
    }))
    .await;
    // None was given up as forgotten, and none came twice.
    let found = records(&node, log).await;
    assert_eq!(found.len(), 6000);
    for (i, offset) in receipts.iter().enumerate() {
        assert_eq!(found[&offset.0], (i as u32).to_be_bytes());
    }
    assert!(keys(&node, "").await.is_empty());
}
