//! `kind: Function`: a component, what starts it and what it may reach.
//!
//! ```yaml
//! kind: Function
//! name: judge
//! spec:
//!   component: judge.wasm
//!   trigger: {topic: telemetry, max_wait: 10ms}
//!   grants: {models: [spindle], topics: [anomalies], state: true}
//! ```

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::units::{Size, Span};

/// A component, what starts it and what it may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// A file, seen from where this one lies; or `sha256:` and the digest of a component that was uploaded before.
    pub component: String,
    /// The topic whose records start it; absent: it answers HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    /// Whether it answers `/fn/NAME/…`; absent: where there is no trigger, or there are routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<bool>,
    /// Further paths that it answers on the nodes' HTTP port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// What it may reach; everything else is denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<Grants>,
    /// What one call may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Partitions of granted topics that do not exist yet; absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_partitions: Option<u32>,
    /// Whether each batch leaves a record in the audit topic; absent: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    pub topic: String,
    /// Most records of one call; absent: 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_records: Option<u32>,
    /// While busy, one batch begins in this time; absent: 10 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_wait: Option<Span>,
    /// Attempts at a batch before it is halved to find the record that fails; absent: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// Models that it may ask.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Topics that it may write to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    /// Whether it keeps state.
    #[serde(default)]
    pub state: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// The longest that one call may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Span>,
    /// What one call may write to its log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Size>,
    /// HTTP calls that run at the same time on one node; absent: 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_concurrency: Option<u32>,
}

impl Function {
    /// The manifest that `PUT /v1/functions/NAME` takes, for a component of this digest.
    pub fn manifest(&self, digest: &str) -> Value {
        let http = self.http.unwrap_or(self.trigger.is_none() || !self.routes.is_empty());
        let mut manifest = json!({"component": digest, "http": http, "routes": self.routes});
        let put = |into: &mut Value, key: &str, value: Option<Value>| {
            if let Some(value) = value {
                into[key] = value;
            }
        };
        let ms = |span: Span| json!(span.0.as_millis() as u64);
        if let Some(trigger) = &self.trigger {
            let mut written = json!({"topic": trigger.topic});
            put(&mut written, "max_records", trigger.max_records.map(Value::from));
            put(&mut written, "max_wait_ms", trigger.max_wait.map(ms));
            put(&mut written, "attempts", trigger.attempts.map(Value::from));
            manifest["trigger"] = written;
        }
        if let Some(grants) = &self.grants {
            manifest["grants"] = json!({"models": grants.models, "topics": grants.topics, "state": grants.state});
        }
        if let Some(limits) = &self.limits {
            let mut written = json!({});
            put(&mut written, "memory_bytes_max", limits.memory.map(|size| size.0.into()));
            put(&mut written, "deadline_ms", limits.deadline.map(ms));
            put(&mut written, "log_bytes_max", limits.log.map(|size| size.0.into()));
            put(&mut written, "http_concurrency", limits.http_concurrency.map(Value::from));
            manifest["limits"] = written;
        }
        put(&mut manifest, "output_partitions", self.output_partitions.map(Value::from));
        put(&mut manifest, "audit", self.audit.map(Value::from));
        manifest
    }

    /// The function as it is deployed, from what `GET /v1/functions/NAME` says of it.
    pub fn deployed(view: &Value) -> Self {
        let spec = view.get("spec").unwrap_or(view);
        let words = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().filter_map(|word| Some(word.as_str()?.to_owned())).collect()
        };
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        let span = |value: &Value| value.as_u64().map(|ms| Span(Duration::from_millis(ms)));
        let trigger = &spec["trigger"];
        let (grants, limits) = (&spec["grants"], &spec["limits"]);
        Self {
            component: spec["component"].as_str().unwrap_or_default().to_owned(),
            trigger: trigger["topic"].as_str().map(|topic| Trigger {
                topic: topic.to_owned(),
                max_records: number(&trigger["max_records"]),
                max_wait: span(&trigger["max_wait_ms"]),
                attempts: number(&trigger["attempts"]),
            }),
            http: spec["http"].as_bool(),
            routes: words(&spec["routes"]),
            grants: Some(Grants {
                models: words(&grants["models"]),
                topics: words(&grants["topics"]),
                state: grants["state"] == true,
            }),
            limits: Some(Limits {
                memory: limits["memory_bytes_max"].as_u64().map(Size),
                deadline: span(&limits["deadline_ms"]),
                log: limits["log_bytes_max"].as_u64().map(Size),
                http_concurrency: number(&limits["http_concurrency"]),
            }),
            output_partitions: number(&spec["output_partitions"]),
            audit: spec["audit"].as_bool(),
        }
    }
}
