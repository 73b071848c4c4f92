//! The plane as a whole: one catalogue, one supervisor of runners, one set of routes.

use std::sync::Arc;

use buttress_core::{Cluster, Code, Engine, Error, Ledger, Scope};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    catalogue::{self, Receiver},
    deploy::Deployer,
    home::{Home, Homes},
    http::FunctionsHttp,
    runner::{self, Context},
    stats::Stats,
};

/// What the plane stands on.
#[derive(Clone)]
pub struct Deps {
    /// Functions, models and settings.
    pub ledger: Arc<dyn Ledger>,
    /// Where records may lie, at least one place.
    pub homes: Vec<Home>,
    pub cluster: Arc<dyn Cluster>,
    pub engine: Arc<dyn Engine>,
    /// Becomes true when the node stops.
    pub shutdown: watch::Receiver<bool>,
}

/// The running plane. Its tasks end with `shutdown`.
pub struct FunctionsPlane {
    http: Arc<FunctionsHttp>,
    stats: Arc<Stats>,
    catalogue: Receiver,
    supervisor: JoinHandle<()>,
}

impl FunctionsPlane {
    /// Starts the plane's tasks on the current runtime.
    ///
    /// # Errors
    /// `UNSUPPORTED` where neither commits nor claims keep two runners of a partition apart.
    pub fn start(deps: Deps) -> Result<Self, Error> {
        let whole = |home: &Home| home.records.scope() == Scope::Entry && home.stream.scope() == Scope::Entry;
        if !deps.homes.iter().all(|home| whole(home) || home.claims.is_some()) {
            return Err(Error::new(Code::UNSUPPORTED, "functions on topics need commits that hold everything at once")
                .hint("use the embedded log, or an engine whose partitions can be claimed"));
        }
        let Deps { ledger, homes, cluster, engine, shutdown } = deps;
        let homes = Homes::new(ledger.clone(), homes);
        let stats = Arc::new(Stats::default());
        let catalogue = catalogue::start(ledger.clone(), engine.clone(), shutdown.clone());
        let context = Context::new(ledger.clone(), homes.clone(), cluster.clone(), stats.clone());
        let supervisor = tokio::spawn(runner::supervise(Arc::new(context), catalogue.clone(), shutdown));
        let deployer = Deployer { ledger, homes: homes.clone(), cluster: cluster.clone(), engine };
        let http = Arc::new(FunctionsHttp::new(deployer, catalogue.clone(), stats.clone(), homes, cluster));
        Ok(Self { http, stats, catalogue, supervisor })
    }

    pub fn http(&self) -> Arc<FunctionsHttp> {
        self.http.clone()
    }

    /// Deploying and pushing without HTTP.
    pub fn deployer(&self) -> &Deployer {
        &self.http.deployer
    }

    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    pub fn catalogue(&self) -> Receiver {
        self.catalogue.clone()
    }

    /// Appends the plane's figures in Prometheus' text form.
    pub fn metrics(&self, out: &mut String) {
        self.stats.render(out);
    }

    /// Waits until no runner is left; comes back soon after `shutdown` became true.
    pub async fn stopped(self) {
        // A panic of the supervisor was reported where it happened.
        let _ = self.supervisor.await;
    }
}
