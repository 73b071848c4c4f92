//! Routes, listeners, services and limits from a store that many gateways share: the log's etcd edge, or the user's own etcd.
//!
//! | in the store | here |
//! |---|---|
//! | `/buttress/routes/NAME` | a route; one that cannot be carried out stays as it was before, and its status says why |
//! | `/buttress/listeners/NAME` | a listener; one whose port is taken stays as it was, and is tried again every ten seconds |
//! | `/buttress/services/NAME/INSTANCE` = `HOST:PORT` | an endpoint of backends with `service: NAME` |
//! | `/buttress/limits/ROUTE/N` | the pool of tokens of a limit with `cluster` |
//! | `/buttress/status/routes/NAME/GATEWAY`, `…/listeners/…` | what this gateway made of it; ends with it |
//! | `/buttress/gateways/NAME` | where this gateway is ([`super::fleet`]); ends with it |
//!
//! **When the store is away** requests go on as before: routes and endpoints stay, and limits of the cluster burn what they
//! have and then let pass what `cut_off_per_second` says. Nothing that a request needs waits for the store.
//!
//! **First start.** The routes are read before the gateway listens. **Recovery.** After a break everything is read anew and
//! taken up as one change, so nothing that happened meanwhile is missed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use buttress_bridge::etcd::{EtcdLedger, Options};
use buttress_core::{
    Code, Consistency, Entry, Error, Guard, KeyRange, LeaseId, Ledger, Put, Revision, ledger::KeyValue,
};
use buttress_gateway::{
    cluster_rate::Leased,
    compile::Declared,
    config::Timeouts,
    discover::Source,
    listen,
    shared::{Refused, Shared},
    table::Place,
};
use buttress_policy::{Time, lease::Pool};
use buttress_resources::{
    kept::{Gateway, Kept, Status, prefix, status_key},
    kinds::{Kind, Spec},
};
use bytes::Bytes;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};

use super::{
    files::Listening,
    fleet,
    listeners::{self, Base},
    presence::Presence,
    state::State,
};

/// How long after a break until the store is asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Changes that come together are taken up together.
const GATHER: Duration = Duration::from_millis(20);
/// What is carried out here. Listeners are read after routes.
const KINDS: [Kind; 2] = [Kind::Route, Kind::Listener];
const SERVICES: &str = "/buttress/services/";
/// How often what is not well is tried again.
const TRY_EVERY: Duration = Duration::from_secs(10);
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
    /// On which hangs what it writes of itself.
    presence: Arc<Presence>,
}

/// Of a resource: its kind and its name.
type Name = (Kind, String);

/// Routes and listeners as they were read, and the revision of that.
pub struct Resources {
    revision: Revision,
    /// The resource, or why it is none.
    kept: BTreeMap<Name, Result<Kept, String>>,
}

impl Resources {
    /// The listeners that can be read.
    pub fn listeners(&self, timeouts: &Timeouts) -> Vec<listen::Listening> {
        let read = self.kept.iter().filter_map(|((kind, name), kept)| match (kind, kept) {
            (Kind::Listener, Ok(kept)) => listener(name, kept, timeouts).ok(),
            _ => None,
        });
        read.collect()
    }
}

/// What stands beside the store: in files, and on the command line.
pub struct Beside {
    pub routes: Vec<Declared>,
    pub listeners: Vec<Listening>,
    pub base: Base,
}

impl Store {
    /// # Errors
    /// As [`EtcdLedger::connect`].
    pub async fn connect(url: &str, gateway: String) -> Result<Self, Error> {
        let ledger = EtcdLedger::connect(Options::from_url(url)?).await?;
        Ok(Self::at(Arc::new(ledger), url, &gateway))
    }

    fn at(ledger: Arc<dyn Ledger>, url: &str, gateway: &str) -> Self {
        let presence = Arc::new(Presence::new(ledger.clone()));
        Self { ledger, url: url.to_owned(), gateway: gateway.to_owned(), presence }
    }

    pub fn ledger(&self) -> &dyn Ledger {
        &*self.ledger
    }

    /// Tells the store where this gateway is, until it is dropped.
    pub async fn announce(&self, about: impl Fn() -> Gateway) {
        fleet::announce(&*self.ledger, about, self.presence.lease()).await;
    }

    /// Takes back all that it wrote of itself.
    pub async fn leave(&self) {
        self.presence.leave().await;
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
    pub async fn resources(&self) -> Result<Resources, Error> {
        let (mut all, mut first) = (BTreeMap::new(), None);
        for kind in KINDS {
            let (revision, kvs) = self.all(&prefix(kind)).await?;
            // What changes between the two reads is seen again by whoever follows from the first.
            first.get_or_insert(revision);
            all.extend(kvs.iter().filter_map(|kv| Some(((kind, name_of(&kv.key, &prefix(kind))?), kept(&kv.value)))));
        }
        Ok(Resources { revision: first.unwrap_or(Revision(0)), kept: all })
    }

    /// Carries out what the store says, until it is dropped; `ready` is told when the first routes and listeners hold.
    pub async fn follow(
        self,
        first: Resources,
        beside: Beside,
        shared: Arc<Shared>,
        state: Arc<State>,
        ready: oneshot::Sender<()>,
    ) {
        tokio::join!(
            self.presence.hold(),
            self.follow_resources(first, beside, &shared, &state, ready),
            self.follow_services(&shared),
            self.lease_tokens(&shared),
        );
    }

    async fn follow_resources(
        &self,
        first: Resources,
        beside: Beside,
        shared: &Arc<Shared>,
        state: &State,
        ready: oneshot::Sender<()>,
    ) {
        let mut ready = Some(ready);
        let (mut good, mut told) = (Good::default(), Statuses::new(self.clone()));
        let mut next = Some(first);
        loop {
            let read = match next.take() {
                Some(resources) => Ok(resources),
                None => self.resources().await,
            };
            let mut resources = match read {
                Ok(resources) => resources,
                Err(error) => {
                    tracing::warn!(store = self.url, %error, "the store does not answer; routes and listeners stay");
                    tokio::time::sleep(AGAIN_AFTER).await;
                    continue;
                }
            };
            let verdicts = good.take_up(&resources.kept, &beside, shared, state).await;
            if let Some(ready) = ready.take() {
                let _ = ready.send(());
            }
            told.changed(verdicts).await;
            let from = Some(Revision(resources.revision.0 + 1));
            let watched = tokio::try_join!(
                self.ledger.watch(KeyRange::prefix(prefix(Kind::Route)), from),
                self.ledger.watch(KeyRange::prefix(prefix(Kind::Listener)), from),
            );
            let Ok((mut routes, mut listeners)) = watched else {
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            };
            loop {
                let events = tokio::select! {
                    events = routes.next() => events,
                    events = listeners.next() => events,
                    () = told.moved() => {
                        told.write().await;
                        continue;
                    }
                    () = tokio::time::sleep(TRY_EVERY) => {
                        // A port that was taken, or a certificate that was wrong, may be well without a change in the store.
                        match good.again {
                            true => told.changed(good.take_up(&resources.kept, &beside, shared, state).await).await,
                            false => told.write().await,
                        }
                        continue;
                    }
                };
                let Ok(Some(mut events)) = events else { break };
                loop {
                    let more = tokio::select! {
                        more = routes.next() => more,
                        more = listeners.next() => more,
                        () = tokio::time::sleep(GATHER) => break,
                    };
                    let Ok(Some(more)) = more else { break };
                    events.extend(more);
                }
                for event in events {
                    let found = KINDS.iter().find_map(|kind| Some((*kind, name_of(&event.key, &prefix(*kind))?)));
                    let Some(name) = found else { continue };
                    match event.value {
                        Some(value) => resources.kept.insert(name, kept(&value)),
                        None => resources.kept.remove(&name),
                    };
                }
                told.changed(good.take_up(&resources.kept, &beside, shared, state).await).await;
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
                    Ok(Err(empty_for)) => {
                        let random = getrandom::u64().unwrap_or(u64::MAX / 2);
                        leased.lease.refused(shared.now(), empty_for, random);
                    }
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

/// The last form of each resource that could be carried out.
#[derive(Default)]
struct Good {
    routes: BTreeMap<String, (u64, Declared)>,
    listeners: BTreeMap<String, (u64, listen::Listening)>,
    /// A listener is not taken up for a reason that may go away by itself.
    again: bool,
    /// What was given to the gateway last, and holds.
    holds: Option<(Vec<Declared>, Vec<listen::Listening>)>,
}

/// What a gateway made of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    observed_generation: u64,
    problem: String,
}

/// Why a resource is not taken up, by its kind and name.
type Problems = BTreeMap<Name, String>;

/// What of a kind can be read, by name; what cannot is a problem.
fn read<T>(
    kind: Kind,
    kept: &BTreeMap<Name, Result<Kept, String>>,
    problems: &mut Problems,
    read: impl Fn(&str, &Kept) -> Result<T, String>,
) -> BTreeMap<String, (u64, T)> {
    let mut all = BTreeMap::new();
    for (name, one) in kept.iter().filter(|((of, _), _)| *of == kind) {
        match one.clone().and_then(|kept| Ok((kept.generation, read(&name.1, &kept)?))) {
            Ok(one) => drop(all.insert(name.1.clone(), one)),
            Err(problem) => drop(problems.insert(name.clone(), problem)),
        }
    }
    all
}

/// Each as it is now; where that is refused, as it was before, if it ever was.
fn choose<T: Clone>(
    kind: Kind,
    kept: &BTreeMap<Name, Result<Kept, String>>,
    problems: &Problems,
    next: &BTreeMap<String, (u64, T)>,
    before: &BTreeMap<String, (u64, T)>,
) -> BTreeMap<String, (u64, T)> {
    let names = kept.keys().filter(|(of, _)| *of == kind);
    let chosen = names.filter_map(|name| {
        let from = if problems.contains_key(name) { before } else { next };
        Some((name.1.clone(), from.get(&name.1)?.clone()))
    });
    chosen.collect()
}

/// Notes why a resource is refused. Where it is its last form that cannot be carried out any more, beside what others have become,
/// that is given up. Tells whether anything is left to try without it.
fn blame<T>(
    problems: &mut Problems,
    before: &mut BTreeMap<String, (u64, T)>,
    name: Name,
    problem: impl FnOnce() -> String,
) -> bool {
    if problems.contains_key(&name) {
        return before.remove(&name.1).is_some();
    }
    problems.insert(name, problem());
    true
}

impl Good {
    /// Routes and listeners by what the store has now. One that cannot be carried out stays as it was, and holds up no other.
    async fn take_up(
        &mut self,
        kept: &BTreeMap<Name, Result<Kept, String>>,
        beside: &Beside,
        shared: &Arc<Shared>,
        state: &State,
    ) -> BTreeMap<Name, Verdict> {
        let mut problems = Problems::new();
        let next_routes = read(Kind::Route, kept, &mut problems, declared);
        let timeouts = beside.base.timeouts;
        let next_listeners = read(Kind::Listener, kept, &mut problems, |name, kept| listener(name, kept, &timeouts));
        let http = next_listeners.values().any(|(_, one)| one.is_http());
        self.again = false;
        let (routes, listeners, failed) = loop {
            let listeners = choose(Kind::Listener, kept, &problems, &next_listeners, &self.listeners);
            let mut wanted: Vec<_> =
                beside.listeners.iter().filter_map(|one| listeners::told(one, &timeouts).ok()).collect();
            wanted.extend(listeners.values().map(|(_, one)| one.clone()));
            let wanted = beside.base.with(wanted, http);
            let orphans: Vec<Declared> = next_routes.values().map(|(_, route)| route.clone()).collect();
            for one in listeners::orphans(&orphans, &wanted) {
                let says = format!("{}: {}", one.field, one.says);
                problems.entry((Kind::Route, one.route)).or_insert(says);
            }
            let routes = choose(Kind::Route, kept, &problems, &next_routes, &self.routes);
            let mut all = beside.routes.clone();
            all.extend(routes.values().map(|(_, route)| route.clone()));
            let next = (all, wanted);
            if self.holds.as_ref() == Some(&next) {
                // Only what cannot be was tried again.
                break (routes, listeners, None);
            }
            let (changing, given) = (shared.clone(), next.clone());
            let changed = tokio::task::spawn_blocking(move || changing.change(&given.0, &given.1)).await;
            let mut progress = false;
            let failed = match changed {
                Ok(Ok(generation)) => {
                    state.loaded(generation);
                    self.holds = Some(next);
                    break (routes, listeners, None);
                }
                Ok(Err(Refused::Routes(wrong))) => {
                    for one in wrong.iter().filter(|one| kept.contains_key(&(Kind::Route, one.route.clone()))) {
                        progress |= blame(&mut problems, &mut self.routes, (Kind::Route, one.route.clone()), || {
                            format!("{}: {}", one.field, one.says)
                        });
                    }
                    buttress_gateway::shared::refused(&wrong).message
                }
                Ok(Err(Refused::Listeners(wrong))) => {
                    for one in wrong.iter().filter(|one| kept.contains_key(&(Kind::Listener, one.listener.clone()))) {
                        let Error { code, message, hint, .. } = &one.error;
                        self.again |= [Code::PORT_TAKEN, Code::CERTIFICATE].contains(code);
                        let hint = hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
                        let name = (Kind::Listener, one.listener.clone());
                        progress |=
                            blame(&mut problems, &mut self.listeners, name, || format!("{}: {message}{hint}", code.0));
                    }
                    listen::refused(&wrong).message
                }
                Err(error) => format!("loading the routes broke off: {error}"),
            };
            if !progress {
                // It is none of the store's.
                break (self.routes.clone(), self.listeners.clone(), Some(failed));
            }
        };
        if let Some(failed) = &failed {
            // None of the store's is to blame, and none of them was taken up.
            for name in kept.keys() {
                problems.entry(name.clone()).or_insert_with(|| failed.clone());
            }
        }
        (self.routes, self.listeners) = (routes, listeners);
        shared.stale.store(!problems.is_empty(), Relaxed);
        let unwell = problems
            .iter()
            .map(|((kind, name), problem)| (format!("{} \"{name}\"", kind.name().to_lowercase()), problem.clone()));
        for _ in 0..state.unwell(unwell.collect()) {
            shared.rejected.fetch_add(1, Relaxed);
        }
        let verdict = |name: &Name| {
            let observed = match name.0 {
                Kind::Listener => self.listeners.get(&name.1).map(|(generation, _)| *generation),
                _ => self.routes.get(&name.1).map(|(generation, _)| *generation),
            };
            let problem = problems.get(name).cloned().unwrap_or_default();
            Verdict { observed_generation: observed.unwrap_or(0), problem }
        };
        kept.keys().map(|name| (name.clone(), verdict(name))).collect()
    }
}

fn place(kind: Kind, name: &str, kept: &Kept) -> Place {
    Place { file: format!("{}/{name} generation {}", kind.name().to_lowercase(), kept.generation), line: 0 }
}

fn declared(name: &str, kept: &Kept) -> Result<Declared, String> {
    let Spec::Route(spec) = Kind::Route.read(&kept.spec)? else { return Err("it is no route".to_owned()) };
    let place = place(Kind::Route, name, kept);
    Ok(Declared { name: name.to_owned(), spec: *spec, place, match_lines: Vec::new() })
}

fn listener(name: &str, kept: &Kept, timeouts: &Timeouts) -> Result<listen::Listening, String> {
    let Spec::Listener(spec) = Kind::Listener.read(&kept.spec)? else { return Err("it is no listener".to_owned()) };
    let one = Listening { name: name.to_owned(), spec: *spec, place: place(Kind::Listener, name, kept) };
    listeners::told(&one, timeouts).map_err(|error| {
        let hint = error.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
        format!("{}: {}{hint}", error.code.0, error.message)
    })
}

/// Tells in the store what became of routes and listeners. Nothing waits for it, and a failure is tried again.
struct Statuses {
    store: Store,
    lease: watch::Receiver<Option<LeaseId>>,
    wanted: BTreeMap<Name, Verdict>,
    /// Under which lease, and what; none where that is not known.
    under: Option<LeaseId>,
    written: BTreeMap<Name, Option<Verdict>>,
}

impl Statuses {
    fn new(store: Store) -> Self {
        let lease = store.presence.lease();
        Self { store, lease, wanted: BTreeMap::new(), under: None, written: BTreeMap::new() }
    }

    async fn changed(&mut self, wanted: BTreeMap<Name, Verdict>) {
        self.wanted = wanted;
        self.write().await;
    }

    /// Another lease holds.
    async fn moved(&mut self) {
        // The sender is in the store, which is held here.
        let _ = self.lease.changed().await;
    }

    async fn write(&mut self) {
        let Some(lease) = *self.lease.borrow_and_update() else { return };
        if self.under != Some(lease) {
            // What hangs on the one before goes with it.
            (self.under, self.written) = (Some(lease), BTreeMap::new());
        }
        let mut puts = Vec::new();
        for name in self.written.keys().filter(|name| !self.wanted.contains_key(*name)) {
            puts.push(Put { key: self.key(name), value: None, lease: None });
        }
        for (name, verdict) in &self.wanted {
            if self.written.get(name).is_none_or(|written| written.as_ref() != Some(verdict)) {
                let status = Status {
                    observed_generation: verdict.observed_generation,
                    gateway: self.store.gateway.clone(),
                    ready: verdict.problem.is_empty(),
                    message: verdict.problem.clone(),
                };
                let Ok(value) = serde_json::to_vec(&status) else { continue };
                puts.push(Put { key: self.key(name), value: Some(value.into()), lease: Some(lease) });
            }
        }
        while !puts.is_empty() {
            let some = puts.split_off(puts.len().saturating_sub(PUTS_MAX));
            if let Err(error) = self.store.ledger.submit(Entry { puts: some, ..Entry::default() }).await {
                // Some of it may be there, so all of it is written again, and what is gone is deleted again.
                let names: Vec<Name> = self.written.keys().chain(self.wanted.keys()).cloned().collect();
                self.written = names.into_iter().map(|name| (name, None)).collect();
                return tracing::debug!(%error, "statuses could not be written");
            }
        }
        self.written = self.wanted.iter().map(|(name, verdict)| (name.clone(), Some(verdict.clone()))).collect();
    }

    fn key(&self, (kind, name): &Name) -> Bytes {
        status_key(*kind, name, &self.store.gateway).into()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use buttress_core::LeaseChange;
    use buttress_state::local::{Fault, Local};

    use super::*;

    /// The keys that a gateway has written of itself, each with its lease.
    async fn written(ledger: &Local) -> Vec<(String, LeaseId, String)> {
        let all = ledger.read(KeyRange::prefix("/buttress/"), usize::MAX, Consistency::Linearizable).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let of = |kv: &KeyValue| (text(&kv.key), kv.lease.expect("it goes with its gateway"), text(&kv.value));
        all.kvs.iter().map(of).collect()
    }

    /// Waits, in the clock of the tasks, until so many keys are written under one lease that is not `not`, and hold this.
    async fn until(ledger: &Local, keys: usize, not: Option<LeaseId>, holds: &str) -> LeaseId {
        loop {
            let all = written(ledger).await;
            let leases: Vec<LeaseId> = all.iter().map(|(_, lease, _)| *lease).collect();
            let one =
                leases.first().copied().filter(|one| leases.iter().all(|lease| lease == one) && Some(*one) != not);
            if let Some(lease) = one
                && all.len() == keys
                && all.iter().any(|(.., value)| value.contains(holds))
            {
                return lease;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test]
    async fn what_is_tried_again_and_cannot_be_changes_nothing_of_what_holds() {
        let timeouts = Timeouts::default();
        let options = buttress_gateway::config::Options {
            listeners: Vec::new(),
            threads: 1,
            bare: false,
            timeouts,
            edge: buttress_gateway::config::Edge::default(),
            access_log: None,
            records: None,
            otlp: None,
            seed: 1,
        };
        let running = buttress_gateway::run::start(options, &[]).unwrap();
        let base = Base { always: Vec::new(), usual: None, timeouts };
        let beside = Beside { routes: Vec::new(), listeners: Vec::new(), base };
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let one = |spec: serde_json::Value| serde_json::from_value(serde_json::json!({"generation": 1, "spec": spec}));
        let listener = |address: &str| Ok(one(serde_json::json!({"address": address})).unwrap());
        let mut kept = BTreeMap::from([
            ((Kind::Listener, "bad".to_owned()), listener(&address)),
            ((Kind::Listener, "good".to_owned()), listener("127.0.0.1:0")),
        ]);
        let (mut good, state) = (Good::default(), State::new());
        let loads = |state: &State| (state.json()["loads"].clone(), state.json()["refused"].clone());
        for _ in 0..3 {
            let verdicts = good.take_up(&kept, &beside, &running.shared, &state).await;
            assert!(verdicts[&(Kind::Listener, "bad".to_owned())].problem.starts_with("BT0702: cannot listen on"));
            assert_eq!((good.again, loads(&state)), (true, (1.into(), 1.into())), "once, and not with every trial");
            assert_eq!(running.shared.listeners.all().len(), 1);
        }
        drop(taken);
        let verdicts = good.take_up(&kept, &beside, &running.shared, &state).await;
        assert!(verdicts.values().all(|verdict| verdict.problem.is_empty()), "{verdicts:?}");
        assert_eq!((good.again, loads(&state).0), (false, 2.into()));
        kept.remove(&(Kind::Listener, "bad".to_owned()));
        good.take_up(&kept, &beside, &running.shared, &state).await;
        assert_eq!(loads(&state).0, 3);
        running.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_gateway_writes_hangs_on_one_lease_and_is_written_again_when_that_was_lost() {
        let ledger = Local::new();
        let store = Store::at(ledger.clone(), "local", "edge-1");
        let listen = Arc::new(Mutex::new("10.0.0.1:80".to_owned()));
        let (about, announcing, holding) = (listen.clone(), store.clone(), store.clone());
        let about = move || Gateway {
            name: "edge-1".into(),
            host: "h".into(),
            listen: about.lock().unwrap().clone(),
            admin: "10.0.0.1:81".into(),
            version: String::new(),
            started_ms: 0,
        };
        let tasks = [
            tokio::spawn(async move { holding.presence.hold().await }),
            tokio::spawn(async move { announcing.announce(about).await }),
        ];
        let verdict = |problem: &str| Verdict { observed_generation: 1, problem: problem.into() };
        let verdicts = |problem: &str| BTreeMap::from([((Kind::Route, "a".to_owned()), verdict(problem))]);
        let mut statuses = Statuses::new(store.clone());
        statuses.changed(verdicts("")).await;
        statuses.moved().await;
        statuses.write().await;
        let first = until(&ledger, 2, None, "\"ready\":true").await;

        // It listens elsewhere, and a status changes: the lease stays.
        *listen.lock().unwrap() = "10.0.0.1:8080".into();
        assert_eq!(until(&ledger, 2, None, "10.0.0.1:8080").await, first);
        ledger.fail_next(Fault::Unanswered(Error::new(Code::TIMEOUT, "nobody knows")));
        statuses.changed(verdicts("it is wrong")).await;
        statuses.write().await;
        assert_eq!(until(&ledger, 2, None, "it is wrong").await, first);
        // What was to be deleted, and may not be, is deleted again.
        ledger.fail_next(Fault::Lost(Error::new(Code::TIMEOUT, "nobody knows")));
        statuses.changed(BTreeMap::new()).await;
        statuses.write().await;
        until(&ledger, 1, None, "10.0.0.1:8080").await;
        statuses.changed(verdicts("")).await;

        // The lease has ended before it was kept.
        let end = vec![LeaseChange::Revoke { lease: first }];
        ledger.submit(Entry { leases: end, ..Entry::default() }).await.unwrap();
        assert_eq!(written(&ledger).await, []);
        statuses.moved().await;
        statuses.write().await;
        until(&ledger, 2, Some(first), "\"ready\":true").await;

        for task in tasks {
            task.abort();
            let _ = task.await;
        }
        store.leave().await;
        assert_eq!(written(&ledger).await, []);
    }
}
