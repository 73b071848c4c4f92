//! What locks need of an etcd, over its JSON gateway: ours and a real one answer the same.
//!
//! Keys and values travel in base64, 64-bit numbers as text, and what is zero or empty is left out. A call goes to the
//! endpoint that answered last, and to the next one when that cannot be reached.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use buttress_core::{Code, Error};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::client::Client;

/// Longest wait for one answer before the next endpoint is asked.
const CALL_MAX: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

pub struct Gateway {
    endpoints: Vec<Client>,
    /// The one that answered last.
    at: AtomicUsize,
}

/// A key that stands in the queue of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: i64,
    pub lease: i64,
}

pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The end of the range of all keys with this prefix. A prefix here ends with a slash, so there is a next byte.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// A number as the gateway writes it: as text, and left out where it is zero.
pub fn number(value: &Value) -> i64 {
    value.as_i64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

fn bytes(value: &Value) -> Bytes {
    STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default().into()
}

pub fn place(kv: &Value) -> Place {
    Place {
        key: bytes(&kv["key"]),
        value: bytes(&kv["value"]),
        create_revision: number(&kv["create_revision"]),
        lease: number(&kv["lease"]),
    }
}

/// The results of a streaming call: one object per line, of which the last may be cut.
fn results(text: &[u8]) -> Result<Vec<Value>, Error> {
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    lines
        .map(|line| match line["error"]["message"].as_str() {
            Some(message) => Err(Error::new(Code::BAD_REQUEST, message)),
            None => Ok(line["result"].clone()),
        })
        .collect()
}

impl Gateway {
    /// # Errors
    /// `CONFIG` where an endpoint is no `http://HOST:PORT`, or there is none.
    pub fn new(endpoints: &[String]) -> Result<Self, Error> {
        if let Some(secure) = endpoints.iter().find(|endpoint| endpoint.starts_with("https://")) {
            return Err(Error::new(
                Code::UNSUPPORTED,
                format!("\"{secure}\" asks for TLS, which locks do not speak yet"),
            )
            .hint("name an endpoint with http://"));
        }
        let endpoints: Vec<Client> =
            endpoints.iter().map(|endpoint| Client::new(endpoint)).collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(Error::new(Code::CONFIG, "no etcd endpoint is known")
                .hint("name one with --etcd http://127.0.0.1:2379, or a Buttress node with --server"));
        }
        Ok(Self { endpoints, at: AtomicUsize::new(0) })
    }

    /// Asks, and asks the next endpoint where one cannot be reached, until the deadline. What is asked must bear to be asked
    /// twice.
    ///
    /// # Errors
    /// What the server says; `UNREACHABLE` where none answered in time.
    pub async fn call(&self, path: &str, body: &Value, deadline: Instant) -> Result<Value, Error> {
        let answer = self.raw(path, body, deadline).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| Error::new(Code::UNREACHABLE, format!("the answer of {path} is not JSON: {error}")))
    }

    async fn raw(&self, path: &str, body: &Value, deadline: Instant) -> Result<Bytes, Error> {
        let body = Bytes::from(body.to_string());
        loop {
            let at = self.at.load(Ordering::Relaxed) % self.endpoints.len();
            let left = deadline.saturating_duration_since(Instant::now()).min(CALL_MAX);
            let headers = [("content-type", "application/json")];
            let call = self.endpoints[at].send(Method::POST, path, &headers, body.clone());
            let error = match tokio::time::timeout(left, call).await {
                Ok(Ok(answer)) => return Ok(answer),
                // Somebody else may have a leader, or be there at all.
                Ok(Err(error)) if error.retryable || error.code == Code::UNREACHABLE => error,
                Ok(Err(error)) => return Err(error),
                Err(_) => Error::new(Code::UNREACHABLE, format!("{path} was not answered in time")).retryable(),
            };
            self.at.store(at + 1, Ordering::Relaxed);
            if Instant::now() + PAUSE >= deadline {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A new lease; gives its id and how long it lives.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn grant(&self, ttl: Duration, deadline: Instant) -> Result<(i64, Duration), Error> {
        // Asked twice there may be two; the one that nobody keeps alive ends by itself.
        let granted = self.call("/v3/lease/grant", &json!({"TTL": ttl.as_secs()}), deadline).await?;
        Ok((number(&granted["ID"]), Duration::from_secs(number(&granted["TTL"]).max(0) as u64)))
    }

    /// Keeps a lease; `None` when it has ended.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn keep_alive(&self, lease: i64, deadline: Instant) -> Result<Option<Duration>, Error> {
        let answer = self.raw("/v3/lease/keepalive", &json!({"ID": lease.to_string()}), deadline).await?;
        let ttl = results(&answer)?.first().map_or(0, |result| number(&result["TTL"]));
        Ok((ttl > 0).then(|| Duration::from_secs(ttl as u64)))
    }

    /// Ends a lease, and with it the keys that hang on it. One that has ended already is as good.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn revoke(&self, lease: i64, deadline: Instant) -> Result<(), Error> {
        match self.call("/v3/lease/revoke", &json!({"ID": lease.to_string()}), deadline).await {
            Err(error) if error.message.contains("requested lease not found") => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Waits until a key of the range is deleted at `from` or later, and no longer than `patience`. Who is told nothing
    /// looks again all the same.
    pub async fn wait_for_delete(&self, key: &[u8], range_end: &[u8], from: i64, patience: Duration) {
        let mut wanted = json!({
            "key": base64(key), "start_revision": from.to_string(), "filters": ["NOPUT"],
        });
        if !range_end.is_empty() {
            wanted["range_end"] = json!(base64(range_end));
        }
        let at = self.at.load(Ordering::Relaxed) % self.endpoints.len();
        let mut text = Vec::new();
        let request = json!({"create_request": wanted});
        let watch = self.endpoints[at].stream("/v3/watch", &request, |piece| {
            text.extend_from_slice(&piece);
            // What cannot be watched (compacted, cancelled) is looked at again as well.
            let told = results(&text).map_or(true, |results| {
                results.iter().any(|result| result["events"].is_array() || result["canceled"] == true)
            });
            !told
        });
        if tokio::time::timeout(patience, watch).await.is_ok_and(|watched| watched.is_err()) {
            self.at.store(at + 1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_text_numbers_or_left_out() {
        let value = json!({"a": "7587848390023151617", "b": 5, "c": "x"});
        let all = ["a", "b", "c", "d"].map(|name| number(&value[name]));
        assert_eq!(all, [7_587_848_390_023_151_617, 5, 0, 0]);
    }

    #[test]
    fn a_stream_is_read_line_by_line() {
        let text = b"{\"result\":{\"TTL\":\"9\"}}\n{\"result\":{\"created\":true}}\n{\"resul";
        let read = results(text).unwrap();
        assert_eq!((read.len(), number(&read[0]["TTL"])), (2, 9));
        let refused = results(b"{\"error\":{\"grpc_code\":11,\"message\":\"no\"}}\n").unwrap_err();
        assert_eq!(refused.message, "no");
    }

    #[test]
    fn a_prefix_ends_behind_its_last_key() {
        assert_eq!(prefix_end(b"a/"), b"a0");
    }

    #[test]
    fn endpoints_without_tls_only() {
        assert_eq!(Gateway::new(&["https://a:1".into()]).err().unwrap().code, Code::UNSUPPORTED);
        assert_eq!(Gateway::new(&[]).err().unwrap().code, Code::CONFIG);
        assert!(Gateway::new(&["http://127.0.0.1:2379".into()]).is_ok());
    }
}
