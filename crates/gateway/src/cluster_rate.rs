//! A limit over all gateways of a cluster: tokens are leased from a pool in the store and burnt here.
//!
//! A request never waits for the store. Whoever finds that few tokens are left says so, and a task in the background, which
//! the composition root has and which speaks to the store, asks for the next slice. How much this may overshoot stands in
//! [`buttress_policy::lease`].

use std::time::Duration;

use buttress_policy::{
    Time, Why,
    lease::{Config, Lease},
};
use tokio::sync::Notify;

pub struct Leased {
    /// Where the pool lies in the store.
    pub key: String,
    pub config: Config,
    pub lease: Lease,
    /// Told when there may be something to ask for.
    pub low: Notify,
}

impl Leased {
    pub fn new(key: String, config: Config) -> Self {
        Self { key, config, lease: Lease::new(config), low: Notify::new() }
    }

    /// When to look again, though nobody said that there is little left.
    pub fn look_again(&self, now: Time) -> Duration {
        self.lease.ask_again_in(now).clamp(Duration::from_millis(1), Duration::from_secs(1))
    }

    /// # Errors
    /// There is no token.
    pub fn take(&self, now: Time) -> Result<(), Why> {
        let taken = self.lease.take(now, 1);
        if self.lease.held() <= self.config.slice / 2 {
            self.low.notify_one();
        }
        taken.map(drop)
    }
}
