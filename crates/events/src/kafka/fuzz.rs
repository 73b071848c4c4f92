//! Entry points for fuzzers: what is in a group's record, and in what its members say of themselves. Requests and responses
//! are `buttress_wire`'s.

use bytes::Bytes;

use super::groups;

/// The first byte chooses: even for a group's record, odd for a consumer's subscription.
///
/// # Panics
/// Where a record does not survive a round trip.
pub fn fuzz_group(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let rest = Bytes::copy_from_slice(rest);
    if kind % 2 == 0 { groups::fuzz_record(rest) } else { groups::fuzz_subscription(&rest) }
}
