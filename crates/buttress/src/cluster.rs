//! A cluster of real processes on this machine: what `dev` and `demo` run.
//!
//! Every node is this same binary as `serve --config F --with-parent`. A node's standard input is a pipe that we hold: when
//! we end, however we end, the pipe closes and the node stops, so no process is left behind.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Mutex,
    time::Duration,
};

use buttress_core::{Code, Error};
use buttress_node::backup::RestoreOptions;
use tokio::process::{Child, Command};

use crate::{
    cli::{
        args::{JoinArgs, Output, Server},
        join,
    },
    client::Client,
    config::{self, Config, MemberConfig},
    logging, ports,
};

/// A node must answer within this time after its start; replaying a large log takes a while.
const START_DEADLINE: Duration = Duration::from_secs(60);
const READY_POLL: Duration = Duration::from_millis(20);
/// A node that was asked to stop and does not is killed after this long. It takes a second at most to hand leadership over,
/// two to answer what runs, and three for what it sent on.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Ports of a node: peer, kafka, mqtt, http, etcd.
const EDGES: usize = 5;
/// Where a directory keeps the shape of its cluster, so that a later `dev` takes it up again.
const CLUSTER_FILE: &str = "cluster.toml";
/// Locked for as long as a process runs the directory's cluster.
const LOCK_FILE: &str = "cluster.lock";

pub struct LocalCluster {
    dir: PathBuf,
    members: Vec<MemberConfig>,
    cluster_id: String,
    /// What a node's process is started through, by node.
    wraps: BTreeMap<String, Vec<String>>,
    children: Mutex<BTreeMap<String, Running>>,
    /// The operating system gives the lock back when we end, however we end.
    _lock: File,
}

/// Where one node lives, and how it sees the others.
pub struct NodePlan {
    /// The node's own addresses, as it binds them and clients use them.
    pub member: MemberConfig,
    /// The peer addresses at which this node finds the others, by their ids.
    pub peers: BTreeMap<u64, String>,
    /// The command that the node is started through, with its arguments; it must replace itself by the node.
    pub wrap: Vec<String>,
    /// Addresses other than loopback.
    pub insecure: bool,
}

/// A node's process, and where its log began when it was started.
struct Running {
    process: Child,
    log_from: u64,
}

impl LocalCluster {
    /// Lays out nodes whose places somebody else has chosen, in a directory that is new.
    ///
    /// # Errors
    /// `DIR_LOCKED`, `DISK`.
    pub fn lay_out_as(dir: &Path, cluster_id: &str, plans: &[NodePlan]) -> Result<Self, Error> {
        let disk =
            |error: std::io::Error| Error::new(Code::DISK, format!("cannot write to \"{}\": {error}", dir.display()));
        let lock = File::create(dir.join(LOCK_FILE)).map_err(disk)?;
        lock.try_lock().map_err(|_| Error::new(Code::DIR_LOCKED, format!("\"{}\" is in use", dir.display())))?;
        for plan in plans {
            let data_dir = dir.join(&plan.member.name);
            std::fs::create_dir_all(&data_dir).map_err(disk)?;
            let seen = |other: &NodePlan| match plan.peers.get(&other.member.id) {
                Some(peer) => MemberConfig { peer: peer.clone(), ..other.member.clone() },
                None => other.member.clone(),
            };
            let config = Config {
                node: config::Node { id: plan.member.id, data_dir, insecure: plan.insecure, join: false },
                cluster: config::Cluster { id: cluster_id.to_owned() },
                members: plans.iter().map(seen).collect(),
                events: config::Events::default(),
                engines: None,
                etcd: config::Etcd::default(),
                uplink: config::Uplink::default(),
            };
            let text = toml::to_string(&config).expect("a configuration is plain data");
            std::fs::write(config_path(dir, &plan.member.name), text).map_err(disk)?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            members: plans.iter().map(|plan| plan.member.clone()).collect(),
            cluster_id: cluster_id.to_owned(),
            wraps: plans.iter().map(|plan| (plan.member.name.clone(), plan.wrap.clone())).collect(),
            children: Mutex::default(),
            _lock: lock,
        })
    }

    /// Lays out `nodes` nodes under `dir`, or takes up those that an earlier run laid out there.
    ///
    /// # Errors
    /// `CONFIG` when the directory holds a cluster of another size, `PORT_TAKEN`, `DISK`.
    pub fn lay_out(dir: &Path, nodes: usize, cluster_id: &str, seed: u64) -> Result<Self, Error> {
        let disk = |error: std::io::Error| {
            Error::new(Code::DISK, format!("cannot write to \"{}\": {error}", dir.display()))
                .hint("name another --data-dir")
        };
        std::fs::create_dir_all(dir).map_err(disk)?;
        let lock = File::create(dir.join(LOCK_FILE)).map_err(disk)?;
        if lock.try_lock().is_err() {
            let message = format!("another process runs the cluster in \"{}\"", dir.display());
            return Err(Error::new(Code::DIR_LOCKED, message).hint("stop it, or name another --data-dir"));
        }
        let file = dir.join(CLUSTER_FILE);
        if file.exists() {
            return Self::take_up(dir, nodes, lock);
        }
        let ports = ports::free(nodes * EDGES, seed)?;
        let members: Vec<MemberConfig> = ports
            .chunks(EDGES)
            .zip(1u64..)
            .map(|(ports, id)| {
                let address = |at: usize| format!("127.0.0.1:{}", ports[at]);
                let name = format!("node-{id}");
                MemberConfig {
                    id,
                    name,
                    peer: address(0),
                    kafka: address(1),
                    mqtt: address(2),
                    http: address(3),
                    etcd: address(4),
                }
            })
            .collect();
        for member in &members {
            let data_dir = dir.join(&member.name);
            std::fs::create_dir_all(&data_dir).map_err(disk)?;
            let config = Config {
                node: config::Node { id: member.id, data_dir, insecure: false, join: false },
                cluster: config::Cluster { id: cluster_id.to_owned() },
                members: members.clone(),
                events: config::Events::default(),
                engines: None,
                etcd: config::Etcd::default(),
                uplink: config::Uplink::default(),
            };
            let text = toml::to_string(&config).expect("a configuration is plain data");
            std::fs::write(config_path(dir, &member.name), text).map_err(disk)?;
        }
        // Written last: its presence says that the layout is complete.
        std::fs::copy(config_path(dir, &members[0].name), &file).map_err(disk)?;
        let (dir, cluster_id) = (dir.to_owned(), cluster_id.to_owned());
        Ok(Self { dir, members, cluster_id, wraps: BTreeMap::new(), children: Mutex::default(), _lock: lock })
    }

    fn take_up(dir: &Path, nodes: usize, lock: File) -> Result<Self, Error> {
        let Config { members, cluster, .. } = Config::load(&dir.join(CLUSTER_FILE))?;
        if members.len() != nodes {
            let message = format!("\"{}\" holds a cluster of {} nodes, not of {nodes}", dir.display(), members.len());
            let hint = format!("say --nodes {}, or name another --data-dir", members.len());
            return Err(Error::new(Code::CONFIG, message).hint(hint));
        }
        Ok(Self {
            dir: dir.to_owned(),
            members,
            cluster_id: cluster.id,
            wraps: BTreeMap::new(),
            children: Mutex::default(),
            _lock: lock,
        })
    }

    /// Lets topics lie in a Kafka of the user's, from the next start of each node on.
    ///
    /// # Errors
    /// `CONFIG`, `DISK`.
    pub fn use_kafka(&self, kafka: &[String]) -> Result<(), Error> {
        for member in &self.members {
            let path = config_path(&self.dir, &member.name);
            let engines = config::Engines { kafka: kafka.to_vec(), namespace: String::new() };
            let config = Config { engines: Some(engines), ..Config::load(&path)? };
            let text = toml::to_string(&config).expect("a configuration is plain data");
            std::fs::write(&path, text)
                .map_err(|error| Error::new(Code::DISK, format!("cannot write \"{}\": {error}", path.display())))?;
        }
        Ok(())
    }

    /// Lets a node join through one that runs, and starts it. A later run takes it up with the others.
    ///
    /// # Errors
    /// What the cluster says, and as [`LocalCluster::start_all`].
    pub async fn join(&mut self, name: &str, through: &str, learner: bool) -> Result<(), Error> {
        let args = JoinArgs {
            name: name.to_owned(),
            data_dir: self.dir.join(name),
            config: None,
            peer: None,
            kafka: None,
            mqtt: None,
            http: None,
            etcd: None,
            insecure: false,
            learner,
            serve: false,
            log: logging::Format::Json,
            with_parent: true,
            server: Server { server: format!("http://{}", self.member(through)?.http), output: Output::Table },
        };
        let path = config_path(&self.dir, name);
        join::join(&args, &path).await?;
        let joined = Config::load(&path)?.member().clone();
        self.members.retain(|m| m.name != name);
        self.members.push(joined);
        let shape = Config { members: self.members.clone(), ..Config::load(&self.dir.join(CLUSTER_FILE))? };
        let text = toml::to_string(&shape).expect("a configuration is plain data");
        let temporary = self.dir.join("cluster.toml.tmp");
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, self.dir.join(CLUSTER_FILE)))
            .map_err(|error| Error::new(Code::DISK, format!("cannot write the cluster's shape: {error}")))?;
        self.start(name).await
    }

    /// Asks a node to stop as an operator would, and waits for its end: it hands over and answers what runs.
    ///
    /// # Errors
    /// `CONFIG` when no node of this name runs.
    pub async fn stop(&self, name: &str) -> Result<(), Error> {
        let child = self.children.lock().expect("no holder panics").remove(name);
        let Some(mut child) = child else {
            return Err(Error::new(Code::CONFIG, format!("node \"{name}\" is not running")));
        };
        drop(child.process.stdin.take());
        if tokio::time::timeout(STOP_DEADLINE, child.process.wait()).await.is_err() {
            tracing::warn!(%name, "node did not stop and is killed");
            let _ = child.process.kill().await;
        }
        Ok(())
    }

    /// Whether the node's last run ended because it was removed from the cluster: it must not be started again.
    pub fn was_removed(&self, name: &str) -> bool {
        let path = log_path(&self.dir, name);
        let log = std::fs::read(&path).unwrap_or_default();
        reason(name, &String::from_utf8_lossy(&log), &path).code == Code::REMOVED
    }

    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    pub fn members(&self) -> &[MemberConfig] {
        &self.members
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Restores every node from a backup, before any of them was started.
    ///
    /// # Errors
    /// As [`restore`](buttress_node::backup::restore()).
    pub fn restore(&self, file: &Path) -> Result<(), Error> {
        for member in &self.members {
            let config = Config::load(&config_path(&self.dir, &member.name))?;
            // Nothing of the node runs, so nothing random is needed.
            buttress_node::backup::restore(file, &config.for_node(0, 0), &RestoreOptions::default(), |_| {})?;
        }
        Ok(())
    }

    /// Starts every node, but for those that were removed, and waits until each answers and a leader is known.
    ///
    /// # Errors
    /// The first node's own error when it ends early, otherwise `UNREACHABLE`.
    pub async fn start_all(&self) -> Result<(), Error> {
        let there: Vec<&MemberConfig> = self.members.iter().filter(|m| !self.was_removed(&m.name)).collect();
        for member in &there {
            self.spawn(&member.name)?;
        }
        for member in &there {
            self.wait_ready(&member.name).await?;
        }
        Ok(())
    }

    /// Starts one node that is not running and waits until it answers.
    ///
    /// # Errors
    /// As [`LocalCluster::start_all`].
    pub async fn start(&self, name: &str) -> Result<(), Error> {
        self.spawn(name)?;
        self.wait_ready(name).await
    }

    /// Kills a node with SIGKILL and waits until the process is gone.
    ///
    /// # Errors
    /// `CONFIG` when no node of this name runs.
    pub async fn kill(&self, name: &str) -> Result<(), Error> {
        let child = self.children.lock().expect("no holder panics").remove(name);
        let Some(mut child) = child else {
            return Err(Error::new(Code::CONFIG, format!("node \"{name}\" is not running")));
        };
        let _ = child.process.kill().await;
        Ok(())
    }

    /// The process of a node that runs.
    pub fn process_id(&self, name: &str) -> Option<u32> {
        self.children.lock().expect("no holder panics").get(name).and_then(|child| child.process.id())
    }

    /// Where the log of a node that was started begins in its file.
    pub fn log_since_start(&self, name: &str) -> Option<u64> {
        self.children.lock().expect("no holder panics").get(name).map(|child| child.log_from)
    }

    pub fn running(&self) -> Vec<String> {
        self.children.lock().expect("no holder panics").keys().cloned().collect()
    }

    /// Takes the nodes that ended by themselves off the list; tells each one's name and how it ended.
    pub fn reap(&self) -> Vec<(String, String)> {
        let mut ended = Vec::new();
        self.children.lock().expect("no holder panics").retain(|name, child| match child.process.try_wait() {
            Ok(Some(status)) => {
                ended.push((name.clone(), status.to_string()));
                false
            }
            Ok(None) | Err(_) => true,
        });
        ended
    }

    /// Stops every node: closes its standard input, and kills it if it does not end.
    pub async fn stop_all(&self) {
        let mut children = std::mem::take(&mut *self.children.lock().expect("no holder panics"));
        for child in children.values_mut() {
            drop(child.process.stdin.take());
        }
        for (name, mut child) in children {
            if tokio::time::timeout(STOP_DEADLINE, child.process.wait()).await.is_err() {
                tracing::warn!(%name, "node did not stop and is killed");
                let _ = child.process.kill().await;
            }
        }
    }

    fn member(&self, name: &str) -> Result<&MemberConfig, Error> {
        self.members.iter().find(|m| m.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.members.iter().map(|m| m.name.as_str()).collect();
            Error::new(Code::CONFIG, format!("there is no node \"{name}\""))
                .hint(format!("nodes: {}", names.join(", ")))
        })
    }

    /// Starts one node that is not running and does not wait for it.
    ///
    /// # Errors
    /// `CONFIG` when the process cannot be started.
    pub fn spawn(&self, name: &str) -> Result<(), Error> {
        let member = self.member(name)?;
        let failed = |error: std::io::Error| Error::new(Code::CONFIG, format!("cannot start {}: {error}", member.name));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log_path(&self.dir, &member.name))
            .map_err(failed)?;
        let log_from = log.metadata().map_err(failed)?.len();
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = match self.wraps.get(name).map(Vec::as_slice).unwrap_or_default() {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        let process = command
            .args(["serve", "--with-parent", "--log", "json", "--config"])
            .arg(config_path(&self.dir, &member.name))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0) // Ctrl-C goes to us alone; we stop the nodes in our own order.
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        self.children.lock().expect("no holder panics").insert(member.name.clone(), Running { process, log_from });
        Ok(())
    }

    /// Waits until a node that was started answers and knows a leader.
    ///
    /// # Errors
    /// As [`LocalCluster::start_all`].
    pub async fn wait_ready(&self, name: &str) -> Result<(), Error> {
        let member = self.member(name)?;
        let client = Client::new(&format!("http://{}", member.http))?;
        let deadline = tokio::time::Instant::now() + START_DEADLINE;
        loop {
            let ended_after = match self.children.lock().expect("no holder panics").get_mut(&member.name) {
                Some(child) => child.process.try_wait().ok().flatten().map(|_| child.log_from),
                None => Some(u64::MAX),
            };
            if let Some(log_from) = ended_after {
                return Err(self.why_ended(member, log_from));
            }
            // Whoever else listens there is not our node.
            if let Ok(view) = client.get("/v1/cluster").await
                && view["cluster_id"] == self.cluster_id
                && view["node"] == member.id
                && !view["leader"].is_null()
            {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                let message = format!("{} does not answer at http://{}", member.name, member.http);
                let hint = format!("its log is {}", log_path(&self.dir, &member.name).display());
                return Err(Error::new(Code::UNREACHABLE, message).hint(hint));
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Takes the last error of the node's log since its start as the reason.
    fn why_ended(&self, member: &MemberConfig, log_from: u64) -> Error {
        let path = log_path(&self.dir, &member.name);
        let log = std::fs::read(&path).unwrap_or_default();
        let log = log.get(usize::try_from(log_from).unwrap_or(usize::MAX)..).unwrap_or_default();
        reason(&member.name, &String::from_utf8_lossy(log), &path)
    }
}

/// The last error of a log in JSON, as the node would have told it to a person.
fn reason(name: &str, log: &str, path: &Path) -> Error {
    let lines = log.lines().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let last = lines.into_iter().find(|line| line["level"] == "ERROR").unwrap_or_default();
    let (code, said, hint) = (&last["code"], last["error"].as_str(), last["hint"].as_str());
    let code = Code::ALL.iter().map(|(known, _)| *known).find(|known| *code == known.0).unwrap_or(Code::UNREACHABLE);
    let message = format!("{name} ended while starting: {}", said.unwrap_or("it logged no error"));
    let log = format!("its log is {}", path.display());
    Error::new(code, message).hint(match hint.filter(|hint| !hint.is_empty()) {
        Some(hint) => format!("{hint}; {log}"),
        None => log,
    })
}

pub fn config_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.toml"))
}

pub fn log_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_s_own_last_error_is_the_reason() {
        let log = concat!(
            r#"{"level":"ERROR","message":"the node ended","code":"BT0202","error":"old","hint":""}"#,
            "\nnot json\n",
            r#"{"level":"ERROR","message":"the node ended","code":"BT0702","error":"cannot listen on a:1","hint":"see who listens"}"#,
            "\n",
            r#"{"level":"INFO","message":"bye"}"#,
        );
        let error = reason("node-1", log, Path::new("node-1.log"));
        assert_eq!(error.code, Code::PORT_TAKEN);
        assert_eq!(error.message, "node-1 ended while starting: cannot listen on a:1");
        assert_eq!(error.hint.as_deref(), Some("see who listens; its log is node-1.log"));
        let silent = reason("node-1", "", Path::new("node-1.log"));
        assert_eq!((silent.code, silent.hint.as_deref()), (Code::UNREACHABLE, Some("its log is node-1.log")));
    }

    #[test]
    fn a_directory_has_one_cluster_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = LocalCluster::lay_out(dir.path(), 1, "c", 7).unwrap();
        let second = LocalCluster::lay_out(dir.path(), 1, "c", 7).map(drop).unwrap_err();
        assert_eq!(second.code, Code::DIR_LOCKED);
        drop(first);
        LocalCluster::lay_out(dir.path(), 1, "c", 7).map(drop).unwrap();
    }
}
