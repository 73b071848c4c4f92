//! What the whole run says: the history goes to the oracles, and what is left over is compared with what it must be.
//!
//! The same path judges a run and a recorded history, so that a test can show that it finds what it is there to find.

use buttress_core::{KeyRange, LogId, Offset, Revision, Violation, ledger::KeyEvent};
use buttress_oracle::{History, LogContent, Options, Serial, Watcher, judge, pipeline};
use serde::Serialize;

use super::{
    clients::{LOCKS, Read},
    etcd,
    groups::{self, Noted},
    kafka,
};

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
    /// What Kafka's clients have left.
    pub kafka: Option<kafka::Left>,
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

/// What the oracle of one invariant says.
fn promise(history: &History, id: &str, text: &str) -> Judged {
    let report = judge(history, &Options::default());
    let broken: Vec<String> = report.violations.iter().filter(|v| v.id == id).map(ToString::to_string).collect();
    let told = report.to_string();
    let counted = told.lines().find_map(|line| line.strip_prefix(&format!("{id}: "))).unwrap_or("none");
    let detail = if broken.is_empty() { counted.to_owned() } else { broken.join("\n") };
    Judged { id: id.into(), text: text.into(), held: broken.is_empty(), detail }
}

/// Judges what the clients of etcd did.
pub fn check_etcd(history: &History) -> Vec<Judged> {
    let report = judge(history, &Options::default());
    let mut judged = vec![
        promise(
            history,
            "TXN-1",
            "etcd: every transaction went the way that its compares say, whole, and saw what was there",
        ),
        promise(history, "LEASE-3", "etcd: nothing of a lease was seen after its end was acknowledged"),
    ];
    let known = judged.len();
    for violation in &report.violations {
        if !judged[..known].iter().any(|one| one.id == violation.id) {
            let text = "etcd: an invariant of the oracles".into();
            judged.push(Judged { id: violation.id.into(), text, held: false, detail: violation.to_string() });
        }
    }
    judged
}

/// Judges what Kafka's producers and the members of their group did.
pub fn check_kafka(
    history: &mut History,
    group: &[Noted],
    parcels: &[LogId],
    left: Option<&kafka::Left>,
) -> Vec<Judged> {
    if let Some(left) = left {
        history.logs.extend(parcels.iter().zip(&left.parcels).map(|(log, reads)| (*log, content(reads))));
    }
    let report = judge(history, &Options::default());
    let text = "kafka: every acknowledged record of an idempotent producer is there exactly once, in its order";
    let mut judged = vec![promise(history, "RECORD-1", text)];
    for violation in report.violations.iter().filter(|violation| violation.id != "RECORD-1") {
        let text = "kafka: an invariant of the oracles".into();
        judged.push(Judged { id: violation.id.into(), text, held: false, detail: violation.to_string() });
    }
    let offsets = groups::check_offsets(group, parcels.len()).map_err(|violation| violation.to_string());
    let text = "kafka: a group's offsets never went back, and a fenced generation moved nothing";
    judged.push(verdict("GROUP-1", text, offsets));
    let delivered = match left {
        Some(left) => groups::check_delivery(group, left),
        None => Err("it could not be read back".into()),
    };
    let text = "kafka: every record was delivered to the group, in the order of its partition";
    judged.push(verdict("GROUP-OUT", text, delivered));
    judged
}

/// Judges what the watchers saw of all clients' keys, against what somebody who missed nothing saw.
pub fn check_watchers(changes: Option<&(Vec<KeyEvent>, Revision)>, watchers: Vec<Watcher>) -> Judged {
    let mut history = History::default();
    history.watchers = watchers;
    if let Some((changes, end)) = changes {
        history.changes = changes.clone();
        history.changes_end = Some(*end);
        history.scope = Some(super::clients::scope());
    }
    promise(&history, "WATCH-1", "the watchers, over HTTP and over etcd's protocol, saw every change once and in order")
}

/// Attaches what somebody who missed nothing saw of the keys of etcd's clients, or of all others.
pub fn attach_changes(history: &mut History, over_etcd: bool, (changes, end): &(Vec<KeyEvent>, Revision)) {
    let ours = |event: &&KeyEvent| event.key.starts_with(etcd::KEYS.as_bytes()) == over_etcd;
    history.changes = changes.iter().filter(ours).cloned().collect();
    history.changes_end = Some(*end);
    history.scope = Some(if over_etcd { KeyRange::prefix(etcd::KEYS) } else { super::clients::scope() });
}

#[cfg(test)]
mod tests {
    use buttress_core::{OpResult, PutOp, Txn, TxnOp, TxnResult};
    use buttress_oracle::{Outcome, Session, SessionEnd, What};
    use bytes::Bytes;

    use super::*;
    use crate::chaos::record::Recorder;

    #[test]
    fn what_the_clients_of_etcd_were_told_and_is_not_there_is_found() {
        let key = Bytes::from_static(b"chaos/e/0/1");
        let recorder = Recorder::default();
        let put = PutOp { key: key.clone(), value: Bytes::from_static(b"5"), ..PutOp::default() };
        let txn = Txn { success: vec![TxnOp::Put(put)], ..Txn::default() };
        let op = recorder.invoke(50, What::Txn { txn, linearizable: true });
        let results = vec![OpResult::Put { revision: Revision(2), prev: None }];
        let result = TxnResult { succeeded: true, results };
        recorder.complete(op, Outcome::Transacted { revision: Revision(2), result });
        let (history, _, _) = recorder.take();
        let change = KeyEvent { revision: Revision(2), key, value: Some(Bytes::from_static(b"5")) };
        let session = |events| Session { from: Revision(2), events, end: SessionEnd::UpTo(Revision(3)) };
        for (changes, seen, broken) in [
            (vec![change.clone()], vec![change.clone()], None),
            (vec![], vec![], Some("LIN-2")),
            (vec![change.clone()], vec![], Some("WATCH-1")),
        ] {
            let (mut history, changes) = (history.clone(), (changes, Revision(2)));
            attach_changes(&mut history, true, &changes);
            let mut judged = check_etcd(&history);
            let sessions = vec![session(seen)];
            let watcher = Watcher { name: "watcher".into(), range: crate::chaos::clients::scope(), sessions };
            judged.push(check_watchers(Some(&changes), vec![watcher]));
            let first = judged.iter().find(|promise| !promise.held).map(|promise| promise.id.as_str());
            assert_eq!(first, broken, "{judged:?}");
        }
    }
}
