//! How links are cut: by the fault proxy, or by the kernel between network namespaces.
//!
//! **proxy**: nodes listen on loopback; every ordered pair has a fault proxy ([`super::link`]), and all faults are its own.
//!
//! **namespaces** (root, Linux): every node lives in a network namespace of its own, joined by a veth pair to a bridge. The
//! fault proxies still carry the peers' traffic, each in the namespace of the node that opens the connections, but cuts are
//! the kernel's: a blackhole route in the sender's namespace for one direction, two of them for both, the interface taken
//! down where a node is cut off from everybody. So packets are really lost, and TCP finds out as it does in production.
//! Delays stay with the proxies.
//!
//! Names carry our process id. Whatever of a process that is gone is still there (it was killed), the next run removes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress_core::{Code, Error};
use clap::ValueEnum;
use tokio::{net::TcpListener, sync::oneshot, task::JoinSet};

use super::link::{Links, carry};
use crate::{cluster::NodePlan, config::MemberConfig, ports};

/// Every namespace, bridge and interface of ours begins so; then come a process id and a number.
const PREFIX: &str = "bxc";
/// Ports inside a namespace, where nobody else is.
const PEER_PORT: u16 = 7390;
const KAFKA_PORT: u16 = 7392;
const MQTT_PORT: u16 = 7383;
const HTTP_PORT: u16 = 7380;
const ETCD_PORT: u16 = 7381;
/// The proxy to node `n` listens at this port plus `n` in the namespace of the node that uses it.
const PROXY_PORT: u16 = 7400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Namespaces where they work, the proxy otherwise.
    Auto,
    /// The built-in fault proxy.
    Proxy,
    /// Network namespaces; needs root.
    Namespaces,
}

pub struct Network {
    links: Arc<Links>,
    ids: Vec<u64>,
    kernel: Option<Kernel>,
    _proxies: JoinSet<()>,
}

impl Network {
    /// Prepares the network of `nodes` nodes and says where each of them is to live.
    ///
    /// # Errors
    /// `CONFIG` where namespaces are wanted and do not work, `PORT_TAKEN`.
    pub async fn lay_out(mode: Mode, nodes: usize, seed: u64) -> Result<(Self, Vec<NodePlan>), Error> {
        let kernel = match mode {
            Mode::Proxy => None,
            Mode::Namespaces => Some(Kernel::lay_out(nodes)?),
            Mode::Auto => Kernel::lay_out(nodes).ok(),
        };
        let ids: Vec<u64> = (1..=nodes as u64).collect();
        let links = Arc::new(Links::default());
        let mut proxies = JoinSet::new();
        let plans = match &kernel {
            None => Self::on_loopback(&ids, &links, &mut proxies, seed).await?,
            Some(kernel) => kernel.plans(&ids, &links).await?,
        };
        Ok((Self { links, ids, kernel, _proxies: proxies }, plans))
    }

    async fn on_loopback(
        ids: &[u64],
        links: &Arc<Links>,
        proxies: &mut JoinSet<()>,
        seed: u64,
    ) -> Result<Vec<NodePlan>, Error> {
        let n = ids.len();
        let ports = ports::free(n * 5 + n * (n - 1), seed)?;
        let (own, mut between) = (&ports[..n * 5], ports[n * 5..].iter());
        let address = |port: u16| format!("127.0.0.1:{port}");
        let mut plans = Vec::new();
        for (ports, &id) in own.chunks(5).zip(ids) {
            let member = member(id, [ports[0], ports[1], ports[2], ports[3], ports[4]].map(address));
            plans.push(NodePlan { member, peers: BTreeMap::new(), wrap: Vec::new(), insecure: false });
        }
        let targets: Vec<String> = plans.iter().map(|plan| plan.member.peer.clone()).collect();
        for plan in &mut plans {
            let from = plan.member.id;
            for (&to, target) in ids.iter().zip(&targets).filter(|(to, _)| **to != from) {
                let near = address(*between.next().expect("a port for every ordered pair"));
                let listener = TcpListener::bind(&near)
                    .await
                    .map_err(|error| Error::new(Code::PORT_TAKEN, format!("cannot listen on {near}: {error}")))?;
                let target: SocketAddr = target.parse().expect("our own address");
                proxies.spawn(carry(listener, from, to, target, links.clone()));
                plan.peers.insert(to, near);
            }
        }
        Ok(plans)
    }

    pub fn name(&self) -> &'static str {
        if self.kernel.is_some() { "namespaces" } else { "proxy" }
    }

    /// Cuts one direction.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn cut(&self, from: u64, to: u64) -> Result<(), Error> {
        match &self.kernel {
            Some(kernel) => kernel.cut(from, to),
            None => {
                self.links.change(from, to, |link| link.cut = true);
                Ok(())
            }
        }
    }

    /// Cuts a node off from every other node. In namespaces its interface is taken down, so clients lose it too.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn isolate(&self, node: u64) -> Result<(), Error> {
        if let Some(kernel) = &self.kernel {
            return kernel.take_down(node);
        }
        for &other in self.ids.iter().filter(|id| **id != node) {
            self.cut(node, other)?;
            self.cut(other, node)?;
        }
        Ok(())
    }

    /// Delays what passes between a node and all others, both ways.
    pub fn delay(&self, node: u64, delay: Duration, jitter: Duration) {
        for &other in self.ids.iter().filter(|id| **id != node) {
            for (from, to) in [(node, other), (other, node)] {
                self.links.change(from, to, |link| (link.delay, link.jitter) = (delay, jitter));
            }
        }
    }

    /// Makes everything whole again.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn heal(&self) -> Result<(), Error> {
        self.links.heal();
        self.kernel.as_ref().map_or(Ok(()), Kernel::heal)
    }
}

fn member(id: u64, [peer, kafka, mqtt, http, etcd]: [String; 5]) -> MemberConfig {
    MemberConfig { id, name: format!("node-{id}"), peer, kafka, mqtt, http, etcd }
}

/// Namespaces, a bridge, and what is cut. Dropping it removes all of it.
struct Kernel {
    tag: String,
    subnet: u8,
    nodes: usize,
    cuts: Mutex<Cuts>,
    /// Dropped, each lets the thread in its namespace end.
    proxies: Mutex<Vec<oneshot::Sender<()>>>,
}

#[derive(Default)]
struct Cuts {
    routes: Vec<(u64, u64)>,
    down: Vec<u64>,
}

impl Kernel {
    fn lay_out(nodes: usize) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new(Code::CONFIG, "network namespaces need root").hint("say --network proxy"));
        }
        sweep();
        let pid = std::process::id();
        let kernel = Self {
            tag: format!("{PREFIX}{pid}"),
            subnet: (pid % 250) as u8,
            nodes,
            cuts: Mutex::default(),
            proxies: Mutex::default(),
        };
        let bridge = &kernel.tag;
        ip(&["link", "add", bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", kernel.address(254)), "dev", bridge])?;
        ip(&["link", "set", bridge, "up"])?;
        for id in 1..=nodes as u64 {
            let space = kernel.space(id);
            let (near, far) = (format!("{}v{id}", kernel.tag), format!("{}e{id}", kernel.tag));
            ip(&["netns", "add", &space])?;
            ip(&["link", "add", &near, "type", "veth", "peer", "name", &far])?;
            ip(&["link", "set", &far, "netns", &space])?;
            ip(&["link", "set", &near, "master", bridge])?;
            ip(&["link", "set", &near, "up"])?;
            ip(&["-n", &space, "link", "set", &far, "name", "eth0"])?;
            ip(&["-n", &space, "addr", "add", &format!("{}/24", kernel.address(id)), "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
        }
        Ok(kernel)
    }

    fn space(&self, id: u64) -> String {
        format!("{}n{id}", self.tag)
    }

    fn address(&self, id: u64) -> String {
        format!("10.231.{}.{id}", self.subnet)
    }

    async fn plans(&self, ids: &[u64], links: &Arc<Links>) -> Result<Vec<NodePlan>, Error> {
        let mut plans = Vec::new();
        for &id in ids {
            let at = |port: u16| format!("{}:{port}", self.address(id));
            let others: Vec<u64> = ids.iter().copied().filter(|other| *other != id).collect();
            let near = |other: u64| format!("127.0.0.1:{}", PROXY_PORT + other as u16);
            let pairs = others.iter().map(|&to| (to, near(to), format!("{}:{PEER_PORT}", self.address(to)))).collect();
            let started = self.start_proxies(id, pairs, links.clone()).await?;
            self.proxies.lock().expect("no holder panics").push(started);
            plans.push(NodePlan {
                member: member(id, [PEER_PORT, KAFKA_PORT, MQTT_PORT, HTTP_PORT, ETCD_PORT].map(at)),
                peers: others.iter().map(|&to| (to, near(to))).collect(),
                wrap: ["ip", "netns", "exec", &self.space(id)].map(str::to_owned).to_vec(),
                insecure: true,
            });
        }
        Ok(plans)
    }

    /// Starts a thread that lives in the node's namespace and carries its connections.
    async fn start_proxies(
        &self,
        from: u64,
        pairs: Vec<(u64, String, String)>,
        links: Arc<Links>,
    ) -> Result<oneshot::Sender<()>, Error> {
        let path = format!("/run/netns/{}", self.space(from));
        let (end, ended) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel();
        std::thread::spawn(move || {
            let started = (|| {
                let space = std::fs::File::open(&path)?;
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&space), Some(kind))?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let mut carried = JoinSet::new();
                runtime.block_on(async {
                    for (to, near, target) in pairs {
                        let listener = TcpListener::bind(near).await?;
                        let target: SocketAddr = target.parse().expect("our own address");
                        carried.spawn(carry(listener, from, to, target, links.clone()));
                    }
                    Ok::<_, std::io::Error>(())
                })?;
                Ok::<_, std::io::Error>((runtime, carried))
            })();
            match started {
                Ok((runtime, carried)) => {
                    let _ = ready.send(Ok(()));
                    runtime.block_on(async {
                        let _carried = carried;
                        let _ = ended.await;
                    });
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
        let started = is_ready.await.unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()));
        started.map_err(|error| {
            Error::new(Code::CONFIG, format!("cannot start a proxy in a network namespace: {error}"))
                .hint("say --network proxy")
        })?;
        Ok(end)
    }

    fn cut(&self, from: u64, to: u64) -> Result<(), Error> {
        ip(&["-n", &self.space(from), "route", "add", "blackhole", &format!("{}/32", self.address(to))])?;
        self.cuts.lock().expect("no holder panics").routes.push((from, to));
        Ok(())
    }

    fn take_down(&self, node: u64) -> Result<(), Error> {
        ip(&["-n", &self.space(node), "link", "set", "eth0", "down"])?;
        self.cuts.lock().expect("no holder panics").down.push(node);
        Ok(())
    }

    fn heal(&self) -> Result<(), Error> {
        let cuts = std::mem::take(&mut *self.cuts.lock().expect("no holder panics"));
        for node in cuts.down {
            ip(&["-n", &self.space(node), "link", "set", "eth0", "up"])?;
        }
        for (from, to) in cuts.routes {
            ip(&["-n", &self.space(from), "route", "del", "blackhole", &format!("{}/32", self.address(to))])?;
        }
        Ok(())
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.proxies.lock().expect("no holder panics").clear();
        for id in 1..=self.nodes as u64 {
            let _ = ip(&["netns", "del", &self.space(id)]);
            // Its other end went with the namespace, unless a socket still holds it.
            let _ = ip(&["link", "del", &format!("{}v{id}", self.tag)]);
        }
        let _ = ip(&["link", "del", &self.tag]);
    }
}

fn ip(args: &[&str]) -> Result<String, Error> {
    let failed =
        |what: String| Error::new(Code::CONFIG, format!("ip {}: {what}", args.join(" "))).hint("say --network proxy");
    let output =
        Command::new("ip").args(args).stdin(Stdio::null()).output().map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// The process that a name of ours belongs to.
fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

pub fn is_gone(pid: u32) -> bool {
    !std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Removes what processes that are gone have left.
fn sweep() {
    let stale = |name: &str| owner(name).is_some_and(is_gone);
    for name in ip(&["netns", "list"]).unwrap_or_default().lines().filter_map(|line| line.split(' ').next()) {
        if stale(name) {
            let _ = ip(&["netns", "del", name]);
        }
    }
    let links = ip(&["-o", "link", "show"]).unwrap_or_default();
    for name in links.lines().filter_map(|line| line.split(": ").nth(1)) {
        let name = name.split('@').next().unwrap_or(name);
        if stale(name) {
            let _ = ip(&["link", "del", name]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_whose_they_are() {
        assert_eq!(owner("bxc123n4"), Some(123));
        assert_eq!(owner("bxc77"), Some(77));
        assert_eq!((owner("bxcn4"), owner("eth0"), owner("docker0")), (None, None, None));
        assert!(!is_gone(std::process::id()));
    }

    #[tokio::test]
    async fn every_node_sees_every_other_through_a_proxy_of_its_own() {
        let (network, plans) = Network::lay_out(Mode::Proxy, 3, 11).await.unwrap();
        let mut addresses: Vec<&String> = plans.iter().flat_map(|plan| plan.peers.values()).collect();
        addresses.extend(plans.iter().map(|plan| &plan.member.peer));
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 3 + 6);
        assert_eq!(network.name(), "proxy");
        network.isolate(2).unwrap();
        assert!(network.links.get(2, 3).cut && network.links.get(1, 2).cut && !network.links.get(1, 3).cut);
        network.heal().unwrap();
        network.delay(1, Duration::from_millis(200), Duration::ZERO);
        assert!(!network.links.get(2, 3).cut && network.links.get(3, 1).delay == Duration::from_millis(200));
    }
}
