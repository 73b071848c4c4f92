//! Which changes of members are safe, who is ready to vote, and who is to lead next: decisions without IO or clock.
//!
//! **Quorum.** Consensus itself never loses what was acknowledged in a change of members, but it may well agree to one
//! after which nobody can agree to anything. So every change of voters is checked against who can be reached *now*: the
//! voters that there will be, how many of them can be reached, and how many make a quorum. A change after which the
//! reachable ones are fewer is refused, and nothing overrides that: the way out is to start the members that are down, or
//! to remove those first. (etcd refuses the same under `--strict-reconfig-check`, but counts only members that it adds.)
//! A member that has not caught up does not count as reachable, for it acknowledges nothing for a while.
//!
//! **Promotion.** A learner is made a voter when it keeps up, by the rounds of Ongaro's dissertation, §4.2.1: a round is
//! what the log held when it began; it ends when the learner has all of it. Whoever ends [`ROUNDS`] rounds in a row, each
//! within an election timeout, would delay a commit by no more than that. One learner is promoted at a time, and only
//! where the check above allows it.
//!
//! **Heir.** Whoever leads next should have to catch up least: the reachable voter with the longest matching log.

use std::collections::{BTreeMap, BTreeSet};

use buttress_consensus::{
    MemberStep, Members,
    quorum::{self, Count},
};
use buttress_core::{Code, Error, Index, NodeId};

/// Rounds in a row that a learner must end quickly.
pub const ROUNDS: u32 = 3;
/// The longest quick round, in ticks: an election timeout.
pub const ROUND_TICKS_MAX: u32 = 10;

/// Who is there, as the leader sees it.
pub struct Group<'a> {
    pub members: &'a Members,
    /// Who can be reached now, the leader included.
    pub alive: &'a BTreeSet<NodeId>,
    pub name: &'a dyn Fn(NodeId) -> String,
}

impl Group<'_> {
    /// Whether `steps` leave a quorum, and what the operator should know of what they leave.
    ///
    /// # Errors
    /// `QUORUM` with the arithmetic.
    pub fn check(&self, what: &str, steps: &[MemberStep]) -> Result<Vec<String>, Error> {
        let (before, after) = quorum::voters(self.members, steps);
        if after == before {
            return Ok(Vec::new());
        }
        if after.is_empty() {
            let message = format!("{what} would leave no voter");
            return Err(Error::new(Code::QUORUM, message).hint("add a member and let it become a voter first"));
        }
        let (now, then) = (Count::of(&before, self.alive), Count::of(&after, self.alive));
        if !then.holds() {
            let message = format!(
                "{}, {} reachable; {what} leaves {} of whom {} {} reachable; a quorum is {}",
                voters(now.voters),
                now.reachable,
                voters(then.voters),
                then.reachable,
                if then.reachable == 1 { "is" } else { "are" },
                then.needed(),
            );
            let down: Vec<String> = after.difference(self.alive).map(|id| (self.name)(*id)).collect();
            let hint = format!("start {} again, or remove first whoever will not come back", down.join(" and "));
            return Err(Error::new(Code::QUORUM, message).hint(hint));
        }
        let mut warnings = Vec::new();
        if then.voters.is_multiple_of(2) {
            warnings.push(format!(
                "{} survive the loss of {}, no more than {} would; add one or remove one",
                voters(then.voters),
                then.tolerates(),
                then.voters - 1
            ));
        }
        if then.spare() == 0 && then.voters > 1 {
            warnings.push(format!(
                "{} of {} reachable: none of them may fail now",
                then.reachable,
                voters(then.voters)
            ));
        }
        Ok(warnings)
    }
}

fn voters(count: usize) -> String {
    format!("{count} voter{}", if count == 1 { "" } else { "s" })
}

/// A learner's progress through its rounds.
#[derive(Clone, Copy, Debug)]
struct Rounds {
    goal: Index,
    ticks: u32,
    quick: u32,
}

/// Watches learners. A new leader begins anew.
#[derive(Debug, Default)]
pub struct Promoter {
    rounds: BTreeMap<NodeId, Rounds>,
}

impl Promoter {
    /// One tick: where the log ends, and how far each learner is that can be reached and takes entries.
    pub fn tick(&mut self, last: Index, learners: &BTreeMap<NodeId, Index>) {
        self.rounds.retain(|id, _| learners.contains_key(id));
        for (id, matched) in learners {
            let rounds = self.rounds.entry(*id).or_insert(Rounds { goal: last, ticks: 0, quick: 0 });
            rounds.ticks += 1;
            if *matched >= rounds.goal {
                rounds.quick = if rounds.ticks <= ROUND_TICKS_MAX { rounds.quick + 1 } else { 0 };
                (rounds.goal, rounds.ticks) = (last, 0);
            } else if rounds.ticks > ROUND_TICKS_MAX {
                rounds.quick = 0;
            }
        }
    }

    pub fn keeps_up(&self, id: NodeId) -> bool {
        self.rounds.get(&id).is_some_and(|rounds| rounds.quick >= ROUNDS)
    }
}

/// Who should lead next, of the voters that can be reached.
pub fn heir(
    members: &Members,
    leader: NodeId,
    matched: &BTreeMap<NodeId, Index>,
    alive: &BTreeSet<NodeId>,
) -> Option<NodeId> {
    let fit = |id: &&NodeId| **id != leader && alive.contains(id);
    // The lowest id of those that are equally far, so that the choice is the same every time.
    members.voters.iter().filter(fit).max_by_key(|id| (matched.get(id), std::cmp::Reverse(**id))).copied()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(
        voters: impl IntoIterator<Item = u64>,
        alive: &[u64],
        what: &str,
        steps: &[MemberStep],
        expected: &Expect,
    ) {
        let members = Members::voters(voters);
        let alive = alive.iter().copied().map(NodeId).collect();
        let group = Group { members: &members, alive: &alive, name: &|id| format!("node-{id}") };
        let said = match group.check(what, steps) {
            Ok(warnings) => format!("ok {}", warnings.join("; ")),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(said.trim_end());
    }

    const fn remove(id: u64) -> MemberStep {
        MemberStep::Remove(NodeId(id))
    }

    const fn voter(id: u64) -> MemberStep {
        MemberStep::Voter(NodeId(id))
    }

    #[test]
    fn a_step_that_loses_the_quorum_is_refused_with_the_arithmetic() {
        check(
            1..=3,
            &[2, 3],
            "removing node-2",
            &[remove(2)],
            &expect![[r#"
            3 voters, 2 reachable; removing node-2 leaves 2 voters of whom 1 is reachable; a quorum is 2 [BT0115]

            hint: start node-1 again, or remove first whoever will not come back"#]],
        );
        check(
            1..=5,
            &[1, 2, 3],
            "removing node-3",
            &[remove(3)],
            &expect![[r#"
            5 voters, 3 reachable; removing node-3 leaves 4 voters of whom 2 are reachable; a quorum is 3 [BT0115]

            hint: start node-4 and node-5 again, or remove first whoever will not come back"#]],
        );
        check(
            [1],
            &[1],
            "removing node-1",
            &[remove(1)],
            &expect![[r#"
            removing node-1 would leave no voter [BT0115]

            hint: add a member and let it become a voter first"#]],
        );
        // A voter that is not there yet costs as much as one that is gone.
        check(
            1..=2,
            &[1, 2],
            "adding node-3",
            &[voter(3)],
            &expect!["ok 2 of 3 voters reachable: none of them may fail now"],
        );
        check(
            [1],
            &[1],
            "adding node-2",
            &[voter(2)],
            &expect![[r#"
            1 voter, 1 reachable; adding node-2 leaves 2 voters of whom 1 is reachable; a quorum is 2 [BT0115]

            hint: start node-2 again, or remove first whoever will not come back"#]],
        );
        check(
            1..=3,
            &[1, 2, 4],
            "replacing node-2 by node-4",
            &[voter(4), remove(2)],
            &expect!["ok 2 of 3 voters reachable: none of them may fail now"],
        );
        check(
            1..=3,
            &[1, 2],
            "replacing node-2 by node-4",
            &[voter(4), remove(2)],
            &expect![[r#"
            3 voters, 2 reachable; replacing node-2 by node-4 leaves 3 voters of whom 1 is reachable; a quorum is 2 [BT0115]

            hint: start node-3 and node-4 again, or remove first whoever will not come back"#]],
        );
    }

    #[test]
    fn a_step_that_helps_is_taken() {
        check(
            1..=3,
            &[2, 3],
            "removing node-1",
            &[remove(1)],
            &expect![
                "ok 2 voters survive the loss of 0, no more than 1 would; add one or remove one; 2 of 2 voters reachable: none of them may fail now"
            ],
        );
        check(
            1..=3,
            &[1, 2, 3, 4],
            "adding node-4",
            &[voter(4)],
            &expect!["ok 4 voters survive the loss of 1, no more than 3 would; add one or remove one"],
        );
        check(1..=3, &[1, 2, 4], "replacing node-3 by node-4", &[voter(4), remove(3)], &expect!["ok"]);
        check(1..=2, &[1, 2], "removing node-2", &[remove(2)], &expect!["ok"]);
        // Learners are nobody's quorum.
        check(1..=3, &[1, 2], "adding node-4", &[MemberStep::Learner(NodeId(4))], &expect!["ok"]);
        check(1..=3, &[1, 2], "removing node-9", &[remove(9)], &expect!["ok"]);
    }

    #[test]
    fn whoever_keeps_up_for_three_rounds_is_ready() {
        let id = NodeId(4);
        let mut promoter = Promoter::default();
        let mut tick = |last: u64, matched: u64| {
            promoter.tick(Index(last), &BTreeMap::from([(id, Index(matched))]));
            promoter.keeps_up(id)
        };
        // The log grows by 100 a tick and it is always 50 behind: it keeps up.
        assert_eq!(
            (1..=6).map(|t| tick(t * 100, t * 100 - 50)).collect::<Vec<_>>(),
            [false, false, false, true, true, true]
        );
        // It falls behind for longer than a round may take, and is not ready any more until it has shown it again.
        assert!((7..=17).all(|t| tick(t * 100, 650)), "a round may take ten ticks");
        assert!(!tick(1800, 650));
        assert!(!tick(1800, 1800) && !tick(1800, 1800) && !tick(1800, 1800) && tick(1800, 1800), "three anew");
        // One that is gone begins anew.
        promoter.tick(Index(1800), &BTreeMap::new());
        assert!(!promoter.keeps_up(id));
    }

    #[test]
    fn the_heir_is_whoever_is_furthest_and_there() {
        let mut members = Members::voters(1..=4);
        members.learners = vec![NodeId(5)];
        let matched: BTreeMap<NodeId, Index> =
            [(2, 7), (3, 9), (4, 9), (5, 99)].map(|(id, at)| (NodeId(id), Index(at))).into();
        let choose = |alive: &[u64]| heir(&members, NodeId(1), &matched, &alive.iter().copied().map(NodeId).collect());
        assert_eq!(choose(&[1, 2, 3, 4, 5]), Some(NodeId(3)), "the lower id of two that are equally far");
        assert_eq!(choose(&[1, 2, 4]), Some(NodeId(4)));
        assert_eq!(choose(&[1, 2]), Some(NodeId(2)));
        assert_eq!(choose(&[1, 5]), None, "neither itself nor a learner");
    }
}
