//! Records that the target will never get, and why. Loss is never silent: the jump of the position and the gap record
//! are one commit.

use std::fmt::Write as _;

use buttress_core::{Offset, TimeMs};
use buttress_wire::records::Builder;
use bytes::Bytes;

use crate::{lane::Source, position::Lineage};

/// The topic in the target that takes gap records of every uplink.
pub const TOPIC: &str = "buttress.uplink.gaps";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The local topic's retention was faster than the link.
    Retention,
    /// The target does not take a record of this size, and the uplink was told to go on without it.
    TooLarge,
    /// The local batch cannot be read.
    Unreadable,
}

impl Reason {
    pub fn text(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::TooLarge => "too-large",
            Self::Unreadable => "unreadable",
        }
    }
}

/// The records `[from, to)` are not in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub from: Offset,
    pub to: Offset,
    pub reason: Reason,
}

/// A text in JSON.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if (c as u32) < 0x20 => drop(write!(quoted, "\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

impl Gap {
    pub fn count(&self) -> i64 {
        self.to.0 - self.from.0
    }

    /// The gap record's value.
    pub fn json(&self, source: &Source, lineage: Lineage, at: TimeMs) -> String {
        format!(
            "{{\"edge\":{},\"topic\":{},\"partition\":{},\"from\":{},\"to\":{},\"count\":{},\"reason\":\"{}\",\
             \"lineage\":\"{lineage}\",\"at_ms\":{}}}",
            quoted(&source.edge),
            quoted(&source.topic),
            source.partition,
            self.from,
            self.to,
            self.count(),
            self.reason.text(),
            at.0,
        )
    }

    /// A batch with the gap record; its key names the source, so that all gaps of one come in order.
    pub fn batch(&self, source: &Source, lineage: Lineage, at: TimeMs) -> Bytes {
        let mut builder = Builder::new();
        let key = format!("{}/{}/{}", source.edge, source.topic, source.partition);
        let value = self.json(source, lineage, at);
        builder.push(at.0 as i64, Some(key.as_bytes()), Some(value.as_bytes()), &[]);
        builder.build().expect("a record was pushed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_record_says_what_is_missing_and_why() {
        let gap = Gap { from: Offset(5), to: Offset(12), reason: Reason::Retention };
        let source = Source { edge: "press \"7\"".into(), topic: "telemetry".into(), partition: 3 };
        let lineage = Lineage { topic: [1; 16], adopted: 0 };
        expect_test::expect![[r#"{"edge":"press \"7\"","topic":"telemetry","partition":3,"from":5,"to":12,"count":7,"reason":"retention","lineage":"01010101010101010101010101010101.0","at_ms":9}"#]]
            .assert_eq(&gap.json(&source, lineage, TimeMs(9)));
        let view = buttress_wire::records::BatchView::parse(gap.batch(&source, lineage, TimeMs(9))).unwrap();
        assert_eq!(view.records_count(), 1);
    }
}
