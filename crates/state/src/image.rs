//! An image of the key space out of a store's rows.
//!
//! Whatever holds rows that do not change any more, a checkpoint or a copy in memory, serves as [`Rows`]; what the rows
//! mean stays in this crate.

use std::ops::Bound;

use buttress_core::{
    Code, DecodeError, Error, Index, LeaseId, Reader, Table, Term,
    ledger::{ImageChange, ImageHead, KeyImage, LeaseView},
};
use bytes::Bytes;

use crate::{
    changes::{Kind, be},
    keys::{FIRST_REVISION, parse_row},
    machine::Clock,
    mem_store::MemStore,
};

pub type RowIter<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), Error>> + 'a>;

/// Rows at one index, that stay as they are.
pub trait Rows: Send + 'static {
    /// Rows whose key begins with `prefix`, in the order of their keys.
    fn prefix(&self, table: Table, prefix: &[u8]) -> RowIter<'_>;
}

impl Rows for MemStore {
    fn prefix(&self, table: Table, prefix: &[u8]) -> RowIter<'_> {
        let prefix = Bytes::copy_from_slice(prefix);
        let rows = self.rows(table).range::<[u8], _>((Bound::Included(&prefix[..]), Bound::Unbounded));
        let rows = rows.take_while(move |(key, _)| key.starts_with(&prefix));
        Box::new(rows.map(|(key, value)| Ok((Bytes::copy_from_slice(key), value.clone()))))
    }
}

pub struct Image<R> {
    rows: R,
    head: ImageHead,
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::new(Code::CORRUPT, format!("the rows of the key space are damaged: {what}"))
}

impl<R: Rows> Image<R> {
    /// The image of rows that are complete up to `applied`.
    ///
    /// # Errors
    /// `CORRUPT` for rows that no machine wrote, and those of the rows.
    pub fn new(rows: R, (index, term): (Index, Term)) -> Result<Self, Error> {
        let mut head = ImageHead { index, term, revision: FIRST_REVISION, ..ImageHead::default() };
        let clock = rows.prefix(Table::Meta, &Kind::Clock.key(&[])).next().transpose()?;
        if let Some((_, value)) = clock {
            let clock = Clock::decode(Reader::new(value)).map_err(damaged)?;
            (head.time, head.revision, head.compacted) = (clock.time, clock.revision, clock.compacted);
        }
        Ok(Self { rows, head })
    }
}

impl<R: Rows> KeyImage for Image<R> {
    fn head(&self) -> ImageHead {
        self.head
    }

    fn changes(&self) -> Box<dyn Iterator<Item = Result<ImageChange, Error>> + '_> {
        Box::new(self.rows.prefix(Table::Keys, &[]).map(|row| {
            let (key, value) = row?;
            let (place, row) = parse_row(&key, value).map_err(damaged)?;
            Ok(ImageChange { deleted: row.value.is_none(), sub: place.sub, kv: row.into_kv(place) })
        }))
    }

    fn leases(&self) -> Box<dyn Iterator<Item = Result<LeaseView, Error>> + '_> {
        let lease = |key: Bytes, value: Bytes| -> Result<LeaseView, DecodeError> {
            let mut key = Reader::new(key.slice(1..));
            let mut value = Reader::new(value);
            let lease = LeaseId(i64::from_be_bytes(be(&mut key, "lease")?));
            let (ttl_ms, deadline) = (value.varint("ttl")?, value.varint("deadline")?);
            key.end().and_then(|()| value.end())?;
            Ok(LeaseView { lease, ttl_ms, remaining_ms: deadline.saturating_sub(self.head.time.0), keys: Vec::new() })
        };
        Box::new(self.rows.prefix(Table::Meta, &Kind::Lease.key(&[])).map(move |row| {
            let (key, value) = row?;
            lease(key, value).map_err(damaged)
        }))
    }
}
