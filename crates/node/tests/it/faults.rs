//! Cut links, strangers and failing disks: who goes on, who does not, and what those are told who asked the wrong one.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use buttress_core::{Cluster as _, Code, Consistency, Entry, KeyRange, Ledger as _, NodeId, entry::TopicSettings};
use buttress_node::transport::{Hello, Lane};
use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::{World, append, base_offset, code, create_topic, get, must, put, quick, records, set_fuse, until};

#[tokio::test]
async fn the_majority_goes_on_without_a_leader_that_is_cut_off() {
    let mut options = quick();
    options.submit_deadline = Duration::from_millis(800);
    options.read_deadline = Duration::from_millis(800);
    let world = World::started(3, options).await;
    let old = world.leader().await;
    must(&world.node(old), put("k", "old")).await;
    world.isolate(old, true);
    let rest: Vec<u64> = world.ids().into_iter().filter(|id| *id != old).collect();
    // It was sent, for the old one believes to lead for a moment more: whether it happened is not known.
    assert_eq!(code(world.node(old).submit(put("k", "lost")).await), Code::TIMEOUT);
    let new = world.leader_of(&rest).await;
    assert_ne!(new, old);
    until("the majority takes entries", async || world.node(new).submit(put("k", "new")).await.ok()).await;
    // By now the old one knows that it does not lead, so nothing is sent.
    assert_eq!(world.node(old).view().leader, None);
    assert_eq!(code(world.node(old).submit(put("k", "lost")).await), Code::NO_LEADER);
    let stale = world.node(old).read(KeyRange::key("k"), 1, Consistency::Linearizable).await;
    assert_eq!(stale.unwrap_err().code, Code::NO_LEADER);
    world.isolate(old, false);
    world.leader().await;
    for id in world.ids() {
        let value = until("a read is answered", async || {
            let read = world.node(id).read(KeyRange::key("k"), 1, Consistency::Linearizable).await;
            read.ok().map(|found| found.kvs[0].value.clone())
        });
        assert_eq!(value.await, "new", "what the minority did not commit is gone");
    }
    world.agree().await;
}

#[tokio::test]
async fn a_leader_that_hears_nobody_steps_down() {
    let world = World::started(3, quick()).await;
    let old = world.leader().await;
    let rest: Vec<u64> = world.ids().into_iter().filter(|id| *id != old).collect();
    let before = world.node(old).view().term;
    for id in &rest {
        world.link(*id, old, false);
    }
    // It goes on being heard, so nobody else would ever campaign if it did not give up by itself.
    let new = world.leader_of(&rest).await;
    let entry = put("k", "v");
    until("the others take entries", async || world.node(rest[0]).submit(entry.clone()).await.ok()).await;
    assert_ne!(new, old);
    for id in &rest {
        world.link(*id, old, true);
    }
    until("the old leader follows", async || {
        let view = world.node(old).view();
        (view.term > before && view.leader.is_some_and(|leader| leader.0 != old)).then_some(())
    })
    .await;
    assert_eq!(get(&world.node(old), "k").await.as_deref(), Some("v"));
    world.agree().await;
}

#[tokio::test]
async fn a_follower_that_hears_nobody_disturbs_nobody() {
    let world = World::started(3, quick()).await;
    let leader = world.leader().await;
    let deaf = world.follower().await;
    let (term, node) = (world.node(leader).view().term, world.node(leader));
    for id in world.ids().into_iter().filter(|id| *id != deaf) {
        world.link(id, deaf, false);
    }
    until("it hears nobody", async || world.node(deaf).view().leader.is_none().then_some(())).await;
    for i in 0..20 {
        must(&node, put(&format!("k{i}"), "v")).await;
    }
    for id in world.ids().into_iter().filter(|id| *id != deaf) {
        world.link(id, deaf, true);
    }
    until("it has a leader again", async || world.node(deaf).view().leader).await;
    assert_eq!(get(&world.node(deaf), "k19").await.as_deref(), Some("v"));
    world.agree().await;
    assert_eq!(node.view().term, term, "pre-vote: it asked and was told that there is a leader");
}

#[tokio::test]
async fn entries_of_a_follower_survive_a_cut_to_the_leader() {
    let mut options = quick();
    options.resend_after = Duration::from_millis(100);
    let world = World::started(3, options).await;
    let leader = world.leader().await;
    let follower = world.follower().await;
    let node = world.node(follower);
    let log = create_topic(&node, "t", TopicSettings::default()).await;
    // The leader's word comes through, the follower's entries wait in the cut.
    world.link(follower, leader, false);
    let submitted = join_all((0..50u8).map(|i| {
        let node = node.clone();
        async move { must(&node, append(log, &[i])).await }
    }));
    let mend = async {
        until("they were sent again", async || (node.counters().resent.load(Relaxed) >= 50).then_some(())).await;
        world.link(follower, leader, true);
    };
    tokio::join!(submitted, mend);
    assert_eq!(records(&node, log).await.len(), 50, "sent twice, applied once");
}

#[tokio::test]
async fn entries_that_wait_for_their_leader_are_fewer_than_results_are_remembered() {
    let mut options = quick();
    options.resend_after = Duration::from_millis(100);
    let world = World::started(3, options).await;
    let leader = world.leader().await;
    let follower = world.follower().await;
    let node = world.node(follower);
    let log = create_topic(&node, "t", TopicSettings::default()).await;
    world.link(follower, leader, false);
    // More than the 4096 results that state remembers of a client; none is answered while the cut lasts.
    let submitted = join_all((0..5000u32).map(|i| {
        let node = node.clone();
        async move { must(&node, append(log, &i.to_be_bytes())).await }
    }));
    let mend = async {
        until("they were sent again", async || (node.counters().resent.load(Relaxed) >= 4096).then_some(())).await;
        world.link(follower, leader, true);
    };
    tokio::join!(submitted, mend);
    assert_eq!(records(&node, log).await.len(), 5000, "each once");
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let mut world = World::started(3, quick()).await;
    world.leader().await;
    let hello = |cluster: &str, from, to| Hello {
        cluster_id: cluster.into(),
        from: NodeId(from),
        to: NodeId(to),
        lane: Lane::Control,
        address: None,
    };
    let garbage = vec![0xff; 4096];
    let cases = [
        ("another cluster", hello("other", 2, 1).encode().to_vec()),
        ("an unknown node", hello("test", 9, 1).encode().to_vec()),
        ("another receiver", hello("test", 2, 3).encode().to_vec()),
        ("itself", hello("test", 1, 1).encode().to_vec()),
        ("garbage", garbage.clone()),
        ("a member that speaks garbage", [hello("test", 2, 1).encode().to_vec(), garbage].concat()),
    ];
    for (what, bytes) in cases {
        let mut stream = TcpStream::connect(world.address(1)).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "{what} is not turned away");
        // But for the two bytes by which a receiver shows that it is there.
        assert!(answer.len() <= 2, "{what} is told nothing: {answer:?}");
    }
    must(&world.node(1), put("k", "v")).await;

    // A directory of another cluster.
    world.stop(1).await;
    let mut config = world.config(1);
    config.cluster_id = "other".into();
    let error = until("the directory is free", async || {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        match buttress_node::runtime::start(config.clone(), listener) {
            Err(error) if error.code == Code::DIR_LOCKED => None,
            other => Some(other.err().expect("it must not start")),
        }
    });
    assert_eq!(error.await.code, Code::WRONG_CLUSTER);
}

#[tokio::test]
async fn a_disk_that_fails_stops_its_node_and_no_other() {
    for of_leader in [false, true] {
        let mut world = World::started(3, quick()).await;
        let broken = if of_leader { world.leader().await } else { world.follower().await };
        let rest: Vec<u64> = world.ids().into_iter().filter(|id| *id != broken).collect();
        must(&world.node(rest[0]), put("k", "1")).await;
        let node = world.node(broken);
        set_fuse(&world, broken, 0);
        // Whether what was under way at the broken node happened is unknown; it never says that it did not.
        let under_way = node.submit(put("k", "2")).await;
        if let Err(error) = &under_way {
            assert_eq!(error.code(), Code::TIMEOUT, "{error}");
        }
        let ended = world.ended(broken).expect("it stopped by itself");
        assert_eq!(ended.unwrap_err().code, Code::DISK);
        assert_eq!(node.submit(Entry::default()).await.unwrap_err().code(), Code::STOPPED);
        drop(node);
        until("the others go on", async || world.node(rest[0]).submit(put("k", "3")).await.ok()).await;
        assert_eq!(get(&world.node(rest[1]), "k").await.as_deref(), Some("3"));
        // With a disk that works it comes back with all that it had acknowledged.
        world.start(broken).await;
        world.agree().await;
        assert_eq!(get(&world.node(broken), "k").await.as_deref(), Some("3"));
    }
}

#[tokio::test]
async fn a_leader_whose_log_is_full_takes_no_more_and_goes_on_when_it_has_room() {
    let mut options = quick();
    options.uncommitted_bytes_max = 256 * 1024;
    options.submit_deadline = Duration::from_secs(15);
    let world = World::started(3, options).await;
    let leader = world.leader().await;
    let log = create_topic(&world.node(leader), "t", TopicSettings::default()).await;
    // All are submitted before any is answered, and are four times what the leader takes.
    let own = join_all((0..30).map(|_| {
        let node = world.node(leader);
        async move { base_offset(&must(&node, append(log, &[1; 32 * 1024])).await) }
    }))
    .await;
    assert!(own.is_sorted(), "no entry overtakes another: {own:?}");
    // Neither do those of a follower, of which the leader takes some and refuses others; a small one finds room sooner.
    let node = world.node(world.follower().await);
    // No more than the way to the node's task holds at once: beyond, they would not be submitted in this order.
    let forwarded = join_all((0..60).map(|i| {
        let node = node.clone();
        let len = if i % 3 == 0 { 120 * 1024 } else { 512 };
        async move { base_offset(&must(&node, append(log, &vec![3; len])).await) }
    }))
    .await;
    assert!(forwarded.is_sorted(), "no entry overtakes another on the way: {forwarded:?}");
    let all = join_all((0..66u64).map(|i| {
        let node = world.node(1 + i % 3);
        async move { must(&node, append(log, &[2; 32 * 1024])).await }
    }))
    .await;
    // Whoever took an entry has applied it when it answers; another node, the leader too, may be a moment behind.
    world.agree().await;
    assert_eq!(records(&world.node(leader), log).await.len(), own.len() + forwarded.len() + all.len(), "each once");
}
