//! Everything here that reads bytes from outside, as plain functions for a fuzzer; proptest runs them too. They may
//! answer errors, and must neither panic nor allocate what the bytes only claim.

use buttress_core::{Offset, ledger::Batch};
use bytes::Bytes;

use crate::resource::{FunctionSpec, Manifest, ModelSpec};

/// A manifest is refused, or it is one that survives being written again.
pub fn fuzz_manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data)
        && manifest.check("name").is_ok()
    {
        let again = serde_json::to_vec(&manifest).expect("a manifest has string keys only");
        assert_eq!(Manifest::parse(&again).expect("what was written is read"), manifest);
    }
}

/// Stored resources that something else wrote.
pub fn fuzz_resources(data: &[u8]) {
    // What is not one is reported by the catalogue.
    let _ = serde_json::from_slice::<FunctionSpec>(data);
    let _ = serde_json::from_slice::<ModelSpec>(data);
}

/// A query string.
pub fn fuzz_query(data: &[u8]) {
    if let Ok(query) = std::str::from_utf8(data) {
        let _ = crate::http::parameter(Some(query), "path");
    }
}

/// Record batches: whatever they hold, the pieces go on without a hole up to the stated end.
pub fn fuzz_batches(data: &[u8]) {
    let end = data.len() as i64 % 7 + 1;
    let batch = Batch {
        base_offset: Offset(0),
        last_offset: Offset(end - 1),
        max_timestamp_ms: 0,
        index: Default::default(),
        committed_at: Default::default(),
        bytes: Bytes::copy_from_slice(data),
    };
    crate::runner::check_pieces(&[batch], end);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz_manifest(&data);
            fuzz_resources(&data);
            fuzz_query(&data);
            fuzz_batches(&data);
        }

        #[test]
        fn almost_right_never_panics(cut in 0usize..200, at in 0usize..200, byte: u8) {
            let manifest = br#"{"trigger":{"topic":"t","max_records":5},"http":true,"routes":["/a"],"grants":{"topics":["b"]}}"#;
            let mut builder = buttress_wire::records::Builder::new();
            builder.push(1, Some(b"k"), Some(b"value"), &[(b"h", None)]).push(2, None, Some(b"v"), &[]);
            let batch = builder.build().expect("records were pushed");
            for whole in [&manifest[..], &batch] {
                let mut data = whole[..cut.min(whole.len())].to_vec();
                if let Some(place) = data.get_mut(at) {
                    *place = byte;
                }
                fuzz_manifest(&data);
                fuzz_batches(&data);
            }
        }
    }
}
