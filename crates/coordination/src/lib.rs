//! The coordination plane: keys, watches, leases, locks and elections for clients of etcd's v3 API.
//!
//! It never keeps anything outside of the log: what a client is told was committed or read there, and everything that
//! this crate holds in memory (watch positions, the ring of latest events) can be lost at any time. It knows neither
//! the node nor another plane; it speaks to [`core::Ledger`](buttress_core::Ledger) and
//! [`core::Cluster`](buttress_core::Cluster), and to what the binary lets it change of members
//! ([`Admin`](edge::etcd::Admin)).
//!
//! The way of a request, a `Txn` of a gRPC client:
//!
//! 1. [`edge::etcd`] takes the connection, HTTP/1.1 or HTTP/2 without TLS on one port, and routes the path: a gRPC
//!    method,
//!    a path of the JSON gateway, or a page such as `/health`.
//! 2. `edge/etcd/kv.rs` checks the request as etcd does, so that what is wrong is refused with etcd's own code and
//!    text.
//! 3. `edge/etcd/convert.rs` makes it a [`core::Txn`](buttress_core::Txn), and it is submitted as one entry; every
//!    compare is
//!    evaluated where the entry is applied. A transaction that changes nothing is a read and does not enter the log.
//! 4. The receipt holds a result for each operation; it is answered with the header that every reply has.
//!
//! Watches have a ring of their own: `edge/etcd/feed.rs` says why, and `edge/etcd/watches.rs` what a stream owes its
//! client.

pub use buttress_etcd_proto as pb;

pub mod edge;
