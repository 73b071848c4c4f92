//! The resources of this plane as they lie in the key space: JSON under `/buttress/`.
//!
//! | key | value |
//! |---|---|
//! | `/buttress/functions/<name>` | [`FunctionSpec`] |
//! | `/buttress/models/<name>` | [`ModelSpec`] |
//! | `/buttress/topics/<name>` | [`TopicSpec`], of a topic that lies in an engine of the user's |
//! | `/buttress/owed/<function or model>` | a change whose partitions are not known to be fenced yet ([`crate::deploy`]) |
//! | `/buttress/blobs/<digest>/<n>` | one chunk of a component or model ([`crate::blob`]) |
//!
//! A person writes a [`Manifest`]; deploying turns it into a spec. Unknown fields are errors in a manifest (a typo must
//! not silently mean the default) and are kept out of specs by construction.

use buttress_core::{
    Code, Error, Revision,
    guest::{Grants, GuestLimits},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub const FUNCTIONS_PREFIX: &str = "/buttress/functions/";
pub const MODELS_PREFIX: &str = "/buttress/models/";
pub const BLOBS_PREFIX: &str = "/buttress/blobs/";
pub const TOPICS_PREFIX: &str = "/buttress/topics/";
pub const OWED_PREFIX: &str = "/buttress/owed/";

/// Every batch leaves one record here, and every pushed model a marker; the order inside its one partition is the proof
/// of which model judged what.
pub const AUDIT_TOPIC: &str = "buttress-audit";
/// At 10,000 records/s in batches of about 100 a record of 250 bytes comes 100 times a second: a good 3 hours.
pub const AUDIT_RETENTION_BYTES: u64 = 256 * 1024 * 1024;

/// Names go into topic names (`<name>-dead-letter`), metric labels and paths.
pub const NAME_BYTES_MAX: usize = 63;
/// The largest component that can be deployed; the composition root bounds bodies by it.
pub const COMPONENT_BYTES_MAX: usize = 64 * 1024 * 1024;
pub const MODEL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A longer batch gives nothing: the guest call and the commit are amortised over a few hundred records already.
pub const MAX_RECORDS_LIMIT: usize = 4096;
pub const MAX_RECORDS_DEFAULT: usize = 512;
/// While busy, a runner begins at most one batch in this time, so that a commit carries tens of records instead of one.
/// The first record after a pause never waits.
pub const MAX_WAIT_MS_DEFAULT: u64 = 10;
pub const MAX_WAIT_MS_LIMIT: u64 = 10_000;
pub const DEADLINE_MS_LIMIT: u64 = 60_000;
pub const MEMORY_BYTES_LIMIT: usize = 2 * 1024 * 1024 * 1024;
pub const LOG_BYTES_LIMIT: usize = 1024 * 1024;
pub const HTTP_CONCURRENCY_DEFAULT: usize = 16;
pub const HTTP_CONCURRENCY_LIMIT: usize = 1024;
/// Attempts at a batch before it is bisected.
pub const ATTEMPTS_DEFAULT: u32 = 3;
/// Generations of a model that its resource remembers.
pub const MODEL_HISTORY_MAX: usize = 16;

/// Reserved for the nodes' own topics.
const TOPIC_RESERVED_PREFIX: &str = "buttress-";

/// Paths that other planes serve: a function's route must not shadow them.
const ROUTES_RESERVED: [&str; 9] =
    ["/v1", "/fn", "/events", "/topics", "/healthz", "/readyz", "/metrics", "/brokers", "/consumers"];

/// Which records start a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    pub topic: String,
    /// Most records of one call.
    #[serde(default = "max_records_default")]
    pub max_records: usize,
    /// While busy, at most one batch begins in this time.
    #[serde(default = "max_wait_ms_default")]
    pub max_wait_ms: u64,
    /// Attempts at a batch before it is bisected to find the record that fails.
    #[serde(default = "attempts_default")]
    pub attempts: u32,
}

/// What a component may reach; everything else is denied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrantsSpec {
    pub models: Vec<String>,
    pub topics: Vec<String>,
    pub state: bool,
}

/// What one call may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSpec {
    pub memory_bytes_max: usize,
    pub deadline_ms: u64,
    pub log_bytes_max: usize,
    /// HTTP calls that run at the same time on one node.
    pub http_concurrency: usize,
}

/// What a person writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Optional in the manifest, because the path names the function; if given, both must agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Digest of the component (`sha256:` and 64 hex digits); left out where the component itself comes along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    /// Answers `ANY /fn/<name>/…`.
    #[serde(default)]
    pub http: bool,
    /// Further paths that the function answers, as `/infer`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    #[serde(default)]
    pub grants: GrantsSpec,
    #[serde(default)]
    pub limits: LimitsSpec,
    /// Partitions of granted topics that do not exist yet.
    #[serde(default = "output_partitions_default")]
    pub output_partitions: u32,
    /// One record per batch in the audit topic.
    #[serde(default = "yes")]
    pub audit: bool,
}

/// A deployed function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSpec {
    pub name: String,
    /// Grows by one with every deploy.
    pub version: u64,
    pub component: String,
    pub component_bytes: u64,
    pub trigger: Option<Trigger>,
    pub http: bool,
    pub routes: Vec<String>,
    pub grants: GrantsSpec,
    pub limits: LimitsSpec,
    pub output_partitions: u32,
    pub audit: bool,
    pub created_ms: u64,
}

/// A topic that lies in an engine of the user's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicSpec {
    pub name: String,
    /// "kafka".
    pub engine: String,
    pub partitions: u32,
    /// The fields by which a device's records are known when they come again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence_fields: Option<(String, String)>,
}

/// One generation of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    pub generation: u64,
    pub digest: String,
    pub at_ms: u64,
}

/// A pushed model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSpec {
    pub name: String,
    /// Grows by one with every push of other bytes.
    pub generation: u64,
    pub digest: String,
    pub kind: String,
    pub size: u64,
    pub created_ms: u64,
    /// Earlier generations, newest first, at most [`MODEL_HISTORY_MAX`].
    pub history: Vec<Generation>,
}

fn max_records_default() -> usize {
    MAX_RECORDS_DEFAULT
}

fn max_wait_ms_default() -> u64 {
    MAX_WAIT_MS_DEFAULT
}

fn attempts_default() -> u32 {
    ATTEMPTS_DEFAULT
}

fn output_partitions_default() -> u32 {
    1
}

fn yes() -> bool {
    true
}

impl Default for LimitsSpec {
    fn default() -> Self {
        let limits = GuestLimits::default();
        Self {
            memory_bytes_max: limits.memory_bytes_max,
            deadline_ms: limits.deadline_ms,
            log_bytes_max: limits.log_bytes_max,
            http_concurrency: HTTP_CONCURRENCY_DEFAULT,
        }
    }
}

impl From<&GrantsSpec> for Grants {
    fn from(grants: &GrantsSpec) -> Self {
        Self { models: grants.models.clone(), topics: grants.topics.clone(), state: grants.state }
    }
}

impl From<&LimitsSpec> for GuestLimits {
    fn from(limits: &LimitsSpec) -> Self {
        Self {
            memory_bytes_max: limits.memory_bytes_max,
            deadline_ms: limits.deadline_ms,
            log_bytes_max: limits.log_bytes_max,
        }
    }
}

pub fn function_key(name: &str) -> Bytes {
    format!("{FUNCTIONS_PREFIX}{name}").into()
}

pub fn model_key(name: &str) -> Bytes {
    format!("{MODELS_PREFIX}{name}").into()
}

pub fn topic_key(name: &str) -> Bytes {
    format!("{TOPICS_PREFIX}{name}").into()
}

pub fn owed_key(resource: &Bytes) -> Bytes {
    let name = resource.strip_prefix(b"/buttress/").unwrap_or(resource);
    [OWED_PREFIX.as_bytes(), name].concat().into()
}

/// The group whose cursors say how far the function has come.
pub fn group(function: &str) -> String {
    format!("fn:{function}")
}

/// The state space of one partition of a function. A key's records lie in one partition, so this is also the function's
/// state of that key; and because only the holder of the partition's cursor writes it, reads need no guard of their own.
pub fn state_space(function: &str, partition: i32) -> String {
    format!("fn:{function}/{partition}")
}

pub fn dead_letter_topic(function: &str) -> String {
    format!("{function}-dead-letter")
}

/// # Errors
/// `BAD_REQUEST` where `name` does not fit into paths, topic names and metric labels.
pub fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let fits = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-');
    if fits {
        return Ok(());
    }
    Err(Error::new(Code::BAD_REQUEST, format!("{what} name '{}' is not valid", shown(name)))
        .hint(format!("use up to {NAME_BYTES_MAX} lower-case letters, digits and '-', not starting with '-'")))
}

/// # Errors
/// `BAD_REQUEST` where it is not `sha256:` and 64 lower-case hex digits.
pub fn check_digest(digest: &str) -> Result<(), Error> {
    let hex = digest.strip_prefix("sha256:");
    if hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))) {
        return Ok(());
    }
    Err(Error::new(Code::BAD_REQUEST, format!("'{}' is not a digest", shown(digest)))
        .hint("PUT /v1/blobs answers the digest of its body, as sha256:<64 hex digits>"))
}

fn check_topic(what: &str, topic: &str) -> Result<(), Error> {
    let fits = !topic.is_empty()
        && topic.len() <= buttress_core::limits::TOPIC_NAME_BYTES_MAX
        && topic != "."
        && topic != ".."
        && topic.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if !fits {
        return Err(Error::new(Code::TOPIC_INVALID, format!("{what} '{}' is not a topic name", shown(topic)))
            .hint("use letters, digits, '.', '_' and '-'"));
    }
    if topic.starts_with(TOPIC_RESERVED_PREFIX) {
        return Err(Error::new(Code::TOPIC_INVALID, format!("{what} '{topic}' is reserved"))
            .hint(format!("topics that start with '{TOPIC_RESERVED_PREFIX}' belong to the nodes")));
    }
    Ok(())
}

/// Cuts what a stranger sent to a length that fits into a message.
fn shown(text: &str) -> String {
    const SHOWN_CHARS: usize = 80;
    let mut cut: String = text.chars().take(SHOWN_CHARS).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

impl Manifest {
    /// # Errors
    /// `BAD_REQUEST` with the field and what would be right.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(json).map_err(|e| {
            Error::new(Code::BAD_REQUEST, format!("the manifest is not valid: {e}"))
                .hint(r#"a manifest is as {"trigger":{"topic":"telemetry"},"grants":{"topics":["anomalies"]}}"#)
        })
    }

    /// # Errors
    /// `BAD_REQUEST` or `TOPIC_INVALID`, naming the field.
    pub fn check(&self, name: &str) -> Result<(), Error> {
        check_name("function", name)?;
        if let Some(inner) = &self.name
            && inner != name
        {
            return Err(Error::new(
                Code::BAD_REQUEST,
                format!("the manifest names '{}', the path names '{name}'", shown(inner)),
            )
            .hint("leave 'name' out of the manifest, or make both the same"));
        }
        if let Some(digest) = &self.component {
            check_digest(digest)?;
        }
        let bounded = |field: &str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(Error::new(Code::BAD_REQUEST, format!("{field} is {value}"))
                .hint(format!("give a number from {min} to {max}")))
        };
        if let Some(trigger) = &self.trigger {
            check_topic("trigger.topic", &trigger.topic)?;
            bounded("trigger.max_records", trigger.max_records as u64, 1, MAX_RECORDS_LIMIT as u64)?;
            bounded("trigger.max_wait_ms", trigger.max_wait_ms, 0, MAX_WAIT_MS_LIMIT)?;
            bounded("trigger.attempts", trigger.attempts.into(), 1, 100)?;
        }
        if self.trigger.is_none() && !self.http && self.routes.is_empty() {
            return Err(Error::new(Code::BAD_REQUEST, "nothing would ever call the function")
                .hint(r#"give "trigger":{"topic":…}, "http":true or "routes":["/…"]"#));
        }
        bounded("limits.memory_bytes_max", self.limits.memory_bytes_max as u64, 65_536, MEMORY_BYTES_LIMIT as u64)?;
        bounded("limits.deadline_ms", self.limits.deadline_ms, 1, DEADLINE_MS_LIMIT)?;
        bounded("limits.log_bytes_max", self.limits.log_bytes_max as u64, 0, LOG_BYTES_LIMIT as u64)?;
        bounded("limits.http_concurrency", self.limits.http_concurrency as u64, 1, HTTP_CONCURRENCY_LIMIT as u64)?;
        bounded(
            "output_partitions",
            self.output_partitions.into(),
            1,
            buttress_core::limits::PARTITIONS_PER_TOPIC_MAX.into(),
        )?;
        for model in &self.grants.models {
            check_name("model", model)?;
        }
        for topic in &self.grants.topics {
            check_topic("grants.topics", topic)?;
        }
        for route in &self.routes {
            check_route(route)?;
        }
        Ok(())
    }

    pub fn into_spec(self, name: &str, version: u64, component: String, bytes: u64, now_ms: u64) -> FunctionSpec {
        FunctionSpec {
            name: name.to_owned(),
            version,
            component,
            component_bytes: bytes,
            trigger: self.trigger,
            http: self.http,
            routes: self.routes,
            grants: self.grants,
            limits: self.limits,
            output_partitions: self.output_partitions,
            audit: self.audit,
            created_ms: now_ms,
        }
    }
}

fn check_route(route: &str) -> Result<(), Error> {
    let fits = route.len() > 1
        && route.len() <= 256
        && route.starts_with('/')
        && !route.ends_with('/')
        && route.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
    if !fits {
        return Err(Error::new(Code::BAD_REQUEST, format!("route '{}' is not valid", shown(route)))
            .hint("a route is a path as /infer, without query and without '/' at its end"));
    }
    for reserved in ROUTES_RESERVED {
        if route == reserved || route.strip_prefix(reserved).is_some_and(|rest| rest.starts_with('/')) {
            return Err(Error::new(
                Code::BAD_REQUEST,
                format!("route '{route}' lies under '{reserved}', which a node serves"),
            )
            .hint(r#"choose another path, or use "http":true and /fn/<name>/…"#));
        }
    }
    Ok(())
}

impl FunctionSpec {
    pub fn handles_http(&self) -> bool {
        self.http || !self.routes.is_empty()
    }

    /// Whether deploying `other` would change nothing but version and time.
    pub fn same_as(&self, other: &Self) -> bool {
        let mut other = other.clone();
        other.version = self.version;
        other.created_ms = self.created_ms;
        *self == other
    }
}

impl ModelSpec {
    /// The generation after `self` with other bytes.
    pub fn history_with_current(&self) -> Vec<Generation> {
        let current = Generation { generation: self.generation, digest: self.digest.clone(), at_ms: self.created_ms };
        std::iter::once(current).chain(self.history.iter().cloned()).take(MODEL_HISTORY_MAX).collect()
    }
}

/// A resource with the revision that last changed it, which is what entries guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T> {
    pub spec: T,
    pub revision: Revision,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(manifest: &str) -> String {
        match Manifest::parse(manifest.as_bytes()).and_then(|m| m.check("f").map(|()| m)) {
            Ok(_) => "ok".into(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn a_manifest_says_what_is_wrong_with_it() {
        let cases = [
            r#"{"trigger":{"topic":"t"}}"#,
            r#"{"trigger":{"topic":"t"},"http":true,"routes":["/infer"]}"#,
            r#"{}"#,
            r#"{"triger":{"topic":"t"}}"#,
            r#"{"trigger":{"topic":"a b"}}"#,
            r#"{"trigger":{"topic":"buttress-audit"}}"#,
            r#"{"trigger":{"topic":"t","max_records":0}}"#,
            r#"{"trigger":{"topic":"t"},"name":"g"}"#,
            r#"{"trigger":{"topic":"t"},"component":"sha256:12"}"#,
            r#"{"routes":["/v1/functions"]}"#,
            r#"{"routes":["infer"]}"#,
            r#"{"http":true,"limits":{"deadline_ms":0}}"#,
            r#"{"http":true,"grants":{"models":["A B"]}}"#,
            r#"not json"#,
        ];
        let transcript: String =
            cases.iter().map(|c| format!("{c}\n    {}\n", check(c).replace('\n', "\n    "))).collect();
        expect_test::expect_file!["../testdata/manifests.txt"].assert_eq(&transcript);
    }
}
