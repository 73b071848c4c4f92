//! `gateway`: processor time for each request of `buttress proxy`, beside HAProxy and nginx, in turn.
//!
//! An nginx with one worker is the origin. Each proxy has one thread that carries traffic, keeps connections to the origin,
//! and is otherwise as its package has it; h2load is the client. What counts is processor time for each request: it survives a
//! busy machine, which requests in a second do not. Three of the sides are ours: `bare` forwards and does nothing else, `full`
//! is what `buttress proxy` does by itself, `logged` has the access log on. HAProxy and nginx are there without and with theirs:
//! HAProxy sends its `option httplog` as datagrams to a socket that is read here, nginx writes a file with a buffer, as we do.

use std::{
    fs,
    io::{BufWriter, Write as _},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    options::Options,
    sides::{children_of, cpu_seconds, folder, free_ports, memory},
};

const CONNECTIONS: usize = 50;
const START_MAX: Duration = Duration::from_secs(20);
/// What the origin answers.
const BODY: &str = "{\"order\":4711,\"items\":[1,2,3],\"state\":\"paid\",\"note\":\"a small answer, as most are\"}";

/// A process that ends with this one.
pub struct Process {
    child: Child,
    /// Those whose processor time counts.
    pids: Vec<u32>,
    pub port: u16,
}

impl Process {
    pub fn start(mut command: Command, folder: &Path, port: u16, worker: Option<&str>) -> Result<Self> {
        let log = fs::File::create(folder.join(format!("{port}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| {
            format!("{command:?} cannot be started\n\nhint: apt-get install haproxy nginx nghttp2-client")
        })?;
        let mut process = Self { pids: vec![child.id()], child, port };
        let end = Instant::now() + START_MAX;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > end || process.child.try_wait()?.is_some() {
                let said = fs::read_to_string(folder.join(format!("{port}.log"))).unwrap_or_default();
                bail!("{command:?} does not listen on {port}; it said:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(worker) = worker {
            process.pids.extend(children_of(process.child.id(), worker)?);
        }
        Ok(process)
    }

    pub fn cpu_seconds(&self) -> Result<f64> {
        self.pids.iter().map(|pid| cpu_seconds(&pid.to_string())).sum()
    }

    pub fn pids(&self) -> &[u32] {
        &self.pids
    }

    fn resident_mib(&self) -> Result<f64> {
        self.pids.iter().map(|pid| Ok(memory(*pid)?.resident)).sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let end = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nginx(folder: &Path, name: &str, port: u16, log: &str, server: &str) -> Result<Process> {
    let at = folder.join(name);
    fs::create_dir_all(&at)?;
    let config = format!(
        "worker_processes 1;\ndaemon off;\npid {at}/pid;\nerror_log {at}/error.log crit;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log {log};\n  keepalive_requests 100000000;\n  client_body_temp_path {at}/a;\n  proxy_temp_path {at}/b;\n  \
         fastcgi_temp_path {at}/c;\n  uwsgi_temp_path {at}/d;\n  scgi_temp_path {at}/e;\n{server}\n}}\n",
        at = at.display(),
    );
    let file = at.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file).arg("-p").arg(&at);
    // Workers name themselves anew, in one word.
    Process::start(command, folder, port, Some("nginx: worker process"))
}

pub fn origin(folder: &Path, port: u16) -> Result<Process> {
    let server = format!(
        "  server {{ listen 127.0.0.1:{port}; location / {{ default_type application/json; return 200 '{BODY}'; }} }}"
    );
    nginx(folder, "origin", port, "off", &server)
}

fn nginx_proxy(folder: &Path, port: u16, origin: u16, logged: bool) -> Result<Process> {
    let server = format!(
        "  upstream origin {{ server 127.0.0.1:{origin}; keepalive 128; keepalive_requests 100000000; }}\n  \
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://origin; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; }} }}"
    );
    let name = if logged { "nginx_logged" } else { "nginx" };
    let file = folder.join(format!("{name}.access.log"));
    let log = format!("{} combined buffer=32k flush=100ms", file.display());
    nginx(folder, name, port, if logged { &log } else { "off" }, &server)
}

/// Where HAProxy sends its log: a socket whose datagrams are read and written to a file, as a syslog daemon does.
fn syslog(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("log.socket");
    let socket = UnixDatagram::bind(&path)?;
    let mut file = BufWriter::new(fs::File::create(folder.join("haproxy.access.log"))?);
    std::thread::spawn(move || {
        let mut datagram = [0; 4096];
        while let Ok(read) = socket.recv(&mut datagram) {
            if file.write_all(&datagram[..read]).and_then(|()| file.write_all(b"\n")).is_err() {
                return;
            }
        }
    });
    Ok(path)
}

pub fn haproxy(folder: &Path, port: u16, origin: u16, log: Option<&Path>) -> Result<Process> {
    let file = folder.join(format!("haproxy-{port}.cfg"));
    let (to, how) = match log {
        Some(log) => (format!("  log {} local0 info\n", log.display()), "  log global\n  option httplog\n"),
        None => (String::new(), ""),
    };
    fs::write(
        &file,
        format!(
            "global\n  nbthread 1\n  maxconn 4096\n{to}defaults\n  mode http\n{how}  timeout connect 5s\n  timeout client 60s\n  \
             timeout server 60s\n  option http-keep-alive\nfrontend in\n  bind 127.0.0.1:{port}\n  default_backend out\n\
             backend out\n  http-reuse always\n  server origin 127.0.0.1:{origin}\n"
        ),
    )?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file);
    Process::start(command, folder, port, None)
}

#[derive(Clone, Copy, PartialEq)]
pub enum How {
    Bare,
    Full,
    Logged,
}

pub fn ours(binary: &Path, folder: &Path, port: u16, origin: u16, how: How) -> Result<Process> {
    let mut command = Command::new(binary);
    command.args(["proxy", "--threads", "1", "--admin", "127.0.0.1:0", "--drain", "1s"]);
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--to", &format!("127.0.0.1:{origin}")]);
    match how {
        How::Bare => drop(command.arg("--bare")),
        How::Full => {}
        How::Logged => drop(command.arg("--access-log").arg(folder.join("buttress.access.log"))),
    }
    Process::start(command, folder, port, None)
}

#[derive(Clone, Copy, Default)]
pub struct Round {
    pub done: u64,
    pub seconds: f64,
    cpu: f64,
}

/// One run of the client against a proxy.
pub fn round(process: &Process, seconds: f64, connections: usize) -> Result<Round> {
    let before = process.cpu_seconds()?;
    let started = Instant::now();
    let output = Command::new("h2load")
        .args(["--h1", "-t", "1", "-c", &connections.to_string(), "-D", &format!("{}", seconds.ceil() as u64)])
        .arg(format!("http://127.0.0.1:{}/orders/4711", process.port))
        .output()
        .context("h2load cannot be started\n\nhint: apt-get install nghttp2-client")?;
    let elapsed = started.elapsed().as_secs_f64();
    let cpu = process.cpu_seconds()? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = |line: &str, word: &str| -> Option<u64> {
        let line = text.lines().find(|known| known.starts_with(line))?;
        let part = line.split(", ").find(|part| part.trim_end().ends_with(word))?;
        part.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()
    };
    let done = number("status codes:", "2xx").context("h2load told no status codes")?;
    let failed = number("status codes:", "5xx").unwrap_or(0) + number("status codes:", "4xx").unwrap_or(0);
    ensure!(done > 0 && failed == 0, "not every request succeeded:\n{text}");
    Ok(Round { done, seconds: elapsed, cpu })
}

pub fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, 5, 4.0, &[CONNECTIONS])?;
    let connections = options.clients[0];
    let folder = folder()?;
    let path = folder.path();
    let first = free_ports(8)?;
    let origin = origin(path, first)?;
    let log = syslog(path)?;
    let binary = &options.binary;
    let sides = [
        ("haproxy", haproxy(path, first + 1, origin.port, None)?),
        ("nginx", nginx_proxy(path, first + 2, origin.port, false)?),
        ("buttress_bare", ours(binary, path, first + 3, origin.port, How::Bare)?),
        ("buttress_full", ours(binary, path, first + 4, origin.port, How::Full)?),
        ("haproxy_logged", haproxy(path, first + 5, origin.port, Some(&log))?),
        ("nginx_logged", nginx_proxy(path, first + 6, origin.port, true)?),
        ("buttress_logged", ours(binary, path, first + 7, origin.port, How::Logged)?),
    ];
    let idle = sides[3].1.resident_mib()?;
    let mut rounds = vec![Vec::new(); sides.len()];
    for number in 0..options.rounds {
        for turn in 0..sides.len() {
            let at = (turn + number) % sides.len();
            rounds[at].push(round(&sides[at].1, options.seconds, connections)?);
        }
    }
    let say = |line: String| if options.json { eprintln!("{line}") } else { println!("{line}") };
    say(format!("{:<15}  {:>12}  {:>12}  {:>10}", "", "cpu µs/req", "requests/s", "RSS MiB"));
    let mut told = json!({"connections": connections, "rounds": options.rounds, "seconds": options.seconds});
    let mut micros = Vec::new();
    for ((name, process), rounds) in sides.iter().zip(&rounds) {
        // The median round: one in which a neighbour was loud counts for nothing.
        let mut each: Vec<f64> = rounds.iter().map(|round| round.cpu / round.done as f64 * 1e6).collect();
        each.sort_by(f64::total_cmp);
        let median = each.get(each.len() / 2).copied().unwrap_or(0.0);
        let done: u64 = rounds.iter().map(|round| round.done).sum();
        let rate = done as f64 / rounds.iter().map(|round| round.seconds).sum::<f64>().max(1e-9);
        let resident = process.resident_mib()?;
        say(format!("{name:<15}  {median:>12.2}  {rate:>12.0}  {resident:>10.1}"));
        told[*name] = json!({"cpu_us": median, "cpu_us_rounds": each, "per_second": rate, "rss_mib": resident});
        micros.push(median);
    }
    let ratio = |at: usize, other: usize| if micros[other] > 0.0 { micros[at] / micros[other] } else { 0.0 };
    told["ratio"] = json!({
        "cpu_bare": ratio(2, 0), "cpu_full": ratio(3, 0), "cpu_bare_to_nginx": ratio(2, 1), "cpu_full_to_nginx": ratio(3, 1),
        "cpu_logged": ratio(6, 4), "cpu_logged_to_nginx": ratio(6, 5), "rss_idle_mb": idle * 1.048_576,
    });
    say(format!(
        "ratio to haproxy: bare {:.2}, full {:.2}, both with a log {:.2}; idle {idle:.1} MiB",
        ratio(2, 0),
        ratio(3, 0),
        ratio(6, 4)
    ));
    if options.json {
        println!("{}", Value::to_string(&told));
    }
    Ok(())
}
