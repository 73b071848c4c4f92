//! etcd's API on real nodes: any node answers, a watch and a lease outlive the leader, and members are as they are.

use std::{collections::BTreeSet, time::Duration};

use buttress_etcd_proto::{
    client::Channel,
    etcdserverpb::{
        self as pb, cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient, request_op::Request, watch_client::WatchClient,
        watch_request::RequestUnion,
    },
};
use futures::StreamExt;

use super::support::*;

/// Nothing that is waited for takes so long.
const DEADLINE: Duration = Duration::from_secs(30);

async fn channel(dev: &Dev, node: usize) -> Channel {
    let address = dev.nodes[node]["etcd"].as_str().expect("an address");
    Channel::connect(address).await.expect("it listens")
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

#[tokio::test]
async fn any_node_serves_and_a_dead_leader_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 3);
    let leader = dev.leader(0);
    let (here, there) = ((leader + 1) % 3, (leader + 2) % 3);

    let members = ClusterClient::new(channel(&dev, here).await)
        .member_list(pb::MemberListRequest { linearizable: true })
        .await
        .unwrap()
        .into_inner()
        .members;
    let urls: BTreeSet<_> = members.iter().flat_map(|member| &member.client_ur_ls).cloned().collect();
    let announced: BTreeSet<_> =
        dev.nodes.iter().map(|node| format!("http://{}", node["etcd"].as_str().unwrap())).collect();
    assert_eq!(urls, announced);
    let status =
        MaintenanceClient::new(channel(&dev, here).await).status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.leader, leader as u64 + 1);
    assert!(status.db_size > 0 && status.raft_term > 0);

    // A watch on one follower, writes through the other.
    let create = pb::WatchCreateRequest { key: "k".into(), range_end: "l".into(), prev_kv: true, ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures::stream::iter([create]).chain(futures::stream::pending());
    let mut watch = WatchClient::new(channel(&dev, here).await).watch(requests).await.unwrap().into_inner();
    let mut next = async || tokio::time::timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
    assert!(next().await.created);
    let mut kv = KvClient::new(channel(&dev, there).await);
    let lease = LeaseClient::new(channel(&dev, there).await)
        .lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 })
        .await
        .unwrap()
        .into_inner()
        .id;
    kv.put(pb::PutRequest { lease, ..put("k/1", "one") }).await.unwrap();
    let txn = pb::TxnRequest {
        success: ["k/1", "k/2"].map(|key| pb::RequestOp { request: Some(Request::RequestPut(put(key, "two"))) }).into(),
        ..Default::default()
    };
    kv.txn(txn).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        for event in next().await.events {
            let kv = event.kv.unwrap();
            seen.push(format!("{}={}", String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value)));
        }
    }
    assert_eq!(seen, ["k/1=one", "k/1=two", "k/2=two"]);

    signal(node_process(dir.path(), &format!("node-{}", leader + 1)).unwrap(), "KILL");
    // Tried again where the outcome is not known, as every client does.
    let revision = loop {
        match kv.put(put("k/3", "after")).await {
            Ok(answer) => break answer.into_inner().header.unwrap().revision,
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
        }
    };
    let event = loop {
        let answer = next().await;
        if let Some(event) = answer.events.into_iter().find(|event| event.kv.as_ref().unwrap().key == "k/3") {
            break event.kv.unwrap();
        }
    };
    assert!(event.mod_revision <= revision && event.value == "after");
    let left = LeaseClient::new(channel(&dev, here).await)
        .lease_time_to_live(pb::LeaseTimeToLiveRequest { id: lease, keys: true })
        .await
        .unwrap()
        .into_inner();
    assert!(left.ttl > 0 && left.granted_ttl == 60 && left.keys.is_empty(), "{left:?}");

    // What etcd's clients write is what our own see.
    let server = &dev.http(here);
    assert_eq!(ok(&run(&["kv", "get", "k/1", "--server", server])), "two\n");
    // An open watch does not keep the nodes from stopping.
    assert_eq!(dev.stop(), Some(0));
    assert_eq!(processes_of(dir.path()), Vec::<u32>::new());
}
