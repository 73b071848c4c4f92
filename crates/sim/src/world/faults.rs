//! Faults as they happen: whom they hit is decided now, from the number that was drawn.

use buttress_consensus::Input;
use buttress_core::NodeId;

use super::{Event, NODES_MAX, NODES_TAKEN_MAX, Standing, World};
use crate::{
    Us,
    disk::Ailment,
    rng::Rng,
    schedule::{Fault, Who},
};

impl World {
    fn victim(&self, who: Who) -> Option<u64> {
        let running = self.running();
        match who {
            Who::Leader(shard) => self.leader(shard).or_else(|| running.first().copied()),
            Who::Any(number) => running.get((number % running.len().max(1) as u64) as usize).copied(),
        }
    }

    pub(super) fn fault(&mut self, number: usize) {
        if self.healed {
            return;
        }
        let fault = self.faults[number].1;
        self.note(0, "fault", &[number as u64], || format!("#{number} {fault:?}"));
        if self.inject(fault) {
            self.count(fault.kind().name());
        } else {
            self.note(0, "fault", &[number as u64], || format!("#{number} does not apply now"));
            self.count("faults_not_applicable");
        }
    }

    /// `false` where it would break a promise about the faults themselves, or has no victim.
    fn inject(&mut self, fault: Fault) -> bool {
        let now = self.now;
        match fault {
            Fault::Crash { who, down } | Fault::Kill { who, down } => {
                let Some(id) = self.victim(who) else { return false };
                self.crash(id, matches!(fault, Fault::Crash { .. }));
                self.restart_after(id, down);
            }
            Fault::CrashAll { down } => {
                for id in self.running() {
                    self.crash(id, true);
                    let late = self.rng.below(down + 1);
                    self.restart_after(id, down / 2 + late);
                }
            }
            Fault::Pause { who, time } => {
                let Some(id) = self.victim(who) else { return false };
                self.node_mut(id).paused_until = now + time;
            }
            Fault::Split { mask, one_way, time } => {
                let mut rng = Rng::new(mask);
                let running = self.running();
                if running.is_empty() {
                    return false;
                }
                // Two of five, one of three: the smaller side is a minority, or either may be.
                let mut side = 0u64;
                let size = 1 + rng.below((running.len() as u64).div_ceil(2)) as usize;
                for _ in 0..size {
                    side |= 1 << rng.pick(&running).unwrap_or(1);
                }
                let all: u64 = (1..=NODES_MAX as u64).map(|id| 1 << id).sum();
                let pairs = (0..=NODES_MAX as u64)
                    .map(|id| match (side & (1 << id) != 0, one_way) {
                        (true, _) => all & !side,
                        (false, false) => side,
                        (false, true) => 0,
                    })
                    .collect();
                self.cut(pairs, time);
            }
            Fault::Isolate { who, hears, heard, time } => {
                let Some(id) = self.victim(who) else { return false };
                self.isolate(id, hears, heard, time);
            }
            Fault::Weather { .. } => self.set_weather(fault),
            Fault::ClockJump { who, ms } => {
                let Some(id) = self.victim(who) else { return false };
                let ppm = self.node(id).clock.ppm;
                self.node_mut(id).clock.set(now, ms * 1000, ppm);
            }
            Fault::ClockDrift { who, ppm } => {
                let Some(id) = self.victim(who) else { return false };
                self.node_mut(id).clock.set(now, 0, ppm);
            }
            Fault::SlowDisk { who, extra, time } => {
                let Some(id) = self.victim(who) else { return false };
                self.node_mut(id).slow = (extra, now + time);
            }
            Fault::BrokenDisk { who, after, down } | Fault::FullDisk { who, after, down } => {
                let Some(id) = self.victim(who) else { return false };
                let full = matches!(fault, Fault::FullDisk { .. });
                let node = self.node_mut(id);
                if node.disk.is_failing() {
                    return false;
                }
                node.disk.fail_after(after, if full { Ailment::Full } else { Ailment::Broken });
                node.mend_after = Some(down);
                node.power_lost_with_mend = !full;
            }
            Fault::Damage { who, damage, times, crash_after, down } => {
                let Some(id) = self.victim(who) else { return false };
                if !self.may_lose(id) {
                    return false;
                }
                let mut done = false;
                for _ in 0..times {
                    let mut rng = Rng::new(self.rng.next());
                    if let Some(what) = self.node(id).disk.damage(damage, &mut rng) {
                        self.note(id, "damaged", &[], || what);
                        done = true;
                    }
                }
                if !done {
                    return false;
                }
                self.node_mut(id).damaged = true;
                let incarnation = self.node(id).incarnation;
                self.after(crash_after, Event::CrashForDamage { node: id, incarnation, down });
            }
            Fault::Destroy { who } => {
                let Some(id) = self.victim(who) else { return false };
                if !self.may_lose(id) {
                    return false;
                }
                self.crash(id, true);
                let seed = self.rng.next();
                let node = self.node_mut(id);
                node.disk = crate::disk::SimDisk::new(seed);
                node.stores = [None, None];
                self.declare_dead(id);
            }
            Fault::Members { shard, wish } => self.wish(shard, wish),
            Fault::Transfer { shard, to } => {
                let Some(leader) = self.leader(shard) else { return false };
                let voters = self.members(shard).voters;
                let Some(to) = voters.get((to % voters.len().max(1) as u64) as usize).copied() else { return false };
                if to == NodeId(leader) {
                    return false;
                }
                self.note(leader, "transfer", &[u64::from(shard), to.0], || format!("s{shard} to node {to}"));
                self.input(leader, shard, Input::Transfer { to });
            }
            Fault::Replace { who } => {
                let Some(id) = self.victim(who) else { return false };
                let member = (0..crate::workload::SHARDS).any(|shard| self.members(shard).all().contains(&NodeId(id)));
                let busy = self.tasks.len() >= 2 || self.nodes.len() >= NODES_TAKEN_MAX;
                if !member || busy || self.node(id).standing != Standing::Up {
                    return false;
                }
                let leaving = self.tasks.iter().any(|task| match task {
                    super::Task::Bring { new, old } => *new == id || old.contains(&id),
                    super::Task::Leave { node } => *node == id,
                });
                if leaving {
                    return false;
                }
                self.replace(id);
            }
            Fault::ShortReigns { within, time, scripted } => self.shorten_reigns(within, time, scripted),
        }
        true
    }

    pub(super) fn isolate(&mut self, id: u64, hears: bool, heard: bool, time: Us) {
        let all: u64 = (1..=NODES_MAX as u64).map(|id| 1 << id).sum();
        let pairs = (0..=NODES_MAX as u64)
            .map(|from| match (from == id, hears, heard) {
                (true, _, false) => all & !(1 << id),
                (false, false, _) => 1 << id,
                _ => 0,
            })
            .collect();
        self.note(id, "isolated", &[], || format!("hears {hears}, is heard {heard}"));
        self.cut(pairs, time);
    }
}
