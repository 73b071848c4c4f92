//! The bridge: the engines that users already run, behind the traits that everything else is written against.
//! [`etcd::EtcdLedger`] is a [`Ledger`](buttress_core::Ledger) on an etcd 3.5 or newer, [`kafka::Kafka`] a
//! [`Stream`](buttress_core::Stream) on an Apache Kafka 4.
//!
//! It never weakens a commit. One etcd transaction holds keys and leases, one Kafka transaction holds records, offsets and
//! state; what an entry asks for beyond that is refused whole, with a code and the way out ([`scope`]), before anything was
//! sent. It keeps nothing on disk: what it holds in memory can be lost at any time.
//!
//! The way of an entry to etcd: [`scope::check`] → `etcd/submit.rs` makes guards compares and puts operations of one `Txn`,
//! with a key of its own by which a repetition is recognised → `etcd/endpoints.rs` sends it, and after a fault sends it again
//! elsewhere → the answer becomes a receipt, a refusal that names the guard, or `BT0102` where nobody can say.
//!
//! The way of an entry to Kafka: [`scope::check`] → the session of the cursor's group and partition (`kafka/session.rs`) holds
//! the guard against the position that only it can move → outputs and changelog are produced, the offset is added, and
//! `EndTxn` makes all of it so, at once.

pub mod hold;
pub mod scope;
pub mod secure;

mod patience;
mod url;

pub mod fuzz;

pub mod etcd;
pub mod kafka;

#[cfg(feature = "contract")]
pub mod contract;
