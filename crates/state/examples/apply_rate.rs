//! Prints how fast entries are applied: readings of 10,000 devices, packed into entries of 256 appends with a sequence
//! each, a put and a cursor. Run with `cargo run --release -p buttress-state --example apply_rate`.

use std::time::Instant;

use buttress_core::{
    Append, Cursor, Entry, Index, LogId, Machine as _, Offset, Put, RequestId, Sequence, Store, StoreError, Table,
    Term, TimeMs, TopicChange, WriteBatch,
};
use buttress_state::{Machine, MemStore, local::opaque_batch};
use bytes::Bytes;

/// Takes batches and forgets them, so that what is measured is the machine.
struct Nothing(Index, Term);

impl Store for Nothing {
    fn applied(&self) -> (Index, Term) {
        (self.0, self.1)
    }

    fn get(&self, _: Table, _: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }

    fn scan(&self, _: Table, _: &[u8], _: Option<&[u8]>, _: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        Ok(Vec::new())
    }

    fn write(&mut self, batch: WriteBatch) {
        (self.0, self.1) = (batch.index, batch.term);
    }
}

const DEVICES: usize = 10_000;
const APPENDS: usize = 256;
const ENTRIES: usize = 4_000;
const PARTITIONS: usize = 4;

fn entries(appends: usize, entries: usize) -> Vec<Bytes> {
    let create = TopicChange::Create {
        name: "telemetry".into(),
        id: [1; 16],
        partitions: PARTITIONS as u32,
        settings: Default::default(),
    };
    let mut all = vec![Entry { topics: vec![create], ..Entry::default() }.encode()];
    let batch = opaque_batch(1, &[b'r'; 120]);
    for entry in 0..entries {
        let append = |at: usize| {
            let (device, number) = (at % DEVICES, (at / DEVICES) as i64);
            let sequence = Sequence { producer: format!("device:cnc-{device:05}"), epoch: 0, number };
            let log = LogId((device % PARTITIONS) as u32 + 1);
            Append { log, records: 1, max_timestamp_ms: 0, sequence: Some(sequence), batch: batch.clone() }
        };
        let number = entry as u64;
        let put = Put { key: Bytes::from(format!("k{}", entry % 100)), value: Some("value".into()), lease: None };
        let entry = Entry {
            request: Some(RequestId { client: 1, number, acknowledged_below: number.saturating_sub(64) }),
            time: TimeMs(number),
            appends: (0..appends).map(|n| append(entry * appends + n)).collect(),
            puts: vec![put],
            cursors: vec![Cursor { group: "g".into(), log: LogId(1), next: Offset(0), metadata: String::new() }],
            ..Entry::default()
        };
        all.push(entry.encode());
    }
    all
}

// An example that measures reads the clock; the crate itself never does.
#[allow(clippy::disallowed_methods)]
fn measure<S: Store>(name: &str, store: S, appends: usize, log: &[Bytes]) {
    let mut machine = Machine::open(store).expect("the store can be read");
    let start = Instant::now();
    for (at, entry) in log.iter().enumerate() {
        let effects = machine.apply(Index(at as u64 + 1), Term(1), entry.clone());
        assert!(effects.result.is_ok());
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{name}: {:.0} entries/s, {:.0} appends/s of 181 bytes",
        log.len() as f64 / seconds,
        (log.len() * appends) as f64 / seconds
    );
}

fn main() {
    let packed = entries(APPENDS, ENTRIES);
    let single = entries(1, 200_000);
    measure("packed, machine alone ", Nothing(Index(0), Term(0)), APPENDS, &packed);
    measure("packed, with MemStore ", MemStore::new(), APPENDS, &packed);
    measure("single, machine alone ", Nothing(Index(0), Term(0)), 1, &single);
    measure("single, with MemStore ", MemStore::new(), 1, &single);
}
