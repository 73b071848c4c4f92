//! A reading as it travels: JSON with machine, sequence number, sensor time and what was measured.

use std::io::Write as _;

use bytes::{BufMut as _, BytesMut};
use serde::Deserialize;

/// The features of the fleet's models, in the order in which the function builds its rows.
pub const FEATURES: [&str; 5] = ["temperature", "vibration", "speed", "torque", "wear"];

/// What a machine's sensors measured. NaN is a sensor that the machine does not have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Values {
    /// °C at the spindle bearing.
    pub temperature: f32,
    /// mm/s RMS.
    pub vibration: f32,
    /// Revolutions per minute.
    pub speed: f32,
    /// Nm.
    pub torque: f32,
    /// Minutes the tool has cut.
    pub wear: f32,
}

impl Values {
    pub const NONE: Self =
        Self { temperature: f32::NAN, vibration: f32::NAN, speed: f32::NAN, torque: f32::NAN, wear: f32::NAN };

    pub fn row(&self) -> [f32; 5] {
        [self.temperature, self.vibration, self.speed, self.torque, self.wear]
    }

    pub fn from_row(row: [f32; 5]) -> Self {
        let [temperature, vibration, speed, torque, wear] = row;
        Self { temperature, vibration, speed, torque, wear }
    }
}

/// Appends the reading's JSON. Floats are written in the shortest form that reads back as the same `f32`; what was not
/// measured is left out.
pub fn write_reading(out: &mut BytesMut, machine: &str, seq: u32, ts_ms: u64, values: &Values) {
    out.put_slice(b"{\"machine\":\"");
    write_escaped(out, machine);
    let mut writer = out.writer();
    // Writing to memory does not fail.
    let _ = write!(writer, "\",\"seq\":{seq},\"ts\":{ts_ms}");
    for (name, value) in FEATURES.iter().zip(values.row()) {
        if value.is_finite() {
            let _ = write!(writer, ",\"{name}\":{value}");
        }
    }
    out.put_u8(b'}');
}

/// Machine names of data files may hold anything that UTF-8 can.
fn write_escaped(out: &mut BytesMut, text: &str) {
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.put_slice(text.as_bytes());
    } else {
        let quoted = serde_json::Value::from(text).to_string();
        out.put_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
    }
}

/// A reading as the independent reader finds it in the log.
#[derive(Debug, Deserialize)]
pub struct LoggedReading<'a> {
    #[serde(borrow)]
    pub machine: std::borrow::Cow<'a, str>,
    pub seq: u32,
    pub ts: u64,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    vibration: Option<f32>,
    #[serde(default)]
    speed: Option<f32>,
    #[serde(default)]
    torque: Option<f32>,
    #[serde(default)]
    wear: Option<f32>,
}

impl LoggedReading<'_> {
    pub fn values(&self) -> Values {
        let or_nan = |value: Option<f32>| value.unwrap_or(f32::NAN);
        Values {
            temperature: or_nan(self.temperature),
            vibration: or_nan(self.vibration),
            speed: or_nan(self.speed),
            torque: or_nan(self.torque),
            wear: or_nan(self.wear),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_reads_back_as_it_was_written() {
        let values = Values { temperature: 71.23, vibration: f32::NAN, speed: 1487.0, torque: 0.1, wear: 123.4 };
        let mut out = BytesMut::new();
        write_reading(&mut out, "m-00042", 7, 1_700_000_000_123, &values);
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            r#"{"machine":"m-00042","seq":7,"ts":1700000000123,"temperature":71.23,"speed":1487,"torque":0.1,"wear":123.4}"#
        );
        let back: LoggedReading<'_> = serde_json::from_slice(&out).unwrap();
        assert_eq!((back.machine.as_ref(), back.seq, back.ts), ("m-00042", 7, 1_700_000_000_123));
        assert_eq!(back.values().row()[0], 71.23);
        assert!(back.values().vibration.is_nan());
    }

    #[test]
    fn a_machine_may_have_any_name() {
        let mut out = BytesMut::new();
        write_reading(&mut out, "press \"7\"\n", 1, 1, &Values::NONE);
        let back: LoggedReading<'_> = serde_json::from_slice(&out).unwrap();
        assert_eq!(back.machine, "press \"7\"\n");
    }
}
