//! Models that this node evaluates itself: tree ensembles, from a JSON form of our own or from ONNX.
//!
//! Trees are what plants use for tabular sensor data, and evaluating them is a few hundred lines: a general runtime
//! would be megabytes and, measured on the same forest, slower. Other kinds of models come behind the same trait.
//!
//! A reader (`json`, `onnx`) produces a plain description; `build` checks all of it once and
//! lays it out as a [`forest::Forest`]; evaluation then needs no checks that could fail.

mod build;
mod forest;
mod json;
mod onnx;
mod protobuf;

use std::sync::Arc;

use buttress_core::{Code, Error, Model, model::ModelInfo};

use self::forest::Forest;

/// Largest model taken: a forest of 1,000 trees of depth 12 is 40 MB of JSON.
pub const MODEL_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Reads a model in either form, told apart by its first byte.
///
/// # Errors
/// `MODEL_INVALID` with what is wrong and where.
pub fn load(bytes: &[u8]) -> Result<Arc<dyn Model>, Error> {
    let invalid = |message: String| {
        Error::new(Code::MODEL_INVALID, message)
            .hint("a model is an ONNX file with one tree ensemble, or JSON as in docs/reference/model-format.md")
    };
    if bytes.len() > MODEL_BYTES_MAX {
        return Err(invalid(format!("the model has {} bytes; at most {MODEL_BYTES_MAX} are taken", bytes.len())));
    }
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    let (kind, read) = match first {
        None => return Err(invalid("there are no bytes".into())),
        Some(b'{') => ("tree-ensemble/json", json::read(bytes)),
        Some(_) => ("tree-ensemble/onnx", onnx::read(bytes)),
    };
    let description = read.map_err(|problem| invalid(format!("the model cannot be read: {problem}")))?;
    let features = description.features.clone();
    let forest = Forest::build(description).map_err(|problem| invalid(format!("the model is not valid: {problem}")))?;
    let info = ModelInfo {
        digest: crate::wasm::engine::digest(bytes),
        kind: kind.into(),
        features,
        width: forest.width(),
        outputs: forest.outputs(),
    };
    Ok(Arc::new(Trees { info, forest }))
}

struct Trees {
    info: ModelInfo,
    forest: Forest,
}

impl Model for Trees {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn predict(&self, rows: &[f32], scores: &mut Vec<f32>) -> Result<(), Error> {
        if !rows.len().is_multiple_of(self.info.width) {
            let message = format!("{} numbers are no rows of {} features", rows.len(), self.info.width);
            let names = self.info.features.join(", ");
            let hint = if names.is_empty() {
                format!("give {} features per row", self.info.width)
            } else {
                format!("the features are: {names}")
            };
            return Err(Error::new(Code::MODEL_SHAPE, message).hint(hint));
        }
        self.forest.predict(rows, scores);
        Ok(())
    }
}

/// What a reader or the builder found wrong, fit for the end of a sentence.
type Problem = String;
