//! `/v1/keys` and `/v1/watch`: reading the key space, now or at an earlier revision, and following its changes.
//!
//! | path | what |
//! |---|---|
//! | `GET /v1/keys/{key}` | one key; everything behind `/v1/keys/` is the key, percent-decoded |
//! | `GET /v1/keys?prefix=&start=&limit=` | keys in order, in pages: `next` is where the following one starts |
//! | `GET /v1/watch?prefix=` or `?key=`, `from=` | changes as lines of JSON, one line a revision, without end |
//!
//! `consistency=linearizable` (the default) sees every commit that was acknowledged before the request came, on any node;
//! `serializable` is what this node has applied. With `revision=` history is read, which does not change: the barrier
//! then only makes sure that this node has reached the revision.

use std::{future::Future, time::Duration};

use buttress_core::{
    Code, Consistency, Error, KeyRange, Revision,
    ledger::{KeyEvent, KeyValue, KeyValues, Watch},
};
use bytes::Bytes;
use futures::{Stream, stream};
use http::{Request, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::{EventsHttp, entries::check_key, octets::put_bytes, request, respond};

const MEDIA: &str = "application/json";
const LIMIT_DEFAULT: i64 = 100;
const LIMIT_MAX: i64 = 10_000;
/// An answer holds no more than about this much of keys and values, and the value that reaches it.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// Keys that are read at once while nothing is known of their values: sixteen of the largest are 24 MiB.
const READ_FIRST: usize = 16;
const READ_MAX: usize = 1000;
/// A watch without changes writes an empty line this often, so that a client that is gone is noticed.
const WATCH_IDLE: Duration = Duration::from_secs(15);

fn consistency(query: &str) -> Result<Consistency, Error> {
    match request::query(query, "consistency").as_deref() {
        None | Some("linearizable") => Ok(Consistency::Linearizable),
        Some("serializable") => Ok(Consistency::Serializable),
        Some(other) => Err(Error::new(Code::BAD_REQUEST, format!("consistency={other:?} is not known"))
            .hint("linearizable or serializable")),
    }
}

fn revision(query: &str, name: &str) -> Result<Option<Revision>, Error> {
    match request::number(query, name)? {
        None => Ok(None),
        Some(number) if number > 0 => Ok(Some(Revision(number as u64))),
        Some(number) => Err(Error::new(Code::BAD_REQUEST, format!("{name}={number} is not above 0"))),
    }
}

/// A query parameter as bytes; an empty one counts as not given.
fn bytes_of(query: &str, name: &str) -> Option<Bytes> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| request::percent_decode(key) == name)
        .map(|(_, value)| Bytes::from(request::percent_decode_bytes(&value.replace('+', " "))))
        .filter(|bytes| !bytes.is_empty())
}

fn key_json(kv: &KeyValue) -> Value {
    let mut told = Map::new();
    put_bytes(&mut told, "key", Some(&kv.key));
    put_bytes(&mut told, "value", Some(&kv.value));
    told.insert("create_revision".into(), json!(kv.create_revision.0));
    told.insert("mod_revision".into(), json!(kv.mod_revision.0));
    told.insert("version".into(), json!(kv.version));
    told.insert("lease".into(), json!(kv.lease.map(|lease| lease.0)));
    Value::Object(told)
}

impl EventsHttp {
    /// Reads at `at`, or now; history behind a barrier where one is wanted.
    async fn read_keys(
        &self,
        range: KeyRange,
        limit: usize,
        at: Option<Revision>,
        consistency: Consistency,
    ) -> Result<KeyValues, Error> {
        let ledger = &self.ingest.deps().ledger;
        let Some(at) = at else { return ledger.read(range, limit, consistency).await };
        if consistency == Consistency::Linearizable {
            ledger.read(KeyRange::key(range.from.clone()), 0, consistency).await?;
        }
        ledger.read_at(range, limit, at).await
    }

    pub(super) async fn get_key(&self, key: Bytes, query: &str) -> Result<Response<Bytes>, Error> {
        check_key(&key)?;
        let at = revision(query, "revision")?;
        let found = self.read_keys(KeyRange::key(key.clone()), 1, at, consistency(query)?).await?;
        match found.kvs.first() {
            Some(kv) => {
                let mut told = key_json(kv);
                told["revision"] = json!(found.revision.0);
                Ok(respond(StatusCode::OK, MEDIA, &told))
            }
            // No error for a program that asks: it learns the revision at which there was none.
            None => {
                let told = json!({
                    "code": Code::NOT_FOUND.0,
                    "message": format!("there is no key \"{}\"", key.escape_ascii()),
                    "hint": null,
                    "revision": found.revision.0,
                });
                Ok(respond(StatusCode::NOT_FOUND, MEDIA, &told))
            }
        }
    }

    pub(super) async fn list_keys(&self, query: &str) -> Result<Response<Bytes>, Error> {
        let limit = request::number(query, "limit")?.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Error::new(Code::BAD_REQUEST, format!("limit={limit} is not 1 to {LIMIT_MAX}")));
        }
        let limit = limit as usize;
        let mut range = KeyRange::prefix(bytes_of(query, "prefix").unwrap_or_default());
        if let Some(start) = bytes_of(query, "start") {
            if range.from > start {
                return Err(Error::new(Code::BAD_REQUEST, "start lies before the prefix").hint("give \"next\" back"));
            }
            range.from = start;
        }
        let mut at = revision(query, "revision")?;
        let mut consistency = consistency(query)?;
        let mut keys = Vec::new();
        let mut bytes = 0;
        let mut next = None;
        loop {
            let size = if keys.is_empty() { READ_FIRST } else { ANSWER_BYTES / (1 + bytes / keys.len()) };
            let wanted = size.clamp(READ_FIRST, READ_MAX).min(limit - keys.len());
            let found = self.read_keys(range.clone(), wanted, at, consistency).await?;
            // The pages of one answer are of one revision, which this node has.
            at = Some(found.revision);
            consistency = Consistency::Serializable;
            for kv in &found.kvs {
                if bytes >= ANSWER_BYTES {
                    next = Some(kv.key.clone());
                    break;
                }
                bytes += kv.key.len() + kv.value.len();
                keys.push(key_json(kv));
            }
            if next.is_some() || !found.more {
                break;
            }
            // The least key above the last one.
            let last = &found.kvs.last().expect("more than none were in the range").key;
            range.from = [&last[..], &[0]].concat().into();
            if keys.len() >= limit {
                next = Some(range.from.clone());
                break;
            }
        }
        let mut told = Map::new();
        told.insert("revision".into(), json!(at.expect("one read was made").0));
        told.insert("keys".into(), Value::Array(keys));
        told.insert("more".into(), json!(next.is_some()));
        put_bytes(&mut told, "next", next.as_ref());
        Ok(respond(StatusCode::OK, MEDIA, &Value::Object(told)))
    }

    /// Follows changes: an endless body of lines, or the answer to a request that cannot be followed. `None`: not ours.
    pub async fn watch(
        &self,
        request: &Request<Bytes>,
    ) -> Option<Result<impl Stream<Item = Bytes> + Send + use<>, Response<Bytes>>> {
        if request.uri().path() != "/v1/watch" || request.method() != http::Method::GET {
            return None;
        }
        let query = request.uri().query().unwrap_or("");
        let started = self.start_watch(query).await;
        self.count("/v1/watch", started.as_ref().map_or_else(|error| super::status(error.code).as_u16(), |_| 200));
        Some(started.map(lines).map_err(|error| super::failure(&error, super::Manner::Ours)))
    }

    fn start_watch(&self, query: &str) -> impl Future<Output = Result<Box<dyn Watch>, Error>> + '_ {
        let wanted = (|| {
            let range = match (bytes_of(query, "key"), bytes_of(query, "prefix")) {
                (Some(_), Some(_)) => return Err(Error::new(Code::BAD_REQUEST, "both key= and prefix= are given")),
                (Some(key), None) => KeyRange::key(key),
                (None, prefix) => KeyRange::prefix(prefix.unwrap_or_default()),
            };
            Ok((range, revision(query, "from")?))
        })();
        async move {
            let (range, from) = wanted?;
            self.ingest.deps().ledger.watch(range, from).await
        }
    }
}

/// One line a revision: `{"revision":7,"events":[{"type":"put","key":…,"value":…},{"type":"delete","key":…}]}`. The last line
/// of a watch that cannot go on holds its error.
fn lines(watch: Box<dyn Watch>) -> impl Stream<Item = Bytes> + Send + use<> {
    stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match tokio::time::timeout(WATCH_IDLE, watch.next()).await {
            Err(_) => Some((Bytes::from_static(b"\n"), Some(watch))),
            Ok(Ok(Some(events))) => Some((event_lines(&events), Some(watch))),
            Ok(Ok(None)) => None,
            Ok(Err(error)) => {
                let told = json!({"code": error.code.0, "message": error.message, "hint": error.hint});
                Some((format!("{}\n", json!({ "error": told })).into(), None))
            }
        }
    })
}

fn event_lines(events: &[KeyEvent]) -> Bytes {
    let mut out = String::new();
    for of_one in events.chunk_by(|a, b| a.revision == b.revision) {
        let told: Vec<Value> = of_one
            .iter()
            .map(|event| {
                let mut told = Map::new();
                told.insert("type".into(), json!(if event.value.is_some() { "put" } else { "delete" }));
                put_bytes(&mut told, "key", Some(&event.key));
                if let Some(value) = &event.value {
                    put_bytes(&mut told, "value", Some(value));
                }
                Value::Object(told)
            })
            .collect();
        out.push_str(&json!({"revision": of_one[0].revision.0, "events": told}).to_string());
        out.push('\n');
    }
    out.into()
}
