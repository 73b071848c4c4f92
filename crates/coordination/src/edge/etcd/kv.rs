//! Keys: reads, writes, transactions, compaction.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use buttress_core::{
    Consistency, Entry, OpResult, Put, RangeOp, Receipt, Revision, Txn, TxnOp,
    ledger::{KeyValue, KeysPage},
};
use futures::{Stream, stream};
use tonic::{Request, Response, Status};

use super::{Etcd, Shared, convert, error};
use crate::pb::etcdserverpb::{self as pb, kv_server::Kv};

/// A range that is streamed comes in pieces of at most this size, or of one key: so each is a message of less than 2 MiB.
const PIECE_BYTES: usize = 1024 * 1024;
/// A key in a piece, beside its texts.
const PIECE_KEY_BYTES: usize = 64;

type RangePieces = Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

fn consistency(serializable: bool) -> Consistency {
    if serializable { Consistency::Serializable } else { Consistency::Linearizable }
}

impl Etcd {
    pub(super) async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        let consistency = consistency(request.serializable);
        let op = convert::range_op(request)?;
        let found = self.ledger.read_with(op, consistency).await.map_err(|e| error::status(&e))?;
        Ok(convert::range_response(self.header(found.revision), found))
    }

    /// The same range in pieces, each read when the client has taken the one before: so neither side holds all of it.
    fn range_pieces(self: Arc<Self>, request: pb::RangeRequest) -> Result<RangePieces, Status> {
        let consistency = consistency(request.serializable);
        let op = convert::stream_op(request)?;
        let pieces = Pieces {
            etcd: self,
            limit: if op.count_only { 0 } else { op.limit },
            rest: Some(op),
            consistency,
            revision: Revision(0),
            read: VecDeque::new(),
            read_bytes: 0,
            count: 0,
            ended: false,
        };
        Ok(Box::pin(stream::try_unfold(pieces, |mut pieces| async move {
            Ok(pieces.next().await?.map(|piece| (piece, pieces)))
        })))
    }

    pub(super) async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        convert::check_size(&request)?;
        let op = convert::put_op(request)?;
        if op.prev_kv || op.ignore_value || op.ignore_lease {
            let (receipt, result) = self.one(TxnOp::Put(op)).await?;
            let OpResult::Put { prev, .. } = result else { return Err(mismatch()) };
            return Ok(pb::PutResponse {
                header: self.header(receipt.revision),
                prev_kv: prev.map(convert::key_value),
            });
        }
        // Nothing to look at: the smallest entry there is.
        let put = Put { key: op.key, value: Some(op.value), lease: op.lease };
        let receipt = self.submit(Entry { puts: vec![put], ..Entry::default() }).await?;
        Ok(pb::PutResponse { header: self.header(receipt.revision), prev_kv: None })
    }

    pub(super) async fn delete_range(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Status> {
        convert::check_size(&request)?;
        let (receipt, result) = self.one(TxnOp::Delete(convert::delete_op(request)?)).await?;
        let OpResult::Delete { deleted, prev, .. } = result else { return Err(mismatch()) };
        Ok(pb::DeleteRangeResponse {
            header: self.header(receipt.revision),
            deleted: deleted as i64,
            prev_kvs: prev.into_iter().map(convert::key_value).collect(),
        })
    }

    pub(super) async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        convert::check_size(&request)?;
        let (txn, serializable) = convert::txn(request)?;
        let (revision, result) = if txn.is_read_only() {
            self.ledger.read_txn(txn, consistency(serializable)).await.map_err(|e| error::status(&e))?
        } else {
            let receipt = self.submit(Entry { txn: Some(txn), ..Entry::default() }).await?;
            (receipt.revision, receipt.txn.ok_or_else(mismatch)?)
        };
        Ok(convert::txn_response(self.header(revision), result))
    }

    pub(super) async fn compact(&self, request: pb::CompactionRequest) -> Result<pb::CompactionResponse, Status> {
        // As in etcd: what is not positive is below everything that was compacted.
        let at = Revision(u64::try_from(request.revision).unwrap_or(0));
        if at == Revision(0) {
            return Err(error::COMPACTED.into());
        }
        let receipt = self.ledger.compact(at, request.physical).await.map_err(error::submit_status)?;
        Ok(pb::CompactionResponse { header: self.header(receipt.revision) })
    }

    pub(super) async fn submit(&self, entry: Entry) -> Result<Receipt, Status> {
        self.ledger.submit(entry).await.map_err(error::submit_status)
    }

    /// One operation as a transaction of its own.
    async fn one(&self, op: TxnOp) -> Result<(Receipt, OpResult), Status> {
        let txn = Txn { success: vec![op], ..Txn::default() };
        let mut receipt = self.submit(Entry { txn: Some(txn), ..Entry::default() }).await?;
        let result = receipt.txn.take().and_then(|mut txn| txn.results.pop()).ok_or_else(mismatch)?;
        Ok((receipt, result))
    }
}

/// A range that is being streamed.
struct Pieces {
    etcd: Arc<Etcd>,
    /// What is still to be read or counted.
    rest: Option<RangeOp>,
    /// Keys given at most; 0 for all.
    limit: u64,
    consistency: Consistency,
    /// The key space's revision at the first read; what is read later is as it was then.
    revision: Revision,
    /// Keys that were read and not given yet, and their size.
    read: VecDeque<KeyValue>,
    read_bytes: usize,
    /// Keys of the range that were seen.
    count: u64,
    ended: bool,
}

fn piece_bytes(kv: &KeyValue) -> usize {
    PIECE_KEY_BYTES + kv.key.len() + kv.value.len()
}

impl Pieces {
    async fn next(&mut self) -> Result<Option<pb::RangeStreamResponse>, Status> {
        if self.ended {
            return Ok(None);
        }
        while self.read_bytes <= PIECE_BYTES
            && let Some(op) = self.rest.take()
        {
            self.read(op).await?;
        }
        let (mut kvs, mut bytes) = (Vec::new(), 0);
        while let Some(size) = self.read.front().map(piece_bytes)
            && (kvs.is_empty() || bytes + size <= PIECE_BYTES)
        {
            kvs.extend(self.read.pop_front().map(convert::key_value));
            bytes += size;
        }
        self.read_bytes -= bytes;
        let mut piece = pb::RangeResponse { kvs, ..pb::RangeResponse::default() };
        if self.rest.is_none() && self.read.is_empty() {
            self.ended = true;
            piece.header = self.etcd.header(self.revision);
            piece.more = self.limit > 0 && self.count > self.limit;
            piece.count = self.count as i64;
        }
        Ok(Some(pb::RangeStreamResponse { range_response: Some(piece) }))
    }

    async fn read(&mut self, mut op: RangeOp) -> Result<(), Status> {
        let found = self.etcd.ledger.read_page(op.clone(), self.consistency).await;
        let KeysPage { revision, kvs, count, next } = found.map_err(|e| error::status(&e))?;
        if self.revision == Revision(0) {
            // The barrier was for this read.
            (self.revision, self.consistency) = (revision, Consistency::Serializable);
            op.revision = op.revision.or(Some(revision));
        }
        self.count += count;
        if op.limit > 0 {
            op.limit = op.limit.saturating_sub(kvs.len() as u64);
            op.count_only |= op.limit == 0;
        }
        self.read_bytes += kvs.iter().map(piece_bytes).sum::<usize>();
        self.read.extend(kvs);
        self.rest = next.map(|from| {
            op.range.from = from;
            op
        });
        Ok(())
    }
}

/// The ledger's answer is not of the kind that was asked for: our mistake, which one client hears and not the node.
pub(super) fn mismatch() -> Status {
    Status::internal("etcdserver: the answer does not fit the request")
}

#[tonic::async_trait]
impl Kv for Shared {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.0.range(request.into_inner()).await.map(Response::new)
    }

    type RangeStreamStream = RangePieces;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        self.0.clone().range_pieces(request.into_inner()).map(Response::new)
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        self.0.put(request.into_inner()).await.map(Response::new)
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        self.0.delete_range(request.into_inner()).await.map(Response::new)
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        self.0.txn(request.into_inner()).await.map(Response::new)
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        self.0.compact(request.into_inner()).await.map(Response::new)
    }
}
