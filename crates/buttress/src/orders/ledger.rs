//! The log as the demo's services use it: any node's HTTP address, another one where that does not answer.
//!
//! An entry whose outcome is not known is not sent again from here. Everyone who writes puts a guard on the key that it
//! writes, reads that key again, and decides anew: so nothing happens twice.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use buttress_core::{Code, Error};
use http::{Method, StatusCode};
use serde_json::Value;

use crate::{
    client::{Client, segment},
    demo::http::{Answer, Ask, HttpClient},
};

/// A node says after 10 s that it does not know.
const COMMIT_DEADLINE: Duration = Duration::from_secs(12);
const READ_DEADLINE: Duration = Duration::from_secs(3);
/// How often an answer is looked for at all nodes, a pause between each: rounds and not a time, because a process that
/// was stopped for a while has not looked meanwhile.
const ROUNDS_MAX: u32 = 400;
const PAUSE: Duration = Duration::from_millis(50);
/// Keys in one answer.
const PAGE: usize = 1_000;

pub struct Ledger {
    nodes: Vec<String>,
    http: HttpClient,
    /// Who answered last.
    at: AtomicUsize,
}

/// What became of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    Applied {
        revision: u64,
    },
    /// The guard at this place did not hold; nothing happened.
    Refused {
        guard: usize,
    },
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub key: String,
    pub value: String,
    pub mod_revision: u64,
}

impl Ledger {
    /// `first` says which node is asked first, so that not everybody begins with the same.
    pub fn new(nodes: Vec<String>, first: usize) -> Self {
        Self { at: AtomicUsize::new(first % nodes.len().max(1)), nodes, http: HttpClient::default() }
    }

    fn node(&self) -> (usize, &str) {
        let at = self.at.load(Ordering::Relaxed);
        (at, &self.nodes[at])
    }

    /// Asks another node from now on, unless somebody has said so already.
    fn turn_from(&self, at: usize) {
        let next = (at + 1) % self.nodes.len();
        let _ = self.at.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Commits one entry.
    ///
    /// # Errors
    /// Where the entry itself is wrong, which is a mistake of ours.
    pub async fn submit(&self, entry: &Value) -> Result<Commit, Error> {
        let body = entry.to_string();
        for _ in 0..ROUNDS_MAX {
            let (at, node) = self.node();
            let ask = Ask::json(Method::POST, "/v1/entries", body.clone());
            match self.http.ask(node, &ask, COMMIT_DEADLINE).await {
                Ok(answer) if answer.ok() => {
                    let told = answer.json();
                    if told["complete"] != true {
                        return Err(Error::new(Code::TOPIC_UNKNOWN, format!("an append was not taken: {told}")));
                    }
                    return Ok(Commit::Applied { revision: told["revision"].as_u64().unwrap_or(0) });
                }
                Ok(answer) if answer.status == StatusCode::CONFLICT => {
                    let guard = answer.json()["guard"]["position"].as_u64();
                    let guard = guard.ok_or_else(|| wrong(&answer))?;
                    return Ok(Commit::Refused { guard: guard as usize });
                }
                // Nothing happened, so it may be sent to another one.
                Ok(answer) if matches!(answer.status.as_u16(), 429 | 503) => {
                    self.turn_from(at);
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(answer) if answer.status.is_client_error() => return Err(wrong(&answer)),
                Ok(_) | Err(_) => {
                    self.turn_from(at);
                    tokio::time::sleep(PAUSE).await;
                    return Ok(Commit::Unknown);
                }
            }
        }
        Ok(Commit::Unknown)
    }

    async fn read(&self, path: &str) -> Result<Answer, Error> {
        let mut last = None;
        for _ in 0..ROUNDS_MAX {
            let (at, node) = self.node();
            last = Some(match self.http.ask(node, &Ask::get(path), READ_DEADLINE).await {
                Ok(answer) if answer.ok() || answer.status == StatusCode::NOT_FOUND => return Ok(answer),
                Ok(answer) if answer.status.is_client_error() => return Err(wrong(&answer)),
                Ok(answer) => Error::new(Code::UNREACHABLE, answer.problem()).retryable(),
                Err(error) => error,
            });
            self.turn_from(at);
            tokio::time::sleep(PAUSE).await;
        }
        Err(last.expect("there was a round"))
    }

    /// The key as every acknowledged commit has left it.
    ///
    /// # Errors
    /// Where no node answers, often asked.
    pub async fn get(&self, key: &str) -> Result<Option<Kept>, Error> {
        let answer = self.read(&format!("/v1/keys/{}", segment(key))).await?;
        if answer.status == StatusCode::NOT_FOUND && answer.json()["revision"].is_null() {
            return Err(wrong(&answer));
        }
        Ok(answer.ok().then(|| kept(&answer.json())))
    }

    /// Every key that begins with `prefix`, and the revision at which they were so.
    ///
    /// # Errors
    /// As [`Ledger::get`].
    pub async fn list(&self, prefix: &str) -> Result<(Vec<Kept>, u64), Error> {
        let (mut all, mut start, mut revision) = (Vec::new(), None::<String>, None::<u64>);
        loop {
            let mut path = format!("/v1/keys?prefix={}&limit={PAGE}", segment(prefix));
            if let (Some(start), Some(revision)) = (&start, revision) {
                path.push_str(&format!("&start={}&revision={revision}", segment(start)));
            }
            let told = self.read(&path).await?.json();
            let at = *revision.get_or_insert(told["revision"].as_u64().unwrap_or(0));
            all.extend(told["keys"].as_array().into_iter().flatten().map(kept));
            match told["next"].as_str() {
                Some(next) if told["more"] == true => start = Some(next.to_owned()),
                _ => return Ok((all, at)),
            }
        }
    }

    /// Records of a partition from an offset on, as the log tells them: `offset`, `value`, and more.
    ///
    /// # Errors
    /// As [`Ledger::get`].
    pub async fn records(&self, topic: &str, partition: i32, offset: u64) -> Result<Vec<Value>, Error> {
        let path = format!("/v1/topics/{topic}/partitions/{partition}/records?offset={offset}&max=1000");
        let mut told = self.read(&path).await?.json();
        Ok(match told["records"].take() {
            Value::Array(records) => records,
            _ => Vec::new(),
        })
    }

    /// Hands every change of keys that begin with `prefix` to `each`, from revision `from` on, until the connection ends.
    pub async fn watch(&self, prefix: &str, from: u64, mut each: impl FnMut(&Kept)) {
        let (at, node) = self.node();
        let mut rest = Vec::new();
        let Ok(client) = Client::new(node) else { return };
        let path = format!("/v1/watch?prefix={}&from={from}", segment(prefix));
        let watched = client.download(&path, |piece| {
            rest.extend_from_slice(&piece);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let Ok(told) = serde_json::from_slice::<Value>(&line) else { continue };
                let revision = told["revision"].as_u64().unwrap_or(0);
                for put in told["events"].as_array().into_iter().flatten().filter(|event| event["type"] == "put") {
                    each(&Kept { mod_revision: revision, ..kept(put) });
                }
            }
            Ok(())
        });
        if let Err(error) = watched.await {
            tracing::debug!(%error, "a watch ended");
            self.turn_from(at);
        }
    }
}

fn kept(told: &Value) -> Kept {
    let text = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
    Kept { key: text("key"), value: text("value"), mod_revision: told["mod_revision"].as_u64().unwrap_or(0) }
}

fn wrong(answer: &Answer) -> Error {
    Error::new(Code::BAD_REQUEST, answer.problem()).hint("this is a mistake of the demo; please report it")
}
