//! The recorder: what is counted is the order of calls and answers, not the clock.

use buttress_core::{KeyRange, Put, Receipt, Revision, receipt::AppendOutcome};
use buttress_oracle::{Appended, Commit, Done, History, Options, Outcome, What, judge};
use bytes::Bytes;

fn put(key: &'static str, value: &'static str) -> What {
    let value = Some(Bytes::from_static(value.as_bytes()));
    What::Commit(Commit { puts: vec![Put { key: key.into(), value, lease: None }], ..Commit::default() })
}

fn read(key: &'static str) -> What {
    What::Read { range: KeyRange::key(key), at: None, linearizable: true }
}

fn done(revision: u64) -> Outcome {
    Outcome::Done(Done { revision: Some(Revision(revision)), offsets: Vec::new() })
}

#[test]
fn operations_within_one_microsecond_keep_their_order() {
    let mut history = History::new();
    let write = history.invoke(1, 7, put("a", "1"));
    history.complete(write, 7, done(2));
    let stale = history.invoke(2, 7, read("a"));
    history.complete(stale, 7, Outcome::Found(buttress_core::ledger::KeyValues::default()));
    assert!(history.get(write).precedes(history.get(stale)));
    let report = judge(&history, &Options::default());
    assert_eq!(report.violations.iter().map(|violation| violation.id).collect::<Vec<_>>(), ["LIN-1", "LIN-2"]);
    // By their times alone they were concurrent, and then nothing is wrong.
    let again = History::of(history.operations().to_vec());
    assert!(!again.operations()[0].precedes(&again.operations()[1]));
    assert!(judge(&again, &Options::default()).ok());
}

#[test]
fn what_is_not_known_precedes_nothing_and_what_failed_is_nothing() {
    let mut history = History::new();
    let unknown = history.invoke(1, 1, put("a", "1"));
    history.complete(unknown, 2, Outcome::Unknown);
    let failed = history.invoke(1, 3, put("a", "2"));
    history.complete(failed, 4, Outcome::Failed);
    let empty = history.invoke(2, 5, read("a"));
    let nothing = buttress_core::ledger::KeyValues { revision: Revision(1), ..Default::default() };
    history.complete(empty, 6, Outcome::Found(nothing));
    assert!(!history.get(unknown).precedes(history.get(empty)));
    assert!(history.get(failed).precedes(history.get(empty)));
    assert!(judge(&history, &Options::default()).ok());
}

#[test]
#[should_panic(expected = "is answered twice")]
fn an_operation_is_answered_once() {
    let mut history = History::new();
    let write = history.invoke(1, 1, put("a", "1"));
    history.complete(write, 2, done(2));
    history.complete(write, 3, done(3));
}

#[test]
#[should_panic(expected = "is no answer to")]
fn a_commit_is_not_answered_with_keys() {
    let mut history = History::new();
    let write = history.invoke(1, 1, put("a", "1"));
    history.complete(write, 2, Outcome::Found(buttress_core::ledger::KeyValues::default()));
}

#[test]
fn a_receipt_tells_where_its_records_lie() {
    use buttress_core::Offset;
    let receipt = Receipt {
        revision: Revision(4),
        appends: vec![
            AppendOutcome::Appended { base_offset: Offset(5) },
            AppendOutcome::Duplicate { base_offset: Some(Offset(3)) },
            AppendOutcome::Duplicate { base_offset: None },
            AppendOutcome::Gap { expected: 7 },
            AppendOutcome::StaleEpoch { current: 1 },
            AppendOutcome::UnknownLog,
        ],
        ..Receipt::default()
    };
    let offsets = vec![
        Appended::At(Offset(5)),
        Appended::At(Offset(3)),
        Appended::Before,
        Appended::Not,
        Appended::Not,
        Appended::Not,
    ];
    assert_eq!(Done::from(&receipt), Done { revision: Some(Revision(4)), offsets });
}

#[test]
fn a_text_that_is_no_history_is_refused_with_its_line() {
    for (line, why) in [
        ("1 10..20 put a -> done 2", "no part of a commit starts so"),
        ("1 20..10 put a 1 -> done 2", "an answer comes after its call"),
        ("1 10..20 put a\\x1 1 -> done 2", "an escape is wrong"),
        ("1 10..20 read a -> seen 2", "no outcome is called so"),
        ("x 10..20 read a -> unknown", "a number is wrong"),
        ("watch w a..c from 2: ended", "a watch ends `lost`, `upto REVISION` or `compacted REVISION`"),
        ("log 1", "a log has a colon"),
        ("change a=1", "a change has its revision"),
    ] {
        let error = line.parse::<History>().unwrap_err();
        assert_eq!((error.line.as_str(), error.why), (line, why));
    }
}
