//! InitProducerId: identities for idempotent producers.
//!
//! An id must never be given twice, also not by two nodes, also not after a failover. So the next free id is a key, and
//! a node takes a block of ids from it by compare-and-swap in the log; from its block it gives them without asking. A
//! node that stops loses the rest of its block, as in Kafka. Blocks of 1,000 out of 2^63 last.
//!
//! A producer without a transactional id gets a new id with epoch 0 each time it asks, as in Kafka: it raises its epoch
//! by itself (KIP-360).

use buttress_core::{Code, Consistency, Entry, Error, Guard, KeyRange, Put, Revision};
use buttress_wire::kafka::{
    Api, ErrorCode,
    init_producer_id::{InitProducerIdRequest, InitProducerIdResponse},
};
use bytes::Bytes;
use tokio::sync::Mutex;

use super::{Broker, error::Fault};

/// The key that holds the next free id, in decimal.
const NEXT_ID_KEY: &[u8] = b"/buttress/kafka/next-producer-id";
const BLOCK: i64 = 1_000;
/// Lost races against other nodes before giving up; each loser means that somebody else won.
const TRIES_MAX: usize = 16;

/// The ids `next..end` are this node's to give.
#[derive(Default)]
struct Block {
    next: i64,
    end: i64,
}

#[derive(Default)]
pub(super) struct ProducerIds(Mutex<Block>);

pub(super) async fn handle(broker: &Broker, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let given = match request.transactional_id {
        Some(_) => Err(ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED.into()),
        None => next(broker).await.map_err(Fault::from),
    };
    match given {
        Ok(producer_id) => InitProducerIdResponse { producer_id, producer_epoch: 0, ..Default::default() },
        Err(fault) => {
            broker.counters.error(&Api::INIT_PRODUCER_ID);
            tracing::warn!(error = ?fault, "kafka: no producer id can be given");
            // The client looks for a coordinator again and retries, where it would give up on "not leader".
            let error_code = match fault.code {
                ErrorCode::NOT_LEADER_OR_FOLLOWER => ErrorCode::COORDINATOR_NOT_AVAILABLE,
                code => code,
            };
            InitProducerIdResponse { error_code, producer_epoch: -1, ..Default::default() }
        }
    }
}

async fn next(broker: &Broker) -> Result<i64, Error> {
    let mut block = broker.producer_ids.0.lock().await;
    if block.next == block.end {
        *block = take_block(broker).await?;
    }
    block.next += 1;
    Ok(block.next - 1)
}

async fn take_block(broker: &Broker) -> Result<Block, Error> {
    let key = Bytes::from_static(NEXT_ID_KEY);
    for _ in 0..TRIES_MAX {
        let found = broker.ledger.read(KeyRange::key(key.clone()), 1, Consistency::Linearizable).await?;
        let (next, revision) = match found.kvs.first() {
            None => (0, Revision(0)),
            Some(kv) => {
                let text = std::str::from_utf8(&kv.value).ok().and_then(|text| text.parse::<i64>().ok());
                let next = text.filter(|next| (0..i64::MAX - BLOCK).contains(next)).ok_or_else(|| {
                    let key = NEXT_ID_KEY.escape_ascii();
                    Error::new(Code::CORRUPT, format!("the key \"{key}\" holds {:?}, not a producer id", kv.value))
                        .hint("put a decimal number there that is larger than any producer id in use")
                })?;
                (next, kv.mod_revision)
            }
        };
        let entry = Entry {
            guards: vec![Guard::ModRevision { key: key.clone(), revision }],
            puts: vec![Put { key: key.clone(), value: Some((next + BLOCK).to_string().into()), lease: None }],
            ..Entry::default()
        };
        match broker.ledger.submit(entry).await {
            Ok(_) => return Ok(Block { next, end: next + BLOCK }),
            Err(error) if error.code() == Code::REFUSED => {}
            Err(error) => return Err(error.into_error()),
        }
    }
    Err(Error::new(Code::OVERLOADED, "other nodes took the producer ids first, too often").retryable())
}
