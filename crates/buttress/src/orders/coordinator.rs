//! The coordinator: carries out what [`buttress_saga`] says, a task for each saga that has not ended.
//!
//! It takes the side over by writing a fencing token one higher than the last into the owner's key. Every transition is one
//! entry: the journal, what it tells the topics, and two guards, the owner and the journal as it was read. A coordinator
//! that was replaced finds its first guard refused and ends; services put the same guard into their entries, so what it
//! had sent before changes nothing either.
//!
//! **First start and recovery** are the same: take over, read the journals that are open, go on with each, and watch for
//! new ones. Nothing else is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use buttress_core::{Code, Error};
use buttress_saga::{Call, Definition, Effect, Next, Outcome, Record, Reply, Saga, decode, encode};
use http::StatusCode;
use serde_json::{Value, json};

use super::{
    call::Caller,
    ledger::{Commit, Kept, Ledger},
    shape::{COMPENSATIONS, EVENTS, Event, Order, Role, Side, keys},
};
use crate::demo::feed::now_ms;

/// Before what did not work is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// Why a saga is not gone on with here.
enum Stopped {
    /// Another coordinator has taken over.
    Replaced,
    Wrong(Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Wrong(error)
    }
}

pub struct Coordinator {
    side: Side,
    ledger: Arc<Ledger>,
    caller: Arc<Caller>,
    /// Where the services are, or the proxies before them.
    services: BTreeMap<String, String>,
    fence: String,
    definitions: Mutex<BTreeMap<String, Arc<Definition>>>,
    running: Mutex<BTreeSet<String>>,
    dice: AtomicU64,
    pub figures: Figures,
}

#[derive(Default)]
pub struct Figures {
    /// Journals that were open when it started.
    pub resumed: AtomicU64,
    pub open: AtomicU64,
    pub ended: AtomicU64,
}

impl Coordinator {
    /// Takes the side over.
    ///
    /// # Errors
    /// Where the log cannot be asked.
    pub async fn take_over(
        side: Side,
        ledger: Arc<Ledger>,
        caller: Arc<Caller>,
        services: BTreeMap<String, String>,
    ) -> Result<Arc<Self>, Error> {
        let owner = keys::owner(side);
        let fence = loop {
            let kept = match ledger.get(&owner).await {
                Ok(kept) => kept,
                Err(error) if error.retryable => {
                    tracing::warn!(%error, "the log cannot be reached yet");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let last = kept.as_ref().and_then(|kept| kept.value.parse::<u64>().ok()).unwrap_or(0);
            let fence = (last + 1).to_string();
            let revision = kept.map_or(0, |kept| kept.mod_revision);
            let entry = json!({
                "guards": [{"key": owner, "mod_revision": revision}],
                "puts": [{"key": owner, "value": fence}],
            });
            // A token that was written and not heard of is left behind: the next one is higher.
            if let Commit::Applied { .. } = ledger.submit(&entry).await? {
                break fence;
            }
        };
        tracing::info!(side = side.word(), fence, "took over");
        Ok(Arc::new(Self {
            side,
            ledger,
            caller,
            services,
            fence,
            definitions: Mutex::default(),
            running: Mutex::default(),
            dice: AtomicU64::new(crate::dev::seed()?),
            figures: Figures::default(),
        }))
    }

    /// Goes on with what is open, and with what comes, until it is replaced.
    ///
    /// # Errors
    /// `STOPPED` when another one has taken over; where the log cannot be asked.
    pub async fn run(self: &Arc<Self>) -> Result<(), Error> {
        let (gone, mut replaced) = tokio::sync::mpsc::unbounded_channel();
        let prefix = keys::open(self.side, "");
        let mut is_first = true;
        loop {
            // What is open, and then what comes: a watch that ended may have missed something.
            match self.ledger.list(&prefix).await {
                Ok((open, revision)) => {
                    if std::mem::take(&mut is_first) {
                        self.figures.resumed.store(open.len() as u64, Ordering::Relaxed);
                        tracing::info!(side = self.side.word(), open = open.len(), "goes on with what is open");
                    }
                    for kept in open {
                        self.begin(kept, &gone);
                    }
                    let watching = self.ledger.watch(&prefix, revision + 1, |put| {
                        // A later state of a journal is our own writing, or was there when we looked.
                        if put.value.lines().count() == 1 {
                            self.begin(put.clone(), &gone);
                        }
                    });
                    tokio::select! {
                        () = watching => {}
                        _ = replaced.recv() => return Err(self.was_replaced()),
                    }
                }
                Err(error) => tracing::warn!(%error, "the open journals cannot be read"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn was_replaced(&self) -> Error {
        let fence = &self.fence;
        Error::new(Code::STOPPED, format!("another coordinator has taken over from the one with token {fence}"))
    }

    /// Goes on with a saga, unless it is being gone on with.
    fn begin(self: &Arc<Self>, kept: Kept, gone: &tokio::sync::mpsc::UnboundedSender<()>) {
        if !self.running.lock().expect("no panic under this lock").insert(kept.key.clone()) {
            return;
        }
        self.figures.open.fetch_add(1, Ordering::Relaxed);
        let (this, gone) = (Arc::clone(self), gone.clone());
        tokio::spawn(async move {
            let key = kept.key.clone();
            match this.carry_on(kept).await {
                Ok(()) => {
                    this.running.lock().expect("no panic under this lock").remove(&key);
                    this.figures.ended.fetch_add(1, Ordering::Relaxed);
                }
                Err(Stopped::Replaced) => drop(gone.send(())),
                // It stays open and in the list: nobody here goes on with it, and whoever takes over will see.
                Err(Stopped::Wrong(error)) => tracing::error!(%error, key, "a saga stopped"),
            }
            this.figures.open.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Carries a saga out; where the log cannot be reached, again and again.
    async fn carry_on(&self, mut kept: Kept) -> Result<(), Stopped> {
        let key = kept.key.clone();
        loop {
            match self.carry_out(kept).await {
                Err(Stopped::Wrong(error)) if error.retryable => {
                    tracing::warn!(%error, key, "a saga waits for the log")
                }
                other => return other,
            }
            kept = loop {
                tokio::time::sleep(AGAIN).await;
                match self.ledger.get(&key).await {
                    Ok(Some(now)) => break now,
                    Ok(None) => return Ok(()),
                    Err(error) if error.retryable => {}
                    Err(error) => return Err(error.into()),
                }
            };
        }
    }

    async fn carry_out(&self, mut kept: Kept) -> Result<(), Stopped> {
        'read: loop {
            let mut journal = decode(kept.value.as_bytes()).map_err(broken)?;
            let Some(Record::Started { definition, .. }) = journal.first() else {
                return Err(Error::new(Code::BAD_REQUEST, "a journal does not begin with a start").into());
            };
            let definition = self.definition(definition).await?;
            let mut saga = Saga::fold(&definition, &journal).map_err(broken)?;
            let order: Order = serde_json::from_value(saga.input().clone())
                .map_err(|error| Error::new(Code::BAD_REQUEST, format!("a saga is about no order: {error}")))?;
            let mut revision = kept.mod_revision;
            loop {
                let records = match saga.next(&definition, now_ms() as u64) {
                    Next::Ended(_) => return Ok(()),
                    Next::Write(records) => records,
                    Next::Call(call) => {
                        let pause = call.not_before_ms.saturating_sub(now_ms() as u64);
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                        let reply = self.call(&call, &order).await;
                        saga.answered(&definition, &call, &reply, now_ms() as u64, self.die())
                    }
                };
                journal.extend_from_slice(&records);
                match self.ledger.submit(&self.transition(&kept.key, revision, &order, &journal, &records)).await? {
                    Commit::Applied { revision: at } => revision = at,
                    Commit::Refused { guard: 0 } => return Err(Stopped::Replaced),
                    // Our own entry of which nobody heard, or one of another: what is there counts.
                    Commit::Refused { .. } | Commit::Unknown => match self.ledger.get(&kept.key).await? {
                        Some(now) => {
                            kept = now;
                            continue 'read;
                        }
                        // It has ended, and its journal was moved away.
                        None => return Ok(()),
                    },
                }
                for record in &records {
                    saga.apply(&definition, record).map_err(broken)?;
                }
            }
        }
    }

    /// The entry of a transition. An ended saga's journal moves away, so that a start reads only what is open.
    fn transition(&self, key: &str, revision: u64, order: &Order, journal: &[Record], records: &[Record]) -> Value {
        let guards = json!([
            {"key": keys::owner(self.side), "value": self.fence},
            {"key": key, "mod_revision": revision},
        ]);
        let refused = journal.iter().find_map(|record| match record {
            Record::Compensating { effect, why, .. } => Some((*effect == Effect::None, why.clone())),
            _ => None,
        });
        let mut appends = Vec::new();
        let mut tell = |name: &str, topic: &str| {
            let mut event = Event::new(name, &order.id, Role::Coordinator);
            if let Some((refused, why)) = &refused {
                (event.had_effect, event.why) = (Some(*refused), Some(why.clone()));
            }
            appends.push(event.append(topic, self.side));
        };
        let mut ended = false;
        for record in records {
            match record {
                Record::Compensating { .. } => tell("CompensationStarted", COMPENSATIONS),
                Record::Ended { outcome, .. } => {
                    ended = true;
                    match outcome {
                        Outcome::Completed => tell("OrderCompleted", EVENTS),
                        Outcome::Compensated => tell("OrderCancelled", EVENTS),
                        Outcome::Stuck => tell("OrderStuck", EVENTS),
                    }
                }
                _ => {}
            }
        }
        let journal = encode(journal);
        match ended {
            true => json!({
                "guards": guards, "deletes": [key],
                "puts": [{"key": keys::ended(self.side, &order.id), "value": journal}], "appends": appends,
            }),
            false => json!({"guards": guards, "puts": [{"key": key, "value": journal}], "appends": appends}),
        }
    }

    async fn call(&self, call: &Call, order: &Order) -> Reply {
        let Some(address) = self.services.get(&call.service) else {
            return Reply::Failed(format!("nobody is known as {}", call.service));
        };
        let body = serde_json::to_value(order).expect("an order is plain data");
        let timeout = Duration::from_millis(call.timeout_ms);
        match self.caller.post(address, &call.ask, &call.key, Some(&self.fence), &body, timeout).await {
            Ok(answer) if answer.ok() => Reply::Done,
            Ok(answer) if answer.status == StatusCode::UNPROCESSABLE_ENTITY => {
                Reply::Refused(answer.json()["refused"].as_str().unwrap_or("refused").to_owned())
            }
            Ok(answer) => Reply::Failed(answer.problem()),
            Err(problem) => Reply::Failed(problem),
        }
    }

    async fn definition(&self, hash: &str) -> Result<Arc<Definition>, Error> {
        if let Some(known) = self.definitions.lock().expect("no panic under this lock").get(hash) {
            return Ok(Arc::clone(known));
        }
        let kept = self.ledger.get(&keys::definition(hash)).await?;
        let kept = kept.ok_or_else(|| Error::new(Code::NOT_FOUND, format!("there is no definition {hash}")))?;
        let definition = Arc::new(Definition::decode(kept.value.as_bytes())?);
        self.definitions.lock().expect("no panic under this lock").insert(hash.to_owned(), Arc::clone(&definition));
        Ok(definition)
    }

    fn die(&self) -> u64 {
        let mut state = self.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        super::shape::mix(&mut state)
    }
}

fn broken(violation: buttress_core::invariants::Violation) -> Error {
    Error::new(Code::BAD_REQUEST, violation.to_string())
        .hint("this is a bug of ours; please report it with the journal")
}
