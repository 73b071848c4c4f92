//! What happens to the cluster in the middle of the run: on schedule, or because somebody pressed a button.
//!
//! Commands are carried out one after the other. What takes its time afterwards (the election after a kill, a restarted
//! node's catching up) is watched by tasks of its own, which write what they saw into the evidence.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use buttress_core::{Code, Error};
use bytes::Bytes;
use http::Method;
use serde_json::json;

use super::{
    cluster::Nodes,
    engines::Engines,
    feed::{self, Command, Feed},
    http::Ask,
    players::Control,
    report::{BrokerRestart, FAULTY, Failover, MODEL, Scorer, Swap, TELEMETRY, Trap},
};

/// How often the survivors are asked after a kill.
const ELECTION_POLL: Duration = Duration::from_millis(20);
/// After this the election is given up on, and the report says so.
const ELECTION_WAIT: Duration = Duration::from_secs(30);
const CATCH_UP_WAIT: Duration = Duration::from_secs(60);
const ASK_WAIT: Duration = Duration::from_secs(20);
/// The trap experiment's own topic: records, and how many of them are poisoned.
const CALIBRATION: &str = "calibration";
const CALIBRATION_RECORDS: u64 = 24;
const CALIBRATION_POISON: u64 = 2;

/// A model that can be pushed.
#[derive(Clone)]
pub struct Candidate {
    pub version: String,
    pub bytes: Bytes,
    /// `None` where it cannot be evaluated here.
    pub scorer: Option<Scorer>,
}

/// What the director did and saw, for the evidence.
#[derive(Default)]
pub struct Deeds {
    pub failovers: Vec<Failover>,
    pub swaps: Vec<Swap>,
    pub trap: Option<Trap>,
    pub broker_restart: Option<BrokerRestart>,
    /// Generation and candidate of every push.
    pub pushed: Vec<(u64, usize)>,
}

pub struct Director {
    pub nodes: Arc<Nodes>,
    pub feed: Arc<Feed>,
    pub deeds: Arc<Mutex<Deeds>>,
    pub candidates: Vec<Candidate>,
    /// Index of the candidate that judges now.
    pub current: usize,
    pub generation: u64,
    pub machines: Arc<Vec<String>>,
    pub faulty: Bytes,
    pub engines: Option<Engines>,
}

fn lock(deeds: &Mutex<Deeds>) -> std::sync::MutexGuard<'_, Deeds> {
    deeds.lock().expect("no panic under this lock")
}

impl Director {
    /// Carries out one command; the answer is a sentence for people.
    ///
    /// # Errors
    /// Why it cannot be done now.
    pub async fn execute(&mut self, command: Command, players: &Control) -> Result<String, Error> {
        match command {
            Command::KillLeader => self.kill_leader().await,
            Command::Restart => self.restart().await,
            Command::SwapModel => self.swap().await,
            Command::WearOut(machine) => self.wear_out(machine, players),
        }
    }

    async fn kill_leader(&mut self) -> Result<String, Error> {
        if !self.nodes.can_lose_one() {
            let hint = match self.nodes.down().is_empty() {
                true => "start the fleet with --nodes 3 or more",
                false => "restart the node that is down first",
            };
            return Err(Error::new(Code::BAD_REQUEST, "one node less would leave no majority").hint(hint));
        }
        let Some((leader, term)) = self.nodes.leader().await else {
            return Err(Error::new(Code::NO_LEADER, "there is no leader to kill at the moment")
                .hint("wait for the election")
                .retryable());
        };
        let node = self.nodes.list[leader].clone();
        let what = match self.engines {
            None => format!("the leader of term {term}"),
            Some(_) => format!("which runs {TELEMETRY}/0"),
        };
        self.feed.event("kill", format!("SIGKILL to {}, {what}", node.name));
        let killed = Instant::now();
        let at = {
            let mut deeds = lock(&self.deeds);
            deeds.failovers.push(Failover {
                node: node.name.clone(),
                node_id: node.id,
                was_leader: true,
                term_before: term,
                killed_ms: feed::now_ms(),
                elected: None,
                leaderless_ms: None,
                restarted: false,
                caught_up: false,
            });
            deeds.failovers.len() - 1
        };
        self.feed.leader(None, term);
        // Watched from before the signal on, so that no election can be missed.
        let watch =
            watch_election(Arc::clone(&self.nodes), Arc::clone(&self.feed), Arc::clone(&self.deeds), at, killed);
        tokio::spawn(watch);
        self.nodes
            .kill(leader)
            .await
            .map_err(|e| Error::new(Code::UNREACHABLE, format!("{} cannot be killed: {e:#}", node.name)))?;
        Ok(format!("{} was killed, {what}", node.name))
    }

    async fn restart(&mut self) -> Result<String, Error> {
        let at = lock(&self.deeds).failovers.iter().position(|failover| !failover.restarted);
        let Some(at) = at else {
            return Err(Error::new(Code::BAD_REQUEST, "no node is down").hint("kill the leader first"));
        };
        if self.engines.is_some() {
            // A host that is back before its lease has ended takes its own partitions again, and nobody takes over.
            let killed = Instant::now();
            while lock(&self.deeds).failovers[at].elected.is_none() && killed.elapsed() < ELECTION_WAIT {
                tokio::time::sleep(ELECTION_POLL).await;
            }
        }
        let node_id = lock(&self.deeds).failovers[at].node_id;
        let node = self.nodes.by_id(node_id).expect("a killed node is in the list");
        let name = self.nodes.list[node].name.clone();
        self.feed.event("restart", format!("{name} starts again on its old data"));
        self.nodes
            .restart(node)
            .await
            .map_err(|e| Error::new(Code::UNREACHABLE, format!("{name} cannot be started: {e:#}")))?;
        lock(&self.deeds).failovers[at].restarted = true;
        tokio::spawn(watch_catch_up(
            Arc::clone(&self.nodes),
            Arc::clone(&self.feed),
            Arc::clone(&self.deeds),
            at,
            node,
        ));
        Ok(format!("{name} starts again"))
    }

    /// Lets the user's command restart the broker.
    ///
    /// # Errors
    /// What the command says.
    pub async fn restart_broker(&mut self) -> Result<(), Error> {
        let Some(engines) = &self.engines else { return Ok(()) };
        self.feed.event("kill", "the broker is restarted");
        let begun_ms = feed::now_ms();
        let restarted = engines.restart().await;
        lock(&self.deeds).broker_restart = Some(BrokerRestart {
            begun_ms,
            ended_ms: feed::now_ms(),
            failed: restarted.as_ref().err().map(|error| error.message.clone()),
        });
        let took = restarted?;
        self.feed.event("restart", format!("the broker serves again, {:.1} s later", took.as_secs_f64()));
        Ok(())
    }

    /// Pushes the next candidate as the model's new generation.
    pub async fn swap(&mut self) -> Result<String, Error> {
        if self.candidates.len() < 2 {
            return Err(Error::new(Code::BAD_REQUEST, "there is only one model to play with")
                .hint("leave --model away to have two"));
        }
        let next = (self.current + 1) % self.candidates.len();
        let from = self.generation;
        let to = self.push(next).await?;
        lock(&self.deeds).swaps.push(Swap { from, to, acked_ms: feed::now_ms() });
        let text = format!(
            "model {} replaces {}: generation {from} to {to}",
            self.candidates[self.current].version,
            self.candidates[(self.current + self.candidates.len() - 1) % self.candidates.len()].version
        );
        self.feed.event("swap", text.clone());
        Ok(text)
    }

    /// Pushes a candidate and remembers its generation.
    ///
    /// # Errors
    /// What the nodes refuse.
    pub async fn push(&mut self, candidate: usize) -> Result<u64, Error> {
        let path = format!("/v1/models/{MODEL}");
        let ask = Ask::bytes(Method::PUT, &path, self.candidates[candidate].bytes.clone());
        let answer = self.nodes.ask(&ask, ASK_WAIT).await?;
        let generation = answer.json()["generation"].as_u64().ok_or_else(|| {
            Error::new(Code::BAD_REQUEST, format!("PUT {path} named no generation: {}", answer.problem()))
        })?;
        self.current = candidate;
        self.generation = generation;
        lock(&self.deeds).pushed.push((generation, candidate));
        Ok(generation)
    }

    fn wear_out(&mut self, machine: u32, players: &Control) -> Result<String, Error> {
        let Some(name) = self.machines.get(machine as usize) else {
            return Err(Error::new(Code::BAD_REQUEST, format!("there is no machine {machine}"))
                .hint(format!("machines are 0 to {}", self.machines.len() - 1)));
        };
        players.wear_out(machine);
        let text = format!("the bearing of {name} was damaged");
        self.feed.event("wear-out", text.clone());
        Ok(text)
    }

    /// Uploads a component and deploys it under `name` with the manifest.
    ///
    /// # Errors
    /// What the nodes refuse.
    pub async fn deploy(&self, name: &str, component: Bytes, mut manifest: serde_json::Value) -> Result<(), Error> {
        let upload = Ask::bytes(Method::PUT, "/v1/blobs", component);
        let answer = self.nodes.ask(&upload, ASK_WAIT).await?;
        manifest["component"] = answer.json()["digest"].clone();
        let path = format!("/v1/functions/{name}");
        self.nodes.ask(&Ask::json(Method::PUT, &path, manifest.to_string()), ASK_WAIT).await?;
        Ok(())
    }

    /// Deploys the function that traps, and gives it good records with some poison in between.
    ///
    /// # Errors
    /// What the nodes refuse.
    pub async fn trap(&mut self) -> Result<(), Error> {
        self.nodes.create_topic(&json!({"name": CALIBRATION, "partitions": 1})).await?;
        let manifest = json!({
            "trigger": {"topic": CALIBRATION, "attempts": 2},
            "grants": {"topics": ["faulty-out"]},
        });
        self.deploy(FAULTY, self.faulty.clone(), manifest).await?;
        let step = CALIBRATION_RECORDS / CALIBRATION_POISON;
        let records: Vec<_> = (0..CALIBRATION_RECORDS)
            .map(|number| {
                let kind = if number % step == step / 2 { "poison" } else { "calibration" };
                json!({"key": format!("c-{number}"), "value": {"kind": kind, "number": number}})
            })
            .collect();
        let path = format!("/topics/{CALIBRATION}");
        let mut ask = Ask::json(Method::POST, &path, json!({ "records": records }).to_string());
        ask.content_type = Some("application/vnd.kafka.json.v2+json");
        self.nodes.ask(&ask, ASK_WAIT).await?;
        lock(&self.deeds).trap = Some(Trap { poison: CALIBRATION_POISON, deployed_ms: feed::now_ms() });
        self.feed.event(
            "trap",
            format!("a function that traps was deployed and given {CALIBRATION_POISON} poisoned records"),
        );
        Ok(())
    }
}

async fn watch_election(nodes: Arc<Nodes>, feed: Arc<Feed>, deeds: Arc<Mutex<Deeds>>, at: usize, killed: Instant) {
    let (gone, before) = {
        let deeds = lock(&deeds);
        (deeds.failovers[at].node_id, deeds.failovers[at].term_before)
    };
    let survivors: Vec<usize> =
        (0..nodes.list.len()).filter(|n| nodes.list[*n].id != gone && !nodes.is_down(*n)).collect();
    while killed.elapsed() < ELECTION_WAIT {
        let asked =
            futures::future::join_all(survivors.iter().map(|node| nodes.status(*node, Duration::from_millis(300))));
        let statuses = asked.await;
        let elected = statuses
            .into_iter()
            .flatten()
            .filter(|status| status.term > before)
            .find_map(|status| status.leader.filter(|leader| *leader != gone).map(|leader| (leader, status.term)));
        if let Some((leader, term)) = elected {
            let ms = killed.elapsed().as_secs_f64() * 1_000.0;
            {
                let mut deeds = lock(&deeds);
                deeds.failovers[at].elected = Some((leader, term));
                deeds.failovers[at].leaderless_ms = Some(ms);
            }
            let name = nodes.by_id(leader).map_or_else(|| leader.to_string(), |node| nodes.list[node].name.clone());
            let told = match nodes.are_hosts() {
                false => format!("{name} leads term {term}, {ms:.0} ms after the kill"),
                true => format!("{name} takes {TELEMETRY}/0 over, {ms:.0} ms after the kill"),
            };
            feed.event("election", told);
            feed.leader(Some(name), term);
            return;
        }
        tokio::time::sleep(ELECTION_POLL).await;
    }
    feed.event("election", "no leader was elected in time");
}

/// Waits until the restarted node has applied what the others had committed when it first answered.
async fn watch_catch_up(nodes: Arc<Nodes>, feed: Arc<Feed>, deeds: Arc<Mutex<Deeds>>, at: usize, node: usize) {
    let started = Instant::now();
    let mut goal = None;
    while started.elapsed() < CATCH_UP_WAIT {
        if let Ok(status) = nodes.status(node, Duration::from_millis(500)).await {
            if goal.is_none() {
                for other in (0..nodes.list.len()).filter(|other| *other != node && !nodes.is_down(*other)) {
                    if let Ok(other) = nodes.status(other, Duration::from_millis(500)).await {
                        goal = goal.max(Some(other.committed));
                    }
                }
            }
            if goal.is_some_and(|goal| status.applied >= goal && goal > 0) && status.leader.is_some() {
                lock(&deeds).failovers[at].caught_up = true;
                let name = &nodes.list[node].name;
                let seconds = started.elapsed().as_secs_f64();
                feed.event("caught-up", format!("{name} has caught up, {seconds:.1} s after its start"));
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
