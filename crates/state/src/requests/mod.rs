//! Remembered results: a request that is retried gets its first answer again instead of being carried out again.
//!
//! A client numbers its requests and says with each which answers have reached it; those are forgotten. What has been
//! forgotten can no longer be told from what never came, so a client's *floor* remembers up to where it forgot: a copy
//! of a request below the floor that wanders in late is refused and not carried out.
//!
//! Memory is bounded twice: a client keeps its newest results only (forgetting one raises the floor), and when there are
//! too many clients, the one that has been silent longest, counted in log indexes, is forgotten. Both follow from the
//! log alone, so every replica forgets the same. Every row carries the client's floor when it was written; the newest
//! row is always there, so the floor needs no row of its own.
//!
//! A result is small whatever the entry did. What ranges of a transaction gave may be large, so it is not kept but read
//! again out of the history of keys (`keys::txn`).

use std::collections::BTreeMap;

use buttress_core::{
    AppendOutcome, Code, DecodeError, Index, LogId, Mutant, Offset, Reader, Receipt, Refusal, RequestId, Revision,
    Store, StoreError, Table, Term, TimeMs, Writer,
    entry::Guard,
    limits::{ENTRY_BYTES_MAX, ENTRY_PARTS_MAX, PARTITIONS_PER_TOPIC_MAX, TOPIC_NAME_BYTES_MAX},
    mutant,
    store::RowKey,
};
use bytes::Bytes;

use crate::{
    changes::{Changes, Kind, be, rest},
    keys::txn::Taken,
};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Client {
    floor: u64,
    /// The entry that last remembered a result; the key in `by_age`.
    last: Index,
    /// Encoded results by request number.
    results: BTreeMap<u64, Bytes>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    clients: BTreeMap<u64, Client>,
    by_age: BTreeMap<Index, u64>,
}

/// What is known about a request before it is carried out.
pub(crate) enum Recall {
    New,
    Answered(Bytes),
    /// Below the floor.
    Forgotten {
        floor: u64,
    },
}

impl Requests {
    pub(crate) fn open<S: Store>(store: &S) -> Result<Self, StoreError> {
        let mut requests = Self::default();
        if mutant::active(Mutant::LoseDedup) {
            return Ok(requests);
        }
        Kind::Result.load(store, |key, value| {
            let client = u64::from_be_bytes(be(key, "client")?);
            let number = u64::from_be_bytes(be(key, "request number")?);
            let mut r = value;
            let floor = r.varint("floor")?;
            let index = Index(r.varint("index")?);
            let outcome = rest(&mut r, "result")?;
            let client = requests.clients.entry(client).or_insert_with(|| Client {
                floor,
                last: index,
                results: BTreeMap::new(),
            });
            client.floor = client.floor.max(floor);
            client.last = client.last.max(index);
            client.results.insert(number, outcome);
            Ok(())
        })?;
        requests.by_age = requests.clients.iter().map(|(id, client)| (client.last, *id)).collect();
        Ok(requests)
    }

    pub(crate) fn recall(&self, request: &RequestId) -> Recall {
        let Some(client) = self.clients.get(&request.client) else { return Recall::New };
        match client.results.get(&request.number) {
            Some(outcome) => Recall::Answered(outcome.clone()),
            None if request.number < client.floor => Recall::Forgotten { floor: client.floor },
            None => Recall::New,
        }
    }

    pub(crate) fn remember(
        &mut self,
        request: &RequestId,
        index: Index,
        outcome: Bytes,
        limits: &crate::Limits,
        changes: &mut Changes,
    ) {
        if !self.clients.contains_key(&request.client)
            && self.clients.len() >= limits.request_clients
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            let forgotten = self.clients.remove(&oldest).expect("every age names a client");
            for number in forgotten.results.keys() {
                changes.delete(Table::Meta, row_key(oldest, *number));
            }
        }
        let client = self.clients.entry(request.client).or_insert_with(|| Client {
            floor: 0,
            last: index,
            results: BTreeMap::new(),
        });
        self.by_age.remove(&client.last);
        self.by_age.insert(index, request.client);
        client.last = index;
        // A client cannot have seen the answer to the very request that it sends.
        let acknowledged_below = request.acknowledged_below.min(request.number);
        client.floor = client.floor.max(acknowledged_below);
        while let Some(entry) = client.results.first_entry()
            && *entry.key() < acknowledged_below
        {
            changes.delete(Table::Meta, row_key(request.client, *entry.key()));
            entry.remove();
        }
        while client.results.len() >= limits.request_results_per_client
            && let Some((number, _)) = client.results.pop_first()
        {
            changes.delete(Table::Meta, row_key(request.client, number));
            client.floor = client.floor.max(number + 1);
        }
        let mut w = Writer::with_capacity(outcome.len() + 16);
        w.varint(client.floor);
        w.varint(index.0);
        w.raw(&outcome);
        // Most are forgotten again before anybody has written them.
        changes.put_fresh(Table::Meta, row_key(request.client, request.number), w.finish());
        client.results.insert(request.number, outcome);
    }

    /// Client, floor, last index and remembered numbers, in the order of clients.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64, Index, &BTreeMap<u64, Bytes>)> {
        self.clients.iter().map(|(id, client)| (*id, client.floor, client.last, &client.results))
    }

    pub(crate) fn ages(&self) -> impl Iterator<Item = (Index, u64)> {
        self.by_age.iter().map(|(index, id)| (*index, *id))
    }
}

fn row_key(client: u64, number: u64) -> RowKey {
    Kind::Result.key(&[&client.to_be_bytes(), &number.to_be_bytes()])
}

/// What is kept of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    /// Without what the retry brings along or state still knows: guards, the results of a transaction, how long leases live.
    pub result: Result<Receipt, Refusal>,
    /// How the entry's transaction went.
    pub txn: Option<Taken>,
}

/// Encodes a result to be remembered. Of a guard only its position is kept: the retry brings the guard along. Of a
/// transaction only its way is: the retry brings the transaction along.
pub(crate) fn encode_result(result: &Result<Receipt, Refusal>, txn: Option<&Taken>) -> Bytes {
    let mut w = Writer::with_capacity(64);
    match result {
        Ok(receipt) => {
            w.u8(if txn.is_some() { 3 } else { 0 });
            if let Some(taken) = txn {
                w.varint(taken.base.0);
                w.list(&taken.path, |w, holds| w.u8((*holds).into()));
            }
            w.varint(receipt.index.0);
            w.varint(receipt.term.0);
            w.varint(receipt.revision.0);
            w.varint(receipt.time.0);
            w.list(&receipt.appends, |w, outcome| match outcome {
                AppendOutcome::Appended { base_offset } => {
                    w.u8(0);
                    w.zigzag(base_offset.0);
                }
                AppendOutcome::Duplicate { base_offset } => {
                    w.u8(1);
                    w.option(base_offset.as_ref(), |w, offset| w.zigzag(offset.0));
                }
                AppendOutcome::Gap { expected } => {
                    w.u8(2);
                    w.zigzag(*expected);
                }
                AppendOutcome::StaleEpoch { current } => {
                    w.u8(3);
                    w.zigzag((*current).into());
                }
                AppendOutcome::UnknownLog => w.u8(4),
            });
            w.list(&receipt.created, |w, (name, logs)| {
                w.bytes(name.as_bytes());
                w.list(logs, |w, log| w.varint(log.0.into()));
            });
        }
        Err(Refusal::Guard { position, guard: _, found }) => {
            w.u8(1);
            w.varint(*position as u64);
            w.bytes(found.as_bytes());
        }
        Err(Refusal::Part { code, message }) => {
            w.u8(2);
            w.bytes(code.0.as_bytes());
            w.bytes(message.as_bytes());
        }
    }
    w.finish()
}

/// Decodes a remembered result for the retry, which carries `guards`.
pub(crate) fn decode_result(bytes: Bytes, guards: &[Guard]) -> Result<Remembered, DecodeError> {
    let mut r = Reader::new(bytes);
    let kind = r.u8("result")?;
    let txn = match kind {
        3 => Some(Taken {
            base: Revision(r.varint("base revision")?),
            path: r.list("compares", ENTRY_PARTS_MAX, |r| match r.u8("compare")? {
                0 => Ok(false),
                1 => Ok(true),
                tag => Err(DecodeError::Tag { what: "compare", tag: tag.into() }),
            })?,
        }),
        _ => None,
    };
    let result = match kind {
        0 | 3 => Ok(Receipt {
            index: Index(r.varint("index")?),
            term: Term(r.varint("term")?),
            revision: Revision(r.varint("revision")?),
            time: TimeMs(r.varint("time")?),
            appends: r.list("appends", ENTRY_PARTS_MAX, |r| {
                Ok(match r.u8("append outcome")? {
                    0 => AppendOutcome::Appended { base_offset: Offset(r.zigzag("base offset")?) },
                    1 => AppendOutcome::Duplicate {
                        base_offset: r.option("base offset", |r| r.zigzag("base offset").map(Offset))?,
                    },
                    2 => AppendOutcome::Gap { expected: r.zigzag("expected")? },
                    3 => AppendOutcome::StaleEpoch { current: r.zigzag("epoch")? as i32 },
                    4 => AppendOutcome::UnknownLog,
                    tag => return Err(DecodeError::Tag { what: "append outcome", tag: tag.into() }),
                })
            })?,
            created: r.list("created", ENTRY_PARTS_MAX, |r| {
                let name = r.string("topic", TOPIC_NAME_BYTES_MAX)?;
                let logs = r.list("logs", PARTITIONS_PER_TOPIC_MAX as usize, |r| r.varint_u32("log").map(LogId))?;
                Ok((name, logs))
            })?,
            lease_ttls_ms: Vec::new(),
            txn: None,
            replayed: true,
        }),
        1 => {
            let position = r.varint("guard position")? as usize;
            let found = r.string("found", ENTRY_BYTES_MAX)?;
            Err(match guards.get(position) {
                Some(guard) => Refusal::Guard { position, guard: guard.clone(), found },
                None => Refusal::Part {
                    code: Code::BAD_REQUEST,
                    message: "the request's number was used for another entry before, which was refused".into(),
                },
            })
        }
        2 => {
            let code = r.bytes("code", ENTRY_BYTES_MAX)?;
            let message = r.string("message", ENTRY_BYTES_MAX)?;
            // A newer version may have known more codes.
            let known = Code::ALL.iter().find(|(known, _)| known.0.as_bytes() == code);
            Err(Refusal::Part { code: known.map_or(Code::REFUSED, |(code, _)| *code), message })
        }
        tag => return Err(DecodeError::Tag { what: "result", tag: tag.into() }),
    };
    r.end()?;
    Ok(Remembered { result, txn })
}
