//! What was found in files, and how it is told: as a good compiler does, with the line and a caret.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::document::Mark;

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// As it is told.
    pub file: String,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warning,
    Note,
}

impl Level {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }

    /// ANSI: bold red, yellow, cyan.
    const fn colour(self) -> &'static str {
        match self {
            Self::Error => "\x1b[1;31m",
            Self::Warning => "\x1b[1;33m",
            Self::Note => "\x1b[1;36m",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub level: Level,
    /// `BT1003`, or `BT-LINT-…` of a lint.
    pub code: &'static str,
    pub file: String,
    pub mark: Mark,
    /// Lower case, no full stop, the offending value quoted.
    pub says: String,
    /// What would be right; may be empty.
    pub hint: String,
}

impl Finding {
    pub fn json(&self) -> Value {
        json!({
            "level": self.level.name(), "code": self.code, "file": self.file, "line": self.mark.line,
            "column": self.mark.column, "message": self.says, "hint": self.hint,
        })
    }

    /// On one line, as editors and terminals find places: `FILE:LINE:COLUMN: error[CODE]: …`.
    pub fn line(&self) -> String {
        let Self { level, code, file, mark, says, .. } = self;
        format!("{file}:{}:{}: {}[{code}]: {says}", mark.line, mark.column, level.name())
    }
}

/// Characters of a line that are shown; more would wrap.
const SHOWN_MAX: usize = 160;

/// All findings with their lines, one empty line after each.
pub fn render(findings: &[Finding], sources: &[Source], colours: bool) -> String {
    let paint = |colour: &'static str| if colours { colour } else { "" };
    let (off, blue, bold) = (paint("\x1b[0m"), paint("\x1b[1;34m"), paint("\x1b[1m"));
    let mut out = String::new();
    for Finding { level, code, file, mark, says, hint } in findings {
        let colour = paint(level.colour());
        let width = mark.line.to_string().len();
        let gap = " ".repeat(width);
        let _ = writeln!(out, "{colour}{}[{code}]{off}{bold}: {says}{off}", level.name());
        let _ = writeln!(out, "{gap}{blue}-->{off} {file}:{}:{}", mark.line, mark.column);
        let line = sources
            .iter()
            .find(|source| source.file == *file)
            .and_then(|source| source.text.split('\n').nth(mark.line.saturating_sub(1) as usize));
        if let Some(line) = line {
            // A control character would move the caret, or do worse to a terminal.
            let shown: String = line
                .trim_end_matches('\r')
                .chars()
                .take(SHOWN_MAX)
                .map(|c| {
                    if c == '\t' {
                        ' '
                    } else if c.is_control() {
                        '\u{fffd}'
                    } else {
                        c
                    }
                })
                .collect();
            let before = (mark.column.saturating_sub(1) as usize).min(shown.chars().count());
            let room = shown.chars().count().saturating_sub(before).max(1);
            let carets = "^".repeat((mark.length as usize).clamp(1, room));
            let _ = writeln!(out, "{gap} {blue}|{off}");
            let _ = writeln!(out, "{blue}{} |{off} {shown}", mark.line);
            let _ = writeln!(out, "{gap} {blue}|{off} {}{colour}{carets}{off}", " ".repeat(before));
        }
        if !hint.is_empty() {
            let _ = writeln!(out, "{gap} {blue}={off} {bold}help{off}: {hint}");
        }
        out.push('\n');
    }
    out
}
