//! Locks that the server queues for.
//!
//! Source: etcd 3.7, `server/etcdserver/api/v3lock/lock.go`.

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::{convert, error, queue::Leaver};
use crate::pb::{
    etcdserverpb::DeleteRangeRequest,
    v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock},
};

#[tonic::async_trait]
impl Lock for super::Shared {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let LockRequest { name, lease } = request.into_inner();
        let lease = self.lease_or_new(lease).await?;
        let place = self.take_place(&name, lease, Bytes::new()).await?;
        let leaver = Leaver::new(self, &place);
        self.wait_for_turn(&place).await?;
        // The lease may have ended while we stood in line.
        let (held, revision) = self.get(place.key.clone()).await?;
        if held.is_none_or(|kv| kv.create_revision != place.created) {
            return Err(error::MUTEX_SESSION_EXPIRED.into());
        }
        leaver.stay();
        Ok(Response::new(LockResponse { header: self.header(revision), key: place.key }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let UnlockRequest { key } = request.into_inner();
        let delete = convert::delete_op(DeleteRangeRequest { key, ..DeleteRangeRequest::default() })?;
        let revision = self.delete_if(Vec::new(), delete.range.from).await?;
        Ok(Response::new(UnlockResponse { header: self.header(revision) }))
    }
}
