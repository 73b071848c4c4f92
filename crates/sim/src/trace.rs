//! The event log: one line per event, and a rolling hash over all of them.
//!
//! The hash is made from the numbers of an event, not from its text, so that a run that nobody reads formats nothing.
//! A run that failed is simply run again with its lines kept: it is the same run.

use std::{collections::VecDeque, fmt::Write as _};

use crate::rng::{mix, mix_bytes};

/// What is kept of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lines {
    #[default]
    None,
    /// The last so many.
    Last(usize),
    All,
}

#[derive(Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    keep: Lines,
    lines: VecDeque<String>,
}

impl Trace {
    pub fn new(keep: Lines) -> Self {
        Self { hash: 0, events: 0, keep, lines: VecDeque::new() }
    }

    /// Notes an event of a node (zero: of the world). `numbers` must tell apart what can differ between two runs; the text
    /// is for people.
    pub fn event(
        &mut self,
        now_us: u64,
        node: u64,
        kind: &'static str,
        numbers: &[u64],
        text: impl FnOnce() -> String,
    ) {
        self.events += 1;
        let mut hash = mix_bytes(mix(mix(self.hash, now_us), node), kind.as_bytes());
        for number in numbers {
            hash = mix(hash, *number);
        }
        self.hash = hash;
        let limit = match self.keep {
            Lines::None => return,
            Lines::Last(limit) => limit,
            Lines::All => usize::MAX,
        };
        let mut line = String::new();
        let _ = write!(line, "{:>3}.{:06} ", now_us / 1_000_000, now_us % 1_000_000);
        let _ = if node == 0 { write!(line, "  - ") } else { write!(line, "{node:>3} ") };
        let _ = write!(line, "{kind}");
        let text = text();
        if !text.is_empty() {
            let _ = write!(line, " {text}");
        }
        self.lines.push_back(line);
        if self.lines.len() > limit {
            self.lines.pop_front();
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    pub fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }

    pub fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines).into()
    }
}
