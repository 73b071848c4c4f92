//! Fetch: whole batches from an offset on, waiting for more where the client asks for it.
//!
//! First every partition is read without waiting. While that is less than `min_bytes` and `max_wait_ms` is not over,
//! all partitions that may give more are waited on together, each from where it was read to, so nothing is read twice.
//! A partition that fails ends the waiting. Batches are not taken apart: the response is a header and slices of what
//! the log holds. An offset inside a batch gives the whole batch, as Kafka does.
//!
//! Sessions (KIP-227) are not kept: session 0 in the answer tells the client to name all partitions every time.

use std::time::Duration;

use buttress_core::{
    LogId, Offset,
    ledger::{Batch, Fetched},
};
use buttress_wire::kafka::{
    Api, ErrorCode, Records,
    fetch::{FetchPartition, FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopicResponse},
};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, timeout_at};

use super::{
    Broker, FETCH_BYTES_MAX, FETCH_WAIT_MS_MAX, check_leader_epoch, error::Fault, leader, leader_endpoint, partition,
};

/// A client that has a session names it; 0 asks for one, −1 wants none.
const FINAL_EPOCH: i32 = -1;
const READ_COMMITTED: i8 = 1;

/// One partition while it is being read.
struct Part {
    topic: usize,
    index: i32,
    log: LogId,
    next: Offset,
    bytes_max: usize,
    size: usize,
    records: u64,
    chunks: Vec<bytes::Bytes>,
    start: Offset,
    end: Offset,
    error: ErrorCode,
}

pub(super) async fn handle(broker: &Broker, request: FetchRequest) -> FetchResponse {
    if request.session_id != 0 && request.session_epoch != FINAL_EPOCH {
        broker.counters.error(&Api::FETCH);
        return FetchResponse { error_code: ErrorCode::FETCH_SESSION_ID_NOT_FOUND, ..FetchResponse::default() };
    }
    let view = broker.cluster.view();
    let mut parts = Vec::new();
    for (at, topic) in request.topics.iter().enumerate() {
        let found = broker.stream.topic(&topic.topic);
        for wanted in &topic.partitions {
            let known = found.as_ref().and_then(|found| partition(found, wanted.partition));
            let mut part = Part::new(at, wanted);
            if let Some(known) = known {
                (part.log, part.start, part.end) = (known.log, known.start, known.end);
            }
            part.error = if !view.is_leader() {
                ErrorCode::NOT_LEADER_OR_FOLLOWER
            } else if known.is_none() {
                ErrorCode::UNKNOWN_TOPIC_OR_PARTITION
            } else {
                check_leader_epoch(&view, wanted.current_leader_epoch).err().unwrap_or_default()
            };
            parts.push(part);
        }
    }
    let bytes_max = usize::try_from(request.max_bytes).unwrap_or(0).min(FETCH_BYTES_MAX);
    let bytes_min = usize::try_from(request.min_bytes).unwrap_or(0).min(bytes_max);
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0).min(FETCH_WAIT_MS_MAX));
    read(broker, &mut parts, bytes_min, bytes_max, wait).await;

    let mut response = FetchResponse::default();
    response.responses.extend(
        request.topics.iter().map(|t| FetchTopicResponse { topic: t.topic.clone(), ..FetchTopicResponse::default() }),
    );
    for part in parts {
        let name = &request.topics[part.topic].topic;
        let mut answer = FetchPartitionResponse {
            partition_index: part.index,
            error_code: part.error,
            aborted_transactions: (request.isolation_level == READ_COMMITTED).then(Vec::new),
            ..FetchPartitionResponse::default()
        };
        if part.error.is_error() {
            broker.counters.error(&Api::FETCH);
            if part.error == ErrorCode::NOT_LEADER_OR_FOLLOWER {
                answer.current_leader = leader(&view);
                response.node_endpoints = leader_endpoint(&view);
            }
        } else {
            answer.high_watermark = part.end.0;
            answer.last_stable_offset = part.end.0;
            answer.log_start_offset = part.start.0;
        }
        if part.size > 0 {
            broker.counters.records_out(name, part.records, part.size);
        }
        answer.records = Records(part.chunks);
        response.responses[part.topic].partitions.push(answer);
    }
    response
}

impl Part {
    fn new(topic: usize, wanted: &FetchPartition) -> Self {
        Self {
            topic,
            index: wanted.partition,
            log: LogId(0),
            next: Offset(wanted.fetch_offset),
            bytes_max: usize::try_from(wanted.partition_max_bytes).unwrap_or(0),
            size: 0,
            records: 0,
            chunks: Vec::new(),
            start: Offset(-1),
            end: Offset(-1),
            error: ErrorCode::NONE,
        }
    }

    /// How much more it may give, where `left` bytes are left for the response.
    fn room(&self, left: usize) -> usize {
        if self.error.is_error() { 0 } else { self.bytes_max.saturating_sub(self.size).min(left) }
    }

    fn take(&mut self, fetched: Result<Fetched, buttress_core::Error>) {
        match fetched {
            Ok(fetched) => {
                (self.start, self.end) = (fetched.start, fetched.end);
                for batch in fetched.batches {
                    self.take_batch(batch);
                }
            }
            // What was read before is still good; the client meets the error with its next request.
            Err(_) if self.size > 0 => self.bytes_max = 0,
            Err(error) => self.error = Fault::from(error).code,
        }
    }

    fn take_batch(&mut self, batch: Batch) {
        self.next = Offset(batch.last_offset.0 + 1);
        self.size += batch.bytes.len();
        self.records += (batch.last_offset.0 - batch.base_offset.0 + 1) as u64;
        self.chunks.push(batch.bytes);
    }
}

async fn read(broker: &Broker, parts: &mut [Part], bytes_min: usize, bytes_max: usize, wait: Duration) {
    let until = Instant::now() + wait;
    let mut total = 0;
    for part in parts.iter_mut() {
        // The first batch is given whatever the limits say, so that nobody is stuck before a large one.
        let room = if total == 0 && !part.error.is_error() {
            part.room(bytes_max).max(1)
        } else {
            part.room(bytes_max.saturating_sub(total))
        };
        if room > 0 {
            part.take(broker.stream.fetch(part.log, part.next, room, 0).await);
            total += part.size;
        }
    }
    while total < bytes_min && parts.iter().all(|part| !part.error.is_error()) {
        let left = until.saturating_duration_since(Instant::now()).as_millis() as u64;
        if left == 0 {
            return;
        }
        let mut waiting: FuturesUnordered<_> = parts
            .iter()
            .enumerate()
            .map(|(at, part)| (at, part.log, part.next, part.room(bytes_max - total)))
            .filter(|(.., room)| *room > 0)
            .map(|(at, log, next, room)| {
                let fetched = broker.stream.fetch(log, next, room, left);
                async move { (at, fetched.await) }
            })
            .collect();
        // Those that give nothing have waited their time; the first one with news ends the round.
        let news = async {
            loop {
                match waiting.next().await {
                    Some((_, Ok(fetched))) if fetched.batches.is_empty() => {}
                    ended => return ended,
                }
            }
        };
        let Ok(Some(news)) = timeout_at(until, news).await else { return };
        drop(waiting);
        let part = &mut parts[news.0];
        total -= part.size;
        part.take(news.1);
        total += part.size;
    }
}
