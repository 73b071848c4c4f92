//! Nodes of two versions in one cluster: an entry that one of them could not read stays out of the log.

use std::time::Duration;

use buttress_core::{Code, Entry, Ledger as _, NodeId, PutOp, Txn, TxnOp, entry::ENTRY_FORMAT};
use buttress_node::runtime::{MemberRequest, Options};

use crate::world::{World, code, get, must, put, quick, until};

fn old() -> Options {
    Options { entry_format: ENTRY_FORMAT, ..new() }
}

fn new() -> Options {
    Options { format_wait: Duration::from_millis(200), entry_format_of_all: ENTRY_FORMAT, ..quick() }
}

fn txn(key: &str, value: &str) -> Entry {
    let put = PutOp { key: key.to_owned().into(), value: value.to_owned().into(), ..PutOp::default() };
    Entry { txn: Some(Txn { success: vec![TxnOp::Put(put)], ..Txn::default() }), ..Entry::default() }
}

/// Waits until transactions work through this node.
async fn raised(world: &World, id: u64) {
    until("the cluster has agreed on the format", async || world.node(id).submit(txn("t", "raised")).await.ok()).await;
}

#[tokio::test]
async fn a_transaction_is_refused_until_every_member_reads_it() {
    let mut world = World::new(3, new());
    world.start(1).await;
    world.start(2).await;
    world.options = old();
    world.start(3).await;
    world.leader().await;
    for id in [1, 2] {
        assert_eq!(code(world.node(id).submit(txn("t", "early")).await), Code::OLD_MEMBER, "through node {id}");
        // What the old one knows goes on meanwhile.
        must(&world.node(id), put("k", &id.to_string())).await;
    }
    world.agree().await;
    assert_eq!(get(&world.node(3), "t").await, None);

    world.stop(3).await;
    world.options = new();
    world.start(3).await;
    for id in [1, 2, 3] {
        raised(&world, id).await;
    }
    world.agree().await;
    // It is agreed on for good: a member that is away does not change it.
    world.stop(3).await;
    world.leader().await;
    must(&world.node(1), txn("t", "two of three")).await;

    // Back to the old version: it would not see what the others see, so it says why and stops.
    world.options = old();
    world.start(3).await;
    let ended = world.ended(3).expect("it stopped by itself").unwrap_err();
    assert_eq!(ended.code, Code::FORMAT, "{ended}");
    must(&world.node(2), txn("t", "last")).await;
    world.options = new();
    world.start(3).await;
    world.agree().await;
    assert_eq!(get(&world.node(3), "t").await.as_deref(), Some("last"));
}

#[tokio::test]
async fn a_member_that_was_never_there_may_be_an_old_one() {
    let mut world = World::new(3, new());
    world.start(1).await;
    world.start(2).await;
    let leader = world.leader().await;
    assert_eq!(code(world.node(leader).submit(txn("t", "1")).await), Code::OLD_MEMBER);
    // Whoever takes it out for good has no old member any more.
    let request = MemberRequest::Remove { id: NodeId(3) };
    world.node(leader).change_members(request).await.unwrap();
    raised(&world, leader).await;
}

#[tokio::test]
async fn a_cluster_that_restarts_remembers_what_it_agreed_on() {
    let mut world = World::started(3, new()).await;
    world.leader().await;
    raised(&world, 1).await;
    for id in [1, 2, 3] {
        world.stop(id).await;
    }
    // Two of them, and nobody has said anything yet.
    world.start(1).await;
    world.start(2).await;
    let leader = world.leader().await;
    must(&world.node(leader), txn("t", "again")).await;
}

#[tokio::test]
async fn a_newcomer_of_an_old_version_stops_itself() {
    let mut world = World::started(1, new()).await;
    let leader = world.leader().await;
    raised(&world, leader).await;
    world.options = old();
    let request = MemberRequest::Join { member: world.newcomer(2), promote: false };
    world.node(leader).change_members(request).await.unwrap();
    world.start(2).await;
    let ended = world.ended(2).expect("it stopped by itself").unwrap_err();
    assert_eq!(ended.code, Code::FORMAT, "{ended}");
    assert_eq!(get(&world.node(leader), "t").await.as_deref(), Some("raised"), "the others go on");
}
