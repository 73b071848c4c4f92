//! The words every other crate speaks: ids, limits, errors, the [`Entry`], and the traits that planes and shells
//! are written against.
//!
//! This crate never performs IO, never reads a clock and never draws a random number; where one is needed it is an
//! argument. A request goes through it like this: an edge turns bytes into an [`Entry`] and hands it to a
//! [`Ledger`]; the ledger's consensus orders it; a [`Machine`] applies it against a [`Store`] and answers with a
//! [`Receipt`] or a [`Refusal`].

mod bytes_debug;
pub mod claims;
pub mod clock;
pub mod codec;
pub mod entry;
pub mod error;
pub mod fuzz;
pub mod guest;
pub mod ids;
pub mod invariants;
pub mod ledger;
pub mod limits;
pub mod machine;
pub mod model;
pub mod mutant;
pub mod receipt;
pub mod store;
pub mod tenure;
pub mod txn;

pub use claims::{Claimed, Claims, Seat};
pub use clock::{Clocks, ClusterClock, Renewal};
pub use codec::{DecodeError, Reader, Writer};
pub use entry::{
    Append, Cursor, Entry, Forget, Guard, KeyRange, LeaseChange, Put, RequestId, Sequence, StatePut, Timer, TopicChange,
};
pub use error::{Code, Error};
pub use guest::{Engine, Guest};
pub use ids::{Index, LeaseId, LogId, NodeId, Offset, Revision, Term, TimeMs};
pub use invariants::{Invariant, Violation};
pub use ledger::{BoxFuture, Cluster, Consistency, Ledger, Scope, Stream, SubmitError};
pub use machine::Machine;
pub use model::Model;
pub use mutant::Mutant;
pub use receipt::{AppendOutcome, Receipt, Refusal};
pub use store::{Store, StoreError, Table, WriteBatch};
pub use txn::{Compare, DeleteOp, OpResult, Operand, PutOp, RangeOp, RangeResult, Relation, Txn, TxnOp, TxnResult};
