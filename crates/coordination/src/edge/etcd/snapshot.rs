//! A snapshot in etcd's own file format, for `etcdctl snapshot save` and `etcdutl snapshot restore`.
//!
//! Whoever wants to leave can: the file opens in etcd's tools, and an etcd that is restored from it has the same keys
//! under the same revisions, with their history since the last compaction, and the same leases with the time that they had
//! left. It holds what etcd has a place for. Topics, cursors, timers and the state of functions are not in it; for those there is
//! `buttress backup`.
//!
//! The image of the key space is a checkpoint, so it stays the same while it is read twice, once to know how large the file
//! becomes and once to send it. Reading goes on a thread for blocking work, [`AHEAD`] pieces ahead of the client. The
//! image costs the disk what compaction would have freed, so a client that takes nothing for [`STALLED`] is cut off.
//!
//! What is in which bucket: etcd 3.7, `server/storage/schema`, `server/storage/mvcc/kvstore.go`.

use std::time::Duration;

use buttress_core::{
    Error,
    ledger::{ImageChange, ImageHead, KeyImage, LeaseView},
};
use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use super::{
    bolt::{File, Plan},
    convert, error,
};
use crate::pb::{etcdserverpb as pb, mvccpb};

/// Snapshots that one node streams at the same time.
pub(super) const RUNNING_MAX: usize = 2;
/// As etcd cuts them.
const PIECE_BYTES: usize = 32 * 1024;
/// Pieces that wait for the client.
const AHEAD: usize = 8;
/// A client that takes nothing for so long is gone.
const STALLED: Duration = Duration::from_secs(60);
/// A row begins so; see [`place`].
const PLACE_BYTES: usize = 8 + 1 + 8;
/// The mark of a tombstone's row.
const TOMBSTONE: u8 = b't';

/// `lease/leasepb/lease.proto`.
#[derive(Clone, PartialEq, prost::Message)]
struct Lease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
    #[prost(int64, tag = "3")]
    remaining_ttl: i64,
}

fn place(main: u64, sub: u32) -> [u8; PLACE_BYTES] {
    let mut place = [0; PLACE_BYTES];
    place[..8].copy_from_slice(&main.to_be_bytes());
    place[8] = b'_';
    place[9..].copy_from_slice(&u64::from(sub).to_be_bytes());
    place
}

fn seconds(ms: u64) -> i64 {
    i64::try_from(ms.div_ceil(1000)).unwrap_or(i64::MAX)
}

fn key_row(change: ImageChange) -> (Vec<u8>, Vec<u8>) {
    let mut key = place(change.kv.mod_revision.0, change.sub).to_vec();
    let value = if change.deleted {
        key.push(TOMBSTONE);
        mvccpb::KeyValue { key: change.kv.key, ..mvccpb::KeyValue::default() }
    } else {
        convert::key_value(change.kv)
    };
    (key, value.encode_to_vec())
}

fn lease_row(view: &LeaseView) -> ([u8; 8], Vec<u8>) {
    // What is due lives until somebody ends it; etcd takes 0 for "all of it".
    let remaining_ttl = seconds(view.remaining_ms.max(1));
    let lease = Lease { id: view.lease.0, ttl: seconds(view.ttl_ms), remaining_ttl };
    (view.lease.0.to_be_bytes(), lease.encode_to_vec())
}

/// Rows of `meta`, in their order.
fn meta_rows(head: ImageHead) -> Vec<(&'static str, Vec<u8>)> {
    // etcd's tools put members of their own in place of these. With a term, and without a version of the storage, the file is
    // taken as one of etcd 3.5, which all later ones read.
    let members = br#"{"voters":[1],"auto_leave":false}"#;
    let mut rows = vec![
        ("confState", members.to_vec()),
        ("consistent_index", head.index.0.to_be_bytes().to_vec()),
        ("term", head.term.0.max(1).to_be_bytes().to_vec()),
    ];
    if head.compacted.0 > 0 {
        // Not `finishedCompactRev`: rows may wait to be swept, and etcd sweeps them when it starts.
        rows.insert(2, ("scheduledCompactRev", place(head.compacted.0, 0).to_vec()));
    }
    rows
}

/// Writes all of it into `file`, and calls `each` after every row.
fn write<E: From<Error>>(
    image: &dyn KeyImage,
    file: &mut File,
    mut each: impl FnMut(&mut File) -> Result<(), E>,
) -> Result<Plan, E> {
    for name in ["alarm", "auth", "authRoles", "authUsers", "cluster"] {
        file.bucket(name);
    }
    file.bucket("key");
    for change in image.changes() {
        let (key, value) = key_row(change?);
        file.put(&key, &value);
        each(file)?;
    }
    file.bucket("lease");
    for lease in image.leases() {
        let (key, value) = lease_row(&lease?);
        file.put(&key, &value);
        each(file)?;
    }
    file.bucket("members");
    file.bucket("members_removed");
    file.bucket("meta");
    for (key, value) in meta_rows(image.head()) {
        file.put(key.as_bytes(), &value);
    }
    let plan = file.finish();
    each(file)?;
    Ok(plan)
}

/// Why a snapshot ended before its end.
enum Cut {
    Failed(Error),
    /// Nobody takes it any more.
    Gone,
}

impl From<Error> for Cut {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

struct Sender {
    out: mpsc::Sender<Result<pb::SnapshotResponse, Status>>,
    runtime: tokio::runtime::Handle,
    hash: Sha256,
    left: u64,
}

impl Sender {
    fn send(&mut self, response: pb::SnapshotResponse) -> Result<(), Cut> {
        let sending = async { tokio::time::timeout(STALLED, self.out.send(Ok(response))).await };
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => Ok(()),
            _ => Err(Cut::Gone),
        }
    }

    fn piece(&mut self, blob: Bytes) -> Result<(), Cut> {
        self.hash.update(&blob);
        self.left -= blob.len() as u64;
        let remaining_bytes = self.left;
        self.send(pb::SnapshotResponse { header: None, remaining_bytes, blob, version: String::new() })
    }

    fn run(&mut self, image: &dyn KeyImage) -> Result<u64, Cut> {
        let mut counting = File::new(None);
        let plan = write(image, &mut counting, |file| {
            file.discard();
            // The client may give up while it waits for the first byte.
            if self.out.is_closed() { Err(Cut::Gone) } else { Ok(()) }
        })?;
        self.left = plan.bytes();
        let mut file = File::new(Some(plan));
        let again = write(image, &mut file, |file| {
            while file.waiting() >= PIECE_BYTES {
                self.piece(file.take(PIECE_BYTES))?;
            }
            Ok::<_, Cut>(())
        })?;
        assert_eq!(again, plan, "an image stays as it is");
        while file.waiting() > 0 {
            self.piece(file.take(PIECE_BYTES))?;
        }
        let blob = Bytes::copy_from_slice(&self.hash.finalize_reset());
        self.send(pb::SnapshotResponse { header: None, remaining_bytes: 0, blob, version: String::new() })?;
        Ok(plan.bytes())
    }
}

/// Streams an image; the permit is held until it is read or nobody wants it any more.
pub(super) fn stream(
    image: Box<dyn KeyImage>,
    permit: OwnedSemaphorePermit,
) -> mpsc::Receiver<Result<pb::SnapshotResponse, Status>> {
    let (out, pieces) = mpsc::channel(AHEAD);
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let revision = image.head().revision.0;
        let mut sender = Sender { out, runtime, hash: Sha256::new(), left: 0 };
        match sender.run(&*image) {
            Ok(bytes) => tracing::info!(
                plane = "coordination",
                revision,
                bytes,
                event_type = "snapshot_sent",
                "a snapshot is sent"
            ),
            Err(Cut::Gone) => {
                tracing::warn!(plane = "coordination", revision, "the client of a snapshot has gone, or takes nothing");
                let _ = sender.out.try_send(Err(Status::deadline_exceeded(
                    "etcdserver: the snapshot was taken too slowly; take it again, or with: buttress backup --to FILE.btb",
                )));
            }
            Err(Cut::Failed(failed)) => {
                tracing::error!(plane = "coordination", revision, code = failed.code.0, error = %failed.message, "a snapshot could not be completed");
                let status = error::status(&failed);
                let _ = sender.runtime.block_on(sender.out.send(Err(status)));
            }
        }
    });
    pieces
}

#[cfg(test)]
mod tests {
    use buttress_core::{Consistency, Entry, LeaseChange, LeaseId, Ledger, Put, Revision};
    use buttress_state::local::Local;

    use super::*;

    #[tokio::test]
    async fn rows_are_those_that_etcd_writes() {
        let local = Local::new();
        let lease = LeaseId(0x7d);
        let grant = LeaseChange::Grant { lease, ttl_ms: 60_000 };
        let put = |key: &'static str, value: Option<&'static str>, lease| Put {
            key: Bytes::from(key),
            value: value.map(Bytes::from),
            lease,
        };
        local
            .submit(Entry { leases: vec![grant], puts: vec![put("k", Some("v"), Some(lease))], ..Entry::default() })
            .await
            .unwrap();
        local.submit(Entry { puts: vec![put("k", None, None)], ..Entry::default() }).await.unwrap();
        local.submit(Entry { compact: Some(Revision(2)), ..Entry::default() }).await.unwrap();
        let image = local.image(Consistency::Linearizable).await.unwrap();
        let mut file = File::new(None);
        let plan = write(&*image, &mut file, |_| Ok::<_, Error>(())).unwrap();
        let mut file = File::new(Some(plan));
        write(&*image, &mut file, |_| Ok::<_, Error>(())).unwrap();
        let read = super::super::bolt::reader::Reader::read(&file.take(usize::MAX));
        let names: Vec<_> = read.keys().map(String::as_str).collect();
        let all = [
            "alarm",
            "auth",
            "authRoles",
            "authUsers",
            "cluster",
            "key",
            "lease",
            "members",
            "members_removed",
            "meta",
        ];
        assert_eq!(names, all);
        let row = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
        // As `bbolt get` shows them of an etcd that was told the same.
        let first = b"\x0a\x01k\x10\x02\x18\x02\x20\x01\x2a\x01v\x30\x7d";
        assert_eq!(
            read["key"],
            [
                row(b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0", first),
                row(b"\0\0\0\0\0\0\0\x03_\0\0\0\0\0\0\0\0t", b"\x0a\x01k")
            ]
        );
        assert_eq!(read["lease"], [row(b"\0\0\0\0\0\0\0\x7d", b"\x08\x7d\x10\x3c\x18\x3c")]);
        let meta: Vec<_> = read["meta"].iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect();
        assert_eq!(meta, ["confState", "consistent_index", "scheduledCompactRev", "term"]);
    }
}
