//! Sequences: an append that was seen before is acknowledged and not appended again.
//!
//! Per partition and producer, the epoch, the next expected number and the places of the last batches are remembered.
//!
//! | the append says | outcome |
//! |---|---|
//! | unknown producer, or a newer epoch | appended, wherever its numbers start |
//! | an older epoch | stale epoch |
//! | the next number | appended |
//! | only numbers below the next | duplicate, with the first offset where it lies in the last batches |
//! | numbers below the first of its epoch | gap: they were never here, so they must not be acknowledged |
//! | some numbers below the next, some not | gap: acknowledging it would lose the rest |
//! | a number above the next | gap |
//!
//! The first number of an epoch counts because of batches that overtake each other. A producer may have several under way;
//! the first is lost with a leader, the second arrives and starts the epoch where it likes, and then the first is sent
//! again. It lies below the next number and yet was never seen.
//!
//! Kafka's sequence numbers are 31 bits wide and start again from zero; the numbers of producers named `kafka:…` are
//! compared on that circle (source: Kafka, `DefaultRecordBatch.incrementSequence`). All others simply count.

use buttress_core::{AppendOutcome, DecodeError, Mutant, Offset, Reader, Sequence, Writer, mutant};
use bytes::Bytes;

/// Batches whose places are remembered per producer, as many as a Kafka producer may have in flight.
pub const RECENT_BATCHES: usize = 5;

const KAFKA_PREFIX: &str = "kafka:";
const KAFKA_NUMBERS: i64 = 1 << 31;

/// What a partition remembers of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    pub epoch: i32,
    pub next: i64,
    /// The number with which the epoch began here. `None`: everything below the next number counts as seen; so it is in
    /// rows that were written before this was remembered, and half a circle of Kafka's numbers later.
    first: Option<i64>,
    /// First number and base offset of the last batches, oldest first; the first `recent_len` count.
    recent: [(i64, i64); RECENT_BATCHES],
    recent_len: u8,
}

/// The number line of a producer.
#[derive(Clone, Copy)]
pub(crate) struct Numbers {
    kafka: bool,
}

impl Numbers {
    pub(crate) fn of(producer: &str) -> Self {
        Self { kafka: producer.starts_with(KAFKA_PREFIX) }
    }

    /// Whether `number` and the `records - 1` after it exist.
    pub(crate) fn holds(self, number: i64, records: u32) -> bool {
        if self.kafka {
            (0..KAFKA_NUMBERS).contains(&number)
        } else {
            number >= 0 && number.checked_add(records.into()).is_some()
        }
    }

    fn add(self, number: i64, records: u32) -> i64 {
        let sum = number + i64::from(records);
        if self.kafka { sum % KAFKA_NUMBERS } else { sum }
    }

    /// How far `number` lies after `from`; negative when before it.
    fn distance(self, from: i64, number: i64) -> i64 {
        let straight = number - from;
        if !self.kafka {
            return straight;
        }
        let around = straight.rem_euclid(KAFKA_NUMBERS);
        if around < KAFKA_NUMBERS / 2 { around } else { around - KAFKA_NUMBERS }
    }
}

impl Producer {
    pub(crate) fn recent(&self) -> &[(i64, i64)] {
        &self.recent[..usize::from(self.recent_len)]
    }

    pub(crate) fn last_base(&self) -> Offset {
        Offset(self.recent().last().expect("a producer is remembered with its first batch").1)
    }

    /// Judges an append; `None` means that it is to be appended.
    pub(crate) fn judge(known: Option<&Self>, sequence: &Sequence, records: u32) -> Option<AppendOutcome> {
        let known = known?;
        if sequence.epoch > known.epoch {
            return None;
        }
        if sequence.epoch < known.epoch && !mutant::active(Mutant::OldEpoch) {
            return Some(AppendOutcome::StaleEpoch { current: known.epoch });
        }
        let numbers = Numbers::of(&sequence.producer);
        let ahead = numbers.distance(known.next, sequence.number);
        let wrong = (ahead == 1 && mutant::active(Mutant::SequenceGap))
            || (ahead == -i64::from(records) && mutant::active(Mutant::SequenceTwice));
        if ahead == 0 || wrong {
            None
        } else if ahead > 0
            || ahead + i64::from(records) > 0
            || known.first.is_some_and(|first| numbers.distance(first, sequence.number) < 0)
        {
            Some(AppendOutcome::Gap { expected: known.next })
        } else {
            // The newest remembered batch that starts at or before the number holds it.
            let place = known.recent().iter().rev().find_map(|(first, base)| {
                let inside = numbers.distance(*first, sequence.number);
                (inside >= 0).then_some(Offset(base + inside))
            });
            Some(AppendOutcome::Duplicate { base_offset: place })
        }
    }

    /// The producer after its batch was appended at `base`.
    pub(crate) fn after(known: Option<&Self>, sequence: &Sequence, records: u32, base: Offset) -> Self {
        let mut producer = match known {
            Some(known) if known.epoch == sequence.epoch => *known,
            _ => Self {
                epoch: sequence.epoch,
                next: 0,
                first: Some(sequence.number),
                recent: [(0, 0); RECENT_BATCHES],
                recent_len: 0,
            },
        };
        let numbers = Numbers::of(&sequence.producer);
        producer.next = numbers.add(sequence.number, records);
        producer.first = producer.first.filter(|first| numbers.distance(*first, producer.next) >= 0);
        if usize::from(producer.recent_len) == RECENT_BATCHES {
            producer.recent.rotate_left(1);
            producer.recent_len -= 1;
        }
        producer.recent[usize::from(producer.recent_len)] = (sequence.number, base.0);
        producer.recent_len += 1;
        producer
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(64);
        w.zigzag(self.epoch.into());
        w.zigzag(self.next);
        w.list(self.recent(), |w, (number, base)| {
            w.zigzag(*number);
            w.zigzag(*base);
        });
        w.option(self.first.as_ref(), |w, first| w.zigzag(*first));
        w.finish()
    }

    pub(crate) fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let epoch = r.zigzag("epoch")? as i32;
        let next = r.zigzag("next number")?;
        let list = r.list("recent batches", RECENT_BATCHES, |r| Ok((r.zigzag("number")?, r.zigzag("base offset")?)))?;
        if list.is_empty() {
            return Err(DecodeError::Short("recent batches"));
        }
        let first = match r.remaining() {
            0 => None,
            _ => r.option("first number", |r| r.zigzag("first number"))?,
        };
        let mut recent = [(0, 0); RECENT_BATCHES];
        recent[..list.len()].copy_from_slice(&list);
        Ok(Self { epoch, next, first, recent, recent_len: list.len() as u8 })
    }
}
