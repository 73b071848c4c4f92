//! The demo's own evaluation of a model in the form `buttress.tree-ensemble/1`, for checking the verdicts.
//!
//! It shares no line with the engine that gave them: it is written from the format's description, walks the JSON's own
//! arrays, and is as plain as possible. What it cannot read (an ONNX file) is played all the same; the report then
//! says that the scores were not checked.

use std::{fmt, sync::Arc};

use serde::Deserialize;

use super::{
    reading::{FEATURES, Values},
    report::Scorer,
};

#[derive(Debug, Deserialize)]
struct Ensemble {
    format: String,
    features: Vec<String>,
    #[serde(default)]
    neutral: Vec<Option<f64>>,
    objective: String,
    #[serde(default)]
    base: f64,
    trees: Vec<Tree>,
}

#[derive(Debug, Deserialize)]
struct Tree {
    feature: Vec<i64>,
    threshold: Vec<f64>,
    left: Vec<i64>,
    right: Vec<i64>,
    value: Vec<f64>,
    #[serde(default)]
    missing_left: Vec<bool>,
}

/// Why a model cannot be evaluated here.
#[derive(Debug)]
pub struct NotHere(String);

impl fmt::Display for NotHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads a model for the fleet's five features.
///
/// # Errors
/// Where it is in another form, or for other features.
pub fn scorer(bytes: &[u8]) -> Result<Scorer, NotHere> {
    let mut model: Ensemble = serde_json::from_slice(bytes).map_err(|e| NotHere(e.to_string()))?;
    let refuse = |why: String| Err(NotHere(why));
    if model.format != "buttress.tree-ensemble/1" {
        return refuse(format!("the format is '{}'", model.format));
    }
    if model.features != FEATURES {
        return refuse(format!("its features are {}", model.features.join(", ")));
    }
    if !matches!(model.objective.as_str(), "identity" | "logistic" | "mean") {
        return refuse(format!("its objective is '{}'", model.objective));
    }
    for (number, tree) in model.trees.iter_mut().enumerate() {
        let count = tree.left.len();
        tree.missing_left.resize(count, false);
        let same = [tree.feature.len(), tree.threshold.len(), tree.right.len(), tree.value.len()];
        // Children behind their parents: every walk ends.
        let sound = (0..count).all(|node| {
            let child = |c: i64| c > node as i64 && c < count as i64;
            let leaf = tree.left[node] == -1 && tree.right[node] == -1;
            leaf || (child(tree.left[node])
                && child(tree.right[node])
                && (0..FEATURES.len() as i64).contains(&tree.feature[node]))
        });
        if count == 0 || same.iter().any(|len| *len != count) || !sound {
            return refuse(format!("tree {number} is not one"));
        }
    }
    Ok(Arc::new(move |values| model.score(values)))
}

impl Ensemble {
    fn score(&self, values: &Values) -> f32 {
        let mut row = values.row();
        for (value, neutral) in row.iter_mut().zip(&self.neutral) {
            if let (true, Some(neutral)) = (value.is_nan(), neutral) {
                *value = *neutral as f32;
            }
        }
        let sum: f32 = self.trees.iter().map(|tree| tree.leaf(&row)).sum();
        match self.objective.as_str() {
            "mean" => self.base as f32 + sum / self.trees.len() as f32,
            "logistic" => 1.0 / (1.0 + (-(self.base as f32 + sum)).exp()),
            _ => self.base as f32 + sum,
        }
    }
}

impl Tree {
    fn leaf(&self, row: &[f32; 5]) -> f32 {
        let mut node = 0;
        while self.left[node] != -1 {
            let value = row[self.feature[node] as usize];
            let goes_left = match value.is_nan() {
                true => self.missing_left[node],
                false => f64::from(value) <= self.threshold[node],
            };
            node = if goes_left { self.left[node] } else { self.right[node] } as usize;
        }
        self.value[node] as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::plant::Plant;

    fn quality(model: &[u8]) -> (f64, f64) {
        let score = scorer(model).unwrap();
        let mut plant = Plant::new(4_000, 99);
        let (mut hits, mut reported, mut actual) = (0.0, 0.0, 0.0);
        for _ in 0..40 {
            for machine in 0..4_000 {
                let sample = plant.read(machine);
                let flagged = score(&sample.values) > 0.7;
                reported += f64::from(u8::from(flagged));
                actual += f64::from(u8::from(sample.failed));
                hits += f64::from(u8::from(flagged && sample.failed));
            }
        }
        (hits / reported, hits / actual)
    }

    #[test]
    fn the_committed_models_find_the_failures_of_a_plant_they_have_not_seen_and_the_second_is_better() {
        let (precision_1, recall_1) = quality(super::super::MODEL_V1);
        let (precision_2, recall_2) = quality(super::super::MODEL_V2);
        assert!(precision_1 > 0.7 && recall_1 > 0.8, "{precision_1} {recall_1}");
        assert!(precision_2 > 0.85 && recall_2 > 0.9, "{precision_2} {recall_2}");
        let f1 = |p: f64, r: f64| 2.0 * p * r / (p + r);
        assert!(f1(precision_2, recall_2) > f1(precision_1, recall_1));
    }

    #[test]
    fn a_missing_feature_goes_where_the_model_says() {
        let model = br#"{"format":"buttress.tree-ensemble/1","features":["temperature","vibration","speed","torque","wear"],
            "objective":"identity","base":1,"trees":[
            {"feature":[1,-1,-1],"threshold":[5,0,0],"left":[1,-1,-1],"right":[2,-1,-1],"value":[0,10,20],"missing_left":[true,false,false]}]}"#;
        let score = scorer(model).unwrap();
        assert_eq!(score(&Values { vibration: 5.0, ..Values::NONE }), 11.0);
        assert_eq!(score(&Values { vibration: 5.1, ..Values::NONE }), 21.0);
        assert_eq!(score(&Values::NONE), 11.0);
    }

    #[test]
    fn what_cannot_be_evaluated_is_said() {
        for bytes in [
            &b"\x08\x07onnx"[..],
            br#"{"format":"x","features":[],"objective":"mean","trees":[]}"#,
            br#"{"format":"buttress.tree-ensemble/1","features":["temperature","vibration","speed","torque","wear"],"objective":"mean","trees":[{"feature":[0],"threshold":[0],"left":[0],"right":[0],"value":[0]}]}"#,
        ] {
            assert!(scorer(bytes).is_err());
        }
    }
}
