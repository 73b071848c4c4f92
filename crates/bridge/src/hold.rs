//! Who runs a partition: a key in the ledger that hangs on a lease.
//!
//! A host that wants to run a partition takes the partition's key, created with its lease in one entry, so that one of many
//! gets it. The others watch until the key is gone. The holder renews; if it cannot, for whatever reason, it counts itself out
//! *before* the lease can have ended, by its own clock: [`Hold::lost`] comes back after two thirds of the time to live without
//! a renewal. Clocks may still differ in their speed, and a process may be paused at any point, so a hold is never what keeps
//! two hosts apart; fencing is ([`Kafka::claim`](crate::kafka::Kafka::claim)). A hold keeps them from fencing each other again
//! and again.

use std::{sync::Arc, time::Duration};

use buttress_core::{
    Code, Consistency, Error, KeyRange, LeaseId, Ledger, Refusal, Revision, SubmitError, TimeMs,
    tenure::{self, Renewal},
};
use bytes::Bytes;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

/// The shortest time to live: etcd counts in seconds, and an election takes one or two.
pub const TTL_MIN: Duration = Duration::from_secs(3);

/// A key that is ours while we renew its lease.
pub struct Hold {
    ledger: Arc<dyn Ledger>,
    hold: tenure::Hold,
    key: Bytes,
    /// Grows from holder to holder: a fencing token.
    pub revision: Revision,
    lost: watch::Receiver<bool>,
    renewer: JoinHandle<()>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.renewer.abort();
    }
}

impl Hold {
    /// Waits until the key is free and takes it.
    ///
    /// # Errors
    /// `CONFIG` for a time to live below [`TTL_MIN`], and what the ledger answers.
    pub async fn take(ledger: Arc<dyn Ledger>, key: Bytes, owner: &str, ttl: Duration) -> Result<Self, Error> {
        if ttl < TTL_MIN {
            let error = Error::new(Code::CONFIG, format!("a hold is to live for {ttl:?}"));
            return Err(error.hint(format!("give it {TTL_MIN:?} or more")));
        }
        loop {
            let mut random = [0; 8];
            getrandom::fill(&mut random)
                .map_err(|error| Error::new(Code::LIMITS, format!("no random number: {error}")))?;
            let lease = LeaseId((i64::from_be_bytes(random) & i64::MAX).max(1));
            let (start, ttl_ms) = (Instant::now(), ttl.as_millis() as u64);
            let entry = tenure::Hold::take(&key, owner, lease, ttl_ms);
            match ledger.submit(entry).await {
                Ok(receipt) => {
                    let (tell, lost) = watch::channel(false);
                    let hold = tenure::Hold::taken(lease, ttl_ms, TimeMs(0));
                    let renewer = tokio::spawn(renew(ledger.clone(), hold, start, tell));
                    return Ok(Self { ledger, hold, key, revision: receipt.revision, lost, renewer });
                }
                Err(SubmitError::Refused(Refusal::Guard { .. })) => free(&*ledger, &key).await?,
                // Its lease ends by itself, if it was granted.
                Err(error) => return Err(error.into_error()),
            }
        }
    }

    /// Comes back when the hold may have ended.
    pub async fn lost(&mut self) {
        // The renewer ends only after it has told.
        let _ = self.lost.wait_for(|lost| *lost).await;
    }

    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// Gives the key to whoever waits, at once.
    ///
    /// # Errors
    /// What the ledger answers; the lease then ends by itself.
    pub async fn release(self) -> Result<(), Error> {
        self.renewer.abort();
        match self.ledger.submit(self.hold.release()).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Code::LEASE_UNKNOWN => Ok(()),
            Err(error) => Err(error.into_error()),
        }
    }
}

/// Waits until there is no such key.
async fn free(ledger: &dyn Ledger, key: &Bytes) -> Result<(), Error> {
    loop {
        let read = ledger.read(KeyRange::key(key.clone()), 1, Consistency::Linearizable).await?;
        if read.kvs.is_empty() {
            return Ok(());
        }
        let mut watch = ledger.watch(KeyRange::key(key.clone()), Some(Revision(read.revision.0 + 1))).await?;
        loop {
            match watch.next().await {
                Ok(Some(events)) if events.iter().any(|event| event.value.is_none()) => return Ok(()),
                Ok(Some(_)) => {}
                Ok(None) => return Err(Error::new(Code::STOPPED, "the ledger stops")),
                Err(error) if error.code == Code::COMPACTED => break,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Renews until that fails for too long. The hold's clock begins at `start`.
async fn renew(ledger: Arc<dyn Ledger>, mut hold: tenure::Hold, start: Instant, tell: watch::Sender<bool>) {
    let now = || TimeMs(start.elapsed().as_millis() as u64);
    loop {
        sleep(Duration::from_millis(hold.pause_ms())).await;
        let asked = now();
        let end = start + Duration::from_millis(hold.until().0);
        let what = match timeout_at(end, ledger.submit(hold.renewal())).await {
            Ok(Ok(_)) => Renewal::Done,
            Ok(Err(error)) if error.code() == Code::LEASE_UNKNOWN => Renewal::Gone,
            Ok(Err(error)) => {
                tracing::debug!(plane = "bridge", lease = hold.lease.0, %error, "a hold was not renewed yet");
                Renewal::Unanswered
            }
            Err(_) => Renewal::Unanswered,
        };
        if !hold.renewed(asked, now(), what) {
            tell.send_replace(true);
            return;
        }
    }
}
