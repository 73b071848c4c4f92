//! A fleet that is made up, for whoever works on the page: nothing runs behind it, and its clock, its failover and its
//! buttons behave as the real ones do. `cargo run --example page_preview` shows it.

use std::{sync::Arc, time::Duration};

use buttress_core::{Code, Error};
use tokio::time::Instant;

use crate::demo::{
    feed::{
        Asked, ClusterViewed, Command, Counters, Feed, JudgedBy, LiveLatency, ModelView, NodeView, Phase, Place,
        PromiseView, Rates, Story, VerdictView, now_ms,
    },
    plant::machine_name,
    reading::Values,
    report::{Anomalies, FailoverReport, Latency, Promise, Report, SwapReport},
};

const MACHINES: u32 = 10_000;
const RATE: u64 = 10_000;
const TICK: Duration = Duration::from_millis(500);
const ELECTION: Duration = Duration::from_millis(430);
const PROMISES: [(&str, &str); 7] = [
    ("P1", "every acknowledged reading is in the log exactly once"),
    ("P2", "offsets have no gap, and each machine's sequence grows by one"),
    ("P3", "every reading is judged exactly once"),
    ("P4", "nothing is judged by an older model after a swap"),
    ("P5", "the anomalies are exactly those that the model finds"),
    ("P6", "a function that traps is contained"),
    ("P7", "after the kill another node led, and the killed node came back and caught up"),
];

/// Plays for `duration` and shows the report; then waits for ever.
pub async fn play(feed: Arc<Feed>, duration: Duration) {
    let mut asked = feed.take_commands().expect("the preview is the only fleet");
    let mut fleet = Fleet::new(feed.clone());
    feed.configure(MACHINES as usize, duration.as_secs_f64(), 7);
    feed.event("start", "3 nodes, 10000 machines, seed 7");
    feed.phase(Phase::Deploying);
    tokio::time::sleep(TICK).await;
    feed.event("deploy", "function anomaly with model v1, generation 1");
    feed.phase(Phase::Connecting);
    fleet.show();
    tokio::time::sleep(TICK).await;
    feed.event("start", "1000 MQTT sessions and 16 HTTP gateways play");
    feed.start_clock();
    feed.phase(Phase::Playing);
    feed.leader(Some("n1".into()), 2);
    let started = Instant::now();
    let mut due = started;
    let chaos = [(0.20, Step::Trap), (0.35, Step::Kill), (0.45, Step::Restart), (0.65, Step::Swap)];
    let mut chaos = chaos.into_iter().peekable();
    while started.elapsed() < duration {
        let share = started.elapsed().as_secs_f64() / duration.as_secs_f64();
        while let Some((_, step)) = chaos.next_if(|(at, _)| *at <= share) {
            // A button may have come first.
            let _ = match step {
                Step::Kill => fleet.execute(Command::KillLeader),
                Step::Restart => fleet.execute(Command::Restart),
                Step::Swap => fleet.execute(Command::SwapModel),
                Step::Trap => {
                    feed.event("trap", "a function that traps was deployed and given 2 poisoned records");
                    feed.event("contained", "the poisoned records were set aside; verdicts went on");
                    Ok(String::new())
                }
            };
        }
        tokio::select! {
            () = tokio::time::sleep_until(fleet.election.unwrap_or(due).min(due)) => {}
            Some(Asked { command, answer }) = asked.recv() => {
                let _ = answer.send(fleet.execute(command));
                continue;
            }
        }
        fleet.elect();
        if Instant::now() >= due {
            fleet.go_on();
            fleet.show();
            due += TICK;
        }
    }
    drop(asked);
    feed.phase(Phase::Draining);
    fleet.show();
    tokio::time::sleep(TICK).await;
    feed.phase(Phase::Checking);
    feed.event("check", "a stock Kafka client reads everything back");
    fleet.show();
    tokio::time::sleep(2 * TICK).await;
    feed.finish(&fleet.report(duration));
    std::future::pending().await
}

enum Step {
    Trap,
    Kill,
    Restart,
    Swap,
}

struct Fleet {
    feed: Arc<Feed>,
    dice: u64,
    strain: Vec<f32>,
    failing: Vec<u32>,
    nodes: Vec<NodeView>,
    leader: Option<usize>,
    term: u64,
    election: Option<Instant>,
    killed: Option<String>,
    generation: u64,
    counters: Counters,
    backlog: u64,
    seq: u32,
}

impl Fleet {
    fn new(feed: Arc<Feed>) -> Self {
        let node = |id: u64| NodeView {
            name: format!("n{id}"),
            id,
            http: format!("127.0.0.1:{}", 7380 + id),
            alive: true,
            leader: id == 1,
            term: 2,
            committed: 40,
            applied: 40,
        };
        let mut fleet = Self {
            feed,

            dice: 7,
            strain: Vec::new(),
            failing: Vec::new(),
            nodes: (1..=3).map(node).collect(),
            leader: Some(0),
            term: 2,
            election: None,
            killed: None,
            generation: 1,
            counters: Counters::default(),
            backlog: 0,
            seq: 0,
        };
        fleet.strain = (0..MACHINES).map(|_| fleet.roll().powi(3) * 0.7).collect();
        fleet.failing = (0..60).map(|_| (fleet.roll() * MACHINES as f32) as u32 % MACHINES).collect();
        fleet
    }

    /// 0 to 1; the same every time.
    fn roll(&mut self) -> f32 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 40) as f32 / (1u64 << 24) as f32
    }

    fn execute(&mut self, command: Command) -> Result<String, Error> {
        let refuse = |message: &str, hint: &str| Err(Error::new(Code::BAD_REQUEST, message).hint(hint));
        match command {
            Command::KillLeader => {
                if self.nodes.iter().any(|node| !node.alive) {
                    return refuse("one node less would leave no majority", "restart the node that is down first");
                }
                let Some(leader) = self.leader.take() else {
                    return refuse("there is no leader to kill at the moment", "wait for the election");
                };
                let node = &mut self.nodes[leader];
                (node.alive, node.leader) = (false, false);
                let text = format!("{} was killed; it led term {}", node.name, self.term);
                self.feed.event("kill", format!("SIGKILL to {}, the leader of term {}", node.name, self.term));
                self.killed = Some(node.name.clone());
                self.feed.leader(None, self.term);
                self.election = Some(Instant::now() + ELECTION);
                Ok(text)
            }
            Command::Restart => {
                let Some(node) = self.nodes.iter_mut().find(|node| !node.alive) else {
                    return refuse("no node is down", "kill the leader first");
                };
                (node.alive, node.term) = (true, self.term);
                self.feed.event("restart", format!("{} starts again on its old data", node.name));
                self.feed.event("caught-up", format!("{} has caught up, 0.9 s after its start", node.name));
                Ok(format!("{} starts again", node.name))
            }
            Command::SwapModel => {
                self.generation += 1;
                let text = format!(
                    "model {} replaces v1: generation {} to {}",
                    self.version(),
                    self.generation - 1,
                    self.generation
                );
                self.feed.event("swap", text.clone());
                Ok(text)
            }
            Command::WearOut(machine) if machine < MACHINES => {
                self.failing.push(machine);
                let text = format!("the bearing of {} was damaged", machine_name(machine));
                self.feed.event("wear-out", text.clone());
                Ok(text)
            }
            Command::WearOut(machine) => refuse(&format!("there is no machine {machine}"), "machines are 0 to 9999"),
        }
    }

    fn version(&self) -> String {
        format!("v{}", 2 - self.generation % 2)
    }

    fn elect(&mut self) {
        if self.election.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.election = None;
        let next = self.nodes.iter().position(|node| node.alive).expect("two of three are alive");
        self.term += 1;
        self.leader = Some(next);
        for (at, node) in self.nodes.iter_mut().enumerate().filter(|(_, node)| node.alive) {
            (node.leader, node.term) = (at == next, self.term);
        }
        let name = self.nodes[next].name.clone();
        let ms = ELECTION.as_millis();
        self.feed.event("election", format!("{name} leads term {}, {ms} ms after the kill", self.term));
        self.feed.leader(Some(name), self.term);
    }

    /// Half a second of the plant.
    fn go_on(&mut self) {
        for machine in 0..MACHINES {
            let at = machine as usize;
            self.strain[at] += (self.roll() - 0.498) * 0.02;
            self.strain[at] = self.strain[at].clamp(0.0, 0.95);
            let temperature = 40.0 + 50.0 * self.strain[at];
            self.feed.reading(machine, &Values { temperature, ..Values::NONE });
        }
        let sent = RATE / 2;
        self.counters.sent += sent;
        self.backlog += sent;
        if self.leader.is_some() {
            let done = self.backlog.min(sent * 3);
            self.backlog -= done;
            self.counters.acked += done;
            self.counters.verdicts += done;
            for node in self.nodes.iter_mut().filter(|node| node.alive) {
                node.committed = self.counters.acked / 40;
                node.applied = node.committed - u64::from(!node.leader) * 3;
            }
            self.alert();
        } else {
            self.counters.retries += 410;
        }
    }

    fn alert(&mut self) {
        let failing = std::mem::take(&mut self.failing);
        for machine in &failing {
            if self.roll() < 0.5 {
                self.strain[*machine as usize] = 0.93;
                self.feed.alerted(*machine);
                self.counters.anomalies += 1;
            }
        }
        self.seq += 1;
        let newest = *failing.last().expect("sixty fail from the start");
        self.failing = failing;
        if self.seq.is_multiple_of(2) {
            let machine = if self.seq.is_multiple_of(4) { newest } else { self.failing[self.seq as usize % 60] };
            self.feed.story(self.story(machine));
        }
    }

    fn story(&self, machine: u32) -> Story {
        let now = now_ms() as u64;
        let offset = i64::from(self.seq) * 625;
        let entry = self.counters.acked / 40;
        Story {
            at_s: self.feed.at_s(),
            machine: machine_name(machine),
            number: machine,
            seq: self.seq,
            score: 0.93,
            temperature: Some(81.4),
            vibration: Some(6.72),
            reason: "the model scores it above 0.7".into(),
            by: "model".into(),
            sensor_ms: now - 41,
            arrived_ms: now - 38,
            alert_ms: now - 11,
            source: Place {
                topic: "telemetry",
                partition: 3,
                offset: offset + 7,
                entry: Some(entry),
                committed_ms: Some(now - 29),
            },
            alert: Place {
                topic: "machine-anomalies",
                partition: 1,
                offset: self.counters.anomalies as i64,
                entry: Some(entry + 2),
                committed_ms: Some(now - 14),
            },
            verdict: Some(VerdictView { from: offset - 30, to: offset + 42 }),
            model: Some(JudgedBy {
                generation: self.generation,
                digest: "sha256:9f2b5c01d4e8a7763b1e0f24c6d88a915e7730bb42c1f6a9".into(),
            }),
        }
    }

    fn show(&mut self) {
        let playing = self.counters.sent > 0;
        let swing = |dice: f32, around: f64| around * (0.9 + 0.2 * f64::from(dice));
        let dice = [self.roll(), self.roll(), self.roll()];
        let slow = if self.backlog > 0 { 40.0 } else { 1.0 };
        let rate = if self.leader.is_none() { 0 } else { swing(dice[0], RATE as f64) as u64 };
        let leader = self.leader.map(|leader| self.nodes[leader].clone());
        self.feed.update(|tick| {
            tick.counters = self.counters.clone();
            tick.rates = Rates { sent: RATE, acked: rate, verdicts: rate, anomalies: rate / 160 };
            let ms = |value: f64| playing.then_some(value);
            tick.latency_ms = LiveLatency {
                window_s: 5,
                count: 400,
                p50: ms(swing(dice[1], 11.0 * slow)),
                p99: ms(swing(dice[2], 38.0 * slow)),
                max: ms(swing(dice[2], 52.0 * slow)),
                alert_p50: ms(swing(dice[1], 16.0 * slow)),
                alert_p99: ms(swing(dice[2], 44.0 * slow)),
            };
            tick.cluster = ClusterViewed {
                leader_id: leader.as_ref().map(|node| node.id),
                leader: leader.map(|node| node.name),
                hosts: false,
                term: self.term,
                nodes: self.nodes.clone(),
            };
            tick.model = ModelView { name: "anomaly".into(), generation: self.generation, version: self.version() };
            let state = |id| if matches!(id, "P3" | "P4") { "holding" } else { "pending" };
            tick.promises = PROMISES[..5]
                .iter()
                .map(|(id, text)| PromiseView { id, text: (*text).to_owned(), state: state(id) })
                .collect();
        });
    }

    fn report(&self, duration: Duration) -> Report {
        let sent = self.counters.sent;
        Report {
            nodes: 3,
            machines: MACHINES as usize,
            seed: 7,
            duration_s: duration.as_secs_f64(),
            readings_sent: sent,
            readings_acked: sent,
            verdicts: sent,
            anomalies: Anomalies {
                reported: self.counters.anomalies,
                actual: Some(self.counters.anomalies + 12),
                precision: Some(0.9871),
                recall: Some(0.9634),
            },
            latency_ms: Latency {
                p50: Some(11.2),
                p99: Some(43.7),
                max: Some(1_180.4),
                alert_p99: Some(51.0),
                p99_across_failover: Some(904.5),
            },
            failover: FailoverReport {
                killed: self.killed.clone(),
                leaderless_ms: self.killed.as_ref().map(|_| ELECTION.as_millis() as f64),
                restarted: self.killed.is_some(),
            },
            swap: SwapReport { from: Some(1), to: Some(self.generation) },
            promises: PROMISES
                .iter()
                .map(|(id, text)| Promise { id, text: (*text).to_owned(), held: true, detail: String::new() })
                .collect(),
            ok: true,
            ..Report::default()
        }
    }
}
