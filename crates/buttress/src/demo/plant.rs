//! The plant: 10,000 CNC machines whose spindle bearings wear out.
//!
//! **Why a physical model.** A demo that draws anomalies from a dice proves nothing about finding them. Here the label
//! is a hidden physical state, bearing wear beyond the failure limit, which no sensor shows directly. What the sensors
//! show depends on it and on much else: speed, load, imbalance, tool wear, ambient temperature, thermal inertia, noise.
//!
//! **Time.** One reading is one minute of machine time, played faster; sixty readings are an hour at the machine.
//!
//! **Life of a bearing.** *Healthy*: wear creeps. With a small hazard per reading, growing with the cube of the load as
//! in ISO 281, a spall starts: wear grows by a fixed ratio per minute. Beyond [`FAILURE_LIMIT`] the machine is
//! failed: this is the label. Some minutes later maintenance replaces the bearing, and it is healthy again. The
//! plant starts in the stationary state of this process, so the share of failed readings does not depend on how long
//! the run is; it is between 0.5 and 1 %.
//!
//! **Determinism.** A machine's n-th reading depends on seed, machine and n only (and on [`Plant::wear_out`]): each
//! machine has its own generator, and only operations that IEEE 754 rounds exactly are used (no `exp`, no `sin`), so
//! that every platform plays the same plant.

use super::reading::Values;

/// Bearing wear (1.0: seized) beyond which a machine counts as failed.
pub const FAILURE_LIMIT: f32 = 0.8;
/// Hazard per reading that a healthy bearing of a machine at nominal load starts to spall.
const SPALL_HAZARD: f32 = 0.000_52;
/// Wear stops here: the spindle's protection trips.
const WEAR_MAX: f32 = 1.15;
/// First-order thermal response: share of the way to the steady temperature covered in one minute, for tau = 12 min.
const THERMAL_STEP: f32 = 0.08;

/// One reading of one machine, with what only the plant knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub values: Values,
    /// The physical state is beyond the failure limit.
    pub failed: bool,
}

/// The machines.
pub struct Plant {
    machines: Vec<Machine>,
}

impl Plant {
    pub fn new(machines: u32, seed: u64) -> Self {
        Self { machines: (0..machines).map(|number| Machine::new(number, seed)).collect() }
    }

    pub fn len(&self) -> usize {
        self.machines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }

    /// Runs machine `number` for one minute and reads its sensors.
    pub fn read(&mut self, number: u32) -> Sample {
        self.machines[number as usize].read()
    }

    /// Damages the machine's bearing: it will fail within a few readings. Unknown numbers are ignored.
    pub fn wear_out(&mut self, number: u32) {
        if let Some(machine) = self.machines.get_mut(number as usize) {
            machine.wear = machine.wear.max(0.55);
            machine.bearing = Bearing::Spalled { ratio: 1.22, repair_after: 25 };
        }
    }

    /// The hidden wear of a bearing, for tests and for the training data.
    pub fn wear(&self, number: u32) -> f32 {
        self.machines[number as usize].wear
    }
}

/// The name of machine `number`: `m-00042`.
pub fn machine_name(number: u32) -> String {
    format!("m-{number:05}")
}

#[derive(Clone, Copy, Debug)]
enum Bearing {
    Healthy,
    /// Wear grows by `ratio` per reading; once failed, it is replaced after `repair_after` readings.
    Spalled {
        ratio: f32,
        repair_after: u32,
    },
}

struct Machine {
    random: Random,
    // What the machine is.
    load: f32,
    speed_nominal: f32,
    torque_nominal: f32,
    imbalance: f32,
    ambient: f32,
    cycle_length: u32,
    tool_life: f32,
    // What it is at the moment.
    bearing: Bearing,
    wear: f32,
    failed_for: u32,
    temperature: f32,
    tool_wear: f32,
    cycle_at: u32,
}

impl Machine {
    fn new(number: u32, seed: u64) -> Self {
        let mut random = Random::new(seed, u64::from(number));
        let load = random.between(0.7, 1.2);
        let mut machine = Self {
            load,
            speed_nominal: random.between(1_250.0, 2_150.0),
            torque_nominal: 40.0 * load * random.between(0.9, 1.1),
            imbalance: random.between(0.3, 1.4),
            ambient: random.between(19.0, 27.0),
            cycle_length: 4 + random.below(5),
            tool_life: random.between(180.0, 230.0),
            bearing: Bearing::Healthy,
            wear: fresh_wear(&mut random),
            failed_for: 0,
            temperature: 0.0,
            tool_wear: 0.0,
            cycle_at: 0,
            random,
        };
        machine.tool_wear = machine.random.unit() * machine.tool_life;
        machine.cycle_at = machine.random.below(machine.cycle_length);
        // The stationary state: a machine is in a fault with the chance hazard × length of a fault, about 30 readings,
        // at a point of it that is evenly spread.
        if machine.random.unit() < 30.0 * machine.hazard() {
            machine.start_spall();
            for _ in 0..machine.random.below(30) {
                machine.age();
            }
        }
        machine.temperature = machine.steady_temperature(machine.speed_nominal, machine.torque_nominal * 0.7);
        machine
    }

    fn hazard(&self) -> f32 {
        SPALL_HAZARD * self.load * self.load * self.load
    }

    fn start_spall(&mut self) {
        self.wear = self.wear.max(0.42);
        self.bearing =
            Bearing::Spalled { ratio: self.random.between(1.03, 1.07), repair_after: 8 + self.random.below(13) };
    }

    /// One minute of bearing life.
    fn age(&mut self) {
        match self.bearing {
            Bearing::Healthy => {
                self.wear = (self.wear + 0.000_01 * self.load).min(0.62);
                if self.random.unit() < self.hazard() {
                    self.start_spall();
                }
            }
            Bearing::Spalled { ratio, repair_after } => {
                self.wear = (self.wear * ratio).min(WEAR_MAX);
                if self.wear >= FAILURE_LIMIT {
                    self.failed_for += 1;
                }
                if self.failed_for > repair_after {
                    self.bearing = Bearing::Healthy;
                    self.failed_for = 0;
                    self.wear = self.random.between(0.02, 0.1);
                }
            }
        }
    }

    /// Friction of a bearing grows with speed, load and the square of its wear; heat leaves through the housing.
    fn steady_temperature(&self, speed: f32, torque: f32) -> f32 {
        let friction_w = speed / 1_500.0 * (40.0 + 220.0 * self.wear * self.wear) * (0.5 + 0.5 * torque / 40.0);
        self.ambient + 16.0 + 0.18 * friction_w
    }

    fn read(&mut self) -> Sample {
        self.age();
        self.cycle_at = (self.cycle_at + 1) % self.cycle_length;
        // Rough, rough, …, finish, change the part.
        let stage = match self.cycle_length - self.cycle_at {
            1 => 0.12,
            2 => 0.5,
            _ => 1.0,
        };
        self.tool_wear += stage;
        if self.tool_wear > self.tool_life {
            self.tool_wear = 0.0;
        }
        let tool = self.tool_wear / 220.0;
        let torque = self.torque_nominal * stage * (1.0 + 0.18 * tool) * (1.0 + 0.05 * self.random.normal());
        let torque = torque.max(0.5);
        let speed = self.speed_nominal * (1.0 - 0.025 * torque / 40.0) + 9.0 * self.random.normal();
        self.temperature += THERMAL_STEP * (self.steady_temperature(speed, torque) - self.temperature);

        let rotation = speed / 1_500.0;
        let imbalance = self.imbalance * rotation * rotation;
        let bearing = 6.6 * self.wear * self.wear * rotation;
        let chatter = 1.7 * tool * tool * torque / 40.0;
        let vibration = (imbalance * imbalance + bearing * bearing + chatter * chatter + 0.09).sqrt();
        let vibration = (vibration * (1.0 + 0.04 * self.random.normal())).max(0.05);
        let temperature = self.temperature + 0.4 * self.random.normal();

        Sample {
            values: Values {
                temperature: round_to(temperature, 100.0),
                vibration: round_to(vibration, 1_000.0),
                speed: round_to(speed, 1.0),
                torque: round_to(torque, 10.0),
                wear: round_to(self.tool_wear, 10.0),
            },
            failed: self.wear >= FAILURE_LIMIT,
        }
    }
}

/// Bearings in service: most are young, some are old, none is beyond 0.6.
fn fresh_wear(random: &mut Random) -> f32 {
    let u = random.unit();
    0.02 + 0.58 * u * u.sqrt()
}

/// The nearest value with this many parts per unit, as a sensor with a fixed resolution gives it.
fn round_to(value: f32, parts: f64) -> f32 {
    ((f64::from(value) * parts).round() / parts) as f32
}

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state per machine.
struct Random(u64);

impl Random {
    /// Streams of neighbouring machines must not be shifts of each other, so their starting points are mixed twice.
    fn new(seed: u64, stream: u64) -> Self {
        let start = Self(seed).next() ^ Self(!stream).next();
        Self(Self(start).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1), with 24 bits, which an `f32` holds exactly.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 16_777_216.0
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// In `0..end`. The bias of the remainder is below 2^-32 for the small ends used here.
    fn below(&mut self, end: u32) -> u32 {
        (self.next() >> 32) as u32 % end.max(1)
    }

    /// Nearly normal (Irwin–Hall of four), mean 0, deviation 1, never beyond 3.5: exact arithmetic, no logarithm.
    fn normal(&mut self) -> f32 {
        let word = self.next();
        let sum = (0..4).map(|part| ((word >> (16 * part)) & 0xffff) as f32).sum::<f32>() / 65_536.0;
        (sum - 2.0) * 1.732_050_8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(seed: u64, machines: u32, rounds: u32) -> Vec<Sample> {
        let mut plant = Plant::new(machines, seed);
        let mut samples = Vec::new();
        for _ in 0..rounds {
            for machine in 0..machines {
                samples.push(plant.read(machine));
            }
        }
        samples
    }

    #[test]
    fn the_same_seed_plays_the_same_plant_and_another_seed_another() {
        assert_eq!(play(7, 50, 40), play(7, 50, 40));
        assert_ne!(play(7, 50, 40), play(8, 50, 40));
    }

    #[test]
    fn a_machine_does_not_depend_on_the_others_or_on_their_order() {
        let mut alone = Plant::new(10, 3);
        let mut together = Plant::new(10, 3);
        let expected: Vec<_> = (0..30).map(|_| alone.read(4)).collect();
        let got: Vec<_> = (0..30)
            .map(|_| {
                for other in (0..10).rev().filter(|other| *other != 4) {
                    together.read(other);
                }
                together.read(4)
            })
            .collect();
        assert_eq!(expected, got);
    }

    #[test]
    fn between_half_a_percent_and_one_percent_of_the_readings_are_failures_however_long_the_run() {
        for rounds in [5, 60, 200] {
            let samples = play(1, 10_000, rounds);
            let share = samples.iter().filter(|s| s.failed).count() as f64 / samples.len() as f64;
            assert!((0.005..0.010).contains(&share), "{share} after {rounds} rounds");
        }
    }

    #[test]
    fn readings_stay_in_the_range_of_their_sensors() {
        for Sample { values: v, .. } in play(2, 2_000, 100) {
            assert!((15.0..140.0).contains(&v.temperature), "{v:?}");
            assert!((0.05..25.0).contains(&v.vibration), "{v:?}");
            assert!((1_000.0..2_300.0).contains(&v.speed), "{v:?}");
            assert!((0.5..80.0).contains(&v.torque), "{v:?}");
            assert!((0.0..231.0).contains(&v.wear), "{v:?}");
        }
    }

    #[test]
    fn a_machine_that_is_worn_out_on_demand_fails_within_three_readings_and_is_repaired_later() {
        let mut plant = Plant::new(3, 11);
        plant.wear_out(1);
        plant.wear_out(99);
        let failed: Vec<bool> = (0..40).map(|_| plant.read(1).failed).collect();
        assert!(failed[2], "{failed:?}");
        assert!(!failed[39], "{failed:?}");
    }
}
