//! Produce: batches become the appends of one entry.
//!
//! Every partition's batch is checked on its own, and one that fails does not hold the others up. What passes goes
//! into one entry where it fits, otherwise into several, whose proposals are made in order and waited for together.
//! All that is done before the first await, so a connection that polls its Produce requests once, in the order in
//! which they came, has proposed them in that order.
//!
//! acks: 1 means the same as −1, acknowledged after the commit. With 0 there is no answer, and after an error the
//! connection is closed, because that is the only way to say so (as Kafka does).

use std::{sync::Arc, time::Duration};

use buttress_core::{
    Append, AppendOutcome, Entry, Sequence, SubmitError,
    ledger::{ClusterView, TopicView},
    limits::{ENTRY_BYTES_MAX, ENTRY_PARTS_MAX},
    receipt::Receipt,
};
use buttress_wire::{
    kafka::{
        Api, ErrorCode, RequestHeader, encode_response,
        produce::{ProducePartition, ProducePartitionResponse, ProduceRequest, ProduceResponse, ProduceTopicResponse},
    },
    records::{self, BatchView, Codec},
};
use futures::future::join_all;

use super::{Broker, connection::Reply, error::Fault, leader, leader_endpoint, partition};

/// The first version whose batches are of format 2.
const VERSION_MIN: i16 = 3;
/// A client's timeout is held within these.
const TIMEOUT_MS: std::ops::RangeInclusive<i32> = 1_000..=120_000;

/// What became of one partition's batch.
enum Place {
    Failed(Fault),
    /// In this entry, as this append.
    Sent {
        entry: usize,
        append: usize,
        log_start: i64,
        records: u32,
        bytes: usize,
    },
}

pub(super) async fn handle(broker: Arc<Broker>, header: RequestHeader, request: ProduceRequest) -> Reply {
    let view = broker.cluster.view();
    let refused = refuse(&view, header.version, &request);
    let (acks, timeout) = (request.acks, request.timeout_ms.clamp(*TIMEOUT_MS.start(), *TIMEOUT_MS.end()));
    let mut entries = Entries::default();
    let mut topics = Vec::new();
    for topic in request.topic_data {
        let by_id = header.version >= 13;
        let found = match by_id {
            true => broker.topic_by_id(topic.topic_id),
            false => broker.stream.topic(&topic.name),
        };
        let missing = if by_id { ErrorCode::UNKNOWN_TOPIC_ID } else { ErrorCode::UNKNOWN_TOPIC_OR_PARTITION };
        let place = |p: ProducePartition| {
            let index = p.index;
            let placed = match (&refused, &found) {
                (Some(fault), _) => Err(fault.clone()),
                (None, None) => Err(missing.into()),
                (None, Some(found)) => admit(&broker, found, p).map(|append| (append, found)),
            };
            let place = match placed {
                Err(fault) => Place::Failed(fault),
                Ok((append, found)) => entries.add(append, found, index),
            };
            (index, place)
        };
        let places: Vec<_> = topic.partition_data.into_iter().map(place).collect();
        topics.push((found.map_or(topic.name, |t| t.name), topic.topic_id, places));
    }

    let submitted = join_all(entries.0.into_iter().map(|entry| broker.ledger.submit(entry)));
    let receipts = tokio::time::timeout(Duration::from_millis(timeout as u64), submitted).await.ok();

    let mut response = ProduceResponse::default();
    let mut misled = false;
    for (name, topic_id, places) in topics {
        let mut answer = ProduceTopicResponse { name, topic_id, partition_responses: Vec::with_capacity(places.len()) };
        for (index, place) in places {
            let mut partition = ProducePartitionResponse { index, ..ProducePartitionResponse::default() };
            match settle(place, receipts.as_deref()) {
                Ok(settled) => {
                    partition.base_offset = settled.base_offset;
                    partition.log_start_offset = settled.log_start;
                    if settled.appended {
                        broker.counters.records_in(&answer.name, settled.records.into(), settled.bytes);
                    }
                }
                Err(fault) => {
                    broker.counters.error(&Api::PRODUCE);
                    partition.error_code = fault.code;
                    partition.error_message = fault.message;
                    if fault.code == ErrorCode::NOT_LEADER_OR_FOLLOWER {
                        misled = true;
                        partition.current_leader = leader(&view);
                    }
                }
            }
            answer.partition_responses.push(partition);
        }
        response.responses.push(answer);
    }
    if misled {
        response.node_endpoints = leader_endpoint(&view);
    }
    if acks != 0 {
        return Reply::Frame(encode_response(header.version, header.correlation_id, &response));
    }
    let error = response.responses.iter().flat_map(|t| &t.partition_responses).find(|p| p.error_code.is_error());
    match error {
        None => Reply::Silent,
        Some(partition) => Reply::Close(format!("a produce with acks=0 failed with {}", partition.error_code)),
    }
}

/// What stands against the whole request.
fn refuse(view: &ClusterView, version: i16, request: &ProduceRequest) -> Option<Fault> {
    if version < VERSION_MIN {
        return Some(ErrorCode::UNSUPPORTED_VERSION.into());
    }
    if !(-1..=1).contains(&request.acks) {
        return Some(Fault::new(ErrorCode::INVALID_REQUIRED_ACKS, format!("acks is {}, not -1, 0 or 1", request.acks)));
    }
    if request.transactional_id.is_some() {
        let text = "transactions are not served yet; produce without a transactional id";
        return Some(Fault::new(ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED, text));
    }
    (!view.is_leader()).then(|| ErrorCode::NOT_LEADER_OR_FOLLOWER.into())
}

/// Checks one partition's records and makes them an append.
fn admit(broker: &Broker, topic: &TopicView, sent: ProducePartition) -> Result<Append, Fault> {
    let log = partition(topic, sent.index).ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?.log;
    let set = sent.records.concat();
    let (limit, whose) = match topic.settings.batch_bytes_max {
        Some(limit) => (limit as usize, "the topic's max.message.bytes"),
        None => (broker.options.message_bytes_max, "message_bytes_max"),
    };
    if set.len() > limit {
        return Err(Fault::new(
            ErrorCode::MESSAGE_TOO_LARGE,
            format!("the batch is {} bytes, more than {whose} of {limit}", set.len()),
        ));
    }
    let mut batches = records::split_batches(set)?;
    if batches.len() != 1 {
        let text = format!("{} batches for one partition, exactly one is allowed", batches.len());
        return Err(Fault::new(ErrorCode::INVALID_RECORD, text));
    }
    let batch = batches.pop().expect("there is one");
    check_batch(broker, &batch)?;
    let sequence = match batch.producer() {
        None => None,
        Some(producer) if producer.epoch < 0 || producer.base_sequence < 0 => {
            return Err(Fault::new(ErrorCode::INVALID_RECORD, "a producer id without epoch or sequence"));
        }
        Some(producer) => Some(Sequence {
            producer: format!("kafka:{}", producer.id),
            epoch: producer.epoch.into(),
            number: producer.base_sequence.into(),
        }),
    };
    Ok(Append {
        log,
        records: batch.records_count(),
        max_timestamp_ms: batch.max_timestamp_ms(),
        sequence,
        batch: batch.into_bytes(),
    })
}

fn check_batch(broker: &Broker, batch: &BatchView) -> Result<(), Fault> {
    if batch.is_control() {
        return Err(Fault::new(ErrorCode::INVALID_RECORD, "clients may not write control batches"));
    }
    if batch.is_transactional() {
        return Err(Fault::new(ErrorCode::INVALID_RECORD, "transactions are not served yet"));
    }
    if let Codec::Unknown(codec) = batch.codec() {
        return Err(Fault::new(ErrorCode::UNSUPPORTED_COMPRESSION_TYPE, format!("there is no codec {codec}")));
    }
    if batch.is_log_append_time() {
        return Err(Fault::new(ErrorCode::INVALID_TIMESTAMP, "clients may not set the timestamp type LogAppendTime"));
    }
    let latest = broker.cluster.now().0.saturating_add(broker.options.timestamp_ahead_max.as_millis() as u64);
    if batch.max_timestamp_ms() > latest as i64 {
        let text = format!("timestamp {} is too far ahead of the clock, latest is {latest}", batch.max_timestamp_ms());
        return Err(Fault::new(ErrorCode::INVALID_TIMESTAMP, text));
    }
    Ok(batch.check_records()?)
}

/// Appends, packed into as few entries as hold them.
#[derive(Default)]
struct Entries(Vec<Entry>);

impl Entries {
    fn add(&mut self, append: Append, topic: &TopicView, index: i32) -> Place {
        // What an append adds to an entry beside its batch: log, count, timestamp, sequence; all short.
        let size = append.batch.len() + 128;
        let fits = |entry: &Entry| entry.size_hint() + size <= ENTRY_BYTES_MAX && entry.parts() < ENTRY_PARTS_MAX;
        if !self.0.last().is_some_and(fits) {
            self.0.push(Entry::default());
        }
        let place = Place::Sent {
            entry: self.0.len() - 1,
            append: self.0.last().expect("one was pushed").appends.len(),
            log_start: partition(topic, index).expect("it was admitted").start.0,
            records: append.records,
            bytes: append.batch.len(),
        };
        self.0.last_mut().expect("one was pushed").appends.push(append);
        place
    }
}

struct Settled {
    base_offset: i64,
    log_start: i64,
    appended: bool,
    records: u32,
    bytes: usize,
}

/// The answer to one partition's batch. `receipts` is `None` where the commit did not come in time.
fn settle(place: Place, receipts: Option<&[Result<Receipt, SubmitError>]>) -> Result<Settled, Fault> {
    let (entry, append, log_start, records, bytes) = match place {
        Place::Failed(fault) => return Err(fault),
        Place::Sent { entry, append, log_start, records, bytes } => (entry, append, log_start, records, bytes),
    };
    let receipts = receipts.ok_or(ErrorCode::REQUEST_TIMED_OUT)?;
    let receipt = receipts[entry].as_ref().map_err(|error| error.clone().into_error())?;
    let (base_offset, appended) = match &receipt.appends[append] {
        AppendOutcome::Appended { base_offset } => (base_offset.0, true),
        AppendOutcome::Duplicate { base_offset: Some(base_offset) } => (base_offset.0, false),
        // Clients take this code for success with an offset that nobody remembers.
        AppendOutcome::Duplicate { base_offset: None } => return Err(ErrorCode::DUPLICATE_SEQUENCE_NUMBER.into()),
        AppendOutcome::Gap { expected } => {
            let text = format!("a sequence number was skipped, {expected} is next");
            return Err(Fault::new(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER, text));
        }
        AppendOutcome::StaleEpoch { current } => {
            let text = format!("the producer's epoch is {current} by now");
            return Err(Fault::new(ErrorCode::INVALID_PRODUCER_EPOCH, text));
        }
        AppendOutcome::UnknownLog => return Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION.into()),
    };
    Ok(Settled { base_offset, log_start, appended, records, bytes })
}
