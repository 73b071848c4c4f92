//! The two sides: clusters of three nodes, each node a process of its own, on loopback, with data on the same disk.
//!
//! Buttress is started by `buttress dev`, the originals by the scripts of `conformance/originals`, which build or fetch them
//! first. Both end with this process. What nodes use is read from `/proc`.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

pub const NODES: usize = 3;
/// Building etcd or fetching Kafka takes minutes on a small machine.
const INSTALL_MAX: Duration = Duration::from_secs(900);
const START_MAX: Duration = Duration::from_secs(150);
const STOP_MAX: Duration = Duration::from_secs(15);
const PORT_TRIES: usize = 64;

/// Which original.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Original {
    Etcd,
    Kafka,
}

impl Original {
    fn script(self) -> PathBuf {
        let name = match self {
            Original::Etcd => "etcd.sh",
            Original::Kafka => "kafka.sh",
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/originals").join(name)
    }

    /// Builds or fetches it, where that was not done yet.
    ///
    /// # Errors
    /// What the script says, with what is missing and what helps.
    pub fn install(self) -> Result<()> {
        let script = self.script();
        let mut child = Command::new("bash").arg(&script).arg("--install").stdin(Stdio::null()).spawn()?;
        let end = Instant::now() + INSTALL_MAX;
        loop {
            match child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(_) => bail!(
                    "the original to measure against cannot be had\n\nhint: the lines above say what is missing; try {} --install",
                    script.display()
                ),
                None if Instant::now() > end => {
                    child.kill()?;
                    bail!("{} --install takes longer than {} s", script.display(), INSTALL_MAX.as_secs());
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// One side's nodes.
pub struct Side {
    pub name: &'static str,
    /// `HOST:PORT` per node, for clients of the protocol that is measured.
    pub addresses: Vec<String>,
    /// Processes of the nodes.
    pids: Vec<u32>,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Side {
    /// Three nodes of Buttress; `edge` is the key under which `dev` names the addresses.
    pub fn buttress(binary: &Path, edge: &str) -> Result<Self> {
        let folder = folder()?;
        let mut command = Command::new(binary);
        command.args(["dev", "--nodes", &NODES.to_string(), "--output", "json", "--data-dir"]);
        command.arg(folder.path().join("data"));
        let (process, told) = spawn(command, folder.path()).context("Buttress does not come up")?;
        let addresses = told["nodes"].as_array().into_iter().flatten().filter_map(|node| node[edge].as_str());
        let addresses: Vec<String> = addresses.map(str::to_owned).collect();
        ensure!(addresses.len() == NODES, "buttress dev named {addresses:?} for {edge}");
        let pids = children_of(process.id(), "serve")?;
        ensure!(pids.len() == NODES, "buttress dev runs {} nodes", pids.len());
        Ok(Self { name: "buttress", addresses, pids, process, _folder: folder })
    }

    /// Nodes of an original; it must be installed.
    pub fn original(original: Original, nodes: usize) -> Result<Self> {
        let folder = folder()?;
        let (name, key, program) = match original {
            Original::Etcd => ("etcd", "endpoints", "bin/etcd"),
            Original::Kafka => ("kafka", "bootstrap", "kafka.Kafka"),
        };
        let mut command = Command::new("bash");
        command.arg(original.script()).arg(folder.path().join(name));
        command.arg(free_ports(2 * nodes as u16)?.to_string()).arg(nodes.to_string());
        let (process, told) = spawn(command, folder.path()).with_context(|| format!("{name} does not come up"))?;
        let addresses: Vec<String> = told[key].as_str().unwrap_or_default().split(',').map(str::to_owned).collect();
        ensure!(addresses.len() == nodes, "the script of {name} named {addresses:?}");
        let pids = children_of(process.id(), program)?;
        ensure!(pids.len() == nodes, "the script of {name} runs {} nodes", pids.len());
        Ok(Self { name, addresses, pids, process, _folder: folder })
    }

    /// Processor time of all nodes so far, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        self.pids.iter().map(|pid| cpu_seconds(&pid.to_string())).sum()
    }

    /// Resident memory of each node, in MiB.
    pub fn resident_mib(&self) -> Result<Vec<f64>> {
        self.pids.iter().map(|pid| Ok(memory(*pid)?.resident)).collect()
    }

    /// What all nodes together have in memory.
    pub fn memory(&self) -> Result<Memory> {
        self.pids.iter().try_fold(Memory::default(), |sum, pid| {
            let node = memory(*pid)?;
            Ok(Memory {
                resident: sum.resident + node.resident,
                own: sum.own + node.own,
                files: sum.files + node.files,
            })
        })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It stops its nodes when it is asked to end, so it is asked first.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let end = Instant::now() + STOP_MAX;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Data of all sides lies below one place, so that it is on one disk.
pub fn folder() -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("buttress-bench-").tempdir().context("no temporary directory; set TMPDIR")
}

/// Starts what prints a line of JSON once it serves, and waits for the line.
fn spawn(mut command: Command, folder: &Path) -> Result<(Child, Value)> {
    let log = folder.join("server.log");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&log)?)
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    let stdout = child.stdout.take().context("its output is piped")?;
    let (send, receive) = std::sync::mpsc::channel();
    // Read to its end, so that the server never waits for somebody to read.
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
            let _ = send.send(line);
        }
    });
    match receive.recv_timeout(START_MAX) {
        Ok(line) => Ok((child, serde_json::from_str(&line).with_context(|| format!("it said \"{line}\""))?)),
        Err(_) => {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
            bail!(
                "it said nothing in {} s; its log:\n{}",
                START_MAX.as_secs(),
                fs::read_to_string(log).unwrap_or_default()
            )
        }
    }
}

/// The first of so many ports in a row that nobody listens on. Somebody may take one in between; then a start fails.
pub fn free_ports(count: u16) -> Result<u16> {
    for _ in 0..PORT_TRIES {
        let first = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if first.checked_add(count).is_some() && (first..first + count).all(free) {
            return Ok(first);
        }
    }
    bail!("there are no {count} free ports in a row")
}

/// Children of a process whose command line has a word.
pub fn children_of(parent: u32, word: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("what processes use is read from /proc: this needs Linux")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end while we look.
        let Ok(stat) = stat(&pid.to_string()) else { continue };
        let Ok(words) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        if stat.parent == parent && words.split(|byte| *byte == 0).any(|w| w.ends_with(word.as_bytes())) {
            found.push(pid);
        }
    }
    found.sort_unstable();
    Ok(found)
}

struct Stat {
    parent: u32,
    ticks: u64,
    /// Of children that have ended.
    waited: u64,
}

/// USER_HZ, which is 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What `/proc/PID/stat` says; see proc(5).
fn stat(pid: &str) -> Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).context("/proc/PID/stat");
    Ok(Stat { parent: number(1)? as u32, ticks: number(11)? + number(12)?, waited: number(13)? + number(14)? })
}

/// Processor time of a process, user and system, of all its threads; `self` is this one.
pub fn cpu_seconds(pid: &str) -> Result<f64> {
    Ok(stat(pid).with_context(|| format!("process {pid} is gone"))?.ticks as f64 / TICKS_PER_SECOND)
}

/// Processor time of this process's children that have ended.
pub fn waited_seconds() -> Result<f64> {
    Ok(stat("self")?.waited as f64 / TICKS_PER_SECOND)
}

/// Processor time of the whole machine since it started: used by whomever, and all there was.
pub fn machine_seconds() -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
    let [user, nice, system, idle, iowait, irq, softirq, steal] = ticks[..] else {
        bail!("/proc/stat begins with {line}")
    };
    let busy = (user + nice + system + irq + softirq + steal) as f64 / TICKS_PER_SECOND;
    Ok((busy, busy + (idle + iowait) as f64 / TICKS_PER_SECOND))
}

/// How long the threads of a process that live have been ready to run and had no core, in seconds; see
/// Documentation/scheduler/sched-stats of Linux.
pub fn waited_for_core(pid: u32) -> Result<f64> {
    let mut nanos = 0u64;
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))? {
        // A thread may end while we look; a kernel without these figures has an empty file.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanos += text.split_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanos as f64 / 1e9)
}

/// Memory of processes in MiB. What the page cache holds of files that nobody has mapped is in none of these.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    /// All that is resident: the next two, and shared memory.
    pub resident: f64,
    /// Theirs alone: heaps and stacks.
    pub own: f64,
    /// Mapped files: programs and libraries, and logs and indexes where they are mapped. Several processes that map the same
    /// file have its pages once, and each counts them.
    pub files: f64,
}

impl Memory {
    pub fn json(&self) -> Value {
        json!({ "resident": self.resident.round(), "own": self.own.round(), "files": self.files.round() })
    }
}

pub fn memory(pid: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let mib = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
    };
    Ok(Memory { resident: mib("VmRSS:")?, own: mib("RssAnon:")?, files: mib("RssFile:")? })
}
