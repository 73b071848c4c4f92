//! Garbage, lies, slowness and crowds.

use std::time::Duration;

use buttress_core::entry::TopicSettings;
use buttress_events::kafka::{FRAME_BYTES_MAX, Options};
use buttress_wire::kafka::{api_versions::*, fetch::*, produce::*};
use tokio::io::AsyncWriteExt;

use crate::support::{Edge, batch, produce};

/// After all that, the edge still answers others.
async fn still_serves(edge: Edge) {
    let _: ApiVersionsResponse = edge.client().await.ask(0, &ApiVersionsRequest::default()).await;
    edge.stop().await;
}

#[tokio::test]
async fn garbage_closes_the_connection_and_nothing_else() {
    let edge = Edge::start().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\xff\xff\xff\xff",
        // A frame without room for a header, an API that is not served, a version that is not.
        b"\0\0\0\x02\0\x03",
        b"\0\0\0\x0a\0\x44\0\0\0\0\0\x01\xff\xff",
        b"\0\0\0\x0a\0\x03\0\x63\0\0\0\x01\xff\xff",
        // Metadata of 2^31 − 1 topics.
        b"\0\0\0\x0e\0\x03\0\x01\0\0\0\x01\xff\xff\x7f\xff\xff\xff",
    ] {
        let mut client = edge.client().await;
        client.raw(garbage).await;
        assert!(client.is_closed().await, "{}", garbage.escape_ascii());
    }
    assert_eq!(edge.count("buttress_events_kafka_connections_failed_total", ""), 7);
    still_serves(edge).await;
}

#[tokio::test]
async fn a_frame_that_is_too_large_is_refused_by_its_length() {
    let edge = Edge::start().await;
    let mut client = edge.client().await;
    client.raw(&(FRAME_BYTES_MAX as u32 + 1).to_be_bytes()).await;
    assert!(client.is_closed().await);
    still_serves(edge).await;
}

#[tokio::test]
async fn slow_frames_and_idle_connections_are_closed() {
    let edge = Edge::with(Options { transfer_timeout: Duration::from_millis(20), ..Options::default() }).await;
    // Three bytes of a length, a length alone, and the length of a frame that needs room.
    for start in [&b"\0\0\0"[..], b"\0\0\x40\0", b"\0\x40\0\0"] {
        let mut client = edge.client().await;
        client.raw(start).await;
        assert!(client.is_closed().await);
    }
    assert_eq!(edge.count("buttress_events_kafka_connections_failed_total", ""), 3);
    still_serves(edge).await;

    let edge = Edge::with(Options { idle_timeout: Duration::from_millis(20), ..Options::default() }).await;
    assert!(edge.client().await.is_closed().await);
    assert_eq!(edge.count("buttress_events_kafka_connections_failed_total", ""), 0, "being idle is no fault");
    edge.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let edge = Edge::with(Options { connections_max: 2, ..Options::default() }).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut client = edge.client().await;
        let _: ApiVersionsResponse = client.ask(0, &ApiVersionsRequest::default()).await;
        kept.push(client);
    }
    assert!(edge.client().await.is_closed().await);
    let _: ApiVersionsResponse = kept[0].ask(0, &ApiVersionsRequest::default()).await;
    assert_eq!(edge.count("buttress_events_kafka_connections_refused_total", ""), 1);
    edge.stop().await;
}

#[tokio::test]
async fn a_large_frame_is_read_whole_and_its_room_given_back() {
    let edge = Edge::start().await;
    edge.local.create_topic("plant", 16, TopicSettings::default());
    let mut client = edge.client().await;
    let large = "x".repeat(1_000_000);
    // Fifteen batches of 1 MB do not fit one entry; they become two.
    let partitions = (0..15).map(|partition| (partition, batch(&[&large]))).collect();
    let request = produce("plant", partitions);
    let before = edge.local.with(|machine| buttress_core::Machine::applied(machine).0.0);
    for round in 0..10 {
        let answer: ProduceResponse = client.ask(9, &request).await;
        for partition in &answer.responses[0].partition_responses {
            assert_eq!((partition.error_code.0, partition.base_offset), (0, round));
        }
    }
    let after = edge.local.with(|machine| buttress_core::Machine::applied(machine).0.0);
    assert_eq!(after - before, 20);
    still_serves(edge).await;
}

#[tokio::test]
async fn a_client_that_goes_away_in_a_frame_leaves_nothing() {
    let edge = Edge::start().await;
    let mut client = edge.client().await;
    client.raw(b"\0\x10\0\0half of it").await;
    client.socket.shutdown().await.unwrap();
    assert!(client.is_closed().await);
    still_serves(edge).await;
}

#[tokio::test]
async fn the_edge_stops_while_clients_wait() {
    let edge = Edge::with(Options { shutdown_grace: Duration::from_secs(30), ..Options::default() }).await;
    edge.local.create_topic("plant", 1, TopicSettings::default());
    let mut waiting = edge.client().await;
    let partitions = vec![FetchPartition { partition_max_bytes: 1, ..Default::default() }];
    let topics = vec![FetchTopic { topic: "plant".into(), partitions, ..Default::default() }];
    let fetch = FetchRequest { max_wait_ms: 30_000, min_bytes: 1, max_bytes: 1, topics, ..Default::default() };
    waiting.send(4, &fetch).await;
    let mut idle = edge.client().await;
    let _: ApiVersionsResponse = idle.ask(0, &ApiVersionsRequest::default()).await;
    edge.stop().await;
    assert!(idle.is_closed().await);
    assert!(waiting.is_closed().await);
}

#[tokio::test]
async fn a_consumer_that_asks_and_does_not_read_is_cut_off() {
    let edge = Edge::with(Options { transfer_timeout: Duration::from_millis(100), ..Options::default() }).await;
    edge.local.create_topic("plant", 1, TopicSettings::default());
    let mut client = edge.client().await;
    let large = "x".repeat(1_000_000);
    for _ in 0..8 {
        let _: ProduceResponse = client.ask(9, &produce("plant", vec![(0, batch(&[&large]))])).await;
    }
    drop(client);
    let mut slow = edge.client().await;
    let partitions = vec![FetchPartition { partition_max_bytes: i32::MAX, ..Default::default() }];
    let topics = vec![FetchTopic { topic: "plant".into(), partitions, ..Default::default() }];
    let fetch = FetchRequest { min_bytes: 1, max_bytes: i32::MAX, topics, ..Default::default() };
    // Eight megabytes each: together far more than anything between the two can hold.
    for _ in 0..100 {
        slow.send(4, &fetch).await;
    }
    while edge.count("buttress_events_kafka_connections_closed_total", "") < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What was sent is what sockets hold, and no more answers were made than one that did not fit.
    let mut taken = 0;
    let mut scratch = vec![0; 65536];
    while let Ok(read) = tokio::io::AsyncReadExt::read(&mut slow.socket, &mut scratch).await
        && read > 0
    {
        taken += read;
    }
    assert!(taken < 100 * 1_000_000, "{taken} bytes of 800 MB were sent to nobody");
    still_serves(edge).await;
}
