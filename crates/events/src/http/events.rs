//! `POST /events`: JSON, lines of JSON, or CloudEvents, into one topic.
//!
//! The answer is 200 only when every record is committed. A body that cannot be taken whole is refused whole, before
//! anything is appended; what the log itself refuses (a skipped number, an old epoch) is told per record.

use std::collections::BTreeMap;

use base64::Engine as _;
use buttress_core::{Code, Error};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json, value::RawValue};

use super::{EventsHttp, request, respond, status, transient};
use crate::ingest::Incoming;

/// Errors of single records listed in one answer.
const ERRORS_LISTED_MAX: usize = 20;

impl EventsHttp {
    pub(super) async fn post_events(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let topic = request::query(request.uri().query().unwrap_or(""), "topic");
        let topic = topic.as_deref().unwrap_or(&self.options.default_topic);
        let media = request::media_type(request.headers());
        let route = self.way_in(topic)?;
        let body = request::body(&request, self.options.body_bytes_max)?;
        let records = records(media.as_deref(), &body, self.ingest.now_ms())?;
        let mut accepted = 0;
        let mut duplicates = 0;
        let mut offsets = Vec::new();
        let mut errors = Vec::new();
        self.admit(records.len())?;
        for outcome in self.commit(self.prepare(&route, records)?).await {
            match outcome.result {
                Ok(placed) => {
                    if placed.duplicate {
                        duplicates += 1;
                    } else {
                        accepted += 1;
                    }
                    offsets.push(json!({"partition": placed.partition, "offset": placed.offset.map(|o| o.0)}));
                }
                Err(error) => {
                    offsets.push(Value::Null);
                    errors.push((outcome.tag, error));
                }
            }
        }
        if errors.is_empty() {
            let answer = json!({"accepted": accepted, "duplicates": duplicates, "offsets": offsets});
            return Ok(respond(StatusCode::OK, "application/json", &answer));
        }
        // The whole is as bad as its worst part: what must be changed comes before what may just be sent again.
        let (at, worst) = errors.iter().find(|(_, e)| !transient(e.code)).unwrap_or(&errors[0]);
        let listed: Vec<Value> = errors
            .iter()
            .take(ERRORS_LISTED_MAX)
            .map(|(at, e)| json!({"record": at, "code": e.code.0, "message": e.message}))
            .collect();
        let answer = json!({
            "code": worst.code.0,
            "message": format!("record {at}: {}", worst.message),
            "hint": worst.hint,
            "accepted": accepted,
            "duplicates": duplicates,
            "failed": errors.len(),
            "offsets": offsets,
            "errors": listed,
        });
        let mut response = respond(status(worst.code), "application/json", &answer);
        if transient(worst.code) {
            response.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from_static("1"));
        }
        Ok(response)
    }
}

/// The records of a body of this media type.
pub(super) fn records(media: Option<&str>, body: &[u8], now: i64) -> Result<Vec<Incoming>, Error> {
    match media {
        // The form type is what curl says when it is told nothing.
        None | Some("application/json" | "application/x-www-form-urlencoded") => json_records(body, now),
        Some("application/x-ndjson" | "application/ndjson" | "application/jsonl") => line_records(body, now),
        Some("application/cloudevents+json") => Ok(vec![cloud_event(body, now)?]),
        Some("application/cloudevents-batch+json") => {
            let events: Vec<&RawValue> = serde_json::from_slice(body).map_err(|error| bad("a batch", &error))?;
            events.into_iter().map(|event| cloud_event(event.get().as_bytes(), now)).collect()
        }
        Some(other) => Err(Error::new(Code::UNSUPPORTED, format!("content type {other:?} is not served")).hint(
            "use application/json, application/x-ndjson, application/cloudevents+json or \
             application/cloudevents-batch+json",
        )),
    }
}

fn bad(what: &str, error: &serde_json::Error) -> Error {
    Error::new(Code::BAD_REQUEST, format!("the body is not {what}: {error}"))
}

fn record(value: &str, timestamp_ms: i64) -> Incoming {
    Incoming { value: Some(Bytes::copy_from_slice(value.as_bytes())), timestamp_ms, ..Incoming::default() }
}

fn object(raw: &RawValue, at: usize, timestamp_ms: i64) -> Result<Incoming, Error> {
    if !raw.get().starts_with('{') {
        return Err(Error::new(Code::RECORD_INVALID, format!("record {at} is not a JSON object"))
            .hint("send an object, an array of objects, or lines of objects as application/x-ndjson"));
    }
    Ok(record(raw.get(), timestamp_ms))
}

/// An object, or an array of objects.
fn json_records(body: &[u8], timestamp_ms: i64) -> Result<Vec<Incoming>, Error> {
    let first = body.iter().find(|b| !b.is_ascii_whitespace());
    if first == Some(&b'[') {
        let values: Vec<&RawValue> = serde_json::from_slice(body).map_err(|error| bad("JSON", &error))?;
        return values.into_iter().enumerate().map(|(at, raw)| object(raw, at, timestamp_ms)).collect();
    }
    let raw: &RawValue = serde_json::from_slice(body).map_err(|error| bad("JSON", &error))?;
    Ok(vec![object(raw, 0, timestamp_ms)?])
}

/// One object per line; empty lines are skipped.
fn line_records(body: &[u8], timestamp_ms: i64) -> Result<Vec<Incoming>, Error> {
    let mut records = Vec::new();
    for (number, line) in body.split(|b| *b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let raw: &RawValue = serde_json::from_slice(line)
            .map_err(|error| Error::new(Code::BAD_REQUEST, format!("line {} is not JSON: {error}", number + 1)))?;
        records.push(object(raw, records.len(), timestamp_ms)?);
    }
    Ok(records)
}

/// A CloudEvent in JSON form becomes a record in Kafka's binary form: attributes are headers, data is the value,
/// `partitionkey` is the key.
///
/// Source: CloudEvents 1.0, JSON event format; Kafka protocol binding, section 3.2.
fn cloud_event(body: &[u8], timestamp_ms: i64) -> Result<Incoming, Error> {
    let invalid = |message: String| Error::new(Code::RECORD_INVALID, message);
    let attributes: BTreeMap<String, &RawValue> =
        serde_json::from_slice(body).map_err(|error| bad("a CloudEvent", &error))?;
    let text = |name: &str| -> Result<String, Error> {
        let raw = attributes.get(name).ok_or_else(|| invalid(format!("a CloudEvent lacks {name:?}")))?;
        match serde_json::from_str::<String>(raw.get()) {
            Ok(text) if !text.is_empty() => Ok(text),
            _ => Err(invalid(format!("attribute {name:?} of a CloudEvent is not a string with something in it"))),
        }
    };
    if text("specversion")? != "1.0" {
        return Err(invalid("only CloudEvents of specversion 1.0 are served".into()));
    }
    for required in ["id", "source", "type"] {
        text(required)?;
    }
    let mut incoming = Incoming { timestamp_ms, ..Incoming::default() };
    for (name, raw) in &attributes {
        let header = match &name[..] {
            "data" | "data_base64" => continue,
            "datacontenttype" => "content-type".to_owned(),
            name => format!("ce_{name}"),
        };
        let value = match raw.get() {
            "null" => continue,
            text if text.starts_with('"') => serde_json::from_str(text).map_err(|error| bad("a CloudEvent", &error))?,
            text if text.starts_with(['{', '[']) => {
                return Err(invalid(format!("attribute {name:?} of a CloudEvent is not a simple value")));
            }
            text => text.to_owned(),
        };
        if name == "partitionkey" {
            incoming.key = Some(Bytes::copy_from_slice(value.as_bytes()));
        }
        incoming.headers.push((header.into(), value.into()));
    }
    incoming.value = match (attributes.get("data"), attributes.get("data_base64")) {
        (Some(_), Some(_)) => return Err(invalid("a CloudEvent has both data and data_base64".into())),
        (Some(data), None) => {
            if !attributes.contains_key("datacontenttype") {
                incoming.headers.push((Bytes::from_static(b"content-type"), Bytes::from_static(b"application/json")));
            }
            Some(Bytes::copy_from_slice(data.get().as_bytes()))
        }
        (None, Some(_)) => {
            let data = base64::engine::general_purpose::STANDARD.decode(text("data_base64")?);
            Some(data.map_err(|error| invalid(format!("data_base64 of a CloudEvent: {error}")))?.into())
        }
        (None, None) => None,
    };
    Ok(incoming)
}
