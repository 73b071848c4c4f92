//! `kind: Model`: what functions ask.
//!
//! ```yaml
//! kind: Model
//! name: spindle
//! spec: {model: spindle.onnx}
//! ```

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A model that functions ask; other bytes are a new generation of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// A file, seen from where this one lies: ONNX, or JSON of a tree ensemble.
    pub model: String,
}
