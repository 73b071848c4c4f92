//! The text form that Prometheus scrapes.

use std::fmt::Write;

use crate::wal::Histogram;

/// Appends a histogram, in seconds.
pub fn render_histogram(name: &str, help: &str, histogram: &Histogram, out: &mut String) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
    let mut count = 0;
    for (bound_us, below) in histogram.cumulative() {
        count = below;
        match bound_us {
            u64::MAX => {
                let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {below}");
            }
            us => {
                let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {below}", us as f64 / 1e6);
            }
        }
    }
    let _ = writeln!(out, "{name}_sum {}\n{name}_count {count}", histogram.sum_us() as f64 / 1e6);
}

/// Appends one gauge or counter.
pub fn render_value(name: &str, kind: &str, help: &str, value: impl std::fmt::Display, out: &mut String) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_the_last_is_infinite() {
        let h = Histogram::default();
        [50, 100, 101, 20_000_000].into_iter().for_each(|us| h.record_us(us));
        let mut out = String::new();
        render_histogram("x_seconds", "x", &h, &mut out);
        assert!(out.contains("x_seconds_bucket{le=\"0.000128\"} 3\n"), "{out}");
        assert!(out.contains("x_seconds_bucket{le=\"+Inf\"} 4\n"), "{out}");
        assert!(out.ends_with("x_seconds_count 4\n"), "{out}");
    }
}
