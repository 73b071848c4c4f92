//! What the tests of all edges share: the edge over the in-memory ledger, and a ledger that holds entries back.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use buttress_core::{
    BoxFuture, Cluster, Consistency, Entry, Error, KeyRange, Ledger, LogId, Offset, Receipt, Revision, Scope, Stream,
    SubmitError,
    entry::TopicSettings,
    ledger::{KeyValues, Watch},
};
use buttress_state::local::Local;
use buttress_wire::records::{BatchView, Record};
use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use crate::ingest::{Deps, Ingest, Options};

/// Submits to the in-memory ledger only when told to.
pub struct Gate {
    local: Arc<Local>,
    waiting: Mutex<VecDeque<(Entry, oneshot::Sender<()>)>>,
    arrived: Notify,
}

impl Gate {
    pub fn new(local: Arc<Local>) -> Arc<Self> {
        Arc::new(Self { local, waiting: Mutex::default(), arrived: Notify::new() })
    }

    /// Waits for the next entry and returns it, still held back, with what lets it go.
    pub async fn next(&self) -> (Entry, oneshot::Sender<()>) {
        loop {
            if let Some(held) = self.waiting.lock().expect("unpoisoned").pop_front() {
                return held;
            }
            self.arrived.notified().await;
        }
    }

    pub fn held(&self) -> usize {
        self.waiting.lock().expect("unpoisoned").len()
    }
}

impl Ledger for Gate {
    fn submit(&self, entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(async move {
            let (go, wait) = oneshot::channel();
            self.waiting.lock().expect("unpoisoned").push_back((entry.clone(), go));
            self.arrived.notify_one();
            let _ = wait.await;
            self.local.submit(entry).await
        })
    }

    fn read(&self, range: KeyRange, limit: usize, how: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>> {
        self.local.read(range, limit, how)
    }

    fn state(&self, space: &str, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, Error>> {
        self.local.state(space, keys)
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        self.local.watch(range, from)
    }

    fn scope(&self) -> Scope {
        Scope::Entry
    }
}

pub fn deps(local: &Arc<Local>) -> Deps {
    Deps { ledger: local.clone(), stream: local.clone(), cluster: local.clone() as Arc<dyn Cluster> }
}

/// A ledger with topic `telemetry` (sequences by machine and seq) and topic `alerts`, two partitions each, and a batcher
/// that runs.
pub fn start() -> (Arc<Local>, Arc<Ingest>) {
    let local = Local::new();
    topics(&local);
    let ingest = Ingest::new(deps(&local), Options::default());
    tokio::spawn(ingest.clone().run());
    (local, ingest)
}

pub fn topics(local: &Local) {
    let sequenced =
        TopicSettings { sequence_fields: Some(("machine".into(), "seq".into())), ..TopicSettings::default() };
    local.create_topic("telemetry", 2, sequenced);
    local.create_topic("alerts", 2, TopicSettings::default());
}

/// All records of a topic, partition by partition.
pub async fn records(local: &Local, topic: &str) -> Vec<(LogId, Record)> {
    let mut found = Vec::new();
    for partition in local.topic(topic).expect("the topic exists").partitions {
        let fetched = local.fetch(partition.log, Offset(0), usize::MAX, 0).await.expect("readable");
        for batch in fetched.batches {
            let view = BatchView::parse(batch.bytes).expect("a batch");
            for record in view.records().expect("uncompressed") {
                found.push((partition.log, record.expect("a record")));
            }
        }
    }
    found
}

pub fn text(bytes: Option<&Bytes>) -> String {
    bytes.map_or("-".into(), |bytes| bytes.escape_ascii().to_string().replace("\\\"", "\""))
}
