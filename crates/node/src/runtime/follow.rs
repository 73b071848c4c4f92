//! Ranges of keys that somebody follows and that seldom change.
//!
//! A watch of such a range reads what has changed from the store when something has, and holds no queue. Only a change
//! within its range wakes it: on a busy node everything else happens thousands of times a second, and a look for each
//! costs as much as a tenth of the writes themselves.

use std::sync::{Arc, Mutex, Weak};

use buttress_core::{KeyRange, Revision, ledger::KeyValue};
use tokio::sync::watch;

/// A range, and the latest revision that may have changed it.
pub(super) struct Follow {
    range: KeyRange,
    latest: watch::Sender<Revision>,
}

impl Follow {
    fn move_to(&self, revision: Revision) {
        self.latest.send_if_modified(|latest| {
            let moved = *latest < revision;
            *latest = revision.max(*latest);
            moved
        });
    }

    pub fn latest(&self) -> watch::Receiver<Revision> {
        self.latest.subscribe()
    }
}

#[derive(Default)]
pub(super) struct Followed {
    ranges: Mutex<Vec<Weak<Follow>>>,
}

impl Followed {
    /// Follows a range as long as what this gives lives. `now` is asked once nothing can be missed any more.
    pub fn follow(&self, range: KeyRange, now: impl FnOnce() -> Revision) -> Arc<Follow> {
        let follow = Arc::new(Follow { range, latest: watch::Sender::new(Revision(0)) });
        {
            let mut ranges = self.ranges.lock().expect("no holder panics");
            ranges.retain(|range| range.strong_count() > 0);
            ranges.push(Arc::downgrade(&follow));
        }
        follow.move_to(now());
        follow
    }

    /// These keys have changed.
    pub fn changed(&self, kvs: &[KeyValue]) {
        if kvs.is_empty() {
            return;
        }
        for follow in self.ranges.lock().expect("no holder panics").iter().filter_map(Weak::upgrade) {
            if let Some(last) = kvs.iter().rfind(|kv| follow.range.contains(&kv.key)) {
                follow.move_to(last.mod_revision);
            }
        }
    }

    /// Nobody knows what has changed up to here.
    pub fn all_changed(&self, revision: Revision) {
        for follow in self.ranges.lock().expect("no holder panics").iter().filter_map(Weak::upgrade) {
            follow.move_to(revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn kv(key: &'static str, revision: u64) -> KeyValue {
        KeyValue {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::new(),
            create_revision: Revision(revision),
            mod_revision: Revision(revision),
            version: 1,
            lease: None,
        }
    }

    #[test]
    fn only_a_change_within_the_range_wakes_whoever_follows_it() {
        let followed = Followed::default();
        let follow = followed.follow(KeyRange::prefix("a/"), || Revision(5));
        let mut latest = follow.latest();
        assert_eq!(*latest.borrow_and_update(), Revision(5));
        followed.changed(&[kv("b/1", 6)]);
        assert!(!latest.has_changed().unwrap());
        followed.changed(&[kv("a/1", 7), kv("b/2", 7)]);
        assert_eq!(*latest.borrow_and_update(), Revision(7));
        // What is told late changes nothing, and after a snapshot everything may have changed.
        followed.changed(&[kv("a/1", 3)]);
        assert!(!latest.has_changed().unwrap());
        followed.all_changed(Revision(9));
        assert_eq!(*latest.borrow_and_update(), Revision(9));
    }
}
