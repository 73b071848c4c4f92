//! The public face of the crate: transcripts that are read, and worlds in which everything goes wrong.

mod transcripts;
mod worlds;

use buttress_saga::{Definition, Step};

/// The saga of an order.
fn order() -> Definition {
    let step = |name: &str, service: &str, act: &str, undo: &str| Step {
        name: name.into(),
        service: service.into(),
        act: act.into(),
        undo: Some(undo.into()),
        attempts: 3,
        timeout_ms: 2_000,
        deadline_ms: 30_000,
        undo_attempts: 4,
        pause_first_ms: 500,
        pause_max_ms: 10_000,
    };
    let steps = vec![
        step("reserve", "inventory", "/reserve", "/release"),
        step("charge", "payment", "/capture", "/refund"),
        step("ship", "shipping", "/ship", "/cancel"),
    ];
    Definition { name: "order".into(), steps }
}
