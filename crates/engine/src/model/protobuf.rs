//! A protobuf reader for exactly what ONNX needs: it walks over fields and borrows from the bytes.
//!
//! Nothing is allocated by a length that the file states; a length beyond the bytes is an error where it stands.
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

use super::Problem;

/// The value of one field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of one message, in the order they stand.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

pub(crate) fn fields(bytes: &[u8]) -> Fields<'_> {
    Fields { rest: bytes }
}

fn short() -> Problem {
    "it ends in the middle of a field".into()
}

/// Takes a varint of at most ten bytes.
fn varint(rest: &mut &[u8]) -> Result<u64, Problem> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or_else(short)?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("it holds a number that is too long".into())
}

fn take<'a>(rest: &mut &'a [u8], count: u64) -> Result<&'a [u8], Problem> {
    let count = usize::try_from(count).map_err(|_| short())?;
    let (taken, after) = rest.split_at_checked(count).ok_or_else(short)?;
    *rest = after;
    Ok(taken)
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Value<'a>), Problem> {
        let rest = &mut self.rest;
        let tag = varint(rest)?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(rest)?),
            1 => Value::Fixed64(u64::from_le_bytes(take(rest, 8)?.try_into().expect("eight bytes"))),
            2 => {
                let length = varint(rest)?;
                Value::Bytes(take(rest, length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(take(rest, 4)?.try_into().expect("four bytes"))),
            kind => return Err(format!("it holds a field of kind {kind}, which is not used any more")),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

impl<'a> Value<'a> {
    pub(crate) fn bytes(self) -> Result<&'a [u8], Problem> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err("it holds a number where bytes belong".into()),
        }
    }

    pub(crate) fn text(self) -> Result<&'a str, Problem> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "it holds text that is not UTF-8".into())
    }

    pub(crate) fn int(self) -> Result<i64, Problem> {
        match self {
            Value::Varint(value) => Ok(value as i64),
            _ => Err("it holds something else where an integer belongs".into()),
        }
    }

    /// Appends the integers of a repeated field, packed or not.
    pub(crate) fn ints(self, into: &mut Vec<i64>) -> Result<(), Problem> {
        match self {
            Value::Varint(value) => into.push(value as i64),
            Value::Bytes(mut rest) => {
                while !rest.is_empty() {
                    into.push(varint(&mut rest)? as i64);
                }
            }
            _ => return Err("it holds something else where integers belong".into()),
        }
        Ok(())
    }

    /// Appends the floats of a repeated field, packed or not.
    pub(crate) fn floats(self, into: &mut Vec<f32>) -> Result<(), Problem> {
        match self {
            Value::Fixed32(bits) => into.push(f32::from_bits(bits)),
            Value::Bytes(bytes) => {
                let (floats, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(short());
                }
                into.extend(floats.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
            _ => return Err("it holds something else where floats belong".into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_walked() {
        let bytes = [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 0, 0, 0x80, 0x3f, 0x21, 1, 0, 0, 0, 0, 0, 0, 0];
        let got: Result<Vec<_>, _> = fields(&bytes).collect();
        let want = vec![
            (1, Value::Varint(150)),
            (2, Value::Bytes(b"hi")),
            (3, Value::Fixed32(0x3f80_0000)),
            (4, Value::Fixed64(1)),
        ];
        assert_eq!(got, Ok(want));
    }

    #[test]
    fn lies_are_errors() {
        for bytes in [
            &[0x08][..],
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f, 1],
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0x0b],
            &[0x1d, 0, 0],
        ] {
            let got: Result<Vec<_>, _> = fields(bytes).collect();
            assert!(got.is_err(), "{bytes:?}");
        }
        assert!(Value::Bytes(&[1, 2, 3]).floats(&mut Vec::new()).is_err());
        assert!(Value::Bytes(&[0x80]).ints(&mut Vec::new()).is_err());
    }
}
