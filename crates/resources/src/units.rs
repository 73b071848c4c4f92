//! Values with units, as users write them: `250ms`, `20%`.

use std::{borrow::Cow, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A span of time: `250ms`, `2s`, `1.5s`, `5m`, `1h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A part of a whole, 0 to 1: `20%` or `0.2`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part(pub f32);

/// A number of bytes: `64KiB`, `2GiB`, `1MB`, or `1024`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// Bytes in each unit.
const SIZES: [(&str, u64); 9] = [
    ("", 1),
    ("B", 1),
    ("kB", 1000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Milliseconds in each unit; the longest name that fits is taken.
const UNITS: [(&str, f64); 6] = [("us", 1e-3), ("ms", 1.0), ("s", 1e3), ("m", 60e3), ("h", 3_600e3), ("d", 86_400e3)];
/// A year; what is longer is a mistake.
const SPAN_MS_MAX: f64 = 366.0 * 86_400e3;

impl Span {
    /// # Errors
    /// What is wrong, and how it is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no span of time; write 250ms, 2s, 5m, 1h or 7d");
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = text[..digits].parse().map_err(|_| wrong())?;
        let unit = text[digits..].trim();
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let ms = number * factor;
        if ms.is_finite() && ms <= SPAN_MS_MAX {
            Ok(Self(Duration::from_nanos((ms * 1e6).round() as u64)))
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for Span {
    /// The largest unit in which it is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros() as u64;
        for (name, factor) in UNITS.iter().rev() {
            let unit = (factor * 1e3) as u64;
            if micros >= unit && micros.is_multiple_of(unit) {
                return write!(f, "{}{name}", micros / unit);
            }
        }
        f.write_str("0s")
    }
}

impl Part {
    /// # Errors
    /// What is wrong, and how it is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no part of a whole; write 20% or 0.2");
        let trimmed = text.trim();
        let (number, scale) = match trimmed.strip_suffix('%') {
            Some(number) => (number.trim_end(), 100.0),
            None => (trimmed, 1.0),
        };
        let part = number.parse::<f64>().map_err(|_| wrong())? / scale;
        if (0.0..=1.0).contains(&part) { Ok(Self(part as f32)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", (f64::from(self.0) * 1e6).round() / 1e4)
    }
}

impl Size {
    /// # Errors
    /// What is wrong, and how it is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no number of bytes; write 64KiB, 256MiB or 2GiB");
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let number: u64 = trimmed[..digits].parse().map_err(|_| wrong())?;
        let unit = trimmed[digits..].trim();
        let (_, scale) = SIZES.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        number.checked_mul(*scale).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    /// The largest binary unit in which it is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, scale) in SIZES.iter().rev().filter(|(name, _)| name.ends_with("iB")) {
            if self.0 >= *scale && self.0.is_multiple_of(*scale) {
                return write!(f, "{}{name}", self.0 / scale);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Ok(Self(number)),
            Written::Text(text) => Self::parse(&text).map_err(D::Error::custom),
        }
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                {"type": "string", "pattern": r"^\s*[0-9]+\s*(B|kB|KiB|MB|MiB|GB|GiB|TiB)?\s*$"},
                {"type": "integer", "minimum": 0},
            ],
            "description": "A number of bytes: 64KiB, 256MiB or 2GiB.",
        })
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Self::parse(&number.to_string()),
            Written::Text(text) => Self::parse(&text),
        }
        .map_err(D::Error::custom)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*(us|ms|s|m|h|d)\s*$",
            "description": "A span of time: 250ms, 2s, 5m, 1h or 7d.",
        })
    }
}

impl JsonSchema for Part {
    fn schema_name() -> Cow<'static, str> {
        "Part".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*%?\s*$"},
                {"type": "number", "minimum": 0, "maximum": 1},
            ],
            "description": "A part of a whole: 20% or 0.2.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_parts_are_read_as_people_write_them() {
        for (text, written) in
            [("250ms", "250ms"), ("1.5s", "1500ms"), ("120s", "2m"), ("0ms", "0s"), ("7d", "7d"), ("10us", "10us")]
        {
            assert_eq!(Span::parse(text).unwrap().to_string(), written);
        }
        for text in ["", "5", "s", "-1s", "1.2.3s", "1 fortnight", "9e9d", "1000d"] {
            assert!(Span::parse(text).unwrap_err().contains("write 250ms"), "{text}");
        }
        for (text, written) in [("64KiB", "64KiB"), ("2048 KiB", "2MiB"), ("1MB", "1000000B"), ("7", "7B"), ("0", "0B")]
        {
            assert_eq!(Size::parse(text).unwrap().to_string(), written);
        }
        for text in ["", "MiB", "-1", "1.5GiB", "99999999TiB", "1 KB", "1kib"] {
            assert!(Size::parse(text).unwrap_err().contains("write 64KiB"), "{text}");
        }
        for (text, written) in [("20%", "20%"), ("0.2", "20%"), ("0", "0%"), ("100%", "100%"), ("12.5 %", "12.5%")] {
            assert_eq!(Part::parse(text).unwrap().to_string(), written);
        }
        for text in ["", "%", "120%", "1.1", "-1%", "NaN", "inf"] {
            assert!(Part::parse(text).unwrap_err().contains("write 20%"), "{text}");
        }
    }
}
