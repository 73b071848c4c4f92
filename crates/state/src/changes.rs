//! Collects what one entry changes, and knows how rows are laid out.
//!
//! Every row of [`Table::Meta`] starts with the byte of its [`Kind`]; numbers in keys are big-endian, so that the order
//! of rows is the order of numbers. Values are written with core's codec; the row of kind [`Kind::Clock`] carries the
//! version of all of them.

use buttress_core::{
    DecodeError, Index, LogId, Offset, Reader, Store, StoreError, Table, Term, WriteBatch,
    store::{Row, RowKey, StoredBatch},
};
use bytes::Bytes;

/// What a row of [`Table::Meta`] holds. The numbers are on disk and never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Kind {
    Clock = 0,
    Topic = 1,
    Partition = 2,
    Mark = 3,
    Producer = 4,
    Cursor = 5,
    Lease = 6,
    Timer = 7,
    Result = 8,
}

impl Kind {
    pub(crate) fn key(self, parts: &[&[u8]]) -> RowKey {
        let mut key = RowKey::with_size(1 + parts.iter().map(|part| part.len()).sum::<usize>());
        let mut bytes = key.get_mut().expect("nobody else has it");
        bytes[0] = self as u8;
        let mut at = 1;
        for part in parts {
            bytes[at..][..part.len()].copy_from_slice(part);
            at += part.len();
        }
        drop(bytes);
        key
    }

    /// Hands every row of this kind, without its kind byte, to `each`.
    pub(crate) fn load<S: Store>(
        self,
        store: &S,
        mut each: impl FnMut(&mut Reader, Reader) -> Result<(), DecodeError>,
    ) -> Result<(), StoreError> {
        let from = [self as u8];
        let to = [self as u8 + 1];
        scan_all(store, Table::Meta, &from, Some(&to), |key, value| {
            let mut rest = Reader::new(key.slice(1..));
            each(&mut rest, Reader::new(value))
                .and_then(|()| rest.end())
                .map_err(|error| StoreError(format!("row {} of kind {self:?}: {error}", key.escape_ascii())))
        })
    }
}

/// Rows read at a time while scanning a whole range.
const SCAN_ROWS: usize = 1024;

pub(crate) fn scan_all<S: Store>(
    store: &S,
    table: Table,
    from: &[u8],
    to: Option<&[u8]>,
    mut each: impl FnMut(&Bytes, Bytes) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut from = from.to_vec();
    loop {
        let rows = store.scan(table, &from, to, SCAN_ROWS)?;
        let full = rows.len() == SCAN_ROWS;
        let mut last = None;
        for (key, value) in rows {
            each(&key, value)?;
            last = Some(key);
        }
        match last {
            // The smallest key after `last` is `last` with a zero byte.
            Some(last) if full => {
                from = last.to_vec();
                from.push(0);
            }
            _ => return Ok(()),
        }
    }
}

/// Reads a big-endian number out of a row's key.
pub(crate) fn be<const N: usize>(r: &mut Reader, what: &'static str) -> Result<[u8; N], DecodeError> {
    Ok(r.take(N, what)?[..].try_into().expect("as many bytes were taken"))
}

/// The rest of a row's key.
pub(crate) fn rest(r: &mut Reader, what: &'static str) -> Result<Bytes, DecodeError> {
    r.take(r.remaining(), what)
}

/// The rest of a row's key, as text.
pub(crate) fn rest_text(r: &mut Reader, what: &'static str) -> Result<Box<str>, DecodeError> {
    let raw = rest(r, what)?;
    std::str::from_utf8(&raw).map(Box::from).map_err(|_| DecodeError::Utf8(what))
}

/// The changes of one entry.
#[derive(Default)]
pub(crate) struct Changes {
    rows: Vec<Row>,
    pub(crate) appends: Vec<StoredBatch>,
    trims: Vec<(LogId, Offset)>,
    drops: Vec<LogId>,
}

impl Changes {
    pub(crate) fn put(&mut self, table: Table, key: RowKey, value: Bytes) {
        self.rows.push(Row { table, key, value: Some(value), fresh: false });
    }

    /// Puts a row of a key that has none.
    pub(crate) fn put_fresh(&mut self, table: Table, key: RowKey, value: Bytes) {
        self.rows.push(Row { table, key, value: Some(value), fresh: true });
    }

    pub(crate) fn delete(&mut self, table: Table, key: RowKey) {
        self.rows.push(Row { table, key, value: None, fresh: false });
    }

    pub(crate) fn trim(&mut self, log: LogId, before: Offset) {
        self.trims.push((log, before));
    }

    pub(crate) fn drop_log(&mut self, log: LogId) {
        self.drops.push(log);
    }

    /// The batch that the store writes: rows sorted by table and key, the last change of a row only, because stores
    /// may give all rows of a batch the same sequence number.
    pub(crate) fn finish(mut self, index: Index, term: Term) -> WriteBatch {
        self.rows.sort_by(|a, b| (a.table, &a.key).cmp(&(b.table, &b.key)));
        self.rows.dedup_by(|later, kept| {
            let same = later.table == kept.table && later.key == kept.key;
            if same {
                std::mem::swap(&mut later.value, &mut kept.value);
            }
            same
        });
        WriteBatch { index, term, rows: self.rows, appends: self.appends, trims: self.trims, drops: self.drops }
    }
}
