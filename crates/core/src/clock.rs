//! The cluster's time: what a leader stamps its entries with, and by which leases end and timers fire.
//!
//! No jump of a wall clock moves it. A node that follows takes the stamps of the entries it applies and counts on from the
//! latest with its monotonic clock; so a new leader goes on where the former one was, whatever its wall clock says. A
//! leader's time follows its wall clock at a bounded rate. One step is left: a node that has heard nobody's time since it
//! started has nothing but its wall clock. Whoever leads after such a step gives every lease that was set before it its whole
//! time again, before anything ends. ADR 0011 has the reasons.
//!
//! Nothing here reads a clock: the host says what its two clocks show. Its duties are to say so in this order when it
//! carries out what consensus gives: [`ClusterClock::follow`], [`ClusterClock::heard`] for every entry that was applied,
//! [`ClusterClock::lead`]; to carry out a [`Renewal`] when one is owed; and to end things only when it
//! [may](ClusterClock::may_end).

use std::collections::BTreeSet;

use crate::{Entry, LeaseChange, LeaseId, Mutant, TimeMs, mutant};

/// A leader's time runs at most so many percent faster or slower than its monotonic clock.
pub const SLEW_PERCENT: u64 = 5;
/// Times that differ by no more than this agree.
pub const AGREE_MS: u64 = 1_000;
/// Who counted for longer than this without a stamp may be ahead of what the former leader stamped meanwhile: two
/// monotonic clocks, one a quarter too fast and one a quarter too slow, are [`AGREE_MS`] apart by then.
pub const QUIET_MS: u64 = 2 * AGREE_MS;

/// What a host's clocks show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// Milliseconds since any moment; never goes back while the process lives.
    pub monotonic_ms: u64,
    pub wall: TimeMs,
}

/// The cluster's time as one node knows it.
#[derive(Clone, Debug)]
pub struct ClusterClock {
    monotonic_ms: u64,
    /// Microseconds, so that a slow correction is not lost between two looks.
    now_us: u64,
    /// The latest stamp applied.
    stamp_ms: u64,
    leads: bool,
    /// A leader that had counted on its own for long: the time at which it began to lead.
    counted_to_ms: Option<u64>,
    /// The time is known to be the cluster's, and not just what was in the log at the start.
    known: bool,
    /// A stamp, and the monotonic time at which it came.
    pace: Option<(u64, u64)>,
    /// The stamp behind the latest step. Leases that were set before it may have lost time.
    stepped_ms: Option<u64>,
}

impl ClusterClock {
    /// A node starts; the latest entry that it has applied says `stamp`.
    pub fn start(clocks: Clocks, stamp: TimeMs) -> Self {
        Self {
            monotonic_ms: clocks.monotonic_ms,
            now_us: stamp.0.saturating_mul(1_000),
            stamp_ms: stamp.0,
            leads: false,
            counted_to_ms: None,
            known: false,
            pace: None,
            stepped_ms: Some(stamp.0),
        }
    }

    /// The time. A leader's never goes back; a follower's may, to what the leader says.
    pub fn now(&mut self, clocks: Clocks) -> TimeMs {
        let passed_us = clocks.monotonic_ms.saturating_sub(self.monotonic_ms).saturating_mul(1_000);
        self.monotonic_ms = self.monotonic_ms.max(clocks.monotonic_ms);
        let before = self.now_us;
        self.now_us = before.saturating_add(passed_us);
        if self.leads {
            let (wall_us, most) = (clocks.wall.0.saturating_mul(1_000), passed_us / 100 * SLEW_PERCENT);
            let slowest = self.now_us.saturating_sub(most).max(before);
            self.now_us = wall_us.clamp(slowest, self.now_us.saturating_add(most));
            if mutant::active(Mutant::WallStamps) {
                self.now_us = wall_us;
            }
        }
        TimeMs(self.now_us / 1_000)
    }

    /// An entry was applied, after which the latest stamp is this one. `own`: this node stamped it, in the term in which it
    /// leads now.
    pub fn heard(&mut self, clocks: Clocks, stamp: TimeMs, own: bool) {
        self.now(clocks);
        if stamp.0 <= self.stamp_ms {
            return;
        }
        let before = std::mem::replace(&mut self.stamp_ms, stamp.0);
        let us = stamp.0.saturating_mul(1_000);
        if own {
            self.now_us = self.now_us.max(us);
            return;
        }
        // A step, or a pause: how long this node waited for the entry does not tell, it may have lagged.
        let apart = (stamp.0 - before > AGREE_MS).then_some(stamp.0);
        if self.leads {
            // What the former leader stamped and was in the log already.
            self.stepped_ms = self.stepped_ms.max(apart).max(self.counted_to_ms);
            self.now_us = self.now_us.max(us);
            return;
        }
        // A step of this node that never got into the log is behind whatever got there.
        self.stepped_ms = apart.or(self.stepped_ms.map(|stepped| stepped.min(stamp.0)));
        self.now_us = us;
        self.known |= stamp.0.abs_diff(clocks.wall.0) <= AGREE_MS || self.keeps_pace(stamp.0);
    }

    /// A snapshot was put in place, whose latest stamp is this one. What the entries before it said is not known.
    pub fn installed(&mut self, clocks: Clocks, stamp: TimeMs) {
        self.heard(clocks, stamp, false);
        self.stepped_ms = Some(self.stamp_ms);
    }

    /// Whether stamps come as fast as they count: then they are a living leader's, and not read from the log.
    fn keeps_pace(&mut self, stamp_ms: u64) -> bool {
        let (before, at) = *self.pace.get_or_insert((stamp_ms, self.monotonic_ms));
        let (counted, passed) = (stamp_ms - before, self.monotonic_ms - at);
        let living = counted.abs_diff(passed) <= passed / 10;
        if passed >= AGREE_MS || counted > passed + AGREE_MS {
            self.pace = Some((stamp_ms, self.monotonic_ms));
        }
        passed >= AGREE_MS && living
    }

    /// This node leads from now on. Where it does not know the cluster's time, and its wall clock is ahead of the log, that
    /// is what it starts from.
    pub fn lead(&mut self, clocks: Clocks) {
        let now = self.now(clocks);
        let steps = !self.known || mutant::active(Mutant::WallOnElection);
        if steps && clocks.wall.0 > now.0.saturating_add(AGREE_MS) {
            self.now_us = clocks.wall.0.saturating_mul(1_000);
            if !mutant::active(Mutant::WallOnElection) {
                self.stepped_ms = Some(clocks.wall.0);
            }
        }
        self.counted_to_ms = (now.0.saturating_sub(self.stamp_ms) > QUIET_MS).then_some(now.0);
        (self.leads, self.known) = (true, true);
    }

    /// This node leads no more.
    pub fn follow(&mut self, clocks: Clocks) {
        self.now(clocks);
        self.leads = false;
    }

    /// Before which time leases were set that may have lost some of theirs by a step. The leader has to renew them before it
    /// ends any.
    pub fn owes_renewal(&self) -> Option<TimeMs> {
        let pays = self.leads && !mutant::active(Mutant::StepRenewsNothing);
        self.stepped_ms.filter(|_| pays).map(TimeMs)
    }

    /// Whether an expiry may be proposed. `heard_all` says that an entry of this leader's own term was applied, and with it
    /// all that former leaders stamped: an expiry behind a step that it has not seen would end whatever that step took.
    pub fn may_end(&self, heard_all: bool) -> bool {
        self.leads && heard_all && self.owes_renewal().is_none()
    }

    /// All that was owed was renewed.
    pub fn renewed(&mut self) {
        self.stepped_ms = None;
    }
}

/// Leases get their whole time again, as many in one entry as go.
#[derive(Clone, Debug)]
pub struct Renewal {
    left: BTreeSet<LeaseId>,
    under_way: Option<(u64, Vec<LeaseId>)>,
    /// So many in the next entry: fewer after one was refused because of a lease that was revoked meanwhile, or clients
    /// that revoke without a pause could keep all others from being renewed.
    together: usize,
    together_max: usize,
}

impl Renewal {
    /// At most `together_max` leases fit into an entry.
    pub fn of(leases: impl IntoIterator<Item = LeaseId>, together_max: usize) -> Self {
        Self { left: leases.into_iter().collect(), under_way: None, together: together_max, together_max }
    }

    /// Whether an entry of it is on its way.
    pub fn waits(&self) -> bool {
        self.under_way.is_some()
    }

    /// The next entry, to be proposed under `tag`. `None` when all that still live were renewed.
    pub fn next(&mut self, tag: u64, time: TimeMs, lives: impl Fn(LeaseId) -> bool) -> Option<Entry> {
        self.left.retain(|lease| lives(*lease));
        let leases: Vec<LeaseId> = self.left.iter().copied().take(self.together).collect();
        if leases.is_empty() {
            return None;
        }
        let changes = leases.iter().map(|&lease| LeaseChange::KeepAlive { lease }).collect();
        self.under_way = Some((tag, leases));
        Some(Entry { time, leases: changes, ..Entry::default() })
    }

    /// What was proposed under `tag` was carried out, or was not: a lease of it may have been revoked meanwhile.
    pub fn settle(&mut self, tag: u64, done: bool) {
        let Some((_, leases)) = self.under_way.take_if(|(under, _)| *under == tag) else { return };
        if done {
            self.left.retain(|lease| leases.binary_search(lease).is_err());
            self.together = (2 * self.together).min(self.together_max);
        } else {
            self.together = self.together.min(leases.len()).div_ceil(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::ENTRY_PARTS_MAX;

    const HOUR: u64 = 3_600_000;
    const NOON: u64 = 1_700_000_000_000;

    fn clocks(monotonic_ms: u64, wall: u64) -> Clocks {
        Clocks { monotonic_ms, wall: TimeMs(wall) }
    }

    /// A leader whose wall clock was right when it began.
    fn leader() -> ClusterClock {
        let mut clock = ClusterClock::start(clocks(0, NOON), TimeMs(0));
        clock.lead(clocks(0, NOON));
        clock.renewed();
        clock
    }

    /// A follower that has heard a living leader for two minutes, an entry each second.
    fn follower(wall: u64) -> ClusterClock {
        let mut clock = ClusterClock::start(clocks(0, wall), TimeMs(NOON - HOUR));
        for s in 0..=120 {
            clock.heard(clocks(s * 1_000, wall + s * 1_000), TimeMs(NOON + s * 1_000), false);
        }
        clock.renewed();
        clock
    }

    #[test]
    fn a_leader_whose_wall_clock_runs_well_stamps_with_it() {
        let mut clock = leader();
        for ms in (0..100_000).step_by(7) {
            assert_eq!(clock.now(clocks(ms, NOON + ms)), TimeMs(NOON + ms));
        }
    }

    #[test]
    fn an_hour_forward_or_back_moves_a_lease_of_ten_seconds_by_half_a_second_at_most() {
        for wall in [NOON + HOUR, NOON - HOUR] {
            let mut clock = leader();
            let mut last = NOON;
            for ms in (100..=10_000).step_by(100) {
                let now = clock.now(clocks(ms, wall + ms)).0;
                assert!(now > last && now.abs_diff(NOON + ms) <= ms / 20 + 1, "{now} after {ms} ms");
                last = now;
            }
        }
    }

    #[test]
    fn a_difference_is_slewed_away_and_does_not_come_back() {
        for (wall, within) in [(NOON + 900, 19_000), (NOON - 900, 19_000), (NOON + HOUR, 21 * HOUR)] {
            let mut clock = leader();
            for ms in (100..=within).step_by(100) {
                clock.now(clocks(ms, wall + ms));
            }
            assert_eq!(clock.now(clocks(within, wall + within)), TimeMs(wall + within));
        }
    }

    #[test]
    fn looking_often_does_not_lose_the_correction() {
        let (mut often, mut once) = (leader(), leader());
        let wall = NOON + HOUR;
        for ms in 1..=10_000 {
            often.now(clocks(ms, wall + ms));
        }
        assert_eq!(often.now(clocks(10_000, wall + 10_000)), once.now(clocks(10_000, wall + 10_000)));
    }

    #[test]
    fn a_new_leader_goes_on_where_the_former_was_whatever_its_wall_clock_says() {
        for wall in [NOON + HOUR, NOON - HOUR, NOON] {
            let mut clock = follower(wall);
            let now = clocks(121_000, wall + 121_000);
            clock.lead(now);
            assert_eq!(clock.now(now), TimeMs(NOON + 121_000), "its wall clock says {wall}");
            assert_eq!(clock.owes_renewal(), None);
            let later = clock.now(clocks(131_000, wall + 131_000)).0;
            assert!(later.abs_diff(NOON + 131_000) <= 500, "{later}");
        }
    }

    #[test]
    fn a_follower_does_not_run_ahead_of_its_leader() {
        let mut clock = follower(NOON + HOUR);
        // Its monotonic clock is a tenth too fast; the leader's word counts.
        for s in 121..=1_000 {
            clock.heard(clocks(s * 1_100, NOON + HOUR + s * 1_000), TimeMs(NOON + s * 1_000), false);
        }
        assert_eq!(clock.now(clocks(1_100_000, NOON + HOUR)), TimeMs(NOON + 1_000_000));
    }

    #[test]
    fn a_node_that_leads_after_a_start_takes_its_wall_clock_and_owes_every_lease_its_time() {
        let mut clock = ClusterClock::start(clocks(5, NOON + HOUR), TimeMs(NOON));
        clock.lead(clocks(5, NOON + HOUR));
        assert_eq!(clock.now(clocks(5, NOON + HOUR)), TimeMs(NOON + HOUR));
        assert_eq!(clock.owes_renewal(), Some(TimeMs(NOON + HOUR)));
        clock.renewed();
        assert_eq!(clock.owes_renewal(), None);
    }

    #[test]
    fn a_wall_clock_behind_the_log_at_the_start_does_not_stop_the_time() {
        let mut clock = ClusterClock::start(clocks(5, NOON - HOUR), TimeMs(NOON));
        clock.lead(clocks(5, NOON - HOUR));
        let now = clock.now(clocks(10_005, NOON - HOUR + 10_000));
        assert_eq!(now, TimeMs(NOON + 9_500));
    }

    #[test]
    fn what_is_read_from_the_log_after_a_start_is_not_taken_for_a_leader_that_lives() {
        let wall = NOON + HOUR;
        let mut clock = ClusterClock::start(clocks(0, wall), TimeMs(NOON - HOUR));
        // An hour of entries within two seconds.
        for at in 0..2_000 {
            clock.heard(clocks(at, wall + at), TimeMs(NOON - HOUR + at * 1_800), false);
        }
        clock.lead(clocks(2_000, wall + 2_000));
        assert_eq!(clock.now(clocks(2_000, wall + 2_000)), TimeMs(wall + 2_000));
        assert_eq!(clock.owes_renewal(), Some(TimeMs(wall + 2_000)));
    }

    #[test]
    fn who_follows_a_leader_that_stepped_and_died_renews_in_its_place() {
        let mut clock = follower(NOON + HOUR);
        clock.heard(clocks(121_000, NOON + HOUR), TimeMs(NOON + HOUR), false);
        for s in 1..=600 {
            clock.heard(clocks(121_000 + s * 1_000, NOON), TimeMs(NOON + HOUR + s * 1_000), false);
        }
        clock.lead(clocks(722_000, NOON + HOUR));
        // However long ago it was; what was kept alive since lost nothing.
        assert_eq!(clock.owes_renewal(), Some(TimeMs(NOON + HOUR)));
    }

    #[test]
    fn a_step_is_seen_by_who_lagged_longer_than_it_is() {
        let mut clock = follower(NOON);
        // The leader stepped by five seconds; this node stood still for a minute before it heard so.
        clock.heard(clocks(180_000, NOON + 180_000), TimeMs(NOON + 125_000), false);
        clock.lead(clocks(180_100, NOON + 180_100));
        assert_eq!(clock.owes_renewal(), Some(TimeMs(NOON + 125_000)));
    }

    #[test]
    fn a_leader_that_stepped_and_was_never_heard_takes_the_time_of_the_next() {
        let mut clock = ClusterClock::start(clocks(0, NOON + HOUR), TimeMs(NOON));
        clock.lead(clocks(10, NOON + HOUR));
        clock.follow(clocks(20, NOON + HOUR));
        clock.heard(clocks(30, NOON + HOUR), TimeMs(NOON + 30), false);
        assert_eq!(clock.now(clocks(40, NOON + HOUR)), TimeMs(NOON + 40));
        clock.lead(clocks(50, NOON + HOUR));
        assert_eq!(clock.now(clocks(50, NOON + HOUR)), TimeMs(NOON + 50));
        assert_eq!(clock.owes_renewal(), Some(TimeMs(NOON + 30)));
    }

    #[test]
    fn a_step_in_the_log_of_a_new_leader_is_one_too() {
        let mut clock = follower(NOON);
        clock.lead(clocks(121_000, NOON + 121_000));
        assert_eq!(clock.owes_renewal(), None);
        clock.heard(clocks(121_500, NOON + 121_500), TimeMs(NOON + HOUR), false);
        assert_eq!(clock.owes_renewal(), Some(TimeMs(NOON + HOUR)));
        assert_eq!(clock.now(clocks(121_500, NOON + 121_500)), TimeMs(NOON + HOUR));
    }

    #[test]
    fn a_renewal_takes_every_living_lease_once_and_again_what_was_refused() {
        let count = ENTRY_PARTS_MAX as i64 + 3;
        let mut renewal = Renewal::of((1..=count).map(LeaseId), ENTRY_PARTS_MAX);
        let first = renewal.next(1, TimeMs(9), |_| true).unwrap();
        assert_eq!((first.leases.len(), first.time, first.expire), (ENTRY_PARTS_MAX, TimeMs(9), false));
        assert!(renewal.waits());
        renewal.settle(2, true);
        assert!(renewal.waits(), "it was another entry");
        renewal.settle(1, false);
        // Lease 1 was revoked, which is why the whole entry was refused.
        let lives = |lease: LeaseId| lease != LeaseId(1);
        let mut renewed = Vec::new();
        for tag in 2.. {
            let Some(entry) = renewal.next(tag, TimeMs(9), lives) else { break };
            renewed.extend(entry.leases);
            renewal.settle(tag, true);
        }
        let wanted: Vec<_> = (2..=count).map(|id| LeaseChange::KeepAlive { lease: LeaseId(id) }).collect();
        assert_eq!(renewed, wanted);
    }

    #[test]
    fn clients_that_revoke_without_a_pause_do_not_keep_the_others_from_being_renewed() {
        let mut renewal = Renewal::of((1..=1_000).map(LeaseId), ENTRY_PARTS_MAX);
        let mut revoked = 0;
        for tag in 1.. {
            // With every entry, the first lease of it is revoked behind its back, until there is one in it only.
            let Some(entry) = renewal.next(tag, TimeMs(9), |lease| lease.0 > revoked) else { break };
            let alone = entry.leases.len() == 1;
            revoked += i64::from(!alone);
            renewal.settle(tag, alone);
            assert!(tag < 3_000, "it comes to an end");
        }
        assert!(revoked < 1_000);
    }

    #[test]
    fn a_reign_that_nobody_heard_is_no_mistake_of_arithmetic() {
        // It stepped an hour ahead, proposed and was deposed; the next leader's stamps are an hour behind that.
        let mut clock = follower(NOON);
        clock.stepped_ms = Some(NOON + HOUR);
        clock.heard(clocks(121_000, NOON), TimeMs(NOON + 121_000), false);
        assert_eq!(clock.stepped_ms, Some(NOON + 121_000));
    }

    #[test]
    fn who_counted_alone_for_long_and_finds_stamps_in_its_log_when_it_leads_renews() {
        let mut clock = follower(NOON);
        // Ten seconds without a word, by a clock that is a third too fast; what the leader stamped last came, but was not
        // applied.
        clock.lead(clocks(133_000, NOON + 130_000));
        assert_eq!(clock.owes_renewal(), None);
        clock.heard(clocks(133_100, NOON + 130_000), TimeMs(NOON + 120_500), false);
        assert_eq!(clock.owes_renewal(), Some(TimeMs(NOON + 133_000)));
        clock.renewed();
        // Its own stamps are none of another's, however far apart.
        let own = clock.now(clocks(144_000, NOON + 130_000));
        clock.heard(clocks(144_100, NOON + 130_000), own, true);
        assert_eq!(clock.owes_renewal(), None);
    }

    #[test]
    fn whoever_took_a_snapshot_does_not_know_of_steps_before_it() {
        let mut clock = follower(NOON);
        clock.installed(clocks(130_000, NOON + 130_000), TimeMs(NOON + 129_000));
        clock.lead(clocks(131_000, NOON + 131_000));
        assert_eq!(clock.owes_renewal(), Some(TimeMs(NOON + 129_000)));
    }

    #[test]
    fn nothing_ends_before_the_former_leaders_stamps_are_known_and_what_is_owed_is_paid() {
        let mut clock = follower(NOON);
        assert!(!clock.may_end(true), "it follows");
        clock.lead(clocks(121_000, NOON + 121_000));
        assert!(!clock.may_end(false) && clock.may_end(true));
        clock.heard(clocks(121_500, NOON + 121_500), TimeMs(NOON + HOUR), false);
        assert!(!clock.may_end(true));
        clock.renewed();
        assert!(clock.may_end(true));
    }

    /// What may happen to a clock.
    #[derive(Clone, Debug)]
    enum Deed {
        Pass(u64),
        Jump(u64),
        Hear(u64),
        Stamp,
        Install(u64),
        Lead,
        Follow,
        Renewed,
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            (0..100_000u64).prop_map(Deed::Pass),
            any::<u64>().prop_map(Deed::Jump),
            (NOON - HOUR..NOON + HOUR).prop_map(Deed::Jump),
            any::<u64>().prop_map(Deed::Hear),
            (NOON - HOUR..NOON + HOUR).prop_map(Deed::Hear),
            Just(Deed::Stamp),
            any::<u64>().prop_map(Deed::Install),
            Just(Deed::Lead),
            Just(Deed::Follow),
            Just(Deed::Renewed),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_a_leaders_time_goes_on_at_its_pace_and_only_a_step_is_owed(
            start in prop_oneof![any::<u64>(), NOON - HOUR..NOON + HOUR],
            deeds in prop::collection::vec(deed(), 1..60),
        ) {
            let mut at = clocks(7, NOON);
            let mut clock = ClusterClock::start(at, TimeMs(start));
            for deed in deeds {
                let before = clock.now(at).0;
                match deed {
                    Deed::Pass(ms) => {
                        at = clocks(at.monotonic_ms + ms, at.wall.0.saturating_add(ms));
                        let passed = clock.now(at).0 - before;
                        let slew = if clock.leads { ms / 20 + 1 } else { 0 };
                        // Nobody gets to the year 584,942; the arithmetic does.
                        let room = u64::MAX / 1_000 - before;
                        prop_assert!(passed <= ms + slew && passed + slew >= ms.min(room), "{passed} in {ms} ms");
                    }
                    Deed::Jump(wall) => {
                        at.wall = TimeMs(wall);
                        prop_assert_eq!(clock.now(at).0, before);
                    }
                    Deed::Hear(stamp) => {
                        clock.heard(at, TimeMs(stamp), false);
                        let now = clock.now(at).0;
                        if clock.leads && now > before + AGREE_MS {
                            prop_assert!(clock.owes_renewal().is_some(), "from {before} to {now}");
                        }
                    }
                    Deed::Stamp => {
                        let owed = clock.owes_renewal();
                        if clock.leads {
                            clock.heard(at, TimeMs(before), true);
                            prop_assert_eq!((clock.now(at).0, clock.owes_renewal()), (before, owed));
                        }
                    }
                    Deed::Install(stamp) if !clock.leads => clock.installed(at, TimeMs(stamp)),
                    Deed::Install(_) => {}
                    Deed::Lead if clock.leads => {}
                    Deed::Lead => {
                        clock.lead(at);
                        prop_assert!(clock.now(at).0 <= before + AGREE_MS || clock.owes_renewal().is_some());
                    }
                    Deed::Follow => clock.follow(at),
                    Deed::Renewed => clock.renewed(),
                }
            }
        }
    }
}
