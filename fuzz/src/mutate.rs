//! Seeded mutations, for runs without coverage.
//!
//! Without coverage luck must be helped: most mutations are of the kind that decoders trip over. Lengths are where
//! decoders trust, so a number that looks like a length is replaced by one that lies, in every width and order that our
//! formats use; tags are small numbers; and inputs are cut, doubled and spliced where structures repeat. One to four
//! mutations are stacked, for one lie is often caught by the next check.

use buttress_wal::faulty::Seeded;

/// Numbers at which something changes.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    31,
    32,
    61,
    63,
    64,
    65,
    127,
    128,
    129,
    255,
    256,
    1023,
    1024,
    4095,
    4096,
    32767,
    32768,
    65535,
    65536,
    1 << 20,
    1 << 24,
    i32::MAX as u64,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 62,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

pub struct Mutator<'a> {
    random: Seeded,
    inputs: &'a [Vec<u8>],
    words: &'a [&'a str],
    bytes_max: usize,
}

impl<'a> Mutator<'a> {
    /// # Panics
    /// Where there are no inputs.
    pub fn new(seed: u64, inputs: &'a [Vec<u8>], words: &'a [&'a str], bytes_max: usize) -> Self {
        assert!(!inputs.is_empty(), "a run starts from something");
        Self { random: Seeded::new(seed), inputs, words, bytes_max }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound.max(1) as u64) as usize
    }

    /// The next input.
    pub fn input(&mut self) -> Vec<u8> {
        let chosen = self.below(self.inputs.len());
        let mut bytes = self.inputs[chosen].clone();
        for _ in 0..1 + self.below(4) {
            self.mutate(&mut bytes);
        }
        bytes.truncate(self.bytes_max);
        bytes
    }

    /// A stretch of the bytes, short ones more often than long ones.
    fn stretch(&mut self, len: usize) -> std::ops::Range<usize> {
        let from = self.below(len + 1);
        let most = 1 << self.below(9);
        from..(from + self.below(most + 1)).min(len)
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        match self.below(12) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            1 if !bytes.is_empty() => bytes[at] = self.random.next_u64() as u8,
            2 if !bytes.is_empty() => {
                let by = 1 + self.below(4) as u8;
                bytes[at] = if self.below(2) == 0 { bytes[at].wrapping_add(by) } else { bytes[at].wrapping_sub(by) };
            }
            3 => bytes.truncate(at),
            4 => {
                let gone = self.stretch(bytes.len());
                bytes.drain(gone);
            }
            5 => {
                let again = self.stretch(bytes.len());
                let copy = bytes[again].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            6 => {
                let other = self.below(self.inputs.len());
                let part = self.stretch(self.inputs[other].len());
                let replaced = self.stretch(bytes.len());
                bytes.splice(replaced, self.inputs[other][part].iter().copied());
            }
            7 => {
                let other = self.below(self.inputs.len());
                let from = self.below(self.inputs[other].len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&self.inputs[other][from..]);
            }
            8 if !self.words.is_empty() => {
                let word = self.words[self.below(self.words.len())].as_bytes();
                let replaced = if self.below(2) == 0 { at..at } else { at..(at + word.len()).min(bytes.len()) };
                bytes.splice(replaced, word.iter().copied());
            }
            9 => {
                let number = self.number(bytes.len(), at);
                let mut varint = Vec::new();
                let mut rest = number;
                while rest >= 0x80 {
                    varint.push(rest as u8 | 0x80);
                    rest >>= 7;
                }
                varint.push(rest as u8);
                let replaced = at..(at + self.below(3)).min(bytes.len());
                bytes.splice(replaced, varint);
            }
            _ => {
                let number = self.number(bytes.len(), at);
                let width = 1 << self.below(4);
                let lie = match self.below(2) {
                    0 => number.to_be_bytes()[8 - width..].to_vec(),
                    _ => number.to_le_bytes()[..width].to_vec(),
                };
                let replaced = at..(at + width).min(bytes.len());
                bytes.splice(replaced, lie);
            }
        }
    }

    /// A number that a length field might hold: an edge, or near what would be true here.
    fn number(&mut self, len: usize, at: usize) -> u64 {
        match self.below(3) {
            0 => ((len - at.min(len)) as u64).wrapping_add(self.random.below(5)).wrapping_sub(2),
            1 => self.random.below(300),
            _ => EDGES[self.below(EDGES.len())].wrapping_add(self.random.below(3)).wrapping_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs_and_the_limit_holds() {
        let inputs = vec![b"hello".to_vec(), vec![], vec![7; 100]];
        let run = |seed| {
            let mut mutator = Mutator::new(seed, &inputs, &["word"], 64);
            (0..2_000).map(|_| mutator.input()).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert!(run(1).iter().all(|input| input.len() <= 64));
        assert!(run(1).iter().any(|input| input.windows(4).any(|window| window == b"word")));
    }
}
