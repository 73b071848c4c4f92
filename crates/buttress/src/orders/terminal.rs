//! The run in the terminal, on standard error: a line for each event, and one that is redrawn where there is a terminal,
//! or one in five seconds where there is none.

use std::io::{IsTerminal as _, Write as _};

use super::{
    feed::{EventView, Phase, Snapshot},
    shape::Side,
};

const PLAIN_EVERY: u32 = 10;
const COLUMNS: usize = 79;

pub struct Terminal {
    live: bool,
    color: bool,
    rounds: u32,
    events: usize,
    drawn: bool,
}

impl Terminal {
    pub(super) fn new() -> Self {
        let live = std::io::stderr().is_terminal();
        let color = live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { live, color, rounds: 0, events: 0, drawn: false }
    }

    pub fn show(&mut self, snapshot: &Snapshot) {
        let mut out = String::new();
        if self.drawn {
            out.push_str("\r\x1b[2K");
            self.drawn = false;
        }
        for event in snapshot.events.iter().skip(self.events) {
            out.push_str(&event_line(event, self.color));
            out.push('\n');
        }
        self.events = snapshot.events.len();
        let running = matches!(snapshot.phase, Phase::Playing | Phase::Draining | Phase::Checking);
        if running && self.live {
            out.push_str(&status_line(snapshot));
            self.drawn = true;
        } else if running && self.rounds.is_multiple_of(PLAIN_EVERY) {
            out.push_str(&status_line(snapshot));
            out.push('\n');
        }
        self.rounds += 1;
        // Nobody reads it: no reason to stop the run.
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(out.as_bytes()).and_then(|()| stderr.flush());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.drawn {
            let _ = std::io::stderr().write_all(b"\r\x1b[2K");
        }
    }
}

fn event_line(event: &EventView, color: bool) -> String {
    let code = match event.kind {
        "kill" => "1;31",
        "flaky" | "slow" => "33",
        "well" | "restart" | "done" => "32",
        _ => "0",
    };
    let kind = format!("{:<9}", event.kind);
    let kind = if color { format!("\x1b[{code}m{kind}\x1b[0m") } else { kind };
    format!("{:>7.1} s  {kind}{}", event.at_s, event.text)
}

/// One line that fits into 79 columns, because a line that wraps cannot be redrawn.
fn status_line(snapshot: &Snapshot) -> String {
    let side = |side: Side| {
        let view = snapshot.sides.get(&side).cloned().unwrap_or_default();
        let amplification = view.attempts as f64 / view.calls.max(1) as f64;
        format!("{} {:>6.1}/s {:>4} open {amplification:>6.2}x", side.word(), view.goodput, view.open)
    };
    let line = format!("{:>7.1} s  {}   {}", snapshot.elapsed_s, side(Side::Without), side(Side::With));
    line.chars().take(COLUMNS).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::expect;

    use super::*;
    use crate::orders::feed::SideView;

    #[test]
    fn a_line_says_how_both_sides_do() {
        let side = |goodput, open, attempts| SideView { goodput, open, attempts, calls: 100, ..SideView::default() };
        let sides = BTreeMap::from([(Side::Without, side(2.04, 181, 312)), (Side::With, side(19.6, 12, 104))]);
        let snapshot = Snapshot { phase: Phase::Playing, elapsed_s: 30.04, sides, ..Snapshot::default() };
        expect!["   30.0 s  without    2.0/s  181 open   3.12x   with   19.6/s   12 open   1.04x"]
            .assert_eq(&status_line(&snapshot));
        let event = EventView { at_s: 21.0, kind: "slow", text: "inventory takes ten times as long".into() };
        expect!["   21.0 s  slow     inventory takes ten times as long"].assert_eq(&event_line(&event, false));
    }
}
