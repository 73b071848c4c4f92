//! `testdata/*.txt`: what happens to a coordinator, line by line, and what it does. `UPDATE_EXPECT=1` rewrites them.
//!
//! `run` lets it write and call until it waits; `done`, `refused WHY`, `failed WHY` answer the call that it waits for; `at MS`
//! sets the clock; `crash` forgets everything but the journal; `late STEP act|undo ATTEMPT` answers a call of before with
//! done.

use std::{fmt::Write, path::Path};

use buttress_saga::{Call, Next, Record, Reply, Saga, decode, encode};
use expect_test::expect_file;
use serde_json::json;

use super::order;

struct Coordinator {
    saga: Saga,
    journal: Vec<Record>,
    now_ms: u64,
    waits: Option<Call>,
    out: String,
}

impl Coordinator {
    fn write(&mut self, records: &[Record]) {
        for record in records {
            let line = encode(std::slice::from_ref(record));
            let _ = write!(self.out, "  writes {line}");
            self.saga.apply(&order(), record).unwrap();
            self.journal.push(record.clone());
        }
    }

    fn run(&mut self) {
        loop {
            match self.saga.next(&order(), self.now_ms) {
                Next::Write(records) => self.write(&records),
                Next::Call(call) => {
                    let (service, ask, key) = (&call.service, &call.ask, &call.key);
                    let (attempt, from) = (call.attempt, call.not_before_ms);
                    let _ = writeln!(self.out, "  calls {service}{ask} key {key} attempt {attempt} from {from} on");
                    self.waits = Some(call);
                    return;
                }
                Next::Ended(outcome) => {
                    let _ = writeln!(self.out, "  has {}", outcome.word());
                    return;
                }
            }
        }
    }

    fn answer(&mut self, call: &Call, reply: &Reply) {
        let records = self.saga.answered(&order(), call, reply, self.now_ms, 0);
        if records.is_empty() {
            self.out.push_str("  takes no notice\n");
        }
        self.write(&records);
    }
}

fn play(script: &str) -> String {
    let start = Record::Started { saga: "o-1".into(), definition: order().hash(), input: json!({}), at_ms: 0 };
    let journal = vec![start];
    let saga = Saga::fold(&order(), &journal).unwrap();
    let mut at = Coordinator { saga, journal, now_ms: 0, waits: None, out: String::new() };
    for line in script.lines().filter(|line| !line.starts_with("  ")) {
        let _ = writeln!(at.out, "{line}");
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let reply = match word {
            "done" => Reply::Done,
            "refused" => Reply::Refused(rest.into()),
            "failed" => Reply::Failed(rest.into()),
            "run" => {
                at.run();
                continue;
            }
            "at" => {
                at.now_ms = rest.parse().unwrap();
                continue;
            }
            "crash" => {
                at.journal = decode(encode(&at.journal).as_bytes()).unwrap();
                at.saga = Saga::fold(&order(), &at.journal).unwrap();
                at.waits = None;
                continue;
            }
            "late" => {
                let words: Vec<&str> = rest.split(' ').collect();
                let call = Call {
                    step: words[0].into(),
                    service: String::new(),
                    ask: String::new(),
                    undo: words[1] == "undo",
                    attempt: words[2].parse().unwrap(),
                    key: String::new(),
                    not_before_ms: 0,
                    timeout_ms: 0,
                };
                at.answer(&call, &Reply::Done);
                continue;
            }
            _ if word.starts_with('#') || word.is_empty() => continue,
            _ => panic!("no such line: {line}"),
        };
        let call = at.waits.take().expect("it waits for a reply");
        at.answer(&call, &reply);
    }
    at.out
}

#[test]
fn the_transcripts_are_what_happens() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 4);
    for file in files {
        let script = std::fs::read_to_string(&file).unwrap();
        expect_file![file].assert_eq(&play(&script));
    }
}
