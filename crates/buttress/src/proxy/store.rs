//! Routes, services and limits from a store that many gateways share: the log's etcd edge, or the user's own etcd.
//!
//! | in the store | here |
//! |---|---|
//! | `/buttress/routes/NAME` | a route; one that cannot be carried out stays as it was before, and its status says why |
//! | `/buttress/services/NAME/INSTANCE` = `HOST:PORT` | an endpoint of backends with `service: NAME` |
//! | `/buttress/limits/ROUTE/N` | the pool of tokens of a limit with `cluster` |
//! | `/buttress/status/routes/NAME/GATEWAY` | what this gateway made of a route; ends with it |
//! | `/buttress/gateways/NAME` | where this gateway is ([`super::fleet`]); ends with it |
//!
//! **When the store is away** requests go on as before: routes and endpoints stay, and limits of the cluster burn what they
//! have and then let pass what `cut_off_per_second` says. Nothing that a request needs waits for the store.
//!
//! **First start.** The routes are read before the gateway listens. **Recovery.** After a break everything is read anew and
//! taken up as one change, so nothing that happened meanwhile is missed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use buttress_bridge::etcd::{EtcdLedger, Options};
use buttress_core::{
    Code, Consistency, Entry, Error, Guard, KeyRange, LeaseChange, LeaseId, Ledger, Put, Revision, ledger::KeyValue,
};
use buttress_gateway::{cluster_rate::Leased, compile::Declared, discover::Source, shared::Shared, table::Place};
use buttress_policy::{Time, lease::Pool};
use buttress_resources::{
    kept::{Gateway, Kept, Status, prefix, status_key},
    kinds::{Kind, Spec},
};
use bytes::Bytes;
use tokio::{sync::oneshot, task::JoinHandle};

use super::{files::Listening, fleet, state::State};

/// How long after a break until the store is asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Changes that come together are taken up together.
const GATHER: Duration = Duration::from_millis(20);
const SERVICES: &str = "/buttress/services/";
/// A gateway that is gone is gone from statuses after this.
const STATUS_TTL: Duration = Duration::from_secs(30);
/// Statuses of one entry; a transaction of etcd has 128 operations.
const PUTS_MAX: usize = 64;
/// Attempts at one slice of tokens while other gateways take theirs.
const SLICE_TRIES: usize = 8;

#[derive(Clone)]
pub struct Store {
    ledger: Arc<dyn Ledger>,
    /// Where it is, for people.
    url: String,
    /// How this gateway is called in statuses.
    gateway: String,
    /// On which its announcement hangs.
    lease: Arc<tokio::sync::watch::Sender<Option<LeaseId>>>,
}

/// Routes as they were read, and the revision of that.
pub struct Routes {
    revision: Revision,
    /// By name: the resource, or why it is none.
    kept: BTreeMap<String, Result<Kept, String>>,
}

impl Store {
    /// # Errors
    /// As [`EtcdLedger::connect`].
    pub async fn connect(url: &str, gateway: String) -> Result<Self, Error> {
        let ledger = EtcdLedger::connect(Options::from_url(url)?).await?;
        let lease = Arc::new(tokio::sync::watch::Sender::new(None));
        Ok(Self { ledger: Arc::new(ledger), url: url.to_owned(), gateway, lease })
    }

    pub fn ledger(&self) -> &dyn Ledger {
        &*self.ledger
    }

    /// Tells the store where this gateway is, until it is dropped.
    pub async fn announce(&self, about: Gateway) {
        fleet::announce(&*self.ledger, &about, &self.lease).await;
    }

    /// Takes that back.
    pub async fn leave(&self) {
        let lease = *self.lease.borrow();
        if let Some(lease) = lease {
            fleet::leave(&*self.ledger, lease).await;
        }
    }

    pub fn name(&self) -> &str {
        &self.gateway
    }

    async fn all(&self, prefix: &str) -> Result<(Revision, Vec<KeyValue>), Error> {
        let read = self.ledger.read(KeyRange::prefix(prefix.to_owned()), usize::MAX, Consistency::Linearizable).await?;
        Ok((read.revision, read.kvs))
    }

    /// # Errors
    /// The store does not answer.
    pub async fn routes(&self) -> Result<Routes, Error> {
        let (revision, kvs) = self.all(&prefix(Kind::Route)).await?;
        let kept =
            kvs.iter().filter_map(|kv| Some((name_of(&kv.key, &prefix(Kind::Route))?, kept(&kv.value)))).collect();
        Ok(Routes { revision, kept })
    }

    /// Listeners, which count from the start of a gateway to its end.
    ///
    /// # Errors
    /// The store does not answer, or holds a listener that is none.
    pub async fn listeners(&self) -> Result<Vec<Listening>, Error> {
        let (_, kvs) = self.all(&prefix(Kind::Listener)).await?;
        let mut all = Vec::with_capacity(kvs.len());
        for kv in &kvs {
            let Some(name) = name_of(&kv.key, &prefix(Kind::Listener)) else { continue };
            let wrong =
                |says: String| Error::new(Code::ROUTES_INVALID, format!("listener \"{name}\" of the store: {says}"));
            let kept = kept(&kv.value).map_err(wrong)?;
            let Spec::Listener(spec) = Kind::Listener.read(&kept.spec).map_err(wrong)? else { continue };
            let place = Place { file: format!("listener/{name} generation {}", kept.generation), line: 0 };
            all.push(Listening { name, spec: *spec, place });
        }
        Ok(all)
    }

    /// Carries out what the store says, until it is dropped. `fixed` are routes that stand beside those of the store; `ready` is
    /// told when the first ones hold.
    pub async fn follow(
        self,
        first: Routes,
        fixed: Vec<Declared>,
        shared: Arc<Shared>,
        state: Arc<State>,
        ready: oneshot::Sender<()>,
    ) {
        tokio::join!(
            self.follow_routes(first, fixed, &shared, &state, ready),
            self.follow_services(&shared),
            self.lease_tokens(&shared),
        );
    }

    async fn follow_routes(
        &self,
        first: Routes,
        fixed: Vec<Declared>,
        shared: &Arc<Shared>,
        state: &State,
        ready: oneshot::Sender<()>,
    ) {
        let mut ready = Some(ready);
        let (mut good, mut told) = (Good::default(), Statuses::new(self.clone()));
        let mut next = Some(first);
        loop {
            let read = match next.take() {
                Some(routes) => Ok(routes),
                None => self.routes().await,
            };
            let mut routes = match read {
                Ok(routes) => routes,
                Err(error) => {
                    tracing::warn!(store = self.url, %error, "the store does not answer; the routes stay");
                    tokio::time::sleep(AGAIN_AFTER).await;
                    continue;
                }
            };
            let verdicts = good.take_up(&routes.kept, &fixed, shared, state).await;
            if let Some(ready) = ready.take() {
                let _ = ready.send(());
            }
            told.changed(verdicts).await;
            let watched =
                self.ledger.watch(KeyRange::prefix(prefix(Kind::Route)), Some(Revision(routes.revision.0 + 1))).await;
            let Ok(mut watch) = watched else {
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            };
            loop {
                let events = tokio::select! {
                    events = watch.next() => events,
                    () = tokio::time::sleep(STATUS_TTL / 3) => {
                        told.keep().await;
                        continue;
                    }
                };
                let Ok(Some(mut events)) = events else { break };
                while let Ok(Ok(Some(more))) = tokio::time::timeout(GATHER, watch.next()).await {
                    events.extend(more);
                }
                for event in events {
                    let Some(name) = name_of(&event.key, &prefix(Kind::Route)) else { continue };
                    match event.value {
                        Some(value) => routes.kept.insert(name, kept(&value)),
                        None => routes.kept.remove(&name),
                    };
                }
                told.changed(good.take_up(&routes.kept, &fixed, shared, state).await).await;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn follow_services(&self, shared: &Arc<Shared>) {
        let mut told: BTreeMap<String, BTreeMap<Bytes, String>> = BTreeMap::new();
        loop {
            let Ok((revision, kvs)) = self.all(SERVICES).await else {
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            };
            let mut services: BTreeMap<String, BTreeMap<Bytes, String>> = BTreeMap::new();
            for kv in &kvs {
                if let Some(service) = service_of(&kv.key) {
                    services.entry(service).or_default().insert(kv.key.clone(), address(&kv.value));
                }
            }
            // Who had instances before the break and has none now is told too.
            for service in told.keys() {
                services.entry(service.clone()).or_default();
            }
            tell(shared, &services, services.keys());
            told = services;
            let watched =
                self.ledger.watch(KeyRange::prefix(SERVICES.to_owned()), Some(Revision(revision.0 + 1))).await;
            if let Ok(mut watch) = watched {
                while let Ok(Some(events)) = watch.next().await {
                    let mut changed = Vec::new();
                    for event in events {
                        let Some(service) = service_of(&event.key) else { continue };
                        let instances = told.entry(service.clone()).or_default();
                        match event.value {
                            Some(value) => instances.insert(event.key, address(&value)),
                            None => instances.remove(&event.key),
                        };
                        changed.push(service);
                    }
                    changed.dedup();
                    tell(shared, &told, &changed);
                }
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// Keeps a task for each limit of the cluster that the table has.
    async fn lease_tokens(&self, shared: &Arc<Shared>) {
        let mut tasks: HashMap<usize, (Arc<Leased>, JoinHandle<()>)> = HashMap::new();
        loop {
            let wanted: Vec<Arc<Leased>> = shared.table.load().leased().cloned().collect();
            tasks.retain(|_, (leased, task)| {
                let stays = wanted.iter().any(|other| Arc::ptr_eq(other, leased));
                if !stays {
                    task.abort();
                }
                stays
            });
            for leased in wanted {
                tasks.entry(Arc::as_ptr(&leased) as usize).or_insert_with(|| {
                    let (store, shared, own) = (self.clone(), shared.clone(), leased.clone());
                    (leased, tokio::spawn(async move { store.lease(&own, &shared).await }))
                });
            }
            shared.changed.notified().await;
        }
    }

    async fn lease(&self, leased: &Leased, shared: &Shared) {
        loop {
            let asked = shared.now();
            if let Some(wanted) = leased.lease.ask(asked) {
                match self.slice(leased, wanted, shared).await {
                    Ok(Ok(tokens)) => leased.lease.granted(asked, tokens),
                    Ok(Err(empty_for)) => leased.lease.refused(shared.now(), empty_for),
                    Err(error) => {
                        tracing::warn!(store = self.url, limit = leased.key, %error, "no tokens from the store");
                        leased.lease.silent(shared.now());
                    }
                }
            }
            // Tokens end, and an empty pool fills, without anybody saying so.
            let _ = tokio::time::timeout(leased.look_again(shared.now()), leased.low.notified()).await;
        }
    }

    /// Takes tokens from the pool; inside, for how long it is empty.
    ///
    /// # Errors
    /// The store does not answer.
    async fn slice(&self, leased: &Leased, wanted: u32, shared: &Shared) -> Result<Result<u32, Duration>, Error> {
        let key = Bytes::from(leased.key.clone());
        for _ in 0..SLICE_TRIES {
            let read = self.ledger.read(KeyRange::key(key.clone()), 1, Consistency::Linearizable).await?;
            let (mut pool, revision) = match read.kvs.first() {
                // Bytes that are no pool begin anew, full.
                Some(kv) => (Pool::from_bytes(&kv.value).unwrap_or_default(), kv.mod_revision),
                None => (Pool::default(), Revision(0)),
            };
            let tokens = match leased.lease.take_from(&mut pool, shared.now(), wall_clock(), wanted) {
                Ok(tokens) => tokens,
                Err(empty_for) => return Ok(Err(empty_for)),
            };
            let value = Some(Bytes::copy_from_slice(&pool.to_bytes()));
            let entry = Entry {
                guards: vec![Guard::ModRevision { key: key.clone(), revision }],
                puts: vec![Put { key: key.clone(), value, lease: None }],
                ..Entry::default()
            };
            match self.ledger.submit(entry).await {
                Ok(_) => return Ok(Ok(tokens)),
                Err(buttress_core::SubmitError::Refused(_)) => {}
                Err(buttress_core::SubmitError::Failed(error)) => return Err(error),
            }
        }
        // Others were faster each time; the pool is busy, not empty.
        Ok(Err(Duration::from_millis(10)))
    }
}

/// The wall clock, which all gateways share more or less; what a difference costs stands in `policy::lease`.
fn wall_clock() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn name_of(key: &[u8], prefix: &str) -> Option<String> {
    let name = std::str::from_utf8(key.strip_prefix(prefix.as_bytes())?).ok()?;
    (!name.is_empty() && !name.contains('/')).then(|| name.to_owned())
}

/// `NAME` of `/buttress/services/NAME/INSTANCE`.
fn service_of(key: &[u8]) -> Option<String> {
    let rest = std::str::from_utf8(key.strip_prefix(SERVICES.as_bytes())?).ok()?;
    let (name, instance) = rest.split_once('/')?;
    (!name.is_empty() && !instance.is_empty()).then(|| name.to_owned())
}

fn address(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim().to_owned()
}

fn kept(value: &[u8]) -> Result<Kept, String> {
    serde_json::from_slice(value).map_err(|error| format!("the key holds no resource: {error}"))
}

fn tell<'a>(
    shared: &Shared,
    services: &BTreeMap<String, BTreeMap<Bytes, String>>,
    changed: impl IntoIterator<Item = &'a String>,
) {
    for service in changed {
        let mut list: Vec<String> = services.get(service).into_iter().flat_map(BTreeMap::values).cloned().collect();
        list.sort_unstable();
        list.dedup();
        shared.discovered(Source::Service(service.clone()), list);
    }
}

/// The last form of each route that could be carried out.
#[derive(Default)]
struct Good {
    routes: BTreeMap<String, (u64, Declared)>,
    statuses: BTreeMap<String, Verdict>,
}

/// What a gateway made of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    observed_generation: u64,
    problem: String,
}

impl Good {
    /// Routes by what the store has now. A route that cannot be carried out stays as it was, and holds up no other.
    async fn take_up(
        &mut self,
        kept: &BTreeMap<String, Result<Kept, String>>,
        fixed: &[Declared],
        shared: &Arc<Shared>,
        state: &State,
    ) -> BTreeMap<String, Verdict> {
        let (mut next, mut problems) = (BTreeMap::<String, (u64, Declared)>::new(), BTreeMap::<String, String>::new());
        for (name, read) in kept {
            match read.clone().and_then(|kept| Ok((kept.generation, declared(name, &kept)?))) {
                Ok(route) => drop(next.insert(name.clone(), route)),
                Err(problem) => drop(problems.insert(name.clone(), problem)),
            }
        }
        let mut loaded;
        loop {
            let mut all: Vec<Declared> = fixed.to_vec();
            for name in kept.keys() {
                // What is refused is served as it was, if it ever was.
                let route = if problems.contains_key(name) { self.routes.get(name) } else { next.get(name) };
                all.extend(route.map(|(_, route)| route.clone()));
            }
            let shared = shared.clone();
            loaded = tokio::task::spawn_blocking(move || shared.load(&all)).await;
            let Ok(Err(wrong)) = &loaded else { break };
            let before = problems.len();
            for one in wrong {
                if next.contains_key(&one.route) {
                    problems.entry(one.route.clone()).or_insert_with(|| format!("{}: {}", one.field, one.says));
                }
            }
            if problems.len() == before {
                // It is none of the store's routes.
                break;
            }
        }
        let failed = match loaded {
            Ok(Ok(generation)) => {
                state.loaded(generation);
                None
            }
            Ok(Err(wrong)) => Some(buttress_gateway::shared::refused(&wrong).message),
            Err(error) => Some(format!("loading the routes broke off: {error}")),
        };
        if let Some(failed) = &failed {
            // None of the store's routes is to blame, and none of them was taken up.
            state.refused(failed);
            next.clear();
            for name in kept.keys() {
                problems.entry(name.clone()).or_insert_with(|| failed.clone());
            }
        }
        for (name, problem) in problems.iter().filter(|_| failed.is_none()) {
            shared.reject();
            state.refused(&format!("route \"{name}\": {problem}"));
        }
        self.routes.retain(|name, _| kept.contains_key(name));
        self.routes.extend(next.into_iter().filter(|(name, _)| !problems.contains_key(name)));
        self.statuses = kept
            .keys()
            .map(|name| {
                let observed_generation = self.routes.get(name).map_or(0, |(generation, _)| *generation);
                let problem = problems.get(name).cloned().unwrap_or_default();
                (name.clone(), Verdict { observed_generation, problem })
            })
            .collect();
        self.statuses.clone()
    }
}

fn declared(name: &str, kept: &Kept) -> Result<Declared, String> {
    let Spec::Route(spec) = Kind::Route.read(&kept.spec)? else { return Err("it is no route".to_owned()) };
    let place = Place { file: format!("route/{name} generation {}", kept.generation), line: 0 };
    Ok(Declared { name: name.to_owned(), spec: *spec, place, match_lines: Vec::new() })
}

/// Tells in the store what became of routes. Nothing waits for it, and a failure is tried again with the next keeping.
struct Statuses {
    store: Store,
    lease: Option<LeaseId>,
    wanted: BTreeMap<String, Verdict>,
    written: BTreeMap<String, Verdict>,
}

impl Statuses {
    const fn new(store: Store) -> Self {
        Self { store, lease: None, wanted: BTreeMap::new(), written: BTreeMap::new() }
    }

    async fn changed(&mut self, wanted: BTreeMap<String, Verdict>) {
        self.wanted = wanted;
        self.write().await;
    }

    /// Keeps the lease on which the statuses hang.
    async fn keep(&mut self) {
        if let Some(lease) = self.lease {
            let entry = Entry { leases: vec![LeaseChange::KeepAlive { lease }], ..Entry::default() };
            if self.store.ledger.submit(entry).await.is_err() {
                (self.lease, self.written) = (None, BTreeMap::new());
            }
        }
        self.write().await;
    }

    async fn write(&mut self) {
        if self.wanted == self.written {
            return;
        }
        let mut entry = Entry::default();
        let lease = match self.lease {
            Some(lease) => lease,
            None => {
                let Ok(number) = getrandom::u64() else { return };
                // Positive, and not 0, which means none.
                let lease = LeaseId((number >> 1 | 1) as i64);
                entry.leases.push(LeaseChange::Grant { lease, ttl_ms: STATUS_TTL.as_millis() as u64 });
                self.written.clear();
                lease
            }
        };
        for name in self.written.keys().filter(|name| !self.wanted.contains_key(*name)) {
            entry.puts.push(Put { key: self.key(name), value: None, lease: None });
        }
        for (name, verdict) in &self.wanted {
            if self.written.get(name) != Some(verdict) {
                let status = Status {
                    observed_generation: verdict.observed_generation,
                    gateway: self.store.gateway.clone(),
                    ready: verdict.problem.is_empty(),
                    message: verdict.problem.clone(),
                };
                let Ok(value) = serde_json::to_vec(&status) else { continue };
                entry.puts.push(Put { key: self.key(name), value: Some(value.into()), lease: Some(lease) });
            }
        }
        let mut puts = std::mem::take(&mut entry.puts);
        loop {
            entry.puts = puts.split_off(puts.len().saturating_sub(PUTS_MAX));
            if let Err(error) = self.store.ledger.submit(std::mem::take(&mut entry)).await {
                // The next keeping grants another lease, and writes all of them.
                (self.lease, self.written) = (None, BTreeMap::new());
                return tracing::debug!(%error, "statuses of routes could not be written");
            }
            if puts.is_empty() {
                break;
            }
        }
        (self.lease, self.written) = (Some(lease), self.wanted.clone());
    }

    fn key(&self, name: &str) -> Bytes {
        status_key(Kind::Route, name, &self.store.gateway).into()
    }
}
