//! The writer: a rope, so that record bytes go to the socket from where they lie.

use bytes::{BufMut, Bytes, BytesMut};

/// Record bytes shorter than this are copied: an entry of the vectored write costs about as much.
const COPY_BYTES_MAX: usize = 2 * 1024;

/// Writes one message in one version.
#[derive(Debug)]
pub struct Writer {
    version: i16,
    flexible: bool,
    /// What comes before `rest` begins; holds the frame's length.
    first: Option<BytesMut>,
    rest: Vec<Bytes>,
    out: BytesMut,
}

impl Writer {
    pub fn new(version: i16, flexible: bool) -> Self {
        Self { version, flexible, first: None, rest: Vec::new(), out: BytesMut::with_capacity(256) }
    }

    pub fn version(&self) -> i16 {
        self.version
    }

    pub fn flexible(&self) -> bool {
        self.flexible
    }

    /// For a header whose form differs from its body's.
    pub(super) fn set_flexible(&mut self, flexible: bool) {
        self.flexible = flexible;
    }

    pub fn u8(&mut self, value: u8) {
        self.out.put_u8(value);
    }

    pub fn i16(&mut self, value: i16) {
        self.out.put_i16(value);
    }

    pub fn i32(&mut self, value: i32) {
        self.out.put_i32(value);
    }

    pub fn i64(&mut self, value: i64) {
        self.out.put_i64(value);
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.put_slice(bytes);
    }

    pub fn uvarint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.out.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.put_u8(value as u8);
    }

    /// A length in this version's form; `None` for null.
    fn length(&mut self, length: Option<usize>, short: bool) {
        let limit = if short && !self.flexible { i16::MAX as usize } else { i32::MAX as usize - 1 };
        assert!(length.is_none_or(|l| l <= limit), "the length {length:?} fits the protocol's field");
        match (self.flexible, short) {
            (true, _) => self.uvarint(length.map_or(0, |l| l as u32 + 1)),
            (false, true) => self.i16(length.map_or(-1, |l| l as i16)),
            (false, false) => self.i32(length.map_or(-1, |l| l as i32)),
        }
    }

    pub fn nullable_string(&mut self, value: Option<&str>) {
        self.length(value.map(str::len), true);
        self.raw(value.unwrap_or_default().as_bytes());
    }

    pub fn nullable_bytes(&mut self, value: Option<&Bytes>) {
        self.length(value.map(Bytes::len), false);
        if let Some(value) = value {
            self.shared(value);
        }
    }

    /// Byte string made of chunks, which are not copied.
    pub fn chunks(&mut self, chunks: &[Bytes]) {
        self.length(Some(chunks.iter().map(Bytes::len).sum()), false);
        for chunk in chunks {
            self.shared(chunk);
        }
    }

    fn shared(&mut self, bytes: &Bytes) {
        if bytes.len() < COPY_BYTES_MAX {
            return self.raw(bytes);
        }
        let before = self.out.split();
        match self.first {
            None => self.first = Some(before),
            Some(_) if before.is_empty() => {}
            Some(_) => self.rest.push(before.freeze()),
        }
        self.rest.push(bytes.clone());
    }

    pub fn nullable_array<T>(&mut self, items: Option<&[T]>, mut item: impl FnMut(&mut Self, &T)) {
        self.length(items.map(<[T]>::len), false);
        for each in items.unwrap_or_default() {
            item(self, each);
        }
    }

    /// The tagged fields at the end of a struct, in the order of their tags.
    pub fn tagged_fields(&mut self, fields: &[(u32, Bytes)]) {
        if !self.flexible {
            return;
        }
        self.uvarint(fields.len() as u32);
        for (tag, bytes) in fields {
            self.uvarint(*tag);
            self.uvarint(bytes.len() as u32);
            self.raw(bytes);
        }
    }

    /// A tagged field's bytes, written by a writer of its own.
    pub fn nested(&self, write: impl FnOnce(&mut Self)) -> Bytes {
        let mut nested = Self::new(self.version, true);
        write(&mut nested);
        nested.finish().concat().into()
    }

    /// What was written, as chunks for one vectored write.
    pub fn finish(mut self) -> Vec<Bytes> {
        let mut chunks = Vec::with_capacity(self.rest.len() + 2);
        chunks.extend(self.first.take().map(BytesMut::freeze));
        chunks.append(&mut self.rest);
        if !self.out.is_empty() {
            chunks.push(self.out.freeze());
        }
        chunks
    }

    /// Like [`Writer::finish`], with the number of all following bytes in the first four, which the caller left zero.
    pub(super) fn finish_frame(mut self) -> Vec<Bytes> {
        let total = self.first.as_ref().map_or(0, BytesMut::len)
            + self.rest.iter().map(Bytes::len).sum::<usize>()
            + self.out.len();
        let prefix = ((total - 4) as u32).to_be_bytes();
        self.first.as_mut().unwrap_or(&mut self.out)[..4].copy_from_slice(&prefix);
        self.finish()
    }
}
