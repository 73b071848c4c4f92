//! Models: refusals by their words.

use expect_test::{Expect, expect};
use proptest::prelude::*;

fn tree(fields: &str) -> String {
    format!(
        r#"{{"format":"buttress.tree-ensemble/1","features":["a","b"],"objective":"identity","trees":[{{{fields}}}]}}"#
    )
}

fn check(model: &str, want: Expect) {
    let error = buttress_engine::load_model(model.as_bytes()).err().expect("a refusal");
    assert_eq!(error.code, buttress_core::Code::MODEL_INVALID);
    want.assert_eq(&error.message);
}

#[test]
fn json_that_is_no_model() {
    check("", expect!["there are no bytes"]);
    check("hello", expect!["the model cannot be read: it holds a field of kind 4, which is not used any more"]);
    check("{", expect!["the model cannot be read: EOF while parsing an object at line 1 column 1"]);
    check("{}", expect!["the model cannot be read: it has no `format`; `buttress.tree-ensemble/1` is read"]);
    check(
        r#"{"format":"buttress.tree-ensemble/2"}"#,
        expect![
            "the model cannot be read: it has the format `buttress.tree-ensemble/2`; `buttress.tree-ensemble/1` is read"
        ],
    );
    check(
        r#"{"format":"buttress.tree-ensemble/1","features":["a"],"objective":"identity","trees":[]}"#,
        expect!["the model is not valid: it has no trees"],
    );
    check(
        r#"{"format":"buttress.tree-ensemble/1","features":[],"objective":"identity","trees":[]}"#,
        expect!["the model is not valid: it has 0 features; 1 to 4096 are taken"],
    );
    check(
        r#"{"format":"buttress.tree-ensemble/1","features":["a"],"objective":"gini","trees":[]}"#,
        expect![
            "the model cannot be read: unknown variant `gini`, expected one of `identity`, `logistic`, `mean` at line 1 column 72"
        ],
    );
    check(
        &tree(r#""feature":[-1],"threshold":[0],"left":[-1],"right":[-1],"value":[1e39]"#),
        expect!["the model is not valid: tree 0: leaf 0 has the weight inf"],
    );
    check(
        &tree(r#""feature":[],"threshold":[],"left":[],"right":[],"value":[]"#),
        expect!["the model is not valid: tree 0: its root 0 is not one of its 0 nodes"],
    );
    check(
        &tree(r#""feature":[0],"threshold":[0],"left":[-1],"right":[-1],"value":[]"#),
        expect!["the model cannot be read: tree 0: `value` has 0 entries and `left` has 1"],
    );
    check(
        &tree(r#""feature":[2,-1,-1],"threshold":[0,0,0],"left":[1,-1,-1],"right":[2,-1,-1],"value":[0,1,2]"#),
        expect!["the model is not valid: tree 0: node 0 asks feature 2 of 2"],
    );
    check(
        &tree(r#""feature":[-2,-1,-1],"threshold":[0,0,0],"left":[1,-1,-1],"right":[2,-1,-1],"value":[0,1,2]"#),
        expect!["the model cannot be read: tree 0: node 0 has -2 in `feature`"],
    );
    check(
        &tree(r#""feature":[0,-1,-1],"threshold":[0,0,0],"left":[1,-1,-1],"right":[3,-1,-1],"value":[0,1,2]"#),
        expect!["the model is not valid: tree 0: node 0 has the child 3 of 3 nodes"],
    );
    check(
        &tree(r#""feature":[0,-1,-1],"threshold":[0,0,0],"left":[1,-1,-1],"right":[1,-1,-1],"value":[0,1,2]"#),
        expect!["the model is not valid: tree 0: node 1 has more than one parent"],
    );
    check(
        &tree(r#""feature":[0,0,-1],"threshold":[0,0,0],"left":[1,0,-1],"right":[2,2,-1],"value":[0,1,2]"#),
        expect!["the model is not valid: tree 0: node 0 has more than one parent"],
    );
    check(
        &tree(
            r#""feature":[0,-1,-1,-1],"threshold":[0,0,0,0],"left":[1,-1,-1,-1],"right":[2,-1,-1,-1],"value":[0,1,2,3]"#,
        ),
        expect!["the model is not valid: tree 0: node 3 is not reached from the root"],
    );
    check(
        &tree(r#""feature":[0,-1,-1],"threshold":[0,0,0],"left":[1,-1,-1],"right":[-1,-1,-1],"value":[0,1,2]"#),
        expect!["the model cannot be read: tree 0: node 0 has -1 in `right`"],
    );
    let deep: Vec<_> = (0..300).collect();
    let list = |f: &dyn Fn(usize) -> i64| {
        deep.iter().map(|n| f(*n)).chain([-1; 301]).map(|n| n.to_string()).collect::<Vec<_>>().join(",")
    };
    let zeros = vec!["0"; 601].join(",");
    let left = list(&|n| n as i64 + 1);
    let right = list(&|n| n as i64 + 301);
    check(
        &tree(&format!(
            r#""feature":[{zeros}],"threshold":[{zeros}],"left":[{left}],"right":[{right}],"value":[{zeros}]"#
        )),
        expect!["the model is not valid: tree 0: it is deeper than 256"],
    );
}

#[test]
fn rows_of_another_shape_are_refused() {
    let model = buttress_engine::load_model(
        tree(r#""feature":[-1],"threshold":[0],"left":[-1],"right":[-1],"value":[3]"#).as_bytes(),
    )
    .expect("a model");
    let error = model.predict(&[1.0, 2.0, 3.0], &mut Vec::new()).expect_err("three numbers");
    expect![[r#"
        3 numbers are no rows of 2 features [BT0503]

        hint: the features are: a, b"#]]
    .assert_eq(&error.to_string());
    let mut scores = vec![9.0];
    model.predict(&[1.0, 2.0, 3.0, 4.0], &mut scores).expect("two rows");
    assert_eq!(scores, [9.0, 3.0, 3.0]);
    model.predict(&[], &mut scores).expect("no rows");
    assert_eq!(scores.len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Any bytes, and valid files with some bytes changed, never panic.
    #[test]
    fn damaged_models_are_refused(which in 0..4usize, cut in 0.0..1.0f64, changes in prop::collection::vec((0.0..1.0f64, any::<u8>()), 0..6)) {
        let json = tree(r#""feature":[0,-1,-1],"threshold":[0.5,0,0],"left":[1,-1,-1],"right":[2,-1,-1],"value":[0,1,2]"#);
        let onnx = ["forest_classifier", "boosted_classifier", "forest_regressor"].map(|name| std::fs::read(crate::golden::path(name, "onnx")).expect("a fixture"));
        let mut bytes = match which { 3 => json.into_bytes(), which => onnx[which].clone() };
        for (at, byte) in changes {
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] = byte;
        }
        if cut > 0.5 {
            bytes.truncate((bytes.len() as f64 * (cut - 0.5) * 2.0) as usize);
        }
        buttress_engine::fuzz::fuzz_model(&bytes);
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        buttress_engine::fuzz::fuzz_model(&bytes);
    }
}
