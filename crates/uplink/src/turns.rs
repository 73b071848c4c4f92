//! Whose parcel goes next, where several lanes share a link.
//!
//! Each class has a weight, and the link is shared by weight among the classes that have something to send: stride
//! scheduling over bytes. A class that had nothing to send begins where the others are, so it neither owes nor is owed
//! anything; within a class lanes go round. So an alert waits for at most the parcel that is on its way, and the lowest class
//! still gets its share: with all three busy 64 of 73, 8 of 73 and 1 of 73.

use std::collections::{BTreeMap, VecDeque};

/// Which class a topic's records belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

pub const CLASSES: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

impl Priority {
    pub fn text(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    pub fn named(text: &str) -> Option<Self> {
        CLASSES.into_iter().find(|class| class.text() == text)
    }

    pub fn weight(self) -> u64 {
        match self {
            Self::High => 64,
            Self::Normal => 8,
            Self::Low => 1,
        }
    }
}

#[derive(Debug, Default)]
struct Class {
    /// Lanes that want to send, in the order in which they came.
    waiting: VecDeque<u64>,
    /// Bytes sent by weight; the lowest is served next.
    pass: u64,
}

/// Lanes that wait for the link.
#[derive(Debug, Default)]
pub struct Turns {
    classes: BTreeMap<Priority, Class>,
    /// Where the class that was served last stood.
    now: u64,
}

impl Turns {
    /// A lane has a parcel. Asking again changes nothing.
    pub fn ask(&mut self, lane: u64, priority: Priority) {
        let now = self.now;
        let class = self.classes.entry(priority).or_default();
        if class.waiting.is_empty() {
            class.pass = class.pass.max(now);
        }
        if !class.waiting.contains(&lane) {
            class.waiting.push_back(lane);
        }
    }

    /// A lane wants nothing any more.
    pub fn leave(&mut self, lane: u64) {
        for class in self.classes.values_mut() {
            class.waiting.retain(|waiting| *waiting != lane);
        }
    }

    /// Who is next, without taking it off. On equal terms the higher class goes first.
    pub fn next(&self) -> Option<u64> {
        let busy = self.classes.iter().filter(|(_, class)| !class.waiting.is_empty());
        let (_, class) = busy.min_by_key(|(priority, class)| (class.pass, **priority))?;
        class.waiting.front().copied()
    }

    /// The lane goes, with so many bytes.
    pub fn go(&mut self, lane: u64, bytes: usize) {
        let found = self.classes.iter_mut().find(|(_, class)| class.waiting.contains(&lane));
        let Some((priority, class)) = found else { return };
        class.waiting.retain(|waiting| *waiting != lane);
        self.now = self.now.max(class.pass);
        // 64 is the largest weight, so that no parcel is free.
        class.pass = class.pass.saturating_add((bytes.max(1) as u64).saturating_mul(64 / priority.weight()));
    }

    pub fn is_empty(&self) -> bool {
        self.classes.values().all(|class| class.waiting.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_link_is_shared_by_weight_and_nobody_starves() {
        let mut turns = Turns::default();
        let mut sent = [0u64; 3];
        for _ in 0..7_300 {
            for (lane, class) in CLASSES.into_iter().enumerate() {
                turns.ask(lane as u64, class);
            }
            let lane = turns.next().unwrap();
            turns.go(lane, 1_000);
            sent[lane as usize] += 1;
        }
        assert_eq!(sent, [6_400, 800, 100]);
    }

    #[test]
    fn an_alert_that_comes_after_a_long_silence_goes_before_all_else_but_saves_nothing_up() {
        let mut turns = Turns::default();
        for _ in 0..1_000 {
            turns.ask(1, Priority::Low);
            turns.ask(2, Priority::Normal);
            let lane = turns.next().unwrap();
            turns.go(lane, 1_000);
        }
        turns.ask(1, Priority::Low);
        turns.ask(2, Priority::Normal);
        turns.ask(3, Priority::High);
        assert_eq!(turns.next(), Some(3));
        // A flood of alerts does not keep the others out for as long as it was silent.
        let mut others = 0;
        for _ in 0..200 {
            turns.ask(3, Priority::High);
            let lane = turns.next().unwrap();
            others += u64::from(lane != 3);
            turns.go(lane, 1_000);
            turns.ask(lane, [Priority::Low, Priority::Normal, Priority::High][lane as usize - 1]);
        }
        assert!((20..60).contains(&others), "{others}");
    }

    #[test]
    fn lanes_of_a_class_go_round_and_who_leaves_is_not_waited_for() {
        let mut turns = Turns::default();
        for lane in [1, 2, 3, 2] {
            turns.ask(lane, Priority::Normal);
        }
        let mut order = Vec::new();
        for _ in 0..5 {
            let lane = turns.next().unwrap();
            turns.go(lane, 10);
            turns.ask(lane, Priority::Normal);
            order.push(lane);
        }
        assert_eq!(order, [1, 2, 3, 1, 2]);
        turns.leave(3);
        assert_eq!(turns.next(), Some(1));
        turns.leave(1);
        turns.leave(2);
        assert!(turns.is_empty() && turns.next().is_none());
    }
}
