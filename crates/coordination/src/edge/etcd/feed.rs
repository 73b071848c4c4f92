//! The ring of latest events that all watches share.
//!
//! A thousand watches on one prefix would otherwise ask the node a thousand times for the same change and encode it a
//! thousand times. So one task per way of encoding (with the key as it was before, or without) follows the whole key
//! space and keeps the latest revisions, encoded as they stand in an answer, in a ring that is bounded in bytes. A
//! watch is a position in it: a slow one costs no memory, and one whose position has left the ring goes on from the
//! store (`watches.rs`).
//!
//! Start: with the first watch, at the revision that the node has applied. End: with the last one. Where the node's own
//! history went away under the task, after an installed snapshot for example, the ring begins anew, and watches find
//! themselves behind it; what they missed or cannot have any more, they learn from the store.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress_core::{
    Consistency, Error, KeyRange, Ledger, Revision,
    ledger::{KeyWatch, WatchEvent, WatchItem, WatchOptions},
};
use bytes::{Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key},
};
use tokio::sync::watch;

use super::convert;

/// After an error of the node the task waits as long before it tries again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// What a group costs beside its events' bytes.
const EVENT_OVERHEAD_BYTES: usize = 128;

/// All changes of one revision.
#[derive(Debug)]
pub(super) struct Group {
    pub revision: Revision,
    pub events: Vec<Encoded>,
    pub bytes: usize,
}

/// A change, as the field `events` of a watch's answer holds it, with tag and length.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub key: Bytes,
    pub deleted: bool,
    pub bytes: Bytes,
}

/// The number of `events` in `WatchResponse`.
const EVENTS_FIELD: u32 = 11;

/// Sorts changes, which come in the order of revisions, into groups.
pub(super) fn groups(events: Vec<WatchEvent>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for event in events {
        let (revision, key, deleted) = (event.kv.mod_revision, event.kv.key.clone(), event.deleted);
        let event = convert::event(event);
        let mut bytes = BytesMut::with_capacity(event.encoded_len() + 8);
        encode_key(EVENTS_FIELD, WireType::LengthDelimited, &mut bytes);
        event.encode_length_delimited(&mut bytes).expect("the buffer grows");
        // A copy of the key, so that an event does not keep a whole row or entry in memory.
        let encoded = Encoded { key: Bytes::copy_from_slice(&key), deleted, bytes: bytes.freeze() };
        let size = encoded.bytes.len() + encoded.key.len() + EVENT_OVERHEAD_BYTES;
        match groups.last_mut().filter(|group| group.revision == revision) {
            Some(group) => {
                group.events.push(encoded);
                group.bytes += size;
            }
            None => groups.push(Group { revision, events: vec![encoded], bytes: size }),
        }
    }
    groups
}

#[derive(Debug, Default)]
struct Ring {
    groups: VecDeque<Arc<Group>>,
    bytes: usize,
    /// Every change at this revision or later, up to `next`, is in the ring.
    start: Revision,
    /// The first revision that was not seen yet.
    next: Revision,
}

impl Ring {
    fn push(&mut self, group: Group, bytes_max: usize) {
        self.bytes += group.bytes;
        self.groups.push_back(Arc::new(group));
        while self.bytes > bytes_max {
            let Some(oldest) = self.groups.pop_front() else { break };
            self.bytes -= oldest.bytes;
            self.start = Revision(oldest.revision.0 + 1);
        }
    }
}

pub(super) struct Feed {
    ring: Mutex<Ring>,
    /// `Ring::next`; `None` once the node has stopped.
    next: watch::Sender<Option<Revision>>,
}

/// What the ring has from a position on.
pub(super) enum Read {
    /// It is not in the ring any more; the ring goes up to here.
    Behind(Revision),
    /// Groups, oldest first, and the position after them.
    Groups(Vec<Arc<Group>>, Revision),
}

impl Feed {
    /// At least one group where there is one, and about `bytes_max`.
    pub(super) fn read(&self, at: Revision, bytes_max: usize) -> Read {
        let ring = self.ring.lock().expect("no holder panics");
        if at < ring.start {
            return Read::Behind(ring.next);
        }
        let first = ring.groups.partition_point(|group| group.revision < at);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for group in ring.groups.iter().skip(first) {
            if bytes >= bytes_max {
                return Read::Groups(taken, group.revision);
            }
            bytes += group.bytes;
            taken.push(group.clone());
        }
        Read::Groups(taken, ring.next.max(at))
    }
}

/// A place at a feed, which runs as long as anybody has one.
pub(super) struct Subscription {
    pub feed: Arc<Feed>,
    next: watch::Receiver<Option<Revision>>,
}

impl Subscription {
    pub(super) fn next(&self) -> Option<Revision> {
        *self.next.borrow()
    }

    /// Returns when the feed has gone past `at`, or the node has stopped.
    pub(super) async fn past(&mut self, at: Revision) {
        let _ = self.next.wait_for(|next| next.is_none_or(|next| next > at)).await;
    }
}

struct Shared {
    ledger: Arc<dyn Ledger>,
    ring_bytes_max: usize,
    running: [Mutex<Option<Arc<Feed>>>; 2],
}

/// The two feeds: without and with what keys were before.
pub(super) struct Feeds(Arc<Shared>);

impl Feeds {
    pub(super) fn new(ledger: Arc<dyn Ledger>, ring_bytes_max: usize) -> Self {
        Self(Arc::new(Shared { ledger, ring_bytes_max, running: Default::default() }))
    }

    /// Subscribes, and starts the feed if nobody had. It covers at least what comes after the revision that the node
    /// has applied now.
    ///
    /// # Errors
    /// Those of the ledger.
    pub(super) async fn subscribe(&self, prev_kv: bool) -> Result<Subscription, Error> {
        let slot = &self.0.running[usize::from(prev_kv)];
        let join = |running: &Option<Arc<Feed>>| {
            let feed = running.as_ref()?.clone();
            // Taken under the slot's lock, so that a feed that ends for lack of listeners sees this one.
            let next = feed.next.subscribe();
            Some(Subscription { feed, next })
        };
        if let Some(subscription) = join(&slot.lock().expect("no holder panics")) {
            return Ok(subscription);
        }
        let (watch, next) = self.0.open(prev_kv).await?;
        let mut running = slot.lock().expect("no holder panics");
        if let Some(subscription) = join(&running) {
            return Ok(subscription);
        }
        let ring = Ring { start: next, next, ..Ring::default() };
        let feed = Arc::new(Feed { ring: Mutex::new(ring), next: watch::Sender::new(Some(next)) });
        let subscription = Subscription { feed: feed.clone(), next: feed.next.subscribe() };
        *running = Some(feed.clone());
        tokio::spawn(self.0.clone().run(prev_kv, feed, watch));
        Ok(subscription)
    }
}

impl Shared {
    /// A watch of everything from now on, and where it begins.
    async fn open(&self, prev_kv: bool) -> Result<(Box<dyn KeyWatch>, Revision), Error> {
        let next = Revision(self.ledger.keys(Consistency::Serializable).await?.revision.0 + 1);
        let everything = KeyRange { from: Bytes::new(), to: Some(Bytes::new()) };
        let options = WatchOptions { from: Some(next), prev_kv, ..WatchOptions::new(everything) };
        Ok((self.ledger.watch_with(options).await?, next))
    }

    async fn run(self: Arc<Self>, prev_kv: bool, feed: Arc<Feed>, mut watch: Box<dyn KeyWatch>) {
        loop {
            let item = tokio::select! {
                item = watch.next() => item,
                () = feed.next.closed() => {
                    let mut running = self.running[usize::from(prev_kv)].lock().expect("no holder panics");
                    if feed.next.receiver_count() == 0 {
                        *running = None;
                        return;
                    }
                    continue;
                }
            };
            match item {
                Ok(Some(WatchItem::Events { events, revision })) => {
                    let mut ring = feed.ring.lock().expect("no holder panics");
                    for group in groups(events) {
                        ring.push(group, self.ring_bytes_max);
                    }
                    ring.next = ring.next.max(Revision(revision.0 + 1));
                    let next = ring.next;
                    drop(ring);
                    feed.next.send_replace(Some(next));
                }
                Ok(None) => {
                    // Whoever comes later finds no feed, asks the node, and hears that it stops.
                    *self.running[usize::from(prev_kv)].lock().expect("no holder panics") = None;
                    feed.next.send_replace(None);
                    return;
                }
                Ok(Some(WatchItem::Compacted { .. })) | Err(_) => {
                    if let Err(error) = &item {
                        tracing::warn!(plane = "coordination", %error, "the feed of watches cannot be read and begins anew");
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                    match self.open(prev_kv).await {
                        Ok((anew, next)) => {
                            watch = anew;
                            let mut ring = feed.ring.lock().expect("no holder panics");
                            *ring = Ring { start: next.max(ring.next), next: next.max(ring.next), ..Ring::default() };
                            let next = ring.next;
                            drop(ring);
                            feed.next.send_replace(Some(next));
                        }
                        Err(error) => {
                            tracing::warn!(plane = "coordination", %error, "the feed of watches cannot be opened");
                            tokio::time::sleep(RETRY_PAUSE).await;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buttress_core::ledger::KeyValue;

    fn put(key: &str, revision: u64) -> WatchEvent {
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::from_static(b"v"),
            create_revision: Revision(revision),
            mod_revision: Revision(revision),
            version: 1,
            lease: None,
        };
        WatchEvent { kv, deleted: false, prev: None }
    }

    #[test]
    fn changes_of_one_revision_are_one_group() {
        let groups = groups(vec![put("a", 2), put("b", 2), put("a", 3)]);
        let shape: Vec<_> = groups.iter().map(|g| (g.revision.0, g.events.len())).collect();
        assert_eq!(shape, [(2, 2), (3, 1)]);
    }

    #[test]
    fn the_ring_forgets_whole_revisions_and_says_so() {
        let feed = Feed { ring: Mutex::default(), next: watch::Sender::new(None) };
        let size = groups(vec![put("a", 2)])[0].bytes;
        {
            let mut ring = feed.ring.lock().unwrap();
            (ring.start, ring.next) = (Revision(2), Revision(2));
            for revision in 2..=5 {
                for group in groups(vec![put("a", revision)]) {
                    ring.push(group, 3 * size);
                }
                ring.next = Revision(revision + 1);
            }
        }
        assert!(matches!(feed.read(Revision(2), 1), Read::Behind(Revision(6))));
        let Read::Groups(all, next) = feed.read(Revision(3), usize::MAX) else { panic!("revision 3 is in the ring") };
        assert_eq!((all.len(), next), (3, Revision(6)));
        let Read::Groups(one, next) = feed.read(Revision(4), 1) else { panic!("revision 4 is in the ring") };
        assert_eq!((one.len(), one[0].revision, next), (1, Revision(4), Revision(5)));
        // Nothing yet, and a position ahead of the feed stays where it is.
        assert!(matches!(feed.read(Revision(6), 1), Read::Groups(none, Revision(6)) if none.is_empty()));
        assert!(matches!(feed.read(Revision(9), 1), Read::Groups(none, Revision(9)) if none.is_empty()));
    }
}
