//! The Kafka edge over real sockets, with the in-memory ledger behind it.

mod admin;
mod faults;
mod groups;
mod pipelining;
mod rskafka_client;
mod support;
mod transcripts;
