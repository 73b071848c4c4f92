//! Entry points for fuzzers; property tests run them too.

use bytes::Bytes;

use crate::{entry::Entry, limits::ENTRY_BYTES_MAX};

/// Decodes arbitrary bytes as an entry; what decodes must survive a round trip.
///
/// # Panics
/// Where it does not.
pub fn fuzz_entry(data: &[u8]) {
    let Ok(entry) = Entry::decode(Bytes::copy_from_slice(data)) else { return };
    let encoded = entry.encode();
    assert!(encoded.len() <= entry.size_hint(), "{} bytes, hinted {}", encoded.len(), entry.size_hint());
    // Numbers may have been written longer than needed, so encoding may shorten, never lengthen.
    assert!(encoded.len() <= data.len() && encoded.len() <= ENTRY_BYTES_MAX);
    assert_eq!(Entry::decode(encoded).as_ref(), Ok(&entry), "an entry survives a round trip");
    // Nothing a client sends may break what prints it.
    assert!(!format!("{entry:?}").is_empty());
}
