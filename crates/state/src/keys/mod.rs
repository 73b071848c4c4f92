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
//! Compaction forgets changes that nobody may ask for any more. An entry names a revision; from then on reads and watches
//! below it are refused, and what none at it or later can see is *garbage*: a value that was overwritten or deleted at or
//! below it, and a tombstone below it. What changed at the very revision stays, tombstones and all, because a watch may begin
//! there, as in etcd since 3.6. Garbage lies in two queues, in the order of the compactions that it waits for, so sweeping is
//! taking from their fronts: it costs as much as it frees, an entry sweeps a bounded number of rows, and the entries after it
//! go on where it stopped. Rows that still wait are no state of their own: a machine that is opened from its rows finds the
//! same queues.

pub(crate) mod txn;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
};

use buttress_core::{
    Code, DecodeError, Error, KeyRange, LeaseId, Mutant, Reader, Revision, Store, StoreError, Table, Writer,
    ledger::{KeyEvent, KeyValue, KeyValues, WatchEvent},
    limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX},
    mutant,
    store::{ByteView, RowKey},
};
use bytes::Bytes;

use crate::{
    changes::{Changes, scan_all},
    machine::Fnv,
};

/// The revision of an empty key space.
pub const FIRST_REVISION: Revision = Revision(1);

/// Why a read of keys failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("revision {wanted} is gone, history starts at {compacted}")]
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
            ReadError::Future { .. } => Code::REVISION_FUTURE,
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

/// Changes of a range with all that is known of them, whole revisions only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub events: Vec<WatchEvent>,
    /// Continue from here: everything below was looked at.
    pub next: Revision,
}

/// How much one look into the key space takes at most, so that a host can do other things between two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    /// Keys given.
    pub keys: usize,
    /// Keys looked at, whether they are given, counted or left out.
    pub looks: usize,
    /// Bytes of keys and values given; the first one is given however large it is.
    pub bytes: usize,
}

impl PageLimits {
    pub const NONE: Self = Self { keys: usize::MAX, looks: usize::MAX, bytes: usize::MAX };
}

/// A part of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub kvs: Vec<KeyValue>,
    /// Keys that were there, given or not.
    pub count: u64,
    /// Where the next page begins; `None` where this was the last one.
    pub next: Option<Bytes>,
}

/// One change's place: the entry's revision, and its number within the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    main: u64,
    pub(crate) sub: u32,
}

impl Place {
    fn row_key(self) -> RowKey {
        let mut key = [0; 12];
        key[..8].copy_from_slice(&self.main.to_be_bytes());
        key[8..].copy_from_slice(&self.sub.to_be_bytes());
        RowKey::new(&key)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    // Side by side and not as a place, which would make it half as large again: a key may have very many.
    main: u64,
    sub: u32,
    put: bool,
}

impl Change {
    fn place(self) -> Place {
        Place { main: self.main, sub: self.sub }
    }
}

impl History {
    /// The change that made what was there at a revision; `None` where nothing was.
    fn at(&self, at: Revision) -> Option<Place> {
        let last = match self.changes.back() {
            Some(last) if last.main <= at.0 => last,
            _ => {
                let upto = self.changes.partition_point(|change| change.main <= at.0);
                &self.changes[upto.checked_sub(1)?]
            }
        };
        last.put.then_some(last.place())
    }
}

/// The present of a key that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) create: Revision,
    pub(crate) modified: Revision,
    pub(crate) version: u64,
    pub(crate) lease: Option<LeaseId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct History {
    live: Option<Live>,
    /// In rising order.
    changes: VecDeque<Change>,
}

/// A change that a compaction to the revision `due` or later may forget.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Garbage {
    due: u64,
    place: Place,
    key: ByteView,
}

/// A row of [`Table::Keys`].
pub(crate) struct KeyRow {
    pub(crate) key: Bytes,
    /// `None` is a tombstone.
    pub(crate) value: Option<Bytes>,
    create: Revision,
    version: u64,
    lease: Option<LeaseId>,
}

impl KeyRow {
    pub(crate) fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }

    /// The key as this change left it; of a delete, only the key and the revision.
    pub(crate) fn into_kv(self, place: Place) -> KeyValue {
        KeyValue {
            key: self.key,
            value: self.value.unwrap_or_default(),
            create_revision: self.create,
            mod_revision: Revision(place.main),
            version: self.version,
            lease: self.lease,
        }
    }

    fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + 32);
        w.bytes(&self.key);
        w.option(self.value.as_ref(), |w, v| w.bytes(v));
        w.varint(self.create.0);
        w.varint(self.version);
        w.option(self.lease.as_ref(), |w, l| w.zigzag(l.0));
        w.finish()
    }

    pub(crate) fn decode(value: Bytes) -> Result<Self, DecodeError> {
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

pub(crate) fn parse_row(key: &[u8], value: Bytes) -> Result<(Place, KeyRow), StoreError> {
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
    /// For each change the key as it was left.
    pub(crate) kvs: Vec<KeyValue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Its keys are copies, as those in the queues and of the leases are: none keeps an entry or a row in memory for the sake of
    /// its key. Those of up to 20 bytes lie in the tree's nodes, so a look reads nothing else.
    index: BTreeMap<ByteView, History>,
    attached: BTreeMap<LeaseId, BTreeSet<ByteView>>,
    /// Values that a later revision overwrote or deleted, in the order of that revision, which is when they are due.
    garbage: VecDeque<Garbage>,
    /// Tombstones, and values that their own revision overwrote: due one revision later than they were written.
    late: VecDeque<Garbage>,
    /// Keys that exist now.
    living: u64,
    pub(crate) revision: Revision,
    /// Reads below this revision are refused.
    pub(crate) compacted: Revision,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            index: BTreeMap::new(),
            attached: BTreeMap::new(),
            garbage: VecDeque::new(),
            late: VecDeque::new(),
            living: 0,
            revision: FIRST_REVISION,
            compacted: Revision(0),
        }
    }
}

impl Keys {
    pub(crate) fn open<S: Store>(store: &S, revision: Revision, compacted: Revision) -> Result<Self, StoreError> {
        let mut keys = Self { revision, compacted, ..Self::default() };
        scan_all(store, Table::Keys, &[], None, |key, value| {
            let (place, row) = parse_row(key, value)?;
            keys.note(place, row.key.clone(), |_, _| row);
            Ok(())
        })?;
        Ok(keys)
    }

    pub(crate) fn begin(&self) -> Step {
        Step { main: self.revision.0 + 1, sub: 0, kvs: Vec::new() }
    }

    pub(crate) fn finish(&mut self, step: &Step) {
        if step.sub > 0 {
            self.revision = Revision(step.main);
        }
    }

    /// Enters a change into the index, and gives the row that `make` makes of the key and what is there of it.
    fn note(&mut self, place: Place, key: Bytes, make: impl FnOnce(Bytes, Option<Live>) -> KeyRow) -> KeyRow {
        // Looked up once: in a large index the look costs most of a change.
        let entry = self.index.entry(ByteView::new(&key));
        let known = entry.key().clone();
        let history = entry.or_default();
        let row = make(key, history.live);
        debug_assert!(history.changes.back().is_none_or(|last| last.place() < place), "changes of a key only rise");
        let before = history.live.and_then(|live| live.lease);
        if let Some(last) = history.changes.back().filter(|last| last.put) {
            let (queue, due) = match last.main {
                main if main < place.main => (&mut self.garbage, place.main),
                // A revision that comes again can only be one of rows that no machine wrote.
                main => (&mut self.late, main.saturating_add(1)),
            };
            queue.push_back(Garbage { due, place: last.place(), key: known.clone() });
        }
        if row.value.is_none() {
            self.late.push_back(Garbage { due: place.main.saturating_add(1), place, key: known.clone() });
        }
        history.changes.push_back(Change { main: place.main, sub: place.sub, put: row.value.is_some() });
        match (history.live.is_some(), row.value.is_some()) {
            (false, true) => self.living += 1,
            (true, false) => self.living -= 1,
            _ => {}
        }
        history.live = row.value.is_some().then_some(Live {
            create: row.create,
            modified: Revision(place.main),
            version: row.version,
            lease: row.lease,
        });
        if before != row.lease {
            if let Some(lease) = before {
                let keys = self.attached.get_mut(&lease).expect("the key was attached to its lease");
                keys.remove(&known);
                if keys.is_empty() {
                    self.attached.remove(&lease);
                }
            }
            if let Some(lease) = row.lease {
                self.attached.entry(lease).or_default().insert(known);
            }
        }
        row
    }

    fn change(
        &mut self,
        step: &mut Step,
        key: Bytes,
        make: impl FnOnce(Bytes, Option<Live>) -> KeyRow,
        changes: &mut Changes,
    ) {
        let place = Place { main: step.main, sub: step.sub };
        step.sub += 1;
        let row = self.note(place, key, make);
        changes.put(Table::Keys, place.row_key(), row.encode());
        step.kvs.push(row.into_kv(place));
    }

    pub(crate) fn put(
        &mut self,
        step: &mut Step,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
        changes: &mut Changes,
    ) {
        let new = Revision(step.main);
        let make = |key, live: Option<Live>| {
            let (create, version) = live.map_or((new, 1), |live| (live.create, live.version + 1));
            KeyRow { key, value: Some(value), create, version, lease }
        };
        self.change(step, key, make, changes);
    }

    /// Deletes the key where it exists; otherwise nothing changes.
    pub(crate) fn delete(&mut self, step: &mut Step, key: Bytes, changes: &mut Changes) {
        if self.live(&key).is_some() {
            let make = |key, _| KeyRow { key, value: None, create: Revision(0), version: 0, lease: None };
            self.change(step, key, make, changes);
        }
    }

    /// Deletes every key of a lease that ends.
    pub(crate) fn end_lease(&mut self, step: &mut Step, lease: LeaseId, changes: &mut Changes) {
        let Some(keys) = self.attached.get(&lease) else { return };
        if mutant::active(Mutant::LeaseKeepsKeys) {
            return;
        }
        for key in keys.iter().cloned().collect::<Vec<_>>() {
            self.delete(step, Bytes::copy_from_slice(&key), changes);
        }
    }

    /// The queue with the first garbage. Of what is due at once the late comes first: it is the older change of a key.
    fn first_garbage(&mut self) -> &mut VecDeque<Garbage> {
        match (self.late.front(), self.garbage.front()) {
            (Some(late), Some(garbage)) if late.due > garbage.due => &mut self.garbage,
            (None, _) => &mut self.garbage,
            _ => &mut self.late,
        }
    }

    /// Forgets what nobody at `compacted` or later can see, at most `limit` changes; the oldest first.
    pub(crate) fn sweep(&mut self, limit: usize, changes: &mut Changes) {
        for _ in 0..limit {
            let compacted = self.compacted.0;
            let Some(Garbage { place, key, .. }) = self.first_garbage().pop_front_if(|first| first.due <= compacted)
            else {
                return;
            };
            changes.delete(Table::Keys, place.row_key());
            let history = self.index.get_mut(&key).expect("a change that was not swept is in the index");
            // Garbage of a key comes up in the order of its changes.
            let swept = history.changes.pop_front().expect("a change that was not swept is in the index");
            assert_eq!(swept.place(), place, "what is swept is the oldest change of its key");
            if history.changes.is_empty() {
                self.index.remove(&key);
            }
        }
    }

    /// Whether changes are left that nobody can see.
    pub fn unswept(&self) -> bool {
        [&self.garbage, &self.late].iter().any(|queue| queue.front().is_some_and(|first| first.due <= self.compacted.0))
    }

    pub(crate) fn live(&self, key: &[u8]) -> Option<Live> {
        self.index.get(key)?.live
    }

    pub(crate) fn attached(&self) -> impl Iterator<Item = (LeaseId, &BTreeSet<ByteView>)> {
        self.attached.iter().map(|(lease, keys)| (*lease, keys))
    }

    pub fn attached_to(&self, lease: LeaseId) -> impl Iterator<Item = &ByteView> {
        self.attached.get(&lease).into_iter().flatten()
    }

    /// Keys that exist now.
    pub(crate) fn all_live(&self) -> impl Iterator<Item = (&ByteView, Live)> {
        self.index.iter().filter_map(|(key, history)| Some((key, history.live?)))
    }

    /// The value that a key has now.
    pub(crate) fn value<S: Store>(&self, store: &S, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.index.get(key).and_then(|history| history.changes.back()) {
            Some(change) if change.put => Ok(Self::row(store, change.place())?.value),
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
            let Some(place) = history.at(at) else { continue };
            if found.kvs.len() == limit {
                found.more = true;
                break;
            }
            found.kvs.push(self.kv(store, key, history, place, true)?);
        }
        Ok(found)
    }

    /// What the change at `place` left of the key. Without values, the present needs no row.
    fn kv<S: Store>(
        &self,
        store: &S,
        key: &ByteView,
        history: &History,
        place: Place,
        values: bool,
    ) -> Result<KeyValue, StoreError> {
        if let (false, Some(live)) = (values, history.live)
            && live.modified.0 == place.main
        {
            return Ok(KeyValue {
                key: Bytes::copy_from_slice(key),
                value: Bytes::new(),
                create_revision: live.create,
                mod_revision: live.modified,
                version: live.version,
                lease: live.lease,
            });
        }
        let row = Self::row(store, place)?;
        if row.value.is_none() {
            return Err(StoreError("a tombstone where a value was noted".into()));
        }
        let kv = row.into_kv(place);
        // Key and value are parts of one row. Without the value, the key does not keep the row.
        if values { Ok(kv) } else { Ok(KeyValue { key: Bytes::copy_from_slice(key), value: Bytes::new(), ..kv }) }
    }

    /// A part of a range as it was at a revision: keys up to the limits, and how many more there were.
    pub(crate) fn page<S: Store>(
        &self,
        store: &S,
        range: &KeyRange,
        at: Revision,
        values: bool,
        limits: PageLimits,
    ) -> Result<Page, ReadError> {
        self.check_revision(at)?;
        let mut page = Page::default();
        let (mut looks, mut bytes) = (0, 0);
        for (key, history) in self.select(range) {
            if looks == limits.looks || bytes >= limits.bytes {
                page.next = Some(Bytes::copy_from_slice(key));
                break;
            }
            looks += 1;
            let Some(place) = history.at(at) else { continue };
            page.count += 1;
            if page.kvs.len() < limits.keys {
                let kv = self.kv(store, key, history, place, values)?;
                bytes += txn::cost(&kv);
                page.kvs.push(kv);
            }
        }
        Ok(page)
    }

    /// What a key was at a revision; `None` also where history is gone.
    pub(crate) fn was<S: Store>(&self, store: &S, key: &[u8], at: Revision) -> Result<Option<KeyValue>, StoreError> {
        if self.check_revision(at).is_err() {
            return Ok(None);
        }
        let Some((key, history)) = self.index.get_key_value(key) else { return Ok(None) };
        history.at(at).map(|place| self.kv(store, key, history, place, true)).transpose()
    }

    fn select<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = (&'a ByteView, &'a History)> {
        self.index
            .range::<[u8], _>((Bound::Included(&range.from[..]), Bound::Unbounded))
            .take_while(|(key, _)| range.contains(key))
    }

    /// The changes of a range from a revision on, oldest first; stops after the revision that reaches `limit`,
    /// or as many times [`EVENT_BYTES`].
    pub(crate) fn events_since<S: Store>(
        &self,
        store: &S,
        range: &KeyRange,
        from: Revision,
        limit: usize,
    ) -> Result<KeyEvents, ReadError> {
        let mut events = Vec::new();
        let next = self.changes_since(store, from, (limit, usize::MAX), |place, row| {
            if !range.contains(&row.key) {
                return Ok(None);
            }
            let bytes = row.bytes();
            events.push(KeyEvent { revision: Revision(place.main), key: row.key, value: row.value });
            Ok(Some(bytes))
        })?;
        Ok(KeyEvents { events, next })
    }

    /// As [`Self::events_since`], with all that is known of the changes, and with what was there before each of them where
    /// `prev` asks for it. Looks at about `looks` changes, wanted or not.
    pub(crate) fn changed_since<S: Store>(
        &self,
        store: &S,
        range: &KeyRange,
        from: Revision,
        (limit, looks): (usize, usize),
        prev: bool,
    ) -> Result<Changed, ReadError> {
        let mut events = Vec::new();
        let next = self.changes_since(store, from, (limit, looks), |place, row| {
            if !range.contains(&row.key) {
                return Ok(None);
            }
            let before = if prev { self.was(store, &row.key, Revision(place.main.saturating_sub(1)))? } else { None };
            let bytes = row.bytes() + before.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
            let deleted = row.value.is_none();
            events.push(WatchEvent { kv: row.into_kv(place), deleted, prev: before });
            Ok(Some(bytes))
        })?;
        Ok(Changed { events, next })
    }

    /// Hands every change from a revision on to `each`, which says how many bytes it takes where it counts for `limit`; gives
    /// the revision that comes next. Stops only between revisions.
    fn changes_since<S: Store>(
        &self,
        store: &S,
        from: Revision,
        (limit, looks): (usize, usize),
        mut each: impl FnMut(Place, KeyRow) -> Result<Option<usize>, StoreError>,
    ) -> Result<Revision, ReadError> {
        if from < self.compacted {
            return Err(ReadError::Compacted { wanted: from, compacted: self.compacted });
        }
        let end = Revision(self.revision.0 + 1);
        let mut next = from.max(Revision(1));
        let (mut taken, mut bytes, mut looked) = (0, 0, 0);
        let bytes_max = limit.saturating_mul(EVENT_BYTES);
        let to = Place { main: end.0, sub: 0 }.row_key();
        let mut seek = Place { main: next.0, sub: 0 }.row_key().to_vec();
        while next < end {
            let rows = store.scan(Table::Keys, &seek, Some(&to), EVENT_ROWS)?;
            let Some((last, _)) = rows.last() else { break };
            seek = last.to_vec();
            seek.push(0);
            for (key, value) in rows {
                let (place, row) = parse_row(&key, value)?;
                if place.main > next.0 {
                    next = Revision(place.main);
                    if taken >= limit || bytes >= bytes_max || looked >= looks {
                        if mutant::active(Mutant::WatchSkips) {
                            next = Revision(place.main + 1);
                        }
                        return Ok(next);
                    }
                }
                looked += 1;
                if let Some(more) = each(place, row)? {
                    taken += 1;
                    bytes += more;
                }
            }
        }
        next = next.max(end);
        if mutant::active(Mutant::WatchRepeats) && from.0 + 1 < end.0 && taken > 0 {
            next = Revision(next.0 - 1);
        }
        Ok(next)
    }

    /// Hashes what reads from the last compaction up to a revision can see, the keys from `range.from` on, at most `looks`
    /// of them. The hashes of all pages, put together by exclusive or, are that of the range. How far rows are swept makes
    /// no difference.
    pub(crate) fn hash_page<S: Store>(
        &self,
        store: &S,
        range: &KeyRange,
        at: Revision,
        looks: usize,
    ) -> Result<(u64, Option<Bytes>), ReadError> {
        self.check_revision(at)?;
        let mut sum = 0;
        for (looked, (key, history)) in self.select(range).enumerate() {
            if looked == looks {
                return Ok((sum, Some(Bytes::copy_from_slice(key))));
            }
            let older = history.changes.partition_point(|change| change.main < self.compacted.0);
            let changed_there = history.changes.get(older).is_some_and(|change| change.main == self.compacted.0);
            let first = match older.checked_sub(1) {
                Some(last) if history.changes[last].put && !changed_there => last,
                _ => older,
            };
            let changes = history.changes.range(first..).take_while(|change| change.main <= at.0);
            for change in changes {
                let row = Self::row(store, change.place())?;
                let mut hash = Fnv::default();
                hash.put(&[&change.place().row_key(), &row.encode()]);
                sum ^= hash.0;
            }
        }
        Ok((sum, None))
    }

    /// Keys that exist now.
    pub fn living(&self) -> u64 {
        self.living
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = (&ByteView, Vec<(u64, u32, bool)>)> {
        self.index.iter().map(|(key, history)| (key, history.changes.iter().map(|c| (c.main, c.sub, c.put)).collect()))
    }
}

/// Of large changes fewer are given at a time: a limit of 1,024 is one of 512 KiB too, and of the revision that is begun.
const EVENT_BYTES: usize = 512;
/// Rows read at a time for a watch that catches up.
const EVENT_ROWS: usize = 256;
