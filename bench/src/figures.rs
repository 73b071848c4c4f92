//! What a round measures, and what rounds say together.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::sides::{Side, cpu_seconds};

/// Processor time at the begin of a window.
pub struct Window<'a> {
    side: &'a Side,
    nodes: f64,
    client: f64,
}

impl<'a> Window<'a> {
    pub fn open(side: &'a Side) -> Result<Self> {
        Ok(Self { side, nodes: side.cpu_seconds()?, client: cpu_seconds("self")? })
    }

    /// Processor time of the nodes and of the client since then, in seconds.
    pub fn cpu(&self) -> Result<[f64; 2]> {
        Ok([self.side.cpu_seconds()? - self.nodes, cpu_seconds("self")? - self.client])
    }

    /// `done` operations were completed in `elapsed`, and took these times.
    pub fn close(self, done: u64, elapsed: Duration, micros: Vec<u32>) -> Result<Round> {
        let cpu = self.cpu()?;
        self.close_at(cpu, done, elapsed, micros)
    }

    /// The same where the processor time was read when the window ended.
    pub fn close_at(
        self,
        [nodes_cpu, client_cpu]: [f64; 2],
        done: u64,
        elapsed: Duration,
        micros: Vec<u32>,
    ) -> Result<Round> {
        let resident_mib = self.side.resident_mib()?.iter().sum();
        Ok(Round { done, seconds: elapsed.as_secs_f64(), micros, nodes_cpu, client_cpu, resident_mib })
    }
}

/// One measurement of one side.
pub struct Round {
    pub done: u64,
    pub seconds: f64,
    /// How long each operation took.
    micros: Vec<u32>,
    nodes_cpu: f64,
    client_cpu: f64,
    resident_mib: f64,
}

impl Round {
    pub fn per_second(&self) -> f64 {
        self.done as f64 / self.seconds
    }
}

/// Measures the sides in turn, and who comes first alternates too. Gives the figures of each side that there is.
///
/// # Errors
/// Those of a measurement.
pub async fn alternate<S>(
    rounds: usize,
    sides: &[Option<S>; 2],
    mut measure: impl AsyncFnMut(&S, usize) -> Result<Round>,
) -> Result<[Option<Figures>; 2]> {
    let mut measured = [Vec::new(), Vec::new()];
    for number in 0..rounds {
        for at in if number % 2 == 0 { [0, 1] } else { [1, 0] } {
            if let Some(side) = &sides[at] {
                measured[at].push(measure(side, number).await?);
            }
        }
    }
    Ok(measured.map(|rounds| (!rounds.is_empty()).then(|| Figures::of(rounds))))
}

/// Prints the rows of both sides and their ratio, and gives the same as JSON.
pub fn tell(json: bool, original: &str, figures: &[Option<Figures>; 2], many: &str, one: &str) -> Value {
    let mut told = json!({});
    let row = |row: String| if json { eprintln!("{row}") } else { println!("{row}") };
    for (figures, name) in figures.iter().zip([original, "buttress"]) {
        if let Some(figures) = figures {
            row(figures.row(name));
            told[name] = figures.json(many, one);
        }
    }
    if let [Some(theirs), Some(ours)] = figures {
        row(ours.ratio_row(theirs));
        told["ratio"] = ours.ratio(theirs, many, one);
    }
    told
}

/// All rounds of one side.
#[derive(Clone, Debug)]
pub struct Figures {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Of all nodes, per operation.
    pub cpu_us: f64,
    pub client_cpu_us: f64,
    /// Of all nodes, after the last round.
    pub resident_mib: f64,
}

impl Figures {
    /// The median of the rates; the latencies and the processor time of all operations.
    pub fn of(rounds: Vec<Round>) -> Self {
        let mut rates: Vec<f64> = rounds.iter().map(Round::per_second).collect();
        let done = rounds.iter().map(|round| round.done).sum::<u64>().max(1) as f64;
        let nodes: f64 = rounds.iter().map(|round| round.nodes_cpu).sum();
        let client: f64 = rounds.iter().map(|round| round.client_cpu).sum();
        let resident_mib = rounds.last().map_or(0.0, |round| round.resident_mib);
        let mut micros: Vec<u32> = rounds.into_iter().flat_map(|round| round.micros).collect();
        micros.sort_unstable();
        Self {
            per_second: median(&mut rates),
            p50_ms: quantile(&micros, 0.5),
            p99_ms: quantile(&micros, 0.99),
            cpu_us: nodes / done * 1e6,
            client_cpu_us: client / done * 1e6,
            resident_mib,
        }
    }

    /// As JSON, with names that say what was counted: `puts_per_s`, `cpu_per_put` in microseconds.
    pub fn json(&self, many: &str, one: &str) -> Value {
        json!({
            format!("{many}_per_s"): round(self.per_second, 1),
            "p50": round(self.p50_ms, 3),
            "p99": round(self.p99_ms, 3),
            format!("cpu_per_{one}"): round(self.cpu_us, 2),
            format!("client_cpu_per_{one}"): round(self.client_cpu_us, 2),
            "rss_mib": round(self.resident_mib, 1),
        })
    }

    /// Ours to the other side's.
    pub fn ratio(&self, theirs: &Self, many: &str, one: &str) -> Value {
        json!({
            format!("{many}_per_s"): round(self.per_second / theirs.per_second, 2),
            "p50": round(self.p50_ms / theirs.p50_ms, 2),
            "p99": round(self.p99_ms / theirs.p99_ms, 2),
            format!("cpu_per_{one}"): round(self.cpu_us / theirs.cpu_us, 2),
            "rss": round(self.resident_mib / theirs.resident_mib, 2),
        })
    }

    /// A line for people.
    pub fn row(&self, name: &str) -> String {
        format!(
            "  {name:<16}{:>12.0}/s   p50 {:>8.2} ms   p99 {:>8.2} ms   cpu {:>8.1} µs   client's {:>7.1} µs   resident {:>6.0} MiB",
            self.per_second, self.p50_ms, self.p99_ms, self.cpu_us, self.client_cpu_us, self.resident_mib
        )
    }

    pub fn ratio_row(&self, theirs: &Self) -> String {
        format!(
            "  {:<16}{:>12.2}x    p50 {:>8.2}      p99 {:>8.2}      cpu {:>8.2}      {:>19} resident {:>6.2}",
            "ratio",
            self.per_second / theirs.per_second,
            self.p50_ms / theirs.p50_ms,
            self.p99_ms / theirs.p99_ms,
            self.cpu_us / theirs.cpu_us,
            "",
            self.resident_mib / theirs.resident_mib
        )
    }
}

pub fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Of sorted microseconds, in milliseconds.
fn quantile(micros: &[u32], q: f64) -> f64 {
    let at = ((micros.len() as f64 * q) as usize).min(micros.len().saturating_sub(1));
    micros.get(at).map_or(0.0, |us| f64::from(*us) / 1e3)
}

/// Bytes that do not compress, the same each time for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&dice.next().to_le_bytes());
    }
    out.truncate(len);
    out
}

/// A small generator of numbers (xorshift64), so that both sides meet the same ones.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(2 * seed + 1))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
