//! The run in the terminal: one line that is redrawn where there is a terminal, one line in five seconds where there is
//! none, and every event as it happens. Everything goes to standard error; the report is the only thing on standard
//! output.

use std::io::{IsTerminal as _, Write as _};

use super::{
    feed::{ClusterViewed, EventView, Phase, Tick},
    report::grouped,
};

/// Lines without a terminal come this often, in ticks of half a second.
const PLAIN_EVERY: u32 = 10;
const BAR: usize = 6;
const COLUMNS: usize = 79;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not at all.
    Quiet,
    /// As fits where standard error goes, with colour unless `NO_COLOR` is set.
    Auto,
}

pub struct Terminal {
    quiet: bool,
    live: bool,
    color: bool,
    ticks: u32,
    events: usize,
    drawn: bool,
}

impl Terminal {
    pub fn new(progress: Progress) -> Self {
        let live = std::io::stderr().is_terminal();
        let color = live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { quiet: progress == Progress::Quiet, live, color, ticks: 0, events: 0, drawn: false }
    }

    /// Shows what is new.
    pub fn show(&mut self, tick: &Tick, events: &[EventView]) {
        if self.quiet {
            return;
        }
        let mut out = String::new();
        if self.drawn {
            out.push_str("\r\x1b[2K");
            self.drawn = false;
        }
        // Old events leave the feed's ring only after hundreds, so a count is enough.
        for event in events.iter().skip(self.events) {
            out.push_str(&event_line(event, self.color));
            out.push('\n');
        }
        self.events = events.len();
        if self.live {
            out.push_str(&status_line(tick));
            self.drawn = true;
        } else if tick.phase == Phase::Playing && self.ticks.is_multiple_of(PLAIN_EVERY) {
            out.push_str(&status_line(tick));
            out.push('\n');
        }
        self.ticks += 1;
        // Nobody reads it: no reason to stop the run.
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(out.as_bytes()).and_then(|()| stderr.flush());
    }

    /// Removes the line that is redrawn.
    pub fn clear(&mut self) {
        if self.drawn {
            self.drawn = false;
            let _ = std::io::stderr().write_all(b"\r\x1b[2K");
        }
    }
}

fn event_line(event: &EventView, color: bool) -> String {
    let code = match event.kind {
        "kill" | "trap" => "1;31",
        "election" | "caught-up" | "contained" => "32",
        "swap" => "36",
        _ => "0",
    };
    let kind = format!("{:<9}", event.kind);
    let kind = if color { format!("\x1b[{code}m{kind}\x1b[0m") } else { kind };
    format!("{:>7.1} s  {kind}  {}", event.at_s.max(0.0), event.text)
}

/// One line that fits into 79 columns, because a line that wraps cannot be redrawn.
fn status_line(tick: &Tick) -> String {
    let share = if tick.duration_s > 0.0 { (tick.elapsed_s / tick.duration_s).clamp(0.0, 1.0) } else { 0.0 };
    let full = (share * BAR as f64) as usize;
    let line = format!(
        "{:>7.1} s  [{}{}] {:>7}/s in {:>7}/s judged  p99 {:>5} ms  {}",
        tick.elapsed_s,
        "#".repeat(full),
        ".".repeat(BAR - full),
        grouped(tick.rates.acked),
        grouped(tick.rates.verdicts),
        tick.latency_ms.p99.map_or("-".to_owned(), |ms| format!("{ms:.0}")),
        match (tick.phase, &tick.cluster) {
            // None of them leads: each runs the partitions that it holds.
            (Phase::Playing, cluster) if cluster.hosts => {
                let alive = cluster.nodes.iter().filter(|node| node.alive).count();
                format!("{alive} of {} hosts", cluster.nodes.len())
            }
            (Phase::Playing, ClusterViewed { leader: Some(leader), .. }) => format!("{leader} leads"),
            (Phase::Playing, _) => "no leader".to_owned(),
            (phase, _) => phase.text().to_owned(),
        },
    );
    line.chars().take(COLUMNS).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::demo::feed::{Counters, LiveLatency, NodeView, Rates};

    #[test]
    fn a_line_says_where_the_run_is() {
        let tick = Tick {
            phase: Phase::Playing,
            elapsed_s: 30.04,
            duration_s: 60.0,
            rates: Rates { acked: 10_003, verdicts: 9_998, ..Rates::default() },
            counters: Counters { anomalies: 1_234, ..Counters::default() },
            latency_ms: LiveLatency { p50: Some(18.4), p99: Some(61.0), ..LiveLatency::default() },
            cluster: ClusterViewed { leader: Some("node-2".into()), term: 3, ..ClusterViewed::default() },
            ..Tick::default()
        };
        expect!["   30.0 s  [###...]  10,003/s in   9,998/s judged  p99    61 ms  node-2 leads"]
            .assert_eq(&status_line(&tick));
        let host = |alive| NodeView { alive, ..NodeView::default() };
        let nodes = vec![host(true), host(false), host(true)];
        let cluster = ClusterViewed { hosts: true, leader: Some("host-3".into()), nodes, ..ClusterViewed::default() };
        expect!["   30.0 s  [###...]  10,003/s in   9,998/s judged  p99    61 ms  2 of 3 hosts"]
            .assert_eq(&status_line(&Tick { cluster, ..tick.clone() }));
        // The longest that there is fits, and is not cut.
        let busy = Tick {
            elapsed_s: 36_000.0,
            rates: Rates { acked: 100_000, verdicts: 100_000, ..Rates::default() },
            latency_ms: LiveLatency { p99: Some(10_000.0), ..LiveLatency::default() },
            ..tick
        };
        assert!(status_line(&busy).ends_with("  node-2 leads"));
        let event = EventView { at_s: 21.0, kind: "kill", text: "SIGKILL to n1, the leader of term 2".into() };
        expect!["   21.0 s  kill       SIGKILL to n1, the leader of term 2"].assert_eq(&event_line(&event, false));
    }
}
