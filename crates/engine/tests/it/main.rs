//! The engine from outside, with the components of `guests/built`.

mod batches;
mod cache;
mod golden;
mod http;
mod models;
mod refusals;
mod support;
