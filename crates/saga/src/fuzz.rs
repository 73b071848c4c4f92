//! What the fuzzer runs: the decoders of what lies in the log.

use crate::{Definition, Outcome, Record, Saga, decode, encode};

/// A definition, an empty line, and a journal on it. What is read is written back the same; a fold never panics.
pub fn journal(input: &[u8]) {
    let split = input.windows(2).position(|pair| pair == b"\n\n");
    let (head, rest) = split.map_or((input, &input[..0]), |at| (&input[..at], &input[at + 2..]));
    let records = decode(rest);
    if let Ok(records) = &records {
        assert_eq!(decode(encode(records).as_bytes()).as_ref(), Ok(records));
    }
    if let (Ok(definition), Ok(records)) = (Definition::decode(head), records)
        && let Ok(saga) = Saga::fold(&definition, &records)
    {
        let _ = saga.next(&definition, u64::MAX);
    }
}

/// A journal as it is written.
pub fn journals() -> Vec<Vec<u8>> {
    let step = crate::Step {
        name: "reserve".into(),
        service: "inventory".into(),
        act: "/reserve".into(),
        undo: Some("/release".into()),
        attempts: 2,
        timeout_ms: 1_000,
        deadline_ms: 30_000,
        undo_attempts: 5,
        pause_first_ms: 500,
        pause_max_ms: 10_000,
    };
    let definition = Definition { name: "order".into(), steps: vec![step] };
    let (step, at_ms) = (String::from("reserve"), 5);
    let records = [
        Record::Started { saga: "a".into(), definition: definition.hash(), input: serde_json::json!({"n": 1}), at_ms },
        Record::StepScheduled { step: step.clone(), attempt: 1, not_before_ms: 0, at_ms },
        Record::StepDone { step, at_ms },
        Record::Ended { outcome: Outcome::Completed, at_ms },
    ];
    vec![format!("{}\n\n{}", definition.encode(), encode(&records)).into_bytes()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_every_damage_of_it_is_taken_calmly() {
        for written in journals() {
            let text = std::str::from_utf8(&written).unwrap();
            let (definition, records) = text.split_once("\n\n").unwrap();
            let definition = Definition::decode(definition.as_bytes()).unwrap();
            Saga::fold(&definition, &decode(records.as_bytes()).unwrap()).unwrap();
            for at in 0..written.len() {
                for byte in [0, b'"', b'9', written[at] ^ 1] {
                    let mut damaged = written.clone();
                    damaged[at] = byte;
                    journal(&damaged);
                }
                journal(&written[..at]);
            }
        }
    }
}
