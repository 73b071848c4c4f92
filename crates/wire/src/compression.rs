//! Unpacking the records of a batch: gzip, snappy, LZ4 and zstd, each within the same bound.
//!
//! The problem: what is packed says little about how much it unpacks to, and whoever packed it may lie. So everything is
//! unpacked into one buffer that grows with what is really there, up to [`DECOMPRESSED_BYTES_MAX`]; a size that is stated
//! reserves nothing beyond what the packed bytes could become, and a window beyond the bound is refused before it is
//! made room for. Every decoder is safe Rust.
//!
//! What clients send under one name:
//!
//! | codec | forms |
//! |---|---|
//! | gzip | members one after the other |
//! | snappy | one raw block (librdkafka, franz-go), or the frames of snappy-java: a header of 16 bytes, then blocks with their lengths |
//! | LZ4 | frames with the checksum as its format says; the wrong one of Kafka before 0.10 exists in older batch formats only |
//! | zstd | frames, skippable ones among them; dictionaries are refused |
//!
//! Source: KIP-110 (zstd), KAFKA-3160 (LZ4), snappy-java's `SnappyOutputStream`, RFC 8878, LZ4's frame format 1.6.

use std::io::Read;

use bytes::Bytes;

use crate::records::{Codec, DECOMPRESSED_BYTES_MAX, RecordError};

/// What snappy-java's stream begins with; its version and the oldest version that can read it follow.
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_BYTES: usize = 16;
/// A copy of three bytes makes 64, and nothing in snappy's format makes more of less.
const SNAPPY_RATIO_MAX: usize = 22;
const LZ4_MAGIC: [u8; 4] = 0x184d_2204u32.to_le_bytes();
/// The sixteen magic numbers of frames that are to be skipped, in LZ4 and zstd alike.
const SKIPPABLE_MAGIC: u32 = 0x184d_2a50;
/// The largest window of zstd that is made room for: that of its levels up to 19, and of every frame that states its size.
const ZSTD_WINDOW_BYTES_MAX: u64 = DECOMPRESSED_BYTES_MAX as u64;

/// # Errors
/// A codec that nobody knows, bytes that are not of the codec, or more than may be unpacked.
pub(crate) fn unpack(codec: Codec, packed: Bytes) -> Result<Bytes, RecordError> {
    let content = match codec {
        Codec::None => return Ok(packed),
        Codec::Gzip => bounded(&mut flate2::read::MultiGzDecoder::new(&packed[..]), Vec::new(), codec)?,
        Codec::Snappy => snappy(&packed)?,
        Codec::Lz4 => lz4(&packed)?,
        Codec::Zstd => zstd(&packed)?,
        Codec::Unknown(_) => return Err(RecordError::Codec(codec)),
    };
    Ok(content.into())
}

/// Reads to the end, behind what is there already.
fn bounded(reader: &mut impl Read, mut content: Vec<u8>, codec: Codec) -> Result<Vec<u8>, RecordError> {
    let room = (DECOMPRESSED_BYTES_MAX - content.len()) as u64;
    let read = reader.take(room + 1).read_to_end(&mut content).map_err(|_| RecordError::Packed(codec))?;
    if read as u64 > room { Err(RecordError::Bomb) } else { Ok(content) }
}

fn snappy(packed: &[u8]) -> Result<Vec<u8>, RecordError> {
    let broken = || RecordError::Packed(Codec::Snappy);
    let mut content = Vec::new();
    if !packed.starts_with(XERIAL_MAGIC) {
        snappy_block(packed, &mut content)?;
        return Ok(content);
    }
    let mut rest = packed.get(XERIAL_HEADER_BYTES..).ok_or_else(broken)?;
    while !rest.is_empty() {
        let (length, after) = rest.split_at_checked(4).ok_or_else(broken)?;
        let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        let (block, after) = after.split_at_checked(length).ok_or_else(broken)?;
        snappy_block(block, &mut content)?;
        rest = after;
    }
    Ok(content)
}

fn snappy_block(block: &[u8], content: &mut Vec<u8>) -> Result<(), RecordError> {
    let broken = |_| RecordError::Packed(Codec::Snappy);
    let stated = snap::raw::decompress_len(block).map_err(broken)?;
    if stated > block.len() * SNAPPY_RATIO_MAX {
        return Err(RecordError::Packed(Codec::Snappy));
    }
    let start = content.len();
    if stated > DECOMPRESSED_BYTES_MAX - start {
        return Err(RecordError::Bomb);
    }
    content.resize(start + stated, 0);
    let written = snap::raw::Decoder::new().decompress(block, &mut content[start..]).map_err(broken)?;
    content.truncate(start + written);
    Ok(())
}

/// A frame that says of itself that it is to be skipped; what comes after it.
fn skipped(packed: &[u8]) -> Option<&[u8]> {
    let magic = u32::from_le_bytes(packed.get(..4)?.try_into().expect("four bytes"));
    let length = u32::from_le_bytes(packed.get(4..8)?.try_into().expect("four bytes"));
    (magic & !0xf == SKIPPABLE_MAGIC).then(|| packed.get(8..)?.get(length as usize..)).flatten()
}

fn lz4(packed: &[u8]) -> Result<Vec<u8>, RecordError> {
    let mut content = Vec::new();
    let mut rest = packed;
    while !rest.is_empty() {
        if let Some(after) = skipped(rest) {
            rest = after;
            continue;
        }
        // The decoder also takes the legacy format, which Kafka has never had.
        if !rest.starts_with(&LZ4_MAGIC) {
            return Err(RecordError::Packed(Codec::Lz4));
        }
        // A decoder of its own for each frame: its buffers are of the first one's block size.
        content = bounded(&mut lz4_flex::frame::FrameDecoder::new(&mut rest), content, Codec::Lz4)?;
    }
    Ok(content)
}

fn zstd(packed: &[u8]) -> Result<Vec<u8>, RecordError> {
    let broken = || RecordError::Packed(Codec::Zstd);
    let mut content = Vec::new();
    let mut rest = packed;
    while !rest.is_empty() {
        if let Some(after) = skipped(rest) {
            rest = after;
            continue;
        }
        let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(&mut rest, ZSTD_WINDOW_BYTES_MAX);
        let mut decoder = decoder.map_err(|_| broken())?;
        content = bounded(&mut decoder, content, Codec::Zstd)?;
        let decoder = decoder.into_frame_decoder();
        let stated = decoder.get_checksum_from_data();
        if stated.is_some() && stated != decoder.get_calculated_checksum() {
            return Err(broken());
        }
    }
    Ok(content)
}
