//! Which faults there are, what is expected of each, and in which order they come.
//!
//! The expectations stand here, before anything is run. Each fault belongs to a *fault model*, and what is expected is told
//! apart: **safety** (nothing bad, whatever happens) and **liveness** (something good, in time, while a majority is there).
//!
//! The order follows from the seed alone: every round plays each kind once, shuffled. When the time is over in the middle
//! of a round, the run ends after the fault that is on.

use std::time::Duration;

use buttress_core::{Code, Error};

use super::dice::Dice;

/// A majority that is together has a leader and commits within this time.
pub const RECOVER_WITHIN: Duration = Duration::from_secs(5);
/// A node that is back has applied what was committed when it came back within this time.
pub const CATCH_UP_WITHIN: Duration = Duration::from_secs(30);
/// A cluster that was killed as a whole and started again commits within this time.
pub const RESTART_WITHIN: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    KillLeader,
    KillFollower,
    Split,
    Isolate,
    CutOut,
    CutIn,
    DelayFollower,
    PauseLeader,
    PauseFollower,
    DiskFull,
    KillAll,
    Transfer,
}

/// What is claimed before the fault.
#[derive(Clone, Copy, Debug)]
pub struct Expectation {
    pub model: &'static str,
    pub what: &'static str,
    pub safety: &'static str,
    pub liveness: &'static str,
}

impl Kind {
    pub const ALL: [Kind; 12] = [
        Self::KillLeader,
        Self::KillFollower,
        Self::Split,
        Self::Isolate,
        Self::CutOut,
        Self::CutIn,
        Self::DelayFollower,
        Self::PauseLeader,
        Self::PauseFollower,
        Self::DiskFull,
        Self::KillAll,
        Self::Transfer,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::KillLeader => "kill-leader",
            Self::KillFollower => "kill-follower",
            Self::Split => "split",
            Self::Isolate => "isolate",
            Self::CutOut => "cut-out",
            Self::CutIn => "cut-in",
            Self::DelayFollower => "delay",
            Self::PauseLeader => "pause-leader",
            Self::PauseFollower => "pause-follower",
            Self::DiskFull => "disk-full",
            Self::KillAll => "kill-all",
            Self::Transfer => "transfer",
        }
    }

    /// # Errors
    /// `CONFIG` with the known names.
    pub fn parse(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
            Error::new(Code::CONFIG, format!("there is no fault \"{name}\""))
                .hint(format!("faults: {}", names.join(", ")))
        })
    }

    pub fn expectation(self) -> Expectation {
        let (model, what, safety, liveness) = match self {
            Self::KillLeader => (
                "crash",
                "SIGKILL to the leader; later it is started again on its old data",
                "no two leaders in a term; nothing acknowledged is lost",
                "another node leads and commits within 5 s; the killed node catches up within 30 s",
            ),
            Self::KillFollower => (
                "crash",
                "SIGKILL to a follower; later it is started again on its old data",
                "nothing acknowledged is lost",
                "commits go on within 2 s; the killed node catches up within 30 s",
            ),
            Self::Split => (
                "partition",
                "a minority with the leader is cut off from the majority, both ways",
                "the minority acknowledges no write and no linearizable read while it is cut off",
                "the majority has a leader and commits within 5 s; after the heal the minority catches up within 30 s",
            ),
            Self::Isolate => (
                "partition",
                "the leader alone is cut off from every other node, both ways",
                "the leader acknowledges nothing while it is cut off",
                "the others have a leader and commit within 5 s; after the heal it catches up within 30 s",
            ),
            Self::CutOut => (
                "one-way partition",
                "what the leader sends to the others vanishes; it still hears them",
                "no two leaders in a term; the old leader acknowledges nothing that the others do not have",
                "the others have a leader and commit within 5 s; after the heal it catches up within 30 s",
            ),
            Self::CutIn => (
                "one-way partition",
                "what the others send to the leader vanishes; they still hear it",
                "no two leaders in a term; the old leader acknowledges nothing that it cannot know to be held by a majority",
                "it gives way, and the others commit within 5 s; after the heal it catches up within 30 s",
            ),
            Self::DelayFollower => (
                "slow network",
                "every byte to and from one follower takes 200 to 250 ms longer",
                "nothing acknowledged is lost, no read is stale",
                "commits go on at once; the follower catches up within 30 s",
            ),
            Self::PauseLeader => (
                "pause",
                "SIGSTOP to the leader for longer than an election takes, then SIGCONT",
                "when it resumes it answers no linearizable read with what was overwritten meanwhile",
                "another node leads and commits within 5 s; the resumed node catches up within 30 s",
            ),
            Self::PauseFollower => (
                "pause",
                "SIGSTOP to a follower, then SIGCONT",
                "when it resumes it answers no linearizable read with what was overwritten meanwhile",
                "commits go on within 2 s; the resumed node catches up within 30 s",
            ),
            Self::DiskFull => (
                "full disk",
                "the disk of a node is filled until it cannot write any more, then emptied",
                "the node stops with BT0202 and acknowledges nothing that it could not write",
                "the others commit within 5 s; with space again the node starts and catches up within 30 s",
            ),
            Self::KillAll => (
                "crash",
                "SIGKILL to every node at once, then all are started again",
                "nothing acknowledged is lost, on no node",
                "a leader commits within 20 s of the start",
            ),
            Self::Transfer => (
                "maintenance",
                "the leader is asked to hand leadership to a follower",
                "no two leaders in a term; nothing acknowledged is lost",
                "the follower leads and commits within 5 s",
            ),
        };
        Expectation { model, what, safety, liveness }
    }
}

/// An endless order of faults.
pub struct Schedule {
    kinds: Vec<Kind>,
    round: Vec<Kind>,
    dice: Dice,
}

impl Schedule {
    pub fn new(kinds: Vec<Kind>, seed: u64) -> Self {
        assert!(!kinds.is_empty(), "a schedule has faults");
        Self { kinds, round: Vec::new(), dice: Dice::new(seed) }
    }

    /// The next fault, and a number from the seed for whatever it has to choose.
    pub fn draw(&mut self) -> (Kind, u64) {
        if self.round.is_empty() {
            self.round = self.kinds.clone();
            self.dice.shuffle(&mut self.round);
        }
        let kind = self.round.pop().expect("the round was filled above");
        (kind, self.dice.roll())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_an_order_and_every_round_plays_each_kind_once() {
        let take = |seed| {
            let mut schedule = Schedule::new(Kind::ALL.to_vec(), seed);
            (0..24).map(|_| schedule.draw()).collect::<Vec<_>>()
        };
        assert_eq!(take(7), take(7));
        assert_ne!(take(7), take(8));
        for round in take(7).chunks(12) {
            let mut kinds: Vec<Kind> = round.iter().map(|(kind, _)| *kind).collect();
            kinds.sort();
            assert_eq!(kinds, Kind::ALL);
        }
    }

    #[test]
    fn names_are_read_back_and_unknown_ones_are_refused() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.name()).unwrap(), kind);
        }
        assert_eq!(Kind::parse("kill").unwrap_err().code, Code::CONFIG);
    }
}
