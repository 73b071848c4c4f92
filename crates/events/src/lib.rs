//! The events plane: Kafka, MQTT and HTTP in; entries out.
//!
//! It never keeps a record outside the log: an edge turns what a client sent into a record, the shared [`ingest`] packs
//! whatever all its connections have queued into one entry, and the client hears "yes" only after that entry is
//! committed. It knows nothing of consensus, disks or other planes; it meets them in [`buttress_core::Ledger`],
//! [`buttress_core::Stream`] and [`buttress_core::Cluster`].
//!
//! One MQTT publish: `mqtt::session` decodes it and asks the rules for topic and key; `ingest::Ingest::prepare` checks the
//! body, picks the partition and builds the record; the batcher submits the entry; the outcome comes back to the session,
//! which writes the PUBACK. A subscriber's `mqtt::hub` tails the partition and delivers the same record.

pub mod http;
pub mod ingest;
pub mod intake;
pub mod kafka;
pub mod mqtt;

#[cfg(test)]
mod testing;
