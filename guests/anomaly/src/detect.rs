//! From a batch of readings to its anomalies.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{
    json::{Problem, Reader, Value},
    rules,
};

/// The model asked; the deployment grants it under this name.
pub const MODEL: &str = "anomaly";
/// Where anomalies go.
pub const TOPIC: &str = "machine-anomalies";
/// Features of a row, in order: temperature, vibration, speed, torque, wear. NaN for one that is not known.
pub const WIDTH: usize = 5;
/// Weight of the newest reading in a machine's baseline: the last twenty readings make two thirds of it.
const BASELINE_WEIGHT: f32 = 0.05;
/// Readings before a baseline is worth quoting.
const BASELINE_READINGS_MIN: u64 = 20;
/// Malformed readings logged one by one per batch; the rest are only counted.
const MALFORMED_LOGGED_MAX: usize = 3;

/// What the logic needs of its host.
pub trait Host {
    fn predict(&mut self, rows: &[f32]) -> Result<Vec<f32>, String>;
    fn state_get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, String>;
    fn state_set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String>;
    fn warn(&mut self, message: &str);
}

/// One record of the input topic.
pub struct Record<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub timestamp_ms: i64,
    pub partition: i32,
    pub offset: i64,
}

/// One anomaly, for [`TOPIC`].
#[derive(Debug, PartialEq)]
pub struct Anomaly {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// One reading as the machine sent it. `machine` is the text between its quotes, or the digits of a number.
#[derive(Debug, PartialEq)]
pub struct Reading<'a> {
    pub machine: &'a str,
    machine_is_number: bool,
    /// As they came, to be written out as they came; `null` where missing.
    pub seq: Value<'a>,
    pub ts: Value<'a>,
    pub features: [f32; WIDTH],
}

/// Parses `{"machine":…,"seq":…,"ts":…,"temperature":…,"vibration":…,"speed":…,"torque":…,"wear":…}`. Keys that are
/// not known are ignored.
pub fn parse(value: &[u8]) -> Result<Reading<'_>, Problem> {
    let text = std::str::from_utf8(value).map_err(|_| "not UTF-8")?;
    let mut reading = Reading {
        machine: "",
        machine_is_number: false,
        seq: Value::Null,
        ts: Value::Null,
        features: [f32::NAN; WIDTH],
    };
    let mut reader = Reader::new(text);
    reader.object(|key, value| {
        let feature = match key {
            "temperature" => 0,
            "vibration" => 1,
            "speed" => 2,
            "torque" => 3,
            "wear" => 4,
            "machine" => {
                (reading.machine, reading.machine_is_number) = match value {
                    Value::String(text) => (text, false),
                    Value::Number(_, text) => (text, true),
                    _ => return Err("`machine` is neither a string nor a number"),
                };
                return Ok(());
            }
            "seq" => {
                reading.seq = value;
                return Ok(());
            }
            "ts" => {
                reading.ts = value;
                return Ok(());
            }
            _ => return Ok(()),
        };
        reading.features[feature] = match value {
            Value::Number(number, _) => number as f32,
            Value::Null => f32::NAN,
            _ => return Err("a feature that is not a number"),
        };
        Ok(())
    })?;
    reader.end()?;
    if reading.machine.is_empty() {
        return Err("no `machine`");
    }
    if reading.features[0].is_nan() && reading.features[1].is_nan() {
        return Err("neither `temperature` nor `vibration`");
    }
    Ok(reading)
}

/// What is kept per machine: 41 bytes, little endian.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Machine {
    pub readings: u64,
    pub anomalies: u64,
    pub seq_last: u64,
    /// Moving averages of temperature and vibration, and of the distance to them.
    pub mean: [f32; 2],
    pub spread: [f32; 2],
}

const MACHINE_FORMAT: u8 = 1;
const MACHINE_BYTES: usize = 1 + 3 * 8 + 4 * 4;

impl Machine {
    /// A state that cannot be read (an older or newer format) starts anew: a baseline is cheap to learn again.
    fn decode(bytes: &[u8]) -> Self {
        if bytes.len() != MACHINE_BYTES || bytes[0] != MACHINE_FORMAT {
            return Self::default();
        }
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let float = |at: usize| f32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Self {
            readings: long(1),
            anomalies: long(9),
            seq_last: long(17),
            mean: [float(25), float(29)],
            spread: [float(33), float(37)],
        }
    }

    fn encode(&self) -> [u8; MACHINE_BYTES] {
        let mut bytes = [0; MACHINE_BYTES];
        bytes[0] = MACHINE_FORMAT;
        bytes[1..9].copy_from_slice(&self.readings.to_le_bytes());
        bytes[9..17].copy_from_slice(&self.anomalies.to_le_bytes());
        bytes[17..25].copy_from_slice(&self.seq_last.to_le_bytes());
        for (at, value) in [(25, self.mean[0]), (29, self.mean[1]), (33, self.spread[0]), (37, self.spread[1])] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Learns from a reading. An anomaly teaches nothing, or a machine that wears out slowly would look usual.
    fn learn(&mut self, reading: &Reading<'_>, anomaly: bool) {
        self.readings += 1;
        self.anomalies += u64::from(anomaly);
        if let Value::Number(seq, _) = reading.seq {
            self.seq_last = self.seq_last.max(seq as u64);
        }
        if anomaly {
            return;
        }
        for feature in 0..2 {
            let value = reading.features[feature];
            if value.is_nan() {
                continue;
            }
            if self.readings == 1 {
                self.mean[feature] = value;
                continue;
            }
            let distance = value - self.mean[feature];
            self.mean[feature] += BASELINE_WEIGHT * distance;
            self.spread[feature] += BASELINE_WEIGHT * (distance.abs() - self.spread[feature]);
        }
    }
}

/// Handles one batch: parses, asks the model once, learns, and gives the anomalies in the order of their readings.
pub fn handle(host: &mut impl Host, records: &[Record<'_>]) -> Result<Vec<Anomaly>, String> {
    let mut readings = Vec::with_capacity(records.len());
    let mut rows = Vec::with_capacity(records.len() * WIDTH);
    let mut malformed = 0;
    for record in records {
        match parse(record.value) {
            Ok(reading) => {
                rows.extend_from_slice(&reading.features);
                readings.push((record, reading));
            }
            Err(problem) => {
                malformed += 1;
                if malformed <= MALFORMED_LOGGED_MAX {
                    host.warn(&format!("partition {} offset {}: {problem}", record.partition, record.offset));
                }
            }
        }
    }
    if malformed > 0 {
        host.warn(&format!("{malformed} of {} readings are malformed and were skipped", records.len()));
    }
    if readings.is_empty() {
        return Ok(Vec::new());
    }
    let scores = scores(host, &rows);

    // One read and one write per machine and batch, however many readings it sent.
    let mut machines: BTreeMap<&str, Machine> = BTreeMap::new();
    let mut anomalies = Vec::new();
    for (row, (record, reading)) in readings.iter().enumerate() {
        let [temperature, vibration, ..] = reading.features;
        let score = match &scores {
            Some(scores) => scores[row],
            None => rules::score(temperature, vibration),
        };
        let anomaly = score > rules::SCORE_MAX;
        let machine = match machines.entry(reading.machine) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let stored = host.state_get(reading.machine.as_bytes())?;
                entry.insert(stored.map(|bytes| Machine::decode(&bytes)).unwrap_or_default())
            }
        };
        if anomaly {
            let value = describe(record, reading, score, machine, scores.is_some());
            anomalies.push(Anomaly { key: reading.machine.as_bytes().to_vec(), value: value.into_bytes() });
        }
        machine.learn(reading, anomaly);
    }
    for (name, machine) in &machines {
        host.state_set(name.as_bytes(), &machine.encode())?;
    }
    Ok(anomalies)
}

/// One score per row from the model, or nothing where it cannot be asked. Of several outputs per row the last one
/// counts: a classifier of two classes gives the positive class last.
pub fn scores(host: &mut impl Host, rows: &[f32]) -> Option<Vec<f32>> {
    let count = rows.len() / WIDTH;
    match host.predict(rows) {
        Ok(outputs) if count > 0 && !outputs.is_empty() && outputs.len() % count == 0 => {
            let width = outputs.len() / count;
            Some(outputs.chunks_exact(width).map(|outputs| outputs[width - 1]).collect())
        }
        Ok(outputs) => {
            host.warn(&format!("model `{MODEL}` gave {} numbers for {count} rows; local rules decide", outputs.len()));
            None
        }
        Err(problem) => {
            host.warn(&format!("{problem}; local rules decide"));
            None
        }
    }
}

fn describe(record: &Record<'_>, reading: &Reading<'_>, score: f32, machine: &Machine, by_model: bool) -> String {
    let mut out = String::with_capacity(320);
    out.push_str("{\"anomaly\":true,\"machine\":");
    if reading.machine_is_number {
        out.push_str(reading.machine);
    } else {
        write_raw(&mut out, Value::String(reading.machine));
    }
    out.push_str(",\"seq\":");
    write_raw(&mut out, reading.seq);
    out.push_str(",\"ts\":");
    write_raw(&mut out, reading.ts);
    let _ = write!(out, ",\"score\":{score}");
    for (name, value) in [("temperature", reading.features[0]), ("vibration", reading.features[1])] {
        let _ = write!(out, ",\"{name}\":");
        write_number(&mut out, value);
    }
    let _ = write!(
        out,
        ",\"source\":{{\"partition\":{},\"offset\":{}}},\"arrived_ms\":{},\"by\":\"{}\",\"reason\":\"",
        record.partition,
        record.offset,
        record.timestamp_ms,
        if by_model { "model" } else { "rules" }
    );
    reason(&mut out, reading, score, machine, by_model);
    out.push_str("\"}");
    out
}

/// One sentence that a technician can check.
fn reason(out: &mut String, reading: &Reading<'_>, score: f32, machine: &Machine, by_model: bool) {
    let [temperature, vibration, ..] = reading.features;
    let mut parts = 0;
    let mut part = |out: &mut String, text: std::fmt::Arguments<'_>| {
        out.push_str(if parts == 0 { "" } else { "; " });
        let _ = out.write_fmt(text);
        parts += 1;
    };
    if by_model {
        part(out, format_args!("model score {score:.2} above {}", rules::SCORE_MAX));
    }
    if temperature > rules::TEMPERATURE_MAX {
        part(out, format_args!("temperature {temperature:.1} above {}", rules::TEMPERATURE_MAX));
    }
    if vibration > rules::VIBRATION_MAX {
        part(out, format_args!("vibration {vibration:.2} above {}", rules::VIBRATION_MAX));
    }
    if machine.readings >= BASELINE_READINGS_MIN {
        for (feature, name) in [(0, "temperature"), (1, "vibration")] {
            let distance = reading.features[feature] - machine.mean[feature];
            if distance > 3.0 * machine.spread[feature] && machine.spread[feature] > 0.0 {
                let times = distance / machine.spread[feature];
                part(
                    out,
                    format_args!(
                        "{name} {times:.0} times its usual distance above its mean {:.2}",
                        machine.mean[feature]
                    ),
                );
            }
        }
    }
}

/// Writes a value as it came.
pub fn write_raw(out: &mut String, value: Value<'_>) {
    match value {
        Value::String(text) => {
            out.push('"');
            out.push_str(text);
            out.push('"');
        }
        Value::Number(_, text) | Value::Nested(text) => out.push_str(text),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Null => out.push_str("null"),
    }
}

/// JSON has no NaN.
pub fn write_number(out: &mut String, value: f32) {
    if value.is_finite() {
        let _ = write!(out, "{value}");
    } else {
        out.push_str("null");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Score = fn(&[f32]) -> Vec<f32>;

    #[derive(Default)]
    struct Fake {
        model: Option<Score>,
        asked: usize,
        state: BTreeMap<Vec<u8>, Vec<u8>>,
        log: Vec<String>,
    }

    impl Host for Fake {
        fn predict(&mut self, rows: &[f32]) -> Result<Vec<f32>, String> {
            self.asked += 1;
            Ok(self.model.ok_or("not granted")?(rows))
        }
        fn state_get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
            Ok(self.state.get(key).cloned())
        }
        fn state_set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
            self.state.insert(key.into(), value.into());
            Ok(())
        }
        fn warn(&mut self, message: &str) {
            self.log.push(message.into());
        }
    }

    fn run(host: &mut Fake, values: &[&str]) -> Vec<String> {
        let records: Vec<_> = values
            .iter()
            .zip(100..)
            .map(|(value, offset)| Record {
                key: b"k",
                value: value.as_bytes(),
                timestamp_ms: 1_700_000_000_123,
                partition: 2,
                offset,
            })
            .collect();
        let anomalies = handle(host, &records).expect("the fake state answers");
        anomalies.into_iter().map(|anomaly| String::from_utf8(anomaly.value).expect("JSON")).collect()
    }

    #[test]
    fn rules_decide_without_a_model() {
        let mut host = Fake::default();
        let got = run(
            &mut host,
            &[
                r#"{"machine":"m-1","seq":7,"ts":1,"temperature":60,"vibration":2}"#,
                r#"{"machine":"m-\"2","seq":8,"ts":"2026-01-01","temperature":81.5,"vibration":2}"#,
                r#"{"machine":3,"temperature":60,"vibration":5.5,"other":[1]}"#,
                "garbage",
                r#"{"machine":"m-4"}"#,
            ],
        );
        assert_eq!(
            got,
            [
                r#"{"anomaly":true,"machine":"m-\"2","seq":8,"ts":"2026-01-01","score":0.71124995,"temperature":81.5,"vibration":2,"source":{"partition":2,"offset":101},"arrived_ms":1700000000123,"by":"rules","reason":"temperature 81.5 above 80"}"#,
                r#"{"anomaly":true,"machine":3,"seq":null,"ts":null,"score":0.76,"temperature":60,"vibration":5.5,"source":{"partition":2,"offset":102},"arrived_ms":1700000000123,"by":"rules","reason":"vibration 5.50 above 5"}"#,
            ]
        );
        assert_eq!(
            host.log,
            [
                "partition 2 offset 103: not a JSON object",
                "partition 2 offset 104: neither `temperature` nor `vibration`",
                "2 of 5 readings are malformed and were skipped",
                "not granted; local rules decide",
            ]
        );
        assert_eq!(Machine::decode(&host.state[b"m-1".as_slice()]).seq_last, 7);
        assert_eq!(Machine::decode(&host.state[b"3".as_slice()]).anomalies, 1);
    }

    #[test]
    fn the_model_is_asked_once_per_batch_and_a_baseline_explains() {
        let mut host = Fake {
            model: Some(|rows| {
                rows.chunks(WIDTH).flat_map(|row| [0.0, if row[1] > 4.0 { 0.9 } else { 0.1 }]).collect()
            }),
            ..Fake::default()
        };
        let usual: Vec<_> = (0..40)
            .map(|seq| {
                format!(
                    r#"{{"machine":"a","seq":{seq},"temperature":60,"vibration":{}}}"#,
                    2.0 + (seq % 2) as f32 / 5.0
                )
            })
            .collect();
        let usual: Vec<_> = usual.iter().map(String::as_str).collect();
        assert!(run(&mut host, &usual).is_empty());
        let got = run(&mut host, &[r#"{"machine":"a","seq":40,"temperature":60,"vibration":4.5}"#]);
        assert_eq!(host.asked, 2);
        assert_eq!(got.len(), 1);
        assert!(got[0].contains("model score 0.90 above 0.7; vibration 2"), "{}", got[0]);
        assert!(got[0].contains("times its usual distance above its mean 2.09"), "{}", got[0]);
        let machine = Machine::decode(&host.state[b"a".as_slice()]);
        assert_eq!((machine.readings, machine.anomalies, machine.seq_last), (41, 1, 40));
        assert_eq!(Machine::decode(&machine.encode()), machine);
        assert_eq!(Machine::decode(b"?"), Machine::default());
    }
}
