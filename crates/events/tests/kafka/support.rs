//! An edge on a port of its own, and a client that speaks raw frames.

use std::sync::Arc;

use buttress_core::{NodeId, TimeMs, ledger::Member};
use buttress_events::kafka::{Counters, Deps, Options, serve};
use buttress_state::local::Local;
use buttress_wire::{
    kafka::{self, Body, RequestHeader, Uuid, produce::*},
    records::{Builder, Producer},
};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// The clock of every test: 2023-11-14.
pub const NOW: u64 = 1_700_000_000_000;

pub struct Edge {
    pub local: Arc<Local>,
    pub address: String,
    pub counters: Arc<Counters>,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

impl Edge {
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let local = Local::new();
        Self::over(local.clone(), |deps| Deps { options, ..deps }).await
    }

    /// `change` may put something between the edge and the ledger.
    pub async fn over(local: Arc<Local>, change: impl FnOnce(Deps) -> Deps) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let member = Member { id: NodeId(1), kafka: address.clone(), ..Member::default() };
        local.set_member(member);
        local.set_now(TimeMs(NOW));
        let counters = Arc::new(Counters::default());
        let (stop, shutdown) = watch::channel(false);
        let deps = Deps {
            ledger: local.clone(),
            stream: local.clone(),
            cluster: local.clone(),
            options: Options::default(),
            counters: counters.clone(),
            shutdown,
        };
        let served = tokio::spawn(serve(listener, change(deps)));
        Self { local, address, counters, stop, served }
    }

    pub async fn client(&self) -> Client {
        Client { socket: TcpStream::connect(&self.address).await.unwrap(), sent: 0 }
    }

    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.served.await.unwrap();
    }

    pub fn count(&self, name: &str, label: &str) -> u64 {
        let samples = self.counters.samples();
        let named = samples.iter().find(|s| s.name == name && s.label.as_ref().map_or("", |l| &l.1) == label);
        named.map_or(0, |sample| sample.value)
    }
}

pub struct Client {
    pub socket: TcpStream,
    sent: i32,
}

impl Client {
    pub async fn send<B: Body>(&mut self, version: i16, request: &B) -> i32 {
        self.sent += 1;
        let header =
            RequestHeader { api_key: B::API.key, version, correlation_id: self.sent, client_id: Some("test".into()) };
        let frame = kafka::joined(kafka::encode_request(&header, request));
        self.socket.write_all(&frame).await.unwrap();
        self.sent
    }

    pub async fn frame(&mut self) -> std::io::Result<Bytes> {
        let length = self.socket.read_u32().await?;
        let mut message = vec![0; length as usize];
        self.socket.read_exact(&mut message).await?;
        Ok(message.into())
    }

    pub async fn receive<B: Body>(&mut self, version: i16) -> (i32, B) {
        kafka::decode_response(version, self.frame().await.unwrap()).unwrap()
    }

    pub async fn ask<Q: Body, A: Body>(&mut self, version: i16, request: &Q) -> A {
        assert_eq!(Q::API, A::API);
        let sent = self.send(version, request).await;
        let (correlation_id, answer) = self.receive(version).await;
        assert_eq!(correlation_id, sent);
        answer
    }

    /// Whether the server has closed the connection, rather than answered.
    pub async fn is_closed(&mut self) -> bool {
        self.socket.read_u8().await.is_err()
    }

    pub async fn raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }
}

pub fn batch(values: &[&str]) -> Bytes {
    batch_from(None, NOW as i64, values)
}

pub fn batch_from(producer: Option<Producer>, timestamp_ms: i64, values: &[&str]) -> Bytes {
    let mut builder = Builder::new();
    if let Some(producer) = producer {
        builder = builder.producer(producer);
    }
    for (at, value) in values.iter().enumerate() {
        builder.push(timestamp_ms + at as i64, None, Some(value.as_bytes()), &[]);
    }
    builder.build().unwrap()
}

pub fn produce(topic: &str, partitions: Vec<(i32, Bytes)>) -> ProduceRequest {
    let partition = |(index, records): (i32, Bytes)| ProducePartition { index, records: records.into() };
    ProduceRequest {
        acks: -1,
        timeout_ms: 30_000,
        topic_data: vec![ProduceTopic {
            name: topic.into(),
            topic_id: Uuid::default(),
            partition_data: partitions.into_iter().map(partition).collect(),
        }],
        ..ProduceRequest::default()
    }
}
