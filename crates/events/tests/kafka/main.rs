//! The Kafka edge over real sockets, with the in-memory ledger behind it.

mod faults;
mod pipelining;
mod rskafka_client;
mod support;
mod transcripts;
