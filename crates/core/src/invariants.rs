//! The registry of what must always hold: one id and one sentence each, shared by the simulator, the tests, the checked
//! chaos runs and the node itself.
//!
//! A promise that has no id is not one: a failure names the id, the id leads to its sentence here, and
//! `docs/reference/invariants.md` says where it is checked and by which command. An id is never used again for something
//! else. A violation is a bug of ours, never of a client.

/// An id and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invariant {
    pub id: &'static str,
    pub says: &'static str,
}

/// An invariant that does not hold, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{id} does not hold: {found}")]
pub struct Violation {
    pub id: &'static str,
    pub found: String,
}

impl Invariant {
    /// A violation of this invariant.
    pub fn broken(self, found: impl Into<String>) -> Violation {
        Violation { id: self.id, found: found.into() }
    }

    /// Passes where `condition` holds.
    ///
    /// # Errors
    /// The violation, with what was found, where it does not.
    pub fn hold(self, condition: bool, found: impl FnOnce() -> String) -> Result<(), Violation> {
        if condition { Ok(()) } else { Err(self.broken(found())) }
    }

    /// The invariant of this id.
    pub fn named(id: &str) -> Option<Invariant> {
        ALL.iter().copied().find(|invariant| invariant.id == id)
    }
}

macro_rules! invariants {
    ($($name:ident = $id:literal, $says:literal;)*) => {
        $(#[doc = $says] pub const $name: Invariant = Invariant { id: $id, says: $says };)*
        /// Every invariant, in the order of the page.
        pub const ALL: &[Invariant] = &[$($name),*];
    };
}

invariants! {
    // The replicated log.
    LEADER_1 = "LEADER-1", "a term has at most one leader";
    LOG_1 = "LOG-1", "an index has the same entry on every node that applied it";
    COMMIT_1 = "COMMIT-1", "what is applied first anywhere is durable on a majority";
    ACK_1 = "ACK-1", "an acknowledged entry is in the log, at the index it was acknowledged with";
    ACK_2 = "ACK-2", "whoever asks is answered at most once, and once nothing fails any more, everybody was";
    READ_1 = "READ-1", "a read sees every write that was acknowledged before it began";
    STATE_1 = "STATE-1", "replicas at the same index are equal byte for byte";
    DURABLE_1 = "DURABLE-1", "no acknowledged entry is lost while a majority of disks is whole";
    LIVE_1 = "LIVE-1", "once nothing fails any more, every member catches up within a bound and new entries are committed";
    // What one entry does.
    ENTRY_1 = "ENTRY-1", "an entry is applied whole, or nothing of it but its remembered refusal is";
    ENTRY_2 = "ENTRY-2", "equal entries give byte-equal rows and batches on every replica";
    ENTRY_3 = "ENTRY-3", "the rows alone rebuild the machine that wrote them";
    GUARD_1 = "GUARD-1", "an entry takes effect only if each of its guards holds at its place in the log";
    REQUEST_1 = "REQUEST-1", "a request is carried out at most once, and a retry gets the first result";
    REQUEST_2 = "REQUEST-2", "the clients and results remembered stay within their limits";
    // Keys.
    KEYS_1 = "KEYS-1", "the revision grows by one with every entry that changes keys, and by nothing else";
    KEYS_2 = "KEYS-2", "the changes of a key lie in rising order, none after the current revision";
    KEYS_3 = "KEYS-3", "a compaction takes no change that a read at its revision or later can see, and history below it is refused, never partly given";
    LIN_1 = "LIN-1", "the operations on a key are linearizable";
    LIN_2 = "LIN-2", "entries over several keys take effect at their revision, in an order that real time agrees with, and reads see exactly what the revisions up to theirs wrote";
    TXN_1 = "TXN-1", "a transaction goes the way that its compares say of the state before it, its operations see what those before them left, and its answer is what they saw, however often it is asked for";
    WATCH_1 = "WATCH-1", "a watcher sees every change once and in order, or is told that history is gone; a change of node or leader makes no difference";
    LEASE_1 = "LEASE-1", "a key is attached to living leases only, and to one at most";
    LEASE_2 = "LEASE-2", "a lease ends only by revocation or by an expiry that has reached its deadline";
    LEASE_3 = "LEASE-3", "no key of a lease is seen after the end of the lease was acknowledged";
    LEASE_4 = "LEASE-4", "a lease does not end before its time has passed since it was last kept alive, less 5 percent and a second: no jump of a clock, restart or change of leader takes it";
    LOCK_1 = "LOCK-1", "a lock never has two holders: fencing tokens grow with every holder, and no write under an older token succeeds once a newer one exists";
    TIMER_1 = "TIMER-1", "a timer is due exactly once";
    // Records.
    OFFSET_1 = "OFFSET-1", "the offsets of a partition are gap-free, and each batch's bytes carry the offset at which it lies";
    OFFSET_2 = "OFFSET-2", "a partition's start is never past its end, and its marks lie between them in rising order";
    TOPIC_1 = "TOPIC-1", "a partition's log belongs to exactly one topic, and its number is never used again";
    DEDUP_1 = "DEDUP-1", "a number of a producer's epoch is appended at most once per partition, and in order";
    RECORD_1 = "RECORD-1", "an acknowledged record is there exactly once, at the offset it was acknowledged with, in its producer's order; one that was not acknowledged is there at most once";
    CURSOR_1 = "CURSOR-1", "a cursor is on a partition that exists and never past its end";
    GROUP_1 = "GROUP-1", "a consumer group's offsets are moved only by members of the generation that the log holds, so a member that missed a rebalance never takes them back";
    UPLINK_1 = "UPLINK-1", "each record behind an uplink's origin is in the target once and in its order, or in exactly one gap record";
    UPLINK_2 = "UPLINK-2", "a gateway whose log is not the one that the target's position speaks of sends nothing under that position";
    UPLINK_3 = "UPLINK-3", "an uplink's position in the target stands behind exactly the records and gaps that are there";
    // Sagas.
    SAGA_1 = "SAGA-1", "a saga's journal is one that its definition allows: steps in order, what was begun undone backwards, and nothing after its end";
    SAGA_2 = "SAGA-2", "a saga ends with every step's effect there, or with none, whatever is lost, repeated or late; it is stuck only once the attempts of an undoing are spent";
    // Hosts on an engine of the user's.
    SEAT_1 = "SEAT-1", "a host takes a seat only after the lease of whoever had it has ended";
    CLAIM_1 = "CLAIM-1", "of all hosts' transactions on a partition, those that commit take each input once and in order, whoever believes that the partition is its own";
    CLAIM_2 = "CLAIM-2", "once whoever changed a function or a model has fenced a partition, nothing is committed there by what it has replaced";
    // Functions.
    PIPE_1 = "PIPE-1", "a function's cursor, state and outputs move together: they are what the inputs below the cursor give, each taken once";
    FN_1 = "FN-1", "the ranges of a function's audit records for one partition tile the topic: no hole, no overlap";
    FN_2 = "FN-2", "no audit record names a generation of a model after the marker by which a later one was pushed";
    FN_3 = "FN-3", "outputs and state of a batch exist exactly if its audit record does";
    FN_4 = "FN-4", "a record that the function cannot handle moves to the dead-letter topic in the entry that skips it";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../../docs/reference/invariants.md");

    #[test]
    fn ids_are_unique_and_well_formed() {
        let mut seen = BTreeSet::new();
        for Invariant { id, says } in ALL {
            assert!(seen.insert(id), "{id} is given twice");
            let (word, number) = id.split_once('-').expect("a word and a number");
            assert!(word.len() >= 2 && word.bytes().all(|byte| byte.is_ascii_uppercase()), "{id}");
            assert!(number.parse::<u8>().is_ok_and(|number| number > 0), "{id}");
            assert!(!says.ends_with('.') && says.starts_with(|c: char| c.is_lowercase()), "{id}: {says}");
            assert_eq!(Invariant::named(id).map(|found| found.id), Some(*id));
        }
        assert_eq!(Invariant::named("LOG-0"), None);
    }

    #[test]
    fn the_page_lists_every_id_with_its_sentence_and_a_place_and_no_other() {
        let rows: Vec<Vec<&str>> = PAGE
            .lines()
            .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
            .map(|row| row.split(" | ").collect())
            .filter(|cells: &Vec<&str>| cells[0].contains('-') && !cells[0].starts_with('-'))
            .collect();
        let listed: Vec<(&str, &str)> = rows.iter().map(|cells| (cells[0], cells[1])).collect();
        let registry: Vec<(&str, &str)> = ALL.iter().map(|invariant| (invariant.id, invariant.says)).collect();
        assert_eq!(listed, registry, "docs/reference/invariants.md differs from the registry");
        for cells in rows {
            assert!(cells.len() == 3 && !cells[2].trim().is_empty(), "{} does not say where it is checked", cells[0]);
        }
    }

    #[test]
    fn a_violation_names_its_id() {
        assert_eq!(LOCK_1.hold(true, || unreachable!()), Ok(()));
        let violation = LOCK_1.hold(false, || "two holders at 7".into()).unwrap_err();
        assert_eq!(violation.to_string(), "LOCK-1 does not hold: two holders at 7");
    }
}
