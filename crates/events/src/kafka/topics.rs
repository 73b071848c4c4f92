//! CreateTopics and DeleteTopics: one entry per topic, because each is answered on its own, proposed together.
//!
//! Every topic is replicated to every voter, so a replication factor is accepted up to the number of members and means
//! that number; assignments give the number of partitions and are otherwise not followed. A configuration that is not
//! known here is refused rather than ignored.

use std::collections::BTreeMap;

use buttress_core::{
    Entry, TopicChange,
    entry::TopicSettings,
    ledger::{ClusterView, TopicView},
    limits::{PARTITIONS_PER_TOPIC_MAX, TOPIC_NAME_BYTES_MAX},
};
use buttress_wire::kafka::{
    Api, ErrorCode, Uuid,
    create_topics::{
        CreatableTopic, CreatableTopicConfig, CreatableTopicConfigs, CreatableTopicResult, CreateTopicsRequest,
        CreateTopicsResponse,
    },
    delete_topics::{DeletableTopicResult, DeleteTopicState, DeleteTopicsRequest, DeleteTopicsResponse},
};
use futures::{StreamExt, stream};

use super::{Broker, broker_id, error::Fault, new_topic_id};

/// Proposals of one request that are in the log at the same time.
const PROPOSALS_IN_FLIGHT_MAX: usize = 16;
/// Names the fields that deduplicate JSON records: `machine,seq`.
const SEQUENCE_FIELDS: &str = "buttress.sequence.fields";
/// Kafka's configurations of which we serve exactly one value.
const FIXED: &[(&str, &str)] = &[
    ("cleanup.policy", "delete"),
    ("compression.type", "producer"),
    ("message.timestamp.type", "CreateTime"),
    ("unclean.leader.election.enable", "false"),
];
/// Where a configuration's value comes from, on the wire.
const SOURCE_TOPIC: i8 = 1;
const SOURCE_DEFAULT: i8 = 5;

/// Kafka's rule: 1 to 249 of `[a-zA-Z0-9._-]`, neither `.` nor `..`.
pub(super) fn is_valid_name(name: &str) -> bool {
    (1..=TOPIC_NAME_BYTES_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Creates a topic and answers with its id.
pub(super) async fn create(
    broker: &Broker,
    name: &str,
    partitions: u32,
    settings: TopicSettings,
) -> Result<Uuid, Fault> {
    let id = new_topic_id();
    let change = TopicChange::Create { name: name.to_owned(), id, partitions, settings };
    let entry = Entry { topics: vec![change], ..Entry::default() };
    broker.ledger.submit(entry).await.map_err(|error| Fault::from(error.into_error()))?;
    Ok(Uuid(id))
}

pub(super) async fn handle_create(broker: &Broker, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let view = broker.cluster.view();
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for topic in &request.topics {
        *names.entry(topic.name.clone()).or_default() += 1;
    }
    let validate_only = request.validate_only;
    let one = |topic: CreatableTopic| {
        let repeated = names[&topic.name] > 1;
        let view = &view;
        async move {
            let result = match repeated {
                true => Err(Fault::new(ErrorCode::INVALID_REQUEST, "the request names the topic more than once")),
                false => create_one(broker, view, &topic, validate_only).await,
            };
            result.unwrap_or_else(|fault| {
                broker.counters.error(&Api::CREATE_TOPICS);
                CreatableTopicResult {
                    name: topic.name,
                    error_code: fault.code,
                    error_message: fault.message,
                    ..CreatableTopicResult::default()
                }
            })
        }
    };
    let topics = stream::iter(request.topics).map(one).buffered(PROPOSALS_IN_FLIGHT_MAX).collect().await;
    CreateTopicsResponse { throttle_time_ms: 0, topics }
}

async fn create_one(
    broker: &Broker,
    view: &ClusterView,
    topic: &CreatableTopic,
    validate_only: bool,
) -> Result<CreatableTopicResult, Fault> {
    if !is_valid_name(&topic.name) {
        let text = format!("the topic name {:?} is not 1 to {TOPIC_NAME_BYTES_MAX} of [a-zA-Z0-9._-]", topic.name);
        return Err(Fault::new(ErrorCode::INVALID_TOPIC_EXCEPTION, text));
    }
    if broker.stream.topic(&topic.name).is_some() {
        return Err(Fault::new(ErrorCode::TOPIC_ALREADY_EXISTS, format!("the topic {:?} exists", topic.name)));
    }
    let partitions = partitions(broker, view, topic)?;
    let settings = settings(&broker.options.default_settings, &topic.configs)?;
    let id = match validate_only {
        true => Uuid::default(),
        false => create(broker, &topic.name, partitions, settings.clone()).await?,
    };
    Ok(CreatableTopicResult {
        name: topic.name.clone(),
        topic_id: id,
        num_partitions: partitions as i32,
        replication_factor: view.members.len() as i16,
        configs: Some(describe(&settings, &topic.configs)),
        ..CreatableTopicResult::default()
    })
}

fn partitions(broker: &Broker, view: &ClusterView, topic: &CreatableTopic) -> Result<u32, Fault> {
    let members: Vec<i32> = view.members.iter().map(|member| broker_id(member.id)).collect();
    if !topic.assignments.is_empty() {
        if topic.num_partitions != -1 || topic.replication_factor != -1 {
            let text = "with assignments, num_partitions and replication_factor must be -1";
            return Err(Fault::new(ErrorCode::INVALID_REQUEST, text));
        }
        let mut indexes: Vec<i32> = topic.assignments.iter().map(|a| a.partition_index).collect();
        indexes.sort_unstable();
        if indexes.iter().enumerate().any(|(at, index)| at as i32 != *index) {
            let text = "the assigned partitions are not 0, 1, 2 and so on";
            return Err(Fault::new(ErrorCode::INVALID_REPLICA_ASSIGNMENT, text));
        }
        let strangers = |ids: &[i32]| ids.is_empty() || ids.iter().any(|id| !members.contains(id));
        if topic.assignments.iter().any(|a| strangers(&a.broker_ids)) {
            let text = format!("a partition is assigned to no broker or to one that is not among {members:?}");
            return Err(Fault::new(ErrorCode::INVALID_REPLICA_ASSIGNMENT, text));
        }
    } else if topic.replication_factor != -1 && !(1..=members.len() as i16).contains(&topic.replication_factor) {
        let text = format!(
            "replication_factor is {}, but the cluster has {} members",
            topic.replication_factor,
            members.len()
        );
        return Err(Fault::new(ErrorCode::INVALID_REPLICATION_FACTOR, text));
    }
    let partitions = match (topic.assignments.len(), topic.num_partitions) {
        (0, -1) => broker.options.default_partitions,
        (0, partitions) => u32::try_from(partitions).unwrap_or(0),
        (assigned, _) => assigned as u32,
    };
    if !(1..=PARTITIONS_PER_TOPIC_MAX).contains(&partitions) {
        let text = format!("num_partitions is {}, not 1 to {PARTITIONS_PER_TOPIC_MAX}", topic.num_partitions);
        return Err(Fault::new(ErrorCode::INVALID_PARTITIONS, text));
    }
    Ok(partitions)
}

fn settings(defaults: &TopicSettings, configs: &[CreatableTopicConfig]) -> Result<TopicSettings, Fault> {
    let mut settings = defaults.clone();
    for config in configs {
        let invalid = |right: &str| {
            let text = format!("{} is {:?}, {right}", config.name, config.value.as_deref().unwrap_or("null"));
            Fault::new(ErrorCode::INVALID_CONFIG, text)
        };
        let value = config.value.as_deref().ok_or_else(|| invalid("a value is needed"))?;
        // Kafka's −1 is "without limit".
        let limit = || match value.trim().parse::<i64>() {
            Ok(-1) => Ok(None),
            Ok(limit) if limit >= 0 => Ok(Some(limit as u64)),
            _ => Err(invalid("not a number from -1 on")),
        };
        match config.name.as_str() {
            "retention.ms" => settings.retention_ms = limit()?,
            "retention.bytes" => settings.retention_bytes = limit()?,
            SEQUENCE_FIELDS => {
                let fields = value.split_once(',').map(|(a, b)| (a.trim().to_owned(), b.trim().to_owned()));
                let fields = fields.filter(|(a, b)| !a.is_empty() && !b.is_empty() && a.len() + b.len() <= 256);
                settings.sequence_fields =
                    Some(fields.ok_or_else(|| invalid("not two field names, as in machine,seq"))?);
            }
            name => match FIXED.iter().find(|(known, _)| *known == name) {
                Some((_, only)) if *only == value => {}
                Some((_, only)) => return Err(invalid(&format!("only {only:?} is served"))),
                None => {
                    let known: Vec<_> = ["retention.ms", "retention.bytes", SEQUENCE_FIELDS]
                        .into_iter()
                        .chain(FIXED.iter().map(|(name, _)| *name))
                        .collect();
                    let text = format!("there is no configuration {name:?} here; known are {}", known.join(", "));
                    return Err(Fault::new(ErrorCode::INVALID_CONFIG, text));
                }
            },
        }
    }
    Ok(settings)
}

/// The topic's configurations as they are in force.
fn describe(settings: &TopicSettings, asked: &[CreatableTopicConfig]) -> Vec<CreatableTopicConfigs> {
    let limit = |limit: Option<u64>| limit.map_or("-1".to_owned(), |l| l.to_string());
    let mut values =
        vec![("retention.ms", limit(settings.retention_ms)), ("retention.bytes", limit(settings.retention_bytes))];
    values.extend(settings.sequence_fields.iter().map(|(a, b)| (SEQUENCE_FIELDS, format!("{a},{b}"))));
    values.extend(FIXED.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let config = |(name, value): (&str, String)| CreatableTopicConfigs {
        name: name.to_owned(),
        value: Some(value),
        read_only: false,
        config_source: if asked.iter().any(|c| c.name == name) { SOURCE_TOPIC } else { SOURCE_DEFAULT },
        is_sensitive: false,
    };
    values.into_iter().map(config).collect()
}

pub(super) async fn handle_delete(broker: &Broker, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let by_name = |name| DeleteTopicState { name: Some(name), topic_id: Uuid::default() };
    let wanted: Vec<_> = request.topics.into_iter().chain(request.topic_names.into_iter().map(by_name)).collect();
    let one = |wanted: DeleteTopicState| async move {
        let mut result =
            DeletableTopicResult { name: wanted.name, topic_id: wanted.topic_id, ..DeletableTopicResult::default() };
        if let Err(fault) = delete_one(broker, &mut result).await {
            broker.counters.error(&Api::DELETE_TOPICS);
            (result.error_code, result.error_message) = (fault.code, fault.message);
        }
        result
    };
    let responses = stream::iter(wanted).map(one).buffered(PROPOSALS_IN_FLIGHT_MAX).collect().await;
    DeleteTopicsResponse { throttle_time_ms: 0, responses }
}

async fn delete_one(broker: &Broker, result: &mut DeletableTopicResult) -> Result<(), Fault> {
    let topic: TopicView = match &result.name {
        Some(name) => broker.stream.topic(name).ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?,
        None => broker.topic_by_id(result.topic_id).ok_or(ErrorCode::UNKNOWN_TOPIC_ID)?,
    };
    (result.name, result.topic_id) = (Some(topic.name.clone()), Uuid(topic.id));
    let entry = Entry { topics: vec![TopicChange::Delete { name: topic.name }], ..Entry::default() };
    broker.ledger.submit(entry).await.map_err(|error| Fault::from(error.into_error()))?;
    Ok(())
}
