//! A cap on bytes a second: a token bucket that may go into debt.
//!
//! A parcel is sent whole, and may be larger than a second's worth. So a parcel may go as soon as the bucket is not in debt,
//! and pays its whole size afterwards: over any time `t` at most `rate × t + burst + one parcel` bytes are sent. Time that
//! goes backwards adds nothing.

use buttress_core::TimeMs;

#[derive(Clone, Debug)]
pub struct Bucket {
    /// Bytes a second; `None`: no cap.
    rate: Option<u64>,
    /// Millibytes, so that a slow rate and short steps of time lose nothing.
    level: i128,
    burst: i128,
    at: TimeMs,
}

impl Bucket {
    /// `rate` in bytes a second; what is not used is saved up to a second's worth.
    pub fn new(rate: Option<u64>, now: TimeMs) -> Self {
        let rate = rate.filter(|rate| *rate > 0);
        let burst = i128::from(rate.unwrap_or(0)) * 1000;
        Self { rate, level: burst, burst, at: now }
    }

    fn fill(&mut self, now: TimeMs) {
        let Some(rate) = self.rate else { return };
        let passed = now.0.saturating_sub(self.at.0);
        self.at = self.at.max(now);
        self.level = (self.level + i128::from(rate) * i128::from(passed)).min(self.burst);
    }

    /// When the next parcel may go; `now` or earlier means at once.
    pub fn ready_at(&mut self, now: TimeMs) -> TimeMs {
        self.fill(now);
        match self.rate {
            Some(rate) if self.level < 0 => {
                let wait = (-self.level + i128::from(rate) - 1) / i128::from(rate);
                TimeMs(self.at.0.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)))
            }
            _ => now,
        }
    }

    /// A parcel of so many bytes goes.
    pub fn take(&mut self, bytes: usize, now: TimeMs) {
        self.fill(now);
        if self.rate.is_some() {
            self.level -= bytes as i128 * 1000;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_any_time_no_more_is_sent_than_the_rate_the_burst_and_a_parcel() {
        for (rate, parcel) in [(1_000u64, 10usize), (1_000, 5_000), (3, 1), (1_000_000, 65_536)] {
            let mut bucket = Bucket::new(Some(rate), TimeMs(0));
            let (mut now, mut sent) = (TimeMs(0), 0u64);
            for _ in 0..2_000 {
                let at = bucket.ready_at(now);
                now = now.max(at);
                bucket.take(parcel, now);
                sent += parcel as u64;
                let most = rate * now.0 / 1000 + rate + parcel as u64 + 1;
                assert!(sent <= most, "{sent} of {most} at {now}");
                // And hardly less, once there is no rest of the burst to use up.
                assert!(sent + rate + parcel as u64 >= rate * now.0 / 1000, "{sent} at {now}");
            }
        }
    }

    #[test]
    fn without_a_rate_nothing_waits_and_a_clock_that_goes_back_gives_nothing() {
        let mut free = Bucket::new(None, TimeMs(5));
        free.take(usize::MAX, TimeMs(5));
        assert_eq!(free.ready_at(TimeMs(5)), TimeMs(5));
        let mut bucket = Bucket::new(Some(1_000), TimeMs(1_000));
        bucket.take(3_000, TimeMs(1_000));
        assert_eq!(bucket.ready_at(TimeMs(0)), TimeMs(3_000));
        assert_eq!(bucket.ready_at(TimeMs(2_500)), TimeMs(3_000));
        assert_eq!(bucket.ready_at(TimeMs(3_000)), TimeMs(3_000));
    }
}
