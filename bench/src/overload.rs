//! `overload`: what is left of a service that gets twice what it can serve, from clients that try again, while it has a
//! brown-out; and how long it takes to come back.
//!
//! The upstream is a small server of this file: so many workers, a service time, and a long queue in front of them. It works off what
//! was asked whether or not anybody still waits for it, as most servers do. That is what makes an overload feed itself: answers
//! come too late, clients try again, and the queue is full of work for nobody (Bronson et al., "Metastable failures in
//! distributed systems", HotOS 2021).
//!
//! Clients are an open loop: requests come when they come, whatever became of those before. Each tries up to three times, gives
//! an attempt up after a second, and waits a little between. Without a proxy, through HAProxy as people set it up, and through
//! `buttress proxy` by itself, one after the other, with the same arrivals.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, watch},
    task::LocalSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    gateway::Process,
    options::Options,
    sides::{folder, free_ports},
};

/// Of the upstream: 8 workers of 20 ms are 400 requests a second.
const WORKERS: usize = 8;
const SERVICE: Duration = Duration::from_millis(20);
const CAPACITY: f64 = WORKERS as f64 / 0.020;
/// Requests that wait for a worker; more are answered with 503. Five seconds of work, which is more than anybody waits.
const QUEUE: usize = 2000;
/// The service time in a brown-out, as a multiple.
const BROWN: u32 = 10;
const BROWN_OUT: u64 = 10;
/// Seconds that are counted before it, behind those in which everything warms up.
const BEFORE: u64 = 8;
const WARM: u64 = 4;
const AFTER: u64 = 20;
/// Of clients.
const ATTEMPTS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
/// That clients come from, all of the loopback network.
const ADDRESSES: u64 = 200;
/// The share of what it was before that counts as back, over so many seconds.
const BACK: f64 = 0.95;
const BACK_SECONDS: usize = 3;

/// The upstream, on a thread of its own.
struct Upstream {
    port: u16,
    /// Requests that arrived, a counter for each second.
    arrived: Arc<Vec<AtomicU64>>,
    slow: watch::Sender<bool>,
    begin: watch::Sender<Option<Instant>>,
}

impl Upstream {
    fn start() -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let arrived: Arc<Vec<AtomicU64>> = Arc::new((0..seconds()).map(|_| AtomicU64::new(0)).collect());
        let (slow, is_slow) = watch::channel(false);
        let (begin, begun) = watch::channel(None);
        let counts = arrived.clone();
        std::thread::spawn(move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(LocalSet::new().run_until(upstream(listener, counts, is_slow, begun)))
        });
        Ok(Self { port, arrived, slow, begin })
    }
}

async fn upstream(
    listener: std::net::TcpListener,
    arrived: Arc<Vec<AtomicU64>>,
    slow: watch::Receiver<bool>,
    begun: watch::Receiver<Option<Instant>>,
) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    // A fair semaphore is the queue: first in, first out.
    let (workers, waiting) = (Rc::new(Semaphore::new(WORKERS)), Rc::new(Cell::new(0)));
    loop {
        let (mut stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        let (workers, arrived, slow, begun) = (workers.clone(), arrived.clone(), slow.clone(), begun.clone());
        let waiting = waiting.clone();
        tokio::task::spawn_local(async move {
            let mut bytes = Vec::new();
            while read_head(&mut stream, &mut bytes).await.is_some() {
                if let Some(begin) = *begun.borrow()
                    && let Some(count) = arrived.get(begin.elapsed().as_secs() as usize)
                {
                    count.fetch_add(1, Relaxed);
                }
                if waiting.get() >= QUEUE {
                    let _ = stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno").await;
                    continue;
                }
                // The work is done whether or not anybody is there; a client that left is heard of when it is answered.
                waiting.set(waiting.get() + 1);
                let Ok(_worker) = workers.acquire().await else { return };
                waiting.set(waiting.get() - 1);
                let service = if *slow.borrow() { SERVICE * BROWN } else { SERVICE };
                sleep(service).await;
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Reads to the end of a head; what is behind it stays. The status, where it is an answer; else 0.
async fn read_head(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<(u16, usize)> {
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            bytes.drain(..end + 4);
            let status = head.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or(0);
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            return Some((status, length.unwrap_or(0)));
        }
        if stream.read_buf(bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// What clients saw, by seconds.
struct Seen {
    /// Requests that ended well, by when they did.
    good: RefCell<Vec<u64>>,
    /// First attempts, and all of them.
    first: Cell<u64>,
    sent: Cell<u64>,
    lost: Cell<u64>,
    /// Of requests that ended well, from when they were due, in seconds.
    latencies: RefCell<Vec<f64>>,
    idle: RefCell<VecDeque<TcpStream>>,
    port: u16,
    begin: Instant,
}

impl Seen {
    /// A new connection. Who leaves has a port in TIME_WAIT for a minute, and one address has too few of them for all that leave
    /// here, so they come from many.
    async fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        let host = 1 + (self.sent.get() % ADDRESSES) as u8;
        socket.bind(SocketAddr::from(([127, 0, 1, host], 0)))?;
        socket.connect(SocketAddr::from(([127, 0, 0, 1], self.port))).await
    }

    /// One attempt: whether it was answered with 200 in time.
    async fn attempt(&self) -> bool {
        self.sent.set(self.sent.get() + 1);
        let asking = async {
            let kept = self.idle.borrow_mut().pop_back();
            let mut stream = match kept {
                Some(stream) => stream,
                None => self.connect().await.ok()?,
            };
            let _ = stream.set_nodelay(true);
            stream.write_all(b"GET /orders HTTP/1.1\r\nHost: upstream\r\n\r\n").await.ok()?;
            let mut bytes = Vec::new();
            let (status, length) = read_head(&mut stream, &mut bytes).await?;
            while bytes.len() < length {
                if stream.read_buf(&mut bytes).await.ok()? == 0 {
                    return None;
                }
            }
            Some((status, stream))
        };
        match timeout(PATIENCE, asking).await {
            Ok(Some((status, stream))) => {
                // HAProxy closes after an answer of its own, which a client finds out by using it.
                if status == 200 {
                    self.idle.borrow_mut().push_back(stream);
                }
                status == 200
            }
            // A connection whose answer did not come in time is closed: that is how a client leaves.
            _ => false,
        }
    }

    async fn request(self: Rc<Self>, due: Instant, random: u64) {
        self.first.set(self.first.get() + 1);
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                // Half to one and a half of the pause, twice as long the second time.
                let jitter = 0.5 + (random >> (8 * attempt) & 255) as f64 / 255.0;
                sleep(PAUSE.mul_f64(jitter * f64::from(attempt))).await;
            }
            if self.attempt().await {
                let at = self.begin.elapsed().as_secs() as usize;
                if let Some(count) = self.good.borrow_mut().get_mut(at) {
                    *count += 1;
                }
                self.latencies.borrow_mut().push(due.elapsed().as_secs_f64());
                return;
            }
        }
        self.lost.set(self.lost.get() + 1);
    }
}

fn seconds() -> u64 {
    WARM + BEFORE + BROWN_OUT + AFTER
}

/// One side's story.
struct Curve {
    good: Vec<u64>,
    before: f64,
    during: f64,
    after: f64,
    back_after: Option<u64>,
    /// Arrivals at the upstream for each request of a client, and for each attempt of a client.
    amplification: f64,
    added: f64,
    p99_ms: f64,
    lost: f64,
}

fn mean(counts: &[u64]) -> f64 {
    counts.iter().sum::<u64>() as f64 / counts.len().max(1) as f64
}

/// The first second from which on, over so many, as much came through as counts as back.
fn back(after: &[u64], before: f64) -> Option<u64> {
    let enough = |counts: &[u64]| before > 0.0 && mean(counts) >= before * BACK;
    after.windows(BACK_SECONDS).position(enough).map(|at| at as u64)
}

fn play(upstream: &Upstream, port: u16, rate: f64) -> Result<Curve> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(LocalSet::new().run_until(async {
        upstream.arrived.iter().for_each(|count| count.store(0, Relaxed));
        let begin = Instant::now();
        upstream.begin.send_replace(Some(begin));
        let seen = Rc::new(Seen {
            good: RefCell::new(vec![0; seconds() as usize]),
            first: Cell::default(),
            sent: Cell::default(),
            lost: Cell::default(),
            latencies: RefCell::default(),
            idle: RefCell::default(),
            port,
            begin,
        });
        let brown = WARM + BEFORE..WARM + BEFORE + BROWN_OUT;
        let mut random = 1_u64;
        // Even arrivals, moved by up to a whole distance: the same on every side.
        for number in 0..(rate * seconds() as f64) as u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let moved = (random >> 40) as f64 / f64::from(1 << 24);
            let due = begin + Duration::from_secs_f64((number as f64 + moved) / rate);
            sleep_until(due).await;
            let is_slow = brown.contains(&begin.elapsed().as_secs());
            upstream.slow.send_if_modified(|slow| std::mem::replace(slow, is_slow) != is_slow);
            tokio::task::spawn_local(seen.clone().request(due, random));
        }
        upstream.begin.send_replace(None);
        let good = seen.good.borrow().clone();
        let of = |from: u64, to: u64| &good[from as usize..to as usize];
        let before = mean(of(WARM, WARM + BEFORE));
        let tail = of(WARM + BEFORE + BROWN_OUT, seconds());
        let arrived: u64 = upstream.arrived.iter().map(|count| count.load(Relaxed)).sum();
        let mut latencies = seen.latencies.borrow().clone();
        latencies.sort_by(f64::total_cmp);
        Ok(Curve {
            before,
            during: mean(of(WARM + BEFORE, WARM + BEFORE + BROWN_OUT)),
            after: mean(&tail[tail.len() / 2..]),
            back_after: back(tail, before),
            amplification: arrived as f64 / seen.first.get().max(1) as f64,
            added: arrived as f64 / seen.sent.get().max(1) as f64,
            p99_ms: latencies.get(latencies.len() * 99 / 100).copied().unwrap_or(0.0) * 1e3,
            lost: seen.lost.get() as f64 / seen.first.get().max(1) as f64,
            good,
        })
    }))
}

/// HAProxy as guides set it up: three retries of what is said to be safe, another server if there is one, a queue.
fn haproxy(folder: &Path, port: u16, upstream: u16) -> Result<Process> {
    let file = folder.join("haproxy.cfg");
    fs::write(
        &file,
        format!(
            "global\n  nbthread 1\n  maxconn 8000\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 30s\n  \
             timeout server 5s\n  timeout queue 5s\n  option http-keep-alive\n  retries 3\n  option redispatch\n  \
             retry-on conn-failure empty-response response-timeout 502 503 504\n\
             frontend in\n  bind 127.0.0.1:{port}\n  default_backend out\n\
             backend out\n  server upstream 127.0.0.1:{upstream} maxconn 200\n"
        ),
    )?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file);
    Process::start(command, folder, port, None)
}

fn ours(binary: &Path, folder: &Path, port: u16, upstream: u16, deadline: Option<&str>) -> Result<Process> {
    let mut command = Command::new(binary);
    command.args(["proxy", "--threads", "1", "--admin", "127.0.0.1:0", "--drain", "1s"]);
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--to", &format!("127.0.0.1:{upstream}")]);
    if let Some(deadline) = deadline {
        command.args(["--deadline", deadline]);
    }
    Process::start(command, folder, port, None)
}

pub fn run(args: &[String]) -> Result<()> {
    let (mut load, mut rest) = (2.0, Vec::new());
    let mut words = args.iter();
    while let Some(word) = words.next() {
        if word == "--load" {
            let value = words.next().context("`--load` needs a value")?;
            load = value.parse().with_context(|| format!("--load takes a number, not \"{value}\""))?;
        } else {
            rest.push(word.clone());
        }
    }
    ensure!((0.1..=5.0).contains(&load), "--load is {load}, and must be from 0.1 to 5 times what the upstream serves");
    let options = Options::parse(&rest, 1, 1.0, &[1])?;
    let say = |line: String| if options.json { eprintln!("{line}") } else { println!("{line}") };
    let folder = folder()?;
    let mut told = json!({
        "capacity": CAPACITY, "load": load, "brown_out_s": BROWN_OUT, "service_ms": SERVICE.as_millis() as u64,
        "slower": BROWN, "attempts": ATTEMPTS, "patience_ms": PATIENCE.as_millis() as u64, "warm_s": WARM, "before_s": BEFORE,
    });
    say(format!(
        "{CAPACITY} requests/s can be served, {} come; from second {} to {} an answer takes {BROWN} times as long",
        CAPACITY * load,
        WARM + BEFORE,
        WARM + BEFORE + BROWN_OUT
    ));
    say(format!(
        "{:<22} {:>8} {:>8} {:>8} {:>10} {:>14} {:>7} {:>9} {:>7}",
        "goodput/s", "before", "during", "after", "back in s", "amplification", "added", "p99 ms", "lost"
    ));
    let mut curves = Vec::new();
    for name in ["direct", "haproxy", "buttress", "buttress_deadline_1s"] {
        // A fresh upstream, so that nobody inherits a queue.
        let upstream = Upstream::start()?;
        let port = free_ports(1)?;
        let (_process, port) = match name {
            "direct" => (None, upstream.port),
            "haproxy" => (Some(haproxy(folder.path(), port, upstream.port)?), port),
            "buttress" => (Some(ours(&options.binary, folder.path(), port, upstream.port, None)?), port),
            _ => (Some(ours(&options.binary, folder.path(), port, upstream.port, Some("1s"))?), port),
        };
        let curve = play(&upstream, port, CAPACITY * load)?;
        let back = curve.back_after.map_or("never".to_owned(), |seconds| seconds.to_string());
        say(format!(
            "{name:<22} {:>8.0} {:>8.0} {:>8.0} {back:>10} {:>14.2} {:>7.2} {:>9.0} {:>6.0}%",
            curve.before,
            curve.during,
            curve.after,
            curve.amplification,
            curve.added,
            curve.p99_ms,
            curve.lost * 100.0
        ));
        told[name] = json!({
            "goodput_before": curve.before, "goodput_during": curve.during, "goodput_after": curve.after,
            "back_after_s": curve.back_after, "amplification": curve.amplification, "added": curve.added,
            "p99_ms": curve.p99_ms, "lost": curve.lost, "per_second": curve.good,
        });
        curves.push((name, curve));
    }
    say(format!("\ngoodput in each second, of {CAPACITY}; the brown-out is between the bars"));
    for (name, curve) in &curves {
        say(format!("{name:<22} {}", drawn(&curve.good)));
    }
    if options.json {
        println!("{}", Value::to_string(&told));
    }
    Ok(())
}

/// A curve as one line.
fn drawn(good: &[u64]) -> String {
    let levels = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let mut line = String::new();
    for (second, count) in good.iter().enumerate() {
        if [WARM + BEFORE, WARM + BEFORE + BROWN_OUT].contains(&(second as u64)) {
            line.push('|');
        }
        let at = (*count as f64 / CAPACITY * 7.0).round() as usize;
        line.push(levels[at.min(7)]);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_is_when_enough_comes_through_for_some_seconds() {
        assert_eq!(back(&[0, 100, 0, 95, 96, 95, 0], 100.0), Some(3));
        assert_eq!(back(&[100, 100, 100], 100.0), Some(0));
        assert_eq!(back(&[94, 94, 94, 94], 100.0), None);
        assert_eq!(back(&[0, 0, 0, 0], 0.0), None, "nothing came through before, so there is nothing to come back to");
    }
}
