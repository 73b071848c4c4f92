//! What becomes of the n-th request: drawn from the seed and the number alone, so that the same run can be played again.
//!
//! Latencies are log-normal, which is what services' latencies look like, fitted through the two quantiles that people
//! know: the median is e^μ, and σ is what puts the 99th percentile where it was asked for.
//!
//! Source: Box, Muller, "A note on the generation of random normal deviates", 1958.

use std::time::Duration;

use buttress_core::{Code, Error};

/// The 99th percentile of the standard normal distribution.
const Z99: f64 = 2.326_347_874_040_841;
/// A draw far out in the tail must not hang a test run: at most so many times the 99th percentile.
const TAIL_MAX: f64 = 10.0;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    pub p50: Duration,
    pub p99: Duration,
}

impl Latency {
    /// Reads `p50=20ms,p99=2s`; `20ms` alone is both.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut p50, mut p99) = (None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("p50", value)) => p50 = Some(duration(value)?),
                Some(("p99", value)) => p99 = Some(duration(value)?),
                None if !text.contains(',') => p50 = Some(duration(part)?),
                _ => return Err(format!("\"{part}\" is neither p50=… nor p99=…; for example p50=20ms,p99=2s")),
            }
        }
        let p50 = p50.ok_or("p50 is missing; for example p50=20ms,p99=2s")?;
        let p99 = p99.unwrap_or(p50);
        if p99 < p50 {
            return Err(format!("p99 ({p99:?}) is shorter than p50 ({p50:?})"));
        }
        Ok(Self { p50, p99 })
    }

    fn draw(&self, mut uniform: impl FnMut() -> f64) -> Duration {
        let p50 = self.p50.as_secs_f64();
        if p50 == 0.0 || self.p99 == self.p50 {
            return self.p50;
        }
        let sigma = (self.p99.as_secs_f64() / p50).ln() / Z99;
        // 1 - u is never 0.
        let normal = (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        let seconds = (p50 * (sigma * normal).exp()).min(self.p99.as_secs_f64() * TAIL_MAX);
        Duration::from_secs_f64(seconds)
    }
}

/// The last `lasts` of every `every`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Brownout {
    pub lasts: Duration,
    pub every: Duration,
}

impl Brownout {
    /// Reads `10s/60s`.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (lasts, every) = text.split_once('/').ok_or("give how long and how often, for example 10s/60s")?;
        let (lasts, every) = (duration(lasts)?, duration(every)?);
        if lasts.is_zero() || lasts >= every {
            return Err(format!("a brown-out of {lasts:?} does not fit into {every:?}"));
        }
        Ok(Self { lasts, every })
    }

    /// Whether it is one `at` after the start. A run begins healthy.
    pub fn now(&self, at: Duration) -> bool {
        at.as_nanos() % self.every.as_nanos() >= (self.every - self.lasts).as_nanos()
    }
}

/// Reads `30%` or `0.3`.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub fn share(text: &str) -> Result<f64, String> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse::<f64>(),
    };
    let share = share.map_err(|_| format!("\"{text}\" is not a share; for example 30%"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("{text} is not between 0% and 100%")) }
}

/// Reads `250ms`, `1.5s`, `2m`.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("\"{text}\" is not a time; for example 250ms, 1.5s or 2m")),
    };
    let number = number.parse::<f64>().map_err(|_| format!("\"{text}\" is not a time; for example 250ms"))?;
    let seconds = number * scale;
    if (0.0..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("\"{text}\" is longer than a day"))
    }
}

/// How failures look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailWith {
    Status(u16),
    /// The connection is reset instead of answered.
    Reset,
}

impl FailWith {
    /// Reads a status from 400 to 599, or `reset`.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.parse::<u16>() {
            Ok(status) if (400..=599).contains(&status) => Ok(FailWith::Status(status)),
            _ if text == "reset" => Ok(FailWith::Reset),
            _ => Err(format!("\"{text}\" is neither a status from 400 to 599 nor \"reset\"")),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub fail: f64,
    pub fail_with: FailWith,
    pub latency: Latency,
    pub brownout: Option<Brownout>,
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fate {
    pub latency: Duration,
    pub fails: bool,
    pub browned_out: bool,
}

impl Plan {
    /// # Errors
    /// `CONFIG` where the parts do not fit.
    pub fn check(&self) -> Result<(), Error> {
        if self.brownout.is_some_and(|b| b.every < Duration::from_millis(10)) {
            return Err(
                Error::new(Code::CONFIG, "brown-outs come more often than every 10 ms").hint("for example 10s/60s")
            );
        }
        Ok(())
    }

    /// What becomes of request `number`, `at` after the start. In a brown-out every answer takes what the slowest
    /// hundredth takes otherwise, and fails.
    pub fn fate(&self, number: u64, at: Duration) -> Fate {
        let mut state = self.seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mut uniform = || {
            // SplitMix64, as in crates/gateway.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        };
        let fails = uniform() < self.fail;
        let latency = self.latency.draw(&mut uniform);
        match self.brownout.is_some_and(|brownout| brownout.now(at)) {
            true => Fate { latency: self.latency.p99, fails: true, browned_out: true },
            false => Fate { latency, fails, browned_out: false },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn plan(fail: f64) -> Plan {
        let latency = Latency { p50: 20 * MS, p99: 2_000 * MS };
        Plan { fail, fail_with: FailWith::Status(503), latency, brownout: None, seed: 7 }
    }

    #[test]
    fn the_latencies_that_are_drawn_have_the_quantiles_that_were_asked_for() {
        let plan = plan(0.3);
        let fates: Vec<Fate> = (0..20_000).map(|number| plan.fate(number, Duration::ZERO)).collect();
        let mut latencies: Vec<f64> = fates.iter().map(|fate| fate.latency.as_secs_f64() * 1e3).collect();
        latencies.sort_by(f64::total_cmp);
        assert!((18.0..22.0).contains(&latencies[10_000]), "p50 is {}", latencies[10_000]);
        assert!((1_600.0..2_400.0).contains(&latencies[19_800]), "p99 is {}", latencies[19_800]);
        let failed = fates.iter().filter(|fate| fate.fails).count();
        assert!((5_700..6_300).contains(&failed), "{failed} of 20,000 fail");
    }

    #[test]
    fn the_same_seed_plays_the_same_run_and_another_one_another() {
        let run = |plan: Plan| (0..100).map(|number| plan.fate(number, Duration::ZERO)).collect::<Vec<_>>();
        assert_eq!(run(plan(0.3)), run(plan(0.3)));
        assert_ne!(run(plan(0.3)), run(Plan { seed: 8, ..plan(0.3) }));
    }

    #[test]
    fn a_brown_out_is_the_end_of_each_period() {
        let brownout = Brownout::parse("10s/60s").unwrap();
        let at = Duration::from_secs;
        assert_eq!(
            [0, 49, 50, 59, 60, 109, 110].map(|s| brownout.now(at(s))),
            [false, false, true, true, false, false, true]
        );
        let fate = Plan { brownout: Some(brownout), ..plan(0.0) }.fate(1, at(55));
        assert_eq!(fate, Fate { latency: 2_000 * MS, fails: true, browned_out: true });
    }

    #[test]
    fn what_is_typed_is_read_and_mistakes_are_named() {
        assert_eq!(Latency::parse("p50=20ms,p99=2s"), Ok(Latency { p50: 20 * MS, p99: 2_000 * MS }));
        assert_eq!(Latency::parse("5ms"), Ok(Latency { p50: 5 * MS, p99: 5 * MS }));
        for bad in ["p99=2s", "p50=2s,p99=20ms", "p50=20,p99=2s", "p95=1s,p50=1ms", ""] {
            assert!(Latency::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(share("30%"), Ok(0.3));
        assert_eq!(share("0.3"), Ok(0.3));
        for bad in ["130%", "-1", "x", "NaN"] {
            assert!(share(bad).is_err(), "{bad}");
        }
        assert!(Brownout::parse("60s/10s").is_err() && Brownout::parse("10s").is_err());
        assert_eq!(FailWith::parse("reset"), Ok(FailWith::Reset));
        assert!(FailWith::parse("200").is_err());
    }
}
