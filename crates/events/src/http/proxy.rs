//! The producing part of Confluent's REST proxy API v2, in its shapes: errors per record, and error codes that extend
//! HTTP's by two digits.
//!
//! Source: Confluent REST Proxy API v2 reference ("Topics", "Partitions", "Brokers").

use buttress_core::{Code, Error, ledger::TopicView};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{EventsHttp, request, respond, transient};
use crate::ingest::{Incoming, unknown_topic};

pub(super) const MEDIA: &str = "application/vnd.kafka.v2+json";
const JSON: &str = "application/vnd.kafka.json.v2+json";
const BINARY: &str = "application/vnd.kafka.binary.v2+json";

/// Confluent's error code for one of ours. Codes of our own start with 409 and 422.
pub(super) fn error_code(code: Code) -> u32 {
    match code {
        Code::TOPIC_UNKNOWN => 40401,
        Code::NOT_FOUND => 40402,
        Code::SEQUENCE_GAP => 40906,
        Code::EPOCH_STALE => 40907,
        Code::RECORD_INVALID => 42208,
        Code::BATCH_INVALID | Code::TOPIC_INVALID => 422,
        // "Retriable Kafka error"; the plain 50002 is one that is not.
        code if transient(code) => 50003,
        code => match super::status(code).as_u16() {
            500 => 50002,
            status => status.into(),
        },
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Produce<'a> {
    #[serde(borrow)]
    pub(super) records: Vec<ProduceRecord<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProduceRecord<'a> {
    #[serde(borrow, default)]
    pub(super) key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) value: Option<&'a RawValue>,
    #[serde(default)]
    partition: Option<u32>,
}

impl<'a> Produce<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, Error> {
        serde_json::from_slice(body).map_err(|error| {
            let code = if error.is_data() { Code::RECORD_INVALID } else { Code::BAD_REQUEST };
            Error::new(code, format!("the body is not a produce request: {error}"))
                .hint(r#"send {"records":[{"key":…,"value":…,"partition":…}]}"#)
        })
    }
}

#[derive(Clone, Copy)]
pub(super) enum Format {
    Json,
    Binary,
}

impl Format {
    fn of(media: Option<&str>) -> Result<Self, Error> {
        match media {
            Some(JSON) => Ok(Self::Json),
            Some(BINARY) => Ok(Self::Binary),
            other => {
                let message = match other {
                    None => "the request has no content type".to_owned(),
                    Some(other) => format!("content type {other:?} is not served"),
                };
                Err(Error::new(Code::UNSUPPORTED, message).hint(format!("use {JSON} or {BINARY}")))
            }
        }
    }

    pub(super) fn bytes(self, raw: Option<&RawValue>, string_as_text: bool) -> Result<Option<Bytes>, Error> {
        let Some(raw) = raw.map(RawValue::get).filter(|text| *text != "null") else { return Ok(None) };
        let string = || serde_json::from_str::<String>(raw);
        match self {
            // Keys go by their text, so that a device has the same key, and partition, on every edge.
            Self::Json if string_as_text && raw.starts_with('"') => {
                let text = string().map_err(|error| Error::new(Code::RECORD_INVALID, error.to_string()))?;
                Ok(Some(text.into()))
            }
            Self::Json => Ok(Some(Bytes::copy_from_slice(raw.as_bytes()))),
            Self::Binary => {
                use base64::Engine as _;
                let bytes = string().ok().and_then(|s| base64::engine::general_purpose::STANDARD.decode(s).ok());
                bytes.map(|bytes| Some(bytes.into())).ok_or_else(|| {
                    Error::new(Code::RECORD_INVALID, "key or value is not a base64 string")
                        .hint(format!("encode it, or send {JSON}"))
                })
            }
        }
    }
}

fn partition_number(text: &str) -> Result<u32, Error> {
    text.parse().map_err(|_| Error::new(Code::NOT_FOUND, format!("there is no partition {text:?}")))
}

impl EventsHttp {
    pub(super) async fn produce(
        &self,
        topic: &str,
        partition: Option<&str>,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Error> {
        let format = Format::of(request::media_type(request.headers()).as_deref())?;
        let route = self.way_in(topic)?;
        let partition = partition.map(partition_number).transpose()?;
        if let Some(partition) = partition.filter(|p| *p as usize >= route.logs.len()) {
            return Err(Error::new(Code::NOT_FOUND, format!("topic {topic:?} has no partition {partition}")));
        }
        let body = request::body(&request, self.options.body_bytes_max)?;
        let produce = Produce::parse(&body)?;
        self.admit(produce.records.len())?;
        let timestamp_ms = self.ingest.now_ms();
        // A record that cannot be taken has its error in its own place, like one that the log refuses.
        let mut answers: Vec<Option<Value>> = Vec::with_capacity(produce.records.len());
        let mut items = Vec::with_capacity(produce.records.len());
        for record in &produce.records {
            let item = format.bytes(record.key, true).and_then(|key| {
                let partition = partition.or(record.partition);
                let value = format.bytes(record.value, false)?;
                let incoming = Incoming { partition, key, value, headers: Vec::new(), timestamp_ms };
                self.ingest.prepare(&route, incoming, answers.len() as u64)
            });
            match item {
                Ok(item) => {
                    answers.push(None);
                    items.push(item);
                }
                Err(error) => answers.push(Some(refused(&error))),
            }
        }
        let mut outcomes = self.commit(items).await.into_iter();
        let offsets: Vec<Value> = answers
            .into_iter()
            .map(|answer| {
                answer.unwrap_or_else(|| match outcomes.next().expect("one outcome per good record").result {
                    Ok(placed) => json!({
                        "partition": placed.partition,
                        "offset": placed.offset.map(|o| o.0),
                        "error_code": null,
                        "error": null,
                    }),
                    Err(error) => refused(&error),
                })
            })
            .collect();
        let answer = json!({"offsets": offsets, "key_schema_id": null, "value_schema_id": null});
        Ok(respond(StatusCode::OK, MEDIA, &answer))
    }

    pub(super) fn proxy_topics(&self) -> Response<Bytes> {
        let names: Vec<String> = self.ingest.deps().stream.topics().into_iter().map(|t| t.name).collect();
        respond(StatusCode::OK, MEDIA, &json!(names))
    }

    pub(super) fn proxy_topic(&self, topic: &str) -> Result<Response<Bytes>, Error> {
        let view = self.view(topic)?;
        let mut configs = serde_json::Map::new();
        configs.insert("cleanup.policy".into(), json!("delete"));
        let or_ever = |limit: Option<u64>| json!(limit.map_or("-1".to_owned(), |limit| limit.to_string()));
        configs.insert("retention.ms".into(), or_ever(view.settings.retention_ms));
        configs.insert("retention.bytes".into(), or_ever(view.settings.retention_bytes));
        let partitions: Vec<Value> = (0..view.partitions.len()).map(|p| self.partition_json(p)).collect();
        Ok(respond(StatusCode::OK, MEDIA, &json!({"name": view.name, "configs": configs, "partitions": partitions})))
    }

    pub(super) fn proxy_partitions(&self, topic: &str) -> Result<Response<Bytes>, Error> {
        let view = self.view(topic)?;
        let partitions: Vec<Value> = (0..view.partitions.len()).map(|p| self.partition_json(p)).collect();
        Ok(respond(StatusCode::OK, MEDIA, &json!(partitions)))
    }

    pub(super) fn proxy_partition(&self, topic: &str, partition: &str) -> Result<Response<Bytes>, Error> {
        let (_, at) = self.partition(topic, partition)?;
        Ok(respond(StatusCode::OK, MEDIA, &self.partition_json(at)))
    }

    pub(super) fn proxy_offsets(&self, topic: &str, partition: &str) -> Result<Response<Bytes>, Error> {
        let (view, at) = self.partition(topic, partition)?;
        let p = &view.partitions[at];
        Ok(respond(StatusCode::OK, MEDIA, &json!({"beginning_offset": p.start.0, "end_offset": p.end.0})))
    }

    pub(super) fn proxy_brokers(&self) -> Response<Bytes> {
        let brokers: Vec<u64> = self.ingest.deps().cluster.view().members.iter().map(|m| m.id.0).collect();
        respond(StatusCode::OK, MEDIA, &json!({"brokers": brokers}))
    }

    pub(super) fn view(&self, topic: &str) -> Result<TopicView, Error> {
        self.ingest.deps().stream.topic(topic).ok_or_else(|| unknown_topic(topic))
    }

    /// A topic and the position of one of its partitions.
    pub(super) fn partition(&self, topic: &str, partition: &str) -> Result<(TopicView, usize), Error> {
        let view = self.view(topic)?;
        let at = partition_number(partition)? as usize;
        if at >= view.partitions.len() {
            return Err(Error::new(Code::NOT_FOUND, format!("topic {topic:?} has no partition {at}")));
        }
        Ok((view, at))
    }

    /// Every member holds every partition; the log's leader leads them all. A follower that is behind is no less a
    /// replica, and which ones are is not known here, so `in_sync` tells of membership.
    fn partition_json(&self, partition: usize) -> Value {
        let view = self.ingest.deps().cluster.view();
        let replicas: Vec<Value> = view
            .members
            .iter()
            .map(|m| json!({"broker": m.id.0, "leader": Some(m.id) == view.leader, "in_sync": true}))
            .collect();
        let leader = view.leader.map_or(json!(-1), |leader| json!(leader.0));
        json!({"partition": partition, "leader": leader, "replicas": replicas})
    }
}

/// A record's place in the answer when it has none in the log. Code 2 is Confluent's for "may succeed when retried".
fn refused(error: &Error) -> Value {
    let code = match error.code {
        code if transient(code) => 2,
        Code::SEQUENCE_GAP | Code::EPOCH_STALE | Code::RECORD_INVALID => error_code(error.code),
        _ => 1,
    };
    json!({"partition": null, "offset": null, "error_code": code, "error": format!("{} [{}]", error.message, error.code)})
}
