//! What the cores of a proxy share: the table of routes, records, figures, the policies' clock.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use buttress_core::{Code, Error};
use buttress_policy::Time;
use tokio::sync::Notify;

use crate::{
    access_log::Log,
    archive::Archive,
    compile::{Declared, World, Wrong, compile, endpoints_of},
    config::Options,
    discover::{Found, Source, first_look},
    listen::{self, Listeners, Listening},
    metrics::Shard,
    otlp::{self, Exporter, Started, Traces},
    record::Records,
    table::Table,
    tls,
};

pub struct Shared {
    pub options: Options,
    /// Where traffic comes in.
    pub listeners: Listeners,
    pub shards: Vec<Arc<Shard>>,
    pub records: Records,
    pub log: Option<Arc<Log>>,
    pub traces: Option<Arc<Traces>>,
    pub exporter: Option<Exporter>,
    pub table: ArcSwap<Table>,
    pub tls: tls::State,
    pub started: Instant,
    /// Told when the table is another one.
    pub changed: Notify,
    /// Changes of the routes that were refused, and whether the last one was.
    pub rejected: AtomicU64,
    pub stale: AtomicBool,
    /// What DNS and the registry gave last. Held by whoever changes the table or its lists.
    found: Mutex<Found>,
}

impl Shared {
    /// # Errors
    /// `ROUTES_INVALID` with everything that is wrong, `CERTIFICATE`, `CONFIG` where the access log cannot be opened; as
    /// [`Archive::open`].
    pub fn new(options: Options, listeners: Listeners, routes: &[Declared]) -> Result<Self, Error> {
        let cores = options.threads.max(1);
        let new = first_look(new_names(routes, &Found::new()));
        let found: Found = new.into_iter().map(|(name, list)| (Source::Dns(name), list)).collect();
        let tls = tls::State::new(options.edge.upstream_tls.clone());
        let world = World { found: &found, tls: &tls, cores };
        let table = compile(routes, None, &world).map_err(|wrong| refused(&wrong))?.install(Time::ZERO);
        let shards = (0..cores).map(|_| Arc::default()).collect();
        let archive = options.records.as_ref().map(Archive::open).transpose()?;
        let (table, started) = (ArcSwap::from_pointee(table), Instant::now());
        let log = options.access_log.as_ref().map(Log::start).transpose()?;
        let export = |to: otlp::To| {
            let connector = to.tls.clone().map(|told| tls.client(told)).transpose()?;
            otlp::start(to, connector)
        };
        let started_export = options.otlp.clone().map(export).transpose()?;
        let (traces, logs, exporter) = match started_export {
            Some(Started { traces, logs, exporter }) => (Some(traces), logs, Some(exporter)),
            None => (None, None, None),
        };
        let records = Records::with(archive, logs);
        Ok(Self {
            options,
            listeners,
            shards,
            records,
            log,
            traces,
            exporter,
            table,
            tls,
            started,
            changed: Notify::new(),
            rejected: AtomicU64::new(0),
            stale: AtomicBool::new(false),
            found: Mutex::new(found),
        })
    }

    /// Routes requests by these from now on; those under way end as they began. Tells the table's generation. May wait two
    /// seconds for names that were not looked up before.
    ///
    /// # Errors
    /// Everything that is wrong; the table stays as it is.
    pub fn load(&self, routes: &[Declared]) -> Result<u64, Vec<Wrong>> {
        self.install(routes).inspect(|_| self.accept()).inspect_err(|_| self.reject())
    }

    fn install(&self, routes: &[Declared]) -> Result<u64, Vec<Wrong>> {
        // Looked up without the lock: DNS may be slow, and what others discover must not wait for it.
        let new = first_look(new_names(routes, &self.lock()));
        let mut found = self.lock();
        for (name, list) in new {
            found.entry(Source::Dns(name)).or_insert(list);
        }
        let world = World { found: &found, tls: &self.tls, cores: self.shards.len() };
        let next = compile(routes, Some(&self.table.load()), &world)?.install(self.now());
        let generation = next.generation;
        self.table.store(Arc::new(next));
        self.changed.notify_one();
        Ok(generation)
    }

    /// Takes up routes and listeners as one change: both, or nothing. Reads certificates and may wait for DNS. Whoever tells what
    /// became of it says so here too ([`Self::accept`], [`Self::reject`]).
    ///
    /// # Errors
    /// Everything that is wrong with the listeners, else with the routes; all stays as it is.
    pub fn change(&self, routes: &[Declared], listeners: &[Listening]) -> Result<u64, Refused> {
        let prepared = self.listeners.prepare(listeners, &self.tls).map_err(Refused::Listeners)?;
        let generation = self.install(routes).map_err(Refused::Routes)?;
        for change in prepared.commit() {
            tracing::warn!("listener {change}");
        }
        Ok(generation)
    }

    /// What was given last holds.
    pub fn accept(&self) {
        self.stale.store(false, Relaxed);
    }

    /// A change of the routes was refused; the old ones stay in force.
    pub fn reject(&self) {
        self.rejected.fetch_add(1, Relaxed);
        self.stale.store(true, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a source gave last.
    pub fn found(&self, source: &Source) -> Option<Vec<String>> {
        self.lock().get(source).cloned()
    }

    /// Takes up what a source gives; addresses that are none are left out.
    pub fn discovered(&self, source: Source, list: Vec<String>) {
        let mut found = self.lock();
        for backend in self.table.load().backends().filter(|backend| backend.source().as_ref() == Some(&source)) {
            if backend.change(self.now(), &endpoints_of(&backend.identity, &list)) {
                tracing::info!(backend = &*backend.name, endpoints = list.len(), "the endpoints changed");
            }
        }
        found.insert(source, list);
    }

    /// The policies' clock: the time since the start.
    pub fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// Why a change was not taken up.
#[derive(Debug)]
pub enum Refused {
    Listeners(Vec<listen::Wrong>),
    Routes(Vec<Wrong>),
}

impl From<Refused> for Error {
    fn from(why: Refused) -> Self {
        match why {
            Refused::Listeners(wrong) => listen::refused(&wrong),
            Refused::Routes(wrong) => refused(&wrong),
        }
    }
}

/// Names of which nothing is known yet.
fn new_names(routes: &[Declared], found: &Found) -> Vec<String> {
    let names = routes.iter().flat_map(|route| &route.spec.to).filter_map(|backend| backend.dns.clone());
    let mut new: Vec<String> = names.filter(|name| !found.contains_key(&Source::Dns(name.clone()))).collect();
    new.sort_unstable();
    new.dedup();
    new
}

/// Everything that is wrong with routes, as one error.
pub fn refused(wrong: &[Wrong]) -> Error {
    let all: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    Error::new(Code::ROUTES_INVALID, all.join("\n")).hint("buttress explain BT0921 says how routes are written")
}
