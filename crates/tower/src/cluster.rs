//! A limit of a whole cluster: tokens are leased from a pool in a store that all services share, and burnt here.
//!
//! It is the limit of `buttress proxy` (a route's `rate` with `cluster`), bit for bit: services and gateways may share a pool. What it gives
//! away is bounded and stands in [`buttress_policy::lease`]. A call never waits for the store: [`ClusterLimit::follow`] asks it, on a task that
//! you spawn, whenever half a slice is used.
//!
//! | the store | what happens |
//! |---|---|
//! | [`Pools`] of your own | a value under a key, replaced only if nobody else has: etcd, Redis, DynamoDB, a table with a version |
//! | [`crate::etcd::Etcd`] (feature `etcd`) | etcd's JSON gateway, or the etcd port of a Buttress node, through any HTTP client |
//! | does not answer | what was leased is burnt; then [`Config::cut_off_per_second`] |

use std::{
    fmt,
    sync::{Arc, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use buttress_policy::{
    Time, Validate, Why,
    lease::{Config, Lease, Pool},
};
use tokio::sync::Notify;

use crate::{
    clock::{Clock, Numbers},
    policy_set::Invalid,
};

/// How often a slice is tried for while others are faster.
const TRIES: usize = 5;
/// After that; the pool is busy, not empty.
const BUSY: Duration = Duration::from_millis(10);

/// A value of a store, and what tells whether it was replaced since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub value: Vec<u8>,
    /// A revision, a version, a generation: never the same for two values of a key.
    pub version: u64,
}

/// Where pools are kept. One compare-and-swap is all that is asked of a store.
pub trait Pools: Send + Sync {
    type Error: fmt::Display + Send;

    /// The value now, as the last one who replaced it has left it; none where there is no such key.
    fn read(&self, key: &str) -> impl Future<Output = Result<Option<Stored>, Self::Error>> + Send;

    /// Puts a value in place of the one of this version, or where there is none. Tells whether that was still so; where it was
    /// not, nothing may have changed.
    fn replace(
        &self,
        key: &str,
        version: Option<u64>,
        value: &[u8],
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;
}

/// A limit over everybody who shares its key in a store. Cheap to clone; all clones burn the same tokens.
///
/// ```
/// # use buttress_tower::{Policy, server_config, cluster::{ClusterLimit, Pools, Stored}, policy::lease};
/// # use std::{collections::HashMap, sync::{Arc, Mutex}};
/// # #[derive(Default)] struct Store(Mutex<HashMap<String, Stored>>);
/// # impl Pools for Store {
/// #     type Error = std::convert::Infallible;
/// #     async fn read(&self, key: &str) -> Result<Option<Stored>, Self::Error> { Ok(self.0.lock().unwrap().get(key).cloned()) }
/// #     async fn replace(&self, key: &str, version: Option<u64>, value: &[u8]) -> Result<bool, Self::Error> {
/// #         let mut all = self.0.lock().unwrap();
/// #         if all.get(key).map(|known| known.version) != version { return Ok(false); }
/// #         all.insert(key.to_owned(), Stored { value: value.to_vec(), version: version.unwrap_or(0) + 1 });
/// #         Ok(true)
/// #     }
/// # }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = Store::default();
/// // 1000 a second over all services, 100 at once.
/// let limit = ClusterLimit::new("/limits/orders", lease::Config::new(1000.0, 100))?;
/// let following = tokio::spawn(limit.follow(store, |error| eprintln!("no tokens: {error}")));
/// let policy = Policy::builder(server_config()).cluster_limit(limit.clone()).build()?;
/// # while limit.held() == 0 { tokio::task::yield_now().await; }
/// # assert!(limit.take().is_ok() && policy.view().inflight == 0);
/// # drop((limit, policy)); following.await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ClusterLimit(Arc<Inner>);

struct Inner {
    key: String,
    config: Config,
    lease: Lease,
    clock: Clock,
    numbers: Numbers,
    /// Told when there may be something to ask for.
    low: Arc<Notify>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Whoever follows it looks, and ends.
        self.low.notify_one();
    }
}

impl fmt::Debug for ClusterLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { key, config, lease, .. } = &*self.0;
        f.debug_struct("ClusterLimit").field("key", key).field("config", config).field("held", &lease.held()).finish()
    }
}

impl ClusterLimit {
    /// Everybody with this key in one store should have the same settings: each grants by its own.
    ///
    /// # Errors
    /// Everything that is wrong with the settings.
    pub fn new(key: impl Into<String>, config: Config) -> Result<Self, Invalid> {
        config.validate("cluster_limit").map_err(Invalid)?;
        let (lease, clock, low) = (Lease::new(config), Clock::new(), Arc::default());
        Ok(Self(Arc::new(Inner { key: key.into(), config, lease, clock, numbers: Numbers::new(None), low })))
    }

    /// Burns a token. [`crate::Builder::cluster_limit`] does it for each call.
    ///
    /// # Errors
    /// There is none here: `BT-LSE-EMPTY`, or `BT-LSE-CUT` where the store has been silent for long.
    pub fn take(&self) -> Result<Why, Why> {
        let taken = self.0.lease.take(self.0.clock.now(), 1);
        if self.0.lease.held() <= self.0.config.slice / 2 {
            self.0.low.notify_one();
        }
        taken
    }

    /// Tokens that are here.
    pub fn held(&self) -> u32 {
        self.0.lease.held()
    }

    /// Asks the store for tokens, for as long as the limit is there: until the last clone of it is gone. Spawn it once.
    /// `on_error` is told what a store that does not answer says.
    pub fn follow<P: Pools, F: FnMut(P::Error) + Send>(
        &self,
        pools: P,
        mut on_error: F,
    ) -> impl Future<Output = ()> + Send + use<P, F> {
        let (limit, low) = (Arc::downgrade(&self.0), Arc::clone(&self.0.low));
        async move {
            while let Some(pause) = ask(&limit, &pools, &mut on_error).await {
                // Tokens end, and an empty pool fills, without anybody saying so.
                let _ = tokio::time::timeout(pause, low.notified()).await;
            }
        }
    }
}

/// Asks once, if there is something to ask for. Returns when to look again; none when the limit is gone.
async fn ask<P: Pools>(limit: &Weak<Inner>, pools: &P, on_error: &mut impl FnMut(P::Error)) -> Option<Duration> {
    let limit = limit.upgrade()?;
    let asked = limit.clock.now();
    if let Some(wanted) = limit.lease.ask(asked) {
        match slice(&limit, pools, wanted).await {
            Ok(Ok(tokens)) => limit.lease.granted(asked, tokens),
            Ok(Err(empty_for)) => limit.lease.refused(limit.clock.now(), empty_for, limit.numbers.draw()),
            Err(error) => {
                limit.lease.silent(limit.clock.now());
                on_error(error);
            }
        }
    }
    Some(limit.lease.ask_again_in(limit.clock.now()).clamp(Duration::from_millis(1), Duration::from_secs(1)))
}

/// Takes tokens from the pool; inside, for how long it is empty.
async fn slice<P: Pools>(limit: &Inner, pools: &P, wanted: u32) -> Result<Result<u32, Duration>, P::Error> {
    for _ in 0..TRIES {
        let (mut pool, version) = match pools.read(&limit.key).await? {
            // Bytes that are no pool begin anew, full.
            Some(stored) => (Pool::from_bytes(&stored.value).unwrap_or_default(), Some(stored.version)),
            None => (Pool::default(), None),
        };
        let tokens = match limit.lease.take_from(&mut pool, limit.clock.now(), wall_clock(), wanted) {
            Ok(tokens) => tokens,
            Err(empty_for) => return Ok(Err(empty_for)),
        };
        if pools.replace(&limit.key, version, &pool.to_bytes()).await? {
            return Ok(Ok(tokens));
        }
    }
    Ok(Err(BUSY))
}

/// What all who share a pool have more or less in common; what a difference costs stands in [`buttress_policy::lease`].
fn wall_clock() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
