//! The store in memory: for tests, simulations and the single-process ledger. It also keeps record batches, so that they
//! can be fetched.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use buttress_core::{
    Index, LogId, Offset, Store, StoreError, Table, Term, WriteBatch,
    ledger::Batch,
    store::{RowKey, StoredBatch},
};
use bytes::Bytes;

/// A clone is a checkpoint: opening a machine from it is what a restart does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemStore {
    applied: (Index, Term),
    tables: [BTreeMap<RowKey, Bytes>; 3],
    logs: BTreeMap<LogId, VecDeque<StoredBatch>>,
}

impl MemStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whole batches from the one that contains `offset` on: at least one where there is one, at most about `bytes_max`.
    pub fn fetch(&self, log: LogId, offset: Offset, bytes_max: usize) -> Vec<Batch> {
        let Some(batches) = self.logs.get(&log) else { return Vec::new() };
        let first = batches.partition_point(|batch| batch.last_offset < offset);
        let mut bytes = 0;
        let mut found = Vec::new();
        for batch in batches.range(first..) {
            if !found.is_empty() && bytes + batch.bytes.len() > bytes_max {
                break;
            }
            bytes += batch.bytes.len();
            found.push(Batch {
                base_offset: batch.base_offset,
                last_offset: batch.last_offset,
                max_timestamp_ms: batch.max_timestamp_ms,
                index: batch.index,
                committed_at: batch.committed_at,
                bytes: batch.bytes.clone(),
            });
        }
        found
    }

    /// The first batch with a timestamp of at least `timestamp_ms`: its base offset and largest timestamp.
    pub fn offset_for_time(&self, log: LogId, timestamp_ms: i64) -> Option<(Offset, i64)> {
        let batch = self.logs.get(&log)?.iter().find(|batch| batch.max_timestamp_ms >= timestamp_ms)?;
        Some((batch.base_offset, batch.max_timestamp_ms))
    }

    /// The batches of a log, oldest first.
    pub fn batches(&self, log: LogId) -> impl Iterator<Item = &StoredBatch> {
        self.logs.get(&log).into_iter().flatten()
    }

    pub fn logs(&self) -> impl Iterator<Item = LogId> {
        self.logs.keys().copied()
    }

    pub fn rows(&self, table: Table) -> &BTreeMap<RowKey, Bytes> {
        &self.tables[table as usize]
    }
}

impl Store for MemStore {
    fn applied(&self) -> (Index, Term) {
        self.applied
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.rows(table).get(key).cloned())
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        if to.is_some_and(|to| to < from) {
            return Ok(Vec::new());
        }
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.rows(table).range::<[u8], _>((Bound::Included(from), to));
        Ok(rows.take(limit).map(|(key, value)| (Bytes::copy_from_slice(key), value.clone())).collect())
    }

    fn write(&mut self, batch: WriteBatch) {
        assert_eq!(batch.index, self.applied.0.next(), "batches are written one after the other");
        assert!(
            batch.rows.is_sorted_by(|a, b| (a.table, &a.key) < (b.table, &b.key)),
            "rows of a batch are sorted, and each changes once"
        );
        self.applied = (batch.index, batch.term);
        for row in batch.rows {
            let table = &mut self.tables[row.table as usize];
            assert!(!row.fresh || !table.contains_key(&row.key), "a row that is fresh was not there before");
            match row.value {
                Some(value) => {
                    table.insert(row.key, value);
                }
                None => {
                    table.remove(&row.key);
                }
            }
        }
        for log in batch.drops {
            self.logs.remove(&log);
        }
        for stored in batch.appends {
            self.logs.entry(stored.log).or_default().push_back(stored);
        }
        for (log, before) in batch.trims {
            if let Some(batches) = self.logs.get_mut(&log) {
                while batches.front().is_some_and(|batch| batch.last_offset < before) {
                    batches.pop_front();
                }
            }
        }
    }
}
