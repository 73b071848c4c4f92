//! The real machine as a part of a model's state.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use buttress_core::{
    Entry, Index, KeyRange, LogId, Machine as _, Offset, Revision, Term,
    invariants::{ENTRY_3, Violation},
    ledger::KeyEvent,
};
use buttress_state::{Effects, Limits, Machine, MemStore, invariants};
use bytes::Bytes;

/// A machine after some entries. Cheap to clone; applying an entry leaves the one it was applied to alone.
#[derive(Clone)]
pub struct Real {
    machine: Arc<Machine<MemStore>>,
    /// Of everything the machine knows and of every record batch.
    digest: u64,
}

impl Real {
    /// The empty machine.
    pub fn new(limits: Limits) -> Self {
        Self::open(MemStore::new(), limits)
    }

    /// The machine that a restart builds from a store's rows.
    ///
    /// # Panics
    /// Where the rows are not those of a machine.
    pub fn open(store: MemStore, limits: Limits) -> Self {
        Self::of(Machine::open_with(store, limits).expect("the rows of a machine open"))
    }

    fn of(machine: Machine<MemStore>) -> Self {
        let rows = machine.hash().expect("a store in memory can be read");
        let mut digest = Fnv(rows);
        let store = machine.store();
        for log in store.logs() {
            for batch in store.batches(log) {
                digest.write(&log.0.to_be_bytes());
                digest.write(&batch.index.0.to_be_bytes());
                digest.write(&batch.bytes);
            }
        }
        Self { digest: digest.0, machine: Arc::new(machine) }
    }

    /// Applies an entry, and checks everything that can be seen in the machine after it.
    ///
    /// # Errors
    /// The invariant that does not hold.
    pub fn apply(&self, entry: &Entry) -> Result<(Self, Effects), Violation> {
        self.apply_encoded(entry.encode())
    }

    /// [`Self::apply`], of an entry as it lies in the log.
    ///
    /// # Errors
    /// The invariant that does not hold.
    pub fn apply_encoded(&self, entry: Bytes) -> Result<(Self, Effects), Violation> {
        let mut machine = Machine::clone(&self.machine);
        let effects = machine.apply(self.index().next(), Term(1), entry);
        invariants::check(&machine)?;
        invariants::check_batches(&machine)?;
        invariants::check_reopen(&machine).map_err(|error| ENTRY_3.broken(error.to_string()))??;
        Ok((Self::of(machine), effects))
    }

    /// Applies what sets a model up.
    ///
    /// # Panics
    /// Where it is refused.
    pub fn with(self, entry: &Entry) -> Self {
        let (next, effects) = self.apply(entry).expect("the machine is right from the start");
        effects.result.expect("the model sets up what can be set up");
        next
    }

    pub fn machine(&self) -> &Machine<MemStore> {
        &self.machine
    }

    pub fn store(&self) -> &MemStore {
        self.machine.store()
    }

    pub fn index(&self) -> Index {
        self.machine.applied().0
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// When a key was created and last changed; zeros where it does not exist.
    pub fn key(&self, key: &str) -> (Revision, Revision, Option<Bytes>) {
        let found = self.machine.range(&KeyRange::key(key.to_owned()), 1, None).expect("a store in memory can be read");
        match found.kvs.into_iter().next() {
            Some(kv) => (kv.create_revision, kv.mod_revision, Some(kv.value)),
            None => (Revision(0), Revision(0), None),
        }
    }

    /// Every change of every key, oldest first.
    pub fn history(&self) -> Vec<KeyEvent> {
        let all = KeyRange { from: Bytes::from_static(b"\0"), to: Some(Bytes::new()) };
        self.machine.events_since(&all, Revision(1), usize::MAX).expect("nothing is compacted").events
    }

    pub fn end(&self, log: LogId) -> Offset {
        self.machine.partition(log).expect("the model has created the topic").end
    }

    /// What follows the header of each batch of a log: what a model's opaque batches say.
    pub fn payloads(&self, log: LogId) -> Vec<String> {
        let batches = self.store().batches(log);
        batches
            .map(|batch| String::from_utf8_lossy(&batch.bytes[buttress_state::topics::BATCH_HEADER_BYTES..]).into())
            .collect()
    }
}

impl Hash for Real {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.digest);
    }
}

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "machine at {} {:016x}", self.index(), self.digest)
    }
}

/// FNV-1a, as the machine's own hash.
struct Fnv(u64);

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
