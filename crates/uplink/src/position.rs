//! Where a lane goes on, as the target keeps it: the next local offset, and a text beside it that says of which log.
//!
//! An offset alone means nothing. The disk of a gateway may have been cloned, or restored from an older backup, and then
//! the same offset names another record; a topic may have been deleted and made again. So the text carries
//!
//! - the *lineage*: the local topic's id, which is drawn when the topic is made, and how often an operator has said that
//!   the lane goes on with another log (`uplink adopt`);
//! - the *mark*: base offset and checksum of the local batch that holds the last record before the position.
//!
//! Who resumes must find that batch in its own log. A gateway that was restored, and a clone whose twin has sent something
//! since, do not; so of two clones the one that sends first goes on, and the other one is told ([`Position::speaks_of`]).
//! Where retention has taken the batch, or a gap ends at the position, only the lineage can be held against the log.

use std::fmt;

use buttress_core::{Code, Error, Offset};

/// Longer texts were not written here. Kafka takes 4,096 bytes.
pub const TEXT_BYTES_MAX: usize = 256;
const HEAD: &str = "buttress-uplink/1";

/// Which log the offsets of a position count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// The local topic's id.
    pub topic: [u8; 16],
    /// How often the lane was given another log on purpose.
    pub adopted: u32,
}

/// A local batch, so that it is known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub base: Offset,
    pub crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The first local offset that the target does not have.
    pub next: Offset,
    pub lineage: Lineage,
    /// The batch that ends at `next`, or holds the record before it.
    pub mark: Option<Mark>,
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.topic.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, ".{}", self.adopted)
    }
}

impl Position {
    /// The text that lies beside the offset.
    pub fn text(&self) -> String {
        match self.mark {
            Some(Mark { base, crc }) => format!("{HEAD} lineage={} mark={base}:{crc:08x}", self.lineage),
            None => format!("{HEAD} lineage={} mark=none", self.lineage),
        }
    }

    /// Reads what [`text`](Self::text) wrote.
    ///
    /// # Errors
    /// `UPLINK_POSITION` for anything else: somebody else commits under the uplink's name.
    pub fn parse(next: Offset, text: &str) -> Result<Self, Error> {
        let strange = || {
            let shown: String = text.chars().take(80).collect();
            let message = format!("offset {next} in the target was not left there by an uplink: its text is {shown:?}");
            Error::new(Code::UPLINK_POSITION, message)
                .hint("does another program commit offsets for the uplink's group? give the uplink another --edge name")
        };
        if text.len() > TEXT_BYTES_MAX || next.0 < 0 {
            return Err(strange());
        }
        let parsed = || -> Option<Self> {
            let rest = text.strip_prefix(HEAD)?.strip_prefix(" lineage=")?;
            let (lineage, mark) = rest.split_once(" mark=")?;
            let (hex, adopted) = lineage.split_once('.')?;
            let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if hex.len() != 32 || !digits(hex) {
                return None;
            }
            let mut topic = [0; 16];
            for (byte, pair) in topic.iter_mut().zip(hex.as_bytes().chunks(2)) {
                *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
            }
            let mark = match mark {
                "none" => None,
                mark => {
                    let (base, crc) = mark.split_once(':')?;
                    let base = Offset(base.parse().ok()?);
                    if crc.len() != 8 || !digits(crc) || base.0 < 0 || base >= next {
                        return None;
                    }
                    Some(Mark { base, crc: u32::from_str_radix(crc, 16).ok()? })
                }
            };
            Some(Self { next, lineage: Lineage { topic, adopted: adopted.parse().ok()? }, mark })
        };
        // A number has one spelling only: what is written again is the same text.
        parsed().filter(|position| position.text() == text).ok_or_else(strange)
    }

    /// Whether a local log is the one that this position was written from. `mark`: the local batch that holds the record
    /// before the position, where it still is there.
    ///
    /// # Errors
    /// `UPLINK_DIVERGED`, saying what differs.
    pub fn speaks_of(&self, lineage: Lineage, end: Offset, mark: Option<Mark>) -> Result<(), Error> {
        let diverged = |what: String| {
            Error::new(Code::UPLINK_DIVERGED, what).hint(
                "was this gateway cloned, restored from a backup, or its topic made again? `buttress uplink adopt` goes on \
                 with this log",
            )
        };
        if self.lineage != lineage {
            return Err(diverged(format!("the target goes on with log {}, this one is {lineage}", self.lineage)));
        }
        if self.next > end {
            return Err(diverged(format!("the target has records up to {}, this log ends at {end}", self.next)));
        }
        match (self.mark, mark) {
            (Some(theirs), Some(ours)) if theirs != ours => Err(diverged(format!(
                "before offset {} the target has another batch than this log: {}:{:08x}, here {}:{:08x}",
                self.next, theirs.base, theirs.crc, ours.base, ours.crc
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage() -> Lineage {
        Lineage { topic: *b"0123456789abcdef", adopted: 2 }
    }

    fn position(next: i64, mark: Option<(i64, u32)>) -> Position {
        let mark = mark.map(|(base, crc)| Mark { base: Offset(base), crc });
        Position { next: Offset(next), lineage: lineage(), mark }
    }

    #[test]
    fn a_position_is_read_back_from_its_text() {
        for position in [position(0, None), position(8, Some((5, 0xdead_beef))), position(i64::MAX, Some((0, 0)))] {
            assert_eq!(Position::parse(position.next, &position.text()), Ok(position));
        }
        expect_test::expect!["buttress-uplink/1 lineage=30313233343536373839616263646566.2 mark=5:0000abcd"]
            .assert_eq(&position(8, Some((5, 0xabcd))).text());
    }

    #[test]
    fn a_text_that_somebody_else_left_is_told_from_ours() {
        let good = position(8, Some((5, 0xabcd))).text();
        let long = format!("{good}{}", " ".repeat(300));
        let broken = [
            "",
            "consumer-1",
            &good[..good.len() - 1],
            &good.replace("mark=5", "mark=05"),
            &good.replace("mark=5", "mark=8"),
            &good.replace("abcd", "ABCD"),
            &good.replace(".2", ".4294967296"),
            &good.replace("/1", "/2"),
            &long,
        ];
        for text in broken {
            assert_eq!(Position::parse(Offset(8), text).unwrap_err().code, Code::UPLINK_POSITION, "{text}");
        }
        assert!(Position::parse(Offset(-1), &position(8, None).text()).is_err());
    }

    #[test]
    fn a_log_that_is_not_the_one_is_told_by_id_by_length_and_by_content() {
        let known = position(8, Some((5, 1)));
        let mark = |base, crc| Some(Mark { base: Offset(base), crc });
        assert_eq!(known.speaks_of(lineage(), Offset(8), mark(5, 1)), Ok(()));
        // Retention has taken the batch.
        assert_eq!(known.speaks_of(lineage(), Offset(9), None), Ok(()));
        let code = |end, mark, lineage| known.speaks_of(lineage, Offset(end), mark).unwrap_err().code;
        assert_eq!(code(7, None, lineage()), Code::UPLINK_DIVERGED);
        assert_eq!(code(9, mark(5, 2), lineage()), Code::UPLINK_DIVERGED);
        assert_eq!(code(9, mark(6, 1), lineage()), Code::UPLINK_DIVERGED);
        assert_eq!(code(9, mark(5, 1), Lineage { adopted: 3, ..lineage() }), Code::UPLINK_DIVERGED);
        assert_eq!(code(9, mark(5, 1), Lineage { topic: [0; 16], ..lineage() }), Code::UPLINK_DIVERGED);
    }
}
