//! Entry points for fuzzers; property tests run them too.

use std::collections::BTreeMap;

use buttress_core::{
    Compare, Index, KeyRange, Machine as _, Operand, RangeOp, Relation, Revision, Store as _, Table, Term, TimeMs, Txn,
    TxnOp, WriteBatch, store::Row,
};
use bytes::Bytes;

use crate::{Limits, Machine, MemStore, PageLimits, invariants};

/// Applies arbitrary bytes as a sequence of entries, each with a length in two bytes before it.
///
/// # Panics
/// Where two replicas differ, an invariant breaks, or reopening gives another machine.
pub fn fuzz_apply(data: &[u8]) {
    let limits = Limits {
        request_clients: 2,
        request_results_per_client: 3,
        producers_per_partition: 4,
        ends_per_entry: 3,
        sweep_per_entry: 8,
        ..Limits::default()
    };
    let open = |store| Machine::open_with(store, limits).expect("memory can be read");
    let mut machine = open(MemStore::new());
    let mut other = open(MemStore::new());
    let mut rest = Bytes::copy_from_slice(data);
    let mut index = Index(0);
    while rest.len() >= 2 {
        let len = usize::from(u16::from_be_bytes([rest[0], rest[1]])).min(rest.len() - 2);
        let entry = rest.slice(2..2 + len);
        rest = rest.slice(2 + len..);
        index = index.next();
        let before = machine.store().applied();
        let effects = machine.apply(index, Term(1), entry.clone());
        assert_eq!(effects, other.apply(index, Term(1), entry), "two replicas answer differently");
        assert_eq!(machine.store(), other.store(), "two replicas hold different rows");
        if effects.fatal.is_some() {
            // Of a format that is not known: the host stops, and nothing has changed.
            assert_eq!(machine.store().applied(), before, "an entry that cannot be read changes nothing");
            return;
        }
        // One of them restarts after every entry.
        other = open(other.into_store());
    }
    let checked = invariants::check(&machine)
        .and_then(|()| invariants::check_batches(&machine))
        .and_then(|()| invariants::check_reopen(&machine).expect("memory can be read"));
    if let Err(violation) = checked {
        panic!("{violation}");
    }
}

/// Opens a machine on arbitrary rows, as they come out of a snapshot or a damaged store: table, key length, value length
/// in two bytes, key, value. What opens must answer every question; that it makes sense is not asked.
pub fn fuzz_rows(data: &[u8]) {
    let mut rows = BTreeMap::new();
    let mut rest = data;
    while let [table, key, high, low, tail @ ..] = rest {
        let (key, tail) = tail.split_at(usize::from(*key).min(tail.len()));
        let (value, tail) = tail.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(tail.len()));
        rows.insert((usize::from(*table) % Table::ALL.len(), key), value);
        rest = tail;
    }
    let rows = rows.into_iter().map(|((table, key), value)| Row {
        table: Table::ALL[table],
        key: key.into(),
        value: Some(Bytes::copy_from_slice(value)),
        fresh: false,
    });
    let mut store = MemStore::new();
    store.write(WriteBatch { index: Index(1), term: Term(1), rows: rows.collect(), ..WriteBatch::default() });
    let Ok(machine) = Machine::open(store) else { return };
    let all = KeyRange::prefix("");
    let _ = machine.range(&all, 10, None);
    let _ = machine.range(&all, 10, Some(Revision(2)));
    let _ = machine.page(&all, None, true, PageLimits { keys: 3, looks: 5, bytes: 100 });
    let _ = machine.changed_since(&all, Revision(2), (3, 5), true);
    let _ = machine.hash_page(&all, None, 5);
    let _ = machine.read_txn(&Txn {
        compares: vec![Compare {
            range: KeyRange { from: Bytes::from_static(b"a"), to: Some(Bytes::new()) },
            relation: Relation::Greater,
            operand: Operand::Value(Bytes::new()),
        }],
        success: vec![TxnOp::Range(RangeOp::new(KeyRange::prefix("b")))],
        ..Txn::default()
    });
    let _ = machine.events_since(&all, Revision(0), 3);
    let _ = machine.events_since(&all, machine.revision(), 3);
    let _ = (machine.topics(), machine.next_deadline(), machine.retention(TimeMs(u64::MAX)), machine.hash());
    let _ = invariants::check(&machine);
}

/// A remembered result, which the store gives back.
///
/// # Panics
/// Where one that can be read does not survive being written.
pub fn fuzz_result(data: &[u8]) {
    use crate::requests::{decode_result, encode_result};
    if let Ok(kept) = decode_result(Bytes::copy_from_slice(data), &[]) {
        let again = decode_result(encode_result(&kept.result, kept.txn.as_ref()), &[]);
        assert_eq!(again.as_ref(), Ok(&kept), "a result survives a round trip");
    }
}
