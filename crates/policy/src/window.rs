//! Counting what happened lately, from many cores at once, without a lock.
//!
//! **Why.** Breakers, budgets and throttles ask "how many in the last ten seconds". Keeping every event costs memory; a
//! plain counter never forgets. [`Recent`] keeps ten slots of a tenth of the window each, so it forgets in steps of a tenth:
//! what it answers covers between 90 % and 100 % of the window.
//!
//! | event | what happens |
//! |---|---|
//! | add in the current slot | the slot's count grows |
//! | add in a slot whose turn has come round | the slot starts anew with this event: nobody has to sweep |
//! | add by a core whose clock lags behind a slot that has started anew | counts in the newer slot |
//! | sum | slots that are not older than the window |
//!
//! [`LastCalls`] is the other kind of window: the last N calls, however long ago. Both are exact when one thread uses them;
//! with several, a sum may miss what is being added at that moment.
//!
//! **First start.** Empty. **Recovery.** Kept in memory only; a new process starts empty.
//!
//! Source: resilience4j, "Sliding windows"; Finagle `WindowedAdder`.

use std::{
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::time::{Time, nanos};

/// Slots of a window of time.
const SLOTS: usize = 10;

/// How many events in a window of time.
#[derive(Debug)]
pub struct Recent {
    slot_nanos: u64,
    /// Which slot of time it is (upper half) and its count (lower half), so that both change in one step.
    slots: [AtomicU64; SLOTS],
}

impl Recent {
    pub fn new(window: Duration) -> Self {
        Self { slot_nanos: (nanos(window) / SLOTS as u64).max(1), slots: Default::default() }
    }

    /// Counts `count` events.
    pub fn add(&self, now: Time, count: u32) {
        let turn = self.turn(now);
        let slot = &self.slots[turn as usize % SLOTS];
        let _ = slot.fetch_update(Relaxed, Relaxed, |old| {
            let (its, had) = unpack(old);
            let lags = (-(SLOTS as i32)..=0).contains(&(turn.wrapping_sub(its) as i32));
            Some(if lags { pack(its, had.saturating_add(count)) } else { pack(turn, count) })
        });
    }

    /// Takes back what the caller has just added at the same `now`.
    pub fn take_back(&self, now: Time, count: u32) {
        let turn = self.turn(now);
        let slot = &self.slots[turn as usize % SLOTS];
        let _ = slot.fetch_update(Relaxed, Relaxed, |old| {
            let (its, had) = unpack(old);
            (its == turn).then(|| pack(its, had.saturating_sub(count)))
        });
    }

    pub fn sum(&self, now: Time) -> u64 {
        let turn = self.turn(now);
        let of = |slot: &AtomicU64| {
            let (its, count) = unpack(slot.load(Relaxed));
            let near = (-(SLOTS as i32)..SLOTS as i32).contains(&(turn.wrapping_sub(its) as i32));
            if near { u64::from(count) } else { 0 }
        };
        self.slots.iter().map(of).sum()
    }

    pub fn clear(&self) {
        for slot in &self.slots {
            slot.store(0, Relaxed);
        }
    }

    fn turn(&self, now: Time) -> u32 {
        (now.nanos() / self.slot_nanos) as u32
    }
}

const fn pack(turn: u32, count: u32) -> u64 {
    (turn as u64) << 32 | count as u64
}

const fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// What a call was, as a window of calls keeps it.
const PRESENT: u8 = 1;
const FAILED: u8 = 2;
const SLOW: u8 = 4;

/// The last N calls: how many, how many failed, how many were slow.
#[derive(Debug)]
pub struct LastCalls {
    ring: Box<[AtomicU8]>,
    next: AtomicU32,
    calls: AtomicU32,
    failed: AtomicU32,
    slow: AtomicU32,
}

/// The sums of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub calls: u32,
    pub failed: u32,
    pub slow: u32,
}

impl LastCalls {
    pub fn new(calls: u32) -> Self {
        Self {
            ring: (0..calls.max(1)).map(|_| AtomicU8::new(0)).collect(),
            next: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            slow: AtomicU32::new(0),
        }
    }

    pub fn add(&self, failed: bool, slow: bool) {
        let new = PRESENT | if failed { FAILED } else { 0 } | if slow { SLOW } else { 0 };
        // The counter goes on for ever. When it wraps at 2^32 it skips a part of the ring once, if N is no power of two.
        let at = self.next.fetch_add(1, Relaxed) as usize % self.ring.len();
        let old = self.ring[at].swap(new, Relaxed);
        for (bit, count) in [(PRESENT, &self.calls), (FAILED, &self.failed), (SLOW, &self.slow)] {
            match (old & bit != 0, new & bit != 0) {
                (false, true) => _ = count.fetch_add(1, Relaxed),
                (true, false) => _ = count.fetch_sub(1, Relaxed),
                _ => {}
            }
        }
    }

    pub fn sums(&self) -> Sums {
        Sums { calls: self.calls.load(Relaxed), failed: self.failed.load(Relaxed), slow: self.slow.load(Relaxed) }
    }

    /// Forgets everything. Calls that are added meanwhile may be forgotten or kept, but counts stay right.
    pub fn clear(&self) {
        for place in &self.ring {
            let old = place.swap(0, Relaxed);
            for (bit, count) in [(PRESENT, &self.calls), (FAILED, &self.failed), (SLOW, &self.slow)] {
                if old & bit != 0 {
                    count.fetch_sub(1, Relaxed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_window_of_time_counts_what_is_in_its_last_ten_slots(
            steps in prop::collection::vec((0u64..400, 1u32..5), 1..200),
        ) {
            let recent = Recent::new(Duration::from_millis(1000));
            let (mut now, mut events) = (0u64, Vec::new());
            for (later, count) in steps {
                now += later;
                recent.add(Time::from_millis(now), count);
                events.push((now / 100, u64::from(count)));
                let model: u64 = events.iter().filter(|(slot, _)| now / 100 - slot < 10).map(|(_, n)| n).sum();
                prop_assert_eq!(recent.sum(Time::from_millis(now)), model);
            }
        }

        #[test]
        fn a_window_of_calls_is_the_last_calls(
            size in 1u32..30,
            calls in prop::collection::vec((any::<bool>(), any::<bool>()), 0..100),
        ) {
            let window = LastCalls::new(size);
            let mut model = VecDeque::new();
            for (failed, slow) in calls {
                window.add(failed, slow);
                model.push_back((failed, slow));
                if model.len() > size as usize {
                    model.pop_front();
                }
                let count = |of: fn(&(bool, bool)) -> bool| model.iter().filter(|call| of(call)).count() as u32;
                let expected = Sums { calls: model.len() as u32, failed: count(|c| c.0), slow: count(|c| c.1) };
                prop_assert_eq!(window.sums(), expected);
            }
            window.clear();
            prop_assert_eq!(window.sums(), Sums::default());
        }
    }

    #[test]
    fn a_core_whose_clock_lags_does_not_wipe_a_newer_slot() {
        let recent = Recent::new(Duration::from_secs(1));
        recent.add(Time::from_millis(1_000), 3);
        recent.add(Time::from_millis(50), 1);
        assert_eq!(recent.sum(Time::from_millis(1_000)), 4);
        recent.take_back(Time::from_millis(1_000), 1);
        assert_eq!(recent.sum(Time::from_millis(1_999)), 3);
        assert_eq!(recent.sum(Time::from_millis(2_000)), 0);
    }

    #[test]
    fn nothing_is_lost_when_threads_count_together() {
        let (recent, calls) = (Recent::new(Duration::from_secs(10)), LastCalls::new(50));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..5_000u64 {
                        recent.add(Time::from_nanos(n), 1);
                        calls.add(n % 2 == 0, n % 4 == 0);
                    }
                });
            }
        });
        assert_eq!(recent.sum(Time::from_nanos(5_000)), 20_000);
        let sums = calls.sums();
        assert_eq!(sums.calls, 50);
        assert!(sums.failed <= 50 && sums.slow <= sums.failed, "{sums:?}");
    }
}
