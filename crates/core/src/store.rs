//! Where applied state lives: ordered tables of rows, and logs of record batches.
//!
//! The machine writes one [`WriteBatch`] per applied entry. A store may keep batches in memory as long as it likes
//! (the write-ahead log is the durability point), but what a checkpoint makes durable is always the exact state after
//! some index: all batches up to it and none after.

use bytes::Bytes;

pub use byteview::ByteView;

use crate::ids::{Index, LogId, Offset, Term, TimeMs};

/// The ordered tables of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Topics, partition tails, producers, cursors, leases, timers, remembered results.
    Meta,
    /// Revision → key and value.
    Keys,
    /// Function state, without history: space and key → value.
    State,
}

impl Table {
    pub const ALL: [Table; 3] = [Table::Meta, Table::Keys, Table::State];
}

/// The key of a row. Up to 20 bytes lie in it, so most keys take no allocation, and to compare two reads nothing else.
pub type RowKey = ByteView;

/// One row change; `value: None` deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub table: Table,
    pub key: RowKey,
    pub value: Option<Bytes>,
    /// There is no row of this key before this change, and whoever makes it knows. A store that deletes such a row before it
    /// has written it anywhere need not write that it was deleted. `false` is always right.
    pub fresh: bool,
}

/// One record batch, already patched with its base offset and leader epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBatch {
    pub log: LogId,
    pub base_offset: Offset,
    /// Offset of the last record in the batch.
    pub last_offset: Offset,
    /// Largest timestamp of the batch's records, as its producer stated it.
    pub max_timestamp_ms: i64,
    /// The entry that appended it.
    pub index: Index,
    /// The proposer's clock in that entry.
    pub committed_at: TimeMs,
    pub bytes: Bytes,
}

/// Everything one applied entry changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    pub index: Index,
    pub term: Term,
    pub rows: Vec<Row>,
    pub appends: Vec<StoredBatch>,
    /// Records below the offset are forgotten (retention).
    pub trims: Vec<(LogId, Offset)>,
    /// Logs that no longer exist.
    pub drops: Vec<LogId>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("store: {0}")]
pub struct StoreError(pub String);

/// The machine's view of its store: its own writes are visible at once.
pub trait Store: Send + 'static {
    /// The index up to which the rows are complete. Zero for an empty store.
    fn applied(&self) -> (Index, Term);
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError>;
    /// Rows with `from <= key`, and `key < to` where given, in key order, at most `limit`.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError>;
    fn write(&mut self, batch: WriteBatch);
}
