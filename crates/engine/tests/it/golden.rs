//! Models against what onnxruntime and scikit-learn answer. `fixtures/make.py` makes the fixtures.

use std::path::PathBuf;

use serde_json::Value;

/// A file of `fixtures`.
pub fn path(name: &str, ending: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}.{ending}"))
}

/// Numbers, `null` for NaN, or numbers written as text where JSON has none.
fn numbers(rows: &Value) -> Vec<f32> {
    let rows = rows.as_array().expect("rows");
    rows.iter()
        .flat_map(|row| row.as_array().expect("a row"))
        .map(|value| match value {
            Value::Null => f32::NAN,
            Value::String(text) => text.parse().expect("a number"),
            value => value.as_f64().expect("a number") as f32,
        })
        .collect()
}

fn check(name: &str, ending: &str, outputs: usize) {
    let model = buttress_engine::load_model(&std::fs::read(path(name, ending)).expect("the model"))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let golden: Value =
        serde_json::from_slice(&std::fs::read(path(name, "golden.json")).expect("the scores")).expect("JSON");
    let (rows, want) = (numbers(&golden["rows"]), numbers(&golden["scores"]));
    assert_eq!(model.info().outputs, outputs, "{name}");
    let mut got = Vec::new();
    model.predict(&rows, &mut got).expect("rows of the right width");
    assert_eq!(got.len(), want.len(), "{name}");
    for (at, (got, want)) in got.iter().zip(&want).enumerate() {
        let near = (got - want).abs() <= 2e-6 * want.abs().max(1.0);
        assert!(near, "{name}: score {at} is {got}, and {want} is right; row {:?}", {
            let (width, row) = (model.info().width, at / outputs);
            &rows[row * width..][..width]
        });
    }
    // One row at a time gives the same as all at once.
    let mut single = Vec::new();
    for row in rows.chunks(model.info().width) {
        model.predict(row, &mut single).expect("one row");
    }
    assert_eq!(
        single.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
        got.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    );
}

#[test]
fn scikit_learn() {
    check("forest_classifier", "onnx", 2);
    check("forest_three", "onnx", 3);
    check("boosted_classifier", "onnx", 2);
    check("boosted_three", "onnx", 3);
    check("forest_regressor", "onnx", 1);
    check("boosted_regressor", "onnx", 1);
    check("tree", "onnx", 2);
}

#[test]
fn lightgbm_and_xgboost() {
    check("lightgbm", "onnx", 2);
    check("xgboost", "onnx", 2);
    check("xgboost_regressor", "onnx", 1);
}

#[test]
fn every_mode_at_its_corners() {
    check("modes", "onnx", 2);
    check("modes_missing", "onnx", 2);
    check("modes_softmax", "onnx", 2);
}

#[test]
fn the_plain_form() {
    check("plain_forest", "json", 1);
    check("plain_boosted", "json", 1);
    check("plain_neutral", "json", 1);
    let info = buttress_engine::load_model(&std::fs::read(path("plain_forest", "json")).expect("the model"))
        .expect("it")
        .info()
        .clone();
    assert_eq!(info.features, ["temperature", "vibration", "speed", "torque", "wear"]);
    assert_eq!((info.kind.as_str(), info.width), ("tree-ensemble/json", 5));
    assert_eq!(info.digest.len(), "sha256:".len() + 64);
}

#[test]
fn other_graphs_are_refused_by_the_operator() {
    for (name, want) in [
        ("refused_isolation", "it holds the operator `"),
        ("refused_linear", "it holds the operator `LinearClassifier`"),
    ] {
        let error = buttress_engine::load_model(&std::fs::read(path(name, "onnx")).expect("the model"))
            .err()
            .expect("a refusal");
        assert!(error.message.contains(want), "{name}: {error}");
    }
}
