//! CreateTopics, CreatePartitions and DeleteTopics: one entry per topic, because each is answered on its own, proposed
//! together.
//!
//! Every topic is replicated to every voter, so a replication factor is accepted up to the number of members and means
//! that number; assignments give the number of partitions and are otherwise not followed.

use std::collections::BTreeMap;

use buttress_core::{
    Code, Entry, TopicChange,
    entry::TopicSettings,
    ledger::{ClusterView, TopicView},
    limits::{PARTITIONS_PER_TOPIC_MAX, TOPIC_NAME_BYTES_MAX},
};
use buttress_wire::kafka::{
    Api, ErrorCode, Uuid,
    create_partitions::{
        CreatePartitionsRequest, CreatePartitionsResponse, CreatePartitionsTopic, CreatePartitionsTopicResult,
    },
    create_topics::{CreatableTopic, CreatableTopicResult, CreateTopicsRequest, CreateTopicsResponse},
    delete_topics::{DeletableTopicResult, DeleteTopicState, DeleteTopicsRequest, DeleteTopicsResponse},
};
use futures::{StreamExt, stream};

use super::{Broker, broker_id, configs, error::Fault, new_topic_id};

/// Proposals of one request that are in the log at the same time.
const PROPOSALS_IN_FLIGHT_MAX: usize = 16;
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
    let mut settings = broker.options.default_settings.clone();
    for config in &topic.configs {
        if config.value.is_none() {
            let text = format!("{} is null, a value is needed", config.name);
            return Err(Fault::new(ErrorCode::INVALID_CONFIG, text));
        }
        configs::set(&broker.options, view, &mut settings, &config.name, config.value.as_deref())?;
    }
    let id = match validate_only {
        true => Uuid::default(),
        false => create(broker, &topic.name, partitions, settings.clone()).await?,
    };
    Ok(CreatableTopicResult {
        name: topic.name.clone(),
        topic_id: id,
        num_partitions: partitions as i32,
        replication_factor: view.members.len() as i16,
        configs: Some(configs::describe_created(&broker.options, &settings)),
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

pub(super) async fn handle_create_partitions(
    broker: &Broker,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    broker.catch_up().await;
    let view = broker.cluster.view();
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for topic in &request.topics {
        *names.entry(topic.name.clone()).or_default() += 1;
    }
    let validate_only = request.validate_only;
    let one = |topic: CreatePartitionsTopic| {
        let repeated = names[&topic.name] > 1;
        let view = &view;
        async move {
            let result = match repeated {
                true => Err(Fault::new(ErrorCode::INVALID_REQUEST, "the request names the topic more than once")),
                false => extend_one(broker, view, &topic, validate_only).await,
            };
            let mut answer = CreatePartitionsTopicResult { name: topic.name, ..CreatePartitionsTopicResult::default() };
            if let Err(fault) = result {
                broker.counters.error(&Api::CREATE_PARTITIONS);
                (answer.error_code, answer.error_message) = (fault.code, fault.message);
            }
            answer
        }
    };
    let results = stream::iter(request.topics).map(one).buffered(PROPOSALS_IN_FLIGHT_MAX).collect().await;
    CreatePartitionsResponse { throttle_time_ms: 0, results }
}

async fn extend_one(
    broker: &Broker,
    view: &ClusterView,
    topic: &CreatePartitionsTopic,
    validate_only: bool,
) -> Result<(), Fault> {
    let found = broker.stream.topic(&topic.name);
    let unknown = || Fault::new(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, format!("there is no topic {:?}", topic.name));
    let present = found.ok_or_else(unknown)?.partitions.len();
    let invalid = |text: String| Fault::new(ErrorCode::INVALID_PARTITIONS, text);
    let wanted = usize::try_from(topic.count).unwrap_or(0);
    if wanted <= present {
        let text = format!("the topic has {present} partitions; {} would not be an increase", topic.count);
        return Err(invalid(text));
    }
    if wanted > PARTITIONS_PER_TOPIC_MAX as usize {
        return Err(invalid(format!("{wanted} partitions are more than the limit of {PARTITIONS_PER_TOPIC_MAX}")));
    }
    if let Some(assignments) = &topic.assignments {
        let bad = |text: String| Fault::new(ErrorCode::INVALID_REPLICA_ASSIGNMENT, text);
        if assignments.len() != wanted - present {
            let text = format!("{} assignments for {} new partitions", assignments.len(), wanted - present);
            return Err(bad(text));
        }
        let members: Vec<i32> = view.members.iter().map(|member| broker_id(member.id)).collect();
        let strangers = |ids: &[i32]| ids.is_empty() || ids.iter().any(|id| !members.contains(id));
        if assignments.iter().any(|a| strangers(&a.broker_ids)) {
            let text = format!("a partition is assigned to no broker or to one that is not among {members:?}");
            return Err(bad(text));
        }
    }
    if validate_only {
        return Ok(());
    }
    let change = TopicChange::Extend { name: topic.name.clone(), partitions: wanted as u32 };
    let extended = broker.ledger.submit(Entry { topics: vec![change], ..Entry::default() }).await;
    extended.map(drop).map_err(|error| match error.code() {
        // Somebody else was faster, with as many partitions or more.
        Code::TOPIC_INVALID => invalid(error.into_error().to_string()),
        _ => error.into_error().into(),
    })
}

pub(super) async fn handle_delete(broker: &Broker, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    broker.catch_up().await;
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
