//! Kafka's record batch, format v2: a view that never trusts a count, and a builder.
//!
//! The problem: batches travel from socket to disk to socket without being taken apart, yet what a client sends must
//! not be able to hurt anyone who later reads it. So the view checks everything that the header states against the
//! bytes that are there (length, magic, CRC32C, record count), [`BatchView::check_records`] walks the records of an
//! uncompressed batch without allocating, and decoding them is lazy, one record at a time. A count is only ever used
//! as the number of times to try: nothing is reserved for it.
//!
//! Layout (big endian), of which everything from `attributes` on is covered by the CRC, so that base offset and leader
//! epoch can be patched without computing it again:
//!
//! ```text
//!  0 base offset i64       12 leader epoch i32   21 attributes i16        35 max timestamp i64   53 base sequence i32
//!  8 length i32 (from 12)  16 magic i8 = 2       23 last offset delta i32 43 producer id i64     57 record count i32
//!                          17 crc u32            27 base timestamp i64    51 producer epoch i16  61 records …
//! ```
//!
//! Compression: batches pass through as they are. Asking for their records unpacks gzip, snappy, LZ4 and zstd, up to
//! [`DECOMPRESSED_BYTES_MAX`] (`compression.rs`).
//!
//! Source: Kafka's documentation, "Record Batch"; KIP-98.

use buttress_core::{Code, Error, limits::RECORD_BATCH_BYTES_MAX};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::compression::unpack;

/// Bytes before the first record.
pub const HEADER_BYTES: usize = 61;
/// Bytes before what `length` counts: base offset and length itself.
const LENGTH_END: usize = 12;
/// Where the CRC's cover begins.
const CRC_START: usize = 21;
/// The smallest record: one byte each for length, attributes, timestamp, offset, key length, value length, headers.
pub const RECORD_BYTES_MIN: usize = 7;
/// Largest decompressed content of one batch: 32 times the largest batch. JSON readings deflate to a tenth or less;
/// what deflates further than to a thirty-second is refused rather than unpacked.
pub const DECOMPRESSED_BYTES_MAX: usize = 32 * RECORD_BATCH_BYTES_MAX;
/// Record counts of compressed batches cannot be checked against bytes, so they are held against what could be unpacked.
pub const RECORDS_PER_BATCH_MAX: usize = DECOMPRESSED_BYTES_MAX / RECORD_BYTES_MIN;

const ATTRIBUTE_CODEC: i16 = 0x07;
const ATTRIBUTE_LOG_APPEND_TIME: i16 = 0x08;
const ATTRIBUTE_TRANSACTIONAL: i16 = 0x10;
const ATTRIBUTE_CONTROL: i16 = 0x20;

/// Why bytes are not a record batch, or why its records cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("record batch ends inside {0}")]
    Short(&'static str),
    #[error("record batch states a length of {stated} bytes where {actual} are there")]
    Length { stated: i32, actual: usize },
    #[error("record batch is {0} bytes, more than the limit of {RECORD_BATCH_BYTES_MAX}")]
    TooLarge(usize),
    #[error("record batch has magic {0}, only 2 is accepted")]
    Magic(i8),
    #[error("record batch has CRC32C {computed:08x} where {stated:08x} is stated")]
    Crc { stated: u32, computed: u32 },
    #[error(
        "record batch states {count} records (last offset delta {last_offset_delta}), which {bytes} bytes cannot hold"
    )]
    Count { count: i32, last_offset_delta: i32, bytes: usize },
    #[error("record {index} is malformed: {what}")]
    Record { index: u32, what: &'static str },
    #[error("{0} bytes are left over after the last record")]
    Trailing(usize),
    #[error("records are compressed with {0}, which cannot be decoded here")]
    Codec(Codec),
    #[error("compressed records are not valid {0}")]
    Packed(Codec),
    #[error("records unpack to more than {DECOMPRESSED_BYTES_MAX} bytes")]
    Bomb,
    #[error("there is no record batch")]
    Empty,
}

impl RecordError {
    pub fn code(&self) -> Code {
        match self {
            Self::TooLarge(_) | Self::Bomb => Code::TOO_LARGE,
            Self::Codec(_) => Code::UNSUPPORTED,
            _ => Code::BATCH_INVALID,
        }
    }
}

impl From<RecordError> for Error {
    fn from(error: RecordError) -> Self {
        let answer = Error::new(error.code(), error.to_string());
        match error {
            RecordError::Codec(_) => answer.hint("set the producer's compression to none, gzip, snappy, lz4 or zstd"),
            RecordError::Bomb => {
                answer.hint("produce smaller batches, or records that do not repeat themselves as much")
            }
            RecordError::Magic(_) => answer.hint("use a client that speaks Kafka 0.11 or newer"),
            _ => answer,
        }
    }
}

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
    /// A number that Kafka has not given away.
    Unknown(i16),
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Gzip => f.write_str("gzip"),
            Self::Snappy => f.write_str("snappy"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd => f.write_str("zstd"),
            Self::Unknown(number) => write!(f, "codec {number}"),
        }
    }
}

/// The idempotent producer that a batch names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    pub id: i64,
    pub epoch: i16,
    /// Sequence number of the first record; wraps from `i32::MAX` to 0.
    pub base_sequence: i32,
}

/// One header of a record. Keys may repeat and keep their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub key: Bytes,
    pub value: Option<Bytes>,
}

/// One record, sharing the batch's bytes (or, where it was compressed, those of the unpacked content).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
}

/// One record batch whose header has been checked. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchView {
    bytes: Bytes,
}

impl BatchView {
    /// Checks that `bytes` are exactly one batch of format v2: length, size limit, magic, CRC, and a record count of at
    /// least one that the bytes can hold and that agrees with the last offset delta.
    ///
    /// # Errors
    /// The first check that fails, in that order.
    pub fn parse(bytes: Bytes) -> Result<Self, RecordError> {
        let length = framed_length(&bytes)?;
        if length != bytes.len() {
            return Err(RecordError::Length { stated: i32_at(&bytes, 8), actual: bytes.len() - LENGTH_END });
        }
        if length > RECORD_BATCH_BYTES_MAX {
            return Err(RecordError::TooLarge(length));
        }
        if bytes[16] as i8 != 2 {
            return Err(RecordError::Magic(bytes[16] as i8));
        }
        if length < HEADER_BYTES {
            return Err(RecordError::Short("header"));
        }
        let stated = u32::from_be_bytes(bytes[17..21].try_into().expect("four bytes"));
        let computed = crc32c::crc32c(&bytes[CRC_START..]);
        if stated != computed {
            return Err(RecordError::Crc { stated, computed });
        }
        let view = Self { bytes };
        let (count, last_offset_delta) = (i32_at(&view.bytes, 57), i32_at(&view.bytes, 23));
        let room = match view.codec() {
            Codec::None => (length - HEADER_BYTES) / RECORD_BYTES_MIN,
            _ => RECORDS_PER_BATCH_MAX,
        };
        if count < 1 || count as usize > room || last_offset_delta != count - 1 {
            return Err(RecordError::Count { count, last_offset_delta, bytes: length - HEADER_BYTES });
        }
        Ok(view)
    }

    /// Checks one batch as a broker stores it: like [`BatchView::parse`], but compaction may have taken records out of it, or
    /// all of them.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn parse_stored(bytes: Bytes) -> Result<Self, RecordError> {
        let strict = Self::parse(bytes.clone());
        let Err(RecordError::Count { count, last_offset_delta, .. }) = strict else { return strict };
        let view = Self { bytes };
        let room = match view.codec() {
            Codec::None => (view.bytes.len() - HEADER_BYTES) / RECORD_BYTES_MIN,
            _ => RECORDS_PER_BATCH_MAX,
        };
        if count < 0 || count as usize > room || i64::from(last_offset_delta) < i64::from(count) - 1 {
            return strict;
        }
        Ok(view)
    }

    /// The batch as part of a producer's transaction. Everything else stays as it is.
    pub fn in_transaction(&self, producer: Producer) -> Bytes {
        let mut out = BytesMut::from(&self.bytes[..]);
        out[21..23].copy_from_slice(&(self.attributes() | ATTRIBUTE_TRANSACTIONAL).to_be_bytes());
        out[43..51].copy_from_slice(&producer.id.to_be_bytes());
        out[51..53].copy_from_slice(&producer.epoch.to_be_bytes());
        out[53..57].copy_from_slice(&producer.base_sequence.to_be_bytes());
        sealed(out)
    }

    /// The batch as something that readers step over, as they do over a transaction's marker.
    pub fn as_control(&self) -> Bytes {
        let mut out = BytesMut::from(&self.bytes[..]);
        out[21..23].copy_from_slice(&(self.attributes() | ATTRIBUTE_CONTROL).to_be_bytes());
        sealed(out)
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    pub fn base_offset(&self) -> i64 {
        i64_at(&self.bytes, 0)
    }

    pub fn last_offset(&self) -> i64 {
        self.base_offset().saturating_add(i32_at(&self.bytes, 23).into())
    }

    pub fn leader_epoch(&self) -> i32 {
        i32_at(&self.bytes, 12)
    }

    /// Number of records, as stated and found plausible.
    pub fn records_count(&self) -> u32 {
        i32_at(&self.bytes, 57) as u32
    }

    pub fn base_timestamp_ms(&self) -> i64 {
        i64_at(&self.bytes, 27)
    }

    pub fn max_timestamp_ms(&self) -> i64 {
        i64_at(&self.bytes, 35)
    }

    fn attributes(&self) -> i16 {
        i16::from_be_bytes(self.bytes[21..23].try_into().expect("two bytes"))
    }

    pub fn codec(&self) -> Codec {
        match self.attributes() & ATTRIBUTE_CODEC {
            0 => Codec::None,
            1 => Codec::Gzip,
            2 => Codec::Snappy,
            3 => Codec::Lz4,
            4 => Codec::Zstd,
            other => Codec::Unknown(other),
        }
    }

    /// The batch's timestamps were set by a broker instead of by the producer.
    pub fn is_log_append_time(&self) -> bool {
        self.attributes() & ATTRIBUTE_LOG_APPEND_TIME != 0
    }

    pub fn is_transactional(&self) -> bool {
        self.attributes() & ATTRIBUTE_TRANSACTIONAL != 0
    }

    /// A transaction marker, which only brokers write.
    pub fn is_control(&self) -> bool {
        self.attributes() & ATTRIBUTE_CONTROL != 0
    }

    /// The idempotent producer, where the batch names one.
    pub fn producer(&self) -> Option<Producer> {
        let id = i64_at(&self.bytes, 43);
        (id >= 0).then(|| Producer {
            id,
            epoch: i16::from_be_bytes(self.bytes[51..53].try_into().expect("two bytes")),
            base_sequence: i32_at(&self.bytes, 53),
        })
    }

    /// Walks the records of an uncompressed batch without allocating, so that nobody downstream meets a malformed one.
    /// A compressed batch is not looked into.
    ///
    /// # Errors
    /// The first record that is malformed or out of order, or bytes after the last.
    pub fn check_records(&self) -> Result<(), RecordError> {
        if self.codec() != Codec::None {
            return Ok(());
        }
        let mut rest = &self.bytes[HEADER_BYTES..];
        for index in 0..self.records_count() {
            let body = record_body(&mut rest).ok_or(RecordError::Record { index, what: "its length" })?;
            check_record(body, index).map_err(|what| RecordError::Record { index, what })?;
        }
        if rest.is_empty() { Ok(()) } else { Err(RecordError::Trailing(rest.len())) }
    }

    /// Iterates over the records, unpacking them where they are compressed.
    ///
    /// # Errors
    /// A codec that nobody knows, content that is not of its codec, or that unpacks beyond its limit. What is wrong with
    /// a single record comes from the iterator, which then ends.
    pub fn records(&self) -> Result<Records, RecordError> {
        let content = unpack(self.codec(), self.bytes.slice(HEADER_BYTES..))?;
        Ok(Records {
            content,
            next: 0,
            offset_after: 0,
            last_offset_delta: i32_at(&self.bytes, 23).into(),
            count: self.records_count(),
            base_offset: self.base_offset(),
            base_timestamp_ms: self.base_timestamp_ms(),
            append_time_ms: self.is_log_append_time().then(|| self.max_timestamp_ms()),
        })
    }
}

/// Splits a record set into its batches, checking each.
///
/// # Errors
/// The first batch that is not one. An empty set is [`RecordError::Empty`].
pub fn split_batches(mut set: Bytes) -> Result<Vec<BatchView>, RecordError> {
    let mut batches = Vec::new();
    while !set.is_empty() {
        let length = framed_length(&set)?;
        if length > set.len() {
            return Err(RecordError::Length { stated: i32_at(&set, 8), actual: set.len() - LENGTH_END });
        }
        batches.push(BatchView::parse(set.split_to(length))?);
    }
    if batches.is_empty() { Err(RecordError::Empty) } else { Ok(batches) }
}

/// Splits what a broker has answered into whole batches, unchecked but for their lengths. A broker may cut the last one off.
pub fn split_stored(mut set: Bytes) -> Vec<Bytes> {
    let mut batches = Vec::new();
    while let Ok(length) = framed_length(&set)
        && length <= set.len()
        && length >= HEADER_BYTES
    {
        batches.push(set.split_to(length));
    }
    batches
}

/// The first and the last offset of a batch, from a header that is there.
pub fn stored_offsets(batch: &[u8]) -> Option<(i64, i64)> {
    (batch.len() >= HEADER_BYTES).then(|| {
        let base = i64_at(batch, 0);
        (base, base.saturating_add(i32_at(batch, 23).max(0).into()))
    })
}

/// The batch with its checksum computed anew.
fn sealed(mut out: BytesMut) -> Bytes {
    let crc = crc32c::crc32c(&out[CRC_START..]);
    out[17..21].copy_from_slice(&crc.to_be_bytes());
    out.freeze()
}

/// Length of the first batch including the twelve bytes before what its length field counts. At least 17, so that the
/// magic can be read.
fn framed_length(bytes: &[u8]) -> Result<usize, RecordError> {
    if bytes.is_empty() {
        return Err(RecordError::Empty);
    }
    if bytes.len() < 17 {
        return Err(RecordError::Short("header"));
    }
    let stated = i32_at(bytes, 8);
    match usize::try_from(stated) {
        Ok(length) if length >= 17 - LENGTH_END => Ok(length + LENGTH_END),
        _ => Err(RecordError::Length { stated, actual: bytes.len() - LENGTH_END }),
    }
}

/// Iterator over the records of a batch.
#[derive(Clone, Debug)]
pub struct Records {
    content: Bytes,
    next: u32,
    /// The least offset delta that the next record can have.
    offset_after: i64,
    last_offset_delta: i64,
    count: u32,
    base_offset: i64,
    base_timestamp_ms: i64,
    append_time_ms: Option<i64>,
}

impl Iterator for Records {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.count {
            let left = std::mem::take(&mut self.content).len();
            return (left > 0).then_some(Err(RecordError::Trailing(left)));
        }
        let index = self.next;
        let record = self.decode().map_err(|what| RecordError::Record { index, what });
        self.next = if record.is_ok() { index + 1 } else { self.count };
        if record.is_err() {
            self.content = Bytes::new();
        }
        Some(record)
    }
}

impl Records {
    fn decode(&mut self) -> Result<Record, &'static str> {
        let length = varint(&mut self.content).and_then(|l| usize::try_from(l).ok()).ok_or("its length")?;
        if length > self.content.len() {
            return Err("its length is more than what is left");
        }
        let mut body = self.content.split_to(length);
        if !body.has_remaining() {
            return Err("it is empty");
        }
        body.advance(1);
        let timestamp_delta = varint(&mut body).ok_or("its timestamp")?;
        let offset_delta = varint(&mut body).ok_or("its offset")?;
        // Where all records are there, as [`BatchView::parse`] demands, only one delta is possible for each.
        let left = i64::from(self.count - self.next - 1);
        if offset_delta < self.offset_after || offset_delta.saturating_add(left) > self.last_offset_delta {
            return Err("its offset is out of order");
        }
        self.offset_after = offset_delta + 1;
        let key = nullable(&mut body).ok_or("its key")?;
        let value = nullable(&mut body).ok_or("its value")?;
        let count = varint(&mut body).filter(|c| *c >= 0).ok_or("its header count")?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let key = nullable(&mut body).flatten().ok_or("a header's key")?;
            let value = nullable(&mut body).ok_or("a header's value")?;
            headers.push(Header { key, value });
        }
        if body.has_remaining() {
            return Err("bytes after its headers");
        }
        Ok(Record {
            offset: self.base_offset.saturating_add(offset_delta),
            timestamp_ms: self.append_time_ms.unwrap_or(self.base_timestamp_ms.saturating_add(timestamp_delta)),
            key,
            value,
            headers,
        })
    }
}

/// Splits the first record's body off.
fn record_body<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(varint(rest)?).ok()?;
    let (body, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(body)
}

/// The checks of [`Records::decode`] without its results.
fn check_record(mut body: &[u8], index: u32) -> Result<(), &'static str> {
    body = body.get(1..).ok_or("it is empty")?;
    varint(&mut body).ok_or("its timestamp")?;
    if varint(&mut body).ok_or("its offset")? != i64::from(index) {
        return Err("its offset is out of order");
    }
    skip_nullable(&mut body).ok_or("its key")?;
    skip_nullable(&mut body).ok_or("its value")?;
    let count = varint(&mut body).filter(|c| *c >= 0).ok_or("its header count")?;
    for _ in 0..count {
        skip_nullable(&mut body).filter(|present| *present).ok_or("a header's key")?;
        skip_nullable(&mut body).ok_or("a header's value")?;
    }
    if body.is_empty() { Ok(()) } else { Err("bytes after its headers") }
}

/// A zigzag varint of at most ten bytes.
fn varint(input: &mut impl Buf) -> Option<i64> {
    let mut raw = 0u64;
    for shift in (0..64).step_by(7) {
        if !input.has_remaining() {
            return None;
        }
        let byte = input.get_u8();
        if shift == 63 && byte > 1 {
            return None;
        }
        raw |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((raw >> 1) as i64 ^ -((raw & 1) as i64));
        }
    }
    None
}

/// A byte string whose length is −1 where there is none. The outer `None` is malformed.
fn nullable(input: &mut Bytes) -> Option<Option<Bytes>> {
    match varint(input)? {
        -1 => Some(None),
        length => {
            let length = usize::try_from(length).ok().filter(|l| *l <= input.len())?;
            Some(Some(input.split_to(length)))
        }
    }
}

/// Skips what [`nullable`] reads; whether there was something.
fn skip_nullable(input: &mut &[u8]) -> Option<bool> {
    match varint(input)? {
        -1 => Some(false),
        length => {
            *input = input.get(usize::try_from(length).ok()?..)?;
            Some(true)
        }
    }
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Builds one uncompressed batch, record by record.
///
/// ```
/// use buttress_wire::records::{BatchView, Builder};
/// let mut builder = Builder::new();
/// builder.push(1_700_000_000_000, Some(b"m1"), Some(b"{}"), &[]);
/// let batch = builder.build().expect("a record was pushed");
/// assert_eq!(BatchView::parse(batch).unwrap().records_count(), 1);
/// ```
#[derive(Debug)]
pub struct Builder {
    out: BytesMut,
    count: u32,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
    producer: Option<Producer>,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    pub fn new() -> Self {
        Self::with_capacity(512)
    }

    /// `bytes`: expected size of the records.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + bytes);
        out.put_bytes(0, HEADER_BYTES);
        Self { out, count: 0, base_timestamp_ms: 0, max_timestamp_ms: i64::MIN, producer: None }
    }

    /// Names the idempotent producer.
    pub fn producer(mut self, producer: Producer) -> Self {
        self.producer = Some(producer);
        self
    }

    /// Number of records so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Size of the batch so far in bytes.
    pub fn size(&self) -> usize {
        self.out.len()
    }

    pub fn max_timestamp_ms(&self) -> i64 {
        self.max_timestamp_ms
    }

    /// An upper bound of what one more record adds, so that a batch can be closed before it grows beyond its limit.
    pub fn record_size_max(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&[u8], Option<&[u8]>)]) -> usize {
        let headers: usize = headers.iter().map(|(k, v)| 10 + k.len() + v.map_or(0, <[u8]>::len)).sum();
        36 + key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + headers
    }

    /// Adds one record. The caller holds [`Builder::size`] against [`RECORD_BATCH_BYTES_MAX`].
    pub fn push(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
    ) -> &mut Self {
        if self.count == 0 {
            self.base_timestamp_ms = timestamp_ms;
        }
        let timestamp_delta = timestamp_ms.wrapping_sub(self.base_timestamp_ms);
        let offset_delta = i64::from(self.count);
        let mut length = 1 + varint_len(timestamp_delta) + varint_len(offset_delta);
        length += nullable_len(key) + nullable_len(value) + varint_len(headers.len() as i64);
        length += headers.iter().map(|(k, v)| nullable_len(Some(k)) + nullable_len(*v)).sum::<usize>();
        put_varint(&mut self.out, length as i64);
        let start = self.out.len();
        self.out.put_u8(0);
        put_varint(&mut self.out, timestamp_delta);
        put_varint(&mut self.out, offset_delta);
        put_nullable(&mut self.out, key);
        put_nullable(&mut self.out, value);
        put_varint(&mut self.out, headers.len() as i64);
        for (key, value) in headers {
            put_nullable(&mut self.out, Some(key));
            put_nullable(&mut self.out, *value);
        }
        assert_eq!(self.out.len() - start, length, "the record's length was computed before it was written");
        self.count += 1;
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        self
    }

    /// The finished batch with base offset 0 and leader epoch −1; `None` where no record was pushed.
    pub fn build(mut self) -> Option<Bytes> {
        if self.count == 0 {
            return None;
        }
        let producer = self.producer.unwrap_or(Producer { id: -1, epoch: -1, base_sequence: -1 });
        let length = (self.out.len() - LENGTH_END) as i32;
        let mut header = &mut self.out[..HEADER_BYTES];
        header.put_i64(0);
        header.put_i32(length);
        header.put_i32(-1);
        header.put_i8(2);
        header.put_u32(0);
        header.put_i16(0);
        header.put_i32(self.count as i32 - 1);
        header.put_i64(self.base_timestamp_ms);
        header.put_i64(self.max_timestamp_ms);
        header.put_i64(producer.id);
        header.put_i16(producer.epoch);
        header.put_i32(producer.base_sequence);
        header.put_i32(self.count as i32);
        assert!(header.is_empty(), "the header is {HEADER_BYTES} bytes");
        let crc = crc32c::crc32c(&self.out[CRC_START..]);
        self.out[17..21].copy_from_slice(&crc.to_be_bytes());
        Some(self.out.freeze())
    }
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn varint_len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

fn put_varint(out: &mut BytesMut, value: i64) {
    let mut raw = zigzag(value);
    while raw >= 0x80 {
        out.put_u8(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.put_u8(raw as u8);
}

fn nullable_len(value: Option<&[u8]>) -> usize {
    value.map_or(1, |v| varint_len(v.len() as i64) + v.len())
}

fn put_nullable(out: &mut BytesMut, value: Option<&[u8]>) {
    match value {
        None => put_varint(out, -1),
        Some(value) => {
            put_varint(out, value.len() as i64);
            out.put_slice(value);
        }
    }
}
