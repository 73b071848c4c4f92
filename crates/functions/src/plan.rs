//! From what a guest gave to the one entry that makes it so. Pure: the same input gives the same entry.
//!
//! The entry of a batch, in order:
//!
//! 1. guard: the cursor is where the batch begins, so a batch is applied once whoever runs it;
//! 2. guard: the function is the version that judged;
//! 3. guard per model that was asked: it is the generation that judged;
//! 4. the state rows that changed, the last change of each;
//! 5. the outputs, one record batch per target partition;
//! 6. one audit record;
//! 7. the cursor's move.
//!
//! The cursor's guard comes first: a refusal that names a later guard therefore says that the batch is still ours.

use std::collections::BTreeMap;

use buttress_core::{
    Append, Code, Cursor, Entry, Error, Guard, LogId, Offset, Revision, StatePut,
    guest::{BatchOutcome, GuestOutput},
    limits::{ENTRY_BYTES_MAX, ENTRY_PARTS_MAX, KEY_BYTES_MAX, RECORD_BATCH_BYTES_MAX, VALUE_BYTES_MAX},
};
use buttress_wire::records::Builder;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    partitioner::partition,
    resource::{FunctionSpec, function_key, group, model_key, state_space},
};

/// Outputs for one partition are cut into record batches of about this size, so that consumers fetch in small steps.
const OUTPUT_BATCH_BYTES: usize = 512 * 1024;

/// A model as a batch was judged with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedBy {
    pub name: String,
    pub generation: u64,
    /// The revision that put this generation.
    pub revision: Revision,
    pub digest: String,
}

/// Where a function stands in one partition.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub spec: &'a FunctionSpec,
    /// The revision that put this version of the function.
    pub revision: Revision,
    pub topic: &'a str,
    pub partition: i32,
    pub log: LogId,
    /// The cursor as it is now; `None` before the first batch.
    pub cursor: Option<Offset>,
    /// Where the partition's audit records go; `None` where the function wants none.
    pub audit: Option<LogId>,
    pub now_ms: u64,
}

/// The logs of the topics that the function may produce to, by partition.
pub type Targets = BTreeMap<String, Vec<LogId>>;

/// An entry, and what it will have changed.
#[derive(Debug)]
pub struct Planned {
    pub entry: Entry,
    /// The rows that the entry changes, in key order.
    pub rows: Vec<(Bytes, Option<Bytes>)>,
    pub outputs: usize,
}

impl Place<'_> {
    fn guards(&self) -> Vec<Guard> {
        let name = &self.spec.name;
        vec![
            Guard::Cursor { group: group(name), log: self.log, expected: self.cursor },
            Guard::ModRevision { key: function_key(name), revision: self.revision },
        ]
    }

    fn moved(&self, to: Offset) -> Cursor {
        Cursor {
            group: group(&self.spec.name),
            log: self.log,
            next: to,
            metadata: format!("version {}", self.spec.version),
        }
    }

    fn audit(&self, event: &Value) -> Vec<Append> {
        let Some(log) = self.audit else { return Vec::new() };
        let mut builder = Builder::new();
        builder.push(self.now_ms as i64, Some(self.spec.name.as_bytes()), Some(event.to_string().as_bytes()), &[]);
        vec![append(log, builder)]
    }
}

fn append(log: LogId, builder: Builder) -> Append {
    Append {
        log,
        records: builder.count(),
        max_timestamp_ms: builder.max_timestamp_ms(),
        sequence: None,
        batch: builder.build().expect("a record was pushed before"),
    }
}

/// The marker that tells in the audit topic from where on a model's generation counts.
pub fn model_pushed(audit: LogId, name: &str, from: Option<u64>, generation: u64, digest: &str, now_ms: u64) -> Append {
    let event = json!({
        "event": "model-pushed", "model": name, "generation": generation, "digest": digest,
        "from_generation": from, "at_ms": now_ms,
    });
    let mut builder = Builder::new();
    builder.push(now_ms as i64, Some(name.as_bytes()), Some(event.to_string().as_bytes()), &[]);
    append(audit, builder)
}

/// The entry of a batch of `records` records in `[from, to)`.
///
/// # Errors
/// What the function gave cannot be committed: `IMPORT_NOT_GRANTED` for a topic or for state that was not granted,
/// `TOO_LARGE` beyond a limit (fewer records per call may help), `TOPIC_UNKNOWN` for a granted topic that does not exist.
pub fn batch(
    place: &Place<'_>,
    from: Offset,
    to: Offset,
    records: usize,
    outcome: &BatchOutcome,
    models: &[JudgedBy],
    targets: &Targets,
) -> Result<Planned, Error> {
    assert!(from < to, "a batch has records");
    let spec = place.spec;
    let mut entry = Entry { guards: place.guards(), ..Entry::default() };
    let used: Vec<&JudgedBy> = models.iter().filter(|m| outcome.models_used.contains(&m.name)).collect();
    for model in &used {
        entry.guards.push(Guard::ModRevision { key: model_key(&model.name), revision: model.revision });
    }

    if !outcome.state.is_empty() && !spec.grants.state {
        return Err(Error::new(Code::IMPORT_NOT_GRANTED, "the function wrote state, which is not granted")
            .hint(r#"deploy it with "grants":{"state":true}"#));
    }
    let mut rows: BTreeMap<&Bytes, &Option<Bytes>> = BTreeMap::new();
    for (key, value) in &outcome.state {
        if key.len() > KEY_BYTES_MAX || value.as_ref().is_some_and(|v| v.len() > VALUE_BYTES_MAX) {
            let bytes = value.as_ref().map_or(0, Bytes::len);
            return Err(Error::new(
                Code::TOO_LARGE,
                format!("a state row has a key of {} and a value of {bytes} bytes", key.len()),
            )
            .hint(format!("keys may have {KEY_BYTES_MAX} bytes, values {VALUE_BYTES_MAX}")));
        }
        rows.insert(key, value);
    }
    let space = state_space(&spec.name, place.partition);
    let rows: Vec<(Bytes, Option<Bytes>)> = rows.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    entry.state =
        rows.iter().map(|(k, v)| StatePut { space: space.clone(), key: k.clone(), value: v.clone() }).collect();

    entry.appends = outputs(place, &outcome.outputs, targets)?;
    let first = used.first();
    let mut event = json!({
        "event": "batch", "function": spec.name, "version": spec.version, "topic": place.topic,
        "partition": place.partition, "from": from.0, "to": to.0, "records": records,
        "outputs": outcome.outputs.len(), "model": first.map(|m| &m.name),
        "generation": first.map(|m| m.generation), "digest": first.map(|m| &m.digest),
    });
    if used.len() > 1 {
        event["models"] =
            used.iter().map(|m| json!({"model": m.name, "generation": m.generation, "digest": m.digest})).collect();
    }
    entry.appends.extend(place.audit(&event));
    entry.cursors.push(place.moved(to));

    if entry.parts() > ENTRY_PARTS_MAX || entry.size_hint() > ENTRY_BYTES_MAX {
        return Err(Error::new(
            Code::TOO_LARGE,
            format!("a batch of {records} records gave {} parts and {} bytes", entry.parts(), entry.size_hint()),
        )
        .hint("lower trigger.max_records, or give less per record"));
    }
    Ok(Planned { entry, rows, outputs: outcome.outputs.len() })
}

fn outputs(place: &Place<'_>, outputs: &[GuestOutput], targets: &Targets) -> Result<Vec<Append>, Error> {
    let mut builders: BTreeMap<LogId, Builder> = BTreeMap::new();
    let mut appends = Vec::new();
    for output in outputs {
        if !place.spec.grants.topics.contains(&output.topic) {
            return Err(Error::new(
                Code::IMPORT_NOT_GRANTED,
                format!("the function produced to topic '{}', which is not granted", output.topic),
            )
            .hint(format!(r#"deploy it with "grants":{{"topics":["{}"]}}"#, output.topic)));
        }
        let logs = targets.get(&output.topic).filter(|logs| !logs.is_empty()).ok_or_else(|| {
            Error::new(Code::TOPIC_UNKNOWN, format!("there is no topic '{}'", output.topic)).retryable()
        })?;
        // Records without a key stay in order by going where their input lay.
        let target = match output.key.is_empty() {
            true => place.partition as usize % logs.len(),
            false => partition(&output.key, logs.len()),
        };
        let key = (!output.key.is_empty()).then_some(&output.key[..]);
        let size = Builder::record_size_max(key, Some(&output.value), &[]);
        let builder = builders.entry(logs[target]).or_default();
        if builder.count() > 0 && builder.size() + size > OUTPUT_BATCH_BYTES {
            appends.push(append(logs[target], std::mem::take(builder)));
        }
        if builder.size() + size > RECORD_BATCH_BYTES_MAX {
            return Err(Error::new(
                Code::TOO_LARGE,
                format!("an output of {} bytes is more than a record may have", output.value.len()),
            )
            .hint(format!("a record batch may have {RECORD_BATCH_BYTES_MAX} bytes")));
        }
        builder.push(place.now_ms as i64, key, Some(&output.value), &[]);
    }
    appends.extend(builders.into_iter().filter(|(_, b)| b.count() > 0).map(|(log, b)| append(log, b)));
    Ok(appends)
}

/// What is skipped by a dead letter, with the bytes as they were.
#[derive(Clone, Debug)]
pub struct Poison {
    pub from: Offset,
    pub to: Offset,
    pub key: Option<Bytes>,
    pub value: Bytes,
    pub timestamp_ms: i64,
    /// `value` is a whole record batch that cannot be read, rather than one record's value.
    pub whole_batch: bool,
}

/// The entry that sets a record aside: it, unchanged, into the dead-letter topic, with headers that say why.
pub fn dead_letter(place: &Place<'_>, poison: &Poison, error: &Error, target: LogId) -> Entry {
    let spec = place.spec;
    let version = spec.version.to_string();
    let partition = place.partition.to_string();
    let offset = poison.from.to_string();
    let timestamp = poison.timestamp_ms.to_string();
    let message = cut(&error.message);
    let headers: [(&str, &str); 8] = [
        ("buttress.error.code", error.code.0),
        ("buttress.error.message", &message),
        ("buttress.function", &spec.name),
        ("buttress.version", &version),
        ("buttress.topic", place.topic),
        ("buttress.partition", &partition),
        ("buttress.offset", &offset),
        ("buttress.timestamp_ms", &timestamp),
    ];
    let mut headers: Vec<(&[u8], Option<&[u8]>)> =
        headers.iter().map(|(k, v)| (k.as_bytes(), Some(v.as_bytes()))).collect();
    if poison.whole_batch {
        headers.push((b"buttress.value", Some(b"record-batch")));
    }
    let key = poison.key.as_deref();
    let mut value = &poison.value[..];
    let mut builder = Builder::new();
    if builder.size() + Builder::record_size_max(key, Some(value), &headers) > RECORD_BATCH_BYTES_MAX {
        // Only what was compressed, or filled its batch to the last bytes, does not fit: its offset still finds it.
        headers.push((b"buttress.value", Some(b"too-large")));
        value = b"";
    }
    builder.push(place.now_ms as i64, key, Some(value), &headers);
    let event = json!({
        "event": "dead-letter", "function": spec.name, "version": spec.version, "topic": place.topic,
        "partition": place.partition, "from": poison.from.0, "to": poison.to.0, "error": error.code.0,
        "message": message,
    });
    let mut appends = vec![append(target, builder)];
    appends.extend(place.audit(&event));
    Entry { guards: place.guards(), appends, cursors: vec![place.moved(poison.to)], ..Entry::default() }
}

/// The entry that steps over records which retention took before they were judged. Loss is never silent.
pub fn gap(place: &Place<'_>, from: Offset, to: Offset) -> Entry {
    let spec = place.spec;
    let event = json!({
        "event": "gap", "function": spec.name, "version": spec.version, "topic": place.topic,
        "partition": place.partition, "from": from.0, "to": to.0, "reason": "retention",
    });
    Entry { guards: place.guards(), appends: place.audit(&event), cursors: vec![place.moved(to)], ..Entry::default() }
}

/// A guest's message may be long; headers and audit records hold its beginning.
fn cut(message: &str) -> String {
    const MESSAGE_CHARS: usize = 500;
    message.chars().take(MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use buttress_wire::records::BatchView;
    use expect_test::{Expect, expect};

    use super::*;
    use crate::resource::Manifest;

    fn spec() -> FunctionSpec {
        let manifest =
            r#"{"trigger":{"topic":"telemetry"},"grants":{"models":["wear","heat"],"topics":["alerts"],"state":true}}"#;
        Manifest::parse(manifest.as_bytes()).unwrap().into_spec("watch", 3, "sha256:aa".into(), 1, 0)
    }

    fn place(spec: &FunctionSpec) -> Place<'_> {
        Place {
            spec,
            revision: Revision(7),
            topic: "telemetry",
            partition: 2,
            log: LogId(12),
            cursor: Some(Offset(100)),
            audit: Some(LogId(1)),
            now_ms: 5_000,
        }
    }

    fn shown(entry: &Entry) -> String {
        let mut text = format!("{entry:#?}\n");
        for append in &entry.appends {
            let batch = BatchView::parse(append.batch.clone()).unwrap();
            for record in batch.records().unwrap() {
                let record = record.unwrap();
                let text_of = |b: &Option<Bytes>| b.as_ref().map_or("-".into(), |b| b.escape_ascii().to_string());
                text += &format!("log {} {} = {}\n", append.log, text_of(&record.key), text_of(&record.value));
                for header in record.headers {
                    text += &format!("    {} = {}\n", header.key.escape_ascii(), text_of(&header.value));
                }
            }
        }
        text
    }

    fn check(outcome: &BatchOutcome, expect: Expect) {
        let spec = spec();
        let models = [("wear", 4), ("heat", 1)].map(|(name, generation)| JudgedBy {
            name: name.into(),
            generation,
            revision: Revision(generation + 30),
            digest: format!("sha256:{name}"),
        });
        let targets = Targets::from([("alerts".to_owned(), vec![LogId(20), LogId(21)])]);
        let planned = batch(&place(&spec), Offset(100), Offset(103), 3, outcome, &models, &targets);
        expect.assert_eq(&match planned {
            Ok(planned) => shown(&planned.entry),
            Err(error) => format!("{error}\n"),
        });
    }

    fn output(topic: &str, key: &'static str, value: &'static str) -> GuestOutput {
        GuestOutput { topic: topic.into(), key: key.into(), value: value.into() }
    }

    #[test]
    fn one_entry_holds_everything_of_a_batch() {
        check(
            &BatchOutcome {
                outputs: vec![
                    output("alerts", "m1", "hot"),
                    output("alerts", "", "odd"),
                    output("alerts", "m1", "hotter"),
                ],
                state: vec![("m2".into(), Some("1".into())), ("m1".into(), Some("1".into())), ("m2".into(), None)],
                models_used: vec!["wear".into()],
                ..BatchOutcome::default()
            },
            expect![[r#"
                [
                    cursor(fn:watch, log 12) == 100,
                    mod_revision("/buttress/functions/watch") == 7,
                    mod_revision("/buttress/models/wear") == 34,
                    state fn:watch/2/"m1" = "1",
                    state fn:watch/2/"m2" deleted,
                    append log 20 3 records 98 bytes,
                    append log 1 1 records 254 bytes,
                    Cursor {
                        group: "fn:watch",
                        log: LogId(
                            12,
                        ),
                        next: Offset(
                            103,
                        ),
                        metadata: "version 3",
                    },
                ]
                log 20 m1 = hot
                log 20 - = odd
                log 20 m1 = hotter
                log 1 watch = {\"digest\":\"sha256:wear\",\"event\":\"batch\",\"from\":100,\"function\":\"watch\",\"generation\":4,\"model\":\"wear\",\"outputs\":3,\"partition\":2,\"records\":3,\"to\":103,\"topic\":\"telemetry\",\"version\":3}
            "#]],
        );
    }

    #[test]
    fn what_was_not_granted_is_refused() {
        check(
            &BatchOutcome { outputs: vec![output("other", "", "")], ..BatchOutcome::default() },
            expect![[r#"
            the function produced to topic 'other', which is not granted [BT0403]

            hint: deploy it with "grants":{"topics":["other"]}
        "#]],
        );
    }

    #[test]
    fn poison_keeps_its_bytes_and_says_why() {
        let spec = spec();
        let poison = Poison {
            from: Offset(100),
            to: Offset(101),
            key: Some("m9".into()),
            value: Bytes::from_static(b"\xff{"),
            timestamp_ms: 4_000,
            whole_batch: false,
        };
        let error = Error::new(Code::TRAPPED, "unreachable");
        expect![[r#"
            [
                cursor(fn:watch, log 12) == 100,
                mod_revision("/buttress/functions/watch") == 7,
                append log 30 1 records 271 bytes,
                append log 1 1 records 224 bytes,
                Cursor {
                    group: "fn:watch",
                    log: LogId(
                        12,
                    ),
                    next: Offset(
                        101,
                    ),
                    metadata: "version 3",
                },
            ]
            log 30 m9 = \xff{
                buttress.error.code = BT0405
                buttress.error.message = unreachable
                buttress.function = watch
                buttress.version = 3
                buttress.topic = telemetry
                buttress.partition = 2
                buttress.offset = 100
                buttress.timestamp_ms = 4000
            log 1 watch = {\"error\":\"BT0405\",\"event\":\"dead-letter\",\"from\":100,\"function\":\"watch\",\"message\":\"unreachable\",\"partition\":2,\"to\":101,\"topic\":\"telemetry\",\"version\":3}
        "#]].assert_eq(&shown(&dead_letter(&place(&spec), &poison, &error, LogId(30))));
        expect![[r#"
            [
                cursor(fn:watch, log 12) == 100,
                mod_revision("/buttress/functions/watch") == 7,
                append log 1 1 records 196 bytes,
                Cursor {
                    group: "fn:watch",
                    log: LogId(
                        12,
                    ),
                    next: Offset(
                        150,
                    ),
                    metadata: "version 3",
                },
            ]
            log 1 watch = {\"event\":\"gap\",\"from\":100,\"function\":\"watch\",\"partition\":2,\"reason\":\"retention\",\"to\":150,\"topic\":\"telemetry\",\"version\":3}
        "#]].assert_eq(&shown(&gap(&place(&spec), Offset(100), Offset(150))));
    }

    #[test]
    fn large_outputs_are_cut_and_too_large_ones_refused() {
        let spec = spec();
        let targets = Targets::from([("alerts".to_owned(), vec![LogId(20)])]);
        let outcome = |bytes: usize, n: usize| BatchOutcome {
            outputs: (0..n)
                .map(|_| GuestOutput { topic: "alerts".into(), key: Bytes::new(), value: vec![b'x'; bytes].into() })
                .collect(),
            ..BatchOutcome::default()
        };
        let run = |o: &BatchOutcome| batch(&place(&spec), Offset(100), Offset(103), 3, o, &[], &targets);
        let planned = run(&outcome(300 * 1024, 3)).unwrap();
        assert_eq!(planned.entry.appends.len(), 3 + 1, "three batches of one output each, and the audit record");
        assert_eq!(run(&outcome(RECORD_BATCH_BYTES_MAX, 1)).unwrap_err().code, Code::TOO_LARGE);
        assert_eq!(run(&outcome(1024 * 1024 - 100, 8)).unwrap_err().code, Code::TOO_LARGE);
    }
}
