//! When a leader whose disk has become slow gives way.
//!
//! The problem: a leader's own disk is not needed for a quorum, so a cluster whose leader syncs slowly still commits; but
//! everything else that the leader does waits for that disk: the entries it reads back, its checkpoints, its own
//! acknowledgement when a follower is away, and at last its memory, for what is not synced is queued. A leader never loses
//! an election it does not call, so without a rule it stays.
//!
//! The rule compares with what the others could do. Followers say once a second how long their disks take to sync (a byte
//! on the control lane, [`crate::transport::signal`]). The leader gives way when its own disk has been *slow* for
//! [`Options::slow_for_ms`] without a pause: slower than [`Options::floor_us`], and at least [`RATIO`] times slower than the
//! disk of somebody who could lead, the **heir**: a reachable voter that has nearly everything. That is who is next.
//!
//! Flapping is kept out in three ways. The clock starts anew as soon as the ratio falls below [`RATIO_EXIT`], which is
//! lower than the one that started it, so a disk that is slow now and then keeps its leader. A leader that has led for less
//! than [`Options::settled_ms`] stays. And whoever gave way and came back to lead waits twice as long each time, up to
//! [`BACKOFF_MAX`] times: if everybody's disk is slow in turn, leadership moves ever more rarely. Where all are equally
//! slow nobody is four times better, and nothing moves.
//!
//! What is measured is a sync that takes long, whether it has ended or not: a disk that hangs is noticed by the sync that
//! is under way.

use buttress_core::NodeId;

/// How much slower than the heir's disk the leader's must be.
pub const RATIO: u64 = 4;
/// Below this ratio it is not slow any more.
pub const RATIO_EXIT: u64 = 2;
/// The longest wait of a node that gave way again and again, in terms of the first.
pub const BACKOFF_MAX: u64 = 32;

/// Times and sizes of the rule. The defaults are those of production: an SSD syncs in 0.1 to 2 ms and a disk in 10 to 20,
/// so 50 ms is neither; ten seconds are longer than a checkpoint or a trim of the device takes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub floor_us: u64,
    pub slow_for_ms: u64,
    pub settled_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { floor_us: 50_000, slow_for_ms: 10_000, settled_ms: 30_000 }
    }
}

/// A voter that could lead next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub id: NodeId,
    pub sync_us: u64,
}

/// Remembers, across terms, since when the disk is slow and how often this node gave way.
#[derive(Debug)]
pub struct GiveWay {
    options: Options,
    slow_since_ms: Option<u64>,
    leads_since_ms: Option<u64>,
    gave_way: u32,
}

impl GiveWay {
    pub fn new(options: Options) -> Self {
        Self { options, slow_since_ms: None, leads_since_ms: None, gave_way: 0 }
    }

    /// This node does not lead.
    pub fn follows(&mut self) {
        (self.slow_since_ms, self.leads_since_ms) = (None, None);
    }

    /// One look while this node leads; gives whom to hand over to, when it is time. `own_us` is how long its disk takes to
    /// sync, where it is known.
    pub fn look(&mut self, now_ms: u64, own_us: Option<u64>, candidates: &[Candidate]) -> Option<Candidate> {
        let leads_since = *self.leads_since_ms.get_or_insert(now_ms);
        let best = candidates.iter().min_by_key(|candidate| (candidate.sync_us, candidate.id)).copied();
        let (Some(own), Some(best)) = (own_us, best) else {
            self.slow_since_ms = None;
            return None;
        };
        // A disk that takes no measurable time is not infinitely better than another.
        let theirs = best.sync_us.max(1);
        let ratio = if self.slow_since_ms.is_some() { RATIO_EXIT } else { RATIO };
        if own < self.options.floor_us || own < ratio * theirs {
            self.slow_since_ms = None;
            return None;
        }
        let slow_since = *self.slow_since_ms.get_or_insert(now_ms);
        let patience = (1u64 << self.gave_way.min(63)).min(BACKOFF_MAX);
        let slow_long = now_ms.saturating_sub(slow_since) >= self.options.slow_for_ms * patience;
        let settled = now_ms.saturating_sub(leads_since) >= self.options.settled_ms * patience;
        if !slow_long || !settled || own < RATIO * theirs {
            return None;
        }
        self.gave_way += 1;
        // If the hand-over fails, the next one is not tried at once.
        self.follows();
        Some(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1000;

    /// Looks once a second over the given seconds; gives when it gave way and to whom.
    fn watch(
        rule: &mut GiveWay,
        seconds: std::ops::Range<u64>,
        own: impl Fn(u64) -> u64,
        others: &[(u64, u64)],
    ) -> Vec<(u64, u64)> {
        let candidates: Vec<Candidate> =
            others.iter().map(|(id, us)| Candidate { id: NodeId(*id), sync_us: *us }).collect();
        seconds.filter_map(|s| rule.look(s * 1000, Some(own(s)), &candidates).map(|to| (s, to.id.0))).collect()
    }

    #[test]
    fn a_disk_that_stays_slow_makes_its_leader_give_way_once() {
        let mut rule = GiveWay::new(Options::default());
        let slow_from_100 = |s| if s < 100 { MS } else { 400 * MS };
        let gave = watch(&mut rule, 0..111, slow_from_100, &[(2, 3 * MS), (3, 2 * MS)]);
        assert_eq!(gave, [(110, 3)], "ten seconds later, to the quicker of the two");
        // The new leader took over; this one follows and does nothing.
        rule.follows();
    }

    #[test]
    fn a_young_leader_stays_for_a_while() {
        let mut rule = GiveWay::new(Options::default());
        assert_eq!(watch(&mut rule, 0..31, |_| 400 * MS, &[(2, MS)]), [(30, 2)]);
    }

    #[test]
    fn a_disk_that_is_slow_now_and_then_keeps_its_leader() {
        let mut rule = GiveWay::new(Options::default());
        // Nine seconds slow, one good, for an hour.
        let own = |s: u64| if s % 10 == 9 { MS } else { 900 * MS };
        assert_eq!(watch(&mut rule, 0..3600, own, &[(2, MS)]), []);
        // Between the two ratios the clock neither starts nor stops.
        assert_eq!(watch(&mut rule, 4000..4100, |_| 300 * MS, &[(2, 100 * MS)]), [], "never four times");
        let dips = |s: u64| if s.is_multiple_of(2) { 250 * MS } else { 450 * MS };
        let gave = watch(&mut rule, 5000..5040, dips, &[(2, 100 * MS)]);
        assert_eq!(gave, [(5011, 2)], "it is four times slower when it gives way");
    }

    #[test]
    fn nobody_gives_way_where_nobody_is_better() {
        let mut rule = GiveWay::new(Options::default());
        for (own, others) in
            [(900 * MS, vec![(2, 900 * MS), (3, 300 * MS)]), (900 * MS, vec![]), (40 * MS, vec![(2, MS)])]
        {
            assert_eq!(watch(&mut rule, 0..3600, |_| own, &others), [], "{own} {others:?}");
        }
        // Not even where it is not known how long a sync takes.
        let better = [Candidate { id: NodeId(2), sync_us: MS }];
        assert!((0..3600).all(|s| rule.look(s * 1000, None, &better).is_none()));
    }

    #[test]
    fn whoever_comes_back_to_lead_waits_twice_as_long_each_time() {
        let mut rule = GiveWay::new(Options { slow_for_ms: 1000, settled_ms: 0, ..Options::default() });
        let mut waits = Vec::new();
        let mut now = 0;
        for _ in 0..8 {
            let other = [Candidate { id: NodeId(2), sync_us: MS }];
            let gave = (now..).find(|s| rule.look(s * 1000, Some(900 * MS), &other).is_some()).expect("it gives way");
            waits.push(gave - now);
            rule.follows();
            // Another has led for a while, and this node leads again.
            now += 1000;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 32, 32]);
    }
}
