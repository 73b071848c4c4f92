//! Times in which nobody leads for long.
//!
//! What goes wrong between two leaders takes several of them in a row that fall in the middle of their first messages. Chance
//! alone does not do it: figure 3.7 of Ongaro's dissertation, an entry of an older term that is on a majority and is
//! overwritten nevertheless, takes four reigns of which each must end just so. In a scripted time the reigns of a shard are
//! therefore [`Script`]s in turn: only what a leader says of its log is kept from being heard, so everything that happens is
//! something that a network may do.

use buttress_consensus::{Body, Message};

use super::World;
use crate::{MS, Us, workload::SHARDS};

/// What is heard of a leader's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    /// By as many as leave it one short of a majority.
    Few,
    /// By nobody.
    Alone,
    /// By everybody, but none of its own term.
    Older,
    /// All by everybody.
    Free,
}

const SCRIPTS: [Script; 4] = [Script::Few, Script::Alone, Script::Older, Script::Free];

#[derive(Clone, Copy, Debug)]
struct Reign {
    leader: u64,
    term: u64,
    script: Script,
    /// By whom `Few` is heard, as a mask.
    heard_by: u64,
}

#[derive(Default)]
pub(crate) struct Reigns {
    /// New leaders fall within so long.
    within: Us,
    until: Us,
    scripted: bool,
    /// The cut around the last who fell so.
    silenced: Option<u64>,
    next: [usize; SHARDS as usize],
    now: [Option<Reign>; SHARDS as usize],
}

impl World {
    pub(super) fn shorten_reigns(&mut self, within: Us, time: Us, scripted: bool) {
        self.reigns =
            Reigns { within, until: self.now + time, scripted, silenced: self.reigns.silenced, ..Reigns::default() };
    }

    fn reigns_are_short(&self) -> bool {
        self.now < self.reigns.until && !self.healed
    }

    /// Somebody asked for votes: sometimes nothing more is heard of it, so that it comes to lead and its first entry is its
    /// alone.
    pub(super) fn asked_for_votes(&mut self, id: u64) {
        if self.reigns_are_short() && !self.reigns.scripted && self.rng.percent(40) {
            self.silence(id, true);
        }
    }

    /// Somebody came to lead.
    pub(super) fn begin_reign(&mut self, id: u64, shard: u32, term: u64) {
        if !self.reigns_are_short() {
            return;
        }
        let at = shard as usize;
        let mut left = self.rng.below(self.reigns.within);
        let mut ends = self.rng.percent(75);
        if self.reigns.scripted {
            let number = if self.rng.percent(85) { self.reigns.next[at] } else { self.rng.below(4) as usize };
            let script = SCRIPTS[number % SCRIPTS.len()];
            self.reigns.next[at] = number + 1;
            let mut others: Vec<u64> =
                self.members(shard).voters.iter().map(|id| id.0).filter(|to| *to != id).collect();
            let few = others.len().saturating_sub(2) / 2;
            let first = self.rng.below(others.len().max(1) as u64) as usize;
            others.rotate_left(first);
            let heard_by = others.iter().take(few).fold(0, |mask, to| mask | 1 << to);
            self.note(id, "reign", &[u64::from(shard), number as u64], || format!("s{shard} {script:?}"));
            self.reigns.now[at] = Some(Reign { leader: id, term, script, heard_by });
            // Long enough for a few messages to and fro, and for somebody to propose.
            left += 20 * MS + self.rng.below(150 * MS);
            ends = ends || script != Script::Free;
        }
        if ends {
            let incarnation = self.node(id).incarnation;
            self.after(left, super::Event::ReignEnds { node: id, incarnation, shard });
        }
    }

    /// Whether the script keeps this from being heard.
    pub(super) fn is_unheard(&self, from: u64, to: u64, shard: u32, message: &Message) -> bool {
        let Some(reign) = self.reigns.now[shard as usize].filter(|_| self.reigns_are_short()) else { return false };
        let Body::Append { entries, .. } = &message.body else { return false };
        if (reign.leader, reign.term) != (from, message.term.0) || entries.is_empty() {
            return false;
        }
        match reign.script {
            Script::Few => reign.heard_by & 1 << to == 0,
            Script::Alone => true,
            Script::Older => entries.iter().any(|entry| entry.term == message.term),
            Script::Free => false,
        }
    }

    /// It falls: cut off, or without power. Mostly it still hears, so that answers to what it said count for it, and nothing
    /// that follows from them leaves it; in a scripted time it hears nothing, or it would learn to forget its entries.
    pub(super) fn end_reign(&mut self, id: u64, shard: u32) {
        if self.leader(shard) != Some(id) || self.healed {
            return;
        }
        self.count("reigns_ended");
        if self.reigns.scripted || self.rng.percent(75) {
            let hears = !self.reigns.scripted && self.rng.percent(70);
            self.silence(id, hears);
        } else {
            let power = self.rng.percent(50);
            self.crash(id, power);
            let election = self.settings.tick * u64::from(self.settings.election_ticks);
            let down = election + self.rng.below(2 * election);
            self.restart_after(id, down);
        }
    }

    /// Nobody hears it for a few elections, and whoever was silenced before is back: so two with different ends of their logs
    /// take turns, which is what it takes to overwrite what was not safely committed.
    fn silence(&mut self, id: u64, hears: bool) {
        if let Some(cut) = self.reigns.silenced.take() {
            self.cuts.remove(&cut);
            self.settle_cuts();
        }
        let election = self.settings.tick * u64::from(self.settings.election_ticks);
        let time = 2 * election + self.rng.below(6 * election);
        self.isolate(id, hears, false, time);
        self.reigns.silenced = Some(self.next_disturbance);
    }
}
