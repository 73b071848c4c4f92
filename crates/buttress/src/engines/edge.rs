//! What MQTT and HTTP of a host write through: keys go to the etcd, records and topics to the Kafka.
//!
//! Only a topic that is written down ([`super::book`]) takes records: before a host has read that, it cannot know whether a
//! topic has sequence fields.
//!
//! Records of a topic with sequence fields are put into its intake, at least once, and taken over from there
//! ([`buttress_events::intake`]); records of other topics go through one Kafka transaction. An entry is never split into
//! commits that its sender takes for one: only appends are taken apart, for each of which its own sender waits.

use std::sync::Arc;

use buttress_bridge::{etcd::EtcdLedger, kafka::Kafka, scope};
use buttress_core::{
    AppendOutcome, BoxFuture, Code, Consistency, Entry, Error, KeyRange, Ledger, LogId, Offset, RangeOp, RangeResult,
    Receipt, Refusal, Revision, Scope, Stream, SubmitError, TopicChange,
    entry::TopicSettings,
    ledger::{Fetched, KeyValues, LeaseView, TopicView, Watch},
};
use buttress_events::http::Elsewhere;
use buttress_functions::resource::TopicSpec;
use bytes::Bytes;

use super::book::{Book, Way, intake_topic};

/// How long the broker keeps what waits in an intake: far longer than any sequencer is away, and not for ever.
const INTAKE_RETENTION_MS: u64 = 7 * 24 * 60 * 60 * 1000;

pub struct HostLedger {
    pub etcd: Arc<EtcdLedger>,
    pub kafka: Arc<Kafka>,
    pub book: Arc<Book>,
}

fn part(code: Code, message: String) -> SubmitError {
    SubmitError::Refused(Refusal::Part { code, message })
}

impl HostLedger {
    async fn change_topic(&self, change: TopicChange) -> Result<Receipt, SubmitError> {
        let receipt = match &change {
            TopicChange::Create { name, partitions, settings, .. } => {
                create(&self.kafka, &self.book, name, *partitions, settings).await?
            }
            TopicChange::Delete { name } => delete(&self.kafka, &self.book, name).await?,
            _ => self.kafka.submit(Entry { topics: vec![change], ..Entry::default() }).await?,
        };
        Ok(receipt)
    }

    async fn append(&self, entry: Entry) -> Result<Receipt, SubmitError> {
        let mut taken: Vec<Option<LogId>> = Vec::with_capacity(entry.appends.len());
        for append in &entry.appends {
            match self.book.way(append.log) {
                Some(Way::Intake(log)) => taken.push(Some(log)),
                Some(Way::Straight) => taken.push(None),
                None => {
                    let error = Error::new(Code::TOPIC_UNKNOWN, "the topic takes no records through this host");
                    return Err(SubmitError::Failed(error.hint("write it down first: buttress topic create NAME")));
                }
            }
        }
        if taken.iter().all(Option::is_none) {
            return self.kafka.submit(entry).await;
        }
        scope::check(Scope::Records, &entry).map_err(SubmitError::Failed)?;
        let mut intake = Vec::new();
        let mut rest = Vec::new();
        for (mut append, taken) in entry.appends.into_iter().zip(&taken) {
            match taken {
                Some(log) => {
                    append.log = *log;
                    intake.push(append);
                }
                None => rest.push(append),
            }
        }
        let rest = async {
            match rest.is_empty() {
                true => Ok(Receipt::default()),
                false => self.kafka.submit(Entry { appends: rest, ..Entry::default() }).await,
            }
        };
        let intake = async { self.kafka.append(&intake).await.map_err(SubmitError::Failed) };
        let (intake, rest) = futures::future::try_join(intake, rest).await?;
        let (mut intake, mut others) = (intake.into_iter(), rest.appends.into_iter());
        let outcome = |taken: &Option<LogId>| match taken {
            // Where the record will lie in its topic is not known yet.
            Some(_) => match intake.next() {
                Some(AppendOutcome::Appended { .. }) => AppendOutcome::Appended { base_offset: Offset(-1) },
                other => other.unwrap_or(AppendOutcome::UnknownLog),
            },
            None => others.next().unwrap_or(AppendOutcome::UnknownLog),
        };
        let appends = taken.iter().map(outcome).collect();
        Ok(Receipt { appends, ..Receipt::default() })
    }
}

/// Makes a topic in Kafka, or takes one over that is there, and writes it down.
///
/// # Errors
/// What the engines answer; `TOPIC_EXISTS` where one of the name was written down before.
pub async fn create(
    kafka: &Kafka,
    book: &Book,
    name: &str,
    partitions: u32,
    settings: &TopicSettings,
) -> Result<Receipt, SubmitError> {
    if book.spec(name).is_some() {
        return Err(part(Code::TOPIC_EXISTS, format!("topic \"{name}\" exists already")));
    }
    let plain = TopicSettings { sequence_fields: None, ..settings.clone() };
    let make = |name: String, settings: TopicSettings| async move {
        let create = TopicChange::Create { name: name.clone(), id: [0; 16], partitions, settings };
        match kafka.submit(Entry { topics: vec![create], ..Entry::default() }).await {
            Err(SubmitError::Refused(Refusal::Part { code: Code::TOPIC_EXISTS, .. })) => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        // One that was there already is taken as it is, if it is as large.
        kafka.follow(&name).await.map_err(SubmitError::Failed)?;
        let view = kafka.topic(&name).ok_or_else(|| part(Code::TOPIC_UNKNOWN, format!("topic \"{name}\" is gone")))?;
        if view.partitions.len() != partitions as usize {
            let message =
                format!("topic \"{name}\" is there with {} partitions, not {partitions}", view.partitions.len());
            return Err(part(Code::TOPIC_EXISTS, message));
        }
        Ok(view.partitions.iter().map(|partition| partition.log).collect::<Vec<_>>())
    };
    if settings.sequence_fields.is_some() {
        let settings = TopicSettings { retention_ms: Some(INTAKE_RETENTION_MS), ..TopicSettings::default() };
        make(intake_topic(name), settings).await?;
    }
    let logs = make(name.to_owned(), plain).await?;
    let spec = TopicSpec {
        name: name.to_owned(),
        engine: "kafka".into(),
        partitions,
        sequence_fields: settings.sequence_fields.clone(),
    };
    book.write(&spec).await.map_err(SubmitError::Failed)?;
    Ok(Receipt { created: vec![(name.to_owned(), logs)], ..Receipt::default() })
}

/// Deletes a topic and its intake, and strikes it out.
///
/// # Errors
/// What the engines answer.
pub async fn delete(kafka: &Kafka, book: &Book, name: &str) -> Result<Receipt, SubmitError> {
    let sequenced = book.spec(name).is_some_and(|spec| spec.sequence_fields.is_some());
    book.strike(name).await.map_err(SubmitError::Failed)?;
    let drop = |name: String| Entry { topics: vec![TopicChange::Delete { name }], ..Entry::default() };
    if sequenced {
        kafka.submit(drop(intake_topic(name))).await?;
    }
    kafka.submit(drop(name.to_owned())).await
}

impl Ledger for HostLedger {
    fn submit(&self, mut entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(async move {
            if entry.parts() == 1 && entry.topics.len() == 1 {
                return self.change_topic(entry.topics.remove(0)).await;
            }
            if !entry.appends.is_empty() && entry.parts() == entry.appends.len() {
                return self.append(entry).await;
            }
            if !entry.appends.is_empty() || !entry.topics.is_empty() || !entry.cursors.is_empty() {
                scope::check(Scope::Records, &entry).map_err(SubmitError::Failed)?;
                let hint = "deploy a function: it commits records, its state and its cursor together";
                let error = Error::new(Code::UNSUPPORTED, "a host takes appends alone, or topics, or keys");
                return Err(SubmitError::Failed(error.hint(hint)));
            }
            self.etcd.submit(entry).await
        })
    }

    fn read(&self, range: KeyRange, limit: usize, consistency: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>> {
        self.etcd.read(range, limit, consistency)
    }

    fn read_at(&self, range: KeyRange, limit: usize, at: Revision) -> BoxFuture<'_, Result<KeyValues, Error>> {
        self.etcd.read_at(range, limit, at)
    }

    fn state(&self, space: &str, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, Error>> {
        Ledger::state(&*self.kafka, space, keys)
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        self.etcd.watch(range, from)
    }

    fn read_with(&self, op: RangeOp, consistency: Consistency) -> BoxFuture<'_, Result<RangeResult, Error>> {
        self.etcd.read_with(op, consistency)
    }

    fn leases(&self, consistency: Consistency) -> BoxFuture<'_, Result<Vec<buttress_core::LeaseId>, Error>> {
        self.etcd.leases(consistency)
    }

    fn lease(
        &self,
        lease: buttress_core::LeaseId,
        keys: bool,
        consistency: Consistency,
    ) -> BoxFuture<'_, Result<Option<LeaseView>, Error>> {
        self.etcd.lease(lease, keys, consistency)
    }

    fn scope(&self) -> Scope {
        Scope::Keys
    }
}

/// Topics of a node that lie in a Kafka.
pub struct KafkaTopics {
    pub kafka: Arc<Kafka>,
    pub book: Arc<Book>,
}

impl Elsewhere for KafkaTopics {
    fn engine(&self) -> &'static str {
        "kafka"
    }

    fn create<'a>(
        &'a self,
        name: &'a str,
        partitions: u32,
        settings: &'a TopicSettings,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if settings.sequence_fields.is_some() {
                let error = Error::new(
                    Code::UNSUPPORTED,
                    "a node takes no records for topics of a Kafka, so it knows no devices",
                );
                return Err(error.hint("leave --sequence out; or let devices send to a host (buttress host), or to a topic of the node's own log"));
            }
            create(&self.kafka, &self.book, name, partitions, settings).await.map(drop).map_err(SubmitError::into_error)
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(async move {
            if self.book.spec(name).is_none() {
                return Ok(false);
            }
            delete(&self.kafka, &self.book, name).await.map_err(SubmitError::into_error)?;
            Ok(true)
        })
    }

    fn topic(&self, name: &str) -> Option<TopicView> {
        self.book.spec(name)?;
        self.kafka.topic(name)
    }

    fn topics(&self) -> Vec<TopicView> {
        self.kafka.topics().into_iter().filter(|view| self.book.spec(&view.name).is_some()).collect()
    }
}

/// Topics of the Kafka with what the ledger knows of them.
pub struct HostStream {
    pub kafka: Arc<Kafka>,
    pub book: Arc<Book>,
    /// Only topics that are written down. A device's record must not get into a topic whose sequence fields are not known yet.
    pub written_only: bool,
}

impl HostStream {
    fn shows(&self, topic: &str) -> bool {
        !self.written_only || self.book.spec(topic).is_some()
    }

    fn with_settings(&self, mut view: TopicView) -> TopicView {
        view.settings.sequence_fields = self.book.spec(&view.name).and_then(|spec| spec.sequence_fields);
        view
    }
}

impl Stream for HostStream {
    fn topics(&self) -> Vec<TopicView> {
        let views = self.kafka.topics().into_iter();
        views.filter(|view| self.shows(&view.name)).map(|view| self.with_settings(view)).collect()
    }

    fn topic(&self, name: &str) -> Option<TopicView> {
        if !self.shows(name) {
            return None;
        }
        self.kafka.topic(name).map(|view| self.with_settings(view))
    }

    fn fetch(
        &self,
        log: LogId,
        offset: Offset,
        bytes_max: usize,
        wait_ms: u64,
    ) -> BoxFuture<'_, Result<Fetched, Error>> {
        self.kafka.fetch(log, offset, bytes_max, wait_ms)
    }

    fn offset_for_time(&self, log: LogId, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<(Offset, i64)>, Error>> {
        self.kafka.offset_for_time(log, timestamp_ms)
    }

    fn cursor(&self, group: &str, log: LogId) -> Option<Offset> {
        self.kafka.cursor(group, log)
    }

    fn scope(&self) -> Scope {
        Scope::Records
    }
}
