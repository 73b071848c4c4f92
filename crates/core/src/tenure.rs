//! How a host keeps a partition of an engine that knows nothing of our keys, without IO: whose turn it is ([`turn`]), how long
//! a seat lasts ([`Hold`]), what may be done under a claim ([`Tenure`]), and what is known of a commit ([`Fate`]). Hosts run
//! this on the user's etcd and Kafka, and the simulator runs it on models of them.
//!
//! **Why two of them.** A seat is a key with a lease. It decides who works, and keeps hosts from fencing each other again and
//! again; it decides nothing else, for a process may be paused between looking at its clock and acting. What keeps two hosts
//! apart is the claim: the engine refuses whoever claimed earlier.
//!
//! | step | what must have come before it |
//! |---|---|
//! | a seat is taken | the lease of whoever had it has ended (SEAT-1) |
//! | the position is read | the claim: nobody else moves it from here on (CLAIM-1) |
//! | functions and models are read | the claim: whoever changes them later fences this claim (CLAIM-2) |
//! | a commit | all three, and every earlier commit under this claim has a known outcome (CLAIM-1) |
//!
//! **First start and recovery.** Nothing is remembered. Whatever is in doubt, a seat, a position or a commit, is given up and
//! claimed anew; the claim ends what was left open, and reading behind it says how that has ended.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{Entry, Guard, LeaseChange, LeaseId, Mutant, Offset, Put, Revision, TimeMs, mutant};

/// Whose turn a seat is, by rendezvous hashing: when a host comes or goes, only its own seats move. `None` where nobody is.
pub fn turn<'a>(seat: &str, hosts: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    hosts.into_iter().max_by_key(|host| (weight(seat, host), *host))
}

/// FNV-1a over both names, then mixed (the finaliser of SplitMix64), so that neighbours differ in every bit.
fn weight(seat: &str, host: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in seat.bytes().chain([0]).chain(host.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

/// What came of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    Done,
    /// There is no such lease any more.
    Gone,
    /// No answer, or one that says nothing about the lease.
    Unanswered,
}

/// A key that is held by a lease. Times are the holder's own; only their differences count.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    pub lease: LeaseId,
    ttl_ms: u64,
    /// When the last renewal that was answered had left.
    renewed: TimeMs,
}

impl Hold {
    /// The entry that takes a key, if nobody has it.
    pub fn take(key: &Bytes, owner: &str, lease: LeaseId, ttl_ms: u64) -> Entry {
        let put = Put { key: key.clone(), value: Some(Bytes::copy_from_slice(owner.as_bytes())), lease: Some(lease) };
        let free = Guard::CreateRevision { key: key.clone(), revision: Revision(0) };
        Entry {
            guards: if mutant::active(Mutant::SeatStolen) { Vec::new() } else { vec![free] },
            leases: vec![LeaseChange::Grant { lease, ttl_ms }],
            puts: vec![put],
            ..Entry::default()
        }
    }

    /// The key was taken. `asked`: when the request had left, so that the hold is counted as shorter than the lease.
    pub fn taken(lease: LeaseId, ttl_ms: u64, asked: TimeMs) -> Self {
        Self { lease, ttl_ms, renewed: asked }
    }

    pub fn renewal(&self) -> Entry {
        Entry { leases: vec![LeaseChange::KeepAlive { lease: self.lease }], ..Entry::default() }
    }

    /// Gives the key to whoever waits, at once.
    pub fn release(&self) -> Entry {
        Entry { leases: vec![LeaseChange::Revoke { lease: self.lease }], ..Entry::default() }
    }

    /// Between two renewals.
    pub fn pause_ms(&self) -> u64 {
        self.ttl_ms / 4
    }

    /// From then on the holder counts itself out: a third of the time to live before the lease can end by its clock.
    pub fn until(&self) -> TimeMs {
        TimeMs(self.renewed.0 + self.ttl_ms * 2 / 3)
    }

    /// A renewal that had left at `asked` came to this; whether the hold goes on.
    pub fn renewed(&mut self, asked: TimeMs, now: TimeMs, what: Renewal) -> bool {
        if what == Renewal::Done {
            self.renewed = asked;
        }
        what != Renewal::Gone && now < self.until()
    }
}

/// What a host knows under one claim, and what that lets it do.
#[derive(Clone, Debug, Default)]
pub struct Tenure {
    position: Option<Offset>,
    /// Of every key that was read behind the claim, the revision that it had.
    least: BTreeMap<Bytes, Revision>,
}

impl Tenure {
    /// The partition was claimed, and the position read afterwards. What was known before counts no longer.
    pub fn claimed(&mut self, position: Option<Offset>) {
        if !(mutant::active(Mutant::TenureMemory) && self.position.is_some()) {
            self.position = position;
        }
        self.least.clear();
    }

    /// A key that decides who judges was read linearizably, behind the claim.
    pub fn read(&mut self, key: Bytes, revision: Revision) {
        self.least.insert(key, revision);
    }

    /// Where the cursor is; `None` where it was never set.
    pub fn position(&self) -> Option<Offset> {
        self.position
    }

    /// A commit has moved the cursor.
    pub fn moved(&mut self, to: Offset) {
        self.position = Some(to);
    }

    /// Whether this revision of a key may judge: it is no older than what the claim found. Older ones may have been replaced
    /// before the claim, and whoever did has fenced nobody but those before.
    pub fn may_judge(&self, key: &[u8], revision: Revision) -> bool {
        mutant::active(Mutant::TenureOldJudge) || self.least.get(key).is_none_or(|least| revision >= *least)
    }

    /// Whether this revision came after the claim: it asks for another claim, for what it needs was not read.
    pub fn is_outdated_by(&self, key: &[u8], revision: Revision) -> bool {
        self.least.get(key).is_some_and(|least| revision > *least)
    }
}

/// How a request of a commit was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Done,
    /// It is to be asked again; `open`: the request may have been carried out all the same.
    Again {
        open: bool,
    },
    /// `stale`: somebody else has claimed.
    Refused {
        stale: bool,
    },
}

/// What comes next in a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The same request again.
    Ask,
    End {
        commit: bool,
    },
    Over(Came),
}

/// What is known of a commit that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    Committed,
    /// Nothing of it is there.
    Failed,
    /// The next claim says what.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Ready,
    Preparing,
    Ending { commit: bool, open: bool },
    Lost,
}

/// One commit after the other under one claim. Whatever does not end as committed ends the claim: what comes next would be
/// held against a position of which nobody knows whether it is right.
#[derive(Clone, Copy, Debug)]
pub struct Fate(Phase);

impl Default for Fate {
    /// There is no claim yet.
    fn default() -> Self {
        Self(Phase::Lost)
    }
}

impl Fate {
    pub fn claimed() -> Self {
        Self(Phase::Ready)
    }

    /// A commit begins; false where there has to be a claim first. One that is given up in the middle ends the claim.
    pub fn begin(&mut self) -> bool {
        let may = self.0 == Phase::Ready;
        self.0 = if may { Phase::Preparing } else { Phase::Lost };
        may
    }

    fn over(&mut self, came: Came) -> Next {
        self.0 = if came == Came::Committed { Phase::Ready } else { Phase::Lost };
        Next::Over(came)
    }

    /// All parts of the commit are there, or not. [`Told::Again`] means that patience has ended.
    pub fn prepared(&mut self, told: Told) -> Next {
        let commit = match told {
            Told::Done => true,
            // Ended at once, for readers wait behind what is open; the next claim would end it as well.
            Told::Again { .. } | Told::Refused { stale: false } => false,
            Told::Refused { stale: true } => return self.over(Came::Failed),
        };
        self.0 = Phase::Ending { commit, open: false };
        Next::End { commit }
    }

    /// What was said to the end of the commit. `patient`: there is time to ask again.
    ///
    /// # Panics
    /// When nothing is being ended.
    pub fn ended(&mut self, told: Told, patient: bool) -> Next {
        let Phase::Ending { commit, open } = &mut self.0 else { unreachable!("an end is asked for before it is told") };
        if let Told::Again { open: once } = told {
            // An earlier request may have been carried out, whatever is said to a later one.
            *open |= once;
            if patient {
                return Next::Ask;
            }
        }
        let came = match (told, *commit, *open) {
            (Told::Done, true, _) => Came::Committed,
            (_, false, _) => Came::Failed,
            (Told::Again { .. }, ..) | (_, _, true) if mutant::active(Mutant::FateHopeful) => Came::Committed,
            (Told::Again { .. }, ..) | (_, _, true) => Came::Unknown,
            (Told::Refused { .. }, true, false) => Came::Failed,
        };
        self.over(came)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_shared_and_only_those_of_a_host_that_goes_move() {
        let mut shares = BTreeMap::<&str, usize>::new();
        for partition in 0..300 {
            let seat = format!("fn:f/t/{partition}");
            let before = turn(&seat, ["a", "b", "c"]).unwrap();
            *shares.entry(before).or_default() += 1;
            let after = turn(&seat, ["a", "c"]).unwrap();
            assert!(before == "b" || before == after, "{seat} has moved from {before} to {after}");
        }
        assert!(shares.len() == 3 && shares.values().all(|share| (70..=130).contains(share)), "{shares:?}");
        assert_eq!(turn("x", []), None);
    }

    #[test]
    fn a_holder_counts_itself_out_before_its_lease_ends() {
        let mut hold = Hold::taken(LeaseId(1), 3_000, TimeMs(10_000));
        assert_eq!((hold.pause_ms(), hold.until()), (750, TimeMs(12_000)));
        // Counted from when the renewal left, however late its answer came.
        assert!(hold.renewed(TimeMs(10_750), TimeMs(11_900), Renewal::Done));
        assert_eq!(hold.until(), TimeMs(12_750));
        assert!(hold.renewed(TimeMs(12_000), TimeMs(12_700), Renewal::Unanswered));
        assert!(!hold.renewed(TimeMs(12_000), TimeMs(12_750), Renewal::Unanswered));
        assert!(!hold.renewed(TimeMs(10_800), TimeMs(10_900), Renewal::Gone));
    }

    #[test]
    fn what_was_known_before_a_claim_counts_no_longer() {
        let mut tenure = Tenure::default();
        tenure.claimed(Some(Offset(3)));
        tenure.read(Bytes::from_static(b"f"), Revision(7));
        assert!(tenure.may_judge(b"f", Revision(7)) && !tenure.may_judge(b"f", Revision(6)));
        assert!(tenure.is_outdated_by(b"f", Revision(8)) && !tenure.is_outdated_by(b"f", Revision(7)));
        tenure.moved(Offset(9));
        assert_eq!(tenure.position(), Some(Offset(9)));
        tenure.claimed(None);
        assert_eq!(tenure.position(), None);
        assert!(tenure.may_judge(b"f", Revision(1)), "nothing was read yet");
    }

    #[test]
    fn a_commit_ends_as_it_is_told_and_a_doubt_ends_the_claim() {
        use Came::{Committed, Failed, Unknown};
        let (again, lost) = (Told::Again { open: false }, Told::Again { open: true });
        let (refused, stale) = (Told::Refused { stale: false }, Told::Refused { stale: true });
        for (prepared, end, answers, came) in [
            (Told::Done, Some(true), vec![Told::Done], Committed),
            (Told::Done, Some(true), vec![again, lost, Told::Done], Committed),
            (Told::Done, Some(true), vec![again, refused], Failed),
            (Told::Done, Some(true), vec![stale], Failed),
            // The first request may have been carried out, and then everybody after it is refused.
            (Told::Done, Some(true), vec![lost, stale], Unknown),
            (refused, Some(false), vec![Told::Done], Failed),
            (again, Some(false), vec![lost, stale], Failed),
            (stale, None, vec![], Failed),
        ] {
            let mut fate = Fate::claimed();
            assert!(fate.begin());
            let mut next = fate.prepared(prepared);
            assert_eq!(end.map(|commit| Next::End { commit }), matches!(next, Next::End { .. }).then_some(next));
            for told in answers {
                next = fate.ended(told, true);
            }
            assert_eq!(next, Next::Over(came));
            assert_eq!(fate.begin(), came == Committed);
        }
        let mut fate = Fate::claimed();
        assert!(fate.begin());
        assert_eq!(fate.prepared(Told::Done), Next::End { commit: true });
        assert_eq!(fate.ended(again, false), Next::Over(Unknown), "patience has ended");
        let mut given_up = Fate::claimed();
        assert!(given_up.begin() && !given_up.begin() && !given_up.begin());
        assert!(!Fate::default().begin());
    }
}
