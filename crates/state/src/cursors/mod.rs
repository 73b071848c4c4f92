//! Cursors: how far each group has consumed each partition.
//!
//! A cursor is the offset of the first record not yet consumed. It may be moved back; who must not, guards on where it
//! is. It cannot be moved past the partition's end as it was before the entry, because nobody can have consumed what was
//! not yet there.

use std::collections::BTreeMap;

use buttress_core::{LogId, Offset, Store, StoreError, Table, Writer, limits::KEY_BYTES_MAX};

use crate::changes::{Changes, Kind, be, rest_text};

pub use buttress_core::ledger::CursorView as Position;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursors {
    cursors: BTreeMap<LogId, BTreeMap<Box<str>, Position>>,
}

impl Cursors {
    pub(crate) fn open<S: Store>(store: &S) -> Result<Self, StoreError> {
        let mut cursors = Self::default();
        Kind::Cursor.load(store, |key, mut value| {
            let log = LogId(u32::from_be_bytes(be(key, "log")?));
            let group = rest_text(key, "group")?;
            let position = Position {
                next: Offset(value.zigzag("next offset")?),
                metadata: value.string("cursor metadata", KEY_BYTES_MAX)?,
            };
            cursors.cursors.entry(log).or_default().insert(group, position);
            value.end()
        })?;
        Ok(cursors)
    }

    pub fn get(&self, group: &str, log: LogId) -> Option<&Position> {
        self.cursors.get(&log)?.get(group)
    }

    /// All cursors of a group.
    pub fn of(&self, group: &str) -> impl Iterator<Item = (LogId, &Position)> {
        self.cursors.iter().filter_map(move |(log, groups)| Some((*log, groups.get(group)?)))
    }

    pub fn iter(&self) -> impl Iterator<Item = (LogId, &str, &Position)> {
        self.cursors.iter().flat_map(|(log, groups)| groups.iter().map(|(group, position)| (*log, &**group, position)))
    }

    pub(crate) fn set(&mut self, group: &str, log: LogId, position: Position, changes: &mut Changes) {
        let mut w = Writer::with_capacity(position.metadata.len() + 16);
        w.zigzag(position.next.0);
        w.bytes(position.metadata.as_bytes());
        changes.put(Table::Meta, Kind::Cursor.key(&[&log.0.to_be_bytes(), group.as_bytes()]), w.finish());
        let groups = self.cursors.entry(log).or_default();
        match groups.get_mut(group) {
            Some(known) => *known = position,
            None => {
                groups.insert(group.into(), position);
            }
        }
    }

    /// Takes a cursor away; whether there was one.
    pub(crate) fn forget(&mut self, group: &str, log: LogId, changes: &mut Changes) -> bool {
        let Some(groups) = self.cursors.get_mut(&log) else { return false };
        let found = groups.remove(group).is_some();
        if groups.is_empty() {
            self.cursors.remove(&log);
        }
        if found {
            changes.delete(Table::Meta, Kind::Cursor.key(&[&log.0.to_be_bytes(), group.as_bytes()]));
        }
        found
    }

    pub(crate) fn drop_log(&mut self, log: LogId, changes: &mut Changes) {
        for group in self.cursors.remove(&log).unwrap_or_default().keys() {
            changes.delete(Table::Meta, Kind::Cursor.key(&[&log.0.to_be_bytes(), group.as_bytes()]));
        }
    }
}
