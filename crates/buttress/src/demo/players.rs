//! The players: what stands in a plant's network, MQTT sessions and HTTP gateways, and the schedule that makes the
//! machines read their sensors.
//!
//! All of it runs on one thread of its own with a current-thread runtime: handing a reading to its session then wakes a
//! task of the same thread and costs no system call, and the other core is left to the nodes.
//!
//! **Schedule.** Reading `k` is due `k / rate` seconds after the start, machine after machine, so that the fleet's load
//! is even. The machines of one session are neighbours in that order, so that a session wakes once per round.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use buttress_core::{Code, Error};
use bytes::BytesMut;
use tokio::sync::oneshot;

use super::{
    cluster::NodeAddress,
    data_file::Row,
    feed::{self, Feed},
    gateway::Gateway,
    journal::Journal,
    mqtt::Session,
    plant::Plant,
    reading::{Values, write_reading},
};

/// How often the schedule looks for readings that are due: 20 at 10,000 a second.
const TICK: Duration = Duration::from_millis(2);
/// Payloads are cut from slabs of this size.
const SLAB_BYTES: usize = 64 * 1024;
/// Sessions that connect at the same time, so that the ramp is no burst.
const CONNECT_STEP: usize = 20;
/// Every fifth group of machines speaks HTTP.
const HTTP_SHARE: usize = 5;
/// Descriptors beside the sessions: gateways, readers, files, and some air.
const DESCRIPTORS_BESIDE: u64 = 1_000;

/// How many MQTT sessions carry the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    Count(u32),
    PerMachine,
}

impl std::str::FromStr for Sessions {
    type Err = Error;

    /// A number, or `machine`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "machine" => Ok(Self::PerMachine),
            _ => text.parse().ok().filter(|count| *count > 0).map(Self::Count).ok_or_else(|| {
                Error::new(Code::CONFIG, format!("'{text}' is not a number of sessions"))
                    .hint("use a number from 1 on, or 'machine' for one session per machine")
            }),
        }
    }
}

/// Raises the soft limit of open files to what the sessions need, for this process and the nodes it starts later.
///
/// # Errors
/// `LIMITS` where the hard limit is too low, saying what to raise.
pub fn raise_limits(sessions: Sessions, machines: u32) -> Result<(), Error> {
    let sessions = match sessions {
        Sessions::Count(count) => count.min(machines),
        Sessions::PerMachine => machines,
    };
    let need = u64::from(sessions) + DESCRIPTORS_BESIDE;
    let (soft, hard) = rlimit::Resource::NOFILE
        .get()
        .map_err(|e| Error::new(Code::LIMITS, format!("the limit of open files cannot be read: {e}")))?;
    if soft >= need {
        return Ok(());
    }
    let too_low = || {
        Error::new(Code::LIMITS, format!("{sessions} sessions need {need} open files; the limit is {hard}"))
            .hint(format!("raise it with `ulimit -Hn {need}` as root, or play with fewer --sessions"))
    };
    if hard < need {
        return Err(too_low());
    }
    rlimit::Resource::NOFILE.set(need, hard).map_err(|_| too_low())
}

/// Where readings come from.
pub enum Source {
    Plant { plant: Plant, next: u32 },
    File { rows: Vec<Row>, next: usize },
}

impl Source {
    fn read(&mut self) -> Option<(u32, Values, bool)> {
        match self {
            Self::Plant { plant, next } => {
                let machine = *next;
                *next = (machine + 1) % plant.len() as u32;
                let sample = plant.read(machine);
                Some((machine, sample.values, sample.failed))
            }
            Self::File { rows, next } => {
                let row = rows.get(*next)?;
                *next += 1;
                Some((row.machine, row.values, row.label.unwrap_or(false)))
            }
        }
    }
}

/// What is played.
pub struct Play {
    pub source: Source,
    pub names: Arc<Vec<String>>,
    pub rate: f64,
    /// Readings in all.
    pub total: u64,
    pub sessions: Sessions,
    pub nodes: Arc<Vec<NodeAddress>>,
}

/// The way by which a machine's readings go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Mqtt(u32),
    Http(u32),
}

/// Machine by machine: neighbours share a session or a gateway.
fn ways(machines: usize, sessions: Sessions) -> (Vec<Way>, usize, usize) {
    let group = (machines / 50).clamp(1, 10);
    let is_http = |machine: usize| machine / group % HTTP_SHARE == HTTP_SHARE - 1;
    let over_mqtt = (0..machines).filter(|machine| !is_http(*machine)).count();
    let sessions = match sessions {
        Sessions::Count(count) => (count as usize).min(over_mqtt),
        Sessions::PerMachine => over_mqtt,
    };
    let (mut rank, mut gateways) = (0, 0);
    let ways = (0..machines)
        .map(|machine| {
            if is_http(machine) {
                let gateway = machine / (group * HTTP_SHARE);
                gateways = gateway + 1;
                Way::Http(gateway as u32)
            } else {
                rank += 1;
                Way::Mqtt(((rank - 1) * sessions / over_mqtt) as u32)
            }
        })
        .collect();
    (ways, sessions, gateways)
}

/// Shared with the thread of the players.
pub struct Control {
    stop: AtomicBool,
    wear_out: Mutex<Vec<u32>>,
}

impl Control {
    /// Damages a machine's bearing before its next reading.
    pub fn wear_out(&self, machine: u32) {
        self.wear_out.lock().expect("no panic under this lock").push(machine);
    }
}

/// The running players.
pub struct Players {
    control: Arc<Control>,
    connected: Option<oneshot::Receiver<usize>>,
    begin: Option<oneshot::Sender<()>>,
    played: Option<oneshot::Receiver<()>>,
    finish: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    pub sessions: usize,
    pub gateways: usize,
}

impl Players {
    /// Starts the thread and connects the sessions; nothing is sent before [`Players::begin`].
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn start(play: Play, journal: Arc<Journal>, feed: Arc<Feed>) -> anyhow::Result<Self> {
        let control = Arc::new(Control { stop: AtomicBool::new(false), wear_out: Mutex::default() });
        let (ways, sessions, gateways) = ways(play.names.len(), play.sessions);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("the players' runtime cannot be made")?;
        let (connected_tx, connected) = oneshot::channel();
        let (begin, begin_rx) = oneshot::channel();
        let (played_tx, played) = oneshot::channel();
        let (finish, finish_rx) = oneshot::channel();
        let shared = Arc::clone(&control);
        let thread = std::thread::Builder::new()
            .name("players".into())
            .spawn(move || {
                runtime.block_on(async move {
                    // Each session has a window of 100 packets; with one session per machine a few are enough.
                    let window = if sessions > 2_000 { 16 } else { 100 };
                    let new_session =
                        |number| Arc::new(Session::new(number, window, Arc::clone(&play.names), Arc::clone(&journal)));
                    let sessions: Vec<_> = (0..sessions).map(new_session).collect();
                    let new_gateway =
                        |number| Arc::new(Gateway::new(number, Arc::clone(&play.names), Arc::clone(&journal)));
                    let gateways: Vec<_> = (0..gateways).map(new_gateway).collect();
                    for step in sessions.chunks(CONNECT_STEP) {
                        for session in step {
                            tokio::spawn(Arc::clone(session).run(Arc::clone(&play.nodes)));
                        }
                        tokio::time::sleep(TICK).await;
                    }
                    for gateway in &gateways {
                        tokio::spawn(Arc::clone(gateway).run(Arc::clone(&play.nodes)));
                    }
                    let until = Instant::now() + Duration::from_secs(20);
                    let count = || sessions.iter().filter(|session| session.connected()).count();
                    while count() < sessions.len() && Instant::now() < until && !shared.stop.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    let _ = connected_tx.send(count());
                    if begin_rx.await.is_ok() {
                        schedule(play, &ways, &sessions, &gateways, &journal, &feed, &shared).await;
                    }
                    let _ = played_tx.send(());
                    // Sessions and gateways go on until everything is acknowledged or given up.
                    let _ = finish_rx.await;
                    for session in &sessions {
                        session.disconnect();
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                });
            })
            .context("the players' thread cannot be made")?;
        Ok(Self {
            control,
            connected: Some(connected),
            begin: Some(begin),
            played: Some(played),
            finish: Some(finish),
            thread: Some(thread),
            sessions,
            gateways,
        })
    }

    /// How many sessions are connected once all are, or the time for it is over.
    pub async fn connected(&mut self) -> usize {
        match self.connected.take() {
            Some(connected) => connected.await.unwrap_or(0),
            None => 0,
        }
    }

    pub fn begin(&mut self) {
        if let Some(begin) = self.begin.take() {
            let _ = begin.send(());
        }
    }

    /// Returns when the last reading was given to its client.
    pub async fn played(&mut self) {
        if let Some(played) = &mut self.played {
            let _ = played.await;
            self.played = None;
        }
    }

    /// No further readings.
    pub fn stop(&self) {
        self.control.stop.store(true, Ordering::Relaxed);
    }

    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// Disconnects the sessions and ends the thread.
    pub async fn finish(mut self) {
        self.end();
        if let Some(thread) = self.thread.take() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    fn end(&mut self) {
        self.stop();
        self.begin = None;
        self.finish = None;
    }
}

impl Drop for Players {
    fn drop(&mut self) {
        self.end();
    }
}

async fn schedule(
    mut play: Play,
    ways: &[Way],
    sessions: &[Arc<Session>],
    gateways: &[Arc<Gateway>],
    journal: &Journal,
    feed: &Feed,
    control: &Control,
) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let started = Instant::now();
    let mut slab = BytesMut::with_capacity(SLAB_BYTES);
    let mut count = 0u64;
    while count < play.total && !control.stop.load(Ordering::Relaxed) {
        tick.tick().await;
        if let Source::Plant { plant, .. } = &mut play.source {
            for machine in control.wear_out.lock().expect("no panic under this lock").drain(..) {
                plant.wear_out(machine);
            }
        }
        let due = ((started.elapsed().as_secs_f64() * play.rate) as u64).min(play.total);
        let ts_ms = feed::now_ms() as u64;
        let mut posted: Option<u32> = None;
        while count < due {
            let Some((machine, values, truth)) = play.source.read() else { return };
            count += 1;
            let seq = journal.send(machine, truth);
            feed.reading(machine, &values);
            if slab.capacity() - slab.len() < 512 {
                slab = BytesMut::with_capacity(SLAB_BYTES);
            }
            write_reading(&mut slab, &play.names[machine as usize], seq, ts_ms, &values);
            let payload = slab.split().freeze();
            match ways[machine as usize] {
                Way::Mqtt(session) => sessions[session as usize].push(machine, seq, payload),
                Way::Http(gateway) => {
                    // A gateway posts when the next one's readings begin, or the tick ends.
                    if let Some(before) = posted.filter(|before| *before != gateway) {
                        gateways[before as usize].flush();
                    }
                    gateways[gateway as usize].push(machine, seq, payload);
                    posted = Some(gateway);
                }
            }
        }
        if let Some(gateway) = posted {
            gateways[gateway as usize].flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_machines_speaks_http_and_neighbours_share_a_session() {
        let (ways, sessions, gateways) = ways(10_000, Sessions::Count(1_000));
        assert_eq!((sessions, gateways), (1_000, 200));
        let http = ways.iter().filter(|way| matches!(way, Way::Http(_))).count();
        assert_eq!(http, 2_000);
        let mut per_session = vec![0; sessions];
        let mut last = 0;
        for way in &ways {
            if let Way::Mqtt(session) = way {
                assert!(*session == last || *session == last + 1, "sessions come in order");
                last = *session;
                per_session[*session as usize] += 1;
            }
        }
        assert!(per_session.iter().all(|machines| *machines == 8));
    }

    #[test]
    fn small_fleets_have_both_ways_and_one_machine_has_one() {
        for machines in [1, 4, 5, 10, 49, 60, 100, 333] {
            let (ways, sessions, gateways) = ways(machines, Sessions::Count(1_000));
            assert_eq!(ways.len(), machines);
            assert!(sessions >= 1);
            for way in ways {
                match way {
                    Way::Mqtt(session) => assert!((session as usize) < sessions),
                    Way::Http(gateway) => assert!((gateway as usize) < gateways),
                }
            }
        }
        let (_, sessions, _) = ways(100, Sessions::PerMachine);
        assert_eq!(sessions, 80);
    }

    #[test]
    fn more_sessions_than_the_system_allows_say_what_to_raise() {
        let (_, hard) = rlimit::Resource::NOFILE.get().expect("the limit can be read");
        if let Some(machines) = u32::try_from(hard).ok().filter(|hard| *hard < u32::MAX) {
            let error = raise_limits(Sessions::PerMachine, machines).unwrap_err();
            assert_eq!(error.code, Code::LIMITS);
            assert!(error.hint.expect("it says what to do").contains("ulimit"));
        }
        assert!("0".parse::<Sessions>().is_err());
        assert_eq!("machine".parse::<Sessions>().unwrap(), Sessions::PerMachine);
    }
}
