//! The demo on the user's own Kafka and etcd: hosts of functions as processes, in names that no other run has.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use buttress_bridge::etcd::EtcdLedger;
use buttress_core::{BoxFuture, Code, DeleteOp, Entry, Error, KeyRange, Ledger, SubmitError, TopicChange, Txn, TxnOp};
use tokio::process::{Child, Command};

use super::{ClusterControl, NodeAddress, committed};
use crate::{
    client::Client,
    cluster::log_path,
    engines::{KafkaPlace, etcd_options},
    ports,
};

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(10);
const READY_POLL: Duration = Duration::from_millis(20);
/// The shortest that there is: a killed host's partitions go to others after it.
const HOLD_TTL: &str = "3s";
/// HTTP and MQTT.
const EDGES: usize = 2;

/// Where the engines are, and what this run is called in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Engines {
    pub kafka: Vec<String>,
    pub etcd: Vec<String>,
    /// Topics, groups, transactional ids and keys begin with it.
    pub namespace: String,
    /// Restarts the broker, and returns when it serves again.
    pub restart_broker: Option<String>,
}

impl Engines {
    pub fn physical(&self, topic: &str) -> String {
        format!("{}{topic}", self.namespace)
    }

    fn place(&self) -> KafkaPlace {
        KafkaPlace { bootstrap: self.kafka.clone(), namespace: self.namespace.clone() }
    }

    async fn ledger(&self) -> Result<EtcdLedger, Error> {
        EtcdLedger::connect(etcd_options(&self.etcd, &self.namespace)?).await
    }

    /// Says what is wrong with the engines before anything is started.
    ///
    /// # Errors
    /// They cannot be reached, or are too old.
    pub async fn check(&self) -> Result<(), Error> {
        let etcd = self.ledger().await?;
        self.place().connect().await.map(drop)?;
        etcd.close().await;
        Ok(())
    }

    /// Deletes the run's topics and keys; tells which topics those were.
    ///
    /// # Errors
    /// The engines do not answer.
    pub async fn clean(&self) -> anyhow::Result<usize> {
        anyhow::ensure!(!self.namespace.is_empty(), "without a namespace everything would be deleted");
        let etcd = self.ledger().await?;
        // The bridge's own keys hang on leases that end by themselves.
        let delete = TxnOp::Delete(DeleteOp { range: KeyRange::prefix("/buttress/"), prev_kv: false });
        let all = Txn { success: vec![delete], ..Txn::default() };
        etcd.submit(Entry { txn: Some(all), ..Entry::default() }).await.map_err(SubmitError::into_error)?;
        let kafka = self.place().connect().await?;
        let topics = committed::topics(&self.kafka, &self.namespace).await?;
        for topic in &topics {
            let name = topic[self.namespace.len()..].to_owned();
            let delete = Entry { topics: vec![TopicChange::Delete { name }], ..Entry::default() };
            kafka.submit(delete).await.map_err(SubmitError::into_error)?;
        }
        etcd.close().await;
        Ok(topics.len())
    }

    /// Runs the user's command; how long it took.
    ///
    /// # Errors
    /// It cannot be run, or says that it failed.
    pub async fn restart(&self) -> Result<Duration, Error> {
        let command = self.restart_broker.as_deref().unwrap_or_default();
        let begun = Instant::now();
        let failed = |why: String| {
            Error::new(Code::CONFIG, format!("--restart-broker {command:?}: {why}"))
                .hint("the command restarts the broker, returns when it serves again, and exits with 0")
        };
        let ended = Command::new("sh").arg("-c").arg(command).stdin(Stdio::null()).stdout(Stdio::null()).output().await;
        match ended {
            Ok(ended) if ended.status.success() => Ok(begun.elapsed()),
            Ok(ended) => Err(failed(format!("{}; {}", ended.status, String::from_utf8_lossy(&ended.stderr).trim()))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

struct Plan {
    name: String,
    id: u64,
    http: String,
    mqtt: String,
}

/// Host processes on this machine.
pub struct LocalHosts {
    dir: PathBuf,
    engines: Engines,
    plans: Vec<Plan>,
    children: Mutex<BTreeMap<String, Child>>,
}

impl LocalHosts {
    /// # Errors
    /// `PORT_TAKEN`, `DISK`.
    pub fn lay_out(dir: &Path, hosts: usize, engines: Engines, seed: u64) -> Result<Arc<Self>, Error> {
        std::fs::create_dir_all(dir).map_err(|error| {
            Error::new(Code::DISK, format!("cannot write to \"{}\": {error}", dir.display()))
                .hint("name another --data-dir")
        })?;
        let ports = ports::free(hosts * EDGES, seed)?;
        let plan = |(ports, id): (&[u16], u64)| Plan {
            name: format!("host-{id}"),
            id,
            http: format!("127.0.0.1:{}", ports[0]),
            mqtt: format!("127.0.0.1:{}", ports[1]),
        };
        let plans = ports.chunks(EDGES).zip(1u64..).map(plan).collect();
        Ok(Arc::new(Self { dir: dir.to_owned(), engines, plans, children: Mutex::default() }))
    }

    /// Starts every host and waits until each answers and knows the others.
    ///
    /// # Errors
    /// `UNREACHABLE` with the place of its log.
    pub async fn start_all(&self) -> Result<(), Error> {
        for plan in &self.plans {
            self.spawn(plan)?;
        }
        for plan in &self.plans {
            self.wait_ready(plan, self.plans.len()).await?;
        }
        Ok(())
    }

    fn spawn(&self, plan: &Plan) -> Result<(), Error> {
        let failed = |error: std::io::Error| Error::new(Code::CONFIG, format!("cannot start {}: {error}", plan.name));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log_path(&self.dir, &plan.name));
        let child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(["host", "--with-parent", "--log", "json", "--hold-ttl", HOLD_TTL])
            .args(["--kafka", &self.engines.kafka.join(","), "--etcd", &self.engines.etcd.join(",")])
            .args(["--namespace", &self.engines.namespace, "--name", &plan.name, "--id", &plan.id.to_string()])
            .args(["--http", &plan.http, "--mqtt", &plan.mqtt])
            .arg("--cache-dir")
            .arg(self.dir.join("components"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log.map_err(failed)?)
            .process_group(0) // Ctrl-C goes to us alone; we stop the hosts in our own order.
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        self.children.lock().expect("no holder panics").insert(plan.name.clone(), child);
        Ok(())
    }

    async fn wait_ready(&self, plan: &Plan, others: usize) -> Result<(), Error> {
        let client = Client::new(&format!("http://{}", plan.http))?;
        let deadline = tokio::time::Instant::now() + START_DEADLINE;
        loop {
            if let Ok(view) = client.get("/v1/cluster").await
                && view["cluster_id"] == self.engines.namespace
                && view["node"] == plan.id
                && view["members"].as_array().is_some_and(|members| members.len() >= others)
            {
                return Ok(());
            }
            let ended = match self.children.lock().expect("no holder panics").get_mut(&plan.name) {
                Some(child) => child.try_wait().ok().flatten().is_some(),
                None => true,
            };
            if ended || tokio::time::Instant::now() > deadline {
                let message = format!("{} does not answer at http://{}", plan.name, plan.http);
                let hint = format!("its log is {}", log_path(&self.dir, &plan.name).display());
                return Err(Error::new(Code::UNREACHABLE, message).hint(hint));
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    fn plan(&self, name: &str) -> anyhow::Result<&Plan> {
        self.plans.iter().find(|plan| plan.name == name).ok_or_else(|| anyhow::anyhow!("there is no host {name}"))
    }

    /// Stops every host: closes its standard input, and kills it if it does not end.
    pub async fn stop_all(&self) {
        let mut children = std::mem::take(&mut *self.children.lock().expect("no holder panics"));
        for child in children.values_mut() {
            drop(child.stdin.take());
        }
        for (name, mut child) in children {
            if tokio::time::timeout(STOP_DEADLINE, child.wait()).await.is_err() {
                tracing::warn!(%name, "host did not stop and is killed");
                let _ = child.kill().await;
            }
        }
    }
}

/// What the demo does to hosts.
pub struct Control(pub Arc<LocalHosts>);

impl ClusterControl for Control {
    fn nodes(&self) -> Vec<NodeAddress> {
        let address = |plan: &Plan| NodeAddress {
            name: plan.name.clone(),
            id: plan.id,
            kafka: String::new(),
            mqtt: plan.mqtt.clone(),
            http: plan.http.clone(),
        };
        self.0.plans.iter().map(address).collect()
    }

    fn kill<'a>(&'a self, name: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            let child = self.0.children.lock().expect("no holder panics").remove(name);
            if let Some(mut child) = child {
                child.kill().await?;
            }
            Ok(())
        })
    }

    fn restart<'a>(&'a self, name: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            let plan = self.0.plan(name)?;
            self.0.spawn(plan)?;
            Ok(self.0.wait_ready(plan, 1).await?)
        })
    }
}
