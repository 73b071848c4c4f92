//! The cluster as the demo handles it: somebody who can kill and restart nodes, and what the nodes say of themselves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use buttress_core::{BoxFuture, Code, Error};
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::http::{Answer, Ask, HttpClient};

/// Where a node's edges listen, each as `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    pub name: String,
    pub id: u64,
    pub kafka: String,
    pub mqtt: String,
    pub http: String,
}

/// Whoever started the nodes. Addresses and ids stay the same across a restart.
pub trait ClusterControl: Send + Sync + 'static {
    fn nodes(&self) -> Vec<NodeAddress>;

    /// Kills the node with SIGKILL and returns once it is gone.
    fn kill<'a>(&'a self, name: &'a str) -> BoxFuture<'a, anyhow::Result<()>>;

    /// Starts a killed node again on its old data directory; it need not be ready when this returns.
    fn restart<'a>(&'a self, name: &'a str) -> BoxFuture<'a, anyhow::Result<()>>;
}

/// What `GET /v1/cluster` answers, as far as the demo needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ClusterStatus {
    pub node: u64,
    #[serde(default)]
    pub leader: Option<u64>,
    pub term: u64,
    #[serde(default)]
    pub committed: u64,
    #[serde(default)]
    pub applied: u64,
    #[serde(default)]
    pub revision: u64,
}

/// The nodes, with the demo's knowledge of which of them it killed.
pub struct Nodes {
    pub list: Vec<NodeAddress>,
    down: Vec<AtomicBool>,
    control: Arc<dyn ClusterControl>,
    http: HttpClient,
}

impl Nodes {
    pub fn new(control: Arc<dyn ClusterControl>) -> Self {
        let list = control.nodes();
        let down = list.iter().map(|_| AtomicBool::new(false)).collect();
        Self { list, down, control, http: HttpClient::default() }
    }

    /// Hosts of functions, which have no Kafka of their own.
    pub fn are_hosts(&self) -> bool {
        self.list.iter().all(|node| node.kafka.is_empty())
    }

    pub fn by_id(&self, id: u64) -> Option<usize> {
        self.list.iter().position(|node| node.id == id)
    }

    pub fn is_down(&self, node: usize) -> bool {
        self.down[node].load(Ordering::Relaxed)
    }

    pub fn down(&self) -> Vec<usize> {
        (0..self.list.len()).filter(|node| self.is_down(*node)).collect()
    }

    /// Whether a majority is left when one more node goes.
    pub fn can_lose_one(&self) -> bool {
        let left = self.list.len() - self.down().len();
        left > self.list.len() / 2 + 1
    }

    pub async fn kill(&self, node: usize) -> anyhow::Result<()> {
        self.down[node].store(true, Ordering::Relaxed);
        self.control.kill(&self.list[node].name).await
    }

    pub async fn restart(&self, node: usize) -> anyhow::Result<()> {
        self.control.restart(&self.list[node].name).await?;
        self.down[node].store(false, Ordering::Relaxed);
        Ok(())
    }

    /// What one node says now.
    ///
    /// # Errors
    /// Where it gives no answer within `deadline`, or one that is not understood.
    pub async fn status(&self, node: usize, deadline: Duration) -> Result<ClusterStatus, Error> {
        let address = &self.list[node].http;
        let answer = self.http.ask(address, &Ask::get("/v1/cluster"), deadline).await?;
        if !answer.ok() {
            return Err(Error::new(Code::UNREACHABLE, format!("GET /v1/cluster on {address}: {}", answer.problem()))
                .retryable());
        }
        let mut status: ClusterStatus = serde_json::from_slice(&answer.body)
            .map_err(|e| Error::new(Code::BAD_REQUEST, format!("GET /v1/cluster on {address}: {e}")))?;
        // Zero means "none" in every protocol that has ids from 1.
        status.leader = status.leader.filter(|leader| *leader != 0);
        Ok(status)
    }

    /// The leader as the node with the highest term sees it.
    pub async fn leader(&self) -> Option<(usize, u64)> {
        let mut best: Option<ClusterStatus> = None;
        for node in (0..self.list.len()).filter(|node| !self.is_down(*node)) {
            if let Ok(status) = self.status(node, Duration::from_secs(1)).await
                && status.leader.is_some()
                && best.as_ref().is_none_or(|best| status.term > best.term)
            {
                best = Some(status);
            }
        }
        let best = best?;
        Some((self.by_id(best.leader?)?, best.term))
    }

    /// Asks one node after the other until one carries the request out.
    ///
    /// # Errors
    /// The server's refusal, or the last problem when `deadline` is over.
    pub async fn ask(&self, ask: &Ask<'_>, deadline: Duration) -> Result<Answer, Error> {
        let until = Instant::now() + deadline;
        let mut node = 0;
        loop {
            let problem = if self.is_down(node) {
                Error::new(Code::UNREACHABLE, format!("node '{}' is down", self.list[node].name))
            } else {
                let left = until.saturating_duration_since(Instant::now()).clamp(
                    Duration::from_millis(200),
                    // Compiling a component takes its time on a small machine.
                    Duration::from_secs(30),
                );
                match self.http.ask(&self.list[node].http, ask, left).await {
                    Ok(answer) if answer.ok() => return Ok(answer),
                    Ok(answer) if retryable(answer.status) => {
                        Error::new(Code::UNREACHABLE, format!("{} {}: {}", ask.method, ask.path, answer.problem()))
                    }
                    Ok(answer) => {
                        let json = answer.json();
                        let code = json["code"].as_str().and_then(known_code).unwrap_or(Code::BAD_REQUEST);
                        let mut error = Error::new(code, format!("{} {}: {}", ask.method, ask.path, answer.problem()));
                        error.hint = json["hint"].as_str().map(str::to_owned);
                        return Err(error);
                    }
                    Err(error) => error,
                }
            };
            if Instant::now() >= until {
                return Err(problem);
            }
            node = (node + 1) % self.list.len();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Creates a topic; one that is there already is as good.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn create_topic(&self, spec: &serde_json::Value) -> Result<(), Error> {
        let ask = Ask::json(Method::POST, "/v1/topics", spec.to_string());
        match self.ask(&ask, Duration::from_secs(20)).await {
            Ok(_) => Ok(()),
            Err(error) if error.code == Code::TOPIC_EXISTS => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn retryable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 502..=504)
}

fn known_code(text: &str) -> Option<Code> {
    Code::ALL.iter().map(|(code, _)| *code).find(|code| code.0 == text)
}
