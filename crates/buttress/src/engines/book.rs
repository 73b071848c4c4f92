//! Which topics lie in Kafka, and what they are like: a key for each under `/buttress/topics/` of the ledger, followed by
//! every host.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use buttress_bridge::kafka::Kafka;
use buttress_core::{
    Code, Consistency, Entry, Error, Guard, KeyRange, Ledger, LogId, Revision, Stream, SubmitError, entry::Put,
};
use buttress_functions::resource::{TOPICS_PREFIX, TopicSpec, topic_key};
use tokio::sync::watch;

const TOPICS_MAX: usize = 4096;
const AGAIN: Duration = Duration::from_millis(500);

/// The topic where records of devices wait until those that came before are taken out.
pub fn intake_topic(topic: &str) -> String {
    format!("{topic}.intake")
}

/// How records get into a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Straight,
    /// Through this partition of the topic's intake.
    Intake(LogId),
}

/// What is written down.
#[derive(Clone, Debug, Default)]
pub struct Topics {
    /// False before the first read.
    pub read: bool,
    pub specs: BTreeMap<String, TopicSpec>,
    /// Of every partition of every topic.
    pub ways: HashMap<LogId, Way>,
}

pub struct Book {
    ledger: Arc<dyn Ledger>,
    topics: watch::Receiver<Topics>,
}

impl Book {
    /// Begins to follow. The task ends with `shutdown`.
    pub fn start(ledger: Arc<dyn Ledger>, kafka: Arc<Kafka>, mut shutdown: watch::Receiver<bool>) -> Arc<Self> {
        let (tell, topics) = watch::channel(Topics::default());
        let follower = ledger.clone();
        tokio::spawn(async move {
            loop {
                let error = tokio::select! {
                    error = follow(&*follower, &kafka, &tell) => error,
                    _ = shutdown.wait_for(|stop| *stop) => return,
                };
                tracing::warn!(plane = "events", %error, "the topics are read again");
                tokio::time::sleep(AGAIN).await;
            }
        });
        Arc::new(Self { ledger, topics })
    }

    pub fn changes(&self) -> watch::Receiver<Topics> {
        self.topics.clone()
    }

    pub fn spec(&self, topic: &str) -> Option<TopicSpec> {
        self.topics.borrow().specs.get(topic).cloned()
    }

    /// How records get into a partition; `None` where its topic is not written down.
    pub fn way(&self, log: LogId) -> Option<Way> {
        self.topics.borrow().ways.get(&log).copied()
    }

    /// Waits until everything was read once.
    pub async fn ready(&self) {
        // Without a follower the host is stopping.
        let _ = self.topics.clone().wait_for(|topics| topics.read).await;
    }

    /// Writes a topic down; it exists already.
    ///
    /// # Errors
    /// What the ledger answers.
    pub async fn write(&self, spec: &TopicSpec) -> Result<(), Error> {
        let key = topic_key(&spec.name);
        let value = serde_json::to_vec(spec).expect("a topic's settings are plain data");
        let entry = Entry { puts: vec![Put { key, value: Some(value.into()), lease: None }], ..Entry::default() };
        self.ledger.submit(entry).await.map_err(SubmitError::into_error)?;
        let mut topics = self.topics.clone();
        let seen = topics.wait_for(|topics| topics.specs.get(&spec.name) == Some(spec));
        let _ = tokio::time::timeout(Duration::from_secs(5), seen).await;
        Ok(())
    }

    /// Takes a topic out; whether it was there.
    ///
    /// # Errors
    /// What the ledger answers.
    pub async fn strike(&self, topic: &str) -> Result<bool, Error> {
        let key = topic_key(topic);
        let read = self.ledger.read(KeyRange::key(key.clone()), 1, Consistency::Linearizable).await?;
        let Some(kv) = read.kvs.first() else { return Ok(false) };
        let entry = Entry {
            guards: vec![Guard::ModRevision { key: key.clone(), revision: kv.mod_revision }],
            puts: vec![Put { key, value: None, lease: None }],
            ..Entry::default()
        };
        self.ledger.submit(entry).await.map_err(SubmitError::into_error)?;
        Ok(true)
    }
}

async fn follow(ledger: &dyn Ledger, kafka: &Kafka, tell: &watch::Sender<Topics>) -> Error {
    match try_follow(ledger, kafka, tell).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn try_follow(
    ledger: &dyn Ledger,
    kafka: &Kafka,
    tell: &watch::Sender<Topics>,
) -> Result<std::convert::Infallible, Error> {
    let range = KeyRange::prefix(TOPICS_PREFIX);
    let read = ledger.read(range.clone(), TOPICS_MAX, Consistency::Linearizable).await?;
    let mut watch = ledger.watch(range, Some(Revision(read.revision.0 + 1))).await?;
    let parse = |value: &[u8]| serde_json::from_slice::<TopicSpec>(value).ok().filter(|spec| spec.engine == "kafka");
    let mut specs: BTreeMap<String, TopicSpec> = BTreeMap::new();
    specs.extend(read.kvs.iter().filter_map(|kv| parse(&kv.value)).map(|spec| (spec.name.clone(), spec)));
    loop {
        let mut ways = HashMap::new();
        for spec in specs.values() {
            kafka.follow(&spec.name).await?;
            let Some(topic) = kafka.topic(&spec.name) else { continue };
            if spec.sequence_fields.is_none() {
                ways.extend(topic.partitions.iter().map(|partition| (partition.log, Way::Straight)));
                continue;
            }
            let intake = intake_topic(&spec.name);
            kafka.follow(&intake).await?;
            let Some(intake) = kafka.topic(&intake) else { continue };
            let through = topic.partitions.iter().zip(&intake.partitions);
            ways.extend(through.map(|(to, from)| (to.log, Way::Intake(from.log))));
        }
        tell.send_replace(Topics { read: true, specs: specs.clone(), ways });
        let changes = watch.next().await?.ok_or_else(|| Error::new(Code::STOPPED, "the watch ended"))?;
        for change in changes {
            let name = String::from_utf8_lossy(&change.key[TOPICS_PREFIX.len()..]).into_owned();
            match change.value.and_then(|value| parse(&value)) {
                Some(spec) => drop(specs.insert(name, spec)),
                None => drop(specs.remove(&name)),
            }
        }
    }
}
