//! Headers in which hops tell each other about time and attempts, and durations as people write them.
//!
//! | header | means | read by |
//! |---|---|---|
//! | `grpc-timeout` | what is left: up to eight digits and one of `H M S m u n` | [`grpc_timeout`] |
//! | `buttress-timeout-ms` | the same over plain HTTP | [`timeout_ms`] |
//! | `buttress-attempt` | which attempt of the caller this is | [`attempt`] |
//! | `Retry-After` | seconds, or a date | [`retry_after`] |
//! | `grpc-retry-pushback-ms` | milliseconds; negative or unreadable: do not retry | [`pushback_ms`] |
//!
//! What comes from the network may be anything: what cannot be read is as if it were absent, save where its
//! specification says otherwise, and nothing here panics. The wall clock that a date needs is an input.
//!
//! Source: gRPC over HTTP/2 (`Timeout`); RFC 9110 §5.6.7 (dates, in three forms), §10.2.3; gRFC A6 (pushback).

use std::time::Duration;

use crate::{outcome::Pushback, time::nanos};

/// `250ms`, `1.5s`, `2m`, `1h`, `10us`, `5ns`: a number and a unit.
pub fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let (number, unit) = text.split_at(split);
    let nanos_each: u64 = match unit.trim_start() {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(nanos_each)?;
    // Digits beyond a nanosecond of an hour change nothing.
    let (mut part, mut each) = (0u64, nanos_each);
    for digit in fraction.bytes().take(16) {
        // Not exact below a ninth of a unit's digit, which is less than a nanosecond for each.
        each /= 10;
        part += u64::from(digit - b'0') * each;
    }
    whole.checked_add(part).map(Duration::from_nanos)
}

/// The value of `grpc-timeout`.
pub fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    // Eight digits of hours are less than 2^64 nanoseconds times 20: too long to count is for ever.
    let each: u64 = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => return None,
    };
    Some(Duration::from_nanos(number.saturating_mul(each)))
}

/// A value for `grpc-timeout`: the finest unit in which it has eight digits, never longer than what is left.
pub fn to_grpc_timeout(left: Duration) -> String {
    let left = nanos(left);
    let units = [(1, 'n'), (1_000, 'u'), (1_000_000, 'm'), (1_000_000_000, 'S'), (60_000_000_000, 'M')];
    for (each, unit) in units {
        if left / each < 100_000_000 {
            return format!("{}{unit}", left / each);
        }
    }
    format!("{}H", left / 3_600_000_000_000)
}

/// The value of `buttress-timeout-ms`.
pub fn timeout_ms(text: &str) -> Option<Duration> {
    digits(text).map(Duration::from_millis)
}

/// The value of `buttress-attempt`; the first where it cannot be read.
pub fn attempt(text: &str) -> u32 {
    digits(text).map_or(1, |number| u32::try_from(number).unwrap_or(u32::MAX)).max(1)
}

/// The value of `Retry-After`, at `unix` seconds since 1970. A date that has passed asks for nothing.
pub fn retry_after(text: &str, unix: u64) -> Option<Duration> {
    let text = text.trim();
    if let Some(seconds) = digits(text) {
        return Some(Duration::from_secs(seconds));
    }
    http_date(text).map(|date| Duration::from_secs(date.saturating_sub(unix)))
}

/// The value of `grpc-retry-pushback-ms`.
pub fn pushback_ms(text: &str) -> Pushback {
    digits(text).map_or(Pushback::Never, |ms| Pushback::After(Duration::from_millis(ms)))
}

/// Digits and nothing else; `str::parse` takes a sign.
fn digits(text: &str) -> Option<u64> {
    let text = text.trim();
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// A date of HTTP in any of its three forms, as seconds since 1970:
/// `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT`, `Sun Nov  6 08:49:37 1994`.
pub fn http_date(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split([' ', '-', ',']).filter(|word| !word.is_empty()).take(8).collect();
    let (day, month, year, clock) = match words[..] {
        [_, day, month, year, clock, "GMT"] => (day, month, year, clock),
        [_, month, day, clock, year] => (day, month, year, clock),
        _ => return None,
    };
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let day = digits(day).filter(|day| (1..=31).contains(day))?;
    let year = match (digits(year)?, year.len()) {
        // RFC 9110: two digits mean the year in the last fifty or the next fifty; no Buttress was there before 2000.
        (short, 2) if short >= 70 => 1900 + short,
        (short, 2) => 2000 + short,
        (year, 4) if year >= 1970 => year,
        _ => return None,
    };
    let mut parts = clock.split(':').map(digits);
    let (Some(Some(hour)), Some(Some(minute)), Some(Some(second)), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970 by the civil calendar, with years that begin in March (Hinnant, "chrono-compatible low-level date algorithms").
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        let nanos = |text| duration(text).map(|span| span.as_nanos() as u64);
        assert_eq!(nanos("250ms"), Some(250_000_000));
        assert_eq!(nanos("1.5s"), Some(1_500_000_000));
        assert_eq!(nanos("2 m"), Some(120_000_000_000));
        assert_eq!(nanos("0.25h"), Some(900_000_000_000));
        assert_eq!(nanos("10us"), nanos("10µs"));
        for wrong in ["", "5", "ms", ".5s", "5.s", "1.2.3s", "-5s", "5 parsecs", "99999999999999999999s", "9e9s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_grpc_timeout_has_eight_digits_at_most() {
        assert_eq!(grpc_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(grpc_timeout("99999999H"), Some(Duration::from_nanos(u64::MAX)));
        for wrong in ["", "m", "100", "100x", "123456789n", "+5S", "5 S", "5µ", "µ"] {
            assert_eq!(grpc_timeout(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_grpc_timeout_is_read_as_it_was_written_and_never_longer(left: u64) {
            let left = Duration::from_nanos(left);
            let read = grpc_timeout(&to_grpc_timeout(left)).unwrap();
            prop_assert!(read <= left);
            prop_assert!(left.as_secs_f64() - read.as_secs_f64() <= left.as_secs_f64() * 1e-6);
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_in_three_forms() {
        let unix = 784_111_777 - 30;
        assert_eq!(retry_after("120", unix), Some(Duration::from_secs(120)));
        for date in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(retry_after(date, unix), Some(Duration::from_secs(30)), "{date}");
        }
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", unix + 99), Some(Duration::ZERO));
        assert_eq!(http_date("Thu, 29 Feb 2024 23:59:60 GMT"), Some(1_709_251_200));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        for wrong in ["", "-5", "1.5", "soon", "Sun, 06 Nov 1994 08:49 GMT", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(retry_after(wrong, 0), None, "{wrong}");
        }
    }

    #[test]
    fn attempts_and_pushback_follow_their_rules() {
        assert_eq!(["3", "1", "0", "-1", "x", "99999999999"].map(attempt), [3, 1, 1, 1, 1, u32::MAX]);
        assert_eq!(pushback_ms("250"), Pushback::After(Duration::from_millis(250)));
        assert_eq!([pushback_ms("-1"), pushback_ms("later")], [Pushback::Never; 2]);
        assert_eq!(timeout_ms(" 40 "), Some(Duration::from_millis(40)));
    }
}
