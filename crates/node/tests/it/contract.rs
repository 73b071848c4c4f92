//! The contract that ledgers and streams owe, held against real nodes: the suite that an etcd and a Kafka pass too.

use std::{sync::Arc, time::Duration};

use buttress_bridge::contract::{Claims, Host, Keys, Pass, Records};
use buttress_core::{BoxFuture, Consistency, KeyRange, Ledger};
use buttress_node::runtime::Handle;

use crate::world::{World, quick};

fn real_time() -> Pass {
    Box::new(|ms| Box::pin(tokio::time::sleep(Duration::from_millis(ms))))
}

/// Asked on the leader and on a follower, whose reads and watches are its own.
#[tokio::test]
async fn keys_of_a_cluster_of_three() {
    let world = World::started(3, quick()).await;
    let leader = world.leader().await;
    for id in [leader, leader % 3 + 1] {
        Keys { ledger: world.node(id), prefix: format!("contract-{id}/"), pass: real_time() }.run().await;
    }
    world.agree().await;
}

/// Waits until a node has applied what was acknowledged anywhere: what a claim does on another engine.
async fn catch_up(node: Arc<Handle>) {
    node.read(KeyRange::key("k"), 1, Consistency::Linearizable).await.expect("a quorum is there");
}

fn host(node: &Arc<Handle>) -> Host {
    let claiming = node.clone();
    let claim: Claims = Box::new(move |_, _| {
        let node = claiming.clone();
        Box::pin(async move {
            catch_up(node).await;
            Ok(())
        })
    });
    Host { ledger: node.clone(), stream: node.clone(), claim }
}

#[tokio::test]
async fn records_of_a_cluster_of_three() {
    let world = World::started(3, quick()).await;
    let leader = world.leader().await;
    for (round, (first, second)) in [(leader, leader % 3 + 1), (leader % 3 + 1, leader)].into_iter().enumerate() {
        let (first, second) = (world.node(first), world.node(second));
        let looking = second.clone();
        let look = Box::new(move || -> BoxFuture<'static, ()> { Box::pin(catch_up(looking.clone())) });
        let prefix = format!("contract-{round}-");
        Records { host: host(&first), other: host(&second), look, prefix }.run().await;
    }
    world.agree().await;
}
