//! What the policies take as inputs: the time, and random numbers.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use buttress_policy::{Rng, Time};
use tokio::time::Instant;

/// Far enough away for a timer that never fires: a month.
const FOREVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// Tokio's clock, so that `tokio::time::pause` stops the policies too.
#[derive(Debug)]
pub(crate) struct Clock {
    began: Instant,
}

impl Clock {
    pub fn new() -> Self {
        Self { began: Instant::now() }
    }

    pub fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// A moment of the policies' time, for a timer.
    pub fn instant(&self, time: Time) -> Instant {
        Instant::now() + time.since(self.now()).min(FOREVER)
    }
}

/// For dates in `Retry-After`, which are of the wall clock.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The policies' generator, shared by all threads: a draw is one atomic addition.
#[derive(Debug)]
pub(crate) struct Numbers(AtomicU64);

/// The step of [`Rng`], which adds it to its state and mixes.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Numbers {
    pub fn new(seed: Option<u64>) -> Self {
        // The keys of std's maps come from the operating system.
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one("a seed"));
        Self(AtomicU64::new(seed))
    }

    pub fn draw(&self) -> u64 {
        Rng::new(self.0.fetch_add(STEP, Relaxed)).draw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_numbers_that_the_gateway_would_draw_from_it() {
        let (numbers, mut rng) = (Numbers::new(Some(7)), Rng::new(7));
        assert_eq!([(); 5].map(|()| numbers.draw()), [(); 5].map(|()| rng.draw()));
        assert_ne!(Numbers::new(None).draw(), Numbers::new(None).draw());
    }

    #[tokio::test(start_paused = true)]
    async fn time_stands_still_while_tokios_does() {
        let clock = Clock::new();
        assert_eq!(clock.now(), Time::ZERO);
        tokio::time::advance(Duration::from_millis(40)).await;
        assert_eq!(clock.now(), Time::from_millis(40));
        assert_eq!(clock.instant(Time::from_millis(50)) - Instant::now(), Duration::from_millis(10));
        assert!(clock.instant(Time::NEVER) > Instant::now());
    }
}
