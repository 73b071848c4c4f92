//! The line that locks and elections stand in.
//!
//! Whoever wants a name puts a key of its own below it, named after its lease, and waits until no key below the name
//! was created before its own. It watches only the one right before it, so the end of one wakes one. The key hangs on
//! the lease: who dies leaves the line. The revision at which the key was created is the fencing token.
//!
//! Names and order are those of etcd's client library, so holders through this service and holders through the library
//! stand in one line.
//!
//! Source: etcd 3.7, `client/v3/concurrency/{key,mutex,election}.go`.

use std::sync::Arc;

use buttress_core::{
    Compare, Consistency, DeleteOp, Entry, KeyRange, LeaseChange, LeaseId, OpResult, Operand, PutOp, RangeOp, Relation,
    Revision, Txn, TxnOp,
    ledger::{KeyValue, WatchItem, WatchOptions},
    limits::KEY_BYTES_MAX,
    txn::{SortOrder, SortTarget},
};
use bytes::Bytes;
use tonic::Status;

use super::{Etcd, error, kv, lease};

/// The time to live of a lease that the server grants for a client that brings none, as in etcd.
const OWN_LEASE_TTL_MS: u64 = 60_000;

/// A place in the line.
pub(super) struct Place {
    pub prefix: Bytes,
    pub key: Bytes,
    pub lease: LeaseId,
    /// When the place was taken: the fencing token.
    pub created: Revision,
    /// The value of the key where it stood there already, from an earlier try of the same lease.
    pub found: Option<Bytes>,
    /// The revision that this was read or written at.
    pub revision: Revision,
}

pub(super) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

pub(super) fn created_at(key: Bytes, revision: Revision) -> Compare {
    Compare {
        range: KeyRange::key(key),
        relation: Relation::Equal,
        operand: Operand::CreateRevision(super::convert::number(revision)),
    }
}

impl Etcd {
    /// The client's lease, or a new one.
    pub(super) async fn lease_or_new(&self, id: i64) -> Result<LeaseId, Status> {
        if id != 0 {
            return Ok(LeaseId(id));
        }
        let lease = LeaseId(lease::random_id()?);
        let grant = LeaseChange::Grant { lease, ttl_ms: OWN_LEASE_TTL_MS };
        self.submit(Entry { leases: vec![grant], ..Entry::default() }).await?;
        Ok(lease)
    }

    /// Takes a place, or finds the one that the lease has.
    pub(super) async fn take_place(&self, name: &[u8], lease: LeaseId, value: Bytes) -> Result<Place, Status> {
        let prefix = prefix(name);
        // As the client library names it: the lease in lower-case hexadecimal.
        let sign = if lease.0 < 0 { "-" } else { "" };
        let key: Bytes = [&prefix[..], format!("{sign}{:x}", lease.0.unsigned_abs()).as_bytes()].concat().into();
        if key.len() > KEY_BYTES_MAX {
            return Err(error::REQUEST_TOO_LARGE.into());
        }
        let put = PutOp { key: key.clone(), value, lease: Some(lease), ..PutOp::default() };
        let txn = Txn {
            compares: vec![created_at(key.clone(), Revision(0))],
            success: vec![TxnOp::Put(put)],
            failure: vec![TxnOp::Range(RangeOp::new(KeyRange::key(key.clone())))],
        };
        let receipt = self.submit(Entry { txn: Some(txn), ..Entry::default() }).await?;
        let (created, found) = match receipt.txn.and_then(|mut txn| txn.results.pop()) {
            Some(OpResult::Put { revision, .. }) => (revision, None),
            Some(OpResult::Range(mut range)) => {
                let kv = range.kvs.pop().ok_or_else(kv::mismatch)?;
                (kv.create_revision, Some(kv.value))
            }
            _ => return Err(kv::mismatch()),
        };
        Ok(Place { prefix, key, lease, created, found, revision: receipt.revision })
    }

    /// Waits until nobody stands before the place.
    pub(super) async fn wait_for_turn(&self, place: &Place) -> Result<(), Status> {
        loop {
            let before = RangeOp {
                limit: 1,
                max_create_revision: Some(Revision(place.created.0 - 1)),
                order: SortOrder::Descending,
                target: SortTarget::CreateRevision,
                keys_only: true,
                ..RangeOp::new(KeyRange::prefix(place.prefix.clone()))
            };
            let mut found =
                self.ledger.read_with(before, Consistency::Linearizable).await.map_err(|e| error::status(&e))?;
            let Some(before) = found.kvs.pop() else { return Ok(()) };
            self.wait_for_delete(before.key, Revision(found.revision.0 + 1)).await?;
        }
    }

    async fn wait_for_delete(&self, key: Bytes, from: Revision) -> Result<(), Status> {
        let options = WatchOptions { from: Some(from), no_put: true, ..WatchOptions::new(KeyRange::key(key)) };
        let mut watch = self.ledger.watch_with(options).await.map_err(|e| error::status(&e))?;
        loop {
            match watch.next().await.map_err(|e| error::status(&e))? {
                Some(WatchItem::Events { events, .. }) if events.is_empty() => {}
                // Deleted; or history is gone, and the line must be looked at again.
                Some(_) => return Ok(()),
                None => return Err(error::STOPPED.into()),
            }
        }
    }

    /// The key as it is now.
    pub(super) async fn get(&self, key: Bytes) -> Result<(Option<KeyValue>, Revision), Status> {
        let op = RangeOp::new(KeyRange::key(key));
        let mut found = self.ledger.read_with(op, Consistency::Linearizable).await.map_err(|e| error::status(&e))?;
        Ok((found.kvs.pop(), found.revision))
    }

    /// Who stands first.
    pub(super) async fn first(&self, prefix: Bytes) -> Result<(Option<KeyValue>, Revision), Status> {
        let op = RangeOp {
            limit: 1,
            order: SortOrder::Ascending,
            target: SortTarget::CreateRevision,
            ..RangeOp::new(KeyRange::prefix(prefix))
        };
        let mut found = self.ledger.read_with(op, Consistency::Linearizable).await.map_err(|e| error::status(&e))?;
        Ok((found.kvs.pop(), found.revision))
    }

    pub(super) async fn delete_if(&self, compares: Vec<Compare>, key: Bytes) -> Result<Revision, Status> {
        let delete = DeleteOp { range: KeyRange::key(key), prev_kv: false };
        let txn = Txn { compares, success: vec![TxnOp::Delete(delete)], failure: Vec::new() };
        Ok(self.submit(Entry { txn: Some(txn), ..Entry::default() }).await?.revision)
    }
}

/// Leaves the line when a client goes away while it waits; its lease may live on for long, and all behind it would
/// wait.
pub(super) struct Leaver {
    etcd: Arc<Etcd>,
    key: Option<Bytes>,
    lease: LeaseId,
}

impl Leaver {
    pub(super) fn new(etcd: &Arc<Etcd>, place: &Place) -> Self {
        Self { etcd: etcd.clone(), key: Some(place.key.clone()), lease: place.lease }
    }

    /// The turn has come: the place is kept.
    pub(super) fn stay(mut self) {
        self.key = None;
    }
}

impl Drop for Leaver {
    fn drop(&mut self) {
        let (Some(key), Ok(runtime)) = (self.key.take(), tokio::runtime::Handle::try_current()) else { return };
        let (etcd, lease) = (self.etcd.clone(), self.lease);
        runtime.spawn(async move {
            let ours = Compare {
                range: KeyRange::key(key.clone()),
                relation: Relation::Equal,
                operand: Operand::Lease(lease.0),
            };
            if let Err(error) = etcd.delete_if(vec![ours], key).await {
                tracing::debug!(plane = "coordination", %error, "a place in a line ends with its lease");
            }
        });
    }
}
