//! A function's state in a compacted topic.
//!
//! Each change is a record: its key is the space, a zero byte and the row's key; its value the row, or null where it was
//! deleted. Changes are produced in the transaction that moves the cursor, into the partition of the changelog that has the
//! number of the cursor's, so whoever may move the cursor is the only one to write there, and reads back, after claiming, all of
//! it and nothing else. Kafka's compaction keeps the last record of each key.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use buttress_core::{Code, Error, Offset, StatePut};
use buttress_wire::{
    kafka::list_offsets::{EARLIEST, LATEST},
    records::{BatchView, Builder},
};
use bytes::{BufMut, Bytes, BytesMut};

use super::{Place, client::Client, fetch};

/// Rows of one partition's state, with 64 bytes for each beside key and value. They are held in memory: a guest asks for them
/// while it runs.
pub const STATE_BYTES_MAX: usize = 512 * 1024 * 1024;
const ROW_BYTES: usize = 64;
/// One fetch of a restore.
const RESTORE_FETCH_BYTES: usize = 4 * 1024 * 1024;
/// Changes of the state are cut into batches of about this size.
const BATCH_BYTES: usize = 512 * 1024;

/// The rows of each space of one partition.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) spaces: BTreeMap<String, HashMap<Bytes, Bytes>>,
    bytes: usize,
}

fn row_key(put: &StatePut) -> Bytes {
    let mut key = BytesMut::with_capacity(put.space.len() + 1 + put.key.len());
    key.put_slice(put.space.as_bytes());
    key.put_u8(0);
    key.put_slice(&put.key);
    key.freeze()
}

/// The topic of a group's state.
pub(super) fn changelog(prefix: &str, group: &str, topic: &str) -> String {
    let safe = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' }).collect()
    };
    format!("{prefix}.{}.{}.state", safe(group), safe(topic))
}

/// The changes as batches, in their order.
pub(super) fn batches(puts: &[StatePut], now_ms: i64) -> Result<Vec<BatchView>, Error> {
    let mut batches = Vec::new();
    let mut builder = Builder::new();
    let mut close = |builder: Builder| -> Result<(), Error> {
        if let Some(batch) = builder.build() {
            batches.push(BatchView::parse(batch)?);
        }
        Ok(())
    };
    for put in puts {
        if put.space.as_bytes().contains(&0) {
            return Err(Error::new(Code::BAD_REQUEST, format!("state space {:?} holds a zero byte", put.space)));
        }
        let key = row_key(put);
        if builder.count() > 0 && builder.size() + key.len() + put.value.as_ref().map_or(0, Bytes::len) > BATCH_BYTES {
            close(std::mem::take(&mut builder))?;
        }
        builder.push(now_ms, Some(&key), put.value.as_deref(), &[]);
    }
    close(builder)?;
    Ok(batches)
}

impl Rows {
    /// Whether the changes fit into what the state may have.
    pub(super) fn check(&self, puts: &[StatePut]) -> Result<(), Error> {
        let more: usize =
            puts.iter().map(|put| put.value.as_ref().map_or(0, |v| ROW_BYTES + put.key.len() + v.len())).sum();
        if self.bytes + more > STATE_BYTES_MAX {
            let message =
                format!("the state of a partition would have {} bytes, {STATE_BYTES_MAX} are held", self.bytes + more);
            return Err(Error::new(Code::TOO_LARGE, message).hint("spread the keys over more partitions"));
        }
        Ok(())
    }

    pub(super) fn put(&mut self, space: &str, key: Bytes, value: Option<Bytes>) {
        let size = |key: &Bytes, value: &Bytes| ROW_BYTES + key.len() + value.len();
        if !self.spaces.contains_key(space) {
            self.spaces.insert(space.to_owned(), HashMap::new());
        }
        let rows = self.spaces.get_mut(space).expect("it was inserted above");
        let added = value.as_ref().map_or(0, |value| size(&key, value));
        let before = match value {
            // Keys and values are copied out of the frames they came in, which are much larger than a row.
            Some(value) => rows.insert(Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)),
            None => rows.remove(&key),
        };
        self.bytes = self.bytes + added - before.map_or(0, |before| size(&key, &before));
    }

    /// Reads a changelog's partition from its beginning to its end.
    ///
    /// # Errors
    /// What Kafka answers, or a record that is none of ours.
    pub(super) async fn restore(client: &Client, place: &Place, deadline: Duration) -> Result<Self, Error> {
        let mut rows = Self::default();
        let mut next = bound(client, place, EARLIEST, deadline).await?;
        let end = bound(client, place, LATEST, deadline).await?;
        while next < end {
            let wait = Duration::from_secs(1);
            let page = fetch::fetch(client, place, next, RESTORE_FETCH_BYTES, wait, deadline).await?;
            for batch in page.batches {
                let (from, to) = (next, Offset(batch.last_offset.0 + 1));
                next = next.max(to);
                let view = BatchView::parse_stored(batch.bytes)?;
                if view.is_control() {
                    continue;
                }
                for record in view.records()? {
                    let record = record?;
                    if record.offset < from.0 {
                        continue;
                    }
                    let strange = || {
                        Error::new(
                            Code::CORRUPT,
                            format!("record {} of {place} is no change of a state", record.offset),
                        )
                    };
                    let key = record.key.as_ref().ok_or_else(strange)?;
                    let cut = key.iter().position(|byte| *byte == 0).ok_or_else(strange)?;
                    let space = std::str::from_utf8(&key[..cut]).map_err(|_| strange())?;
                    rows.put(space, key.slice(cut + 1..), record.value);
                    rows.check(&[])?;
                }
            }
        }
        Ok(rows)
    }
}

/// The first offset of a partition, or the one behind its last.
async fn bound(client: &Client, place: &Place, which: i64, deadline: Duration) -> Result<Offset, Error> {
    let found = fetch::list_offset(client, place, which, deadline).await?;
    Ok(found.map_or(Offset(0), |(offset, _)| offset))
}
