//! Models as the functions plane sees them.

use crate::error::Error;

/// What a model takes and gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// `sha256:` and the hex digest of the model's bytes.
    pub digest: String,
    /// For people: `tree-ensemble/json`, `tree-ensemble/onnx`.
    pub kind: String,
    /// Names of the input features, in order; empty where the format does not carry names.
    pub features: Vec<String>,
    /// Number of input features per row.
    pub width: usize,
    /// Number of outputs per row.
    pub outputs: usize,
}

/// A model that scores rows of numbers.
pub trait Model: Send + Sync {
    fn info(&self) -> &ModelInfo;

    /// Scores `rows`, a row-major matrix of `rows.len() / width` rows, and appends `outputs` numbers per row to `scores`.
    ///
    /// # Errors
    /// [`crate::Code::MODEL_SHAPE`] where `rows.len()` is not a multiple of the width.
    fn predict(&self, rows: &[f32], scores: &mut Vec<f32>) -> Result<(), Error>;
}
