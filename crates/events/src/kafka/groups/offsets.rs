//! OffsetCommit, OffsetFetch, OffsetDelete: a group's offsets are cursors of the log.
//!
//! All offsets of a request move in one entry, guarded by the revision of the group's record. Where the guard does not hold
//! the group has a newer generation, or another coordinator: the group is asked again, and says which.
//!
//! What a client notes with an offset, its leader epoch and a text, is the cursor's metadata: the epoch in decimal, empty
//! where there is none, a colon, the text.
//!
//! An offset is read behind a barrier, so that a node that does not lead any more gives none that is older than what was
//! committed. Cursors never lie past a partition's end (CURSOR-1), so an offset that is there is refused, alone.

use std::collections::BTreeMap;

use buttress_core::{
    Code, Consistency, Cursor, Entry, Forget, Guard, KeyRange, LogId, Offset,
    ledger::{CursorView, TopicView},
    limits::ENTRY_PARTS_MAX,
};
use buttress_wire::kafka::{
    Api, ErrorCode,
    offset_commit::{
        OffsetCommitRequest, OffsetCommitRequestPartition, OffsetCommitResponse, OffsetCommitResponsePartition,
        OffsetCommitResponseTopic,
    },
    offset_delete::{
        OffsetDeleteRequest, OffsetDeleteResponse, OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
    },
    offset_fetch::{
        OffsetFetchRequest, OffsetFetchResponse, OffsetFetchResponseGroup, OffsetFetchResponsePartition,
        OffsetFetchResponsePartitions, OffsetFetchResponseTopic, OffsetFetchResponseTopics,
    },
};

use super::{
    OFFSET_METADATA_BYTES_MAX, check_group_id,
    coordinator::Standing,
    coordinator_fault, cursor_group,
    group::{Identity, State},
    record,
};
use crate::kafka::{Broker, partition};

/// How often a commit is tried when the group changes meanwhile.
const TRIES_MAX: usize = 3;
/// From this version on several groups are asked for at once.
const FETCH_GROUPS_VERSION: i16 = 8;
/// Before this version an error of the group has no field of its own.
const FETCH_ERROR_VERSION: i16 = 2;
/// Groups of one OffsetFetch.
const FETCH_GROUPS_MAX: usize = 1_000;

fn noted(partition: &OffsetCommitRequestPartition) -> String {
    let text = partition.committed_metadata.as_deref().unwrap_or_default();
    match partition.committed_leader_epoch {
        ..0 => format!(":{text}"),
        epoch => format!("{epoch}:{text}"),
    }
}

/// A partition of a commit: the cursor that stands for it, or what stands against it.
type Placed = (i32, Result<usize, ErrorCode>);

/// Epoch and text.
fn read_noted(metadata: &str) -> (i32, &str) {
    match metadata.split_once(':') {
        Some((epoch, text)) => (epoch.parse().unwrap_or(-1), text),
        None => (-1, metadata),
    }
}

pub(in crate::kafka) async fn commit(broker: &Broker, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let who = Identity {
        member_id: request.member_id,
        instance: request.group_instance_id,
        generation: request.generation_id_or_member_epoch,
    };
    let mut cursors = Vec::new();
    let group = cursor_group(&request.group_id);
    // What stands against a partition alone is known first; the others get their code from the group or the log.
    let mut topics: Vec<(String, Vec<Placed>)> = Vec::new();
    for topic in &request.topics {
        let found = broker.stream.topic(&topic.name);
        let place = |wanted: &OffsetCommitRequestPartition| {
            let known = found.as_ref().and_then(|found| partition(found, wanted.partition_index));
            let placed = match known {
                None => Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION),
                Some(_) if wanted.committed_offset < 0 => Err(ErrorCode::OFFSET_OUT_OF_RANGE),
                Some(_) if wanted.committed_metadata.as_ref().is_some_and(|m| m.len() > OFFSET_METADATA_BYTES_MAX) => {
                    Err(ErrorCode::OFFSET_METADATA_TOO_LARGE)
                }
                Some(known) => {
                    cursors.push(Cursor {
                        group: group.clone(),
                        log: known.log,
                        next: Offset(wanted.committed_offset),
                        metadata: noted(wanted),
                    });
                    Ok(cursors.len() - 1)
                }
            };
            (wanted.partition_index, placed)
        };
        topics.push((topic.name.clone(), topic.partitions.iter().map(place).collect()));
    }
    let codes = match check_group_id(&request.group_id) {
        Ok(()) => move_cursors(broker, &request.group_id, &who, cursors).await,
        Err(code) => Err(code),
    };
    let answer = |(index, placed): (i32, Result<usize, ErrorCode>)| {
        let error_code = match (&codes, placed) {
            // A group that does not take the request at all says so for every partition.
            (Err(code), _) => *code,
            (Ok(_), Err(code)) => code,
            (Ok(codes), Ok(at)) => codes[at],
        };
        if error_code.is_error() {
            broker.counters.error(&Api::OFFSET_COMMIT);
        }
        OffsetCommitResponsePartition { partition_index: index, error_code }
    };
    let topic = |(name, partitions): (String, Vec<_>)| OffsetCommitResponseTopic {
        name,
        partitions: partitions.into_iter().map(answer).collect(),
    };
    OffsetCommitResponse { topics: topics.into_iter().map(topic).collect(), ..OffsetCommitResponse::default() }
}

/// Moves the cursors in one entry; one code per cursor, or one for all.
async fn move_cursors(
    broker: &Broker,
    group: &str,
    who: &Identity,
    cursors: Vec<Cursor>,
) -> Result<Vec<ErrorCode>, ErrorCode> {
    if cursors.len() >= ENTRY_PARTS_MAX {
        return Err(ErrorCode::INVALID_COMMIT_OFFSET_SIZE);
    }
    let key = record::key(group);
    let mut codes = vec![ErrorCode::NONE; cursors.len()];
    let mut life = None;
    for _ in 0..TRIES_MAX {
        let Standing { revision, life: now } = broker.groups.may_commit(group, who.clone()).await?;
        if life.replace(now).is_some_and(|before| before != now) {
            // Refused, and the group was read anew: later commits may be in the log, and this one must not follow them.
            return Err(ErrorCode::NOT_COORDINATOR);
        }
        let good = cursors.iter().zip(&codes).filter(|(_, code)| !code.is_error()).map(|(cursor, _)| cursor.clone());
        let entry = Entry {
            guards: vec![Guard::ModRevision { key: key.clone(), revision }],
            cursors: good.collect(),
            ..Entry::default()
        };
        if entry.cursors.is_empty() {
            return Ok(codes);
        }
        match broker.ledger.submit(entry).await {
            Ok(_) => return Ok(codes),
            Err(error) if error.code() == Code::REFUSED => broker.groups.stale(group, revision).await,
            // Some of them: the entry names one only, and this node has applied what they were held against.
            Err(error) if matches!(error.code(), Code::OFFSET_OUT_OF_RANGE | Code::TOPIC_UNKNOWN) => {
                let ends = ends(&broker.stream.topics());
                for (cursor, code) in cursors.iter().zip(&mut codes) {
                    match ends.get(&cursor.log) {
                        None => *code = ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
                        Some(end) if cursor.next > *end => *code = ErrorCode::OFFSET_OUT_OF_RANGE,
                        Some(_) => {}
                    }
                }
            }
            Err(error) if error.code() == Code::TOO_LARGE => return Err(ErrorCode::INVALID_COMMIT_OFFSET_SIZE),
            Err(error) => {
                tracing::debug!(group, %error, "kafka: offsets cannot be committed");
                return Err(coordinator_fault(&error));
            }
        }
    }
    Err(ErrorCode::COORDINATOR_LOAD_IN_PROGRESS)
}

fn ends(topics: &[TopicView]) -> BTreeMap<LogId, Offset> {
    topics.iter().flat_map(|topic| &topic.partitions).map(|partition| (partition.log, partition.end)).collect()
}

/// One partition's committed offset, in the form of either version.
struct Found {
    index: i32,
    offset: i64,
    epoch: i32,
    metadata: String,
    error: ErrorCode,
}

impl Found {
    fn new(index: i32, position: Option<CursorView>, error: ErrorCode) -> Self {
        match position {
            None => Self { index, offset: -1, epoch: -1, metadata: String::new(), error },
            Some(position) => {
                let (epoch, text) = read_noted(&position.metadata);
                Self { index, offset: position.next.0, epoch, metadata: text.to_owned(), error }
            }
        }
    }
}

type Wanted = Option<Vec<(String, Vec<i32>)>>;

pub(in crate::kafka) async fn fetch(broker: &Broker, version: i16, request: OffsetFetchRequest) -> OffsetFetchResponse {
    let wanted: Vec<(String, Wanted)> = if version < FETCH_GROUPS_VERSION {
        let topics = request.topics.map(|t| t.into_iter().map(|t| (t.name, t.partition_indexes)).collect());
        vec![(request.group_id, topics)]
    } else {
        let topics = |t: Option<Vec<buttress_wire::kafka::offset_fetch::OffsetFetchRequestTopics>>| {
            t.map(|t| t.into_iter().map(|t| (t.name, t.partition_indexes)).collect())
        };
        request.groups.into_iter().map(|g| (g.group_id, topics(g.topics))).collect()
    };
    let barrier = barrier(broker, wanted.len()).await;
    let mut response = OffsetFetchResponse::default();
    for (group, topics) in wanted {
        let error = barrier.and_then(|()| check_group_id(&group)).err().unwrap_or_default();
        if error.is_error() {
            broker.counters.error(&Api::OFFSET_FETCH);
        }
        let found = match error {
            ErrorCode::NONE => found(broker, &group, topics),
            // An error of the whole group is told with every partition where there is no other place for it.
            error if version < FETCH_ERROR_VERSION => {
                let failed = |(name, indexes): (String, Vec<i32>)| {
                    (name, indexes.into_iter().map(|index| Found::new(index, None, error)).collect())
                };
                topics.unwrap_or_default().into_iter().map(failed).collect()
            }
            _ => Vec::new(),
        };
        if version < FETCH_GROUPS_VERSION {
            let partition = |found: Found| OffsetFetchResponsePartition {
                partition_index: found.index,
                committed_offset: found.offset,
                committed_leader_epoch: found.epoch,
                metadata: Some(found.metadata),
                error_code: found.error,
            };
            let topic = |(name, found): (String, Vec<Found>)| OffsetFetchResponseTopic {
                name,
                partitions: found.into_iter().map(partition).collect(),
            };
            response.topics = found.into_iter().map(topic).collect();
            response.error_code = error;
        } else {
            let partition = |found: Found| OffsetFetchResponsePartitions {
                partition_index: found.index,
                committed_offset: found.offset,
                committed_leader_epoch: found.epoch,
                metadata: Some(found.metadata),
                error_code: found.error,
            };
            let topic = |(name, found): (String, Vec<Found>)| OffsetFetchResponseTopics {
                name,
                partitions: found.into_iter().map(partition).collect(),
            };
            let topics = found.into_iter().map(topic).collect();
            response.groups.push(OffsetFetchResponseGroup { group_id: group, topics, error_code: error });
        }
    }
    response
}

/// After it, this node has applied everything that was committed before it began, or does not answer.
async fn barrier(broker: &Broker, groups: usize) -> Result<(), ErrorCode> {
    if groups > FETCH_GROUPS_MAX {
        return Err(ErrorCode::INVALID_REQUEST);
    }
    if !broker.cluster.view().is_leader() {
        return Err(ErrorCode::NOT_COORDINATOR);
    }
    let read = broker.ledger.read(KeyRange::key(record::key("")), 1, Consistency::Linearizable).await;
    match read {
        Ok(_) => Ok(()),
        Err(error) if error.code == Code::NO_LEADER => Err(ErrorCode::NOT_COORDINATOR),
        Err(_) => Err(ErrorCode::COORDINATOR_NOT_AVAILABLE),
    }
}

fn found(broker: &Broker, group: &str, wanted: Wanted) -> Vec<(String, Vec<Found>)> {
    let group = cursor_group(group);
    let Some(wanted) = wanted else {
        let mut positions: BTreeMap<LogId, CursorView> = broker.stream.positions(&group).into_iter().collect();
        if positions.is_empty() {
            return Vec::new();
        }
        let all = |topic: TopicView| {
            let here = topic.partitions.iter().enumerate();
            let found: Vec<_> = here
                .filter_map(|(at, p)| Some(Found::new(at as i32, Some(positions.remove(&p.log)?), ErrorCode::NONE)))
                .collect();
            (!found.is_empty()).then_some((topic.name, found))
        };
        return broker.stream.topics().into_iter().filter_map(all).collect();
    };
    let one = |(name, indexes): (String, Vec<i32>)| {
        let topic = broker.stream.topic(&name);
        let position = |index: i32| {
            let log = partition(topic.as_ref()?, index)?.log;
            broker.stream.position(&group, log)
        };
        // A partition that does not exist has no offset, which is what Kafka says of it as well.
        let found = indexes.into_iter().map(|index| Found::new(index, position(index), ErrorCode::NONE)).collect();
        (name, found)
    };
    wanted.into_iter().map(one).collect()
}

pub(in crate::kafka) async fn delete(broker: &Broker, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let result = try_delete(broker, &request).await;
    let mut response = OffsetDeleteResponse::default();
    match result {
        Ok(topics) => response.topics = topics,
        Err(code) => {
            broker.counters.error(&Api::OFFSET_DELETE);
            response.error_code = code;
        }
    }
    response
}

async fn try_delete(
    broker: &Broker,
    request: &OffsetDeleteRequest,
) -> Result<Vec<OffsetDeleteResponseTopic>, ErrorCode> {
    check_group_id(&request.group_id)?;
    let view = broker.groups.view(&request.group_id).await?.ok_or(ErrorCode::GROUP_ID_NOT_FOUND)?;
    if view.state != State::Empty && view.protocol_type != super::admin::CONSUMER {
        return Err(ErrorCode::NON_EMPTY_GROUP);
    }
    let group = cursor_group(&request.group_id);
    let mut forgets = Vec::new();
    let mut topics = Vec::new();
    for topic in &request.topics {
        let found = broker.stream.topic(&topic.name);
        let is_subscribed =
            view.state != State::Empty && view.subscriptions.iter().any(|s| super::admin::names_topic(s, &topic.name));
        let one = |index: i32| {
            let error_code = match found.as_ref().and_then(|found| partition(found, index)) {
                None => ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
                Some(_) if is_subscribed => ErrorCode::GROUP_SUBSCRIBED_TO_TOPIC,
                Some(partition) => {
                    forgets.push(Forget { group: group.clone(), log: partition.log });
                    ErrorCode::NONE
                }
            };
            OffsetDeleteResponsePartition { partition_index: index, error_code }
        };
        let partitions = topic.partitions.iter().map(|p| p.partition_index).map(one).collect();
        topics.push(OffsetDeleteResponseTopic { name: topic.name.clone(), partitions });
    }
    if forgets.len() >= ENTRY_PARTS_MAX {
        return Err(ErrorCode::INVALID_REQUEST);
    }
    if !forgets.is_empty() {
        let guard = Guard::ModRevision { key: record::key(&request.group_id), revision: view.revision };
        let entry = Entry { guards: vec![guard], forgets, ..Entry::default() };
        broker.ledger.submit(entry).await.map_err(|error| coordinator_fault(&error))?;
    }
    Ok(topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoch_and_text_come_back() {
        for (epoch, text, noted_as) in [(-1, "", ":"), (7, "", "7:"), (0, "a:b", "0:a:b"), (-1, "7:x", ":7:x")] {
            let partition = OffsetCommitRequestPartition {
                committed_leader_epoch: epoch,
                committed_metadata: Some(text.into()),
                ..Default::default()
            };
            assert_eq!(noted(&partition), noted_as);
            assert_eq!(read_noted(noted_as), (epoch, text));
        }
        // What a function or another tool left there.
        assert_eq!(read_noted("plain"), (-1, "plain"));
    }
}
