//! Members that come and go, on real nodes.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use buttress_core::{Cluster as _, Code, Consistency, Error, Ledger as _, NodeId, SubmitError};
use buttress_node::runtime::{GiveWayOptions, Handle, MemberDone, MemberRequest};

use crate::world::{World, get, keys, must, put, quick, transfer, until, value};

async fn change(node: &Handle, request: MemberRequest) -> Result<MemberDone, Error> {
    node.change_members(request).await
}

fn remove(id: u64) -> MemberRequest {
    MemberRequest::Remove { id: NodeId(id) }
}

/// Writers on some nodes, until they are stopped; each counts what was acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    failed: Arc<Mutex<Vec<Error>>>,
    writers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn on(world: &World, ids: &[u64]) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let acknowledged = Arc::<Mutex<Vec<String>>>::default();
        let failed = Arc::<Mutex<Vec<Error>>>::default();
        let writers = ids.iter().map(|id| {
            let (node, id) = (world.node(*id), *id);
            let (stop, acknowledged, failed) = (stop.clone(), acknowledged.clone(), failed.clone());
            tokio::spawn(async move {
                for i in 0.. {
                    if stop.load(SeqCst) {
                        return;
                    }
                    let name = format!("{id}-{i}");
                    match node.submit(put(&name, "v")).await {
                        Ok(_) => acknowledged.lock().unwrap().push(name),
                        Err(SubmitError::Failed(error)) => failed.lock().unwrap().push(error),
                        Err(refused) => panic!("{refused}"),
                    }
                }
            })
        });
        let writers = writers.collect();
        Self { stop, acknowledged, failed, writers }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    async fn more(&self, count: usize) {
        let from = self.count();
        until("more is written", async || (self.count() >= from + count).then_some(())).await;
    }

    /// Stops the writers and gives what was acknowledged, and what failed.
    async fn end(self) -> (Vec<String>, Vec<Error>) {
        self.stop.store(true, SeqCst);
        for writer in self.writers {
            writer.await.unwrap();
        }
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        let failed = self.failed.lock().unwrap().clone();
        (acknowledged, failed)
    }
}

async fn holds_all(world: &World, at: u64, acknowledged: &[String]) {
    let there = keys(&world.node(at), "").await;
    for name in acknowledged {
        assert!(there.contains_key(name), "node {at} lacks {name}");
    }
}

#[tokio::test]
async fn a_fourth_node_joins_under_load_is_promoted_and_takes_writes() {
    let mut world = World::started(3, quick()).await;
    must(&world.node(1), put("before", "1")).await;
    let load = Load::on(&world, &[1, 2, 3]);
    load.more(50).await;
    world.join(4, 2, true).await;
    for id in 1..=4 {
        world.members_are(id, &[1, 2, 3, 4], &[]).await;
    }
    load.more(50).await;
    let (acknowledged, failed) = load.end().await;
    assert_eq!(failed, []);
    let newcomer = world.node(4);
    assert_eq!(get(&newcomer, "before").await.as_deref(), Some("1"));
    must(&newcomer, put("after", "2")).await;
    holds_all(&world, 4, &acknowledged).await;
    world.agree().await;
    // The leader knows how far everybody is.
    let leader = world.node(world.leader().await);
    until("nobody lags", async || {
        let progress = leader.view().progress;
        (progress.len() == 4 && progress.iter().all(|p| p.reachable && p.lag == 0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_learner_stays_one_until_it_is_promoted_and_asking_again_changes_nothing() {
    let mut world = World::started(3, quick()).await;
    let join = MemberRequest::Join { member: world.newcomer(4), promote: false };
    world.leader().await;
    let first = change(&world.node(1), join.clone()).await.unwrap();
    assert_eq!((first.id, first.already), (NodeId(4), false));
    // Its answer may have been lost: whoever asks again gets the same id, on every node.
    for at in 1..=3 {
        let again = change(&world.node(at), join.clone()).await.unwrap();
        assert_eq!((again.id, again.already), (NodeId(4), true));
    }
    // Not yet started, it may even come with other addresses; another's are refused.
    let moved = |peer: &str| {
        let mut member = world.newcomer(4);
        member.peer = peer.into();
        MemberRequest::Join { member, promote: false }
    };
    let leader = world.node(world.leader().await);
    let theirs = leader.view().members.iter().find(|m| !m.peer.is_empty()).unwrap().peer.clone();
    assert_eq!(change(&leader, moved(&theirs)).await.unwrap_err().code, Code::MEMBER_EXISTS);
    assert_eq!(change(&leader, moved("127.0.0.1:1")).await.unwrap().id, NodeId(4));
    assert_eq!(change(&leader, join.clone()).await.unwrap().id, NodeId(4));
    for bad in ["", "a b", "7", "\u{e4}"] {
        let mut member = world.newcomer(4);
        member.name = bad.into();
        let refused = change(&leader, MemberRequest::Join { member, promote: false }).await.unwrap_err();
        assert_eq!(refused.code, Code::BAD_REQUEST, "{bad:?}");
    }

    let early = change(&leader, MemberRequest::Promote { id: NodeId(4), force: false }).await.unwrap_err();
    assert_eq!((early.code, early.retryable), (Code::LAGGING, true));
    assert!(early.message.starts_with("n4 cannot be reached; it is ") && early.message.ends_with("entries behind"));
    world.start(4).await;
    world.members_are(4, &[1, 2, 3], &[4]).await;
    must(&world.node(4), put("through a learner", "1")).await;
    assert_eq!(get(&world.node(4), "through a learner").await.as_deref(), Some("1"));
    until("it has caught up", async || {
        change(&world.node(4), MemberRequest::Promote { id: NodeId(4), force: false }).await.ok()
    })
    .await;
    world.members_are(1, &[1, 2, 3, 4], &[]).await;
    let again = change(&world.node(2), MemberRequest::Promote { id: NodeId(4), force: false }).await.unwrap();
    assert!(again.already);
    let started = change(&world.node(3), join).await.unwrap_err();
    assert_eq!(started.code, Code::MEMBER_EXISTS);
    assert!(started.message.contains("has started"), "{started}");
}

#[tokio::test]
async fn a_newcomer_killed_again_and_again_while_it_catches_up_gets_there() {
    let mut options = quick();
    options.log_tail_bytes = 32 * 1024;
    options.store.checkpoint_bytes = 128 * 1024;
    let mut world = World::started(3, options).await;
    for i in 0..40 {
        must(&world.node(1), put(&format!("k{i}"), &"v".repeat(32 * 1024))).await;
    }
    world.join(4, 1, true).await;
    for wait in [0, 5, 20, 60, 150] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        world.kill(4);
        world.start(4).await;
    }
    world.members_are(1, &[1, 2, 3, 4], &[]).await;
    world.agree().await;
    assert_eq!(value(&world.node(4), "k39", Consistency::Serializable).await.map(|v| v.len()), Some(32 * 1024));
}

#[tokio::test]
async fn a_dead_node_is_replaced_in_one_step_and_told_when_it_comes_back() {
    let mut world = World::started(3, quick()).await;
    let dead = world.follower().await;
    let here: Vec<u64> = (1..=3).filter(|id| *id != dead).collect();
    let load = Load::on(&world, &here);
    load.more(20).await;
    world.kill(dead);
    world.join(4, here[0], false).await;
    let replace = MemberRequest::Replace { old: NodeId(dead), new: NodeId(4), force: false };
    let done = until("it has caught up", async || change(&world.node(here[1]), replace.clone()).await.ok()).await;
    assert_eq!((done.id, done.warnings), (NodeId(4), vec![]), "three again, all of them there");
    let voters = [here[0], here[1], 4];
    for id in voters {
        world.members_are(id, &voters, &[]).await;
    }
    assert!(change(&world.node(4), replace).await.unwrap().already);
    load.more(20).await;
    let (acknowledged, failed) = load.end().await;
    assert_eq!(failed, []);
    // Two of the three that there are now: the newcomer counts.
    world.kill(here[1]);
    must(&world.node(here[0]), put("without the second", "1")).await;
    holds_all(&world, 4, &acknowledged).await;
    // The dead one knows of nothing. Whoever it asks tells it, and it stops.
    world.start(dead).await;
    let ended = world.ended(dead).expect("it ends by itself").expect_err("it is no member");
    assert_eq!(ended.code, Code::REMOVED);
    assert!(ended.message.contains("was removed from cluster \"test\""), "{ended}");
    // And again, for it does not learn of it in its log.
    world.start(dead).await;
    assert_eq!(world.ended(dead).unwrap().unwrap_err().code, Code::REMOVED);
}

#[tokio::test]
async fn the_leader_itself_is_removed_while_clients_write() {
    let mut world = World::started(3, quick()).await;
    let leader = world.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let load = Load::on(&world, &others);
    load.more(20).await;
    let done = change(&world.node(others[0]), remove(leader)).await.unwrap();
    assert_eq!((done.id, done.already), (NodeId(leader), false));
    assert_eq!(done.warnings.len(), 2, "an even number, and nobody to spare: {:?}", done.warnings);
    let ended = world.ended(leader).expect("it notices").expect_err("it is no member");
    assert_eq!(ended.code, Code::REMOVED);
    for id in &others {
        world.members_are(*id, &others, &[]).await;
    }
    assert!(change(&world.node(others[1]), remove(leader)).await.unwrap().already, "removing it again is no error");
    load.more(20).await;
    let (acknowledged, failed) = load.end().await;
    assert_eq!(failed, [], "nobody was told no");
    world.agree().await;
    holds_all(&world, others[1], &acknowledged).await;
}

#[tokio::test]
async fn what_would_lose_the_quorum_is_refused_with_the_arithmetic() {
    let mut world = World::started(3, quick()).await;
    let dead = world.follower().await;
    world.kill(dead);
    let here = world.ids();
    let (node, leader) = (world.node(here[0]), world.leader_of(&here).await);
    let other = here.iter().copied().find(|id| *id != leader).unwrap();
    // The dead one is counted as reachable for two election timeouts.
    until("its silence is noticed", async || {
        let view = world.node(world.leader_of(&here).await).view();
        view.progress.iter().any(|p| p.id.0 == dead && !p.reachable).then_some(())
    })
    .await;
    let refused = change(&node, remove(other)).await.unwrap_err();
    assert_eq!(refused.code, Code::QUORUM);
    assert_eq!(
        refused.message,
        format!("3 voters, 2 reachable; removing n{other} leaves 2 voters of whom 1 is reachable; a quorum is 2")
    );
    let unknown = change(&node, remove(9)).await.unwrap_err();
    assert_eq!(
        (unknown.code, unknown.hint.as_deref()),
        (Code::MEMBER_UNKNOWN, Some("members: n1 (1), n2 (2), n3 (3)"))
    );
    // The dead one may go, and then one of the two, and then nobody.
    change(&node, remove(dead)).await.unwrap();
    change(&world.node(leader), remove(other)).await.unwrap();
    assert_eq!(world.ended(other).unwrap().unwrap_err().code, Code::REMOVED);
    drop(node);
    let last = change(&world.node(leader), remove(leader)).await.unwrap_err();
    assert_eq!((last.code, last.message), (Code::QUORUM, format!("removing n{leader} would leave no voter")));
    must(&world.node(leader), put("alone", "1")).await;
}

#[tokio::test]
async fn leadership_goes_where_it_is_sent_and_no_request_fails() {
    let world = World::started(3, quick()).await;
    let load = Load::on(&world, &[1, 2, 3]);
    load.more(20).await;
    for _ in 0..3 {
        for to in 1..=3 {
            let done = transfer(&world.node(1), Some(to)).await;
            assert_eq!(done.id, NodeId(to));
            until("everybody follows it", async || {
                (1..=3).all(|id| world.node(id).view().leader == Some(NodeId(to))).then_some(())
            })
            .await;
            load.more(10).await;
        }
    }
    let done = transfer(&world.node(2), None).await;
    assert_ne!(done.id, NodeId(3), "to somebody else");
    let (acknowledged, failed) = load.end().await;
    assert_eq!(failed, []);
    world.agree().await;
    holds_all(&world, 1, &acknowledged).await;
}

#[tokio::test]
async fn a_leader_that_is_stopped_hands_over_first() {
    let mut world = World::started(3, quick()).await;
    for _ in 0..2 {
        let leader = world.leader().await;
        let others: Vec<u64> = world.ids().into_iter().filter(|id| *id != leader).collect();
        let load = Load::on(&world, &others);
        load.more(10).await;
        let terms: Vec<u64> = others.iter().map(|id| world.node(*id).view().term.0).collect();
        world.stop(leader).await;
        // They never ran an election for want of a leader: there was one term more, that of the heir.
        world.leader_of(&others).await;
        assert!(others.iter().zip(terms).all(|(id, term)| world.node(*id).view().term.0 == term + 1));
        load.more(10).await;
        let (_, failed) = load.end().await;
        assert_eq!(failed, []);
        world.start(leader).await;
        world.agree().await;
    }
}

#[tokio::test]
async fn everything_restarts_with_the_members_that_there_are() {
    let mut options = quick();
    options.log_tail_bytes = 0;
    options.wal.segment_bytes = 64 * 1024;
    options.wal.spares_max = 0;
    let mut world = World::started(3, options).await;
    world.join(4, 1, true).await;
    world.members_are(1, &[1, 2, 3, 4], &[]).await;
    change(&world.node(4), remove(2)).await.unwrap();
    assert_eq!(world.ended(2).unwrap().unwrap_err().code, Code::REMOVED);
    // So much that the changes themselves are in checkpoints only.
    for i in 0..20 {
        must(&world.node(4), put(&format!("k{i}"), &"v".repeat(20_000))).await;
    }
    for id in world.ids() {
        world.stop(id).await;
    }
    for id in [1, 3, 4] {
        world.start(id).await;
    }
    for id in [1, 3, 4] {
        world.members_are(id, &[1, 3, 4], &[]).await;
    }
    world.leader().await;
    must(&world.node(1), put("after", "1")).await;
    world.agree().await;
    // Its id is not given out again, and who comes now gets the members from a snapshot.
    world.join(5, 3, true).await;
    world.members_are(5, &[1, 3, 4, 5], &[]).await;
    assert!(world.node(5).counters().snapshots_installed.load(Relaxed) >= 1);
    // It reaches whom only the log knows: the other newcomer, here without the founders.
    transfer(&world.node(5), Some(4)).await;
    world.kill(1);
    must(&world.node(5), put("from the newcomers", "1")).await;
}

#[tokio::test]
async fn a_follower_that_missed_who_joined_learns_it_from_the_newcomer_that_leads() {
    let mut world = World::started(3, quick()).await;
    let away = world.follower().await;
    world.kill(away);
    let here = world.ids();
    world.join(4, here[0], true).await;
    world.members_are(here[0], &[1, 2, 3, 4], &[]).await;
    transfer(&world.node(here[0]), Some(4)).await;
    must(&world.node(here[1]), put("x", "1")).await;
    // It has never heard of the leader, which reaches it, and whom it must answer.
    world.start(away).await;
    world.members_are(away, &[1, 2, 3, 4], &[]).await;
    assert_eq!(get(&world.node(away), "x").await.as_deref(), Some("1"));
    world.agree().await;
}

#[tokio::test]
async fn a_node_with_an_id_that_nobody_gave_out_is_told_and_stops() {
    let mut options = quick();
    options.unknown_deadline = Duration::from_millis(300);
    let mut world = World::started(3, options).await;
    world.leader().await;
    world.start(4).await;
    let ended = world.ended(4).expect("it gives up").expect_err("it is no member");
    assert_eq!(ended.code, Code::MEMBER_UNKNOWN);
    assert_eq!(ended.message, "cluster \"test\" has never had a member with the id 4");
    must(&world.node(1), put("unharmed", "1")).await;
    // A member in its place is welcome.
    world.join(4, 1, true).await;
    world.members_are(2, &[1, 2, 3, 4], &[]).await;
}

#[tokio::test]
async fn a_leader_whose_disk_has_become_slow_gives_way_once() {
    let mut options = quick();
    options.give_way = GiveWayOptions { floor_us: 20_000, slow_for_ms: 500, settled_ms: 0 };
    let world = World::started(3, options).await;
    let load = Load::on(&world, &[1, 2, 3]);
    load.more(20).await;
    let slow = world.leader().await;
    world.nodes[&slow].sync_ms.store(300, SeqCst);
    let next = until("somebody else leads", async || {
        let leader = world.node(slow).view().leader?;
        (leader.0 != slow).then_some(leader.0)
    })
    .await;
    assert_eq!(world.node(slow).counters().gave_way.load(Relaxed), 1);
    // Its disk stays slow and it does not lead again.
    let term = world.node(next).view().term;
    load.more(200).await;
    let view = world.node(next).view();
    assert_eq!((view.leader, view.term), (Some(NodeId(next)), term));
    world.nodes[&slow].sync_ms.store(0, SeqCst);
    let (_, failed) = load.end().await;
    assert_eq!(failed, []);
    world.agree().await;
}
