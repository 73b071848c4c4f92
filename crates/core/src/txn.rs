//! Transactions over keys: compare, then do one of two lists of operations, with a result for each.
//!
//! A guard refuses; a transaction decides. Its compares are evaluated where the entry is applied, so one proposal is one
//! transaction, whoever else writes meanwhile, and its answer says which way it went. The semantics are those of etcd
//! 3.7 (`server/etcdserver/txn`):
//!
//! - All compares, those of nested transactions too, look at the state before the transaction.
//! - The operations are done in their order. A range without a revision sees what the operations before it wrote.
//! - All changes have one revision, with sub-revisions in the order of the operations. A transaction that changes nothing
//!   leaves the revision as it is.
//! - A key is put at most once, and not both put and deleted ([`Txn::check`]).
//! - What cannot be done (an unknown lease, a revision that is compacted or not there yet, a put that keeps the value of a
//!   key that does not exist) refuses the whole transaction. Only the branches that are taken count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use bytes::Bytes;

use crate::{
    bytes_debug::Pretty,
    codec::{DecodeError, Reader, Writer},
    entry::KeyRange,
    error::{Code, Error},
    ids::{LeaseId, Revision},
    ledger::KeyValue,
    limits::{ENTRY_PARTS_MAX, KEY_BYTES_MAX, TXN_DEPTH_MAX, VALUE_BYTES_MAX},
};

/// Compares, and what is done if all of them hold or if one does not.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<TxnOp>,
    pub failure: Vec<TxnOp>,
}

/// A condition on the state before the transaction. On a range it holds if it holds for every key there. Where there is no
/// key, version, revisions and lease count as 0, and a compare of values does not hold.
#[derive(Clone, PartialEq, Eq)]
pub struct Compare {
    pub range: KeyRange,
    pub relation: Relation,
    pub operand: Operand,
}

/// How what is there must relate to the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// What is compared, and with what. The numbers are signed as in etcd's protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operand {
    Version(i64),
    CreateRevision(i64),
    ModRevision(i64),
    Value(Bytes),
    Lease(i64),
}

/// One operation of a transaction.
#[derive(Clone, PartialEq, Eq)]
pub enum TxnOp {
    Range(RangeOp),
    Put(PutOp),
    Delete(DeleteOp),
    Txn(Box<Txn>),
}

/// A read of a range with everything that etcd's Range offers.
#[derive(Clone, PartialEq, Eq)]
pub struct RangeOp {
    pub range: KeyRange,
    /// `None`: as it is now.
    pub revision: Option<Revision>,
    /// Keys given at most; 0 for all.
    pub limit: u64,
    /// Neither keys nor values, only their number.
    pub count_only: bool,
    /// Values come empty.
    pub keys_only: bool,
    /// Keys outside of these bounds are left out, though not out of the count.
    pub min_mod_revision: Option<Revision>,
    pub max_mod_revision: Option<Revision>,
    pub min_create_revision: Option<Revision>,
    pub max_create_revision: Option<Revision>,
    pub order: SortOrder,
    pub target: SortTarget,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortOrder {
    /// The limit is taken in the order of keys, and what it leaves is sorted by the target, ascending. So it is in etcd.
    #[default]
    None,
    Ascending,
    Descending,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    CreateRevision,
    ModRevision,
    Value,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub struct PutOp {
    pub key: Bytes,
    pub value: Bytes,
    /// The key is deleted when the lease ends. `None` detaches it.
    pub lease: Option<LeaseId>,
    /// Answer with what was there before.
    pub prev_kv: bool,
    /// Keep the value, which must be there; `value` is then empty.
    pub ignore_value: bool,
    /// Keep the lease of the key, which must be there; `lease` is then `None`.
    pub ignore_lease: bool,
}

#[derive(Clone, PartialEq, Eq)]
pub struct DeleteOp {
    pub range: KeyRange,
    /// Answer with what was there before.
    pub prev_kv: bool,
}

/// Which way a transaction went, and a result for each operation that was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnResult {
    /// All compares held.
    pub succeeded: bool,
    pub results: Vec<OpResult>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    Range(RangeResult),
    Put {
        revision: Revision,
        /// Where it was asked for and there was one.
        prev: Option<KeyValue>,
    },
    Delete {
        /// The key space's revision after the operation.
        revision: Revision,
        deleted: u64,
        /// Where they were asked for, in the order of keys.
        prev: Vec<KeyValue>,
    },
    Txn(TxnResult),
}

/// What a range gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResult {
    /// The key space's revision when it was read, whatever revision was asked for.
    pub revision: Revision,
    pub kvs: Vec<KeyValue>,
    /// The limit left some out.
    pub more: bool,
    /// Keys in the range, whatever limit and bounds leave out.
    pub count: u64,
}

/// Why a transaction is none that can be proposed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxnFault {
    #[error("a key cannot be empty")]
    EmptyKey,
    #[error("key {0} is changed twice in one transaction")]
    DuplicateKey(String),
    #[error("a put that keeps the value brings one")]
    ValueProvided,
    #[error("a put that keeps the lease brings one")]
    LeaseProvided,
    #[error("transactions are nested more than {TXN_DEPTH_MAX} deep")]
    TooDeep,
}

impl From<TxnFault> for Error {
    fn from(fault: TxnFault) -> Self {
        Error::new(Code::BAD_REQUEST, fault.to_string())
    }
}

impl RangeOp {
    /// All keys of the range with their values, as they are now.
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            revision: None,
            limit: 0,
            count_only: false,
            keys_only: false,
            min_mod_revision: None,
            max_mod_revision: None,
            min_create_revision: None,
            max_create_revision: None,
            order: SortOrder::None,
            target: SortTarget::Key,
        }
    }

    fn bounded(&self) -> bool {
        self.min_mod_revision.is_some()
            || self.max_mod_revision.is_some()
            || self.min_create_revision.is_some()
            || self.max_create_revision.is_some()
    }

    /// Keys that must be looked at, in the order of keys, to answer; `None` for all. One more than the limit says whether
    /// there are more.
    pub fn fetch(&self) -> Option<u64> {
        let in_order = match self.order {
            SortOrder::None => true,
            SortOrder::Ascending => self.target == SortTarget::Key,
            SortOrder::Descending => false,
        };
        (self.limit > 0 && in_order && !self.bounded()).then(|| self.limit.saturating_add(1))
    }

    /// Whether the answer depends on values.
    pub fn needs_values(&self) -> bool {
        !self.count_only && (!self.keys_only || self.target == SortTarget::Value)
    }

    /// Makes the answer out of what [`Self::fetch`] asks for: drops what is out of bounds, sorts, cuts.
    pub fn finish(&self, revision: Revision, count: u64, mut kvs: Vec<KeyValue>) -> RangeResult {
        if self.count_only {
            return RangeResult { revision, kvs: Vec::new(), more: false, count };
        }
        if self.bounded() {
            let within = |at: Revision, min: Option<Revision>, max: Option<Revision>| {
                min.is_none_or(|min| at >= min) && max.is_none_or(|max| at <= max)
            };
            kvs.retain(|kv| {
                within(kv.mod_revision, self.min_mod_revision, self.max_mod_revision)
                    && within(kv.create_revision, self.min_create_revision, self.max_create_revision)
            });
        }
        match self.target {
            SortTarget::Key => {}
            SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
            SortTarget::CreateRevision => kvs.sort_by_key(|kv| kv.create_revision),
            SortTarget::ModRevision => kvs.sort_by_key(|kv| kv.mod_revision),
            SortTarget::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
        }
        if self.order == SortOrder::Descending {
            kvs.reverse();
        }
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if self.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        RangeResult { revision, kvs, more, count }
    }
}

impl Relation {
    pub fn holds(self, found: std::cmp::Ordering) -> bool {
        match self {
            Self::Equal => found.is_eq(),
            Self::Greater => found.is_gt(),
            Self::Less => found.is_lt(),
            Self::NotEqual => found.is_ne(),
        }
    }
}

impl Txn {
    /// Compares and operations, those of nested transactions included.
    pub fn parts(&self) -> usize {
        let ops = self.success.iter().chain(&self.failure);
        self.compares.len()
            + ops
                .map(|op| match op {
                    TxnOp::Txn(txn) => 1 + txn.parts(),
                    _ => 1,
                })
                .sum::<usize>()
    }

    /// Whether no operation of either branch changes anything, so that it need not be proposed.
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            TxnOp::Range(_) => true,
            TxnOp::Put(_) | TxnOp::Delete(_) => false,
            TxnOp::Txn(txn) => txn.is_read_only(),
        })
    }

    /// Checks what can be told without any state: keys are not empty, and no key is changed twice. Two branches of which
    /// only one is taken may change the same key.
    ///
    /// # Errors
    /// The first fault.
    ///
    /// Source: etcd 3.7, `server/etcdserver/api/v3rpc/key.go`, `checkTxnRequest` and `checkIntervals`.
    pub fn check(&self) -> Result<(), TxnFault> {
        self.check_shape(TXN_DEPTH_MAX)?;
        check_overlap(&self.success)?;
        check_overlap(&self.failure)?;
        Ok(())
    }

    fn check_shape(&self, depth: usize) -> Result<(), TxnFault> {
        let Some(depth) = depth.checked_sub(1) else { return Err(TxnFault::TooDeep) };
        let named = |range: &KeyRange| if range.from.is_empty() { Err(TxnFault::EmptyKey) } else { Ok(()) };
        self.compares.iter().try_for_each(|compare| named(&compare.range))?;
        for op in self.success.iter().chain(&self.failure) {
            match op {
                TxnOp::Range(op) => named(&op.range)?,
                TxnOp::Delete(op) => named(&op.range)?,
                TxnOp::Put(op) if op.key.is_empty() => return Err(TxnFault::EmptyKey),
                TxnOp::Put(op) if op.ignore_value && !op.value.is_empty() => return Err(TxnFault::ValueProvided),
                TxnOp::Put(op) if op.ignore_lease && op.lease.is_some() => return Err(TxnFault::LeaseProvided),
                TxnOp::Put(_) => {}
                TxnOp::Txn(txn) => txn.check_shape(depth)?,
            }
        }
        Ok(())
    }
}

/// Ranges of keys that do not touch each other: from → to, `None` for no end.
#[derive(Clone, Debug, Default)]
struct Spans(BTreeMap<Bytes, Option<Bytes>>);

impl Spans {
    fn insert(&mut self, range: &KeyRange) {
        let mut from = range.from.clone();
        let mut to = match &range.to {
            // The smallest key behind a key is that key with a zero byte.
            None => Some([&range.from[..], &[0]].concat().into()),
            Some(to) if to.is_empty() => None,
            Some(to) if *to <= from => return,
            Some(to) => Some(to.clone()),
        };
        self.add(&mut from, &mut to);
    }

    fn add(&mut self, from: &mut Bytes, to: &mut Option<Bytes>) {
        // Those that begin within the new one or before it and reach into it become part of it.
        loop {
            let before = match to {
                Some(to) => self.0.range(..=to.clone()).next_back(),
                None => self.0.iter().next_back(),
            };
            let Some((start, end)) = before else { break };
            if end.as_ref().is_some_and(|end| end < from) {
                break;
            }
            let start = start.clone();
            let end = self.0.remove(&start).expect("it was just found");
            if start < *from {
                *from = start;
            }
            *to = match (to.take(), end) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            };
        }
        self.0.insert(from.clone(), to.clone());
    }

    fn union(&mut self, other: Self) {
        for (mut from, mut to) in other.0 {
            self.add(&mut from, &mut to);
        }
    }

    fn contains(&self, key: &Bytes) -> bool {
        self.0.range(..=key.clone()).next_back().is_some_and(|(_, to)| to.as_ref().is_none_or(|to| key < to))
    }
}

/// Keys that are put and ranges that are deleted by the operations; fails where they meet.
fn check_overlap(ops: &[TxnOp]) -> Result<(BTreeSet<Bytes>, Spans), TxnFault> {
    let twice = |key: &Bytes| TxnFault::DuplicateKey(format!("{:?}", Pretty(key)));
    let mut deletes = Spans::default();
    for op in ops {
        if let TxnOp::Delete(op) = op {
            deletes.insert(&op.range);
        }
    }
    let mut puts: BTreeSet<Bytes> = BTreeSet::new();
    for op in ops {
        let TxnOp::Txn(txn) = op else { continue };
        let (mut either, then_deletes) = check_overlap(&txn.success)?;
        let (else_puts, else_deletes) = check_overlap(&txn.failure)?;
        either.extend(else_puts);
        for key in either {
            if deletes.contains(&key) || puts.contains(&key) {
                return Err(twice(&key));
            }
            puts.insert(key);
        }
        deletes.union(then_deletes);
        deletes.union(else_deletes);
    }
    // Nested transactions that come after another one's put may delete its key, which etcd lets pass. So do we.
    for op in ops {
        let TxnOp::Put(op) = op else { continue };
        if deletes.contains(&op.key) || !puts.insert(op.key.clone()) {
            return Err(twice(&op.key));
        }
    }
    Ok((puts, deletes))
}

/// Bytes of a part beside its texts, as [`crate::Entry::size_hint`] counts them: a range has the most, with six numbers.
const PART_BYTES: usize = 80;

fn range_bytes(range: &KeyRange) -> usize {
    range.from.len() + range.to.as_ref().map_or(0, Bytes::len)
}

impl Txn {
    /// An upper bound of the encoded size in bytes.
    pub fn size_hint(&self) -> usize {
        let compares = self.compares.iter().map(|compare| {
            let value = match &compare.operand {
                Operand::Value(value) => value.len(),
                _ => 0,
            };
            PART_BYTES + range_bytes(&compare.range) + value
        });
        let ops = self.success.iter().chain(&self.failure).map(|op| {
            PART_BYTES
                + match op {
                    TxnOp::Range(op) => range_bytes(&op.range),
                    TxnOp::Put(op) => op.key.len() + op.value.len(),
                    TxnOp::Delete(op) => range_bytes(&op.range),
                    TxnOp::Txn(txn) => txn.size_hint(),
                }
        });
        PART_BYTES + compares.chain(ops).sum::<usize>()
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.list(&self.compares, Compare::encode);
        w.list(&self.success, TxnOp::encode);
        w.list(&self.failure, TxnOp::encode);
    }

    /// `parts` are those that the entry may still have, and `depth` the levels.
    pub(crate) fn decode(r: &mut Reader, parts: &mut usize, depth: usize) -> Result<Self, DecodeError> {
        let Some(depth) = depth.checked_sub(1) else {
            let limit = TXN_DEPTH_MAX as u64;
            return Err(DecodeError::TooLarge { what: "depth of transactions", got: limit + 1, limit });
        };
        let take = |parts: &mut usize| {
            let limit = ENTRY_PARTS_MAX as u64;
            *parts = parts.checked_sub(1).ok_or(DecodeError::TooLarge {
                what: "parts of a transaction",
                got: limit + 1,
                limit,
            })?;
            Ok(())
        };
        Ok(Self {
            compares: r.list("compares", ENTRY_PARTS_MAX, |r| {
                take(parts)?;
                Compare::decode(r)
            })?,
            success: r.list("operations", ENTRY_PARTS_MAX, |r| {
                take(parts)?;
                TxnOp::decode(r, parts, depth)
            })?,
            failure: r.list("operations", ENTRY_PARTS_MAX, |r| {
                take(parts)?;
                TxnOp::decode(r, parts, depth)
            })?,
        })
    }
}

fn encode_range(w: &mut Writer, range: &KeyRange) {
    w.bytes(&range.from);
    w.option(range.to.as_ref(), |w, to| w.bytes(to));
}

fn decode_range(r: &mut Reader) -> Result<KeyRange, DecodeError> {
    Ok(KeyRange {
        from: r.bytes("range", KEY_BYTES_MAX)?,
        to: r.option("range end", |r| r.bytes("range end", KEY_BYTES_MAX))?,
    })
}

fn flag(r: &mut Reader, what: &'static str) -> Result<bool, DecodeError> {
    match r.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        tag => Err(DecodeError::Tag { what, tag: tag.into() }),
    }
}

/// Reads one of the values whose place in the list is their number on disk.
fn one_of<T: Copy>(r: &mut Reader, what: &'static str, all: &[T]) -> Result<T, DecodeError> {
    let tag = r.u8(what)?;
    all.get(usize::from(tag)).copied().ok_or(DecodeError::Tag { what, tag: tag.into() })
}

const RELATIONS: [Relation; 4] = [Relation::Equal, Relation::Greater, Relation::Less, Relation::NotEqual];
const ORDERS: [SortOrder; 3] = [SortOrder::None, SortOrder::Ascending, SortOrder::Descending];
const TARGETS: [SortTarget; 5] =
    [SortTarget::Key, SortTarget::Version, SortTarget::CreateRevision, SortTarget::ModRevision, SortTarget::Value];

impl Compare {
    fn encode(w: &mut Writer, compare: &Self) {
        encode_range(w, &compare.range);
        w.u8(compare.relation as u8);
        let (tag, number) = match &compare.operand {
            Operand::Value(value) => {
                w.u8(3);
                w.bytes(value);
                return;
            }
            Operand::Version(number) => (0, number),
            Operand::CreateRevision(number) => (1, number),
            Operand::ModRevision(number) => (2, number),
            Operand::Lease(number) => (4, number),
        };
        w.u8(tag);
        w.zigzag(*number);
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            range: decode_range(r)?,
            relation: one_of(r, "relation", &RELATIONS)?,
            operand: match r.u8("operand")? {
                0 => Operand::Version(r.zigzag("version")?),
                1 => Operand::CreateRevision(r.zigzag("create revision")?),
                2 => Operand::ModRevision(r.zigzag("mod revision")?),
                3 => Operand::Value(r.bytes("compared value", VALUE_BYTES_MAX)?),
                4 => Operand::Lease(r.zigzag("lease")?),
                tag => return Err(DecodeError::Tag { what: "operand", tag: tag.into() }),
            },
        })
    }
}

impl TxnOp {
    fn encode(w: &mut Writer, op: &Self) {
        match op {
            Self::Range(op) => {
                w.u8(0);
                encode_range(w, &op.range);
                let revision = |w: &mut Writer, at: &Revision| w.varint(at.0);
                w.option(op.revision.as_ref(), revision);
                w.varint(op.limit);
                w.u8(op.count_only.into());
                w.u8(op.keys_only.into());
                w.option(op.min_mod_revision.as_ref(), revision);
                w.option(op.max_mod_revision.as_ref(), revision);
                w.option(op.min_create_revision.as_ref(), revision);
                w.option(op.max_create_revision.as_ref(), revision);
                w.u8(op.order as u8);
                w.u8(op.target as u8);
            }
            Self::Put(op) => {
                w.u8(1);
                w.bytes(&op.key);
                w.bytes(&op.value);
                w.option(op.lease.as_ref(), |w, lease| w.zigzag(lease.0));
                w.u8(op.prev_kv.into());
                w.u8(op.ignore_value.into());
                w.u8(op.ignore_lease.into());
            }
            Self::Delete(op) => {
                w.u8(2);
                encode_range(w, &op.range);
                w.u8(op.prev_kv.into());
            }
            Self::Txn(txn) => {
                w.u8(3);
                txn.encode(w);
            }
        }
    }

    fn decode(r: &mut Reader, parts: &mut usize, depth: usize) -> Result<Self, DecodeError> {
        fn revision(r: &mut Reader) -> Result<Option<Revision>, DecodeError> {
            r.option("revision", |r| r.varint("revision").map(Revision))
        }
        Ok(match r.u8("operation")? {
            0 => Self::Range(RangeOp {
                range: decode_range(r)?,
                revision: revision(r)?,
                limit: r.varint("limit")?,
                count_only: flag(r, "count only")?,
                keys_only: flag(r, "keys only")?,
                min_mod_revision: revision(r)?,
                max_mod_revision: revision(r)?,
                min_create_revision: revision(r)?,
                max_create_revision: revision(r)?,
                order: one_of(r, "sort order", &ORDERS)?,
                target: one_of(r, "sort target", &TARGETS)?,
            }),
            1 => Self::Put(PutOp {
                key: r.bytes("key", KEY_BYTES_MAX)?,
                value: r.bytes("value", VALUE_BYTES_MAX)?,
                lease: r.option("lease", |r| r.zigzag("lease").map(LeaseId))?,
                prev_kv: flag(r, "previous value wanted")?,
                ignore_value: flag(r, "value kept")?,
                ignore_lease: flag(r, "lease kept")?,
            }),
            2 => Self::Delete(DeleteOp { range: decode_range(r)?, prev_kv: flag(r, "previous value wanted")? }),
            3 => Self::Txn(Box::new(Txn::decode(r, parts, depth)?)),
            tag => return Err(DecodeError::Tag { what: "operation", tag: tag.into() }),
        })
    }
}

impl fmt::Debug for Compare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let relation = match self.relation {
            Relation::Equal => "==",
            Relation::Greater => ">",
            Relation::Less => "<",
            Relation::NotEqual => "!=",
        };
        match &self.operand {
            Operand::Version(number) => write!(f, "version({:?}) {relation} {number}", self.range),
            Operand::CreateRevision(number) => write!(f, "create_revision({:?}) {relation} {number}", self.range),
            Operand::ModRevision(number) => write!(f, "mod_revision({:?}) {relation} {number}", self.range),
            Operand::Value(value) => write!(f, "value({:?}) {relation} {:?}", self.range, Pretty(value)),
            Operand::Lease(number) => write!(f, "lease({:?}) {relation} {number}", self.range),
        }
    }
}

impl fmt::Debug for RangeOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "range {:?}", self.range)?;
        if let Some(at) = self.revision {
            write!(f, " at {at}")?;
        }
        if self.limit > 0 {
            write!(f, " limit {}", self.limit)?;
        }
        for (name, set) in [("count only", self.count_only), ("keys only", self.keys_only)] {
            if set {
                write!(f, " {name}")?;
            }
        }
        for (name, bound) in [
            ("mod >=", self.min_mod_revision),
            ("mod <=", self.max_mod_revision),
            ("create >=", self.min_create_revision),
            ("create <=", self.max_create_revision),
        ] {
            if let Some(bound) = bound {
                write!(f, " {name} {bound}")?;
            }
        }
        if (self.order, self.target) != (SortOrder::None, SortTarget::Key) {
            write!(f, " by {:?} {:?}", self.target, self.order)?;
        }
        Ok(())
    }
}

impl fmt::Debug for PutOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "put {:?}", Pretty(&self.key))?;
        if !self.ignore_value {
            write!(f, " = {:?}", Pretty(&self.value))?;
        }
        if let Some(lease) = self.lease {
            write!(f, " lease {lease}")?;
        }
        if self.ignore_lease {
            write!(f, " same lease")?;
        }
        Ok(())
    }
}

impl fmt::Debug for TxnOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(op) => op.fmt(f),
            Self::Put(op) => op.fmt(f),
            Self::Delete(op) => write!(f, "delete {:?}", op.range),
            Self::Txn(txn) => txn.fmt(f),
        }
    }
}

impl fmt::Debug for DeleteOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "delete {:?}", self.range)
    }
}

impl fmt::Debug for Txn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "if {:?} then {:?} else {:?}", self.compares, self.success, self.failure)
    }
}
