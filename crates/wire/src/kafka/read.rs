//! The bounded reader of request and response bodies.
//!
//! Two budgets keep a frame from costing more than it weighs. Lengths are held against the bytes that are left before
//! anything is taken, and byte strings share the frame's allocation. Array elements are counted over the whole
//! message, because an element can be a hundred times larger in memory than on the wire: [`ITEMS_MAX`] × about 128
//! bytes is 8 MiB. No capacity is ever reserved from a count.

use bytes::{Buf, Bytes};

use super::message::Field;

/// Array elements of one message, all its arrays together. A Fetch of every partition of sixty topics of the largest
/// kind fits.
pub const ITEMS_MAX: usize = 64 * 1024;

/// Why bytes are not the message that their header states.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("message ends inside {0}")]
    Short(&'static str),
    #[error("{what} states a length of {length}")]
    Length { what: &'static str, length: i64 },
    #[error("{0} may not be null")]
    Null(&'static str),
    #[error("{0} is not valid UTF-8")]
    Utf8(&'static str),
    #[error("{what} is {value}, neither 0 nor 1")]
    Bool { what: &'static str, value: u8 },
    #[error("the arrays hold more than {ITEMS_MAX} elements together")]
    TooManyItems,
    #[error("{0} bytes are left over after the end")]
    Trailing(usize),
}

/// Reads one message in one version.
#[derive(Debug)]
pub struct Reader {
    bytes: Bytes,
    version: i16,
    flexible: bool,
    items_left: usize,
}

impl Reader {
    pub fn new(bytes: Bytes, version: i16, flexible: bool) -> Self {
        Self { bytes, version, flexible, items_left: ITEMS_MAX }
    }

    pub fn version(&self) -> i16 {
        self.version
    }

    /// Whether lengths are compact varints and structs end in tagged fields.
    pub fn flexible(&self) -> bool {
        self.flexible
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn need(&self, count: usize, what: &'static str) -> Result<(), DecodeError> {
        if self.bytes.len() < count { Err(DecodeError::Short(what)) } else { Ok(()) }
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.need(1, what)?;
        Ok(self.bytes.get_u8())
    }

    pub fn i16(&mut self, what: &'static str) -> Result<i16, DecodeError> {
        self.need(2, what)?;
        Ok(self.bytes.get_i16())
    }

    pub fn i32(&mut self, what: &'static str) -> Result<i32, DecodeError> {
        self.need(4, what)?;
        Ok(self.bytes.get_i32())
    }

    pub fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        self.need(8, what)?;
        Ok(self.bytes.get_i64())
    }

    /// An unsigned varint of at most 32 bits.
    pub fn uvarint(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.u8(what)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| DecodeError::Length { what, length: value as i64 });
            }
        }
        Err(DecodeError::Length { what, length: value as i64 })
    }

    pub fn take(&mut self, count: usize, what: &'static str) -> Result<Bytes, DecodeError> {
        self.need(count, what)?;
        Ok(self.bytes.split_to(count))
    }

    /// A length in this version's form, `None` where it stands for null: a string's i16, else an i32, or a varint that
    /// is one more than the length.
    fn length(&mut self, what: &'static str, short: bool) -> Result<Option<usize>, DecodeError> {
        let length = match (self.flexible, short) {
            (true, _) => i64::from(self.uvarint(what)?) - 1,
            (false, true) => i64::from(self.i16(what)?),
            (false, false) => i64::from(self.i32(what)?),
        };
        match length {
            -1 => Ok(None),
            length if length < 0 || length > self.bytes.len() as i64 => Err(DecodeError::Length { what, length }),
            length => Ok(Some(length as usize)),
        }
    }

    pub fn nullable_string(&mut self, what: &'static str) -> Result<Option<String>, DecodeError> {
        let Some(length) = self.length(what, true)? else { return Ok(None) };
        let raw = self.take(length, what)?;
        std::str::from_utf8(&raw).map(|s| Some(s.to_owned())).map_err(|_| DecodeError::Utf8(what))
    }

    pub fn nullable_bytes(&mut self, what: &'static str) -> Result<Option<Bytes>, DecodeError> {
        match self.length(what, false)? {
            None => Ok(None),
            Some(length) => self.take(length, what).map(Some),
        }
    }

    /// An array. Every element takes at least one byte, so a count beyond the bytes that are left is refused at once.
    pub fn nullable_array<T: Field>(&mut self, what: &'static str) -> Result<Option<Vec<T>>, DecodeError> {
        let Some(count) = self.length(what, false)? else { return Ok(None) };
        self.items_left = self.items_left.checked_sub(count).ok_or(DecodeError::TooManyItems)?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(T::read(self, what)?);
        }
        Ok(Some(items))
    }

    /// The tagged fields at the end of a struct: `known` reads those it knows and answers whether it did; the others
    /// are skipped, as the protocol demands.
    pub fn tagged_fields(
        &mut self,
        mut known: impl FnMut(&mut Reader, u32) -> Result<bool, DecodeError>,
    ) -> Result<(), DecodeError> {
        if !self.flexible {
            return Ok(());
        }
        let count = self.uvarint("tagged fields")?;
        for _ in 0..count {
            let tag = self.uvarint("tag")?;
            let size = self.uvarint("tagged field")? as usize;
            let bytes = self.take(size, "tagged field")?;
            let mut field = Reader { bytes, version: self.version, flexible: true, items_left: self.items_left };
            if known(&mut field, tag)? {
                self.items_left = field.items_left;
                field.end()?;
            }
        }
        Ok(())
    }

    /// Asserts that nothing is left.
    pub fn end(self) -> Result<(), DecodeError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.bytes.len())) }
    }
}
