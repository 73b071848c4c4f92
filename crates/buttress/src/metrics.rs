//! `/metrics`: every part keeps its own figures; here they become one page in Prometheus' text form.

use std::{collections::HashMap, fmt::Write, sync::LazyLock};

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
        let mut plain = String::with_capacity(16 * 1024);
        self.parts.iter().for_each(|part| part(&mut plain));
        helped(&plain, page);
    }
}

/// The reference is also what the page says of its figures, so that there is one sentence for each.
const REFERENCE: &str = include_str!("../../../docs/reference/metrics.md");

static MEANINGS: LazyLock<HashMap<&'static str, String>> = LazyLock::new(|| {
    let mut meanings = HashMap::new();
    for row in REFERENCE.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |")) {
        let (Some((names, _)), Some((_, meaning))) = (row.split_once(" | "), row.rsplit_once(" | ")) else { continue };
        for name in names.split('`').filter(|name| name.starts_with("buttress_") || name.starts_with("process_")) {
            let name = name.split('{').next().unwrap_or(name);
            meanings.insert(name, meaning.replace('`', "").replace('\\', "\\\\"));
        }
    }
    meanings
});

/// Adds what the reference says of a figure where its part says nothing.
fn helped(plain: &str, page: &mut String) {
    let mut said = "";
    for line in plain.lines() {
        if let Some(name) = line.strip_prefix("# HELP ").and_then(|rest| rest.split(' ').next()) {
            said = name;
        } else if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next())
            && name != said
            && let Some(meaning) = MEANINGS.get(name)
        {
            let _ = writeln!(page, "# HELP {name} {meaning}");
        }
        page.push_str(line);
        page.push('\n');
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_of_its_figures_what_the_reference_says() {
        let mut page = String::new();
        helped(
            "# TYPE buttress_wal_commits_total counter\nbuttress_wal_commits_total 1\n# HELP process_open_fds x\n\
             # TYPE process_open_fds gauge\nprocess_open_fds 2\n# TYPE buttress_etcd_calls_total counter\n",
            &mut page,
        );
        expect_test::expect![[r#"
            # HELP buttress_wal_commits_total Writes with their fsync.
            # TYPE buttress_wal_commits_total counter
            buttress_wal_commits_total 1
            # HELP process_open_fds x
            # TYPE process_open_fds gauge
            process_open_fds 2
            # HELP buttress_etcd_calls_total Calls and streams begun, by service (kv, watch, …) and by how they came (grpc, json).
            # TYPE buttress_etcd_calls_total counter
        "#]]
        .assert_eq(&page);
    }
}
