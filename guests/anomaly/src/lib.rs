//! Finds machines that wear out. One component, two triggers:
//!
//! * a topic: `handle-batch` takes readings, asks the model once for the whole batch, keeps a small baseline per
//!   machine, and gives only the anomalies, as records for `machine-anomalies`;
//! * HTTP: `POST …/infer` scores samples, `POST …/detect` judges one reading by the local rules.
//!
//! Where the model cannot be asked, the local rules decide (temperature above 80 °C or vibration above 5.0), so a
//! function that is cut off from its model still protects the machine. A reading that cannot be parsed is counted
//! and logged and never fails the batch: one broken sensor must not stop the plant.
//!
//! `detect` holds the logic against a [`detect::Host`], so that it is tested without WebAssembly.

pub mod answer;
pub mod detect;
pub mod json;
pub mod rules;

#[cfg(target_family = "wasm")]
mod component;
