//! What the cores of a proxy share: the table of routes, records, figures, the policies' clock.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use buttress_core::{Code, Error};
use buttress_policy::Time;

use crate::{
    access_log::Log,
    compile::{Declared, Wrong, compile},
    config::Options,
    metrics::Shard,
    otlp::{Exporter, Traces},
    record::Records,
    table::Table,
};

pub struct Shared {
    pub options: Options,
    /// Where traffic comes in.
    pub address: SocketAddr,
    pub shards: Vec<Arc<Shard>>,
    pub records: Records,
    pub log: Option<Arc<Log>>,
    pub traces: Option<Arc<Traces>>,
    pub exporter: Option<Exporter>,
    pub table: ArcSwap<Table>,
    pub started: Instant,
    /// Changes of the routes that were refused, and whether the last one was.
    pub rejected: AtomicU64,
    pub stale: AtomicBool,
    /// Held by whoever changes the table.
    changing: Mutex<()>,
}

impl Shared {
    /// # Errors
    /// `ROUTES_INVALID` with everything that is wrong, `CONFIG` where the access log cannot be opened.
    pub fn new(options: Options, address: SocketAddr, routes: &[Declared]) -> Result<Self, Error> {
        let cores = options.threads.max(1);
        let table = compile(routes, None, cores).map_err(|wrong| refused(&wrong))?.install(Time::ZERO);
        let shards = (0..cores).map(|_| Arc::default()).collect();
        let (records, table, started) = (Records::default(), ArcSwap::from_pointee(table), Instant::now());
        let log = options.access_log.as_ref().map(Log::start).transpose()?;
        let (traces, exporter) = options.otlp.clone().map(Traces::start).transpose()?.unzip();
        let (rejected, stale, changing) = Default::default();
        Ok(Self { options, address, shards, records, log, traces, exporter, table, started, rejected, stale, changing })
    }

    /// Routes requests by these from now on; those under way end as they began. Tells the table's generation.
    ///
    /// # Errors
    /// Everything that is wrong; the table stays as it is.
    pub fn load(&self, routes: &[Declared]) -> Result<u64, Vec<Wrong>> {
        let _one_after_the_other = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = compile(routes, Some(&self.table.load()), self.shards.len()).inspect_err(|_| self.reject())?;
        let next = compiled.install(self.now());
        let generation = next.generation;
        self.table.store(Arc::new(next));
        self.stale.store(false, Relaxed);
        Ok(generation)
    }

    /// A change of the routes was refused; the old ones stay in force.
    pub fn reject(&self) {
        self.rejected.fetch_add(1, Relaxed);
        self.stale.store(true, Relaxed);
    }

    /// The policies' clock: the time since the start.
    pub fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// Everything that is wrong with routes, as one error.
pub fn refused(wrong: &[Wrong]) -> Error {
    let all: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    Error::new(Code::ROUTES_INVALID, all.join("\n")).hint("buttress explain BT0921 says how routes are written")
}
