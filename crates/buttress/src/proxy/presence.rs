//! The lease on which hangs all that a gateway writes of itself into its store: where it is ([`super::fleet`]), and what it made of
//! routes and listeners (the statuses of [`super::store`]).
//!
//! [`Presence::hold`] is its owner. Whoever writes looks which one holds, and when another does, writes all of its keys under that.
//!
//! | | the lease |
//! |---|---|
//! | the gateway starts | is granted |
//! | every third of [`TTL`] | is kept |
//! | it cannot be kept: it has ended, or the store does not answer | another one is granted as soon as the store answers; the old one ends by itself |
//! | the gateway ends | is given back: the keys go at once |
//! | the gateway dies | ends, and the keys with it, [`TTL`] later |

use std::{sync::Arc, time::Duration};

use buttress_core::{Entry, LeaseChange, LeaseId, Ledger};
use tokio::sync::watch;

/// A gateway that is gone is gone from the store after this.
pub const TTL: Duration = Duration::from_secs(30);
/// How long after a failure until the store is asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

pub struct Presence {
    ledger: Arc<dyn Ledger>,
    held: watch::Sender<Option<LeaseId>>,
}

impl Presence {
    pub fn new(ledger: Arc<dyn Ledger>) -> Self {
        Self { ledger, held: watch::Sender::new(None) }
    }

    /// The lease that holds, none before the first; told when it is another one.
    pub fn lease(&self) -> watch::Receiver<Option<LeaseId>> {
        self.held.subscribe()
    }

    /// Sees to it that there is one, until it is dropped.
    pub async fn hold(&self) {
        loop {
            let Ok(number) = getrandom::u64() else { return };
            // Positive, and not 0, which means none.
            let lease = LeaseId((number >> 1 | 1) as i64);
            if let Err(error) = self.submit(LeaseChange::Grant { lease, ttl_ms: TTL.as_millis() as u64 }).await {
                tracing::debug!(%error, "the store grants no lease");
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            }
            self.held.send_replace(Some(lease));
            loop {
                tokio::time::sleep(TTL / 3).await;
                if let Err(error) = self.submit(LeaseChange::KeepAlive { lease }).await {
                    tracing::debug!(%error, "the lease was not kept");
                    break;
                }
            }
        }
    }

    /// Gives the lease back, so that a gateway that ended is gone at once. Nobody may hold it any more.
    pub async fn leave(&self) {
        let held = *self.held.borrow();
        if let Some(lease) = held {
            let _ = tokio::time::timeout(AGAIN_AFTER, self.submit(LeaseChange::Revoke { lease })).await;
        }
    }

    async fn submit(&self, change: LeaseChange) -> Result<(), buttress_core::SubmitError> {
        self.ledger.submit(Entry { leases: vec![change], ..Entry::default() }).await.map(drop)
    }
}
