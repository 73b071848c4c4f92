//! How one process calls another: as most programs do at first, or through the proxy beside it.
//!
//! **Without.** The plain client: a second of patience, then the same again at once, three times more. Nothing counts how
//! often. **With.** One request to the sidecar. Whether, when and how often it is sent on is the proxy's decision, and a
//! failure comes back as soon as it is clear that there will be one.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use http::Method;
use serde_json::Value;

use super::shape::{FENCE_FIELD, KEY_FIELD};
use crate::demo::http::{Answer, Ask, HttpClient};

/// What the plain client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it asks again.
const RETRIES: u32 = 3;
/// All of its tries together may take so many times what the proxy may: what four of them take.
const PLAIN_TIMES: u32 = 2;
/// The proxy's deadline is the saga's; this is for its answer to come back.
const WAY_BACK: Duration = Duration::from_millis(500);

pub struct Caller {
    http: HttpClient,
    plain: bool,
    /// What was to be done, and what was sent for it.
    pub calls: AtomicU64,
    pub attempts: AtomicU64,
}

impl Caller {
    pub fn new(plain: bool) -> Self {
        Self { http: HttpClient::default(), plain, calls: AtomicU64::new(0), attempts: AtomicU64::new(0) }
    }

    /// Posts, and gives the answer that counts.
    ///
    /// # Errors
    /// What went wrong last, where there is no answer that says what happened.
    pub async fn post(
        &self,
        address: &str,
        path: &str,
        key: &str,
        fence: Option<&str>,
        body: &Value,
        timeout: Duration,
    ) -> Result<Answer, String> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut ask = Ask::json(Method::POST, path, body.to_string());
        ask.fields.push((KEY_FIELD, key.to_owned()));
        if let Some(fence) = fence {
            ask.fields.push((FENCE_FIELD, fence.to_owned()));
        }
        let (tries, patience) = if self.plain { (1 + RETRIES, PATIENCE) } else { (1, timeout + WAY_BACK) };
        let until = Instant::now() + timeout * PLAIN_TIMES;
        let mut problem = "there is no time left".to_owned();
        for _ in 0..tries {
            if self.plain && Instant::now() >= until {
                break;
            }
            self.attempts.fetch_add(1, Ordering::Relaxed);
            problem = match self.http.ask(address, &ask, patience).await {
                Ok(answer) if !answer.status.is_server_error() => return Ok(answer),
                Ok(answer) => answer.problem(),
                Err(error) => error.message,
            };
        }
        Err(problem)
    }
}
