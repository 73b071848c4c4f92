//! The bounded reader and the writer that every format of ours is built from.
//!
//! Integers are LEB128 varints (signed ones zigzag), byte strings carry their length. Counts are checked against the
//! bytes that are left before anything is allocated, so a count that lies costs nothing.

use bytes::{Buf, Bytes};

/// Why bytes are not what they claim to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("input ends inside {0}")]
    Short(&'static str),
    #[error("{what} is {got}, more than the limit of {limit}")]
    TooLarge { what: &'static str, got: u64, limit: u64 },
    #[error("{what} has the unknown tag {tag}")]
    Tag { what: &'static str, tag: u64 },
    #[error("{0} is not valid UTF-8")]
    Utf8(&'static str),
    #[error("{0} bytes are left over after the end")]
    Trailing(usize),
    #[error("format version {got} is not among those known here (up to {known})")]
    Version { got: u8, known: u8 },
}

/// Reads from shared bytes without copying them.
#[derive(Clone, Debug)]
pub struct Reader {
    bytes: Bytes,
}

impl Reader {
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes }
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        if self.bytes.is_empty() {
            return Err(DecodeError::Short(what));
        }
        Ok(self.bytes.get_u8())
    }

    pub fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::TooLarge { what, got: u64::MAX, limit: u64::MAX });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::TooLarge { what, got: u64::MAX, limit: u64::MAX })
    }

    pub fn varint_u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        let got = self.varint(what)?;
        u32::try_from(got).map_err(|_| DecodeError::TooLarge { what, got, limit: u64::from(u32::MAX) })
    }

    pub fn zigzag(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        let raw = self.varint(what)?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// Takes `len` bytes as they are, sharing the input's allocation.
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<Bytes, DecodeError> {
        if self.bytes.len() < len {
            return Err(DecodeError::Short(what));
        }
        Ok(self.bytes.split_to(len))
    }

    /// A length-prefixed byte string of at most `limit` bytes.
    pub fn bytes(&mut self, what: &'static str, limit: usize) -> Result<Bytes, DecodeError> {
        let got = self.varint(what)?;
        if got > limit as u64 {
            return Err(DecodeError::TooLarge { what, got, limit: limit as u64 });
        }
        self.take(got as usize, what)
    }

    pub fn string(&mut self, what: &'static str, limit: usize) -> Result<String, DecodeError> {
        let raw = self.bytes(what, limit)?;
        std::str::from_utf8(&raw).map(str::to_owned).map_err(|_| DecodeError::Utf8(what))
    }

    /// A count of items that each take at least one byte.
    pub fn count(&mut self, what: &'static str, limit: usize) -> Result<usize, DecodeError> {
        let got = self.varint(what)?;
        let limit = limit.min(self.remaining()) as u64;
        if got > limit {
            return Err(DecodeError::TooLarge { what, got, limit });
        }
        Ok(got as usize)
    }

    pub fn list<T>(
        &mut self,
        what: &'static str,
        limit: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.count(what, limit)?;
        let mut items = Vec::with_capacity(count.min(256));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    pub fn option<T>(
        &mut self,
        what: &'static str,
        item: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        match self.u8(what)? {
            0 => Ok(None),
            1 => item(self).map(Some),
            tag => Err(DecodeError::Tag { what, tag: tag.into() }),
        }
    }

    /// Asserts that nothing is left.
    pub fn end(self) -> Result<(), DecodeError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.bytes.len())) }
    }
}

/// Writes what [`Reader`] reads.
#[derive(Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub fn with_capacity(capacity: usize) -> Self {
        Self { out: Vec::with_capacity(capacity) }
    }

    pub fn len(&self) -> usize {
        self.out.len()
    }

    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    pub fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    pub fn zigzag(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)) as u64);
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    pub fn list<T>(&mut self, items: &[T], mut item: impl FnMut(&mut Self, &T)) {
        self.varint(items.len() as u64);
        for each in items {
            item(self, each);
        }
    }

    pub fn option<T>(&mut self, value: Option<&T>, item: impl FnOnce(&mut Self, &T)) {
        match value {
            None => self.u8(0),
            Some(value) => {
                self.u8(1);
                item(self, value);
            }
        }
    }

    /// What was written, without room that was not needed: then nobody counts who has it until somebody else does.
    pub fn finish(self) -> Bytes {
        self.out.into_boxed_slice().into()
    }
}
