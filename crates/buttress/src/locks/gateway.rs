//! What locks need of an etcd, over its JSON gateway: ours and a real one answer the same.
//!
//! Keys and values travel in base64, 64-bit numbers as text, and what is zero or empty is left out. A call goes to the
//! endpoint that answered last, and to the next one when that cannot be reached.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use buttress_bridge::{
    etcd::Options,
    secure::{Connector, Roots, Tls, User, check_cleartext},
};
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
    /// Who we say that we are, and what the etcd gave us for it.
    user: Option<User>,
    token: Mutex<Option<String>>,
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

/// What an etcd says of a token that is not good any more.
const STALE: [&str; 4] =
    ["invalid auth token", "revision of auth store is old", "revision in auth token is old", "user name is empty"];

/// An etcd's words for who may not, with our code.
fn known(error: Error) -> Error {
    let Error { code, message, hint, retryable } = error;
    let (code, hint) = match &message {
        said if said.contains("permission denied") => (
            Code::FORBIDDEN,
            Some(
                "give the user's role readwrite on the lock's name: etcdctl role grant-permission --prefix".to_owned(),
            ),
        ),
        said if said.contains("authentication failed") || said.contains("user name is empty") => (
            Code::CREDENTIALS,
            Some("name the user with --etcd etcd://USER@HOST:PORT, and check the password".to_owned()),
        ),
        _ => (code, hint),
    };
    Error { code, message, hint, retryable }
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
    /// Takes `http://HOST:PORT` or `https://HOST:PORT`, or one address of the form `etcd://USER@HOST:PORT?tls=ca.pem`.
    ///
    /// # Errors
    /// `CONFIG` where an endpoint is none, or there is none, and where files for TLS or a password cannot be used.
    pub fn new(endpoints: &[String]) -> Result<Self, Error> {
        if endpoints.is_empty() {
            return Err(Error::new(Code::CONFIG, "no etcd endpoint is known")
                .hint("name one with --etcd http://127.0.0.1:2379, or a Buttress node with --server"));
        }
        // A comma separates endpoints, and hosts within an address too.
        let Options { endpoints, namespace, tls, user, cleartext, .. } = Options::from_url(&endpoints.join(","))?;
        if !namespace.is_empty() {
            return Err(Error::new(Code::CONFIG, "locks have no namespace")
                .hint("write it before the lock's name, where etcdctl lock sees it too"));
        }
        let secure = endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")).count();
        if secure > 0 && secure < endpoints.len() {
            return Err(Error::new(Code::CONFIG, "some endpoints are to be reached with TLS, and some without"));
        }
        let tls = tls.or((secure > 0).then_some(Tls { roots: Roots::System, identity: None }));
        let connector = Arc::new(Connector::new(tls, &[b"http/1.1"])?);
        let mut clients = Vec::new();
        for endpoint in &endpoints {
            let address = endpoint.trim().trim_end_matches('/');
            let address = address.strip_prefix("https://").or(address.strip_prefix("http://")).unwrap_or(address);
            let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
            if port.is_none_or(|port| port.parse::<u16>().is_err()) || address.contains(['/', '@', ' ']) {
                return Err(Error::new(Code::CONFIG, format!("\"{endpoint}\" is not an etcd's address"))
                    .hint("for example --etcd http://127.0.0.1:2379, or --etcd 'etcd://me@10.0.0.1:2379?tls=ca.pem'"));
            }
            if let Some(user) = &user {
                check_cleartext(address, connector.is_secure(), cleartext)?;
                user.password()?;
            }
            clients.push(Client::over(address.to_owned(), connector.clone()));
        }
        Ok(Self { endpoints: clients, at: AtomicUsize::new(0), user, token: Mutex::default() })
    }

    fn token(&self) -> Option<String> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_token(&self, token: Option<String>) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// Says who we are, where that is asked for and was not said yet.
    async fn log_in(&self, client: &Client) -> Result<Option<String>, Error> {
        let Some(user) = &self.user else { return Ok(None) };
        if let Some(token) = self.token() {
            return Ok(Some(token));
        }
        let asked = json!({"name": user.name, "password": user.password()?.text()});
        let headers = [("content-type", "application/json")];
        let answer = match client.send(Method::POST, "/v3/auth/authenticate", &headers, asked.to_string().into()).await
        {
            // As etcd's own client does it: where nobody is asked who they are, nobody says so.
            Err(error) if error.message.contains("authentication is not enabled") => return Ok(None),
            answer => answer.map_err(known)?,
        };
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let token = answer["token"].as_str().map(str::to_owned);
        self.set_token(token.clone());
        Ok(token)
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
            let client = &self.endpoints[at];
            let call = async {
                let token = self.log_in(client).await?;
                let mut headers = vec![("content-type", "application/json")];
                headers.extend(token.as_deref().map(|token| ("authorization", token)));
                client.send(Method::POST, path, &headers, body.clone()).await.map_err(known)
            };
            let error = match tokio::time::timeout(left, call).await {
                Ok(Ok(answer)) => return Ok(answer),
                // A token that has ended, or that a change of users has made old: the next try gets a new one.
                Ok(Err(error)) if self.user.is_some() && STALE.iter().any(|text| error.message.contains(text)) => {
                    self.set_token(None);
                    if Instant::now() + PAUSE >= deadline {
                        return Err(error);
                    }
                    continue;
                }
                // Somebody else may have a leader, or be there at all.
                Ok(Err(error)) if error.retryable || error.code == Code::UNREACHABLE => error,
                Ok(Err(error)) => return Err(error),
                // It takes connections and says nothing: so is an etcd without its majority.
                Err(_) => Error::new(Code::UNREACHABLE, format!("{path} was not answered in time"))
                    .hint("has the cluster its majority? see: etcdctl endpoint status, or: buttress cluster status")
                    .retryable(),
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
        let token = self.token();
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(token.as_deref().map(|token| ("authorization", token)));
        let watch = self.endpoints[at].stream("/v3/watch", &headers, &request, |piece| {
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
    fn endpoints_are_all_with_tls_or_all_without() {
        let code = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|one| (*one).to_owned()).collect();
            Gateway::new(&list).map(|gateway| gateway.endpoints.len()).map_err(|error| error.code)
        };
        assert_eq!(code(&[]), Err(Code::CONFIG));
        assert_eq!(code(&["http://127.0.0.1:2379"]), Ok(1));
        assert_eq!(code(&["http://a:1", "http://b:2"]), Ok(2));
        // Cut at its commas by the command line, and whole.
        assert_eq!(code(&["etcd://a:1", "b:2"]), Ok(2));
        assert_eq!(code(&["etcd://a:1,b:2"]), Ok(2));
        for list in [
            &["http://a:1", "https://b:2"][..],
            &["http://a"],
            &["etcd://a:1?namespace=x"],
            &["etcd://a:1?tls=/nowhere/ca.pem"],
            &["etcd://me:secret@a:1"],
            &["etcd://me@a:1?password-env=PATH"],
        ] {
            assert_eq!(code(list), Err(Code::CONFIG), "{list:?}");
        }
    }
}
