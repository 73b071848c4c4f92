//! Randomness as an input: a generator that is wholly determined by the seed the host gives.

/// SplitMix64 (Steele, Lea, Flood 2014): one addition and three mixes per number, no state beyond a word. Election
/// timeouts and read nonces need spread, not secrecy.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `[from, to)`. The bias of the remainder is below 2^-50 for the small ranges used here.
    pub(crate) fn range(&mut self, from: u64, to: u64) -> u64 {
        assert!(from < to, "an empty range has no number");
        from + self.next() % (to - from)
    }
}
