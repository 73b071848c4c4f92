//! Requests of one connection that do not wait for each other.

use std::sync::{Arc, Mutex};

use buttress_core::{
    BoxFuture, Consistency, Entry, Error, KeyRange, Ledger, Receipt, Revision, Scope, SubmitError,
    entry::TopicSettings,
    ledger::{KeyValues, Watch},
};
use buttress_events::kafka::{Deps, Options};
use buttress_state::local::Local;
use buttress_wire::{
    kafka::{list_offsets::*, produce::*},
    records::Producer,
};
use tokio::sync::Semaphore;

use crate::support::{Edge, NOW, batch, batch_from, produce};

/// Takes proposals at once and in order, and answers them only when it is let.
struct Gated {
    local: Arc<Local>,
    gate: Semaphore,
    proposed: Mutex<usize>,
    arrived: Semaphore,
}

impl Ledger for Gated {
    fn submit(&self, entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(async move {
            *self.proposed.lock().unwrap() += 1;
            self.arrived.add_permits(1);
            // The in-memory ledger applies in its first poll, so this is the moment of the proposal.
            let result = self.local.submit(entry).await;
            self.gate.acquire().await.unwrap().forget();
            result
        })
    }

    fn read(&self, range: KeyRange, limit: usize, how: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>> {
        self.local.read(range, limit, how)
    }

    fn state(&self, space: &str, keys: Vec<bytes::Bytes>) -> BoxFuture<'_, Result<Vec<Option<bytes::Bytes>>, Error>> {
        self.local.state(space, keys)
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        self.local.watch(range, from)
    }

    fn scope(&self) -> Scope {
        Scope::Entry
    }
}

async fn gated() -> (Edge, Arc<Gated>) {
    gated_with(Options::default()).await
}

async fn gated_with(options: Options) -> (Edge, Arc<Gated>) {
    let local = Local::new();
    let gated = Arc::new(Gated {
        local: local.clone(),
        gate: Semaphore::new(0),
        proposed: Mutex::new(0),
        arrived: Semaphore::new(0),
    });
    let ledger = gated.clone();
    let edge = Edge::over(local, |deps| Deps { ledger, options, ..deps }).await;
    edge.local.create_topic("plant", 1, TopicSettings::default());
    (edge, gated)
}

#[tokio::test]
async fn produces_share_a_commit_and_are_answered_in_order() {
    let (edge, gated) = gated().await;
    let mut client = edge.client().await;
    for sequence in 0..5 {
        let producer = Producer { id: 1, epoch: 0, base_sequence: sequence };
        let records = batch_from(Some(producer), NOW as i64, &["x"]);
        client.send(9, &produce("plant", vec![(0, records)])).await;
    }
    // A reader behind them sees all of them, as if they had been done one after the other.
    let partitions = vec![ListOffsetsPartition { timestamp: LATEST, ..Default::default() }];
    let topics = vec![ListOffsetsTopic { name: "plant".into(), partitions }];
    client.send(5, &ListOffsetsRequest { topics, ..Default::default() }).await;

    // All five are proposed although none is answered.
    gated.arrived.acquire_many(5).await.unwrap().forget();
    gated.gate.add_permits(5);
    for at in 0..5 {
        let (id, answer): (_, ProduceResponse) = client.receive(9).await;
        let partition = &answer.responses[0].partition_responses[0];
        assert_eq!((id, partition.error_code.0, partition.base_offset), (at + 1, 0, i64::from(at)));
    }
    let (id, answer): (_, ListOffsetsResponse) = client.receive(5).await;
    assert_eq!((id, answer.topics[0].partitions[0].offset), (6, 5));
    edge.stop().await;
}

#[tokio::test]
async fn what_finds_no_room_waits_its_turn_and_nothing_is_refused_or_overtakes() {
    // Room for one at a time, over all connections.
    let (edge, gated) = gated_with(Options { produce_bytes_in_flight_max: 1, ..Options::default() }).await;
    let mut clients = [edge.client().await, edge.client().await];
    for sequence in 0..4 {
        for (at, client) in clients.iter_mut().enumerate() {
            let producer = Producer { id: at as i64, epoch: 0, base_sequence: sequence };
            client.send(9, &produce("plant", vec![(0, batch_from(Some(producer), NOW as i64, &["x"]))])).await;
        }
    }
    gated.arrived.acquire().await.unwrap().forget();
    // Another connection's request goes through meanwhile, so the edge has had its turn.
    let mut other = edge.client().await;
    let _: buttress_wire::kafka::api_versions::ApiVersionsResponse =
        other.ask(0, &buttress_wire::kafka::api_versions::ApiVersionsRequest::default()).await;
    assert_eq!(*gated.proposed.lock().unwrap(), 1);
    gated.gate.add_permits(8);
    let mut offsets = Vec::new();
    for _ in 0..4 {
        for client in &mut clients {
            let (_, answer): (_, ProduceResponse) = client.receive(9).await;
            let partition = &answer.responses[0].partition_responses[0];
            assert_eq!(partition.error_code.0, 0, "a sequence that came too early would be refused");
            offsets.push(partition.base_offset);
        }
    }
    offsets.sort_unstable();
    assert_eq!(offsets, (0..8).collect::<Vec<_>>());
    assert!(edge.count("buttress_events_kafka_produce_waits_total", "") > 0);
    edge.stop().await;
}

#[tokio::test]
async fn produces_in_flight_are_bounded() {
    let (edge, gated) = gated().await;
    let mut client = edge.client().await;
    let max = buttress_events::kafka::PRODUCES_IN_FLIGHT_MAX;
    for _ in 0..max + 8 {
        client.send(9, &produce("plant", vec![(0, batch(&["x"]))])).await;
    }
    gated.arrived.acquire_many(max as u32).await.unwrap().forget();
    // Another connection's request goes through meanwhile, so the edge has had its turn; the rest is still unread.
    let mut other = edge.client().await;
    let _: buttress_wire::kafka::api_versions::ApiVersionsResponse =
        other.ask(0, &buttress_wire::kafka::api_versions::ApiVersionsRequest::default()).await;
    assert_eq!(*gated.proposed.lock().unwrap(), max);
    gated.gate.add_permits(max + 8);
    for at in 0..max + 8 {
        let (_, answer): (_, ProduceResponse) = client.receive(9).await;
        assert_eq!(answer.responses[0].partition_responses[0].base_offset, at as i64);
    }
    edge.stop().await;
}

#[tokio::test]
async fn without_acks_there_is_no_answer_and_an_error_closes() {
    let edge = Edge::start().await;
    edge.local.create_topic("plant", 1, TopicSettings::default());
    let mut client = edge.client().await;
    let silent = |topic: &str| ProduceRequest { acks: 0, ..produce(topic, vec![(0, batch(&["x"]))]) };
    for _ in 0..3 {
        client.send(9, &silent("plant")).await;
    }
    // The next answer is the one to the request that wants one.
    let answer: ProduceResponse = client.ask(9, &produce("plant", vec![(0, batch(&["y"]))])).await;
    assert_eq!(answer.responses[0].partition_responses[0].base_offset, 3);
    client.send(9, &silent("nowhere")).await;
    assert!(client.is_closed().await);
    edge.stop().await;
}
