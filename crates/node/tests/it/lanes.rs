//! The transport alone: what a node hears while bulk data is not taken.

use std::{collections::BTreeMap, time::Duration};

use buttress_core::NodeId;
use buttress_node::transport::{Event, Frame, Inbox, Lane, Transport};
use bytes::Bytes;
use tokio::{net::TcpListener, sync::mpsc};

async fn pair() -> ((Transport, Inbox), (Transport, Inbox)) {
    let listeners = [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
    let addresses = [0, 1].map(|at: usize| listeners[at].local_addr().unwrap().to_string());
    let [first, second] = listeners;
    let start = |node: u64, peer: usize, listener| {
        let peers = BTreeMap::from([(NodeId(peer as u64 + 1), addresses[peer].clone())]);
        let (snapshots, _) = mpsc::channel(1);
        Transport::start("c".into(), NodeId(node), None, peers, listener, snapshots)
    };
    (start(1, 1, first), start(2, 0, second))
}

fn payload(event: Option<Event>) -> Option<Bytes> {
    match event {
        Some(Event::Frame { frame: Frame::Raft(bytes), .. }) => Some(bytes),
        _ => None,
    }
}

#[tokio::test]
async fn control_does_not_wait_behind_data_that_nobody_takes() {
    let ((sender, _inbox), (_transport, mut inbox)) = pair().await;
    let bulk = Bytes::from(vec![7; 1 << 20]);
    // Data goes until every buffer between the two is full and the sender's queue refuses.
    let mut sent = 0;
    let full = async {
        let mut refused = 0;
        while refused < 100 {
            if sender.send(NodeId(2), Lane::Data, Frame::Raft(bulk.clone())) {
                (sent, refused) = (sent + 1, 0);
            } else {
                refused += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), full).await.expect("the receiver pushes back");
    assert!((32..120).contains(&sent), "what waits is bounded in bytes, on both sides: {sent} MiB");
    for i in 0..100u8 {
        assert!(sender.send(NodeId(2), Lane::Control, Frame::Raft(Bytes::from(vec![i]))));
    }
    let mut heard = Vec::new();
    while heard.len() < 100 {
        let event = tokio::time::timeout(Duration::from_secs(10), inbox.control.recv()).await.expect("control comes");
        heard.extend(payload(event).map(|bytes| bytes[0]));
    }
    assert_eq!(heard, (0..100).collect::<Vec<u8>>());
    // Taken at last, all of the data comes, whole and in order.
    for _ in 0..sent {
        let event = tokio::time::timeout(Duration::from_secs(10), inbox.data.recv()).await.expect("data comes");
        assert_eq!(payload(event), Some(bulk.clone()));
    }
    let counters = sender.counters();
    assert!(counters.dropped_frames.load(std::sync::atomic::Ordering::Relaxed) >= 100);
}
