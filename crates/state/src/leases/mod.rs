//! Leases: a promise to be alive that keys hang on.
//!
//! A lease ends by being revoked, or by an entry with `expire` whose time has reached its deadline; nothing else ends
//! it, so every replica agrees on whether it lives. When it ends, its keys are deleted in the same revision.

use std::collections::{BTreeMap, BTreeSet};

use buttress_core::{LeaseId, Mutant, Store, StoreError, Table, TimeMs, Writer, mutant};

use crate::changes::{Changes, Kind, be};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub ttl_ms: u64,
    pub deadline: TimeMs,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leases {
    leases: BTreeMap<LeaseId, Lease>,
    by_deadline: BTreeSet<(TimeMs, LeaseId)>,
}

impl Leases {
    pub(crate) fn open<S: Store>(store: &S) -> Result<Self, StoreError> {
        let mut leases = Self::default();
        Kind::Lease.load(store, |key, mut value| {
            let id = LeaseId(i64::from_be_bytes(be(key, "lease")?));
            let lease = Lease { ttl_ms: value.varint("ttl")?, deadline: TimeMs(value.varint("deadline")?) };
            leases.by_deadline.insert((lease.deadline, id));
            leases.leases.insert(id, lease);
            value.end()
        })?;
        Ok(leases)
    }

    pub fn get(&self, id: LeaseId) -> Option<Lease> {
        self.leases.get(&id).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, *lease))
    }

    /// Leases that were granted or kept alive last before this time.
    pub fn set_before(&self, time: TimeMs) -> impl Iterator<Item = LeaseId> {
        self.iter().filter(move |(_, lease)| lease.deadline.0.saturating_sub(lease.ttl_ms) < time.0).map(|(id, _)| id)
    }

    pub(crate) fn deadlines(&self) -> impl Iterator<Item = (TimeMs, LeaseId)> {
        self.by_deadline.iter().copied()
    }

    pub(crate) fn first_deadline(&self) -> Option<TimeMs> {
        self.by_deadline.first().map(|(at, _)| *at)
    }

    /// Grants a lease, or prolongs it: from `now` it lives for `ttl_ms`.
    pub(crate) fn set(&mut self, id: LeaseId, ttl_ms: u64, now: TimeMs, changes: &mut Changes) {
        let lease = Lease { ttl_ms, deadline: TimeMs(now.0.saturating_add(ttl_ms)) };
        if let Some(before) = self.leases.insert(id, lease) {
            self.by_deadline.remove(&(before.deadline, id));
        }
        self.by_deadline.insert((lease.deadline, id));
        let mut w = Writer::with_capacity(16);
        w.varint(lease.ttl_ms);
        w.varint(lease.deadline.0);
        changes.put(Table::Meta, Kind::Lease.key(&[&id.0.to_be_bytes()]), w.finish());
    }

    pub(crate) fn end(&mut self, id: LeaseId, changes: &mut Changes) {
        let lease = self.leases.remove(&id).expect("a lease that ends was alive");
        self.by_deadline.remove(&(lease.deadline, id));
        changes.delete(Table::Meta, Kind::Lease.key(&[&id.0.to_be_bytes()]));
    }

    /// Leases whose deadline `now` has reached, the earliest first, at most `limit`.
    pub(crate) fn due(&self, now: TimeMs, limit: usize) -> Vec<LeaseId> {
        self.by_deadline
            .iter()
            .take_while(|(at, _)| *at <= now || mutant::active(Mutant::ExpireEarly))
            .take(limit)
            .map(|(_, id)| *id)
            .collect()
    }
}
