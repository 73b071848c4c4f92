//! Mistakes that somebody could have made, built in where they would have been made, and switched on one at a time.
//!
//! A simulator that finds nothing proves something only if it would have found what is wrong. So the production code
//! holds a line for every [`Mutant`], `if mutant::active(Mutant::SkipFsync) { … }`, and the simulator must notice each of
//! them. What no seed notices names a fault that is never injected, or a promise that nobody checks.
//!
//! Without the feature `mutants` [`active`] is a constant `false`, and the compiler leaves nothing of those lines; only
//! the simulator's own mutant build has the feature, which a test of the workspace checks. The switch is one per
//! process: a run of a mutant is a run of all its replicas.

macro_rules! mutants {
    ($($name:ident = $id:literal, $says:literal;)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Mutant {
            $(#[doc = $says] $name,)*
        }

        impl Mutant {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What it is called on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $id,)* }
            }

            /// What it does wrong, in one sentence.
            pub const fn says(self) -> &'static str {
                match self { $(Self::$name => $says,)* }
            }
        }
    };
}

mutants! {
    // The write-ahead log.
    SkipFsync = "skip-fsync", "the log says that a commit is durable without having synced it";
    SkipDirSync = "skip-dir-sync", "a new log segment's name is not synced";
    IgnoreCrc = "ignore-crc", "the log takes a frame whose checksum does not fit";
    RotIsTorn = "rot-is-torn", "a rotten frame is taken for a torn write, and what follows it is dropped";
    TruncateTooFar = "truncate-too-far", "the log lets go of segments that a restart still needs";
    // Consensus.
    AckBeforeQuorum = "ack-before-quorum", "a leader commits what only it has made durable";
    CommitOldTerm = "commit-old-term", "a leader commits by counting the replicas of an older term's entry";
    CommitOnElection = "commit-on-election", "a new leader commits whatever its log holds, counting nobody";
    NoReadBarrier = "no-read-barrier", "reads are answered from local state without asking whether it is the newest";
    ReadBeforeApply = "read-before-apply", "a read is answered before the machine has applied the read's index";
    ForgetVote = "forget-vote", "the vote is not made durable";
    AnswerBeforePersist = "answer-before-persist", "what may leave only after the persist leaves before it";
    AcceptBeforeInstall = "accept-before-install", "a snapshot is acknowledged before its state is in place";
    TruncateOnAppend = "truncate-on-append", "an append that contradicts nothing truncates the log behind it";
    SnapshotTooHigh = "snapshot-too-high", "a snapshot's description names an entry more than its state holds";
    // The state machine.
    NoGuards = "no-guards", "entries are applied without looking at their guards";
    DoubleApply = "double-apply", "the first entry after a restart is carried out twice";
    LoseDedup = "lose-dedup", "remembered results are not there after a restart or a snapshot";
    LoseProducers = "lose-producers", "producers' sequences are not there after a restart or a snapshot";
    ForgetRefusal = "forget-refusal", "a refusal is not remembered, so a late copy of the entry may be carried out";
    OldEpoch = "old-epoch", "an append of a producer's older epoch is accepted";
    SequenceGap = "sequence-gap", "an append that skips one sequence number is accepted";
    SequenceTwice = "sequence-twice", "the retry of a producer's last batch is appended again";
    CursorWithoutOutputs = "cursor-without-outputs", "a refused entry moves its cursors all the same";
    LeaseKeepsKeys = "lease-keeps-keys", "a lease ends and its keys stay";
    ExpireEarly = "expire-early", "an expiry ends leases whose deadline has not come";
    TimerTwice = "timer-twice", "a timer that has fired is not forgotten by its row";
    TxnBlind = "txn-blind", "a range in a transaction does not see what the operations before it wrote";
    TxnStale = "txn-stale", "the retry of a transaction is answered from what is there now";
    WatchRepeats = "watch-repeats", "a watch that catches up is given the last revision twice";
    WatchSkips = "watch-skips", "a watch that stops at its limit goes on one revision too late";
    // The cluster's time.
    WallStamps = "wall-stamps", "a leader stamps entries with its wall clock";
    WallOnElection = "wall-on-election", "a new leader sets the cluster's time to its wall clock, and renews nothing";
    StepRenewsNothing = "step-renews-nothing", "leases are not renewed when the cluster's time stepped";
    // Hosts on an engine of the user's.
    SeatStolen = "seat-stolen", "a host takes a seat whether somebody has it or not";
    TenureMemory = "tenure-memory", "a claim goes on from the position that the host remembers";
    TenureOldJudge = "tenure-old-judge", "a version that was replaced before the claim may judge under it";
    FateHopeful = "fate-hopeful", "a commit of which nobody knows is taken for committed";
    // The uplink.
    UplinkPositionApart = "uplink-position-apart", "an uplink commits its position apart from the records";
    UplinkMemory = "uplink-memory", "an uplink goes on from what it remembers, not from what the target has";
    UplinkSilentGap = "uplink-silent-gap", "an uplink that was overtaken by retention leaves no gap record";
    UplinkAnyLog = "uplink-any-log", "an uplink does not look whether the target's position speaks of its own log";
}

impl Mutant {
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
    }
}

/// Whether this build can be wrong on purpose.
pub const BUILT_IN: bool = cfg!(feature = "mutants");

/// Whether this mistake is made.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn active(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

    use super::Mutant;

    const NONE: u8 = u8::MAX;
    static ACTIVE: AtomicU8 = AtomicU8::new(NONE);

    /// Whether this mistake is made.
    #[inline]
    pub fn active(mutant: Mutant) -> bool {
        ACTIVE.load(Relaxed) == mutant as u8
    }

    /// Makes this mistake from now on, in the whole process, and no other.
    pub fn set(mutant: Option<Mutant>) {
        ACTIVE.store(mutant.map_or(NONE, |mutant| mutant as u8), Relaxed);
    }
}

#[cfg(feature = "mutants")]
pub use switch::{active, set};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_found_again() {
        let names: BTreeSet<&str> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
        assert_eq!(names.len(), Mutant::ALL.len());
        for mutant in Mutant::ALL {
            assert_eq!(Mutant::find(mutant.name()), Some(*mutant));
            assert!(!active(*mutant), "nothing is wrong unless it is asked for");
        }
        assert_eq!(Mutant::find("none-of-them"), None);
    }

    #[cfg(feature = "mutants")]
    #[test]
    fn one_at_a_time() {
        set(Some(Mutant::ForgetVote));
        let on: Vec<Mutant> = Mutant::ALL.iter().copied().filter(|mutant| active(*mutant)).collect();
        set(None);
        assert_eq!(on, [Mutant::ForgetVote]);
    }
}
