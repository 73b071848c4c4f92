//! DescribeConfigs, AlterConfigs, IncrementalAlterConfigs, and what a configuration may be when a topic is created.
//!
//! A topic keeps four configurations. All others of Kafka's are shown with Kafka's default, and may be set to that value
//! only: what would be stored and not followed is refused rather than ignored. Three promise no more than what is kept
//! anyway, so any value that stays within it is taken: `min.insync.replicas` up to a majority, because a quorum has every
//! record before it is acknowledged, and `flush.messages` and `flush.ms`, because every record is on disk by then.
//!
//! What belongs to a node is shown as read-only; it is set in the node's configuration.
//!
//! Source of names, types and defaults: Kafka 4.3, `TopicConfig` and `LogConfig`.

use std::collections::BTreeSet;

use buttress_core::{
    Code, Entry, TopicChange,
    entry::TopicSettings,
    ledger::{ClusterView, MemberRole},
    limits::RECORD_BATCH_BYTES_MAX,
};
use buttress_wire::kafka::{
    Api, ErrorCode, alter_configs as alter,
    create_topics::CreatableTopicConfigs,
    describe_configs::{
        DescribeConfigsRequest, DescribeConfigsResource, DescribeConfigsResourceResult, DescribeConfigsResponse,
        DescribeConfigsResult, DescribeConfigsSynonym,
    },
    incremental_alter_configs as incremental,
};

use super::{Broker, Options, broker_id, error::Fault, groups, topics::is_valid_name};

const RETENTION_MS: &str = "retention.ms";
const RETENTION_BYTES: &str = "retention.bytes";
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
const MIN_INSYNC_REPLICAS: &str = "min.insync.replicas";
/// Names the fields that deduplicate JSON records: `machine,seq`.
const SEQUENCE_FIELDS: &str = "buttress.sequence.fields";
/// What a topic keeps.
const KEPT: [&str; 4] = [RETENTION_MS, RETENTION_BYTES, MAX_MESSAGE_BYTES, SEQUENCE_FIELDS];

/// A value's type, on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Boolean = 1,
    String = 2,
    Int = 3,
    Long = 5,
    Double = 6,
    List = 7,
}

/// Kafka's configurations of topics that are not kept, with the value that is served.
const FIXED: &[(&str, &str, Kind)] = &[
    ("cleanup.policy", "delete", Kind::List),
    ("compression.gzip.level", "-1", Kind::Int),
    ("compression.lz4.level", "9", Kind::Int),
    ("compression.type", "producer", Kind::String),
    ("compression.zstd.level", "3", Kind::Int),
    ("delete.retention.ms", "86400000", Kind::Long),
    ("file.delete.delay.ms", "60000", Kind::Long),
    ("flush.messages", "9223372036854775807", Kind::Long),
    ("flush.ms", "9223372036854775807", Kind::Long),
    ("follower.replication.throttled.replicas", "", Kind::List),
    ("index.interval.bytes", "4096", Kind::Int),
    ("leader.replication.throttled.replicas", "", Kind::List),
    ("local.retention.bytes", "-2", Kind::Long),
    ("local.retention.ms", "-2", Kind::Long),
    ("max.compaction.lag.ms", "9223372036854775807", Kind::Long),
    ("message.timestamp.after.max.ms", "3600000", Kind::Long),
    ("message.timestamp.before.max.ms", "9223372036854775807", Kind::Long),
    ("message.timestamp.type", "CreateTime", Kind::String),
    ("min.cleanable.dirty.ratio", "0.5", Kind::Double),
    ("min.compaction.lag.ms", "0", Kind::Long),
    (MIN_INSYNC_REPLICAS, "1", Kind::Int),
    ("preallocate", "false", Kind::Boolean),
    ("remote.copy.disable", "false", Kind::Boolean),
    ("remote.log.delete.on.disable", "false", Kind::Boolean),
    ("remote.storage.enable", "false", Kind::Boolean),
    ("segment.bytes", "1073741824", Kind::Int),
    ("segment.index.bytes", "10485760", Kind::Int),
    ("segment.jitter.ms", "0", Kind::Long),
    ("segment.ms", "604800000", Kind::Long),
    ("unclean.leader.election.enable", "false", Kind::Boolean),
];

/// Where a value comes from, on the wire.
const SOURCE_TOPIC: i8 = 1;
const SOURCE_BROKER: i8 = 4;
const SOURCE_DEFAULT: i8 = 5;

/// What a configuration belongs to, on the wire.
const RESOURCE_TOPIC: i8 = 2;
const RESOURCE_BROKER: i8 = 4;

/// What an incremental change does, on the wire.
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;

/// Resources of one request.
const RESOURCES_MAX: usize = 1_000;
/// How often a change is tried when others change the same topic at the same time.
const TRIES_MAX: usize = 4;

/// Acknowledgements from members that every record has: a majority of the voters.
fn quorum(view: &ClusterView) -> usize {
    view.members.iter().filter(|member| member.role == MemberRole::Voter).count() / 2 + 1
}

/// Sets one configuration, or, without a value, gives it its default.
pub(super) fn set(
    options: &Options,
    view: &ClusterView,
    settings: &mut TopicSettings,
    name: &str,
    value: Option<&str>,
) -> Result<(), Fault> {
    let invalid = |right: &str| {
        let text = format!("{name} is {:?}, {right}", value.unwrap_or("null"));
        Fault::new(ErrorCode::INVALID_CONFIG, text)
    };
    // Kafka's −1 is "without limit".
    let limit = |value: &str| match value.trim().parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(limit) if limit >= 0 => Ok(Some(limit as u64)),
        _ => Err(invalid("not a number from -1 on")),
    };
    let defaults = &options.default_settings;
    match (name, value) {
        (RETENTION_MS, Some(value)) => settings.retention_ms = limit(value)?,
        (RETENTION_MS, None) => settings.retention_ms = defaults.retention_ms,
        (RETENTION_BYTES, Some(value)) => settings.retention_bytes = limit(value)?,
        (RETENTION_BYTES, None) => settings.retention_bytes = defaults.retention_bytes,
        (MAX_MESSAGE_BYTES, Some(value)) => {
            let bytes = value.trim().parse::<u32>().ok().filter(|bytes| *bytes as usize <= RECORD_BATCH_BYTES_MAX);
            let right = || invalid(&format!("not a number up to {RECORD_BATCH_BYTES_MAX}, the largest batch there is"));
            settings.batch_bytes_max = Some(bytes.ok_or_else(right)?);
        }
        (MAX_MESSAGE_BYTES, None) => settings.batch_bytes_max = defaults.batch_bytes_max,
        (SEQUENCE_FIELDS, Some(value)) => {
            let fields = value.split_once(',').map(|(a, b)| (a.trim().to_owned(), b.trim().to_owned()));
            let fields = fields.filter(|(a, b)| !a.is_empty() && !b.is_empty() && a.len() + b.len() <= 256);
            settings.sequence_fields = Some(fields.ok_or_else(|| invalid("not two field names, as in machine,seq"))?);
        }
        (SEQUENCE_FIELDS, None) => settings.sequence_fields = defaults.sequence_fields.clone(),
        (name, value) => {
            let Some((_, only, _)) = FIXED.iter().find(|(known, ..)| *known == name) else {
                let known: Vec<_> = KEPT.into_iter().chain(FIXED.iter().map(|(name, ..)| *name)).collect();
                let text = format!("there is no configuration {name:?} here; known are {}", known.join(", "));
                return Err(Fault::new(ErrorCode::INVALID_CONFIG, text));
            };
            let Some(value) = value else { return Ok(()) };
            let number = value.trim().parse::<i64>().ok();
            let quorum = quorum(view) as i64;
            match name {
                "flush.messages" | "flush.ms" if number.is_some_and(|number| number >= 0) => {}
                MIN_INSYNC_REPLICAS if number.is_some_and(|number| (1..=quorum).contains(&number)) => {}
                MIN_INSYNC_REPLICAS => {
                    let text = format!("more than the {quorum} members that have every acknowledged record");
                    return Err(invalid(&text));
                }
                _ if value.trim() == *only => {}
                _ => return Err(invalid(&format!("only {only:?} is served"))),
            }
        }
    }
    Ok(())
}

/// A configuration as it is in force.
struct Value {
    name: &'static str,
    value: String,
    /// What it would be without anybody's doing.
    default: String,
    kind: Kind,
    is_set: bool,
}

fn values(options: &Options, settings: &TopicSettings) -> Vec<Value> {
    let limit = |limit: Option<u64>| limit.map_or("-1".to_owned(), |limit| limit.to_string());
    let batch = |bytes: Option<u32>| bytes.map_or(options.message_bytes_max.to_string(), |bytes| bytes.to_string());
    let fields = |fields: &Option<(String, String)>| fields.as_ref().map(|(a, b)| format!("{a},{b}"));
    let defaults = &options.default_settings;
    let kept =
        |name, value: String, default: String, kind| Value { name, is_set: value != default, value, default, kind };
    let mut values = vec![
        kept(RETENTION_MS, limit(settings.retention_ms), limit(defaults.retention_ms), Kind::Long),
        kept(RETENTION_BYTES, limit(settings.retention_bytes), limit(defaults.retention_bytes), Kind::Long),
        kept(MAX_MESSAGE_BYTES, batch(settings.batch_bytes_max), batch(defaults.batch_bytes_max), Kind::Int),
    ];
    if let Some(set) = fields(&settings.sequence_fields) {
        let default = fields(&defaults.sequence_fields).unwrap_or_default();
        values.push(kept(SEQUENCE_FIELDS, set, default, Kind::List));
    }
    let fixed = FIXED.iter().map(|(name, value, kind)| {
        let value = match *name {
            "message.timestamp.after.max.ms" => options.timestamp_ahead_max.as_millis().to_string(),
            _ => (*value).to_owned(),
        };
        Value { name, default: value.clone(), value, kind: *kind, is_set: false }
    });
    values.extend(fixed);
    values.sort_by_key(|value| value.name);
    values
}

/// The configurations of a topic that was just created.
pub(super) fn describe_created(options: &Options, settings: &TopicSettings) -> Vec<CreatableTopicConfigs> {
    let config = |value: Value| CreatableTopicConfigs {
        name: value.name.to_owned(),
        value: Some(value.value),
        read_only: false,
        config_source: if value.is_set { SOURCE_TOPIC } else { SOURCE_DEFAULT },
        is_sensitive: false,
    };
    values(options, settings).into_iter().map(config).collect()
}

pub(super) async fn handle_describe(broker: &Broker, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    broker.catch_up().await;
    let synonyms = request.include_synonyms;
    let too_many = request.resources.len() > RESOURCES_MAX;
    let one = |resource: DescribeConfigsResource| {
        let described = match too_many {
            true => Err(Fault::new(ErrorCode::INVALID_REQUEST, format!("more than {RESOURCES_MAX} resources"))),
            false => describe(broker, &resource, synonyms),
        };
        let mut result = DescribeConfigsResult {
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
            ..DescribeConfigsResult::default()
        };
        match described {
            Ok(configs) => result.configs = configs,
            Err(fault) => {
                broker.counters.error(&Api::DESCRIBE_CONFIGS);
                (result.error_code, result.error_message) = (fault.code, fault.message);
            }
        }
        result
    };
    DescribeConfigsResponse { throttle_time_ms: 0, results: request.resources.into_iter().map(one).collect() }
}

fn describe(
    broker: &Broker,
    resource: &DescribeConfigsResource,
    synonyms: bool,
) -> Result<Vec<DescribeConfigsResourceResult>, Fault> {
    // No list, and an empty one, mean all.
    let wanted = resource.configuration_keys.as_deref().unwrap_or_default();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    match resource.resource_type {
        RESOURCE_TOPIC => {
            let settings = topic_settings(broker, &resource.resource_name)?;
            let config = |value: Value| {
                let source = if value.is_set { SOURCE_TOPIC } else { SOURCE_DEFAULT };
                let synonym = |value: &str, source| DescribeConfigsSynonym {
                    name: String::new(),
                    value: Some(value.to_owned()),
                    source,
                };
                let mut chain = Vec::new();
                if synonyms {
                    chain.extend(value.is_set.then(|| synonym(&value.value, SOURCE_TOPIC)));
                    chain.push(synonym(&value.default, SOURCE_DEFAULT));
                    chain.iter_mut().for_each(|synonym| synonym.name = value.name.to_owned());
                }
                DescribeConfigsResourceResult {
                    name: value.name.to_owned(),
                    value: Some(value.value),
                    config_source: source,
                    synonyms: chain,
                    config_type: value.kind as i8,
                    ..DescribeConfigsResourceResult::default()
                }
            };
            let values = values(&broker.options, &settings);
            Ok(values.into_iter().filter(|value| is_wanted(value.name)).map(config).collect())
        }
        RESOURCE_BROKER => {
            check_broker(broker, &resource.resource_name)?;
            let config = |(name, value, kind): (&str, String, Kind)| DescribeConfigsResourceResult {
                name: name.to_owned(),
                value: Some(value),
                read_only: true,
                config_source: SOURCE_BROKER,
                config_type: kind as i8,
                ..DescribeConfigsResourceResult::default()
            };
            let values = broker_values(broker, &resource.resource_name);
            Ok(values.into_iter().filter(|(name, ..)| is_wanted(name)).map(config).collect())
        }
        other => Err(not_served(other)),
    }
}

fn not_served(resource_type: i8) -> Fault {
    let text = format!("resources of type {resource_type} are not served, only topics (2) and brokers (4) are");
    Fault::new(ErrorCode::INVALID_REQUEST, text)
}

fn topic_settings(broker: &Broker, name: &str) -> Result<TopicSettings, Fault> {
    if !is_valid_name(name) {
        return Err(Fault::new(ErrorCode::INVALID_TOPIC_EXCEPTION, format!("{name:?} is no name of a topic")));
    }
    let unknown = || Fault::new(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, format!("there is no topic {name:?}"));
    Ok(broker.stream.topic(name).ok_or_else(unknown)?.settings)
}

/// An empty name stands for all brokers.
fn check_broker(broker: &Broker, name: &str) -> Result<(), Fault> {
    let is_member = |id: i32| broker.cluster.view().members.iter().any(|member| broker_id(member.id) == id);
    if name.is_empty() || name.parse().is_ok_and(is_member) {
        return Ok(());
    }
    Err(Fault::new(ErrorCode::INVALID_REQUEST, format!("{name:?} is not the id of a member of this cluster")))
}

fn broker_values(broker: &Broker, name: &str) -> Vec<(&'static str, String, Kind)> {
    let options = &broker.options;
    let view = broker.cluster.view();
    let limit = |limit: Option<u64>| limit.map_or("-1".to_owned(), |limit| limit.to_string());
    let mut values = vec![
        ("auto.create.topics.enable", options.auto_create_topics.to_string(), Kind::Boolean),
        ("compression.type", "producer".to_owned(), Kind::String),
        ("connections.max.idle.ms", options.idle_timeout.as_millis().to_string(), Kind::Long),
        ("default.replication.factor", view.members.len().to_string(), Kind::Int),
        ("delete.topic.enable", "true".to_owned(), Kind::Boolean),
        ("group.initial.rebalance.delay.ms", options.group_initial_rebalance_delay.as_millis().to_string(), Kind::Int),
        ("group.max.session.timeout.ms", groups::SESSION_MS.end().to_string(), Kind::Int),
        ("group.max.size", groups::MEMBERS_MAX.to_string(), Kind::Int),
        ("group.min.session.timeout.ms", groups::SESSION_MS.start().to_string(), Kind::Int),
        ("log.cleanup.policy", "delete".to_owned(), Kind::List),
        ("log.message.timestamp.type", "CreateTime".to_owned(), Kind::String),
        ("log.retention.bytes", limit(options.default_settings.retention_bytes), Kind::Long),
        ("log.retention.ms", limit(options.default_settings.retention_ms), Kind::Long),
        ("message.max.bytes", options.message_bytes_max.to_string(), Kind::Int),
        (MIN_INSYNC_REPLICAS, quorum(&view).to_string(), Kind::Int),
        ("num.partitions", options.default_partitions.to_string(), Kind::Int),
        ("offset.metadata.max.bytes", groups::OFFSET_METADATA_BYTES_MAX.to_string(), Kind::Int),
        ("offsets.retention.minutes", "10080".to_owned(), Kind::Int),
        ("unclean.leader.election.enable", "false".to_owned(), Kind::Boolean),
    ];
    if !name.is_empty() {
        values.push(("broker.id", name.to_owned(), Kind::Int));
        values.push(("node.id", name.to_owned(), Kind::Int));
        values.sort_by_key(|(name, ..)| *name);
    }
    values
}

/// One change of one configuration.
struct Change {
    name: String,
    operation: i8,
    value: Option<String>,
}

pub(super) async fn handle_alter(broker: &Broker, request: alter::AlterConfigsRequest) -> alter::AlterConfigsResponse {
    broker.catch_up().await;
    let mut response = alter::AlterConfigsResponse::default();
    let too_many = request.resources.len() > RESOURCES_MAX;
    for resource in request.resources {
        let change = |config: alter::AlterableConfig| Change { name: config.name, operation: SET, value: config.value };
        let changes = resource.configs.into_iter().map(change).collect();
        let place = (resource.resource_type, &resource.resource_name[..]);
        let changed = change_one(broker, place, changes, true, request.validate_only, too_many).await;
        let fault = report(broker, &Api::ALTER_CONFIGS, changed);
        response.responses.push(alter::AlterConfigsResourceResponse {
            error_code: fault.code,
            error_message: fault.message,
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
        });
    }
    response
}

pub(super) async fn handle_incremental(
    broker: &Broker,
    request: incremental::IncrementalAlterConfigsRequest,
) -> incremental::IncrementalAlterConfigsResponse {
    broker.catch_up().await;
    let mut response = incremental::IncrementalAlterConfigsResponse::default();
    let too_many = request.resources.len() > RESOURCES_MAX;
    for resource in request.resources {
        let change = |config: incremental::AlterableConfig| Change {
            name: config.name,
            operation: config.config_operation,
            value: config.value,
        };
        let changes = resource.configs.into_iter().map(change).collect();
        let place = (resource.resource_type, &resource.resource_name[..]);
        let changed = change_one(broker, place, changes, false, request.validate_only, too_many).await;
        let fault = report(broker, &Api::INCREMENTAL_ALTER_CONFIGS, changed);
        response.responses.push(incremental::AlterConfigsResourceResponse {
            error_code: fault.code,
            error_message: fault.message,
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
        });
    }
    response
}

fn report(broker: &Broker, api: &Api, result: Result<(), Fault>) -> Fault {
    match result {
        Ok(()) => ErrorCode::NONE.into(),
        Err(fault) => {
            broker.counters.error(api);
            fault
        }
    }
}

/// Changes one resource; with `replace` what is not named gets its default.
async fn change_one(
    broker: &Broker,
    (resource_type, name): (i8, &str),
    changes: Vec<Change>,
    replace: bool,
    validate_only: bool,
    too_many: bool,
) -> Result<(), Fault> {
    if too_many {
        return Err(Fault::new(ErrorCode::INVALID_REQUEST, format!("more than {RESOURCES_MAX} resources")));
    }
    match resource_type {
        RESOURCE_TOPIC => {}
        RESOURCE_BROKER => {
            check_broker(broker, name)?;
            let text = "a node's configurations are set in its configuration file and by its flags";
            return Err(Fault::new(ErrorCode::INVALID_REQUEST, text));
        }
        other => return Err(not_served(other)),
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = changes.iter().find(|change| !seen.insert(change.name.as_str())) {
        return Err(Fault::new(ErrorCode::INVALID_REQUEST, format!("{} is named more than once", twice.name)));
    }
    for _ in 0..TRIES_MAX {
        let from = topic_settings(broker, name)?;
        let mut to = if replace { broker.options.default_settings.clone() } else { from.clone() };
        let view = broker.cluster.view();
        for change in &changes {
            let value = change.value.as_deref();
            match change.operation {
                SET if value.is_none() && !replace => {
                    let text = format!("{} is to be set, but has no value", change.name);
                    return Err(Fault::new(ErrorCode::INVALID_REQUEST, text));
                }
                SET => set(&broker.options, &view, &mut to, &change.name, value)?,
                DELETE => set(&broker.options, &view, &mut to, &change.name, None)?,
                // Of the lists that there are, each has one value.
                APPEND if FIXED.iter().any(|(n, v, k)| *n == change.name && *k == Kind::List && Some(*v) == value) => {}
                _ => {
                    let text = format!("{} is not a list that could be changed by parts", change.name);
                    return Err(Fault::new(ErrorCode::INVALID_CONFIG, text));
                }
            }
        }
        if validate_only || from == to {
            return Ok(());
        }
        let configure = TopicChange::Configure { name: name.to_owned(), from, to };
        match broker.ledger.submit(Entry { topics: vec![configure], ..Entry::default() }).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == Code::REFUSED => {}
            Err(error) => return Err(error.into_error().into()),
        }
    }
    Err(Fault::new(ErrorCode::REQUEST_TIMED_OUT, "others changed the topic at the same time, too often"))
}
