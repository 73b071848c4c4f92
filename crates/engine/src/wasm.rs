//! Components under wasmtime.

pub(crate) mod batch;
pub(crate) mod block;
pub(crate) mod cache;
pub(crate) mod engine;
pub(crate) mod epoch;
pub(crate) mod failure;
pub(crate) mod host;
pub(crate) mod http;
pub(crate) mod imports;
pub(crate) mod lend;
pub(crate) mod output;
