//! `half-load`: what a proxy adds to the 99th percentile at half of what the whole machine can do.
//!
//! Half of the capacity is where a service should run. It is measured first, through `buttress proxy`, with a closed loop of the
//! same generator. Then an open loop: a latency counts from when a request was due, not from when it could be sent, so that a
//! stall is paid for by everything that waited behind it (Tene, "How NOT to measure latency": coordinated omission). Direct,
//! through HAProxy and through us take turns; what counts is the median of the measurements that nobody else disturbed.
//!
//! Two generators. `oha` is what others can repeat: `-q RATE --latency-correction`. Its clock ticks in milliseconds, so at 20,000
//! requests a second twenty are due at the same moment, and the last of them waits for the other nineteen, whoever answers. `own` has one thread that never
//! sleeps, and a plan for each connection; it spreads the requests evenly, and takes a core whole.
//!
//! With oha, the proxies have the last core and generator and origin the others, as if the proxy had a machine of its own: otherwise
//! it is chance who shares a core with whom, and a tail says which it was. Direct has generator and origin where they always are.
//!
//! Whoever else runs on the machine makes a tail, and not the same for both sides. So everybody's processor time is read with
//! ours, and a measurement in which others had more than [`OTHERS_MAX`] is made again; how many were is told.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    figures::median,
    gateway::{How, Process, haproxy, origin, ours, round},
    options::{Generator, Options},
    sides::{cpu_seconds, folder, free_ports, machine_seconds, waited_for_core, waited_seconds},
};

/// Connections of the open loop.
const CONNECTIONS: usize = 64;
/// Of the closed loop that finds the capacity.
const CLOSED: usize = 50;
/// The most of these is the capacity: what disturbs one makes it less, never more.
const CLOSED_ROUNDS: usize = 3;
const SHARE: f64 = 0.5;
/// An answer that takes longer ends the run.
const PATIENCE: Duration = Duration::from_secs(10);
const REQUEST: &[u8] = b"GET /orders/4711 HTTP/1.1\r\nHost: upstream\r\n\r\n";
const OHA_HINT: &str =
    "hint: cargo install oha --locked --version 1.16.0, or --generator own for the generator of this benchmark";
/// Of the machine's processor time, what those may have who have nothing to do with the measurement.
const OTHERS_MAX: f64 = 0.05;
/// Attempts for each measurement that is wanted; then those that were disturbed least count too.
const ATTEMPTS: usize = 4;
/// How long to wait for a quiet moment, and how long to look.
const CALM_MAX: Duration = Duration::from_secs(5);
const CALM_LOOK: Duration = Duration::from_millis(100);

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

/// The cores of generator and origin, and that of the proxies, as `taskset` takes them.
fn cores() -> Result<(String, String)> {
    let last = std::thread::available_parallelism()?.get() - 1;
    ensure!(last > 0, "a proxy needs a core besides that of the generator, and this machine has one");
    Ok((format!("0-{}", last - 1), last.to_string()))
}

fn pin(process: &Process, cores: &str) -> Result<()> {
    for pid in process.pids() {
        let output = Command::new("taskset").args(["-a", "-c", "-p", cores, &pid.to_string()]).output();
        let output = output.context("taskset cannot be started\n\nhint: apt-get install util-linux")?;
        ensure!(output.status.success(), "a process stays where it is: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Runs oha, and gives what it says.
fn oha(port: u16, seconds: f64, connections: usize, rate: Option<f64>) -> Result<Value> {
    let mut command = Command::new("taskset");
    command.args(["-c", &cores()?.0, "oha"]);
    // One thread: with two cores, a second one is in the way of what is measured.
    command.args(["--no-tui", "--output-format", "json", "--worker-threads", "1"]);
    command.args(["-z", &format!("{}ms", (seconds * 1e3) as u64), "-c", &connections.to_string()]);
    if let Some(rate) = rate {
        command.args(["-q", &format!("{rate:.0}"), "--latency-correction"]);
    }
    let output = command.arg(format!("http://127.0.0.1:{port}/orders/4711")).output();
    let output = output.with_context(|| format!("oha cannot be started\n\n{OHA_HINT}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "oha failed:\n{said}");
    let told: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("oha said no JSON:\n{said}"))?;
    let (codes, errors) = (told["statusCodeDistribution"].as_object(), told["errorDistribution"].as_object());
    // What is under way when the time is over is ended by oha itself.
    let failed = errors.into_iter().flatten().find(|(what, _)| *what != "aborted due to deadline");
    let refused = codes.into_iter().flatten().find(|(code, _)| *code != "200");
    ensure!(failed.is_none() && refused.is_none(), "not every request succeeded: {failed:?} {refused:?}");
    Ok(told)
}

fn oha_open_loop(port: u16, rate: f64, seconds: f64) -> Result<Quantiles> {
    let told = oha(port, seconds, CONNECTIONS, Some(rate))?;
    let at = |name: &str| -> Result<f64> {
        Ok(told["latencyPercentiles"][name].as_f64().with_context(|| format!("oha told no {name}"))? * 1e3)
    };
    let done = told["summary"]["requestsPerSec"].as_f64().context("oha told no rate")?;
    ensure!(done > 0.95 * rate, "{rate:.0} requests/s were to come, and {done:.0} did");
    Ok(Quantiles { p50: at("p50")?, p99: at("p99")?, p999: at("p99.9")? })
}

/// The most requests a second that go through.
fn capacity(generator: Generator, ours: &Process, seconds: f64, connections: usize) -> Result<f64> {
    let once = || match generator {
        Generator::Oha => oha(ours.port, seconds, connections, None)?["summary"]["requestsPerSec"]
            .as_f64()
            .context("oha told no rate"),
        // The client of the open loop takes a core whole, so one is taken here too.
        Generator::Own => {
            let measured = AtomicBool::new(false);
            let closed = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !measured.load(Relaxed) {
                        std::hint::spin_loop();
                    }
                });
                let closed = round(ours, seconds, connections);
                measured.store(true, Relaxed);
                closed
            })?;
            Ok(closed.done as f64 / closed.seconds)
        }
    };
    (0..CLOSED_ROUNDS).try_fold(0.0, |most: f64, _| Ok(most.max(once()?)))
}

/// Processor time so far: of everybody, of the machine busy or not, and of what belongs to the measurement.
#[derive(Clone, Copy)]
struct Used {
    busy: f64,
    all: f64,
    own: f64,
}

impl Used {
    fn now(processes: &[&Process]) -> Result<Self> {
        let (busy, all) = machine_seconds()?;
        let theirs: f64 = processes.iter().map(|process| process.cpu_seconds()).sum::<Result<f64>>()?;
        Ok(Self { busy, all, own: theirs + cpu_seconds("self")? + waited_seconds()? })
    }

    /// Parts of the machine since then: all that was used, and what others used of it.
    fn since(self, before: Self) -> (f64, f64) {
        let all = (self.all - before.all).max(0.01);
        let busy = self.busy - before.busy;
        (busy / all, ((busy - (self.own - before.own)) / all).max(0.0))
    }
}

/// Waits until others leave the machine alone, and not for long.
fn calm() -> Result<()> {
    let end = Instant::now() + CALM_MAX;
    while Instant::now() < end {
        let before = Used::now(&[])?;
        std::thread::sleep(CALM_LOOK);
        if Used::now(&[])?.since(before).1 <= OTHERS_MAX {
            break;
        }
    }
    Ok(())
}

/// What one measurement found.
struct Found {
    quantiles: Quantiles,
    /// Parts of the machine.
    busy: f64,
    others: f64,
    /// How long the proxy's threads had something to do and no core, in microseconds a request.
    waited: f64,
}

fn measure(
    generator: Generator,
    process: Option<&Process>,
    origin: &Process,
    rate: f64,
    seconds: f64,
) -> Result<Found> {
    let port = process.unwrap_or(origin).port;
    let processes: Vec<&Process> = process.into_iter().chain([origin]).collect();
    let waited = || process.map_or(Ok(0.0), |process| process.pids().iter().map(|pid| waited_for_core(*pid)).sum());
    let (before, had_waited): (_, Result<f64>) = (Used::now(&processes)?, waited());
    let quantiles = match generator {
        Generator::Oha => oha_open_loop(port, rate, seconds)?,
        Generator::Own => open_loop(port, rate, seconds)?,
    };
    let (busy, others) = Used::now(&processes)?.since(before);
    Ok(Found { quantiles, busy, others, waited: (waited()? - had_waited?) / (rate * seconds) * 1e6 })
}

pub fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, 5, 4.0, &[CLOSED])?;
    if options.generator == Generator::Oha {
        let there = Command::new("oha").arg("--version").output().is_ok_and(|output| output.status.success());
        ensure!(there, "oha, the generator of the load, is not there\n\n{OHA_HINT}");
    }
    let folder = folder()?;
    let (path, first) = (folder.path(), free_ports(4)?);
    let origin = origin(path, first)?;
    let proxy = |port, how| ours(&options.binary, path, port, origin.port, how);
    let sides: [(&str, Option<Process>); 4] = [
        ("direct", None),
        ("haproxy", Some(haproxy(path, first + 1, origin.port, None)?)),
        ("buttress", Some(proxy(first + 2, How::Full)?)),
        ("buttress_bare", Some(proxy(first + 3, How::Bare)?)),
    ];
    if options.generator == Generator::Oha {
        let (others, last) = cores()?;
        pin(&origin, &others)?;
        for process in sides.iter().filter_map(|(_, process)| process.as_ref()) {
            pin(process, &last)?;
        }
    }
    let ours = sides[2].1.as_ref().context("it was started above")?;
    calm()?;
    let capacity = capacity(options.generator, ours, options.seconds, options.clients[0])?;
    let rate = capacity * SHARE;
    let mut found: [Vec<Found>; 4] = Default::default();
    let quiet = |list: &[Found]| list.iter().filter(|one| one.others <= OTHERS_MAX).count();
    for number in 0..options.rounds * ATTEMPTS {
        if found.iter().all(|list| quiet(list) >= options.rounds) {
            break;
        }
        for turn in 0..sides.len() {
            let at = (turn + number) % sides.len();
            calm()?;
            let (name, process) = &sides[at];
            let one = measure(options.generator, process.as_ref(), &origin, rate, options.seconds)?;
            if one.others > OTHERS_MAX {
                eprintln!("{name}: others had {:.0} % of the machine, so it is measured again", one.others * 100.0);
            }
            found[at].push(one);
        }
    }
    tell(&options, capacity, rate, sides.map(|(name, _)| name), found)
}

fn tell(options: &Options, capacity: f64, rate: f64, names: [&str; 4], found: [Vec<Found>; 4]) -> Result<()> {
    let say = |line: String| if options.json { eprintln!("{line}") } else { println!("{line}") };
    let generator = options.generator.name();
    say(format!(
        "{capacity:.0} requests/s are the most through buttress proxy; {rate:.0} come from {generator}, due by a plan"
    ));
    say(format!(
        "{:<14} {:>8} {:>8} {:>9} {:>13} {:>13} {:>8} {:>9}",
        "", "p50 ms", "p99 ms", "p99.9 ms", "p99 added ms", "no core µs/r", "machine", "counted"
    ));
    let seconds = options.seconds;
    let mut told = json!({"generator": generator, "capacity": capacity, "rate": rate, "seconds": seconds});
    let mut direct = 0.0;
    for (name, mut list) in names.into_iter().zip(found) {
        let made = list.len();
        // The quietest come first; of those that were disturbed, only as many count as are missing.
        list.sort_by(|a, b| a.others.total_cmp(&b.others));
        let quiet = list.iter().filter(|one| one.others <= OTHERS_MAX).count();
        list.truncate(quiet.max(options.rounds));
        let Some(loudest) = list.last().map(|one| one.others) else { bail!("{name} was not measured") };
        let all = |what: fn(&Found) -> f64| list.iter().map(what).collect::<Vec<_>>();
        let mut p99s = all(|one| one.quantiles.p99);
        let [p50, p999, busy, waited] =
            [all(|one| one.quantiles.p50), all(|one| one.quantiles.p999), all(|one| one.busy), all(|one| one.waited)]
                .map(|mut list| median(&mut list));
        let p99 = median(&mut p99s);
        if name == "direct" {
            direct = p99;
        }
        let (added, counted) = (p99 - direct, list.len());
        say(format!(
            "{name:<14} {p50:>8.3} {p99:>8.3} {p999:>9.3} {added:>13.3} {waited:>13.1} {:>6.0} % {counted:>5}/{made}",
            busy * 100.0
        ));
        told[name] = json!({
            "p50_ms": p50, "p99_ms": p99, "p999_ms": p999, "p99_added_ms": added, "p99_ms_rounds": p99s,
            "waited_for_core_us": waited, "machine": busy, "others_max": loudest, "counted": counted, "made": made,
        });
        if loudest > OTHERS_MAX {
            say(format!("{name}: others had up to {:.0} % of the machine while it was measured", loudest * 100.0));
        }
    }
    if options.json {
        println!("{}", Value::to_string(&told));
    }
    Ok(())
}
