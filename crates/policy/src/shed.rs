//! Shedding: what is given up first when there is too much.
//!
//! **Why.** Under overload something is lost anyway; the choice is whether it is what matters, and whether it is lost before or
//! after work was spent on it. Two rules:
//!
//! *Priorities.* 0 (critical: health, payment) to 3 (can wait: prefetch, batch); 1 where nothing is said. Each may take its share
//! of the places, so the last places are kept for those that matter more. The queue serves 0 first.
//!
//! *Queue delay.* A queue that empties now and then absorbs bursts. One that has not been empty for `interval` is a standing
//! queue: it only adds delay. Then calls may wait `target` and no longer, save those of priority 0.
//!
//! | queue | a call may wait |
//! |---|---|
//! | empty within the last `interval` | `interval` |
//! | not empty for longer | `target` |
//!
//! **First start.** The queue counts as empty now. **Recovery.** One moment of emptiness ends the strict rule.
//!
//! Source: Maurer, "Fail at scale", ACM Queue 2015 (controlled delay); Nichols, Jacobson, RFC 8289 (CoDel); SRE book, chapter
//! 21, "Criticality".

use std::time::Duration;

use crate::{
    config::{Checks, Invalid, Validate},
    time::Time,
};

/// How much a call matters: 0 most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(u8);

pub const PRIORITIES: usize = 4;

impl Priority {
    pub const CRITICAL: Priority = Priority(0);
    pub const NORMAL: Priority = Priority(1);
    pub const LOW: Priority = Priority(2);
    pub const BULK: Priority = Priority(3);

    /// From a header: what is above 3 is 3.
    pub const fn new(level: u8) -> Self {
        Self(if level > 3 { 3 } else { level })
    }

    pub const fn level(self) -> usize {
        self.0 as usize
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::NORMAL
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// The part of all places that each priority may take.
    pub shares: [f32; PRIORITIES],
    /// How long a call may wait in a standing queue.
    pub target: Duration,
    /// How long a call may wait otherwise, and how long a queue may go without being empty.
    pub interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { shares: [1.0, 1.0, 0.9, 0.75], target: Duration::from_millis(5), interval: Duration::from_millis(100) }
    }
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut checks = Checks::default();
        for (priority, share) in self.shares.into_iter().enumerate() {
            checks.rate(&format!("{prefix}.shares[{priority}]"), share);
        }
        let falls = self.shares.windows(2).all(|pair| pair[0] >= pair[1]);
        checks.must(falls, &format!("{prefix}.shares"), self.shares, "falling from priority 0 to 3");
        checks.span(&format!("{prefix}.interval"), self.interval);
        let fits = self.target <= self.interval;
        checks.must(fits, &format!("{prefix}.target"), self.target, "at most the interval");
        checks.all()
    }
}

impl Config {
    /// The places that calls of a priority may take of `limit`; at least one.
    pub fn places(&self, limit: u32, priority: Priority) -> u32 {
        let share = self.shares[priority.level()];
        if share >= 1.0 { limit } else { ((limit as f32 * share) as u32).max(1) }
    }
}

/// Whether the queue stands.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    emptied: Time,
}

impl Standing {
    pub const fn new() -> Self {
        Self { emptied: Time::ZERO }
    }

    /// The queue is empty, or was until this call came.
    pub fn empty(&mut self, now: Time) {
        self.emptied = self.emptied.max(now);
    }

    pub fn stands(&self, config: &Config, now: Time) -> bool {
        now.since(self.emptied) > config.interval
    }

    /// How long a call may wait in all.
    pub fn wait_max(&self, config: &Config, now: Time, priority: Priority) -> Duration {
        if priority > Priority::CRITICAL && self.stands(config, now) { config.target } else { config.interval }
    }
}

impl Default for Standing {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_queue_makes_everybody_but_the_critical_impatient() {
        let (config, mut queue) = (Config::default(), Standing::new());
        let ms = |n| Duration::from_millis(n);
        queue.empty(Time::from_millis(1_000));
        let wait = |queue: &Standing, at, priority| queue.wait_max(&config, Time::from_millis(at), priority);
        assert_eq!(wait(&queue, 1_100, Priority::NORMAL), ms(100));
        assert_eq!(wait(&queue, 1_101, Priority::NORMAL), ms(5));
        assert_eq!(wait(&queue, 1_101, Priority::CRITICAL), ms(100));
        queue.empty(Time::from_millis(1_200));
        assert_eq!(wait(&queue, 1_201, Priority::BULK), ms(100));
    }

    #[test]
    fn less_important_calls_leave_places_for_others() {
        let config = Config::default();
        assert_eq!([0, 1, 2, 3, 9].map(|p| config.places(100, Priority::new(p))), [100, 100, 90, 75, 75]);
        assert_eq!(config.places(1, Priority::BULK), 1);
        let wrong = Config { shares: [0.5, 1.0, 0.9, 0.0], ..config }.wrong("shed");
        assert_eq!(wrong.iter().map(|w| w.field.as_str()).collect::<Vec<_>>(), ["shed.shares[3]", "shed.shares"]);
    }
}
