//! `/metrics`: every part keeps its own figures; here they become one page in Prometheus' text form.

use std::fmt::Write;

use buttress_events::kafka;

type Part = Box<dyn Fn(&mut String) + Send + Sync>;

/// Parts that can print their figures, in the order of the page.
#[derive(Default)]
pub struct Metrics {
    parts: Vec<Part>,
}

impl Metrics {
    pub fn add(&mut self, part: impl Fn(&mut String) + Send + Sync + 'static) {
        self.parts.push(Box::new(part));
    }

    pub fn render(&self) -> String {
        let mut page = String::with_capacity(16 * 1024);
        self.render_into(&mut page);
        page
    }

    pub fn render_into(&self, page: &mut String) {
        self.parts.iter().for_each(|part| part(page));
    }
}

/// The Kafka edge's samples, grouped by name as the text form wants it.
pub fn render_kafka(counters: &kafka::Counters, out: &mut String) {
    let mut last = "";
    for sample in counters.samples() {
        if sample.name != last {
            let _ = writeln!(out, "# TYPE {} counter", sample.name);
            last = sample.name;
        }
        let label = sample.label.map(|(key, value)| format!("{{{key}=\"{value}\"}}")).unwrap_or_default();
        let _ = writeln!(out, "{}{label} {}", sample.name, sample.value);
    }
}

/// What Linux knows of this process: resident memory and processor time.
pub fn process_metrics(out: &mut String) {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return };
    let kib = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    if let Some(resident) = kib("VmRSS:") {
        let _ = writeln!(
            out,
            "# HELP process_resident_memory_bytes Resident memory of this process.\n\
             # TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {}",
            resident * 1024
        );
    }
    if let Some(ticks) = processor_ticks() {
        // Linux counts in hundredths of a second for every architecture it tells programs about.
        let _ = writeln!(
            out,
            "# HELP process_cpu_seconds_total Processor time of this process.\n\
             # TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {}",
            ticks as f64 / 100.0
        );
    }
}

fn processor_ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold spaces; the fields after it do not.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}
