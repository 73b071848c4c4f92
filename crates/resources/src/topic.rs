//! `kind: Topic`: a log of records in partitions.
//!
//! ```yaml
//! kind: Topic
//! name: telemetry
//! spec: {partitions: 8, retention_time: 30d, sequence: [machine, seq]}
//! ```

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::units::{Size, Span};

/// A log of records in partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    /// Absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// Records older than this are forgotten; absent: none for their age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_time: Option<Span>,
    /// The oldest records of a partition that is larger are forgotten; absent: none for its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_size: Option<Size>,
    /// The JSON fields with a record's producer and its number, so that a retry is never a duplicate: `[machine, seq]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<(String, String)>,
    /// Where it lies: `embedded` or `kafka`; absent: where topics lie by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    Embedded,
    Kafka,
}

impl Topic {
    /// What `POST /v1/topics` takes.
    pub fn request(&self, name: &str) -> Value {
        let mut request = json!({"name": name, "partitions": self.partitions.unwrap_or(1)});
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                request[key] = value;
            }
        };
        put("retention_ms", self.retention_time.map(|span| json!(span.0.as_millis() as u64)));
        put("retention_bytes", self.retention_size.map(|size| size.0.into()));
        put("sequence_fields", self.sequence.as_ref().map(|(producer, number)| json!([producer, number])));
        put("engine", self.engine.map(|engine| json!(engine)));
        request
    }

    /// The topic as it is, from what `GET /v1/topics/NAME` says of it.
    pub fn present(view: &Value) -> Self {
        let settings = &view["settings"];
        let fields: Option<(String, String)> = serde_json::from_value(settings["sequence_fields"].clone()).ok();
        Self {
            partitions: view["partitions"].as_array().and_then(|list| u32::try_from(list.len()).ok()),
            retention_time: settings["retention_ms"].as_u64().map(|ms| Span(Duration::from_millis(ms))),
            retention_size: settings["retention_bytes"].as_u64().map(Size),
            sequence: fields,
            engine: match view["engine"].as_str() {
                Some("kafka") => Some(Engine::Kafka),
                Some(_) => Some(Engine::Embedded),
                None => None,
            },
        }
    }
}
