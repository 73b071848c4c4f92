//! Where records lie: the embedded log, or an engine that the user runs.
//!
//! A function reads, writes and keeps its state in one home, because that is what one commit can hold. On the embedded log
//! the guards of its entry compare functions and models; elsewhere claims do their work ([`buttress_core::claims`]).
//!
//! A topic lies where it was made: in the first home, unless the ledger says otherwise under [`TOPICS_PREFIX`].

use std::sync::Arc;

use buttress_core::{
    Claims, Code, Consistency, Entry, Error, KeyRange, Ledger, LogId, Refusal, Stream, SubmitError, TopicChange,
    entry::TopicSettings, ledger::TopicView,
};
use bytes::Bytes;

use crate::{
    resource::{TopicSpec, topic_key},
    topics,
};

/// One of the places for records.
#[derive(Clone)]
pub struct Home {
    /// Takes the entries of functions on its topics.
    pub records: Arc<dyn Ledger>,
    pub stream: Arc<dyn Stream>,
    /// `None` where an entry can be guarded by keys.
    pub claims: Option<Arc<dyn Claims>>,
}

impl Home {
    /// What it is called in settings.
    pub fn engine(&self) -> &'static str {
        self.claims.as_ref().map_or("embedded", |claims| claims.engine())
    }

    /// Rows of the state that belongs to a cursor here.
    ///
    /// # Errors
    /// What the engine answers.
    pub async fn rows(
        &self,
        group: &str,
        log: LogId,
        space: &str,
        keys: Vec<Bytes>,
    ) -> Result<Vec<Option<Bytes>>, Error> {
        match &self.claims {
            Some(claims) => claims.rows(group, log, space, keys).await,
            None => self.records.state(space, keys).await,
        }
    }

    /// The topic, where it lies here.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn topic(&self, name: &str) -> Result<Option<TopicView>, Error> {
        match (self.stream.topic(name), &self.claims) {
            (Some(view), _) => Ok(Some(view)),
            (None, Some(claims)) if claims.follow(name).await? => Ok(self.stream.topic(name)),
            (None, _) => Ok(None),
        }
    }

    /// The topic, after creating it where it is missing.
    ///
    /// # Errors
    /// What the engine answers.
    pub async fn ensure(&self, name: &str, partitions: u32, settings: TopicSettings) -> Result<TopicView, Error> {
        if self.claims.is_none() {
            return topics::ensure(&*self.records, &*self.stream, name, partitions, settings).await;
        }
        if let Some(view) = self.topic(name).await? {
            return Ok(view);
        }
        let create = TopicChange::Create { name: name.to_owned(), id: [0; 16], partitions, settings };
        match self.records.submit(Entry { topics: vec![create], ..Entry::default() }).await {
            Ok(_) | Err(SubmitError::Refused(Refusal::Part { code: Code::TOPIC_EXISTS, .. })) => {}
            Err(error) => return Err(error.into_error()),
        }
        self.topic(name).await?.ok_or_else(|| {
            Error::new(Code::TOPIC_UNKNOWN, format!("topic '{name}' was deleted while it was created")).retryable()
        })
    }
}

/// All of them. The first is where a topic lies of which nothing else is known.
#[derive(Clone)]
pub struct Homes {
    ledger: Arc<dyn Ledger>,
    list: Arc<Vec<Home>>,
}

impl Homes {
    pub fn new(ledger: Arc<dyn Ledger>, list: Vec<Home>) -> Self {
        assert!(!list.is_empty(), "records lie somewhere");
        Self { ledger, list: Arc::new(list) }
    }

    pub fn all(&self) -> &[Home] {
        &self.list
    }

    pub fn first(&self) -> &Home {
        &self.list[0]
    }

    /// The home of a topic, as far as is known on this host.
    pub fn of(&self, topic: &str) -> Option<(&Home, TopicView)> {
        self.list.iter().find_map(|home| Some((home, home.stream.topic(topic)?)))
    }

    /// The home of a topic; `None` where there is no such topic.
    ///
    /// # Errors
    /// What ledger and engines answer.
    pub async fn find(&self, topic: &str) -> Result<Option<(&Home, TopicView)>, Error> {
        if let Some(found) = self.of(topic) {
            return Ok(Some(found));
        }
        let home = match self.chosen(topic).await? {
            Some(home) => home,
            None => self.first(),
        };
        Ok(home.topic(topic).await?.map(|view| (home, view)))
    }

    /// The home that the ledger names for a topic.
    ///
    /// # Errors
    /// `CONFIG` for an engine that this host does not know; what the ledger answers.
    pub async fn chosen(&self, topic: &str) -> Result<Option<&Home>, Error> {
        let found = self.ledger.read(KeyRange::key(topic_key(topic)), 1, Consistency::Linearizable).await?;
        let Some(kv) = found.kvs.first() else { return Ok(None) };
        let spec: TopicSpec = serde_json::from_slice(&kv.value)
            .map_err(|e| Error::new(Code::CORRUPT, format!("the settings of topic '{topic}' cannot be read: {e}")))?;
        self.engine(&spec.engine).map(Some)
    }

    /// # Errors
    /// `CONFIG` where this host knows no such engine.
    pub fn engine(&self, name: &str) -> Result<&Home, Error> {
        self.list.iter().find(|home| home.engine() == name).ok_or_else(|| {
            let known: Vec<&str> = self.list.iter().map(Home::engine).collect();
            Error::new(Code::CONFIG, format!("this node knows no engine \"{name}\", only {}", known.join(", ")))
                .hint("name the engine's address in the section [engines] of the configuration")
        })
    }
}
