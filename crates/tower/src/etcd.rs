//! Pools in etcd, through its JSON gateway and any client of HTTP: etcd 3.4 or newer, or the etcd port of a Buttress node.
//!
//! | asked | with |
//! |---|---|
//! | the pool | `POST /v3/kv/range`, linearizable |
//! | its replacement | `POST /v3/kv/txn`, if the key's `mod_revision` is still the one that was read; 0 is a key that is not there |

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::{Value, json};
use tower_service::Service;

use crate::{
    cluster::{Pools, Stored},
    error::BoxError,
};

/// Of an answer: a pool is 16 bytes, and its frame a few hundred.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// For an answer. Nobody waits for it but tokens that are not there yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pools in an etcd. Clone the client into several limits.
///
/// ```no_run
/// # use buttress_tower::{cluster::ClusterLimit, etcd::Etcd, policy::lease};
/// # use bytes::Bytes; use http_body_util::Full; use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
/// let etcd = Etcd::new(client, "http://127.0.0.1:2379")?;
/// let limit = ClusterLimit::new("/limits/orders", lease::Config::new(1000.0, 100))?;
/// tokio::spawn(limit.follow(etcd, |error| eprintln!("no tokens: {error}")));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Etcd<S> {
    client: S,
    range: http::Uri,
    txn: http::Uri,
    authorization: Option<http::HeaderValue>,
}

/// Why the store did not do what it was asked.
#[derive(Debug)]
pub enum Error {
    /// No answer, or not a whole one.
    Client(BoxError),
    /// No answer in time.
    Late,
    /// What it says, with the status.
    Refused(u16, String),
    /// An answer that is none of etcd's.
    Strange,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(error) => write!(f, "etcd does not answer: {error}"),
            Self::Late => write!(f, "etcd does not answer within {PATIENCE:?}"),
            Self::Refused(status, says) => write!(f, "etcd answers {status}: {says}"),
            Self::Strange => f.write_str("what answers at this address is not etcd's JSON gateway"),
        }
    }
}

impl std::error::Error for Error {}

impl<S> Etcd<S> {
    /// `at` is where etcd's clients go, for example `http://127.0.0.1:2379`.
    ///
    /// # Errors
    /// It is no address.
    pub fn new(client: S, at: &str) -> Result<Self, http::uri::InvalidUri> {
        let at = at.trim_end_matches('/');
        let path = |path: &str| format!("{at}/v3/kv/{path}").parse();
        Ok(Self { client, range: path("range")?, txn: path("txn")?, authorization: None })
    }

    /// With a token of etcd's `Authenticate`, where it has users.
    pub fn token(mut self, token: http::HeaderValue) -> Self {
        self.authorization = Some(token);
        self
    }
}

impl<S, R> Etcd<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>> + Clone + Send + Sync,
    S::Future: Send,
    S::Error: Into<BoxError>,
    R: http_body::Body<Data = Bytes> + Send,
    R::Error: Into<BoxError>,
{
    async fn ask(&self, uri: &http::Uri, asked: &Value) -> Result<Value, Error> {
        let mut client = self.client.clone();
        let mut request = Request::new(Full::from(asked.to_string()));
        (*request.method_mut(), *request.uri_mut()) = (Method::POST, uri.clone());
        request.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        if let Some(token) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, token.clone());
        }
        let exchange = async {
            std::future::poll_fn(|cx| client.poll_ready(cx)).await.map_err(|error| Error::Client(error.into()))?;
            let response = client.call(request).await.map_err(|error| Error::Client(error.into()))?;
            let status = response.status();
            let body = std::pin::pin!(response.into_body());
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(Error::Client)?.to_bytes();
            let said: Value = serde_json::from_slice(&body).unwrap_or_default();
            if !status.is_success() {
                let says = said.get("message").or_else(|| said.get("error")).and_then(Value::as_str);
                return Err(Error::Refused(status.as_u16(), says.unwrap_or("nothing about why").to_owned()));
            }
            // Every answer of etcd's has it.
            if said.get("header").is_none() { Err(Error::Strange) } else { Ok(said) }
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap_or(Err(Error::Late))
    }
}

/// 64-bit numbers are texts in the JSON of protobuf.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

impl<S, R> Pools for Etcd<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>> + Clone + Send + Sync,
    S::Future: Send,
    S::Error: Into<BoxError>,
    R: http_body::Body<Data = Bytes> + Send,
    R::Error: Into<BoxError>,
{
    type Error = Error;

    async fn read(&self, key: &str) -> Result<Option<Stored>, Error> {
        let said = self.ask(&self.range, &json!({"key": BASE64.encode(key)})).await?;
        let Some(found) = said.get("kvs").and_then(|kvs| kvs.get(0)) else { return Ok(None) };
        let value = found.get("value").and_then(Value::as_str).map_or(Ok(Vec::new()), |text| BASE64.decode(text));
        let version = found.get("mod_revision").and_then(number);
        match (value, version) {
            (Ok(value), Some(version)) => Ok(Some(Stored { value, version })),
            _ => Err(Error::Strange),
        }
    }

    async fn replace(&self, key: &str, version: Option<u64>, value: &[u8]) -> Result<bool, Error> {
        let (key, value) = (BASE64.encode(key), BASE64.encode(value));
        let unchanged =
            json!({"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": version.unwrap_or(0).to_string()});
        let put = json!({"request_put": {"key": key, "value": value}});
        let said = self.ask(&self.txn, &json!({"compare": [unchanged], "success": [put]})).await?;
        // What is false is left out of the JSON of protobuf.
        Ok(said.get("succeeded").and_then(Value::as_bool).unwrap_or(false))
    }
}
