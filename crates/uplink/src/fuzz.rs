//! What the fuzzer runs: the decoder of the text that lies in the target.

use buttress_core::Offset;

use crate::position::Position;

/// The first eight bytes are the offset, the rest the text. What is read is written back as it was.
pub fn position(input: &[u8]) {
    let Some((offset, text)) = input.split_first_chunk::<8>() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let offset = Offset(i64::from_be_bytes(*offset));
    if let Ok(position) = Position::parse(offset, text) {
        assert_eq!((position.next, position.text().as_str()), (offset, text));
    }
}

/// Texts as they are written.
pub fn positions() -> Vec<Vec<u8>> {
    use crate::position::{Lineage, Mark};
    let lineage = Lineage { topic: *b"0123456789abcdef", adopted: 1 };
    [None, Some(Mark { base: Offset(4), crc: 0x0102_0304 })]
        .into_iter()
        .map(|mark| {
            let position = Position { next: Offset(9), lineage, mark };
            [&position.next.0.to_be_bytes()[..], position.text().as_bytes()].concat()
        })
        .collect()
}
