//! Where a body ends: the decoder and the encoder of HTTP/1.1 framing, without IO.
//!
//! A body is decoded and framed anew, never copied with its frame: chunk extensions, odd sizes and leading zeros end here.
//!
//! Source: RFC 9112, sections 6 and 7.

use std::io;

use buttress_core::Code;
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use crate::parse::{self, Length, Refusal};

/// The size line of a chunk: 16 hexadecimal digits, and room for extensions that nobody uses.
const SIZE_LINE_MAX: usize = 1024;
/// Extensions of one body together. They carry nothing, so more is an attempt to make us work.
const EXTENSIONS_MAX: usize = 16 * 1024;
const TRAILER_BYTES_MAX: usize = 16 * 1024;
/// 15 digits: what is longer is no size of anything, and a `u64` holds it without overflow.
const SIZE_DIGITS_MAX: usize = 15;

#[derive(Debug)]
pub enum Decoder {
    /// So many bytes are still to come.
    Length(u64),
    Chunked {
        state: Chunk,
        extensions: usize,
    },
    UntilClose,
    Ended,
}

#[derive(Debug)]
pub enum Chunk {
    Size,
    Data(u64),
    /// The CRLF behind the data.
    DataEnd,
    Trailers {
        at: usize,
    },
}

/// What came next.
#[derive(Debug)]
pub enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    /// The body is whole.
    End,
    /// More bytes are needed.
    More,
}

const fn bad(says: &'static str) -> Refusal {
    Refusal { status: 400, code: Code::HTTP_AMBIGUOUS, says }
}

impl Decoder {
    pub fn new(length: Length) -> Self {
        match length {
            Length::Known(0) => Decoder::Ended,
            Length::Known(bytes) => Decoder::Length(bytes),
            Length::Chunked => Decoder::Chunked { state: Chunk::Size, extensions: 0 },
            Length::UntilClose => Decoder::UntilClose,
        }
    }

    pub fn ended(&self) -> bool {
        matches!(self, Decoder::Ended)
    }

    /// Takes the next part of the body out of `bytes`.
    ///
    /// # Errors
    /// A frame that is not as RFC 9112 says; nothing behind it can be read.
    pub fn step(&mut self, bytes: &mut BytesMut) -> Result<Step, Refusal> {
        match self {
            Decoder::Ended => Ok(Step::End),
            Decoder::UntilClose if bytes.is_empty() => Ok(Step::More),
            Decoder::UntilClose => Ok(Step::Data(bytes.split().freeze())),
            Decoder::Length(_) if bytes.is_empty() => Ok(Step::More),
            Decoder::Length(left) => {
                let take = (*left).min(bytes.len() as u64);
                *left -= take;
                if *left == 0 {
                    *self = Decoder::Ended;
                }
                Ok(Step::Data(bytes.split_to(take as usize).freeze()))
            }
            Decoder::Chunked { state, extensions } => {
                let step = chunk(state, extensions, bytes)?;
                if matches!(step, Step::Trailers(_) | Step::End) {
                    *self = Decoder::Ended;
                }
                Ok(step)
            }
        }
    }

    /// The peer closed its side.
    ///
    /// # Errors
    /// Where the body was not whole.
    pub fn closed(&mut self) -> io::Result<()> {
        match self {
            Decoder::Ended => Ok(()),
            Decoder::UntilClose => {
                *self = Decoder::Ended;
                Ok(())
            }
            _ => {
                let says = "the connection closed in the middle of the body";
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, says))
            }
        }
    }
}

fn chunk(state: &mut Chunk, extensions: &mut usize, bytes: &mut BytesMut) -> Result<Step, Refusal> {
    loop {
        match state {
            Chunk::Size => {
                let Some(lf) = memchr::memchr(b'\n', &bytes[..bytes.len().min(SIZE_LINE_MAX)]) else {
                    return if bytes.len() >= SIZE_LINE_MAX {
                        Err(bad("a chunk's size line is too long"))
                    } else {
                        // What is there must be the begin of one, so that a wrong one is refused before it is whole.
                        bytes.first().map_or(Ok(Step::More), |first| match first.is_ascii_hexdigit() {
                            true => Ok(Step::More),
                            false => Err(bad("a chunk's size is not hexadecimal")),
                        })
                    };
                };
                let (size, extension) = size_line(&bytes[..lf])?;
                *extensions += extension;
                if *extensions > EXTENSIONS_MAX {
                    return Err(bad("the chunks' extensions are too long"));
                }
                bytes.advance(lf + 1);
                *state = if size == 0 { Chunk::Trailers { at: 0 } } else { Chunk::Data(size) };
            }
            Chunk::Data(_) if bytes.is_empty() => return Ok(Step::More),
            Chunk::Data(left) => {
                let take = (*left).min(bytes.len() as u64);
                *left -= take;
                if *left == 0 {
                    *state = Chunk::DataEnd;
                }
                return Ok(Step::Data(bytes.split_to(take as usize).freeze()));
            }
            Chunk::DataEnd => match bytes.get(..2) {
                Some(b"\r\n") => {
                    bytes.advance(2);
                    *state = Chunk::Size;
                }
                Some(_) => return Err(bad("a chunk is longer than its size")),
                None if bytes.first().is_some_and(|first| *first != b'\r') => {
                    return Err(bad("a chunk is longer than its size"));
                }
                None => return Ok(Step::More),
            },
            Chunk::Trailers { at } => {
                if bytes.starts_with(b"\r\n") {
                    bytes.advance(2);
                    return Ok(Step::End);
                }
                let from = at.saturating_sub(3);
                let Some(found) = memchr::memmem::find(&bytes[from..], b"\r\n\r\n") else {
                    if bytes.len() > TRAILER_BYTES_MAX {
                        return Err(bad("the trailers are larger than 16 KiB"));
                    }
                    *at = bytes.len();
                    return Ok(Step::More);
                };
                let raw = bytes.split_to(from + found + 4).freeze();
                return parse::trailers(raw).map(Step::Trailers);
            }
        }
    }
}

/// The size, and how many bytes of extensions stand behind it; `line` ends before the LF.
fn size_line(line: &[u8]) -> Result<(u64, usize), Refusal> {
    let Some((b'\r', line)) = line.split_last() else {
        return Err(bad("a chunk's size line ends in LF without CR"));
    };
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if digits == 0 {
        return Err(bad("a chunk's size is not hexadecimal"));
    }
    if digits > SIZE_DIGITS_MAX {
        return Err(bad("a chunk's size is larger than any chunk"));
    }
    let value = |b: &u8| u64::from((*b as char).to_digit(16).expect("these are hexadecimal digits"));
    let size = line[..digits].iter().fold(0u64, |sum, b| sum << 4 | value(b));
    let rest = &line[digits..];
    // RFC 9112, 7.1.1: extensions begin with a semicolon, perhaps after blanks ("bad whitespace"); unknown ones are ignored.
    let begin = rest.iter().position(|b| !matches!(b, b' ' | b'\t'));
    match begin {
        None if rest.is_empty() => Ok((size, 0)),
        Some(at) if rest[at] == b';' && rest.iter().all(|b| matches!(b, b'\t' | 0x20..=0x7e | 0x80..)) => {
            Ok((size, rest.len()))
        }
        _ => Err(bad("there is something else behind a chunk's size")),
    }
}

/// How a body is framed for the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoder {
    /// Exactly so many bytes are still to come.
    Length(u64),
    Chunked,
    /// Closing the connection ends it; for clients that speak HTTP/1.0.
    UntilClose,
}

impl Encoder {
    /// Writes what stands before `bytes` of data.
    ///
    /// # Errors
    /// When the body is longer than was said.
    pub fn before(&mut self, bytes: usize, out: &mut BytesMut) -> Result<(), Refusal> {
        match self {
            Encoder::Length(left) => match left.checked_sub(bytes as u64) {
                Some(rest) => *left = rest,
                None => return Err(bad("the body is longer than its Content-Length")),
            },
            Encoder::Chunked => {
                let (mut text, mut at, mut rest) = ([0u8; 18], 18, bytes);
                for byte in [b'\n', b'\r'] {
                    at -= 1;
                    text[at] = byte;
                }
                loop {
                    at -= 1;
                    text[at] = b"0123456789abcdef"[rest & 15];
                    rest >>= 4;
                    if rest == 0 {
                        break;
                    }
                }
                out.extend_from_slice(&text[at..]);
            }
            Encoder::UntilClose => {}
        }
        Ok(())
    }

    /// What stands behind the data of every frame.
    pub fn after(self) -> &'static [u8] {
        if self == Encoder::Chunked { b"\r\n" } else { b"" }
    }

    /// Writes the end of the body.
    ///
    /// # Errors
    /// When the body is shorter than was said.
    pub fn end(self, trailers: Option<&HeaderMap>, out: &mut BytesMut) -> Result<(), Refusal> {
        match self {
            Encoder::Length(0) | Encoder::UntilClose => Ok(()),
            Encoder::Length(_) => Err(bad("the body is shorter than its Content-Length")),
            Encoder::Chunked => {
                out.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                        out.extend_from_slice(part);
                    }
                }
                out.extend_from_slice(b"\r\n");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything that is decoded, however the bytes are cut.
    fn decode(length: Length, input: &[u8], cut: usize) -> Result<(Vec<u8>, usize, bool), Refusal> {
        let (mut decoder, mut bytes, mut data, mut trailers) = (Decoder::new(length), BytesMut::new(), Vec::new(), 0);
        for piece in input.chunks(cut.max(1)) {
            bytes.extend_from_slice(piece);
            loop {
                match decoder.step(&mut bytes)? {
                    Step::Data(piece) => data.extend_from_slice(&piece),
                    Step::Trailers(map) => trailers += map.len(),
                    Step::End | Step::More => break,
                }
            }
        }
        Ok((data, trailers, decoder.ended()))
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_however_it_is_cut(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..6),
            cut in 1usize..64,
            with_trailer in any::<bool>(),
        ) {
            let (mut encoder, mut out) = (Encoder::Chunked, BytesMut::new());
            for part in &parts {
                encoder.before(part.len(), &mut out).unwrap();
                out.extend_from_slice(part);
                out.extend_from_slice(encoder.after());
            }
            let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), http::HeaderValue::from_static("1"))]);
            encoder.end(with_trailer.then_some(&trailers), &mut out).unwrap();
            let decoded = decode(Length::Chunked, &out, cut).unwrap();
            prop_assert_eq!(decoded, (parts.concat(), usize::from(with_trailer), true));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic_or_give_more_than_came(input in prop::collection::vec(any::<u8>(), 0..400), cut in 1usize..50) {
            for length in [Length::Chunked, Length::Known(37), Length::UntilClose] {
                if let Ok((data, ..)) = decode(length, &input, cut) {
                    prop_assert!(data.len() <= input.len());
                }
            }
        }
    }

    #[test]
    fn a_body_that_is_longer_or_shorter_than_it_said_is_an_error() {
        let mut out = BytesMut::new();
        assert!(Encoder::Length(3).before(4, &mut out).is_err());
        let mut encoder = Encoder::Length(3);
        encoder.before(2, &mut out).unwrap();
        assert!(encoder.end(None, &mut out).is_err());
        let mut decoder = Decoder::new(Length::Known(5));
        decoder.step(&mut BytesMut::from(&b"abc"[..])).unwrap();
        assert!(decoder.closed().is_err());
    }
}
