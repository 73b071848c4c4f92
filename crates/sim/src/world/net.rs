//! Messages: cut, dropped, repeated, late and out of order.

use buttress_consensus::{Input, Message};
use buttress_core::NodeId;

use super::{Event, Frame, NODES_MAX, World};
use crate::{
    MS, Us,
    rng::mix_bytes,
    schedule::{Fault, Weather},
};

impl World {
    pub(crate) fn is_cut(&self, from: u64, to: u64) -> bool {
        self.blocked[from as usize] & (1 << to) != 0
    }

    /// Cuts pairs of nodes for a while.
    pub(crate) fn cut(&mut self, pairs: Vec<u64>, time: Us) {
        self.next_disturbance += 1;
        let cut = self.next_disturbance;
        self.cuts.insert(cut, pairs);
        self.settle_cuts();
        self.after(time, Event::CutEnds { cut });
    }

    pub(super) fn settle_cuts(&mut self) {
        self.blocked = vec![0; NODES_MAX + 1];
        for cut in self.cuts.values() {
            for (blocked, mask) in self.blocked.iter_mut().zip(cut) {
                *blocked |= mask;
            }
        }
    }

    pub(crate) fn set_weather(&mut self, fault: Fault) {
        let Fault::Weather { weather, time } = fault else { return };
        self.next_disturbance += 1;
        self.weathers.insert(self.next_disturbance, weather);
        self.settle_weather();
        self.after(time, Event::WeatherEnds { weather: self.next_disturbance });
    }

    pub(super) fn settle_weather(&mut self) {
        self.weather = self.weathers.last_key_value().map_or(self.settings.weather, |(_, weather)| *weather);
    }

    pub(crate) fn delay(&mut self) -> Us {
        let (low, high) = self.weather.delay_us;
        // Mostly short, now and then up to the longest.
        let high = if self.rng.percent(80) { low + (high - low) / 4 } else { high };
        self.rng.range(low, high.max(low))
    }

    pub(crate) fn weather(&self) -> Weather {
        self.weather
    }

    /// Sends something to another node. `false`: the transport knows that it was lost.
    pub(crate) fn send(&mut self, from: u64, to: u64, shard: u32, frame: Frame) -> bool {
        let hash = frame.hash();
        if to as usize > self.nodes.len() || to == 0 {
            return false;
        }
        if self.is_cut(from, to) {
            self.count("messages_cut");
            self.note(from, "cut", &[to, u64::from(shard), hash], || format!("s{shard} {frame:?}"));
            // A connection that is cut is noticed at some time.
            if self.rng.percent(10) {
                self.after(20 * MS, Event::Unreachable { node: from, shard, peer: to });
            }
            return true;
        }
        let Weather { drop_percent, repeat_percent, .. } = self.weather;
        if drop_percent > 0 && self.rng.percent(drop_percent) {
            self.count("messages_dropped");
            self.note(from, "lost", &[to, u64::from(shard), hash], || format!("s{shard} {frame:?}"));
            return true;
        }
        self.note(from, "send", &[to, u64::from(shard), hash], || format!("s{shard} {frame:?}"));
        if repeat_percent > 0 && self.rng.percent(repeat_percent) {
            self.count("messages_repeated");
            let delay = self.delay();
            self.after(delay, Event::Deliver { from, to, shard, frame: frame.clone() });
        }
        let delay = self.delay();
        self.after(delay, Event::Deliver { from, to, shard, frame });
        true
    }

    pub(super) fn deliver(&mut self, from: u64, to: u64, shard: u32, frame: Frame) {
        if self.node(to).host.is_none() || self.is_cut(from, to) {
            self.count("messages_cut");
            return;
        }
        match frame {
            Frame::Raft(bytes) => {
                let message = Message::decode(bytes).expect("what a member encoded can be decoded");
                self.note(to, "take", &[from, u64::from(shard)], || format!("s{shard} {message:?}"));
                self.input(to, shard, Input::Receive { from: NodeId(from), message });
            }
            Frame::Propose { client, number, entry } => self.peer_proposes(to, shard, from, client, number, &entry),
            Frame::NotTaken { client, number, overloaded } => {
                self.not_taken(to, shard, from, client, number, overloaded);
            }
        }
    }
}

impl Frame {
    fn hash(&self) -> u64 {
        match self {
            Frame::Raft(bytes) => mix_bytes(1, bytes),
            Frame::Propose { client, number, entry } => mix_bytes(client << 32 | number, entry),
            Frame::NotTaken { client, number, overloaded } => (client << 33 | number << 1) + u64::from(*overloaded),
        }
    }
}
