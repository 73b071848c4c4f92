//! Asks every member what it knows of itself, and measures its clock by the way.
//!
//! A clock is measured as NTP does it: the node's time lies somewhere between our sending and our receiving, so half the
//! round trip is added to it, and half the round trip is how wrong that may be. Of several tries the quickest counts.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use buttress_core::{Code, Error};

use crate::{client::Client, vitals::Vitals};

/// Tries per clock; the first one also opens sockets and caches.
const TRIES: usize = 5;

/// A member that takes longer counts as one that does not answer.
const ASK_DEADLINE: Duration = Duration::from_secs(5);

/// A member, and what it said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    pub id: u64,
    pub name: String,
    pub peer: String,
    pub http: String,
    pub vitals: Option<Vitals>,
    /// Why it said nothing.
    pub error: Option<String>,
    /// Its clock minus ours, and how far that may be off, in milliseconds.
    pub clock: Option<(f64, f64)>,
}

/// A cluster, as it was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub cluster_id: String,
    pub members: Vec<Observation>,
    /// Id, name and HTTP address of the members of a configuration file, if one was given.
    pub configured: Option<Vec<(u64, String, String)>>,
    /// Our clock.
    pub now_ms: u64,
}

fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64() * 1000.0)
}

/// # Errors
/// `UNREACHABLE` if no server answers.
pub async fn collect(servers: &[String]) -> Result<Observed, Error> {
    let mut cluster = None;
    let mut last = Error::new(Code::CONFIG, "no server was named");
    for server in servers {
        match Client::new(server)?.get("/v1/cluster").await {
            Ok(view) => {
                cluster = Some(view);
                break;
            }
            Err(error) => last = error,
        }
    }
    let Some(cluster) = cluster else { return Err(last) };
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let asked = cluster["members"].as_array().into_iter().flatten().map(|member| async move {
        let mut seen = Observation {
            id: member["id"].as_u64().unwrap_or_default(),
            name: text(&member["name"]),
            peer: text(&member["peer"]),
            http: text(&member["http"]),
            ..Observation::default()
        };
        let late = || Error::new(Code::UNREACHABLE, format!("no answer within {} s", ASK_DEADLINE.as_secs()));
        let asked = tokio::time::timeout(ASK_DEADLINE, ask(&seen.http));
        match asked.await.unwrap_or_else(|_| Err(late())) {
            Ok((vitals, clock)) => {
                seen.vitals = Some(vitals);
                seen.clock = Some(clock);
            }
            Err(error) => seen.error = Some(error.message),
        }
        seen
    });
    let members: Vec<Observation> = futures::future::join_all(asked).await;
    Ok(Observed { cluster_id: text(&cluster["cluster_id"]), members, configured: None, now_ms: now_ms() as u64 })
}

async fn ask(http: &str) -> Result<(Vitals, (f64, f64)), Error> {
    let client = Client::new(http)?;
    let mut best: Option<(Vitals, (f64, f64))> = None;
    for _ in 0..TRIES {
        let (sent, clock) = (now_ms(), Instant::now());
        let answer = client.get("/v1/node").await?;
        let half = clock.elapsed().as_secs_f64() * 1000.0 / 2.0;
        let vitals: Vitals = serde_json::from_value(answer)
            .map_err(|error| Error::new(Code::BAD_REQUEST, format!("it does not tell what it should: {error}")))?;
        // The node tells whole milliseconds, cut off.
        let offset = vitals.now_ms as f64 + 0.5 - (sent + half);
        if best.as_ref().is_none_or(|(_, (_, uncertainty))| half + 0.5 < *uncertainty) {
            best = Some((vitals, (offset, half + 0.5)));
        }
    }
    Ok(best.expect("there was a try"))
}
