//! Time as an input: nanoseconds of a clock that never goes back, since a moment that the driver chose.

use std::{fmt, time::Duration};

/// A moment. Two of them can be compared, and nothing can be said of the date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    pub const ZERO: Time = Time(0);
    /// Later than everything: the deadline of a call that has none.
    pub const NEVER: Time = Time(u64::MAX);

    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; nothing where it is later, since cores may read the clock out of order.
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub fn plus(self, span: Duration) -> Time {
        Self(self.0.saturating_add(nanos(span)))
    }
}

/// A duration in nanoseconds. What does not fit (584 years) is as good as for ever.
pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// A duration as a fact of a decision: four bytes less to copy than [`Duration`], and printed for people.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub u64);

impl Span {
    pub const fn duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

impl From<Duration> for Span {
    fn from(span: Duration) -> Self {
        Self(nanos(span))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, unit) = match self.0 {
            u64::MAX => return f.write_str("no end"),
            0 => return f.write_str("0 ms"),
            n if n < 1_000 => return write!(f, "{n} ns"),
            n if n < 1_000_000 => (n as f64 / 1e3, "µs"),
            n if n < 1_000_000_000 => (n as f64 / 1e6, "ms"),
            n => (n as f64 / 1e9, "s"),
        };
        // Three digits that mean something, and no zeros behind them.
        let digits = if whole >= 100.0 {
            0
        } else if whole >= 10.0 {
            1
        } else {
            2
        };
        let text = format!("{whole:.digits$}");
        let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        write!(f, "{text} {unit}")
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_printed_with_three_digits_and_a_unit() {
        let printed = |nanos| Span(nanos).to_string();
        assert_eq!(printed(0), "0 ms");
        assert_eq!(printed(999), "999 ns");
        assert_eq!(printed(1_500), "1.5 µs");
        assert_eq!(printed(12_340_000), "12.3 ms");
        assert_eq!(printed(250_000_000), "250 ms");
        assert_eq!(printed(30_000_000_000), "30 s");
        assert_eq!(printed(u64::MAX), "no end");
    }

    #[test]
    fn arithmetic_stops_at_the_ends() {
        assert_eq!(Time::NEVER.plus(Duration::MAX), Time::NEVER);
        assert_eq!(Time::ZERO.since(Time::from_nanos(5)), Duration::ZERO);
    }
}
