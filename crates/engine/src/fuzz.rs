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
