//! What a seed draws before anything happens: how the world is made, and what goes wrong in it, when.
//!
//! Every seed switches a few kinds of faults on and leaves the others off (a swarm), because a world in which everything
//! goes wrong at once never gets far enough to be interesting. It also draws limits, most of them tiny, so that what is
//! rare in production (a rotation, a snapshot, a forgotten result) happens all the time.
//!
//! The faults are a list drawn up front. Each names its victim by a number that is resolved when it happens, so that a
//! schedule with some faults left out still makes sense. That is what the minimiser does.

use std::fmt;

use crate::{MS, SEC, Us, disk::Damage, rng::Rng, workload::SHARDS};

/// A kind of fault, as the swarm switches it and the report counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Crash,
    Kill,
    CrashAll,
    Pause,
    Split,
    Isolate,
    OneWay,
    Weather,
    ClockJump,
    ClockDrift,
    SlowDisk,
    BrokenDisk,
    FullDisk,
    Rot,
    Misdirected,
    Destroy,
    Members,
    Transfer,
    Replace,
    ShortReigns,
}

impl Kind {
    pub const ALL: &[Kind] = &[
        Kind::Crash,
        Kind::Kill,
        Kind::CrashAll,
        Kind::Pause,
        Kind::Split,
        Kind::Isolate,
        Kind::OneWay,
        Kind::Weather,
        Kind::ClockJump,
        Kind::ClockDrift,
        Kind::SlowDisk,
        Kind::BrokenDisk,
        Kind::FullDisk,
        Kind::Rot,
        Kind::Misdirected,
        Kind::Destroy,
        Kind::Members,
        Kind::Transfer,
        Kind::Replace,
        Kind::ShortReigns,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Crash => "power-loss",
            Kind::Kill => "kill",
            Kind::CrashAll => "power-loss-everywhere",
            Kind::Pause => "pause",
            Kind::Split => "split",
            Kind::Isolate => "isolate",
            Kind::OneWay => "one-way-cut",
            Kind::Weather => "bad-network",
            Kind::ClockJump => "clock-jump",
            Kind::ClockDrift => "clock-drift",
            Kind::SlowDisk => "slow-disk",
            Kind::BrokenDisk => "failed-sync",
            Kind::FullDisk => "full-disk",
            Kind::Rot => "rot",
            Kind::Misdirected => "misdirected-write",
            Kind::Destroy => "disk-destroyed",
            Kind::Members => "member-change",
            Kind::Transfer => "leader-transfer",
            Kind::Replace => "node-replaced",
            Kind::ShortReigns => "short-reigns",
        }
    }
}

/// Whom it hits, resolved when it happens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The leader of the shard, or anybody if there is none.
    Leader(u32),
    /// One of those that run, by this number modulo how many they are.
    Any(u64),
}

impl fmt::Debug for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Leader(shard) => write!(f, "the leader of shard {shard}"),
            Who::Any(number) => write!(f, "any({})", number % 100),
        }
    }
}

/// How messages fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    pub drop_percent: u64,
    pub repeat_percent: u64,
    /// Each copy takes a time between the two.
    pub delay_us: (Us, Us),
}

impl Weather {
    pub const CALM: Weather = Weather { drop_percent: 0, repeat_percent: 0, delay_us: (200, 2 * MS) };
}

/// A wish of the operator about members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A new node comes in, as a learner first.
    Grow,
    /// A voter becomes a learner.
    Demote(u64),
    /// A learner becomes a voter.
    Promote(u64),
    /// A voter leaves both groups.
    Shrink(u64),
    /// A voter and a learner change places, in one joint change.
    Swap(u64),
}

/// Something that goes wrong, or that the operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Loses power: what was not synced may be lost.
    Crash {
        who: Who,
        down: Us,
    },
    /// The process dies; the page cache survives.
    Kill {
        who: Who,
        down: Us,
    },
    CrashAll {
        down: Us,
    },
    Pause {
        who: Who,
        time: Us,
    },
    /// Nodes whose bit is set are cut off from the others, or (`one_way`) cannot be heard by them.
    Split {
        mask: u64,
        one_way: bool,
        time: Us,
    },
    Isolate {
        who: Who,
        hears: bool,
        heard: bool,
        time: Us,
    },
    Weather {
        weather: Weather,
        time: Us,
    },
    ClockJump {
        who: Who,
        ms: i64,
    },
    ClockDrift {
        who: Who,
        ppm: i64,
    },
    SlowDisk {
        who: Who,
        extra: Us,
        time: Us,
    },
    BrokenDisk {
        who: Who,
        after: u64,
        down: Us,
    },
    FullDisk {
        who: Who,
        after: u64,
        down: Us,
    },
    Damage {
        who: Who,
        damage: Damage,
        times: u64,
        /// It is found by the restart that comes then.
        crash_after: Us,
        down: Us,
    },
    Destroy {
        who: Who,
    },
    Members {
        shard: u32,
        wish: Wish,
    },
    Transfer {
        shard: u32,
        to: u64,
    },
    Replace {
        who: Who,
    },
    /// For a while, most who come to lead fall within so long: in the middle of what a new leader does first.
    ShortReigns {
        within: Us,
        time: Us,
        /// Who is heard follows a script.
        scripted: bool,
    },
}

impl Fault {
    pub fn kind(&self) -> Kind {
        match self {
            Fault::Crash { .. } => Kind::Crash,
            Fault::Kill { .. } => Kind::Kill,
            Fault::CrashAll { .. } => Kind::CrashAll,
            Fault::Pause { .. } => Kind::Pause,
            Fault::Split { one_way: false, .. } => Kind::Split,
            Fault::Split { one_way: true, .. } => Kind::OneWay,
            Fault::Isolate { .. } => Kind::Isolate,
            Fault::Weather { .. } => Kind::Weather,
            Fault::ClockJump { .. } => Kind::ClockJump,
            Fault::ClockDrift { .. } => Kind::ClockDrift,
            Fault::SlowDisk { .. } => Kind::SlowDisk,
            Fault::BrokenDisk { .. } => Kind::BrokenDisk,
            Fault::FullDisk { .. } => Kind::FullDisk,
            Fault::Damage { damage: Damage::Misdirected, .. } => Kind::Misdirected,
            Fault::Damage { .. } => Kind::Rot,
            Fault::Destroy { .. } => Kind::Destroy,
            Fault::Members { .. } => Kind::Members,
            Fault::Transfer { .. } => Kind::Transfer,
            Fault::Replace { .. } => Kind::Replace,
            Fault::ShortReigns { .. } => Kind::ShortReigns,
        }
    }
}

/// How a seed's world is made.
#[derive(Clone, Debug)]
pub struct Settings {
    pub voters: u64,
    pub tick: Us,
    pub election_ticks: u32,
    pub heartbeat_ticks: u32,
    pub max_message_bytes: usize,
    pub max_inflight_messages: usize,
    pub max_uncommitted_bytes: usize,
    pub max_apply_bytes: usize,
    pub log_tail_bytes: usize,
    /// Small, so that followers often need what only the disk has.
    pub log_memory_bytes: usize,
    /// How long reading from the log takes at most.
    pub log_read_time: Us,
    /// Above this a leader forgets its log although followers want it.
    pub lagging_log_bytes: usize,
    pub segment_bytes: u64,
    pub fill_bytes: u64,
    pub spares_max: usize,
    pub limits: buttress_state::Limits,
    pub checkpoint_every: Us,
    /// How long a checkpoint takes to become durable.
    pub checkpoint_time: (Us, Us),
    pub snapshot_time: (Us, Us),
    pub sync_time: (Us, Us),
    /// A turn begins so long after its first input.
    pub turn_lag: Us,
    pub weather: Weather,
    /// An edge sends an entry again after so long without a word from the leader.
    pub resend_after: Us,
    /// A client turns to another node after so long.
    pub client_patience: Us,
    /// A client gives up after so long.
    pub client_deadline: Us,
    /// Faults happen until then; the world heals, and must converge.
    pub faults_until: Us,
    pub kinds: Vec<Kind>,
}

/// How long after the last fault everything must have caught up (LIVE-1). Elections take two or three times the longest
/// election timeout drawn (1 s), a joining node a snapshot and two changes of members per shard, and two nodes may
/// have to be replaced one after the other; the rest is slack for retries that back off.
pub const CONVERGE_WITHIN: Us = 30 * SEC;

/// Everything that a seed decides before the world starts.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub settings: Settings,
    /// In the order of time. The position is the fault's number, as `--without` takes it.
    pub faults: Vec<(Us, Fault)>,
}

impl Schedule {
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::derive(seed, 1);
        let mut settings = draw_settings(&mut rng);
        let mut faults = draw_faults(&mut rng, &settings);
        short_reigns(&mut Rng::derive(seed, 2), &mut settings, &mut faults);
        cold_log(&mut Rng::derive(seed, 3), &mut settings);
        Self { settings, faults }
    }
}

/// What of the log stays in memory. Drawn apart, so that the rest of a seed's world is what it was before this came.
fn cold_log(rng: &mut Rng, settings: &mut Settings) {
    settings.log_memory_bytes = rng.one([0, 0, 500, 5_000, 1 << 20]);
    settings.log_read_time = rng.one([100, 5 * MS, 200 * MS]);
}

fn draw_settings(rng: &mut Rng) -> Settings {
    let tick = rng.one([20 * MS, 40 * MS, 50 * MS]);
    let mut kinds = Vec::new();
    let share = rng.one([15, 30, 50, 80]);
    for kind in Kind::ALL.iter().filter(|kind| **kind != Kind::ShortReigns) {
        // What destroys much is rarer, so that the rest gets its time.
        let share = if *kind == Kind::CrashAll { share / 2 } else { share };
        if rng.percent(share) {
            kinds.push(*kind);
        }
    }
    Settings {
        voters: rng.one([3, 3, 3, 5, 5, 4, 7]),
        tick,
        election_ticks: rng.one([10, 10, 6]),
        heartbeat_ticks: rng.one([2, 2, 1, 3]),
        max_message_bytes: rng.one([300, 2_000, 1 << 20]),
        max_inflight_messages: rng.one([2, 8, 32]),
        max_uncommitted_bytes: rng.one([2_000, 20_000, 1 << 20]),
        max_apply_bytes: rng.one([600, 20_000, 1 << 20]),
        log_tail_bytes: rng.one([0, 2_000, 1 << 20]),
        log_memory_bytes: usize::MAX,
        log_read_time: MS,
        lagging_log_bytes: rng.one([4_000, 100_000]),
        segment_bytes: rng.one([2_048, 8_192, 65_536]),
        fill_bytes: rng.one([0, 0, 2_048]),
        spares_max: rng.one([0, 2]),
        limits: buttress_state::Limits {
            request_clients: 64,
            request_results_per_client: rng.one([4, 16, 4096]),
            producers_per_partition: rng.one([8, 1024]),
            ends_per_entry: rng.one([1, 3, 4096]),
            sweep_per_entry: rng.one([1, 5, 4096]),
            ..buttress_state::Limits::default()
        },
        checkpoint_every: rng.one([300 * MS, SEC, 4 * SEC]),
        checkpoint_time: rng.one([(MS, 10 * MS), (20 * MS, 300 * MS)]),
        snapshot_time: rng.one([(2 * MS, 20 * MS), (50 * MS, 600 * MS)]),
        sync_time: rng.one([(100, MS), (MS, 8 * MS), (2 * MS, 40 * MS)]),
        turn_lag: rng.one([0, 100, MS]),
        weather: rng.one([
            Weather::CALM,
            Weather { drop_percent: 1, repeat_percent: 2, delay_us: (200, 10 * MS) },
            Weather { drop_percent: 4, repeat_percent: 10, delay_us: (MS, 40 * MS) },
        ]),
        resend_after: rng.one([150 * MS, 500 * MS]),
        client_patience: rng.one([300 * MS, 900 * MS]),
        client_deadline: rng.one([2 * SEC, 5 * SEC]),
        faults_until: rng.one([8 * SEC, 14 * SEC, 20 * SEC]),
        kinds,
    }
}

fn draw_faults(rng: &mut Rng, settings: &Settings) -> Vec<(Us, Fault)> {
    let mut faults = Vec::new();
    if settings.kinds.is_empty() {
        return faults;
    }
    let pause = rng.one([150 * MS, 500 * MS, 2 * SEC]);
    // The first leaders are given time to appear, mostly.
    let mut at = if rng.percent(80) { 1_500 * MS } else { 0 };
    loop {
        at += rng.range(1, 2 * pause);
        if at >= settings.faults_until {
            return faults;
        }
        let kind = rng.pick(&settings.kinds).expect("there are kinds");
        faults.push((at, draw_fault(rng, kind)));
    }
}

/// What goes wrong between two leaders needs several of them in a row that fall in the middle of their first messages
/// (Ongaro's dissertation, figure 3.7), which no fault at a random time gives. Drawn apart, so that it moves nothing else.
fn short_reigns(rng: &mut Rng, settings: &mut Settings, faults: &mut Vec<(Us, Fault)>) {
    if !rng.percent(25) {
        return;
    }
    settings.kinds.push(Kind::ShortReigns);
    let scripted = rng.percent(60);
    if scripted || rng.percent(50) {
        // One entry per message, so that a log is not caught up in one stroke.
        settings.max_message_bytes = 1;
    }
    for _ in 0..rng.range(1, 2) {
        let at = rng.range(500 * MS, settings.faults_until / 2);
        let within = rng.one([3 * MS, 15 * MS, 60 * MS]);
        let time = rng.range(SEC, settings.faults_until / 2);
        faults.push((at, Fault::ShortReigns { within, time, scripted }));
    }
    faults.sort_by_key(|(at, _)| *at);
}

fn who(rng: &mut Rng) -> Who {
    if rng.percent(50) { Who::Leader(rng.below(u64::from(SHARDS)) as u32) } else { Who::Any(rng.next()) }
}

fn draw_fault(rng: &mut Rng, kind: Kind) -> Fault {
    let down = rng.one([50 * MS, 400 * MS, 2 * SEC]);
    let down = rng.range(down / 4, down);
    let time = rng.one([100 * MS, SEC, 4 * SEC]);
    let time = rng.range(time / 4, time);
    let shard = rng.below(u64::from(SHARDS)) as u32;
    match kind {
        Kind::Crash => Fault::Crash { who: who(rng), down },
        Kind::Kill => Fault::Kill { who: who(rng), down },
        Kind::CrashAll => Fault::CrashAll { down },
        Kind::Pause => Fault::Pause { who: who(rng), time },
        Kind::Split => Fault::Split { mask: rng.next(), one_way: false, time },
        Kind::OneWay => Fault::Split { mask: rng.next(), one_way: true, time },
        Kind::Isolate => {
            let (hears, heard) = rng.one([(false, false), (true, false), (false, true)]);
            Fault::Isolate { who: who(rng), hears, heard, time }
        }
        Kind::Weather => {
            let drop_percent = rng.one([5, 20, 40]);
            let slow = rng.one([5 * MS, 60 * MS, 300 * MS]);
            let repeat_percent = rng.one([0, 20]);
            Fault::Weather { weather: Weather { drop_percent, repeat_percent, delay_us: (200, slow) }, time }
        }
        Kind::ClockJump => {
            let ms = rng.one([50, 2_000, 600_000]);
            let ms = rng.range(1, ms) as i64;
            Fault::ClockJump { who: who(rng), ms: if rng.percent(50) { ms } else { -ms } }
        }
        Kind::ClockDrift => {
            let ppm = rng.one([200, 20_000, 300_000]);
            Fault::ClockDrift { who: who(rng), ppm: rng.range(0, 2 * ppm) as i64 - ppm as i64 }
        }
        Kind::SlowDisk => {
            let extra = rng.one([20 * MS, 200 * MS, 900 * MS]);
            Fault::SlowDisk { who: who(rng), extra, time }
        }
        Kind::BrokenDisk => Fault::BrokenDisk { who: who(rng), after: rng.below(6), down },
        Kind::FullDisk => Fault::FullDisk { who: who(rng), after: rng.below(6), down },
        Kind::Rot | Kind::Misdirected => {
            let damage = match kind {
                Kind::Misdirected => Damage::Misdirected,
                _ => rng.one([Damage::Flip, Damage::Zeros]),
            };
            let times = rng.one([1, 1, 4]);
            Fault::Damage { who: who(rng), damage, times, crash_after: rng.below(SEC), down }
        }
        Kind::Destroy => Fault::Destroy { who: who(rng) },
        Kind::Members => {
            let number = rng.next();
            let wish = match rng.below(5) {
                0 => Wish::Grow,
                1 => Wish::Demote(number),
                2 => Wish::Promote(number),
                3 => Wish::Shrink(number),
                _ => Wish::Swap(number),
            };
            Fault::Members { shard, wish }
        }
        Kind::Transfer => Fault::Transfer { shard, to: rng.next() },
        Kind::Replace => Fault::Replace { who: who(rng) },
        Kind::ShortReigns => unreachable!("short reigns are drawn apart"),
    }
}
