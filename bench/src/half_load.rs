//! `half-load`: what a proxy adds to the 99th percentile at half of what the whole machine can do.
//!
//! Half of the capacity is where a service should run. It is measured first, through `buttress proxy`, with a closed loop
//! (h2load) and a thread that takes a core as the client of the open loop will. Then an open loop of our own: one thread that never sleeps has connections with a plan each, and a latency counts from when a request was due, not
//! from when it could be sent, so that a stall is paid for by everything that waited behind it (Tene, "How NOT to measure
//! latency": coordinated omission). Direct, through HAProxy and through us take turns; what counts is the median round.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    figures::median,
    gateway::{How, Process, haproxy, origin, ours, round},
    options::Options,
    sides::{folder, free_ports},
};

/// Connections of the open loop.
const CONNECTIONS: usize = 64;
/// Of the closed loop that finds the capacity.
const CLOSED: usize = 50;
const SHARE: f64 = 0.5;
/// An answer that takes longer ends the run.
const PATIENCE: Duration = Duration::from_secs(10);
const REQUEST: &[u8] = b"GET /orders/4711 HTTP/1.1\r\nHost: upstream\r\n\r\n";

/// A connection with a plan. Requests whose time came while one was under way wait, and their latency counts from then.
struct Connection {
    stream: TcpStream,
    due: Instant,
    /// When the request under way was due.
    asked: Option<Instant>,
    read: Vec<u8>,
}

impl Connection {
    fn new(port: u16, due: Instant) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, due, asked: None, read: Vec::new() })
    }

    /// Sends what is due, and reads what has come; a latency in microseconds where an answer is whole.
    fn turn(&mut self, every: Duration, end: Instant) -> Result<Option<u32>> {
        let Some(asked) = self.asked else {
            if self.due < end && self.due <= Instant::now() {
                // 60 bytes into an empty buffer of the kernel's.
                self.stream.write_all(REQUEST)?;
                self.asked = Some(self.due);
                self.due += every;
            }
            return Ok(None);
        };
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => anyhow::bail!("a connection ended"),
            Ok(read) => self.read.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                ensure!(asked.elapsed() < PATIENCE, "no answer in ten seconds");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
        if !whole(&self.read)? {
            return Ok(None);
        }
        self.read.clear();
        self.asked = None;
        Ok(Some(asked.elapsed().as_micros() as u32))
    }
}

/// Whether these bytes are a whole answer.
fn whole(bytes: &[u8]) -> Result<bool> {
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(false) };
    let text = std::str::from_utf8(&bytes[..head])?.to_ascii_lowercase();
    ensure!(text.starts_with("http/1.1 200"), "it was answered: {text}");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.context("an answer has a length")?.trim().parse()?;
    Ok(bytes.len() >= head + 4 + length)
}

struct Quantiles {
    p50: f64,
    p99: f64,
    p999: f64,
}

fn open_loop(port: u16, rate: f64, seconds: f64) -> Result<Quantiles> {
    let every = Duration::from_secs_f64(CONNECTIONS as f64 / rate);
    let begin = Instant::now() + Duration::from_millis(50);
    let end = begin + Duration::from_secs_f64(seconds);
    let mut connections = (0..CONNECTIONS)
        .map(|at| Connection::new(port, begin + every.mul_f64(at as f64 / CONNECTIONS as f64)))
        .collect::<Result<Vec<_>>>()?;
    let mut all = Vec::new();
    // One thread that never sleeps: a timer would be late by more than what is measured.
    while Instant::now() < end || connections.iter().any(|connection| connection.asked.is_some()) {
        for connection in &mut connections {
            all.extend(connection.turn(every, end)?);
        }
    }
    all.sort_unstable();
    let at = |share: f64| f64::from(all[((all.len() as f64 * share) as usize).min(all.len() - 1)]) / 1e3;
    ensure!(!all.is_empty(), "no request was made");
    Ok(Quantiles { p50: at(0.5), p99: at(0.99), p999: at(0.999) })
}

pub fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, 5, 4.0, &[CLOSED])?;
    let folder = folder()?;
    let (path, first) = (folder.path(), free_ports(3)?);
    let origin = origin(path, first)?;
    let sides: [(&str, u16, Option<Process>); 3] = [
        ("direct", origin.port, None),
        ("haproxy", first + 1, Some(haproxy(path, first + 1, origin.port, None)?)),
        ("buttress", first + 2, Some(ours(&options.binary, path, first + 2, origin.port, How::Full)?)),
    ];
    let ours = sides[2].2.as_ref().context("it was started above")?;
    // The open loop's client takes a core whole, so one is taken here too.
    let measured = AtomicBool::new(false);
    let closed = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !measured.load(Relaxed) {
                std::hint::spin_loop();
            }
        });
        let closed = round(ours, options.seconds, options.clients[0]);
        measured.store(true, Relaxed);
        closed
    })?;
    let capacity = closed.done as f64 / closed.seconds;
    let rate = capacity * SHARE;
    let mut seen: Vec<[Vec<f64>; 3]> = vec![Default::default(); sides.len()];
    for number in 0..options.rounds {
        for turn in 0..sides.len() {
            let at = (turn + number) % sides.len();
            let quantiles = open_loop(sides[at].1, rate, options.seconds)?;
            for (list, value) in seen[at].iter_mut().zip([quantiles.p50, quantiles.p99, quantiles.p999]) {
                list.push(value);
            }
        }
    }
    let say = |line: String| if options.json { eprintln!("{line}") } else { println!("{line}") };
    say(format!("{capacity:.0} requests/s are the most through buttress proxy; {rate:.0} come, due by a plan"));
    say(format!("{:<10} {:>9} {:>9} {:>9} {:>14}", "", "p50 ms", "p99 ms", "p99.9 ms", "p99 added ms"));
    let mut told = json!({"capacity": capacity, "rate": rate, "rounds": options.rounds, "seconds": options.seconds});
    let mut direct = 0.0;
    for ((name, ..), lists) in sides.iter().zip(&mut seen) {
        let [p50, p99, p999] = lists.each_mut().map(|list| median(list));
        if *name == "direct" {
            direct = p99;
        }
        say(format!("{name:<10} {p50:>9.3} {p99:>9.3} {p999:>9.3} {:>14.3}", p99 - direct));
        told[*name] = json!({"p50_ms": p50, "p99_ms": p99, "p999_ms": p999, "p99_added_ms": p99 - direct, "p99_ms_rounds": lists[1]});
    }
    if options.json {
        println!("{}", Value::to_string(&told));
    }
    Ok(())
}
