//! Metadata: brokers, topics, leaders. Creates topics where request and options both allow it.

use buttress_core::ledger::{ClusterView, TopicView};
use buttress_wire::kafka::{
    Api, ErrorCode, Uuid,
    metadata::{
        MetadataBroker, MetadataPartition, MetadataRequest, MetadataRequestTopic, MetadataResponse, MetadataTopic,
    },
};

use super::{Broker, broker_id, endpoints, error::Fault, leader, topics};

pub(super) async fn handle(broker: &Broker, version: i16, request: MetadataRequest) -> MetadataResponse {
    let mut wanted = request.topics;
    if version == 0 && wanted.as_ref().is_some_and(Vec::is_empty) {
        wanted = None;
    }
    let may_create = broker.options.auto_create_topics && request.allow_auto_topic_creation;
    let mut found = Vec::new();
    match wanted {
        None => found.extend(broker.stream.topics().into_iter().map(Ok)),
        Some(wanted) => {
            for topic in wanted {
                found.push(find(broker, topic, may_create).await);
            }
        }
    }
    // Looked at after topics may have been created, so that leader and epoch are as new as they.
    let view = broker.cluster.view();
    let broker_of = |e: buttress_wire::kafka::fetch::NodeEndpoint| MetadataBroker {
        node_id: e.node_id,
        host: e.host,
        port: e.port,
        rack: None,
    };
    let answer = |topic: Result<TopicView, MetadataTopic>| match topic {
        Ok(topic) => describe(&view, topic),
        Err(topic) => {
            broker.counters.error(&Api::METADATA);
            topic
        }
    };
    MetadataResponse {
        brokers: endpoints(&view).into_iter().map(broker_of).collect(),
        cluster_id: Some(view.cluster_id.clone()),
        controller_id: view.leader.map_or(-1, broker_id),
        topics: found.into_iter().map(answer).collect(),
        ..MetadataResponse::default()
    }
}

async fn find(broker: &Broker, wanted: MetadataRequestTopic, may_create: bool) -> Result<TopicView, MetadataTopic> {
    let Some(name) = wanted.name else {
        let unknown = || MetadataTopic {
            error_code: ErrorCode::UNKNOWN_TOPIC_ID,
            topic_id: wanted.topic_id,
            // Null is for version 12 on; before, a topic cannot be asked for by its id alone.
            name: None,
            ..MetadataTopic::default()
        };
        return broker.topic_by_id(wanted.topic_id).ok_or_else(unknown);
    };
    if let Some(topic) = broker.stream.topic(&name) {
        return Ok(topic);
    }
    let code = if !topics::is_valid_name(&name) {
        ErrorCode::INVALID_TOPIC_EXCEPTION
    } else if !may_create {
        ErrorCode::UNKNOWN_TOPIC_OR_PARTITION
    } else {
        let options = &broker.options;
        match topics::create(broker, &name, options.default_partitions, options.default_settings.clone()).await {
            // Another request was faster; that is as good.
            Ok(_) | Err(Fault { code: ErrorCode::TOPIC_ALREADY_EXISTS, .. }) => match broker.stream.topic(&name) {
                Some(topic) => return Ok(topic),
                // Committed, but not yet applied on this node: the client asks again.
                None => ErrorCode::LEADER_NOT_AVAILABLE,
            },
            Err(fault) if fault.code == ErrorCode::NOT_LEADER_OR_FOLLOWER => ErrorCode::LEADER_NOT_AVAILABLE,
            Err(fault) => {
                tracing::warn!(topic = name, error = ?fault, "kafka: a topic cannot be created on demand");
                fault.code
            }
        }
    };
    Err(MetadataTopic { error_code: code, name: Some(name), ..MetadataTopic::default() })
}

fn describe(view: &ClusterView, topic: TopicView) -> MetadataTopic {
    let leader = leader(view);
    let nodes: Vec<i32> = view.members.iter().map(|member| broker_id(member.id)).collect();
    let partition = |index: usize| MetadataPartition {
        error_code: if leader.leader_id < 0 { ErrorCode::LEADER_NOT_AVAILABLE } else { ErrorCode::NONE },
        partition_index: index as i32,
        leader_id: leader.leader_id,
        leader_epoch: leader.leader_epoch,
        replica_nodes: nodes.clone(),
        // Which of them keep up is consensus's business; all of them are replicas.
        isr_nodes: nodes.clone(),
        offline_replicas: Vec::new(),
    };
    MetadataTopic {
        name: Some(topic.name),
        topic_id: Uuid(topic.id),
        partitions: (0..topic.partitions.len()).map(partition).collect(),
        ..MetadataTopic::default()
    }
}
