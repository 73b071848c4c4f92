//! The arithmetic of a change of members: who decides before, during and after it, and whether enough of them can be
//! reached.
//!
//! Consensus never loses what was acknowledged in a change of members, but it may well agree to one after which nobody can
//! agree to anything. So whoever plans a change looks at it here first. A step that is taken alone goes from one set of
//! voters to the next; several steps go through joint consensus, during which a majority of both sets is needed (Ongaro,
//! "Consensus: Bridging Theory and Practice", §4.3).

use std::{collections::BTreeSet, fmt};

use buttress_core::NodeId;

use crate::types::{MemberStep, Members};

/// One set of voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    pub voters: usize,
    /// Of these, how many can be reached.
    pub reachable: usize,
}

impl Count {
    pub fn of(voters: &BTreeSet<NodeId>, alive: &BTreeSet<NodeId>) -> Self {
        Self { voters: voters.len(), reachable: voters.intersection(alive).count() }
    }

    /// How many must agree: more than half.
    pub fn needed(self) -> usize {
        self.voters / 2 + 1
    }

    pub fn holds(self) -> bool {
        self.reachable >= self.needed()
    }

    /// How many of those that can be reached may fail.
    pub fn spare(self) -> usize {
        self.reachable.saturating_sub(self.needed())
    }

    /// How many may fail where all can be reached.
    pub fn tolerates(self) -> usize {
        self.voters.saturating_sub(self.needed())
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.voters == 1 { "" } else { "s" };
        write!(f, "{} voter{plural}, {} reachable, {} needed: ", self.voters, self.reachable, self.needed())?;
        match (self.holds(), self.spare()) {
            (false, _) => f.write_str("nothing can commit"),
            (true, 0) => f.write_str("none may fail"),
            (true, spare) => write!(f, "{spare} may fail"),
        }
    }
}

/// What a change leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    pub before: Count,
    /// While a joint change runs, the old set and the new one must both agree.
    pub joint: bool,
    pub after: Count,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It can be done, and nothing gets worse.
    Good,
    /// It can be done, at a price.
    Worse(String),
    /// After it, or already now, nothing could commit.
    Refused(String),
}

/// Who votes now, and who does after `steps`.
pub fn voters(members: &Members, steps: &[MemberStep]) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    let old: BTreeSet<NodeId> = members.voters.iter().copied().collect();
    let mut new = old.clone();
    for step in steps {
        match step {
            MemberStep::Voter(id) => new.insert(*id),
            MemberStep::Learner(id) | MemberStep::Remove(id) => new.remove(id),
        };
    }
    (old, new)
}

/// Looks ahead at `steps`, with `alive` being all members that can be reached, new ones included.
pub fn preview(members: &Members, steps: &[MemberStep], alive: &BTreeSet<NodeId>) -> Preview {
    let (old, new) = voters(members, steps);
    let (before, after) = (Count::of(&old, alive), Count::of(&new, alive));
    let joint = steps.len() > 1;
    let verdict = if new.is_empty() {
        Verdict::Refused("it would leave no voter".into())
    } else if members.is_joint() {
        Verdict::Refused("an earlier change of members is not finished".into())
    } else if !before.holds() {
        Verdict::Refused(format!(
            "there is no quorum now, {} of {}, so nothing can be changed",
            before.reachable, before.voters
        ))
    } else if new == old {
        Verdict::Good
    } else if !after.holds() {
        let left = after.voters;
        let s = if left == 1 { "" } else { "s" };
        let are = if after.reachable == 1 { "is" } else { "are" };
        Verdict::Refused(format!(
            "it leaves {left} voter{s} of whom {} {are} reachable; a quorum is {}",
            after.reachable,
            after.needed()
        ))
    } else if after.voters > 1 && after.spare() == 0 && before.spare() > 0 {
        Verdict::Worse(format!(
            "{} of {} voters are reachable: none of them may fail then",
            after.reachable, after.voters
        ))
    } else if after.tolerates() < before.tolerates() {
        Verdict::Worse(format!(
            "{} voters survive the loss of {}, {} survive the loss of {}",
            after.voters,
            after.tolerates(),
            before.voters,
            before.tolerates()
        ))
    } else if after.voters % 2 == 0 {
        Verdict::Worse(format!(
            "{} voters survive the loss of {}, no more than {} would",
            after.voters,
            after.tolerates(),
            after.voters - 1
        ))
    } else {
        Verdict::Good
    };
    Preview { before, joint, after, verdict }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(voters: &[u64], alive: &[u64], steps: &[MemberStep]) -> String {
        let members = Members::voters(voters.iter().copied());
        let seen = preview(&members, steps, &alive.iter().copied().map(NodeId).collect());
        let verdict = match seen.verdict {
            Verdict::Good => "good".into(),
            Verdict::Worse(why) => format!("worse: {why}"),
            Verdict::Refused(why) => format!("refused: {why}"),
        };
        format!("{} -> {}; {verdict}", seen.before, seen.after)
    }

    const fn remove(id: u64) -> MemberStep {
        MemberStep::Remove(NodeId(id))
    }

    const fn voter(id: u64) -> MemberStep {
        MemberStep::Voter(NodeId(id))
    }

    #[test]
    fn the_arithmetic_is_shown() {
        expect_test::expect![[r#"
            3 voters, 3 reachable, 2 needed: 1 may fail -> 2 voters, 2 reachable, 2 needed: none may fail; worse: 2 of 2 voters are reachable: none of them may fail then
            3 voters, 2 reachable, 2 needed: none may fail -> 2 voters, 1 reachable, 2 needed: nothing can commit; refused: it leaves 2 voters of whom 1 is reachable; a quorum is 2
            3 voters, 2 reachable, 2 needed: none may fail -> 2 voters, 2 reachable, 2 needed: none may fail; worse: 2 voters survive the loss of 0, 3 survive the loss of 1
            3 voters, 1 reachable, 2 needed: nothing can commit -> 2 voters, 1 reachable, 2 needed: nothing can commit; refused: there is no quorum now, 1 of 3, so nothing can be changed
            1 voter, 1 reachable, 1 needed: none may fail -> 0 voters, 0 reachable, 1 needed: nothing can commit; refused: it would leave no voter
            1 voter, 1 reachable, 1 needed: none may fail -> 2 voters, 1 reachable, 2 needed: nothing can commit; refused: it leaves 2 voters of whom 1 is reachable; a quorum is 2
            3 voters, 3 reachable, 2 needed: 1 may fail -> 4 voters, 4 reachable, 3 needed: 1 may fail; worse: 4 voters survive the loss of 1, no more than 3 would
            4 voters, 4 reachable, 3 needed: 1 may fail -> 5 voters, 5 reachable, 3 needed: 2 may fail; good
            3 voters, 2 reachable, 2 needed: none may fail -> 3 voters, 3 reachable, 2 needed: 1 may fail; good"#]]
        .assert_eq(
            &[
                shown(&[1, 2, 3], &[1, 2, 3], &[remove(2)]),
                shown(&[1, 2, 3], &[1, 2], &[remove(2)]),
                shown(&[1, 2, 3], &[1, 2], &[remove(3)]),
                shown(&[1, 2, 3], &[1], &[remove(2)]),
                shown(&[1], &[1], &[remove(1)]),
                shown(&[1], &[1], &[voter(2)]),
                shown(&[1, 2, 3], &[1, 2, 3, 4], &[voter(4)]),
                shown(&[1, 2, 3, 4], &[1, 2, 3, 4, 5], &[voter(5)]),
                shown(&[1, 2, 3], &[1, 2, 4], &[voter(4), remove(3)]),
            ]
            .join("\n"),
        );
    }

    proptest! {
        /// Whatever is not refused leaves somebody who can decide, and what is refused would not have, before or after.
        #[test]
        fn a_step_is_refused_exactly_if_nothing_could_commit(
            voters in proptest::collection::btree_set(1u64..8, 1..7),
            alive in proptest::collection::btree_set(1u64..10, 0..9),
            steps in proptest::collection::vec((0u8..3, 1u64..10), 0..4),
        ) {
            let members = Members::voters(voters.iter().copied());
            let alive: BTreeSet<NodeId> = alive.into_iter().map(NodeId).collect();
            let steps: Vec<MemberStep> = steps.into_iter().map(|(kind, id)| match kind {
                0 => voter(id),
                1 => MemberStep::Learner(NodeId(id)),
                _ => remove(id),
            }).collect();
            let seen = preview(&members, &steps, &alive);
            let refused = matches!(seen.verdict, Verdict::Refused(_));
            prop_assert_eq!(refused, !seen.before.holds() || !seen.after.holds());
            for count in [seen.before, seen.after] {
                // By the definition: any two majorities share a voter.
                prop_assert!(2 * count.needed() > count.voters && 2 * (count.needed() - 1) <= count.voters);
            }
        }
    }
}
