//! Timers: a put that happens later.
//!
//! An entry with `expire` whose time has reached a timer's due time puts the timer's key and forgets the timer. Setting
//! a timer that exists replaces it; cancelling one that does not exist is no error, because it may just have fired.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use buttress_core::{
    Mutant, Store, StoreError, Table, TimeMs, Writer,
    limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX},
    mutant,
};
use bytes::Bytes;

use crate::changes::{Changes, Kind, rest_text};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    pub due: TimeMs,
    pub key: Bytes,
    pub value: Bytes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timers {
    timers: BTreeMap<Arc<str>, Timer>,
    by_due: BTreeSet<(TimeMs, Arc<str>)>,
}

impl Timers {
    pub(crate) fn open<S: Store>(store: &S) -> Result<Self, StoreError> {
        let mut timers = Self::default();
        Kind::Timer.load(store, |key, mut value| {
            let id: Arc<str> = rest_text(key, "timer id")?.into();
            let timer = Timer {
                due: TimeMs(value.varint("due")?),
                key: value.bytes("timer key", KEY_BYTES_MAX)?,
                value: value.bytes("timer value", VALUE_BYTES_MAX)?,
            };
            timers.by_due.insert((timer.due, id.clone()));
            timers.timers.insert(id, timer);
            value.end()
        })?;
        Ok(timers)
    }

    pub fn get(&self, id: &str) -> Option<&Timer> {
        self.timers.get(id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Timer)> {
        self.timers.iter().map(|(id, timer)| (&**id, timer))
    }

    pub(crate) fn dues(&self) -> impl Iterator<Item = (TimeMs, &str)> {
        self.by_due.iter().map(|(due, id)| (*due, &**id))
    }

    pub(crate) fn first_due(&self) -> Option<TimeMs> {
        self.by_due.first().map(|(at, _)| *at)
    }

    pub(crate) fn set(&mut self, id: &str, due: TimeMs, key: &Bytes, value: &Bytes, changes: &mut Changes) {
        let mut w = Writer::with_capacity(key.len() + value.len() + 16);
        w.varint(due.0);
        w.bytes(key);
        w.bytes(value);
        changes.put(Table::Meta, Kind::Timer.key(&[id.as_bytes()]), w.finish());
        let id: Arc<str> = id.into();
        // Copies, so that a small timer does not keep a large entry in memory.
        let timer = Timer { due, key: Bytes::copy_from_slice(key), value: Bytes::copy_from_slice(value) };
        if let Some(before) = self.timers.insert(id.clone(), timer) {
            self.by_due.remove(&(before.due, id.clone()));
        }
        self.by_due.insert((due, id));
    }

    pub(crate) fn remove(&mut self, id: &str, changes: &mut Changes) -> Option<Timer> {
        let (id, timer) = self.timers.remove_entry(id)?;
        if !mutant::active(Mutant::TimerTwice) {
            changes.delete(Table::Meta, Kind::Timer.key(&[id.as_bytes()]));
        }
        self.by_due.remove(&(timer.due, id));
        Some(timer)
    }

    /// Timers that are due at `now`, the earliest first, at most `limit`.
    pub(crate) fn due(&self, now: TimeMs, limit: usize) -> Vec<Arc<str>> {
        self.by_due.iter().take_while(|(at, _)| *at <= now).take(limit).map(|(_, id)| id.clone()).collect()
    }
}
