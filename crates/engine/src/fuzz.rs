//! Entry points for fuzzers: each takes any bytes and must neither panic nor allocate by a count that lies.

/// Models, in either form; one that loads is also asked.
pub fn fuzz_model(data: &[u8]) {
    if let Ok(model) = crate::model::load(data) {
        let width = model.info().width;
        let mut scores = Vec::new();
        let row: Vec<f32> = (0..width).map(|at| [f32::NAN, 0.0, -1.5, f32::INFINITY][at % 4]).collect();
        model.predict(&row, &mut scores).expect("the row has the model's width");
        assert_eq!(scores.len(), model.info().outputs);
    }
}

/// A component as it is uploaded: it is refused, or it would be deployed. It is compiled and its imports are checked; it
/// never runs.
///
/// # Panics
/// Where the engine cannot start, or a refusal has no reason.
pub fn fuzz_component(data: &[u8]) {
    use std::sync::OnceLock;

    use buttress_core::{
        Engine as _,
        guest::{Grants, GuestLimits},
    };

    use crate::{Options, WasmEngine};

    static ENGINE: OnceLock<WasmEngine> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| {
        let options = Options { http_threads_max: 1, pooling: false, ..Options::default() };
        WasmEngine::new(options).expect("the engine starts")
    });
    for grants in [Grants::default(), Grants { models: vec!["m".into()], topics: vec!["t".into()], state: true }] {
        match engine.compile(data, &grants, GuestLimits::default()) {
            Ok(guest) => assert!(guest.handles_batches() || guest.handles_http(), "it can do something"),
            Err(error) => assert!(!error.message.is_empty(), "a refusal says why"),
        }
    }
}
