//! Wall clocks that are wrong, on real nodes: what leases live by is none of them.

use buttress_core::{Cluster as _, Consistency, Entry, LeaseChange, LeaseId, Ledger as _, Put, ledger::LeaseView};
use buttress_node::runtime::Handle;

use crate::world::{World, get, must, put, quick, transfer, until};

const HOUR: i64 = 3_600_000;
/// It is kept alive. A machine that stands still for so long in the middle of a test is not thought of.
const KEPT: LeaseId = LeaseId(1);
const KEPT_MS: u64 = 60_000;

async fn grant(node: &Handle, lease: LeaseId, ttl_ms: u64, key: &'static str) {
    let leases = vec![LeaseChange::Grant { lease, ttl_ms }];
    let puts = vec![Put { key: key.into(), value: Some("held".into()), lease: Some(lease) }];
    must(node, Entry { leases, puts, ..Entry::default() }).await;
}

async fn look(node: &Handle, lease: LeaseId) -> Option<LeaseView> {
    node.lease(lease, false, Consistency::Linearizable).await.unwrap()
}

/// A lease that nobody keeps alive ends, whoever leads, and the one that is kept alive meanwhile does not.
async fn one_ends_and_one_is_kept(node: &Handle, lease: LeaseId) {
    grant(node, lease, 2_000, "left").await;
    until("a lease that nobody keeps alive ends", async || {
        must(node, Entry { leases: vec![LeaseChange::KeepAlive { lease: KEPT }], ..Entry::default() }).await;
        look(node, lease).await.is_none().then_some(())
    })
    .await;
    let view = look(node, KEPT).await.expect("it was kept alive");
    assert!((1..=KEPT_MS).contains(&view.remaining_ms), "{view:?}");
    assert_eq!(get(node, "left").await, None, "its key went with it");
    assert!(get(node, "kept").await.is_some());
}

#[tokio::test]
async fn a_jump_of_the_leaders_wall_clock_ends_no_lease() {
    for ahead_ms in [HOUR, -HOUR] {
        let mut world = World::started(3, quick()).await;
        let leader = world.leader().await;
        let node = world.node(leader);
        grant(&node, KEPT, KEPT_MS, "kept").await;
        world.set_wall(leader, ahead_ms);
        // Entries before and after any tick are stamped.
        must(&node, put("a", "1")).await;
        one_ends_and_one_is_kept(&world.node(world.follower().await), LeaseId(2)).await;
        let off = node.now().0.abs_diff(node.cluster_time().0);
        assert!(off > HOUR as u64 / 2, "the time is not the wall clock's, but {off} ms from it");
        assert_eq!(world.leader().await, leader);
    }
}

#[tokio::test]
async fn a_new_leader_whose_wall_clock_is_wrong_ends_no_lease() {
    for ahead_ms in [HOUR, -HOUR] {
        let mut world = World::started(3, quick()).await;
        let (leader, heir) = (world.leader().await, world.follower().await);
        world.set_wall(heir, ahead_ms);
        grant(&world.node(leader), KEPT, KEPT_MS, "kept").await;
        transfer(&world.node(leader), Some(heir)).await;
        assert_eq!(world.leader().await, heir);
        one_ends_and_one_is_kept(&world.node(leader), LeaseId(2)).await;
    }
}

#[tokio::test]
async fn a_node_that_starts_with_a_wrong_wall_clock_and_leads_at_once_ends_no_lease() {
    for ahead_ms in [HOUR, -HOUR] {
        let mut world = World::started(3, quick()).await;
        let leader = world.leader().await;
        grant(&world.node(leader), KEPT, KEPT_MS, "kept").await;
        // All start again, and whoever comes to lead has nothing but its wall clock and the log.
        for id in world.ids() {
            world.kill(id);
            world.set_wall(id, ahead_ms);
        }
        for id in 1..=3 {
            world.start(id).await;
        }
        let leader = world.leader().await;
        assert!(look(&world.node(leader), KEPT).await.is_some());
        one_ends_and_one_is_kept(&world.node(leader), LeaseId(2)).await;
        // The wall clock is right again; leadership goes round.
        for id in 1..=3 {
            world.set_wall(id, 0);
        }
        let heir = world.follower().await;
        transfer(&world.node(leader), Some(heir)).await;
        one_ends_and_one_is_kept(&world.node(leader), LeaseId(3)).await;
    }
}
