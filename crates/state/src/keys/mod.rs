//! The key space, in etcd's shape: every change is kept under its revision.
//!
//! The index in memory knows, for every key, at which revisions it changed; the values are rows of
//! [`Table::Keys`], keyed by revision. So a read of the present or of the past is one look into the index and one row
//! per key, a watch from a revision is a scan of rows, and memory does not grow with the size of values.
//!
//! An entry that changes keys takes the next main revision; its changes are numbered by sub-revisions within it. A delete
//! writes a tombstone; a key that is written again starts a new life with version 1. As in etcd, an empty key space is
//! at revision 1, so that 0 can say "does not exist".
//!
//! Compaction (forgetting changes that no read may ask for any more) has its place in [`Keys::compacted`]: reads and
//! watches below it are refused already; no entry moves it yet.

use std::collections::{BTreeMap, BTreeSet};

use buttress_core::{
    Code, DecodeError, Error, KeyRange, LeaseId, Reader, Revision, Store, StoreError, Table, Writer,
    ledger::{KeyEvent, KeyValue, KeyValues},
    limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX},
};
use bytes::Bytes;

use crate::changes::{Changes, scan_all};

/// The revision of an empty key space.
pub const FIRST_REVISION: Revision = Revision(1);

/// Why a read of keys failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("revision {wanted} is gone, history starts after {compacted}")]
    Compacted { wanted: Revision, compacted: Revision },
    #[error("revision {wanted} is in the future, the key space is at {current}")]
    Future { wanted: Revision, current: Revision },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        let code = match error {
            ReadError::Compacted { .. } => Code::COMPACTED,
            ReadError::Future { .. } => Code::BAD_REQUEST,
            ReadError::Store(_) => Code::DISK,
        };
        Error::new(code, error.to_string())
    }
}

/// Changes of a range, whole revisions only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEvents {
    pub events: Vec<KeyEvent>,
    /// Continue from here: everything below was looked at.
    pub next: Revision,
}

/// One change's place: the entry's revision, and its number within the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    main: u64,
    sub: u32,
}

impl Place {
    fn row_key(self) -> Bytes {
        let mut key = [0; 12];
        key[..8].copy_from_slice(&self.main.to_be_bytes());
        key[8..].copy_from_slice(&self.sub.to_be_bytes());
        Bytes::copy_from_slice(&key)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    place: Place,
    put: bool,
}

/// The present of a key that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) create: Revision,
    pub(crate) modified: Revision,
    pub(crate) version: u64,
    pub(crate) lease: Option<LeaseId>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct History {
    live: Option<Live>,
    /// In rising order.
    changes: Vec<Change>,
}

/// A row of [`Table::Keys`].
struct KeyRow {
    key: Bytes,
    /// `None` is a tombstone.
    value: Option<Bytes>,
    create: Revision,
    version: u64,
    lease: Option<LeaseId>,
}

impl KeyRow {
    fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + 32);
        w.bytes(&self.key);
        w.option(self.value.as_ref(), |w, v| w.bytes(v));
        w.varint(self.create.0);
        w.varint(self.version);
        w.option(self.lease.as_ref(), |w, l| w.zigzag(l.0));
        w.finish()
    }

    fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(value);
        let row = Self {
            key: r.bytes("key", KEY_BYTES_MAX)?,
            value: r.option("value", |r| r.bytes("value", VALUE_BYTES_MAX))?,
            create: Revision(r.varint("create revision")?),
            version: r.varint("version")?,
            lease: r.option("lease", |r| r.zigzag("lease").map(LeaseId))?,
        };
        r.end()?;
        Ok(row)
    }
}

fn parse_row(key: &[u8], value: Bytes) -> Result<(Place, KeyRow), StoreError> {
    let bad = |what: String| StoreError(format!("row {} of the key space: {what}", key.escape_ascii()));
    let key: &[u8; 12] = key.try_into().map_err(|_| bad(format!("its key has {} bytes, not 12", key.len())))?;
    let (main, sub) = key.split_at(8);
    let place = Place {
        main: u64::from_be_bytes(main.try_into().expect("eight bytes")),
        sub: u32::from_be_bytes(sub.try_into().expect("four bytes")),
    };
    Ok((place, KeyRow::decode(value).map_err(|error| bad(error.to_string()))?))
}

/// The changes of keys that one entry makes.
pub(crate) struct Step {
    main: u64,
    sub: u32,
    pub(crate) events: Vec<KeyEvent>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Keys {
    index: BTreeMap<Bytes, History>,
    attached: BTreeMap<LeaseId, BTreeSet<Bytes>>,
    pub(crate) revision: Revision,
    pub(crate) compacted: Revision,
}

impl Default for Keys {
    fn default() -> Self {
        Self { index: BTreeMap::new(), attached: BTreeMap::new(), revision: FIRST_REVISION, compacted: Revision(0) }
    }
}

impl Keys {
    pub(crate) fn open<S: Store>(store: &S, revision: Revision, compacted: Revision) -> Result<Self, StoreError> {
        let mut keys = Self { revision, compacted, ..Self::default() };
        scan_all(store, Table::Keys, &[], None, |key, value| {
            let (place, row) = parse_row(key, value)?;
            keys.note(place, &row);
            Ok(())
        })?;
        Ok(keys)
    }

    pub(crate) fn begin(&self) -> Step {
        Step { main: self.revision.0 + 1, sub: 0, events: Vec::new() }
    }

    pub(crate) fn finish(&mut self, step: &Step) {
        if step.sub > 0 {
            self.revision = Revision(step.main);
        }
    }

    /// Enters a change into the index.
    fn note(&mut self, place: Place, row: &KeyRow) {
        let history = match self.index.get_mut(&row.key) {
            Some(history) => history,
            // A copy, so that the index does not keep whole entries or rows in memory for the sake of their keys.
            None => self.index.entry(Bytes::copy_from_slice(&row.key)).or_default(),
        };
        debug_assert!(history.changes.last().is_none_or(|last| last.place < place), "changes of a key only rise");
        let before = history.live.and_then(|live| live.lease);
        history.changes.push(Change { place, put: row.value.is_some() });
        history.live = row.value.is_some().then_some(Live {
            create: row.create,
            modified: Revision(place.main),
            version: row.version,
            lease: row.lease,
        });
        if before != row.lease {
            if let Some(lease) = before {
                let keys = self.attached.get_mut(&lease).expect("the key was attached to its lease");
                keys.remove(&row.key);
                if keys.is_empty() {
                    self.attached.remove(&lease);
                }
            }
            if let Some(lease) = row.lease {
                self.attached.entry(lease).or_default().insert(Bytes::copy_from_slice(&row.key));
            }
        }
    }

    fn change(&mut self, step: &mut Step, row: KeyRow, changes: &mut Changes) {
        let place = Place { main: step.main, sub: step.sub };
        step.sub += 1;
        changes.put(Table::Keys, place.row_key(), row.encode());
        self.note(place, &row);
        step.events.push(KeyEvent { revision: Revision(step.main), key: row.key, value: row.value });
    }

    pub(crate) fn put(
        &mut self,
        step: &mut Step,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
        changes: &mut Changes,
    ) {
        let (create, version) = match self.live(&key) {
            Some(live) => (live.create, live.version + 1),
            None => (Revision(step.main), 1),
        };
        self.change(step, KeyRow { key, value: Some(value), create, version, lease }, changes);
    }

    /// Deletes the key where it exists; otherwise nothing changes.
    pub(crate) fn delete(&mut self, step: &mut Step, key: Bytes, changes: &mut Changes) {
        if self.live(&key).is_some() {
            self.change(step, KeyRow { key, value: None, create: Revision(0), version: 0, lease: None }, changes);
        }
    }

    /// Deletes every key of a lease that ends.
    pub(crate) fn end_lease(&mut self, step: &mut Step, lease: LeaseId, changes: &mut Changes) {
        let Some(keys) = self.attached.get(&lease) else { return };
        for key in keys.iter().cloned().collect::<Vec<_>>() {
            self.delete(step, key, changes);
        }
    }

    pub(crate) fn live(&self, key: &[u8]) -> Option<Live> {
        self.index.get(key)?.live
    }

    pub(crate) fn attached(&self) -> impl Iterator<Item = (LeaseId, &BTreeSet<Bytes>)> {
        self.attached.iter().map(|(lease, keys)| (*lease, keys))
    }

    pub fn attached_to(&self, lease: LeaseId) -> impl Iterator<Item = &Bytes> {
        self.attached.get(&lease).into_iter().flatten()
    }

    /// Keys that exist now.
    pub(crate) fn all_live(&self) -> impl Iterator<Item = (&Bytes, Live)> {
        self.index.iter().filter_map(|(key, history)| Some((key, history.live?)))
    }

    /// The value that a key has now.
    pub(crate) fn value<S: Store>(&self, store: &S, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.index.get(key).and_then(|history| history.changes.last()) {
            Some(change) if change.put => Ok(Self::row(store, change.place)?.value),
            _ => Ok(None),
        }
    }

    fn row<S: Store>(store: &S, place: Place) -> Result<KeyRow, StoreError> {
        let key = place.row_key();
        match store.get(Table::Keys, &key)? {
            Some(value) => parse_row(&key, value).map(|(_, row)| row),
            None => Err(StoreError(format!("the row of revision {}.{} is missing", place.main, place.sub))),
        }
    }

    fn check_revision(&self, at: Revision) -> Result<(), ReadError> {
        if at > self.revision {
            return Err(ReadError::Future { wanted: at, current: self.revision });
        }
        if at < self.compacted {
            return Err(ReadError::Compacted { wanted: at, compacted: self.compacted });
        }
        Ok(())
    }

    pub(crate) fn range<S: Store>(
        &self,
        store: &S,
        range: &KeyRange,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<KeyValues, ReadError> {
        let at = at.unwrap_or(self.revision);
        self.check_revision(at)?;
        let mut found = KeyValues { revision: at, kvs: Vec::new(), more: false };
        for (key, history) in self.select(range) {
            let upto = history.changes.partition_point(|change| change.place.main <= at.0);
            let Some(change) = history.changes[..upto].last().filter(|change| change.put) else { continue };
            if found.kvs.len() == limit {
                found.more = true;
                break;
            }
            let row = Self::row(store, change.place)?;
            found.kvs.push(KeyValue {
                key: key.clone(),
                value: row.value.ok_or_else(|| StoreError("a tombstone where a value was noted".into()))?,
                create_revision: row.create,
                mod_revision: Revision(change.place.main),
                version: row.version,
            });
        }
        Ok(found)
    }

    fn select<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = (&'a Bytes, &'a History)> {
        self.index.range(range.from.clone()..).take_while(|(key, _)| range.contains(key))
    }

    /// The changes of a range from a revision on, oldest first; stops after the revision that reaches `limit`.
    pub(crate) fn events_since<S: Store>(
        &self,
        store: &S,
        range: &KeyRange,
        from: Revision,
        limit: usize,
    ) -> Result<KeyEvents, ReadError> {
        if from <= self.compacted && self.compacted > Revision(0) {
            return Err(ReadError::Compacted { wanted: from, compacted: self.compacted });
        }
        let end = Revision(self.revision.0 + 1);
        let mut found = KeyEvents { events: Vec::new(), next: from.max(Revision(1)) };
        let to = Place { main: end.0, sub: 0 }.row_key();
        let mut seek = Place { main: found.next.0, sub: 0 }.row_key().to_vec();
        while found.next < end {
            let rows = store.scan(Table::Keys, &seek, Some(&to), EVENT_ROWS)?;
            let Some((last, _)) = rows.last() else { break };
            seek = last.to_vec();
            seek.push(0);
            for (key, value) in rows {
                let (place, row) = parse_row(&key, value)?;
                if place.main > found.next.0 {
                    found.next = Revision(place.main);
                    if found.events.len() >= limit {
                        return Ok(found);
                    }
                }
                if range.contains(&row.key) {
                    found.events.push(KeyEvent { revision: Revision(place.main), key: row.key, value: row.value });
                }
            }
        }
        found.next = found.next.max(end);
        Ok(found)
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = (&Bytes, Vec<(u64, u32, bool)>)> {
        self.index
            .iter()
            .map(|(key, history)| (key, history.changes.iter().map(|c| (c.place.main, c.place.sub, c.put)).collect()))
    }
}

/// Rows read at a time for a watch that catches up.
const EVENT_ROWS: usize = 256;
