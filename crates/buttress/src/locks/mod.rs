//! Locks for people and scripts: a command runs while a lock is held, on our own log or on the user's etcd.
//!
//! **How.** The recipe is etcd's own, so `etcdctl lock` and `etcdctl elect` wait in the same queue: everybody puts a key
//! `NAME/LEASE` that hangs on a lease of its own, and whoever has the lowest create revision holds the lock; of a semaphore,
//! whoever is among the lowest N. The rest wait until one of those before them is deleted.
//!
//! **Token.** The create revision of the holder's key. It grows from holder to holder, so a store that refuses a token below
//! the highest that it has seen cannot be written by a holder that does not know yet that it lost the lock. The lock alone
//! does not keep such a holder out; its token does.
//!
//! **Loss.** The lease is kept three times in its time. When it could not be kept for two thirds of it, or the server says
//! that it has ended, the lock counts as lost: the command gets SIGTERM at once, and SIGKILL before anybody else can hold the
//! lock, by this machine's monotonic clock ([`supervise`]).
//!
//! **First start and recovery.** There is nothing to set up. A process that dies without a word keeps the lock until its lease
//! ends; a machine that sleeps wakes up with the lock lost.
//!
//! Source: the recipes of etcd's `client/v3/concurrency`.

pub mod gateway;
pub mod supervise;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use buttress_core::{Code, Error};
use bytes::Bytes;
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle};

use gateway::{Gateway, Place, base64, number, place, prefix_end};

/// A call of the recipe is given up after this.
const CALL_WITHIN: Duration = Duration::from_secs(15);
/// Somebody who waits for no lock waits so long for an answer all the same.
const OPEN_WITHIN_MIN: Duration = Duration::from_secs(2);
/// A lease that could not be kept is given back only if that is quick: it ends by itself.
const CLOSE_LOST_WITHIN: Duration = Duration::from_secs(1);
/// Who waits looks again after this, whatever it was told.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// A name is the beginning of a key.
const NAME_BYTES_MAX: usize = 1024;
const VALUE_BYTES_MAX: usize = 64 * 1024;
pub const TTL_MIN: Duration = Duration::from_secs(2);
pub const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long the lease certainly lives.
#[derive(Clone, Copy, Debug)]
struct Life {
    until: Instant,
    gone: bool,
}

/// A lease that is kept alive for as long as this value lives.
pub struct Session {
    gateway: Arc<Gateway>,
    lease: i64,
    ttl: Duration,
    life: watch::Receiver<Life>,
    /// Why the lease could not be kept when it was last tried.
    trouble: Arc<Mutex<Option<String>>>,
    keeper: JoinHandle<()>,
}

impl Session {
    /// # Errors
    /// `UNREACHABLE` where no endpoint answers within the time.
    pub async fn open(gateway: Arc<Gateway>, ttl: Duration, within: Duration) -> Result<Self, Error> {
        let asked = Instant::now();
        let (lease, ttl) = gateway.grant(ttl, asked + within.clamp(OPEN_WITHIN_MIN, CALL_WITHIN)).await?;
        // The lease began after it was asked for, so it ends no earlier than this.
        let (tell, life) = watch::channel(Life { until: asked + ttl, gone: ttl.is_zero() });
        let trouble = Arc::default();
        let keeper = tokio::spawn(keep(gateway.clone(), lease, ttl, tell, Arc::clone(&trouble)));
        Ok(Self { gateway, lease, ttl, life, trouble, keeper })
    }

    /// Resolves when the lease has ended, or may end before a command is stopped; gives the moment until which it certainly
    /// lives.
    pub async fn lost(&self) -> Instant {
        let mut life = self.life.clone();
        loop {
            let Life { until, gone } = *life.borrow_and_update();
            let stop_at = until - self.ttl / 3;
            if gone {
                // Somebody else may hold the lock already.
                return Instant::now();
            }
            if Instant::now() >= stop_at {
                return until;
            }
            tokio::select! {
                () = tokio::time::sleep_until(stop_at.into()) => {}
                changed = life.changed() => if changed.is_err() { return until },
            }
        }
    }

    /// Why it is lost, for people.
    pub fn why_lost(&self) -> String {
        if self.life.borrow().gone {
            return "the server says that the lease has ended".to_owned();
        }
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let why = trouble.as_deref().unwrap_or("this process was held up");
        let missed = (self.ttl - self.ttl / 3).as_secs_f64();
        format!("the lease could not be kept alive for {missed:.1} s: {why}")
    }

    /// Lets the lock go.
    ///
    /// # Errors
    /// Where nobody answers: then the lease ends by itself.
    pub async fn close(self) -> Result<(), Error> {
        self.close_within(self.ttl.min(CALL_WITHIN)).await
    }

    /// Gives back what is lost anyway, so that the next in the queue may be quicker.
    pub async fn close_lost(self) {
        let _ = self.close_within(CLOSE_LOST_WITHIN).await;
    }

    async fn close_within(&self, within: Duration) -> Result<(), Error> {
        self.keeper.abort();
        self.gateway.revoke(self.lease, Instant::now() + within).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

async fn keep(
    gateway: Arc<Gateway>,
    lease: i64,
    ttl: Duration,
    tell: watch::Sender<Life>,
    trouble: Arc<Mutex<Option<String>>>,
) {
    let note = |text: Option<String>| *trouble.lock().unwrap_or_else(PoisonError::into_inner) = text;
    loop {
        tokio::time::sleep(ttl / 3).await;
        let asked = Instant::now();
        // The lock may be lost in the very moment in which this is given up.
        note(Some("the server has not answered".to_owned()));
        match gateway.keep_alive(lease, asked + ttl / 3).await {
            Ok(Some(ttl)) => {
                note(None);
                let _ = tell.send(Life { until: asked + ttl, gone: false });
            }
            Ok(None) => {
                tell.send_modify(|life| life.gone = true);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, event_type = "lease_not_kept", "a lock's lease could not be kept");
                note(Some(error.message));
            }
        }
    }
}

/// What is waited for.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: String,
    /// How many may hold it at once.
    pub limit: usize,
    /// What others see of the holder.
    pub value: Bytes,
}

impl Wanted {
    /// # Errors
    /// `BAD_REQUEST` for an empty or too long name, a limit of 0, or a value that is too long.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |message: String| Err(Error::new(Code::BAD_REQUEST, message));
        match (self.name.len(), self.limit, self.value.len()) {
            (0, ..) => bad("the name of a lock is empty".into()),
            (got, ..) if got > NAME_BYTES_MAX => bad(format!("the name has {got} bytes, at most {NAME_BYTES_MAX}")),
            (_, 0, _) => bad("a semaphore that nobody may hold".into()),
            (.., got) if got > VALUE_BYTES_MAX => bad(format!("the value has {got} bytes, at most {VALUE_BYTES_MAX}")),
            _ => Ok(()),
        }
    }

    fn prefix(&self) -> String {
        format!("{}/", self.name)
    }
}

/// A lock that is held.
#[derive(Clone, Debug)]
pub struct Held {
    pub key: String,
    /// The fencing token.
    pub token: i64,
}

/// Stands in the queue until it is its turn. `waiting` hears how many are ahead whenever that was looked at.
///
/// # Errors
/// `LEASE_UNKNOWN` when the lease ended meanwhile, so the place in the queue is lost; whatever the server says.
pub async fn acquire(session: &Session, wanted: &Wanted, mut waiting: impl FnMut(usize)) -> Result<Held, Error> {
    let gateway = &session.gateway;
    let prefix = wanted.prefix();
    let key = format!("{prefix}{:x}", session.lease);
    let entered = gateway
        .call(
            "/v3/kv/txn",
            &json!({
                "compare": [{"key": base64(key.as_bytes()), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}],
                "success": [{"request_put": {
                    "key": base64(key.as_bytes()), "value": base64(&wanted.value), "lease": session.lease.to_string(),
                }}],
                "failure": [{"request_range": {"key": base64(key.as_bytes())}}],
            }),
            Instant::now() + CALL_WITHIN,
        )
        .await?;
    let token = match entered["succeeded"] == true {
        true => number(&entered["header"]["revision"]),
        // It was sent twice, and the first one did it.
        false => number(&entered["responses"][0]["response_range"]["kvs"][0]["create_revision"]),
    };
    let ended = || Error::new(Code::LEASE_UNKNOWN, format!("the lease ended while \"{}\" was waited for", wanted.name));
    if token == 0 {
        return Err(ended());
    }
    loop {
        // Whether the own key is there still, and who came before it, at one revision.
        let look = json!({
            "compare": [{
                "key": base64(key.as_bytes()), "target": "CREATE", "result": "EQUAL",
                "create_revision": token.to_string(),
            }],
            "success": [{"request_range": {
                "key": base64(prefix.as_bytes()), "range_end": base64(&prefix_end(prefix.as_bytes())),
                "max_create_revision": (token - 1).to_string(), "keys_only": true,
                "sort_order": "DESCEND", "sort_target": "CREATE",
            }}],
        });
        let seen = gateway.call("/v3/kv/txn", &look, Instant::now() + CALL_WITHIN).await?;
        if seen["succeeded"] != true {
            return Err(ended());
        }
        let ahead = seen["responses"][0]["response_range"]["kvs"].as_array().cloned().unwrap_or_default();
        if ahead.len() < wanted.limit {
            return Ok(Held { key, token });
        }
        waiting(ahead.len());
        let from = number(&seen["header"]["revision"]) + 1;
        // A lock wakes only whoever is next; of a semaphore anybody's end may make room.
        let (first, end) = match wanted.limit {
            1 => (place(&ahead[0]).key, Vec::new()),
            _ => (Bytes::from(prefix.clone()), prefix_end(prefix.as_bytes())),
        };
        tokio::select! {
            () = gateway.wait_for_delete(&first, &end, from, LOOK_AGAIN) => {}
            _ = session.lost() => return Err(ended()),
        }
    }
}

/// Everybody in the queue of a lock, whoever holds it first.
///
/// # Errors
/// What the server says.
pub async fn queue(gateway: &Gateway, name: &str) -> Result<Vec<Place>, Error> {
    let prefix = format!("{name}/");
    let range = json!({
        "key": base64(prefix.as_bytes()), "range_end": base64(&prefix_end(prefix.as_bytes())),
        "sort_order": "ASCEND", "sort_target": "CREATE",
    });
    let found = gateway.call("/v3/kv/range", &range, Instant::now() + CALL_WITHIN).await?;
    Ok(found["kvs"].as_array().into_iter().flatten().map(place).collect())
}
