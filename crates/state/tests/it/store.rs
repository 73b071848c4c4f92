//! A store that cannot be read, and one whose rows have rotted.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use buttress_core::{
    Append, Code, Cursor, Entry, Guard, Index, LeaseChange, LeaseId, LogId, Machine as _, Offset, Put, Refusal,
    RequestId, Sequence, StatePut, Store, StoreError, Table, Term, TimeMs, Timer, TopicChange, WriteBatch,
    entry::TopicSettings,
    store::{Row, RowKey},
};
use buttress_state::{Machine, MemStore, local::opaque_batch};
use bytes::Bytes;
use proptest::{prelude::*, sample};

struct Failing {
    store: MemStore,
    broken: Arc<AtomicBool>,
}

impl Failing {
    fn check(&self) -> Result<(), StoreError> {
        if self.broken.load(Ordering::SeqCst) { Err(StoreError("the disk is gone".into())) } else { Ok(()) }
    }
}

impl Store for Failing {
    fn applied(&self) -> (Index, Term) {
        self.store.applied()
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.check()?;
        self.store.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.check()?;
        self.store.scan(table, from, to, max)
    }

    fn write(&mut self, batch: WriteBatch) {
        self.store.write(batch);
    }
}

fn put(key: &str, value: &str) -> Entry {
    let put = Put { key: key.to_owned().into(), value: Some(value.to_owned().into()), lease: None };
    Entry { puts: vec![put], time: TimeMs(5), ..Entry::default() }
}

#[test]
fn a_store_that_cannot_be_read_stops_the_machine_where_it_is() {
    let broken = Arc::new(AtomicBool::new(false));
    let mut machine = Machine::open(Failing { store: MemStore::new(), broken: broken.clone() }).unwrap();
    assert!(machine.apply(Index(1), Term(1), put("k", "v").encode()).fatal.is_none());
    let guards = vec![Guard::Value { key: "k".into(), value: "v".into() }];
    let guarded = Entry { guards, ..put("k", "w") }.encode();

    broken.store(true, Ordering::SeqCst);
    let rows = machine.store().store.clone();
    let effects = machine.apply(Index(2), Term(1), guarded.clone());
    let fatal = effects.fatal.expect("it cannot be judged");
    assert_eq!((fatal.code, fatal.message.as_str()), (Code::DISK, "the state cannot be read: store: the disk is gone"));
    assert!(matches!(effects.result, Err(Refusal::Part { code: Code::DISK, .. })));
    // Even if the disk comes back: an entry is missing, so nothing may follow it.
    broken.store(false, Ordering::SeqCst);
    assert!(machine.apply(Index(3), Term(1), put("k", "x").encode()).fatal.is_some());
    assert_eq!(machine.applied(), (Index(3), Term(1)));
    assert_eq!(machine.store().store, rows);

    // A restart goes on from what the store has.
    let mut machine = Machine::open(machine.into_store()).unwrap();
    assert_eq!(machine.applied(), (Index(1), Term(1)));
    assert!(machine.apply(Index(2), Term(1), guarded).result.is_ok());
}

/// The rows of a machine that has some of every kind.
fn full() -> MemStore {
    let mut machine = Machine::open(MemStore::new()).unwrap();
    let settings = TopicSettings { retention_ms: Some(10_000), ..TopicSettings::default() };
    let create = TopicChange::Create { name: "t".into(), id: [3; 16], partitions: 2, settings };
    let append = |number| {
        let sequence = Some(Sequence { producer: "device:a".into(), epoch: 0, number });
        Append { log: LogId(1), records: 1, max_timestamp_ms: 0, sequence, batch: opaque_batch(1, b"x") }
    };
    let lease = LeaseId(8);
    let first = Entry { topics: vec![create], time: TimeMs(1), ..Entry::default() };
    let mut second = Entry { appends: vec![append(0), append(1)], ..put("k", "v") };
    second.request = Some(RequestId { client: 1, number: 2, acknowledged_below: 1 });
    second.leases.push(LeaseChange::Grant { lease, ttl_ms: 50 });
    second.puts.push(Put { key: "leased".into(), value: Some("x".into()), lease: Some(lease) });
    second.state.push(StatePut { space: "f".into(), key: "k".into(), value: Some("v".into()) });
    second.timers.push(Timer::Set { id: "t".into(), due: TimeMs(9), key: "k".into(), value: "w".into() });
    // Late enough for a mark.
    let mut third = Entry { appends: vec![append(2)], time: TimeMs(5_000), ..Entry::default() };
    third.cursors.push(Cursor { group: "g".into(), log: LogId(1), next: Offset(2), metadata: "m".into() });
    third.puts.push(Put { key: "k".into(), value: None, lease: None });
    for entry in [first, second, third] {
        let index = machine.applied().0.next();
        assert!(machine.apply(index, Term(1), entry.encode()).result.is_ok());
    }
    let store = machine.into_store();
    let kinds: BTreeSet<u8> = store.rows(Table::Meta).keys().map(|key| key[0]).collect();
    assert_eq!(kinds, (0..=8).collect(), "rows of every kind are there");
    store
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_that_have_rotted_never_panic(
        row in any::<sample::Index>(),
        at in any::<sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut store = full();
        let rows: Vec<(Table, RowKey, Bytes)> = Table::ALL
            .into_iter()
            .flat_map(|table| store.rows(table).iter().map(move |(key, value)| (table, key.clone(), value.clone())))
            .collect();
        let (table, key, value) = row.get(&rows).clone();
        let mut rotted = value.to_vec();
        if !rotted.is_empty() {
            let at = at.index(rotted.len());
            rotted[at] = byte;
            if cut {
                rotted.truncate(at);
            }
        }
        let (index, term) = store.applied();
        let rows = vec![Row { table, key, value: Some(rotted.into()), fresh: false }];
        store.write(WriteBatch { index: index.next(), term, rows, ..WriteBatch::default() });
        // An error, or a machine; what the checksums of a disk let through need not be right, but must not panic.
        if let Ok(machine) = Machine::open(store) {
            machine.hash().unwrap();
        }
    }
}
