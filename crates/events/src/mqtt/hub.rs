//! Sessions by client id, their filters, and the tailers that feed them.
//!
//! The problem: ten thousand sessions may subscribe, and each record must reach every session whose filter matches its
//! name, without ten thousand readers of the log. So each partition that some filter could ask for is tailed once per node;
//! a record's name is looked up in the [`Tree`] of all filters, and its payload is copied once for all its receivers.
//!
//! *First start:* nothing is tailed until somebody subscribes. *A subscription* begins at the end of its partitions as this node
//! has applied them; a tailer that is still behind does not deliver what was there before ([`Mailbox::starts`]). *A new
//! topic* is found by looking every [`TOPICS_LOOK`], and read from its first record, since it is younger than the
//! subscription. *Retention overtakes a tailer:* it goes on at the first record that is left, with a warning that says how
//! many were missed. *The last filter goes:* the tailer stops at the next look.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use buttress_core::{Code, Error, LogId, Offset, Stream};
use buttress_wire::{
    mqtt::{Filter, Qos, Text, TopicName},
    records::BatchView,
};
use bytes::Bytes;
use futures::task::AtomicWaker;
use tokio::task::AbortHandle;

use super::{
    Counters,
    rules::{Rules, TOPIC_HEADER},
    tree::{Subscriber, Tree},
};

/// How often new topics and tailers without listeners are looked for.
const TOPICS_LOOK: Duration = Duration::from_millis(500);
/// One fetch of a tailer.
const TAIL_BYTES: usize = 1024 * 1024;
/// How long a fetch waits for the next record. It is woken by one, so this only bounds how long it sleeps.
const TAIL_WAIT_MS: u64 = 5_000;
/// Pause after a fetch that failed.
const TAIL_RETRY: Duration = Duration::from_secs(1);

/// One message on its way to one subscriber.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub topic: TopicName,
    pub payload: Bytes,
    pub qos: Qos,
}

impl Delivery {
    /// What it counts for against the outbox: bytes, and what the queue itself costs.
    fn cost(&self) -> usize {
        64 + self.topic.len() + self.payload.len()
    }
}

/// Why the hub wants a session to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kill {
    TakenOver,
    Slow,
}

/// What other tasks leave for a session.
#[derive(Debug)]
pub(super) struct Mailbox {
    id: Subscriber,
    pub client_id: Text,
    pub waker: Arc<AtomicWaker>,
    messages_max: usize,
    bytes_max: usize,
    state: Mutex<MailboxState>,
}

#[derive(Debug, Default)]
struct MailboxState {
    queue: VecDeque<Delivery>,
    bytes: usize,
    kill: Option<Kill>,
    /// Per partition, the first offset that is younger than the session's first subscription to it.
    starts: BTreeMap<LogId, Offset>,
}

impl Mailbox {
    fn state(&self) -> std::sync::MutexGuard<'_, MailboxState> {
        self.state.lock().expect("no panic holds the lock")
    }

    pub fn pop(&self) -> Option<Delivery> {
        let mut state = self.state();
        let delivery = state.queue.pop_front()?;
        state.bytes -= delivery.cost();
        Some(delivery)
    }

    pub fn has_messages(&self) -> bool {
        !self.state().queue.is_empty()
    }

    pub fn killed(&self) -> Option<Kill> {
        self.state().kill
    }

    fn push(&self, log: LogId, offset: Offset, delivery: Delivery) {
        let mut state = self.state();
        if state.kill.is_some() || state.starts.get(&log).is_some_and(|start| offset < *start) {
            return;
        }
        let cost = delivery.cost();
        // A single message larger than the outbox still passes, when it is alone.
        let full = state.queue.len() >= self.messages_max || state.bytes + cost > self.bytes_max;
        if full && !state.queue.is_empty() {
            state.kill = Some(Kill::Slow);
            state.queue.clear();
            state.bytes = 0;
        } else {
            state.bytes += cost;
            state.queue.push_back(delivery);
        }
        drop(state);
        self.waker.wake();
    }

    fn kill(&self, why: Kill) {
        self.state().kill.get_or_insert(why);
        self.waker.wake();
    }
}

/// See the module's documentation.
pub struct Hub {
    stream: Arc<dyn Stream>,
    rules: Rules,
    counters: Arc<Counters>,
    state: RwLock<State>,
    /// Some filter is gone since tailers were last looked over.
    filters_gone: AtomicBool,
}

#[derive(Default)]
struct State {
    next: Subscriber,
    by_client: HashMap<Text, Subscriber>,
    mailboxes: HashMap<Subscriber, Arc<Mailbox>>,
    tree: Tree,
    /// Every filter with the number of sessions that have it.
    filters: BTreeMap<Filter, usize>,
    tailers: BTreeMap<LogId, Tailer>,
}

struct Tailer {
    topic: String,
    /// The next offset it delivers.
    position: Arc<AtomicI64>,
    task: AbortHandle,
}

/// Stops all tailers when the edge stops.
pub(super) struct StopTailers(pub Arc<Hub>);

impl Drop for StopTailers {
    fn drop(&mut self) {
        for (_, tailer) in std::mem::take(&mut self.0.write().tailers) {
            tailer.task.abort();
        }
    }
}

impl Hub {
    pub(super) fn new(stream: Arc<dyn Stream>, rules: Rules, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self { stream, rules, counters, state: RwLock::default(), filters_gone: AtomicBool::new(false) })
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().expect("no panic holds the lock")
    }

    /// Registers a session. An older one of the same client id is told to end (MQTT-3.1.4-2).
    pub(super) fn connect(&self, client_id: Text, options: &super::Options) -> Arc<Mailbox> {
        let mut state = self.write();
        state.next += 1;
        let id = state.next;
        let mailbox = Arc::new(Mailbox {
            id,
            client_id: client_id.clone(),
            waker: Arc::new(AtomicWaker::new()),
            messages_max: options.outbox_messages_max,
            bytes_max: options.outbox_bytes_max,
            state: Mutex::default(),
        });
        state.mailboxes.insert(id, mailbox.clone());
        let older = state.by_client.insert(client_id, id);
        let older = older.and_then(|older| state.mailboxes.get(&older).cloned());
        drop(state);
        if let Some(older) = older {
            older.kill(Kill::TakenOver);
        }
        mailbox
    }

    /// Forgets a session and its filters.
    pub(super) fn disconnect(&self, mailbox: &Mailbox, filters: &[Filter]) {
        let mut state = self.write();
        for filter in filters {
            self.forget(&mut state, filter, mailbox.id);
        }
        state.mailboxes.remove(&mailbox.id);
        // Unless another session has taken the client id over.
        if state.by_client.get(&mailbox.client_id) == Some(&mailbox.id) {
            state.by_client.remove(&mailbox.client_id);
        }
    }

    fn forget(&self, state: &mut State, filter: &Filter, subscriber: Subscriber) {
        state.tree.remove(filter, subscriber);
        let count = state.filters.get_mut(filter).expect("every filter of a session is counted");
        *count -= 1;
        if *count == 0 {
            state.filters.remove(filter);
            self.filters_gone.store(true, Relaxed);
        }
    }

    /// `known`: the session has this filter already and changes its QoS.
    pub(super) fn subscribe(self: &Arc<Self>, mailbox: &Mailbox, filter: &Filter, qos: Qos, known: bool) {
        let topics = self.stream.topics();
        let mut state = self.write();
        let mut starts = mailbox.state();
        for topic in topics.iter().filter(|topic| self.rules.may_match(&topic.name, filter)) {
            for partition in &topic.partitions {
                let new = !state.tailers.contains_key(&partition.log);
                if new {
                    let awaited = state.filters.keys().any(|older| self.rules.may_match(&topic.name, older));
                    // A topic younger than someone's subscription is that one's from the start.
                    let from = if awaited { partition.start } else { partition.end };
                    self.tail(&mut state, &topic.name, partition.log, from);
                }
                starts.starts.entry(partition.log).or_insert(partition.end);
            }
        }
        drop(starts);
        state.tree.insert(filter, mailbox.id, qos);
        if !known {
            *state.filters.entry(filter.clone()).or_insert(0) += 1;
        }
    }

    pub(super) fn unsubscribe(&self, mailbox: &Mailbox, filter: &Filter) {
        let mut state = self.write();
        self.forget(&mut state, filter, mailbox.id);
    }

    /// Finds new topics for the filters that are there, and stops tailers that nobody listens to any more.
    pub(super) async fn watch_topics(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TOPICS_LOOK).await;
            self.look();
        }
    }

    fn look(self: &Arc<Self>) {
        let gone = self.filters_gone.swap(false, Relaxed);
        if self.state.read().expect("no panic holds the lock").filters.is_empty() && !gone {
            return;
        }
        let topics = self.stream.topics();
        let mut state = self.write();
        for topic in &topics {
            if topic.partitions.iter().all(|p| state.tailers.contains_key(&p.log)) {
                continue;
            }
            if !state.filters.keys().any(|filter| self.rules.may_match(&topic.name, filter)) {
                continue;
            }
            for partition in &topic.partitions {
                if !state.tailers.contains_key(&partition.log) {
                    self.tail(&mut state, &topic.name, partition.log, partition.start);
                }
            }
        }
        if gone {
            let State { tailers, filters, .. } = &mut *state;
            tailers.retain(|_, tailer| {
                let wanted = filters.keys().any(|filter| self.rules.may_match(&tailer.topic, filter));
                if !wanted {
                    tailer.task.abort();
                }
                wanted
            });
        }
    }

    fn tail(self: &Arc<Self>, state: &mut State, topic: &str, log: LogId, from: Offset) {
        let position = Arc::new(AtomicI64::new(from.0));
        let task = tokio::spawn(self.clone().follow(topic.to_owned(), log, position.clone())).abort_handle();
        state.tailers.insert(log, Tailer { topic: topic.to_owned(), position, task });
    }

    /// Reads one partition for ever.
    async fn follow(self: Arc<Self>, topic: String, log: LogId, position: Arc<AtomicI64>) {
        let mut opaque_reported = false;
        loop {
            let from = Offset(position.load(Relaxed));
            match self.stream.fetch(log, from, TAIL_BYTES, TAIL_WAIT_MS).await {
                Ok(fetched) => {
                    for batch in fetched.batches {
                        let last = batch.last_offset;
                        if let Err(error) = self.deliver(&topic, log, from, batch.bytes)
                            && !opaque_reported
                        {
                            opaque_reported = true;
                            tracing::warn!(topic = %topic, log = log.0, offset = last.0, error = %error,
                                "records are not delivered to mqtt subscribers");
                        }
                        position.store(last.0 + 1, Relaxed);
                    }
                    // A stream that answers at once must not keep this thread for itself.
                    tokio::task::yield_now().await;
                }
                Err(error) if error.code == Code::TOPIC_UNKNOWN => {
                    self.write().tailers.remove(&log);
                    return;
                }
                Err(error) if error.code == Code::OFFSET_OUT_OF_RANGE => {
                    self.skip(&topic, log, &position, &error).await
                }
                Err(error) if error.code == Code::STOPPED => return,
                Err(error) => {
                    tracing::warn!(topic = %topic, log = log.0, code = %error.code, error = %error.message,
                        "mqtt delivery waits for the topic");
                    tokio::time::sleep(TAIL_RETRY).await;
                }
            }
        }
    }

    async fn skip(&self, topic: &str, log: LogId, position: &AtomicI64, error: &Error) {
        let from = position.load(Relaxed);
        let view = self.stream.topic(topic);
        let partition = view.and_then(|view| view.partitions.into_iter().find(|p| p.log == log));
        match partition {
            Some(partition) if partition.start.0 > from => {
                tracing::warn!(topic = %topic, log = log.0, missed = partition.start.0 - from,
                    "retention overtook mqtt delivery");
                position.store(partition.start.0, Relaxed);
            }
            // This node is behind the position, or the topic is going: look again a little later.
            _ => {
                tracing::debug!(topic = %topic, log = log.0, error = %error.message, "mqtt delivery waits");
                tokio::time::sleep(TAIL_RETRY).await;
            }
        }
    }

    fn deliver(
        &self,
        topic: &str,
        log: LogId,
        from: Offset,
        batch: Bytes,
    ) -> Result<(), buttress_wire::records::RecordError> {
        let view = BatchView::parse(batch)?;
        if view.is_control() {
            return Ok(());
        }
        let mut found = Vec::new();
        for record in view.records()? {
            let record = record?;
            if record.offset < from.0 {
                continue;
            }
            let header = record.headers.iter().find(|h| &h.key[..] == TOPIC_HEADER.as_bytes());
            let name = self.rules.name(topic, header.and_then(|h| h.value.as_ref()), record.key.as_ref());
            let Some(name) = name else { continue };
            let state = self.state.read().expect("no panic holds the lock");
            found.clear();
            state.tree.matches(&name, &mut found);
            if found.is_empty() {
                continue;
            }
            // Copied once, so that a slow subscriber does not keep a whole batch in memory for one record.
            let payload = record.value.as_deref().map_or_else(Bytes::new, Bytes::copy_from_slice);
            let text = Bytes::copy_from_slice(name.as_bytes());
            let name = TopicName::new(Text::new(text).expect("same text")).expect("same name");
            for (subscriber, qos) in &found {
                if let Some(mailbox) = state.mailboxes.get(subscriber) {
                    let delivery = Delivery { topic: name.clone(), payload: payload.clone(), qos: *qos };
                    mailbox.push(log, Offset(record.offset), delivery);
                }
            }
        }
        Ok(())
    }

    /// Partitions tailed now, with the next offset of each; for tests and for people.
    pub fn tailed(&self) -> Vec<(String, LogId, Offset)> {
        let state = self.state.read().expect("no panic holds the lock");
        state.tailers.iter().map(|(log, t)| (t.topic.clone(), *log, Offset(t.position.load(Relaxed)))).collect()
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }
}
