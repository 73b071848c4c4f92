//! Keys: reads, writes, transactions, compaction.

use buttress_core::{Consistency, Entry, OpResult, Put, Receipt, Revision, Txn, TxnOp};
use tonic::{Request, Response, Status};

use super::{Etcd, convert, error};
use crate::pb::etcdserverpb::{self as pb, kv_server::Kv};

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

/// The ledger's answer is not of the kind that was asked for: our mistake, which one client hears and not the node.
pub(super) fn mismatch() -> Status {
    Status::internal("etcdserver: the answer does not fit the request")
}

#[tonic::async_trait]
impl Kv for Etcd {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.range(request.into_inner()).await.map(Response::new)
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        self.put(request.into_inner()).await.map(Response::new)
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        self.delete_range(request.into_inner()).await.map(Response::new)
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        self.txn(request.into_inner()).await.map(Response::new)
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        self.compact(request.into_inner()).await.map(Response::new)
    }
}
