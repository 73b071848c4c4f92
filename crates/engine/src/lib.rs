//! WebAssembly components and model evaluation. The planes reach all of it through `core::{Engine, Guest, Model}`.
//!
//! This crate never opens a socket for a guest, never gives it a file, and never lets it reach anything but what its
//! grants name. It never decides what a batch's outcome means: an outcome is handed back whole, and nothing of it has
//! happened until the plane commits it.
//!
//! A batch goes through it like this. [`WasmEngine`] compiles a component once (`wasm::engine`), after checking that
//! every import is allowed or granted (`wasm::imports`), and keeps the machine code on disk under the component's
//! digest (`wasm::cache`). The plane starts one instance per partition and hands it batches (`wasm::batch`); the guest
//! runs on the caller's thread, under an epoch deadline (`wasm::epoch`) and a memory limit, and reaches the host by
//! the functions of `wasm::host`. Every way in which it can fail becomes one `core::Error` (`wasm::failure`), and the
//! instance is thrown away. An HTTP request runs on an instance of its own on a small pool of threads (`wasm::http`).
//!
//! Models are independent of all that: `model` reads tree ensembles from a JSON form of our own and from ONNX, and
//! evaluates them on flat arrays.

pub mod fuzz;
pub mod guests;
pub mod model;
mod wasm;

pub use model::load as load_model;
pub use wasm::{
    cache::CACHE_FILES_MAX,
    engine::{Counters, Options, WasmEngine},
};
