//! The name of a request: kept where the client gave one that is safe to write into a log, made where it did not.

use std::cell::Cell;

use bytes::Bytes;

/// Longer ones are replaced.
const KEPT_MAX: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestId {
    Kept(Bytes),
    Made([u8; 16]),
}

impl RequestId {
    /// The client's own, where it is letters, digits and the few signs that such names are made of.
    pub fn kept(value: &[u8]) -> Option<Self> {
        let fits = (1..=KEPT_MAX).contains(&value.len())
            && value.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:+/=@".contains(b));
        fits.then(|| Self::Kept(Bytes::copy_from_slice(value)))
    }

    pub fn as_str(&self) -> &str {
        let bytes: &[u8] = match self {
            RequestId::Kept(bytes) => bytes,
            RequestId::Made(bytes) => bytes,
        };
        std::str::from_utf8(bytes).expect("request ids are checked to be ASCII")
    }
}

/// Numbers that differ: a counter, mixed so that neighbours look nothing alike.
pub struct Numbers {
    next: Cell<u64>,
}

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self { next: Cell::new(seed) }
    }

    /// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (SplitMix64).
    pub fn draw(&self) -> u64 {
        let state = self.next.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.next.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn request_id(&self) -> RequestId {
        RequestId::Made(hex(self.draw()))
    }

    /// A W3C trace context that begins here, not sampled: nothing is exported.
    ///
    /// Source: W3C Trace Context, level 1, 3.2.
    pub fn traceparent(&self) -> [u8; 55] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        text[3..19].copy_from_slice(&hex(self.draw()));
        text[19..35].copy_from_slice(&hex(self.draw()));
        // A span of zeros is no span; the lowest bit keeps it from being one.
        text[36..52].copy_from_slice(&hex(self.draw() | 1));
        text
    }
}

pub fn hex(number: u64) -> [u8; 16] {
    std::array::from_fn(|at| b"0123456789abcdef"[(number >> (60 - 4 * at)) as usize & 15])
}

/// Whether a traceparent may be passed on: version, trace, parent and flags, all hexadecimal, nothing all zeros.
pub fn traceparent_ok(value: &[u8]) -> bool {
    let hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let some = |part: &[u8]| part.iter().any(|b| *b != b'0');
    value.len() >= 55
        && value[..2] != *b"ff"
        && (value.len() == 55 || (value[..2] != *b"00" && value[55] == b'-'))
        && [2, 35, 52].iter().all(|at| value[*at] == b'-')
        && [&value[..2], &value[3..35], &value[36..52], &value[53..55]].iter().all(|part| hex(part))
        && some(&value[3..35])
        && some(&value[36..52])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_harm_a_log_are_replaced() {
        assert_eq!(RequestId::kept(b"order-7_a.b").unwrap().as_str(), "order-7_a.b");
        for bad in [&b""[..], b"a b", b"a\"b", b"\xc3\xa4", &[b'a'; 129]] {
            assert_eq!(RequestId::kept(bad), None);
        }
        let numbers = Numbers::new(7);
        assert_ne!(numbers.request_id(), numbers.request_id());
    }

    #[test]
    fn trace_contexts_are_made_and_checked_as_the_standard_says() {
        assert!(traceparent_ok(&Numbers::new(0).traceparent()));
        assert!(traceparent_ok(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert!(traceparent_ok(b"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes"));
        for bad in [
            &b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x"[..],
            b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            b"00",
        ] {
            assert!(!traceparent_ok(bad));
        }
    }
}
