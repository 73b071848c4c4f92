//! Who may move one group's cursor on one partition, and how a commit is made.
//!
//! A session is one transactional id, `PREFIX.GROUP.TOPIC.PARTITION`. To claim it is to initialise its producer: Kafka then
//! ends whatever transaction an earlier holder has left, and refuses that holder from there on. Only afterwards are the
//! position and the state read, so what a session knows stays true for as long as it is not refused. Guards on its cursor are
//! therefore held against what it knows; that they are right is Kafka's fencing, not a read.
//!
//! A commit, with transactions of version 2 (KIP-890):
//!
//! 1. outputs and changes of the state are produced, a batch for each partition at a time, with the producer's epoch and
//!    sequence numbers; what is sent again after a fault is recognised by them;
//! 2. the group's offset is added to the transaction;
//! 3. `EndTxn` commits. Its answer has the producer's next epoch, with which the next transaction begins.
//!
//! | what happens | what follows |
//! |---|---|
//! | a broker does not answer, or does not lead any more | the same request again, to whoever leads |
//! | Kafka refuses before 3 | the transaction is aborted; the session is given up |
//! | the epoch is not the newest | somebody else has claimed; the session is given up |
//! | no answer to 3 until the deadline, or a refusal after a lost answer | the outcome is unknown (`BT0102`); the session is given up |
//!
//! A session that is given up is claimed again by whoever still holds the partition. The claim waits for the open transaction
//! to end, and reads where it has ended: so an unknown outcome becomes known, and no record is handled twice.

use std::{collections::HashMap, time::Duration};

use buttress_core::{
    Append, AppendOutcome, Code, Error, Offset, SubmitError,
    tenure::{Came, Fate, Next, Told},
};
use buttress_wire::{
    kafka::{
        ErrorCode,
        end_txn::{EndTxnRequest, EndTxnResponse},
        find_coordinator::{KEY_TYPE_GROUP, KEY_TYPE_TRANSACTION},
        init_producer_id::{InitProducerIdRequest, InitProducerIdResponse},
        offset_fetch::{OffsetFetchRequest, OffsetFetchRequestGroup, OffsetFetchRequestTopics, OffsetFetchResponse},
        produce::{ProducePartition, ProduceRequest, ProduceResponse, ProduceTopic},
        txn_offset_commit::{
            TxnOffsetCommitPartition, TxnOffsetCommitRequest, TxnOffsetCommitResponse, TxnOffsetCommitTopic,
        },
    },
    records::{BatchView, Producer},
};
use bytes::Bytes;

use super::{
    client::{Client, Failure},
    errors,
};
use crate::patience::Patience;

/// The batches of one partition in a commit, in their order.
pub(super) struct Target {
    pub(super) topic: String,
    pub(super) partition: i32,
    /// Where in the entry each batch stands; `None` for the state's.
    pub(super) batches: Vec<(Option<usize>, BatchView)>,
}

/// A cursor that is moved.
pub(super) struct Move {
    pub(super) group: String,
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) next: Offset,
    pub(super) metadata: String,
}

/// A producer with a transactional id.
pub(super) struct Session {
    pub(super) transactional_id: String,
    producer_id: i64,
    epoch: i16,
    deadline: Duration,
    fate: Fate,
    /// Kafka has refused it, or its last outcome is unknown.
    pub(super) lost: Option<Error>,
}

/// How an attempt has ended that may be followed by another.
enum Step<T> {
    Done(T),
    /// Kafka asks to come again, or did not answer.
    Again(Error),
    Failed(Error),
}

fn step<T>(failure: Failure) -> Step<T> {
    match failure {
        Failure::Refused(error) => Step::Failed(error),
        other => Step::Again(other.into_error()),
    }
}

impl Session {
    /// Claims a transactional id: ends what an earlier holder has left open, and fences it.
    ///
    /// # Errors
    /// What Kafka answers, or that it does not within the deadline.
    pub(super) async fn claim(
        client: &Client,
        transactional_id: String,
        transaction_max: Duration,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let request = InitProducerIdRequest {
            transactional_id: Some(transactional_id.clone()),
            transaction_timeout_ms: i32::try_from(transaction_max.as_millis()).unwrap_or(i32::MAX),
            ..InitProducerIdRequest::default()
        };
        let mut patience = Patience::new(deadline);
        loop {
            let asked = ask_coordinator(
                client,
                KEY_TYPE_TRANSACTION,
                &transactional_id,
                4,
                &request,
                |answer: &InitProducerIdResponse| answer.error_code,
            );
            match asked.await {
                Step::Done(answer) => {
                    let InitProducerIdResponse { producer_id, producer_epoch: epoch, .. } = answer;
                    let fate = Fate::claimed();
                    return Ok(Self { transactional_id, producer_id, epoch, deadline, fate, lost: None });
                }
                Step::Again(_) if patience.pause().await => {}
                Step::Again(error) | Step::Failed(error) => return Err(error),
            }
        }
    }

    /// Makes one transaction of it. After an error the session is lost.
    pub(super) async fn commit(
        &mut self,
        client: &Client,
        targets: &[Target],
        appends: &[Append],
        moved: Option<&Move>,
    ) -> Result<Vec<AppendOutcome>, SubmitError> {
        if let Some(error) = &self.lost {
            return Err(SubmitError::Failed(error.clone()));
        }
        assert!(self.fate.begin(), "a session that is not lost has a claim");
        // A caller that goes away in the middle leaves a transaction of which nobody knows how far it is.
        self.lose(Error::new(Code::TIMEOUT, "a commit was given up while it was on its way"));
        let prepared = self.prepare(client, targets, appends.len(), moved).await;
        let told = prepared.as_ref().map_or_else(refused, |_| Told::Done);
        let ended = match self.fate.prepared(told) {
            Next::End { commit } => self.end(client, commit).await,
            _ => Ok(()),
        };
        match prepared.and_then(|outcomes| ended.map(|()| outcomes)) {
            Ok(outcomes) => {
                self.lost = None;
                Ok(outcomes)
            }
            Err(error) => Err(SubmitError::Failed(self.lose(error))),
        }
    }

    fn lose(&mut self, error: Error) -> Error {
        let said = Error::new(
            error.code,
            format!("this host's claim on {} has ended: {}", self.transactional_id, error.message),
        );
        self.lost = Some(said.hint("claim it again").retryable());
        error
    }

    async fn prepare(
        &self,
        client: &Client,
        targets: &[Target],
        appends: usize,
        moved: Option<&Move>,
    ) -> Result<Vec<AppendOutcome>, Error> {
        let mut outcomes = vec![AppendOutcome::UnknownLog; appends];
        let mut sequences = vec![0i32; targets.len()];
        let rounds = targets.iter().map(|target| target.batches.len()).max().unwrap_or(0);
        for round in 0..rounds {
            // A request takes one batch of a partition; its sequence number is that behind the batch before.
            let mut left: Vec<(usize, Bytes)> = Vec::new();
            for (at, target) in targets.iter().enumerate() {
                let Some((_, batch)) = target.batches.get(round) else { continue };
                let producer = Producer { id: self.producer_id, epoch: self.epoch, base_sequence: sequences[at] };
                sequences[at] += batch.records_count() as i32;
                left.push((at, batch.in_transaction(producer)));
            }
            let mut patience = Patience::new(self.deadline);
            while !left.is_empty() {
                let mut by_leader: HashMap<String, Vec<(usize, Bytes)>> = HashMap::new();
                let mut stale: Vec<String> = Vec::new();
                let mut again = Vec::new();
                let mut why = None;
                for (at, batch) in left {
                    let Target { topic, partition, .. } = &targets[at];
                    match client.leader(topic, *partition) {
                        Some((address, _)) => by_leader.entry(address).or_default().push((at, batch)),
                        None => {
                            stale.push(topic.clone());
                            again.push((at, batch));
                        }
                    }
                }
                let sent = by_leader.into_iter().map(|(address, batches)| async move {
                    let answers = self.produce(client, &address, targets, &batches).await;
                    (batches, answers)
                });
                for (batches, answers) in futures::future::join_all(sent).await {
                    for (slot, (at, batch)) in batches.into_iter().enumerate() {
                        match answers.get(slot) {
                            Some(Step::Done(base_offset)) => {
                                if let (Some(position), _) = targets[at].batches[round] {
                                    outcomes[position] = AppendOutcome::Appended { base_offset: *base_offset };
                                }
                            }
                            Some(Step::Failed(error)) => return Err(error.clone()),
                            Some(Step::Again(error)) => {
                                stale.push(targets[at].topic.clone());
                                why = Some(error.clone());
                                again.push((at, batch));
                            }
                            None => unreachable!("there is an answer for each batch"),
                        }
                    }
                }
                left = again;
                if left.is_empty() {
                    break;
                }
                if !patience.pause().await {
                    return Err(why.unwrap_or_else(|| errors::no_leader(&stale)));
                }
                stale.sort_unstable();
                stale.dedup();
                match client.refresh(&stale).await {
                    Err(Failure::Refused(error)) => return Err(error),
                    Ok(()) => {
                        for topic in stale {
                            client.check_allowed(&topic)?;
                            if client.topic(&topic).is_none() {
                                return Err(Error::new(Code::TOPIC_UNKNOWN, format!("there is no topic '{topic}'")));
                            }
                        }
                    }
                    Err(_) => {}
                }
            }
        }
        if let Some(moved) = moved {
            self.add_offset(client, moved).await?;
        }
        Ok(outcomes)
    }

    /// Produces a batch for each of some partitions to the broker that leads them: an answer for each.
    async fn produce(
        &self,
        client: &Client,
        address: &str,
        targets: &[Target],
        batches: &[(usize, Bytes)],
    ) -> Vec<Step<Offset>> {
        let mut topics: Vec<ProduceTopic> = Vec::new();
        for (at, batch) in batches {
            let Target { topic, partition, .. } = &targets[*at];
            let data = ProducePartition { index: *partition, records: batch.clone().into() };
            match topics.iter_mut().find(|t| t.name == *topic) {
                Some(known) => known.partition_data.push(data),
                None => {
                    topics.push(ProduceTopic {
                        name: topic.clone(),
                        partition_data: vec![data],
                        ..ProduceTopic::default()
                    });
                }
            }
        }
        let request = ProduceRequest {
            transactional_id: Some(self.transactional_id.clone()),
            acks: -1,
            timeout_ms: 10_000,
            topic_data: topics,
        };
        let answer = client.ask::<_, ProduceResponse>(address, 12, &request, Duration::from_secs(10)).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(Failure::Refused(error)) => return batches.iter().map(|_| Step::Failed(error.clone())).collect(),
            Err(failure) => {
                let error = failure.into_error();
                return batches.iter().map(|_| Step::Again(error.clone())).collect();
            }
        };
        let result = |(at, _): &(usize, Bytes)| {
            let Target { topic, partition, .. } = &targets[*at];
            let of_topic = answer.responses.iter().find(|t| t.name == *topic);
            let found = of_topic.and_then(|t| t.partition_responses.iter().find(|p| p.index == *partition));
            let Some(found) = found else {
                return Step::Again(Error::new(
                    Code::UNREACHABLE,
                    format!("the broker says nothing about {topic}/{partition}"),
                ));
            };
            match found.error_code {
                ErrorCode::NONE | ErrorCode::DUPLICATE_SEQUENCE_NUMBER => Step::Done(Offset(found.base_offset)),
                code => judge(code, &format!("a produce to {topic}/{partition}")),
            }
        };
        batches.iter().map(result).collect()
    }

    async fn add_offset(&self, client: &Client, moved: &Move) -> Result<(), Error> {
        let partition = TxnOffsetCommitPartition {
            partition_index: moved.partition,
            committed_offset: moved.next.0,
            committed_metadata: Some(moved.metadata.clone()),
            ..TxnOffsetCommitPartition::default()
        };
        let request = TxnOffsetCommitRequest {
            transactional_id: self.transactional_id.clone(),
            group_id: moved.group.clone(),
            producer_id: self.producer_id,
            producer_epoch: self.epoch,
            topics: vec![TxnOffsetCommitTopic { name: moved.topic.clone(), partitions: vec![partition] }],
            ..TxnOffsetCommitRequest::default()
        };
        let code = |answer: &TxnOffsetCommitResponse| {
            let partition = answer.topics.first().and_then(|topic| topic.partitions.first());
            partition.map_or(ErrorCode::UNKNOWN_SERVER_ERROR, |partition| partition.error_code)
        };
        let mut patience = Patience::new(self.deadline);
        loop {
            match ask_coordinator(client, KEY_TYPE_GROUP, &moved.group, 5, &request, code).await {
                Step::Done(_) => return Ok(()),
                Step::Again(_) if patience.pause().await => {}
                Step::Again(error) | Step::Failed(error) => return Err(error),
            }
        }
    }

    /// Ends the transaction. Asked again after a fault, Kafka answers as it has the first time.
    async fn end(&mut self, client: &Client, committed: bool) -> Result<(), Error> {
        let request = EndTxnRequest {
            transactional_id: self.transactional_id.clone(),
            producer_id: self.producer_id,
            producer_epoch: self.epoch,
            committed,
        };
        let mut patience = Patience::new(self.deadline);
        let unknown = |error: Error| {
            let message = format!("whether Kafka has committed is not known: {}", error.message);
            Error::new(Code::TIMEOUT, message)
                .hint("claim the partition again: the claim reads how it has ended")
                .retryable()
        };
        loop {
            let asked = ask_coordinator(
                client,
                KEY_TYPE_TRANSACTION,
                &self.transactional_id,
                5,
                &request,
                |answer: &EndTxnResponse| answer.error_code,
            );
            let (told, error, patient) = match asked.await {
                Step::Done(answer) => {
                    if answer.producer_id >= 0 {
                        (self.producer_id, self.epoch) = (answer.producer_id, answer.producer_epoch);
                    }
                    (Told::Done, None, true)
                }
                Step::Again(error) => {
                    let told = Told::Again { open: error.code == Code::UNREACHABLE };
                    (told, Some(error), patience.pause().await)
                }
                Step::Failed(error) => (refused(&error), Some(error), true),
            };
            match (self.fate.ended(told, patient), error) {
                (Next::Over(Came::Unknown), Some(error)) => return Err(unknown(error)),
                (Next::Over(_), Some(error)) => return Err(error),
                (Next::Over(_), None) => return Ok(()),
                (Next::Ask | Next::End { .. }, _) => {}
            }
        }
    }
}

/// Where a group goes on in a partition, once no transaction that would move it is open.
///
/// # Errors
/// What Kafka answers, or that it does not within the deadline.
pub(super) async fn position(
    client: &Client,
    group: &str,
    topic: &str,
    partition: i32,
    deadline: Duration,
) -> Result<Option<Offset>, Error> {
    Ok(position_with_text(client, group, topic, partition, deadline).await?.map(|position| position.next))
}

/// A group's offset, and the text that was left beside it.
pub(super) struct Position {
    pub(super) next: Offset,
    pub(super) text: String,
}

/// As [`position`], with the text.
///
/// # Errors
/// As [`position`].
pub(super) async fn position_with_text(
    client: &Client,
    group: &str,
    topic: &str,
    partition: i32,
    deadline: Duration,
) -> Result<Option<Position>, Error> {
    let topics = vec![OffsetFetchRequestTopics { name: topic.to_owned(), partition_indexes: vec![partition] }];
    let asked = OffsetFetchRequestGroup { group_id: group.to_owned(), topics: Some(topics), ..Default::default() };
    let request = OffsetFetchRequest { groups: vec![asked], require_stable: true, ..OffsetFetchRequest::default() };
    fn code(answer: &OffsetFetchResponse) -> ErrorCode {
        let Some(group) = answer.groups.first() else { return ErrorCode::UNKNOWN_SERVER_ERROR };
        if group.error_code.is_error() {
            return group.error_code;
        }
        let partition = group.topics.first().and_then(|topic| topic.partitions.first());
        partition.map_or(ErrorCode::UNKNOWN_SERVER_ERROR, |partition| partition.error_code)
    }
    let mut patience = Patience::new(deadline);
    loop {
        let asked = ask_coordinator(client, KEY_TYPE_GROUP, group, 8, &request, code);
        match asked.await {
            Step::Done(answer) => {
                let found = answer.groups.into_iter().next().and_then(|group| group.topics.into_iter().next());
                let found = found.and_then(|topic| topic.partitions.into_iter().next());
                let found = found.filter(|partition| partition.committed_offset >= 0);
                return Ok(found.map(|partition| Position {
                    next: Offset(partition.committed_offset),
                    text: partition.metadata.unwrap_or_default(),
                }));
            }
            Step::Again(_) if patience.pause().await => {}
            Step::Again(error) | Step::Failed(error) => return Err(error),
        }
    }
}

/// One request to the coordinator of a group or a transactional id.
async fn ask_coordinator<Q: buttress_wire::kafka::Body, A: buttress_wire::kafka::Body>(
    client: &Client,
    kind: i8,
    key: &str,
    min: i16,
    request: &Q,
    code: impl Fn(&A) -> ErrorCode,
) -> Step<A> {
    let address = match client.coordinator(kind, key).await {
        Ok(Ok(address)) => address,
        Ok(Err(code)) => return judge(code, &format!("the search for the coordinator of {key}")),
        Err(failure) => return step(failure),
    };
    match client.ask::<Q, A>(&address, min, request, Duration::ZERO).await {
        Ok(answer) => match code(&answer) {
            ErrorCode::NONE => Step::Done(answer),
            code => {
                if matches!(code, ErrorCode::NOT_COORDINATOR | ErrorCode::COORDINATOR_NOT_AVAILABLE) {
                    client.forget_coordinator(kind, key);
                }
                judge(code, &format!("{} for {key}", Q::API.name))
            }
        },
        Err(failure) => {
            client.forget_coordinator(kind, key);
            step(failure)
        }
    }
}

fn refused(error: &Error) -> Told {
    Told::Refused { stale: error.code == Code::EPOCH_STALE }
}

fn judge<T>(code: ErrorCode, what: &str) -> Step<T> {
    let error = errors::of(code, what);
    if error.retryable { Step::Again(error) } else { Step::Failed(error) }
}
