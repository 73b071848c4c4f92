//! `POST /v1/entries`: one entry of the log, as JSON. What it asks for happens together, or nothing of it does.
//!
//! Every part of [`Entry`] that a client may set has its place: guards, leases, puts and deletes, function state,
//! appends, cursors, timers. Topics are named, not numbered: the edge looks their partitions up. The one thing that is
//! decided per part and not for the whole is an append with a `sequence`, because a retry must be acknowledged and not
//! refused: its outcome stands in the answer, and `complete` says whether every append is in the log.
//!
//! The answer's `outcome` is what a client needs for its next step: `applied`, `refused` or `none` (nothing happened), or
//! `unknown` (504: it may still happen). The node gives each entry a request id of its own and retries it under that id,
//! so one POST is applied at most once; a second POST is a second entry. A client that must be able to repeat a POST
//! whose outcome it did not learn puts a guard into it (`mod_revision` of a key that the entry writes, `log_end`, `cursor`) or a
//! `sequence` on its appends.

use buttress_core::{
    Append, AppendOutcome, Code, Cursor, Entry, Error, Guard, LeaseChange, LeaseId, LogId, Offset, Put, Receipt,
    Refusal, Revision, Sequence, StatePut, SubmitError, TimeMs, Timer,
    ledger::TopicView,
    limits::{ENTRY_PARTS_MAX, KEY_BYTES_MAX, RECORD_BATCH_BYTES_MAX, VALUE_BYTES_MAX},
};
use buttress_wire::records::{BatchView, Builder};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{EventsHttp, octets::either, request, respond, status};
use crate::ingest::sequence::DEVICE_PREFIX;

const MEDIA: &str = "application/json";

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct EntryJson {
    guards: Vec<GuardJson>,
    leases: Vec<LeaseJson>,
    puts: Vec<PutJson>,
    deletes: Vec<KeyJson>,
    state: Vec<StateJson>,
    appends: Vec<AppendJson>,
    cursors: Vec<CursorJson>,
    timers: Vec<TimerJson>,
}

/// A guard on a key names exactly one of the four things it may ask; the others stand alone.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct GuardJson {
    key: Option<String>,
    key_base64: Option<String>,
    mod_revision: Option<u64>,
    create_revision: Option<u64>,
    version: Option<u64>,
    value: Option<String>,
    value_base64: Option<String>,
    lease_alive: Option<i64>,
    cursor: Option<CursorGuardJson>,
    log_end: Option<LogEndJson>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CursorGuardJson {
    group: String,
    topic: String,
    partition: Option<u32>,
    /// `null`: the group never set it.
    offset: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogEndJson {
    topic: String,
    partition: Option<u32>,
    offset: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaseJson {
    grant: Option<i64>,
    ttl_ms: Option<u64>,
    keep_alive: Option<i64>,
    revoke: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutJson {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    lease: Option<i64>,
}

/// A key by itself, or in a field where it is not text.
#[derive(Deserialize)]
#[serde(untagged)]
enum KeyJson {
    Text(String),
    Field(KeyField),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyField {
    key: Option<String>,
    key_base64: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateJson {
    space: String,
    key: Option<String>,
    key_base64: Option<String>,
    /// Neither of the two: the row is deleted.
    value: Option<String>,
    value_base64: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppendJson {
    topic: String,
    partition: Option<u32>,
    #[serde(default)]
    records: Vec<RecordJson>,
    /// A record batch v2 as it is, in the place of `records`.
    batch_base64: Option<String>,
    sequence: Option<SequenceJson>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordJson {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    timestamp: Option<i64>,
    #[serde(default)]
    headers: Vec<HeaderJson>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderJson {
    name: String,
    value: Option<String>,
    value_base64: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SequenceJson {
    producer: String,
    #[serde(default)]
    epoch: i32,
    number: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CursorJson {
    group: String,
    topic: String,
    partition: Option<u32>,
    /// The first record not yet consumed.
    offset: i64,
    #[serde(default)]
    metadata: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TimerJson {
    set: Option<String>,
    cancel: Option<String>,
    /// Milliseconds since 1970, or from the node's now on.
    due_ms: Option<u64>,
    after_ms: Option<u64>,
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(Code::BAD_REQUEST, message)
}

fn too_large(what: &str, got: usize, limit: usize) -> Error {
    Error::new(Code::TOO_LARGE, format!("{what} of {got} bytes is larger than the limit of {limit}"))
}

fn key(text: Option<String>, base64: Option<String>) -> Result<Bytes, Error> {
    let key = either("key", text, base64)?.ok_or_else(|| bad("\"key\" is missing"))?;
    check_key(&key)?;
    Ok(key)
}

pub(super) fn check_key(key: &[u8]) -> Result<(), Error> {
    match key.len() {
        0 => Err(bad("a key is empty")),
        got if got > KEY_BYTES_MAX => Err(too_large("a key", got, KEY_BYTES_MAX)),
        _ => Ok(()),
    }
}

fn value(text: Option<String>, base64: Option<String>) -> Result<Option<Bytes>, Error> {
    let value = either("value", text, base64)?;
    match &value {
        Some(value) if value.len() > VALUE_BYTES_MAX => Err(too_large("a value", value.len(), VALUE_BYTES_MAX)),
        _ => Ok(value),
    }
}

fn needed(value: Option<Bytes>) -> Result<Bytes, Error> {
    value.ok_or_else(|| bad("\"value\" is missing"))
}

fn name(what: &str, text: String) -> Result<String, Error> {
    match text.len() {
        0 => Err(bad(format!("\"{what}\" is empty"))),
        got if got > KEY_BYTES_MAX => Err(too_large(what, got, KEY_BYTES_MAX)),
        _ => Ok(text),
    }
}

fn offset(number: i64) -> Result<Offset, Error> {
    if number < 0 { Err(bad(format!("offset {number} is negative"))) } else { Ok(Offset(number)) }
}

/// Says which of a list the error is about.
fn at<T>(list: &str, position: usize, result: Result<T, Error>) -> Result<T, Error> {
    result.map_err(|mut error| {
        error.message = format!("{list}[{position}]: {}", error.message);
        error
    })
}

fn each<J, T>(list: &str, from: Vec<J>, convert: impl Fn(J) -> Result<T, Error>) -> Result<Vec<T>, Error> {
    from.into_iter().enumerate().map(|(position, json)| at(list, position, convert(json))).collect()
}

impl EventsHttp {
    pub(super) async fn post_entry(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let body = request::body(&request, self.options.body_bytes_max)?;
        let now = self.ingest.deps().cluster.cluster_time();
        let (entry, places) = Reader { log: &|topic, partition| self.log(topic, partition), now }.parse(&body)?;
        match self.ingest.deps().ledger.submit(entry).await {
            Ok(receipt) => Ok(applied(&receipt, &places)),
            Err(error) => Ok(not_applied(error)),
        }
    }

    fn log(&self, topic: &str, partition: Option<u32>) -> Result<LogId, Error> {
        let view: TopicView = self.view(topic)?;
        let partition = match partition {
            Some(partition) => partition as usize,
            None if view.partitions.len() == 1 => 0,
            None => {
                let message = format!("topic \"{topic}\" has {} partitions", view.partitions.len());
                return Err(bad(message).hint("name one with \"partition\""));
            }
        };
        let view = view.partitions.get(partition);
        view.map(|partition| partition.log)
            .ok_or_else(|| Error::new(Code::NOT_FOUND, format!("topic \"{topic}\" has no partition {partition}")))
    }
}

/// Gives the log of a topic's partition.
type LogOf<'a> = dyn Fn(&str, Option<u32>) -> Result<LogId, Error> + 'a;

/// What a body is read with.
pub(super) struct Reader<'a> {
    pub log: &'a LogOf<'a>,
    /// The cluster's time, by which timers fire.
    pub now: TimeMs,
}

impl Reader<'_> {
    /// The entry that a body asks for, and topic and partition of its appends as the client named them.
    ///
    /// # Errors
    /// `BAD_REQUEST`, `TOO_LARGE`, and whatever `log` says.
    pub fn parse(&self, body: &[u8]) -> Result<(Entry, Vec<(String, u32)>), Error> {
        let wanted: EntryJson = serde_json::from_slice(body).map_err(|error| {
            bad(format!("the body is not an entry: {error}"))
                .hint(r#"send {"guards":[{"key":"a","mod_revision":0}],"puts":[{"key":"a","value":"1"}]}"#)
        })?;
        let places =
            wanted.appends.iter().map(|append| (append.topic.clone(), append.partition.unwrap_or(0))).collect();
        Ok((self.entry(wanted)?, places))
    }

    fn entry(&self, wanted: EntryJson) -> Result<Entry, Error> {
        let mut puts = each("puts", wanted.puts, |put| {
            let (key, value) = (key(put.key, put.key_base64)?, needed(value(put.value, put.value_base64)?)?);
            Ok(Put { key, value: Some(value), lease: put.lease.map(LeaseId) })
        })?;
        puts.extend(each("deletes", wanted.deletes, |delete| {
            let key = match delete {
                KeyJson::Text(text) => key(Some(text), None)?,
                KeyJson::Field(field) => key(field.key, field.key_base64)?,
            };
            Ok(Put { key, value: None, lease: None })
        })?);
        let entry = Entry {
            guards: each("guards", wanted.guards, |guard| self.guard(guard))?,
            leases: each("leases", wanted.leases, lease)?,
            puts,
            state: each("state", wanted.state, |row| {
                let value = value(row.value, row.value_base64)?;
                Ok(StatePut { space: name("space", row.space)?, key: key(row.key, row.key_base64)?, value })
            })?,
            appends: each("appends", wanted.appends, |append| self.append(append))?,
            cursors: each("cursors", wanted.cursors, |cursor| {
                let log = (self.log)(&cursor.topic, cursor.partition)?;
                let group = name("group", cursor.group)?;
                if cursor.metadata.len() > KEY_BYTES_MAX {
                    return Err(too_large("metadata", cursor.metadata.len(), KEY_BYTES_MAX));
                }
                Ok(Cursor { group, log, next: offset(cursor.offset)?, metadata: cursor.metadata })
            })?,
            timers: each("timers", wanted.timers, |timer| self.timer(timer))?,
            ..Entry::default()
        };
        match entry.parts() {
            0 => {
                Err(bad("the entry asks for nothing").hint("give it puts, deletes, appends, cursors, leases or timers"))
            }
            got if got > ENTRY_PARTS_MAX => {
                let message = format!("the entry has {got} parts, more than the limit of {ENTRY_PARTS_MAX}");
                Err(Error::new(Code::TOO_LARGE, message).hint("split it"))
            }
            _ => Ok(entry),
        }
    }

    fn guard(&self, guard: GuardJson) -> Result<Guard, Error> {
        let asked = either("key", guard.key, guard.key_base64)?;
        let value = value(guard.value, guard.value_base64)?;
        let forms = [
            guard.mod_revision.is_some(),
            guard.create_revision.is_some(),
            guard.version.is_some(),
            value.is_some(),
            guard.lease_alive.is_some(),
            guard.cursor.is_some(),
            guard.log_end.is_some(),
        ];
        let asks = forms.iter().filter(|given| **given).count();
        if asks != 1 {
            return Err(bad(format!("a guard asks one thing, this one asks {asks}"))
                .hint("mod_revision, create_revision, version or value of a key; lease_alive; cursor; log_end"));
        }
        if let Some(lease) = guard.lease_alive {
            return Ok(Guard::LeaseAlive { lease: LeaseId(lease) });
        }
        if let Some(cursor) = guard.cursor {
            let log = (self.log)(&cursor.topic, cursor.partition)?;
            let expected = cursor.offset.map(offset).transpose()?;
            return Ok(Guard::Cursor { group: name("group", cursor.group)?, log, expected });
        }
        if let Some(end) = guard.log_end {
            let log = (self.log)(&end.topic, end.partition)?;
            return Ok(Guard::LogEnd { log, expected: offset(end.offset)? });
        }
        let key = asked.ok_or_else(|| bad("\"key\" is missing"))?;
        check_key(&key)?;
        Ok(match (guard.mod_revision, guard.create_revision, guard.version, value) {
            (Some(revision), ..) => Guard::ModRevision { key, revision: Revision(revision) },
            (_, Some(revision), ..) => Guard::CreateRevision { key, revision: Revision(revision) },
            (_, _, Some(version), _) => Guard::Version { key, version },
            (_, _, _, Some(value)) => Guard::Value { key, value },
            _ => unreachable!("one of the forms was given"),
        })
    }

    fn append(&self, append: AppendJson) -> Result<Append, Error> {
        let log = (self.log)(&append.topic, append.partition)?;
        if let Some(encoded) = append.batch_base64 {
            if !append.records.is_empty() || append.sequence.is_some() {
                return Err(bad("\"batch_base64\" stands alone").hint("leave \"records\" and \"sequence\" away"));
            }
            let bytes = either("batch", None, Some(encoded))?.expect("it was given");
            let view = BatchView::parse(bytes)?;
            view.check_records()?;
            if view.is_control() || view.is_transactional() {
                return Err(Error::new(Code::BATCH_INVALID, "the batch is part of a transaction"));
            }
            let (records, max_timestamp_ms) = (view.records_count(), view.max_timestamp_ms());
            return Ok(Append { log, records, max_timestamp_ms, sequence: None, batch: view.into_bytes() });
        }
        let now = self.now.0 as i64;
        let mut batch = Builder::new();
        for (position, record) in append.records.into_iter().enumerate() {
            let build = || {
                let key = either("key", record.key, record.key_base64)?;
                let value = either("value", record.value, record.value_base64)?;
                let headers: Vec<(String, Option<Bytes>)> = record
                    .headers
                    .into_iter()
                    .map(|header| Ok((header.name, either("value", header.value, header.value_base64)?)))
                    .collect::<Result<_, Error>>()?;
                let headers: Vec<(&[u8], Option<&[u8]>)> =
                    headers.iter().map(|(name, value)| (name.as_bytes(), value.as_deref())).collect();
                let size = batch.size() + Builder::record_size_max(key.as_deref(), value.as_deref(), &headers);
                if size > RECORD_BATCH_BYTES_MAX {
                    return Err(too_large("a batch", size, RECORD_BATCH_BYTES_MAX).hint("split it into two appends"));
                }
                batch.push(record.timestamp.unwrap_or(now), key.as_deref(), value.as_deref(), &headers);
                Ok(())
            };
            at("records", position, build())?;
        }
        let sequence = append
            .sequence
            .map(|sequence| {
                if sequence.number < 0 || sequence.epoch < 0 {
                    return Err(bad("a sequence's epoch and number are not negative"));
                }
                let producer = format!("{DEVICE_PREFIX}{}", name("producer", sequence.producer)?);
                Ok(Sequence { producer, epoch: sequence.epoch, number: sequence.number })
            })
            .transpose()?;
        let (records, max_timestamp_ms) = (batch.count(), batch.max_timestamp_ms());
        let batch = batch.build().ok_or_else(|| bad("\"records\" is empty"))?;
        Ok(Append { log, records, max_timestamp_ms, sequence, batch })
    }

    fn timer(&self, timer: TimerJson) -> Result<Timer, Error> {
        match (timer.set, timer.cancel) {
            (Some(id), None) => {
                let due = match (timer.due_ms, timer.after_ms) {
                    (Some(due), None) => TimeMs(due),
                    (None, Some(after)) => TimeMs(self.now.0.saturating_add(after)),
                    _ => return Err(bad("a timer has either \"due_ms\" or \"after_ms\"")),
                };
                let key = key(timer.key, timer.key_base64)?;
                let value = needed(value(timer.value, timer.value_base64)?)?;
                Ok(Timer::Set { id: name("set", id)?, due, key, value })
            }
            (None, Some(id)) => Ok(Timer::Cancel { id: name("cancel", id)? }),
            _ => Err(bad("a timer has either \"set\" or \"cancel\"")),
        }
    }
}

fn lease(change: LeaseJson) -> Result<LeaseChange, Error> {
    let id = |id: i64| if id == 0 { Err(bad("a lease's id is not 0")) } else { Ok(LeaseId(id)) };
    match (change.grant, change.keep_alive, change.revoke, change.ttl_ms) {
        (Some(lease), None, None, Some(ttl_ms)) if ttl_ms > 0 => Ok(LeaseChange::Grant { lease: id(lease)?, ttl_ms }),
        (Some(_), None, None, _) => Err(bad("a grant needs \"ttl_ms\" above 0")),
        (None, Some(lease), None, None) => Ok(LeaseChange::KeepAlive { lease: id(lease)? }),
        (None, None, Some(lease), None) => Ok(LeaseChange::Revoke { lease: id(lease)? }),
        _ => Err(bad("a lease change is one of \"grant\" with \"ttl_ms\", \"keep_alive\", \"revoke\"")),
    }
}

fn applied(receipt: &Receipt, places: &[(String, u32)]) -> Response<Bytes> {
    let mut complete = true;
    let appends: Vec<Value> = places
        .iter()
        .zip(&receipt.appends)
        .map(|((topic, partition), outcome)| {
            let mut told = match outcome {
                AppendOutcome::Appended { base_offset } => json!({"outcome": "appended", "base_offset": base_offset.0}),
                AppendOutcome::Duplicate { base_offset } => {
                    json!({"outcome": "duplicate", "base_offset": base_offset.map(|offset| offset.0)})
                }
                refused => {
                    complete = false;
                    match refused {
                        AppendOutcome::Gap { expected } => {
                            json!({"outcome": "gap", "code": Code::SEQUENCE_GAP.0, "expected": expected})
                        }
                        AppendOutcome::StaleEpoch { current } => {
                            json!({"outcome": "stale_epoch", "code": Code::EPOCH_STALE.0, "current": current})
                        }
                        _ => json!({"outcome": "topic_gone", "code": Code::TOPIC_UNKNOWN.0}),
                    }
                }
            };
            told["topic"] = json!(topic);
            told["partition"] = json!(partition);
            told
        })
        .collect();
    let answer = json!({
        "outcome": "applied",
        "complete": complete,
        "revision": receipt.revision.0,
        "index": receipt.index.0,
        "term": receipt.term.0,
        "appends": appends,
    });
    respond(StatusCode::OK, MEDIA, &answer)
}

fn not_applied(error: SubmitError) -> Response<Bytes> {
    let (code, outcome) = (error.code(), if matches!(error, SubmitError::Refused(_)) { "refused" } else { "none" });
    // A timeout is the one error after which the entry may still be applied.
    let unknown = code == Code::TIMEOUT;
    let status = match &error {
        _ if unknown => StatusCode::GATEWAY_TIMEOUT,
        SubmitError::Refused(Refusal::Part { code: Code::LEASE_UNKNOWN | Code::LEASE_EXISTS, .. }) => {
            StatusCode::CONFLICT
        }
        _ => status(code),
    };
    let guard = match &error {
        SubmitError::Refused(Refusal::Guard { position, guard, found }) => {
            Some(json!({"position": position, "expected": format!("{guard:?}"), "found": found}))
        }
        _ => None,
    };
    let error = error.into_error();
    let mut answer = json!({
        "code": error.code.0,
        "message": error.message,
        "hint": error.hint,
        "outcome": if unknown { "unknown" } else { outcome },
    });
    if let Some(guard) = guard {
        answer["guard"] = guard;
    }
    let mut response = respond(status, MEDIA, &answer);
    if super::transient(code) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
