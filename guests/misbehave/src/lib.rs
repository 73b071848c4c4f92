//! Does what the value of each record says, for the tests of the engine: every way in which a guest can go wrong,
//! and every import once.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
};

wit_bindgen::generate!({ path: "../../crates/engine/wit", world: "function" });

use buttress::function::{
    inference,
    log::{Level, log},
    state,
};

static CALLS: AtomicU64 = AtomicU64::new(0);

struct Component;
export!(Component);

impl Guest for Component {
    fn handle_batch(records: Vec<Record>) -> Result<Vec<Output>, String> {
        let call = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
        let mut outputs = Vec::new();
        for record in records {
            let text = String::from_utf8_lossy(&record.value).into_owned();
            let mut say = |key: &[u8], text: String| {
                outputs.push(Output { topic: "out".into(), key: key.to_vec(), value: text.into_bytes() });
            };
            let mut words = text.split(' ');
            let verb = words.next().unwrap_or_default();
            let word = words.next().unwrap_or_default();
            let rest = words.next().unwrap_or_default();
            match verb {
                "echo" => say(
                    &record.key,
                    format!("{word} call={call} ts={} p={} o={}", record.timestamp_ms, record.partition, record.offset),
                ),
                "panic" => panic!("as told: {word}"),
                "trap" => core::arch::wasm32::unreachable(),
                "loop" => loop {
                    black_box(());
                },
                "recurse" => say(&record.key, recurse(1).to_string()),
                "alloc" => {
                    let mut hoard = Vec::new();
                    loop {
                        hoard.push(black_box(vec![1u8; 1024 * 1024]));
                    }
                }
                "sleep" => std::thread::sleep(std::time::Duration::from_millis(word.parse().unwrap())),
                "fail" => return Err(word.to_owned()),
                "print" => println!("{word}"),
                "eprint" => eprintln!("{word}"),
                "log" => log(Level::Info, word),
                "flood" => {
                    for line in 0..100_000 {
                        println!("line {line}");
                        log(Level::Debug, "flood");
                    }
                }
                "topic" => outputs_to(&mut outputs, word, &record),
                "amplify" => {
                    // Every output is honest memory here; the host must still bound what it copies.
                    for _ in 0..200 {
                        outputs.push(Output { topic: "out".into(), key: vec![], value: vec![7; 256 * 1024] });
                    }
                }
                "predict" => {
                    let rows: Vec<f32> = rest.split(',').filter_map(|number| number.parse().ok()).collect();
                    say(&record.key, format!("{:?}", inference::predict(word, &rows)));
                }
                "get" => say(
                    &record.key,
                    format!(
                        "{:?}",
                        state::get(word.as_bytes())
                            .map(|value| value.map(|value| String::from_utf8_lossy(&value).into_owned()))
                    ),
                ),
                "set" => say(&record.key, format!("{:?}", state::set(word.as_bytes(), rest.as_bytes()))),
                "setbig" => say(&record.key, format!("{:?}", state::set(word.as_bytes(), &vec![0; 2 * 1024 * 1024]))),
                "delete" => say(&record.key, format!("{:?}", state::delete(word.as_bytes()))),
                "env" => say(
                    &record.key,
                    format!(
                        "{} variables, {} arguments, file: {:?}",
                        std::env::vars().count(),
                        std::env::args().count(),
                        std::fs::read("/etc/passwd").err().map(|error| error.kind())
                    ),
                ),
                "clock" => {
                    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
                    say(&record.key, now.as_millis().to_string());
                }
                "none" => {}
                _ => return Err(format!("no verb `{verb}`")),
            }
        }
        Ok(outputs)
    }
}

fn outputs_to(outputs: &mut Vec<Output>, topic: &str, record: &Record) {
    outputs.push(Output { topic: topic.into(), key: record.key.clone(), value: b"hello".to_vec() });
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let pad = black_box([depth; 32]);
    if depth == u64::MAX { 0 } else { recurse(depth + 1) + pad[3] }
}
