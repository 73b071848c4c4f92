//! Start, crash, stop: what a node finds on its disk, held against what it had been promised.

use std::sync::Arc;

use buttress_consensus::{Config, Replica};
use buttress_core::{Code, Error, NodeId, invariants};
use buttress_state::Machine;
use buttress_wal::{Identity, Options, Stored, Wal};

use super::{Checkpoint, Event, Host, Standing, World};
use crate::{MS, Us, disk::Ailment, machine::SimMachine, rng::mix, workload::SHARDS};

/// The cluster's name in the headers of segments.
const CLUSTER: &str = "sim";

impl World {
    /// Starts a node that is down, by the rules of production.
    pub(crate) fn start(&mut self, id: u64) {
        let now = self.now;
        if self.node(id).host.is_some() || matches!(self.node(id).standing, Standing::Dead | Standing::Gone) {
            return;
        }
        let node = self.node_mut(id);
        node.incarnation += 1;
        node.started_us = node.clock.monotonic_us(now);
        let incarnation = node.incarnation;
        match self.open(id) {
            Ok(host) => {
                let node = self.node_mut(id);
                node.host = Some(Box::new(host));
                node.standing = Standing::Up;
                node.damaged = false;
                node.in_flight.clear();
                self.note(id, "start", &[incarnation], String::new);
                if incarnation > 1 {
                    self.count("restarts");
                }
                let jitter = self.rng.below(self.settings.tick);
                self.at(now + jitter, Event::Tick { node: id, incarnation });
                for shard in 0..SHARDS {
                    self.check_restored(id, shard);
                    self.tell_replaced(id, shard);
                }
            }
            Err(error) if self.node(id).disk.is_failing() => {
                self.note(id, "start-failed", &[], || error.to_string());
                self.node_mut(id).disk.mend();
                self.restart_after(id, 100 * MS);
            }
            Err(error) => self.lost_something(id, &format!("it cannot start: {error}")),
        }
    }

    fn open(&mut self, id: u64) -> Result<Host, Error> {
        let settings = self.settings.clone();
        let identity = Identity { cluster_id: CLUSTER.into(), node: NodeId(id) };
        let options = Options {
            segment_bytes: settings.segment_bytes,
            fill_bytes: settings.fill_bytes,
            spares_max: settings.spares_max,
        };
        let (mut wal, mut recovered) = Wal::open(Arc::new(self.node(id).disk.clone()), identity, options)?;
        if recovered.torn_bytes > 0 {
            self.count("torn_tails");
            self.note(id, "torn-tail", &[recovered.torn_bytes], || format!("{} bytes", recovered.torn_bytes));
        }
        let incarnation = self.node(id).incarnation;
        let mut replicas = Vec::new();
        for shard in 0..SHARDS {
            let kept = recovered.take(shard);
            self.check_kept(id, shard, &kept);
            let empty = self.empty_store();
            let joiner = self.node(id).joiner;
            let stored = self.node(id).stores[shard as usize].clone().unwrap_or(empty);
            let fresh = stored.meta.index.0 == 0 && kept.hard_state.is_none() && kept.entries.is_empty();
            let place = match stored.meta.index.0 {
                0 => Stored::default(),
                _ => Stored { index: stored.meta.index, term: stored.meta.term, meta: stored.meta.encode() },
            };
            // Whoever joins founds nothing, as a node's configuration says in production.
            let founders = if joiner { &[][..] } else { &self.founders };
            let restored =
                buttress_wal::restore(founders, settings.log_tail_bytes, shard, &mut wal, kept.clone(), &place)?;
            if fresh {
                self.node_mut(id).shadows[shard as usize].found(&restored);
            } else {
                self.node_mut(id).shadows[shard as usize].restore(&kept);
            }
            let Checkpoint { store, rolling, .. } = stored;
            let inner = Machine::open_with(store, settings.limits)
                .map_err(|error| Error::new(Code::CORRUPT, format!("the state cannot be rebuilt: {error}")))?;
            let config = Config {
                election_ticks: settings.election_ticks,
                heartbeat_ticks: settings.heartbeat_ticks,
                max_message_bytes: settings.max_message_bytes,
                max_inflight_messages: settings.max_inflight_messages,
                max_uncommitted_bytes: settings.max_uncommitted_bytes,
                max_apply_bytes: settings.max_apply_bytes,
                log_tail_bytes: settings.log_tail_bytes,
                log_memory_bytes: settings.log_memory_bytes,
                ..Config::new(NodeId(id), mix(mix(self.seed, id << 32 | incarnation), u64::from(shard)))
            };
            replicas.push(Replica::new(config, restored, SimMachine { inner, rolling })?);
        }
        let replicas = replicas.try_into().unwrap_or_else(|_| unreachable!("one replica per shard"));
        Ok(Host::new(wal, self.now, self.clocks(id), replicas))
    }

    /// A node says that it lost what it had acknowledged. Where its disk was damaged that is what it must say, and it must be
    /// replaced; otherwise it is our bug.
    pub(crate) fn lost_something(&mut self, id: u64, what: &str) {
        self.note(id, "stopped-for-good", &[], || what.to_owned());
        if !self.node(id).damaged {
            self.fail(invariants::DURABLE_1, format!("node {id}, whose disk is whole, lost something: {what}"));
            return;
        }
        self.count("damage_found");
        self.stop_process(id);
        self.declare_dead(id);
    }

    /// Whether the disk keeps less than the page cache had depends on `power`.
    pub(crate) fn crash(&mut self, id: u64, power: bool) {
        if self.node(id).host.is_none() {
            return;
        }
        self.note(id, if power { "loses-power" } else { "is-killed" }, &[], String::new);
        self.stop_process(id);
        if power {
            let mut rng = crate::rng::Rng::new(self.rng.next());
            self.node(id).disk.lose_power(&mut rng);
        }
        self.node_mut(id).standing = Standing::Down;
    }

    /// The process ends, in the middle of whatever it was doing.
    fn stop_process(&mut self, id: u64) {
        let begun = self.rng.percent(70);
        let operations = self.rng.below(5);
        let node = self.node_mut(id);
        let Some(mut host) = node.host.take() else { return };
        node.incarnation += 1;
        // A paused process can be killed; what comes next is not paused.
        node.paused_until = 0;
        if let Some(mut commit) = host.committing.take() {
            if begun && !node.disk.is_failing() {
                node.disk.fail_after(operations, Ailment::Broken);
                let _ = host.wal.commit(&mut commit.batch);
                node.disk.mend();
                node.in_flight = commit.jobs;
                self.count("commits_cut_short");
            } else {
                node.in_flight = commit.jobs;
            }
        }
        for (shard, at) in (0..).zip(&host.shards) {
            for op in at.waiting_reads() {
                self.after(0, Event::ReadAnswer { op, answer: None });
            }
            for arrival in &at.arrivals {
                self.arrival_lost(id, shard, arrival);
            }
        }
    }

    /// The log reported a failed write or sync, so the node stopped itself.
    pub(crate) fn stopped_by_disk(&mut self, id: u64) {
        let jobs = std::mem::take(&mut self.node_mut(id).in_flight);
        self.stop_process(id);
        let node = self.node_mut(id);
        node.in_flight = jobs;
        node.standing = Standing::Down;
        let down = node.mend_after.take().unwrap_or(500 * MS);
        if node.power_lost_with_mend {
            // What the kernel did with the pages that it could not write, nobody knows.
            let mut rng = crate::rng::Rng::new(self.rng.next());
            self.node(id).disk.lose_power(&mut rng);
        }
        self.node(id).disk.mend();
        self.restart_after(id, down);
    }

    pub(crate) fn restart_after(&mut self, id: u64, down: Us) {
        let incarnation = self.node(id).incarnation;
        self.after(down, Event::Restart { node: id, incarnation });
    }

    pub(super) fn restart(&mut self, id: u64, incarnation: u64) {
        if self.node(id).incarnation == incarnation && self.node(id).standing == Standing::Down {
            self.start(id);
        }
    }

    /// The node will not come back under its id.
    pub(crate) fn declare_dead(&mut self, id: u64) {
        self.node_mut(id).standing = Standing::Dead;
        self.replace(id);
    }

    /// A removed node is switched off.
    pub(super) fn switch_off(&mut self, id: u64) {
        if self.node(id).standing == Standing::Gone {
            return;
        }
        self.stop_process(id);
        self.note(id, "switched-off", &[], String::new);
        self.node_mut(id).standing = Standing::Gone;
    }
}
