//! The latest changes of keys, in memory, for everybody who watches.
//!
//! A watcher that keeps up must cost nothing but the look: with a thousand of them on one prefix, a read of the store for
//! each would be a thousand reads for one change. So the node puts what it applies into one ring, and every watcher takes
//! from it what it wants, from its own place on. A watcher that is behind the ring reads history from the store until it
//! has caught up; it holds no queue, so a slow one never grows memory. Where nobody watches, nothing is kept.
//!
//! What was there before a change is read from the store once, when the change is applied, and only while somebody wants it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use buttress_core::{
    Revision, StoreError,
    ledger::{KeyValue, WatchEvent, WatchOptions},
};
use bytes::Bytes;

/// Bytes that the ring keeps, counted as [`cost`] does: at 300 bytes a change, the last hundred thousand.
const RING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Of large changes fewer are given at a time: a limit of 1,024 is one of 512 KiB too, counted as [`cost`] does.
const EVENT_BYTES: usize = 512;

/// The changes of one revision.
struct Changes {
    revision: Revision,
    events: Vec<WatchEvent>,
    /// What was there before was looked up.
    with_prev: bool,
    bytes: usize,
}

#[derive(Default)]
struct Kept {
    /// One for each revision, without gaps.
    changes: VecDeque<Changes>,
    bytes: usize,
}

impl Kept {
    /// The first revision that is kept, and the one that comes next.
    fn span(&self) -> Option<(Revision, Revision)> {
        let (first, last) = (self.changes.front()?, self.changes.back()?);
        Some((first.revision, Revision(last.revision.0 + 1)))
    }
}

#[derive(Default)]
pub(super) struct Ring {
    kept: Mutex<Kept>,
    watchers: AtomicUsize,
    with_prev: AtomicUsize,
}

/// Somebody watches, as long as it lives.
pub(super) struct Watching {
    ring: Arc<Ring>,
    prev: bool,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.ring.watchers.fetch_sub(1, Ordering::Relaxed);
        self.ring.with_prev.fetch_sub(self.prev.into(), Ordering::Relaxed);
    }
}

impl Ring {
    pub fn watching(self: &Arc<Self>, prev: bool) -> Watching {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        self.with_prev.fetch_add(prev.into(), Ordering::Relaxed);
        Watching { ring: self.clone(), prev }
    }

    /// Takes in the changes that an applied entry made, all of one revision. `was` finds what a key was at a revision.
    pub fn push(&self, kvs: &[KeyValue], was: impl Fn(&[u8], Revision) -> Result<Option<KeyValue>, StoreError>) {
        let Some(revision) = kvs.first().map(|kv| kv.mod_revision) else { return };
        let mut kept = self.kept.lock().expect("no holder panics");
        if self.watchers.load(Ordering::Relaxed) == 0 {
            *kept = Kept::default();
            return;
        }
        // After a snapshot there may be a gap; who waits on its other side reads history.
        if kept.span().is_some_and(|(_, next)| next != revision) {
            *kept = Kept::default();
        }
        let mut with_prev = self.with_prev.load(Ordering::Relaxed) > 0;
        let mut bytes = 0;
        let mut events = Vec::with_capacity(kvs.len());
        for kv in kvs {
            let deleted = kv.version == 0;
            let mut prev = None;
            if with_prev && (deleted || kv.version > 1) {
                match was(&kv.key, Revision(revision.0.saturating_sub(1))) {
                    Ok(found) => prev = found,
                    // Whoever wants it reads history and is told what is wrong.
                    Err(_) => with_prev = false,
                }
            }
            bytes += cost(kv) + prev.as_ref().map_or(0, cost);
            // Copies, so that the ring keeps no whole entries for the sake of small values.
            let kv = KeyValue {
                key: Bytes::copy_from_slice(&kv.key),
                value: Bytes::copy_from_slice(&kv.value),
                ..kv.clone()
            };
            events.push(WatchEvent { kv, deleted, prev });
        }
        kept.bytes += bytes;
        kept.changes.push_back(Changes { revision, events, with_prev, bytes });
        while kept.bytes > RING_BYTES_MAX
            && let Some(oldest) = kept.changes.pop_front()
        {
            kept.bytes -= oldest.bytes;
        }
    }

    /// What a watch wants from a revision on, whole revisions up to about `limit` changes of ordinary size, and the revision that comes next.
    /// `None` where the ring does not have it.
    pub fn read(&self, options: &WatchOptions, from: Revision, limit: usize) -> Option<(Vec<WatchEvent>, Revision)> {
        let kept = self.kept.lock().expect("no holder panics");
        let (first, next) = kept.span()?;
        if from < first || from >= next {
            return None;
        }
        let mut events = Vec::new();
        let mut bytes = 0;
        let mut upto = from;
        for changes in kept.changes.range((from.0 - first.0) as usize..) {
            if events.len() >= limit || bytes >= limit.saturating_mul(EVENT_BYTES) {
                break;
            }
            if options.prev_kv && !changes.with_prev {
                // What is before it may be given; the rest comes out of history.
                return (upto > from).then_some((events, upto));
            }
            let before = events.len();
            events.extend(changes.events.iter().filter(|event| wanted(options, event)).map(|event| WatchEvent {
                kv: event.kv.clone(),
                deleted: event.deleted,
                prev: event.prev.clone().filter(|_| options.prev_kv),
            }));
            if events.len() > before {
                bytes += changes.bytes;
            }
            upto = Revision(changes.revision.0 + 1);
        }
        Some((events, upto))
    }
}

/// Whether a change in a watch's range is one that it asked for.
pub(super) fn passes(options: &WatchOptions, event: &WatchEvent) -> bool {
    if event.deleted { !options.no_delete } else { !options.no_put }
}

fn wanted(options: &WatchOptions, event: &WatchEvent) -> bool {
    options.range.contains(&event.kv.key) && passes(options, event)
}

/// A key and its value, with the event and its place.
fn cost(kv: &KeyValue) -> usize {
    const EVENT_BYTES: usize = 256;
    EVENT_BYTES + kv.key.len() + kv.value.len()
}

#[cfg(test)]
mod tests {
    use buttress_core::KeyRange;

    use super::*;

    fn kv(key: &'static str, revision: u64, version: u64) -> KeyValue {
        KeyValue {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from(format!("v{revision}")),
            create_revision: Revision(revision + 1 - version),
            mod_revision: Revision(revision),
            version,
            lease: None,
        }
    }

    fn never(_: &[u8], _: Revision) -> Result<Option<KeyValue>, StoreError> {
        panic!("nobody wants what was before")
    }

    fn keys(found: Option<(Vec<WatchEvent>, Revision)>) -> Option<(Vec<String>, u64)> {
        let (events, next) = found?;
        let name = |event: &WatchEvent| format!("{}@{}", event.kv.key.escape_ascii(), event.kv.mod_revision);
        Some((events.iter().map(name).collect(), next.0))
    }

    #[test]
    fn nothing_is_kept_where_nobody_watches() {
        let ring = Arc::new(Ring::default());
        let all = WatchOptions::new(KeyRange::prefix(""));
        ring.push(&[kv("a", 2, 1)], never);
        assert_eq!(ring.read(&all, Revision(2), 9), None);
        let watching = ring.watching(false);
        ring.push(&[kv("a", 3, 1)], never);
        assert_eq!(keys(ring.read(&all, Revision(3), 9)), Some((vec!["a@3".into()], 4)));
        drop(watching);
        ring.push(&[kv("a", 4, 2)], never);
        assert_eq!(ring.read(&all, Revision(4), 9), None);
    }

    #[test]
    fn a_watch_takes_its_range_and_whole_revisions() {
        let ring = Arc::new(Ring::default());
        let _watching = ring.watching(false);
        for revision in 2..6 {
            ring.push(&[kv("a", revision, revision - 1), kv("b", revision, revision - 1)], never);
        }
        let some = WatchOptions::new(KeyRange::key("b"));
        let all = WatchOptions::new(KeyRange::prefix(""));
        assert_eq!(keys(ring.read(&some, Revision(4), 9)), Some((vec!["b@4".into(), "b@5".into()], 6)));
        let three = vec!["a@2".into(), "b@2".into(), "a@3".into(), "b@3".into()];
        assert_eq!(keys(ring.read(&all, Revision(2), 3)), Some((three, 4)));
        let none = WatchOptions::new(KeyRange::key("c"));
        assert_eq!(keys(ring.read(&none, Revision(2), 3)), Some((vec![], 6)), "there is nothing for it up to there");
        for (from, why) in [(1, "behind the ring"), (6, "not there yet")] {
            assert_eq!(ring.read(&all, Revision(from), 9), None, "{why}");
        }
        // A snapshot was installed in between.
        ring.push(&[kv("a", 9, 1)], never);
        assert_eq!(ring.read(&all, Revision(5), 9), None);
        assert_eq!(keys(ring.read(&all, Revision(9), 9)), Some((vec!["a@9".into()], 10)));
    }

    #[test]
    fn what_was_before_is_there_for_those_who_came_in_time() {
        let ring = Arc::new(Ring::default());
        let plain = ring.watching(false);
        ring.push(&[kv("a", 2, 1)], never);
        let with_prev = ring.watching(true);
        let was = |key: &[u8], at: Revision| {
            assert_eq!((key, at), (&b"a"[..], Revision(2)));
            Ok(Some(kv("a", 2, 1)))
        };
        ring.push(&[kv("a", 3, 2), kv("b", 3, 1)], was);
        let options = WatchOptions { prev_kv: true, ..WatchOptions::new(KeyRange::prefix("")) };
        assert_eq!(ring.read(&options, Revision(2), 9), None, "the change at 2 is without");
        let (events, next) = ring.read(&options, Revision(3), 9).expect("it is kept");
        assert_eq!(next, Revision(4));
        assert_eq!(events.iter().map(|event| event.prev.clone()).collect::<Vec<_>>(), [Some(kv("a", 2, 1)), None]);
        drop((plain, with_prev));
    }

    #[test]
    fn the_ring_is_bounded_by_bytes() {
        let ring = Arc::new(Ring::default());
        let _watching = ring.watching(false);
        let value = Bytes::from(vec![0; 1024 * 1024]);
        for revision in 2..100 {
            ring.push(&[KeyValue { value: value.clone(), ..kv("a", revision, revision - 1) }], never);
        }
        let kept = ring.kept.lock().expect("no holder panics");
        assert!(kept.bytes <= RING_BYTES_MAX && kept.changes.len() == 31, "{} in {}", kept.changes.len(), kept.bytes);
    }
}
