//! The plane as a whole: one catalogue, one supervisor of runners, one set of routes.

use std::sync::Arc;

use buttress_core::{Cluster, Code, Engine, Error, Ledger, Scope, Stream};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    catalogue::{self, Receiver},
    deploy::Deployer,
    http::FunctionsHttp,
    runner::{self, Context},
    stats::Stats,
};

/// What the plane stands on.
#[derive(Clone)]
pub struct Deps {
    pub ledger: Arc<dyn Ledger>,
    pub stream: Arc<dyn Stream>,
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
    /// `UNSUPPORTED` where one commit cannot hold records, cursors and keys at once.
    pub fn start(deps: Deps) -> Result<Self, Error> {
        if deps.ledger.scope() != Scope::Entry || deps.stream.scope() != Scope::Entry {
            return Err(Error::new(Code::UNSUPPORTED, "functions on topics need commits that hold everything at once")
                .hint("use the embedded log; other engines come later"));
        }
        let Deps { ledger, stream, cluster, engine, shutdown } = deps;
        let stats = Arc::new(Stats::default());
        let catalogue = catalogue::start(ledger.clone(), engine.clone(), shutdown.clone());
        let context = Context::new(ledger.clone(), stream.clone(), cluster.clone(), stats.clone());
        let supervisor = tokio::spawn(runner::supervise(Arc::new(context), catalogue.clone(), shutdown));
        let deployer = Deployer { ledger, stream: stream.clone(), cluster: cluster.clone(), engine };
        let http = Arc::new(FunctionsHttp::new(deployer, catalogue.clone(), stats.clone(), stream, cluster));
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
