//! The stream on an Apache Kafka that the user runs: topics, records, cursors as group offsets, state in compacted topics.
//! `scope()` is [`Scope::Records`].
//!
//! How a function's partition is run: whoever holds it (by a lease in the [`Ledger`], so that two do not take it from each
//! other again and again) calls [`Kafka::claim`], which fences every earlier holder and reads where it has ended; then
//! [`Stream::fetch`], the function, and [`Ledger::submit`] with the cursor's guard, the outputs, the state and the cursor's move
//! in one entry, which becomes one Kafka transaction (`session.rs`). Partitions are assigned, not balanced by Kafka's groups: a
//! rebalance has nothing to be safe against, and fencing is by the transactional id of the partition alone.
//!
//! Back-pressure is the caller's own: it has no more than one commit of a partition on its way, and asks for the next records
//! when it wants them.

mod client;
mod errors;
mod fetch;
mod host;
mod sasl;
mod session;
mod state;
mod uplink;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress_core::{
    BoxFuture, Code, Consistency, Entry, Error, Guard, KeyRange, Ledger, LogId, Offset, Receipt, Refusal, Revision,
    Scope, Stream, SubmitError, TimeMs, TopicChange,
    entry::TopicSettings,
    ledger::{Fetched, KeyValues, PartitionView, TopicView, Watch},
    limits::{ENTRY_BYTES_MAX, ENTRY_PARTS_MAX, PARTITIONS_PER_TOPIC_MAX},
};
use buttress_wire::{
    kafka::{
        ErrorCode,
        create_partitions::{CreatePartitionsRequest, CreatePartitionsResponse, CreatePartitionsTopic},
        create_topics::{CreatableTopic, CreatableTopicConfig, CreateTopicsRequest, CreateTopicsResponse},
        delete_topics::{DeleteTopicState, DeleteTopicsRequest, DeleteTopicsResponse},
        list_offsets::{EARLIEST, LATEST},
    },
    records::BatchView,
};
use bytes::Bytes;

pub use client::{BOOTSTRAP_MAX, CONNECTIONS_PER_BROKER_MAX};
use client::{Client, Failure, Login};
pub(crate) use fetch::check_fetch;
pub use sasl::Mechanism;
pub(crate) use sasl::check_scram;
use session::{Move, Session, Target};
use state::Rows;
pub use state::STATE_BYTES_MAX;
pub use uplink::{LanePlace, LaneSession};

use crate::{
    patience::{Patience, lock},
    scope,
    secure::{Connector, Tls, User},
    url::Parts,
};

/// Topics that are followed at most; their metadata is asked for together.
pub const TOPICS_MAX: usize = 4096;
/// How long the end of a partition is asked for, when nobody waits for it.
const BOUNDS_MAX: Duration = Duration::from_secs(2);
/// How often metadata and ends of partitions are looked at when nobody reads them.
const REFRESH_EVERY: Duration = Duration::from_secs(5);

/// How a Kafka is reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// `HOST:PORT` of some of its brokers.
    pub bootstrap: Vec<String>,
    /// Topics that are used; those that are made here are added.
    pub topics: Vec<String>,
    /// What transactional ids and changelog topics begin with. Two installations on one Kafka need different ones.
    pub prefix: String,
    /// What the names of topics and groups begin with in Kafka, and nowhere else; empty for nothing.
    pub namespace: String,
    /// How long a request is repeated before it is given up.
    pub deadline: Duration,
    /// Kafka aborts a transaction that is open for longer.
    pub transaction_max: Duration,
    /// TLS to the brokers; `None` for none.
    pub tls: Option<Tls>,
    /// Who we say that we are; `None` where nobody asks.
    pub sasl: Option<Sasl>,
}

/// A user, and how it shows itself to the brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sasl {
    pub mechanism: Mechanism,
    pub user: User,
    /// With [`Mechanism::Plain`]: the password may go over a connection that anybody can read. Not needed on one machine.
    pub cleartext: bool,
}

/// Where the password of a Kafka's user is looked for, unless something else is said.
pub const PASSWORD_VARIABLE: &str = "BUTTRESS_KAFKA_PASSWORD";
const URL_FORM: &str = "kafka://[USER@]HOST:PORT[,HOST:PORT…][?tls=ca.pem|system&cert=PEM&key=PEM&sasl=scram-sha-512|\
                        scram-sha-256|plain&password-file=PATH|password-env=NAME&prefix=TEXT&cleartext=yes]";

impl Options {
    pub fn new(bootstrap: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            bootstrap: bootstrap.into_iter().map(Into::into).collect(),
            topics: Vec::new(),
            prefix: "buttress".into(),
            namespace: String::new(),
            deadline: Duration::from_secs(20),
            transaction_max: Duration::from_secs(60),
            tls: None,
            sasl: None,
        }
    }

    /// Takes `kafka://[USER@]HOST:PORT,…[?NAME=VALUE&…]`, or `HOST:PORT,…`.
    ///
    /// | name | value |
    /// |---|---|
    /// | `tls` | a PEM file of the authorities that count, or `system`; without it there is no TLS |
    /// | `cert`, `key` | PEM files: a certificate of ours, and its key |
    /// | `sasl` | `scram-sha-512` (where there is a user and nothing is said), `scram-sha-256`, `plain` |
    /// | `password-file`, `password-env` | where the password is; else in `BUTTRESS_KAFKA_PASSWORD` |
    /// | `cleartext` | `yes`: `plain` without TLS to another machine |
    /// | `prefix` | [`Options::prefix`] |
    ///
    /// # Errors
    /// `CONFIG`, with the form that is right.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        let config = |message: String| Error::new(Code::CONFIG, message).hint(URL_FORM);
        let mut parts = Parts::read(url, "kafka", URL_FORM)?;
        let tls = parts.tls(false)?;
        let mechanism = match parts.take("sasl").map(|name| name.to_uppercase()) {
            None => None,
            Some(name) => {
                let known = Mechanism::ALL.into_iter().find(|mechanism| mechanism.name() == name);
                Some(known.ok_or_else(|| config(format!("there is no sasl={}", name.to_lowercase())))?)
            }
        };
        let cleartext = parts.switch("cleartext")?;
        let sasl = match (parts.user(PASSWORD_VARIABLE)?, mechanism) {
            (Some(user), mechanism) => {
                Some(Sasl { mechanism: mechanism.unwrap_or(Mechanism::ScramSha512), user, cleartext })
            }
            (None, Some(_)) => return Err(config("sasl is given, and no user before an '@'".into())),
            (None, None) => None,
        };
        let prefix = parts.take("prefix");
        let mut options = Self { tls, sasl, ..Self::new(parts.end()?) };
        if let Some(prefix) = prefix {
            if prefix.is_empty() || !prefix.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) {
                return Err(config(format!("prefix '{prefix}' is not the beginning of a topic's name")));
            }
            options.prefix = prefix;
        }
        Ok(options)
    }
}

/// A cursor that was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Where it stands; `None` where it was never set.
    pub position: Option<Offset>,
    /// Rows of state that were read back.
    pub rows: usize,
}

/// How far a claimed cursor is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lag {
    pub group: String,
    pub topic: String,
    pub partition: i32,
    pub position: Offset,
    /// The end of what is committed, as it was last seen.
    pub end: Offset,
}

/// A partition's claim: one commit at a time.
struct Claim {
    session: Session,
    changelog: Option<String>,
    rows: Rows,
    position: Option<Offset>,
}

/// A partition of one topic. A topic that was deleted and made again is another one: its id says so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) topic: String,
    pub(crate) id: [u8; 16],
    pub(crate) partition: i32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

#[derive(Default)]
struct Logs {
    by_place: BTreeMap<Place, LogId>,
    places: Vec<Place>,
    bounds: HashMap<LogId, (Offset, Offset)>,
}

type Cursor = (String, LogId);

struct Inner {
    client: Client,
    options: Options,
    topics: Mutex<BTreeSet<String>>,
    logs: Mutex<Logs>,
    claims: Mutex<HashMap<Cursor, Arc<tokio::sync::Mutex<Claim>>>>,
    cursors: Mutex<HashMap<Cursor, Offset>>,
    /// For entries that only append.
    plain: tokio::sync::Mutex<Option<Session>>,
    name: u64,
}

/// A stream on a Kafka, and the ledger whose entries are its transactions.
pub struct Kafka {
    inner: Arc<Inner>,
    refresher: tokio::task::JoinHandle<()>,
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.refresher.abort();
    }
}

fn now() -> TimeMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    TimeMs(since.map_or(0, |since| since.as_millis() as u64))
}

fn part(code: Code, message: impl Into<String>) -> SubmitError {
    SubmitError::Refused(Refusal::Part { code, message: message.into() })
}

impl Kafka {
    /// Connects to a Kafka, and looks at what it can do. One that does not answer is waited for until the deadline.
    ///
    /// # Errors
    /// `CONFIG` for options that cannot be used, `UNREACHABLE`, `TLS`, `CREDENTIALS`, `FORBIDDEN` for a topic that may not
    /// be looked at, `UNSUPPORTED` for a Kafka that is too old.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let kafka = Self::open(options)?;
        let mut patience = Patience::new(kafka.inner.deadline());
        while let Err(error) = kafka.refresh().await {
            if !error.retryable || !patience.pause().await {
                return Err(error);
            }
        }
        Ok(kafka)
    }

    /// As [`Kafka::connect`], for one that need not be there yet. Must be called on a runtime.
    ///
    /// # Errors
    /// `CONFIG` for options that cannot be used.
    pub fn open(options: Options) -> Result<Self, Error> {
        if options.topics.len() > TOPICS_MAX {
            return Err(Error::new(
                Code::CONFIG,
                format!("{} topics are named, {TOPICS_MAX} can be", options.topics.len()),
            ));
        }
        let connector = Connector::new(options.tls.clone(), &[])?;
        let login =
            options.sasl.clone().map(|Sasl { mechanism, user, cleartext }| Login { mechanism, user, cleartext });
        let client = Client::new(&options.bootstrap, format!("{}-bridge", options.prefix), connector, login)?;
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| Error::new(Code::LIMITS, format!("no random number: {error}")))?;
        let inner = Arc::new(Inner {
            client,
            topics: Mutex::new(options.topics.iter().map(|topic| format!("{}{topic}", options.namespace)).collect()),
            options,
            logs: Mutex::default(),
            claims: Mutex::default(),
            cursors: Mutex::default(),
            plain: tokio::sync::Mutex::new(None),
            name: u64::from_be_bytes(random),
        });
        let weak = Arc::downgrade(&inner);
        let refresher = tokio::spawn(async move {
            // While it goes on, a fault is told when it becomes another one.
            let mut told = BTreeSet::new();
            loop {
                tokio::time::sleep(REFRESH_EVERY).await;
                let Some(inner) = weak.upgrade() else { return };
                match inner.refresh().await {
                    Ok(()) if told.is_empty() => {}
                    Ok(()) => {
                        told.clear();
                        tracing::info!(plane = "bridge", "the topics of the Kafka can be looked at again");
                    }
                    Err(error) if told.insert(error.code) => {
                        tracing::warn!(plane = "bridge", code = error.code.0, %error, "the topics of the Kafka cannot be looked at");
                    }
                    Err(_) => {}
                }
            }
        });
        Ok(Self { inner, refresher })
    }

    /// Takes a group's cursor on a partition, with the group's state there: whoever had it before is fenced, and what it left
    /// open is ended. From here on [`Stream::cursor`], [`Ledger::state`] and guards on the cursor know what is.
    ///
    /// # Errors
    /// `TOPIC_UNKNOWN`, what Kafka answers, or that it does not.
    pub async fn claim(&self, group: &str, log: LogId, with_state: bool) -> Result<Claimed, Error> {
        self.inner.claim(group, log, with_state).await
    }

    /// Gives a claim back. Kafka is not told: the next claim does that.
    pub fn release(&self, group: &str, log: LogId) {
        let cursor = (group.to_owned(), log);
        lock(&self.inner.claims).remove(&cursor);
        lock(&self.inner.cursors).remove(&cursor);
    }

    /// Looks at topics and at the ends of their partitions now.
    ///
    /// # Errors
    /// What is in the way.
    pub async fn refresh(&self) -> Result<(), Error> {
        self.inner.refresh().await
    }

    /// How far each claimed cursor is behind.
    pub fn lag(&self) -> Vec<Lag> {
        let cursors = lock(&self.inner.cursors).clone();
        let logs = lock(&self.inner.logs);
        let mut lag: Vec<_> = cursors
            .into_iter()
            .filter_map(|((group, log), position)| {
                let Place { topic, partition, .. } = logs.places.get(log.0 as usize)?.clone();
                let end = logs.bounds.get(&log).map_or(position, |bounds| bounds.1);
                Some(Lag { group, topic, partition, position, end })
            })
            .collect();
        lag.sort_by(|a, b| (&a.group, &a.topic, a.partition).cmp(&(&b.group, &b.topic, b.partition)));
        lag
    }

    /// Appends the bridge's figures in Prometheus' text form.
    pub fn metrics(&self, out: &mut String) {
        let _ = writeln!(out, "# TYPE buttress_bridge_lag_records gauge");
        for Lag { group, topic, partition, position, end } in self.lag() {
            let behind = (end.0 - position.0).max(0);
            let labels = format!("group={group:?},topic={topic:?},partition=\"{partition}\"");
            let _ = writeln!(out, "buttress_bridge_lag_records{{{labels}}} {behind}");
        }
    }
}

impl Inner {
    fn deadline(&self) -> Duration {
        self.options.deadline
    }

    /// The name of a topic or a group as Kafka knows it.
    fn physical(&self, name: &str) -> String {
        format!("{}{name}", self.options.namespace)
    }

    /// Whoever has this id last may move the cursor.
    fn transactional_id(&self, group: &str, topic: &str, partition: i32) -> String {
        format!("{}.{group}.{topic}.{partition}", self.options.prefix)
    }

    fn place(&self, log: LogId) -> Result<Place, Error> {
        let place = lock(&self.logs).places.get(log.0 as usize).cloned();
        let place = place.ok_or_else(|| Error::new(Code::TOPIC_UNKNOWN, format!("there is no log {log}")))?;
        fetch::check(&self.client, &place)?;
        Ok(place)
    }

    /// The numbers of a topic's partitions; given out here, and good for as long as this process and the topic.
    fn logs_of(&self, topic: &str, id: [u8; 16], partitions: usize) -> Vec<LogId> {
        let mut logs = lock(&self.logs);
        let number = |partition| {
            let place = Place { topic: topic.to_owned(), id, partition: partition as i32 };
            if let Some(log) = logs.by_place.get(&place) {
                return *log;
            }
            let log = LogId(logs.places.len() as u32);
            logs.places.push(place.clone());
            logs.by_place.insert(place, log);
            log
        };
        (0..partitions).map(number).collect()
    }

    fn saw(&self, log: LogId, start: Offset, end: Offset) {
        lock(&self.logs).bounds.insert(log, (start, end));
    }

    async fn refresh(&self) -> Result<(), Error> {
        let topics: Vec<String> = lock(&self.topics).iter().cloned().collect();
        self.client.refresh(&topics).await.map_err(Failure::into_error)?;
        let mut denied = Ok(());
        for name in topics {
            denied = denied.and(self.client.check_allowed(&name));
            let Some(meta) = self.client.topic(&name) else { continue };
            let logs = self.logs_of(&name, meta.id, meta.partitions.len());
            let bounds = logs.iter().enumerate().map(|(partition, log)| {
                let place = Place { topic: name.clone(), id: meta.id, partition: partition as i32 };
                async move {
                    let of = |timestamp| fetch::list_offset(&self.client, &place, timestamp, BOUNDS_MAX);
                    match futures::future::try_join(of(EARLIEST), of(LATEST)).await {
                        Ok((start, end)) => {
                            let offset = |found: Option<(Offset, i64)>| found.map_or(Offset(0), |(offset, _)| offset);
                            self.saw(*log, offset(start), offset(end));
                        }
                        // What was seen last stays; a partition without a leader is no reason to know nothing of the others.
                        Err(error) => {
                            tracing::debug!(plane = "bridge", topic = place.topic, partition, %error, "no end of a partition");
                        }
                    }
                }
            });
            futures::future::join_all(bounds).await;
        }
        self.let_go();
        denied
    }

    /// Forgets claims on topics that are not there any more, and the state that they hold.
    fn let_go(&self) {
        let gone = |log: &LogId| matches!(self.place(*log), Err(Error { code: Code::TOPIC_UNKNOWN, .. }));
        lock(&self.claims).retain(|(_, log), _| !gone(log));
        lock(&self.cursors).retain(|(_, log), _| !gone(log));
    }

    fn view(&self, name: &str) -> Option<TopicView> {
        let meta = self.client.topic(name)?;
        let logs = self.logs_of(name, meta.id, meta.partitions.len());
        let known = lock(&self.logs);
        let partition = |log: LogId| {
            let (start, end) = known.bounds.get(&log).copied().unwrap_or_default();
            PartitionView { log, start, end, bytes: 0 }
        };
        let partitions = logs.into_iter().map(partition).collect();
        let name = name.strip_prefix(&self.options.namespace).unwrap_or(name);
        Some(TopicView { name: name.to_owned(), id: meta.id, settings: TopicSettings::default(), partitions })
    }

    async fn claim(&self, group: &str, log: LogId, with_state: bool) -> Result<Claimed, Error> {
        let place = self.place(log)?;
        let Place { topic, partition, .. } = &place;
        let (client, prefix, deadline) = (&self.client, &self.options.prefix, self.deadline());
        let changelog = with_state.then(|| state::changelog(prefix, group, topic));
        if let Some(changelog) = &changelog {
            let partitions = client.topic(topic).map_or(1, |meta| meta.partitions.len());
            self.ensure(changelog, partitions as u32, &[("cleanup.policy", "compact".into())]).await?;
        }
        // The old claim is out of use before the new one is begun, whatever becomes of it.
        let cursor = (group.to_owned(), log);
        lock(&self.claims).remove(&cursor);
        lock(&self.cursors).remove(&cursor);
        let id = self.transactional_id(group, topic, *partition);
        let session = Session::claim(client, id, self.options.transaction_max, deadline).await?;
        let position = session::position(client, &self.physical(group), topic, *partition, deadline).await?;
        let rows = match &changelog {
            Some(changelog) => Rows::restore(client, &self.now_at(changelog, *partition)?, deadline).await?,
            None => Rows::default(),
        };
        let count = rows.spaces.values().map(HashMap::len).sum();
        if let Some(position) = position {
            lock(&self.cursors).insert(cursor.clone(), position);
        }
        let claim = Claim { session, changelog, rows, position };
        lock(&self.claims).insert(cursor, Arc::new(tokio::sync::Mutex::new(claim)));
        Ok(Claimed { position, rows: count })
    }

    /// Makes a topic where it is missing.
    async fn ensure(&self, name: &str, partitions: u32, configs: &[(&str, String)]) -> Result<(), Error> {
        self.client.refresh(&[name.to_owned()]).await.map_err(Failure::into_error)?;
        self.client.check_allowed(name)?;
        match self.client.topic(name).map(|meta| meta.partitions.len()) {
            Some(count) if count >= partitions as usize => Ok(()),
            // The source has got more partitions since.
            Some(_) => self.extend(name, partitions).await,
            None => match self.create(name, partitions, configs).await {
                Err(error) if error.code == Code::TOPIC_EXISTS => self.appears(name, Some(partitions)).await,
                made => made,
            },
        }
    }

    /// The place of a partition of the topic that has this name now.
    fn now_at(&self, topic: &str, partition: i32) -> Result<Place, Error> {
        let unknown = || Error::new(Code::TOPIC_UNKNOWN, format!("there is no topic '{topic}'"));
        let id = self.client.topic(topic).ok_or_else(unknown)?.id;
        Ok(Place { topic: topic.to_owned(), id, partition })
    }

    async fn extend(&self, name: &str, partitions: u32) -> Result<(), Error> {
        let topic = CreatePartitionsTopic {
            name: name.to_owned(),
            count: partitions as i32,
            ..CreatePartitionsTopic::default()
        };
        let request =
            CreatePartitionsRequest { topics: vec![topic], timeout_ms: 15_000, ..CreatePartitionsRequest::default() };
        let mut patience = Patience::new(self.deadline());
        loop {
            let error = match self.client.ask_any::<_, CreatePartitionsResponse>(2, &request).await {
                Ok(answer) => match answer.results.first().map(|result| result.error_code) {
                    // Somebody else may have done it, or we, and the answer was lost.
                    Some(ErrorCode::NONE | ErrorCode::INVALID_PARTITIONS) => break,
                    Some(code) => {
                        let error = errors::of(code, &format!("more partitions for topic '{name}'"));
                        if !error.retryable {
                            return Err(error);
                        }
                        error
                    }
                    None => Error::new(Code::UNREACHABLE, "the broker says nothing about the topic"),
                },
                Err(Failure::Refused(error)) => return Err(error),
                Err(failure) => failure.into_error(),
            };
            if !patience.pause().await {
                return Err(error);
            }
        }
        self.appears(name, Some(partitions)).await
    }

    async fn create(&self, name: &str, partitions: u32, configs: &[(&str, String)]) -> Result<(), Error> {
        let configs = configs
            .iter()
            .map(|(name, value)| CreatableTopicConfig { name: (*name).to_owned(), value: Some(value.clone()) });
        let topic = CreatableTopic {
            name: name.to_owned(),
            num_partitions: partitions as i32,
            // As the cluster is configured.
            replication_factor: -1,
            configs: configs.collect(),
            ..CreatableTopic::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 15_000, ..CreateTopicsRequest::default() };
        let mut patience = Patience::new(self.deadline());
        let mut open = false;
        loop {
            let error = match self.client.ask_any::<_, CreateTopicsResponse>(5, &request).await {
                Ok(answer) => match answer.topics.first() {
                    Some(made) if !made.error_code.is_error() => break,
                    // Our own earlier request, whose answer was lost.
                    Some(made) if open && made.error_code == ErrorCode::TOPIC_ALREADY_EXISTS => break,
                    Some(made) => {
                        let mut error = errors::of(made.error_code, &format!("the creation of topic '{name}'"));
                        if let Some(why) = &made.error_message {
                            error.message = format!("{}: {why}", error.message);
                        }
                        if !error.retryable {
                            return Err(error);
                        }
                        error
                    }
                    None => Error::new(Code::UNREACHABLE, "the broker says nothing about the topic"),
                },
                Err(Failure::Refused(error)) => return Err(error),
                Err(failure) => {
                    open |= matches!(failure, Failure::Open { .. });
                    failure.into_error()
                }
            };
            if !patience.pause().await {
                return Err(error);
            }
        }
        self.appears(name, Some(partitions)).await
    }

    /// Waits until the brokers know a topic and who leads it.
    async fn appears(&self, name: &str, partitions: Option<u32>) -> Result<(), Error> {
        let mut patience = Patience::new(self.deadline());
        loop {
            let refreshed = self.client.refresh(&[name.to_owned()]).await;
            if let Err(Failure::Refused(error)) = refreshed {
                return Err(error);
            }
            self.client.check_allowed(name)?;
            if let Some(meta) = self.client.topic(name) {
                let count = meta.partitions.len();
                let led = (0..count).all(|partition| self.client.leader(name, partition as i32).is_some());
                if count > 0 && led && partitions.is_none_or(|wanted| wanted as usize <= count) {
                    return Ok(());
                }
            }
            if !patience.pause().await {
                return Err(errors::no_leader(&[name.to_owned()]));
            }
        }
    }

    async fn change_topics(&self, changes: &[TopicChange]) -> Result<Receipt, SubmitError> {
        let [change] = changes else {
            let hint = "submit an entry for each topic";
            return Err(SubmitError::Failed(
                Error::new(Code::UNSUPPORTED, "Kafka changes one topic at a time").hint(hint),
            ));
        };
        let refuse = |error: Error| match error.code {
            Code::TOPIC_EXISTS | Code::TOPIC_INVALID | Code::TOPIC_UNKNOWN => part(error.code, error.message),
            _ => SubmitError::Failed(error),
        };
        let mut receipt = Receipt { time: now(), ..Receipt::default() };
        match change {
            TopicChange::Create { name, partitions, settings, .. } => {
                if !(1..=PARTITIONS_PER_TOPIC_MAX).contains(partitions) {
                    let message =
                        format!("{partitions} partitions are asked for, 1 to {PARTITIONS_PER_TOPIC_MAX} can be");
                    return Err(part(Code::TOPIC_INVALID, message));
                }
                if settings.sequence_fields.is_some() {
                    let error = Error::new(
                        Code::UNSUPPORTED,
                        "a topic of Kafka cannot know devices by fields of their records",
                    );
                    return Err(SubmitError::Failed(error.hint("take devices in through the embedded log")));
                }
                let mut configs = Vec::new();
                configs.extend(settings.retention_bytes.map(|bytes| ("retention.bytes", bytes.to_string())));
                configs.extend(settings.batch_bytes_max.map(|bytes| ("max.message.bytes", bytes.to_string())));
                configs.push(("retention.ms", settings.retention_ms.map_or("-1".into(), |ms| ms.to_string())));
                if lock(&self.topics).len() >= TOPICS_MAX {
                    return Err(part(Code::TOO_LARGE, format!("{TOPICS_MAX} topics are followed already")));
                }
                let physical = self.physical(name);
                self.create(&physical, *partitions, &configs).await.map_err(refuse)?;
                lock(&self.topics).insert(physical.clone());
                let id = self.client.topic(&physical).map_or([0; 16], |meta| meta.id);
                let logs = self.logs_of(&physical, id, *partitions as usize);
                logs.iter().for_each(|log| self.saw(*log, Offset(0), Offset(0)));
                receipt.created.push((name.clone(), logs));
            }
            TopicChange::Delete { name } => {
                let physical = self.physical(name);
                let topic = DeleteTopicState { name: Some(physical.clone()), ..DeleteTopicState::default() };
                let request = DeleteTopicsRequest { topics: vec![topic], timeout_ms: 15_000, ..Default::default() };
                let answer: DeleteTopicsResponse = self
                    .client
                    .ask_any(6, &request)
                    .await
                    .map_err(|failure| SubmitError::Failed(failure.into_error()))?;
                let code = answer.responses.first().map_or(ErrorCode::UNKNOWN_SERVER_ERROR, |topic| topic.error_code);
                if code.is_error() {
                    return Err(refuse(errors::of(code, &format!("the deletion of topic '{name}'"))));
                }
                lock(&self.topics).remove(&physical);
                self.client.forget_topic(&physical);
                self.let_go();
            }
            TopicChange::Extend { name, partitions } => {
                let physical = self.physical(name);
                let before = self.client.topic(&physical).map_or(0, |meta| meta.partitions.len());
                if before >= *partitions as usize || *partitions > PARTITIONS_PER_TOPIC_MAX {
                    let message = format!(
                        "topic '{name}' has {before} partitions, it can only get more, {PARTITIONS_PER_TOPIC_MAX} at most"
                    );
                    return Err(part(Code::TOPIC_INVALID, message));
                }
                self.extend(&physical, *partitions).await.map_err(refuse)?;
                let meta = self
                    .client
                    .topic(name)
                    .ok_or_else(|| part(Code::TOPIC_UNKNOWN, format!("there is no topic '{name}'")))?;
                let logs = self.logs_of(name, meta.id, meta.partitions.len()).split_off(before);
                receipt.created.push((name.clone(), logs));
            }
            TopicChange::Configure { name, .. } => {
                let message = format!("topic \"{name}\" lives in Kafka, whose own tools change it");
                let hint = "kafka-configs.sh --alter";
                return Err(SubmitError::Failed(Error::new(Code::UNSUPPORTED, message).hint(hint)));
            }
            TopicChange::Trim { .. } => {
                let error = Error::new(Code::UNSUPPORTED, "the records of a Kafka are trimmed by its own retention");
                return Err(SubmitError::Failed(error.hint("set retention.ms or retention.bytes of the topic")));
            }
        }
        Ok(receipt)
    }

    /// The batches of each partition, in the order of the entry.
    fn targets(&self, entry: &Entry) -> Result<Vec<Target>, SubmitError> {
        let mut targets: BTreeMap<(String, i32), Target> = BTreeMap::new();
        for (position, append) in entry.appends.iter().enumerate() {
            let Place { topic, partition, .. } =
                self.place(append.log).map_err(|error| part(error.code, error.message))?;
            let batch = BatchView::parse(append.batch.clone());
            let batch = batch.map_err(|error| part(Code::BATCH_INVALID, error.to_string()))?;
            batch.check_records().map_err(|error| part(Code::BATCH_INVALID, error.to_string()))?;
            let new = || Target { topic: topic.clone(), partition, batches: Vec::new() };
            targets.entry((topic.clone(), partition)).or_insert_with(new).batches.push((Some(position), batch));
        }
        Ok(targets.into_values().collect())
    }

    async fn submit(&self, entry: Entry) -> Result<Receipt, SubmitError> {
        scope::check(Scope::Records, &entry).map_err(SubmitError::Failed)?;
        if entry.parts() > ENTRY_PARTS_MAX || entry.size_hint() > ENTRY_BYTES_MAX {
            let message = format!("the entry has {} parts and {} bytes", entry.parts(), entry.size_hint());
            let hint = format!("{ENTRY_PARTS_MAX} parts and {ENTRY_BYTES_MAX} bytes can be");
            return Err(SubmitError::Failed(Error::new(Code::TOO_LARGE, message).hint(hint)));
        }
        if !entry.topics.is_empty() {
            return self.change_topics(&entry.topics).await;
        }
        let mut targets = self.targets(&entry)?;
        let receipt = Receipt { time: now(), ..Receipt::default() };
        let Some(cursor) = entry.cursors.first() else {
            if targets.is_empty() {
                return Ok(receipt);
            }
            let mut plain = self.plain.lock().await;
            if plain.as_ref().is_none_or(|session| session.lost.is_some()) {
                let id = format!("{}.append.{:016x}", self.options.prefix, self.name);
                let claimed = Session::claim(&self.client, id, self.options.transaction_max, self.deadline()).await;
                *plain = Some(claimed.map_err(SubmitError::Failed)?);
            }
            let session = plain.as_mut().expect("it was claimed above");
            let appends = session.commit(&self.client, &targets, &entry.appends, None).await?;
            return Ok(Receipt { appends, ..receipt });
        };

        let place = self.place(cursor.log).map_err(|error| part(error.code, error.message))?;
        let Place { topic, partition, .. } = place.clone();
        let key = (cursor.group.clone(), cursor.log);
        let claim = lock(&self.claims).get(&key).cloned().ok_or_else(|| {
            let message = format!("nobody has claimed the cursor of '{}' on {topic}/{partition} here", cursor.group);
            SubmitError::Failed(
                Error::new(Code::EPOCH_STALE, message).hint("claim it: that fences whoever had it before"),
            )
        })?;
        let mut claim = claim.lock().await;
        let claim = &mut *claim;
        if let Some(error) = &claim.session.lost {
            return Err(SubmitError::Failed(error.clone()));
        }
        for (position, guard) in entry.guards.iter().enumerate() {
            if let Guard::Cursor { expected, .. } = guard
                && *expected != claim.position
            {
                let found = claim.position.map_or("unset".into(), |at| at.to_string());
                return Err(SubmitError::Refused(Refusal::Guard { position, guard: guard.clone(), found }));
            }
        }
        let mut end = lock(&self.logs).bounds.get(&cursor.log).map_or(Offset(0), |bounds| bounds.1);
        if cursor.next > end {
            // What was seen last may be old.
            let found = fetch::list_offset(&self.client, &place, LATEST, self.deadline()).await;
            end = found.map_err(SubmitError::Failed)?.map_or(Offset(0), |(offset, _)| offset);
        }
        if cursor.next < Offset(0) || cursor.next > end {
            let message =
                format!("cursor '{}' cannot move to {}, {topic}/{partition} ends at {end}", cursor.group, cursor.next);
            return Err(part(Code::OFFSET_OUT_OF_RANGE, message));
        }
        if !entry.state.is_empty() {
            let Some(changelog) = &claim.changelog else {
                let error = Error::new(Code::BAD_REQUEST, "the cursor was claimed without its state");
                return Err(SubmitError::Failed(error));
            };
            claim.rows.check(&entry.state).map_err(SubmitError::Failed)?;
            let batches = state::batches(&entry.state, receipt.time.0 as i64).map_err(SubmitError::Failed)?;
            let batches = batches.into_iter().map(|batch| (None, batch)).collect();
            targets.push(Target { topic: changelog.clone(), partition, batches });
        }
        let moved = Move {
            group: self.physical(&cursor.group),
            topic,
            partition,
            next: cursor.next,
            metadata: cursor.metadata.clone(),
        };
        match claim.session.commit(&self.client, &targets, &entry.appends, Some(&moved)).await {
            Ok(appends) => {
                claim.position = Some(cursor.next);
                lock(&self.cursors).insert(key, cursor.next);
                for put in &entry.state {
                    claim.rows.put(&put.space, put.key.clone(), put.value.clone());
                }
                for (append, outcome) in entry.appends.iter().zip(&appends) {
                    if let buttress_core::AppendOutcome::Appended { base_offset } = outcome {
                        let end = Offset(base_offset.0 + i64::from(append.records));
                        let mut logs = lock(&self.logs);
                        let bounds = logs.bounds.entry(append.log).or_default();
                        bounds.1 = bounds.1.max(end);
                    }
                }
                Ok(Receipt { appends, ..receipt })
            }
            Err(error) => {
                lock(&self.cursors).remove(&key);
                Err(error)
            }
        }
    }

    async fn fetch(&self, log: LogId, offset: Offset, bytes_max: usize, wait_ms: u64) -> Result<Fetched, Error> {
        let place = self.place(log)?;
        let wait = Duration::from_millis(wait_ms);
        let page = fetch::fetch(&self.client, &place, offset, bytes_max, wait, self.deadline()).await?;
        self.saw(log, page.start, page.end);
        Ok(Fetched { start: page.start, end: page.end, batches: page.batches })
    }
}

fn no_keys<T>() -> Result<T, Error> {
    let error = Error::new(Code::UNSUPPORTED, "a Kafka holds no keys");
    Err(error.hint("keys, leases and watches are served by the ledger: the embedded log, or an etcd"))
}

impl Ledger for Kafka {
    fn submit(&self, entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(self.inner.submit(entry))
    }

    fn read(&self, _: KeyRange, _: usize, _: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>> {
        Box::pin(async { no_keys() })
    }

    /// Rows as the claims on this host have them. A space that no claim has is refused: it would be read as empty.
    fn state(&self, space: &str, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, Error>> {
        let space = space.to_owned();
        Box::pin(async move {
            let claims: Vec<_> = lock(&self.inner.claims).values().cloned().collect();
            let mut claimed = false;
            for claim in claims {
                let claim = claim.lock().await;
                claimed |= claim.changelog.is_some();
                if let Some(rows) = claim.rows.spaces.get(&space) {
                    return Ok(keys.iter().map(|key| rows.get(key).cloned()).collect());
                }
            }
            if !claimed {
                let error = Error::new(Code::EPOCH_STALE, format!("no claim on this host has the state '{space}'"));
                return Err(error.hint("claim the cursor first: that reads its state back"));
            }
            Ok(vec![None; keys.len()])
        })
    }

    fn watch(&self, _: KeyRange, _: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        Box::pin(async { no_keys() })
    }

    fn scope(&self) -> Scope {
        Scope::Records
    }
}

impl Stream for Kafka {
    fn topics(&self) -> Vec<TopicView> {
        let names: Vec<String> = lock(&self.inner.topics).iter().cloned().collect();
        names.iter().filter_map(|name| self.inner.view(name)).collect()
    }

    fn topic(&self, name: &str) -> Option<TopicView> {
        let name = self.inner.physical(name);
        lock(&self.inner.topics).contains(&name).then(|| self.inner.view(&name)).flatten()
    }

    fn fetch(
        &self,
        log: LogId,
        offset: Offset,
        bytes_max: usize,
        wait_ms: u64,
    ) -> BoxFuture<'_, Result<Fetched, Error>> {
        Box::pin(self.inner.fetch(log, offset, bytes_max, wait_ms))
    }

    fn offset_for_time(&self, log: LogId, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<(Offset, i64)>, Error>> {
        Box::pin(async move {
            let place = self.inner.place(log)?;
            fetch::list_offset(&self.inner.client, &place, timestamp_ms.max(0), self.inner.deadline()).await
        })
    }

    fn cursor(&self, group: &str, log: LogId) -> Option<Offset> {
        lock(&self.inner.cursors).get(&(group.to_owned(), log)).copied()
    }

    fn scope(&self) -> Scope {
        Scope::Records
    }
}
