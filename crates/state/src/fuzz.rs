//! Entry points for fuzzers; property tests run them too.

use buttress_core::{Index, Machine as _, Term};
use bytes::Bytes;

use crate::{Limits, Machine, MemStore, invariants};

/// Applies arbitrary bytes as a sequence of entries, each with a length in two bytes before it.
///
/// # Panics
/// Where two replicas differ, an invariant breaks, or reopening gives another machine.
pub fn fuzz_apply(data: &[u8]) {
    let limits =
        Limits { request_clients: 2, request_results_per_client: 3, producers_per_partition: 4, ends_per_entry: 3 };
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
        let effects = machine.apply(index, Term(1), entry.clone());
        assert_eq!(effects, other.apply(index, Term(1), entry), "two replicas answer differently");
        assert_eq!(machine.store(), other.store(), "two replicas hold different rows");
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
