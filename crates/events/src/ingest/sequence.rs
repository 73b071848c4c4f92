//! Finds a device's name and sequence number in the body of a record.
//!
//! Only the top level of the object is looked at; everything else is skipped without building a value, so a reading of 150
//! bytes costs one pass over its bytes and one allocation for the name. The body must be valid JSON all the same.

use std::fmt;

use buttress_core::{Code, Error, Sequence};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor},
};

/// What a device's name is prefixed with in [`Sequence::producer`].
pub(crate) const DEVICE_PREFIX: &str = "device:";
/// Longest device name: as long as a topic's name may be, rounded up. A partition remembers up to a million of them.
pub const DEVICE_NAME_BYTES_MAX: usize = 256;
/// The optional field with the device's epoch.
const EPOCH_FIELD: &str = "epoch";

/// Reads the sequence of a record.
///
/// `fields` are the names of the producer's and the number's field. The producer is a string or an integer, the number
/// an integer from 0, `epoch` (where present) an integer from 0 to 2³¹ − 1.
///
/// # Errors
/// `RECORD_INVALID`: the body is not a JSON object, a field is missing, doubled or of another type.
pub fn sequence_of(body: &[u8], fields: &(String, String)) -> Result<Sequence, Error> {
    // Checked up front, because strings that are skipped are not.
    let text = std::str::from_utf8(body).map_err(|error| error.to_string());
    let found = text.and_then(|text| {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let found = Object(fields).deserialize(&mut deserializer);
        found.and_then(|found| deserializer.end().map(|()| found)).map_err(|error| error.to_string())
    });
    found.map_err(|error| {
        Error::new(Code::RECORD_INVALID, format!("record is not what its topic expects: {error}")).hint(format!(
            "send a JSON object with {:?} (string or integer) and {:?} (integer, one more for each record)",
            fields.0, fields.1
        ))
    })
}

/// What must hold for any body whatsoever.
pub fn fuzz_sequence_of(body: &[u8]) {
    let fields = ("machine".to_owned(), "seq".to_owned());
    if let Ok(found) = sequence_of(body, &fields) {
        let name = found.producer.strip_prefix(DEVICE_PREFIX).expect("a device's name has its prefix");
        assert!((1..=DEVICE_NAME_BYTES_MAX).contains(&name.len()), "{name:?}");
        assert!(found.number >= 0 && found.epoch >= 0, "{found:?}");
    }
}

/// The object with its two or three fields.
struct Object<'a>(&'a (String, String));

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Sequence;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Sequence, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Sequence;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Sequence, A::Error> {
        let (producer_field, number_field) = self.0;
        let mut producer: Option<String> = None;
        let mut number: Option<i64> = None;
        let mut epoch: Option<i32> = None;
        while let Some(field) = map.next_key_seed(FieldName(self.0))? {
            let doubled = match field {
                Field::Producer => producer.replace(map.next_value_seed(Name(producer_field))?).is_some(),
                Field::Number => {
                    number.replace(map.next_value_seed(Integer { field: number_field, max: i64::MAX })?).is_some()
                }
                Field::Epoch => {
                    let max = i64::from(i32::MAX);
                    let value = map.next_value_seed(Integer { field: EPOCH_FIELD, max })?;
                    epoch.replace(i32::try_from(value).expect("held against the maximum")).is_some()
                }
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if doubled {
                return Err(A::Error::custom("a field of the sequence appears twice"));
            }
        }
        Ok(Sequence {
            producer: producer.ok_or_else(|| A::Error::custom(format_args!("field {producer_field:?} is missing")))?,
            epoch: epoch.unwrap_or(0),
            number: number.ok_or_else(|| A::Error::custom(format_args!("field {number_field:?} is missing")))?,
        })
    }
}

enum Field {
    Producer,
    Number,
    Epoch,
    Other,
}

struct FieldName<'a>(&'a (String, String));

impl<'de> DeserializeSeed<'de> for FieldName<'_> {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldName<'_> {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Field, E> {
        Ok(match name {
            _ if name == self.0.0 => Field::Producer,
            _ if name == self.0.1 => Field::Number,
            EPOCH_FIELD => Field::Epoch,
            _ => Field::Other,
        })
    }
}

/// The device's name, already with its prefix.
struct Name<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string or an integer in field {:?}", self.0)
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<String, E> {
        if name.is_empty() || name.len() > DEVICE_NAME_BYTES_MAX {
            let field = self.0;
            return Err(E::custom(format_args!("field {field:?} is not 1 to {DEVICE_NAME_BYTES_MAX} bytes long")));
        }
        Ok([DEVICE_PREFIX, name].concat())
    }

    fn visit_u64<E>(self, name: u64) -> Result<String, E> {
        Ok(format!("{DEVICE_PREFIX}{name}"))
    }

    fn visit_i64<E>(self, name: i64) -> Result<String, E> {
        Ok(format!("{DEVICE_PREFIX}{name}"))
    }
}

struct Integer<'a> {
    field: &'a str,
    max: i64,
}

impl<'de> DeserializeSeed<'de> for Integer<'_> {
    type Value = i64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<i64, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Integer<'_> {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an integer from 0 to {} in field {:?}", self.max, self.field)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<i64, E> {
        match i64::try_from(value) {
            Ok(value) if value <= self.max => Ok(value),
            _ => Err(E::invalid_value(serde::de::Unexpected::Unsigned(value), &self)),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<i64, E> {
        // serde_json calls this for negative numbers only.
        Err(E::invalid_value(serde::de::Unexpected::Signed(value), &self))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    fn fields() -> (String, String) {
        ("machine".into(), "seq".into())
    }

    #[test]
    fn bodies_and_their_sequences() {
        let mut out = String::new();
        for body in [
            r#"{"machine":"m1","seq":7,"temperature":21.5,"nested":{"machine":"no","seq":[1,{"seq":2}]}}"#,
            r#" { "seq": 9223372036854775807, "epoch": 3, "machine": 17 } "#,
            r#"{"machine":"gr\u00fcn","seq":0}"#,
            r#"{"machine":"m1"}"#,
            r#"{"seq":1}"#,
            r#"{"machine":"m1","seq":-1}"#,
            r#"{"machine":"m1","seq":9223372036854775808}"#,
            r#"{"machine":"m1","seq":1.0}"#,
            r#"{"machine":"m1","seq":"1"}"#,
            r#"{"machine":"m1","seq":1,"epoch":2147483648}"#,
            r#"{"machine":"m1","seq":1,"epoch":null}"#,
            r#"{"machine":"","seq":1}"#,
            r#"{"machine":1.5,"seq":1}"#,
            r#"{"machine":"m1","seq":1,"seq":2}"#,
            r#"{"machine":"m1","seq":1} x"#,
            r#"{"machine":"m1","seq":1"#,
            r#"[1]"#,
            r#""#,
            "\u{0}",
        ] {
            match sequence_of(body.as_bytes(), &fields()) {
                Ok(s) => writeln!(out, "{} epoch {} number {}", s.producer, s.epoch, s.number),
                Err(error) => writeln!(out, "{} {}", error.code, error.message),
            }
            .expect("strings can be written to");
        }
        expect![[r#"
            device:m1 epoch 0 number 7
            device:17 epoch 3 number 9223372036854775807
            device:grün epoch 0 number 0
            BT0308 record is not what its topic expects: field "seq" is missing at line 1 column 16
            BT0308 record is not what its topic expects: field "machine" is missing at line 1 column 9
            BT0308 record is not what its topic expects: invalid value: integer `-1`, expected an integer from 0 to 9223372036854775807 in field "seq" at line 1 column 24
            BT0308 record is not what its topic expects: invalid value: integer `9223372036854775808`, expected an integer from 0 to 9223372036854775807 in field "seq" at line 1 column 41
            BT0308 record is not what its topic expects: invalid type: floating point `1.0`, expected an integer from 0 to 9223372036854775807 in field "seq" at line 1 column 25
            BT0308 record is not what its topic expects: invalid type: string "1", expected an integer from 0 to 9223372036854775807 in field "seq" at line 1 column 25
            BT0308 record is not what its topic expects: invalid value: integer `2147483648`, expected an integer from 0 to 2147483647 in field "epoch" at line 1 column 42
            BT0308 record is not what its topic expects: invalid type: null, expected an integer from 0 to 2147483647 in field "epoch" at line 1 column 36
            BT0308 record is not what its topic expects: field "machine" is not 1 to 256 bytes long at line 1 column 13
            BT0308 record is not what its topic expects: invalid type: floating point `1.5`, expected a string or an integer in field "machine" at line 1 column 14
            BT0308 record is not what its topic expects: a field of the sequence appears twice at line 1 column 32
            BT0308 record is not what its topic expects: trailing characters at line 1 column 26
            BT0308 record is not what its topic expects: EOF while parsing an object at line 1 column 23
            BT0308 record is not what its topic expects: invalid type: sequence, expected a JSON object at line 1 column 0
            BT0308 record is not what its topic expects: EOF while parsing a value at line 1 column 0
            BT0308 record is not what its topic expects: expected value at line 1 column 1
        "#]].assert_eq(&out);
    }

    proptest! {
        #[test]
        fn agrees_with_a_full_parse(name in "[a-z\"\\\\é]{1,10}", number in 0..i64::MAX, epoch in prop::option::of(0..i32::MAX), noise in any::<u32>()) {
            let mut body = serde_json::json!({"a": [noise, {"seq": noise}], "machine": name, "seq": number, "z": null});
            if let Some(epoch) = epoch {
                body["epoch"] = epoch.into();
            }
            let found = sequence_of(body.to_string().as_bytes(), &fields()).expect("valid");
            prop_assert_eq!(found, Sequence { producer: format!("device:{name}"), epoch: epoch.unwrap_or(0), number });
        }

        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..60)) {
            fuzz_sequence_of(&body);
        }

        #[test]
        fn near_misses_never_panic(parts in prop::collection::vec(prop::sample::select(&["{", "}", "\"machine\"", "\"seq\"", "\"epoch\"", ":", ",", "1", "-", "\"m\"", "[", "]", "null"][..]), 0..12)) {
            fuzz_sequence_of(parts.concat().as_bytes());
        }
    }
}
