//! The Huffman code of header texts.
//!
//! The code is canonical: codes of one length follow each other in the order of their symbols, and those of the next length
//! come after them. So the lengths say all of it, and a code is told from its value alone.
//!
//! Source: RFC 7541, section 5.2 and appendix B.

use super::hpack::Malformed;

/// The length of each symbol's code in bits; the last symbol is the end of a text.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];
const LENGTH_MAX: usize = 30;
const END: u16 = 256;
/// What is told by one look: symbols with codes of at most eight bits, which are all that headers are mostly made of.
const SHORT: usize = 8;

struct Code {
    /// The first code of each length, aligned to the left in 32 bits; where there is none, that of the next length.
    first: [u32; LENGTH_MAX + 2],
    /// Where the symbols of each length begin.
    begin: [u16; LENGTH_MAX + 2],
    /// All symbols in the order of their codes.
    symbols: [u16; 257],
    /// By the next eight bits: a symbol and the length of its code, 0 where that is longer.
    short: [(u8, u8); 1 << SHORT],
}

const CODE: Code = code();

const fn code() -> Code {
    let mut made =
        Code { first: [0; LENGTH_MAX + 2], begin: [0; LENGTH_MAX + 2], symbols: [0; 257], short: [(0, 0); 1 << SHORT] };
    let (mut length, mut next, mut count) = (1, 0_u64, 0);
    while length <= LENGTH_MAX {
        made.first[length] = next as u32;
        made.begin[length] = count as u16;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                made.symbols[count] = symbol as u16;
                count += 1;
                if length <= SHORT {
                    let from = (next >> (32 - SHORT)) as usize;
                    let mut at = 0;
                    while at < 1 << (SHORT - length) {
                        made.short[from + at] = (symbol as u8, length as u8);
                        at += 1;
                    }
                }
                next += 1 << (32 - length);
            }
            symbol += 1;
        }
        length += 1;
    }
    // The code is complete: behind its last code nothing is left.
    assert!(next == 1 << 32 && count == LENGTHS.len());
    made.first[LENGTH_MAX + 1] = u32::MAX;
    made.begin[LENGTH_MAX + 1] = count as u16;
    made
}

/// Appends what a text says.
///
/// # Errors
/// The end of a text within it, or padding that is longer than seven bits or has a bit that is not set.
pub fn decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    static TABLE: Code = CODE;
    let (mut bits, mut count, mut bytes) = (0_u64, 0_u32, text.iter());
    loop {
        while count <= 32
            && let Some(byte) = bytes.next()
        {
            bits = bits << 8 | u64::from(*byte);
            count += 8;
        }
        if count == 0 {
            return Ok(());
        }
        // The next 32 bits; where there are fewer, ones stand behind them, as padding does.
        let ahead = match count {
            32.. => (bits >> (count - 32)) as u32,
            _ => (bits as u32) << (32 - count) | u32::MAX >> count,
        };
        let (symbol, length) = TABLE.short[(ahead >> (32 - SHORT)) as usize];
        let (symbol, length) = if length > 0 {
            (u16::from(symbol), u32::from(length))
        } else {
            let mut length = SHORT + 1;
            while length < LENGTH_MAX && ahead >= TABLE.first[length + 1] {
                length += 1;
            }
            let at = (ahead - TABLE.first[length]) >> (32 - length);
            (TABLE.symbols[usize::from(TABLE.begin[length]) + at as usize], length as u32)
        };
        if length > count {
            // What is left is padding: fewer than eight bits, all of them set.
            let padding = (1_u64 << count) - 1;
            return if count < 8 && bits & padding == padding { Ok(()) } else { Err(Malformed) };
        }
        if symbol == END {
            return Err(Malformed);
        }
        out.push(symbol as u8);
        count -= length;
    }
}

/// Appends a text's code, for tests and seeds of fuzzers: what we send is not compressed.
pub fn encode(text: &[u8], out: &mut Vec<u8>) {
    static TABLE: Code = CODE;
    let (mut bits, mut count) = (0_u64, 0_u32);
    for byte in text {
        let length = usize::from(LENGTHS[usize::from(*byte)]);
        let begin = usize::from(TABLE.begin[length]);
        let at = TABLE.symbols[begin..].iter().position(|symbol| *symbol == u16::from(*byte)).expect("each has a code");
        let code = (TABLE.first[length] >> (32 - length)) + at as u32;
        bits = bits << length | u64::from(code);
        count += length as u32;
        while count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    if count > 0 {
        out.push((bits << (8 - count)) as u8 | (u8::MAX >> count));
    }
}
