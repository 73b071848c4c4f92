//! The operator: brings nodes in, takes them out, replaces what is dead, and never takes a step that would leave a group
//! without a majority of whole disks. The same arithmetic says whether a fault may destroy one more disk.

use buttress_consensus::{MemberChange, MemberStep, Members, ProposalError};
use buttress_core::{Index, NodeId, Term};

use super::{Event, NODES_MAX, NODES_TAKEN_MAX, Standing, World, host::OPERATOR_TAG};
use crate::{MS, Us, schedule::Wish, workload::SHARDS};

const LOOK_EVERY: Us = 150 * MS;
/// A learner is ready to vote when it lacks at most so many entries.
const LAG_MAX: u64 = 20;
const VOTERS_MAX: usize = 7;

/// Something that the operator works at until it is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// `new` comes in, in both groups, and those of `old` go.
    Bring { new: u64, old: Vec<u64> },
    /// This node leaves both groups.
    Leave { node: u64 },
}

impl World {
    /// The node that leads, as far as anybody can tell from outside.
    pub(crate) fn leader(&self, shard: u32) -> Option<u64> {
        self.nodes
            .iter()
            .filter_map(|node| {
                let role = node.host.as_ref()?.shards[shard as usize].role;
                role.is_leader.then_some((role.term, node.id))
            })
            .max()
            .map(|(_, id)| id)
    }

    fn is_lost(&self, id: u64) -> bool {
        let node = self.node(id);
        node.damaged || matches!(node.standing, Standing::Dead | Standing::Gone)
    }

    /// Whether every decision of these members still has a majority of whole disks, with `more` lost besides.
    fn survives(&self, members: &Members, more: Option<u64>) -> bool {
        [&members.voters, &members.voters_outgoing].into_iter().all(|voters| {
            let lost = voters.iter().filter(|id| self.is_lost(id.0) || Some(id.0) == more).count();
            voters.is_empty() || 2 * lost < voters.len()
        })
    }

    /// Whether a change that was asked for may be in somebody's log and be committed yet. What a later term has not
    /// committed by its first entry never will be.
    fn may_still_come(&self, shard: u32) -> bool {
        let last = self.groups[shard as usize].facts.last().map_or(Term(0), |fact| fact.term);
        self.asked[shard as usize].is_some_and(|term| last <= term)
    }

    /// Whether a majority of the latest members knows, whatever crashes, that it is the latest, and nothing else may come.
    fn is_settled(&self, shard: u32) -> bool {
        let configs = &self.groups[shard as usize].configs;
        let Some((index, members)) = configs.last_key_value() else { return false };
        let Some(fact) = self.groups[shard as usize].facts.get(index.0.wrapping_sub(1) as usize) else { return false };
        let asked = self.may_still_come(shard);
        let known = |voters: &[NodeId]| {
            let holds = voters.iter().filter(|id| {
                self.holds(id.0, shard, *index, fact.term)
                    && self.knows_committed(id.0, shard, *index)
                    && !self.is_lost(id.0)
            });
            2 * holds.count() > voters.len()
        };
        !asked && !members.is_joint() && known(&members.voters)
    }

    /// Whether a fault may take this node's disk: only a minority of the voters of every group may be lost at any time,
    /// whichever members count.
    pub(crate) fn may_lose(&self, id: u64) -> bool {
        self.nodes.len() < NODES_TAKEN_MAX
            && (0..SHARDS).all(|shard| self.is_settled(shard) && self.survives(&self.members(shard), Some(id)))
    }

    /// A new node takes the place of a lost one.
    pub(crate) fn replace(&mut self, id: u64) {
        // One that was coming in itself: its successor takes over what it was to replace.
        let mut old = vec![id];
        self.tasks.retain(|task| match task {
            Task::Bring { new, old: theirs } if *new == id => {
                old.extend_from_slice(theirs);
                false
            }
            Task::Leave { node } => *node != id,
            Task::Bring { .. } => true,
        });
        let new = self.spawn();
        self.count("nodes_replaced");
        self.note(0, "replace", &[id, new], || format!("{old:?} by {new}"));
        self.tasks.push(Task::Bring { new, old });
    }

    fn spawn(&mut self) -> u64 {
        assert!(self.nodes.len() < NODES_MAX, "faults end before there are so many nodes");
        let new = self.add_node(true);
        let delay = 50 * MS + self.rng.below(300 * MS);
        self.after(delay, Event::Spawn { node: new });
        new
    }

    pub(crate) fn wish(&mut self, shard: u32, wish: Wish) {
        let Some(leader) = self.leader(shard) else { return };
        let members = self.members(shard);
        let voters: Vec<u64> = members.voters.iter().map(|id| id.0).collect();
        let learners: Vec<u64> = members.learners.iter().map(|id| id.0).collect();
        let choose = |from: &[u64], number: u64| from.get((number % from.len().max(1) as u64) as usize).copied();
        match wish {
            Wish::Grow => {
                if voters.len() < VOTERS_MAX && self.nodes.len() < NODES_TAKEN_MAX {
                    let new = self.spawn();
                    self.tasks.push(Task::Bring { new, old: Vec::new() });
                }
            }
            Wish::Shrink(number) => {
                if voters.len() > 2
                    && let Some(node) = choose(&voters, number)
                    && !self.tasks.iter().any(|task| matches!(task, Task::Leave { .. }))
                    && !self.tasks.iter().any(|task| matches!(task, Task::Bring { new, .. } if *new == node))
                {
                    self.tasks.push(Task::Leave { node });
                }
            }
            Wish::Demote(number) => {
                if let Some(node) = choose(&voters, number) {
                    self.change(leader, shard, vec![MemberStep::Learner(NodeId(node))]);
                }
            }
            Wish::Promote(number) => {
                if let Some(node) = choose(&learners, number) {
                    self.change(leader, shard, vec![MemberStep::Voter(NodeId(node))]);
                }
            }
            Wish::Swap(number) => {
                if let (Some(out), Some(learner)) = (choose(&voters, number), choose(&learners, number)) {
                    let steps = vec![MemberStep::Voter(NodeId(learner)), MemberStep::Learner(NodeId(out))];
                    self.change(leader, shard, steps);
                }
            }
        }
    }

    /// Asks a leader for a change, if the members after it would survive what is lost.
    fn change(&mut self, leader: u64, shard: u32, steps: Vec<MemberStep>) -> bool {
        if self.may_still_come(shard) {
            return false;
        }
        let before = self.members(shard);
        if before.is_joint() {
            return false;
        }
        let mut voters: Vec<NodeId> = before.voters.clone();
        for step in &steps {
            match step {
                MemberStep::Voter(id) => {
                    if !voters.contains(id) {
                        voters.push(*id);
                    }
                }
                MemberStep::Learner(id) | MemberStep::Remove(id) => voters.retain(|voter| voter != id),
            }
        }
        let after = Members { voters, ..Members::default() };
        let loses = before.voters.len() > after.voters.len();
        if after.voters.is_empty() || !self.survives(&after, None) || (loses && after.voters.len() < 2) {
            return false;
        }
        // A voter that does not run cannot help, so a group of two must not lose its only other one.
        let up = after.voters.iter().filter(|id| self.node(id.0).host.is_some()).count();
        if 2 * up <= after.voters.len() {
            return false;
        }
        self.next_operator_tag += 1;
        let tag = OPERATOR_TAG | self.next_operator_tag;
        self.operator_tags.insert(tag, shard);
        let host = self.node(leader).host.as_ref().expect("a leader runs");
        self.asked[shard as usize] = Some(host.shards[shard as usize].role.term);
        self.note(leader, "change", &[u64::from(shard), tag], || format!("s{shard} asked for {steps:?}"));
        self.count("member_changes_asked");
        self.ask_change(leader, shard, MemberChange { tag, steps, ..MemberChange::default() });
        true
    }

    /// A change of members was applied, or failed.
    pub(crate) fn change_ended(&mut self, shard: u32, tag: u64, error: Option<&ProposalError>) {
        if self.operator_tags.remove(&tag).is_none() {
            self.fail(
                buttress_core::invariants::ACK_2,
                format!("change {} of shard {shard} is answered once more", tag & !OPERATOR_TAG),
            );
            return;
        }
        // Where leadership was lost the change may still come.
        if !matches!(error, Some(ProposalError::Lost)) {
            self.asked[shard as usize] = None;
        }
    }

    /// Looks at what is to be done, and does one step of it per group.
    pub(super) fn operator(&mut self) {
        self.after(LOOK_EVERY, Event::Operator);
        let tasks = self.tasks.clone();
        for task in &tasks {
            for shard in 0..SHARDS {
                self.advance(task, shard);
            }
        }
        let done: Vec<Task> = tasks.into_iter().filter(|task| self.is_done(task)).collect();
        for task in done {
            self.note(0, "operator", &[], || format!("done: {task:?}"));
            self.tasks.retain(|other| *other != task);
            let leaving = match task {
                Task::Bring { old, .. } => old,
                Task::Leave { node } => vec![node],
            };
            for node in leaving {
                if matches!(self.node(node).standing, Standing::Up | Standing::Down) {
                    self.count("nodes_removed");
                    self.after(300 * MS, Event::SwitchOff { node });
                }
            }
        }
    }

    fn is_done(&self, task: &Task) -> bool {
        (0..SHARDS).all(|shard| {
            let members = self.members(shard);
            let all = members.all();
            let settled = self.is_settled(shard);
            settled
                && match task {
                    Task::Bring { new, old } => {
                        members.voters.contains(&NodeId(*new)) && !old.iter().any(|id| all.contains(&NodeId(*id)))
                    }
                    Task::Leave { node } => !all.contains(&NodeId(*node)),
                }
        })
    }

    fn advance(&mut self, task: &Task, shard: u32) {
        let Some(leader) = self.leader(shard) else { return };
        let members = self.members(shard);
        if members.is_joint() {
            return;
        }
        let status = {
            let host = self.node(leader).host.as_ref().expect("a leader runs");
            host.shards[shard as usize].replica.status().engine
        };
        match task {
            Task::Bring { new, old } => {
                let new = NodeId(*new);
                let leaves = old.iter().map(|id| NodeId(*id)).find(|id| members.all().contains(id));
                if members.voters.contains(&new) {
                    // Another change made a learner of a voter: without it too few would be left.
                    let spare = members.learners.iter().find(|id| !old.contains(&id.0));
                    match (leaves, spare) {
                        (Some(_), Some(spare)) if members.voters.len() <= 2 => {
                            self.change(leader, shard, vec![MemberStep::Voter(*spare)]);
                        }
                        (Some(leaves), _) => {
                            self.change(leader, shard, vec![MemberStep::Remove(leaves)]);
                        }
                        (None, _) => {}
                    }
                } else if members.learners.contains(&new) {
                    let matched = status.peers.iter().find(|peer| peer.id == new).map_or(Index(0), |peer| peer.matched);
                    if matched.0 + LAG_MAX < status.last.0 || matched.0 == 0 {
                        return;
                    }
                    let mut steps = vec![MemberStep::Voter(new)];
                    // Half of the worlds replace in one joint change, the others one step after the other.
                    if let Some(leaves) = leaves
                        && (self.seed / 2).is_multiple_of(2)
                    {
                        steps.push(MemberStep::Remove(leaves));
                    }
                    self.change(leader, shard, steps);
                } else if self.node(new.0).host.is_some() {
                    self.change(leader, shard, vec![MemberStep::Learner(new)]);
                }
            }
            Task::Leave { node } => {
                let node = NodeId(*node);
                if members.voters.contains(&node) && members.voters.len() <= 2 {
                    // It may not leave any more.
                    self.tasks.retain(|other| other != task);
                } else if members.all().contains(&node) {
                    self.change(leader, shard, vec![MemberStep::Remove(node)]);
                }
            }
        }
    }
}
