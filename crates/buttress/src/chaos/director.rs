//! Carries the faults out, one after the other, and holds what it sees against what was expected ([`super::schedule`]).
//!
//! It judges as a client: by what nodes answer, never by what they hold inside. Every write and read that it makes itself
//! is part of the history. Whether anything acknowledged was lost shows at the end, when the history is judged; what a fault
//! adds are the things that only its moment can show: how long it took until the cluster committed again, that a
//! minority acknowledged nothing, that a node caught up.
//!
//! Whatever comes, a fault ends with the network whole and every node started.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use buttress_core::{Code, Error, Put, Revision};
use buttress_oracle::{Commit, Outcome};
use bytes::Bytes;
use serde::Serialize;
use serde_json::json;

use super::{
    ask::Reply,
    clients::{DIRECTOR, SCOPE, plain},
    dice::Dice,
    disk::SmallDisk,
    network::Network,
    record::{Answered, SampleKind},
    schedule::{CATCH_UP_WITHIN, Kind, RECOVER_WITHIN, RESTART_WITHIN},
    terminal::Terminal,
    world::{Client, World},
};
use crate::cluster::{LocalCluster, log_path};

const POLL: Duration = Duration::from_millis(25);
/// A fault that is to be felt lasts so long.
const FAULT_LASTS: Duration = Duration::from_secs(8);
/// A probe that is not answered is tried again after this.
const PROBE_DEADLINE: Duration = Duration::from_millis(700);
/// A follower's absence must not be felt for longer.
const UNDISTURBED_WITHIN: Duration = Duration::from_secs(2);
const DISK_FULL_WITHIN: Duration = Duration::from_secs(20);
/// Records that make a node with a full disk need another block: the log reserves a mebibyte at a time.
const PRESSURE_BYTES: usize = 200 * 1024;

/// What came of one fault.
#[derive(Clone, Debug, Serialize)]
pub struct Played {
    #[serde(serialize_with = "kind_name")]
    pub kind: Kind,
    pub nodes: Vec<String>,
    pub from_s: f64,
    pub to_s: f64,
    /// From the fault to the first commit that was acknowledged by those who should go on.
    pub recovered_ms: Option<f64>,
    pub seen: Vec<String>,
    /// Expectations that were not met.
    pub broken: Vec<String>,
}

fn kind_name<S: serde::Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.name())
}

impl Played {
    pub fn held(&self) -> bool {
        self.broken.is_empty()
    }

    fn see(&mut self, text: impl Into<String>) {
        self.seen.push(text.into());
    }

    fn expect(&mut self, held: bool, good: impl Into<String>, bad: impl Into<String>) {
        if held { self.seen.push(good.into()) } else { self.broken.push(bad.into()) }
    }
}

pub struct Director {
    pub world: Arc<World>,
    pub cluster: Arc<LocalCluster>,
    pub network: Network,
    /// The node that it is under, by its position.
    pub disk: Option<(usize, SmallDisk)>,
    pub terminal: Arc<Terminal>,
    client: Client,
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

impl Director {
    pub fn new(
        world: Arc<World>,
        cluster: Arc<LocalCluster>,
        network: Network,
        disk: Option<(usize, SmallDisk)>,
        terminal: Arc<Terminal>,
    ) -> Self {
        Self { world, cluster, network, disk, terminal, client: Client::new(DIRECTOR, PROBE_DEADLINE) }
    }

    /// Plays one fault. The cluster is whole when it returns, or the error says why it is not.
    ///
    /// # Errors
    /// When a node cannot be brought back, or the network not be healed.
    pub async fn play(&mut self, kind: Kind, choice: u64) -> Result<Played, Error> {
        let from = self.world.recorder.elapsed();
        let mut played = Played {
            kind,
            nodes: Vec::new(),
            from_s: from.as_secs_f64(),
            to_s: 0.0,
            recovered_ms: None,
            seen: Vec::new(),
            broken: Vec::new(),
        };
        let Some((leader, term)) = self.settled().await else {
            played.expect(false, "", "there is no leader before the fault");
            played.to_s = self.world.recorder.elapsed().as_secs_f64();
            return Ok(played);
        };
        let mut dice = Dice::new(choice);
        let followers: Vec<usize> = self.world.all().into_iter().filter(|node| *node != leader).collect();
        let follower = followers[dice.below(followers.len() as u64) as usize];
        let result = match kind {
            Kind::KillLeader => self.kill(&mut played, leader, Some(term)).await,
            Kind::KillFollower => self.kill(&mut played, follower, None).await,
            Kind::Split => self.split(&mut played, leader, term, &mut dice).await,
            Kind::Isolate => self.isolate(&mut played, leader, term).await,
            Kind::CutOut => self.one_way(&mut played, leader, term, true).await,
            Kind::CutIn => self.one_way(&mut played, leader, term, false).await,
            Kind::DelayFollower => self.delay(&mut played, follower).await,
            Kind::PauseLeader => self.pause(&mut played, leader, Some(term)).await,
            Kind::PauseFollower => self.pause(&mut played, follower, None).await,
            Kind::DiskFull => self.fill_disk(&mut played).await,
            Kind::KillAll => self.kill_all(&mut played).await,
            Kind::Transfer => self.transfer(&mut played, leader, term, follower).await,
        };
        // Whatever went wrong, the next fault begins with everything whole.
        self.restore().await?;
        if let Err(error) = result {
            played.broken.push(error.to_string().replace('\n', " "));
        }
        let double = self.world.double_leaders();
        if !double.is_empty() {
            played.broken.push(double.join(", "));
        }
        played.to_s = self.world.recorder.elapsed().as_secs_f64();
        Ok(played)
    }

    /// Heals the network, gives space, and starts every node that is down.
    ///
    /// # Errors
    /// When a node cannot be brought back, or the network not be healed.
    pub async fn restore(&self) -> Result<(), Error> {
        self.network.heal()?;
        if let Some((_, disk)) = &self.disk {
            disk.empty()?;
        }
        self.cluster.reap();
        let running = self.cluster.running();
        for node in self.world.all() {
            if running.contains(&self.name(node)) {
                // One that does not sleep is not woken by this.
                self.signal(node, rustix::process::Signal::CONT)?;
            } else {
                self.cluster.spawn(&self.name(node))?;
            }
        }
        for node in &self.world.nodes {
            self.cluster.wait_ready(&node.name).await?;
        }
        Ok(())
    }

    fn name(&self, node: usize) -> String {
        self.world.nodes[node].name.clone()
    }

    fn id(&self, node: usize) -> u64 {
        self.world.nodes[node].id
    }

    fn others(&self, not: &[usize]) -> Vec<usize> {
        self.world.all().into_iter().filter(|node| !not.contains(node)).collect()
    }

    fn say(&self, kind: &'static str, text: String) {
        self.terminal.event(self.world.recorder.elapsed(), kind, &text);
    }

    /// Waits until every node names the same leader.
    async fn settled(&self) -> Option<(usize, u64)> {
        let until = Instant::now() + CATCH_UP_WITHIN;
        while Instant::now() < until {
            let statuses = self.world.statuses(&self.world.all()).await;
            if statuses.len() == self.world.nodes.len()
                && let Some(leader) = statuses[0].1.leader
                && statuses.iter().all(|(_, status)| (status.leader, status.term) == (Some(leader), statuses[0].1.term))
            {
                return Some((self.world.position(leader), statuses[0].1.term));
            }
            tokio::time::sleep(POLL).await;
        }
        None
    }

    /// A probe's key, new for each; its value is the probe's serial.
    fn probe(&self) -> (Bytes, Commit) {
        let serial = self.world.serial();
        let key = Bytes::from(format!("{SCOPE}probe/{serial}"));
        let put = Put { key: key.clone(), value: Some(serial.to_string().into()), lease: None };
        (key, Commit { puts: vec![put], ..Commit::default() })
    }

    /// Writes through `nodes` in turn until one acknowledges; how long that took since `since`.
    async fn commits(&mut self, nodes: &[usize], since: Instant, within: Duration) -> Option<Duration> {
        let mut turn = 0;
        while since.elapsed() < within {
            let (_, commit) = self.probe();
            let node = nodes[turn % nodes.len()];
            if let Outcome::Done(_) = self.client.commit(&self.world, node, commit, plain).await {
                return Some(since.elapsed());
            }
            turn += 1;
            tokio::time::sleep(POLL).await;
        }
        None
    }

    /// Waits until one of `nodes` names a leader among them in a later term.
    async fn elected(
        &self,
        nodes: &[usize],
        after: u64,
        since: Instant,
        within: Duration,
    ) -> Option<(usize, u64, Duration)> {
        while since.elapsed() < within {
            for (_, status) in self.world.statuses(nodes).await {
                if let Some(leader) = status.leader.filter(|_| status.term > after).map(|id| self.world.position(id))
                    && nodes.contains(&leader)
                {
                    return Some((leader, status.term, since.elapsed()));
                }
            }
            tokio::time::sleep(POLL).await;
        }
        None
    }

    /// Those who should go on have a leader of their own, and commit.
    async fn goes_on(
        &mut self,
        played: &mut Played,
        nodes: &[usize],
        after: Option<u64>,
        since: Instant,
        within: Duration,
    ) {
        if let Some(after) = after {
            match self.elected(nodes, after, since, within).await {
                Some((leader, term, took)) => {
                    let text = format!("{} leads term {term} after {:.0} ms", self.name(leader), ms(took));
                    self.say("election", text.clone());
                    played.see(text);
                }
                None => played.broken.push(format!("no new leader within {} s", within.as_secs())),
            }
        }
        match self.commits(nodes, since, within).await {
            Some(took) => {
                played.recovered_ms = Some(ms(took));
                played.see(format!("a commit was acknowledged after {:.0} ms", ms(took)));
            }
            None => played.broken.push(format!("no commit was acknowledged within {} s", within.as_secs())),
        }
    }

    /// The node applies what is committed now, in time.
    async fn catches_up(&self, played: &mut Played, node: usize) {
        let since = Instant::now();
        let mut goal = None;
        while since.elapsed() < CATCH_UP_WITHIN {
            if goal.is_none() {
                let others = self.world.statuses(&self.others(&[node])).await;
                goal = others.iter().map(|(_, status)| status.committed).max();
            }
            if let Some(goal) = goal
                && let Some(status) = self.world.status(node).await
                && status.applied >= goal
                && status.leader.is_some()
            {
                let text =
                    format!("{} caught up {:.1} s after it was back", self.name(node), since.elapsed().as_secs_f64());
                self.say("caught-up", text.clone());
                played.see(text);
                return;
            }
            tokio::time::sleep(POLL).await;
        }
        played.broken.push(format!("{} did not catch up within {} s", self.name(node), CATCH_UP_WITHIN.as_secs()));
    }

    async fn kill(&mut self, played: &mut Played, node: usize, led: Option<u64>) -> Result<(), Error> {
        let name = self.name(node);
        played.nodes.push(name.clone());
        self.say(
            "kill",
            format!("SIGKILL to {name}{}", led.map_or(String::new(), |term| format!(", the leader of term {term}"))),
        );
        let since = Instant::now();
        self.cluster.kill(&name).await?;
        let within = if led.is_some() { RECOVER_WITHIN } else { UNDISTURBED_WITHIN };
        let rest = self.others(&[node]);
        self.goes_on(played, &rest, led, since, within).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        self.say("restart", format!("{name} starts again on its old data"));
        self.cluster.start(&name).await?;
        self.catches_up(played, node).await;
        Ok(())
    }

    async fn split(&mut self, played: &mut Played, leader: usize, term: u64, dice: &mut Dice) -> Result<(), Error> {
        let mut others = self.others(&[leader]);
        dice.shuffle(&mut others);
        let smaller = (self.world.nodes.len() - 1) / 2;
        let mut minority = vec![leader];
        minority.extend(others.iter().take(smaller.saturating_sub(1)));
        let majority = self.others(&minority);
        for &a in &minority {
            for &b in &majority {
                self.network.cut(self.id(a), self.id(b))?;
                self.network.cut(self.id(b), self.id(a))?;
            }
        }
        let names: Vec<String> = minority.iter().map(|node| self.name(*node)).collect();
        self.say("cut", format!("split {}|{}: {} cut off", majority.len(), minority.len(), names.join(", ")));
        played.nodes = names;
        self.apart(played, &minority, &majority, term).await
    }

    async fn isolate(&mut self, played: &mut Played, leader: usize, term: u64) -> Result<(), Error> {
        self.network.isolate(self.id(leader))?;
        played.nodes.push(self.name(leader));
        self.say("cut", format!("{}, the leader, is cut off from everybody", self.name(leader)));
        let majority = self.others(&[leader]);
        self.apart(played, &[leader], &majority, term).await
    }

    /// While a minority is cut off both ways: the majority goes on, the minority acknowledges nothing; then the heal.
    async fn apart(
        &mut self,
        played: &mut Played,
        minority: &[usize],
        majority: &[usize],
        term: u64,
    ) -> Result<(), Error> {
        let (since, cut_at) = (Instant::now(), self.world.recorder.elapsed());
        self.goes_on(played, majority, Some(term), since, RECOVER_WITHIN).await;
        // Asked on purpose, beside what the clients ask.
        let mut asked = 0;
        while since.elapsed() < FAULT_LASTS {
            for &node in minority {
                let (key, commit) = self.probe();
                self.client.commit(&self.world, node, commit, plain).await;
                self.client.read(&self.world, node, &key, true).await;
                asked += 2;
            }
        }
        let healed_at = self.world.recorder.elapsed();
        self.network.heal()?;
        self.say("heal", "the network is whole again".into());
        let samples = self.world.recorder.samples_since(cut_at);
        // What was called after the cut and answered before the heal.
        let within = samples.iter().filter(|sample| {
            minority.contains(&sample.node)
                && sample.began >= cut_at
                && sample.ended <= healed_at
                && sample.kind != SampleKind::Other
        });
        let (mut called, mut acknowledged) = (0, 0);
        for sample in within {
            called += 1;
            acknowledged += usize::from(matches!(sample.answer, Answered::Yes | Answered::No));
        }
        played.expect(
            acknowledged == 0 && called >= asked,
            format!("the minority acknowledged none of {called} writes and linearizable reads"),
            format!("the minority acknowledged {acknowledged} of {called} writes and linearizable reads while it was cut off"),
        );
        for &node in minority {
            self.catches_up(played, node).await;
        }
        Ok(())
    }

    async fn one_way(&mut self, played: &mut Played, leader: usize, term: u64, out: bool) -> Result<(), Error> {
        let rest = self.others(&[leader]);
        for &other in &rest {
            let (from, to) = if out { (leader, other) } else { (other, leader) };
            self.network.cut(self.id(from), self.id(to))?;
        }
        let name = self.name(leader);
        let what =
            if out { format!("what {name} sends vanishes") } else { format!("{name} hears nobody, but is heard") };
        self.say("cut", what);
        played.nodes.push(name);
        let since = Instant::now();
        self.goes_on(played, &rest, Some(term), since, RECOVER_WITHIN).await;
        tokio::time::sleep(FAULT_LASTS.saturating_sub(since.elapsed())).await;
        self.network.heal()?;
        self.say("heal", "the network is whole again".into());
        self.catches_up(played, leader).await;
        Ok(())
    }

    async fn delay(&mut self, played: &mut Played, follower: usize) -> Result<(), Error> {
        let name = self.name(follower);
        self.network.delay(self.id(follower), Duration::from_millis(200), Duration::from_millis(50));
        self.say("delay", format!("200 to 250 ms to and from {name}"));
        played.nodes.push(name);
        let rest = self.others(&[follower]);
        let since = Instant::now();
        self.goes_on(played, &rest, None, since, UNDISTURBED_WITHIN).await;
        let (mut asked, mut done) = (0, 0);
        while since.elapsed() < FAULT_LASTS {
            let (_, commit) = self.probe();
            asked += 1;
            let node = rest[asked % rest.len()];
            done += usize::from(matches!(self.client.commit(&self.world, node, commit, plain).await, Outcome::Done(_)));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        played.expect(
            done == asked,
            format!("all {asked} probes on the other nodes were acknowledged"),
            format!(
                "{} of {asked} probes on the other nodes were not acknowledged in {} ms",
                asked - done,
                PROBE_DEADLINE.as_millis()
            ),
        );
        self.network.heal()?;
        self.say("heal", "the delay is gone".into());
        self.catches_up(played, follower).await;
        Ok(())
    }

    fn signal(&self, node: usize, signal: rustix::process::Signal) -> Result<(), Error> {
        let failed =
            |what: String| Error::new(Code::UNREACHABLE, format!("{} cannot be signalled: {what}", self.name(node)));
        let pid = self.cluster.process_id(&self.name(node)).ok_or_else(|| failed("it does not run".into()))?;
        let pid = rustix::process::Pid::from_raw(pid as i32).ok_or_else(|| failed("it has no process id".into()))?;
        rustix::process::kill_process(pid, signal).map_err(|error| failed(error.to_string()))
    }

    async fn pause(&mut self, played: &mut Played, node: usize, led: Option<u64>) -> Result<(), Error> {
        let name = self.name(node);
        let rest = self.others(&[node]);
        // Something that is overwritten while the node sleeps.
        let (key, commit) = self.probe();
        self.client.commit(&self.world, rest[0], commit, plain).await;
        self.signal(node, rustix::process::Signal::STOP)?;
        self.say("pause", format!("SIGSTOP to {name}"));
        played.nodes.push(name.clone());
        let since = Instant::now();
        let within = if led.is_some() { RECOVER_WITHIN } else { UNDISTURBED_WITHIN };
        self.goes_on(played, &rest, led, since, within).await;
        let serial = self.world.serial();
        let put = Put { key: key.clone(), value: Some(serial.to_string().into()), lease: None };
        let mut overwritten = false;
        for _ in 0..10 {
            let commit = Commit { puts: vec![put.clone()], ..Commit::default() };
            overwritten = matches!(self.client.commit(&self.world, rest[0], commit, plain).await, Outcome::Done(_));
            if overwritten {
                break;
            }
        }
        tokio::time::sleep(FAULT_LASTS.saturating_sub(since.elapsed())).await;
        self.signal(node, rustix::process::Signal::CONT)?;
        self.say("resume", format!("SIGCONT to {name}"));
        // The very first answers of the resumed node are the ones that could be stale.
        let (mut fresh, mut stale, mut none) = (0, 0, 0);
        for _ in 0..10 {
            match self.client.read(&self.world, node, &key, true).await {
                Outcome::Found(found) if found.kvs.first().is_some_and(|kv| kv.value == serial.to_string()) => {
                    fresh += 1
                }
                Outcome::Found(_) => stale += 1,
                _ => none += 1,
            }
        }
        played.expect(
            overwritten && stale == 0,
            format!("{fresh} reads after the pause were fresh, {none} had no answer"),
            match overwritten {
                true => format!("{stale} linearizable reads after the pause were stale"),
                false => "nothing could be overwritten during the pause".into(),
            },
        );
        self.catches_up(played, node).await;
        Ok(())
    }

    async fn kill_all(&mut self, played: &mut Played) -> Result<(), Error> {
        played.nodes = self.world.nodes.iter().map(|node| node.name.clone()).collect();
        self.say("kill", "SIGKILL to every node".into());
        let names = played.nodes.clone();
        let killed = futures::future::join_all(names.iter().map(|name| self.cluster.kill(name))).await;
        killed.into_iter().collect::<Result<(), Error>>()?;
        let since = Instant::now();
        for name in &names {
            self.cluster.spawn(name)?;
        }
        self.say("restart", "every node starts again on its old data".into());
        let all = self.world.all();
        self.goes_on(played, &all, None, since, RESTART_WITHIN).await;
        for name in &names {
            self.cluster.wait_ready(name).await?;
        }
        for node in all {
            self.catches_up(played, node).await;
        }
        Ok(())
    }

    /// The leader is asked to hand over; asked again while it says that the follower is not ready.
    async fn transfer(&mut self, played: &mut Played, leader: usize, term: u64, heir: usize) -> Result<(), Error> {
        let name = self.name(heir);
        played.nodes = vec![self.name(leader), name.clone()];
        self.say("transfer", format!("{} is asked to hand leadership to {name}", self.name(leader)));
        let address = self.world.nodes[leader].http.clone();
        let since = Instant::now();
        let mut said = "nothing".to_owned();
        let mut handed_over = false;
        while !handed_over && since.elapsed() < RECOVER_WITHIN {
            let reply =
                self.client.caller.post(&address, "/v1/cluster/transfer", &json!({"to": name}), RECOVER_WITHIN).await;
            handed_over = matches!(reply, Reply::Answer { status: 200, .. });
            if !handed_over {
                said = match reply {
                    Reply::Answer { status, json } => format!("{status} {}", json["message"]),
                    Reply::NoAnswer => "no answer".into(),
                    Reply::NotSent => "no connection".into(),
                };
                tokio::time::sleep(POLL).await;
            }
        }
        let after = ms(since.elapsed());
        played.expect(
            handed_over,
            format!("{} handed over after {after:.0} ms", self.name(leader)),
            format!("leadership was not handed over within {} s: {said}", RECOVER_WITHIN.as_secs()),
        );
        let all = self.world.all();
        match self.elected(&all, term, since, RECOVER_WITHIN).await {
            Some((now, term, took)) => {
                let text = format!("{} leads term {term} after {:.0} ms", self.name(now), ms(took));
                self.say("election", text.clone());
                played.expect(now == heir, text.clone(), format!("{text}, not {name}"));
            }
            None => played.broken.push(format!("no new leader within {} s", RECOVER_WITHIN.as_secs())),
        }
        self.goes_on(played, &all, None, since, RECOVER_WITHIN).await;
        Ok(())
    }

    async fn fill_disk(&mut self, played: &mut Played) -> Result<(), Error> {
        let Some((node, disk)) = &self.disk else {
            return Err(Error::new(Code::CONFIG, "no node has a small disk"));
        };
        let node = *node;
        let name = self.name(node);
        disk.fill()?;
        played.nodes.push(name.clone());
        self.say("full", format!("the disk of {name} is full"));
        let log_from = self.cluster.log_since_start(&name).unwrap_or(0);
        let since = Instant::now();
        let rest = self.others(&[node]);
        // A node whose log has room for a while is given enough to need more.
        let mut ended = false;
        while !ended && since.elapsed() < DISK_FULL_WITHIN {
            let body = json!({"state": [{"space": "chaos-pressure", "key": "k", "value": "x".repeat(PRESSURE_BYTES)}]});
            let address = self.world.nodes[rest[0]].http.clone();
            self.client.caller.post(&address, "/v1/entries", &body, PROBE_DEADLINE).await;
            ended = self.cluster.reap().iter().any(|(ended, _)| *ended == name);
        }
        let log = std::fs::read_to_string(log_path(self.cluster.dir(), &name)).unwrap_or_default();
        let log = log.get(log_from as usize..).unwrap_or_default();
        let said = log.lines().any(|line| line.contains("\"ERROR\"") && line.contains(Code::DISK_FULL.0));
        played.expect(
            ended && said,
            format!("{name} stopped with BT0202 after {:.1} s", since.elapsed().as_secs_f64()),
            match ended {
                true => format!("{name} stopped, but not with BT0202"),
                false => format!("{name} did not stop within {} s of its disk being full", DISK_FULL_WITHIN.as_secs()),
            },
        );
        let stopped = Instant::now();
        self.goes_on(played, &rest, None, stopped, RECOVER_WITHIN).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        if let Some((_, disk)) = &self.disk {
            disk.empty()?;
        }
        if !ended {
            return Ok(());
        }
        self.say("restart", format!("{name} has space again and starts"));
        self.cluster.start(&name).await?;
        self.catches_up(played, node).await;
        Ok(())
    }

    /// The revision up to which the whole history must be known: one more write, acknowledged when everybody is back.
    pub async fn last_revision(&mut self) -> Option<Revision> {
        let since = Instant::now();
        while since.elapsed() < CATCH_UP_WITHIN {
            let (_, commit) = self.probe();
            if let Outcome::Done(done) = self.client.commit(&self.world, 0, commit, plain).await {
                return done.revision;
            }
        }
        None
    }
}
