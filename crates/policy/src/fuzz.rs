//! Headers as fuzz targets: whatever bytes come, no panic, and what was read can be written and read again.

use crate::{outcome::Pushback, parse};

/// Every parser of a header, on the same bytes.
pub fn headers(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(left) = parse::grpc_timeout(text) {
        let again = parse::grpc_timeout(&parse::to_grpc_timeout(left)).expect("what we write we read");
        assert!(again <= left, "a deadline grew on its way");
    }
    if let Some(left) = parse::duration(text) {
        let written = parse::to_grpc_timeout(left);
        assert!(written.len() <= 9 && parse::grpc_timeout(&written).is_some(), "{written}");
    }
    if let Pushback::After(span) = parse::pushback_ms(text) {
        assert_eq!(parse::timeout_ms(text), Some(span), "the same digits");
    }
    assert!(parse::attempt(text) >= 1);
    let (now, later) = (parse::retry_after(text, 0), parse::retry_after(text, 1 << 40));
    assert!(now.is_some() == later.is_some() && now >= later, "a date does not move away as time passes");
}

/// Where the fuzzer starts from.
pub fn header_seeds() -> Vec<Vec<u8>> {
    let seeds = [
        "100m",
        "99999999H",
        "120",
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "-1",
        "3",
        "250ms",
        "1.5s",
        "0.25h",
        "10µs",
    ];
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}
