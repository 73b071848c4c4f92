//! The engines that users already run, composed: their Kafka as a place for records, their etcd as the ledger of a host.
//!
//! [`hosts`] says who runs a partition, [`book`] which topics lie in Kafka, [`edge`] what MQTT and HTTP write through,
//! [`host`] puts a process together that has no log of its own.

pub mod book;
pub mod edge;
pub mod host;
pub mod hosts;

use std::{sync::Arc, time::Duration};

use buttress_bridge::{kafka::Kafka, scope};
use buttress_core::{BoxFuture, Claimed, Claims, Code, Entry, Error, LogId, Scope, Seat, Stream};
use bytes::Bytes;

use hosts::{Hosts, seat_name};

/// How long a host's holds live without a renewal, where nothing else is said.
pub const HOLD_TTL_DEFAULT: Duration = Duration::from_secs(5);

/// Where a Kafka is, and what our names begin with in it.
#[derive(Clone, Debug)]
pub struct KafkaPlace {
    /// `HOST:PORT`s, or the parts of one address of [`buttress_bridge::kafka::Options::from_url`] that commas divide.
    pub bootstrap: Vec<String>,
    /// Topics, groups and transactional ids begin with it; may be empty.
    pub namespace: String,
}

impl KafkaPlace {
    fn options(&self) -> Result<buttress_bridge::kafka::Options, Error> {
        let mut options = buttress_bridge::kafka::Options::from_url(&self.bootstrap.join(","))?;
        options.namespace.clone_from(&self.namespace);
        match self.namespace.trim_end_matches(['.', '-', '_']) {
            "" => {}
            ours => ours.clone_into(&mut options.prefix),
        }
        Ok(options)
    }

    /// # Errors
    /// As [`Kafka::connect`].
    pub async fn connect(&self) -> Result<Kafka, Error> {
        Kafka::connect(self.options()?).await
    }

    /// # Errors
    /// As [`Kafka::open`].
    pub fn open(&self) -> Result<Kafka, Error> {
        Kafka::open(self.options()?)
    }
}

/// How an etcd is reached: endpoints, or the parts of one address of [`buttress_bridge::etcd::Options::from_url`] that commas
/// divide. Keys begin with the address's namespace, then with this one.
///
/// # Errors
/// `CONFIG` for an address that cannot be read.
pub fn etcd_options(endpoints: &[String], namespace: &str) -> Result<buttress_bridge::etcd::Options, Error> {
    let mut options = buttress_bridge::etcd::Options::from_url(&endpoints.join(","))?;
    options.namespace.push_str(namespace);
    Ok(options)
}

/// A prefix that is part of topics' names has their characters.
///
/// # Errors
/// `CONFIG`.
pub fn check_namespace(namespace: &str) -> Result<(), Error> {
    const BYTES_MAX: usize = 64;
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if namespace.len() <= BYTES_MAX && namespace.bytes().all(fits) {
        return Ok(());
    }
    Err(Error::new(Code::CONFIG, format!("namespace {namespace:?} cannot begin a topic's name"))
        .hint(format!("use letters, digits, '.', '_' and '-', at most {BYTES_MAX}; for example site-7.")))
}

/// Partitions of a Kafka, divided among hosts.
pub struct KafkaClaims {
    pub kafka: Arc<Kafka>,
    pub hosts: Arc<Hosts>,
}

impl Claims for KafkaClaims {
    fn engine(&self) -> &'static str {
        "kafka"
    }

    fn check(&self, entry: &Entry) -> Result<(), Error> {
        scope::check(Scope::Records, entry)
    }

    fn follow<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(self.kafka.follow(topic))
    }

    fn seat<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        partition: i32,
    ) -> BoxFuture<'a, Result<Box<dyn Seat>, Error>> {
        Box::pin(self.hosts.seat(seat_name(group, topic, partition)))
    }

    fn claim<'a>(&'a self, group: &'a str, log: LogId, state: bool) -> BoxFuture<'a, Result<Claimed, Error>> {
        Box::pin(async move {
            let claimed = self.kafka.claim(group, log, state).await?;
            let (start, end) = self.kafka.bounds(log).await?;
            Ok(Claimed { position: claimed.position, start, end })
        })
    }

    fn fence<'a>(&'a self, group: &'a str, log: LogId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.kafka.fence(group, log))
    }

    fn rows<'a>(
        &'a self,
        group: &'a str,
        log: LogId,
        space: &'a str,
        keys: Vec<Bytes>,
    ) -> BoxFuture<'a, Result<Vec<Option<Bytes>>, Error>> {
        Box::pin(self.kafka.rows(group, log, space, keys))
    }

    fn runs_on(&self, group: &str, topic: &str, partition: i32) -> Option<String> {
        self.hosts.holder(&seat_name(group, topic, partition))
    }
}

/// What functions run on when their records lie in this Kafka.
pub fn home(kafka: &Arc<Kafka>, hosts: &Arc<Hosts>) -> buttress_functions::Home {
    let stream: Arc<dyn Stream> = kafka.clone();
    buttress_functions::Home {
        records: kafka.clone(),
        stream,
        claims: Some(Arc::new(KafkaClaims { kafka: kafka.clone(), hosts: hosts.clone() })),
    }
}
