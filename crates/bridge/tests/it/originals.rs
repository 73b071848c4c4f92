//! Real engines that tests start, kill and start again, through the scripts of `conformance/originals`.
//!
//! `BUTTRESS_ORIGINALS` names that folder; without it these tests say that they were not run. Engines listen on loopback, keep
//! their data under the target directory, and end with this process.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    time::Duration,
};

use tokio::sync::{Mutex, MutexGuard};

use crate::proxy::Proxy;

/// A Kafka serves after ten seconds on a quiet machine.
const START_MAX: Duration = Duration::from_secs(180);

pub fn folder(what: &str) -> Option<PathBuf> {
    let Ok(folder) = std::env::var("BUTTRESS_ORIGINALS") else {
        eprintln!("NOT RUN: {what}, because BUTTRESS_ORIGINALS does not name conformance/originals");
        return None;
    };
    Some(folder.into())
}

/// The first of so many ports in a row that nobody listens on.
fn free_ports(count: u16) -> u16 {
    for _ in 0..64 {
        let first = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if first.checked_add(count).is_some()
            && (first..first + count).all(|p| TcpListener::bind(("127.0.0.1", p)).is_ok())
        {
            return first;
        }
    }
    panic!("there are no {count} free ports in a row");
}

/// A directory that is empty, and of this process alone.
fn fresh(name: &str) -> PathBuf {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // What processes have left that are gone: what is shared by tests is not cleared away at the end.
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let left = entry.file_name().to_string_lossy().rsplit_once('-').map(|(_, pid)| format!("/proc/{pid}"));
        if left.is_some_and(|process| !Path::new(&process).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let dir = parent.join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("the target directory can be written");
    dir
}

fn signal(name: &str, pid: u32) {
    let done = Command::new("kill").args([name, &pid.to_string()]).status().expect("kill is there");
    assert!(done.success(), "{name} to {pid}");
}

/// A script of the originals; asked to end, it ends what it has started.
struct Script(Child);

impl Script {
    /// Starts it and waits for the line that it prints when it serves.
    fn start(mut command: Command) -> (Self, String) {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("bash is there");
        let stdout = child.stdout.take().expect("it is piped");
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let line = receive.recv_timeout(START_MAX).expect("the original comes up; its log lies in its directory");
        (Self(child), line)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            signal("-TERM", self.0.id());
        }
        let _ = self.0.wait();
    }
}

fn pid_in(line: &str) -> u32 {
    let pid = line.rsplit_once("\"pid\":").and_then(|(_, pid)| pid.trim_end_matches('}').parse().ok());
    pid.unwrap_or_else(|| panic!("the script says which process it has started: {line}"))
}

/// PEM files of an authority, and of a server and clients that it has signed.
pub struct Authority {
    pub dir: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        use rcgen::{
            BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, date_time_ymd,
        };
        let dir = fresh(name);
        let named = |params: &mut CertificateParams, name: &str| {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
        };
        let write = |file: &str, text: &str| std::fs::write(dir.join(file), text).expect("it can be written");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        named(&mut params, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write("ca.pem", &params.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(params, key);
        let sign = |file: &str, common: &str, hosts: &[&str], expired: bool| {
            let key = KeyPair::generate().unwrap();
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            let mut params = CertificateParams::new(hosts).unwrap();
            named(&mut params, common);
            if expired {
                (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
            }
            let certificate = params.signed_by(&key, &issuer).unwrap().pem();
            write(&format!("{file}.crt"), &certificate);
            write(&format!("{file}.key"), &key.serialize_pem());
            write(&format!("{file}.pem"), &format!("{}{certificate}", key.serialize_pem()));
        };
        sign("server", "server", &["127.0.0.1", "localhost"], false);
        sign("expired-server", "server", &["127.0.0.1"], true);
        sign("other-host", "server", &["kafka.example"], false);
        sign("client", "client", &[], false);
        sign("expired-client", "client", &[], true);
        Self { dir }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// For an address: TLS with this authority.
    pub fn query(&self) -> String {
        format!("tls={}", self.path("ca.pem").display())
    }

    /// And with a certificate of ours.
    pub fn query_as(&self, name: &str) -> String {
        let file = |kind: &str| self.path(&format!("{name}.{kind}"));
        format!("{}&cert={}&key={}", self.query(), file("crt").display(), file("key").display())
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// One broker, with a proxy before it.
pub struct Broker {
    folder: PathBuf,
    dir: PathBuf,
    port: u16,
    pub proxy: Proxy,
    pub authority: Authority,
    script: Option<Script>,
    pid: u32,
}

impl Broker {
    fn start(&mut self) {
        let mut command = Command::new("bash");
        command
            .arg(self.folder.join("kafka.sh"))
            .arg(&self.dir)
            .arg(self.port.to_string())
            .env("KAFKA_ADVERTISE", self.proxy.address())
            .env("KAFKA_SECURE", &self.authority.dir)
            .env("KAFKA_MORE", "transaction.abort.timed.out.transaction.cleanup.interval.ms=500");
        let (script, line) = Script::start(command);
        self.pid = pid_in(&line);
        self.script = Some(script);
    }

    /// Kills it as the power does, and starts it again.
    pub fn kill_and_restart(&mut self) {
        signal("-KILL", self.pid);
        // The script ends with the broker.
        drop(self.script.take());
        self.start();
    }

    /// Where clients are served, through the proxy.
    pub fn bootstrap(&self) -> String {
        self.proxy.address()
    }

    /// Where users are served over TLS, and where certificates are.
    pub fn secure(&self) -> String {
        format!("127.0.0.1:{}", self.port + 2)
    }

    pub fn mutual(&self) -> String {
        format!("127.0.0.1:{}", self.port + 3)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.script.take());
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

static BROKER: OnceLock<Mutex<Broker>> = OnceLock::new();

/// The broker that the tests share; one test at a time has it, with nothing in its way.
pub async fn broker(what: &str) -> Option<MutexGuard<'static, Broker>> {
    let folder = folder(what)?;
    let shared = BROKER.get_or_init(|| {
        let port = free_ports(4);
        let mut broker = Broker {
            folder,
            dir: fresh("kafka"),
            port,
            proxy: Proxy::start(format!("127.0.0.1:{port}")),
            authority: Authority::new("kafka-authority"),
            script: None,
            pid: 0,
        };
        broker.start();
        Mutex::new(broker)
    });
    let broker = shared.lock().await;
    broker.proxy.pass();
    Some(broker)
}

/// An etcd of some nodes.
pub struct Etcd {
    folder: PathBuf,
    dir: PathBuf,
    port: u16,
    environment: Vec<(&'static str, String)>,
    nodes: Vec<Option<(Script, u32)>>,
}

impl Etcd {
    pub fn start(what: &str, nodes: u16, environment: Vec<(&'static str, String)>) -> Option<Self> {
        let folder = folder(what)?;
        let port = free_ports(2 * nodes);
        let dir = fresh(&format!("etcd-{port}"));
        let mut etcd = Self { folder, dir, port, environment, nodes: (0..nodes).map(|_| None).collect() };
        (0..usize::from(nodes)).for_each(|node| etcd.start_node(node));
        Some(etcd)
    }

    pub fn start_node(&mut self, node: usize) {
        let mut command = Command::new("bash");
        command.arg(self.folder.join("etcd.sh")).args(["--node", &node.to_string()]).arg(&self.dir);
        command.args([self.port.to_string(), self.nodes.len().to_string()]);
        command.envs(self.environment.iter().map(|(name, value)| (*name, value)));
        let (script, line) = Script::start(command);
        self.nodes[node] = Some((script, pid_in(&line)));
    }

    pub fn kill_node(&mut self, node: usize) {
        let (script, pid) = self.nodes[node].take().expect("it runs");
        signal("-KILL", pid);
        drop(script);
    }

    pub fn endpoint(&self, node: usize) -> String {
        format!("127.0.0.1:{}", usize::from(self.port) + 2 * node)
    }

    pub fn endpoints(&self) -> Vec<String> {
        (0..self.nodes.len()).map(|node| self.endpoint(node)).collect()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.nodes.clear();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
