//! Runs `testdata/*.txt`: a history, `----`, and the verdict. `UPDATE_EXPECT=1` rewrites the verdicts.
//!
//! A case may begin with `locks FROM..TO`, which says which keys are locks, and with `pipeline INPUT OUTPUT CURSOR SUM`: of
//! a function that adds up the serials it reads and writes, for each of them, ten times its serial plus the number of
//! records so far.
//!
//! Every history is also written as text and read again, and judged a second time without its list of changes: knowing
//! less, an oracle may find less, but never something that is not there.

use std::{fmt::Write as _, fs, path::Path};

use buttress_core::{KeyRange, LogId, Offset};
use buttress_oracle::{History, Options, Serial, judge, pipeline};
use expect_test::expect_file;

fn verdict(case: &str) -> String {
    let mut options = Options::default();
    let mut pipelines = Vec::new();
    let mut text = String::new();
    for line in case.lines() {
        if let Some(range) = line.strip_prefix("locks ") {
            let (from, to) = range.split_once("..").expect("locks are a range");
            options.locks = Some(KeyRange { from: from.to_owned().into(), to: Some(to.to_owned().into()) });
        } else if let Some(words) = line.strip_prefix("pipeline ") {
            pipelines.push(words.split(' ').map(|word| word.parse().expect("a number")).collect::<Vec<i64>>());
        } else {
            let _ = writeln!(text, "{line}");
        }
    }
    let history: History = match text.parse() {
        Ok(history) => history,
        Err(error) => return format!("{error}\n"),
    };
    let again: History = history.to_string().parse().expect("what was written can be read");
    assert_eq!(again, history, "{history}");

    let report = judge(&history, &options);
    let mut verdict = report.to_string();
    for words in pipelines {
        let [input, output, cursor, sum] = words[..] else { panic!("a pipeline has four numbers") };
        let outputs: Vec<Serial> =
            history.logs[&LogId(output as u32)].records.iter().map(|(_, serial)| *serial).collect();
        let found = pipeline::Pipeline {
            name: "adder",
            inputs: &history.logs[&LogId(input as u32)],
            cursor: Offset(cursor),
            state: (sum as u64, history.logs[&LogId(input as u32)].records.len().min(cursor as usize) as u64),
            outputs: &outputs,
        };
        let judged = pipeline::check(&found, (0, 0), |(sum, count), _, serial| {
            *sum += serial.0;
            *count += 1;
            vec![Serial(serial.0 * 10 + *count)]
        });
        match judged {
            Ok(()) => verdict.push_str("PIPE-1: cursor, state and outputs belong together\n"),
            Err(violation) => {
                let _ = writeln!(verdict, "{violation}");
            }
        }
    }
    if history.changes_end.is_some() {
        let mut less = history.clone();
        (less.changes, less.changes_end) = (Vec::new(), None);
        let less = judge(&less, &options);
        for violation in &less.violations {
            assert!(!report.ok(), "knowing less, it finds {violation}");
        }
        if !report.ok() {
            let ids: Vec<&str> = less.violations.iter().map(|violation| violation.id).collect();
            let _ = writeln!(
                verdict,
                "without the changes: {}",
                if ids.is_empty() { "nothing".into() } else { ids.join(" ") }
            );
        }
    }
    if verdict.is_empty() { "nothing to judge\n".into() } else { verdict }
}

fn run(file: &Path) {
    let text = fs::read_to_string(file).expect("the transcript can be read");
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    while lines.peek().is_some() {
        let mut case = String::new();
        for line in lines.by_ref().take_while(|line| *line != "----") {
            let _ = writeln!(case, "{line}");
        }
        if case.trim().is_empty() {
            break;
        }
        // The old verdict, up to the empty line.
        lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
        let _ = write!(out, "{case}----\n{}\n", verdict(&case));
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    expect_file![file].assert_eq(&out);
}

#[test]
fn transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("it can be read").path()).collect();
    files.sort();
    assert!(files.len() >= 7, "{files:?}");
    files.iter().for_each(|file| run(file));
}
