//! What the whole run says: the history goes to the oracles, and what is left over is compared with what it must be.
//!
//! The same path judges a run and a recorded history, so that a test can show that it finds what it is there to find.

use buttress_core::{LogId, Offset, Revision, Violation};
use buttress_oracle::{History, LogContent, Options, Serial, judge, pipeline};
use serde::Serialize;

use super::clients::{LOCKS, Read};
use buttress_core::KeyRange;

/// One promise that was judged.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    pub id: String,
    pub text: String,
    pub held: bool,
    /// How much was judged, or the counterexample.
    pub detail: String,
}

/// What was read back when everything was over.
#[derive(Clone, Debug, Default)]
pub struct Leftovers {
    pub orders: Option<(LogId, Vec<Read>)>,
    pub shipped: Option<(LogId, Vec<Read>)>,
    pub transactions: Option<(LogId, Vec<Read>)>,
    /// What the function passed on.
    pub relayed: Option<Vec<Read>>,
    /// Where the pipeline's cursor is, and where its state says it is.
    pub cursor: Option<(Offset, Offset)>,
    /// Index and fingerprint of every node, at one moment at which the indexes were equal.
    pub fingerprints: Option<Vec<(String, u64, String)>>,
    /// Terms with two leaders.
    pub double_leaders: Vec<String>,
    pub terms: usize,
    /// Answers that no fault explains.
    pub problems: Vec<String>,
    /// What could not be read back, and why.
    pub missing: Vec<String>,
}

fn content(reads: &[Read]) -> LogContent {
    LogContent { start: Offset(0), records: reads.iter().map(|read| (read.offset, read.serial)).collect() }
}

/// Judges everything.
pub fn check(history: &mut History, left: &Leftovers) -> Vec<Judged> {
    for (log, reads) in [&left.orders, &left.shipped, &left.transactions].into_iter().flatten() {
        history.logs.insert(*log, content(reads));
    }
    let options = Options { locks: Some(KeyRange::prefix(LOCKS)), ..Options::default() };
    let report = judge(history, &options);
    let mut judged = Vec::new();
    let told = report.to_string();
    let mut by_oracle = |ids: &[&str], text: &str| {
        let broken: Vec<String> =
            report.violations.iter().filter(|v| ids.contains(&v.id)).map(ToString::to_string).collect();
        let counted = told.lines().find_map(|line| line.strip_prefix(&format!("{}: ", ids[0]))).unwrap_or("none");
        let detail = if broken.is_empty() { counted.to_owned() } else { broken.join("\n") };
        judged.push(Judged { id: ids[0].into(), text: text.into(), held: broken.is_empty(), detail });
    };
    by_oracle(&["LIN-1"], "the operations on each key are linearizable");
    by_oracle(&["LIN-2", "GUARD-1"], "every revision is exactly one entry, whole; no guard was bypassed");
    by_oracle(
        &["RECORD-1", "OFFSET-1"],
        "every acknowledged record is there exactly once, where it was acknowledged, without gaps",
    );
    by_oracle(&["WATCH-1"], "the watcher saw every change once and in order");
    by_oracle(&["LOCK-1"], "a lock never had two holders by token");
    by_oracle(&["LEASE-3"], "nothing of a lease was seen after its end was acknowledged");
    let known = ["LIN-1", "LIN-2", "GUARD-1", "RECORD-1", "OFFSET-1", "WATCH-1", "LOCK-1", "LEASE-3"];
    for violation in report.violations.iter().filter(|violation| !known.contains(&violation.id)) {
        let text = "an invariant of the oracles".into();
        judged.push(Judged { id: violation.id.into(), text, held: false, detail: violation.to_string() });
    }
    judged.push(pipe(left));
    judged.push(relay(left));
    judged.push(replicas(left));
    judged.push(Judged {
        id: "TERM-1".into(),
        text: "no term had two leaders".into(),
        held: left.double_leaders.is_empty(),
        detail: match left.double_leaders.is_empty() {
            true => format!("{} terms", left.terms),
            false => left.double_leaders.join(", "),
        },
    });
    let unexplained: Vec<&String> = left.problems.iter().chain(&left.missing).collect();
    judged.push(Judged {
        id: "ANSWERS".into(),
        text: "every answer is one that a fault explains, and everything could be read back".into(),
        held: unexplained.is_empty(),
        detail: unexplained.iter().map(|text| text.as_str()).collect::<Vec<_>>().join("\n"),
    });
    judged
}

fn of_pipeline(name: &str, inputs: &[Read], cursor: Offset, state: Offset, outputs: &[Read]) -> Result<(), Violation> {
    let inputs = content(inputs);
    // Outputs by the input that they name.
    let outputs: Vec<Serial> = outputs.iter().map(|output| output.of.unwrap_or(output.serial)).collect();
    let found = pipeline::Pipeline { name, inputs: &inputs, cursor, state: state.0, outputs: &outputs };
    pipeline::check(&found, 0, |state, offset, serial| {
        *state = offset.0 + 1;
        vec![serial]
    })
}

fn verdict(id: &str, text: &str, result: Result<String, String>) -> Judged {
    let held = result.is_ok();
    Judged { id: id.into(), text: text.into(), held, detail: result.unwrap_or_else(|bad| bad) }
}

fn pipe(left: &Leftovers) -> Judged {
    let result = match (&left.orders, &left.shipped, left.cursor) {
        (Some((_, inputs)), Some((_, outputs)), Some((cursor, state))) => {
            of_pipeline("pipeline", inputs, cursor, state, outputs)
                .map(|()| format!("{} of {} inputs taken", cursor.0, inputs.len()))
                .map_err(|violation| violation.to_string())
        }
        _ => Err("it could not be read back".into()),
    };
    verdict("PIPE-1", "the pipeline's cursor, state and outputs moved together", result)
}

fn relay(left: &Leftovers) -> Judged {
    let result = match (&left.orders, &left.relayed) {
        (Some((_, inputs)), Some(outputs)) => {
            let all = Offset(inputs.len() as i64);
            of_pipeline("function", inputs, all, all, outputs)
                .map(|()| {
                    format!(
                        "{} inputs, each passed on once and in order, though it traps on every hundredth",
                        inputs.len()
                    )
                })
                .map_err(|violation| violation.to_string())
        }
        _ => Err("it could not be read back".into()),
    };
    verdict("FN-OUT", "the deployed function's outputs are there exactly once", result)
}

fn replicas(left: &Leftovers) -> Judged {
    let result = match &left.fingerprints {
        Some(prints) if prints.iter().all(|(_, _, print)| *print == prints[0].2) => {
            Ok(format!("{} at index {} on {} nodes", prints[0].2, prints[0].1, prints.len()))
        }
        Some(prints) => Err(prints
            .iter()
            .map(|(name, index, print)| format!("{name}: {print} at index {index}"))
            .collect::<Vec<_>>()
            .join(", ")),
        None => Err("the nodes did not come to the same index".into()),
    };
    verdict("REPLICA-1", "the replicas are identical at equal index", result)
}

/// Attaches what somebody who missed nothing saw of the clients' keys.
pub fn attach_changes(history: &mut History, changes: Vec<buttress_core::ledger::KeyEvent>, end: Revision) {
    history.changes = changes;
    history.changes_end = Some(end);
    history.scope = Some(super::clients::scope());
}
