//! Every node's warm copy of what is deployed.
//!
//! The problem: compiling a component takes longer than a request may wait, and must not happen on the thread that
//! drives the log; and a broken component must not keep the others from being served.
//!
//! The design: one task follows `/buttress/functions/` and `/buttress/models/`. Each change starts a load on a worker
//! thread; when it is ready, and still wanted, a new [`Snapshot`] is published. Until then the version before keeps
//! serving HTTP. (Batches wait instead: their entries are guarded by the new revision already, so what the old version
//! judges now could never be committed.) A load that fails for good is shown with its error and touches nothing else;
//! one that fails for the moment is tried again.
//!
//! First start and recovery are the same: read both ranges, then watch from the revision of that read. When a watch
//! fails (its history was compacted, the node was busy), everything is read again.

use std::{
    collections::{BTreeMap, btree_map},
    sync::Arc,
    time::Duration,
};

use buttress_core::{
    Code, Consistency, Engine, Error, Guest, KeyRange, Ledger, Model, Revision,
    ledger::{KeyEvent, KeyValue},
};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{AbortHandle, JoinSet},
};

use crate::{
    blob,
    resource::{FUNCTIONS_PREFIX, FunctionSpec, MODELS_PREFIX, ModelSpec, Stored},
    retry::backoff_ms,
};

/// Functions and models of one cluster.
pub const RESOURCES_MAX: usize = 10_000;
/// Pause before everything is read again after a watch failed.
const REREAD_PAUSE: Duration = Duration::from_millis(200);
/// Changes that wait for the catalogue; the watches wait in turn.
const EVENTS_QUEUED_MAX: usize = 64;

/// A component or model that is ready to be used.
pub struct Serving<S, L: ?Sized> {
    pub spec: S,
    pub revision: Revision,
    pub loaded: Arc<L>,
}

/// A resource: what is wanted, and what serves. They differ while a load is under way or when it failed.
pub struct Slot<S, L: ?Sized> {
    pub wanted: Stored<S>,
    pub serving: Option<Arc<Serving<S, L>>>,
    pub error: Option<Error>,
}

impl<S: Clone, L: ?Sized> Clone for Slot<S, L> {
    fn clone(&self) -> Self {
        Self { wanted: self.wanted.clone(), serving: self.serving.clone(), error: self.error.clone() }
    }
}

impl<S, L: ?Sized> Slot<S, L> {
    /// What serves, if it is what is wanted.
    pub fn current(&self) -> Option<&Arc<Serving<S, L>>> {
        self.serving.as_ref().filter(|s| s.revision == self.wanted.revision)
    }
}

pub type FunctionSlot = Slot<FunctionSpec, dyn Guest>;
pub type ModelSlot = Slot<ModelSpec, dyn Model>;

/// What is deployed, as this node sees it now.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// False before the first read.
    pub read: bool,
    pub functions: BTreeMap<String, FunctionSlot>,
    pub models: BTreeMap<String, ModelSlot>,
}

impl Snapshot {
    /// The function that answers a path outside `/fn/`.
    pub fn route(&self, path: &str) -> Option<&FunctionSlot> {
        self.functions.values().find(|slot| slot.wanted.spec.routes.iter().any(|route| route == path))
    }
}

pub type Receiver = watch::Receiver<Arc<Snapshot>>;

/// Starts following. The task ends with `shutdown`.
pub fn start(ledger: Arc<dyn Ledger>, engine: Arc<dyn Engine>, shutdown: watch::Receiver<bool>) -> Receiver {
    let (publish, receiver) = watch::channel(Arc::new(Snapshot::default()));
    let catalogue = Catalogue {
        ledger,
        engine,
        publish,
        snapshot: Snapshot::default(),
        loads: JoinSet::new(),
        loading: BTreeMap::new(),
        // One compile at a time: the compiler uses every core it finds. Models have a lane of their own, since batches
        // wait for them.
        compile_lane: Arc::new(Semaphore::new(1)),
        model_lane: Arc::new(Semaphore::new(1)),
    };
    tokio::spawn(catalogue.run(shutdown));
    receiver
}

/// Waits until `found` gives something, for at most `wait`.
pub async fn wait_for<T>(
    receiver: &mut Receiver,
    wait: Duration,
    mut found: impl FnMut(&Snapshot) -> Option<T>,
) -> Option<T> {
    tokio::time::timeout(wait, async {
        loop {
            if let Some(result) = found(&receiver.borrow_and_update()) {
                return Some(result);
            }
            receiver.changed().await.ok()?;
        }
    })
    .await
    .ok()
    .flatten()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Function,
    Model,
}

enum Loaded {
    Function(Arc<dyn Guest>),
    Model(Arc<dyn Model>),
}

struct Load {
    kind: Kind,
    name: String,
    revision: Revision,
    result: Result<Loaded, Error>,
}

struct Catalogue {
    ledger: Arc<dyn Ledger>,
    engine: Arc<dyn Engine>,
    publish: watch::Sender<Arc<Snapshot>>,
    snapshot: Snapshot,
    loads: JoinSet<Load>,
    loading: BTreeMap<(Kind, String), AbortHandle>,
    compile_lane: Arc<Semaphore>,
    model_lane: Arc<Semaphore>,
}

impl Catalogue {
    async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => return,
                error = self.follow() => {
                    tracing::warn!(plane = "functions", %error, "catalogue is read again");
                }
            }
            tokio::time::sleep(REREAD_PAUSE).await;
        }
    }

    /// Follows until something fails.
    async fn follow(&mut self) -> Error {
        match self.try_follow().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_follow(&mut self) -> Result<std::convert::Infallible, Error> {
        let functions = self.read(FUNCTIONS_PREFIX).await?;
        let models = self.read(MODELS_PREFIX).await?;
        let (events, mut changes) = mpsc::channel(EVENTS_QUEUED_MAX);
        let mut pumps = JoinSet::new();
        for (prefix, (revision, _)) in [(FUNCTIONS_PREFIX, &functions), (MODELS_PREFIX, &models)] {
            let range = KeyRange::prefix(prefix);
            let mut watch = self.ledger.watch(range, Some(Revision(revision.0 + 1))).await?;
            let events = events.clone();
            // A task of its own, because a watch may lose changes when a pending `next` is dropped.
            pumps.spawn(async move {
                loop {
                    let next = watch.next().await;
                    let more = matches!(&next, Ok(Some(_)));
                    if events.send(next).await.is_err() || !more {
                        return;
                    }
                }
            });
        }
        self.replace(&functions.1, &models.1);
        loop {
            tokio::select! {
                Some(load) = self.loads.join_next(), if !self.loads.is_empty() => {
                    // An aborted load is not an error; a panic inside was made an error in the load itself.
                    if let Ok(load) = load {
                        self.install(load);
                    }
                }
                change = changes.recv() => match change {
                    Some(Ok(Some(changes))) => self.change(&changes),
                    Some(Ok(None)) | None => return Err(Error::new(Code::STOPPED, "the watch ended")),
                    Some(Err(error)) => return Err(error),
                },
            }
        }
    }

    async fn read(&self, prefix: &str) -> Result<(Revision, Vec<KeyValue>), Error> {
        let all =
            self.ledger.read(KeyRange::prefix(prefix.to_owned()), RESOURCES_MAX, Consistency::Serializable).await?;
        if all.more {
            return Err(Error::new(Code::TOO_LARGE, format!("more than {RESOURCES_MAX} keys lie under '{prefix}'")));
        }
        Ok((all.revision, all.kvs))
    }

    /// Takes the state of both ranges; what is not in them is gone.
    fn replace(&mut self, functions: &[KeyValue], models: &[KeyValue]) {
        let name = |kv: &KeyValue, prefix: &str| String::from_utf8_lossy(&kv.key[prefix.len()..]).into_owned();
        let functions_left: Vec<String> = functions.iter().map(|kv| name(kv, FUNCTIONS_PREFIX)).collect();
        let models_left: Vec<String> = models.iter().map(|kv| name(kv, MODELS_PREFIX)).collect();
        self.snapshot.functions.retain(|name, _| functions_left.contains(name));
        self.snapshot.models.retain(|name, _| models_left.contains(name));
        for kv in models.iter().chain(functions) {
            self.take(&kv.key, Some(&kv.value), kv.mod_revision);
        }
        self.snapshot.read = true;
        self.publish();
    }

    fn change(&mut self, changes: &[KeyEvent]) {
        for change in changes {
            self.take(&change.key, change.value.as_ref(), change.revision);
        }
        self.publish();
    }

    fn take(&mut self, key: &[u8], value: Option<&Bytes>, revision: Revision) {
        let split = |prefix: &str| key.strip_prefix(prefix.as_bytes()).and_then(|n| std::str::from_utf8(n).ok());
        if let Some(name) = split(FUNCTIONS_PREFIX) {
            let name = name.to_owned();
            if take(&mut self.snapshot.functions, &name, value, revision) {
                self.load_function(&name);
            } else if value.is_none() {
                self.abandon(Kind::Function, name);
            }
        } else if let Some(name) = split(MODELS_PREFIX) {
            let name = name.to_owned();
            if take(&mut self.snapshot.models, &name, value, revision) {
                self.load_model(&name);
            } else if value.is_none() {
                self.abandon(Kind::Model, name);
            }
        }
    }

    fn abandon(&mut self, kind: Kind, name: String) {
        if let Some(load) = self.loading.remove(&(kind, name)) {
            load.abort();
        }
    }

    fn load_function(&mut self, name: &str) {
        let wanted = &self.snapshot.functions[name].wanted;
        let (spec, revision) = (wanted.spec.clone(), wanted.revision);
        let engine = self.engine.clone();
        let grants = (&spec.grants).into();
        let limits = (&spec.limits).into();
        self.load(Kind::Function, name, revision, spec.component.clone(), move |bytes| {
            engine.compile(bytes, &grants, limits).map(Loaded::Function)
        });
    }

    fn load_model(&mut self, name: &str) {
        let wanted = &self.snapshot.models[name].wanted;
        let (digest, revision) = (wanted.spec.digest.clone(), wanted.revision);
        let engine = self.engine.clone();
        self.load(Kind::Model, name, revision, digest, move |bytes| engine.load_model(bytes).map(Loaded::Model));
    }

    fn load(
        &mut self,
        kind: Kind,
        name: &str,
        revision: Revision,
        digest: String,
        work: impl Fn(&[u8]) -> Result<Loaded, Error> + Send + Sync + 'static,
    ) {
        self.abandon(kind, name.to_owned());
        let ledger = self.ledger.clone();
        let lane = match kind {
            Kind::Function => self.compile_lane.clone(),
            Kind::Model => self.model_lane.clone(),
        };
        let owned = name.to_owned();
        let work = Arc::new(work);
        let handle = self.loads.spawn(async move {
            let mut failures = 0;
            loop {
                let result = load_once(&*ledger, &lane, &digest, work.clone()).await;
                match result {
                    Err(error)
                        if error.retryable
                            || matches!(error.code, Code::NO_LEADER | Code::TIMEOUT | Code::OVERLOADED) =>
                    {
                        tracing::warn!(plane = "functions", name = owned, %error, "load is tried again");
                        tokio::time::sleep(Duration::from_millis(backoff_ms(failures))).await;
                        failures += 1;
                    }
                    result => return Load { kind, name: owned, revision, result },
                }
            }
        });
        self.loading.insert((kind, name.to_owned()), handle);
    }

    fn install(&mut self, load: Load) {
        let Load { kind, name, revision, result } = load;
        if let Err(error) = &result {
            tracing::error!(plane = "functions", name, revision = revision.0, %error, "cannot be loaded on this node");
        }
        match (kind, result) {
            (Kind::Function, Ok(Loaded::Function(loaded))) => {
                install(&mut self.snapshot.functions, &name, revision, Ok(loaded))
            }
            (Kind::Model, Ok(Loaded::Model(loaded))) => install(&mut self.snapshot.models, &name, revision, Ok(loaded)),
            (Kind::Function, Err(error)) => install(&mut self.snapshot.functions, &name, revision, Err(error)),
            (Kind::Model, Err(error)) => install(&mut self.snapshot.models, &name, revision, Err(error)),
            (Kind::Function, Ok(Loaded::Model(_))) | (Kind::Model, Ok(Loaded::Function(_))) => {
                unreachable!("a load gives what it was started for")
            }
        }
        self.publish();
    }

    fn publish(&self) {
        self.publish.send_replace(Arc::new(self.snapshot.clone()));
    }
}

/// Takes one change; whether a load is needed.
fn take<S: DeserializeOwned, L: ?Sized>(
    slots: &mut BTreeMap<String, Slot<S, L>>,
    name: &str,
    value: Option<&Bytes>,
    revision: Revision,
) -> bool {
    let spec = match value.map(|value| serde_json::from_slice::<S>(value)) {
        None => {
            slots.remove(name);
            return false;
        }
        Some(Ok(spec)) => spec,
        Some(Err(error)) => {
            tracing::error!(plane = "functions", name, revision = revision.0, %error, "stored resource is not readable");
            slots.remove(name);
            return false;
        }
    };
    let wanted = Stored { spec, revision };
    match slots.entry(name.to_owned()) {
        btree_map::Entry::Vacant(slot) => {
            slot.insert(Slot { wanted, serving: None, error: None });
        }
        btree_map::Entry::Occupied(mut slot) => {
            let slot = slot.get_mut();
            if slot.wanted.revision == revision && slot.error.is_none() {
                // Read again after a watch failed: nothing changed, and its load is done or under way.
                return false;
            }
            slot.wanted = wanted;
            slot.error = None;
        }
    }
    true
}

fn install<S: Clone, L: ?Sized>(
    slots: &mut BTreeMap<String, Slot<S, L>>,
    name: &str,
    revision: Revision,
    result: Result<Arc<L>, Error>,
) {
    let Some(slot) = slots.get_mut(name).filter(|slot| slot.wanted.revision == revision) else {
        return;
    };
    match result {
        Ok(loaded) => {
            slot.serving = Some(Arc::new(Serving { spec: slot.wanted.spec.clone(), revision, loaded }));
            slot.error = None;
        }
        Err(error) => slot.error = Some(error),
    }
}

async fn load_once(
    ledger: &dyn Ledger,
    lane: &Semaphore,
    digest: &str,
    work: Arc<impl Fn(&[u8]) -> Result<Loaded, Error> + Send + Sync + 'static>,
) -> Result<Loaded, Error> {
    let bytes = blob::get(ledger, digest, Consistency::Serializable).await?;
    let _permit = lane.acquire().await.expect("the lane is never closed");
    blocking(move || work(&bytes)).await
}

/// Runs work that takes long on a worker thread; a panic there is that work's error.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(panicked(&*error.into_panic())),
        Err(_) => Err(Error::new(Code::STOPPED, "the node is stopping")),
    }
}

/// A panic as the error of the work that panicked.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Error::new(Code::TRAPPED, format!("the engine panicked: {message}"))
}
