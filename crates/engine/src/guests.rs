//! Components that come with the program, built from `guests/` by `cargo xtask guests`.

/// The flagship: `handle-batch`, `POST /infer` and `POST /detect`.
pub const ANOMALY: &[u8] = include_bytes!("../../../guests/built/anomaly.wasm");

/// Traps by design, to show that a trap is contained.
pub const FAULTY: &[u8] = include_bytes!("../../../guests/built/faulty.wasm");

/// A component by its name, as `fn deploy` takes it.
pub fn embedded(name: &str) -> Option<&'static [u8]> {
    match name {
        "anomaly" => Some(ANOMALY),
        "faulty" => Some(FAULTY),
        _ => None,
    }
}
