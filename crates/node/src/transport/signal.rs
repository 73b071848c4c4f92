//! The byte that the receiver of a lane writes once a second, and what it can say.
//!
//! A sender from before there were signals takes any byte for a sign of life, so they may be sent to everybody.
//!
//! ```text
//!   0         it is there
//!   1         it has taken the snapshot (snapshot lane only)
//!   2         the sender was removed from the cluster
//!   3         the sender was never added to the cluster
//!   16..=80   it is there, and its disk takes about 2^((n - 16) / 2) µs to sync
//!   96..=127  it reads entries up to format n - 96 (control lane, behind each of the others)
//! ```
//!
//! Half an octave is exact enough to tell a slow disk from a good one, and covers 1 µs to an hour.

pub const ALIVE: u8 = 0;
pub const TAKEN: u8 = 1;
const REMOVED: u8 = 2;
const UNKNOWN: u8 = 3;
const SYNC_FIRST: u8 = 16;
const SYNC_LAST: u8 = 80;
const FORMAT_FIRST: u8 = 96;
const FORMAT_LAST: u8 = 127;

/// Why a peer does not take our connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Our id was a member's once and is none any more.
    Removed,
    /// No member ever had our id.
    Unknown,
}

impl Verdict {
    pub fn byte(self) -> u8 {
        match self {
            Self::Removed => REMOVED,
            Self::Unknown => UNKNOWN,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Alive,
    Told(Verdict),
    /// Microseconds.
    Sync(u64),
    /// The newest format of entries that the receiver reads.
    Reads(u8),
}

impl Signal {
    /// What a byte says; one that a later version invents is a sign of life.
    pub fn of(byte: u8) -> Self {
        match byte {
            REMOVED => Self::Told(Verdict::Removed),
            UNKNOWN => Self::Told(Verdict::Unknown),
            SYNC_FIRST..=SYNC_LAST => {
                let half_octaves = u32::from(byte - SYNC_FIRST);
                let octave = 1u64 << (half_octaves / 2);
                // 181/128 is the square root of two.
                Self::Sync(if half_octaves.is_multiple_of(2) { octave } else { octave * 181 / 128 })
            }
            FORMAT_FIRST..=FORMAT_LAST => Self::Reads(byte - FORMAT_FIRST),
            _ => Self::Alive,
        }
    }
}

/// The byte that says which entries are read.
pub fn reads(format: u8) -> u8 {
    FORMAT_FIRST + format.min(FORMAT_LAST - FORMAT_FIRST)
}

/// The byte for a duration, rounded down.
pub fn sync(us: u64) -> u8 {
    (SYNC_FIRST..=SYNC_LAST)
        .rev()
        .find(|byte| matches!(Signal::of(*byte), Signal::Sync(at) if at <= us))
        .unwrap_or(SYNC_FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_comes_back_within_half_an_octave() {
        for us in (0..40).flat_map(|octave| [1u64 << octave, (1 << octave) * 5 / 4, (1 << octave) * 7 / 4]) {
            let Signal::Sync(got) = Signal::of(sync(us)) else { panic!("{us} is no duration") };
            let us = us.min(1 << 32);
            assert!(got <= us && us as f64 <= got as f64 * 1.5 + 1.0, "{us} came back as {got}");
        }
        assert_eq!(Signal::of(sync(0)), Signal::Sync(1));
    }

    #[test]
    fn every_byte_says_something() {
        for verdict in [Verdict::Removed, Verdict::Unknown] {
            assert_eq!(Signal::of(verdict.byte()), Signal::Told(verdict));
        }
        for byte in [ALIVE, TAKEN, 4, 15, 81, 95, 128, 255] {
            assert_eq!(Signal::of(byte), Signal::Alive);
        }
        for format in 0..32 {
            assert_eq!(Signal::of(reads(format)), Signal::Reads(format));
        }
    }
}
