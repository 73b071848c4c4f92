//! How a transaction is made one that may be sent again.
//!
//! The problem: a connection that breaks after a `Txn` was sent leaves open whether it was carried out. Sent again blindly, it
//! might be carried out twice, or be refused by its own first copy.
//!
//! The design. Every transaction also writes a key of its own, a *slot*, and compares the number of writes that the slot has
//! seen with what we know. The copy that comes second finds one more and changes nothing, and its failure branch reads the
//! slot: its revision is that of the first copy. A copy that comes second and is refused by a guard settles the slot, so that the
//! first, should it still be on its way, changes nothing either. So an entry is carried out at most once however often it is sent, and whoever
//! sends it learns which it was.
//!
//! Slots hang on a lease, the session's, so that they are gone a minute after their process. If the lease ends while we live (no
//! contact for a minute), the next transaction begins a new session, under another name. A transaction whose earlier copy may
//! still be on its way is then not repeated: its outcome is unknown (`BT0102`).
//!
//! | what is seen | what is known |
//! |---|---|
//! | the transaction succeeds | it was carried out now |
//! | the slot has one write more | it was carried out by an earlier copy, at the slot's revision |
//! | the slot is as it was, a guard does not hold | refused |
//! | the slot is gone, or its lease | first copy: again in a new session; a later one: unknown |
//! | no answer until the deadline | unknown |

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use buttress_core::{Code, Error};
use buttress_etcd_proto::etcdserverpb::{self as pb, lease_client::LeaseClient};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    convert::{self, Namespace, OWN},
    endpoints::Endpoints,
};
use crate::patience::lock;

/// Transactions on their way at the same time; more wait. etcd takes them one after the other anyway.
pub const IN_FLIGHT_MAX: usize = 64;
/// A session without contact ends after this.
const SESSION_TTL: Duration = Duration::from_secs(60);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);

pub(super) struct Session {
    pub(super) lease: i64,
    name: u64,
    slots: Mutex<Vec<Slot>>,
    room: Arc<Semaphore>,
    ended: AtomicBool,
}

#[derive(Clone, Copy)]
struct Slot {
    number: usize,
    writes: i64,
}

/// A slot that one transaction has to itself.
pub(super) struct Held {
    session: Arc<Session>,
    slot: Slot,
    _room: OwnedSemaphorePermit,
    pub(super) key: Bytes,
}

impl Held {
    /// Writes that the slot has seen.
    pub(super) fn writes(&self) -> i64 {
        self.slot.writes
    }

    pub(super) fn lease(&self) -> i64 {
        self.session.lease
    }

    /// The outcome is known: the slot may be used again. A slot that is dropped without it is not.
    pub(super) fn settle(self, written: bool) {
        let writes = self.slot.writes + i64::from(written);
        lock(&self.session.slots).push(Slot { number: self.slot.number, writes });
    }

    pub(super) fn end_session(&self) {
        self.session.ended.store(true, Relaxed);
    }
}

/// The present session of a ledger.
#[derive(Default)]
pub(super) struct Sessions {
    current: tokio::sync::Mutex<Option<Arc<Session>>>,
}

impl Sessions {
    /// A slot of the present session, or of a new one. Waits while all are taken.
    ///
    /// # Errors
    /// What keeps a session from being begun.
    pub(super) async fn hold(&self, endpoints: &Arc<Endpoints>, ns: &Namespace) -> Result<Held, Error> {
        loop {
            let session = {
                let mut current = self.current.lock().await;
                match &*current {
                    Some(session) if !session.ended.load(Relaxed) => session.clone(),
                    _ => {
                        let session = begin(endpoints).await?;
                        *current = Some(session.clone());
                        session
                    }
                }
            };
            let room = session.room.clone().acquire_owned().await.expect("the semaphore is never closed");
            let Some(slot) = lock(&session.slots).pop() else {
                // Every slot has an open outcome: they stay as they are, and end with their session.
                session.ended.store(true, Relaxed);
                continue;
            };
            let name = format!("requests/{:016x}/{:02x}", session.name, slot.number);
            let key = ns.key(&[OWN, name.as_bytes()].concat());
            return Ok(Held { session, slot, _room: room, key });
        }
    }

    /// Ends the session, so that its slots go at once instead of after their time.
    pub(super) async fn end(&self, endpoints: &Endpoints) {
        let Some(session) = self.current.lock().await.take() else { return };
        session.ended.store(true, Relaxed);
        let revoke = pb::LeaseRevokeRequest { id: session.lease };
        let call = |channel| async move { LeaseClient::new(channel).lease_revoke(revoke).await };
        // Where that does not work out, time does it.
        let _ = endpoints.attempt(call).await;
    }
}

async fn begin(endpoints: &Arc<Endpoints>) -> Result<Arc<Session>, Error> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| Error::new(Code::LIMITS, format!("no random number: {error}")))?;
    let grant = pb::LeaseGrantRequest { ttl: SESSION_TTL.as_secs() as i64, id: 0 };
    // A grant whose answer was lost leaves a lease without keys, which ends by itself.
    let call = |channel| async move { LeaseClient::new(channel).lease_grant(grant).await };
    let granted = endpoints.call(call).await.map_err(|fault| convert::fault(&fault))?.into_inner();
    let slots = (0..IN_FLIGHT_MAX).map(|number| Slot { number, writes: 0 }).collect();
    let session = Arc::new(Session {
        lease: granted.id,
        name: u64::from_be_bytes(random),
        slots: Mutex::new(slots),
        room: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
        ended: AtomicBool::new(false),
    });
    let (weak, endpoints) = (Arc::downgrade(&session), Arc::downgrade(endpoints));
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(KEEP_ALIVE_EVERY).await;
            let (Some(session), Some(endpoints)) = (weak.upgrade(), endpoints.upgrade()) else { return };
            if session.ended.load(Relaxed) {
                return;
            }
            if let Ok(0) = keep_alive(&endpoints, session.lease).await {
                session.ended.store(true, Relaxed);
                return;
            }
        }
    });
    Ok(session)
}

/// Renews a lease and gives its time to live in seconds; 0 where there is none.
///
/// # Errors
/// What is in the way.
pub(super) async fn keep_alive(endpoints: &Endpoints, id: i64) -> Result<i64, Error> {
    let call = |channel| async move {
        let asked = futures::stream::iter([pb::LeaseKeepAliveRequest { id }]);
        let mut answers = LeaseClient::new(channel).lease_keep_alive(asked).await?.into_inner();
        let closed = || tonic::Status::unavailable("the stream of keep-alives ended without an answer");
        answers.message().await?.ok_or_else(closed)
    };
    Ok(endpoints.call(call).await.map_err(|fault| convert::fault(&fault))?.ttl)
}
