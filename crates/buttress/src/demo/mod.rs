pub mod cluster;
pub mod data_file;
pub mod feed;
pub mod gateway;
pub mod http;
pub mod journal;
pub mod model;
pub mod mqtt;
pub mod plant;
pub mod reader;
pub mod reading;
pub mod report;
pub mod training;

/// The model that the run begins with, and the better one that it is swapped for; see `examples/fleet-model`.
pub const MODEL_V1: &[u8] = include_bytes!("../../../../examples/fleet-model/anomaly-v1.json");
pub const MODEL_V2: &[u8] = include_bytes!("../../../../examples/fleet-model/anomaly-v2.json");
/// For the AI4I 2020 file, which has no vibration.
pub const MODEL_AI4I: &[u8] = include_bytes!("../../../../examples/fleet-model/ai4i.json");
