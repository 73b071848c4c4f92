//! The run in the terminal: events as they happen, and one line that is redrawn where there is a terminal. All of it goes to
//! standard error; the report alone is on standard output.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::Mutex,
    time::Duration,
};

const BAR: usize = 12;
/// A line that wraps cannot be redrawn.
const COLUMNS: usize = 79;

pub struct Terminal {
    live: bool,
    color: bool,
    drawn: Mutex<bool>,
}

/// What the redrawn line tells.
pub struct Now {
    pub elapsed: Duration,
    pub whole: Duration,
    pub operations: usize,
    pub per_second: u64,
    pub p99_ms: Option<f64>,
    pub doing: String,
}

impl Default for Terminal {
    fn default() -> Self {
        let live = std::io::stderr().is_terminal();
        let color = live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { live, color, drawn: Mutex::new(false) }
    }
}

impl Terminal {
    fn write(&self, text: &str, redrawn: bool) {
        let mut drawn = self.drawn.lock().expect("no holder panics");
        let mut out = std::io::stderr().lock();
        let clear = if *drawn { "\r\x1b[2K" } else { "" };
        *drawn = redrawn;
        // Nobody reads it: no reason to stop the run.
        let _ = write!(out, "{clear}{text}").and_then(|()| out.flush());
    }

    pub fn event(&self, at: Duration, kind: &str, text: &str) {
        self.write(&format!("{}\n", event_line(at, kind, text, self.color)), false);
    }

    pub fn line(&self, text: &str) {
        self.write(&format!("{text}\n"), false);
    }

    pub fn now(&self, now: &Now) {
        if self.live {
            self.write(&now_line(now), true);
        }
    }

    pub fn clear(&self) {
        self.write("", false);
    }
}

fn event_line(at: Duration, kind: &str, text: &str, color: bool) -> String {
    let code = match kind {
        "kill" | "cut" | "full" | "pause" | "delay" | "broken" => "1;31",
        "election" | "caught-up" | "heal" | "resume" | "held" => "32",
        "expect" => "36",
        _ => "0",
    };
    let padded = format!("{kind:<9}");
    let kind = if color { format!("\x1b[{code}m{padded}\x1b[0m") } else { padded };
    format!("{:>7.1} s  {kind}  {text}", at.as_secs_f64())
}

fn now_line(now: &Now) -> String {
    let share = (now.elapsed.as_secs_f64() / now.whole.as_secs_f64().max(0.001)).clamp(0.0, 1.0);
    let full = (share * BAR as f64) as usize;
    let line = format!(
        "{:>7.1} s  [{}{}] {:>4}/s  p99 {:>5} ms  {:>7} operations  {}",
        now.elapsed.as_secs_f64(),
        "#".repeat(full),
        ".".repeat(BAR - full),
        now.per_second,
        now.p99_ms.map_or("-".into(), |ms| format!("{ms:.0}")),
        now.operations,
        now.doing,
    );
    line.chars().take(COLUMNS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_the_run_is() {
        let now = Now {
            elapsed: Duration::from_millis(30_040),
            whole: Duration::from_secs(60),
            operations: 6_123,
            per_second: 187,
            p99_ms: Some(12.4),
            doing: "kill-leader: node-2".into(),
        };
        assert_eq!(now_line(&now), "   30.0 s  [######......]  187/s  p99    12 ms     6123 operations  kill-leader");
        assert_eq!(event_line(now.elapsed, "kill", "SIGKILL to n1", false), "   30.0 s  kill       SIGKILL to n1");
    }
}
