//! Records of devices, each once, on a stream that knows no sequences.
//!
//! The problem: a device sends a record again when it got no answer, perhaps through another host, and the record may be
//! there already. The embedded log holds a device's sequence against what it has; a Kafka of the user's cannot. So a topic
//! with sequence fields gets an *intake* there, a topic with as many partitions:
//!
//! 1. an edge appends to the intake, at least once, and answers its device: what is in the intake is not lost;
//! 2. whoever has the seat of the intake's partition ([`run`]) moves new records on to the topic, in one transaction with
//!    the intake's cursor and the devices' [`Window`]s. What has come before is left out there.
//!
//! So the topic has each record once, whoever died or sent again meanwhile, and its readers need not know any of this.
//!
//! A window remembers the highest number of a device and which of the [`WINDOW`] numbers below it have come, so a record is
//! neither lost nor doubled where a few come in another order. They rarely do: an edge lets nothing of a connection past a
//! record that has failed ([`crate::ingest::Options::sequences_behind`]), so a device's numbers come in their order but for
//! what it sends again.
//!
//! **First start and recovery.** A claim reads the cursor and the windows as the last transaction has left them.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use buttress_core::{
    Append, Claims, Code, Cursor, Entry, Error, Guard, Ledger, LogId, Offset, StatePut, Stream, SubmitError,
    ledger::Batch,
};
use buttress_wire::records::{BatchView, Builder, Record};
use bytes::Bytes;
use tokio::time::Instant;

use crate::ingest::sequence_of;

/// Numbers below a device's highest that are told apart. A device has fewer on their way.
pub const WINDOW: u32 = 128;
const ROW_BYTES: usize = 4 + 8 + 16;
/// One fetch, and so about one transaction: 2,000 readings.
const FETCH_BYTES_MAX: usize = 512 * 1024;
const FETCH_WAIT_MS: u64 = 1_000;
/// A transaction begins at most this often, so that it carries tens of records while there are some.
const PAUSE: Duration = Duration::from_millis(10);
/// After a fault.
const AGAIN: Duration = Duration::from_millis(200);

/// Which of a device's numbers have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    epoch: i32,
    highest: i64,
    /// Bit `n`: `highest - n` has come.
    seen: u128,
}

impl Window {
    /// After the first record of a device.
    pub fn new(epoch: i32, number: i64) -> Self {
        Self { epoch, highest: number, seen: 1 }
    }

    /// Takes a record; whether it is new.
    pub fn take(&mut self, epoch: i32, number: i64) -> bool {
        if epoch > self.epoch {
            // The device starts anew.
            *self = Self::new(epoch, number);
            return true;
        }
        if epoch < self.epoch {
            return false;
        }
        if number > self.highest {
            let ahead = number.abs_diff(self.highest);
            self.seen = if ahead < u64::from(WINDOW) { self.seen << ahead | 1 } else { 1 };
            self.highest = number;
            return true;
        }
        let behind = self.highest.abs_diff(number);
        if behind >= u64::from(WINDOW) || self.seen >> behind & 1 == 1 {
            return false;
        }
        self.seen |= 1 << behind;
        true
    }

    pub fn to_row(self) -> Bytes {
        let mut row = Vec::with_capacity(ROW_BYTES);
        row.extend_from_slice(&self.epoch.to_be_bytes());
        row.extend_from_slice(&self.highest.to_be_bytes());
        row.extend_from_slice(&self.seen.to_be_bytes());
        row.into()
    }

    /// # Errors
    /// `CORRUPT` for bytes that are no row.
    pub fn from_row(row: &[u8]) -> Result<Self, Error> {
        let strange = || Error::new(Code::CORRUPT, format!("{} bytes are no window of a device", row.len()));
        let (epoch, rest) = row.split_first_chunk().ok_or_else(strange)?;
        let (highest, rest) = rest.split_first_chunk().ok_or_else(strange)?;
        let seen = rest.try_into().map_err(|_| strange())?;
        Ok(Self {
            epoch: i32::from_be_bytes(*epoch),
            highest: i64::from_be_bytes(*highest),
            seen: u128::from_be_bytes(seen),
        })
    }
}

/// What must hold for any row: what follows it are steps by which numbers come, and each comes once.
pub fn fuzz_window(bytes: &[u8]) {
    let (row, steps) = bytes.split_at(bytes.len().min(ROW_BYTES));
    let Ok(mut window) = Window::from_row(row) else { return };
    assert_eq!(window.to_row(), row, "a row is read as it was written");
    for step in steps {
        let number = window.highest.saturating_add(i64::from(*step) - 128);
        let new = window.take(window.epoch, number);
        assert!(!window.take(window.epoch, number), "{number} came twice (new: {new})");
    }
}

/// What was moved, and what was left out.
#[derive(Debug, Default)]
pub struct Counters {
    pub moved: AtomicU64,
    pub again: AtomicU64,
    /// Records that the edge would not have taken: somebody else writes to the intake.
    pub strange: AtomicU64,
    pub transactions: AtomicU64,
}

impl Counters {
    /// Appends the counters in Prometheus' text form.
    pub fn prometheus(&self, out: &mut String) {
        for (name, counter) in [
            ("moved_total", &self.moved),
            ("again_total", &self.again),
            ("strange_total", &self.strange),
            ("transactions_total", &self.transactions),
        ] {
            let name = format!("buttress_events_intake_{name}");
            let _ = writeln!(out, "# TYPE {name} counter\n{name} {}", counter.load(Relaxed));
        }
    }
}

/// One partition of an intake and where it leads.
#[derive(Clone)]
pub struct Lead {
    pub records: Arc<dyn Ledger>,
    pub stream: Arc<dyn Stream>,
    pub claims: Arc<dyn Claims>,
    /// The topic with sequence fields, and its intake.
    pub topic: String,
    pub intake: String,
    pub fields: (String, String),
    pub partition: i32,
    pub from: LogId,
    pub to: LogId,
    pub counters: Arc<Counters>,
}

/// The group whose cursors say how far an intake was moved.
pub fn group(topic: &str) -> String {
    format!("intake:{topic}")
}

/// Moves a partition's records on for as long as it is polled, whenever this host has its seat.
pub async fn run(lead: Lead) {
    let group = group(&lead.topic);
    loop {
        let mut seat = match lead.claims.seat(&group, &lead.intake, lead.partition).await {
            Ok(seat) => seat,
            Err(error) => {
                tracing::warn!(plane = "events", topic = lead.topic, partition = lead.partition, %error, "no seat");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        loop {
            let ended = tokio::select! {
                ended = lead.go(&group) => ended,
                () = seat.lost() => break,
            };
            if let Err(error) = ended
                && error.code != Code::EPOCH_STALE
            {
                tracing::warn!(
                    plane = "events", topic = lead.topic, partition = lead.partition, %error, "an intake is claimed again"
                );
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

impl Lead {
    /// Claims the partition and moves its records on until something is in the way.
    async fn go(&self, group: &str) -> Result<std::convert::Infallible, Error> {
        let claimed = self.claims.claim(group, self.from, true).await?;
        let mut cursor = claimed.position;
        // Retention may have passed what was moved already, and nothing else: it is days long.
        let mut next = cursor.unwrap_or(claimed.start).max(claimed.start);
        let space = format!("intake/{}", self.partition);
        loop {
            let begun = Instant::now();
            let fetched = self.stream.fetch(self.from, next, FETCH_BYTES_MAX, FETCH_WAIT_MS).await?;
            let Some(last) = fetched.batches.last() else {
                if begun.elapsed() < PAUSE {
                    tokio::time::sleep(PAUSE).await;
                }
                continue;
            };
            let to = Offset(last.last_offset.0 + 1);
            let records = records(&fetched.batches, next)?;
            let entry = self.entry(group, &space, cursor, to, records).await?;
            self.records.submit(entry).await.map_err(SubmitError::into_error)?;
            self.counters.transactions.fetch_add(1, Relaxed);
            (cursor, next) = (Some(to), to);
            tokio::time::sleep_until(begun + PAUSE).await;
        }
    }

    async fn entry(
        &self,
        group: &str,
        space: &str,
        cursor: Option<Offset>,
        to: Offset,
        records: Vec<Record>,
    ) -> Result<Entry, Error> {
        let mut numbered = Vec::with_capacity(records.len());
        for record in records {
            match sequence_of(record.value.as_deref().unwrap_or_default(), &self.fields) {
                Ok(sequence) => numbered.push((record, sequence)),
                Err(error) => {
                    self.counters.strange.fetch_add(1, Relaxed);
                    tracing::warn!(
                        plane = "events", topic = self.intake, partition = self.partition, offset = record.offset, %error,
                        "a record that no edge has taken is left out"
                    );
                }
            }
        }
        let mut windows: HashMap<&str, (Option<Window>, bool)> = HashMap::new();
        for (_, sequence) in &numbered {
            windows.entry(&sequence.producer).or_default();
        }
        let names: Vec<&str> = windows.keys().copied().collect();
        let keys = names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect();
        let rows = self.claims.rows(group, self.from, space, keys).await?;
        for (name, row) in names.iter().zip(rows) {
            let window = row.map(|row| Window::from_row(&row)).transpose()?;
            windows.insert(name, (window, false));
        }
        let mut builder = Builder::new();
        for (record, sequence) in &numbered {
            let (window, changed) = windows.get_mut(sequence.producer.as_str()).expect("its window was read above");
            let new = match window {
                Some(window) => window.take(sequence.epoch, sequence.number),
                None => {
                    *window = Some(Window::new(sequence.epoch, sequence.number));
                    true
                }
            };
            if !new {
                self.counters.again.fetch_add(1, Relaxed);
                continue;
            }
            *changed = true;
            self.counters.moved.fetch_add(1, Relaxed);
            let headers: Vec<(&[u8], Option<&[u8]>)> =
                record.headers.iter().map(|header| (&header.key[..], header.value.as_deref())).collect();
            builder.push(record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), &headers);
        }
        let mut state: Vec<StatePut> = windows
            .into_iter()
            .filter(|(_, (_, changed))| *changed)
            .filter_map(|(name, (window, _))| {
                let key = Bytes::copy_from_slice(name.as_bytes());
                Some(StatePut { space: space.to_owned(), key, value: Some(window?.to_row()) })
            })
            .collect();
        state.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let (count, max_timestamp_ms) = (builder.count(), builder.max_timestamp_ms());
        let append = builder.build().map(|batch| Append {
            log: self.to,
            records: count,
            max_timestamp_ms,
            sequence: None,
            batch,
        });
        Ok(Entry {
            guards: vec![Guard::Cursor { group: group.to_owned(), log: self.from, expected: cursor }],
            state,
            appends: append.into_iter().collect(),
            cursors: vec![Cursor { group: group.to_owned(), log: self.from, next: to, metadata: String::new() }],
            ..Entry::default()
        })
    }
}

/// The records from `from` on.
fn records(batches: &[Batch], from: Offset) -> Result<Vec<Record>, Error> {
    let mut all = Vec::new();
    for batch in batches {
        let view = BatchView::parse_stored(batch.bytes.clone())?;
        if view.is_control() {
            continue;
        }
        for record in view.records()? {
            let record = record?;
            if record.offset >= from.0 {
                all.push(record);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_window_takes_each_number_once_in_whatever_order_they_come() {
        let mut window = Window::new(0, 5);
        let mut take = |number| window.take(0, number);
        assert!(!take(5) && take(6) && take(9) && !take(6));
        assert!(take(7) && take(8) && !take(7));
        // Numbers below the first that was seen may still come.
        assert!(take(4) && !take(4));
        assert!(take(5000) && !take(9), "far below, what has come is not known any more");
        assert!(take(4999) && !take(4999));
    }

    #[test]
    fn a_new_epoch_starts_anew_and_an_old_one_is_over() {
        let mut window = Window::new(1, 100);
        assert!(window.take(2, 1) && !window.take(2, 1) && !window.take(1, 101));
        assert!(window.take(2, i64::MAX) && !window.take(2, i64::MIN));
    }

    #[test]
    fn what_is_no_row_is_told() {
        let window = Window { epoch: 3, highest: -7, seen: u128::MAX - 5 };
        assert_eq!(Window::from_row(&window.to_row()).unwrap(), window);
        for bytes in [0, 3, 27, 29] {
            assert_eq!(Window::from_row(&vec![1; bytes]).unwrap_err().code, Code::CORRUPT);
        }
    }

    proptest! {
        /// As a set would, as long as numbers stay within the window.
        #[test]
        fn a_window_is_a_set_of_what_came(numbers in proptest::collection::vec(0i64..i64::from(WINDOW), 1..300)) {
            let mut window: Option<Window> = None;
            let mut set = BTreeSet::new();
            for number in numbers {
                let new = match &mut window {
                    Some(window) => window.take(0, number),
                    None => {
                        window = Some(Window::new(0, number));
                        true
                    }
                };
                prop_assert_eq!(new, set.insert(number));
                window = Some(Window::from_row(&window.expect("there is one").to_row()).expect("a row"));
            }
        }
    }
}
