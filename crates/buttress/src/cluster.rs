//! A cluster of real processes on this machine: what `dev` and `demo` run.
//!
//! Every node is this same binary as `serve --config F --with-parent`. A node's standard input is a pipe that we hold: when
//! we end, however we end, the pipe closes and the node stops, so no process is left behind.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Mutex,
    time::Duration,
};

use buttress_core::{Code, Error};
use tokio::process::{Child, Command};

use crate::{
    client::Client,
    config::{self, Config, MemberConfig},
    ports,
};

/// A node must answer within this time after its start; replaying a large log takes a while.
const START_DEADLINE: Duration = Duration::from_secs(60);
const READY_POLL: Duration = Duration::from_millis(20);
/// A node that was asked to stop and does not is killed after this long.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Where a directory keeps the shape of its cluster, so that a later `dev` takes it up again.
const CLUSTER_FILE: &str = "cluster.toml";

pub struct LocalCluster {
    dir: PathBuf,
    members: Vec<MemberConfig>,
    children: Mutex<BTreeMap<String, Child>>,
}

impl LocalCluster {
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
        let file = dir.join(CLUSTER_FILE);
        if file.exists() {
            return Self::take_up(dir, nodes);
        }
        let ports = ports::free(nodes * 4, seed)?;
        let members: Vec<MemberConfig> = ports
            .chunks(4)
            .zip(1u64..)
            .map(|(ports, id)| {
                let address = |at: usize| format!("127.0.0.1:{}", ports[at]);
                let name = format!("node-{id}");
                MemberConfig { id, name, peer: address(0), kafka: address(1), mqtt: address(2), http: address(3) }
            })
            .collect();
        for member in &members {
            let data_dir = dir.join(&member.name);
            std::fs::create_dir_all(&data_dir).map_err(disk)?;
            let config = Config {
                node: config::Node { id: member.id, data_dir, insecure: false },
                cluster: config::Cluster { id: cluster_id.to_owned() },
                members: members.clone(),
                events: config::Events::default(),
            };
            let text = toml::to_string(&config).expect("a configuration is plain data");
            std::fs::write(config_path(dir, &member.name), text).map_err(disk)?;
        }
        // Written last: its presence says that the layout is complete.
        std::fs::copy(config_path(dir, &members[0].name), &file).map_err(disk)?;
        Ok(Self { dir: dir.to_owned(), members, children: Mutex::default() })
    }

    fn take_up(dir: &Path, nodes: usize) -> Result<Self, Error> {
        let members = Config::load(&dir.join(CLUSTER_FILE))?.members;
        if members.len() != nodes {
            let message = format!("\"{}\" holds a cluster of {} nodes, not of {nodes}", dir.display(), members.len());
            let hint = format!("say --nodes {}, or name another --data-dir", members.len());
            return Err(Error::new(Code::CONFIG, message).hint(hint));
        }
        Ok(Self { dir: dir.to_owned(), members, children: Mutex::default() })
    }

    pub fn members(&self) -> &[MemberConfig] {
        &self.members
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts every node and waits until each answers and a leader is known.
    ///
    /// # Errors
    /// The first node's own error when it ends early, otherwise `UNREACHABLE`.
    pub async fn start_all(&self) -> Result<(), Error> {
        for member in &self.members {
            self.spawn(member)?;
        }
        for member in &self.members {
            self.wait_ready(member).await?;
        }
        Ok(())
    }

    /// Starts one node that is not running and waits until it answers.
    ///
    /// # Errors
    /// As [`LocalCluster::start_all`].
    pub async fn start(&self, name: &str) -> Result<(), Error> {
        let member = self.member(name)?;
        self.spawn(member)?;
        self.wait_ready(member).await
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
        let _ = child.kill().await;
        Ok(())
    }

    pub fn running(&self) -> Vec<String> {
        self.children.lock().expect("no holder panics").keys().cloned().collect()
    }

    /// Stops every node: closes its standard input, and kills it if it does not end.
    pub async fn stop_all(&self) {
        let mut children = std::mem::take(&mut *self.children.lock().expect("no holder panics"));
        for child in children.values_mut() {
            drop(child.stdin.take());
        }
        for (name, mut child) in children {
            if tokio::time::timeout(STOP_DEADLINE, child.wait()).await.is_err() {
                tracing::warn!(%name, "node did not stop and is killed");
                let _ = child.kill().await;
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

    fn spawn(&self, member: &MemberConfig) -> Result<(), Error> {
        let failed = |error: std::io::Error| Error::new(Code::CONFIG, format!("cannot start {}: {error}", member.name));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log_path(&self.dir, &member.name))
            .map_err(failed)?;
        let child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(["serve", "--with-parent", "--log", "json", "--config"])
            .arg(config_path(&self.dir, &member.name))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0) // Ctrl-C goes to us alone; we stop the nodes in our own order.
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        self.children.lock().expect("no holder panics").insert(member.name.clone(), child);
        Ok(())
    }

    async fn wait_ready(&self, member: &MemberConfig) -> Result<(), Error> {
        let client = Client::new(&format!("http://{}", member.http))?;
        let deadline = tokio::time::Instant::now() + START_DEADLINE;
        loop {
            if client.send(http::Method::GET, "/readyz", &[], bytes::Bytes::new()).await.is_ok() {
                return Ok(());
            }
            let exited = match self.children.lock().expect("no holder panics").get_mut(&member.name) {
                Some(child) => child.try_wait().ok().flatten().is_some(),
                None => true,
            };
            if exited {
                return Err(self.why_ended(member));
            }
            if tokio::time::Instant::now() > deadline {
                let message = format!("{} does not answer at http://{}", member.name, member.http);
                let hint = format!("its log is {}", log_path(&self.dir, &member.name).display());
                return Err(Error::new(Code::UNREACHABLE, message).hint(hint));
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Takes the last line of the node's log as the reason.
    fn why_ended(&self, member: &MemberConfig) -> Error {
        let path = log_path(&self.dir, &member.name);
        let log = std::fs::read_to_string(&path).unwrap_or_default();
        let last = log.lines().rev().find(|line| line.contains("\"ERROR\"") || line.starts_with("error"));
        let message = format!("{} ended while starting: {}", member.name, last.unwrap_or("it logged no error"));
        Error::new(Code::UNREACHABLE, message).hint(format!("its log is {}", path.display()))
    }
}

pub fn config_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.toml"))
}

pub fn log_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.log"))
}
