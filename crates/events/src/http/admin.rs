//! `/v1/topics`: topics for people and tools, and the records in them with their story.

use base64::Engine as _;
use buttress_core::{
    Code, Entry, Error, Offset, SubmitError, TopicChange,
    entry::TopicSettings,
    ledger::{Batch, TopicView},
    limits::{KEY_BYTES_MAX, PARTITIONS_PER_TOPIC_MAX},
};
use buttress_wire::records::BatchView;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{EventsHttp, check_topic_name, octets::put_bytes, request, respond};
use crate::ingest::unknown_topic;

const MEDIA: &str = "application/json";
/// Records of one answer, without and with `max`.
const RECORDS_DEFAULT: i64 = 20;
const RECORDS_MAX: i64 = 1000;
/// Batches read for one answer.
const READ_BYTES: usize = 1024 * 1024;
/// An answer holds no more than about this much of keys, values and headers.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateTopic {
    pub(super) name: String,
    #[serde(default = "one")]
    pub(super) partitions: u32,
    retention_ms: Option<u64>,
    retention_bytes: Option<u64>,
    sequence_fields: Option<(String, String)>,
    /// Where it is to lie; left out, where topics lie here.
    engine: Option<String>,
}

impl CreateTopic {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Error> {
        let wanted: Self = serde_json::from_slice(body).map_err(|error| {
            Error::new(Code::BAD_REQUEST, format!("the body does not describe a topic: {error}"))
                .hint(r#"send {"name":"telemetry","partitions":8,"sequence_fields":["machine","seq"]}"#)
        })?;
        check_topic_name(&wanted.name)?;
        if !(1..=PARTITIONS_PER_TOPIC_MAX).contains(&wanted.partitions) {
            let message = format!("{} partitions is not 1 to {PARTITIONS_PER_TOPIC_MAX}", wanted.partitions);
            return Err(Error::new(Code::TOPIC_INVALID, message));
        }
        if let Some((producer, number)) = &wanted.sequence_fields {
            let fits = |field: &str| !field.is_empty() && field.len() <= KEY_BYTES_MAX;
            if !fits(producer) || !fits(number) || producer == number {
                let message = format!("sequence fields {producer:?} and {number:?} are not two different field names");
                return Err(Error::new(Code::TOPIC_INVALID, message));
            }
        }
        Ok(wanted)
    }
}

fn one() -> u32 {
    1
}

/// A topic of an engine of the user's says so.
fn engine_json(view: &TopicView, engine: &str) -> Value {
    let mut json = topic_json(view);
    if engine != "embedded" {
        json["engine"] = json!(engine);
    }
    json
}

fn settings_json(settings: &TopicSettings) -> Value {
    json!({
        "retention_ms": settings.retention_ms,
        "retention_bytes": settings.retention_bytes,
        "sequence_fields": settings.sequence_fields.as_ref().map(|(p, n)| [p, n]),
    })
}

/// A topic id as Kafka's tools print it: URL-safe base64 of the sixteen bytes.
fn id_text(id: &[u8; 16]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(id)
}

fn topic_json(view: &TopicView) -> Value {
    let partitions: Vec<Value> = view
        .partitions
        .iter()
        .enumerate()
        .map(|(i, p)| json!({"partition": i, "log": p.log.0, "start": p.start.0, "end": p.end.0, "bytes": p.bytes}))
        .collect();
    json!({
        "name": view.name,
        "id": id_text(&view.id),
        "settings": settings_json(&view.settings),
        "partitions": partitions,
    })
}

impl EventsHttp {
    pub(super) async fn create_topic(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let body = request::body(&request, self.options.body_bytes_max)?;
        let wanted = CreateTopic::parse(&body)?;
        let engine = wanted.engine.as_deref().unwrap_or(self.engine);
        let exists = || Error::new(Code::TOPIC_EXISTS, format!("topic {:?} exists already", wanted.name));
        if engine != self.engine {
            let Some(elsewhere) = self.elsewhere.as_ref().filter(|elsewhere| elsewhere.engine() == engine) else {
                let known: Vec<&str> =
                    [self.engine].into_iter().chain(self.elsewhere.as_ref().map(|e| e.engine())).collect();
                let message = format!("there is no engine {engine:?} here, only {}", known.join(", "));
                let hint = "name the Kafka's address in the section [engines] of every node's configuration";
                return Err(Error::new(Code::CONFIG, message).hint(hint));
            };
            if self.ingest.deps().stream.topic(&wanted.name).is_some() {
                return Err(exists());
            }
            let settings = TopicSettings {
                retention_bytes: wanted.retention_bytes,
                retention_ms: wanted.retention_ms,
                sequence_fields: wanted.sequence_fields.clone(),
                batch_bytes_max: None,
            };
            elsewhere.create(&wanted.name, wanted.partitions, &settings).await?;
            let view = elsewhere.topic(&wanted.name).ok_or_else(|| unknown_topic(&wanted.name))?;
            return Ok(respond(StatusCode::CREATED, MEDIA, &engine_json(&view, engine)));
        }
        if self.elsewhere.as_ref().is_some_and(|elsewhere| elsewhere.topic(&wanted.name).is_some()) {
            return Err(exists());
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| Error::new(Code::STOPPED, format!("the system gives no random bytes: {error}")))?;
        let settings = TopicSettings {
            retention_bytes: wanted.retention_bytes,
            retention_ms: wanted.retention_ms,
            sequence_fields: wanted.sequence_fields,
            batch_bytes_max: None,
        };
        let create = TopicChange::Create {
            name: wanted.name.clone(),
            id,
            partitions: wanted.partitions,
            settings: settings.clone(),
        };
        let entry = Entry { topics: vec![create], ..Entry::default() };
        let receipt = self.ingest.deps().ledger.submit(entry).await.map_err(SubmitError::into_error)?;
        // Told from the receipt, because this node may not have applied the entry yet.
        let logs = receipt.created.iter().find(|(name, _)| *name == wanted.name).map(|(_, logs)| &logs[..]);
        let partitions: Vec<Value> = logs
            .unwrap_or_default()
            .iter()
            .enumerate()
            .map(|(i, log)| json!({"partition": i, "log": log.0, "start": 0, "end": 0, "bytes": 0}))
            .collect();
        let answer = json!({
            "name": wanted.name,
            "id": id_text(&id),
            "settings": settings_json(&settings),
            "partitions": partitions,
        });
        Ok(respond(StatusCode::CREATED, MEDIA, &answer))
    }

    pub(super) fn list_topics(&self) -> Response<Bytes> {
        let here = self.ingest.deps().stream.topics();
        let mut topics: Vec<Value> = here.iter().map(|view| engine_json(view, self.engine)).collect();
        if let Some(elsewhere) = &self.elsewhere {
            topics.extend(elsewhere.topics().iter().map(|view| engine_json(view, elsewhere.engine())));
        }
        respond(StatusCode::OK, MEDIA, &json!({"topics": topics}))
    }

    pub(super) fn describe_topic(&self, topic: &str) -> Result<Response<Bytes>, Error> {
        if let Some(elsewhere) = &self.elsewhere
            && let Some(view) = elsewhere.topic(topic)
        {
            return Ok(respond(StatusCode::OK, MEDIA, &engine_json(&view, elsewhere.engine())));
        }
        Ok(respond(StatusCode::OK, MEDIA, &engine_json(&self.view(topic)?, self.engine)))
    }

    pub(super) async fn delete_topic(&self, topic: &str) -> Result<Response<Bytes>, Error> {
        check_topic_name(topic)?;
        if let Some(elsewhere) = &self.elsewhere
            && elsewhere.delete(topic).await?
        {
            return Ok(respond(StatusCode::OK, MEDIA, &json!({"deleted": topic})));
        }
        let entry = Entry { topics: vec![TopicChange::Delete { name: topic.to_owned() }], ..Entry::default() };
        self.ingest.deps().ledger.submit(entry).await.map_err(SubmitError::into_error)?;
        Ok(respond(StatusCode::OK, MEDIA, &json!({"deleted": topic})))
    }

    /// `offset`: the first record wanted; negative counts from the end. `max`: how many.
    pub(super) async fn read_records(
        &self,
        topic: &str,
        partition: &str,
        query: &str,
    ) -> Result<Response<Bytes>, Error> {
        let (view, at) = self.partition(topic, partition)?;
        let at_view = &view.partitions[at];
        let max = request::number(query, "max")?.unwrap_or(RECORDS_DEFAULT);
        if !(1..=RECORDS_MAX).contains(&max) {
            return Err(Error::new(Code::BAD_REQUEST, format!("max={max} is not 1 to {RECORDS_MAX}")));
        }
        let from = match request::number(query, "offset")? {
            None => at_view.start,
            Some(back) if back < 0 => Offset(at_view.end.0.saturating_add(back).max(at_view.start.0)),
            Some(offset) => Offset(offset),
        };
        let stream = &self.ingest.deps().stream;
        let mut records: Vec<Value> = Vec::new();
        let mut next = from;
        let mut bytes = 0;
        let (start, end) = loop {
            let fetched = stream.fetch(at_view.log, next, READ_BYTES, 0).await?;
            let done = fetched.batches.is_empty();
            for batch in fetched.batches {
                next = Offset(batch.last_offset.0 + 1);
                story(&batch, from, max as usize, &mut records, &mut bytes);
            }
            if done || next >= fetched.end || records.len() >= max as usize || bytes >= ANSWER_BYTES {
                break (fetched.start, fetched.end);
            }
        };
        let answer = json!({"topic": topic, "partition": at, "start": start.0, "end": end.0, "records": records});
        Ok(respond(StatusCode::OK, MEDIA, &answer))
    }
}

/// Appends the batch's records from `from` on; a batch whose records cannot be read stands for itself.
fn story(batch: &Batch, from: Offset, max: usize, into: &mut Vec<Value>, bytes: &mut usize) {
    let view = match BatchView::parse(batch.bytes.clone()) {
        Ok(view) if view.is_control() => return,
        other => other,
    };
    let records = view.and_then(|view| view.records());
    let records = match records {
        Ok(records) => records,
        Err(error) => {
            if into.len() < max {
                into.push(json!({
                    "offset": batch.base_offset.0,
                    "last_offset": batch.last_offset.0,
                    "index": batch.index.0,
                    "committed_at": batch.committed_at.0,
                    "error": error.to_string(),
                }));
            }
            return;
        }
    };
    for record in records {
        if into.len() >= max || *bytes >= ANSWER_BYTES {
            return;
        }
        let record = match record {
            Ok(record) if record.offset < from.0 => continue,
            Ok(record) => record,
            Err(error) => {
                // What follows in the batch cannot be told apart any more.
                let at = into.last().and_then(|last| last["offset"].as_i64()).map_or(from.0, |last| last + 1);
                into.push(json!({
                    "offset": at.max(batch.base_offset.0),
                    "last_offset": batch.last_offset.0,
                    "index": batch.index.0,
                    "error": error.to_string(),
                }));
                return;
            }
        };
        let mut story = Map::new();
        story.insert("offset".into(), json!(record.offset));
        story.insert("timestamp".into(), json!(record.timestamp_ms));
        *bytes += put_bytes(&mut story, "key", record.key.as_ref());
        *bytes += put_bytes(&mut story, "value", record.value.as_ref());
        let headers: Vec<Value> = record
            .headers
            .iter()
            .map(|header| {
                let mut one = Map::new();
                *bytes += header.key.len();
                one.insert("name".into(), json!(String::from_utf8_lossy(&header.key)));
                *bytes += put_bytes(&mut one, "value", header.value.as_ref());
                Value::Object(one)
            })
            .collect();
        story.insert("headers".into(), json!(headers));
        story.insert("index".into(), json!(batch.index.0));
        story.insert("committed_at".into(), json!(batch.committed_at.0));
        into.push(Value::Object(story));
    }
}
