//! Traps by design, to show that a trap is contained: its batch does not happen, nothing else notices.
//!
//! It traps on a record whose value contains `poison`, and on its hundredth record, so that a fresh instance works
//! for a while and then fails. Other records pass through to the topic `faulty-out`.

use std::sync::atomic::{AtomicU64, Ordering};

wit_bindgen::generate!({ path: "../../crates/engine/wit", world: "function" });

/// Records that one instance takes before it traps.
const RECORDS_MAX: u64 = 100;

static SEEN: AtomicU64 = AtomicU64::new(0);

struct Component;
export!(Component);

impl Guest for Component {
    fn handle_batch(records: Vec<Record>) -> Result<Vec<Output>, String> {
        records
            .into_iter()
            .map(|record| {
                let seen = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
                assert!(seen < RECORDS_MAX, "this function traps on record {RECORDS_MAX} by design");
                assert!(
                    !record.value.windows(6).any(|window| window == b"poison"),
                    "poison at offset {}: this function traps on it by design",
                    record.offset
                );
                Ok(Output { topic: "faulty-out".into(), key: record.key, value: record.value })
            })
            .collect()
    }
}
