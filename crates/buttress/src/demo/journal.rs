//! What the clients know: which readings were sent, which were acknowledged, and (known to the plant only) which of them
//! were true anomalies. Together with what a stock Kafka client reads back this is all that the report judges by.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

/// A set of sequence numbers from 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeqSet {
    words: Vec<u64>,
}

impl SeqSet {
    /// Whether it was new.
    pub fn insert(&mut self, seq: u32) -> bool {
        let (word, bit) = (seq as usize / 64, 1u64 << (seq % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    pub fn contains(&self, seq: u32) -> bool {
        self.words.get(seq as usize / 64).is_some_and(|word| word & (1u64 << (seq % 64)) != 0)
    }

    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            (0..64).filter(move |bit| word & (1u64 << bit) != 0).map(move |bit| (at * 64 + bit) as u32)
        })
    }
}

/// One machine's readings as its client knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineJournal {
    /// Readings 1..=sent were given to the client.
    pub sent: u32,
    pub acked: SeqSet,
    /// Readings that were true anomalies.
    pub truth: SeqSet,
}

/// All machines' journals, and running totals for the progress display.
pub struct Journal {
    machines: Mutex<Vec<MachineJournal>>,
    sent: AtomicU64,
    acked: AtomicU64,
    truth: AtomicU64,
    /// Acknowledgements of readings that were acknowledged before: harmless, and counted.
    acked_again: AtomicU64,
    retries: AtomicU64,
}

impl Journal {
    pub fn new(machines: usize) -> Self {
        Self {
            machines: Mutex::new(vec![MachineJournal::default(); machines]),
            sent: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            truth: AtomicU64::new(0),
            acked_again: AtomicU64::new(0),
            retries: AtomicU64::new(0),
        }
    }

    /// Notes a reading before it is sent and gives its sequence number.
    pub fn send(&self, machine: u32, truth: bool) -> u32 {
        let mut machines = self.machines.lock().expect("no panic under this lock");
        let journal = &mut machines[machine as usize];
        journal.sent += 1;
        self.sent.fetch_add(1, Ordering::Relaxed);
        if truth {
            journal.truth.insert(journal.sent);
            self.truth.fetch_add(1, Ordering::Relaxed);
        }
        journal.sent
    }

    pub fn acknowledge(&self, machine: u32, seq: u32) {
        let mut machines = self.machines.lock().expect("no panic under this lock");
        if machines[machine as usize].acked.insert(seq) {
            self.acked.fetch_add(1, Ordering::Relaxed);
        } else {
            self.acked_again.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn count_retries(&self, readings: usize) {
        self.retries.fetch_add(readings as u64, Ordering::Relaxed);
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    pub fn truth(&self) -> u64 {
        self.truth.load(Ordering::Relaxed)
    }

    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    pub fn snapshot(&self) -> Vec<MachineJournal> {
        self.machines.lock().expect("no panic under this lock").clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_counts_each_acknowledgement_once() {
        let journal = Journal::new(2);
        assert_eq!((journal.send(1, false), journal.send(1, true)), (1, 2));
        journal.acknowledge(1, 2);
        journal.acknowledge(1, 2);
        assert_eq!((journal.sent(), journal.acked(), journal.truth()), (2, 1, 1));
        let machine = &journal.snapshot()[1];
        assert_eq!(machine.acked.iter().collect::<Vec<_>>(), [2]);
        assert!(machine.truth.contains(2) && !machine.truth.contains(64_000));
    }
}
